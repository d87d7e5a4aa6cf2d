// Package appliance is what Lifeboat does, one file per use case: it joins the
// repository, the overlays and the NFS server, and keeps the appliance's own
// state. The command line, and later the API, are thin layers over it.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"

	"lifeboat/internal/vfs"
	"lifeboat/store"
	"lifeboat/store/backend"
	"lifeboat/store/backend/s3"
)

// OpenBackend returns the storage that a repository URL names: a path of a
// directory, or s3://bucket/prefix?endpoint=http://host:port&region=…. A nil
// logger is slog.Default.
func OpenBackend(ctx context.Context, url string, log *slog.Logger) (backend.Backend, error) {
	if url == "" {
		return nil, fmt.Errorf("%w: no repository named: use --repo or LIFEBOAT_REPO", ErrUsage)
	}
	if log == nil {
		log = slog.Default()
	}
	if rest, ok := strings.CutPrefix(url, "s3:"); ok && !strings.HasPrefix(rest, "//") {
		return nil, fmt.Errorf("%w: repository %q: write s3://BUCKET/PREFIX, or ./%[2]s for a directory of that name", ErrUsage, url)
	}
	if strings.HasPrefix(url, s3.Scheme) {
		b, err := s3.Open(ctx, url, s3.Options{Logger: log})
		switch {
		case errors.Is(err, s3.ErrURL):
			return nil, fmt.Errorf("%w: repository: %w", ErrUsage, err)
		case errors.Is(err, s3.ErrKeys): // there are none; whether they are right shows later
			return nil, fmt.Errorf("%w: repository %s: %w", ErrUsage, url, err)
		case err != nil:
			return nil, fmt.Errorf("repository %s: %w", url, err)
		}
		return b, nil
	}
	if scheme, _, ok := strings.Cut(url, "://"); ok {
		return nil, fmt.Errorf("%w: repository %q: %s:// is not known; name a directory, or s3://BUCKET/PREFIX", ErrUsage, url, scheme)
	}
	return backend.NewDir(vfs.OS(), url)
}

// InitRepository makes a new repository.
func InitRepository(ctx context.Context, url string, password []byte, opts store.InitOptions) error {
	b, err := OpenBackend(ctx, url, nil)
	if err != nil {
		return err
	}
	if p, ok := backend.As[backend.Prober](b); ok {
		if _, err := p.ProbeExclusive(ctx); err != nil { // it warns by itself where it does not hold
			return fmt.Errorf("repository %s: %w", url, err)
		}
	}
	if err := store.Init(ctx, b, password, opts); err != nil {
		return fmt.Errorf("repository %s: %w", url, err)
	}
	return nil
}

// RestoreHeader writes a repository's header anew when it is lost or damaged.
func RestoreHeader(ctx context.Context, url string, password []byte) error {
	b, err := OpenBackend(ctx, url, nil)
	if err != nil {
		return err
	}
	return store.RestoreHeader(ctx, b, password)
}

// OpenRepository opens an existing repository.
func OpenRepository(ctx context.Context, url string, password []byte, opts store.Options) (*store.Repository, error) {
	b, err := OpenBackend(ctx, url, opts.Logger)
	if err != nil {
		return nil, err
	}
	opts.Remote = opts.Remote || remote(url)
	repo, err := store.Open(ctx, b, password, opts)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", url, err)
	}
	return repo, nil
}

// newIngest begins to write to a repository, or says what it takes.
func newIngest(ctx context.Context, repo *store.Repository, opts store.IngestOptions) (*store.Ingest, error) {
	ing, err := repo.NewIngest(ctx, opts)
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return nil, fmt.Errorf("%w; the repository can be read but not written by this user", err)
	case errors.Is(err, syscall.ENOSPC):
		return nil, fmt.Errorf("%w; make room where the repository is: nothing that was there is lost", err)
	}
	return ing, err
}
