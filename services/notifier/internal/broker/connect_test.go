package broker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
)

// logBuffer is a log that a test reads while others write it.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), s)
}

func newLog() (*slog.Logger, *logBuffer) {
	b := &logBuffer{}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

func TestConnectWaitsForABrokerThatComesLater(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	start := func(listen string) *Embedded {
		e, err := StartEmbedded(t.Context(), EmbeddedOptions{StateDir: dir, Listen: listen, Log: discard})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := start("127.0.0.1:0")
	url, key := e.URL(), e.IdentityFile(Notifier)
	e.Shutdown()

	log, lines := newLog()
	nc, err := Connect(t.Context(), ConnectOptions{URL: url, Name: "test", Role: Notifier, NkeyFile: key}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if nc.IsConnected() {
		t.Fatal("connected to nothing")
	}
	if err := nc.Publish("wg.dead.a", nil); err == nil {
		t.Error("a publish was taken while there is no broker")
	}
	waitFor(t, func() bool { return lines.count("broker not reached") == 1 })

	e = start(strings.TrimPrefix(url, "nats://"))
	defer e.Shutdown()
	waitFor(t, nc.IsConnected)
	waitFor(t, func() bool { return lines.count("broker connected") == 1 })

	if err := nc.Publish("wg.peer.connected", nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return lines.count("Permissions Violation for Publish to") == 1 })
}

func TestConnectKeepsTryingWithAKeyTheBrokerDoesNotKnow(t *testing.T) {
	t.Parallel()
	serverLog, refusals := newLog()
	e, err := StartEmbedded(t.Context(), EmbeddedOptions{StateDir: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Log: serverLog})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Shutdown()
	stranger := filepath.Join(t.TempDir(), "identities")
	if _, err := EnsureIdentities(stranger, Notifier); err != nil {
		t.Fatal(err)
	}
	log, lines := newLog()
	nc, err := Connect(t.Context(), ConnectOptions{URL: e.URL(), Role: Notifier, NkeyFile: IdentityFile(stranger, Notifier)}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	waitFor(t, func() bool { return refusals.count("authentication error") >= 4 })
	if nc.IsClosed() {
		t.Error("it gave up")
	}
	if got := lines.count("Authorization Violation"); got != 1 {
		t.Errorf("the same refusal is in the log %d times", got)
	}
}

// With two addresses, the reasons alternate.
func TestEachReasonIsLoggedOnce(t *testing.T) {
	t.Parallel()
	log, lines := newLog()
	r := once(log)
	for range 5 {
		r.report(nats.ErrNoServers)
		r.report(errors.New("first: connection refused"))
		r.report(errors.New("second: connection refused"))
	}
	if got := lines.count("broker not reached"); got != 2 {
		t.Errorf("two reasons are in the log %d times", got)
	}
	r.reset() // connected meanwhile
	r.report(errors.New("first: connection refused"))
	if got := lines.count("broker not reached"); got != 3 {
		t.Errorf("after a reconnect: %d lines, want one more", got)
	}
	r.reset()
	for port := range 1000 {
		r.report(fmt.Errorf("read tcp 127.0.0.1:%d: connection reset", port))
	}
	if got := lines.count("connection reset"); got != maxReasons {
		t.Errorf("reasons that are new each time: %d lines, want %d", got, maxReasons)
	}
}

func TestConnectErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.nk")
	if err := os.WriteFile(bad, []byte("SUAhunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		o    ConnectOptions
		want []string
	}{
		"a key file that is not there": {ConnectOptions{URL: "nats://127.0.0.1:1", NkeyFile: dir + "/none"}, []string{dir + "/none", "no such file"}},
		"a key file without a key":     {ConnectOptions{URL: "nats://127.0.0.1:1", NkeyFile: bad}, []string{bad, "not the nkey seed"}},
		"a CA that is not there":       {ConnectOptions{URL: "tls://127.0.0.1:1", CAFile: dir + "/ca"}, []string{dir + "/ca"}},
		"a URL that is none":           {ConnectOptions{URL: "nats://u:hunter2@h:port"}, []string{"the URL cannot be parsed"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc, err := Connect(t.Context(), tt.o, discard)
			if err == nil {
				nc.Close()
				t.Fatal("no error")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %q shows a secret", err)
			}
		})
	}
}
