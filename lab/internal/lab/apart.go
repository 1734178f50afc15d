package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
)

const (
	// apartVar is the environment variable that makes a program a client's tunnel and nothing else.
	apartVar = "WGHERALD_LAB_APART"
	// apartReady is what such a process says when the tunnel is up.
	apartReady = "tunnel is up"
	// freezeTimeout is how long a process may take to stop: a loaded machine may not run its threads for a while, which is what stops them.
	freezeTimeout = 10 * time.Second
)

// apart is what the process of a client is told.
type apart struct {
	PrivateKey wgtypes.Key
	Address    netip.Prefix
	Hub        wgpeer.Peer
	Impairment wgpeer.Impairment
}

// UpApart is Up in a process of its own, which can be frozen; Roam, Rebind and Options.OnSend are not for it. The process is this program once more, which
// must call Apart first of all.
func (c *Client) UpApart(ctx context.Context) error {
	if c.dev != nil || c.apart != nil {
		return fmt.Errorf("%s is up", c.Name)
	}
	told, err := json.Marshal(apart{c.key, netip.PrefixFrom(c.Inside, hubInside.Bits()), c.hubPeer(), c.impairment})
	if err != nil {
		return err
	}
	if c.apart, err = runner.Start(runner.Spec{
		Name: c.Name, NS: c.ns, Path: "/proc/self/exe", Env: []string{apartVar + "=" + string(told)}, Log: c.lab.opts.Log,
	}); err != nil {
		return err
	}
	_, err = c.apart.WaitLine(ctx, apartReady)
	return err
}

// Freeze stops the process of a client that is up apart, in the middle of whatever it does, and Thaw lets it go on. When Freeze returns, none of its threads
// runs any more: the signal itself is only asked for when kill(2) returns.
func (c *Client) Freeze() error {
	if err := c.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(freezeTimeout); ; time.Sleep(time.Millisecond) {
		running, err := c.running()
		if err != nil || running == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %d threads still run %v after SIGSTOP", c.Name, running, freezeTimeout)
		}
	}
}

// running counts the threads of the process that are not stopped (state T of proc_pid_stat(5), the field after the parentheses).
func (c *Client) running() (int, error) {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.apart.PID()))
	if err != nil {
		return 0, err
	}
	running := 0
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // a thread that ended
		}
		if err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(text, ')'); i < 0 || !bytes.HasPrefix(text[i:], []byte(") T")) {
			running++
		}
	}
	return running, nil
}

// Thaw undoes Freeze.
func (c *Client) Thaw() error { return c.signal(syscall.SIGCONT) }

func (c *Client) signal(s syscall.Signal) error {
	if err := c.Alive(); err != nil {
		return err
	}
	return syscall.Kill(c.apart.PID(), s)
}

// Alive is an error unless the process of a client that is up apart exists.
func (c *Client) Alive() error {
	if c.apart == nil {
		return fmt.Errorf("%s is not up apart", c.Name)
	}
	select {
	case <-c.apart.Done():
		return fmt.Errorf("the process of %s has ended: %s", c.Name, c.apart.Output())
	default:
		return nil
	}
}

// Apart returns at once, unless this process was started by UpApart: then it is the client's tunnel until it is killed.
func Apart() {
	told, ok := os.LookupEnv(apartVar)
	if !ok {
		return
	}
	if err := holdTunnel(told); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	select {} // the runner kills it, and the kernel does when the program that started it is gone
}

func holdTunnel(told string) error {
	var a apart
	if err := json.Unmarshal([]byte(told), &a); err != nil {
		return fmt.Errorf("%s is not readable", apartVar) // the cause may quote a key
	}
	dev, err := wgpeer.New(wgpeer.Config{Name: "wg0", PrivateKey: a.PrivateKey, Address: a.Address})
	if err != nil {
		return err
	}
	dev.Impair(a.Hub.Endpoint.Addr(), a.Impairment)
	if err := dev.SetPeer(a.Hub); err != nil {
		return err
	}
	fmt.Println(apartReady)
	return nil
}
