package appliance

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/store/overlay"
)

func newLiveDisk(t interface{ Fatal(...any) }, dir string, base []byte) *liveDisk {
	o, err := overlay.Open(overlay.Options{FS: vfs.OS(), Dir: dir, Base: disktest.FromBytes(bytes.Clone(base)), BaseID: "b"})
	if err != nil {
		t.Fatal(err)
	}
	return &liveDisk{Overlay: o}
}

func readAll(t interface{ Fatal(...any) }, img disk.Image) []byte {
	data := make([]byte, img.Size())
	if err := readFull(img, data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}

// TestCutStaysAsItWas writes, discards and reads in any order around a cut: the
// disk is what was written, the cut is what there was when it was taken, and what
// it calls a hole reads as zeros.
func TestCutStaysAsItWas(t *testing.T) {
	const size = 5*cutBlock + 3*512
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		now := make([]byte, size)
		for i := range now[:2*cutBlock] {
			now[i] = byte(rng.Uint32())
		}
		d := newLiveDisk(rt, t.TempDir(), now)
		defer d.Close()
		change := func() {
			for range rapid.IntRange(0, 6).Draw(rt, "writes") {
				off := rng.Int64N(size - 1)
				n := 1 + rng.Int64N(min(size-off, 2*cutBlock))
				if rng.IntN(3) == 0 {
					clear(now[off : off+n])
					if err := d.Zero(off, n); err != nil {
						rt.Fatal(err)
					}
					continue
				}
				p := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(n))
				copy(now[off:], p)
				if done, err := d.TryWriteAt(p, off); err != nil {
					rt.Fatal(err)
				} else if !done {
					if _, err := d.WriteAt(p, off); err != nil {
						rt.Fatal(err)
					}
				}
			}
		}
		change()
		then := bytes.Clone(now)
		cuts, end, err := takeCut([]*liveDisk{d}, t.TempDir())
		if err != nil {
			rt.Fatal(err)
		}
		defer end()
		change()
		if !bytes.Equal(readAll(rt, cuts[0]), then) {
			rt.Fatal("the cut changed")
		}
		change()
		if !bytes.Equal(readAll(rt, cuts[0]), then) || !bytes.Equal(readAll(rt, d), now) {
			rt.Fatal("the cut or the disk is not what it should be")
		}
		for e, err := range cuts[0].Extents(context.Background(), disk.Whole(cuts[0])) {
			if err != nil {
				rt.Fatal(err)
			}
			if e.Hole && bytes.Count(then[e.Offset:e.End()], []byte{0}) != int(e.Length) {
				rt.Fatalf("%+v is a hole and has data", e)
			}
		}
	})
}

// TestCutIsOfOneMoment has a writer that always writes disk a before disk b, each
// time a higher number, all over the disks: whatever moment the cut is of, b is
// never ahead of a, and no disk ahead of itself.
func TestCutIsOfOneMoment(t *testing.T) {
	const blocks, size = 8, 8 * cutBlock
	disks := []*liveDisk{newLiveDisk(t, t.TempDir(), make([]byte, size)), newLiveDisk(t, t.TempDir(), make([]byte, size))}
	stop, wrote := make(chan struct{}), make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		page := make([]byte, 4096)
		for n := 1; ; n++ {
			for _, d := range disks {
				for i := range page {
					page[i] = byte(n % 251)
				}
				if _, err := d.WriteAt(page, int64(n%blocks)*cutBlock+4096); err != nil {
					t.Error(err)
					return
				}
			}
			if n == 2*blocks {
				close(wrote)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	<-wrote
	for range 20 {
		cuts, end, err := takeCut(disks, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		a, b := newest(t, cuts[0]), newest(t, cuts[1])
		if d := (a - b + 251) % 251; d > 1 {
			t.Fatalf("disk a ends with write %d, disk b with %d (mod 251)", a, b)
		}
		end()
	}
	close(stop)
	writing.Wait()
	for _, d := range disks {
		d.Close()
	}
}

// newest is the number that was written last, modulo 251: the one whose successor
// is not there.
func newest(t *testing.T, img disk.Image) int {
	have := map[int]bool{}
	for b := range img.Size() / cutBlock {
		var page [4096]byte
		if err := readFull(img, page[:], b*cutBlock+4096); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(page[:], page[:1]) != len(page) {
			t.Fatal("half a write is in the cut")
		}
		have[int(page[0])] = true
	}
	for n := range have {
		if !have[(n+1)%251] {
			return n
		}
	}
	t.Fatal("no newest write")
	return 0
}

// TestLostCutDoesNotHurtTheGuest takes the cut's room away.
func TestLostCutDoesNotHurtTheGuest(t *testing.T) {
	d := newLiveDisk(t, t.TempDir(), bytes.Repeat([]byte{7}, 2*cutBlock))
	defer d.Close()
	cuts, end, err := takeCut([]*liveDisk{d}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	cuts[0].file.Close()
	if _, err := d.WriteAt([]byte("guest"), 10); err != nil {
		t.Fatalf("the guest's write failed for the cut: %v", err)
	}
	if _, err := cuts[0].ReadAt(make([]byte, 8), 10); err == nil {
		t.Error("a cut that lost something is still read")
	}
}
