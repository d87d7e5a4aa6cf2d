package worker_test

import (
	"bytes"
	"os"
	"testing"

	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/worker"
)

// TestVolume: a volume as a whole is what is on the disk, whether a reader knows
// it or not.
func TestVolume(t *testing.T) {
	guestfstest.NeedMount(t, "", "sfdisk", "mke2fs")
	file := guestfstest.NewImage(t, 32<<20)
	guestfstest.Run(t, "bash", "-c", "printf 'start=2048,size=16384\nstart=20480,size=16384\n' | sfdisk -q "+file)
	guestfstest.Run(t, "mke2fs", "-q", "-F", "-E", "offset=1048576", file, "8M")
	s := start(t, worker.Options{}, image(t, file))
	all, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.Report().Volumes); n != 2 {
		t.Fatalf("%d volumes: %+v", n, s.Report().Volumes)
	}
	for i, at := range []int{2048 * 512, 20480 * 512} {
		img, err := s.Volume(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, img.Size())
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, all[at:at+8<<20]) {
			t.Errorf("volume %d: %d bytes, %v, or others", i, len(got), err)
		}
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Volume(t.Context(), 2); err == nil {
		t.Error("a volume that there is not was opened")
	}
}
