package runner

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

// gotool runs the go command in a directory of its own for what it makes.
type gotool struct {
	dir  string
	as   *syscall.Credential // nil for ourselves
	home string
}

// newGotool makes the directory. Under sudo the go command runs as the user who called it, if the current directory is theirs: their module and build
// caches serve, and nothing in these becomes root's.
func newGotool() (*gotool, error) {
	g := &gotool{}
	here, err := os.Stat(".")
	if err != nil {
		return nil, err
	}
	if caller := os.Getenv("SUDO_UID"); os.Geteuid() == 0 && caller == fmt.Sprint(here.Sys().(*syscall.Stat_t).Uid) && caller != "0" {
		if g.as, g.home, err = lookup(caller); err != nil {
			return nil, fmt.Errorf("SUDO_UID: %w", err)
		}
	}
	if g.dir, err = os.MkdirTemp("", "wgherald-build-*"); err != nil {
		return nil, err
	}
	if g.as != nil {
		if err := os.Chown(g.dir, int(g.as.Uid), int(g.as.Gid)); err != nil {
			g.remove()
			return nil, err
		}
	}
	return g, nil
}

func lookup(uid string) (*syscall.Credential, string, error) {
	u, err := user.LookupId(uid)
	if err != nil {
		return nil, "", err
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, "", err
	}
	group, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, "", err
	}
	return &syscall.Credential{Uid: uint32(id), Gid: uint32(group)}, u.HomeDir, nil
}

// remove deletes the directory.
func (g *gotool) remove() { os.RemoveAll(g.dir) }

// command is a go command that ends with all its compilers when ctx does, and soon after this process is killed. It must be run on a locked thread.
func (g *gotool) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "go", args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=", "GOARCH=", "GOTMPDIR="+g.dir)
	if g.as != nil {
		c.Env = append(c.Env, "HOME="+g.home)
	}
	c.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,            // the go command killed alone would leave its compilers
		Pdeathsig:  syscall.SIGKILL, // sent when the thread ends, too
		Credential: g.as,
	}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	return c
}
