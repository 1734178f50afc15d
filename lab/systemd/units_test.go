// Package systemd holds the units of deploy/systemd against what the services do.
package systemd

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestCallsThatServicesNeed: what a service does at its start to give up rights is among the system calls that its unit allows. Without the first, it
// does not start; without Landlock's, the probe goes on and is confined less.
func TestCallsThatServicesNeed(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("only systemd-analyze knows systemd's groups of system calls: ", err)
	}
	for unit, needed := range map[string][]string{
		"wgherald-notifier": {"prctl", "capget", "capset"},
		"wgherald-probe":    {"prctl", "capget", "capset", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"},
	} {
		allowed := allowed(t, unit)
		for _, call := range needed {
			if !allowed[call] {
				t.Errorf("%s.service does not allow %s", unit, call)
			}
		}
		for _, call := range []string{"init_module", "mount", "ptrace", "reboot"} {
			if allowed[call] {
				t.Errorf("%s.service allows %s, or the filter is not read as systemd reads it", unit, call)
			}
		}
	}
}

// allowed are the system calls that a unit allows: its first filter must be a list of them, and what follows adds to it or, after ~, takes away (systemd.exec(5)).
func allowed(t *testing.T, unit string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../deploy/systemd/" + unit + ".service")
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]bool{}
	first := true
	for line := range strings.Lines(string(text)) {
		filter, ok := strings.CutPrefix(line, "SystemCallFilter=")
		if !ok {
			continue
		}
		filter, without := strings.CutPrefix(filter, "~")
		if first && without {
			t.Fatalf("the first filter of %s.service is no list of what is allowed", unit)
		}
		for _, item := range strings.Fields(filter) {
			for _, call := range expand(t, item) {
				calls[call] = !without
			}
		}
		if first {
			for _, call := range expand(t, "@default") {
				calls[call] = true
			}
		}
		first = false
	}
	return calls
}

// expand returns the system calls of a group, or the one that it is.
func expand(t *testing.T, item string) (calls []string) {
	t.Helper()
	if !strings.HasPrefix(item, "@") {
		return []string{item}
	}
	out, err := exec.Command("systemd-analyze", "syscall-filter", "--no-pager", item).Output()
	if err != nil {
		t.Fatalf("systemd-analyze syscall-filter %s: %v", item, err)
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && line != item && !strings.HasPrefix(line, "#") {
			calls = append(calls, expand(t, line)...)
		}
	}
	return calls
}
