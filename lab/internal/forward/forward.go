// Package forward lets programs on the host reach a port inside a network namespace: it copies bytes between a listener and connections made by a
// dial function. It knows no protocol.
package forward

import (
	"io"
	"net"
	"sync"
)

// Forwarder copies until Close.
type Forwarder struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	work     sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// Start forwards what l accepts to connections from dial. A connection for which dial fails is closed.
func Start(l net.Listener, dial func() (net.Conn, error)) *Forwarder {
	f := &Forwarder{listener: l, dial: dial, open: map[net.Conn]struct{}{}}
	f.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			f.work.Go(func() { f.forward(c) })
		}
	})
	return f
}

// Listen listens on address, or on another port of its host when that one is taken.
func Listen(address string) (net.Listener, error) {
	if l, err := net.Listen("tcp", address); err == nil {
		return l, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return net.Listen("tcp", net.JoinHostPort(host, "0"))
}

// Addr is where it listens.
func (f *Forwarder) Addr() net.Addr { return f.listener.Addr() }

// Close stops listening and cuts off what is open.
func (f *Forwarder) Close() {
	f.listener.Close()
	f.mu.Lock()
	f.closed = true
	for c := range f.open {
		c.Close()
	}
	f.mu.Unlock()
	f.work.Wait()
}

// track takes a connection under Close's control, and reports false when it is too late for that.
func (f *Forwarder) track(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[c] = struct{}{}
	return !f.closed
}

func (f *Forwarder) drop(c net.Conn) {
	c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
}

func (f *Forwarder) forward(out net.Conn) {
	defer f.drop(out)
	if !f.track(out) {
		return
	}
	in, err := f.dial()
	if err != nil {
		return
	}
	defer f.drop(in)
	if !f.track(in) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(in, out)
	}()
	pipe(out, in)
	<-done
}

// pipe copies one direction and passes its end on, so that the other direction can finish.
func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(*net.TCPConn); ok && err == nil {
		_ = half.CloseWrite() // fails only when the other side is gone
		return
	}
	to.Close()
	from.Close()
}
