package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// ConnectOptions says where and as whom to log in. Empty file names are not used.
type ConnectOptions struct {
	URL  string // one or several, separated by commas
	Name string // shown by the broker's monitoring
	Role string // names the inboxes (InboxPrefix); the login itself is the file's

	NkeyFile  string // seed
	CredsFile string // JWT and seed
	CAFile    string // PEM, instead of the system's roots
	CertFile  string // PEM, with KeyFile
	KeyFile   string

	Once bool // fail where the broker is away or refuses the login
}

// Connect returns a connection that stays: it need not be up yet, and it reconnects for ever, also after a refused login, because a key may be added to the broker while
// the service waits. Nothing is buffered while it is down: a publish fails at once and its owner decides. A denied publish or subscription shows nowhere but in log.
// When ctx ends, a connection that is up stays until it is closed, and one that is not is not tried for any longer.
//
// An error is a matter of configuration: a file that cannot be read, an URL that is none. With Once the connection is up when Connect returns, and an error may be
// the broker's.
func Connect(ctx context.Context, o ConnectOptions, log *slog.Logger) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name(o.Name),
		nats.CustomInboxPrefix(InboxPrefix(o.Role)),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(!o.Once),
		nats.ReconnectBufSize(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(time.Second),
		nats.SetCustomDialer(dialer{ctx}),
		nats.SkipHostLookup(), // the dialer asks
	}
	opts = append(opts, handlers(ctx, log)...)
	if o.NkeyFile != "" {
		opt, err := nats.NkeyOptionFromSeed(o.NkeyFile)
		if err != nil {
			return nil, fmt.Errorf("broker login: key file %s: %w", o.NkeyFile, hideSeed(err))
		}
		opts = append(opts, opt)
	}
	if o.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredsFile))
	}
	if o.CAFile != "" {
		opts = append(opts, nats.RootCAs(o.CAFile))
	}
	if o.CertFile != "" {
		opts = append(opts, nats.ClientCert(o.CertFile, o.KeyFile))
	}
	nc, err := nats.Connect(o.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("broker connection: %w", explainConnect(hideURL(err)))
	}
	return nc, nil
}

// handlers log what the library reports to callbacks only.
func handlers(ctx context.Context, log *slog.Logger) []nats.Option {
	unreachable := once(log) // attempts come every second
	return []nats.Option{
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrAuthorization) {
				unreachable.report(err)
				return
			}
			attrs := []any{"error", err.Error()}
			if sub != nil {
				attrs = append(attrs, "subject", sub.Subject)
			}
			log.Error("broker refused or lost something", attrs...)
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			unreachable.reset()
			// Not the URL: its user may be a token.
			log.Info("broker connected", "address", nc.ConnectedAddr(), "version", nc.ConnectedServerVersion())
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			unreachable.reset()
			log.Info("broker reconnected", "address", nc.ConnectedAddr(), "version", nc.ConnectedServerVersion())
		}),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if err != nil {
				log.Warn("broker connection lost", "error", err.Error())
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if ctx.Err() == nil {
				unreachable.report(err)
			}
		}),
	}
}

// maxReasons bounds the reasons that repeated tells apart: some have a port number in them that is new each time.
const maxReasons = 8

// repeated logs each reason once, however often it comes: the addresses of a list take turns, and so do their reasons.
type repeated struct {
	log  *slog.Logger
	mu   sync.Mutex
	told map[string]bool
}

func once(log *slog.Logger) *repeated { return &repeated{log: log, told: map[string]bool{}} }

func (r *repeated) report(err error) {
	if err == nil || errors.Is(err, nats.ErrNoServers) { // the library's word for the first failure; its reason comes next
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if text := explainConnect(err).Error(); !r.told[text] && len(r.told) < maxReasons {
		r.told[text] = true
		r.log.Warn("broker not reached, trying on", "error", text)
	}
}

func (r *repeated) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.told)
}

// WhyDown returns why a connection that never came up did not, in plain words, or nil where the broker was not even reached.
func WhyDown(nc *nats.Conn) error { return explainConnect(nc.LastError()) }

// hideSeed lets only the error of reading the file through, with what to do about it: one about its text may quote the seed.
func hideSeed(err error) error {
	pe, ok := errors.AsType[*fs.PathError](err)
	switch {
	case !ok:
		return errors.New("not the nkey seed of a user")
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: `notifier keys` makes it, and NATS_NKEY_FILE names it", pe.Err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the user %d, who runs this, must be able to read it", pe.Err, os.Geteuid())
	}
	return pe.Err
}

// hideURL replaces an error that quotes the URL, which may hold a password.
func hideURL(err error) error {
	if _, quotes := errors.AsType[*url.Error](err); quotes {
		return errors.New("the URL cannot be parsed")
	}
	return err
}
