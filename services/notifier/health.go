package main

import (
	"flag"
	"fmt"
	"io"

	"github.com/wgherald/wgherald/services/notifier/internal/app"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
)

// health asks the running notifier how it is. Container engines know no other exit code than 0 and 1.
func health(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("notifier health", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Usage: notifier health\n\nIt asks the notifier that runs with the same NOTIFIER_STATE how it is, and exits with 0 if it is well, and with 1 if not, "+
			"with a line that tells why:\nthe broker is not connected, or a hook has no place in the stream yet. A hook that does not take its requests is no reason.\n")
	}
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return min(code, 1)
	}
	cfg, err := config.LoadBroker()
	if err != nil {
		return fail(stderr, misconfigured(err))
	}
	line, ok := app.AskHealth(cfg.State)
	if !ok {
		fmt.Fprintln(stderr, line)
		return 1
	}
	fmt.Fprintln(stdout, line)
	return 0
}
