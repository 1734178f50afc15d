package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/lab"
	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
	"github.com/wgherald/wgherald/lab/internal/sink"
	"github.com/wgherald/wgherald/lab/internal/standin"
	"github.com/wgherald/wgherald/lab/internal/testreq"
	"github.com/wgherald/wgherald/lab/internal/watch"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	repository = "../.."

	// patience is for what takes seconds, on a machine that is busy with other things.
	patience = 3 * time.Minute
)

// pods are the files of deploy/kube in the order in which README.md plays them.
var pods = []string{"nats", "notifier", "probe"}

// TestPlay is the story of a deployment: play, peers come, each container is killed once, play again, down. What is told in it is told once, and nothing is
// missing.
func TestPlay(t *testing.T) {
	l := newLab(t)
	ownEtc(t, l.NS)
	p := newPodman(t, l)
	p.services()
	links := p.links()

	url := listen(t, l)
	play := func(data string) {
		settings := filepath.Join(p.dir, "settings.yaml")
		write(t, settings, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: wgherald}\ndata: {PROBE_NODE: "+lab.Node+", "+data+"}\n")
		for _, pod := range pods {
			p.must("kube", "play", "--replace", "--configmap", settings, file(t, pod))
		}
	}
	play(fmt.Sprintf("WEBHOOK_URL: %q, WEBHOOK_SECRET: %q", url, l.Sink.Secret()))
	l.Events = reader(t, p)
	comes := func(c *lab.Client) *events.Event {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := c.Connect(ctx); err != nil {
			t.Fatal(err)
		}
		d, err := l.Delivered(ctx, 0, events.PeerConnected, c.PublicKey().String())
		if err != nil {
			t.Fatalf("%v\n%s", err, p.logs())
		}
		return d.Event
	}

	comes(l.Clients[0])
	published(t, l, l.Clients[0])
	t.Run("containers", func(t *testing.T) { p.checkContainers(t) })
	seed := p.volumeFile(t, "reader", "reader.nk")
	// The commands of deploy/kube/README.md.
	p.must("exec", "wgherald-probe-probe", "/probe", "health")
	p.must("exec", "wgherald-notifier-notifier", "/notifier", "health")
	if dead := p.must("run", "--rm", "--user=0:0", "--pod=wgherald-notifier", "-v=wgherald-keys-operator:/operator:ro", "-e=NATS_URL=nats://wgherald-nats:4222",
		"wgherald/notifier:dev", "dead", "list", "-key", "/operator/operator.nk"); strings.Contains(dead, "alice") {
		t.Errorf("dead letters:\n%s", dead)
	}

	for i, container := range []string{"wgherald-probe-probe", "wgherald-notifier-notifier", "wgherald-nats-nats"} {
		before := p.inspect(t, container)[0]
		p.kill(before)
		comes(l.Clients[1+i])
		if now := p.inspect(t, container)[0]; now.RestartCount != 1 || now.ID != before.ID {
			t.Errorf("%s was killed, and restarted %d times", container, now.RestartCount)
		}
	}

	// Again, with all that users may add.
	p.userFile("notifier/hooks.yaml", fmt.Sprintf("hooks: [{name: default, url: %q, secret: %q}]\n", url, l.Sink.Secret()))
	p.userFile("probe/names", l.Clients[4].PublicKey().String()+" by-its-file\n")
	play("NOTIFIER_HOOKS: /etc/wgherald/hooks.yaml, NOTIFIER_METRICS: 0.0.0.0:9586, PROBE_NAMES: /etc/wgherald/names, PROBE_METRICS: 127.0.0.1:9585")
	if name := comes(l.Clients[4]).Peer().Name; name != "by-its-file" {
		t.Errorf("%s is called %q", l.Clients[4].Name, name)
	}
	address := p.must("container", "inspect", "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "wgherald-notifier-notifier")
	for at, metric := range map[string]string{"127.0.0.1:9585": "wgherald_probe_", address + ":9586": "wgherald_notifier_"} {
		if text := p.metrics(at); !strings.Contains(text, metric) {
			t.Errorf("no %s in the metrics at %s:\n%s", metric, at, text)
		}
	}
	if p.volumeFile(t, "reader", "reader.nk") != seed {
		t.Error("playing again made other keys")
	}
	for _, c := range l.Clients {
		if n := told(l.Sink, events.PeerConnected, c); n != 1 {
			t.Errorf("%s came once, and was told %d times", c.Name, n)
		}
	}

	for _, pod := range slices.Backward(pods) {
		p.must("kube", "down", file(t, pod))
	}
	if left := p.must("ps", "--all", "--quiet") + p.must("pod", "ps", "--quiet"); left != "" {
		t.Errorf("left after kube down: %s", left)
	}
	for deadline := time.Now().Add(patience); len(p.processes()) > 0; time.Sleep(10 * time.Millisecond) { // those that tidy up are detached
		if time.Now().After(deadline) {
			t.Fatalf("processes left after kube down: %v", p.processes())
		}
	}
	if diff := cmp.Diff(links, p.links()); diff != "" {
		t.Errorf("network links after kube down:\n%s", diff)
	}
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	if _, err := exec.LookPath("podman"); err != nil {
		testreq.Skip(t, testreq.Kube, err.Error())
	}
	if err := netns.Available(); err != nil {
		testreq.Skip(t, testreq.Kube, err.Error())
	}
	bins, err := runner.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bins.Close)
	l, err := lab.New(bins, lab.Options{Clients: 5})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// listen gives the lab a sink that pods reach, and returns its URL. The lab's own is on loopback.
func listen(t *testing.T, l *lab.Lab) string {
	t.Helper()
	var listener net.Listener
	if err := l.NS.Do(func() (err error) {
		listener, err = net.Listen("tcp", "203.0.113.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s, err := sink.Start(listener)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l.Sink = s
	return "http://" + listener.Addr().String() + "/hook"
}

// reader subscribes with the key and the keyring that the pods made.
func reader(t *testing.T, p *podman) *watch.Watcher {
	t.Helper()
	ring, err := events.ParseKeyring(p.volumeFile(t, "notifier", "keyring"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := watch.Start(p.ns, "nats://127.0.0.1:4222", []byte(p.volumeFile(t, "reader", "reader.nk")), ring)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func published(t *testing.T, l *lab.Lab, c *lab.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := l.Published(ctx, 0, events.PeerConnected, c.PublicKey().String())
	if err != nil {
		t.Fatal(err)
	}
	if m.Event.Common().Node != lab.Node {
		t.Errorf("node %q, want that of the settings", m.Event.Common().Node)
	}
}

// told counts the events of a type about a client that the sink took. One that is delivered twice, which is allowed, counts once.
func told(s *sink.Sink, typ events.Type, c *lab.Client) int {
	ids := map[string]bool{}
	for _, d := range s.All() {
		if d.OK() && d.Event.Type == typ && d.Event.Subject == c.PublicKey().String() {
			ids[d.ID] = true
		}
	}
	return len(ids)
}

func file(t *testing.T, pod string) string {
	t.Helper()
	name, err := filepath.Abs(filepath.Join(repository, "deploy", "kube", pod+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// services makes the images of the services from their Dockerfiles, without a network.
func (p *podman) services() {
	p.t.Helper()
	root, err := filepath.Abs(repository)
	if err != nil {
		p.t.Fatal(err)
	}
	dir := func(service string) string { return filepath.Join(root, "services", service) }
	if _, err := p.importImage(standin.Golang(dir("notifier"), dir("probe"))); err != nil {
		p.t.Fatal(err)
	}
	for _, service := range []string{"notifier", "probe"} {
		p.must("build", "--quiet", "--pull=never", "--network=none", "--layers=false", "--tag=wgherald/"+service+":dev", "--file="+filepath.Join(dir(service), "Dockerfile"), root)
	}
}

// ownEtc gives the hub an /etc of its own, where users put files for the pods and podman makes the directories for them.
func ownEtc(t *testing.T, ns *netns.NS) {
	t.Helper()
	const etc = netns.Dir + "/etc"
	if err := ns.Do(func() error {
		if out, err := exec.Command("cp", "-a", "/etc", etc).CombinedOutput(); err != nil {
			return fmt.Errorf("copy /etc: %w\n%s", err, out)
		}
		return unix.Mount(etc, "/etc", "", unix.MS_BIND, "")
	}); err != nil {
		t.Fatal(err)
	}
}

// container is what podman inspect tells.
type container struct {
	ID           string `json:"Id"`
	Name         string
	IsInfra      bool
	RestartCount int
	State        struct {
		Status   string
		ExitCode int
		PID      int `json:"Pid"`
	}
	Config struct {
		User string
	}
	HostConfig struct {
		ReadonlyRootfs bool
		SecurityOpt    []string
		NetworkMode    string
	}
	EffectiveCaps []string
	BoundingCaps  []string
	Mounts        []struct {
		Name, Source, Destination string
		RW                        bool
	}
}

func (p *podman) inspect(t *testing.T, names ...string) (cs []container) {
	t.Helper()
	text, err := p.run(append([]string{"container", "inspect"}, names...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &cs); err != nil {
		t.Fatal(err)
	}
	return cs
}

// may is what a container may do, in words.
type may struct {
	User         string
	Capabilities []string
	HostNetwork  bool
	Mounts       []string // name or path: where, and rw if it may write there
	Ended        bool     // with 0
}

// checkContainers compares what the engine made of the files with what is meant. The kernel's own account of the running processes has to agree.
func (p *podman) checkContainers(t *testing.T) {
	want := map[string]may{
		"wgherald-nats-keys": {User: "0:0", Capabilities: []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"}, Ended: true, Mounts: []string{
			"wgherald-keys-broker:/keys/broker rw", "wgherald-keys-notifier:/keys/notifier rw", "wgherald-keys-operator:/keys/operator rw",
			"wgherald-keys-probe:/keys/probe rw", "wgherald-keys-provision:/keys/provision rw", "wgherald-keys-reader:/keys/reader rw",
		}},
		"wgherald-nats-nats":          {User: "0:0", Mounts: []string{"wgherald-keys-broker:/keys", "wgherald-nats-data:/data rw"}},
		"wgherald-notifier-provision": {User: "65534:65534", Ended: true, Mounts: []string{"wgherald-keys-provision:/keys"}},
		"wgherald-notifier-notifier": {User: "65534:65534", Mounts: []string{
			"/etc/wgherald/notifier:/etc/wgherald", "wgherald-keys-notifier:/keys", "wgherald-notifier-state:/var/lib/wgherald-notifier rw",
		}},
		"wgherald-probe-probe": {User: "0:0", Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}, HostNetwork: true, Mounts: []string{
			"/etc/wgherald/probe:/etc/wgherald", "/run/wireguard:/var/run/wireguard", "wgherald-keys-probe:/keys", "wgherald-probe-state:/var/lib/wgherald-probe rw",
		}},
	}
	got := map[string]may{}
	for _, c := range p.inspect(t, strings.Fields(p.must("ps", "--all", "--quiet", "--no-trunc"))...) {
		if c.IsInfra {
			continue // podman's own: it holds the pod's namespaces and does nothing
		}
		m := may{User: c.Config.User, HostNetwork: c.HostConfig.NetworkMode == "host", Ended: c.State.Status == "exited" && c.State.ExitCode == 0}
		m.Capabilities = append(m.Capabilities, c.BoundingCaps...)
		for _, v := range c.Mounts {
			text := v.Name
			if text == "" {
				text = strings.TrimPrefix(v.Source, "/var") // /var/run is /run, or another directory
			}
			text += ":" + v.Destination
			if v.RW {
				text += " rw"
			}
			m.Mounts = append(m.Mounts, text)
		}
		slices.Sort(m.Mounts)
		got[c.Name] = m

		if !c.HostConfig.ReadonlyRootfs {
			t.Errorf("%s can write to its image", c.Name)
		}
		if !slices.Contains(c.HostConfig.SecurityOpt, "no-new-privileges") {
			t.Errorf("%s can gain privileges", c.Name)
		}
		if !m.Ended {
			p.checkProcess(t, c)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// checkProcess compares a running container with what the kernel tells of its process (proc_pid_status(5)).
func (p *podman) checkProcess(t *testing.T, c container) {
	status, err := p.ns.ReadFile(fmt.Sprintf("/proc/%d/status", c.State.PID))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		got[name] = strings.Join(strings.Fields(value), " ")
	}
	caps := "0000000000000000"
	if len(c.BoundingCaps) > 0 {
		caps = "0000000000003000" // CAP_NET_ADMIN (12), CAP_NET_RAW (13)
	}
	uid := "0 0 0 0"
	if c.Config.User == "65534:65534" {
		uid = "65534 65534 65534 65534"
	}
	for name, want := range map[string]string{"CapBnd": caps, "CapPrm": caps, "CapEff": caps, "CapInh": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Uid": uid, "Gid": uid} {
		if got[name] != want {
			t.Errorf("%s: %s is %q, want %q", c.Name, name, got[name], want)
		}
	}
}

// userFile writes a file for a pod, readable by the notifier's user.
func (p *podman) userFile(name, text string) {
	p.t.Helper()
	if err := p.ns.Do(func() error { return os.WriteFile(filepath.Join("/etc/wgherald", name), []byte(text), 0o644) }); err != nil {
		p.t.Fatal(err)
	}
}

// metrics are what is served at an address that the hub reaches.
func (p *podman) metrics(address string) string {
	p.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
		return p.ns.Dial(network, address)
	}}}
	resp, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// kill ends a container's process behind podman's back.
func (p *podman) kill(c container) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if _, err := p.program(ctx, nil, "sh", "-c", fmt.Sprintf("kill -KILL %d", c.State.PID)); err != nil {
		p.t.Fatal(err)
	}
}

// volumeFile is what is in a file of a volume of keys.
func (p *podman) volumeFile(t *testing.T, volume, name string) string {
	t.Helper()
	dir, err := p.run("volume", "inspect", "--format={{.Mountpoint}}", "wgherald-keys-"+volume)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// logs are what the containers said last.
func (p *podman) logs() string {
	var all strings.Builder
	names, _ := p.run("ps", "--all", "--format={{.Names}}")
	for name := range strings.FieldsSeq(names) {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		text, _ := p.program(ctx, nil, "sh", "-c", "podman logs --tail 10 "+name+" 2>&1")
		cancel()
		fmt.Fprintf(&all, "%s:\n%s\n", name, text)
	}
	return all.String()
}
