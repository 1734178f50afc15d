package compose

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	version = "1.2.3-test"
	node    = "compose-test"
	link    = "wgdemo0"

	// patience is for what takes a moment: a restart, a sample of the probe, on a busy machine.
	patience = 2 * time.Minute
	// tidying is what is left of the test's time, when that runs out, to remove what was made.
	tidying = 20 * time.Second
)

// stack is what deploy/compose.yaml describes, with the profile demo.
type stack struct {
	*engine
	deploy string     // where the file is, with a slash
	sink   *sink.Sink // gets the webhooks of the service notifier
}

// TestStack brings everything up on an engine, looks at it, kills it part by part, and takes it down. Each part of it builds on those before.
func TestStack(t *testing.T) {
	runtime.LockOSThread() // what is started here, and in each part, ends with its thread
	defer runtime.UnlockOSThread()
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-tidying))
		defer cancel()
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{engine: startEngine(ctx, t), deploy: filepath.Join(root, "deploy") + "/"}
	s.importBaseImages(ctx, t, root)
	s.receive(ctx, t)
	s.compose = append(s.compose, "-f", s.deploy+"compose.yaml", "--profile", "demo")
	t.Cleanup(func() {
		if t.Failed() {
			s.logs(t)
		}
	})

	for _, part := range []struct {
		name string
		do   func(context.Context, *testing.T)
	}{
		{"up --build brings webhooks of real peers", s.up},
		{"the demo shows them", s.demo},
		{"images", s.images},
		{"containers hold what they need and no more", s.confined},
		{"health", s.health},
		{"what operators do", s.operate},
		{"a killed nats loses nothing", func(ctx context.Context, t *testing.T) { s.survive(ctx, t, "nats") }},
		{"a killed probe loses nothing", func(ctx context.Context, t *testing.T) { s.survive(ctx, t, "probe") }},
		{"a killed notifier loses nothing", func(ctx context.Context, t *testing.T) { s.survive(ctx, t, "notifier") }},
		{"up again changes nothing", s.upAgain},
		{"what is wrong is told", s.wrong},
		{"nothing was lost", s.nothingLost},
		{"down leaves nothing", s.down},
	} {
		if !t.Run(part.name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := time.Now()
			part.do(ctx, t)
			t.Logf("%.1f s", time.Since(began).Seconds())
		}) {
			return
		}
	}
}

// receive starts the sink in the namespace that is the containers' host.
func (s *stack) receive(ctx context.Context, t *testing.T) {
	t.Helper()
	var l net.Listener
	if err := s.ns.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", host+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.sink, err = sink.Start(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.sink.Close() })
	s.env = append(s.env, "WGHERALD_VERSION="+version, "PROBE_NODE="+node, "WEBHOOK_URL=http://"+l.Addr().String()+"/hook", "WEBHOOK_SECRET="+s.sink.Secret())
}

// run runs a command of docker compose and returns what it prints.
func (s *stack) run(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try(ctx, args...)
	if err != nil {
		t.Fatalf("docker compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *stack) try(ctx context.Context, args ...string) (string, error) {
	args = append(slices.Clone(s.compose), args...)
	out, err := s.command(ctx, args[0], args[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// logs shows what each container said last.
func (s *stack) logs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), tidying/2)
	defer cancel()
	out, err := s.try(ctx, "logs", "--no-color", "--tail", "15")
	t.Logf("the containers said last: %v\n%s", err, out)
}

// container is what the engine says of one.
type container struct {
	ID           string
	RestartCount int
	State        struct {
		Running   bool
		StartedAt string
		ExitCode  int
		Health    struct{ Status string }
	}
	HostConfig struct {
		NetworkMode    string
		ReadonlyRootfs bool
		Privileged     bool
		PortBindings   map[string][]struct{ HostIP, HostPort string }
	}
	Mounts []struct {
		Name        string // of a volume
		Source      string // of a directory of the host
		Destination string
		RW          bool
	}
}

func (s *stack) container(ctx context.Context, t *testing.T, service string) container {
	t.Helper()
	var c container
	id := s.docker(ctx, t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=wgherald", "--filter", "label=com.docker.compose.service="+service)
	s.inspect(ctx, t, id, &c)
	return c
}

func (s *stack) up(ctx context.Context, t *testing.T) {
	s.run(ctx, t, "up", "--build", "--detach")
	for _, want := range []events.Type{events.PeerConnected, events.PeerRejected, events.PeerRoamed, events.PeerRemoved, events.PeerAdded} {
		s.delivered(ctx, t, 0, string(want), func(e *events.Event) bool { return e.Type == want })
	}
}

// delivered waits for a verified webhook, not looking at the first from requests.
func (s *stack) delivered(ctx context.Context, t *testing.T, from int, what string, match func(*events.Event) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %v", patience))
	defer cancel()
	if _, err := s.sink.WaitFrom(ctx, from, func(d sink.Delivery) bool { return d.OK() && match(d.Event) }); err != nil {
		t.Fatalf("no webhook of %s: %v", what, context.Cause(ctx))
	}
}

// eventually asks again and again.
func eventually(ctx context.Context, t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !is() {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}

// demo reads what the demo's own receiver prints.
func (s *stack) demo(ctx context.Context, t *testing.T) {
	for _, want := range []events.Type{events.PeerConnected, events.PeerRejected, events.PeerRoamed} {
		eventually(ctx, t, fmt.Sprintf("the demo prints a verified %s", want), func() bool {
			for line := range strings.Lines(s.run(ctx, t, "logs", "--no-color", "demo-sink")) {
				if strings.Contains(line, string(want)) && strings.Contains(line, "signature ok") {
					return true
				}
			}
			return false
		})
	}
}

func (s *stack) images(ctx context.Context, t *testing.T) {
	for _, name := range []string{"notifier", "probe", "demo"} {
		var image struct {
			Size   int64
			Config struct {
				Labels map[string]string
				User   string
			}
		}
		s.inspect(ctx, t, "wgherald/"+name+":"+version, &image)
		t.Logf("%s: %.1f MB", name, float64(image.Size)/1e6)
		if image.Size > 25e6 {
			t.Errorf("image %s has %d bytes, want 25 MB at most", name, image.Size)
		}
		want := []string{"description", "licenses", "source", "title", "version"}
		var labels []string
		for label := range image.Config.Labels {
			if name, ours := strings.CutPrefix(label, "org.opencontainers.image."); ours { // docker compose adds some of its own
				labels = append(labels, name)
			}
		}
		slices.Sort(labels)
		if diff := gocmp.Diff(want, labels); diff != "" {
			t.Errorf("labels of %s (-want +got):\n%s", name, diff)
		}
		if got := image.Config.Labels["org.opencontainers.image.version"]; got != version {
			t.Errorf("image %s says that it is version %q", name, got)
		}
	}
	for _, program := range []string{"notifier", "probe"} {
		if got := s.docker(ctx, t, "run", "--rm", "wgherald/"+program+":"+version, "-version"); got != version {
			t.Errorf("%s -version says %q", program, got)
		}
	}
}

// confined compares what the engine and the kernel say of each container that stays with what it may have.
func (s *stack) confined(ctx context.Context, t *testing.T) {
	const admin, raw = 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_NET_RAW
	type facts struct {
		UID          int
		Capabilities uint64   // that it can ever have
		Mounts       []string // volumes without the project's name, and directories of the host; :ro where they cannot be written
		Listens      []string // TCP
		HostNetwork  bool
		Published    []string
	}
	for service, want := range map[string]facts{
		"nats": {UID: 0, Mounts: []string{"keys-broker:/keys:ro", "nats-data:/data"}, Listens: []string{"4222"}, Published: []string{"127.0.0.1:4222"}},
		"probe": {UID: 0, Capabilities: admin | raw, HostNetwork: true,
			Mounts: []string{"/var/run/wireguard:/var/run/wireguard:ro", "keys-probe:/keys:ro", "probe-state:/var/lib/wgherald-probe", "probe:/etc/wgherald:ro"}},
		"notifier":      {UID: 65534, Mounts: []string{"keys-notifier:/keys:ro", "notifier:/etc/wgherald:ro"}},
		"demo-notifier": {UID: 65534, Mounts: []string{"demo-hooks:/hooks:ro", "keys-notifier:/keys:ro"}},
		"demo-sink":     {UID: 65534, Mounts: []string{"demo-hooks:/hooks"}, Listens: []string{"8080"}},
		"demo-peers":    {UID: 0, Capabilities: admin, Mounts: []string{"/var/run/wireguard:/var/run/wireguard"}, HostNetwork: true},
	} {
		c := s.container(ctx, t, service)
		p := s.process(t, c.ID)
		got := facts{UID: p.uid, Capabilities: p.bounding, Listens: p.listens, HostNetwork: c.HostConfig.NetworkMode == "host"}
		for _, m := range c.Mounts {
			from := cmp.Or(strings.TrimPrefix(m.Name, "wgherald_"), strings.TrimPrefix(m.Source, s.deploy))
			if m.RW {
				got.Mounts = append(got.Mounts, from+":"+m.Destination)
			} else {
				got.Mounts = append(got.Mounts, from+":"+m.Destination+":ro")
			}
		}
		slices.Sort(got.Mounts)
		for _, bindings := range c.HostConfig.PortBindings {
			for _, b := range bindings {
				got.Published = append(got.Published, net.JoinHostPort(b.HostIP, b.HostPort))
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", service, diff)
		}
		if outside := p.effective &^ want.Capabilities; outside != 0 {
			t.Errorf("%s has capabilities %#x that it should not have", service, outside)
		}
		if !p.noNewPrivileges || !c.HostConfig.ReadonlyRootfs || c.HostConfig.Privileged {
			t.Errorf("%s: no new privileges %t, read-only root %t, privileged %t", service, p.noNewPrivileges, c.HostConfig.ReadonlyRootfs, c.HostConfig.Privileged)
		}
	}
}

func (s *stack) health(ctx context.Context, t *testing.T) {
	for _, service := range []string{"probe", "notifier", "demo-notifier", "demo-sink"} {
		eventually(ctx, t, service+" is healthy", func() bool { return s.container(ctx, t, service).State.Health.Status == "healthy" })
	}
}

// operate does what the documents tell operators to do.
func (s *stack) operate(ctx context.Context, t *testing.T) {
	if out := s.run(ctx, t, "run", "--rm", "--no-deps", "notifier", "check", "/etc/wgherald/hooks.example.yaml"); !strings.Contains(out, "ops") {
		t.Errorf("the example of a hooks file is not understood: %s", out)
	}
	if out := s.run(ctx, t, "run", "--rm", "--no-deps", "--user", "0:0", "--volume", "wgherald_keys-operator:/operator:ro",
		"notifier", "dead", "list", "-key", "/operator/operator.nk"); !strings.Contains(out, "no dead letter") {
		t.Errorf("dead letters cannot be listed, or there are some: %s", out)
	}
}

// survive kills a service, and waits until it is back and what happens afterwards is delivered.
func (s *stack) survive(ctx context.Context, t *testing.T, service string) {
	before := s.container(ctx, t, service)
	s.kill(t, before.ID)
	eventually(ctx, t, service+" is started again", func() bool {
		c := s.container(ctx, t, service)
		return c.RestartCount > before.RestartCount && c.State.Running
	})
	back := time.Now()
	s.delivered(ctx, t, 0, "a peer after that", func(e *events.Event) bool {
		return strings.HasPrefix(string(e.Type), "wg.peer.") && e.Common().DetectedAt.After(back)
	})
}

func (s *stack) upAgain(ctx context.Context, t *testing.T) {
	services := []string{"nats", "probe", "notifier"}
	before := map[string]container{}
	for _, service := range services {
		before[service] = s.container(ctx, t, service)
	}
	s.run(ctx, t, "up", "--detach")
	for _, service := range services {
		after := s.container(ctx, t, service)
		if after.ID != before[service].ID || after.State.StartedAt != before[service].State.StartedAt {
			t.Errorf("%s is another one, or was started again", service)
		}
	}
	for _, service := range []string{"keys", "provision"} {
		eventually(ctx, t, service+" has ended", func() bool { return !s.container(ctx, t, service).State.Running })
		if code := s.container(ctx, t, service).State.ExitCode; code != 0 {
			t.Errorf("%s ended with %d", service, code)
		}
	}
	if log := s.run(ctx, t, "logs", "--no-color", "provision"); !strings.Contains(log, "| 0 changes") {
		t.Errorf("provision made changes: %s", log)
	}
}

// wrong starts what cannot work. Each row ends by itself, with a line that names the thing.
func (s *stack) wrong(ctx context.Context, t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		want []string
	}{
		{"the probe without its state", []string{"wgherald/probe:" + version}, []string{"/var/lib/wgherald-probe", "read-only file system", "PROBE_STATE"}},
		{"the probe without its key", []string{"--tmpfs", "/var/lib/wgherald-probe", "-e", "NATS_NKEY_FILE=/keys/probe.nk", "wgherald/probe:" + version},
			[]string{"/keys/probe.nk", "no such file"}},
		{"the notifier without its key", []string{"-e", "NOTIFIER_VERIFY=false", "-e", "NATS_URL=nats://nats", "-e", "NATS_NKEY_FILE=/keys/notifier.nk", "wgherald/notifier:" + version},
			[]string{"/keys/notifier.nk", "no such file"}},
		{"the notifier without its keyring", []string{"-e", "NATS_URL=nats://nats", "-e", "NOTIFIER_KEYRING=/keys/keyring", "wgherald/notifier:" + version},
			[]string{"/keys/keyring", "NOTIFIER_KEYRING", "no such file"}},
		{"the notifier without hooks file", []string{"-e", "NATS_URL=nats://nats", "-e", "NOTIFIER_HOOKS=/etc/wgherald/hooks.yaml", "wgherald/notifier:" + version},
			[]string{"NOTIFIER_HOOKS", "/etc/wgherald/hooks.yaml", "no such file"}},
	} {
		ctx, cancel := context.WithTimeout(ctx, patience)
		out, err := s.command(ctx, "docker", append([]string{"run", "--rm", "--read-only", "--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW"}, row.args...)...).CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Errorf("%s: it ended with %v, %v", row.name, err, ctx.Err())
		}
		cancel()
		for _, part := range row.want {
			if !strings.Contains(string(out), part) {
				t.Errorf("%s: it does not say %q:\n%s", row.name, part, out)
			}
		}
	}
	// One whose key the broker does not know waits until it does.
	id := s.docker(ctx, t, "run", "--detach", "--network=host", "--tmpfs=/var/lib/wgherald-probe", "--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "wgherald/probe:"+version)
	eventually(ctx, t, "a probe with a key of its own says that it is refused", func() bool {
		out, err := s.command(ctx, "docker", "logs", id).CombinedOutput()
		return err == nil && strings.Contains(string(out), "not reached, trying on")
	})
	var c container
	if s.inspect(ctx, t, id, &c); !c.State.Running {
		t.Error("a probe with a key of its own does not wait")
	}
	s.docker(ctx, t, "rm", "--force", "--volumes", id)

	// A second one on this host finds the port taken, and has another.
	second := append(slices.Clone(s.compose), "--project-name", "second", "up", "--detach", "nats")
	out, err := s.command(ctx, second[0], second[1:]...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "4222") {
		t.Errorf("a second broker on the same port: %v\n%s", err, out)
	}
	other := s.command(ctx, second[0], second[1:]...)
	other.Env = append(slices.Clone(other.Env), "WGHERALD_NATS_PORT=4223")
	if out, err := other.CombinedOutput(); err != nil {
		t.Errorf("a second broker on another port: %v\n%s", err, out)
	}
	second = append(slices.Clone(s.compose), "--project-name", "second", "down", "--volumes")
	if out, err := s.command(ctx, second[0], second[1:]...).CombinedOutput(); err != nil {
		t.Errorf("down: %v\n%s", err, out)
	}
}

// nothingLost ends the peers and looks at the numbers of all that was delivered.
func (s *stack) nothingLost(ctx context.Context, t *testing.T) {
	from := s.sink.Len()
	s.run(ctx, t, "stop", "demo-peers")
	s.delivered(ctx, t, from, "the interface's end", func(e *events.Event) bool { return e.Type == events.InterfaceDown })
	eventually(ctx, t, "all events are delivered", func() bool { return len(holes(s.sink.All())) == 0 })
	for _, d := range s.sink.All() {
		if d.Err != nil {
			t.Errorf("a request was no verified event: %v", d.Err)
		}
	}
	t.Logf("%d requests", s.sink.Len())
	s.run(ctx, t, "stop")
	for _, service := range []string{"probe", "notifier", "demo-notifier", "demo-peers", "demo-sink"} {
		if code := s.container(ctx, t, service).State.ExitCode; code != 0 {
			t.Errorf("%s ended with %d when it was stopped", service, code)
		}
	}
}

// holes returns the events that are missing between the first and the last of each source.
func holes(deliveries []sink.Delivery) []string {
	got := map[string]map[uint64]bool{} // by source and epoch
	for _, d := range deliveries {
		if !d.OK() {
			continue
		}
		source := fmt.Sprint(d.Event.Source, " ", d.Event.Sequence.Epoch)
		if got[source] == nil {
			got[source] = map[uint64]bool{}
		}
		got[source][d.Event.Sequence.N] = true
	}
	var missing []string
	for source, numbers := range got {
		sorted := slices.Sorted(maps.Keys(numbers))
		for n := sorted[0]; n < sorted[len(sorted)-1]; n++ {
			if !numbers[n] {
				missing = append(missing, fmt.Sprint(source, " ", n))
			}
		}
	}
	return missing
}

func (s *stack) down(ctx context.Context, t *testing.T) {
	s.run(ctx, t, "down", "--volumes")
	for what, args := range map[string][]string{
		"containers": {"ps", "-a", "-q"},
		"volumes":    {"volume", "ls", "-q"},
		"networks":   {"network", "ls", "-q", "--filter", "type=custom"},
	} {
		if left := s.docker(ctx, t, args...); left != "" {
			t.Errorf("%s are left: %s", what, left)
		}
	}
}

// process is what the kernel says of a container's first process.
type process struct {
	uid                 int
	effective, bounding uint64 // capabilities
	noNewPrivileges     bool
	listens             []string // TCP ports
}

func (s *stack) process(t *testing.T, id string) (p process) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", s.pid(t, id))
	status, err := os.Open(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":\t")
		switch name {
		case "Uid":
			_, err = fmt.Sscan(value, &p.uid)
		case "CapEff":
			_, err = fmt.Sscanf(value, "%x", &p.effective)
		case "CapBnd":
			_, err = fmt.Sscanf(value, "%x", &p.bounding)
		case "NoNewPrivs":
			p.noNewPrivileges = value == "1"
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if p.listens, err = listens(dir); err != nil {
		t.Fatal(err)
	}
	return p
}

// listens returns the TCP ports on which a process listens: its sockets are links to an inode, which stands in the table of its network namespace.
func listens(dir string) ([]string, error) {
	links, err := filepath.Glob(dir + "/fd/*")
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil {
			own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	ports := map[string]bool{}
	var errs []error
	for _, table := range []string{"/net/tcp", "/net/tcp6"} {
		text, err := os.ReadFile(dir + table)
		errs = append(errs, err)
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line) // number, local address, remote address, state …; the tenth is the inode
			const listen = "0A"
			if len(fields) < 10 || fields[3] != listen || !own[fields[9]] {
				continue
			}
			var port uint16
			_, hex, _ := strings.Cut(fields[1], ":")
			if _, err := fmt.Sscanf(hex, "%x", &port); err != nil {
				return nil, err
			}
			ports[fmt.Sprint(port)] = true
		}
	}
	return slices.Sorted(maps.Keys(ports)), errors.Join(errs...)
}
