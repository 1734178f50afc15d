package publish

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/services/probe/internal/config"
)

// InboxPrefix is below what acks come back; the broker's permissions name it.
const InboxPrefix = "_INBOX_probe"

// Connect returns a connection that stays: it need not be up yet and reconnects for ever, after a refused login too, because the key may be added to the
// broker while the probe waits. Nothing is buffered while it is down, for the outbox does that on disk. The channel receives a value when the
// connection is up again. When ctx ends, a connection that is up stays until it is closed, and one that is not is not tried for any longer.
//
// Each ack for another process that publishes as this node is counted by clashed. What the broker refuses is told to denied: each state, which it does to the
// key of another node, while of the events only who verifies them knows; and each event. Both may be called by any goroutine.
//
// An error is a matter of configuration: a file that cannot be read, an address that is none.
func Connect(ctx context.Context, c config.NATS, node string, id Identity, clashed func(), denied func(Denied), log *slog.Logger) (*nats.Conn, <-chan struct{}, error) {
	up := make(chan struct{}, 1)
	log = log.With("component", "broker")
	others := clash{inboxes: newInboxes(node), count: clashed, log: log, from: time.Now().Add(clashGrace)}
	connected := func(nc *nats.Conn) {
		// Not the URL: its user may be a token.
		log.Info("connected", "address", nc.ConnectedAddr(), "version", nc.ConnectedServerVersion())
		if v := nc.ConnectedServerVersion(); tooOld(v) {
			log.Warn("the broker is too old: nats-server 2.11 or newer is needed, and what this one refuses is kept until it is replaced", "version", v)
		}
		select {
		case up <- struct{}{}:
		default: // a value that says the same waits there
		}
	}
	var (
		mu   sync.Mutex
		told []string // the last causes: with several servers they take turns
	)
	away := func(err error) { // once for each cause: attempts come every second
		mu.Lock()
		defer mu.Unlock()
		if err == nil || ctx.Err() != nil || errors.Is(err, nats.ErrNoServers) { // which hides the cause
			return
		}
		if err = explainConnect(err, id.Public); !slices.Contains(told, err.Error()) {
			told = append(told[max(0, len(told)-15):], err.Error())
			if errors.Is(err, nats.ErrPermissionViolation) {
				log.Error("something is refused", "error", err)
				return
			}
			log.Warn("not reached, trying on; events are kept", "error", err)
		}
	}
	opts := []nats.Option{
		nats.Name("wgherald-probe " + node),
		nats.CustomInboxPrefix(others.own),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.SetCustomDialer(dialer{ctx}),
		nats.SkipHostLookup(), // the dialer asks
		nats.ConnectHandler(connected),
		nats.ReconnectHandler(connected),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { away(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { away(err) }),
		// A denied publish is told here alone; its sender sees a time-out.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			switch {
			case deniesEvent(err):
				denied(DeniesEvents)
			case c.NkeyFile != "" && deniesState(err): // other logins may have none of the rights that `notifier keys` gives
				denied(DeniesStates)
			}
			away(err)
		}),
	}
	if c.NkeyFile != "" {
		// The file is not read again: whoever started the probe may read it, and the probe perhaps no more.
		opts = append(opts, nats.Nkey(id.Public, func(nonce []byte) ([]byte, error) { return ed25519.Sign(id.Key, nonce), nil }))
	}
	if c.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(c.CredsFile))
	}
	if c.CAFile != "" {
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	if c.CertFile != "" {
		opts = append(opts, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	nc, err := nats.Connect(c.URL, opts...)
	if _, quotes := errors.AsType[*url.Error](err); quotes {
		err = errors.New("NATS_URL is no URL") // the cause quotes it, and with it a password
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: the probe runs as user %d, who has to be able to read it, and not even as root reads it other users' files", err, os.Geteuid())
	}
	if err != nil {
		return nil, nil, fmt.Errorf("broker connection: %w", err)
	}
	if err := others.watch(nc); err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("broker connection: %w", err)
	}
	return nc, up, nil
}

// tooOld reports whether a broker lacks what is relied on, as the TTL of a message: before 2.11.
func tooOld(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major < 2 || major == 2 && minor < 11)
}
