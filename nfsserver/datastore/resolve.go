package datastore

import (
	"crypto/subtle"

	"golang.org/x/sys/unix"
)

// Resolve finds the file that a handle names. For a handle of a file that is
// known it costs a map look-up and no allocation; for another it may list the
// session's directories, once after Attach. Errors: [ErrBadHandle] if this
// server did not make the handle, [ErrJukebox] if its session exists and is not
// attached, [ErrStale] if the file is gone.
func (t *Tree) Resolve(fh []byte) (*Node, error) {
	if n, ok := t.TryResolve(fh); ok {
		return n, nil
	}
	n, err := t.resolve(fh)
	return n, fail("resolve", "", err)
}

// TryResolve is Resolve for the handle of a file that is known and can be used
// now; it waits for nothing. Otherwise ok is false.
func (t *Tree) TryResolve(fh []byte) (n *Node, ok bool) {
	if len(fh) != handleLen {
		return nil, false
	}
	n = t.known(handleIno(fh))
	// Equal to the handle that we gave out: its MAC is right without computing it.
	if n == nil || subtle.ConstantTimeCompare(n.handle[:], fh) != 1 {
		return nil, false
	}
	return n, n.sess == nil || n.sess.attached.Load()
}

func (t *Tree) known(ino uint64) *Node {
	t.mu.RLock()
	n := t.nodes[ino]
	t.mu.RUnlock()
	return n
}

func (t *Tree) resolve(fh []byte) (*Node, error) {
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
