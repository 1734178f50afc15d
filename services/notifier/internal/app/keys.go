package app

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// KeysOptions says what Keys makes and for whom. What is empty stays as the last run left it.
type KeysOptions struct {
	Dir         string
	Node        string      // whose events the key of the probe without a name signs; "*", which is any, at first. An error where there is no such probe
	Probes      []NamedNode // beside those there are; none, and none there, is the one without a name
	Notifiers   []string    // names, likewise
	Remove      []string    // identities that are to lose their access
	Renew       []string    // identities that get another key
	Listen      string      // of the broker; 0.0.0.0:4222 at first
	Store       string      // of the broker, as it sees it; /data at first
	TLSCert     *string     // of the broker, as it sees it, and so are the next two; nil leaves it, an empty one takes it away
	TLSKey      *string
	TLSCA       *string
	NotifierUID int       // owner of what notifiers and the provisioner read; negative leaves it
	Out         io.Writer // is told what is new, removed, or not here, and what to do next; nil is nobody
}

// NamedNode is a probe and the node whose events it signs: when empty, the one it has, or Name.
type NamedNode struct{ Name, Node string }

// What Keys makes lies in one directory for each reader: that of an identity has its name, and its key the name of its role.
const (
	keysBroker    = "broker"
	keysProvision = "provision"
)

// settings are what a run leaves for the next one, in broker/keys.json. There is no secret in it.
type settings struct {
	Listen  string           `json:"listen"`
	Store   string           `json:"store"`
	TLS     broker.ServerTLS `json:"tls,omitzero"`
	Members []member         `json:"members"`
}

// member is somebody who may log in.
type member struct {
	Identity string `json:"identity"` // role, or role-name
	Role     string `json:"role"`
	Node     string `json:"node,omitempty"` // of a probe
	Key      string `json:"key"`            // public nkey
}

func identityOf(role, name string) string {
	if name == "" {
		return role
	}
	return role + "-" + name
}

// name is what tells it from others of its role; empty for the only one.
func (m member) name() string { return strings.TrimPrefix(strings.TrimPrefix(m.Identity, m.Role), "-") }

// dir is where its key is made.
func (m member) dir(root string) string {
	switch m.Role {
	case broker.WGProvisioner, broker.HooksProvisioner, broker.ReadersProvisioner:
		return filepath.Join(root, keysProvision)
	}
	return filepath.Join(root, m.Identity)
}

// file is where its key is made, and keyring what it verifies with.
func (m member) file(root string) string    { return broker.IdentityFile(m.dir(root), m.Role) }
func (m member) keyring(root string) string { return filepath.Join(m.dir(root), "keyring") }
func (m member) verifies() bool             { return m.Role == broker.Notifier || m.Role == broker.Reader }

// Keys makes the identities' keys and the configuration of a nats-server that knows them. It may run again and again: who is known stays known, with the same key,
// whether or not it is named again, until it is removed. A key may be moved to where it is used: what counts here is its public part, in broker/keys.json.
func Keys(o KeysOptions) error {
	if o.Out == nil {
		o.Out = io.Discard
	}
	if _, _, err := o.plan(); err != nil { // before anything is made
		return err
	}
	// Before the closed directories below it, which would close it too.
	if err := os.MkdirAll(filepath.Join(o.Dir, keysBroker), 0o755); err != nil {
		return err
	}
	// Two runs at once would each write what it knows, and forget what the other made.
	lock, err := os.Open(filepath.Join(o.Dir, keysBroker))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	before, s, err := o.plan()
	if err != nil {
		return err
	}
	for i := range s.Members {
		if err := o.ensure(&s.Members[i]); err != nil {
			return err
		}
	}
	conf, err := s.serverConfig().Render()
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	// These hold public keys only, and the broker may run as anybody. The first is the only place that knows of keys that were moved away, so it is whole at any time; the
	// second can be made again, and stays the same file, which may be mounted somewhere.
	if err := writePublic(settingsFile(o.Dir), append(text, '\n'), broker.WriteFile); err != nil {
		return err
	}
	old, _ := os.ReadFile(confFile(o.Dir)) // what cannot be read is written
	if err := writePublic(confFile(o.Dir), conf, os.WriteFile); err != nil {
		return err
	}
	if err := o.finish(s.Members); err != nil {
		return err
	}
	if err := o.remove(); err != nil {
		return err
	}
	o.tell(before, s, !bytes.Equal(old, conf))
	return nil
}

// plan returns what there is and what there will be, which has no mistake in it.
func (o KeysOptions) plan() (before, after settings, err error) {
	if before, err = readSettings(o.Dir); err != nil {
		return before, after, err
	}
	after = before
	after.Listen, after.Store = cmp.Or(o.Listen, after.Listen, "0.0.0.0:4222"), cmp.Or(o.Store, after.Store, "/data")
	for file, to := range map[*string]*string{&after.TLS.Cert: o.TLSCert, &after.TLS.Key: o.TLSKey, &after.TLS.CA: o.TLSCA} {
		if to != nil {
			*file = *to
		}
	}
	if after.Members, err = o.wanted(before.Members); err != nil {
		return before, after, err
	}
	return before, after, after.serverConfig().Check()
}

func settingsFile(dir string) string { return filepath.Join(dir, keysBroker, "keys.json") }
func confFile(dir string) string     { return filepath.Join(dir, keysBroker, "nats.conf") }

// readSettings returns what the last run left, or nothing at all before the first.
func readSettings(dir string) (s settings, err error) {
	file := settingsFile(dir)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if exists(confFile(dir)) {
			return s, fmt.Errorf("%s is missing, and nats.conf beside it is not: restore it, or remove that too, which takes the access of everyone whose key is not in %s, "+
				"and name every probe and notifier again", file, dir)
		}
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w: restore the file, or remove it and nats.conf and name every probe and notifier again", file, err)
	}
	return s, nil
}

// wanted returns who is to be known, in a fixed order.
func (o KeysOptions) wanted(members []member) ([]member, error) {
	known := map[string]member{}
	for _, m := range members {
		known[m.Identity] = m
	}
	add := func(role, name, node string) error {
		identity := identityOf(role, name)
		if !broker.ValidIdentity(identity) {
			return fmt.Errorf("%s name %q: use letters, digits, '.', '_' and '-'", role, name)
		}
		m := known[identity]
		m.Identity, m.Role, m.Node = identity, role, node
		known[identity] = m
		return nil
	}
	some := func(role string) bool {
		return slices.ContainsFunc(members, func(m member) bool { return m.Role == role })
	}
	var errs []error
	for _, role := range []string{broker.WGProvisioner, broker.HooksProvisioner, broker.ReadersProvisioner, broker.Operator, broker.Reader} {
		errs = append(errs, add(role, "", ""))
	}
	probes := slices.Clone(o.Probes)
	if only, there := known[broker.Probe]; there || len(probes) == 0 && !some(broker.Probe) {
		probes = append(probes, NamedNode{"", cmp.Or(o.Node, only.Node, events.AnyNode)})
	} else if o.Node != "" {
		errs = append(errs, fmt.Errorf("node %q: it would be the node of a probe without a name, and there is none: give a probe its node with -probe NAME=NODE: %s",
			o.Node, list(known, broker.Probe)))
	}
	for _, p := range probes {
		p.Node = cmp.Or(p.Node, known[identityOf(broker.Probe, p.Name)].Node, p.Name)
		if p.Node != events.AnyNode {
			if err := events.ValidateName(p.Node); err != nil {
				return nil, fmt.Errorf("node: %w", err)
			}
		}
		errs = append(errs, add(broker.Probe, p.Name, p.Node))
	}
	if len(o.Notifiers) == 0 && !some(broker.Notifier) {
		o.Notifiers = []string{""}
	}
	for _, name := range o.Notifiers {
		errs = append(errs, add(broker.Notifier, name, ""))
	}
	for _, identity := range o.Remove {
		m, there := known[identity]
		if !there || m.Role != broker.Probe && m.Role != broker.Notifier {
			errs = append(errs, fmt.Errorf("remove %q: no probe or notifier is that, and nobody else can be removed: %s", identity, list(known, broker.Probe, broker.Notifier)))
		}
		delete(known, identity)
	}
	for _, identity := range o.Renew {
		m, there := known[identity]
		if !there {
			errs = append(errs, fmt.Errorf("renew %q: there is no such identity: %s", identity, list(known)))
		}
		m.Key = ""
		known[identity] = m
	}
	wanted := slices.SortedFunc(maps.Values(known), func(a, b member) int { return cmp.Compare(a.Identity, b.Identity) })
	return wanted, errors.Join(errs...)
}

// list names those who have one of these roles; no role is any.
func list(known map[string]member, roles ...string) string {
	var names []string
	for identity, m := range known {
		if len(roles) == 0 || slices.Contains(roles, m.Role) {
			names = append(names, identity)
		}
	}
	slices.Sort(names)
	return "there are " + cmp.Or(strings.Join(names, ", "), "none")
}

// ensure makes an identity's key, unless it has one: in its file, or moved to where it is used.
func (o KeysOptions) ensure(m *member) error {
	dir := m.dir(o.Dir)
	file := m.file(o.Dir)
	renew := slices.Contains(o.Renew, m.Identity)
	if renew {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_, err := os.Stat(file)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && m.Key != "" {
		fmt.Fprintf(o.Out, "%s: its key was moved away from %s, or is lost (-renew %[1]s makes another)\n", m.Identity, file)
		return nil
	}
	if err := closeDir(dir); err != nil {
		return err
	}
	keys, err := broker.EnsureIdentities(dir, m.Role)
	if err != nil {
		return err
	}
	if missing {
		fmt.Fprintf(o.Out, "%s: new key in %s\n", m.Identity, file)
	}
	m.Key = keys[m.Role]
	return nil
}

func (s settings) serverConfig() broker.ServerConfig {
	c := broker.ServerConfig{Listen: s.Listen, StoreDir: s.Store, TLS: s.TLS}
	for _, m := range s.Members {
		switch m.Role {
		case broker.WGProvisioner:
			c.WGProvisioner = m.Key
		case broker.HooksProvisioner:
			c.HooksProvisioner = m.Key
		case broker.ReadersProvisioner:
			c.ReadersProvisioner = m.Key
		case broker.Operator:
			c.Operators = append(c.Operators, m.Key)
		case broker.Reader:
			c.Readers = append(c.Readers, m.Key)
		case broker.Notifier:
			c.Notifiers = append(c.Notifiers, m.Key)
		case broker.Probe:
			p := broker.ProbeUser{Name: m.name(), Key: m.Key}
			if m.Node != events.AnyNode {
				p.Node = m.Node
			}
			c.Probes = append(c.Probes, p)
		}
	}
	return c
}

// keyringOf says whose signatures count.
func keyringOf(members []member) (ring []broker.KeyringEntry) {
	for _, m := range members {
		if m.Role == broker.Probe {
			ring = append(ring, broker.KeyringEntry{Node: m.Node, Key: m.Key})
		}
	}
	return ring
}

// finish writes the keyring for everyone who verifies, and gives notifiers and provisioners what is theirs.
func (o KeysOptions) finish(members []member) error {
	ring := keyringOf(members)
	for _, m := range members {
		dir := m.dir(o.Dir)
		if m.verifies() {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if err := broker.WriteKeyring(m.keyring(o.Dir), ring); err != nil {
				return err
			}
		}
		if o.NotifierUID >= 0 && (m.Role == broker.Notifier || filepath.Base(dir) == keysProvision) && exists(dir) {
			if err := chown(dir, o.NotifierUID); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove takes the files of removed identities away. Only what Keys makes is removed, and the directory where nothing else is in it.
func (o KeysOptions) remove() error {
	for _, identity := range o.Remove {
		role, _, _ := strings.Cut(identity, "-")
		m := member{Identity: identity, Role: role}
		for _, file := range []string{m.file(o.Dir), m.keyring(o.Dir)} {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		_ = os.Remove(m.dir(o.Dir)) // fails where it is not empty or a volume of its own, and that is well
		fmt.Fprintf(o.Out, "%s: removed\n", identity)
	}
	return nil
}

// writePublic writes a file that everybody may read, where it is not so already.
func writePublic(file string, content []byte, write func(string, []byte, fs.FileMode) error) error {
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return write(file, content, 0o644)
}

// closeDir closes a directory to others: a volume of a container engine begins open.
func closeDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm() == 0o700 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// chown gives a directory and the files in it to a user and the group of the same number.
func chown(dir string, uid int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Lchown(filepath.Join(dir, e.Name()), uid, uid); err != nil {
			return err
		}
	}
	return os.Lchown(dir, uid, uid)
}
