package vddk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

// emptyFile is a raw disk of zeros.
func emptyFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk-flat.vmdk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDevices(t *testing.T) {
	requests := map[string]func(t *testing.T, size int64) vddk.Request{
		vddk.File: func(t *testing.T, size int64) vddk.Request {
			return vddk.Request{LocalPath: emptyFile(t, size), Size: size}
		},
		vddk.NBDSSL: func(t *testing.T, size int64) vddk.Request {
			return libraryRequest(t, install(t), emptyFile(t, size))
		},
		vddk.Folder: func(t *testing.T, size int64) vddk.Request {
			req, _ := folderRequest(t, disktest.NewMemory(size))
			return req
		},
	}
	for transport, request := range requests {
		t.Run(transport, func(t *testing.T) {
			disktest.RunDevice(t, func(t *testing.T, size int64) disk.Device {
				dev, err := vddk.OpenWrite(t.Context(), request(t, size), vddk.Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { dev.Close() })
				return dev
			})
		})
	}
}

// TestFolderWriteReachesTheServerWithSync: not before, and then all of it, with
// what was there and was not written.
func TestFolderWriteReachesTheServerWithSync(t *testing.T) {
	before := disktest.Random(20, imageSize, 1)
	req, store := folderRequest(t, before)
	dev, err := vddk.OpenWrite(t.Context(), req, vddk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	flat := store.file("disk ü-flat.vmdk")
	read := func() []byte {
		b, err := os.ReadFile(flat)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := dev.WriteAt([]byte("changed"), 3<<20+17); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(), before.Bytes()) {
		t.Error("the server has it before Sync")
	}
	if err := dev.Sync(); err != nil {
		t.Fatal(err)
	}
	after := before.Bytes()
	copy(after[3<<20+17:], "changed")
	if !bytes.Equal(read(), after) {
		t.Error("after Sync the server has something else")
	}
}

// importer takes an import, as the host of a test.
type importer struct {
	stream bytes.Buffer
	fail   error
	ended  []error
}

func (i *importer) Import(context.Context) (vddk.ImportLease, error) { return i, nil }

func (i *importer) Upload(_ context.Context, key int32, r io.Reader) error {
	if key != diskKey {
		return errors.New("there is no such disk")
	}
	if i.fail != nil {
		return i.fail
	}
	_, err := i.stream.ReadFrom(r)
	return err
}

func (i *importer) Progress(int) {}

func (i *importer) Close(_ context.Context, why error) error {
	i.ended = append(i.ended, why)
	return nil
}

// spoilt is a raw disk full of what has to go.
func spoilt(t *testing.T) string {
	path := emptyFile(t, imageSize)
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, imageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWriteImage(t *testing.T) {
	img := random(21)
	write := func(t *testing.T, req vddk.Request, fresh bool, transport string) {
		t.Helper()
		var last atomic.Int64
		got, err := vddk.WriteImage(t.Context(), req, img, vddk.ImageOptions{
			Fresh: fresh, Progress: func(done, total int64) { last.Store(done) },
		})
		if err != nil || got != transport {
			t.Fatalf("written through %q, %v", got, err)
		}
		if last.Load() != img.Size() {
			t.Errorf("progress ends at %d", last.Load())
		}
	}
	same := func(t *testing.T, path string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, img.Bytes()) {
			t.Errorf("the disk has something else (%v)", err)
		}
	}
	t.Run(vddk.File, func(t *testing.T) {
		for _, fresh := range []bool{false, true} {
			path := spoilt(t)
			if fresh {
				path = emptyFile(t, imageSize)
			}
			write(t, vddk.Request{LocalPath: path, Size: imageSize}, fresh, vddk.File)
			same(t, path)
		}
	})
	t.Run(vddk.HotAdd, func(t *testing.T) {
		h := &hotAdder{path: spoilt(t)}
		write(t, vddk.Request{HotAdd: h, Size: imageSize}, false, vddk.HotAdd)
		same(t, h.path)
		if h.detached != 1 {
			t.Errorf("detached %d times", h.detached)
		}
	})
	t.Run(vddk.NBDSSL, func(t *testing.T) {
		path := spoilt(t)
		write(t, libraryRequest(t, install(t), path), false, vddk.NBDSSL)
		same(t, path)
	})
	t.Run(vddk.Folder, func(t *testing.T) {
		req, store := folderRequest(t, disktest.NewMemory(imageSize))
		write(t, req, false, vddk.Folder)
		same(t, store.file("disk ü-flat.vmdk"))
	})
	t.Run(vddk.NFC, func(t *testing.T) {
		i := &importer{}
		write(t, vddk.Request{Key: diskKey, Size: imageSize, Import: i}, true, vddk.NFC)
		if len(i.ended) != 1 || i.ended[0] != nil {
			t.Errorf("the lease was ended with %v", i.ended)
		}
		src := open(t, vddk.Request{Key: diskKey, Size: imageSize, Lease: &lease{stream: i.stream.Bytes()}}, vddk.Options{})
		disktest.Equal(t, src, img)
	})
}

func TestWriteImageFails(t *testing.T) {
	img := random(22)
	boom := errors.New("boom")
	i := &importer{fail: boom}
	if _, err := vddk.WriteImage(t.Context(), vddk.Request{Key: diskKey, Size: imageSize, Import: i}, img, vddk.ImageOptions{}); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if len(i.ended) != 1 || !errors.Is(i.ended[0], boom) {
		t.Errorf("the lease was ended with %v", i.ended)
	}
	f := install(t)
	req := libraryRequest(t, f, emptyFile(t, imageSize))
	set(t, f, "lose_after", "2")
	if _, err := vddk.WriteImage(t.Context(), req, img, vddk.ImageOptions{}); !errors.Is(err, vddk.ErrLost) {
		t.Errorf("a lost connection: %v", err)
	}
	if _, err := vddk.WriteImage(t.Context(), vddk.Request{Size: 512}, img, vddk.ImageOptions{}); !errors.Is(err, vddk.ErrSize) {
		t.Errorf("an image of another size: %v", err)
	}
}
