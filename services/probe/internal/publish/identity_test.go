package publish_test

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
)

// TestIdentityIsMadeOnce and kept: readers' keyrings name it.
func TestIdentityIsMadeOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "probe.nk")
	made, err := publish.LoadIdentity(path, true)
	if err != nil || !made.Made {
		t.Fatalf("made: %v, %v", made.Made, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v, want mode 600", info.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("beside the key file: %v, %v", entries, err)
	}
	for _, mayMake := range []bool{true, false} {
		kept, err := publish.LoadIdentity(path, mayMake)
		if err != nil || kept.Made || kept.Public != made.Public || !kept.Key.Equal(made.Key) {
			t.Errorf("read again: %s made %v, %v, want %s", kept.Public, kept.Made, err, made.Public)
		}
	}
	// The public part that is told to others is the one that verifies.
	public, err := events.ParsePublicKey(made.Public)
	if err != nil || !public.Equal(made.Key.Public().(ed25519.PublicKey)) {
		t.Errorf("public key %s: %v", made.Public, err)
	}
}

func TestIdentityErrors(t *testing.T) {
	t.Parallel()
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	accountSeed, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		text *string
		want string
	}{
		"missing":           {nil, "no such file"},
		"empty":             {new(""), "holds no nkey seed"},
		"something else":    {new("s3cret-of-somebody"), "holds no nkey seed"},
		"a mistyped seed":   {new("SU" + strings.Repeat("A", 56)), "holds no nkey seed"},
		"an account's seed": {new(string(accountSeed)), "holds no user's seed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "probe.nk")
			if tt.text != nil {
				if err := os.WriteFile(path, []byte(*tt.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			id, err := publish.LoadIdentity(path, tt.text != nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v, want the path and %q", err, tt.want)
			}
			if tt.text != nil && *tt.text != "" && strings.Contains(err.Error(), *tt.text) {
				t.Errorf("error %q quotes the file", err)
			}
			if strings.Count(err.Error(), path) != 1 {
				t.Errorf("error %q names the path twice", err)
			}
			if id.Key != nil {
				t.Error("there is a key")
			}
		})
	}
	if _, err := publish.LoadIdentity(filepath.Join(t.TempDir(), "missing", "probe.nk"), true); err == nil {
		t.Error("a key was made in a directory that does not exist")
	}
}
