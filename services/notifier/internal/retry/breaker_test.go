package retry_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/retry"
)

func TestBreaker(t *testing.T) {
	t.Parallel()
	slow := retry.Default()
	slow.Initial = time.Hour
	short := retry.Default()
	short.Max = 20 * time.Second
	for _, tt := range []struct {
		name   string
		policy retry.Policy
		// f is a failure, t a trial's failure, h one that asks for 60 s, d one that asks for a day, o a failure that asks for 60 s, a a final answer, s a success.
		steps string
		// what it is after each step: - closed, or the seconds until the trial
		want string
	}{
		{"five failures in a row", retry.Default(), "fffff", "- - - - 5"},
		{"a success in between", retry.Default(), "ffffsffff", "- - - - - - - - -"},
		{"a final answer in between", retry.Default(), "ffffaffff", "- - - - - - - - -"},
		{"attempts under way fail, too", retry.Default(), "ffffffff", "- - - - 5 5 5 5"},
		{"trials wait longer each, up to 10 min", retry.Default(), "ffffftttttt", "- - - - 5 15 45 135 405 600 600"},
		{"the retries' bound is lower", short, "ffffftt", "- - - - 5 15 20"},
		{"the retries begin later", slow, "fffffttt", "- - - - 3600 3600 3600 3600"},
		{"a trial asks for more", retry.Default(), "fffffh", "- - - - 5 60"},
		{"a trial asks for more than 10 min", retry.Default(), "fffffdt", "- - - - 5 21600 45"},
		{"an attempt under way asks for more", retry.Default(), "fffffoft", "- - - - 5 60 60 15"},
		{"an attempt under way asks for less", retry.Default(), "fffffttto", "- - - - 5 15 45 135 135"},
		{"a success closes", retry.Default(), "fffffts", "- - - - 5 15 -"},
		{"a final answer does not", retry.Default(), "fffffa", "- - - - 5 5"},
		{"after a success it begins anew", retry.Default(), "ffffftsfffff", "- - - - 5 15 - - - - - 5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var b retry.Breaker
			var have []string
			for _, step := range tt.steps {
				was := b.Open()
				changed := false
				switch step {
				case 'f':
					changed = b.Failed(tt.policy, false, stored, 0.5, 0)
				case 't':
					changed = b.Failed(tt.policy, true, stored, 0.5, 0)
				case 'h':
					changed = b.Failed(tt.policy, true, stored, 0, time.Minute)
				case 'd':
					changed = b.Failed(tt.policy, true, stored, 0, 24*time.Hour)
				case 'o':
					changed = b.Failed(tt.policy, false, stored, 0, time.Minute)
				case 'a':
					b.Answered()
				case 's':
					changed = b.Succeeded()
				}
				if changed != (was != b.Open()) {
					t.Errorf("%c says that it changed: %t", step, changed)
				}
				state := "-"
				if b.Open() {
					state = fmt.Sprint(b.TrialAt().Sub(stored).Seconds())
				}
				have = append(have, state)
			}
			if have := strings.Join(have, " "); have != tt.want {
				t.Errorf("%s is %s, want %s", tt.steps, have, tt.want)
			}
		})
	}
}
