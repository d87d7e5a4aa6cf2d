package partition_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs/partition"
)

// sfdisk makes a table on a fresh disk and returns the disk, and what sfdisk
// itself reads from it.
func sfdisk(t *testing.T, size int64, script string) (string, partition.Table) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "--no-reread", "--no-tell-kernel", "--quiet", file)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	out, err := exec.Command("sfdisk", "--json", file).Output()
	if err != nil {
		t.Fatalf("sfdisk --json: %v", err)
	}
	var answer struct {
		Table struct {
			Label      string
			ID         string
			SectorSize int64
			Partitions []struct {
				Node           string
				Start, Size    int64
				Type           string
				UUID, Name     string
				Bootable       bool
				AttributesText string `json:"attrs"`
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatal(err)
	}
	unit := max(answer.Table.SectorSize, 512)
	want := partition.Table{Scheme: partition.GPT, ID: answer.Table.ID, SectorSize: unit}
	if answer.Table.Label == "dos" {
		want.Scheme, want.ID = partition.MBR, strings.TrimPrefix(want.ID, "0x")
	}
	for _, p := range answer.Table.Partitions {
		var number int
		if _, err := fmt.Sscan(strings.TrimPrefix(p.Node, file), &number); err != nil {
			t.Fatalf("partition %q: %v", p.Node, err)
		}
		q := partition.Partition{Number: number, Start: p.Start * unit, Size: p.Size * unit, Type: p.Type, ID: p.UUID, Label: p.Name, Active: p.Bootable}
		if want.Scheme == partition.MBR {
			if p.Type == "5" || p.Type == "f" || p.Type == "85" {
				continue // the extended partition is no place for a volume
			}
			q.Type = fmt.Sprintf("%02s", p.Type)
			q.ID = fmt.Sprintf("%s-%02x", want.ID, number)
		}
		want.Partitions = append(want.Partitions, q)
	}
	return file, want
}

func read(t *testing.T, file string) *partition.Table {
	t.Helper()
	img, err := disk.Open(t.Context(), file, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	table, err := partition.Read(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

const megabyte = 1 << 20

func TestAgainstSfdisk(t *testing.T) {
	for name, test := range map[string]struct {
		script string
	}{
		"gpt":           {script: "label: gpt\nsize=10MiB, type=uefi, name=\"EFI System\"\nsize=20MiB, name=\"Größe 🛟\"\nsize=5MiB, attrs=\"LegacyBIOSBootable\"\n\n"},
		"gpt with gaps": {script: "label: gpt\n3: start=40MiB, size=1MiB\n7: start=10MiB, size=2MiB\n"},
		"gpt empty":     {script: "label: gpt\n"},
		"mbr":           {script: "label: dos\nlabel-id: 0xdeadbeef\nsize=10MiB, type=7, bootable\nsize=3MiB, type=82\n"},
		"mbr logical": {script: "label: dos\n1: size=5MiB\n2: size=40MiB, type=f\n5: size=2MiB, type=83\n" +
			"6: size=3MiB, type=8e\n7: size=4MiB, type=7\n8: size=1MiB\n9: size=1MiB\n"},
	} {
		t.Run(name, func(t *testing.T) {
			file, want := sfdisk(t, 64*megabyte, test.script)
			got := read(t, file)
			for i := range got.Partitions {
				if got.Scheme == partition.GPT {
					got.Partitions[i].Active = false // sfdisk tells it among the attributes
				}
			}
			if diff := cmp.Diff(want, *got); diff != "" {
				t.Errorf("-sfdisk +ours:\n%s", diff)
			}
		})
	}
}

// TestSectorsOf4096: the same table, moved to where a disk with 4 KiB sectors
// has it.
func TestSectorsOf4096(t *testing.T) {
	file, want := sfdisk(t, 64*megabyte, "label: gpt\nsize=2MiB, name=\"one\"\nsize=3MiB\n")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := disktest.NewMemory(8 * 64 * megabyte)
	mustWrite(t, m, data[:512], 0)
	header := data[512:1024]
	mustWrite(t, m, header, 4096)
	mustWrite(t, m, data[1024:1024+128*128], 2*4096)
	got, err := partition.Read(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want.Partitions {
		want.Partitions[i].Start *= 8
		want.Partitions[i].Size *= 8
	}
	if diff := cmp.Diff(want.Partitions, got.Partitions); diff != "" || got.SectorSize != 4096 {
		t.Errorf("sectors of %d bytes; -want +got:\n%s", got.SectorSize, diff)
	}
}

// TestBackupGPT: the primary is overwritten, and the disk has grown since.
func TestBackupGPT(t *testing.T) {
	file, want := sfdisk(t, 64*megabyte, "label: gpt\nsize=10MiB, name=\"one\"\nsize=20MiB, name=\"two\"\n")
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entry := make([]byte, 1)
	if _, err := f.ReadAt(entry, 1024+56); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{entry[0] ^ 1}, 1024+56); err != nil { // a letter of the first name
		t.Fatal(err)
	}
	for _, grown := range []int64{0, 100 * megabyte} {
		if err := f.Truncate(64*megabyte + grown); err != nil {
			t.Fatal(err)
		}
		got := read(t, file)
		if diff := cmp.Diff(want.Partitions, got.Partitions); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if len(got.Notes) == 0 {
			t.Error("nothing says that the backup was used")
		}
	}
}

// TestNoTable: what is no partition table is not taken for one.
func TestNoTable(t *testing.T) {
	for name, format := range map[string]func(t *testing.T, file string){
		"zeros": func(*testing.T, string) {},
		"ext4": func(t *testing.T, file string) {
			tool(t, "mke2fs", "-q", "-F", "-t", "ext4", file)
		},
		"ntfs": func(t *testing.T, file string) { tool(t, "mkfs.ntfs", "-q", "-F", "-f", file) },
		"fat":  func(t *testing.T, file string) { tool(t, "mkfs.vfat", file) },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.raw")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, 64*megabyte); err != nil {
				t.Fatal(err)
			}
			format(t, file)
			if got := read(t, file); got.Scheme != partition.None || len(got.Partitions) != 0 {
				t.Errorf("got %+v", got)
			}
		})
	}
	for _, size := range []int64{0, 1, 511, 512, 1024} {
		table, err := partition.Read(t.Context(), disktest.NewMemory(size))
		if err != nil || table.Scheme != partition.None {
			t.Errorf("a disk of %d bytes: %+v, %v", size, table, err)
		}
	}
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// TestLogicalLoop: a chain of logical partitions that bites its tail ends.
func TestLogicalLoop(t *testing.T) {
	file, _ := sfdisk(t, 64*megabyte, "label: dos\n1: size=40MiB, type=f\n5: size=2MiB\n6: size=2MiB\n")
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The second entry of the second boot record: back to the first.
	second := int64(4 * megabyte)
	link := []byte{0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	if _, err := f.WriteAt(link, second+446+16); err != nil {
		t.Fatal(err)
	}
	table := read(t, file)
	if len(table.Partitions) != 2 || len(table.Notes) == 0 {
		t.Errorf("got %+v", table)
	}
}

// FuzzRead: whatever stands in the first and last sectors, it ends, and what it
// finds lies on the disk.
func FuzzRead(f *testing.F) {
	f.Add([]byte("EFI PART"), []byte{0xee})
	f.Add(make([]byte, 4096), make([]byte, 512))
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		const size = 1 << 20
		m := disktest.NewMemory(size)
		mustWrite(t, m, head[:min(len(head), 64<<10)], 0)
		mustWrite(t, m, []byte{0x55, 0xaa}, 510)
		tail = tail[:min(len(tail), 64<<10)]
		mustWrite(t, m, tail, size-int64(len(tail)))
		table, err := partition.Read(t.Context(), m)
		if err != nil {
			return
		}
		for _, p := range table.Partitions {
			if p.Start < 0 || p.Size <= 0 || p.Start+p.Size > size {
				t.Errorf("%+v lies outside the disk", p)
			}
		}
	})
}

func mustWrite(t *testing.T, m *disktest.Memory, p []byte, off int64) {
	t.Helper()
	if _, err := m.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}
