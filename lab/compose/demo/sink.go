package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"

	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	port       = "8080"
	secretFile = "/hooks/secret"
	hooksFile  = "/hooks/hooks.yaml" // for the notifier, which reads it as the same user

	// hooks has what was told before the receiver was there, too.
	hooks = "hooks:\n  - name: demo\n    url: http://demo-sink:" + port + "/\n    secret_file: " + secretFile + "\n    from: 1h\n"
)

// receive prints each request, in the order of arrival. The secret stays what it is over a restart.
func receive(ctx context.Context, out io.Writer) error {
	secret, err := os.ReadFile(secretFile)
	if errors.Is(err, fs.ErrNotExist) {
		secret = []byte(sink.NewSecret())
		err = os.WriteFile(secretFile, secret, 0o600)
	}
	if err == nil {
		err = os.WriteFile(hooksFile, []byte(hooks), 0o600)
	}
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	s, err := sink.StartWith(l, string(secret))
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "waits for webhooks")
	for n := 0; ; n++ {
		d, err := s.WaitFrom(ctx, n, func(sink.Delivery) bool { return true })
		if err != nil {
			return s.Close() // ctx has ended
		}
		fmt.Fprintln(out, line(d))
	}
}

// line tells of one request: when, what, of whom, whether it is what it says, which attempt, and its number in its source.
func line(d sink.Delivery) string {
	at := d.At.UTC().Format("15:04:05.000")
	if d.Err != nil {
		return fmt.Sprintf("%s refused, try %d: %v", at, d.Attempt, d.Err)
	}
	e := d.Event
	return fmt.Sprintf("%s %-22s %-13s signature ok, try %d  %s #%d%s", at, e.Type, about(e), d.Attempt, e.Source, e.Sequence.N, detail(e))
}

func about(e *events.Event) string {
	if _, err := events.ParseKey(e.Subject); err == nil {
		return e.Subject[:8] + "…"
	}
	return e.Subject
}

func detail(e *events.Event) string {
	switch d := e.Data.(type) {
	case *events.Connected:
		return fmt.Sprintf("  from %s", d.Peer.Endpoint)
	case *events.Roamed:
		return fmt.Sprintf("  from %s to %s", d.From, d.To)
	case *events.Disconnected:
		return fmt.Sprintf("  %s", d.Reason)
	case *events.Rejected:
		return fmt.Sprintf("  from %s, no such peer", d.Endpoint)
	}
	return ""
}
