package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// BackupVMsRequest says which VMs of a vCenter or host are backed up and how.
type BackupVMsRequest struct {
	// Patterns select VMs (vsphere.Inventory.Match); All selects every one.
	// Exclude takes out again.
	Patterns []string
	All      bool
	Exclude  []string
	// ExcludeDisks are labels of disks that are left out of every VM.
	ExcludeDisks []string
	// Full reads everything, whatever change tracking says; what the repository
	// has already is not stored again.
	Full bool
	// AuditEvery checks change tracking in every so many backups of a disk, by
	// reading all of it: 0 means 10, less than 0 never, 1 each time.
	AuditEvery int
	// NoQuiesce does not ask guests to bring their disks to rest.
	NoQuiesce bool
	// KeepSwap stores swap space and page files, too.
	KeepSwap   bool
	Limits     Limits
	Transports Transports
	Tool       string // version, for the record
	Workers    int
	// Started, if not nil, hears of each disk before it is read, and returns
	// where its progress goes. Ended hears of each VM. Both are called from
	// several goroutines.
	Started func(vm, disk string, size int64) func(store.Progress)
	Ended   func(*VMResult)
	Logger  *slog.Logger
}

// defaultAuditEvery is how often change tracking is checked.
const defaultAuditEvery = 10

// VMStatus is how the backup of a VM ended.
type VMStatus string

// The ways in which it can end. With StatusWarning there is a restore point, and
// something to be said about it.
const (
	StatusDone    VMStatus = "done"
	StatusWarning VMStatus = "warning"
	StatusSkipped VMStatus = "skipped"
	StatusFailed  VMStatus = "failed"
)

// VMResult is what became of one VM.
type VMResult struct {
	VM          string            `json:"vm"`
	ID          string            `json:"vm_id"`
	Point       string            `json:"point,omitempty"`
	Status      VMStatus          `json:"status"`
	Warnings    []string          `json:"warnings,omitempty"`
	Notes       []string          `json:"notes,omitempty"`
	Error       string            `json:"error,omitempty"`
	Consistency store.Consistency `json:"consistency,omitempty"`
	Transport   string            `json:"transport,omitempty"`
	Disks       []VMDiskResult    `json:"disks,omitempty"`
	Calls       int64             `json:"vcenter_calls"`
	ReadBytes   int64             `json:"read_bytes"`
	NewBytes    int64             `json:"new_bytes"`
	StoredBytes int64             `json:"stored_bytes"`
	Seconds     float64           `json:"seconds"`

	err error
}

// VMDiskResult is what became of one disk.
type VMDiskResult struct {
	Key   int32  `json:"key"`
	Label string `json:"label"`
	Size  int64  `json:"size"`
	// How is "changed", "allocated", "whole" or "left out", and Why the reason
	// where there is one.
	How       string `json:"how"`
	Why       string `json:"why,omitempty"`
	Transport string `json:"transport,omitempty"`
	// Swap is how many bytes of swap space and page files were left out.
	Swap int64 `json:"swap,omitempty"`
	// Audited: change tracking was checked. Missed is what it had missed, in bytes.
	Audited bool  `json:"audited,omitempty"`
	Missed  int64 `json:"missed,omitempty"`
}

// VMBackupReport is what a backup of VMs did.
type VMBackupReport struct {
	VMs []*VMResult `json:"vms"`
	// Calls is all that was asked of the vCenter, what was done for all VMs
	// together included.
	Calls   int64   `json:"vcenter_calls"`
	Seconds float64 `json:"seconds"`
	// Excluded is how many VMs that fit the patterns were left out on purpose.
	Excluded int `json:"excluded,omitempty"`
}

// BackupVMs backs VMs up. The report is there whenever a VM was begun, also with
// an error. The error is nil where every VM has a point with nothing to be said
// about it, matches ErrPartial where some VM or disk was left out or failed while
// another was done, and is the VM's own where all failed.
//
// Whatever happens, the snapshots that it took are removed before it returns, or
// are in the journal for the next command; see vmsnapshot.go.
func (s *State) BackupVMs(ctx context.Context, repo *store.Repository, c *vsphere.Client, req BackupVMsRequest) (_ *VMBackupReport, err error) {
	if req.Logger == nil {
		req.Logger = slog.Default()
	}
	if req.AuditEvery == 0 {
		req.AuditEvery = defaultAuditEvery
	}
	if err := req.Transports.Check(); err != nil {
		return nil, err
	}
	began := time.Now()
	inv, err := inventory(ctx, c, req)
	if err != nil {
		return nil, err
	}
	vms, excluded, err := selectVMs(inv, req)
	if err != nil {
		return nil, err
	}
	req.Transports = req.Transports.inside(s, inv)
	report := &VMBackupReport{Excluded: excluded}
	run := &vmRun{
		state: s, repo: repo, client: c, req: req, throttle: newThrottle(req.Limits), named: namesByIdentity(inv),
		points: sync.OnceValues(func() ([]*store.Point, error) { return repo.Points(ctx) }),
	}
	if err := run.preflight(ctx, inv, vms); err != nil {
		return nil, err
	}
	ing, err := newIngest(ctx, repo, store.IngestOptions{Workers: req.Workers, Tool: req.Tool})
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := ing.Close(); cerr != nil && err == nil {
			err = cerr
		}
		if err == nil || errors.Is(err, ErrPartial) {
			_, _ = repo.Heal(ctx) // as in BackupDisks
		}
		report.Calls, report.Seconds = c.Calls(), time.Since(began).Seconds()
	}()
	run.ing = ing
	run.all(ctx, vms, report)
	if ctx.Err() != nil {
		return report, context.Cause(ctx)
	}
	return report, report.verdict()
}

// vmRun is one call of BackupVMs at work.
type vmRun struct {
	state    *State
	repo     *store.Repository
	client   *vsphere.Client
	ing      *store.Ingest
	req      BackupVMsRequest
	throttle *throttle
	points   func() ([]*store.Point, error) // of the repository, when the run began

	named      map[vsphere.Identity][]string     // what the VMs with an identity are called
	missing    map[vsphere.Ref][]vsphere.Missing // by VM or datastore
	datastores map[string]vsphere.Ref            // by name
}

func (r *vmRun) all(ctx context.Context, vms []*vsphere.VM, report *VMBackupReport) {
	report.VMs = make([]*VMResult, len(vms))
	var group errgroup.Group
	group.SetLimit(r.throttle.limits.VMs)
	for i, vm := range vms {
		group.Go(func() error {
			report.VMs[i] = r.one(ctx, vm)
			if r.req.Ended != nil {
				r.req.Ended(report.VMs[i])
			}
			return nil
		})
	}
	_ = group.Wait()
}

// verdict is the error that the results come to.
func (r *VMBackupReport) verdict() error {
	var failed, warned, done int
	var first *VMResult
	for _, v := range r.VMs {
		switch v.Status {
		case StatusDone:
			done++
		case StatusWarning:
			warned++
		default:
			failed++
			if first == nil {
				first = v
			}
		}
	}
	switch {
	case failed == 0 && warned == 0:
		return nil
	case failed == 0:
		return fmt.Errorf("%w: of %d VMs, %s done with warnings", ErrPartial, len(r.VMs), count(warned, "was", "were"))
	case done+warned == 0 && len(r.VMs) == 1:
		return fmt.Errorf("%s: %w", first.VM, first.err)
	case done+warned == 0:
		return fmt.Errorf("none of %d VMs was backed up; %s: %w", len(r.VMs), first.VM, first.err)
	}
	return fmt.Errorf("%w: of %d VMs, %s not backed up; %s: %s", ErrPartial, len(r.VMs), count(failed, "was", "were"), first.VM, first.Error)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// inventory reads what there is, with tags where patterns need them.
func inventory(ctx context.Context, c *vsphere.Client, req BackupVMsRequest) (*vsphere.Inventory, error) {
	if req.All == (len(req.Patterns) > 0) {
		return nil, fmt.Errorf("%w: name VMs, or ask for all of them", ErrUsage)
	}
	inv, err := c.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(slices.Concat(req.Patterns, req.Exclude), func(p string) bool { return strings.HasPrefix(p, "tag:") }) {
		return inv, c.LoadTags(ctx, inv)
	}
	return inv, nil
}

// SelectVMs lists the VMs that BackupVMs would back up.
func SelectVMs(ctx context.Context, c *vsphere.Client, req BackupVMsRequest) ([]*vsphere.VM, error) {
	inv, err := inventory(ctx, c, req)
	if err != nil {
		return nil, err
	}
	vms, _, err := selectVMs(inv, req)
	return vms, err
}

// selectVMs finds the VMs that are meant, ordered so that those on one host are
// not next to each other.
func selectVMs(inv *vsphere.Inventory, req BackupVMsRequest) (vms []*vsphere.VM, excluded int, err error) {
	chosen := map[*vsphere.VM]bool{}
	for i := range inv.VMs {
		if req.All && !ownKind(&inv.VMs[i]) {
			chosen[&inv.VMs[i]] = true
		}
	}
	for _, p := range req.Patterns {
		found, err := inv.Match(p)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if len(found) == 0 {
			return nil, 0, fmt.Errorf("no VM fits %q: %w; `lifeboat backup vm --list` shows what there is", p, ErrNotFound)
		}
		for _, vm := range found {
			chosen[vm] = true
		}
	}
	for _, p := range req.Exclude {
		found, err := inv.Match(p)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrUsage, err)
		}
		for _, vm := range found {
			if chosen[vm] {
				excluded++
			}
			delete(chosen, vm)
		}
	}
	for vm := range chosen {
		vms = append(vms, vm)
	}
	if len(vms) == 0 {
		return nil, 0, fmt.Errorf("there is no VM to back up: %w", ErrNotFound)
	}
	return spread(vms), excluded, nil
}

// extraSession is the advanced setting by which a recovered VM tells its session.
const extraSession = "lifeboat.session"

// ownKind reports whether a VM is left out unless it is named: VMs that run from
// a Lifeboat's datastore, and those that vSphere keeps for itself. The mark alone
// says nothing: a VM that a person has moved to other storage, or cloned, has it,
// too, and is production.
func ownKind(vm *vsphere.VM) bool {
	ours := func(datastore string) bool { return strings.HasPrefix(datastore, ourPrefix) }
	home, _ := splitDatastorePath(vm.VMX)
	return vm.ExtraConfig[extraSession] != "" && (ours(home) || slices.ContainsFunc(vm.Disks, func(d vsphere.Disk) bool { return ours(d.Datastore) })) ||
		vm.Folder == "vCLS" && strings.HasPrefix(vm.Name, "vCLS")
}

// namesByIdentity finds VMs that nothing tells apart: a stand-alone host gives the
// copy of a VM the same UUIDs, and its disks the same change IDs.
func namesByIdentity(inv *vsphere.Inventory) map[vsphere.Identity][]string {
	named := make(map[vsphere.Identity][]string, len(inv.VMs))
	for i := range inv.VMs {
		named[inv.VMs[i].Identity] = append(named[inv.VMs[i].Identity], inv.VMs[i].Name)
	}
	return named
}

// spread orders VMs by name, the first of each host, then the second of each.
func spread(vms []*vsphere.VM) []*vsphere.VM {
	slices.SortFunc(vms, func(a, b *vsphere.VM) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Identity.VM, b.Identity.VM))
	})
	turn, on := make(map[*vsphere.VM]int, len(vms)), map[string]int{}
	for _, vm := range vms {
		turn[vm] = on[vm.Host]
		on[vm.Host]++
	}
	slices.SortStableFunc(vms, func(a, b *vsphere.VM) int { return cmp.Compare(turn[a], turn[b]) })
	return vms
}

// preflight asks for the privileges on all VMs and their datastores at once.
func (r *vmRun) preflight(ctx context.Context, inv *vsphere.Inventory, vms []*vsphere.VM) error {
	r.datastores = map[string]vsphere.Ref{}
	for _, ds := range inv.Datastores {
		r.datastores[ds.Name] = ds.Ref
	}
	var refs []vsphere.Ref
	for _, vm := range vms {
		refs = append(refs, vm.Ref)
		for _, d := range vm.Disks {
			if ref := r.datastores[d.Datastore]; ref != "" && !slices.Contains(refs, ref) {
				refs = append(refs, ref)
			}
		}
	}
	missing, err := r.client.Preflight(ctx, vsphere.ForBackup, refs...)
	if err != nil {
		return err
	}
	r.missing = map[vsphere.Ref][]vsphere.Missing{}
	for _, m := range missing {
		r.missing[m.Entity] = append(r.missing[m.Entity], m)
	}
	return nil
}
