// Package testreq skips a test on a machine that lacks what the test needs, and fails it instead where that is required.
//
// WGHERALD_REQUIRE holds the required kinds, comma separated, from a closed list: a word that is not on it fails every test that asks, so that
// a misspelt requirement never turns into a silent skip.
package testreq

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Env is the variable that names the required kinds.
const Env = "WGHERALD_REQUIRE"

// The kinds of tests a machine may be unable to run.
const (
	E2E     = "e2e"     // root, network namespaces, TUN and packet sockets
	VM      = "vm"      // qemu and a kernel with WireGuard
	Compose = "compose" // a container engine
	Kube    = "kube"    // podman
)

// Skip skips t for reason, or fails it when kind is required.
func Skip(t testing.TB, kind, reason string) {
	t.Helper()
	required, err := parse(os.Getenv(Env))
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(required, kind) {
		t.Fatalf("%s=%s requires this test, and it cannot run here: %s", Env, kind, reason)
	}
	t.Skip(reason)
}

// parse returns the kinds in value, or an error that names the first unknown one.
func parse(value string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	known := []string{E2E, VM, Compose, Kube}
	words := strings.Split(value, ",")
	for _, w := range words {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("%s: unknown word %q, it takes a comma-separated choice of %s", Env, w, strings.Join(known, ", "))
		}
	}
	return words, nil
}
