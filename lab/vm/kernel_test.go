package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
)

// kernelEnv names a directory in which a Debian kernel package was unpacked.
const kernelEnv = "WGHERALD_VM_KERNEL"

// kernelPackage depends on the newest kernel of the release. The one for clouds is the smallest, and has WireGuard.
const kernelPackage = "linux-image-cloud-amd64"

// kernel is an unpacked package.
type kernel struct {
	image   string // file
	modules string // directory
}

// openKernel finds the kernel in an unpacked package.
func openKernel(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("%s has %d files boot/vmlinuz-*, want one", dir, len(images))
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	for _, lib := range []string{"lib", "usr/lib"} { // up to Debian 12, and since
		modules := filepath.Join(dir, lib, "modules", version)
		if _, err := os.Stat(modules); err == nil {
			return kernel{images[0], modules}, nil
		}
	}
	return kernel{}, fmt.Errorf("%s has no modules of %s", dir, version)
}

// fetchKernel returns the directory of a kernel in the user's cache, and puts it there first where there is none.
func fetchKernel(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "wgherald", "vm")
	fetched, err := filepath.Glob(filepath.Join(cache, "linux-image-*"))
	if err != nil {
		return "", err
	}
	if len(fetched) > 0 {
		return fetched[len(fetched)-1], nil
	}
	for _, tool := range []string{"apt-cache", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", err
		}
	}
	depends, err := command(ctx, "apt-cache", "depends", "--important", kernelPackage).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends %s: %w", kernelPackage, err)
	}
	name := regexp.MustCompile(`linux-image-[0-9][^\s<>]*`).Find(depends)
	if name == nil {
		return "", fmt.Errorf("%s depends on no kernel", kernelPackage)
	}

	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, "fetch-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	download := command(ctx, "apt-get", "download", string(name))
	download.Dir = tmp
	if out, err := download.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %w: %s", name, err, out)
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return "", err
	}
	unpacked := filepath.Join(tmp, "unpacked")
	if out, err := command(ctx, "dpkg-deb", append([]string{"-x"}, append(packages, unpacked)...)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("dpkg-deb -x %s: %w: %s", packages, err, out)
	}
	dir := filepath.Join(cache, string(name))
	if err := os.Rename(unpacked, dir); err != nil && !errors.Is(err, fs.ErrExist) { // somebody else was faster
		return "", err
	}
	return dir, nil
}

// command is a command that ends with ctx, and when the calling thread does, which must be locked.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = time.Second // for what it has started itself
	return c
}

// module is a kernel module, uncompressed.
type module struct {
	name    string
	content []byte
}

// load returns modules and all that they need, each after those that it needs itself.
func (k kernel) load(names ...string) ([]module, error) {
	files := map[string]string{}
	if err := filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			files[canonical(name)] = path
		}
		return err
	}); err != nil {
		return nil, err
	}
	var ordered []module
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		content, err := readModule(files[name])
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		needed, err := needs(content)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needed {
			if err := add(n); err != nil {
				return err
			}
		}
		ordered = append(ordered, module{name, content})
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// canonical is the name that the kernel has for a module, whose file may have dashes.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readModule reads a module's file: plain, or compressed as in Debian since 13.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch filepath.Ext(path) {
	case ".ko":
		return io.ReadAll(f)
	case ".xz":
		r, err := xz.NewReader(f)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	return nil, fmt.Errorf("%s: only .ko and .ko.xz can be read", path)
}

// needs returns the modules that a module says it needs, in the section of texts that modinfo(8) reads.
func needs(module []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(canonical(list), ","), nil
		}
	}
	return nil, nil
}

func TestReadCompressedModule(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	w, err := xz.NewWriter(&file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("a module")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "some.ko.xz")
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := readModule(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("a module", string(got)); diff != "" {
		t.Error(diff)
	}
}
