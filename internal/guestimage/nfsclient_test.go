package guestimage

import (
	"strings"
	"testing"
	"time"

	"lifeboat/internal/qemu"
)

func TestNFSClientBoots(t *testing.T) {
	ctx := testContext(t, 3*time.Minute)
	m, shell, err := StartNFSClient(ctx, cacheDir(t), qemu.TCG, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out, err := shell.Output(ctx, "cat /proc/filesystems; ip addr show eth0; agent files /tmp && echo fine")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nfs\n", "10.0.2.15/24", "fine"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in what the guest said:\n%s", want, out)
		}
	}
}
