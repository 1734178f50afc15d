package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/wgherald/wgherald/lab/internal/runner"
)

const mib = 1 << 20

// memory reads what the services take, after whatever was measured before; on its own, after each client has connected once.
func (b *bench) memory(ctx context.Context) error {
	if b.sendsOf(b.lab.Clients[0]).initiation.At.IsZero() {
		if _, _, err := b.connectBatch(ctx, b.lab.Clients[0], b.lab.Clients[1:]); err != nil {
			return err
		}
	}
	rows := []string{cells("MiB", "resident", "of it not files", "most resident", "binary", "aim: resident")}
	for _, s := range []struct {
		name string
		pid  int
		aim  uint64 // bytes
	}{
		{"probe", b.lab.Probe.PID(), 40 * mib},
		{"notifier", b.lab.Notifier.PID(), 80 * mib},
	} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
		if err != nil {
			return err
		}
		sizes, err := sizesIn(string(status), "VmRSS", "RssAnon", "VmHWM")
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		var binary os.FileInfo
		if err := b.lab.NS.Do(func() (err error) {
			binary, err = os.Stat(runner.Binary(s.name))
			return err
		}); err != nil {
			return err
		}
		inMiB := func(bytes uint64) string { return fmt.Sprintf("%.1f", float64(bytes)/mib) }
		rows = append(rows, cells(s.name, inMiB(sizes[0]), inMiB(sizes[1]), inMiB(sizes[2]), inMiB(uint64(binary.Size())),
			fmt.Sprintf("≤ %d  %s", s.aim/mib, met(sizes[0] <= s.aim))))
	}
	table(b.out, "Memory of the services; the notifier with its embedded broker", rows...)
	return nil
}

// sizesIn returns fields of /proc/PID/status (proc_pid_status(5)), in bytes.
func sizesIn(status string, names ...string) ([]uint64, error) {
	sizes := make([]uint64, len(names))
	for i, name := range names {
		_, rest, ok := strings.Cut("\n"+status, "\n"+name+":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 || fields[1] != "kB" {
			return nil, fmt.Errorf("no size %s in the process's status", name)
		}
		kib, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("size %s of the process: %w", name, err)
		}
		sizes[i] = kib << 10
	}
	return sizes, nil
}
