package e2e

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"
	"github.com/mccutchen/go-httpbin/v2/httpbin"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

// The stories here are the notifier's alone: the test publishes in the probe's place, and receivers that are not ours judge what comes.

// publisher is a story with a notifier and without a probe.
type publisher struct {
	*story
	js   jetstream.JetStream
	key  ed25519.PrivateKey
	last events.Sequence
}

// notified begins such a story. It has the hooks that hooks returns, each a few lines of YAML, and hooks makes their receivers.
func notified(t *testing.T, hooks func(s *story) []string) *publisher {
	t.Helper()
	file := filepath.Join(netns.Dir, "hooks.yaml")
	s := begin(t, patience, lab.Options{NotifierEnv: []string{"WEBHOOK_URL=", "NOTIFIER_HOOKS=" + file}})
	text := "hooks:\n"
	for _, h := range hooks(s) {
		text += "  - " + strings.ReplaceAll(h, "\n", "\n    ") + "\n"
	}
	s.must(
		s.NS.Do(func() error {
			return errors.Join(os.WriteFile(file, []byte(text), 0o600), os.Chown(file, unprivileged, unprivileged))
		}),
		s.StartNotifier(s.ctx),
	)
	return &publisher{story: s, js: s.jetStream("probe"), key: s.signingKey("probe"), last: events.Sequence{Epoch: uint64(time.Now().UnixMilli())}}
}

// connected makes the next event: a peer has connected.
func (p *publisher) connected(node string, peer events.Peer) *events.Event {
	p.last.N++
	now := time.Now()
	return events.New(&events.Connected{
		Common:  events.Common{Node: node, Interface: lab.Interface, DetectedAt: now},
		Peer:    peer,
		Session: events.Session{StartedAt: now, LastHandshakeAt: now},
	}, now, p.last)
}

// publish stores an event as its probe would.
func (p *publisher) publish(e *events.Event) {
	p.t.Helper()
	body, err := e.Encode()
	p.must(err)
	m := forge(string(e.Type), body, events.Sign(body, p.key))
	m.Header.Set(nats.MsgIdHdr, e.ID)
	_, err = p.js.PublishMsg(p.ctx, m)
	p.must(err)
}

// idle waits until a hook has nothing left to do.
func (p *publisher) idle(hook string) {
	p.t.Helper()
	for _, gauge := range []string{"events_pending", "events_held", "attempts_in_flight"} {
		p.awaitMetric(notifierMetrics, fmt.Sprintf("wgherald_notifier_%s{hook=%q} 0", gauge, hook))
	}
}

// listen opens a port in the laboratory.
func (s *story) listen() (l net.Listener) {
	s.t.Helper()
	s.must(s.NS.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}))
	return l
}

// receive has requests answered by a handler, and returns the address.
func (s *story) receive(h http.Handler) string {
	s.t.Helper()
	l := s.listen()
	server := &http.Server{Handler: h}
	go server.Serve(l)
	s.t.Cleanup(func() { server.Close() })
	return l.Addr().String()
}

func webhookSecret(fill byte) string {
	return "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, 32))
}

// TestForeignReceivers has the CloudEvents SDK read what hooks send in both modes, and the Standard Webhooks library verify it while a secret is being
// replaced: who has the new one and who still has the old one, and nobody else.
func TestForeignReceivers(t *testing.T) {
	t.Parallel()
	fresh, old, stranger := webhookSecret(1), webhookSecret(2), webhookSecret(3)
	verifies := func(secret string, body []byte, h http.Header) error {
		hook, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			return err
		}
		return hook.Verify(body, h)
	}
	type received struct {
		mode  string
		event *cloudevents.Event
		err   error
	}
	var got ledger.Ledger[received]
	p := notified(t, func(s *story) []string {
		address := s.receive(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			err = errors.Join(err, verifies(fresh, body, r.Header), verifies(old, body, r.Header))
			if verifies(stranger, body, r.Header) == nil {
				err = errors.Join(err, errors.New("a stranger's secret verifies it"))
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			e, eventErr := cehttp.NewEventFromHTTPRequest(r)
			got.Add(received{strings.TrimPrefix(r.URL.Path, "/"), e, errors.Join(err, eventErr)})
		}))
		secrets := "\nsecrets: [" + fresh + ", " + old + "]"
		return []string{
			"name: structured\nurl: http://" + address + "/structured" + secrets,
			"name: binary\nformat: binary\nurl: http://" + address + "/binary" + secrets,
		}
	})

	// One event of each type, and one with all that headers cannot hold.
	want := map[string]any{}
	publish := func(e *events.Event) {
		p.publish(e)
		body, err := e.Encode()
		p.must(err)
		var theirs cloudevents.Event
		p.must(json.Unmarshal(body, &theirs))
		want[e.ID] = attributes(t, &theirs)
	}
	for _, typ := range events.Types() {
		body, err := os.ReadFile(filepath.Join("..", "..", "pkg", "events", "testdata", string(typ)+".json"))
		p.must(err)
		e, err := events.Decode(body)
		p.must(err)
		publish(e)
	}
	publish(p.connected("büro%41", events.Peer{PublicKey: events.Key{1}, Name: `Jörg "100 %" Müller`}))

	have := map[string]map[string]any{"structured": {}, "binary": {}}
	_, err := got.Wait(p.ctx, func(r received) bool {
		if r.err != nil {
			t.Errorf("%s: %v", r.mode, r.err)
			return false
		}
		if err := r.event.Validate(); err != nil {
			t.Errorf("%s: %v", r.mode, err)
		}
		a := attributes(t, r.event)
		if r.mode == "binary" {
			// The HTTP binding has receivers decode header values (1.0, section 3.1.3.2). This SDK hands them out as they are.
			for name, value := range a {
				if text, ok := value.(string); ok {
					decoded, err := url.PathUnescape(text)
					if err != nil {
						t.Errorf("binary: %s is %q: %v", name, text, err)
					}
					a[name] = decoded
				}
			}
		}
		have[r.mode][r.event.ID()] = a
		return len(have["structured"]) == len(want) && len(have["binary"]) == len(want)
	})
	if err != nil {
		t.Errorf("not all came: %v", err)
	}
	for mode, list := range have {
		if diff := cmp.Diff(want, any(list).(map[string]any)); diff != "" {
			t.Errorf("%s (-published +received):\n%s", mode, diff)
		}
	}
}

// attributes is an event as the SDK writes it.
func attributes(t *testing.T, e *cloudevents.Event) map[string]any {
	t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		t.Error(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Error(err)
	}
	return m
}

// TestHTTPBin has go-httpbin answer. Each hook gets two events of one peer.
func TestHTTPBin(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		answers []string // paths of httpbin, one for each request; the last answers all that follow
		more    string   // settings of the hook
		want    []string // requests: which event, which answer
		dead    []string // letters: class, status, attempts
	}{
		"taken at once":      {answers: []string{"/status/202"}, want: []string{"1 /status/202", "2 /status/202"}},
		"a large answer":     {answers: []string{"/bytes/100000"}, want: []string{"1 /bytes/100000", "2 /bytes/100000"}},
		"down for a while":   {answers: []string{"/status/503", "/status/503", "/status/200"}, want: []string{"1 /status/503", "1 /status/503", "1 /status/200", "2 /status/200"}},
		"asked to slow down": {answers: []string{"/status/429", "/status/200"}, want: []string{"1 /status/429", "1 /status/200", "2 /status/200"}},
		"slow once":          {answers: []string{"/delay/10", "/status/200"}, more: "\ntimeout: 3s", want: []string{"1 /delay/10", "1 /status/200", "2 /status/200"}},
		"not a redirect": {
			answers: []string{"/redirect/1", "/status/200"}, want: []string{"1 /redirect/1", "2 /status/200"}, dead: []string{"redirected 302 1"},
		},
		"gone":      {answers: []string{"/status/410", "/status/200"}, want: []string{"1 /status/410"}, dead: []string{"gone 410 1"}},
		"forbidden": {answers: []string{"/status/403"}, want: []string{"1 /status/403", "2 /status/403"}, dead: []string{"rejected 403 1", "rejected 403 1"}},
	}
	hookOf := func(name string) string { return strings.ReplaceAll(name, " ", "-") }

	var mu sync.Mutex
	requests := map[string][]string{} // by path: what is not a hook's own path was followed
	bin := httpbin.New()
	ids := map[string]string{}
	p := notified(t, func(s *story) (hooks []string) {
		address := s.receive(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name := strings.TrimPrefix(r.URL.Path, "/")
			mu.Lock()
			answer := "/status/404"
			for test, tt := range tests {
				if hookOf(test) == name {
					answer = tt.answers[min(len(requests[name]), len(tt.answers)-1)]
				}
			}
			requests[name] = append(requests[name], ids[r.Header.Get(standardwebhooks.HeaderWebhookID)]+" "+answer)
			mu.Unlock()
			r.URL.Path = answer
			bin.ServeHTTP(w, r)
		}))
		for name, tt := range tests {
			hooks = append(hooks, fmt.Sprintf("name: %s\nurl: http://%s/%s\nsecret: %s\nretry: {first: 1s, factor: 1, cap: 1s}%s",
				hookOf(name), address, hookOf(name), webhookSecret(1), tt.more))
		}
		return hooks
	})
	for i := range 2 {
		e := p.connected(lab.Node, events.Peer{PublicKey: events.Key{1}})
		mu.Lock()
		ids[e.ID] = strconv.Itoa(i + 1)
		mu.Unlock()
		p.publish(e)
	}

	want, wantDead, letters := map[string][]string{}, map[string][]string{}, 0
	for name, tt := range tests {
		want[hookOf(name)] = tt.want
		if tt.dead != nil {
			wantDead["wg.dead."+hookOf(name)] = tt.dead
			letters += len(tt.dead)
		}
	}
	p.eventually(func() error {
		mu.Lock()
		defer mu.Unlock()
		for name := range want {
			if len(requests[name]) < len(want[name]) {
				return fmt.Errorf("%s has got %q, want %q", name, requests[name], want[name])
			}
		}
		return nil
	})
	for name := range want {
		if name == "gone" {
			p.awaitMetric(notifierMetrics, `wgherald_notifier_hook_disabled{hook="gone"} 1`)
			continue
		}
		p.idle(name)
	}
	mu.Lock()
	if diff := cmp.Diff(want, requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	mu.Unlock()

	dead, err := p.jetStream("operator").Stream(p.ctx, "WG_DEAD")
	p.must(err)
	got := map[string][]string{}
	for seq := range letters {
		m, err := dead.GetMsg(p.ctx, uint64(seq+1))
		p.must(err)
		got[m.Subject] = append(got[m.Subject], strings.Join(
			[]string{m.Header.Get("Wg-Dead-Class"), m.Header.Get("Wg-Last-Status"), m.Header.Get("Wg-Attempts")}, " "))
	}
	if diff := cmp.Diff(wantDead, got); diff != "" || dead.CachedInfo().State.Msgs != uint64(letters) {
		t.Errorf("%d dead letters (-want +got):\n%s", dead.CachedInfo().State.Msgs, diff)
	}
}

// TestBadNetwork has toxiproxy spoil the way to one hook in one manner after the other. Whatever it does, the other hook gets everything meanwhile, and in
// the end both have everything, in order for each peer.
func TestBadNetwork(t *testing.T) {
	t.Parallel()
	var far, near *sink.Sink
	var toxics *toxiproxy.ToxicCollection
	p := notified(t, func(s *story) []string {
		receiver := func() (*sink.Sink, string) {
			l := s.listen()
			r, err := sink.Start(l)
			s.must(err)
			t.Cleanup(func() { r.Close() })
			return r, l.Addr().String()
		}
		var behind, beside string
		far, behind = receiver()
		near, beside = receiver()
		var way string
		toxics, way = s.spoiledWay(behind)
		return []string{
			"name: far\nurl: http://" + way + "/\nsecret: " + far.Secret() + "\ntimeout: 5s\nretry: {first: 500ms, factor: 1, cap: 500ms}",
			"name: near\nurl: http://" + beside + "/\nsecret: " + near.Secret(),
		}
	})

	type fate struct {
		phase string
		again bool // the receiver may get it more than once: only the answers were lost
	}
	fates := map[string]fate{} // by event id
	everything := func(r *sink.Sink, who, phase string) {
		missing := map[string]bool{}
		for id := range fates {
			missing[id] = true
		}
		if _, err := r.Wait(p.ctx, func(d sink.Delivery) bool {
			if d.OK() {
				delete(missing, d.ID)
			}
			return len(missing) == 0
		}); err != nil {
			t.Fatalf("%s, the %s hook: %d events are missing", phase, who, len(missing))
		}
	}
	for _, tt := range []struct {
		name, toxic string
		fails       string // class of the attempts while it lasts; empty when they succeed
		again       bool
	}{
		{"a long way", `{"type": "latency", "stream": "upstream", "attributes": {"latency": 300}}`, "", false},
		{"a narrow way", `{"type": "bandwidth", "stream": "upstream", "attributes": {"rate": 2}}`, "", false},
		{"requests are cut", `{"type": "limit_data", "stream": "upstream", "attributes": {"bytes": 200}}`, "network", false},
		{"requests are reset", `{"type": "reset_peer", "stream": "upstream", "attributes": {"timeout": 0}}`, "network", false},
		{"requests vanish", `{"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}}`, "timeout", false},
		{"answers are cut", `{"type": "limit_data", "stream": "downstream", "attributes": {"bytes": 10}}`, "network", true},
		{"answers are reset", `{"type": "reset_peer", "stream": "downstream", "attributes": {"timeout": 0}}`, "network", true},
	} {
		failed := p.attempts("far", tt.fails)
		toxic, err := toxics.AddToxicJson(strings.NewReader(tt.toxic))
		p.must(err)
		for range 2 {
			for peer := range 3 {
				e := p.connected(lab.Node, events.Peer{PublicKey: events.Key{byte(peer + 1)}})
				fates[e.ID] = fate{tt.name, tt.again}
				p.publish(e)
			}
		}
		everything(near, "other", tt.name)
		if tt.fails == "" {
			everything(far, "spoiled", tt.name)
		} else {
			p.eventually(func() error {
				if now := p.attempts("far", tt.fails); now < failed+3 {
					return fmt.Errorf("%s: %d attempts have failed as %s, want those for 3 peers", tt.name, now-failed, tt.fails)
				}
				return nil
			})
		}
		p.must(toxics.RemoveToxic(p.ctx, toxic.Name))
		everything(far, "spoiled", "after "+tt.name)
		p.idle("far")
	}

	for who, r := range map[string]*sink.Sink{"far": far, "near": near} {
		last := map[string]events.Sequence{}
		for _, d := range r.All() {
			switch f := fates[d.ID]; {
			case !d.OK():
				t.Errorf("%s: %s: a request that is no verified event: %v", who, f.phase, d.Err)
			case d.Event.Sequence.Compare(last[d.Event.Subject]) < 0:
				t.Errorf("%s: %s: %s comes after %s", who, f.phase, d.Event.Sequence, last[d.Event.Subject])
			case d.Attempt > 1 && (who == "near" || !f.again):
				t.Errorf("%s: %s: %s comes %d times", who, f.phase, d.Event.Sequence, d.Attempt)
			default:
				last[d.Event.Subject] = d.Event.Sequence
			}
		}
	}
}

// spoiledWay is an address that leads to another by way of toxiproxy, and the toxics on the way. Toxiproxy's own listener would be outside of the
// laboratory.
func (s *story) spoiledWay(to string) (*toxiproxy.ToxicCollection, string) {
	s.t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics log by themselves
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := s.listen()
	way := toxiproxy.NewProxy(server, "way", l.Addr().String(), to)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			onward, err := s.NS.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			name := c.RemoteAddr().String()
			way.Toxics.StartLink(server, name+" upstream", c, onward, stream.Upstream)
			way.Toxics.StartLink(server, name+" downstream", onward, c, stream.Downstream)
		}
	}()
	s.t.Cleanup(func() { l.Close() })
	return way.Toxics, l.Addr().String()
}

// attempts is how many attempts of a hook went a way.
func (p *publisher) attempts(hook, class string) int {
	p.t.Helper()
	text, err := p.scrape(notifierMetrics)
	p.must(err)
	_, rest, _ := strings.Cut(text, fmt.Sprintf("wgherald_notifier_attempts_total{class=%q,hook=%q} ", class, hook))
	count, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.Atoi(count) // no such line yet is none
	return n
}
