package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// floodVariable makes of the test binary a sender instead: it holds the address to send to, the datagrams a second and how many in all. A process of its
// own, so that what sending costs is not taken for what listening costs.
const floodVariable = "WGHERALD_TEST_FLOOD"

func TestMain(m *testing.M) {
	if what := os.Getenv(floodVariable); what != "" {
		if err := flood(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// flood sends datagrams that have the shape of an initiation, evenly spaced, with the time of sending in them.
func flood(what string) error {
	var to string
	var perSecond, count int
	if _, err := fmt.Sscan(what, &to, &perSecond, &count); err != nil {
		return err
	}
	conn, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	msg := initiation()
	for i, began := 0, time.Now(); i < count; i++ {
		if wait := time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))); wait > 0 {
			ts := unix.NsecToTimespec(int64(wait))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
		}
		binary.LittleEndian.PutUint64(msg[sentOffset:], uint64(time.Now().UnixNano()))
		if _, err := conn.Write(msg); err != nil {
			return err
		}
	}
	return nil
}

// sentOffset is where in a flood's datagrams the time of sending is, in ns of the clock that all processes share.
const sentOffset = 8

// startFlood starts a sender in a namespace.
func startFlood(t testing.TB, ns netns.NsHandle, to netip.AddrPort, perSecond, count int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%v %d %d", floodVariable, to, perSecond, count))
	cmd.Stderr = os.Stderr
	if err := within(ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestFlood checks that under a flood each message is heard, in order, or counted as dropped, and that after it a lone one is heard.
func TestFlood(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	ns := newNamespace(t)
	address(t, handle(t, ns), "lo", 1)
	conn := udpSocket(t, ns, ip4Of(1))
	l := listen(t, ns)
	heard, ended := make(chan uint64, 64), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- l.Run(ctx, func(p Packet) { heard <- binary.LittleEndian.Uint64(p.Payload[sentOffset:]) })
	}()

	const count = 10_000 // in a second, far more than paceBurst
	cmd := startFlood(t, ns, addrOf(conn), count, count)
	var last uint64
	for got := uint64(0); ; got++ {
		stats, err := l.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if got+stats.Dropped == count {
			break
		}
		select {
		case sent := <-heard:
			if sent <= last {
				t.Fatalf("a message sent at %d was heard after one sent at %d", sent, last)
			}
			last = sent
		case <-time.After(patience):
			t.Fatalf("%d messages were heard and %d dropped of %d", got, stats.Dropped, count)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(3) {
		msg := initiation()
		binary.LittleEndian.PutUint64(msg[sentOffset:], n)
		send(t, conn, conn, msg)
		select {
		case got := <-heard:
			if got != n {
				t.Errorf("after the flood message %d was heard as %d", n, got)
			}
		case <-time.After(patience):
			t.Fatalf("message %d after the flood was not heard within %v", n, patience)
		}
	}
	cancel()
	if err := await(t, ended); err != nil {
		t.Error(err)
	}
}

// TestReadingAllocatesNothing follows messages from the socket to the handler.
func TestReadingAllocatesNothing(t *testing.T) {
	requireRoot(t)
	ns := newNamespace(t)
	address(t, handle(t, ns), "lo", 1)
	conn := udpSocket(t, ns, ip4Of(1))
	l := listen(t, ns)
	msg, got := initiation(), 0
	n := testing.AllocsPerRun(100, func() {
		for range batchSize / 2 {
			send(t, conn, conn, msg)
		}
		if err := l.poll.read(); err != nil {
			t.Fatal(err)
		}
		for _, r := range l.readers {
			l.handle(r, func(Packet) { got++ })
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for %d messages, want none", n, batchSize/2)
	}
	if got == 0 {
		t.Error("no message was handled")
	}
}

// BenchmarkFlood is the price of junk that passes the filter, which a right mac1 alone would tell from a handshake: the time on the CPU of the whole
// process that listens, in the kernel and out of it, and how long after it was sent a message is handled. At 20 a second each message is alone.
func BenchmarkFlood(b *testing.B) {
	requireRoot(b)
	for _, perSecond := range []int{20, 5_000, 20_000, 50_000} {
		b.Run(fmt.Sprintf("%d a second", perSecond), func(b *testing.B) {
			ns := newNamespace(b)
			address(b, handle(b, ns), "lo", 1)
			conn := udpSocket(b, ns, ip4Of(1))
			l := listen(b, ns)
			key := wgmsg.NewMAC1Key([32]byte{1})
			delays := make([]time.Duration, 0, b.N)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() {
				ended <- l.Run(ctx, func(p Packet) {
					delays = append(delays, time.Since(time.Unix(0, int64(binary.LittleEndian.Uint64(p.Payload[sentOffset:])))))
					if key.Verify(p.Payload) {
						b.Error("junk has a right mac1")
					}
				})
			}()
			b.ReportAllocs()
			before := cpuTime(b)
			b.ResetTimer()
			if err := startFlood(b, ns, addrOf(conn), perSecond, b.N).Wait(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			used := cpuTime(b) - before
			time.Sleep(10 * time.Millisecond) // for the last ones
			cancel()
			if err := await(b, ended); err != nil {
				b.Fatal(err)
			}
			stats, err := l.Stats()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
			b.ReportMetric(100*float64(used)/float64(b.Elapsed()), "%core")
			b.ReportMetric(float64(stats.Dropped), "dropped")
			slices.Sort(delays)
			for _, percent := range []int{50, 99} {
				b.ReportMetric(float64(delays[len(delays)*percent/100].Nanoseconds())/1e3, fmt.Sprintf("p%d-µs", percent))
			}
		})
	}
}

// cpuTime is what this process has used of the CPUs.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
