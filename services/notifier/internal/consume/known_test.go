package consume

import (
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/wgherald/wgherald/pkg/events"
)

func TestAKnownEventIsReadOnce(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t}
	encode := func(peer string) ([]byte, string) {
		body, err := b.event(peer).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return body, events.Sign(body, private)
	}
	body, signature := encode("alice")
	ring := &events.Keyring{"vpn-1": {public}}
	var k Known
	read := func(body []byte, signature string, ring *events.Keyring) *events.Event {
		t.Helper()
		e, err := k.Read(body, signature, ring)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	first := read(body, signature, ring)
	if again := read(append([]byte(nil), body...), signature, ring); again != first {
		t.Error("the same bytes are read again")
	}
	for _, tt := range []struct {
		name      string
		change    func(body []byte) []byte
		signature string
		ring      *events.Keyring
	}{
		{"no signature", nil, "", ring},
		{"another signature", nil, events.Sign([]byte("another"), private), ring},
		{"another body", func(b []byte) []byte { return append(b, ' ') }, signature, ring},
		{"a keyring without the key", nil, signature, &events.Keyring{}},
	} {
		changed := append([]byte(nil), body...)
		if tt.change != nil {
			changed = tt.change(changed)
		}
		if _, err := k.Read(changed, tt.signature, tt.ring); !errors.Is(err, events.ErrUnverified) {
			t.Errorf("%s: error %v, want one that it is not verified", tt.name, err)
		}
	}
	if read(body, "", nil) == first {
		t.Error("an event whose origin need not be proven is one whose origin is")
	}
	if _, err := k.Read(body, "", ring); !errors.Is(err, events.ErrUnverified) {
		t.Errorf("read without proof before: error %v, want one that it is not verified", err)
	}

	for range 2 * knownEvents {
		body, signature := encode("bob")
		read(body, signature, nil)
	}
	if len(k.events) != knownEvents || len(k.oldest) != knownEvents {
		t.Errorf("%d events are kept, in a list of %d, want %d", len(k.events), len(k.oldest), knownEvents)
	}
	large := make([]byte, knownBytes/4)
	for i := range 8 {
		k.keep(uint64(i), known{body: large})
	}
	if k.bytes > knownBytes || len(k.events) != 4 {
		t.Errorf("%d events of %d bytes are kept, want at most %d bytes", len(k.events), k.bytes, knownBytes)
	}
}

// BenchmarkKnown measures what an event costs that another hook has read before.
func BenchmarkKnown(b *testing.B) {
	body, err := (&broker{t: b}).event("alice").Encode()
	if err != nil {
		b.Fatal(err)
	}
	var k Known
	for b.Loop() {
		if _, err := k.Read(body, "", nil); err != nil {
			b.Fatal(err)
		}
	}
}
