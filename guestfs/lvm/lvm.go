// Package lvm assembles the logical volumes of a guest from its disks, by
// reading LVM2's metadata. Nothing is activated on the host, and nothing
// compares names: two guests may have the same names and the same UUIDs, and be
// open at the same time.
//
// Linear, striped, mirrored, raid1 and thin volumes are assembled. Others (caches,
// parity RAID, old snapshots) are listed and refused by name. Thin pools are not
// listed: nobody can read what is in one but through its volumes.
package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Group is a volume group.
type Group struct {
	Name    string   `json:"name"`
	UUID    string   `json:"uuid"`
	Volumes []Volume `json:"volumes"` // those that a person sees, by name
	// Missing are the UUIDs of physical volumes that are on no disk given.
	Missing []string `json:"missing,omitempty"`
	// Shared: it has thin volumes or snapshots, so that what lies where one volume
	// is may belong to another, too.
	Shared bool `json:"-"`
}

// Volume is a logical volume.
type Volume struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
	Size int64  `json:"size"` // bytes
	// Err says why it cannot be opened: a guestfs.UnsupportedError,
	// guestfs.CorruptError or ErrMissing. nil: it can.
	Err error `json:"-"`

	layout *layout
	thin   *thin // instead of layout
}

// ErrMissing says that a disk which the volume needs is not among those given.
var ErrMissing = errors.New("a disk of the volume group is missing")

// Open returns the volume as a disk. The images that Scan was given must stay
// open as long.
func (v *Volume) Open(ctx context.Context) (disk.Image, error) {
	if v.Err != nil {
		return nil, fmt.Errorf("logical volume %s: %w", v.Name, v.Err)
	}
	if v.thin != nil {
		img, err := v.thin.open(ctx)
		if err != nil {
			return nil, fmt.Errorf("logical volume %s: %w", v.Name, err)
		}
		return img, nil
	}
	return disk.Assemble(ctx, v.Size, v.layout.piece), nil
}

// Scan finds the volume groups on images, which may be whole disks, partitions
// or other volumes. Images without a label of LVM are passed over. The second
// result says of each image whether it is a physical volume. Damage that keeps
// one physical volume from being read is reported in the error, beside what
// could be assembled of the others.
func Scan(ctx context.Context, images []disk.Image) ([]Group, []bool, error) {
	var (
		pvs      []*physical
		is       = make([]bool, len(images))
		problems []error
	)
	for i, img := range images {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		pv, err := probe(img)
		switch {
		case errors.Is(err, guestfs.ErrNoFS):
			continue
		case err != nil:
			problems = append(problems, fmt.Errorf("disk %d: %w", i, err))
		default:
			pvs = append(pvs, pv)
		}
		is[i] = true
	}
	var groups []Group
	for _, newest := range newestOfEachGroup(pvs) {
		g, err := assemble(newest, pvs)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(a, b Group) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	return groups, is, errors.Join(problems...)
}

// newestOfEachGroup picks, of the physical volumes of each group, the one whose
// metadata are newest: a disk that was away for a while has old ones.
func newestOfEachGroup(pvs []*physical) []*physical {
	best := map[string]*physical{}
	var order []string
	for _, pv := range pvs {
		if pv.vg == nil {
			continue
		}
		id := pv.vg.str("id")
		if best[id] == nil {
			order = append(order, id)
		}
		if best[id] == nil || pv.seq > best[id].seq {
			best[id] = pv
		}
	}
	var out []*physical
	for _, id := range order {
		out = append(out, best[id])
	}
	return out
}

// group is a volume group while it is put together.
type group struct {
	name    string
	extent  int64               // bytes
	devices map[string]*device  // physical volumes by their name in the metadata
	lvs     map[string]*section // logical volumes, hidden ones too
	built   map[string]*layout
}

// device is a physical volume in the metadata's eyes.
type device struct {
	img   disk.Image // nil: missing
	start int64      // of extent 0, bytes
}

const (
	maxExtent  = 1 << 40 // bytes
	maxVolume  = 1 << 60 // bytes
	maxVolumes = 1 << 16
)

func assemble(newest *physical, pvs []*physical) (*Group, error) {
	vg := newest.vg
	sectors, err := vg.num("extent_size")
	if err != nil {
		return nil, err
	}
	if sectors == 0 || sectors > maxExtent/sector {
		return nil, corrupt("group %s: extents of %d sectors", newest.name, sectors)
	}
	g := &group{name: newest.name, extent: sectors * sector, devices: map[string]*device{}, lvs: map[string]*section{}, built: map[string]*layout{}}
	out := &Group{Name: newest.name, UUID: vg.str("id")}
	if list := vg.sections["physical_volumes"]; list != nil {
		for _, name := range list.order {
			missing, err := g.addDevice(name, list.sections[name], pvs)
			if err != nil {
				return nil, err
			}
			if missing != "" {
				out.Missing = append(out.Missing, missing)
			}
		}
	}
	list := vg.sections["logical_volumes"]
	if list == nil {
		return out, nil
	}
	if len(list.order) > maxVolumes {
		return nil, corrupt("group %s: %d volumes", g.name, len(list.order))
	}
	g.lvs = list.sections
	for _, name := range list.order {
		lv := list.sections[name]
		out.Shared = out.Shared || lv.shares()
		if !lv.has("status", "VISIBLE") || isPool(lv) {
			continue
		}
		v := Volume{Name: name, UUID: lv.str("id")}
		t, isThin, err := g.thinOf(lv)
		switch {
		case isThin:
			v.thin, v.Err = t, err
			if t != nil {
				v.Size = t.size
			}
		default:
			v.layout, v.Err = g.layoutOf(name, 0)
			if v.layout != nil {
				v.Size = v.layout.size
			}
		}
		out.Volumes = append(out.Volumes, v)
	}
	slices.SortFunc(out.Volumes, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// shares reports whether a volume has its content in common with others.
func (s *section) shares() bool {
	for _, segment := range s.sections {
		switch segment.str("type") {
		case "snapshot", "thin", "thin-pool":
			return true
		}
	}
	return false
}

// addDevice finds the image of a physical volume and returns its UUID if there
// is none.
func (g *group) addDevice(name string, s *section, pvs []*physical) (missing string, err error) {
	start, err := s.num("pe_start")
	if err != nil {
		return "", err
	}
	if start > maxVolume/sector {
		return "", corrupt("physical volume %s begins at sector %d", name, start)
	}
	d := &device{start: start * sector}
	g.devices[name] = d
	id := s.str("id")
	for _, pv := range pvs {
		if pv.uuid == id {
			d.img = pv.img
			return "", nil
		}
	}
	return id, nil
}
