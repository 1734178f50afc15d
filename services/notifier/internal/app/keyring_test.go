package app

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

// signer is a probe's key: its line in a keyring, and an event that it signed.
type signer struct{ line, signature string }

func TestKeyringIsReadAgain(t *testing.T) {
	t.Parallel()
	_, body := (&probe{t: t}).connected("alice") // of node vpn-1
	newSigner := func() signer {
		key := privateKey(t, newSeed(t))
		p := &probe{t: t, key: key}
		return signer{"vpn-1 " + p.public() + "\n", events.Sign(body, key)}
	}
	a, b := newSigner(), newSigner()
	path := filepath.Join(t.TempDir(), "keyring")
	const refused, again = "keyring is not taken, the keys it had before still count", "keyring read again"

	synctest.Test(t, func(t *testing.T) {
		write(t, path, a.line)
		l := &logs{}
		k, err := openKeyring(path, l.logger())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.watch(ctx) }()

		for _, step := range []struct {
			name           string
			change         func()
			a, b           bool // whose signature counts afterwards
			refused, again int  // how often the log said so, in all
		}{
			{"nothing changes", func() {}, true, false, 0, 0},
			{"a key is added", func() { write(t, path, a.line+b.line) }, true, true, 0, 1},
			{"a line is wrong", func() { write(t, path, "vpn-1 U\n") }, true, true, 1, 1},
			{"the file is emptied", func() { write(t, path, "") }, true, true, 2, 1},
			{"the file is removed", func() { _ = os.Remove(path) }, true, true, 3, 1},
			{"the file is as it was", func() { write(t, path, a.line+b.line) }, true, true, 3, 2},
			{"a directory takes its place", func() { _ = errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, true, true, 4, 2},
			{"the first key is taken out", func() { _ = os.Remove(path); write(t, path, b.line) }, false, true, 4, 3},
			{"it is written without a change", func() { write(t, path, b.line) }, false, true, 4, 3},
		} {
			step.change()
			time.Sleep(3*keyringInterval + 1) // each thing is said once, however often it is seen
			synctest.Wait()
			for _, s := range []struct {
				name   string
				signer signer
				counts bool
			}{{"first", a, step.a}, {"second", b, step.b}} {
				_, err := k.verify(body, s.signer.signature)
				if (err == nil) != s.counts || err != nil && !errors.Is(err, events.ErrUnverified) {
					t.Errorf("%s: the %s key's signature: %v", step.name, s.name, err)
				}
			}
			if have := len(l.records(t, refused)); have != step.refused {
				t.Errorf("%s: refused %d times, want %d", step.name, have, step.refused)
			}
			if have := len(l.records(t, again)); have != step.again {
				t.Errorf("%s: read again %d times, want %d", step.name, have, step.again)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
}

// Who puts a seed into the keyring has made a mistake that must not go on into a log.
func TestKeyringErrorShowsNoSeed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keyring")
	seed := string(newSeed(t))
	write(t, path, "* "+seed+"\n")
	_, err := openKeyring(path, nil)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("error %v", err)
	}
	if err != nil && strings.Contains(err.Error(), seed) {
		t.Errorf("error %q shows the seed", err)
	}
}
