// Package standin makes images that stand in for those of a registry: golang, of the toolchain that runs the test and the modules that it has, and nats, of the
// nats-server that the notifier embeds. Both have the paths and the entry points of the official images, so the repository's own Dockerfiles and deployments
// work on them, without a network.
package standin

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
	"syscall"
)

// Image is a base image, in the form that `docker import` and `podman import` take.
type Image struct {
	Name    string   // on Docker Hub
	Changes []string // words of a Dockerfile, for --change
	fill    func(context.Context, *archive) error
}

// Archive makes the image's files, as a tar archive, while they are read. Its reader ends with the error of what could not be made.
func (i Image) Archive(ctx context.Context) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		a := &archive{w: tar.NewWriter(w), made: map[string]bool{}}
		err := i.fill(ctx, a)
		w.CloseWithError(errors.Join(err, a.w.Close()))
	}()
	return r
}

// Golang is what Dockerfiles build programs in. The programs are directories of main packages.
func Golang(programs ...string) Image {
	return Image{
		Name: "golang:1.26",
		Changes: []string{
			"ENV PATH=/usr/local/go/bin:/usr/bin:/bin", "ENV GOPATH=/go", "ENV GOCACHE=" + buildCache, "ENV GOTOOLCHAIN=local", "ENV GOPROXY=off", "ENV GOFLAGS=-mod=readonly",
		},
		fill: func(ctx context.Context, a *archive) error { return a.golang(ctx, programs) },
	}
}

const (
	buildCache = "/.cache/go-build" // in the image
	natsServer = "github.com/nats-io/nats-server/v2"
)

// NATS is the broker. The notifier is the directory of its main package, whose module names the version.
func NATS(ctx context.Context, notifier string) (Image, error) {
	version, err := command(ctx, notifier, "go", "list", "-m", "-f", "{{.Version}}", natsServer)
	return Image{
		Name:    "nats:" + strings.TrimPrefix(strings.TrimSpace(version), "v"),
		Changes: []string{`ENTRYPOINT ["/nats-server"]`, `CMD ["--config","nats-server.conf"]`, "EXPOSE 4222", "EXPOSE 8222", "EXPOSE 6222"},
		fill: func(ctx context.Context, a *archive) error {
			dir, err := os.MkdirTemp("", "wgherald-standin-*")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			binary := filepath.Join(dir, "nats-server")
			if _, err := command(ctx, notifier, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, natsServer); err != nil {
				return err
			}
			return a.file(binary, "/nats-server")
		},
	}, err
}

// command runs a program as for an image, and returns what it prints. It ends when this process does.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends, too
	defer runtime.UnlockOSThread()
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Stdout, c.Stderr = dir, &stdout, &stderr
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// archive is the content of an image.
type archive struct {
	w    *tar.Writer
	made map[string]bool // paths that are there
}

// golang adds Go without what only its own tests and builds need, the programs' modules, and of the system what the Dockerfiles use.
func (a *archive) golang(ctx context.Context, programs []string) error {
	env, err := command(ctx, "", "go", "env", "GOROOT", "GOMODCACHE", "GOCACHE")
	if err != nil {
		return err
	}
	lines := strings.Split(env, "\n")
	goroot, modcache, cache := lines[0], lines[1], lines[2]
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
	compiled := map[string]bool{}
	for _, program := range programs {
		if err := a.modules(ctx, program, modcache); err != nil {
			return err
		}
		exports, err := command(ctx, program, "go", "list", "-trimpath", "-export", "-deps", "-f", "{{.Export}}", ".")
		if err != nil {
			return err
		}
		for file := range strings.FieldsSeq(exports) {
			compiled[strings.TrimSuffix(filepath.Base(file), "-d")] = true
		}
	}
	if err := a.buildCache(cache, buildCache, compiled); err != nil {
		return err
	}
	for _, program := range []string{"/bin/sh", "/bin/mkdir"} {
		if err := a.program(ctx, program); err != nil {
			return err
		}
	}
	a.dir("/tmp")
	return a.file("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/ca-certificates.crt")
}

// modules adds what a program's module needs to the image's module cache.
func (a *archive) modules(ctx context.Context, program, cache string) error {
	out, err := command(ctx, program, "go", "mod", "download", "-json")
	if err != nil {
		return err
	}
	for list := json.NewDecoder(strings.NewReader(out)); ; {
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
func (a *archive) program(ctx context.Context, path string) error {
	out, err := command(ctx, "", "ldd", path)
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(out) {
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
