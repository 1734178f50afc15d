package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startTimeout bounds how long an embedded broker may take to recover its streams and to open its port.
const startTimeout = 30 * time.Second

// EmbeddedOptions says where an embedded broker keeps its things and listens.
type EmbeddedOptions struct {
	StateDir string // identities/, keyring, nats.conf, jetstream/ and a lock are in here
	Listen   string // host:port on a loopback address; port 0 picks a free one
	Log      *slog.Logger
}

// Embedded is a running broker inside this process.
type Embedded struct {
	server   *server.Server
	lock     *os.File
	stateDir string
}

// Unusable is an error about what an embedded broker starts from: its address, or what is in its state directory. Unless the cause is one that passes, such as a
// port that is in use or a disk that is full, somebody has to mend it.
type Unusable struct{ error }

// Unwrap returns what is wrong.
func (u Unusable) Unwrap() error { return u.error }

// StartEmbedded makes identities, keyring and configuration in the state directory where they are missing, starts a broker there, and provisions its streams. It
// returns once the broker can be used.
//
// The configuration is written anew on each start; changes to it by hand are lost.
func StartEmbedded(ctx context.Context, o EmbeddedOptions) (_ *Embedded, err error) {
	if err := CheckListen(o.Listen); err != nil {
		return nil, Unusable{err}
	}
	if err := ensureDir(o.StateDir); err != nil {
		return nil, Unusable{fmt.Errorf("%w (NOTIFIER_STATE names it)", err)}
	}
	lock, err := lockDir(o.StateDir)
	if err != nil {
		return nil, err
	}
	e := &Embedded{lock: lock, stateDir: o.StateDir}
	defer func() {
		if err != nil {
			e.Shutdown()
		}
	}()
	conf, err := e.prepare(o.Listen)
	if err != nil {
		return nil, Unusable{err}
	}
	if err := e.start(conf, o); err != nil {
		return nil, err
	}
	if err := e.provision(ctx, o.Log); err != nil {
		return nil, err
	}
	return e, nil
}

// CheckListen refuses an address that other machines can reach: this broker's users are the services of one machine, and it has no TLS.
func CheckListen(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("NOTIFIER_LISTEN=%q: want host:port, such as 127.0.0.1:4222", addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("NOTIFIER_LISTEN=%q: the embedded broker listens on a loopback address only; "+
			"for probes on other machines run nats-server and set NATS_URL", addr)
	}
	return nil
}

// lockDir takes the state directory for this process. The lock goes with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, Unusable{fmt.Errorf("lock %s: %w: make the directory (NOTIFIER_STATE) writable for the user %d, who runs this", path, cause(err), os.Geteuid())}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is in use by another notifier: stop it, or set NOTIFIER_STATE to another directory", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// prepare writes what the broker starts from and returns the path of its configuration.
func (e *Embedded) prepare(listen string) (string, error) {
	keys, err := EnsureIdentities(filepath.Join(e.stateDir, "identities"), Identities()...)
	if err != nil {
		return "", err
	}
	// One probe, of any node: who may reach a loopback port with this key is on this machine.
	if err := WriteKeyring(e.Keyring(), []KeyringEntry{{Node: "*", Key: keys[Probe]}}); err != nil {
		return "", err
	}
	text, err := ServerConfig{
		Listen:             listen,
		StoreDir:           filepath.Join(e.stateDir, "jetstream"),
		WGProvisioner:      keys[WGProvisioner],
		HooksProvisioner:   keys[HooksProvisioner],
		ReadersProvisioner: keys[ReadersProvisioner],
		Probes:             []ProbeUser{{Key: keys[Probe]}},
		Notifiers:          []string{keys[Notifier]},
		Operators:          []string{keys[Operator]},
		Readers:            []string{keys[Reader]},
	}.Render()
	if err != nil {
		return "", err
	}
	conf := filepath.Join(e.stateDir, "nats.conf")
	return conf, writeIfChanged(conf, text)
}

// start runs the server and returns when its port is open.
func (e *Embedded) start(conf string, o EmbeddedOptions) error {
	opts, err := server.ProcessConfigFile(conf)
	if err != nil {
		return fmt.Errorf("embedded broker: %w", err)
	}
	opts.NoSigs = true // signals are the notifier's
	opts.NoLog = true  // the adapter below logs

	// Asked first for its error, which the server only has as text.
	if err := probePort(o.Listen); err != nil {
		return err
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("embedded broker: %w", err)
	}
	e.server = s
	logger := &serverLogger{log: o.Log}
	s.SetLoggerV2(logger, false, false, false)

	started := make(chan struct{})
	go func() {
		defer close(started)
		s.Start()
	}()
	select {
	case <-started:
	case <-time.After(startTimeout):
		return fmt.Errorf("embedded broker: not ready after %s: see its log above", startTimeout)
	}
	if fatal := logger.fatal.Load(); fatal != nil {
		return fmt.Errorf("embedded broker: %s", *fatal)
	}
	if !s.ReadyForConnections(startTimeout) {
		return fmt.Errorf("embedded broker: port not open after %s: see its log above", startTimeout)
	}
	return nil
}

func probePort(addr string) error {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is in use: set NOTIFIER_LISTEN to another, or NATS_URL to the broker that runs there", addr)
	}
	if err != nil {
		return Unusable{fmt.Errorf("embedded broker: %w: set NOTIFIER_LISTEN to another address", err)}
	}
	return l.Close()
}

func (e *Embedded) provision(ctx context.Context, log *slog.Logger) error {
	var p Provisioners
	for name, nc := range map[string]**nats.Conn{WGProvisioner: &p.WG, HooksProvisioner: &p.Hooks, ReadersProvisioner: &p.Readers} {
		var err error
		if *nc, err = Connect(ctx, ConnectOptions{URL: e.URL(), Name: name, Role: name, NkeyFile: e.IdentityFile(name)}, log.With("identity", name)); err != nil {
			return err
		}
		defer (*nc).Close()
	}
	_, err := Provision(ctx, p, false, log)
	return err
}

// URL is where clients connect.
func (e *Embedded) URL() string { return e.server.ClientURL() }

// IdentityFile is the path of an identity's seed.
func (e *Embedded) IdentityFile(name string) string {
	return IdentityFile(filepath.Join(e.stateDir, "identities"), name)
}

// Keyring is the path of the file that says whose signatures count.
func (e *Embedded) Keyring() string { return filepath.Join(e.stateDir, "keyring") }

// Shutdown stops the broker, waits until everything is on disk, and lets go of the state directory. It may be called once.
func (e *Embedded) Shutdown() {
	if e.server != nil {
		e.server.Shutdown()
		e.server.WaitForShutdown()
	}
	e.lock.Close() // with it goes the lock
}

// serverLogger passes the server's log on. Its notices are the talk of a program of its own (banner, limits, "server is ready") and are debug here; what it calls fatal does
// not end the process: StartEmbedded returns it.
type serverLogger struct {
	log   *slog.Logger
	fatal atomic.Pointer[string]
}

func (l *serverLogger) print(level slog.Level, format string, v []any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	l.log.Log(context.Background(), level, "embedded broker", "detail", strings.TrimSpace(fmt.Sprintf(format, v...)))
}

func (l *serverLogger) Noticef(format string, v ...any) { l.print(slog.LevelDebug, format, v) }
func (l *serverLogger) Warnf(format string, v ...any)   { l.print(slog.LevelWarn, format, v) }
func (l *serverLogger) Errorf(format string, v ...any)  { l.print(slog.LevelError, format, v) }
func (l *serverLogger) Debugf(format string, v ...any)  { l.print(slog.LevelDebug, format, v) }
func (l *serverLogger) Tracef(format string, v ...any)  { l.print(slog.LevelDebug, format, v) }

func (l *serverLogger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.fatal.CompareAndSwap(nil, &text)
	l.print(slog.LevelError, format, v)
}

var _ server.Logger = (*serverLogger)(nil)
