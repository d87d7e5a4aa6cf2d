package appliance

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// GetToTar takes files out of a guest into a tar archive: POSIX.1-2001 (pax), with
// what tar(5) of libarchive calls
//
//   - SCHILY.xattr.NAME: extended attributes, ACLs and capabilities among them
//   - GNU.sparse.* (1.0): files with holes
//   - LIBARCHIVE.creationtime
//   - MSWINDOWS.fileattr, MSWINDOWS.rawsd: attributes and security descriptor of
//     Windows, as Microsoft's own tools write them; named streams are files of
//     their own, called FILE:STREAM
//
// Go's archive/tar has no sparse files, and refuses names that are not UTF-8.
func (g *Guest) GetToTar(ctx context.Context, w io.Writer, req GetRequest) (*GetResult, error) {
	t := &tarTaker{w: bufio.NewWriterSize(w, 1<<20)}
	result, err := g.get(ctx, req, t)
	if err != nil {
		return result, err
	}
	return result, t.end()
}

const tarBlock = 512

// tarTaker writes an archive.
type tarTaker struct {
	w   *bufio.Writer
	buf []byte
}

// end writes the two empty blocks that end an archive.
func (t *tarTaker) end() error {
	if _, err := t.w.Write(make([]byte, 2*tarBlock)); err != nil {
		return err
	}
	return t.w.Flush()
}

// tarHeader is one member before its content.
type tarHeader struct {
	kind   byte // typeflag
	name   string
	link   string
	size   int64 // of what follows, bytes
	mode   uint32
	attr   *guestfs.Attr
	extras map[string]string // records of an extended header
}

func (t *tarTaker) enter(_ context.Context, dir *item) error {
	return t.header(tarMember(dir, '5', dir.path+"/"))
}

func (t *tarTaker) leave(context.Context, *item) error { return nil }

// tarMember is the header of an item.
func tarMember(it *item, kind byte, name string) *tarHeader {
	h := &tarHeader{kind: kind, name: name, mode: it.attr.Mode & 0o7777, attr: it.attr, extras: map[string]string{}}
	for _, x := range it.xattrs {
		h.extras["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	if dos := dosAttributes(it.attr); dos != 0 || len(it.sd) > 0 { // of Windows: others' tools complain about these keys
		h.extras["MSWINDOWS.fileattr"] = strconv.Itoa(int(dos))
		if b := it.attr.Btime; !b.IsZero() {
			h.extras["LIBARCHIVE.creationtime"] = paxTime(b)
		}
	}
	if len(it.sd) > 0 {
		h.extras["MSWINDOWS.rawsd"] = base64.StdEncoding.EncodeToString(it.sd)
	}
	return h
}

// dosAttributes are FILE_ATTRIBUTE_* (MS-FSCC 2.6) of a file that has any which
// only Windows knows.
func dosAttributes(a *guestfs.Attr) uint32 {
	var out uint32
	const windows = guestfs.ReadOnly | guestfs.Hidden | guestfs.System | guestfs.Archive | guestfs.Offline | guestfs.Reparse
	if a.Flags&windows == 0 {
		return 0
	}
	for flag, bit := range map[guestfs.Flags]uint32{
		guestfs.ReadOnly: 0x1, guestfs.Hidden: 0x2, guestfs.System: 0x4, guestfs.Archive: 0x20, guestfs.Sparse: 0x200,
		guestfs.Reparse: 0x400, guestfs.Compressed: 0x800, guestfs.Offline: 0x1000, guestfs.EncryptedFile: 0x4000,
	} {
		if a.Flags&flag != 0 {
			out |= bit
		}
	}
	if a.Type() == guestfs.TypeDir {
		out |= 0x10
	}
	return out
}

func (t *tarTaker) take(ctx context.Context, it *item) error {
	if it.linked != "" {
		h := tarMember(it, '1', it.path)
		h.link, h.extras = it.linked, nil
		return t.header(h)
	}
	kind, ok := map[uint32]byte{
		guestfs.TypeFile: '0', guestfs.TypeSymlink: '2', guestfs.TypeChar: '3', guestfs.TypeBlock: '4', guestfs.TypeFIFO: '6',
	}[it.attr.Type()]
	if !ok {
		it.leave("sockets", "an archive has no such thing")
		return nil
	}
	h := tarMember(it, kind, it.path)
	h.link = it.target
	if kind == '0' {
		return t.file(ctx, it, h)
	}
	return t.header(h)
}

func (t *tarTaker) file(ctx context.Context, it *item, h *tarHeader) error {
	img, err := it.open(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	defer img.Close()
	if err := t.content(ctx, it, h, img); err != nil {
		return err
	}
	for _, s := range it.streams {
		if err := t.stream(ctx, it, s); err != nil {
			return err
		}
	}
	return nil
}

// stream writes a named stream as a file beside its own.
func (t *tarTaker) stream(ctx context.Context, it *item, s guestfs.Stream) error {
	if !properName(s.Name) {
		it.leave("named streams", "the name is none")
		return nil
	}
	img, err := it.fs.(guestfs.StreamReader).OpenStream(ctx, it.inode, s.Name)
	if err != nil {
		it.leave("named streams", err.Error())
		return nil
	}
	defer img.Close()
	return t.content(ctx, it, &tarHeader{kind: '0', name: it.path + ":" + s.Name, mode: it.attr.Mode & 0o7777, attr: it.attr, extras: map[string]string{}}, img)
}

// content writes a member with its bytes. Once its header is written they have to
// come: what cannot be read any more is zeros, and is told of as missing.
func (t *tarTaker) content(ctx context.Context, it *item, h *tarHeader, img disk.Image) error {
	runs, holes, err := dataRuns(ctx, img)
	if err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	var table []byte
	h.size = img.Size()
	if holes {
		table = sparseTable(runs, img.Size())
		h.sparse(img.Size(), int64(len(table)), runs)
	} else {
		runs = []disk.Extent{disk.Whole(img)}
	}
	if err := t.header(h); err != nil {
		return err
	}
	if _, err := t.w.Write(table); err != nil {
		return err
	}
	var lost error
	for _, e := range runs {
		if err := t.run(ctx, it, img, e, &lost); err != nil {
			return err
		}
	}
	if err := t.pad(h.size); err != nil {
		return err
	}
	if lost != nil {
		it.left(LeftOut{What: "part of the content", Why: lost.Error() + "; zeros were written", Data: true, Paths: []string{it.from}})
	}
	return nil
}

// run copies a run of data; from where it cannot be read on, zeros.
func (t *tarTaker) run(ctx context.Context, it *item, img disk.Image, e disk.Extent, lost *error) error {
	if t.buf == nil {
		t.buf = make([]byte, copyChunk)
	}
	for off := e.Offset; off < e.End(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := t.buf[:min(int64(len(t.buf)), e.End()-off)]
		if n, err := img.ReadAt(p, off); n < len(p) {
			clear(p[n:])
			if *lost == nil {
				*lost = fmt.Errorf("at %d: %w", off+int64(n), unexpected(err))
			}
		}
		if _, err := t.w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
		it.written(int64(len(p)))
	}
	return nil
}

func (t *tarTaker) pad(size int64) error {
	_, err := t.w.Write(make([]byte, (tarBlock-size%tarBlock)%tarBlock))
	return err
}

// maxSparseRuns bounds the table of a sparse file: one with more is written whole.
const maxSparseRuns = 1 << 18

// dataRuns are the runs of data of a file, and whether leaving the rest out is
// worth it.
func dataRuns(ctx context.Context, img disk.Image) (runs []disk.Extent, holes bool, err error) {
	const worth = 64 << 10
	var hole int64
	for e, err := range disk.Extents(ctx, img, disk.Whole(img)) {
		switch {
		case err != nil:
			return nil, false, err
		case e.Hole:
			hole += e.Length
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].End() == e.Offset {
			runs[n-1].Length += e.Length
			continue
		}
		if len(runs) == maxSparseRuns {
			return nil, false, nil
		}
		runs = append(runs, e)
	}
	return runs, hole >= worth, nil
}

// sparseTable is the map that GNU's format 1.0 puts before the data: a count, and
// offset and length of each run, one decimal number a line, in whole blocks. Where
// the file ends in a hole, an empty run says how long it is.
func sparseTable(runs []disk.Extent, size int64) []byte {
	count := len(runs)
	endsInHole := count == 0 || runs[count-1].End() < size
	if endsInHole {
		count++
	}
	b := append(strconv.AppendInt(nil, int64(count), 10), '\n')
	for _, e := range runs {
		b = fmt.Appendf(b, "%d\n%d\n", e.Offset, e.Length)
	}
	if endsInHole {
		b = fmt.Appendf(b, "%d\n0\n", size)
	}
	return append(b, make([]byte, (tarBlock-len(b)%tarBlock)%tarBlock)...)
}

// sparse makes the header one of a sparse file: who does not know the format
// extracts something under a name that says so.
func (h *tarHeader) sparse(size, table int64, runs []disk.Extent) {
	h.extras["GNU.sparse.major"], h.extras["GNU.sparse.minor"] = "1", "0"
	h.extras["GNU.sparse.name"], h.extras["GNU.sparse.realsize"] = h.name, strconv.FormatInt(size, 10)
	h.size = table
	for _, e := range runs {
		h.size += e.Length
	}
	dir, base := path.Split(h.name)
	h.name = dir + "GNUSparseFile.0/" + base
}

// header writes the header of a member, and before it an extended one with what
// does not fit, or always has to be there.
func (t *tarTaker) header(h *tarHeader) error {
	records := maps.Clone(h.extras)
	if records == nil {
		records = map[string]string{}
	}
	b := h.ustar(records)
	if len(records) > 0 {
		if err := t.extended(h, records); err != nil {
			return err
		}
	}
	_, err := t.w.Write(b)
	return err
}

func (t *tarTaker) extended(h *tarHeader, records map[string]string) error {
	var body []byte
	for _, key := range slices.Sorted(maps.Keys(records)) {
		body = append(body, paxRecord(key, records[key])...)
	}
	x := &tarHeader{kind: 'x', name: "PaxHeaders/" + path.Base(h.name), size: int64(len(body)), mode: 0o644, attr: &guestfs.Attr{Mtime: h.attr.Mtime}}
	x.name = x.name[:min(len(x.name), 100)]
	ignored := map[string]string{}
	if _, err := t.w.Write(x.ustar(ignored)); err != nil {
		return err
	}
	if _, err := t.w.Write(body); err != nil {
		return err
	}
	return t.pad(int64(len(body)))
}

// paxRecord is "LENGTH KEY=VALUE\n", whose length counts itself.
func paxRecord(key, value string) string {
	const around = 3 // space, = and newline
	n := len(key) + len(value) + around
	n += len(strconv.Itoa(n + len(strconv.Itoa(n))))
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

func paxTime(at time.Time) string {
	sec, nsec := at.Unix(), at.Nanosecond()
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 { // the fraction counts away from zero
		sign, sec, nsec = "-", -sec-1, 1_000_000_000-nsec
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}
