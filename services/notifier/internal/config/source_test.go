package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

const hooksWithFiles = `
hooks:
- {name: ops, url: "https://example.org", secret_file: secret}
- {name: chat, url_file: url, ca_file: ca.pem, template_file: template, basic_auth: {user: u, password_file: password}}
- {name: proxied, url: "https://example.org", proxy_file: proxy, client_cert_file: cert.pem, client_key_file: key.pem}
- {name: token, url: "https://example.org", bearer_file: bearer, secret_files: [secret, second]}
`

func filesOf(t *testing.T) (string, map[string]string) {
	t.Helper()
	files := map[string]string{
		"hooks.yaml": hooksWithFiles, "secret": secretA, "second": secretB, "url": "https://example.org/x", "ca.pem": certPEM, "template": "{}", "password": "one",
		"proxy": "http://proxy", "cert.pem": certPEM, "key.pem": keyPEM, "bearer": "one",
	}
	return writeFiles(t, files), files
}

func TestWhatIsReadTwiceIsTheSame(t *testing.T) {
	t.Parallel()
	path, files := filesOf(t)
	source := Source{File: path, URL: NewSecret("https://example.org"), SecretFile: filepath.Join(filepath.Dir(path), "second")}
	first, err := source.Read()
	if err != nil {
		t.Fatal(err)
	}
	second, err := source.Read()
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Hooks) != 5 || !reflect.DeepEqual(first, second) {
		t.Errorf("first %v\nthen %v", first, second)
	}
	if len(first.Files) != len(files) || !first.Files.Equal(first.Files.Again()) {
		t.Errorf("%d files, want %d, all unchanged", len(first.Files), len(files))
	}
}

func TestAChangeOfAnyFileIsSeen(t *testing.T) {
	t.Parallel()
	path, files := filesOf(t)
	source, dir := Source{File: path}, filepath.Dir(path)
	old := time.Now().Add(-time.Hour)
	for name, text := range files {
		set, err := source.Read()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		changed := func() bool { return !set.Files.Equal(set.Files.Again()) }
		for what, change := range map[string]func() error{
			"is away":                         func() error { return os.Remove(file) },
			"is empty":                        func() error { return os.WriteFile(file, nil, 0o600) },
			"has as many bytes and is as old": func() error { return os.WriteFile(file, []byte("?"+text[1:]), 0o600) },
			"is another file of its name": func() error {
				if err := os.WriteFile(file+".new", []byte("?"+text), 0o600); err != nil {
					return err
				}
				return os.Rename(file+".new", file)
			},
			"is a link to another file": func() error {
				if err := os.WriteFile(file+".other", []byte("?"+text), 0o600); err != nil {
					return err
				}
				_ = os.Remove(file)
				return os.Symlink(file+".other", file)
			},
		} {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			_ = os.Chtimes(file, old, old)
			if !changed() {
				t.Errorf("%s %s, and nothing is seen", name, what)
			}
			_ = os.Remove(file)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if changed() {
				t.Errorf("%s is as it was, and a change is seen", name)
			}
		}
	}
}

// What a file that is wrong names is watched, too: its correction may be there.
func TestFilesOfAWrongHooksFileAreWatched(t *testing.T) {
	t.Parallel()
	path := writeFiles(t, map[string]string{"hooks.yaml": "hooks:\n- {name: ops, url: 'https://example.org', secret_file: secret}\n"})
	set, err := Source{File: path}.Read()
	if err == nil || set.Hooks != nil {
		t.Fatalf("hooks %v, error %v", set.Hooks, err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "secret"), []byte(secretA), 0o600); err != nil {
		t.Fatal(err)
	}
	if set.Files.Equal(set.Files.Again()) {
		t.Error("the file that was missing is there, and nothing is seen")
	}
}

func TestAPipeIsNotReadAgain(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("https://example.org"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	path := writeFiles(t, map[string]string{"hooks.yaml": "hooks:\n- {name: ops, url_file: " + fmt.Sprintf("/dev/fd/%d", r.Fd()) + "}\n"})
	set, err := Source{File: path}.Read()
	if err != nil || len(set.Files) != 1 || !set.Files.Equal(set.Files.Again()) {
		t.Errorf("files %d, error %v", len(set.Files), err)
	}
}
