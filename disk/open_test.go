package disk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// overlayOn makes a qcow2 whose backing file is named as given, whether it
// exists or not.
func overlayOn(t testing.TB, name, backing string) {
	t.Helper()
	qemu(t, filepath.Dir(name), "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", name, "1M")
}

// TestOnlyItsOwnFolder: an image cannot make us read a file elsewhere.
func TestOnlyItsOwnFolder(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	writeFile(t, secret, bytes.Repeat([]byte("secret"), 1<<18))
	dir := t.TempDir()
	for link, target := range map[string]string{
		"absolute": secret,
		"relative": "../" + filepath.Base(outside) + "/secret",
		"folder":   outside,
		"itself":   "itself",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	top := filepath.Join(dir, "top.img")
	for name, word := range map[string]string{
		secret:                   "absolute path",
		`\windows\x`:             "absolute path",
		`C:\x`:                   "protocol or a drive",
		"nbd:localhost:10809":    "protocol",
		`json:{"driver":"file"}`: "protocol",
		"nbd://localhost/x":      "protocol",
		"file:" + secret:         "protocol",
		"/dev/sda":               "absolute path",
		"../secret":              `".."`,
		"a/../../secret":         `".."`,
		`..\secret`:              `".."`,
		"folder/secret":          "escapes",
		"absolute":               "escapes",
		"relative":               "escapes",
		"itself":                 "too many",
		"missing":                "no such file",
	} {
		overlayOn(t, top, name)
		mustRefuse(t, top, name, word)
		writeFile(t, top, fmt.Appendf(nil, "%sRW 8 FLAT \"%s\" 0\n", title, name))
		if !strings.Contains(name, `"`) {
			mustRefuse(t, top, name, word)
		}
		writeFile(t, top, fmt.Appendf(nil, "%sparentCID=1\nparentFileNameHint=\"%s\"\nRW 8 ZERO\n", title, name))
		mustRefuse(t, top, name, word)
	}
}

func mustRefuse(t *testing.T, top, name, word string) {
	t.Helper()
	img, err := disk.Open(context.Background(), top, disk.OpenOptions{})
	if err == nil {
		img.Close()
		t.Errorf("%q was followed", name)
	} else if !strings.Contains(err.Error(), word) {
		t.Errorf("%q: %v; want %q", name, err, word)
	}
}

// TestFolderBelow: names inside the folder work, also through folders and
// links in it, and are relative to the file that has them.
func TestFolderBelow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "base/more"), 0o700); err != nil {
		t.Fatal(err)
	}
	source := disktest.Random(8, 1<<20, 0.5)
	writeDisk(t, filepath.Join(dir, "base/more/raw"), source)
	if err := os.Symlink("more/raw", filepath.Join(dir, "base/link")); err != nil {
		t.Fatal(err)
	}
	overlayOn(t, filepath.Join(dir, "base/mid.qcow2"), "link")
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base/mid.qcow2", "-F", "qcow2", "top.qcow2")
	sameAsQEMU(t, filepath.Join(dir, "top.qcow2"))
	disktest.Equal(t, open(t, filepath.Join(dir, "top.qcow2")), source)

	// The name that the user gives may lead anywhere; its folder is where it is.
	elsewhere := t.TempDir()
	overlayOn(t, filepath.Join(elsewhere, "top.qcow2"), "raw")
	writeDisk(t, filepath.Join(elsewhere, "raw"), source)
	t.Chdir(elsewhere)
	disktest.Equal(t, open(t, "top.qcow2"), source)
}

// TestLoops: images that name themselves or each other, in a ring of one, two
// and three, under other names too.
func TestLoops(t *testing.T) {
	for ring := 1; ring <= 3; ring++ {
		dir := t.TempDir()
		name := func(i int) string { return fmt.Sprintf("image%d", i%ring) }
		for i := range ring {
			qemu(t, dir, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "./"+name(i+1), "-F", "qcow2", name(i), "1M")
		}
		refused(t, filepath.Join(dir, name(0)), disk.ErrFormat, "loop")
		if err := os.Link(filepath.Join(dir, name(0)), filepath.Join(dir, "other")); err != nil {
			t.Fatal(err)
		}
		refused(t, filepath.Join(dir, "other"), disk.ErrFormat, "loop")
		for i := range ring {
			text := fmt.Sprintf("%sCID=1\nparentCID=1\nparentFileNameHint=\"%s\"\nRW 8 ZERO\n", title, name(i+1))
			writeFile(t, filepath.Join(dir, name(i)), []byte(text))
		}
		refused(t, filepath.Join(dir, name(0)), disk.ErrFormat, "loop")
	}
	dir := t.TempDir()
	for _, kind := range []string{"FLAT", "SPARSE"} {
		writeFile(t, filepath.Join(dir, "self"), []byte(title+"RW 8 "+kind+" \"./self\" 0\n"))
		refused(t, filepath.Join(dir, "self"), disk.ErrFormat, "itself")
	}
}

// TestDepth: a chain has a bound.
func TestDepth(t *testing.T) {
	dir := t.TempDir()
	for i := range 6 {
		text := fmt.Sprintf("%sCID=1\nparentCID=1\nparentFileNameHint=\"%d\"\nRW 8 ZERO\n", title, i+1)
		writeFile(t, filepath.Join(dir, fmt.Sprint(i)), []byte(text))
	}
	writeFile(t, filepath.Join(dir, "6"), []byte(title+"CID=1\nRW 8 ZERO\n"))
	name := filepath.Join(dir, "0")
	img, err := disk.Open(context.Background(), name, disk.OpenOptions{MaxDepth: 6})
	if err != nil {
		t.Fatal(err)
	}
	img.Close()
	if _, err := disk.Open(context.Background(), name, disk.OpenOptions{MaxDepth: 5}); !errors.Is(err, disk.ErrUnsupported) || !strings.Contains(err.Error(), "deeper than 5") {
		t.Error(err)
	}
}

// TestParentChanged: a delta over another content is refused.
func TestParentChanged(t *testing.T) {
	dir := t.TempDir()
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "1M")
	qemu(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk")
	sameAsQEMU(t, filepath.Join(dir, "top.vmdk"))
	qemu(t, dir, "qemu-io", "-c", "write 0 64k", "base.vmdk") // gives it a new CID
	refused(t, filepath.Join(dir, "top.vmdk"), disk.ErrFormat, "changed after")
}

// TestFormatIsBelieved: a raw disk whose guest wrote a qcow2 header.
func TestFormatIsBelieved(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	overlayOn(t, name, "/etc/passwd")
	img, err := disk.Open(context.Background(), name, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if info, _ := os.Stat(name); img.Size() != info.Size() {
		t.Errorf("size is %d, of a file of %d", img.Size(), info.Size())
	}
	if _, err := disk.Open(context.Background(), name, disk.OpenOptions{Format: "vdi"}); !errors.Is(err, disk.ErrUnsupported) {
		t.Error(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	writeFile(t, raw, make([]byte, 1<<20))
	for _, format := range []disk.Format{disk.FormatQCOW2, disk.FormatVMDK} {
		if _, err := disk.Open(context.Background(), raw, disk.OpenOptions{Format: format}); !errors.Is(err, disk.ErrFormat) {
			t.Errorf("zeros as %s: %v", format, err)
		}
	}
}

// TestWarns: an image that was not closed is worth a word.
func TestWarns(t *testing.T) {
	name := filepath.Join(t.TempDir(), "dirty.qcow2")
	b := smallImage(t, "qcow2", "")
	b[79] |= 3
	writeFile(t, name, b)
	var log bytes.Buffer
	img, err := disk.Open(context.Background(), name, disk.OpenOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	img.Close()
	for _, want := range []string{"not closed properly", "marked corrupt", "dirty.qcow2"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is not in the log: %s", want, log.String())
		}
	}
}

// TestSplit reads disks of several extents.
func TestSplit(t *testing.T) {
	for _, subformat := range []string{"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		dir := t.TempDir()
		qemu(t, dir, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+subformat, "split.vmdk", "5G")
		qemu(t, dir, "qemu-io", "-c", "write -P 1 0 1M", "-c", "write -P 2 2047M 3M", "-c", "write -P 3 4095M 2M", "-c", "write -P 4 5119M 1M", "split.vmdk")
		img := open(t, filepath.Join(dir, "split.vmdk"))
		sameHoles(t, img, dir, "split.vmdk")
		disktest.CheckExtents(t, img, disk.Whole(img))
		buf := make([]byte, 4<<20)
		if _, err := img.ReadAt(buf, 2047<<20-1<<19); err != nil {
			t.Fatal(err)
		}
		want := append(make([]byte, 1<<19), bytes.Repeat([]byte{2}, 3<<20)...)
		if want = append(want, make([]byte, 1<<19)...); !bytes.Equal(buf, want) {
			t.Errorf("%s: content differs", subformat)
		}
	}
}

// TestSplitWithParent: each extent of a delta looks at its own part of the
// parent.
func TestSplitWithParent(t *testing.T) {
	dir := t.TempDir()
	base := bytes.Repeat([]byte("parent! "), 8*512/8)
	writeFile(t, filepath.Join(dir, "base"), base)
	writeFile(t, filepath.Join(dir, "base.vmdk"), []byte(title+"CID=7\nRW 8 FLAT \"base\" 0\n"))
	for _, extent := range []string{"s1", "s2"} {
		writeFile(t, filepath.Join(dir, extent), tinySparse(false))
	}
	writeFile(t, filepath.Join(dir, "top.vmdk"), []byte(title+"CID=8\nparentCID=7\nparentFileNameHint=\"base.vmdk\"\nRW 4 SPARSE \"s1\"\nRW 4 SPARSE \"s2\"\n"))
	a, b, zeros := bytes.Repeat([]byte("a"), 512), bytes.Repeat([]byte("b"), 512), make([]byte, 512)
	part := bytes.Join([][]byte{a, base[:512], zeros, b}, nil)
	disktest.RunImage(t, disktest.FromBytes(append(part, part...)), func(t *testing.T) disk.Image {
		return open(t, filepath.Join(dir, "top.vmdk"))
	})
}
