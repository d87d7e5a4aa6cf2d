package datastore

import (
	"slices"
	"strings"
)

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
	for n.sess != nil && len(n.links) > 0 && len(names) < maxDepth {
		names = append(names, n.links[0].name)
		n = n.links[0].parent
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}
