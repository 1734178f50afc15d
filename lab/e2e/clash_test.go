package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
)

// TestNodeClash starts a second probe under the same node's name, as a copied configuration does. The first one says so, with the rights that its identity has at
// the broker.
func TestNodeClash(t *testing.T) {
	t.Parallel()
	s := told(t, patience, lab.Options{})
	time.Sleep(11 * time.Second) // until then, acks of others may be those of an earlier run
	p, err := runner.Start(runner.Spec{
		Name: "second probe", NS: s.NS, Path: runner.Binary("probe"), Log: &s.log,
		Env: []string{
			"NATS_URL=nats://" + lab.NATS, "NATS_NKEY_FILE=" + filepath.Join(netns.Dir, "notifier-state", "identities", "probe.nk"),
			"PROBE_NODE=" + lab.Node, "PROBE_STATE=" + filepath.Join(netns.Dir, "second-state"),
		},
	})
	s.must(err)
	defer p.Kill()
	_, err = s.Probe.WaitLine(s.ctx, "another probe publishes as this node")
	s.must(err)
	text, err := s.scrape(probeMetrics)
	s.must(err)
	if !strings.Contains(text, "wgherald_probe_node_clashes_total ") || strings.Contains(text, "wgherald_probe_node_clashes_total 0\n") {
		t.Error("the metrics do not count it")
	}
}
