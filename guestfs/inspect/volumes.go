package inspect

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/lvm"
	"lifeboat/guestfs/partition"
)

// findVolumes lists what partitions, encryption and LVM make of the disks.
// Encryption may be below LVM and above it.
func (g *Guest) findVolumes(ctx context.Context, disks []disk.Image, secrets []crypt.Secret) error {
	found, images, err := g.findPartitions(ctx, disks)
	if err == nil {
		err = g.unlockAll(ctx, found, images, secrets)
	}
	if err != nil {
		return err
	}
	groups, isPV, err := lvm.Scan(ctx, images)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		g.note("logical volumes: %v", err)
	}
	for i, v := range found {
		if isPV == nil || !isPV[i] {
			g.add(v, images[i])
		}
	}
	first := len(g.report.Volumes)
	g.addGroups(ctx, groups)
	return g.unlockAll(ctx, g.report.Volumes[first:], g.images[first:], secrets)
}

// findPartitions lists the partitions of the disks, and the disks without any.
func (g *Guest) findPartitions(ctx context.Context, disks []disk.Image) (found []Volume, images []disk.Image, err error) {
	for i, img := range disks {
		table, err := partition.Read(ctx, img)
		switch {
		case errors.Is(err, guestfs.ErrCorrupt):
			g.note("disk %d: %v", i, err)
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("disk %d: %w", i, err)
		}
		for _, n := range table.Notes {
			g.note("disk %d: %s", i, n)
		}
		if table.Scheme == partition.None {
			found = append(found, Volume{Name: fmt.Sprintf("disk%d", i), Place: Place{Disk: i}})
			images = append(images, img)
			continue
		}
		for _, p := range table.Partitions {
			found = append(found, Volume{Name: fmt.Sprintf("disk%dp%d", i, p.Number), Place: Place{
				Disk: i, Partition: p.Number, Start: p.Start, DiskID: table.ID, PartUUID: p.ID, PartLabel: p.Label,
			}})
			images = append(images, disk.Section(ctx, img, p.Start, p.Size))
		}
	}
	return found, images, nil
}

func (g *Guest) addGroups(ctx context.Context, groups []lvm.Group) {
	names := map[string]bool{}
	for _, group := range groups {
		if n := len(group.Missing); n > 0 {
			g.note("volume group %s: %d of its disks are not in this restore point", group.Name, n)
		}
		for _, lv := range group.Volumes {
			name := mapperName(group.Name) + "-" + mapperName(lv.Name)
			for n, free := 2, name; names[name]; n++ {
				name = fmt.Sprintf("%s~%d", free, n)
			}
			names[name] = true
			g.addLogical(ctx, name, group.Name, lv)
		}
	}
}

func (g *Guest) addLogical(ctx context.Context, name, group string, lv lvm.Volume) {
	v := Volume{Name: name, Place: Place{Disk: -1, Group: group, Logical: lv.Name}}
	img, err := lv.Open(ctx)
	if err == nil {
		g.add(v, img)
		return
	}
	v.Info = guestfs.Info{Size: lv.Size, Used: -1, State: guestfs.Damaged, Note: err.Error()}
	if errors.Is(err, guestfs.ErrUnsupported) {
		v.State = guestfs.Unsupported
	}
	g.add(v, nil)
}

// mapperName is a name as /dev/mapper has it: with its hyphens doubled, so that
// the one between group and volume is told from them.
func mapperName(s string) string {
	return strings.NewReplacer("/", "_", ":", "_", "-", "--").Replace(s)
}
