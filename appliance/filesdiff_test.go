package appliance

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/store"
)

// mutator does to a mounted tree what guests do.
type mutator struct {
	t    *testing.T
	rng  *rand.Rand
	root string
	n    int
}

func (m *mutator) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// paths are what there is, but for the root; of one kind.
func (m *mutator) paths(dirs bool) []string {
	var out []string
	m.must(filepath.WalkDir(m.root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && path != m.root && e.IsDir() == dirs && e.Name() != "lost+found" {
			out = append(out, path)
		}
		return err
	}))
	return out
}

func (m *mutator) some(list []string) string { return list[m.rng.IntN(len(list))] }

func (m *mutator) fresh(in string) string {
	m.n++
	return filepath.Join(in, fmt.Sprintf("new %d \xff\n%d", m.n, m.rng.IntN(1000)))
}

func (m *mutator) data() []byte {
	b := make([]byte, m.rng.IntN(20_000))
	for i := range b {
		b[i] = byte(m.rng.Uint32())
	}
	return b
}

// step changes something. Files that are not plain are only renamed and removed.
func (m *mutator) step() {
	dirs, files := append(m.paths(true), m.root), m.paths(false)
	dir, file := m.some(dirs), m.some(files)
	info, err := os.Lstat(file)
	m.must(err)
	plain := info.Mode().IsRegular()
	switch op := m.rng.IntN(16); {
	case op == 0:
		m.must(os.WriteFile(m.fresh(dir), m.data(), 0o640))
	case op == 1 && plain:
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		m.must(err)
		_, err = f.Write([]byte("more"))
		m.must(err)
		m.must(f.Close())
	case op == 2 && plain && info.Size() > 0: // the time says nothing
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		m.must(err)
		_, err = f.WriteAt([]byte{byte(m.rng.Uint32())}, m.rng.Int64N(min(info.Size(), 1<<20)))
		m.must(err)
		m.must(f.Close())
		m.must(os.Chtimes(file, info.ModTime(), info.ModTime()))
	case op == 3 && plain:
		m.must(os.Truncate(file, m.rng.Int64N(50_000)))
	case op == 4 && plain:
		m.must(os.Chmod(file, fs.FileMode(m.rng.IntN(0o1000))))
	case op == 5:
		m.must(os.Lchown(file, m.rng.IntN(5), m.rng.IntN(5)))
	case op == 6:
		m.must(os.Rename(file, m.fresh(dir)))
	case op == 7: // as editors do it
		other := m.fresh(filepath.Dir(file))
		m.must(os.WriteFile(other, m.data(), 0o600))
		m.must(os.Rename(other, file))
	case op == 8:
		m.must(os.Remove(file))
	case op == 9 && dir != m.root:
		to := m.some(dirs)
		if !below(to, dir) {
			m.must(os.Rename(dir, m.fresh(to)))
		}
	case op == 10:
		deep := filepath.Join(m.fresh(dir), "a", "b")
		m.must(os.MkdirAll(deep, 0o755))
		m.must(os.WriteFile(filepath.Join(deep, "c"), m.data(), 0o600))
	case op == 11 && dir != m.root && m.rng.IntN(4) == 0:
		m.must(os.RemoveAll(dir))
	case op == 12 && plain:
		m.must(os.Link(file, m.fresh(dir)))
	case op == 13:
		m.must(os.Symlink("../"+filepath.Base(file), m.fresh(dir)))
	case op == 14 && plain:
		m.must(unix.Setxattr(file, "user.some", []byte(fmt.Sprint(m.rng.IntN(100))), 0))
	case op == 15 && plain:
		_, err := os.ReadFile(file)
		m.must(err)
	}
}

// state is what a kernel sees of every file of an image.
func kernelState(t *testing.T, image, fsType string) map[string]string {
	t.Helper()
	dir, unmount := guestfstest.Mount(t, guestfstest.CopyImage(t, image), fsType, "ro")
	defer unmount()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		said := fmt.Sprintf("%v %d %d", info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, io.LimitReader(f, 1<<20)); err != nil { // the rest of large ones is holes
				return err
			}
			said += fmt.Sprintf(" %d %s %x", info.Size(), info.ModTime(), sum.Sum(nil))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			said += " " + target
		}
		value := make([]byte, 100)
		if n, err := unix.Lgetxattr(path, "user.some", value); err == nil {
			said += fmt.Sprintf(" %q", value[:n])
		}
		rel := strings.TrimPrefix(path, dir)
		if rel == "" {
			rel = "/"
		}
		out[rel] = said
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// explained checks that a list of changes makes one state of the other.
func explained(t *testing.T, old, now map[string]string, changes []FileChange) {
	t.Helper()
	valid := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	ctimeOnly := map[string]bool{} // something was set to what it was
	told, gone, from := map[string]bool{}, map[string]bool{}, map[string]string{}
	for _, c := range changes {
		path := valid(strings.TrimPrefix(c.Path, "disk0"))
		if c.Status == FileDeleted {
			gone[path] = true
			continue
		}
		told[path] = true
		ctimeOnly[path] = slices.Equal(c.What, []string{"ctime"})
		if c.From != "" {
			from[path] = valid(strings.TrimPrefix(c.From, "disk0"))
			gone[from[path]] = true
		}
	}
	oldValid := map[string]string{}
	for path, said := range old {
		oldValid[valid(path)] = said
	}
	kept := map[string]bool{}
	for path, said := range now {
		path = valid(path)
		was := path
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			if f, ok := from[dir]; ok {
				was = f + strings.TrimPrefix(path, dir)
				break
			}
		}
		kept[was] = true
		if !told[path] && oldValid[was] != said {
			t.Errorf("%q is %q, was %q (%q), and nobody says so", path, said, oldValid[was], was)
		}
		if told[path] && from[path] == "" && oldValid[was] == said && !ctimeOnly[path] {
			t.Errorf("%q is said to be another, and is %q as before", path, said)
		}
	}
	for path := range oldValid {
		if !kept[path] && !gone[path] {
			t.Errorf("%q is gone, and nobody says so", path)
		}
	}
}

// comparable is a list of changes without what a walk finds and blocks need not:
// nothing, as it should be.
func comparableChanges(list []FileChange) []string {
	var out []string
	for _, c := range list {
		out = append(out, fmt.Sprintf("%s %q from %q (%s) %v", c.Status, c.Path, c.From, c.Type, c.What))
	}
	slices.Sort(out)
	return out
}

func diffFiles(t *testing.T, repo *store.Repository, a, b *store.Point, content, walk bool) *FilesDiff {
	t.Helper()
	d, err := DiffFiles(t.Context(), repo, FilesDiffRequest{
		A: &FileRef{Point: a}, B: &FileRef{Point: b}, Content: content, Walk: walk,
		Guest: GuestOptions{Logger: slog.New(slog.DiscardHandler)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Notes) > 0 {
		t.Errorf("notes: %q", d.Notes)
	}
	return d
}

// scribble writes into the content of a file on an image that is not mounted.
func scribble(t *testing.T, repo *store.Repository, pt *store.Point, image string, rng *rand.Rand) {
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
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, e := range all {
		if e.attr.Type() != guestfs.TypeFile {
			continue
		}
		for x, err := range fsys.(guestfs.Mapped).PhysicalExtents(t.Context(), e.inode) {
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			if x.Offset >= 1<<20 {
				break
			}
			at := x.At
			if _, err := f.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			b[0]++
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no file has content")
}

// TestDiffFiles: the blocks that differ tell of every file that does, and of no
// other, compared with what the kernel sees.
func TestDiffFiles(t *testing.T) {
	for _, kind := range []struct{ name, fsType, make string }{
		{"ext4", "ext4", "mke2fs -q -F -t ext4"},
		{"ext4 in small", "ext4", "mke2fs -q -F -t ext4 -b 1024 -I 128 -O ^metadata_csum"},
		{"ext2", "ext2", "mke2fs -q -F -t ext2"},
		{"xfs", "xfs", "mkfs.xfs -q -f"},
		{"xfs without reflinks", "xfs", "mkfs.xfs -q -f -i size=1024 -m reflink=0,finobt=0,rmapbt=0"},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(kind.make)
			guestfstest.NeedMount(t, kind.fsType, args[0])
			size := int64(48 << 20)
			if kind.fsType == "xfs" {
				size = 320 << 20
			}
			image := guestfstest.NewImage(t, size)
			guestfstest.Run(t, args[0], append(args[1:], image)...)
			dir, unmount := guestfstest.Mount(t, image, kind.fsType, "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 3, Entries: 150, MaxFile: 30_000, NoBigXattrs: true})
			unmount()
			repo, last := pointOf(t, image)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			old := kernelState(t, image, kind.fsType)
			for range diffRounds(t) {
				dir, unmount := guestfstest.Mount(t, image, kind.fsType, "")
				m := &mutator{t: t, rng: rng, root: dir}
				for range 1 + rng.IntN(60) {
					m.step()
				}
				unmount()
				next := backupAgain(t, repo, image)
				scribble(t, repo, next, image, rng)
				next = backupAgain(t, repo, image)
				now := kernelState(t, image, kind.fsType)
				fast := diffFiles(t, repo, last, next, true, false)
				if fast.Volumes[0].Method != DiffByBlocks {
					t.Fatalf("compared by %s: %s", fast.Volumes[0].Method, fast.Volumes[0].Why)
				}
				explained(t, old, now, fast.Changes)
				walk := diffFiles(t, repo, last, next, true, true)
				if a, b := comparableChanges(fast.Changes), comparableChanges(walk.Changes); !slices.Equal(a, b) {
					t.Errorf("by blocks:\n%s\nby a walk:\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
				}
				plain := diffFiles(t, repo, last, next, false, false)
				if len(plain.Changes) != len(fast.Changes) {
					t.Errorf("%d changes, %d with content compared", len(plain.Changes), len(fast.Changes))
				}
				last, old = next, now
			}
		})
	}
}

// diffRounds is how many states follow each other: LIFEBOAT_DIFF_RUNS, or a few.
func diffRounds(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv("LIFEBOAT_DIFF_RUNS"), "2"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func backupAgain(t *testing.T, repo *store.Repository, image string) *store.Point {
	t.Helper()
	pt, err := BackupDisks(t.Context(), repo, BackupDisksRequest{VM: "guest", Files: []string{image}, Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	return pt
}
