package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/forward"
	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/ledger"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

// page is written to line by line.
type page struct{ ledger.Ledger[string] }

func (p *page) Write(b []byte) (int, error) {
	p.Add(string(bytes.TrimSpace(b)))
	return len(b), nil
}

func (p *page) wait(t *testing.T, ctx context.Context, text string) {
	t.Helper()
	if _, err := p.Wait(ctx, func(line string) bool { return strings.Contains(line, text) }); err != nil {
		t.Fatalf("no %q among %q: %v", text, p.All(), err)
	}
}

// TestRealPeers follows a real peer with the files and the port that a user has.
func TestRealPeers(t *testing.T) {
	t.Parallel()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	bins, err := runner.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer bins.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	l, err := lab.New(bins, lab.Options{Clients: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := l.Start(ctx); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := forward.Start(listener, func() (net.Conn, error) { return l.NS.Dial("tcp", lab.NATS) })
	defer f.Close()

	dir := t.TempDir()
	args := []string{"-url", "nats://" + f.Addr().String()}
	for name, read := range map[string]func() ([]byte, error){
		"nkey":    func() ([]byte, error) { return l.Seed("reader") },
		"keyring": l.Keyring,
	} {
		content, err := read()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-"+name, path)
	}

	var out, problems page
	subscribed, unsubscribe := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(subscribed, args, &out, &problems) }()
	defer func() {
		unsubscribe()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	problems.wait(t, ctx, "subscribed to wg.peer.*")

	c := l.Clients[0]
	if err := c.Connect(ctx); err != nil {
		t.Fatal(err)
	}
	out.wait(t, ctx, "lab/wg0  wg.peer.connected     "+c.Name+" from "+c.Outside().String())
	// Who comes late reads from the bucket who is there. The probe writes it soon after the event.
	for {
		var late page
		asked, enough := context.WithCancel(ctx)
		go func() {
			defer enough()
			var none page
			if err := run(asked, args, &late, &none); err != nil {
				t.Error(err)
			}
		}()
		short, cancel := context.WithTimeout(asked, 2*time.Second)
		_, err := late.Wait(short, func(line string) bool {
			return strings.Contains(line, "lab/wg0  is connected          "+c.Name+" at "+c.Outside().String())
		})
		cancel()
		enough()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("a latecomer reads %q: %v", late.All(), err)
		}
	}
	if err := l.DeleteHub(); err != nil {
		t.Fatal(err)
	}
	out.wait(t, ctx, "lab/wg0  wg.peer.disconnected  "+c.Name+": interface_down")
	if n := problems.Len(); n != 1 {
		t.Errorf("says %q", problems.All())
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "nats://" + taken.Addr().String()
	taken.Close()
	tests := map[string]struct {
		args []string
		want string
	}{
		"nobody there":         {[]string{"-url", url}, "connect to " + url},
		"no file with a key":   {[]string{"-nkey", "/nonexistent"}, "/nonexistent"},
		"no file with a ring":  {[]string{"-keyring", "/nonexistent"}, "/nonexistent"},
		"something else there": {[]string{"-keyring", "main.go"}, "keyring: line 1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, problems page
			if err := run(t.Context(), tt.args, &out, &problems); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
