// Package kube tests deploy/kube: what it says against deploy/compose.yaml and the services' own help, on every machine; and that podman plays it, where podman
// runs.
//
//	namespace "hub", its own process ids                                          namespace "alice"
//	sink 203.0.113.1   probe (host network) ─ wg0 10.9.0.1 ─ eth0 203.0.113.1 ═══ eth0 203.0.113.11 ─ wg0 10.9.0.2
//	   └─ podman's bridge ─┬─ notifier
//	                       └─ nats, also at 127.0.0.1:4222
//
// podman has a store in a temporary directory, the hub's network as its host's, and a copy of /etc, so nothing of the machine's own podman is read or changed. The
// images of the services come out of their Dockerfiles; no registry is asked: lab/internal/standin makes what they are built from, and NATS.
package kube
