package nfstest

import "strings"

// Lookup is LOOKUP.
func (c *Client) Lookup(dir Handle, name string) (h Handle, a *Attr, err error) {
	d, st, err := c.NFS(3, Enc{}.Bytes(dir).Str(name))
	if err == nil {
		if st == 0 {
			h, a = d.Opaque(), d.PostOp()
		}
		d.PostOp()
	}
	return h, a, finish(d, st, err)
}

// Walk looks up a path below dir.
func (c *Client) Walk(dir Handle, path string) (h Handle, err error) {
	h = dir
	for name := range strings.SplitSeq(path, "/") {
		if h, _, err = c.Lookup(h, name); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Made is the result of CREATE, MKDIR and SYMLINK.
type Made struct {
	Handle Handle
	Attr   *Attr
	WCC    WCC // of the directory
}

func (c *Client) make(proc uint32, args Enc) (Made, error) {
	return c.Go(ProgNFS, VersNFS, proc, args).Made()
}

// Made waits for a CREATE, MKDIR or SYMLINK.
func (c *Call) Made() (m Made, err error) {
	d, st, err := c.Status()
	if err == nil {
		if st == 0 {
			if d.Bool() {
				m.Handle = d.Opaque()
			}
			m.Attr = d.PostOp()
		}
		m.WCC = d.WCC()
	}
	return m, finish(d, st, err)
}

// CreateArgs encodes a CREATE UNCHECKED (0) or GUARDED (1).
func CreateArgs(dir Handle, name string, mode uint32, set SetAttr) Enc {
	return Enc{}.Bytes(dir).Str(name).U32(mode).SetAttr(set)
}

// Create is CREATE UNCHECKED.
func (c *Client) Create(dir Handle, name string, set SetAttr) (Made, error) {
	return c.make(8, CreateArgs(dir, name, 0, set))
}

// CreateGuarded is CREATE GUARDED.
func (c *Client) CreateGuarded(dir Handle, name string, set SetAttr) (Made, error) {
	return c.make(8, CreateArgs(dir, name, 1, set))
}

// CreateExclusive is CREATE EXCLUSIVE.
func (c *Client) CreateExclusive(dir Handle, name string, verifier [8]byte) (Made, error) {
	return c.make(8, Enc{}.Bytes(dir).Str(name).U32(2).Fixed(verifier[:]))
}

// Mkdir is MKDIR.
func (c *Client) Mkdir(dir Handle, name string, set SetAttr) (Made, error) {
	return c.make(9, Enc{}.Bytes(dir).Str(name).SetAttr(set))
}

// Symlink is SYMLINK.
func (c *Client) Symlink(dir Handle, name, target string, set SetAttr) (Made, error) {
	return c.make(10, Enc{}.Bytes(dir).Str(name).SetAttr(set).Str(target))
}

// Mkfifo is MKNOD of a FIFO.
func (c *Client) Mkfifo(dir Handle, name string) (Made, error) {
	return c.make(11, Enc{}.Bytes(dir).Str(name).U32(7).SetAttr(SetAttr{}))
}

// Remove is REMOVE.
func (c *Client) Remove(dir Handle, name string) (WCC, error) { return c.unlink(12, dir, name) }

// Rmdir is RMDIR.
func (c *Client) Rmdir(dir Handle, name string) (WCC, error) { return c.unlink(13, dir, name) }

func (c *Client) unlink(proc uint32, dir Handle, name string) (w WCC, err error) {
	d, st, err := c.NFS(proc, Enc{}.Bytes(dir).Str(name))
	if err == nil {
		w = d.WCC()
	}
	return w, finish(d, st, err)
}

// Rename is RENAME.
func (c *Client) Rename(from Handle, name string, to Handle, toName string) (f, t WCC, err error) {
	d, st, err := c.NFS(14, Enc{}.Bytes(from).Str(name).Bytes(to).Str(toName))
	if err == nil {
		f, t = d.WCC(), d.WCC()
	}
	return f, t, finish(d, st, err)
}

// Link is LINK.
func (c *Client) Link(file, dir Handle, name string) (a *Attr, w WCC, err error) {
	d, st, err := c.NFS(15, Enc{}.Bytes(file).Bytes(dir).Str(name))
	if err == nil {
		a, w = d.PostOp(), d.WCC()
	}
	return a, w, finish(d, st, err)
}

// Entry is one entry of a directory; Attr and Handle only from READDIRPLUS.
type Entry struct {
	FileID uint64
	Name   string
	Cookie uint64
	Attr   *Attr
	Handle Handle
}

// Listing is the result of READDIR and READDIRPLUS.
type Listing struct {
	Attr     *Attr
	Verifier uint64
	Entries  []Entry
	EOF      bool
	// Size of the result from the attributes on, bytes: what count and
	// maxcount limit. DirSize: what dircount limits.
	Size, DirSize int
}

// Readdir is READDIR.
func (c *Client) Readdir(dir Handle, cookie, verifier uint64, count uint32) (Listing, error) {
	return c.list(16, Enc{}.Bytes(dir).U64(cookie, verifier).U32(count))
}

// Readdirplus is READDIRPLUS.
func (c *Client) Readdirplus(dir Handle, cookie, verifier uint64, dircount, maxcount uint32) (Listing, error) {
	return c.list(17, Enc{}.Bytes(dir).U64(cookie, verifier).U32(dircount, maxcount))
}

func (c *Client) list(proc uint32, args Enc) (l Listing, err error) {
	d, st, err := c.NFS(proc, args)
	if err != nil {
		return l, err
	}
	l.Size = len(d.B)
	if l.Attr = d.PostOp(); st != 0 {
		return l, finish(d, st, err)
	}
	l.Verifier = d.U64()
	for d.Bool() {
		before := len(d.B)
		e := Entry{FileID: d.U64(), Name: d.Str(), Cookie: d.U64()}
		l.DirSize += 4 + before - len(d.B)
		if proc == 17 {
			if e.Attr = d.PostOp(); d.Bool() {
				e.Handle = d.Opaque()
			}
		}
		l.Entries = append(l.Entries, e)
	}
	l.EOF = d.Bool()
	return l, finish(d, st, err)
}

// ReadAll lists a whole directory with READDIRPLUS in replies of at most count
// bytes.
func (c *Client) ReadAll(dir Handle, count uint32) (all []Entry, err error) {
	var cookie, verifier uint64
	for {
		l, err := c.Readdirplus(dir, cookie, verifier, count, count)
		if err != nil {
			return all, err
		}
		all = append(all, l.Entries...)
		if l.EOF {
			return all, nil
		}
		cookie, verifier = l.Entries[len(l.Entries)-1].Cookie, l.Verifier
	}
}
