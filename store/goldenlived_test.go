package store

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// The second golden repository has lived: segments were compacted and mended,
// points were forgotten, pinned, held, copied from elsewhere, verified and made
// immutable. It must open for ever, like the first. One of its lines is no
// object, but the recovery key that opens it.
const (
	livedFile     = "testdata/repository-v1-lived.txt"
	livedRecovery = "recovery-key"
)

// livedDisk is the content of a VM's disk: text that compresses, in a few places.
func livedDisk(vm string) *disktest.Memory {
	m := disktest.NewMemory(8 << 20)
	for i := range int64(3) {
		if _, err := m.WriteAt(bytes.Repeat(fmt.Appendf(nil, "%s, block %d. ", vm, i), 2000), i<<21); err != nil {
			panic(err)
		}
	}
	return m
}

// hurtAt is where the disk of the VM "hurt" cannot be read: one frame.
const hurtAt = 0

func readLived(t *testing.T) (objects []golden, recovery string) {
	t.Helper()
	data, err := os.ReadFile(livedFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		content, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if name == livedRecovery {
			recovery = string(content)
			continue
		}
		objects = append(objects, golden{name, content})
	}
	return objects, recovery
}

func TestGoldenLived(t *testing.T) {
	if os.Getenv("LIFEBOAT_UPDATE_GOLDEN") != "" {
		writeLived(t)
	}
	objects, recovery := readLived(t)
	w := goldenWorld(t, objects)
	r, err := Open(t.Context(), w.backend(t, actor{w.actors, "keeper"}), []byte(recovery), w.options(actor{w.actors, "keeper"}))
	if err != nil {
		t.Fatalf("open with the recovery key: %v", err)
	}
	defer r.Close()
	points := livedPoints(t, r)
	for _, vm := range []string{"kept", "pinned", "copied"} {
		wantDisk(t, r, points[vm], 0, livedDisk(vm))
	}
	wantHurt(t, r, points["hurt"])
	wantLivedRecords(t, r, points)
	if !slices.ContainsFunc(objects, func(o golden) bool { _, g, err := segment.ParseName(o.name); return err == nil && g > 0 }) {
		t.Error("no segment was compacted")
	}
	if _, err := r.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil {
		t.Errorf("prune: %v", err)
	}
	healed := backup(t, r, "hurt", points["hurt"], livedDisk("hurt"), nil)
	wantDisk(t, r, healed, 0, livedDisk("hurt"))
	for _, vm := range []string{"kept", "pinned", "copied"} {
		wantDisk(t, r, points[vm], 0, livedDisk(vm))
	}
}

func livedPoints(t *testing.T, r *Repository) map[string]*Point {
	t.Helper()
	list, err := r.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	points := map[string]*Point{}
	for _, p := range list {
		points[p.VM] = p
	}
	if len(list) != 4 || len(points) != 4 {
		t.Fatalf("%d points of %d VMs", len(list), len(points))
	}
	return points
}

// wantHurt reads a disk of which one frame is lost.
func wantHurt(t *testing.T, r *Repository, p *Point) {
	t.Helper()
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	want := livedDisk("hurt")
	got, content := make([]byte, segment.FrameSize), make([]byte, segment.FrameSize)
	for off := int64(0); off < img.Size(); off += segment.FrameSize {
		_, err := img.ReadAt(got, off)
		if (err != nil) != (off == hurtAt) {
			t.Errorf("read at %d: %v", off, err)
		}
		if _, werr := want.ReadAt(content, off); werr != nil {
			t.Fatal(werr)
		}
		if err == nil && !bytes.Equal(got, content) {
			t.Errorf("the content at %d differs", off)
		}
	}
}

// wantLivedRecords looks at everything that is not a disk.
func wantLivedRecords(t *testing.T, r *Repository, points map[string]*Point) {
	t.Helper()
	ctx := t.Context()
	if pins, err := r.Pins(ctx); err != nil || len(pins) != 1 || pins[0].Point != points["pinned"].ID || pins[0].Note != "golden" {
		t.Errorf("pins: %+v, %v", pins, err)
	}
	if ps, err := r.Policies(ctx); err != nil || len(ps) != 1 || ps[0].Policy.Daily != 7 {
		t.Errorf("policies: %+v, %v", ps, err)
	}
	if gone, err := r.Forgotten(ctx); err != nil || len(gone) != 1 || gone[0].Point == nil || gone[0].Point.VM != "forgotten" {
		t.Errorf("forgotten: %+v, %v", gone, err)
	}
	if holds, err := r.Holds(ctx); err != nil || len(holds) != 1 || !holds[0].Lasting || holds[0].Purpose != "golden" || holds[0].Points[0] != points["kept"].ID {
		t.Errorf("holds: %+v, %v", holds, err)
	}
	if im, err := r.Immutability(ctx); err != nil || im.Window != 14*24*time.Hour {
		t.Errorf("immutability: %+v, %v", im, err)
	}
	if points["copied"].rec.LockSeconds != 14*24*3600 || points["kept"].rec.LockSeconds != 0 {
		t.Errorf("locks of %d and %d seconds", points["copied"].rec.LockSeconds, points["kept"].rec.LockSeconds)
	}
	if o := points["copied"].Origin; o == nil || len(o.Repository) != 32 || !validID(o.Point) {
		t.Errorf("origin: %+v", o)
	}
	if v := points["kept"].Verified; v == nil || v.Level != VerifyAll || !v.OK {
		t.Errorf("verified: %+v", v)
	}
	if trace, err := r.Trace(ctx, r.backend, points["kept"]); err != nil || trace.Bytes() != 3*testBlock {
		t.Errorf("trace: %+v, %v", trace, err)
	}
}

// writeLived lives the life of the golden repository.
func writeLived(t *testing.T) {
	t.Helper()
	w, r := newRepo(t)
	r.kdf = keyring.CheapKDF()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Two VMs in one segment, of which one goes: a compaction. What is removed
	// must be worth it, so it does not compress.
	points := livedBackup(t, r, map[string]disk.Image{"kept": livedDisk("kept"), "gone": disktest.Random(1, 300_000, 1)})
	must(r.Forget(ctx, points["gone"].ID))
	_, err := r.Prune(ctx, PruneOptions{Grace: -1})
	must(err)
	for _, vm := range []string{"pinned", "forgotten"} {
		points[vm] = backup(t, r, vm, nil, livedDisk(vm), nil)
	}
	must(r.Pin(ctx, points["pinned"].ID, "golden"))
	must(r.Forget(ctx, points["forgotten"].ID))
	must(r.SetPolicies(ctx, Policies{{VM: "*", Policy: Policy{Daily: 7}}}))
	must(r.SaveTrace(ctx, r.backend, points["kept"], &Trace{blockSize: testBlock, keys: []int{2000}, takes: [][]traceRun{{{block: 0, count: 3}}}}))
	hold, err := r.Hold(ctx, []*Point{points["kept"]}, HoldOptions{Purpose: "golden", Lasting: true})
	must(err)
	must(hold.Close())
	_, recovery, err := r.AddRecoveryKey(ctx)
	must(err)
	livedDamage(t, w, r)
	_, err = r.Verify(ctx, VerifyOptions{Keep: true})
	must(err)
	must(r.SetWindow(ctx, 14*24*time.Hour))
	other, from := newRepo(t)
	_ = other
	backup(t, from, "copied", nil, livedDisk("copied"), nil)
	_, err = from.CopyTo(ctx, r, CopyOptions{})
	must(err)
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s %s\n", livedRecovery, base64.StdEncoding.EncodeToString([]byte(recovery)))
	for _, name := range objects(t, r.backend, "") {
		content, err := getObject(ctx, r.backend, name, 1<<30)
		must(err)
		fmt.Fprintf(&out, "%s %s\n", name, base64.StdEncoding.EncodeToString(content))
	}
	must(os.WriteFile(livedFile, out.Bytes(), 0o644))
}

// livedBackup makes points of several VMs in one ingest, in the order of names.
func livedBackup(t *testing.T, r *Repository, vms map[string]disk.Image) map[string]*Point {
	t.Helper()
	in, err := r.NewIngest(t.Context(), IngestOptions{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	points := map[string]*Point{}
	var writers []*PointWriter
	for vm, src := range vms {
		w, err := in.Begin(PointSpec{VM: vm})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AddDisk(t.Context(), DiskSpec{Key: 2000, Label: "Hard disk 1"}, src, nil, nil); err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
	}
	for _, w := range writers {
		p, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		points[p.VM] = p
	}
	return points
}

// livedDamage loses the first frame of a VM's disk, and has it marked.
func livedDamage(t *testing.T, w *world, r *Repository) {
	t.Helper()
	p := backup(t, r, "hurt", nil, livedDisk("hurt"), nil)
	addr, err := r.maps.Lookup(t.Context(), p.rec.Disks[0].tree(r.blockSize), hurtAt)
	if err != nil {
		t.Fatal(err)
	}
	const header = 88
	if addr.Slot() != 0 {
		t.Fatalf("the first block is in slot %d", addr.Slot())
	}
	flip(t, w.fs, segment.Name(addr.Segment(), 0), header+5, 1)
	report, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || report.OK() {
		t.Fatalf("verify: %v, %v", report, err)
	}
	if _, err := r.Repair(t.Context(), report, RepairOptions{}); err != nil {
		t.Fatal(err)
	}
}
