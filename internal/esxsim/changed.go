package esxsim

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// maxAreas is how many areas one answer has at most [field: about 2,000].
const maxAreas = 2000

// QueryChangedDiskAreas [API, KB 1020128]: what differs between the state of a
// change ID, or nothing at all for "*", and a snapshot (or now, without one).
// The answer speaks of startOffset to startOffset+length only.
func (d *vmCalls) QueryChangedDiskAreas(_ *simulator.Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	info, f := d.s.changedAreas(req)
	if f != nil {
		return &methods.QueryChangedDiskAreasBody{Fault_: fault(f, describe(f))}
	}
	return &methods.QueryChangedDiskAreasBody{Res: &types.QueryChangedDiskAreasResponse{Returnval: *info}}
}

func (s *Sim) changedAreas(req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vms[req.This]
	if v == nil {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	l, track, f := s.trackedState(v, req)
	if f != nil {
		return nil, f
	}
	if req.StartOffset < 0 || req.StartOffset >= l.size {
		// At the end of the disk it faults; it does not say "nothing" [field].
		return nil, said(&types.InvalidArgument{InvalidProperty: "startOffset"}, "vim.fault.invalidArgument", "A specified parameter was not correct: startOffset")
	}
	if track.uuid == "" {
		return nil, trackFault(l, "change tracking is not in effect")
	}
	all, f := changesSince(l, track, req.ChangeId)
	if f != nil {
		return nil, f
	}
	if d := v.diskByKey(req.DeviceKey); d != nil && d.lied && req.ChangeId != "*" && len(all) > 0 {
		all = all[:len(all)-1]
	}
	return window(all, req.StartOffset, min(req.StartOffset+s.opts.CBTWindow, l.size)), nil
}

func trackFault(l *layer, why string) types.BaseMethodFault {
	return said(&types.FileFault{File: l.at.String()}, "msg.ctk", "Error caused by file %s: %s", l.at.String(), why) // [KB 2114053]
}

// trackedState finds the layer and the tracking that a request speaks of.
func (s *Sim) trackedState(v *vm, req *types.QueryChangedDiskAreas) (*layer, frozenTrack, types.BaseMethodFault) {
	if req.Snapshot == nil {
		d := v.diskByKey(req.DeviceKey)
		if d == nil {
			return nil, frozenTrack{}, &types.InvalidArgument{InvalidProperty: "deviceKey"}
		}
		if v.power == types.VirtualMachinePowerStatePoweredOn {
			// The disk is locked by the running machine [API: only without
			// a snapshot when powered off].
			return nil, frozenTrack{}, trackFault(d.top, "the disk is in use")
		}
		d.track.mu.Lock()
		defer d.track.mu.Unlock()
		f := frozenTrack{epoch: d.track.epoch, blocks: maps.Clone(d.track.blocks)}
		if d.track.on {
			f.uuid = d.track.uuid
		}
		return d.top, f, nil
	}
	n := s.snapshots[*req.Snapshot]
	if n == nil || n.vm != v {
		return nil, frozenTrack{}, &types.ManagedObjectNotFound{Obj: *req.Snapshot}
	}
	l := n.layers[req.DeviceKey]
	if l == nil {
		return nil, frozenTrack{}, &types.InvalidArgument{InvalidProperty: "deviceKey"}
	}
	return l, n.tracks[req.DeviceKey], nil
}

func changesSince(l *layer, track frozenTrack, id string) ([]extent, types.BaseMethodFault) {
	if id == "*" {
		all, err := l.allocated()
		if err != nil {
			return nil, fileFault(l.at.String(), err)
		}
		return all, nil
	}
	uuid, number, ok := strings.Cut(id, "/")
	since, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil {
		return nil, said(&types.InvalidArgument{InvalidProperty: "changeId"}, "vim.fault.invalidArgument", "A specified parameter was not correct: changeId")
	}
	if uuid != track.uuid || since > track.epoch {
		return nil, trackFault(l, "the change ID is of another state of the disk")
	}
	var blocks []int64
	for b, epoch := range track.blocks {
		if epoch > since {
			blocks = append(blocks, b)
		}
	}
	slices.Sort(blocks)
	return joinBlocks(blocks, l.size), nil
}

// window is the part of the areas that one answer has room for.
func window(all []extent, from, to int64) *types.DiskChangeInfo {
	info := &types.DiskChangeInfo{StartOffset: from}
	for _, e := range all {
		start, end := max(e.off, from), min(e.off+e.length, to)
		if start >= end {
			continue
		}
		if len(info.ChangedArea) == maxAreas {
			to = start
			break
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: start, Length: end - start})
	}
	info.Length = to - from
	return info
}
