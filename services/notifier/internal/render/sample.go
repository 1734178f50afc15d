package render

import (
	"net/netip"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

// sample is an event that a template must be able to express.
type sample struct {
	event *events.Event
	note  string // what is special about it
}

// samples returns events of every type of the catalogue, peers' events twice: with everything, and with all missing that a probe or a hook may leave out.
// Names have characters that a template must quote.
func samples() []sample {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 673179000, time.UTC)
	key, other := events.Key{0xfb, 0xff, 1}, events.Key{2}
	common := func(iface string) events.Common {
		return events.Common{Node: `vpn"1\`, Interface: iface, DetectedAt: noon, Inferred: true}
	}
	device := events.Device{PublicKey: other, ListenPort: 51820}
	full := events.Peer{
		PublicKey: key, Name: "Zoë's \"laptop\" \\ <b> \n", Tags: []string{`"staff"`}, Endpoint: "203.0.113.7:41641",
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32")}, KeepaliveSeconds: 25, PresharedKey: true,
	}
	session := events.Session{
		StartedAt: noon.Add(-time.Hour), LastHandshakeAt: noon, LastSeen: events.Interval{After: noon, Before: noon},
		RxBytes: 1 << 33, TxBytes: 1 << 20, DurationSeconds: 3600,
	}
	var all []sample
	add := func(note string, data events.Data) {
		n := uint64(len(all) + 1)
		all = append(all, sample{events.New(data, noon, events.Sequence{Epoch: 1795342000123, N: n}), note})
	}
	const bare = " without name, tags, endpoint and allowed IPs"
	for _, v := range []struct {
		note     string
		peer     events.Peer
		from, to string
		session  events.Session
		changes  events.PeerChanges
	}{
		{"", full, "198.51.100.4:55555", "203.0.113.7:41641", session, events.PeerChanges{
			AllowedIPs:       &events.Change[[]netip.Prefix]{To: full.AllowedIPs},
			KeepaliveSeconds: &events.Change[int]{To: 25}, PresharedKey: events.PresharedKeySet,
		}},
		{bare, events.Peer{PublicKey: key}, "", "", events.Session{StartedAt: noon, LastHandshakeAt: noon},
			events.PeerChanges{PresharedKey: events.PresharedKeyUnset}},
	} {
		add(v.note, &events.Connected{Common: common("wg0"), Peer: v.peer, Session: v.session})
		add(v.note, &events.Disconnected{Common: common("wg0"), Peer: v.peer, Session: v.session, Reason: events.Expired})
		add(v.note, &events.Roamed{Common: common("wg0"), Peer: v.peer, Session: v.session, From: v.from, To: v.to})
		add(v.note, &events.Stalled{Common: common("wg0"), Peer: v.peer, Attempts: 3, Since: noon})
		add(v.note, &events.Rejected{Common: common("wg0"), PublicKey: key, Endpoint: v.to, Count: 1})
		add(v.note, &events.Added{Common: common("wg0"), Peer: v.peer})
		add(v.note, &events.Removed{Common: common("wg0"), Peer: v.peer})
		add(v.note, &events.Changed{Common: common("wg0"), Peer: v.peer, Changes: v.changes})
	}
	add("", &events.Up{Common: common("wg0"), Device: device, Peers: 5})
	add("", &events.Down{Common: common("wg0"), Device: device, Reason: events.SetDown})
	add("", &events.DeviceChanged{Common: common("wg0"), Device: device, Changes: events.DeviceChanges{ListenPort: &events.Change[int]{From: 1, To: 2}}})
	nkey := "UDVEU3DD4KOFECV66VIHWEZOYX4ZKR3WV27L464SIIPOU2IUI3JCYSJF"
	add("", &events.Started{Common: common(""), Version: "v1.0.0", PublicKey: nkey, Trigger: events.TriggerPackets, BlindSince: noon, BlindSeconds: 60})
	add("", &events.Stopped{Common: common(""), Version: "v1.0.0", UptimeSeconds: 86400})
	return all
}
