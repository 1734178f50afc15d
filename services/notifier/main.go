// Command notifier subscribes to the events of wgherald and delivers them as webhooks.
//
// It needs no privilege. Without NATS_URL it brings its own broker, on loopback and with generated credentials. It is configured by environment
// variables and a file of hooks: notifier -h lists them. SIGHUP has the hooks read again. It exits with 0 within 5 s of SIGINT or SIGTERM, with 2 when it is
// configured or called wrongly, and with 1 when it cannot go on.
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
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/app"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/privilege"
)

// version is set when a release is built.
var version = "dev"

// cutOff is how long after a signal the service ends in any case. Everything has shorter bounds of its own, so only what nobody can bound is left to it: a disk
// that hangs, a log that nobody reads. What is stored is whole at any time, as after kill -9.
const cutOff = 4500 * time.Millisecond

// gcPercent bounds the garbage on the heap, in percent of what is in use. With 100, the default of Go, a hundred hooks that are all busy take a quarter more memory, and
// a seventh less processor time. Such a rush is short, and what the heap has grown to stays. GOGC, where it is set, counts instead.
const gcPercent = 50

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

const usage = `Usage:
  notifier                     deliver events to the configured hooks
  notifier check FILE          read a file of hooks and the files it names, and say what each hook does, or all that is wrong
  notifier keys [flags]        make the configuration of a nats-server and each identity's key (notifier keys -h)
  notifier provision [flags]   make the streams on the broker of NATS_URL or -url (notifier provision -h)
  notifier try HOOK            send a test event to one hook; needs no broker
  notifier dead COMMAND        list, show, replay or discard what could not be delivered (notifier dead -h)
  notifier log [flags]         print the last attempts to deliver, and follow them (notifier log -h)
  notifier prune [-yes]        list the consumers of hooks that are no longer configured, and delete them
  notifier health              ask the running notifier how it is; exits with 0 when it is well, and with 1 when not
  notifier -version

`

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	if len(args) > 0 {
		switch args[0] {
		case "check":
			return check(args[1:], stdout, stderr)
		case "keys":
			return keys(args[1:], stdout, stderr)
		case "provision":
			return provision(ctx, args[1:], stdout, stderr)
		case "try":
			return try(ctx, args[1:], stdout, stderr)
		case "dead":
			return dead(ctx, args[1:], stdout, stderr)
		case "log":
			return log(ctx, args[1:], stdout, stderr)
		case "prune":
			return prune(ctx, args[1:], stdout, stderr)
		case "health":
			return health(args[1:], stdout, stderr)
		}
	}
	flags := flag.NewFlagSet("notifier", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		_ = config.Usage(flags.Output()) // fails with its writer only
	}
	showVersion := flags.Bool("version", false, "")
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return code
	}
	if *showVersion {
		fmt.Fprintln(stdout, version)
		return 0
	}
	return serve(ctx, stderr)
}

// serve is the service itself.
func serve(ctx context.Context, stderr io.Writer) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	reload := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				select {
				case reload <- struct{}{}:
				default: // one is to come already
				}
			}
		}
	}()
	cfg, err := config.Load()
	if err != nil {
		fmt.Fprintf(stderr, "notifier: the configuration is wrong (notifier -h lists the variables):\n%v\n", err)
		return 2
	}
	logger := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	if err := privilege.Drop(cfg.Root); err != nil {
		logger.Error("cannot start", "error", err)
		return 2
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		<-ctx.Done()
		select {
		case <-ended:
		case <-time.After(cutOff):
			go logger.Error("not all ended in time, the rest is cut off")
			time.Sleep(100 * time.Millisecond) // for that line: the log may be what hangs
			os.Exit(0)
		}
	}()
	if err := app.Run(ctx, cfg, version, reload, logger); err != nil {
		logger.Error("cannot go on", "error", err)
		if _, ok := errors.AsType[app.Misconfigured](err); ok {
			return 2
		}
		return 1
	}
	return 0
}

// check sends nothing and asks no broker.
func check(args []string, stdout, stderr io.Writer) int {
	file := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		file, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("notifier check", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Usage: notifier check FILE\n\nIt exits with 2 when the file is wrong.\n")
	}
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return code
	}
	if file == "" {
		fmt.Fprintln(stderr, "notifier check: which file? (notifier check FILE)")
		return 2
	}
	hooks, warnings, err := config.Check(file)
	for _, w := range warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	if err := config.Describe(stdout, hooks); err != nil {
		return fail(stderr, err)
	}
	return 0
}

// parse reads flags and refuses what is left over. Where it returns false, the exit code is decided.
func parse(flags *flag.FlagSet, args []string, stdout, stderr io.Writer) (code int, ok bool) {
	rest, code, ok := parseMixed(flags, args, stdout, stderr)
	if ok && len(rest) > 0 {
		return wrongCall(flags, fmt.Errorf("unexpected argument %q", rest[0]), stderr), false
	}
	return code, ok
}

// parseMixed reads flags that may stand before, between and after other arguments, and returns these.
func parseMixed(flags *flag.FlagSet, args []string, stdout, stderr io.Writer) (rest []string, code int, ok bool) {
	flags.SetOutput(io.Discard) // flag prints the whole usage after each error
	for {
		err := flags.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stdout)
			flags.Usage()
			return nil, 0, false
		}
		if err != nil {
			return nil, wrongCall(flags, err, stderr), false
		}
		if flags.NArg() == 0 {
			return rest, 0, true
		}
		rest, args = append(rest, flags.Arg(0)), flags.Args()[1:]
	}
}

func wrongCall(flags *flag.FlagSet, err error, stderr io.Writer) int {
	fmt.Fprintf(stderr, "%s: %v (%[1]s -h tells how it is called)\n", flags.Name(), err)
	return 2
}

func fail(stderr io.Writer, err error) int {
	fmt.Fprintln(stderr, "notifier:", err)
	return 1
}
