package store

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// recordFormat is the version of the JSON in points and claims. A reader
// refuses any other, and any field that it does not know: what it cannot
// understand it must not half understand.
const recordFormat = 1

// Bounds of what a point may hold, so that one object cannot take all memory.
const (
	maxPointBytes  = 8 << 20 // the JSON of a point
	maxDisks       = 1024
	maxConfigFiles = 256
	maxName        = 1024    // bytes of a name, a label's key or value
	maxDiskSize    = 1 << 50 // bytes, 1 PiB
)

// pointRecord is a point as it is stored. A void record stands where a point
// would have been: it keeps a writer that was taken for dead from committing
// (see claim.go).
type pointRecord struct {
	Format      int               `json:"format"`
	ID          string            `json:"id"`
	Void        bool              `json:"void,omitempty"`
	Claim       uint64            `json:"claim"`   // of the writer
	Through     uint64            `json:"through"` // its last segment that the point may need
	VM          string            `json:"vm,omitempty"`
	VMID        string            `json:"vm_id,omitempty"`
	Time        time.Time         `json:"time"`
	Consistency Consistency       `json:"consistency,omitempty"`
	Parent      string            `json:"parent,omitempty"`
	Disks       []diskRecord      `json:"disks,omitempty"`
	Config      []configRecord    `json:"config,omitempty"`
	ReadBytes   int64             `json:"read_bytes"`
	NewBytes    int64             `json:"new_bytes"`
	StoredBytes int64             `json:"stored_bytes"`
	Tool        string            `json:"tool,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Origin      *Origin           `json:"origin,omitempty"`
	LockSeconds int64             `json:"lock_seconds,omitempty"` // immutable for so long from LockFrom on
	LockFrom    int64             `json:"lock_from,omitempty"`    // Unix milliseconds by the repository's clock (see clockledger.go)
}

type diskRecord struct {
	Key    int      `json:"key"`
	Label  string   `json:"label"`
	Size   int64    `json:"size"`
	Used   int64    `json:"used"`
	Levels int      `json:"levels"`
	Root   textAddr `json:"root"`
}

type configRecord struct {
	Name   string     `json:"name"`
	Size   int64      `json:"size"`
	Blocks []textAddr `json:"blocks"`
}

// textAddr is an address in JSON: segment and slot in hexadecimal with a dot,
// because a 64-bit number is not safe in every reader of JSON.
type textAddr segment.Addr

func (a textAddr) MarshalText() ([]byte, error) {
	s := segment.Addr(a)
	return fmt.Appendf(nil, "%x.%x", s.Segment(), s.Slot()), nil
}

func (a *textAddr) UnmarshalText(text []byte) error {
	number, slot, ok := strings.Cut(string(text), ".")
	n, err1 := strconv.ParseUint(number, 16, 48)
	s, err2 := strconv.ParseUint(slot, 16, 16)
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%q is not a block address", text)
	}
	*a = textAddr(segment.MakeAddr(n, int(s)))
	return nil
}

// tree is the block map of the disk.
func (d diskRecord) tree(blockSize int) blockmap.Tree {
	return blockmap.Tree{Size: d.Size, BlockSize: blockSize, Levels: d.Levels, Root: segment.Addr(d.Root)}
}

// public is the point as callers see it. The record goes with it, so that
// opening a disk needs no second read.
func (rec *pointRecord) public() *Point {
	p := &Point{
		ID: rec.ID, VM: rec.VM, VMID: rec.VMID, Time: rec.Time, Consistency: rec.Consistency,
		Parent: rec.Parent, ReadBytes: rec.ReadBytes, NewBytes: rec.NewBytes,
		StoredBytes: rec.StoredBytes, Tool: rec.Tool, Labels: rec.Labels, Origin: rec.Origin, rec: rec,
	}
	p.Disks = make([]Disk, len(rec.Disks))
	for i, d := range rec.Disks {
		p.Disks[i] = Disk{Key: d.Key, Label: d.Label, Size: d.Size, Used: d.Used}
	}
	for _, c := range rec.Config {
		p.Config = append(p.Config, ConfigFile{Name: c.Name, Size: c.Size})
	}
	return p
}

// decodeStrict decodes exactly one JSON value of the known format into v, which
// has a field "format".
func decodeStrict(data []byte, v any) error { return decodeFormat(data, v, recordFormat) }

// decodeFormat is decodeStrict of another format.
func decodeFormat(data []byte, v any, format int) error {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if head.Format != format {
		return fmt.Errorf("%w: format %d, this Lifeboat knows %d: use a newer one", ErrVersion, head.Format, format)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if strings.Contains(err.Error(), "unknown field") {
			return fmt.Errorf("%w: %w: use a newer Lifeboat", ErrVersion, err)
		}
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: bytes after the JSON document", ErrDamaged)
	}
	return nil
}

// decodePoint reads a point's JSON as untrusted input: what it returns is safe
// to work with.
func decodePoint(data []byte, id string, blockSize int) (*pointRecord, error) {
	rec := new(pointRecord)
	if err := decodeStrict(data, rec); err != nil {
		return nil, err
	}
	if rec.ID != id {
		return nil, fmt.Errorf("%w: it says that it is %.40q", ErrDamaged, rec.ID)
	}
	if rec.Void {
		return rec, nil
	}
	if err := rec.check(blockSize); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return rec, nil
}

func (rec *pointRecord) check(blockSize int) error {
	if rec.VM == "" {
		return errors.New("no VM name")
	}
	if len(rec.Disks) > maxDisks || len(rec.Config) > maxConfigFiles {
		return fmt.Errorf("%d disks and %d files are too many", len(rec.Disks), len(rec.Config))
	}
	if rec.LockSeconds < 0 || rec.LockSeconds > int64(maxWindow/time.Second) || rec.LockFrom < 0 {
		return fmt.Errorf("immutable for %d s", rec.LockSeconds)
	}
	for i, d := range rec.Disks {
		if err := d.check(blockSize); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		if i > 0 && d.Key <= rec.Disks[i-1].Key {
			return fmt.Errorf("disk %d: keys are not ascending", i)
		}
	}
	for i, c := range rec.Config {
		if c.Size < 0 || c.Size > MaxConfigFile || int64(len(c.Blocks)) != blocksOf(c.Size, blockSize) {
			return fmt.Errorf("file %d: %d blocks cannot hold %d bytes", i, len(c.Blocks), c.Size)
		}
		for _, a := range c.Blocks {
			if a := segment.Addr(a); a != segment.Hole && a != segment.Unreadable && !a.Stored() {
				return fmt.Errorf("file %d: a block at %v", i, a)
			}
		}
	}
	return nil
}

func (d diskRecord) check(blockSize int) error {
	if d.Size < 0 || d.Size > maxDiskSize || d.Used < 0 {
		return fmt.Errorf("impossible size %d, used %d", d.Size, d.Used)
	}
	return d.tree(blockSize).Check()
}

// encode is the record's JSON.
func (rec *pointRecord) encode() ([]byte, error) {
	rec.Format = recordFormat
	slices.SortFunc(rec.Disks, func(a, b diskRecord) int { return a.Key - b.Key })
	slices.SortFunc(rec.Config, func(a, b configRecord) int { return strings.Compare(a.Name, b.Name) })
	data, err := json.Marshal(rec)
	if err == nil && len(data) > maxPointBytes {
		err = fmt.Errorf("the point takes %d bytes, at most %d fit", len(data), maxPointBytes)
	}
	return data, err
}

// blocksOf is the number of blocks that hold size bytes.
func blocksOf(size int64, blockSize int) int64 {
	return size/int64(blockSize) + min(1, size%int64(blockSize))
}

// validID reports whether id can be that of a point.
func validID(id string) bool {
	_, err := hex.DecodeString(id)
	return len(id) == 16 && err == nil && strings.ToLower(id) == id
}
