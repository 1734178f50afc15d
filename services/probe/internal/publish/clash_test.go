package publish

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestClash: acks of another process of the node count once the time of those that an earlier run left is over, and are told of now and then.
func TestClash(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	count := 0
	start := time.Unix(1e9, 0)
	own := newInboxes("vpn.1")
	c := clash{inboxes: own, count: func() { count++ }, log: slog.New(slog.NewTextHandler(&log, nil)), from: start.Add(clashGrace)}
	other := newInboxes("vpn.1")
	if other.own == own.own || other.node != own.node || own.node != "_INBOX_probe.vpn=2E1." {
		t.Fatalf("the inboxes are %q and %q", own, other)
	}
	for _, tt := range []struct {
		what          string
		subject       string
		at            time.Duration
		counted, told int
	}{
		{"an own ack", own.own + ".abc.def", time.Minute, 0, 0},
		{"one of an earlier run", other.own + ".abc.def", clashGrace - 1, 0, 0},
		{"one of another probe", other.own + ".abc.def", clashGrace, 1, 1},
		{"one more", other.own + ".abc.ghi", clashGrace + time.Second, 2, 1},
		{"one an hour later", other.own + ".abc.ghi", clashGrace + clashInterval, 3, 2},
	} {
		c.note(tt.subject, start.Add(tt.at))
		if told := strings.Count(log.String(), "another probe publishes as this node"); count != tt.counted || told != tt.told {
			t.Errorf("%s: %d counted, %d told, want %d and %d", tt.what, count, told, tt.counted, tt.told)
		}
	}
}

func TestTooOld(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"2.9.10": true, "2.10.29": true, "1.4.1": true, "2.11.0": false, "2.15.2": false, "2.12.0-RC.1": false, "3.0.0": false, "": false} {
		if got := tooOld(version); got != want {
			t.Errorf("%q: %t, want %t", version, got, want)
		}
	}
}
