package telemetry_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// The table in the documentation is what the probe serves: its own metrics, and those that package app adds, which its source names.
func TestTheTableOfMetrics(t *testing.T) {
	t.Parallel()
	m := telemetry.New()
	m.Message(wgmsg.Initiation)
	m.Looked(time.Millisecond)
	added := regexp.MustCompile(`metrics\.(Gauge|Counter)\("(\w+)", "([^"]*)"`)
	sources, err := filepath.Glob("../app/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), "metrics.Gauge(") + strings.Count(string(source), "metrics.Counter("); n != len(added.FindAll(source, -1)) {
			t.Errorf("%s adds a metric in a form that is not understood here", path)
		}
		for _, call := range added.FindAllStringSubmatch(string(source), -1) {
			add := m.Counter
			if call[1] == "Gauge" {
				add = m.Gauge
			}
			add(call[2], call[3], func() float64 { return 0 })
		}
	}
	status, text := scrape(t, m, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	head, label := regexp.MustCompile(`^# HELP (wgherald_\w+) (.*)\.\n# TYPE \w+ (\w+)\n`), regexp.MustCompile(`(\w+)="`)
	var want []string
	for _, family := range regexp.MustCompile(`(?m)^# HELP wgherald_.*\n(?:# TYPE .*\n|wgherald_.*\n)+`).FindAllString(text, -1) {
		f := head.FindStringSubmatch(family)
		if f == nil {
			t.Fatalf("the help of this metric is no sentence: %s", family)
		}
		var labels []string
		for _, l := range label.FindAllStringSubmatch(family, -1) {
			if quoted := "`" + l[1] + "`"; l[1] != "le" && !slices.Contains(labels, quoted) {
				labels = append(labels, quoted)
			}
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", f[1], f[3], strings.Join(labels, " "), f[2]))
	}
	doc, err := os.ReadFile("../../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	have := regexp.MustCompile("(?m)^\\| `wgherald_probe_.*$").FindAllString(string(doc), -1)
	if !slices.Equal(want, have) {
		t.Errorf("the rows of docs/operating.md must be:\n%s", strings.Join(want, "\n"))
	}
}
