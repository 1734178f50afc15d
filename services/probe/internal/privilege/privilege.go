// Package privilege gives up what the probe does not need, for good and in all threads: capabilities beside two, the right to gain others by running a
// program, and with Landlock, where the kernel has it, every file that it has no business with.
//
// What needs more, such as the state directory of another user's, is opened before. It does not change the user: whoever starts the probe
// chooses that. The notifier has a few lines like these of its own, for the services share nothing but pkg/events.
package privilege

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// kept are the capabilities that the probe needs and keeps.
var kept = []struct {
	value   cap.Value
	purpose string
}{
	{cap.NET_ADMIN, "to read devices"},
	{cap.NET_RAW, "to see handshakes"},
}

// remedy tells how to give them.
const remedy = "give it both: with compose by cap_add: [NET_ADMIN, NET_RAW], with systemd by AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW, " +
	"by hand as root, or by setcap cap_net_admin,cap_net_raw+ep on its file"

// Check returns an error that names the capabilities that the probe was not given, what each is for, and how to give them.
func Check() error {
	have := cap.GetProc()
	var missing []string
	for _, k := range kept {
		if ok, err := have.GetFlag(cap.Permitted, k.value); err != nil || !ok {
			missing = append(missing, fmt.Sprintf("%s (%s)", strings.ToUpper(k.value.String()), k.purpose))
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("the probe lacks %s: %s", strings.Join(missing, " and "), remedy)
}

// Files are what the probe may still open after Drop. What is open already stays open.
type Files struct {
	State   string   // directory that is read and written
	Again   []string // files that are read again, and over which others may be renamed
	Public  []string // files and trees that are read
	Sockets string   // directory of Unix sockets to connect to; it may be missing, and be made anew
}

// Held tells what holds after Drop, in words for the log.
type Held struct {
	Capabilities string
	Bounding     string
	Landlock     string
}

// Drop keeps the capabilities that Check asks for and no other: effective and permitted, and none to hand on. A program that is run gains none, and
// with Landlock none is run at all, no file opened but those, and no abstract socket of others reached, through which container engines have been
// taken over.
//
// Landlock is used as far as the kernel has it: that it does not work is no error, and Held tells.
func Drop(f Files) (Held, error) {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return Held{}, fmt.Errorf("set no_new_privs: %w", err)
	}
	// First, since the paths of the rules are opened, and some belong to others.
	held := "none: every file that this user may open can be opened"
	if abi, err := confine(f); err != nil {
		held += fmt.Sprintf(" (%v)", err)
	} else {
		held = fmt.Sprintf("ABI %d", abi)
	}
	bounding, err := bound()
	if err != nil {
		return Held{}, fmt.Errorf("drop capabilities from the bounding set: %w", err)
	}
	only := cap.NewSet() // without inheritable ones there are no ambient ones
	var names []string
	for _, k := range kept {
		names = append(names, k.value.String())
		for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
			if err := only.SetFlag(flag, true, k.value); err != nil {
				return Held{}, fmt.Errorf("keep %s: %w", k.value, err)
			}
		}
	}
	if err := only.SetProc(); err != nil {
		return Held{}, fmt.Errorf("drop capabilities: %w", err)
	}
	return Held{Capabilities: strings.Join(names, ","), Bounding: bounding, Landlock: held}, nil
}

// bound takes all others out of the bounding set, which takes CAP_SETPCAP. It says what is left.
func bound() (string, error) {
	var others []cap.Value
	for v := range cap.MaxBits() {
		in, err := cap.GetBound(v)
		if err != nil {
			return "", err
		}
		if in && v != cap.NET_ADMIN && v != cap.NET_RAW {
			others = append(others, v)
		}
	}
	have := cap.GetProc()
	switch may, err := have.GetFlag(cap.Permitted, cap.SETPCAP); {
	case err != nil:
		return "", err
	case len(others) == 0:
		return "the same", nil
	case !may:
		return fmt.Sprintf("%d more, of no use with no_new_privs", len(others)), nil
	}
	if err := have.SetFlag(cap.Effective, true, cap.SETPCAP); err != nil {
		return "", err
	}
	if err := have.SetProc(); err != nil {
		return "", err
	}
	return "the same", cap.DropBound(others...)
}

// What Landlock lets the probe do with the files of each kind. Nothing may be executed.
const (
	readFile  = landlock.AccessFSSet(ll.AccessFSReadFile)
	readTree  = readFile | ll.AccessFSReadDir
	readWrite = readTree | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSRemoveFile
)

// confine restricts the file system as far as the kernel can, and returns the version that tells how far that is.
func confine(f Files) (abi int, err error) {
	if abi, err = ll.LandlockGetABIVersion(); err != nil {
		return 0, withoutLandlock(err)
	}
	var rules []landlock.Rule
	grant := func(access landlock.AccessFSSet, path string) {
		// What cannot be reached now cannot be granted either, and is an error of whoever opens it.
		info, err := os.Stat(path)
		if err != nil {
			return
		}
		if !info.IsDir() {
			access &= ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
		}
		rules = append(rules, landlock.PathAccess(access, path))
	}
	grant(readWrite, f.State)
	for _, path := range f.Again {
		for _, place := range places(path) {
			grant(readFile, place)
		}
	}
	for _, path := range f.Public {
		grant(readTree, path)
	}
	// The directory is listed through its parent, for rules hold for the very directory that they were made for.
	parent := filepath.Dir(f.Sockets)
	grant(ll.AccessFSReadDir, parent)
	if _, err := os.Stat(f.Sockets); err == nil {
		parent = f.Sockets
	}
	grant(ll.AccessFSResolveUnix, parent)

	config := landlock.V11.BestEffort()
	config.HandledAccessNet = 0 // the broker's port may be any, and what is told of TCP does not hold for MPTCP
	// Not ScopeSignal: before Linux 6.15 it keeps the threads of one process from each other, and Go's runtime signals them.
	config.Scoped = ll.ScopeAbstractUnixSocket
	return abi, config.Restrict(rules...)
}

// withoutLandlock says why the kernel gives no version of Landlock.
func withoutLandlock(err error) error {
	why := "the kernel has no Landlock"
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		why = "Landlock is switched off: name it in the kernel's parameter lsm="
	case errors.Is(err, unix.EPERM): // no kernel's answer
		why = "a filter of system calls (seccomp), such as an older container engine's, forbids Landlock"
	}
	return fmt.Errorf("%s: %w", why, err)
}

// places returns what has to be granted for a file to be read by its name, whatever file has that name then: its directory, and that of the file that a link
// leads to now. Where a directory is missing, the one above it may see it made. The root directory would be everything: then it is the file itself.
func places(path string) []string {
	var out []string
	names := []string{path}
	if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
		names = append(names, target)
	}
	for _, name := range names {
		dir := filepath.Dir(name)
		for {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) || dir == "." {
				break
			}
			dir = filepath.Dir(dir)
		}
		if dir == "/" {
			dir = name
		}
		out = append(out, dir)
	}
	return out
}
