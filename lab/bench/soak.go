package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/wgpeer"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	soakPeers     = 20
	soakKeepalive = 25 * time.Second // what wg(8) calls sensible; by the peers, not by the hub
	soakEvery     = time.Second      // between the hub's packets to those that have return traffic, and between looks at who is back
)

// lossy is the path of the second half of the peers, in each direction.
var lossy = wgpeer.Impairment{Loss: 0.05, Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond}

// resident is a peer of the soak.
type resident struct {
	*lab.Client
	lossy, traffic bool
	trips          []trip // to come, with the one that it is on
	away           bool
	absences       []absence
	before         wgtypes.Peer // as the hub had it when it came back, while it is unheard
}

// last is the latest absence. There must be one.
func (p *resident) last() *absence { return &p.absences[len(p.absences)-1] }

// shown is what the hub shows of its peers.
type shown map[wgtypes.Key]wgtypes.Peer

// soak lets peers go away and come back for as long as it is told, and compares what is true with what the probe says.
func (b *bench) soak(ctx context.Context) error {
	from, to := firstTrips(b.soakFor)
	fmt.Fprintf(b.out, "Soak of %v with seed %d: %d peers, the first departures after %v to %v\n", b.soakFor, b.seed, soakPeers, from, to)
	if from < learning {
		fmt.Fprintf(b.out, "No cadence can be learned in so short a time: that takes 16 keepalives, 400 s.\n")
	}
	fmt.Fprintln(b.out)

	peers, err := b.settleDown(ctx)
	if err != nil {
		return err
	}
	var pinger *icmp.PacketConn
	if err := b.lab.NS.Do(func() (err error) {
		pinger, err = icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	}); err != nil {
		return err
	}
	defer pinger.Close()

	began := time.Now()
	tick := time.NewTicker(soakEvery)
	defer tick.Stop()
	for minute := time.Duration(1); time.Since(began) < b.soakFor; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := errors.Join(b.live(peers, time.Since(began)), ping(pinger, peers)); err != nil {
			return err
		}
		if time.Since(began) >= minute*time.Minute {
			fmt.Fprintf(b.progress, "soak: %d of %v minutes, %s\n", minute, b.soakFor.Minutes(), b.soakState(peers))
			if err := b.alive(peers); err != nil {
				return err
			}
			minute++
		}
	}
	if err := b.alive(peers); err != nil {
		return err
	}
	return b.printSoak(peers)
}

// settleDown brings all peers up, each in a process of its own, and waits until the probe has seen them.
func (b *bench) settleDown(ctx context.Context) (peers []*resident, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, c := range b.lab.Clients {
		// Each peer has its own randomness, so that one does not change what another does.
		random := rand.New(rand.NewPCG(b.seed, uint64(i)))
		p := &resident{Client: c, lossy: i >= soakPeers/2, traffic: i%2 == 1, trips: plan(random, b.soakFor)}
		if p.lossy {
			path := lossy
			path.Seed = random.Uint64()
			c.Impair(path)
		}
		c.Keepalive = soakKeepalive
		if err := errors.Join(b.lab.Configure(c), c.UpApart(ctx)); err != nil {
			return nil, err
		}
		peers = append(peers, p)
	}
	for _, p := range peers {
		if _, err := b.lab.Published(ctx, 0, events.PeerConnected, p.PublicKey().String()); err != nil {
			return nil, err
		}
	}
	return peers, nil
}

// live lets those peers leave and come back whose time it is, and looks who is heard again. The time is since the soak began.
func (b *bench) live(peers []*resident, now time.Duration) error {
	look := sync.OnceValues(b.look)
	for _, p := range peers {
		leaves := !p.away && len(p.trips) > 0 && now >= p.trips[0].after
		comes := p.away && now >= p.trips[0].after+p.trips[0].lasts
		unheard := p.before.PublicKey != wgtypes.Key{}
		if !leaves && !comes && !unheard {
			continue
		}
		shown, err := look()
		if err != nil {
			return err
		}
		if unheard && heard(p.before, shown[p.before.PublicKey]) {
			p.last().heard, p.before = time.Now(), wgtypes.Peer{}
		}
		switch {
		case leaves:
			err = p.leave(shown)
		case comes:
			err = p.comeBack(shown)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) look() (shown, error) {
	dev, err := b.lab.Hub.Observe()
	if err != nil {
		return nil, err
	}
	peers := shown{}
	for _, p := range dev.Peers {
		peers[p.PublicKey] = p
	}
	return peers, nil
}

// heard reports whether a peer has been heard of in between. Initiations alone are not it: they count as received, and need not lead to a session.
func heard(before, after wgtypes.Peer) bool {
	return after.LastHandshakeTime.After(before.LastHandshakeTime) || (after.ReceiveBytes-before.ReceiveBytes)%device.MessageInitiationSize != 0
}

// leave begins the next trip. The hub's peers are as of now.
func (p *resident) leave(now shown) error {
	goes := p.Unplug
	if p.trips[0].how == frozen {
		goes = p.Freeze
	}
	a := absence{how: p.trips[0].how, left: time.Now()}
	a.session = a.left.Sub(now[wgtypes.Key(p.PublicKey())].LastHandshakeTime) < device.RejectAfterTime
	p.absences, p.away, p.before = append(p.absences, a), true, wgtypes.Peer{}
	return goes()
}

// comeBack ends the trip. The hub's peers are as of now.
func (p *resident) comeBack(now shown) error {
	comes := p.Plug
	if p.trips[0].how == frozen {
		comes = p.Thaw
	}
	p.last().back, p.before = time.Now(), now[wgtypes.Key(p.PublicKey())]
	p.trips, p.away = p.trips[1:], false
	return comes()
}

// ping sends a packet to each peer that has return traffic, whether it is there or not. Nobody reads the answers: that they cross the tunnel is enough.
func ping(c *icmp.PacketConn, peers []*resident) error {
	request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{Seq: 1}}
	packet, err := request.Marshal(nil)
	if err != nil {
		return err
	}
	for _, p := range peers {
		if p.traffic {
			_, err := c.WriteTo(packet, &net.IPAddr{IP: p.Inside.AsSlice()})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// alive is an error when something ended that should not have: what it would have said or done is missing from the truth or from the events.
func (b *bench) alive(peers []*resident) error {
	var errs []error
	for _, p := range peers {
		errs = append(errs, p.Alive())
	}
	select {
	case <-b.lab.Probe.Done():
		errs = append(errs, errors.New("the probe has ended"))
	default:
	}
	if !b.lab.Events.Connected() {
		errs = append(errs, errors.New("the subscription is lost"))
	}
	return errors.Join(errs...)
}

// soakState is for those who wait.
func (b *bench) soakState(peers []*resident) string {
	there, departures := len(peers), 0
	for _, p := range peers {
		departures += len(p.absences)
		if p.away {
			there--
		}
	}
	counts := map[events.Type]int{}
	for _, m := range b.lab.Events.All() {
		if m.Event != nil {
			counts[m.Event.Type]++
		}
	}
	return fmt.Sprintf("%d of %d there, %d departures so far; events: %d disconnected, %d connected",
		there, len(peers), departures, counts[events.PeerDisconnected], counts[events.PeerConnected])
}

// calls are what was said of each peer, by its key. It is an error if anything that was said did not arrive.
func (b *bench) calls() (map[string][]call, error) {
	calls, arrived, last := map[string][]call{}, map[uint64]bool{}, uint64(0)
	for _, m := range b.lab.Events.All() {
		if m.Err != nil {
			return nil, fmt.Errorf("on %s: %w", m.Subject, m.Err)
		}
		e := m.Event
		if e.Source != "/nodes/"+lab.Node+"/interfaces/"+lab.Interface || arrived[e.Sequence.N] {
			continue
		}
		arrived[e.Sequence.N], last = true, max(last, e.Sequence.N)
		switch d := e.Data.(type) {
		case *events.Connected:
			calls[e.Subject] = append(calls[e.Subject], call{at: d.DetectedAt, connected: true, resumed: d.Session.Resumed})
		case *events.Disconnected:
			calls[e.Subject] = append(calls[e.Subject], call{at: d.DetectedAt, reason: d.Reason})
		}
	}
	if missing := last - uint64(len(arrived)); missing > 0 {
		return nil, fmt.Errorf("%d of %d events did not arrive", missing, last)
	}
	return calls, nil
}

// printSoak prints a table for each kind of path.
func (b *bench) printSoak(peers []*resident) error {
	calls, err := b.calls()
	if err != nil {
		return err
	}
	var tallies [2][2]tally // by path and by traffic
	index := map[bool]int{true: 1}
	for _, p := range peers {
		tallies[index[p.lossy]][index[p.traffic]].add(p.absences, calls[p.PublicKey().String()])
	}
	const keysGone = 185 * time.Second // REJECT_AFTER_TIME, and 5 s to see it
	clean, rough := tallies[0], tallies[1]
	soakTable(b.out, "Clean path", clean[0], clean[1],
		soakAim{75 * time.Second, 95 * time.Second, true}, soakAim{40 * time.Second, keysGone, true})
	soakTable(b.out, fmt.Sprintf("Path with %.0f %% loss and %v ± %v in each direction", 100*lossy.Loss, lossy.Delay, lossy.Jitter), rough[0], rough[1],
		soakAim{0, keysGone, false}, soakAim{0, keysGone, false})
	return nil
}
