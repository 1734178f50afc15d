// Package e2e tests both services together on real traffic: real WireGuard devices in namespaces of their own, the built binaries, a real broker and a
// real HTTP receiver. Nothing is shortened for a test: where the protocol waits 180 s, so does the test.
//
// Every test has a laboratory of its own. At its end the whole stream is read and compared with what the receiver got (story.end), so a test proves that
// exactly its events were told, and not only that those it waited for were among them.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/wgherald/wgherald/lab/internal/netns"
	"github.com/wgherald/wgherald/lab/internal/runner"
)

var (
	bins        *runner.Binaries
	unavailable error // why nothing can be tested here
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if unavailable = netns.Available(); unavailable == nil {
		var err error
		if bins, err = runner.Build(context.Background(), runner.NATSServer); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer bins.Close()
	}
	// These tests mostly wait. Go's default, one for each core, would have them wait one after the other.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", "8"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}
