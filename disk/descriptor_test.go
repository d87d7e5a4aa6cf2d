package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"lifeboat/disk"
)

// TestDescriptor pins the text that ESXi gets to see.
func TestDescriptor(t *testing.T) {
	d := disk.NewDescriptor(disk.DescriptorSpec{Size: 16 << 30, File: "web 1-flat.vmdk", CID: 0xabc, UUID: "60 00 C2 91"})
	got, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=00000abc
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 33554432 VMFS "web 1-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "2088"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 91"
ddb.virtualHWVersion = "13"
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

// TestDescriptorOfPublish: QEMU opens the descriptor of a published disk.
func TestDescriptorOfPublish(t *testing.T) {
	dir := t.TempDir()
	for _, kind := range []string{disk.CreateVMFS, disk.CreateMonolithicFlat} {
		text, err := disk.NewDescriptor(disk.DescriptorSpec{Size: 3 << 20, File: "vm-flat.vmdk", CreateType: kind}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, "vm.vmdk"), text)
		writeFile(t, filepath.Join(dir, "vm-flat.vmdk"), make([]byte, 3<<20))
		if out := qemu(t, dir, "qemu-img", "info", "vm.vmdk"); !strings.Contains(out, "virtual size: 3 MiB") || !strings.Contains(out, kind) {
			t.Error(out)
		}
		sameAsQEMU(t, filepath.Join(dir, "vm.vmdk"))
	}
}

// TestDescriptorRoundTrip: what can be encoded is parsed back the same.
func TestDescriptorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ -!#-~äß✓]{1,20}`)
		key := rapid.StringMatching(`[a-zA-Z][a-zA-Z0-9._-]{0,10}`)
		d := &disk.Descriptor{
			Encoding:       rapid.SampledFrom([]string{"UTF-8", "windows-1252"}).Draw(t, "encoding"),
			CID:            rapid.Uint32().Draw(t, "cid"),
			ParentCID:      rapid.Uint32().Draw(t, "parent"),
			CreateType:     text.Draw(t, "type"),
			ParentFileName: rapid.OneOf(rapid.Just(""), text).Draw(t, "hint"),
			DDB:            rapid.MapOf(key, text).Draw(t, "ddb"),
			Extents: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) disk.DescriptorExtent {
				e := disk.DescriptorExtent{
					Access:  rapid.SampledFrom([]string{"RW", "RDONLY", "NOACCESS"}).Draw(t, "access"),
					Sectors: rapid.Int64Range(1, 1<<40).Draw(t, "sectors"),
					Type:    rapid.SampledFrom([]string{"FLAT", "VMFS", "SPARSE", "ZERO"}).Draw(t, "type"),
				}
				if e.Type != disk.ExtentZero {
					e.File = text.Draw(t, "file")
				}
				if e.Type == disk.ExtentFlat {
					e.Offset = rapid.Int64Range(0, 1<<40).Draw(t, "offset")
				}
				return e
			}), 1, 5).Draw(t, "extents"),
		}
		encoded, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := disk.ParseDescriptor(encoded)
		if err != nil {
			t.Fatalf("%v\n%s", err, encoded)
		}
		if diff := cmp.Diff(d, back); diff != "" {
			t.Fatalf("%s\n%s", diff, encoded)
		}
	})
}

// TestDescriptorRefusesToEncode: names that would break out of their quotes.
func TestDescriptorRefusesToEncode(t *testing.T) {
	for _, name := range []string{`a"b`, "a\nRW 1 FLAT \"/etc/passwd\" 0", "a\x00b", "a\xffb", "\t"} {
		text, err := disk.NewDescriptor(disk.DescriptorSpec{Size: 512, File: name}).Encode()
		if err == nil {
			t.Errorf("%q was encoded:\n%s", name, text)
		}
	}
	d := disk.NewDescriptor(disk.DescriptorSpec{Size: 512, File: "x"})
	d.DDB["a = b\nc"] = "d"
	if _, err := d.Encode(); err == nil {
		t.Error("a key with a line break was encoded")
	}
	if _, err := (&disk.Descriptor{Extents: []disk.DescriptorExtent{{Type: "FLAT"}}}).Encode(); err == nil {
		t.Error("an empty extent was encoded")
	}
}

const title = "# Disk DescriptorFile\n"

// TestParseDescriptor covers what other programs write.
func TestParseDescriptor(t *testing.T) {
	text := "\r\n#  comment\r\n" + strings.ToUpper(title) + "version = 1\r\nCID=FfFfFfFe\r\nparentCID=ffffffff\r\n" +
		"isNativeSnapshot=\"no\"\r\ncreateType=\"twoGbMaxExtentFlat\"\r\n\r\nRW 100 FLAT \"a b-f001.vmdk\" 7\r\nRDONLY  200  flat  \"f002\"\r\nRW 5 ZERO\r\n" +
		"DDB.toolsVersion = \"1234\"\r\nddb.comment = \"a=b\"\r\n\x00\x00\x00junk"
	d, err := disk.ParseDescriptor([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := &disk.Descriptor{
		CID: 0xfffffffe, ParentCID: disk.NoParent, CreateType: "twoGbMaxExtentFlat",
		DDB: map[string]string{"toolsVersion": "1234", "comment": "a=b"},
		Extents: []disk.DescriptorExtent{
			{Access: "RW", Sectors: 100, Type: "FLAT", File: "a b-f001.vmdk", Offset: 7},
			{Access: "RDONLY", Sectors: 200, Type: "FLAT", File: "f002"},
			{Access: "RW", Sectors: 5, Type: "ZERO"},
		},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Error(diff)
	}
	if d.Size() != 305*512 {
		t.Errorf("Size is %d", d.Size())
	}
}

func TestParseDescriptorErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                           "title",
		"createType=\"vmfs\"\n" + title:              "title",
		title:                                        "no extents",
		title + "version=9\n":                        "line 2",
		title + "CID=xyz\n":                          "content ID",
		title + "parentCID=123456789\n":              "content ID",
		title + "what is this\n":                     "neither a setting nor an extent",
		title + "RW 0 FLAT \"a\" 0\n":                "sectors",
		title + "RW -5 FLAT \"a\" 0\n":               "sectors",
		title + "RW 99999999999999999 ZERO\n":        "sectors",
		title + "RW 99999999999999999999 ZERO":       "sectors",
		title + "RW 5 FLAT \"a\" -1\n":               "at sector",
		title + "RW 5 FLAT a 0\n":                    "quotation marks",
		title + "RW 5 FLAT \"a\n":                    "closing quotation mark",
		title + "RW 5 FLAT\n":                        "without a file",
		title + strings.Repeat("RW 1 ZERO\n", 32769): "more than 32768 extents",
		title + strings.Repeat("RW 9007199254740992 ZERO\n", 2): "sectors",
		title + strings.Repeat("#", 4<<20):                      "bytes",
	} {
		_, err := disk.ParseDescriptor([]byte(text))
		var fe *disk.FormatError
		if !errors.As(err, &fe) || !errors.Is(err, disk.ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(title + "CID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 10 VMFS \"a-flat.vmdk\"\nddb.x = \"y\"\n"))
	f.Add([]byte(title + "RW 10 FLAT \"a\" 5\nRW 3 ZERO\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := disk.ParseDescriptor(text)
		if err != nil {
			return
		}
		if d.Size() <= 0 {
			t.Fatalf("a disk of %d bytes", d.Size())
		}
		encoded, err := d.Encode()
		if err != nil {
			return // not everything that is read can be written
		}
		if _, err := disk.ParseDescriptor(encoded); err != nil {
			t.Fatalf("%v\n%s", err, encoded)
		}
		// What it names must not be found outside the folder.
		name := filepath.Join(t.TempDir(), "d.vmdk")
		if err := os.WriteFile(name, encoded, 0o600); err != nil {
			t.Fatal(err)
		}
		readAll(t, name)
	})
}
