package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"lifeboat/appliance"
	"lifeboat/store"
)

// openRepo opens the repository that flags, environment or configuration name.
func (p *program) openRepo(ctx context.Context) (*store.Repository, error) {
	if p.config.Repo == "" {
		return nil, fmt.Errorf("%w: no repository named: use --repo or LIFEBOAT_REPO", appliance.ErrUsage)
	}
	pw, err := p.password(false)
	if err != nil {
		return nil, err
	}
	cache, err := p.config.DiskCache()
	if err != nil {
		return nil, err
	}
	return appliance.OpenRepository(ctx, p.config.Repo, pw, store.Options{
		CacheBytes: p.config.CacheMiB << 20, DiskCache: cache, Logger: p.log,
	})
}

// withRepo runs fn on the open repository and closes it.
func (p *program) withRepo(ctx context.Context, fn func(*store.Repository) error) (err error) {
	repo, err := p.openRepo(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := repo.Close(); err == nil {
			err = cerr
		}
	}()
	return fn(repo)
}

// filesCacheMiB is the cache of commands that look at guests' files, where the
// configuration names none: what they read in large pieces goes past it, and of
// the rest the reader's process and the kernel keep their own.
const filesCacheMiB = 24

// withFilesRepo is withRepo for commands that look at guests' files.
func (p *program) withFilesRepo(ctx context.Context, fn func(*store.Repository) error) error {
	if p.config.CacheMiB == 0 {
		p.config.CacheMiB = filesCacheMiB
	}
	return p.withRepo(ctx, fn)
}

// printJSON prints the one document that a script reads.
func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows in aligned columns. What is in a cell is shown, not obeyed:
// names come from guests and from whoever wrote to the repository.
func (p *program) table(header string, rows func(line func(format string, args ...any))) error {
	var aligned bytes.Buffer
	w := tabwriter.NewWriter(&aligned, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, header)
	rows(func(format string, args ...any) {
		for i, arg := range args {
			if s, ok := arg.(string); ok {
				args[i] = printable(s)
			}
		}
		fmt.Fprintf(w, format+"\n", args...)
	})
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range bytes.Lines(aligned.Bytes()) {
		if _, err := fmt.Fprintf(p.stdout, "%s\n", bytes.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// printable is s with what would move the cursor, or worse, written out.
func printable(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

// size renders a number of bytes for people, in binary units.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for v >= 1023.95 && u < len(units)-1 {
		v /= 1024
		u++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}
