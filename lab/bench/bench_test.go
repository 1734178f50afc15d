package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tt := range []struct {
		name   string
		sorted []int
		q      float64
		want   int
	}{
		{"median of one", []int{7}, 0.5, 7},
		{"99th percentile of one", []int{7}, 0.99, 7},
		{"median of an even number is the lower one", []int{1, 2, 3, 4}, 0.5, 2},
		{"median of an odd number", []int{1, 2, 3}, 0.5, 2},
		{"99th of a hundred", hundred, 0.99, 99},
		{"all of them", hundred, 1, 100},
		{"none of them", hundred, 0, 1},
	} {
		if got := quantile(tt.sorted, tt.q); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for want, values := range map[float64][]float64{2: {3, 1, 2}, 2.5: {4, 1, 3, 2}, 9: {9}} {
		if got := median(values); got != want {
			t.Errorf("median of %v is %v, want %v", values, got, want)
		}
	}
}

func TestFileSystem(t *testing.T) {
	t.Parallel()
	const mounts = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
31 22 0:26 / /var rw - xfs /dev/vdb rw
32 31 0:27 / /var/tmp rw master:1 - btrfs /dev/vdc rw
33 30 0:28 / /run rw - ramfs none rw
nonsense
`
	for dir, want := range map[string]string{
		"/home/x": "ext4", "/var/lib": "xfs", "/var/tmp": "btrfs", "/var/tmp/a/b": "btrfs", "/var/tmpx": "xfs", "/run/a": "ramfs",
	} {
		if got := fileSystem(mounts, dir); got != want {
			t.Errorf("%s is on %s, want %s", dir, got, want)
		}
	}
	if got := fileSystem("", "/x"); got != "an unknown file system" {
		t.Errorf("without mounts: %s", got)
	}
}

func TestBusyTime(t *testing.T) {
	t.Parallel()
	// user nice system idle iowait irq softirq steal guest guest_nice
	got, err := busyTime("cpu  100 20 30 5000 600 4 6 70 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if want := 1600 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "intr 1 2 3 4 5 6 7 8\n", "cpu 1 2 x 4 5 6 7 8\n"} {
		if _, err := busyTime(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestSizesIn(t *testing.T) {
	t.Parallel()
	const status = "Name:\tprobe\nVmHWM:\t   35200 kB\nVmRSS:\t   34000 kB\nRssAnon:\t 2 kB\nThreads:\t8\nBad:\tx kB\n"
	got, err := sizesIn(status, "VmRSS", "VmHWM")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint64{34000 << 10, 35200 << 10}, got); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"RSS", "Threads", "Bad"} {
		if _, err := sizesIn(status, name); err == nil {
			t.Errorf("%s is taken for a size", name)
		}
	}
}

func TestParseCounts(t *testing.T) {
	t.Parallel()
	const text = `# HELP wgherald_probe_look_seconds Time to read one device.
# TYPE wgherald_probe_look_seconds histogram
wgherald_probe_look_seconds_bucket{le="0.0001"} 0
wgherald_probe_look_seconds_sum 0.5
wgherald_probe_look_seconds_count 100
wgherald_probe_commit_seconds_sum 0.25
wgherald_probe_commit_seconds_count 50
wgherald_probe_publish_seconds_sum 1e-1
wgherald_probe_publish_seconds_count 20
go_goroutines 12
`
	got, err := parseCounts(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := probeCounts{looks: 100, lookSeconds: 0.5, commits: 50, commitSeconds: 0.25, publishes: 20, publishSeconds: 0.1}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, bad := range map[string]string{
		"a missing metric":    strings.Replace(text, "commit_seconds_sum", "x", 1),
		"what is no number":   strings.Replace(text, "0.25", "many", 1),
		"an answer of none":   "",
		"a name without ours": strings.ReplaceAll(text, "wgherald_probe_", ""),
	} {
		if _, err := parseCounts(strings.NewReader(bad)); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
}

func TestLatencyRow(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	after := func(took ...time.Duration) []*connect {
		var list []*connect
		for _, d := range took {
			c := &connect{initiation: start}
			if d != 0 {
				c.hook = start.Add(d)
			}
			list = append(list, c)
		}
		return list
	}
	const msec = time.Millisecond
	for _, tt := range []struct {
		name     string
		connects []*connect
		want     string
	}{
		{"as aimed at", after(3*msec, 4*msec, 5*msec, 14*msec), "x\t4.0\t14.0\t14.0\t14.0\t0\t0\tmet"},
		{"exactly the limit is not late", after(15*msec/3, 15*msec, 4*msec), "x\t5.0\t15.0\t15.0\t15.0\t0\t0\tmet"},
		{"a slow median", after(6*msec, 6*msec, 1*msec), "x\t6.0\t6.0\t6.0\t6.0\t0\t0\tmissed"},
		{"one late", after(1*msec, 2*msec, 16*msec), "x\t2.0\t16.0\t16.0\t16.0\t1\t0\tmissed"},
		{"one missing", after(1*msec, 0, 2*msec), "x\t1.0\t2.0\t2.0\t2.0\t0\t1\tmissed"},
		{"all missing", after(0, 0), "x\t\t\t\t\t0\t2\tnothing came"},
	} {
		got := latencyRow("x", tt.connects, func(c *connect) time.Time { return c.initiation }, func(c *connect) time.Time { return c.hook }, true)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}
