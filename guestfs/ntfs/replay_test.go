package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

// volumePair is a volume before and after some changes by ntfs-3g, and what is
// needed to log the changes as NTFS would.
type volumePair struct {
	before, after []byte
	open          [][]byte // open attributes
	names         []string
	runs          [][]guestfs.PhysicalExtent // of each of them
	records       int                        // of the MFT
}

// changes made by ntfs-3g: entries come, go, and change their names.
func makePair(t testing.TB) *volumePair {
	t.Helper()
	image := format(t, 16<<20, "-c", "1024")
	dir, unmount := mount(t, image, "")
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(in("dir"), 0o755))
	for i := range 60 {
		must(t, os.WriteFile(in(fmt.Sprintf("dir/old name %d", i)), fmt.Appendf(nil, "%d", i), 0o644))
	}
	must(t, os.WriteFile(in("in root"), make([]byte, 5000), 0o644))
	must(t, os.Mkdir(in("small"), 0o755)) // its index is in its record
	for _, name := range []string{"a", "b", "c"} {
		must(t, os.WriteFile(in("small/"+name), make([]byte, 3000), 0o644))
	}
	unmount()
	p := &volumePair{}
	var err error
	p.before, err = os.ReadFile(image)
	must(t, err)
	dir, unmount = mount(t, image, "")
	for i := range 60 {
		switch name := in(fmt.Sprintf("dir/old name %d", i)); i % 4 {
		case 0:
			must(t, os.Remove(name))
		case 1:
			must(t, os.Rename(name, in(fmt.Sprintf("dir/renamed %d", i))))
		case 2:
			must(t, os.WriteFile(name, bytes.Repeat([]byte("x"), i), 0o644))
		}
	}
	must(t, os.WriteFile(in("new"), []byte("new"), 0o644))
	must(t, os.Remove(in("small/a")))
	must(t, os.Rename(in("small/b"), in("small/d")))
	must(t, os.WriteFile(in("small/c"), make([]byte, 9000), 0o644)) // same content, longer
	must(t, os.Mkdir(in("new dir"), 0o755))
	must(t, os.Rename(in("in root"), in("new dir/moved")))
	unmount()
	p.after, err = os.ReadFile(image)
	must(t, err)
	p.openAttrs(t)
	return p
}

// openAttrs finds what changes: the MFT, and the blocks of the directories'
// indexes.
func (p *volumePair) openAttrs(t testing.TB) {
	t.Helper()
	fsys, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), p.after))
	must(t, err)
	for _, a := range []struct {
		path string
		kind uint32
		name string
	}{{"$MFT", 0x80, ""}, {"dir", 0xa0, "$I30"}, {".", 0xa0, "$I30"}, {"$Bitmap", 0x80, ""}, {"$MFT", 0xb0, ""}} {
		inode := fsys.Root()
		if a.path != "." {
			inode = find(t, fsys, a.path)
		}
		runs, err := fsys.AttrRuns(t.Context(), inode, a.kind, a.name)
		must(t, err)
		p.open = append(p.open, openEntry(a.kind, uint64(inode), 4096))
		p.names = append(p.names, a.name)
		p.runs = append(p.runs, runs)
		if a.path == "$MFT" && a.kind == 0x80 {
			for _, r := range runs {
				p.records += int(r.Length / 1024)
			}
		}
	}
}

// at is where on the volume an attribute has a byte.
func (p *volumePair) at(attr int, off int64) int64 {
	for _, r := range p.runs[attr] {
		if off >= r.Offset && off < r.Offset+r.Length {
			return r.At + off - r.Offset
		}
	}
	return -1
}

// lcns of n bytes.
func (p *volumePair) lcns(attr int, off, n int64) (out []uint64) {
	const cluster = 1024
	for ; n > 0; n, off = n-cluster, off+cluster {
		out = append(out, uint64(p.at(attr, off)/cluster))
	}
	return out
}

// log writes the changes from one volume to another as transactions.
func (p *volumePair) log(t testing.TB, w *logWriter, from, to []byte, transaction uint32) {
	for i := range p.records {
		off := int64(i) * 1024
		at := p.at(0, off)
		if bytes.Equal(from[at:at+1024], to[at:at+1024]) {
			continue
		}
		p.logRecord(t, w, transaction, off, bytes.Clone(from[at:at+1024]), bytes.Clone(to[at:at+1024]))
	}
	for _, attr := range []int{1, 2} {
		for off := int64(0); p.at(attr, off) >= 0; off += 4096 {
			var a, b []byte // a block is four clusters
			for i := int64(0); i < 4096; i += 1024 {
				at := p.at(attr, off+i)
				a, b = append(a, from[at:at+1024]...), append(b, to[at:at+1024]...)
			}
			if !bytes.Equal(a, b) {
				p.logBlock(t, w, transaction, attr, off, a, b)
			}
		}
	}
	for _, attr := range []int{3, 4} {
		for off := int64(0); p.at(attr, off) >= 0; off += 1024 {
			at := p.at(attr, off)
			if a, b := from[at:at+1024], to[at:at+1024]; !bytes.Equal(a, b) {
				p.logBits(w, transaction, attr, off, a, b)
			}
		}
	}
}

// logRecord logs that a record is made or freed, or its attributes one by one.
func (p *volumePair) logRecord(t testing.TB, w *logWriter, transaction uint32, off int64, a, b []byte) {
	le := binary.LittleEndian
	base := act{attr: attrID(0), vcn: off / 1024, lcns: p.lcns(0, off, 1024)}
	if string(a[:4]) != "FILE" {
		a = nil
	} else {
		must(t, ntfs.Unfix(a))
	}
	must(t, ntfs.Unfix(b))
	const inUse = 1
	was, is := a != nil && a[22]&inUse != 0, b[22]&inUse != 0
	if was && (!is || !bytes.Equal(a[16:18], b[16:18])) { // it is freed, perhaps to be used again
		x := base
		x.redoOp, x.undoOp, x.undo = 0x03, 0x02, a
		w.do(transaction, x)
		was = false
	}
	if !was {
		if is {
			base.redoOp, base.redo = 0x02, b[:le.Uint32(b[24:])]
			w.do(transaction, base)
		}
		return
	}
	at := int(le.Uint16(a[20:]))
	olds, news := attributes(a), attributes(b)
	for len(olds) > 0 && len(news) > 0 && bytes.Equal(olds[0], news[0]) {
		at += len(olds[0])
		olds, news = olds[1:], news[1:]
	}
	base.recordAt = at
	for len(olds) > 0 && len(news) > 0 && sameAttr(olds[0], news[0]) {
		base.recordAt = at
		p.logAttr(w, transaction, base, olds[0], news[0])
		at += len(news[0])
		olds, news = olds[1:], news[1:]
	}
	base.recordAt = at
	for _, old := range olds {
		x := base
		x.redoOp, x.undoOp, x.undo = 0x06, 0x05, old
		w.do(transaction, x)
	}
	for _, now := range news {
		x := base
		x.redoOp, x.redo, x.undoOp = 0x05, now, 0x06
		x.recordAt = at
		at += len(now)
		w.do(transaction, x)
	}
}

// sameAttr reports whether two attributes differ in what operations can change.
func sameAttr(a, b []byte) bool {
	return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[8:16], b[8:16]) && (a[8] == 0 && bytes.Equal(a[20:24], b[20:24]) || a[8] != 0 && bytes.Equal(a[32:36], b[32:36]))
}

// logAttr logs how an attribute changes.
func (p *volumePair) logAttr(w *logWriter, transaction uint32, base act, a, b []byte) {
	le := binary.LittleEndian
	switch {
	case a[8] != 0: // its sizes, then its runs
		x := base
		sizes := func(attr []byte) []byte { // allocated, written, of the content
			return slices.Concat(attr[40:48], attr[56:64], attr[48:56])
		}
		x.redoOp, x.redo, x.undoOp, x.undo = 0x0b, sizes(b), 0x0b, sizes(a)
		w.do(transaction, x)
		x = base
		x.at = int(le.Uint16(a[32:]))
		x.redoOp, x.redo, x.undoOp, x.undo = 0x09, b[x.at:], 0x09, a[x.at:]
		w.do(transaction, x)
	case le.Uint32(a) == 0x90:
		p.logRoot(w, transaction, base, a, b)
	default:
		at := int(le.Uint16(a[20:]))
		base.at = at
		base.redoOp, base.redo = 0x07, b[at:at+int(le.Uint32(b[16:]))]
		base.undoOp, base.undo = 0x07, a[at:at+int(le.Uint32(a[16:]))]
		w.do(transaction, base)
	}
}

// logRoot logs the entries that come and go in the root of an index.
func (p *volumePair) logRoot(w *logWriter, transaction uint32, base act, a, b []byte) {
	le := binary.LittleEndian
	list := int(le.Uint16(a[20:])) + 16
	from := list + int(le.Uint32(a[list:]))
	p.logEntries(w, transaction, base, from, entriesOf(a, from), entriesOf(b, from), 0x0c, 0x0d, 0x13)
}

func attributes(record []byte) (out [][]byte) {
	le := binary.LittleEndian
	for at := int(le.Uint16(record[20:])); le.Uint32(record[at:]) != 0xffffffff; {
		n := int(le.Uint32(record[at+4:]))
		out = append(out, record[at:at+n])
		at += n
	}
	return out
}

// logBlock logs a block of an index as a whole where it is new, or else the
// entries that come and go.
func (p *volumePair) logBlock(t testing.TB, w *logWriter, transaction uint32, attr int, off int64, a, b []byte) {
	base := act{attr: attrID(attr), vcn: off / 1024, lcns: p.lcns(attr, off, 4096)}
	must(t, ntfs.Unfix(b))
	if string(a[:4]) != "INDX" {
		base.redoOp, base.redo = 0x08, b
		w.do(transaction, base)
		return
	}
	must(t, ntfs.Unfix(a))
	from := 24 + int(binary.LittleEndian.Uint32(a[24:]))
	p.logEntries(w, transaction, base, from, entriesOf(a, from), entriesOf(b, from), 0x0e, 0x0f, 0x14)
}

// logEntries logs the entries that come and go, and those whose times and sizes
// change.
func (p *volumePair) logEntries(w *logWriter, transaction uint32, base act, at int, olds, news [][]byte, add, remove, update uint16) {
	const dup = 24 // where times and sizes of a name are
	for len(olds) > 0 || len(news) > 0 {
		x := base
		x.at = at
		switch {
		case len(olds) > 0 && len(news) > 0 && bytes.Equal(olds[0], news[0]):
			at += len(olds[0])
			olds, news = olds[1:], news[1:]
			continue
		case len(olds) > 0 && len(news) > 0 && len(olds[0]) == len(news[0]) && bytes.Equal(olds[0][:dup], news[0][:dup]) && bytes.Equal(olds[0][dup+56:], news[0][dup+56:]):
			x.redoOp, x.redo, x.undoOp, x.undo = update, news[0][dup:dup+56], update, olds[0][dup:dup+56]
			at += len(olds[0])
			olds, news = olds[1:], news[1:]
		case len(olds) > 0 && !slices.ContainsFunc(news, func(e []byte) bool { return bytes.Equal(e, olds[0]) }):
			x.redoOp, x.undoOp, x.undo = remove, add, olds[0]
			olds = olds[1:]
		default:
			x.redoOp, x.redo, x.undoOp = add, news[0], remove
			at += len(news[0])
			news = news[1:]
		}
		w.do(transaction, x)
	}
}

// entriesOf are the entries of a list that begins at a place, without the last.
func entriesOf(b []byte, at int) (out [][]byte) {
	le := binary.LittleEndian
	for b[at+12]&2 == 0 {
		n := int(le.Uint16(b[at+8:]))
		out = append(out, b[at:at+n])
		at += n
	}
	return out
}

// logBits logs the runs of bits that a cluster of a bitmap changes by.
func (p *volumePair) logBits(w *logWriter, transaction uint32, attr int, off int64, a, b []byte) {
	bit := func(b []byte, i int) bool { return b[i/8]>>(i%8)&1 != 0 }
	le := binary.LittleEndian
	for i := 0; i < 8*len(a); {
		if bit(a, i) == bit(b, i) {
			i++
			continue
		}
		from, on := i, bit(b, i)
		for i < 8*len(a) && bit(a, i) != bit(b, i) && bit(b, i) == on {
			i++
		}
		x := act{redoOp: 0x16, undoOp: 0x15, attr: attrID(attr), vcn: off / 1024, lcns: p.lcns(attr, off, 1024)}
		if on {
			x.redoOp, x.undoOp = 0x15, 0x16
		}
		x.redo = le.AppendUint32(le.AppendUint32(nil, uint32(from)), uint32(i-from))
		x.undo = x.redo
		w.do(transaction, x)
	}
}

// written is the volume after the changes, each with the LSN that NTFS would have
// left.
func (p *volumePair) written(t testing.TB, lsn uint64) []byte {
	b := bytes.Clone(p.after)
	stamp := func(piece []byte) {
		must(t, ntfs.Unfix(piece))
		binary.LittleEndian.PutUint64(piece[8:], lsn)
		ntfs.Fix(piece)
	}
	for i := range p.records {
		if at := p.at(0, int64(i)*1024); !bytes.Equal(p.before[at:at+1024], b[at:at+1024]) {
			stamp(b[at : at+1024])
		}
	}
	for _, attr := range []int{1, 2} {
		for off := int64(0); p.at(attr, off) >= 0; off += 4096 {
			stamp(b[p.at(attr, off):][:4096]) // these blocks are not in pieces
		}
	}
	return b
}

// withLog is a volume with a log.
func withLog(t testing.TB, b, log []byte) []byte {
	t.Helper()
	out := bytes.Clone(b)
	fsys, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), b))
	must(t, err)
	for e, err := range fsys.PhysicalExtents(t.Context(), find(t, fsys, "$LogFile")) {
		must(t, err)
		copy(out[e.At:e.At+e.Length], log[e.Offset:])
	}
	return out
}

func logSize(t testing.TB, b []byte) int {
	t.Helper()
	fsys, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), b))
	must(t, err)
	a, err := fsys.Stat(t.Context(), find(t, fsys, "$LogFile"))
	must(t, err)
	return int(a.Size)
}

// TestReplay: a volume on which nothing was written but the log becomes the one
// that ntfs-3g made; one on which all was written, of a transaction that did not
// end, becomes the one before. ntfs-3g's own recovery has to agree.
func TestReplay(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g", "ntfsrecover")
	t.Parallel()
	p := makePair(t)
	size := logSize(t, p.before)
	for name, c := range map[string]struct {
		v2, tail, undo, abort bool
		// late makes the checkpoint when all was logged: its tables say what is to
		// be done.
		late bool
		page int
	}{
		"1.1":             {},
		"1.1 wraps":       {page: size/logPage - 4 - 9},
		"1.1 tail copy":   {tail: true},
		"1.1 undo":        {undo: true},
		"1.1 abort":       {abort: true},
		"1.1 late":        {late: true},
		"1.1 late undo":   {late: true, undo: true},
		"2.0":             {v2: true},
		"2.0 wraps, tail": {v2: true, tail: true, page: size/logPage - 34 - 10},
		"2.0 undo":        {v2: true, undo: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLogWriter(t, size, c.v2, c.page, 7)
			var checkpoint uint64
			if !c.late {
				checkpoint = w.checkpoint(p.open, p.names, nil, nil)
			}
			known := w.last
			p.log(t, w, p.before, p.after, 0x40)
			if c.late {
				checkpoint, known = p.lateCheckpoint(w), w.last
			}
			on, want := p.before, p.after
			switch {
			case c.undo:
				on, want = p.written(t, w.last), p.before
			case c.abort:
				want = p.before
			default:
				w.end(0x40)
			}
			log := w.finish(checkpoint, known)
			if c.tail {
				w.tear()
			}
			compareReplayed(t, withLog(t, on, log), want, !c.undo && !c.late) // which ntfs-3g does not do
		})
	}
}

// lateCheckpoint makes a checkpoint whose tables have all that was done, by a
// transaction that goes on.
func (p *volumePair) lateCheckpoint(w *logWriter) uint64 {
	le := binary.LittleEndian
	var pages [][]byte
	for key, first := range w.pages {
		const perPage = 4 // clusters of 1 KiB
		e := make([]byte, 32+8*perPage)
		le.PutUint32(e[4:], uint32(key.attr))
		le.PutUint32(e[12:], perPage)
		le.PutUint64(e[16:], uint64(key.page*perPage))
		le.PutUint64(e[24:], first)
		for i := range int64(perPage) {
			if at := p.at(int(key.attr-24)/0x28, (key.page*perPage+i)*1024); at >= 0 {
				le.PutUint64(e[32+8*i:], uint64(at/1024))
			}
		}
		pages = append(pages, e)
	}
	transaction := make([]byte, 0x28)
	transaction[4] = 1 // active
	le.PutUint64(transaction[8:], w.firsts[0x40])
	le.PutUint64(transaction[16:], w.chain[0x40])
	le.PutUint64(transaction[24:], w.chain[0x40])
	return w.checkpoint(p.open, p.names, pages, [][]byte{nil, transaction})
}

// compareReplayed compares what the reader shows of a volume that is to be
// replayed with what ntfs-3g shows of one that need not be, and with what
// ntfs-3g's recovery makes of it.
func compareReplayed(t *testing.T, dirty, want []byte, withPeer bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "want.raw")
	must(t, os.WriteFile(file, want, 0o600))
	dir, _ := mount(t, file, "ro")
	fsys, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), dirty))
	must(t, err)
	if info := fsys.Info(); info.State != guestfs.Replayed || !strings.Contains(info.Note, "replayed") {
		t.Fatalf("info: %+v", info)
	}
	if n := guestfstest.Compare(t, fsys, dir, peer); n < 45 {
		t.Errorf("only %d entries were compared", n)
	}
	if !withPeer {
		return
	}
	recovered := filepath.Join(t.TempDir(), "recovered.raw")
	must(t, os.WriteFile(recovered, dirty, 0o600))
	if out, err := exec.Command("ntfsrecover", "--kill-fast-restart", "-v", recovered).CombinedOutput(); err != nil {
		t.Fatalf("ntfsrecover: %v\n%s", err, out)
	}
	guestfstest.Compare(t, open(t, recovered), dir, peer)
}
