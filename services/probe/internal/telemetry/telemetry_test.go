package telemetry_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// scrape serves the metrics on a socket, asks for path, and ends.
func scrape(t *testing.T, m *telemetry.Metrics, path string) (status int, body string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "metrics")
	l, err := telemetry.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, l) }()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Get("http://probe" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket stays after the end")
	}
	return resp.StatusCode, string(text)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := telemetry.New()
	m.Gauge("events_waiting", "Help.", func() float64 { return 42 })
	m.Counter("capture_dropped_total", "Help.", func() float64 { return 7 })
	m.Message(wgmsg.Initiation)
	m.Foreign()
	m.Initiation(telemetry.Unknown)
	m.Overflow()
	m.Looked(time.Millisecond)
	m.LookFailed()
	m.Peers(2, 5)
	m.Stored(events.PeerConnected)
	m.Committed(time.Millisecond)
	m.Published(time.Millisecond, false)
	m.Published(time.Millisecond, true)
	m.StatePublished()
	m.Failed()
	status, text := scrape(t, m, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, text)
	}
	for _, line := range []string{
		`wgherald_probe_events_waiting 42`,
		`wgherald_probe_capture_dropped_total 7`,
		`wgherald_probe_messages_total{kind="initiation"} 1`,
		`wgherald_probe_foreign_messages_total 1`,
		`wgherald_probe_message_overflow_total 1`,
		`wgherald_probe_look_seconds_count 1`,
		`wgherald_probe_look_errors_total 1`,
		`wgherald_probe_peers_connected 2`,
		`wgherald_probe_peers_configured 5`,
		`wgherald_probe_events_total{type="wg.peer.connected"} 1`,
		`wgherald_probe_events_total{type="wg.peer.disconnected"} 0`,
		`wgherald_probe_initiations_total{outcome="unknown"} 1`,
		`wgherald_probe_initiations_total{outcome="replayed"} 0`,
		`wgherald_probe_commit_seconds_count 1`,
		`wgherald_probe_publish_seconds_count 2`,
		`wgherald_probe_publish_duplicates_total 1`,
		`wgherald_probe_states_published_total 1`,
		`wgherald_probe_publish_failures_total 1`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("not among the metrics: %s", line)
		}
	}
	// Labels come from closed sets.
	for _, label := range regexp.MustCompile(`(?m)^wgherald\w+\{(\w+)=`).FindAllStringSubmatch(text, -1) {
		if l := label[1]; l != "kind" && l != "outcome" && l != "type" && l != "le" {
			t.Errorf("there is a label %s", l)
		}
	}
	if status, _ := scrape(t, telemetry.New(), "/"); status != http.StatusNotFound {
		t.Errorf("status of / is %d", status)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := telemetry.Listen("unix", path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("where a file is: %v, %v", l, err)
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file is gone: %q, %v", text, err)
	}
	// A socket that a killed run left is replaced.
	left := filepath.Join(t.TempDir(), "left")
	for range 2 {
		l, err := net.Listen("unix", left)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l, err = telemetry.Listen("unix", left); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := telemetry.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := telemetry.Listen("tcp", l.Addr().String()); err == nil || !strings.Contains(err.Error(), "PROBE_METRICS") {
		t.Errorf("an address in use: %v", err)
	}
}
