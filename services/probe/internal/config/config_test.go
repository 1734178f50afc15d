package config_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

// variables is every one that there is.
var variables = []string{
	"PROBE_STATE", "PROBE_NODE", "PROBE_INTERFACES", "PROBE_NAMES", "PROBE_ENDPOINT",
	"PROBE_OFFLINE_AFTER", "PROBE_SILENCE", "PROBE_METRICS", "PROBE_LOG_LEVEL",
	"NATS_URL", "NATS_NKEY_FILE", "NATS_CREDS_FILE", "NATS_CA_FILE", "NATS_CERT_FILE", "NATS_KEY_FILE",
}

// load reads a configuration of these variables and no others.
func load(t *testing.T, set map[string]string) (config.Config, error) {
	t.Helper()
	for _, name := range variables {
		t.Setenv(name, "") // counts as not set, and puts back what was
	}
	for name, value := range set {
		t.Setenv(name, value)
	}
	return config.Load()
}

func TestDefaults(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		State: "/var/lib/wgherald-probe", Node: host, Endpoint: tracker.EndpointFull, OfflineAfter: 180 * time.Second, Silence: true,
		LogLevel: slog.LevelInfo, NATS: config.NATS{URL: "nats://127.0.0.1:4222"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreTypes(wgstate.Filter{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !got.Interfaces.Match("anything") {
		t.Error("not every interface is watched")
	}
	if path, mayMake := got.SeedFile(); path != "/var/lib/wgherald-probe/probe.nk" || !mayMake {
		t.Errorf("seed file %s, made: %v", path, mayMake)
	}
}

func TestEverythingSet(t *testing.T) {
	got, err := load(t, map[string]string{
		"PROBE_STATE": "/state", "PROBE_NODE": " vpn-1 ", "PROBE_INTERFACES": "wg*, !wg-test*", "PROBE_NAMES": "/a, /b,", "PROBE_ENDPOINT": "prefix",
		"PROBE_OFFLINE_AFTER": "5m", "PROBE_SILENCE": "off", "PROBE_METRICS": "[::1]:9100", "PROBE_LOG_LEVEL": "debug",
		"NATS_URL": "tls://a:4222, nats://probe:s3cret@b:4222", "NATS_NKEY_FILE": "/key.nk", "NATS_CA_FILE": "/ca", "NATS_CERT_FILE": "/cert", "NATS_KEY_FILE": "/key",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		State: "/state", Node: "vpn-1", Globs: []string{"wg*", "!wg-test*"}, Names: []string{"/a", "/b"}, Endpoint: tracker.EndpointPrefix, OfflineAfter: 5 * time.Minute,
		Metrics: config.Address{Network: "tcp", Addr: "[::1]:9100"}, LogLevel: slog.LevelDebug,
		NATS: config.NATS{URL: "tls://a:4222, nats://probe:s3cret@b:4222", NkeyFile: "/key.nk", CAFile: "/ca", CertFile: "/cert", KeyFile: "/key"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreTypes(wgstate.Filter{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !got.Interfaces.Match("wg0") || got.Interfaces.Match("wg-test1") || got.Interfaces.Match("tun0") {
		t.Error("the globs are not heeded")
	}
	if path, mayMake := got.SeedFile(); path != "/key.nk" || mayMake {
		t.Errorf("seed file %s, made: %v", path, mayMake)
	}
}

func TestWrongValues(t *testing.T) {
	for _, tt := range []struct{ variable, value, want string }{
		{"PROBE_NODE", "two words", "white space"},
		{"PROBE_NODE", strings.Repeat("n", 129), "129 bytes"},
		{"PROBE_INTERFACES", "wg[", "wg["},
		{"PROBE_ENDPOINT", "half", `"half", want full, prefix or none`},
		{"PROBE_OFFLINE_AFTER", "179s", "is 2m59s, want 180s or more: a session's keys live that long"},
		{"PROBE_OFFLINE_AFTER", "300", `"300", want a duration such as 180s`},
		{"PROBE_OFFLINE_AFTER", "25h", "want 24h0m0s at most"},
		{"PROBE_SILENCE", "on", `"on", want auto or off`},
		{"PROBE_METRICS", "9100", "neither host:port nor unix:/path"},
		{"PROBE_METRICS", "127.0.0.1:http", "neither host:port nor unix:/path"},
		{"PROBE_METRICS", "127.0.0.1:99999", "neither host:port nor unix:/path"},
		{"PROBE_METRICS", ":9100", "not on loopback"},
		{"PROBE_METRICS", "0.0.0.0:9100", "not on loopback"},
		{"PROBE_METRICS", "192.0.2.1:9100", "not on loopback"},
		{"PROBE_METRICS", "example.org:9100", "not on loopback"},
		{"PROBE_METRICS", "unix:relative", "no absolute path"},
		{"PROBE_LOG_LEVEL", "loud", `"loud", want debug, info, warn or error`},
		{"NATS_URL", "s3cret", "is no URL"},
		{"NATS_URL", "probe:s3cret@127.0.0.1", "is no URL"},
		{"NATS_URL", "nats://probe:s3cret@127.0.0.1:port", "is no URL"},
		{"NATS_URL", "nats://127.0.0.1,nats://s3cret%zz@b", "is no URL"},
		{"NATS_URL", ",", "is no URL"},
		{"NATS_URL", "https://probe:s3cret@127.0.0.1", `scheme "https", want nats, tls, ws or wss`},
		{"NATS_CERT_FILE", "/cert", "set both or none"},
		{"NATS_NKEY_FILE", "SUA" + strings.Repeat("A", 55), "want the path of a file, not what is in it"},
		{"NATS_CREDS_FILE", "-----BEGIN NATS USER JWT----- s3cret", "want the path of a file, not what is in it"},
		{"NATS_CA_FILE", "-----BEGIN CERTIFICATE-----", "want the path of a file, not what is in it"},
		{"PROBE_INTERFACE", "wg0", "there is no such variable: did you mean PROBE_INTERFACES?"},
		{"PROBE_PORTAL", "s3cret", "there is no such variable: there are PROBE_ENDPOINT, "},
		{"NATS_NKEYFILE", "s3cret", "there is no such variable: did you mean NATS_NKEY_FILE?"},
	} {
		_, err := load(t, map[string]string{tt.variable: tt.value})
		if err == nil || !strings.HasPrefix(err.Error(), tt.variable+": ") || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%s: %v, want one line with %q", tt.variable, tt.value, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s=%s: the error tells it: %v", tt.variable, tt.value, err)
		}
		t.Setenv(tt.variable, "")
		if err := os.Unsetenv(tt.variable); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAllAtOnce: whoever configures is told everything, by name, the first time.
func TestAllAtOnce(t *testing.T) {
	_, err := load(t, map[string]string{
		"PROBE_NODE": "a b", "PROBE_INTERFACES": "[", "PROBE_ENDPOINT": "x", "PROBE_OFFLINE_AFTER": "x", "PROBE_SILENCE": "x", "PROBE_METRICS": "x", "PROBE_LOG_LEVEL": "x", "PROBE_WHAT": "x",
		"NATS_URL": "ftp://probe:s3cret@b", "NATS_NKEY_FILE": "/s3cret.nk", "NATS_CREDS_FILE": "/c", "NATS_KEY_FILE": "/k",
	})
	if err == nil {
		t.Fatal("no error")
	}
	var got []string
	for line := range strings.Lines(err.Error()) {
		name, _, _ := strings.Cut(line, ":")
		got = append(got, name)
	}
	want := []string{
		"PROBE_NODE", "PROBE_INTERFACES", "PROBE_ENDPOINT", "PROBE_OFFLINE_AFTER", "PROBE_SILENCE", "PROBE_METRICS", "PROBE_LOG_LEVEL",
		"NATS_URL", "NATS_CREDS_FILE", "NATS_CERT_FILE", "PROBE_WHAT",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables named (-want +got):\n%s", diff)
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a secret is told:\n%v", err)
	}
}

// TestServiceLinks: Kubernetes tells every container of services called probe and nats. NATS_ is a word of others, too.
func TestServiceLinks(t *testing.T) {
	if _, err := load(t, map[string]string{
		"PROBE_SERVICE_HOST": "10.0.0.1", "PROBE_PORT": "tcp://10.0.0.1:80", "PROBE_PORT_80_TCP_ADDR": "10.0.0.1",
		"NATS_PORT": "tcp://10.0.0.1:4222", "NATS_SERVICE_PORT_CLIENT": "4222", "NATS_CONTEXT": "of the nats tool",
	}); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	var out strings.Builder
	if err := config.Usage(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if got := strings.Fields(lines[0]); !cmp.Equal(got, []string{"VARIABLE", "TYPE", "DEFAULT", "MEANING"}) {
		t.Errorf("header: %v", got)
	}
	var got []string
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if got = append(got, fields[0]); len(fields) < 4 {
			t.Errorf("a line does not tell type, default and meaning: %q", line)
		}
	}
	if diff := cmp.Diff(variables, got); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}
