package publish

import (
	"iter"
	"strings"
)

// lanes is a multiset of partition keys that knows their hierarchy: "node", "node.interface", "node.interface.peer". What is told of an interface
// concerns all its peers, so it must neither overtake their events nor be overtaken by them.
type lanes struct {
	exact map[string]int
	below map[string]int // members below a key
}

func newLanes() lanes { return lanes{exact: map[string]int{}, below: map[string]int{}} }

// add puts a key in n times; a negative n takes it out.
func (l lanes) add(key string, n int) {
	change(l.exact, key, n)
	for above := range ancestors(key) {
		change(l.below, above, n)
	}
}

func change(m map[string]int, key string, n int) {
	if m[key] += n; m[key] == 0 {
		delete(m, key)
	}
}

// block reports whether an event of the given key must wait for a member.
func (l lanes) block(key string) bool {
	if l.exact[key] > 0 || l.below[key] > 0 {
		return true
	}
	for above := range ancestors(key) {
		if l.exact[above] > 0 {
			return true
		}
	}
	return false
}

// ancestors yields the keys above a key.
func ancestors(key string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := strings.LastIndexByte(key, '.'); i >= 0; i = strings.LastIndexByte(key[:i], '.') {
			if !yield(key[:i]) {
				return
			}
		}
	}
}
