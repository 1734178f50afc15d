package retry_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/retry"
)

var stored = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func TestNext(t *testing.T) {
	t.Parallel()
	const middle = 0.5 // no jitter either way
	for _, tt := range []struct {
		name    string
		attempt int
		age     time.Duration // of the event, when the attempt failed
		random  float64
		hint    time.Duration
		want    time.Duration // from now
		giveUp  bool
	}{
		{name: "first wait", attempt: 1, random: middle, want: 5 * time.Second},
		{name: "second wait", attempt: 2, random: middle, want: 15 * time.Second},
		{name: "third wait", attempt: 3, random: middle, want: 45 * time.Second},
		{name: "eighth wait", attempt: 8, random: middle, want: 10935 * time.Second},
		{name: "ninth wait is capped", attempt: 9, random: middle, want: 6 * time.Hour},
		{name: "very late wait is capped", attempt: 1000, random: middle, want: 6 * time.Hour},
		{name: "jitter down", attempt: 1, random: 0, want: 4 * time.Second},
		{name: "jitter up", attempt: 1, random: 0.999999999, want: 6 * time.Second},
		{name: "larger hint counts", attempt: 1, random: 0, hint: time.Minute, want: time.Minute},
		{name: "smaller hint does not shorten", attempt: 3, random: 0, hint: time.Second, want: 45 * time.Second},
		{name: "jitter only adds to a hint", attempt: 1, random: 0.5, hint: 100 * time.Second, want: 110 * time.Second},
		{name: "hint is capped", attempt: 1, random: 0, hint: 48 * time.Hour, want: 6 * time.Hour},
		{name: "last attempt inside the limit", attempt: 9, age: 66 * time.Hour, random: middle, want: 6 * time.Hour},
		{name: "next would be beyond the limit", attempt: 9, age: 66*time.Hour + time.Second, random: middle, want: 6 * time.Hour, giveUp: true},
		{name: "first attempt of a very old event", attempt: 1, age: 100 * time.Hour, random: middle, want: 5 * time.Second, giveUp: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			now := stored.Add(tt.age)
			at, giveUp := retry.Default().Next(tt.attempt, stored, now, tt.random, tt.hint)
			if have := at.Sub(now).Round(time.Microsecond); have != tt.want {
				t.Errorf("waits %s, want %s", have, tt.want)
			}
			if giveUp != tt.giveUp {
				t.Errorf("gives up: %t, want %t", giveUp, tt.giveUp)
			}
		})
	}
}

func TestEveryWaitStaysWithinItsJitter(t *testing.T) {
	t.Parallel()
	p := retry.Default()
	for attempt := 1; attempt < 30; attempt++ {
		base, _ := p.Next(attempt, stored, stored, 0.5, 0)
		for random := 0.0; random < 1; random += 0.01 {
			at, _ := p.Next(attempt, stored, stored, random, 0)
			if share := float64(at.Sub(stored)) / float64(base.Sub(stored)); share < 0.8-1e-9 || share > 1.2+1e-9 {
				t.Fatalf("attempt %d, random %g: %g of the base, want 0.8 to 1.2", attempt, random, share)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := retry.Default().Validate(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	err := retry.Policy{Initial: 0, Factor: math.NaN(), Max: -1, Jitter: 1.5, GiveUp: 0}.Validate()
	if err == nil {
		t.Fatal("nothing is refused")
	}
	for _, field := range []string{"initial", "factor", "max", "jitter", "give up"} {
		if !strings.Contains(err.Error(), field+" is ") {
			t.Errorf("error does not name %s: %v", field, err)
		}
	}
}

func TestParseAfter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, field string
		want        time.Duration
	}{
		{"missing", "", 0},
		{"seconds", "120", 2 * time.Minute},
		{"white space", " 7 ", 7 * time.Second},
		{"zero", "0", 0},
		{"negative", "-5", 0},
		{"fraction", "1.5", 0},
		{"more than 32 bits count", "4294967296", math.MaxInt64},
		{"more than any clock counts", "99999999999999999999", math.MaxInt64},
		{"that much below zero", "-99999999999999999999", 0},
		{"a date that far away", "Sun, 22 Nov 9999 10:00:00 GMT", math.MaxInt64},
		{"date", "Sun, 22 Nov 2026 10:01:30 GMT", 90 * time.Second},
		{"obsolete date", "Sunday, 22-Nov-26 10:00:10 GMT", 10 * time.Second},
		{"asctime", "Sun Nov 22 10:00:05 2026", 5 * time.Second},
		{"date in the past", "Sun, 22 Nov 2026 09:00:00 GMT", 0},
		{"words", "soon", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if have := retry.ParseAfter(tt.field, stored); have != tt.want {
				t.Errorf("waits %s, want %s", have, tt.want)
			}
		})
	}
}

func FuzzParseAfter(f *testing.F) {
	f.Add("120")
	f.Add("Sun, 22 Nov 2026 10:01:30 GMT")
	f.Fuzz(func(t *testing.T, field string) {
		if have := retry.ParseAfter(field, stored); have < 0 {
			t.Errorf("%q waits %s", field, have)
		}
	})
}
