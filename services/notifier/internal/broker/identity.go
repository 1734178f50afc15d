package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/nats-io/nkeys"
)

// The identities of a broker. An identity is an nkey user; its seed is the file that IdentityFile names.
const (
	WGProvisioner      = "wg-provisioner"      // account WG: creates the event stream and the peers' bucket
	Probe              = "probe"               // an account of its own: publishes events and the peers' state
	HooksProvisioner   = "hooks-provisioner"   // account HOOKS: creates the mirrors and the notifier's streams
	Notifier           = "notifier"            // account HOOKS: consumes the mirror
	Operator           = "operator"            // account HOOKS: reads dead letters and attempts, asks for replays
	ReadersProvisioner = "readers-provisioner" // account READERS: creates its mirrors
	Reader             = "reader"              // account READERS: sees live events, reads its mirrors
)

// Identities are the identities of an embedded broker, in the order they are made.
func Identities() []string {
	return []string{WGProvisioner, Probe, HooksProvisioner, Notifier, Operator, ReadersProvisioner, Reader}
}

// IdentityFile is the path of an identity's seed under dir.
func IdentityFile(dir, name string) string { return filepath.Join(dir, name+".nk") }

// InboxPrefix is the prefix an identity's inboxes must have: it may subscribe under no other. Identities of one role share it.
func InboxPrefix(role string) string { return "_INBOX_" + role }

// identityName keeps an identity's file inside its directory.
var identityName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*$`)

// ValidIdentity reports whether a name can be an identity's.
func ValidIdentity(name string) bool { return identityName.MatchString(name) }

// EnsureIdentities makes an nkey user for each name that has no file in dir yet and returns the public key (U…) of every name. Existing files are
// read and never written. dir is made with mode 0700 and must not be open to others; files have mode 0600 and appear whole or not at all.
func EnsureIdentities(dir string, names ...string) (map[string]string, error) {
	if err := ensureDir(dir); err != nil {
		return nil, err
	}
	keys := make(map[string]string, len(names))
	for _, name := range names {
		if !ValidIdentity(name) {
			return nil, fmt.Errorf("identity name %q: use letters, digits, '.', '_' and '-'", name)
		}
		key, err := ensureIdentity(IdentityFile(dir, name))
		if err != nil {
			return nil, err
		}
		keys[name] = key
	}
	return keys, nil
}

// ensureDir makes dir private to its owner, or checks that it is.
func ensureDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory %s: %w: create it for the user who runs this service, or name another", dir, cause(err))
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory %s: %w", dir, cause(err))
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("directory %s holds keys and is open to others (mode %04o): run chmod 0700 %s", dir, mode, dir)
	}
	return nil
}

// ensureIdentity returns the public key of the user whose seed is in path, and makes the seed first where there is none.
func ensureIdentity(path string) (string, error) {
	key, err := PublicKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createIdentity(path)
	}
	return key, err
}

// PublicKey returns the public key (U…) of the user whose seed is in path.
func PublicKey(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("identity %s: %w: `notifier keys` makes it", path, cause(err))
	}
	if err != nil {
		return "", fmt.Errorf("identity %s: %w: make it readable for the user who runs this service", path, cause(err))
	}
	defer clear(text)
	pair, err := nkeys.FromSeed(bytes.TrimSpace(text))
	if err != nil {
		// The cause is left out: it may quote what should be a secret.
		return "", fmt.Errorf("identity %s: not an nkey seed: restore the file, or remove it to have a new one made", path)
	}
	defer pair.Wipe()
	return userKey(path, pair)
}

func createIdentity(path string) (string, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", fmt.Errorf("identity %s: %w", path, err)
	}
	defer pair.Wipe()
	seed, err := pair.Seed()
	if err != nil {
		return "", fmt.Errorf("identity %s: %w", path, err)
	}
	defer clear(seed)
	if err := WriteFile(path, append(seed, '\n'), 0o600); err != nil {
		return "", err
	}
	return userKey(path, pair)
}

func userKey(path string, pair nkeys.KeyPair) (string, error) {
	key, err := pair.PublicKey()
	if err != nil {
		return "", fmt.Errorf("identity %s: %w", path, err)
	}
	if !nkeys.IsValidPublicUserKey(key) {
		return "", fmt.Errorf("identity %s: the seed of something else than a user: remove the file to have a new one made", path)
	}
	return key, nil
}

// KeyringEntry says which key signs the events of a node.
type KeyringEntry struct {
	Node string // "*" is any node
	Key  string // public nkey, U…
}

// WriteKeyring makes the file at path hold exactly these entries, one `node key` line each, as events.ParseKeyring reads them. A file that does already is
// left alone. Keys that are not listed lose their trust, which is what a replaced identity needs.
func WriteKeyring(path string, entries []KeyringEntry) error {
	var b strings.Builder
	b.WriteString("# generated: keys that sign events, one line each: node (or *) and public nkey\n")
	for _, e := range entries {
		fmt.Fprintf(&b, "%s %s\n", e.Node, e.Key)
	}
	return writeIfChanged(path, []byte(b.String()))
}

func writeIfChanged(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return WriteFile(path, content, 0o600)
}

// WriteFile puts content at path, whole or not at all: a temporary file beside it is synced and renamed, then the directory is synced, so that
// a power cut leaves no empty key behind.
func WriteFile(path string, content []byte, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w: check that the directory is writable and has room", path, cause(err))
		}
	}()
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600 until it is whole
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once renamed, and that is well
	if _, err := tmp.Write(content); err != nil {
		tmp.Close()
		return err
	}
	if err := errors.Join(tmp.Chmod(mode), tmp.Sync()); err != nil {
		tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// cause strips the path that the os package repeats in its errors: ours name it already.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
