package datastore

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// model is what a tree of files should be, in memory.
type model struct {
	f     *fixture
	rt    *rapid.T
	root  *file
	files []*file // all that ever were, for their handles
}

type file struct {
	typ     Type
	handle  []byte
	nlink   int
	data    string
	entries map[string]*file
	parent  *file
	verf    [8]byte
	gone    bool
}

// TestAgainstModel does random operations on the tree and on the model; answers,
// handles and what is found afterwards must agree, also across restarts.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixture(t)
		defer f.Close()
		m := &model{f: f, rt: rt, root: &file{typ: TypeDirectory, entries: map[string]*file{}}}
		m.root.handle = slices.Clone(f.vm.Handle())
		rt.Repeat(map[string]func(*rapid.T){
			"create":  func(*rapid.T) { m.create() },
			"mkdir":   func(*rapid.T) { m.mkdir() },
			"symlink": func(*rapid.T) { m.symlink() },
			"remove":  func(*rapid.T) { m.remove(false) },
			"rmdir":   func(*rapid.T) { m.remove(true) },
			"rename":  func(*rapid.T) { m.rename() },
			"link":    func(*rapid.T) { m.link() },
			"write":   func(*rapid.T) { m.write() },
			"resize":  func(*rapid.T) { m.resize() },
			"restart": func(*rapid.T) { m.restart() },
			"":        func(*rapid.T) { m.check() },
		})
	})
}

func (m *model) name() string { return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(m.rt, "name") }

// dir draws a directory that exists.
func (m *model) dir() *file {
	dirs := []*file{m.root}
	for _, f := range m.files {
		if f.typ == TypeDirectory && !f.gone {
			dirs = append(dirs, f)
		}
	}
	return rapid.SampledFrom(dirs).Draw(m.rt, "dir")
}

func (m *model) node(f *file) *Node {
	n, err := m.f.Resolve(f.handle)
	if err != nil {
		m.rt.Fatalf("a live handle: %v", err)
	}
	return n
}

func (m *model) want(err, want error) bool {
	if !errors.Is(err, want) {
		m.rt.Fatalf("error %v, want %v", err, want)
	}
	return err == nil
}

func (m *model) add(dir *file, name string, n *Node, typ Type) *file {
	f := &file{typ: typ, nlink: 1, handle: slices.Clone(n.Handle()), parent: dir}
	if typ == TypeDirectory {
		f.entries = map[string]*file{}
	}
	dir.entries[name] = f
	m.files = append(m.files, f)
	return f
}

func (m *model) create() {
	dir, name := m.dir(), m.name()
	how := CreateHow{Mode: CreateMode(rapid.IntRange(0, 2).Draw(m.rt, "mode"))}
	how.Verifier[0] = byte(rapid.IntRange(1, 2).Draw(m.rt, "verifier"))
	n, _, err := m.node(dir).Create(Cred{}, name, how)
	old := dir.entries[name]
	switch {
	case old == nil:
		if m.want(err, nil) {
			f := m.add(dir, name, n, TypeRegular)
			if how.Mode == Exclusive {
				f.verf = how.Verifier
			}
		}
	case how.Mode == Guarded, how.Mode == Exclusive && old.verf != how.Verifier:
		m.want(err, ErrExist)
	case old.typ == TypeDirectory:
		m.want(err, ErrIsDir)
	case old.typ == TypeSymlink:
		m.want(err, ErrExist)
	default:
		if m.want(err, nil) && string(n.Handle()) != string(old.handle) {
			m.rt.Fatal("another file")
		}
	}
}

func (m *model) mkdir() {
	dir, name := m.dir(), m.name()
	n, _, err := m.node(dir).Mkdir(Cred{}, name, SetAttr{})
	if dir.entries[name] != nil {
		m.want(err, ErrExist)
	} else if m.want(err, nil) {
		m.add(dir, name, n, TypeDirectory)
	}
}

func (m *model) symlink() {
	dir, name := m.dir(), m.name()
	n, _, err := m.node(dir).Symlink(Cred{}, name, "/a/b/../c", SetAttr{})
	if dir.entries[name] != nil {
		m.want(err, ErrExist)
	} else if m.want(err, nil) {
		m.add(dir, name, n, TypeSymlink).data = "/a/b/../c"
	}
}

func (m *model) remove(rmdir bool) {
	dir, name := m.dir(), m.name()
	var err error
	if rmdir {
		_, err = m.node(dir).Rmdir(Cred{}, name)
	} else {
		_, err = m.node(dir).Remove(Cred{}, name)
	}
	old := dir.entries[name]
	switch {
	case old == nil:
		m.want(err, ErrNoEnt)
	case rmdir && old.typ != TypeDirectory:
		m.want(err, ErrNotDir)
	case !rmdir && old.typ == TypeDirectory:
		m.want(err, ErrIsDir)
	case len(old.entries) > 0:
		m.want(err, ErrNotEmpty)
	default:
		if m.want(err, nil) {
			m.unlink(dir, name)
		}
	}
}

func (m *model) unlink(dir *file, name string) {
	f := dir.entries[name]
	delete(dir.entries, name)
	f.nlink--
	f.gone = f.nlink == 0
}

func (m *model) rename() {
	from, name, to, as := m.dir(), m.name(), m.dir(), m.name()
	_, _, err := m.node(from).Rename(Cred{}, name, m.node(to), as)
	f, old := from.entries[name], to.entries[as]
	switch {
	case f == nil:
		m.want(err, ErrNoEnt)
	case f == old:
		m.want(err, nil)
	case old != nil && (f.typ == TypeDirectory) != (old.typ == TypeDirectory):
		m.want(err, ErrExist)
	case f.within(to):
		if !errors.Is(err, ErrInval) && !errors.Is(err, ErrExist) {
			m.rt.Fatalf("into itself: %v", err)
		}
	case old != nil && len(old.entries) > 0:
		m.want(err, ErrExist)
	default:
		if m.want(err, nil) {
			if old != nil {
				m.unlink(to, as)
			}
			delete(from.entries, name)
			to.entries[as] = f
			f.parent = to
		}
	}
}

// within says whether dir is f or below it.
func (f *file) within(dir *file) bool {
	for ; dir != nil; dir = dir.parent {
		if dir == f {
			return true
		}
	}
	return false
}

// some draws a file that exists, and is of one of the types.
func (m *model) some(types ...Type) *file {
	var some []*file
	for _, f := range m.files {
		if !f.gone && slices.Contains(types, f.typ) {
			some = append(some, f)
		}
	}
	if len(some) == 0 {
		m.rt.Skip("no such file")
	}
	return rapid.SampledFrom(some).Draw(m.rt, "file")
}

func (m *model) link() {
	f, dir, name := m.some(TypeRegular, TypeSymlink), m.dir(), m.name()
	_, err := m.node(dir).Link(Cred{}, m.node(f), name)
	if dir.entries[name] != nil {
		m.want(err, ErrExist)
	} else if m.want(err, nil) {
		dir.entries[name] = f
		f.nlink++
	}
}

func (m *model) write() {
	f := m.some(TypeRegular)
	off := rapid.IntRange(0, 20).Draw(m.rt, "off")
	p := rapid.StringN(1, 8, 8).Draw(m.rt, "data")
	_, wcc, err := m.node(f).WriteAt([]byte(p), uint64(off))
	m.want(err, nil)
	if wcc.Pre.Size != uint64(len(f.data)) {
		m.rt.Fatalf("size before the write %d, want %d", wcc.Pre.Size, len(f.data))
	}
	data := []byte(f.data + strings.Repeat("\x00", max(0, off+len(p)-len(f.data))))
	copy(data[off:], p)
	f.data = string(data)
}

func (m *model) resize() {
	f := m.some(TypeRegular)
	size := rapid.IntRange(0, 30).Draw(m.rt, "size")
	_, err := m.node(f).SetAttr(Cred{}, SetAttr{Size: ptr(uint64(size))}, nil)
	m.want(err, nil)
	f.data = (f.data + strings.Repeat("\x00", size))[:size]
}

func (m *model) restart() { m.f.restart(rapid.Bool().Draw(m.rt, "clean")) }

// check compares everything.
func (m *model) check() {
	for _, f := range m.files {
		if f.gone {
			_, err := m.f.Resolve(f.handle)
			m.want(err, ErrStale)
			continue
		}
		n := m.node(f)
		a, err := n.Attr()
		m.want(err, nil)
		switch f.typ {
		case TypeDirectory:
			m.checkDir(f, n)
		case TypeRegular:
			buf := make([]byte, 64)
			k, eof, err := n.ReadAt(buf, 0)
			if err != nil || !eof || string(buf[:k]) != f.data || a.Size != uint64(k) || a.Nlink != uint32(f.nlink) {
				m.rt.Fatalf("%q nlink %d size %d, want %q nlink %d (%v)", buf[:k], a.Nlink, a.Size, f.data, f.nlink, err)
			}
		case TypeSymlink:
			if target, err := n.Readlink(); err != nil || target != f.data {
				m.rt.Fatal(target, err)
			}
		}
	}
	m.checkDir(m.root, m.node(m.root))
}

func (m *model) checkDir(f *file, n *Node) {
	got := map[string]string{}
	for e, err := range n.ReadDir(Cred{}, 2, 0, true) {
		m.want(err, nil)
		got[e.Name] = string(e.Node.Handle())
	}
	if len(got) != len(f.entries) {
		m.rt.Fatalf("%d entries, want %d", len(got), len(f.entries))
	}
	for name, child := range f.entries {
		found, err := n.Lookup(Cred{}, name)
		m.want(err, nil)
		if got[name] != string(child.handle) || string(found.Handle()) != string(child.handle) {
			m.rt.Fatalf("%s is another file", name)
		}
	}
}
