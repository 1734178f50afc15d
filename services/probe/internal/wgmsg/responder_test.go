package wgmsg

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
)

var update = flag.Bool("update", false, "make testdata/initiations.json anew with wireguard-go")

// hexBytes are bytes that JSON shows as hex.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error)     { return hex.AppendEncode(nil, b), nil }
func (b *hexBytes) UnmarshalText(text []byte) error { return unhex((*[]byte)(b), text) }

func unhex(b *[]byte, text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// vector is an initiation of the corpus in testdata, all of them made for the private key fixedKey(2).
type vector struct {
	Name      string
	Static    hexBytes   // claimed public key
	Timestamp *Timestamp // nil when the sender does not hold the claimed key
	Message   hexBytes
}

const vectorsFile = "testdata/initiations.json"

func vectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func newResponder(t testing.TB, private [32]byte) *Responder {
	t.Helper()
	r, err := NewResponder(private)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// forgery makes an initiation to the holder of public key to by wireguard-go's key derivation, any part of it as wanted.
type forgery struct {
	to           [32]byte
	private      [32]byte  // of the ephemeral key
	ephemeral    *[32]byte // when not nil, sent instead of the public key of private, the secret shared with it being zero
	claimed      [32]byte  // static public key
	staticSecret [32]byte  // with which the timestamp is sealed
	timestamp    Timestamp
}

func (f forgery) message() []byte {
	var ephemeral, secret [32]byte
	if f.ephemeral != nil {
		ephemeral = *f.ephemeral
	} else {
		ephemeral, secret = publicKey(f.private), shared(f.private, f.to)
	}
	var chain, key [32]byte
	hash := blake2s.Sum256(append(device.InitialHash[:], f.to[:]...))
	hash = blake2s.Sum256(append(hash[:], ephemeral[:]...))
	device.KDF1(&chain, device.InitialChainKey[:], ephemeral[:])
	msg := append([]byte{1, 0, 0, 0, 9, 8, 7, 6}, ephemeral[:]...)

	device.KDF2(&chain, &key, chain[:], secret[:])
	static := seal(key, f.claimed[:], hash)
	hash = blake2s.Sum256(append(hash[:], static...))
	msg = append(msg, static...)

	device.KDF2(&chain, &key, chain[:], f.staticSecret[:])
	msg = append(msg, seal(key, f.timestamp[:], hash)...)
	return withMACs(f.to, append(msg, make([]byte, 2*MACSize)...))
}

func seal(key [32]byte, content []byte, hash [32]byte) []byte {
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(err)
	}
	return aead.Seal(nil, make([]byte, chacha20poly1305.NonceSize), content, hash[:])
}

// shared returns the X25519 secret.
func shared(private, public [32]byte) [32]byte {
	secret, err := curve25519.X25519(private[:], public[:])
	if err != nil {
		panic(err)
	}
	return [32]byte(secret)
}

// TestVectors opens initiations of wireguard-go that are kept in the repository, and one whose sender does not hold the key it claims.
func TestVectors(t *testing.T) {
	if *update {
		sides := pair(t)
		a, b := sides[0], sides[1]
		stranger := publicKey(fixedKey(3))
		out := []vector{
			{Name: "initiation", Static: a.public[:], Message: a.initiation(t, b)},
			{Name: "next initiation of the same peer", Static: a.public[:], Message: a.initiation(t, b)},
			{Name: "claimed without holding the key", Static: stranger[:], Message: forgery{
				to: b.public, private: fixedKey(4), claimed: stranger, staticSecret: fixedKey(5), timestamp: Timestamp{0x40},
			}.message()},
		}
		a.ping(t, b)
		out = append(out, vector{Name: "captured from a session", Static: a.public[:], Message: a.next(t)})
		r := newResponder(t, b.private)
		for i, v := range out {
			claim, _ := r.Open(v.Message)
			if at, ok := r.Prove(&claim); ok {
				out[i].Timestamp = &at
			}
		}
		text, err := json.MarshalIndent(out, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorsFile, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	for _, v := range vectors(t) {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known %v", v.Name, known), func(t *testing.T) {
				r := newResponder(t, fixedKey(2))
				if known {
					r.Keep(slices.Values([][32]byte{[32]byte(v.Static)}))
				}
				if got := r.Keeps([32]byte(v.Static)); got != known {
					t.Errorf("Keeps = %v", got)
				}
				for range 2 { // sent again, it says the same again
					checkOpens(t, r, v.Message, v.Static, v.Timestamp)
				}
			})
		}
	}
}

// checkOpens checks that r opens msg, and that it proves the timestamp, or nothing when that is nil.
func checkOpens(t *testing.T, r *Responder, msg, static []byte, want *Timestamp) {
	t.Helper()
	claim, ok := r.Open(msg)
	if !ok {
		t.Errorf("it was not opened: %x", msg)
		return
	}
	if !bytes.Equal(claim.Static[:], static) {
		t.Errorf("claimed key %x, want %x", claim.Static, static)
	}
	var got *Timestamp
	if at, ok := r.Prove(&claim); ok {
		got = &at
	} else if at != (Timestamp{}) {
		t.Errorf("nothing was proven, but timestamp %x", at)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("proven timestamp (-want +got):\n%s", diff)
	}
}

// TestOneWrongBit changes a bit of each byte of a real initiation, once as it is and once with a mac1 that is right again.
func TestOneWrongBit(t *testing.T) {
	t.Parallel()
	v := vectors(t)[0]
	r := newResponder(t, fixedKey(2))
	r.Keep(slices.Values([][32]byte{[32]byte(v.Static)}))
	regions := []struct {
		name   string
		end    int
		opens  bool // as it is
		remade bool // opens with a right mac1
		proves bool
	}{
		{"type and reserved bytes", InitiationSenderOffset, false, false, false},
		{"sender's index", initiationEphemeralOffset, false, true, true},
		{"ephemeral key", initiationStaticOffset, false, false, false},
		{"static key", initiationTimestampOffset, false, false, false},
		{"timestamp", InitiationMAC1Offset, false, true, false},
		{"mac1", InitiationMAC1Offset + MACSize, false, true, true},
		{"mac2", InitiationSize, true, true, true},
	}
	at := 0
	for _, region := range regions {
		for ; at < region.end; at++ {
			broken := slices.Clone(v.Message)
			broken[at] ^= 1 << (at % 8)
			for _, remade := range []bool{false, true} {
				opens := region.opens
				if remade {
					broken, opens = withMACs(r.PublicKey(), broken), region.remade
				}
				want := v.Timestamp
				if !region.proves {
					want = nil
				}
				if opens {
					checkOpens(t, r, broken, v.Static, want)
				} else if claim, ok := r.Open(broken); ok || claim.Static != ([32]byte{}) {
					t.Errorf("%s: opened in spite of a wrong bit in byte %d (mac1 right: %v)", region.name, at, remade)
				}
			}
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	v := vectors(t)[0]
	r := newResponder(t, fixedKey(2))
	to := r.PublicKey()
	response := withMACs(to, message(typeResponse, ResponseSize))
	if !r.Addressed(response) {
		t.Error("a response with a right mac1 is not addressed to its receiver")
	}
	readdressed := withMACs(publicKey(fixedKey(1)), slices.Clone(v.Message))
	tests := []struct {
		name string
		r    *Responder
		msg  []byte
	}{
		{"nothing", r, nil},
		{"one byte short", r, v.Message[:InitiationSize-1]},
		{"one byte long", r, append(slices.Clone(v.Message), 0)},
		{"cut after mac1", r, v.Message[:InitiationMAC1Offset+MACSize]},
		{"response", r, response},
		{"to another device", newResponder(t, fixedKey(1)), v.Message},
		{"sealed for another device, with mac1 for this one", newResponder(t, fixedKey(1)), readdressed},
		{"random, with a right mac1", r, withMACs(to, message(typeInitiation, InitiationSize))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if claim, ok := tt.r.Open(tt.msg); ok || claim.Static != ([32]byte{}) {
				t.Errorf("it was opened: claim of %x", claim.Static)
			}
		})
	}
}

// lowOrder are the points with which every shared secret is zero, so that everybody knows it.
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0100000000000000000000000000000000000000000000000000000000000080",
}

func TestLowOrderPoints(t *testing.T) {
	t.Parallel()
	r := newResponder(t, fixedKey(2))
	to := r.PublicKey()
	for _, text := range lowOrder {
		var point []byte
		if err := unhex(&point, []byte(text)); err != nil {
			t.Fatal(err)
		}
		t.Run(text[:4]+"…"+text[60:], func(t *testing.T) {
			f := forgery{to: to, ephemeral: (*[32]byte)(point), claimed: publicKey(fixedKey(1))}
			if _, ok := r.Open(f.message()); ok {
				t.Error("opened with an ephemeral key of low order")
			}
			f = forgery{to: to, private: fixedKey(4), claimed: [32]byte(point), timestamp: Timestamp{0x40}}
			checkOpens(t, r, f.message(), point, nil)
			kept := newResponder(t, fixedKey(2))
			kept.Keep(slices.Values([][32]byte{[32]byte(point)}))
			checkOpens(t, kept, f.message(), point, nil)
		})
	}
	var none Claim
	if at, ok := r.Prove(&none); ok {
		t.Errorf("no claim proves %x", at)
	}
}

// TestForgeryIsRight shows that the messages above are refused for what is wrong with them: one that is wrong in nothing is proven.
func TestForgeryIsRight(t *testing.T) {
	t.Parallel()
	r := newResponder(t, fixedKey(2))
	at := Timestamp{0x40, 11: 1}
	sender := publicKey(fixedKey(1))
	f := forgery{
		to: r.PublicKey(), private: fixedKey(4), claimed: sender, staticSecret: shared(fixedKey(1), r.PublicKey()), timestamp: at,
	}
	checkOpens(t, r, f.message(), sender[:], &at)
}

func TestKeep(t *testing.T) {
	t.Parallel()
	v := vectors(t)[0]
	peer, other, third := [32]byte(v.Static), [32]byte{1}, [32]byte{2}
	r := newResponder(t, fixedKey(2))
	steps := []struct {
		name  string
		peers [][32]byte
		same  bool // what is kept for peer is what was kept before
	}{
		{"configured", [][32]byte{peer, other}, false},
		{"nothing changed", [][32]byte{other, peer}, true},
		{"named twice while another goes", [][32]byte{peer, peer}, true},
		{"another peer added", [][32]byte{peer, third}, true},
		{"removed", [][32]byte{third}, false},
		{"added again", [][32]byte{peer}, false},
		{"none", nil, false},
	}
	for _, s := range steps {
		before := r.peer(peer)
		r.Keep(slices.Values(s.peers))
		for _, k := range [][32]byte{peer, other, third} {
			if got, want := r.Keeps(k), slices.Contains(s.peers, k); got != want {
				t.Errorf("%s: Keeps(%x…) = %v", s.name, k[:2], got)
			}
		}
		after := r.peer(peer)
		if same := after != nil && after == before; same != s.same {
			t.Errorf("%s: the secret is kept: %v, want %v", s.name, same, s.same)
		}
		if after != nil {
			if once, again := after.secret(), after.secret(); &once[0] != &again[0] {
				t.Errorf("%s: the secret is computed more than once", s.name)
			}
		}
		checkOpens(t, r, v.Message, v.Static, v.Timestamp)
		if len(r.kept) > len(s.peers) {
			t.Errorf("%s: %d peers kept of %d", s.name, len(r.kept), len(s.peers))
		}
	}
}

func TestResponderKeys(t *testing.T) {
	t.Parallel()
	if r, err := NewResponder([32]byte{}); err == nil || r != nil {
		t.Errorf("no key at all: %v, %v", r, err)
	}
	r := newResponder(t, fixedKey(2))
	if got, want := r.PublicKey(), publicKey(fixedKey(2)); got != want {
		t.Errorf("public key %x, want %x", got, want)
	}
	if !r.HasKey(fixedKey(2)) || r.HasKey(fixedKey(3)) || r.HasKey(r.PublicKey()) {
		t.Error("HasKey does not tell its private key from others")
	}
}

// TestNothingPrintsKeys prints a Responder that keeps a peer's secret, and a Claim, in every way that a log or an error may.
func TestNothingPrintsKeys(t *testing.T) {
	t.Parallel()
	v := vectors(t)[0]
	r := newResponder(t, fixedKey(2))
	r.Keep(slices.Values([][32]byte{[32]byte(v.Static)}))
	claim, _ := r.Open(v.Message)
	if _, ok := r.Prove(&claim); !ok {
		t.Fatal("not proven")
	}
	private := fixedKey(2)
	secret := shared(private, claim.Static)
	once := shared(private, [32]byte(v.Message[initiationEphemeralOffset:])) // of this handshake

	var out bytes.Buffer
	holder := struct {
		R *Responder
		C Claim
		r *Responder
		c Claim
	}{r, claim, r, claim}
	for _, x := range []any{r, reflect.ValueOf(r).Elem(), claim, &claim, holder, &holder, []*Responder{r}, map[string]any{"r": r, "c": claim}} {
		for verb := 'A'; verb <= 'z'; verb++ {
			for _, flags := range []string{"", "+", "#", " ", "0"} {
				fmt.Fprintf(&out, "%"+flags+string(verb)+"\n", x)
			}
		}
		if v, ok := x.(reflect.Value); ok {
			x = v.Addr().Interface()
		}
		if err := json.NewEncoder(&out).Encode(x); err != nil {
			t.Fatal(err)
		}
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("handshake", "x", x)
		}
	}
	text := out.String()
	for what, secret := range map[string][]byte{"private key": private[:], "shared secret": secret[:], "ephemeral secret": once[:]} {
		for form, s := range map[string]string{
			"raw":     string(secret),
			"hex":     hex.EncodeToString(secret),
			"HEX":     strings.ToUpper(hex.EncodeToString(secret)),
			"base64":  base64.RawStdEncoding.EncodeToString(secret),
			"decimal": strings.Trim(fmt.Sprint(secret), "[]"),
			"list":    strings.ReplaceAll(strings.Trim(fmt.Sprint(secret), "[]"), " ", ","),
			"go":      strings.Trim(fmt.Sprintf("%#v", secret), "[]byte{}"),
			"octal":   strings.Trim(fmt.Sprintf("%o", secret), "[]"),
			"binary":  strings.Trim(fmt.Sprintf("%b", secret), "[]"),
		} {
			if strings.Contains(text, s) {
				t.Errorf("%s is printed (%s)", what, form)
			}
		}
	}
}

// FuzzOpen checks that nothing opens but the initiations of the corpus, whatever is done to them, with and without a right mac1.
func FuzzOpen(f *testing.F) {
	corpus := vectors(f)
	for _, v := range corpus {
		f.Add([]byte(v.Message), false)
		f.Add([]byte(v.Message), true)
	}
	f.Add(message(typeInitiation, InitiationSize), true)
	f.Add([]byte(nil), false)
	unknown, known := newResponder(f, fixedKey(2)), newResponder(f, fixedKey(2))
	known.Keep(func(yield func([32]byte) bool) {
		for _, v := range corpus {
			if !yield([32]byte(v.Static)) {
				return
			}
		}
	})
	f.Fuzz(func(t *testing.T, msg []byte, mac bool) {
		if mac && len(msg) == InitiationSize {
			msg = withMACs(known.PublicKey(), slices.Clone(msg))
		}
		for _, r := range []*Responder{unknown, known} {
			claim, ok := r.Open(msg)
			at, proven := r.Prove(&claim)
			if !ok {
				if claim.Static != ([32]byte{}) || proven {
					t.Errorf("not opened, but %x is claimed, %x proven", claim.Static, at)
				}
				continue
			}
			same := func(end int) func(v vector) bool {
				return func(v vector) bool {
					return bytes.Equal(msg[initiationEphemeralOffset:end], v.Message[initiationEphemeralOffset:end])
				}
			}
			if !slices.ContainsFunc(corpus, same(initiationTimestampOffset)) {
				t.Errorf("opened: %x", msg)
			}
			i := slices.IndexFunc(corpus, same(InitiationMAC1Offset))
			if proven != (i >= 0 && corpus[i].Timestamp != nil) || proven && at != *corpus[i].Timestamp {
				t.Errorf("proven: %v, timestamp %x: %x", proven, at, msg)
			}
		}
	})
}

// BenchmarkOpenKnown is the price of an initiation of a configured peer that was seen before.
func BenchmarkOpenKnown(b *testing.B) { benchmarkOpen(b, true) }

// BenchmarkOpenUnknown is the price of an initiation with a key that is not configured.
func BenchmarkOpenUnknown(b *testing.B) { benchmarkOpen(b, false) }

func benchmarkOpen(b *testing.B, known bool) {
	v := vectors(b)[0]
	r := newResponder(b, fixedKey(2))
	if known {
		r.Keep(slices.Values([][32]byte{[32]byte(v.Static)}))
	}
	b.ReportAllocs()
	for b.Loop() {
		claim, _ := r.Open(v.Message)
		if _, ok := r.Prove(&claim); !ok {
			b.Fatal("not proven")
		}
	}
}

// BenchmarkOpenJunk is the price of throwing away what is no initiation to the device.
func BenchmarkOpenJunk(b *testing.B) {
	r := newResponder(b, fixedKey(2))
	for name, msg := range map[string][]byte{
		"wrong shape": message(typeData, InitiationSize),
		"wrong mac1":  message(typeInitiation, InitiationSize),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Open(msg)
			}
		})
	}
}

// BenchmarkKeep is the price of saying that 10,000 peers are the same as before.
func BenchmarkKeep(b *testing.B) {
	peers := make([][32]byte, 10_000)
	for i := range peers {
		peers[i] = blake2s.Sum256([]byte{byte(i), byte(i >> 8)})
	}
	r := newResponder(b, fixedKey(2))
	b.ReportAllocs()
	for b.Loop() {
		r.Keep(slices.Values(peers))
	}
}
