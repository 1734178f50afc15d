package e2e

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

// TestFailingReceiver refuses one event three times. The default schedule tries again after 5, 15 and 45 s; what is told of the same peer waits that long, and
// nobody else does.
func TestFailingReceiver(t *testing.T) {
	t.Parallel()
	s := told(t, 3*time.Minute, lab.Options{Clients: 2})
	alice, bob := s.Clients[0], s.Clients[1]
	s.Sink.Inject(sink.Fault{Match: about(alice), Times: 3, Status: http.StatusInternalServerError})
	s.must(alice.Connect(s.ctx))
	s.awaitRequest("alice connected", about(alice))
	s.must(alice.Down(), alice.Connect(s.ctx))
	s.connect(bob)
	s.must(bob.Down())
	s.expect(events.PeerRoamed, bob.PublicKey().String(), func() error { return bob.Connect(s.ctx) })
	s.await(0, events.PeerRoamed, alice.PublicKey().String())

	var attempts []sink.Delivery
	for _, d := range s.Sink.All() {
		switch {
		case about(bob)(d) && len(attempts) > 1:
			t.Errorf("%s of bob came after the second attempt for alice: he had to wait for her", describe(d.Event))
		case about(alice)(d) && d.Event.Type == events.PeerConnected:
			attempts = append(attempts, d)
		case about(alice)(d) && len(attempts) < 4:
			t.Errorf("%s of alice came after %d attempts to tell that she is there", describe(d.Event), len(attempts))
		}
	}
	var status []int
	stamps := map[string]bool{} // each attempt is signed anew
	for _, d := range attempts {
		status = append(status, d.Status)
		stamps[d.Header.Get("Webhook-Timestamp")] = true
	}
	if diff := cmp.Diff([]int{500, 500, 500, 204}, status); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if len(stamps) != len(attempts) {
		t.Errorf("%d attempts have the timestamps %v", len(attempts), slices.Collect(maps.Keys(stamps)))
	}

	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 2 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "roamed to another port of 203.0.113.11"},
		"bob-phone":    {"connected from 203.0.113.12", "roamed to another port of 203.0.113.12"},
	})
}

// TestDeadLetters has everything die that can: an event that the receiver refuses for good, and messages that whoever has the probe's credential can put
// into the stream.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{Clients: 1})
	alice := s.Clients[0]
	s.Sink.Inject(sink.Fault{Match: about(alice), Times: 1, Status: http.StatusNotFound})
	s.must(alice.Connect(s.ctx))
	refused := s.awaitRequest("alice connected", about(alice))
	s.must(alice.Down())
	s.expect(events.PeerRoamed, alice.PublicKey().String(), func() error { return alice.Connect(s.ctx) })

	// A newer event than any, so that it fits into the sequence, of a probe that does not exist.
	now := time.Now()
	lie := events.New(&events.Stopped{Common: events.Common{Node: "elsewhere", DetectedAt: now}}, now, events.Sequence{Epoch: uint64(now.UnixMilli()), N: 1})
	body, err := lie.Encode()
	s.must(err)
	_, stranger, err := ed25519.GenerateKey(nil)
	s.must(err)
	ours := s.signingKey("probe")
	js := s.jetStream("probe")
	var forged []uint64
	for _, m := range []*nats.Msg{
		forge("wg.probe.stopped", body, events.Sign(body, stranger)),
		forge("wg.probe.stopped", body, ""),
		forge("wg.probe.stopped", bytes.Replace(body, []byte(`"uptimeSeconds":0`), []byte(`"uptimeSeconds":9`), 1), events.Sign(body, ours)),
		forge("wg.peer.connected", body, events.Sign(body, ours)),
		forge("wg.peer.connected", []byte("junk"), events.Sign([]byte("junk"), ours)),
	} {
		ack, err := js.PublishMsg(s.ctx, m)
		s.must(err)
		forged = append(forged, ack.Sequence)
	}

	dead, err := s.jetStream("operator").Stream(s.ctx, "WG_DEAD")
	s.must(err)
	type letter struct{ Class, Subject, Attempts, Status, Event string }
	got := map[string]letter{} // by place in the stream of events; letters are stored in any order
	place := func(seq uint64) string { return strconv.FormatUint(seq, 10) }
	for seq := uint64(1); seq <= 6; seq++ {
		var m *jetstream.RawStreamMsg
		s.eventually(func() (err error) { m, err = dead.GetMsg(s.ctx, seq); return err })
		got[m.Header.Get("Wg-Stream-Sequence")] = letter{
			m.Header.Get("Wg-Dead-Class"), m.Header.Get("Wg-Subject"), m.Header.Get("Wg-Attempts"), m.Header.Get("Wg-Last-Status"), m.Header.Get("Wg-Event-Id"),
		}
		if m.Header.Get("Wg-Dead-Class") == "rejected" && !bytes.Equal(m.Data, refused.Body) {
			t.Error("the letter does not hold the event as it was sent")
		}
		if m.Header.Get("Wg-Dead-Reason") == "" {
			t.Errorf("letter %d has no reason", seq)
		}
	}
	want := map[string]letter{
		place(forged[0]): {"unverified", "wg.probe.stopped", "0", "", ""},
		place(forged[1]): {"unverified", "wg.probe.stopped", "0", "", ""},
		place(forged[2]): {"unverified", "wg.probe.stopped", "0", "", ""},
		place(forged[3]): {"subject_mismatch", "wg.peer.connected", "0", "", lie.ID},
		place(forged[4]): {"undecodable", "wg.peer.connected", "0", "", ""},
	}
	for i, m := range s.stored() {
		if bytes.Equal(m.Data(), refused.Body) {
			want[place(uint64(i+1))] = letter{"rejected", "wg.peer.connected", "1", "404", refused.Event.ID}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}

	// What the receiver has refused is not tried again, and holds up nothing.
	s.refused[refused.ID] = true
	s.end(map[string][]string{
		"lab":          {"started, packets", "stopped"},
		"wg0":          {"up, 1 peers, inferred"},
		"alice-laptop": {"connected from 203.0.113.11", "roamed to another port of 203.0.113.11"},
	}, forged...)
}

// forge makes a message that looks like one of the probe's.
func forge(subject string, body []byte, signature string) *nats.Msg {
	m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}}
	if signature != "" {
		m.Header.Set(events.HeaderSignature, signature)
	}
	return m
}

// signingKey is the key of one of the identities.
func (s *story) signingKey(identity string) ed25519.PrivateKey {
	s.t.Helper()
	seed, err := s.Seed(identity)
	s.must(err)
	_, raw, err := nkeys.DecodeSeed(bytes.TrimSpace(seed))
	s.must(err)
	return ed25519.NewKeyFromSeed(raw)
}
