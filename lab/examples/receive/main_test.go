package main

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	secret  = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	another = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
)

// TestNotifier has the real notifier send its test event.
func TestNotifier(t *testing.T) {
	t.Parallel()
	notifier := filepath.Join(t.TempDir(), "notifier")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", notifier, ".")
	build.Dir = filepath.Join("..", "..", "..", "services", "notifier")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tests := map[string]struct {
		secret      string
		says, tells string // the notifier, and the receiver
	}{
		"signed with the receiver's secret": {secret, "took the test event: status 204", "wg.peer.connected  signature ok  d2doZXJhbGQtdGVzdC1wZWVyLW5vdC1hLXJlYWwtaWQ="},
		"signed with another secret":        {another, "did not take the test event: the hook answered 400", "refused: unable to verify payload, err: no matching signature"},
		"not signed":                        {"", "did not take the test event: the hook answered 400", "refused: unable to verify payload, err: missing required headers"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var printed bytes.Buffer
			h, err := receiver(secret, &printed)
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(h)
			defer server.Close()
			try := exec.CommandContext(t.Context(), notifier, "try", "default")
			try.Env = append(os.Environ(), "WEBHOOK_URL="+server.URL+"/hook", "WEBHOOK_SECRET="+tt.secret, "NOTIFIER_HOOKS=", "NOTIFIER_STATE="+t.TempDir())
			said, _ := try.CombinedOutput()
			server.Close()
			if !strings.Contains(string(said), tt.says) {
				t.Errorf("the notifier says %q, want %q", said, tt.says)
			}
			if !strings.Contains(printed.String(), tt.tells) {
				t.Errorf("the receiver says %q, want %q", printed.String(), tt.tells)
			}
		})
	}
}

func TestNoSecret(t *testing.T) {
	t.Parallel()
	for _, wrong := range []string{"", "whsec_!", "swordfish"} {
		if _, err := receiver(wrong, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "WEBHOOK_SECRET") || strings.Contains(err.Error(), "swordfish") {
			t.Errorf("%q: error %v", wrong, err)
		}
	}
}
