package broker

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// TestRoomOnTheDisk: the server gives streams three quarters of what is free when it starts (its disk_avail.go), and refuses to make one whose limit is more than
// what is left of that. So a disk must be larger than the streams, and what tells how large must be true.
func TestRoomOnTheDisk(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	var reserved int64
	for _, specs := range [][]streamSpec{truth(), hookStreams(true), readerStreams()} {
		for _, s := range specs {
			var c jetstream.StreamConfig
			s.set(&c)
			reserved += max(c.MaxBytes, 0)
		}
	}
	free := float64(reserved) / 3 * 4
	err := explain(&jetstream.APIError{ErrorCode: errStorageExceeded}).Error()
	for _, want := range []string{fmt.Sprintf("reserve %.1f GiB", float64(reserved)/gib), fmt.Sprintf("%.1f GiB must be free", free/gib)} {
		if !strings.Contains(err, want) {
			t.Errorf("the advice is %q, want %q", err, want)
		}
	}

	text, readErr := os.ReadFile("../../../../deploy/kube/kubernetes.yaml")
	if readErr != nil {
		t.Fatal(readErr)
	}
	claim := regexp.MustCompile(`name: wgherald-nats-data\}\nspec: .*storage: (\d+)Gi`).FindSubmatch(text)
	if claim == nil {
		t.Fatal("kubernetes.yaml claims nothing for the broker's data")
	}
	var claimed float64
	if _, err := fmt.Sscan(string(claim[1]), &claimed); err != nil {
		t.Fatal(err)
	}
	if claimed*gib < free {
		t.Errorf("kubernetes.yaml claims %v GiB for the broker's data, and the streams need %.1f", claimed, free/gib)
	}
}
