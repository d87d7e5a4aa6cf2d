package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"lifeboat/store"
)

// FileRef is a place in a restore point as people write it: POINT:VOLUME/PATH.
type FileRef struct {
	Point *store.Point
	Place string // VOLUME/PATH, see Guest.Locate
}

// ResolveFile takes POINT:VOLUME/PATH apart. Names of VMs, times, drives and
// files may all have colons in them; the first that ends a restore point which
// exists is the one that counts.
func ResolveFile(ctx context.Context, repo *store.Repository, ref string) (*FileRef, error) {
	var first, best error
	for _, at := range colons(ref) {
		pt, err := ResolvePoint(ctx, repo, ref[:at])
		if err == nil {
			return &FileRef{Point: pt, Place: strings.TrimPrefix(ref[min(at, len(ref)):], ":")}, nil
		}
		if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, ErrUsage) && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if first == nil {
			first = err
		}
		if best == nil && strings.HasPrefix(ref[at:], ":/") {
			best = err
		}
	}
	if best == nil {
		best = first
	}
	return nil, best
}

// aTime is the end of a restore point that is named by its time.
var aTime = regexp.MustCompile(`@\d{4}-\d\d-\d\d[T ]\d\d(:\d\d){0,2}([.,]\d+)?(Z|[+-]\d\d(:?\d\d)?)?`)

// colons are the places where a reference may come apart, and its end.
func colons(ref string) []int {
	var out []int
	inTime := aTime.FindStringIndex(ref)
	for i := range len(ref) {
		if ref[i] == ':' && (inTime == nil || i < inTime[0] || i >= inTime[1]) {
			out = append(out, i)
		}
	}
	return append(out, len(ref))
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// WithGuest opens the guest of a place and runs fn on it.
func WithGuest(ctx context.Context, repo *store.Repository, ref string, opts GuestOptions, fn func(g *Guest, place string) error) error {
	f, err := ResolveFile(ctx, repo, ref)
	if err != nil {
		return err
	}
	g, err := OpenGuest(ctx, repo, f.Point, opts)
	if err != nil {
		return err
	}
	defer g.Close()
	if err := fn(g, f.Place); err != nil {
		return fmt.Errorf("%s: %w", f.Place, err)
	}
	return nil
}

// PlaceIn is the place of another reference to the same restore point. One that
// begins with a slash, a volume or a drive needs no point.
func PlaceIn(ctx context.Context, repo *store.Repository, g *Guest, ref string) (string, error) {
	if _, _, err := g.Locate(ctx, ref); err == nil {
		return ref, nil
	}
	f, err := ResolveFile(ctx, repo, ref)
	if err != nil {
		return "", err
	}
	if f.Point.ID != g.Point.ID {
		return "", fmt.Errorf("%w: %q is in another restore point than the first place", ErrUsage, ref)
	}
	return f.Place, nil
}
