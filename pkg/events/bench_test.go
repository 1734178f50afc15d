package events

import (
	"crypto/ed25519"
	"os"
	"testing"
)

// What one event costs its readers: BenchmarkVerify is BenchmarkDecode and the signature.

// benchmarkBody is the golden event of a peer that connects.
func benchmarkBody(b *testing.B) []byte {
	body, err := os.ReadFile(golden(PeerConnected))
	if err != nil {
		b.Fatal(err)
	}
	return body
}

func BenchmarkDecode(b *testing.B) {
	body := benchmarkBody(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	body := benchmarkBody(b)
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	signature, ring := Sign(body, private), Keyring{"vpn-1": {public}}
	for b.Loop() {
		if _, err := Verify(body, signature, ring); err != nil {
			b.Fatal(err)
		}
	}
}
