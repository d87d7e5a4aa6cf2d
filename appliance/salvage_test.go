package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/store"
)

// holed cannot be read in one area.
type holed struct {
	*disktest.Memory
	bad disk.Extent
	err error
}

func (h *holed) ReadAt(p []byte, off int64) (int, error) {
	if off < h.bad.End() && off+int64(len(p)) > h.bad.Offset {
		return 0, h.err
	}
	return h.Memory.ReadAt(p, off)
}

func TestSalvage(t *testing.T) {
	content := disktest.Random(1, 1<<20+100, 1)
	bad := disk.Extent{Offset: 300_000, Length: 50_000}
	src := newSalvaged(&holed{content, bad, fmt.Errorf("test: %w", store.ErrDamaged)})
	var out bytes.Buffer
	if err := disk.WriteRawTo(t.Context(), &out, src, nil); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(content.Bytes())
	from, to := bad.Offset/salvageUnit*salvageUnit, (bad.End()+salvageUnit-1)/salvageUnit*salvageUnit
	clear(want[from:to])
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("what is not damaged was not saved")
	}
	if got := src.areas(); !slices.Equal(got, []disk.Extent{{Offset: from, Length: to - from}}) {
		t.Errorf("given up: %v", got)
	}
	if n, err := src.ReadAt(make([]byte, 200), content.Size()-100); n != 100 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	broken := newSalvaged(&holed{content, bad, io.ErrNoProgress})
	if err := disk.WriteRawTo(t.Context(), io.Discard, broken, nil); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("an error that is not damage: %v", err)
	}
}
