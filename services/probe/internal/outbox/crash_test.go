package outbox_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/outbox"
	"github.com/wgherald/wgherald/services/probe/internal/tracker"
)

// childEnv names the directory in which this binary, instead of testing, commits until it is killed.
const childEnv = "WGHERALD_OUTBOX_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, child(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child commits changes with the numbers from 1, and pretends to send their events. It tells its standard output "committed N" when a commit has returned,
// and "sent N" when the broker has an event, before the outbox hears of it.
func child(dir string) error {
	ob, err := outbox.Open(dir, epoch)
	if err != nil {
		return err
	}
	n, err := stored(ob)
	if err != nil {
		return err
	}
	var read uint64
	for {
		batch := tracker.Batch{}
		for range 1 + rand.IntN(3) {
			n++
			p := peer("A")
			p.Name = fmt.Sprint(n)
			s := state("A")
			s.Peer = p
			batch.Facts = append(batch.Facts, tracker.Fact{Time: epoch, Data: &events.Added{Common: common("wg0"), Peer: p}})
			batch.Peers = []tracker.PeerState{{Interface: "wg0", PublicKey: key("A"), RxBytes: n}}
			batch.Announce = []events.State{s}
		}
		if err := ob.Commit(batch, tracker.Now{Wall: epoch}); err != nil {
			return err
		}
		fmt.Println("committed", n)
		records, err := ob.Queued(read, 4)
		if err != nil {
			return err
		}
		for _, r := range records {
			read = r.Number
			if rand.IntN(10) == 0 {
				continue // it fails, and stays for the next run
			}
			e, err := events.Decode(r.Body)
			if err != nil {
				return err
			}
			fmt.Println("sent", e.Sequence.N)
			ob.Ack(r.Number)
		}
		if rand.IntN(4) == 0 {
			if err := ob.Flush(); err != nil {
				return err
			}
		}
	}
}

// stored returns the number of the last change, as the state tells it.
func stored(ob *outbox.Outbox) (uint64, error) {
	saved, err := ob.Load()
	if err != nil || len(saved.Peers) == 0 {
		return 0, err
	}
	return saved.Peers[0].RxBytes, nil
}

// TestKilled kills a process that commits, at random moments, and looks at what it left: state and events agree, no number is missing or used twice, and
// what Commit had returned for is there until the broker has it.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sent := map[uint64]bool{}
	var before uint64
	for round := range 30 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		// Some die before they have committed anything, most while they commit.
		soon := func() *time.Timer {
			return time.AfterFunc(time.Duration(rand.Int64N(int64(50*time.Millisecond))), func() { _ = cmd.Process.Kill() })
		}
		var kill *time.Timer
		if round%5 == 0 {
			kill = soon()
		}
		committed := before
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if kill == nil {
				kill = soon()
			}
			var what string
			var n uint64
			if _, err := fmt.Sscan(lines.Text(), &what, &n); err != nil {
				t.Fatalf("the child says %q: %v", lines.Text(), err)
			}
			if what == "sent" {
				sent[n] = true
			} else {
				committed = n
			}
		}
		if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Fatalf("round %d: the child ended by itself: %v", round, err)
		}

		ob, err := outbox.Open(dir, epoch)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		last, err := stored(ob)
		if err != nil {
			t.Fatal(err)
		}
		if last < committed || last > committed+3 {
			t.Errorf("round %d: the state tells of change %d, and the last commit that returned was %d", round, last, committed)
		}
		waiting := map[uint64]bool{}
		highest := uint64(0)
		list := queued(t, ob)
		for _, e := range list {
			n := e.Sequence.N
			if e.Peer().Name != fmt.Sprint(n) || n <= highest {
				t.Errorf("round %d: event %d tells of change %s, after event %d", round, n, e.Peer().Name, highest)
			}
			waiting[n], highest = true, n
		}
		if highest > last || ob.Depth() != len(list) {
			t.Errorf("round %d: event %d waits, and the state knows of %d; depth %d, %d wait", round, highest, last, ob.Depth(), len(list))
		}
		for n := uint64(1); n <= last; n++ {
			if !waiting[n] && !sent[n] {
				t.Errorf("round %d: event %d is neither stored nor sent", round, n)
			}
		}
		if marks := dirty(t, ob); last > 0 && marks[events.StateKey("vpn-1", "wg0", key("A"))] != fmt.Sprintf("wg.peer.added %d", last) {
			t.Errorf("round %d: the state for latecomers is %v, want that of change %d", round, marks, last)
		}
		if err := ob.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
		before = last
	}
	if before < 24 {
		t.Errorf("%d changes in all, want one at least of each child that was not killed early", before)
	}
	t.Logf("%d changes survived 30 kills, %d events were sent", before, len(sent))
}
