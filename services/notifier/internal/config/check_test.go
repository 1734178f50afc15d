package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// writeFiles puts files into a new directory and returns the path of the one named hooks.yaml.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "hooks.yaml")
}

func TestDescribeShowsWhatAHookDoesAndNoSecret(t *testing.T) {
	t.Parallel()
	path := writeFiles(t, map[string]string{
		"secret": marker, "cert.pem": certPEM, "key.pem": keyPEM,
		"hooks.yaml": `
hooks:
- {name: plain, url: "https://example.org/hunter2?token=hunter2"}
- name: chat
  url: https://u:hunter2@hooks.example.org:8443/hunter2
  format: slack
  redact: [endpoint, name]
  secrets: [` + secretA + `, ` + secretB + `]
  headers: {X-Token: hunter2, X-A: hunter2}
  ca_file: cert.pem
  client_cert_file: cert.pem
  client_key_file: key.pem
  proxy: socks5://u:hunter2@proxy:1080
  private: deny
  timeout: 10s
  concurrency: 4
  rate: 30/m
  connect_timeout: 1s
  retry: {first: 1s, other_4xx: true}
  types: [wg.peer.connected, wg.peer.disconnected]
  nodes: "vpn-*\t"
  endpoints: 203.0.113.0/24
  from: 7d
- {name: own, url: "http://h/hunter2", template: '{"token": "hunter2"}', bearer_file: secret}
`,
	})
	hooks, warnings, err := Check(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := Describe(&out, hooks); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`plain
  to       https://example.org
  format   cloudevents
  signed   no
  with     -
  timeout  15s, to connect 5s
  retry    5s ×3 to 6h ±20%, until 72h
  limit    16 at a time
  events   all

chat
  to       https://hooks.example.org:8443
  format   slack, without endpoint name
  signed   by 2 secrets
  with     headers X-A X-Token, own authorities, client certificate, proxy socks5://proxy:1080,
           public addresses only
  timeout  10s, to connect 1s
  retry    1s ×3 to 6h ±20%, until 72h, other 4xx too
  limit    4 at a time, one in 2s, from 7d ago
  events   types wg.peer.connected wg.peer.disconnected; nodes vpn-*; endpoints 203.0.113.0/24

own
  to       http://h
  format   template, application/json
  signed   no
  with     headers Authorization
  timeout  15s, to connect 5s
  retry    5s ×3 to 6h ±20%, until 72h
  limit    16 at a time
  events   all
`, out.String()); diff != "" {
		t.Errorf("description (-want +have):\n%s", diff)
	}
	if text := out.String() + strings.Join(warnings, "\n"); strings.Contains(text, marker) {
		t.Errorf("a secret shows in:\n%s", text)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "hook plain has no secret") {
		t.Errorf("warnings are %q", warnings)
	}
}

func TestCheckReportsWhatAStartReports(t *testing.T) {
	path := writeFiles(t, map[string]string{"hooks.yaml": "hooks:\n- name: a\n  url: ftp://hunter2\n  tipes: x\n- name: B\n  url: http://h\n  ca_file: nope\n"})
	setenv(t, map[string]string{"NOTIFIER_HOOKS": path})
	_, atStart := Load()
	_, _, err := Check(path)
	if problems, ok := errors.AsType[Problems](err); !ok || len(problems) != 5 || err.Error() != atStart.Error() {
		t.Errorf("check says\n%v\na start says\n%v", err, atStart)
	}
	if _, _, err := Check("/nonexistent/hooks.yaml"); err == nil || err.Error() != "file /nonexistent/hooks.yaml cannot be read: no such file or directory" {
		t.Errorf("a missing file: %v", err)
	}
}

// Editors of Windows begin a file with a byte order mark, and end lines with two characters.
func TestFilesOfWindows(t *testing.T) {
	t.Parallel()
	path := writeFiles(t, map[string]string{
		"hooks.yaml": "\ufeffhooks:\r\n- name: a\r\n  url_file: url\r\n  secret_file: secret\r\n", "url": "\ufeffhttps://h\r\n", "secret": "\ufeff" + secretA + "\r\n",
	})
	hooks, _, err := Check(path)
	if err != nil || len(hooks) != 1 || hooks[0].URL.Reveal() != "https://h" || len(hooks[0].Secrets) != 1 {
		t.Errorf("%v %v", hooks, err)
	}
}

// What the documentation shows is read without a problem.
func TestTheDocumentationsExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	read := fakeFiles(map[string]string{
		"/etc/wg/ops.secret": secretA, "/run/secrets/berlin-url": "https://h", "/etc/wg/ca.pem": certPEM, "/etc/wg/notifier.pem": certPEM,
		"/etc/wg/notifier.key": keyPEM, "/etc/wg/password": marker,
	})
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		if !strings.HasPrefix(block, "hooks:") {
			block = "hooks:\n  - name: a\n    url: https://h\n" + block
		}
		if p := parseHooks("/etc/wg/hooks.yaml", []byte(block), map[string]string{}, read); len(p.problems) > 0 {
			t.Errorf("%v in\n%s", p.problems, block)
		}
	}
	if len(blocks) < 4 {
		t.Errorf("%d examples", len(blocks))
	}
	for _, field := range hookFields {
		if !strings.Contains(string(text), field) {
			t.Errorf("%s is not documented", field)
		}
	}
}
