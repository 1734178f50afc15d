package tracker_test

import (
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
//	handshake A ADDR                   a handshake is confirmed; the peer is at ADDR
//	roam A ADDR                        data comes from ADDR
//	traffic A rx=N tx=N                bytes are counted
//	clock +1h                          somebody sets the wall clock
//	reboot                             the host starts again: interfaces keep names, indexes and peers, and have counted nothing
//
//	start                              the probe starts with what it stored; also after an earlier start, which then was a crash or a stop
//	stop                               it no longer learns anything
//	look wg0                           it looks at a device, and stores what comes out
//
// Peers are on wg0 unless on=wg1 says otherwise. What comes out stands below each line, as "want …".
type script struct {
	world   *world
	tracker *tracker.Tracker // nil while no probe runs
	form    tracker.EndpointForm
	stored  map[string][]byte // by interface, and by interface and peer
	seq     uint64
	rules   *rules
}

const node = "vpn-1"

// origin is when every script begins, on the wall clock.
var origin = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func newScript() *script {
	return &script{
		world: &world{boot: time.Hour, wall: origin, next: 5}, form: tracker.EndpointFull, stored: map[string][]byte{}, rules: newRules(),
	}
}

// world is what is really there.
type world struct {
	boot       time.Duration
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
	s.world.boot += at - s.world.since
	s.world.wall = s.world.wall.Add(at - s.world.since)
	s.world.since = at

	verb, args := fields[1], []string(nil)
	options := map[string]string{}
	for _, f := range fields[2:] {
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
		s.world.boot = time.Minute
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
		s.tracker.Observe(s.now(), s.now(), d)
		return s.take(i)
	default:
		return nil, fmt.Errorf("what is %q?", verb)
	}
}

func (s *script) now() tracker.Now { return tracker.Now{Wall: s.world.wall, Boot: s.world.boot} }

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
		p.LastHandshake = s.world.wall
		p.RxBytes += 148 + 32 // initiation, first keepalive
		p.TxBytes += 92
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
	s.rules.started()
	s.tracker = tracker.New(tracker.Config{
		Node:     node,
		Endpoint: s.form.Render,
		Name:     func(k events.Key) (string, []string) { return strings.ToLower(nameOf(k)), nil },
	}, interfaces, peers)
	s.tracker.Present(s.now(), s.world.names(), true)
	return s.take(nil)
}

// take stores what came out and tells it. looked is the device that was looked at.
func (s *script) take(looked *wgInterface) ([]string, error) {
	batch := s.tracker.Take(s.now())
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
	for _, id := range batch.Removed {
		delete(s.stored, id.Interface+"/"+nameOf(id.Key))
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
		return out, s.rules.looked(s.world, looked)
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
	say("at=+%v", e.Time.Sub(origin))
	session := func(v events.Session) {
		say("started=+%v lasted=%ds seen=+%v..+%v rx=%d tx=%d", v.StartedAt.Sub(origin), v.DurationSeconds,
			v.LastSeen.After.Sub(origin), v.LastSeen.Before.Sub(origin), v.RxBytes, v.TxBytes)
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
		session(d.Session)
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
	connected map[string]bool // by interface and peer
	first     map[string]bool // interfaces that were looked at in this run
	stepped   bool            // the wall clock was: then a session may be taken for younger than it is, by no more than a look's distance
}

func newRules() *rules {
	return &rules{up: map[string]bool{}, connected: map[string]bool{}, first: map[string]bool{}}
}

func (r *rules) started() { clear(r.first) }

func (r *rules) fact(e *events.Event) error {
	name := e.Common().Interface
	id := name + "/" + e.Subject
	if e.Common().Inferred && r.first[name] {
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
		return toggle(r.connected, id, true)
	case *events.Disconnected:
		if r.up[name] == (d.Reason == events.InterfaceIsDown) {
			return fmt.Errorf("%s leaves (%s) while its interface is up: %v", id, d.Reason, r.up[name])
		}
		if d.Session.LastSeen.Before.After(e.Time) {
			return fmt.Errorf("%s was last seen before %v, and left at %v", id, d.Session.LastSeen.Before, e.Time)
		}
		return toggle(r.connected, id, false)
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
func (r *rules) looked(w *world, i *wgInterface) error {
	r.first[i.Name] = true
	for n := range i.Peers {
		p := &i.Peers[n]
		at, alive := i.alive[p.PublicKey]
		alive = alive && w.boot-at < tracker.RejectAfterTime
		if is := r.connected[i.Name+"/"+p.PublicKey.String()]; is != alive && !(is && r.stepped) {
			return fmt.Errorf("after the look, %s is connected: %v, and has a session: %v", nameOf(p.PublicKey), is, alive)
		}
	}
	return nil
}
