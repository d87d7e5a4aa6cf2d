package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/appliance"
	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/worker"
)

// readChunk is how much a reader asks for at once, in bytes.
const readChunk = 1 << 20

// content is a file of a guest, however it is reached.
type content interface {
	io.ReaderAt
	Size() int64
}

// hostFile is a file that some kernel shows.
type hostFile struct {
	*os.File
	size int64
}

func (f hostFile) Size() int64 { return f.size }

func openHost(name string) (hostFile, error) {
	f, err := os.Open(filepath.Clean(name))
	if err != nil {
		return hostFile{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return hostFile{}, errors.Join(err, f.Close())
	}
	return hostFile{f, st.Size()}, nil
}

// readAll reads a file from its beginning to its end.
func readAll(ctx context.Context, from content, to io.Writer) (time.Duration, error) {
	buf := make([]byte, readChunk)
	began := time.Now()
	for off := int64(0); off < from.Size(); off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), from.Size()-off)]
		if n, err := from.ReadAt(p, off); n < len(p) {
			return 0, fmt.Errorf("at %d: %w", off+int64(n), errors.Join(err, ctx.Err()))
		}
		if to != nil {
			_, _ = to.Write(p)
		}
	}
	return time.Since(began), nil
}

// reader is one way to get at a file of a guest: it opens it, with nothing of it
// cached, for as long as fn runs.
type reader func(ctx context.Context, fn func(content) error) error

// rate measures how fast a reader is, in MB/s. ours counts our processor time.
func (r reader) rate(before func() error, ours bool) measure {
	return func(ctx context.Context) (s sample, err error) {
		if err := before(); err != nil {
			return s, err
		}
		err = r(ctx, func(from content) error {
			cpu := sessionCPU()
			took, err := readAll(ctx, from, nil)
			if err != nil {
				return err
			}
			mb := float64(from.Size()) / 1e6
			s.value = mb / took.Seconds()
			if ours {
				s.notes = notes{"MB/CPU s": mb / (sessionCPU() - cpu).Seconds()}
			}
			return nil
		})
		return s, err
	}
}

// sum is the content's hash.
func (r reader) sum(ctx context.Context) (out [32]byte, err error) {
	err = r(ctx, func(from content) error {
		h := sha256.New()
		_, err := readAll(ctx, from, h)
		h.Sum(out[:0])
		return err
	})
	return out, err
}

// same sees to it that nobody is fast with wrong bytes.
func same(ctx context.Context, readers ...reader) error {
	var first [32]byte
	for i, r := range readers {
		sum, err := r.sum(ctx)
		if err != nil {
			return err
		}
		if i > 0 && sum != first {
			return fmt.Errorf("reader %d reads other bytes than the first", i)
		}
		first = sum
	}
	return nil
}

// inPoint reads a file of a restore point, by our readers.
func (g *guests) inPoint(vm, path string) reader {
	return func(ctx context.Context, fn func(content) error) error {
		return g.with(ctx, vm, appliance.BackendNative, func(guest *appliance.Guest, _ instant) error {
			img, err := guest.OpenFile(ctx, guest.Report().Volumes[0].Name+"/"+path)
			if err != nil {
				return err
			}
			return errors.Join(fn(img), img.Close())
		})
	}
}

// inImage reads it from the image itself, by our readers.
func (g *guests) inImage(vm, path string) reader {
	return func(ctx context.Context, fn func(content) error) (err error) {
		img, err := disk.Open(ctx, g.image(vm), disk.OpenOptions{Format: disk.FormatRaw})
		if err != nil {
			return err
		}
		defer img.Close()
		session, err := worker.Start(ctx, []disk.Image{img}, worker.Options{Logger: quiet()})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, session.Close()) }()
		fsys, err := session.FS(ctx, 0)
		if err != nil {
			return err
		}
		found, err := guestfs.Lookup(ctx, fsys, fsys.Root(), path)
		if err != nil {
			return err
		}
		from, err := fsys.Open(ctx, found.Inode)
		if err != nil {
			return err
		}
		return errors.Join(fn(from), from.Close())
	}
}

// inKernel reads it through a mount of the image.
func (g *guests) inKernel(vm, fsType, path string) reader {
	return func(ctx context.Context, fn func(content) error) error {
		dir, unmount, err := g.mount(ctx, vm, fsType)
		if err != nil {
			return err
		}
		f, err := openHost(filepath.Join(dir, path))
		if err != nil {
			return errors.Join(err, unmount())
		}
		return errors.Join(fn(f), f.Close(), unmount())
	}
}

// reads: a large file that nobody has read before. What is under the file systems,
// the image and our repository, is in the page cache or, in rows of their own,
// was forgotten and comes from the disk.
func (g *guests) reads(ctx context.Context) error {
	point, image, kernel := g.inPoint(vmExt4, largeName), g.inImage(vmExt4, largeName), g.inKernel(vmExt4, "ext4", largeName)
	if err := same(ctx, kernel, point, image); err != nil {
		return err
	}
	for _, row := range []struct {
		what   string
		ours   reader
		before func() error
	}{
		{"from the image", image, g.warm(vmExt4)},
		{"from a restore point", point, g.warm(vmExt4)},
		{"from the image, from the disk", image, g.evict(vmExt4)},
		{"from a restore point, from the disk", point, g.evict(vmExt4)},
	} {
		f := Figure{What: "large file, cold, " + row.what, Unit: "MB/s", Target: readRatio, PeerName: kernelPeer}
		if err := g.b.compare(ctx, f, g.b.opt.rounds, row.ours.rate(row.before, true), kernel.rate(row.before, false)); err != nil {
			return err
		}
	}
	return nil
}

// warm brings what is under a guest's file system into the page cache.
func (g *guests) warm(vm string) func() error {
	return func() error {
		for _, root := range []string{g.repo.url, g.image(vm)} {
			if _, err := warm(root); err != nil {
				return err
			}
		}
		return nil
	}
}

// evict takes it out of there.
func (g *guests) evict(vm string) func() error {
	return func() error {
		for _, root := range []string{g.repo.url, g.image(vm)} {
			if err := filepath.WalkDir(root, forget); err != nil {
				return err
			}
		}
		return nil
	}
}

// forget has the kernel drop the pages of a file.
func forget(path string, d fs.DirEntry, err error) error {
	if err != nil || !d.Type().IsRegular() {
		return err
	}
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// throughFUSE: the same file of the same restore point through `lifeboat mount`.
func (g *guests) throughFUSE(ctx context.Context) error {
	fuse, kernel := g.inMount(vmExt4, largeName), g.inKernel(vmExt4, "ext4", largeName)
	if err := same(ctx, kernel, fuse); err != nil {
		return err
	}
	ours, peer := fuse.rate(g.warm(vmExt4), false), kernel.rate(g.warm(vmExt4), false)
	pairs, err := g.b.alternate(ctx, g.b.opt.rounds, ours, peer)
	if err != nil {
		return fmt.Errorf("through FUSE: %w", err)
	}
	f := Figure{What: "large file, cold, through lifeboat mount", Unit: "MB/s", Target: fuseRatio, PeerName: kernelPeer}
	g.b.add(f.from(pairs))
	f.What, f.Target, f.Absolute = f.What+", rate", fuseRate, true
	g.b.add(f.from(pairs))
	return nil
}

// inMount reads a file of a restore point through a mount of its own.
func (g *guests) inMount(vm, path string) reader {
	return func(ctx context.Context, fn func(content) error) (err error) {
		m, err := g.startMount(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.stop()) }()
		found, err := filepath.Glob(filepath.Join(m.dir, vm, "*", "files", "disk0", path))
		if err != nil || len(found) != 1 {
			return errors.Join(fmt.Errorf("%d files %s in the mount of %s", len(found), path, vm), err)
		}
		f, err := openHost(found[0])
		if err != nil {
			return err
		}
		return errors.Join(fn(f), f.Close())
	}
}

// mountProcess is a running `lifeboat mount`.
type mountProcess struct {
	*process
	dir string
}

func (g *guests) startMount(ctx context.Context) (*mountProcess, error) {
	dir, err := os.MkdirTemp(g.b.work, "tree-")
	if err != nil {
		return nil, err
	}
	p, err := start("lifeboat mount", g.repo.env(), g.b.opt.binary, "--json", "mount", dir)
	if err != nil {
		return nil, err
	}
	if _, err := p.line(ctx); err != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // it may have been killed
		return nil, err
	}
	return &mountProcess{p, dir}, nil
}

// decoding: files that the guest has compressed.
func (g *guests) decoding(ctx context.Context) error {
	for _, row := range []struct{ what, vm, path, fsType string }{
		{"Btrfs, zstd", vmZstd, largeName, "btrfs"},
		{"NTFS, LZNT1", vmPacked, "LZNT1", ""},
		{"Windows, XPRESS 4K", vmPacked, "XPRESS4K", ""},
		{"Windows, XPRESS 8K", vmPacked, "XPRESS8K", ""},
		{"Windows, XPRESS 16K", vmPacked, "XPRESS16K", ""},
		{"Windows, LZX", vmPacked, "LZX", ""},
	} {
		ours := g.inPoint(row.vm, row.path)
		f := Figure{What: "compressed file: " + row.what, Unit: "MB/s", Target: decodeRate, Absolute: true, PeerName: kernelPeer}
		if row.path == "LZX" {
			f.Target = 0
		}
		if err := g.check(ctx, ours); err != nil {
			return fmt.Errorf("%s: %w", f.What, err)
		}
		if row.fsType == "" && row.path != "LZNT1" { // nothing else in Debian reads it
			f.PeerName, f.Absolute = "", false
			if err := g.b.alone(ctx, f, g.b.opt.rounds, ours.rate(g.warm(row.vm), true)); err != nil {
				return err
			}
			continue
		}
		if row.fsType == "" {
			f.PeerName = "ntfs-3g"
		}
		peer := g.inKernel(row.vm, row.fsType, row.path)
		if err := g.b.compare(ctx, f, g.b.opt.rounds, ours.rate(g.warm(row.vm), true), peer.rate(g.warm(row.vm), false)); err != nil {
			return err
		}
	}
	return nil
}

// check compares a file with the data that it was made of.
func (g *guests) check(ctx context.Context, r reader) error {
	return r(ctx, func(from content) error {
		data, err := openHost(g.data)
		if err != nil {
			return err
		}
		defer data.Close()
		want, got := sha256.New(), sha256.New()
		_, err = io.Copy(want, io.NewSectionReader(data, 0, from.Size()))
		_, rerr := readAll(ctx, from, got)
		if err := errors.Join(err, rerr); err != nil {
			return err
		}
		if [32]byte(want.Sum(nil)) != [32]byte(got.Sum(nil)) {
			return errors.New("it reads other bytes than were written")
		}
		return nil
	})
}
