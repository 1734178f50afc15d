package publish

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// dialTimeout bounds the way to one address.
const dialTimeout = 2 * time.Second

// dialer reaches the broker until its context ends. Left alone, the library asks for a name without any bound, and with its connection locked: while no resolver
// answers, nothing that is asked of the connection returns, not even Close.
type dialer struct{ ctx context.Context }

// Dial implements nats.CustomDialer. Of several addresses any may be the first, so that probes spread over a cluster behind one name.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(d.ctx, host) // LookupHost does not end with its context
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	err = fmt.Errorf("%s has no address", host)
	for _, addr := range addrs {
		var conn net.Conn
		to := net.Dialer{Timeout: dialTimeout}
		if conn, err = to.DialContext(d.ctx, network, net.JoinHostPort(addr.String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
