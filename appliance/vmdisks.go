package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"lifeboat/disk"
	"lifeboat/store"
	"lifeboat/vsphere"
)

// configFileDisks is the file in a point that says what its disks were when they
// were read, for the backup after it.
const configFileDisks = "disks.json"

// labelJob is the label of a point that `backup vm` made. Its disks.json counts
// only while the label is there and names the same job: a point that was made of
// this one (what a recovered VM wrote, kept) has other content.
const labelJob = "job"

// savedDisks is disks.json.
type savedDisks struct {
	Format int         `json:"format"`
	Job    string      `json:"job"`
	Disks  []savedDisk `json:"disks"`
	// Restored is the VM's extraRestored when the point was made.
	Restored string `json:"restored,omitempty"`
}

const savedDisksFormat = 1

// savedDisk is one disk as it was in the snapshot that was read.
type savedDisk struct {
	Key        int32              `json:"key"`
	UUID       string             `json:"uuid"`
	ChangeID   string             `json:"change_id,omitempty"`
	Size       int64              `json:"size"`
	File       string             `json:"file"`
	Label      string             `json:"label"`
	Mode       string             `json:"mode"`
	Thin       bool               `json:"thin,omitempty"`
	Controller vsphere.Controller `json:"controller"`
	Unit       int32              `json:"unit"`
	// LeftOut is what reads as zeros in the point and did not in the VM: pairs of
	// offset and length. See skipzones.go.
	LeftOut [][2]int64 `json:"left_out,omitempty"`
	// SinceAudit is how many points in a row trusted change tracking.
	SinceAudit int `json:"since_audit"`
	// Distrust is the epoch of change tracking (see changeID) in which it did not
	// tell all that had changed.
	Distrust string `json:"distrust,omitempty"`
}

func (d *savedDisk) leftOut() areas {
	runs := make([]disk.Extent, len(d.LeftOut))
	for i, pair := range d.LeftOut {
		runs[i] = disk.Extent{Offset: pair[0], Length: pair[1]}
	}
	return areasOf(runs, d.Size)
}

func pairs(a areas) [][2]int64 {
	var out [][2]int64
	for _, e := range a {
		out = append(out, [2]int64{e.Offset, e.Length})
	}
	return out
}

// readSavedDisks returns nil where the point has none that count.
func readSavedDisks(ctx context.Context, repo *store.Repository, pt *store.Point) (*savedDisks, error) {
	if pt.Labels[labelJob] == "" || !slices.ContainsFunc(pt.Config, func(f store.ConfigFile) bool { return f.Name == configFileDisks }) {
		return nil, nil
	}
	data, err := repo.Config(ctx, pt, configFileDisks)
	if err != nil {
		return nil, err
	}
	saved := new(savedDisks)
	if err := json.Unmarshal(data, saved); err != nil {
		return nil, fmt.Errorf("restore point %s: its %s: %w", pt.ID, configFileDisks, err)
	}
	if saved.Format != savedDisksFormat || saved.Job != pt.Labels[labelJob] {
		return nil, nil
	}
	return saved, nil
}

func (s *savedDisks) disk(key int32) *savedDisk {
	if s == nil {
		return nil
	}
	for i := range s.Disks {
		if s.Disks[i].Key == key {
			return &s.Disks[i]
		}
	}
	return nil
}

// changeID is VMware's name of a state of a disk, "<epoch>/<number>". The epoch
// is new whenever tracking starts afresh, and numbers grow within it.
type changeID string

// epoch is the part before the number.
func (c changeID) epoch() string {
	if i := strings.LastIndexByte(string(c), '/'); i >= 0 {
		return string(c[:i])
	}
	return string(c)
}

// number is -1 where there is none.
func (c changeID) number() int64 {
	i := strings.LastIndexByte(string(c), '/')
	n, err := strconv.ParseInt(string(c[i+1:]), 10, 64)
	if i < 0 || err != nil {
		return -1
	}
	return n
}

// How a disk is read.
const (
	readChanged   = "changed"   // what change tracking names
	readAllocated = "allocated" // everything that the datastore stores of it, compared with the point before
	readWhole     = "whole"     // everything, compared likewise
)

// diskPlan is how a disk is going to be read and why.
type diskPlan struct {
	How string
	// Why is a sentence where How is not readChanged although there is a point
	// before, or empty.
	Why string
	// Warn: a person wants to know of Why, because it is not in the order of things.
	Warn bool
	// Claimed is what change tracking says has changed, where it was asked: with
	// readChanged what is read, else what is checked (Audit).
	Claimed areas
	Audit   bool
	// Allocated is what may be other than zeros, with readAllocated.
	Allocated areas
	// Distrust goes into the new point's savedDisk, and SinceAudit likewise.
	Distrust   string
	SinceAudit int
}

// distrusted decides by what is known of the disk, before anything is asked,
// whether the list of changes since old may be used, and says why not.
func distrusted(d vsphere.Disk, old *savedDisk) (why string, warn bool) {
	then, now := changeID(old.ChangeID), changeID(d.ChangeID)
	switch {
	case old.Size != d.Size:
		return fmt.Sprintf("its size changed from %d to %d bytes", old.Size, d.Size), false
	case old.UUID != d.UUID:
		return "another disk is in the place of the one before", false
	case now == "":
		return "changes are not tracked yet", false
	case then == "":
		return "changes were not tracked when the point before was made", false
	case then.epoch() != now.epoch():
		return "change tracking started afresh since the point before", false
	case then.number() < 0 || now.number() < then.number():
		return "the VM was taken back to an earlier state", false
	case old.Distrust != "" && old.Distrust == now.epoch():
		return "change tracking has missed changes before; switch it off and on again for this VM to make it start afresh", true
	}
	return "", false
}

// tracker is who knows what changed: a snapshot of a VM.
type tracker interface {
	// areas returns what changed in a disk since the change ID, or what is
	// allocated (vsphere.Allocated). vsphere.ErrChangeID: it cannot be told.
	areas(ctx context.Context, d vsphere.Disk, changeID string) (areas, error)
}

// planOptions are the wishes that planning heeds.
type planOptions struct {
	full       bool // nothing that tracking says is believed
	restored   bool // the disks were written to behind its back; see extraRestored
	auditEvery int  // every so many points tracking is checked; 0: never
}

// planDisk decides how to read a disk. old is the same disk in the point before,
// nil where there is none.
func planDisk(ctx context.Context, t tracker, d vsphere.Disk, old *savedDisk, o planOptions) (*diskPlan, error) {
	p := &diskPlan{How: readWhole}
	switch {
	case old == nil:
	case o.full:
		p.Why = "asked for"
	case o.restored:
		p.Why = whyRestored
	default:
		p.Why, p.Warn = distrusted(d, old)
	}
	if old != nil && d.ChangeID != "" && old.Distrust == changeID(d.ChangeID).epoch() {
		p.Distrust = old.Distrust
	}
	if d.ChangeID == "" {
		return p, nil // nobody to ask
	}
	if old != nil && p.Why == "" {
		claimed, err := t.areas(ctx, d, old.ChangeID)
		switch {
		case errors.Is(err, vsphere.ErrChangeID):
			p.Why, p.Warn = err.Error(), true
		case err != nil:
			return nil, err
		case o.auditEvery > 0 && old.SinceAudit+1 >= o.auditEvery:
			p.Claimed, p.Audit, p.Why = claimed, true, "change tracking is checked"
		default:
			p.How, p.Claimed, p.SinceAudit = readChanged, claimed, old.SinceAudit+1
			return p, nil
		}
	}
	allocated, err := t.areas(ctx, d, vsphere.Allocated)
	switch {
	case err == nil:
		p.How, p.Allocated = readAllocated, allocated
	case !errors.Is(err, vsphere.ErrChangeID):
		return nil, err
	}
	return p, nil
}

// snapshotTracker asks vSphere.
type snapshotTracker struct {
	client       *vsphere.Client
	vm, snapshot vsphere.Ref
}

func (t snapshotTracker) areas(ctx context.Context, d vsphere.Disk, changeID string) (areas, error) {
	list, err := t.client.ChangedAreas(ctx, t.vm, t.snapshot, d.Key, changeID, d.Size)
	if err != nil {
		return nil, err
	}
	runs := make([]disk.Extent, len(list))
	for i, e := range list {
		runs[i] = disk.Extent{Offset: e.Offset, Length: e.Length}
	}
	return areasOf(runs, d.Size), nil
}

// untracked is the tracker of a VM without a snapshot.
type untracked struct{}

func (untracked) areas(context.Context, vsphere.Disk, string) (areas, error) {
	return nil, vsphere.ErrChangeID
}
