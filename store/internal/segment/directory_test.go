package segment

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/internal/vfs"
	"lifeboat/store/backend"
)

// TestInDirectory goes through a segment's life on real files.
func TestInDirectory(t *testing.T) {
	root := t.TempDir()
	dir, err := backend.NewDir(vfs.OS(), root)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	blobs := make([]blob, 40)
	for i := range blobs {
		blobs[i] = mixed(r, Data, 4*FrameSize)
	}
	addrs, info := write(t, dir, 300, WriterOptions{}, blobs)
	rd := newTestReader(t, dir, ReaderOptions{})
	for i := range blobs {
		if !readsRight(t, rd, addrs[i], blobs[i]) {
			t.Fatal("damage in a fresh object")
		}
	}
	if w, err := NewWriter(t.Context(), dir, testKeys{}, 300, WriterOptions{}); err == nil {
		defer w.Abort()
		if _, err = w.Commit(t.Context()); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second writer of a number: %v", err)
		}
	}

	next, err := Rewrite(t.Context(), dir, testKeys{}, info.Name, func(s int) bool { return s%2 == 0 }, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Remove(t.Context(), info.Name); err != nil {
		t.Fatal(err)
	}
	if d := verify(t, dir, next.Name); d != nil {
		t.Fatal(d[0])
	}
	fresh := newTestReader(t, dir, ReaderOptions{})
	for i := range blobs {
		if readsRight(t, fresh, addrs[i], blobs[i]) != (i%2 == 0) {
			t.Errorf("slot %d after compaction", i)
		}
	}

	if err := os.Truncate(filepath.Join(root, next.Name), 1000); err != nil {
		t.Fatal(err)
	}
	if d := verify(t, dir, next.Name); len(d) == 0 {
		t.Error("a file cut short was not noticed")
	}
	// The reader that has its tables in memory must notice too.
	lost := 0
	for i := 0; i < len(blobs); i += 2 {
		if !readsRight(t, fresh, addrs[i], blobs[i]) {
			lost++
		}
	}
	if lost == 0 {
		t.Error("a file cut short under a reader was not noticed")
	}
}
