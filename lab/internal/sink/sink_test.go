package sink_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

type sender struct {
	t   *testing.T
	url string
	*sink.Sink
}

func start(t *testing.T) *sender {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := sink.Start(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &sender{t, "http://" + l.Addr().String() + "/hook", s}
}

// connected is an event of a peer; n makes it another event.
func connected(t *testing.T, n uint64) *events.Event {
	t.Helper()
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	return events.New(&events.Connected{
		Common:  events.Common{Node: "vpn-1", Interface: "wg0", DetectedAt: now},
		Peer:    events.Peer{PublicKey: events.Key{1}, Name: "alice"},
		Session: events.Session{StartedAt: now, LastHandshakeAt: now},
	}, now, events.Sequence{Epoch: 1795342000123, N: n})
}

// request is the event as it should be sent, with change made before it is.
func (s *sender) request(e *events.Event, change func(*http.Request)) *http.Request {
	s.t.Helper()
	body, err := e.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	hook, err := standardwebhooks.NewWebhook(s.Secret())
	if err != nil {
		s.t.Fatal(err)
	}
	now := time.Now()
	signature, err := hook.Sign(e.ID, now, body)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", events.ContentType)
	r.Header.Set(standardwebhooks.HeaderWebhookID, e.ID)
	r.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	r.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	if change != nil {
		change(r)
	}
	return r
}

// send returns the status of the answer.
func (s *sender) send(r *http.Request) int {
	s.t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestRequests(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change  func(*http.Request)
		status  int
		wantErr string // part of Delivery.Err
	}{
		"as it should be":    {nil, 204, ""},
		"not signed":         {func(r *http.Request) { r.Header.Del("webhook-signature") }, 400, "missing required headers"},
		"signed by another":  {func(r *http.Request) { r.Header.Set("webhook-signature", "v1,AAAA") }, 400, "no matching signature"},
		"signed long ago":    {func(r *http.Request) { r.Header.Set("webhook-timestamp", "1700000000") }, 400, "too old"},
		"another body":       {func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2 }, 400, "decode"},
		"another method":     {func(r *http.Request) { r.Method = http.MethodPut }, 400, "method is PUT"},
		"another media type": {func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 400, "content type"},
		"an id of its own":   {func(r *http.Request) { r.Header.Set("webhook-id", "x") }, 400, "no matching signature"},
		"several signatures": {func(r *http.Request) {
			r.Header["Webhook-Signature"][0] = "v1,AAAA " + r.Header.Get("webhook-signature")
		}, 204, ""},
		"no header it expects": {func(r *http.Request) { r.Header = http.Header{} }, 400, "content type"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			if got := s.send(s.request(connected(t, 1), tt.change)); got != tt.status {
				t.Errorf("status %d, want %d", got, tt.status)
			}
			d, err := s.Wait(t.Context(), func(sink.Delivery) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			if (d.Err == nil) != (tt.wantErr == "") || d.Err != nil && !strings.Contains(d.Err.Error(), tt.wantErr) {
				t.Errorf("judged %v, want %q", d.Err, tt.wantErr)
			}
			if d.OK() != (tt.wantErr == "") {
				t.Errorf("OK is %t", d.OK())
			}
			if d.Err == nil && (d.Event.Peer().Name != "alice" || d.ID != d.Event.ID) {
				t.Errorf("recorded %+v", d)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	s := start(t)
	first, second := connected(t, 1), connected(t, 2)
	s.Inject(sink.Fault{Times: 2, Status: 503, Match: func(d sink.Delivery) bool { return d.ID == first.ID }})
	s.Inject(sink.Fault{Status: 429, RetryAfter: "7"})
	for i, want := range []struct {
		e      *events.Event
		status int
	}{{first, 503}, {second, 429}, {first, 503}, {first, 429}} {
		if got := s.send(s.request(want.e, nil)); got != want.status {
			t.Errorf("request %d: status %d, want %d", i, got, want.status)
		}
	}
	s.Heal()
	if got := s.send(s.request(first, nil)); got != 204 {
		t.Errorf("status %d after healing", got)
	}
	var attempts []int
	for _, d := range s.All() {
		if d.ID == first.ID {
			attempts = append(attempts, d.Attempt)
		}
	}
	if len(attempts) != 4 || attempts[0] != 1 || attempts[3] != 4 {
		t.Errorf("attempts of one event are numbered %v", attempts)
	}
}

func TestHangingRequestEndsWith(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *sender, cancel func()){
		"its sender": func(_ *sender, cancel func()) { cancel() },
		"healing":    func(s *sender, _ func()) { s.Heal() },
		"the sink":   func(s *sender, _ func()) { s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			s.Inject(sink.Fault{Hang: true})
			ctx, cancel := context.WithCancel(context.Background())
			t.Cleanup(cancel)
			done := make(chan error, 1)
			go func() {
				_, err := http.DefaultClient.Do(s.request(connected(t, 1), nil).WithContext(ctx))
				done <- err
			}()
			if _, err := s.Wait(t.Context(), func(d sink.Delivery) bool { return d.Err == nil && d.Status == 0 }); err != nil {
				t.Fatal(err)
			}
			end(s, cancel)
			if err := <-done; err == nil {
				t.Error("the request was answered")
			}
		})
	}
}

func TestSlowAnswer(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.Inject(sink.Fault{Delay: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		s.Wait(t.Context(), func(sink.Delivery) bool { return true })
		cancel()
	}()
	if _, err := http.DefaultClient.Do(s.request(connected(t, 1), nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; the answer should not have come yet", err)
	}
}
