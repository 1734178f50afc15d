package ledger_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/lab/internal/ledger"
)

func is(want string) func(string) bool { return func(got string) bool { return got == want } }

func TestWaitFindsWhatCameBefore(t *testing.T) {
	t.Parallel()
	var l ledger.Ledger[string]
	l.Add("a")
	l.Add("b")
	if got, err := l.Wait(t.Context(), is("a")); got != "a" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, l.All()); diff != "" {
		t.Error(diff)
	}
}

func TestWaitIsWokenByWhatComes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l ledger.Ledger[string]
		found := make(chan error)
		go func() {
			_, err := l.Wait(t.Context(), is("b"))
			found <- err
		}()
		synctest.Wait()
		l.Add("a")
		synctest.Wait()
		select {
		case err := <-found:
			t.Fatalf("woken by the wrong entry: %v", err)
		default:
		}
		l.Add("b")
		if err := <-found; err != nil {
			t.Error(err)
		}
	})
}

func TestWaitFromSkipsWhatCameBefore(t *testing.T) {
	t.Parallel()
	var l ledger.Ledger[string]
	l.Add("a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.WaitFrom(ctx, l.Len(), is("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the error of the context", err)
	}
}

func TestWhatCameBeforeTheEndCounts(t *testing.T) {
	t.Parallel()
	for range 100 { // the two are ready at once, and select chooses at random
		synctest.Test(t, func(t *testing.T) {
			var l ledger.Ledger[string]
			ctx, cancel := context.WithCancel(t.Context())
			found := make(chan error)
			go func() {
				_, err := l.Wait(ctx, is("a"))
				found <- err
			}()
			synctest.Wait()
			l.Add("a")
			cancel()
			if err := <-found; err != nil {
				t.Error(err)
			}
		})
	}
}
