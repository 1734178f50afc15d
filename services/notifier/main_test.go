package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
)

const hidden = "hunter2hunter2"

// clean unsets every variable of the notifier: an empty one counts as not set.
func clean(t *testing.T) {
	t.Helper()
	var usage strings.Builder
	if err := config.Usage(&usage); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(usage.String()) {
		if name, _, _ := strings.Cut(line, " "); strings.Contains(name, "_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("NOTIFIER_ALLOW_ROOT", "true") // whoever runs the tests
}

func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// contains fails unless text has every part, and when it has the secret.
func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s does not say %q:\n%s", what, part, text)
		}
	}
	if strings.Contains(text, hidden) {
		t.Errorf("%s shows a secret:\n%s", what, text)
	}
}

func TestCalls(t *testing.T) {
	clean(t)
	t.Setenv("NATS_URL", "nats://u:"+hidden+"@127.0.0.1:1")
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "hooks.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("hooks:\n- name: chat\n  url: https://u:" + hidden + "@example.org/" + hidden + "\n")
	wrong := file("hooks:\n- name: chat\n  url: ftp://" + hidden + "\n  tpyes: [x]\n")
	for _, tt := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr []string // parts; none is nothing at all
	}{
		{"version", []string{"-version"}, 0, []string{"dev\n"}, nil},
		{"help", []string{"-h"}, 0, []string{"notifier keys", "notifier provision", "-version", "NOTIFIER_STATE", "/var/lib/wgherald-notifier", "NATS_KEY_FILE"}, nil},
		{"long help", []string{"--help"}, 0, []string{"NOTIFIER_STATE"}, nil},
		{"help on keys", []string{"keys", "-h"}, 0, []string{"notifier keys", "-notifier-uid"}, nil},
		{"help on provision", []string{"provision", "-h"}, 0, []string{"notifier provision", "-hooks-key", "30s"}, nil},
		{"help on check", []string{"check", "-h"}, 0, []string{"notifier check FILE"}, nil},
		{"check of nothing", []string{"check"}, 2, nil, []string{"notifier check: which file?"}},
		{"check of two files", []string{"check", "a", "b"}, 2, nil, []string{`notifier check: unexpected argument "b"`}},
		{"check of a file that is not there", []string{"check", "/nonexistent/hooks"}, 2, nil, []string{"file /nonexistent/hooks cannot be read: no such file or directory"}},
		{"check of a good file", []string{"check", good}, 0, []string{"\n  to       https://example.org\n", "chat", "https://example.org"}, []string{"warning: hook chat has no secret"}},
		{"check of a wrong file", []string{"check", wrong}, 2, nil, []string{wrong + ":3: hook chat: url:", wrong + ":4: hook chat: tpyes: unknown key: did you mean types?"}},
		{"an unknown command", []string{"key"}, 2, nil, []string{`notifier: unexpected argument "key" (notifier -h`}},
		{"an empty command", []string{""}, 2, nil, []string{`notifier: unexpected argument ""`}},
		{"an unknown flag", []string{"-verbose"}, 2, nil, []string{"notifier: flag provided but not defined: -verbose (notifier -h"}},
		{"an argument too many", []string{"-version", "please"}, 2, nil, []string{`unexpected argument "please"`}},
		{"an unknown flag of keys", []string{"keys", "-directory", "x"}, 2, nil, []string{"notifier keys: flag provided but not defined: -directory (notifier keys -h"}},
		{"a wrong value", []string{"keys", "-notifier-uid", "nobody"}, 2, nil, []string{"-notifier-uid"}},
		{"an argument of keys", []string{"keys", "/keys"}, 2, nil, []string{`notifier keys: unexpected argument "/keys"`}},
		{"an argument of provision", []string{"provision", "nats://127.0.0.1"}, 2, nil, []string{`notifier provision: unexpected argument "nats://127.0.0.1"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := call(tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			contains(t, "stdout", stdout, tt.stdout...)
			contains(t, "stderr", stderr, tt.stderr...)
			if tt.stdout == nil && stdout != "" || tt.stderr == nil && stderr != "" {
				t.Errorf("too much is said: stdout %q, stderr %q", stdout, stderr)
			}
		})
	}
}

func TestEverythingThatIsWrongIsToldAtOnce(t *testing.T) {
	clean(t)
	hooks := filepath.Join(t.TempDir(), "hooks.yaml")
	if err := os.WriteFile(hooks, []byte("hooks:\n- name: chat\n  url: ftp://"+hidden+"\n  tpyes: [x]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFIER_HOOKS", hooks)
	t.Setenv("WEBHOOK_URL", "htp://example.org/"+hidden)
	t.Setenv("WEBHOOK_SECRET", hidden)
	t.Setenv("NOTIFIER_LISTEN", "0.0.0.0:4222")
	t.Setenv("NOTIFIER_VERIFY", "perhaps")
	t.Setenv("NOTIFIER_LOG_LEVEL", "loud")
	t.Setenv("NOTIFIER_METRICS", "9586")
	t.Setenv("NATS_NKEY_FILE", "/keys/notifier.nk")
	code, stdout, stderr := call()
	if code != 2 || stdout != "" {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	contains(t, "stderr", stderr, "notifier -h", hooks+":3: hook chat: url", hooks+":4: hook chat: tpyes: unknown key: did you mean types?",
		"WEBHOOK_URL", "WEBHOOK_SECRET", "NOTIFIER_LISTEN", "NOTIFIER_VERIFY", "NOTIFIER_LOG_LEVEL", "NOTIFIER_METRICS", "NATS_NKEY_FILE")
}

// TestRootIsRefused: the service does not run as root by mistake. Commands may.
func TestRootIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can try")
	}
	clean(t)
	state := filepath.Join(t.TempDir(), "state")
	t.Setenv("NOTIFIER_STATE", state)
	t.Setenv("NOTIFIER_ALLOW_ROOT", "")
	code, _, stderr := call()
	if code != 2 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stderr", stderr, "does not run as root", "NOTIFIER_ALLOW_ROOT=true")
	if _, err := os.Stat(state); err == nil {
		t.Error("root has made the state directory")
	}
}

// TestWrongFilesAreToldFirst: what somebody has to change ends with 2, so that nothing starts it again and again, and its line is the first of the log.
func TestWrongFilesAreToldFirst(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte(hidden), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"no key":        {map[string]string{"NATS_NKEY_FILE": "/missing/key"}, []string{"/missing/key", "no such file", "NATS_NKEY_FILE", "`notifier keys` makes it"}},
		"a wrong key":   {map[string]string{"NATS_NKEY_FILE": wrong}, []string{wrong, "not the nkey seed of a user"}},
		"no keyring":    {map[string]string{"NOTIFIER_VERIFY": "", "NOTIFIER_KEYRING": "/missing/ring"}, []string{"/missing/ring", "no such file", "NOTIFIER_KEYRING"}},
		"no CA":         {map[string]string{"NATS_CA_FILE": "/missing/ca"}, []string{"/missing/ca", "no such file"}},
		"no client key": {map[string]string{"NATS_CERT_FILE": "/missing/cert", "NATS_KEY_FILE": "/missing/key"}, []string{"/missing/cert", "no such file"}},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			t.Setenv("NOTIFIER_STATE", t.TempDir())
			t.Setenv("NATS_URL", "nats://127.0.0.1:1")
			t.Setenv("NOTIFIER_VERIFY", "false")
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			code, _, stderr := call()
			if code != 2 {
				t.Errorf("exit code %d", code)
			}
			first, _, _ := strings.Cut(stderr, "\n")
			contains(t, "its first line", first, tt.want...)
		})
	}
}

func TestPortInUse(t *testing.T) {
	clean(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFIER_STATE", filepath.Join(t.TempDir(), "state"))
	t.Setenv("NOTIFIER_LISTEN", l.Addr().String())
	code, _, stderr := call()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stderr", stderr, l.Addr().String()+" is in use", "NOTIFIER_LISTEN")
}

// TestMetricsNowhere: what another process may be about to give back, or an interface that comes up later may have, ends with 1, and so is tried again; nothing else is.
func TestMetricsNowhere(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		metrics string
		code    int
		want    []string
	}{
		"a port in use":               {taken.Addr().String(), 1, []string{taken.Addr().String(), "address already in use", "name another"}},
		"an address not here (yet)":   {"192.0.2.1:9586", 1, []string{"192.0.2.1:9586", "cannot assign requested address", "name another"}},
		"a directory that is missing": {"unix:/missing/socket", 2, []string{"/missing/socket", "no such file"}},
		"a file in the way":           {"unix:" + file, 2, []string{file, "no socket", "name another"}},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			t.Setenv("NOTIFIER_STATE", t.TempDir())
			t.Setenv("NATS_URL", "nats://127.0.0.1:1")
			t.Setenv("NOTIFIER_VERIFY", "false")
			t.Setenv("NOTIFIER_METRICS", tt.metrics)
			code, _, stderr := call()
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			first, _, _ := strings.Cut(stderr, "\n")
			contains(t, "its first line", first, append(tt.want, "NOTIFIER_METRICS")...)
		})
	}
}

// TestStateInUse: the one that has it may be about to end.
func TestStateInUse(t *testing.T) {
	clean(t)
	state := filepath.Join(t.TempDir(), "state")
	held, err := broker.StartEmbedded(t.Context(), broker.EmbeddedOptions{StateDir: state, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Shutdown()
	t.Setenv("NOTIFIER_STATE", state)
	t.Setenv("NOTIFIER_LISTEN", "127.0.0.1:0")
	code, _, stderr := call()
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stderr", stderr, state+" is in use by another notifier", "NOTIFIER_STATE")
}

func TestStateDirectoryThatCannotBeWritten(t *testing.T) {
	clean(t)
	dir := t.TempDir()
	file, closed := filepath.Join(dir, "file"), filepath.Join(dir, "closed")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(closed, 0o500); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, state, reason string
		root                bool // whether root fails too
	}{
		{"a file is in the way", file + "/state", "not a directory", true},
		{"its parent is closed", closed + "/state", "permission denied", false},
		{"it is closed", closed, "permission denied", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.root && os.Geteuid() == 0 {
				t.Skip("root may write everywhere")
			}
			t.Setenv("NOTIFIER_STATE", tt.state)
			t.Setenv("NOTIFIER_LISTEN", "127.0.0.1:0")
			code, _, stderr := call()
			if code != 2 {
				t.Errorf("exit code %d", code)
			}
			first, _, _ := strings.Cut(stderr, "\n")
			contains(t, "its first line", first, tt.state, tt.reason, "NOTIFIER_STATE")
		})
	}
}

// buffer is read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestSignalEndsItWell(t *testing.T) {
	clean(t)
	t.Setenv("NOTIFIER_STATE", filepath.Join(t.TempDir(), "state"))
	t.Setenv("NOTIFIER_LISTEN", "127.0.0.1:0")
	t.Setenv("WEBHOOK_URL", "http://127.0.0.1:1/"+hidden)
	var stderr buffer
	code := make(chan int, 1)
	go func() { code <- run(nil, &stderr, &stderr) }()
	deadline := time.After(30 * time.Second)
	for !strings.Contains(stderr.String(), "notifier is ready") {
		select {
		case c := <-code:
			t.Fatalf("it ended with %d:\n%s", c, &stderr)
		case <-deadline:
			t.Fatalf("it is not ready:\n%s", &stderr)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-code:
		if c != 0 {
			t.Errorf("exit code %d", c)
		}
	case <-deadline:
		t.Errorf("it does not end")
	}
	contains(t, "stderr", stderr.String(), "notifier stopped")
}
