package crowd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"testing"

	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func newKey(t *testing.T) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// WireGuard itself is the judge: a responder with one configured peer.
func TestInitiationsAreReal(t *testing.T) {
	t.Parallel()
	hubKey, peerKey := newKey(t), newKey(t)
	public := peerKey.PublicKey()
	d := device.NewDevice(tuntest.NewChannelTUN().TUN(), bindtest.NewChannelBinds()[0], &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	t.Cleanup(d.Close)
	if err := d.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\n", hex.EncodeToString(hubKey[:]), hex.EncodeToString(public[:]))); err != nil {
		t.Fatal(err)
	}
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	var macs device.CookieChecker
	macs.Init(device.NoisePublicKey(hubKey.PublicKey()))

	for _, tt := range []struct {
		name           string
		to, from       wgtypes.Key
		forHub, opened bool
	}{
		{"of the configured peer", hubKey, peerKey, true, true},
		{"of a stranger", hubKey, newKey(t), true, false},
		{"to another device", newKey(t), peerKey, false, false},
	} {
		raw, err := newInitiator(tt.to.PublicKey()).write(tt.from, 77)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) != device.MessageInitiationSize || macs.CheckMAC1(raw) != tt.forHub {
			t.Errorf("%s: %d bytes, mac1 right: %t", tt.name, len(raw), !tt.forHub)
		}
		var msg device.MessageInitiation
		if err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, &msg); err != nil {
			t.Fatal(err)
		}
		peer := d.ConsumeMessageInitiation(&msg)
		if (peer != nil) != tt.opened || msg.Sender != 77 {
			t.Errorf("%s: opened as that of %v", tt.name, peer)
		}
		if tt.opened && peer != d.LookupPeer(device.NoisePublicKey(public)) {
			t.Errorf("%s: opened as that of %v", tt.name, peer)
		}
	}
}
