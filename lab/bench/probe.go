package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/wgherald/wgherald/lab/internal/lab"
)

// probeCounts are the probe's own counts, from its metrics.
type probeCounts struct {
	looks, lookSeconds        float64
	commits, commitSeconds    float64
	publishes, publishSeconds float64
}

func (p *probeCounts) fields() map[string]*float64 {
	return map[string]*float64{
		"look_seconds_count": &p.looks, "look_seconds_sum": &p.lookSeconds,
		"commit_seconds_count": &p.commits, "commit_seconds_sum": &p.commitSeconds,
		"publish_seconds_count": &p.publishes, "publish_seconds_sum": &p.publishSeconds,
	}
}

func (p *probeCounts) add(o probeCounts) {
	others := o.fields()
	for name, v := range p.fields() {
		*v += *others[name]
	}
}

func (p probeCounts) since(before probeCounts) probeCounts {
	was := before.fields()
	for name, v := range p.fields() {
		*v -= *was[name]
	}
	return p
}

// readProbe asks the probe.
func readProbe(ctx context.Context, l *lab.Lab) (probeCounts, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
		return inHub{l}.Dial(network, address)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+probeMetrics+"/metrics", nil)
	if err != nil {
		return probeCounts{}, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return probeCounts{}, fmt.Errorf("metrics of the probe: %w", err)
	}
	defer resp.Body.Close()
	counts, err := parseCounts(resp.Body)
	if err != nil {
		return counts, fmt.Errorf("metrics of the probe: %w", err)
	}
	return counts, nil
}

// parseCounts reads Prometheus's text format. The metrics that matter here have no labels.
func parseCounts(r io.Reader) (counts probeCounts, err error) {
	missing := counts.fields()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		name, ours := strings.CutPrefix(name, "wgherald_probe_")
		field, known := missing[name]
		if !ours || !known {
			continue
		}
		if *field, err = strconv.ParseFloat(text, 64); err != nil {
			return counts, fmt.Errorf("%s: %w", name, err)
		}
		delete(missing, name)
	}
	if err := lines.Err(); err != nil {
		return counts, err
	}
	for name := range missing {
		return counts, fmt.Errorf("there is no %s", name)
	}
	return counts, nil
}
