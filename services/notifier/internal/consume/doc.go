// Package consume delivers the events of the stream to one hook: every event at least once, in order per partition key, over retries, crashes and
// changes of owner.
//
// The place in the stream lives in JetStream, in one durable consumer for each hook that takes all events; filters act here. Of several notifiers
// one owns a hook at a time: the server pins it (PriorityPolicyPinned) and the others stand by with a pull request that waits.
//
// All state of a hook belongs to one goroutine, session.run. Around it one goroutine pulls and reads messages (puller), as many as the hook's
// concurrency send, and short ones bury.
//
//	puller ──arrival──► session ──work──► attempt ──outcome──► session ──► acknowledge, or bury ──closed──► session
//
// A hook that fails five times in a row is broken (retry.Breaker): no more is pulled and one event at a time is tried, at growing intervals, until one is
// accepted; the backlog waits in the stream, see session.pull. What a Policy asks for besides acts before the attempts: the rate and the order in
// session.dispatch, the hold of disconnections in flap.go. What the stream dropped in the meantime is noticed in audit.go.
//
// A message is held un-acked, and kept so by InProgress, until its delivery or its dead letter is certain. Order survives because nothing is
// delivered while a message that belongs before it may still be missing: when the owner changes, or when a hole in the consumer's own numbering
// shows that a delivery was lost on the way, the session recovers first, see session.recover.
package consume
