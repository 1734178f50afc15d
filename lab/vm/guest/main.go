// Command guest is the first process of the guest, and a second one that acts out the story of package vm. The first one only waits for the second, because
// when the first process of a machine crashes, the kernel takes the machine down with what has not been written to the console yet.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds the story. The test waits a minute longer.
const limit = 5 * time.Minute

func main() {
	if os.Getpid() != 1 {
		os.Exit(run())
	}
	if err := start(); err != nil {
		fmt.Println("guest:", err)
	}
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1) // waits until everything is written (tcdrain)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		panic(err) // which ends the machine, too
	}
}

// start makes the machine ready and waits for the second process.
func start() error {
	for dir, fs := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	modules, err := filepath.Glob("/modules/*") // sorted, and so named that each comes after those it needs
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	second := exec.Command("/init")
	second.Stdout, second.Stderr = os.Stdout, os.Stderr
	return second.Run()
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func run() int {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := act(ctx); err != nil {
		fmt.Println("guest:", err)
		return 1
	}
	return 0
}
