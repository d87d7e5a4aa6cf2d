package vddk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
	"lifeboat/vddk/vddktest"
)

// programs builds the fake library and the helper when the first test wants
// them; TestMain removes them.
var programs = sync.OnceValues(func() (*vddktest.Programs, error) {
	if err := os.Mkdir(programsDir(), 0o700); err != nil {
		return nil, err
	}
	return vddktest.Build(programsDir())
})

func programsDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("lifeboat-vddk-test-%d", os.Getpid()))
}

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.RemoveAll(programsDir())
	os.Exit(code)
}

const (
	diskPath = "[datastore 1] a vm/disk ü.vmdk"
	diskKey  = 2000
)

// install installs the fake library for one test, and checks at its end that
// nothing was done with it that the real one forbids.
func install(t testing.TB) *vddktest.Fake {
	t.Helper()
	p, err := programs()
	if errors.Is(err, vddktest.ErrNoCompiler) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v, err := f.Violations()
		for _, line := range v {
			t.Errorf("the library was misused: %s", line)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return f
}

func set(t testing.TB, f *vddktest.Fake, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if err := f.Set(pairs[i], pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
}

// rawFile writes what img holds into a sparse file.
func rawFile(t testing.TB, img disk.Image) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk-flat.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := disk.WriteRaw(context.Background(), f, img, nil); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// libraryRequest is a request for the disk in the raw file through the fake.
func libraryRequest(t testing.TB, f *vddktest.Fake, raw string) vddk.Request {
	t.Helper()
	st, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Disk(diskPath, raw); err != nil {
		t.Fatal(err)
	}
	set(t, f, "server", "vcenter.example", "user", "backup", "password", "s3cret", "thumbprint", "AA:BB", "vm", "moref=vm-42", "snapshot", "snapshot-43")
	return vddk.Request{
		Key: diskKey, Size: st.Size(), Path: diskPath,
		Server: "vcenter.example", Username: "backup", Password: "s3cret", Thumbprint: "AA:BB",
		VM: "VirtualMachine:vm-42", Snapshot: "snapshot-43", Library: f.Library(),
	}
}

// datastore is /folder over a directory of this machine. fail, if set, is asked
// before each read and may shorten or spoil it.
type datastore struct {
	dir  string
	fail func(path string, off int64, p []byte) (int, error)
}

func (d *datastore) file(path string) string { return filepath.Join(d.dir, filepath.Base(path)) }

func (d *datastore) ReadRange(ctx context.Context, path string, off int64, p []byte) (int, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	var failure error
	if d.fail != nil {
		var n int
		if n, failure = d.fail(path, off, p); failure != nil {
			p = p[:n]
		}
	}
	f, err := os.Open(d.file(path))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(p, off)
	if failure != nil {
		err = failure
	}
	return n, err
}

func (d *datastore) Size(_ context.Context, path string) (int64, error) {
	st, err := os.Stat(d.file(path))
	if err != nil {
		return 0, fmt.Errorf("HTTP 404: %w", fs.ErrNotExist)
	}
	return st.Size(), nil
}

func (d *datastore) Upload(_ context.Context, path string, r io.Reader, size int64) error {
	f, err := os.Create(d.file(path))
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(f, r)
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes came, and %d were announced", n, size)
	}
	return err
}

// folderRequest is a request for a disk with the content of img through /folder.
func folderRequest(t testing.TB, img disk.Image) (vddk.Request, *datastore) {
	t.Helper()
	d := &datastore{dir: t.TempDir()}
	flat, err := os.Create(d.file("disk ü-flat.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	defer flat.Close()
	text, err := os.Create(d.file(diskPath))
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	if err := disk.WriteFlatVMDK(context.Background(), text, flat, img, disk.VMDKOptions{}); err != nil {
		t.Fatal(err)
	}
	return vddk.Request{Key: diskKey, Size: img.Size(), Path: diskPath, Files: d}, d
}

func open(t testing.TB, req vddk.Request, opts vddk.Options) vddk.Source {
	t.Helper()
	if opts.Logger == nil && testing.Verbose() {
		opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	src, err := vddk.Open(t.Context(), req, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return src
}

// imageSize is odd in mebibytes, chunks and pages.
const imageSize = 5<<20 + 3*disk.SectorSize

func random(seed uint64) *disktest.Memory { return disktest.Random(seed, imageSize, 0.5) }

func contains(s, part string) bool { return strings.Contains(s, part) }
