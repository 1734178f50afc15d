// Package broker is the notifier's side of NATS: who may log in (identities), what each may do (the rendered nats-server configuration), which
// streams there are (Provision), the broker inside the notifier (StartEmbedded), and the connection a service makes for itself (Connect).
//
// It consumes no event and delivers none. The streams and permissions are in one place because they only hold together: an identity that can do
// more than its row in the permission table below can undo what the streams promise.
//
// # Accounts
//
// WG owns the truth (WG_EVENTS, KV_WG_PEERS). Each probe has an account of its own, without JetStream, that reaches WG by the subjects it may publish and nothing
// else. HOOKS holds a mirror of both streams and the streams of the notifier. READERS holds mirrors for other services, and imports the live subjects from
// the probes' accounts. A mirror has no subjects: nothing can be published into it.
//
// Permissions alone keep nobody in. The server answers to the reply subject that a client names, in the client's account, and asks nobody whether the client might
// publish there: within WG, the ack of a publish could be stored as another node's state. So what is to be kept apart is in accounts of its own. An answer that
// crosses accounts comes back to the reply subject in the account of who asked, and goes into no second account under another subject than its own.
//
// Where an identity must share an account with streams, as a notifier does with its mirror and a reader with its own, the reply subject could be a request to
// JetStream, such as $JS.API.STREAM.DELETE.X: an answer without a body, as that of a pull that finds nothing, would delete the stream (measured with 2.15). All
// requests to JetStream go through the system account, and its mapping leads those that delete or purge a stream nowhere, whoever sends them. Others, such as to
// delete one message or to change a stream, need a body that no answer has: the server refuses fields that it does not know, and a stored message keeps its own
// subject when a consumer delivers it. A direct get does not keep it, so only a reader has direct gets: with a probe's key too, which chooses what is read, it could
// have messages of its own mirrors deleted.
//
// # Embedded mode
//
// The broker inside the notifier has the same accounts, identities and permissions, but no boundary between notifier and bus: they are one
// process, which holds every identity's key in its state directory. It keeps out every other user of the machine and separates the probe from the
// notifier in the direction that matters (the probe's key opens nothing but the probe's account). An operator who wants the notifier held to its own
// identity runs nats-server as a process of its own.
package broker
