package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/wgherald/wgherald/pkg/events"
)

// guide returns docs/subscribing.md and the text of its code blocks, by their language.
func guide(t *testing.T) (string, map[string]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "subscribing.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)\n```$").FindAllStringSubmatch(string(text), -1) {
		if blocks[m[1]] != "" {
			t.Fatalf("two blocks of %s", m[1])
		}
		blocks[m[1]] = m[2]
	}
	return string(text), blocks
}

// TestGuideVerifies takes the example of the guide apart as others will.
func TestGuideVerifies(t *testing.T) {
	t.Parallel()
	_, blocks := guide(t)
	key := ed25519.NewKeyFromSeed([]byte("wgherald-example-not-a-real-key!"))
	if want := hex.EncodeToString(key.Public().(ed25519.PublicKey)); blocks["hex"] != want {
		t.Errorf("the key is %q, want %s", blocks["hex"], want)
	}
	if want := events.Sign([]byte(blocks["body"]), key); blocks["signature"] != want {
		t.Errorf("the signature is %q, want %s", blocks["signature"], want)
	}
	ring, err := events.ParseKeyring(blocks["keyring"])
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(ring["vpn-1"][0]); got != blocks["hex"] {
		t.Errorf("the keyring says %s", got)
	}
	if _, err := events.Verify([]byte(blocks["body"]), blocks["signature"], ring); err != nil {
		t.Error(err)
	}
}

// TestGuideProgram runs the guide's program.
func TestGuideProgram(t *testing.T) {
	t.Parallel()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed: the program in docs/subscribing.md is not run; its example is checked by TestGuideVerifies")
	}
	_, blocks := guide(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"verify.mjs": blocks["js"], "keyring": blocks["keyring"]} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		body, want string
	}{
		"as it came":       {blocks["body"], "wg.probe.stopped is verified"},
		"a bit changed":    {strings.Replace(blocks["body"], "86400", "86401", 1), "not verified"},
		"a newline added":  {blocks["body"] + "\n", "not verified"},
		"for another node": {strings.Replace(blocks["body"], `"node":"vpn-1"`, `"node":"vpn-2"`, 1), "not verified"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := exec.CommandContext(t.Context(), node, "verify.mjs", "keyring", blocks["signature"])
			c.Dir, c.Stdin = dir, strings.NewReader(tt.body)
			said, err := c.CombinedOutput()
			if !bytes.Contains(said, []byte(tt.want)) || (err == nil) != (tt.want != "not verified") {
				t.Errorf("%v, says %q, want %q", err, said, tt.want)
			}
		})
	}
}

// TestGuideState holds the guide's keys and value of the bucket to pkg/events.
func TestGuideState(t *testing.T) {
	t.Parallel()
	text, blocks := guide(t)
	s, err := events.DecodeState([]byte(blocks["json"]))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `(\\S+)` `(\\S+)` `(\\S+)` \\| `(\\S+)` \\|$").FindAllStringSubmatch(text, -1)
	if len(rows) != 2 || s.Peer.PublicKey.String() != rows[0][3] {
		t.Fatalf("finds %q", rows)
	}
	for _, row := range rows {
		key, err := events.ParseKey(row[3])
		if err != nil {
			t.Fatal(err)
		}
		if want := events.StateKey(row[1], row[2], key); row[4] != want {
			t.Errorf("the key in the bucket is %s, want %s", row[4], want)
		}
	}
}
