package appliance

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

// processMark is how other processes tell that this one lives: a file in the
// state directory with a random name, locked for as long as the process is there.
// The kernel drops the lock however the process ends, at a reboot too, and the
// answer is the same from another container that shares the directory, where a
// process ID would mean something else. A name is never used twice.
//
// A file without a lock is a dead process's and anybody's to remove: who removes
// it holds its lock, and who has just made one looks, once it is locked, whether
// its name is still there.
type processMark struct {
	mu sync.Mutex
	f  *os.File // nil until the process has written its first intent
}

var processMarkName = regexp.MustCompile(`^[0-9a-f]{16}$`)

func (s *State) processDir() string { return filepath.Join(s.dir, "processes") }

// drop ends the mark, as the end of the process does.
func (m *processMark) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.f != nil {
		m.f.Close()
		m.f = nil
	}
}

// processName is the name of this process's mark, which it makes at first use.
func (s *State) processName() (string, error) {
	s.mark.mu.Lock()
	defer s.mark.mu.Unlock()
	if s.mark.f != nil {
		return filepath.Base(s.mark.f.Name()), nil
	}
	if err := os.MkdirAll(s.processDir(), 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	s.sweepMarks()
	for {
		var random [8]byte
		if _, err := rand.Read(random[:]); err != nil {
			return "", err
		}
		path := filepath.Join(s.processDir(), hex.EncodeToString(random[:]))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("state directory: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil && stillAt(f, path) {
			s.mark.f = f
			return filepath.Base(path), nil
		} else if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return "", fmt.Errorf("state directory: lock %s: %w", path, err)
		}
		f.Close() // swept between the two calls
	}
}

// processAlive reports whether the process with that mark is there. A mark that
// cannot be looked at counts as alive: what belongs to a living process must not
// be taken from it.
func (s *State) processAlive(name string) bool {
	if !processMarkName.MatchString(name) {
		return false
	}
	f, err := os.Open(filepath.Join(s.processDir(), name))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// sweepMarks removes the marks of the dead. What it cannot remove does no harm.
func (s *State) sweepMarks() {
	entries, err := os.ReadDir(s.processDir())
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(s.processDir(), e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.Remove(path)
		}
		f.Close()
	}
}
