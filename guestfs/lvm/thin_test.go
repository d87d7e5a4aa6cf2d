package lvm_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs"
)

// thinText describes a pool and two volumes in it, as LVM writes it: it makes
// none without the device mapper, but takes them from a text.
const thinText = `
		pool {
			id = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 8
				type = "thin-pool"
				metadata = "pool_tmeta"
				pool = "pool_tdata"
				transaction_id = 2
				chunk_size = 128
				discards = "passdown"
				zero_new_blocks = 1
			}
		}
		thin {
			id = "BBBBBB-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 32
				type = "thin"
				thin_pool = "pool"
				transaction_id = 0
				device_id = 1
			}
		}
		snapshot {
			id = "CCCCCC-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 32
				type = "thin"
				thin_pool = "pool"
				transaction_id = 1
				device_id = 2
				origin = "thin"
			}
		}
		`

const thinChunk = 64 << 10

// thinMetadata has the tools of the thin target make its trees: of each volume,
// the chunks of the data volume by the chunk where they are.
func thinMetadata(t *testing.T, size int64, volumes ...map[int]int) []byte {
	t.Helper()
	if _, err := exec.LookPath("thin_restore"); err != nil {
		t.Fatal("thin_restore is missing: run tools/provision.sh test")
	}
	var xml strings.Builder
	fmt.Fprintf(&xml, `<superblock uuid="" time="2" transaction="2" flags="0" version="2" data_block_size="128" nr_data_blocks="128">`)
	for i, v := range volumes {
		fmt.Fprintf(&xml, `<device dev_id="%d" mapped_blocks="%d" transaction="0" creation_time="0" snap_time="%d">`, i+1, len(v), i)
		for chunk := range 512 {
			if at, ok := v[chunk]; ok {
				fmt.Fprintf(&xml, `<single_mapping origin_block="%d" data_block="%d" time="%d"/>`, chunk, at, i)
			}
		}
		xml.WriteString("</device>")
	}
	xml.WriteString("</superblock>")
	dir := t.TempDir()
	in, out := filepath.Join(dir, "xml"), filepath.Join(dir, "tmeta")
	if err := errors.Join(os.WriteFile(in, []byte(xml.String()), 0o600), os.WriteFile(out, make([]byte, size), 0o600)); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("thin_restore", "-i", in, "-o", out).CombinedOutput(); err != nil {
		t.Fatalf("thin_restore: %v\n%s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestThin(t *testing.T) {
	l := newLab(t, 1)
	l.run("vgcreate", "-s", "1M", "vg", l.loops[0])
	l.create("-l", "4", "-n", "tmeta", "vg")
	l.create("-l", "8", "-n", "tdata", "vg")
	backup := filepath.Join(l.dir, "vg.txt")
	l.run("vgcfgbackup", "-f", backup, "vg")
	text, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.NewReplacer("tmeta {", "pool_tmeta {", "tdata {", "pool_tdata {").Replace(string(text))
	edited = strings.ReplaceAll(edited, `"VISIBLE"`, `"WRITE"`)
	edited = strings.Replace(edited, "logical_volumes {", "logical_volumes {"+thinText, 1)
	if err := os.WriteFile(backup, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	l.run("vgcfgrestore", "--force", "-f", backup, "vg")

	first, second := map[int]int{0: 5, 1: 6, 2: 7, 10: 3, 11: 2, 500: 100, 511: 127}, map[int]int{0: 5, 1: 20, 400: 8}
	for i := range 250 { // more than one leaf
		if i >= 20 && i%2 == 0 {
			second[i] = 30 + i%60
		}
	}
	metadata := thinMetadata(t, 4*megabyte, first, second)
	images := l.images()
	pv := images[0].(*disktest.Memory)
	if _, err := pv.WriteAt(metadata, dataAt); err != nil {
		t.Fatal(err)
	}
	groups := scan(t, images)
	if len(groups[0].Volumes) != 2 || !groups[0].Shared {
		t.Fatalf("the volumes: %+v", groups[0].Volumes)
	}
	for name, mapping := range map[string]map[int]int{"thin": first, "snapshot": second} {
		v := volume(t, groups, name)
		img, err := v.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 32*megabyte)
		for chunk, at := range mapping {
			for off := 0; off < thinChunk; off += 4096 {
				copy(want[chunk*thinChunk+off:], pattern(0, 4*extent+at*thinChunk+off))
			}
		}
		disktest.Equal(t, img, disktest.FromBytes(want))
		holes := int64(0)
		for e, err := range disk.Extents(t.Context(), img, disk.Whole(img)) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Hole {
				holes += e.Length
			}
		}
		if want := int64(32*megabyte - len(mapping)*thinChunk); holes != want {
			t.Errorf("%s has %d bytes of holes, want %d", name, holes, want)
		}
		img.Close()
	}
	for at := range 10 {
		broken := pv.Clone()
		off := int64(dataAt + at*4000)
		b := make([]byte, 4)
		if _, err := broken.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b, make([]byte, 4)) {
			continue
		}
		b[0] ^= 0x40
		if _, err := broken.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		img, err := volume(t, scan(t, []disk.Image{broken}), "thin").Open(t.Context())
		if err == nil {
			_, err = img.ReadAt(make([]byte, img.Size()), 0)
			img.Close()
		}
		if err != nil && !errors.Is(err, guestfs.ErrCorrupt) {
			t.Errorf("damaged at %d: %v", at*4000, err)
		}
	}
	super := pv.Clone()
	if _, err := super.WriteAt([]byte{1}, dataAt+400); err != nil {
		t.Fatal(err)
	}
	if _, err := volume(t, scan(t, []disk.Image{super}), "thin").Open(t.Context()); !errors.Is(err, guestfs.ErrCorrupt) {
		t.Errorf("a damaged superblock: %v", err)
	}
}
