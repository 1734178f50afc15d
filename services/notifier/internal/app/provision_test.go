package app

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
)

// state is everything about a file that Keys may change. A file that is written anew has another inode or time.
type state struct {
	Mode     string
	UID, GID uint32
	Inode    uint64
	Changed  syscall.Timespec
	Text     string
}

func stat(t *testing.T, path string) state {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	sys := info.Sys().(*syscall.Stat_t)
	s := state{Mode: info.Mode().String(), UID: sys.Uid, GID: sys.Gid, Inode: sys.Ino, Changed: sys.Mtim}
	if info.Mode().IsRegular() {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s.Text = string(text)
	}
	return s
}

// tree is what is under dir, by path.
func tree(t *testing.T, dir string) map[string]state {
	t.Helper()
	all := map[string]state{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		all[name] = stat(t, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// keysOptions are those of deploy/compose.yaml, in a directory of the test.
func keysOptions(t *testing.T) KeysOptions {
	return KeysOptions{Dir: filepath.Join(t.TempDir(), "keys"), Node: events.AnyNode, Listen: "0.0.0.0:4222", Store: "/data", NotifierUID: -1}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	o := keysOptions(t)
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	first := tree(t, o.Dir)
	modes := map[string]string{}
	for path, s := range first {
		modes[path] = s.Mode
	}
	equal(t, "modes", map[string]string{
		".":                                "drwxr-xr-x", // the broker's user must get to broker/
		"broker":                           "drwxr-xr-x",
		"broker/keys.json":                 "-rw-r--r--",
		"broker/nats.conf":                 "-rw-r--r--",
		"notifier":                         "drwx------",
		"notifier/keyring":                 "-rw-------",
		"notifier/notifier.nk":             "-rw-------",
		"operator":                         "drwx------",
		"operator/operator.nk":             "-rw-------",
		"probe":                            "drwx------",
		"probe/probe.nk":                   "-rw-------",
		"provision":                        "drwx------",
		"provision/hooks-provisioner.nk":   "-rw-------",
		"provision/readers-provisioner.nk": "-rw-------",
		"provision/wg-provisioner.nk":      "-rw-------",
		"reader":                           "drwx------",
		"reader/keyring":                   "-rw-------",
		"reader/reader.nk":                 "-rw-------",
	}, modes)

	ring, err := events.ParseKeyring(first["notifier/keyring"].Text)
	if err != nil {
		t.Fatal(err)
	}
	p := &probe{t: t, key: privateKey(t, []byte(first["probe/probe.nk"].Text))}
	_, body := p.connected("alice")
	if _, err := events.Verify(body, events.Sign(body, p.key), ring); err != nil {
		t.Errorf("an event of the probe: %v", err)
	}
	for path, s := range first {
		if seed := strings.TrimSpace(s.Text); strings.HasSuffix(path, ".nk") && strings.Contains(first["broker/nats.conf"].Text+first["broker/keys.json"].Text+first["notifier/keyring"].Text, seed) {
			t.Errorf("the seed of %s is in a file that is not for it", path)
		}
	}

	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	equal(t, "after a second run", first, tree(t, o.Dir))

	o.Node = "vpn-1"
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	second := tree(t, o.Dir)
	equal(t, "keyring of one node", "vpn-1 "+p.public(), strings.Split(second["notifier/keyring"].Text, "\n")[1])
	equal(t, "key of the probe", first["probe/probe.nk"], second["probe/probe.nk"])
	if !strings.Contains(second["broker/nats.conf"].Text, `"$KV.WG_PEERS.vpn-1.>"`) {
		t.Error("the probe may write the state of other nodes")
	}
}

// Who is known stays known, with the same key, whatever the next run is about.
func TestKeysAddsAndRemoves(t *testing.T) {
	t.Parallel()
	var told strings.Builder
	o := KeysOptions{Dir: filepath.Join(t.TempDir(), "keys"), Listen: "127.0.0.1:4333", Store: "/data", NotifierUID: -1, Out: &told}
	keys := func(change func(*KeysOptions)) (files map[string]state, said []string) {
		t.Helper()
		o := o
		change(&o)
		told.Reset()
		if err := Keys(o); err != nil {
			t.Fatal(err)
		}
		return tree(t, o.Dir), slices.Collect(strings.Lines(strings.ReplaceAll(told.String(), o.Dir+"/", "")))
	}
	seeds := func(files map[string]state) map[string]state {
		seeds := map[string]state{}
		for path, s := range files {
			if strings.HasSuffix(path, ".nk") {
				seeds[path] = s
			}
		}
		return seeds
	}
	users := func() int {
		t.Helper()
		opts, err := server.ProcessConfigFile(filepath.Join(o.Dir, "broker", "nats.conf"))
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "listen address", "127.0.0.1:4333", fmt.Sprintf("%s:%d", opts.Host, opts.Port))
		return len(opts.Nkeys)
	}
	nodes := func(keyring state) (nodes []string) {
		for _, line := range strings.Split(strings.TrimSpace(keyring.Text), "\n")[1:] {
			node, _, _ := strings.Cut(line, " ")
			nodes = append(nodes, node)
		}
		return nodes
	}

	first, _ := keys(func(o *KeysOptions) {
		o.Probes = []NamedNode{{"vpn-1", "vpn-1"}, {"berlin", "vpn-2.example"}}
		o.Notifiers = []string{"a", "b"}
	})
	want := slices.Sorted(maps.Keys(seeds(first)))
	equal(t, "keys", []string{
		"notifier-a/notifier.nk", "notifier-b/notifier.nk", "operator/operator.nk", "probe-berlin/probe.nk", "probe-vpn-1/probe.nk",
		"provision/hooks-provisioner.nk", "provision/readers-provisioner.nk", "provision/wg-provisioner.nk", "reader/reader.nk",
	}, want)
	for _, reader := range []string{"notifier-a", "notifier-b", "reader"} {
		equal(t, "keyring of "+reader, []string{"vpn-2.example", "vpn-1"}, nodes(first[reader+"/keyring"]))
	}
	equal(t, "users", 9, users())

	o.Listen, o.Store = "", "" // as they are
	second, said := keys(func(o *KeysOptions) { o.Probes = []NamedNode{{"vpn-3", "vpn-3"}} })
	equal(t, "said", []string{"probe-vpn-3: new key in probe-vpn-3/probe.nk\n"}, said)
	equal(t, "nodes", []string{"vpn-2.example", "vpn-1", "vpn-3"}, nodes(second["notifier-b/keyring"]))
	have := seeds(second)
	delete(have, "probe-vpn-3/probe.nk")
	equal(t, "the keys that were there", seeds(first), have)
	equal(t, "users", 10, users())

	// A seed is moved to where it is used.
	if err := os.RemoveAll(filepath.Join(o.Dir, "probe-vpn-1")); err != nil {
		t.Fatal(err)
	}
	third, said := keys(func(*KeysOptions) {})
	equal(t, "said", []string{"probe-vpn-1: its key was moved away from probe-vpn-1/probe.nk, or is lost (-renew probe-vpn-1 makes another)\n"}, said)
	equal(t, "configuration", second["broker/nats.conf"], third["broker/nats.conf"])
	equal(t, "keyring", second["notifier-a/keyring"], third["notifier-a/keyring"])

	fourth, said := keys(func(o *KeysOptions) {
		o.Renew, o.Remove = []string{"probe-vpn-1"}, []string{"probe-berlin", "notifier-b"}
	})
	equal(t, "said", []string{"probe-vpn-1: new key in probe-vpn-1/probe.nk\n", "probe-berlin: removed\n", "notifier-b: removed\n"}, said)
	equal(t, "nodes", []string{"vpn-1", "vpn-3"}, nodes(fourth["notifier-a/keyring"]))
	for path := range fourth {
		if strings.Contains(path, "berlin") || strings.Contains(path, "notifier-b") {
			t.Errorf("%s is still there", path)
		}
	}
	if first["probe-vpn-1/probe.nk"].Text == fourth["probe-vpn-1/probe.nk"].Text || fourth["notifier-a/keyring"].Text == third["notifier-a/keyring"].Text {
		t.Error("the old key still counts")
	}
	equal(t, "users", 8, users())
}

// A volume of a container engine begins open, and its owner is root.
func TestKeysClosesOpenDirectories(t *testing.T) {
	t.Parallel()
	o := keysOptions(t)
	for _, dir := range []string{"probe", "notifier"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"probe", "notifier"} {
		equal(t, dir, "drwx------", stat(t, filepath.Join(o.Dir, dir)).Mode)
	}
}

func TestKeysGivesTheNotifierItsOwn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	o := keysOptions(t)
	o.NotifierUID = 65534
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	first := tree(t, o.Dir)
	for path, s := range first {
		want := uint32(0)
		if strings.HasPrefix(path, "notifier") || strings.HasPrefix(path, "provision") {
			want = 65534
		}
		if s.UID != want || s.GID != want {
			t.Errorf("%s belongs to %d:%d, want %d", path, s.UID, s.GID, want)
		}
	}
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	equal(t, "after a second run", first, tree(t, o.Dir))
}

func TestKeysErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for name, tt := range map[string]struct {
		change func(*KeysOptions)
		want   string
	}{
		"a probe without a node":        {func(o *KeysOptions) { o.Probes = []NamedNode{{"a", ""}} }, "node: name is missing"},
		"a probe that is a path":        {func(o *KeysOptions) { o.Probes = []NamedNode{{"../a", "a"}} }, `probe name "../a": use letters`},
		"a notifier of two words":       {func(o *KeysOptions) { o.Notifiers = []string{"a b"} }, `notifier name "a b": use letters`},
		"two probes of one node":        {func(o *KeysOptions) { o.Probes = []NamedNode{{"a", "n"}, {"b", "n"}} }, `two probes with the node "n"`},
		"nobody to remove":              {func(o *KeysOptions) { o.Remove = []string{"probe-a"} }, `remove "probe-a": there is no such probe or notifier: there are hooks-provisioner, notifier,`},
		"the operator to remove":        {func(o *KeysOptions) { o.Remove = []string{"operator"} }, "there is no such probe or notifier"},
		"nobody to renew":               {func(o *KeysOptions) { o.Renew = []string{"probe-a"} }, `renew "probe-a": there is no such identity`},
		"a certificate without a key":   {func(o *KeysOptions) { o.TLS.Cert = "/tls/cert" }, "TLS needs the certificate and its key"},
		"a node that is two words":      {func(o *KeysOptions) { o.Node = "vpn 1" }, "white space"},
		"a node that is two lines":      {func(o *KeysOptions) { o.Node = "vpn\nlisten: 0.0.0.0:1" }, "control characters"},
		"a listen address without port": {func(o *KeysOptions) { o.Listen = "0.0.0.0" }, "listen address \"0.0.0.0\""},
		"a store of two lines":          {func(o *KeysOptions) { o.Store = "/data\nport: 1" }, "no listen address or directory"},
		"a directory that cannot be":    {func(o *KeysOptions) { o.Dir = file + "/keys" }, "not a directory"},
	} {
		o := keysOptions(t)
		tt.change(&o)
		if err := Keys(o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v does not say %q", name, err, tt.want)
		}
	}
}

// What Keys writes, nats-server takes.
func TestKeysConfigureABroker(t *testing.T) {
	t.Parallel()
	o := keysOptions(t)
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(filepath.Join(o.Dir, "broker", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "host", "0.0.0.0", opts.Host)
	equal(t, "port", 4222, opts.Port)
	equal(t, "store", "/data", opts.StoreDir)
	equal(t, "users", len(broker.Identities()), len(opts.Nkeys))
}

func TestProvisionErrors(t *testing.T) {
	t.Parallel()
	keys := func(store string) string {
		dir := filepath.Join(t.TempDir(), "keys")
		if err := Keys(KeysOptions{Dir: dir, Listen: "127.0.0.1:0", Store: store, NotifierUID: -1}); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "provision")
	}
	known, strange := keys(t.TempDir()), keys("/data")
	opts, err := server.ProcessConfigFile(filepath.Join(known, "..", "broker", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	good := newExternal(t, opts).start().ClientURL()
	plain := newExternal(t, &server.Options{Port: server.RANDOM_PORT}).start().ClientURL()
	accounts := newExternal(t, &server.Options{
		Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoAuthUser: "u",
		Accounts: []*server.Account{server.NewAccount("A")}, Users: []*server.User{{Username: "u", Password: "p"}},
	})
	accounts.opts.Users[0].Account = accounts.opts.Accounts[0]
	withoutAccount := accounts.start().ClientURL()

	for name, tt := range map[string]struct {
		o    ProvisionOptions
		want []string
	}{
		"nobody there":                {ProvisionOptions{URL: fmt.Sprintf("nats://127.0.0.1:%d", freePort(t))}, []string{"the broker was not ready within 2s"}},
		"a key that is not known":     {ProvisionOptions{URL: good, WGKey: strange + "/wg-provisioner.nk"}, []string{"wg-provisioner", "the broker does not know this login", "notifier keys"}},
		"no key":                      {ProvisionOptions{URL: good}, []string{"the broker does not know this login", "another key file"}},
		"the key of another account":  {ProvisionOptions{URL: good, WGKey: known + "/hooks-provisioner.nk"}, []string{"WG_EVENTS in account WG", "no answer", "this identity may lack the permission"}},
		"no JetStream":                {ProvisionOptions{URL: plain}, []string{"WG_EVENTS in account WG", "JetStream is off: switch it on"}},
		"no JetStream in the account": {ProvisionOptions{URL: withoutAccount}, []string{"WG_EVENTS in account WG", "switch JetStream on", "for this account"}},
		"an old broker":               {ProvisionOptions{URL: oldBroker(t)}, []string{"the broker is nats-server 2.9.10: 2.11 or newer is needed: upgrade it"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.o.Wait = 2 * time.Second
			_, err := Provision(t.Context(), tt.o, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

// A probe's key may publish an event of any node, for subjects do not name nodes. That it is not believed is what the keyring of `notifier keys` is for.
func TestAnEventOfAnotherNodeIsNotBelieved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := Keys(KeysOptions{
		Dir: dir, Listen: "127.0.0.1:0", Store: t.TempDir(), NotifierUID: -1,
		Probes: []NamedNode{{"one", "vpn-1"}, {"two", "vpn-2"}}, Notifiers: []string{"a"},
	}); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(filepath.Join(dir, "broker", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	url := newExternal(t, opts).start().ClientURL()
	o := ProvisionOptions{URL: url, WGKey: dir + "/provision/wg-provisioner.nk", HooksKey: dir + "/provision/hooks-provisioner.nk", Wait: patience}
	if _, err := Provision(t.Context(), o, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	sink := newSink(t)
	cfg := configure(t, sink.hook(t, "default"))
	cfg.NATS.URL, cfg.NATS.NkeyFile = config.NewSecret(url), dir+"/notifier-a/notifier.nk"
	cfg.Keyring, cfg.Metrics = dir+"/notifier-a/keyring", fmt.Sprintf("127.0.0.1:%d", freePort(t))
	run(t, cfg).ready()

	one, two := newProbe(t, url, dir+"/probe-one/probe.nk"), newProbe(t, url, dir+"/probe-two/probe.nk")
	_, forged := two.connected("alice") // of vpn-1
	two.publish(events.PeerConnected, forged, events.Sign(forged, two.key))
	one.n = two.n
	equal(t, "delivered", []string{one.tell("bob")}, sink.got(t, 1))
	equal(t, "dead letters", []letter{{"unverified", "wg.peer.connected", string(forged)}}, letters(t, login(t, url, dir+"/operator", broker.Operator), 1))
	resp, err := http.Get("http://" + cfg.Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if want := `wgherald_notifier_dead_letters_total{class="unverified",hook="default"} 1`; err != nil || !strings.Contains(string(metrics), want) {
		t.Errorf("%v, no %s in:\n%s", err, want, metrics)
	}
	// So it is with another service that verifies.
	text, err := os.ReadFile(filepath.Join(dir, "reader", "keyring"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := events.ParseKeyring(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Verify(forged, events.Sign(forged, two.key), ring); !errors.Is(err, events.ErrUnverified) {
		t.Errorf("a reader has the error %v", err)
	}
}
