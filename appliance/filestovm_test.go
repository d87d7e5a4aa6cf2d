package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/guestfs/guestfstest"
	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

// toVM is a restore point of a Linux and a running guest that it goes to.
type toVM struct {
	t    *testing.T
	sim  *esxsim.Sim
	c    *vsphere.Client
	g    *Guest
	dir  string // what the guest sees as /
	from string // the tree that was backed up
}

// guestKind is how much of a guest there is.
type guestKind struct {
	shell  bool // busybox, in a chroot
	id     string
	before func(dir string) // what is in the guest already
	spoil  func(dir string) // what happens in it before a program runs
}

// lostFiles is a restore point of a Linux; the tests share it.
type lostFiles struct {
	from string // the tree that was backed up
	g    *Guest
}

func (l *lostFiles) guest(t *testing.T, kind guestKind) *toVM {
	t.Helper()
	w := &toVM{t: t, dir: t.TempDir(), from: l.from, g: l.g}
	w.start(kind)
	return w
}

// TestToVM puts files of one restore point into simulated guests.
func TestToVM(t *testing.T) {
	l := &lostFiles{from: linuxTree(t)}
	repo, pt := pointOf(t, ext4Of(t, l.from))
	l.g = openGuest(t, repo, pt)
	for name, test := range map[string]func(*testing.T, *lostFiles){
		"Everything": testToVMEverything, "WithoutShell": testToVMWithoutShell, "Existing": testToVMExisting,
		"Refused": testToVMRefused, "Trouble": testToVMTrouble, "Interrupted": testToVMInterrupted,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, l)
		})
	}
}

// ext4Of is an image of ext4 with a tree in it.
func ext4Of(t *testing.T, from string) string {
	t.Helper()
	guestfstest.NeedMount(t, "ext4", "mke2fs", "cp")
	file := guestfstest.NewImage(t, 16<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-I", "256", file)
	dir, unmount := guestfstest.Mount(t, file, "ext4", "")
	guestfstest.Run(t, "cp", "-a", from+"/.", dir)
	unmount()
	return file
}

func (w *toVM) start(kind guestKind) {
	t := w.t
	t.Helper()
	spec := esxsim.VMSpec{Name: "web1", PowerOn: true, Tools: true, GuestDir: w.dir, GuestUser: "root", GuestPassword: "s3cret", GuestID: kind.id}
	if kind.shell {
		run := w.chroot(t)
		spec.GuestProgram = func(program, args, dir string) int {
			if kind.spoil != nil {
				kind.spoil(dir)
			}
			return run(program, args, dir)
		}
	}
	if kind.before != nil {
		kind.before(w.dir)
	}
	sim, err := esxsim.Start(context.Background(), esxsim.Options{Dir: t.TempDir(), VMs: []esxsim.VMSpec{
		spec, {Name: "off"}, {Name: "bare", PowerOn: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	w.sim = sim
	w.c, err = vsphere.Dial(t.Context(), vsphere.Options{URL: sim.URL().Host, Username: sim.Username(), Password: sim.Password(), Thumbprint: sim.Thumbprint()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.c.Close(context.Background()) })
}

// chroot runs programs of the guest as it would: in its own tree, with the tools of
// busybox.
func (w *toVM) chroot(t *testing.T) func(program, args, dir string) int {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a guest's programs run in a chroot: that needs root")
	}
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("a guest's programs are those of busybox-static: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(w.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "bin/busybox"), box, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(w.dir, "dev"), 0o755), os.WriteFile(filepath.Join(w.dir, "dev/null"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"sh", "sha256sum", "ln", "chown", "tr"} {
		if err := os.Symlink("busybox", filepath.Join(w.dir, "bin", tool)); err != nil {
			t.Fatal(err)
		}
	}
	return func(program, args, dir string) int {
		cmd := exec.Command("/bin/sh", "-c", program+" "+args) // as VMware Tools run it
		cmd.SysProcAttr, cmd.Dir, cmd.Env = &syscall.SysProcAttr{Chroot: dir}, "/", []string{"PATH=/bin"}
		if err := cmd.Run(); err != nil {
			return cmd.ProcessState.ExitCode()
		}
		return 0
	}
}

// linuxTree is a root file system, small and odd.
func linuxTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	when := time.Date(2024, 2, 29, 12, 0, 0, 123_456_700, time.UTC)
	file := func(name, content string, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	file("etc/os-release", "ID=test\nPRETTY_NAME=\"Test Linux 1\"\n", 0o644)
	file("etc/fstab", "/dev/sda / ext4 defaults 0 1\n", 0o644)
	file("etc/app/app.conf", "port = 80\n", 0o640)
	file("srv/hosts", "the other hosts\n", 0o600)
	file("etc/hosts", "127.0.0.1 localhost\n", 0o644)
	file("srv/ünï 日本/a 'quoted' $(name)\nline", "odd\n", 0o604)
	file("srv/ünï 日本/back\\slash:colon", "odder\n", 0o4755)
	file("srv/big", strings.Repeat("0123456789abcdef", 20_000), 0o600)
	file("srv/empty", "", 0o600)
	file("srv/closed/secret", "x", 0o600)
	for _, err := range []error{
		os.Link(filepath.Join(dir, "srv/big"), filepath.Join(dir, "srv/second name")),
		os.Symlink("../etc/app's $conf", filepath.Join(dir, "srv/link")),
		os.Lchown(filepath.Join(dir, "srv/big"), 1000, 1001),
		os.Lchown(filepath.Join(dir, "srv/link"), 1002, 1003),
		os.Chmod(filepath.Join(dir, "srv/closed"), 0o700),
		os.Chtimes(filepath.Join(dir, "srv/closed"), when, when),
		syscall.Mkfifo(filepath.Join(dir, "srv/fifo"), 0o600),
		syscall.Setxattr(filepath.Join(dir, "srv/empty"), "user.note", []byte("lost"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (w *toVM) request(places ...string) ToVMRequest {
	return ToVMRequest{Places: places, VM: "web1", Auth: vsphere.GuestAuth{Username: "root", Password: "s3cret"}}
}

// restore puts something into the guest and looks whether anything of ours is left.
func (w *toVM) restore(req ToVMRequest) (*ToVMResult, error) {
	w.t.Helper()
	r, err := w.g.RestoreToVM(w.t.Context(), w.c, req)
	w.clean()
	return r, err
}

func (w *toVM) clean() {
	w.t.Helper()
	for _, name := range w.tree() {
		if strings.Contains(name, "lifeboat-") {
			w.t.Errorf("%s is left in the guest", name)
		}
	}
}

func (w *toVM) tree() (names []string) {
	w.t.Helper()
	err := filepath.WalkDir(w.dir, func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

// same compares a file, link or directory of the guest with what was backed up.
func (w *toVM) same(from, to string) {
	w.t.Helper()
	a, err := os.Lstat(filepath.Join(w.from, from))
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := os.Lstat(filepath.Join(w.dir, to))
	if err != nil {
		w.t.Error(err)
		return
	}
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if x.Mode != y.Mode || x.Uid != y.Uid || x.Gid != y.Gid {
		w.t.Errorf("%s: mode %o of %d:%d, want %o of %d:%d", to, y.Mode, y.Uid, y.Gid, x.Mode, x.Uid, x.Gid)
	}
	if a.Mode()&fs.ModeSymlink != 0 {
		p, _ := os.Readlink(filepath.Join(w.from, from))
		if q, _ := os.Readlink(filepath.Join(w.dir, to)); p != q {
			w.t.Errorf("%s -> %q, want %q", to, q, p)
		}
		return
	}
	if !a.ModTime().Equal(b.ModTime()) {
		w.t.Errorf("%s is of %v, want %v", to, b.ModTime(), a.ModTime())
	}
	if a.IsDir() {
		return
	}
	p, _ := os.ReadFile(filepath.Join(w.from, from))
	if q, err := os.ReadFile(filepath.Join(w.dir, to)); err != nil || sha256.Sum256(p) != sha256.Sum256(q) {
		w.t.Errorf("%s has other content, %v", to, err)
	}
}

func leftOut(r *ToVMResult) []string {
	var out []string
	for _, l := range r.LeftOut {
		out = append(out, l.What)
	}
	slices.Sort(out)
	return out
}

// testToVMEverything: with a shell in the guest everything comes back that guest operations
// can say, checked by the guest; what they cannot is listed.
func testToVMEverything(t *testing.T, l *lostFiles) {
	w := l.guest(t, guestKind{shell: true})
	var files, bytes, total int64
	var told []string
	req := w.request("/srv", "/etc/hosts", "/etc/app/app.conf")
	req.Progress = func(f, b, all int64, _ bool) { files, bytes, total = f, b, all }
	req.Put = func(f PutFile) { told = append(told, f.To) }
	r, err := w.restore(req)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"etc/hosts", "etc/app/app.conf", "etc/app", "srv/hosts", "srv/big", "srv/second name", "srv/link", "srv/empty", "srv/closed", "srv/closed/secret",
		"srv/ünï 日本/a 'quoted' $(name)\nline", "srv/ünï 日本/back\\slash:colon",
	} {
		w.same(name, name)
	}
	a, _ := os.Stat(filepath.Join(w.dir, "srv/big"))
	b, _ := os.Stat(filepath.Join(w.dir, "srv/second name"))
	if !os.SameFile(a, b) {
		t.Error("two names of one file are two files")
	}
	if got, want := leftOut(r), []string{"extended attributes", "special file", "times of symbolic links"}; !slices.Equal(got, want) {
		t.Errorf("left out: %q, want %q", got, want)
	}
	if !errors.Is(r.Err(), ErrPartial) {
		t.Errorf("a FIFO was left out: %v", r.Err())
	}
	if r.Files != 10 || r.Replaced != 0 || len(r.Put) != len(told) || bytes == 0 || bytes != total || files < r.Files {
		t.Errorf("%+v; progress: %d files, %d bytes of %d", r, files, bytes, total)
	}
	for _, p := range r.Put {
		if p.Type == "file" && p.Size > 0 && p.To != "/srv/second name" && p.Checked != "sha256" {
			t.Errorf("not checked by the guest: %+v", p)
		}
	}
}

// testToVMWithoutShell: no links then, and sizes are checked, or content is read
// back.
func testToVMWithoutShell(t *testing.T, l *lostFiles) {
	w := l.guest(t, guestKind{})
	req := w.request("/srv")
	req.To, req.ReadBack = "/restored/here", true
	r, err := w.restore(req)
	if err != nil {
		t.Fatal(err)
	}
	w.same("srv/big", "restored/here/srv/big")
	w.same("srv/second name", "restored/here/srv/second name")
	if got, want := leftOut(r), []string{"extended attributes", "hard links", "special file", "symbolic link"}; !slices.Equal(got, want) {
		t.Errorf("left out: %q, want %q", got, want)
	}
	for _, p := range r.Put {
		if p.Type == "file" && p.Checked != "read back" {
			t.Errorf("%+v", p)
		}
	}
}

// testToVMExisting: nothing is written over unless that is asked for, a link is not
// followed, and what is of another type stays.
func testToVMExisting(t *testing.T, l *lostFiles) {
	w := l.guest(t, guestKind{before: func(dir string) {
		for _, err := range []error{
			os.MkdirAll(filepath.Join(dir, "srv/big"), 0o755),
			os.WriteFile(filepath.Join(dir, "srv/hosts"), []byte("mine"), 0o666),
			os.WriteFile(filepath.Join(dir, "srv/closed"), []byte("a file"), 0o666),
			os.Mkdir(filepath.Join(dir, "elsewhere"), 0o777),
			os.WriteFile(filepath.Join(dir, "elsewhere/target"), []byte("of the link"), 0o666),
			os.Symlink("../elsewhere/target", filepath.Join(dir, "srv/empty")),
			os.Symlink("../elsewhere", filepath.Join(dir, "srv/ünï 日本")),
		} {
			if err != nil {
				panic(err)
			}
		}
	}})
	r, err := w.restore(w.request("/srv"))
	if err != nil {
		t.Fatal(err)
	}
	got := leftOut(r)
	for _, what := range []string{"existing file", "directory", "file", "file below it"} {
		if !slices.Contains(got, what) {
			t.Errorf("left out: %q, without %s", got, what)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(w.dir, "srv/hosts")); string(b) != "mine" {
		t.Errorf("written over: %q", b)
	}
	w.same("srv/big", "srv/second name") // the other name had room
	req := w.request("/srv")
	req.Overwrite = true
	if r, err = w.restore(req); err != nil {
		t.Fatal(err)
	}
	w.same("srv/hosts", "srv/hosts")
	w.same("srv/empty", "srv/empty")
	if b, _ := os.ReadFile(filepath.Join(w.dir, "elsewhere/target")); string(b) != "of the link" {
		t.Errorf("a link of the guest was followed: %q", b)
	}
	if list, _ := os.ReadDir(filepath.Join(w.dir, "elsewhere")); len(list) != 1 {
		t.Errorf("a link of the guest was followed: %v", list)
	}
	if fi, _ := os.Stat(filepath.Join(w.dir, "srv/big")); !fi.IsDir() {
		t.Error("a directory was replaced by a file")
	}
	if r.Replaced != 3 { // hosts, empty, second name
		t.Errorf("replaced %d: %+v", r.Replaced, r.Put)
	}
}

// testToVMRefused: what cannot work is said before anything is done.
func testToVMRefused(t *testing.T, l *lostFiles) {
	w := l.guest(t, guestKind{})
	before := w.tree()
	for name, try := range map[string]struct {
		change func(*ToVMRequest)
		want   error
		says   string
	}{
		"wrong password": {func(r *ToVMRequest) { r.Auth.Password = "wr0ng" }, vsphere.ErrGuestCredentials, "root"},
		"no tools":       {func(r *ToVMRequest) { r.VM = "bare" }, vsphere.ErrGuestTools, "Tools"},
		"off":            {func(r *ToVMRequest) { r.VM = "off" }, vsphere.ErrState, "not running"},
		"no VM":          {func(r *ToVMRequest) { r.VM = "nobody" }, ErrNotFound, "nobody"},
		"several VMs":    {func(r *ToVMRequest) { r.VM = "*" }, ErrUsage, "3 VMs"},
		"no such file":   {func(r *ToVMRequest) { r.Places = []string{"/nothing"} }, ErrNotFound, "nothing"},
		"everything":     {func(r *ToVMRequest) { r.Places = []string{"/"} }, ErrUsage, "--to DIR"},
		"a volume":       {func(r *ToVMRequest) { r.Places = []string{"disk0/"} }, ErrUsage, "--to DIR"},
		"relative":       {func(r *ToVMRequest) { r.To = "srv" }, ErrUsage, "/restored"},
		"upwards":        {func(r *ToVMRequest) { r.To = "/srv/../etc" }, ErrUsage, "can be meant"},
	} {
		req := w.request("/srv/big")
		try.change(&req)
		_, err := w.restore(req)
		if !errors.Is(err, try.want) || !strings.Contains(fmt.Sprint(err), try.says) || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := w.tree(); !slices.Equal(before, after) {
		t.Errorf("the guest has changed: %q, was %q", after, before)
	}
}

// testToVMTrouble: one file that cannot be written does not keep the others; one
// that arrives as something else gets no name; Tools that go away end everything.
func testToVMTrouble(t *testing.T, l *lostFiles) {
	w := l.guest(t, guestKind{shell: true, spoil: func(dir string) {
		list, _ := filepath.Glob(filepath.Join(dir, "srv/closed/.lifeboat-*"))
		for _, name := range list {
			_ = os.WriteFile(name, []byte("y"), 0o600) // as long as before
		}
	}})
	w.sim.Fail("InitiateFileTransferToGuest", 1, "GuestPermissionDenied")
	r, err := w.restore(w.request("/etc/hosts", "/srv/hosts"))
	if err != nil || r.Files != 1 || !slices.Contains(leftOut(r), "unwritable file") || !errors.Is(r.Err(), ErrPartial) {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = w.restore(w.request("/srv/closed")); err != nil || r.Files != 0 || !slices.Contains(leftOut(r), "unverified file") {
		t.Fatalf("%+v, %v", r, err)
	}
	w.sim.Fail("MoveFileInGuest", 1, "CannotAccessFile")
	req := w.request("/etc/hosts")
	if r, err = w.restore(req); err != nil || r.Files != 0 || !slices.Contains(leftOut(r), "unwritable file") {
		t.Fatalf("%+v, %v", r, err)
	}
	w.sim.Fail("MoveFileInGuest", 1, "GuestOperationsUnavailable")
	if _, err = w.restore(req); !errors.Is(err, vsphere.ErrGuestTools) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "etc/hosts")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it got its name: %v", err)
	}
}

// testToVMInterrupted: in the midst of a file, and between files, nothing stays that
// is not whole.
func testToVMInterrupted(t *testing.T, l *lostFiles) {
	w := l.guest(t, guestKind{before: func(dir string) {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "srv"), 0o755), os.WriteFile(filepath.Join(dir, "srv/big"), []byte("mine"), 0o600)); err != nil {
			panic(err)
		}
	}})
	for _, after := range []int64{1, 100_000, 320_000, 320_016} {
		ctx, cancel := context.WithCancel(t.Context())
		req := w.request("/srv/big", "/srv/hosts", "/etc/hosts")
		req.Overwrite = true
		req.Progress = func(_, done, _ int64, _ bool) {
			if done >= after {
				cancel()
			}
		}
		_, err := w.g.RestoreToVM(ctx, w.c, req)
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after %d bytes: %v", after, err)
		}
		w.clean()
		if b, _ := os.ReadFile(filepath.Join(w.dir, "srv/big")); !bytes.Equal(b, []byte("mine")) {
			t.Errorf("after %d bytes, before the batch was full, there are %d", after, len(b))
		}
	}
}

// TestToVMWindows: paths, attributes and names of Windows.
func TestToVMWindows(t *testing.T) {
	t.Parallel()
	repo, pt := pointOf(t, windowsDisk(t))
	w := &toVM{t: t, dir: t.TempDir()}
	w.start(guestKind{id: "windows2019srv_64Guest", before: func(dir string) {
		if err := os.Mkdir(filepath.Join(dir, "C"), 0o755); err != nil {
			panic(err)
		}
	}})
	w.g = openGuest(t, repo, pt)
	req := w.request("disk0/folder")
	if _, err := w.restore(req); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "--to DIR") {
		t.Errorf("nobody knows the drive: %v", err)
	}
	req.To = `C:\restored`
	r, err := w.restore(req)
	if err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	if b, err := os.ReadFile(filepath.Join(w.dir, "C/restored/folder/hidden.txt")); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	if got, want := leftOut(r), []string{"hard links", "named streams", "security descriptors"}; !slices.Equal(got, want) {
		t.Errorf("left out: %q, want %q", got, want)
	}
	vm, err := runningVM(t.Context(), w.c, "web1")
	if err != nil {
		t.Fatal(err)
	}
	guest, err := w.c.Guest(t.Context(), vm.Ref, req.Auth)
	if err != nil {
		t.Fatal(err)
	}
	f, err := guest.Find(t.Context(), `C:\restored\folder`, "HIDDEN.TXT", true)
	if err != nil || !f.Attrs.Hidden || f.Attrs.Created.IsZero() || f.Path != "hidden.txt" {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestGuestNames(t *testing.T) {
	windows, linux := guestStyle{windows: true}, guestStyle{}
	for name, want := range map[string]bool{
		"a.txt": true, "ü 日本": true, "a:b": false, `a\b`: false, "nul": false, "COM1.log": false, "com": true, "dot.": false, "space ": false,
		"bell\a": false, "bad\xff": false,
	} {
		if got := windows.refuses(name) == ""; got != want {
			t.Errorf("Windows takes %q: %v", name, got)
		}
	}
	for name, want := range map[string]bool{"nul": true, `a\b:`: true, "new\nline": true, "bell\a": false, "bad\xff": false} {
		if got := linux.refuses(name) == ""; got != want {
			t.Errorf("Linux takes %q: %v", name, got)
		}
	}
	for _, path := range []string{`C:\`, `C:\a`, `C:\a b\c`} {
		if dir, base := windows.split(path); base != "" && windows.join(dir, base) != path {
			t.Errorf("%q is %q and %q", path, dir, base)
		}
	}
	if got, err := windows.absolute("c:/x/y/"); err != nil || got != `c:\x\y` {
		t.Errorf("%q, %v", got, err)
	}
	if got := shellQuote("it's"); got != `'it'\''s'` {
		t.Error(got)
	}
}
