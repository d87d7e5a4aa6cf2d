package dedupe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// Verify reads every byte of every run and calls report with each place that
// is not what was written. It goes on with a shared index in use. Its own
// error means that it could not look everywhere.
func Verify(ctx context.Context, b backend.Backend, keys Keys, report func(*DamageError)) error {
	return verifyRuns(ctx, b, keys, true, report)
}

// VerifyStructure is Verify of what opening the index reads: directories and
// summaries, not the pages.
func VerifyStructure(ctx context.Context, b backend.Backend, keys Keys, report func(*DamageError)) error {
	return verifyRuns(ctx, b, keys, false, report)
}

func verifyRuns(ctx context.Context, b backend.Backend, keys Keys, pages bool, report func(*DamageError)) error {
	for info, err := range b.List(ctx, Prefix) {
		if err != nil {
			return fmt.Errorf("verify dedupe index: %w", err)
		}
		if err := verifyObject(ctx, b, keys, info, pages, report); err != nil {
			return fmt.Errorf("verify dedupe index: %w", err)
		}
	}
	return nil
}

func verifyObject(ctx context.Context, b backend.Backend, keys Keys, info backend.Info, pages bool, report func(*DamageError)) error {
	id, ok := parseName(info.Name)
	if !ok {
		report(&DamageError{info.Name, 0, info.Size, "no run has such a name: nothing uses it"})
		return nil
	}
	o := opening{damaged: report, blind: true}
	if pages {
		o.blind = false
		o.each = func(r *run, p *partition) error { return r.verifyPartition(ctx, p, report) }
	}
	r, err := openRun(ctx, b, keys, id, o)
	var damage *DamageError
	switch {
	case errors.As(err, &damage):
		report(damage)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil // merged meanwhile
	case err != nil:
		return err
	}
	return r.obj.Close()
}

// verifyPartition checks seals, order, fences and filter. For pages that are
// out of order it suffices to name the first.
func (r *run) verifyPartition(ctx context.Context, p *partition, report func(*DamageError)) error {
	var s scratch
	var last segment.Identity
	for i := range p.fences {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := r.readPage(p, i, &s)
		var damage *DamageError
		if errors.As(err, &damage) {
			report(damage)
			continue
		} else if err != nil {
			return err
		}
		if reason := p.inconsistent(i, entries, &last); reason != "" {
			report(r.damage(p.offset+int64(i)*pageSize, pageSize, fmt.Sprintf("page %d: %s", p.page+i, reason)))
			return nil
		}
	}
	return nil
}

func (p *partition) inconsistent(page int, entries []byte, last *segment.Identity) string {
	first := segment.Identity(entries[:16])
	if fence(first) != p.fences[page] || page == 0 && first != p.first {
		return "it does not begin as the summary says"
	}
	for begin := page == 0; len(entries) > 0; entries = entries[entrySize:] {
		e := getEntry(entries)
		if !begin && bytesCompare(*last, e.ID) >= 0 {
			return "its entries are out of order"
		}
		if !p.mayHold(filterKey(e.ID)) {
			return "the filter denies one of its entries"
		}
		*last, begin = e.ID, false
	}
	return ""
}
