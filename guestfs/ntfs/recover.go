package ntfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/patch"
)

// recover looks at the log and returns the volume as it is after a replay: f
// itself where there is nothing to do, or where it cannot be done, which is said.
func (f *FS) recover(ctx context.Context) (*FS, error) {
	s, err := f.contentOf(ctx, recordLogFile)
	if err != nil {
		if !errors.Is(err, guestfs.ErrCorrupt) {
			return nil, err
		}
		f.damaged("its log is missing")
		return f, nil
	}
	img := s.image(ctx)
	defer img.Close()
	page, err := readRestart(img)
	switch {
	case err != nil:
		return f, f.notReplayed(err)
	case page == nil || page.clean:
		return f, nil
	}
	after, err := f.replay(ctx, img, page)
	if err != nil {
		return f, f.notReplayed(err)
	}
	return after, nil
}

// notReplayed notes that what was on its way is not seen, and why; errors of the
// disk it passes on.
func (f *FS) notReplayed(why error) error {
	if !errors.Is(why, guestfs.ErrCorrupt) && !errors.Is(why, guestfs.ErrUnsupported) {
		return why
	}
	if f.state == guestfs.Clean {
		f.state = guestfs.Dirty
	}
	f.note = join(f.note, fmt.Sprintf("it was in use, and its log is not replayed (%v): what was changed in the last seconds may be missing, old or torn", why))
	return nil
}

func (f *FS) replay(ctx context.Context, img disk.Image, page *restartPage) (*FS, error) {
	r, err := f.newReplayer(img, page)
	if err != nil || r == nil {
		return f, err
	}
	for _, pass := range []func(context.Context) error{r.analyze, r.redoAll, r.undoAll} {
		if err := pass(ctx); err != nil {
			return nil, err
		}
	}
	if len(r.vol.blocks) == 0 {
		return f, nil
	}
	after, err := openVolume(ctx, patch.New(f.disk, scratchBlock, r.vol.blocks), f.geo)
	if err != nil {
		return nil, err
	}
	if r.failed == nil {
		r.failed = after.consistent(ctx, r.touched)
	}
	if r.failed != nil {
		return nil, r.failed
	}
	if after.state == guestfs.Clean {
		after.state = guestfs.Replayed
	}
	after.note = join(after.note, fmt.Sprintf("%d changes of its log (version %d.%d) were replayed", r.changes, page.major, page.minor))
	return after, nil
}

// maxChecked bounds how many entries of directories are checked after a replay.
const maxChecked = 200_000

// consistent checks what a replay has changed, for what it says of itself is all
// that there is to compare with: a file is in the directories that it has names
// in, and a directory's entries are files.
func (f *FS) consistent(ctx context.Context, touched map[uint64]bool) error {
	budget := maxChecked
	for number := range touched {
		if budget <= 0 {
			return nil
		}
		r, err := f.record(ctx, number)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if r.flags()&recordInUse == 0 || r.base()&numberMask != 0 || number < firstUser {
			continue
		}
		taken, err := f.taken(ctx, number)
		if err != nil {
			return err
		}
		if !taken {
			continue // it was being made, and that was undone
		}
		n, err := f.nodeOf(ctx, r)
		if err != nil {
			return err
		}
		if err := n.namesAreListed(ctx); err != nil {
			return err
		}
		if err := n.entriesExist(ctx, &budget); err != nil {
			return err
		}
	}
	return nil
}

// taken reports whether the MFT's bitmap says that a record is in use.
func (f *FS) taken(ctx context.Context, number uint64) (bool, error) {
	r, err := f.record(ctx, recordMFT)
	if err != nil {
		return false, err
	}
	n, err := f.nodeOf(ctx, r)
	if err != nil {
		return false, err
	}
	a, err := n.find(ctx, attrBitmap, "")
	if err != nil {
		return false, err
	}
	if a == nil {
		return false, corrupt("the MFT has no bitmap")
	}
	img, err := n.open(ctx, a)
	if err != nil {
		return false, err
	}
	defer img.Close()
	var b [1]byte
	if m, err := img.ReadAt(b[:], int64(number/8)); m < 1 {
		return false, unexpected(err)
	}
	return b[0]>>(number%8)&1 != 0, nil
}

// namesAreListed checks that the directories of a file list it.
func (n *node) namesAreListed(ctx context.Context) error {
	var names []fileName
	if err := n.each(ctx, attrFileName, func(a *attr) bool {
		if a.resident {
			if name, ok := parseFileName(a.value()); ok {
				names = append(names, name)
			}
		}
		return true
	}); err != nil {
		return err
	}
	for _, name := range names {
		e, err := n.fs.Lookup(ctx, name.parent(), name.String())
		if err != nil {
			return corrupt("after the replay, file %d is not in its directory: %v", n.base.number, err)
		}
		if e.Inode != n.base.ref() {
			return corrupt("after the replay, the name of file %d is that of file %d", n.base.number, e.Inode)
		}
	}
	return nil
}

// entriesExist checks that the files that a directory lists exist.
func (n *node) entriesExist(ctx context.Context, budget *int) error {
	if !n.isDir() {
		return nil
	}
	for e, err := range n.fs.ReadDir(ctx, n.base.ref(), 0) {
		if *budget--; err != nil || *budget <= 0 {
			return err
		}
		if _, err := n.fs.node(ctx, e.Inode); err != nil {
			return corrupt("after the replay, %q in directory %d: %v", e.Name, n.base.number, err)
		}
	}
	return nil
}
