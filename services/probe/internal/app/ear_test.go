package app

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/blake2s"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/capture"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// responder is the side of handshakes of the device with the private key that is one byte again and again.
func responder(t *testing.T, b byte) *wgmsg.Responder {
	t.Helper()
	r, err := wgmsg.NewResponder([32]byte(slices.Repeat([]byte{b}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// recorded returns an initiation to the device responder(2) from wgmsg's corpus, which wireguard-go made.
func recorded(t *testing.T, name string) (msg []byte, static events.Key, stamp wgmsg.Timestamp) {
	t.Helper()
	text, err := os.ReadFile("../wgmsg/testdata/initiations.json")
	if err != nil {
		t.Fatal(err)
	}
	var corpus []struct {
		Name, Static, Message string
		Timestamp             *wgmsg.Timestamp
	}
	if err := json.Unmarshal(text, &corpus); err != nil {
		t.Fatal(err)
	}
	for _, v := range corpus {
		if v.Name != name {
			continue
		}
		key, err := hex.DecodeString(v.Static)
		if err != nil {
			t.Fatal(err)
		}
		if msg, err = hex.DecodeString(v.Message); err != nil {
			t.Fatal(err)
		}
		if v.Timestamp != nil {
			stamp = *v.Timestamp
		}
		return msg, events.Key(key), stamp
	}
	t.Fatalf("the corpus has no %q", name)
	return nil, static, stamp
}

// addressedTo returns a handshake message of zeros with a right mac1 (whitepaper, section 5.4.4).
func addressedTo(t *testing.T, to *wgmsg.Responder, kind wgmsg.Kind) []byte {
	t.Helper()
	size, end := wgmsg.InitiationSize, wgmsg.InitiationMAC1Offset
	if kind == wgmsg.Response {
		size, end = wgmsg.ResponseSize, wgmsg.ResponseMAC1Offset
	}
	msg := make([]byte, size)
	msg[0] = byte(kind)
	public := to.PublicKey()
	k := blake2s.Sum256(append([]byte("mac1----"), public[:]...))
	mac, err := blake2s.New128(k[:])
	if err != nil {
		t.Fatal(err)
	}
	mac.Write(msg[:end])
	copy(msg[end:], mac.Sum(nil))
	return msg
}

var (
	alice   = netip.MustParseAddrPort("203.0.113.7:1000")
	mallory = netip.MustParseAddrPort("203.0.113.66:6666")
	atWG0   = netip.MustParseAddrPort("192.0.2.1:51820")
)

// TestAddressees: mac1 tells which interface a handshake is for; between two with one key, the port does.
func TestAddressees(t *testing.T) {
	t.Parallel()
	a, b := responder(t, 1), responder(t, 2)
	targets := []target{{"wg0", 51820, a}, {"wg1", 51821, a}, {"wg2", 51822, b}}
	for name, tt := range map[string]struct {
		to   *wgmsg.Responder
		dst  string
		want []string
	}{
		"the first of two with one key":              {a, "192.0.2.1:51820", []string{"wg0"}},
		"the second":                                 {a, "192.0.2.1:51821", []string{"wg1"}},
		"behind a port forward it may be any of two": {a, "192.0.2.1:51822", []string{"wg0", "wg1"}},
		"one with its own key":                       {b, "192.0.2.1:51822", []string{"wg2"}},
		"the port is no filter":                      {b, "192.0.2.1:443", []string{"wg2"}},
		"nobody here":                                {responder(t, 3), "192.0.2.1:51820", nil},
	} {
		var got []string
		for _, found := range addressees(nil, targets, capture.Packet{Dst: netip.MustParseAddrPort(tt.dst), Payload: addressedTo(t, tt.to, wgmsg.Initiation)}) {
			got = append(got, found.name)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestHear tells what of all that arrives reaches the engine.
func TestHear(t *testing.T) {
	t.Parallel()
	known, aliceKey, stamp := recorded(t, "initiation")
	claimed, _, _ := recorded(t, "claimed without holding the key")
	device := responder(t, 2)
	shared := responder(t, 5)
	targets := []target{{"wg0", 51820, device}, {"wg1", 51821, shared}, {"wg2", 51822, shared}}
	data := make([]byte, wgmsg.DataHeaderSize)
	data[0] = byte(wgmsg.Data)
	began := time.Now()

	type packet struct {
		kind    wgmsg.Kind
		from    netip.AddrPort
		payload []byte
	}
	initiation := packet{wgmsg.Initiation, alice, known}
	opened := heard{note: noteInitiation, name: "wg0", src: alice, key: aliceKey, stamp: stamp}
	for name, tt := range map[string]struct {
		packets []packet
		want    []heard
	}{
		"an initiation names its peer":              {[]packet{initiation}, []heard{opened}},
		"and then its first data packet is awaited": {[]packet{initiation, {wgmsg.Data, alice, data}}, []heard{opened, {note: noteFirstData, src: alice}}},
		"what else looks like it is not, until they knock again": {
			[]packet{initiation, {wgmsg.Data, alice, data}, {wgmsg.Data, alice, data}, initiation, {wgmsg.Data, alice, data}},
			[]heard{opened, {note: noteFirstData, src: alice}, opened, {note: noteFirstData, src: alice}},
		},
		"data of anybody else is nothing":            {[]packet{initiation, {wgmsg.Data, mallory, data}}, []heard{opened}},
		"a claim without proof is nothing":           {[]packet{{wgmsg.Initiation, mallory, claimed}, {wgmsg.Data, mallory, data}}, nil},
		"nor is what was sealed for nobody":          {[]packet{{wgmsg.Initiation, mallory, addressedTo(t, device, wgmsg.Initiation)}}, nil},
		"nor one for another host":                   {[]packet{{wgmsg.Initiation, mallory, addressedTo(t, responder(t, 9), wgmsg.Initiation)}}, nil},
		"a response has no name in it, but a sender": {[]packet{{wgmsg.Response, alice, addressedTo(t, device, wgmsg.Response)}}, []heard{{note: noteResponse, name: "wg0", src: alice}}},
		"one for two devices with one key is for both": {
			[]packet{{wgmsg.Initiation, alice, addressedTo(t, shared, wgmsg.Initiation)}, {wgmsg.Data, alice, data}},
			[]heard{{note: noteUnopened, name: "wg1", src: alice}, {note: noteUnopened, name: "wg2", src: alice}, {note: noteFirstData, src: alice}},
		},
	} {
		out := make(chan heard, 10)
		e := newEar(telemetry.New(), out)
		e.targets.Store(&targets)
		for _, p := range tt.packets {
			e.hear(capture.Packet{Kind: p.kind, Src: p.from, Dst: atWG0, Payload: p.payload, At: began})
		}
		close(out)
		var got []heard
		for h := range out {
			got = append(got, h)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: heard %+v, want %+v", name, got, tt.want)
		}
	}
}

// TestHearFlood: of what one sender sends, some is opened and for the rest the engine is told to look, a few times a second; others are heard meanwhile.
func TestHearFlood(t *testing.T) {
	t.Parallel()
	known, _, _ := recorded(t, "initiation")
	out := make(chan heard, heardBacklog)
	e := newEar(telemetry.New(), out)
	e.targets.Store(&[]target{{"wg0", 51820, responder(t, 2)}})
	junk := addressedTo(t, responder(t, 2), wgmsg.Initiation)
	answers := addressedTo(t, responder(t, 2), wgmsg.Response)
	began := time.Now()
	for n := range 5000 { // in one second
		p := capture.Packet{Kind: wgmsg.Initiation, Src: mallory, Dst: atWG0, Payload: junk, At: began.Add(time.Duration(n) * time.Second / 5000)}
		if n%2 == 1 {
			p.Kind, p.Payload = wgmsg.Response, answers
		}
		e.hear(p)
	}
	count := map[note]int{}
	for range len(out) {
		count[(<-out).note]++
	}
	if skipped := count[noteUnopened]; skipped < 2 || skipped > 5 {
		t.Errorf("told %d times to look, want 2 to 5 times", skipped)
	}
	if passed := count[noteResponse]; passed < 1 || passed > 150 || len(count) != 2 {
		t.Errorf("%d responses were passed on, want those that the bucket has tokens for: %v", passed, count)
	}
	e.hear(capture.Packet{Kind: wgmsg.Initiation, Src: alice, Dst: atWG0, Payload: known, At: began.Add(time.Second)})
	if len(out) != 1 || (<-out).note != noteInitiation {
		t.Error("a peer was not heard beside the flood")
	}
}

// TestOverflow: the listener never waits for the engine; what is dropped is made up for by a look.
func TestOverflow(t *testing.T) {
	t.Parallel()
	e := newEar(telemetry.New(), make(chan heard))
	e.targets.Store(&[]target{{"wg0", 51820, responder(t, 2)}})
	e.hear(capture.Packet{Kind: wgmsg.Response, Src: alice, Dst: atWG0, Payload: addressedTo(t, responder(t, 2), wgmsg.Response), At: time.Now()})
	if len(e.missed) != 1 {
		t.Error("nobody is told")
	}
}
