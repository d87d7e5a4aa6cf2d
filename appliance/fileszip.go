package appliance

import (
	"archive/zip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/flate"

	"lifeboat/guestfs"
)

// Names in a zip archive that are ours.
const (
	zipSidecar = ".lifeboat-metadata.jsonl"
	zipStreams = ".lifeboat-streams/"
)

// GetToZip takes files out of a guest into a zip archive, for who has nothing
// else: zip knows names, times, permissions and links. Everything beyond that is
// in a file of JSON lines at its end, .lifeboat-metadata.jsonl, one for each file
// that has more; named streams are files below .lifeboat-streams. It is written as
// a stream, and has no limits of size (zip64).
//
// Names are made safe for whoever unpacks it on Windows: what could be a
// separator or a drive there is an underscore, and the sidecar has the real name.
func (g *Guest) GetToZip(ctx context.Context, w io.Writer, req GetRequest) (*GetResult, error) {
	spool, err := os.CreateTemp("", "lifeboat-metadata-*")
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil { // it goes with the process, whatever comes
		return nil, fmt.Errorf("get: %w", err)
	}
	z := &zipTaker{zip: zip.NewWriter(w), spool: spool, lines: json.NewEncoder(spool), used: map[string]bool{}}
	z.zip.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.BestSpeed)
	})
	result, err := g.get(ctx, req, z)
	if err != nil {
		return result, err
	}
	if err := z.sidecar(); err != nil {
		return result, err
	}
	return result, z.zip.Close()
}

// zipTaker writes a zip archive. Directories' names are made safe on the way down.
type zipTaker struct {
	zip   *zip.Writer
	spool *os.File // the sidecar until its turn
	lines *json.Encoder
	wrote bool // something in it
	dirs  []string
	used  map[string]bool // names that were changed, to keep them apart
	buf   []byte
}

// zipMetadata is a line of the sidecar.
type zipMetadata struct {
	Name       string            `json:"name"`                  // in the archive
	Path       string            `json:"path,omitempty"`        // where it differs
	PathBytes  string            `json:"path_base64,omitempty"` // where it is not UTF-8
	Mode       string            `json:"mode"`
	UID        uint32            `json:"uid"`
	GID        uint32            `json:"gid"`
	Modify     *time.Time        `json:"mtime,omitempty"`
	Change     *time.Time        `json:"ctime,omitempty"`
	Access     *time.Time        `json:"atime,omitempty"`
	Birth      *time.Time        `json:"btime,omitempty"`
	Attributes uint32            `json:"attributes,omitempty"` // FILE_ATTRIBUTE_*
	Descriptor []byte            `json:"security_descriptor,omitempty"`
	Xattrs     []FileXattr       `json:"xattrs,omitempty"`
	Streams    map[string]string `json:"streams,omitempty"` // name → file in the archive
	HardLink   string            `json:"hard_link,omitempty"`
	Device     string            `json:"device,omitempty"`
}

// name is a path as it goes into the archive.
func (z *zipTaker) name(it *item) string {
	safe := strings.Map(func(r rune) rune {
		if r == '\\' || r == ':' || r < ' ' {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(it.name, "_"))
	if safe == ".." || safe == "." {
		safe = "_"
	}
	if len(z.dirs) > 0 {
		safe = z.dirs[len(z.dirs)-1] + safe
	}
	if safe == it.path && !strings.HasPrefix(safe, ".lifeboat-") {
		return safe
	}
	for n, free := 2, safe; ; n++ {
		if !z.used[safe] {
			z.used[safe] = true
			return safe
		}
		safe = fmt.Sprintf("%s_%d", free, n)
	}
}

func (z *zipTaker) header(it *item, name string, kind os.FileMode) *zip.FileHeader {
	h := &zip.FileHeader{Name: name, Modified: it.attr.Mtime, Method: zip.Deflate, NonUTF8: false}
	h.SetMode(kind | permissions(it.attr.Mode))
	if dos := dosAttributes(it.attr); dos != 0 {
		h.ExternalAttrs |= dos & 0x3f
	}
	return h
}

func permissions(mode uint32) os.FileMode {
	m := os.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

func (z *zipTaker) enter(_ context.Context, dir *item) error {
	name := z.name(dir) + "/"
	z.dirs = append(z.dirs, name)
	h := z.header(dir, name, os.ModeDir)
	h.Method = zip.Store
	if _, err := z.zip.CreateHeader(h); err != nil {
		return err
	}
	return z.note(dir, name, nil)
}

func (z *zipTaker) leave(context.Context, *item) error {
	z.dirs = z.dirs[:len(z.dirs)-1]
	return nil
}

func (z *zipTaker) take(ctx context.Context, it *item) error {
	name := z.name(it)
	switch it.attr.Type() {
	case guestfs.TypeFile:
		return z.file(ctx, it, name)
	case guestfs.TypeSymlink:
		w, err := z.zip.CreateHeader(z.header(it, name, os.ModeSymlink))
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, it.target); err != nil {
			return err
		}
		return z.note(it, name, nil)
	}
	it.leave("special files", "a zip archive has no such thing; the sidecar describes them")
	return z.note(it, name, nil)
}

func (z *zipTaker) file(ctx context.Context, it *item, name string) error {
	img, err := it.open(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	defer img.Close()
	w, err := z.zip.CreateHeader(z.header(it, name, 0))
	if err != nil {
		return err
	}
	if err := z.content(ctx, w, it, img); err != nil {
		return err
	}
	streams := map[string]string{}
	for _, s := range it.streams {
		if err := z.stream(ctx, it, name, s, streams); err != nil {
			return err
		}
	}
	return z.note(it, name, streams)
}

// content copies a file. What cannot be read any more is zeros, as in a tar
// archive, and is told of as missing.
func (z *zipTaker) content(ctx context.Context, w io.Writer, it *item, img io.ReaderAt) error {
	size := it.attr.Size
	if s, ok := img.(interface{ Size() int64 }); ok {
		size = s.Size()
	}
	if z.buf == nil {
		z.buf = make([]byte, copyChunk)
	}
	told := false
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := z.buf[:min(int64(len(z.buf)), size-off)]
		if n, err := img.ReadAt(p, off); n < len(p) {
			clear(p[n:])
			if !told {
				told = true
				it.left(LeftOut{What: "part of the content", Why: fmt.Sprintf("at %d: %v; zeros were written", off+int64(n), unexpected(err)), Data: true, Paths: []string{it.from}})
			}
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
		it.written(int64(len(p)))
	}
	return nil
}

func (z *zipTaker) stream(ctx context.Context, it *item, name string, s guestfs.Stream, streams map[string]string) error {
	img, err := it.fs.(guestfs.StreamReader).OpenStream(ctx, it.inode, s.Name)
	if err != nil {
		it.leave("named streams", err.Error())
		return nil
	}
	defer img.Close()
	file := fmt.Sprintf("%s%s/%d", zipStreams, name, len(streams)+1)
	w, err := z.zip.CreateHeader(z.header(it, file, 0))
	if err != nil {
		return err
	}
	streams[strings.ToValidUTF8(s.Name, "\uFFFD")] = file
	return z.content(ctx, w, it, img)
}

// note writes what zip cannot say of a file to the sidecar.
func (z *zipTaker) note(it *item, name string, streams map[string]string) error {
	a := it.attr
	m := zipMetadata{
		Name: name, Mode: fmt.Sprintf("%06o", a.Mode), UID: a.UID, GID: a.GID,
		Modify: moment(a.Mtime), Change: moment(a.Ctime), Access: moment(a.Atime), Birth: moment(a.Btime),
		Attributes: dosAttributes(a), Descriptor: it.sd, Streams: streams, HardLink: strings.ToValidUTF8(it.linked, "\uFFFD"),
	}
	if path.Clean(name) != it.path {
		m.Path = strings.ToValidUTF8(it.path, "\uFFFD")
	}
	if !utf8.ValidString(it.path) {
		m.PathBytes = base64.StdEncoding.EncodeToString([]byte(it.path))
	}
	for _, x := range it.xattrs {
		m.Xattrs = append(m.Xattrs, FileXattr{strings.ToValidUTF8(x.Name, "\uFFFD"), x.Value})
	}
	if t := a.Type(); t == guestfs.TypeChar || t == guestfs.TypeBlock {
		m.Device = fmt.Sprintf("%d:%d", a.Major, a.Minor)
	}
	z.wrote = true
	return z.lines.Encode(m)
}

// sidecar puts what was noted at the end of the archive.
func (z *zipTaker) sidecar() error {
	if !z.wrote {
		return nil
	}
	if _, err := z.spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w, err := z.zip.Create(zipSidecar)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, z.spool)
	return err
}
