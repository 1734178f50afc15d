package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

// keyringInterval is how often the keyring file is looked at for a change: a new probe's key counts without a restart.
const keyringInterval = 2 * time.Second

// keyring is the file that says whose signatures count, as it last was whole.
type keyring struct {
	path string
	log  *slog.Logger
	ring atomic.Pointer[events.Keyring]
	read os.FileInfo // what ring was read from
}

// openKeyring reads the file for the first time. Without a keyring nothing can be verified, so an error here is final.
func openKeyring(path string, log *slog.Logger) (*keyring, error) {
	k := &keyring{path: path, log: log}
	if err := k.load(); err != nil {
		return nil, fmt.Errorf("%w: write a line `node U…` for each probe (the probe prints it when it starts), or set NOTIFIER_VERIFY=false", err)
	}
	return k, nil
}

func (k *keyring) load() error {
	info, err := os.Stat(k.path)
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	text, err := os.ReadFile(k.path)
	if err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	k.read = info
	ring, err := events.ParseKeyring(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", k.path, err)
	}
	k.ring.Store(&ring)
	return nil
}

// verify is safe for concurrent use.
func (k *keyring) verify(body []byte, signature string) (*events.Event, error) {
	return events.Verify(body, signature, *k.ring.Load())
}

// watch reads the file again when it is another one, until ctx ends. A file that is wrong changes nothing.
func (k *keyring) watch(ctx context.Context) error {
	ticks := time.NewTicker(keyringInterval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		info, err := os.Stat(k.path)
		if err != nil || os.SameFile(info, k.read) && info.ModTime().Equal(k.read.ModTime()) && info.Size() == k.read.Size() {
			continue // while it is being replaced it may be away
		}
		if err := k.load(); err != nil {
			k.log.Error("the keyring is not taken, the keys that were read before still count", "error", err)
			continue
		}
		k.log.Info("keyring read again", "path", k.path)
	}
}
