package microvm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs/guestfstest"
)

func options(t *testing.T) Options {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "lifeboat-agent")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "lifeboat/cmd/lifeboat-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return Options{CacheDir: filepath.Join(base, "lifeboat"), Agent: agent, Progress: func(s string) { t.Log(s) }}
}

func TestMount(t *testing.T) {
	o := options(t)
	image := guestfstest.NewImage(t, 256<<20)
	guestfstest.Run(t, "mkfs.btrfs", "-q", "-f", image)
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	began := time.Now()
	m, err := start(t.Context(), Volume{Type: "btrfs", Disks: []disk.Image{img}}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v %+v", time.Since(began), m.reply)
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
