package crowd

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestReceive(t *testing.T) {
	t.Parallel()
	here, there := netip.MustParseAddrPort("198.18.1.0:41641"), netip.MustParseAddrPort("198.18.1.9:7")
	at := time.Unix(1795342000, 5)
	const never = "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n"
	const connected = "endpoint=198.18.1.0:41641\nlast_handshake_time_sec=1795342000\nlast_handshake_time_nsec=5\ntx_bytes=92\nrx_bytes=180\n"
	type message struct {
		bytes []byte
		from  netip.AddrPort
		after time.Duration
	}
	initiation := append([]byte{1, 0, 0, 0, 1, 0, 0, 0}, make([]byte, 140)...)
	for _, tt := range []struct {
		name     string
		messages []message
		want     string
	}{
		{"nothing", nil, never},
		{"an initiation alone", []message{{initiation, here, 0}}, never},
		{"data of a peer that there is not", []message{{dataMessage(2, 0), here, 0}}, never},
		{"data of the greatest index", []message{{dataMessage(1<<32-1, 0), here, 0}}, never},
		{"a message too short for data", []message{{dataMessage(1, 0)[:31], here, 0}}, never},
		{"an empty message", []message{{nil, here, 0}}, never},
		{"a handshake", []message{{initiation, here, 0}, {dataMessage(1, 0), here, 0}}, connected},
		{
			"traffic moves bytes and endpoint, not the handshake", []message{{dataMessage(1, 0), here, 0}, {dataMessage(1, 1), there, time.Second}},
			strings.NewReplacer("198.18.1.0:41641", "198.18.1.9:7", "=180", "=212").Replace(connected),
		},
		{
			"the next handshake", []message{{dataMessage(1, 0), here, 0}, {dataMessage(1, 0), here, 2 * time.Minute}},
			strings.NewReplacer("sec=1795342000", "sec=1795342120", "=180", "=360", "=92", "=184").Replace(connected),
		},
	} {
		table := newTable(wgtypes.Key{1}, 51820, []wgtypes.Key{{2}, {3}})
		for _, m := range tt.messages {
			table.receive(m.bytes, m.from, at.Add(m.after))
		}
		key := func(first string) string { return first + strings.Repeat("0", 62) }
		config := func(k, allowed string) string {
			return "public_key=" + key(k) + "\npreshared_key=" + key("00") + "\nprotocol_version=1\npersistent_keepalive_interval=0\nallowed_ip=" + allowed + "\n"
		}
		want := "private_key=" + key("01") + "\nlisten_port=51820\n" +
			config("02", "10.128.0.2/32") + never + config("03", "10.128.0.3/32") + tt.want + "errno=0\n\n"
		if diff := cmp.Diff(want, string(table.appendText(nil))); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestAsked(t *testing.T) {
	t.Parallel()
	for question, want := range map[string]bool{
		"get=1\n\n": true, "get=1\n\nset=1\n\n": true, "": false, "\n": false, "get=1\n": false, "get=2\n\n": false,
		"set=1\nprivate_key=00\n\n": false, "get=1\nset=1\n\n": false,
	} {
		if got := asked(strings.NewReader(question)); got != want {
			t.Errorf("%q: %t, want %t", question, got, want)
		}
	}
}

// Whatever comes to the port, the answer stays one: as many peers, its end at its end.
func FuzzReceive(f *testing.F) {
	f.Add(dataMessage(0, 0))
	f.Add(dataMessage(2, 0))
	f.Add([]byte{4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		table := newTable(wgtypes.Key{1}, 51820, []wgtypes.Key{{2}, {3}})
		table.receive(msg, netip.MustParseAddrPort("198.18.1.0:41641"), time.Unix(1795342000, 5))
		text := table.appendText(nil)
		if bytes.Count(text, []byte("public_key=")) != 2 || !bytes.HasSuffix(text, []byte("\nerrno=0\n\n")) || bytes.Count(text, []byte("\n\n")) != 1 {
			t.Errorf("after %x the device says\n%s", msg, text)
		}
	})
}
