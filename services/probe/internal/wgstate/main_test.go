package wgstate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/services/probe/internal/testreq"
)

// inNamespaces marks the process that has network and mount namespaces of its own.
const inNamespaces = "WGSTATE_TEST_NAMESPACES"

// lacking says why tests on real devices cannot run here; nil when they can.
var lacking error

// TestMain runs the tests of this package in a process of its own that has an empty network namespace and a private /var/run, where it
// is possible: the sockets of userspace devices live under one path that is not to be chosen, and wgctrl reads it on any thread, so that
// unsharing one thread would not do. The namespaces go with the process.
func TestMain(m *testing.M) {
	if os.Getenv(inNamespaces) == "" {
		if lacking = canUnshare(); lacking == nil {
			os.Exit(runInNamespaces())
		}
	} else if err := setUpNamespaces(); err != nil {
		fmt.Fprintln(os.Stderr, "set up namespaces:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// requireDevices skips a test where no real device can be made.
func requireDevices(tb testing.TB) {
	tb.Helper()
	if lacking != nil {
		testreq.Skip(tb, testreq.E2E, lacking.Error())
	}
}

// canUnshare tries it.
func canUnshare() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root to make a network namespace")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		return fmt.Errorf("needs /dev/net/tun: %w", err)
	} else if err := f.Close(); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "-test.list=^$")
	cmd.Env = append(os.Environ(), inNamespaces+"=1")
	cmd.SysProcAttr = ownNamespaces()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("needs network and mount namespaces: %w: %s", err, out)
	}
	return nil
}

func runInNamespaces() int {
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends that started the child
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespaces+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = ownNamespaces()
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run in namespaces:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// ownNamespaces makes mounts private, too: os/exec does that after CLONE_NEWNS in Unshareflags.
func ownNamespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
}

func setUpNamespaces() error {
	run, err := filepath.EvalSymlinks(filepath.Dir(SocketDir))
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount on %s: %w", run, err)
	}
	return nil
}
