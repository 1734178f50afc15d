package wgmsg

import (
	"encoding/json"
	"math"
	"testing"
	"time"
)

func TestTimestampTime(t *testing.T) {
	t.Parallel()
	tests := []struct {
		label string
		want  time.Time // zero: none
	}{
		{"400000000000000a00000000", time.Unix(0, 0)},
		{"400000006b02c09a01000000", time.Date(2026, 11, 22, 10, 14, 40, 1<<24, time.UTC)},
		{"400000000000000a3b9ac9ff", time.Unix(0, 999999999)},
		{"400000000000000a3b9aca00", time.Time{}}, // a whole second of nanoseconds
		{"400000000000000900000000", time.Time{}}, // 1969
		{"4000003afff4418900000000", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		{"4000003afff4418a00000000", time.Time{}}, // the year 10000
		{"000000000000000000000000", time.Time{}},
		{"000000000000000100000000", time.Time{}}, // a sender that counts
		{"7fffffffffffffff00000000", time.Time{}},
		{"ffffffffffffffffffffffff", time.Time{}},
	}
	for _, tt := range tests {
		var at Timestamp
		if err := at.UnmarshalText([]byte(tt.label)); err != nil {
			t.Fatal(err)
		}
		got := at.Time()
		if !got.Equal(tt.want) {
			t.Errorf("%s is %v, want %v", tt.label, got, tt.want)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Errorf("%s: %v", tt.label, err)
		}
	}
}

func TestTimestampCompare(t *testing.T) {
	t.Parallel()
	sorted := []Timestamp{{}, {11: 1}, {10: 1}, {7: 1}, {0: 0x40}, {0: math.MaxUint8}}
	for i, a := range sorted {
		for j, b := range sorted {
			if got, want := a.Compare(b), max(-1, min(1, i-j)); got != want {
				t.Errorf("%x.Compare(%x) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestTimestampText(t *testing.T) {
	t.Parallel()
	at := Timestamp{0x40, 10: 0xab, 11: 1}
	const text = `"40000000000000000000ab01"`
	got, err := json.Marshal(at)
	if err != nil || string(got) != text {
		t.Errorf("JSON = %s, %v, want %s", got, err, text)
	}
	var back Timestamp
	if err := json.Unmarshal(got, &back); err != nil || back != at {
		t.Errorf("read back as %x, %v", back, err)
	}
	for _, wrong := range []string{``, `40`, `40000000000000000000ab0`, `40000000000000000000ab011`, `40000000000000000000ab0101`, `40000000000000000000ab0g`} {
		if err := back.UnmarshalText([]byte(wrong)); err == nil || back != at {
			t.Errorf("%q is read as %x, %v", wrong, back, err)
		}
	}
}
