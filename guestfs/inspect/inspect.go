// Package inspect finds what is on the disks of a guest: partitions, logical
// volumes, file systems, and the operating systems that use them. It tells where
// a guest mounts what, so that people see /, /home and C: and not partitions.
//
//	disks → partitions → LVM2 → volumes (probe, reader) → systems (os-release,
//	fstab; registry) → mounts
//
// Nothing that is wrong with one volume keeps the others from being used: it is
// said in the volume's State and Note.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/probe"
)

// Native is the Backend of volumes that are read by the readers in Go.
const Native = "native"

// Reader opens the file system on a volume, which stays open as long.
// guestfs.ErrNoFS where it is another one. namesakes are the guest's other volumes
// of the same type and UUID: devices of the same file system, or copies.
type Reader func(ctx context.Context, volume disk.Image, namesakes ...disk.Image) (guestfs.FS, error)

// Readers are by the type that package probe tells.
type Readers map[string]Reader

// Options say what can be read. The zero value can name volumes, and open none.
type Options struct {
	Readers Readers
	// Secrets are tried on encrypted volumes, in order.
	Secrets []crypt.Secret
}

// Report is what was found. It is plain data, and goes through JSON whole.
type Report struct {
	Volumes []Volume `json:"volumes"`
	Systems []System `json:"systems"`
	// Notes say what is wrong with the disks, and was put up with.
	Notes []string `json:"notes,omitempty"`
}

// Validate checks a report that somebody else made: a worker that may have been
// taken over.
func (r *Report) Validate() error {
	names := map[string]bool{}
	for _, v := range r.Volumes {
		if v.Name == "" || strings.ContainsAny(v.Name, "/:") || names[v.Name] {
			return fmt.Errorf("a volume called %.100q", v.Name)
		}
		names[v.Name] = true
	}
	for _, s := range r.Systems {
		if len(s.Mounts) > maxMounts {
			return fmt.Errorf("%d mounts", len(s.Mounts))
		}
		for _, m := range s.Mounts {
			if m.Volume < 0 || m.Volume >= len(r.Volumes) || path.Clean(m.Path) != m.Path || !strings.HasPrefix(m.Path, "/") {
				return fmt.Errorf("a mount of volume %d at %.100q", m.Volume, m.Path)
			}
		}
	}
	if len(r.Volumes) > maxVolumes {
		return fmt.Errorf("%d volumes", len(r.Volumes))
	}
	return nil
}

// Volume is something that holds a file system, or could.
type Volume struct {
	// Name is what people call it by: "disk0p1", "disk1" (a disk without
	// partitions), "vg-root" (a logical volume, as the guest's /dev/mapper has
	// it). It is unique within the guest and has no slash.
	Name string `json:"volume"`
	guestfs.Info
	Mounts  []string `json:"mounts"`            // "/", "/home", "C:"; sorted
	Backend string   `json:"backend,omitempty"` // what reads it; empty: nothing can
	Place   Place    `json:"place"`

	locked string // what an encrypted volume says while it is closed
}

// Usable reports whether there is a file system that can be read.
func (v *Volume) Usable() bool { return v.Backend != "" }

// Place is where a volume stands.
type Place struct {
	Disk      int    `json:"disk"`                // index; -1 for a logical volume
	Partition int    `json:"partition,omitempty"` // as Linux counts; 0: the whole disk
	Start     int64  `json:"start,omitempty"`     // bytes on the disk
	DiskID    string `json:"disk_id,omitempty"`   // GUID of a GPT, or 8 hex digits of an MBR
	PartUUID  string `json:"part_uuid,omitempty"`
	PartLabel string `json:"part_label,omitempty"`
	Group     string `json:"group,omitempty"` // LVM2
	Logical   string `json:"logical,omitempty"`
	// Encryption is what the volume is encrypted with ("luks2 aes-xts-plain64"); what
	// else is said of it is of what is inside, once a key has opened it.
	Encryption    string `json:"encryption,omitempty"`
	ContainerUUID string `json:"container_uuid,omitempty"`
}

// Kinds of a System.
const (
	Linux   = "linux"
	Windows = "windows"
)

// System is an operating system that was found.
type System struct {
	Kind    string  `json:"kind"`              // Linux or Windows
	ID      string  `json:"id,omitempty"`      // "debian", "windows"
	Name    string  `json:"name"`              // "Debian GNU/Linux 12 (bookworm)"
	Version string  `json:"version,omitempty"` // "12", "10.0.20348"
	Host    string  `json:"host,omitempty"`    // its name for itself
	Mounts  []Mount `json:"mounts"`
	// Notes say what could not be told of it.
	Notes []string `json:"notes,omitempty"`
}

// Mount is a place in a system's tree and what it shows there.
type Mount struct {
	Path   string `json:"path"`          // "/", "/home", "/C:"
	Volume int    `json:"volume"`        // index in Report.Volumes
	Sub    string `json:"sub,omitempty"` // directory of the volume that is shown (a Btrfs subvolume)
}

// Guest is an inspected set of disks. Safe for concurrent use.
type Guest struct {
	report Report
	images []disk.Image
	fs     []guestfs.FS // nil: cannot be read
}

// Limits of what is believed of a guest.
const (
	maxVolumes = 1024
	maxNotes   = 64
)

// Open looks at a guest's disks, which must stay open as long. It fails where a
// disk cannot be read at all; whatever else is wrong is in the Report.
func Open(ctx context.Context, disks []disk.Image, opts Options) (*Guest, error) {
	g := &Guest{}
	if err := g.findVolumes(ctx, disks, opts.Secrets); err != nil {
		return nil, err
	}
	g.fs = make([]guestfs.FS, len(g.images))
	if err := g.probe(ctx); err != nil {
		return nil, err
	}
	for i := range g.images {
		if err := g.openVolume(ctx, i, opts.Readers); err != nil {
			return nil, err
		}
	}
	g.findSystems(ctx)
	return g, nil
}

// Report is what was found. It is not to be changed.
func (g *Guest) Report() *Report { return &g.report }

// FS is the file system of a volume, by its index.
func (g *Guest) FS(i int) (guestfs.FS, error) {
	if i < 0 || i >= len(g.fs) {
		return nil, fmt.Errorf("there is no volume %d", i)
	}
	if g.fs[i] == nil {
		return nil, Unusable(&g.report.Volumes[i])
	}
	return g.fs[i], nil
}

// Image is the content of a volume, by its index: of an encrypted one that a key
// has opened, what is inside. It is the Guest's: nobody else closes it.
func (g *Guest) Image(i int) (disk.Image, error) {
	if i < 0 || i >= len(g.images) {
		return nil, fmt.Errorf("there is no volume %d", i)
	}
	return g.images[i], nil
}

// Open is FS for Tree.
func (g *Guest) Open(_ context.Context, volume int) (guestfs.FS, error) { return g.FS(volume) }

// Unusable is why a volume cannot be read.
func Unusable(v *Volume) error {
	kind := guestfs.ErrUnsupported
	switch v.State {
	case guestfs.Encrypted:
		kind = guestfs.ErrEncrypted
	case guestfs.Damaged:
		kind = guestfs.ErrCorrupt
	}
	if v.Note == "" {
		return fmt.Errorf("volume %s: %w", v.Name, kind)
	}
	return fmt.Errorf("volume %s: %s: %w", v.Name, v.Note, kind)
}

func (g *Guest) note(format string, args ...any) {
	if len(g.report.Notes) < maxNotes {
		g.report.Notes = append(g.report.Notes, fmt.Sprintf(format, args...))
	}
}

// add takes a volume in.
func (g *Guest) add(v Volume, img disk.Image) {
	if len(g.report.Volumes) >= maxVolumes {
		g.note("there are more than %d volumes; the rest is left out", maxVolumes)
		return
	}
	v.Mounts = []string{}
	g.report.Volumes = append(g.report.Volumes, v)
	g.images = append(g.images, img)
}

// probe tells what is on the volumes.
func (g *Guest) probe(ctx context.Context) error {
	for i, img := range g.images {
		if img == nil {
			continue // its State says why
		}
		info, err := probe.Volume(ctx, img)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		g.report.Volumes[i].Info = info
		g.report.Volumes[i].fail(err)
		g.report.Volumes[i].stayLocked()
	}
	return nil
}

// fail says in a volume's State and Note why it cannot be read, or not be told.
func (v *Volume) fail(err error) {
	switch {
	case err == nil:
	case errors.Is(err, guestfs.ErrNoFS):
		v.State, v.Note = guestfs.Unsupported, "nothing that is known is on it"
	case errors.Is(err, guestfs.ErrEncrypted):
		v.State, v.Note = guestfs.Encrypted, err.Error()
	case errors.Is(err, guestfs.ErrUnsupported):
		v.State, v.Note = guestfs.Unsupported, err.Error()
	default:
		v.State, v.Note = guestfs.Damaged, err.Error()
	}
}

// openVolume opens a volume that can be read. An error is one that ends
// everything: the caller has gone.
func (g *Guest) openVolume(ctx context.Context, i int, readers Readers) error {
	v := &g.report.Volumes[i]
	if g.images[i] == nil || v.Type == "" || v.State != "" && readers[v.Type] == nil {
		return nil
	}
	err := g.read(ctx, i, readers)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	v.fail(err)
	return nil
}

// namesakes are the other volumes that call themselves the same.
func (g *Guest) namesakes(i int) []disk.Image {
	var out []disk.Image
	for j := range g.images {
		a, b := &g.report.Volumes[i], &g.report.Volumes[j]
		if i != j && g.images[j] != nil && a.UUID != "" && a.UUID == b.UUID && a.Type == b.Type {
			out = append(out, g.images[j])
		}
	}
	return out
}

func (g *Guest) read(ctx context.Context, i int, readers Readers) error {
	v := &g.report.Volumes[i]
	open := readers[v.Type]
	if open == nil {
		return &guestfs.UnsupportedError{FS: v.Type, What: "a reader for it"}
	}
	namesakes := g.namesakes(i)
	fsys, err := open(ctx, g.images[i], namesakes...)
	if err != nil {
		return err
	}
	g.fs[i], v.Backend, v.State = fsys, Native, guestfs.Clean
	if d, ok := fsys.(guestfs.Describer); ok {
		v.Info = d.Info()
	}
	if missing := v.Size - g.images[i].Size(); missing > 0 && len(namesakes) == 0 {
		v.State, v.Note = guestfs.Damaged, strings.TrimPrefix(v.Note+fmt.Sprintf("; the last %d bytes of it are missing from the disk", missing), "; ")
	}
	return nil
}
