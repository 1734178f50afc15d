package deliver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/retry"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

const (
	// DefaultTimeout bounds an attempt as a whole, from the lookup of the name to the end of the answer.
	DefaultTimeout = 15 * time.Second
	// DefaultConcurrency is the number of attempts that run at a time.
	DefaultConcurrency = 16
	// DefaultConnectTimeout bounds the connecting, and then the TLS handshake.
	DefaultConnectTimeout = 5 * time.Second

	maxDrain  = 64 << 10 // bytes of an answer that are read, so that the connection can be used again
	maxAnswer = 2 << 10  // bytes of an answer that are kept
	maxHeader = 64 << 10 // bytes of an answer's header
	pingAfter = 30 * time.Second
)

// Target is where a hook's requests go, and how. The URL, the header values, the key and the proxy are secrets.
type Target struct {
	URL     string // http or https
	Secrets []sign.Secret
	Timeout time.Duration     // of an attempt; 0 is DefaultTimeout
	Header  map[string]string // added to each request
	// Concurrency is the number of attempts that may run at a time: so many idle connections are kept. 0 is DefaultConcurrency.
	Concurrency int

	ConnectTimeout time.Duration // 0 is DefaultConnectTimeout
	CA             []byte        // PEM; instead of the system's authorities when not empty
	Cert, Key      []byte        // PEM; of the client certificate, none when empty
	Proxy          string        // http, https or socks5 URL; empty is none. It may have a user and a password
	PublicOnly     bool          // no loopback and no private address is dialled
}

// Format prints a mark in the target's place, whatever the verb.
func (Target) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// Sender sends to one target. It is safe for concurrent use.
type Sender struct {
	target    Target
	request   *http.Request // what all requests have in common
	userAgent string
	// transport is not in an http.Client: that would follow a Location, fail where it is no URL, and copy each header for it.
	transport http.RoundTripper
	proxied   bool
	secrets   []string // what must not show in reasons and answers
}

// New checks a target and returns its sender; version goes into the User-Agent. The error names what is wrong and repeats no part of the URL or of
// a header's value.
func New(t Target, version string) (*Sender, error) {
	u, err := url.Parse(t.URL)
	if err != nil {
		return nil, errors.New("url is malformed") // the cause repeats it
	}
	var errs []error
	if u.Scheme != "http" && u.Scheme != "https" {
		errs = append(errs, errors.New("url does not start with http:// or https://"))
	}
	if u.Hostname() == "" {
		errs = append(errs, errors.New("url has no host"))
	}
	if u.Fragment != "" {
		errs = append(errs, errors.New("url has a fragment (#), which is never sent"))
	}
	for name, value := range t.Header {
		if err := checkHeader(name, value); err != nil {
			errs = append(errs, err)
		}
	}
	if t.Concurrency < 0 {
		errs = append(errs, fmt.Errorf("concurrency is %d, want 1 or more", t.Concurrency))
	}
	if t.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout is %s, want more than 0", t.Timeout))
	}
	if t.ConnectTimeout < 0 {
		errs = append(errs, fmt.Errorf("connect timeout is %s, want more than 0", t.ConnectTimeout))
	}
	var roots *x509.CertPool
	if len(t.CA) > 0 {
		if roots, err = ParseCA(t.CA); err != nil {
			errs = append(errs, fmt.Errorf("ca: %w", err))
		}
	}
	var own []tls.Certificate
	if len(t.Cert)+len(t.Key) > 0 {
		c, err := ParseClient(t.Cert, t.Key)
		if err != nil {
			errs = append(errs, fmt.Errorf("client certificate: %w", err))
		}
		own = append(own, c)
	}
	var proxy *url.URL
	if t.Proxy != "" {
		if proxy, err = ParseProxy(t.Proxy); err != nil {
			errs = append(errs, fmt.Errorf("proxy: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, errors.New("url is malformed") // cannot be: it was parsed
	}
	t.Timeout = cmp.Or(t.Timeout, DefaultTimeout)
	t.Concurrency = cmp.Or(t.Concurrency, DefaultConcurrency)
	return &Sender{
		target:    t,
		request:   request,
		userAgent: "wgherald/" + version,
		transport: newTransport(t, roots, own, proxy),
		proxied:   proxy != nil,
		secrets:   secretParts(u, proxy, t.Header),
	}, nil
}

// Close closes the idle connections.
func (s *Sender) Close() { (&http.Client{Transport: s.transport}).CloseIdleConnections() }

// Result is how an attempt went.
type Result struct {
	Class      Class
	Reason     string        // in plain words, free of secrets, never empty
	Status     int           // HTTP status, 0 without an answer
	Latency    time.Duration // of the attempt as a whole
	RetryAfter time.Duration // what a 429 or 503 asked for, 0 for nothing
	Answer     string        // the start of the body, at most 2 KiB, the target's own secrets taken out
}

// Send makes one attempt, signed with the time of now. id is the event's, the same in every attempt. When ctx ends first, the result is Canceled.
func (s *Sender) Send(ctx context.Context, id string, r render.Request) Result {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.target.Timeout)
	defer cancel()
	res := s.send(ctx, begin, id, r)
	res.Latency = time.Since(begin)
	return res
}

func (s *Sender) send(ctx context.Context, now time.Time, id string, r render.Request) Result {
	req := s.request.WithContext(ctx)
	req.Header = make(http.Header, 8)
	req.ContentLength = int64(len(r.Body))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.Body)), nil }
	req.Body, _ = req.GetBody() // never fails
	// Present and empty, this header is not sent, and tells net/http that the request may be repeated on a new connection when the receiver closed the idle one
	// just as it was used again. Receivers know a repetition by the id.
	req.Header["Idempotency-Key"] = []string{}
	req.Header.Set("User-Agent", s.userAgent)
	for name, value := range r.Header {
		req.Header.Set(name, value)
	}
	for name, value := range s.target.Header {
		req.Header.Set(name, value)
	}
	if user := req.URL.User; user != nil && req.Header.Get("Authorization") == "" {
		password, _ := user.Password()
		req.SetBasicAuth(user.Username(), password)
	}
	req.Header.Set(headerID, id)
	req.Header.Set(headerTimestamp, sign.Timestamp(now))
	if len(s.target.Secrets) > 0 {
		req.Header.Set(headerSignature, sign.Sign(id, now, r.Body, s.target.Secrets))
	}

	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		class, reason := classifyError(err, s.redact)
		return Result{Class: class, Reason: reason}
	}
	defer resp.Body.Close()
	// The status is the answer. A body that breaks off changes nothing, it only costs the connection.
	res := Result{Status: resp.StatusCode}
	if resp.ContentLength != 0 {
		res.Answer = s.answer(resp.Body)
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrain-maxAnswer)
	}
	res.Class, res.Reason = classifyStatus(resp.StatusCode)
	if s.proxied && resp.StatusCode == http.StatusProxyAuthRequired {
		res.Class, res.Reason = Network, (&proxyError{resp.StatusCode}).Error()
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		res.RetryAfter = retry.ParseAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return res
}

// answer returns the start of a body. A secret may be cut off where reading stops, and what is left of it is not recognised: so much more is read than
// is kept, and so much is dropped from the end.
func (s *Sender) answer(body io.Reader) string {
	longest := len(s.secrets[0]) // there is the URL at least
	raw, _ := io.ReadAll(io.LimitReader(body, int64(maxAnswer+longest)))
	text := s.redact(string(raw))
	if len(raw) == maxAnswer+longest {
		text = text[:max(0, len(text)-longest)]
	}
	text = strings.ToValidUTF8(text, "�")
	if len(text) > maxAnswer {
		text = strings.ToValidUTF8(text[:maxAnswer], "") // without the character that is cut
	}
	return text
}

// redact takes the target's secrets out of a text that somebody else wrote.
func (s *Sender) redact(text string) string {
	for _, secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	return text
}

// secretParts returns what could give away a URL or a header, longest first: whole, and in pieces, because whoever echoes them may escape what is
// between. Short pieces are words such as "hooks" and tell nothing.
func secretParts(u, proxy *url.URL, header map[string]string) []string {
	const short = 6
	var parts []string
	whole := func(part string) {
		if len(part) >= short {
			parts = append(parts, part)
		}
	}
	add := func(part string) {
		whole(part)
		for piece := range strings.FieldsFuncSeq(part, escapable) {
			whole(piece)
		}
	}
	whole(u.String())
	for _, path := range []string{u.EscapedPath(), u.Path} {
		add(path)
		for segment := range strings.SplitSeq(path, "/") {
			add(segment)
		}
	}
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		_, value, _ := strings.Cut(pair, "=")
		add(value)
	}
	for _, values := range u.Query() {
		for _, value := range values {
			add(value)
		}
	}
	for _, u := range []*url.URL{u, proxy} {
		if u == nil || u.User == nil {
			continue
		}
		add(u.User.String())
		if password, ok := u.User.Password(); ok {
			add(password)
			add(base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password))) // as the receiver gets it
		}
	}
	for _, value := range header {
		add(value)
		for word := range strings.FieldsSeq(value) { // "Bearer …"
			add(word)
			if plain, err := base64.StdEncoding.DecodeString(word); err == nil { // "Basic …"
				_, password, _ := strings.Cut(string(plain), ":")
				add(password)
			}
		}
	}
	slices.SortFunc(parts, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return slices.Compact(parts)
}

// escapable reports whether some format writes a character in another way; none does so with the unreserved ones of RFC 3986.
func escapable(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~", r))
}

// The signature's headers, as net/http writes them.
var (
	headerID        = http.CanonicalHeaderKey(sign.HeaderID)
	headerTimestamp = http.CanonicalHeaderKey(sign.HeaderTimestamp)
	headerSignature = http.CanonicalHeaderKey(sign.HeaderSignature)
)

// reserved headers are the transport's or the signature's.
var reserved = []string{
	"Host", "Content-Length", "Transfer-Encoding", "Connection", "Trailer", "Upgrade", headerID, headerTimestamp, headerSignature,
}

func checkHeader(name, value string) error {
	const marks = "!#$%&'*+-.^_`|~" // RFC 9110, section 5.6.2
	notToken := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(marks, r))
	}
	control := func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }
	switch {
	case name == "" || strings.ContainsFunc(name, notToken):
		return fmt.Errorf("header %.80q: the name is malformed", name)
	case slices.Contains(reserved, http.CanonicalHeaderKey(name)):
		return fmt.Errorf("header %s cannot be set", name)
	case strings.ContainsFunc(value, control):
		return fmt.Errorf("header %s: the value has control characters", name)
	}
	return nil
}
