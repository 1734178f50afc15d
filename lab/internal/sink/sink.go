// Package sink is a webhook receiver that trusts nobody: it checks each request with the Standard Webhooks project's own library, decodes the event, and
// writes down what came, when and how often. It can be told to misbehave. It is the judge in the lab's tests and shares no code with the notifier
// but the event contract.
package sink

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/pkg/events"
)

// Delivery is one request.
type Delivery struct {
	At      time.Time // when its body had been read
	ID      string    // its webhook-id
	Attempt int       // 1 for the first request with this ID, 2 for the next
	Header  http.Header
	Body    []byte
	Event   *events.Event // nil when the body is none
	Err     error         // why the request is not a verified event, nil when it is one
	Status  int           // what it was answered, 0 when it was left hanging
}

// OK reports whether the request was a verified event and was taken.
func (d Delivery) OK() bool { return d.Err == nil && d.Status/100 == 2 }

// Fault is a way to misbehave.
type Fault struct {
	Match      func(Delivery) bool // which requests; nil means all
	Times      int                 // how many of them; 0 means all, until Heal
	Status     int                 // the answer; 0 means 204
	RetryAfter string              // the header, if not empty
	Delay      time.Duration       // before the answer
	Hang       bool                // no answer at all
}

// Sink is a running receiver. Its ledger holds every request, in the order of arrival.
type Sink struct {
	ledger.Ledger[Delivery]

	hook   *standardwebhooks.Webhook
	secret string
	server http.Server
	stop   chan struct{}
	served chan error

	closeOnce sync.Once
	closeErr  error

	mu       sync.Mutex
	attempts map[string]int
	faults   []Fault
	healed   chan struct{} // closed by Heal
}

// maxBody is far above what an event may have.
const maxBody = 1 << 20

// NewSecret is a random signing secret, as Standard Webhooks writes it ("whsec_…").
func NewSecret() string {
	key := make([]byte, 32)
	rand.Read(key) // never fails
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

// Start serves on l until Close, with a new secret.
func Start(l net.Listener) (*Sink, error) { return StartWith(l, NewSecret()) }

// StartWith serves on l until Close, with a secret as NewSecret makes them.
func StartWith(l net.Listener, secret string) (*Sink, error) {
	s := &Sink{
		secret:   secret,
		stop:     make(chan struct{}),
		served:   make(chan error, 1),
		attempts: map[string]int{},
		healed:   make(chan struct{}),
	}
	var err error
	if s.hook, err = standardwebhooks.NewWebhook(s.secret); err != nil {
		return nil, err
	}
	s.server.Handler = s
	s.server.ReadTimeout = 10 * time.Second
	s.server.IdleTimeout = 5 * time.Minute         // unset it is ReadTimeout, and the probe samples every 10 s: requests would meet a closing connection
	s.server.ErrorLog = log.New(io.Discard, "", 0) // what matters is in the ledger
	go func() { s.served <- s.server.Serve(l) }()
	return s, nil
}

// Secret is the signing secret.
func (s *Sink) Secret() string { return s.secret }

// Close cuts all requests off and stops.
func (s *Sink) Close() error {
	s.closeOnce.Do(func() {
		close(s.stop)
		s.closeErr = s.server.Close()
		if err := <-s.served; !errors.Is(err, http.ErrServerClosed) {
			s.closeErr = errors.Join(s.closeErr, err)
		}
	})
	return s.closeErr
}

// Inject adds a fault. Of several that match a request the oldest acts.
func (s *Sink) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
}

// Heal removes all faults and lets hanging requests go.
func (s *Sink) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	close(s.healed)
	s.healed = make(chan struct{})
}

func (s *Sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return // the sender broke off, or sends far too much: nothing was received
	}
	d := Delivery{At: time.Now(), ID: r.Header.Get(standardwebhooks.HeaderWebhookID), Header: r.Header.Clone(), Body: body}
	d.Event, d.Err = s.check(r, body)

	fault, healed := s.enter(&d)
	if fault.Hang {
		select {
		case <-healed:
		case <-r.Context().Done():
		case <-s.stop:
		}
		panic(http.ErrAbortHandler)
	}
	select {
	case <-time.After(fault.Delay):
	case <-r.Context().Done():
	case <-s.stop:
	}
	if fault.RetryAfter != "" {
		w.Header().Set("Retry-After", fault.RetryAfter)
	}
	w.WriteHeader(d.Status)
}

// check returns the event in the body, if it is one, and what is wrong with the request.
func (s *Sink) check(r *http.Request, body []byte) (*events.Event, error) {
	e, err := events.Decode(body)
	if err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if r.Method != http.MethodPost {
		return e, fmt.Errorf("method is %s", r.Method)
	}
	if got := r.Header.Get("Content-Type"); got != events.ContentType {
		return e, fmt.Errorf("content type is %q", got)
	}
	if err := s.hook.Verify(body, r.Header); err != nil {
		return e, err
	}
	if id := r.Header.Get(standardwebhooks.HeaderWebhookID); id != e.ID {
		return e, fmt.Errorf("webhook-id is %q, the event's id %q", id, e.ID)
	}
	return e, nil
}

// enter numbers the request, decides how to treat it and writes it down. The ledger's order is the order of the numbers.
func (s *Sink) enter(d *Delivery) (f Fault, healed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attempts[d.ID]++
	d.Attempt = s.attempts[d.ID]
	for i := range s.faults {
		if match := s.faults[i].Match; match != nil && !match(*d) {
			continue
		}
		f = s.faults[i]
		if f.Times == 1 { // this was its last
			s.faults = slices.Delete(s.faults, i, i+1)
		} else if f.Times > 1 {
			s.faults[i].Times--
		}
		break
	}
	switch {
	case f.Hang:
	case f.Status != 0:
		d.Status = f.Status
	case d.Err != nil:
		d.Status = http.StatusBadRequest
	default:
		d.Status = http.StatusNoContent
	}
	s.Add(*d)
	return f, s.healed
}
