package fusefs

import (
	"path"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"lifeboat/guestfs"
	"lifeboat/guestfs/browse"
)

// links knows under which names the kernel found directories and symbolic links,
// for as long as it knows them, and the node IDs that are not inode numbers.
type links struct {
	tree *browse.Namespace
	root guestfs.Inode

	mu    sync.Mutex
	known map[uint64]*known
	// alias are the nodes of links with several names, by where they were found.
	alias map[aliasKey]uint64
	last  uint64
}

// known is a directory or link that the kernel knows.
type known struct {
	inode   guestfs.Inode
	parent  uint64
	name    string
	lookups uint64
	key     aliasKey // of an alias
}

type aliasKey struct {
	inode  guestfs.Inode
	parent uint64
}

// aliases are node IDs from the end of all numbers: the tree's do not get there.
const firstAlias = 1<<64 - 1<<40

func newLinks(tree *browse.Namespace) links {
	return links{tree: tree, root: tree.Root(), known: map[uint64]*known{}, alias: map[aliasKey]uint64{}, last: firstAlias}
}

// plain is the node ID of an inode, and the reverse: only the root's is another.
func (l *links) plain(n uint64) uint64 {
	switch n {
	case uint64(l.root):
		return fuse.FUSE_ROOT_ID
	case fuse.FUSE_ROOT_ID:
		return uint64(l.root)
	}
	return n
}

// inode is the inode of a node.
func (l *links) inode(node uint64) guestfs.Inode {
	if node < firstAlias {
		return guestfs.Inode(l.plain(node))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.known[node]; k != nil {
		return k.inode
	}
	return 0
}

// node is the node ID for what the kernel has found in a directory, which it
// will forget as often as it found it.
func (l *links) node(parent uint64, name string, a *guestfs.Attr) uint64 {
	kind := a.Type()
	if kind != guestfs.TypeDir && kind != guestfs.TypeSymlink {
		return l.plain(uint64(a.Inode))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.plain(uint64(a.Inode))
	var key aliasKey
	if kind == guestfs.TypeSymlink && a.Links > 1 {
		key = aliasKey{a.Inode, parent}
		if id = l.alias[key]; id == 0 {
			l.last++
			id = l.last
			l.alias[key] = id
		}
	}
	k := l.known[id]
	if k == nil {
		k = &known{inode: a.Inode, parent: parent, name: name, key: key}
		l.known[id] = k
	}
	k.lookups++
	return id
}

func (l *links) forget(node, lookups uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.known[node]
	if k == nil {
		return
	}
	if k.lookups > lookups {
		k.lookups -= lookups
		return
	}
	delete(l.known, node)
	if k.key.inode != 0 {
		delete(l.alias, k.key)
	}
}

// volumePath is the names from the root of a volume to a directory in it.
type volumePath []string

// maxDepth bounds a path; the kernel's own limit is lower.
const maxDepth = 4096

// directory is where the kernel found a link.
func (l *links) directory(node uint64) (volumePath, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.known[node]
	if k == nil {
		return nil, false
	}
	var p volumePath
	for at := k.parent; len(p) < maxDepth; {
		if tree, root := l.tree.TreeOf(guestfs.Inode(l.plain(at))); root {
			for i, j := 0, len(p)-1; i < j; i, j = i+1, j-1 {
				p[i], p[j] = p[j], p[i]
			}
			return p, true
		} else if tree == 0 {
			return nil, false
		}
		d := l.known[at]
		if d == nil {
			return nil, false
		}
		p = append(p, d.name)
		at = d.parent
	}
	return nil, false
}

func (p volumePath) String() string { return strings.Join(p, "/") }

// nowhere is a name that no guest's file has: what leads nowhere leads there.
const nowhere = "\x01nowhere"

// safe is what the kernel may see of a link in the directory p.
func (p volumePath) safe(l browse.Link) string {
	if p.stays(l.Target) {
		return l.Target
	}
	to := l.Resolved
	if to == "" {
		// For the guest, too, it leads nowhere; the name says what was meant.
		to = path.Join("/", nowhere, path.Clean("/"+l.Target))
	}
	up := strings.Repeat("../", len(p))
	rest := strings.TrimPrefix(to, "/")
	if up == "" && rest == "" {
		return "."
	}
	return strings.TrimSuffix(up+rest, "/")
}

// stays reports whether a target is relative and leads out of p, by "..", no
// further up than there are directories; after a name there is none, because the
// name may be a link to anywhere.
func (p volumePath) stays(target string) bool {
	if target == "" || target[0] == '/' {
		return false
	}
	up, below := 0, false
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "" || part == ".":
		case part != "..":
			below = true
		case below:
			return false
		default:
			up++
		}
	}
	return up <= len(p)
}
