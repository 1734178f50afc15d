package app

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The table in the documentation is what a notifier serves that has delivered an event and had one refused.
func TestTheTableOfMetrics(t *testing.T) {
	t.Parallel()
	sink := newSink(t)
	l := serving(t, "hooks:\n"+hookOf(sink, "ops", "", ""), nil)
	l.probe.tell("alice")
	sink.got(t, 1)
	sink.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	l.probe.tell("alice")
	l.metricBecomes(`dead_letters_total{class="rejected",hook="ops"}`, "1")

	head, label := regexp.MustCompile(`^# HELP (wgherald_\w+) (.*)\.\n# TYPE \w+ (\w+)\n`), regexp.MustCompile(`(\w+)="`)
	var want []string
	for _, family := range regexp.MustCompile(`(?m)^# HELP wgherald_.*\n(?:# TYPE .*\n|wgherald_.*\n)+`).FindAllString(l.scrape(), -1) {
		m := head.FindStringSubmatch(family)
		if m == nil {
			t.Fatalf("the help of this metric is no sentence: %s", family)
		}
		var labels []string
		for _, l := range label.FindAllStringSubmatch(family, -1) {
			if quoted := "`" + l[1] + "`"; l[1] != "le" && !slices.Contains(labels, quoted) {
				labels = append(labels, quoted)
			}
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", m[1], m[3], strings.Join(labels, " "), m[2]))
	}
	text, err := os.ReadFile("../../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	have := regexp.MustCompile("(?m)^\\| `wgherald_notifier_.*$").FindAllString(string(text), -1)
	if equal(t, "rows in docs/operating.md", want, have); t.Failed() {
		t.Logf("the rows must be:\n%s", strings.Join(want, "\n"))
	}
}
