package wgmsg

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"maps"
	"sync"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// What both sides hash before the first message (whitepaper, section 5.4).
const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
)

// keySize is the size of X25519 keys, of BLAKE2s hashes and of all that is derived from them.
const keySize = 32

// Offsets of the other fields of an initiation.
const (
	initiationEphemeralOffset = 8
	initiationStaticOffset    = initiationEphemeralOffset + keySize
	initiationTimestampOffset = initiationStaticOffset + keySize + authTagSize
)

var initialChain = blake2s.Sum256([]byte(construction))

// Responder is one device's side of handshakes: with the device's private key it opens an initiation as the device itself does. It answers none,
// changes nothing on the device, and never gives the private key away, however it is printed or marshalled.
//
// It takes an initiation in two steps of one X25519 each, which is nearly all that they cost: [Responder.Open] tells whose static key the sender
// claims, [Responder.Prove] whether the sender holds it. It is safe for concurrent use.
type Responder struct {
	// Secrets are in functions, into which no printing looks: where a verb does not fit a field, fmt passes over Format and follows pointers.
	key  func() *ecdh.PrivateKey
	mac1 *MAC1Key
	hash [keySize]byte // of identifier and public key: where every initiation starts

	mu    sync.Mutex
	kept  map[[32]byte]*kept // by the peer's public key
	round uint64             // calls of Keep
}

// kept is what a Responder remembers for a configured peer.
type kept struct {
	round  uint64        // the last call of Keep that named the peer
	secret func() []byte // see Responder.exchange; computed by the first call
}

// NewResponder returns the Responder of the device with the given private key. It is an error when that is all zeros, which is no key.
func NewResponder(private [32]byte) (*Responder, error) {
	if private == ([32]byte{}) {
		return nil, errors.New("a private key of zeros is none")
	}
	key, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, err
	}
	r := &Responder{key: func() *ecdh.PrivateKey { return key }, kept: make(map[[32]byte]*kept)}
	public := r.PublicKey()
	r.mac1 = NewMAC1Key(public)
	r.hash = mixHash(mixHash(initialChain, []byte(identifier)), public[:])
	return r, nil
}

// PublicKey returns the device's public key.
func (r *Responder) PublicKey() [32]byte { return [32]byte(r.key().PublicKey().Bytes()) }

// HasKey reports whether r was made with that private key. It compares in constant time.
func (r *Responder) HasKey(private [32]byte) bool {
	return subtle.ConstantTimeCompare(r.key().Bytes(), private[:]) == 1
}

// Format implements fmt.Formatter: the peers are none of a log's business either, and may change meanwhile.
func (r *Responder) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "wgmsg.Responder") }

// Addressed reports whether msg is a whole initiation or response whose mac1 was made for this device; see [MAC1Key.Verify].
func (r *Responder) Addressed(msg []byte) bool { return r.mac1.Verify(msg) }

// Claim is an opened initiation: whose static key its sender claims to hold. The zero Claim is none, and proves nothing.
type Claim struct {
	// Static is the claimed public key. Whoever knows the responder's public key can claim any.
	Static [32]byte

	// timestamp opens it with the secret that the two static keys share.
	timestamp func(secret []byte) (Timestamp, bool)
}

// Open opens the static key of an initiation (whitepaper, section 5.4.2). It returns false for what is no whole initiation to this device, by its
// mac1, which costs no allocation, and for what was not sealed for this device.
//
// The sender's index is covered by mac1 alone, and mac2 is not looked at: anybody may change them and send the message again, which is still true.
func (r *Responder) Open(msg []byte) (Claim, bool) {
	if kindOf(msg) != Initiation || !r.Addressed(msg) {
		return Claim{}, false
	}
	ephemeral := msg[initiationEphemeralOffset:initiationStaticOffset]
	static := msg[initiationStaticOffset:initiationTimestampOffset]
	secret := r.exchange(ephemeral)
	if secret == nil {
		return Claim{}, false
	}
	chain, _ := derive(initialChain, ephemeral)
	chain, key := derive(chain, secret)
	hash := mixHash(r.hash, ephemeral)
	var c Claim
	if !unseal(c.Static[:], static, key, hash) {
		return Claim{}, false
	}
	hash = mixHash(hash, static)
	timestamp := bytes.Clone(msg[initiationTimestampOffset:InitiationMAC1Offset])
	c.timestamp = func(secret []byte) (t Timestamp, ok bool) {
		_, key := derive(chain, secret)
		ok = unseal(t[:], timestamp, key, hash)
		return t, ok
	}
	return c, true
}

// Prove opens the timestamp of an initiation that [Responder.Open] has opened. It returns false when whoever made it does not hold the claimed key.
//
// An initiation that is sent again proves the same again: that it is fresh shows only when its timestamp is later than those before.
func (r *Responder) Prove(c *Claim) (Timestamp, bool) {
	if c.timestamp == nil {
		return Timestamp{}, false
	}
	var secret []byte
	if k := r.peer(c.Static); k != nil {
		secret = k.secret()
	} else {
		secret = r.exchange(c.Static[:])
	}
	if secret == nil {
		return Timestamp{}, false
	}
	return c.timestamp(secret)
}

// Keep says which peers are configured. Their part of [Responder.Prove] is computed when it is first asked for and then kept; what was kept for
// others is forgotten.
func (r *Responder) Keep(peers iter.Seq[[32]byte]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round++
	named := 0
	for public := range peers {
		k, ok := r.kept[public]
		if !ok {
			k = r.keep(public)
			r.kept[public] = k
		}
		if k.round != r.round {
			k.round = r.round
			named++
		}
	}
	if named < len(r.kept) {
		maps.DeleteFunc(r.kept, func(_ [32]byte, k *kept) bool { return k.round != r.round })
	}
}

// keep is apart from Keep, which would otherwise allocate for peers that it knows already.
func (r *Responder) keep(public [32]byte) *kept {
	return &kept{secret: sync.OnceValue(func() []byte { return r.exchange(public[:]) })}
}

// Keeps reports whether the last call of [Responder.Keep] named that public key.
func (r *Responder) Keeps(public [32]byte) bool { return r.peer(public) != nil }

func (r *Responder) peer(public [32]byte) *kept {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[public]
}

// exchange returns the secret that the device shares with the holder of public, nil for points of low order: with these it would be all zeros,
// whoever holds what.
func (r *Responder) exchange(public []byte) []byte {
	key, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil
	}
	secret, err := r.key().ECDH(key)
	if err != nil {
		return nil
	}
	return secret
}

// derive is Kdf2 of the whitepaper. Kdf1 is the first half of it.
func derive(chain [keySize]byte, input []byte) (next, key [keySize]byte) {
	out, err := hkdf.Key(newHash, input, chain[:], "", 2*keySize)
	if err != nil {
		panic(fmt.Sprintf("wgmsg: HKDF refused %d bytes: %v", 2*keySize, err))
	}
	return [keySize]byte(out), [keySize]byte(out[keySize:])
}

func newHash() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(fmt.Sprintf("wgmsg: BLAKE2s without a key was refused: %v", err))
	}
	return h
}

// mixHash is Hash(h || data) of the whitepaper.
func mixHash(h [keySize]byte, data []byte) [keySize]byte {
	return blake2s.Sum256(append(h[:], data...))
}

// unseal opens sealed into dst, which has just the size of what is in it.
func unseal(dst, sealed []byte, key, hash [keySize]byte) bool {
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(fmt.Sprintf("wgmsg: a ChaCha20-Poly1305 key of %d bytes was refused: %v", len(key), err))
	}
	var nonce [chacha20poly1305.NonceSize]byte // every key seals once
	_, err = aead.Open(dst[:0], nonce[:], sealed, hash[:])
	return err == nil
}
