// Package order keeps what a hook has to deliver in order per partition key: one item of a key is in work at a time, the lowest stream sequence
// first. A failed item waits for its time with its followers behind it, while other keys pass.
//
//	        Push                Next                    Done
//	(new) ───────► waiting ───────────► in work ─────────────► (gone)
//	                  ▲   head, due         │
//	                  └─────────────────────┘
//	                         Retry(at)
//
// It is pure: it neither reads a clock nor knows what it carries. It is bounded only by what is pushed; the consumer stops pulling in time.
package order

import (
	"cmp"
	"container/heap"
	"iter"
	"slices"
	"time"
)

// Item is one thing to deliver.
type Item[T any] struct {
	Key   string // partition key
	Seq   uint64 // stream sequence, the order within the key
	Value T

	at time.Time // not before; zero is at once
}

// lane holds the items of one key.
type lane[T any] struct {
	working *Item[T]   // in work, or nil
	waiting []*Item[T] // by sequence

	in    *laneHeap[T] // the heap that holds the lane, nil while it is working
	index int          // in that heap
}

func (l *lane[T]) head() *Item[T] { return l.waiting[0] }

// Queue holds items by key. The zero Queue is not usable; see New. It is not safe for concurrent use.
type Queue[T any] struct {
	lanes map[string]*lane[T]
	items map[uint64]*Item[T]
	// A lane that is not working has its head in one of these: ready ones by sequence, so that the oldest goes first and retries do not starve,
	// later ones by time.
	ready laneHeap[T]
	later laneHeap[T]
	// working counts the items in work.
	working int
}

// New returns an empty queue.
func New[T any]() *Queue[T] {
	q := &Queue[T]{lanes: map[string]*lane[T]{}, items: map[uint64]*Item[T]{}}
	q.ready.less = func(a, b *Item[T]) bool { return a.Seq < b.Seq }
	q.later.less = func(a, b *Item[T]) bool {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.Seq, b.Seq)) < 0
	}
	return q
}

// Push adds an item that may go at the given time; the zero time is at once. A sequence that is held already is not added again: its value becomes
// the new one, its place and its time stay, and Push returns true. An item that comes after a higher sequence of its key is already in work has
// missed its place and goes next.
func (q *Queue[T]) Push(key string, seq uint64, value T, at time.Time) (known bool) {
	if it, ok := q.items[seq]; ok {
		it.Value = value
		return true
	}
	it := &Item[T]{Key: key, Seq: seq, Value: value, at: at}
	q.items[seq] = it
	l, ok := q.lanes[key]
	if !ok {
		l = &lane[T]{}
		q.lanes[key] = l
	}
	l.insert(it)
	q.place(l)
	return false
}

// Next takes the oldest item that may be worked on now, or returns false. The item stays held, and its key closed, until Done or Retry.
func (q *Queue[T]) Next(now time.Time) (Item[T], bool) {
	if _, ok := q.Peek(now); !ok {
		return Item[T]{}, false
	}
	l := q.ready.lanes[0]
	l.working, l.waiting = l.head(), slices.Delete(l.waiting, 0, 1)
	q.working++
	q.place(l)
	return *l.working, true
}

// Peek returns the item that Next would take.
func (q *Queue[T]) Peek(now time.Time) (Item[T], bool) {
	for len(q.later.lanes) > 0 && !q.later.lanes[0].head().at.After(now) {
		q.hasten(q.later.lanes[0])
	}
	if len(q.ready.lanes) == 0 {
		return Item[T]{}, false
	}
	return *q.ready.lanes[0].head(), true
}

// Hasten lets every item that waits for its time at the head of its key go at once.
func (q *Queue[T]) Hasten() {
	for len(q.later.lanes) > 0 {
		q.hasten(q.later.lanes[0])
	}
}

// Soonest returns the item whose time comes next, of those that wait for it at the head of their key.
func (q *Queue[T]) Soonest() (Item[T], bool) {
	if len(q.later.lanes) == 0 {
		return Item[T]{}, false
	}
	return *q.later.lanes[0].head(), true
}

// HastenSoonest lets the item that Soonest returns go at once. It panics when there is none.
func (q *Queue[T]) HastenSoonest() { q.hasten(q.later.lanes[0]) }

func (q *Queue[T]) hasten(l *lane[T]) {
	l.head().at = time.Time{}
	q.place(l)
}

// Done ends the work on the item of key that Next returned, and returns its newest value. It panics when none is in work.
func (q *Queue[T]) Done(key string) T {
	it, l := q.finish(key)
	delete(q.items, it.Seq)
	q.place(l)
	if len(l.waiting) == 0 {
		delete(q.lanes, key)
	}
	return it.Value
}

// Retry puts the item of key that Next returned back at its place, not to be worked on before at. It panics when none is in work.
func (q *Queue[T]) Retry(key string, at time.Time) {
	it, l := q.finish(key)
	it.at = at
	l.insert(it)
	q.place(l)
}

// Waiting returns the items of key that are not in work, by sequence.
func (q *Queue[T]) Waiting(key string) []Item[T] {
	l := q.lanes[key]
	if l == nil {
		return nil
	}
	items := make([]Item[T], len(l.waiting))
	for i, it := range l.waiting {
		items[i] = *it
	}
	return items
}

// Drop removes an item of key that is not in work and returns its newest value. It panics when there is none.
func (q *Queue[T]) Drop(key string, seq uint64) T {
	l := q.lanes[key]
	i := slices.IndexFunc(l.waiting, func(it *Item[T]) bool { return it.Seq == seq })
	it := l.waiting[i]
	l.waiting = slices.Delete(l.waiting, i, i+1)
	delete(q.items, seq)
	q.place(l)
	if l.working == nil && len(l.waiting) == 0 {
		delete(q.lanes, key)
	}
	return it.Value
}

// DropWaiting removes every item that is not in work and returns them by sequence.
func (q *Queue[T]) DropWaiting() []Item[T] {
	var dropped []Item[T]
	for key, l := range q.lanes {
		for _, it := range l.waiting {
			delete(q.items, it.Seq)
			dropped = append(dropped, *it)
		}
		l.waiting = nil
		q.place(l)
		if l.working == nil {
			delete(q.lanes, key)
		}
	}
	slices.SortFunc(dropped, func(a, b Item[T]) int { return cmp.Compare(a.Seq, b.Seq) })
	return dropped
}

// NextWake returns the earliest time at which an item that now waits may go, or false when no item waits for its time.
func (q *Queue[T]) NextWake() (time.Time, bool) {
	if len(q.later.lanes) == 0 {
		return time.Time{}, false
	}
	return q.later.lanes[0].head().at, true
}

// Has reports whether the sequence is held.
func (q *Queue[T]) Has(seq uint64) bool {
	_, ok := q.items[seq]
	return ok
}

// Len returns the number of items held, those in work included.
func (q *Queue[T]) Len() int { return len(q.items) }

// Working returns the number of items in work.
func (q *Queue[T]) Working() int { return q.working }

// Ready returns the number of items that Next would return now, as far as the last Next saw the time.
func (q *Queue[T]) Ready() int { return len(q.ready.lanes) }

// All yields the items held, those in work included, in no order. The queue must not change meanwhile.
func (q *Queue[T]) All() iter.Seq[Item[T]] {
	return func(yield func(Item[T]) bool) {
		for _, it := range q.items {
			if !yield(*it) {
				return
			}
		}
	}
}

func (q *Queue[T]) finish(key string) (*Item[T], *lane[T]) {
	l := q.lanes[key]
	if l == nil || l.working == nil {
		panic("order: no item of this key is in work")
	}
	it := l.working
	l.working = nil
	q.working--
	return it, l
}

// insert puts it at its place by sequence. Items mostly come in order, so the search starts at the end.
func (l *lane[T]) insert(it *Item[T]) {
	i := len(l.waiting)
	for i > 0 && l.waiting[i-1].Seq > it.Seq {
		i--
	}
	l.waiting = slices.Insert(l.waiting, i, it)
}

// place moves a lane to the heap where its state belongs, or to none.
func (q *Queue[T]) place(l *lane[T]) {
	var to *laneHeap[T]
	switch {
	case l.working != nil || len(l.waiting) == 0:
	case l.head().at.IsZero():
		to = &q.ready
	default:
		to = &q.later
	}
	if l.in != nil && l.in != to {
		l.in.remove(l)
	}
	switch {
	case to == nil:
	case l.in == to:
		heap.Fix(to, l.index) // its head may be another one
	default:
		l.in = to
		heap.Push(to, l)
	}
}

// laneHeap orders lanes by their heads.
type laneHeap[T any] struct {
	lanes []*lane[T]
	less  func(a, b *Item[T]) bool
}

// remove takes out a lane whose head may have changed or gone.
func (h *laneHeap[T]) remove(l *lane[T]) {
	last := len(h.lanes) - 1
	i := l.index
	h.Swap(i, last)
	h.Pop()
	if i < last {
		heap.Fix(h, i)
	}
	l.in = nil
}

func (h *laneHeap[T]) Len() int           { return len(h.lanes) }
func (h *laneHeap[T]) Less(i, j int) bool { return h.less(h.lanes[i].head(), h.lanes[j].head()) }

func (h *laneHeap[T]) Swap(i, j int) {
	h.lanes[i], h.lanes[j] = h.lanes[j], h.lanes[i]
	h.lanes[i].index, h.lanes[j].index = i, j
}

// Push is for container/heap.
func (h *laneHeap[T]) Push(x any) {
	l := x.(*lane[T])
	l.index = len(h.lanes)
	h.lanes = append(h.lanes, l)
}

// Pop is for container/heap.
func (h *laneHeap[T]) Pop() any {
	last := len(h.lanes) - 1
	l := h.lanes[last]
	h.lanes[last] = nil
	h.lanes = h.lanes[:last]
	return l
}
