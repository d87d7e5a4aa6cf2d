package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// borg as its manual has it: the key in the repository, BLAKE2 (the faster of
// its two authentications), default chunks. Holes become holes again.
type borg struct {
	dir         string
	title       string
	compression string
	archives    int
}

func newBorg(ctx context.Context, dir, compression string) (*borg, error) {
	b := &borg{dir: dir, compression: compression}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	v, err := version(ctx, b.env(), "borg", "--version")
	b.title = "borg " + v + " " + compression
	return b, err
}

func (b *borg) name() string { return b.title }
func (b *borg) root() string { return filepath.Join(b.dir, "repository") }
func (b *borg) remove()      { _ = os.RemoveAll(b.dir) }

func (b *borg) env() []string {
	return []string{
		"BORG_REPO=" + b.root(), "BORG_PASSPHRASE=" + password, "BORG_BASE_DIR=" + filepath.Join(b.dir, "base"),
		"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes",
	}
}

func (b *borg) init(ctx context.Context) error {
	if err := emptyDir(b.dir); err != nil {
		return err
	}
	b.archives = 0
	_, err := output(ctx, b.env(), "borg", "init", "--encryption", "repokey-blake2")
	return err
}

func (b *borg) last() string { return "::" + "archive" + string(rune('a'+b.archives)) }

func (b *borg) backup(ctx context.Context, file string) (usage, error) {
	b.archives++
	_, used, err := timed(ctx, b.env(), "borg", "create", "--compression", b.compression, b.last(), file)
	return used, err
}

// restore moves the file to where it was wanted: borg keeps whole paths, and
// extracts to the current directory.
func (b *borg) restore(ctx context.Context, to string) (usage, error) {
	tree := to + ".tree"
	defer os.RemoveAll(tree)
	if err := os.MkdirAll(tree, 0o700); err != nil {
		return usage{}, err
	}
	_, used, err := timed(ctx, b.env(), "env", "-C", tree, "borg", "extract", "--sparse", b.last())
	if err != nil {
		return used, err
	}
	file, err := onlyFile(tree)
	return used, errors.Join(err, os.Rename(file, to))
}

func (b *borg) mount(ctx context.Context) (string, func() error, error) {
	m := fuseMount{
		name: "borg mount", env: b.env(), dir: filepath.Join(b.dir, "mount"),
		program: "borg", args: []string{"mount", "--foreground", b.last()},
	}
	return m.start(ctx)
}
