// Command demo is what the profile demo of deploy/compose.yaml adds to wgherald, for a machine without WireGuard: peers that come and go, and a webhook receiver
// that verifies what it is told of them.
//
//	demo peers   a WireGuard interface, wgdemo0, in the host's network, and peers that reach it over loopback; until it is stopped
//	demo sink    a receiver on port 8080 that prints each webhook; it makes a file of hooks for the notifier, with a secret, in the directory /hooks
//	demo health  exits with 0 when the receiver of this container answers
//
// The peers are userspace WireGuard: the handshakes, and what the probe sees of them, are real. Nothing gets out of the tunnel: the interface has an address
// for documentation (RFC 5737) and no route, keys are new each time, and the peers send nothing but keepalives.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	commands := map[string]func(context.Context, io.Writer) error{"peers": peers, "sink": receive, "health": health}
	if len(args) != 1 || commands[args[0]] == nil {
		fmt.Fprintln(stderr, "demo: want one of peers, sink, health")
		return 2
	}
	if err := commands[args[0]](ctx, stdout); err != nil {
		fmt.Fprintf(stderr, "demo %s: %v\n", args[0], err)
		return 1
	}
	return 0
}

func health(context.Context, io.Writer) error {
	c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}
