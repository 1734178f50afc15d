package broker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

// testConfig is a broker of two probes and two notifiers in a container.
func testConfig(t *testing.T) ServerConfig {
	t.Helper()
	keys, err := EnsureIdentities(filepath.Join(t.TempDir(), "ids"), "wp", "hp", "rp", "p1", "p2", "n1", "n2", "o", "r")
	if err != nil {
		t.Fatal(err)
	}
	return ServerConfig{
		Listen: "0.0.0.0:4222", StoreDir: `/data/a "quoted" \ place`, WGProvisioner: keys["wp"], HooksProvisioner: keys["hp"],
		ReadersProvisioner: keys["rp"],
		Probes:             []ProbeUser{{Name: "a.b", Node: "vpn-1.example", Key: keys["p1"]}, {Name: "c", Node: "vpn-2", Key: keys["p2"]}},
		Notifiers:          []string{keys["n1"], keys["n2"]}, Operators: []string{keys["o"]}, Readers: []string{keys["r"]},
	}
}

func TestRenderIsReadByTheServer(t *testing.T) {
	t.Parallel()
	c := testConfig(t)
	text, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if opts.Host != "0.0.0.0" || opts.Port != 4222 || opts.HTTPPort != 0 || opts.Cluster.Port != 0 || opts.LeafNode.Port != 0 || opts.Websocket.Port != 0 {
		t.Errorf("ports: %s:%d, monitoring %d, cluster %d, leaf %d, websocket %d",
			opts.Host, opts.Port, opts.HTTPPort, opts.Cluster.Port, opts.LeafNode.Port, opts.Websocket.Port)
	}
	if opts.StoreDir != c.StoreDir || !opts.SyncAlways || opts.MaxPayload != maxPayload || opts.SystemAccount != "SYS" {
		t.Errorf("store %q, sync always %v, max payload %d, system account %q", opts.StoreDir, opts.SyncAlways, opts.MaxPayload, opts.SystemAccount)
	}
	state := map[string][]string{}
	for _, u := range opts.Nkeys {
		if u.Permissions == nil || u.Permissions.Publish == nil || u.Permissions.Subscribe == nil {
			t.Fatalf("user %s of account %s has no permissions", u.Nkey, u.Account.Name)
		}
		for _, subject := range u.Permissions.Publish.Allow {
			if strings.HasPrefix(subject, "$KV.") {
				state[u.Nkey] = append(state[u.Nkey], subject)
			}
		}
	}
	if len(opts.Nkeys) != 9 || len(opts.Users) != 0 {
		t.Errorf("%d nkeys and %d passwords, want 9 and none", len(opts.Nkeys), len(opts.Users))
	}
	for key, want := range map[string]string{c.Probes[0].Key: "$KV.WG_PEERS.vpn-1=2Eexample.>", c.Probes[1].Key: "$KV.WG_PEERS.vpn-2.>"} {
		if got := state[key]; len(got) != 1 || got[0] != want {
			t.Errorf("state subjects %v, want %s", got, want)
		}
	}
	if len(state) != 2 {
		t.Errorf("%d identities write state, want the two probes", len(state))
	}
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*ServerConfig)
		want   string
	}{
		"no key":                    {func(c *ServerConfig) { c.WGProvisioner = "" }, "wg-provisioner"},
		"a seed instead of a key":   {func(c *ServerConfig) { c.Readers = []string{"SUA} users: ["} }, "not the public key"},
		"one key twice":             {func(c *ServerConfig) { c.Notifiers[1] = c.Notifiers[0] }, "the same key"},
		"two probes of one node":    {func(c *ServerConfig) { c.Probes[1].Node = c.Probes[0].Node }, `two probes with the node "vpn-1.example"`},
		"a listen address of words": {func(c *ServerConfig) { c.Listen = "here" }, "listen address"},
		"a directory on two lines":  {func(c *ServerConfig) { c.StoreDir = "/data\nport: 1" }, "no listen address or directory"},
		"no directory":              {func(c *ServerConfig) { c.StoreDir = "" }, "no listen address or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testConfig(t)
			tt.change(&c)
			if _, err := c.Render(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}
