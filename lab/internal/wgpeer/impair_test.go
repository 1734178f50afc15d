package wgpeer

import (
	"testing"
	"time"
)

func TestFates(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		impairment       Impairment
		minLost, maxLost int // of 10,000
		soonest, latest  time.Duration
	}{
		{"a clean path", Impairment{}, 0, 0, 0, 0},
		{"a cut path", Impairment{Loss: 1}, 10_000, 10_000, 0, 0},
		{"a late path", Impairment{Delay: time.Second}, 0, 0, time.Second, time.Second},
		{"one in twenty lost", Impairment{Loss: 0.05, Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond}, 400, 600, 15 * time.Millisecond, 25 * time.Millisecond},
		{"more jitter than delay", Impairment{Delay: time.Millisecond, Jitter: time.Second}, 0, 0, 0, 1001 * time.Millisecond},
	} {
		p, same := newPath(tt.impairment), newPath(tt.impairment)
		other := tt.impairment
		other.Seed++
		q := newPath(other)
		lost, differ := 0, false
		for range 10_000 {
			delay, gone := p.fate()
			if gone {
				lost++
			}
			if delay < tt.soonest || delay > tt.latest {
				t.Fatalf("%s: delay %v, want %v to %v", tt.name, delay, tt.soonest, tt.latest)
			}
			if d, g := same.fate(); d != delay || g != gone {
				t.Fatalf("%s: the same seed brings another fate", tt.name)
			}
			d, g := q.fate()
			differ = differ || d != delay || g != gone
		}
		if lost < tt.minLost || lost > tt.maxLost {
			t.Errorf("%s: %d lost, want %d to %d", tt.name, lost, tt.minLost, tt.maxLost)
		}
		if random := tt.soonest != tt.latest || tt.minLost != tt.maxLost; differ != random {
			t.Errorf("%s: another seed brings another fate: %t", tt.name, differ)
		}
	}
}
