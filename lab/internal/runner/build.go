// Package runner builds the services and runs them as what they are in production: static binaries in processes of their own, each with its own user,
// started inside a network namespace and never outliving it.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/wgherald/wgherald/lab/internal/netns"
)

// module is this one. The services live beside it in the repository.
const module = "github.com/wgherald/wgherald/lab"

// Program is a main package, built in the module of a service: what a program needs is in that module's go.sum.
type Program struct {
	Name    string // of the binary
	Service string // directory in services/
	Package string
}

// services are always built.
var services = []Program{{"probe", "probe", "."}, {"notifier", "notifier", "."}}

// NATSServer is the broker as a program of its own, in the version that the notifier embeds.
var NATSServer = Program{"nats-server", "notifier", "github.com/nats-io/nats-server/v2"}

// Binaries are the built programs. They are open files without a name, so they are gone when the process is.
type Binaries struct {
	files map[string]*os.File
}

// Build compiles the services, without cgo as they are shipped, and what else is asked for. Go finds the repository from the current directory.
func Build(ctx context.Context, more ...Program) (*Binaries, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	gotool, err := newGotool()
	if err != nil {
		return nil, err
	}
	defer gotool.remove()

	list := gotool.command(ctx, "list", "-m", "-f", "{{.Dir}}", module)
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("find the repository: go list -m %s: %w%s", module, err, stderr(err))
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))

	b := &Binaries{files: map[string]*os.File{}}
	for _, p := range append(slices.Clone(services), more...) {
		path := filepath.Join(gotool.dir, p.Name)
		build := gotool.command(ctx, "build", "-trimpath", "-o", path, p.Package)
		build.Dir = filepath.Join(root, "services", p.Service)
		if out, err := build.CombinedOutput(); err != nil {
			b.Close()
			return nil, fmt.Errorf("build %s: %w\n%s", p.Name, err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			b.Close()
			return nil, err
		}
		b.files[p.Name] = f
	}
	return b, nil
}

func stderr(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "\n" + string(exit.Stderr)
	}
	return ""
}

// Close lets the binaries go. What was installed stays.
func (b *Binaries) Close() {
	for _, f := range b.files {
		f.Close()
	}
}

// Install copies the binaries into a namespace's private directory, where every user of the namespace can run them, as Binary names them.
func (b *Binaries) Install(ns *netns.NS) error {
	return ns.Do(func() error {
		for name, from := range b.files {
			// A section has its own place in the file: several namespaces may install at once.
			if err := install(Binary(name), io.NewSectionReader(from, 0, 1<<40)); err != nil {
				return fmt.Errorf("install %s: %w", name, err)
			}
		}
		return nil
	})
}

// Binary is the path of an installed program.
func Binary(name string) string { return filepath.Join(netns.Dir, name) }

// install writes an executable. Nothing is forked while it is open for writing: a child that inherits the descriptor keeps it until it runs its own program, and
// until then the kernel refuses to run this one (ETXTBSY).
func install(path string, from io.Reader) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return err
	}
	return to.Close()
}
