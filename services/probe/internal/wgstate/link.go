package wgstate

import (
	"errors"
	"fmt"
	"os"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Link kinds (IFLA_INFO_KIND) that may be WireGuard.
const (
	kindWireGuard = "wireguard" // drivers/net/wireguard/device.c
	kindTUN       = "tun"       // drivers/net/tun.c: what every userspace implementation on Linux stands on
)

// rtLink is an interface as rtnetlink describes it. The name and the flags of Link are set, its Kind is not.
type rtLink struct {
	Link
	kind string
}

// listLinks returns the interfaces of this network namespace that may be WireGuard. An interface that cannot be decoded is one error and
// does not hide the others.
func listLinks() ([]rtLink, []error) {
	msgs, err := getLinks(rtnetlink.LinkMessage{}, netlink.Dump)
	if err != nil {
		return nil, []error{fmt.Errorf("list interfaces: %w", err)}
	}
	var links []rtLink
	var errs []error
	for _, m := range msgs {
		l, err := decodeLink(m)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("list interfaces: %w", err))
		case l.kind == kindWireGuard || l.kind == kindTUN:
			links = append(links, l)
		}
	}
	return links, errs
}

// getLink returns the interface with the given index, or an error that is os.ErrNotExist.
func getLink(ifindex int) (rtLink, error) {
	msgs, err := getLinks(rtnetlink.LinkMessage{Index: uint32(ifindex)}, 0)
	switch {
	case errors.Is(err, unix.ENODEV):
		return rtLink{}, os.ErrNotExist
	case err != nil:
		return rtLink{}, fmt.Errorf("get interface %d: %w", ifindex, err)
	case len(msgs) != 1:
		return rtLink{}, fmt.Errorf("get interface %d: the kernel answered with %d messages", ifindex, len(msgs))
	}
	return decodeLink(msgs[0])
}

// getLinks asks over a socket of its own: after an answer that went wrong half way, the rest of it would be taken for the next one.
func getLinks(req rtnetlink.LinkMessage, flags netlink.HeaderFlags) ([]netlink.Message, error) {
	body, err := req.MarshalBinary()
	if err != nil {
		return nil, err
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | flags},
		Data:   body,
	})
}

func decodeLink(m netlink.Message) (rtLink, error) {
	var msg rtnetlink.LinkMessage
	if err := msg.UnmarshalBinary(m.Data); err != nil {
		return rtLink{}, fmt.Errorf("decode a link message: %w", err)
	}
	l := rtLink{Link: Link{Ifindex: int(msg.Index), Up: msg.Flags&unix.IFF_UP != 0}}
	if a := msg.Attributes; a != nil {
		l.Name = a.Name
		if a.Info != nil {
			l.kind = a.Info.Kind
		}
	}
	return l, nil
}
