package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"lifeboat/store/backend"
)

// Settings of a repository that its users change: objects below settings/, each
// replaced whole. Of two that change the same one at the same time, one wins.
// What must not be lost by that (that a point is immutable) is not a setting: it
// is in the point.
const (
	settingsPrefix    = "settings/"
	immutabilityName  = settingsPrefix + "immutability"
	policiesName      = settingsPrefix + "policies"
	maxSettingsBytes  = 1 << 20
	maxWindow         = 100 * 365 * 24 * time.Hour
	maxStoredPolicies = 10_000
)

// AppendOnlyDelay is how long after it was asked for append-only mode ends, at
// least; where points are immutable for longer, it is as long as they are.
const AppendOnlyDelay = 72 * time.Hour

// Immutability is how a repository protects its points against everybody who
// uses this program, with the right password too.
type Immutability struct {
	// Window is for how long a point that is made now cannot be removed; 0 for
	// not at all. Points keep the window that they were made with.
	Window time.Duration
	// AppendOnly: no point at all can be removed, nothing unpinned, and Window
	// not shortened.
	AppendOnly bool
	// AppendOnlyEnds is when append-only mode ends because somebody asked for
	// it; the zero time where nobody did.
	AppendOnlyEnds time.Time
	// AppendOnlyEndedBy is the host where they did.
	AppendOnlyEndedBy string
	// KeyRemovals is the keys that somebody wants to remove.
	KeyRemovals []KeyRemoval
}

// immutabilityRecord is the object settings/immutability. Times are in Unix
// milliseconds by the repository's clock.
type immutabilityRecord struct {
	Format        int    `json:"format"`
	WindowSeconds int64  `json:"window_seconds"`
	AppendOnly    bool   `json:"append_only,omitempty"`
	EndsAt        int64  `json:"append_only_ends,omitempty"` // 0: it does not
	EndedBy       string `json:"append_only_ended_by,omitempty"`

	KeyRemovals []keyRemovalRecord `json:"key_removals,omitempty"` // see keyguard.go
}

func (s immutabilityRecord) window() time.Duration {
	return time.Duration(s.WindowSeconds) * time.Second
}

// appendOnly reports whether append-only mode is in force at a time by the
// repository's clock.
func (s immutabilityRecord) appendOnly(now int64) bool {
	return s.AppendOnly && (s.EndsAt == 0 || now < s.EndsAt)
}

func decodeImmutability(data []byte) (immutabilityRecord, error) {
	var s immutabilityRecord
	if err := decodeStrict(data, &s); err != nil {
		return s, err
	}
	if len(s.KeyRemovals) > maxKeyRemovals {
		return s, fmt.Errorf("%w: %d keys to be removed", ErrDamaged, len(s.KeyRemovals))
	}
	if s.WindowSeconds < 0 || s.WindowSeconds > int64(maxWindow/time.Second) || s.EndsAt < 0 {
		return s, fmt.Errorf("%w: a window of %d s, append-only until %d", ErrDamaged, s.WindowSeconds, s.EndsAt)
	}
	return s, nil
}

// readImmutability reads the setting; where there is none it is the zero value.
func (r *Repository) readImmutability(ctx context.Context) (immutabilityRecord, error) {
	data, err := r.getSealed(ctx, immutabilityName, maxSettingsBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return immutabilityRecord{}, nil
	}
	var s immutabilityRecord
	if err == nil {
		s, err = decodeImmutability(data)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", immutabilityName, err)
	}
	return s, nil
}

func (r *Repository) putSetting(ctx context.Context, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxSettingsBytes {
		return fmt.Errorf("%s takes %d bytes, at most %d fit", name, len(data), maxSettingsBytes)
	}
	return r.putSealed(ctx, name, data, backend.Replace)
}

// Immutability returns how points are protected.
func (r *Repository) Immutability(ctx context.Context) (Immutability, error) {
	s, err := r.readImmutability(ctx)
	if err != nil || !s.AppendOnly && len(s.KeyRemovals) == 0 {
		return Immutability{Window: s.window()}, err
	}
	now, err := r.repositoryTime(ctx)
	if err != nil {
		return Immutability{}, err
	}
	im := Immutability{Window: s.window(), AppendOnly: s.appendOnly(now.at)}
	if im.AppendOnly && s.EndsAt != 0 {
		im.AppendOnlyEnds, im.AppendOnlyEndedBy = now.wallAt(s.EndsAt), s.EndedBy
	}
	for _, w := range s.KeyRemovals {
		im.KeyRemovals = append(im.KeyRemovals, KeyRemoval{Key: w.Key, From: now.wallAt(w.At), By: w.By})
	}
	return im, nil
}

// SetWindow sets for how long points that are made from now on are immutable;
// 0 for not at all. Points that there are keep theirs. In append-only mode it
// cannot be shortened (ErrAppendOnly).
func (r *Repository) SetWindow(ctx context.Context, window time.Duration) error {
	if window < 0 || window > maxWindow {
		return fmt.Errorf("set the immutability window: %v is not between 0 and %v", window, maxWindow)
	}
	seconds := int64((window + time.Second - 1) / time.Second)
	err := r.changeImmutability(ctx, func(s *immutabilityRecord, now repoTime) error {
		if seconds < s.WindowSeconds && s.appendOnly(now.at) {
			return fmt.Errorf("%w: the window of %v can be extended, not shortened", ErrAppendOnly, s.window())
		}
		s.WindowSeconds = seconds
		return nil
	})
	if err != nil {
		return fmt.Errorf("set the immutability window: %w", err)
	}
	return nil
}

// SetAppendOnly switches append-only mode on, at once, or asks for its end: that
// comes after AppendOnlyDelay or the window, whichever is longer, and until then
// everything is refused as before and switching it on again takes the wish back.
func (r *Repository) SetAppendOnly(ctx context.Context, on bool) error {
	err := r.changeImmutability(ctx, func(s *immutabilityRecord, now repoTime) error {
		switch {
		case on:
			s.AppendOnly, s.EndsAt, s.EndedBy = true, 0, ""
		case !s.appendOnly(now.at):
			s.AppendOnly, s.EndsAt, s.EndedBy = false, 0, ""
		case s.EndsAt == 0:
			s.EndsAt = now.at + max(AppendOnlyDelay, s.window()).Milliseconds()
			s.EndedBy, _ = os.Hostname() // for people
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("change append-only mode: %w", err)
	}
	return nil
}

// errNothingToChange says that a setting is right as it is.
var errNothingToChange = errors.New("nothing to change")

// changeImmutability replaces the setting with what change makes of it. A
// damaged one is begun anew, as in append-only mode: nothing is allowed that
// might not have been.
func (r *Repository) changeImmutability(ctx context.Context, change func(s *immutabilityRecord, now repoTime) error) error {
	s, err := r.readImmutability(ctx)
	if errors.Is(err, ErrDamaged) {
		r.log.Error("the immutability setting is damaged: begun anew in append-only mode", "error", err)
		s, err = immutabilityRecord{AppendOnly: true}, nil
	}
	if err != nil {
		return err
	}
	now, err := r.observeTime(ctx)
	if err != nil {
		return err
	}
	if err := change(&s, now); errors.Is(err, errNothingToChange) {
		return nil
	} else if err != nil {
		return err
	}
	s.Format = recordFormat
	return r.putSetting(ctx, immutabilityName, s)
}
