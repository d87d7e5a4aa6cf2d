package lvm_test

import (
	"encoding/binary"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs/lvm"
)

// fakePV replaces the metadata text on a physical volume.
func fakePV(t testing.TB, img disk.Image, text string) *disktest.Memory {
	t.Helper()
	m := img.(*disktest.Memory).Clone()
	const mda, header = 4096, 512
	h := make([]byte, header)
	if _, err := m.ReadAt(h, mda); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	le.PutUint64(h[40:], header)
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], lvm.Checksum([]byte(text)))
	le.PutUint32(h, lvm.Checksum(h[4:]))
	for off, p := range map[int64][]byte{mda: h, mda + header: []byte(text)} {
		if _, err := m.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// emptyPV is a physical volume without metadata.
func emptyPV(t testing.TB, size int64) *disktest.Memory {
	t.Helper()
	label := make([]byte, 512)
	le := binary.LittleEndian
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	copy(label[32:], "0123456789abcdefghijklmnopqrstuv")
	le.PutUint64(label[64:], uint64(size))
	le.PutUint64(label[72:], 1<<20) // data
	le.PutUint64(label[104:], 4096) // metadata
	le.PutUint64(label[112:], 1<<20-4096)
	le.PutUint32(label[16:], lvm.Checksum(label[20:]))
	mda := make([]byte, 512)
	copy(mda[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(mda[20:], 1)
	le.PutUint64(mda[24:], 4096)
	le.PutUint64(mda[32:], 1<<20-4096)
	le.PutUint32(mda, lvm.Checksum(mda[4:]))
	m := disktest.NewMemory(size)
	for off, p := range map[int64][]byte{512: label, 4096: mda} {
		if _, err := m.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// FuzzScan: whatever the metadata say, and with right checksums at that, it
// ends, and what opens reads or fails.
func FuzzScan(f *testing.F) {
	f.Add(`vg { id="a" seqno=1 extent_size=8 physical_volumes { pv0 { id="012345-6789-abcd-efgh-ijkl-mnop-qrstuv" pe_start=8 } }
		logical_volumes { a { id="b" status=["VISIBLE"] segment_count=1 segment1 { start_extent=0 extent_count=4 type="striped" stripes=["pv0", 0] } } } }`)
	f.Add(`vg { seqno=1 extent_size=1 logical_volumes { a { status=["VISIBLE"] segment_count=1 segment1 { start_extent=0 extent_count=1
		type="striped" stripes=["a", 0] } } } } # itself`)
	f.Add(`vg { seqno=1 extent_size=1 logical_volumes { a { status=["VISIBLE"] segment_count=2 segment1 { start_extent=0 extent_count=2 type="zero" }
		segment2 { start_extent=2 extent_count=2 type="raid1" raids=["x", "b", "y", "c"] } } } }`)
	empty := emptyPV(f, 2<<20)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 512<<10 {
			return
		}
		groups, _, err := lvm.Scan(t.Context(), []disk.Image{fakePV(t, empty, text)})
		if err != nil {
			return
		}
		for _, g := range groups {
			for _, v := range g.Volumes {
				img, err := v.Open(t.Context())
				if err != nil {
					continue
				}
				buf := make([]byte, 100_000)
				for _, off := range []int64{0, img.Size() / 2, img.Size() - 1} {
					if n, err := img.ReadAt(buf, off); n < len(buf) && err == nil {
						t.Errorf("%d of %d bytes at %d and no error", n, len(buf), off)
					}
				}
				img.Close()
			}
		}
	})
}

func TestParseText(t *testing.T) {
	for _, bad := range []string{"a {", "a", "a = ", "= 1", `a = "x`, "a = [1, 2", "}", "a { b { c { d { e { f { g { h { i { j {} } } } } } } } } }"} {
		if _, err := lvm.ParseText(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, good := range []string{"", "# nothing", "a = 1 b = \"x\\\"y\" c = [1 2, \"z\"] d { e = -1 }", "a = 1.5", "a { } \x00 garbage {"} {
		if _, err := lvm.ParseText(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}
