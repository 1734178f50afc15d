package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wgherald/wgherald/services/notifier/internal/route"
	"github.com/wgherald/wgherald/services/notifier/internal/sign"
)

// setenv gives the process exactly these of our variables.
func setenv(t *testing.T, env map[string]string) {
	t.Helper()
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		for _, prefix := range []string{"NOTIFIER_", "WEBHOOK_", "NATS_"} {
			if strings.HasPrefix(name, prefix) {
				t.Setenv(name, "") // restores it after the test
				os.Unsetenv(name)
			}
		}
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
}

func writeTemp(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	secretFile := writeTemp(t, "\n"+secretA+"\n", 0o600)
	openFile := writeTemp(t, secretA, 0o644)
	hooksFile := writeTemp(t, "hooks:\n- {name: ops, url: 'https://example.org'}", 0o600)
	chatHooks := writeTemp(t, "hooks:\n- {name: chat, url: 'https://example.org', format: discord}", 0o600)
	openHooks := writeTemp(t, "hooks:\n- {name: ops, url: 'https://example.org'}", 0o644)

	base := Config{State: "/var/lib/wgherald-notifier", Keyring: "/var/lib/wgherald-notifier/keyring", Verify: true, Listen: "127.0.0.1:4222"}
	def := Hook{Name: "default", URL: NewSecret("https://example.org/x"), Timeout: 15 * time.Second}
	ops := Hook{Name: "ops", URL: NewSecret("https://example.org"), Timeout: 15 * time.Second}
	signed := def
	signed.Secrets = []sign.Secret{mustSecret(t, secretA)}

	for name, tt := range map[string]struct {
		env  map[string]string
		want func(*Config)
	}{
		"nothing set: only a broker": {nil, func(*Config) {}},
		"empty counts as not set": {
			map[string]string{"NOTIFIER_LISTEN": "", "NOTIFIER_VERIFY": " ", "WEBHOOK_URL": "", "NATS_URL": "", "NOTIFIER_STATE": ""},
			func(*Config) {},
		},
		"a hook from the environment": {
			map[string]string{"WEBHOOK_URL": " https://example.org/x\n", "WEBHOOK_SECRET": secretA},
			func(c *Config) { c.Hooks = []Hook{signed} },
		},
		"its secret from a file": {
			map[string]string{"WEBHOOK_URL": "https://example.org/x", "WEBHOOK_SECRET_FILE": secretFile},
			func(c *Config) { c.Hooks = []Hook{signed} },
		},
		"a secret file that everybody reads": {
			map[string]string{"WEBHOOK_URL": "https://example.org/x", "WEBHOOK_SECRET_FILE": openFile},
			func(c *Config) {
				c.Hooks = []Hook{signed}
				c.Warnings = []string{"secret file " + openFile + " is readable by everybody: chmod o-r"}
			},
		},
		"both ways count": {
			map[string]string{"WEBHOOK_URL": "https://example.org/x", "NOTIFIER_HOOKS": hooksFile},
			func(c *Config) {
				c.Hooks = []Hook{def, ops}
				c.Warnings = []string{
					"hook default has no secret, so its requests are not signed (WEBHOOK_SECRET or WEBHOOK_SECRET_FILE)",
					"hook ops has no secret, so its requests are not signed (secret or secret_file)",
				}
			},
		},
		"chats verify no signature": {
			map[string]string{"NOTIFIER_HOOKS": chatHooks},
			func(c *Config) {
				chat := ops
				chat.Name, chat.Format = "chat", "discord"
				c.Hooks = []Hook{chat}
			},
		},
		"a hooks file that everybody reads": {
			map[string]string{"NOTIFIER_HOOKS": openHooks},
			func(c *Config) {
				c.Hooks = []Hook{ops}
				c.Warnings = []string{
					"hooks file " + openHooks + " holds a URL, a header or a secret, and is readable by everybody: chmod o-r, or move them to files",
					"hook ops has no secret, so its requests are not signed (secret or secret_file)",
				}
			},
		},
		"a broker of one's own": {
			map[string]string{
				"NATS_URL": "tls://u:p@nats-1:4222, nats://nats-2", "NATS_NKEY_FILE": "/n.nk", "NATS_CA_FILE": "/ca",
				"NATS_CERT_FILE": "/cert", "NATS_KEY_FILE": "/key",
			},
			func(c *Config) {
				c.NATS = NATS{URL: NewSecret("tls://u:p@nats-1:4222, nats://nats-2"), NkeyFile: "/n.nk", CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"}
			},
		},
		"every other setting": {
			map[string]string{
				"NOTIFIER_STATE": "/s", "NOTIFIER_VERIFY": "false", "NOTIFIER_LISTEN": "[::1]:0", "NOTIFIER_METRICS": ":9586", "NOTIFIER_LOG_LEVEL": "DEBUG",
			},
			func(c *Config) {
				c.State, c.Keyring, c.Verify, c.Listen, c.Metrics, c.LogLevel = "/s", "/s/keyring", false, "[::1]:0", ":9586", slog.LevelDebug
			},
		},
		"a keyring elsewhere, metrics on a socket": {
			map[string]string{"NOTIFIER_KEYRING": "/k", "NOTIFIER_METRICS": "unix:/run/m.sock"},
			func(c *Config) { c.Keyring, c.Metrics = "/k", "unix:/run/m.sock" },
		},
		"variables of others": {
			map[string]string{
				"WEBHOOK_EVENTS": marker, "NOTIFIER_PORT": "tcp://10.0.0.1:80", "NOTIFIER_SERVICE_HOST": "10.0.0.1", "NOTIFIER_SERVICE_PORT_HTTP": "80",
				"NOTIFIER_METRICS_PORT_9586_TCP_ADDR": "10.0.0.1", "NOTIFIER_METRICS_SERVICE_PORT": "9586", "WEBHOOK_PORT_80_TCP": "tcp://10.0.0.1:80",
			},
			func(*Config) {},
		},
		"a secret without a hook": {
			map[string]string{"WEBHOOK_SECRET": secretA},
			func(c *Config) {
				c.Warnings = []string{"a webhook secret is set but WEBHOOK_URL is not: no hook uses it"}
			},
		},
		"LISTEN is not ours": {map[string]string{"LISTEN": "0.0.0.0:1", "STATE": "/x"}, func(*Config) {}},
	} {
		t.Run(name, func(t *testing.T) {
			setenv(t, tt.env)
			want := base
			tt.want(&want)
			got, err := Load()
			if err != nil {
				t.Fatal(err)
			}
			sortStrings := cmp.Transformer("sorted", func(s []string) map[string]bool {
				set := map[string]bool{}
				for _, e := range s {
					set[e] = true
				}
				return set
			})
			if diff := cmp.Diff(want, got, compareSecrets, sortStrings, cmpopts.IgnoreFields(Config{}, "Source", "Files")); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadReportsEverythingAtOnce(t *testing.T) {
	hooks := writeTemp(t, "hooks:\n- name: default\n  url: "+marker+"\n", 0o600)
	setenv(t, map[string]string{
		"NOTIFIER_VERIFY": "yes!", "NOTIFIER_LISTEN": "0.0.0.0:4222", "NOTIFIER_METRICS": "9586", "NOTIFIER_LOG_LEVEL": "loud",
		"NOTIFIER_HOOKS": hooks, "WEBHOOK_URL": "ftp://" + marker, "WEBHOOK_SECRET": marker,
		"NATS_URL": "nats://ok:4222,http://u:" + marker + "@h", "NATS_NKEY_FILE": "/a", "NATS_CREDS_FILE": "/b", "NATS_KEY_FILE": "/c",
	})
	_, err := Load()
	problems, ok := errors.AsType[Problems](err)
	if !ok {
		t.Fatalf("error is %T: %v", err, err)
	}
	want := []string{
		`NOTIFIER_LOG_LEVEL: "loud" is none of debug, info, warn, error`,
		`NOTIFIER_VERIFY: "yes!" is neither true nor false`,
		`NATS_URL: number 2 is not a nats://, tls://, ws:// or wss:// URL`,
		`NATS_CREDS_FILE: set together with NATS_NKEY_FILE: use one of them`,
		`NATS_CERT_FILE: and NATS_KEY_FILE go together: only one is set`,
		`NOTIFIER_LISTEN="0.0.0.0:4222": the embedded broker listens on a loopback address only; for probes on other machines run nats-server and set NATS_URL`,
		`NOTIFIER_METRICS: "9586": want host:port, such as 127.0.0.1:9586, or unix:/path`,
		`WEBHOOK_URL: want an http:// or https:// URL`,
		`WEBHOOK_SECRET: secret does not start with whsec_: make one with: echo "whsec_$(openssl rand -base64 32)"`,
		hooks + `:2: hook #1: name: default is taken already by the hook of WEBHOOK_URL`,
		hooks + `:3: hook #1: url: want an http:// or https:// URL`,
	}
	if diff := cmp.Diff(want, strings.Split(problems.Error(), "\n")); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestLoadOtherMistakes(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		want string
	}{
		"a hooks file that is not there": {map[string]string{"NOTIFIER_HOOKS": "/nonexistent"}, "NOTIFIER_HOOKS: file /nonexistent cannot be read: no such file or directory"},
		"a secret file that is not there": {
			map[string]string{"WEBHOOK_URL": "https://h", "WEBHOOK_SECRET_FILE": "/nonexistent"},
			"WEBHOOK_SECRET_FILE: file /nonexistent cannot be read: no such file or directory",
		},
		"a secret for its file": {
			map[string]string{"WEBHOOK_URL": "https://h", "WEBHOOK_SECRET_FILE": secretA}, "WEBHOOK_SECRET_FILE: want the path of a file, not what is in it",
		},
		"a URL for the hooks file": {
			map[string]string{"NOTIFIER_HOOKS": "https://h/" + marker}, "NOTIFIER_HOOKS: want the path of a file, not what is in it",
		},
		"a seed for its file": {
			map[string]string{"NATS_URL": "nats://h", "NATS_NKEY_FILE": "SUA" + strings.Repeat("A", 55)}, "NATS_NKEY_FILE: want the path of a file, not what is in it",
		},
		"credentials for their file": {
			map[string]string{"NATS_URL": "nats://h", "NATS_CREDS_FILE": "-----BEGIN NATS USER JWT-----\n" + marker}, "NATS_CREDS_FILE: want the path of a file, not what is in it",
		},
		"a secret in two ways": {
			map[string]string{"WEBHOOK_URL": "https://h", "WEBHOOK_SECRET_FILE": "/nonexistent", "WEBHOOK_SECRET": secretA},
			"WEBHOOK_SECRET_FILE: set together with WEBHOOK_SECRET: use one of them",
		},
		"a login for the embedded broker": {
			map[string]string{"NATS_CREDS_FILE": "/c"},
			"NATS_CREDS_FILE: needs NATS_URL: the embedded broker has identities of its own",
		},
		"a webhook with a fragment": {
			map[string]string{"WEBHOOK_URL": "https://h/#" + marker},
			"WEBHOOK_URL: the URL has a fragment (#), which is never sent",
		},
		"a variable misspelt": {
			map[string]string{"NOTIFIER_HOOK": marker}, "NOTIFIER_HOOK: there is no such variable: did you mean NOTIFIER_HOOKS?",
		},
		"a webhook's variable misspelt": {
			map[string]string{"WEBHOOK_ULR": marker}, "WEBHOOK_ULR: there is no such variable: did you mean WEBHOOK_URL?",
		},
		"a broker's variable misspelt": {
			map[string]string{"NATS_NKEYFILE": marker}, "NATS_NKEYFILE: there is no such variable: did you mean NATS_NKEY_FILE?",
		},
		"a variable that there is not": {
			map[string]string{"NOTIFIER_PROXY": marker}, "NOTIFIER_PROXY: there is no such variable (notifier -h lists them)",
		},
		"metrics on a relative socket": {
			map[string]string{"NOTIFIER_METRICS": "unix:m.sock"},
			`NOTIFIER_METRICS: "unix:m.sock": want an absolute path after unix:`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			setenv(t, tt.env)
			_, err := Load()
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %q, want %q", err, tt.want)
			}
		})
	}
}

func TestUsageNamesEveryVariable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := Usage(&out); err != nil {
		t.Fatal(err)
	}
	typ := reflect.TypeFor[environment]()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != typ.NumField()+1 {
		t.Fatalf("%d lines for %d variables:\n%s", len(lines), typ.NumField(), out.String())
	}
	for i, line := range lines[1:] {
		tag := typ.Field(i).Tag
		for _, key := range []string{"envconfig", "type", "desc"} {
			if v := tag.Get(key); v == "" || !strings.Contains(line, v) {
				t.Errorf("line %q lacks the %s %q", line, key, v)
			}
		}
		if !strings.Contains(line, tag.Get("default")) {
			t.Errorf("line %q lacks its default %q", line, tag.Get("default"))
		}
	}
}

func TestSecretShowsNowhere(t *testing.T) {
	t.Parallel()
	type hidden struct{ inner Secret } // fmt calls no method on unexported fields
	s := NewSecret(marker)
	hook := Hook{Name: "a", URL: s, Headers: map[string]Secret{"A": s}, Rules: route.Rules{}, Template: s, Key: s, Proxy: s}
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "secret", s, "hook", hook, "hidden", hidden{s})
	}
	encoded, err := json.Marshal(hook)
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{log.String(), string(encoded), s.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		for _, v := range []any{s, &s, hook, &hook, hidden{s}, []Secret{s}} {
			shown = append(shown, fmt.Sprintf(verb, v))
		}
	}
	for _, text := range shown {
		for _, form := range []string{marker, fmt.Sprintf("%x", marker), fmt.Sprintf("%X", marker)} {
			if strings.Contains(text, form) {
				t.Errorf("the secret shows in %q", text)
			}
		}
	}
	if s.Reveal() != marker || (Secret{}).Reveal() != "" {
		t.Error("a secret does not reveal its text")
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://hooks.example.org/services/T0/" + marker:      "https://hooks.example.org",
		"https://user:" + marker + "@h:8443/x?token=" + marker: "https://h:8443",
		"http://[::1]:80/#" + marker:                           "http://[::1]:80",
		marker:                                                 "[redacted]",
		"":                                                     "[redacted]",
		"https://u:" + marker + "%zz@h":                        "[redacted]",
		"mailto:" + marker:                                     "[redacted]",
	} {
		if got := Redact(url); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
