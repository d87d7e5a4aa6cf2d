package esxsim

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// TestWritesDuringAMove: what the guest writes while its disk is copied is in
// the copy, zeros over what was there too.
func TestWritesDuringAMove(t *testing.T) {
	t.Parallel()
	const size = 6 << 20
	s := start(t, Options{VMs: []VMSpec{{Name: "a", PowerOn: true, Disks: []DiskSpec{{Size: size}}}}})
	c := dial(t, s)
	guest := s.VM("a")
	want := bytes.Repeat([]byte{7}, size)
	if err := guest.WriteDisk(0, want, 0); err != nil {
		t.Fatal(err)
	}
	s.SlowMoves(10 * time.Millisecond)
	target := s.datastoreRef(t, "datastore2")
	task, err := machine(t, c, "a").Relocate(t.Context(), types.VirtualMachineRelocateSpec{Datastore: &target}, "")
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	n := 0
	for moving := true; moving; n++ {
		off := rng.Int64N(size - 1)
		p := bytes.Repeat([]byte{byte(rng.IntN(3))}, int(min(1+rng.Int64N(100_000), size-off)))
		if err := guest.WriteDisk(0, p, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
		s.mu.Lock()
		moving = guest.v.busy != nil
		s.mu.Unlock()
	}
	wait(t, task, nil)
	got := make([]byte, size)
	if err := guest.ReadDisk(0, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after %d writes during the move the copy differs (%v)", n, err)
	}
	if at := s.State().VMs[0].Disks[0]; at != "[datastore2] a/a.vmdk" || n < 10 {
		t.Errorf("the disk is %s after %d writes", at, n)
	}
}

func FuzzParseVMX(f *testing.F) {
	f.Add([]byte("displayName = \"a|22b\"\n# comment\nscsi0:0.fileName = \"x.vmdk\"\n"))
	f.Add([]byte("a = b"))
	f.Fuzz(func(t *testing.T, text []byte) {
		values, err := parseVMX(text)
		if err != nil {
			return
		}
		var again bytes.Buffer
		for k, v := range values {
			again.WriteString(k + " = \"" + vmxEscape(v) + "\"\n")
		}
		second, err := parseVMX(again.Bytes())
		if err != nil {
			return // a key or value that was no UTF-8 once unescaped
		}
		if len(second) > len(values) {
			t.Errorf("%d keys became %d", len(values), len(second))
		}
	})
}
