package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"
)

// sample is a segment of small blobs with every kind of frame.
func sample(t testing.TB, n int) (m *memory, addrs []Addr, blobs []blob, info Info) {
	r := rand.New(rand.NewPCG(11, 12))
	blobs = make([]blob, n)
	for i := range blobs {
		size := 1 + r.IntN(60)
		if i < 3 {
			size = FrameSize + 100*i // a few with two frames
		}
		blobs[i] = mixed(r, Kind(1+i%2), size)
	}
	m = newMemory()
	addrs, info = write(t, m, 0xabc, WriterOptions{FramesPerSlot: 2}, blobs)
	return m, addrs, blobs, info
}

// covers says whether some damage reported includes byte i of the object.
func covers(all []*DamageError, i int64) bool {
	return slices.ContainsFunc(all, func(d *DamageError) bool { return d.Offset <= i && i < d.Offset+d.Length })
}

// TestEveryFlippedBitIsFound flips a bit of each byte of an object in turn:
// Verify names a range that holds it, and nothing wrong is ever served.
func TestEveryFlippedBitIsFound(t *testing.T) {
	for _, slots := range []int{8, 600} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			m, addrs, blobs, info := sample(t, slots)
			good, _ := m.get(info.Name)
			for i := 0; i < len(good); i += stride(t, good, i, slots) {
				bad := slices.Clone(good)
				bad[i] ^= 1 << (i % 8)
				m.put(info.Name, bad)
				if all := verify(t, m, info.Name); !covers(all, int64(i)) {
					t.Fatalf("byte %d of %d: reported %v", i, len(good), all)
				}
				rd := NewReader(m, testKeys{}, quiet(ReaderOptions{}))
				lost := 0
				for s := 0; s < slots; s += 1 + slots/50 {
					if !readsRight(t, rd, addrs[s], blobs[s]) {
						lost++
					}
				}
				_ = rd.Close()
				checkContained(t, &info, good, int64(i), lost, slots)
			}
		})
	}
}

// stride is how far to go from byte i: every byte of a small object, fewer of
// frames and of a large object. Primes hit all parts in all phases.
func stride(t *testing.T, good []byte, i, slots int) int {
	lay, err := parseTrailer(testKeys{}, good[len(good)-trailerSize:])
	switch {
	case err != nil:
		t.Fatal(err)
	case slots > 100:
		return 401
	case i >= headerSize && int64(i) < lay.framesEnd-131:
		return 131
	}
	return 1
}

// checkContained: a flip costs one blob where it hits a frame, nothing in
// header and trailers, and a page's slots in a location page.
func checkContained(t *testing.T, info *Info, good []byte, at int64, lost, slots int) {
	t.Helper()
	lay, err := parseTrailer(testKeys{}, good[len(good)-trailerSize:])
	if err != nil {
		t.Fatal(err)
	}
	limit := 0
	switch {
	case at >= headerSize && at < lay.framesEnd:
		limit = 1
	case at >= lay.tableOffset(locations) && at < lay.trailerOffset():
		limit = pageSlots/(1+slots/50) + 1
	}
	if lost > limit {
		t.Fatalf("byte %d of %s: %d of the blobs read were lost, at most %d should be", at, info.Name, lost, limit)
	}
}

func TestCutAndGrownObjects(t *testing.T) {
	m, addrs, blobs, info := sample(t, 300)
	good, _ := m.get(info.Name)
	r := rand.New(rand.NewPCG(1, 9))
	sizes := []int{0, 1, headerSize, trailerSize, headerSize + trailerSize, len(good) - 1, len(good) - trailerSize, len(good) + 1, len(good) + 4096}
	for range 60 {
		sizes = append(sizes, r.IntN(2*len(good)))
	}
	for _, n := range sizes {
		bad := append(slices.Clone(good), make([]byte, len(good)+5000)...)[:n]
		if n > len(good) {
			copy(bad[len(good):], good) // grown by something that looks like a segment
		}
		m.put(info.Name, bad)
		if n != len(good) && len(verify(t, m, info.Name)) == 0 {
			t.Fatalf("%d bytes instead of %d: nothing reported", n, len(good))
		}
		rd := NewReader(m, testKeys{}, quiet(ReaderOptions{}))
		for i := 0; i < len(blobs); i += 7 {
			if !readsRight(t, rd, addrs[i], blobs[i]) && n > len(good) {
				t.Fatalf("%d bytes were added and hide slot %d", n-len(good), i)
			}
		}
		_ = rd.Close()
	}
}

func TestDamagedPageHidesItsSlotsOnly(t *testing.T) {
	m, addrs, blobs, info := sample(t, 600)
	b, _ := m.get(info.Name)
	lay, err := parseTrailer(testKeys{}, b[len(b)-trailerSize:])
	if err != nil {
		t.Fatal(err)
	}
	off, _ := lay.page(locations, 1)
	b[off+100] ^= 4
	rd := newTestReader(t, m, ReaderOptions{})
	for i := range blobs {
		if got, want := readsRight(t, rd, addrs[i], blobs[i]), i < 256 || i >= 512; got != want {
			t.Fatalf("slot %d readable: %v", i, got)
		}
	}
	seen, damaged := 0, 0
	for _, err := range Scan(t.Context(), m, testKeys{}, info.Name) {
		var d *DamageError
		if errors.As(err, &d) && d.Part == PartLocationTable && d.Page == 1 && d.Offset == off {
			damaged++
		} else if err == nil {
			seen++
		}
	}
	if seen != 600-256 || damaged != 1 {
		t.Fatalf("scan saw %d slots and %d damaged pages", seen, damaged)
	}
	all := verify(t, m, info.Name)
	if len(all) != 1 || all[0].Part != PartLocationTable || all[0].Page != 1 {
		t.Fatalf("verify reports %v", all)
	}
}

func TestSwappedObjectsAndWrongKeys(t *testing.T) {
	m := newMemory()
	a, ia := write(t, m, 1, WriterOptions{}, []blob{{Data, []byte("one")}})
	_, ib := write(t, m, 2, WriterOptions{}, []blob{{Data, []byte("two")}})
	one, _ := m.get(ia.Name)
	two, _ := m.get(ib.Name)
	m.put(ia.Name, two)
	if readsRight(t, newTestReader(t, m, ReaderOptions{}), a[0], blob{Data, []byte("one")}) {
		t.Error("another segment was taken for this one")
	}
	if all := verify(t, m, ia.Name); len(all) != 1 || all[0].Part != PartObject {
		t.Error(all)
	}
	m.put(ia.Name, one)
	if _, err := NewReader(m, testKeys{shift: 1}, ReaderOptions{}).ReadFrame(t.Context(), a[0], 0, make([]byte, 99)); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another key: %v", err)
	}
}

// TestFramesCannotChangePlaces moves sealed frames of equal length.
func TestFramesCannotChangePlaces(t *testing.T) {
	m := newMemory()
	blobs := []blob{{Data, []byte("first")}, {Data, []byte("other")}}
	addrs, info := write(t, m, 1, WriterOptions{}, blobs)
	b, _ := m.get(info.Name)
	n := 5 + tagSize
	x, y := b[headerSize:headerSize+n], b[headerSize+n:headerSize+2*n]
	tmp := slices.Clone(x)
	copy(x, y)
	copy(y, tmp)
	rd := newTestReader(t, m, ReaderOptions{})
	for i := range addrs {
		if readsRight(t, rd, addrs[i], blobs[i]) {
			t.Errorf("slot %d opened in another's place", i)
		}
	}
	if all := verify(t, m, info.Name); len(all) != 2 {
		t.Error(all)
	}
}

// TestVerifyChecksIdentity seals a blob under an identity that is not its own,
// as bad memory in a writer would.
func TestVerifyChecksIdentity(t *testing.T) {
	m := newMemory()
	w, err := NewWriter(t.Context(), m, testKeys{}, 1, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(NewPacker().Pack(Data, Identity{1}, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if all := verify(t, m, info.Name); len(all) != 1 || all[0].Part != PartFrame || all[0].Frame != -1 {
		t.Error(all)
	}
}

func TestUnknownVersionIsRefusedByName(t *testing.T) {
	m, addrs, _, info := sample(t, 3)
	b, _ := m.get(info.Name)
	for _, off := range []int{len(b) - trailerSize, bytes.Index(b, []byte(trailerMagic))} {
		binary.LittleEndian.PutUint16(b[off+8:], version+1)
	}
	_, err := newTestReader(t, m, ReaderOptions{}).ReadFrame(t.Context(), addrs[0], 0, make([]byte, FrameSize))
	if !errors.Is(err, ErrVersion) {
		t.Errorf("read: %v", err)
	}
	if err := Verify(t.Context(), m, testKeys{}, info.Name, func(*DamageError) {}); !errors.Is(err, ErrVersion) {
		t.Errorf("verify: %v", err)
	}
}

func TestMissingSegmentIsDamage(t *testing.T) {
	m := newMemory()
	_, err := newTestReader(t, m, ReaderOptions{}).ReadFrame(t.Context(), MakeAddr(9, 0), 0, nil)
	if !errors.Is(err, ErrDamaged) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if all := verify(t, m, Name(9, 0)); len(all) != 1 || all[0].Part != PartObject {
		t.Error(all)
	}
	addrs, _ := write(t, m, 9, WriterOptions{}, []blob{{Data, []byte("x")}})
	_, err = newTestReader(t, m, ReaderOptions{}).ReadFrame(t.Context(), addrs[0]+1, 0, nil)
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("slot beyond the table: %v", err)
	}
}

// TestBytesOfNoFrame: what a broken writer puts between or behind the frames,
// or cuts off them, is reported, and nothing else is.
func TestBytesOfNoFrame(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(w *Writer, slot int)
		part  Part
		at    int64
		size  int64
	}{
		"between": {func(w *Writer, slot int) {
			if slot == 1 {
				w.buf = append(w.buf, "junk"...)
			}
		}, PartGap, headerSize + 5 + tagSize, 4},
		"behind": {func(w *Writer, slot int) {
			if slot == 2 {
				w.buf = append(w.buf, "more junk"...)
			}
		}, PartGap, headerSize + 2*(5+tagSize), 9},
		"cut": {func(w *Writer, slot int) {
			if slot == 2 {
				w.buf = w.buf[:len(w.buf)-1]
			}
		}, PartLocationTable, 0, 0},
	} {
		m, pack, hash := newMemory(), NewPacker(), NewHasher(testKeys{})
		w, err := NewWriter(t.Context(), m, testKeys{}, 1, WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for slot, text := range []string{"first", "other"} {
			c.spoil(w, slot)
			if _, err := w.Append(pack.Pack(Data, hash.Identity(Data, []byte(text)), []byte(text))); err != nil {
				t.Fatal(err)
			}
		}
		c.spoil(w, 2)
		info, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all := verify(t, m, info.Name)
		if len(all) != 1 || all[0].Part != c.part || c.at != 0 && (all[0].Offset != c.at || all[0].Length != c.size) {
			t.Errorf("%s: reported %v", name, all)
		}
	}
}
