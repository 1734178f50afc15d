package lab_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
)

func TestMain(m *testing.M) {
	lab.Apart()
	os.Exit(m.Run())
}

func TestClientApart(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t, lab.Options{Clients: 1})
	c := l.Clients[0]
	try(t, "up apart", c.UpApart(ctx))
	try(t, "ping", c.Ping(ctx))
	for name, away := range map[string]struct{ leave, back func() error }{
		"frozen":    {c.Freeze, c.Thaw},
		"unplugged": {c.Unplug, c.Plug},
	} {
		try(t, name, away.leave())
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		if err := c.Ping(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping while %s: %v", name, err)
		}
		cancel()
		try(t, "back after "+name, away.back())
		try(t, "ping after "+name, c.Ping(ctx))
	}
	if err := c.Up(); err == nil {
		t.Error("up twice")
	}
	try(t, "freeze", c.Freeze())
	try(t, "down while frozen", c.Down())
	if c.Alive() == nil || c.Freeze() == nil {
		t.Error("alive after down")
	}
	c.Impair(wgpeer.Impairment{Loss: 1})
	try(t, "up apart, with a cut path", c.UpApart(ctx))
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := c.Ping(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping over a cut path: %v", err)
	}
	try(t, "down", c.Down())
}
