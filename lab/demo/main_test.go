package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

// asDemo names the variable that makes the test binary the demo itself.
const asDemo = "DEMO_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(asDemo) != "" || os.Getenv(janitorDir) != "" {
		main()
	}
	os.Exit(m.Run())
}

// start starts the demo as a process of its own, with a directory for its temporary files.
func start(t *testing.T, change func(*exec.Cmd), args ...string) (cmd *exec.Cmd, out *bufio.Scanner, tmp string) {
	t.Helper()
	tmp = t.TempDir()
	cmd = exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asDemo+"=1", "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if change != nil {
		change(cmd)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Stderr == nil {
		cmd.Stderr = cmd.Stdout
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out = bufio.NewScanner(stdout)
	out.Split(bufio.ScanBytes) // the demo says what it does before it ends the line
	return cmd, out, tmp
}

// readUntil reads the output until it contains text.
func readUntil(t *testing.T, out *bufio.Scanner, text string) {
	t.Helper()
	var all []byte
	for out.Scan() {
		all = append(all, out.Bytes()...)
		if bytes.HasSuffix(all, []byte(text)) {
			return
		}
	}
	t.Fatalf("no %q in:\n%s", text, all)
}

// TestLeavesNothing ends the demo at bad moments and looks for what it had made: processes, which are all that could hold its network namespaces with
// the devices and sockets in them, and temporary files.
func TestLeavesNothing(t *testing.T) {
	t.Parallel()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	tests := map[string]struct {
		args   []string
		moment string // in the output
		signal syscall.Signal
		code   int
	}{
		"interrupted while it compiles":         {nil, "  build", syscall.SIGINT, 0},
		"-once interrupted while it compiles":   {[]string{"-once"}, "  build", syscall.SIGINT, 1},
		"killed while it compiles":              {nil, "  build", syscall.SIGKILL, -1},
		"interrupted while it starts":           {nil, "  start", syscall.SIGTERM, 0},
		"interrupted in the story":              {nil, "3. ", syscall.SIGINT, 0},
		"-once interrupted in the story":        {[]string{"-once"}, "3. ", syscall.SIGINT, 1},
		"killed in the story":                   {nil, "3. ", syscall.SIGKILL, -1},
		"the terminal is closed in the story":   {nil, "3. ", syscall.SIGHUP, 0},
		"-once killed when peers are connected": {[]string{"-once"}, "wg.peer.connected", syscall.SIGKILL, -1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, out, tmp := start(t, nil, tt.args...)
			readUntil(t, out, tt.moment)
			session := cmd.Process.Pid
			before := processes(session)
			if len(before) < 2 {
				t.Error("it had no other process: this test sees nothing")
			}
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			var rest []byte
			for out.Scan() { // until nobody has its output open
				rest = append(rest, out.Bytes()...)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tt.code {
				t.Errorf("exit code %d, want %d, after it said:\n%s", got, tt.code, rest)
			}

			// After SIGKILL the kernel and the janitor do it, soon.
			var left []string
			for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
				left = append(processes(session), files(t, tmp)...)
				if len(left) == 0 || tt.signal != syscall.SIGKILL || time.Since(began) > 20*time.Second {
					break
				}
			}
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// processes are those of a session, and the janitor, who has one of his own.
func processes(session int) (found []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, fields, _ := strings.Cut(string(text), ") ") // proc_pid_stat(5): pid (name) state ppid pgrp session
		if f := strings.Fields(fields); len(f) > 3 && f[0] != "Z" && (f[1] == fmt.Sprint(session) || f[3] == fmt.Sprint(session)) {
			found = append(found, strings.TrimSpace(string(text)))
		}
	}
	return found
}

// files are the files below dir.
func files(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir && err == nil {
			found = append(found, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is being removed
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestWithoutRootSaysWhatToType(t *testing.T) {
	t.Parallel()
	cmd, out, tmp := start(t, func(c *exec.Cmd) {
		if os.Geteuid() == 0 {
			c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
			// The test binary lies where only root may look, and the user's own /proc/self/exe is the way to it.
			self, err := os.Open("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { self.Close() })
			c.ExtraFiles = []*os.File{self}
			c.Path = "/proc/self/fd/3"
		}
	}, "-once")
	var got []byte
	for out.Scan() {
		got = append(got, out.Bytes()...)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if diff := cmp.Diff(needsRoot([]string{"-once"}), string(got)); diff != "" {
		t.Error(diff)
	}
	if left := files(t, tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNeedsRoot(t *testing.T) {
	t.Parallel()
	got := needsRoot([]string{"-once"})
	for _, want := range []string{
		"\n    go run -exec \"sudo env 'PATH=$PATH'\" ./lab/demo -once\n",
		"\n    go run ./lab/demo -once\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err  error
		want string
	}{
		"no TUN driver":        {fmt.Errorf("tun: %w", &os.PathError{Op: "open", Path: "/dev/net/tun", Err: syscall.ENOENT}), "modprobe tun"},
		"no permission":        {fmt.Errorf("make network namespace: unshare: %w", syscall.EPERM), "--cap-add SYS_ADMIN"},
		"mount not allowed":    {fmt.Errorf("mount a private /run: %w", syscall.EACCES), "--cap-add SYS_ADMIN"},
		"something unheard of": {syscall.EIO, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := hint(tt.err); !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWrongArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-twice"}, {"once"}} {
		if code := run(args, os.Stdout, io.Discard); code != 2 {
			t.Errorf("%q: exit code %d, want 2", args, code)
		}
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ said, want string }{
		"a good end":     {farewell, ""},
		"a killed owner": {"", leaveScreen},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "demo")
			if err := os.MkdirAll(filepath.Join(dir, "below"), 0o700); err != nil {
				t.Fatal(err)
			}
			var screen bytes.Buffer
			if code := clean(dir, strings.NewReader(tt.said), &screen); code != 0 || screen.String() != tt.want {
				t.Errorf("exit code %d, wrote %q, want %q", code, screen.String(), tt.want)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory is still there: %v", err)
			}
		})
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"a\nb\nc\n": "  b\n  c", "a": "  a", "": "  "} {
		if got := tail(text, 2); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
