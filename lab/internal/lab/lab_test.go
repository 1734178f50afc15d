package lab_test

import (
	"context"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/testreq"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
)

// The services are not part of these tests: e2e has them.
func newLab(t *testing.T, opts lab.Options) (context.Context, *lab.Lab) {
	t.Helper()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	l, err := lab.New(&runner.Binaries{}, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

// peer is the client as the hub shows it, nil if it does not.
func peer(t *testing.T, l *lab.Lab, c *lab.Client) *wgtypes.Peer {
	t.Helper()
	dev, err := l.Hub.Observe()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range dev.Peers {
		if p.PublicKey == wgtypes.Key(c.PublicKey()) {
			return &p
		}
	}
	return nil
}

func try(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func TestLifeOfAClient(t *testing.T) {
	t.Parallel()
	var sent ledger.Ledger[wgpeer.Kind]
	ctx, l := newLab(t, lab.Options{Clients: 2, OnSend: func(_ *lab.Client, s wgpeer.Sent) { sent.Add(s.Kind) }})
	c := l.Clients[0]

	try(t, "connect", c.Connect(ctx))
	if got := peer(t, l, c); got == nil || !got.Endpoint.IP.Equal(c.Outside().AsSlice()) {
		t.Fatalf("the hub shows %+v", got)
	}
	session := peer(t, l, c).LastHandshakeTime

	before := c.Outside()
	try(t, "roam", c.Roam())
	try(t, "ping", c.Ping(ctx))
	if c.Outside() == before {
		t.Errorf("still at %s after roaming", before)
	}
	if got := peer(t, l, c); !got.Endpoint.IP.Equal(c.Outside().AsSlice()) || !got.LastHandshakeTime.Equal(session) {
		t.Errorf("after roaming the hub shows %+v", got)
	}
	try(t, "roam back", c.Roam())
	try(t, "ping", c.Ping(ctx))
	if c.Outside() != before {
		t.Errorf("at %s after roaming twice, want %s", c.Outside(), before)
	}

	port := peer(t, l, c).Endpoint.Port
	try(t, "rebind", c.Rebind())
	try(t, "ping", c.Ping(ctx))
	if got := peer(t, l, c).Endpoint.Port; got == port {
		t.Errorf("still at port %d after rebinding", port)
	}

	try(t, "down", c.Down())
	old := *c
	try(t, "replace key", l.ReplaceKey(c))
	if peer(t, l, &old) != nil || peer(t, l, c) == nil {
		t.Error("the hub does not have the new key in place of the old one")
	}
	try(t, "connect with the new key", c.Connect(ctx))

	if got := sent.All(); len(got) < 4 || got[0] != wgpeer.Initiation || got[1] != wgpeer.FirstData {
		t.Errorf("told of %v", got)
	}
}

func TestHubDeletedAndBack(t *testing.T) {
	t.Parallel()
	ctx, l := newLab(t, lab.Options{Clients: 1})
	c := l.Clients[0]
	try(t, "connect", c.Connect(ctx))
	try(t, "delete", l.DeleteHub())
	try(t, "down", c.Down())
	try(t, "create", l.CreateHub())
	try(t, "configure", l.Configure(c))
	try(t, "connect", c.Connect(ctx))
}
