package segment

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/internal/vfs"
	"lifeboat/store/backend"
)

const benchBlock = 4 * FrameSize

// corpus is something like a disk: the files of this machine's /usr at 4 KiB
// boundaries in an order that mixes them, or made-up text where there are too
// few. It is made once.
var corpus = sync.OnceValue(func() []byte {
	const size = 128 << 20
	var names []string
	_ = filepath.WalkDir("/usr", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, path)
		}
		return nil
	})
	r := rand.New(rand.NewPCG(1, 1))
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	disk := make([]byte, 0, size+4<<20)
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && len(b) < 4<<20 {
			disk = append(disk, b...)
			disk = append(disk, make([]byte, -len(disk)&4095)...)
		}
		if len(disk) >= size {
			return disk[:size]
		}
	}
	for len(disk) < size {
		disk = fmt.Appendf(disk, "%x %d lorem ipsum\n", r.Uint64(), r.IntN(1000))
	}
	return disk[:size]
})

// cpuTime adds the processor time per operation, and what that means for bytes
// bytes per operation, to a benchmark's results: it says more than wall time on
// a machine that others use too.
func cpuTime(b *testing.B, bytes int64) func() {
	now := func() int64 {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	b.SetBytes(bytes)
	b.ReportAllocs()
	b.ResetTimer()
	start := now()
	return func() {
		ns := float64(now()-start) / float64(b.N)
		b.ReportMetric(ns, "cpu-ns/op")
		b.ReportMetric(float64(bytes)*1000/ns, "MB/cpu-s")
	}
}

func benchDir(b *testing.B) backend.Backend {
	dir, err := backend.NewDir(vfs.OS(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	return dir
}

// storeCorpus writes the corpus into segments and returns the addresses of its
// blocks and the bytes of the objects.
func storeCorpus(b *testing.B, dir backend.Backend) (addrs []Addr, stored int64) {
	w := &corpusWriter{b: b, dir: dir, hash: NewHasher(testKeys{}), pack: NewPacker()}
	for disk := corpus(); len(disk) > 0; disk = disk[benchBlock:] {
		addrs = append(addrs, w.block(disk[:benchBlock]))
	}
	w.commit()
	return addrs, w.stored
}

type corpusWriter struct {
	b      *testing.B
	dir    backend.Backend
	hash   *Hasher
	pack   *Packer
	w      *Writer
	number uint64
	stored int64
}

func (c *corpusWriter) block(plain []byte) Addr {
	if IsZero(plain) {
		return Hole
	}
	if c.w == nil {
		c.number++
		w, err := NewWriter(c.b.Context(), c.dir, testKeys{}, c.number, WriterOptions{})
		if err != nil {
			c.b.Fatal(err)
		}
		c.w = w
	}
	p := c.pack.Pack(Data, c.hash.Identity(Data, plain), plain)
	addr, err := c.w.Append(p)
	if err != nil {
		c.b.Fatal(err)
	}
	p.Release()
	if c.w.Full() {
		c.commit()
	}
	return addr
}

func (c *corpusWriter) commit() {
	if c.w == nil {
		return
	}
	info, err := c.w.Commit(c.b.Context())
	if err != nil {
		c.b.Fatal(err)
	}
	c.stored += info.Size
	c.w = nil
}

// BenchmarkReadFrame is a cold 4 KiB read: one frame from the object's file,
// whose bytes are in the page cache.
func BenchmarkReadFrame(b *testing.B) {
	dir := benchDir(b)
	addrs, _ := storeCorpus(b, dir)
	r := newTestReader(b, dir, ReaderOptions{})
	dst := make([]byte, FrameSize)
	rnd := rand.New(rand.NewPCG(1, 2))
	defer cpuTime(b, 4096)()
	for range b.N {
		addr := addrs[rnd.IntN(len(addrs))]
		if addr == Hole {
			continue
		}
		if _, err := r.ReadFrame(context.Background(), addr, rnd.IntN(4), dst); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadBlock reads whole blocks in order.
func BenchmarkReadBlock(b *testing.B) {
	dir := benchDir(b)
	addrs, _ := storeCorpus(b, dir)
	r := newTestReader(b, dir, ReaderOptions{})
	dst := make([]byte, benchBlock)
	defer cpuTime(b, benchBlock)()
	for i := range b.N {
		addr := addrs[i%len(addrs)]
		if addr == Hole {
			continue
		}
		if _, err := r.ReadBlock(context.Background(), addr, dst); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenSegment is the first read of a segment: open, trailer, keys, one
// table page, one frame.
func BenchmarkOpenSegment(b *testing.B) {
	dir := benchDir(b)
	addrs, _ := storeCorpus(b, dir)
	r := newTestReader(b, dir, ReaderOptions{TableBytes: 1})
	dst := make([]byte, FrameSize)
	defer cpuTime(b, 4096)()
	for range b.N {
		r.Forget(addrs[0].Segment())
		if _, err := r.ReadFrame(context.Background(), addrs[0], 0, dst); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIngest hashes, compresses, seals and writes. Where there is a
// qemu-img, the stored size is compared with what its zstd makes of the same
// disk: "of-qemu" is ours divided by its.
func BenchmarkIngest(b *testing.B) {
	disk := corpus()
	w := &corpusWriter{b: b, dir: benchDir(b), hash: NewHasher(testKeys{}), pack: NewPacker()}
	stop := cpuTime(b, benchBlock)
	for i := range b.N {
		at := i * benchBlock % len(disk)
		w.block(disk[at : at+benchBlock])
	}
	w.commit()
	stop()
	b.StopTimer()
	_, stored := storeCorpus(b, benchDir(b))
	b.ReportMetric(float64(len(disk))/float64(stored), "ratio")
	if size, rate := qemuConvert(b, disk); size > 0 {
		b.ReportMetric(float64(stored)/float64(size), "of-qemu")
		b.ReportMetric(rate, "qemu-MB/cpu-s")
	}
}

// qemuConvert is the size of the image that qemu-img makes, and its rate in MB
// per second of processor time.
func qemuConvert(b *testing.B, disk []byte) (size int64, rate float64) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		b.Log("no qemu-img to compare with")
		return 0, 0
	}
	raw, out := filepath.Join(b.TempDir(), "disk.raw"), filepath.Join(b.TempDir(), "disk.qcow2")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, msg)
	}
	info, err := os.Stat(out)
	if err != nil {
		b.Fatal(err)
	}
	spent := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return info.Size(), float64(len(disk)) / 1e6 / spent.Seconds()
}

// The parts of ingest, and what costs little or nothing.

func BenchmarkIdentity(b *testing.B) {
	disk, h := corpus(), NewHasher(testKeys{})
	defer cpuTime(b, benchBlock)()
	for i := range b.N {
		at := i * benchBlock % len(disk)
		h.Identity(Data, disk[at:at+benchBlock])
	}
}

func BenchmarkPackNoise(b *testing.B) {
	noise := make([]byte, benchBlock)
	r := rand.New(rand.NewPCG(3, 3))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	benchPack(b, noise)
}

func BenchmarkPackZeros(b *testing.B) { benchPack(b, make([]byte, benchBlock)) }

func BenchmarkPackText(b *testing.B) {
	benchPack(b, bytes.Repeat([]byte("All work and no play makes Jack a dull boy. "), benchBlock/44+1)[:benchBlock])
}

func benchPack(b *testing.B, plain []byte) {
	p := NewPacker()
	defer cpuTime(b, int64(len(plain)))()
	for range b.N {
		p.Pack(Data, Identity{}, plain).Release()
	}
}

func BenchmarkVerify(b *testing.B) {
	dir := benchDir(b)
	storeCorpus(b, dir)
	defer cpuTime(b, int64(len(corpus())))()
	for range b.N {
		for info, err := range dir.List(b.Context(), "segments/") {
			if err == nil {
				err = Verify(b.Context(), dir, testKeys{}, info.Name, func(d *DamageError) { b.Error(d) })
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkVerifyStructure is what a segment costs when its frames are not read.
func BenchmarkVerifyStructure(b *testing.B) {
	m := newMemory()
	rng := rand.New(rand.NewPCG(1, 2))
	blobs := make([]blob, 2000)
	for i := range blobs {
		blobs[i] = mixed(rng, Data, 4*FrameSize)
	}
	_, info := write(b, m, 9, WriterOptions{}, blobs)
	for b.Loop() {
		err := VerifyPart(b.Context(), m, testKeys{}, info.Name, VerifyOptions{Slots: func(int) bool { return false }}, func(d *DamageError) { b.Error(d) })
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Seconds())/float64(b.N)*(1e12/float64(info.Size)), "s/TB")
}
