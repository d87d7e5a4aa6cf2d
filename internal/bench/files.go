package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lifeboat/appliance"
	"lifeboat/guestfs"
	"lifeboat/guestfs/microvm"
	"lifeboat/internal/guestimage"
	"lifeboat/store"
)

// Targets of the figures about guests' files.
const (
	listClean    = 100  // ms
	listReplayed = 1000 // ms
	listMicroVM  = 6000 // ms
	walkSeconds  = 2
	readRatio    = 0.6 // of the kernel's mount
	fuseRatio    = 0.5
	fuseRate     = 400 // MB/s
	decodeRate   = 250 // MB/s
	memoryNative = 150 // MB
	memoryVM     = 450 // MB
)

// filesCache is the repository's cache in sessions on files, in bytes, as the
// commands have it.
const filesCache = 24 << 20

// kernelPeer is what most of these figures are compared with.
const kernelPeer = "kernel, loop mount"

// files: what a session on a guest's files costs. Ours reads restore points, from
// the password on; the peer is this machine's own kernel, which mounts the same
// image on a loop device. Both begin with nothing known of the file system: the
// kernel's mount is as new as our session. What differs is said by each row.
func (b *bench) files(ctx context.Context) (err error) {
	g, err := b.newGuests(ctx)
	if g != nil {
		defer func() { err = errors.Join(err, g.close()) }()
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, rows := range []func(context.Context) error{
		g.listings, g.walk, g.reads, g.throughFUSE, g.decoding, g.memory, g.changes, g.search,
	} {
		if ctx.Err() == nil {
			if err := rows(ctx); err != nil {
				b.sayf("FAILED %v", err)
				failed = append(failed, err) // the others are worth having
			}
		}
	}
	return errors.Join(append(failed, ctx.Err())...)
}

// filesPrograms are those that the section needs.
func filesPrograms() []string {
	return []string{"losetup", "mount", "mke2fs", "mkfs.xfs", "mkfs.btrfs", "mkfs.ntfs", "ntfs-3g", "wimcapture"}
}

// microVM is how the program that is measured starts its micro-VMs.
func (o options) microVM() (microvm.Options, error) {
	cache, err := os.UserCacheDir()
	return microvm.Options{CacheDir: filepath.Join(cache, "lifeboat"), Agent: filepath.Join(filepath.Dir(o.binary), "lifeboat-agent")}, err
}

// fetchMicroVM makes the micro-VM's kernel while there is a network.
func fetchMicroVM(ctx context.Context, opt options, stderr io.Writer) error {
	vm, err := opt.microVM()
	if err != nil {
		return err
	}
	if err := microvm.Available(vm); err != nil {
		return err
	}
	_, _, err = guestimage.FileSystemVM(ctx, vm.CacheDir, vm.Agent, func(line string) { fmt.Fprintln(stderr, line) })
	return err
}

// instant is when something began, and how much processor time had been used.
type instant struct {
	at  time.Time
	cpu time.Duration
}

// with opens the last restore point of a VM as the commands do, with a repository
// of its own: nothing is cached. began is when the guest began to be opened; the
// password's work is before it.
func (g *guests) with(ctx context.Context, vm string, backend appliance.Backend, fn func(guest *appliance.Guest, began instant) error) (err error) {
	repo, err := appliance.OpenRepository(ctx, g.repo.url, []byte(password), store.Options{CacheBytes: filesCache})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	machine, err := g.b.opt.microVM()
	if err != nil {
		return err
	}
	began := instant{time.Now(), sessionCPU()}
	pt, err := appliance.ResolvePoint(ctx, repo, vm+"@latest")
	if err != nil {
		return err
	}
	guest, err := appliance.OpenGuest(ctx, repo, pt, appliance.GuestOptions{Logger: quiet(), Backend: backend, MicroVM: machine})
	if err != nil {
		return err
	}
	defer guest.Close()
	return fn(guest, began)
}

// listings: from nothing to the first directory listed, with attributes.
func (g *guests) listings(ctx context.Context) error {
	for _, row := range []struct {
		vm      string
		what    string
		backend appliance.Backend
		state   guestfs.State
		target  float64
	}{
		{vmExt4, "ext4, clean", appliance.BackendNative, guestfs.Clean, listClean},
		{vmXFS, "XFS, clean", appliance.BackendNative, guestfs.Clean, listClean},
		{vmBtrfs, "Btrfs, clean", appliance.BackendNative, guestfs.Clean, listClean},
		{vmNTFS, "NTFS, clean", appliance.BackendNative, guestfs.Clean, listClean},
		{vmExt4Live, "ext4, journal replayed", appliance.BackendNative, guestfs.Replayed, listReplayed},
		{vmXFSLive, "XFS, log replayed", appliance.BackendNative, guestfs.Replayed, listReplayed},
		{vmExt4, "ext4, by the micro-VM", appliance.BackendMicroVM, "", listMicroVM},
		{vmExt4Live, "ext4, journal replayed, by the micro-VM", appliance.BackendMicroVM, "", listMicroVM},
	} {
		rounds := g.b.opt.rounds
		if row.backend == appliance.BackendNative {
			rounds *= 3 // they are short
		}
		err := g.b.alone(ctx, Figure{What: "first listing: " + row.what, Unit: "ms", Target: row.target, AtMost: true}, rounds, func(ctx context.Context) (sample, error) {
			var s sample
			err := g.with(ctx, row.vm, row.backend, func(guest *appliance.Guest, began instant) error {
				opened := time.Since(began.at)
				n, err := listRoot(ctx, guest)
				s = sample{milliseconds(time.Since(began.at)), notes{"entries": n, "until the volumes are known": milliseconds(opened), "CPU ms": milliseconds(sessionCPU() - began.cpu)}}
				if state := guest.Report().Volumes[0].State; row.state != "" && state != row.state {
					err = errors.Join(err, fmt.Errorf("%s is %s, and not %s", row.vm, state, row.state))
				}
				return err
			})
			return s, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func listRoot(ctx context.Context, guest *appliance.Guest) (n float64, err error) {
	for _, err := range guest.List(ctx, guest.Report().Volumes[0].Name+"/") {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// walk: everything in a file system with attributes and extended ones, from
// nothing.
func (g *guests) walk(ctx context.Context) error {
	for _, row := range []struct{ vm, what, fsType string }{
		{vmExt4, "ext4", "ext4"}, {vmXFS, "XFS", "xfs"}, {vmBtrfs, "Btrfs", "btrfs"}, {vmNTFS, "NTFS", ""},
	} {
		ours := func(ctx context.Context) (s sample, err error) {
			err = g.with(ctx, row.vm, appliance.BackendNative, func(guest *appliance.Guest, began instant) error {
				fsys, err := guest.Volume(ctx, 0)
				if err != nil {
					return err
				}
				n, err := walkAll(ctx, fsys, fsys.Root())
				s = sample{time.Since(began.at).Seconds(), notes{"entries": float64(n), "CPU s": (sessionCPU() - began.cpu).Seconds()}}
				return enough(n, err)
			})
			return s, err
		}
		peer := func(ctx context.Context) (s sample, err error) {
			began := time.Now()
			dir, unmount, err := g.mount(ctx, row.vm, row.fsType)
			if err != nil {
				return sample{}, err
			}
			defer func() { err = errors.Join(err, unmount()) }()
			n, err := walkKernel(dir)
			return sample{time.Since(began).Seconds(), notes{"entries": float64(n)}}, enough(n, err)
		}
		f := Figure{What: fmt.Sprintf("walk of %d entries with attributes and xattrs: %s", manyFiles, row.what), Unit: "s", Target: walkSeconds, AtMost: true, PeerName: kernelPeer, Absolute: true}
		if row.fsType == "" {
			f.PeerName = "ntfs-3g"
		}
		if err := g.b.compare(ctx, f, g.b.opt.rounds, ours, peer); err != nil {
			return err
		}
	}
	return nil
}

// enough sees to it that nobody wins by leaving something out.
func enough(n int, err error) error {
	if err == nil && n < manyFiles {
		err = fmt.Errorf("only %d entries were found", n)
	}
	return err
}

func walkAll(ctx context.Context, fsys guestfs.FS, dir guestfs.Inode) (n int, err error) {
	for e, err := range guestfs.ReadDirPlus(ctx, fsys, dir, 0, true) {
		if err = errors.Join(err, e.Err); err != nil {
			return n, err
		}
		n++
		if e.Attr.Type() != guestfs.TypeDir {
			continue
		}
		below, err := walkAll(ctx, fsys, e.Inode)
		n += below
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// alone records a figure that has no peer, with its spread in the notes.
func (b *bench) alone(ctx context.Context, f Figure, rounds int, m measure) error {
	var pairs []pair
	var values []float64
	for range rounds {
		s, err := m(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.What, err)
		}
		pairs, values = append(pairs, pair{ours: s, peer: sample{value: math.NaN()}}), append(values, s.value)
	}
	f = f.from(pairs)
	// JSON has no NaN.
	f.Peer, f.Ratio, f.Pairs = 0, Spread{}, nil
	if f.OursNotes == nil {
		f.OursNotes = notes{}
	}
	f.OursNotes["least"], f.OursNotes["most"] = slices.Min(values), slices.Max(values)
	b.add(f)
	return nil
}
