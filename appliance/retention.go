package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store"
)

// Retention: which restore points stay, and removing the others. The rules are
// store.Policy's; the store itself refuses to remove what is pinned or immutable,
// and a session of this appliance keeps the points that it is made of.

// RetentionRequest says what to judge.
type RetentionRequest struct {
	// Policy counts for every VM; nil means those kept in the repository.
	Policy *store.Policy
	// VM is a name, an identity or a pattern (store.MatchVM); empty means all.
	VM string
	// Zone is where days begin; nil means the local one.
	Zone *time.Location
}

// RetentionItem is what becomes of a point. Its JSON is the command line's.
type RetentionItem struct {
	ID     string    `json:"id"`
	VM     string    `json:"vm"`
	Time   time.Time `json:"time"`
	Action string    `json:"action"` // ActionKeep or ActionRemove
	// Reasons is why it stays; of a point that goes, nothing.
	Reasons []string `json:"reasons"`
	// Until is when it could go, where only time keeps it.
	Until time.Time `json:"until,omitzero"`
}

// What becomes of a point.
const (
	ActionKeep   = "keep"
	ActionRemove = "remove"
)

func (i *RetentionItem) keep(reason string) {
	i.Action = ActionKeep
	i.Reasons = append(i.Reasons, reason)
}

// PlanRetention says which points a policy keeps and why, VM by VM, the newest
// first. Nothing is removed. ErrUsage: there is no policy, or it keeps nothing.
func PlanRetention(ctx context.Context, st *State, repo *store.Repository, req RetentionRequest) ([]RetentionItem, error) {
	policyOf, err := req.policies(ctx, repo)
	if err != nil {
		return nil, err
	}
	points, err := repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	var items []RetentionItem
	for _, group := range pointsByVM(points) {
		newest := group[len(group)-1]
		if req.VM != "" && !store.MatchVM(req.VM, newest.VM, newest.VMID) {
			continue
		}
		policy, ok := policyOf(newest.VM, newest.VMID)
		for _, v := range policy.Apply(group, req.Zone) {
			item := RetentionItem{ID: v.Point.ID, VM: v.Point.VM, Time: v.Point.Time, Action: ActionRemove, Reasons: []string{}}
			switch {
			case !ok:
				item.keep("no policy")
			case v.Keep():
				item.Action, item.Reasons = ActionKeep, v.Reasons
			}
			items = append(items, item)
		}
	}
	if len(items) == 0 && req.VM != "" {
		return nil, fmt.Errorf("VM %q: %w: it has no restore points here", req.VM, ErrNotFound)
	}
	return items, protectItems(ctx, st, repo, items)
}

// policies is the function from a VM to its policy.
func (req RetentionRequest) policies(ctx context.Context, repo *store.Repository) (func(name, id string) (store.Policy, bool), error) {
	if p := req.Policy; p != nil {
		if err := p.Check(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if p.Empty() {
			return nil, fmt.Errorf("%w: the policy keeps nothing; name at least one rule, such as --keep-daily 7", ErrUsage)
		}
		return func(string, string) (store.Policy, bool) { return *p, true }, nil
	}
	kept, err := repo.Policies(ctx)
	if err != nil {
		return nil, err
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("%w: the repository has no retention policy; give one (--keep-daily 7 …) or keep one with `lifeboat policy set`", ErrUsage)
	}
	return kept.For, nil
}

// pointsByVM sorts points by VM, those of each oldest first. A VM is its lasting
// identity, where it has one, and else its name.
func pointsByVM(points []*store.Point) [][]*store.Point {
	groups := make(map[[2]string][]*store.Point)
	for _, pt := range points {
		key := [2]string{pt.VMID, ""}
		if pt.VMID == "" {
			key[1] = pt.VM
		}
		groups[key] = append(groups[key], pt)
	}
	out := make([][]*store.Point, 0, len(groups))
	for _, group := range groups {
		out = append(out, group)
	}
	slices.SortFunc(out, func(a, b []*store.Point) int {
		x, y := a[len(a)-1], b[len(b)-1]
		return strings.Compare(x.VM+"\x00"+x.VMID, y.VM+"\x00"+y.VMID)
	})
	return out
}

// protectItems keeps what a policy would remove and something else keeps.
func protectItems(ctx context.Context, st *State, repo *store.Repository, items []RetentionItem) error {
	var ids []string
	for _, item := range items {
		if item.Action == ActionRemove {
			ids = append(ids, item.ID)
		}
	}
	protected, err := repo.Protected(ctx, ids)
	if err != nil {
		return err
	}
	inUse, err := sessionsOfPoints(st)
	if err != nil {
		return err
	}
	for i := range items {
		item := &items[i]
		if item.Action != ActionRemove {
			continue
		}
		if why := protected[item.ID]; why != nil {
			item.protect(why)
		}
		if session, ok := inUse[item.ID]; ok && item.Action == ActionRemove {
			item.keep(fmt.Sprintf("in use by session %q", session))
		}
	}
	return nil
}

// protect keeps a point that the store refuses to remove.
func (i *RetentionItem) protect(err error) {
	var held *store.HeldError
	if errors.As(err, &held) {
		i.keep("in use by " + cmp.Or(held.Hold.Purpose, "a session") + " on " + held.Hold.Host)
		return
	}
	var why *store.ProtectedError
	if !errors.As(err, &why) {
		i.keep(err.Error())
		return
	}
	i.Until = why.Until
	switch {
	case errors.Is(why, store.ErrPinned) && why.Pin.Note != "":
		i.keep("pinned: " + why.Pin.Note)
	case errors.Is(why, store.ErrPinned):
		i.keep("pinned")
	case errors.Is(why, store.ErrAppendOnly):
		i.keep("append-only")
	default:
		i.keep("immutable")
	}
}

// sessionsOfPoints names, for the points that sessions are made of, one that is.
func sessionsOfPoints(st *State) (map[string]string, error) {
	recs, err := st.sessions()
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, rec := range recs {
		for _, f := range rec.Folders {
			out[f.Point] = rec.Name
		}
	}
	return out, nil
}

// Points are forgotten so many in one go, and so many goes at the same time.
const (
	forgetBatch = 50
	forgetters  = 8
)

// ApplyRetention removes the points that a plan lets go, and returns their IDs.
// A point that is pinned, in use or gone by now is no error: its item says so.
func ApplyRetention(ctx context.Context, repo *store.Repository, items []RetentionItem) ([]string, error) {
	var going []*RetentionItem
	for i := range items {
		if items[i].Action == ActionRemove {
			going = append(going, &items[i])
		}
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(forgetters)
	for batch := range slices.Chunk(going, forgetBatch) {
		group.Go(func() error {
			err := forgetItems(gctx, repo, batch)
			if errors.Is(err, store.ErrProtected) || errors.Is(err, store.ErrHeld) || errors.Is(err, store.ErrNotFound) {
				err = forgetOneByOne(gctx, repo, batch) // since the plan was made
			}
			return err
		})
	}
	err := group.Wait()
	gone := []string{}
	for _, item := range going {
		if item.Action == actionRemoved {
			item.Action = ActionRemove
			gone = append(gone, item.ID)
		}
	}
	if err != nil && len(gone) > 0 {
		err = fmt.Errorf("%w (removed before it: %d points)", err, len(gone))
	}
	return gone, err
}

// actionRemoved marks an item that was dealt with.
const actionRemoved = "removed"

func forgetItems(ctx context.Context, repo *store.Repository, items []*RetentionItem) error {
	ids := make([]string, len(items))
	for i, item := range items {
		ids[i] = item.ID
	}
	if err := repo.Forget(ctx, ids...); err != nil {
		return err
	}
	for _, item := range items {
		item.Action = actionRemoved
	}
	return nil
}

func forgetOneByOne(ctx context.Context, repo *store.Repository, items []*RetentionItem) error {
	for _, item := range items {
		err := repo.Forget(ctx, item.ID)
		switch {
		case errors.Is(err, store.ErrProtected), errors.Is(err, store.ErrHeld):
			item.protect(err)
		case errors.Is(err, store.ErrNotFound):
			item.keep("gone already")
		case err != nil:
			return err
		default:
			item.Action = actionRemoved
		}
	}
	return nil
}

// ForgetPoints removes points by name: all of them, or, if one cannot be
// removed, none.
func ForgetPoints(ctx context.Context, st *State, repo *store.Repository, pts []*store.Point, dryRun bool) ([]string, error) {
	if err := PointsNotInUse(st, pts); err != nil {
		return nil, err
	}
	ids := []string{}
	for _, pt := range pts {
		if !slices.Contains(ids, pt.ID) {
			ids = append(ids, pt.ID)
		}
	}
	protected, err := repo.Protected(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if why := protected[id]; why != nil {
			return nil, why
		}
	}
	if dryRun {
		return ids, nil
	}
	if err := repo.Forget(ctx, ids...); err != nil {
		return nil, err
	}
	return ids, nil
}
