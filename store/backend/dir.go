package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"sync"
	"syscall"

	"lifeboat/internal/vfs"
)

// Dir keeps objects as files below one directory.
//
// Crash safety. An object is written under tmp/, synced, renamed to its name
// and the directory synced; so a name either has its whole object or is not
// there. A directory that a name needs is made first, and its own entry synced
// before the first object in it is committed: once per directory and process,
// even if it was there, because whoever made it may not have synced it yet.
//
// What a writer that died left under tmp/ is invisible, and removed by Sweep.
//
// The directory is untrusted: names are resolved by [vfs.Sub], which neither
// leaves the directory nor opens anything but regular files.
type Dir struct {
	fsys vfs.FS
	path string
	opts DirOptions

	mu      sync.Mutex
	root    vfs.RootFS          // nil until the directory exists
	ensured map[string]struct{} // directories whose entry is known to be durable
}

// DirOptions are what seldom needs to be other than the zero value.
type DirOptions struct {
	// Processes tells whose leftovers may be swept. Default: [HostProcesses].
	Processes Processes
	// Logger gets what went wrong but hurts nobody. Default: nowhere.
	Logger *slog.Logger
}

var _ Backend = (*Dir)(nil)

// NewDir is the backend in directory root of fsys. The directory need not
// exist: it is made when the first object is created. Nothing is written
// before that, so a read-only directory can be read.
func NewDir(fsys vfs.FS, root string) (*Dir, error) {
	return NewDirWith(fsys, root, DirOptions{})
}

// NewDirWith is [NewDir] with options.
func NewDirWith(fsys vfs.FS, root string, opts DirOptions) (*Dir, error) {
	if root == "" {
		return nil, errors.New("repository directory: the path is empty")
	}
	if opts.Processes == nil {
		opts.Processes = HostProcesses()
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Dir{fsys: fsys, path: root, opts: opts, ensured: map[string]struct{}{}}
	if _, err := d.rootFS(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("repository directory: %w", err)
	}
	return d, nil
}

// Close releases the directory. Open objects stay usable.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		return nil
	}
	err := d.root.Close()
	d.root = nil
	return err
}

// String is the directory's path.
func (d *Dir) String() string { return d.path }

// Free is the space left for objects, in bytes.
func (d *Dir) Free() (int64, error) {
	root, err := d.rootFS()
	if err != nil {
		return 0, err
	}
	return root.Free(".")
}

// rootFS is the open directory; fs.ErrNotExist where there is none yet.
func (d *Dir) rootFS() (vfs.RootFS, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root == nil {
		root, err := vfs.Sub(d.fsys, d.path)
		if err != nil {
			return nil, err
		}
		d.root = root
	}
	return d.root, nil
}

// ensure makes the directory dir of the repository ("." is the repository
// itself) and its entry durable.
func (d *Dir) ensure(dir string) (vfs.RootFS, error) {
	if d.isEnsured(dir) {
		return d.rootFS()
	}
	if dir == "." {
		if err := d.fsys.MkdirAll(d.path, 0o700); err != nil {
			return nil, err
		}
		root, err := d.rootFS()
		if err == nil {
			d.setEnsured(dir)
		}
		return root, err
	}
	parent := path.Dir(dir)
	root, err := d.ensure(parent)
	if err != nil {
		return nil, err
	}
	if err := root.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := root.SyncDir(parent); err != nil {
		return nil, err
	}
	d.setEnsured(dir)
	return root, nil
}

func (d *Dir) isEnsured(dir string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.ensured[dir]
	return ok
}

func (d *Dir) setEnsured(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ensured[dir] = struct{}{}
}

// Open implements [Backend].
func (d *Dir) Open(ctx context.Context, name string) (Object, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := d.rootFS()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	f, err := root.OpenFile(name, os.O_RDONLY, 0)
	if errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ENOTDIR) {
		err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err) // names and prefixes are different things
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), f.Close())
	}
	return &dirObject{File: f, ctx: ctx, size: size}, nil
}

// Remove implements [Backend].
func (d *Dir) Remove(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	root, err := d.rootFS()
	if err == nil {
		err = removeFile(root, name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// removeFile removes a file, never a directory, durably. A file that is not
// there may have been removed by somebody who has not synced yet: so sync then
// too.
func removeFile(root vfs.RootFS, name string) error {
	info, err := root.Stat(name)
	if err == nil && info.IsDir() {
		return nil // a prefix, not an object
	}
	if err == nil {
		err = root.Remove(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.SyncDir(path.Dir(name))
}

// dirObject is an open object. It keeps the size at opening: objects are
// immutable.
type dirObject struct {
	vfs.File
	ctx  context.Context
	size int64
}

func (o *dirObject) Size() int64 { return o.size }

func (o *dirObject) ReadAt(p []byte, off int64) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	return o.File.ReadAt(p, off)
}

// ReadAtNoWait implements [NoWaitReader] where the file does.
func (o *dirObject) ReadAtNoWait(p []byte, off int64) bool {
	f, ok := o.File.(vfs.NoWaitReader)
	return ok && o.ctx.Err() == nil && f.ReadAtNoWait(p, off)
}

var _ NoWaitReader = (*dirObject)(nil)
