package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// pageFileNames are the files in the root of a Windows volume that are of no use
// to anybody after the next start.
func pageFileNames() [maxPageFiles]string {
	return [...]string{"pagefile.sys", "swapfile.sys", "hiberfil.sys"}
}

// pageFiles returns where the page files of an NTFS volume are.
func (f skipFinder) pageFiles(ctx context.Context, img disk.Image) (areas, error) {
	volume, err := f.openNTFS(ctx, img)
	if err != nil {
		return nil, err
	}
	names, ok1 := volume.(guestfs.Lookuper)
	where, ok2 := volume.(guestfs.Mapped)
	what, ok3 := volume.(guestfs.Describer)
	if !ok1 || !ok2 || !ok3 {
		return nil, nil
	}
	// Of a volume in use the reader must have replayed the journal, or what the
	// volume says of the file's place may be older than another file there.
	if info := what.Info(); info.State != guestfs.Clean && info.State != guestfs.Replayed {
		return nil, fmt.Errorf("its file system is %s", info.State)
	}
	var out areas
	for _, name := range pageFileNames() {
		entry, err := names.Lookup(ctx, volume.Root(), name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		runs, err := pageFile(ctx, volume, where, entry.Inode, img.Size())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = out.union(runs)
	}
	return out, nil
}

// pageFile returns where one of them is; nothing if it is not what its name says.
func pageFile(ctx context.Context, volume guestfs.FS, where guestfs.Mapped, inode guestfs.Inode, size int64) (areas, error) {
	attr, err := volume.Stat(ctx, inode)
	if err != nil {
		return nil, err
	}
	const never = guestfs.Compressed | guestfs.EncryptedFile | guestfs.Sparse | guestfs.Offline | guestfs.Reparse
	if attr.Type() != guestfs.TypeFile || attr.Flags&guestfs.System == 0 || attr.Flags&never != 0 || attr.Links > 1 {
		return nil, nil
	}
	if asleep, err := hibernated(ctx, volume, inode); err != nil || asleep {
		return nil, err
	}
	var runs []disk.Extent
	for e, err := range where.PhysicalExtents(ctx, inode) {
		switch {
		case err != nil:
			return nil, err
		case e.Encoded || e.At < 0 || e.Length <= 0 || e.At > size-e.Length || len(runs) == maxSkipRuns:
			return nil, fmt.Errorf("its extent of %d bytes at %d cannot be left out", e.Length, e.At)
		}
		runs = append(runs, disk.Extent{Offset: e.At, Length: e.Length})
	}
	return areasOf(runs, size), nil
}

// hibernated reports whether a file begins like that of a system which sleeps and
// will go on from it: then it is state, and it is kept. A system that is awake
// writes another word there.
func hibernated(ctx context.Context, volume guestfs.FS, inode guestfs.Inode) (bool, error) {
	img, err := volume.Open(ctx, inode)
	if err != nil {
		return false, err
	}
	defer img.Close()
	if img.Size() == 0 {
		return false, nil
	}
	word := make([]byte, 4)
	if n, err := img.ReadAt(word, 0); n < len(word) {
		return false, fmt.Errorf("its first bytes cannot be read: %w", err)
	}
	switch string(word) {
	case "hibr", "HIBR", "rstr", "RSTR":
		return true, nil
	}
	return false, nil
}
