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
	"golang.org/x/sync/errgroup"

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

	// -node is for this probe, whoever else comes.
	o.Node, o.Probes = "vpn-5", []NamedNode{{"b", ""}}
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	third := tree(t, o.Dir)
	// One that is written in place is half written when the disk is full; the other may be mounted as a file.
	if third["broker/keys.json"].Inode == second["broker/keys.json"].Inode || third["broker/nats.conf"].Inode != second["broker/nats.conf"].Inode {
		t.Error("keys.json must be replaced, and nats.conf must not")
	}
	if ring := third["notifier/keyring"].Text; !strings.Contains(ring, "vpn-5 "+p.public()) || !strings.Contains(ring, "\nb U") {
		t.Errorf("keyring of two nodes:\n%s", ring)
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
	equal(t, "said", []string{
		"probe-vpn-3: new key in probe-vpn-3/probe.nk\n",
		"next, where nothing does it for you:\n",
		"  1. copy notifier-a/keyring and notifier-b/keyring to where each notifier's NOTIFIER_KEYRING is: it counts within 2 s\n",
		"  2. copy reader/keyring to who verifies events with it\n",
		"  3. have the broker read broker/nats.conf, twice (kill -HUP PID; sleep 1; kill -HUP PID), or restart it\n",
		"  4. move probe-vpn-3/probe.nk to the probe's NATS_NKEY_FILE, and set PROBE_NODE=vpn-3\n",
	}, said)
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
	equal(t, "said", []string{
		"probe-vpn-1: its key was moved away from probe-vpn-1/probe.nk, or is lost (-renew probe-vpn-1 makes another)\n",
		"nothing has changed\n",
	}, said)
	equal(t, "configuration", second["broker/nats.conf"], third["broker/nats.conf"])
	equal(t, "keyring", second["notifier-a/keyring"], third["notifier-a/keyring"])

	fourth, said := keys(func(o *KeysOptions) {
		o.Renew, o.Remove = []string{"probe-vpn-1"}, []string{"probe-berlin", "notifier-b"}
	})
	equal(t, "said", []string{
		"probe-vpn-1: new key in probe-vpn-1/probe.nk\n", "probe-berlin: removed\n", "notifier-b: removed\n",
		"next, where nothing does it for you:\n",
		"  1. copy notifier-a/keyring to where each notifier's NOTIFIER_KEYRING is: it counts within 2 s\n",
		"  2. copy reader/keyring to who verifies events with it\n",
		"  3. have the broker read broker/nats.conf, twice (kill -HUP PID; sleep 1; kill -HUP PID), or restart it\n",
		"  4. move probe-vpn-1/probe.nk to the probe's NATS_NKEY_FILE, and set PROBE_NODE=vpn-1\n",
	}, said)
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
	// The probes are a, of node n, and b; the notifier has no name.
	for name, tt := range map[string]struct {
		change func(*KeysOptions)
		want   string
	}{
		"a probe that is a path":  {func(o *KeysOptions) { o.Probes = []NamedNode{{"../a", "a"}} }, `probe name "../a": use letters`},
		"a notifier of two words": {func(o *KeysOptions) { o.Notifiers = []string{"a b"} }, `notifier name "a b": use letters`},
		"two probes of one node":  {func(o *KeysOptions) { o.Probes = []NamedNode{{"c", "n"}} }, `two probes with the node "n"`},
		"a node for no probe": {func(o *KeysOptions) { o.Node = "vpn-1" },
			`node "vpn-1": it would be the node of a probe without a name, and there is none: give a probe its node with -probe NAME=NODE: there are probe-a, probe-b`},
		"any node for no probe": {func(o *KeysOptions) { o.Node = "*" }, `node "*": it would be`},
		"nobody to remove": {func(o *KeysOptions) { o.Remove = []string{"probe-c"} },
			`remove "probe-c": no probe or notifier is that, and nobody else can be removed: there are notifier, probe-a, probe-b`},
		"the reader to remove": {func(o *KeysOptions) { o.Remove = []string{"reader"} }, "nobody else can be removed: there are notifier, probe-a, probe-b"},
		"nobody to renew": {func(o *KeysOptions) { o.Renew = []string{"probe-c"} },
			`renew "probe-c": there is no such identity: there are hooks-provisioner, notifier, operator, probe-a, probe-b, reader, readers-provisioner, wg-provisioner`},
		"a certificate without a key": {func(o *KeysOptions) { o.TLSCert = new("/tls/cert") }, "TLS needs the certificate and its key"},
		"half of TLS taken away": {func(o *KeysOptions) { o.TLSCert, o.TLSKey, o.TLSCA = new("c"), new(""), new("") },
			"(-tls-cert, -tls-key, -tls-ca; an empty one takes it away)"},
		"a node that is two words":      {func(o *KeysOptions) { o.Probes = []NamedNode{{"a", "vpn 1"}} }, "white space"},
		"a node that is two lines":      {func(o *KeysOptions) { o.Probes = []NamedNode{{"a", "vpn\nlisten: 0.0.0.0:1"}} }, "control characters"},
		"a listen address without port": {func(o *KeysOptions) { o.Listen = "0.0.0.0" }, "listen address \"0.0.0.0\""},
		"a store of two lines":          {func(o *KeysOptions) { o.Store = "/data\nport: 1" }, "no listen address or directory"},
		"a directory that cannot be":    {func(o *KeysOptions) { o.Dir = file + "/keys" }, "not a directory"},
	} {
		dir := filepath.Join(t.TempDir(), "keys")
		if err := Keys(KeysOptions{Dir: dir, Probes: []NamedNode{{"a", "n"}, {"b", ""}}, NotifierUID: -1}); err != nil {
			t.Fatal(err)
		}
		before := tree(t, dir)
		o := KeysOptions{Dir: dir, Renew: []string{"operator"}, NotifierUID: -1}
		tt.change(&o)
		if err := Keys(o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v does not say %q", name, err, tt.want)
		}
		equal(t, name+": files", before, tree(t, dir))
	}
}

// Without keys.json nobody is known, and nats.conf would be written without those who log in now.
func TestKeysRefusesToForget(t *testing.T) {
	t.Parallel()
	o := keysOptions(t)
	o.Probes, o.Node = []NamedNode{{"a", ""}}, ""
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.Dir, "broker", "keys.json")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	before := tree(t, o.Dir)
	for what, err := range map[string]error{"keys": Keys(o), "list": ListKeys(o.Dir, io.Discard)} {
		if want := file + " is missing, and nats.conf beside it is not: restore it,"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not say %q", what, err, want)
		}
	}
	equal(t, "files", before, tree(t, o.Dir))

	// As the message says: keys that are still here count.
	if err := os.Remove(filepath.Join(o.Dir, "broker", "nats.conf")); err != nil {
		t.Fatal(err)
	}
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	after := tree(t, o.Dir)
	for _, path := range []string{"probe-a/probe.nk", "operator/operator.nk", "notifier/keyring"} {
		equal(t, path, before[path], after[path])
	}
	equal(t, "configuration", before["broker/nats.conf"].Text, after["broker/nats.conf"].Text)
}

// Each row is a run of its own after one that knew probe-a, of node n, and notifier-x; DIR stands for the directory.
// TestKeysAtOnce: what one run makes, another that runs at the same time does not forget.
func TestKeysAtOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	var runs errgroup.Group
	for _, name := range names {
		runs.Go(func() error { return Keys(KeysOptions{Dir: dir, Probes: []NamedNode{{Name: name}}, NotifierUID: -1}) })
	}
	if err := runs.Wait(); err != nil {
		t.Fatal(err)
	}
	s, err := readSettings(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range s.Members {
		if m.Role == broker.Probe {
			got = append(got, m.name())
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		t.Errorf("probes %q, want %q", got, names)
	}
}

func TestKeysTellsWhatToDo(t *testing.T) {
	t.Parallel()
	const reload = "have the broker read DIR/broker/nats.conf, twice (kill -HUP PID; sleep 1; kill -HUP PID), or restart it"
	const tls = "set NATS_URL, NATS_CA_FILE, NATS_CERT_FILE and NATS_KEY_FILE to fit, wherever somebody logs in, and restart what runs"
	rings := []string{
		"copy DIR/notifier-x/keyring to where each notifier's NOTIFIER_KEYRING is: it counts within 2 s", "copy DIR/reader/keyring to who verifies events with it",
	}
	for name, tt := range map[string]struct {
		change func(*KeysOptions)
		said   []string
		next   []string
	}{
		"nothing":                            {func(o *KeysOptions) {}, []string{"nothing has changed"}, nil},
		"the same once more":                 {func(o *KeysOptions) { o.Probes, o.Listen = []NamedNode{{"a", "n"}}, "0.0.0.0:4222" }, []string{"nothing has changed"}, nil},
		"a probe by its name keeps its node": {func(o *KeysOptions) { o.Probes = []NamedNode{{"a", ""}} }, []string{"nothing has changed"}, nil},
		"another node for a probe": {func(o *KeysOptions) { o.Probes = []NamedNode{{"a", "m"}} }, []string{"probe-a: node n → m"},
			append(slices.Clone(rings), reload, "set PROBE_NODE=m where the key of probe-a is")},
		"another notifier": {func(o *KeysOptions) { o.Notifiers = []string{"y"} }, []string{"notifier-y: new key in DIR/notifier-y/notifier.nk"},
			[]string{reload, "move DIR/notifier-y/notifier.nk to the notifier's NATS_NKEY_FILE, and DIR/notifier-y/keyring to its NOTIFIER_KEYRING"}},
		"another operator's key": {func(o *KeysOptions) { o.Renew = []string{"operator"} }, []string{"operator: new key in DIR/operator/operator.nk"},
			[]string{reload, "move DIR/operator/operator.nk to who runs `notifier dead` and `notifier log`, as their -key"}},
		"another provisioner's key": {func(o *KeysOptions) { o.Renew = []string{"wg-provisioner"} }, []string{"wg-provisioner: new key in DIR/provision/wg-provisioner.nk"},
			[]string{reload}},
		"another port": {func(o *KeysOptions) { o.Listen = "0.0.0.0:4223" }, []string{"broker: listen 0.0.0.0:4222 → 0.0.0.0:4223"},
			[]string{"restart the broker: a reload does not take all of that"}},
		"TLS off": {func(o *KeysOptions) { o.TLSCert, o.TLSKey, o.TLSCA = new(""), new(""), new("") }, []string{"broker: TLS cert c, key k, CA a → off"},
			[]string{"restart the broker: a reload does not take all of that", tls}},
		"no CA for clients": {func(o *KeysOptions) { o.TLSCA = new("") }, []string{"broker: TLS cert c, key k, CA a → cert c, key k"},
			[]string{"restart the broker: a reload does not take all of that", tls}},
	} {
		var told strings.Builder
		dir := filepath.Join(t.TempDir(), "keys")
		o := KeysOptions{Dir: dir, Probes: []NamedNode{{"a", "n"}}, Notifiers: []string{"x"}, TLSCert: new("c"), TLSKey: new("k"), TLSCA: new("a"), NotifierUID: -1, Out: &told}
		if err := Keys(o); err != nil {
			t.Fatal(err)
		}
		o = KeysOptions{Dir: dir, NotifierUID: -1, Out: &told}
		tt.change(&o)
		told.Reset()
		if err := Keys(o); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := strings.Join(tt.said, "\n") + "\n"
		if tt.next != nil {
			want += "next, where nothing does it for you:\n"
		}
		for i, step := range tt.next {
			want += fmt.Sprintf("  %d. %s\n", i+1, step)
		}
		equal(t, name, want, strings.ReplaceAll(told.String(), dir, "DIR"))
		told.Reset()
		if err := Keys(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(o.Renew) == 0 {
			equal(t, name+", once more", "nothing has changed\n", told.String())
		}
	}
}

// The first run ends with everything from an empty directory to a probe that speaks.
func TestKeysTellsWhatToDoFirst(t *testing.T) {
	t.Parallel()
	var told strings.Builder
	o := KeysOptions{Dir: filepath.Join(t.TempDir(), "keys"), Probes: []NamedNode{{"a", "n"}}, NotifierUID: -1, Out: &told}
	if err := Keys(o); err != nil {
		t.Fatal(err)
	}
	_, next, _ := strings.Cut(strings.ReplaceAll(told.String(), o.Dir, "DIR"), "next, ")
	equal(t, "next", `where nothing does it for you:
  1. start the broker: nats-server -c DIR/broker/nats.conf
  2. make its streams: notifier provision -url nats://BROKER:4222 -wg-key DIR/provision/wg-provisioner.nk -hooks-key DIR/provision/hooks-provisioner.nk
  3. move DIR/notifier/notifier.nk to the notifier's NATS_NKEY_FILE, and DIR/notifier/keyring to its NOTIFIER_KEYRING
  4. move DIR/operator/operator.nk to who runs `+"`notifier dead` and `notifier log`"+`, as their -key
  5. move DIR/probe-a/probe.nk to the probe's NATS_NKEY_FILE, and set PROBE_NODE=n
  6. move DIR/reader/reader.nk to a service that reads events, and DIR/reader/keyring with it
`, next)
}

// What Keys says of the broker is enough: after two reloads a new probe, a probe of another node and one with another key are all heard.
func TestKeysWorkAfterTwoReloads(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	o := KeysOptions{
		Dir: filepath.Join(t.TempDir(), "keys"), Listen: fmt.Sprintf("127.0.0.1:%d", port), Store: t.TempDir(), NotifierUID: -1,
		Probes: []NamedNode{{"a", "vpn-1"}, {"b", "vpn-2"}},
	}
	configured := func() *server.Options {
		t.Helper()
		if err := Keys(o); err != nil {
			t.Fatal(err)
		}
		opts, err := server.ProcessConfigFile(confFile(o.Dir))
		if err != nil {
			t.Fatal(err)
		}
		opts.NoSigs, opts.NoLog = true, true
		return opts
	}
	s := newExternal(t, configured()).start()
	provision := filepath.Join(o.Dir, "provision")
	if _, err := Provision(t.Context(), ProvisionOptions{
		URL: s.ClientURL(), WGKey: provision + "/wg-provisioner.nk", HooksKey: provision + "/hooks-provisioner.nk", Wait: patience,
	}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	o.Probes, o.Renew = []NamedNode{{"a", "vpn-9"}, {"c", ""}}, []string{"probe-b"}
	for range 2 {
		if err := s.ReloadOptions(configured()); err != nil {
			t.Fatal(err)
		}
		o.Renew = nil
	}
	for name, node := range map[string]string{"a": "vpn-9", "b": "vpn-2", "c": "c"} {
		p := newProbe(t, s.ClientURL(), filepath.Join(o.Dir, "probe-"+name, "probe.nk"))
		for _, subject := range []string{"wg.peer.connected", "$KV.WG_PEERS." + node + ".wg0.peer"} {
			if _, err := p.js.Publish(t.Context(), subject, nil); err != nil {
				t.Errorf("probe-%s: %s: %v", name, subject, err)
			}
		}
	}
}

func TestListKeys(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	list := func() string {
		t.Helper()
		var out strings.Builder
		if err := ListKeys(dir, &out); err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(out.String(), dir+"/", "")
	}
	if err := ListKeys(dir, io.Discard); err == nil || !strings.Contains(err.Error(), "there are no keys in "+dir) {
		t.Errorf("of nobody: %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a list makes the directory")
	}
	if err := Keys(KeysOptions{Dir: dir, Probes: []NamedNode{{"a.b", "vpn-1"}, {"c", "*"}}, NotifierUID: -1}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "notifier", "notifier.nk")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, dir)
	key := map[string]string{}
	s, err := readSettings(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Members {
		key[m.Identity] = m.Key
	}
	fields := func(line string) string { return strings.Join(strings.Fields(line), " ") }
	var have []string
	for line := range strings.Lines(list()) {
		have = append(have, fields(line))
	}
	equal(t, "list", []string{
		"the broker listens on 0.0.0.0:4222, stores in /data, TLS off",
		"IDENTITY KIND ACCOUNT NODE PUBLIC KEY FILE",
		"hooks-provisioner hooks-provisioner HOOKS - " + key["hooks-provisioner"] + " provision/hooks-provisioner.nk",
		"notifier notifier HOOKS - " + key["notifier"] + " moved away",
		"operator operator HOOKS - " + key["operator"] + " operator/operator.nk",
		"probe-a.b probe PROBE-a=2Eb vpn-1 " + key["probe-a.b"] + " probe-a.b/probe.nk",
		"probe-c probe PROBE-c * " + key["probe-c"] + " probe-c/probe.nk",
		"reader reader READERS - " + key["reader"] + " reader/reader.nk",
		"readers-provisioner readers-provisioner READERS - " + key["readers-provisioner"] + " provision/readers-provisioner.nk",
		"wg-provisioner wg-provisioner WG - " + key["wg-provisioner"] + " provision/wg-provisioner.nk",
	}, have)
	equal(t, "files", before, tree(t, dir))
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

	old, _ := oldBroker(t)
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
		"an old broker":               {ProvisionOptions{URL: "nats://" + old}, []string{"the broker is nats-server 2.9.10: 2.11 or newer is needed: upgrade it"}},
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
