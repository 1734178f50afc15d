package tracker

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
)

// PeerState is what is remembered of a peer between looks and runs.
//
// A peer is configured or not, and a configured one is connected or not:
//
//	                 added                    a handshake that is new and younger than 180 s
//	not configured ─────────► disconnected ─────────────────────────────────────────────────► connected ─┐ roamed
//	      ▲                    │    ▲                                                           │  │  ▲──┘ changed
//	      └────────────────────┘    └───────────────────────────────────────────────────────────┘  │
//	      ▲     removed                 expired: 180 s after the last handshake                    │
//	      │                             interface_down: the interface went                         │
//	      └────────────────────────────────────────────────────────────────────────────────────────┘
//	            disconnected (removed), then removed
//
// Peers found at the first look at an interface are its baseline: they are announced as state, not reported as added.
type PeerState struct {
	Interface  string         `json:"interface"`
	PublicKey  events.Key     `json:"publicKey"`
	AllowedIPs []netip.Prefix `json:"allowedIPs"`
	Keepalive  time.Duration  `json:"keepalive"`
	// PresharedKey keeps only whether one is set: a print would be worth something to who steals the file, and means nothing in another run.
	PresharedKey bool           `json:"presharedKey"`
	Endpoint     netip.AddrPort `json:"endpoint,omitzero"`

	LastHandshake time.Time `json:"lastHandshake,omitzero"` // as the device last told it, connected or not
	RxBytes       uint64    `json:"rxBytes"`                // as the device last counted
	TxBytes       uint64    `json:"txBytes"`

	Connected bool            `json:"connected"`
	StartedAt time.Time       `json:"startedAt,omitzero"` // of the current session, or the last one
	RxBase    uint64          `json:"rxBase"`             // the device's count when it began
	TxBase    uint64          `json:"txBase"`
	LastSeen  events.Interval `json:"lastSeen,omitzero"`

	print         [16]byte      // of the preshared key, in this run
	handshakeBoot time.Duration // when LastHandshake was, on the clock that is never stepped
}

// fell reports whether the device counts less than before, or has forgotten a handshake: it is not the peer that was known, only its key.
func (p *PeerState) fell(o Peer) bool {
	return o.RxBytes < p.RxBytes || o.TxBytes < p.TxBytes || o.LastHandshake.IsZero() && !p.LastHandshake.IsZero()
}

func (p *PeerState) forgetCounters() {
	p.LastHandshake, p.RxBytes, p.TxBytes = time.Time{}, 0, 0
}

// take copies what the look found, apart from what decides whether the peer is connected.
func (p *PeerState) take(o Peer) {
	p.AllowedIPs, p.Keepalive, p.PresharedKey, p.print = o.AllowedIPs, o.Keepalive, o.PresharedKey.Set, o.PresharedKey.Print
	if o.Endpoint.IsValid() {
		p.Endpoint = o.Endpoint
	}
	p.LastHandshake, p.RxBytes, p.TxBytes = o.LastHandshake, o.RxBytes, o.TxBytes
}

// observePeers compares every peer of a look with what is known of it.
func (t *Tracker) observePeers(now Now, i *iface, d Device) Seen {
	seen := Seen{Configured: len(d.Peers)}
	// Without a look in this or an earlier run there is nothing to compare with: what is configured is the baseline.
	baseline := !i.looked && len(i.peers) == 0
	found := make(map[events.Key]bool, len(d.Peers))
	for _, o := range d.Peers {
		found[o.PublicKey] = true
	}
	for _, key := range sortedKeys(i.peers) {
		if !found[key] {
			t.remove(now, i, i.peers[key])
		}
	}
	for _, o := range d.Peers {
		p := i.peers[o.PublicKey]
		if p != nil && p.fell(o) {
			t.remove(now, i, p) // taken out and put in again between two looks
			p = nil
		}
		if p == nil {
			p = t.add(now, i, o, baseline)
		} else {
			t.reconfigure(now, i, p, o)
		}
		if t.live(now, i, p, o) {
			seen.Handshakes = append(seen.Handshakes, o.Endpoint)
		}
		if p.Connected {
			seen.Connected++
			if at := p.handshakeBoot + RejectAfterTime; seen.Connected == 1 || at < seen.Deadline {
				seen.Deadline = at
			}
		}
	}
	return seen
}

// add begins to remember a peer.
func (t *Tracker) add(now Now, i *iface, o Peer, baseline bool) *PeerState {
	p := &PeerState{Interface: i.Name, PublicKey: o.PublicKey}
	p.take(o)
	if old := i.age(now, o.LastHandshake, false) >= RejectAfterTime; !baseline || !old {
		p.LastHandshake = time.Time{} // for live to find
	}
	if !i.blind {
		p.RxBytes, p.TxBytes = 0, 0 // all that is counted was counted while watched; otherwise it belongs to no session that is known
	}
	i.peers[o.PublicKey] = p
	id := PeerID{i.Name, o.PublicKey}
	delete(t.removed, id)
	t.dirty[id] = true
	t.announce[id] = true
	if !baseline {
		t.Say(now.Wall, &events.Added{Common: t.common(now, i), Peer: t.told(p)})
	}
	return p
}

// remove forgets a peer.
func (t *Tracker) remove(now Now, i *iface, p *PeerState) {
	if p.Connected {
		t.disconnect(now, i, p, now.Wall, events.PeerWasRemoved)
	}
	t.Say(now.Wall, &events.Removed{Common: t.common(now, i), Peer: t.told(p)})
	delete(i.peers, p.PublicKey)
	id := PeerID{i.Name, p.PublicKey}
	delete(t.dirty, id)
	delete(t.announce, id)
	t.removed[id] = true
}

// reconfigure says what changed in a peer's configuration.
func (t *Tracker) reconfigure(now Now, i *iface, p *PeerState, o Peer) {
	var c events.PeerChanges
	if !slices.Equal(p.AllowedIPs, o.AllowedIPs) {
		c.AllowedIPs = &events.Change[[]netip.Prefix]{From: bounded(p.AllowedIPs), To: bounded(o.AllowedIPs)}
	}
	if p.Keepalive != o.Keepalive {
		c.KeepaliveSeconds = &events.Change[int]{From: seconds(p.Keepalive), To: seconds(o.Keepalive)}
	}
	switch was, is := p.PresharedKey, o.PresharedKey; {
	case !was && is.Set:
		c.PresharedKey = events.PresharedKeySet
	case was && !is.Set:
		c.PresharedKey = events.PresharedKeyUnset
	case was && p.print != ([16]byte{}) && p.print != is.Print:
		c.PresharedKey = events.PresharedKeyReplaced
	}
	p.AllowedIPs, p.Keepalive, p.PresharedKey, p.print = o.AllowedIPs, o.Keepalive, o.PresharedKey.Set, o.PresharedKey.Print
	if c != (events.PeerChanges{}) {
		t.mark(i, p)
		t.Say(now.Wall, &events.Changed{Common: t.common(now, i), Peer: t.told(p), Changes: c})
	}
}

// live decides whether the peer has a session and from where, and reports whether its last handshake moved.
func (t *Tracker) live(now Now, i *iface, p *PeerState, o Peer) (moved bool) {
	// Any other time is a new handshake, not only a later one: the device reads the wall clock, which may have been stepped back.
	moved = !o.LastHandshake.IsZero() && !o.LastHandshake.Equal(p.LastHandshake)
	if moved || p.handshakeBoot == 0 {
		p.handshakeBoot = now.Boot - i.age(now, o.LastHandshake, moved)
	}
	was, from := p.Connected, p.Endpoint
	if o.RxBytes > p.RxBytes && was {
		p.LastSeen = interval(i.lastLookOr(p.LastSeen.After), now.Wall)
		if moved && o.LastHandshake.After(p.LastSeen.After) {
			p.LastSeen = interval(o.LastHandshake, now.Wall)
		}
	}
	if moved && !was {
		p.Connected, p.StartedAt = true, o.LastHandshake
		p.RxBase, p.TxBase = p.RxBytes, p.TxBytes
		p.LastSeen = events.Interval{After: o.LastHandshake, Before: o.LastHandshake}
	}
	if moved || was && o.Endpoint != from {
		t.dirty[PeerID{i.Name, p.PublicKey}] = true
	}
	p.take(o)

	if moved && !was {
		t.mark(i, p)
		t.Say(p.StartedAt, &events.Connected{Common: t.common(now, i), Peer: t.told(p), Session: p.session(p.StartedAt)})
	}
	if overdue := now.Boot - p.handshakeBoot - RejectAfterTime; p.Connected && overdue >= 0 {
		t.disconnect(now, i, p, now.Wall.Add(-overdue), events.Expired)
		return moved
	}
	if was && o.Endpoint.IsValid() && o.Endpoint != from {
		t.mark(i, p)
		t.Say(now.Wall, &events.Roamed{
			Common: t.common(now, i), Peer: t.told(p), Session: p.session(now.Wall),
			From: t.cfg.Endpoint(from), To: t.cfg.Endpoint(o.Endpoint),
		})
	}
	return moved
}

// age returns how long ago a handshake was. The device tells wall time, which may have been stepped since; when the look before this one did not
// have the handshake yet, it is younger than that look, whatever the wall clock says.
func (i *iface) age(now Now, handshake time.Time, moved bool) time.Duration {
	age := max(0, now.Wall.Sub(handshake))
	if moved && i.looked {
		age = min(age, now.Boot-i.lastLook.Boot)
	}
	return age
}

// interval returns the span between two readings of the wall clock, which may have been stepped back in between.
func interval(after, before time.Time) events.Interval {
	if after.After(before) {
		after = before
	}
	return events.Interval{After: after, Before: before}
}

// lastLookOr returns when the interface was last looked at in this run, or else the given time from an earlier run.
func (i *iface) lastLookOr(earlier time.Time) time.Time {
	if i.looked {
		return i.lastLook.Wall
	}
	return earlier
}

// disconnect ends a peer's session.
func (t *Tracker) disconnect(now Now, i *iface, p *PeerState, at time.Time, reason events.Reason) {
	p.Connected = false
	t.mark(i, p)
	t.Say(at, &events.Disconnected{Common: t.common(now, i), Peer: t.told(p), Session: p.session(at), Reason: reason})
}

// mark notes that a peer's state is to be stored and announced.
func (t *Tracker) mark(i *iface, p *PeerState) {
	id := PeerID{i.Name, p.PublicKey}
	t.dirty[id] = true
	t.announce[id] = true
}

// told returns the peer as it is told to others.
func (t *Tracker) told(p *PeerState) events.Peer {
	name, tags := t.cfg.Name(p.PublicKey)
	ips := bounded(p.AllowedIPs)
	told := events.Peer{
		PublicKey:        p.PublicKey,
		Name:             name,
		Tags:             tags,
		AllowedIPs:       ips,
		MoreAllowedIPs:   len(p.AllowedIPs) - len(ips),
		KeepaliveSeconds: seconds(p.Keepalive),
		PresharedKey:     p.PresharedKey,
	}
	if p.Endpoint.IsValid() {
		told.Endpoint = t.cfg.Endpoint(p.Endpoint)
	}
	return told
}

// state returns the peer as latecomers find it.
func (t *Tracker) state(now Now, p *PeerState) events.State {
	s := events.State{Node: t.cfg.Node, Interface: p.Interface, Peer: t.told(p), Connected: p.Connected, UpdatedAt: now.Wall}
	if !p.StartedAt.IsZero() {
		session := p.session(p.LastSeen.Before)
		s.Session = &session
	}
	return s
}

// session returns the session as of the given time.
func (p *PeerState) session(at time.Time) events.Session {
	return events.Session{
		StartedAt:       p.StartedAt,
		LastHandshakeAt: p.LastHandshake,
		LastSeen:        p.LastSeen,
		RxBytes:         p.RxBytes - min(p.RxBase, p.RxBytes),
		TxBytes:         p.TxBytes - min(p.TxBase, p.TxBytes),
		DurationSeconds: int64(max(0, at.Sub(p.StartedAt)) / time.Second),
	}
}

func seconds(d time.Duration) int { return int(d / time.Second) }

// maxAllowedIPs bounds a list of allowed IPs in an event: three such lists in the longest notation stay well below events.MaxSize.
const maxAllowedIPs = 256

// bounded returns the head of a list, never nil, so that an empty one is not encoded as null.
func bounded(p []netip.Prefix) []netip.Prefix {
	return append([]netip.Prefix{}, p[:min(len(p), maxAllowedIPs)]...)
}

// EndpointForm says how much of an endpoint is told.
type EndpointForm string

// The forms of an endpoint. An address tells where a person is.
const (
	EndpointFull   EndpointForm = "full"   // address and port
	EndpointPrefix EndpointForm = "prefix" // the network: /24 of IPv4, /48 of IPv6
	EndpointNone   EndpointForm = "none"
)

// Render returns the endpoint in this form.
func (f EndpointForm) Render(ap netip.AddrPort) string {
	switch f {
	case EndpointFull:
		return ap.String()
	case EndpointPrefix:
		bits := 48
		if ap.Addr().Is4() {
			bits = 24
		}
		prefix, err := ap.Addr().WithZone("").Prefix(bits)
		if err != nil {
			return "" // an invalid address has no prefix
		}
		return prefix.String()
	case EndpointNone:
		return ""
	default:
		panic(fmt.Sprintf("endpoint form %q", string(f)))
	}
}
