package compose

import (
	"os"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// TestEachImageIsBuiltOnce: Compose v2 has all builds made at the same time, and with the image store of containerd, which new engines have, the second one of a
// name fails ("already exists"). It happens on the first build of a machine only. The engine of TestStack has neither.
func TestEachImageIsBuiltOnce(t *testing.T) {
	text, err := os.ReadFile("../../deploy/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image     string
			Pull      string `yaml:"pull_policy"`
			Build     any
			DependsOn map[string]any `yaml:"depends_on"`
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	builds, uses := map[string][]string{}, map[string][]string{}
	for name, s := range file.Services {
		uses[s.Image] = append(uses[s.Image], name)
		if s.Build != nil {
			builds[s.Image] = append(builds[s.Image], name)
		}
	}
	for image, by := range builds {
		if len(by) != 1 {
			t.Errorf("%s is built by %q, want one of them", image, by)
			continue
		}
		for _, name := range uses[image] {
			if pull := file.Services[name].Pull; pull != "never" {
				t.Errorf("%s has the pull policy %q: Compose would ask a registry for %s, and run what anybody has put there", name, pull, image)
			}
			// docker-compose 1.29 makes images in the order of services, and looks for one that is not built yet in a registry, whatever the policy.
			if !after(name, by[0], func(name string) map[string]any { return file.Services[name].DependsOn }) {
				t.Errorf("%s is not started after %s, which builds its image", name, by[0])
			}
		}
	}
}

// after reports whether a service is started after another one, or is that one.
func after(name, other string, dependsOn func(string) map[string]any) bool {
	if name == other {
		return true
	}
	for before := range dependsOn(name) {
		if after(before, other, dependsOn) {
			return true
		}
	}
	return false
}

// TestImagesTrustPublicAuthorities: either service may reach a broker whose certificate is of one, and its image holds no other file.
func TestImagesTrustPublicAuthorities(t *testing.T) {
	for _, service := range []string{"notifier", "probe"} {
		text, err := os.ReadFile("../../services/" + service + "/Dockerfile")
		if err != nil {
			t.Fatal(err)
		}
		const roots = "/etc/ssl/certs/ca-certificates.crt"
		if !strings.Contains(string(text), "COPY --from=build "+roots+" "+roots+"\n") {
			t.Errorf("the image of the %s has no certificates", service)
		}
	}
}
