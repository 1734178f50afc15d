package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/standin"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

// host is where containers find the namespace that is their host.
const host = "172.30.0.1"

// engine is a dockerd in namespaces of its own.
type engine struct {
	ns      *netns.NS
	dir     string   // of its images, containers and volumes
	compose []string // the command
	cgroup  string   // that its containers' are below
	env     []string
}

// startEngine starts a dockerd and has everything of it removed at the end of the test.
func startEngine(ctx context.Context, t *testing.T) *engine {
	t.Helper()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.Compose, err.Error())
	}
	for _, program := range []string{"dockerd", "docker", "iptables", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			testreq.Skip(t, testreq.Compose, err.Error())
		}
	}
	e := &engine{compose: []string{"docker", "compose"}}
	if exec.Command("docker", "compose", "version").Run() != nil {
		if _, err := exec.LookPath("docker-compose"); err != nil {
			testreq.Skip(t, testreq.Compose, "there is neither docker compose nor docker-compose")
		}
		e.compose = []string{"docker-compose"}
	}

	var err error
	if e.ns, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.ns.Close)
	if e.dir, err = os.MkdirTemp("", "wgherald-compose-*"); err != nil { // on a disk, where overlays can be; and its name is short, as a socket's must be
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(e.dir); err != nil {
			t.Error(err)
		}
	})
	e.cgroup = filepath.Base(e.dir)
	t.Cleanup(e.removeCgroups)
	socket := "unix://" + filepath.Join(e.dir, "docker.sock")
	e.env = append(os.Environ(), "DOCKER_HOST="+socket, "DOCKER_CONFIG="+filepath.Join(e.dir, "client"), "COMPOSE_PROFILES=")

	daemon, err := runner.Start(runner.Spec{
		Name: "dockerd", NS: e.ns, Path: lookPath(t, "unshare"),
		Args: []string{
			"--pid", "--fork", "--mount-proc", "--kill-child", "dockerd", "--host", socket, "--data-root", filepath.Join(e.dir, "data"),
			"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/" + e.cgroup, "--bip", host + "/24",
		},
		Env: []string{"PATH=" + os.Getenv("PATH")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Kill() // and with it all in its process namespace
		if t.Failed() {
			lines := strings.Split(daemon.Output(), "\n")
			t.Logf("dockerd said last:\n%s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	})
	if _, err := daemon.WaitLine(ctx, "API listen on"); err != nil {
		t.Fatal(err)
	}
	return e
}

func lookPath(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// removeCgroups removes what dockerd leaves in every hierarchy. Cgroups of processes that have just ended are busy for a moment.
func (e *engine) removeCgroups() {
	for range 100 {
		var found []string
		for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s"} {
			tops, _ := filepath.Glob(fmt.Sprintf(pattern, e.cgroup)) // the patterns are good
			for _, top := range tops {
				_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
					if err == nil && d.IsDir() {
						found = append(found, path)
					}
					return nil // what has gone meanwhile is no loss
				})
			}
		}
		if len(found) == 0 {
			return
		}
		for _, dir := range slices.Backward(found) {
			_ = syscall.Rmdir(dir)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// command is a client of the engine. It must be run on a locked thread.
func (e *engine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = e.env
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = time.Second
	return c
}

// docker runs a docker command and returns what it prints.
func (e *engine) docker(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	return e.dockerIn(ctx, t, nil, args...)
}

func (e *engine) dockerIn(ctx context.Context, t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	c := e.command(ctx, "docker", args...)
	c.Stdin = stdin
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// importBaseImages makes what the images are built from, and the broker.
func (e *engine) importBaseImages(ctx context.Context, t *testing.T, root string) {
	t.Helper()
	notifier := filepath.Join(root, "services/notifier")
	nats, err := standin.NATS(ctx, notifier)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []standin.Image{nats, standin.Golang(notifier, filepath.Join(root, "services/probe"), filepath.Join(root, "lab/compose/demo"))} {
		args := []string{"import"}
		for _, change := range image.Changes {
			args = append(args, "--change", change)
		}
		files := image.Archive(ctx)
		e.dockerIn(ctx, t, files, append(args, "-", image.Name)...)
		files.Close()
	}
}

// inspect reads what the engine knows of a container or an image into v.
func (e *engine) inspect(ctx context.Context, t *testing.T, what string, v any) {
	t.Helper()
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(e.docker(ctx, t, "inspect", what)), &list); err != nil || len(list) != 1 {
		t.Fatalf("docker inspect %s: %d entries, %v", what, len(list), err)
	}
	if err := json.Unmarshal(list[0], v); err != nil {
		t.Fatal(err)
	}
}

// pid is a container's first process, as this process sees it: the engine counts in a process namespace of its own.
func (e *engine) pid(t *testing.T, id string) (pid int) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/%s/%s/cgroup.procs", "/sys/fs/cgroup/pids/%s/%s/cgroup.procs"} {
		text, err := os.ReadFile(fmt.Sprintf(pattern, e.cgroup, id))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			t.Fatalf("container %s has no process: %v", id, err)
		}
		return pid
	}
	t.Fatalf("container %s has no cgroup", id)
	return 0
}

// kill ends a container by SIGKILL from outside. docker kill would count as wanted, and nothing would start it again.
func (e *engine) kill(t *testing.T, id string) {
	t.Helper()
	if err := syscall.Kill(e.pid(t, id), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
