package appliance

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/store"
)

func quietIndex() IndexOptions {
	return IndexOptions{Guest: GuestOptions{Logger: slog.New(slog.DiscardHandler)}}
}

// treeSaid is every name of a volume and what an index knows of it.
func treeSaid(t *testing.T, repo *store.Repository, pt *store.Point) map[string]string {
	t.Helper()
	g := openGuest(t, repo, pt)
	fsys, err := g.Volume(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	all, err := wholeTree(t.Context(), fsys, func(err error) { t.Error(err) }, func(string, int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for i := range all {
		if e := &all[i]; e.link.Name != "" {
			r := newIndexRow(0, e, 0)
			out["disk0"+e.path] = rowSaid(&r)
		}
	}
	return out
}

func rowSaid(r *indexRow) string {
	if r.mode&guestfs.TypeMask == guestfs.TypeDir {
		return fmt.Sprintf("dir %d", r.inode)
	}
	return fmt.Sprintf("%o %d %d %v", r.mode&guestfs.TypeMask, r.inode, r.size, r.mtime())
}

// indexSaid is what an index says that a point has.
func indexSaid(x *fileIndex, seq int) map[string]string {
	x.prepare()
	out := map[string]string{}
	for i := range x.rows {
		r := &x.rows[i]
		if r.first > seq || r.last != alive && r.last < seq {
			continue
		}
		p, ok := x.path(r, seq)
		if !ok {
			p = fmt.Sprintf("no way to %q", r.name)
		}
		out[p] = rowSaid(r)
	}
	return out
}

// TestIndexGrows: an index that grew by what differs has what every point has.
func TestIndexGrows(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	image := guestfstest.NewImage(t, 32<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	dir, unmount := guestfstest.Mount(t, image, "ext4", "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 5, Entries: 100, MaxFile: 10_000, NoBigXattrs: true})
	if err := os.WriteFile(filepath.Join(dir, "lost.txt"), []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	repo, pt := pointOf(t, image)
	state, err := OpenState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	points := []*store.Point{pt}
	rng := rand.New(rand.NewPCG(rand.Uint64(), 2))
	for i := range 3 {
		dir, unmount := guestfstest.Mount(t, image, "ext4", "")
		m := &mutator{t: t, rng: rng, root: filepath.Join(dir, "directory 0")}
		for range 15 {
			m.step()
		}
		switch i {
		case 0:
			err = os.WriteFile(filepath.Join(dir, "lost.txt"), []byte("three"), 0o600)
		case 1:
			err = os.Remove(filepath.Join(dir, "lost.txt"))
		}
		if err != nil {
			t.Fatal(err)
		}
		unmount()
		points = append(points, backupAgain(t, repo, image))
		if i == 0 { // in two steps: the first two points, then the others
			if err := UpdateIndex(t.Context(), repo, state, "guest", quietIndex()); err != nil {
				t.Fatal(err)
			}
		}
	}
	x, err := updateIndex(t.Context(), repo, state, "guest", quietIndex())
	if err != nil {
		t.Fatal(err)
	}
	check := func(x *fileIndex) {
		t.Helper()
		for seq, pt := range points {
			got, want := indexSaid(x, seq), treeSaid(t, repo, pt)
			if !maps.Equal(got, want) {
				for _, p := range slices.Sorted(maps.Keys(want)) {
					if got[p] != want[p] {
						t.Errorf("point %d: %q: %q, want %q", seq, p, got[p], want[p])
					}
				}
				for p := range got {
					if _, ok := want[p]; !ok {
						t.Errorf("point %d: %q is not there", seq, p)
					}
				}
			}
		}
	}
	check(x)
	if x, err = readIndex(state.indexPath("guest")); err != nil {
		t.Fatal(err)
	}
	check(x)

	found, err := FindAll(t.Context(), repo, state, "guest", FileQuery{Names: []string{"lost.*"}}, quietIndex())
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	if f := found[0]; f.Path != "disk0/lost.txt" || !f.Gone || f.Versions != 2 || f.Points != 2 || f.Last.Point != points[1].ID || f.Size != 5 {
		t.Errorf("%+v", f)
	}
	versions, err := FileVersions(t.Context(), repo, state, "guest", "disk0/lost.txt", quietIndex())
	if err != nil || len(versions) != 2 || versions[0].Size != 3 || versions[1].Points[0].Point != points[1].ID {
		t.Errorf("%+v, %v", versions, err)
	}
	if _, err := FileVersions(t.Context(), repo, state, "guest", "disk0/never", quietIndex()); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a file that never was: %v", err)
	}
	testBadIndex(t, repo, state, check)
}

// testBadIndex: what cannot be read is said, and built anew when it is needed.
func testBadIndex(t *testing.T, repo *store.Repository, state *State, check func(*fileIndex)) {
	t.Helper()
	path := state.indexPath("guest")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2]++
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := IndexStatusOf(t.Context(), repo, state, "guest"); !errors.Is(err, errIndex) {
		t.Errorf("status of a damaged index: %v", err)
	}
	x, err := updateIndex(t.Context(), repo, state, "guest", quietIndex())
	if err != nil {
		t.Fatal(err)
	}
	check(x)
	if dropped, err := DropIndex(state, "guest"); err != nil || !dropped {
		t.Errorf("drop: %v %v", dropped, err)
	}
	s, err := IndexStatusOf(t.Context(), repo, state, "guest")
	if err != nil || s.Bytes != 0 || s.Missing != 4 {
		t.Errorf("after it was dropped: %+v, %v", s, err)
	}
}

// syntheticIndex is an index of files in directories of 100, of which some change
// from point to point.
func syntheticIndex(points, files, changes int) *fileIndex {
	x := &fileIndex{meta: indexMeta{VM: "big", Volumes: []indexVolume{{Name: "disk0p1", Type: "ext4", Root: 2}}}}
	rng := rand.New(rand.NewPCG(1, 1))
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	row := func(n, first int) indexRow {
		return indexRow{dir: guestfs.Inode(10 + n/100), inode: guestfs.Inode(100_000 + n), name: fmt.Sprintf("document number %d.txt", n), mode: guestfs.TypeFile | 0o644, size: rng.Int64N(1 << 20), sec: begin.Unix() + int64(first), first: first, last: alive}
	}
	for n := range files / 100 {
		x.rows = append(x.rows, indexRow{dir: 2, inode: guestfs.Inode(10 + n), name: fmt.Sprintf("directory %d", n), mode: guestfs.TypeDir | 0o755, last: alive})
	}
	at := make([]int, files)
	for n := range files {
		at[n] = len(x.rows)
		x.rows = append(x.rows, row(n, 0))
	}
	for seq := range points {
		x.meta.Points = append(x.meta.Points, indexPoint{ID: fmt.Sprintf("%016x", seq), Time: begin.Add(time.Duration(seq) * time.Hour)})
		for range changes {
			if n := rng.IntN(files); seq > 0 && x.rows[at[n]].first < seq {
				x.rows[at[n]].last = seq - 1
				at[n] = len(x.rows)
				x.rows = append(x.rows, row(n, seq))
			}
		}
	}
	return x
}

// BenchmarkIndexFind searches 200 points of a VM with 50,000 files, of which 500
// change from each point to the next, from the file on.
func BenchmarkIndexFind(b *testing.B) {
	path := filepath.Join(b.TempDir(), "index")
	if err := writeIndex(path, syntheticIndex(200, 50_000, 500)); err != nil {
		b.Fatal(err)
	}
	living := slices.Repeat([]bool{true}, 200)
	for b.Loop() {
		x, err := readIndex(path)
		if err != nil {
			b.Fatal(err)
		}
		if found := x.find(FileQuery{Names: []string{"*number 4999?.txt"}}, living); len(found) != 10 {
			b.Fatal(len(found))
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size()), "file-bytes")
}

func FuzzIndex(f *testing.F) {
	path := filepath.Join(f.TempDir(), "index")
	if err := writeIndex(path, syntheticIndex(3, 200, 5)); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:100])
	f.Add([]byte(strings.Repeat("\x05", 50)))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decodeIndex(b)
		if err != nil {
			return
		}
		x.find(FileQuery{}, make([]bool, len(x.meta.Points)))
	})
}
