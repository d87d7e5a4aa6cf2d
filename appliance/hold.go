package appliance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"lifeboat/store"
)

// A session's hold keeps the points below it from being forgotten and pruned, by
// whomever and from whichever host: what was written in it is worth nothing
// without them. It is renewed while the session is published and lasts for
// store.DefaultLastingLease after that. Discarding the session ends it.

// newHoldID makes the ID that the session's record keeps, so that the hold is
// found again whatever comes between.
func newHoldID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// takeHold puts up the session's hold, or takes it up again.
func (p *openSession) takeHold(ctx context.Context, repo *store.Repository) error {
	if p.Session.Hold == "" { // made by an earlier version
		p.Session.Hold = newHoldID()
		if err := p.state.putSession(p.Session); err != nil {
			return err
		}
	}
	points := make([]*store.Point, 0, len(p.Session.Folders))
	for _, f := range p.Session.Folders {
		points = append(points, &store.Point{ID: f.Point})
	}
	hold, err := repo.Hold(ctx, points, store.HoldOptions{
		Purpose: fmt.Sprintf("session %q", p.Session.Name), Lasting: true, ID: p.Session.Hold,
	})
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		p.log.Warn("the session's restore points are not held, because the repository cannot be written: do not forget them", "err", err)
		return nil
	case err != nil:
		return fmt.Errorf("session %q: %w", p.Session.Name, pointError(err))
	}
	p.hold = hold
	return nil
}

// closeHold leaves the hold behind, renewed.
func (p *openSession) closeHold() {
	if p.hold == nil {
		return
	}
	if err := p.hold.Close(); err != nil {
		p.log.Warn("could not renew the hold on the session's restore points: it ends earlier", "err", err)
	}
}

// releaseTimeout bounds what a repository that does not answer can delay.
const releaseTimeout = 30 * time.Second

// releaseHold ends the hold of a session that is gone.
func (p *openSession) releaseHold() {
	if p.hold == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	if err := p.hold.Release(ctx); err != nil {
		p.log.Warn("could not end the hold on the session's restore points: it ends by itself", "in", store.DefaultLastingLease, "err", err)
	}
}

// ReleaseSession ends the hold of a session that was discarded, given its
// repository.
func ReleaseSession(ctx context.Context, repo *store.Repository, rec *Session) error {
	if rec.Hold == "" || rec.RepoID != repo.ID() {
		return nil
	}
	return repo.ReleaseHold(ctx, rec.Hold)
}
