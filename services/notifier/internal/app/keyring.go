package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
)

// keyringInterval is how often the keyring file is read for a change: a new probe's key counts without a restart.
const keyringInterval = 2 * time.Second

// keyring is the file that says whose signatures count, as it last was whole.
type keyring struct {
	path string
	log  *slog.Logger
	ring atomic.Pointer[events.Keyring]
	text []byte // what ring was made of

	known consume.Known
}

// openKeyring reads the file for the first time. Without a keyring nothing can be verified, so an error here is final.
func openKeyring(path string, log *slog.Logger) (*keyring, error) {
	k := &keyring{path: path, log: log}
	if _, err := k.load(); err != nil {
		return nil, fmt.Errorf("%w: write a line `node U…` for each probe (the probe prints it when it starts), or set NOTIFIER_VERIFY=false", err)
	}
	return k, nil
}

// load reads the file and tells whether its keys are new. A file without a key is an error: it was truncated and its text is still to come, and taking it would
// bury every event that arrives meanwhile.
func (k *keyring) load() (changed bool, err error) {
	text, err := os.ReadFile(k.path)
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return false, fmt.Errorf("keyring %s (NOTIFIER_KEYRING): %w", k.path, err)
	}
	if k.text != nil && bytes.Equal(text, k.text) {
		return false, nil
	}
	ring, err := events.ParseKeyring(string(text))
	if err == nil && len(ring) == 0 {
		err = errors.New("it has no key")
	}
	if err != nil {
		return false, fmt.Errorf("keyring %s (NOTIFIER_KEYRING): %w", k.path, err)
	}
	k.ring.Store(&ring)
	k.text = text
	return true, nil
}

// verify is safe for concurrent use.
func (k *keyring) verify(body []byte, signature string) (*events.Event, error) {
	return k.known.Read(body, signature, k.ring.Load())
}

// watch takes the file's changes until ctx ends. While the file is wrong or away, the keys it had before still count, which is said once.
func (k *keyring) watch(ctx context.Context) error {
	ticks := time.NewTicker(keyringInterval)
	defer ticks.Stop()
	wrong := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		changed, err := k.load()
		switch {
		case err != nil:
			if err.Error() != wrong {
				wrong = err.Error()
				k.log.Error("keyring is not taken, the keys it had before still count", "error", err)
			}
		case changed || wrong != "":
			wrong = ""
			k.log.Info("keyring read again", "path", k.path)
		}
	}
}
