package app

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wgherald/wgherald/services/notifier/internal/broker"
	"github.com/wgherald/wgherald/services/notifier/internal/config"
)

// hooksFile writes a hooks file and files beside it, and returns what config makes of it.
func hooksFile(t *testing.T, text string, files map[string]string) []config.Hook {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "hooks.yaml")
	write(t, path, text)
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	hooks, _, err := config.Check(path)
	if err != nil {
		t.Fatal(err)
	}
	return hooks
}

func TestFormatsFromTheFileToTheHook(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	hooks := hooksFile(t, `
hooks:
- {name: binary, url: "`+sink.URL+`", secret: `+secret+`, format: binary, redact: name, bearer_file: token}
- {name: own, url: "`+sink.URL+`", secret: `+secret+`, template: '{"who": {{json .Name}}}', content_type: application/vnd.own+json}
- {name: elsewhere, url: "`+sink.URL+`", secret: `+secret+`, endpoints: 203.0.113.0/24}
`, map[string]string{"token": urlSecret})
	n := run(t, configure(t, hooks...)).ready()
	url, identities := n.embedded()
	id := newProbe(t, url, broker.IdentityFile(identities, broker.Probe)).tell("alice")
	sink.got(t, 2)
	n.wait()
	requests := sink.requests()
	if len(requests) != 2 {
		t.Fatalf("%d requests", len(requests))
	}
	for _, r := range requests {
		if r.Wrong != nil {
			t.Errorf("the Standard Webhooks library refuses the signature: %v", r.Wrong)
		}
		equal(t, "webhook-id", id, r.ID)
		if r.Header.Get("Content-Type") == "application/vnd.own+json" {
			equal(t, "body", `{"who": "alice"}`, r.Body)
			continue
		}
		equal(t, "Content-Type", "application/json", r.Header.Get("Content-Type"))
		equal(t, "ce-id", id, r.Header.Get("ce-id"))
		equal(t, "Authorization", "Bearer "+urlSecret, r.Header.Get("Authorization"))
		if strings.Contains(r.Body, "alice") || !strings.Contains(r.Body, `"peer":{`) {
			t.Errorf("body is %s", r.Body)
		}
	}
}

// Each hook fails in its own way, and everything of it that is secret carries the marker. Receivers and proxies give back all that they know.
func TestNoFailureShowsASecret(t *testing.T) {
	t.Parallel()
	const marker = "MARKED0file"
	echo := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			w.Header().Set("Location", r.URL.String())
			w.WriteHeader(status)
			fmt.Fprintln(w, r.URL, r.RequestURI, user, password, r.Header)
		}
	}
	serve := func(h http.HandlerFunc) string {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		return srv.URL
	}
	release := make(chan struct{})
	slow := serve(func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	secure := httptest.NewUnstartedServer(echo(200))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	parrot, err := net.Listen("tcp", "127.0.0.1:0") // answers with what it was sent
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { parrot.Close() })
	go func() {
		for {
			conn, err := parrot.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			n, _ := conn.Read(b)
			_, _ = conn.Write(b[:n])
			conn.Close()
		}
	}()
	proxy := strings.Replace(serve(echo(http.StatusProxyAuthRequired)), "://", "://u:"+marker+"-proxy@", 1)

	var file strings.Builder
	file.WriteString("hooks:\n")
	names := map[string]bool{}
	add := func(name, url, more string) {
		names[name] = true
		login := "bearer_file: bearer"
		if name == "user" {
			login = "format: binary" // the url has it
		} else if len(names)%2 == 0 {
			login = "basic_auth: {user: u, password_file: password}"
		}
		fmt.Fprintf(&file, "- name: %s\n  url: %s/%s-path?token=%[3]s-query\n  secret: %s\n  %s\n  headers: {X-Token: %[3]s-header, X-Words: Key %[3]s-word}\n", name, url, marker, secret, login)
		if more != "" {
			fmt.Fprintf(&file, "  %s\n", more)
		}
	}
	add("redirected", serve(echo(302)), "")
	add("rejected", serve(echo(400)), "")
	add("gone", serve(echo(410)), "")
	add("retried", serve(echo(404)), "retry: {other_4xx: true}")
	add("throttled", serve(echo(429)), "")
	add("user", strings.Replace(serve(echo(503)), "://", "://u:"+marker+"-password@", 1), "")
	add("unavailable", serve(echo(500)), "")
	add("timeout", slow, "timeout: 100ms")
	add("dns", "http://hook.invalid", "")
	add("authority", secure.URL, "")
	add("no-tls", strings.Replace(slow, "http:", "https:", 1), "")
	add("refused", closed.URL, "")
	add("parrot", "http://"+parrot.Addr().String(), "")
	add("link-local", "http://169.254.169.254", "")
	add("private", slow, "private: deny")
	add("proxy-http", slow, "proxy: "+proxy)
	add("proxy-https", secure.URL, "proxy_file: proxy")
	add("proxy-parrot", slow, "proxy: http://u:"+marker+"-proxy@"+parrot.Addr().String())
	add("proxy-socks", slow, "proxy: socks5://u:"+marker+"-proxy@"+parrot.Addr().String())
	add("proxy-refused", slow, "proxy: "+strings.Replace(closed.URL, "://", "://u:"+marker+"-proxy@", 1))
	add("template", slow, `template: '{"token": "`+marker+`-template", "peer": {{if eq .Name "alice"}}nothing{{else}}1{{end}}}'`)

	n := serving(t, file.String(), map[string]string{"bearer": marker + "-bearer", "password": marker + "-password", "proxy": proxy})
	hooks, _, err := config.Check(n.path)
	if err != nil {
		t.Fatal(err)
	}
	n.probe.tell("alice")

	failed := map[string]string{}
	eventually(t, fmt.Sprintf("%d hooks have failed", len(names)), func() bool {
		for _, message := range []string{"delivery failed", "event is dead"} {
			for _, r := range n.log.records(t, message) {
				failed[r["hook"].(string)] = r["reason"].(string)
			}
		}
		return len(failed) == len(names)
	})
	for hook, reason := range failed {
		t.Logf("%s: %s", hook, reason)
	}
	if !strings.Contains(n.log.String(), "[redacted]") {
		t.Error("nothing was given back: the test shows nothing")
	}

	shown := n.log.String() + n.scrape()
	for _, name := range []string{broker.StreamDead, broker.StreamAttempt} {
		stream, err := n.operator.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		last := stream.CachedInfo().State.LastSeq
		if last == 0 {
			t.Errorf("%s is empty: the test shows nothing", name)
		}
		for seq := range last {
			msg, err := stream.GetMsg(t.Context(), seq+1)
			if err != nil {
				t.Fatal(err)
			}
			shown += fmt.Sprintf("%v %s", msg.Header, msg.Data)
		}
	}
	var table strings.Builder
	if err := config.Describe(&table, hooks); err != nil {
		t.Fatal(err)
	}
	shown += table.String() + fmt.Sprintf("%v %+v %#v", hooks, hooks, hooks)

	// The same file, broken in every hook.
	text, err := os.ReadFile(n.path)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.NewReplacer("url: http", "url: ftp", "X-Token: ", "Host: ", "proxy: ", "proxy: x", "{{json", "{{jsn", "basic_auth: {user", "basic_auth: {usr").Replace(string(text))
	write(t, n.path, broken)
	_, warnings, err := config.Check(n.path)
	if problems, ok := err.(config.Problems); !ok || len(problems) < 2*len(names) {
		t.Errorf("a broken file: %v", err)
	}
	shown += fmt.Sprint(err, warnings)
	for _, hidden := range []string{marker, base64.StdEncoding.EncodeToString([]byte("u:" + marker + "-p"))[:16]} {
		for line := range strings.Lines(shown) {
			if strings.Contains(line, hidden) {
				t.Errorf("%s shows: %s", hidden, line)
			}
		}
	}
}
