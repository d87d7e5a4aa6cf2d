package nfsserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
)

// status asserts that err is the given nfsstat3 (0: none).
func wantStatus(t testing.TB, what string, err error, want nfstest.Status) {
	t.Helper()
	var st nfstest.Status
	if err != nil && !errors.As(err, &st) {
		t.Fatalf("%s: %v", what, err)
	}
	if st != want {
		t.Fatalf("%s: status %d, want %d", what, st, want)
	}
}

var noHandle = nfstest.Handle(bytes.Repeat([]byte{1}, 52))

func TestGetattrSetattr(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(62<<40))
	c, dir, flat := w.mount()
	a, err := c.Getattr(flat)
	must(t, err)
	want(t, "62 TiB", a.Size, 62<<40)
	want(t, "used", a.Used, 0)
	want(t, "fsid", a.FSID, testFSID)
	want(t, "type", a.Type, 1)
	if a.FileID == 0 {
		t.Fatal("fileid is 0")
	}
	_, err = c.Getattr(noHandle)
	wantStatus(t, "forged handle", err, nfstest.BadHandle)

	f, err := c.Create(dir, "f", nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o640)})
	must(t, err)
	want(t, "mode", f.Attr.Mode, 0o640)
	set := nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o600), Size: nfstest.Ptr[uint64](12345), MtimeHow: 2, Mtime: nfstest.Time{Sec: 1_000_000_000, Nsec: 5}}
	wcc, err := c.Setattr(f.Handle, set, nil)
	must(t, err)
	want(t, "size after", wcc.Post.Size, 12345)
	want(t, "size before", wcc.Pre.Size, 0)
	want(t, "mtime", wcc.Post.Mtime, nfstest.Time{Sec: 1_000_000_000, Nsec: 5})
	old := wcc.Post.Ctime
	_, err = c.Setattr(f.Handle, nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o644)}, &old)
	must(t, err)
	wcc, err = c.Setattr(f.Handle, nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o777)}, &nfstest.Time{Sec: 1})
	wantStatus(t, "wrong guard", err, nfstest.NotSync)
	want(t, "mode kept", wcc.Post.Mode, 0o644)

	_, err = c.Setattr(flat, nfstest.SetAttr{Size: nfstest.Ptr[uint64](62 << 40)}, nil)
	must(t, err)
	wcc, err = c.Setattr(flat, nfstest.SetAttr{Size: nfstest.Ptr[uint64](1)}, nil)
	wantStatus(t, "resizing a virtual disk", err, nfstest.Inval)
	want(t, "size kept", wcc.Post.Size, 62<<40)
	_, err = c.Setattr(noHandle, nfstest.SetAttr{}, nil)
	wantStatus(t, "SETATTR of a forged handle", err, nfstest.BadHandle)
	_, err = c.Setattr(f.Handle, nfstest.SetAttr{MtimeHow: 3}, nil)
	want(t, "time_how 3", rpcError(t, err).Stat, acceptGarbageArgs)
}

func TestLookupAccessReadlink(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, flat := w.mount()
	vm, a, err := c.Lookup(dir, "vm")
	must(t, err)
	want(t, "type", a.Type, 2)
	up, _, err := c.Lookup(vm, "..")
	must(t, err)
	want(t, "..", string(up), string(dir))
	for name, st := range map[string]nfstest.Status{"nothing": nfstest.NoEnt, strings.Repeat("x", 256): nfstest.NameTooLong, "a/b": nfstest.Inval, "": nfstest.Inval} {
		_, _, err = c.Lookup(dir, name)
		wantStatus(t, fmt.Sprintf("LOOKUP %.10q", name), err, st)
	}
	_, _, err = c.Lookup(flat, "x")
	wantStatus(t, "LOOKUP in a file", err, nfstest.NotDir)

	granted, _, err := c.Access(dir, 0x3f)
	must(t, err)
	want(t, "root's rights on a directory", granted, 0x1f)
	granted, _, err = c.Access(flat, 0x0d)
	must(t, err)
	want(t, "root's rights on a file", granted, 0x0d)
	c.SetCred(nfstest.Cred{UID: 4711, GID: 4711})
	granted, _, err = c.Access(dir, 0x3f)
	must(t, err)
	want(t, "others' rights on a directory", granted, accessRead|accessLookup)
	_, err = c.Write(flat, 0, make([]byte, 512), nfstest.FileSync)
	wantStatus(t, "others' WRITE", err, nfstest.Acces)
	_, err = c.Create(dir, "theirs", nfstest.SetAttr{})
	wantStatus(t, "others' CREATE", err, nfstest.Acces)
	c.SetCred(nfstest.Cred{None: true})
	_, err = c.Read(flat, 0, 512)
	must(t, err)
	c.SetCred(nfstest.Cred{})

	link, err := c.Symlink(dir, "link", "../../etc/passwd", nfstest.SetAttr{})
	must(t, err)
	target, err := c.Readlink(link.Handle)
	must(t, err)
	want(t, "target", target, "../../etc/passwd")
	_, err = c.Readlink(dir)
	wantStatus(t, "READLINK of a directory", err, nfstest.Inval)
	_, _, err = c.Lookup(link.Handle, "x")
	wantStatus(t, "LOOKUP through a link", err, nfstest.NotDir)
	_, err = c.Symlink(dir, "link", "x", nfstest.SetAttr{})
	wantStatus(t, "SYMLINK over something", err, nfstest.Exist)
	_, err = c.Symlink(dir, "long", strings.Repeat("x", 5000), nfstest.SetAttr{})
	wantStatus(t, "a target of 5000 bytes", err, nfstest.NameTooLong)
	_, err = c.Read(link.Handle, 0, 10)
	wantStatus(t, "READ of a link", err, nfstest.Inval)
}

func TestReadEdges(t *testing.T) {
	for name, hide := range map[string]func(disk.Device) disk.Device{
		"inline": func(d disk.Device) disk.Device { return d },
		"worker": disktest.DeviceOnly,
	} {
		t.Run(name, func(t *testing.T) {
			mem := disktest.Random(5, 3<<20-512, 1)
			w := newWorld(t, hide(mem))
			c, dir, flat := w.mount()
			all := mem.Bytes()
			for _, x := range []struct {
				off   uint64
				count uint32
				n     int
				eof   bool
			}{
				{0, 0, 0, false},
				{0, 1, 1, false},
				{5, 7, 7, false},
				{0, 4 << 20, MaxTransfer, false},
				{0, 1<<32 - 1, MaxTransfer, false},
				{3<<20 - 1024, 512, 512, true},
				{3<<20 - 1024, 4096, 512, true},
				{3<<20 - 513, 1, 1, true},
				{3<<20 - 512, 1, 0, true},
				{1 << 40, 1, 0, true},
				{1<<64 - 1, 1<<32 - 1, 0, true},
			} {
				r, err := c.Read(flat, x.off, x.count)
				must(t, err)
				if len(r.Data) != x.n || r.EOF != x.eof {
					t.Fatalf("READ %d+%d: %d bytes, eof %t; want %d, %t", x.off, x.count, len(r.Data), r.EOF, x.n, x.eof)
				}
				if x.n > 0 && !bytes.Equal(r.Data, all[x.off:x.off+uint64(x.n)]) {
					t.Fatalf("READ %d+%d: wrong data", x.off, x.count)
				}
				want(t, "attributes", r.Attr.Size, 3<<20-512)
			}
			_, err := c.Read(dir, 0, 1)
			wantStatus(t, "READ of a directory", err, nfstest.IsDir)
			_, err = c.Read(noHandle, 0, 1)
			wantStatus(t, "READ of a forged handle", err, nfstest.BadHandle)

			for _, x := range []struct {
				off uint64
				n   int
				st  nfstest.Status
			}{{0, 0, 0}, {3<<20 - 512, 0, 0}, {3<<20 - 513, 1, 0}, {3<<20 - 512, 1, nfstest.FBig}, {1<<64 - 1, 2, nfstest.FBig}, {3<<20 - 1024, 1024, nfstest.FBig}} {
				_, err := c.Write(flat, x.off, make([]byte, x.n), nfstest.FileSync)
				wantStatus(t, fmt.Sprintf("WRITE %d+%d", x.off, x.n), err, x.st)
			}
			args := nfstest.WriteArgs(flat, 0, make([]byte, 8), nfstest.FileSync)
			args[len(flat)+4+8+3] = 9 // count that is not the data's length
			_, err = c.Call(nfstest.ProgNFS, 3, 7, args)
			want(t, "count ≠ length", rpcError(t, err).Stat, acceptGarbageArgs)
			_, err = c.Write(flat, 0, make([]byte, 8), 3)
			want(t, "stable_how 3", rpcError(t, err).Stat, acceptGarbageArgs)
			_, err = c.Write(dir, 0, make([]byte, 8), nfstest.FileSync)
			wantStatus(t, "WRITE to a directory", err, nfstest.IsDir)
		})
	}
}

func TestOrdinaryFiles(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, _ := w.mount()
	f, err := c.Create(dir, "vm.log", nfstest.SetAttr{})
	must(t, err)
	data := bytes.Repeat([]byte("log\n"), 100_000)
	wr, err := c.Write(f.Handle, 0, data, nfstest.Unstable)
	must(t, err)
	want(t, "committed", wr.Committed, nfstest.Unstable)
	verifier, _, err := c.Commit(f.Handle)
	must(t, err)
	want(t, "verifier", verifier, wr.Verifier)
	wr, err = c.Write(f.Handle, uint64(len(data)), []byte("end"), nfstest.DataSync)
	must(t, err)
	want(t, "committed", wr.Committed, nfstest.FileSync)
	want(t, "size before", wr.WCC.Pre.Size, uint64(len(data)))
	want(t, "size after", wr.WCC.Post.Size, uint64(len(data)+3))
	r, err := c.Read(f.Handle, uint64(len(data))-4, 100)
	must(t, err)
	want(t, "the end", string(r.Data), "log\nend")
	want(t, "eof", r.EOF, true)
	host, err := os.ReadFile(filepath.Join(w.root, "s1/vm.log"))
	must(t, err)
	want(t, "on the host", string(host) == string(data)+"end", true)
	_, _, err = c.Commit(dir)
	wantStatus(t, "COMMIT of a directory", err, nfstest.IsDir)
	_, err = c.Write(f.Handle, 1<<63-2, []byte("xyz"), nfstest.Unstable)
	wantStatus(t, "WRITE beyond 2^63", err, nfstest.FBig)
}

func TestCreateModes(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, _ := w.mount()
	f, err := c.Create(dir, "f", nfstest.SetAttr{})
	must(t, err)
	_, err = c.Write(f.Handle, 0, []byte("keep me"), nfstest.FileSync)
	must(t, err)
	again, err := c.Create(dir, "f", nfstest.SetAttr{})
	must(t, err)
	want(t, "same file", string(again.Handle), string(f.Handle))
	want(t, "not truncated", again.Attr.Size, 7)
	again, err = c.Create(dir, "f", nfstest.SetAttr{Size: nfstest.Ptr[uint64](0)})
	must(t, err)
	want(t, "truncated when asked", again.Attr.Size, 0)
	_, err = c.CreateGuarded(dir, "f", nfstest.SetAttr{})
	wantStatus(t, "GUARDED over something", err, nfstest.Exist)
	v := [8]byte{1, 2, 3}
	x, err := c.CreateExclusive(dir, ".lck-0102030405060708", v)
	must(t, err)
	x2, err := c.CreateExclusive(dir, ".lck-0102030405060708", v)
	must(t, err)
	want(t, "same verifier, same file", string(x2.Handle), string(x.Handle))
	_, err = c.CreateExclusive(dir, ".lck-0102030405060708", [8]byte{9})
	wantStatus(t, "another verifier", err, nfstest.Exist)
	_, err = c.Call(nfstest.ProgNFS, 3, 8, nfstest.Enc{}.Bytes(dir).Str("x").U32(3))
	want(t, "createmode3 3", rpcError(t, err).Stat, acceptGarbageArgs)
	_, err = c.Create(f.Handle, "x", nfstest.SetAttr{})
	wantStatus(t, "CREATE in a file", err, nfstest.NotDir)
	root, err := c.Mount(ExportPath)
	must(t, err)
	_, err = c.Create(root, "x", nfstest.SetAttr{})
	wantStatus(t, "CREATE in the root", err, nfstest.ROFS)
	_, err = c.Mkfifo(dir, "fifo")
	wantStatus(t, "MKNOD", err, nfstest.NotSupp)
	_, _, err = c.NFS(11, nfstest.Enc{}.Bytes(dir).Str("x").U32(1))
	must(t, err)
}

func TestNames(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, dir, flat := w.mount()
	d, err := c.Mkdir(dir, "d", nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o750)})
	must(t, err)
	want(t, "mode", d.Attr.Mode, 0o750)
	if d.WCC.Pre == nil || d.WCC.Post == nil || d.WCC.Pre.Mtime == d.WCC.Post.Mtime {
		t.Fatalf("WCC data of MKDIR: %+v", d.WCC)
	}
	_, err = c.Mkdir(dir, "d", nfstest.SetAttr{})
	wantStatus(t, "MKDIR over something", err, nfstest.Exist)
	f, err := c.Create(d.Handle, "f", nfstest.SetAttr{})
	must(t, err)
	_, err = c.Rmdir(dir, "d")
	wantStatus(t, "RMDIR of what is not empty", err, nfstest.NotEmpty)
	_, err = c.Remove(dir, "d")
	if err == nil {
		t.Fatal("REMOVE of a directory succeeded")
	}
	a, _, err := c.Link(f.Handle, dir, "g")
	must(t, err)
	want(t, "links", a.Nlink, 2)
	_, _, err = c.Link(f.Handle, dir, "g")
	wantStatus(t, "LINK over something", err, nfstest.Exist)
	from, to, err := c.Rename(d.Handle, "f", dir, "h")
	must(t, err)
	if from.Post == nil || to.Post == nil {
		t.Fatal("RENAME without attributes")
	}
	h, _, err := c.Lookup(dir, "h")
	must(t, err)
	want(t, "the handle after RENAME", string(h), string(f.Handle))
	_, _, err = c.Rename(dir, "nothing", dir, "x")
	wantStatus(t, "RENAME of nothing", err, nfstest.NoEnt)
	_, _, err = c.Rename(dir, "h", noHandle, "x")
	wantStatus(t, "RENAME to a forged handle", err, nfstest.BadHandle)
	_, err = c.Rmdir(dir, "d")
	must(t, err)
	_, err = c.Getattr(d.Handle)
	wantStatus(t, "a removed directory", err, nfstest.Stale)
	_, err = c.Remove(dir, "h")
	must(t, err)
	_, err = c.Remove(dir, "g")
	must(t, err)
	_, err = c.Remove(dir, "g")
	wantStatus(t, "REMOVE of nothing", err, nfstest.NoEnt)
	_, err = c.Read(f.Handle, 0, 1)
	wantStatus(t, "READ of a removed file", err, nfstest.Stale)

	// A virtual disk keeps its handle and content under a new name.
	_, err = c.Write(flat, 0, []byte("disk"), nfstest.FileSync)
	must(t, err)
	vm, _, err := c.Lookup(dir, "vm")
	must(t, err)
	_, _, err = c.Rename(vm, "vm-flat.vmdk", dir, "moved-flat.vmdk")
	must(t, err)
	r, err := c.Read(flat, 0, 4)
	must(t, err)
	want(t, "content", string(r.Data), "disk")
}

func TestFileSystem(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(62<<40))
	c, dir, _ := w.mount()
	fi, err := c.Fsinfo(dir)
	must(t, err)
	want(t, "rtmax", fi.RtMax, MaxTransfer)
	want(t, "wtmax", fi.WtMax, MaxTransfer)
	want(t, "properties", fi.Properties, 0x1b)
	if fi.MaxFileSize < 62<<40 {
		t.Fatal("maxfilesize")
	}
	fs, err := c.Fsstat(dir)
	must(t, err)
	if fs.Total < 62<<40 || fs.Free > fs.Total || fs.Avail == 0 {
		t.Fatalf("FSSTAT: %+v", fs)
	}
	pc, err := c.Pathconf(dir)
	must(t, err)
	want(t, "name_max", pc.NameMax, 255)
	want(t, "no_trunc", pc.NoTrunc, true)
	want(t, "case_preserving", pc.CasePreserving, true)
	for proc := uint32(18); proc <= 20; proc++ {
		_, st, err := c.NFS(proc, nfstest.Enc{}.Bytes(noHandle))
		must(t, err)
		want(t, "status for a forged handle", st, nfstest.BadHandle)
	}
}

// A disk's errors reach the client as what they are, and the log.
func TestDeviceErrors(t *testing.T) {
	f := &disktest.Faulty{Device: disktest.NewMemory(1 << 20)}
	var readErr, writeErr, syncErr fault
	f.OnRead = func(int64, int) error { return readErr.get() }
	f.OnWrite = func(int64, int) error { return writeErr.get() }
	f.OnSync = syncErr.get
	w := newWorld(t, f)
	c, _, flat := w.mount()
	readErr.set(errors.New("segment 12 is damaged"))
	_, err := c.Read(flat, 0, 512)
	wantStatus(t, "READ", err, nfstest.IO)
	if !strings.Contains(w.log.String(), "segment 12 is damaged") {
		t.Error("the log does not say why")
	}
	writeErr.set(fmt.Errorf("overlay log: %w", os.NewSyscallError("write", errNoSpace)))
	wr, err := c.Write(flat, 0, make([]byte, 512), nfstest.FileSync)
	wantStatus(t, "WRITE on a full disk", err, nfstest.NoSpc)
	want(t, "attributes", wr.WCC.Post.Size, 1<<20)
	writeErr.set(nil)
	syncErr.set(errNoSpace)
	_, err = c.Write(flat, 0, make([]byte, 512), nfstest.FileSync)
	wantStatus(t, "WRITE whose sync fails", err, nfstest.NoSpc)
	_, err = c.Write(flat, 0, make([]byte, 512), nfstest.Unstable)
	wantStatus(t, "UNSTABLE", err, 0)
	_, _, err = c.Commit(flat)
	wantStatus(t, "COMMIT", err, nfstest.NoSpc)
}
