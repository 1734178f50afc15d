package limit

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestPackageStaysPure keeps I/O out: nothing below the package may reach the system.
func TestPackageStaysPure(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, forbidden := range []string{"net", "os/exec", "log", "log/slog", "math/rand", "golang.org/x/sys/unix"} {
		if slices.Contains(strings.Fields(string(out)), forbidden) {
			t.Errorf("the package depends on %s", forbidden)
		}
	}
}
