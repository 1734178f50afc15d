package events

import (
	"cmp"
	"fmt"
	"strconv"
)

// Sequence is the place of an event in its source. N starts at 1 and has no holes within an Epoch; a later Epoch means that the probe lost its
// state directory and counts anew.
type Sequence struct {
	Epoch uint64 // milliseconds since 1970, when the probe's state file was made
	N     uint64
}

const (
	epochDigits   = 13
	counterDigits = 20
	maxEpoch      = 9_999_999_999_999 // the largest that 13 digits hold, in the year 2286
)

// String returns 13 digits, a dash and 20 digits, so that sequences of one source sort as text.
func (s Sequence) String() string {
	var room [epochDigits + 1 + counterDigits]byte
	return string(appendDigits(append(appendDigits(room[:0], s.Epoch, epochDigits), '-'), s.N, counterDigits))
}

// appendDigits appends n with at least so many digits. Each event's sequence is written several times, and package fmt takes four times as long.
func appendDigits(b []byte, n uint64, least int) []byte {
	for most := n; least > 1; least-- {
		if most /= 10; most == 0 {
			b = append(b, '0')
		}
	}
	return strconv.AppendUint(b, n, 10)
}

// ParseSequence reads the form that String writes, and no other.
func ParseSequence(text string) (Sequence, error) {
	bad := func() (Sequence, error) {
		return Sequence{}, fmt.Errorf("sequence %.60q: want %d digits, a dash and %d digits", text, epochDigits, counterDigits)
	}
	if len(text) != epochDigits+1+counterDigits || text[epochDigits] != '-' {
		return bad()
	}
	epoch, err := strconv.ParseUint(text[:epochDigits], 10, 64)
	if err != nil {
		return bad()
	}
	n, err := strconv.ParseUint(text[epochDigits+1:], 10, 64)
	if err != nil {
		return bad()
	}
	return Sequence{Epoch: epoch, N: n}, nil
}

// Compare orders sequences of one source: negative when s is before t.
func (s Sequence) Compare(t Sequence) int {
	return cmp.Or(cmp.Compare(s.Epoch, t.Epoch), cmp.Compare(s.N, t.N))
}

// IsZero reports whether s is not set: counting starts at 1.
func (s Sequence) IsZero() bool { return s == Sequence{} }

// MarshalText implements encoding.TextMarshaler.
func (s Sequence) MarshalText() ([]byte, error) {
	if s.Epoch > maxEpoch {
		return nil, fmt.Errorf("sequence epoch %d has more than %d digits", s.Epoch, epochDigits)
	}
	return []byte(s.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sequence) UnmarshalText(text []byte) error {
	parsed, err := ParseSequence(string(text))
	if err != nil {
		return err
	}
	*s = parsed
	return nil
}
