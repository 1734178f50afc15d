package telemetry

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

// serve serves on addr until the test ends, or until stop is called, and returns a client whose every request goes there.
func serve(t *testing.T, m *Metrics, addr string) (client *http.Client, stop func()) {
	t.Helper()
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve after the end of its context: %v", err)
		}
	}
	t.Cleanup(stop)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, l.Addr().Network(), l.Addr().String())
		},
	}}, stop
}

// get returns the status and body of a path.
func get(t *testing.T, c *http.Client, path string) (int, string) {
	t.Helper()
	resp, err := c.Get("http://notifier" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// everything does each thing that is counted, once for each class.
func everything(m *Metrics) {
	for _, c := range []deliver.Class{
		deliver.OK, deliver.Redirected, deliver.Gone, deliver.Rejected, deliver.Throttled, deliver.Unavailable, deliver.Timeout,
		deliver.DNS, deliver.TLS, deliver.Refused, deliver.Network, deliver.Blocked,
	} {
		m.Attempted(consume.Attempt{
			Hook: "chat", Number: 1, SinceStored: 2 * time.Second,
			Result: deliver.Result{Class: c, Reason: "a reason", Status: 200, Answer: "an answer", Latency: time.Millisecond},
		})
	}
	for _, c := range []deadletter.Class{
		deadletter.Undecodable, deadletter.SubjectMismatch, deadletter.Unverified, deadletter.Unrenderable, deadletter.OfAttempt(deliver.Rejected),
	} {
		m.Buried("chat", c)
	}
	m.Serving("gone")
	m.Loaded("gone", consume.Load{Pending: 7, Held: 5, InFlight: 3, Circuit: consume.Open})
	m.Ended("gone")
	m.Disabled("gone")
	m.Serving("chat")
	m.Reloaded(true)
	m.Loaded("chat", consume.Load{Pending: 7, Held: 5, InFlight: 3, Circuit: consume.Open})
	m.Withheld("chat", 2)
	m.Lost("chat", 9)
	m.Gauge("broker_connected", "1 while the broker is connected.", func() float64 { return 1 })
}

// buckets are left out of the comparison, and so is what the Go and process collectors say.
var ours = regexp.MustCompile(`(?m)^wgherald_.*$`)

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := New()
	everything(m)
	client, _ := serve(t, m, "127.0.0.1:0")
	status, text := get(t, client, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	lines := slices.DeleteFunc(ours.FindAllString(text, -1), func(line string) bool { return strings.Contains(line, "_bucket{") })
	want := []string{
		`wgherald_notifier_attempt_seconds_sum{hook="chat"} 0.012`,
		`wgherald_notifier_attempt_seconds_count{hook="chat"} 12`,
		`wgherald_notifier_attempts_in_flight{hook="chat"} 3`,
		`wgherald_notifier_attempts_total{class="blocked",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="dns",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="gone",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="network",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="ok",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="redirected",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="refused",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="rejected",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="throttled",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="timeout",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="tls",hook="chat"} 1`,
		`wgherald_notifier_attempts_total{class="unavailable",hook="chat"} 1`,
		`wgherald_notifier_broker_connected 1`,
		`wgherald_notifier_circuit{hook="chat",state="closed"} 0`,
		`wgherald_notifier_circuit{hook="chat",state="open"} 1`,
		`wgherald_notifier_circuit{hook="chat",state="testing"} 0`,
		`wgherald_notifier_config_last_reload_success_timestamp_seconds now`,
		`wgherald_notifier_config_last_reload_successful 1`,
		`wgherald_notifier_dead_letters_total{class="rejected",hook="chat"} 1`,
		`wgherald_notifier_dead_letters_total{class="subject_mismatch",hook="chat"} 1`,
		`wgherald_notifier_dead_letters_total{class="undecodable",hook="chat"} 1`,
		`wgherald_notifier_dead_letters_total{class="unrenderable",hook="chat"} 1`,
		`wgherald_notifier_dead_letters_total{class="unverified",hook="chat"} 1`,
		`wgherald_notifier_delivered_age_seconds_sum{hook="chat"} 2`,
		`wgherald_notifier_delivered_age_seconds_count{hook="chat"} 1`,
		`wgherald_notifier_events_held{hook="chat"} 5`,
		`wgherald_notifier_events_lost_total{hook="chat"} 9`,
		`wgherald_notifier_events_lost_total{hook="gone"} 0`,
		`wgherald_notifier_events_pending{hook="chat"} 7`,
		`wgherald_notifier_events_withheld_total{hook="chat"} 2`,
		`wgherald_notifier_events_withheld_total{hook="gone"} 0`,
		`wgherald_notifier_hook_disabled{hook="chat"} 0`,
		`wgherald_notifier_hook_disabled{hook="gone"} 1`,
	}
	// The sum of floats is compared as it is printed, up to its last digits.
	for i, line := range lines {
		if at, ok := strings.CutPrefix(line, "wgherald_notifier_config_last_reload_success_timestamp_seconds "); ok {
			seconds, err := strconv.ParseFloat(at, 64)
			if age := float64(time.Now().Unix()) - seconds; err != nil || age < -60 || age > 600 {
				t.Errorf("the time of the last success is %s", at)
			}
			lines[i] = strings.TrimSuffix(line, at) + "now"
		}
		if strings.HasPrefix(line, `wgherald_notifier_attempt_seconds_sum{hook="chat"} 0.01`) {
			lines[i] = want[0]
		}
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("metrics (-want +have):\n%s", diff)
	}
	for _, part := range []string{"go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(text, "\n"+part) {
			t.Errorf("%s is missing", part)
		}
	}
}

// What comes from outside (ids, answers, reasons) is never a label.
func TestLabels(t *testing.T) {
	t.Parallel()
	m := New()
	everything(m)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "wgherald_") {
			continue
		}
		for _, metric := range f.GetMetric() {
			for _, label := range metric.GetLabel() {
				have[label.GetName()] = true
			}
		}
	}
	if diff := cmp.Diff(map[string]bool{"hook": true, "class": true, "state": true}, have); diff != "" {
		t.Errorf("names of labels (-want +have):\n%s", diff)
	}
}

func TestServeAnswersOnlyGetMetrics(t *testing.T) {
	t.Parallel()
	client, _ := serve(t, New(), "127.0.0.1:0")
	if status, _ := get(t, client, "/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("another path: status %d", status)
	}
	resp, err := client.Post("http://notifier/metrics", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d", resp.StatusCode)
	}
}

// socketDir is a directory whose path is short enough for a socket in it.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wgherald")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "metrics.sock")
	client, stop := serve(t, New(), "unix:"+path)
	if status, _ := get(t, client, "/metrics"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left behind")
	}
}

func TestASocketThatACrashLeftIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(socketDir(t), "metrics.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	client, _ := serve(t, New(), "unix:"+path)
	if status, _ := get(t, client, "/metrics"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	served := filepath.Join(dir, "served.sock")
	client, _ := serve(t, New(), "unix:"+served)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	for name, tt := range map[string]struct{ addr, want string }{
		"a file that is no socket":        {"unix:" + file, file},
		"a socket that somebody serves":   {"unix:" + served, served},
		"a directory that does not exist": {"unix:" + dir + "/none/metrics.sock", dir + "/none/metrics.sock"},
		"a port in use":                   {taken.Addr().String(), taken.Addr().String()},
	} {
		l, err := Listen(tt.addr)
		if err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		for _, part := range []string{tt.want, "NOTIFIER_METRICS"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %q does not say %q", name, err, part)
			}
		}
	}
	if text, err := os.ReadFile(file); string(text) != "kept" {
		t.Errorf("the file that was in the way: %q, %v", text, err)
	}
	if status, _ := get(t, client, "/metrics"); status != http.StatusOK {
		t.Errorf("the socket that was served: status %d", status)
	}
}

func TestServeReportsAListenerThatFails(t *testing.T) {
	t.Parallel()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := New().Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "serve metrics") {
		t.Errorf("error %v", err)
	}
}
