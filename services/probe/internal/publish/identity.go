package publish

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nkeys"
)

// Identity is the key that proves where events come from.
type Identity struct {
	Public string // nkey, "U…"
	Key    ed25519.PrivateKey
	Made   bool // just now
}

// LoadIdentity reads a user's nkey seed from a file, or makes it with mode 0600 when it is missing and may be made. Errors never quote the file.
func LoadIdentity(path string, mayMake bool) (Identity, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && mayMake {
		return makeIdentity(path)
	}
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		err = pathErr.Err // it names the path, too
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Identity{}, fmt.Errorf("key file %s (NATS_NKEY_FILE): %w: `notifier keys` makes one, and the notifier does for the broker that it embeds", path, err)
	case errors.Is(err, fs.ErrPermission):
		return Identity{}, fmt.Errorf("key file %s: %w: the probe runs as user %d, who has to own it", path, err, os.Geteuid())
	case err != nil:
		return Identity{}, fmt.Errorf("key file %s: %w", path, err)
	}
	pair, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(text))))
	if err != nil {
		return Identity{}, fmt.Errorf("key file %s holds no nkey seed: it starts with SU and has 58 characters", path)
	}
	return identity(path, pair)
}

// makeIdentity writes a new seed, whole or not at all: a half-written one would stop every later start.
func makeIdentity(path string) (Identity, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return Identity{}, fmt.Errorf("make key: %w", err)
	}
	seed, err := pair.Seed()
	if err != nil {
		return Identity{}, fmt.Errorf("make key: %w", err)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".probe-*.nk") // has mode 0600
	if err != nil {
		return Identity{}, fmt.Errorf("key file %s: %w", path, err)
	}
	_, err = temp.Write(append(seed, '\n'))
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path)) // events are signed from now on: the key must outlast a power cut
	}
	if err != nil {
		return Identity{}, errors.Join(fmt.Errorf("key file %s: %w", path, err), os.Remove(temp.Name()))
	}
	id, err := identity(path, pair)
	id.Made = true
	return id, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func identity(path string, pair nkeys.KeyPair) (Identity, error) {
	public, err := pair.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return Identity{}, fmt.Errorf("key file %s holds no user's seed: it starts with SU", path)
	}
	seed, err := pair.Seed()
	if err != nil {
		return Identity{}, fmt.Errorf("key file %s: %w", path, err)
	}
	_, raw, err := nkeys.DecodeSeed(seed)
	if err != nil {
		return Identity{}, fmt.Errorf("key file %s holds no nkey seed", path)
	}
	return Identity{Public: public, Key: ed25519.NewKeyFromSeed(raw)}, nil
}
