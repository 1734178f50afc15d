// Package vm tests the services against WireGuard in the Linux kernel. The machine's own kernel need not have it: the test boots Debian's in qemu, in software,
// and so needs neither root nor KVM. The other tests run userspace WireGuard, which moves its handshake time, counts its bytes and keeps its
// endpoints by other code.
//
//	namespace "hub": broker, notifier, probe           namespace "alice"                             namespace "bob"
//	wg0 10.9.0.1 ─ alice 203.0.113.1  ═══ veth pair ═══  eth0 203.0.113.11 ─ wg0 10.9.0.2
//	                     198.51.100.1                         (198.51.100.11 after roaming)
//	             └ bob   192.0.2.1    ══════════════════════ veth pair ════════════════════════════  eth0 192.0.2.12 ─ wg0 10.9.0.3
//
// The guest has no disk and no network: its first program (guest), the services and a few kernel modules are in its memory from the start, and it speaks to the
// test over the serial line. Story is what is acted out there and what has to be told of it; the test compares the two.
//
// The kernel is a Debian package (linux-image-…), unpacked and not installed. WGHERALD_VM_KERNEL names a directory in which one is. Without it the test takes
// what is in wgherald/vm below the user's cache directory, and if nothing is, fetches the package there (27 MB, 106 MB unpacked) with apt-get download and
// dpkg-deb. What was fetched serves until somebody deletes it.
package vm
