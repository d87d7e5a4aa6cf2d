//go:build linux && amd64

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ebitengine/purego"

	"lifeboat/disk/nbd"
	"lifeboat/vddk/handover"
)

// openDisk is a disk that is open in the library. It implements nbd.Backend.
//
// Requests are posted by the library's thread, one after another, and completed
// by callbacks on threads of the library's: many are under way at once, while
// no two calls on the handle are. A callback finds its request by its slot, and
// only ever sends one number into a channel with room for it.
type openDisk struct {
	lib        *library
	log        *slog.Logger
	params     *params
	identity   uintptr // in C's memory
	prepared   bool
	connection uintptr
	handle     uintptr
	size       int64
	transport  string
	write      bool

	complete uintptr // the callback
	results  []chan uint64
	buffers  [][]byte

	mapping sync.Mutex // guards unmapped
	// unmapped: the library cannot tell what is allocated on this disk.
	unmapped bool
}

// open opens the disk in the library; on failure nothing stays open.
func (l *library) openDisk(req handover.Request) (*openDisk, error) {
	d := &openDisk{lib: l, log: l.log, write: req.Write}
	err := d.connect(req)
	if err == nil {
		err = d.describe()
	}
	if err == nil {
		err = d.allocate(max(1, req.Buffers))
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *openDisk) connect(req handover.Request) (err error) {
	l := d.lib
	if d.params, err = l.connectParams(req); err != nil {
		return err
	}
	var snapshot, modes, path uintptr
	l.do(func() {
		d.identity = l.duplicate(req.Identity)
		snapshot, modes, path = l.duplicate(req.Snapshot), l.duplicate(req.Modes), l.duplicate(req.Path)
	})
	defer l.do(func() {
		l.free(snapshot)
		l.free(modes)
		l.free(path)
	})
	d.prepare()
	var code uint64
	readOnly, flags := int8(1), uint32(openReadOnly)
	if req.Write {
		readOnly, flags = 0, openUnbuffered
	}
	l.do(func() { code = l.connectEx(d.params.at, readOnly, snapshot, modes, &d.connection) })
	if err := l.failure("ConnectEx", code); err != nil {
		d.connection = 0
		return err
	}
	l.do(func() { code = l.open(d.connection, path, flags, &d.handle) })
	if err := l.failure("Open", code); err != nil {
		d.handle = 0
		return err
	}
	return nil
}

// prepare keeps vSphere from moving the VM away while its disk is open. Where
// that is not possible (a stand-alone host, a privilege is missing) it is
// worth a warning and no more: a disk that moves away gives errors, no wrong
// bytes.
func (d *openDisk) prepare() {
	var code uint64
	d.lib.do(func() { code = d.lib.prepare(d.params.at, d.identity) })
	if err := d.lib.failure("PrepareForAccess", code); err != nil {
		d.log.Warn("vSphere is not kept from moving the VM during the backup", "error", err)
		return
	}
	d.prepared = true
}

// describe asks what was opened.
func (d *openDisk) describe() error {
	var info uintptr
	var code, sectors uint64
	d.lib.do(func() {
		if code = d.lib.info(d.handle, &info); code != 0 || info == 0 {
			return
		}
		sectors = binary.LittleEndian.Uint64(memory(info+infoCapacity, 8))
		d.lib.freeInfo(info)
		d.transport = goString(d.lib.transport(d.handle))
	})
	if err := d.lib.failure("GetInfo", code); err != nil {
		return err
	}
	if sectors == 0 || sectors > 1<<50/sector {
		return fmt.Errorf("VixDiskLib_GetInfo: a disk of %d sectors", sectors)
	}
	d.size = int64(sectors) * sector
	return nil
}

// bufferAlignment makes the library's unbuffered modes (san, hotadd) happy.
const bufferAlignment = 4096

// allocate makes buffers in C's memory and the callback for all requests.
func (d *openDisk) allocate(count int) error {
	d.complete = purego.NewCallback(func(slot uintptr, result uint64) {
		d.results[slot] <- result
	})
	for range count {
		var at uintptr
		var failed bool
		d.lib.do(func() { failed = d.lib.memalign(&at, bufferAlignment, nbd.MaxRequest) != 0 })
		if failed {
			return errors.New("no memory for buffers")
		}
		d.buffers = append(d.buffers, memory(at, nbd.MaxRequest))
		d.results = append(d.results, make(chan uint64, 1))
	}
	return nil
}

// Read implements nbd.Backend.
func (d *openDisk) Read(slot int, p []byte, off int64) error {
	return d.transfer("ReadAsync", d.lib.readAsync, slot, p, off)
}

// Write implements nbd.Backend.
func (d *openDisk) Write(slot int, p []byte, off int64) error {
	return d.transfer("WriteAsync", d.lib.writeAsync, slot, p, off)
}

type transfer func(handle uintptr, start, count uint64, buf, callback, data uintptr) uint64

func (d *openDisk) transfer(stage string, call transfer, slot int, p []byte, off int64) error {
	var code uint64
	d.lib.do(func() {
		code = call(d.handle, uint64(off)/sector, uint64(len(p))/sector, address(p), d.complete, uintptr(slot))
	})
	if uint16(code) == handover.CodeAsync {
		code = <-d.results[slot]
	} else if code == 0 {
		return fmt.Errorf("VixDiskLib_%s did not begin anything", stage)
	}
	return d.explain(d.lib.failure(stage, code))
}

// explain gives an error of the library the number that the protocol has for
// it, so that the other side knows what to do about it.
func (d *openDisk) explain(err error) error {
	var f *handover.Failure
	if !errors.As(err, &f) {
		return err
	}
	e := &nbd.Error{Code: nbd.EIO, Message: f.Error()}
	switch f.Code {
	case handover.CodeNoMemory:
		e.Code = nbd.ENOMEM
	case handover.CodeFull:
		e.Code = nbd.ENOSPC
	case handover.CodeAccess, handover.CodeReadOnly:
		e.Code = nbd.EPERM
	case handover.CodeNoServer, handover.CodeRefused, handover.CodeSocket, handover.CodeConnLost, handover.CodeInvalidConn, handover.CodeCannotConnect:
		e.Code = nbd.ESHUTDOWN
	case handover.CodeInvalid, handover.CodeRange:
		e.Code = nbd.EINVAL
	}
	return e
}

// Flush implements nbd.Backend.
func (d *openDisk) Flush() error {
	var code uint64
	d.lib.do(func() { code = d.lib.flush(d.handle) })
	return d.explain(d.lib.failure("Flush", code))
}

// Limits of VixDiskLib_QueryAllocatedBlocks, in sectors and chunks.
const (
	queryChunk = 128
	queryMost  = 512 << 10
)

// Extents implements nbd.Backend. Chunks at the disk's end that are not whole
// cannot be asked about, and neither can what is before the first whole one;
// they are data.
func (d *openDisk) Extents(off, length int64) ([]nbd.Extent, error) {
	const chunk = queryChunk * sector
	start := (off + chunk - 1) / chunk * chunk
	end := min((off+length)/chunk*chunk, start+queryMost*chunk)
	d.mapping.Lock()
	unmapped := d.unmapped
	d.mapping.Unlock()
	if unmapped || end <= start {
		return []nbd.Extent{{Length: length}}, nil
	}
	data, err := d.query(start, end)
	if err != nil {
		d.mapping.Lock()
		d.unmapped = true
		d.mapping.Unlock()
		d.log.Warn("all of the disk is read: which areas are allocated cannot be found out", "error", err)
		return []nbd.Extent{{Length: length}}, nil
	}
	var b runs
	b.add(start-off, false)
	at := start
	for _, e := range data {
		b.add(e[0]-at, true)
		b.add(e[1], false)
		at = e[0] + e[1]
	}
	b.add(end-at, true)
	return b, nil
}

// runs collects extents.
type runs []nbd.Extent

func (r *runs) add(length int64, hole bool) {
	if length <= 0 {
		return
	}
	if last := len(*r) - 1; last >= 0 && (*r)[last].Hole == hole {
		(*r)[last].Length += length
		return
	}
	*r = append(*r, nbd.Extent{Length: length, Hole: hole})
}

// query asks for the allocated blocks in [start, end), as offset and length in
// bytes, ascending and inside.
func (d *openDisk) query(start, end int64) ([][2]int64, error) {
	var list uintptr
	var code uint64
	var blocks [][2]int64
	var wrong error
	d.lib.do(func() {
		code = d.lib.allocated(d.handle, uint64(start)/sector, uint64(end-start)/sector, queryChunk, &list)
		if code == 0 && list != 0 {
			blocks, wrong = readBlocks(list, start, end)
			d.lib.freeBlocks(list)
		}
	})
	if err := d.lib.failure("QueryAllocatedBlocks", code); err != nil {
		return nil, err
	}
	return blocks, wrong
}

// readBlocks reads a VixDiskLibBlockList: a count, and pairs of sectors from
// byte 8 on.
func readBlocks(list uintptr, start, end int64) ([][2]int64, error) {
	count := int(binary.LittleEndian.Uint32(memory(list, 4)))
	if count > queryMost {
		return nil, fmt.Errorf("VixDiskLib_QueryAllocatedBlocks: %d blocks", count)
	}
	blocks := make([][2]int64, 0, count)
	at := start
	for i := range count {
		b := memory(list+8+uintptr(i)*16, 16)
		off, length := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		if off > uint64(end)/sector || length > uint64(end)/sector-off || int64(off)*sector < at {
			return nil, fmt.Errorf("VixDiskLib_QueryAllocatedBlocks: %d sectors at %d, where %d to %d were asked about", length, off, start/sector, end/sector)
		}
		blocks = append(blocks, [2]int64{int64(off) * sector, int64(length) * sector})
		at = int64(off+length) * sector
	}
	return blocks, nil
}

// close undoes all that was done, in the reverse order. The first error is
// returned, and everything is tried.
func (d *openDisk) close() error {
	var codes [4]uint64
	d.lib.do(func() {
		if d.handle != 0 {
			codes[0] = d.lib.wait(d.handle)
			codes[1] = d.lib.closeDisk(d.handle)
		}
		if d.connection != 0 {
			codes[2] = d.lib.disconnect(d.connection)
		}
		if d.prepared {
			codes[3] = d.lib.endAccess(d.params.at, d.identity)
		}
		for _, b := range d.buffers {
			d.lib.free(address(b))
		}
		d.lib.free(d.identity)
	})
	if d.params != nil {
		d.lib.release(d.params)
	}
	var errs []error
	for i, stage := range []string{"Wait", "Close", "Disconnect", "EndAccess"} {
		errs = append(errs, d.lib.failure(stage, codes[i]))
	}
	return errors.Join(errs...)
}
