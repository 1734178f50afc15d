package tracker_test

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

// A script is lines of "+<time since the beginning> <what happens>". Things happen in the world, which the tracker does not see, or to the tracker:
//
//	interface wg0 up [port=P] [key=K]  a new interface, or one that is there changes: up, down, deleted, recreated (deleted and made again with the
//	                                   same peers), renamed NEW. A running probe learns at once that an interface came or went.
//	peer A [allowed=P,P] [keepalive=S] [psk=P|none]   a new peer, or one that is there changes
//	unpeer A                           the peer is taken out of the configuration
//	replace A                          it is taken out and put in again
//	handshake A ADDR [clock=-1h]       a handshake is confirmed; the peer is at ADDR
//	knock A ADDR [clock=-1h]           an initiation of A's arrives and no session comes about; A may be anyone, and A's clock may be wrong
//	replay A ADDR                      somebody sends A's latest initiation again
//	roam A ADDR                        data comes from ADDR
//	traffic A rx=N tx=N                bytes are counted
//	clock +1h                          somebody sets the wall clock
//	suspend 10m                        the host sleeps
//	every 25s [as=N] [skip=20] …       from now on, the rest of the line happens each 25 s, every 20th time left out; {n} counts
//	end N                              no longer
//	reboot                             the host starts again: interfaces keep names, indexes and peers, and have counted nothing
//
//	start                              the probe starts with what it stored; also after an earlier start, which then was a crash or a stop
//	stop                               it no longer learns anything
//	look wg0 [took=1s]                 it looks at a device, which answers at once, and stores what comes out; took is until it comes to that
//	watch wg0 10m                      it looks, for so long, whenever its Schedule says so
//	offline 300s                       the next start has this OfflineAfter
//	silence off                        the next start says neither silent nor unreachable
//
// Peers are on wg0 unless on=wg1 says otherwise. What comes out stands below each line, as "want …".
type script struct {
	world   *world
	tracker *tracker.Tracker // nil while no probe runs
	form    tracker.EndpointForm
	stored  map[string][]byte // by interface, and by interface and peer
	keys    map[events.Key][]byte
	seq     uint64
	rules   *rules

	alive        tracker.Now // when something was stored last
	offlineAfter time.Duration
	silence      bool
	schedules    map[string]*tracker.Schedule
	habits       []*habit
	stamps       map[events.Key][12]byte // of the latest initiation
}

// habit is a line that happens again and again.
type habit struct {
	name  string
	line  string
	every time.Duration
	next  time.Duration // since the beginning
	skip  int
	n     int
}

const node = "vpn-1"

// origin is when every script begins, on the wall clock.
var origin = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func newScript() *script {
	return &script{
		world: &world{boot: time.Hour, awake: time.Hour, wall: origin, next: 5, bootID: "boot"}, form: tracker.EndpointFull,
		stored: map[string][]byte{}, keys: map[events.Key][]byte{}, rules: newRules(), offlineAfter: tracker.RejectAfterTime, silence: true,
		schedules: map[string]*tracker.Schedule{}, stamps: map[events.Key][12]byte{},
	}
}

// world is what is really there.
type world struct {
	boot       time.Duration
	awake      time.Duration
	bootID     string
	wall       time.Time
	since      time.Duration // the beginning
	next       int           // ifindex
	interfaces []*wgInterface
}

type wgInterface struct {
	tracker.Device
	alive map[events.Key]time.Duration // boot time of handshakes whose keys are still there
}

func (w *world) find(name string) *wgInterface {
	for _, i := range w.interfaces {
		if i.Name == name {
			return i
		}
	}
	return nil
}

func (w *world) names() []string {
	var names []string
	for _, i := range w.interfaces {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return names
}

func (i *wgInterface) peer(key events.Key) *tracker.Peer {
	for n := range i.Peers {
		if i.Peers[n].PublicKey == key {
			return &i.Peers[n]
		}
	}
	return nil
}

// fresh makes the device count from zero.
func (i *wgInterface) fresh() {
	i.alive = map[events.Key]time.Duration{}
	for n := range i.Peers {
		p := &i.Peers[n]
		p.RxBytes, p.TxBytes, p.LastHandshake = 0, 0, time.Time{}
	}
}

// keyOf returns the key of a name: the name itself, filled up with dots.
func keyOf(name string) events.Key {
	var k events.Key
	for n := range k {
		k[n] = '.'
	}
	copy(k[:], name)
	return k
}

func nameOf(k events.Key) string {
	if k.IsZero() {
		return "none"
	}
	return strings.TrimRight(string(k[:]), ".")
}

// run does one line and returns what came out.
func (s *script) run(line string) ([]string, error) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return nil, errors.New("want a time and what happens")
	}
	at, err := time.ParseDuration(fields[0])
	if err != nil || at < s.world.since {
		return nil, fmt.Errorf("time %s is none, or earlier than the line before", fields[0])
	}
	if err := s.until(at); err != nil {
		return nil, err
	}
	return s.do(fields[1], fields[2:])
}

// until lets time pass, and what happens again and again happen.
func (s *script) until(at time.Duration) error {
	for {
		var due *habit
		for _, h := range s.habits {
			if h.next <= at && (due == nil || h.next < due.next) {
				due = h
			}
		}
		if due == nil {
			s.world.pass(at - s.world.since)
			return nil
		}
		s.world.pass(max(0, due.next-s.world.since))
		due.next += due.every
		due.n++
		if due.skip > 0 && due.n%due.skip == 0 {
			continue
		}
		fields := strings.Fields(strings.ReplaceAll(due.line, "{n}", strconv.Itoa(due.n)))
		if out, err := s.do(fields[0], fields[1:]); err != nil || len(out) > 0 {
			return fmt.Errorf("every %v: %s: %v, %w", due.every, due.line, out, err)
		}
	}
}

func (w *world) pass(d time.Duration) {
	w.since += d
	w.boot += d
	w.awake += d
	w.wall = w.wall.Add(d)
}

// do lets one thing happen and returns what came out.
func (s *script) do(verb string, fields []string) ([]string, error) {
	var args []string
	options := map[string]string{}
	for _, f := range fields {
		if k, v, ok := strings.Cut(f, "="); ok {
			options[k] = v
		} else {
			args = append(args, f)
		}
	}
	arg := func(n int) string {
		if n < len(args) {
			return args[n]
		}
		return ""
	}
	switch verb {
	case "interface":
		return s.iface(arg(0), arg(1), arg(2), options)
	case "every":
		every, err := time.ParseDuration(arg(0))
		if err != nil {
			return nil, err
		}
		h := &habit{name: options["as"], every: every, next: s.world.since + every}
		h.skip, _ = strconv.Atoi(options["skip"])
		h.line = strings.Join(slices.DeleteFunc(slices.Clone(fields[1:]), func(f string) bool {
			return strings.HasPrefix(f, "as=") || strings.HasPrefix(f, "skip=")
		}), " ")
		s.habits = append(s.habits, h)
		return nil, nil
	case "end":
		before := len(s.habits)
		s.habits = slices.DeleteFunc(s.habits, func(h *habit) bool { return h.name == arg(0) })
		if len(s.habits) == before {
			return nil, fmt.Errorf("nothing happens as %s", arg(0))
		}
		return nil, nil
	case "suspend":
		d, err := time.ParseDuration(arg(0))
		s.world.boot += d
		s.world.wall = s.world.wall.Add(d)
		return nil, err
	case "offline":
		var err error
		s.offlineAfter, err = time.ParseDuration(arg(0))
		return nil, err
	case "silence":
		s.silence = arg(0) == "auto"
		return nil, nil
	case "watch":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return nil, err
		}
		return s.watch(arg(0), d)
	case "knock", "replay":
		on := cmp.Or(options["on"], "wg0")
		i := s.world.find(on)
		if i == nil {
			return nil, fmt.Errorf("there is no %s", on)
		}
		off, _ := time.ParseDuration(options["clock"])
		return nil, s.knock(i, keyOf(arg(0)), arg(1), off, verb == "replay")
	case "peer", "unpeer", "replace", "handshake", "roam", "traffic":
		on := options["on"]
		if on == "" {
			on = "wg0"
		}
		i := s.world.find(on)
		if i == nil {
			return nil, fmt.Errorf("there is no %s", on)
		}
		return nil, s.peer(i, verb, keyOf(arg(0)), arg(1), options)
	case "clock":
		d, err := time.ParseDuration(arg(0))
		s.world.wall = s.world.wall.Add(d)
		s.rules.stepped = true
		return nil, err
	case "reboot":
		s.tracker = nil
		s.world.boot, s.world.awake = time.Minute, time.Minute
		s.world.bootID += "+"
		for _, i := range s.world.interfaces {
			i.fresh()
		}
		return nil, nil
	case "endpoint":
		s.form = tracker.EndpointForm(arg(0))
		return nil, nil
	case "start":
		return s.start()
	case "stop":
		s.tracker = nil
		return nil, nil
	case "look":
		i := s.world.find(arg(0))
		if i == nil || s.tracker == nil {
			return nil, errors.New("there is nothing to look at, or nobody who looks")
		}
		d := i.Device
		d.Peers = slices.Clone(d.Peers)
		asked := s.now()
		s.schedule(i.Name).Asked(asked.Boot)
		took, _ := time.ParseDuration(options["took"])
		if err := s.until(s.world.since + took); err != nil {
			return nil, err
		}
		seen := s.tracker.Observe(asked, s.now(), d)
		s.schedule(i.Name).Looked(asked.Boot, s.world.boot, 0, seen)
		if took > 0 {
			return s.take(nil) // what is there may not be what it saw
		}
		return s.take(i)
	default:
		return nil, fmt.Errorf("what is %q?", verb)
	}
}

func (s *script) now() tracker.Now {
	return tracker.Now{Wall: s.world.wall, Boot: s.world.boot, Awake: s.world.awake}
}

func (s *script) schedule(name string) *tracker.Schedule {
	if s.schedules[name] == nil {
		s.schedules[name] = tracker.NewSchedule(s.world.boot, true)
	}
	return s.schedules[name]
}

// watch looks at an interface whenever its schedule says so.
func (s *script) watch(name string, d time.Duration) ([]string, error) {
	var out []string
	for end := s.world.since + d; ; {
		// What happens before the next look may bring it forward.
		next := max(0, s.schedule(name).Next()-s.world.boot) + s.world.since
		for _, h := range s.habits {
			next = min(next, h.next)
		}
		if next > end {
			return out, s.until(end)
		}
		if err := s.until(next); err != nil {
			return out, err
		}
		if s.schedule(name).Next() > s.world.boot {
			continue
		}
		said, err := s.do("look", []string{name})
		out = append(out, said...)
		if err != nil {
			return out, err
		}
	}
}

// knock lets an initiation arrive that does not become a session.
func (s *script) knock(i *wgInterface, key events.Key, from string, off time.Duration, again bool) error {
	src, err := netip.ParseAddrPort(from)
	if err != nil {
		return err
	}
	if !again {
		s.stamps[key] = tai64n(s.world.wall.Add(off))
		if p := i.peer(key); p != nil {
			p.RxBytes += 148
			p.TxBytes += 92
		}
	}
	if s.tracker == nil {
		return nil
	}
	a := s.tracker.Knock(s.now(), tracker.Knock{Interface: i.Name, Key: key, Src: src, Timestamp: s.stamps[key]})
	s.schedule(i.Name).Knocked(s.world.boot, src, a)
	return nil
}

// tai64n is the timestamp of an initiation that is made at a time (whitepaper §5.1).
func tai64n(t time.Time) (stamp [12]byte) {
	binary.BigEndian.PutUint64(stamp[:], 0x400000000000000a+uint64(t.Unix()))
	binary.BigEndian.PutUint32(stamp[8:], uint32(t.Nanosecond()))
	return stamp
}

// iface lets something happen to an interface.
func (s *script) iface(name, what, to string, options map[string]string) ([]string, error) {
	w := s.world
	i := w.find(name)
	if i == nil && (what == "up" || what == "down") {
		i = &wgInterface{Device: tracker.Device{Name: name, Ifindex: w.next, PublicKey: keyOf("key-of-" + name), ListenPort: 51820}}
		i.fresh()
		w.next++
		w.interfaces = append(w.interfaces, i)
	}
	if i == nil {
		return nil, fmt.Errorf("there is no %s", name)
	}
	if p, ok := options["port"]; ok {
		port, err := strconv.Atoi(p)
		if err != nil {
			return nil, err
		}
		i.ListenPort = port
	}
	if k, ok := options["key"]; ok {
		i.PublicKey = keyOf(k)
	}
	switch what {
	case "up":
		i.Up = true
	case "down":
		i.Up = false
		clear(i.alive)
	case "deleted":
		w.interfaces = slices.DeleteFunc(w.interfaces, func(o *wgInterface) bool { return o == i })
	case "recreated":
		i.Ifindex = w.next
		w.next++
		i.fresh()
	case "renamed":
		i.Name = to
	default:
		return nil, fmt.Errorf("what is %q?", what)
	}
	if s.tracker == nil || what == "recreated" {
		return nil, nil
	}
	s.tracker.Present(s.now(), w.names(), true)
	return s.take(nil)
}

// peer lets something happen to a peer.
func (s *script) peer(i *wgInterface, verb string, key events.Key, to string, options map[string]string) error {
	number := func(name string) uint64 {
		n, _ := strconv.ParseUint(options[name], 10, 64)
		return n
	}
	p := i.peer(key)
	if p == nil && verb == "peer" {
		i.Peers = append(i.Peers, tracker.Peer{PublicKey: key})
		p = i.peer(key)
	}
	if p == nil {
		return errors.New("there is no such peer")
	}
	switch verb {
	case "peer":
		if v, ok := options["allowed"]; ok {
			p.AllowedIPs = nil
			for text := range strings.SplitSeq(v, ",") {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return err
				}
				p.AllowedIPs = append(p.AllowedIPs, prefix)
			}
		}
		if _, ok := options["keepalive"]; ok {
			p.Keepalive = time.Duration(number("keepalive")) * time.Second
		}
		switch v, ok := options["psk"]; {
		case ok && v == "none":
			p.PresharedKey = tracker.PresharedKey{}
		case ok:
			p.PresharedKey = tracker.PresharedKey{Set: true}
			copy(p.PresharedKey.Print[:], v)
		}
	case "unpeer":
		i.Peers = slices.DeleteFunc(i.Peers, func(p tracker.Peer) bool { return p.PublicKey == key })
		delete(i.alive, key)
	case "replace":
		*p = tracker.Peer{PublicKey: key, AllowedIPs: p.AllowedIPs, Keepalive: p.Keepalive}
		delete(i.alive, key)
	case "handshake":
		off, _ := time.ParseDuration(options["clock"])
		if err := s.knock(i, key, to, off, false); err != nil {
			return err
		}
		if src, err := netip.ParseAddrPort(to); err == nil {
			s.schedule(i.Name).FirstData(s.world.boot, src)
		}
		p.LastHandshake = s.world.wall
		p.RxBytes += 32 // the first keepalive, after the initiation
		i.alive[key] = s.world.boot
		fallthrough
	case "roam":
		ap, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		p.Endpoint = ap
		if verb == "roam" {
			p.RxBytes += 96
		}
	case "traffic":
		p.RxBytes += number("rx")
		p.TxBytes += number("tx")
	}
	return nil
}

// start makes a tracker of what is stored.
func (s *script) start() ([]string, error) {
	var interfaces []tracker.InterfaceState
	var peers []tracker.PeerState
	for key, value := range s.stored {
		var err error
		if strings.Contains(key, "/") {
			peers = append(peers, tracker.PeerState{})
			err = json.Unmarshal(value, &peers[len(peers)-1])
		} else {
			interfaces = append(interfaces, tracker.InterfaceState{})
			err = json.Unmarshal(value, &interfaces[len(interfaces)-1])
		}
		if err != nil {
			return nil, err
		}
	}
	var keys []tracker.KeyState
	for _, value := range s.keys {
		keys = append(keys, tracker.KeyState{})
		if err := json.Unmarshal(value, &keys[len(keys)-1]); err != nil {
			return nil, err
		}
	}
	clear(s.schedules)
	s.rules.started()
	s.tracker = tracker.New(tracker.Config{
		Node:     node,
		Endpoint: s.form.Render,
		Name:     func(k events.Key) (string, []string) { return strings.ToLower(nameOf(k)), nil },
		BootID:   s.world.bootID, Alive: s.alive, OfflineAfter: s.offlineAfter, Silence: s.silence,
	}, interfaces, peers, keys)
	s.tracker.Present(s.now(), s.world.names(), true)
	return s.take(nil)
}

// take stores what came out and tells it. looked is the device that was looked at.
func (s *script) take(looked *wgInterface) ([]string, error) {
	batch := s.tracker.Take(s.now())
	s.rules.now = s.world.boot
	s.alive = tracker.Now{Wall: s.world.wall, Boot: s.world.boot}
	var out []string
	for _, f := range batch.Facts {
		s.seq++
		e := events.New(f.Data, f.Time, events.Sequence{Epoch: 1795342000123, N: s.seq})
		body, err := e.Encode()
		if err != nil {
			return nil, err
		}
		if _, err := events.Decode(body); err != nil {
			return nil, err
		}
		if err := s.rules.fact(e); err != nil {
			return nil, err
		}
		if d, ok := e.Data.(*events.Rejected); ok && s.world.find(d.Interface).peer(d.PublicKey) != nil {
			return nil, fmt.Errorf("%s is rejected at %s, where it is configured", nameOf(d.PublicKey), d.Interface)
		}
		out = append(out, s.describe(e))
	}
	for _, i := range batch.Interfaces {
		if err := s.store(i.Name, i); err != nil {
			return nil, err
		}
	}
	for _, p := range batch.Peers {
		if err := s.store(p.Interface+"/"+nameOf(p.PublicKey), p); err != nil {
			return nil, err
		}
	}
	for _, name := range batch.Gone {
		delete(s.stored, name)
		out = append(out, "forgotten "+name)
	}
	for _, id := range batch.Removed {
		delete(s.stored, id.Interface+"/"+nameOf(id.Key))
		if slices.Contains(batch.Gone, id.Interface) {
			out = append(out, "forgotten "+id.Interface+" "+nameOf(id.Key))
		}
	}
	for _, k := range batch.Keys {
		value, err := json.Marshal(k)
		if err != nil {
			return nil, err
		}
		s.keys[k.Key] = value
	}
	for _, key := range batch.Forgotten {
		delete(s.keys, key)
	}
	for _, state := range batch.Announce {
		if _, err := state.Encode(); err != nil {
			return nil, err
		}
		if err := s.rules.state(&state); err != nil {
			return nil, err
		}
	}
	if looked != nil {
		return out, s.rules.looked(s.world, looked, s.offlineAfter)
	}
	return out, nil
}

func (s *script) store(key string, v any) error {
	value, err := json.Marshal(v)
	s.stored[key] = value
	return err
}

// describe tells an event in one line: what, who, when, and what is particular to it.
func (s *script) describe(e *events.Event) string {
	words := []string{string(e.Type), e.Common().Interface}
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if p := e.Peer(); p != nil {
		words = append(words, nameOf(p.PublicKey))
	}
	if d, ok := e.Data.(*events.Rejected); ok {
		words = append(words, nameOf(d.PublicKey))
	}
	say("at=+%v", e.Time.Sub(origin))
	session := func(v events.Session) {
		say("started=+%v lasted=%ds seen=+%v..+%v rx=%d tx=%d", v.StartedAt.Sub(origin), v.DurationSeconds,
			v.LastSeen.After.Sub(origin), v.LastSeen.Before.Sub(origin), v.RxBytes, v.TxBytes)
		if v.Resumed {
			say("resumed")
		}
	}
	peer := func(p events.Peer) {
		if p.Endpoint != "" {
			say("endpoint=%s", p.Endpoint)
		}
		if len(p.AllowedIPs) > 0 {
			say("allowed=%v", p.AllowedIPs)
		}
		if p.KeepaliveSeconds > 0 {
			say("keepalive=%d", p.KeepaliveSeconds)
		}
		if p.PresharedKey {
			say("psk")
		}
	}
	switch d := e.Data.(type) {
	case *events.Connected:
		if d.Peer.Endpoint != "" {
			say("endpoint=%s", d.Peer.Endpoint)
		}
		session(d.Session)
	case *events.Disconnected:
		say("%s", d.Reason)
		if d.Cause != "" {
			say("cause=%s", d.Cause)
		}
		session(d.Session)
	case *events.Stalled:
		say("attempts=%d since=+%v", d.Attempts, d.Since.Sub(origin))
	case *events.Rejected:
		say("endpoint=%s count=%d suppressed=%d", d.Endpoint, d.Count, d.Suppressed)
	case *events.Roamed:
		say("from=%s to=%s", d.From, d.To)
		session(d.Session)
	case *events.Added:
		peer(d.Peer)
	case *events.Removed:
		peer(d.Peer)
	case *events.Changed:
		if c := d.Changes.AllowedIPs; c != nil {
			say("allowed=%v->%v", c.From, c.To)
		}
		if c := d.Changes.KeepaliveSeconds; c != nil {
			say("keepalive=%d->%d", c.From, c.To)
		}
		if c := d.Changes.PresharedKey; c != "" {
			say("psk=%s", c)
		}
	case *events.Up:
		say("port=%d key=%s peers=%d", d.Device.ListenPort, nameOf(d.Device.PublicKey), d.Peers)
	case *events.Down:
		say("%s", d.Reason)
	case *events.DeviceChanged:
		if c := d.Changes.ListenPort; c != nil {
			say("port=%d->%d", c.From, c.To)
		}
		if c := d.Changes.PublicKey; c != nil {
			say("key=%s->%s", nameOf(c.From), nameOf(c.To))
		}
	}
	if e.Common().Inferred {
		say("inferred")
	}
	return strings.Join(words, " ")
}

// rules are what holds for every story. They follow the events alone, as a subscriber does, and compare them with the world at each look.
type rules struct {
	up        map[string]bool
	connected map[string]bool          // by interface and peer
	quiet     map[string]bool          // by interface and peer: called silent or unreachable
	lastLook  map[string]time.Duration // on the boot clock
	now       time.Duration
	first     map[string]bool // interfaces that were looked at in this run
	stepped   bool            // the wall clock was: then a session may be taken for younger than it is, by no more than a look's distance
}

func newRules() *rules {
	return &rules{
		up: map[string]bool{}, connected: map[string]bool{}, quiet: map[string]bool{}, first: map[string]bool{}, lastLook: map[string]time.Duration{},
	}
}

func (r *rules) started() { clear(r.first) }

func (r *rules) fact(e *events.Event) error {
	name := e.Common().Interface
	id := name + "/" + e.Subject
	if e.Common().Inferred && r.first[name] && r.now-r.lastLook[name] < 40*time.Second {
		return fmt.Errorf("%s of %s is inferred, and the probe was not blind", e.Type, id)
	}
	toggle := func(set map[string]bool, key string, to bool) error {
		if set[key] == to {
			return fmt.Errorf("%s of %s twice in a row", e.Type, key)
		}
		set[key] = to
		return nil
	}
	switch d := e.Data.(type) {
	case *events.Up:
		return toggle(r.up, name, true)
	case *events.Down:
		return toggle(r.up, name, false)
	case *events.Connected:
		if !r.up[name] {
			return fmt.Errorf("%s connects to an interface that is down", id)
		}
		if d.Session.Resumed && !r.quiet[id] {
			return fmt.Errorf("%s resumes, and was never quiet", id)
		}
		delete(r.quiet, id)
		return toggle(r.connected, id, true)
	case *events.Disconnected:
		if r.up[name] == (d.Reason == events.InterfaceIsDown) {
			return fmt.Errorf("%s leaves (%s) while its interface is up: %v", id, d.Reason, r.up[name])
		}
		if d.Session.LastSeen.Before.After(e.Time) {
			return fmt.Errorf("%s was last seen before %v, and left at %v", id, d.Session.LastSeen.Before, e.Time)
		}
		r.quiet[id] = d.Reason == events.Silent || d.Reason == events.Unreachable
		return toggle(r.connected, id, false)
	case *events.Stalled:
		if r.connected[id] {
			return fmt.Errorf("%s stalls while connected", id)
		}
	case *events.Removed, *events.Roamed:
		if _, roams := d.(*events.Roamed); r.connected[id] != roams {
			return fmt.Errorf("%s of %s while connected: %v", e.Type, id, r.connected[id])
		}
	}
	return nil
}

func (r *rules) state(s *events.State) error {
	if id := s.Interface + "/" + s.Peer.PublicKey.String(); r.connected[id] != s.Connected {
		return fmt.Errorf("the state of %s says connected: %v, and the events say otherwise", id, s.Connected)
	}
	return nil
}

// looked compares what the events say with what is there, right after a look.
func (r *rules) looked(w *world, i *wgInterface, offlineAfter time.Duration) error {
	r.first[i.Name] = true
	r.lastLook[i.Name] = w.boot
	for n := range i.Peers {
		p := &i.Peers[n]
		at, alive := i.alive[p.PublicKey]
		alive = alive && w.boot-at < offlineAfter
		id := i.Name + "/" + p.PublicKey.String()
		if is := r.connected[id]; is != alive && !(is && r.stepped) && !(alive && r.quiet[id]) {
			return fmt.Errorf("after the look, %s is connected: %v, and has a session: %v", nameOf(p.PublicKey), is, alive)
		}
	}
	return nil
}
