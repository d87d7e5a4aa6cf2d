package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// Extent is an area of a disk, in bytes.
type Extent struct{ Offset, Length int64 }

// Allocated is the change ID that asks for the areas that are allocated at all
// (VADP: "special change Id *").
const Allocated = "*"

// maxAreas bounds what one disk may answer: a 62 TB disk in areas of 64 KiB.
const maxAreas = 1 << 30

// maxEmptyAnswers is how many answers in a row may bring nothing and not go on.
const maxEmptyAnswers = 3

// ChangedAreas asks which areas of a disk differ between changeID and the
// snapshot, sorted and joined. A server tells about 2,000 areas at a time: it is
// asked again from where its answer ended until the whole disk was answered for;
// an answer without areas is not the end. Size is the disk's in the snapshot.
//
// ErrChangeID means that the areas cannot be had from this change ID (another
// UUID, a reset by a power failure, a revert, a changed size: KB 2090639), and
// that the disk has to be read in full. Other errors are those of any call.
func (c *Client) ChangedAreas(ctx context.Context, vm, snapshot Ref, diskKey int32, changeID string, size int64) ([]Extent, error) {
	op := fmt.Sprintf("ask for the changed areas of disk %d of %s", diskKey, vm)
	if changeID == "" {
		return nil, &Error{Op: op, Kind: ErrChangeID, Text: "there is no change ID: the disk was not tracked then"}
	}
	var out []Extent
	empty := 0
	// Asking at the very end is a fault, and so is a disk of no size.
	for at := int64(0); at < size; {
		res, err := methods.QueryChangedDiskAreas(ctx, c.session, &types.QueryChangedDiskAreas{
			This: mor(vm), Snapshot: morPtr(snapshot), DeviceKey: diskKey, StartOffset: at, ChangeId: changeID,
		})
		if err != nil {
			return nil, changeIDRefused(c.fail(op, err))
		}
		next, err := appendAreas(&out, res.Returnval, at, size)
		if err != nil {
			return nil, &Error{Op: op, Kind: ErrChangeID, Text: err.Error()}
		}
		if empty++; next > at {
			empty = 0
		}
		if empty >= maxEmptyAnswers {
			return nil, &Error{Op: op, Kind: ErrChangeID, Text: fmt.Sprintf("the server does not go on at offset %d", at)}
		}
		at = next
	}
	return joinExtents(out), nil
}

// appendAreas takes one answer and returns where the next question starts.
// What it says is not believed: areas outside the disk or the answer's own
// window mean that it is about something else.
func appendAreas(out *[]Extent, info types.DiskChangeInfo, at, size int64) (int64, error) {
	if info.Length < 0 || info.StartOffset < 0 || info.StartOffset > at {
		return 0, fmt.Errorf("asked from offset %d, the server answers from %d for %d bytes", at, info.StartOffset, info.Length)
	}
	end := info.StartOffset + info.Length
	if end < info.StartOffset || len(*out)+len(info.ChangedArea) > maxAreas {
		return 0, errors.New("the server's answer makes no sense")
	}
	for _, a := range info.ChangedArea {
		if a.Start < 0 || a.Length < 0 || a.Start > size || a.Length > size-a.Start {
			return 0, fmt.Errorf("the server tells of an area at %d of %d bytes in a disk of %d", a.Start, a.Length, size)
		}
		if a.Length > 0 {
			*out = append(*out, Extent{a.Start, a.Length}) // one that reaches beyond the window is told again, and joined
		}
	}
	return max(end, at), nil
}

func joinExtents(in []Extent) []Extent {
	slices.SortFunc(in, func(a, b Extent) int {
		switch {
		case a.Offset < b.Offset:
			return -1
		case a.Offset > b.Offset:
			return 1
		}
		return 0
	})
	out := in[:0]
	for _, e := range in {
		if n := len(out); n > 0 && e.Offset <= out[n-1].Offset+out[n-1].Length {
			out[n-1].Length = max(out[n-1].Length, e.Offset+e.Length-out[n-1].Offset)
			continue
		}
		out = append(out, e)
	}
	return out
}

// changeIDRefused recognises the faults by which hosts say that a change ID is
// of no use: FileFault ("Error caused by file"), InvalidArgument for its text,
// and NotFound for a state that is gone.
func changeIDRefused(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Fault {
	case "FileFault", "FileNotFound", "CannotAccessFile", "InvalidArgument", "NotFound", "InvalidFormat", "SystemError", "GenericVmConfigFault":
		return &Error{
			Op: e.Op, Kind: ErrChangeID, Fault: e.Fault, Detail: e.Detail, Err: err,
			Text: "the host cannot tell what changed since then; the disk has to be read in full",
		}
	}
	return err
}
