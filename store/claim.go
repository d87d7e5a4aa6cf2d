package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"lifeboat/store/backend"
)

// Claims: how writers keep out of each other's way, and how what the dead ones
// left is found.
//
// A claim is the object claims/<n in 16 hex>. Creating it exclusively gives its
// owner, and nobody else ever, the segment numbers n*256 … n*256+255. n is one
// more than the highest claim there is, and the highest claim is never removed,
// so that no number is given out twice. Who finds, after it created a claim, that
// there is a higher one gives it back (secure).
//
// A claim is open or closed. An open one says who owns it, names the ID of the
// point that the owner will commit next (pending), and the segment number up to
// which everything in its range is there to stay (kept). The owner replaces it
// every lease/5, which moves its modification time by the backend's clock.
//
// The order of a commit, each step durable before the next:
//
//  1. all segments that the point needs
//  2. points/<pending>, created exclusively: the commit. It names the claim
//     and the last segment that it may need (through)
//  3. the claim: kept = through, pending = the ID of the point after
//  4. the run of the dedupe index for the new segments
//
// The owner is dead when its process is known to be gone, or when its claim was
// not replaced for the length of its lease. Sweeping it, by whoever comes next:
//
//	a. if it is only the lease that tells, a void is created exclusively, first
//	   under the owner's nonce (the claim's fence), and then, after the claim was
//	   read again, as points/<pending>. From then on the owner, should it wake up,
//	   cannot pass step 2.
//	b. if points/<pending> is a point (it got there before), kept becomes its
//	   through
//	c. segments of the range above kept are removed
//	d. the claim is closed, or removed if there is a higher one
//
// Why nothing that is needed is removed: a segment above kept is referred to by
// nobody but its owner until step 2 (blocks become known to others through a
// point, at 2, or the index, at 4, after kept covers them at 3). Step 2 and a.
// exclude each other, since both create the same name. After 2, b. sees the
// point; no prune removes one that is the pending point of an open claim.
// Sweepers that run at the same time do the same.
//
// The fence is for an owner that fell asleep in the middle of step 3, after it
// had made sure that the claim was its own: it then replaces a claim that is gone,
// with a pending point that nobody voided. So whenever it has changed kept or
// pending it looks for the fence, and stops if there is one. If there is none,
// then the sweeper, which reads the claim after it put up the fence, has still to
// read what the owner wrote.
//
// A claim that is damaged is never swept: what its owner kept is not known. Its
// owner mends it with the next renewal; when that has not happened for maxLease,
// the claim is removed and its segments stay, for a prune to look at.
//
// A long backup does steps 1, 3 and 4 now and then without a point (a
// checkpoint), so that what it stored so far is found by the next attempt.
const (
	claimPrefix = "claims/"
	// rangeSize is the number of segment numbers in a claim.
	rangeSize     = 256
	maxClaimBytes = 64 << 10
	maxClaim      = 1<<40 - 1 // 48-bit segment numbers
	maxLease      = 24 * time.Hour
)

// claimRecord is a claim as it is stored.
type claimRecord struct {
	Format  int       `json:"format"`
	Number  uint64    `json:"number"`
	Kind    claimKind `json:"kind"`
	Closed  bool      `json:"closed,omitempty"`
	Owner   owner     `json:"owner"`
	Pending string    `json:"pending,omitempty"`
	Kept    uint64    `json:"kept"`     // 0: nothing
	LeaseMS int64     `json:"lease_ms"` // how long the owner is respected after the last renewal
	// What prunes go by; see prune.go.
	Parents []string `json:"parents,omitempty"` // points that the owner's next points take blocks from
	Seen    uint64   `json:"seen,omitempty"`    // sequence of the condemned list that the owner respects
	From    uint64   `json:"from,omitempty"`    // its unfinished points need nothing of claims below this one; 0: its own
}

// maxParents bounds the points that one ingest makes at the same time.
const maxParents = 1024

// owner says whose claim it is.
type owner struct {
	Host    string `json:"host"`    // for people
	Process string `json:"process"` // backend.Processes.Self
	Nonce   string `json:"nonce"`   // tells the claims of one process apart
}

// claimKind says what its owner does.
type claimKind string

const (
	claimWriter claimKind = "writer"
	claimPrune  claimKind = "prune"
)

func (c claimRecord) lease() time.Duration { return time.Duration(c.LeaseMS) * time.Millisecond }

func (c claimRecord) first() uint64 { return c.Number * rangeSize }
func (c claimRecord) last() uint64  { return c.first() + rangeSize - 1 }

func claimName(n uint64) string { return fmt.Sprintf("%s%016x", claimPrefix, n) }

// parseClaimName is the inverse of claimName; it accepts no other spelling.
func parseClaimName(name string) (uint64, bool) {
	hex, ok := strings.CutPrefix(name, claimPrefix)
	n, err := strconv.ParseUint(hex, 16, 64)
	ok = ok && err == nil && n >= 1 && n <= maxClaim && claimName(n) == name
	return n, ok
}

// decodeClaim reads a claim's JSON as untrusted input.
func decodeClaim(data []byte, number uint64) (claimRecord, error) {
	var c claimRecord
	if err := decodeStrict(data, &c); err != nil {
		return c, err
	}
	switch {
	case c.Number != number:
		return c, fmt.Errorf("%w: it says that it is claim %x", ErrDamaged, c.Number)
	case c.Kind != claimWriter && c.Kind != claimPrune:
		return c, fmt.Errorf("%w: a claim of kind %.40q: use a newer Lifeboat", ErrVersion, c.Kind)
	case c.Kept != 0 && (c.Kept < c.first() || c.Kept > c.last()):
		return c, fmt.Errorf("%w: it keeps segment %x, outside its range", ErrDamaged, c.Kept)
	case c.LeaseMS <= 0 || c.LeaseMS > maxLease.Milliseconds():
		return c, fmt.Errorf("%w: a lease of %d ms", ErrDamaged, c.LeaseMS)
	case c.Pending != "" && !validID(c.Pending):
		return c, fmt.Errorf("%w: pending point %.40q", ErrDamaged, c.Pending)
	case c.Owner.Nonce != "" && !validID(c.Owner.Nonce):
		return c, fmt.Errorf("%w: an owner %.40q", ErrDamaged, c.Owner.Nonce)
	case c.From > c.Number || len(c.Parents) > maxParents:
		return c, fmt.Errorf("%w: from claim %x, %d parents", ErrDamaged, c.From, len(c.Parents))
	}
	for _, id := range c.Parents {
		if !validID(id) {
			return c, fmt.Errorf("%w: parent %.40q", ErrDamaged, id)
		}
	}
	return c, nil
}

// claim is a claim that this process holds.
type claim struct {
	r *Repository

	mu  sync.Mutex // held while the object is replaced, so that none is older than what it replaces
	rec claimRecord
}

// listedClaim is a claim's entry in a listing.
type listedClaim struct {
	number   uint64
	modified time.Time // by the backend's clock
}

// listClaims lists all claims in ascending order.
func (r *Repository) listClaims(ctx context.Context) ([]listedClaim, error) {
	var out []listedClaim
	for info, err := range r.backend.List(ctx, claimPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the claims: %w", err)
		}
		if n, ok := parseClaimName(info.Name); ok {
			out = append(out, listedClaim{n, info.Modified})
		}
	}
	return out, nil
}

func (r *Repository) putClaim(ctx context.Context, c claimRecord, mode backend.Mode) error {
	c.Format = recordFormat
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return r.putSealed(ctx, claimName(c.Number), data, mode)
}

func (r *Repository) getClaim(ctx context.Context, number uint64) (claimRecord, error) {
	data, err := r.getSealed(ctx, claimName(number), maxClaimBytes)
	if err != nil {
		return claimRecord{}, err
	}
	c, err := decodeClaim(data, number)
	if err != nil {
		return c, fmt.Errorf("%s: %w", claimName(number), err)
	}
	return c, nil
}

// update replaces the claim with what change makes of it, after making sure
// that it is still ours.
func (c *claim) update(ctx context.Context, change func(*claimRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Closed {
		return ErrClosed
	}
	if err := c.check(ctx); err != nil {
		return err
	}
	rec := c.rec
	change(&rec)
	if err := c.r.putClaim(ctx, rec, backend.Replace); err != nil {
		return fmt.Errorf("renew claim %x: %w", rec.Number, err)
	}
	if rec.Kept != c.rec.Kept || rec.Pending != c.rec.Pending {
		if err := c.unfenced(ctx); err != nil {
			return err
		}
	}
	c.rec = rec
	return nil
}

// lost fails with ErrFenced when the claim was taken away, or is fenced.
func (c *claim) lost(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(ctx); err != nil {
		return err
	}
	return c.unfenced(ctx)
}

// unfenced fails with ErrFenced when a sweeper has put up the claim's fence. It
// is asked after what the claim says of segments and points has changed. c.mu is
// held.
func (c *claim) unfenced(ctx context.Context) error {
	_, err := c.r.readPoint(ctx, c.rec.Owner.Nonce)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil || errors.Is(err, ErrDamaged):
		return c.fencedError()
	}
	return fmt.Errorf("see whether claim %x still counts: %w", c.rec.Number, err)
}

func (c *claim) fencedError() error {
	return fmt.Errorf("%w %x: another process took this one for dead and removed what it had not committed; run the backup again",
		ErrFenced, c.rec.Number)
}

// check fails with ErrFenced when a sweeper took the claim away. c.mu is held.
func (c *claim) check(ctx context.Context) error {
	now, err := c.r.getClaim(ctx, c.rec.Number)
	if errors.Is(err, ErrDamaged) {
		return nil // nobody else writes over a damaged claim: it is ours to mend
	}
	if err == nil && (now.Closed || now.Owner != c.rec.Owner) || errors.Is(err, fs.ErrNotExist) {
		return c.fencedError()
	}
	return err
}

// record is the claim as it was last written.
func (c *claim) record() claimRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// renew keeps the claim alive until ctx ends. When the claim is lost, or could
// not be renewed for half a lease, it calls lost and returns.
func (c *claim) renew(ctx context.Context, lost func(error)) {
	tick := time.NewTicker(c.r.lease / 5)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := c.update(ctx, func(*claimRecord) {})
		switch {
		case err == nil:
			last = time.Now()
		case errors.Is(err, ErrClosed):
			return
		case errors.Is(err, ErrFenced) || time.Since(last) > c.r.lease/2:
			lost(err)
			return
		case ctx.Err() == nil:
			c.r.log.Warn("could not renew the claim; trying again", "claim", c.record().Number, "error", err)
		}
	}
}

// newPointID is a random ID.
func newPointID() string { return randomHex(8) }

// randomHex is n random bytes in hexadecimal.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
