package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/lab/internal/netns"
)

// grace is how long a process may take to end on SIGTERM.
const grace = 5 * time.Second

// Spec describes a process.
type Spec struct {
	Name string // in messages
	NS   *netns.NS
	Path string // as the namespace sees it
	Args []string
	Env  []string  // all of it: nothing is inherited
	User uint32    // user and group id; no other group, and no capability unless it is 0
	Log  io.Writer // gets a copy of each line, after the name; nil for none

	// Attr changes how it is started, as with other capabilities; nil for nothing.
	Attr func(*syscall.SysProcAttr)
}

// Process is a process that was started. Its methods are safe for concurrent use.
type Process struct {
	name  string
	cmd   *exec.Cmd
	lines output
	done  chan struct{}
	err   error // set before done is closed
}

// Start starts a process. It is killed when the namespace is closed, or when this process dies.
func Start(s Spec) (*Process, error) {
	p := &Process{name: s.Name, done: make(chan struct{})}
	p.lines.name, p.lines.copy = s.Name, s.Log
	p.cmd = exec.Command(s.Path, s.Args...)
	p.cmd.Dir = "/"
	p.cmd.Env = s.Env
	p.cmd.Stdout, p.cmd.Stderr = &p.lines, &p.lines
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, // sent when the namespace's thread ends
		Setpgid:   true,            // an interrupt typed at the terminal is for us: we stop the services in order
	}
	if s.User != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.User, Gid: s.User}
	}
	if s.Attr != nil {
		s.Attr(p.cmd.SysProcAttr)
	}
	if p.cmd.Env == nil {
		p.cmd.Env = []string{} // nil would mean ours
	}
	if err := s.NS.Do(p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		p.lines.end()
		close(p.done)
	}()
	return p, nil
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended and all its output is there.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits until the process ends by itself. It is an error if that is with another code than 0, or not before ctx ends.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w: %s", p.name, p.err, p.Output())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not end: %w", p.name, ctx.Err())
	}
}

// Output is what it has written so far to standard output and standard error.
func (p *Process) Output() string { return strings.Join(p.lines.All(), "\n") }

// WaitLine waits for a line of output that contains text, and returns it. It fails at once when the process ends without one.
func (p *Process) WaitLine(ctx context.Context, text string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	line, err := p.lines.Wait(ctx, func(line string) bool { return strings.Contains(line, text) })
	if err != nil {
		return "", fmt.Errorf("%s does not say %q: %w", p.name, text, p.why(err))
	}
	return line, nil
}

// why prefers the end of the process to another reason.
func (p *Process) why(err error) error {
	select {
	case <-p.done:
		if p.err == nil {
			return errors.New("it has ended")
		}
		return fmt.Errorf("it has ended: %w", p.err)
	default:
		return err
	}
}

// Stop asks the process to end and waits for it. It is an error if it ends with another code than 0, or does not within 5 s: then it is killed. A process
// that has ended before is an error, too.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		<-p.done
		return fmt.Errorf("stop %s: %w", p.name, p.why(err))
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("stop %s: %w", p.name, p.err)
		}
		return nil
	case <-t.C:
		p.Kill()
		return fmt.Errorf("stop %s: still running %v after SIGTERM, killed", p.name, grace)
	}
}

// Kill ends the process by SIGKILL and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.done
}

// output cuts a stream into lines.
type output struct {
	ledger.Ledger[string]

	name string
	copy io.Writer

	mu   sync.Mutex
	rest []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, b...)
	for {
		line, rest, found := bytes.Cut(o.rest, []byte("\n"))
		if !found {
			return len(b), nil
		}
		o.line(string(line))
		o.rest = rest
	}
}

// end takes what was not ended by a line feed.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.rest) > 0 {
		o.line(string(o.rest))
		o.rest = nil
	}
}

func (o *output) line(s string) {
	o.Add(s)
	if o.copy != nil {
		fmt.Fprintf(o.copy, "%s: %s\n", o.name, s)
	}
}
