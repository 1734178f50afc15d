package privilege_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/services/notifier/internal/privilege"
)

// childVar has this program drop what it has and tell what is left, instead of running tests. Its value is whether root may.
const childVar = "PRIVILEGE_TEST_ALLOW_ROOT"

func TestMain(m *testing.M) {
	if allow, ok := os.LookupEnv(childVar); ok {
		os.Exit(child(allow == "true"))
	}
	os.Exit(m.Run())
}

func child(allowRoot bool) int {
	err := privilege.Drop(allowRoot)
	if errors.Is(err, privilege.ErrRoot) {
		fmt.Println("refused:", err)
		return 2
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go func() { // one more thread
		runtime.LockOSThread()
		select {}
	}()
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(threads) < 2 {
		fmt.Println(threads, err)
		return 1
	}
	for _, status := range threads {
		text, err := os.ReadFile(status)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(regexp.MustCompile(`(?m)^(Cap(Inh|Prm|Eff|Amb|Bnd)|NoNewPrivs):.*$`).FindAllString(string(text), -1))
	}
	return 0
}

func TestDrop(t *testing.T) {
	t.Parallel()
	const none = "0000000000000000"
	for name, tt := range map[string]struct {
		allowRoot bool
		user      uint32
		ambient   []uintptr
		code      int
		keeps     bool // its bounding set, for which it lacks CAP_SETPCAP
	}{
		"root":                               {code: 2},
		"root, allowed":                      {allowRoot: true},
		"another user":                       {user: 65534, keeps: true},
		"another user with capabilities":     {user: 65534, ambient: []uintptr{unix.CAP_NET_RAW}, keeps: true},
		"another user who may drop them all": {user: 65534, ambient: []uintptr{unix.CAP_SETPCAP, unix.CAP_NET_RAW}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if os.Geteuid() != 0 {
				t.Skip("only root becomes another user")
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = []string{fmt.Sprint(childVar, "=", tt.allowRoot)}
			cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: tt.ambient}
			if tt.user != 0 {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: tt.user, Gid: tt.user}
			}
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Fatalf("exit code %d, want %d: %v: %s", code, tt.code, err, out)
			}
			if tt.code == 2 {
				for _, text := range []string{"does not run as root", "NOTIFIER_ALLOW_ROOT=true", "a user of its own"} {
					if !strings.Contains(string(out), text) {
						t.Errorf("it does not say %q: %s", text, out)
					}
				}
				return
			}
			want := []string{"CapInh", "CapPrm", "CapEff", "CapAmb"}
			if !tt.keeps {
				want = append(want, "CapBnd")
			}
			for line := range strings.Lines(string(out)) {
				for _, set := range want {
					if !strings.Contains(line, set+":\t"+none) {
						t.Errorf("%s is not empty: %s", set, line)
					}
				}
				if !strings.Contains(line, "NoNewPrivs:\t1") {
					t.Errorf("no_new_privs is not set: %s", line)
				}
			}
		})
	}
}
