package contract

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

var docs = filepath.Join("..", "..", "docs")

// states returns values of the bucket: that of a peer nobody has heard of, and those of a peer that came, and left.
func states(t *testing.T) map[string]string {
	t.Helper()
	e, err := events.Decode(golden(t)[events.PeerConnected])
	if err != nil {
		t.Fatal(err)
	}
	unheard := events.State{Node: "vpn-1", Interface: "wg0", Peer: events.Peer{PublicKey: events.Key{1}}, UpdatedAt: e.Time}
	came := events.State{
		Node: "vpn-1", Interface: "wg0", Peer: *e.Peer(), Connected: true, Session: &e.Data.(*events.Connected).Session,
		Sequence: e.Sequence, EventID: e.ID, EventType: e.Type, UpdatedAt: e.Time,
	}
	left := came
	left.Connected, left.EventType, left.UpdatedAt = false, events.PeerDisconnected, e.Time.Add(time.Minute)
	values := map[string]string{}
	for name, s := range map[string]*events.State{"unheard": &unheard, "came": &came, "left": &left} {
		value, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		values[name] = string(value)
	}
	return values
}

func TestStateSchema(t *testing.T) {
	state := compile(t, filepath.Join(docs, "schema", "wg.peer.v1.json"), "#/$defs/state")
	values := states(t)
	for name, value := range values {
		if err := state.Validate(tree(t, []byte(value))); err != nil {
			t.Errorf("%s: %v\n%s", name, err, value)
		}
	}
	for _, tt := range []struct{ name, old, new string }{
		{"connected without session", `"session":`, `"meeting":`},
		{"connected in words", `"connected":true`, `"connected":"yes"`},
		{"no peer", `"peer":`, `"friend":`},
		{"a sequence that is none", `"sequence":"1`, `"sequence":"x`},
		{"the type of an interface's event", `"eventType":"wg.peer.connected"`, `"eventType":"wg.interface.up"`},
		{"no time", `"updatedAt":`, `"updated":`},
	} {
		bad := strings.Replace(values["came"], tt.old, tt.new, 1)
		if bad == values["came"] {
			t.Fatalf("%s: the state does not hold %s: %s", tt.name, tt.old, bad)
		}
		if err := state.Validate(tree(t, []byte(bad))); err == nil {
			t.Errorf("%s: passes: %s", tt.name, bad)
		}
	}
}

// TestAsyncAPI holds docs/asyncapi.yaml to what pkg/events says and does.
func TestAsyncAPI(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(docs, "asyncapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	at := func(pointer string) any {
		var v any = all
		for name := range strings.SplitSeq(strings.TrimPrefix(pointer, "#/"), "/") {
			m, _ := v.(map[string]any)
			v = m[name]
		}
		return v
	}

	t.Run("every reference leads somewhere", func(t *testing.T) {
		refs := regexp.MustCompile(`\$ref: '?([^'}\s]+)`).FindAllStringSubmatch(string(text), -1)
		if len(refs) < 10 {
			t.Fatalf("finds %q", refs)
		}
		for _, ref := range refs {
			if file, fragment, _ := strings.Cut(ref[1], "#"); file != "" {
				compile(t, filepath.Join(docs, file), "#"+fragment)
			} else if at(ref[1]) == nil {
				t.Errorf("%s: there is none", ref[1])
			}
		}
	})
	t.Run("every type has its channel, which names it", func(t *testing.T) {
		want, got := map[string]string{}, map[string]string{}
		for _, typ := range events.Types() {
			parts := strings.Split(string(typ), ".")
			channel := parts[0] + "." + parts[1] + ".*"
			want[channel] = strings.TrimPrefix(want[channel]+", "+parts[2], ", ")
		}
		for _, c := range at("channels").(map[string]any) {
			channel := c.(map[string]any)
			if address := channel["address"].(string); strings.HasPrefix(address, "wg.") {
				got[address] = channel["description"].(string)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("states are where they are put", func(t *testing.T) {
		key := events.StateKey("vpn-1", "wg0", events.Key{1})
		parts := strings.Split(key, ".")
		address := strings.NewReplacer("{node}", parts[0], "{interface}", parts[1], "{publicKey}", parts[2]).Replace(at("channels/states/address").(string))
		if want := events.StateSubject(key); address != want {
			t.Errorf("%s, want %s", address, want)
		}
	})
	t.Run("events carry their signature", func(t *testing.T) {
		if at("components/messages/event/headers/properties/"+events.HeaderSignature) == nil {
			t.Errorf("no header %s", events.HeaderSignature)
		}
	})
}
