package names

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, s string) {
	t.Helper()
	// By a rename, as an editor does it: a write in place within one tick of the file system's clock would look like none.
	if err := os.WriteFile(path+".new", text(s), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := filepath.Join(dir, "names"), filepath.Join(dir, "wg0.conf")
	a, b := keys["%A"], keys["%B"]
	r := New([]string{first, second})
	if r.Changed() {
		t.Error("changed: files that are not there")
	}

	steps := []struct {
		name    string
		do      func()
		changed bool
		want    Book
		errs    []string // how they begin
	}{
		{
			name: "a file is missing at start",
			do: func() {
				write(t, second, "[Peer]\n# Name = bob\nPublicKey = %B\n[Peer]\n# Name = al\nPublicKey = %A\n")
			}, changed: true,
			want: Book{a: {Name: "al"}, b: {Name: "bob"}},
			errs: []string{first + ": cannot read names, correct the file or PROBE_NAMES: no such file"},
		},
		{
			name: "nothing changed",
			do:   func() {}, changed: false,
			want: Book{a: {Name: "al"}, b: {Name: "bob"}},
			errs: []string{first + ": cannot read"},
		},
		{
			name: "it appears, and the first file counts",
			do:   func() { write(t, first, "%A alice #staff\noops") }, changed: true,
			want: Book{a: {Name: "alice", Tags: []string{"staff"}}, b: {Name: "bob"}},
			errs: []string{first + ":2: "},
		},
		{
			name: "its content changes",
			do:   func() { write(t, first, "%A ALICE") }, changed: true,
			want: Book{a: {Name: "ALICE"}, b: {Name: "bob"}},
		},
		{
			name: "a file that vanishes keeps its names",
			do:   func() { os.Remove(first) }, changed: true,
			want: Book{a: {Name: "ALICE"}, b: {Name: "bob"}},
			errs: []string{first + ": cannot read"},
		},
		{
			name: "a directory in its place",
			do:   func() { os.Mkdir(first, 0o700) }, changed: true,
			want: Book{a: {Name: "ALICE"}, b: {Name: "bob"}},
			errs: []string{first + ": cannot read names, correct the file or PROBE_NAMES: not a regular file"},
		},
		{
			name: "a FIFO in its place does not block",
			do:   func() { os.Remove(first); unix.Mkfifo(first, 0o600) }, changed: true,
			want: Book{a: {Name: "ALICE"}, b: {Name: "bob"}},
			errs: []string{first + ": cannot read names, correct the file or PROBE_NAMES: not a regular file"},
		},
		{
			name: "a file beyond the bound",
			do: func() {
				os.Remove(first)
				write(t, first, "")
				if err := os.Truncate(first, maxFileBytes+1); err != nil {
					t.Fatal(err)
				}
			}, changed: true,
			want: Book{a: {Name: "ALICE"}, b: {Name: "bob"}},
			errs: []string{first + ": cannot read names, correct the file or PROBE_NAMES: more than 16 MiB"},
		},
		{
			name: "it is back, with another name",
			do:   func() { write(t, first, "%A Alice") }, changed: true,
			want: Book{a: {Name: "Alice"}, b: {Name: "bob"}},
		},
		{
			name: "empty now",
			do:   func() { write(t, first, "") }, changed: true,
			want: Book{a: {Name: "al"}, b: {Name: "bob"}},
		},
	}
	for _, s := range steps {
		s.do()
		if got := r.Changed(); got != s.changed {
			t.Errorf("%s: changed = %v", s.name, got)
		}
		got, errs := r.Load()
		if r.Changed() {
			t.Errorf("%s: changed again after Load", s.name)
		}
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("%s: book (-want +got):\n%s", s.name, diff)
		}
		if len(errs) != len(s.errs) {
			t.Errorf("%s: errors %v, want %d", s.name, errs, len(s.errs))
			continue
		}
		for i, err := range errs {
			if !strings.HasPrefix(err.Error(), s.errs[i]) {
				t.Errorf("%s: error %q, want %q", s.name, err, s.errs[i])
			}
		}
	}
}

func TestMissingFileIsNotExist(t *testing.T) {
	t.Parallel()
	_, errs := New([]string{filepath.Join(t.TempDir(), "names")}).Load()
	if len(errs) != 1 || !errors.Is(errs[0], fs.ErrNotExist) {
		t.Errorf("errors = %v", errs)
	}
}
