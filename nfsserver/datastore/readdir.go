package datastore

import (
	"encoding/binary"
	"iter"
	"math"

	"golang.org/x/sys/unix"
)

// Cookies are the host's own directory positions (d_off), which the host's file
// system keeps valid while entries come and go, and after a restart; so nothing
// is remembered about a listing that is under way. "." and ".." are ours:
//
//	0            start
//	1            after "."
//	2            after ".."
//	d_off + 3    after an entry of the host
//	2^63 - 1     after the last one (positions near the end of the range)
const (
	cookieDot    = 1
	cookieDotDot = 2
	cookieHost   = 3
	cookieEnd    = math.MaxInt64
)

func cookieOf(pos int64) uint64 {
	if pos > math.MaxInt64-cookieHost {
		return cookieEnd
	}
	return uint64(pos) + cookieHost
}

// Entry is one entry of a directory.
type Entry struct {
	Name   string
	FileID uint64
	Cookie uint64 // resumes the listing after this entry
	// Node and Attr are there for READDIRPLUS, unless the entry cannot be
	// looked at (HasAttr is false then; Node is nil).
	Node    *Node
	Attr    Attr
	HasAttr bool
}

// CookieVerifier is the cookieverf3 of the directory. Cookies stay valid while
// the directory exists, so it never changes.
func (n *Node) CookieVerifier() uint64 { return n.gen | 1 }

// ReadDir lists the directory, resuming after the entry that has the given
// cookie (0: from the start). With plus, nodes and attributes of the entries
// come along. The listing is over (eof) when the sequence ends on its own; an
// error comes last, with an Entry of no meaning. [ErrBadCookie]: the cookie is
// not of this directory, or verifier is neither its CookieVerifier nor 0.
func (n *Node) ReadDir(c Cred, cookie, verifier uint64, plus bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if err := n.readDir(c, cookie, verifier, plus, yield); err != nil {
			yield(Entry{}, fail("readdir", "", err))
		}
	}
}

func (n *Node) readDir(c Cred, cookie, verifier uint64, plus bool, yield func(Entry, error) bool) error {
	if n.typ != TypeDirectory {
		return ErrNotDir
	}
	if cookie > cookieEnd || (cookie != 0 && verifier != 0 && verifier != n.CookieVerifier()) {
		return ErrBadCookie
	}
	a, err := n.Attr()
	if err != nil {
		return err
	}
	if err := check(&c, &a, Read); err != nil {
		return err
	}
	fd, err := n.reopen()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if done, err := n.readDots(cookie, plus, yield); done || err != nil {
		return err
	}
	if cookie == cookieEnd {
		return nil
	}
	pos := int64(0)
	if cookie > cookieHost {
		pos = int64(cookie - cookieHost)
	}
	for e, err := range listDir(fd, pos) {
		if err != nil {
			return err
		}
		if n.sess == nil && !n.tree.visible(e.ino) {
			continue
		}
		entry := Entry{Name: string(e.name), FileID: e.ino, Cookie: cookieOf(e.next)}
		if plus {
			n.describe(fd, &entry)
		}
		if !yield(entry, nil) {
			return nil
		}
	}
	return nil
}

// readDots yields "." and "..", which the host's own order does not concern.
func (n *Node) readDots(cookie uint64, plus bool, yield func(Entry, error) bool) (done bool, err error) {
	if cookie < cookieDot {
		e := Entry{Name: ".", FileID: n.ino, Cookie: cookieDot}
		if !n.yieldDot(e, n, plus, yield) {
			return true, nil
		}
	}
	if cookie < cookieDotDot {
		parent, err := n.parent()
		if err != nil {
			return true, err
		}
		e := Entry{Name: "..", FileID: parent.ino, Cookie: cookieDotDot}
		if !n.yieldDot(e, parent, plus, yield) {
			return true, nil
		}
	}
	return false, nil
}

func (n *Node) yieldDot(e Entry, of *Node, plus bool, yield func(Entry, error) bool) bool {
	if plus {
		if a, err := of.Attr(); err == nil {
			e.Node, e.Attr, e.HasAttr = of, a, true
		}
	}
	return yield(e, nil)
}

// describe adds node and attributes to an entry of the directory open as fd.
func (n *Node) describe(fd int, e *Entry) {
	if n.sess == nil {
		node := n.tree.known(e.FileID)
		if node == nil {
			return
		}
		if a, err := node.Attr(); err == nil {
			e.Node, e.Attr, e.HasAttr = node, a, true
		}
		return
	}
	n.sess.ns.RLock()
	defer n.sess.ns.RUnlock()
	st, err := n.tree.statAt(fd, e.Name)
	if err != nil {
		return // removed meanwhile
	}
	node, err := n.tree.adopt(n, fd, e.Name, &st)
	if err != nil {
		return
	}
	if d := node.disk.Load(); d != nil {
		d.describe(&st.attr)
	}
	e.Node, e.Attr, e.HasAttr, e.FileID = node, st.attr, true, node.ino
}

// visible says whether ino is the directory of an attached session.
func (t *Tree) visible(ino uint64) bool {
	n := t.known(ino)
	return n != nil && n.sess != nil && n.sess.dir == n && n.sess.attached.Load()
}

// parent of a directory; the root's is the root.
func (n *Node) parent() (*Node, error) {
	if n.sess == nil {
		return n, nil
	}
	n.tree.mu.RLock()
	defer n.tree.mu.RUnlock()
	if len(n.links) == 0 {
		return nil, ErrStale
	}
	return n.links[0].parent, nil
}

// hostEntry is one entry as the host lists it. name is valid until the next.
type hostEntry struct {
	ino  uint64
	next int64 // position after the entry
	name []byte
}

// Buffers for getdents64: the first is small, because a reply of READDIR has room
// for few entries, and those that come after it is full are bigger.
const (
	minDirents = 4 << 10
	maxDirents = 64 << 10
)

// listDir lists the directory open as fd, whose position it moves, from pos on,
// without "." and "..".
func listDir(fd int, pos int64) iter.Seq2[hostEntry, error] {
	return func(yield func(hostEntry, error) bool) {
		if _, err := unix.Seek(fd, pos, unix.SEEK_SET); err != nil {
			yield(hostEntry{}, ErrBadCookie)
			return
		}
		for size := minDirents; ; size = min(2*size, maxDirents) {
			buf := make([]byte, size)
			var k int
			err := retry(func() (err error) { k, err = unix.Getdents(fd, buf); return err })
			if err != nil {
				yield(hostEntry{}, err)
				return
			}
			if k == 0 || !eachDirent(buf[:k], yield) {
				return
			}
		}
	}
}

// eachDirent parses what getdents64(2) returned.
func eachDirent(buf []byte, yield func(hostEntry, error) bool) bool {
	const header = 19 // d_ino 8, d_off 8, d_reclen 2, d_type 1
	for len(buf) > header {
		length := int(binary.NativeEndian.Uint16(buf[16:]))
		e := hostEntry{
			ino:  binary.NativeEndian.Uint64(buf),
			next: int64(binary.NativeEndian.Uint64(buf[8:])),
			name: buf[header:length],
		}
		buf = buf[length:]
		for i, b := range e.name {
			if b == 0 {
				e.name = e.name[:i]
				break
			}
		}
		if string(e.name) == "." || string(e.name) == ".." {
			continue
		}
		if !yield(e, nil) {
			return false
		}
	}
	return true
}
