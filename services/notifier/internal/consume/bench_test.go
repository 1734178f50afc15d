package consume

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

// busy returns the processor time that this process has taken.
func busy(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// bare measures net/http alone: n requests with this body, as many in flight as a hook has.
func bare(b *testing.B, url string, body []byte, n int) (perSecond float64) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: deliver.DefaultConcurrency}}
	defer client.CloseIdleConnections()
	var next atomic.Int64
	var clients sync.WaitGroup
	begin := time.Now()
	for range deliver.DefaultConcurrency {
		clients.Go(func() {
			for next.Add(1) <= int64(n) {
				resp, err := client.Post(url, events.ContentType, bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	clients.Wait()
	return float64(n) / time.Since(begin).Seconds()
}

// BenchmarkDeliver measures deliveries of a backlog to a sink in the same process: events of about 500 bytes, each of another peer, verified and signed,
// 16 in flight, acknowledged, the embedded broker on disk and as it is in production. Beside it stands what a bare client does, in the same run.
//
//	go test ./internal/consume -run '^$' -bench Deliver -benchtime 20000x
func BenchmarkDeliver(b *testing.B) {
	b.Run("verified", func(b *testing.B) { benchmarkDeliver(b, true) })
	b.Run("unverified", func(b *testing.B) { benchmarkDeliver(b, false) })
}

func benchmarkDeliver(b *testing.B, verify bool) {
	br := &broker{t: b, opts: brokerOptions(b)}
	br.opts.SyncAlways = true
	br.begin()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	ring := events.Keyring{"vpn-1": {public}}
	var body []byte
	for i := range b.N {
		e := br.event(fmt.Sprintf("peer-%d", i))
		if body, err = e.Encode(); err != nil {
			b.Fatal(err)
		}
		msg := nats.NewMsg(string(e.Type))
		msg.Data = body
		msg.Header.Set(events.HeaderSignature, base64.StdEncoding.EncodeToString(ed25519.Sign(private, body)))
		if _, err := br.js.PublishMsgAsync(msg, jetstream.WithStallWait(patience)); err != nil {
			b.Fatal(err)
		}
	}
	<-br.js.PublishAsyncComplete()

	var n, most atomic.Int64
	most.Store(-1)
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if n.Add(1) == most.Load() {
			close(done)
		}
	}))
	b.Cleanup(srv.Close)
	at := busy(b)
	before := bare(b, srv.URL, body, b.N)
	bareBusy := busy(b) - at

	n.Store(0)
	most.Store(int64(b.N))
	at = busy(b)
	b.ResetTimer()
	run(b, br, &sink{Server: srv}, func(c *Config, _ *timing) {
		c.Log = slog.New(slog.DiscardHandler)
		c.Hook.Policy.From = From{All: true}
		if !verify {
			return
		}
		c.Verify = func(body []byte, signature string) (*events.Event, error) {
			return events.Verify(body, signature, ring)
		}
	})
	<-done
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.StopTimer()
	b.ReportMetric(float64((busy(b)-at).Microseconds())/float64(b.N), "cpu-µs/delivery")
	b.ReportMetric(float64(bareBusy.Microseconds())/float64(b.N), "cpu-µs/bare")
	br.finished("h")
	b.ReportMetric(rate, "deliveries/s")
	b.ReportMetric(before, "bare/s")
	b.ReportMetric(rate/before, "of-bare")
	b.ReportMetric(float64(len(body)), "bytes/event")
}

// BenchmarkFirstDelivery measures one event at a time, from its publishing to its arrival at the sink, the hook idle before.
func BenchmarkFirstDelivery(b *testing.B) {
	br := newBroker(b)
	arrived := make(chan struct{}, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived <- struct{}{} }))
	b.Cleanup(srv.Close)
	run(b, br, &sink{Server: srv}, func(c *Config, _ *timing) { c.Log = slog.New(slog.DiscardHandler) })
	i := 0
	for b.Loop() {
		i++
		br.publish(fmt.Sprintf("peer-%d", i))
		<-arrived
	}
}
