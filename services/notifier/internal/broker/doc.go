// Package broker is the notifier's side of NATS: who may log in (identities), what each may do (the rendered nats-server configuration), which
// streams there are (Provision), the broker inside the notifier (StartEmbedded), and the connection a service makes for itself (Connect).
//
// It consumes no event and delivers none. The streams and permissions are in one place because they only hold together: an identity that can do
// more than its row in the permission table below can undo what the streams promise.
//
// # Accounts
//
// WG owns the truth (WG_EVENTS, KV_WG_PEERS) and the probes live there. HOOKS holds a mirror of both and the streams of the notifier. READERS
// imports the live subjects. The boundary between WG and HOOKS is what keeps a notifier from forging an event: permissions inside one account
// do not, because the server itself publishes to the reply subject of a pull request and to the deliver subject of a consumer. A mirror has no
// subjects, so nothing can be published into it.
//
// Between probes there is no such boundary. A probe may publish as any node, which the signature of an event reveals. And the ack of a publish goes to the
// reply subject that the publisher names, so a probe can put an ack, though no text of its own choice, in the place of another node's state: readers of the bucket
// must take what does not decode for absent.
//
// Within HOOKS there is none between a notifier and the streams of that account. Whoever may pull, or get a message directly, may name
// $JS.API.STREAM.DELETE.X as the subject of the reply: the server itself then asks for the deletion, and the account's own permissions do not hold it back
// (measured with 2.15). A notifier that was broken into can delete what its own account holds, never the truth. The answers of the API have no such way, so
// the operator, a person with a key, reads by them alone: no consumer, no direct get. Where they are put among dead letters or attempts, readers skip them.
//
// # Embedded mode
//
// The broker inside the notifier has the same accounts, identities and permissions, but no boundary between notifier and bus: they are one
// process, which holds every identity's key in its state directory. It keeps out every other user of the machine and separates the probe from the
// notifier in the direction that matters (the probe's key opens nothing in HOOKS). An operator who wants the notifier held to its own
// identity runs nats-server as a process of its own.
package broker
