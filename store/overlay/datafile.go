package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"lifeboat/internal/vfs"
)

// dataFilePages is how much of the disk one data file covers: 1 TiB. A single
// sparse file would not do: ext4 ends at 16 TiB, a virtual disk at 62 TB.
const dataFilePages = 1 << 28

// dataFiles are the sparse files that hold checkpointed pages at their natural
// places. They are made when first needed.
type dataFiles struct {
	fs    vfs.FS
	dir   string
	files []atomic.Pointer[localFile]

	mu    sync.Mutex // for what follows and for making files
	dirty map[*localFile]bool
	made  bool // a directory entry is not known to be durable
}

// localFile is an open file with what it can do.
type localFile struct {
	vfs.File
	noWait vfs.NoWaitReader // nil where the file cannot
}

func newLocalFile(f vfs.File) *localFile {
	noWait, _ := f.(vfs.NoWaitReader)
	return &localFile{File: f, noWait: noWait}
}

func newDataFiles(fsys vfs.FS, dir string, pages int64) *dataFiles {
	return &dataFiles{
		fs: fsys, dir: dir, dirty: map[*localFile]bool{},
		files: make([]atomic.Pointer[localFile], (pages+dataFilePages-1)/dataFilePages),
	}
}

// at returns the file that holds page and its offset there; nil if it was
// never made.
func (d *dataFiles) at(page int64) (*localFile, int64) {
	return d.files[page/dataFilePages].Load(), page % dataFilePages * pageSize
}

func (d *dataFiles) missing(page int64) error {
	return &DamageError{File: d.path(page / dataFilePages), Reason: "it is missing"}
}

func (d *dataFiles) path(i int64) string {
	return filepath.Join(d.dir, numbered(dataPrefix, uint64(i)))
}

// openAll opens the files that exist.
func (d *dataFiles) openAll() error {
	for i := range d.files {
		err := d.open(int64(i), os.O_RDWR)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *dataFiles) open(i int64, flag int) error {
	f, err := d.fs.OpenFile(d.path(i), flag, fileMode)
	if err != nil {
		return err
	}
	d.files[i].Store(newLocalFile(f))
	return nil
}

// write writes whole pages from page on; they must not cross into another file.
func (d *dataFiles) write(p []byte, page int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	file, off := d.at(page)
	if file == nil {
		if err := d.open(page/dataFilePages, os.O_RDWR|os.O_CREATE); err != nil {
			return err
		}
		d.made = true
		file, _ = d.at(page)
	}
	d.dirty[file] = true
	_, err := file.WriteAt(p, off)
	return err
}

// punch gives back the space of pages that read as zeros. They are never read
// from here, so failing costs space and nothing else.
func (d *dataFiles) punch(page, count int64) error {
	for count > 0 {
		n := min(count, dataFilePages-page%dataFilePages)
		if file, off := d.at(page); file != nil {
			if err := file.PunchHole(off, n*pageSize); err != nil {
				return err
			}
		}
		page, count = page+n, count-n
	}
	return nil
}

// sync makes what was written durable, names included.
func (d *dataFiles) sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for file := range d.dirty {
		if err := file.Sync(); err != nil {
			return fmt.Errorf("%s: %w", file.Name(), err)
		}
	}
	clear(d.dirty)
	if d.made {
		if err := d.fs.SyncDir(d.dir); err != nil {
			return err
		}
		d.made = false
	}
	return nil
}

func (d *dataFiles) close() error {
	var err error
	for i := range d.files {
		if file := d.files[i].Swap(nil); file != nil {
			err = errors.Join(err, file.Close())
		}
	}
	return err
}
