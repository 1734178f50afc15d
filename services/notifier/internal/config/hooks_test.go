package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// Secrets of the tests. The marker is in everything that must never be shown.
const (
	marker  = "hunter2"
	secretA = "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==" // base64 of hunter2 four times
	secretB = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

// fakeFiles is a read function over a map from path to content; a content that starts with "open:" is readable by everybody.
func fakeFiles(files map[string]string) func(string) (file, error) {
	return func(path string) (file, error) {
		text, ok := files[path]
		if !ok {
			return file{}, fileError(path, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist})
		}
		text, open := strings.CutPrefix(text, "open:")
		return file{text: []byte(text), open: open}, nil
	}
}

// selfSigned makes a certificate and its key, as PEM, without the line break at their ends.
func selfSigned() (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		panic(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		panic(err)
	}
	block := func(kind string, der []byte) string {
		return strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8)
}

var (
	certPEM, keyPEM = selfSigned()
	_, otherKeyPEM  = selfSigned()
)

var testFiles = fakeFiles(map[string]string{
	"/etc/wg/cert.pem":  "open:" + certPEM + "\n",
	"/etc/wg/key.pem":   keyPEM + "\n",
	"/etc/wg/other.pem": otherKeyPEM,
	"/etc/wg/password":  marker + "\n",
	"/etc/wg/two":       marker + " " + marker,
	"/etc/wg/proxy":     "http://u:" + marker + "@proxy:3128",

	"/etc/wg/url":     "https://example.org/" + marker + "\n",
	"/etc/wg/a":       secretA + "\n",
	"/etc/wg/b":       "open:" + secretB,
	"/etc/wg/empty":   " \n",
	"/etc/wg/url.bad": "ftp://" + marker,
	"/etc/wg/tmpl":    "open:{\"text\": {{json .Text}}}\n",
	"/etc/wg/bad":     "{\"token\": \"" + marker + "\",\n \"text\": {{.Txt}}}",
})

func parse(text string) parsedHooks {
	return parseHooks("/etc/wg/hooks.yaml", []byte(text), map[string]string{"default": "WEBHOOK_URL"}, testFiles)
}

func mustSecret(t *testing.T, text string) sign.Secret {
	t.Helper()
	s, err := sign.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var compareSecrets = cmp.AllowUnexported(sign.Secret{})

func TestHooksFile(t *testing.T) {
	t.Parallel()
	a, b := mustSecret(t, secretA), mustSecret(t, secretB)
	for name, tt := range map[string]struct {
		yaml     string
		want     []Hook
		warnings []string
	}{
		"the least a hook needs": {
			yaml: "hooks:\n- name: ops\n  url: https://example.org/x\n",
			want: []Hook{{Name: "ops", URL: NewSecret("https://example.org/x"), Timeout: 15 * time.Second}},
		},
		"everything, twice": {
			yaml: `
# comments are welcome
hooks:
  - name: ops
    url_file: url
    secret_files: [a, /etc/wg/b]
    types: ["wg.peer.*", wg.probe.stopped]
    nodes: vpn-*
    interfaces: [wg0]
    peers: [alice-*, "KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg="]
    tags: [staff]
    endpoints: [203.0.113.0/24, "2001:db8::7"]
    timeout: 2.5s
    headers:
      authorization: Bearer hunter2
      X-Team: 7
  - {name: flow-style_2, url: "http://[::1]:8080/x", secrets: [` + secretA + `, ` + secretB + `], nodes: [1, true, 1.50]}
`,
			want: []Hook{
				{
					Name: "ops", URL: NewSecret("https://example.org/hunter2"), Secrets: []sign.Secret{a, b}, Timeout: 2500 * time.Millisecond,
					Rules: route.Rules{
						Types: []string{"wg.peer.*", "wg.probe.stopped"}, Nodes: []string{"vpn-*"}, Interfaces: []string{"wg0"},
						Peers: []string{"alice-*", "KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg="}, Tags: []string{"staff"},
						Endpoints: []string{"203.0.113.0/24", "2001:db8::7"},
					},
					Headers: map[string]Secret{"Authorization": NewSecret("Bearer hunter2"), "X-Team": NewSecret("7")},
				},
				{
					Name: "flow-style_2", URL: NewSecret("http://[::1]:8080/x"), Secrets: []sign.Secret{a, b}, Timeout: 15 * time.Second,
					Rules: route.Rules{Nodes: []string{"1", "true", "1.50"}},
				},
			},
			warnings: []string{"secret file /etc/wg/b is readable by everybody: chmod o-r"},
		},
		"one secret in a file, one value without a list": {
			yaml: "hooks:\n- {name: a, url: 'https://h', secret_file: a, types: wg.peer.connected}",
			want: []Hook{{
				Name: "a", URL: NewSecret("https://h"), Secrets: []sign.Secret{a}, Timeout: 15 * time.Second,
				Rules: route.Rules{Types: []string{"wg.peer.connected"}},
			}},
		},
		"a format": {
			yaml: "hooks:\n- {name: a, url: 'https://h', format: slack}",
			want: []Hook{{Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Format: "slack"}},
		},
		"a template": {
			yaml: "hooks:\n- name: a\n  url: https://h\n  content_type: text/plain; charset=utf-8\n  template: |\n    {{.Name}}\n    {{- with .Reason}}: {{.}}{{end}}\n",
			want: []Hook{{
				Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second,
				Template: NewSecret("{{.Name}}\n{{- with .Reason}}: {{.}}{{end}}"), ContentType: "text/plain; charset=utf-8",
			}},
		},
		"a template in a file that everybody may read": {
			yaml: "hooks:\n- {name: a, url: 'https://h', template_file: tmpl}",
			want: []Hook{{
				Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second,
				Template: NewSecret(`{"text": {{json .Text}}}`), ContentType: "application/json",
			}},
		},
		"a way of one's own": {
			yaml: `
hooks:
- name: a
  url: https://h
  basic_auth: {user: alice, password_file: password}
  connect_timeout: 1s
  ca_file: cert.pem
  client_cert_file: cert.pem
  client_key_file: key.pem
  proxy: socks5://u:hunter2@proxy:1080
  private: deny
- {name: b, url: 'http://h', bearer_file: password, proxy_file: proxy, private: allow, headers: {X-A: b}}
`,
			want: []Hook{
				{
					Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second, ConnectTimeout: time.Second,
					Headers: map[string]Secret{"Authorization": NewSecret("Basic YWxpY2U6aHVudGVyMg==")},
					CA:      certPEM, Cert: certPEM, Key: NewSecret(keyPEM), Proxy: NewSecret("socks5://u:hunter2@proxy:1080"), PublicOnly: true,
				},
				{
					Name: "b", URL: NewSecret("http://h"), Timeout: 15 * time.Second, Proxy: NewSecret("http://u:hunter2@proxy:3128"),
					Headers: map[string]Secret{"Authorization": NewSecret("Bearer hunter2"), "X-A": NewSecret("b")},
				},
			},
		},
		"fields left out": {
			yaml: "hooks:\n- {name: a, url: 'https://h', redact: [endpoint, name]}\n- {name: b, url: 'https://h', redact: tags}",
			want: []Hook{
				{Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Redact: []string{"endpoint", "name"}},
				{Name: "b", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Redact: []string{"tags"}},
			},
		},
		"a schedule": {
			yaml: "hooks:\n- name: a\n  url: https://h\n  retry: {first: 1s, factor: 2, cap: 1h, jitter: 0, give_up: 24h, other_4xx: true}\n- {name: b, url: 'https://h', retry: {factor: 1.5}}",
			want: []Hook{
				{
					Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Other4xx: true,
					Retry: retry.Policy{Initial: time.Second, Factor: 2, Max: time.Hour, Jitter: 0, GiveUp: 24 * time.Hour},
				},
				{
					Name: "b", URL: NewSecret("https://h"), Timeout: 15 * time.Second,
					Retry: retry.Policy{Initial: 5 * time.Second, Factor: 1.5, Max: 6 * time.Hour, Jitter: 0.2, GiveUp: 72 * time.Hour},
				},
			},
		},
		"limits": {
			yaml: "hooks:\n- {name: a, url: 'https://h', concurrency: 1, rate: 10/s}\n- {name: b, url: 'https://h', rate: 30/m}",
			want: []Hook{
				{Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Concurrency: 1, Policy: consume.Policy{Rate: 10}},
				{Name: "b", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Policy: consume.Policy{Rate: 0.5}},
			},
		},
		"order, hold and a beginning": {
			yaml: "hooks:\n- {name: a, url: 'https://h', order: none, from: all}\n- {name: b, url: 'https://h', order: peer, hold: 30s, from: 1h}\n- {name: c, url: 'https://h', from: new}",
			want: []Hook{
				{Name: "a", URL: NewSecret("https://h"), Timeout: 15 * time.Second, Policy: consume.Policy{Order: consume.Unordered, From: consume.From{All: true}}},
				{
					Name: "b", URL: NewSecret("https://h"), Timeout: 15 * time.Second,
					Policy: consume.Policy{Order: consume.PerPeer, Hold: 30 * time.Second, From: consume.From{Ago: time.Hour}},
				},
				{Name: "c", URL: NewSecret("https://h"), Timeout: 15 * time.Second},
			},
		},
		"a list of none": {yaml: "hooks: []"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := parse(tt.yaml)
			if len(got.problems) > 0 {
				t.Fatal(got.problems)
			}
			if diff := cmp.Diff(tt.want, got.hooks, compareSecrets, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("hooks (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.warnings, got.warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHooksFileMistakes(t *testing.T) {
	t.Parallel()
	tls := func(lines string) string { // the hook's fields start in line 4
		return "hooks:\n- name: ops\n  url: https://h\n  " + strings.ReplaceAll(lines, "\n", "\n  ")
	}
	hook := func(lines string) string { return strings.Replace(tls(lines), "https:", "http:", 1) }
	var known = strings.Join(hookFields, ", ")
	const makeOne = `: make one with: echo "whsec_$(openssl rand -base64 32)"`
	for name, tt := range map[string]struct {
		yaml string
		want []string // without the file
	}{
		"nothing":                       {"", []string{" empty: want a list under hooks:"}},
		"only a comment":                {"# hooks:", []string{" empty: want a list under hooks:"}},
		"a scalar":                      {"hooks", []string{"1: want a mapping (key: value lines)"}},
		"a list":                        {"- name: a", []string{"1: want a mapping (key: value lines)"}},
		"an empty mapping":              {"{}", []string{"1: hooks: missing"}},
		"another key":                   {"hook: []", []string{"1: hook: unknown key: did you mean hooks?"}},
		"no value":                      {"hooks:", []string{"1: hooks: want a list of hooks"}},
		"a mapping of hooks":            {"hooks:\n  ops:\n    url: x", []string{"2: hooks: want a list of hooks"}},
		"a hook that is a text":         {"hooks: [hunter2]", []string{"1: hook #1: want a mapping (key: value lines)"}},
		"an empty hook":                 {"hooks:\n- {}", []string{"2: hook #1: name: missing", "2: hook #1: url: missing: give url or url_file"}},
		"two documents":                 {"hooks: []\n---\nhooks: []", []string{"3: a second YAML document: put all hooks into one list"}},
		"not YAML":                      {"hooks: [hunter2", []string{"1: not YAML: sequence end token ']' not found"}},
		"brackets for ever":             {"hooks:\n" + strings.Repeat("[", maxFile-7), []string{"2: lists and mappings are nested more than 50 deep: one may not be closed"}},
		"braces for ever":               {"hooks: " + strings.Repeat("{a: ", maxFile/4-2), []string{"1: lists and mappings are nested more than 50 deep: one may not be closed"}},
		"brackets, all closed":          {"hooks:\n\n" + strings.Repeat("[", 60_000) + strings.Repeat("]", 60_000), []string{"3: lists and mappings are nested more than 50 deep: one may not be closed"}},
		"a row of dashes":               {strings.Repeat("- ", maxFile/2), []string{"1: lists and mappings are nested more than 50 deep: one may not be closed"}},
		"many short rows of dashes":     {strings.Repeat("- - -\n", 100), []string{"1: want a mapping (key: value lines)"}},
		"brackets in a text":            {"hooks: '" + strings.Repeat("[", 1000) + "'", []string{"1: hooks: want a list of hooks"}},
		"a tab":                         {"hooks:\n\t- name: hunter2", []string{"2: not YAML: found character '\t' that cannot start any token"}},
		"an alias":                      {"hooks:\n- &x {name: a, url: 'http://h'}\n- *x", []string{"2: hook #1: anchors, aliases and tags are not supported: write the value out, with quotes if it begins with *, & or !", "3: hook #2: anchors, aliases and tags are not supported: write the value out, with quotes if it begins with *, & or !"}},
		"a pattern without quotes":      {hook("nodes: [*-vpn]"), []string{`4: hook ops: nodes: anchors, aliases and tags are not supported: write the value out, with quotes if it begins with *, & or !`}},
		"a name in capitals":            {"hooks:\n- name: Ops\n  url: http://h", []string{"2: hook #1: name: want 1 to 32 of a-z, 0-9, _ and -"}},
		"a name too long":               {"hooks:\n- name: " + strings.Repeat("a", 33) + "\n  url: http://h", []string{"2: hook #1: name: want 1 to 32 of a-z, 0-9, _ and -"}},
		"a name that is a list":         {"hooks:\n- name: [a]\n  url: http://h", []string{"2: hook #1: name: want a single value"}},
		"a name twice":                  {"hooks:\n- name: a\n  url: http://h\n- url: http://h\n  name: a", []string{"5: hook #2: name: a is taken already by the hook of line 2"}},
		"the name of WEBHOOK_URL":       {"hooks:\n- name: default\n  url: http://h", []string{"2: hook #1: name: default is taken already by the hook of WEBHOOK_URL"}},
		"a misspelt key":                {hook("tiemout: 3s"), []string{"4: hook ops: tiemout: unknown key: did you mean timeout?"}},
		"a key in capitals":             {hook("Types: wg.peer.*"), []string{"4: hook ops: Types: unknown key: did you mean types?"}},
		"an unknown key":                {hook("retries: 3"), []string{"4: hook ops: retries: unknown key; known are " + known}},
		"a secret where a key should":   {hook("whsec_hunter2: x"), []string{"4: hook ops: unknown key; known are " + known}},
		"a key twice":                   {hook("timeout: 1s\ntimeout: 2s"), []string{"5: hook ops: timeout: given twice"}},
		"no url":                        {"hooks:\n- name: a", []string{"2: hook a: url: missing: give url or url_file"}},
		"two urls":                      {hook("url_file: url"), []string{"2: hook ops: url_file: given together with url: use one of them"}},
		"a url file that is not there":  {"hooks:\n- name: a\n  url_file: nope", []string{"3: hook a: url_file: the file that it names is not in /etc/wg"}},
		"a url file of nowhere":         {"hooks:\n- name: a\n  url_file: /run/nope", []string{"3: hook a: url_file: file /run/nope cannot be read: file does not exist"}},
		"a url file with another thing": {"hooks:\n- name: a\n  url_file: url.bad", []string{"3: hook a: url_file: want an http:// or https:// URL"}},
		"a url of another kind":         {"hooks:\n- name: a\n  url: hunter2://x", []string{"3: hook a: url: want an http:// or https:// URL"}},
		"a url without a host":          {"hooks:\n- name: a\n  url: https:///hunter2", []string{"3: hook a: url: the URL has no host"}},
		"a url with a broken password":  {"hooks:\n- name: a\n  url: 'https://u:hunter2%zz@h/'", []string{"3: hook a: url: not a URL"}},
		"a url with a broken port":      {"hooks:\n- name: a\n  url: 'https://u:hunter2@h:99999/'", []string{"3: hook a: url: the URL's port is not between 0 and 65535"}},
		"a url with a fragment":         {"hooks:\n- name: a\n  url: 'https://h/x#hunter2'", []string{"3: hook a: url: the URL has a fragment (#), which is never sent"}},
		"a secret without its prefix":   {hook("secret: hunter2"), []string{"4: hook ops: secret: secret does not start with whsec_" + makeOne}},
		"a secret that is no base64":    {hook("secret: whsec_hunter2"), []string{"4: hook ops: secret: secret is no base64 after whsec_" + makeOne}},
		"a secret too short":            {hook("secrets:\n- " + secretA + "\n- whsec_aHVudGVyMg=="), []string{"6: hook ops: secrets: secret has 7 bytes, want 24 to 64" + makeOne}},
		"secrets in two ways":           {hook("secret: " + secretA + "\nsecret_file: a"), []string{"2: hook ops: secret_file: given together with secret: use one of them"}},
		"an empty secret file":          {hook("secret_file: empty"), []string{"4: hook ops: secret_file: file /etc/wg/empty is empty"}},
		"an empty list":                 {hook("secrets: []"), []string{"4: hook ops: secrets: empty list: leave the key out"}},
		"a secret that is a mapping":    {hook("secret: {a: hunter2}"), []string{"4: hook ops: secret: want a single value"}},
		"a type that there is not":      {hook("types:\n- wg.peer.*\n- wg.pear.*"), []string{`6: hook ops: types: pattern "wg.pear.*" matches no event type`}},
		"a malformed glob":              {hook("nodes: ['vpn-[']"), []string{`4: hook ops: nodes: pattern "vpn-[" is malformed`}},
		"an empty glob":                 {hook("tags: [staff, '']"), []string{"4: hook ops: tags: empty"}},
		"a glob that is a list":         {hook("peers: [[a]]"), []string{"4: hook ops: peers: want a single value"}},
		"a network of addresses":        {hook("endpoints:\n- 203.0.113.7/24\n- everywhere"), []string{"5: hook ops: endpoints: 203.0.113.7/24 has bits beyond its prefix: want 203.0.113.0/24 or 203.0.113.7", `6: hook ops: endpoints: "everywhere" is neither a network, such as 203.0.113.0/24, nor an address`}},
		"a timeout without unit":        {hook("timeout: 15"), []string{`4: hook ops: timeout: "15" is not a duration with its unit, such as 15s, 1h30m or 7d`}},
		"no timeout":                    {hook("timeout: 0s"), []string{"4: hook ops: timeout: 0s is not between 0s and 5m"}},
		"a timeout too long":            {hook("timeout: 1h"), []string{"4: hook ops: timeout: 1h is not between 0s and 5m"}},
		"headers as a list":             {hook("headers: [a]"), []string{"4: hook ops: headers: want a mapping (key: value lines)"}},
		"a header of ours":              {hook("headers:\n  webhook-id: hunter2"), []string{"5: hook ops: headers: Webhook-Id is set by the notifier"}},
		"a header in two cases":         {hook("headers:\n  x-a: 1\n  X-A: 2"), []string{"6: hook ops: headers: X-A given twice"}},
		"a header name with a space":    {hook("headers:\n  'x hunter2': 1"), []string{"5: hook ops: headers: a key is not the name of a header"}},
		"a header with a line break":    {hook("headers:\n  x-a: \"hunter2\\r\\nx-b: 1\""), []string{"5: hook ops: headers: the value of X-A has a line break or another control character"}},
		"a CloudEvents header":          {hook("headers:\n  ce-id: hunter2"), []string{"5: hook ops: headers: Ce-Id is set by the notifier"}},
		"a format misspelt":             {hook("format: Slak"), []string{"4: hook ops: format: Slak is not known: did you mean slack?"}},
		"a format that there is not":    {hook("format: teams"), []string{"4: hook ops: format: teams is none of cloudevents, binary, slack, discord, ntfy"}},
		"a format that may be a secret": {hook("format: hunter2"), []string{"4: hook ops: format: want one of cloudevents, binary, slack, discord, ntfy"}},
		"a format and a template":       {hook("template: '{{.Nme}}'\nformat: slack"), []string{"2: hook ops: format: given together with template: use one of them"}},
		"a media type without template": {hook("content_type: text/plain"), []string{"4: hook ops: content_type: only a template has one: the other formats have their own"}},
		"a broken media type":           {hook("template: '{}'\ncontent_type: json"), []string{"5: hook ops: content_type: not a media type, such as application/json"}},
		"a template with no such field": {hook("template: |\n  {\"a\": \"hunter2\",\n   \"b\": {{json .Nme}}}"), []string{"4: hook ops: template: on wg.peer.connected: line 2 of the template: can't evaluate field Nme"}},
		"a template file that is wrong": {hook("template_file: bad"), []string{"4: hook ops: template_file: on wg.peer.connected: line 2 of the template: can't evaluate field Txt"}},
		"a template file of nowhere":    {hook("template_file: nope"), []string{"4: hook ops: template_file: file /etc/wg/nope cannot be read: file does not exist"}},
		"a template of no JSON":         {hook("template: '{\"a\": \"{{.Peer.Name}}\"}'"), []string{"4: hook ops: template: on wg.peer.connected: the output is not JSON: does every text go through {{json …}}?"}},
		"a connect timeout too long":    {hook("connect_timeout: 1h"), []string{"4: hook ops: connect_timeout: 1h is not between 0s and 5m"}},
		"authorities of nowhere":        {tls("ca_file: nope"), []string{"4: hook ops: ca_file: file /etc/wg/nope cannot be read: file does not exist"}},
		"authorities that are none":     {tls("ca_file: password"), []string{"4: hook ops: ca_file: no PEM certificate (-----BEGIN CERTIFICATE-----)"}},
		"authorities without TLS":       {hook("ca_file: cert.pem"), []string{"4: hook ops: ca_file: the url is http://, without TLS"}},
		"a certificate without key":     {tls("client_cert_file: cert.pem"), []string{"4: hook ops: client_cert_file: needs client_key_file"}},
		"a key without certificate":     {tls("client_key_file: key.pem"), []string{"4: hook ops: client_key_file: needs client_cert_file"}},
		"somebody elses key":            {tls("client_key_file: other.pem\nclient_cert_file: cert.pem"), []string{"5: hook ops: client_cert_file: the key does not belong to the certificate"}},
		"a password for key":            {tls("client_key_file: password\nclient_cert_file: cert.pem"), []string{"5: hook ops: client_cert_file: want a PEM certificate and its PEM key without passphrase"}},
		"a proxy of another kind":       {hook("proxy: ftp://u:hunter2@h"), []string{"4: hook ops: proxy: want an http://, https:// or socks5:// URL"}},
		"a proxy in two ways":           {hook("proxy_file: proxy\nproxy: http://h"), []string{"2: hook ops: proxy: given together with proxy_file: use one of them"}},
		"private as a truth":            {hook("private: no"), []string{"4: hook ops: private: no is none of allow, deny"}},
		"private misspelt":              {hook("private: denny"), []string{"4: hook ops: private: denny is not known: did you mean deny?"}},
		"two logins":                    {hook("bearer_file: password\nbasic_auth: {user: a, password_file: password}"), []string{"2: hook ops: basic_auth: given together with bearer_file: use one of them"}},
		"a login and a header":          {hook("bearer_file: password\nheaders: {authorization: hunter2}"), []string{"2: hook ops: bearer_file: given together with the header Authorization: use one of them"}},
		"a login and a user":            {"hooks:\n- name: ops\n  url: https://u:hunter2@h\n  bearer_file: password", []string{"2: hook ops: url: has a user, and another key says how to log in: use one of them"}},
		"two tokens":                    {hook("bearer_file: two"), []string{"4: hook ops: bearer_file: the file holds something beside one token"}},
		"no password":                   {hook("basic_auth: {user: a}"), []string{"4: hook ops: basic_auth: want user and password_file"}},
		"a password in the file":        {hook("basic_auth:\n  user: a\n  password: hunter2"), []string{"6: hook ops: password: unknown key; known are user, password_file", "5: hook ops: basic_auth: want user and password_file"}},
		"a user with a colon":           {hook("basic_auth: {user: 'a:b', password_file: password}"), []string{"4: hook ops: basic_auth: the user has a colon or a control character"}},
		"fields that there are not":     {hook("redact:\n- endpoints\n- key"), []string{"5: hook ops: redact: endpoints is not known: did you mean endpoint?", "6: hook ops: redact: key is none of allowed_ips, endpoint, name, tags"}},
		"no fields":                     {hook("redact: []"), []string{"4: hook ops: redact: empty list: leave the key out"}},
		"a schedule misspelt":           {hook("retry:\n  fist: 1s\n  other_4xx: yes"), []string{"5: hook ops: fist: unknown key: did you mean first?", "6: hook ops: retry.other_4xx: yes is none of true, false"}},
		"a schedule of nonsense":        {hook("retry: {first: 1ms, factor: 0.5, cap: 0s, jitter: nan, give_up: -1h}"), []string{"4: hook ops: retry.first: 1ms is not between 100ms and 365d", `4: hook ops: retry.factor: "0.5" is no number from 1 to 100`, "4: hook ops: retry.cap: 0s is not between 100ms and 365d", `4: hook ops: retry.jitter: "nan" is no number from 0 to 1`, "4: hook ops: retry.give_up: -1h is not between 100ms and 365d"}},
		"a cap under the first wait":    {hook("retry:\n  first: 1m\n  cap: 30s"), []string{"6: hook ops: retry.cap: 30s is less than first, 1m0s"}},
		"a first wait over the cap":     {hook("retry:\n  first: 7h"), []string{"5: hook ops: retry.cap: 6h0m0s is less than first, 7h0m0s"}},
		"no concurrency":                {hook("concurrency: 0"), []string{`4: hook ops: concurrency: "0" is no whole number from 1 to 256`}},
		"too much concurrency":          {hook("concurrency: 257"), []string{`4: hook ops: concurrency: "257" is no whole number from 1 to 256`}},
		"a rate without time":           {hook("rate: 10"), []string{`4: hook ops: rate: "10" is no rate, such as 10/s, 30/m or 100/h`}},
		"a rate beyond all":             {hook("rate: 99999/s"), []string{`4: hook ops: rate: 99999/s is more than 10000/s: leave it out for no limit`}},
		"an order that is none":         {hook("order: some"), []string{`4: hook ops: order: some is not known: did you mean none?`}},
		"a hold for too long":           {hook("hold: 1h"), []string{`4: hook ops: hold: 1h is not between 1s and 10m`}},
		"a hold without order":          {hook("order: none\nhold: 30s"), []string{`5: hook ops: hold: given together with order: none: what is held back needs an order`}},
		"a beginning that is none":      {hook("from: start"), []string{`4: hook ops: from: "start" is neither new, all nor a duration such as 1h or 7d`}},
		"a beginning too many days ago": {hook("from: 60d"), []string{`4: hook ops: from: 60d is not between 1s and 7d`}},
		"days and hours together":       {hook("from: 1d12h"), []string{`4: hook ops: from: "1d12h" is not a duration with its unit, such as 15s, 1h30m or 7d`}},
		"a beginning too long ago":      {hook("from: 9999h"), []string{`4: hook ops: from: 9999h is not between 1s and 7d`}},
		"a rate of nothing":             {hook("rate: 0/s"), []string{`4: hook ops: rate: "0/s" is no rate, such as 10/s, 30/m or 100/h`}},
		"a block with a secret beside":  {hook("secret: |hunter2\n  x"), []string{"4: not YAML: invalid header option"}},
		"a misspelt kind with a secret": {hook("secret: !hunter2 x"), []string{"4: hook ops: secret: anchors, aliases and tags are not supported: write the value out, with quotes if it begins with *, & or !"}},
		"a password for its file":       {hook("basic_auth: {user: a, password_file: hunter2}"), []string{"4: hook ops: basic_auth: the file that it names is not in /etc/wg"}},
		"a token for its file":          {hook("bearer_file: hunter2." + strings.Repeat("x", 300)), []string{"4: hook ops: bearer_file: the file that it names is not in /etc/wg"}},
		"a seed for its file":           {hook("bearer_file: SUA" + strings.Repeat("A", 55)), []string{"4: hook ops: bearer_file: want the path of a file, not what is in it"}},
		"a secret for its file":         {hook("secret_file: whsec_hunter2"), []string{"4: hook ops: secret_file: want the path of a file, not what is in it"}},
		"a url for its file":            {"hooks:\n- name: a\n  url_file: https://h/hunter2", []string{"3: hook a: url_file: want the path of a file, not what is in it"}},
		"a key for its file":            {tls("client_cert_file: cert.pem\nclient_key_file: |\n  -----BEGIN PRIVATE KEY-----\n  hunter2"), []string{"5: hook ops: client_key_file: want the path of a file, not what is in it"}},
		"a template for its file":       {hook("template_file: '{\"hunter2\": 1}'"), []string{"4: hook ops: template_file: want the path of a file, not what is in it"}},
		"several at once": {
			"hooks:\n- name: a\n  url: ftp://hunter2\n  tipes: x\n- name: B\n  url: http://h\n  timeout: soon",
			[]string{
				"3: hook a: url: want an http:// or https:// URL",
				"4: hook a: tipes: unknown key: did you mean types?",
				"5: hook #2: name: want 1 to 32 of a-z, 0-9, _ and -",
				`7: hook #2: timeout: "soon" is not a duration with its unit, such as 15s, 1h30m or 7d`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := parse(tt.yaml)
			var lines []string
			for _, p := range got.problems {
				lines = append(lines, strings.TrimPrefix(p.String(), "/etc/wg/hooks.yaml:"))
			}
			if diff := cmp.Diff(tt.want, lines); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if strings.Contains(got.problems.Error(), marker) {
				t.Errorf("a secret shows in: %v", got.problems)
			}
			if got.hooks != nil {
				t.Errorf("hooks in spite of problems: %v", got.hooks)
			}
		})
	}
}

func FuzzParseHooks(f *testing.F) {
	f.Add("hooks:\n- name: a\n  url: https://h\n  template: |\n    {{json .Text}}\n  content_type: text/plain\n- {name: b, url: 'https://h', format: ntfy}")
	f.Add("hooks:\n- name: ops\n  url: https://h\n  secret: " + secretA + "\n  types: [wg.peer.*]\n  headers: {a: b}\n  timeout: 3s\n")
	f.Add("hooks:\n- &a {name: x, <<: *a}\n---\n? [a]\n: |\n  text\n")
	f.Add("{hooks: [{name: !!str a, url_file: a, secret_files: [a, b], nodes: .inf, peers: ~}]}")
	f.Fuzz(func(t *testing.T, text string) {
		got := parse(text)
		if len(got.problems) > 0 && got.hooks != nil {
			t.Error("hooks in spite of problems")
		}
		names := map[string]bool{"default": true}
		for _, h := range got.hooks {
			if !hookName.MatchString(h.Name) || names[h.Name] {
				t.Errorf("name %q", h.Name)
			}
			names[h.Name] = true
			if err := checkURL(h.URL.Reveal()); err != nil {
				t.Error(err)
			}
			if h.Timeout <= 0 || h.Timeout > maxTimeout {
				t.Errorf("timeout %v", h.Timeout)
			}
			if _, err := route.Compile(h.Rules); err != nil {
				t.Error(err)
			}
			if _, err := h.Render(); err != nil {
				t.Error(err)
			}
			if err := h.Schedule().Validate(); err != nil {
				t.Error(err)
			}
			if _, err := deliver.New(h.Target(), ""); err != nil {
				t.Error(err)
			}
		}
		for _, p := range got.problems {
			if p.Text == "" || p.File == "" {
				t.Errorf("a problem without words: %+v", p)
			}
		}
	})
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{
		"timeout": "timeout", "time_out": "timeout", "urlfile": "url_file", "secrte": "secret", "node": "nodes", "ur": "url", "xyz": "", "": "",
	} {
		if got := suggest(word, hookFields); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestFilesAreReadWithinBounds(t *testing.T) {
	t.Parallel()
	if _, err := readFile("/dev/zero"); err == nil || !strings.Contains(err.Error(), "/dev/zero is larger than") {
		t.Errorf("endless file: %v", err)
	}
	if _, err := readFile(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("directory: %v", err)
	}
	_, err := readFile("/nonexistent/file")
	if want := "file /nonexistent/file cannot be read: no such file or directory"; err == nil || err.Error() != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}
