package nfstest

import "fmt"

// Status is an nfsstat3 other than NFS3_OK, as an error.
type Status uint32

// The statuses that tests ask for (RFC 1813 §2.6).
const (
	Perm        Status = 1
	NoEnt       Status = 2
	IO          Status = 5
	Acces       Status = 13
	Exist       Status = 17
	XDev        Status = 18
	NotDir      Status = 20
	IsDir       Status = 21
	Inval       Status = 22
	FBig        Status = 27
	NoSpc       Status = 28
	ROFS        Status = 30
	NameTooLong Status = 63
	NotEmpty    Status = 66
	Stale       Status = 70
	BadHandle   Status = 10001
	NotSync     Status = 10002
	BadCookie   Status = 10003
	NotSupp     Status = 10004
	TooSmall    Status = 10005
	ServerFault Status = 10006
	BadType     Status = 10007
	Jukebox     Status = 10008
)

func (s Status) Error() string { return fmt.Sprintf("nfsstat3 %d", uint32(s)) }

// Handle is a file handle.
type Handle []byte

// Time is an nfstime3.
type Time struct{ Sec, Nsec uint32 }

// Attr is a fattr3.
type Attr struct {
	Type, Mode, Nlink, UID, GID uint32
	Size, Used                  uint64
	Rdev                        [2]uint32
	FSID, FileID                uint64
	Atime, Mtime, Ctime         Time
}

// Pre is a wcc_attr.
type Pre struct {
	Size         uint64
	Mtime, Ctime Time
}

// WCC is a wcc_data.
type WCC struct {
	Pre  *Pre
	Post *Attr
}

// SetAttr is a sattr3. AtimeHow and MtimeHow: 0 leave, 1 server's time, 2 given.
type SetAttr struct {
	Mode, UID, GID     *uint32
	Size               *uint64
	AtimeHow, MtimeHow uint32
	Atime, Mtime       Time
}

// Ptr is a pointer to v, for SetAttr.
func Ptr[T any](v T) *T { return &v }

// SetAttr appends a sattr3.
func (e Enc) SetAttr(s SetAttr) Enc {
	e = e.Opt32(s.Mode).Opt32(s.UID).Opt32(s.GID)
	if s.Size == nil {
		e = e.U32(0)
	} else {
		e = e.U32(1).U64(*s.Size)
	}
	if e = e.U32(s.AtimeHow); s.AtimeHow == 2 {
		e = e.U32(s.Atime.Sec, s.Atime.Nsec)
	}
	if e = e.U32(s.MtimeHow); s.MtimeHow == 2 {
		e = e.U32(s.Mtime.Sec, s.Mtime.Nsec)
	}
	return e
}

// Time reads an nfstime3.
func (d *Dec) Time() Time { return Time{d.U32(), d.U32()} }

// Attr reads a fattr3.
func (d *Dec) Attr() Attr {
	return Attr{
		Type: d.U32(), Mode: d.U32(), Nlink: d.U32(), UID: d.U32(), GID: d.U32(),
		Size: d.U64(), Used: d.U64(), Rdev: [2]uint32{d.U32(), d.U32()},
		FSID: d.U64(), FileID: d.U64(), Atime: d.Time(), Mtime: d.Time(), Ctime: d.Time(),
	}
}

// PostOp reads a post_op_attr.
func (d *Dec) PostOp() *Attr {
	if !d.Bool() {
		return nil
	}
	a := d.Attr()
	return &a
}

// WCC reads a wcc_data.
func (d *Dec) WCC() (w WCC) {
	if d.Bool() {
		w.Pre = &Pre{d.U64(), d.Time(), d.Time()}
	}
	w.Post = d.PostOp()
	return w
}

// NFS performs an NFS procedure and takes the status from the front of its
// results.
func (c *Client) NFS(proc uint32, args Enc) (*Dec, Status, error) {
	return c.Go(ProgNFS, VersNFS, proc, args).Status()
}

// Status waits for a call whose results begin with a status.
func (c *Call) Status() (*Dec, Status, error) {
	d, err := c.Wait()
	if err != nil {
		return nil, 0, err
	}
	st := Status(d.U32())
	return d, st, d.Err()
}

// finish is how a procedure ends: with the transport's error, a status, a reply
// that does not decode, or nil.
func finish(d *Dec, st Status, err error) error {
	switch {
	case err != nil:
		return err
	case d.End() != nil:
		return d.End()
	case st != 0:
		return st
	}
	return nil
}

// Null is the NULL procedure.
func (c *Client) Null() error {
	d, err := c.Call(ProgNFS, VersNFS, 0, nil)
	if err != nil {
		return err
	}
	return d.End()
}

// Getattr is GETATTR.
func (c *Client) Getattr(h Handle) (a Attr, err error) {
	d, st, err := c.NFS(1, Enc{}.Bytes(h))
	if err == nil && st == 0 {
		a = d.Attr()
	}
	return a, finish(d, st, err)
}

// Setattr is SETATTR.
func (c *Client) Setattr(h Handle, set SetAttr, guard *Time) (w WCC, err error) {
	e := Enc{}.Bytes(h).SetAttr(set)
	if guard == nil {
		e = e.U32(0)
	} else {
		e = e.U32(1, guard.Sec, guard.Nsec)
	}
	d, st, err := c.NFS(2, e)
	if err == nil {
		w = d.WCC()
	}
	return w, finish(d, st, err)
}

// Access is ACCESS.
func (c *Client) Access(h Handle, want uint32) (granted uint32, a *Attr, err error) {
	d, st, err := c.NFS(4, Enc{}.Bytes(h).U32(want))
	if err == nil {
		if a = d.PostOp(); st == 0 {
			granted = d.U32()
		}
	}
	return granted, a, finish(d, st, err)
}

// Readlink is READLINK.
func (c *Client) Readlink(h Handle) (target string, err error) {
	d, st, err := c.NFS(5, Enc{}.Bytes(h))
	if err == nil {
		if d.PostOp(); st == 0 {
			target = d.Str()
		}
	}
	return target, finish(d, st, err)
}

// FSStat is the result of FSSTAT.
type FSStat struct {
	Attr                 *Attr
	Total, Free, Avail   uint64
	Files, FFree, FAvail uint64
}

// Fsstat is FSSTAT.
func (c *Client) Fsstat(h Handle) (s FSStat, err error) {
	d, st, err := c.NFS(18, Enc{}.Bytes(h))
	if err == nil {
		if s.Attr = d.PostOp(); st == 0 {
			s.Total, s.Free, s.Avail = d.U64(), d.U64(), d.U64()
			s.Files, s.FFree, s.FAvail = d.U64(), d.U64(), d.U64()
			d.U32()
		}
	}
	return s, finish(d, st, err)
}

// FSInfo is the result of FSINFO.
type FSInfo struct {
	Attr                                                 *Attr
	RtMax, RtPref, RtMult, WtMax, WtPref, WtMult, DtPref uint32
	MaxFileSize                                          uint64
	TimeDelta                                            Time
	Properties                                           uint32
}

// Fsinfo is FSINFO.
func (c *Client) Fsinfo(h Handle) (f FSInfo, err error) {
	d, st, err := c.NFS(19, Enc{}.Bytes(h))
	if err == nil {
		if f.Attr = d.PostOp(); st == 0 {
			f.RtMax, f.RtPref, f.RtMult = d.U32(), d.U32(), d.U32()
			f.WtMax, f.WtPref, f.WtMult, f.DtPref = d.U32(), d.U32(), d.U32(), d.U32()
			f.MaxFileSize, f.TimeDelta, f.Properties = d.U64(), d.Time(), d.U32()
		}
	}
	return f, finish(d, st, err)
}

// PathConf is the result of PATHCONF.
type PathConf struct {
	Attr                                                      *Attr
	LinkMax, NameMax                                          uint32
	NoTrunc, ChownRestricted, CaseInsensitive, CasePreserving bool
}

// Pathconf is PATHCONF.
func (c *Client) Pathconf(h Handle) (p PathConf, err error) {
	d, st, err := c.NFS(20, Enc{}.Bytes(h))
	if err == nil {
		if p.Attr = d.PostOp(); st == 0 {
			p.LinkMax, p.NameMax = d.U32(), d.U32()
			p.NoTrunc, p.ChownRestricted, p.CaseInsensitive, p.CasePreserving = d.Bool(), d.Bool(), d.Bool(), d.Bool()
		}
	}
	return p, finish(d, st, err)
}
