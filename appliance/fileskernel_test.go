package appliance

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/guestfs/guestfstest"
)

// TestKernelBackend: the host's kernel replays the journal of a copy that was
// taken while it was in use, says that it is dangerous, and leaves nothing.
func TestKernelBackend(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs", "losetup")
	image := guestfstest.NewImage(t, 64<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	dir, _ := guestfstest.Mount(t, image, "ext4", "")
	f, err := os.Create(filepath.Join(dir, "late"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("written late"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	repo, pt := pointOf(t, guestfstest.CopyImage(t, image))
	var said bytes.Buffer
	g, err := OpenGuest(t.Context(), repo, pt, GuestOptions{Backend: BackendKernel, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := g.Cat(t.Context(), &b, "disk0/late", nil); err != nil || b.String() != "written late" {
		t.Errorf("the file: %q, %v", b.String(), err)
	}
	if !strings.Contains(said.String(), "can bring the machine down") {
		t.Errorf("no warning: %s", said.String())
	}
	if v := g.Report().Volumes[0]; v.Backend != string(BackendKernel) {
		t.Errorf("the volume: %+v", v)
	}
	g.Close()
	if left := guestfstest.Run(t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE"); strings.Contains(left, "lifeboat-kernel") {
		t.Errorf("left behind: %s", left)
	}
}
