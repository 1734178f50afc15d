package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// describe names the machine and what its disk needs for a durable write, the unit of every latency here. The directory is one that the services'
// state is in.
func describe(dir string) (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	syncs, err := syncTimes(dir)
	if err != nil {
		return "", err
	}
	text := func(b []byte) string { s, _, _ := bytes.Cut(b, []byte{0}); return string(s) }
	return fmt.Sprintf("Machine: %s, %d cores, %s %s %s, %s\nState:   on %s, where 4 KiB and fdatasync take %s ms at p50, %s ms at p99; 1-minute load before: %s\n",
		cpuModel(), runtime.NumCPU(), text(u.Sysname[:]), text(u.Release[:]), text(u.Machine[:]), runtime.Version(),
		fileSystem(string(mounts), dir), ms(quantile(syncs, 0.5)), ms(quantile(syncs, 0.99)), strings.Fields(string(load))[0]), nil
}

// cpuModel is what the first processor is called. Not every architecture tells.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unnamed CPU"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unnamed CPU"
}

// fileSystem is the type of the file system that holds dir, by the mounts in the format of /proc/self/mountinfo (proc_pid_mountinfo(5)).
func fileSystem(mountinfo, dir string) string {
	longest, found := "", "an unknown file system"
	for line := range strings.Lines(mountinfo) {
		mount, super, ok := strings.Cut(line, " - ")
		fields, types := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 5 || len(types) < 1 {
			continue
		}
		at := fields[4]
		if inside := at == "/" || dir == at || strings.HasPrefix(dir, at+"/"); inside && len(at) >= len(longest) {
			longest, found = at, types[0] // a later mount hides an earlier one
		}
	}
	return found
}

// syncTimes returns how long durable appends to a file take, sorted.
func syncTimes(dir string) ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var times []time.Duration
	for range 200 {
		began := time.Now()
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return nil, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
		time.Sleep(5 * time.Millisecond) // as far apart as events are, rather than a queue of writes
	}
	slices.Sort(times)
	return times, nil
}
