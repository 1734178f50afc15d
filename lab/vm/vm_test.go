package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/wgherald/wgherald/lab/internal/testreq"
	"github.com/wgherald/wgherald/pkg/events"
)

const (
	qemu = "qemu-system-x86_64"

	// limit bounds the guest, which takes less than a minute on a machine with nothing else to do.
	limit = 6 * time.Minute
	// tidying is what is left of the test's time, when that runs out, to end what was started and remove what was made.
	tidying = 5 * time.Second
	// prompt is how soon after its handshake a connection has to be known. It takes milliseconds, but on a machine that is busy with other tests the
	// guest may stand still for a while. A probe that heard no packets would look every 10 s at best, and with nobody connected every minute.
	prompt = 3 * time.Second
)

func TestKernelWireGuard(t *testing.T) {
	runtime.LockOSThread() // see command
	defer runtime.UnlockOSThread()
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-tidying))
		defer cancel()
	}
	k := findKernel(ctx, t)
	modules, err := k.load("wireguard", "veth")
	if err != nil {
		t.Fatal(err)
	}
	initrd := pack(build(ctx, t), modules)
	t.Logf("initramfs: %.1f MB, %d modules", float64(initrd.Len())/1e6, len(modules))

	began := time.Now()
	output := boot(ctx, t, k.image, initrd)
	t.Logf("guest: %.1f s", time.Since(began).Seconds())
	defer func() {
		if t.Failed() {
			t.Logf("the guest said:\n%s", output)
		}
	}()
	check(t, output)
}

func findKernel(ctx context.Context, t *testing.T) kernel {
	t.Helper()
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		testreq.Skip(t, testreq.VM, "the guest's programs are built for linux/amd64 only")
	}
	if _, err := exec.LookPath(qemu); err != nil {
		testreq.Skip(t, testreq.VM, err.Error())
	}
	dir := os.Getenv(kernelEnv)
	if dir == "" {
		var err error
		if dir, err = fetchKernel(ctx); err != nil {
			testreq.Skip(t, testreq.VM, fmt.Sprintf("%s is not set, and no kernel can be fetched: %v", kernelEnv, err))
		}
	}
	k, err := openKernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// build compiles the guest's programs as they are shipped.
func build(ctx context.Context, t *testing.T) map[string][]byte {
	t.Helper()
	dir, err := os.MkdirTemp("", "wgherald-vm-*") // and not t.TempDir, which a test that is killed while the guest runs would leave
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	programs := map[string][]byte{}
	for name, source := range map[string]string{"init": "guest", "probe": "../../services/probe", "notifier": "../../services/notifier"} {
		file := filepath.Join(dir, name)
		c := command(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, ".")
		c.Dir = source
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+dir)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", source, err, out)
		}
		if programs[name], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return programs
}

// boot runs the guest to its end and returns what came over the serial line.
func boot(ctx context.Context, t *testing.T, image string, initrd *initramfs) string {
	t.Helper()
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	memory := os.NewFile(uintptr(fd), "initrd")
	defer memory.Close()
	if _, err := initrd.WriteTo(memory); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := command(ctx, qemu, "-accel", "tcg", "-m", "512", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", image, "-initrd", "/proc/self/fd/3", "-append", "console=ttyS0 quiet panic=-1")
	c.ExtraFiles = []*os.File{memory}
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	if err := c.Run(); err != nil {
		t.Errorf("%s: %v, %v", qemu, err, context.Cause(ctx))
	}
	return strings.ReplaceAll(output.String(), "\r", "")
}

// check compares what the guest told with the story.
func check(t *testing.T, output string) {
	t.Helper()
	var (
		names map[string]string
		ring  events.Keyring
		told  []Told
		ended bool
	)
	for text := range strings.Lines(output) {
		text, ok := strings.CutPrefix(text, Prefix)
		if !ok {
			continue
		}
		var l Line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("line %q: %v", text, err)
		}
		switch {
		case l.Names != nil:
			names = l.Names
		case l.Keyring != "":
			var err error
			if ring, err = events.ParseKeyring(l.Keyring); err != nil {
				t.Fatal(err)
			}
		case l.Event != nil:
			e, err := events.Verify(l.Event, l.Signature, ring)
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, Tell(e, names))
			checkData(t, e)
		case l.Figure != "":
			t.Log(l.Figure)
		case l.End:
			ended = true
		}
	}
	var want []Told
	for _, s := range Story {
		want = append(want, s.Told...)
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("events differ from the story (-want +got):\n%s", diff)
	}
	if !ended {
		t.Error("the story did not come to its end")
	}
}

// checkData checks what Tell leaves out.
func checkData(t *testing.T, e *events.Event) {
	t.Helper()
	if e.Common().Inferred && e.Type != events.InterfaceUp { // of which Tell says it
		t.Errorf("%s is inferred", e.Type)
	}
	switch d := e.Data.(type) {
	case *events.Connected:
		// What was sent may be the answer to the handshake alone, which a look may have found earlier: see events.Session.
		if d.Session.RxBytes == 0 || d.Session.Resumed {
			t.Errorf("connected with session %+v, want received bytes and a session that is new", d.Session)
		}
		after := d.DetectedAt.Sub(d.Session.StartedAt)
		t.Logf("connection detected %v after the handshake", after)
		if after < 0 || after > prompt {
			t.Errorf("connection detected %v after the handshake, want 0 to %v", after, prompt)
		}
	case *events.Stalled:
		if d.Attempts < 3 {
			t.Errorf("stalled after %d attempts, want 3", d.Attempts)
		}
	}
}
