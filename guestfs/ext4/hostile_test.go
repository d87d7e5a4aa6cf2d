package ext4_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/ext4"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/internal/patch"
)

// Limits of what one image may cost, whatever is on it.
const (
	patienceWithAnImage = 10 * time.Second
	memoryForAnImage    = 200 << 20
	entriesOfAnImage    = 50_000
)

// ordeal reads everything on an image, until there are more entries than there
// can be, and fails the test if that takes too long or too much.
func ordeal(t *testing.T, what string, img disk.Image) (opened bool) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patienceWithAnImage)
	defer cancel()
	fsys, err := ext4.Open(ctx, img)
	if err == nil {
		opened = true
		budget := entriesOfAnImage
		walkEverything(ctx, fsys, fsys.Root(), &budget, 0)
	}
	if took := time.Since(began); took > patienceWithAnImage {
		t.Errorf("%s took %v", what, took)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > memoryForAnImage {
		t.Errorf("%s took %d MiB", what, grown>>20)
	}
	return opened
}

func walkEverything(ctx context.Context, fsys *ext4.FS, dir guestfs.Inode, budget *int, depth int) {
	buf := make([]byte, 1<<16)
	for e, err := range fsys.ReadDir(ctx, dir, 0) {
		if *budget--; err != nil || *budget < 0 {
			return
		}
		if e.Name == "." || e.Name == ".." || len(e.Name) > 255 {
			panic(fmt.Sprintf("an entry is called %q", e.Name))
		}
		a, err := fsys.Stat(ctx, e.Inode)
		if err != nil {
			continue
		}
		_, _ = fsys.Xattrs(ctx, e.Inode)
		if a.Type() == guestfs.TypeDir {
			if depth < 20 {
				walkEverything(ctx, fsys, e.Inode, budget, depth+1)
			}
			continue
		}
		img, err := fsys.Open(ctx, e.Inode)
		if err != nil {
			continue
		}
		_, _ = img.ReadAt(buf, 0)
		_, _ = img.ReadAt(buf, max(0, img.Size()-int64(len(buf))))
		n := 0
		for _, err := range disk.Extents(ctx, img, disk.Whole(img)) {
			if n++; err != nil || n > 1000 {
				break
			}
		}
		img.Close()
	}
}

// TestDamaged: metadata that was changed, where no checksum gives it away.
func TestDamaged(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	for name, args := range map[string][]string{
		"ext4":   {"-t", "ext4", "-b", "1024", "-O", "^metadata_csum,inline_data,ea_inode", "-I", "256"},
		"ext3":   {"-t", "ext3", "-b", "1024"},
		"dirty":  {"-t", "ext4", "-b", "1024", "-O", "^metadata_csum"},
		"2 KiB":  {"-t", "ext4", "-b", "2048", "-O", "^metadata_csum,meta_bg,^resize_inode"},
		"64 bit": {"-t", "ext4", "-b", "4096", "-O", "^metadata_csum,64bit,sparse_super2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := format(t, 16<<20, args...)
			dir, unmount := guestfstest.Mount(t, image, "ext4", "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 3, Entries: 60, MaxFile: 20_000, NoBigXattrs: name != "ext4"})
			if name == "dirty" {
				churn(t, dir, 0)
				image = guestfstest.CopyImage(t, image)
			} else {
				unmount()
			}
			data, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			hurt(t, data)
		})
	}
}

// hurt damages a volume in many ways and reads each.
func hurt(t *testing.T, data []byte) {
	t.Helper()
	const block = 1024
	var used []int
	for at := 0; at < len(data); at += block {
		if text := string(data[at : at+40]); strings.Trim(text, "\x00") != "" && !strings.Contains(text, " at 0000") { // not the content of files
			used = append(used, at)
		}
	}
	img := disk.Bytes(t.Context(), data)
	opened, runs := 0, 600
	if s := os.Getenv("LIFEBOAT_CRASH_RUNS"); s != "" {
		if n, err := strconv.Atoi(s); err == nil {
			runs = 20 * n
		}
	}
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 11))
		blocks := map[int64]patch.Block{}
		for range 1 + rng.IntN(6) {
			at := used[rng.IntN(len(used))]
			if rng.IntN(12) == 0 {
				at = block // the superblock
			}
			b, ok := blocks[int64(at/block)]
			if !ok {
				b.Data = append([]byte{}, data[at:at+block]...)
			}
			for range 1 + rng.IntN(8) {
				i := rng.IntN(block)
				switch rng.IntN(4) {
				case 0:
					b.Data[i] ^= 1 << rng.IntN(8)
				case 1:
					b.Data[i] = byte(rng.Uint32())
				case 2:
					copy(b.Data[i:], []byte{0xff, 0xff, 0xff, 0xff})
				case 3:
					copy(b.Data[i&^3:], data[used[rng.IntN(len(used))]:][:4])
				}
			}
			blocks[int64(at/block)] = b
		}
		if ordeal(t, fmt.Sprintf("seed %d", seed), patch.New(img, block, blocks)) {
			opened++
		}
	}
	if opened < runs/3 {
		t.Errorf("only %d of %d could be opened: little was tested", opened, runs)
	}
}

// The test images of e2fsprogs: two hundred ways in which an ext file system can
// be broken, collected over decades. They come with its source package.
const (
	e2fsprogsURL = "http://deb.debian.org/debian/pool/main/e/e2fsprogs/e2fsprogs_1.47.0.orig.tar.gz"
	e2fsprogsSum = "6667afde56eef0c6af26684974400e4d2288ea49e9441bf5e6229195d51a3578"
)

// e2fsprogs is the source package, kept between runs.
func e2fsprogs(t *testing.T) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(base, "lifeboat", "e2fsprogs-"+e2fsprogsSum[:12]+".tar.gz")
	if _, err := os.Stat(name); err == nil {
		return name
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e2fsprogsURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Skipf("the source of e2fsprogs cannot be fetched: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Skipf("the source of e2fsprogs cannot be fetched: %s", resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	sum := sha256.Sum256(b)
	if err != nil || hex.EncodeToString(sum[:]) != e2fsprogsSum {
		t.Fatalf("the source of e2fsprogs: %s, %d bytes with the checksum %x, %v", resp.Status, len(b), sum, err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name+".new", b, 0o600), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestE2fsprogsImages(t *testing.T) {
	f, err := os.Open(e2fsprogs(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	images, opened := 0, 0
	for in := tar.NewReader(z); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(h.Name, "image.gz") {
			continue
		}
		packed, err := gzip.NewReader(in)
		if err != nil {
			continue // one of them is broken on purpose
		}
		data, err := io.ReadAll(io.LimitReader(packed, 256<<20))
		if err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		images++
		if ordeal(t, path.Base(path.Dir(h.Name)), disk.Bytes(t.Context(), data)) {
			opened++
		}
	}
	if images < 150 || opened < 100 {
		t.Errorf("%d images, %d opened: too few", images, opened)
	}
	t.Logf("%d images, %d opened", images, opened)
}
