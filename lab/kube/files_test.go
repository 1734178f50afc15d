package kube

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// manifest is what these tests look at in a document of deploy/kube. podman skips over fields that it does not know, so a misspelt one would do nothing there.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct {
		Name                string
		Labels, Annotations map[string]string
	}
	Data map[string]string // of a ConfigMap
	Spec struct {
		// of a Pod
		RestartPolicy                string         `yaml:"restartPolicy"`
		AutomountServiceAccountToken *bool          `yaml:"automountServiceAccountToken"`
		EnableServiceLinks           *bool          `yaml:"enableServiceLinks"`
		HostNetwork                  bool           `yaml:"hostNetwork"`
		InitContainers               []podContainer `yaml:"initContainers"`
		Containers                   []podContainer
		Volumes                      []podVolume
		// of a Service
		Selector map[string]string
		Ports    []struct{ Port int }
		// of a PersistentVolumeClaim
		AccessModes []string `yaml:"accessModes"`
		Resources   struct{ Requests struct{ Storage string } }
	}
}

type podContainer struct {
	Name, Image     string
	ImagePullPolicy string `yaml:"imagePullPolicy"`
	Args            []string
	Ports           []struct {
		ContainerPort int    `yaml:"containerPort"`
		HostPort      int    `yaml:"hostPort"`
		HostIP        string `yaml:"hostIP"`
	}
	Env []struct {
		Name, Value string
		ValueFrom   struct {
			ConfigMapKeyRef struct {
				Name, Key string
				Optional  bool
			} `yaml:"configMapKeyRef"`
		} `yaml:"valueFrom"`
	}
	SecurityContext struct {
		RunAsUser                *int  `yaml:"runAsUser"`
		RunAsGroup               *int  `yaml:"runAsGroup"`
		RunAsNonRoot             bool  `yaml:"runAsNonRoot"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		Capabilities             struct{ Drop, Add []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

type podVolume struct {
	Name                  string
	PersistentVolumeClaim struct {
		ClaimName string `yaml:"claimName"`
	} `yaml:"persistentVolumeClaim"`
	HostPath struct{ Path, Type string } `yaml:"hostPath"`
	EmptyDir *struct{}                   `yaml:"emptyDir"`
}

// read parses a file of deploy/kube strictly.
func read(t *testing.T, name string) (ms []manifest) {
	t.Helper()
	text, err := os.ReadFile(file(t, name))
	if err != nil {
		t.Fatal(err)
	}
	for d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()); ; {
		var m manifest
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			return ms
		}
		if err != nil {
			t.Fatalf("%s.yaml: %v", name, err)
		}
		ms = append(ms, m)
	}
}

// pod is the pod of a file, and its containers, those that come first first.
func pod(t *testing.T, name string) (manifest, []podContainer) {
	t.Helper()
	ms := read(t, name)
	if len(ms) != 1 || ms[0].Kind != "Pod" {
		t.Fatalf("%s.yaml is not one Pod: podman 4.3 neither replaces nor takes down a file of which one pod is missing", name)
	}
	return ms[0], slices.Concat(ms[0].Spec.InitContainers, ms[0].Spec.Containers)
}

// source is the claim or the path that a volume of a pod is, and nothing for one that ends with the pod.
func (m manifest) source(t *testing.T, volume string) string {
	t.Helper()
	for _, v := range m.Spec.Volumes {
		if v.Name == volume {
			return v.PersistentVolumeClaim.ClaimName + v.HostPath.Path
		}
	}
	t.Fatalf("pod %s has no volume %s", m.Metadata.Name, volume)
	return ""
}

// service is what a container is told and may do, whichever file says it.
type service struct {
	Image       string
	Args        []string
	Env         []string // name, or name=value where users have no say
	Drop, Add   []string // capabilities
	ReadOnly    bool
	NoNewPrivs  bool
	HostNetwork bool
	Restarts    bool
	Ports       []string
	Mounts      []string
}

// meant are all the differences there should be: compose's words, and what deploy/kube says instead. For two things it has no word, and its README.md tells what to
// do: the order of the start, and checks of health (TestPlay does both so).
var meant = strings.NewReplacer(
	"//nats:", "//wgherald-nats:", // a pod is found by its name
	"${WGHERALD_VERSION:-dev}", "dev", "${WGHERALD_NATS_PORT:-4222}", "4222", "${PROBE_NODE:-*}", "*", // files of pods have no variables
	"./notifier:", "/etc/wgherald/notifier:", "./probe:", "/etc/wgherald/probe:", // nor a place that paths could start from
)

// TestSameAsCompose fails when one of the two deployments is changed and the other forgotten.
func TestSameAsCompose(t *testing.T) {
	t.Parallel()
	plain := strings.NewReplacer("docker.io/library/", "", "localhost/", "")
	got := map[string]service{}
	for _, name := range pods {
		m, containers := pod(t, name)
		for i, c := range containers {
			s := service{
				Image: plain.Replace(c.Image), Args: c.Args, Drop: c.SecurityContext.Capabilities.Drop, Add: c.SecurityContext.Capabilities.Add,
				ReadOnly: c.SecurityContext.ReadOnlyRootFilesystem, NoNewPrivs: is(c.SecurityContext.AllowPrivilegeEscalation, false),
				HostNetwork: m.Spec.HostNetwork, Restarts: i >= len(m.Spec.InitContainers),
			}
			for _, e := range c.Env {
				text := e.Name
				if e.Value != "" {
					text += "=" + e.Value
				}
				s.Env = append(s.Env, text)
			}
			for _, p := range c.Ports {
				s.Ports = append(s.Ports, fmt.Sprintf("%s:%d:%d", p.HostIP, p.HostPort, p.ContainerPort))
			}
			for _, v := range c.VolumeMounts {
				text := strings.TrimPrefix(m.source(t, v.Name), "wgherald-") + ":" + v.MountPath
				if v.ReadOnly {
					text += ":ro"
				}
				s.Mounts = append(s.Mounts, text)
			}
			slices.Sort(s.Env)
			slices.Sort(s.Mounts)
			got[c.Name] = s
		}
	}
	if diff := cmp.Diff(compose(t), got); diff != "" {
		t.Errorf("deploy/compose.yaml (-) and deploy/kube (+) differ:\n%s", diff)
	}
}

// compose is what deploy/compose.yaml says of its services but for the demo's, in the words of deploy/kube.
func compose(t *testing.T) map[string]service {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "deploy", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var project struct {
		Services map[string]struct {
			Image       string
			Command     []string
			Environment map[string]string
			CapDrop     []string `yaml:"cap_drop"`
			CapAdd      []string `yaml:"cap_add"`
			ReadOnly    bool     `yaml:"read_only"`
			SecurityOpt []string `yaml:"security_opt"`
			NetworkMode string   `yaml:"network_mode"`
			Restart     string
			Ports       []string
			Volumes     []string
			Tmpfs       []string
			Profiles    []string
		}
	}
	if err := yaml.Unmarshal(text, &project); err != nil {
		t.Fatalf("deploy/compose.yaml: %v", err)
	}
	all := map[string]service{}
	for name, c := range project.Services {
		if len(c.Profiles) > 0 {
			continue
		}
		s := service{
			Image: meant.Replace(c.Image), Drop: c.CapDrop, Add: c.CapAdd, ReadOnly: c.ReadOnly, NoNewPrivs: slices.Contains(c.SecurityOpt, "no-new-privileges"),
			HostNetwork: c.NetworkMode == "host", Restarts: c.Restart != "",
		}
		for _, a := range c.Command {
			s.Args = append(s.Args, meant.Replace(a))
		}
		for name, value := range c.Environment {
			if !strings.HasPrefix(value, "${") {
				name += "=" + meant.Replace(value)
			}
			s.Env = append(s.Env, name)
		}
		for _, p := range c.Ports {
			s.Ports = append(s.Ports, meant.Replace(p))
		}
		for _, v := range c.Volumes {
			s.Mounts = append(s.Mounts, meant.Replace(v))
		}
		for _, v := range c.Tmpfs {
			where, _, _ := strings.Cut(v, ":") // the rest is about users and modes: TestPlay shows that the notifier can write there
			s.Mounts = append(s.Mounts, ":"+where)
		}
		slices.Sort(s.Env)
		slices.Sort(s.Mounts)
		all[name] = s
	}
	return all
}

// TestPods holds what compose has no word for.
func TestPods(t *testing.T) {
	t.Parallel()
	readers := map[string][]string{}
	for _, name := range pods {
		m, containers := pod(t, name)
		// Under Always, podman 4.3 starts the first containers again and again, too, for 20 s until it goes on, or fails.
		if m.Spec.RestartPolicy != "OnFailure" {
			t.Errorf("pod %s: restart policy %q", name, m.Spec.RestartPolicy)
		}
		// The variables that Kubernetes makes of a service look like misspelt ones of ours.
		if !is(m.Spec.EnableServiceLinks, false) || !is(m.Spec.AutomountServiceAccountToken, false) {
			t.Errorf("pod %s is told of services, or gets a token", name)
		}
		for _, c := range containers {
			nobody := c.SecurityContext.RunAsNonRoot && is(c.SecurityContext.RunAsUser, 65534) && is(c.SecurityContext.RunAsGroup, 65534)
			if root := is(c.SecurityContext.RunAsUser, 0) && is(c.SecurityContext.RunAsGroup, 0); !root && !nobody || nobody != (name == "notifier") {
				t.Errorf("container %s runs as the wrong user", c.Name)
			}
			if c.ImagePullPolicy != "IfNotPresent" {
				t.Errorf("container %s: image pull policy %q: the images are built on the machine", c.Name, c.ImagePullPolicy)
			}
			for _, v := range c.VolumeMounts {
				if claim := m.source(t, v.Name); strings.HasPrefix(claim, "wgherald-keys-") && c.Name != "keys" {
					readers[claim] = append(readers[claim], c.Name)
				}
			}
		}
	}
	want := map[string][]string{
		"wgherald-keys-broker": {"nats"}, "wgherald-keys-notifier": {"notifier"}, "wgherald-keys-probe": {"probe"}, "wgherald-keys-provision": {"provision"},
	}
	if diff := cmp.Diff(want, readers); diff != "" {
		t.Errorf("who reads which keys:\n%s", diff)
	}
}

// TestServicesKnow asks the services themselves about every flag and variable.
func TestServicesKnow(t *testing.T) {
	t.Parallel()
	help := func(t *testing.T, service string, args ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), "go", append([]string{"run", "-trimpath", "."}, args...)...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0") // as other tests build them, so that it is done once
		c.Dir = filepath.Join(repository, "services", service)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("%s %s: %v\n%s", service, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, name := range pods {
		_, containers := pod(t, name)
		for _, c := range containers {
			service, ours := strings.CutPrefix(c.Image, "localhost/wgherald/")
			if !ours {
				continue
			}
			// Help comes after the flags before it were understood.
			text := help(t, strings.TrimSuffix(service, ":dev"), append(slices.Clone(c.Args), "-h")...)
			words := strings.Fields(text)
			for _, e := range c.Env {
				if !slices.Contains(words, e.Name) {
					t.Errorf("%s does not know the variable %s", c.Name, e.Name)
				}
			}
		}
	}
}

// TestSettings compares what the pods take from the settings with the example that users copy.
func TestSettings(t *testing.T) {
	t.Parallel()
	example := read(t, "settings.example")
	if len(example) != 1 || example[0].Kind != "ConfigMap" {
		t.Fatal("settings.example.yaml is not one ConfigMap: of several, podman 4.3 takes the first")
	}
	text, err := os.ReadFile(file(t, "settings.example"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, name := range pods {
		_, containers := pod(t, name)
		for _, c := range containers {
			for _, e := range c.Env {
				ref := e.ValueFrom.ConfigMapKeyRef
				switch {
				case e.Value != "":
				case ref.Name != example[0].Metadata.Name || ref.Key != e.Name:
					t.Errorf("%s: %s comes from %s of %q", c.Name, e.Name, ref.Key, ref.Name)
				case !ref.Optional && example[0].Data[e.Name] == "":
					t.Errorf("settings.example.yaml lacks %s", e.Name)
				case !regexp.MustCompile(`\b` + e.Name + `\b`).Match(text):
					t.Errorf("settings.example.yaml does not mention %s", e.Name)
				}
				known[e.Name] = true
			}
		}
	}
	for name := range example[0].Data {
		if !known[name] {
			t.Errorf("no pod takes %s of settings.example.yaml", name)
		}
	}
}

// TestKubernetes compares what podman makes by itself, and Kubernetes has to be told, with what the pods ask for.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	claimed, made := map[string]bool{}, map[string]bool{}
	labels := map[string]map[string]string{} // by the pod's name
	for _, name := range pods {
		m, _ := pod(t, name)
		labels[m.Metadata.Name] = m.Metadata.Labels
		for _, v := range m.Spec.Volumes {
			if claim := v.PersistentVolumeClaim.ClaimName; claim != "" {
				claimed[claim] = true
			}
		}
	}
	for _, m := range read(t, "kubernetes") {
		switch m.Kind {
		case "PersistentVolumeClaim":
			made[m.Metadata.Name] = true
		case "Service": // podman resolves a pod by its name, so the service has that name
			if diff := cmp.Diff(labels[m.Metadata.Name], m.Spec.Selector); diff != "" || len(m.Spec.Selector) == 0 {
				t.Errorf("labels of pod %[1]s (-) and selector of service %[1]s (+):\n%[2]s", m.Metadata.Name, diff)
			}
		default:
			t.Errorf("a %s", m.Kind)
		}
	}
	if diff := cmp.Diff(claimed, made); diff != "" {
		t.Errorf("claims that the pods make (-) and kubernetes.yaml has (+):\n%s", diff)
	}
}

// is reports whether a field is there and has a value.
func is[T comparable](field *T, value T) bool { return field != nil && *field == value }
