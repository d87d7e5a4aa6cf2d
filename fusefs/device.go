package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"lifeboat/disk"
)

// deviceName is the only file of a DeviceMount.
const deviceName = "disk"

// DeviceMount is a disk as a file of the host's: for a loop device, when the
// administrator wants the host's own kernel to read a guest's volume.
type DeviceMount struct {
	// Path is the file.
	Path   string
	dir    string
	server *fuse.Server
}

// ServeDevice shows dev as a file below dir, an empty directory, for root only.
func ServeDevice(dir string, dev disk.Device) (*DeviceMount, error) {
	server, err := fs.Mount(dir, &deviceRoot{dev: dev}, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: fsType, Name: fsType, MaxWrite: maxRequest, DirectMount: true, Logger: log.New(io.Discard, "", 0),
	}})
	if err != nil {
		return nil, fmt.Errorf("serve a disk on %s: %w", dir, err)
	}
	return &DeviceMount{Path: filepath.Join(dir, deviceName), dir: dir, server: server}, nil
}

// Hide takes the file out of the host's tree. Whoever has it open keeps it; when
// all have closed it, or this process ends in whatever way, nothing is left.
func (d *DeviceMount) Hide() error { return release(d.dir, syscall.MNT_DETACH) }

// Wait waits until nobody has the file open any more. It must be hidden.
func (d *DeviceMount) Wait() { d.server.Wait() }

type deviceRoot struct {
	fs.Inode
	dev disk.Device
}

var _ fs.NodeOnAdder = (*deviceRoot)(nil)

// OnAdd implements fs.NodeOnAdder.
func (r *deviceRoot) OnAdd(ctx context.Context) {
	file := r.NewPersistentInode(ctx, &deviceFile{dev: r.dev}, fs.StableAttr{Mode: fuse.S_IFREG})
	r.AddChild(deviceName, file, true)
}

// deviceFile is the disk.
type deviceFile struct {
	fs.Inode
	dev disk.Device
}

var (
	_ fs.NodeOpener    = (*deviceFile)(nil)
	_ fs.NodeGetattrer = (*deviceFile)(nil)
	_ fs.NodeReader    = (*deviceFile)(nil)
	_ fs.NodeWriter    = (*deviceFile)(nil)
	_ fs.NodeFsyncer   = (*deviceFile)(nil)
)

func (f *deviceFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *deviceFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o600, uint64(f.dev.Size())
	return 0
}

func (f *deviceFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := f.dev.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p[:n]), 0
}

func (f *deviceFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	n, err := f.dev.WriteAt(p, off)
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return uint32(n), syscall.ENOSPC
	case err != nil:
		return uint32(n), syscall.EIO
	}
	return uint32(n), 0
}

func (f *deviceFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if f.dev.Sync() != nil {
		return syscall.EIO
	}
	return 0
}
