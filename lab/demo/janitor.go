package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/lab/internal/forward"
	"github.com/wgherald/wgherald/lab/internal/lab"
)

// janitorDir names the variable that makes this program the janitor of a directory.
const janitorDir = "WGHERALD_DEMO_JANITOR"

// janitor is a process that outlives this one by a moment, even when this one is killed: once its standard input ends, which the kernel sees to, it
// removes the directory that holds all files of the demo.
type janitor struct {
	dir     string
	process *exec.Cmd
	leash   io.WriteCloser
}

// newJanitor makes the directory and lets everything that wants a temporary file have it there. The janitor gives screen back, too; nil for none.
func newJanitor(screen *os.File) (*janitor, error) {
	dir, err := os.MkdirTemp("", "wgherald-demo-*")
	if err != nil {
		return nil, err
	}
	j := &janitor{dir: dir, process: exec.Command("/proc/self/exe")}
	j.process.Env = []string{janitorDir + "=" + dir}
	j.process.Dir = "/"
	j.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no signal from the terminal reaches it
	if screen != nil {
		j.process.Stdout = screen
	}
	// The user who called sudo compiles and reads below it (runner.Build, openToReaders).
	err = os.Chmod(dir, 0o711)
	if err == nil {
		err = os.Setenv("TMPDIR", dir)
	}
	if err == nil {
		j.leash, err = j.process.StdinPipe()
	}
	if err == nil {
		err = j.process.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the janitor of %s: %w", dir, err), os.RemoveAll(dir))
	}
	return j, nil
}

// close has everything removed and waits for it.
func (j *janitor) close() error {
	if _, err := io.WriteString(j.leash, farewell); err != nil {
		return fmt.Errorf("janitor of %s: %w", j.dir, err)
	}
	j.leash.Close()
	if err := j.process.Wait(); err != nil {
		return fmt.Errorf("remove %s: %w", j.dir, err)
	}
	return nil
}

// farewell tells the janitor that the end is in order.
const farewell = "bye"

// clean is what the janitor does. A compiler that lost its parent may still write for a moment, so the removal is tried again. Without a farewell the
// screen was left as it was.
func clean(dir string, leash io.Reader, screen io.Writer) int {
	if said, _ := io.ReadAll(leash); string(said) != farewell {
		fmt.Fprint(screen, leaveScreen)
	}
	err := os.RemoveAll(dir)
	for range 50 {
		if _, gone := os.Stat(dir); errors.Is(gone, os.ErrNotExist) {
			return 0
		}
		time.Sleep(100 * time.Millisecond)
		err = os.RemoveAll(dir)
	}
	fmt.Fprintf(screen, "cannot remove %s: %v\n", dir, err)
	return 1
}

// openToReaders lets programs on this machine subscribe: it forwards a port to the broker in its namespace and copies the reader's key and the keyring to
// files. It returns the commands to type, and a function that shuts the port.
func (j *janitor) openToReaders(l *lab.Lab) (stop func(), commands []string, err error) {
	seed, err := l.Seed("reader")
	if err != nil {
		return nil, nil, err
	}
	ring, err := l.Keyring()
	if err != nil {
		return nil, nil, err
	}
	key, keyring := filepath.Join(j.dir, "reader.nk"), filepath.Join(j.dir, "keyring")
	if err := errors.Join(writeForCaller(key, seed), writeForCaller(keyring, ring)); err != nil {
		return nil, nil, err
	}
	listener, err := forward.Listen(lab.NATS)
	if err != nil {
		return nil, nil, err
	}
	f := forward.Start(listener, func() (net.Conn, error) { return l.NS.Dial("tcp", lab.NATS) })
	return f.Close, []string{
		fmt.Sprintf("go run ./lab/examples/subscribe -url nats://%s \\", f.Addr()),
		fmt.Sprintf("    -nkey %s -keyring %s", key, keyring),
	}, nil
}

// writeForCaller writes a file that only root and the user who called sudo can read.
func writeForCaller(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if caller, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil {
		return os.Chown(path, caller, -1)
	}
	return nil
}
