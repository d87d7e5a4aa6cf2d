package disk

import (
	"errors"

	"golang.org/x/sys/unix"
)

// flat is a layer whose bytes lie one after another in a file: a raw image, or
// a flat extent of a VMDK.
type flat struct {
	host   *hostFile
	start  int64 // where the layer starts in the file
	length int64 // start+length ≤ the file's size
}

func (l *flat) size() int64 { return l.length }

func (l *flat) read(p []byte, off int64) error { return l.host.readFull(p, l.start+off) }

// run asks the host's file system, which knows the holes of its files. Where
// it does not (block devices, some network file systems) all is data.
func (l *flat) run(off, limit int64) (Extent, error) {
	ext := Extent{Offset: off, Length: limit}
	at := l.start + off
	dataAt, err := l.host.seek(at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from here to the end of the file
		ext.Hole = true
		return ext, l.host.check()
	case err != nil:
		return ext, l.host.check()
	case dataAt > at:
		ext.Hole = true
		ext.Length = min(limit, dataAt-at)
		return ext, l.host.check()
	}
	holeAt, err := l.host.seek(at, unix.SEEK_HOLE)
	if err == nil && holeAt > at {
		ext.Length = min(limit, holeAt-at)
	}
	return ext, l.host.check()
}

// nothing is a layer of zeros: a ZERO extent of a VMDK.
type nothing struct{ length int64 }

func (l nothing) size() int64 { return l.length }

func (l nothing) read(p []byte, _ int64) error {
	clear(p)
	return nil
}

func (l nothing) run(off, limit int64) (Extent, error) {
	return Extent{Offset: off, Length: limit, Hole: true}, nil
}
