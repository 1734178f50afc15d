package order_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/services/notifier/internal/order"
)

var start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func at(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }

// next returns "key seq value", or "none".
func next(q *order.Queue[string], now time.Time) string {
	it, ok := q.Next(now)
	if !ok {
		return "none"
	}
	return fmt.Sprintf("%s %d %s", it.Key, it.Seq, it.Value)
}

func want(t *testing.T, q *order.Queue[string], now time.Time, items ...string) {
	t.Helper()
	var have []string
	for range items {
		have = append(have, next(q, now))
	}
	if diff := gocmp.Diff(items, have); diff != "" {
		t.Fatalf("items (-want +have):\n%s", diff)
	}
}

func TestOneItemOfAKeyIsInWork(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 1, "a", time.Time{})
	q.Push("alice", 3, "c", time.Time{})
	q.Push("bob", 2, "b", time.Time{})
	want(t, q, at(0), "alice 1 a", "bob 2 b", "none")
	q.Done("alice")
	want(t, q, at(0), "alice 3 c", "none")
}

func TestHastenedItemsGoAtOnceAndInOrder(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 1, "a", at(60))
	q.Push("alice", 2, "b", at(90))
	q.Push("bob", 3, "c", at(30))
	want(t, q, at(0), "none")
	q.Hasten()
	want(t, q, at(0), "alice 1 a", "bob 3 c", "none")
	q.Done("alice")
	want(t, q, at(0), "none") // what follows has a time of its own
}

func TestTheSoonestItemIsHastenedAlone(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	if it, ok := q.Soonest(); ok {
		t.Errorf("an empty queue has %v", it)
	}
	q.Push("alice", 1, "a", at(60))
	q.Push("bob", 2, "b", at(30))
	q.Push("bob", 3, "c", at(10)) // behind the other
	if it, ok := q.Soonest(); !ok || it.Seq != 2 {
		t.Errorf("the soonest is %v %t, want bob's first", it, ok)
	}
	q.HastenSoonest()
	want(t, q, at(0), "bob 2 b", "none")
}

func TestADroppedItemLetsTheNextGo(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 1, "a", at(60))
	q.Push("alice", 2, "b", time.Time{})
	if have := q.Drop("alice", 1); have != "a" {
		t.Errorf("dropped %q, want a", have)
	}
	want(t, q, at(0), "alice 2 b", "none")
}

func TestItemsGoBySequenceHoweverTheyCame(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	for _, seq := range []uint64{4, 5, 1, 2, 3} {
		q.Push("alice", seq, "", time.Time{})
	}
	for seq := 1; seq <= 5; seq++ {
		want(t, q, at(0), fmt.Sprintf("alice %d ", seq))
		q.Done("alice")
	}
	if q.Len() != 0 {
		t.Errorf("holds %d items, want none", q.Len())
	}
}

func TestARetriedItemHoldsItsFollowersAndNobodyElse(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 1, "a", time.Time{})
	q.Push("alice", 2, "b", time.Time{})
	want(t, q, at(0), "alice 1 a")
	q.Retry("alice", at(5))
	q.Push("bob", 3, "c", time.Time{})
	want(t, q, at(0), "bob 3 c", "none")
	if wake, ok := q.NextWake(); !ok || !wake.Equal(at(5)) {
		t.Errorf("wakes at %v, %t, want %v", wake, ok, at(5))
	}
	want(t, q, at(5), "alice 1 a", "none")
	if wake, ok := q.NextWake(); ok {
		t.Errorf("wakes at %v with nothing waiting for its time", wake)
	}
}

func TestADueRetryIsNotStarvedByNewItems(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 1, "", time.Time{})
	want(t, q, at(0), "alice 1 ")
	q.Retry("alice", at(1))
	q.Push("bob", 2, "", time.Time{})
	want(t, q, at(1), "alice 1 ", "bob 2 ")
}

func TestARedeliveryReplacesTheHandle(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	if q.Push("alice", 1, "first", time.Time{}) {
		t.Error("a new sequence is called known")
	}
	if !q.Push("alice", 1, "second", time.Time{}) {
		t.Error("a known sequence is called new")
	}
	want(t, q, at(0), "alice 1 second", "none")
	q.Push("alice", 1, "third", time.Time{}) // while in work
	want(t, q, at(0), "none")
	if value := q.Done("alice"); value != "third" {
		t.Errorf("done with %q, want the newest delivery", value)
	}
	want(t, q, at(0), "none")
}

func TestALateItemGoesNext(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 5, "", time.Time{})
	q.Push("alice", 6, "", time.Time{})
	want(t, q, at(0), "alice 5 ")
	q.Push("alice", 4, "", time.Time{})
	q.Retry("alice", at(9))
	want(t, q, at(0), "alice 4 ")
	q.Done("alice")
	want(t, q, at(0), "none")
	want(t, q, at(9), "alice 5 ")
}

func TestAPushedTimeIsKept(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 1, "", at(5))
	want(t, q, at(4), "none")
	want(t, q, at(5), "alice 1 ")
}

func TestDropWaitingKeepsWhatIsInWork(t *testing.T) {
	t.Parallel()
	q := order.New[string]()
	q.Push("alice", 3, "", time.Time{})
	q.Push("alice", 4, "", time.Time{})
	q.Push("bob", 1, "", at(9))
	want(t, q, at(0), "alice 3 ")
	var dropped []uint64
	for _, it := range q.DropWaiting() {
		dropped = append(dropped, it.Seq)
	}
	if diff := gocmp.Diff([]uint64{1, 4}, dropped); diff != "" {
		t.Errorf("dropped (-want +have):\n%s", diff)
	}
	if q.Len() != 1 || q.Working() != 1 {
		t.Errorf("holds %d, %d in work, want 1 and 1", q.Len(), q.Working())
	}
	q.Retry("alice", at(0))
	want(t, q, at(0), "alice 3 ", "none")
}

// model is the queue written so that it is plainly right.
type model struct{ items []modelItem }

type modelItem struct {
	key     string
	seq     uint64
	value   int
	at      time.Time
	working bool
}

func (m *model) find(f func(modelItem) bool) int { return slices.IndexFunc(m.items, f) }

func (m *model) push(key string, seq uint64, value int, at time.Time) bool {
	if i := m.find(func(it modelItem) bool { return it.seq == seq }); i >= 0 {
		m.items[i].value = value
		return true
	}
	m.items = append(m.items, modelItem{key: key, seq: seq, value: value, at: at})
	slices.SortFunc(m.items, func(a, b modelItem) int { return cmp.Compare(a.seq, b.seq) })
	return false
}

// heads returns the index of each key's head, keys in work left out.
func (m *model) heads() []int {
	var heads []int
	closed := map[string]bool{}
	for _, it := range m.items {
		closed[it.key] = closed[it.key] || it.working
	}
	for i, it := range m.items {
		if !closed[it.key] {
			closed[it.key] = true
			heads = append(heads, i)
		}
	}
	return heads
}

func (m *model) next(now time.Time) (modelItem, bool) {
	for _, i := range m.heads() {
		if !m.items[i].at.After(now) {
			m.items[i].working = true
			return m.items[i], true
		}
	}
	return modelItem{}, false
}

func (m *model) wake(now time.Time) (time.Time, bool) {
	var times []time.Time
	for _, i := range m.heads() {
		if m.items[i].at.After(now) {
			times = append(times, m.items[i].at)
		}
	}
	if len(times) == 0 {
		return time.Time{}, false
	}
	return slices.MinFunc(times, time.Time.Compare), true
}

func (m *model) working(key string) int {
	return m.find(func(it modelItem) bool { return it.key == key && it.working })
}

func (m *model) waiting(key string) (n int) {
	for _, it := range m.items {
		if it.key == key && !it.working {
			n++
		}
	}
	return n
}

// FuzzQueue runs the same operations, two bytes each, on the queue and on the model.
func FuzzQueue(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		ops := make([]byte, 600)
		for i := range ops {
			ops[i] = byte(rnd.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		q, m := order.New[int](), &model{}
		now := start
		for i := 0; i+1 < len(ops); i += 2 {
			op, arg := ops[i]%10, int(ops[i+1])
			key := string(rune('a' + arg%5))
			var log strings.Builder
			fmt.Fprintf(&log, "operation %d: %d %d", i/2, op, arg)
			switch op {
			case 0, 1, 2:
				seq, when := uint64(arg), time.Time{}
				if op == 2 {
					when = now.Add(time.Duration(arg) * time.Millisecond)
				}
				if have, want := q.Push(key, seq, i, when), m.push(key, seq, i, when); have != want {
					t.Fatalf("%s: push known %t, want %t", &log, have, want)
				}
			case 3, 4:
				it, ok := q.Next(now)
				want, wantOK := m.next(now)
				if ok != wantOK || it.Seq != want.seq || it.Key != want.key || it.Value != want.value {
					t.Fatalf("%s: next is %v %t, want %v %t", &log, it, ok, want, wantOK)
				}
			case 5:
				if w := m.working(key); w >= 0 {
					if have := q.Done(key); have != m.items[w].value {
						t.Fatalf("%s: done returns %d, want %d", &log, have, m.items[w].value)
					}
					m.items = slices.Delete(m.items, w, w+1)
				}
			case 6:
				if w := m.working(key); w >= 0 {
					when := now.Add(time.Duration(arg) * time.Millisecond)
					q.Retry(key, when)
					m.items[w].working, m.items[w].at = false, when
				}
			case 7:
				if arg < 250 {
					now = now.Add(time.Duration(arg) * time.Millisecond / 4)
					break
				}
				n := len(m.items)
				m.items = slices.DeleteFunc(m.items, func(it modelItem) bool { return !it.working })
				if have := len(q.DropWaiting()); have != n-len(m.items) {
					t.Fatalf("%s: dropped %d, want %d", &log, have, n-len(m.items))
				}
			case 8:
				q.Hasten()
				for _, i := range m.heads() {
					m.items[i].at = time.Time{}
				}
			case 9:
				waiting := q.Waiting(key)
				if want := m.waiting(key); len(waiting) != want {
					t.Fatalf("%s: %d wait, want %d", &log, len(waiting), want)
				}
				if len(waiting) == 0 {
					break
				}
				seq := waiting[arg%len(waiting)].Seq
				w := m.find(func(it modelItem) bool { return it.seq == seq })
				if have := q.Drop(key, seq); have != m.items[w].value {
					t.Fatalf("%s: drop returns %d, want %d", &log, have, m.items[w].value)
				}
				m.items = slices.Delete(m.items, w, w+1)
			}
			if have, want := q.Has(uint64(arg)), m.find(func(it modelItem) bool { return it.seq == uint64(arg) }) >= 0; have != want {
				t.Fatalf("%s: has %t, want %t", &log, have, want)
			}
			if q.Len() != len(m.items) {
				t.Fatalf("%s: holds %d, want %d", &log, q.Len(), len(m.items))
			}
			// Times that have passed are seen by the next Next, in the queue; the model has no such memory.
			wake, ok := q.NextWake()
			want, wantOK := m.wake(now)
			if wantOK && !ok || ok && wake.After(now) && !wake.Equal(want) {
				t.Fatalf("%s: wakes at %v %t, want %v %t", &log, wake, ok, want, wantOK)
			}
		}
		held := 0
		for range q.All() {
			held++
		}
		if held != len(m.items) {
			t.Fatalf("yields %d items, want %d", held, len(m.items))
		}
	})
}

func BenchmarkQueue(b *testing.B) {
	for _, held := range []int{750, 100_000} {
		b.Run(fmt.Sprintf("%d held", held), func(b *testing.B) {
			q := order.New[int]()
			seq := uint64(0)
			push := func() {
				q.Push(fmt.Sprint(seq%200), seq, 0, time.Time{})
				seq++
			}
			for range held {
				push()
			}
			for b.Loop() {
				it, _ := q.Next(start)
				q.Done(it.Key)
				push()
			}
		})
	}
}
