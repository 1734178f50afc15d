package wgstate

import (
	"strings"
	"testing"
)

func TestFilter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		globs string
		takes string
		skips string
	}{
		{globs: "", takes: "wg0 home tun7"},
		{globs: "wg*,!wg-test*", takes: "wg0 wg-prod wg", skips: "wg-test wg-test1 eth0"},
		{globs: "!wg-test*,wg*", takes: "wg0", skips: "wg-test1 eth0"},
		{globs: "!wg9", takes: "wg0 home", skips: "wg9"},
		{globs: " wg0 , home ,", takes: "wg0 home", skips: "wg1"},
		{globs: "wg[0-3],office?", takes: "wg0 wg3 office1", skips: "wg4 office office12"},
	}
	for _, tt := range tests {
		t.Run(tt.globs, func(t *testing.T) {
			f, err := ParseGlobs(tt.globs)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range strings.Fields(tt.takes) {
				if !f.Match(name) {
					t.Errorf("%s is not taken", name)
				}
			}
			for _, name := range strings.Fields(tt.skips) {
				if f.Match(name) {
					t.Errorf("%s is taken", name)
				}
			}
		})
	}
}

func TestParseGlobsNamesEveryMalformedPattern(t *testing.T) {
	t.Parallel()
	_, err := ParseGlobs("wg*,wg[,!,![a-")
	if err == nil {
		t.Fatal("no error")
	}
	for _, bad := range []string{`"wg["`, `"!"`, `"![a-"`} {
		if !strings.Contains(err.Error(), bad) {
			t.Errorf("error does not name %s: %v", bad, err)
		}
	}
}
