// Command probe watches the WireGuard interfaces of a host and publishes events about their peers to NATS.
//
// It needs CAP_NET_ADMIN to read devices and CAP_NET_RAW to see handshakes, opens no port but an optional one for metrics on loopback, and is
// configured by environment variables: probe -h lists them. It exits with 0 within 5 s of SIGINT or SIGTERM, with 2 when it is configured wrongly, and with 1
// when it cannot go on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/services/probe/internal/app"
	"github.com/wgherald/wgherald/services/probe/internal/config"
)

// version is set when a release is built.
var version = "dev"

// cutOff is how long after a signal the process ends in any case. Everything has shorter bounds of its own, so only what nobody can bound is left to it: a disk
// that hangs, a log that nobody reads. What is stored is whole at any time, as after kill -9.
const cutOff = 4500 * time.Millisecond

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	flags := flag.NewFlagSet("probe", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	showVersion := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return help(stdout, stderr)
	case err != nil:
		fmt.Fprintf(stderr, "probe: %v (probe -h tells how it is configured)\n", err)
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "probe: unexpected argument %q (probe -h tells how it is configured)\n", flags.Arg(0))
		return 2
	case *showVersion:
		fmt.Fprintln(stdout, version)
		return 0
	}
	cfg, err := config.Load()
	if err != nil {
		fmt.Fprintf(stderr, "probe: the configuration is wrong (probe -h lists the variables):\n%v\n", err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))

	ended := make(chan struct{})
	defer close(ended)
	go func() {
		<-ctx.Done()
		select {
		case <-ended:
		case <-time.After(cutOff):
			go log.Error("not all ended in time, the rest is cut off")
			time.Sleep(100 * time.Millisecond) // for that line: the log may be what hangs
			os.Exit(0)
		}
	}()
	if err := app.Run(ctx, cfg, version, log); err != nil {
		log.Error("cannot go on", "error", err)
		return 1
	}
	return 0
}

func help(stdout, stderr io.Writer) int {
	fmt.Fprint(stdout, `Usage: probe [-version]

Watches the WireGuard interfaces of this host and publishes events about their peers to NATS.
Needs CAP_NET_ADMIN to read devices, and CAP_NET_RAW to see handshakes.

`)
	if err := config.Usage(stdout); err != nil {
		fmt.Fprintln(stderr, "probe:", err)
		return 1
	}
	return 0
}
