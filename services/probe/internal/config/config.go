// Package config reads the probe's configuration from environment variables and reports everything that is wrong at once.
//
// It only reads: nothing is opened, dialled or made. envconfig finds the variables, but every field it fills is a string and is checked here, because
// envconfig stops at its first error and prints the value.
package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

// Config is the probe's configuration.
type Config struct {
	State      string // directory
	Node       string
	Globs      []string       // as given
	Interfaces wgstate.Filter // of Globs
	Names      []string       // files
	Endpoint   tracker.EndpointForm
	// OfflineAfter is how long after its last handshake a peer counts as gone.
	OfflineAfter time.Duration
	Silence      bool // whether silent and unreachable are said before that
	Metrics      Address
	LogLevel     slog.Level
	NATS         NATS
}

// Address is where metrics are served. The zero Address is nowhere.
type Address struct {
	Network string // "tcp" or "unix"
	Addr    string
}

// NATS says where the broker is and how to log in. Empty file names are not used.
type NATS struct {
	URL       string // one or several separated by commas; may hold a password
	NkeyFile  string // seed; signs the events, too
	CredsFile string
	CAFile    string
	CertFile  string
	KeyFile   string
}

// maxOfflineAfter is the longest OfflineAfter: beyond it, nobody would ever be gone.
const maxOfflineAfter = 24 * time.Hour

// environment is every variable, for envconfig. The names stand whole in the tags: with a prefix, envconfig would also take STATE for PROBE_STATE.
type environment struct {
	State      string `envconfig:"PROBE_STATE" default:"/var/lib/wgherald-probe" type:"directory" desc:"state; made with mode 0700"`
	Node       string `envconfig:"PROBE_NODE" type:"name" desc:"what this host is called in events; its host name when empty"`
	Interfaces string `envconfig:"PROBE_INTERFACES" type:"glob, !glob, …" desc:"WireGuard interfaces to watch; all when empty"`
	Names      string `envconfig:"PROBE_NAMES" type:"file, file, …" desc:"names of peers: lines of key and name, or wg-quick files with comments"`
	Endpoint   string `envconfig:"PROBE_ENDPOINT" default:"full" type:"full, prefix, none" desc:"how much of a peer's address is told"`
	Offline    string `envconfig:"PROBE_OFFLINE_AFTER" default:"180s" type:"duration" desc:"how long after its last handshake a peer counts as gone; 180s or more"`
	Silence    string `envconfig:"PROBE_SILENCE" default:"auto" type:"auto, off" desc:"auto: a peer that misses its learned keepalives, or does not answer, is gone before that"`
	Metrics    string `envconfig:"PROBE_METRICS" type:"host:port or unix:/path" desc:"where metrics are served, on loopback; nowhere when empty"`
	LogLevel   string `envconfig:"PROBE_LOG_LEVEL" default:"info" type:"debug, info, warn, error" desc:"least level that is logged"`

	URL       string `envconfig:"NATS_URL" default:"nats://127.0.0.1:4222" type:"URL, URL, …" desc:"broker to publish to"`
	NkeyFile  string `envconfig:"NATS_NKEY_FILE" type:"file" desc:"nkey seed to log in and sign with; when empty, probe.nk in PROBE_STATE is made and only signs"`
	CredsFile string `envconfig:"NATS_CREDS_FILE" type:"file" desc:"JWT credentials to log in with"`
	CAFile    string `envconfig:"NATS_CA_FILE" type:"file" desc:"PEM roots that the broker's certificate must lead to"`
	CertFile  string `envconfig:"NATS_CERT_FILE" type:"file" desc:"PEM client certificate, with NATS_KEY_FILE"`
	KeyFile   string `envconfig:"NATS_KEY_FILE" type:"file" desc:"PEM key of the client certificate"`
}

// usage is a table; envconfig fills it.
const usage = "VARIABLE\tTYPE\tDEFAULT\tMEANING\n" +
	`{{range .}}{{usage_key .}}{{"\t"}}{{.Tags.Get "type"}}{{"\t"}}{{with usage_default .}}{{.}}{{else}}-{{end}}{{"\t"}}{{usage_description .}}` + "\n{{end}}"

// Usage prints every variable with its type, default and meaning. An empty variable counts as one that is not set.
func Usage(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if err := envconfig.Usagef("", &environment{}, table, usage); err != nil {
		return err
	}
	return table.Flush()
}

// Load reads the environment. The error holds all that is wrong, one line each.
func Load() (Config, error) {
	var env environment
	if err := envconfig.Process("", &env); err != nil {
		return Config{}, err // all fields are strings: this cannot fail
	}
	env.tidy()
	var problems []error
	wrong := func(variable, format string, args ...any) {
		problems = append(problems, fmt.Errorf(variable+": "+format, args...))
	}

	c := Config{
		State:    env.State,
		Node:     env.Node,
		Globs:    list(env.Interfaces),
		Names:    list(env.Names),
		Endpoint: tracker.EndpointForm(env.Endpoint),
		NATS: NATS{
			URL: env.URL, NkeyFile: env.NkeyFile, CredsFile: env.CredsFile,
			CAFile: env.CAFile, CertFile: env.CertFile, KeyFile: env.KeyFile,
		},
	}
	if c.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			wrong("PROBE_NODE", "it is empty and the host has no name: %w", err)
		}
		c.Node = host
	}
	if err := events.ValidateName(c.Node); err != nil {
		wrong("PROBE_NODE", "%w", err)
	}
	var err error
	if c.Interfaces, err = wgstate.ParseGlobs(env.Interfaces); err != nil {
		wrong("PROBE_INTERFACES", "%w", err)
	}
	switch c.Endpoint {
	case tracker.EndpointFull, tracker.EndpointPrefix, tracker.EndpointNone:
	default:
		wrong("PROBE_ENDPOINT", "is %.40q, want full, prefix or none", env.Endpoint)
	}
	switch c.OfflineAfter, err = time.ParseDuration(env.Offline); {
	case err != nil:
		wrong("PROBE_OFFLINE_AFTER", "is %.40q, want a duration such as 180s or 5m", env.Offline)
	case c.OfflineAfter < tracker.RejectAfterTime:
		wrong("PROBE_OFFLINE_AFTER", "is %v, want 180s or more: a session's keys live that long after a handshake (REJECT_AFTER_TIME), and a healthy peer may "+
			"make no other before 165s, so that a shorter time calls peers gone that are there", c.OfflineAfter)
	case c.OfflineAfter > maxOfflineAfter:
		wrong("PROBE_OFFLINE_AFTER", "is %v, want %v at most", c.OfflineAfter, maxOfflineAfter)
	}
	switch env.Silence {
	case "auto", "off":
		c.Silence = env.Silence == "auto"
	default:
		wrong("PROBE_SILENCE", "is %.40q, want auto or off", env.Silence)
	}
	if c.Metrics, err = parseAddress(env.Metrics); err != nil {
		wrong("PROBE_METRICS", "%w", err)
	}
	if err := c.LogLevel.UnmarshalText([]byte(env.LogLevel)); err != nil {
		wrong("PROBE_LOG_LEVEL", "is %.40q, want debug, info, warn or error", env.LogLevel)
	}
	if len(list(env.URL)) == 0 {
		wrong("NATS_URL", "is no URL such as nats://127.0.0.1:4222")
	}
	for _, u := range list(env.URL) {
		// The URL may hold a password, so no error quotes it.
		switch parsed, err := url.Parse(u); {
		case err != nil || parsed.Host == "":
			wrong("NATS_URL", "is no URL such as nats://127.0.0.1:4222")
		case parsed.Scheme != "nats" && parsed.Scheme != "tls" && parsed.Scheme != "ws" && parsed.Scheme != "wss":
			wrong("NATS_URL", "has the scheme %.20q, want nats, tls, ws or wss", parsed.Scheme)
		}
	}
	if env.NkeyFile != "" && env.CredsFile != "" {
		wrong("NATS_CREDS_FILE", "NATS_NKEY_FILE is set, too: one login is enough")
	}
	if (env.CertFile == "") != (env.KeyFile == "") {
		wrong("NATS_CERT_FILE", "it goes with NATS_KEY_FILE: set both or none")
	}
	problems = append(problems, misspelt(os.Environ())...)
	if len(problems) > 0 {
		return Config{}, errors.Join(problems...)
	}
	return c, nil
}

// tidy trims every variable and gives those that are empty their default, as if they were not set: compose files set variables to nothing.
func (e *environment) tidy() {
	fields := reflect.ValueOf(e).Elem()
	for i := range fields.NumField() {
		value := strings.TrimSpace(fields.Field(i).String())
		if value == "" {
			value = fields.Type().Field(i).Tag.Get("default")
		}
		fields.Field(i).SetString(value)
	}
}

// SeedFile is the file of the nkey that signs events, and whether it is made when it is missing.
func (c *Config) SeedFile() (path string, mayMake bool) {
	if c.NATS.NkeyFile != "" {
		return c.NATS.NkeyFile, false
	}
	return filepath.Join(c.State, "probe.nk"), true
}

// list splits at commas and drops what is blank.
func list(s string) []string {
	var items []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// parseAddress accepts what others on the network cannot reach: the probe holds private keys.
func parseAddress(s string) (Address, error) {
	if s == "" {
		return Address{}, nil
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return Address{}, fmt.Errorf("%q is no absolute path", path)
		}
		return Address{Network: "unix", Addr: path}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return Address{}, fmt.Errorf("%q is neither host:port nor unix:/path", s)
	}
	if addr, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !addr.IsLoopback()) {
		return Address{}, fmt.Errorf("%q is not on loopback: use 127.0.0.1 or unix:/path, and a scraper on this host", s)
	}
	return Address{Network: "tcp", Addr: s}, nil
}

// misspelt names variables with our prefix that mean nothing. Kubernetes sets some of that prefix when a service is called probe; those are not ours.
func misspelt(environ []string) []error {
	var known []string
	for field := range reflect.TypeFor[environment]().Fields() {
		if name := field.Tag.Get("envconfig"); strings.HasPrefix(name, "PROBE_") {
			known = append(known, name)
		}
	}
	slices.Sort(known)
	var problems []error
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		foreign := strings.HasPrefix(name, "PROBE_PORT") || strings.HasPrefix(name, "PROBE_SERVICE_")
		if strings.HasPrefix(name, "PROBE_") && !slices.Contains(known, name) && !foreign {
			problems = append(problems, fmt.Errorf("%s: there is no such variable: there are %s", name, strings.Join(known, ", ")))
		}
	}
	return problems
}
