package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/app"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// named returns a flag that takes a name each time it is given.
func named(take func(string)) func(string) error {
	return func(s string) error {
		if s == "" {
			return fmt.Errorf("a name is missing")
		}
		take(s)
		return nil
	}
}

func keys(args []string, stdout, stderr io.Writer) int {
	o := app.KeysOptions{Out: stdout}
	flags := flag.NewFlagSet("notifier keys", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Usage: notifier keys -dir DIRECTORY [flags]\n\n"+
			"It makes the keys that are missing and the broker's configuration, broker/nats.conf. What an earlier run knew stays as it is\n"+
			"unless a flag says otherwise: to add a probe, name that one alone. Seeds may be moved to where they are used. What there is to do\n"+
			"after a change is printed.\n\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.Dir, "dir", "", "`directory` that gets broker/, provision/, operator/, reader/, and one for each probe and notifier")
	list := flags.Bool("list", false, "change nothing, and print who there is, with node, public key, and where the key is")
	flags.Func("probe", "a probe, as `NAME[=NODE]`: its key signs for that node alone (NODE is NAME at first), and is in probe-NAME/; may be repeated", func(s string) error {
		name, node, given := strings.Cut(s, "=")
		if name == "" {
			return errors.New("a name is missing")
		}
		if given && node == "" {
			return errors.New("the node is missing")
		}
		o.Probes = append(o.Probes, app.NamedNode{Name: name, Node: node})
		return nil
	})
	flags.Func("notifier", "a notifier, as `NAME`: its key is in notifier-NAME/; may be repeated", named(func(s string) { o.Notifiers = append(o.Notifiers, s) }))
	flags.Func("remove", "an `IDENTITY`, such as probe-NAME, that is to lose its access; may be repeated", named(func(s string) { o.Remove = append(o.Remove, s) }))
	flags.Func("renew", "an `IDENTITY` that gets another key; may be repeated", named(func(s string) { o.Renew = append(o.Renew, s) }))
	flags.StringVar(&o.Node, "node", "", "without -probe there is one probe, in probe/, without a name: the node whose events its key signs; * is any, and what it is at first")
	flags.StringVar(&o.Listen, "listen", "", "where the broker listens; 0.0.0.0:4222 at first")
	flags.StringVar(&o.Store, "store", "", "the broker's directory for JetStream; /data at first")
	for _, f := range []struct {
		name, usage string
		to          **string
	}{
		{"tls-cert", "the broker's certificate, PEM, as the broker sees the `file`; an empty name takes it away, here and below: without all three, TLS is off", &o.TLSCert},
		{"tls-key", "its key, a `file`", &o.TLSKey},
		{"tls-ca", "a `file`: the CA of the certificates that clients must have; none asks for none", &o.TLSCA},
	} {
		flags.Func(f.name, f.usage, func(s string) error {
			*f.to = &s
			return nil
		})
	}
	flags.IntVar(&o.NotifierUID, "notifier-uid", -1, "user and group that get the directories of notifiers and provision/; -1 leaves them")
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return code
	}
	if o.Dir == "" {
		return wrongCall(flags, errors.New("-dir is missing: name the directory that is to get the keys, or has them"), stderr)
	}
	if *list {
		change := ""
		flags.Visit(func(f *flag.Flag) {
			if f.Name != "list" && f.Name != "dir" {
				change = f.Name
			}
		})
		if change != "" {
			return wrongCall(flags, fmt.Errorf("-list changes nothing, and -%s would: give one of them", change), stderr)
		}
		if err := app.ListKeys(o.Dir, stdout); err != nil {
			return fail(stderr, err)
		}
		return 0
	}
	if err := app.Keys(o); err != nil {
		return fail(stderr, err)
	}
	return 0
}

func provision(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o app.ProvisionOptions
	flags := flag.NewFlagSet("notifier provision", flag.ContinueOnError)
	flags.StringVar(&o.URL, "url", "", "broker; NATS_URL when not given")
	flags.StringVar(&o.WGKey, "wg-key", "", "nkey seed file of the provisioner in the probes' account; none for a broker without authentication")
	flags.StringVar(&o.HooksKey, "hooks-key", "", "nkey seed file of the provisioner in the notifiers' account; none for a broker with one account")
	flags.StringVar(&o.ReadersKey, "readers-key", "", "nkey seed file of the provisioner in the readers' account; readers-provisioner.nk beside -hooks-key when not given")
	flags.DurationVar(&o.Wait, "wait", 30*time.Second, "how long the broker may take to come up and to answer")
	flags.BoolVar(&o.DryRun, "dry-run", false, "change nothing, and tell what would be done to each stream")
	if code, ok := parse(flags, args, stdout, stderr); !ok {
		return code
	}
	if o.URL == "" {
		o.URL = strings.TrimSpace(os.Getenv("NATS_URL")) // no default of the flag: help would print a password in it
	}
	o.CAFile, o.CertFile, o.KeyFile = os.Getenv("NATS_CA_FILE"), os.Getenv("NATS_CERT_FILE"), os.Getenv("NATS_KEY_FILE")
	if o.URL == "" {
		fmt.Fprintln(stderr, "notifier provision: -url and NATS_URL are empty; the embedded broker provisions itself")
		return 2
	}
	changes, err := app.Provision(ctx, o, slog.New(slog.NewTextHandler(stderr, nil)))
	n := 0
	for _, c := range changes {
		action := string(c.Action)
		if c.Action != broker.Unchanged {
			n++
			if o.DryRun {
				action = "would be " + action
			}
		}
		fmt.Fprintf(stdout, "%s: stream %s %s\n", c.Account, c.Stream, action)
		for _, f := range c.Fields {
			fmt.Fprintf(stdout, "  %s\n", f)
		}
	}
	if err != nil {
		return fail(stderr, err)
	}
	if o.DryRun {
		fmt.Fprintf(stdout, "%d changes to be made; nothing was changed\n", n)
		return 0
	}
	fmt.Fprintf(stdout, "%d changes\n", n)
	return 0
}
