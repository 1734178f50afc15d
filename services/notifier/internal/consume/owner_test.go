package consume

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
)

// contenderEnv holds broker, hook and name, and makes the test binary a notifier that ends only when it is killed.
const contenderEnv = "WGHERALD_TEST_CONTENDER"

// contenderTiming is long enough for a busy machine to keep an owner owner, and short enough for many takeovers.
var contenderTiming = timing{ackWait: 700 * time.Millisecond, pinnedTTL: 450 * time.Millisecond, audit: time.Second}

func TestMain(m *testing.M) {
	if text := os.Getenv(contenderEnv); text != "" {
		fmt.Fprintln(os.Stderr, "contender:", contend(strings.Fields(text)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func contend(args []string) error {
	nc, err := nats.Connect(args[0], nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	c, err := New(Config{
		JetStream: js,
		Hook:      Hook{Name: "h", Target: deliver.Target{URL: args[1]}, Format: render.CloudEvents, Retry: quick},
		Version:   args[2],
		Verify:    func(body []byte, _ string) (*events.Event, error) { return events.Decode(body) },
		Observer:  &observer{},
		Log:       slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	c.timing = contenderTiming
	return c.Run(context.Background())
}

// reception is one request, as the sink of the contenders saw it.
type reception struct {
	id, peer, owner string
	accepted        bool
}

// receptions is a sink that refuses every first and every seventh request, and knows whose they are.
type receptions struct {
	*httptest.Server
	mu     sync.Mutex
	list   []reception
	taken  map[string]bool
	broken []string // where order was
	last   map[string]uint64
	place  map[string]uint64 // event id → its place among the events of its peer, from 1
	done   map[string]uint64 // peer → how many of its events were taken
}

func newReceptions(t *testing.T) *receptions {
	t.Helper()
	r := &receptions{taken: map[string]bool{}, last: map[string]uint64{}, place: map[string]uint64{}, done: map[string]uint64{}}
	seen := map[string]int{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // killed on the way
		}
		e, err := events.Decode(body)
		if err != nil {
			t.Errorf("the sink got no event: %v", err)
			return
		}
		peer, owner := e.Peer().Name, req.UserAgent()
		r.mu.Lock()
		defer r.mu.Unlock()
		place := r.place[e.ID]
		if r.taken[e.ID] {
			// Sent again: only a new owner may, and it goes forward, too.
			for _, x := range r.list {
				if x.id == e.ID && x.accepted && x.owner == owner {
					r.broken = append(r.broken, fmt.Sprintf("%s sent %s %d again, although it was taken", owner, peer, place))
				}
			}
		} else if place != r.done[peer]+1 {
			r.broken = append(r.broken, fmt.Sprintf("%s sent %s %d, and %d were taken", owner, peer, place, r.done[peer]))
		}
		if reign := owner + " " + peer; place < r.last[reign] {
			r.broken = append(r.broken, fmt.Sprintf("%s sent %s %d after %d", owner, peer, place, r.last[reign]))
		} else {
			r.last[reign] = place
		}
		seen[e.ID]++
		accept := (len(r.list)%7 != 0) && (seen[e.ID] > 1 || peer > "c") // a part of the peers is always retried
		r.list = append(r.list, reception{id: e.ID, peer: peer, owner: owner, accepted: accept})
		if !accept {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if !r.taken[e.ID] {
			r.taken[e.ID] = true
			r.done[peer]++
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// owner returns who sent last, and how many requests there were.
func (r *receptions) owner() (string, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return "", 0
	}
	return r.list[len(r.list)-1].owner, len(r.list)
}

// TestOwnersThatAreKilledUnderRetries runs notifiers as processes of their own and kills whoever owns the hook, so that nothing of it can say goodbye:
// no acknowledgement, no hand back, no last write of a buffer.
func TestOwnersThatAreKilledUnderRetries(t *testing.T) {
	kills := 50
	if testing.Short() {
		kills = 5
	}
	b, r := newBroker(t), newReceptions(t)
	children := map[string]*exec.Cmd{}
	started := 0
	start := func() {
		t.Helper()
		started++
		name := fmt.Sprintf("contender-%d", started)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", contenderEnv, b.srv.ClientURL(), r.URL, name))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children["wgherald/"+name] = cmd
	}
	kill := func(owner string) {
		_ = children[owner].Process.Kill()
		_ = children[owner].Wait()
		delete(children, owner)
	}
	t.Cleanup(func() {
		for name := range children {
			kill(name)
		}
	})
	for range 3 {
		start()
	}
	eventually(t, "the consumer exists", func() bool {
		_, err := b.js.Consumer(t.Context(), events.StreamEvents, Durable("h"))
		return err == nil
	})

	peers := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	published := map[string]uint64{}
	total := 0
	more := func(n int) {
		for range n {
			peer := peers[total%len(peers)]
			e := b.event(peer)
			body, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			published[peer]++
			total++
			r.mu.Lock()
			r.place[e.ID] = published[peer]
			r.mu.Unlock()
			b.store(string(e.Type), body, "")
		}
	}
	for i := range kills {
		_, before := r.owner()
		more(40)
		// In the middle of it, at another place each time; what is left is for the next owner.
		eventually(t, "the next owner delivers", func() bool {
			owner, n := r.owner()
			return n >= before+5+i*7%30 && children[owner] != nil
		})
		owner, _ := r.owner()
		kill(owner)
		start()
	}
	eventually(t, "everything is taken", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.taken) == total
	})
	b.finished("h")

	r.mu.Lock()
	defer r.mu.Unlock()
	for _, what := range r.broken {
		t.Error(what)
	}
	owners, repeats := map[string]bool{}, 0
	once := map[string]bool{}
	for _, x := range r.list {
		owners[x.owner] = true
		if x.accepted && once[x.id] {
			repeats++
		}
		once[x.id] = once[x.id] || x.accepted
	}
	// What a killed owner had in work, or had not got acknowledged yet.
	if most := kills * 2 * deliver.DefaultConcurrency; repeats > most {
		t.Errorf("%d events were delivered again, want at most %d", repeats, most)
	}
	if len(owners) <= kills/2 {
		t.Errorf("only %d owners in %d kills", len(owners), kills)
	}
	if n := len(b.letters()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	t.Logf("%d events, %d requests, %d delivered again, %d owners, %d kills", total, len(r.list), repeats, len(owners), kills)
}
