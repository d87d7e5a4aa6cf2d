package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"lifeboat/internal/vfs"
	"lifeboat/store"
	"lifeboat/store/backend/s3"
)

// remote reports whether a repository is behind a network protocol of its own.
func remote(url string) bool { return strings.HasPrefix(url, s3.Scheme) }

const (
	// maxDefaultCache is the largest cache on local disk that nobody asked for.
	maxDefaultCache = 20 << 30
	// defaultCacheShare is the part of the free space that such a cache takes.
	defaultCacheShare = 10
)

// DiskCache decides where the repository's objects are kept on local disk, and
// how many bytes of them. For a repository in S3 that is the default; one in a
// directory has such a cache only where a directory or a size is given (it may
// be on a network file system).
func (c *Config) DiskCache() (store.DiskCache, error) {
	cache := store.DiskCache{Dir: c.CacheDir}
	if cache.Dir == "" {
		cache.Dir = filepath.Join(c.State, "cache")
	}
	var err error
	switch {
	case c.CacheSize != "":
		if cache.Bytes, err = parseBytes(c.CacheSize); err != nil {
			return store.DiskCache{}, fmt.Errorf("%w: size of the cache on local disk %q: %w", ErrUsage, c.CacheSize, err)
		}
	case c.CacheDir != "" || remote(c.Repo):
		if cache.Bytes, err = defaultCache(vfs.OS(), cache.Dir); err != nil && c.CacheDir != "" {
			// Somebody asked for it, and hears why there is none when it is opened. A
			// backup does without.
			cache.Bytes = maxDefaultCache
		}
	}
	if cache.Bytes == 0 {
		return store.DiskCache{}, nil
	}
	return cache, nil
}

// defaultCache is a share of what is free where dir is or will be.
func defaultCache(fsys vfs.FS, dir string) (int64, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return 0, err
	}
	for {
		free, err := fsys.Free(dir)
		if err == nil {
			return min(free/defaultCacheShare, maxDefaultCache), nil
		}
		if parent := filepath.Dir(dir); errors.Is(err, fs.ErrNotExist) && parent != dir {
			dir = parent
			continue
		}
		return 0, err
	}
}

var errBytes = errors.New("write bytes like 512M or 20G, or off")

// parseBytes reads a number of bytes with an optional binary unit.
func parseBytes(s string) (int64, error) {
	if s == "off" {
		return 0, nil
	}
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	unit := int64(1)
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMGT", number[n-1]); i >= 0 {
			unit, number = 1<<(10*(i+1)), number[:n-1]
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > 1<<50/unit {
		return 0, errBytes
	}
	return n * unit, nil
}
