package nfsserver

import (
	"errors"
	"io"
	"slices"

	"lifeboat/disk"
	"lifeboat/nfsserver/datastore"
)

// READ, WRITE and COMMIT. For a virtual disk each has a way that waits for
// nothing and runs inline; what that way cannot do goes to a worker.

// stable_how (RFC 1813 §3.3.7)
const (
	unstable = 0
	dataSync = 1
	fileSync = 2
)

const (
	readHead  = 4 + postOpAttrBytes + 12 // status, attributes, count, eof, length
	writeRoom = 4 + 28 + postOpAttrBytes + 16
)

type readArgs struct {
	off   uint64
	count uint32
}

func (x *call) readArgs() readArgs {
	a := readArgs{off: x.args.u64(), count: x.args.u32()}
	a.count = min(a.count, MaxTransfer)
	return a
}

// readRoom is what a READ's reply may take. The arguments stay unread.
func readRoom(x *call) int {
	d := x.args
	d.opaque(maxHandle)
	d.u64()
	return readHead + int(min(d.u32(), MaxTransfer)) + 3
}

// clipRead cuts a READ to a disk's size. A disk's size is constant, so that
// what is left can be read in full.
func clipRead(a readArgs, size int64) (n int, eof bool) {
	if a.off >= uint64(size) {
		return 0, true
	}
	left := uint64(size) - a.off
	return int(min(uint64(a.count), left)), uint64(a.count) >= left
}

// growRead appends room for a READ's result of n bytes and returns where the
// data go.
func growRead(out []byte, n int) (_ []byte, data []byte) {
	at := len(out) + readHead
	out = slices.Grow(out, readHead+n+pad(n))[:at+n]
	return out, out[at : at+n : at+n]
}

// finishRead fills in the head of the result that growRead made room for, of
// whose data n bytes were read.
func finishRead(out []byte, room, n int, eof bool, attr *datastore.Attr) []byte {
	at := len(out) - room - readHead
	r := out[at:]
	putU32(r, uint32(statusOK))
	putU32(r[4:], 1)
	putAttr(r[8:], attr)
	r = r[8+attrBytes:]
	putU32(r, uint32(n))
	putU32(r[4:], 0)
	if eof {
		putU32(r[4:], 1)
	}
	putU32(r[8:], uint32(n))
	return appendPad(out[:at+readHead+n], n)
}

// readInline answers a READ whose data a virtual disk has in memory.
func readInline(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	a := x.readArgs()
	if x.args.bad {
		return out, garbage
	}
	dev := n.Device()
	if dev == nil || !x.ready(n) {
		return out, wait
	}
	if err := x.permit(n, datastore.Read); err != nil {
		return x.failWith(out, n, err), done
	}
	want, eof := clipRead(a, dev.Size())
	start := len(out)
	out, data := growRead(out, want)
	if want > 0 {
		cr, ok := dev.(disk.CachedReader)
		if !ok || !cr.ReadCached(data, int64(a.off)) {
			return out[:start], wait
		}
	}
	attr, err := n.Attr()
	if err != nil {
		return x.fail(out[:start], err), done
	}
	return finishRead(out, want, want, eof, &attr), done
}

func (x *call) permit(n *datastore.Node, want datastore.Access) error {
	if x.cred.uid == 0 {
		return nil
	}
	c := x.dsCred()
	return n.Permit(&c, want)
}

// read answers any READ.
func read(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	a := x.readArgs()
	if x.args.bad {
		return out, garbage
	}
	if err := x.permit(n, datastore.Read); err != nil {
		return x.failWith(out, n, err), done
	}
	if dev := n.Device(); dev != nil {
		return x.readDisk(out, n, dev, a), done
	}
	return x.readFile(out, n, a), done
}

func (x *call) readDisk(out []byte, n *datastore.Node, dev disk.Device, a readArgs) []byte {
	want, eof := clipRead(a, dev.Size())
	start := len(out)
	out, data := growRead(out, want)
	if want > 0 {
		got, err := dev.ReadAt(data, int64(a.off))
		if got < want {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return x.failWith(out[:start], n, err)
		}
	}
	attr, err := n.Attr()
	if err != nil {
		return x.fail(out[:start], err)
	}
	return finishRead(out, want, want, eof, &attr)
}

func (x *call) readFile(out []byte, n *datastore.Node, a readArgs) []byte {
	start := len(out)
	out, data := growRead(out, int(a.count))
	got, eof, err := n.ReadAt(data, a.off)
	if err != nil {
		return x.failWith(out[:start], n, err)
	}
	attr, err := n.Attr()
	if err != nil {
		return x.fail(out[:start], err)
	}
	return finishRead(out, int(a.count), got, eof, &attr)
}

type writeArgs struct {
	off    uint64
	stable uint32
	data   []byte
}

// writeArgs decodes a WRITE. count and the data's length must agree (RFC 1813
// §3.3.7); ok is false where they do not.
func (x *call) writeArgs() (a writeArgs, ok bool) {
	a.off = x.args.u64()
	count := x.args.u32()
	a.stable = x.args.u32()
	a.data = x.args.opaque(MaxTransfer)
	return a, !x.args.bad && a.stable <= fileSync && int(count) == len(a.data)
}

// appendWritten appends the result of a successful WRITE.
func (x *call) appendWritten(out []byte, w *datastore.WCC, count int, committed uint32) []byte {
	out = appendU32(out, uint32(statusOK))
	out = appendWCC(out, w)
	out = appendU32(out, uint32(count))
	out = appendU32(out, committed)
	return append(out, x.srv.verifier[:]...)
}

// writeInline does a WRITE that a virtual disk takes at memory speed. A stable
// one is answered when the disk has synced; until then its reply is held.
func writeInline(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	dev := n.Device()
	tw, ok := dev.(disk.TryWriter)
	if !ok || !x.ready(n) {
		return out, wait
	}
	a, ok := x.writeArgs()
	if !ok {
		return out, garbage
	}
	if _, ok := dev.(disk.AsyncSyncer); !ok && a.stable != unstable {
		return out, wait
	}
	if err := x.mayWrite(n, dev, a); err != nil {
		return x.failWCC(out, n, err), done
	}
	if len(a.data) > 0 {
		switch tried, err := tw.TryWriteAt(a.data, int64(a.off)); {
		case !tried:
			return out, wait
		case err != nil:
			return x.failWCC(out, n, err), done
		}
	}
	return x.written(out, n, dev, a)
}

// mayWrite checks what can be checked before a virtual disk is written: its
// size cannot change.
func (x *call) mayWrite(n *datastore.Node, dev disk.Device, a writeArgs) error {
	if size := uint64(dev.Size()); a.off > size || uint64(len(a.data)) > size-a.off {
		return datastore.ErrFBig
	}
	return x.permit(n, datastore.Write)
}

// written encodes the result of a WRITE to a virtual disk. The data are visible
// now; a stable WRITE is held until they are durable too. An UNSTABLE one is
// held until they would survive the death of this process: the protocol does not
// ask for it, but libnfs (and so QEMU) does not send them again when the write
// verifier changes, and a running VM must not lose what it was told is written.
func (x *call) written(out []byte, n *datastore.Node, dev disk.Device, a writeArgs) ([]byte, verdict) {
	w := n.Written()
	if a.stable == unstable {
		out = x.appendWritten(out, &w, len(a.data), unstable)
		if flusher, ok := dev.(disk.AsyncFlusher); ok {
			x.file, x.flusher = n, flusher
			return out, held
		}
		return out, done
	}
	out = x.appendWritten(out, &w, len(a.data), fileSync)
	if syncer, ok := dev.(disk.AsyncSyncer); ok {
		x.file, x.syncer = n, syncer
		return out, held
	}
	return out, done
}

// write does any WRITE.
func write(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	a, ok := x.writeArgs()
	if !ok {
		return out, garbage
	}
	if dev := n.Device(); dev != nil {
		return x.writeDisk(out, n, dev, a)
	}
	return x.writeFile(out, n, a), done
}

func (x *call) writeDisk(out []byte, n *datastore.Node, dev disk.Device, a writeArgs) ([]byte, verdict) {
	if err := x.mayWrite(n, dev, a); err != nil {
		return x.failWCC(out, n, err), done
	}
	if len(a.data) > 0 {
		if _, err := dev.WriteAt(a.data, int64(a.off)); err != nil {
			return x.failWCC(out, n, err), done
		}
	}
	if _, ok := dev.(disk.AsyncSyncer); !ok && a.stable != unstable {
		if err := n.Sync(); err != nil {
			return x.failWCC(out, n, err), done
		}
	}
	return x.written(out, n, dev, a)
}

// writeFile writes to an ordinary file. The tree lets writers who need the same
// file synced share one sync.
func (x *call) writeFile(out []byte, n *datastore.Node, a writeArgs) []byte {
	if err := x.permit(n, datastore.Write); err != nil {
		return x.failWCC(out, n, err)
	}
	_, w, err := n.WriteAt(a.data, a.off)
	if err != nil {
		return x.failChange(out, &w, err)
	}
	committed := uint32(unstable)
	if a.stable != unstable {
		if err := n.Sync(); err != nil {
			return x.failWCC(out, n, err)
		}
		committed = fileSync
	}
	return x.appendWritten(out, &w, len(a.data), committed)
}

// commitArgs decodes a COMMIT. Offset and count are advice that is not needed:
// everything written so far is made durable.
func (x *call) commitArgs() bool {
	x.args.u64()
	x.args.u32()
	return !x.args.bad
}

func (x *call) appendCommitted(out []byte, n *datastore.Node) []byte {
	out = appendU32(out, uint32(statusOK))
	out = appendBool(out, false)
	out = appendAttrOf(out, n)
	return append(out, x.srv.verifier[:]...)
}

// commitInline starts the sync of a virtual disk; the reply is held for it.
func commitInline(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	syncer, ok := n.Device().(disk.AsyncSyncer)
	if !ok || !x.ready(n) {
		return out, wait
	}
	if !x.commitArgs() {
		return out, garbage
	}
	x.file, x.syncer = n, syncer
	return x.appendCommitted(out, n), held
}

// commit makes an ordinary file durable, or a disk that can only be waited for.
func commit(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	if !x.commitArgs() {
		return out, garbage
	}
	if err := n.Sync(); err != nil {
		return x.failWCC(out, n, err), done
	}
	return x.appendCommitted(out, n), done
}
