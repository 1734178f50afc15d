package render

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

// What is left out is in no format's body or headers; the rest stays as it was.
func TestRedactedFieldsAreInNoFormat(t *testing.T) {
	t.Parallel()
	template, err := NewTemplate(`{"all": {{json .Data}}, "peer": {{json .Peer}}, "text": {{json .Text}}, "name": {{json .Name}}}`, "application/json")
	if err != nil {
		t.Fatal(err)
	}
	formats := map[string]Format{"template": template}
	for _, name := range Names {
		if formats[name], err = Named(name); err != nil {
			t.Fatal(err)
		}
	}
	texts := map[string][]string{
		"endpoint": {"203.0.113.7", "198.51.100.4", "2001:db8::7"}, "name": {"alice-laptop"}, "tags": {"staff"}, "allowed_ips": {"10.9.0.2", "2001:db8::2/"},
	}
	if diff := cmp.Diff([]string{"allowed_ips", "endpoint", "name", "tags"}, Fields()); diff != "" {
		t.Fatal(diff)
	}
	for format, f := range formats {
		for _, field := range Fields() {
			redacted, err := Redact(f, []string{field})
			if err != nil {
				t.Fatal(err)
			}
			check := func(e *events.Event, raw []byte) {
				r, err := redacted(e, raw)
				if err != nil {
					t.Errorf("%s without %s on %s: %v", format, field, e.Type, err)
				}
				for _, text := range texts[field] {
					if strings.Contains(fmt.Sprintf("%s %v", r.Body, r.Header), text) {
						t.Errorf("%s without %s on %s: %v %s", format, field, e.Type, r.Header, r.Body)
					}
				}
				if format == "cloudevents" {
					if _, err := events.Decode(r.Body); err != nil {
						t.Errorf("without %s: %v", field, err)
					}
				}
			}
			for _, typ := range events.Types() {
				check(golden(t, typ))
			}
			check(newer(t))
			_, raw := golden(t, events.PeerConnected)
			raw = []byte(strings.NewReplacer(`"endpoint"`, `"EndPoint"`, `"name"`, `"NAME"`, `"tags"`, `"Tags"`, `"allowedIPs"`, `"allowedips"`).Replace(string(raw)))
			e, err := events.Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			check(e, raw)
		}
	}
}

func TestRedactLeavesTheRest(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(data, peer map[string]any){
		"endpoint": func(data, peer map[string]any) {
			delete(data, "from")
			delete(data, "to")
			delete(peer, "endpoint")
		},
		"name": func(_, peer map[string]any) { delete(peer, "name") },
		"tags": func(_, peer map[string]any) { delete(peer, "tags") },
	} {
		e, raw := golden(t, events.PeerRoamed)
		f, err := Redact(CloudEvents, []string{field})
		if err != nil {
			t.Fatal(err)
		}
		r, err := f(e, raw)
		if err != nil {
			t.Fatal(err)
		}
		want := decoded(t, raw)
		data := want.(map[string]any)["data"].(map[string]any)
		change(data, data["peer"].(map[string]any))
		if diff := cmp.Diff(want, decoded(t, r.Body)); diff != "" {
			t.Errorf("without %s (-want +have):\n%s", field, diff)
		}
	}
}

func TestRedactedChangesStayChanges(t *testing.T) {
	t.Parallel()
	e, raw := golden(t, events.PeerChanged)
	f, err := Redact(CloudEvents, Fields())
	if err != nil {
		t.Fatal(err)
	}
	r, err := f(e, raw)
	if err != nil {
		t.Fatal(err)
	}
	var have struct {
		Data struct {
			Changes struct{ AllowedIPs json.RawMessage }
		}
	}
	if err := json.Unmarshal(r.Body, &have); err != nil || string(have.Data.Changes.AllowedIPs) != `{"from":[],"to":[]}` {
		t.Errorf("changes are %s: %v", have.Data.Changes.AllowedIPs, err)
	}
}

func TestRedactNothingOrNonsense(t *testing.T) {
	t.Parallel()
	f, err := Redact(CloudEvents, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, raw := golden(t, events.PeerConnected)
	if r, err := f(e, raw); err != nil || string(r.Body) != string(raw) {
		t.Errorf("the stored bytes are changed: %v %s", err, r.Body)
	}
	if _, err := Redact(CloudEvents, []string{"names"}); err == nil {
		t.Error("a field that there is not is accepted")
	}
}
