package app

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/wgherald/wgherald/services/probe/internal/config"
	"github.com/wgherald/wgherald/services/probe/internal/privilege"
	"github.com/wgherald/wgherald/services/probe/internal/wgstate"
)

var (
	// resolver are the files that Go's resolver looks at again and again (package net, dnsconfig_unix.go, hosts.go, conf.go).
	resolver = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}
	// roots are where the distributions keep the certificates of public authorities (crypto/x509, root_linux.go), and where the links in there lead.
	roots = []string{
		"/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/cacert.pem",
		"/etc/pki/ca-trust/extracted", "/etc/ca-certificates/extracted", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
	}
)

// files are those that the probe opens while it runs.
func files(cfg config.Config) privilege.Files {
	f := privilege.Files{State: cfg.State, Sockets: wgstate.SocketDir, Public: roots}
	for _, path := range slices.Concat(cfg.Names, []string{cfg.NATS.CredsFile, cfg.NATS.CAFile, cfg.NATS.CertFile, cfg.NATS.KeyFile, os.Getenv("SSL_CERT_FILE")}) {
		if path != "" {
			f.Again = append(f.Again, path)
		}
	}
	for dir := range strings.SplitSeq(os.Getenv("SSL_CERT_DIR"), ":") {
		if dir != "" {
			f.Public = append(f.Public, dir)
		}
	}
	// Who renews /etc/resolv.conf renames it, and to allow for that is to have all of /etc read: only where a name has to be resolved.
	if namesBroker(cfg.NATS.URL) {
		f.Again = append(f.Again, resolver...)
	} else {
		f.Public = append(f.Public, resolver...)
	}
	if cfg.Metrics.Network != "" {
		f.Public = append(f.Public, "/proc") // the process's own numbers are there; what is secret of others needs more rights
	}
	return f
}

// namesBroker reports whether the address of any broker is a name.
func namesBroker(urls string) bool {
	for item := range strings.SplitSeq(urls, ",") {
		u, err := url.Parse(strings.TrimSpace(item))
		if err != nil {
			continue
		}
		if _, err := netip.ParseAddr(u.Hostname()); err != nil && u.Hostname() != "localhost" {
			return true
		}
	}
	return false
}

// stateRemedy tells what to do about a state directory that cannot be used.
func stateRemedy(dir string, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("the probe runs as user %d, to whom the directory in PROBE_STATE and all in it must belong: chown -R %[1]d %s", os.Geteuid(), dir)
	case errors.Is(err, syscall.EROFS):
		return "mount a volume there that can be written, or name another directory in PROBE_STATE"
	default:
		return "PROBE_STATE names the directory"
	}
}
