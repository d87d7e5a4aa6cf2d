package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// restic as its manual has it: repository version 2, compression "auto" (zstd
// at its library's default level), its cache beside the repository.
type restic struct {
	dir   string
	title string
}

func newRestic(ctx context.Context, dir string) (*restic, error) {
	v, err := version(ctx, nil, "restic", "version")
	return &restic{dir: dir, title: "restic " + v}, err
}

func (r *restic) name() string { return r.title }
func (r *restic) root() string { return filepath.Join(r.dir, "repository") }
func (r *restic) remove()      { _ = os.RemoveAll(r.dir) }

func (r *restic) env() []string {
	return []string{
		"RESTIC_REPOSITORY=" + r.root(), "RESTIC_PASSWORD=" + password, "RESTIC_PASSWORD_FILE=",
		"RESTIC_CACHE_DIR=" + filepath.Join(r.dir, "cache"), "RESTIC_COMPRESSION=auto",
	}
}

func (r *restic) init(ctx context.Context) error {
	if err := emptyDir(r.dir); err != nil {
		return err
	}
	_, err := output(ctx, r.env(), "restic", "--quiet", "init")
	return err
}

func (r *restic) backup(ctx context.Context, file string) (usage, error) {
	_, used, err := timed(ctx, r.env(), "restic", "--quiet", "backup", file)
	return used, err
}

// restore moves the file to where it was wanted: restic keeps whole paths.
func (r *restic) restore(ctx context.Context, to string) (usage, error) {
	tree := to + ".tree"
	defer os.RemoveAll(tree)
	_, used, err := timed(ctx, r.env(), "restic", "--quiet", "restore", "latest", "--target", tree)
	if err != nil {
		return used, err
	}
	file, err := onlyFile(tree)
	return used, errors.Join(err, os.Rename(file, to))
}

func (r *restic) mount(ctx context.Context) (string, func() error, error) {
	m := fuseMount{
		name: "restic mount", env: r.env(), dir: filepath.Join(r.dir, "mount"), within: "snapshots/latest",
		program: "restic", args: []string{"mount"},
	}
	return m.start(ctx)
}
