// Command probe watches the WireGuard interfaces of a host and publishes events about their peers to NATS.
//
// It needs CAP_NET_ADMIN to read devices and CAP_NET_RAW to see handshakes, keeps no other right, and opens no port but an optional one for metrics on
// loopback. It is configured by environment variables: probe -h lists them. It exits with 0 within 5 s of SIGINT or SIGTERM, with 2 when it is configured or
// started wrongly, and with 1 when it cannot go on. probe health asks a running one how it is.
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
	"github.com/wgherald/wgherald/services/probe/internal/health"
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
	case flags.NArg() == 1 && flags.Arg(0) == "health":
		return healthy(stdout, stderr)
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
		if _, ok := errors.AsType[app.Misconfigured](err); ok {
			return 2
		}
		return 1
	}
	return 0
}

// healthy asks the running probe how it is. There is no other exit code than 0 and 1: container engines know no other.
func healthy(stdout, stderr io.Writer) int {
	cfg, err := config.Load()
	if err != nil {
		fmt.Fprintf(stderr, "not well: the configuration is wrong: %v\n", err)
		return 1
	}
	report := health.Ask(cfg.State)
	if !report.Well {
		fmt.Fprintln(stderr, report)
		return 1
	}
	fmt.Fprintln(stdout, report)
	return 0
}

func help(stdout, stderr io.Writer) int {
	fmt.Fprint(stdout, `Usage:
  probe            watch the WireGuard interfaces of this host and publish events about their peers to NATS
  probe health     ask the probe that runs with the same PROBE_STATE how it is: exit with 0 if it is well, and with 1 and a line that tells why if not
  probe -version

The probe needs CAP_NET_ADMIN to read devices and CAP_NET_RAW to see handshakes, gives up everything else, and any user will do who has these two.
Root owns the sockets of userspace devices (/var/run/wireguard), though, so those take root, or another owner. PROBE_STATE and the files that are
read while the probe runs must belong to its user: names, credentials and certificates. A key may be anybody's, if the start may read it.

A probe that answers, and can read an interface if there are any, is well. While the broker is away it is well, too, for it keeps the events.
It is not when the broker refuses a peer's state because the probe's key is another node's: nobody who verifies believes its events. Nor is it when
the broker refuses events because the key is not a probe's.

`)
	if err := config.Usage(stdout); err != nil {
		fmt.Fprintln(stderr, "probe:", err)
		return 1
	}
	return 0
}
