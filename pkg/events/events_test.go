package events

import (
	"crypto/ed25519"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// edit decodes a golden event into a tree, changes it and encodes it again.
func edit(t *testing.T, typ Type, change func(event, data map[string]any)) []byte {
	t.Helper()
	file, err := os.ReadFile(golden(typ))
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(file, &tree); err != nil {
		t.Fatal(err)
	}
	data, _ := tree["data"].(map[string]any)
	change(tree, data)
	out, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDecodeIsStrictAboutWhatItNeeds(t *testing.T) {
	type m = map[string]any
	for _, tt := range []struct {
		name   string
		typ    Type
		change func(event, data m)
		want   string // part of the error
	}{
		{"another CloudEvents version", PeerConnected, func(e, _ m) { e["specversion"] = "0.3" }, "specversion"},
		{"no id", PeerConnected, func(e, _ m) { delete(e, "id") }, "id is"},
		{"an id of another event", PeerConnected, func(e, _ m) { e["id"] = "aaaaaaaaaaaaaaaaaaaaaaaaaa" }, "id is"},
		{"no type", PeerConnected, func(e, _ m) { delete(e, "type") }, "type is"},
		{"a type of four tokens", PeerConnected, func(e, _ m) { e["type"] = "wg.peer.connected.now" }, "type is"},
		{"a type with a wildcard", PeerConnected, func(e, _ m) { e["type"] = "wg.peer.*" }, "type is"},
		{"a type of another scope", PeerConnected, func(e, _ m) { e["type"] = "wg.dead.connected" }, "type is"},
		{"source of another node", PeerConnected, func(e, _ m) { e["source"] = "/nodes/vpn-2/interfaces/wg0" }, "source is"},
		{"subject of another peer", PeerConnected, func(e, _ m) { e["subject"] = hub.String() }, "subject is"},
		{"partition key of another peer", PeerConnected, func(e, _ m) { e["partitionkey"] = "x" }, "partitionkey is"},
		{"no time", PeerConnected, func(e, _ m) { delete(e, "time") }, "time is missing"},
		{"time that is none", PeerConnected, func(e, _ m) { e["time"] = "yesterday" }, "decode event"},
		{"short sequence", PeerConnected, func(e, _ m) { e["sequence"] = "42" }, "sequence"},
		{"sequence from zero", PeerConnected, func(e, _ m) { e["sequence"] = "1795342000123-00000000000000000000" }, "counter from 1"},
		{"no data", PeerConnected, func(e, _ m) { delete(e, "data") }, "data is missing"},
		{"data that is no object", PeerConnected, func(e, _ m) { e["data"] = []int{1} }, "no object"},
		{"data of another media type", PeerConnected, func(e, _ m) { e["datacontenttype"] = "text/xml" }, "datacontenttype"},
		{"no node", PeerConnected, func(_, d m) { delete(d, "node") }, "data.node"},
		{"node with a line feed", PeerConnected, func(_, d m) { d["node"] = "a\nb" }, "white space"},
		{"node of 129 bytes", PeerConnected, func(_, d m) { d["node"] = strings.Repeat("x", 129) }, "129 bytes"},
		{"no interface", PeerConnected, func(_, d m) { delete(d, "interface") }, "data.interface"},
		{"interface on a probe event", ProbeStopped, func(_, d m) { d["interface"] = "wg0" }, "want none"},
		{"no detectedAt", PeerConnected, func(_, d m) { delete(d, "detectedAt") }, "detectedAt"},
		{"no peer", PeerConnected, func(_, d m) { delete(d, "peer") }, "peer.publicKey"},
		{"short public key", PeerConnected, func(_, d m) { d["peer"].(m)["publicKey"] = "abc" }, "44 characters"},
		{"endpoint without port", PeerConnected, func(_, d m) { d["peer"].(m)["endpoint"] = "203.0.113.7" }, "peer.endpoint"},
		{"no session", PeerConnected, func(_, d m) { delete(d, "session") }, "session.startedAt"},
		{"last seen backwards", PeerConnected, func(_, d m) {
			d["session"].(m)["lastSeen"].(m)["before"] = "2020-01-01T00:00:00Z"
		}, "ends before it begins"},
		{"negative bytes", PeerConnected, func(_, d m) { d["session"].(m)["rxBytes"] = -1 }, "rxBytes"},
		{"reason outside the list", PeerDisconnected, func(_, d m) { d["reason"] = "bored" }, "reason is"},
		{"changed without change", PeerChanged, func(_, d m) { d["changes"] = m{} }, "names no change"},
		{"stalled without attempts", PeerStalled, func(_, d m) { d["attempts"] = 0 }, "attempts"},
		{"rejected without count", PeerRejected, func(_, d m) { delete(d, "count") }, "count"},
		{"cause outside the list", PeerDisconnected, func(_, d m) { d["cause"] = "moon" }, "cause is"},
		{"interface down without reason", InterfaceDown, func(_, d m) { delete(d, "reason") }, "reason is"},
		{"interface changed without change", InterfaceChanged, func(_, d m) { delete(d, "changes") }, "names no change"},
		{"port out of range", InterfaceUp, func(_, d m) { d["device"].(m)["listenPort"] = 65536 }, "listenPort"},
		{"probe without key", ProbeStarted, func(_, d m) { delete(d, "publicKey") }, "nkey"},
		{"probe without trigger", ProbeStarted, func(_, d m) { delete(d, "trigger") }, "trigger"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := Decode(edit(t, tt.typ, tt.change))
			if err == nil {
				t.Fatalf("decoded %+v", e)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}

func TestDecodeIsTolerantOfTheNew(t *testing.T) {
	type m = map[string]any
	t.Run("unknown fields are ignored", func(t *testing.T) {
		e, err := Decode(edit(t, PeerConnected, func(e, d m) {
			e["traceparent"], d["mood"], d["peer"].(m)["color"] = "00-1", "good", "blue"
		}))
		if err != nil {
			t.Fatal(err)
		}
		if e.Peer().Name != "alice-laptop" {
			t.Errorf("peer is %+v", e.Peer())
		}
	})
	t.Run("a type of a newer probe keeps what is known of it", func(t *testing.T) {
		body := edit(t, PeerConnected, func(e, _ m) { e["type"] = "wg.peer.teleported" })
		e, err := Decode(body)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := e.Data.(*Unknown); !ok || e.Common().Node != "vpn-1" || e.Peer().Name != "alice-laptop" {
			t.Errorf("decoded %+v", e)
		}
		again, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Errorf("it does not survive being encoded again: %v", err)
		}
	})
}

// Readers differ in which of two equal keys they take, and package json takes keys in any case. An event that says one thing to some and another thing to
// others could be signed as one node's and read as another's.
func TestDecodeTakesOnlyWhatAllReadersReadAlike(t *testing.T) {
	good, err := samples()[0].Encode() // of node vpn-1
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ before, after, key string }{
		"a key twice":                        {`"type":`, `"type":"wg.peer.removed","type":`, "type"},
		"another event's data":               {`"data":`, `"data":{"node":"vpn-2"},"DATA":`, "DATA"},
		"another node":                       {`"node":`, `"node":"vpn-2","Node":`, "Node"},
		"another name":                       {`"name":`, `"name":"bob","NAME":`, "NAME"},
		"a key in escapes":                   {`"node":`, `"node":"vpn-2","\u006eode":`, "node"},
		"a letter that folds to s":           {`"source":`, `"source":"/nodes/vpn-2/interfaces/wg0","ſource":`, "ſource"},
		"a letter that folds to k":           {`"partitionkey":`, `"partitionkey":"x","partition\u212Aey":`, "partition\u212Aey"},
		"a field that nobody knows, twice":   {`"data":`, `"mood":[{"a":{"b":1,"B":2}}],"data":`, "B"},
		"behind a text that looks like keys": {`"name":`, `"x":"\\\",\"a\":1","y":"\\","name":"bob","name":`, "name"},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.Replace(string(good), tt.before, tt.after, 1)
			if !json.Valid([]byte(body)) || body == string(good) {
				t.Fatalf("not what is meant: %s", body)
			}
			e, err := Decode([]byte(body))
			if err == nil {
				t.Fatalf("decoded %+v", e)
			}
			if want := fmt.Sprintf("key %q is given twice", tt.key); !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not say %q", err, want)
			}
		})
	}
	if _, err := Decode([]byte(strings.Replace(string(good), `"data":`, `"x":{`+manyKeys(257)+`},"data":`, 1))); err == nil || !strings.Contains(err.Error(), "more than 256 keys") {
		t.Errorf("an object of 257 keys: %v", err)
	}
	if _, err := Decode([]byte(strings.Replace(string(good), `"data":`, `"x":{`+manyKeys(256)+`},"data":`, 1))); err != nil {
		t.Errorf("an object of 256 keys: %v", err)
	}
	// The same key in two objects is none given twice, nor is a value that equals a key.
	body := strings.Replace(string(good), `"data":`, `"mood":[{"a":1},{"a":"a"},["a","a"],{}],"a":{"a":{"a":"mood"}},"data":`, 1)
	if _, err := Decode([]byte(body)); err != nil {
		t.Error(err)
	}
}

// manyKeys are n members of an object.
func manyKeys(n int) string {
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf(`"k%d":0`, i))
	}
	return strings.Join(members, ",")
}

func TestDecodeIsBounded(t *testing.T) {
	_, err := Decode(make([]byte, MaxSize+1))
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("error is %v", err)
	}
	e := samples()[0]
	e.Data.(*Connected).Peer.Tags = []string{strings.Repeat("x", MaxSize)}
	if _, err := e.Encode(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("encode error is %v", err)
	}
}

func TestIDIsAFunctionOfThePlaceNotOfTheContent(t *testing.T) {
	at := func(n uint64, change func(*Connected)) string {
		d := *samples()[0].Data.(*Connected)
		change(&d)
		return New(&d, noon, Sequence{Epoch: 1795342000123, N: n}).ID
	}
	same := func(*Connected) {}
	first := at(1, same)
	if len(first) != 26 {
		t.Errorf("id %q has %d characters, want 26", first, len(first))
	}
	if at(2, same) == first {
		t.Error("the same fact twice has the same id")
	}
	if at(1, func(d *Connected) { d.Peer.Name = "bob" }) != first {
		t.Error("the id depends on the content")
	}
	if at(1, func(d *Connected) { d.Node = "vpn-2" }) == first {
		t.Error("two sources share an id")
	}
}

func TestVerify(t *testing.T) {
	key := testKey()
	pub := key.Public().(ed25519.PublicKey)
	other := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	body, err := samples()[0].Encode() // of node vpn-1
	if err != nil {
		t.Fatal(err)
	}
	sig := Sign(body, key)
	tampered := []byte(strings.Replace(string(body), "alice-laptop", "mallory-box", 1))

	for _, tt := range []struct {
		name      string
		body      []byte
		signature string
		ring      Keyring
		ok        bool
	}{
		{"signed by the node's key", body, sig, Keyring{"vpn-1": {pub}}, true},
		{"signed by the second of two keys", body, sig, Keyring{"vpn-1": {other, pub}}, true},
		{"signed by a key of any node", body, sig, Keyring{AnyNode: {pub}}, true},
		{"signed by another node's key", body, sig, Keyring{"vpn-2": {pub}, "vpn-1": {other}}, false},
		{"node without key", body, sig, Keyring{"vpn-2": {pub}}, false},
		{"empty keyring", body, sig, nil, false},
		{"no signature", body, "", Keyring{"vpn-1": {pub}}, false},
		{"signature that is no base64", body, "!", Keyring{"vpn-1": {pub}}, false},
		{"changed bytes", tampered, sig, Keyring{"vpn-1": {pub}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, err := Verify(tt.body, tt.signature, tt.ring)
			if ok := err == nil; ok != tt.ok {
				t.Fatalf("error is %v", err)
			}
			if tt.ok && e.Type != PeerConnected {
				t.Errorf("event is %+v", e)
			}
			if !tt.ok && (e != nil || !errors.Is(err, ErrUnverified)) {
				t.Errorf("event %v, error %v: want none and ErrUnverified", e, err)
			}
		})
	}
	if _, err := Verify([]byte("{"), sig, Keyring{"vpn-1": {pub}}); err == nil || errors.Is(err, ErrUnverified) {
		t.Errorf("undecodable bytes: error %v, want one that is not ErrUnverified", err)
	}
}

func TestParseKeyring(t *testing.T) {
	ring, err := ParseKeyring("# probes\n\nvpn-1 " + probeNkey + "\n* " + probeNkey + "\nvpn-1\t" + probeNkey + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(ring["vpn-1"]) != 2 || len(ring[AnyNode]) != 1 {
		t.Errorf("keyring is %v", ring)
	}

	seed := "SU" + strings.Repeat("A", 56)
	_, err = ParseKeyring("vpn-1\nvpn-2 " + seed + "\nvpn-3 " + strings.Replace(probeNkey, "Z", "A", 1))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"line 1", "line 2", "line 3", "mistyped"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), seed) {
		t.Error("the error tells a seed")
	}
}

// TestParsePublicKey reads a key that github.com/nats-io/nkeys encoded.
func TestParsePublicKey(t *testing.T) {
	key, err := ParsePublicKey(probeNkey)
	if err != nil {
		t.Fatal(err)
	}
	raw := slices.Concat([]byte{prefixUser}, key)
	sum := crc16(raw)
	raw = append(raw, byte(sum), byte(sum>>8))
	if got := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw); got != probeNkey {
		t.Errorf("encodes back to %s", got)
	}
}

func TestSequence(t *testing.T) {
	s := Sequence{Epoch: 1795342000123, N: 42}
	if got, want := s.String(), "1795342000123-00000000000000000042"; got != want {
		t.Errorf("String is %s, want %s", got, want)
	}
	if back, err := ParseSequence(s.String()); err != nil || back != s {
		t.Errorf("parsed %v, %v", back, err)
	}
	for _, bad := range []string{"", "1-2", "1795342000123-0000000000000000004", "1795342000123_00000000000000000042", "179534200012x-00000000000000000042", "1795342000123-99999999999999999999"} {
		if s, err := ParseSequence(bad); err == nil {
			t.Errorf("%q parsed as %v", bad, s)
		}
	}
	order := []Sequence{{1, 1}, {1, 2}, {1, 10}, {2, 1}}
	for i, a := range order {
		for j, b := range order {
			if got, want := a.Compare(b) < 0, i < j; got != want {
				t.Errorf("%v before %v is %v", a, b, got)
			}
			if got, want := a.String() < b.String(), i < j; got != want {
				t.Errorf("as text, %v before %v is %v", a, b, got)
			}
		}
	}
}

func TestStateKey(t *testing.T) {
	for _, tt := range []struct{ node, iface, want string }{
		{"vpn-1", "wg0", "vpn-1.wg0."},
		{"vpn.example.org", "wg+1", "vpn=2Eexample=2Eorg.wg=2B1."},
		{"büro", "wg=0", "b=C3=BCro.wg=3D0."},
	} {
		key := StateKey(tt.node, tt.iface, alice)
		if want := tt.want + "KwfWM3PFygTCMD9DF5DNMCIG9VljSQmV9lbS4tqeDjg"; key != want {
			t.Errorf("key of %s %s is %s, want %s", tt.node, tt.iface, key, want)
		}
		node, iface, k, err := ParseStateKey(key)
		if err != nil || node != tt.node || iface != tt.iface || k != alice {
			t.Errorf("%s parses as %q %q %s, %v", key, node, iface, k, err)
		}
	}
	for _, bad := range []string{"", "a.b", "a.b.c", "a=2.b." + alice.urlSafe(), "a=41.b." + alice.urlSafe(), ".b." + alice.urlSafe(), "a b.c." + alice.urlSafe()} {
		if _, _, _, err := ParseStateKey(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}

func TestState(t *testing.T) {
	e := samples()[0]
	d := e.Data.(*Connected)
	s := &State{Node: d.Node, Interface: d.Interface, Peer: d.Peer, Connected: true, Session: &d.Session, Sequence: e.Sequence, EventID: e.ID, EventType: e.Type, UpdatedAt: noon}
	value, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeState(value)
	if err != nil {
		t.Fatal(err)
	}
	if back.Peer.Name != d.Peer.Name || back.Sequence != e.Sequence || !back.UpdatedAt.Equal(noon) {
		t.Errorf("decoded %+v", back)
	}
	if _, err := DecodeState([]byte(`{"node":"n","interface":"wg0","peer":{"publicKey":"` + alice.String() + `"},"connected":true}`)); err == nil {
		t.Error("a connected peer without session decodes")
	}
}

// FuzzDecode looks for bytes that crash Decode, that its two ways read differently, or that decode to an event which does not survive being encoded and decoded
// again.
func FuzzDecode(f *testing.F) {
	for _, t := range Types() {
		file, err := os.ReadFile(golden(t))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
	}
	f.Add([]byte(`{"specversion":"1.0","type":"wg.peer.new","datacontenttype":"application/json","data":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if atOnce, ok := decodeAtOnce(body); ok {
			inSteps, err := decodeInSteps(body)
			if err != nil || !reflect.DeepEqual(atOnce, inSteps) {
				t.Fatalf("read at once %+v, in steps %+v, %v", atOnce, inSteps, err)
			}
		}
		e, err := Decode(body)
		if err != nil {
			return
		}
		once, err := e.Encode()
		if errors.Is(err, ErrTooLarge) {
			return // escapes may be longer than what they stand for
		}
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		back, err := Decode(once)
		if err != nil {
			t.Fatalf("encoded, but does not decode: %v\n%s", err, once)
		}
		twice, err := back.Encode()
		if err != nil || string(once) != string(twice) {
			t.Fatalf("%v\nonce  %s\ntwice %s", err, once, twice)
		}
	})
}

// FuzzDecodeState looks for bytes that crash DecodeState, or that decode to a state which does not survive being encoded and decoded again.
func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"node":"n","interface":"wg0","peer":{"publicKey":"` + alice.String() + `"},"connected":false,"updatedAt":"2026-11-22T12:00:00Z"}`))
	e := samples()[0]
	d := e.Data.(*Connected)
	s := &State{Node: d.Node, Interface: d.Interface, Peer: d.Peer, Connected: true, Session: &d.Session, Sequence: e.Sequence, EventID: e.ID, EventType: e.Type, UpdatedAt: noon}
	value, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := DecodeState(value)
		if err != nil {
			return
		}
		once, err := s.Encode()
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		if len(once) > MaxSize {
			return // escapes may be longer than what they stand for
		}
		back, err := DecodeState(once)
		if err != nil {
			t.Fatalf("encoded, but does not decode: %v\n%s", err, once)
		}
		twice, err := back.Encode()
		if err != nil || string(once) != string(twice) {
			t.Fatalf("%v\nonce  %s\ntwice %s", err, once, twice)
		}
	})
}

// FuzzParseStateKey looks for a text that ParseStateKey takes and StateKey would not write.
func FuzzParseStateKey(f *testing.F) {
	f.Add(StateKey("vpn-1.example", "wg0", alice))
	f.Add("n.=2E.AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		node, iface, key, err := ParseStateKey(text)
		if err != nil {
			return
		}
		if back := StateKey(node, iface, key); back != text {
			t.Fatalf("%q parses, and is written as %q", text, back)
		}
	})
}

// FuzzParseKeyring looks for a text that crashes ParseKeyring, or makes a keyring with a key or a node that cannot be one.
func FuzzParseKeyring(f *testing.F) {
	f.Add("# probes\n\nvpn-1 " + probeNkey + "\n* " + probeNkey)
	f.Add("vpn-1 UABC\nvpn-1")
	f.Fuzz(func(t *testing.T, text string) {
		ring, err := ParseKeyring(text)
		if err != nil {
			if ring != nil {
				t.Fatal("a keyring beside an error")
			}
			return
		}
		for node, keys := range ring {
			if node != AnyNode && ValidateName(node) != nil {
				t.Fatalf("node %q", node)
			}
			for _, k := range keys {
				if len(k) != ed25519.PublicKeySize {
					t.Fatalf("a key of %d bytes", len(k))
				}
			}
		}
	})
}

// TestImportsNothing keeps the promise of the package comment: the standard library alone, without network or processes, and no clock.
func TestImportsNothing(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{else if eq .ImportPath \"net\" \"net/http\" \"os/exec\"}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(out))
	if want := []string{"github.com/wgherald/wgherald/pkg/events"}; !slices.Equal(got, want) {
		t.Errorf("dependencies %v, want %v", got, want)
	}
}

// TestReadsNoClock keeps the other half: what the package imports may know of time, but not ask for it, nor for chance or the system.
func TestReadsNoClock(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "NewTimer", "NewTicker", "Tick"}
	impure := []string{"os", "net", "net/http", "syscall", "math/rand", "math/rand/v2", "crypto/rand"}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			if path := strings.Trim(i.Path.Value, `"`); slices.Contains(impure, path) || path == "time" && i.Name != nil {
				t.Errorf("%v: import of %s, or under another name", fset.Position(i.Pos()), path)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(clock, sel.Sel.Name) {
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
					t.Errorf("%v: time.%s", fset.Position(sel.Pos()), sel.Sel.Name)
				}
			}
			return true
		})
	}
}

// The two ways must not only agree: what the probe writes must take the short one.
func TestWhatIsEncodedIsDecodedAtOnce(t *testing.T) {
	t.Parallel()
	for _, typ := range append(Types(), "wg.peer.new") {
		body := edit(t, PeerConnected, func(e, _ map[string]any) { e["type"] = "wg.peer.new" })
		if typ != "wg.peer.new" {
			var err error
			if body, err = os.ReadFile(golden(typ)); err != nil {
				t.Fatal(err)
			}
		}
		e, err := decodeInSteps(body)
		if err != nil {
			t.Fatal(err)
		}
		if body, err = e.Encode(); err != nil {
			t.Fatal(err)
		}
		again, ok := decodeAtOnce(body)
		if !ok || !reflect.DeepEqual(again, e) {
			t.Errorf("%s: %v %+v, want %+v", typ, ok, again, e)
		}
	}
}

func TestWhatNeedsMoreThanOneLookIsReadAllTheSame(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(golden(PeerConnected))
	if err != nil {
		t.Fatal(err)
	}
	want, err := decodeInSteps(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"the type after a blank":                  {`"type":"`, `"type": "`},
		"another member that is called so":        {`"specversion"`, `"x":{"type":"wg.peer.added"},"specversion"`},
		"one that is no type":                     {`"specversion"`, `"x":{"type":""},"specversion"`},
		"the type of a data that it does not fit": {`"specversion"`, `"x":{"type":"wg.probe.started"},"specversion"`},
	} {
		body := strings.Replace(string(good), change[0], change[1], 1)
		if body == string(good) {
			t.Fatalf("%s: nothing is changed", name)
		}
		if e, err := Decode([]byte(body)); err != nil || !reflect.DeepEqual(e, want) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	for _, data := range []string{`null`, `[]`, `"x"`, `1`, ``} {
		for _, typ := range []string{"wg.peer.connected", "wg.peer.new"} {
			body := `{"specversion":"1.0","type":"` + typ + `","datacontenttype":"application/json","data":` + data + `}`
			if data == "" {
				body = strings.Replace(body, `,"data":`, "", 1)
			}
			if _, err := Decode([]byte(body)); err == nil || !strings.Contains(err.Error(), "data is missing or no object") {
				t.Errorf("%s: error %v", body, err)
			}
		}
	}
}

func TestSequencesAreWrittenAsPackageFmtWouldWriteThem(t *testing.T) {
	t.Parallel()
	numbers := []uint64{0, math.MaxUint64}
	for n := uint64(1); n < math.MaxUint64/10; n *= 10 {
		numbers = append(numbers, n-1, n, n+1)
	}
	for _, epoch := range numbers {
		for _, n := range numbers {
			s := Sequence{Epoch: epoch, N: n}
			if want := fmt.Sprintf("%013d-%020d", epoch, n); s.String() != want {
				t.Errorf("%s, want %s", s, want)
			}
		}
	}
}
