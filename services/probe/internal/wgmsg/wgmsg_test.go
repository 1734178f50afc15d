package wgmsg

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// message returns n bytes that begin with the four type bytes and count up after them.
func message(t [4]byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	copy(b, t[:])
	return b
}

// The four type fields as they are on the wire.
var (
	typeInitiation  = [4]byte{1}
	typeResponse    = [4]byte{2}
	typeCookieReply = [4]byte{3}
	typeData        = [4]byte{4}
)

func TestClassify(t *testing.T) {
	t.Parallel()
	const whole = -1 // the payload is all that was on the wire
	tests := []struct {
		name       string
		payload    []byte
		wireLength int
		want       Kind // zero: not a message
	}{
		{"initiation", message(typeInitiation, 148), whole, Initiation},
		{"initiation one byte short", message(typeInitiation, 147), whole, 0},
		{"initiation one byte long", message(typeInitiation, 149), whole, 0},
		{"initiation cut by the capture", message(typeInitiation, 16), 148, 0},
		{"initiation with bytes beyond the datagram", message(typeInitiation, 148), 147, 0},
		{"response", message(typeResponse, 92), whole, Response},
		{"response one byte short", message(typeResponse, 91), whole, 0},
		{"response one byte long", message(typeResponse, 93), whole, 0},
		{"response of an initiation's size", message(typeResponse, 148), whole, 0},
		{"cookie reply", message(typeCookieReply, 64), whole, CookieReply},
		{"cookie reply one byte short", message(typeCookieReply, 63), whole, 0},
		{"cookie reply one byte long", message(typeCookieReply, 65), whole, 0},
		{"keepalive", message(typeData, 32), whole, Data},
		{"keepalive cut to its header", message(typeData, 16), 32, Data},
		{"keepalive cut within its header", message(typeData, 15), 32, 0},
		{"data", message(typeData, 1452), whole, Data},
		{"data of an initiation's size", message(typeData, 148), whole, Data},
		{"data too short for its tag", message(typeData, 31), whole, 0},
		{"data header of a datagram too short for its tag", message(typeData, 16), 31, 0},
		{"data longer than its datagram", message(typeData, 48), 32, 0},
		{"type 0", message([4]byte{0}, 148), whole, 0},
		{"type 5", message([4]byte{5}, 148), whole, 0},
		{"initiation with the first reserved byte set", message([4]byte{1, 1}, 148), whole, 0},
		{"data with the last reserved byte set", message([4]byte{4, 0, 0, 1}, 32), whole, 0},
		{"three bytes", []byte{1, 0, 0}, whole, 0},
		{"three bytes of an initiation", []byte{1, 0, 0}, 148, 0},
		{"nothing", nil, whole, 0},
		{"nothing of an initiation", nil, 148, 0},
		{"a negative length", message(typeData, 32), -32, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wireLength := tt.wireLength
			if wireLength == whole {
				wireLength = len(tt.payload)
			}
			got, ok := Classify(tt.payload, wireLength)
			if got != tt.want || ok != (tt.want != 0) {
				t.Errorf("Classify of %d bytes out of %d = %v, %v, want %v", len(tt.payload), wireLength, got, ok, tt.want)
			}
		})
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	type fields struct {
		sender, receiver       uint32
		counter                uint64
		hasSender, hasReceiver bool
		hasCounter             bool
	}
	tests := []struct {
		name string
		msg  []byte
		want fields
	}{
		{"initiation", message(typeInitiation, 148), fields{sender: 0x07060504, hasSender: true}},
		{"response", message(typeResponse, 92), fields{sender: 0x07060504, hasSender: true, receiver: 0x0b0a0908, hasReceiver: true}},
		{"response that ends before its receiver", message(typeResponse, 11), fields{sender: 0x07060504, hasSender: true}},
		{"cookie reply", message(typeCookieReply, 64), fields{receiver: 0x07060504, hasReceiver: true}},
		{"data", message(typeData, 32), fields{receiver: 0x07060504, hasReceiver: true, counter: 0x0f0e0d0c0b0a0908, hasCounter: true}},
		{"data that ends before its counter does", message(typeData, 15), fields{receiver: 0x07060504, hasReceiver: true}},
		{"data that ends before its receiver does", message(typeData, 7), fields{}},
		{"type 5", message([4]byte{5}, 148), fields{}},
		{"reserved byte set", message([4]byte{4, 0, 1}, 148), fields{}},
		{"nothing", nil, fields{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got fields
			got.sender, got.hasSender = Sender(tt.msg)
			got.receiver, got.hasReceiver = Receiver(tt.msg)
			got.counter, got.hasCounter = Counter(tt.msg)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestKindString(t *testing.T) {
	t.Parallel()
	for k, want := range map[Kind]string{
		Initiation: "initiation", Response: "response", CookieReply: "cookie_reply", Data: "data", 0: "kind(0)", 5: "kind(5)",
	} {
		if got := k.String(); got != want {
			t.Errorf("Kind %d is called %q, want %q", uint8(k), got, want)
		}
	}
}

func TestVerifyRefusesWhatIsNoHandshakeMessage(t *testing.T) {
	t.Parallel()
	key := NewMAC1Key([32]byte{1})
	for _, msg := range [][]byte{
		nil, {1, 0, 0, 0},
		message(typeInitiation, 148), message(typeInitiation, 147), message(typeResponse, 92), message(typeResponse, 148),
		message(typeCookieReply, 64), message(typeData, 148),
	} {
		if key.Verify(msg) {
			t.Errorf("%d bytes starting %x were verified", len(msg), msg[:min(4, len(msg))])
		}
	}
}

func TestJunkAllocatesNothing(t *testing.T) {
	key, r := NewMAC1Key([32]byte{1}), newResponder(t, [32]byte{1})
	junk := map[string][]byte{
		"shaped like an initiation": message(typeInitiation, InitiationSize),
		"shaped like a response":    message(typeResponse, ResponseSize),
		"shaped like data":          message(typeData, 1452),
		"no message":                bytes.Repeat([]byte{0xff}, 1452),
		"empty":                     nil,
	}
	for name, b := range junk {
		n := testing.AllocsPerRun(1000, func() {
			Classify(b, len(b))
			Sender(b)
			Receiver(b)
			Counter(b)
			if _, opened := r.Open(b); opened || key.Verify(b) {
				t.Errorf("%s was opened or verified", name)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(message(typeInitiation, 148), 148)
	f.Add(message(typeResponse, 92), 92)
	f.Add(message(typeCookieReply, 64), 64)
	f.Add(message(typeData, 16), 1452)
	f.Add([]byte(nil), 0)
	key := NewMAC1Key([32]byte{1})
	f.Fuzz(func(t *testing.T, b []byte, wireLength int) {
		kind, ok := Classify(b, wireLength)
		_, hasSender := Sender(b)
		_, hasReceiver := Receiver(b)
		_, hasCounter := Counter(b)
		verified := key.Verify(b)
		if !ok {
			if kind != 0 {
				t.Errorf("no message, but its kind is %v", kind)
			}
			if verified && wireLength == len(b) {
				t.Error("mac1 of what is no message was verified")
			}
			return
		}
		if uint32(kind) != binary.LittleEndian.Uint32(b) {
			t.Errorf("kind is %v, but the message starts %x", kind, b[:4])
		}
		type has struct{ sender, receiver, counter bool }
		want := map[Kind]has{
			Initiation:  {sender: true},
			Response:    {sender: true, receiver: true},
			CookieReply: {receiver: true},
			Data:        {receiver: true, counter: true},
		}[kind]
		if got := (has{hasSender, hasReceiver, hasCounter}); got != want {
			t.Errorf("a %v has fields %+v, want %+v", kind, got, want)
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	msg := message(typeData, DataHeaderSize)
	b.ReportAllocs()
	for b.Loop() {
		Classify(msg, MinDataSize)
	}
}
