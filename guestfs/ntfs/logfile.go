package ntfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// The log is written before anything else is, by a service of the kernel (LFS)
// that keeps its own state in two restart pages at the beginning of $LogFile,
// one of which is always whole.
const (
	restartArea      = 24 // offset in a restart page of where the area is
	restartAreaSize  = 48
	restartClean     = 2 // flag: the volume was dismounted
	noClient         = 0xffff
	maxLogPage       = 64 << 10
	firstLogPageRead = 4096
)

// restartPage is what a restart page says.
type restartPage struct {
	major, minor uint16
	lsn          uint64 // of the last record when it was written
	clean        bool
}

// checkLog finds out whether the volume was in use: then what was changed last
// is in the log, and what is read may be older than that.
func (f *FS) checkLog(ctx context.Context) error {
	s, err := f.contentOf(ctx, recordLogFile)
	if err != nil {
		if !errors.Is(err, guestfs.ErrCorrupt) {
			return err
		}
		f.damaged("its log is missing")
		return nil
	}
	img := s.image(ctx)
	defer img.Close()
	page, empty, err := readRestart(img)
	switch {
	case err != nil && errors.Is(err, guestfs.ErrCorrupt):
		f.dirty("its log is damaged")
	case err != nil:
		return err
	case !empty && !page.clean:
		f.dirty(fmt.Sprintf("it was in use, and its log (version %d.%d) is not replayed: files that were changed in the last seconds may be missing, old or torn", page.major, page.minor))
	}
	return nil
}

// dirty notes that what was on its way is not seen.
func (f *FS) dirty(what string) {
	if f.state == guestfs.Clean {
		f.state = guestfs.Dirty
	}
	f.note = join(f.note, what)
}

// readRestart reads the later one of the restart pages. An empty log was never
// used, or reset.
func readRestart(img disk.Image) (page *restartPage, empty bool, err error) {
	size := int64(firstLogPageRead)
	first, ok, err := readRestartPage(img, 0, &size)
	if err != nil {
		return nil, false, err
	}
	if ok && first == nil {
		return nil, true, nil
	}
	second, _, err := readRestartPage(img, size, &size)
	if err != nil {
		return nil, false, err
	}
	switch {
	case first == nil && second == nil:
		return nil, false, corrupt("neither restart page is one")
	case first == nil || second != nil && second.lsn > first.lsn:
		first = second
	}
	return first, false, nil
}

// readRestartPage reads one. Its size is in it. A page of ones is no page, and
// no error.
func readRestartPage(img disk.Image, at int64, size *int64) (page *restartPage, ok bool, err error) {
	b := make([]byte, *size)
	if n, err := img.ReadAt(b, at); n < len(b) {
		return nil, false, unexpected(err)
	}
	le := binary.LittleEndian
	magic := string(b[:4])
	if magic == "\xff\xff\xff\xff" {
		return nil, true, nil
	}
	if magic != "RSTR" && magic != "CHKD" {
		return nil, false, nil
	}
	if n := int64(le.Uint32(b[16:])); n != *size && n >= stride && n <= maxLogPage && powerOfTwo(n) && at == 0 {
		*size = n
		return readRestartPage(img, at, size)
	}
	if unfix(b, "a restart page") != nil {
		return nil, false, nil
	}
	off := int(le.Uint16(b[restartArea:]))
	if off+restartAreaSize > len(b) {
		return nil, false, nil
	}
	area := b[off:]
	return &restartPage{
		minor: le.Uint16(b[26:]), major: le.Uint16(b[28:]), lsn: le.Uint64(area),
		clean: magic == "CHKD" || le.Uint16(area[14:])&restartClean != 0 || le.Uint16(area[12:]) == noClient,
	}, true, nil
}
