package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

func TestKeysCommand(t *testing.T) {
	clean(t)
	dir := filepath.Join(t.TempDir(), "keys")
	code, stdout, stderr := call("keys", "-dir", dir, "-node", "vpn-1")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	contains(t, "stdout", stdout, dir)
	conf, err := os.ReadFile(filepath.Join(dir, "broker", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "nats.conf", string(conf), `listen: "0.0.0.0:4222"`, `store_dir: "/data"`, `"$KV.WG_PEERS.vpn-1.>"`)

	code, stdout, stderr = call("keys", "-dir", dir, "-probe", "berlin", "-probe", "b=vpn-2.example", "-notifier", "spare", "-tls-cert", "/tls/c", "-tls-key", "/tls/k")
	if code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	contains(t, "stdout", stdout, "probe-berlin: new key in "+dir+"/probe-berlin/probe.nk\n", "notifier-spare: new key in ")
	if conf, err = os.ReadFile(filepath.Join(dir, "broker", "nats.conf")); err != nil {
		t.Fatal(err)
	}
	contains(t, "nats.conf", string(conf), `"$KV.WG_PEERS.vpn-1.>"`, `"$KV.WG_PEERS.berlin.>"`, `"$KV.WG_PEERS.vpn-2=2Eexample.>"`, `cert_file: "/tls/c"`)
	code, stdout, _ = call("keys", "-dir", dir, "-remove", "probe-b")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stdout", stdout, "probe-b: removed\n")

	code, stdout, _ = call("keys", "-dir", dir, "-list")
	if code != 0 || strings.Contains(stdout, "probe-b ") {
		t.Errorf("exit code %d", code)
	}
	contains(t, "list", stdout, "TLS cert /tls/c, key /tls/k", "probe-berlin", "PROBE-berlin", dir+"/probe-berlin/probe.nk")
	code, stdout, _ = call("keys", "-dir", dir, "-tls-cert", "", "-tls-key", "")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stdout", stdout, "broker: TLS cert /tls/c, key /tls/k → off\n")

	code, _, stderr = call("keys", "-dir", dir, "-node", "two words")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stderr", stderr, "notifier: node: ", `"two words"`)
}

// TestKeysCalls: what keys refuses before it looks at any file.
func TestKeysCalls(t *testing.T) {
	clean(t)
	dir := filepath.Join(t.TempDir(), "keys")
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no directory", nil, "notifier keys: -dir is missing: name the directory that is to get the keys, or has them"},
		{"an empty directory", []string{"-dir", ""}, "-dir is missing"},
		{"a probe without its node", []string{"-dir", dir, "-probe", "a="}, `invalid value "a=" for flag -probe: the node is missing`},
		{"a list with a change", []string{"-dir", dir, "-list", "-probe", "a"}, "-list changes nothing, and -probe would: give one of them"},
	} {
		code, stdout, stderr := call(append([]string{"keys"}, tt.args...)...)
		if code != 2 || stdout != "" {
			t.Errorf("%s: exit code %d, stdout %q", tt.name, code, stdout)
		}
		contains(t, tt.name, stderr, tt.want)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a directory was made")
	}
	code, stdout, stderr := call("keys", "-dir", dir, "-list")
	if code != 1 || stdout != "" {
		t.Errorf("a list of nobody: exit code %d, stdout %q", code, stdout)
	}
	contains(t, "stderr", stderr, "there are no keys in "+dir)
}

func TestProvisionCommand(t *testing.T) {
	clean(t)
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, Username: "u", Password: hidden,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the broker does not start")
	}
	code, stdout, stderr := call("provision")
	if code != 2 || stdout != "" {
		t.Errorf("without a URL: exit code %d, stdout %q", code, stdout)
	}
	contains(t, "stderr", stderr, "notifier provision: -url and NATS_URL are empty")

	t.Setenv("NATS_URL", fmt.Sprintf("nats://u:%s@%s", hidden, s.Addr()))
	code, stdout, _ = call("provision", "-dry-run")
	if code != 0 {
		t.Errorf("dry run: exit code %d", code)
	}
	contains(t, "stdout", stdout, "WG: stream WG_EVENTS would be created\n", "WG: stream WG_DEAD would be created\n", "5 changes to be made; nothing was changed\n")
	if strings.Count(stdout, " created") != strings.Count(stdout, " would be created") {
		t.Errorf("a dry run says that it did something:\n%s", stdout)
	}
	code, stdout, stderr = call("provision")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	contains(t, "stdout", stdout, "WG: stream WG_EVENTS created\n", "WG: stream WG_DEAD created\n", "5 changes\n")
	contains(t, "stderr", stderr, "broker connected", "identity=wg-provisioner")
	if code, stdout, _ = call("provision"); code != 0 || stdout != "0 changes\n" {
		t.Errorf("the second time: exit code %d, stdout %q", code, stdout)
	}
	code, stdout, _ = call("provision", "-dry-run")
	if code != 0 {
		t.Errorf("dry run: exit code %d", code)
	}
	contains(t, "stdout", stdout, "WG: stream WG_EVENTS unchanged\n", "0 changes to be made; nothing was changed\n")

	change(t, s.ClientURL(), hidden)
	code, stdout, _ = call("provision", "-dry-run")
	if code != 0 {
		t.Errorf("dry run: exit code %d", code)
	}
	contains(t, "stdout", stdout, "WG: stream WG_EVENTS would be updated\n  MaxAge: 1h0m0s → 168h0m0s\n", "1 changes to be made; nothing was changed\n")

	missing := filepath.Join(t.TempDir(), "none.nk")
	code, _, stderr = call("provision", "-wg-key", missing)
	if code != 1 {
		t.Errorf("without its key: exit code %d", code)
	}
	contains(t, "stderr", stderr, missing)
	// The keys are looked at before anybody logs in.
	good := broker.IdentityFile(filepath.Join(t.TempDir(), "ids"), broker.WGProvisioner)
	if _, err := broker.EnsureIdentities(filepath.Dir(good), broker.WGProvisioner); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = call("provision", "-wg-key", good, "-hooks-key", missing)
	if want := "notifier: login as hooks-provisioner: identity " + missing + ": no such file or directory: `notifier keys` makes it\n"; code != 1 || stderr != want {
		t.Errorf("without the second key: exit code %d, stderr %q, want %q", code, stderr, want)
	}

	t.Setenv("NATS_CA_FILE", missing)
	code, _, stderr = call("provision")
	if code != 1 {
		t.Errorf("without its roots: exit code %d", code)
	}
	contains(t, "stderr", stderr, missing)

	code, _, stderr = call("provision", "-url", "nats://u:"+hidden+"@host:port")
	if code != 1 {
		t.Errorf("with a URL that is none: exit code %d", code)
	}
	contains(t, "stderr", stderr, "notifier: broker connection: ")
}

// change gives WG_EVENTS another age than it should have.
func change(t *testing.T, url, password string) {
	t.Helper()
	nc, err := nats.Connect(url, nats.UserInfo("u", password))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "WG_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.MaxAge = time.Hour
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}
