package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Data is what an event says beyond its envelope: one of the pointer types of this file, one for each Type, and *Unknown.
//
//	switch d := ev.Data.(type) {
//	case *events.Connected:
//		fmt.Println(d.Peer.Name, "came from", d.Peer.Endpoint)
//	case *events.Disconnected:
//		fmt.Println(d.Peer.Name, "left:", d.Reason)
//	}
type Data interface {
	// eventType returns the type that carries this data.
	eventType() Type
	// base returns the common part.
	base() *Common
	// about returns the peer's key for peer events, and the zero key otherwise.
	about() Key
	// validate checks what is beyond the common part.
	validate() error
}

// Common is the part that every event has.
type Common struct {
	// Node names the host of the probe.
	Node string `json:"node"`
	// Interface names the WireGuard interface; empty for probe events.
	Interface string `json:"interface,omitempty"`
	// DetectedAt is when the probe knew. Event.Time is when it happened.
	DetectedAt time.Time `json:"detectedAt"`
	// Inferred is true when the probe was blind at the time and found the change afterwards.
	Inferred bool `json:"inferred"`
}

func (c *Common) base() *Common { return c }

func (c *Common) about() Key { return Key{} }

// Peer is a configured peer of an interface.
type Peer struct {
	PublicKey Key      `json:"publicKey"`
	Name      string   `json:"name,omitempty"` // from the probe's name files
	Tags      []string `json:"tags,omitempty"` // from the probe's name files
	// Endpoint is the peer's outer address and port. It is personal location data: a probe may be told to publish only the network prefix
	// ("203.0.113.0/24") or nothing.
	Endpoint   string         `json:"endpoint,omitempty"`
	AllowedIPs []netip.Prefix `json:"allowedIPs,omitempty"`
	// MoreAllowedIPs counts those left out of a list that is too long for an event.
	MoreAllowedIPs   int  `json:"moreAllowedIPs,omitempty"`
	KeepaliveSeconds int  `json:"keepaliveSeconds,omitempty"` // our persistent keepalive towards the peer; 0 is off
	PresharedKey     bool `json:"presharedKey,omitempty"`     // whether one is set; the key itself never travels
}

func (p *Peer) validate() error {
	if p.PublicKey.IsZero() {
		return errors.New("peer.publicKey is missing")
	}
	if err := validateEndpoint(p.Endpoint); err != nil {
		return fmt.Errorf("peer.endpoint: %w", err)
	}
	if p.KeepaliveSeconds < 0 || p.KeepaliveSeconds > 65535 {
		return fmt.Errorf("peer.keepaliveSeconds is %d, want 0 to 65535", p.KeepaliveSeconds)
	}
	return nil
}

// Session is the time from a confirmed handshake until its keys are past use without successor.
type Session struct {
	StartedAt       time.Time `json:"startedAt"`
	LastHandshakeAt time.Time `json:"lastHandshakeAt"`
	// LastSeen encloses the last sign of life: not before After, not after Before.
	LastSeen Interval `json:"lastSeen"`
	// RxBytes and TxBytes are what the device counted from the peer and to it in this session, in messages of WireGuard, handshakes among them. The initiation that
	// began it, 148 bytes, may be in it or not; of a session that the probe's first look found, it is what came after that look.
	RxBytes         uint64 `json:"rxBytes"`
	TxBytes         uint64 `json:"txBytes"`
	DurationSeconds int64  `json:"durationSeconds"`
	// Resumed is true when the peer came back inside the session that it was thought to have left.
	Resumed bool `json:"resumed,omitempty"`
}

func (s *Session) validate() error {
	if s.StartedAt.IsZero() || s.LastHandshakeAt.IsZero() {
		return errors.New("session.startedAt or session.lastHandshakeAt is missing")
	}
	if s.LastSeen.Before.Before(s.LastSeen.After) {
		return errors.New("session.lastSeen ends before it begins")
	}
	if s.DurationSeconds < 0 {
		return fmt.Errorf("session.durationSeconds is %d, want 0 or more", s.DurationSeconds)
	}
	return nil
}

// Interval is a span of time in which something happened that was not seen happening.
type Interval struct {
	After  time.Time `json:"after"`
	Before time.Time `json:"before"`
}

// Device is a WireGuard interface as others see it.
type Device struct {
	PublicKey  Key `json:"publicKey,omitzero"` // missing when the interface has no key yet
	ListenPort int `json:"listenPort"`         // UDP
}

func (d *Device) validate() error {
	if d.ListenPort < 0 || d.ListenPort > 65535 {
		return fmt.Errorf("device.listenPort is %d, want 0 to 65535", d.ListenPort)
	}
	return nil
}

// Reason says how the probe knows that a peer is gone.
type Reason string

// The reasons of a disconnection.
const (
	Expired         Reason = "expired"        // the keys are past REJECT_AFTER_TIME (180 s): certain
	Silent          Reason = "silent"         // several signs of life at a learned cadence are missing
	Unreachable     Reason = "unreachable"    // our own handshakes stay unanswered
	PeerWasRemoved  Reason = "removed"        // the peer was taken out of the configuration
	InterfaceIsDown Reason = "interface_down" // the interface went, and every session with it
)

func (r Reason) validate() error {
	switch r {
	case Expired, Silent, Unreachable, PeerWasRemoved, InterfaceIsDown:
		return nil
	}
	return fmt.Errorf("reason is %.40q, want expired, silent, unreachable, removed or interface_down", r)
}

// Connected is the data of PeerConnected.
type Connected struct {
	Common
	Peer    Peer    `json:"peer"`
	Session Session `json:"session"`
}

func (*Connected) eventType() Type { return PeerConnected }
func (d *Connected) about() Key    { return d.Peer.PublicKey }
func (d *Connected) validate() error {
	return errors.Join(d.Peer.validate(), d.Session.validate())
}

// Cause names what ended many sessions at once, so that a thousand disconnections are one story. An interface that went down is no Cause but a Reason.
type Cause string

// The causes of disconnections beyond the peer itself.
const (
	CauseInterfaceChanged Cause = "interface_changed" // the interface got another key or port after the peer's last handshake: see InterfaceChanged
	CauseHostSuspended    Cause = "host_suspended"    // the host of the probe slept while the session ran out
)

// Disconnected is the data of PeerDisconnected. Session holds the totals.
type Disconnected struct {
	Common
	Peer    Peer    `json:"peer"`
	Session Session `json:"session"`
	Reason  Reason  `json:"reason"`
	Cause   Cause   `json:"cause,omitempty"` // missing where the peer itself went
}

func (*Disconnected) eventType() Type { return PeerDisconnected }
func (d *Disconnected) about() Key    { return d.Peer.PublicKey }
func (d *Disconnected) validate() error {
	err := errors.Join(d.Peer.validate(), d.Session.validate(), d.Reason.validate())
	switch d.Cause {
	case "", CauseInterfaceChanged, CauseHostSuspended:
	default:
		err = errors.Join(err, fmt.Errorf("cause is %.40q, want interface_changed, host_suspended or none", d.Cause))
	}
	return err
}

// Roamed is the data of PeerRoamed. From and To have the form of Peer.Endpoint; both are missing where the probe publishes no endpoints.
type Roamed struct {
	Common
	Peer    Peer    `json:"peer"`
	Session Session `json:"session"`
	From    string  `json:"from,omitempty"`
	To      string  `json:"to,omitempty"`
}

func (*Roamed) eventType() Type { return PeerRoamed }
func (d *Roamed) about() Key    { return d.Peer.PublicKey }
func (d *Roamed) validate() error {
	err := errors.Join(validateEndpoint(d.From), validateEndpoint(d.To))
	return errors.Join(d.Peer.validate(), d.Session.validate(), err)
}

// Stalled is the data of PeerStalled.
type Stalled struct {
	Common
	Peer     Peer      `json:"peer"`
	Attempts int       `json:"attempts"` // handshake initiations without a session, 1 or more
	Since    time.Time `json:"since"`    // the first of them
}

func (*Stalled) eventType() Type { return PeerStalled }
func (d *Stalled) about() Key    { return d.Peer.PublicKey }
func (d *Stalled) validate() error {
	err := d.Peer.validate()
	if d.Attempts < 1 {
		err = errors.Join(err, fmt.Errorf("attempts is %d, want 1 or more", d.Attempts))
	}
	if d.Since.IsZero() {
		err = errors.Join(err, errors.New("since is missing"))
	}
	return err
}

// Rejected is the data of PeerRejected. PublicKey is not configured here; its holder has proven to hold it.
type Rejected struct {
	Common
	PublicKey Key    `json:"publicKey"`
	Endpoint  string `json:"endpoint,omitempty"` // in the form of Peer.Endpoint
	Count     uint64 `json:"count"`              // attempts that this event stands for, 1 or more
	// Suppressed counts the events about other keys of this interface that were left out to bound the rate.
	Suppressed uint64 `json:"suppressed"`
}

func (*Rejected) eventType() Type { return PeerRejected }
func (d *Rejected) about() Key    { return d.PublicKey }
func (d *Rejected) validate() error {
	var errs []error
	if d.PublicKey.IsZero() {
		errs = append(errs, errors.New("publicKey is missing"))
	}
	if d.Count < 1 {
		errs = append(errs, errors.New("count is 0, want 1 or more"))
	}
	return errors.Join(append(errs, validateEndpoint(d.Endpoint))...)
}

// Added is the data of PeerAdded.
type Added struct {
	Common
	Peer Peer `json:"peer"`
}

func (*Added) eventType() Type   { return PeerAdded }
func (d *Added) about() Key      { return d.Peer.PublicKey }
func (d *Added) validate() error { return d.Peer.validate() }

// Removed is the data of PeerRemoved. Peer is the peer as it last was.
type Removed struct {
	Common
	Peer Peer `json:"peer"`
}

func (*Removed) eventType() Type   { return PeerRemoved }
func (d *Removed) about() Key      { return d.Peer.PublicKey }
func (d *Removed) validate() error { return d.Peer.validate() }

// Changed is the data of PeerChanged. Peer is the peer as it now is.
type Changed struct {
	Common
	Peer    Peer        `json:"peer"`
	Changes PeerChanges `json:"changes"`
}

func (*Changed) eventType() Type { return PeerChanged }
func (d *Changed) about() Key    { return d.Peer.PublicKey }
func (d *Changed) validate() error {
	err := d.Peer.validate()
	if d.Changes == (PeerChanges{}) {
		err = errors.Join(err, errors.New("changes names no change"))
	}
	switch d.Changes.PresharedKey {
	case "", PresharedKeySet, PresharedKeyUnset, PresharedKeyReplaced:
	default:
		err = errors.Join(err, fmt.Errorf("changes.presharedKey is %.40q, want set, unset or replaced", d.Changes.PresharedKey))
	}
	return err
}

// PeerChanges holds what changed; what did not is nil or empty.
type PeerChanges struct {
	AllowedIPs       *Change[[]netip.Prefix] `json:"allowedIPs,omitempty"`
	KeepaliveSeconds *Change[int]            `json:"keepaliveSeconds,omitempty"`
	PresharedKey     PresharedKeyChange      `json:"presharedKey,omitempty"`
}

// Change is a value before and after.
type Change[T any] struct {
	From T `json:"from"`
	To   T `json:"to"`
}

// PresharedKeyChange tells what happened to a preshared key without telling the key.
type PresharedKeyChange string

// What may happen to a preshared key.
const (
	PresharedKeySet      PresharedKeyChange = "set"
	PresharedKeyUnset    PresharedKeyChange = "unset"
	PresharedKeyReplaced PresharedKeyChange = "replaced"
)

// Up is the data of InterfaceUp.
type Up struct {
	Common
	Device Device `json:"device"`
	Peers  int    `json:"peers"` // configured peers
}

func (*Up) eventType() Type   { return InterfaceUp }
func (d *Up) validate() error { return d.Device.validate() }

// Down is the data of InterfaceDown.
type Down struct {
	Common
	Device Device     `json:"device"` // as it last was
	Reason DownReason `json:"reason"`
}

func (*Down) eventType() Type { return InterfaceDown }
func (d *Down) validate() error {
	switch d.Reason {
	case SetDown, Deleted, Recreated:
		return d.Device.validate()
	}
	return fmt.Errorf("reason is %.40q, want set_down, deleted or recreated", d.Reason)
}

// DownReason says how an interface went.
type DownReason string

// The ways an interface goes. A renamed interface is deleted under its old name and up under the new one.
const (
	SetDown   DownReason = "set_down"  // its administrative state is down (ip link set down)
	Deleted   DownReason = "deleted"   // it no longer exists, or is no WireGuard interface any more
	Recreated DownReason = "recreated" // it was replaced by a new one of the same name
)

// DeviceChanged is the data of InterfaceChanged. Device is the interface as it now is.
type DeviceChanged struct {
	Common
	Device  Device        `json:"device"`
	Changes DeviceChanges `json:"changes"`
}

func (*DeviceChanged) eventType() Type { return InterfaceChanged }
func (d *DeviceChanged) validate() error {
	if d.Changes == (DeviceChanges{}) {
		return errors.New("changes names no change")
	}
	return d.Device.validate()
}

// DeviceChanges holds what changed; what did not is nil.
type DeviceChanges struct {
	PublicKey  *Change[Key] `json:"publicKey,omitempty"`
	ListenPort *Change[int] `json:"listenPort,omitempty"`
}

// Started is the data of ProbeStarted.
type Started struct {
	Common
	Version   string `json:"version"`
	PublicKey string `json:"publicKey"` // the nkey ("U…") that verifies this probe's events
	// Trigger tells how the probe learns of handshakes.
	Trigger Trigger `json:"trigger"`
	// Interfaces are the globs of interface names that it watches; empty means all.
	Interfaces []string `json:"interfaces,omitempty"`
	// BlindSince is the last time that the previous run is known to have watched; missing on the first start.
	BlindSince   time.Time `json:"blindSince,omitzero"`
	BlindSeconds int64     `json:"blindSeconds"`
}

func (*Started) eventType() Type { return ProbeStarted }
func (d *Started) validate() error {
	switch d.Trigger {
	case TriggerPackets, TriggerSampling:
	default:
		return fmt.Errorf("trigger is %.40q, want packets or sampling", d.Trigger)
	}
	if d.BlindSeconds < 0 {
		return fmt.Errorf("blindSeconds is %d, want 0 or more", d.BlindSeconds)
	}
	_, err := ParsePublicKey(d.PublicKey)
	return err
}

// Trigger is a way to learn of handshakes.
type Trigger string

// The ways to learn of handshakes.
const (
	TriggerPackets  Trigger = "packets"  // a packet filter sees them: milliseconds
	TriggerSampling Trigger = "sampling" // the probe may not open packet sockets and asks every second
)

// Stopped is the data of ProbeStopped.
type Stopped struct {
	Common
	Version       string `json:"version"`
	UptimeSeconds int64  `json:"uptimeSeconds"`
}

func (*Stopped) eventType() Type { return ProbeStopped }
func (d *Stopped) validate() error {
	if d.UptimeSeconds < 0 {
		return fmt.Errorf("uptimeSeconds is %d, want 0 or more", d.UptimeSeconds)
	}
	return nil
}

// Unknown is the data of a type that is not in this version's catalogue: a newer probe published it. The common part and the peer, where the type
// has one, are readable; Raw holds all of it.
type Unknown struct {
	Common
	Type Type
	Peer *Peer // nil unless the data has a "peer"
	Raw  json.RawMessage

	key Key
}

func (d *Unknown) eventType() Type { return d.Type }
func (d *Unknown) about() Key      { return d.key }
func (d *Unknown) validate() error {
	if d.Peer != nil {
		return d.Peer.validate()
	}
	return nil
}

// MarshalJSON returns the data as it was received.
func (d *Unknown) MarshalJSON() ([]byte, error) { return d.Raw, nil }

// UnmarshalJSON keeps the data as it is and reads what is known of it.
func (d *Unknown) UnmarshalJSON(b []byte) error {
	var known struct {
		Common
		Peer      *Peer `json:"peer"`
		PublicKey *Key  `json:"publicKey"`
	}
	if err := json.Unmarshal(b, &known); err != nil {
		return err
	}
	d.Common, d.Peer, d.Raw = known.Common, known.Peer, append(json.RawMessage(nil), b...)
	switch {
	case known.Peer != nil:
		d.key = known.Peer.PublicKey
	case known.PublicKey != nil:
		d.key = *known.PublicKey
	}
	return nil
}

// newData returns the empty data of a type.
func newData(t Type) Data {
	switch t {
	case PeerConnected:
		return new(Connected)
	case PeerDisconnected:
		return new(Disconnected)
	case PeerRoamed:
		return new(Roamed)
	case PeerStalled:
		return new(Stalled)
	case PeerRejected:
		return new(Rejected)
	case PeerAdded:
		return new(Added)
	case PeerRemoved:
		return new(Removed)
	case PeerChanged:
		return new(Changed)
	case InterfaceUp:
		return new(Up)
	case InterfaceDown:
		return new(Down)
	case InterfaceChanged:
		return new(DeviceChanged)
	case ProbeStarted:
		return new(Started)
	case ProbeStopped:
		return new(Stopped)
	default:
		return &Unknown{Type: t}
	}
}

// validateEndpoint accepts "address:port", a network prefix, and nothing at all.
func validateEndpoint(s string) error {
	if s == "" {
		return nil
	}
	if _, err := netip.ParseAddrPort(s); err == nil {
		return nil
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return nil
	}
	return fmt.Errorf("endpoint %.80q is neither address:port nor a network prefix", s)
}
