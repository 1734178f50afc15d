package consume

import (
	"bytes"
	"net"
	"net/http"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// frozen is a way to the broker on which nothing comes back while it is locked, as over a slow network or with a busy machine, and nothing gets there while there is.
type frozen struct {
	sync.Mutex
	there sync.Mutex
	js    jetstream.JetStream
}

func (b *broker) frozen() *frozen {
	t := b.t
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, to := &frozen{}, b.srv.Addr().String()
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			pass := func(to, from net.Conn, lock sync.Locker) {
				defer to.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := from.Read(buf)
					lock.Lock()
					_, werr := to.Write(buf[:n])
					lock.Unlock()
					if err != nil || werr != nil {
						return
					}
				}
			}
			go pass(server, client, &f.there)
			go pass(client, server, f)
		}
	}()
	nc, err := nats.Connect("nats://"+l.Addr().String(), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if f.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return f
}

// through has the notifier take that way.
func through(f *frozen) option { return func(c *Config, _ *timing) { c.JetStream = f.js } }

// delivered waits until the server has sent so many messages to the hook.
func (b *broker) delivered(n uint64) {
	b.t.Helper()
	eventually(b.t, "the server has sent it", func() bool { return b.info("h").Delivered.Consumer >= n })
}

// The server counts a message as delivered when it sends it: one that is dropped comes again when its AckWait of a minute is over.
func TestAMessageThatComesAfterItsRequestHasExpiredIsDelivered(t *testing.T) {
	t.Parallel()
	b, s := newBroker(t), newSink(t, ok)
	f := b.frozen()
	run(t, b, s, through(f), withTiming(time.Minute, 3*time.Second)) // a request waits for a second
	want := b.publish("alice")
	s.take(t, "", 1)
	f.Lock()
	want = append(want, b.publish("alice", "alice")...)
	b.delivered(3)
	time.Sleep(2 * time.Second) // twice that
	f.Unlock()
	same(t, "delivered", want, s.take(t, "", len(want)))
	if n := b.info("h").Delivered.Consumer; n != 3 {
		t.Errorf("%d deliveries by the server, want 3", n)
	}
}

func TestAMessageOnItsWayToANotifierThatStopsIsHandedBack(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		had  int // events delivered before
	}{
		{"to the owner", 1},
		{"the first event", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b, s := newBroker(t), newSink(t, ok)
			f := b.frozen()
			leaving := run(t, b, s, through(f)) // AckWait of a minute, PinnedTTL of 30 s
			var want []string
			for range tt.had {
				want = append(want, b.publish("alice")...)
			}
			s.take(t, "", tt.had)
			eventually(t, "it asks for messages", func() bool { return b.info("h").NumWaiting == 1 })
			f.Lock()
			want = append(want, b.publish("alice")...)
			b.delivered(uint64(tt.had) + 1)
			leaving.cancel()
			time.AfterFunc(300*time.Millisecond, f.Unlock)
			leaving.stop()
			begin := time.Now()
			run(t, b, s)
			same(t, "delivered", want, s.take(t, "", len(want)))
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("the next owner took %s", took)
			}
		})
	}
}

// Who is cut off from the broker learns from nobody that it is not the owner any more. What it holds, the next owner has delivered, and what came after it.
func TestAnOwnerThatTheBrokerDoesNotReachSendsNothingAfterTheNextOne(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	s := newSink(t, func(_ http.ResponseWriter, _ string, nth int) int {
		if nth == 1 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	const wait = 6 * time.Second
	late := quick
	late.Initial, late.Jitter = wait, 0
	f, tm := b.frozen(), withTiming(time.Second, time.Second)
	run(t, b, s, through(f), tm, withRetry(late))
	want := b.publish("alice")
	eventually(t, "the first attempt", func() bool { return len(s.requests()) == 1 })
	again := time.After(wait + time.Second)
	f.Lock()
	f.there.Lock()
	thaw := sync.OnceFunc(func() { f.Unlock(); f.there.Unlock() })
	defer thaw()
	run(t, b, s, tm)
	want = append(want, b.publish("alice")...)
	same(t, "delivered by the next owner", want, s.take(t, "", len(want)))
	before := len(s.requests())
	<-again
	if r := s.requests(); len(r) > before {
		t.Errorf("sent after that: %v", r[before:])
	}
	thaw()
	want = append(want, b.publish("alice")...)
	same(t, "delivered", want, s.take(t, "", len(want)))
	b.finished("h")
}

// A change of its configuration ends a hook and begins another one. It runs alone, or others' goroutines would be there, too.
func TestAHookThatEndsLeavesNothing(t *testing.T) {
	b := newBroker(t)
	var both sync.WaitGroup
	both.Add(2)
	s := newSink(t, func(http.ResponseWriter, string, int) int {
		both.Done()
		both.Wait() // so that there are two connections
		return http.StatusOK
	})
	n := run(t, b, s)
	b.publish("alice", "bob")
	s.take(t, "", 2)
	b.finished("h")
	left := func() (n int) {
		var stacks bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&stacks, 2)
		for stack := range strings.SplitSeq(stacks.String(), "\n\n") {
			if strings.Contains(stack, "(*persistConn)") || strings.Contains(stack, "(*puller)") || strings.Contains(stack, "(*session)") ||
				strings.Contains(stack, "(*pool") {
				n++
			}
		}
		return n
	}
	// Two for each connection, one that serves, one that pulls; whoever waits for the inbox is of the library.
	eventually(t, "the hook is idle", func() bool { return left() == 6 })
	n.stop()
	eventually(t, "no goroutine and no connection is left", func() bool { return left() == 0 })
	if n := b.info("h").NumWaiting; n != 0 {
		t.Errorf("%d pull requests are left", n)
	}
	// One is the library's, for answers to requests.
	if n := n.js.Conn().NumSubscriptions(); n != 1 {
		t.Errorf("%d subscriptions are left, want 1", n)
	}
}
