package e2e

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/pkg/events"
)

// TestMalformedPackets sends what anybody on the network can send to the WireGuard port. The hub's public key is all that a valid mac1 takes, and it is no
// secret.
func TestMalformedPackets(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 2})
	alice, bob := s.Clients[0], s.Clients[1]
	hub, err := s.Hub.Observe()
	s.must(err)

	initiation := func(fill func([]byte)) []byte {
		p := make([]byte, 148)
		rand.Read(p)
		binary.LittleEndian.PutUint32(p, 1)
		fill(p)
		return p
	}
	packets := map[string]func() []byte{
		"junk":                  func() []byte { p := make([]byte, 100); rand.Read(p); return p },
		"empty":                 func() []byte { return nil },
		"a byte":                func() []byte { return []byte{1} },
		"truncated initiation":  func() []byte { return initiation(func([]byte) {})[:100] },
		"foreign initiation":    func() []byte { return initiation(func([]byte) {}) },
		"initiation, good mac1": func() []byte { return initiation(func(p []byte) { mac1(p, hub.PublicKey[:]) }) },
		"response, good mac1": func() []byte {
			p := initiation(func(p []byte) { binary.LittleEndian.PutUint32(p, 2) })[:92]
			mac1(p, hub.PublicKey[:])
			return p
		},
		"cookie reply": func() []byte { p := initiation(func([]byte) {})[:64]; p[0] = 3; return p },
		"first data": func() []byte {
			p := make([]byte, 32)
			rand.Read(p)
			copy(p, []byte{4, 0, 0, 0})
			clear(p[8:16])
			return p
		},
		"data, no tag": func() []byte { return []byte{4, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0} },
		"too long":     func() []byte { p := make([]byte, 1400); copy(p, []byte{1, 0, 0, 0}); return p },
	}
	const rounds = 50
	for range rounds {
		conn, err := bob.DialEndpoint() // from a new port each time
		s.must(err)
		for name, packet := range packets {
			if _, err := conn.Write(packet()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		s.must(conn.Close())
	}
	// What is for nobody here is thrown away; what has a good mac1 is for wg0, as far as anybody can tell.
	s.awaitMetric(probeMetrics, fmt.Sprintf("wgherald_probe_foreign_messages_total %d", rounds))
	s.awaitMetric(probeMetrics, fmt.Sprintf(`wgherald_probe_messages_total{kind="initiation"} %d`, rounds))
	s.awaitMetric(probeMetrics, fmt.Sprintf(`wgherald_probe_messages_total{kind="response"} %d`, rounds))
	s.connect(alice)

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11"},
	})
}

// mac1 seals a handshake message for the holder of a public key, as anybody can (whitepaper, section 5.4.4): its last 32 bytes are mac1 and mac2.
func mac1(p, public []byte) {
	key := blake2s.Sum256(append([]byte("mac1----"), public...))
	mac, err := blake2s.New128(key[:])
	if err != nil {
		panic(err) // the key has the right length
	}
	at := len(p) - 2*blake2s.Size128
	mac.Write(p[:at])
	copy(p[at:], mac.Sum(nil))
	clear(p[at+blake2s.Size128:])
}

// TestWithoutPacketSockets has the probe in a user namespace that does not own the network, as some container engines do: it has its capabilities, and they open
// no packet socket. It then asks the devices every second.
func TestWithoutPacketSockets(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 2, ProbeAttr: func(a *syscall.SysProcAttr) {
		everybody := []syscall.SysProcIDMap{{Size: unprivileged + 1}}
		a.Cloneflags, a.UidMappings, a.GidMappings = unix.CLONE_NEWUSER, everybody, everybody
	}})
	alice, bob := s.Clients[0], s.Clients[1]
	s.connect(alice)
	e := s.await(0, events.PeerConnected, alice.PublicKey().String())
	if took := e.Common().DetectedAt.Sub(e.Time); took > 3*time.Second {
		t.Errorf("detected after %v, want about a second at most", took)
	}
	s.expect(events.PeerRoamed, alice.PublicKey().String(), func() error {
		s.must(alice.Roam())
		return alice.Ping(s.ctx)
	})
	s.expect(events.PeerRemoved, bob.PublicKey().String(), func() error { return s.Remove(bob) })
	if n := strings.Count(s.log.String(), "cannot see packets"); n != 1 {
		t.Errorf("it is said %d times that packets cannot be seen", n)
	}

	s.end(map[string][]string{
		"lab":          {"started, sampling", "stopped"},
		"wg0":          {"up, 2 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "roamed from 203.0.113.11 to 198.51.100.11"},
		"bob-phone":    {"removed"},
	})
}
