package datastore

import (
	"errors"
	"math"
	"strconv"

	"golang.org/x/sys/unix"
)

// CreateMode is how Create treats a name that exists: createmode3 (RFC 1813 §3.3.8).
type CreateMode uint32

const (
	// Unchecked succeeds on an existing file and sets nothing on it but the
	// size, if one is given. On a virtual disk a size other than its own is
	// refused ([ErrInval]): it is never truncated.
	Unchecked CreateMode = 0
	// Guarded fails with [ErrExist].
	Guarded CreateMode = 1
	// Exclusive fails with [ErrExist] unless the file was created with the
	// same verifier: then this is a retransmission, and succeeds. The verifier
	// is kept with the file, so that also holds after a restart.
	Exclusive CreateMode = 2
)

// CreateHow is how a file is made.
type CreateHow struct {
	Mode     CreateMode
	Verifier [8]byte // Exclusive
	Attr     SetAttr // Unchecked and Guarded
}

const (
	defaultFileMode = 0o644
	defaultDirMode  = 0o755
)

// Create makes a regular file, or opens one that exists (see [CreateMode]).
// Durable when it returns.
func (n *Node) Create(c Cred, name string, how CreateHow) (*Node, WCC, error) {
	var wcc WCC
	file, err := n.create(&c, name, how, &wcc)
	return file, wcc, fail("create", name, err)
}

func (n *Node) create(c *Cred, name string, how CreateHow, wcc *WCC) (*Node, error) {
	if how.Mode > Exclusive {
		return nil, ErrInval
	}
	ch, err := n.begin(c, name, wcc)
	if err != nil {
		return nil, err
	}
	defer ch.release()
	file, fd, err := ch.create(c, name, how)
	ch.end()
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err != nil {
		return nil, err
	}
	if fd >= 0 {
		if err := ch.persistNew(fd); err != nil {
			return nil, err
		}
		file.nascent.Store(false)
		return file, nil
	}
	// The file was there. But if whoever made it is still waiting for that to
	// be durable, so must we.
	if file.nascent.Load() {
		if err := ch.persist(); err != nil {
			return nil, err
		}
	}
	ch.leave()
	if how.Mode == Unchecked && how.Attr.Size != nil {
		_, err = file.SetAttr(*c, SetAttr{Size: how.Attr.Size}, nil)
	}
	return file, err
}

// create makes the file and returns it with a descriptor, which is -1 if the
// file existed. The namespace lock is held.
func (ch *change) create(c *Cred, name string, how CreateHow) (file *Node, fd int, err error) {
	st, err := ch.lookup(name)
	if err == nil {
		file, err = ch.existing(name, &st, how)
		return file, -1, err
	}
	if err != unix.ENOENT {
		return nil, -1, err
	}
	if err := ch.room(c); err != nil {
		return nil, -1, err
	}
	fd, err = ch.newFile(c, name, &how)
	if err != nil {
		return nil, -1, err
	}
	if file, err = ch.adoptNew(name); err == nil {
		file.nascent.Store(true)
	}
	return file, fd, err
}

func (ch *change) adoptNew(name string) (*Node, error) {
	st, err := ch.lookup(name)
	if err != nil {
		return nil, err
	}
	return ch.dir.tree.adopt(ch.dir, ch.fd, name, &st)
}

// room checks that c may add a file to the directory. The number of files of a
// session is bounded, and so is our memory.
func (ch *change) room(c *Cred) error {
	if err := ch.mayWrite(c); err != nil {
		return err
	}
	t := ch.dir.tree
	t.mu.RLock()
	defer t.mu.RUnlock()
	if ch.dir.sess.count >= t.maxFiles {
		return ErrDQuot
	}
	return nil
}

func (ch *change) existing(name string, st *stat, how CreateHow) (*Node, error) {
	file, err := ch.dir.tree.adopt(ch.dir, ch.fd, name, st)
	if err != nil {
		return nil, err
	}
	switch how.Mode {
	case Guarded:
		return nil, ErrExist
	case Exclusive:
		if !file.createdWith(how.Verifier) {
			return nil, ErrExist
		}
		return file, nil
	}
	switch file.typ {
	case TypeRegular:
		return file, nil
	case TypeDirectory:
		return nil, ErrIsDir
	}
	return nil, ErrExist
}

// newFile makes an empty file with everything about it in place and returns it
// open. The file gets its name last: nobody ever sees, and a crash never leaves,
// a file without its owner, or an exclusive one without its verifier, which
// nobody could claim.
func (ch *change) newFile(c *Cred, name string, how *CreateHow) (fd int, err error) {
	t := ch.dir.tree
	if t.nameFirst.Load() {
		return ch.newNamed(c, name, how)
	}
	fd, err = openFD(ch.fd, ".", unix.O_RDWR|unix.O_TMPFILE, 0o600)
	switch {
	case err == nil:
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL): // open(2): no unnamed files here
		t.nameFirst.Store(true)
		return ch.newNamed(c, name, how)
	default:
		return -1, err
	}
	if err = ch.prepare(fd, c, how); err == nil && !t.ordered {
		err = syncFD(fd)
	}
	if err == nil {
		err = retry(func() error { return linkFD(fd, ch.fd, name) })
	}
	if err == nil {
		return fd, nil
	}
	_ = unix.Close(fd)
	if err == errNoLink {
		t.nameFirst.Store(true)
		return ch.newNamed(c, name, how)
	}
	return -1, err
}

// errNoLink: the host lets us give no name to an unnamed file.
var errNoLink = errors.New("an unnamed file cannot be linked")

// linkFD names an unnamed file, by the way that needs CAP_DAC_READ_SEARCH or
// the one that needs /proc.
func linkFD(fd, dirfd int, name string) error {
	err := unix.Linkat(fd, "", dirfd, name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT || err == unix.EPERM {
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
	}
	switch err {
	case unix.ENOENT, unix.EPERM, unix.EOPNOTSUPP, unix.EXDEV:
		return errNoLink
	}
	return err
}

// newNamed is newFile where the name has to come first.
func (ch *change) newNamed(c *Cred, name string, how *CreateHow) (fd int, err error) {
	fd, err = openFD(ch.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, err
	}
	ch.late = true
	if err := ch.prepare(fd, c, how); err != nil {
		_ = unix.Unlinkat(ch.fd, name, 0)
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// prepare gives a new file its owner, mode, size, verifier and times.
func (ch *change) prepare(fd int, c *Cred, how *CreateHow) error {
	set := &how.Attr
	if how.Mode == Exclusive {
		set = &SetAttr{}
	}
	if err := ch.own(fd, "", c, set); err != nil {
		return err
	}
	if set.Size != nil && *set.Size > 0 {
		if *set.Size > math.MaxInt64 {
			return ErrFBig
		}
		if err := unix.Ftruncate(fd, int64(*set.Size)); err != nil {
			return err
		}
	}
	mode := uint32(defaultFileMode)
	if set.Mode != nil {
		mode = *set.Mode & 0o7777
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	if how.Mode == Exclusive {
		return ch.dir.tree.setVerifier(fd, how.Verifier)
	}
	return set.setTimes(fd)
}

// own gives a new file (fd, or name in the directory fd) to the caller, where
// we can: as root, or when it is ours anyway.
func (ch *change) own(fd int, name string, c *Cred, set *SetAttr) error {
	uid, gid := c.UID, c.GID
	if ch.attr.Mode&unix.S_ISGID != 0 {
		gid = ch.attr.GID
	}
	if set.UID != nil && c.UID == 0 {
		uid = *set.UID
	}
	if set.GID != nil && (c.UID == 0 || c.in(*set.GID)) {
		gid = *set.GID
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	err := unix.Fchownat(fd, name, int(uid), int(gid), flags)
	if err == unix.EPERM && unix.Geteuid() != 0 {
		return nil
	}
	return err
}
