package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lifeboat/store"
)

// stage is a directory beside the target of an export, where its files grow
// until they are complete and durable. Then they are renamed into place; until
// then remove leaves nothing.
type stage struct {
	dir   string   // the stage
	into  string   // the directory of the target
	names []string // of the files in it, in the order in which they were finished
}

func newStage(target string) (*stage, error) {
	into, base := filepath.Split(filepath.Clean(target))
	if into == "" {
		into = "."
	}
	dir, err := os.MkdirTemp(into, "."+base+".part-*")
	if err != nil {
		return nil, err
	}
	return &stage{dir: dir, into: into}, nil
}

func (st *stage) remove() { os.RemoveAll(st.dir) }

// file makes a file and has it on disk when it returns.
func (st *stage) file(name string, write func(*os.File) error) error {
	f, err := os.OpenFile(filepath.Join(st.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	st.names = append(st.names, name)
	return f.Close()
}

// publish renames the files into place, durably.
func (st *stage) publish(force bool) error {
	for _, name := range st.names {
		target := filepath.Join(st.into, name)
		if _, err := os.Lstat(target); err == nil && !force {
			return fmt.Errorf("%w: %s exists already; remove it or use --force", ErrUsage, target)
		}
	}
	for _, name := range st.names {
		if err := os.Rename(filepath.Join(st.dir, name), filepath.Join(st.into, name)); err != nil {
			return err
		}
	}
	return syncDir(st.into)
}

// publishDirectory makes the stage itself the target.
func (st *stage) publishDirectory(target string) error {
	if err := syncDir(st.dir); err != nil {
		return err
	}
	// Not os.Rename, which refuses a directory that is there, be it empty.
	if err := unix.Rename(st.dir, filepath.Clean(target)); err != nil {
		return &os.LinkError{Op: "rename", Old: st.dir, New: target, Err: err}
	}
	return syncDir(st.into)
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return syncIfPossible(d)
}

// syncIfPossible leaves out what has nothing to sync: a pipe, some network
// file systems' directories (fsync(2): EINVAL).
func syncIfPossible(f *os.File) error {
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// emptyDirectory refuses a target of all disks that has something in it.
func emptyDirectory(name string) error {
	entries, err := os.ReadDir(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %s is a file; name a directory for all disks, or choose one with --disk N", ErrUsage, name)
	case err != nil:
		return fmt.Errorf("export: %w", err)
	case len(entries) > 0:
		return fmt.Errorf("%w: %s is not empty; name a new directory", ErrUsage, name)
	}
	return nil
}

// fileNames keeps the names in a directory apart.
type fileNames map[string]bool

func newNames() fileNames { return fileNames{} }

// take returns name, or a variation of it that was not taken before.
func (t fileNames) take(name string) string {
	ext := filepath.Ext(name)
	for n, free := 2, name; ; n++ {
		if key := strings.ToLower(free); !t[key] {
			t[key] = true
			return free
		}
		free = fmt.Sprintf("%s-%d%s", strings.TrimSuffix(name, ext), n, ext)
	}
}

// diskFileName names the file of a disk by its number and its label.
func diskFileName(pt *store.Point, n int, format string) string {
	ext := map[string]string{FormatRaw: ".raw", FormatQCOW2: ".qcow2"}[format]
	if ext == "" {
		ext = ".vmdk"
	}
	name := fmt.Sprintf("disk-%d", n)
	label := safeName(pt.Disks[n].Label)
	for _, known := range []string{".raw", ".img", ".qcow2", ".vmdk"} {
		label = strings.TrimSuffix(label, known)
	}
	if label != "" && label != "file" {
		name += "-" + label
	}
	return name + ext
}

// safeName makes a name in a directory of a text that somebody else chose.
func safeName(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("._-+", c):
			return c
		}
		return '_'
	}, s)
	s = strings.Trim(s[:min(len(s), 100)], ".")
	if s == "" {
		return "file"
	}
	return s
}
