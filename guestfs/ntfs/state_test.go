package ntfs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

// fresh is a volume that mkfs.ntfs made: clusters of 4 KiB, the MFT at 4.
func fresh(t testing.TB) []byte {
	t.Helper()
	guestfstest.NeedMount(t, "", "mkfs.ntfs")
	b, err := os.ReadFile(format(t, 8<<20))
	must(t, err)
	return b
}

// change changes a record of the MFT.
func change(t testing.TB, b []byte, number int, do func(record []byte)) {
	t.Helper()
	at := int(binary.LittleEndian.Uint64(b[48:]))*4096 + number*1024
	must(t, ntfs.Unfix(b[at:at+1024]))
	do(b[at : at+1024])
	ntfs.Fix(b[at : at+1024])
}

// attribute finds the value of a resident attribute in a record.
func attribute(t testing.TB, record []byte, kind uint32) []byte {
	t.Helper()
	le := binary.LittleEndian
	for at := int(le.Uint16(record[20:])); le.Uint32(record[at:]) != 0xffffffff; at += int(le.Uint32(record[at+4:])) {
		if le.Uint32(record[at:]) == kind {
			return record[at+int(le.Uint16(record[at+20:])):][:le.Uint32(record[at+16:])]
		}
	}
	t.Fatalf("no attribute %#x", kind)
	return nil
}

// TestStates: what is damaged is said, and where there is a copy, it is used.
func TestStates(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(b []byte)
		state  guestfs.State
		note   string
	}{
		"clean":       {func([]byte) {}, guestfs.Clean, ""},
		"boot sector": {func(b []byte) { clear(b[:512]) }, guestfs.Damaged, "boot sector"},
		"first record": {func(b []byte) {
			clear(b[binary.LittleEndian.Uint64(b[48:])*4096:][:100])
		}, guestfs.Damaged, "first record"},
		"dirty flag": {func(b []byte) {
			change(t, b, 3, func(r []byte) { attribute(t, r, 0x70)[10] |= 1 })
		}, guestfs.Damaged, "chkdsk"},
	} {
		t.Run(name, func(t *testing.T) {
			b := fresh(t)
			if name == "boot sector" {
				copy(b[len(b)-512:], b[:512])
			}
			c.damage(b)
			fsys, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), b))
			must(t, err)
			if info := fsys.Info(); info.State != c.state || !strings.Contains(info.Note, c.note) {
				t.Errorf("%+v", info)
			}
		})
	}
}

// TestNotNTFS: what is no such volume says so.
func TestNotNTFS(t *testing.T) {
	for _, size := range []int64{0, 1000, 2048, 1 << 20} {
		if _, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), make([]byte, size))); !errors.Is(err, guestfs.ErrNoFS) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// linkPoint is a reparse point of a link.
func linkPoint(tag uint32, substitute, display string, relative bool) []byte {
	le := binary.LittleEndian
	encode := func(s string) (b []byte) {
		for _, u := range utf16.Encode([]rune(s)) {
			b = le.AppendUint16(b, u)
		}
		return b
	}
	s, d := encode(substitute), encode(display)
	var b []byte
	for _, n := range []int{len(d), len(s), 0, len(d)} { // the display name comes first
		b = le.AppendUint16(b, uint16(n))
	}
	if tag == 0xa000000c {
		flags := uint32(0)
		if relative {
			flags = 1
		}
		b = le.AppendUint32(b, flags)
	}
	b = append(append(b, d...), s...)
	return append(le.AppendUint32(le.AppendUint32(nil, tag), uint32(len(b))), b...)
}

// TestReparse: links of Windows, and files whose content is elsewhere.
func TestReparse(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	const junction, symlink = 0xa0000003, 0xa000000c
	image := format(t, 8<<20)
	dir, unmount := mount(t, image, "")
	links := map[string]struct {
		point []byte
		want  string
	}{
		"junction": {linkPoint(junction, `\??\C:\Users\Öffentlich`, `C:\Users\Öffentlich`, false), `C:\Users\Öffentlich`},
		"volume":   {linkPoint(junction, `\??\Volume{2a9dc9d6-0000-0000-0000-100000000000}\`, "", false), `\\?\Volume{2a9dc9d6-0000-0000-0000-100000000000}\`},
		"share":    {linkPoint(symlink, `\??\UNC\server\share\x`, `\\server\share\x`, false), `\\server\share\x`},
		"relative": {linkPoint(symlink, `..\some\file`, `..\some\file`, true), `..\some\file`},
	}
	for name, l := range links {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		must(t, unix.Setxattr(filepath.Join(dir, name), "system.ntfs_reparse_data", l.point, 0))
	}
	tags := map[string]uint32{"deduplicated": 0x80000013, "cloud": 0x9000101a, "app": 0x8000001b}
	for name, tag := range tags {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("a placeholder"), 0o644))
		point := binary.LittleEndian.AppendUint32(nil, tag)
		must(t, unix.Setxattr(filepath.Join(dir, name), "system.ntfs_reparse_data", append(point, 4, 0, 0, 0, 1, 2, 3, 4), 0))
	}
	attrib := make([]byte, 4)
	binary.LittleEndian.PutUint32(attrib, 0x1020) // archive, offline
	must(t, unix.Setxattr(filepath.Join(dir, "cloud"), "system.ntfs_attrib", attrib, 0))
	unmount()
	fsys := open(t, image)
	for name, l := range links {
		inode := find(t, fsys, name)
		a, err := fsys.Stat(t.Context(), inode)
		must(t, err)
		got, err := guestfs.ReadLink(t.Context(), fsys, inode)
		if err != nil || got != l.want || a.Type() != guestfs.TypeSymlink || a.Size != int64(len(l.want)) {
			t.Errorf("%s: %q, %v, %+v", name, got, err, a)
		}
	}
	for name := range tags {
		inode := find(t, fsys, name)
		a, err := fsys.Stat(t.Context(), inode)
		if err != nil || a.Flags&guestfs.Reparse == 0 {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		img, err := fsys.Open(t.Context(), inode)
		if name == "app" {
			if got := string(content(t, img, err)); got != "a placeholder" {
				t.Errorf("%s: %q", name, got)
			}
		} else if !errors.Is(err, guestfs.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLive: a copy of a mounted volume is what ntfs-3g makes of that copy.
func TestLive(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	image := format(t, 48<<20)
	dir, _ := mount(t, image, "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 2, Entries: 60, MaxFile: 50_000, Plain: true})
	for round := range 2 {
		sub := filepath.Join(dir, fmt.Sprintf("round %d", round))
		must(t, os.Mkdir(sub, 0o755))
		for i := range 100 {
			name := filepath.Join(sub, fmt.Sprintf("new %d", i))
			must(t, os.WriteFile(name, make([]byte, i*100), 0o600))
			switch i % 3 {
			case 0:
				must(t, os.Remove(name))
			case 1:
				must(t, os.Rename(name, name+" renamed"))
			}
		}
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() { // a copy that is torn in every way must not do harm
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					name := filepath.Join(sub, fmt.Sprint("torn ", i%50))
					os.WriteFile(name, make([]byte, i%5000), 0o600)
					os.Rename(name, name+" renamed")
				}
			}
		}()
		torn, err := os.ReadFile(image)
		close(stop)
		<-stopped
		must(t, err)
		survey(t.Context(), disk.Bytes(t.Context(), torn))
		copied := guestfstest.CopyImage(t, image)
		peerDir, unmount := mount(t, copied, "ro")
		if n := guestfstest.Compare(t, open(t, copied), peerDir, peer); n < 60 {
			t.Errorf("only %d entries were compared", n)
		}
		unmount()
	}
}
