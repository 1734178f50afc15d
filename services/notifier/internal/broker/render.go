package broker

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strings"
	"text/template"

	"github.com/nats-io/nkeys"

	"github.com/wgherald/wgherald/pkg/events"
)

// ServerConfig is what differs between one broker and another; everything else is the same for all and stands in the template.
type ServerConfig struct {
	Listen   string // host:port for clients, the only port; port 0 picks a free one
	StoreDir string // JetStream's directory
	TLS      ServerTLS

	WGProvisioner      string // public nkey
	HooksProvisioner   string // public nkey
	ReadersProvisioner string // public nkey
	Probes             []ProbeUser
	Notifiers          []string // public nkeys
	Operators          []string // public nkeys
	Readers            []string // public nkeys
}

// ServerTLS names the broker's files for TLS, as it sees them. The zero value is none.
type ServerTLS struct {
	Cert string `json:"cert,omitempty"` // PEM, with Key
	Key  string `json:"key,omitempty"`
	CA   string `json:"ca,omitempty"` // PEM; clients must have a certificate of it. Empty asks them for none
}

// ProbeUser is a probe's login. It has an account of its own.
type ProbeUser struct {
	Name string // tells it from other probes; empty for the only one
	// Node is the only node whose peers' state this probe may write. Empty allows every node's: for a broker that is configured before
	// the probe's node name is known, as the embedded one is.
	Node string
	Key  string // public nkey
}

// Account is the name of the probe's account. It is one token of a subject, as the server needs it.
func (p ProbeUser) Account() string {
	if p.Name == "" {
		return "PROBE"
	}
	return "PROBE-" + events.EscapeNode(p.Name)
}

//go:embed nats.conf.tmpl
var serverTemplate string

var serverConf = template.Must(template.New("nats.conf").Option("missingkey=error").Funcs(template.FuncMap{
	"quote":   quote,
	"inbox":   InboxPrefix,
	"kvscope": kvScope,
}).Parse(serverTemplate))

// Render returns the configuration file of nats-server. Equal values give equal bytes.
func (c ServerConfig) Render() ([]byte, error) {
	if err := errors.Join(c.Check(), c.checkKeys()); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, err // Check has split it
	}
	if port == "0" {
		port = "-1" // the server's own word for a free port; 0 would be its default, 4222
	}
	var out bytes.Buffer
	err = serverConf.Execute(&out, struct {
		ServerConfig
		HostPort   string
		MaxPayload int
		Mirrored   []string // streams of WG with mirrors in HOOKS and READERS
		Own        []string // streams of HOOKS, mirrors included
		Live       []string // subjects of events
		Published  []string // all subjects of probes
	}{c, net.JoinHostPort(host, port), maxPayload, names(truth()), names(hookStreams(true)), eventSubjects, append(eventSubjects, stateSubjects+">")})
	if err != nil {
		return nil, fmt.Errorf("render the broker configuration: %w", err)
	}
	return out.Bytes(), nil
}

// Check refuses what would make a configuration that looks right and is not, such as two probes of one node. Keys need not be there yet: Render checks them.
func (c ServerConfig) Check() error {
	control := func(s string) bool { return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) }
	for _, s := range []string{c.Listen, c.StoreDir} {
		if s == "" || control(s) {
			return fmt.Errorf("broker configuration: %q is no listen address or directory", s)
		}
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen address %q: %w", c.Listen, err)
	}
	if t := c.TLS; (t.Cert == "") != (t.Key == "") || t.CA != "" && t.Cert == "" {
		return errors.New("broker configuration: TLS needs the certificate and its key, and for a CA both (-tls-cert, -tls-key, -tls-ca; an empty one takes it away)")
	}
	for _, s := range []string{c.TLS.Cert, c.TLS.Key, c.TLS.CA} {
		if control(s) {
			return fmt.Errorf("broker configuration: %q is no file name", s)
		}
	}
	nodes, probes := map[string]bool{}, map[string]bool{}
	for _, p := range c.Probes {
		if nodes[p.Node] {
			return fmt.Errorf("broker configuration: two probes with the node %q: give one another name", p.Node)
		}
		if probes[p.Name] {
			return fmt.Errorf("broker configuration: two probes with the name %q", p.Name)
		}
		nodes[p.Node], probes[p.Name] = true, true
	}
	return nil
}

// checkKeys refuses an invalid or a repeated key.
func (c ServerConfig) checkKeys() error {
	users := []struct{ role, key string }{
		{WGProvisioner, c.WGProvisioner}, {HooksProvisioner, c.HooksProvisioner}, {ReadersProvisioner, c.ReadersProvisioner},
	}
	for _, p := range c.Probes {
		users = append(users, struct{ role, key string }{strings.TrimSpace("probe " + p.Name), p.Key})
	}
	for role, list := range map[string][]string{Notifier: c.Notifiers, Operator: c.Operators, Reader: c.Readers} {
		for _, key := range list {
			users = append(users, struct{ role, key string }{role, key})
		}
	}
	keys := map[string]string{}
	for _, u := range users {
		if !nkeys.IsValidPublicUserKey(u.key) {
			// The text is left out: a seed in the wrong place is a secret.
			return fmt.Errorf("broker configuration: %s: not the public key of an nkey user (U…)", u.role)
		}
		if other, used := keys[u.key]; used {
			return fmt.Errorf("broker configuration: %s and %s have the same key %s", other, u.role, u.key)
		}
		keys[u.key] = u.role
	}
	return nil
}

// maxPayload bounds a client's message, in bytes: a dead letter holds an event of at most events.MaxSize, in base64 in the worst case, and what was tried.
const maxPayload = 4 * events.MaxSize

// kvScope is the subject under which a probe may write peers' state. The node's token is the one of its state keys.
func kvScope(node string) string {
	if node == "" {
		return stateSubjects + ">"
	}
	return stateSubjects + events.EscapeNode(node) + ".>"
}

// quote makes s a string of the configuration language, which knows the two escapes below and reads nothing else in quotes.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
