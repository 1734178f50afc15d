package publish

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/services/probe/internal/config"
)

// InboxPrefix is where acks come back; the broker's permissions name it.
const InboxPrefix = "_INBOX_probe"

// Connect returns a connection that stays: it need not be up yet and reconnects for ever, after a refused login too, because the key may be added to the
// broker while the probe waits. Nothing is buffered while it is down, for the outbox does that on disk. The channel receives a value when the
// connection is up again.
//
// An error is a matter of configuration: a file that cannot be read, an address that is none.
func Connect(c config.NATS, node string, log *slog.Logger) (*nats.Conn, <-chan struct{}, error) {
	up := make(chan struct{}, 1)
	log = log.With("component", "broker")
	connected := func(nc *nats.Conn) {
		// Not the URL: its user may be a token.
		log.Info("connected", "address", nc.ConnectedAddr(), "version", nc.ConnectedServerVersion())
		select {
		case up <- struct{}{}:
		default: // a value that says the same waits there
		}
	}
	var (
		mu   sync.Mutex
		last string
	)
	away := func(err error) { // once for each cause: attempts come every second
		mu.Lock()
		defer mu.Unlock()
		if err = explainConnect(err); err != nil && !errors.Is(err, nats.ErrNoServers) && err.Error() != last { // ErrNoServers hides the cause, which comes next
			last = err.Error()
			log.Warn("not reached, trying on; events are kept", "error", err)
		}
	}
	opts := []nats.Option{
		nats.Name("wgherald-probe " + node),
		nats.CustomInboxPrefix(InboxPrefix),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1),
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ConnectHandler(connected),
		nats.ReconnectHandler(connected),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { away(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { away(err) }),
		// A denied publish is told here alone; its sender sees a time-out.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { away(err) }),
	}
	if c.NkeyFile != "" {
		opt, err := nats.NkeyOptionFromSeed(c.NkeyFile)
		if err != nil {
			return nil, nil, fmt.Errorf("broker login with key file %s failed: it is missing or holds no nkey seed", c.NkeyFile)
		}
		opts = append(opts, opt)
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
	if err != nil {
		return nil, nil, fmt.Errorf("broker connection: %w", err)
	}
	return nc, up, nil
}
