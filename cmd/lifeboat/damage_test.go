package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"lifeboat/store"
)

func TestGathered(t *testing.T) {
	hurt := func(point string, disk int, offset, length int64) store.Hurt {
		return store.Hurt{Point: point, Disk: disk, Offset: offset, Length: length}
	}
	got := gathered([]store.Damage{
		{Object: "a", Problem: "is cut", Hurts: []store.Hurt{hurt("p", 0, 64, 64), hurt("p", 0, 0, 64)}},
		{Object: "b", Lost: true, Problem: "lost", Hurts: []store.Hurt{hurt("q", 0, 0, 64), hurt("p", 0, 0, 64)}},
		{Object: "b", Lost: true, Problem: "lost", Hurts: []store.Hurt{hurt("p", 0, 64, 64), hurt("q", 1, 64, 64)}, MoreHurts: 2},
		{Object: "b", Problem: "is cut"},
		{Object: "c", Lost: true, Problem: "lost", Hurts: []store.Hurt{hurt("p", -1, 0, 0)}},
	})
	want := []store.Damage{
		{Object: "a", Problem: "is cut", Hurts: []store.Hurt{hurt("p", 0, 0, 128)}},
		{
			Object: "b", Lost: true, Problem: "and at 1 more places content was lost, and a repair marked them so", MoreHurts: 2,
			Hurts: []store.Hurt{hurt("p", 0, 0, 128), hurt("q", 0, 0, 64), hurt("q", 1, 64, 64)},
		},
		{Object: "b", Problem: "is cut"},
		{Object: "c", Lost: true, Problem: "lost", Hurts: []store.Hurt{hurt("p", -1, 0, 0)}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(store.Damage{})); diff != "" {
		t.Error(diff)
	}
}

func TestPrintable(t *testing.T) {
	for given, want := range map[string]string{
		"web1": "web1", "Büro ☂": "Büro ☂", "a\x1b[31m\nb": `a\x1b[31m\nb`, `a\b`: `a\b`,
	} {
		if got := printable(given); got != want {
			t.Errorf("printable(%q) = %s, want %s", given, got, want)
		}
	}
}
