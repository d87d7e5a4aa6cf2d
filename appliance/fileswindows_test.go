package appliance

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/guestfs/guestfstest"
)

// windowsDisk is an image of NTFS with what only Windows has.
func windowsDisk(t *testing.T) string {
	t.Helper()
	guestfstest.NeedMount(t, "", "mkfs.ntfs", "ntfs-3g", "fusermount3")
	file := guestfstest.NewImage(t, 16<<20)
	guestfstest.Run(t, "mkfs.ntfs", "-q", "-F", file)
	dir := t.TempDir()
	guestfstest.Run(t, "ntfs-3g", "-o", "streams_interface=windows", file, dir)
	defer guestfstest.Run(t, "fusermount3", "-u", dir)
	path := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(path("folder"), 0o755))
	must(os.WriteFile(path("folder/hidden.txt"), []byte("content"), 0o644))
	must(os.WriteFile(path("folder/hidden.txt:Zone.Identifier"), []byte("[ZoneTransfer]"), 0o644))
	must(unix.Setxattr(path("folder/hidden.txt"), "system.ntfs_attrib_be", []byte{0, 0, 0, 0x22}, 0)) // hidden, archive
	must(os.Link(path("folder/hidden.txt"), path("folder/second name")))
	return file
}

// TestWindowsToTar: descriptor, attributes and streams are in the archive, under
// the names that other tools know.
func TestWindowsToTar(t *testing.T) {
	repo, pt := pointOf(t, windowsDisk(t))
	g := openGuest(t, repo, pt)
	var archive bytes.Buffer
	result, err := g.GetToTar(t.Context(), &archive, GetRequest{Places: []string{"disk0/folder"}})
	if err != nil || len(result.LeftOut) > 0 {
		t.Fatalf("%v, left out: %+v", err, result)
	}
	content, headers := map[string]string{}, map[string]*tar.Header{}
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name], content[h.Name] = h, string(b)
	}
	h := headers["folder/hidden.txt"]
	if h == nil || content["folder/hidden.txt"] != "content" || content["folder/hidden.txt:Zone.Identifier"] != "[ZoneTransfer]" {
		t.Fatalf("the archive has %q", content)
	}
	if h.PAXRecords["MSWINDOWS.fileattr"] != "34" || h.PAXRecords["LIBARCHIVE.creationtime"] == "" {
		t.Errorf("records: %v", h.PAXRecords)
	}
	sd, err := base64.StdEncoding.DecodeString(h.PAXRecords["MSWINDOWS.rawsd"])
	if err != nil || len(sd) < 20 || sd[0] != 1 {
		t.Errorf("descriptor: %x, %v", sd, err)
	}
	if l := headers["folder/second name"]; l == nil || l.Typeflag != tar.TypeLink || l.Linkname != "folder/hidden.txt" {
		t.Errorf("the second name: %+v", l)
	}
}

// TestWindowsToZip: what zip has no room for is in the sidecar.
func TestWindowsToZip(t *testing.T) {
	repo, pt := pointOf(t, windowsDisk(t))
	g := openGuest(t, repo, pt)
	file := filepath.Join(t.TempDir(), "a.zip")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if result, err := g.GetToZip(t.Context(), f, GetRequest{Places: []string{"disk0/folder"}}); err != nil || len(result.LeftOut) > 0 {
		t.Fatalf("%v, left out: %+v", err, result)
	}
	var m zipMetadata
	for line := range strings.Lines(guestfstest.Run(t, "unzip", "-p", file, zipSidecar)) {
		var one zipMetadata
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatal(err)
		}
		if one.Name == "folder/hidden.txt" {
			m = one
		}
	}
	if m.Attributes&0x22 != 0x22 || len(m.Descriptor) < 20 || m.Birth == nil {
		t.Errorf("%+v", m)
	}
	if got := guestfstest.Run(t, "unzip", "-p", file, m.Streams["Zone.Identifier"]); got != "[ZoneTransfer]" {
		t.Errorf("the stream is %q, in %v", got, m.Streams)
	}
}

// TestWindowsToDirectory: what a directory has no room for is listed.
func TestWindowsToDirectory(t *testing.T) {
	repo, pt := pointOf(t, windowsDisk(t))
	g := openGuest(t, repo, pt)
	out := t.TempDir()
	result, err := g.GetToDir(t.Context(), GetRequest{Places: []string{"disk0/folder"}}, GetDirOptions{Output: out})
	if err != nil || result.Err() != nil {
		t.Fatalf("%v; %v", err, result.Err())
	}
	left := map[string]bool{}
	for _, l := range result.LeftOut {
		left[l.What] = true
	}
	if !left["named streams"] || !left["security descriptors"] {
		t.Errorf("left out: %+v", result.LeftOut)
	}
	if b, err := os.ReadFile(filepath.Join(out, "folder", "second name")); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}
