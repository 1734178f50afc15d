package health_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wgherald/wgherald/services/probe/internal/health"
)

// dir is one whose path is short enough for a socket.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "health-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]health.Report{
		"well":     {Well: true, Text: "watches wg0"},
		"not well": {Text: "the engine stands still"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			// What an earlier probe left, which had no time to tidy up.
			left, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(d, health.FileName)})
			if err != nil {
				t.Fatal(err)
			}
			left.SetUnlinkOnClose(false)
			left.Close()
			if r := health.Ask(d); r.Well || !strings.Contains(r.Text, "no probe runs") || !strings.Contains(r.Text, d) {
				t.Errorf("of a probe that was killed it says %q", r)
			}

			l, err := health.Listen(d)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- health.Serve(ctx, l, func() health.Report { return want }) }()
			for range 2 {
				if got := health.Ask(d); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if r := health.Ask(d); r.Well || !strings.Contains(r.Text, "no probe runs") {
				t.Errorf("of a probe that was stopped it says %q", r)
			}
		})
	}
}

// TestLongPath: a socket's path has a limit that a directory's has not.
func TestLongPath(t *testing.T) {
	t.Parallel()
	d := filepath.Join(dir(t), strings.Repeat("d", 100))
	if _, err := health.Listen(d); err == nil || !strings.Contains(err.Error(), d) || !strings.Contains(err.Error(), "107 are possible") {
		t.Errorf("the error is %v", err)
	}
}
