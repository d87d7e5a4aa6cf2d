package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"syscall"

	"lifeboat/internal/vfs"
)

// List implements [Backend]. Files that no object can be named like are not
// listed, nor is anything but a regular file.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		root, err := d.rootFS()
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err == nil {
			l := lister{ctx: ctx, root: root, prefix: prefix, yield: yield}
			dir, _ := path.Split(prefix)
			if err = l.walk(dir); err == nil || errors.Is(err, errStopped) {
				return
			}
		}
		yield(Info{}, fmt.Errorf("list %q: %w", prefix, err))
	}
}

var errStopped = errors.New("the consumer has stopped")

type lister struct {
	ctx    context.Context
	root   vfs.RootFS
	prefix string
	yield  func(Info, error) bool
}

// walk yields what lies in dir ("" or ending in a slash). Names ascend over
// the whole walk because a directory sorts as the slash-ended prefix that all
// its objects share.
func (l *lister) walk(dir string) error {
	entries, err := l.root.ReadDir(path.Join(".", dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // also: removed meanwhile
	} else if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(sortKey(a), sortKey(b)) })
	for _, entry := range entries {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if err := l.visit(dir, entry); err != nil {
			return err
		}
	}
	return nil
}

func sortKey(e fs.DirEntry) string {
	if e.IsDir() {
		return e.Name() + "/"
	}
	return e.Name()
}

func (l *lister) visit(dir string, entry fs.DirEntry) error {
	name := dir + sortKey(entry)
	switch {
	case entry.IsDir():
		if CheckPrefix(name) != nil || !related(name, l.prefix) {
			return nil //nolint:nilerr // what cannot be an object's name is not ours
		}
		return l.walk(name)
	case CheckName(name) != nil || !strings.HasPrefix(name, l.prefix):
		return nil //nolint:nilerr // as above
	}
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	if !l.yield(Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil) {
		return errStopped
	}
	return nil
}

// related reports whether objects below dir can start with prefix.
func related(dir, prefix string) bool {
	return strings.HasPrefix(dir, prefix) || strings.HasPrefix(prefix, dir)
}
