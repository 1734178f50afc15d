// Package health lets another process ask a running probe how it is: one line over a Unix socket in the state directory, which only the probe's own user can
// connect to. It needs no port, no metrics and no writing to disk.
//
// What well means is the probe's to say (package app).
package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// FileName is the name of the socket in the state directory.
const FileName = "health.sock"

// Patience bounds an answer. Whoever gives it must be done in half the time.
const Patience = 5 * time.Second

// maxPath is the longest path of a socket (unix(7)), without the zero byte at its end.
const maxPath = 107

// well begins the line of a probe that is well.
const well = "well: "

// Report is how the probe is.
type Report struct {
	Well bool
	Text string // one line
}

func (r Report) String() string {
	if r.Well {
		return well + r.Text
	}
	return "not well: " + r.Text
}

// Listen makes the socket in dir. The caller must hold what makes it the only probe there: a socket that an earlier one left is replaced.
func Listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, FileName)
	if len(path) > maxPath {
		return nil, fmt.Errorf("health socket %s: the path has %d bytes, %d are possible", path, len(path), maxPath)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("health socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("health socket %s: %w", path, err)
	}
	return l, nil
}

// Serve answers whoever connects with what report returns, one at a time, until ctx ends.
func Serve(ctx context.Context, l net.Listener, report func() Report) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("health socket: %w", err)
		}
		_ = c.SetWriteDeadline(time.Now().Add(Patience))
		_, _ = fmt.Fprintln(c, report()) // who asked may have gone
		_ = c.Close()
	}
}

// Ask asks the probe whose state directory is dir. It is not well, either, when there is none, or it does not answer.
func Ask(dir string) Report {
	path := filepath.Join(dir, FileName)
	line, err := ask(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return Report{Text: fmt.Sprintf("no probe runs with the state directory %s (PROBE_STATE names it)", dir)}
	case errors.Is(err, fs.ErrPermission):
		return Report{Text: fmt.Sprintf("%s belongs to another user: ask as the one that the probe runs as", path)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Report{Text: fmt.Sprintf("the probe gives no answer within %v on %s", Patience, path)}
	case err != nil:
		return Report{Text: fmt.Sprintf("cannot ask on %s: %v", path, err)}
	}
	if text, ok := strings.CutPrefix(line, well); ok {
		return Report{Well: true, Text: text}
	}
	return Report{Text: strings.TrimPrefix(line, "not well: ")}
}

func ask(path string) (string, error) {
	c, err := net.DialTimeout("unix", path, Patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(Patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}
