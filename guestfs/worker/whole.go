package worker

import (
	"context"
	"fmt"
	"io/fs"
	"iter"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// wholeInode stands for a volume itself, as if it were a file: for readers outside
// the worker (a kernel in a virtual machine) of what no reader here knows.
const wholeInode guestfs.Inode = 0

// Volume is the content of a volume, by its index in the report: what stands on
// the disks as it is, is read there, and what is encrypted comes through the
// worker.
func (s *Session) Volume(ctx context.Context, volume int) (disk.Image, error) {
	if volume < 0 || volume >= len(s.report.Volumes) {
		return nil, fmt.Errorf("there is no volume %d", volume)
	}
	f := &remoteFS{s: s, volume: uint32(volume)}
	return f.Open(ctx, wholeInode)
}

// fs is the file system that a request is about.
func (s *server) fs(volume int, inode guestfs.Inode) (guestfs.FS, error) {
	if inode != wholeInode {
		return s.guest.FS(volume)
	}
	g, ok := s.guest.(interface {
		Image(volume int) (disk.Image, error)
	})
	if !ok {
		return nil, fmt.Errorf("inode 0: %w", fs.ErrNotExist)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.whole[volume]; w != nil {
		return w, nil
	}
	img, err := g.Image(volume)
	if err != nil {
		return nil, err
	}
	if s.whole == nil {
		s.whole = map[int]*wholeVolume{}
	}
	w := &wholeVolume{img}
	s.whole[volume] = w
	return w, nil
}

// wholeVolume is a volume as a file system with one file, which is the volume.
type wholeVolume struct{ img disk.Image }

func (w *wholeVolume) Root() guestfs.Inode { return wholeInode }

func (w *wholeVolume) Stat(context.Context, guestfs.Inode) (*guestfs.Attr, error) {
	return &guestfs.Attr{Mode: guestfs.TypeFile | 0o400, Links: 1, Size: w.img.Size()}, nil
}

func (w *wholeVolume) ReadDir(context.Context, guestfs.Inode, uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) { yield(guestfs.Dirent{}, guestfs.ErrNotDir) }
}

func (w *wholeVolume) Open(ctx context.Context, _ guestfs.Inode) (disk.Image, error) {
	return disk.Section(ctx, w.img, 0, w.img.Size()), nil
}
