package datastore

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// acquireHeld is acquire under the namespace lock.
func (n *Node) acquireHeld() (*openFile, error) { return n.acquireBelow(0) }

// maxDepth ends the climb from a file to the next directory that is open. Only
// directories that were moved on the host can make our links go in a circle.
const maxDepth = 1 << 16

// acquireBelow is acquireHeld for a directory depth levels above the file that
// is wanted.
func (n *Node) acquireBelow(depth int) (of *openFile, err error) {
	if depth > maxDepth {
		return nil, errLost
	}
	if err := n.available(); err != nil {
		return nil, err
	}
	if of = n.tree.files.get(n); of != nil {
		return of, nil
	}
	err = n.eachLinkBelow(depth, func(dirfd int, name string) error {
		fd, writable, err := n.openAt(dirfd, name)
		if err != nil {
			return err
		}
		if n.typ == TypeRegular && n.disk.Load() == nil && n.tree.marked(fd) {
			_ = unix.Close(fd)
			return ErrJukebox // a virtual disk whose device is not bound yet
		}
		of = n.tree.files.put(n, fd, writable)
		return nil
	})
	return of, err
}

// openAt opens the node by a name, if it is still the node's.
func (n *Node) openAt(dirfd int, name string) (fd int, writable bool, err error) {
	fd, writable, err = openNode(dirfd, name, n.typ)
	if err != nil {
		return -1, false, err
	}
	st, err := n.tree.statAt(fd, "")
	if err == nil && !n.is(&st) {
		err = errLost
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, false, err
	}
	return fd, writable, nil
}

// reopen opens a directory once more, for a reader that needs a position of its own.
func (n *Node) reopen() (fd int, err error) {
	f, err := n.acquire()
	if err != nil {
		return -1, err
	}
	defer n.release(f)
	return reopenDir(f.fd)
}

func reopenDir(dirfd int) (fd int, err error) {
	return openFD(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// openNode opens name without following a symbolic link and without any effect
// of the opening itself (O_NONBLOCK: a FIFO put there meanwhile does not hang).
func openNode(dirfd int, name string, typ Type) (fd int, writable bool, err error) {
	const common = unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	open := func(flags int) error {
		return retry(func() (err error) {
			fd, err = unix.Openat(dirfd, name, flags|common, 0)
			return err
		})
	}
	switch typ {
	case TypeDirectory:
		err = open(unix.O_RDONLY | unix.O_DIRECTORY)
	case TypeRegular:
		err, writable = open(unix.O_RDWR), true
		if isAny(err, unix.EACCES, unix.EPERM, unix.EROFS, unix.ETXTBSY) {
			err, writable = open(unix.O_RDONLY), false
		}
	default:
		err = open(unix.O_PATH)
	}
	if err != nil {
		return -1, false, err
	}
	return fd, writable, nil
}

func isAny(err error, kinds ...error) bool {
	return slices.ContainsFunc(kinds, func(k error) bool { return errors.Is(err, k) })
}

// eachLink tries f with the directory and name of each link, until one is not
// lost. A link that does not lead to the node any more is forgotten.
func (n *Node) eachLink(f func(dirfd int, name string) error) error {
	return n.eachLinkBelow(0, f)
}

func (n *Node) eachLinkBelow(depth int, f func(dirfd int, name string) error) error {
	n.tree.mu.RLock()
	links := n.links
	n.tree.mu.RUnlock()
	for _, l := range links {
		err := l.with(depth, f)
		if !isAny(err, errLost, ErrStale, unix.ENOENT, unix.ELOOP, unix.ENOTDIR, unix.EISDIR, unix.ENXIO) {
			return err
		}
		n.tree.unlinked(n, l)
	}
	return errLost
}

func (l link) with(depth int, f func(dirfd int, name string) error) error {
	dir, err := l.parent.acquireBelow(depth + 1)
	if err != nil {
		return err
	}
	defer l.parent.release(dir)
	return f(dir.fd, l.name)
}
