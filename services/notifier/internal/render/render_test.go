package render_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
	"github.com/wgherald/wgherald/services/notifier/internal/render"
)

func TestCloudEventsSendsTheStoredBytes(t *testing.T) {
	t.Parallel()
	golden, err := filepath.Glob("../../../../pkg/events/testdata/*.json")
	if err != nil || len(golden) == 0 {
		t.Fatalf("no golden events: %v", err)
	}
	for _, file := range golden {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		e, err := events.Decode(raw)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		have, err := render.CloudEvents(e, raw)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		want := render.Request{Body: raw, Header: map[string]string{"Content-Type": "application/cloudevents+json"}}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s (-want +have):\n%s", file, diff)
		}
	}
}
