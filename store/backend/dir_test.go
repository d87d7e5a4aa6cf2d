package backend_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/vfs"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

func newDir(t *testing.T, root string) *backend.Dir {
	t.Helper()
	d, err := backend.NewDir(vfs.OS(), root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDir(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return newDir(t, filepath.Join(t.TempDir(), "not", "there", "yet"))
	})
}

func TestDirWritesNothingUntilAsked(t *testing.T) {
	root := filepath.Join(t.TempDir(), "repo")
	d := newDir(t, root)
	if names := backendtest.Names(t, d, ""); len(names) != 0 {
		t.Fatal(names)
	}
	if _, err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%v, want fs.ErrNotExist", err)
	}
}

func TestDirOnAFileIsRefused(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := backend.NewDir(vfs.OS(), name); err == nil {
		t.Fatal("a file was taken for a repository directory")
	}
}

// What a user or an attacker puts into the directory must not become an
// object, hang a reader, or lead outside.
func TestDirWithStrangers(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	write := func(name string) {
		if err := os.WriteFile(name, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(outside, "secret"))
	d := newDir(t, root)
	backendtest.Put(t, d, "points/own", []byte("own"), backend.Exclusive)
	write(filepath.Join(root, "UPPER"))
	write(filepath.Join(root, "two words"))
	if err := os.Symlink(outside, filepath.Join(root, "dirlink")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(root, "points", "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "points", "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if names := backendtest.Names(t, d, ""); len(names) != 1 || names[0] != "points/own" {
		t.Errorf("listed %q", names)
	}
	ctx := context.Background()
	for _, name := range []string{"dirlink/secret", "points/link", "points/fifo"} {
		if o, err := d.Open(ctx, name); err == nil {
			o.Close()
			t.Errorf("%s was opened", name)
		}
	}
	w, err := d.Create(ctx, "dirlink/new", backend.Replace)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(ctx); err == nil {
		t.Error("an object was written outside")
	}
	if err := d.Remove(ctx, "dirlink/secret"); err == nil {
		t.Error("an object was removed outside")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestDirReadOnly(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o500); err != nil {
		t.Fatal(err)
	}
	_, err := newDir(t, root).Create(context.Background(), "x", backend.Exclusive)
	if !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("%v, want fs.ErrPermission", err)
	}
}

// processes is a table in which only the named one has died.
type processes struct{ self, dead string }

func (p processes) Self() string          { return p.self }
func (p processes) Dead(name string) bool { return name == p.dead }

func TestSweep(t *testing.T) {
	root := t.TempDir()
	ctx := context.Background()
	start := func(self, dead string) (*backend.Dir, backend.Writer) {
		d, err := backend.NewDirWith(vfs.OS(), root, backend.DirOptions{Processes: processes{self, dead}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		w, err := d.Create(ctx, "x-"+self, backend.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		return d, w
	}
	start("died", "")
	start("elsewhere", "") // of another host, and abandoned long ago
	old := time.Now().Add(-30 * 24 * time.Hour)
	for _, name := range glob(t, root, "tmp/elsewhere.*") {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	_, living := start("living", "")
	if err := os.Mkdir(filepath.Join(root, "tmp", "died.dir"), 0o700); err != nil {
		t.Fatal(err)
	}

	d, mine := start("mine", "died")
	removed, err := d.Sweep(ctx)
	if removed != 2 || err != nil {
		t.Fatalf("removed %d, %v, want 2", removed, err)
	}
	for _, w := range []backend.Writer{living, mine} {
		if err := w.Commit(ctx); err != nil {
			t.Error(err)
		}
	}
	if left := glob(t, root, "tmp/*"); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

func glob(t *testing.T, root, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestHostProcesses(t *testing.T) {
	host := backend.HostProcesses()
	self := host.Self()
	parts := strings.Split(self, "-")
	if len(parts) != 3 {
		t.Fatalf("%q", self)
	}
	proc, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proc.Wait(); err != nil {
		t.Fatal(err)
	}
	gone := parts[0] + "-" + strconv.Itoa(proc.Pid) + "-1"
	for name, want := range map[string]bool{
		self:                             false,
		gone:                             true,
		parts[0] + "-" + parts[1] + "-1": true, // the number, reused by us
		"0123456789abcdef-" + strconv.Itoa(proc.Pid) + "-1": false,
		"": false, "-": false, "--": false, parts[0] + "--1": false, parts[0] + "-0-1": false,
	} {
		if got := host.Dead(name); got != want {
			t.Errorf("Dead(%q) = %v, want %v", name, got, want)
		}
	}
}
