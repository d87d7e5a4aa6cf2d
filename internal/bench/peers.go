package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// archive is a backup program that works on a repository of its own, which
// holds one file.
type archive interface {
	// name says what is measured: program, version, options that matter.
	name() string
	// backup stores the file, as it is now, in the repository.
	backup(ctx context.Context, file string) (usage, error)
	// restore writes the last version of the file to a new file.
	restore(ctx context.Context, to string) (usage, error)
	// mount shows the last version as a file, until stop is called.
	mount(ctx context.Context) (file string, stop func() error, err error)
}

// place is where an archive lives.
type place interface {
	archive
	// init makes an empty repository in the place of what is there.
	init(ctx context.Context) error
	// root is the directory whose size is the repository's.
	root() string
	// remove makes room.
	remove()
}

// peers are the programs to compare a backup with. Both encrypt; zstd at the
// level that a user gets who asks for no other.
func (b *bench) peers(ctx context.Context, suffix string) ([]place, error) {
	restic, err := newRestic(ctx, b.path("restic-"+suffix))
	if err != nil {
		return nil, err
	}
	borg, err := newBorg(ctx, b.path("borg-"+suffix), "zstd,3")
	return []place{restic, borg}, err
}

// emptyDir makes an empty directory in the place of what is there.
func emptyDir(dir string) error {
	return errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700))
}

// lifeboat is our own repository as an archive.
type lifeboat struct {
	*repo
	b      *bench
	suffix string
}

func (b *bench) ours(suffix string) place { return &lifeboat{b: b, suffix: suffix} }

func (l *lifeboat) name() string { return "lifeboat" }
func (l *lifeboat) root() string { return l.url }
func (l *lifeboat) dir() string  { return l.b.path("lifeboat-" + l.suffix) }
func (l *lifeboat) remove()      { _ = os.RemoveAll(l.dir()) }

func (l *lifeboat) init(ctx context.Context) (err error) {
	l.remove()
	l.repo, err = l.b.newRepo(ctx, "lifeboat-"+l.suffix)
	return err
}

func (l *lifeboat) backup(ctx context.Context, file string) (usage, error) {
	_, used, err := l.repo.backup(ctx, "disk", file)
	return used, err
}

func (l *lifeboat) restore(ctx context.Context, to string) (usage, error) {
	_, used, err := timed(ctx, l.env(), l.b.opt.binary, "--json", "export", "--output", to, "disk@latest")
	return used, err
}

func (l *lifeboat) mount(context.Context) (string, func() error, error) {
	return "", nil, errors.New("lifeboat is measured through NFS") // see peerRandom
}

// rounds measures each of several in turn, again and again: a row for each
// round.
func (b *bench) rounds(ctx context.Context, n int, all []measure) ([][]sample, error) {
	var rows [][]sample
	for range n {
		var row []sample
		for i, m := range all {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			s, err := m(ctx)
			if err != nil {
				return nil, fmt.Errorf("measurement %d: %w", i, err)
			}
			row = append(row, s)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// versus records a figure against each peer, and, as the one that has a target,
// against whichever peer was the better in each round. The first column of rows
// is ours. more says whether more is better.
func (b *bench) versus(f Figure, names []string, rows [][]sample, more bool) {
	column := func(peer func([]sample) sample) []pair {
		var pairs []pair
		for _, row := range rows {
			pairs = append(pairs, pair{row[0], peer(row[1:])})
		}
		return pairs
	}
	best := f
	best.PeerName = "the better of " + strings.Join(names, " and ")
	if !more {
		best.PeerName = "the least of " + strings.Join(names, " and ")
	}
	b.add(best.from(column(func(peers []sample) sample {
		return slices.MaxFunc(peers, func(x, y sample) int {
			if (x.value > y.value) == more {
				return 1
			}
			return -1
		})
	})))
	for i, name := range names {
		one := f
		one.PeerName, one.Target = name, 0
		b.add(one.from(column(func(peers []sample) sample { return peers[i] })))
	}
}

// names lists archives.
func names(all []place) (list []string) {
	for _, a := range all {
		list = append(list, a.name())
	}
	return list
}

// perData is a measure of data per second of processor time, with what may
// interest beside it.
func perData(data int64, used usage) sample { return rate(systemImage{data: data}, used) }

// version is the second word of what a program says about itself.
func version(ctx context.Context, env []string, program string, args ...string) (string, error) {
	out, err := output(ctx, env, program, args...)
	if err != nil {
		return "", fmt.Errorf("%w: tools/provision.sh bench installs it", err)
	}
	words := strings.Fields(string(out))
	if len(words) < 2 {
		return "", fmt.Errorf("%s prints %q for its version", program, out)
	}
	return words[1], nil
}

// onlyFile is the one file below a directory, or a link to one.
func onlyFile(dir string) (found string, err error) {
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", err
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("there is no file below %s", dir)
	}
	return found, err
}
