package publish_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/publish"
)

// TestConnectErrors: what no waiting can heal is said at once, without what is secret in it.
func TestConnectErrors(t *testing.T) {
	t.Parallel()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const good = "nats://127.0.0.1:1"
	for name, tt := range map[string]struct {
		config config.NATS
		want   string
	}{
		"a port that is none":   {config.NATS{URL: "nats://probe:s3cret@127.0.0.1:port"}, "NATS_URL is no URL"},
		"the second of two":     {config.NATS{URL: good + ",nats://probe:s3cret@[::1"}, "NATS_URL is no URL"},
		"a control character":   {config.NATS{URL: "nats://probe:s3cret\x01@127.0.0.1"}, "NATS_URL is no URL"},
		"no credentials":        {config.NATS{URL: good, CredsFile: "/missing/creds"}, "/missing/creds"},
		"roots that are none":   {config.NATS{URL: good, CAFile: file("s3cret")}, "failed to parse root certificate"},
		"no roots":              {config.NATS{URL: good, CAFile: "/missing/ca"}, "/missing/ca"},
		"no client certificate": {config.NATS{URL: good, CertFile: "/missing/cert", KeyFile: "/missing/key"}, "/missing/cert"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc, _, err := publish.Connect(t.Context(), tt.config, "vpn-1", publish.Identity{}, func() {}, func(publish.Denied) {}, slog.New(slog.DiscardHandler))
			if err == nil {
				nc.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %q, want %q and no secret", err, tt.want)
			}
		})
	}
}

// TestLoginIsNotLogged: a login in the URL is nobody's business, whether it works or not.
func TestLoginIsNotLogged(t *testing.T) {
	t.Parallel()
	byToken := serve(t, t.TempDir(), -1, func(o *server.Options) { o.Authorization = "s3cret-token" })
	byUser := serve(t, t.TempDir(), -1, func(o *server.Options) { o.Username, o.Password = "probe", "s3cret-password" })
	for name, tt := range map[string]struct{ url, want string }{
		"a token":          {strings.Replace(byToken.ClientURL(), "://", "://s3cret-token@", 1), "msg=connected"},
		"a wrong token":    {strings.Replace(byToken.ClientURL(), "://", "://s3cret-other@", 1), "Authorization Violation"},
		"a password":       {strings.Replace(byUser.ClientURL(), "://", "://probe:s3cret-password@", 1), "msg=connected"},
		"a wrong password": {strings.Replace(byUser.ClientURL(), "://", "://probe:s3cret-other@", 1), "Authorization Violation"},
		"nobody there":     {"nats://probe:s3cret-password@127.0.0.1:1", "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &lines{}
			nc, up, err := publish.Connect(t.Context(), config.NATS{URL: tt.url}, "vpn-1", publish.Identity{Public: "UTHIS"}, func() {}, func(publish.Denied) {}, slog.New(slog.NewTextHandler(log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			eventually(t, tt.want+" in the log", func() bool { return strings.Contains(log.String(), tt.want) })
			if strings.Contains(log.String(), "s3cret") {
				t.Errorf("the log tells the login:\n%s", log)
			}
			if tt.want == "Authorization Violation" && !strings.Contains(log.String(), "does not know this login (public key UTHIS") {
				t.Errorf("the log does not tell what to do:\n%s", log)
			}
			if tt.want == "msg=connected" {
				<-up
			}
		})
	}
}
