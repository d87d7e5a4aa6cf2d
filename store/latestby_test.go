package store

import (
	"errors"
	"testing"
)

func TestLatestByGoesByIdentityAlone(t *testing.T) {
	_, r := newRepo(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	add := func(vm, id string) *Point {
		t.Helper()
		w, err := in.Begin(PointSpec{VM: vm, VMID: id, Labels: map[string]string{"kept": "yes"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.AddDisk(t.Context(), DiskSpec{Key: 2000}, randomDisk(1, 1<<20), nil, nil), w.SetLabel("transport", "folder"),
			w.AddConfig(t.Context(), map[string][]byte{"disks.json": []byte("{}")})); err != nil {
			t.Fatal(err)
		}
		p, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.SetLabel("late", "x"); !errors.Is(err, ErrClosed) {
			t.Errorf("a label after the commit: %v", err)
		}
		if err := w.AddConfig(t.Context(), map[string][]byte{"late": nil}); !errors.Is(err, ErrClosed) {
			t.Errorf("a file after the commit: %v", err)
		}
		return p
	}
	add("web", "vc/1")
	renamed := add("web-old", "vc/1")
	add("web", "vc/2")
	add("web", "")
	got, err := r.LatestBy(t.Context(), "vc/1")
	if err != nil || got.ID != renamed.ID {
		t.Errorf("%v, %v", got, err)
	}
	if got.Labels["transport"] != "folder" || got.Labels["kept"] != "yes" {
		t.Errorf("labels %v", got.Labels)
	}
	if data, err := r.Config(t.Context(), got, "disks.json"); err != nil || string(data) != "{}" {
		t.Errorf("%q, %v", data, err)
	}
	for _, id := range []string{"", "web", "vc/3"} {
		if p, err := r.LatestBy(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v, %v", id, p, err)
		}
	}
}
