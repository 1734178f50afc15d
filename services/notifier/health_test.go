package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHealth asks a notifier as a container engine does: by a call of its own, which has nothing but the same environment.
func TestHealth(t *testing.T) {
	clean(t)
	state := filepath.Join(t.TempDir(), "s")
	t.Setenv("NOTIFIER_STATE", state)
	ask := func(t *testing.T, code int, parts ...string) {
		t.Helper()
		got, stdout, stderr := call("health")
		if got != code || (stdout == "") != (code == 1) {
			t.Errorf("exit code %d, stdout %q, want %d", got, stdout, code)
		}
		contains(t, "health", stdout+stderr, parts...)
		if n := strings.Count(stdout+stderr, "\n"); n != 1 {
			t.Errorf("it says %d lines", n)
		}
	}

	t.Run("nobody runs", func(t *testing.T) { ask(t, 1, "not well: no notifier answers", state, "NOTIFIER_STATE") })
	t.Run("it runs, and what a killed one left is no hindrance", func(t *testing.T) {
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		leave(t, filepath.Join(state, "health.sock"))
		t.Setenv("NOTIFIER_LISTEN", "127.0.0.1:0")
		d := start(t)
		eventually(t, "it is well", func() bool { code, _, _ := call("health"); return code == 0 })
		ask(t, 0, "well: ", "broker is connected")
		d.stop()
		ask(t, 1, "no notifier answers")
	})
	t.Run("the broker is away", func(t *testing.T) {
		t.Setenv("NATS_URL", "nats://u:"+hidden+"@127.0.0.1:1")
		t.Setenv("NOTIFIER_VERIFY", "false")
		d := &daemon{t, &buffer{}, make(chan int, 1)}
		go func() { d.code <- run(nil, d.log, d.log) }()
		d.says("broker not reached")
		ask(t, 1, "not well: the broker is not connected", "NATS_URL")
		d.stop()
	})
	t.Run("its directory is made for a broker elsewhere, too", func(t *testing.T) {
		made := filepath.Join(state, "made", "here")
		t.Setenv("NOTIFIER_STATE", made)
		t.Setenv("NATS_URL", "nats://127.0.0.1:1")
		t.Setenv("NOTIFIER_VERIFY", "false")
		d := &daemon{t, &buffer{}, make(chan int, 1)}
		go func() { d.code <- run(nil, d.log, d.log) }()
		d.says("broker not reached")
		ask(t, 1, "not well: the broker is not connected")
		d.stop()
		if info, err := os.Stat(made); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, error %v, want mode 0700", info, err)
		}
	})
	t.Run("it cannot have a socket", func(t *testing.T) {
		t.Setenv("NOTIFIER_STATE", "/proc/nowhere") // where not even root makes a directory
		t.Setenv("NATS_URL", "nats://127.0.0.1:1")
		t.Setenv("NOTIFIER_VERIFY", "false")
		d := &daemon{t, &buffer{}, make(chan int, 1)}
		go func() { d.code <- run(nil, d.log, d.log) }()
		d.says("notifier health cannot be asked")
		ask(t, 1, "not well: no notifier answers")
		d.stop()
	})
	t.Run("it is called wrongly", func(t *testing.T) {
		code, _, stderr := call("health", "now")
		if code != 1 { // container engines know no other
			t.Errorf("exit code %d", code)
		}
		contains(t, "stderr", stderr, "notifier health", `unexpected argument "now"`)
	})
}

// leave leaves a socket that nobody serves.
func leave(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}
