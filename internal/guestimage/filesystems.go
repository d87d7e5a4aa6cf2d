package guestimage

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
)

// fileSystemModules are what the micro-VM that reads guests' file systems may
// need: file systems, what they are stacked on, and the devices it talks through.
func fileSystemModules() []string {
	return []string{
		"virtio_pci", "virtio_blk", "virtio_console", "virtio_rng",
		"ext4", "xfs", "btrfs", "vfat", "exfat", "isofs", "udf", "squashfs", "erofs", "romfs", "sysv",
		"nls_cp437", "nls_iso8859_1", "nls_utf8", "nls_ascii",
		"md_mod", "linear", "raid0", "raid1", "raid10", "raid456",
		"dm_mod", "dm_thin_pool", "dm_raid", "dm_mirror", "dm_snapshot", "dm_cache", "dm_cache_smq", "dm_crypt",
	}
}

// FileSystemVM returns a kernel and an initial RAM file system whose only
// program is agent, a static one, which runs as init. Modules lie in
// /lib/modules/NAME, and the order in which to load one and what it needs in
// /lib/modules/NAME.order. It needs Debian's archive, once; no privileges.
func FileSystemVM(ctx context.Context, cacheDir, agent string, progress Progress) (kernelPath, initrd string, err error) {
	k, err := ensureKernelWith(ctx, cacheDir, "fskernel", fileSystemModules(), progress)
	if err != nil {
		return "", "", err
	}
	program, err := os.ReadFile(agent)
	if err != nil {
		return "", "", fmt.Errorf("the micro-VM's agent: %w", err)
	}
	sum := sha256.Sum256(program)
	a := artifact{
		name: "filesystems", ext: ".cpio",
		files: fmt.Appendf(nil, "1 %s %x", filepath.Base(k.dir), sum),
		build: func(_ context.Context, _, path string) error {
			archive, err := initramfs{modules: fileSystemModules(), program: agent, plain: true}.build(k)
			if err != nil {
				return err
			}
			return os.WriteFile(path, archive, 0o644)
		},
	}
	initrd, err = a.ensure(ctx, cacheDir, progress)
	return k.image(), initrd, err
}
