package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/wgherald/wgherald/services/notifier/internal/consume"
	"github.com/wgherald/wgherald/services/notifier/internal/deliver"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// hookName is also a token of subjects and part of a consumer's name.
var hookName = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)

// showable is a key of the file that may be repeated in an error: too long a one, or one with digits, may be a secret in the wrong place.
var showable = regexp.MustCompile(`^[A-Za-z_-]{1,24}$`)

// parsedHooks is what a hooks file holds, or what is wrong with it.
type parsedHooks struct {
	hooks    []Hook
	problems Problems
	warnings []string
	inline   bool // the file itself holds a URL, a secret or a header
}

// hooksParser walks the syntax tree by itself, and does not decode into structs, so that every mistake is found in one run and keeps its line. It takes plain
// YAML: mappings, sequences and scalars. Anchors, aliases and tags are refused.
type hooksParser struct {
	parsedHooks
	file  string
	read  func(path string) (file, error)
	taken map[string]string // hook name → where it is
	hook  string            // being parsed, as Problem.Hook
}

// parseHooks reads a hooks file. taken holds the names that are used elsewhere, with where; read opens the files that hooks name, whose relative paths count from
// the hooks file.
func parseHooks(path string, text []byte, taken map[string]string, read func(string) (file, error)) parsedHooks {
	p := &hooksParser{file: path, read: read, taken: taken}
	tokens := lexer.Tokenize(string(text))
	if tk := tooDeep(tokens); tk != nil {
		p.problems = append(p.problems, Problem{
			File: path, Line: tk.Position.Line, Text: fmt.Sprintf("lists and mappings are nested more than %d deep: one may not be closed", maxNesting),
		})
		return p.parsedHooks
	}
	tree, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		p.syntax(err)
		return p.parsedHooks
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			p.wrong(doc.Body, "", "a second YAML document: put all hooks into one list")
			break
		}
		body = doc.Body
	}
	if body == nil {
		p.problems = append(p.problems, Problem{File: path, Text: "empty: want a list under hooks:"})
		return p.parsedHooks
	}
	found := false
	p.mapping(body, "", []string{"hooks"}, func(_ string, _, value ast.Node) {
		found = true
		for i, n := range p.sequence(value, "hooks", "a list of hooks") {
			p.hook = fmt.Sprintf("#%d", i+1)
			p.one(n)
			p.hook = ""
		}
	})
	if !found && len(p.problems) == 0 {
		p.wrong(body, "hooks", "missing")
	}
	if len(p.problems) > 0 {
		p.hooks = nil
	}
	return p.parsedHooks
}

// maxNesting is ten times what hooks need. The parser's time grows with the square of the nesting: 128 KiB of brackets keep it busy for many seconds.
const maxNesting = 50

// tooDeep returns the token at which a text is nested too deeply, or nil. Mappings that are nested by their indentation do not count: each
// level takes a line that is longer than the one before, so that a file has no room for many.
func tooDeep(tokens token.Tokens) *token.Token {
	var dashes []int // columns of the open lists that have no brackets
	brackets := 0
	for _, tk := range tokens {
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets = max(0, brackets-1)
		case token.SequenceEntryType:
			for len(dashes) > 0 && dashes[len(dashes)-1] >= tk.Position.Column {
				dashes = dashes[:len(dashes)-1]
			}
			dashes = append(dashes, tk.Position.Column)
		default: // nothing begins or ends
		}
		if brackets+len(dashes) > maxNesting {
			return tk
		}
	}
	return nil
}

// syntax reports what the parser could not read. Only its message and line are used: its full text shows the source, secrets and all. Of the message, what it
// quotes is source, too.
func (p *hooksParser) syntax(err error) {
	problem := Problem{File: p.file, Text: "not YAML"}
	var e yaml.Error
	if errors.As(err, &e) {
		message, _, _ := strings.Cut(e.GetMessage(), `"`)
		problem.Text = "not YAML: " + strings.TrimRight(message, ": ")
		if tk := e.GetToken(); tk != nil && tk.Position != nil {
			problem.Line = tk.Position.Line
		}
	}
	p.problems = append(p.problems, problem)
}

func (p *hooksParser) wrong(at ast.Node, field, format string, args ...any) {
	line := 0
	if tk := at.GetToken(); tk != nil && tk.Position != nil {
		line = tk.Position.Line
	}
	p.problems = append(p.problems, Problem{File: p.file, Line: line, Hook: p.hook, Field: field, Text: fmt.Sprintf(format, args...)})
}

func (p *hooksParser) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// hookFields are the keys of a hook, as an error lists them.
var hookFields = []string{
	"name", "url", "url_file", "secret", "secrets", "secret_file", "secret_files",
	"types", "nodes", "interfaces", "peers", "tags", "endpoints",
	"format", "template", "template_file", "content_type", "redact",
	"headers", "basic_auth", "bearer_file", "timeout", "connect_timeout", "ca_file", "client_cert_file", "client_key_file", "proxy", "proxy_file", "private",
	"retry", "concurrency", "rate", "order", "hold", "from",
}

// one reads a hook.
func (p *hooksParser) one(n ast.Node) {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		p.unfit(n, "", "a mapping (key: value lines)")
		return
	}
	h := Hook{Timeout: DefaultTimeout}
	p.nameOf(m, &h)
	var urls, secrets, formats, proxies, logins []string // keys that were given, of which one may be
	var template, contentType ast.Node
	tlsAt := map[string]ast.Node{} // keys that need TLS
	var login Secret
	var holdAt ast.Node
	p.mapping(n, "", hookFields, func(key string, at, value ast.Node) {
		switch key {
		case "name":
			// read already: problems of the other fields show it
		case "url", "url_file":
			urls = append(urls, key)
			if text, ok := p.secretText(value, key, key == "url_file"); ok {
				h.URL = NewSecret(text)
				if err := checkURL(text); err != nil {
					p.wrong(value, key, "%v", err)
				}
			}
		case "secret", "secrets", "secret_file", "secret_files":
			secrets = append(secrets, key)
			h.Secrets = p.secrets(value, key)
		case "types":
			h.Rules.Types = p.globs(value, key, func(g string) route.Rules { return route.Rules{Types: []string{g}} })
		case "nodes":
			h.Rules.Nodes = p.globs(value, key, func(g string) route.Rules { return route.Rules{Nodes: []string{g}} })
		case "interfaces":
			h.Rules.Interfaces = p.globs(value, key, func(g string) route.Rules { return route.Rules{Interfaces: []string{g}} })
		case "peers":
			h.Rules.Peers = p.globs(value, key, func(g string) route.Rules { return route.Rules{Peers: []string{g}} })
		case "tags":
			h.Rules.Tags = p.globs(value, key, func(g string) route.Rules { return route.Rules{Tags: []string{g}} })
		case "endpoints":
			h.Rules.Endpoints = p.globs(value, key, func(g string) route.Rules { return route.Rules{Endpoints: []string{g}} })
		case "format":
			formats = append(formats, key)
			h.Format = p.choice(value, key, render.Names...)
		case "template", "template_file":
			formats = append(formats, key)
			template = value
			if text, ok := p.templateText(value, key); ok {
				h.Template = NewSecret(text)
			}
		case "content_type":
			contentType = value
			h.ContentType = p.contentType(value)
		case "redact":
			for _, n := range p.list(value, key) {
				if name := p.choice(n, key, render.Fields()...); name != "" {
					h.Redact = append(h.Redact, name)
				}
			}
		case "timeout":
			h.Timeout = p.timeout(value, key)
		case "connect_timeout":
			h.ConnectTimeout = p.timeout(value, key)
		case "headers":
			h.Headers = p.headers(value)
		case "basic_auth":
			logins = append(logins, key)
			login = p.basicAuth(value)
		case "bearer_file":
			logins = append(logins, key)
			login = p.bearer(value)
		case "ca_file":
			tlsAt[key] = value
			h.CA = p.ca(value)
		case "client_cert_file":
			tlsAt[key] = value
			h.Cert, _ = p.publicFile(value, key)
		case "client_key_file":
			tlsAt[key] = value
			if text, ok := p.secretText(value, key, true); ok {
				h.Key = NewSecret(text)
			}
		case "proxy", "proxy_file":
			proxies = append(proxies, key)
			h.Proxy = p.proxy(value, key)
		case "retry":
			h.Retry, h.Other4xx = p.retry(value)
		case "concurrency":
			h.Concurrency = p.concurrency(value)
		case "rate":
			h.Policy.Rate = p.rate(value)
		case "order":
			h.Policy.Order = consume.Order(p.choice(value, key, string(consume.PerPeer), string(consume.Unordered)))
		case "hold":
			h.Policy.Hold, holdAt = p.duration(value, key, time.Second, consume.MaxHold), value
		case "from":
			h.Policy.From = p.from(value)
		case "private":
			h.PublicOnly = p.choice(value, key, "allow", "deny") == "deny"
		}
	})
	if logins != nil {
		if _, twice := h.Headers["Authorization"]; twice {
			p.wrong(n, logins[0], "given together with the header Authorization: use one of them")
		}
		if h.Headers == nil {
			h.Headers = map[string]Secret{}
		}
		h.Headers["Authorization"] = login
	}
	if h.Policy.Hold > 0 && h.Policy.Order == consume.Unordered {
		p.wrong(holdAt, "hold", "given together with order: none: what is held back needs an order")
	}
	switch {
	case len(urls) == 0:
		p.wrong(n, "url", "missing: give url or url_file")
	case len(urls) > 1:
		p.wrong(n, "url_file", "given together with url: use one of them")
	}
	for _, keys := range [][]string{secrets, formats, proxies, logins} {
		if len(keys) > 1 {
			p.wrong(n, keys[1], "given together with %s: use one of them", keys[0])
		}
	}
	switch {
	case template == nil && contentType != nil:
		p.wrong(contentType, "content_type", "only a template has one: the other formats have their own")
	case template != nil && contentType == nil:
		h.ContentType = defaultContentType
	}
	if h.Template.Reveal() != "" && h.ContentType != "" && len(formats) == 1 {
		if _, err := h.Render(); err != nil {
			p.wrong(template, formats[0], "%v", err)
		}
	}
	p.checkTLS(n, h, tlsAt)
	p.hooks = append(p.hooks, h)
}

// checkTLS reports what does not go together of the keys that at holds.
func (p *hooksParser) checkTLS(n ast.Node, h Hook, at map[string]ast.Node) {
	cert, key := at["client_cert_file"], at["client_key_file"]
	switch {
	case cert != nil && key == nil:
		p.wrong(cert, "client_cert_file", "needs client_key_file")
	case cert == nil && key != nil:
		p.wrong(key, "client_key_file", "needs client_cert_file")
	case h.Cert != "" && h.Key.Reveal() != "":
		if _, err := deliver.ParseClient([]byte(h.Cert), []byte(h.Key.Reveal())); err != nil {
			p.wrong(cert, "client_cert_file", "%v", err)
		}
	}
	u, err := url.Parse(h.URL.Reveal())
	if err != nil {
		return // reported already
	}
	if _, ok := h.Headers["Authorization"]; ok && u.User != nil {
		p.wrong(n, "url", "has a user, and another key says how to log in: use one of them")
	}
	if u.Scheme == "http" && !strings.HasPrefix(h.Proxy.Reveal(), "https:") {
		for _, key := range slices.Sorted(maps.Keys(at)) {
			p.wrong(at[key], key, "the url is http://, without TLS")
		}
	}
}

// nameOf reads the hook's name ahead of its other fields.
func (p *hooksParser) nameOf(m *ast.MappingNode, h *Hook) {
	for _, v := range m.Values {
		if text, ok := scalar(v.Key); !ok || text != "name" {
			continue
		}
		name, ok := p.text(v.Value, "name")
		switch {
		case !ok:
		case !hookName.MatchString(name):
			p.wrong(v.Value, "name", "want 1 to 32 of a-z, 0-9, _ and -")
		case p.taken[name] != "":
			p.wrong(v.Value, "name", "%s is taken already by the hook of %s", name, p.taken[name])
		default:
			h.Name, p.hook = name, name
			p.taken[name] = fmt.Sprintf("line %d", v.Value.GetToken().Position.Line)
		}
		return
	}
	p.wrong(m, "name", "missing")
}

// unfit reports a node of another kind than the one wanted.
func (p *hooksParser) unfit(n ast.Node, field, want string) {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		p.wrong(n, field, "anchors, aliases and tags are not supported: write the value out, with quotes if it begins with *, & or !")
	default:
		p.wrong(n, field, "want %s", want)
	}
}

// mapping calls each for every known key of n, and reports unknown and repeated ones.
func (p *hooksParser) mapping(n ast.Node, field string, known []string, each func(key string, at, value ast.Node)) {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		p.unfit(n, field, "a mapping (key: value lines)")
		return
	}
	seen := map[string]bool{}
	for _, v := range m.Values {
		key, ok := scalar(v.Key)
		switch {
		case !ok:
			p.wrong(v.Key, field, "a key must be plain text")
		case known != nil && !slices.Contains(known, key):
			p.unknown(v.Key, key, known)
		case seen[key]:
			p.wrong(v.Key, key, "given twice")
		default:
			seen[key] = true
			each(key, v.Key, v.Value)
		}
	}
}

func (p *hooksParser) unknown(at ast.Node, key string, known []string) {
	if !showable.MatchString(key) {
		p.wrong(at, "", "unknown key; known are %s", strings.Join(known, ", "))
		return
	}
	if s := suggest(strings.ToLower(key), known); s != "" {
		p.wrong(at, key, "unknown key: did you mean %s?", s)
		return
	}
	p.wrong(at, key, "unknown key; known are %s", strings.Join(known, ", "))
}

// sequence returns the elements of n, which must be a list of what.
func (p *hooksParser) sequence(n ast.Node, field, what string) []ast.Node {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		p.unfit(n, field, what)
		return nil
	}
	return s.Values
}

// list returns the elements of n, or n itself: one value may stand without a list around it.
func (p *hooksParser) list(n ast.Node, field string) []ast.Node {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		return []ast.Node{n}
	}
	if len(s.Values) == 0 {
		p.wrong(n, field, "empty list: leave the key out")
	}
	return s.Values
}

// text returns a scalar that is not empty.
func (p *hooksParser) text(n ast.Node, field string) (string, bool) {
	text, ok := scalar(n)
	if !ok {
		p.unfit(n, field, "a single value")
		return "", false
	}
	text = strings.TrimSpace(text)
	if text == "" {
		p.wrong(n, field, "empty")
		return "", false
	}
	return text, true
}

// scalar returns the text of a scalar as it is written: a node named 1 or true is no number.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.NullNode:
		return "", true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// secretText returns a secret that stands in the file, or in the file it names.
func (p *hooksParser) secretText(n ast.Node, field string, named bool) (string, bool) {
	text, ok := p.text(n, field)
	if !ok {
		return "", false
	}
	if !named {
		p.inline = true
		return text, true
	}
	text, path, open, ok := p.fileText(n, field, text, true)
	if ok && open {
		p.warn("secret file %s is readable by everybody: chmod o-r", path)
	}
	return text, ok
}

// fileText returns what a file holds that n names, and whether everybody may read it. A relative path counts from the hooks file. Of a file that holds a secret
// no name is repeated that may be the secret itself.
func (p *hooksParser) fileText(n ast.Node, field, name string, secret bool) (text, path string, open, ok bool) {
	if isContent(name) {
		p.wrong(n, field, notContent)
		return "", "", false, false
	}
	path = name
	dir := filepath.Dir(p.file)
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	f, err := p.read(path)
	switch {
	case err == nil:
	case secret && path != name && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG)):
		p.wrong(n, field, "the file that it names is not in %s", dir)
		return "", path, false, false
	default:
		p.wrong(n, field, "%v", err)
		return "", path, false, false
	}
	text = strings.TrimSpace(string(f.text))
	if text == "" {
		p.wrong(n, field, "file %s is empty", path)
	}
	return text, path, f.open, text != ""
}

// choice returns a value that must be one of the known ones.
func (p *hooksParser) choice(n ast.Node, field string, known ...string) string {
	value, ok := p.text(n, field)
	if !ok || slices.Contains(known, value) {
		return value
	}
	switch s := suggest(strings.ToLower(value), known); {
	case !showable.MatchString(value):
		p.wrong(n, field, "want one of %s", strings.Join(known, ", "))
	case s != "":
		p.wrong(n, field, "%s is not known: did you mean %s?", value, s)
	default:
		p.wrong(n, field, "%s is none of %s", value, strings.Join(known, ", "))
	}
	return ""
}

func (p *hooksParser) templateText(n ast.Node, field string) (string, bool) {
	if field == "template_file" {
		return p.publicFile(n, field)
	}
	return p.text(n, field)
}

// publicFile returns what a file holds that everybody may read.
func (p *hooksParser) publicFile(n ast.Node, field string) (string, bool) {
	text, ok := p.text(n, field)
	if ok {
		text, _, _, ok = p.fileText(n, field, text, false)
	}
	return text, ok
}

func (p *hooksParser) ca(n ast.Node) string {
	text, ok := p.publicFile(n, "ca_file")
	if !ok {
		return ""
	}
	if _, err := deliver.ParseCA([]byte(text)); err != nil {
		p.wrong(n, "ca_file", "%v", err)
	}
	return text
}

func (p *hooksParser) proxy(n ast.Node, field string) Secret {
	text, ok := p.secretText(n, field, field == "proxy_file")
	if !ok {
		return Secret{}
	}
	if _, err := deliver.ParseProxy(text); err != nil {
		p.wrong(n, field, "%v", err)
	}
	return NewSecret(text)
}

// basicAuth returns the value of an Authorization header (RFC 7617).
func (p *hooksParser) basicAuth(n ast.Node) Secret {
	var user, password string
	found := map[string]bool{}
	p.mapping(n, "basic_auth", []string{"user", "password_file"}, func(key string, _, value ast.Node) {
		found[key] = true
		switch key {
		case "user":
			user, _ = p.text(value, "basic_auth")
			if strings.Contains(user, ":") || strings.ContainsFunc(user, isControl) {
				p.wrong(value, "basic_auth", "the user has a colon or a control character")
			}
		case "password_file":
			password, _ = p.secretText(value, "basic_auth", true)
		}
	})
	if _, ok := n.(*ast.MappingNode); ok && len(found) < 2 {
		p.wrong(n, "basic_auth", "want user and password_file")
	}
	return NewSecret("Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

// bearer returns the value of an Authorization header (RFC 6750).
func (p *hooksParser) bearer(n ast.Node) Secret {
	token, ok := p.secretText(n, "bearer_file", true)
	if ok && strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		p.wrong(n, "bearer_file", "the file holds something beside one token")
	}
	return NewSecret("Bearer " + token)
}

// defaultContentType is that of a template which names none.
const defaultContentType = "application/json"

func (p *hooksParser) contentType(n ast.Node) string {
	text, ok := p.text(n, "content_type")
	if !ok {
		return ""
	}
	if _, err := render.MediaType(text); err != nil {
		p.wrong(n, "content_type", "%v", err)
		return ""
	}
	return text
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

func (p *hooksParser) secrets(n ast.Node, field string) []sign.Secret {
	nodes := []ast.Node{n}
	if strings.HasSuffix(field, "s") {
		nodes = p.list(n, field)
	}
	var list []sign.Secret
	for _, n := range nodes {
		text, ok := p.secretText(n, field, strings.HasPrefix(field, "secret_file"))
		if !ok {
			continue
		}
		s, err := parseSecret(text)
		if err != nil {
			p.wrong(n, field, "%v", err)
			continue
		}
		list = append(list, s)
	}
	return list
}

// globs returns the patterns of one field. rules puts a pattern into its field, so that route judges each with its line.
func (p *hooksParser) globs(n ast.Node, field string, rules func(string) route.Rules) []string {
	var list []string
	for _, n := range p.list(n, field) {
		glob, ok := p.text(n, field)
		if !ok {
			continue
		}
		if _, err := route.Compile(rules(glob)); err != nil {
			p.wrong(n, field, "%s", strings.TrimPrefix(err.Error(), field+": "))
			continue
		}
		list = append(list, glob)
	}
	return list
}

func (p *hooksParser) timeout(n ast.Node, field string) time.Duration {
	return p.duration(n, field, 0, maxTimeout)
}

// duration returns a duration of more than 0, from low to high.
func (p *hooksParser) duration(n ast.Node, field string, low, high time.Duration) time.Duration {
	text, ok := p.text(n, field)
	if !ok {
		return 0
	}
	d, err := parseDuration(text)
	switch {
	case err != nil:
		p.wrong(n, field, "%.40q is not a duration with its unit, such as 15s, 1h30m or 7d", text)
	case d <= 0 || d < low || d > high:
		p.wrong(n, field, "%s is not between %s and %s", text, span(low), span(high))
	}
	return d
}

// parseDuration reads a duration of Go, or whole days.
func parseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(text)
}

// span writes a duration without units that are zero, and from a week on in days.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= 7*day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	text := d.String()
	for _, unit := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, unit) {
			text = text[:len(text)-2]
		}
	}
	return text
}

const (
	minWait   = 100 * time.Millisecond // between two attempts: less would flood a receiver that is in trouble
	maxGiveUp = 365 * 24 * time.Hour
)

// retry returns the schedule of the default with what n changes, and whether every 4xx is tried again.
func (p *hooksParser) retry(n ast.Node) (retry.Policy, bool) {
	r, other4xx := retry.Default(), false
	capAt := n
	p.mapping(n, "retry", []string{"first", "factor", "cap", "jitter", "give_up", "other_4xx"}, func(key string, _, value ast.Node) {
		switch field := "retry." + key; key {
		case "first":
			r.Initial = p.duration(value, field, minWait, maxGiveUp)
		case "factor":
			r.Factor = p.number(value, field, 1, 100)
		case "cap":
			capAt = value
			r.Max = p.duration(value, field, minWait, maxGiveUp)
		case "jitter":
			r.Jitter = p.number(value, field, 0, 1)
		case "give_up":
			r.GiveUp = p.duration(value, field, minWait, maxGiveUp)
		case "other_4xx":
			other4xx = p.choice(value, field, "true", "false") == "true"
		}
	})
	if r.Max < r.Initial && r.Max >= minWait {
		p.wrong(capAt, "retry.cap", "%s is less than first, %s", r.Max, r.Initial)
	}
	return r, other4xx
}

// maxConcurrency leaves most of what a hook may hold un-acknowledged to what waits.
const maxConcurrency = 256

func (p *hooksParser) concurrency(n ast.Node) int {
	text, ok := p.text(n, "concurrency")
	if !ok {
		return 0
	}
	c, err := strconv.Atoi(text)
	if err != nil || c < 1 || c > maxConcurrency {
		p.wrong(n, "concurrency", "%.40q is no whole number from 1 to %d", text, maxConcurrency)
	}
	return c
}

var rateForm = regexp.MustCompile(`^([1-9][0-9]{0,5})/([smh])$`)

// rate returns attempts per second.
func (p *hooksParser) rate(n ast.Node) float64 {
	text, ok := p.text(n, "rate")
	if !ok {
		return 0
	}
	m := rateForm.FindStringSubmatch(text)
	if m == nil {
		p.wrong(n, "rate", "%.40q is no rate, such as 10/s, 30/m or 100/h", text)
		return 0
	}
	count, _ := strconv.ParseFloat(m[1], 64) // the form lets only digits pass
	r := count / map[string]float64{"s": 1, "m": 60, "h": 3600}[m[2]]
	if r > consume.MaxRate {
		p.wrong(n, "rate", "%s is more than %d/s: leave it out for no limit", text, consume.MaxRate)
	}
	return r
}

// from reads where a hook begins that is new to the broker.
func (p *hooksParser) from(n ast.Node) consume.From {
	switch text, ok := p.text(n, "from"); {
	case !ok, text == "new":
		return consume.From{}
	case text == "all":
		return consume.From{All: true}
	case text == "" || text[0] < '0' || text[0] > '9':
		p.wrong(n, "from", "%.40q is neither new, all nor a duration such as 1h or 7d", text)
		return consume.From{}
	default:
		return consume.From{Ago: p.duration(n, "from", time.Second, consume.MaxBacklog)}
	}
}

func (p *hooksParser) number(n ast.Node, field string, low, high float64) float64 {
	text, ok := p.text(n, field)
	if !ok {
		return 0
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !(f >= low && f <= high) { // written so that NaN fails
		p.wrong(n, field, "%.40q is no number from %g to %g", text, low, high)
	}
	return f
}

// ownHeaders are set for every request; a hook cannot.
var ownHeaders = []string{
	"Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Host", "Trailer", "Upgrade",
	http.CanonicalHeaderKey(sign.HeaderID), http.CanonicalHeaderKey(sign.HeaderTimestamp), http.CanonicalHeaderKey(sign.HeaderSignature),
}

// headerName is a token of RFC 9110, section 5.6.2.
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func (p *hooksParser) headers(n ast.Node) map[string]Secret {
	headers := map[string]Secret{}
	p.mapping(n, "headers", nil, func(key string, at, value ast.Node) {
		name := http.CanonicalHeaderKey(key)
		text, ok := p.secretText(value, "headers", false)
		switch {
		case !ok:
		case !headerName.MatchString(key):
			p.wrong(at, "headers", "a key is not the name of a header")
		case slices.Contains(ownHeaders, name), strings.HasPrefix(name, "Ce-"):
			p.wrong(at, "headers", "%s is set by the notifier", name)
		case strings.ContainsFunc(text, isControl):
			p.wrong(at, "headers", "the value of %s has a line break or another control character", name)
		default:
			if _, twice := headers[name]; twice {
				p.wrong(at, "headers", "%s given twice", name)
			}
			headers[name] = NewSecret(text)
		}
	})
	return headers
}
