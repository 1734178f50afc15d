// Package contract has no code but tests: tools that are not ours judge the events that pkg/events pins in its golden files.
package contract

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/wgherald/wgherald/pkg/events"
)

// golden returns the golden file of every type in the catalogue.
func golden(t *testing.T) map[events.Type][]byte {
	t.Helper()
	files := map[events.Type][]byte{}
	for _, typ := range events.Types() {
		b, err := os.ReadFile(filepath.Join("..", "..", "pkg", "events", "testdata", string(typ)+".json"))
		if err != nil {
			t.Fatal(err)
		}
		files[typ] = b
	}
	return files
}

// TestCloudEventsSDK has the CloudEvents Go SDK decode and validate every event.
func TestCloudEventsSDK(t *testing.T) {
	for typ, body := range golden(t) {
		t.Run(string(typ), func(t *testing.T) {
			var e cloudevents.Event
			if err := json.Unmarshal(body, &e); err != nil {
				t.Fatal(err)
			}
			if err := e.Validate(); err != nil {
				t.Fatal(err)
			}
			ours, err := events.Decode(body)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []struct{ attribute, theirs, ours string }{
				{"id", e.ID(), ours.ID},
				{"source", e.Source(), ours.Source},
				{"type", e.Type(), string(ours.Type)},
				{"subject", e.Subject(), ours.Subject},
				{"sequence", e.Extensions()["sequence"].(string), ours.Sequence.String()},
				{"partitionkey", e.Extensions()["partitionkey"].(string), ours.PartitionKey},
			} {
				if f.theirs != f.ours {
					t.Errorf("%s: the SDK reads %q, we read %q", f.attribute, f.theirs, f.ours)
				}
			}
			if !e.Time().Equal(ours.Time) {
				t.Errorf("time: the SDK reads %s, we read %s", e.Time(), ours.Time)
			}
		})
	}
}

// compile returns a JSON schema from a file, or the part of it that fragment names.
func compile(t *testing.T, path, fragment string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(path + fragment)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tree(t *testing.T, body []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestSchemas checks every event against the CloudEvents JSON schema and against our own, which other languages generate code from.
//
// testdata/cloudevents-1.0.json is the schema of the CloudEvents specification (Apache-2.0), as the npm package cloudevents 10.0.0 ships it.
func TestSchemas(t *testing.T) {
	own := filepath.Join("..", "..", "docs", "schema", "wg.peer.v1.json")
	envelope := compile(t, filepath.Join("testdata", "cloudevents-1.0.json"), "")
	event := compile(t, own, "#/$defs/event")
	for typ, body := range golden(t) {
		t.Run(string(typ), func(t *testing.T) {
			v := tree(t, body)
			for name, schema := range map[string]*jsonschema.Schema{
				"CloudEvents": envelope,
				"event":       event,
			} {
				if err := schema.Validate(v); err != nil {
					t.Errorf("%s schema: %v", name, err)
				}
			}
			data := compile(t, own, "#/$defs/"+string(typ))
			if err := data.Validate(v.(map[string]any)["data"]); err != nil {
				t.Errorf("data schema: %v", err)
			}
		})
	}
}

// TestSchemaRefuses shows that our schema is no rubber stamp.
func TestSchemaRefuses(t *testing.T) {
	event := compile(t, filepath.Join("..", "..", "docs", "schema", "wg.peer.v1.json"), "#/$defs/event")
	body := string(golden(t)[events.PeerDisconnected])
	for _, tt := range []struct{ name, old, new string }{
		{"another version", `"specversion":"1.0"`, `"specversion":"2.0"`},
		{"a reason outside the list", `"reason":"expired"`, `"reason":"bored"`},
		{"a cause outside the list", `"reason":"expired"`, `"reason":"expired","cause":"moon"`},
		{"a short key", `"publicKey":"KwfW`, `"publicKey":"`},
		{"a time that is none", `"detectedAt":"2026`, `"detectedAt":"MMXXVI`},
		{"no session", `"session":`, `"meeting":`},
		{"a type outside the catalogue", `"type":"wg.peer.disconnected"`, `"type":"wg.peer.vanished"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(body, tt.old, tt.new, 1)
			if bad == body {
				t.Fatalf("the golden file does not hold %s", tt.old)
			}
			if err := event.Validate(tree(t, []byte(bad))); err == nil {
				t.Errorf("passes: %s", bad)
			}
		})
	}
}
