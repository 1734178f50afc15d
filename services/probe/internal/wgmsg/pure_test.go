package wgmsg

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestPackageStaysPure keeps I/O and clocks out: nothing below the package may reach the network, and the package itself may not ask the system.
// (The standard library's own encoding and crypto packages reach os and time, so those are forbidden to the package, not to all below it.)
func TestPackageStaysPure(t *testing.T) {
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
		}
		return strings.Fields(string(out))
	}
	for _, forbidden := range []string{"net", "net/http", "os/exec", "log", "log/slog", "golang.org/x/sys/unix"} {
		if slices.Contains(list("-deps", "."), forbidden) {
			t.Errorf("the package depends on %s", forbidden)
		}
	}
	for _, forbidden := range []string{"os", "time", "syscall", "math/rand", "math/rand/v2", "crypto/rand"} {
		if slices.Contains(list("-f", `{{join .Imports "\n"}}`, "."), forbidden) {
			t.Errorf("the package imports %s", forbidden)
		}
	}
}
