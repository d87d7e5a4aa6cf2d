package appliance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/store"
)

func TestFileNameIsOneSafeElement(t *testing.T) {
	safe := regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,48}$`)
	rapid.Check(t, func(t *rapid.T) {
		vm := rapid.String().Draw(t, "vm")
		if got := fileName(vm); !safe.MatchString(got) {
			t.Fatalf("fileName(%q) = %q", vm, got)
		}
	})
	for vm, want := range map[string]string{"web-1": "web-1", "": "vm", "..": "vm", ".hidden": "_hidden", "a/b c": "a_b_c"} {
		if got := fileName(vm); got != want {
			t.Errorf("fileName(%q) = %q, want %q", vm, got, want)
		}
	}
}

func TestSessionNames(t *testing.T) {
	for _, good := range []string{"a", "web-1.monday_2", strings.Repeat("x", 64)} {
		if err := checkSessionName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-x", "a/b", "a b", "ä", strings.Repeat("x", 65), "a\n"} {
		if err := checkSessionName(bad); !errors.Is(err, ErrUsage) {
			t.Errorf("%q was taken: %v", bad, err)
		}
	}
}

// TestVMXCannotBeForged puts what would end a value or a line into a VM's name:
// whatever it is, the file has the lines that it should have and no others.
func TestVMXCannotBeForged(t *testing.T) {
	line := regexp.MustCompile(`^[A-Za-z0-9.:]+ = "[^"\x00-\x1f#]*"$`)
	rapid.Check(t, func(t *rapid.T) {
		v := vmx{name: rapid.String().Draw(t, "name"), note: rapid.String().Draw(t, "note"), memoryMB: 512, cpus: 1, disks: []string{"a.vmdk"}}
		lines := strings.Split(strings.TrimSuffix(string(v.encode()), "\n"), "\n")
		plain := strings.Count(string(vmx{name: "x", memoryMB: 512, cpus: 1, disks: []string{"a.vmdk"}}.encode()), "\n")
		if len(lines) != plain {
			t.Fatalf("%d lines, want %d:\n%s", len(lines), plain, lines)
		}
		for _, l := range lines {
			if !line.MatchString(l) {
				t.Fatalf("line %q", l)
			}
		}
	})
}

func TestSCSIPlacesSkipTheAdapter(t *testing.T) {
	seen := map[[2]int]bool{}
	for i := range maxPublishedDisks {
		bus, unit := scsiPlace(i)
		if bus < 0 || bus > 3 || unit < 0 || unit > 15 || unit == 7 || seen[[2]int{bus, unit}] {
			t.Errorf("disk %d at %d:%d", i, bus, unit)
		}
		seen[[2]int{bus, unit}] = true
	}
}

func TestFirmwareGuess(t *testing.T) {
	sector := func(change func(mbr []byte)) disk.Image {
		mbr := make([]byte, 4096)
		mbr[510], mbr[511] = 0x55, 0xAA
		change(mbr)
		return disktest.FromBytes(mbr)
	}
	for name, c := range map[string]struct {
		img  disk.Image
		want bool
	}{
		"empty":              {disktest.NewMemory(4096), false},
		"too small":          {disktest.NewMemory(100), false},
		"MBR":                {sector(func(m []byte) { m[0], m[450] = 0xEB, 0x83 }), false},
		"GPT for UEFI":       {sector(func(m []byte) { m[450] = 0xEE }), true},
		"GPT with boot code": {sector(func(m []byte) { m[0], m[450] = 0xEB, 0xEE }), false},
	} {
		got, err := bootsWithEFI(c.img)
		if err != nil || got != c.want {
			t.Errorf("%s: %v %v, want %v", name, got, err, c.want)
		}
	}
}

func TestSessionLockExcludesAndEnds(t *testing.T) {
	st := openTestState(t)
	first, err := st.lockSession("s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.lockSession("s"); !errors.Is(err, ErrBusy) {
		t.Fatalf("a second lock: %v", err)
	}
	if !st.held("s") {
		t.Error("the lock does not show")
	}
	first.release()
	second, err := st.lockSession("s")
	if err != nil {
		t.Fatal(err)
	}
	// The session is discarded under a process that is about to lock it.
	if err := os.RemoveAll(st.sessionDir("s")); err != nil {
		t.Fatal(err)
	}
	third, err := st.lockSession("s")
	if err != nil {
		t.Fatalf("a session of the same name, made anew: %v", err)
	}
	second.release()
	if !st.held("s") {
		t.Error("the lock of the new session went with the old one")
	}
	third.release()
}

func TestPlaceholderIsFoundAfterRename(t *testing.T) {
	st := openTestState(t)
	f := Folder{Name: "vm-1", Disks: []Virtual{{Flat: "vm-flat.vmdk"}}}
	dir := filepath.Join(st.Datastore(), "s", f.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, f.Disks[0].Flat)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mark, err := markOf(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Disks[0].Placeholder = mark
	if err := os.Rename(dir, filepath.Join(st.Datastore(), "s", "elsewhere")); err != nil {
		t.Fatal(err)
	}
	got, err := st.placeholder("s", f, f.Disks[0])
	if err != nil || got != filepath.Join("s", "elsewhere", "vm-flat.vmdk") {
		t.Errorf("found at %q (%v)", got, err)
	}
	if err := os.RemoveAll(filepath.Join(st.Datastore(), "s", "elsewhere")); err != nil {
		t.Fatal(err)
	}
	// ext4 gives a freed inode number to the next file.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := os.WriteFile(fmt.Sprintf("%s%d", path, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.placeholder("s", f, f.Disks[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a removed placeholder: %v", err)
	}
}

func TestIdentityLasts(t *testing.T) {
	dir := t.TempDir()
	var ids []identity
	for range 2 {
		st, err := OpenState(dir)
		if err != nil {
			t.Fatal(err)
		}
		id, err := st.identity()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if ids[0] != ids[1] || ids[0].fsid == 0 || ids[0].handleKey == [32]byte{} {
		t.Errorf("identities %v", ids)
	}
}

func TestTimeAfterParent(t *testing.T) {
	future := time.Now().Add(time.Hour)
	if got := timeAfter(&store.Point{Time: future}); !got.After(future) {
		t.Errorf("the clock went back: a point of %s after one of %s", got, future)
	}
	if got := timeAfter(nil); time.Since(got) > time.Minute {
		t.Errorf("without a parent: %s", got)
	}
}

func TestReadChanges(t *testing.T) {
	got, err := ReadChanges(strings.NewReader("{\"disk\":1,\"offset\":512,\"length\":1024}\n\n{\"disk\":0,\"offset\":0,\"length\":0}\n"))
	if err != nil || len(got) != 1 || got[1][0] != (disk.Extent{Offset: 512, Length: 1024}) {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"{}", `{"disk":0,"offset":-1,"length":1}`, `{"disk":0,"offset":0,"length":1,"x":2}`, "[]", strings.Repeat("x", maxChangeLine+1)} {
		if _, err := ReadChanges(strings.NewReader(bad)); !errors.Is(err, ErrUsage) {
			t.Errorf("%.40q was taken: %v", bad, err)
		}
	}
}

func FuzzReadChanges(f *testing.F) {
	f.Add("{\"disk\":0,\"offset\":0,\"length\":65536}\n")
	f.Add("{\"disk\":0,\"offset\":9223372036854775807,\"length\":9223372036854775807}")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ReadChanges(strings.NewReader(text))
		if err != nil && !errors.Is(err, ErrUsage) {
			t.Fatal(err)
		}
		for _, areas := range got {
			for _, e := range areas {
				if e.Offset < 0 || e.Length <= 0 {
					t.Fatalf("area %+v", e)
				}
			}
		}
	})
}

func openTestState(t *testing.T) *State {
	t.Helper()
	st, err := OpenState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return st
}
