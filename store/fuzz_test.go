package store

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/store/internal/segment"
)

func validPoint() *pointRecord {
	return &pointRecord{
		ID: "0123456789abcdef", VM: "web", Time: time.Unix(1_700_000_000, 0).UTC(), Consistency: CrashConsistent, Claim: 1, Through: 257,
		Disks:  []diskRecord{{Key: 2000, Label: "Hard disk 1", Size: 1 << 30, Levels: 2, Root: textAddr(segment.MakeAddr(257, 3))}},
		Config: []configRecord{{Name: "web.vmx", Size: 70_000, Blocks: []textAddr{textAddr(segment.MakeAddr(256, 0)), 0}}},
		Labels: map[string]string{"why": "test"},
	}
}

// FuzzPoint: whatever a point's JSON is, decoding it ends in a typed error or
// in a record that survives being written and read again.
func FuzzPoint(f *testing.F) {
	data, err := validPoint().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format":1,"id":"0123456789abcdef","void":true,"claim":3,"through":0,"time":"2026-11-21T10:00:00Z","read_bytes":0,"new_bytes":0,"stored_bytes":0}`))
	f.Add([]byte(`{"format":2,"surprise":[]}`))
	f.Add([]byte(`{"format":1,"id":"0123456789abcdef","disks":[{"size":-1}]}`))
	f.Add([]byte(`[[[[[[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := decodePoint(data, "0123456789abcdef", testBlock)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Fatalf("an error without a type: %v", err)
			}
			return
		}
		if rec.Void {
			return
		}
		for _, d := range rec.Disks {
			if err := d.tree(testBlock).Check(); err != nil {
				t.Fatalf("a point with an impossible map: %v", err)
			}
		}
		rec.public()
		again, err := rec.encode()
		if err != nil {
			t.Fatalf("cannot be written again: %v", err)
		}
		if _, err := decodePoint(again, rec.ID, testBlock); err != nil {
			t.Fatalf("cannot be read again: %v\n%s", err, again)
		}
	})
}

// FuzzClaim: likewise for claims.
func FuzzClaim(f *testing.F) {
	data, err := json.Marshal(claimRecord{Format: 1, Number: 7, Kind: claimWriter, Pending: "0123456789abcdef", Kept: 7*rangeSize + 3, LeaseMS: 1000})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format":1,"number":7,"kind":"prune","kept":0,"lease_ms":-1}`))
	f.Add([]byte(`{"format":1,"number":7,"kind":"admiral"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeClaim(data, 7)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Fatalf("an error without a type: %v", err)
			}
			return
		}
		if c.Kept != 0 && (c.Kept < c.first() || c.Kept > c.last()) || c.lease() <= 0 {
			t.Fatalf("%+v", c)
		}
	})
}

// FuzzReference: no reference crashes the parser or is taken for an object's name.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"web@latest", "web@2026-11-21T10:00", "@", "0123", "../../etc/passwd@latest", "web@2026-11-21T10:00+25:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := parseTime(s); err != nil && !errors.Is(err, ErrReference) {
			t.Fatal(err)
		}
		if validID(s) && strings.ContainsAny(s, "/.") {
			t.Fatalf("%q is taken for an ID", s)
		}
	})
}

// FuzzRepository changes an object of the golden repository in any way: nothing
// crashes, nothing is read that was not written, and a verification that finds
// nothing means that everything can be read.
func FuzzRepository(f *testing.F) {
	f.Add(uint8(0), uint16(0), []byte("x"), false)
	f.Add(uint8(3), uint16(200), []byte{0, 0, 0, 0}, true)
	f.Add(uint8(7), uint16(88), []byte{0xff}, false)
	f.Add(uint8(9), uint16(65535), []byte("more"), false)
	want := goldenDisks()
	f.Fuzz(func(t *testing.T, which uint8, off uint16, patch []byte, cut bool) {
		objects := readGolden(t)
		o := &objects[int(which)%len(objects)]
		before := string(o.content)
		at := min(int(off), len(o.content))
		after := slices.Concat(o.content[:at], patch)
		if !cut && at+len(patch) < len(before) {
			after = append(after, before[at+len(patch):]...)
		}
		o.content = after
		w := goldenWorld(t, objects)
		r, err := w.tryOpen(t)
		if err != nil {
			return
		}
		defer r.Close()
		report, err := r.Verify(t.Context(), VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if report.OK() && string(after) != before {
			t.Fatalf("%s was changed at %d, and a verification finds nothing", o.name, at)
		}
		points, err := r.Points(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range points {
			s := &sample{w: w, points: []*Point{p}}
			img, err := r.OpenDisk(t.Context(), p, 0)
			if err != nil {
				continue
			}
			for i := range int64(5) { // where there is data
				part := io.NewSectionReader(img, i*21<<20, 2*testBlock)
				exp := io.NewSectionReader(want[p.Time.Unix()-1_700_000_000], i*21<<20, 2*testBlock)
				s.readsRight(t, o.name, sized{part}, sized{exp})
			}
			img.Close()
		}
	})
}

// sized is a section as a disk.
type sized struct{ *io.SectionReader }

func (sized) Close() error { return nil }

// TestRefusesTheUnknown: what a newer version wrote is refused and not half
// understood, what is inconsistent is damage.
func TestRefusesTheUnknown(t *testing.T) {
	good, err := validPoint().encode()
	if err != nil {
		t.Fatal(err)
	}
	for change, want := range map[[2]string]error{
		{`"format":1`, `"format":2`}:                           ErrVersion,
		{`"vm":"web"`, `"vm":"web","tier":"gold"`}:             ErrVersion,
		{`"vm":"web"`, `"vm":""`}:                              ErrDamaged,
		{`"levels":2`, `"levels":3`}:                           ErrDamaged,
		{`"size":1073741824`, `"size":-1`}:                     ErrDamaged,
		{`"size":1073741824`, `"size":4611686018427387904`}:    ErrDamaged,
		{`"size":70000`, `"size":170000`}:                      ErrDamaged,
		{`"root":"101.3"`, `"root":"101"`}:                     ErrDamaged,
		{`"root":"101.3"`, `"root":"0.7"`}:                     ErrDamaged,
		{`"id":"0123456789abcdef"`, `"id":"0123456789abcdee"`}: ErrDamaged,
		{`"new_bytes":0`, `"new_bytes":0} {`}:                  ErrDamaged,
		{`"consistency":"crash"`, `"consistency":"crash"`}:     nil,
	} {
		data := strings.Replace(string(good), change[0], change[1], 1)
		if want != nil && data == string(good) {
			t.Errorf("%s is not in %s", change[0], good)
		}
		if _, err := decodePoint([]byte(data), "0123456789abcdef", testBlock); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", change[1], err, want)
		}
	}
}
