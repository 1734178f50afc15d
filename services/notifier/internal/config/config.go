// Package config reads the notifier's configuration: environment variables and the hooks file. It reports everything that is wrong at once, by name, file and
// line, and never shows a secret.
//
// It only reads: nothing is opened, dialled or created, and what it returns are plain values. envconfig finds the variables, but every field
// it fills is a string and is checked here, because envconfig stops at its first error and prints the value. Secrets come from files or variables, never from
// flags, which every user of a machine can see.
package config

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// Config is the notifier's configuration.
type Config struct {
	State    string // directory for everything that must last
	Hooks    []Hook // none is allowed: the notifier is then only a broker
	Source   Source // of Hooks
	Files    Files  // that Hooks were read from
	Keyring  string // file of the keys whose events count
	Verify   bool   // whether the keyring is asked at all
	Listen   string // embedded broker's host:port, on loopback
	Metrics  string // "host:port", "unix:/path", or "" for none
	Root     bool   // whether root may run it
	LogLevel slog.Level
	NATS     NATS

	// Warnings are about what works and is probably not meant; they show no secret.
	Warnings []string
}

// NATS says where the broker is and how to log in. The zero value means the embedded broker.
type NATS struct {
	URL       Secret // one or several separated by commas; may hold a password
	NkeyFile  string
	CredsFile string
	CAFile    string
	CertFile  string
	KeyFile   string
}

// Embedded reports whether the notifier brings its own broker.
func (n NATS) Embedded() bool { return n.URL.Reveal() == "" }

// Hook is one configured webhook.
type Hook struct {
	Name    string
	URL     Secret        // http or https
	Secrets []sign.Secret // signing keys; none sends unsigned requests
	Rules   route.Rules   // which events it wants; they compile
	Timeout time.Duration // of one request as a whole
	Headers map[string]Secret

	Format      string   // one of render.Names; empty is the first. A template has none
	Template    Secret   // may hold a token of the receiver; empty is none
	ContentType string   // of the template
	Redact      []string // of render.Fields; left out of what is sent

	ConnectTimeout time.Duration
	CA, Cert       string // PEM; empty is the system's authorities, and no client certificate
	Key            Secret // PEM, of Cert
	Proxy          Secret // URL; empty is none
	PublicOnly     bool   // loopback and private addresses are not dialled

	Retry    retry.Policy // the zero value is retry.Default()
	Other4xx bool         // answers of 4xx that are refusals are tried again, too

	Concurrency int // attempts at a time; 0 is deliver.DefaultConcurrency
	Policy      consume.Policy
}

// Schedule returns when failed deliveries are tried again.
func (h Hook) Schedule() retry.Policy { return cmp.Or(h.Retry, retry.Default()) }

// Target returns where and how the hook's requests go.
func (h Hook) Target() deliver.Target {
	header := map[string]string{}
	for name, value := range h.Headers {
		header[name] = value.Reveal()
	}
	return deliver.Target{
		URL: h.URL.Reveal(), Secrets: h.Secrets, Timeout: h.Timeout, Header: header, ConnectTimeout: h.ConnectTimeout,
		CA: []byte(h.CA), Cert: []byte(h.Cert), Key: []byte(h.Key.Reveal()), Proxy: h.Proxy.Reveal(), PublicOnly: h.PublicOnly,
		Concurrency: h.Concurrency,
	}
}

// Render returns what makes the hook's requests out of events.
func (h Hook) Render() (render.Format, error) {
	var f render.Format
	var err error
	if text := h.Template.Reveal(); text != "" {
		f, err = render.NewTemplate(text, h.ContentType)
	} else {
		f, err = render.Named(cmp.Or(h.Format, render.Names[0]))
	}
	if err != nil {
		return nil, err
	}
	return render.Redact(f, h.Redact)
}

const (
	// DefaultHook is the name of the hook that WEBHOOK_URL makes.
	DefaultHook = "default"
	// DefaultTimeout is that of a hook which names none.
	DefaultTimeout = deliver.DefaultTimeout
	// maxTimeout keeps a hanging receiver from holding its peers' events for long.
	maxTimeout = 5 * time.Minute
)

// environment is every variable, for envconfig. The names stand whole in the tags and there is no prefix: with one, envconfig would also take
// LISTEN for NOTIFIER_LISTEN.
type environment struct {
	State    string `envconfig:"NOTIFIER_STATE" default:"/var/lib/wgherald-notifier" type:"directory" desc:"state; made with mode 0700"`
	Hooks    string `envconfig:"NOTIFIER_HOOKS" type:"file" desc:"YAML file of hooks"`
	URL      string `envconfig:"WEBHOOK_URL" type:"secret URL" desc:"makes a hook named default for all events"`
	Secret   string `envconfig:"WEBHOOK_SECRET" type:"secret" desc:"signs its requests: whsec_ and base64 of 24 to 64 bytes"`
	Secrets  string `envconfig:"WEBHOOK_SECRET_FILE" type:"file" desc:"holds that secret, instead of WEBHOOK_SECRET"`
	Verify   string `envconfig:"NOTIFIER_VERIFY" default:"true" type:"true or false" desc:"deliver only events that a key in the keyring signed"`
	Keyring  string `envconfig:"NOTIFIER_KEYRING" type:"file" desc:"keys of the probes; keyring in NOTIFIER_STATE when empty"`
	Listen   string `envconfig:"NOTIFIER_LISTEN" default:"127.0.0.1:4222" type:"loopback host:port" desc:"where the embedded broker listens"`
	Metrics  string `envconfig:"NOTIFIER_METRICS" type:"host:port or unix:/path" desc:"where metrics are served; nowhere when empty"`
	Root     string `envconfig:"NOTIFIER_ALLOW_ROOT" default:"false" type:"true or false" desc:"run even as root, without its capabilities"`
	LogLevel string `envconfig:"NOTIFIER_LOG_LEVEL" default:"info" type:"debug, info, warn, error" desc:"least level that is logged"`

	NATSURL   string `envconfig:"NATS_URL" type:"URL, URL, …" desc:"broker to use; the notifier embeds one when empty"`
	NkeyFile  string `envconfig:"NATS_NKEY_FILE" type:"file" desc:"nkey seed to log in with"`
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

// Load reads the environment and the files it names. Its error is Problems: all of them.
func Load() (Config, error) {
	var env environment
	if err := envconfig.Process("", &env); err != nil {
		return Config{}, err // all fields are strings: this cannot fail
	}
	env.tidy()
	l := newLoader()
	c := Config{
		State:    env.State,
		Keyring:  env.Keyring,
		Listen:   env.Listen,
		Metrics:  env.Metrics,
		LogLevel: l.level("NOTIFIER_LOG_LEVEL", env.LogLevel),
		Verify:   l.boolean("NOTIFIER_VERIFY", env.Verify),
		Root:     l.boolean("NOTIFIER_ALLOW_ROOT", env.Root),
		NATS:     l.nats(env),
	}
	if c.Keyring == "" {
		c.Keyring = filepath.Join(c.State, "keyring")
	}
	if err := broker.CheckListen(c.Listen); err != nil {
		l.wrong("", "%v", err) // it names the variable
	}
	l.metrics(c.Metrics)
	c.Source = Source{File: env.Hooks, URL: NewSecret(env.URL), Secret: NewSecret(env.Secret), SecretFile: env.Secrets}
	c.Hooks, c.Files = l.hooks(c.Source), l.files
	l.misspelt(os.Environ())
	c.Warnings = l.warnings
	if len(l.problems) > 0 {
		return Config{}, l.problems
	}
	return c, nil
}

// LoadBroker reads what tells where the broker is: State, Listen and NATS. An operator's command needs no more, and works where the hooks are not known or wrong.
func LoadBroker() (Config, error) {
	var env environment
	if err := envconfig.Process("", &env); err != nil {
		return Config{}, err // all fields are strings: this cannot fail
	}
	env.tidy()
	var l loader
	c := Config{State: env.State, Listen: env.Listen, NATS: l.nats(env)}
	if len(l.problems) > 0 {
		return Config{}, l.problems
	}
	return c, nil
}

// tidy trims every value and gives empty ones their default, which compose files make of `${NAME:-}`.
func (e *environment) tidy() {
	v := reflect.ValueOf(e).Elem()
	for i := range v.NumField() {
		s := strings.TrimSpace(v.Field(i).String())
		if s == "" {
			s = v.Type().Field(i).Tag.Get("default")
		}
		v.Field(i).SetString(s)
	}
}

// loader collects what is wrong while it reads.
type loader struct {
	read     func(path string) (file, error)
	files    Files
	problems Problems
	warnings []string
}

func newLoader() *loader {
	files := Files{}
	return &loader{read: files.add, files: files}
}

// file reads the file that a variable names.
func (l *loader) file(variable, path string) (file, bool) {
	if isContent(path) {
		l.wrong(variable, notContent)
		return file{}, false
	}
	f, err := l.read(path)
	if err != nil {
		l.wrong(variable, "%v", err)
	}
	return f, err == nil
}

// wrong records a problem with a variable. The text shows its value only where that cannot be a secret.
func (l *loader) wrong(name, format string, args ...any) {
	l.problems = append(l.problems, Problem{Field: name, Text: fmt.Sprintf(format, args...)})
}

func (l *loader) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}

func (l *loader) boolean(name, value string) bool {
	b, err := strconv.ParseBool(value)
	if err != nil {
		l.wrong(name, "%.40q is neither true nor false", value)
	}
	return b
}

func (l *loader) level(name, value string) slog.Level {
	switch strings.ToLower(value) {
	case "debug":
		return slog.LevelDebug
	case "info":
		return slog.LevelInfo
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	l.wrong(name, "%.40q is none of debug, info, warn, error", value)
	return 0
}

func (l *loader) metrics(addr string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(path) {
			l.wrong("NOTIFIER_METRICS", "%.80q: want an absolute path after unix:", addr)
		}
		return
	}
	if addr == "" {
		return
	}
	if _, port, err := net.SplitHostPort(addr); err != nil || !isPort(port) {
		l.wrong("NOTIFIER_METRICS", "%.80q: want host:port, such as 127.0.0.1:9586, or unix:/path", addr)
	}
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

func (l *loader) nats(env environment) NATS {
	n := NATS{NewSecret(env.NATSURL), env.NkeyFile, env.CredsFile, env.CAFile, env.CertFile, env.KeyFile}
	logins := []struct{ name, value string }{
		{"NATS_NKEY_FILE", n.NkeyFile}, {"NATS_CREDS_FILE", n.CredsFile},
		{"NATS_CA_FILE", n.CAFile}, {"NATS_CERT_FILE", n.CertFile}, {"NATS_KEY_FILE", n.KeyFile},
	}
	if n.Embedded() {
		for _, v := range logins {
			if v.value != "" {
				l.wrong(v.name, "needs NATS_URL: the embedded broker has identities of its own")
			}
		}
		return n
	}
	for _, v := range logins {
		if isContent(v.value) {
			l.wrong(v.name, notContent)
		}
	}
	for i, part := range strings.Split(env.NATSURL, ",") {
		if !isNATSURL(strings.TrimSpace(part)) {
			l.wrong("NATS_URL", "number %d is not a nats://, tls://, ws:// or wss:// URL", i+1)
		}
	}
	if n.NkeyFile != "" && n.CredsFile != "" {
		l.wrong("NATS_CREDS_FILE", "set together with NATS_NKEY_FILE: use one of them")
	}
	if (n.CertFile == "") != (n.KeyFile == "") {
		l.wrong("NATS_CERT_FILE", "and NATS_KEY_FILE go together: only one is set")
	}
	return n
}

func isNATSURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return false
	}
	switch u.Scheme {
	case "nats", "tls", "ws", "wss":
		return true
	}
	return false
}

// hooks returns the hook of WEBHOOK_URL and those of the file.
func (l *loader) hooks(from Source) []Hook {
	var hooks []Hook
	taken := map[string]string{}
	if from.URL.Reveal() != "" {
		hooks = append(hooks, l.envHook(from))
		taken[DefaultHook] = "WEBHOOK_URL"
	} else if from.Secret.Reveal() != "" || from.SecretFile != "" {
		l.warn("a webhook secret is set but WEBHOOK_URL is not: no hook uses it")
	}
	if from.File == "" {
		return hooks
	}
	return append(hooks, l.hooksFile("NOTIFIER_HOOKS", from.File, taken)...)
}

// hooksFile returns the hooks of a file. variable is what names it, and taken are the names that are used elsewhere.
func (l *loader) hooksFile(variable, path string, taken map[string]string) []Hook {
	f, ok := l.file(variable, path)
	if !ok {
		return nil
	}
	parsed := parseHooks(path, f.text, taken, l.read)
	l.problems = append(l.problems, parsed.problems...)
	l.warnings = append(l.warnings, parsed.warnings...)
	if parsed.inline && f.open {
		l.warn("hooks file %s holds a URL, a header or a secret, and is readable by everybody: chmod o-r, or move them to files", path)
	}
	for _, h := range parsed.hooks {
		if len(h.Secrets) == 0 && !render.Chat(h.Format) {
			l.unsigned(h, "secret or secret_file")
		}
	}
	return parsed.hooks
}

func (l *loader) envHook(from Source) Hook {
	h := Hook{Name: DefaultHook, URL: from.URL, Timeout: DefaultTimeout}
	if err := checkURL(from.URL.Reveal()); err != nil {
		l.wrong("WEBHOOK_URL", "%v", err)
	}
	switch inline := from.Secret.Reveal(); {
	case inline != "" && from.SecretFile != "":
		l.wrong("WEBHOOK_SECRET_FILE", "set together with WEBHOOK_SECRET: use one of them")
	case inline != "":
		h.Secrets = l.secret("WEBHOOK_SECRET", inline)
	case from.SecretFile != "":
		f, ok := l.file("WEBHOOK_SECRET_FILE", from.SecretFile)
		if !ok {
			break
		}
		if f.open {
			l.warn("secret file %s is readable by everybody: chmod o-r", from.SecretFile)
		}
		h.Secrets = l.secret("WEBHOOK_SECRET_FILE", string(f.text))
	default:
		l.unsigned(h, "WEBHOOK_SECRET or WEBHOOK_SECRET_FILE")
	}
	return h
}

// unsigned warns that receivers cannot tell the hook's requests from anybody else's.
func (l *loader) unsigned(h Hook, settings string) {
	l.warn("hook %s has no secret, so its requests are not signed (%s)", h.Name, settings)
}

func (l *loader) secret(name, text string) []sign.Secret {
	s, err := parseSecret(text)
	if err != nil {
		l.wrong(name, "%v", err)
		return nil
	}
	return []sign.Secret{s}
}

// kubernetes is the form of the variables that Kubernetes sets for a service, here for one whose name begins with notifier, webhook or nats.
var kubernetes = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

// misspelt refuses variables with our prefix that mean nothing: what they were to change stays as it is, and nobody would notice. WEBHOOK_ and NATS_ are words
// that others use as well; of these only what is one or two letters from one of ours is refused.
func (l *loader) misspelt(environ []string) {
	var known []string
	for field := range reflect.TypeFor[environment]().Fields() {
		known = append(known, field.Tag.Get("envconfig"))
	}
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		ours := strings.HasPrefix(name, "NOTIFIER_")
		if !ours && !strings.HasPrefix(name, "WEBHOOK_") && !strings.HasPrefix(name, "NATS_") || slices.Contains(known, name) || kubernetes.MatchString(name) {
			continue
		}
		switch s := suggest(name, known); {
		case s != "":
			l.wrong(name, "there is no such variable: did you mean %s?", s)
		case ours:
			l.wrong(name, "there is no such variable (notifier -h lists them)")
		}
	}
}
