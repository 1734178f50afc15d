// Package privilege keeps the notifier from being root, and takes from it what capabilities it was started with: it needs none, talks to the whole world, and
// reads what strangers answer.
//
// The probe has a package of the same name that keeps two. They share nothing, for the services share nothing but pkg/events.
package privilege

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// ErrRoot is the error of Drop for root.
var ErrRoot = errors.New("the notifier does not run as root: it needs no privilege, and talks to the world; run it as a user of its own, " +
	"who owns NOTIFIER_STATE and can read the files it is given (deploy/compose.yaml has 65534), or set NOTIFIER_ALLOW_ROOT=true")

// Drop gives up all capabilities for good, in all threads, and the right to gain any by running a program. Without allowRoot it refuses root instead:
// even without capabilities, nearly every file of the system is root's.
func Drop(allowRoot bool) error {
	if os.Geteuid() == 0 && !allowRoot {
		return ErrRoot
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := bound(); err != nil {
		return fmt.Errorf("drop capabilities from the bounding set: %w", err)
	}
	if err := cap.NewSet().SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// bound empties the bounding set where that is allowed. Elsewhere, no_new_privs has it give nothing.
func bound() error {
	have := cap.GetProc()
	if may, err := have.GetFlag(cap.Permitted, cap.SETPCAP); err != nil || !may {
		return err
	}
	if err := have.SetFlag(cap.Effective, true, cap.SETPCAP); err != nil {
		return err
	}
	if err := have.SetProc(); err != nil {
		return err
	}
	for v := range cap.MaxBits() {
		if err := cap.DropBound(v); err != nil {
			return err
		}
	}
	return nil
}
