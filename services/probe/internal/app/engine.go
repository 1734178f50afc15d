package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/names"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

const (
	// namesInterval is how often the name files are looked at for a change.
	namesInterval = 2 * time.Second
)

// engineConfig is what an engine works with.
type engineConfig struct {
	cfg       config.Config
	version   string
	publicKey string
	bootID    string
	trigger   events.Trigger

	saved   outbox.Saved
	outbox  *outbox.Outbox
	devices *wgstate.Client
	names   *names.Reader
	metrics *telemetry.Metrics
	log     *slog.Logger
}

// engine is the one goroutine that owns the tracker. Packets, answers of devices and notices come to it over channels; what comes out goes to the
// outbox, one transaction for all that came together.
type engine struct {
	engineConfig
	tracker *tracker.Tracker
	book    names.Book

	earlier []tracker.InterfaceState // that an earlier run watched, and this one is to
	leftOut tracker.Batch            // of those that it is not to
	watched map[string]*device       // by interface name

	ear     *ear
	heard   chan heard
	lost    <-chan struct{} // packets; nil where none are seen
	changed chan struct{}
	answers chan answer
	asking  sync.WaitGroup
	asked   chan chan<- condition // how it is

	waiting bool // it was said that there is nothing to watch

	startedAt  tracker.Now
	lastCommit tracker.Now
}

// device is a watched interface.
type device struct {
	link     wgstate.Link
	schedule *tracker.Schedule
	seen     tracker.Seen
	asking   bool
	gone     bool // the last look found that it does not exist
	failing  bool

	responder *wgmsg.Responder // nil while it has no key or is down
	port      int
}

// answer is what a device said.
type answer struct {
	name     string
	from     *device
	found    wgstate.Device
	asked    tracker.Now
	answered tracker.Now
	err      error
}

func newEngine(c engineConfig) *engine {
	e := &engine{
		engineConfig: c,
		watched:      map[string]*device{},
		heard:        make(chan heard, heardBacklog),
		changed:      make(chan struct{}, 1),
		answers:      make(chan answer),
		asked:        make(chan chan<- condition),
	}
	e.ear = newEar(c.metrics, e.heard)
	e.leftOut = tracker.LeaveOut(now(), c.cfg.Node, c.cfg.Interfaces.Match, c.saved.Interfaces, c.saved.Peers)
	e.earlier = slices.DeleteFunc(slices.Clone(c.saved.Interfaces), func(s tracker.InterfaceState) bool { return !c.cfg.Interfaces.Match(s.Name) })
	e.tracker = tracker.New(tracker.Config{
		Node:     c.cfg.Node,
		Endpoint: c.cfg.Endpoint.Render,
		Name: func(k events.Key) (string, []string) {
			n := e.book[k]
			return n.Name, n.Tags
		},
		BootID:       c.bootID,
		Alive:        c.saved.Alive,
		OfflineAfter: c.cfg.OfflineAfter,
		Silence:      c.cfg.Silence,
	}, e.earlier, c.saved.Peers, c.saved.Keys)
	e.saved = outbox.Saved{Alive: c.saved.Alive} // the tracker has copies of the rest
	return e
}

// now reads the clocks.
func now() tracker.Now {
	return tracker.Now{Wall: time.Now().UTC().Round(0), Boot: clock(unix.CLOCK_BOOTTIME), Awake: clock(unix.CLOCK_MONOTONIC)}
}

func clock(id int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		panic(err) // Linux has had both since 2.6.39
	}
	return time.Duration(t.Nano())
}

// devicesChanged notes that the set of interfaces may have changed. It may be called by any goroutine.
func (e *engine) devicesChanged() {
	select {
	case e.changed <- struct{}{}:
	default: // a value that says the same waits there
	}
}

// run is the engine's task. It ends with tasks, the context of all of them. That the probe stopped is said only when ctx has ended, too, which is
// what asks the probe to stop: one that ends because a task failed says nothing, and the next one tells since when nobody watched.
func (e *engine) run(ctx, tasks context.Context) error {
	askCtx, cancel := context.WithCancel(tasks)
	defer e.asking.Wait()
	defer cancel()

	e.startedAt = now()
	e.loadNames()
	e.sayStarted()
	e.enumerate()
	nameTicks := time.NewTicker(namesInterval)
	defer nameTicks.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		e.ask(askCtx)
		timer.Reset(e.untilNext())
		select {
		case <-tasks.Done():
			t := now()
			if ctx.Err() != nil {
				e.tracker.Say(t.Wall, &events.Stopped{
					Common: events.Common{Node: e.cfg.Node, DetectedAt: t.Wall}, Version: e.version,
					UptimeSeconds: int64((t.Boot - e.startedAt.Boot) / time.Second),
				})
			}
			return e.commit(t)
		case h := <-e.heard:
			e.note(now(), h)
		case a := <-e.answers:
			e.take(a)
		case reply := <-e.asked:
			reply <- e.condition()
		case <-e.changed:
			e.enumerate()
		case <-e.lost:
			e.lookAtAll()
		case <-e.ear.missed:
			e.lookAtAll()
		case <-nameTicks.C:
			if e.names.Changed() {
				e.loadNames()
			}
		case <-timer.C:
		}
		if t := now(); e.tracker.Urgent() || t.Boot-e.lastCommit.Boot >= tracker.StoreInterval {
			if err := e.commit(t); err != nil {
				return err
			}
		}
	}
}

// lookAtAll makes up for messages that were lost: what came of them, looks will tell.
func (e *engine) lookAtAll() {
	at := now().Boot
	for _, d := range e.watched {
		d.schedule.Skipped(at)
	}
}

// sayStarted begins the probe's own story, with how long nobody watched.
func (e *engine) sayStarted() {
	t := e.startedAt
	s := &events.Started{
		Common: events.Common{Node: e.cfg.Node, DetectedAt: t.Wall}, Version: e.version, PublicKey: e.publicKey,
		Trigger: e.trigger, Interfaces: e.cfg.Globs, BlindSince: e.saved.Alive.Wall,
	}
	if !s.BlindSince.IsZero() {
		s.BlindSeconds = int64(max(0, t.Wall.Sub(s.BlindSince)) / time.Second)
	}
	e.tracker.Say(t.Wall, s)
}

// loadNames reads the name files, and has the states of those announced whose names changed in this run.
func (e *engine) loadNames() {
	book, errs := e.names.Load()
	for _, err := range errs {
		e.log.Warn("name file", "error", err)
	}
	was := e.book
	e.book = book
	if was == nil {
		return // what was told in an earlier run is not known
	}
	e.tracker.Renamed(func(key events.Key) bool {
		return was[key].Name != book[key].Name || !slices.Equal(was[key].Tags, book[key].Tags)
	})
}

// enumerate compares the interfaces that exist with those that are watched.
func (e *engine) enumerate() {
	t := now()
	links, errs := e.devices.Devices()
	for _, err := range errs {
		e.log.Warn("interfaces", "error", err)
	}
	var present []string
	for _, l := range links {
		if err := events.ValidateName(l.Name); err != nil {
			e.log.Warn("interface is not watched", "interface", l.Name, "error", err)
			continue
		}
		present = append(present, l.Name)
		d, known := e.watched[l.Name]
		if !known {
			d = &device{schedule: tracker.NewSchedule(t.Boot, e.trigger == events.TriggerPackets)}
			e.watched[l.Name] = d
			e.log.Info("interface is watched", "interface", l.Name, "kind", l.Kind)
		}
		if d.link != l {
			d.link = l
			d.schedule.Soon(t.Boot)
		}
	}
	// With errors the list may be short: then only what a look did not find, either, is gone.
	whole := len(errs) == 0
	e.tracker.Present(t, present, whole)
	for name, d := range e.watched {
		if !slices.Contains(present, name) && (whole || d.gone) {
			delete(e.watched, name)
			e.log.Info("interface is gone", "interface", name)
			e.tracker.Gone(t, name)
		}
	}
	if !whole {
		e.missEarlier(t, present)
	}
	if len(e.watched) == 0 && !e.waiting {
		e.log.Info("there is no WireGuard interface to watch yet, waiting for one", "wanted", cmp.Or(strings.Join(e.cfg.Globs, ","), "any"))
	}
	e.waiting = len(e.watched) == 0
	e.aim()
	e.count()
}

// missEarlier tells which interfaces went while no probe ran, when the list may be short and does not tell: no look at them is going to.
func (e *engine) missEarlier(t tracker.Now, present []string) {
	for _, i := range e.earlier {
		if slices.Contains(present, i.Name) {
			continue
		}
		if l, err := e.devices.Link(i.Ifindex); errors.Is(err, os.ErrNotExist) || err == nil && l.Name != i.Name {
			e.tracker.Gone(t, i.Name)
		}
	}
}

// aim tells the ear who opens handshakes for the watched interfaces.
func (e *engine) aim() {
	var targets []target
	for name, d := range e.watched {
		if d.responder != nil {
			targets = append(targets, target{name: name, port: d.port, responder: d.responder})
		}
	}
	e.ear.targets.Store(&targets)
}

// count tells the metrics how many peers there are.
func (e *engine) count() {
	var connected, configured int
	for _, d := range e.watched {
		connected += d.seen.Connected
		configured += d.seen.Configured
	}
	e.metrics.Peers(connected, configured)
}

// note takes in a message: it tells the tracker who knocks, and the schedules what that promises.
func (e *engine) note(t tracker.Now, h heard) {
	if h.note == noteFirstData {
		for _, d := range e.watched {
			d.schedule.FirstData(t.Boot, h.src)
		}
		return
	}
	d, ok := e.watched[h.name]
	if !ok {
		return // it went meanwhile
	}
	switch h.note {
	case noteInitiation:
		a := e.tracker.Knock(t, tracker.Knock{Interface: h.name, Key: h.key, Src: h.src, Timestamp: h.stamp})
		d.schedule.Knocked(t.Boot, h.src, a)
		if a.Heard {
			e.metrics.Initiation(outcome(a))
		}
	case noteUnopened:
		if h.src.IsValid() {
			d.schedule.Initiation(t.Boot, h.src)
		} else {
			d.schedule.Skipped(t.Boot)
		}
	case noteResponse:
		// Anybody can make a response with the right mac1; whoever sends it from where a peer is gets a look at once, everybody else one in a while.
		switch known, awaited := e.tracker.At(t, h.name, h.src); {
		case awaited:
			d.schedule.Response(t.Boot, h.src)
		case !known:
			d.schedule.Unplaced(t.Boot)
		}
	case noteFirstData:
	}
}

// outcome names, for the metrics, what an initiation came to.
func outcome(a tracker.Answer) telemetry.Outcome {
	switch {
	case a.Freshness == tracker.Replayed:
		return telemetry.Replayed
	case a.Configured:
		return telemetry.Known
	case a.Freshness == tracker.ClockOff:
		return telemetry.ClockOff
	case a.Pending:
		return telemetry.Unknown
	default:
		return telemetry.Crowded
	}
}

// untilNext returns how long nothing is due.
func (e *engine) untilNext() time.Duration {
	t := now().Boot
	wait := e.lastCommit.Boot + tracker.StoreInterval - t
	for _, d := range e.watched {
		if !d.asking {
			wait = min(wait, d.schedule.Next()-t)
		}
	}
	return max(wait, 0)
}

// ask asks the devices that are due, each in a goroutine of its own and never twice at once: one that hangs holds up nobody.
func (e *engine) ask(ctx context.Context) {
	t := now().Boot
	for name, d := range e.watched {
		if d.asking || d.schedule.Next() > t {
			continue
		}
		d.asking = true
		d.schedule.Asked(t)
		link := d.link
		e.asking.Go(func() {
			a := answer{name: name, from: d, asked: now()}
			a.found, a.err = e.devices.Snapshot(ctx, link)
			a.answered = now()
			select {
			case e.answers <- a:
			case <-ctx.Done():
			}
		})
	}
}

// take takes in what a device said.
func (e *engine) take(a answer) {
	d := e.watched[a.name]
	if d != a.from {
		return // it went meanwhile, and another may have come
	}
	d.asking = false
	if a.err != nil {
		d.schedule.Failed(a.asked.Boot, a.answered.Boot)
		e.metrics.LookFailed()
		if errors.Is(a.err, os.ErrNotExist) {
			d.gone = true
			e.devicesChanged()
		} else if !d.failing {
			d.failing = true
			e.log.Warn("interface cannot be read, trying on", "interface", a.name, "error", a.err)
		}
		return
	}
	d.gone = false
	if d.failing {
		d.failing = false
		e.log.Info("interface can be read again", "interface", a.name)
	}
	e.metrics.Looked(a.answered.Boot - a.asked.Boot)
	d.seen = e.tracker.Observe(a.asked, a.answered, observed(a.found))
	d.schedule.Looked(a.asked.Boot, a.answered.Boot, a.found.Cost, d.seen)
	responder := a.found.Responder
	if !a.found.Up {
		responder = nil // it listens to nobody, so it turns nobody away
	}
	if responder != nil && d.responder != responder {
		// What came since this look was asked for was for nobody as yet. An interface that comes up may have answered, or been answered, by now.
		d.schedule.Skipped(a.answered.Boot)
	}
	if d.responder != responder || d.port != a.found.ListenPort {
		d.responder, d.port = responder, a.found.ListenPort
		e.aim()
	}
	e.count()
}

// commit stores what came together.
func (e *engine) commit(t tracker.Now) error {
	batch := e.tracker.Take(t)
	left := e.leftOut // with the first commit, which tells that the probe started
	e.leftOut = tracker.Batch{}
	batch.Interfaces, batch.Gone = append(batch.Interfaces, left.Interfaces...), append(batch.Gone, left.Gone...)
	batch.Withdrawn, batch.Removed = append(batch.Withdrawn, left.Withdrawn...), append(batch.Removed, left.Removed...)
	began := time.Now()
	if err := e.outbox.Commit(batch, t); err != nil {
		return fmt.Errorf("store %d events: %w", len(batch.Facts), err)
	}
	e.lastCommit = t
	e.metrics.Committed(time.Since(began))
	for _, f := range batch.Facts {
		e.metrics.Stored(events.TypeOf(f.Data))
	}
	return nil
}

// observed returns a snapshot as the tracker takes it. The names of fields are those of wgstate; the tracker imports no package that does I/O.
func observed(d wgstate.Device) tracker.Device {
	out := tracker.Device{
		Name: d.Name, Ifindex: d.Ifindex, Up: d.Up, PublicKey: d.PublicKey, ListenPort: d.ListenPort,
		Peers: make([]tracker.Peer, len(d.Peers)),
	}
	for i, p := range d.Peers {
		out.Peers[i] = tracker.Peer{
			PublicKey:     p.PublicKey,
			Endpoint:      p.Endpoint,
			LastHandshake: p.LastHandshake.UTC(),
			RxBytes:       p.RxBytes,
			TxBytes:       p.TxBytes,
			AllowedIPs:    p.AllowedIPs,
			Keepalive:     p.Keepalive,
			PresharedKey:  tracker.PresharedKey{Set: p.PresharedKey.Present(), Print: p.PresharedKey},
		}
	}
	return out
}
