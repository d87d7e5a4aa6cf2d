package crashfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"
	"syscall"
	"testing"

	"lifeboat/internal/vfs"
)

func TestStop(t *testing.T) {
	run := func(f *FS) error {
		file, err := f.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer file.Close()
		if _, err := file.WriteAt([]byte("x"), 0); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		if err := f.Rename("f", "g"); err != nil {
			return err
		}
		return f.SyncDir("/")
	}
	whole := New(1, Options{})
	must(t, run(whole))
	if whole.Points() != 5 || whole.Syncs() != 2 {
		t.Fatalf("%d points, %d syncs", whole.Points(), whole.Syncs())
	}
	for n := range whole.Points() {
		f := New(1, Options{})
		f.StopAtPoint(n + 1)
		if err := run(f); !errors.Is(err, ErrPowerLoss) || !f.Stopped() {
			t.Errorf("point %d: %v", n+1, err)
		}
		if _, err := f.Stat("/"); !errors.Is(err, ErrPowerLoss) {
			t.Errorf("point %d: the machine still answers: %v", n+1, err)
		}
		if _, err := f.Crash(0).Stat("/"); err != nil {
			t.Error(err)
		}
	}
	f := New(1, Options{})
	f.StopAtSync(2)
	if err := run(f); !errors.Is(err, ErrPowerLoss) {
		t.Error(err)
	}
	// The last sync did nothing: not even the creation is durable.
	want(t, outcomes(f, func(f *FS) string {
		_, a := content(t, f, "f")
		_, b := content(t, f, "g")
		return fmt.Sprint(a, b)
	}), "false false", "true false", "false true")
}

func TestOnSync(t *testing.T) {
	f := New(1, Options{})
	file := create(t, f, "f", fill('a', 10))
	boom := errors.New("boom")
	var seen []int
	f.OnSync(func(n int) error {
		seen = append(seen, n)
		if n == 2 {
			return boom
		}
		return nil
	})
	must(t, f.SyncDir("/"))
	if err := file.Sync(); !errors.Is(err, boom) {
		t.Error(err)
	}
	must(t, file.Sync())
	if !slices.Equal(seen, []int{1, 2, 3}) {
		t.Error(seen)
	}
}

// After a failed sync the kernel takes the pages for clean: a later sync that
// succeeds has written nothing of them.
func TestFailedSyncIsNotMadeGood(t *testing.T) {
	first := func(f *FS) string {
		data, _ := content(t, f, "f")
		return string(data[:1])
	}
	f := New(1, Options{})
	file := create(t, f, "f", fill('a', 10))
	must(t, file.Sync(), f.SyncDir("/"))
	write(t, file, fill('b', 10), 0)
	remove := f.Fail(Rule{Op: OpSync, Path: "f", Err: syscall.EIO})
	if err := file.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	remove()
	must(t, file.Sync())
	want(t, outcomes(f, first), "a", "b")
	write(t, file, fill('c', 10), 0) // written anew, it is as good as ever
	must(t, file.Sync())
	want(t, outcomes(f, first), "c")
}

func TestRules(t *testing.T) {
	f := New(1, Options{})
	must(t, f.MkdirAll("d", 0o700))
	file := create(t, f, "d/f", nil)
	f.Fail(Rule{Op: OpWrite, Path: "/d/*", After: 1, Times: 2, Err: syscall.EIO})
	for i, want := range []error{nil, syscall.EIO, syscall.EIO, nil} {
		if _, err := file.WriteAt([]byte("x"), 0); !errors.Is(err, want) {
			t.Errorf("write %d: %v, want %v", i, err, want)
		}
	}
	f.Fail(Rule{Op: OpRead, Err: syscall.EIO})
	if _, err := file.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if file.(vfs.NoWaitReader).ReadAtNoWait(make([]byte, 1), 0) {
		t.Error("a read that must fail was answered")
	}
}

func TestCapacity(t *testing.T) {
	f := New(1, Options{Capacity: 4 * pageSize})
	file := create(t, f, "f", fill('a', 3*pageSize))
	n, err := file.WriteAt(fill('b', 3*pageSize), 2*pageSize)
	if n != 2*pageSize || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	write(t, file, fill('c', 4*pageSize), 0) // needs no more room
	if err := file.Allocate(4*pageSize, 1); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if free, err := f.Free("/"); free != 0 || err != nil {
		t.Errorf("free %d, %v", free, err)
	}
	must(t, file.PunchHole(0, pageSize), file.Sync())
	must(t, file.Allocate(4*pageSize, pageSize))
	must(t, f.Remove("f"))
	if f.Used() != 4*pageSize {
		t.Errorf("an open file's space was given back: used %d", f.Used())
	}
	must(t, file.Close())
	if f.Used() != 0 {
		t.Errorf("used %d", f.Used())
	}
	g := create(t, f, "g", fill('a', 4*pageSize))
	must(t, g.Truncate(0), g.Sync(), g.Close())
	if f.Used() != 0 {
		t.Errorf("used %d after Truncate", f.Used())
	}
	must(t, f.Rename("g", "h"))
	if f.Used() != 0 {
		t.Errorf("used %d after Rename", f.Used())
	}
	f.SetCapacity(0)
	must(t, create(t, f, "big", fill('x', 100*pageSize)).Close())
}

func TestRenameKeepsSpace(t *testing.T) {
	f := New(1, Options{})
	must(t, create(t, f, "a", fill('a', pageSize)).Close(), create(t, f, "b", fill('b', 2*pageSize)).Close())
	must(t, f.Rename("a", "b"))
	if f.Used() != pageSize {
		t.Errorf("used %d, want %d", f.Used(), pageSize)
	}
}

func TestConcurrentUse(t *testing.T) {
	f := New(1, Options{})
	must(t, f.MkdirAll("d", 0o700))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			name := path.Join("d", fmt.Sprint(i))
			file := create(t, f, name, fill(byte(i), 1000))
			for range 50 {
				write(t, file, fill(byte(i), 100), 500)
				file.(vfs.NoWaitReader).ReadAtNoWait(make([]byte, 10), 0)
				must(t, file.Sync(), f.SyncDir("d"), f.Rename(name, name+"x"), f.Rename(name+"x", name))
				f.Crash(uint64(i))
			}
			must(t, file.Close())
		})
	}
	wg.Wait()
}
