// Command demo shows wgherald at work, on one machine and with Go alone: real WireGuard peers in network namespaces of their own, the two services as
// processes, a webhook receiver that verifies what comes, and all of it live on the screen.
//
//	go run ./lab/demo          # as root; until Ctrl-C
//	go run ./lab/demo -once    # tells the story once, checks every step of it, prints how long things took
//
// It simulates nothing and judges by what arrives: an event counts when a reader of the broker got it signed, and when the webhook receiver did. With
// -once it exits with 0 when all of it came as it had to, and otherwise with 1 and what did not happen; so it is a test, too.
//
// What it makes is gone when it ends, however it ends: namespaces, devices and services die with this process, and the few files are in one directory
// that a second process removes (type janitor).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
)

// limit is how long -once may take from the end of the build to the end of the story, most of which is waiting for two samples of the probe, 10 s each.
// Services that do not want to stop may then take 5 s each.
const limit = 36 * time.Second

func main() {
	if dir := os.Getenv(janitorDir); dir != "" {
		os.Exit(clean(dir, os.Stdin, os.Stdout))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout *os.File, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	once := flags.Bool("once", false, "tell the story once, check every step, print the latencies, and end")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "demo: %q is no argument that it takes\n", flags.Arg(0))
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprint(stderr, needsRoot(args))
		return 1
	}
	if err := netns.Available(); err != nil {
		fmt.Fprintf(stderr, "demo: it cannot run here: %v\n%s", err, hint(err))
		return 1
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // the second Ctrl-C does not wait for us
	defer stop()
	ctx, cancel := untilOrphaned(ctx)
	defer cancel()
	d := &demo{term: openTerminal(stdout, os.Getenv), once: *once}
	if err := d.run(ctx); err != nil {
		fmt.Fprintf(stderr, "demo: %v\n", err)
		return 1
	}
	return 0
}

// needsRoot says what to type. With -exec, Go compiles as the user who called it and only the demo becomes root; the demo then compiles the services as
// that user as well (runner.Build). With `sudo go run` root would fill the user's caches, or download everything once more into its own.
func needsRoot(args []string) string {
	command := strings.Join(append([]string{"./lab/demo"}, args...), " ")
	return fmt.Sprintf(`demo: it makes network namespaces and WireGuard interfaces, so it must be root. Type

    go run -exec "sudo env 'PATH=$PATH'" %s

Go then compiles as you, and only the demo itself runs as root. Where you are root already (a container, su):

    go run %s

`, command, command)
}

// hint tells how to get what is missing, where that is known.
func hint(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "      Load the driver (modprobe tun), or give the container the device (--device /dev/net/tun).\n"
	case errors.Is(err, os.ErrPermission):
		return "      In a container it needs --cap-add SYS_ADMIN --cap-add NET_ADMIN --device /dev/net/tun, and no seccomp or AppArmor\n" +
			"      profile that forbids mount and unshare; --privileged has all of it.\n"
	}
	return ""
}

// demo is one run.
type demo struct {
	term    *terminal
	once    bool
	started bool // the services serve
}

// errInterrupted is the end of -once by a signal.
var errInterrupted = errors.New("interrupted before the story was told")

// run makes everything, lets the story be told, and takes everything down. Without -once an interruption is the good end.
func (d *demo) run(ctx context.Context) (err error) {
	t := d.term
	t.printf("%s  real WireGuard peers and the real services, on this machine alone\n\n", t.paint(bold, "wgherald demo"))

	var screen *os.File
	if t.redraws && !d.once {
		screen = t.out
	}
	j, err := newJanitor(screen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.close()) }()

	t.printf("  build   services/probe and services/notifier, with go build ... ")
	began := time.Now()
	bins, err := runner.Build(ctx)
	if err != nil {
		t.printf("\n")
		return d.ended(ctx, err)
	}
	defer bins.Close()
	t.printf("%.1f s\n", time.Since(began).Seconds())

	began = time.Now()
	if d.once {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
		defer cancel()
	}
	s := newStory()
	if s.lab, err = lab.New(bins, lab.Options{Clients: 5, OnSend: s.sent}); err != nil {
		return err
	}
	err = d.play(ctx, s, screen, j, began)
	closeErr := s.lab.Close()
	if !d.started {
		closeErr = nil // services interrupted in their first moment end as they can
	}
	if err := errors.Join(err, closeErr); err != nil {
		return err
	}
	t.printf("%s after %.1f s, nothing is left behind\n", t.paint(green, "ok"), time.Since(began).Seconds())
	return nil
}

// play starts the services, tells the story and shows it at the same time, on the screen or, if that is nil, in lines.
func (d *demo) play(ctx context.Context, s *story, screen *os.File, j *janitor, began time.Time) error {
	t := d.term
	t.printf("  start   hub with wg0, five clients, webhook receiver, notifier with its own NATS, probe ... ")
	if err := s.lab.Start(ctx); err != nil {
		t.printf("\n")
		return d.ended(ctx, withLogs(s.lab, because(ctx, err)))
	}
	d.started = true
	t.printf("%.1f s\n\n", time.Since(began).Seconds())

	var v view = newLines(t, s.lab)
	if !d.once {
		stop, commands, err := j.openToReaders(s.lab)
		if err != nil {
			return err
		}
		defer stop()
		if screen != nil {
			v = newScreen(t, s.lab, commands)
		} else {
			t.printf("to subscribe yourself, type in another terminal:\n\n  %s\n\n", strings.Join(commands, "\n  "))
		}
	}
	s.say = v.say

	viewCtx, stopView := context.WithCancel(ctx)
	viewed := make(chan struct{})
	go func() {
		defer close(viewed)
		v.run(viewCtx)
	}()
	err := s.tell(ctx)
	if err == nil && !d.once {
		err = s.live(ctx)
	}
	stopView()
	<-viewed
	if err != nil {
		err = d.ended(ctx, withLogs(s.lab, err))
	}
	if err == nil {
		t.printf("%s\n", s.summary(d.once))
	}
	return err
}

// ended is the error to end with: an interruption explains whatever else went wrong.
func (d *demo) ended(ctx context.Context, err error) error {
	if !errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	if d.once {
		return errInterrupted
	}
	return nil
}

// withLogs adds to an error what the services said last.
func withLogs(l *lab.Lab, err error) error {
	var b strings.Builder
	for _, p := range []struct {
		name    string
		process *runner.Process
	}{{"probe", l.Probe}, {"notifier", l.Notifier}} {
		if p.process == nil {
			fmt.Fprintf(&b, "\nthe %s had not been started", p.name)
			continue
		}
		fmt.Fprintf(&b, "\nthe %s said last:\n%s", p.name, tail(p.process.Output(), 15))
	}
	return fmt.Errorf("%w\n%s", err, b.String())
}

// tail is the last n lines of text, indented.
func tail(text string, n int) string {
	return "  " + strings.Join(last(strings.Split(strings.TrimRight(text, "\n"), "\n"), n), "\n  ")
}

// untilOrphaned returns a context that also ends soon after the process that started this one has: go run killed by force tells nobody.
func untilOrphaned(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	parent := os.Getppid()
	go func() {
		look := time.NewTicker(time.Second)
		defer look.Stop()
		for {
			select {
			case <-look.C:
				if os.Getppid() != parent {
					cancel()
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}
