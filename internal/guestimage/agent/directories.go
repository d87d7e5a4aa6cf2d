package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// list: a directory holds exactly PREFIX0 … PREFIX(COUNT-1), each once, read
// in the pieces that the kernel asks for.
func list(a []string) error {
	count, err := number(a[2])
	if err != nil {
		return err
	}
	d, err := os.Open(a[0])
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	seen := make(map[string]bool, len(names))
	for _, n := range names {
		if seen[n] {
			return fmt.Errorf("%s is listed twice", n)
		}
		seen[n] = true
	}
	for i := range count {
		if n := fmt.Sprintf("%s%d", a[1], i); !seen[n] {
			return fmt.Errorf("%s is not listed", n)
		}
	}
	return equal("number of entries", int64(len(names)), count)
}

// listRemove: reading a directory while its entries are removed skips nothing
// that is still there. This is what rm -r does.
func listRemove(a []string) error {
	count, err := number(a[1])
	if err != nil {
		return err
	}
	dir := filepath.Join(a[0], "list-remove")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range count {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("entry-with-a-longer-name-%06d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	var removed int64
	for {
		names, err := d.Readdirnames(50)
		for _, n := range names {
			if err := os.Remove(filepath.Join(dir, n)); err != nil {
				return err
			}
			removed++
		}
		if err != nil {
			break // io.EOF; any other shows in the count
		}
	}
	if err := equal("entries met while removing them", removed, count); err != nil {
		return err
	}
	return want("rmdir of the emptied directory", syscall.Rmdir(dir), 0)
}

// race: two mounts of one directory create the same names exclusively, at the
// same time. Each name has exactly one winner, and the winner's content.
func race(a []string) error {
	count, err := number(a[2])
	if err != nil {
		return err
	}
	won := make([][]bool, 2)
	errs := make([]error, 2)
	var start, end sync.WaitGroup
	start.Add(1)
	for side := range 2 {
		won[side] = make([]bool, count)
		end.Go(func() {
			start.Wait()
			errs[side] = raceSide(a[side], side, won[side])
		})
	}
	start.Done()
	end.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	wins := [2]int{}
	for i := range count {
		if won[0][i] == won[1][i] {
			return fmt.Errorf("race-%d: both sides have won == %v", i, won[0][i])
		}
		side := 0
		if won[1][i] {
			side = 1
		}
		wins[side]++
		for _, dir := range a[:2] {
			if err := content(raceName(dir, int(i)), fmt.Sprint("side ", side)); err != nil {
				return err
			}
		}
	}
	fmt.Printf("wins %d %d\n", wins[0], wins[1])
	return nil
}

func raceSide(dir string, side int, won []bool) error {
	for i := range won {
		f, err := os.OpenFile(raceName(dir, i), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, syscall.EEXIST) {
			continue
		}
		if err != nil {
			return err
		}
		won[i] = true
		if _, err := fmt.Fprint(f, "side ", side); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func raceName(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("race-%d", i)) }

// asUser runs fn in a thread whose file accesses are another user's.
func asUser(id int, fn func() error) error {
	result := make(chan error)
	go func() {
		// The thread ends with the goroutine: it is never unlocked.
		lockThread()
		if err := first(
			want("setgroups", rawSyscall(syscall.SYS_SETGROUPS, 0), 0),
			want("setfsgid", rawSyscall(syscall.SYS_SETFSGID, id), 0),
			want("setfsuid", rawSyscall(syscall.SYS_SETFSUID, id), 0)); err != nil {
			result <- err
			return
		}
		result <- fn()
	}()
	return <-result
}
