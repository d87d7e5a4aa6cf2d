package crashfs

import (
	"path"
	"slices"
)

// Op is a kind of call, and a set of kinds.
type Op uint32

// Kinds of calls.
const (
	OpOpen   Op = 1 << iota // OpenFile without os.O_CREATE
	OpCreate                // OpenFile with os.O_CREATE
	OpRead                  // ReadAt
	OpWrite                 // WriteAt
	OpSync                  // Sync
	OpTruncate
	OpAllocate
	OpPunch
	OpRename // both kinds; by the new name
	OpRemove
	OpMkdir // each directory that MkdirAll makes
	OpSyncDir
	OpReadDir
	OpStat // Stat, Size and Free
)

// Sets of kinds.
const (
	OpSyncs   = OpSync | OpSyncDir
	OpChanges = OpCreate | OpWrite | OpSyncs | OpTruncate | OpAllocate | OpPunch | OpRename | OpRemove | OpMkdir
	OpAll     = OpOpen | OpRead | OpReadDir | OpStat | OpChanges
)

// Rule makes calls fail.
type Rule struct {
	Op    Op     // kinds of calls. Default: all
	Path  string // path.Match pattern for the whole path, or for its last component. Default: any
	After int    // calls that match and succeed first
	Times int    // how often the rule strikes. Default: always
	Err   error  // what the call returns; it has no effect
}

type rule struct {
	Rule
	seen, struck int
}

// Fail adds a rule; remove takes it away. A Sync that a rule makes fail leaves
// what it should have written unsynced for ever.
func (f *FS) Fail(r Rule) (remove func()) {
	if r.Op == 0 {
		r.Op = OpAll
	}
	added := &rule{Rule: r}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, added)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.rules = slices.DeleteFunc(f.rules, func(r *rule) bool { return r == added })
	}
}

// strikes reports whether the rule makes this call fail, and counts it.
func (r *rule) strikes(c call) bool {
	if r.Op&c.op == 0 || r.Path != "" && !matches(r.Path, c.path) {
		return false
	}
	r.seen++
	if r.seen <= r.After || r.Times > 0 && r.struck >= r.Times {
		return false
	}
	r.struck++
	return true
}

func matches(pattern, full string) bool {
	whole, _ := path.Match(pattern, full)
	base, _ := path.Match(pattern, path.Base(full))
	return whole || base
}

// OnSync has hook called before every Sync and SyncDir, with how many there
// have been including this one. An error makes the call fail as a [Rule] does.
// The hook may call any method of f but Sync and SyncDir.
func (f *FS) OnSync(hook func(n int) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onSync = hook
}

// Points is the number of calls so far that change something, syncs included.
func (f *FS) Points() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.points
}

// Syncs is the number of calls of Sync and SyncDir so far.
func (f *FS) Syncs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncs
}

// StopAtPoint stops the machine in the n-th call that changes something,
// counted from the beginning as Points does: a sync does nothing then, any
// other call is under way and may survive. 0 means never.
func (f *FS) StopAtPoint(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopPoint = n
}

// StopAtSync is [FS.StopAtPoint] for the n-th Sync or SyncDir.
func (f *FS) StopAtSync(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopSync = n
}

// Stop stops the machine now: every call fails with [ErrPowerLoss] from here
// on. What is on the disk is to be seen with Crash.
func (f *FS) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
}

// Stopped reports whether the machine has stopped.
func (f *FS) Stopped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stopped
}

// call is what somebody wants done.
type call struct {
	op   Op
	path string
	node *node // of an open file
}

// do runs one call under the lock unless something makes it fail.
func (f *FS) do(c call, run func() error) error {
	err := f.callOnSync(c)
	f.mu.Lock()
	defer f.mu.Unlock()
	stops := false
	if err == nil {
		stops, err = f.admit(c)
	}
	if err != nil {
		if c.op == OpSync && !f.stopped {
			c.node.giveUp()
		}
		return err
	}
	if stops && c.op&OpSyncs != 0 {
		return ErrPowerLoss
	}
	err = run()
	if stops {
		return ErrPowerLoss
	}
	return err
}

// callOnSync counts a sync and calls the hook without the lock.
func (f *FS) callOnSync(c call) error {
	if c.op&OpSyncs == 0 {
		return nil
	}
	f.mu.Lock()
	if f.stopped {
		f.mu.Unlock()
		return ErrPowerLoss
	}
	f.syncs++
	n, hook := f.syncs, f.onSync
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(n)
}

// admit counts a call and applies rules and stops. stops says that the machine
// stops in this call.
func (f *FS) admit(c call) (stops bool, err error) {
	if f.stopped {
		return false, ErrPowerLoss
	}
	if c.op&OpChanges != 0 {
		f.points++
		f.stopped = f.points == f.stopPoint ||
			c.op&OpSyncs != 0 && f.stopSync > 0 && f.syncs >= f.stopSync
	}
	if f.stopped {
		return true, nil
	}
	for _, r := range f.rules {
		if r.strikes(c) {
			return false, r.Err
		}
	}
	return false, nil
}

// mayFail reports whether a rule could make a call of this kind fail.
func (f *FS) mayFail(op Op) bool {
	return slices.ContainsFunc(f.rules, func(r *rule) bool { return r.Op&op != 0 })
}
