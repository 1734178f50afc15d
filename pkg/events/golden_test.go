package events

import (
	"bytes"
	"crypto/ed25519"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	alice = mustKey("KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg=")
	hub   = mustKey("m4Xq0kC1p3oYb2WcC4p3VwJq4kS9w0m2Zl1fW8v7lGk=")

	noon = time.Date(2026, 11, 22, 12, 0, 0, 673179000, time.UTC)
)

const probeNkey = "UDVEU3DD4KOFECV66VIHWEZOYX4ZKR3WV27L464SIIPOU2IUI3JCYSJF"

func mustKey(s string) Key {
	k, err := ParseKey(s)
	if err != nil {
		panic(err)
	}
	return k
}

// samples holds one event of every type, in the order of the catalogue.
func samples() []*Event {
	common := func(iface string) Common {
		return Common{Node: "vpn-1", Interface: iface, DetectedAt: noon.Add(4 * time.Millisecond)}
	}
	peer := Peer{
		PublicKey:        alice,
		Name:             "alice-laptop",
		Tags:             []string{"staff"},
		Endpoint:         "203.0.113.7:41641",
		AllowedIPs:       []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32"), netip.MustParsePrefix("2001:db8::2/128")},
		KeepaliveSeconds: 25,
		PresharedKey:     true,
	}
	fresh := Session{StartedAt: noon, LastHandshakeAt: noon, LastSeen: Interval{After: noon, Before: noon}, RxBytes: 276, TxBytes: 1240}
	ended := Session{
		StartedAt:       noon.Add(-time.Hour),
		LastHandshakeAt: noon.Add(-3 * time.Minute),
		LastSeen:        Interval{After: noon.Add(-160 * time.Second), Before: noon.Add(-150 * time.Second)},
		RxBytes:         1 << 33,
		TxBytes:         1 << 20,
		DurationSeconds: 3600,
	}
	device := Device{PublicKey: hub, ListenPort: 51820}
	seq := func(n uint64) Sequence { return Sequence{Epoch: 1795342000123, N: n} }
	inferred := common("wg0")
	inferred.Inferred = true

	return []*Event{
		New(&Connected{Common: common("wg0"), Peer: peer, Session: fresh}, noon, seq(42)),
		New(&Disconnected{Common: common("wg0"), Peer: peer, Session: ended, Reason: Expired}, noon, seq(43)),
		New(&Roamed{Common: common("wg0"), Peer: peer, Session: fresh, From: "198.51.100.4:55555", To: "203.0.113.7:41641"}, noon, seq(44)),
		New(&Stalled{Common: common("wg0"), Peer: peer, Attempts: 3, Since: noon.Add(-15 * time.Second)}, noon, seq(45)),
		New(&Rejected{Common: common("wg0"), PublicKey: alice, Endpoint: "[2001:db8::7]:41641", Count: 1, Suppressed: 4}, noon, seq(46)),
		New(&Added{Common: common("wg0"), Peer: peer}, noon, seq(47)),
		New(&Removed{Common: inferred, Peer: peer}, noon, seq(48)),
		New(&Changed{Common: common("wg0"), Peer: peer, Changes: PeerChanges{
			AllowedIPs:       &Change[[]netip.Prefix]{From: []netip.Prefix{}, To: peer.AllowedIPs},
			KeepaliveSeconds: &Change[int]{From: 0, To: 25},
			PresharedKey:     PresharedKeySet,
		}}, noon, seq(49)),
		New(&Up{Common: common("wg0"), Device: device, Peers: 5}, noon, seq(1)),
		New(&Down{Common: common("wg0"), Device: device, Reason: SetDown}, noon, seq(2)),
		New(&DeviceChanged{Common: common("wg0"), Device: device, Changes: DeviceChanges{
			PublicKey:  &Change[Key]{From: alice, To: hub},
			ListenPort: &Change[int]{From: 51821, To: 51820},
		}}, noon, seq(3)),
		New(&Started{
			Common: common(""), Version: "v0.1.0", PublicKey: probeNkey, Trigger: TriggerPackets,
			Interfaces: []string{"wg*", "!wg-test*"}, BlindSince: noon.Add(-time.Minute), BlindSeconds: 60,
		}, noon, seq(4)),
		New(&Stopped{Common: common(""), Version: "v0.1.0", UptimeSeconds: 86400}, noon, seq(5)),
	}
}

func golden(t Type) string { return filepath.Join("testdata", string(t)+".json") }

// TestGolden pins the bytes of every type: they are what other services parse.
func TestGolden(t *testing.T) {
	all := samples()
	if len(all) != len(Types()) {
		t.Fatalf("%d samples for %d types", len(all), len(Types()))
	}
	for i, want := range Types() {
		t.Run(string(want), func(t *testing.T) {
			e := all[i]
			if e.Type != want {
				t.Fatalf("sample %d is a %s", i, e.Type)
			}
			body, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(golden(want), append(body, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			file, err := os.ReadFile(golden(want))
			if err != nil {
				t.Fatalf("%v (go test -update writes it)", err)
			}
			if !bytes.Equal(append(body, '\n'), file) {
				t.Errorf("encoded:\n%s\ngolden:\n%s", body, file)
			}
			back, err := Decode(file)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back, e) {
				t.Errorf("decoded %+v\nwant    %+v", back, e)
			}
		})
	}
}

func testKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
}
