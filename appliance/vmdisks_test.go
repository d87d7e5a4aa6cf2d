package appliance

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vsphere"
)

// scriptedTracker answers as it is told, by change ID.
type scriptedTracker map[string]any

func (s scriptedTracker) areas(_ context.Context, _ vsphere.Disk, id string) (areas, error) {
	switch answer := s[id].(type) {
	case areas:
		return answer, nil
	case error:
		return nil, answer
	}
	return nil, vsphere.ErrChangeID
}

func TestDisksAreReadAsTheyMustBe(t *testing.T) {
	some, all := areas{{Offset: 4096, Length: 4096}}, areas{{Length: 1 << 20}}
	gone := errors.New("the server is gone")
	good := scriptedTracker{"52 ab/4": some, vsphere.Allocated: all}
	base := vsphere.Disk{Key: 2000, UUID: "u", Size: 1 << 20, ChangeID: "52 ab/7"}
	old := savedDisk{Key: 2000, UUID: "u", Size: 1 << 20, ChangeID: "52 ab/4", SinceAudit: 3}
	for name, c := range map[string]struct {
		tracker scriptedTracker
		disk    func(*vsphere.Disk)
		old     func(*savedDisk)
		noOld   bool
		options planOptions
		how     string
		why     string // part of it
		check   func(*diskPlan) bool
	}{
		"changed":                      {tracker: good, how: readChanged, check: func(p *diskPlan) bool { return slices.Equal(p.Claimed, some) && p.SinceAudit == 4 && p.Why == "" }},
		"nothing changed":              {tracker: scriptedTracker{"52 ab/4": areas{}}, how: readChanged},
		"first":                        {tracker: good, noOld: true, how: readAllocated, check: func(p *diskPlan) bool { return slices.Equal(p.Allocated, all) && p.SinceAudit == 0 }},
		"first, not asked":             {tracker: scriptedTracker{}, noOld: true, how: readWhole},
		"not tracked":                  {tracker: good, disk: func(d *vsphere.Disk) { d.ChangeID = "" }, how: readWhole, why: "not tracked yet"},
		"not tracked then":             {tracker: good, old: func(d *savedDisk) { d.ChangeID = "" }, how: readAllocated, why: "when the point before"},
		"larger":                       {tracker: good, old: func(d *savedDisk) { d.Size-- }, how: readAllocated, why: "size"},
		"another disk":                 {tracker: good, old: func(d *savedDisk) { d.UUID = "v" }, how: readAllocated, why: "another disk"},
		"tracking anew":                {tracker: good, old: func(d *savedDisk) { d.ChangeID = "52 ac/4" }, how: readAllocated, why: "afresh"},
		"went back":                    {tracker: good, old: func(d *savedDisk) { d.ChangeID = "52 ab/8" }, how: readAllocated, why: "taken back"},
		"not a change ID":              {tracker: good, old: func(d *savedDisk) { d.ChangeID = "52 ab/x" }, how: readAllocated, why: "taken back"},
		"refused":                      {tracker: scriptedTracker{vsphere.Allocated: all}, how: readAllocated, why: "cannot be asked", check: func(p *diskPlan) bool { return p.Warn }},
		"refused altogether":           {tracker: scriptedTracker{}, how: readWhole, why: "cannot be asked"},
		"wanted":                       {tracker: good, options: planOptions{full: true}, how: readAllocated, why: "asked for"},
		"audit due":                    {tracker: good, options: planOptions{auditEvery: 4}, how: readAllocated, check: func(p *diskPlan) bool { return p.Audit && slices.Equal(p.Claimed, some) && p.SinceAudit == 0 }},
		"audit not due":                {tracker: good, options: planOptions{auditEvery: 5}, how: readChanged},
		"caught":                       {tracker: good, old: func(d *savedDisk) { d.Distrust = "52 ab" }, how: readAllocated, why: "has missed", check: func(p *diskPlan) bool { return p.Warn && p.Distrust == "52 ab" }},
		"caught, and wanted":           {tracker: good, old: func(d *savedDisk) { d.Distrust = "52 ab" }, options: planOptions{full: true}, how: readAllocated, check: func(p *diskPlan) bool { return p.Distrust == "52 ab" }},
		"caught, and begun afresh":     {tracker: scriptedTracker{"52 ad/1": some}, disk: func(d *vsphere.Disk) { d.ChangeID = "52 ad/2" }, old: func(d *savedDisk) { d.Distrust, d.ChangeID = "52 ab", "52 ad/1" }, how: readChanged, check: func(p *diskPlan) bool { return p.Distrust == "" }},
		"server gone":                  {tracker: scriptedTracker{"52 ab/4": gone}, how: ""},
		"server gone in between":       {tracker: scriptedTracker{"52 ab/4": vsphere.ErrChangeID, vsphere.Allocated: gone}, how: ""},
		"first, server gone":           {tracker: scriptedTracker{vsphere.Allocated: gone}, noOld: true, how: ""},
		"audit each time, nothing new": {tracker: scriptedTracker{"52 ab/4": areas{}, vsphere.Allocated: all}, options: planOptions{auditEvery: 1}, how: readAllocated, check: func(p *diskPlan) bool { return p.Audit }},
	} {
		d, o := base, old
		if c.disk != nil {
			c.disk(&d)
		}
		if c.old != nil {
			c.old(&o)
		}
		was := &o
		if c.noOld {
			was = nil
		}
		p, err := planDisk(t.Context(), c.tracker, d, was, c.options)
		if c.how == "" {
			if !errors.Is(err, gone) {
				t.Errorf("%s: %v, %v", name, p, err)
			}
			continue
		}
		if err != nil || p.How != c.how || !strings.Contains(p.Why, c.why) || c.check != nil && !c.check(p) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestChangeIDs(t *testing.T) {
	for id, want := range map[changeID]struct {
		epoch  string
		number int64
	}{
		"52 de 1f 8a-a1/12": {"52 de 1f 8a-a1", 12}, "*": {"*", -1}, "": {"", -1}, "x/": {"x", -1}, "a/b/3": {"a/b", 3}, "x/99999999999999999999": {"x", -1},
	} {
		if id.epoch() != want.epoch || id.number() != want.number {
			t.Errorf("%q: %q, %d", id, id.epoch(), id.number())
		}
	}
}

// TestThinnedKeepsWhatThePointBeforeHas: whatever a datastore says is allocated,
// data of the point before is read again and never taken for zeros.
func TestThinnedKeepsWhatThePointBeforeHas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, allocated, in := drawAreas(t, "allocated")
		_, data, before := drawAreas(t, "before")
		size := rapid.Int64Range(0, areaSize).Draw(t, "size then")
		was := &masked{Image: solid{size}, holes: areasOf(data, size).outside(size)}
		d := &thinned{Image: solid{areaSize}, allocated: allocated, before: was}
		if rapid.Bool().Draw(t, "first") {
			d.before, before = nil, [areaSize]bool{}
		}
		at := int64(0)
		for e, err := range d.Extents(t.Context(), disk.Whole(d)) {
			if err != nil || e.Offset != at || e.Length <= 0 {
				t.Fatalf("%v, %v at %d", e, err, at)
			}
			for ; at < e.End(); at++ {
				if want := !in[at] && !(before[at] && at < size); e.Hole && !want {
					t.Fatalf("byte %d is not read", at)
				}
			}
		}
		if at != areaSize {
			t.Fatalf("the map ends at %d", at)
		}
	})
}

// solid is a disk that knows of no holes.
type solid struct{ size int64 }

func (s solid) Size() int64  { return s.size }
func (s solid) Close() error { return nil }
func (s solid) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), nil
}

func TestAuditFindsWhatWasNotClaimed(t *testing.T) {
	was, is := make([]byte, 64<<10), make([]byte, 64<<10)
	is[100], is[20_000], is[50_000] = 1, 1, 1
	a := &auditor{
		Image: disktest.FromBytes(is), before: disktest.FromBytes(was[:48<<10]),
		claimed: areas{{Offset: 0, Length: 512}, {Offset: 40_000, Length: 20_000}},
	}
	for off := int64(0); off < 64<<10; off += 10_000 {
		if _, err := a.ReadAt(make([]byte, 10_000), off); err != nil && off < 60_000 {
			t.Fatal(err)
		}
	}
	if a.missed.Load() != 4096 && a.missed.Load() != auditPiece || a.first < 16_384 || a.first > 20_000 {
		t.Errorf("missed %d bytes, the first at %d", a.missed.Load(), a.first)
	}
	honest := &auditor{Image: disktest.FromBytes(is), before: disktest.FromBytes(was), claimed: areas{{Length: 64 << 10}}}
	if _, err := honest.ReadAt(make([]byte, 64<<10), 0); err != nil || honest.missed.Load() != 0 {
		t.Errorf("%d, %v", honest.missed.Load(), err)
	}
}

func TestOnlyOurSnapshotsAreOurs(t *testing.T) {
	mine := snapshotNote{Appliance: "a1", Job: "j1"}.encode()
	for name, c := range map[string]struct {
		snapshot vsphere.Snapshot
		want     bool
	}{
		"ours":              {vsphere.Snapshot{Name: "lifeboat-j1", Description: mine}, true},
		"another's":         {vsphere.Snapshot{Name: "lifeboat-j1", Description: snapshotNote{Appliance: "a2", Job: "j1"}.encode()}, false},
		"a person's name":   {vsphere.Snapshot{Name: "before the update", Description: mine}, false},
		"a person's text":   {vsphere.Snapshot{Name: "lifeboat-j1", Description: "taken by hand"}, false},
		"no text":           {vsphere.Snapshot{Name: "lifeboat-j1"}, false},
		"another job":       {vsphere.Snapshot{Name: "lifeboat-j2", Description: mine}, false},
		"empty, and nobody": {vsphere.Snapshot{Name: "lifeboat-", Description: "{}"}, false},
	} {
		if got := isOurs(c.snapshot, "a1"); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestLabelsAreCutToText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		n := rapid.IntRange(4, 40).Draw(t, "n")
		if got := cut(s, n); len(got) > n || !strings.HasPrefix(s, strings.TrimSuffix(got, "…")) && !strings.ContainsRune(got, '\uFFFD') {
			t.Fatalf("%q at %d is %q", s, n, got)
		}
	})
}
