// Package ledger keeps what was observed, in order, and lets others wait for an entry. Nothing is ever taken out, so whoever waits may come late.
package ledger

import (
	"context"
	"slices"
	"sync"
)

// Ledger is a growing list. The zero value is empty and ready. Its methods are safe for concurrent use.
type Ledger[T any] struct {
	mu      sync.Mutex
	entries []T
	grown   chan struct{} // closed by the next Add; nil when nobody waits
}

// Add appends an entry.
func (l *Ledger[T]) Add(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, v)
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
}

// All returns the entries so far, oldest first.
func (l *Ledger[T]) All() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

// Len returns the number of entries so far: the place from which WaitFrom sees only what comes later.
func (l *Ledger[T]) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// Wait returns the oldest entry that matches, once there is one, or the error of ctx.
func (l *Ledger[T]) Wait(ctx context.Context, match func(T) bool) (T, error) {
	return l.WaitFrom(ctx, 0, match)
}

// WaitFrom is Wait without the first n entries.
func (l *Ledger[T]) WaitFrom(ctx context.Context, n int, match func(T) bool) (T, error) {
	for {
		entries, grown := l.since(n)
		for _, e := range entries {
			if match(e) {
				return e, nil
			}
		}
		n += len(entries)
		if len(entries) == 0 && ctx.Err() != nil {
			var none T
			return none, ctx.Err()
		}
		select {
		case <-grown:
		case <-ctx.Done(): // one more look: what was added before the end counts
		}
	}
}

// since returns the entries after the first n, and a channel that is closed when there are more.
func (l *Ledger[T]) since(n int) ([]T, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.grown == nil {
		l.grown = make(chan struct{})
	}
	return l.entries[min(n, len(l.entries)):], l.grown
}
