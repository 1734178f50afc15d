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
	msgs, err := getLinks()
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

// getLinks asks over a socket of its own: after an answer that went wrong half way, the rest of it would be taken for the next one.
func getLinks() ([]netlink.Message, error) {
	body, err := (&rtnetlink.LinkMessage{}).MarshalBinary()
	if err != nil {
		return nil, err
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
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

// linkSocket asks about single interfaces of the network namespace in which it was opened, by ioctl (netdevice(7)): every reading of a device asks,
// and rtnetlink, with a socket of its own for each question, costs many times as much.
type linkSocket struct{ f *os.File }

func openLinkSocket() (linkSocket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return linkSocket{}, os.NewSyscallError("socket", err)
	}
	return linkSocket{os.NewFile(uintptr(fd), "netdevice")}, nil
}

// get returns the interface with the given index, without its Kind, or an error that is os.ErrNotExist.
func (s linkSocket) get(ifindex int) (Link, error) {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return Link{}, err
	}
	req, err := unix.NewIfreq("")
	if err != nil {
		return Link{}, err
	}
	req.SetUint32(uint32(ifindex))
	var asked error
	err = raw.Control(func(fd uintptr) {
		// The first ioctl sets the name that the second asks for. A name that another interface takes between them brings its flags, once: Watch tells.
		for _, what := range []uint{unix.SIOCGIFNAME, unix.SIOCGIFFLAGS} {
			if asked = unix.IoctlIfreq(int(fd), what, req); asked != nil {
				return
			}
		}
	})
	switch {
	case err != nil:
		return Link{}, err
	case errors.Is(asked, unix.ENODEV):
		return Link{}, os.ErrNotExist
	case asked != nil:
		return Link{}, fmt.Errorf("get interface %d: %w", ifindex, asked)
	}
	return Link{Name: req.Name(), Ifindex: ifindex, Up: req.Uint16()&unix.IFF_UP != 0}, nil
}
