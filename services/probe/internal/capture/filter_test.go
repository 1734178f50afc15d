package capture

import (
	"slices"
	"testing"

	"golang.org/x/net/bpf"
)

// routerAlert is an IP option of four bytes (RFC 2113).
var routerAlert = []byte{148, 4, 0, 0}

// frames4 are IPv4 packets, and of each how many bytes the filter is to accept.
var frames4 = []struct {
	name  string
	frame []byte
	want  int
}{
	{"initiation", udp4(initiation()), 20 + 8 + 148},
	{"initiation, one byte short", udp4(message([4]byte{1}, 147)), 0},
	{"initiation, one byte long", udp4(message([4]byte{1}, 149)), 0},
	{"initiation, reserved byte set", udp4(message([4]byte{1, 0, 1}, 148)), 0},
	{"initiation, last byte missing from the packet", udp4(initiation())[:20+8+147], 0},
	{"initiation, padded by the link", append(udp4(initiation()), 0, 0, 0), 20 + 8 + 148},
	{"initiation, four bytes of options", udp4(initiation(), routerAlert...), 24 + 8 + 148},
	{"initiation, 40 bytes of options", udp4(initiation(), slices.Repeat([]byte{1}, 40)...), 60 + 8 + 148},
	{"initiation, header length field below 5", with(udp4(initiation()), 0, 4<<4|4), 0},
	{"initiation, may not be fragmented", with(udp4(initiation()), 6, 0x40, 0), 20 + 8 + 148},
	{"response", udp4(response()), 20 + 8 + 92},
	{"response, one byte short", udp4(message([4]byte{2}, 91)), 0},
	{"response, one byte long", udp4(message([4]byte{2}, 93)), 0},
	{"response of an initiation's length", udp4(message([4]byte{2}, 148)), 0},
	{"cookie reply", udp4(cookieReply()), 20 + 8 + 64},
	{"cookie reply, one byte short", udp4(message([4]byte{3}, 63)), 0},
	{"cookie reply, one byte long", udp4(message([4]byte{3}, 65)), 0},
	{"keepalive with counter 0", udp4(data(0, 32)), 20 + 8 + 16},
	{"data with counter 0", udp4(data(0, 1452)), 20 + 8 + 16},
	{"data with counter 0 of an initiation's length", udp4(data(0, 148)), 20 + 8 + 16},
	{"data with counter 0, options", udp4(data(0, 32), routerAlert...), 24 + 8 + 16},
	{"data with counter 0, one byte short of a keepalive", udp4(data(0, 31)), 0},
	{"data with counter 0, packet ends after the message's header", udp4(data(0, 32))[:20+8+16], 20 + 8 + 16},
	{"data with counter 0, packet ends within the counter", udp4(data(0, 32))[:20+8+15], 0},
	{"data with counter 1", udp4(data(1, 32)), 0},
	{"data with counter 2^32", udp4(data(1<<32, 32)), 0},
	{"data with counter 2^63", udp4(data(1<<63, 32)), 0},
	{"data with counter 0, reserved byte set", udp4(with(data(0, 32), 3, 1)), 0},
	{"several data messages joined by receive offload, first has counter 0", udp4(append(data(0, 128), data(1, 128)...)), 20 + 8 + 16},
	{"first fragment of data with counter 0", with(udp4(data(0, 1452)), 6, 0x20, 0)[:20+800], 20 + 8 + 16},
	{"second fragment that looks like an initiation", with(udp4(initiation()), 6, 0x20, 100), 0},
	{"last fragment of the longest datagram, looks like an initiation", with(udp4(initiation()), 6, 0x10, 0), 0},
	{"last fragment that looks like an initiation", with(udp4(initiation()), 6, 0, 1), 0},
	{"type 0", udp4(message([4]byte{0}, 148)), 0},
	{"type 5", udp4(message([4]byte{5}, 148)), 0},
	{"wrong first bytes", udp4(message([4]byte{0x16, 0xfe, 0xfd}, 148)), 0},
	{"DNS query", udp4(message([4]byte{0x12, 0x34, 1}, 40)), 0},
	{"TCP with an initiation's bytes", ip4(6, datagram(initiation())), 0},
	{"UDP-Lite with an initiation's bytes", ip4(136, datagram(initiation())), 0},
	{"ICMP error that quotes an initiation", ip4(1, append(make([]byte, 8), udp4(initiation())...)), 0},
	{"UDP without payload", udp4(nil), 0},
	{"UDP with three bytes", udp4([]byte{1, 0, 0}), 0},
	{"packet ends within the UDP header", udp4(initiation())[:20+7], 0},
	{"packet ends within the IP header", udp4(initiation())[:9], 0},
	{"empty", nil, 0},
}

// frames6 are IPv6 packets, and of each how many bytes the filter is to accept.
var frames6 = []struct {
	name  string
	frame []byte
	want  int
}{
	{"initiation", udp6(initiation()), 40 + 8 + 148},
	{"initiation, with a traffic class and a flow label", with(udp6(initiation()), 0, 0x6b, 0x81, 0x23, 0x45), 40 + 8 + 148},
	{"initiation, one byte short", udp6(message([4]byte{1}, 147)), 0},
	{"initiation, one byte long", udp6(message([4]byte{1}, 149)), 0},
	{"initiation, last byte missing from the packet", udp6(initiation())[:40+8+147], 0},
	{"response", udp6(response()), 40 + 8 + 92},
	{"response, one byte short", udp6(message([4]byte{2}, 91)), 0},
	{"response, one byte long", udp6(message([4]byte{2}, 93)), 0},
	{"cookie reply", udp6(cookieReply()), 40 + 8 + 64},
	{"cookie reply, one byte short", udp6(message([4]byte{3}, 63)), 0},
	{"cookie reply, one byte long", udp6(message([4]byte{3}, 65)), 0},
	{"keepalive with counter 0", udp6(data(0, 32)), 40 + 8 + 16},
	{"data with counter 0", udp6(data(0, 1432)), 40 + 8 + 16},
	{"data with counter 0, one byte short of a keepalive", udp6(data(0, 31)), 0},
	{"data with counter 1", udp6(data(1, 32)), 0},
	{"data with counter 2^32", udp6(data(1<<32, 32)), 0},
	{"wrong first bytes", udp6(message([4]byte{0x16, 0xfe, 0xfd}, 148)), 0},
	{"TCP with an initiation's bytes", ip6(6, datagram(initiation())), 0},
	{"hop-by-hop header before UDP", ip6(0, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, datagram(initiation())...)), 0},
	{"fragment header before UDP", ip6(44, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, datagram(initiation())...)), 0},
	{"UDP without payload", udp6(nil), 0},
	{"packet ends within the UDP header", udp6(initiation())[:40+7], 0},
	{"packet ends within the IP header", udp6(initiation())[:6], 0},
	{"empty", nil, 0},
}

func TestFilter4(t *testing.T) {
	t.Parallel()
	vm := newVM(t, filter4())
	for _, tt := range frames4 {
		t.Run(tt.name, func(t *testing.T) { testAccepts(t, vm, tt.frame, tt.want) })
	}
}

func TestFilter6(t *testing.T) {
	t.Parallel()
	vm := newVM(t, filter6())
	for _, tt := range frames6 {
		t.Run(tt.name, func(t *testing.T) { testAccepts(t, vm, tt.frame, tt.want) })
	}
}

func newVM(t testing.TB, program []bpf.Instruction) *bpf.VM {
	t.Helper()
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func testAccepts(t *testing.T, vm *bpf.VM, frame []byte, want int) {
	t.Helper()
	got, err := vm.Run(frame)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("accepted %d of %d bytes, want %d", got, len(frame), want)
	}
}
