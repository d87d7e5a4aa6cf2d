package appliance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// microVM builds the agent and returns options with it.
func microVM(t *testing.T) GuestOptions {
	t.Helper()
	guestfstest.NeedMount(t, "", "qemu-system-x86_64")
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
	var o GuestOptions
	o.MicroVM.Agent, o.MicroVM.CacheDir = agent, filepath.Join(base, "lifeboat")
	return o
}

// squashed is an image of a file system that no native reader knows.
func squashed(t *testing.T) string {
	t.Helper()
	guestfstest.NeedMount(t, "", "mksquashfs")
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "squashfs.raw")
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("squashed"), 0o644); err != nil {
		t.Fatal(err)
	}
	guestfstest.Run(t, "mksquashfs", dir, image, "-quiet", "-no-progress")
	fi, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, (fi.Size()+1<<20-1)&^(1<<20-1)); err != nil {
		t.Fatal(err)
	}
	return image
}

// TestMicroVMFallback: what no native reader knows the kernel in QEMU reads, and
// where it may not, that is said.
func TestMicroVMFallback(t *testing.T) {
	opts := microVM(t)
	repo, pt := pointOf(t, squashed(t))
	g, err := OpenGuest(t.Context(), repo, pt, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	v := g.Report().Volumes[0]
	if v.Type != "squashfs" || v.Backend != string(BackendMicroVM) {
		t.Errorf("the volume: %+v", v)
	}
	var b strings.Builder
	if err := g.Cat(t.Context(), &b, "disk0/file", nil); err != nil || b.String() != "squashed" {
		t.Errorf("the file: %q, %v", b.String(), err)
	}
	opts.Backend = BackendNative
	n, err := OpenGuest(t.Context(), repo, pt, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if v := n.Report().Volumes[0]; v.Usable() || v.State != guestfs.Unsupported {
		t.Errorf("without the micro-VM: %+v", v)
	}
}
