package forward_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/forward"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, f *forward.Forwarder) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", f.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// start forwards to a server that answers with what it got, once it got all.
func start(t *testing.T) *forward.Forwarder {
	t.Helper()
	server := listen(t)
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if got, err := io.ReadAll(c); err == nil {
					c.Write(got)
				}
			}()
		}
	}()
	f := forward.Start(listen(t), func() (net.Conn, error) { return net.Dial("tcp", server.Addr().String()) })
	t.Cleanup(f.Close)
	return f
}

func TestBothWaysToTheEnd(t *testing.T) {
	t.Parallel()
	c := dial(t, start(t))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNothingBehindIt(t *testing.T) {
	t.Parallel()
	f := forward.Start(listen(t), func() (net.Conn, error) { return nil, errors.New("nobody there") })
	defer f.Close()
	if _, err := io.ReadAll(dial(t, f)); err != nil {
		t.Errorf("want the connection closed, got %v", err)
	}
}

func TestCloseCutsOff(t *testing.T) {
	t.Parallel()
	f := start(t)
	c := dial(t, f)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	f.Close() // returns although the connection was open
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
}

func TestListenOnAnotherPortWhenTaken(t *testing.T) {
	t.Parallel()
	taken := listen(t)
	l, err := forward.Listen(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Addr().String() == taken.Addr().String() {
		t.Error("listens on a port that is taken")
	}
}
