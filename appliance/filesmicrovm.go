package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/microvm"
	"lifeboat/guestfs/probe"
	"lifeboat/guestfs/worker"
)

// Backend is what reads guests' file systems.
type Backend string

// The backends.
const (
	// BackendAuto is the readers in Go, and the micro-VM for what they do not know
	// or cannot show as the guest would see it.
	BackendAuto    Backend = ""
	BackendNative  Backend = "native"
	BackendMicroVM Backend = "microvm"
)

// kernelTypes are the file systems that the micro-VM's kernel mounts, by the
// name that probe gives them.
func kernelTypes() map[string]string {
	return map[string]string{
		probe.Ext: "ext4", "ext2": "ext4", "ext3": "ext4", "ext4": "ext4", probe.XFS: "xfs", probe.Btrfs: "btrfs", probe.FAT: "vfat", probe.ExFAT: "exfat",
		probe.ISO: "iso9660", probe.Squash: "squashfs", "udf": "udf", "erofs": "erofs",
	}
}

// microvmAvailable says why there can be no micro-VM, or nil.
func microvmAvailable(o microvm.Options) error {
	if o.CacheDir == "" {
		return microvm.ErrUnavailable
	}
	return microvm.Available(o)
}

// machines are the micro-VMs of a guest: one for each volume that needs one,
// started when somebody first looks.
type machines struct {
	session *worker.Session
	opts    microvm.Options
	log     *slog.Logger
	plans   map[int]plan

	backend Backend

	mu      sync.Mutex // held while one is started: they are heavy
	running map[int]kernelFS
	ends    []func()
}

// kernelFS is a file system that some kernel reads.
type kernelFS interface {
	guestfs.FS
	Close() error
}

// plan is how a volume is read by a machine.
type plan struct {
	fsType  string
	members []int // volumes that are its disks
	array   bool
}

// planMachines decides which volumes a machine reads, and says so in the report.
// The report is a copy: the worker's own stays.
func planMachines(r *inspect.Report, backend Backend, available error) (*inspect.Report, map[int]plan) {
	out := *r
	out.Volumes = slices.Clone(r.Volumes)
	plans := map[int]plan{}
	if backend == BackendNative {
		return &out, plans
	}
	arrays := map[string][]int{}
	reader := BackendMicroVM
	if backend == BackendKernel {
		reader, available = BackendKernel, nil
	}
	for i := range out.Volumes {
		v := &out.Volumes[i]
		if v.Type == probe.MD && backend != BackendKernel {
			arrays[v.UUID] = append(arrays[v.UUID], i)
			continue
		}
		fsType, known := kernelTypes()[v.Type]
		wanted := backend != BackendAuto || !v.Usable() && v.State != guestfs.Encrypted || v.State == guestfs.Dirty && journaled(fsType)
		if !known || !wanted {
			continue
		}
		if available != nil {
			v.Note = joinNotes(v.Note, available.Error())
			continue
		}
		plans[i] = plan{fsType: fsType, members: []int{i}}
		v.Backend = string(reader)
	}
	planArrays(&out, arrays, plans, available)
	return &out, plans
}

// journaled reports whether the kernel has something to replay.
func journaled(fsType string) bool {
	return fsType == "ext4" || fsType == "xfs" || fsType == "btrfs"
}

// planArrays makes a volume of each array of Linux's software RAID. What is on it
// shows when it is mounted.
func planArrays(r *inspect.Report, arrays map[string][]int, plans map[int]plan, available error) {
	for i := range r.Volumes {
		members := arrays[r.Volumes[i].UUID]
		if r.Volumes[i].Type != probe.MD || members[0] != i {
			continue
		}
		first := r.Volumes[i]
		v := inspect.Volume{
			Name:  fmt.Sprintf("md-%.8s", first.UUID),
			Info:  guestfs.Info{Type: "md", Label: first.Label, UUID: first.UUID, Used: -1, State: guestfs.Unsupported},
			Place: inspect.Place{Disk: -1},
		}
		if available != nil {
			v.Note = available.Error()
		} else {
			v.Backend, v.State = string(BackendMicroVM), guestfs.Clean
			v.Note = fmt.Sprintf("a software RAID of %d members; what is on it shows when it is opened", len(members))
			plans[len(r.Volumes)] = plan{members: members, array: true}
		}
		r.Volumes = append(r.Volumes, v)
	}
}

func joinNotes(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// open is the file system of a volume that a machine reads.
func (m *machines) open(ctx context.Context, volume int) (guestfs.FS, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.running[volume]; f != nil {
		return f, nil
	}
	p := m.plans[volume]
	var disks []disk.Image
	for _, i := range p.members {
		// They are read for as long as the machine runs.
		img, err := m.session.Volume(context.WithoutCancel(ctx), i)
		if err != nil {
			closeImages(disks)
			return nil, err
		}
		disks = append(disks, img)
	}
	f, err := m.boot(ctx, p, disks)
	if err != nil {
		closeImages(disks)
		return nil, err
	}
	if m.running == nil {
		m.running = map[int]kernelFS{}
	}
	m.running[volume] = f
	m.ends = append(m.ends, func() {
		if err := f.Close(); err != nil {
			m.log.Warn("a kernel that read a volume did not let go of it in order", "error", err)
		}
		closeImages(disks)
	})
	return f, nil
}

// boot starts a machine. Of an array it is not known what is on it: the machine
// looks.
func (m *machines) boot(ctx context.Context, p plan, disks []disk.Image) (kernelFS, error) {
	if m.backend == BackendKernel {
		k, err := mountKernel(ctx, disks[0], p.fsType, m.log)
		if err != nil {
			return nil, err
		}
		return k, nil
	}
	m.log.Info("a micro-VM reads the volume", "type", p.fsType, "disks", len(disks))
	f, err := microvm.Open(ctx, microvm.Volume{Type: p.fsType, Disks: disks, Array: p.array}, m.opts)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (m *machines) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, end := range m.ends {
		end()
	}
	m.ends, m.running = nil, nil
}
