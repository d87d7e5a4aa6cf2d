package appliance

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// File is what is told of a guest's file.
type File struct {
	Name string `json:"name"` // invalid UTF-8 replaced; then Raw has the bytes
	Raw  string `json:"name_base64,omitempty"`
	Path string `json:"path"` // in the volume or the guest's tree
	Type string `json:"type"` // file, dir, symlink, char, block, fifo, socket
	Mode string `json:"mode"` // octal permissions
	// Attr is everything else; nil where Error says why.
	Attr    *guestfs.Attr `json:"-"`
	Inode   uint64        `json:"inode"`
	Links   uint32        `json:"links"`
	UID     uint32        `json:"uid"`
	GID     uint32        `json:"gid"`
	Size    int64         `json:"size"`
	Used    int64         `json:"allocated"`
	Modify  *time.Time    `json:"mtime,omitempty"`
	Change  *time.Time    `json:"ctime,omitempty"`
	Access  *time.Time    `json:"atime,omitempty"`
	Birth   *time.Time    `json:"btime,omitempty"`
	Target  string        `json:"target,omitempty"`
	Device  string        `json:"device,omitempty"` // "8:1"
	Flags   []string      `json:"flags,omitempty"`
	Xattrs  []FileXattr   `json:"xattrs,omitempty"`
	Streams []FileStream  `json:"streams,omitempty"`
	// Descriptor is a Windows security descriptor, self-relative.
	Descriptor []byte `json:"security_descriptor,omitempty"`
	Error      string `json:"error,omitempty"`
}

// FileXattr is an extended attribute.
type FileXattr struct {
	Name  string `json:"name"`
	Value []byte `json:"value"` // base64 in JSON
}

// FileStream is a named stream.
type FileStream struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// fileTypes are the names of types.
func fileType(mode uint32) string {
	switch mode & guestfs.TypeMask {
	case guestfs.TypeFile:
		return "file"
	case guestfs.TypeDir:
		return "dir"
	case guestfs.TypeSymlink:
		return "symlink"
	case guestfs.TypeChar:
		return "char"
	case guestfs.TypeBlock:
		return "block"
	case guestfs.TypeFIFO:
		return "fifo"
	case guestfs.TypeSocket:
		return "socket"
	}
	return "unknown"
}

func newFile(path string, e guestfs.Entry) File {
	f := File{Name: e.Name, Path: path, Inode: uint64(e.Inode), Attr: e.Attr, Type: fileType(e.Type)}
	if !utf8.ValidString(f.Name) {
		f.Raw = base64.StdEncoding.EncodeToString([]byte(f.Name))
		f.Name = strings.ToValidUTF8(f.Name, "\uFFFD")
	}
	f.Path = strings.ToValidUTF8(f.Path, "\uFFFD")
	if e.Err != nil {
		f.Error = e.Err.Error()
	}
	a := e.Attr
	if a == nil {
		return f
	}
	f.Type, f.Mode = fileType(a.Mode), fmt.Sprintf("%04o", a.Mode&0o7777)
	f.Links, f.UID, f.GID, f.Size, f.Used = a.Links, a.UID, a.GID, a.Size, a.Allocated
	f.Modify, f.Change, f.Access, f.Birth = moment(a.Mtime), moment(a.Ctime), moment(a.Atime), moment(a.Btime)
	if t := a.Type(); t == guestfs.TypeChar || t == guestfs.TypeBlock {
		f.Device = fmt.Sprintf("%d:%d", a.Major, a.Minor)
	}
	f.Flags = flagNames(a.Flags)
	return f
}

// moment is a time in UTC, or nil where the file system has none, or one that
// JSON cannot say.
func moment(t time.Time) *time.Time {
	if t.IsZero() || t.Year() < 0 || t.Year() > 9999 {
		return nil
	}
	u := t.UTC()
	return &u
}

func flagNames(flags guestfs.Flags) []string {
	var out []string
	for i, name := range []string{
		"immutable", "append-only", "compressed", "encrypted", "sparse", "verity",
		"read-only", "hidden", "system", "archive", "offline", "reparse",
	} {
		if flags&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// List yields what is at a place: the entries of a directory, or the file
// itself. Links are shown, not followed, unless the place ends in a slash.
func (g *Guest) List(ctx context.Context, place string) iter.Seq2[File, error] {
	return func(yield func(File, error) bool) {
		fsys, at, err := g.find(ctx, place, tree.NoFollow)
		if err != nil {
			yield(File{}, err)
			return
		}
		if at.Type != guestfs.TypeDir {
			f, err := describe(ctx, fsys, at)
			yield(f, err)
			return
		}
		for e, err := range guestfs.ReadDirPlus(ctx, fsys, at.Inode, 0, false) {
			if err != nil {
				yield(File{}, guestError(err))
				return
			}
			f := newFile(childPath(at.Path, e.Name), e)
			f.addTarget(ctx, fsys, e)
			if !yield(f, nil) {
				return
			}
		}
	}
}

func childPath(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

// find walks to a place.
func (g *Guest) find(ctx context.Context, place string, mode tree.Mode) (guestfs.FS, tree.Found, error) {
	fsys, path, err := g.Locate(ctx, place)
	if err != nil {
		return nil, tree.Found{}, err
	}
	at, err := tree.Walk(ctx, fsys, path, mode)
	return fsys, at, guestError(err)
}

func (f *File) addTarget(ctx context.Context, fsys guestfs.FS, e guestfs.Entry) {
	if e.Attr == nil || e.Attr.Type() != guestfs.TypeSymlink {
		return
	}
	target, err := guestfs.ReadLink(ctx, fsys, e.Inode)
	if err != nil {
		f.Error = err.Error()
	}
	f.Target = strings.ToValidUTF8(target, "\uFFFD")
}

// Stat tells everything of the file at a place, without following a link there.
func (g *Guest) Stat(ctx context.Context, place string) (File, error) {
	fsys, at, err := g.find(ctx, place, tree.NoFollow)
	if err != nil {
		return File{}, err
	}
	return describe(ctx, fsys, at)
}

func describe(ctx context.Context, fsys guestfs.FS, at tree.Found) (File, error) {
	e := guestfs.Describe(ctx, fsys, at.Dirent, true)
	if e.Attr == nil {
		return File{}, guestError(e.Err)
	}
	f := newFile(at.Path, e)
	f.addTarget(ctx, fsys, e)
	for _, x := range e.Xattrs {
		f.Xattrs = append(f.Xattrs, FileXattr{strings.ToValidUTF8(x.Name, "\uFFFD"), x.Value})
	}
	if r, ok := fsys.(guestfs.StreamReader); ok {
		list, err := r.Streams(ctx, at.Inode)
		f.fail(err)
		for _, s := range list {
			f.Streams = append(f.Streams, FileStream(s))
		}
	}
	if r, ok := fsys.(guestfs.SecurityReader); ok {
		sd, err := r.SecurityDescriptor(ctx, at.Inode)
		f.fail(err)
		f.Descriptor = sd
	}
	return f, nil
}

// fail notes what could not be told.
func (f *File) fail(err error) {
	if err != nil && f.Error == "" {
		f.Error = err.Error()
	}
}

// OpenFile opens the content of the file at a place; links are followed. Where
// no file has that name, what follows its last colon is a named stream.
func (g *Guest) OpenFile(ctx context.Context, place string) (disk.Image, error) {
	fsys, at, err := g.find(ctx, place, tree.Follow)
	if errors.Is(err, ErrNotFound) {
		if img, ok := g.openStream(ctx, place); ok {
			return img, nil
		}
	}
	if err != nil {
		return nil, err
	}
	switch at.Type {
	case guestfs.TypeDir:
		return nil, fmt.Errorf("%w: it is a directory", ErrUsage)
	case guestfs.TypeFIFO, guestfs.TypeSocket, guestfs.TypeChar, guestfs.TypeBlock:
		return nil, fmt.Errorf("%w: it is a special file (%s), there is nothing in it", ErrUsage, fileType(at.Type))
	}
	img, err := fsys.Open(ctx, at.Inode)
	return img, guestError(err)
}

func (g *Guest) openStream(ctx context.Context, place string) (disk.Image, bool) {
	i := strings.LastIndexByte(place, ':')
	if i <= strings.LastIndexAny(place, `/\`) {
		return nil, false
	}
	fsys, at, err := g.find(ctx, place[:i], tree.Follow)
	if err != nil {
		return nil, false
	}
	r, ok := fsys.(guestfs.StreamReader)
	if !ok {
		return nil, false
	}
	img, err := r.OpenStream(ctx, at.Inode, place[i+1:])
	return img, err == nil
}

// copyChunk is how much of a file is read at once, in bytes.
const copyChunk = 1 << 20

// Cat writes the content of the file at a place. progress hears of bytes.
func (g *Guest) Cat(ctx context.Context, w io.Writer, place string, progress func(done, total int64)) error {
	img, err := g.OpenFile(ctx, place)
	if err != nil {
		return err
	}
	defer img.Close()
	buf := make([]byte, copyChunk)
	for off := int64(0); off < img.Size(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := int(min(int64(len(buf)), img.Size()-off))
		if m, err := img.ReadAt(buf[:n], off); m < n {
			return guestError(fmt.Errorf("at %d: %w", off+int64(m), unexpected(err)))
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
		if progress != nil {
			progress(off, img.Size())
		}
	}
	return nil
}

func unexpected(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
