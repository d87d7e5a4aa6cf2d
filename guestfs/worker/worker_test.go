package worker_test

import (
	"log/slog"
	"maps"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/probe"
	"lifeboat/guestfs/worker"
)

// TestMain lets the tests be their own worker, which knows readers that
// misbehave: they are chosen by a disk that pretends to be an APFS.
func TestMain(m *testing.M) {
	readers := inspect.NativeReaders()
	maps.Copy(readers, inspect.Readers{probe.APFS: misbehave})
	worker.Main(readers)
	goleak.VerifyTestMain(m)
}

// image opens an image file as a disk.
func image(t testing.TB, file string) disk.Image {
	t.Helper()
	img, err := disk.Open(t.Context(), file, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func start(t testing.TB, opts worker.Options, disks ...disk.Image) *worker.Session {
	t.Helper()
	opts.Logger = slog.New(slog.DiscardHandler)
	if raceDetector {
		opts.Memory = -1
	}
	s, err := worker.Start(t.Context(), disks, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func volume(t testing.TB, s *worker.Session, i int) guestfs.FS {
	t.Helper()
	fsys, err := s.FS(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// TestAgainstKernel: what comes through the worker is what the kernel shows.
func TestAgainstKernel(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	for name, args := range map[string][]string{
		"inline": {"-t", "ext4", "-I", "512", "-O", "inline_data"},
		"blocks": {"-t", "ext3", "-b", "1024"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := guestfstest.NewImage(t, 64<<20)
			guestfstest.Run(t, "mke2fs", append(append([]string{"-q", "-F"}, args...), file)...)
			dir, unmount := guestfstest.Mount(t, file, "ext4", "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 3, Entries: 150, MaxFile: 50_000, NoBigXattrs: true})
			unmount()
			dir, _ = guestfstest.Mount(t, file, "ext4", "ro,noload")
			s := start(t, worker.Options{}, image(t, file))
			if n := guestfstest.Compare(t, volume(t, s, 0), dir, guestfstest.Compared{}); n < 150 {
				t.Errorf("only %d entries were compared", n)
			}
		})
	}
}

// pretender is a disk that has the magic of a file system that no reader here
// knows, and says what its reader is to do.
func pretender(t testing.TB, deed string) disk.Image {
	b := make([]byte, 1<<20)
	copy(b[32:], "NXSB")
	copy(b[512:], deed)
	return disk.Bytes(t.Context(), b)
}

func deedOf(img disk.Image) string {
	b := make([]byte, 64)
	if _, err := img.ReadAt(b, 512); err != nil {
		return err.Error()
	}
	return strings.TrimRight(string(b), "\x00")
}
