package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// VMs of the section. Each has one disk, which is one file system.
const (
	vmExt4     = "ext4" // many small files, and a large one
	vmXFS      = "xfs"
	vmBtrfs    = "btrfs"
	vmNTFS     = "ntfs"
	vmExt4Live = "ext4-live" // copied while it was in use
	vmXFSLive  = "xfs-live"
	vmZstd     = "zstd"   // Btrfs that compresses
	vmPacked   = "packed" // NTFS with files that it compresses, and that Windows has packed
)

const (
	manyFiles = 44_000
	largeFile = 512 << 20 // bytes
	largeName = "large"
	// packedFile is the size of a file on NTFS that is compressed, in bytes:
	// ntfs-3g takes its time.
	packedFile = 64 << 20
)

// guests are the restore points that the section reads, and the images that they
// were made of.
type guests struct {
	b    *bench
	repo *repo
	data string // a file of largeFile bytes
	ends []func() error
}

func (g *guests) image(vm string) string { return g.b.path("guest-" + vm + ".raw") }

// quiet is where what is of no interest here is written.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newGuests makes the images and backs them up.
func (b *bench) newGuests(ctx context.Context) (*guests, error) {
	g := &guests{b: b, data: b.path("guest-data")}
	f, err := os.Create(g.data)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fill(ctx, f, largeFile), f.Close()); err != nil {
		return nil, err
	}
	if g.repo, err = b.newRepo(ctx, "guests"); err != nil {
		return nil, err
	}
	for _, vm := range []struct {
		name string
		make func(context.Context, string) error
	}{
		{vmExt4, g.many("ext4", largeFile, "mke2fs", "-q", "-F", "-t", "ext4", "-N", "100000")},
		{vmXFS, g.many("xfs", 0, "mkfs.xfs", "-q", "-f")},
		{vmBtrfs, g.many("btrfs", 0, "mkfs.btrfs", "-q", "-f")},
		{vmNTFS, g.many("", 0, "mkfs.ntfs", "--quick", "--force", "--no-indexing")},
		{vmExt4Live, g.live("ext4", "mke2fs", "-q", "-F", "-t", "ext4")},
		{vmXFSLive, g.live("xfs", "mkfs.xfs", "-q", "-f")},
		{vmZstd, g.zstd},
		{vmPacked, g.packed},
	} {
		b.sayf("making the guest %s", vm.name)
		if err := vm.make(ctx, vm.name); err != nil {
			return g, fmt.Errorf("guest %s: %w", vm.name, err)
		}
		if _, _, err := g.repo.backup(ctx, vm.name, g.image(vm.name)); err != nil {
			return g, err
		}
	}
	return g, nil
}

func (g *guests) close() error {
	var errs []error
	for _, end := range g.ends {
		errs = append(errs, end())
	}
	g.repo.remove()
	return errors.Join(errs...)
}

// format makes an image with an empty file system.
func (g *guests) format(ctx context.Context, vm string, size int64, mkfs ...string) error {
	f, err := os.Create(g.image(vm))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	_, err = output(ctx, nil, mkfs[0], append(mkfs[1:], g.image(vm))...)
	return err
}

// many makes a file system with many small files and one of large bytes, if any.
func (g *guests) many(fsType string, large int64, mkfs ...string) func(context.Context, string) error {
	return func(ctx context.Context, vm string) error {
		if err := g.format(ctx, vm, 2<<30, mkfs...); err != nil {
			return err
		}
		return g.within(ctx, vm, fsType, "", func(dir string) error {
			if err := smallFiles(ctx, dir, manyFiles, fsType != ""); err != nil || large == 0 {
				return err
			}
			return g.copyData(filepath.Join(dir, largeName), large)
		})
	}
}

// smallFile is where a small file stands: a hundred in a directory, twenty of these
// in another.
func smallFile(dir string, i int) (folder, name string) {
	return filepath.Join(dir, fmt.Sprintf("area %d", i/2000), fmt.Sprintf("directory %d", i/100)), fmt.Sprintf("file %d", i)
}

// smallFiles makes n files of a few bytes, and gives one in ten an extended
// attribute.
func smallFiles(ctx context.Context, dir string, n int, xattrs bool) error {
	for i := range n {
		folder, name := smallFile(dir, i)
		if i%100 == 0 {
			if err := errors.Join(os.MkdirAll(folder, 0o755), ctx.Err()); err != nil {
				return err
			}
		}
		name = filepath.Join(folder, name)
		if err := os.WriteFile(name, fmt.Appendf(nil, "content of %d", i), 0o644); err != nil {
			return err
		}
		if xattrs && i%10 == 0 {
			if err := unix.Setxattr(name, "user.comment", []byte("one in ten has a comment"), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyData writes the first n bytes of the test data.
func (g *guests) copyData(to string, n int64) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	return errors.Join(copyPrefix(f, g.data, n), f.Sync(), f.Close())
}

// live makes a file system that was copied while it was in use: what was done
// last is in its journal only.
func (g *guests) live(fsType string, mkfs ...string) func(context.Context, string) error {
	return func(ctx context.Context, vm string) error {
		if err := g.format(ctx, vm, 1<<30, mkfs...); err != nil {
			return err
		}
		running := g.image(vm) + ".running"
		err := g.within(ctx, vm, fsType, "", func(dir string) error {
			if err := errors.Join(smallFiles(ctx, dir, 3300, true), syncFS(dir)); err != nil {
				return err
			}
			return copyFile(ctx, g.image(vm), running)
		})
		return errors.Join(err, os.Rename(running, g.image(vm)))
	}
}

func syncFS(dir string) error {
	f, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// zstd makes a Btrfs that compresses everything.
func (g *guests) zstd(ctx context.Context, vm string) error {
	if err := g.format(ctx, vm, 2<<30, "mkfs.btrfs", "-q", "-f"); err != nil {
		return err
	}
	return g.within(ctx, vm, "btrfs", "compress-force=zstd", func(dir string) error {
		return g.copyData(filepath.Join(dir, largeName), largeFile/2)
	})
}

// within runs fn on a guest's mounted file system.
func (g *guests) within(ctx context.Context, vm, fsType, opts string, fn func(dir string) error) error {
	dir, unmount, err := g.mountWith(ctx, vm, fsType, opts)
	if err != nil {
		return err
	}
	return errors.Join(fn(dir), unmount())
}

// mount lets this machine's kernel mount a guest's file system read-only; an empty
// type is NTFS, for which Debian's kernels have no driver: ntfs-3g.
func (g *guests) mount(ctx context.Context, vm, fsType string) (string, func() error, error) {
	return g.mountWith(ctx, vm, fsType, "ro")
}

func (g *guests) mountWith(ctx context.Context, vm, fsType, opts string) (dir string, unmount func() error, err error) {
	if dir, err = os.MkdirTemp(g.b.work, "mount-"); err != nil {
		return "", nil, err
	}
	if fsType == "" {
		unmount, err = mountNTFS(ctx, g.image(vm), dir, opts)
		return dir, unmount, err
	}
	// A device of its own: mount(8) would take one whose mount has just ended.
	out, err := output(ctx, nil, "losetup", "--find", "--show", g.image(vm))
	if err != nil {
		return "", nil, err
	}
	loop := strings.TrimSpace(string(out))
	detach := func() error {
		_, err := output(context.WithoutCancel(ctx), nil, "losetup", "--detach", loop)
		return errors.Join(err, os.Remove(dir))
	}
	if err := unix.Mount(loop, dir, fsType, mountFlags(opts), strings.TrimPrefix(opts, "ro")); err != nil {
		return "", nil, errors.Join(fmt.Errorf("mount %s: %w", g.image(vm), err), detach())
	}
	return dir, func() error { return errors.Join(release(dir), detach()) }, nil
}

func mountFlags(opts string) uintptr {
	if opts == "ro" {
		return unix.MS_RDONLY
	}
	return 0
}

// release unmounts; whoever looks in for a moment is waited for.
func release(dir string) error {
	for range 100 {
		if err := unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			return os.NewSyscallError("umount "+dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return os.NewSyscallError("umount "+dir, unix.Unmount(dir, unix.MNT_DETACH))
}

// walkKernel asks the kernel for the attributes of everything below a directory.
func walkKernel(dir string) (n int, err error) {
	names, value := make([]byte, 64<<10), make([]byte, 64<<10)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		n++
		if _, err := d.Info(); err != nil {
			return err
		}
		size, err := unix.Llistxattr(path, names)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) { // ntfs-3g says EINVAL
			return fmt.Errorf("attributes of %s: %w", path, err)
		}
		for _, name := range strings.FieldsFunc(string(names[:max(size, 0)]), func(r rune) bool { return r == 0 }) {
			if _, err := unix.Lgetxattr(path, name, value); err != nil {
				return fmt.Errorf("attribute %s of %s: %w", name, path, err)
			}
		}
		return nil
	})
	return n, err
}

func copyPrefix(to io.Writer, from string, n int64) error {
	f, err := os.Open(filepath.Clean(from))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(to, f, n)
	return err
}
