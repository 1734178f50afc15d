package runner_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/testreq"
)

// TestMain makes the test binary the program that the tests run: a shell may be missing, and cannot be asked for its credentials.
func TestMain(m *testing.M) {
	if role := os.Getenv("RUNNER_TEST_ROLE"); role != "" {
		os.Exit(play(role))
	}
	os.Exit(m.Run())
}

func play(role string) int {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	switch role {
	case "obey":
		fmt.Println("ready")
		<-terminate
		return 0
	case "fail":
		fmt.Println("ready")
		<-terminate
		return 3
	case "stay":
		fmt.Println("ready")
		select {}
	case "crashed":
		fmt.Fprint(os.Stderr, "first\nlast words, no line feed")
		return 4
	case "tell":
		groups, _ := os.Getgroups()
		fmt.Printf("uid %d, gid %d, groups %v\n", os.Getuid(), os.Getgid(), groups)
		fmt.Println("environment", os.Environ())
		status, _ := os.ReadFile("/proc/self/status")
		for _, field := range []string{"CapEff", "CapPrm"} {
			fmt.Println(regexp.MustCompile("(?m)^" + field + ".*$").FindString(string(status)))
		}
		return 0
	}
	return 2
}

func newNS(t *testing.T) *netns.NS {
	t.Helper()
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.E2E, err.Error())
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	return ns
}

func start(t *testing.T, role string, change func(*runner.Spec)) *runner.Process {
	t.Helper()
	ns := newNS(t)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := runner.Binary("self")
	syscall.ForkLock.RLock() // as Install does
	err = ns.Do(func() error { return os.WriteFile(path, self, 0o755) })
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	spec := runner.Spec{Name: role, NS: ns, Path: path, Env: []string{"RUNNER_TEST_ROLE=" + role}}
	if change != nil {
		change(&spec)
	}
	p, err := runner.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestUnprivilegedProcess(t *testing.T) {
	t.Parallel()
	p := start(t, "tell", func(s *runner.Spec) { s.User = 65534 })
	<-p.Done()
	want := strings.Join([]string{"uid 65534, gid 65534, groups []", "environment [RUNNER_TEST_ROLE=tell]", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"}, "\n")
	if diff := cmp.Diff(want, p.Output()); diff != "" {
		t.Error(diff)
	}
}

func TestDroppedCapability(t *testing.T) {
	t.Parallel()
	drop := func(s *runner.Spec) {
		if err := s.NS.DropCapability(unix.CAP_NET_RAW); err != nil {
			t.Fatal(err)
		}
	}
	has := func(change func(*runner.Spec)) bool {
		p := start(t, "tell", change)
		<-p.Done()
		_, hex, _ := strings.Cut(p.Output(), "CapEff:\t")
		caps, err := strconv.ParseUint(hex[:16], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return caps&(1<<unix.CAP_NET_RAW) != 0
	}
	if !has(nil) {
		t.Skip("this process does not have CAP_NET_RAW itself")
	}
	if has(drop) {
		t.Error("root has CAP_NET_RAW in a namespace where it was dropped")
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	if err := start(t, "tell", nil).Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := start(t, "crashed", nil).Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 4: first\nlast words") {
		t.Errorf("got %v, want how it ended and what it said", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := start(t, "stay", nil).Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	tests := map[string]string{ // role: part of the error
		"obey":    "",
		"fail":    "exit status 3",
		"stay":    "still running 5s after SIGTERM, killed",
		"crashed": "it has ended: exit status 4",
	}
	for role, want := range tests {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			p := start(t, role, nil)
			if role == "crashed" {
				<-p.Done()
			} else if _, err := p.WaitLine(t.Context(), "ready"); err != nil {
				t.Fatal(err)
			}
			err := p.Stop()
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			<-p.Done()
		})
	}
}

func TestWaitLine(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	p := start(t, "crashed", func(s *runner.Spec) { s.Log = &log })
	line, err := p.WaitLine(t.Context(), "no line feed")
	if err != nil || line != "last words, no line feed" {
		t.Errorf("got %q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := p.WaitLine(ctx, "never said"); err == nil || !strings.Contains(err.Error(), "it has ended: exit status 4") {
		t.Errorf("got %v, want the end of the process as the reason", err)
	}
	<-p.Done()
	want := "crashed: first\ncrashed: last words, no line feed\n"
	if diff := cmp.Diff(want, log.String()); diff != "" {
		t.Error(diff)
	}
}

func TestProcessDiesWithItsNamespace(t *testing.T) {
	t.Parallel()
	var ns *netns.NS
	p := start(t, "stay", func(s *runner.Spec) { ns = s.NS; s.User = 65534 })
	if _, err := p.WaitLine(t.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	ns.Close()
	<-p.Done()
}
