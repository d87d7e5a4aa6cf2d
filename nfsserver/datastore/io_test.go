package datastore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadWrite(t *testing.T) {
	f := newFixture(t)
	n := f.create("x")
	_, wcc, err := n.WriteAt([]byte("hello"), 10)
	must(t, err)
	if wcc.Pre.Size != 0 || wcc.Post.Size != 15 {
		t.Fatalf("%+v", wcc)
	}
	must(t, n.Sync())
	buf := make([]byte, 100)
	k, eof, err := n.ReadAt(buf, 8)
	if err != nil || k != 7 || !eof || string(buf[:k]) != "\x00\x00hello" {
		t.Fatal(k, eof, err)
	}
	k, eof, err = n.ReadAt(buf[:7], 8)
	if err != nil || k != 7 || !eof {
		t.Fatal("exactly to the end", k, eof, err)
	}
	k, eof, err = n.ReadAt(buf[:2], 8)
	if err != nil || k != 2 || eof {
		t.Fatal(k, eof, err)
	}
	for _, off := range []uint64{15, 1 << 40, 1<<63 - 1, 1 << 63} {
		if k, eof, err = n.ReadAt(buf, off); err != nil || k != 0 || !eof {
			t.Fatal(off, k, eof, err)
		}
	}
	_, _, err = n.WriteAt([]byte("xx"), 1<<63-1)
	wantErr(t, err, ErrFBig)
	_, _, err = f.vm.WriteAt([]byte("x"), 0)
	wantErr(t, err, ErrIsDir)
	_, _, err = f.vm.ReadAt(buf, 0)
	wantErr(t, err, ErrIsDir)
	wantErr(t, f.vm.Sync(), ErrIsDir)
}

// The WCC data of concurrent writes form one chain: what one leaves is what the
// next finds.
func TestWCCIsExact(t *testing.T) {
	f := newFixture(t)
	n := f.create("x")
	const writes = 4000
	type growth struct{ from, to uint64 }
	var (
		mu    sync.Mutex
		next  uint64
		grown []growth
		wg    sync.WaitGroup
	)
	for range 4 {
		wg.Go(func() {
			for range writes / 4 {
				mu.Lock()
				off := next
				next++
				mu.Unlock()
				_, wcc, err := n.WriteAt([]byte{1}, off)
				if err != nil || !wcc.HasPre || !wcc.HasPost {
					t.Error(wcc, err)
					return
				}
				mu.Lock()
				if wcc.Pre.Size != wcc.Post.Size {
					grown = append(grown, growth{wcc.Pre.Size, wcc.Post.Size})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.SortFunc(grown, func(a, b growth) int { return int(a.from) - int(b.from) })
	last := uint64(0)
	for _, g := range grown {
		if g.from != last {
			t.Fatalf("a write found size %d, the one before left %d", g.from, last)
		}
		last = g.to
	}
	if attrOf(t, n).Size != writes {
		t.Fatal(attrOf(t, n).Size)
	}
}

func TestSetAttr(t *testing.T) {
	f := newFixture(t)
	n := f.create("x")
	_, _, err := n.WriteAt(make([]byte, 100), 0)
	must(t, err)
	before := attrOf(t, n)
	set := SetAttr{
		Mode: ptr(uint32(0o4711)), Size: ptr(uint64(50)),
		Atime: SetTime{How: ToClientOwn, To: Time{Sec: 1, Nsec: 2}}, Mtime: SetTime{How: ToClientOwn, To: Time{Sec: 3, Nsec: 4}},
	}
	if os.Geteuid() == 0 {
		set.UID, set.GID = ptr(uint32(11)), ptr(uint32(12))
	}
	wcc, err := n.SetAttr(Cred{}, set, &before.Ctime)
	must(t, err)
	a := attrOf(t, n)
	if wcc.Pre != before.pre() || wcc.Post != a {
		t.Fatalf("%+v, file %+v", wcc, a)
	}
	if a.Mode != 0o4711 || a.Size != 50 || a.Atime != set.Atime.To || a.Mtime != set.Mtime.To {
		t.Fatalf("%+v", a)
	}
	if os.Geteuid() == 0 && (a.UID != 11 || a.GID != 12) {
		t.Fatalf("%+v", a)
	}
	_, err = n.SetAttr(Cred{}, set, &before.Ctime)
	wantErr(t, err, ErrNotSync)
	_, err = n.SetAttr(Cred{}, SetAttr{Size: ptr(uint64(1 << 63))}, nil)
	wantErr(t, err, ErrFBig)
	_, err = f.vm.SetAttr(Cred{}, SetAttr{Size: ptr(uint64(1))}, nil)
	wantErr(t, err, ErrIsDir)
	_, err = n.SetAttr(Cred{}, SetAttr{Mtime: SetTime{How: 9}}, nil)
	wantErr(t, err, ErrInval)
	_, err = f.vm.SetAttr(Cred{}, SetAttr{Mode: ptr(uint32(0o700)), Mtime: SetTime{How: ToServer}}, nil)
	must(t, err)
	if attrOf(t, f.vm).Mode != 0o700 {
		t.Fatal("mode of a directory")
	}
}

func TestPermissions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run as root: files cannot be given to other users otherwise")
	}
	f := newFixture(t)
	alice, bob, carol := Cred{UID: 1001, GID: 100}, Cred{UID: 1002, GID: 200, Groups: []uint32{7, 100}}, Cred{UID: 1003, GID: 300}
	_, err := f.vm.SetAttr(Cred{}, SetAttr{Mode: ptr(uint32(0o1777))}, nil)
	must(t, err)
	n, _, err := f.vm.Create(alice, "x", CreateHow{Attr: SetAttr{Mode: ptr(uint32(0o640))}})
	must(t, err)
	if a := attrOf(t, n); a.UID != 1001 || a.GID != 100 {
		t.Fatalf("%+v", a)
	}
	for c, want := range map[*Cred]Access{{}: Read | Write | Exec, &alice: Read | Write, &bob: Read, &carol: 0} {
		if got, err := n.Allowed(*c, Read|Write|Exec); err != nil || got != want {
			t.Fatalf("%v: %v, want %v", c, got, want)
		}
	}
	wantErr(t, n.Permit(&carol, Read), ErrAcces)
	wantErr(t, n.Permit(&bob, Write), ErrAcces)
	must(t, n.Permit(&bob, Read))
	_, err = n.SetAttr(alice, SetAttr{Mode: ptr(uint32(0))}, nil)
	must(t, err)
	must(t, n.Permit(&alice, Write)) // still open there
	_, err = n.SetAttr(bob, SetAttr{Mode: ptr(uint32(0o777))}, nil)
	wantErr(t, err, ErrPerm)
	_, err = n.SetAttr(alice, SetAttr{UID: ptr(uint32(1002))}, nil)
	wantErr(t, err, ErrPerm)
	_, err = n.SetAttr(alice, SetAttr{GID: ptr(uint32(300))}, nil)
	wantErr(t, err, ErrPerm)
	_, err = n.SetAttr(carol, SetAttr{Size: ptr(uint64(0))}, nil)
	wantErr(t, err, ErrAcces)
	_, err = n.SetAttr(carol, SetAttr{Mtime: SetTime{How: ToServer}}, nil)
	wantErr(t, err, ErrAcces)
	_, err = f.vm.Remove(bob, "x") // sticky
	wantErr(t, err, ErrPerm)
	_, _, err = f.vm.Rename(bob, "x", f.vm, "y")
	wantErr(t, err, ErrPerm)
	_, _, err = f.vm.Create(bob, "b", CreateHow{})
	must(t, err)
	_, _, err = f.vm.Rename(bob, "b", f.vm, "x") // would replace alice's
	wantErr(t, err, ErrPerm)

	d, _, err := f.vm.Mkdir(alice, "d", SetAttr{Mode: ptr(uint32(0o2755))})
	must(t, err)
	if a := attrOf(t, d); a.Mode != 0o2755 || a.UID != 1001 {
		t.Fatalf("%+v", a)
	}
	in, _, err := d.Create(Cred{}, "in", CreateHow{})
	must(t, err)
	if attrOf(t, in).GID != 100 {
		t.Fatal("setgid not honoured")
	}
	_, _, err = d.Create(bob, "no", CreateHow{})
	wantErr(t, err, ErrAcces)
	_, _, err = d.Create(bob, "in", CreateHow{}) // exists: needs no right to write
	must(t, err)
	_, err = d.SetAttr(alice, SetAttr{Mode: ptr(uint32(0o700))}, nil)
	must(t, err)
	_, err = d.Lookup(bob, "in")
	wantErr(t, err, ErrAcces)
	_, err = d.Remove(bob, "in")
	wantErr(t, err, ErrAcces)
}

func TestErrnoMapping(t *testing.T) {
	for no, want := range map[error]error{
		unix.ENOSPC: ErrNoSpc, unix.EDQUOT: ErrDQuot, unix.EMFILE: ErrJukebox, unix.EIO: ErrIO,
		fmt.Errorf("odd"): ErrIO, ErrROFS: ErrROFS, errLost: ErrStale,
	} {
		err := fail("op", "name", fmt.Errorf("outer: %w", no))
		if _, ok := no.(*kind); ok { //nolint:errorlint // the table holds bare kinds
			err = fail("op", "name", no)
		}
		wantErr(t, err, want)
		if !errors.Is(err, no) {
			t.Fatal("cause lost")
		}
	}
	if fail("op", "", nil) != nil {
		t.Fatal("nil")
	}
}

// A descriptor that is evicted while it is in use stays usable, and its number
// is not reused under its user.
func TestFewDescriptors(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxOpen = 2 })
	const files = 8
	nodes := make([]*Node, files)
	for i := range nodes {
		nodes[i] = f.create(fmt.Sprint("f", i))
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			buf := make([]byte, 8)
			for i := range 400 {
				n := nodes[(i*7+w)%files]
				want := []byte(fmt.Sprintf("%08d", n.FileID()%1e8))
				if _, _, err := n.WriteAt(want, 0); err != nil {
					t.Error(err)
					return
				}
				if _, _, err := n.ReadAt(buf, 0); err != nil || !bytes.Equal(buf, want) {
					t.Errorf("%q, want %q: %v", buf, want, err)
					return
				}
			}
		})
	}
	wg.Wait()
	f.files.mu.Lock()
	open := f.files.recent.Len()
	f.files.mu.Unlock()
	if open > 2 {
		t.Fatalf("%d descriptors kept", open)
	}
}
