package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/microvm"
	"lifeboat/guestfs/tree"
	"lifeboat/guestfs/worker"
	"lifeboat/store"
)

// GuestWorker is the process that reads guests' file systems, in a program that
// was started as one; then it does not return. In any other it does nothing.
// Programs and tests that open guests call it before everything else.
func GuestWorker() { worker.Main(inspect.NativeReaders()) }

// Guest is what is inside the disks of a restore point: its volumes, and the
// tree that the guest sees. Safe for concurrent use.
type Guest struct {
	Point  *store.Point
	report *inspect.Report
	tree   *tree.Tree
	fs     func(ctx context.Context, volume int) (guestfs.FS, error)
	ends   []func()
}

// GuestOptions say how guests are opened. The zero value is good.
type GuestOptions struct {
	Logger *slog.Logger // nil: slog.Default
	// Keys open encrypted volumes: passphrases, contents of key files, recovery keys of
	// BitLocker. Each is tried as all that it could be; they stay in memory.
	Keys [][]byte
	// Backend is what reads file systems.
	Backend Backend
	// MicroVM says how micro-VMs are started; without a cache directory there are
	// none.
	MicroVM microvm.Options
}

// recoveryKey is what a BitLocker recovery key looks like: 48 digits.
var recoveryKey = regexp.MustCompile(`\b\d{6}(-\d{6}){7}\b`)

func (o GuestOptions) secrets() []crypt.Secret {
	var out []crypt.Secret
	for _, key := range o.Keys {
		s := crypt.Secret{Passphrase: bytes.TrimRight(key, "\r\n"), KeyFile: key}
		if m := recoveryKey.Find(key); m != nil {
			s.RecoveryKey = string(m)
		}
		out = append(out, s)
	}
	return out
}

const guestPurpose = "files of the guest"

// OpenGuest opens the disks of a restore point and finds what is on them. The
// point is held until Close.
func OpenGuest(ctx context.Context, repo *store.Repository, pt *store.Point, opts GuestOptions) (*Guest, error) {
	release, err := repo.HoldToRead(ctx, []*store.Point{pt}, guestPurpose)
	if err != nil {
		return nil, pointError(err)
	}
	g := &Guest{Point: pt, ends: []func(){release}}
	if err := g.open(ctx, repo, opts); err != nil {
		g.Close()
		return nil, fmt.Errorf("restore point %s of %s: %w", pt.ID, pt.VM, err)
	}
	return g, nil
}

func (g *Guest) open(ctx context.Context, repo *store.Repository, opts GuestOptions) error {
	var disks []disk.Image
	for n := range g.Point.Disks {
		img, err := OpenPointDisk(ctx, repo, g.Point, n)
		if err != nil {
			return err
		}
		g.ends = append(g.ends, func() { img.Close() })
		disks = append(disks, img)
	}
	session, err := worker.Start(ctx, disks, worker.Options{Logger: opts.Logger, Secrets: opts.secrets()})
	if err != nil {
		return err
	}
	g.ends = append(g.ends, func() { _ = session.Close() }) // it has nothing to lose
	var plans map[int]plan
	g.report, plans = planMachines(session.Report(), opts.Backend, microvmAvailable(opts.MicroVM))
	m := &machines{session: session, opts: opts.MicroVM, backend: opts.Backend, log: logger(opts.Logger), plans: plans}
	g.ends = append(g.ends, m.close)
	g.fs = func(ctx context.Context, volume int) (guestfs.FS, error) {
		if _, ok := plans[volume]; ok {
			return m.open(ctx, volume)
		}
		return session.FS(ctx, volume)
	}
	g.tree = inspect.Tree(g.report, g.fs)
	return nil
}

// Close ends reads and lets go of the point.
func (g *Guest) Close() {
	for i := len(g.ends) - 1; i >= 0; i-- {
		g.ends[i]()
	}
	g.ends = nil
}

// Report is what was found on the disks.
func (g *Guest) Report() *inspect.Report { return g.report }

// Tree is what the guest sees: its root with everything mounted, on Windows a
// directory for each drive. Of a guest without a system that is known it is a
// directory for each volume.
func (g *Guest) Tree() guestfs.FS { return g.tree }

// Volume is the file system of one volume, by its index in the report.
func (g *Guest) Volume(ctx context.Context, i int) (guestfs.FS, error) {
	fsys, err := g.fs(ctx, i)
	switch {
	case err == nil || i >= len(g.report.Volumes):
	case errors.Is(err, guestfs.ErrEncrypted):
		err = fmt.Errorf("%w (--unlock or --key-file opens it)", err)
	case errors.Is(err, guestfs.ErrUnsupported):
		// That QEMU is missing, say, was found after the volumes were.
		if note := g.report.Volumes[i].Note; note != "" && !strings.Contains(err.Error(), note) {
			err = fmt.Errorf("%w: %s", err, note)
		}
	}
	return fsys, guestError(err)
}

// Locate says which file system a place VOLUME/PATH is in, and its path there.
// VOLUME is the name of a volume, a drive of Windows, or nothing: the guest's
// own tree.
func (g *Guest) Locate(ctx context.Context, place string) (guestfs.FS, string, error) {
	if len(place) >= 2 && place[1] == ':' && g.hasDrive(place[:2]) {
		return g.tree, "/" + place[:2] + "/" + strings.ReplaceAll(place[2:], `\`, "/"), nil
	}
	volume, path, _ := strings.Cut(place, "/")
	if volume == "" {
		return g.tree, "/" + path, nil
	}
	for i := range g.report.Volumes {
		if g.report.Volumes[i].Name == volume {
			fsys, err := g.Volume(ctx, i)
			return fsys, "/" + path, err
		}
	}
	return nil, "", fmt.Errorf("volume %q: %w: `lifeboat files volumes %s` lists them; a path in the guest begins with a /", volume, ErrNotFound, g.Point.ID)
}

func (g *Guest) hasDrive(drive string) bool {
	for _, v := range g.report.Volumes {
		for _, m := range v.Mounts {
			if strings.EqualFold(m, drive) {
				return true
			}
		}
	}
	return false
}

// guestError gives the errors of guests' file systems the appliance's kinds.
func guestError(err error) error {
	switch {
	case err == nil:
		return nil
	case isNotExist(err):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case errors.Is(err, guestfs.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
