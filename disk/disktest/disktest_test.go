package disktest_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

func TestMemory(t *testing.T) {
	disktest.RunDevice(t, func(_ *testing.T, size int64) disk.Device { return disktest.NewMemory(size) })
}

func TestPlainDevice(t *testing.T) {
	disktest.RunDevice(t, func(_ *testing.T, size int64) disk.Device {
		return disktest.DeviceOnly(disktest.NewMemory(size))
	})
}

func TestHugeMemory(t *testing.T) {
	m := disktest.NewMemory(62 << 40)
	if _, err := m.WriteAt([]byte("end"), m.Size()-3); err != nil {
		t.Fatal(err)
	}
	if m.Used() != disktest.PageSize {
		t.Errorf("Used is %d after one small write", m.Used())
	}
	disktest.CheckExtents(t, m, disk.Whole(m))
}

func TestDurable(t *testing.T) {
	m := disktest.NewMemory(1 << 20)
	write := func(s string, off int64) {
		if _, err := m.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	write("kept", 0)
	write("trimmed", 8192)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	synced := m.Clone()
	write("LOST", 0)
	write("lost", 70000)
	if err := m.Zero(8192, 4096); err != nil {
		t.Fatal(err)
	}
	disktest.Equal(t, m.Durable(), synced)
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	disktest.Equal(t, m.Durable(), m)
}

func TestFaulty(t *testing.T) {
	boom := errors.New("boom")
	f := &disktest.Faulty{Device: disktest.NewMemory(1 << 20), OnWrite: disktest.FailRange(4096, 8192, boom)}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	if _, err := f.WriteAt(make([]byte, 4097), 0); err != boom {
		t.Errorf("write into the bad range: %v", err)
	}
	f.OnSync = func() error { return boom }
	if err := f.Sync(); err != boom {
		t.Errorf("Sync: %v", err)
	}
}

func TestGate(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	g := disktest.NewGate(disktest.NewMemory(1 << 20))
	g.Hold(disktest.Read)
	done := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := g.ReadAt(make([]byte, 10), 0)
			done <- err
		}()
	}
	if err := g.AwaitHeld(ctx, disktest.Read, 3); err != nil {
		t.Fatal(err)
	}
	if _, err := g.WriteAt([]byte("x"), 0); err != nil {
		t.Fatalf("a write waits behind reads: %v", err)
	}
	g.Pass(disktest.Read, 1)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(done) != 0 {
		t.Error("more than one read passed")
	}
	g.Release(disktest.Read)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestShrinking(t *testing.T) {
	s := disktest.NewShrinking(disktest.Random(1, 1<<20, 1))
	buf := make([]byte, 4096)
	s.ShrinkTo(1 << 19)
	if _, err := s.ReadAt(buf, 0); err != nil {
		t.Error(err)
	}
	if _, err := s.ReadAt(buf, 1<<19-1); !errors.Is(err, disk.ErrChanged) {
		t.Errorf("read of what is gone: %v", err)
	}
	if _, err := s.ReadAt(buf, 1<<20); err != io.EOF {
		t.Errorf("read at the end: %v", err)
	}
}
