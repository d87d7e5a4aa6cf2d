package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"lifeboat/guestfs"
)

// A frame is its header (length of what follows it, number of the request, code)
// and a body. All numbers are little-endian. The sockets never leave the machine,
// and both ends are the same program: there is no version.
const (
	headerSize = 4 + 4 + 1
	// maxRequest bounds the body of a request, maxReply that of a reply.
	maxRequest = 1 << 20
	maxReply   = 4 << 20
	// maxRead is how much of a disk or of decoded content goes in one frame.
	maxRead = 1 << 20
)

// What the appliance asks of the worker.
const (
	opHello byte = iota + 1
	opCancel
	opStat
	opReadDir
	opLookup
	opXattrs
	opStreams
	opDescriptor
	opOpen
	opMap
	opRead
	opPhysical
	opStatAll
	opReadDirs
	opMetadata
	opOverlaid
	opInodesIn
	opOwners
)

// Codes of replies, on both sockets: how it ended. The body of all but codeOK is
// a text.
const (
	codeOK byte = iota
	codeOther
	codeNotExist
	codeCorrupt
	codeUnsupported
	codeEncrypted
	codeNotDir
	codeCanceled
)

var errProtocol = errors.New("it answered with nonsense")

// conn is one end of a socket.
type conn struct {
	file *os.File
	mu   sync.Mutex // one frame is written at a time

	frames sync.Pool // of *[]byte: large bodies that were recycled
}

// largeBody is from where on a new body costs more than what is done with it.
const largeBody = 64 << 10

// body is room for n bytes.
func (c *conn) body(n int) []byte {
	if n >= largeBody {
		if b, ok := c.frames.Get().(*[]byte); ok && cap(*b) >= n {
			return (*b)[:n]
		}
	}
	return make([]byte, n)
}

// recycle takes a body back that was received and that nobody looks at any more.
func (c *conn) recycle(b []byte) {
	if cap(b) >= largeBody {
		c.frames.Put(&b)
	}
}

// send writes a frame. b begins with headerSize bytes of room for the header.
func (c *conn) send(id uint32, code byte, b []byte) error {
	binary.LittleEndian.PutUint32(b, uint32(len(b)-headerSize))
	binary.LittleEndian.PutUint32(b[4:], id)
	b[8] = code
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.file.Write(b)
	return err
}

// receiveHeader reads the header of a frame whose body has at most limit bytes.
func (c *conn) receiveHeader(limit int) (length int, id uint32, code byte, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(c.file, h[:]); err != nil {
		return 0, 0, 0, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n > uint32(limit) {
		return 0, 0, 0, errProtocol
	}
	return int(n), binary.LittleEndian.Uint32(h[4:]), h[8], nil
}

// receive reads a whole frame.
func (c *conn) receive(limit int) (id uint32, code byte, body []byte, err error) {
	n, id, code, err := c.receiveHeader(limit)
	if err != nil {
		return 0, 0, nil, err
	}
	body = c.body(n)
	_, err = io.ReadFull(c.file, body)
	return id, code, body, err
}

// encoder appends to a frame.
type encoder struct{ b []byte }

func newEncoder(room int) *encoder { return &encoder{make([]byte, headerSize, headerSize+room)} }

func (e *encoder) u8(v byte)      { e.b = append(e.b, v) }
func (e *encoder) u32(v uint32)   { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64)   { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) i64(v int64)    { e.u64(uint64(v)) }
func (e *encoder) bytes(v []byte) { e.u32(uint32(len(v))); e.b = append(e.b, v...) }
func (e *encoder) str(v string)   { e.u32(uint32(len(v))); e.b = append(e.b, v...) }

func (e *encoder) bool(v bool) {
	if v {
		e.u8(1)
		return
	}
	e.u8(0)
}

// time writes seconds and nanoseconds; a time that is not known is marked.
func (e *encoder) time(t time.Time) {
	e.bool(!t.IsZero())
	e.i64(t.Unix())
	e.u32(uint32(t.Nanosecond()))
}

func (e *encoder) err(err error) {
	code, text := encodeError(err)
	e.u8(code)
	e.str(text)
}

// decoder reads a body. After the first thing that is not there everything is
// zero, and end says so.
type decoder struct {
	b   []byte
	bad bool
	// recycle, if not nil, takes the body back: nothing may be left that points to
	// it.
	recycle func()
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if v := d.take(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if v := d.take(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

func (d *decoder) i64() int64    { return int64(d.u64()) }
func (d *decoder) bool() bool    { return d.u8() == 1 }
func (d *decoder) bytes() []byte { return d.take(int(d.u32())) }
func (d *decoder) str() string   { return string(d.bytes()) }

func (d *decoder) time() time.Time {
	known, sec, nsec := d.bool(), d.i64(), d.u32()
	if !known || nsec >= 1e9 {
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec))
}

// count reads the number of things of at least size bytes that follow.
func (d *decoder) count(size int) int {
	n := int64(d.u32())
	if n*int64(size) > int64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n)
}

func (d *decoder) err() error { return decodeError(d.u8(), d.str()) }

// end reports nonsense: too little, or something left.
func (d *decoder) end() error {
	if d.bad || len(d.b) > 0 {
		return errProtocol
	}
	return nil
}

func (e *encoder) attr(a *guestfs.Attr) {
	for _, v := range []uint64{uint64(a.Inode), uint64(a.Size), uint64(a.Allocated), a.Generation} {
		e.u64(v)
	}
	for _, v := range []uint32{a.Mode, a.Links, a.UID, a.GID, a.Major, a.Minor, uint32(a.Flags)} {
		e.u32(v)
	}
	for _, t := range []time.Time{a.Atime, a.Mtime, a.Ctime, a.Btime} {
		e.time(t)
	}
}

func (d *decoder) attr() *guestfs.Attr {
	a := &guestfs.Attr{}
	a.Inode, a.Size, a.Allocated, a.Generation = guestfs.Inode(d.u64()), d.i64(), d.i64(), d.u64()
	for _, v := range []*uint32{&a.Mode, &a.Links, &a.UID, &a.GID, &a.Major, &a.Minor, (*uint32)(&a.Flags)} {
		*v = d.u32()
	}
	for _, t := range []*time.Time{&a.Atime, &a.Mtime, &a.Ctime, &a.Btime} {
		*t = d.time()
	}
	return a
}

func (e *encoder) dirent(v guestfs.Dirent) {
	e.u64(uint64(v.Inode))
	e.u64(v.Cookie)
	e.u32(v.Type)
	e.str(v.Name)
}

func (d *decoder) dirent() guestfs.Dirent {
	return guestfs.Dirent{Inode: guestfs.Inode(d.u64()), Cookie: d.u64(), Type: d.u32(), Name: d.str()}
}

func (e *encoder) xattrs(list []guestfs.Xattr) {
	e.u32(uint32(len(list)))
	for _, x := range list {
		e.str(x.Name)
		e.bytes(x.Value)
	}
}

func (d *decoder) xattrs() []guestfs.Xattr {
	var out []guestfs.Xattr
	for range d.count(8) {
		// The frame lives as long as one of its values: they are copied.
		out = append(out, guestfs.Xattr{Name: d.str(), Value: append([]byte{}, d.bytes()...)})
	}
	return out
}

// nonsense describes a reply that does not fit its request.
func nonsense(what string) error { return fmt.Errorf("%w (%s)", errProtocol, what) }
