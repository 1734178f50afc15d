package vm

import (
	"bytes"
	"fmt"
	"syscall"
)

// initramfs is an archive of files that the kernel unpacks into its memory: cpio in the form "newc" (Linux, Documentation/driver-api/early-userspace).
type initramfs struct {
	bytes.Buffer
	entries int
}

// add appends a file, a directory or a symbolic link, whose content is where it leads. Its directory must be there already.
func (a *initramfs) add(name string, mode uint32, content []byte) {
	a.entries++ // is the inode, so that no two are links of each other
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.entries, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.Write(content)
	a.pad()
}

func (a *initramfs) pad() {
	a.Write(make([]byte, -a.Len()&3))
}

// end completes the archive.
func (a *initramfs) end() { a.add("TRAILER!!!", 0, nil) }

// pack makes the guest's files.
func pack(programs map[string][]byte, modules []module) *initramfs {
	a := &initramfs{}
	for _, dir := range []string{"dev", "modules", "proc", "run", "sys", "var"} {
		a.add(dir, syscall.S_IFDIR|0o755, nil)
	}
	a.add("var/run", syscall.S_IFLNK|0o777, []byte("/run"))
	for i, m := range modules {
		a.add(fmt.Sprintf("modules/%02d-%s.ko", i, m.name), syscall.S_IFREG|0o644, m.content)
	}
	for name, content := range programs {
		a.add(name, syscall.S_IFREG|0o755, content)
	}
	a.end()
	return a
}
