package guestimage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func contents(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func testArtifact(build func(ctx context.Context, scratch, path string) error) artifact {
	return artifact{name: "thing", ext: ".img", files: []byte("recipe 1"), build: build}
}

func write(_ context.Context, _, path string) error {
	return os.WriteFile(path, []byte("whole"), 0o600)
}

func TestCacheBuildsOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	var built atomic.Int32
	a := testArtifact(func(ctx context.Context, scratch, path string) error {
		built.Add(1)
		return write(ctx, scratch, path)
	})
	paths := make(chan string, 8)
	for range cap(paths) {
		go func() {
			path, err := a.ensure(t.Context(), dir, nil)
			if err != nil {
				t.Error(err)
			}
			paths <- path
		}()
	}
	for range cap(paths) {
		if b, err := os.ReadFile(<-paths); err != nil || string(b) != "whole" {
			t.Errorf("%q, %v", b, err)
		}
	}
	if built.Load() != 1 {
		t.Errorf("built %d times", built.Load())
	}
	a.files = []byte("recipe 2")
	if _, err := a.ensure(t.Context(), dir, nil); err != nil || built.Load() != 2 {
		t.Errorf("another recipe: built %d times, %v", built.Load(), err)
	}
}

func TestCacheAfterFailureAndInterruption(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		build func(ctx context.Context, scratch, path string) error
		want  error
	}{
		{"failure", func(_ context.Context, _, path string) error {
			return errors.Join(os.WriteFile(path, []byte("half"), 0o600), broken)
		}, broken},
		{"interruption", func(ctx context.Context, _, path string) error {
			cancel()
			return errors.Join(os.WriteFile(path, []byte("half"), 0o600), errors.New("killed"))
		}, context.Canceled},
	} {
		if _, err := testArtifact(c.build).ensure(ctx, dir, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := contents(t, dir); got != "thing.lock" {
			t.Errorf("after %s there is left: %s", c.name, got)
		}
	}
	// What a builder leaves that was killed.
	if err := os.MkdirAll(filepath.Join(dir, ".building-thing-123", "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	path, err := testArtifact(write).ensure(t.Context(), dir, nil)
	if err != nil || contents(t, dir) != filepath.Base(path)+" thing.lock" {
		t.Errorf("%v; there is: %s", err, contents(t, dir))
	}
}

func TestCacheWaitsForItsTurnAndCanBeInterrupted(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(t.Context(), filepath.Join(dir, "thing.lock"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var said string
	_, err = testArtifact(write).ensure(ctx, dir, func(step string) { said = step; cancel() })
	if !errors.Is(err, context.Canceled) || !strings.Contains(said, "another builder") {
		t.Errorf("%v; said %q", err, said)
	}
	unlock()
	if _, err := testArtifact(write).ensure(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
}
