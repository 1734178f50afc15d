package outbox_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

// epoch is when the files of these tests are made.
var epoch = time.Date(2026, 11, 22, 10, 0, 0, 123e6, time.UTC)

func open(t testing.TB, dir string) *outbox.Outbox {
	t.Helper()
	ob, err := outbox.Open(dir, epoch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ob.Close() })
	return ob
}

func commit(t testing.TB, ob *outbox.Outbox, b tracker.Batch) {
	t.Helper()
	if err := ob.Commit(b, tracker.Now{Wall: epoch}); err != nil {
		t.Fatal(err)
	}
}

func key(name string) events.Key { return sha256.Sum256([]byte(name)) }

func common(iface string) events.Common {
	return events.Common{Node: "vpn-1", Interface: iface, DetectedAt: epoch}
}

func peer(name string) events.Peer { return events.Peer{PublicKey: key(name)} }

func added(name string) tracker.Fact {
	return tracker.Fact{Time: epoch, Data: &events.Added{Common: common("wg0"), Peer: peer(name)}}
}

func removed(name string) tracker.Fact {
	return tracker.Fact{Time: epoch, Data: &events.Removed{Common: common("wg0"), Peer: peer(name)}}
}

func state(name string) events.State {
	return events.State{Node: "vpn-1", Interface: "wg0", Peer: peer(name), UpdatedAt: epoch}
}

func queued(t testing.TB, ob *outbox.Outbox) []*events.Event {
	t.Helper()
	records, err := ob.Queued(0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var list []*events.Event
	for _, r := range records {
		e, err := events.Decode(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	return list
}

// dirty tells the marks: key, and the last event that the state tells of.
func dirty(t testing.TB, ob *outbox.Outbox) map[string]string {
	t.Helper()
	marks, err := ob.Dirty(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, m := range marks {
		if m.Value == nil {
			out[m.Key] = "deleted"
			continue
		}
		s, err := events.DecodeState(m.Value)
		if err != nil {
			t.Fatal(err)
		}
		out[m.Key] = fmt.Sprintf("%s %d", s.EventType, s.Sequence.N)
	}
	return out
}

// TestSequences: every source has a counter of its own, without holes, over all commits and runs; the epoch is that of the file.
func TestSequences(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ob := open(t, dir)
	up := func(name string) tracker.Fact {
		return tracker.Fact{Time: epoch, Data: &events.Up{Common: common(name)}}
	}
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{up("wg0"), added("A"), added("B")}})
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{removed("A"), up("wg1")}})
	if err := ob.Close(); err != nil {
		t.Fatal(err)
	}
	ob, err := outbox.Open(dir, epoch.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer ob.Close()
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A")}})

	var got []string
	ids := map[string]bool{}
	for _, e := range queued(t, ob) {
		got = append(got, fmt.Sprintf("%s %s %s", e.Source, e.Type, e.Sequence))
		ids[e.ID] = true
	}
	want := []string{
		"/nodes/vpn-1 wg.interface.up 1795341600123-00000000000000000001",
		"/nodes/vpn-1/interfaces/wg0 wg.peer.added 1795341600123-00000000000000000001",
		"/nodes/vpn-1/interfaces/wg0 wg.peer.added 1795341600123-00000000000000000002",
		"/nodes/vpn-1/interfaces/wg0 wg.peer.removed 1795341600123-00000000000000000003",
		"/nodes/vpn-1 wg.interface.up 1795341600123-00000000000000000002",
		"/nodes/vpn-1/interfaces/wg0 wg.peer.added 1795341600123-00000000000000000004",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if len(ids) != len(want) || ob.Depth() != len(want) {
		t.Errorf("%d different ids, depth %d, want %d", len(ids), ob.Depth(), len(want))
	}
}

// TestBadBatchLeavesNothing: one event that cannot be encoded takes the whole batch with it, its counters too.
func TestBadBatchLeavesNothing(t *testing.T) {
	t.Parallel()
	ob := open(t, t.TempDir())
	bad := tracker.Fact{Time: time.Time{}, Data: &events.Added{Common: common("wg0"), Peer: peer("B")}}
	err := ob.Commit(tracker.Batch{
		Facts:      []tracker.Fact{added("A"), bad},
		Interfaces: []tracker.InterfaceState{{Name: "wg0"}},
		Announce:   []events.State{state("A")},
	}, tracker.Now{Wall: epoch})
	if err == nil || !strings.Contains(err.Error(), "time is missing") {
		t.Fatalf("error: %v", err)
	}
	saved, err := ob.Load()
	if err != nil || len(saved.Interfaces) != 0 || saved.Alive != (tracker.Now{}) || ob.Depth() != 0 || len(queued(t, ob)) != 0 || len(dirty(t, ob)) != 0 {
		t.Errorf("something was stored: %+v, %v", saved, err)
	}
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A")}})
	if e := queued(t, ob); e[0].Sequence.N != 1 {
		t.Errorf("next event has number %d, want 1", e[0].Sequence.N)
	}
}

// TestLoad: what the tracker stored is what the next run continues from.
func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ob := open(t, dir)
	first, err := ob.Load()
	if diff := cmp.Diff(outbox.Saved{}, first); diff != "" || err != nil {
		t.Errorf("on the first start: %v\n%s", err, diff)
	}
	p := tracker.PeerState{
		Interface: "wg0", PublicKey: key("A"), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, Keepalive: 25 * time.Second, PresharedKey: true,
		Endpoint:      netip.MustParseAddrPort("[2001:db8::1]:51820"),
		LastHandshake: epoch.Add(123456789), RxBytes: 1<<64 - 1, TxBytes: 2,
		Connected: true, StartedAt: epoch.Add(1), RxBase: 3, TxBase: 4, LastSeen: events.Interval{After: epoch, Before: epoch.Add(5)},
		Last: &events.Session{StartedAt: epoch, LastHandshakeAt: epoch, DurationSeconds: 7},
	}
	gone, other := p, p
	gone.PublicKey, other.Interface = key("B"), "wg1"
	wg0 := tracker.InterfaceState{Name: "wg0", Ifindex: 7, Up: true, PublicKey: key("wg0"), ListenPort: 51820}
	commit(t, ob, tracker.Batch{Interfaces: []tracker.InterfaceState{wg0, {Name: "wg1"}}, Peers: []tracker.PeerState{p, gone, other}})
	commit(t, ob, tracker.Batch{Node: "vpn-1", Gone: []string{"wg1"}, Removed: []tracker.PeerID{{Interface: "wg0", Key: key("B")}}})
	if err := ob.Commit(tracker.Batch{}, tracker.Now{Wall: epoch.Add(time.Minute), Boot: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := ob.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, dir).Load()
	if err != nil {
		t.Fatal(err)
	}
	want := outbox.Saved{Interfaces: []tracker.InterfaceState{wg0}, Peers: []tracker.PeerState{p, other}, Alive: tracker.Now{Wall: epoch.Add(time.Minute), Boot: time.Hour}}
	opts := cmp.Options{cmp.Comparer(func(a, b tracker.PeerState) bool { return fmt.Sprintf("%+v", flat(a)) == fmt.Sprintf("%+v", flat(b)) })}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
}

// flat makes a peer's state printable in full.
func flat(p tracker.PeerState) any {
	last := *p.Last
	p.Last = nil
	return []any{p, last}
}

// TestAckedEvents are taken out by the next transaction, not before, and no other is.
func TestAckedEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ob := open(t, dir)
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A"), added("B"), added("C")}})
	records, err := ob.Queued(0, 10)
	if err != nil || len(records) != 3 {
		t.Fatalf("queued: %v, %v", records, err)
	}
	if ob.Unflushed() {
		t.Error("there is something to flush before anything was acked")
	}
	ob.Ack(records[1].Number)
	if n := len(queued(t, ob)); n != 3 || !ob.Unflushed() {
		t.Errorf("after the ack: %d events, want 3 and something to flush", n)
	}
	if err := ob.Flush(); err != nil {
		t.Fatal(err)
	}
	if e := queued(t, ob); len(e) != 2 || e[0].Subject != key("A").String() || e[1].Subject != key("C").String() || ob.Depth() != 2 || ob.Unflushed() {
		t.Errorf("after the flush: %v, depth %d", e, ob.Depth())
	}
	ob.Ack(records[0].Number)
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("D")}})
	if e := queued(t, ob); len(e) != 2 || ob.Depth() != 2 {
		t.Errorf("after a commit: %d events, depth %d, want 2", len(e), ob.Depth())
	}
	// An ack that was not flushed is forgotten by a crash: the event is sent again.
	ob.Ack(records[2].Number)
	if err := ob.Close(); err != nil {
		t.Fatal(err)
	}
	ob = open(t, dir)
	if e := queued(t, ob); len(e) != 2 || ob.Depth() != 2 {
		t.Errorf("in the next run: %d events, depth %d, want 2", len(e), ob.Depth())
	}
	// Numbers are not used again, also when the queue was empty at the end of a run.
	records, _ = ob.Queued(0, 10)
	last := records[1].Number
	ob.Ack(records[0].Number)
	ob.Ack(records[1].Number)
	if err := ob.Flush(); err != nil {
		t.Fatal(err)
	}
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("E")}})
	if records, _ = ob.Queued(last, 10); len(records) != 1 || records[0].Number <= last {
		t.Errorf("after number %d comes %v", last, records)
	}
}

func TestQueuedInOrder(t *testing.T) {
	t.Parallel()
	ob := open(t, t.TempDir())
	for range 3 {
		commit(t, ob, tracker.Batch{Facts: slices.Repeat([]tracker.Fact{added("A")}, 300)})
	}
	var after, n uint64
	for {
		records, err := ob.Queued(after, 128)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			e, err := events.Decode(r.Body)
			if n++; err != nil || e.Sequence.N != n {
				t.Fatalf("event %d has sequence %v, %v", n, e.Sequence, err)
			}
			after = r.Number
		}
		if len(records) < 128 {
			break
		}
	}
	if n != 900 {
		t.Errorf("read %d events, want 900", n)
	}
}

// TestStateMarks: latecomers find the newest state of each peer, with its last event.
func TestStateMarks(t *testing.T) {
	t.Parallel()
	ob := open(t, t.TempDir())
	a, b := events.StateKey("vpn-1", "wg0", key("A")), events.StateKey("vpn-1", "wg0", key("B"))
	check := func(when string, want map[string]string) {
		t.Helper()
		if diff := cmp.Diff(want, dirty(t, ob)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	marks := func() []outbox.Mark {
		m, err := ob.Dirty(10)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	commit(t, ob, tracker.Batch{Announce: []events.State{state("A")}})
	check("a peer without any event", map[string]string{a: " 0"})
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A"), added("A"), added("B")}, Announce: []events.State{state("A"), state("B")}})
	check("two events of one peer, one of another", map[string]string{a: "wg.peer.added 2", b: "wg.peer.added 3"})

	old := marks()
	commit(t, ob, tracker.Batch{Announce: []events.State{state("A")}})
	for _, m := range old {
		ob.Clean(m)
	}
	if err := ob.Flush(); err != nil {
		t.Fatal(err)
	}
	check("an old value was sent, and a newer one waits", map[string]string{a: "wg.peer.added 2"})
	ob.Clean(marks()[0])
	commit(t, ob, tracker.Batch{Announce: []events.State{state("A")}})
	check("the value was sent, and the same transaction brings a newer one", map[string]string{a: "wg.peer.added 2"})
	ob.Clean(marks()[0])
	if err := ob.Flush(); err != nil {
		t.Fatal(err)
	}
	check("all was sent", map[string]string{})

	gone := []tracker.PeerID{{Interface: "wg0", Key: key("A")}}
	commit(t, ob, tracker.Batch{Node: "vpn-1", Facts: []tracker.Fact{removed("A")}, Removed: gone})
	check("a removed peer", map[string]string{a: "deleted"})
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A")}, Announce: []events.State{state("A")}})
	check("and added again", map[string]string{a: "wg.peer.added 5"})
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{removed("A"), added("A")}, Announce: []events.State{state("A")}})
	check("removed and added in one transaction", map[string]string{a: "wg.peer.added 7"})
	commit(t, ob, tracker.Batch{Node: "vpn-1", Facts: []tracker.Fact{added("A"), removed("A")}, Removed: gone})
	check("added and removed in one transaction", map[string]string{a: "deleted"})
	commit(t, ob, tracker.Batch{Announce: []events.State{state("A")}})
	check("an announcement after that knows of no earlier event", map[string]string{a: " 0"})
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A")}, Announce: []events.State{state("A")}})
	commit(t, ob, tracker.Batch{Node: "vpn-1", Withdrawn: gone})
	check("withdrawn", map[string]string{a: "deleted"})
	commit(t, ob, tracker.Batch{Announce: []events.State{state("A")}})
	check("and announced again, with its last event", map[string]string{a: "wg.peer.added 10"})
	<-ob.Changed()
	commit(t, ob, tracker.Batch{Node: "vpn-1", Removed: gone})
	check("forgotten with its interface, without an event", map[string]string{a: "deleted"})
	select {
	case <-ob.Changed():
	default:
		t.Error("nobody is told that there is something to send")
	}
}

func TestChanged(t *testing.T) {
	t.Parallel()
	ob := open(t, t.TempDir())
	told := func() bool {
		select {
		case <-ob.Changed():
			return true
		default:
			return false
		}
	}
	commit(t, ob, tracker.Batch{Interfaces: []tracker.InterfaceState{{Name: "wg0"}}})
	if told() {
		t.Error("a commit with nothing to send was told")
	}
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{added("A")}})
	commit(t, ob, tracker.Batch{Announce: []events.State{state("A")}})
	if !told() || told() {
		t.Error("two commits with something to send should be told once")
	}
	commit(t, ob, tracker.Batch{Facts: []tracker.Fact{removed("A")}, Removed: []tracker.PeerID{{Interface: "wg0", Key: key("A")}}})
	if !told() {
		t.Error("a removed peer was not told")
	}
}

// TestOpenErrors name the path and what to do.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	// made returns a directory with a state file of a few hundred events, closed.
	made := func(t *testing.T) (dir, path string) {
		dir = t.TempDir()
		ob := open(t, dir)
		commit(t, ob, tracker.Batch{Facts: slices.Repeat([]tracker.Fact{added("A")}, 300)})
		if err := ob.Close(); err != nil {
			t.Fatal(err)
		}
		return dir, filepath.Join(dir, outbox.FileName)
	}
	write := func(t *testing.T, path string, change func([]byte) []byte) {
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, change(data), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	damaged := []string{"probe.db is damaged", "move it away"}
	for name, tt := range map[string]struct {
		prepare func(t *testing.T) (dir string)
		want    []string
	}{
		"locked": {func(t *testing.T) string {
			dir := t.TempDir()
			open(t, dir)
			return dir
		}, []string{"probe.db is in use by another probe", "stop it"}},
		"the directory is a file": {func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, []string{"state directory ", "/state: ", "not a directory"}},
		"the file is a directory": {func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, outbox.FileName), 0o700); err != nil {
				t.Fatal(err)
			}
			return dir
		}, []string{"state file ", "probe.db: it is no regular file"}},
		"not to be written": {func(t *testing.T) string {
			if os.Geteuid() == 0 {
				t.Skip("root may write everywhere")
			}
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o500); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "state")
		}, []string{"state directory ", "/state: ", "permission denied"}},
		"not ours": {func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, outbox.FileName), []byte(strings.Repeat("no database ", 4000)), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, damaged},
		"cut off early": {func(t *testing.T) string {
			dir, path := made(t)
			write(t, path, func(b []byte) []byte { return b[:5000] })
			return dir
		}, damaged},
		"cut off late": {func(t *testing.T) string {
			dir, path := made(t)
			write(t, path, func(b []byte) []byte { return b[:len(b)/2] })
			return dir
		}, damaged},
		"overwritten from the middle": {func(t *testing.T) string {
			dir, path := made(t)
			write(t, path, func(b []byte) []byte {
				for i := 4 * os.Getpagesize(); i < len(b); i++ {
					b[i] = 0xa5
				}
				return b
			})
			return dir
		}, damaged},
		"zeroed from the middle": {func(t *testing.T) string {
			dir, path := made(t)
			write(t, path, func(b []byte) []byte {
				clear(b[4*os.Getpagesize():])
				return b
			})
			return dir
		}, damaged},
		"a format of the future": {func(t *testing.T) string {
			dir, path := made(t)
			meta(t, path, func(b *bolt.Bucket) error { return b.Put([]byte("format"), binary.BigEndian.AppendUint64(nil, 2)) })
			return dir
		}, []string{"format 2", "reads 1", "use the probe that wrote it"}},
		"without a format": {func(t *testing.T) string {
			dir, path := made(t)
			meta(t, path, func(b *bolt.Bucket) error { return b.Delete([]byte("format")) })
			return dir
		}, []string{"format", "move it away"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tt.prepare(t)
			ob, err := outbox.Open(dir, epoch)
			if err == nil {
				_ = ob.Close()
				t.Fatal("opened")
			}
			t.Log(err)
			for _, w := range append(tt.want, dir) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.Count(err.Error(), dir) > 1 {
				t.Errorf("error %q names the path twice", err)
			}
		})
	}
}

// meta changes the meta bucket of a closed file.
func meta(t *testing.T, path string, change func(*bolt.Bucket) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error { return change(tx.Bucket([]byte("meta"))) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFileOfKilledMaker: a process that was killed right after it made the file left it empty.
func TestFileOfKilledMaker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, outbox.FileName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	commit(t, open(t, dir), tracker.Batch{Facts: []tracker.Fact{added("A")}})
}

// TestPermissions: the state tells who is where, so only its owner reads it.
func TestPermissions(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	open(t, dir)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, outbox.FileName): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, want)
		}
	}
}

// BenchmarkCommit measures how long a change takes to be on disk, one by one and in batches.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ob := open(b, b.TempDir())
			batch := tracker.Batch{}
			for n := range size {
				name := fmt.Sprint(n)
				batch.Facts = append(batch.Facts, added(name))
				batch.Peers = append(batch.Peers, tracker.PeerState{Interface: "wg0", PublicKey: key(name)})
				batch.Announce = append(batch.Announce, state(name))
			}
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				commit(b, ob, batch)
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			p50 := took[len(took)/2]
			b.ReportMetric(float64(p50.Microseconds())/1000, "ms/p50")
			b.ReportMetric(float64(size)/p50.Seconds(), "changes/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
