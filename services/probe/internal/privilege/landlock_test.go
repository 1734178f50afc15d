package privilege

import (
	"strings"
	"syscall"
	"testing"
)

// TestWithoutLandlock: the three answers of landlock_create_ruleset(2) where there is no Landlock are told apart, since what helps is not the same.
func TestWithoutLandlock(t *testing.T) {
	t.Parallel()
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSYS:     "the kernel has no Landlock",
		syscall.EOPNOTSUPP: "Landlock is switched off",
		syscall.EPERM:      "a filter of system calls",
	} {
		if err := withoutLandlock(errno); !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", errno, err, want)
		}
	}
}
