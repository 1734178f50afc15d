package crowd

import (
	"crypto/rand"
	"encoding/binary"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// initiator writes initiations for one responder (whitepaper, section 5.4.2). wireguard-go writes them only for a device each.
type initiator struct {
	responder wgtypes.Key
	hash      [blake2s.Size]byte // of the protocol's names and the responder's key
	macs      device.CookieGenerator
}

func newInitiator(responder wgtypes.Key) *initiator {
	n := &initiator{responder: responder, hash: mix(device.InitialHash, responder[:])}
	n.macs.Init(device.NoisePublicKey(responder))
	return n
}

// write returns an initiation of the holder of a private key, who calls itself index, as of now. It costs four multiplications on the curve, 0.2 ms or so.
func (n *initiator) write(private wgtypes.Key, index uint32) ([]byte, error) {
	var ephemeral [32]byte
	_, _ = rand.Read(ephemeral[:]) // never fails
	ephemeralPublic, err := curve25519.X25519(ephemeral[:], curve25519.Basepoint)
	if err != nil {
		return nil, err
	}
	msg := device.MessageInitiation{Type: device.MessageInitiationType, Sender: index, Ephemeral: device.NoisePublicKey(ephemeralPublic)}
	public := private.PublicKey()
	timestamp := tai64n.Now()
	chain := device.InitialChainKey
	hash := mix(n.hash, ephemeralPublic)
	device.KDF1(&chain, chain[:], ephemeralPublic)
	for _, sealed := range []struct {
		private [32]byte
		plain   []byte
		to      []byte
	}{
		{ephemeral, public[:], msg.Static[:0]},
		{private, timestamp[:], msg.Timestamp[:0]},
	} {
		secret, err := curve25519.X25519(sealed.private[:], n.responder[:])
		if err != nil {
			return nil, err
		}
		var key [chacha20poly1305.KeySize]byte
		device.KDF2(&chain, &key, chain[:], secret)
		aead, err := chacha20poly1305.New(key[:])
		if err != nil {
			return nil, err
		}
		hash = mix(hash, aead.Seal(sealed.to, device.ZeroNonce[:], sealed.plain, hash[:]))
	}
	b, err := binary.Append(make([]byte, 0, device.MessageInitiationSize), binary.LittleEndian, msg)
	if err != nil {
		return nil, err
	}
	n.macs.AddMacs(b)
	return b, nil
}

// mix is Noise's MixHash.
func mix(hash [blake2s.Size]byte, data []byte) [blake2s.Size]byte {
	return blake2s.Sum256(append(hash[:], data...))
}

// dataMessage is an empty data message as long as a keepalive is. Nobody looks at its authentication tag.
func dataMessage(receiver uint32, counter uint64) []byte {
	b := make([]byte, device.MessageKeepaliveSize)
	binary.LittleEndian.PutUint32(b, device.MessageTransportType)
	binary.LittleEndian.PutUint32(b[device.MessageTransportOffsetReceiver:], receiver)
	binary.LittleEndian.PutUint64(b[device.MessageTransportOffsetCounter:], counter)
	_, _ = rand.Read(b[device.MessageTransportHeaderSize:])
	return b
}
