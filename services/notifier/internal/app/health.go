package app

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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

const (
	// healthSocket is in the state directory. It needs neither a port nor metrics, and a directory in memory will do.
	healthSocket = "health.sock"
	// healthPatience bounds a question about health.
	healthPatience = 5 * time.Second

	well, unwell = "well: ", "not well: "
)

// health tells other processes how a notifier is: a line for whoever connects to its socket.
type health struct {
	connected func() bool
	version   func() string // of the broker, while it is connected
	ready     atomic.Bool   // every hook has its place in the stream
}

func (h *health) report() string {
	old := broker.CheckVersion(h.version())
	switch {
	case !h.connected():
		return unwell + "the broker is not connected (NATS_URL), so nothing is delivered; it is tried on"
	case errors.Is(old, broker.ErrTooOld):
		return unwell + fmt.Sprintf("nothing is delivered: %v", old)
	case !h.ready.Load():
		return unwell + "hooks wait for their streams, which notifier provision makes"
	}
	return well + "the broker is connected, and every hook has its place in the stream"
}

// listenHealth makes the socket in dir, and dir where it is missing: only an embedded broker has made it before. One that an earlier notifier left is replaced, one that another serves is not.
func listenHealth(dir string) (net.Listener, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, healthSocket)
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s is another notifier's", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path) // if it fails, so does what follows
	}
	return net.Listen("unix", path)
}

// serve answers until ctx ends.
func (h *health) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("health socket: %w", err)
		}
		_ = c.SetWriteDeadline(time.Now().Add(healthPatience))
		_, _ = fmt.Fprintln(c, h.report()) // who asked may have gone
		c.Close()
	}
}

// AskHealth asks the notifier whose state directory is dir how it is, and returns its line. One that does not run, or does not answer, is not well.
func AskHealth(dir string) (line string, ok bool) {
	path := filepath.Join(dir, healthSocket)
	line, err := askHealth(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		line = unwell + fmt.Sprintf("no notifier answers in the state directory %s (NOTIFIER_STATE names it, and its user must be able to write there)", dir)
	case errors.Is(err, fs.ErrPermission):
		line = unwell + fmt.Sprintf("%s belongs to another user: ask as the one that the notifier runs as", path)
	case errors.Is(err, os.ErrDeadlineExceeded):
		line = unwell + fmt.Sprintf("no answer within %v on %s", healthPatience, path)
	case err != nil:
		line = unwell + fmt.Sprintf("cannot ask on %s: %v", path, err)
	}
	return line, strings.HasPrefix(line, well)
}

func askHealth(path string) (string, error) {
	c, err := net.DialTimeout("unix", path, healthPatience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(healthPatience))
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}
