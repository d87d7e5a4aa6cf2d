package overlay

import (
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

func TestConformance(t *testing.T) {
	disktest.RunDevice(t, func(t *testing.T, size int64) disk.Device {
		o, err := Open(Options{Dir: t.TempDir(), Base: disktest.NewMemory(size), BaseID: "b"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { o.Close() })
		return o
	})
}
