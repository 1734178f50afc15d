package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/standin"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

const (
	// initVar is the environment variable that makes this program the first process of its process ids, and nothing else.
	initVar = "WGHERALD_KUBE_INIT"
	// initReady is what it says then.
	initReady = "processes are our own"

	// podmanNproc and maxFiles bound what a container is granted, where the machine grants more: podman asks for no more processes for itself, and for no more
	// files by default.
	podmanNproc = 32768
	maxFiles    = 1 << 20
)

func TestMain(m *testing.M) {
	if os.Getenv(initVar) != "" {
		os.Exit(firstProcess())
	}
	os.Exit(m.Run())
}

// firstProcess is process 1 in process ids of its own: all that podman starts there, and detaches from us, ends with it.
func firstProcess() int {
	signal.Ignore(syscall.SIGCHLD) // the kernel then buries who is orphaned
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		fmt.Println("mount /proc:", err)
		return 1
	}
	fmt.Println(initReady)
	select {}
}

// podman is a podman whose host is a lab's hub.
type podman struct {
	t   *testing.T
	ns  *netns.NS
	dir string // of its store
	env []string
}

// newPodman skips the test where podman cannot run a container.
func newPodman(t *testing.T, l *lab.Lab) *podman {
	t.Helper()
	dir, err := os.MkdirTemp("", "wgherald-kube-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	p := &podman{t: t, ns: l.NS, dir: dir}
	p.removeCgroups()

	if err := l.NS.Do(func() error { return unix.Unshare(unix.CLONE_NEWPID) }); err != nil {
		t.Fatal("own process ids:", err)
	}
	first, err := runner.Start(runner.Spec{Name: "init", NS: l.NS, Path: "/proc/self/exe", Env: []string{initVar + "=1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(first.Kill)
	if _, err := first.WaitLine(t.Context(), initReady); err != nil {
		t.Fatal(err)
	}

	p.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir,
		"CONTAINERS_CONF=" + filepath.Join(dir, "containers.conf"), "CONTAINERS_STORAGE_CONF=" + filepath.Join(dir, "storage.conf"),
	}
	write(t, filepath.Join(dir, "storage.conf"), fmt.Sprintf("[storage]\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "root"), netns.Dir+"/podman"))
	installed := slices.DeleteFunc([]string{"crun", "runc"}, func(runtime string) bool { _, err := exec.LookPath(runtime); return err != nil })
	if len(installed) == 0 {
		testreq.Skip(t, testreq.Kube, "there is neither crun nor runc")
	}
	p.configure(installed[0]) // podman does nothing without one
	nats, err := standin.NATS(t.Context(), filepath.Join(repository, "services", "notifier"))
	if err != nil {
		t.Fatal(err)
	}
	image, err := p.importImage(nats)
	if err != nil {
		testreq.Skip(t, testreq.Kube, "podman makes no image here: "+err.Error())
	}
	p.chooseRuntime(installed, image)
	return p
}

// removeCgroups removes, at the end, the empty control groups that podman leaves, unless there were some before.
func (p *podman) removeCgroups() {
	const parents = "/sys/fs/cgroup/libpod_parent /sys/fs/cgroup/*/libpod_parent" // version 2, and 1
	for pattern := range strings.FieldsSeq(parents) {
		if old, _ := filepath.Glob(pattern); len(old) > 0 {
			return
		}
	}
	p.t.Cleanup(func() {
		for pattern := range strings.FieldsSeq(parents) {
			tops, _ := filepath.Glob(pattern)
			for _, top := range tops {
				removeEmpty(top)
			}
		}
	})
}

func removeEmpty(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeEmpty(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir) // busy when somebody else's containers are in it
}

// chooseRuntime takes the first runtime that runs a container here, in a pod on podman's bridge.
func (p *podman) chooseRuntime(runtimes []string, image string) {
	p.t.Helper()
	var failures []error
	for _, runtime := range runtimes {
		p.configure(runtime)
		_, err := p.run("run", "--rm", "--pod=new:try", image, "--version")
		_, rmErr := p.run("pod", "rm", "--force", "--ignore", "try")
		if err = errors.Join(err, rmErr); err == nil {
			return
		}
		failures = append(failures, err)
	}
	testreq.Skip(p.t, testreq.Kube, "podman runs no pod here: "+errors.Join(failures...).Error())
}

// configure writes podman's configuration. Limits are named because podman asks for its own defaults otherwise, which a machine may not grant even to root.
func (p *podman) configure(runtime string) {
	p.t.Helper()
	write(p.t, filepath.Join(p.dir, "containers.conf"), fmt.Sprintf(`[containers]
default_ulimits = ["nofile=%[1]d:%[1]d", "nproc=%[2]d:%[2]d"]
[engine]
runtime = %[3]q
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_backend = "netavark"
network_config_dir = %[4]q
`, limit(p.t, unix.RLIMIT_NOFILE, maxFiles), limit(p.t, unix.RLIMIT_NPROC, podmanNproc), runtime, filepath.Join(p.dir, "networks")))
}

func limit(t *testing.T, resource int, most uint64) uint64 {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(resource, &l); err != nil {
		t.Fatal(err)
	}
	return min(l.Max, most)
}

// commandTimeout bounds one command of podman. It is for one that hangs.
const commandTimeout = 5 * time.Minute

// run is a command of podman and what it prints. Its error holds what it complained of.
func (p *podman) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return p.program(ctx, nil, "podman", args...)
}

// program runs a program where podman runs: in the hub's network and among the processes there.
func (p *podman) program(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Env, c.Dir = p.env, p.dir
	c.Stdin, c.Stdout, c.Stderr = stdin, &stdout, &stderr
	c.WaitDelay = time.Second // containers inherit none of these, but what podman starts to tidy up may
	if err := p.ns.Do(c.Start); err != nil {
		return "", err
	}
	if err := c.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// must is run without an error.
func (p *podman) must(args ...string) string {
	p.t.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

// importImage makes a base image. Docker Hub is where podman would look for it.
func (p *podman) importImage(image standin.Image) (name string, err error) {
	name = "docker.io/library/" + image.Name
	args := []string{"import", "--quiet"}
	for _, change := range image.Changes {
		args = append(args, "--change="+change)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), commandTimeout)
	defer cancel()
	files := image.Archive(ctx)
	defer files.Close()
	_, err = p.program(ctx, files, "podman", append(args, "-", name)...)
	return name, err
}

// processes are the ids of the processes in the hub, but for the first.
func (p *podman) processes() (ids []int) {
	p.t.Helper()
	if err := p.ns.Do(func() error {
		entries, err := os.ReadDir("/proc")
		for _, e := range entries {
			if id, err := strconv.Atoi(e.Name()); err == nil && id != 1 {
				ids = append(ids, id)
			}
		}
		return err
	}); err != nil {
		p.t.Fatal(err)
	}
	return ids
}

// links are the names of the hub's network interfaces.
func (p *podman) links() (names []string) {
	p.t.Helper()
	if err := p.ns.Do(func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			names = append(names, i.Name)
		}
		return err
	}); err != nil {
		p.t.Fatal(err)
	}
	return names
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
