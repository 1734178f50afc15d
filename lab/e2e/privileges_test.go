package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/pkg/events"
)

// needed are the capabilities that the probe is promised to do with.
var needed = map[uintptr]string{unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_NET_RAW: "CAP_NET_RAW"}

// Sets of capabilities, as proc_pid_status(5) writes them.
var (
	neededMask = fmt.Sprintf("%016x", 1<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW)
	noneMask   = fmt.Sprintf("%016x", 0)
)

// keepOnly takes from what is started in the laboratory all capabilities but these.
func (s *story) keepOnly(kept ...uintptr) {
	s.t.Helper()
	for c := uintptr(0); c <= lastCapability(s); c++ {
		if !slices.Contains(kept, c) {
			s.must(s.NS.DropCapability(c))
		}
	}
}

func lastCapability(s *story) (last uintptr) {
	s.t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	s.must(err)
	_, err = fmt.Sscan(string(text), &last)
	s.must(err)
	return last
}

// ambient has a program run as another user than root, with these capabilities.
func ambient(capabilities ...uintptr) func(*syscall.SysProcAttr) {
	return func(a *syscall.SysProcAttr) {
		a.Credential = &syscall.Credential{Uid: unprivileged, Gid: unprivileged}
		a.AmbientCaps = capabilities
	}
}

// Paths in the laboratory's namespace.
var (
	probeState = filepath.Join(netns.Dir, "probe-state")
	probeKey   = filepath.Join(netns.Dir, "probe.nk")
	hubSocket  = "/var/run/wireguard/" + lab.Interface + ".sock"
)

// giveAway makes files and directories another user's than root.
func (s *story) giveAway(paths ...string) {
	s.t.Helper()
	s.must(s.NS.Do(func() error {
		for _, path := range paths {
			if err := os.Chown(path, unprivileged, unprivileged); err != nil {
				return err
			}
		}
		return nil
	}))
}

// takeKey copies the probe's key out of the notifier's directory, where root finds it only with a capability more.
func (s *story) takeKey() {
	s.t.Helper()
	seed, err := s.Seed("probe")
	s.must(err)
	s.must(s.NS.Do(func() error { return os.WriteFile(probeKey, seed, 0o600) }))
}

// TestPrivileges starts the probe with more and less of what it needs. It then has what was promised in all its threads, and does its work.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		attr     func(*syscall.SysProcAttr)
		prepare  func(*story)
		bounding string // "" for what is left to it
	}{
		"root":                {prepare: (*story).takeKey, bounding: neededMask},
		"root in a container": {prepare: func(s *story) { s.takeKey(); s.keepOnly(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW) }, bounding: neededMask},
		"another user": {attr: ambient(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW), prepare: func(s *story) {
			s.takeKey()
			s.giveAway(probeKey, probeState, hubSocket)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, patience, lab.Options{Clients: 1, ProbeAttr: tt.attr, ProbeEnv: []string{"NATS_NKEY_FILE=" + probeKey}})
			alice := s.Clients[0]
			s.must(s.StartNotifier(s.ctx))
			tt.prepare(s)
			s.must(s.StartProbe())
			_, err := s.Probe.WaitLine(s.ctx, "privileges are given up")
			s.must(err)
			s.await(0, events.InterfaceUp, lab.Interface)
			s.connect(alice)

			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.Probe.PID()))
			s.must(err)
			if len(threads) < 3 {
				t.Errorf("%d threads prove nothing", len(threads))
			}
			want := map[string]string{"CapInh": noneMask, "CapPrm": neededMask, "CapEff": neededMask, "CapAmb": noneMask, "NoNewPrivs": "1"}
			if tt.bounding != "" {
				want["CapBnd"] = tt.bounding
			}
			for _, status := range threads {
				text, err := os.ReadFile(status)
				s.must(err)
				got := map[string]string{}
				for _, m := range regexp.MustCompile(`(?m)^(\w+):\t(\S+)$`).FindAllStringSubmatch(string(text), -1) {
					if _, ok := want[m[1]]; ok {
						got[m[1]] = m[2]
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", status, diff)
				}
			}

			// A name file that is renamed over another is read. That it was, its wrong second line tells.
			s.must(s.NS.Do(func() error {
				names := filepath.Join(netns.Dir, "names")
				text := alice.PublicKey().String() + " alice-renamed\nnonsense\n"
				if err := os.WriteFile(names+".new", []byte(text), 0o644); err != nil {
					return err
				}
				return os.Rename(names+".new", names)
			}))
			_, err = s.Probe.WaitLine(s.ctx, `msg="name file"`)
			s.must(err)
			e := s.expect(events.PeerRoamed, alice.PublicKey().String(), func() error {
				s.must(alice.Roam())
				return alice.Ping(s.ctx)
			})
			if got := e.Data.(*events.Roamed).Peer.Name; got != "alice-renamed" {
				t.Errorf("the peer is called %q", got)
			}
			s.end(map[string][]string{
				"lab":          {"started, packets", "stopped"},
				"wg0":          {"up, 1 peers, inferred"},
				"alice-laptop": {"connected from 203.0.113.11", "roamed from 203.0.113.11 to 198.51.100.11"},
			})
		})
	}
}

// probe runs the probe, or a command of it, without a broker.
func (s *story) probe(attr func(*syscall.SysProcAttr), args []string, env ...string) *runner.Process {
	s.t.Helper()
	p, err := runner.Start(runner.Spec{
		Name: "probe", NS: s.NS, Path: runner.Binary("probe"), Args: args, Log: &s.log, Attr: attr,
		Env: append([]string{"NATS_URL=nats://127.0.0.1:1", "PROBE_NODE=lab", "PROBE_STATE=" + probeState}, env...),
	})
	s.must(err)
	s.t.Cleanup(p.Kill)
	return p
}

// ends waits for a program to end with a code, having said each of the texts.
func (s *story) ends(p *runner.Process, code int, texts ...string) {
	s.t.Helper()
	err := p.Wait(s.ctx)
	if want := fmt.Sprintf("exit status %d", code); code == 0 && err != nil || code != 0 && (err == nil || !strings.Contains(err.Error(), want)) {
		s.t.Errorf("it ended with %v, want exit status %d", err, code)
	}
	for _, text := range texts {
		if !strings.Contains(p.Output(), text) {
			s.t.Errorf("it does not say %q:\n%s", text, p.Output())
		}
	}
}

// TestMissingCapability: with one less, the probe says which one, what for and how to give it, and starts nothing.
func TestMissingCapability(t *testing.T) {
	t.Parallel()
	for missing, name := range needed {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var other uintptr
			for c := range needed {
				if c != missing {
					other = c
				}
			}
			said := []string{"lacks " + name + " (to ", "cap_add", "AmbientCapabilities", "setcap"}
			s := begin(t, patience, lab.Options{})
			s.giveAway(probeState)
			s.ends(s.probe(ambient(other), nil), 2, said...)
			s.keepOnly(other)
			p := s.probe(nil, nil)
			s.ends(p, 2, said...)
			if strings.Contains(p.Output(), needed[other]+" (") {
				t.Errorf("it names the one that it has:\n%s", p.Output())
			}
		})
	}
}

// TestForeignState: root may have the state of another user while it starts with all its capabilities, and is told what to do when it does not.
func TestForeignState(t *testing.T) {
	t.Parallel()
	s := begin(t, patience, lab.Options{})
	s.giveAway(probeState)
	p := s.probe(nil, nil)
	_, err := p.WaitLine(s.ctx, "interface is watched")
	s.must(err)
	s.ends(s.probe(nil, []string{"health"}), 0, "well: watches ")
	s.must(p.Stop())

	s.keepOnly(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)
	s.ends(s.probe(nil, nil), 2, probeState, "permission denied", "runs as user 0", "chown -R 0 ")
}

// TestHealth asks a probe how it is, before, while and after it runs, and reads its metrics, both over sockets. Nothing is opened for that but what it opened at
// the start.
func TestHealth(t *testing.T) {
	t.Parallel()
	s := begin(t, patience, lab.Options{})
	s.keepOnly(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)
	health := []string{"health"}
	s.ends(s.probe(nil, health), 1, "not well: no probe runs with the state directory "+probeState)

	socket := filepath.Join(netns.Dir, "metrics.sock")
	p := s.probe(nil, nil, "PROBE_METRICS=unix:"+socket)
	_, err := p.WaitLine(s.ctx, "interface is watched")
	s.must(err)
	s.ends(s.probe(nil, health), 0, "well: watches wg0; the broker is not connected, events are kept; ")
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return s.NS.Dial("unix", socket) },
	}}
	resp, err := client.Get("http://probe/metrics")
	s.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	s.must(err)
	for _, metric := range []string{"wgherald_probe_node_clashes_total 0", "process_open_fds "} {
		if !strings.Contains(string(text), "\n"+metric) {
			t.Errorf("no %s in the metrics:\n%s", metric, text)
		}
	}

	// One that does not run any more, though it exists, is not well.
	s.must(syscall.Kill(p.PID(), syscall.SIGSTOP))
	s.ends(s.probe(nil, health), 1, "not well: the probe gives no answer within 5s")
	s.must(syscall.Kill(p.PID(), syscall.SIGCONT))
	s.ends(s.probe(nil, health), 0, "well: ")

	s.must(s.DeleteHub())
	_, err = p.WaitLine(s.ctx, "waiting for one")
	s.must(err)
	s.ends(s.probe(nil, health), 0, "well: watches no WireGuard interface yet")
	p.Kill()
	s.ends(s.probe(nil, health), 1, "not well: no probe runs with the state directory "+probeState)
	s.must(s.CreateHub())
	p = s.probe(nil, nil) // what the killed one left is in nobody's way
	_, err = p.WaitLine(s.ctx, "interface is watched")
	s.must(err)
	s.ends(s.probe(nil, health), 0, "well: watches wg0")
}
