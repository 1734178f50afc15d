package tracker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// TestRandomStories tells stories that nobody thought of. In each, every event and state encodes, the rules hold, and right after a look at an interface
// the peers that are said to be connected are those that have a session.
func TestRandomStories(t *testing.T) {
	t.Parallel()
	stories := 120
	if testing.Short() {
		stories = 30
	}
	for seed := range stories {
		tell(t, uint64(seed), 150)
	}
}

// FuzzStories looks for more of them.
func FuzzStories(f *testing.F) {
	f.Add(uint64(1), uint8(50))
	f.Fuzz(func(t *testing.T, seed uint64, length uint8) { tell(t, seed, int(length)) })
}

// tell makes up a story and runs it.
func tell(t *testing.T, seed uint64, length int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	s := newScript()
	at := time.Duration(0)
	var story []string
	do := func(format string, args ...any) {
		t.Helper()
		line := fmt.Sprintf("+%v "+format, append([]any{at}, args...)...)
		story = append(story, line)
		if _, err := s.run(line); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(story, "\n"))
		}
	}
	look := func(name string) {
		if s.tracker != nil && s.world.find(name) != nil {
			do("look %s", name)
		}
	}
	addr := func() string { return pick("203.0.113.7:1000", "203.0.113.7:1001", "[2001:db8::7]:1000") }

	do("endpoint %s", pick("full", "prefix", "none"))
	// The wall clock is all that one run and the next have in common: in a story where it is set, there is one run.
	steps := r.IntN(2) == 0
	if steps {
		do("start")
	}
	for range length {
		at += time.Duration(r.Int64N(int64(40 * time.Second)))
		if r.IntN(20) == 0 {
			at += time.Duration(r.Int64N(int64(10 * time.Minute)))
		}
		name, peer := pick("wg0", "wg1"), pick("A", "B", "C")
		i := s.world.find(name)
		if i == nil {
			do("interface %s up", name)
			look(name)
			continue
		}
		if r.IntN(6) == 0 {
			do("%s %s %s on=%s", pick("knock", "knock", "replay"), pick("A", "B", "C", "X", "Y"), addr(), name)
		}
		if r.IntN(40) == 0 {
			do("suspend %v", time.Duration(r.Int64N(int64(5*time.Minute))))
		}
		switch n := r.IntN(100); {
		case n < 25:
			look(name)
		case n < 35:
			do("peer %s on=%s allowed=%s keepalive=%s psk=%s", peer, name, pick("10.0.0.1/32", "10.0.0.2/32,fd00::/64"), pick("0", "25"), pick("1", "2", "none"))
		case n < 38:
			do("interface %s %s port=%s key=%s", name, map[bool]string{true: "up", false: "down"}[i.Up], pick("1", "2"), pick("x", "y"))
		case n < 44 && s.tracker != nil: // a probe that runs hears of it and looks
			do("interface %s %s", name, pick("up", "down", "recreated", "deleted"))
			look(name)
		case n < 46 && s.tracker == nil:
			do("interface %s %s", name, pick("recreated", "deleted"))
		case n < 49 && steps:
			look("wg0")
			look("wg1")
			do("clock %s", pick("+1h", "-1h", "+200s", "-5s"))
		case n < 58 && steps:
		case n < 55:
			do("start")
			look("wg0")
			look("wg1")
		case n < 57:
			do("stop")
		case n < 58:
			do("reboot")
		case i.peer(keyOf(peer)) == nil:
		case n < 62:
			do("%s %s on=%s", pick("unpeer", "replace"), peer, name)
		case !i.Up:
		case n < 80:
			do("handshake %s %s on=%s", peer, addr(), name)
			if r.IntN(2) == 0 {
				look(name)
			}
		case n < 90 && i.alive[keyOf(peer)] != 0:
			do("roam %s %s on=%s", peer, addr(), name)
		default:
			do("traffic %s rx=%d tx=%d on=%s", peer, r.IntN(1000), r.IntN(1000), name)
		}
	}
}
