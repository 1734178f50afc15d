package app

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// KeysOptions says what Keys makes and for whom. What is empty stays as the last run left it.
type KeysOptions struct {
	Dir         string
	Node        string      // whose events the key of the probe without a name signs; "*", which is any, at first
	Probes      []NamedNode // beside those there are; none, and none there, is the one without a name
	Notifiers   []string    // names, likewise
	Remove      []string    // identities that are to lose their access
	Renew       []string    // identities that get another key
	Listen      string      // of the broker; 0.0.0.0:4222 at first
	Store       string      // of the broker, as it sees it; /data at first
	TLS         broker.ServerTLS
	NotifierUID int       // owner of what notifiers and the provisioner read; negative leaves it
	Out         io.Writer // is told what is new, removed, or not here; nil is nobody
}

// NamedNode is a probe and the node whose events it signs.
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

// Keys makes the identities' keys and the configuration of a nats-server that knows them. It may run again and again: who is known stays known, with the same key,
// whether or not it is named again, until it is removed. A key may be moved to where it is used: what counts here is its public part, in broker/keys.json.
func Keys(o KeysOptions) error {
	if o.Out == nil {
		o.Out = io.Discard
	}
	// Before the closed directories below it, which would close it too.
	if err := os.MkdirAll(filepath.Join(o.Dir, keysBroker), 0o755); err != nil {
		return err
	}
	file := filepath.Join(o.Dir, keysBroker, "keys.json")
	s, err := readSettings(file)
	if err != nil {
		return err
	}
	s.Listen, s.Store = cmp.Or(o.Listen, s.Listen, "0.0.0.0:4222"), cmp.Or(o.Store, s.Store, "/data")
	s.TLS = cmp.Or(o.TLS, s.TLS)
	if s.Members, err = o.wanted(s.Members); err != nil {
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
	// These hold public keys only, and the broker may run as anybody.
	if err := errors.Join(writePublic(file, append(text, '\n')), writePublic(filepath.Join(o.Dir, keysBroker, "nats.conf"), conf)); err != nil {
		return err
	}
	if err := o.finish(s.Members); err != nil {
		return err
	}
	return o.remove()
}

func readSettings(file string) (s settings, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w: restore the file, or remove it and name every probe and notifier again", file, err)
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
		identity := role
		if name != "" {
			identity += "-" + name
		}
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
	if only, there := known[broker.Probe]; len(o.Probes) == 0 && (there || !some(broker.Probe)) {
		o.Probes = []NamedNode{{"", cmp.Or(o.Node, only.Node, events.AnyNode)}}
	}
	for _, p := range o.Probes {
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
			errs = append(errs, fmt.Errorf("remove %q: there is no such probe or notifier: %s", identity, listMembers(known)))
		}
		delete(known, identity)
	}
	for _, identity := range o.Renew {
		m, there := known[identity]
		if !there {
			errs = append(errs, fmt.Errorf("renew %q: there is no such identity: %s", identity, listMembers(known)))
		}
		m.Key = ""
		known[identity] = m
	}
	list := make([]member, 0, len(known))
	for _, m := range known {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b member) int { return cmp.Compare(a.Identity, b.Identity) })
	return list, errors.Join(errs...)
}

func listMembers(known map[string]member) string {
	var list []string
	for identity := range known {
		list = append(list, identity)
	}
	slices.Sort(list)
	return "there are " + strings.Join(list, ", ")
}

// ensure makes an identity's key, unless it has one: in its file, or moved to where it is used.
func (o KeysOptions) ensure(m *member) error {
	dir := m.dir(o.Dir)
	file := broker.IdentityFile(dir, m.Role)
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

// finish writes the keyring for everyone who verifies, and gives notifiers and provisioners what is theirs.
func (o KeysOptions) finish(members []member) error {
	var ring []broker.KeyringEntry
	for _, m := range members {
		if m.Role == broker.Probe {
			ring = append(ring, broker.KeyringEntry{Node: m.Node, Key: m.Key})
		}
	}
	for _, m := range members {
		dir := m.dir(o.Dir)
		if m.Role == broker.Notifier || m.Role == broker.Reader {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if err := broker.WriteKeyring(filepath.Join(dir, "keyring"), ring); err != nil {
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
		for _, file := range []string{broker.IdentityFile(m.dir(o.Dir), role), filepath.Join(m.dir(o.Dir), "keyring")} {
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
func writePublic(file string, content []byte) error {
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return os.WriteFile(file, content, 0o644)
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
