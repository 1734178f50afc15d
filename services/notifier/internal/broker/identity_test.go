package broker

import (
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/pkg/events"
)

// readTree returns the content and mode of every file under the named entries of dir.
func readTree(t *testing.T, dir string, entries ...string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, entry := range entries {
		err := filepath.WalkDir(filepath.Join(dir, entry), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			files[path] = info.Mode().String() + " " + info.ModTime().String() + " " + string(text)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// chmod makes a test directory as private as the state directory must be; one that does not exist is the case's own matter.
func chmod(t testing.TB, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); err == nil {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

func chanSeq[T any](c <-chan T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range c {
			if !yield(v) {
				return
			}
		}
	}
}

func TestEnsureIdentities(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "identities")
	first, err := EnsureIdentities(dir, "probe", "notifier")
	if err != nil {
		t.Fatal(err)
	}
	before := readTree(t, dir, ".")
	second, err := EnsureIdentities(dir, "probe", "notifier", "probe-vpn-2.example")
	if err != nil {
		t.Fatal(err)
	}
	after := readTree(t, dir, ".")

	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	added := IdentityFile(dir, "probe-vpn-2.example")
	if !strings.HasPrefix(after[added], "-rw------- ") {
		t.Errorf("mode of %s: %.10s", added, after[added])
	}
	delete(after, added)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("adding one touched the others (-before +after):\n%s", diff)
	}
	if first["probe"] != second["probe"] || first["probe"] == first["notifier"] {
		t.Errorf("keys %v, then %v", first, second)
	}
	for name, key := range second {
		if !nkeys.IsValidPublicUserKey(key) {
			t.Errorf("%s: %q", name, key)
		}
	}
}

func TestEnsureIdentitiesErrors(t *testing.T) {
	t.Parallel()
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		content, identity string
		mode              os.FileMode
		want              []string
	}{
		"a seed cut short":      {"SUACSECRET", "probe", 0o700, []string{"probe.nk", "not an nkey seed", "remove it"}},
		"an account's seed":     {string(seed), "probe", 0o700, []string{"probe.nk", "something else than a user", "remove the file"}},
		"a directory for all":   {"", "probe", 0o755, []string{"open to others", "0755", "chmod 0700"}},
		"a name with a path":    {"", "../probe", 0o700, []string{`"../probe"`}},
		"a name of nothing":     {"", "", 0o700, []string{`""`}},
		"a file that is hidden": {"", ".probe", 0o700, []string{`".probe"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if tt.content != "" {
				if err := os.WriteFile(IdentityFile(dir, tt.identity), []byte(tt.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(dir, tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := EnsureIdentities(dir, tt.identity)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if tt.content != "" && strings.Contains(err.Error(), tt.content) {
				t.Errorf("error shows the seed: %q", err)
			}
		})
	}
}

func TestKeyringIsWhatEventsReads(t *testing.T) {
	t.Parallel()
	keys, err := EnsureIdentities(filepath.Join(t.TempDir(), "identities"), "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keyring")
	entries := []KeyringEntry{{Node: "*", Key: keys["a"]}, {Node: "vpn-1", Key: keys["b"]}}
	if err := WriteKeyring(path, entries); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.ParseKeyring(string(text)); err != nil {
		t.Errorf("%v in:\n%s", err, text)
	}
	before := readTree(t, path, ".")
	if err := WriteKeyring(path, entries); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, readTree(t, path, ".")); diff != "" {
		t.Errorf("an equal keyring was written again (-before +after):\n%s", diff)
	}
}
