package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/backend"
)

// Pins. A person's wish that a point stays: pins/<ID of the point>. A pinned
// point is not forgotten, by no policy and not by name, until it is unpinned.
//
// Pin and Forget exclude each other without a lock, because each writes its
// object first and then looks for the other's: of two at the same time at least
// one sees the other, and gives way. A prune looks for pins right before it
// removes a point.
const (
	pinPrefix   = "pins/"
	maxPinBytes = 16 << 10
	maxPinNote  = 4096 // bytes
)

// Pin says who wants a point to stay.
type Pin struct {
	Point string    `json:"point"` // its ID
	Note  string    `json:"note,omitempty"`
	Time  time.Time `json:"time"` // by the clock of the host that set it
	Host  string    `json:"host,omitempty"`
}

// pinRecord is a pin as it is stored.
type pinRecord struct {
	Format int       `json:"format"`
	ID     string    `json:"id"`
	Note   string    `json:"note,omitempty"`
	Time   time.Time `json:"time"`
	Host   string    `json:"host,omitempty"`
}

func pinName(id string) string { return pinPrefix + id }

func decodePin(data []byte, id string) (Pin, error) {
	var rec pinRecord
	if err := decodeStrict(data, &rec); err != nil {
		return Pin{}, err
	}
	if rec.ID != id || len(rec.Note) > maxPinNote {
		return Pin{}, fmt.Errorf("%w: it says that it pins %.40q", ErrDamaged, rec.ID)
	}
	return Pin{Point: rec.ID, Note: rec.Note, Time: rec.Time, Host: rec.Host}, nil
}

// Pin keeps a point from being forgotten. Pinning it again replaces the note.
func (r *Repository) Pin(ctx context.Context, id, note string) error {
	if len(note) > maxPinNote || !utf8.ValidString(note) {
		return fmt.Errorf("pin point %s: the note is not UTF-8 of at most %d bytes", id, maxPinNote)
	}
	if _, err := r.pointRecord(ctx, id); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	host, _ := os.Hostname() // for people
	rec := pinRecord{Format: recordFormat, ID: id, Note: note, Time: r.clock().UTC().Truncate(time.Second), Host: host}
	data, err := json.Marshal(rec)
	if err == nil {
		err = r.putSealed(ctx, pinName(id), data, backend.Replace)
	}
	if err != nil {
		return fmt.Errorf("pin point %s: %w", id, err)
	}
	if _, err := r.pointRecord(ctx, id); err != nil {
		if errors.Is(err, ErrNotFound) { // forgotten at the same time
			err = errors.Join(err, r.backend.Remove(ctx, pinName(id)))
		}
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}

// Unpin removes a point's pin, also one of a point that is gone. ErrNotFound: it
// is not pinned. ErrAppendOnly: in append-only mode nothing is unpinned.
func (r *Repository) Unpin(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("unpin: %w: %.40q is not the ID of a restore point (16 hexadecimal digits)", ErrReference, id)
	}
	_, err := r.pinOf(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin: a pin of point %s: %w", id, ErrNotFound)
	}
	if err != nil && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("unpin point %s: %w", id, err)
	}
	if err := r.checkAppendOnly(ctx); err != nil {
		return fmt.Errorf("unpin point %s: %w", id, err)
	}
	if err := r.backend.Remove(ctx, pinName(id)); err != nil {
		return fmt.Errorf("unpin point %s: %w", id, err)
	}
	return nil
}

func (r *Repository) pinOf(ctx context.Context, id string) (Pin, error) {
	data, err := r.getSealed(ctx, pinName(id), maxPinBytes)
	if err != nil {
		return Pin{}, err
	}
	pin, err := decodePin(data, id)
	if err != nil {
		return Pin{}, fmt.Errorf("%s: %w", pinName(id), err)
	}
	return pin, nil
}

// Pins returns all pins by the ID of their point, in the order in which they
// were set. One whose object is damaged pins all the same: only its note is
// lost.
func (r *Repository) Pins(ctx context.Context) ([]Pin, error) {
	pins, err := r.pins(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Pin, 0, len(pins))
	for _, pin := range pins {
		out = append(out, pin)
	}
	slices.SortFunc(out, func(a, b Pin) int { return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Point, b.Point)) })
	return out, nil
}

// pins is all pins by the ID of their point.
func (r *Repository) pins(ctx context.Context) (map[string]Pin, error) {
	pins := make(map[string]Pin)
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(pointReaders)
	for info, err := range r.backend.List(ctx, pinPrefix) {
		if err != nil {
			return nil, errors.Join(fmt.Errorf("list the pins: %w", err), group.Wait())
		}
		id := strings.TrimPrefix(info.Name, pinPrefix)
		if !validID(id) {
			continue
		}
		group.Go(func() error {
			pin, err := r.pinOf(gctx, id)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case errors.Is(err, ErrDamaged), errors.Is(err, ErrVersion):
				r.log.Error("a pin cannot be read; its point stays pinned", "point", id, "error", err)
				pin = Pin{Point: id, Time: info.Modified.UTC()}
			case err != nil:
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			pins[id] = pin
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("read the pins: %w", err)
	}
	return pins, nil
}
