package appliance

import (
	"errors"
	"path/filepath"
	"testing"

	"lifeboat/internal/vfs"
	"lifeboat/store"
)

func TestDiskCacheChoice(t *testing.T) {
	state := t.TempDir()
	own := filepath.Join(state, "cache")
	share, err := defaultCache(vfs.OS(), filepath.Join(state, "not", "there", "yet"))
	if err != nil || share <= 0 || share > maxDefaultCache {
		t.Fatalf("default size %d, %v", share, err)
	}
	for _, c := range []struct {
		name, repo, dir, size string
		want                  store.DiskCache // Bytes -1: the default
	}{
		{"directory", "/srv/repo", "", "", store.DiskCache{}},
		{"s3", "s3://bucket/x", "", "", store.DiskCache{Dir: own, Bytes: -1}},
		{"s3, off", "s3://bucket/x", "", "off", store.DiskCache{}},
		{"s3, 0", "s3://bucket/x", "/var/cache/x", "0", store.DiskCache{}},
		{"s3, elsewhere", "s3://bucket/x", state, "512M", store.DiskCache{Dir: state, Bytes: 512 << 20}},
		{"directory, asked for", "/mnt/nas/repo", "", "2GiB", store.DiskCache{Dir: own, Bytes: 2 << 30}},
		{"directory, with a place", "/mnt/nas/repo", state, "", store.DiskCache{Dir: state, Bytes: -1}},
	} {
		cfg := Config{Repo: c.repo, State: state, CacheDir: c.dir, CacheSize: c.size}
		got, err := cfg.DiskCache()
		if c.want.Bytes == -1 && got.Bytes > 0 {
			got.Bytes = -1
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	for _, size := range []string{"much", "-1", "9999999T", "1.5G", "G"} {
		cfg := Config{State: state, CacheSize: size}
		if _, err := cfg.DiskCache(); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", size, err)
		}
	}
}
