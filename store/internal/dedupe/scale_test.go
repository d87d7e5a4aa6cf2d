package dedupe

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"

	"lifeboat/internal/vfs"
	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

const (
	// entryLimit is what an entry may take of memory: 25 MB for 1 TB of unique
	// blocks of 64 KiB.
	entryLimit = 25e6 / (1e12 / (64 << 10))
	// fixedLimit is what a process takes that has an index open and changes it,
	// however large the index is: the program, the heap's slack, the memory to
	// build one filter.
	fixedLimit = 96 << 20

	scaleDir     = "LIFEBOAT_TEST_INDEX"
	scaleEntries = "LIFEBOAT_TEST_ENTRIES"
)

// scaleIndex makes an index of n entries in one run.
func scaleIndex(t *testing.T, n uint64) string {
	t.Helper()
	dir := t.TempDir()
	d, err := backend.NewDir(vfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	x := openIndex(t, d)
	defer x.Close()
	// Identities in order, as a merge yields them, need no sorting in memory.
	_, err = x.write(t.Context(), 1, nil, func(yield func(Entry, error) bool) {
		step := ^uint64(0)/n - 1
		for i := range n {
			e := Entry{Addr: segment.MakeAddr(i/1000+256, int(i%1000))}
			at := i * step
			for b := range 8 {
				e.ID[b], e.ID[b+8] = byte(at>>(56-8*b)), byte(i>>(8*b))
			}
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestScaleOfMemory: an index that is far larger on disk than the memory it may
// use is opened, asked, added to and merged by a process that has been given
// 25 MB for each TB of data, and something fixed; half of that is for what Go's
// limit does not count, as the program itself. With LIFEBOAT_SCALE=full two
// sizes are far enough apart to show that the rest is in proportion.
func TestScaleOfMemory(t *testing.T) {
	sizes := []uint64{1_500_000, 4_000_000} // from a full partition on
	if raceEnabled {
		sizes = []uint64{50_000, 150_000} // nothing is measured then
	}
	full := os.Getenv("LIFEBOAT_SCALE") == "full"
	if full {
		sizes = []uint64{5_000_000, 60_000_000} // 0.3 and 3.9 TB; 1.4 GB on disk
	}
	var peak []int64
	for _, n := range sizes {
		dir := scaleIndex(t, n)
		limit := int64(entryLimit*float64(n)) + fixedLimit
		cmd := exec.Command(os.Args[0], "-test.run=^TestScaleChild$", "-test.count=1")
		cmd.Env = append(os.Environ(), scaleDir+"="+dir, scaleEntries+"="+strconv.FormatUint(n, 10), fmt.Sprintf("GOMEMLIMIT=%d", limit-fixedLimit/2))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var used, held int64
		at := bytes.Index(out, []byte("peak "))
		if _, err := fmt.Sscanf(string(out[max(at, 0):]), "peak %d held %d", &used, &held); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%d entries: peak RSS %.1f MB, of it %.2f bytes an entry for lookups", n, float64(used)/1e6, float64(held)/float64(n))
		if used > limit && !raceEnabled {
			t.Errorf("%d entries: peak RSS %d, at most %d are allowed", n, used, limit)
		}
		if float64(held) > 1.2*float64(n) && !raceEnabled {
			t.Errorf("%d entries: %d bytes are held for lookups", n, held)
		}
		peak = append(peak, used)
	}
	if !full {
		return // the difference is less than what the collector leaves lying about
	}
	slope := float64(peak[1]-peak[0]) / float64(sizes[1]-sizes[0])
	t.Logf("%.2f bytes an entry: 100 TiB would take %.2f GB", slope, (float64(peak[0])+slope*float64(100<<40>>16))/1e9)
	if slope > entryLimit && !raceEnabled {
		t.Errorf("peak RSS grows by %.2f bytes an entry, more than %.2f", slope, entryLimit)
	}
}

// TestScaleChild is what the process with little memory does.
func TestScaleChild(t *testing.T) {
	dir := os.Getenv(scaleDir)
	if dir == "" {
		t.Skip("only TestScaleOfMemory starts it")
	}
	n, err := strconv.ParseUint(os.Getenv(scaleEntries), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	debug.SetGCPercent(50) // as the program does
	d, err := backend.NewDir(vfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	x := openIndex(t, d)
	held := x.Stats().Memory
	step := ^uint64(0)/n - 1
	for i := uint64(0); i < n; i += n/1000 + 1 {
		var id segment.Identity
		for b := range 8 {
			id[b], id[b+8] = byte((i*step)>>(56-8*b)), byte(i>>(8*b))
		}
		if addr, ok := x.Lookup(id); !ok || addr != segment.MakeAddr(i/1000+256, int(i%1000)) {
			t.Fatalf("entry %d: %v, %v", i, addr, ok)
		}
	}
	// What a backup adds, and a prune rewrites.
	for from := uint64(0); from < 40_000; from += 10_000 {
		publish(t, x, entries(from, from+10_000))
	}
	merge(t, x)
	if err := x.Compact(t.Context(), func(segment.Addr) bool { return true }); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(x)
	fmt.Printf("peak %d held %d\n", peakRSS(t), held)
}

// peakRSS is the most memory that this process ever had, in bytes.
func peakRSS(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte("VmHWM:"))
	var kb int64
	if _, err := fmt.Sscanf(string(data[max(at, 0):]), "VmHWM: %d kB", &kb); err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
