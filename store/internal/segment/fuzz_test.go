package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// exercise reads an object in every way. Nothing may panic or hang; what is
// read must be what was written; every error must be typed.
func exercise(t *testing.T, m *memory, name string, addrs []Addr, blobs []blob) {
	t.Helper()
	err := Verify(t.Context(), m, testKeys{}, name, func(d *DamageError) {
		if d.Object != name || d.Error() == "" || d.Offset < 0 || d.Length < 0 {
			t.Fatalf("%#v", d)
		}
	})
	if err != nil && !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	for s, err := range Scan(t.Context(), m, testKeys{}, name) {
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
			t.Fatal(s, err)
		}
	}
	rd := NewReader(m, testKeys{}, quiet(ReaderOptions{}))
	defer rd.Close()
	dst := make([]byte, MaxFrames*FrameSize)
	for i, a := range addrs {
		n, err := rd.ReadBlock(t.Context(), a, dst)
		switch {
		case err == nil && !bytes.Equal(dst[:n], blobs[i].plain):
			t.Fatalf("slot %d: wrong content served", i)
		case err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion):
			t.Fatalf("slot %d: %v", i, err)
		}
	}
}

// FuzzDamagedObject replaces a part of a good object, and checks that the
// damage is found.
func FuzzDamagedObject(f *testing.F) {
	blobs := goldenBlobs()
	m := newMemory()
	addrs, info := write(f, m, 77, WriterOptions{Rand: new(countingReader)}, blobs)
	good, _ := m.get(info.Name)
	end := len(good)
	f.Add(0, 8, []byte("LBSEGMNT"))
	f.Add(end-trailerSize, trailerSize, []byte(trailerMagic))
	f.Add(end, 0, bytes.Repeat([]byte(trailerMagic), 40))
	f.Add(end-trailerSize+88, 4, []byte{0xff, 0xff, 0, 0})
	f.Add(100, end, []byte{})
	f.Add(0, end, good[end-trailerSize:])
	f.Fuzz(func(t *testing.T, off, cut int, put []byte) {
		if off < 0 || off > end || cut < 0 || len(put) > 1<<20 {
			return
		}
		cut = min(cut, end-off)
		bad := slices.Replace(slices.Clone(good), off, off+cut, put...)
		m := newMemory()
		m.put(info.Name, bad)
		exercise(t, m, info.Name, addrs, blobs)
		found := bytes.Equal(bad, good)
		err := Verify(t.Context(), m, testKeys{}, info.Name, func(*DamageError) { found = true })
		if !found && err == nil {
			t.Fatalf("%d bytes at %d replaced by %d: not found", cut, off, len(put))
		}
	})
}

// FuzzSealedByUs seals what the fuzzer makes up, as a broken or hostile writer
// with our keys could: authentic trailers, tables and frames that state
// anything.
func FuzzSealedByUs(f *testing.F) {
	f.Add(uint16(4), uint32(2), uint64(88), uint64(1000), []byte{88, 0, 0, 0, 5, 0, 0, 1, 21, 0x80}, []byte("hello"))
	f.Add(uint16(1), uint32(1), uint64(200), uint64(0), []byte{88, 0, 0, 0, 0, 64, 0, 2, 30, 0}, []byte("\x28\xb5\x2f\xfd\x24\x05\x29\x00\x00hello"))
	f.Add(uint16(16), uint32(65535), uint64(1<<40), uint64(1), []byte{}, []byte{})
	f.Add(uint16(1), uint32(300), uint64(130), uint64(0), bytes.Repeat([]byte{0xff}, 100), bytes.Repeat([]byte{0}, 64))
	f.Fuzz(func(t *testing.T, frames uint16, slots uint32, framesEnd, size uint64, records, payload []byte) {
		if slots > 70000 || len(payload) > maxSealed || len(records) > 1<<16 {
			return
		}
		m := newMemory()
		name := Name(9, 0)
		m.put(name, forge(frames, slots, framesEnd, size, records, payload))
		exerciseForged(t, m, name, int(slots))
	})
}

// forge makes an object with one sealed frame at the start, one sealed page of
// each table where the layout wants it, and a sealed trailer.
func forge(frames uint16, slots uint32, framesEnd, size uint64, records, payload []byte) []byte {
	keys := testKeys{}
	lay := layout{number: 9, frames: int(frames), slots: int(slots), framesEnd: int64(framesEnd)}
	var s scratch
	b := lay.header()
	kind := Data
	if len(records) > 7 {
		kind = Kind(records[7])
	}
	raw := len(records) > 9 && records[9]&0x80 != 0
	aead := newAEAD(keys, purposeFrames, lay.frameSalt[:])
	b = aead.Seal(b, s.frameNonce(0, 0), payload, s.frameAAD(9, kind, raw))
	lay.framesEnd = int64(len(b))
	if framesEnd%3 == 0 {
		lay.framesEnd = int64(framesEnd & 0xffffffffffff)
	}
	sane := lay.frames >= 1 && lay.frames <= MaxFrames && slots > 0 && slots <= MaxSlots && lay.framesEnd < 1<<20
	footer := newAEAD(keys, purposeFooter, lay.footerSalt[:])
	if sane {
		b = append(b, make([]byte, lay.trailerOffset()+trailerSize-int64(len(b))+maxSealed)...)[:lay.trailerOffset()]
		for _, t := range []table{identities, locations} {
			off, n := lay.page(t, 0)
			page := make([]byte, n-tagSize)
			copy(page, records)
			copy(b[off:], footer.Seal(nil, s.footerNonce(t, 0), page, s.pageAAD(9, 0)))
		}
	}
	tr := lay.appendIntro(nil, trailerMagic)
	tr = binary.LittleEndian.AppendUint32(tr, slots)
	tr = binary.LittleEndian.AppendUint32(tr, uint32(size>>60))
	tr = binary.LittleEndian.AppendUint64(tr, uint64(lay.framesEnd))
	if size&1 == 0 {
		size = uint64(lay.objectSize())
	}
	tr = binary.LittleEndian.AppendUint64(tr, size)
	return append(b, footer.Seal(tr, s.footerNonce(trailerNonce, 0), nil, tr)...)
}

func exerciseForged(t *testing.T, m *memory, name string, slots int) {
	t.Helper()
	if err := Verify(t.Context(), m, testKeys{}, name, func(*DamageError) {}); err != nil {
		t.Fatal(err)
	}
	for range Scan(t.Context(), m, testKeys{}, name) {
	}
	rd := NewReader(m, testKeys{}, quiet(ReaderOptions{}))
	defer rd.Close()
	dst := make([]byte, MaxFrames*FrameSize)
	for _, slot := range []int{0, 1, 255, 256, slots - 1} {
		if slot < 0 || slot >= MaxSlots {
			continue
		}
		n, err := rd.ReadBlock(t.Context(), MakeAddr(9, slot), dst)
		if err != nil && !errors.Is(err, ErrDamaged) || n > len(dst) {
			t.Fatalf("slot %d: %d, %v", slot, n, err)
		}
	}
	_, _ = Rewrite(t.Context(), m, testKeys{}, name, func(int) bool { return true }, WriterOptions{})
}
