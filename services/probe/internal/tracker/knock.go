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

const (
	// stallKnocks initiations within stallWindow without a session are a stall. An initiator that gets no answer sends one every 5 s (REKEY_TIMEOUT,
	// whitepaper §6.1), so this is what one attempt makes in its first 11 s.
	stallKnocks = 3
	stallWindow = 20 * time.Second
	// stallGrace is how long the last of them may still turn into a session.
	stallGrace = 2 * time.Second

	// lastMoment before a session runs out, one that is renewed is awaited. A handshake takes no longer, or is begun anew (REKEY_TIMEOUT, whitepaper §6.1); and
	// only who was silent since does it as late as that, everybody else at 120 s or 165 s.
	lastMoment = 5 * time.Second

	// maxKnocks bounds the senders at an interface that wait for a look to tell whether their keys are configured.
	maxKnocks = 1024
)

// Knock is an inbound initiation whose timestamp opened: at some time, it was sent by the holder of Key.
type Knock struct {
	Interface string
	Key       events.Key
	Src       netip.AddrPort
	Timestamp wgmsg.Timestamp
}

// Answer is what a knock comes to; the zero Answer is that of an interface that listens to nobody.
type Answer struct {
	Heard      bool // the interface is up
	Freshness  Freshness
	Configured bool // as of the latest look
	// Awaited is true where a session may come about that is news. A peer that has one, and is where it was, renews its keys, which the next look without
	// cause finds early enough: of a thousand peers, eight do so each second. A recording makes no session.
	Awaited bool
	// Pending is true where the key is not configured as far as is known: the next look decides whether that is news.
	Pending bool
	// LookAt is when a look may find that the peer's attempts come to nothing, on the boot clock. Zero means that there is nothing to find.
	LookAt time.Duration
}

// knock is one that waits for a look.
type knock struct {
	Knock
	at    Now // the first
	count int
}

// knocking counts a configured peer's attempts to come by a session.
type knocking struct {
	since  Now
	count  int
	latest [stallKnocks]time.Duration // the last one first
	due    time.Duration              // when a look finds a stall, unless a session has come about; zero for never
}

// Knock takes in an initiation.
func (t *Tracker) Knock(now Now, k Knock) Answer {
	i, known := t.interfaces[k.Interface]
	if !known || !i.Up {
		return Answer{}
	}
	a := Answer{Heard: true, Freshness: t.strangers.fresh(now, k.Key, k.Timestamp)}
	p := i.peers[k.Key]
	switch {
	case p != nil:
		a.Configured = true
		// The device compares with what it was shown by this peer, and forgets that with the peer: of a key that another interface has, too, or had a
		// peer of before, it may take what is Replayed here.
		later := k.Timestamp.Compare(p.tried) > 0
		if a.Freshness != Replayed || later {
			a.Awaited = t.news(now, p) || bare(p.Endpoint) != k.Src
		}
		// A timestamp of which strangers keep no note, because it is too far in the future, may be sent again and again: it counts once.
		if later {
			p.tried = k.Timestamp
			if a.Freshness != Replayed {
				a.LookAt = p.attempt(now)
			}
		}
	case a.Freshness == Fresh:
		id := senderID{i.Name, k.Key, k.Src.Addr().Unmap()}
		if waiting := i.knocks[id]; waiting != nil {
			waiting.count++
			waiting.Src = k.Src
		} else if len(i.knocks) < maxKnocks {
			i.knocks[id] = &knock{Knock: k, at: now, count: 1}
		}
		a.Pending = i.knocks[id] != nil
	}
	return a
}

// news reports whether a session that a handshake makes now would be news: there is none, or it may run out before a look finds that it is renewed.
func (t *Tracker) news(now Now, p *PeerState) bool {
	return !p.Connected || now.Boot-p.HandshakeBoot >= t.cfg.OfflineAfter-lastMoment
}

// At reports whether a peer of an interface is, or was last, at this address, and whether a session with the one there would be news.
func (t *Tracker) At(now Now, name string, address netip.AddrPort) (known, awaited bool) {
	i, watched := t.interfaces[name]
	if !watched {
		return false, false
	}
	p, known := i.at[address]
	return known, known && t.news(now, p)
}

// bare returns an endpoint as packets have it: a packet's source has no zone.
func bare(at netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(at.Addr().WithZone(""), at.Port())
}

// forgetAttempts ends a stall, or what may become one.
func (t *Tracker) forgetAttempts(p *PeerState) {
	if p.Stalled {
		t.dirty[PeerID{p.Interface, p.PublicKey}] = true
	}
	p.Stalled, p.knocking = false, knocking{}
}

// attempt counts an initiation and returns when a look may find the peer stalled.
func (p *PeerState) attempt(now Now) time.Duration {
	if p.Connected {
		return 0 // it renews its keys
	}
	k := &p.knocking
	if k.count == 0 || now.Boot-k.latest[0] > stallWindow {
		*k = knocking{since: now}
	}
	k.count++
	copy(k.latest[1:], k.latest[:])
	k.latest[0] = now.Boot
	if !p.Stalled && k.due == 0 && k.count >= stallKnocks && now.Boot-k.latest[stallKnocks-1] <= stallWindow {
		k.due = now.Boot + stallGrace
	}
	return k.due
}

// stall says, once, that a peer knocks and no session comes about.
func (t *Tracker) stall(asked, now Now, i *iface, p *PeerState, seen *Seen) {
	k := &p.knocking
	switch {
	case k.due == 0:
	case asked.Boot < k.due:
		seen.by(k.due)
	default:
		k.due, p.Stalled = 0, true
		t.mark(i, p)
		t.Say(k.since.Wall.Add(k.latest[0]-k.since.Boot), &events.Stalled{
			Common: t.common(now, i), Peer: t.told(p), Attempts: k.count, Since: k.since.Wall,
		})
	}
}

// settle decides about the knocks that came before a look was asked for: their keys are configured now, or they were turned away.
func (t *Tracker) settle(asked, now Now, i *iface, seen *Seen) {
	for _, k := range slices.SortedFunc(maps.Values(i.knocks), func(a, b *knock) int {
		return cmp.Or(cmp.Compare(a.at.Boot, b.at.Boot), slices.Compare(a.Key[:], b.Key[:]), a.Src.Compare(b.Src))
	}) {
		if k.at.Boot > asked.Boot {
			continue
		}
		delete(i.knocks, senderID{i.Name, k.Key, k.Src.Addr().Unmap()})
		if p := i.peers[k.Key]; p != nil {
			p.attempt(k.at)
			if !p.Connected {
				seen.Late = append(seen.Late, k.Src)
			}
			continue
		}
		for range k.count {
			told, count, suppressed := t.strangers.knock(k.at, i.Name, k.Key, k.Src.Addr())
			if told {
				t.Say(k.at.Wall, &events.Rejected{
					Common:    events.Common{Node: t.cfg.Node, Interface: i.Name, DetectedAt: now.Wall},
					PublicKey: k.Key, Endpoint: t.cfg.Endpoint(k.Src), Count: count, Suppressed: suppressed,
				})
			}
		}
	}
}
