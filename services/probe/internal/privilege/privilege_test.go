package privilege_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/services/probe/internal/privilege"
	"github.com/wgherald/wgherald/services/probe/internal/testreq"
)

// childVar has this program give up what it has and try what is left, instead of running tests. Its value is the directory that it plays in.
const childVar = "PRIVILEGE_TEST_CHILD"

func TestMain(m *testing.M) {
	dir := os.Getenv(childVar)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := child(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// layout is what is in the directory before the child starts; links are written with an arrow.
var layout = []string{
	"state/probe.db", "outside/secret", "names/wg.conf", "certs/ca.pem -> v1/ca.pem", "certs/v1/ca.pem", "certs/v2/ca.pem", "public/hosts", "public/other",
	"run/wireguard/",
	"linked/names -> ../far/names", "far/names", "conf/",
}

// child prints what it can still do.
func child(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	opened, err := os.OpenFile(at("outside/open"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := net.Listen("unix", at("run/wireguard/wg0.sock")); err != nil {
		return err
	}
	held, err := privilege.Drop(privilege.Files{
		State:   at("state"),
		Again:   []string{at("names/wg.conf"), at("certs/ca.pem"), at("linked/names"), at("conf/later/names"), "/names"},
		Public:  []string{at("public/hosts")},
		Sockets: at("run/wireguard"),
	})
	if err != nil {
		return err
	}
	read := func(name string) error { _, err := os.ReadFile(at(name)); return err }
	write := func(name string) error { return os.WriteFile(at(name), []byte("new"), 0o600) }
	tries := []struct {
		what string
		err  error
	}{
		{"read a file elsewhere", read("outside/secret")},
		{"write a file elsewhere", write("outside/new")},
		{"list a directory elsewhere", func() error { _, err := os.ReadDir(at("outside")); return err }()},
		{"write to what was open before", func() error { _, err := opened.WriteString("x"); return errors.Join(err, opened.Truncate(0)) }()},
		{"read the state", read("state/probe.db")},
		{"write the state", write("state/new")},
		{"remove from the state", os.Remove(at("state/new"))},
		{"run a program", exec.Command("/proc/self/exe").Run()},
		{"read a name file", read("names/wg.conf")},
		{"write a name file", write("names/wg.conf")},
		{"read a file that a link leads to", read("linked/names")},
		{"read what is beside a public file", read("public/other")},
		{"read a public file", read("public/hosts")},
		{"list the sockets", func() error { _, err := os.ReadDir(at("run/wireguard")); return err }()},
		{"connect to a socket", func() error { _, err := net.Dial("unix", at("run/wireguard/wg0.sock")); return err }()},
	}
	// Who changes files is somebody else, who is not confined: the parent, when a line comes.
	fmt.Println("change")
	if _, err := fmt.Scanln(); err != nil && err.Error() != "unexpected newline" {
		return err
	}
	tries = append(tries, []struct {
		what string
		err  error
	}{
		{"read a name file that another was renamed over", read("names/wg.conf")},
		{"read a certificate behind a link that leads elsewhere now", read("certs/ca.pem")},
		{"read a name file in a directory made since", read("conf/later/names")},
		{"list the sockets' directory, made anew", func() error { _, err := os.ReadDir(at("run/wireguard")); return err }()},
	}...)
	result := map[string]string{"landlock": held.Landlock}
	for _, try := range tries {
		result[try.what] = "yes"
		if try.err != nil {
			result[try.what] = fmt.Sprint(errors.Is(try.err, fs.ErrPermission), " ", try.err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// TestFiles: what is open stays open, what is needed can be opened, whoever changes it meanwhile, and nothing else.
func TestFiles(t *testing.T) {
	t.Parallel()
	if unix.Geteuid() != 0 {
		testreq.Skip(t, testreq.E2E, "only root has the capabilities to keep")
	}
	if abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 {
		t.Skipf("this kernel has no Landlock (%v), and then the probe does without", errno)
	} else if abi < 3 {
		t.Skipf("this kernel's Landlock, ABI %d, is older than what is tried here", abi)
	}
	dir, err := os.MkdirTemp("", "privilege-*") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	for _, item := range layout {
		path, target, link := strings.Cut(item, " -> ")
		path = filepath.Join(dir, path)
		must(os.MkdirAll(filepath.Dir(path), 0o700))
		switch {
		case link:
			must(os.Symlink(target, path))
		case strings.HasSuffix(item, "/"):
			must(os.MkdirAll(path, 0o700))
		default:
			must(os.WriteFile(path, []byte("old"), 0o600))
		}
	}

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{childVar + "=" + dir}
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	must(err)
	stdout, err := cmd.StdoutPipe()
	must(err, cmd.Start())
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || lines.Text() != "change" {
		t.Fatalf("it says %q: %v", lines.Text(), cmd.Wait())
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	must(
		os.WriteFile(at("names/new"), nil, 0o600), os.Rename(at("names/new"), at("names/wg.conf")),
		os.Symlink("v2/ca.pem", at("certs/new")), os.Rename(at("certs/new"), at("certs/ca.pem")),
		os.Mkdir(at("conf/later"), 0o700), os.WriteFile(at("conf/later/names"), nil, 0o600),
		os.RemoveAll(at("run/wireguard")), os.Mkdir(at("run/wireguard"), 0o700),
	)
	_, err = fmt.Fprintln(stdin)
	must(err)
	if !lines.Scan() {
		t.Fatalf("it says nothing: %v", cmd.Wait())
	}
	got := map[string]string{}
	must(json.Unmarshal(lines.Bytes(), &got), cmd.Wait())
	if !strings.HasPrefix(got["landlock"], "ABI ") {
		t.Errorf("what holds is called %q", got["landlock"])
	}
	delete(got, "landlock")
	for what, result := range got {
		if strings.HasPrefix(result, "true ") { // refused, as it should be where it is
			got[what] = "no"
		}
	}
	want := map[string]string{
		"read a file elsewhere": "no", "write a file elsewhere": "no", "list a directory elsewhere": "no", "write to what was open before": "yes",
		"read the state": "yes", "write the state": "yes", "remove from the state": "yes", "run a program": "no",
		"read a name file": "yes", "write a name file": "no", "read a file that a link leads to": "yes",
		"read what is beside a public file": "no", "read a public file": "yes",
		"list the sockets": "yes", "connect to a socket": "yes",
		"read a name file that another was renamed over":            "yes",
		"read a certificate behind a link that leads elsewhere now": "yes",
		"read a name file in a directory made since":                "yes",
		"list the sockets' directory, made anew":                    "yes",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what can be done (-want +got):\n%s", diff)
	}
}
