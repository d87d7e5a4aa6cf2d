package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/inspect"
)

const (
	// marker in the environment tells a program that it was started as a worker.
	marker = "LIFEBOAT_GUESTFS_WORKER"
	// argument is for people who look at a list of processes.
	argument = "guestfs-worker"
	// Numbers of the worker's sockets.
	controlFD = 3
	blocksFD  = 4
)

// Main is the worker, in a program that was started as one; then it does not
// return. In any other it does nothing. Every program that starts a Session calls
// it before everything else, tests in TestMain.
func Main(readers inspect.Readers) {
	if len(os.Args) != 2 || os.Args[1] != argument || os.Getenv(marker) == "" {
		return
	}
	if err := work(readers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func work(readers inspect.Readers) error {
	control := &conn{file: os.NewFile(controlFD, "control")}
	blocks := &conn{file: os.NewFile(blocksFD, "blocks")}
	limits, err := receiveLimits(control)
	if err != nil {
		return fmt.Errorf("the first message: %w", err)
	}
	s := &server{control: control, remotes: newRemotes(blocks), readers: readers, calls: map[uint32]context.CancelFunc{}}
	s.confinement = confine(limits)
	return s.serve(limits)
}

// hello is the first thing that a worker hears.
type hello struct {
	Disks  []int64 `json:"disks"`  // sizes in bytes
	Memory int64   `json:"memory"` // bytes; 0: no limit
	// Secrets are for the guest's encrypted volumes.
	Secrets []crypt.Secret `json:"secrets,omitempty"`
}

// greeting is what it answers.
type greeting struct {
	Report      *inspect.Report `json:"report"`
	Roots       []uint64        `json:"roots"` // inodes, by volume
	Confinement Confinement     `json:"confinement"`
}

func receiveLimits(c *conn) (*hello, error) {
	_, _, body, err := c.receive(maxRequest)
	if err != nil {
		return nil, err
	}
	h := &hello{}
	return h, json.Unmarshal(body, h)
}

// server is the worker's side of a session.
type server struct {
	control     *conn
	remotes     *remotes
	readers     inspect.Readers
	confinement Confinement
	guest       volumes
	files       files
	frames      sync.Pool // of *encoder, for replies

	mu    sync.Mutex
	calls map[uint32]context.CancelFunc
	whole map[int]*wholeVolume
}

// serve finds what is on the disks, says so, and answers until the appliance has
// gone.
func (s *server) serve(h *hello) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_ = s.remotes.receive()
		os.Exit(1) // without blocks there is nothing to do
	}()
	var disks []disk.Image
	for i, size := range h.Disks {
		disks = append(disks, &remote{all: s.remotes, number: i, size: size})
	}
	guest, err := inspect.Open(ctx, disks, inspect.Options{Readers: s.readers, Secrets: h.Secrets})
	if err != nil {
		return s.refuse(err)
	}
	s.guest = guest
	b, err := json.Marshal(greeting{guest.Report(), roots(guest), s.confinement})
	if err != nil {
		return err
	}
	if len(b) > maxReply {
		return s.refuse(guestfs.Corruptf("the guest", "its volumes take %d bytes to describe", len(b)))
	}
	if err := s.control.send(0, codeOK, append(make([]byte, headerSize), b...)); err != nil {
		return err
	}
	return s.loop(ctx)
}

func roots(g *inspect.Guest) []uint64 {
	out := make([]uint64, len(g.Report().Volumes))
	for i := range out {
		if fsys, err := g.FS(i); err == nil {
			out[i] = uint64(fsys.Root())
		}
	}
	return out
}

// refuse says why there is no session.
func (s *server) refuse(err error) error {
	code, text := encodeError(err)
	return s.control.send(0, code, append(make([]byte, headerSize), text...))
}

func (s *server) loop(ctx context.Context) error {
	const atOnce = 32
	slots := make(chan struct{}, atOnce)
	for {
		id, op, body, err := s.control.receive(maxRequest)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if op == opCancel {
			s.cancel(id)
			continue
		}
		call, cancel := context.WithCancel(ctx)
		s.mu.Lock()
		s.calls[id] = cancel
		s.mu.Unlock()
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			s.answer(call, id, op, body)
			s.cancel(id)
		}()
	}
}

func (s *server) cancel(id uint32) {
	s.mu.Lock()
	cancel := s.calls[id]
	delete(s.calls, id)
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// answer sends the reply to a request. That nobody listens shows in loop.
func (s *server) answer(ctx context.Context, id uint32, op byte, body []byte) {
	d := &decoder{b: body}
	e, ok := s.frames.Get().(*encoder)
	if !ok {
		e = newEncoder(512)
	}
	defer s.frames.Put(e)
	e.b = e.b[:headerSize]
	err := s.handle(ctx, op, d, e)
	if err == nil && len(e.b) > headerSize+maxReply {
		err = guestfs.Corruptf("file system", "%d bytes of metadata in one place", len(e.b))
	}
	code, text := encodeError(err)
	if err != nil {
		e.b = append(e.b[:headerSize], text...)
	}
	_ = s.control.send(id, code, e.b)
}

// handle does what is asked for. A panic in a reader ends the worker: what the
// reader left behind in the middle of something is not to be used.
func (s *server) handle(ctx context.Context, op byte, d *decoder, e *encoder) error {
	volume, inode := int(d.u32()), guestfs.Inode(d.u64())
	fsys, err := s.fs(volume, inode)
	if err != nil {
		return err
	}
	switch op {
	case opStat:
		a, err := fsys.Stat(ctx, inode)
		if err != nil {
			return err
		}
		e.attr(a)
		return nil
	case opReadDir:
		return readDir(ctx, fsys, inode, d, e)
	case opLookup:
		found, err := guestfs.Lookup(ctx, fsys, inode, d.str())
		e.dirent(found)
		return err
	case opXattrs, opStreams, opDescriptor:
		return describe(ctx, op, fsys, inode, e)
	case opPhysical:
		return physical(ctx, fsys, inode, d, e)
	case opStatAll, opReadDirs, opMetadata, opOverlaid, opInodesIn, opOwners:
		return bulk(ctx, op, fsys, d, e)
	case opOpen, opMap, opRead:
		// Bound to no request, because the next one finds it open.
		img, err := s.files.open(context.WithoutCancel(ctx), fsys, inode, d)
		if err != nil {
			return err
		}
		return content(op, img, d, e)
	}
	return errProtocol
}

func describe(ctx context.Context, op byte, fsys guestfs.FS, inode guestfs.Inode, e *encoder) error {
	if r, ok := fsys.(guestfs.XattrReader); ok && op == opXattrs {
		list, err := r.Xattrs(ctx, inode)
		e.xattrs(list)
		return err
	}
	if r, ok := fsys.(guestfs.StreamReader); ok && op == opStreams {
		list, err := r.Streams(ctx, inode)
		e.u32(uint32(len(list)))
		for _, s := range list {
			e.str(s.Name)
			e.i64(s.Size)
		}
		return err
	}
	if r, ok := fsys.(guestfs.SecurityReader); ok && op == opDescriptor {
		sd, err := r.SecurityDescriptor(ctx, inode)
		e.bytes(sd)
		return err
	}
	e.u32(0) // there is no such thing there
	return nil
}

// Limits of one part of a listing.
const (
	partEntries = 1000
	partBytes   = 256 << 10
)

// What a listing tells of each entry.
const (
	listNames byte = iota
	listAttrs
	listXattrs
)

// readDir sends a part of a listing: entries, whether that was all, and what
// went wrong behind them.
func readDir(ctx context.Context, fsys guestfs.FS, dir guestfs.Inode, d *decoder, e *encoder) error {
	after, how := d.u64(), d.u8()
	n, done := 0, true
	var failed error
	for entry, err := range listing(ctx, fsys, dir, after, how) {
		if err != nil {
			failed = err
			break
		}
		if n == partEntries || len(e.b) > partBytes {
			done = false
			break
		}
		e.u8(1)
		e.dirent(entry.Dirent)
		if how != listNames {
			e.described(entry)
		}
		n++
	}
	e.u8(0)
	e.bool(done)
	e.err(failed)
	return nil
}

// maxXattrBytes bounds the attributes of one entry in a listing. More is damage.
const maxXattrBytes = 1 << 20

func (e *encoder) described(entry guestfs.Entry) {
	total := 0
	for _, x := range entry.Xattrs {
		total += len(x.Name) + len(x.Value)
	}
	if total > maxXattrBytes {
		entry.Xattrs, entry.Err = nil, guestfs.Corruptf("file system", "attributes of %d bytes", total)
	}
	e.bool(entry.Attr != nil)
	if entry.Attr != nil {
		e.attr(entry.Attr)
	}
	e.xattrs(entry.Xattrs)
	e.err(entry.Err)
}

func (d *decoder) described(entry *guestfs.Entry) {
	if d.bool() {
		entry.Attr = d.attr()
	}
	entry.Xattrs = d.xattrs()
	entry.Err = d.err()
}

// physical sends a part of where a file stands on its volume.
func physical(ctx context.Context, fsys guestfs.FS, inode guestfs.Inode, d *decoder, e *encoder) error {
	skip := d.u64()
	m, ok := fsys.(guestfs.Mapped)
	if !ok {
		return &guestfs.UnsupportedError{FS: "file system", What: "telling where files stand"}
	}
	n, done := uint64(0), true
	var failed error
	for x, err := range m.PhysicalExtents(ctx, inode) {
		if err != nil {
			failed = err
			break
		}
		if n++; n <= skip {
			continue
		}
		if n-skip > partEntries {
			done = false
			break
		}
		e.u8(1)
		e.i64(x.Offset)
		e.i64(x.At)
		e.i64(x.Length)
		e.bool(x.Encoded)
	}
	e.u8(0)
	e.bool(done)
	e.err(failed)
	return nil
}
