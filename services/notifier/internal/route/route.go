// Package route decides whether a hook wants an event.
//
// It is pure. A filter acts in the notifier and never in the consumer's configuration, so that changing it neither loses nor repeats a message:
// what a hook does not want is acknowledged without being sent.
package route

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/wgherald/wgherald/pkg/events"
)

// Rules are the filter of a hook as its owner writes it. An empty list lets everything pass; an event must pass every list, and it passes a list
// by matching one of its patterns. Patterns are those of path.Match, except that * and ? match a slash too, because public keys have slashes.
type Rules struct {
	Types      []string // event types
	Nodes      []string
	Interfaces []string // probe events have none and match no pattern
	Peers      []string // names or public keys; events that are not about a peer match no pattern
	Tags       []string // of the peer; one of its tags must match
	// Endpoints are networks in CIDR form, or single addresses. One of the endpoints that the event names must lie in one of them: where the peer is, or, when
	// it roamed, where it was. Of an endpoint that is told as a prefix only, the whole prefix must. Events without an endpoint match none.
	Endpoints []string
}

// Filter is compiled Rules. The zero Filter wants everything.
type Filter struct {
	types, nodes, interfaces, peers, tags list

	endpoints []netip.Prefix
}

// Compile checks the rules once. The error names every pattern that is wrong, and every type pattern that no event of the catalogue matches, which
// is a misspelling.
func Compile(r Rules) (Filter, error) {
	var f Filter
	var errs []error
	for _, field := range []struct {
		name     string
		patterns []string
		to       *list
	}{
		{"types", r.Types, &f.types},
		{"nodes", r.Nodes, &f.nodes},
		{"interfaces", r.Interfaces, &f.interfaces},
		{"peers", r.Peers, &f.peers},
		{"tags", r.Tags, &f.tags},
	} {
		for _, p := range field.patterns {
			if p == "" {
				errs = append(errs, fmt.Errorf("%s: empty pattern", field.name))
				continue
			}
			compiled := escape(p)
			if _, err := path.Match(compiled, ""); err != nil {
				errs = append(errs, fmt.Errorf("%s: pattern %.80q is malformed", field.name, p))
				continue
			}
			if field.to == &f.types && !slices.ContainsFunc(events.Types(), func(t events.Type) bool { return list{compiled}.match(string(t)) }) {
				errs = append(errs, fmt.Errorf("types: pattern %.80q matches no event type", p))
				continue
			}
			*field.to = append(*field.to, compiled)
		}
	}
	for _, text := range r.Endpoints {
		network, err := parseNetwork(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoints: %w", err))
			continue
		}
		f.endpoints = append(f.endpoints, network)
	}
	if err := errors.Join(errs...); err != nil {
		return Filter{}, err
	}
	return f, nil
}

// parseNetwork reads a CIDR or an address. Bits beyond the prefix are refused: whoever writes 10.0.0.7/8 may mean either.
func parseNetwork(text string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%.50q is neither a network, such as 203.0.113.0/24, nor an address", text)
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if masked := network.Masked(); network != masked {
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its prefix: want %s or %s", network, masked, network.Addr())
	}
	if network.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s: write it as an IPv4 network", network)
	}
	return network, nil
}

// Wants reports whether e passes the filter.
func (f Filter) Wants(e *events.Event) bool {
	c := e.Common()
	return (f.types == nil || f.types.match(string(e.Type))) &&
		(f.nodes == nil || f.nodes.match(c.Node)) &&
		(f.interfaces == nil || c.Interface != "" && f.interfaces.match(c.Interface)) &&
		(f.peers == nil || f.matchPeer(e)) &&
		(f.tags == nil || f.matchTag(e)) &&
		(f.endpoints == nil || slices.ContainsFunc(endpointsOf(e), f.matchEndpoint))
}

func (f Filter) matchPeer(e *events.Event) bool {
	if !strings.HasPrefix(string(e.Type), "wg.peer.") {
		return false
	}
	// The subject is the public key; a rejected peer has no more than that.
	p := e.Peer()
	return f.peers.match(e.Subject) || p != nil && p.Name != "" && f.peers.match(p.Name)
}

func (f Filter) matchTag(e *events.Event) bool {
	p := e.Peer()
	return p != nil && slices.ContainsFunc(p.Tags, f.tags.match)
}

// endpointsOf returns every endpoint that an event names.
func endpointsOf(e *events.Event) []string {
	var all []string
	if p := e.Peer(); p != nil {
		all = append(all, p.Endpoint)
	}
	switch d := e.Data.(type) {
	case *events.Roamed:
		all = append(all, d.From, d.To)
	case *events.Rejected:
		all = append(all, d.Endpoint)
	}
	return all
}

// matchEndpoint reports whether an endpoint lies in one of the networks for certain.
func (f Filter) matchEndpoint(endpoint string) bool {
	var at netip.Prefix
	if ap, err := netip.ParseAddrPort(endpoint); err == nil {
		addr := ap.Addr().Unmap().WithZone("")
		at = netip.PrefixFrom(addr, addr.BitLen())
	} else if at, err = netip.ParsePrefix(endpoint); err != nil {
		return false
	}
	return slices.ContainsFunc(f.endpoints, func(network netip.Prefix) bool {
		return network.Bits() <= at.Bits() && network.Contains(at.Addr())
	})
}

// list holds escaped patterns that were checked by Compile.
type list []string

func (l list) match(s string) bool {
	s = escape(s)
	return slices.ContainsFunc(l, func(pattern string) bool {
		ok, _ := path.Match(pattern, s) // Compile has refused malformed patterns
		return ok
	})
}

// escape takes from the slash the meaning that path.Match gives it. Names have no control characters.
func escape(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
