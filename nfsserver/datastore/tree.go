package datastore

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// Options of a [Tree].
type Options struct {
	// Root is the host directory that holds one directory per session. It must
	// exist. What clients store there keeps its setuid bits, so it should not
	// be open to other users of the host.
	Root string
	// FSID is the fsid that clients see. It must not be 0, and stay the same
	// for as long as clients use the export.
	FSID uint64
	// Key authenticates file handles. Handles are worth nothing under another
	// key.
	Key [32]byte
	// Logger; nil: nothing is logged.
	Logger *slog.Logger
	// MaxOpen bounds the descriptors that are kept open; 0: 512.
	MaxOpen int
	// MaxFiles bounds the files and directories of one session that clients
	// can make, and with them the memory that the tree takes (about 400 bytes
	// each); 0: 1,048,576.
	MaxFiles int
	// Unlinked, if set, is called after the last name of a virtual disk is
	// gone: its binding has ended and its Device is the caller's to close. It
	// runs in the goroutine of the operation, with no lock held.
	Unlinked func(Unlinked)
}

// Unlinked says which virtual disk a client has removed.
type Unlinked struct {
	Session string
	Path    string // the last name, relative to the root
	FileID  uint64
	Device  disk.Device
}

const (
	defaultMaxOpen  = 512
	defaultMaxFiles = 1 << 20
)

// Tree is the exported tree. All methods are safe for concurrent use.
type Tree struct {
	fsid     uint64
	log      *slog.Logger
	maxFiles int
	unlinkCB func(Unlinked)

	sealer        *sealer
	files         fdCache
	root          *Node
	dev           uint64      // the host's device number: all of the tree is on it
	kernelHandles bool        // the file system has handles (see generation)
	ordered       bool        // the file system makes metadata durable in order
	xattrs        bool        // it has extended attributes
	nameFirst     atomic.Bool // it has no unnamed files, as Create found out
	start         time.Time
	wall          atomic.Int64 // time of day at start, nanoseconds since 1970

	diskBytes atomic.Int64 // sum of the sizes of all virtual disks

	admin sync.Mutex // serialises Attach, Detach, Bind and Close

	mu       sync.RWMutex
	nodes    map[uint64]*Node // by inode number
	sessions map[string]*session
}

// Open opens the tree in o.Root. No session is attached yet.
func Open(o Options) (*Tree, error) {
	if o.FSID == 0 {
		return nil, fail("open the datastore", o.Root, errors.New("Options.FSID is 0: give the export a lasting number"))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxOpen <= 0 {
		o.MaxOpen = defaultMaxOpen
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = defaultMaxFiles
	}
	t := &Tree{
		fsid: o.FSID, log: o.Logger, maxFiles: o.MaxFiles, unlinkCB: o.Unlinked,
		sealer: newSealer(o.Key, o.FSID), start: time.Now(),
		nodes: map[uint64]*Node{}, sessions: map[string]*session{},
	}
	t.files.max = o.MaxOpen
	t.anchor()
	if err := t.openRoot(o.Root); err != nil {
		return nil, fail("open the datastore", o.Root, err)
	}
	return t, nil
}

func (t *Tree) openRoot(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	st, err := t.statAt(fd, "")
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	_, _, err = unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	t.kernelHandles = err == nil
	if !t.kernelHandles && st.btime == 0 {
		t.log.Warn("file system keeps neither births nor handles: a file handle may outlive its file",
			"root", path)
	}
	_, err = unix.Fgetxattr(fd, diskMark, nil)
	t.xattrs = err != unix.EOPNOTSUPP
	if !t.xattrs {
		t.log.Warn("file system keeps no extended attributes: bind virtual disks before their session is attached",
			"root", path)
	}
	t.dev, t.ordered = st.dev, orderedMetadata(fd)
	t.root = &Node{tree: t, ino: st.attr.FileID, btime: st.btime, typ: TypeDirectory}
	t.root.handle = t.sealer.seal(handleID{ino: t.root.ino})
	t.root.file = &openFile{fd: fd, node: t.root, refs: 1}
	t.nodes[t.root.ino] = t.root
	return nil
}

// Close detaches all sessions and closes what is open.
func (t *Tree) Close() {
	t.mu.RLock()
	names := make([]string, 0, len(t.sessions))
	for name := range t.sessions {
		names = append(names, name)
	}
	t.mu.RUnlock()
	for _, name := range names {
		if err := t.Detach(name); err != nil {
			t.log.Warn("detach at close", "session", name, "err", err)
		}
	}
	t.admin.Lock()
	defer t.admin.Unlock()
	t.files.close()
	t.files.mu.Lock()
	f := t.root.file
	t.root.file = nil
	t.files.mu.Unlock()
	if f != nil {
		t.files.release(f)
	}
}

// clock is the time since the tree was opened; cheap.
func (t *Tree) clock() time.Duration { return time.Since(t.start) }

// now is the time of day, at a fraction of the price of time.Now.
func (t *Tree) now() int64 { return t.wall.Load() + int64(t.clock()) }

// anchor sets now right again after the time of day was changed.
func (t *Tree) anchor() int64 {
	now := time.Now()
	t.wall.Store(now.UnixNano() - int64(now.Sub(t.start)))
	return now.UnixNano()
}

// Root is the directory of the sessions. It lists those that are attached and
// is read-only.
func (t *Tree) Root() (*Node, error) { return t.root, nil }

// Walk finds the file at path, relative to the root ("" is the root), for MOUNT
// and for ourselves: no permission is checked. It follows no symbolic link (it
// may return one), and refuses "..".
func (t *Tree) Walk(path string) (*Node, error) {
	names, err := splitPath(path)
	if err != nil {
		return nil, fail("walk", path, err)
	}
	n := t.root
	for _, name := range names {
		if n, err = n.Lookup(Cred{}, name); err != nil {
			return nil, fail("walk", path, err)
		}
	}
	return n, nil
}
