package main

import (
	"net"
	"net/http"
	"testing"
	"time"
)

func TestReceiverCounts(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := receive(l)
	t.Cleanup(r.close)
	send := func(path, id string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(idHeader, id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	first := r.expect("/one", 2)
	for _, tt := range []struct {
		name, path, id string
		status         int
		full           bool
	}{
		{"the first", "/one", "a", 204, false},
		{"a repetition", "/one", "a", 204, false},
		{"another hook's", "/two", "b", 204, false},
		{"a broken hook's", failing + "0", "b", 500, false},
		{"the second", "/one", "b", 204, true},
		{"one too many", "/one", "c", 204, true},
	} {
		if status := send(tt.path, tt.id); status != tt.status {
			t.Errorf("%s: answered %d, want %d", tt.name, status, tt.status)
		}
		select {
		case <-first.full:
			if !tt.full {
				t.Fatalf("%s: it is full", tt.name)
			}
		default:
			if tt.full {
				t.Fatalf("%s: it is not full", tt.name)
			}
		}
	}
	if took := first.last.Sub(first.first); took <= 0 || took > time.Minute {
		t.Errorf("the second came %v after the first", took)
	}
	again := r.expect("/one", 1)
	send("/one", "a")
	if err := again.await(t.Context()); err != nil {
		t.Error(err)
	}
}
