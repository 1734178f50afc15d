package tracker

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// PeerState is what is remembered of a peer between looks and runs.
//
// A peer is configured or not, and a configured one is disconnected, connected or quiet. Quiet is disconnected, too, for everyone but the tracker: the
// peer was called silent or unreachable, and its session has not run out.
//
//	                 added                   connected: a handshake that is new and younger than 180 s
//	not configured ─────────► disconnected ─────────────────────────────────────────────────────────► connected ─┐ roamed
//	      ▲                     │  ▲   ▲                                                                │ │ │ ▲ ▲─┘ changed
//	      ├─────────────────────┘  │   └────────────────────────────────────────────────────────────────┘ │ │ │
//	      │      removed           │       disconnected: expired, 180 s after the last handshake;         │ │ │
//	      │                        │       interface_down, the interface went                             │ │ │ connected, resumed:
//	      │                        │                                     disconnected: silent, unreachable│ │ │ bytes or a handshake came
//	      │                        └─────────────────────────────── quiet ◄───────────────────────────────┘ │ │ before the session ran out
//	      │                          the session ran out: no event    └─────────────────────────────────────┼─┘
//	      └─────────────────────────────────────────────────────────────────────────────────────────────────┘
//	           disconnected (removed), then removed
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

	// While connected or quiet, of the current session:
	Connected bool            `json:"connected"`
	Quiet     bool            `json:"quiet,omitempty"`
	Resumed   bool            `json:"resumed,omitempty"` // it was quiet before
	StartedAt time.Time       `json:"startedAt,omitzero"`
	RxBase    uint64          `json:"rxBase"` // the device's count when it began
	TxBase    uint64          `json:"txBase"`
	LastSeen  events.Interval `json:"lastSeen,omitzero"`

	// On the clock that is never stepped; zero when that is not known, as after a reboot.
	HandshakeBoot time.Duration `json:"handshakeBoot,omitempty"` // when LastHandshake was
	StartedBoot   time.Duration `json:"startedBoot,omitempty"`   // when the session began

	Last  *events.Session `json:"last,omitempty"` // the session that ended last
	Signs signs           `json:"signs,omitzero"` // how it speaks
	// Stalled is true from the report that no session comes about until one does.
	Stalled bool `json:"stalled,omitempty"`

	// What the device counted when there was no session, in this run; a session's bytes are counted from there. A look may find bytes of a session whose
	// handshake it does not find yet, because the device is not read at one instant: so only attempts, theirs and ours, move it.
	idleRx, idleTx uint64

	print    [16]byte // of the preshared key, in this run
	knocking knocking
	tried    wgmsg.Timestamp // the newest of its initiations, to this incarnation of the interface and in this run
}

// fell reports whether the device counts less than before, or has forgotten a handshake: it is not the peer that was known, only its key.
func (p *PeerState) fell(o Peer) bool {
	return o.RxBytes < p.RxBytes || o.TxBytes < p.TxBytes || o.LastHandshake.IsZero() && !p.LastHandshake.IsZero()
}

// move notes where a peer is. The latest of several that were at one address has it.
func (i *iface) move(p *PeerState, to netip.AddrPort) {
	if i.at[bare(p.Endpoint)] == p {
		delete(i.at, bare(p.Endpoint))
	}
	p.Endpoint = to
	i.at[bare(to)] = p
}

// take copies what the look found, apart from what decides whether the peer is connected.
func (i *iface) take(p *PeerState, o Peer) {
	p.AllowedIPs, p.Keepalive, p.PresharedKey, p.print = o.AllowedIPs, o.Keepalive, o.PresharedKey.Set, o.PresharedKey.Print
	if o.Endpoint.IsValid() {
		i.move(p, o.Endpoint)
	}
	p.LastHandshake, p.RxBytes, p.TxBytes = o.LastHandshake, o.RxBytes, o.TxBytes
}

// observePeers compares every peer of a look with what is known of it.
func (t *Tracker) observePeers(asked, now Now, i *iface, d Device, baseline bool) Seen {
	seen := Seen{Configured: len(d.Peers)}
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
		if t.live(asked, now, i, p, o) {
			seen.Handshakes = append(seen.Handshakes, bare(o.Endpoint))
		}
		if p.Connected {
			seen.Connected++
			seen.by(p.HandshakeBoot + t.cfg.OfflineAfter)
			if at := p.Signs.deadline(); t.cfg.Silence && at < never {
				seen.by(at)
			}
		}
		if p.Connected || p.Quiet {
			seen.Live++
		}
		t.stall(asked, now, i, p, &seen)
	}
	return seen
}

// add begins to remember a peer.
func (t *Tracker) add(now Now, i *iface, o Peer, baseline bool) *PeerState {
	p := &PeerState{Interface: i.Name, PublicKey: o.PublicKey}
	i.take(p, o)
	p.RxBytes, p.TxBytes = 0, 0
	p.Signs.blind(now.Boot)
	if old := i.age(now, o.LastHandshake, false) >= RejectAfterTime; !baseline || !old {
		p.LastHandshake = time.Time{} // for live to find
	}
	i.peers[o.PublicKey] = p
	t.strangers.configure(o.PublicKey)
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
		t.disconnect(now, i, p, 0, events.PeerWasRemoved)
	}
	t.Say(now.Wall, &events.Removed{Common: t.common(now, i), Peer: t.told(p)})
	delete(i.peers, p.PublicKey)
	if i.at[bare(p.Endpoint)] == p {
		delete(i.at, bare(p.Endpoint))
	}
	if !t.isConfigured(p.PublicKey) {
		t.strangers.remove(now, p.PublicKey)
	}
	id := PeerID{i.Name, p.PublicKey}
	delete(t.dirty, id)
	delete(t.announce, id)
	t.removed[id] = true
}

// isConfigured reports whether any interface has a peer with this key.
func (t *Tracker) isConfigured(key events.Key) bool {
	for _, i := range t.interfaces {
		if i.peers[key] != nil {
			return true
		}
	}
	return false
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
	case was && p.print != ([16]byte{}) && is.Print != ([16]byte{}) && p.print != is.Print:
		c.PresharedKey = events.PresharedKeyReplaced
	}
	p.AllowedIPs, p.Keepalive, p.PresharedKey, p.print = o.AllowedIPs, o.Keepalive, o.PresharedKey.Set, o.PresharedKey.Print
	if c.PresharedKey != "" {
		t.forgetAttempts(p) // if it still does not work, that is news
	}
	if c != (events.PeerChanges{}) {
		t.mark(i, p)
		t.Say(now.Wall, &events.Changed{Common: t.common(now, i), Peer: t.told(p), Changes: c})
	}
}

// live decides whether the peer has a session and from where, and reports whether its last handshake moved.
func (t *Tracker) live(asked, now Now, i *iface, p *PeerState, o Peer) (moved bool) {
	// Any other time is a new handshake, not only a later one: the device reads the wall clock, which may have been stepped back.
	other := !o.LastHandshake.Equal(p.LastHandshake)
	moved = other && !o.LastHandshake.IsZero() && !o.LastHandshake.Equal(i.ended[o.PublicKey])
	previous := p.handshakeAge(now)
	if moved || p.HandshakeBoot == 0 {
		p.HandshakeBoot = now.Boot - i.age(now, o.LastHandshake, moved)
	}
	// What came after the look was asked for may not be in it, so nothing that ran out since is judged by it.
	ranOut := asked.Boot-p.HandshakeBoot >= t.cfg.OfflineAfter
	was, from := p.Connected, p.Endpoint
	w := window{
		From: i.lastLook.Boot, To: now.Boot, Rx: o.RxBytes - p.RxBytes, Tx: o.TxBytes - p.TxBytes, Handshake: moved, Keepalive: o.Keepalive,
	}
	alive := w.alive()
	p.Signs.within = t.cfg.OfflineAfter
	watched := i.looked && !i.blind && i.cause == ""
	if watched {
		p.Signs.look(w)
	} else {
		p.Signs.blind(now.Boot)
	}

	switch {
	case was:
		if alive {
			p.LastSeen = i.life(now, p.LastSeen.After, o.LastHandshake)
		}
	case p.Quiet && (moved && previous-(now.Boot-p.HandshakeBoot) < t.cfg.OfflineAfter || !moved && alive && !ranOut):
		p.resume(now, i, o)
	case moved:
		p.begin(now, i, o)
	}
	if p.Connected {
		t.forgetAttempts(p)
	}
	if p.Quiet && ranOut {
		p.Quiet = false
		t.dirty[PeerID{i.Name, p.PublicKey}] = true
	}
	roamed := was && from.IsValid() && o.Endpoint.IsValid() && o.Endpoint != from
	if other || roamed {
		t.dirty[PeerID{i.Name, p.PublicKey}] = true
	}
	i.take(p, o)
	if !p.Connected && (!i.looked || (p.RxBytes-p.idleRx)%wgmsg.InitiationSize == 0) {
		p.idleRx, p.idleTx = p.RxBytes, p.TxBytes
	}

	if p.Connected && !was {
		at := now
		if moved {
			at = Now{Wall: p.LastHandshake, Boot: p.HandshakeBoot}
		}
		t.mark(i, p)
		t.Say(at.Wall, &events.Connected{Common: t.common(now, i), Peer: t.told(p), Session: p.session(at)})
	}
	if p.Connected && t.over(asked, now, i, p, watched) {
		return moved
	}
	if roamed {
		t.mark(i, p)
		t.Say(now.Wall, &events.Roamed{
			Common: t.common(now, i), Peer: t.told(p), Session: p.session(now),
			From: t.cfg.Endpoint(from), To: t.cfg.Endpoint(o.Endpoint),
		})
	}
	return moved
}

// begin starts a session.
func (p *PeerState) begin(now Now, i *iface, o Peer) {
	p.Connected, p.Quiet, p.Resumed = true, false, false
	p.StartedAt, p.StartedBoot = o.LastHandshake, p.HandshakeBoot
	p.LastSeen = i.life(now, o.LastHandshake, o.LastHandshake)
	p.RxBase, p.TxBase = p.idleRx, p.idleTx
	if !i.looked {
		p.RxBase, p.TxBase = o.RxBytes, o.TxBytes // nobody knows how much of it is this session's
	}
	p.Signs.begin(now.Boot)
}

// resume goes on with a session that was said to be over.
func (p *PeerState) resume(now Now, i *iface, o Peer) {
	p.Connected, p.Quiet, p.Resumed = true, false, true
	p.LastSeen = i.life(now, p.LastSeen.After, o.LastHandshake)
	p.Signs.resumed(now.Boot)
}

// over ends a session that has run out or whose peer is known to be gone, and reports whether it did. Only where somebody watched since the look before
// does silence mean anything.
func (t *Tracker) over(asked, now Now, i *iface, p *PeerState, watched bool) bool {
	if asked.Boot-p.HandshakeBoot >= t.cfg.OfflineAfter {
		t.disconnect(now, i, p, now.Boot-p.HandshakeBoot-t.cfg.OfflineAfter, events.Expired)
		return true
	}
	if !watched || !t.cfg.Silence {
		return false
	}
	reason, gone := p.Signs.verdict(asked.Boot)
	if gone {
		t.disconnect(now, i, p, 0, reason)
		p.Quiet = true
	}
	return gone
}

// handshakeAge returns how long ago the last handshake was that is known so far.
func (p *PeerState) handshakeAge(now Now) time.Duration {
	if p.HandshakeBoot == 0 {
		return now.Wall.Sub(p.LastHandshake)
	}
	return now.Boot - p.HandshakeBoot
}

// age returns how long ago a handshake was. The device tells wall time. A handshake that moved is younger than the look before this one, if there was one
// in this run. Where the clocks of both looks, or of this one and of when an earlier run last stored anything, show that wall time was stepped in
// between, it was stepped before the handshake or after it; of the ages that are possible the smaller is taken, so that nobody is disconnected early.
func (i *iface) age(now Now, handshake time.Time, moved bool) time.Duration {
	age := now.Wall.Sub(handshake)
	before, most := i.lastLook, now.Boot-i.lastLook.Boot
	if !i.looked {
		before, most = i.alive, never
	}
	if moved && before != (Now{}) {
		step := now.Wall.Sub(before.Wall) - (now.Boot - before.Boot)
		if unstepped := age - step; age < 0 || age > most || 0 <= unstepped && unstepped < age {
			age = unstepped
		}
		age = min(age, most)
	}
	return max(0, age)
}

// life returns when the peer gave the latest sign of life that this look found: not before the look before this one, or, at the first look, the given
// time; and not before its last handshake.
func (i *iface) life(now Now, after, handshake time.Time) events.Interval {
	if i.looked {
		after = now.Wall.Add(i.lastLook.Boot - now.Boot) // not lastLook.Wall: the clock may have been stepped since
	}
	if handshake.After(after) && !handshake.After(now.Wall) {
		after = handshake
	}
	return clip(events.Interval{After: after, Before: now.Wall}, now.Wall)
}

// clip returns the part of an interval that is not after the given time.
func clip(v events.Interval, end time.Time) events.Interval {
	if v.After.After(end) {
		v.After = end
	}
	if v.Before.After(end) {
		v.Before = end
	}
	return v
}

// disconnect ends a peer's session, which was over the given time ago.
func (t *Tracker) disconnect(now Now, i *iface, p *PeerState, ago time.Duration, reason events.Reason) {
	end := Now{Wall: now.Wall.Add(-ago), Boot: now.Boot - ago}
	p.LastSeen = clip(p.LastSeen, end.Wall)
	session := p.session(end)
	p.Connected, p.Last = false, &session
	p.idleRx, p.idleTx = p.RxBytes, p.TxBytes
	var cause events.Cause
	switch reason {
	case events.Expired, events.Silent, events.Unreachable:
		cause = i.cause
		if p.HandshakeBoot < i.ChangedBoot {
			cause = events.CauseInterfaceChanged
		}
	case events.PeerWasRemoved, events.InterfaceIsDown:
	}
	t.mark(i, p)
	t.Say(end.Wall, &events.Disconnected{Common: t.common(now, i), Peer: t.told(p), Session: session, Reason: reason, Cause: cause})
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
	s := events.State{Node: t.cfg.Node, Interface: p.Interface, Peer: t.told(p), Connected: p.Connected, Session: p.Last, UpdatedAt: now.Wall}
	if p.Connected {
		session := p.session(now)
		s.Session = &session
	}
	return s
}

// session returns the session as of the given time. How long it lasted is measured, unless it began before the host was rebooted.
func (p *PeerState) session(at Now) events.Session {
	lasted := at.Boot - p.StartedBoot
	if p.StartedBoot == 0 {
		lasted = at.Wall.Sub(p.StartedAt)
	}
	return events.Session{
		StartedAt:       p.StartedAt,
		LastHandshakeAt: p.LastHandshake,
		LastSeen:        p.LastSeen,
		RxBytes:         p.RxBytes - min(p.RxBase, p.RxBytes),
		TxBytes:         p.TxBytes - min(p.TxBase, p.TxBytes),
		DurationSeconds: int64(max(0, lasted) / time.Second),
		Resumed:         p.Resumed,
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
