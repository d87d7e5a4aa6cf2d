package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// The data. Zeros or noise would flatter or punish whoever compresses, so the
// filler is what is on this system: the files below /usr in the order of their
// paths, each padded to a file system's block.
const (
	fillerBytes = 256 << 20
	imageFiller = 1 << 30 // in the system image, after the Debian disk
)

// prepared is what sections share, made when it is first wanted.
type prepared struct {
	filler     string
	fillerRepo *repo
	image      systemImage
	imageRepo  *repo
	qcow2      string
}

// systemImage is a Debian disk with filler behind it, as a raw file.
type systemImage struct {
	path  string
	size  int64 // virtual
	data  int64 // bytes that are not holes
	dense int64 // from here to the end there are none
}

// filler returns a raw file of fillerBytes without holes.
func (b *bench) filler(ctx context.Context) (string, error) {
	if b.made.filler != "" {
		return b.made.filler, nil
	}
	name := b.path("filler.raw")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	if err := errors.Join(fill(ctx, f, fillerBytes), f.Sync(), f.Close()); err != nil {
		return "", err
	}
	b.made.filler = name
	return name, nil
}

// fillerRepo returns a repository in which the filler is a VM of that name.
func (b *bench) fillerRepo(ctx context.Context) (*repo, error) {
	if b.made.fillerRepo != nil {
		return b.made.fillerRepo, nil
	}
	file, err := b.filler(ctx)
	if err != nil {
		return nil, err
	}
	r, err := b.newRepo(ctx, "filler")
	if err != nil {
		return nil, err
	}
	if _, _, err := r.backup(ctx, "filler", file); err != nil {
		return nil, err
	}
	b.made.fillerRepo = r
	return r, nil
}

// system returns the system image.
func (b *bench) system(ctx context.Context) (systemImage, error) {
	if b.made.image.path != "" {
		return b.made.image, nil
	}
	disk, err := guestDisk(ctx, b.out)
	if err != nil {
		return systemImage{}, err
	}
	img := systemImage{path: b.path("system.raw")}
	if err := copyFile(ctx, disk, img.path); err != nil {
		return img, err
	}
	f, err := os.OpenFile(img.path, os.O_RDWR, 0)
	if err != nil {
		return img, err
	}
	defer f.Close()
	if img.dense, err = f.Seek(0, io.SeekEnd); err != nil {
		return img, err
	}
	if err := errors.Join(fill(ctx, f, imageFiller), f.Sync()); err != nil {
		return img, err
	}
	st, err := f.Stat()
	if err != nil {
		return img, err
	}
	img.size, img.data = st.Size(), allocated(st)
	b.made.image = img
	return img, nil
}

func allocated(st fs.FileInfo) int64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return st.Size()
}

// fill writes exactly n bytes of filler.
func fill(ctx context.Context, w io.Writer, n int64) error {
	left := n
	err := filepath.WalkDir("/usr", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		got, err := io.Copy(w, io.LimitReader(f, left))
		if err != nil {
			return err
		}
		left -= got
		pad := min(left, -got&4095)
		if _, err := w.Write(make([]byte, pad)); err != nil {
			return err
		}
		if left -= pad; left == 0 {
			return fs.SkipAll
		}
		return nil
	})
	if err == nil && left > 0 {
		err = fmt.Errorf("/usr has %d bytes less than the %d that make the test data", left, n)
	}
	return err
}

// copyFile copies a disk and leaves its holes holes.
func copyFile(ctx context.Context, from, to string) error {
	_, err := output(ctx, nil, "cp", "--sparse=always", "--reflink=never", from, to)
	return err
}

// exportDir makes a directory for ganesha to export, on the disk.
func (b *bench) exportDir(name string) (string, error) {
	dir := b.path("export-" + name)
	return dir, os.MkdirAll(dir, 0o755)
}

// systemRepo returns a repository with the system image as VM "system".
func (b *bench) systemRepo(ctx context.Context) (*repo, error) {
	if b.made.imageRepo != nil {
		return b.made.imageRepo, nil
	}
	img, err := b.system(ctx)
	if err != nil {
		return nil, err
	}
	r, err := b.newRepo(ctx, "system")
	if err != nil {
		return nil, err
	}
	if _, _, err := r.backup(ctx, "system", img.path); err != nil {
		return nil, err
	}
	b.made.imageRepo = r
	return r, nil
}

// systemQCOW2 returns the system image as a zstd-compressed qcow2 file.
func (b *bench) systemQCOW2(ctx context.Context) (string, error) {
	if b.made.qcow2 != "" {
		return b.made.qcow2, nil
	}
	img, err := b.system(ctx)
	if err != nil {
		return "", err
	}
	name := b.path("system.qcow2")
	if _, _, err := convert(ctx, img.path, name); err != nil {
		return "", err
	}
	b.made.qcow2 = name
	return name, nil
}

// convert is the peer of a backup.
func convert(ctx context.Context, raw, qcow2 string) ([]byte, usage, error) {
	return timed(ctx, nil, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, qcow2)
}

// warm reads files or whole directories, so that what is measured is not the
// host's disk, and returns their size.
func warm(root string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(io.Discard, f)
		sum += n
		return err
	})
	return sum, err
}

// describeMachine says what matters for the figures, and nothing that names the
// machine.
func describeMachine(dir string) string {
	cpu := "unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	cores, _ := exec.Command("nproc").Output()
	var memory int64
	if m, err := kilobytes("/proc/meminfo"); err == nil {
		memory = m["MemTotal"] >> 30
	}
	return fmt.Sprintf("%s × %s, %d GiB of memory, working directory on %s", strings.TrimSpace(string(cores)), cpu, memory, fileSystem(dir))
}

func fileSystem(dir string) string {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return "an unknown file system"
	}
	names := map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs (nothing durable about it)"}
	if name, ok := names[st.Type]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
