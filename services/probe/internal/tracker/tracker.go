// Package tracker turns looks at WireGuard devices into facts about their peers: who came, who left, who moved, what was configured.
//
// It is pure: time comes in with every look, and what should be stored and said comes out of Take. It neither talks to devices (wgstate does) nor
// numbers and stores events (outbox does), so that every rule here can be told as a scenario file in testdata.
package tracker

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// RejectAfterTime is when a session's keys may no longer be used, counted from its handshake (whitepaper §6.1, REJECT_AFTER_TIME in the kernel's
// drivers/net/wireguard/messages.h). No shorter threshold on the age of a handshake is safe: a responder starts a new one only at 165 s.
const RejectAfterTime = 180 * time.Second

// Now is one instant on three clocks. Wall time names it for others and may be stepped; Boot (CLOCK_BOOTTIME, which also counts suspend, as the
// kernel's key ages do) measures; Awake (CLOCK_MONOTONIC) is behind it by as long as the host slept.
type Now struct {
	Wall  time.Time
	Boot  time.Duration
	Awake time.Duration
}

// slept returns how long the host slept between two instants.
func slept(from, to Now) time.Duration { return (to.Boot - from.Boot) - (to.Awake - from.Awake) }

// Device is a WireGuard interface as one look found it.
type Device struct {
	Name       string
	Ifindex    int
	Up         bool
	PublicKey  events.Key
	ListenPort int
	Peers      []Peer
}

// Peer is a configured peer as one look found it.
type Peer struct {
	PublicKey     events.Key
	Endpoint      netip.AddrPort // zero when none is known
	LastHandshake time.Time      // zero when there was none
	RxBytes       uint64
	TxBytes       uint64
	AllowedIPs    []netip.Prefix // sorted
	Keepalive     time.Duration
	PresharedKey  PresharedKey
}

// PresharedKey tells whether a preshared key is set, and a print by which a replaced one is noticed. Prints are comparable within one run only;
// the zero print is unknown and equals any.
type PresharedKey struct {
	Set   bool
	Print [16]byte
}

// PeerID identifies a peer: one key on two interfaces is two peers.
type PeerID struct {
	Interface string
	Key       events.Key
}

// InterfaceState is what is remembered of an interface between looks and runs.
type InterfaceState struct {
	Name       string     `json:"name"`
	Ifindex    int        `json:"ifindex"`
	Up         bool       `json:"up"`
	PublicKey  events.Key `json:"publicKey"`
	ListenPort int        `json:"listenPort"`
	// BootID is the host's boot in which this was so (/proc/sys/kernel/random/boot_id): boot clock readings mean nothing in another.
	BootID string `json:"bootID,omitempty"`
	// GoneAt is since when it does not exist, or is not watched; zero while it does and is.
	GoneAt time.Time `json:"goneAt,omitzero"`
	// ChangedBoot is when, on the boot clock, it got another key or port last; zero for never in this boot. Sessions that run out after it have that cause.
	ChangedBoot time.Duration `json:"changedBoot,omitempty"`
}

func (s *InterfaceState) device() events.Device {
	return events.Device{PublicKey: s.PublicKey, ListenPort: s.ListenPort}
}

// Fact is something that happened, before it has a place in its source.
type Fact struct {
	Time time.Time
	Data events.Data
}

// Batch is what belongs into one transaction: facts in their order, and the states that go with them.
type Batch struct {
	Node       string // whose all this is
	Facts      []Fact
	Interfaces []InterfaceState
	Peers      []PeerState
	Gone       []string       // interfaces of which nothing is to be remembered any more
	Removed    []PeerID       // peers that are configured no longer
	Withdrawn  []PeerID       // peers whose state latecomers are not to find, because nobody watches them
	Announce   []events.State // current states for latecomers; the sequence is the store's to fill in
	Keys       []KeyState     // what is remembered of keys that sent initiations
	Forgotten  []events.Key   // keys of which nothing needs to be remembered any more
}

// Config holds what does not change while a tracker lives.
type Config struct {
	Node string
	// Endpoint renders an endpoint as it may be told.
	Endpoint func(netip.AddrPort) string
	// Name returns what people call a peer.
	Name func(events.Key) (name string, tags []string)
	// BootID identifies the host's current boot; empty when it is not known.
	BootID string
	// Alive is when an earlier run last stored anything; zero when there was none. It is of use within one boot.
	Alive Now
	// OfflineAfter is how long after its last handshake a peer counts as gone: RejectAfterTime or more.
	OfflineAfter time.Duration
	// Silence tells whether a peer may be called silent or unreachable before that.
	Silence bool
}

// Tracker remembers interfaces and peers. It is not safe for concurrent use: one goroutine owns it.
type Tracker struct {
	cfg        Config
	interfaces map[string]*iface
	present    bool // Present was called
	strangers  *strangers
	pruned     time.Duration // when strangers were, on the boot clock

	facts    []Fact
	dirtyIfs map[string]bool
	gone     map[string]bool
	dirty    map[PeerID]bool
	removed  map[PeerID]bool
	announce map[PeerID]bool
}

// iface is an interface with its peers.
type iface struct {
	InterfaceState
	peers map[events.Key]*PeerState

	looked   bool // in this run
	blind    bool // this look, or the first one of this run, finds what changed while nobody watched
	lastLook Now  // when it was asked for
	alive    Now  // in an earlier run within this boot; zero when there was none
	live     int  // peers whose session had not run out at the last look

	cause  events.Cause                  // of what this look finds to have run out
	at     map[netip.AddrPort]*PeerState // who is, or was last, at an address
	knocks map[senderID]*knock           // of keys that were not configured at the last look

	// ended holds the last handshakes as the latest look found them, when it found the interface down: the device remembers their time, not their keys.
	ended map[events.Key]time.Time
}

// New returns a tracker that continues from what an earlier run stored.
func New(cfg Config, interfaces []InterfaceState, peers []PeerState, keys []KeyState) *Tracker {
	t := &Tracker{cfg: cfg, interfaces: map[string]*iface{}, strangers: newStrangers(keys)}
	t.reset()
	for _, s := range interfaces {
		i := newIface(s.Name, true)
		i.InterfaceState = s
		if i.BootID == cfg.BootID && cfg.BootID != "" {
			i.alive = cfg.Alive
		} else {
			i.ChangedBoot = 0
		}
		t.interfaces[s.Name] = i
	}
	for _, p := range peers {
		i, ok := t.interfaces[p.Interface]
		if !ok {
			continue
		}
		if i.rebooted(cfg.BootID) || i.BootID == "" {
			p.HandshakeBoot, p.StartedBoot = 0, 0
		}
		i.peers[p.PublicKey] = &p
		if p.Endpoint.IsValid() {
			i.move(&p, p.Endpoint)
		}
		t.strangers.configure(p.PublicKey)
	}
	return t
}

func newIface(name string, blind bool) *iface {
	return &iface{
		InterfaceState: InterfaceState{Name: name}, peers: map[events.Key]*PeerState{}, blind: blind,
		at: map[netip.AddrPort]*PeerState{}, knocks: map[senderID]*knock{},
	}
}

// rebooted reports whether the host is known to have booted since the interface was last seen.
func (i *iface) rebooted(bootID string) bool {
	return i.BootID != "" && bootID != "" && i.BootID != bootID
}

func (t *Tracker) reset() {
	t.facts = nil
	t.dirtyIfs, t.gone = map[string]bool{}, map[string]bool{}
	t.dirty, t.removed, t.announce = map[PeerID]bool{}, map[PeerID]bool{}, map[PeerID]bool{}
}

// Urgent reports whether there is more to store than progress of what is already known.
func (t *Tracker) Urgent() bool {
	return len(t.facts)+len(t.announce)+len(t.removed) > 0 || len(t.strangers.touched) > maxUnknown
}

// Take returns what has come together since the last call, in a stable order.
func (t *Tracker) Take(now Now) Batch {
	b := Batch{Node: t.cfg.Node, Facts: t.facts}
	if now.Boot-t.pruned >= time.Hour {
		t.forgetGone(now)
		t.strangers.prune(now)
		t.pruned = now.Boot
	}
	b.Keys, b.Forgotten = t.strangers.take()
	for _, name := range slices.Sorted(maps.Keys(t.dirtyIfs)) {
		b.Interfaces = append(b.Interfaces, t.interfaces[name].InterfaceState)
	}
	for _, id := range sortedIDs(t.dirty) {
		if p := t.peer(id); p != nil {
			b.Peers = append(b.Peers, *p)
		}
	}
	b.Gone = slices.Sorted(maps.Keys(t.gone))
	b.Removed = sortedIDs(t.removed)
	for _, id := range sortedIDs(t.announce) {
		if p := t.peer(id); p != nil {
			b.Announce = append(b.Announce, t.state(now, p))
		}
	}
	t.reset()
	return b
}

func sortedIDs(set map[PeerID]bool) []PeerID {
	return slices.SortedFunc(maps.Keys(set), func(a, b PeerID) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), slices.Compare(a.Key[:], b.Key[:]))
	})
}

func (t *Tracker) peer(id PeerID) *PeerState {
	if i, ok := t.interfaces[id.Interface]; ok {
		return i.peers[id.Key]
	}
	return nil
}

// Say adds a fact that is not about a peer or an interface: the watcher's own start and stop.
func (t *Tracker) Say(at time.Time, data events.Data) {
	t.facts = append(t.facts, Fact{Time: at, Data: data})
}

// Renamed tells whom people call something else now. It is no event, but latecomers are to find it.
func (t *Tracker) Renamed(is func(events.Key) bool) {
	for name, i := range t.interfaces {
		for key := range i.peers {
			if is(key) {
				t.announce[PeerID{name, key}] = true
			}
		}
	}
}

// Present tells which WireGuard interfaces exist. Unless the list may be short, those that were known and are not among them are gone. What the first
// call of a run names was there before the run: its first look finds what happened unseen.
func (t *Tracker) Present(now Now, names []string, whole bool) {
	for _, name := range names {
		i, known := t.interfaces[name]
		switch {
		case !known:
			t.interfaces[name] = newIface(name, !t.present)
		case !i.GoneAt.IsZero():
			i.GoneAt = time.Time{}
			t.dirtyIfs[name] = true
			for key := range i.peers { // their states may have been withdrawn
				t.announce[PeerID{name, key}] = true
			}
		}
	}
	if !t.present {
		t.strangers.settle(now, t.isConfigured)
	}
	t.present = true
	if !whole {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(t.interfaces)) {
		if !slices.Contains(names, name) {
			t.Gone(now, name)
		}
	}
}

// forgetAfter is for how long an interface that does not exist, and its peers, are remembered. Where interfaces come and go under ever new names, they
// must not add up.
const forgetAfter = 7 * 24 * time.Hour

// LeaveOut returns what is to be stored of interfaces that an earlier run watched and this one does not, nor New is told of. Nobody says that their sessions
// ended, but that they go on nobody knows, either. After forgetAfter they are forgotten.
func LeaveOut(now Now, node string, watched func(name string) bool, interfaces []InterfaceState, peers []PeerState) Batch {
	b := Batch{Node: node}
	for _, i := range interfaces {
		if watched(i.Name) {
			continue
		}
		var ids []PeerID
		for n := range peers {
			if peers[n].Interface == i.Name {
				ids = append(ids, PeerID{i.Name, peers[n].PublicKey})
			}
		}
		switch {
		case i.GoneAt.IsZero():
			i.GoneAt = now.Wall
			b.Interfaces, b.Withdrawn = append(b.Interfaces, i), append(b.Withdrawn, ids...)
		case now.Wall.Sub(i.GoneAt) >= forgetAfter:
			b.Gone, b.Removed = append(b.Gone, i.Name), append(b.Removed, ids...)
		}
	}
	return b
}

// Gone tells that an interface does not exist. Its peers are remembered: when it comes back before forgetAfter, what differs was changed.
func (t *Tracker) Gone(now Now, name string) {
	i, known := t.interfaces[name]
	if !known {
		return
	}
	t.down(now, i, events.Deleted)
	t.forgetCounters(i)
	i.looked, i.blind = false, false
	switch {
	case i.Ifindex == 0: // it was never seen up, and nothing is stored of it
		delete(t.interfaces, name)
	case i.GoneAt.IsZero():
		i.GoneAt = now.Wall
		t.dirtyIfs[name] = true
	}
}

// forgetGone forgets interfaces that have not come back, and their peers. Nothing is said of it: that the interface was deleted was told, and with it its
// configuration went. Under its name, the next one has a baseline of its own.
func (t *Tracker) forgetGone(now Now) {
	for _, name := range slices.Sorted(maps.Keys(t.interfaces)) {
		i := t.interfaces[name]
		if i.GoneAt.IsZero() || now.Wall.Sub(i.GoneAt) < forgetAfter {
			continue
		}
		delete(t.interfaces, name)
		delete(t.dirtyIfs, name)
		t.gone[name] = true
		for _, key := range sortedKeys(i.peers) {
			t.removed[PeerID{name, key}] = true
			if !t.isConfigured(key) {
				t.strangers.remove(now, key)
			}
		}
	}
}

// Seen is what a look tells about the devices' own clockwork.
type Seen struct {
	Handshakes []netip.AddrPort // endpoints of the peers whose last handshake moved since the look before
	Late       []netip.AddrPort // senders of earlier initiations that turn out to be configured, and have no session yet
	Connected  int              // peers with a session
	Live       int              // these, and those that went silent and may come back without a handshake
	Configured int
	Keyless    bool // the device has no private key yet
	// Deadline is the earliest instant, on the boot clock, at which a look may find something out: that a session ran out, that a peer went silent or
	// that none comes about. Zero means none.
	Deadline time.Duration
}

func (s *Seen) by(at time.Duration) {
	if s.Deadline == 0 || at < s.Deadline {
		s.Deadline = at
	}
}

// StoreInterval is how long what is not urgent may wait for Take.
const StoreInterval = time.Minute

// blindAfter is how much later than planned a look may be. Beyond it nobody watched in between: the host slept, the probe was stopped, the device
// could not be read.
const blindAfter = 30 * time.Second

// Observe takes in one look at a device, which was asked for at one time and answered by another.
func (t *Tracker) Observe(asked, now Now, d Device) Seen {
	i, known := t.interfaces[d.Name]
	if !known {
		i = newIface(d.Name, false)
		t.interfaces[d.Name] = i
	}
	planned := SafetyInterval
	if i.live > 0 {
		planned = SampleInterval
	}
	if i.looked && asked.Boot-i.lastLook.Boot > planned+blindAfter {
		i.blind = true
	}
	if i.looked && slept(i.lastLook, now) > SampleInterval {
		i.cause = events.CauseHostSuspended
	}
	defer func() { i.looked, i.blind, i.cause, i.lastLook = true, false, "", asked }()
	if !d.Up {
		t.down(now, i, events.SetDown)
		i.ended = map[events.Key]time.Time{}
		for _, o := range d.Peers {
			i.ended[o.PublicKey] = o.LastHandshake
			// The next run is to know it, too.
			if p := i.peers[o.PublicKey]; p != nil && !p.LastHandshake.Equal(o.LastHandshake) {
				p.LastHandshake = o.LastHandshake
				t.dirty[PeerID{i.Name, p.PublicKey}] = true
			}
		}
		return Seen{Configured: len(d.Peers)}
	}
	// Peers of an interface that was never seen up have nothing to be compared with: what is configured is the baseline.
	baseline := i.Ifindex == 0
	if i.Ifindex != d.Ifindex || t.replaced(i, d) {
		t.down(now, i, events.Recreated)
		t.forgetCounters(i) // they were another incarnation's
	}
	t.up(now, i, d)
	seen := t.observePeers(asked, now, i, d, baseline)
	t.settle(asked, now, i, &seen)
	seen.Keyless = d.PublicKey.IsZero()
	i.ended, i.live = nil, seen.Live
	return seen
}

// replaced reports whether the first look of a run finds another device of the same name and index. It does when the host was rebooted, and when the
// counters fell of at least half of the peers that had counted anything. Later in a run the index of an interface is not used again, and a counter that
// fell is the peer's own.
func (t *Tracker) replaced(i *iface, d Device) bool {
	if i.looked {
		return false
	}
	if i.rebooted(t.cfg.BootID) {
		return true
	}
	var fell, went int
	for _, o := range d.Peers {
		switch p := i.peers[o.PublicKey]; {
		case p == nil || p.RxBytes+p.TxBytes == 0:
		case p.fell(o):
			fell++
		default:
			went++
		}
	}
	return fell > 0 && fell >= went
}

func (t *Tracker) forgetCounters(i *iface) {
	for _, p := range i.peers {
		p.LastHandshake, p.RxBytes, p.TxBytes = time.Time{}, 0, 0
		p.idleRx, p.idleTx = 0, 0
		p.tried = wgmsg.Timestamp{}
		t.forgetAttempts(p)
	}
}

// common returns the common part of a fact about an interface or its peers.
func (t *Tracker) common(now Now, i *iface) events.Common {
	return events.Common{Node: t.cfg.Node, Interface: i.Name, DetectedAt: now.Wall, Inferred: i.blind}
}

// down says that an interface went, and then that every session went with it.
func (t *Tracker) down(now Now, i *iface, reason events.DownReason) {
	i.live = 0
	clear(i.knocks)
	for _, p := range i.peers {
		if p.Quiet { // it cannot come back without a handshake any more
			p.Quiet = false
			t.dirty[PeerID{i.Name, p.PublicKey}] = true
		}
	}
	if !i.Up {
		return
	}
	t.Say(now.Wall, &events.Down{Common: t.common(now, i), Device: i.device(), Reason: reason})
	i.Up = false
	t.dirtyIfs[i.Name] = true
	for _, key := range sortedKeys(i.peers) {
		if p := i.peers[key]; p.Connected {
			t.disconnect(now, i, p, 0, events.InterfaceIsDown)
		}
	}
}

// up says that an interface appeared or that it has another key or port.
func (t *Tracker) up(now Now, i *iface, d Device) {
	fresh := InterfaceState{
		Name: d.Name, Ifindex: d.Ifindex, Up: true, PublicKey: d.PublicKey, ListenPort: d.ListenPort, BootID: t.cfg.BootID,
		ChangedBoot: i.ChangedBoot,
	}
	if i.InterfaceState == fresh {
		return
	}
	was := i.InterfaceState
	i.InterfaceState = fresh
	t.dirtyIfs[i.Name] = true
	if was.PublicKey != d.PublicKey {
		for _, p := range i.peers {
			t.forgetAttempts(p)
		}
	}
	if !was.Up {
		t.Say(now.Wall, &events.Up{Common: t.common(now, i), Device: i.device(), Peers: len(d.Peers)})
		return
	}
	var c events.DeviceChanges
	if was.PublicKey != d.PublicKey {
		c.PublicKey = &events.Change[events.Key]{From: was.PublicKey, To: d.PublicKey}
	}
	if was.ListenPort != d.ListenPort {
		c.ListenPort = &events.Change[int]{From: was.ListenPort, To: d.ListenPort}
	}
	if c != (events.DeviceChanges{}) {
		i.ChangedBoot = now.Boot
		t.Say(now.Wall, &events.DeviceChanged{Common: t.common(now, i), Device: i.device(), Changes: c})
	}
}

func sortedKeys[V any](peers map[events.Key]V) []events.Key {
	return slices.SortedFunc(maps.Keys(peers), func(a, b events.Key) int { return slices.Compare(a[:], b[:]) })
}
