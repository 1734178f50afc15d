package tracker

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// Bounds of what is told and remembered of strangers: anyone can make keys, and send from any address.
const (
	// clockTolerance is how far an initiation's timestamp may be from our wall clock, either way: older recordings are worthless, whatever was forgotten.
	clockTolerance = 10 * time.Minute

	rejectedInterval = time.Hour        // between two events about one sender
	rejectedBurst    = 20               // events of one interface at once
	rejectedRefill   = 10 * time.Second // until one more

	removedRetention = 30 * 24 * time.Hour

	maxUnknown    = 4096  // keys that were never configured, the last seen
	maxRemoved    = 16384 // keys that were, the last removed
	maxSenders    = 4096  // senders, the last heard
	maxToldStored = 16    // of them per key on disk, the last told, so that one key's record stays below 3 KB
	maxBuckets    = 1024  // interfaces, the last knocked at
)

// Freshness is what the timestamp of a proven initiation says about it.
type Freshness uint8

// The outcomes of a comparison with our clock, and with the newest timestamp of the same key.
const (
	Fresh    Freshness = iota // who holds the key made it just now
	Replayed                  // it is not newer than another one was: a recording, a duplicate, or one overtaken on its way
	ClockOff                  // its clock or ours is wrong, or it is a recording: nobody can tell
)

// KeyState is what is remembered of a key that a proven initiation came from.
type KeyState struct {
	Key        events.Key      `json:"key"`
	Newest     wgmsg.Timestamp `json:"newest"` // of its initiations, on any interface
	SeenAt     time.Time       `json:"seenAt"` // when that one came
	Configured bool            `json:"configured,omitempty"`
	RemovedAt  time.Time       `json:"removedAt,omitzero"` // zero while configured, and where it never was
	Told       []Told          `json:"told,omitempty"`     // the oldest first
}

// Told is the last event that told of a key at one interface, from one address.
type Told struct {
	Interface string     `json:"interface"`
	Address   netip.Addr `json:"address"`
	At        time.Time  `json:"at"`
	Untold    uint64     `json:"untold,omitempty"` // initiations since
}

// strangers decides which proven handshake initiations are fresh, and which of those by keys that are not configured are told. Like the tracker it is
// pure and not safe for concurrent use.
//
// What is remembered of a key, in memory and on disk, lasts as long as the key is in one of three places:
//
//	unknown ── configure ──► configured ◄── configure, remove ──► removed
//	   │                                                             │
//	   └─ 4,096 others were seen later                               └─ 30 days passed, or 16,384 others were removed later
//
// Who makes 4,096 keys can have a stranger forgotten, and then replay what is not older than clockTolerance: that is told again, within the interface's
// rate.
type strangers struct {
	configured map[events.Key]*knownKey
	removed    *simplelru.LRU[events.Key, *knownKey] // by removal: they are only peeked at
	unknown    *simplelru.LRU[events.Key, *knownKey]
	senders    *simplelru.LRU[senderID, *sender]
	buckets    *simplelru.LRU[string, *bucket]
	touched    map[events.Key]bool
}

// knownKey is a key with the senders that were told of last.
type knownKey struct {
	KeyState // its Told is empty: take makes it of
	told     []*sender
}

type senderID struct {
	iface   string
	key     events.Key
	address netip.Addr
}

// sender is who knocks at an interface with a key, from an address.
type sender struct {
	senderID
	toldAt   time.Time     // zero when never
	toldBoot time.Duration // the same on the clock that is never stepped; zero until asked for in this run
	untold   uint64        // initiations since
	leftOut  *round        // in which it was last left out
}

// newStrangers returns what continues from the stored states, which are in any order.
func newStrangers(stored []KeyState) *strangers {
	s := &strangers{configured: map[events.Key]*knownKey{}, touched: map[events.Key]bool{}}
	touch := func(key events.Key, _ *knownKey) { s.touched[key] = true }
	s.removed, s.unknown = newLRU(maxRemoved, touch), newLRU(maxUnknown, touch)
	s.senders, s.buckets = newLRU(maxSenders, s.forgetSender), newLRU[string, *bucket](maxBuckets, nil)

	var senders []*sender
	for _, state := range slices.SortedFunc(slices.Values(stored), func(a, b KeyState) int {
		return cmp.Or(a.RemovedAt.Compare(b.RemovedAt), a.SeenAt.Compare(b.SeenAt), slices.Compare(a.Key[:], b.Key[:]))
	}) {
		k := &knownKey{KeyState: state}
		for _, told := range state.Told {
			k.told = append(k.told, &sender{senderID: senderID{told.Interface, state.Key, told.Address}, toldAt: told.At, untold: told.Untold})
		}
		senders = append(senders, k.told...)
		k.Told = nil
		switch {
		case state.Configured:
			s.configured[state.Key] = k
		case !state.RemovedAt.IsZero():
			s.removed.Add(state.Key, k)
		default:
			s.unknown.Add(state.Key, k)
		}
	}
	slices.SortStableFunc(senders, func(a, b *sender) int { return a.toldAt.Compare(b.toldAt) })
	for _, from := range senders {
		s.senders.Add(from.senderID, from)
	}
	return s
}

func newLRU[K comparable, V any](size int, fell func(K, V)) *simplelru.LRU[K, V] {
	l, _ := simplelru.NewLRU(size, fell) // fails for sizes below 1 only
	return l
}

// forgetSender takes a sender that fell out of memory off the disk, too.
func (s *strangers) forgetSender(id senderID, from *sender) {
	if k := s.find(id.key); k != nil {
		k.told = slices.DeleteFunc(k.told, func(o *sender) bool { return o == from })
		s.touched[id.key] = true
	}
}

// find returns what is known of a key, or nil.
func (s *strangers) find(key events.Key) *knownKey {
	if k, ok := s.configured[key]; ok {
		return k
	}
	if k, ok := s.removed.Peek(key); ok {
		return k
	}
	k, _ := s.unknown.Peek(key)
	return k
}

// findOrAdd returns what is known of a key, which is nothing yet when it is new.
func (s *strangers) findOrAdd(key events.Key) *knownKey {
	k := s.find(key)
	if k == nil {
		k = &knownKey{KeyState: KeyState{Key: key}}
		s.unknown.Add(key, k)
	}
	return k
}

// fresh takes in the timestamp of a proven initiation by any key, configured or not: what comes again once the key is removed is recognized by it.
//
// A timestamp from too far in the future, or that is no time at all, is not noted. The kernel's responder compares with the newest only and would note it (noise.c,
// wg_noise_handshake_consume_initiation), so a sender whose clock once was wrong can come in no more until that time; but it forgets when the peer is
// removed, and we do not. To be silent about a stranger for so long is worse than what it saves: that a recording of just this initiation is believed
// when our clock gets there. One from too far in the past is noted, because it hides nothing that is to come.
func (s *strangers) fresh(now Now, key events.Key, stamp wgmsg.Timestamp) Freshness {
	s.unknown.Get(key) // seen, even if it is a recording that goes round
	if k := s.find(key); k != nil && stamp.Compare(k.Newest) <= 0 {
		return Replayed
	}
	if at := stamp.Time(); at.IsZero() || at.After(now.Wall.Add(clockTolerance)) {
		return ClockOff
	}
	k := s.findOrAdd(key)
	k.Newest, k.SeenAt = stamp, now.Wall
	s.touched[key] = true
	if s.outdated(now, k) {
		return ClockOff
	}
	return Fresh
}

// outdated reports whether no recording of a key's initiations would be believed, even if the key was forgotten.
func (s *strangers) outdated(now Now, k *knownKey) bool {
	return k.Newest.Time().Before(now.Wall.Add(-clockTolerance))
}

// knock takes in a fresh initiation by a key that is not configured on the interface, and reports whether it is told. If so, count is how many
// initiations of this sender that event stands for, and suppressed how many other senders were left out since the interface's last.
//
// An hour that began before a restart is measured on the wall clock; if that has been set back meanwhile, the hour begins anew.
func (s *strangers) knock(now Now, iface string, key events.Key, address netip.Addr) (told bool, count, suppressed uint64) {
	id := senderID{iface, key, address.Unmap()}
	from, ok := s.senders.Get(id)
	if !ok {
		from = &sender{senderID: id}
		s.senders.Add(id, from)
	}
	k := s.findOrAdd(key) // it may have been forgotten while the look took place
	s.touched[key] = true
	from.untold++

	if from.toldBoot == 0 { // who was never told is due: centuries have passed since the zero time
		from.toldBoot = now.Boot - min(max(0, now.Wall.Sub(from.toldAt)), rejectedInterval)
	}
	if now.Boot-from.toldBoot < rejectedInterval {
		return false, 0, 0
	}
	b, ok := s.buckets.Get(iface)
	if !ok {
		b = &bucket{round: new(round)}
		s.buckets.Add(iface, b)
	}
	if told, suppressed = b.tell(now.Boot, from); !told {
		return false, 0, 0
	}
	count, from.untold = from.untold, 0
	from.toldAt, from.toldBoot = now.Wall, now.Boot
	k.told = append(slices.DeleteFunc(k.told, func(o *sender) bool { return o == from }), from)
	k.told = slices.Delete(k.told, 0, max(0, len(k.told)-maxToldStored))
	return true, count, suppressed
}

// bucket bounds the rate of an interface's events.
type bucket struct {
	full  time.Duration // when it is, if nobody takes anything
	round *round
}

// round lasts from one event of an interface to the next.
type round struct{ leftOut uint64 } // senders

// tell takes a token for an event about a sender, or counts that it is left out; once, though it may knock again before the next event.
func (b *bucket) tell(now time.Duration, from *sender) (told bool, suppressed uint64) {
	b.full = max(b.full, now)
	if b.full+rejectedRefill > now+rejectedBurst*rejectedRefill {
		if from.leftOut != b.round {
			from.leftOut = b.round
			b.round.leftOut++
		}
		return false, 0
	}
	b.full += rejectedRefill
	suppressed = b.round.leftOut
	if from.leftOut == b.round {
		suppressed-- // it comes late, but it comes
	}
	b.round = new(round)
	return true, suppressed
}

// configure tells that a key is configured on an interface, when before it was on none.
func (s *strangers) configure(key events.Key) {
	if _, ok := s.configured[key]; ok {
		return
	}
	k := s.find(key)
	if k == nil {
		k = &knownKey{KeyState: KeyState{Key: key}} // nothing to store until it is seen
	}
	k.Configured, k.RemovedAt = true, time.Time{}
	s.configured[key] = k
	s.removed.Remove(key)
	s.unknown.Remove(key)
}

// remove tells that a key is configured on no interface any more.
func (s *strangers) remove(now Now, key events.Key) {
	k, ok := s.configured[key]
	if !ok {
		return
	}
	delete(s.configured, key)
	s.touched[key] = true
	if k.SeenAt.IsZero() {
		return // there is nothing to remember
	}
	k.Configured, k.RemovedAt = false, now.Wall
	s.removed.Add(key, k)
}

// settle takes those for removed that were stored as configured and are not any more, as when the interface is no longer watched.
func (s *strangers) settle(now Now, configured func(events.Key) bool) {
	for key := range s.configured {
		if !configured(key) {
			s.remove(now, key)
		}
	}
}

// prune forgets keys that were removed 30 days ago, unless they still knock. It walks over all removed keys: once an hour is plenty.
func (s *strangers) prune(now Now) {
	for _, k := range s.removed.Values() {
		if k.RemovedAt.After(now.Wall) { // the clock was set back: its days begin now
			k.RemovedAt = now.Wall
			s.touched[k.Key] = true
		}
		if now.Wall.Sub(k.RemovedAt) >= removedRetention && s.outdated(now, k) {
			s.removed.Remove(k.Key)
		}
	}
}

// take returns what is to be stored and what is to be deleted since the last call, each sorted by key. Not every deleted key was stored.
func (s *strangers) take() (dirty []KeyState, forgotten []events.Key) {
	for _, key := range slices.SortedFunc(maps.Keys(s.touched), func(a, b events.Key) int { return slices.Compare(a[:], b[:]) }) {
		k := s.find(key)
		if k == nil {
			forgotten = append(forgotten, key)
			continue
		}
		state := k.KeyState
		for _, from := range k.told {
			state.Told = append(state.Told, Told{Interface: from.iface, Address: from.address, At: from.toldAt, Untold: from.untold})
		}
		dirty = append(dirty, state)
	}
	s.touched = map[events.Key]bool{}
	return dirty, forgotten
}
