package disk_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// qemu runs one of QEMU's disk tools in dir and returns what it prints. The
// tools are the reference for every format here, so a machine without them
// fails the tests instead of passing them untested.
func qemu(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := tryQEMU(dir, args...)
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: apt-get install qemu-utils", args[0])
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryQEMU(dir string, args ...string) (string, error) {
	// The tests do not need what they make to survive power loss, and a flush
	// for each image is most of what they would wait for.
	switch {
	case args[0] == "qemu-io":
		args = slices.Insert(args, 1, "-t", "unsafe")
	case args[1] == "convert":
		args = slices.Insert(args, 2, "-t", "unsafe")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func open(t testing.TB, name string) disk.Image {
	t.Helper()
	img, err := disk.Open(context.Background(), name, disk.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func writeFile(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeDisk makes a sparse raw file with the content of m.
func writeDisk(t testing.TB, name string, m *disktest.Memory) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(m.Size()); err != nil {
		t.Fatal(err)
	}
	for ext, err := range disk.Extents(context.Background(), m, disk.Whole(m)) {
		if err != nil {
			t.Fatal(err)
		}
		if ext.Hole {
			continue
		}
		buf := make([]byte, ext.Length)
		m.ReadAt(buf, ext.Offset)
		if _, err := f.WriteAt(buf, ext.Offset); err != nil {
			t.Fatal(err)
		}
	}
}

// sameAsQEMU compares the image called name with what qemu-img makes of it:
// the content byte for byte, and the holes.
func sameAsQEMU(t testing.TB, name string) {
	t.Helper()
	dir, base := filepath.Split(name)
	ref := filepath.Join(t.TempDir(), "ref.raw")
	qemu(t, dir, "qemu-img", "convert", "-O", "raw", base, ref)
	want := open(t, ref)
	img := open(t, name)
	disktest.Equal(t, img, want)
	disktest.CheckExtents(t, img, disk.Whole(img))
	sameHoles(t, img, dir, base)
}

// sameHoles compares the extents with `qemu-img map`: where QEMU knows of data,
// we have data, and where it knows of none we do not read.
func sameHoles(t testing.TB, img disk.Image, dir, base string) {
	t.Helper()
	var theirs []struct {
		Start, Length int64
		Data, Zero    bool
	}
	out := qemu(t, dir, "qemu-img", "map", "--output=json", base)
	if err := json.Unmarshal([]byte(out), &theirs); err != nil {
		t.Fatal(err)
	}
	var ours []disk.Extent
	for ext, err := range disk.Extents(context.Background(), img, disk.Whole(img)) {
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, ext)
	}
	for _, e := range theirs {
		// QEMU rounds the size up to sectors.
		end := min(e.Start+e.Length, img.Size())
		if got := dataIn(ours, e.Start, end); e.Data && !e.Zero && got != end-e.Start {
			t.Errorf("%d to %d is data for QEMU; we call %d bytes of it data", e.Start, end, got)
		} else if !e.Data && got != 0 {
			t.Errorf("%d to %d is a hole for QEMU; we call %d bytes of it data", e.Start, end, got)
		}
	}
}

func dataIn(extents []disk.Extent, from, to int64) (sum int64) {
	for _, e := range extents {
		if a, b := max(e.Offset, from), min(e.End(), to); a < b && !e.Hole {
			sum += b - a
		}
	}
	return sum
}

// scribble writes random patterns, zeros and trims with qemu-io.
func scribble(t testing.TB, rng *rand.Rand, name string, size int64, writes int) {
	t.Helper()
	dir, base := filepath.Split(name)
	args := []string{"qemu-io", "-d", "unmap"}
	for range writes {
		n := min(int64(512)*(1+rng.Int64N(1+rng.Int64N(700))), size)
		off := rng.Int64N(size-n+1) &^ 511
		op := "write -P " + strconv.Itoa(1+rng.IntN(255))
		switch rng.IntN(8) {
		case 0:
			op = "write -z"
		case 1:
			op = "write -z -u"
		case 2:
			op = "discard"
		}
		args = append(args, "-c", op+" "+strconv.FormatInt(off, 10)+" "+strconv.FormatInt(n, 10))
	}
	qemu(t, dir, append(args, base)...)
}
