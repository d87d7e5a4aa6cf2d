package microvm_test

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/microvm"
)

const (
	raidData  = 2048 // sectors in front of the data
	raidSuper = 8    // sectors in front of the superblock: version 1.2
	raidChunk = 128  // sectors
)

// raidMember makes a superblock of Linux's software RAID (struct mdp_superblock_1,
// linux/raid/md_p.h), because there is no md driver on the machines that the tests
// run on.
func raidMember(level, number, members uint32, sectors uint64) []byte {
	b := make([]byte, 256+2*int(members))
	le := binary.LittleEndian
	le.PutUint32(b, 0xa92b4efc)
	le.PutUint32(b[4:], 1)
	copy(b[16:], "0123456789abcdef")
	copy(b[32:], "host:data")
	le.PutUint64(b[64:], 1_700_000_000)
	le.PutUint32(b[72:], level)
	le.PutUint64(b[80:], sectors)
	if level == 0 {
		le.PutUint32(b[88:], raidChunk)
	}
	le.PutUint32(b[92:], members)
	le.PutUint64(b[128:], raidData)
	le.PutUint64(b[136:], sectors)
	le.PutUint64(b[144:], raidSuper)
	le.PutUint32(b[160:], number)
	copy(b[168:], "member uuid 000")
	b[183] = byte(number)
	le.PutUint64(b[192:], 1_700_000_000)
	le.PutUint64(b[200:], 10)             // events
	le.PutUint64(b[208:], math.MaxUint64) // nothing to resync
	le.PutUint32(b[220:], members)
	for i := range members {
		le.PutUint16(b[256+2*i:], uint16(i))
	}
	var sum uint64
	for i := 0; i+4 <= len(b); i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
	return b
}

// raid spreads a volume over two members.
func raid(t *testing.T, level uint32, volume []byte) (members []string) {
	t.Helper()
	const chunk = raidChunk * 512
	var data [2][]byte
	if level == 1 {
		data = [2][]byte{volume, volume}
	} else {
		for i := 0; i < len(volume); i += chunk {
			data[i/chunk%2] = append(data[i/chunk%2], volume[i:i+chunk]...)
		}
	}
	for i, d := range data {
		member := make([]byte, raidData*512+len(d))
		copy(member[raidSuper*512:], raidMember(level, uint32(i), 2, uint64(len(d)/512)))
		copy(member[raidData*512:], d)
		path := filepath.Join(t.TempDir(), "member")
		if err := os.WriteFile(path, member, 0o600); err != nil {
			t.Fatal(err)
		}
		members = append(members, path)
	}
	return members
}

// TestRAID reads a mirror, and a stripe, whose members come in the wrong order.
func TestRAID(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	image := guestfstest.NewImage(t, 16<<20)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", image)
	dir, unmount := guestfstest.Mount(t, image, "ext4", "")
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("on an array"), 0o600); err != nil {
		t.Fatal(err)
	}
	unmount()
	volume, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	peer, _ := guestfstest.Mount(t, image, "ext4", "ro,noload")
	for name, level := range map[string]uint32{"mirror": 1, "stripe": 0} {
		t.Run(name, func(t *testing.T) {
			members := raid(t, level, volume)
			members[0], members[1] = members[1], members[0]
			fsys, err := microvm.Open(t.Context(), microvm.Volume{Disks: openImages(t, members...), Array: true}, options(t))
			if err != nil {
				t.Fatal(err)
			}
			defer fsys.Close()
			if n := guestfstest.Compare(t, fsys, peer, guestfstest.Compared{NoAtime: true}); n < 3 {
				t.Errorf("only %d entries were compared", n)
			}
			if info := fsys.Info(); info.Type != "ext4" {
				t.Errorf("info: %+v", info)
			}
		})
	}
}
