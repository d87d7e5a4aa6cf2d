package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// rewriteGolden has TestGolden make the golden files anew, when the format changes
// on purpose (and its version with it).
const rewriteGolden = "LIFEBOAT_REWRITE_GOLDEN"

func goldenMeta() meta {
	m := meta{size: testSize, baseID: "0123456789abcdef/0"}
	for i := range m.id {
		m.id[i] = byte(i + 1)
	}
	return m
}

func goldenRecord() []byte {
	buf := make([]byte, 4*pageSize)
	for i := range buf[pageSize:] {
		buf[pageSize+i] = byte(i % 251)
	}
	m := goldenMeta()
	h := recordHeader{
		overlay: m.key(), file: 9, epoch: 0x1122334455667788, seq: 42, durable: 41, at: 7, pages: 3,
		runs: []run{{page: 5, count: 2}, {page: 100, count: 150, zero: true}, {page: 299, count: 1}},
	}
	h.seal(buf)
	return buf
}

func goldenCheckpoint() (checkpointHeader, *pageMap) {
	m := newPageMap(3*nodePages + 5*chunkPages + 77)
	m.set(0, 10, holdsData)
	m.set(63, 2, holdsZeros)
	m.set(2*chunkPages, 3*chunkPages, holdsData)
	m.set(nodePages, nodePages+chunkPages, holdsZeros)
	m.set(3*nodePages+5*chunkPages+70, 7, holdsData)
	g := goldenMeta()
	return checkpointHeader{overlay: g.key(), number: 3, file: 9, record: 42}, m
}

// TestGolden pins the format: what is written today is what was, byte for byte.
func TestGolden(t *testing.T) {
	m := goldenMeta()
	h, state := goldenCheckpoint()
	var ckpt bytes.Buffer
	if err := writeCheckpoint(&ckpt, h, state); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"meta": m.encode(), "record": goldenRecord()[:pageSize], "checkpoint": ckpt.Bytes()} {
		file := filepath.Join("testdata", name+".golden")
		if os.Getenv(rewriteGolden) != "" {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not as in %s", name, file)
		}
	}
}

func TestMetaBits(t *testing.T) {
	m := goldenMeta()
	p := m.encode()
	if got, err := parseMeta(p); err != nil || got != m {
		t.Fatalf("parseMeta: %+v, %v", got, err)
	}
	for bit := range len(p) * 8 {
		q := slices.Clone(p)
		q[bit/8] ^= 1 << (bit % 8)
		if _, err := parseMeta(q); err == nil {
			t.Fatalf("bit %d of the meta file is flipped and nobody minds", bit)
		}
	}
	newer := slices.Clone(p)
	newer[8] = 2
	binary.LittleEndian.PutUint32(newer[len(newer)-4:], checksum(newer[:len(newer)-4]))
	if _, err := parseMeta(newer); !errors.Is(err, ErrVersion) {
		t.Errorf("a later version: %v, want ErrVersion", err)
	}
}

func TestRecordBits(t *testing.T) {
	p := goldenRecord()
	for bit := 0; bit < len(p)*8; bit += 5 {
		p[bit/8] ^= 1 << (bit % 8)
		if h, ok := parseHeader(p, testPages); ok && h.size() <= len(p) && intact(p[:h.size()]) {
			t.Fatalf("bit %d of a record is flipped and nobody minds", bit)
		}
		p[bit/8] ^= 1 << (bit % 8)
	}
	if h, ok := parseHeader(p, testPages); !ok || !intact(p[:h.size()]) {
		t.Fatal("the record itself is refused")
	}
}

func TestCheckpointBits(t *testing.T) {
	h, m := goldenCheckpoint()
	var out bytes.Buffer
	if err := writeCheckpoint(&out, h, m); err != nil {
		t.Fatal(err)
	}
	p := out.Bytes()
	got, state, err := readCheckpoint(bytes.NewReader(p), m.pages)
	if err != nil || got.number != h.number || got.file != h.file || got.record != h.record {
		t.Fatalf("readCheckpoint: %+v, %v", got, err)
	}
	equalMaps(t, state, m)
	for bit := 0; bit < len(p)*8; bit += 5 {
		p[bit/8] ^= 1 << (bit % 8)
		if _, _, err := readCheckpoint(bytes.NewReader(p), m.pages); err == nil {
			t.Fatalf("bit %d of a checkpoint is flipped and nobody minds", bit)
		}
		p[bit/8] ^= 1 << (bit % 8)
	}
	for n := 0; n < len(p); n += 3 {
		if _, _, err := readCheckpoint(bytes.NewReader(p[:n]), m.pages); err == nil {
			t.Fatalf("a checkpoint cut at byte %d is taken", n)
		}
	}
}

func equalMaps(t *testing.T, a, b *pageMap) {
	t.Helper()
	if a.pages != b.pages || a.data != b.data || a.zeros != b.zeros {
		t.Fatalf("maps differ: %d/%d/%d and %d/%d/%d", a.pages, a.data, a.zeros, b.pages, b.data, b.zeros)
	}
	for page := int64(0); page < a.pages; {
		st, n := a.run(page, a.pages)
		for rest := n; rest > 0; {
			other, more := b.run(page, page+rest)
			if other != st {
				t.Fatalf("page %d is %d and %d", page, st, other)
			}
			page, rest = page+more, rest-more
		}
	}
}

// FuzzRecord: no input crashes, and what is taken is consistent.
func FuzzRecord(f *testing.F) {
	f.Add(goldenRecord())
	f.Add(make([]byte, pageSize))
	f.Add(goldenRecord()[:pageSize-1])
	f.Fuzz(func(t *testing.T, p []byte) {
		h, ok := parseHeader(p, testPages)
		if !ok {
			return
		}
		payload := int64(0)
		for _, r := range h.runs {
			if r.page < 0 || r.count <= 0 || r.page+r.count > testPages {
				t.Fatalf("run %+v on a disk of %d pages", r, testPages)
			}
			if !r.zero {
				payload += r.count
			}
		}
		if payload != int64(h.pages) || h.size() > (1+recordPages)*pageSize {
			t.Fatalf("%d payload pages for %d in the runs", h.pages, payload)
		}
		if len(p) < h.size() || !intact(p[:h.size()]) {
			return
		}
		again := slices.Clone(p[:h.size()])
		h.seal(again)
		if got, ok := parseHeader(again, testPages); !ok || !reflect.DeepEqual(got, h) {
			t.Fatalf("%+v is %+v after a round", h, got)
		}
	})
}

// FuzzCheckpoint: no input crashes or takes memory beyond its size, and what is
// taken is what would be written.
func FuzzCheckpoint(f *testing.F) {
	h, m := goldenCheckpoint()
	var out bytes.Buffer
	if err := writeCheckpoint(&out, h, m); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Add(out.Bytes()[:checkpointFixed])
	f.Add([]byte(checkpointMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		// The fuzzer cannot guess checksums.
		if n := len(p) - 4; n >= 0 {
			p = slices.Clone(p)
			binary.LittleEndian.PutUint32(p[n:], checksum(p[:n]))
		}
		h, state, err := readCheckpoint(bytes.NewReader(p), m.pages)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeCheckpoint(&again, h, state); err != nil {
			t.Fatal(err)
		}
		h2, state2, err := readCheckpoint(&again, m.pages)
		if err != nil || h2.data != h.data {
			t.Fatalf("what was read is not taken when written again: %v", err)
		}
		equalMaps(t, state, state2)
	})
}

// FuzzMeta: no input crashes.
func FuzzMeta(f *testing.F) {
	m := goldenMeta()
	f.Add(m.encode())
	f.Add([]byte(metaMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		if n := len(p) - 4; n >= 0 {
			p = slices.Clone(p)
			binary.LittleEndian.PutUint32(p[n:], checksum(p[:n]))
		}
		if m, err := parseMeta(p); err == nil && !bytes.Equal(m.encode(), p) {
			t.Fatal("what was read is written differently")
		}
	})
}

// TestPageMap holds the map against a plain array, with snapshots.
func TestPageMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Int64Range(1, 2*nodePages+chunkPages+100).Draw(t, "pages")
		m := newPageMap(pages)
		plain := make([]pageState, pages)
		type shot struct {
			m     *pageMap
			plain []pageState
		}
		shots := []shot{{m.snapshot(), slices.Clone(plain)}}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			first := rapid.Int64Range(0, pages-1).Draw(t, "first")
			if rapid.Bool().Draw(t, "aligned") {
				first = first / chunkPages * chunkPages
			}
			count := rapid.Int64Range(1, pages-first).Draw(t, "count")
			if rapid.Bool().Draw(t, "short") {
				count = min(count, 200)
			}
			st := rapid.SampledFrom([]pageState{holdsData, holdsZeros}).Draw(t, "state")
			m.set(first, count, st)
			for i := first; i < first+count; i++ {
				plain[i] = st
			}
			if rapid.IntRange(0, 2).Draw(t, "snapshot") == 0 {
				shots = append(shots, shot{m.snapshot(), slices.Clone(plain)})
			}
		}
		shots = append(shots, shot{m, plain})
		for i, s := range shots {
			checkMap(t, s.m, s.plain)
			if i > 0 {
				checkTurned(t, shots[i-1].m, s.m)
			}
		}
	})
}

func checkMap(t *rapid.T, m *pageMap, plain []pageState) {
	var data, zeros int64
	for page := int64(0); page < m.pages; {
		st, n := m.run(page, m.pages)
		if n <= 0 || st != m.get(page) {
			t.Fatalf("run at %d: %d pages of %d, get says %d", page, n, st, m.get(page))
		}
		for i := page; i < page+n; i++ {
			if plain[i] != st {
				t.Fatalf("page %d is %d, should be %d", i, st, plain[i])
			}
		}
		switch st {
		case holdsData:
			data += n
		case holdsZeros:
			zeros += n
		}
		page += n
	}
	if data != m.data || zeros != m.zeros {
		t.Fatalf("counts %d, %d; should be %d, %d", m.data, m.zeros, data, zeros)
	}
}

func checkTurned(t *rapid.T, old, now *pageMap) {
	got := map[int64]bool{}
	now.dataTurnedZero(old, func(page, count int64) bool {
		for i := page; i < page+count; i++ {
			got[i] = true
		}
		return true
	})
	for page := range now.pages {
		if want := old.get(page) == holdsData && now.get(page) == holdsZeros; want != got[page] {
			t.Fatalf("page %d: turned zero is %v, should be %v", page, got[page], want)
		}
	}
}

func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, plain := newIndex(), map[int64]position{}
		for i, page := range rapid.SliceOf(rapid.Int64Range(0, 5000)).Draw(t, "pages") {
			*x.ref(page) = position(i + 1)
			plain[page] = position(i + 1)
		}
		for page := range int64(5001) {
			if x.get(page) != plain[page] {
				t.Fatalf("page %d at %d, should be at %d", page, x.get(page), plain[page])
			}
		}
		if n := len(x.entries()); n != len(plain) || x.n != n {
			t.Fatalf("%d entries, should be %d", n, len(plain))
		}
	})
}
