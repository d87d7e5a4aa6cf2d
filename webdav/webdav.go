// Package webdav shows the tree of all restore points (package browse) over
// WebDAV (RFC 4918), read-only: Windows and macOS mount it as a drive without
// further software.
//
// WebDAV has no symbolic links, so a guest's link is shown as what it leads to in
// its volume, and not at all where that is nowhere. Class 1 is all there is to a
// server that nobody can write to: clients see from it that they cannot.
package webdav

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/net/webdav"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/browse"
)

// Options of the server. The zero value is good on loopback only.
type Options struct {
	// User and Password, if a password is set, are asked for (HTTP basic
	// authentication): without TLS they pass in clear text.
	User, Password string
	Logger         *slog.Logger // nil: slog.Default
}

// methods are those that read.
const methods = "OPTIONS, GET, HEAD, PROPFIND"

// Handler serves a tree.
func Handler(tree *browse.Namespace, o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	dav := &webdav.Handler{
		FileSystem: &files{tree}, LockSystem: webdav.NewMemLS(),
		Logger: func(r *http.Request, err error) {
			if err != nil && !os.IsNotExist(err) && r.Context().Err() == nil {
				o.Logger.Warn("a file cannot be read", "method", r.Method, "path", r.URL.Path, "error", err)
			}
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.allowed(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="Lifeboat", charset="UTF-8"`)
			http.Error(w, "user and password are needed", http.StatusUnauthorized)
			return
		}
		switch r.Method {
		case http.MethodOptions:
			w.Header().Set("Allow", methods)
			w.Header().Set("DAV", "1")
			w.Header().Set("MS-Author-Via", "DAV") // Windows looks for it
		case http.MethodGet, http.MethodHead:
			// What a guest made is data, whatever its name says: no browser is to run
			// it as a page of ours.
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
			dav.ServeHTTP(w, r)
		case "PROPFIND":
			if depth := r.Header.Get("Depth"); depth != "0" && depth != "1" {
				finiteDepth(w)
				return
			}
			dav.ServeHTTP(w, r)
		default:
			w.Header().Set("Allow", methods)
			http.Error(w, "restore points are read-only", http.StatusMethodNotAllowed)
		}
	})
}

// allowed compares in the same time whatever is wrong.
func (o Options) allowed(r *http.Request) bool {
	if o.Password == "" {
		return true
	}
	user, password, _ := r.BasicAuth()
	sameUser := subtle.ConstantTimeCompare([]byte(user), []byte(o.User))
	return sameUser&subtle.ConstantTimeCompare([]byte(password), []byte(o.Password)) == 1
}

// finiteDepth refuses to list everything at once (RFC 4918, section 9.1).
func finiteDepth(w http.ResponseWriter) {
	w.Header().Set("Content-Type", `application/xml; charset="utf-8"`)
	w.WriteHeader(http.StatusForbidden)
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><error xmlns="DAV:"><propfind-finite-depth/></error>`)
}

// files is the tree as x/net/webdav wants it.
type files struct{ tree *browse.Namespace }

func (f *files) Mkdir(context.Context, string, os.FileMode) error        { return fs.ErrPermission }
func (f *files) RemoveAll(context.Context, string) error                 { return fs.ErrPermission }
func (f *files) Rename(_ context.Context, oldName, newName string) error { return fs.ErrPermission }

// Stat implements webdav.FileSystem.
func (f *files) Stat(ctx context.Context, name string) (os.FileInfo, error) {
	i, err := f.stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return i, nil
}

func (f *files) stat(ctx context.Context, name string) (*info, error) {
	at, err := f.tree.Walk(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, guestfs.ErrNotDir) {
		// x/net/webdav asks os.IsNotExist, which does not unwrap: PROPFIND of what
		// file managers look for (desktop.ini, ._name) would be 405.
		return nil, &fs.PathError{Op: "look up", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, err
	}
	a, err := f.tree.Stat(ctx, at.Inode)
	if err != nil {
		return nil, err
	}
	return &info{name: path.Base(name), inode: at.Inode, attr: a}, nil
}

// OpenFile implements webdav.FileSystem. The content is opened when somebody
// reads it: most callers only ask for properties.
func (f *files) OpenFile(ctx context.Context, name string, flag int, _ os.FileMode) (webdav.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0 {
		return nil, fs.ErrPermission
	}
	i, err := f.stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return &file{ctx: ctx, tree: f.tree, path: name, info: i}, nil
}

// info describes a file.
type info struct {
	name  string
	inode guestfs.Inode
	attr  *guestfs.Attr
}

var (
	_ webdav.ContentTyper = (*info)(nil)
	_ webdav.ETager       = (*info)(nil)
)

func (i *info) Name() string       { return i.name }
func (i *info) Size() int64        { return i.attr.Size }
func (i *info) ModTime() time.Time { return i.attr.Mtime }
func (i *info) IsDir() bool        { return i.attr.Type() == guestfs.TypeDir }
func (i *info) Sys() any           { return nil }

func (i *info) Mode() os.FileMode {
	mode := os.FileMode(i.attr.Mode & 0o777)
	switch i.attr.Type() {
	case guestfs.TypeDir:
		mode |= os.ModeDir
	case guestfs.TypeFile:
	default:
		mode |= os.ModeIrregular
	}
	return mode
}

// ContentType goes by the name alone: looking into every file of a directory
// would take long.
func (i *info) ContentType(context.Context) (string, error) {
	if t := mime.TypeByExtension(path.Ext(i.name)); t != "" {
		return t, nil
	}
	return "application/octet-stream", nil
}

// ETag is the file's number: what a restore point holds never changes.
func (i *info) ETag(context.Context) (string, error) {
	return fmt.Sprintf(`"%x-%x"`, uint64(i.inode), i.attr.Size), nil
}

// file is an open file or directory. Its methods are called one after the other.
type file struct {
	ctx  context.Context
	tree *browse.Namespace
	path string
	info *info
	img  disk.Image
	off  int64
	next uint64 // cookie of the last entry that was listed
}

func (f *file) Stat() (os.FileInfo, error) { return f.info, nil }

func (f *file) Close() error {
	if f.img == nil {
		return nil
	}
	return f.img.Close()
}

func (f *file) Write([]byte) (int, error) { return 0, fs.ErrPermission }

func (f *file) Read(p []byte) (int, error) {
	if f.img == nil {
		var err error
		if f.img, err = f.tree.Open(f.ctx, f.info.inode); err != nil {
			return 0, err
		}
	}
	if f.off >= f.img.Size() {
		return 0, io.EOF
	}
	n, err := f.img.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *file) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += f.info.attr.Size
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	f.off = off
	return off, nil
}

// Readdir lists a directory: count entries, or all where it is not positive. An
// entry that leads nowhere or cannot be described is left out.
func (f *file) Readdir(count int) ([]os.FileInfo, error) {
	var list []os.FileInfo
	for e, err := range f.tree.ReadDirPlus(f.ctx, f.info.inode, f.next, false) {
		if err != nil {
			return list, err
		}
		f.next = e.Cookie
		if i := f.entry(e); i != nil {
			list = append(list, i)
		}
		if count > 0 && len(list) == count {
			return list, nil
		}
	}
	if count > 0 && len(list) == 0 {
		return nil, io.EOF
	}
	return list, nil
}

func (f *file) entry(e guestfs.Entry) *info {
	switch {
	case e.Attr == nil:
		return nil
	case e.Attr.Type() != guestfs.TypeSymlink:
		return &info{name: e.Name, inode: e.Inode, attr: e.Attr}
	}
	at, err := f.tree.Walk(f.ctx, strings.TrimSuffix(f.path, "/")+"/"+e.Name)
	if err != nil {
		return nil
	}
	a, err := f.tree.Stat(f.ctx, at.Inode)
	if err != nil {
		return nil
	}
	return &info{name: e.Name, inode: at.Inode, attr: a}
}
