package tracker

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// village is where strangers knock: what time it really is, what our clocks say, what is configured, and the disk.
type village struct {
	*strangers
	at         time.Duration // since the beginning
	set        time.Duration // how far somebody set our wall clock
	boot       time.Duration // the boot clock at the beginning
	configured map[events.Key]map[string]bool
	disk       map[events.Key][]byte
}

var beginning = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func newVillage() *village {
	return &village{
		strangers: newStrangers(nil), boot: 1000 * time.Second, configured: map[events.Key]map[string]bool{}, disk: map[events.Key][]byte{},
	}
}

func (v *village) now() Now {
	return Now{Wall: beginning.Add(v.at + v.set), Boot: v.boot + v.at}
}

// save does after each step what a tracker does now and then. So a restart at any time may be a crash.
func (v *village) save() {
	dirty, forgotten := v.take()
	for _, key := range forgotten {
		delete(v.disk, key)
	}
	for _, state := range dirty {
		text, err := json.Marshal(state)
		if err != nil {
			panic(err)
		}
		v.disk[state.Key] = text
	}
}

func (v *village) restart() {
	var stored []KeyState
	for _, text := range v.disk { // in any order
		var state KeyState
		if err := json.Unmarshal(text, &state); err != nil {
			panic(err)
		}
		stored = append(stored, state)
	}
	v.strangers = newStrangers(stored)
}

// knock is an initiation, and tells what is made of it.
func (v *village) knock(key events.Key, iface string, from netip.Addr, stamp wgmsg.Timestamp) string {
	switch v.fresh(v.now(), key, stamp) {
	case Replayed:
		return "replayed"
	case ClockOff:
		return "clock off"
	case Fresh:
	}
	if v.configured[key][iface] {
		return "fresh"
	}
	told, count, suppressed := v.strangers.knock(v.now(), iface, key, from)
	switch {
	case !told:
		return "untold"
	case suppressed > 0:
		return fmt.Sprintf("told %d suppressed %d", count, suppressed)
	default:
		return fmt.Sprintf("told %d", count)
	}
}

func stampAt(t time.Time) (stamp wgmsg.Timestamp) {
	binary.BigEndian.PutUint64(stamp[:8], uint64(t.Unix())+1<<62+10)
	binary.BigEndian.PutUint32(stamp[8:], uint32(t.Nanosecond()))
	return stamp
}

func strangerKey(name string) (key events.Key) {
	copy(key[:], name)
	return key
}

// names returns A for A, and K1 K2 K3 for K1-3.
func names(word string) []string {
	prefix, last, isRange := strings.Cut(word, "-")
	if !isRange {
		return []string{word}
	}
	letters := strings.TrimRight(prefix, "0123456789")
	first, _ := strconv.Atoi(prefix[len(letters):])
	end, _ := strconv.Atoi(last)
	var all []string
	for n := first; n <= end; n++ {
		all = append(all, letters+strconv.Itoa(n))
	}
	return all
}

func duration(t *testing.T, word string) time.Duration {
	t.Helper()
	if before, ok := strings.CutSuffix(word, "d"); ok {
		days, err := strconv.ParseFloat(before, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(days * 24 * float64(time.Hour))
	}
	d, err := time.ParseDuration(word)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// step does what one line says:
//
//	+T KEYS INTERFACE ADDRESS [S] -> WANT   initiations, with the time T or S
//	+T configured|removed KEYS INTERFACE
//	+T clock D                              our wall clock is set by D from what is right
//	+T restart|reboot|prune
func (v *village) step(t *testing.T, line string) {
	t.Helper()
	event, want, _ := strings.Cut(line, " -> ")
	words := strings.Fields(event)
	v.at = duration(t, words[0])
	switch words[1] {
	case "configured":
		for _, name := range names(words[2]) {
			key := strangerKey(name)
			if v.configured[key] == nil {
				v.configured[key] = map[string]bool{}
			}
			if v.configured[key][words[3]] = true; len(v.configured[key]) == 1 {
				v.configure(key)
			}
		}
	case "removed":
		for _, name := range names(words[2]) {
			key := strangerKey(name)
			if delete(v.configured[key], words[3]); len(v.configured[key]) == 0 {
				v.remove(v.now(), key)
			}
		}
	case "clock":
		v.set = duration(t, words[2])
	case "restart":
		v.restart()
	case "reboot":
		v.boot = 30*time.Second - v.at
		v.restart()
	case "prune":
		v.prune(v.now())
	default:
		stamp := v.at
		if len(words) == 5 {
			stamp = duration(t, words[4])
		}
		for _, name := range names(words[1]) {
			got := v.knock(strangerKey(name), words[2], netip.MustParseAddr(words[3]), stampAt(beginning.Add(stamp)))
			if got != strings.TrimSpace(want) {
				t.Errorf("%s: %s is %s", strings.TrimSpace(line), name, got)
			}
		}
	}
	for key, k := range v.strangers.configured {
		if v.removed.Contains(key) || v.unknown.Contains(key) || !k.RemovedAt.IsZero() {
			t.Errorf("%s: %q is configured, and something else", line, key[:1])
		}
	}
	v.save()
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	for name, story := range map[string]string{
		"the first knock is told at once, then one an hour with the count": `
			+0s     A wg0 203.0.113.7 -> told 1
			+5s     A wg0 203.0.113.7 -> untold
			+30m    A wg0 203.0.113.7 -> untold
			+59m59s A wg0 203.0.113.7 -> untold
			+1h     A wg0 203.0.113.7 -> told 4
			+1h5s   A wg0 203.0.113.7 -> untold
			+9h     A wg0 203.0.113.7 -> told 2`,
		"another key, interface or address is another sender": `
			+0s A wg0 203.0.113.7 -> told 1
			+1s B wg0 203.0.113.7 -> told 1
			+2s A wg1 203.0.113.7 -> told 1
			+3s A wg0 203.0.113.8 -> told 1
			+4s A wg0 2001:db8::7 -> told 1
			+5s A wg0 2001:db8::7 -> untold
			+6s A wg0 2001:db8::8 -> told 1`,
		"an IPv4 address is the same in IPv6": `
			+0s A wg0 203.0.113.7        -> told 1
			+5s A wg0 ::ffff:203.0.113.7 -> untold`,
		"a recording is a replay, on any interface and from anywhere": `
			+0s  A wg0 203.0.113.7     -> told 1
			+5s  A wg0 203.0.113.7     -> untold
			+6s  A wg0 203.0.113.7 +5s -> replayed
			+7s  A wg1 203.0.113.7 +5s -> replayed
			+8s  A wg0 198.51.100.1 0s -> replayed
			+9s  A wg0 198.51.100.1 6s -> told 1
			+1h  A wg0 203.0.113.7     -> told 2`,
		"a recording after a restart": `
			+0s A wg0 203.0.113.7    -> told 1
			+1s restart
			+5m A wg0 203.0.113.7 0s -> replayed
			+6m reboot
			+7m A wg0 203.0.113.7 0s -> replayed`,
		"a recording of a removed key": `
			+0s  configured A wg0
			+1s  A wg0 203.0.113.7     -> fresh
			+2m  A wg0 203.0.113.7     -> fresh
			+3m  removed A wg0
			+8m  A wg0 203.0.113.7 +2m -> replayed
			+8m  restart
			+9m  A wg0 203.0.113.7 +2m -> replayed
			+9m  A wg0 203.0.113.7 +1s -> replayed
			+10m A wg0 203.0.113.7     -> told 1`,
		"a recording of a removed key five minutes after a restart": `
			+0s configured A wg0
			+4m A wg0 203.0.113.7     -> fresh
			+5m restart
			+5m removed A wg0
			+9m restart
			+14m A wg0 203.0.113.7 +4m -> replayed`,
		"a recording of a key that was a stranger, then a peer, and is removed": `
			+0s A wg0 203.0.113.7    -> told 1
			+1s configured A wg0
			+2s removed A wg0
			+3s A wg0 203.0.113.7 0s -> replayed
			+4s A wg0 203.0.113.7    -> untold`,
		"a recording of a key that was removed twice": `
			+0s  configured A wg0
			+1s  A wg0 203.0.113.7     -> fresh
			+2s  removed A wg0
			+3s  configured A wg0
			+4s  A wg0 203.0.113.7     -> fresh
			+5s  restart
			+6s  removed A wg0
			+7s  A wg0 203.0.113.7 +4s -> replayed
			+8s  A wg0 203.0.113.7     -> told 1`,
		"a peer that never came leaves nothing when it is removed": `
			+0s configured A wg0
			+1s removed A wg0
			+2s A wg0 203.0.113.7 -> told 1`,
		"a peer on one interface is a stranger on the other": `
			+0s configured A wg1
			+1s A wg0 203.0.113.7     -> told 1
			+2s A wg1 203.0.113.7     -> fresh
			+3s A wg0 203.0.113.7 +2s -> replayed
			+4s configured A wg0
			+5s removed A wg1
			+6s A wg0 203.0.113.7     -> fresh
			+7s removed A wg0
			+8s A wg0 203.0.113.7 +6s -> replayed`,
		"a removed key is remembered for 30 days": `
			+0s    configured A wg0
			+1s    A wg0 203.0.113.7    -> fresh
			+2s    removed A wg0
			+30d   prune
			+30d   restart
			+30d   clock -30d
			+30d   A wg0 203.0.113.7 1s -> replayed
			+30d   clock 0s
			+30.1d prune
			+30.1d clock -30.1d
			+30.1d A wg0 203.0.113.7 1s -> told 1`,
		"a removed key that still knocks is remembered longer": `
			+0s    configured A wg0
			+1s    A wg0 203.0.113.7        -> fresh
			+2s    removed A wg0
			+50d   A wg0 203.0.113.7        -> told 1
			+50d   prune
			+50d   A wg0 203.0.113.7 50d    -> replayed
			+50.1d prune
			+50.1d clock -0.1d
			+50.1d A wg0 203.0.113.7 50d    -> told 1`,
		"the days of a key removed on a wrong clock begin when it is right": `
			+0s    configured A wg0
			+1s    A wg0 203.0.113.7    -> fresh
			+1s    clock 1000d
			+2s    removed A wg0
			+3s    clock 0s
			+1h    prune
			+2h    restart
			+30d   prune
			+30d   clock -30d
			+30d   A wg0 203.0.113.7 1s -> replayed
			+30d   clock 0s
			+30.1d prune
			+30.1d clock -30.1d
			+30.1d A wg0 203.0.113.7 1s -> told 1`,
		"a sender's clock may be ten minutes off": `
			+1h   A wg0 203.0.113.7 50m     -> told 1
			+1h   B wg0 203.0.113.7 49m59s  -> clock off
			+1h   C wg0 203.0.113.7 1h10m   -> told 1
			+1h   D wg0 203.0.113.7 1h10m1s -> clock off`,
		"a sender that was ahead is heard as soon as its clock is right": `
			+0s   A wg0 203.0.113.7      -> told 1
			+5s   A wg0 203.0.113.7 100d -> clock off
			+10s  A wg0 203.0.113.7 100d -> clock off
			+1h   A wg0 203.0.113.7      -> told 1
			+100d A wg0 203.0.113.7 100d -> told 1
			+100d A wg0 203.0.113.7 100d -> replayed`,
		"a sender that was behind is heard as soon as its clock is right": `
			+0s A wg0 203.0.113.7 -100d -> clock off
			+5s A wg0 203.0.113.7 -100d -> replayed
			+6s A wg0 203.0.113.7       -> told 1
			+7s A wg0 203.0.113.7 -99d  -> replayed`,
		"our clock is set back for a while": `
			+0s  A wg0 203.0.113.7    -> told 1
			+1m  clock -1h
			+2m  A wg0 203.0.113.7    -> clock off
			+3m  clock 0s
			+3m  A wg0 203.0.113.7 0s -> replayed
			+4m  A wg0 203.0.113.7    -> untold
			+1h  A wg0 203.0.113.7    -> told 2`,
		"our clock is set forward for a while": `
			+0s  A wg0 203.0.113.7    -> told 1
			+1m  clock 10h
			+2m  A wg0 203.0.113.7    -> clock off
			+3m  clock 0s
			+3m  A wg0 203.0.113.7 2m -> replayed
			+4m  A wg0 203.0.113.7    -> untold
			+1h  A wg0 203.0.113.7    -> told 2`,
		"both clocks are set": `
			+0s  A wg0 203.0.113.7       -> told 1
			+10m clock 2h
			+11m A wg0 203.0.113.7 2h11m -> untold
			+1h  A wg0 203.0.113.7 3h    -> told 2`,
		"the hour goes on over a restart, and so does the count": `
			+0s  A wg0 203.0.113.7 -> told 1
			+5m  A wg0 203.0.113.7 -> untold
			+6m  restart
			+10m A wg0 203.0.113.7 -> untold
			+11m A wg1 203.0.113.7 -> told 1
			+59m A wg0 203.0.113.7 -> untold
			+1h  A wg0 203.0.113.7 -> told 4`,
		"the hour goes on over a reboot": `
			+10h    A wg0 203.0.113.7 -> told 1
			+10h10m reboot
			+10h11m A wg0 203.0.113.7 -> untold
			+10h59m A wg0 203.0.113.7 -> untold
			+11h    A wg0 203.0.113.7 -> told 3`,
		"the hour is over after a restart": `
			+0s A wg0 203.0.113.7 -> told 1
			+1s restart
			+1h A wg0 203.0.113.7 -> told 1`,
		"the hour begins anew where the clock was set back over a restart": `
			+0s     A wg0 203.0.113.7 -> told 1
			+1s     clock -5m
			+2s     restart
			+1m     A wg0 203.0.113.7 -> untold
			+1h59s  A wg0 203.0.113.7 -> untold
			+1h1m   A wg0 203.0.113.7 -> told 3`,
		"twenty at once, then one in ten seconds": `
			+0s    K1-20  wg0 203.0.113.7 -> told 1
			+1s    K21-25 wg0 203.0.113.7 -> untold
			+9.9s  K26    wg0 203.0.113.7 -> untold
			+10s   K27    wg0 203.0.113.7 -> told 1 suppressed 6
			+11s   K28    wg0 203.0.113.7 -> untold
			+20s   K29    wg0 203.0.113.7 -> told 1 suppressed 1
			+30s   K30    wg0 203.0.113.7 -> told 1`,
		"a bucket refills in 200 seconds, and holds no more": `
			+0s   K1-20  wg0 203.0.113.7 -> told 1
			+200s K21-40 wg0 203.0.113.7 -> told 1
			+200s K41    wg0 203.0.113.7 -> untold
			+9h   K42    wg0 203.0.113.7 -> told 1 suppressed 1
			+9h   K43-61 wg0 203.0.113.7 -> told 1
			+9h   K62    wg0 203.0.113.7 -> untold`,
		"each interface has its own bucket": `
			+0s  K1-20 wg0 203.0.113.7 -> told 1
			+1s  K21   wg0 203.0.113.7 -> untold
			+2s  K1-20 wg1 203.0.113.7 -> told 1
			+3s  K21   wg1 203.0.113.8 -> untold
			+4s  K22   wg1 203.0.113.8 -> untold
			+10s K23   wg0 203.0.113.7 -> told 1 suppressed 1
			+12s K23   wg1 203.0.113.7 -> told 1 suppressed 2`,
		"who was left out is told later with all its knocks, and no more counted as left out": `
			+0s  K1-20 wg0 203.0.113.7 -> told 1
			+1s  A     wg0 203.0.113.7 -> untold
			+2s  B     wg0 203.0.113.7 -> untold
			+6s  A     wg0 203.0.113.7 -> untold
			+7s  B     wg0 203.0.113.7 -> untold
			+11s A     wg0 203.0.113.7 -> told 3 suppressed 1
			+12s B     wg0 203.0.113.7 -> untold
			+13s A     wg0 203.0.113.7 -> untold
			+21s B     wg0 203.0.113.7 -> told 4`,
		"who was left out when its hour was over is told with the first token": `
			+0s     A     wg0 203.0.113.7 -> told 1
			+59m50s K1-20 wg0 203.0.113.7 -> told 1
			+59m55s A     wg0 203.0.113.7 -> untold
			+59m56s B     wg0 203.0.113.7 -> untold
			+1h     A     wg0 203.0.113.7 -> told 2 suppressed 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVillage()
			for line := range strings.Lines(strings.TrimSpace(story)) {
				v.step(t, strings.TrimSpace(line))
			}
		})
	}
}

// TestTimestampBeyondTAI64: what its format reserves is the future, though it is the past to who counts the seconds with a sign.
func TestTimestampBeyondTAI64(t *testing.T) {
	t.Parallel()
	v := newVillage()
	for _, first := range []byte{0x7f, 0x80, 0xbf, 0xc0, 0xff} {
		stamp := wgmsg.Timestamp{0: first, 11: 1}
		if got := v.knock(strangerKey("A"), "wg0", netip.MustParseAddr("203.0.113.7"), stamp); got != "clock off" {
			t.Errorf("%x is %s", stamp, got)
		}
	}
	v.step(t, "+1s A wg0 203.0.113.7 -> told 1")
}

// TestStrangersAreBounded: the newest survive, in memory and on disk.
func TestStrangersAreBounded(t *testing.T) {
	t.Parallel()
	const all = 10_000
	v := newVillage()
	from := netip.MustParseAddr("203.0.113.7")
	key := func(n int) events.Key { return strangerKey(strconv.Itoa(all - n)) }
	stamp := stampAt(beginning)
	for n := range all {
		v.at = time.Duration(n) * 10 * time.Millisecond
		v.knock(key(n), "wg"+strconv.Itoa(n), from, stamp)
		v.save()
	}
	if got := []int{len(v.disk), v.unknown.Len(), v.senders.Len(), v.buckets.Len()}; !cmp.Equal(got, []int{maxUnknown, maxUnknown, maxSenders, maxBuckets}) {
		t.Errorf("there are %v keys on disk, keys, senders, interfaces", got)
	}
	for range 2 {
		for n := all - maxUnknown; n < all; n++ {
			if got := v.fresh(v.now(), key(n), stamp); got != Replayed {
				t.Fatalf("a recording of key %d is %d", n, got)
			}
		}
		v.restart()
	}
	for _, tt := range []struct {
		name string
		n    int
		want string
	}{
		{"the second oldest", all - maxSenders + 1, "untold"},
		{"another one", all, "told 1"},
		{"the oldest, which had to go for it", all - maxSenders, "told 1"},
		{"the third oldest, which had to go for that", all - maxSenders + 2, "told 1"},
		{"the second oldest, which was heard since", all - maxSenders + 1, "untold"},
		{"the newest", all - 1, "untold"},
	} {
		v.at += time.Second
		if got := v.knock(key(tt.n), "wg"+strconv.Itoa(tt.n), from, stampAt(beginning.Add(v.at))); got != tt.want {
			t.Errorf("%s is %s, want %s", tt.name, got, tt.want)
		}
	}
	for n, want := range map[int]bool{all - maxUnknown + 1: true, all - maxUnknown + 3: false, all - maxUnknown + 4: true} {
		if got := v.find(key(n)) != nil; got != want {
			t.Errorf("key %d is remembered: %v, want %v", n, got, want)
		}
	}
}

// TestSendersAreForgottenInTheirOrder, not in that of their keys, also after a restart.
func TestSendersAreForgottenInTheirOrder(t *testing.T) {
	t.Parallel()
	v := newVillage()
	v.step(t, "+0s configured A wg0")
	v.step(t, "+1s A wg0 203.0.113.7 -> fresh")
	v.step(t, "+2s removed A wg0")
	v.step(t, "+3s A wg0 203.0.113.7 -> told 1")
	v.step(t, "+4s B wg0 203.0.113.7 -> told 1")
	v.restart()
	for n := range maxSenders - 1 {
		v.strangers.knock(v.now(), "wg1", strangerKey("C"), netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}))
	}
	v.step(t, "+5s B wg0 203.0.113.7 -> untold")
	v.step(t, "+6s A wg0 203.0.113.7 -> told 1")
}

// TestForgottenSenderLeavesTheDisk: else what is stored would outgrow what is known.
func TestForgottenSenderLeavesTheDisk(t *testing.T) {
	t.Parallel()
	v := newVillage()
	v.step(t, "+0s A wg0 203.0.113.7 -> told 1")
	for n := range maxSenders {
		v.strangers.knock(v.now(), "wg0", strangerKey("B"), netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}))
	}
	v.save()
	if got := string(v.disk[strangerKey("A")]); strings.Contains(got, "told") {
		t.Errorf("on disk is %s", got)
	}
}

// TestRecordingThatGoesRoundIsRemembered: to be replayed is to be seen.
func TestRecordingThatGoesRoundIsRemembered(t *testing.T) {
	t.Parallel()
	v := newVillage()
	v.step(t, "+0s A wg0 203.0.113.7 -> told 1")
	for n := range 3 * maxUnknown {
		v.fresh(v.now(), strangerKey(strconv.Itoa(n)), stampAt(beginning))
		if n%1000 == 0 {
			v.step(t, "+1s A wg0 203.0.113.7 0s -> replayed")
		}
	}
}

// TestKnockOfAForgottenKey: while the look took place, others pushed the key out.
func TestKnockOfAForgottenKey(t *testing.T) {
	t.Parallel()
	v := newVillage()
	told, count, _ := v.strangers.knock(v.now(), "wg0", strangerKey("A"), netip.MustParseAddr("203.0.113.7"))
	if !told || count != 1 {
		t.Errorf("told %v with count %d", told, count)
	}
	v.save()
	v.restart()
	v.step(t, "+1s A wg0 203.0.113.7 -> untold")
}

func TestRemovedKeysAreBounded(t *testing.T) {
	t.Parallel()
	const more = 10
	v := newVillage()
	key := func(n int) events.Key { return strangerKey(strconv.Itoa(2*maxRemoved - n)) }
	for n := range maxRemoved + more {
		v.configure(key(n))
		v.fresh(v.now(), key(n), stampAt(beginning))
	}
	v.save()
	if len(v.disk) != maxRemoved+more {
		t.Errorf("%d configured keys are on disk", len(v.disk))
	}
	v.restart()
	for n := range maxRemoved + more {
		v.at = time.Duration(n) * time.Millisecond
		v.remove(v.now(), key(n))
	}
	v.save()
	v.restart()
	if len(v.disk) != maxRemoved || v.removed.Len() != maxRemoved {
		t.Errorf("%d removed keys are on disk, %d in memory", len(v.disk), v.removed.Len())
	}
	for n, want := range map[int]Freshness{more - 1: Fresh, more: Replayed, maxRemoved + more - 1: Replayed} {
		if got := v.fresh(v.now(), key(n), stampAt(beginning)); got != want {
			t.Errorf("a recording of removed key %d is %d, want %d", n, got, want)
		}
	}
	another := strangerKey("another")
	v.configure(another)
	v.fresh(v.now(), another, stampAt(beginning))
	v.remove(v.now(), another)
	for n, want := range map[int]Freshness{more: Fresh, more + 1: Replayed, maxRemoved + more - 1: Replayed} {
		if got := v.fresh(v.now(), key(n), stampAt(beginning)); got != want {
			t.Errorf("after another, a recording of removed key %d is %d, want %d", n, got, want)
		}
	}
}

// TestRecordsAreSmall: a key is written at each of its knocks.
func TestRecordsAreSmall(t *testing.T) {
	t.Parallel()
	v := newVillage()
	size := func() int { return len(v.disk[strangerKey("A")]) }
	v.set = 123456789
	v.step(t, "+0s A wg0 203.0.113.7 -> told 1")
	if size() > 300 {
		t.Errorf("a sender takes %d bytes", size())
	}
	for n := range 2 * maxToldStored {
		v.step(t, fmt.Sprintf("+%dm A interface-name0 2001:db8:1234:5678:1234:5678:1234:%04x -> told 1", n+1, n+4096))
		v.step(t, fmt.Sprintf("+%dm1s A interface-name0 2001:db8:1234:5678:1234:5678:1234:%04x -> untold", n+1, n+4096))
	}
	if size() > 3<<10 {
		t.Errorf("many senders take %d bytes", size())
	}
	v.restart()
	v.step(t, "+40m A interface-name0 2001:db8:1234:5678:1234:5678:1234:101f -> untold")
}

func TestTakeIsStable(t *testing.T) {
	t.Parallel()
	v := newVillage()
	for _, name := range []string{"C", "A", "B", "E", "D"} {
		v.fresh(v.now(), strangerKey(name), stampAt(beginning))
	}
	for _, name := range []string{"Z", "Y", "X"} {
		v.configure(strangerKey(name))
		v.remove(v.now(), strangerKey(name))
	}
	dirty, forgotten := v.take()
	var got string
	for _, state := range dirty {
		got += string(state.Key[:1])
	}
	got += " "
	for _, key := range forgotten {
		got += string(key[:1])
	}
	if got != "ABCDE XYZ" {
		t.Errorf("taken are %s", got)
	}
	if dirty, forgotten = v.take(); len(dirty)+len(forgotten) > 0 {
		t.Errorf("taken again are %v, %v", dirty, forgotten)
	}
}

func TestRecordingsCostNoMemory(t *testing.T) {
	v := newVillage()
	v.step(t, "+0s A wg0 203.0.113.7 -> told 1")
	stamp := stampAt(beginning)
	if got := testing.AllocsPerRun(1000, func() { v.fresh(v.now(), strangerKey("A"), stamp) }); got > 0 {
		t.Errorf("%v allocations for a recording", got)
	}
}

// TestRandomStrangers tells stories that nobody thought of.
func TestRandomStrangers(t *testing.T) {
	t.Parallel()
	stories := 40
	if testing.Short() {
		stories = 10
	}
	for seed := range stories {
		tellOfStrangers(t, uint64(seed), 2000)
	}
}

// FuzzStrangers looks for more of them.
func FuzzStrangers(f *testing.F) {
	f.Add(uint64(1), uint16(500))
	f.Fuzz(func(t *testing.T, seed uint64, length uint16) { tellOfStrangers(t, seed, int(length%4096)) })
}

// tellOfStrangers makes up a story that does not outgrow any memory, and compares what is told with the rules as they are stated: who is due, what a
// bucket holds, who was left out. As the wall clock is all that two runs have in common, there is one run in a story where it is set.
func tellOfStrangers(t *testing.T, seed uint64, length int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	type history struct {
		toldAt  time.Duration
		told    bool
		pending uint64
	}
	type allowance struct {
		credit, at time.Duration
		leftOut    map[senderID]bool
		told       []time.Duration // in this run
	}
	v := newVillage()
	v.at = time.Hour
	newest, senders, interfaces := map[events.Key]wgmsg.Timestamp{}, map[senderID]*history{}, map[string]*allowance{}
	var recordings []wgmsg.Timestamp
	sets := r.IntN(2) == 0
	var knocks, counted uint64

	for range length {
		v.at += time.Duration(1 + r.Int64N(int64(2*time.Second)))
		if r.IntN(50) == 0 {
			v.at += time.Duration(r.Int64N(int64(40 * time.Minute)))
		}
		key, iface := strangerKey(strconv.Itoa(r.IntN(30))), pick("wg0", "wg1")
		switch n := r.IntN(100); {
		case n < 1 && sets:
			v.set = time.Duration(r.Int64N(int64(4*time.Hour))) - 2*time.Hour
			continue
		case n < 1:
			v.restart()
			clear(interfaces)
			for id, h := range senders {
				if !h.told {
					knocks -= h.pending // who was not told yet begins anew
					delete(senders, id)
				}
			}
			continue
		case n < 2:
			v.configure(key)
			v.save()
			continue
		case n < 3:
			if _, seen := newest[key]; seen {
				v.remove(v.now(), key)
				v.prune(v.now())
				v.save()
			}
			continue
		}
		stamp := stampAt(beginning.Add(v.at + v.set))
		switch n := r.IntN(20); {
		case n == 0:
			stamp = stampAt(beginning.Add(v.at + v.set + time.Duration(r.Int64N(int64(time.Hour))) - 30*time.Minute))
		case n == 1 && len(recordings) > 0:
			stamp = recordings[r.IntN(len(recordings))]
		default:
			recordings = append(recordings, stamp)
		}
		off := stamp.Time().Sub(v.now().Wall)
		want := Fresh
		switch last, seen := newest[key]; {
		case seen && stamp.Compare(last) <= 0:
			want = Replayed
		case off > 10*time.Minute:
			want = ClockOff
		default:
			newest[key] = stamp
			if off < -10*time.Minute {
				want = ClockOff
			}
		}
		got := v.fresh(v.now(), key, stamp)
		if got != want {
			t.Fatalf("seed %d, %v: freshness is %d, want %d", seed, v.at, got, want)
		}
		if got != Fresh {
			v.save()
			continue
		}

		id := senderID{iface, key, netip.MustParseAddr(pick("203.0.113.7", "203.0.113.8", "2001:db8::7"))}
		h := senders[id]
		if h == nil {
			h = new(history)
			senders[id] = h
		}
		a := interfaces[iface]
		if a == nil {
			a = &allowance{credit: 200 * time.Second, at: v.at, leftOut: map[senderID]bool{}}
			interfaces[iface] = a
		}
		a.credit, a.at = min(a.credit+v.at-a.at, 200*time.Second), v.at
		knocks++
		h.pending++
		due := !h.told || v.at-h.toldAt >= time.Hour
		told, count, suppressed := v.strangers.knock(v.now(), iface, key, id.address)
		v.save()
		if wanted := due && a.credit >= 10*time.Second; told != wanted {
			t.Fatalf("seed %d, %v: told is %v, want %v", seed, v.at, told, wanted)
		}
		if !told {
			if due {
				a.leftOut[id] = true
			}
			continue
		}
		delete(a.leftOut, id)
		if count != h.pending || suppressed != uint64(len(a.leftOut)) {
			t.Fatalf("seed %d, %v: told %d suppressed %d, want %d suppressed %d", seed, v.at, count, suppressed, h.pending, len(a.leftOut))
		}
		counted += count
		a.credit -= 10 * time.Second
		clear(a.leftOut)
		h.told, h.toldAt, h.pending = true, v.at, 0
		a.told = append(a.told, v.at)
		for n, since := range a.told {
			if events := len(a.told) - n; time.Duration(events) > 20+(v.at-since)/(10*time.Second) {
				t.Fatalf("seed %d: %d events of %s in %v", seed, events, iface, v.at-since)
			}
		}
	}
	for _, from := range v.senders.Values() {
		counted += from.untold
	}
	if counted != knocks {
		t.Fatalf("seed %d: %d knocks are told or pending, want %d", seed, counted, knocks)
	}
}

func BenchmarkStrangers(b *testing.B) {
	v := newVillage()
	from := netip.MustParseAddr("203.0.113.7")
	for n := 0; b.Loop(); n++ {
		v.at += time.Millisecond
		v.knock(strangerKey(strconv.Itoa(n%10_000)), "wg0", from, stampAt(beginning.Add(v.at)))
		if n%100 == 0 {
			v.take()
		}
	}
}
