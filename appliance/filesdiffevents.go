package appliance

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"lifeboat/guestfs"
)

// Kinds of a FileChange.
const (
	FileCreated = "created"
	FileChanged = "changed"
	FileDeleted = "deleted"
	FileRenamed = "renamed"
)

// FileChange is what happened to a file between two restore points. What happened
// to a directory because of what is in it is not told, nor, of a directory that
// was renamed, what is in it and is as it was.
type FileChange struct {
	Status string `json:"status"`
	Path   string `json:"path"`           // where it is, of a deleted one where it was: a place in its restore point
	From   string `json:"from,omitempty"` // where it was before
	Type   string `json:"type"`
	// What differs: size, mtime, content, mode, owner, type, device, flags, xattrs,
	// replaced (another file has the name), or ctime where it is something that none
	// of these says.
	What   []string   `json:"what,omitempty"`
	Before *FileState `json:"before,omitempty"`
	After  *FileState `json:"after,omitempty"`
}

// FileState is what a change is told with.
type FileState struct {
	Size  int64      `json:"size"`
	Mtime *time.Time `json:"mtime,omitempty"`
	Inode uint64     `json:"inode"`
}

// diffEnt is a name of a file in one of two states.
type diffEnt struct {
	link  guestfs.Link
	inode guestfs.Inode
	path  string
	attr  *guestfs.Attr
	moved bool // the name is not in the other state
}

// sameFile reports whether two inodes of the same number are the same file: a
// number may have been used again.
func sameFile(a, b *guestfs.Attr) bool {
	return a != nil && b != nil && a.Inode == b.Inode && a.Type() == b.Type() && a.Generation == b.Generation && a.Btime.Equal(b.Btime)
}

// attrDiff says what differs between two states of a file. Of a directory it is
// left out what follows from its entries.
func attrDiff(a, b *guestfs.Attr) (what []string) {
	add := func(differs bool, name string) {
		if differs {
			what = append(what, name)
		}
	}
	isDir := a.Type() == guestfs.TypeDir && b.Type() == guestfs.TypeDir
	add(a.Type() != b.Type(), "type")
	add(!isDir && a.Size != b.Size, "size")
	add(!isDir && !a.Mtime.Equal(b.Mtime), "mtime")
	add(a.Mode&0o7777 != b.Mode&0o7777, "mode")
	add(a.UID != b.UID || a.GID != b.GID, "owner")
	add(a.Major != b.Major || a.Minor != b.Minor, "device")
	add(a.Flags != b.Flags, "flags")
	return what
}

// changedTime reports whether only the time of the last change of the inode says
// that something happened.
func changedTime(a, b *guestfs.Attr, what []string) bool {
	isDir := a.Type() == guestfs.TypeDir && b.Type() == guestfs.TypeDir
	return len(what) == 0 && !isDir && !a.Ctime.Equal(b.Ctime) && a.Links == b.Links
}

// diffMatcher makes changes of the names of files in two states.
type diffMatcher struct {
	// differs says more about a file that is in both states: what differs, given what
	// its inode says.
	differs func(old, now *diffEnt, what []string) []string
	// byPath says that inode numbers of one state mean nothing in the other.
	byPath bool
	out    []FileChange
}

// match pairs names of the same file: those with the same path, the same name in
// the same directory (which was renamed), any others; and then the same path.
func (m *diffMatcher) match(old, now []diffEnt) []FileChange {
	byEntPath := func(a, b diffEnt) int { return compareStrings(a.path, b.path) }
	slices.SortFunc(old, byEntPath)
	slices.SortFunc(now, byEntPath)
	byInode := map[guestfs.Inode][]int{}
	byPath := map[string]int{}
	for i := range old {
		byInode[old[i].inode] = append(byInode[old[i].inode], i)
		byPath[old[i].path] = i
	}
	pair := make([]int, len(now)) // index in old, -1: none
	used := make([]bool, len(old))
	take := func(n, o int) { pair[n], used[o] = o, true }
	for n := range pair {
		pair[n] = -1
	}
	for _, alike := range []func(o, n *diffEnt) bool{
		func(o, n *diffEnt) bool { return o.path == n.path },
		func(o, n *diffEnt) bool { return o.link == n.link && !o.moved && !n.moved },
		func(*diffEnt, *diffEnt) bool { return true },
	} {
		for n := range now {
			if pair[n] >= 0 || m.byPath {
				continue
			}
			for _, o := range byInode[now[n].inode] {
				if !used[o] && alike(&old[o], &now[n]) && sameFile(old[o].attr, now[n].attr) {
					take(n, o)
					break
				}
			}
		}
	}
	for n := range now {
		if o, ok := byPath[now[n].path]; ok && pair[n] < 0 && !used[o] {
			take(n, o)
		}
	}
	for n, o := range pair {
		if o < 0 {
			m.add(FileCreated, nil, &now[n], nil)
			continue
		}
		m.both(&old[o], &now[n])
	}
	for o := range old {
		if !used[o] {
			m.add(FileDeleted, &old[o], nil, nil)
		}
	}
	slices.SortFunc(m.out, func(a, b FileChange) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Status, b.Status), strings.Compare(a.From, b.From))
	})
	return m.out
}

// both tells of a file, or a path, that is in both states.
func (m *diffMatcher) both(old, now *diffEnt) {
	same := m.byPath || sameFile(old.attr, now.attr)
	what := attrDiff(old.attr, now.attr)
	isDir := old.attr.Type() == guestfs.TypeDir && now.attr.Type() == guestfs.TypeDir
	switch {
	case !same && (!isDir || len(what) > 0):
		what = append(what, "replaced")
	case same && m.differs != nil:
		what = m.differs(old, now, what)
	}
	renamed := old.path != now.path && (old.link != now.link || old.moved || now.moved)
	if renamed {
		// That of a renamed file says that it was renamed.
		what = slices.DeleteFunc(what, func(s string) bool { return s == "ctime" })
		m.add(FileRenamed, old, now, what)
	} else if len(what) > 0 {
		m.add(FileChanged, old, now, what)
	}
}

func (m *diffMatcher) add(status string, old, now *diffEnt, what []string) {
	c := FileChange{Status: status, What: what}
	if old != nil {
		c.Path, c.Type, c.Before = old.path, fileType(old.attr.Mode), fileState(old.attr)
	}
	if now != nil {
		if old != nil && old.path != now.path {
			c.From = old.path
		}
		c.Path, c.Type, c.After = now.path, fileType(now.attr.Mode), fileState(now.attr)
	}
	m.out = append(m.out, c)
}

func fileState(a *guestfs.Attr) *FileState {
	return &FileState{Size: a.Size, Mtime: moment(a.Mtime), Inode: uint64(a.Inode)}
}

// below reports whether a path is dir or in it.
func below(p, dir string) bool {
	dir = path.Clean(dir)
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}
