package app

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/services/probe/internal/config"
)

// TestFiles: what is read while the probe runs is allowed, and of the system's files no more than the configuration makes necessary.
func TestFiles(t *testing.T) {
	t.Setenv("SSL_CERT_FILE", "")
	t.Setenv("SSL_CERT_DIR", "")
	for name, tt := range map[string]struct {
		config config.Config
		again  []string
		proc   bool
	}{
		"nothing special":          {config: config.Config{NATS: config.NATS{URL: "nats://127.0.0.1:4222,tls://[::1]:4222"}}},
		"this host by its name":    {config: config.Config{NATS: config.NATS{URL: "nats://localhost"}}},
		"a broker that has a name": {config: config.Config{NATS: config.NATS{URL: "nats://127.0.0.1, nats://u:p@broker.example:4222"}}, again: resolver},
		"files and metrics": {
			config: config.Config{
				Names: []string{"/n/1", "/n/2"}, Metrics: config.Address{Network: "unix", Addr: "/m"},
				NATS: config.NATS{URL: "nats://127.0.0.1", NkeyFile: "/k", CredsFile: "/c/creds", CAFile: "/c/ca", CertFile: "/c/cert", KeyFile: "/c/key"},
			},
			again: []string{"/n/1", "/n/2", "/c/creds", "/c/ca", "/c/cert", "/c/key"}, proc: true,
		},
	} {
		tt.config.State = "/state"
		f := files(tt.config)
		if diff := cmp.Diff(tt.again, f.Again); diff != "" || f.State != "/state" {
			t.Errorf("%s: state %s, read again (-want +got):\n%s", name, f.State, diff)
		}
		if got := slices.Contains(f.Public, "/proc"); got != tt.proc {
			t.Errorf("%s: /proc %t", name, got)
		}
		if slices.Contains(f.Again, "/etc/hosts") == slices.Contains(f.Public, "/etc/hosts") {
			t.Errorf("%s: /etc/hosts must be allowed in one way: %v %v", name, f.Again, f.Public)
		}
	}
}

func TestStateRemedy(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		syscall.EACCES:  "chown -R " + strconv.Itoa(os.Geteuid()) + " /state",
		syscall.EROFS:   "mount a volume there",
		syscall.ENOTDIR: "PROBE_STATE names the directory",
	} {
		if got := stateRemedy("/state", fmt.Errorf("state directory: %w", err)); !strings.Contains(got, want) || !strings.Contains(got, "PROBE_STATE") {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
