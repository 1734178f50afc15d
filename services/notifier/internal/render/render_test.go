package render

import (
	"encoding/json"
	"mime"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

// golden returns an event of pkg/events' test data, and its bytes.
func golden(t testing.TB, typ events.Type) (*events.Event, []byte) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../../../pkg/events/testdata", string(typ)+".json"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return e, raw
}

// hostile is an event whose names are as bad as a decoder lets them through.
func hostile(name string) *events.Event {
	bad := strings.Repeat("#", 128)
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return events.New(&events.Connected{
		Common:  events.Common{Node: bad, Interface: bad, DetectedAt: now, Inferred: true},
		Peer:    events.Peer{PublicKey: events.Key{1}, Name: name, Endpoint: "203.0.113.7:41641"},
		Session: events.Session{StartedAt: now, LastHandshakeAt: now},
	}, now, events.Sequence{Epoch: 1795342000123, N: 1})
}

func TestCloudEventsSendsTheStoredBytes(t *testing.T) {
	t.Parallel()
	for _, typ := range events.Types() {
		e, raw := golden(t, typ)
		have, err := CloudEvents(e, raw)
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		want := Request{Body: raw, Header: map[string]string{"Content-Type": "application/cloudevents+json"}}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s (-want +have):\n%s", typ, diff)
		}
	}
}

// What a receiver puts together from the headers and the body is the structured event.
func TestBinaryHoldsAllOfTheEvent(t *testing.T) {
	t.Parallel()
	for _, typ := range events.Types() {
		e, raw := golden(t, typ)
		r, err := Binary(e, raw)
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		have := map[string]any{}
		for name, value := range r.Header {
			switch attribute, ok := strings.CutPrefix(name, "Ce-"); {
			case ok:
				text, err := url.PathUnescape(value)
				if err != nil {
					t.Fatalf("%s: %s: %v", typ, name, err)
				}
				have[strings.ToLower(attribute)] = text
			case name == "Content-Type":
				have["datacontenttype"] = value
			default:
				t.Errorf("%s: header %s", typ, name)
			}
		}
		have["data"] = decoded(t, r.Body)
		if diff := cmp.Diff(decoded(t, raw), any(have)); diff != "" {
			t.Errorf("%s (-structured +binary):\n%s", typ, diff)
		}
	}
}

func decoded(t testing.TB, text []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

func TestBinaryAttributes(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ raw, want string }{ // of the header Ce-X
		"printable":               {`"a!~"`, "a!~"},
		"space, quote, percent":   {`"a b\"c%20"`, "a%20b%22c%2520"},
		"line break":              {`"a\r\nX-Evil: 1"`, "a%0D%0AX-Evil:%201"},
		"the specification's own": {`"Euro € 😀"`, "Euro%20%E2%82%AC%20%F0%9F%98%80"},
		"delete":                  {`"\u007f"`, "%7F"},
		"number":                  {`7`, "7"},
		"boolean":                 {`true`, "true"},
		"null is not there":       {`null`, ""},
		"an object is no value":   {`{"a":1}`, ""},
	} {
		r, err := Binary(nil, []byte(`{"x":`+tt.raw+`,"data":{"a": 1},"X-Evil":"y","da_ta":"z"}`))
		if err != nil {
			t.Fatal(err)
		}
		if have := r.Header["Ce-X"]; have != tt.want {
			t.Errorf("%s: %q, want %q", name, have, tt.want)
		}
		if len(r.Header) > 1 || string(r.Body) != `{"a": 1}` {
			t.Errorf("%s: %v %s", name, r.Header, r.Body)
		}
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for typ, want := range map[events.Type]string{
		events.PeerConnected:    "alice-laptop connected from 203.0.113.7:41641 (wg0 on vpn-1)",
		events.PeerDisconnected: "alice-laptop disconnected: session expired after 1h0m0s, 8.0 GiB received, 1.0 MiB sent (wg0 on vpn-1)",
		events.PeerRoamed:       "alice-laptop roamed from 198.51.100.4:55555 to 203.0.113.7:41641 (wg0 on vpn-1)",
		events.PeerStalled:      "alice-laptop gets no session: 3 attempts since 2026-11-22T11:59:45Z from 203.0.113.7:41641 (wg0 on vpn-1)",
		events.PeerRejected:     "KwfWM3PF… was turned away from [2001:db8::7]:41641: its key is not configured here, attempts: 1 (wg0 on vpn-1)",
		events.PeerAdded:        "alice-laptop was added (wg0 on vpn-1)",
		events.PeerRemoved:      "alice-laptop was removed (wg0 on vpn-1, found afterwards)",
		events.PeerChanged:      "alice-laptop was changed (wg0 on vpn-1)",
		events.InterfaceUp:      "wg0 is up: port 51820, 5 peers (wg0 on vpn-1)",
		events.InterfaceDown:    "wg0 is down: set down (wg0 on vpn-1)",
		events.InterfaceChanged: "wg0 was changed (wg0 on vpn-1)",
		events.ProbeStarted:     "probe vpn-1 started, it was blind for 1m0s (vpn-1)",
		events.ProbeStopped:     "probe vpn-1 stopped after 24h0m0s (vpn-1)",
	} {
		if e, _ := golden(t, typ); text(e) != want {
			t.Errorf("%s: %q, want %q", typ, text(e), want)
		}
	}
}

// newer is an event of a type that this version does not know.
func newer(t testing.TB) (*events.Event, []byte) {
	t.Helper()
	_, raw := golden(t, events.PeerConnected)
	raw = []byte(strings.Replace(string(raw), `"wg.peer.connected"`, `"wg.peer.greeted"`, 1))
	e, err := events.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return e, raw
}

func TestEveryFormatExpressesEveryType(t *testing.T) {
	t.Parallel()
	for _, name := range Names {
		f, err := Named(name)
		if err != nil {
			t.Fatal(err)
		}
		check := func(e *events.Event, raw []byte) {
			r, err := f(e, raw)
			if err != nil || len(r.Body) == 0 || r.Header["Content-Type"] == "" {
				t.Errorf("%s on %s: %v %v", name, e.Type, r, err)
			}
		}
		for _, typ := range events.Types() {
			check(golden(t, typ))
		}
		check(newer(t))
	}
	if _, err := Named("teams"); err == nil {
		t.Error("a format that there is not")
	}
}

func TestSlack(t *testing.T) {
	t.Parallel()
	e := hostile(`<!channel> & <https://evil|you> "x"` + "\n*b*")
	r, err := Slack(e, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(any(map[string]any{
		"text":   "&lt;!channel&gt; &amp; &lt;https://evil|you&gt; \"x\" *b* connected from 203.0.113.7:41641 (" + e.Common().Node + " on " + e.Common().Node + ", found afterwards)",
		"mrkdwn": false, "unfurl_links": false, "unfurl_media": false,
	}), decoded(t, r.Body)); diff != "" {
		t.Errorf("body (-want +have):\n%s", diff)
	}
}

// Mattermost formats whatever mrkdwn says, and mentions whom an @ stands before (its documentation: "Slack compatibility"). Rocket.Chat does so, too.
func TestSlackWhereAllIsMarkdown(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"@all":                        "@\u200ball",
		"a @here b@channel":           "a @\u200bhere b@\u200bchannel",
		"[bank](https://evil)":        "[bank]\u200b(https://evil)",
		"![](https://evil/track.png)": "![]\u200b(https://evil/track.png)",
		"[bank][1]":                   "[bank]\u200b[1]",
		"a (b) [c]":                   "a (b) [c]",
	} {
		r, err := Slack(hostile(name), nil)
		if err != nil {
			t.Fatal(err)
		}
		if have := decoded(t, r.Body).(map[string]any)["text"].(string); !strings.HasPrefix(have, want+" connected") {
			t.Errorf("%s: %q, want %q first", name, have, want)
		}
	}
}

// An endpoint is foreign text as names are: the zone of an IPv6 address may be anything, and as long as an event.
func TestAnEndpointIsOneShortText(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"a\r\n@everyone <!channel> **b**\u202e", strings.Repeat("z", 60000)} {
		e, _ := golden(t, events.PeerRoamed)
		d := e.Data.(*events.Roamed)
		d.Peer.Endpoint, d.From, d.To = "[fe80::1%"+zone+"]:1", "[fe80::2%"+zone+"]:1", "[fe80::3%"+zone+"]:1"
		connected, _ := golden(t, events.PeerConnected)
		connected.Data.(*events.Connected).Peer.Endpoint = d.To
		rejected, _ := golden(t, events.PeerRejected)
		rejected.Data.(*events.Rejected).Endpoint = d.To
		for _, e := range []*events.Event{e, connected, rejected} {
			if err := e.Validate(); err != nil {
				t.Fatal(err)
			}
			have := text(e)
			if n := len([]rune(have)); n >= 1000 || strings.ContainsAny(have, "\r\n\u202e") {
				t.Errorf("%s: %d characters: %.300q", e.Type, n, have)
			}
		}
	}
}

func TestDiscord(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ name, shown string }{
		"everybody":              {"@everyone", "@everyone"}, // mentions nobody: allowed_mentions
		"a link in disguise":     {"[x](https://evil)", `\[x\]\(https://evil\)`},
		"formatting":             {"**_~`|>#\\", "\\*\\*\\_\\~\\`\\|\\>\\#\\\\"},
		"a mention by number":    {"<@1>", `\<@1\>`},
		"two lines":              {"a\r\n# b", `a  \# b`},
		"turned around":          {"a\u202eb", "ab"},
		"as long as an event":    {strings.Repeat("*", 60000), strings.Repeat(`\*`, 127) + "…"},
		"long, two units a rune": {strings.Repeat("😀", 10000), strings.Repeat("😀", 127) + "…"},
		"broken UTF-8":           {"a\xffb", "a�b"},
	} {
		r, err := Discord(hostile(tt.name), nil)
		if err != nil {
			t.Fatal(err)
		}
		body := decoded(t, r.Body).(map[string]any)
		content := body["content"].(string)
		if n := len(utf16.Encode([]rune(content))); n > 2000 {
			t.Errorf("%s: %d characters", name, n)
		}
		if !strings.HasPrefix(content, tt.shown+" connected") {
			t.Errorf("%s: %.300q, want %.300q first", name, content, tt.shown)
		}
		if diff := cmp.Diff(any(map[string]any{"parse": []any{}}), body["allowed_mentions"]); diff != "" || body["flags"] != 4.0 {
			t.Errorf("%s: flags %v, mentions (-want +have):\n%s", name, body["flags"], diff)
		}
	}
}

func TestNtfy(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		event *events.Event
		want  map[string]string
	}{
		"a plain name":  {hostile("alice"), map[string]string{"Title": "alice connected", "Tags": "green_circle", "Priority": "3"}},
		"a line break":  {hostile("a\r\nPriority: 5\r\n\r\nx"), map[string]string{"Title": "a  Priority: 5    x connected", "Tags": "green_circle", "Priority": "3"}},
		"not ASCII":     {hostile("Zoë"), map[string]string{"Title": "Zoë connected", "Tags": "green_circle", "Priority": "3"}},
		"long":          {hostile(strings.Repeat("ë", 1000)), map[string]string{"Title": strings.Repeat("ë", 127) + "… connected", "Tags": "green_circle", "Priority": "3"}},
		"in disguise":   {hostile("=?utf-8?q?a=0D=0Ab?="), map[string]string{"Title": "= ?utf-8?q?a=0D=0Ab?= connected", "Tags": "green_circle", "Priority": "3"}},
		"an alarm":      {func() *events.Event { e, _ := golden(t, events.PeerRejected); return e }(), map[string]string{"Title": "KwfWM3PF… was turned away", "Tags": "warning", "Priority": "4"}},
		"something new": {func() *events.Event { e, _ := newer(t); return e }(), map[string]string{"Title": "wg.peer.greeted: alice-laptop", "Tags": "information_source", "Priority": "3"}},
	} {
		r, err := Ntfy(tt.event, nil)
		if err != nil {
			t.Fatal(err)
		}
		for header, value := range r.Header {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%s: header %s is %q", name, header, value)
			}
		}
		if r.Header["Title"], err = new(mime.WordDecoder).DecodeHeader(r.Header["Title"]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		delete(r.Header, "Content-Type")
		if diff := cmp.Diff(tt.want, r.Header); diff != "" {
			t.Errorf("%s (-want +have):\n%s", name, diff)
		}
		if string(r.Body) != text(tt.event) {
			t.Errorf("%s: body %q", name, r.Body)
		}
	}
}

func TestSamplesAreEventsOfEveryType(t *testing.T) {
	t.Parallel()
	seen := map[events.Type]int{}
	for _, s := range samples() {
		if err := s.event.Validate(); err != nil {
			t.Error(err)
		}
		seen[s.event.Type]++
	}
	for _, typ := range events.Types() {
		if want := 1 + strings.Count(string(typ), "peer"); seen[typ] != want {
			t.Errorf("%s: %d samples, want %d", typ, seen[typ], want)
		}
	}
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		source string
		typ    events.Type
		want   string
	}{
		"fields": {
			`{{.Type}} {{.ID}} {{.Source}} {{.Subject}} {{.Sequence}} {{.Node}} {{.Interface}} {{.Inferred}} {{.Name}} {{.Reason}} {{.Peer.Endpoint}} {{.Time.Unix}}`,
			events.PeerDisconnected, "wg.peer.disconnected plhpummdcitrmariqjp4ysqvzi /nodes/vpn-1/interfaces/wg0 KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg= " +
				"1795342000123-00000000000000000043 vpn-1 wg0 false alice-laptop expired 203.0.113.7:41641 1795348800",
		},
		"JSON":                     {`{{json .Peer.Tags}} {{json .Name}} {{json .Session.Resumed}}`, events.PeerConnected, `["staff"] "alice-laptop" false`},
		"bytes and durations":      {`{{bytes .Session.RxBytes}} {{bytes 1023}} {{duration .Session.DurationSeconds}}`, events.PeerDisconnected, "8.0 GiB 1023 B 1h0m0s"},
		"what an event lacks":      {`[{{.Peer.Name}}{{.Session.RxBytes}}{{.Reason}}]`, events.ProbeStopped, "[0]"},
		"data of one type":         {`{{if eq .Type "wg.interface.up"}}{{.Data.Peers}} peers{{end}}`, events.InterfaceUp, "5 peers"},
		"data of another type":     {`{{if eq .Type "wg.interface.up"}}{{.Data.Peers}} peers{{end}}.`, events.InterfaceDown, "."},
		"the name of an interface": {`{{.Name}}`, events.InterfaceDown, "wg0"},
		"the name of a node":       {`{{.Name}}`, events.ProbeStarted, "vpn-1"},
		"a rejected peer":          {`{{.Name}} {{.Peer.PublicKey}} {{.Peer.Endpoint}}`, events.PeerRejected, "KwfWM3PF… KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg= [2001:db8::7]:41641"},
	} {
		f, err := NewTemplate(tt.source, "text/plain")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e, raw := golden(t, tt.typ)
		have, err := f(e, raw)
		want := Request{Body: []byte(tt.want), Header: map[string]string{"Content-Type": "text/plain"}}
		if diff := cmp.Diff(want, have); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +have):\n%s", name, err, diff)
		}
	}
}

func TestTemplatesThatAreRefused(t *testing.T) {
	t.Parallel()
	const marker = "hunter2"
	for name, tt := range map[string]struct{ source, media, want string }{
		"no such field":            {"{{json .Text}}\n{{.Nme}}", "text/plain", "on wg.peer.connected: line 2 of the template: can't evaluate field Nme"},
		"no such function":         {`{{jsn .Text}}`, "text/plain", `line 1 of the template: function "jsn" not defined`},
		"unbalanced":               {"a\n{{if .Name}}", "text/plain", "line 2 of the template: unexpected EOF"},
		"a stray text":             {`{{.Name "hunter2" hunter2}}`, "text/plain", `line 1 of the template: function "hunter2" not defined`},
		"a text in the wrong way":  {`{{"hunter2" "hunter2"}}`, "text/plain", "line 1 of the template: can't give argument to non-function"},
		"an unfinished text":       {`{{"hunter2}}`, "text/plain", "line 1 of the template: unterminated quoted string"},
		"a raw text":               {"{{range `hunter2>: hunter2`}}{{end}}", "text/plain", "on wg.peer.connected: line 1 of the template: range can't iterate"},
		"a text with a bracket":    {`{{index ">: hunter2 hunter2" "a>: hunter2"}}`, "text/plain", "on wg.peer.connected: line 1 of the template: error calling index"},
		"a sub-template":           {`{{template "hunter2"}}`, "text/plain", "on wg.peer.connected: line 1 of the template: malformed"},
		"a field of one type only": {`{{.Data.Peer.Name}}`, "text/plain", "on wg.peer.rejected: line 1 of the template: can't evaluate field Peer"},
		"what may be missing":      {`{{if eq .Type "wg.peer.connected"}}{{index .Peer.Tags 0}}{{end}}`, "text/plain", "on wg.peer.connected without name, tags, endpoint and allowed IPs: line 1"},
		"bytes of a text":          {`{{bytes "hunter2"}}`, "text/plain", "error calling bytes: want a whole number of 0 or more"},
		"bytes of nothing":         {`{{bytes nil}}`, "text/plain", "line 1 of the template: error calling bytes: want a whole number of 0 or more"},
		"a duration before zero":   {`{{duration -1}}`, "text/plain", "error calling duration: want a whole number of 0 or more"},
		"a quote that is missing":  {`{"hunter2": "{{.Peer.Name}}"}`, "application/json", "on wg.peer.connected: the output is not JSON"},
		"JSON for other types":     {`{{if .Peer.Name}}{}{{end}}`, "application/vnd.x+json", "on wg.peer.rejected: the output is not JSON"},
		"too long":                 {`{{printf "%70000d" 1}}`, "text/plain", "on wg.peer.connected: the output is larger than 65536 bytes"},
		"endless":                  {`{{range 1000000000}}{{.}}{{end}}`, "text/plain", "on wg.peer.connected: the output is larger than 65536 bytes"},
		"calling itself":           {`{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`, "text/plain", "on wg.peer.connected: line 1 of the template: exceeded maximum template depth"},
		"a broken media type":      {`{}`, "hunter2;", "not a media type"},
		"a way out":                {`{{env "HOME"}}`, "text/plain", `function "env" not defined`},
	} {
		_, err := NewTemplate(tt.source, tt.media)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
			continue
		}
		// A word that is no text is a name, which is told.
		if strings.Contains(err.Error(), marker) && !strings.Contains(tt.want, marker) {
			t.Errorf("%s: the template's text shows: %v", name, err)
		}
	}
}

// What a template cannot express, an event of a newer probe among them, is an error at delivery and never a panic.
func TestTemplatesThatFailLater(t *testing.T) {
	t.Parallel()
	odd := hostile(`" + ,`)
	unknown, _ := newer(t)
	for name, tt := range map[string]struct {
		source, media string
		event         *events.Event
		want          string
	}{
		"no JSON": {`{"a": {{if eq .Peer.Name "\" + ,"}}nothing{{else}}1{{end}}}`, "application/json", odd, "the output is not JSON"},
		"a type of a newer probe": {
			`{{if and (ne .Interface "") (ne .Type "wg.peer.rejected") (not (slice (print .Type) 0 8 | eq "wg.inter"))}}{{.Data.Peer.PublicKey}}{{.Data.DetectedAt}}{{end}}` +
				`{{if eq .Type "wg.peer.greeted"}}{{.Data.Greeting}}{{end}}`, "text/plain", unknown, "line 1 of the template: can't evaluate field Greeting",
		},
		"too long": {`{{if eq .Peer.Name "\" + ,"}}{{printf "%70000d" 1}}{{end}}`, "text/plain", odd, "larger than 65536 bytes"},
	} {
		f, err := NewTemplate(tt.source, tt.media)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := f(tt.event, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestBinaryBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1258291: "1.2 MiB", 1<<20 - 1: "1.0 MiB", 1 << 33: "8.0 GiB", 1<<64 - 1: "16.0 EiB",
	} {
		if have := binaryBytes(n); have != want {
			t.Errorf("%d: %s, want %s", n, have, want)
		}
	}
	if have := seconds(1<<63 - 1); !strings.HasPrefix(have, "2562047h") {
		t.Errorf("the longest duration is %s", have)
	}
}

func FuzzFormats(f *testing.F) {
	for _, typ := range events.Types() {
		_, raw := golden(f, typ)
		f.Add(raw)
	}
	var formats []Format
	for _, name := range Names {
		format, err := Named(name)
		if err != nil {
			f.Fatal(err)
		}
		formats = append(formats, format)
	}
	template, err := NewTemplate(`{"text": {{json .Text}}, "name": {{json .Peer.Name}}, "rx": {{json (bytes .Session.RxBytes)}}}`, "application/json")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := events.Decode(raw)
		if err != nil {
			return
		}
		for i, format := range append(slices.Clone(formats), template) {
			r, err := format(e, raw)
			if err != nil {
				t.Errorf("format %d: %v", i, err)
			}
			for name, value := range r.Header {
				if strings.ContainsFunc(name+value, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Errorf("format %d: header %q: %q", i, name, value)
				}
			}
		}
	})
}
