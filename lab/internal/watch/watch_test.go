package watch

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/pkg/events"
)

func TestRead(t *testing.T) {
	t.Parallel()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	ring := events.Keyring{events.AnyNode: {key.Public().(ed25519.PublicKey)}}
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	e := events.New(&events.Up{Common: events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: now}}, now, events.Sequence{Epoch: 1795342000123, N: 1})
	body, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*nats.Msg)
		want   string // part of the error, empty for none
	}{
		"as published":        {func(*nats.Msg) {}, ""},
		"not signed":          {func(m *nats.Msg) { m.Header.Del(events.HeaderSignature) }, "has no Wg-Signature"},
		"on another subject":  {func(m *nats.Msg) { m.Subject = "wg.peer.connected" }, "on subject wg.peer.connected"},
		"with another id":     {func(m *nats.Msg) { m.Header.Set(nats.MsgIdHdr, "x") }, "message id"},
		"something different": {func(m *nats.Msg) { m.Data = []byte("{}") }, "event"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := nats.NewMsg(string(events.InterfaceUp))
			m.Data = body
			m.Header.Set(events.HeaderSignature, events.Sign(body, key))
			m.Header.Set(nats.MsgIdHdr, e.ID)
			tt.change(m)
			got := read(m, ring)
			if (got.Err == nil) != (tt.want == "") || got.Err != nil && !strings.Contains(got.Err.Error(), tt.want) {
				t.Errorf("error %v, want %q", got.Err, tt.want)
			}
			if (got.Event != nil) != (tt.want == "") {
				t.Errorf("event %v", got.Event)
			}
		})
	}
}
