package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wgherald/wgherald/services/notifier/internal/admin"
	"github.com/wgherald/wgherald/services/notifier/internal/app"
	"github.com/wgherald/wgherald/services/notifier/internal/attempts"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
	"github.com/wgherald/wgherald/services/notifier/internal/deadletter"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
)

// followEach is how often log -f asks for what is new.
const followEach = 500 * time.Millisecond

const deadUsage = `Usage:
  notifier dead list [flags] [SEQ ...]      print what could not be delivered
  notifier dead show [-json] SEQ            print one dead letter whole
  notifier dead replay [flags] [SEQ ...]    have events delivered to their hook once more, and remove the letters
  notifier dead discard [flags] [SEQ ...]   remove letters for good; without -yes only print them

SEQ is the letter's number in the first column of the list. Flags and numbers narrow the selection together; replay and discard want at least
one of them, or -all. Every command takes -h.

`

// operate opens the stream that a command of the operator works on.
func operate(ctx context.Context, stream, key string, stderr io.Writer) (jetstream.JetStream, jetstream.Stream, error) {
	cfg, err := config.LoadBroker()
	if err != nil {
		return nil, nil, misconfigured(err)
	}
	js, err := admin.Connect(ctx, cfg, broker.Operator, key, warnings(stderr))
	if err != nil {
		return nil, nil, err
	}
	s, err := admin.Open(ctx, js, stream)
	if err != nil {
		js.Conn().Close()
		return nil, nil, err
	}
	return js, s, nil
}

// misused is an error that ends in exit code 2.
type misused struct{ error }

func misconfigured(err error) error {
	return misused{fmt.Errorf("the configuration is wrong (notifier -h lists the variables):\n%v", err)}
}

// exit reports an error and returns the exit code for it.
func exit(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	fail(stderr, err)
	if errors.As(err, new(misused)) {
		return 2
	}
	return 1
}

func warnings(stderr io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// keyFlag is the login of the operator's commands.
func keyFlag(flags *flag.FlagSet) *string {
	return flags.String("key", "", "nkey seed file of the operator; without NATS_URL the one in NOTIFIER_STATE, else NATS_NKEY_FILE when empty")
}

func dead(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		flags := flag.NewFlagSet("notifier dead", flag.ContinueOnError)
		flags.Usage = func() { fmt.Fprint(flags.Output(), deadUsage) }
		code, ok := parse(flags, args, stdout, stderr)
		if ok {
			fmt.Fprint(stderr, deadUsage)
			code = 2
		}
		return code
	}
	switch verb := args[0]; verb {
	case "list", "show", "replay", "discard":
		return deadVerb(ctx, verb, args[1:], stdout, stderr)
	}
	fmt.Fprintf(stderr, "notifier dead: %.40q is none of list, show, replay, discard (notifier dead -h tells how it is called)\n", args[0])
	return 2
}

// deadVerb runs one of the four commands.
func deadVerb(ctx context.Context, verb string, args []string, stdout, stderr io.Writer) int {
	var sel deadletter.Selection
	var all, yes, asJSON bool
	flags := flag.NewFlagSet("notifier dead "+verb, flag.ContinueOnError)
	key := keyFlag(flags)
	if verb != "show" {
		now := time.Now()
		flags.StringVar(&sel.Hook, "hook", "", "only letters of this hook")
		flags.Func("type", "only events of this type, such as wg.peer.connected or wg.peer.*; may be repeated", add(&sel.Types))
		flags.Func("peer", "only events about this peer: its name or public key, * and ? are wildcards; may be repeated", add(&sel.Peers))
		flags.StringVar(&sel.Reason, "reason", "", "only letters of this class, such as rejected or unverified, or with these words in their reason")
		flags.Func("since", "only letters buried then or later: 2h or 3d ago, 2006-01-02, or 2006-01-02T15:04:05Z", moment(&sel.Since, now))
		flags.Func("until", "only letters buried before then, in the same forms", moment(&sel.Until, now))
	}
	switch verb {
	case "list", "show":
		flags.BoolVar(&asJSON, "json", false, "print a line of JSON for each")
	case "discard":
		flags.BoolVar(&yes, "yes", false, "remove them")
		fallthrough
	case "replay":
		flags.BoolVar(&all, "all", false, "all letters, where nothing else is selected")
	}
	rest, code, ok := parseMixed(flags, args, stdout, stderr)
	if !ok {
		return code
	}
	for _, arg := range rest {
		seq, err := strconv.ParseUint(arg, 10, 64)
		if err != nil || seq == 0 {
			return exit(stderr, misused{fmt.Errorf("dead %s: %.40q is no letter's number: see the first column of notifier dead list", verb, arg)})
		}
		sel.Sequences = append(sel.Sequences, seq)
	}
	if _, err := sel.Compile(); err != nil {
		return exit(stderr, misused{fmt.Errorf("dead %s: %w", verb, err)})
	}
	switch {
	case verb == "show" && len(sel.Sequences) != 1:
		return exit(stderr, misused{errors.New("dead show: want one letter's number: see the first column of notifier dead list")})
	case (verb == "replay" || verb == "discard") && sel.All() && !all:
		return exit(stderr, misused{fmt.Errorf("dead %s: nothing is selected: give numbers or a filter, or -all for every letter", verb)})
	case all && !sel.All():
		return exit(stderr, misused{fmt.Errorf("dead %s: -all and a selection exclude each other", verb)})
	}

	js, stream, err := operate(ctx, deadletter.Stream, *key, stderr)
	if err != nil {
		return exit(stderr, err)
	}
	defer js.Conn().Close()
	// There may be a hundred thousand: of what is selected, one letter is in memory at a time.
	var numbers []uint64
	var unread error
	letters := func(yield func(deadletter.Stored) bool) {
		for l, err := range deadletter.Letters(ctx, stream, sel) {
			if err != nil {
				unread = err
				return
			}
			numbers = append(numbers, l.Sequence)
			if !yield(l) {
				return
			}
		}
	}
	switch {
	case verb == "list" && asJSON:
		err = admin.LettersJSON(stdout, letters)
	case verb == "list", verb == "discard" && !yes:
		err = admin.Letters(stdout, letters)
	default:
		for l := range letters {
			switch {
			case verb == "show" && asJSON:
				err = admin.LetterJSON(stdout, l)
			case verb == "show":
				err = admin.Letter(stdout, l)
			}
		}
	}
	if err = cmp.Or(unread, err); err != nil {
		return exit(stderr, err)
	}
	switch {
	case len(numbers) == 0:
		none := "no dead letter is selected" + misspelt(ctx, stream, sel.Hook)
		if sel.All() {
			none = "there is no dead letter"
		}
		fmt.Fprintln(stderr, "notifier: "+none)
		if verb == "list" {
			return 0
		}
		return 1
	case verb == "discard" && !yes:
		err = fmt.Errorf("nothing is removed: -yes removes these %d letters for good", len(numbers))
	case verb == "discard":
		err = each(numbers, "removed", stdout, func(n uint64) error { return deadletter.Discard(ctx, stream, n) })
	case verb == "replay":
		err = each(numbers, "queued for their hooks", stdout, func(n uint64) error {
			l, err := deadletter.Get(ctx, stream, n)
			if err != nil {
				return err
			}
			return deadletter.Replay(ctx, js, stream, l)
		})
	}
	return exit(stderr, err)
}

// each does something with every letter until it fails, and says how many it was done with.
func each(letters []uint64, done string, stdout io.Writer, do func(number uint64) error) error {
	n := 0
	var err error
	for n < len(letters) && err == nil {
		if err = do(letters[n]); err == nil {
			n++
		}
	}
	fmt.Fprintf(stdout, "%s: %d of %d letters\n", done, n, len(letters))
	return err
}

// misspelt returns a hint where a hook has no letters and another of nearly the same name has.
func misspelt(ctx context.Context, stream jetstream.Stream, hook string) string {
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(deadletter.Subject("*")))
	if hook == "" || err != nil {
		return ""
	}
	var hooks []string
	for subject := range info.State.Subjects {
		hooks = append(hooks, strings.TrimPrefix(subject, deadletter.Subject("")))
	}
	if known := config.Suggest(hook, hooks); known != "" && !slices.Contains(hooks, hook) {
		return fmt.Sprintf(": hook %s has none, did you mean %s?", hook, known)
	}
	return ""
}

func log(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("notifier log", flag.ContinueOnError)
	key := keyFlag(flags)
	hook := flags.String("hook", "", "only attempts of this hook")
	n := flags.Int("n", 50, "how many of the last attempts are printed")
	follow := flags.Bool("f", false, "print what follows, too, until it is interrupted")
	asJSON := flags.Bool("json", false, "print a line of JSON for each")
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return code
	}
	if *n < 0 {
		return exit(stderr, misused{fmt.Errorf("log: -n %d: want 0 or more", *n)})
	}
	js, stream, err := operate(ctx, broker.StreamAttempt, *key, stderr)
	if err != nil {
		return exit(stderr, err)
	}
	defer js.Conn().Close()
	printed := admin.Attempts
	if *asJSON {
		printed = admin.AttemptsJSON
	}
	records, next, err := attempts.Last(ctx, stream, *hook, *n)
	for err == nil {
		if err = printed(stdout, records); err != nil || !*follow {
			break
		}
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(followEach):
		}
		records, next, err = attempts.Since(ctx, stream, *hook, next)
	}
	if ctx.Err() != nil {
		return 0
	}
	return exit(stderr, err)
}

func prune(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("notifier prune", flag.ContinueOnError)
	yes := flags.Bool("yes", false, "delete the consumers that are not in use, with their place in the stream")
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return code
	}
	cfg, err := config.Load()
	if err != nil {
		return exit(stderr, misconfigured(err))
	}
	if len(cfg.Hooks) == 0 {
		return exit(stderr, misused{errors.New("prune: no hook is configured, so every one would count as left over: set NOTIFIER_HOOKS or WEBHOOK_URL as the notifier has them")})
	}
	js, err := admin.Connect(ctx, cfg, broker.Notifier, "", warnings(stderr))
	if err != nil {
		return exit(stderr, err)
	}
	defer js.Conn().Close()
	list, err := admin.FindLeftovers(ctx, js, app.HookNames(cfg))
	if err == nil && len(list) == 0 {
		fmt.Fprintln(stdout, "every consumer belongs to a configured hook")
		return 0
	}
	if err == nil {
		err = admin.Leftovers(stdout, list)
	}
	if err != nil || !*yes {
		return exit(stderr, err)
	}
	deleted := 0
	for _, l := range list {
		if l.InUse {
			continue
		}
		if err := admin.Remove(ctx, js, l); err != nil {
			return exit(stderr, err)
		}
		deleted++
	}
	fmt.Fprintf(stdout, "%d consumers deleted\n", deleted)
	return 0
}

func try(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("notifier try", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Usage: notifier try HOOK\n\nIt sends one test event to the hook, with the header "+app.HeaderTest+": true, and exits with 0 when the hook takes it.\n")
	}
	rest, code, ok := parseMixed(flags, args, stdout, stderr)
	if !ok {
		return code
	}
	if len(rest) != 1 {
		return exit(stderr, misused{errors.New("try: want the name of one hook")})
	}
	cfg, err := config.Load()
	if err != nil {
		return exit(stderr, misconfigured(err))
	}
	result, err := app.Try(ctx, cfg, version, rest[0])
	if err != nil {
		return exit(stderr, misused{err})
	}
	latency := result.Latency.Round(10 * time.Microsecond)
	if result.Class.Verdict() == deliver.Done {
		fmt.Fprintf(stdout, "hook %s took the test event: status %d after %s\n", rest[0], result.Status, latency)
		return 0
	}
	fmt.Fprintf(stdout, "hook %s did not take the test event: %s, after %s (%s)\n", rest[0], result.Reason, latency, result.Class)
	if result.Answer != "" {
		fmt.Fprintf(stdout, "its answer begins: %.500q\n", result.Answer)
	}
	return 1
}

// add collects the values of a flag that may be repeated.
func add(to *[]string) func(string) error {
	return func(value string) error {
		*to = append(*to, value)
		return nil
	}
}

// moment reads a time, or how long ago it was.
func moment(to *time.Time, now time.Time) func(string) error {
	return func(text string) error {
		if days, ok := strings.CutSuffix(text, "d"); ok {
			if n, err := strconv.ParseUint(days, 10, 16); err == nil {
				*to = now.AddDate(0, 0, -int(n))
				return nil
			}
		}
		if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
			*to = now.Add(-ago)
			return nil
		}
		for _, form := range []string{time.RFC3339, time.DateOnly} {
			if t, err := time.ParseInLocation(form, text, now.Location()); err == nil {
				*to = t
				return nil
			}
		}
		return errors.New("want 2h, 3d, 2006-01-02, or 2006-01-02T15:04:05Z")
	}
}
