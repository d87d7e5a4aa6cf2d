package vddk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

// change is what a delta has for one grain.
type change struct {
	zero bool
	data []byte
}

// cowdFile makes a VMFSSPARSE delta of a disk of size bytes: grains of 512
// bytes, in an order of their own.
func cowdFile(rng *rand.Rand, size int64, changes map[int64]change) []byte {
	const perTable = 4096
	tables := (size/512 + perTable - 1) / perTable
	le := binary.LittleEndian
	dirSectors := (tables*4 + 511) / 512
	f := make([]byte, (4+dirSectors)*512)
	copy(f, "COWD")
	for i, v := range []uint32{1, 3, uint32(size / 512), 1, 4, uint32(tables)} {
		le.PutUint32(f[4+4*i:], v)
	}
	place := map[int64]uint32{} // of tables
	for _, n := range shuffled(rng, changes) {
		index := n / perTable
		if place[index] == 0 {
			place[index] = uint32(len(f) / 512)
			le.PutUint32(f[4*512+4*index:], place[index])
			f = append(f, make([]byte, perTable*4)...)
		}
		le.PutUint32(f[int64(place[index])*512+n%perTable*4:], uint32(len(f)/512))
		f = append(f, changes[n].data...)
	}
	le.PutUint32(f[28:], uint32(len(f)/512)) // the next free sector
	return f
}

// seSparseFile makes a SESPARSE delta: grains of 4 KiB.
func seSparseFile(rng *rand.Rand, size int64, changes map[int64]change) []byte {
	const perTable, grain = 4096, 4096
	tables := (size + perTable*grain - 1) / (perTable * grain)
	dirSectors := (tables*8 + 511) / 512
	dirAt := int64(2)
	tablesAt := dirAt + dirSectors
	grainsAt := tablesAt + tables*64
	f := make([]byte, grainsAt*512)
	le := binary.LittleEndian
	for i, v := range map[int]int64{
		0: 0xcafebabe, 1: 2<<32 | 1, 2: size / 512, 3: 8, 4: 64,
		10: 1, 11: 1, 16: dirAt, 17: dirSectors, 18: tablesAt, 19: tables * 64, 24: grainsAt,
	} {
		le.PutUint64(f[8*i:], uint64(v))
	}
	le.PutUint64(f[512:], 0xcafecafe)
	next := map[int64]int64{}
	for _, n := range shuffled(rng, changes) {
		index := n / perTable
		if _, ok := next[index]; !ok {
			next[index] = int64(len(next))
			le.PutUint64(f[dirAt*512+8*index:], 1<<60|uint64(next[index]))
		}
		entry := uint64(2) << 60
		if c := changes[n]; !c.zero {
			number := uint64(int64(len(f))-grainsAt*512) / grain
			entry = 3<<60 | number&0xfff<<48 | number>>12
			f = append(f, c.data...)
		}
		le.PutUint64(f[tablesAt*512+next[index]*perTable*8+n%perTable*8:], entry)
	}
	return f
}

func shuffled(rng *rand.Rand, changes map[int64]change) []int64 {
	var order []int64
	for n := range changes {
		order = append(order, n)
	}
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// chain makes a base and deltas of the kinds in store, and returns the request
// for the last and what it reads as.
func chain(t *testing.T, rng *rand.Rand, store *datastore, size int64, kinds ...string) (vddk.Request, []byte) {
	t.Helper()
	base := disktest.Random(rng.Uint64(), size, 0.5)
	content := base.Bytes()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(store.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	describe := func(n int, kind, file, parent string) {
		text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\ncreateType=\"%s\"\n", n+1, n, strings.ToLower(kind))
		if n == 0 {
			text = strings.Replace(text, "parentCID=00000000", "parentCID=ffffffff", 1)
		} else {
			text += fmt.Sprintf("parentFileNameHint=%q\n", parent)
			text = strings.NewReplacer(`"vmfssparse"`, `"vmfsSparse"`, `"sesparse"`, `"seSparse"`).Replace(text)
		}
		write(fmt.Sprintf("vm-%d.vmdk", n), []byte(text+fmt.Sprintf("RW %d %s %q\nddb.adapterType = \"lsilogic\"\n", size/512, kind, file)))
	}
	write("vm-flat.vmdk", content)
	describe(0, "VMFS", "vm-flat.vmdk", "")
	content = bytes.Clone(content)
	for i, kind := range kinds {
		grain, encode := int64(512), cowdFile
		if kind == "SESPARSE" {
			grain, encode = 4096, seSparseFile
		}
		changes := map[int64]change{}
		for range 40 {
			first := rng.Int64N((size + grain - 1) / grain)
			for n := first; n < min(first+rng.Int64N(30), size/grain); n++ {
				c := change{zero: kind == "SESPARSE" && rng.IntN(4) == 0, data: make([]byte, grain)}
				if !c.zero {
					for k := range c.data {
						c.data[k] = byte(rng.Uint32())
					}
				}
				changes[n] = c
				copy(content[n*grain:], c.data)
			}
		}
		file := fmt.Sprintf("vm-%d-delta.vmdk", i+1)
		write(file, encode(rng, size, changes))
		describe(i+1, kind, file, fmt.Sprintf("vm-%d.vmdk", i))
	}
	top := fmt.Sprintf("[ds] vm/vm-%d.vmdk", len(kinds))
	return vddk.Request{Key: diskKey, Size: size, Path: top, Files: store}, content
}

// TestChains: a VM with a person's snapshots is read through /folder, and QEMU
// reads the same from the same files.
func TestChains(t *testing.T) {
	t.Parallel()
	_, noQEMU := exec.LookPath("qemu-img")
	for seed, kinds := range [][]string{
		{"VMFSSPARSE"}, {"SESPARSE"}, {"VMFSSPARSE", "VMFSSPARSE"}, {"SESPARSE", "SESPARSE", "SESPARSE"}, {"VMFSSPARSE", "SESPARSE"},
	} {
		t.Run(strings.Join(kinds, "-"), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 77))
			store := &datastore{dir: t.TempDir()}
			size := int64(5<<20 + 4096*3) // three tables of VMFSSPARSE
			if kinds[0] == "SESPARSE" {
				size += 15 << 20 // two
			}
			req, content := chain(t, rng, store, size, kinds...)
			src := open(t, req, vddk.Options{})
			disktest.Equal(t, src, disktest.FromBytes(content))
			for range 50 {
				n := 1 + rng.Int64N(200_000)
				off := rng.Int64N(size - n)
				p := make([]byte, n)
				if _, err := src.ReadAt(p, off); err != nil || !bytes.Equal(p, content[off:off+n]) {
					t.Fatalf("%d bytes at %d: %v, equal %v", n, off, err, bytes.Equal(p, content[off:off+n]))
				}
			}
			if noQEMU != nil {
				t.Skip("qemu-img is not installed (tools/provision.sh test)")
			}
			raw := filepath.Join(t.TempDir(), "raw")
			out, err := exec.Command("qemu-img", "convert", "-f", "vmdk", "-O", "raw", filepath.Join(store.dir, filepath.Base(req.Path)), raw).CombinedOutput()
			if err != nil {
				t.Fatalf("qemu-img: %v\n%s", err, out)
			}
			if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, content) {
				t.Errorf("QEMU reads something else (%v)", err)
			}
		})
	}
}

// TestHostileChains: deltas that are damaged anywhere give errors or their
// content, and never more.
func TestHostileChains(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 78))
	const size = 1 << 20
	for _, kind := range []string{"VMFSSPARSE", "SESPARSE"} {
		store := &datastore{dir: t.TempDir()}
		req, _ := chain(t, rng, store, size, kind)
		file := filepath.Join(store.dir, "vm-1-delta.vmdk")
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			bad := bytes.Clone(good)
			for range 1 + rng.IntN(3) {
				at := rng.IntN(min(len(bad), 1024+40<<10))
				if rng.IntN(2) == 0 {
					at = rng.IntN(256)
				}
				bad[at] ^= byte(1 + rng.IntN(255))
			}
			if rng.IntN(8) == 0 {
				bad = bad[:rng.IntN(len(bad))]
			}
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			src, err := vddk.Open(t.Context(), req, vddk.Options{})
			if err != nil {
				continue
			}
			if _, err := src.ReadAt(make([]byte, size), 0); err != nil && !errors.Is(err, disk.ErrFormat) {
				t.Errorf("%s %d: %v", kind, i, err)
			}
			src.Close()
		}
	}
}

func TestChainsThatAreNone(t *testing.T) {
	for name, c := range map[string]struct{ file, from, to string }{
		"another parent":   {"vm-1.vmdk", "CID=00000002", "CID=00000009"},
		"parent of itself": {"vm-1.vmdk", "vm-0.vmdk", "vm-2.vmdk"},
		"parent elsewhere": {"vm-1.vmdk", "vm-0.vmdk", "../vm-0.vmdk"},
		"no parent":        {"vm-1.vmdk", "vm-0.vmdk", "vm-7.vmdk"},
		"another size":     {"vm-0.vmdk", "RW 6144", "RW 6143"},
	} {
		t.Run(name, func(t *testing.T) {
			store := &datastore{dir: t.TempDir()}
			req, _ := chain(t, rand.New(rand.NewPCG(1, 1)), store, 3<<20, "SESPARSE", "SESPARSE")
			path := filepath.Join(store.dir, c.file)
			text, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(text), c.from) {
				t.Fatalf("%v\n%s", err, text)
			}
			if err := os.WriteFile(path, []byte(strings.Replace(string(text), c.from, c.to, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			if src, err := vddk.Open(t.Context(), req, vddk.Options{}); err == nil {
				src.Close()
				t.Error("it opens")
			}
		})
	}
}

// TestLinkedClone: the parent is named by its full name on the host.
func TestLinkedClone(t *testing.T) {
	store := &datastore{dir: t.TempDir()}
	req, content := chain(t, rand.New(rand.NewPCG(2, 1)), store, 3<<20, "VMFSSPARSE")
	path := filepath.Join(store.dir, "vm-1.vmdk")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	linked := strings.Replace(string(text), `"vm-0.vmdk"`, `"/vmfs/volumes/5f3c-11ab/template/vm-0.vmdk"`, 1)
	if err := os.WriteFile(path, []byte(linked), 0o600); err != nil {
		t.Fatal(err)
	}
	disktest.Equal(t, open(t, req, vddk.Options{}), disktest.FromBytes(content))
}
