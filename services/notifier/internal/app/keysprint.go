package app

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/broker"
)

// ListKeys prints who is known, and where each one's key is. It changes nothing.
func ListKeys(dir string, out io.Writer) error {
	s, err := readSettings(dir)
	if err != nil {
		return err
	}
	if len(s.Members) == 0 {
		return fmt.Errorf("there are no keys in %s: `notifier keys -dir %[1]s` makes them", dir)
	}
	fmt.Fprintf(out, "the broker listens on %s, stores in %s, TLS %s\n", s.Listen, s.Store, describeTLS(s.TLS))
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IDENTITY\tKIND\tACCOUNT\tNODE\tPUBLIC KEY\tFILE")
	for _, m := range s.Members {
		file := m.file(dir)
		switch _, err := os.Stat(file); {
		case errors.Is(err, fs.ErrNotExist):
			file = "moved away"
		case err != nil:
			file = err.Error()
		}
		fmt.Fprintln(t, strings.Join([]string{m.Identity, m.Role, m.account(), cmp.Or(m.Node, "-"), m.Key, file}, "\t"))
	}
	return t.Flush()
}

// account is the one it logs in to.
func (m member) account() string {
	switch m.Role {
	case broker.Probe:
		return broker.ProbeUser{Name: m.name()}.Account()
	case broker.WGProvisioner:
		return "WG"
	case broker.ReadersProvisioner, broker.Reader:
		return "READERS"
	default:
		return "HOOKS"
	}
}

func describeTLS(t broker.ServerTLS) string {
	if t.Cert == "" {
		return "off"
	}
	text := "cert " + t.Cert + ", key " + t.Key
	if t.CA != "" {
		text += ", CA " + t.CA
	}
	return text
}

// tell says what was changed that no line was about so far, and what is to be done about it elsewhere.
func (o KeysOptions) tell(before, after settings, conf bool) {
	for _, c := range []struct{ what, from, to string }{
		{"listen", before.Listen, after.Listen}, {"store", before.Store, after.Store}, {"TLS", describeTLS(before.TLS), describeTLS(after.TLS)},
	} {
		if before.Members != nil && c.from != c.to {
			fmt.Fprintf(o.Out, "broker: %s %s → %s\n", c.what, c.from, c.to)
		}
	}
	for _, m := range after.Members {
		if was := before.member(m.Identity); was.Node != m.Node && was.Node != "" {
			fmt.Fprintf(o.Out, "%s: node %s → %s\n", m.Identity, was.Node, m.Node)
		}
	}
	if steps := o.next(before, after, conf); len(steps) > 0 {
		fmt.Fprintln(o.Out, "next, where nothing does it for you:") // deploy/compose.yaml, for one
		for i, step := range steps {
			fmt.Fprintf(o.Out, "  %d. %s\n", i+1, step)
		}
	} else {
		fmt.Fprintln(o.Out, "nothing has changed")
	}
}

// member is the one of that name, or the zero value.
func (s settings) member(identity string) member {
	i := slices.IndexFunc(s.Members, func(m member) bool { return m.Identity == identity })
	if i < 0 {
		return member{}
	}
	return s.Members[i]
}

// next are the steps after a change, in the order in which no event is lost or becomes a dead letter. conf tells whether nats.conf is another one.
func (o KeysOptions) next(before, after settings, conf bool) (steps []string) {
	step := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	first := before.Members == nil
	if !slices.Equal(keyringOf(before.Members), keyringOf(after.Members)) {
		var rings []string
		for _, m := range after.Members {
			if m.Role == broker.Notifier && before.member(m.Identity).Key == m.Key {
				rings = append(rings, m.keyring(o.Dir))
			}
		}
		if len(rings) > 0 {
			step("copy %s to where each notifier's NOTIFIER_KEYRING is: it counts within 2 s", strings.Join(rings, " and "))
		}
		if reader := after.member(broker.Reader); before.member(broker.Reader).Key == reader.Key {
			step("copy %s to who verifies events with it", reader.keyring(o.Dir))
		}
	}
	switch {
	case first:
		provision := member{Role: broker.WGProvisioner}
		step("start the broker: nats-server -c %s", confFile(o.Dir))
		_, port, _ := net.SplitHostPort(after.Listen) // Render has split it
		step("make its streams: notifier provision -url nats://BROKER:%s -wg-key %s -hooks-key %s",
			port, provision.file(o.Dir), broker.IdentityFile(provision.dir(o.Dir), broker.HooksProvisioner))
	case before.Listen != after.Listen, before.Store != after.Store, before.TLS != after.TLS:
		step("restart the broker: a reload does not take all of that")
	case conf: // nats-server 2.15 starts the imports of a new account at the second reload only
		step("have the broker read %s, twice (kill -HUP PID; sleep 1; kill -HUP PID), or restart it", confFile(o.Dir))
	}
	if !first && before.TLS != after.TLS {
		step("set NATS_URL, NATS_CA_FILE, NATS_CERT_FILE and NATS_KEY_FILE to fit, wherever somebody logs in, and restart what runs")
	}
	for _, m := range after.Members {
		was, file := before.member(m.Identity), m.file(o.Dir)
		made := was.Key != m.Key
		switch {
		case m.Role == broker.Probe && made && m.Node == events.AnyNode:
			step("move %s to the probe's NATS_NKEY_FILE", file)
		case m.Role == broker.Probe && made:
			step("move %s to the probe's NATS_NKEY_FILE, and set PROBE_NODE=%s", file, m.Node)
		case m.Role == broker.Probe && was.Node != m.Node && m.Node != events.AnyNode:
			step("set PROBE_NODE=%s where the key of %s is", m.Node, m.Identity)
		case m.Role == broker.Notifier && made:
			step("move %s to the notifier's NATS_NKEY_FILE, and %s to its NOTIFIER_KEYRING", file, m.keyring(o.Dir))
		case m.Role == broker.Operator && made:
			step("move %s to who runs `notifier dead` and `notifier log`, as their -key", file)
		case m.Role == broker.Reader && made:
			step("move %s to a service that reads events, and %s with it", file, m.keyring(o.Dir))
		}
	}
	return steps
}
