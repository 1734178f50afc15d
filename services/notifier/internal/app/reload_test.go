package app

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
)

const otherSecret = "whsec_b3RoZXIgc2VjcmV0IG9mIGEgdGVzdCwgMzIgYnl0ZXM="

// live is a notifier whose hooks come from a file, and what its tests look with.
type live struct {
	*notifier
	path       string // of the hooks file
	probe      *probe
	asNotifier jetstream.JetStream
	operator   jetstream.JetStream
	metrics    string // its socket
}

// serving starts a notifier with a hooks file, and waits until it is ready.
func serving(t testing.TB, text string, files map[string]string) *live {
	t.Helper()
	dir := t.TempDir()
	l := &live{path: filepath.Join(dir, "hooks.yaml")}
	write(t, l.path, text)
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	return l.start(t, config.Source{File: l.path})
}

func (l *live) start(t testing.TB, source config.Source) *live {
	t.Helper()
	set, err := source.Read()
	if err != nil {
		t.Fatal(err)
	}
	cfg := configure(t, set.Hooks...)
	cfg.Source, cfg.Files = source, set.Files
	sockets, err := os.MkdirTemp("", "m") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	l.metrics = filepath.Join(sockets, "s")
	cfg.Metrics = "unix:" + l.metrics
	l.notifier = run(t, cfg).ready()
	url, identities := l.embedded()
	l.probe = newProbe(t, url, broker.IdentityFile(identities, broker.Probe))
	l.asNotifier, l.operator = login(t, url, identities, broker.Notifier), login(t, url, identities, broker.Operator)
	return l
}

// hup has the hooks read again at once, as a signal does.
func (l *live) hup() {
	l.t.Helper()
	select {
	case l.reload <- struct{}{}:
	case <-time.After(patience):
		l.t.Fatal("hooks are not read again")
	}
}

// become writes the hooks file anew and waits until it was taken.
func (l *live) become(text string) {
	l.t.Helper()
	before := len(l.log.records(l.t, "hooks were read again"))
	write(l.t, l.path, text)
	l.hup()
	l.says("hooks were read again", before+1)
}

// scrape returns the metrics.
func (l *live) scrape() string {
	l.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.metrics)
		},
	}}
	resp, err := client.Get("http://metrics/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(text)
}

// metric returns the value of a sample, "" when there is none.
func (l *live) metric(sample string) string {
	l.t.Helper()
	_, rest, _ := strings.Cut(l.scrape(), "\nwgherald_notifier_"+sample+" ")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

func (l *live) metricBecomes(sample, value string) {
	l.t.Helper()
	eventually(l.t, sample+" is "+value, func() bool { return l.metric(sample) == value })
}

// consumer returns who owns a hook's consumer and when it was made.
func (l *live) consumer(hook string) (pin string, made time.Time) {
	l.t.Helper()
	c, err := l.asNotifier.Consumer(l.t.Context(), events.StreamEvents, consume.Durable(hook))
	if err != nil {
		l.t.Fatal(err)
	}
	return c.CachedInfo().PriorityGroups[0].PinnedClientID, c.CachedInfo().Created
}

// hookOf is a signed hook to a path of a sink, as a line of a file.
func hookOf(s *sink, name, path, more string) string {
	return fmt.Sprintf("- {name: %s, url: %q, secret: %s%s}\n", name, s.URL+"/"+urlSecret+path, secret, more)
}

func TestHooksAreSwappedUnderLoad(t *testing.T) {
	t.Parallel()
	steady, changing := newSink(t), newSink(t)
	var connections sync.Map
	steady.answers(func(_ http.ResponseWriter, r *http.Request) { connections.Store(r.RemoteAddr, true) })
	file := func(more string) string {
		return "hooks:\n" + hookOf(steady, "steady", "", ", concurrency: 1") + hookOf(changing, "changing", "", more)
	}
	l := serving(t, file(""), nil)
	ids := map[string][]string{}
	var all []string
	tell := func(n int) {
		for range n {
			for _, peer := range []string{"alice", "bob", "carol"} {
				id := l.probe.tell(peer)
				ids[peer], all = append(ids[peer], id), append(all, id)
			}
		}
	}
	tell(1)
	steady.got(t, len(all))
	changing.got(t, len(all))
	pin, made := l.consumer("steady")
	for i := range 8 {
		before := len(l.log.records(t, "hooks were read again"))
		tell(10)
		write(t, l.path, file(fmt.Sprintf(", concurrency: %d", i%4+1)))
		l.hup()
		tell(10)
		l.says("hooks were read again", before+1)
	}
	tell(1)
	if have := steady.got(t, len(all)); len(have) != len(all) {
		t.Errorf("the hook that is never changed got %d requests for %d events", len(have), len(all))
	}
	n := 0
	connections.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("the hook that is never changed was reached by %d connections", n)
	}
	if p, m := l.consumer("steady"); p != pin || !m.Equal(made) {
		t.Errorf("the consumer of the hook that is never changed is of %s, owned by %s: was of %s, by %s", m, p, made, pin)
	}

	eventually(t, "the changed hook got everything", func() bool {
		have := changing.ids()
		return !slices.ContainsFunc(all, func(id string) bool { return !slices.Contains(have, id) })
	})
	for name, have := range map[string][]string{"steady": steady.ids(), "changing": changing.ids()} {
		for peer, want := range ids {
			order := slices.DeleteFunc(slices.Clone(have), func(id string) bool { return !slices.Contains(want, id) })
			// An event may come twice, but not after a later one of its peer.
			equal(t, "order of "+peer+" at the hook "+name, want, slices.Compact(order))
		}
		t.Logf("hook %s: %d requests for %d events", name, len(have), len(all))
	}
}

// Each row changes one thing. before is delivered as it was, after as it is then.
func TestWhatChangesTakesEffect(t *testing.T) {
	t.Parallel()
	signedBy := func(key string) func(request) error {
		verifier, err := standardwebhooks.NewWebhook(key)
		if err != nil {
			t.Fatal(err)
		}
		return func(r request) error { return verifier.Verify([]byte(r.Body), r.Header) }
	}
	header := func(name, value string) func(request) error {
		return func(r request) error {
			if have := r.Header.Get(name); have != value {
				return fmt.Errorf("%s is %q", name, have)
			}
			return nil
		}
	}
	body := func(want string) func(request) error {
		return func(r request) error {
			if r.Body != want {
				return fmt.Errorf("the body is %s", r.Body)
			}
			return nil
		}
	}
	const hook = "hooks:\n- name: ops\n  url: URL\n"
	for _, tt := range []struct {
		name          string
		before, after map[string]string // files
		was, is       func(request) error
	}{
		{
			"a secret in the hooks file",
			map[string]string{"hooks.yaml": hook + "  secret: " + secret},
			map[string]string{"hooks.yaml": hook + "  secret: " + otherSecret},
			signedBy(secret), signedBy(otherSecret),
		},
		{
			"a secret in a file of its own",
			map[string]string{"hooks.yaml": hook + "  secret_file: s", "s": secret}, map[string]string{"s": otherSecret},
			signedBy(secret), signedBy(otherSecret),
		},
		{
			"a password",
			map[string]string{"hooks.yaml": hook + "  bearer_file: b", "b": "one"}, map[string]string{"b": "two"},
			header("Authorization", "Bearer one"), header("Authorization", "Bearer two"),
		},
		{
			"a template",
			map[string]string{"hooks.yaml": hook + "  template_file: t", "t": `{"is": 1}`}, map[string]string{"t": `{"is": 2}`},
			body(`{"is": 1}`), body(`{"is": 2}`),
		},
		{
			"the format", map[string]string{"hooks.yaml": hook}, map[string]string{"hooks.yaml": hook + "  format: ntfy"},
			header("Content-Type", events.ContentType), header("Content-Type", "text/plain; charset=utf-8"),
		},
		{
			"a URL in a file of its own",
			map[string]string{"hooks.yaml": "hooks:\n- {name: ops, url_file: u}", "u": "URL/one"}, map[string]string{"u": "URL/two"},
			header("Path", "/one"), header("Path", "/two"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sink := newSink(t)
			sink.answers(func(_ http.ResponseWriter, r *http.Request) { r.Header.Set("Path", r.URL.Path) })
			for _, files := range []map[string]string{tt.before, tt.after} {
				for name, text := range files {
					files[name] = strings.Replace(text, "URL", sink.URL, 1)
				}
			}
			l := serving(t, tt.before["hooks.yaml"], tt.before)
			l.probe.tell("alice")
			sink.got(t, 1)
			for name, text := range tt.after {
				write(t, filepath.Join(filepath.Dir(l.path), name), text)
			}
			l.hup()
			equal(t, "changed", []any{"ops"}, l.says("hooks were read again", 1)[0]["changed"])
			l.probe.tell("alice")
			sink.got(t, 2)
			l.wait()
			for i, check := range []func(request) error{tt.was, tt.is} {
				if err := check(sink.requests()[i]); err != nil {
					t.Errorf("request %d: %v", i+1, err)
				}
			}
		})
	}
}

// What failed at the old URL, and what waits behind it, goes to the new one, in order and at once.
func TestAChangedURLCountsForWhatWaits(t *testing.T) {
	t.Parallel()
	broken, sink := newSink(t), newSink(t)
	broken.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	l := serving(t, "hooks:\n"+hookOf(broken, "ops", "", ", retry: {first: 1h}"), nil)
	ids := map[string][]string{}
	for _, peer := range []string{"alice", "bob", "alice", "alice", "bob"} {
		ids[peer] = append(ids[peer], l.probe.tell(peer))
	}
	l.metricBecomes(`events_held{hook="ops"}`, "5")
	broken.got(t, 2)
	l.become("hooks:\n" + hookOf(sink, "ops", "", ", retry: {first: 1h}"))
	have := sink.got(t, 5)
	for peer, want := range ids {
		equal(t, "order of "+peer, want, slices.DeleteFunc(slices.Clone(have), func(id string) bool { return !slices.Contains(want, id) }))
	}
}

func TestAChangedFilterCountsForWhatComes(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	l := serving(t, "hooks:\n"+hookOf(sink, "ops", "", ", peers: alice"), nil)
	l.probe.tell("bob")
	want := []string{l.probe.tell("alice")}
	sink.got(t, 1)
	l.become("hooks:\n" + hookOf(sink, "ops", "", ", peers: bob"))
	l.probe.tell("alice")
	want = append(want, l.probe.tell("bob"))
	equal(t, "delivered", want, sink.got(t, 2))
}

func TestAChangedRateCountsForWhatWaits(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	l := serving(t, "hooks:\n"+hookOf(sink, "ops", "", ", rate: 1/h"), nil)
	var want []string
	for range 5 {
		want = append(want, l.probe.tell("alice"))
	}
	sink.got(t, 1)
	l.metricBecomes(`events_held{hook="ops"}`, "4")
	l.become("hooks:\n" + hookOf(sink, "ops", "", ""))
	equal(t, "delivered", want, sink.got(t, 5))
}

// What is in flight gets its time; then it is cut off and sent again.
func TestAChangedConcurrencyCounts(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	var now atomic.Int64
	three := make(chan struct{})
	sink.answers(func(_ http.ResponseWriter, r *http.Request) {
		defer now.Add(-1)
		if now.Add(1) == 3 {
			close(three)
		}
		select {
		case <-three:
		case <-r.Context().Done():
		}
	})
	l := serving(t, "hooks:\n"+hookOf(sink, "ops", "", ", concurrency: 1"), nil)
	for _, peer := range []string{"alice", "bob", "carol"} {
		l.probe.tell(peer)
	}
	sink.got(t, 1)
	l.metricBecomes(`events_held{hook="ops"}`, "3")
	l.become("hooks:\n" + hookOf(sink, "ops", "", ", concurrency: 3"))
	select {
	case <-three:
	case <-time.After(patience):
		t.Error("never three at a time")
	}
}

// Nobody sends a signal here.
func TestAChangeOfAFileIsFound(t *testing.T) {
	t.Parallel()
	rename := func(t *testing.T, path, text string) {
		write(t, path+".tmp", text)
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(t *testing.T, path, text string){
		"written in place": func(t *testing.T, path, text string) { write(t, path, text) },
		"written in pieces": func(t *testing.T, path, text string) {
			write(t, path, "")
			half := text[:len(text)/2]
			for end := time.Now().Add(2 * hooksInterval); time.Now().Before(end); time.Sleep(hooksInterval / 8) {
				half += "#"
				write(t, path, half)
			}
			write(t, path, text)
		},
		"renamed over, as editors do": rename,
		"away for a while": func(t *testing.T, path, text string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			time.Sleep(hooksInterval / 2)
			write(t, path, text)
		},
		"a link that leads elsewhere, as of a ConfigMap": func(t *testing.T, path, text string) {
			dir := filepath.Join(filepath.Dir(path), "..data")
			fresh := dir + ".new"
			if err := os.Mkdir(fresh, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(fresh, filepath.Base(path)), text)
			if err := os.Symlink(fresh, dir+".link"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(dir+".link", dir); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sink := newSink(t)
			file := func(path string) string { return "hooks:\n" + hookOf(sink, "ops", path, "") }
			dir := t.TempDir()
			l := &live{path: filepath.Join(dir, "hooks.yaml")}
			if strings.Contains(name, "link") { // hooks.yaml → ..data/hooks.yaml, ..data → ..1
				if err := os.Mkdir(filepath.Join(dir, "..1"), 0o700); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(dir, "..1", "hooks.yaml"), file("one"))
				for link, to := range map[string]string{"..data": "..1", "hooks.yaml": "..data/hooks.yaml"} {
					if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				write(t, l.path, file("one"))
			}
			l.start(t, config.Source{File: l.path})
			l.probe.tell("alice")
			sink.got(t, 1)
			change(t, l.path, file("two"))
			l.says("hooks were read again", 1)
			sink.answers(func(_ http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, "two") {
					t.Errorf("request to %s", r.URL.Path)
				}
			})
			l.probe.tell("alice")
			sink.got(t, 2)
		})
	}
}

func TestHooksThatAreWrongAreNotTaken(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	right := "hooks:\n" + hookOf(sink, "ops", "", "")
	l := serving(t, right, nil)
	l.metricBecomes("config_last_reload_successful", "1")
	since := l.metric("config_last_reload_success_timestamp_seconds")
	want := []string{l.probe.tell("alice")}
	sink.got(t, 1)
	pin, _ := l.consumer("ops")

	const wrongly = "hooks were read again and are wrong, they stay as they were before"
	write(t, l.path, right+"- {name: B, url: \"ftp://"+urlSecret+"\"}\n")
	said := l.says(wrongly, 1)[0]["error"].(string)
	_, _, err := config.Check(l.path)
	equal(t, "what is wrong, as check says", err.Error(), said)
	l.metricBecomes("config_last_reload_successful", "0")
	equal(t, "time of the last success", since, l.metric("config_last_reload_success_timestamp_seconds"))
	want = append(want, l.probe.tell("alice"))
	equal(t, "delivered meanwhile", want, sink.got(t, 2))
	l.hup()
	l.says(wrongly, 2)

	write(t, l.path, "# a remark\n"+right)
	l.says("hooks were read again", 1)
	l.metricBecomes("config_last_reload_successful", "1")
	if now := l.metric("config_last_reload_success_timestamp_seconds"); now == since {
		t.Errorf("the time of the last success is still %s", now)
	}
	equal(t, "delivered then", append(want, l.probe.tell("alice")), sink.got(t, 3))
	if p, _ := l.consumer("ops"); p != pin {
		t.Error("the hook was begun anew")
	}
	if n := len(l.log.records(t, wrongly)); n != 2 {
		t.Errorf("it was said %d times that the hooks are wrong", n)
	}
}

func TestAHookIsAddedRemovedAndAddedAgain(t *testing.T) {
	t.Parallel()
	sink, other := newSink(t), newSink(t)
	ops, late := "hooks:\n"+hookOf(sink, "ops", "", ""), hookOf(other, "late", "", "")
	l := serving(t, ops, nil)
	l.probe.tell("too early")
	sink.got(t, 1)
	l.become(ops + late)
	eventually(t, "the new hook has its consumer", func() bool {
		_, err := l.asNotifier.Consumer(t.Context(), events.StreamEvents, consume.Durable("late"))
		return err == nil
	})
	want := []string{l.probe.tell("alice")}
	equal(t, "delivered to the new hook", want, other.got(t, 1))

	l.become(ops)
	equal(t, "the consumers of the removed hook", []any{events.StreamEvents, broker.StreamRetry}, []any{
		l.says("hook is not configured and still has a consumer (notifier prune removes it)", 2)[0]["stream"],
		l.says("hook is not configured and still has a consumer (notifier prune removes it)", 2)[1]["stream"],
	})
	equal(t, "its load", "", l.metric(`events_held{hook="late"}`))
	want = append(want, l.probe.tell("bob"), l.probe.tell("bob"))
	sink.got(t, 4)
	equal(t, "delivered to the removed hook", want[:1], other.ids())

	l.become(ops + late)
	equal(t, "delivered when it is back", want, other.got(t, 3))
}

func gone(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }

func TestAHookThatIsGoneIsDisabled(t *testing.T) {
	t.Parallel()
	for name, enable := range map[string]func(l *live, file string){
		"until SIGHUP": func(l *live, _ string) { l.hup() },
		"until a change": func(l *live, file string) {
			write(l.t, l.path, strings.Replace(file, "name: ops", "timeout: 3s, name: ops", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sink, other := newSink(t), newSink(t)
			sink.answers(gone)
			file := "hooks:\n" + hookOf(sink, "ops", "", "") + hookOf(other, "other", "", "")
			l := serving(t, file, nil)
			l.metricBecomes(`hook_disabled{hook="ops"}`, "0")
			dead := l.probe.tell("alice")
			line := l.says("hook is disabled: it answered 410 Gone; its events wait in the stream until its configuration is changed, or the notifier gets SIGHUP or is restarted", 1)[0]
			equal(t, "which", "ops", line["hook"])
			equal(t, "how loud", "ERROR", line["level"])
			l.metricBecomes(`hook_disabled{hook="ops"}`, "1")
			equal(t, "the other hook's", "0", l.metric(`hook_disabled{hook="other"}`))
			equal(t, "class of the dead letter", "gone", letters(t, l.operator, 1)[0].Class)

			all := []string{dead, l.probe.tell("alice"), l.probe.tell("bob"), l.probe.tell("alice")}
			slices.Sort(all)
			equal(t, "delivered to the other hook", all, slices.Sorted(slices.Values(other.got(t, 4))))
			file += "# a remark, and nothing of the hook\n"
			l.t = t
			write(t, l.path, file)
			l.says("hooks were read again", 1)
			stream, err := l.operator.Stream(t.Context(), deadletter.Stream)
			if err != nil {
				t.Fatal(err)
			}
			for letter, err := range deadletter.Letters(t.Context(), stream, deadletter.Selection{}) {
				if err == nil {
					err = deadletter.Replay(t.Context(), l.operator, stream, letter)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			equal(t, "the hook is not asked any more", []string{dead}, sink.ids())

			sink.answers(nil)
			enable(l, file)
			l.says("hook is enabled again", 1)
			equal(t, "delivered then, the replay among it", all, slices.Sorted(slices.Values(sink.got(t, 5)[1:])))
			l.metricBecomes(`hook_disabled{hook="ops"}`, "0")
		})
	}
}

func TestASignalWithoutFilesEnablesAndReadsNothing(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	sink.answers(gone)
	l := (&live{}).start(t, config.Source{URL: config.NewSecret(sink.URL + "/" + urlSecret), Secret: config.NewSecret(secret)})
	l.probe.tell("alice")
	l.metricBecomes(`hook_disabled{hook="default"}`, "1")
	id := l.probe.tell("alice")
	sink.answers(nil)
	l.hup()
	l.says("hooks come from no file, so there is nothing to read again", 1)
	equal(t, "delivered then", id, sink.got(t, 2)[1])
}
