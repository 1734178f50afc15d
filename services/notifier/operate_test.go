package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

const (
	patience   = 30 * time.Second // a test that waits longer has failed
	hookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience, what)
}

// receiver is where both hooks of a test send, each under a path of its own.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	refused map[string]bool // names of peers whose events get a 404
	got     []received
}

type received struct{ Hook, Peer, ID, Test string }

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(hookSecret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{refused: map[string]bool{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if err := verifier.Verify(body, req.Header); err != nil {
			t.Errorf("a signature is refused: %v", err)
		}
		e, err := events.Decode(body)
		if err != nil {
			t.Errorf("no event: %v", err)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		name := e.Peer().Name
		r.got = append(r.got, received{strings.Split(req.URL.Path, "/")[1], name, req.Header.Get("webhook-id"), req.Header.Get("Webhook-Test")})
		if r.refused[name] {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) refuse(peer string, yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused[peer] = yes
}

// taken returns what arrived since it was called last.
func (r *receiver) taken() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

func (r *receiver) wait(t *testing.T, n int) []received {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests", n), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.got) >= n
	})
	return r.taken()
}

// hooks writes the file of these hooks, whose URLs and headers have a secret.
func (r *receiver) hooks(t *testing.T, path string, names ...string) {
	t.Helper()
	text := "hooks:\n"
	for _, name := range names {
		text += fmt.Sprintf("- name: %s\n  url: %s/%[1]s/%[3]s\n  secret: %[4]s\n  headers: {Authorization: Bearer %[3]s}\n", name, r.URL, hidden, hookSecret)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// daemon runs the notifier itself, as the environment says, until stop.
type daemon struct {
	t    *testing.T
	log  *buffer
	code chan int
}

func start(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t, &buffer{}, make(chan int, 1)}
	go func() { d.code <- run(nil, d.log, d.log) }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the notifier's log:\n%s", d.log)
		}
	})
	d.says("notifier is ready")
	return d
}

func (d *daemon) says(text string) {
	d.t.Helper()
	eventually(d.t, "the log says "+text, func() bool {
		if len(d.code) > 0 {
			d.t.Fatal("the notifier has ended")
		}
		return strings.Contains(d.log.String(), text)
	})
}

func (d *daemon) stop() {
	d.t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case code := <-d.code:
		if code != 0 {
			d.t.Errorf("the notifier ends with %d", code)
		}
	case <-time.After(patience):
		d.t.Fatal("the notifier does not end")
	}
}

// publisher is a probe.
type publisher struct {
	t   *testing.T
	js  jetstream.JetStream
	key ed25519.PrivateKey
	n   uint64
}

func newPublisher(t *testing.T, url, identities string) *publisher {
	t.Helper()
	file := broker.IdentityFile(identities, broker.Probe)
	opt, err := nats.NkeyOptionFromSeed(file)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(url, opt, nats.CustomInboxPrefix(broker.InboxPrefix(broker.Probe)), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, raw, err := nkeys.DecodeSeed(bytes.TrimSpace(seed))
	if err != nil {
		t.Fatal(err)
	}
	return &publisher{t: t, js: js, key: ed25519.NewKeyFromSeed(raw)}
}

// publish stores a peer's connect and returns its id.
func (p *publisher) publish(peer string, signed bool) string {
	p.t.Helper()
	p.n++
	now := time.Now()
	e := events.New(&events.Connected{
		Common:  events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: now},
		Peer:    events.Peer{PublicKey: events.Key{1, byte(p.n)}, Name: peer, Endpoint: "203.0.113.7:41641"},
		Session: events.Session{StartedAt: now, LastHandshakeAt: now},
	}, now, events.Sequence{Epoch: 1795342000123, N: p.n})
	body, err := e.Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	msg := nats.NewMsg(string(e.Type))
	msg.Data = body
	if signed {
		msg.Header.Set(events.HeaderSignature, events.Sign(body, p.key))
	}
	if _, err := p.js.PublishMsg(p.t.Context(), msg); err != nil {
		p.t.Fatal(err)
	}
	return e.ID
}

// parsed runs a command that prints lines of JSON.
func parsed(t *testing.T, args ...string) []map[string]any {
	t.Helper()
	code, stdout, stderr := call(args...)
	if code != 0 {
		t.Fatalf("%v: exit code %d, %s", args, code, stderr)
	}
	contains(t, "stdout", stdout)
	var list []map[string]any
	for line := range strings.Lines(stdout) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %q: %v", args, line, err)
		}
		list = append(list, m)
	}
	return list
}

// expect runs a command and checks what it says.
func expect(t *testing.T, code int, out string, args ...string) string {
	t.Helper()
	have, stdout, stderr := call(args...)
	if have != code {
		t.Errorf("%v: exit code %d, want %d", args, have, code)
	}
	contains(t, fmt.Sprint(args), stdout+stderr, out)
	return stdout
}

// environment prepares an embedded notifier on a port that the commands can know.
func environment(t *testing.T) (hooksFile, url, identities string) {
	t.Helper()
	clean(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	state := filepath.Join(t.TempDir(), "state")
	hooksFile = filepath.Join(t.TempDir(), "hooks.yaml")
	t.Setenv("NOTIFIER_STATE", state)
	t.Setenv("NOTIFIER_LISTEN", l.Addr().String())
	t.Setenv("NOTIFIER_HOOKS", hooksFile)
	return hooksFile, "nats://" + l.Addr().String(), filepath.Join(state, "identities")
}

func TestAnOperatorSeesAndMendsWhatHappened(t *testing.T) {
	file, url, identities := environment(t)
	r := newReceiver(t)
	r.hooks(t, file, "chat", "pager")
	d := start(t)
	defer d.stop()
	p := newPublisher(t, url, identities)

	r.refuse("mallory", true)
	alice, mallory := p.publish("alice", true), p.publish("mallory", true)
	p.publish("forged", false)
	r.wait(t, 4)
	eventually(t, "4 dead letters", func() bool { return len(parsed(t, "dead", "list", "-json")) == 4 })
	if note := expect(t, 0, "", "dead", "list", "-hook", "pagr"); note != "" {
		t.Errorf("letters of a hook that has none: %q", note)
	}
	expect(t, 0, "did you mean pager?", "dead", "list", "-hook", "pagr")

	table := expect(t, 0, "BURIED", "dead", "list", "-hook", "chat", "-reason", "rejected")
	for _, part := range []string{"chat", "wg.peer.connected", "mallory", "rejected", "404"} {
		if !strings.Contains(table, part) || strings.Count(table, "\n") != 2 {
			t.Errorf("the table does not say %q in its only row:\n%s", part, table)
		}
	}
	one := parsed(t, "dead", "list", "-json", "-hook", "chat", "-peer", "mall*", "-since", "1h")[0]
	if one["eventId"] != mallory || one["lastStatus"] != 404.0 || one["attempts"] != 1.0 || one["eventSequence"] != 2.0 {
		t.Errorf("letter %v", one)
	}
	seq := fmt.Sprint(one["sequence"])
	shown := expect(t, 0, `"endpoint": "203.0.113.7:41641"`, "dead", "show", seq)
	contains(t, "dead show", shown, mallory, "the hook answered 404 Not Found", "2 in WG_EVENTS")
	if whole := parsed(t, "dead", "show", seq, "-json")[0]; whole["event"].(map[string]any)["id"] != mallory || whole["signature"] == nil {
		t.Errorf("letter %v", whole)
	}

	// The receiver is still wrong: the event is sent once more, and buried again with its origin.
	expect(t, 0, "queued for their hooks: 1 of 1 letters", "dead", "replay", "-hook", "chat", "-type", "wg.peer.*", "-reason", "404")
	if diff := cmp.Diff([]received{{"chat", "mallory", mallory, ""}}, r.wait(t, 1)); diff != "" {
		t.Errorf("replayed (-want +have):\n%s", diff)
	}
	var again []map[string]any
	eventually(t, "the letter is back", func() bool {
		again = parsed(t, "dead", "list", "-json", "-hook", "chat", "-reason", "rejected")
		return len(again) == 1 && fmt.Sprint(again[0]["sequence"]) != seq
	})
	if again[0]["type"] != one["type"] || again[0]["eventSequence"] != 2.0 || again[0]["eventStored"] != one["eventStored"] || again[0]["attempts"] != 1.0 {
		t.Errorf("buried again: %v\nbefore: %v", again[0], one)
	}
	expect(t, 1, "no dead letter is selected", "dead", "show", seq)

	// It is mended: each hook gets its own, with the same id, and nobody anything else.
	r.refuse("mallory", false)
	expect(t, 0, "queued for their hooks: 2 of 2 letters", "dead", "replay", "-peer", "mallory")
	got := map[received]int{}
	for _, g := range r.wait(t, 2) {
		got[g]++
	}
	if diff := cmp.Diff(map[received]int{{"chat", "mallory", mallory, ""}: 1, {"pager", "mallory", mallory, ""}: 1}, got); diff != "" {
		t.Errorf("replayed (-want +have):\n%s", diff)
	}

	// A forged event stays forged.
	expect(t, 0, "queued for their hooks: 1 of 1 letters", "dead", "replay", "-hook", "pager", "-reason", "unverified")
	eventually(t, "the forged event is buried again", func() bool { return len(parsed(t, "dead", "list", "-json", "-reason", "unverified")) == 2 })

	expect(t, 1, "-yes removes these 2 letters", "dead", "discard", "-all")
	expect(t, 0, "removed: 2 of 2 letters", "dead", "discard", "-all", "-yes")
	expect(t, 0, "there is no dead letter", "dead", "list")
	expect(t, 0, "no dead letter is selected", "dead", "list", "-hook", "chat")

	// alice and mallory to two hooks, mallory once more in vain and twice well.
	var log []map[string]any
	eventually(t, "7 attempts in the log", func() bool { log = parsed(t, "log", "-json"); return len(log) == 7 })
	count := map[string]int{}
	for _, a := range log {
		count[fmt.Sprint(a["name"], " ", a["class"], " ", a["status"], " ", a["number"])]++
		if id := a["eventId"]; id != alice && id != mallory || a["latencySeconds"].(float64) <= 0 {
			t.Errorf("attempt %v", a)
		}
	}
	if diff := cmp.Diff(map[string]int{"alice ok 200 1": 2, "mallory rejected 404 1": 3, "mallory ok 200 1": 2}, count); diff != "" {
		t.Errorf("attempts (-want +have):\n%s", diff)
	}
	for _, tt := range []struct {
		args []string
		want int
	}{{[]string{"-hook", "pager"}, 3}, {[]string{"-hook", "pager", "-n", "2"}, 2}, {[]string{"-n", "1"}, 1}, {[]string{"-n", "0"}, 0}, {[]string{"-hook", "other"}, 0}} {
		if n := strings.Count(expect(t, 0, "", append([]string{"log"}, tt.args...)...), "\n"); n != tt.want {
			t.Errorf("log %v prints %d attempts, want %d", tt.args, n, tt.want)
		}
	}
	if strings.Contains(d.log.String(), "refused or lost") {
		t.Error("the broker refused something to the notifier")
	}
}

func TestSIGHUPHasTheHooksReadAgain(t *testing.T) {
	file, url, identities := environment(t)
	r := newReceiver(t)
	r.hooks(t, file, "chat")
	d := start(t)
	defer d.stop()
	r.hooks(t, file, "chat", "pager")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	d.says("added=[pager]")
	publisher := newPublisher(t, url, identities)
	eventually(t, "both hooks get events", func() bool {
		publisher.publish("alice", true)
		hooks := map[string]bool{}
		for _, got := range r.taken() {
			hooks[got.Hook] = true
		}
		return hooks["chat"] && hooks["pager"]
	})
}

func TestFollowingTheLog(t *testing.T) {
	file, url, identities := environment(t)
	r := newReceiver(t)
	r.hooks(t, file, "chat")
	d := start(t)
	p := newPublisher(t, url, identities)
	p.publish("alice", true)
	r.wait(t, 1)
	out, code := &buffer{}, make(chan int, 1)
	go func() { code <- run([]string{"log", "-f"}, out, out) }()
	eventually(t, "what was", func() bool { return strings.Contains(out.String(), "alice") })
	p.publish("bob", true)
	eventually(t, "what follows", func() bool { return strings.Contains(out.String(), "bob") })
	d.stop() // the signal ends both
	select {
	case c := <-code:
		if c != 0 {
			t.Errorf("exit code %d", c)
		}
	case <-time.After(patience):
		t.Error("log -f does not end")
	}
	contains(t, "log -f", out.String(), "chat", "ok", "200")
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines:\n%s", n, out)
	}
}

func TestPrune(t *testing.T) {
	file, url, identities := environment(t)
	r := newReceiver(t)
	r.hooks(t, file, "chat", "pager", "gone")
	d := start(t)
	expect(t, 0, "every consumer belongs to a configured hook", "prune")
	r.hooks(t, file, "chat", "pager")
	eventually(t, "both consumers are in use", func() bool { return strings.Count(expect(t, 0, "STREAM", "prune"), " yes\n") == 2 })
	table := expect(t, 0, "STREAM", "prune", "-yes")
	contains(t, "prune of what is in use", table, "WG_EVENTS", "WG_RETRY", "gone", "yes", "0 consumers deleted")
	d.stop()

	d = start(t)
	d.says("notifier prune removes it")
	p := newPublisher(t, url, identities)
	p.publish("alice", true)
	r.wait(t, 2)
	var row []string
	eventually(t, "the backlog is counted", func() bool {
		for line := range strings.Lines(expect(t, 0, "", "prune")) {
			if f := strings.Fields(line); f[0] == events.StreamEvents {
				row = f
			}
		}
		return cmp.Equal([]string{"WG_EVENTS", "gone", "1", "no"}, row)
	})
	expect(t, 0, "2 consumers deleted", "prune", "-yes")
	expect(t, 0, "every consumer belongs to a configured hook", "prune")
	t.Setenv("NOTIFIER_HOOKS", "")
	expect(t, 2, "no hook is configured", "prune", "-yes")
	d.stop()
	if strings.Contains(d.log.String(), hidden) {
		t.Error("the log shows a secret")
	}
}

func TestTry(t *testing.T) {
	file, _, _ := environment(t)
	r := newReceiver(t)
	r.hooks(t, file, "chat", "pager")
	expect(t, 0, "hook chat took the test event: status 200 after ", "try", "chat")
	for range 20 { // several within a millisecond
		expect(t, 0, "hook chat took", "try", "chat")
	}
	got := r.taken()
	ids := map[string]bool{}
	for _, g := range got {
		ids[g.ID] = true
	}
	if len(got) != 21 || len(ids) != 21 || got[0].Hook != "chat" || got[0].Peer != "wgherald test" || got[0].Test != "true" {
		t.Errorf("requests %v", got)
	}
	r.refuse("wgherald test", true)
	expect(t, 1, "hook pager did not take the test event: the hook answered 404 Not Found, after ", "try", "pager")
	expect(t, 2, "want the name of one hook", "try")
	expect(t, 2, "want the name of one hook", "try", "chat", "pager")
	expect(t, 2, "did you mean pager?", "try", "pagr")
	expect(t, 2, "there are chat, pager", "try", "xyz")
	r.Close()
	expect(t, 1, "the connection was refused", "try", "chat")
	if err := os.WriteFile(file, []byte("hooks:\n- name: chat\n  url: ftp://"+hidden+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, 2, "hooks.yaml:3: hook chat: url", "try", "chat")
}

func TestCommandsSayWhatToDo(t *testing.T) {
	file, _, identities := environment(t)
	newReceiver(t).hooks(t, file, "chat")
	for _, command := range [][]string{{"dead", "list"}, {"log"}} {
		expect(t, 1, identities+"/operator.nk", command...)
		expect(t, 1, "notifier keys", command...)
	}
	if err := os.MkdirAll(filepath.Dir(identities), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := broker.EnsureIdentities(identities, broker.Operator, broker.Notifier); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"dead", "list"}, {"log"}, {"prune"}} {
		expect(t, 1, "is the notifier running?", command...)
	}
	t.Setenv("NATS_URL", "nats://u:"+hidden+"@127.0.0.1:1")
	expect(t, 1, "is the broker of NATS_URL up", "dead", "list")
	t.Setenv("NATS_URL", "")

	// A broker that knows other keys.
	os.RemoveAll(identities)
	d := start(t)
	defer d.stop()
	strange := filepath.Join(t.TempDir(), "keys")
	if _, err := broker.EnsureIdentities(strange, broker.Operator); err != nil {
		t.Fatal(err)
	}
	expect(t, 1, "must be the operator's", "dead", "list", "-key", broker.IdentityFile(strange, broker.Operator))

	for _, tt := range []struct {
		say  string
		args []string
	}{
		{"is none of list, show, replay, discard", []string{"dead", "lst"}},
		{"notifier dead list [flags]", []string{"dead"}},
		{"is no letter's number", []string{"dead", "list", "first"}},
		{"is no letter's number", []string{"dead", "list", "0"}},
		{"matches no event type", []string{"dead", "list", "-type", "wg.peer.conected"}},
		{"want 2h, 3d", []string{"dead", "list", "-since", "yesterday"}},
		{"want one letter's number", []string{"dead", "show"}},
		{"want one letter's number", []string{"dead", "show", "1", "2"}},
		{"nothing is selected", []string{"dead", "replay"}},
		{"nothing is selected", []string{"dead", "discard", "-yes"}},
		{"exclude each other", []string{"dead", "replay", "-all", "-hook", "chat"}},
		{"flag provided but not defined: -yes", []string{"dead", "replay", "-yes"}},
		{"want 0 or more", []string{"log", "-n", "-1"}},
		{`unexpected argument "chat"`, []string{"log", "chat"}},
		{`unexpected argument "chat"`, []string{"prune", "chat"}},
	} {
		expect(t, 2, tt.say, tt.args...)
	}
	for _, help := range [][]string{{"dead", "-h"}, {"dead", "list", "-h"}, {"dead", "replay", "-h"}, {"log", "-h"}, {"prune", "-h"}, {"try", "-h"}} {
		expect(t, 0, "sage", help...)
	}
}

func TestMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2h":                        now.Add(-2 * time.Hour),
		"90s":                       now.Add(-90 * time.Second),
		"3d":                        now.AddDate(0, 0, -3),
		"2026-11-22":                time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC),
		"2026-11-22T10:00:00Z":      time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
		"2026-11-22T10:00:00+01:00": time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC),
		"":                          {}, "-2h": {}, "-3d": {}, "d": {}, "tomorrow": {}, "22.11.2026": {},
	} {
		var have time.Time
		if err := moment(&have, now)(text); (err != nil) != want.IsZero() || !have.Equal(want) {
			t.Errorf("%q is %v, %v, want %v", text, have, err, want)
		}
	}
}
