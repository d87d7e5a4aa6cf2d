package worker

import (
	"io"

	"lifeboat/disk"
)

// piece kinds, as Map tells them.
const (
	pieceZero byte = iota
	pieceDisk
	pieceDecoded
	pieceSize = 1 + 8 + 4 + 8
)

// mapped is a run of a file and where it stands. The runs of a map follow each
// other without gaps.
type mapped struct {
	off, length int64
	kind        byte
	disk        int
	at          int64
}

// trace tells where a file's bytes stand from off on: up to limit runs.
func trace(img disk.Image, off int64, limit int) ([]mapped, error) {
	var out []mapped
	for off < img.Size() && len(out) < limit {
		pc, err := disk.Trace(img, off)
		if err != nil || pc.Length <= 0 {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			if len(out) > 0 {
				break // the next question gets the answer
			}
			return nil, err
		}
		out = appendRun(out, run(pc, off))
		off += pc.Length
	}
	return out, nil
}

func run(pc disk.Piece, off int64) mapped {
	m := mapped{off: off, length: pc.Length, kind: pieceDecoded}
	switch from := pc.From.(type) {
	case nil:
		m.kind = pieceZero
	case *remote:
		m.kind, m.disk, m.at = pieceDisk, from.number, pc.At
	}
	return m
}

// appendRun joins what belongs together.
func appendRun(list []mapped, m mapped) []mapped {
	if n := len(list); n > 0 {
		last := &list[n-1]
		if last.kind == m.kind && (m.kind != pieceDisk || last.disk == m.disk && last.at+last.length == m.at) {
			last.length += m.length
			return list
		}
	}
	return append(list, m)
}

func (e *encoder) runs(list []mapped) {
	e.u32(uint32(len(list)))
	for _, m := range list {
		e.u8(m.kind)
		e.i64(m.length)
		e.u32(uint32(m.disk))
		e.i64(m.at)
	}
}

// runs reads a map that begins at off and checks it against file and disks.
func (d *decoder) runs(off, size int64, disks []disk.Image) []mapped {
	var out []mapped
	for range d.count(pieceSize) {
		m := mapped{off: off, kind: d.u8(), length: d.i64(), disk: int(d.u32()), at: d.i64()}
		bad := m.length <= 0 || m.length > size-off || m.kind > pieceDecoded
		if m.kind == pieceDisk && !bad {
			bad = m.disk >= len(disks) || m.at < 0 || m.at > disks[m.disk].Size()-m.length
		}
		if bad {
			d.bad = true
			return nil
		}
		off += m.length
		out = append(out, m)
	}
	return out
}
