package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// mountNTFS mounts an image by ntfs-3g, which ends with the mount.
func mountNTFS(ctx context.Context, image, dir, opts string) (unmount func() error, err error) {
	// What it reads with the option compression it refuses with ro.
	all := "no_detach,streams_interface=windows,compression"
	if opts != "" {
		all = "no_detach,streams_interface=windows," + opts
	}
	p, err := start("ntfs-3g", nil, "ntfs-3g", "-o", all, image, dir)
	if err != nil {
		return nil, err
	}
	var before, now unix.Stat_t
	if err := unix.Stat(filepath.Dir(dir), &before); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for now.Dev == 0 || now.Dev == before.Dev { // until something is mounted there
		select {
		case <-p.exited:
			return nil, p.stop()
		default:
		}
		if err := errors.Join(pause(ctx, 2*time.Millisecond), unix.Stat(dir, &now)); err != nil {
			return nil, errors.Join(fmt.Errorf("ntfs-3g does not mount: %w", err), p.stop())
		}
	}
	return func() error {
		err := release(dir)
		<-p.exited // it writes what it has put off
		return errors.Join(err, p.err)
	}, nil
}

// packed makes an NTFS with files that it has compressed itself (LZNT1) and that
// Windows has packed (WOF: XPRESS, LZX).
func (g *guests) packed(ctx context.Context, vm string) error {
	if err := g.format(ctx, vm, 1<<30, "mkfs.ntfs", "--quick", "--force", "--no-indexing"); err != nil {
		return err
	}
	return g.within(ctx, vm, "", "", func(dir string) error {
		for _, how := range []struct {
			name   string
			method uint32
			args   []string
		}{
			{"XPRESS4K", 0, []string{"--compress=XPRESS", "--chunk-size=4096"}},
			{"LZX", 1, []string{"--compress=LZX", "--chunk-size=32768"}},
			{"XPRESS8K", 2, []string{"--compress=XPRESS", "--chunk-size=8192"}},
			{"XPRESS16K", 3, []string{"--compress=XPRESS", "--chunk-size=16384"}},
		} {
			stream, err := g.wimlib(ctx, how.args)
			if err == nil {
				err = putPacked(filepath.Join(dir, how.name), stream, how.method)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", how.name, err)
			}
		}
		// Files that are made in a directory with this attribute are compressed.
		folder := filepath.Join(dir, "compressed")
		const compressed = 0x800
		file := filepath.Join(folder, "LZNT1")
		return errors.Join(
			os.Mkdir(folder, 0o755),
			unix.Setxattr(folder, "system.ntfs_attrib_be", binary.BigEndian.AppendUint32(nil, compressed), 0),
			g.copyData(file, packedFile),
			os.Rename(file, filepath.Join(dir, "LZNT1")),
		)
	})
}

// wimlib compresses the test data as Windows does: in a WIM stands what belongs in
// the stream of a packed file.
func (g *guests) wimlib(ctx context.Context, args []string) ([]byte, error) {
	dir, err := os.MkdirTemp(g.b.work, "wim-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out.wim")
	if err := errors.Join(os.Mkdir(in, 0o755), g.copyData(filepath.Join(in, "file"), packedFile)); err != nil {
		return nil, err
	}
	if _, err := output(ctx, nil, "wimcapture", append([]string{in, out}, args...)...); err != nil {
		return nil, err
	}
	wim, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	// The header has the place of the table of resources at 48. Its entries have 50
	// bytes: length (7 bytes) and flags, offset, length of the content.
	le := binary.LittleEndian
	length := func(b []byte) uint64 { return le.Uint64(b) & (1<<56 - 1) }
	table := wim[le.Uint64(wim[56:]):][:length(wim[48:])]
	for ; len(table) >= 50; table = table[50:] {
		const isMetadata, isCompressed = 2, 4
		if table[7]&isMetadata == 0 && table[7]&isCompressed != 0 && le.Uint64(table[16:]) == packedFile {
			return wim[le.Uint64(table[8:]):][:length(table)], nil
		}
	}
	return nil, errors.New("wimcapture did not compress the test data")
}

// putPacked makes a file as Windows packs it: a hole as long as the content, the
// compressed stream, and a reparse point that says how (WOF_EXTERNAL_INFO,
// FILE_PROVIDER_EXTERNAL_INFO_V1).
func putPacked(name string, stream []byte, method uint32) error {
	le := binary.LittleEndian
	point := le.AppendUint32(le.AppendUint32(nil, 0x80000017), 16)
	for _, v := range []uint32{1, 2, 1, method} {
		point = le.AppendUint32(point, v)
	}
	return errors.Join(
		os.WriteFile(name, nil, 0o644),
		os.Truncate(name, packedFile),
		os.WriteFile(name+":WofCompressedData", stream, 0o644),
		unix.Setxattr(name, "system.ntfs_reparse_data", point, 0),
	)
}
