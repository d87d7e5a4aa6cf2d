package vddk_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

// hotAdder pretends that attaching a disk makes the file at path appear.
type hotAdder struct {
	path     string
	err      error
	detached int
}

func (h *hotAdder) Attach(context.Context) (string, func(context.Context) error, error) {
	return h.path, func(ctx context.Context) error { h.detached++; return ctx.Err() }, h.err
}

func TestSources(t *testing.T) {
	want := random(1)
	raw := rawFile(t, want)
	requests := map[string]func(t *testing.T) vddk.Request{
		vddk.File: func(t *testing.T) vddk.Request {
			return vddk.Request{LocalPath: raw, Size: want.Size()}
		},
		vddk.HotAdd: func(t *testing.T) vddk.Request {
			h := &hotAdder{path: raw}
			t.Cleanup(func() {
				if h.detached != 1 {
					t.Errorf("detached %d times", h.detached)
				}
			})
			return vddk.Request{HotAdd: h, Size: want.Size()}
		},
		vddk.NBDSSL: func(t *testing.T) vddk.Request {
			f := install(t)
			set(t, f, "delay_us", "2000")
			return libraryRequest(t, f, raw)
		},
		vddk.Folder: func(t *testing.T) vddk.Request {
			req, _ := folderRequest(t, want)
			return req
		},
	}
	for transport, request := range requests {
		t.Run(transport, func(t *testing.T) {
			disktest.RunImage(t, want, func(t *testing.T) disk.Image {
				src := open(t, request(t), vddk.Options{})
				if src.Transport() != transport {
					t.Errorf("transport is %q, want %q", src.Transport(), transport)
				}
				return src
			})
		})
	}
}

func TestLadderTellsWhyOfEveryRung(t *testing.T) {
	f := install(t)
	set(t, f, "open_error", "14009")
	raw := rawFile(t, random(1))
	req := libraryRequest(t, f, raw)
	req.LocalPath = filepath.Join(t.TempDir(), "gone.vmdk")
	req.HotAdd = &hotAdder{err: errors.New("the VM has no SCSI controller")}
	req.Files = &datastore{dir: t.TempDir()}
	_, err := vddk.Open(t.Context(), req, vddk.Options{})
	var ladder *vddk.LadderError
	if !errors.As(err, &ladder) || len(ladder.Rungs) != 5 {
		t.Fatalf("error: %v", err)
	}
	for i, want := range []struct{ transport, text string }{
		{vddk.File, "no such file"},
		{vddk.HotAdd, "no SCSI controller"},
		{vddk.VDDK, "port 902"},
		{vddk.Folder, "404"},
		{vddk.NFC, "not available"},
	} {
		if r := ladder.Rungs[i]; r.Transport != want.transport || !contains(r.Err.Error(), want.text) {
			t.Errorf("rung %d is %s: %v, want %s and %q", i, r.Transport, r.Err, want.transport, want.text)
		}
	}
}

func TestLadderGoesOn(t *testing.T) {
	want := random(2)
	req, _ := folderRequest(t, want)
	f := install(t)
	library := libraryRequest(t, f, rawFile(t, want))
	set(t, f, "password", "another")
	library.Files, library.LocalPath = req.Files, filepath.Join(t.TempDir(), "gone")
	src := open(t, library, vddk.Options{})
	if src.Transport() != vddk.Folder {
		t.Errorf("transport is %s", src.Transport())
	}
	disktest.Equal(t, src, want)
}

func TestForcedTransport(t *testing.T) {
	want := random(3)
	req, _ := folderRequest(t, want)
	req.LocalPath = rawFile(t, want)
	f := install(t)
	library := libraryRequest(t, f, req.LocalPath)
	req.Server, req.Username, req.Password, req.Thumbprint = library.Server, library.Username, library.Password, library.Thumbprint
	req.VM, req.Snapshot, req.Library = library.VM, library.Snapshot, library.Library
	for forced, got := range map[string]string{
		"": vddk.File, vddk.Folder: vddk.Folder, vddk.VDDK: vddk.NBDSSL, vddk.NBD: vddk.NBD,
		"san, nbd": vddk.NBD, "san,folder": vddk.Folder,
	} {
		src := open(t, req, vddk.Options{Transport: forced})
		if src.Transport() != got {
			t.Errorf("forced %q: transport is %s, want %s", forced, src.Transport(), got)
		}
	}
	if _, err := vddk.Open(t.Context(), req, vddk.Options{Transport: "telepathy"}); err == nil || !contains(err.Error(), "telepathy") {
		t.Errorf("an unknown transport: %v", err)
	}
}

func TestResizedDiskIsRefused(t *testing.T) {
	req, _ := folderRequest(t, random(4))
	req.Size += disk.SectorSize
	if _, err := vddk.Open(t.Context(), req, vddk.Options{}); !errors.Is(err, vddk.ErrSize) {
		t.Errorf("a disk of another size: %v", err)
	}
}
