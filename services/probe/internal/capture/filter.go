package capture

import (
	"golang.org/x/net/bpf"

	"github.com/wgherald/wgherald/services/probe/internal/wgmsg"
)

// Offsets within the headers, in bytes (RFC 791, RFC 8200, RFC 768).
const (
	ip4FragmentOffset = 6 // three flags and the fragment's offset
	ip4ProtocolOffset = 9
	ip4MaxHeaderSize  = 60

	ip6NextHeaderOffset = 6
	ip6HeaderSize       = 40

	udpLengthOffset = 4
	udpHeaderSize   = 8

	protocolUDP = 17
)

// maxAccepted is the most that the filters let through of a packet.
const maxAccepted = ip4MaxHeaderSize + udpHeaderSize + wgmsg.InitiationSize

// drop ends a program: nothing of the packet is accepted.
var drop = bpf.RetConstant{Val: 0}

// filter4 returns the program for IPv4 packets that start at the IP header. It accepts, up to the end of the message:
//
//   - an initiation, a response or a cookie reply, by the type field and the exact length of the UDP datagram;
//   - of data messages only those with counter 0, from the minimum length on, and of these the headers only. It is the first message under a
//     new key that confirms a session to its responder, and all the others are the traffic itself.
//
// A fragment is accepted where it is the first one, which has the headers; the others have none. IP options are skipped over.
func filter4() []bpf.Instruction {
	return program(
		bpf.LoadAbsolute{Off: ip4ProtocolOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolUDP, SkipTrue: 1},
		drop,
		bpf.LoadAbsolute{Off: ip4FragmentOffset, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 1},
		drop,
		bpf.LoadMemShift{Off: 0}, // X = header length
	)
}

// filter6 returns the program for IPv6 packets that start at the IP header. It accepts the same as [filter4] where UDP follows the fixed header. A
// packet with extension headers is dropped, fragments among them: WireGuard sends none, and classic BPF has no loop to follow them with.
func filter6() []bpf.Instruction {
	return program(
		bpf.LoadAbsolute{Off: ip6NextHeaderOffset, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protocolUDP, SkipTrue: 1},
		drop,
		bpf.LoadConstant{Dst: bpf.RegX, Val: ip6HeaderSize},
	)
}

// program returns the instructions in header, which leave the UDP header's offset in X, and after them those that judge the UDP datagram. A load from
// beyond the packet's end ends a program and drops the packet, so none of the lengths is trusted.
func program(header ...bpf.Instruction) []bpf.Instruction {
	p := append(header, bpf.LoadIndirect{Off: udpHeaderSize, Size: 4}) // A = the message's type field
	// Data comes first, being most of what WireGuard sends.
	p = append(p, whenType(wgmsg.Data,
		bpf.LoadIndirect{Off: udpHeaderSize + wgmsg.DataCounterOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		drop,
		bpf.LoadIndirect{Off: udpHeaderSize + wgmsg.DataCounterOffset + 4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		drop,
		bpf.LoadIndirect{Off: udpLengthOffset, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: udpHeaderSize + wgmsg.MinDataSize, SkipTrue: 1},
		drop,
		bpf.TXA{},
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: udpHeaderSize + wgmsg.DataHeaderSize},
		bpf.RetA{},
	)...)
	for _, m := range []struct {
		kind wgmsg.Kind
		size uint32
	}{
		{wgmsg.Initiation, wgmsg.InitiationSize},
		{wgmsg.Response, wgmsg.ResponseSize},
		{wgmsg.CookieReply, wgmsg.CookieReplySize},
	} {
		p = append(p, whenType(m.kind,
			bpf.LoadIndirect{Off: udpLengthOffset, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: udpHeaderSize + m.size, SkipTrue: 1},
			drop,
			bpf.LoadIndirect{Off: udpHeaderSize + m.size - 1, Size: 1}, // is the last byte there?
			bpf.TXA{},
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: udpHeaderSize + m.size},
			bpf.RetA{},
		)...)
	}
	return append(p, drop)
}

// whenType returns body, which has to end in a return, to be run where the type field in A is that of kind. The field is little-endian and a load is
// big-endian, so the kind is in the highest byte.
func whenType(kind wgmsg.Kind, body ...bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(kind) << 24, SkipFalse: uint8(len(body))}}, body...)
}
