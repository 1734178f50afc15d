package names

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/wgherald/wgherald/pkg/events"
)

// Keys of the tests, as %A, %B, %C and %S (a private one) in their texts.
var keys = map[string]events.Key{"%A": {0: 0xA}, "%B": {0: 0xB}, "%C": {0: 0xC}, "%S": {0: 0x5}}

// text puts the keys into s and takes the indentation of the source off.
func text(s string) []byte {
	for name, key := range keys {
		s = strings.ReplaceAll(s, name, key.String())
	}
	return []byte(strings.ReplaceAll(s, "\n\t\t\t", "\n"))
}

func TestParse(t *testing.T) {
	t.Parallel()
	a, b, c := keys["%A"], keys["%B"], keys["%C"]
	tests := []struct {
		name string
		text string
		want Book
		errs []string
	}{
		{name: "empty", text: "", want: Book{}},
		{
			name: "our own lines",
			text: `# our staff
			%A alice
			  %B   bob's   phone	#staff #berlin

			%C carol #staff`,
			want: Book{a: {Name: "alice"}, b: {Name: "bob's phone", Tags: []string{"staff", "berlin"}}, c: {Name: "carol", Tags: []string{"staff"}}},
		},
		{
			name: "a tag counts once, an empty one not at all",
			text: "%A alice # #x #y #x",
			want: Book{a: {Name: "alice", Tags: []string{"x", "y"}}},
		},
		{
			name: "byte order mark and Windows line ends",
			text: "\ufeff%A alice\r\n%B bob #x\r\n",
			want: Book{a: {Name: "alice"}, b: {Name: "bob", Tags: []string{"x"}}},
		},
		{
			name: "wrong lines do not spoil the others",
			text: `%A
			%B bob #x y
			AAAA= dave
			%S
			PrivateKey = %S
			%C carol`,
			want: Book{c: {Name: "carol"}},
			errs: []string{
				`names:1: the key has no name: want "publickey name #tag #tag"`,
				`names:2: a word after the tags lacks its #: want "publickey name #tag #tag"`,
				`names:3: starts with neither a public key nor a [section]: want "publickey name #tag", or a # before a comment`,
				`names:4: the key has no name: want "publickey name #tag #tag"`,
				`names:5: starts with neither a public key nor a [section]: want "publickey name #tag", or a # before a comment`,
			},
		},
		{
			name: "the first name of a key counts",
			text: "%A alice\n%A mallory",
			want: Book{a: {Name: "alice"}},
			errs: []string{"names:2: this key has a name already, remove one of them"},
		},
		{
			name: "too many tags",
			text: "%A alice #1 #2 #3 #4 #5 #6 #7 #8 #9 #10 #11 #12 #13 #14 #15 #16 #17",
			want: Book{a: {Name: "alice", Tags: strings.Fields("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16")}},
			errs: []string{"names:1: 17 tags are too many, at most 16 are kept"},
		},
		{
			name: "prometheus_wireguard_exporter: inside, before or after the key",
			text: `[Interface]
			# friendly_name=server
			PrivateKey = %S

			[Peer]
			# friendly_name=alice
			PublicKey = %A
			AllowedIPs = 10.9.0.2/32

			[Peer]
			PublicKey = %B
			# friendly_name=bob
			AllowedIPs = 10.9.0.3/32`,
			want: Book{a: {Name: "alice"}, b: {Name: "bob"}},
		},
		{
			name: "name = above [Peer] and at the end of a section",
			text: `[Interface]
			PrivateKey = %S
			# Name = alice
			[Peer]
			PublicKey = %A
			# comment
			[Peer]
			PublicKey = %B
			#NAME=bob

			# Name = carol

			[peer] # the third
			publickey=%C # key`,
			want: Book{a: {Name: "alice"}, b: {Name: "bob"}, c: {Name: "carol"}},
		},
		{
			name: "name at the end of the file",
			text: "[Peer]\nPublicKey = %A\n# Name = alice",
			want: Book{a: {Name: "alice"}},
		},
		{
			name: "the name inside beats the one above",
			text: "### Client alice\n[Peer]\n# friendly_name = Alice Liddell\nPublicKey = %A\n",
			want: Book{a: {Name: "Alice Liddell"}},
		},
		{
			name: "wireguard-install (angristan)",
			text: `[Interface]
			Address = 10.66.66.1/24
			PrivateKey = %S
			PostUp = iptables -A FORWARD -i eth0 -o wg0 -j ACCEPT

			### Client alice
			[Peer]
			PublicKey = %A
			PresharedKey = %S
			AllowedIPs = 10.66.66.2/32

			### Client bob
			[Peer]
			PublicKey = %B
			PresharedKey = %S
			AllowedIPs = 10.66.66.3/32`,
			want: Book{a: {Name: "alice"}, b: {Name: "bob"}},
		},
		{
			name: "wireguard-install (Nyr)",
			text: `[Interface]
			PrivateKey = %S

			# BEGIN_PEER alice
			[Peer]
			PublicKey = %A
			# END_PEER alice
			# BEGIN_PEER bob
			[Peer]
			PublicKey = %B
			# END_PEER bob`,
			want: Book{a: {Name: "alice"}, b: {Name: "bob"}},
		},
		{
			name: "PiVPN, one peer disabled",
			text: `[Interface]
			PrivateKey = %S
			### begin alice ###
			[Peer]
			PublicKey = %A
			### end alice ###
			### begin bob ###
			#[disabled] [Peer]
			#[disabled] PublicKey = %B
			### end bob ###
			[Peer]
			PublicKey = %C`,
			want: Book{a: {Name: "alice"}},
		},
		{
			name: "wg-easy",
			text: "# Client: Alice (laptop) (7f0c)\n[Peer]\nPublicKey = %A\n\n\n# Client: bob (81aa)\n\n[Peer]\nPublicKey = %B\n",
			want: Book{a: {Name: "Alice (laptop)"}, b: {Name: "bob"}},
		},
		{
			name: "comments that name nobody",
			text: "# the clients of Berlin\n# named = x\n[Peer]\n# Name =\n# Endpoint = 10.0.0.1:1\nPublicKey = %A\n",
			want: Book{},
		},
		{
			name: "a commented-out peer takes its name along",
			text: "### Client alice\n#[Peer]\n#PublicKey = %A\n\n[Peer]\nPublicKey = %B\n",
			want: Book{},
		},
		{
			name: "peer with a name but a wrong key or none",
			text: "# Name = alice\n[Peer]\nPublicKey = AAAA\n\n# Name = bob\n[Peer]\nAllowedIPs = ::/0\n\n# Name = carol\n[Peer]\nPublicKey = %C\n",
			want: Book{c: {Name: "carol"}},
			errs: []string{
				"names:3: PublicKey is not 44 characters of base64 that encode 32 bytes",
				"names:6: this [Peer] has a name and no PublicKey",
			},
		},
		{
			name: "both kinds in one file",
			text: "%A alice #x\n[Peer]\n# Name = bob\nPublicKey = %B\n%C carol #y\n",
			want: Book{a: {Name: "alice", Tags: []string{"x"}}, b: {Name: "bob"}, c: {Name: "carol", Tags: []string{"y"}}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, errs := Parse("names", text(tt.text))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("book (-want +got):\n%s", diff)
			}
			var said []string
			for _, err := range errs {
				said = append(said, err.Error())
			}
			if diff := cmp.Diff(tt.errs, said); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsAreBounded(t *testing.T) {
	t.Parallel()
	_, errs := Parse("names", bytes.Repeat([]byte("junk\n"), 1000))
	if len(errs) != maxErrors+1 || errs[maxErrors].Error() != "names: 980 more lines are wrong" {
		t.Errorf("%d errors, last %v", len(errs), errs[len(errs)-1])
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxNameBytes-1)
	tests := []struct{ name, in, want string }{
		{"plain", "alice", "alice"},
		{"other scripts", "Алиса 爱丽丝", "Алиса 爱丽丝"},
		{"white space of any kind", " a\t b\u00a0\u2003c ", "a b c"},
		{"control characters", "a\x00\x1b[31mb\x7f\u0085c", "a[31mb c"},
		{"direction marks", "a\u202egpj.b\u200f", "agpj.b"},
		{"no UTF-8", "a\xff\xfeb", "a\ufffdb"},
		{"longest", long + "y", long + "y"},
		{"cut at a character", long + "é", long},
		{"cut at a space", long + " z", long},
		{"nothing left", "\x01\u200b", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := clean(tt.in, maxNameBytes); got != tt.want {
				t.Errorf("clean(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"%A alice #x\n", "[Peer]\n# Name = a\nPublicKey = %B\n", "### Client c\n\n[Peer]\nPublicKey=%C", "### begin x ###\n#[Peer]\n", "# Client: a (b)\n",
		"[Interface]\nPrivateKey = %S\n", "PrivateKey = %S\n", "%S\n", "[Peer]\n# friendly_name=x\nPublicKey = %S%S\n",
	} {
		f.Add(text(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		book, errs := Parse("f", b)
		for key, n := range book {
			if !bytes.Contains(b, []byte(key.String())) {
				t.Errorf("key %v is not in the file", key)
			}
			for _, s := range append([]string{n.Name}, n.Tags...) {
				if s == "" || len(s) > maxNameBytes || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
					t.Errorf("name %q is not clean", s)
				}
			}
		}
		if len(errs) > maxErrors+1 {
			t.Errorf("%d errors", len(errs))
		}
		said := fmt.Sprint(errs)
		for _, word := range bytes.Fields(b) {
			if _, err := base64.StdEncoding.DecodeString(string(word)); err == nil && len(word) >= 20 && strings.Contains(said, string(word)) {
				t.Errorf("errors repeat the file: %s", said)
			}
		}
	})
}
