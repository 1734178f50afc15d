package capture

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/bpf"

	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

var compareAddrs = cmpopts.EquateComparable(netip.AddrPort{})

func TestDecode(t *testing.T) {
	t.Parallel()
	from4, to4 := netip.MustParseAddrPort("192.0.2.1:1000"), netip.MustParseAddrPort("192.0.2.2:2000")
	from6, to6 := netip.MustParseAddrPort("[2001:db8::1]:1000"), netip.MustParseAddrPort("[2001:db8::2]:2000")
	tests := []struct {
		name   string
		decode decodeFunc
		frame  []byte
		want   Packet // zero: no message
	}{
		{"IPv4 initiation", decode4, udp4(initiation()), Packet{Kind: wgmsg.Initiation, Src: from4, Dst: to4, Payload: initiation()}},
		{"IPv4 initiation, options", decode4, udp4(initiation(), routerAlert...), Packet{Kind: wgmsg.Initiation, Src: from4, Dst: to4, Payload: initiation()}},
		{"IPv4 response", decode4, udp4(response()), Packet{Kind: wgmsg.Response, Src: from4, Dst: to4, Payload: response()}},
		{"IPv4 cookie reply", decode4, udp4(cookieReply()), Packet{Kind: wgmsg.CookieReply, Src: from4, Dst: to4, Payload: cookieReply()}},
		{"IPv4 data, whole", decode4, udp4(data(0, 1452)), Packet{Kind: wgmsg.Data, Src: from4, Dst: to4, Payload: data(0, 16)}},
		{"IPv4 data, cut by the filter", decode4, udp4(data(0, 1452))[:20+8+16], Packet{Kind: wgmsg.Data, Src: from4, Dst: to4, Payload: data(0, 16)}},
		{"IPv4 data, first fragment", decode4, with(udp4(data(0, 1452)), 6, 0x20, 0)[:20+800], Packet{Kind: wgmsg.Data, Src: from4, Dst: to4, Payload: data(0, 16)}},
		{"IPv4 data, later fragment", decode4, with(udp4(data(0, 1452)), 6, 0x20, 100), Packet{}},
		{"IPv4 initiation, cut", decode4, udp4(initiation())[:20+8+16], Packet{}},
		{"IPv4 initiation, length field of UDP too small", decode4, with(udp4(initiation()), 20+4, 0, 7), Packet{}},
		{"IPv4 initiation, length field of UDP zero", decode4, with(udp4(initiation()), 20+4, 0, 0), Packet{}},
		{"IPv4 initiation, length field of IP too small", decode4, with(udp4(initiation()), 2, 0, 19), Packet{}},
		{"IPv4 initiation, length field of IP cuts it", decode4, with(udp4(initiation()), 2, 0, 100), Packet{}},
		{"IPv4 initiation, broken option", decode4, udp4(initiation(), 148, 40, 0, 0), Packet{}},
		{"IPv4 initiation, version 6", decode4, with(udp4(initiation()), 0, 0x65), Packet{}},
		{"IPv4 TCP", decode4, ip4(6, datagram(initiation())), Packet{}},
		{"IPv4 empty", decode4, nil, Packet{}},
		{"IPv6 initiation", decode6, udp6(initiation()), Packet{Kind: wgmsg.Initiation, Src: from6, Dst: to6, Payload: initiation()}},
		{"IPv6 initiation, traffic class and flow label", decode6, with(udp6(initiation()), 0, 0x6b, 0x81, 0x23, 0x45), Packet{Kind: wgmsg.Initiation, Src: from6, Dst: to6, Payload: initiation()}},
		{"IPv6 data, cut by the filter", decode6, udp6(data(0, 1432))[:40+8+16], Packet{Kind: wgmsg.Data, Src: from6, Dst: to6, Payload: data(0, 16)}},
		{"IPv6 hop-by-hop header", decode6, ip6(0, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, datagram(initiation())...)), Packet{}},
		{"IPv6 initiation, version 4", decode6, with(udp6(initiation()), 0, 0x40), Packet{}},
		{"IPv6 initiation, length field of IP zero", decode6, with(udp6(initiation()), 4, 0, 0), Packet{}},
		{"IPv6 TCP", decode6, ip6(6, datagram(initiation())), Packet{}},
		{"IPv6 empty", decode6, nil, Packet{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, ok := tt.decode(new(layerSet), tt.frame)
			if ok != (tt.want.Kind != 0) {
				t.Errorf("decoded = %v, want %v", ok, !ok)
			}
			if diff := cmp.Diff(tt.want, got, compareAddrs); diff != "" {
				t.Errorf("packet (-want +got):\n%s", diff)
			}
		})
	}
}

// TestFilterAndDecoderAgree checks that the decoder understands all that the filter accepts.
func TestFilterAndDecoderAgree(t *testing.T) {
	t.Parallel()
	check := func(name string, frame []byte, accepted int, decode decodeFunc) {
		if accepted == 0 {
			return
		}
		if _, ok := decode(new(layerSet), frame[:accepted]); !ok {
			t.Errorf("%s: the filter accepts %d bytes, and the decoder finds no message in them", name, accepted)
		}
	}
	for _, f := range frames4 {
		check("IPv4 "+f.name, f.frame, f.want, decode4)
	}
	for _, f := range frames6 {
		check("IPv6 "+f.name, f.frame, f.want, decode6)
	}
}

func TestDecodingAllocatesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		decode decodeFunc
		frame  []byte
	}{
		"IPv4":              {decode4, udp4(initiation())},
		"IPv4 with options": {decode4, udp4(initiation(), routerAlert...)},
		"IPv6":              {decode6, udp6(initiation())},
	} {
		var l layerSet
		if n := testing.AllocsPerRun(1000, func() { tt.decode(&l, tt.frame) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, tt := range frames4 {
		f.Add(tt.frame)
	}
	for _, tt := range frames6 {
		f.Add(tt.frame)
	}
	families := map[string]struct {
		vm     *bpf.VM
		decode decodeFunc
	}{
		"IPv4": {newVM(f, filter4()), decode4},
		"IPv6": {newVM(f, filter6()), decode6},
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > 65535 {
			return // more than an IP packet holds
		}
		for name, family := range families {
			accepted, err := family.vm.Run(frame)
			if err != nil {
				t.Fatal(err)
			}
			if accepted > maxAccepted {
				t.Errorf("%s: the filter accepts %d bytes, the buffer holds %d", name, accepted, maxAccepted)
			}
			whole, ok := family.decode(new(layerSet), frame)
			if ok {
				if kind, _ := wgmsg.Classify(whole.Payload, max(len(whole.Payload), wgmsg.MinDataSize)); kind != whole.Kind {
					t.Errorf("%s: a %v has the payload of a %v: %x", name, whole.Kind, kind, whole.Payload)
				}
				counter, _ := wgmsg.Counter(whole.Payload)
				if wanted := counter == 0; wanted != (accepted > 0) {
					t.Errorf("%s: a %v with counter %d: the filter accepts %d bytes", name, whole.Kind, counter, accepted)
				}
			}
			if accepted == 0 {
				continue
			}
			// What the filter cuts off must not matter.
			cut, cutOK := family.decode(new(layerSet), frame[:min(accepted, len(frame))])
			if cutOK != ok {
				t.Fatalf("%s: the whole packet is a message: %v, the cut one: %v", name, ok, cutOK)
			}
			if diff := cmp.Diff(whole, cut, compareAddrs); diff != "" {
				t.Errorf("%s: packet (-whole +cut):\n%s", name, diff)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var l layerSet
	frame := udp4(initiation())
	b.ReportAllocs()
	for b.Loop() {
		decode4(&l, frame)
	}
}
