package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
)

func TestServesWhatItIsTold(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--listen", "127.0.0.1:0", "--dir", t.TempDir(), "--power-on", "--vm", "web=" + disk}, w)
		w.Close()
	}()
	var said ready
	if err := json.NewDecoder(r).Decode(&said); err != nil {
		t.Fatal(err, <-ended)
	}
	u, err := url.Parse(said.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(said.Username, said.Password)
	c, err := govmomi.NewClient(ctx, u, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := find.NewFinder(c.Client).VirtualMachine(ctx, "/Lab/vm/web"); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--nothing"}, {"extra"}, {"--vm", "web"}} {
		if err := run(t.Context(), args, os.Stdout); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
