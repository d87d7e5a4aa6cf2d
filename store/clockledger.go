package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"lifeboat/store/backend"
)

// The repository's clock. An immutability window must not end early because a
// clock is wrong, by accident or by design. A repository has a time of its own,
// that only what proves itself moves on, and every lock begins and ends by it.
// It never runs ahead of what has really passed; it may fall behind, and then
// locks last longer.
//
// The ledger is the objects clock/<boot>, one for each boot of each host that
// was here: the repository's time then, and the host's uptime and wall clock at
// that moment. A host that looks at the time
//
//   - on the same boot: adds the uptime since its entry (CLOCK_BOOTTIME, which no
//     one can set and which counts suspension). The wall clock has no say;
//   - on another boot (a restart, a new host or container): goes on from the
//     latest entry. How long ago that was nobody can prove, so at most
//     clockCredit is believed, and not more than the wall clock has moved on; a
//     wall clock that moved by more than clockPlausible is wrong and believed
//     nothing;
//   - on another boot, where the backend's times are those of a server
//     (serverClock): adds what has passed by the server's clock, too;
//   - where the ledger was removed: goes on from the latest moment that an
//     immutable point was made, which is in the point;
//   - in a repository without any of that: starts with the wall clock. How right
//     it is doesn't matter, since only differences count.
//
// A time is never before the latest entry's. Entries are replaced, as time goes
// by, by whoever looks; two processes of a boot write the same line of uptime
// and time, so it does not matter who is last. Old state of the ledger put back
// is an earlier time, and safe.
const (
	clockPrefix    = "clock/"
	maxClockBytes  = 4 << 10
	maxClocks      = 256 // entries that are read
	clockCredit    = 24 * time.Hour
	clockPlausible = 366 * 24 * time.Hour
	// clockRenew is how much time may be lost when a host goes down.
	clockRenew = 15 * time.Minute
	// clockLife is how far behind an entry may be before it is removed. Its
	// host, should it come back, goes on like a new boot.
	clockLife = 45 * 24 * time.Hour
)

// hostClock is what a host knows of time.
type hostClock interface {
	// Boot names this boot of this host, 16 hexadecimal digits.
	Boot() string
	// Uptime is the time since then; no one can set it.
	Uptime() time.Duration
	// Wall is the time of day, which may be wrong.
	Wall() time.Time
}

// serverClock is implemented by backends whose Info.Modified is by the clock of
// a server, which a wrong clock of this host does not change.
type serverClock interface {
	ServerClock() bool
}

// clockRecord is an entry of the ledger. All numbers are milliseconds, Wall and
// Time since 1970.
type clockRecord struct {
	Format int    `json:"format"`
	Boot   string `json:"boot"`
	Host   string `json:"host,omitempty"` // for people
	Uptime int64  `json:"uptime_ms"`
	Wall   int64  `json:"wall_ms"`
	Time   int64  `json:"time_ms"` // by the repository's clock
}

// clockEntry is an entry and when its object was written by the backend's clock.
type clockEntry struct {
	clockRecord
	modified time.Time
}

// repoTime is a moment: by the repository's clock, and by the host's.
type repoTime struct {
	at   int64 // Unix milliseconds
	wall time.Time
}

// wallAt is when it will be that time, as far as a person is concerned.
func (t repoTime) wallAt(at int64) time.Time {
	return t.wall.Add(time.Duration(at-t.at) * time.Millisecond).Truncate(time.Second)
}

func clockName(boot string) string { return clockPrefix + boot }

func decodeClock(data []byte, boot string) (clockRecord, error) {
	var c clockRecord
	if err := decodeStrict(data, &c); err != nil {
		return c, err
	}
	const most = math.MaxInt64 / int64(time.Millisecond) / 2 // differences fit a Duration
	if c.Boot != boot || c.Uptime < 0 || c.Uptime > most || c.Wall < -most || c.Wall > most || c.Time < 0 || c.Time > most {
		return c, fmt.Errorf("%w: boot %.40q, uptime %d, wall clock %d, time %d", ErrDamaged, c.Boot, c.Uptime, c.Wall, c.Time)
	}
	return c, nil
}

// repositoryTime is the time by the repository's clock, for display: nothing is
// written, so a reader without permission to write can ask.
func (r *Repository) repositoryTime(ctx context.Context) (repoTime, error) {
	now, _, err := r.lookAtClock(ctx)
	return now, err
}

// observeTime is the time by the repository's clock, and moves that on.
func (r *Repository) observeTime(ctx context.Context) (repoTime, error) {
	now, ledger, err := r.lookAtClock(ctx)
	if err != nil {
		return now, err
	}
	own := ledger.of(r.host.Boot())
	if own != nil && now.at-own.Time < clockRenew.Milliseconds() {
		return now, nil
	}
	if err := r.putClock(ctx, now); err != nil {
		return now, err
	}
	if own == nil && r.onServerTime() && len(ledger) > 0 {
		// What time it is for the server, our own object tells.
		if now, err = r.catchUp(ctx, now, ledger.latest()); err != nil {
			return now, err
		}
	}
	r.dropOldClocks(ctx, ledger, now)
	return now, nil
}

// lookAtClock reads the ledger and says what time it is.
func (r *Repository) lookAtClock(ctx context.Context) (repoTime, clockLedger, error) {
	ledger, err := r.readClocks(ctx)
	if err != nil {
		return repoTime{}, nil, err
	}
	var start int64
	if len(ledger) == 0 {
		if start, err = r.latestLock(ctx); err != nil {
			return repoTime{}, nil, err
		}
	}
	wall := r.host.Wall()
	return repoTime{at: ledger.now(r.host, wall, start), wall: wall}, ledger, nil
}

// clockLedger is the entries, in no order.
type clockLedger []clockEntry

func (l clockLedger) of(boot string) *clockEntry {
	i := slices.IndexFunc(l, func(c clockEntry) bool { return c.Boot == boot })
	if i < 0 {
		return nil
	}
	return &l[i]
}

// latest is the entry with the latest time; l is not empty.
func (l clockLedger) latest() clockEntry {
	return slices.MaxFunc(l, func(a, b clockEntry) int { return int(min(max(a.Time-b.Time, -1), 1)) })
}

// now is the time by the repository's clock; start is the latest that is known
// otherwise, or 0.
func (l clockLedger) now(host hostClock, wall time.Time, start int64) int64 {
	if len(l) == 0 {
		if start == 0 {
			return max(wall.UnixMilli(), 1)
		}
		return start + believe(wall.UnixMilli()-start)
	}
	latest := l.latest()
	if own := l.of(host.Boot()); own != nil {
		if passed := host.Uptime().Milliseconds() - own.Uptime; passed >= 0 {
			return max(own.Time+passed, latest.Time)
		}
	}
	return latest.Time + believe(wall.UnixMilli()-latest.Wall)
}

// believe is how much of what only the wall clock says has passed counts, in
// milliseconds.
func believe(passed int64) int64 {
	if passed < 0 || passed > clockPlausible.Milliseconds() {
		return 0
	}
	return min(passed, clockCredit.Milliseconds())
}

func (r *Repository) onServerTime() bool {
	s, ok := backend.As[serverClock](r.backend)
	return ok && s.ServerClock()
}

// catchUp moves the time on by what has passed on the server since an entry was
// written. Our own was written a moment ago.
func (r *Repository) catchUp(ctx context.Context, now repoTime, since clockEntry) (repoTime, error) {
	for info, err := range r.backend.List(ctx, clockName(r.host.Boot())) {
		if err != nil {
			return now, fmt.Errorf("read the time of the server: %w", err)
		}
		passed := info.Modified.Sub(since.modified).Milliseconds()
		if at := since.Time + passed; info.Name == clockName(r.host.Boot()) && at > now.at {
			now.at = at
			return now, r.putClock(ctx, now)
		}
	}
	return now, nil
}

func (r *Repository) putClock(ctx context.Context, now repoTime) error {
	host, _ := os.Hostname() // for people
	rec := clockRecord{
		Format: recordFormat, Boot: r.host.Boot(), Host: host,
		Uptime: r.host.Uptime().Milliseconds(), Wall: now.wall.UnixMilli(), Time: now.at,
	}
	data, err := json.Marshal(rec)
	if err == nil {
		err = r.putSealed(ctx, clockName(rec.Boot), data, backend.Replace)
	}
	if err != nil {
		return fmt.Errorf("note the time: %w", err)
	}
	return nil
}

// readClocks reads the ledger. An entry that cannot be read is as if it were
// not there.
func (r *Repository) readClocks(ctx context.Context) (clockLedger, error) {
	var ledger clockLedger
	for info, err := range r.backend.List(ctx, clockPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the ledger of the clock: %w", err)
		}
		boot := strings.TrimPrefix(info.Name, clockPrefix)
		if !validID(boot) || len(ledger) == maxClocks {
			continue
		}
		data, err := r.getSealed(ctx, info.Name, maxClockBytes)
		var rec clockRecord
		if err == nil {
			rec, err = decodeClock(data, boot)
		}
		switch {
		case err == nil:
			ledger = append(ledger, clockEntry{rec, info.Modified})
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrVersion):
			r.log.Warn("an entry in the ledger of the clock cannot be read", "object", info.Name, "error", err)
		default:
			return nil, err
		}
	}
	return ledger, nil
}

// latestLock is the latest moment that an immutable point was made, or 0.
func (r *Repository) latestLock(ctx context.Context) (int64, error) {
	recs, err := r.pointRecords(ctx, func(string, error) {})
	if err != nil {
		return 0, err
	}
	var at int64
	for _, rec := range recs {
		at = max(at, rec.LockFrom)
	}
	return at, nil
}

// dropOldClocks removes entries that are of no use any more.
func (r *Repository) dropOldClocks(ctx context.Context, ledger clockLedger, now repoTime) {
	for _, c := range ledger {
		if c.Boot == r.host.Boot() || now.at-c.Time < clockLife.Milliseconds() && len(ledger) < maxClocks/2 {
			continue
		}
		if err := r.backend.Remove(ctx, clockName(c.Boot)); err != nil {
			r.log.Warn("could not remove an old entry from the ledger of the clock", "object", clockName(c.Boot), "error", err)
			return
		}
	}
}
