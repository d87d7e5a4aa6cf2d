package store

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs/crashfs"
)

// The golden repository is what this version of the format looks like on a
// disk: one object after the other, its name and its bytes in base64. It must
// open for ever. LIFEBOAT_UPDATE_GOLDEN=1 writes it anew, which is right only
// together with a new format version.
const goldenFile = "testdata/repository-v1.txt"

// goldenDisks is the content of the golden points' only disk.
func goldenDisks() [2]*disktest.Memory {
	first := disktest.NewMemory(100 << 20)
	for i := range int64(5) {
		first.WriteAt(bytes.Repeat(fmt.Appendf(nil, "golden block %d. ", i), 3000), i*21<<20+i)
	}
	second := first.Clone()
	second.WriteAt([]byte("a change"), 42<<20+5)
	second.Zero(0, 1<<20)
	return [2]*disktest.Memory{first, second}
}

func goldenConfig() map[string][]byte {
	return map[string][]byte{"golden.vmx": []byte("displayName = \"golden\"\n"), "golden.nvram": make([]byte, 8684)}
}

// golden is an object of the golden repository.
type golden struct {
	name    string
	content []byte
}

func readGolden(t testing.TB) []golden {
	t.Helper()
	data, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), " ")
		content, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, golden{name, content})
	}
	return out
}

func goldenWorld(t testing.TB, objects []golden) *world {
	t.Helper()
	w := newWorld(crashfs.New(1, crashfs.Options{}))
	b := w.backend(t, actor{w.actors, "writer"})
	for _, o := range objects {
		if err := putObject(t.Context(), b, o.name, o.content, 0); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func TestGolden(t *testing.T) {
	if os.Getenv("LIFEBOAT_UPDATE_GOLDEN") != "" {
		writeGolden(t)
	}
	w := goldenWorld(t, readGolden(t))
	r := w.open(t)
	defer r.Close()
	points, err := r.Points(t.Context())
	if err != nil || len(points) != 2 {
		t.Fatal(points, err)
	}
	for i, want := range goldenDisks() {
		p := points[i]
		wantDisk(t, r, p, 0, want)
		if p.VM != "golden" || p.VMID != "50000000-0000-0000-0000-000000000001" || p.Consistency != FileSystemConsistent ||
			!p.Time.Equal(time.Unix(1_700_000_000+int64(i), 0)) || p.Labels["why"] != "golden" || p.Tool != "golden" || p.Disks[0].Label != "Hard disk 1" {
			t.Errorf("point %d is %+v", i, p)
		}
		for name, want := range goldenConfig() {
			got, err := r.Config(t.Context(), p, name)
			if err != nil {
				t.Fatal(err)
			}
			sameBytes(t, name, got, want)
		}
	}
	if points[1].Parent != points[0].ID {
		t.Errorf("parent is %q", points[1].Parent)
	}
	wantSound(t, r)
	// And it can be added to: everything is known already.
	if p := backup(t, r, "again", nil, goldenDisks()[1], nil); p.NewBytes != 0 {
		t.Errorf("%d bytes were not found in the dedupe index", p.NewBytes)
	}
}

func writeGolden(t *testing.T) {
	t.Helper()
	_, r := newRepo(t)
	var parent *Point
	in, err := r.NewIngest(t.Context(), IngestOptions{Workers: 1, Tool: "golden"})
	if err != nil {
		t.Fatal(err)
	}
	for i, src := range goldenDisks() {
		pw, err := in.Begin(PointSpec{
			VM: "golden", VMID: "50000000-0000-0000-0000-000000000001", Time: time.Unix(1_700_000_000+int64(i), 0), Parent: parent,
			Consistency: FileSystemConsistent, Config: goldenConfig(), Labels: map[string]string{"why": "golden"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := pw.AddDisk(t.Context(), DiskSpec{Key: 2000, Label: "Hard disk 1"}, disk.Image(src), nil, nil); err != nil {
			t.Fatal(err)
		}
		if parent, err = pw.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, name := range objects(t, r.backend, "") {
		content, err := getObject(t.Context(), r.backend, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %s\n", name, base64.StdEncoding.EncodeToString(content))
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(goldenFile, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
