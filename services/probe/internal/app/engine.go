package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/capture"
	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/names"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/telemetry"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

const (
	// heardBacklog is how many messages may wait for the engine. Beyond it they are dropped, and a look makes up for them.
	heardBacklog = 1024
	// namesInterval is how often the name files are looked at for a change.
	namesInterval = 2 * time.Second
	// progressInterval is how often progress without an event is stored, and that the probe is alive.
	progressInterval = time.Minute
)

// engineConfig is what an engine works with.
type engineConfig struct {
	cfg       config.Config
	version   string
	publicKey string
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

	watched map[string]*device // by interface name
	targets atomic.Pointer[[]target]

	heard   chan heard
	missed  atomic.Bool // a message was dropped
	changed chan struct{}
	answers chan answer
	asking  sync.WaitGroup

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
	key      events.Key
	port     int
}

// target is what tells whether a handshake message is for a watched interface.
type target struct {
	name string
	port int
	mac1 *wgmsg.MAC1Key
}

// heard is a message that concerns one interface, or, for data, any.
type heard struct {
	kind wgmsg.Kind
	name string
	src  netip.AddrPort
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
	}
	e.targets.Store(&[]target{})
	interfaces := slices.DeleteFunc(c.saved.Interfaces, func(s tracker.InterfaceState) bool { return !c.cfg.Interfaces.Match(s.Name) })
	e.tracker = tracker.New(tracker.Config{
		Node:     c.cfg.Node,
		Endpoint: c.cfg.Endpoint.Render,
		Name: func(k events.Key) (string, []string) {
			n := e.book[k]
			return n.Name, n.Tags
		},
	}, interfaces, c.saved.Peers)
	return e
}

// now reads both clocks.
func now() tracker.Now {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		panic(err) // Linux has had this clock since 2.6.39
	}
	return tracker.Now{Wall: time.Now().UTC().Round(0), Boot: time.Duration(boot.Nano())}
}

// hear takes in a message. It runs in the listener's goroutine and throws away what is for nobody here.
func (e *engine) hear(p capture.Packet) {
	h := heard{kind: p.Kind, src: p.Src}
	switch p.Kind {
	case wgmsg.Initiation, wgmsg.Response:
		var ok bool
		if h.name, ok = addressee(*e.targets.Load(), p); !ok {
			e.metrics.Foreign()
			return
		}
	case wgmsg.Data:
	default:
		return
	}
	e.metrics.Message(p.Kind)
	select {
	case e.heard <- h:
	default:
		e.metrics.Overflow()
		e.missed.Store(true)
	}
}

// addressee returns the interface that a handshake message is for. Where several have the same key, the port decides.
func addressee(targets []target, p capture.Packet) (name string, ok bool) {
	for _, t := range targets {
		if !t.mac1.Verify(p.Payload) {
			continue
		}
		if t.port == int(p.Dst.Port()) {
			return t.name, true
		}
		if !ok {
			name, ok = t.name, true
		}
	}
	return name, ok
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
			e.note(now().Boot, h)
		case a := <-e.answers:
			e.take(a)
		case <-e.changed:
			e.enumerate()
		case <-nameTicks.C:
			if e.names.Changed() {
				e.loadNames()
			}
			if e.missed.Swap(false) {
				at := now().Boot
				for _, d := range e.watched {
					d.schedule.Soon(at)
				}
			}
		case <-timer.C:
		}
		if t := now(); e.tracker.Urgent() || t.Boot-e.lastCommit.Boot >= progressInterval {
			if err := e.commit(t); err != nil {
				return err
			}
		}
	}
}

// sayStarted begins the probe's own story, with how long nobody watched.
func (e *engine) sayStarted() {
	t := e.startedAt
	s := &events.Started{
		Common: events.Common{Node: e.cfg.Node, DetectedAt: t.Wall}, Version: e.version, PublicKey: e.publicKey,
		Trigger: e.trigger, Interfaces: e.cfg.Globs, BlindSince: e.saved.AliveAt,
	}
	if !s.BlindSince.IsZero() {
		s.BlindSeconds = int64(max(0, t.Wall.Sub(s.BlindSince)) / time.Second)
	}
	e.tracker.Say(t.Wall, s)
}

// loadNames reads the name files.
func (e *engine) loadNames() {
	book, errs := e.names.Load()
	for _, err := range errs {
		e.log.Warn("name file", "error", err)
	}
	e.book = book
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
	e.aim()
	e.count()
}

// aim tells hear what the watched interfaces' keys are.
func (e *engine) aim() {
	var targets []target
	for name, d := range e.watched {
		if !d.key.IsZero() {
			targets = append(targets, target{name: name, port: d.port, mac1: wgmsg.NewMAC1Key(d.key)})
		}
	}
	e.targets.Store(&targets)
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

// note tells the schedules about a message.
func (e *engine) note(boot time.Duration, h heard) {
	if h.kind == wgmsg.Data {
		for _, d := range e.watched {
			d.schedule.FirstData(boot, h.src)
		}
		return
	}
	d, ok := e.watched[h.name]
	if !ok {
		return // it went meanwhile
	}
	if h.kind == wgmsg.Initiation {
		d.schedule.Initiation(boot, h.src)
	} else {
		d.schedule.Response(boot, h.src)
	}
}

// untilNext returns how long nothing is due.
func (e *engine) untilNext() time.Duration {
	t := now().Boot
	wait := e.lastCommit.Boot + progressInterval - t
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
	d.schedule.Looked(a.asked.Boot, a.answered.Boot, d.seen)
	if d.key != a.found.PublicKey || d.port != a.found.ListenPort {
		d.key, d.port = a.found.PublicKey, a.found.ListenPort
		e.aim()
	}
	e.count()
}

// commit stores what came together.
func (e *engine) commit(t tracker.Now) error {
	batch := e.tracker.Take(t)
	began := time.Now()
	if err := e.outbox.Commit(batch, t.Wall); err != nil {
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
