package vddk

import (
	"context"

	"lifeboat/disk"
)

// WritableDisk is a disk at its place, to be written. What it can do beyond
// disk.Device it says through disk's optional interfaces.
type WritableDisk interface {
	disk.Device
	disk.Mapper
	Transport() string
}

// Open opens the disk that req describes for reading, by the first transport
// that works. ctx governs the opening and every read: cancelling it fails reads
// in flight. If none works the error is a *[LadderError], which says of every
// transport why.
func Open(ctx context.Context, req Request, opts Options) (Source, error) {
	opts = opts.withDefaults()
	best := []rung[Source]{
		{File, reads(req, opts, openFile)},
		{HotAdd, reads(req, opts, openHotAdd)},
		{VDDK, reads(req, opts, libraryReader(""))},
		{Folder, reads(req, opts, openFolder)},
		{NFC, reads(req, opts, openNFC)},
	}
	rungs, err := choose(opts.Transport, best, func(modes string) rung[Source] {
		return rung[Source]{modes, reads(req, opts, libraryReader(modes))}
	})
	if err != nil {
		return nil, err
	}
	return climb(ctx, req, opts, rungs)
}

// OpenWrite opens the disk that req describes for writing: whatever of it is not
// written stays as it is. Transports are file, hotadd, the library's modes and
// folder. The last of these collects what is written in a temporary file, and
// each Sync sends the whole disk: [WriteImage] spares that where all of the disk
// is new. The VM must be off, or the disk not be its.
func OpenWrite(ctx context.Context, req Request, opts Options) (disk.Device, error) {
	opts = opts.withDefaults()
	best := []rung[WritableDisk]{
		{File, writes(req, opts, writeFile)},
		{HotAdd, writes(req, opts, writeHotAdd)},
		{VDDK, writes(req, opts, libraryWriter(""))},
		{Folder, writes(req, opts, writeFolder)},
		{NFC, func(context.Context, context.CancelCauseFunc) (WritableDisk, error) {
			return nil, unavailable("a lease takes whole disks only")
		}},
	}
	rungs, err := choose(opts.Transport, best, func(modes string) rung[WritableDisk] {
		return rung[WritableDisk]{modes, writes(req, opts, libraryWriter(modes))}
	})
	if err != nil {
		return nil, err
	}
	return climb(ctx, req, opts, rungs)
}

// reads makes a rung's open function of a function that opens a port.
func reads(req Request, opts Options, open func(context.Context, Request, Options) (port, error)) func(context.Context, context.CancelCauseFunc) (Source, error) {
	return func(ctx context.Context, cancel context.CancelCauseFunc) (Source, error) {
		p, err := open(ctx, req, opts)
		if err != nil {
			return nil, err
		}
		return newReader(life{ctx, cancel}, p, opts), nil
	}
}

func writes(req Request, opts Options, open func(context.Context, Request, Options) (writePort, error)) func(context.Context, context.CancelCauseFunc) (WritableDisk, error) {
	return func(ctx context.Context, cancel context.CancelCauseFunc) (WritableDisk, error) {
		p, err := open(ctx, req, opts)
		if err != nil {
			return nil, err
		}
		return newDevice(life{ctx, cancel}, p, opts), nil
	}
}
