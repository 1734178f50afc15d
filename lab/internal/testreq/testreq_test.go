package testreq

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		value string
		want  []string
		err   string
	}{
		"nothing required": {"", nil, ""},
		"one":              {"e2e", []string{E2E}, ""},
		"all":              {"e2e,vm,compose,kube", []string{E2E, VM, Compose, Kube}, ""},
		"misspelt":         {"e2e,vn", nil, `WGHERALD_REQUIRE: unknown word "vn", it takes a comma-separated choice of e2e, vm, compose, kube`},
		"space":            {"e2e, vm", nil, `WGHERALD_REQUIRE: unknown word " vm", it takes a comma-separated choice of e2e, vm, compose, kube`},
		"empty word":       {"e2e,", nil, `WGHERALD_REQUIRE: unknown word "", it takes a comma-separated choice of e2e, vm, compose, kube`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parse(tt.value)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			var text string
			if err != nil {
				text = err.Error()
			}
			if text != tt.err {
				t.Errorf("error %q, want %q", text, tt.err)
			}
		})
	}
}

// TestEnvironment fails a run that requires something unknown, even where no test asks.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	if _, err := parse(os.Getenv(Env)); err != nil {
		t.Error(err)
	}
}
