package datastore

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
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
	dev           uint64 // the host's device number: all of the tree is on it
	kernelHandles bool   // the file system has handles (see generation)
	ordered       bool   // the file system makes metadata durable in order
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

// Resolve finds the file that a handle names. For a handle of a file that is
// known it costs a map look-up and no allocation; for another it may list the
// session's directories, once after Attach. Errors: [ErrBadHandle] if this
// server did not make the handle, [ErrJukebox] if its session exists and is not
// attached, [ErrStale] if the file is gone.
func (t *Tree) Resolve(fh []byte) (*Node, error) {
	if len(fh) != handleLen {
		return nil, fail("resolve", "", ErrBadHandle)
	}
	n := t.known(handleIno(fh))
	// The comparison need not take constant time: the handle of a known file is
	// no secret from those who may ask for it, and a MAC is checked as a whole.
	if n != nil && string(n.handle[:]) == string(fh) {
		if n.sess == nil || n.sess.attached.Load() {
			return n, nil
		}
		return nil, fail("resolve", "", ErrJukebox)
	}
	n, err := t.resolveUnknown(fh)
	return n, fail("resolve", "", err)
}

func (t *Tree) known(ino uint64) *Node {
	t.mu.RLock()
	n := t.nodes[ino]
	t.mu.RUnlock()
	return n
}

func (t *Tree) resolveUnknown(fh []byte) (*Node, error) {
	id, ok := t.sealer.open(fh)
	if !ok {
		return nil, ErrBadHandle
	}
	if id.sess == 0 {
		return nil, ErrStale // the root of another directory with our key
	}
	dir := t.known(id.sess)
	if dir == nil || dir.sess == nil || dir.sess.dir != dir {
		return nil, t.absent(id)
	}
	if dir.gen != id.sessGen {
		return nil, ErrStale
	}
	if !dir.sess.attached.Load() {
		return nil, ErrJukebox
	}
	if err := dir.sess.index(false); err != nil {
		return nil, err
	}
	if n := t.known(id.ino); n != nil && string(n.handle[:]) == string(fh) {
		return n, nil
	}
	return nil, ErrStale
}

// absent decides about an authentic handle whose session is not attached: a
// client must wait as long as the session's directory is there.
func (t *Tree) absent(id handleID) error {
	fd, err := t.root.reopen()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for e, err := range listDir(fd, 0) {
		if err != nil {
			return err
		}
		if e.ino != id.sess {
			continue
		}
		st, err := t.statAt(fd, string(e.name))
		if err != nil || st.attr.FileID != id.sess {
			continue
		}
		if gen, err := t.generation(fd, string(e.name), &st); err != nil || gen == id.sessGen {
			return ErrJukebox
		}
	}
	return ErrStale
}

// adopt returns the node of the file that st describes, which is name in the
// directory parent (open as dirfd), and makes it if it is not known. The
// namespace lock of parent's session is held.
func (t *Tree) adopt(parent *Node, dirfd int, name string, st *stat) (*Node, error) {
	switch {
	case st.dev != t.dev:
		return nil, ErrXDev // something is mounted there: none of ours
	case parent.sess.ended.Load():
		return nil, ErrJukebox
	}
	l := link{parent, name}
	if n := t.known(st.attr.FileID); n != nil {
		if n.is(st) && n.sess == parent.sess {
			t.linked(n, l)
			return n, nil
		}
		t.forget(n)
	}
	gen, err := t.generation(dirfd, name, st)
	if err != nil {
		return nil, err
	}
	n := t.newNode(parent.sess, st, gen)
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.nodes[n.ino]; other != nil && other.gen == gen && other.sess == n.sess {
		other.addLink(l)
		return other, nil
	}
	n.links = []link{l}
	t.nodes[n.ino] = n
	n.sess.count++
	return n, nil
}

func (t *Tree) newNode(s *session, st *stat, gen uint64) *Node {
	n := &Node{tree: t, sess: s, ino: st.attr.FileID, gen: gen, btime: st.btime, typ: st.attr.Type}
	id := handleID{ino: n.ino, gen: gen, sess: n.ino, sessGen: gen} // the session's directory itself
	if s.dir != nil {
		id.sess, id.sessGen = s.dir.ino, s.dir.gen
	}
	n.handle = t.sealer.seal(id)
	return n
}

// linked notes a name of n.
func (t *Tree) linked(n *Node, l link) {
	t.mu.RLock()
	have := n.hasLink(l)
	t.mu.RUnlock()
	if !have {
		t.mu.Lock()
		n.addLink(l)
		t.mu.Unlock()
	}
}

// unlinked forgets a name of n.
func (t *Tree) unlinked(n *Node, l link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(n.links, l); i >= 0 {
		// A new slice: eachLink reads the old one without the lock.
		n.links = slices.Concat(n.links[:i], n.links[i+1:])
	}
}

func (n *Node) hasLink(l link) bool { return slices.Contains(n.links, l) }

// maxLinks bounds the names that are remembered of one file. A file all of whose
// remembered names are removed is found by listing the session.
const maxLinks = 32

// addLink puts the newest name first. A directory has only one. tree.mu is held.
func (n *Node) addLink(l link) {
	if n.hasLink(l) {
		return
	}
	keep := n.links[:min(len(n.links), maxLinks-1)]
	if n.typ == TypeDirectory {
		keep = nil
	}
	n.links = append([]link{l}, keep...)
}

// forget ends n: its file is gone.
func (t *Tree) forget(n *Node) {
	t.mu.Lock()
	if t.nodes[n.ino] == n {
		delete(t.nodes, n.ino)
		n.sess.count--
	}
	n.links = nil
	n.gone.Store(true)
	t.mu.Unlock()
	n.unbind()
	t.files.drop(n)
	n.changed()
}

// path of n relative to the root, by one of its names.
func (t *Tree) path(n *Node) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var names []string
	for n != nil && n.sess != nil && len(n.links) > 0 {
		names = append(names, n.links[0].name)
		n = n.links[0].parent
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}
