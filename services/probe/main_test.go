package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/privilege"
)

// TestExitCodes: 0 for what was asked for, 2 for a wrong configuration, 1 for what cannot go on, each with the reason.
func TestExitCodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	held, err := outbox.Open(state, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().String()
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, outbox.FileName), []byte("not bbolt's"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args           []string
		env            map[string]string
		code           int
		stdout, stderr string // what is said there; nothing where empty
	}{
		"-h":               {[]string{"-h"}, nil, 0, "PROBE_INTERFACES", ""},
		"-help":            {[]string{"-help"}, map[string]string{"PROBE_ENDPOINT": "wrong"}, 0, "NATS_URL", ""},
		"-version":         {[]string{"-version"}, nil, 0, "dev\n", ""},
		"an unknown flag":  {[]string{"-debug"}, nil, 2, "", "-debug (probe -h tells"},
		"an argument":      {[]string{"start"}, nil, 2, "", `unexpected argument "start"`},
		"health of nobody": {[]string{"health"}, map[string]string{"PROBE_STATE": file}, 1, "", "not well: "},
		"health of what":   {[]string{"health", "now"}, nil, 2, "", `unexpected argument "health"`},
		"wrong values":     {nil, map[string]string{"PROBE_ENDPOINT": "x", "PROBE_LOG_LEVEL": "y", "NATS_URL": "s3cret"}, 2, "", "PROBE_ENDPOINT: "},
		"a misspelt name":  {nil, map[string]string{"PROBE_INTERFACE": "wg0"}, 2, "", "PROBE_INTERFACE: there is no such variable: did you mean PROBE_INTERFACES?"},
		"an unknown name":  {nil, map[string]string{"PROBE_COLOUR": "red"}, 2, "", "PROBE_COLOUR: there is no such variable: there are PROBE_ENDPOINT, PROBE_INTERFACES, "},
		"no state":         {nil, map[string]string{"PROBE_STATE": file}, 2, "", file + ": not a directory (PROBE_STATE names the directory)"},
		"no key":           {nil, map[string]string{"PROBE_STATE": file + ".d", "NATS_NKEY_FILE": "/missing/key"}, 2, "", "key file /missing/key (NATS_NKEY_FILE): no such file or directory: `notifier keys` makes one"},
		"a wrong key":      {nil, map[string]string{"PROBE_STATE": file + ".d", "NATS_NKEY_FILE": file}, 2, "", file + " holds no nkey seed"},
		"a state in use":   {nil, map[string]string{"PROBE_STATE": state}, 1, "", state + "/probe.db is in use by another probe: stop it, or give this one another directory (PROBE_STATE"},
		"a damaged state":  {nil, map[string]string{"PROBE_STATE": damaged}, 2, "", damaged + "/probe.db is damaged"},
		"metrics in use":   {nil, map[string]string{"PROBE_STATE": file + ".d", "PROBE_METRICS": port}, 1, "", "(PROBE_METRICS): listen tcp " + port + ": bind: address already in use: name another"},
		"metrics nowhere":  {nil, map[string]string{"PROBE_STATE": file + ".d", "PROBE_METRICS": "unix:/missing/socket"}, 2, "", "listen unix /missing/socket: bind: no such file or directory: name another"},
		"metrics in a way": {nil, map[string]string{"PROBE_STATE": file + ".d", "PROBE_METRICS": "unix:" + file}, 2, "", file + " (PROBE_METRICS): there is a file of that name that is no socket: remove it"},
		"no state, deeper": {nil, map[string]string{"PROBE_STATE": file + "/state"}, 2, "", file + "/state"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := privilege.Check(); err != nil && tt.args == nil && tt.env["PROBE_STATE"] != "" {
				tt.code, tt.stderr = 2, err.Error() // comes first
			}
			for _, v := range []string{"PROBE_STATE", "PROBE_NODE", "PROBE_ENDPOINT", "PROBE_LOG_LEVEL", "PROBE_METRICS", "PROBE_INTERFACES", "NATS_URL", "NATS_NKEY_FILE"} {
				t.Setenv(v, "")
			}
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			var stdout, stderr bytes.Buffer
			if code := run(tt.args, &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for what, out := range map[string]struct{ got, want string }{"stdout": {stdout.String(), tt.stdout}, "stderr": {stderr.String(), tt.stderr}} {
				if out.want == "" && out.got != "" || !strings.Contains(out.got, out.want) {
					t.Errorf("%s: %q, want %q in it", what, out.got, out.want)
				}
				if lines := strings.Count(out.got, "\n"); what == "stderr" && tt.env["PROBE_STATE"] != "" && lines > 1 {
					t.Errorf("%d lines, want the reason alone: %s", lines, out.got)
				}
				if strings.Contains(out.got, "s3cret") {
					t.Errorf("%s tells a secret: %s", what, out.got)
				}
			}
		})
	}
}
