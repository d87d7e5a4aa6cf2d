package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"lifeboat/disk"
	"lifeboat/store"
)

// SessionInfo is a session as people see it.
type SessionInfo struct {
	*Session
	// State is "published" while a process exports it, "stopped" otherwise, or
	// "incomplete" after a crash in its very first moment.
	State string `json:"state"`
	// OverlayBytes is what its overlays occupy on the appliance's disk.
	OverlayBytes int64 `json:"overlay_bytes"`
}

// Sessions lists all sessions by name.
func Sessions(st *State) ([]SessionInfo, error) {
	recs, err := st.sessions()
	if err != nil {
		return nil, err
	}
	infos := make([]SessionInfo, 0, len(recs))
	for _, rec := range recs {
		infos = append(infos, st.info(rec))
	}
	return infos, nil
}

// ShowSession returns one session.
func ShowSession(st *State, name string) (SessionInfo, error) {
	rec, err := st.session(name)
	if err != nil {
		return SessionInfo{}, err
	}
	return st.info(rec), nil
}

func (s *State) info(rec *Session) SessionInfo {
	info := SessionInfo{Session: rec, State: "stopped"}
	switch {
	case s.held(rec.Name):
		info.State = "published"
	case !rec.Ready:
		info.State = "incomplete"
	}
	info.OverlayBytes = occupied(s.sessionDir(rec.Name))
	return info
}

// occupied adds up what the files below dir take on the host's disk. Files that
// vanish meanwhile (a log that is retired) do not count.
func occupied(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // a file that vanished is not counted
		}
		if fi, err := e.Info(); err == nil {
			total += blocks(fi)
		}
		return nil
	})
	return total
}

// PointsNotInUse fails with ErrBusy when a session's changes are against one of
// the points.
func PointsNotInUse(st *State, pts []*store.Point) error {
	recs, err := st.sessions()
	if err != nil {
		return err
	}
	for _, rec := range recs {
		for _, f := range rec.Folders {
			for _, pt := range pts {
				if f.Point == pt.ID {
					return fmt.Errorf("restore point %s is %w: session %q is made of it; keep or discard the session first", pt.ID, ErrBusy, rec.Name)
				}
			}
		}
	}
	return nil
}

// KeepRequest turns a session's changes into restore points.
type KeepRequest struct {
	Session string
	Tool    string
	Started func(n int, name string, size int64) func(store.Progress)
	Logger  *slog.Logger
}

// KeepSession makes a new restore point of each of a stopped session's folders:
// the point it began with, plus what was written since. Only what was written is
// read. The session stays as it is. One that the appliance's server exports is
// kept by the server: see Server.Keep.
func KeepSession(ctx context.Context, st *State, repo *store.Repository, req KeepRequest) ([]*store.Point, error) {
	p, err := openStopped(ctx, st, repo, req)
	if err != nil {
		return nil, err
	}
	defer p.close()
	images := make([]disk.Image, 0, len(p.overlays))
	for _, o := range p.overlays {
		images = append(images, o)
	}
	return p.keep(ctx, repo, req, images)
}

// keep makes points of images, which are the session's disks or cuts of them.
func (p *openSession) keep(ctx context.Context, repo *store.Repository, req KeepRequest, images []disk.Image) ([]*store.Point, error) {
	ing, err := newIngest(ctx, repo, store.IngestOptions{Tool: req.Tool})
	if err != nil {
		return nil, err
	}
	var kept []*store.Point
	next := 0
	for _, f := range p.Session.Folders {
		pt, err := p.keepFolder(ctx, repo, ing, req, f, next, images)
		if err != nil {
			return kept, errors.Join(fmt.Errorf("session %q, keeping %s: %w", req.Session, f.VM, err), ing.Close())
		}
		next += len(f.Disks)
		kept = append(kept, pt)
	}
	if err := ing.Close(); err != nil {
		return kept, err
	}
	return kept, p.state.noteKept(req.Session, kept)
}

// noteKept writes down which points a session has become.
func (s *State) noteKept(name string, kept []*store.Point) error {
	_, err := s.updateSession(name, func(rec *Session) {
		for _, pt := range kept {
			rec.Kept = append(rec.Kept, pt.ID)
		}
	})
	return err
}

// openStopped takes a session that no process publishes and opens its disks.
func openStopped(ctx context.Context, st *State, repo *store.Repository, req KeepRequest) (_ *openSession, err error) {
	rec, err := st.session(req.Session)
	if err != nil {
		return nil, err
	}
	if rec.RepoID != repo.ID() {
		return nil, fmt.Errorf("%w: session %q belongs to repository %s (%s)", ErrUsage, rec.Name, rec.RepoID, rec.RepoURL)
	}
	if !rec.Ready {
		return nil, fmt.Errorf("session %q was never completely published: there is nothing to keep; discard it", rec.Name)
	}
	p := &openSession{state: st, Session: rec, log: logger(req.Logger)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.lock, err = st.lockSession(rec.Name); err != nil {
		return nil, err
	}
	return p, p.openDisks(ctx, repo)
}

func (p *openSession) keepFolder(ctx context.Context, repo *store.Repository, ing *store.Ingest, req KeepRequest, f Folder, first int, images []disk.Image) (*store.Point, error) {
	parent, err := repo.Point(ctx, f.Point)
	if err != nil {
		return nil, pointError(err)
	}
	config, err := pointConfig(ctx, repo, parent)
	if err != nil {
		return nil, err
	}
	w, err := ing.Begin(store.PointSpec{
		VM: parent.VM, VMID: parent.VMID, Time: time.Now(), Consistency: store.CrashConsistent, Parent: parent,
		Config: config, Labels: map[string]string{"session": p.Session.Name},
	})
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	for i, v := range f.Disks {
		dev := images[first+i]
		changed := []disk.Extent{}
		// Of a cut these are the pages written until now: more than it needs, never less.
		for e, err := range p.overlays[first+i].Changed(ctx, disk.Whole(dev)) {
			if err != nil {
				return nil, err
			}
			changed = append(changed, disk.Extent{Offset: e.Offset, Length: e.Length})
		}
		var progress func(store.Progress)
		if req.Started != nil {
			progress = req.Started(first+i, f.Name+" "+v.Label, v.Size)
		}
		if err := w.AddDisk(ctx, store.DiskSpec{Key: v.Key, Label: v.Label}, dev, changed, progress); err != nil {
			return nil, fmt.Errorf("disk %d: %w", v.Key, err)
		}
	}
	return w.Commit(ctx)
}

// DiscardSession forgets a session and everything written in it. Restore points
// are not touched.
func DiscardSession(st *State, name string) error {
	rec, err := st.session(name)
	if err != nil {
		return err
	}
	lock, err := st.lockSession(name)
	if err != nil {
		return err
	}
	defer lock.release()
	return st.discardLocked(rec)
}

// discardLocked does the work of DiscardSession for who holds the lock. The
// lock file goes last: whoever opened it meanwhile holds a file without a name
// and finds no record.
func (s *State) discardLocked(rec *Session) error {
	rec.Ready = false
	if err := s.putSession(rec); err != nil {
		return err
	}
	if err := s.removeSessionFiles(rec.Name); err != nil {
		return err
	}
	if err := s.deleteSession(rec.Name); err != nil {
		return err
	}
	if err := os.RemoveAll(s.sessionDir(rec.Name)); err != nil {
		return fmt.Errorf("session %q: %w", rec.Name, err)
	}
	return nil
}

// End closes the publication. A session whose name was made up, and to which
// nothing was written, is discarded: there is nothing to come back to. It
// reports whether it was.
func (p *Publication) End() (discarded bool, err error) {
	if p.Session == nil || p.Session.Named || p.Written() {
		return false, p.Close()
	}
	lock := p.lock
	p.lock = nil
	defer lock.release()
	if err := p.Close(); err != nil {
		return false, err
	}
	p.releaseHold()
	return true, p.state.discardLocked(p.Session)
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
