package appliance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Session is one recovery, from publish to keep or discard, as the state
// database remembers it. It survives every restart of Lifeboat.
//
// Order of things, so that a crash at any moment leaves something that the next
// start can go on from: the record is written (Ready false) → folder, disks and
// overlays are made → the record is written again (Ready true) → the export
// starts. A session found not ready was never seen by any client and is made
// anew. Discarding goes the other way: Ready false → files → record.
type Session struct {
	Name    string    `json:"session"`
	Created time.Time `json:"created"`
	RepoURL string    `json:"repository"`
	RepoID  string    `json:"repository_id"`
	Folders []Folder  `json:"folders"`
	// Hold is the ID of its hold on the points in the repository.
	Hold string `json:"hold,omitempty"`
	// Ready: everything on disk is complete and clients may have seen it.
	Ready bool `json:"ready"`
	// Named: a person chose the name, so the session stays when its export
	// ends, even if nothing was written to it.
	Named bool `json:"named"`
	// Kept are the restore points that `session keep` made of it.
	Kept []string `json:"kept,omitempty"`
	// Served: the appliance's server is to export it whenever it runs.
	Served bool `json:"served,omitempty"`
	// Recovery is what there is of it on a vSphere; nil for a plain publish.
	Recovery *Recovery `json:"recovery,omitempty"`
}

// Folder is one published restore point in a session.
type Folder struct {
	Point string    `json:"point"`
	VM    string    `json:"vm"`
	Time  time.Time `json:"time"`  // of the point
	Name  string    `json:"name"`  // folder name below the session's
	VMX   string    `json:"vmx"`   // file name in the folder
	Disks []Virtual `json:"disks"` // in the point's order
}

// Virtual is one virtual disk of a published point.
type Virtual struct {
	Key        int    `json:"key"`
	Label      string `json:"label"`
	Size       int64  `json:"size"`       // bytes
	Descriptor string `json:"descriptor"` // file name in the folder
	Flat       string `json:"flat"`       // file name in the folder: the disk itself
	Overlay    string `json:"overlay"`    // directory name below the session's state
	// Placeholder is the file that stands for the disk, which clients may rename.
	Placeholder fileMark `json:"placeholder"`
}

var sessionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkSessionName refuses names that would not be one safe path element on
// every host, in a datastore path and in a URL.
func checkSessionName(name string) error {
	if !sessionName.MatchString(name) {
		return fmt.Errorf("%w: session name %q: use 1 to 64 letters, digits, dots, hyphens or underscores, starting with a letter or digit", ErrUsage, name)
	}
	return nil
}

// fileName turns a VM's name into one that every guest, host and datastore
// browser takes as one path element. The name itself stays in the .vmx.
func fileName(vm string) string {
	var b strings.Builder
	for _, r := range vm {
		switch {
		case r == '-' || r == '_' || r == '.' && b.Len() > 0:
			b.WriteRune(r)
		case r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z':
			b.WriteRune(r)
		default:
			b.WriteByte('_')
		}
		if b.Len() >= 48 {
			break
		}
	}
	if strings.Trim(b.String(), "_.") == "" {
		return "vm"
	}
	return b.String()
}

// sessionLock is the right to publish, keep or discard a session. The kernel
// drops it when the process ends, however it ends.
type sessionLock struct{ f *os.File }

// lockSession takes the session's lock, or fails with ErrBusy and names the
// process that has it.
func (s *State) lockSession(name string) (*sessionLock, error) {
	path := filepath.Join(s.sessionDir(name), "lock")
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("session %q: %w", name, err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // discarded between the two calls
		}
		if err != nil {
			return nil, fmt.Errorf("session %q: %w", name, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer f.Close()
			return nil, lockError(name, f, err)
		}
		if !stillAt(f, path) {
			f.Close() // its session was discarded before we had the lock
			continue
		}
		l := &sessionLock{f}
		if err := l.sign(); err != nil {
			f.Close()
			return nil, fmt.Errorf("session %q: lock: %w", name, err)
		}
		return l, nil
	}
}

// stillAt reports whether path still names the open file f.
func stillAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}

func lockError(name string, f *os.File, err error) error {
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("session %q: lock: %w", name, err)
	}
	holder := make([]byte, 20)
	n, _ := f.ReadAt(holder, 0)
	return fmt.Errorf("session %q is %w by process %s: end that publish first, or choose another --session", name, ErrBusy, strings.TrimSpace(string(holder[:n])))
}

// sign leaves our process ID in the lock file, for the message that another
// process gives.
func (l *sessionLock) sign() error {
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(l.f, "%d\n", os.Getpid())
	return err
}

func (l *sessionLock) release() { unlock(l.f) }

// unlock gives a file lock up. Closing the file alone would not do it at once: a
// process that is just being started has a copy of the descriptor until it is
// itself.
func unlock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	f.Close()
}

// held reports whether some process has the session's lock now.
func (s *State) held(name string) bool {
	f, err := os.Open(filepath.Join(s.sessionDir(name), "lock"))
	if err != nil {
		return false
	}
	defer unlock(f)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return errors.Is(err, unix.EWOULDBLOCK)
	}
	return false
}
