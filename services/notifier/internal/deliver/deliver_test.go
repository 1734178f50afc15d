package deliver

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/wgherald/wgherald/services/notifier/internal/render"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

const secretText = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

var request = render.Request{Body: []byte(`{"id":"e1"}`), Header: map[string]string{"Content-Type": "application/cloudevents+json"}}

func TestVerdictOfEveryStatus(t *testing.T) {
	t.Parallel()
	want := func(status int) Verdict {
		switch status {
		case 408, 425, 429:
			return Retry
		}
		switch status / 100 {
		case 2:
			return Done
		case 3, 4:
			return Dead
		default:
			return Retry
		}
	}
	for status := 100; status <= 599; status++ {
		class, reason := classifyStatus(status)
		if have := class.Verdict(); have != want(status) {
			t.Errorf("%d: class %s, verdict %d, want %d", status, class, have, want(status))
		}
		if !strings.Contains(reason, fmt.Sprint(status)) {
			t.Errorf("%d: reason %q does not tell the status", status, reason)
		}
	}
	for status, class := range map[int]Class{101: Unavailable, 204: OK, 302: Redirected, 404: Rejected, 410: Gone, 429: Throttled, 503: Unavailable} {
		if have, _ := classifyStatus(status); have != class {
			t.Errorf("%d: class %s, want %s", status, have, class)
		}
	}
	if _, reason := classifyStatus(302); !strings.Contains(reason, "redirect refused") {
		t.Errorf("302: reason is %q", reason)
	}
}

// sender returns a sender for a target, and closes it after the test.
func sender(t testing.TB, target Target) *Sender {
	t.Helper()
	s, err := New(target, "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// hook starts a server and returns its URL.
func hook(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestSendSignsEachAttemptAfresh(t *testing.T) {
	t.Parallel()
	secret, err := sign.ParseSecret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := standardwebhooks.NewWebhook(secretText)
	if err != nil {
		t.Fatal(err)
	}
	var header http.Header
	url := hook(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := receiver.Verify(body, r.Header); err != nil {
			t.Errorf("the official library refuses: %v", err)
		}
		if string(body) != string(request.Body) || r.Method != http.MethodPost {
			t.Errorf("got %s %q", r.Method, body)
		}
		header = r.Header
		w.WriteHeader(http.StatusNoContent)
	})
	s := sender(t, Target{URL: url, Secrets: []sign.Secret{secret}, Header: map[string]string{"X-Team": "net"}})
	res := s.Send(t.Context(), "e1", request)
	if res.Class != OK || res.Status != 204 || res.Latency <= 0 {
		t.Errorf("result is %+v", res)
	}
	for name, want := range map[string]string{
		"Webhook-Id": "e1", "User-Agent": "wgherald/1.2.3", "Content-Type": "application/cloudevents+json", "X-Team": "net",
	} {
		if have := header.Get(name); have != want {
			t.Errorf("%s is %q, want %q", name, have, want)
		}
	}
}

func TestTimestampIsThatOfTheAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var stamps []string
		s := sender(t, Target{URL: "http://hook.example/"})
		s.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			stamps = append(stamps, r.Header.Get(sign.HeaderTimestamp))
			return &http.Response{StatusCode: 500, Body: http.NoBody}, nil
		})
		s.Send(t.Context(), "e1", request)
		time.Sleep(time.Hour)
		s.Send(t.Context(), "e1", request)
		if fmt.Sprint(stamps) != "[946684800 946688400]" { // a bubble starts at midnight UTC 2000-01-01
			t.Errorf("timestamps are %v, want one hour between", stamps)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	var followed atomic.Bool
	other := hook(t, func(http.ResponseWriter, *http.Request) { followed.Store(true) })
	for _, status := range []int{301, 302, 303, 307, 308} {
		url := hook(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other, status) })
		if res := sender(t, Target{URL: url}).Send(t.Context(), "e1", request); res.Class != Redirected || res.Status != status {
			t.Errorf("%d: result is %+v", status, res)
		}
	}
	if followed.Load() {
		t.Error("a redirect was followed")
	}
}

// Where a redirect leads is nobody's concern, so it may as well lead nowhere.
func TestARedirectToNonsenseIsARedirect(t *testing.T) {
	t.Parallel()
	for _, location := range []string{"http://h/%zz" + strings.Repeat("x", 30000), "://", ""} {
		url := hook(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Location"] = []string{location}
			w.WriteHeader(302)
		})
		if res := sender(t, Target{URL: url}).Send(t.Context(), "e1", request); res.Class != Redirected || res.Status != 302 || len(res.Reason) > 200 {
			t.Errorf("%.40q: %s %d %.200s", location, res.Class, res.Status, res.Reason)
		}
	}
}

// What is no HTTP is foreign text, which net/http repeats whole in its errors.
func TestAReasonIsShort(t *testing.T) {
	t.Parallel()
	garbage := hook(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, strings.Repeat("x", 50000)+"\r\n")
			conn.Close()
		}
	})
	res := sender(t, Target{URL: garbage}).Send(t.Context(), "e1", request)
	if res.Class != Network || len(res.Reason) > 300 || !strings.Contains(res.Reason, "malformed HTTP") {
		t.Errorf("%s: %d bytes: %.200s", res.Class, len(res.Reason), res.Reason)
	}
}

func TestRetryAfterIsHeardOn429And503(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]time.Duration{429: time.Minute, 503: time.Minute, 500: 0, 200: 0} {
		url := hook(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(status)
		})
		if res := sender(t, Target{URL: url}).Send(t.Context(), "e1", request); res.RetryAfter != want {
			t.Errorf("%d: hint is %s, want %s", status, res.RetryAfter, want)
		}
	}
}

func TestAnAnswerIsBounded(t *testing.T) {
	t.Parallel()
	written := make(chan int, 1)
	url := hook(t, func(w http.ResponseWriter, _ *http.Request) {
		sum := 0
		for range 1 << 12 { // 256 MiB, if anybody took them
			n, err := w.Write(make([]byte, 64<<10))
			sum += n
			if err != nil {
				break
			}
		}
		written <- sum
	})
	res := sender(t, Target{URL: url}).Send(t.Context(), "e1", request)
	if res.Class != OK || len(res.Answer) != maxAnswer {
		t.Errorf("class %s, %d bytes kept, want ok and %d", res.Class, len(res.Answer), maxAnswer)
	}
	if n := <-written; n > 64<<20 { // socket buffers may take some MiB
		t.Errorf("%d bytes were taken", n)
	}
}

// The status is the answer, whatever becomes of the body: an event that was taken is not sent again because its receiver is slow to say why.
func TestABodyThatBreaksOffChangesNothing(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *http.Request, conn func() net.Conn){
		"closed":     func(_ *http.Request, conn func() net.Conn) { conn().Close() },
		"never ends": func(r *http.Request, _ func() net.Conn) { <-r.Context().Done() },
	} {
		for status, class := range map[int]Class{200: OK, 429: Throttled, 404: Rejected} {
			url := hook(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Length", "1000")
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "because")
				_ = http.NewResponseController(w).Flush()
				end(r, func() net.Conn {
					conn, _, err := w.(http.Hijacker).Hijack()
					if err != nil {
						t.Error(err)
					}
					return conn
				})
			})
			res := sender(t, Target{URL: url, Timeout: time.Second}).Send(t.Context(), "e1", request)
			if res.Class != class || res.Status != status || res.Answer != "because" || (res.RetryAfter == time.Minute) != (status == 429) {
				t.Errorf("%s, %d: result is %+v", name, status, res)
			}
		}
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(500)
		_, _ = w.Write(make([]byte, 32<<10)) // an error page is drained
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	s := sender(t, Target{URL: srv.URL})
	for range 5 {
		s.Send(t.Context(), "e1", request)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for 5 requests, want 1", n)
	}
}

// tlsHook starts an HTTPS server that speaks HTTP/2 and is quiet about clients that turn away.
func tlsHook(t *testing.T, config *tls.Config) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = true
	srv.TLS = config
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

func trust(s *Sender, srv *httptest.Server) {
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	s.transport.(*http.Transport).TLSClientConfig.RootCAs = roots
}

// A receiver may close an idle connection just as it is used again. That is no failure of the receiver, and no attempt.
func TestAConnectionClosedWhileIdleCostsNothing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	headers := make(chan http.Header, 3)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(conn)
			for requests := 1; ; requests++ {
				req, err := http.ReadRequest(r)
				if err != nil {
					break
				}
				_, _ = io.Copy(io.Discard, req.Body)
				if n == 0 && requests == 2 {
					break // as if the close had crossed the request on the way
				}
				headers <- req.Header
				_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
			}
			_ = conn.Close()
		}
	}()
	s := sender(t, Target{URL: "http://" + l.Addr().String()})
	for range 2 {
		if res := s.Send(t.Context(), "id", render.Request{Body: []byte("{}")}); res.Class != OK {
			t.Fatalf("%s: %s", res.Class, res.Reason)
		}
		if h := <-headers; h.Values("Idempotency-Key") != nil {
			t.Errorf("header %v", h)
		}
	}
	s.Close()
	_ = l.Close()
	<-done
}

func TestHTTP2IsSpoken(t *testing.T) {
	t.Parallel()
	srv := tlsHook(t, nil)
	s := sender(t, Target{URL: srv.URL})
	trust(s, srv)
	if res := s.Send(t.Context(), "e1", request); res.Class != OK || res.Answer != "HTTP/2.0" {
		t.Errorf("result is %+v", res)
	}
}

func TestFailuresOnTheWay(t *testing.T) {
	t.Parallel()
	closed := httptest.NewServer(nil)
	closed.Close()
	hangUp := hook(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
	})
	release := make(chan struct{})
	slow := hook(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) }) // before the server is closed, which waits for it
	garbage, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { garbage.Close() })
	go func() {
		for {
			conn, err := garbage.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
			conn.Close()
		}
	}()
	reset := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	reset.EnableHTTP2 = true
	reset.StartTLS()
	t.Cleanup(reset.Close)
	resetStream := sender(t, Target{URL: reset.URL})
	trust(resetStream, reset)
	untrusted, old := tlsHook(t, nil), tlsHook(t, &tls.Config{MaxVersion: tls.VersionTLS11})
	wrongName := sender(t, Target{URL: "https://localhost:" + portOf(untrusted.URL)})
	trust(wrongName, untrusted)
	oldTLS := sender(t, Target{URL: old.URL})
	trust(oldTLS, old)

	for _, tt := range []struct {
		name   string
		sender *Sender
		class  Class
		reason string
	}{
		{"nothing listens", sender(t, Target{URL: closed.URL}), Refused, "refused"},
		{"name does not exist", sender(t, Target{URL: "http://hook.invalid/"}), DNS, "name"},
		{"connection closed without an answer", sender(t, Target{URL: hangUp}), Network, "closed before an answer"},
		{"an HTTP/2 stream that is reset", resetStream, Network, "stream error"},
		{"no answer in time", sender(t, Target{URL: slow, Timeout: 50 * time.Millisecond}), Timeout, "no answer in time"},
		{"an answer that is not HTTP", sender(t, Target{URL: "http://" + garbage.Addr().String()}), Network, "the request failed"},
		{"unknown authority", sender(t, Target{URL: untrusted.URL}), TLS, "unknown authority"},
		{"certificate for another name", wrongName, TLS, "another host"},
		{"no common version of TLS", oldTLS, TLS, "refused the TLS handshake"},
		{"https to an http port", sender(t, Target{URL: strings.Replace(slow, "http:", "https:", 1)}), TLS, "does not speak TLS"},
		{"link-local address", sender(t, Target{URL: "http://169.254.169.254/latest/meta-data"}), Blocked, "link-local"},
		{"link-local address in IPv6", sender(t, Target{URL: "http://[::ffff:169.254.169.254]/"}), Blocked, "link-local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res := tt.sender.Send(t.Context(), "e1", request)
			if res.Class != tt.class || !strings.Contains(res.Reason, tt.reason) || res.Status != 0 {
				t.Errorf("result is %+v, want class %s and %q", res, tt.class, tt.reason)
			}
			if res.Class.Verdict() != Retry {
				t.Error("is not retried")
			}
		})
	}
}

func portOf(url string) string { return url[strings.LastIndex(url, ":")+1:] }

func TestAnAttemptCutOffByShutdownIsCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	url := hook(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the client goes
		cancel()
		<-r.Context().Done()
	})
	if res := sender(t, Target{URL: url}).Send(ctx, "e1", request); res.Class != Canceled {
		t.Errorf("result is %+v", res)
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		address string
		allowed bool
	}{
		{"127.0.0.1", true},
		{"::1", true},
		{"10.0.0.1", true},
		{"192.168.1.1", true},
		{"203.0.113.7", true},
		{"fd00::1", true},
		{"2001:db8::1", true},
		{"169.254.169.254", false},
		{"169.254.0.1", false},
		{"fe80::1%eth0", false},
		{"febf::1", false},
		{"fd00:ec2::254", false},
		{"fd00:ec2::23", false},
		{"fd20:ce::254", false},
		{"fd00:a9fe:a9fe::1", false},
		{"fd00:42::42", false},
		{"fd00:c1::a9fe:a9fe", false},
		{"192.0.0.192", false},
		{"100.100.100.200", false},
		{"168.63.129.16", false},
		{"::ffff:169.254.169.254", false},
		{"64:ff9b::a9fe:a9fe", false},
		{"64:ff9b::cb00:7107", true},
		{"2002:a9fe:a9fe::1", false},
		{"2002:cb00:7107::1", true},
		{"::a9fe:a9fe", false},
		{"::cb00:7107", true},
		{"::ffff:0:a9fe:a9fe", false},
		{"::ffff:0:cb00:7107", true},
		{"64:ff9b:1::a9fe:a9fe", false},       // RFC 6052, with a prefix of 96 bits
		{"64:ff9b:1:0:a9:fea9:fe00:0", false}, // 64
		{"64:ff9b:1:a9:fe:a9fe::", false},     // 56
		{"64:ff9b:1:a9fe:a9:fe00::", false},   // 48
		{"64:ff9b:1::cb00:7107", true},
	} {
		address := netip.AddrPortFrom(netip.MustParseAddr(tt.address), 443).String()
		if err := guard(false)("tcp", address, nil); (err == nil) != tt.allowed {
			t.Errorf("%s: %v, want allowed %t", tt.address, err, tt.allowed)
		}
	}
}

func TestNoReasonAndNoAnswerHoldsASecret(t *testing.T) {
	t.Parallel()
	const marked = "MARKED0secret"
	echo := hook(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(400)
		user, password, _ := r.BasicAuth()
		fmt.Fprintf(w, "%s %s %s %s %s", r.URL, user, password, r.Header.Get("X-Token"), r.Header.Get("Authorization"))
	})
	host := strings.TrimPrefix(echo, "http://")
	header := map[string]string{"X-Token": "Bearer " + marked + "-token"}
	for _, url := range []string{
		"http://user:" + marked + "-password@" + host + "/hooks/" + marked + "-path?token=" + marked + "-query",
		"http://127.0.0.1:1/" + marked,
		"http://" + marked + ".invalid/" + marked,
		"https://" + host + "/" + marked,
		"http://169.254.169.254/" + marked,
	} {
		target := Target{URL: url, Header: header, Timeout: 2 * time.Second}
		res := sender(t, target).Send(t.Context(), "e1", request)
		out := fmt.Sprintf("%+v %v %#v", res, target, target)
		if strings.Contains(out, marked) {
			t.Errorf("a secret shows: %s", out)
		}
	}
	for _, bad := range []Target{
		{URL: "http://[" + marked},
		{URL: "ftp://" + marked + "/"},
		{URL: "http:///" + marked},
		{URL: "http://h/#" + marked},
		{URL: "http://h/", Header: map[string]string{"X": marked + "\n"}},
	} {
		_, err := New(bad, "")
		if err == nil {
			t.Error("a bad target is accepted")
		} else if strings.Contains(err.Error(), marked) {
			t.Errorf("a secret shows: %v", err)
		}
	}
}

// Whoever echoes a secret may write it as its own format wants.
func TestNoSecretShowsInEscapes(t *testing.T) {
	t.Parallel()
	const marked = "MARKED0"
	escapes := map[string]func(string) string{
		"JSON of PHP": func(s string) string { return strings.ReplaceAll(s, "/", `\/`) },
		"URL":         url.QueryEscape,
		"HTML": func(s string) string {
			return strings.NewReplacer("&", "&amp;", "+", "&#43;", "/", "&#x2F;").Replace(s)
		},
	}
	for name, escape := range escapes {
		echo := hook(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			_, password, _ := r.BasicAuth()
			fmt.Fprintf(w, "%s %s %s", escape(r.Header.Get("X-Token")), escape(password), escape(r.URL.Query().Get("token")))
		})
		res := sender(t, Target{
			URL:    strings.Replace(echo, "://", "://u:"+marked+"%2Fp%2B"+marked+"@", 1) + "/?token=" + marked + "%2Fq%26" + marked,
			Header: map[string]string{"X-Token": marked + "/a+" + marked + "=="},
		}).Send(t.Context(), "e1", request)
		if res.Answer == "" || strings.Contains(res.Answer, marked) {
			t.Errorf("%s: a secret shows: %s", name, res.Answer)
		}
	}
}

func TestNoSecretShowsAcrossTheCut(t *testing.T) {
	t.Parallel()
	const marked = "MARKED0secret"
	for before := maxAnswer - len(marked) - 1; before <= maxAnswer; before++ {
		// What is taken out ahead of the cut moves more of the answer into it.
		for _, head := range []string{"", strings.Repeat(marked, 20)} {
			url := hook(t, func(w http.ResponseWriter, _ *http.Request) {
				text := head + strings.Repeat("-", before-len(head))
				_, _ = io.WriteString(w, text+strings.Repeat(marked, 100))
			})
			res := sender(t, Target{URL: url + "/" + marked}).Send(t.Context(), "e1", request)
			if strings.Contains(res.Answer, marked[:3]) || len(res.Answer) > maxAnswer {
				t.Errorf("%d bytes before the secret: the answer has %d bytes and ends in %q", before, len(res.Answer), res.Answer[max(0, len(res.Answer)-40):])
			}
		}
	}
}

func TestADecodedPathIsTakenOutToo(t *testing.T) {
	t.Parallel()
	echo := hook(t, func(w http.ResponseWriter, r *http.Request) {
		path := strings.Trim(r.URL.Path, "/")
		fmt.Fprintf(w, "%s %s", r.URL.Path, path[strings.LastIndex(path, "/")+1:])
	})
	res := sender(t, Target{URL: echo + "/hooks/MARKED%20secret%2Fa%2Fb"}).Send(t.Context(), "e1", request)
	if strings.Contains(res.Answer, "MARKED") {
		t.Errorf("a secret shows: %s", res.Answer)
	}
	res = sender(t, Target{URL: echo + "/hooks/MARKED%20secret"}).Send(t.Context(), "e1", request)
	if want := "[redacted] [redacted]"; res.Answer != want {
		t.Errorf("answer is %q, want %q", res.Answer, want)
	}
}

func TestNewNamesEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := New(Target{URL: "ftp:x#y", Timeout: -1, Header: map[string]string{"Host": "a", "webhook-id": "b", "a b": "c"}}, "")
	if err == nil {
		t.Fatal("nothing is refused")
	}
	for _, want := range []string{"http:// or https://", "no host", "fragment", "timeout", "header Host cannot", "header webhook-id cannot", `"a b"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
}
