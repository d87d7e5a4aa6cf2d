package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/fusefs"
	"lifeboat/guestfs"
	"lifeboat/guestfs/kernelfs"
)

// BackendKernel is this machine's own kernel. A guest's file system is untrusted,
// and a kernel that falls over it falls with everything on the machine: so it is
// never chosen by itself, and only root can.
const BackendKernel Backend = "kernel"

// kernelMount is a volume that this machine's kernel has mounted:
//
//	volume ── scratch (writes go to memory) ── FUSE ── loop device ── mount, read-only for us
//
// Neither mount stands in the tree for longer than a moment: both are detached as
// soon as we hold them open. So nobody else can come across them, and whatever way
// this process ends, nothing is left.
type kernelMount struct {
	*kernelfs.FS
	device *fusefs.DeviceMount
}

// errNoKernel says why the host's kernel does not read a volume.
var errNoKernel = errors.New("this machine's kernel does not read it")

// kernelScratch bounds what replaying a journal may take, in bytes of memory.
const kernelScratch = 256 << 20

// mountKernel mounts a volume, which must stay open as long.
func mountKernel(ctx context.Context, img disk.Image, fsType string, log *slog.Logger) (_ *kernelMount, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: only root can mount; use --backend microvm", errNoKernel)
	}
	log.Warn("this machine's own kernel mounts a guest's file system: one that was made to do harm can bring the machine down", "type", fsType)
	dir, err := os.MkdirTemp("", "lifeboat-kernel-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	at, top := dir+"/device", dir+"/root"
	if err := errors.Join(os.Mkdir(at, 0o700), os.Mkdir(top, 0o700)); err != nil {
		return nil, err
	}
	device, err := fusefs.ServeDevice(at, disk.NewScratch(img, kernelScratch))
	if err != nil {
		return nil, err
	}
	defer func() {
		if herr := device.Hide(); err == nil {
			err = herr
		}
	}()
	loop, err := runTool(ctx, "losetup", "--find", "--show", device.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKernel, err)
	}
	loop = strings.TrimSpace(loop)
	// It stays for as long as something uses it.
	defer func() { _, _ = runTool(context.WithoutCancel(ctx), "losetup", "--detach", loop) }()
	options := "ro,nosuid,nodev,noexec"
	if fsType == "xfs" {
		options += ",nouuid" // two points of one VM have the same
	}
	if _, err := runTool(ctx, "mount", "-t", fsType, "-o", options, loop, top); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKernel, err)
	}
	fsys, err := kernelfs.Open(top, guestfs.Info{Type: fsType, State: guestfs.Clean, Note: "read by this machine's kernel"})
	return &kernelMount{fsys, device}, errors.Join(err, unix.Unmount(top, unix.MNT_DETACH))
}

func runTool(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return string(out), nil
}

// Close lets go of the mount, which ends it, and waits for the disk to be free.
func (k *kernelMount) Close() error {
	err := k.FS.Close()
	k.device.Wait()
	return err
}
