package compose

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// makeBaseImages makes what stands in for images of a registry.
func (e *engine) makeBaseImages(ctx context.Context, t *testing.T, root string) {
	t.Helper()
	env := func(name string) string { return goCommand(ctx, t, e, root, "env", name) }
	goroot, modcache, cache := env("GOROOT"), env("GOMODCACHE"), env("GOCACHE")
	compiled := map[string]bool{}
	for module, program := range map[string]string{"services/notifier": ".", "services/probe": ".", "lab": "./compose/demo"} {
		for file := range strings.FieldsSeq(goCommand(ctx, t, e, filepath.Join(root, module), "list", "-trimpath", "-export", "-deps", "-f", "{{.Export}}", program)) {
			compiled[strings.TrimSuffix(filepath.Base(file), "-d")] = true
		}
	}
	e.importImage(ctx, t, "golang:1.26", func(a *archive) error {
		return errors.Join(goImage(ctx, a, e, root, goroot, modcache), a.buildCache(cache, "/.cache/go-build", compiled))
	}, "ENV PATH=/usr/local/go/bin:/usr/bin:/bin", "ENV GOPATH=/go", "ENV GOTOOLCHAIN=local", "ENV GOPROXY=off", "ENV GOFLAGS=-mod=readonly")

	const server = "github.com/nats-io/nats-server/v2"
	services := filepath.Join(root, "services/notifier")
	version := goCommand(ctx, t, e, services, "list", "-m", "-f", "{{.Version}}", server)
	binary := filepath.Join(e.dir, "nats-server")
	goCommand(ctx, t, e, services, "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, server)
	e.importImage(ctx, t, "nats:"+strings.TrimPrefix(version, "v"), func(a *archive) error { return a.file(binary, "/nats-server") },
		`ENTRYPOINT ["/nats-server"]`, `CMD ["--config","nats-server.conf"]`, "EXPOSE 4222 8222 6222")
}

// goCommand runs the go command as for an image, and returns what it prints.
func goCommand(ctx context.Context, t *testing.T, e *engine, dir string, args ...string) string {
	t.Helper()
	c := e.command(ctx, "go", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := c.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = exit.Stderr
		}
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (e *engine) importImage(ctx context.Context, t *testing.T, name string, fill func(*archive) error, changes ...string) {
	t.Helper()
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	r, w := io.Pipe()
	go func() {
		runtime.LockOSThread() // see command
		defer runtime.UnlockOSThread()
		a := &archive{w: tar.NewWriter(w), made: map[string]bool{}}
		err := fill(a)
		w.CloseWithError(errors.Join(err, a.w.Close()))
	}()
	e.dockerIn(ctx, t, r, append(args, "-", name)...)
}

// goImage has Go without what only its own tests and builds need, the modules of all images in its cache, and of the system what the Dockerfiles use.
func goImage(ctx context.Context, a *archive, e *engine, root, goroot, modcache string) error {
	for _, dir := range []string{"bin", "pkg", "src", "lib"} {
		if err := a.tree(filepath.Join(goroot, dir), filepath.Join("/usr/local/go", dir), func(path string) bool {
			return strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "/testdata") || strings.HasSuffix(path, "/src/cmd")
		}); err != nil {
			return err
		}
	}
	for _, file := range []string{"go.env", "VERSION"} {
		if err := a.file(filepath.Join(goroot, file), filepath.Join("/usr/local/go", file)); err != nil {
			return err
		}
	}
	for _, module := range []string{"services/notifier", "services/probe", "lab"} {
		if err := modules(ctx, a, e, filepath.Join(root, module), modcache); err != nil {
			return err
		}
	}
	for _, program := range []string{"/bin/sh", "/bin/mkdir"} {
		if err := a.program(ctx, e, program); err != nil {
			return err
		}
	}
	a.dir("/tmp")
	return a.file("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt")
}

// modules adds what the module in dir needs to the image's module cache.
func modules(ctx context.Context, a *archive, e *engine, dir, cache string) error {
	c := e.command(ctx, "go", "mod", "download", "-json")
	c.Dir = dir
	c.Env = append(os.Environ(), "GOWORK=off")
	out, err := c.Output()
	if err != nil {
		return fmt.Errorf("go mod download in %s: %w", dir, err)
	}
	for list := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Info, GoMod, Zip string }
		if err := list.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for _, file := range []string{m.Info, m.GoMod, m.Zip, m.Zip + "hash"} {
			name, err := filepath.Rel(cache, file)
			if err != nil {
				return err
			}
			if err := a.file(file, filepath.Join("/go/pkg/mod", name)); err != nil {
				return err
			}
		}
	}
}

// buildCache adds those entries of Go's build cache that lead to the outputs, so that an image's build need not compile once more what this machine
// has compiled. An entry is a file named after what was done, NAME-a, with the name of its output, which is in NAME-d (cmd/go/internal/cache). Where that
// is no longer so, builds take longer.
func (a *archive) buildCache(from, to string, outputs map[string]bool) error {
	entries, err := filepath.Glob(filepath.Join(from, "??", "*-a"))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		text, err := os.ReadFile(entry)
		if err != nil {
			return err
		}
		fields := strings.Fields(string(text)) // v1, what was done, output, size, time
		if len(fields) != 5 || !outputs[fields[2]] {
			continue
		}
		output := filepath.Join(from, fields[2][:2], fields[2]+"-d")
		for _, file := range []string{entry, output} {
			name, err := filepath.Rel(from, file)
			if err != nil {
				return err
			}
			if err := a.file(file, filepath.Join(to, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// archive is the content of an image.
type archive struct {
	w    *tar.Writer
	made map[string]bool // paths that are there
}

// tree adds a directory, without what skip says.
func (a *archive) tree(from, to string, skip func(path string) bool) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case skip(path) && d.IsDir():
			return fs.SkipDir
		case skip(path) || d.IsDir():
			return nil
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return a.file(path, filepath.Join(to, name))
	})
}

// program adds an executable and the libraries that it is linked with.
func (a *archive) program(ctx context.Context, e *engine, path string) error {
	out, err := e.command(ctx, "ldd", path).Output()
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		if err := a.file(word, word); err != nil {
			return err
		}
	}
	return a.file(path, path)
}

// file adds a file, with what a symbolic link leads to in its place.
func (a *archive) file(from, to string) error {
	if a.made[to] {
		return nil
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	a.made[to] = true
	a.dir(filepath.Dir(to))
	if err := a.w.WriteHeader(&tar.Header{Name: to, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		return err
	}
	_, err = io.Copy(a.w, f)
	return err
}

// dir adds a directory and those above it. What goes wrong with it the next file tells.
func (a *archive) dir(name string) {
	if name == "/" || a.made[name] {
		return
	}
	a.made[name] = true
	a.dir(filepath.Dir(name))
	_ = a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
}
