package wgstate

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/wgherald/wgherald/pkg/events"
)

// filled returns a key that is easy to find in a text.
func filled(b byte) wgtypes.Key {
	return wgtypes.Key(bytes.Repeat([]byte{b}, 32))
}

func mustCIDR(s string) net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return *n
}

var wg0 = Link{Name: "wg0", Ifindex: 7, Up: true, Kind: Kernel}

// noKeys stands in for a fingerprint where preshared keys do not matter.
func noKeys(wgtypes.Key) PSK { return PSK{} }

func TestConvertDevice(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		in   wgtypes.Device
		want Device
	}{
		{
			name: "kernel device",
			in:   wgtypes.Device{Name: "wg0", PrivateKey: filled(1), PublicKey: filled(2), ListenPort: 51820},
			want: Device{PublicKey: events.Key(filled(2)), ListenPort: 51820},
		},
		{
			name: "device without a private key has no public key either",
			in:   wgtypes.Device{Name: "wg0", PublicKey: wgtypes.Key{}.PublicKey()},
			want: Device{},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Name, tt.want.Ifindex, tt.want.Up, tt.want.Kind = wg0.Name, wg0.Ifindex, wg0.Up, wg0.Kind
			tt.want.Peers = []Peer{}
			if diff := cmp.Diff(tt.want, convert(&tt.in, wg0, noKeys)); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
		})
	}
}

func TestConvertPeer(t *testing.T) {
	t.Parallel()
	at := time.Unix(1795342000, 123)
	none := []netip.Prefix{}
	tests := []struct {
		name string
		in   wgtypes.Peer
		want Peer
	}{
		{
			name: "configured, never seen",
			in:   wgtypes.Peer{PublicKey: filled(3)},
			want: Peer{PublicKey: events.Key(filled(3)), AllowedIPs: none},
		},
		{
			name: "handshake at the Unix epoch is none",
			in:   wgtypes.Peer{LastHandshakeTime: time.Unix(0, 0)},
			want: Peer{AllowedIPs: none},
		},
		{
			name: "connected",
			in: wgtypes.Peer{
				Endpoint:                    &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7).To4(), Port: 41641},
				LastHandshakeTime:           at,
				ReceiveBytes:                276,
				TransmitBytes:               1240,
				PersistentKeepaliveInterval: 25 * time.Second,
			},
			want: Peer{
				Endpoint:      netip.MustParseAddrPort("203.0.113.7:41641"),
				LastHandshake: at,
				RxBytes:       276,
				TxBytes:       1240,
				Keepalive:     25 * time.Second,
				AllowedIPs:    none,
			},
		},
		{
			name: "IPv4 endpoint of an IPv6 socket is unmapped",
			in:   wgtypes.Peer{Endpoint: &net.UDPAddr{IP: net.ParseIP("203.0.113.7").To16(), Port: 1}},
			want: Peer{Endpoint: netip.MustParseAddrPort("203.0.113.7:1"), AllowedIPs: none},
		},
		{
			name: "link-local endpoint keeps its zone",
			in:   wgtypes.Peer{Endpoint: &net.UDPAddr{IP: net.ParseIP("fe80::1"), Port: 1, Zone: "eth0"}},
			want: Peer{Endpoint: netip.MustParseAddrPort("[fe80::1%eth0]:1"), AllowedIPs: none},
		},
		{
			name: "counters beyond the signed range",
			in:   wgtypes.Peer{ReceiveBytes: -1},
			want: Peer{RxBytes: 1<<64 - 1, AllowedIPs: none},
		},
		{
			name: "allowed IPs in any order come sorted",
			in: wgtypes.Peer{AllowedIPs: []net.IPNet{
				mustCIDR("fd00::/64"), mustCIDR("10.9.0.2/32"), mustCIDR("10.8.0.0/16"), mustCIDR("0.0.0.0/0"), mustCIDR("::/0"),
			}},
			want: Peer{AllowedIPs: []netip.Prefix{
				netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.8.0.0/16"), netip.MustParsePrefix("10.9.0.2/32"),
				netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00::/64"),
			}},
		},
		{
			name: "allowed IP with an IPv4 address of 16 bytes",
			in:   wgtypes.Peer{AllowedIPs: []net.IPNet{{IP: net.ParseIP("10.9.0.2"), Mask: net.CIDRMask(32, 32)}}},
			want: Peer{AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/32")}},
		},
		{
			name: "what is no prefix is left out",
			in:   wgtypes.Peer{AllowedIPs: []net.IPNet{{}, {IP: net.IP{10, 0, 0, 1}, Mask: net.CIDRMask(8, 128)}}},
			want: Peer{AllowedIPs: none},
		},
	}
	equal := cmp.Options{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, convertPeer(&tt.in, noKeys), equal); diff != "" {
				t.Errorf("peer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPresharedKeyIsToldApartAndNotRepeatedAcrossProcesses(t *testing.T) {
	t.Parallel()
	fingerprint, other := newFingerprint(), newFingerprint()
	if got := fingerprint(wgtypes.Key{}); got.Present() || got != (PSK{}) {
		t.Errorf("no key gives %x", [16]byte(got))
	}
	a, b := fingerprint(filled(4)), fingerprint(filled(5))
	if !a.Present() || !b.Present() {
		t.Error("a key is not present")
	}
	if a == b {
		t.Error("two keys look the same")
	}
	if a != fingerprint(filled(4)) {
		t.Error("one key looks like two")
	}
	if a == other(filled(4)) {
		t.Error("the fingerprint does not depend on the salt")
	}
}

func TestNoSecretIsPrinted(t *testing.T) {
	t.Parallel()
	private, preshared := filled(0xA7), filled(0xB9)
	c := fake(func(Kind, string) (*wgtypes.Device, error) {
		return &wgtypes.Device{
			PrivateKey: private, PublicKey: private.PublicKey(),
			Peers: []wgtypes.Peer{{PublicKey: filled(3), PresharedKey: preshared}, {PublicKey: filled(4)}},
		}, nil
	})
	c.fingerprint = newFingerprint()
	d, err := c.Snapshot(t.Context(), wg0)
	if err != nil {
		t.Fatal(err)
	}
	if d.Responder == nil {
		t.Fatal("no Responder")
	}

	var out bytes.Buffer
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		fmt.Fprintf(&out, format+"\n", d)
		fmt.Fprintf(&out, format+"\n", d.Peers[0].PresharedKey)
		fmt.Fprintf(&out, format+"\n", d.Responder)
	}
	if err := json.NewEncoder(&out).Encode(d); err != nil {
		t.Fatal(err)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("reading", "device", d, "psk", d.Peers[0].PresharedKey, "responder", d.Responder)
	}

	text := out.String()
	print := d.Peers[0].PresharedKey
	for what, secret := range map[string][]byte{"private key": private[:], "preshared key": preshared[:], "fingerprint": print[:]} {
		for form, s := range map[string]string{
			"raw":     string(secret),
			"hex":     hex.EncodeToString(secret),
			"HEX":     strings.ToUpper(hex.EncodeToString(secret)),
			"base64":  base64.RawStdEncoding.EncodeToString(secret),
			"decimal": strings.Trim(fmt.Sprint(secret), "[]"),
			"go":      strings.Trim(fmt.Sprintf("%#v", secret), "[]byte{}"),
		} {
			if strings.Contains(text, s) {
				t.Errorf("%s is printed (%s)", what, form)
			}
		}
	}
	if !strings.Contains(text, `"PresharedKey":"yes"`) || !strings.Contains(text, `"PresharedKey":"no"`) {
		t.Errorf("JSON does not say yes and no:\n%s", text)
	}
}
