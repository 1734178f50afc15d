package publish

import (
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wgherald/wgherald/pkg/events"
)

const (
	// clashGrace is how long after the start acks of others are expected: those of an earlier run that are still under way.
	clashGrace = 2 * ackTimeout
	// clashInterval is how often one is told of.
	clashInterval = time.Hour
)

// inboxes are where acks come back to: below the prefix that the broker's permissions name, those of a node, and there those of a process. So a probe can
// see that another one publishes under the same node's name, which nothing else tells it: the broker stores the events of both, readers take them
// for one story, and peers' states are overwritten in turn.
type inboxes struct {
	node string // ends in a dot
	own  string
}

func newInboxes(node string) inboxes {
	token, _, _ := strings.Cut(events.StateKey(node, "", events.Key{}), ".") // it may hold bytes that no subject can
	n := InboxPrefix + "." + token + "."
	return inboxes{node: n, own: n + rand.Text()}
}

// clash counts the acks of other processes of the node, and now and then logs that there is one.
type clash struct {
	inboxes
	count func()
	log   *slog.Logger

	mu   sync.Mutex
	from time.Time // when acks of others begin to matter
	next time.Time // when it may be told again
}

// watch has each ack for the node noted. The connection need not be up.
func (c *clash) watch(nc *nats.Conn) error {
	_, err := nc.Subscribe(c.node+">", func(m *nats.Msg) { c.note(m.Subject, time.Now()) })
	return err
}

func (c *clash) note(subject string, now time.Time) {
	if strings.HasPrefix(subject, c.own+".") {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.from) {
		return
	}
	c.count()
	if now.Before(c.next) {
		return
	}
	c.next = now.Add(clashInterval)
	c.log.Warn("another probe publishes as this node: give each host a PROBE_NODE of its own, and stop a probe that runs twice")
}
