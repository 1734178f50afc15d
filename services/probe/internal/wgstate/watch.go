package wgstate

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// socketPoll is how often the directory of sockets is looked at.
	socketPoll = time.Second

	// redialPause keeps a socket that fails at once from being dialed in a hot loop.
	redialPause = 100 * time.Millisecond
)

// Watch calls notify once it watches, and then whenever a WireGuard device or its up flag may have changed, until ctx ends. It returns nil
// then, and an error only when the kernel refuses a netlink socket.
//
// Whoever calls Devices after each notify misses nothing. There are calls without a change, and of several changes one may speak
// for all: putting them together is the caller's affair. Calls come from two goroutines, so notify must be safe for that, and must not
// block.
//
// Interfaces are watched by rtnetlink, at no cost while nothing happens. The directory of sockets is listed once a second instead of
// through inotify: it may not exist yet, or be made again, so that its parent would have to be watched too; and a device's going, which is what
// matters at once, shows in its interface.
func (c *Client) Watch(ctx context.Context, notify func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.watchLinks(ctx, notify) })
	g.Go(func() error { return c.watchSockets(ctx, notify) })
	return g.Wait()
}

// watchLinks dials again after every failed receive, of which a full buffer (ENOBUFS) is the one to expect.
func (c *Client) watchLinks(ctx context.Context, notify func()) error {
	for {
		conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK})
		if err != nil {
			return fmt.Errorf("watch interfaces: %w", err)
		}
		notify() // after the dial, so that no change falls between
		err = receiveLinks(ctx, conn, notify)
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil
		}
		c.log.Warn("watching interfaces was interrupted, starting again", "error", err)

		select {
		case <-ctx.Done():
			return nil
		case <-time.After(redialPause):
		}
	}
}

// receiveLinks calls notify for each message about an interface that may be WireGuard, until receiving fails or ctx ends.
func receiveLinks(ctx context.Context, conn *netlink.Conn, notify func()) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		msgs, err := conn.Receive()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(msgs, concernsWireGuard) {
			notify()
		}
	}
}

// concernsWireGuard spares hosts where other interfaces come and go all the time; what cannot be decoded counts.
func concernsWireGuard(m netlink.Message) bool {
	l, err := decodeLink(m)
	return err != nil || l.kind == kindWireGuard || l.kind == kindTUN
}

// watchSockets compares with what Devices has listed, not with what it has seen itself: a socket that comes and goes between two looks may
// have been listed all the same.
func (c *Client) watchSockets(ctx context.Context, notify func()) error {
	tick := time.NewTicker(socketPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, _ := listSockets(c.dir) // Devices reports a directory that cannot be read
		c.mu.Lock()
		changed := !slices.Equal(c.listed, now)
		c.mu.Unlock()
		if changed {
			notify()
		}
	}
}
