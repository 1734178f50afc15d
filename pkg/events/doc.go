// Package events is the contract of wgherald: what a probe publishes about WireGuard peers, and how any other service reads it.
//
// An event is a CloudEvents 1.0 message in structured JSON. It travels on the NATS subject that equals its type; subjects have exactly three
// tokens, so wg.peer.* catches every peer event, wg.interface.* every interface event and wg.probe.* the watcher's own.
//
//	wg.peer.connected      a session was confirmed after none
//	wg.peer.disconnected   no session any more
//	wg.peer.roamed         the endpoint changed while connected
//	wg.peer.stalled        a configured peer keeps knocking and no session comes about
//	wg.peer.rejected       a handshake by the proven holder of a key that is not configured here
//	wg.peer.added          the peer was configured
//	wg.peer.removed        the peer is no longer configured
//	wg.peer.changed        allowed IPs, keepalive or preshared key changed
//	wg.interface.up        a WireGuard interface appeared
//	wg.interface.down      a WireGuard interface went
//	wg.interface.changed   a WireGuard interface got another port or key
//	wg.probe.started       a probe began to watch
//	wg.probe.stopped       a probe ended in good order
//
// # What a reader may rely on
//
// Delivery is at least once: deduplicate on Event.ID. Each source counts its events without holes (Event.Sequence), so whoever reads a source
// unfiltered can prove that nothing is missing; arrival may be permuted among different peers, never within one partition key. Verify binds an
// event to its node by the probe's Ed25519 signature: a broker credential alone allows a probe to publish for any node.
//
// WireGuard has no goodbye message. Event.Time is when a fact happened as far as the protocol lets anyone know, Common.DetectedAt when the probe
// knew, and Common.Inferred says that the probe was blind at the time and found the change afterwards.
//
// # What this package is not
//
// It does no I/O, reads no clock, and imports the standard library alone, so that importing it costs a subscriber nothing. It does not connect to
// NATS: any client does.
package events
