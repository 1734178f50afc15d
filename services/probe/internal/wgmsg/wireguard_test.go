package wgmsg

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// recorder is a bind that keeps a copy of what its device sends.
type recorder struct {
	conn.Bind
	sent chan []byte
}

func (r recorder) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		r.sent <- bytes.Clone(b)
	}
	return r.Bind.Send(bufs, ep)
}

// next returns the next datagram that the device sent.
func (r recorder) next(t *testing.T) []byte {
	t.Helper()
	select {
	case b := <-r.sent:
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("the device sent nothing for 10 s")
		return nil
	}
}

// side is one of two userspace WireGuard devices that are connected by channels.
type side struct {
	private, public [32]byte
	ip              netip.Addr
	tun             *tuntest.ChannelTUN
	dev             *device.Device
	recorder
}

// fixedKey returns a private key, for which any 32 bytes will do; fixed ones make a failure repeatable.
func fixedKey(b byte) [32]byte { return [32]byte(bytes.Repeat([]byte{b}, 32)) }

// publicKey returns the public key of a private key.
func publicKey(private [32]byte) [32]byte {
	pub, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		panic(err)
	}
	return [32]byte(pub)
}

// pair starts two devices that know each other.
func pair(t testing.TB) [2]*side {
	t.Helper()
	binds := bindtest.NewChannelBinds()
	var sides [2]*side
	for i := range sides {
		private := fixedKey(byte(i + 1))
		sides[i] = &side{
			private: private, public: publicKey(private), ip: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}),
			tun: tuntest.NewChannelTUN(), recorder: recorder{binds[i], make(chan []byte, 64)},
		}
	}
	for i, s := range sides {
		peer := sides[1-i]
		s.dev = device.NewDevice(s.tun.TUN(), s.recorder, device.NewLogger(device.LogLevelSilent, ""))
		t.Cleanup(s.dev.Close)
		if err := s.dev.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%s\nallowed_ip=%v/32\nendpoint=127.0.0.1:%d\n",
			s.private[:], hex.EncodeToString(peer.public[:]), peer.ip, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range sides {
		if err := s.dev.Up(); err != nil {
			t.Fatal(err)
		}
	}
	return sides
}

// ping sends one packet from s to peer through the tunnel and waits for it to come out.
func (s *side) ping(t *testing.T, peer *side) {
	t.Helper()
	s.tun.Outbound <- tuntest.Ping(peer.ip, s.ip)
	select {
	case <-peer.tun.Inbound:
	case <-time.After(10 * time.Second):
		t.Fatal("the ping did not arrive within 10 s")
	}
}

// TestRealSession follows what two wireguard-go devices send each other.
func TestRealSession(t *testing.T) {
	t.Parallel()
	sides := pair(t)
	a, b := sides[0], sides[1]
	a.ping(t, b)
	a.ping(t, b)
	initiation, response := a.next(t), b.next(t)
	data := [][]byte{a.next(t), a.next(t)}

	for _, m := range []struct {
		name string
		msg  []byte
		want Kind
	}{
		{"initiation", initiation, Initiation}, {"response", response, Response}, {"first data", data[0], Data}, {"second data", data[1], Data},
	} {
		if got, ok := Classify(m.msg, len(m.msg)); !ok || got != m.want {
			t.Errorf("%s: Classify = %v, %v, want %v", m.name, got, ok, m.want)
		}
	}

	aIndex, _ := Sender(initiation)
	bIndex, _ := Sender(response)
	if got, ok := Receiver(response); !ok || got != aIndex {
		t.Errorf("the response is for index %#x, want the initiation's sender %#x", got, aIndex)
	}
	for n, msg := range data {
		if got, ok := Receiver(msg); !ok || got != bIndex {
			t.Errorf("data is for index %#x, want the response's sender %#x", got, bIndex)
		}
		if got, ok := Counter(msg); !ok || got != uint64(n) {
			t.Errorf("data message %d has counter %d, %v", n, got, ok)
		}
	}

	toA, toB := newResponder(t, a.private), newResponder(t, b.private)
	for _, m := range []struct {
		name     string
		msg      []byte
		forA     bool
		forB     bool
		endsAt   int
		coversAt int
	}{
		{"initiation", initiation, false, true, InitiationMAC1Offset + MACSize, InitiationMAC1Offset - 1},
		{"response", response, true, false, ResponseMAC1Offset + MACSize, ResponseMAC1Offset - 1},
		{"data", data[0], false, false, 0, 0},
	} {
		if got := toA.Addressed(m.msg); got != m.forA {
			t.Errorf("%s: meant for the initiator = %v, want %v", m.name, got, m.forA)
		}
		if got := toB.Addressed(m.msg); got != m.forB {
			t.Errorf("%s: meant for the responder = %v, want %v", m.name, got, m.forB)
		}
		if m.endsAt == 0 {
			continue
		}
		for _, at := range []int{4, m.coversAt, m.endsAt - 1} {
			broken := bytes.Clone(m.msg)
			broken[at] ^= 1
			if toA.Addressed(broken) || toB.Addressed(broken) {
				t.Errorf("%s: verified in spite of a wrong bit in byte %d", m.name, at)
			}
		}
		mac2 := bytes.Clone(m.msg)
		mac2[m.endsAt] ^= 1
		if toA.Addressed(mac2) != m.forA || toB.Addressed(mac2) != m.forB {
			t.Errorf("%s: mac2 counts for mac1", m.name)
		}
	}
}

// initiation makes one as wireguard-go does, without sending it.
func (s *side) initiation(t testing.TB, to *side) []byte {
	t.Helper()
	made, err := s.dev.CreateMessageInitiation(s.dev.LookupPeer(to.public))
	if err != nil {
		t.Fatal(err)
	}
	msg, err := binary.Append(nil, binary.LittleEndian, made)
	if err != nil {
		t.Fatal(err)
	}
	return withMACs(to.public, msg)
}

// withMACs returns msg with the mac1 that wireguard-go makes for the holder of public key pub.
func withMACs(pub [32]byte, msg []byte) []byte {
	var macs device.CookieGenerator
	macs.Init(pub)
	macs.AddMacs(msg)
	return msg
}

// TestRealInitiations opens many that wireguard-go makes, in several goroutines at once, while others are configured and removed.
func TestRealInitiations(t *testing.T) {
	t.Parallel()
	sides := pair(t)
	a, b := sides[0], sides[1]
	toA, toB := newResponder(t, a.private), newResponder(t, b.private)
	var wg sync.WaitGroup
	var last Timestamp
	for n := range 100 {
		before := time.Now().Add(-1 << 24) // rounded down
		msg := a.initiation(t, b)
		after := time.Now()
		if n%2 == 0 {
			toB.Keep(slices.Values([][32]byte{a.public, {byte(n)}}))
		} else {
			toB.Keep(slices.Values([][32]byte{{byte(n)}}))
		}
		wg.Go(func() {
			if toA.Addressed(msg) || !toB.Addressed(msg) {
				t.Errorf("an initiation is not known as addressed to its responder alone: %x", msg)
			}
			if _, ok := toA.Open(msg); ok {
				t.Errorf("an initiation was opened by its own sender: %x", msg)
			}
			claim, ok := toB.Open(msg)
			if !ok || claim.Static != a.public {
				t.Errorf("Open = %x, %v, want %x", claim.Static, ok, a.public)
			}
			at, ok := toB.Prove(&claim)
			if wall := at.Time(); !ok || wall.Before(before) || wall.After(after) {
				t.Errorf("Prove = %v, %v, want from %v to %v", wall, ok, before, after)
			}
		})
		claim, _ := toB.Open(msg)
		at, _ := toB.Prove(&claim)
		if at.Compare(last) < 0 {
			t.Errorf("timestamp %x after %x", at, last)
		}
		last = at
	}
	wg.Wait()
}

// TestRealCookieReply checks the one message that two idle devices never send.
func TestRealCookieReply(t *testing.T) {
	t.Parallel()
	var checker device.CookieChecker
	checker.Init(device.NoisePublicKey{1})
	const index = 0x12345678
	made, err := checker.CreateReply(message(typeInitiation, InitiationSize), index, []byte{127, 0, 0, 1})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := binary.Append(nil, binary.LittleEndian, made)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := Classify(msg, len(msg)); !ok || got != CookieReply {
		t.Errorf("Classify = %v, %v, want %v", got, ok, CookieReply)
	}
	if got, ok := Receiver(msg); !ok || got != index {
		t.Errorf("Receiver = %#x, %v, want %#x", got, ok, index)
	}
}
