// Package guestfstest tests readers of guest file systems against the only
// authority there is, the operating system that wrote them: images are made with
// mkfs, filled through the kernel (or ntfs-3g), and what a reader says of the
// whole tree is compared with what the mounted file system says. Zero
// differences is the bar.
//
// Mounting wants root and loop devices; [NeedMount] says so where they are
// missing.
package guestfstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Compared says what the peer can't tell, so that it is not compared. The zero
// value compares everything.
type Compared struct {
	NoInodes    bool                             // inode numbers are the peer's own
	NoXattrs    bool                             // attributes, ACLs and capabilities
	NoCtime     bool                             // time of the inode
	NoAtime     bool                             // time of the last access
	NoBtime     bool                             // time of creation
	NoDirTimes  bool                             // times of directories
	NoOwner     bool                             // owner, group and permissions are the mount's
	NoDirSize   bool                             // size of directories
	NoDirLinks  bool                             // link count of directories
	NoAllocated bool                             // bytes on the volume
	Granularity time.Duration                    // of the peer's times; 0: exact
	Mounted     time.Time                        // later times of the peer are what it did while it mounted; zero: there are none
	Skip        func(path string) bool           // what is not looked at, by path in the file system
	Xattr       func(name string) (string, bool) // renames an attribute of the peer, or leaves it out
}

// maxDifferences is how many are reported before a comparison gives up.
const maxDifferences = 50

// comparison walks a reader and a mounted tree side by side.
type comparison struct {
	t       testing.TB
	ctx     context.Context
	fs      guestfs.FS
	opts    Compared
	seen    map[guestfs.Inode]bool // content that was compared under another name
	entries int
	wrong   int

	ours, theirs []byte // content that is compared
}

// Compare compares the whole tree of fsys with the one mounted at dir, in both
// directions, and returns the number of entries that it saw.
func Compare(t testing.TB, fsys guestfs.FS, dir string, opts Compared) int {
	t.Helper()
	c := &comparison{t: t, ctx: t.Context(), fs: fsys, opts: opts, seen: map[guestfs.Inode]bool{}}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", dir, err)
	}
	defer unix.Close(root)
	c.attributes("", fsys.Root(), procPath(root))
	c.directory("", fsys.Root(), dir)
	if c.wrong > maxDifferences {
		t.Errorf("and %d more differences", c.wrong-maxDifferences)
	}
	return c.entries
}

// procPath names an open file whatever its name is made of.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func (c *comparison) errorf(path, format string, args ...any) {
	c.t.Helper()
	if c.wrong++; c.wrong <= maxDifferences {
		c.t.Errorf("%q: %s", path, fmt.Sprintf(format, args...))
	}
}

// directory compares the entries of a directory, and everything below. host is
// a path that the kernel can open, however long the tree is.
func (c *comparison) directory(path string, inode guestfs.Inode, host string) {
	dir, err := os.Open(host)
	if err != nil {
		c.errorf(path, "open at the peer: %v", err)
		return
	}
	defer dir.Close()
	list, err := dir.Readdirnames(-1)
	if err != nil {
		c.errorf(path, "list at the peer: %v", err)
		return
	}
	missing := make(map[string]bool, len(list))
	for _, name := range list {
		missing[name] = true
	}
	var ours []guestfs.Dirent
	var last uint64
	for e, err := range c.fs.ReadDir(c.ctx, inode, 0) {
		if err != nil {
			c.errorf(path, "list: %v", err)
			break
		}
		ours = append(ours, e)
		if e.Cookie == 0 || e.Cookie == last {
			c.errorf(path, "entry %q has the cookie %d, like the one before", e.Name, e.Cookie)
		}
		last = e.Cookie
	}
	c.resume(path, inode, ours)
	for _, e := range ours {
		if !missing[e.Name] {
			c.errorf(path, "entry %q: not there, or twice", e.Name)
			continue
		}
		delete(missing, e.Name)
		c.entry(path+"/"+e.Name, inode, e, dir)
	}
	for name := range missing {
		c.errorf(path, "entry %q is missing", name)
	}
}

// resume lists the directory again from the middle.
func (c *comparison) resume(path string, inode guestfs.Inode, all []guestfs.Dirent) {
	if len(all) < 2 {
		return
	}
	middle := len(all) / 2
	var rest []guestfs.Dirent
	for e, err := range c.fs.ReadDir(c.ctx, inode, all[middle-1].Cookie) {
		if err != nil {
			c.errorf(path, "list from the middle: %v", err)
			return
		}
		rest = append(rest, e)
	}
	if !slices.Equal(rest, all[middle:]) {
		c.errorf(path, "a listing from cookie %d goes on with %d entries, want %d", all[middle-1].Cookie, len(rest), len(all)-middle)
	}
}

func (c *comparison) entry(path string, parent guestfs.Inode, e guestfs.Dirent, dir *os.File) {
	if c.opts.Skip != nil && c.opts.Skip(path) {
		return
	}
	c.entries++
	found, err := guestfs.Lookup(c.ctx, c.fs, parent, e.Name)
	if err != nil || found.Inode != e.Inode {
		c.errorf(path, "look up: inode %d, %v; the listing says %d", found.Inode, err, e.Inode)
	}
	fd, err := unix.Openat(int(dir.Fd()), e.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		c.errorf(path, "open at the peer: %v", err)
		return
	}
	defer unix.Close(fd)
	host := procPath(fd)
	attr := c.attributes(path, e.Inode, host)
	if attr == nil {
		return
	}
	if e.Type != 0 && e.Type != attr.Type() {
		c.errorf(path, "the directory says type %o, the inode %o", e.Type, attr.Type())
	}
	switch attr.Type() {
	case guestfs.TypeDir:
		c.directory(path, e.Inode, host)
	case guestfs.TypeFile:
		if !c.seen[e.Inode] || attr.Links == 1 {
			c.seen[e.Inode] = true
			c.content(path, e.Inode, host)
		}
	case guestfs.TypeSymlink:
		c.link(path, e.Inode, fd)
	}
}

// attributes compares what Stat says and returns it.
func (c *comparison) attributes(path string, inode guestfs.Inode, host string) *guestfs.Attr {
	a, err := c.fs.Stat(c.ctx, inode)
	if err != nil {
		c.errorf(path, "stat: %v", err)
		return nil
	}
	var st unix.Statx_t
	// host is a magic link to the file itself, which may be a symbolic link.
	if err := unix.Statx(unix.AT_FDCWD, host, 0, unix.STATX_ALL, &st); err != nil {
		c.errorf(path, "stat at the peer: %v", err)
		return nil
	}
	number := func(skip bool, what string, got, want int64) {
		if !skip && got != want {
			c.errorf(path, "%s is %d, want %d", what, got, want)
		}
	}
	isDir := uint32(st.Mode)&guestfs.TypeMask == guestfs.TypeDir
	number(false, "type", int64(a.Type()), int64(st.Mode)&guestfs.TypeMask)
	number(c.opts.NoOwner, "mode", int64(a.Mode), int64(st.Mode))
	number(c.opts.NoOwner, "owner", int64(a.UID), int64(st.Uid))
	number(c.opts.NoOwner, "group", int64(a.GID), int64(st.Gid))
	number(c.opts.NoInodes, "inode", int64(a.Inode), int64(st.Ino))
	number(isDir && c.opts.NoDirLinks, "link count", int64(a.Links), int64(st.Nlink))
	number(isDir && c.opts.NoDirSize, "size", a.Size, int64(st.Size))
	number(c.opts.NoAllocated || isDir && c.opts.NoDirSize, "allocated", a.Allocated, int64(st.Blocks)*512)
	number(false, "major", int64(a.Major), int64(st.Rdev_major))
	number(false, "minor", int64(a.Minor), int64(st.Rdev_minor))
	if !isDir || !c.opts.NoDirTimes {
		c.time(path, "mtime", a.Mtime, st.Mtime, false)
		c.time(path, "ctime", a.Ctime, st.Ctime, c.opts.NoCtime)
		c.time(path, "atime", a.Atime, st.Atime, c.opts.NoAtime)
		c.time(path, "btime", a.Btime, st.Btime, c.opts.NoBtime || st.Mask&unix.STATX_BTIME == 0)
	}
	c.xattrs(path, inode, host)
	return a
}

func (c *comparison) time(path, what string, got time.Time, want unix.StatxTimestamp, skip bool) {
	if skip {
		return
	}
	w := time.Unix(want.Sec, int64(want.Nsec))
	if !c.opts.Mounted.IsZero() && w.After(c.opts.Mounted) {
		return
	}
	if got.IsZero() && want.Sec == 0 {
		return // a time that there is not; the peer has to show something
	}
	if d := got.Sub(w).Abs(); d > c.opts.Granularity {
		c.errorf(path, "%s is %v, want %v", what, got.UTC(), w.UTC())
	}
}

func (c *comparison) xattrs(path string, inode guestfs.Inode, host string) {
	if c.opts.NoXattrs {
		return
	}
	want, err := peerXattrs(host)
	if err != nil {
		c.errorf(path, "attributes at the peer: %v", err)
		return
	}
	if c.opts.Xattr != nil {
		renamed := map[string]string{}
		for name, v := range want {
			if now, ok := c.opts.Xattr(name); ok {
				renamed[now] = v
			}
		}
		want = renamed
	}
	r, ok := c.fs.(guestfs.XattrReader)
	if !ok {
		if len(want) > 0 {
			c.errorf(path, "the reader has no attributes, the peer has %d", len(want))
		}
		return
	}
	got, err := r.Xattrs(c.ctx, inode)
	if err != nil {
		c.errorf(path, "attributes: %v", err)
		return
	}
	for _, x := range got {
		if v, ok := want[x.Name]; !ok || v != string(x.Value) {
			c.errorf(path, "attribute %q is %.100q, want %.100q", x.Name, x.Value, v)
		}
		delete(want, x.Name)
	}
	for name := range want {
		c.errorf(path, "attribute %q is missing", name)
	}
}

// peerXattrs reads all attributes of a file at the peer.
func peerXattrs(host string) (map[string]string, error) {
	list := make([]byte, 1<<16)
	n, err := unix.Listxattr(host, list)
	if errors.Is(err, unix.ENOTSUP) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	value := make([]byte, 1<<16)
	for name := range splitZero(list[:n]) {
		m, err := unix.Getxattr(host, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = string(value[:m])
	}
	return out, nil
}

func splitZero(list []byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for len(list) > 0 {
			i := slices.Index(list, 0)
			if i < 0 || !yield(string(list[:i])) {
				return
			}
			list = list[i+1:]
		}
	}
}

func (c *comparison) link(path string, inode guestfs.Inode, fd int) {
	want := make([]byte, 1<<16)
	n, err := unix.Readlinkat(fd, "", want)
	if err != nil {
		c.errorf(path, "read the link at the peer: %v", err)
		return
	}
	got, err := guestfs.ReadLink(c.ctx, c.fs, inode)
	if err != nil || got != string(want[:n]) {
		c.errorf(path, "link to %.200q, %v; want %.200q", got, err, want[:n])
	}
}

// content compares a file's bytes, in pieces that fit nothing in particular, and
// checks that what the reader calls a hole reads as zeros at the peer.
func (c *comparison) content(path string, inode guestfs.Inode, host string) {
	peer, err := os.Open(host)
	if err != nil {
		c.errorf(path, "open at the peer: %v", err)
		return
	}
	defer peer.Close()
	img, err := c.fs.Open(c.ctx, inode)
	if err != nil {
		c.errorf(path, "open: %v", err)
		return
	}
	defer img.Close()
	const piece = 1<<20 - 1000
	if c.ours == nil {
		c.ours, c.theirs = make([]byte, piece), make([]byte, piece)
	}
	a, b := c.ours, c.theirs
	for ext, err := range disk.Extents(c.ctx, img, disk.Whole(img)) {
		if err != nil {
			c.errorf(path, "extents: %v", err)
			return
		}
		for off := ext.Offset; off < ext.End(); off += piece {
			n := int(min(piece, ext.End()-off))
			clear(a[:n])
			if !ext.Hole {
				if m, err := img.ReadAt(a[:n], off); m < n {
					c.errorf(path, "read at %d: %d bytes, %v", off, m, err)
					return
				}
			} else if sparse(peer, off, n) {
				continue
			}
			if m, err := peer.ReadAt(b[:n], off); m < n {
				c.errorf(path, "read at the peer at %d: %d bytes, %v", off, m, err)
				return
			}
			if i := firstDifference(a[:n], b[:n]); i >= 0 {
				c.errorf(path, "the content differs at %d of %d", off+int64(i), img.Size())
				return
			}
		}
	}
}

// sparse reports whether the peer, too, says that there is nothing there.
func sparse(f *os.File, off int64, n int) bool {
	data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= off+int64(n)
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
