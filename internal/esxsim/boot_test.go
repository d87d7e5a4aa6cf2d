package esxsim

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// counterDisk is a bootable disk whose boot sector prints a login prompt on the
// serial line and then counts, 18 times a second, in sector 2048.
func counterDisk(t *testing.T) string {
	t.Helper()
	code := []byte{
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, // segments and stack
		0xbe, 0x2d, 0x7c, // mov si, text
		0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, // print it
		0x66, 0xff, 0x06, 0x00, 0x80, // count: inc dword [0x8000]
		0xb8, 0x00, 0x43, 0xbe, 0x36, 0x7c, 0xb2, 0x80, 0xcd, 0x13, // int 13h, extended write
		0xf4, 0xeb, 0xee, // hlt; jmp count
		'l', 'o', 'g', 'i', 'n', ':', ' ', 0, 0,
		0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 0x00, 0x08, 0, 0, 0, 0, 0, 0, // one sector from 0:8000 to LBA 2048
	}
	image := make([]byte, 4<<20)
	copy(image, code)
	image[510], image[511] = 0x55, 0xaa
	name := filepath.Join(t.TempDir(), "counter.img")
	if err := os.WriteFile(name, image, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// counter waits until the guest has counted beyond n.
func counter(t *testing.T, vm *VM, n uint32) uint32 {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for p := make([]byte, 4); ; {
		if err := vm.ReadDisk(0, p, 2048*512); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint32(p); got > n {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest has not counted beyond %d", n)
		}
		time.Sleep(5 * time.Millisecond) // polling a guest, which has no other way to tell
	}
}

func TestBootSnapshotAndMove(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Boot: true, VMs: []VMSpec{{Name: "counter", MemoryMB: 16, Tools: true, CBT: true, Disks: []DiskSpec{{From: counterDisk(t)}}}}})
	c := dial(t, s)
	v := machine(t, c, "counter")
	task, err := v.PowerOn(t.Context())
	wait(t, task, err)
	guest := s.VM("counter")
	n := counter(t, guest, 0)
	if err := object.NewVirtualMachine(c.Client, v.Reference()).WaitForPowerState(t.Context(), types.VirtualMachinePowerStatePoweredOn); err != nil {
		t.Fatal(err)
	}
	snapshotOf(t, v, "while it runs")
	n = counter(t, guest, n)
	task, err = v.RemoveSnapshot(t.Context(), "while it runs", false, nil)
	wait(t, task, err)
	n = counter(t, guest, n)
	target := s.datastoreRef(t, "datastore2")
	s.SlowMoves(20 * time.Millisecond)
	task, err = v.Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")
	wait(t, task, err)
	counter(t, guest, n)
	if err := guest.Died(); err != nil {
		t.Errorf("the guest's disk failed: %v", err)
	}
	if m := properties(t, v); m.Guest.ToolsRunningStatus != "guestToolsRunning" {
		t.Errorf("a guest that asks for a login has the Tools %s", m.Guest.ToolsRunningStatus)
	}
	task, err = v.PowerOff(t.Context())
	wait(t, task, err)
}
