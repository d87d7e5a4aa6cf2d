package appliance

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/store"
)

// RebuildRequest says what is rebuilt, and from what.
type RebuildRequest struct {
	URL      string
	Password []byte
	Options  store.Options
	// State, if not empty, is the state directory of this appliance; its
	// sessions are looked for.
	State    string
	Progress func(done, total int64) // segments
}

// Rebuilt is what a rebuild found and made.
type Rebuilt struct {
	store.RebuildReport
	HeaderRestored bool `json:"header_restored"`
	// Sessions of this appliance that are there.
	Sessions int `json:"sessions"`
}

// RebuildRepository brings a repository back from its restore points, its
// segments and one key: the header, the claims and the dedupe index. Whatever is
// there already stays as it is.
func RebuildRepository(ctx context.Context, req RebuildRequest) (_ *Rebuilt, err error) {
	out := &Rebuilt{}
	repo, err := OpenRepository(ctx, req.URL, req.Password, req.Options)
	if errors.Is(err, store.ErrNotRepository) || errors.Is(err, store.ErrDamaged) {
		if err := RestoreHeader(ctx, req.URL, req.Password); err != nil {
			return nil, err
		}
		out.HeaderRestored = true
		repo, err = OpenRepository(ctx, req.URL, req.Password, req.Options)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := repo.Close(); err == nil {
			err = cerr
		}
	}()
	report, err := repo.Rebuild(ctx, store.RebuildOptions{Progress: req.Progress})
	if err != nil {
		return nil, err
	}
	out.RebuildReport = *report
	if out.Sessions, err = countSessions(req.State); err != nil {
		return out, err
	}
	if n := len(report.DamagedPoints); n > 0 {
		return out, fmt.Errorf("%w: %d restore points cannot be read, the first is %s; `lifeboat verify` says more", ErrDamaged, n, report.DamagedPoints[0])
	}
	return out, nil
}

func countSessions(dir string) (int, error) {
	if dir == "" {
		return 0, nil
	}
	st, err := OpenState(dir)
	if err != nil {
		return 0, err
	}
	list, err := Sessions(st)
	return len(list), err
}
