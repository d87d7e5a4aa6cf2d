package main

import (
	"cmp"
	"fmt"
	"slices"

	"lifeboat/store"
)

// gathered is damages as people want to read them: what is lost in one object is
// one entry, however many blocks it has, and areas that touch are one.
func gathered(damages []store.Damage) []store.Damage {
	var out []store.Damage
	for at := 0; at < len(damages); {
		n := 1
		for d := damages[at]; d.Lost && at+n < len(damages) && damages[at+n].Lost && damages[at+n].Object == d.Object; {
			n++
		}
		out = append(out, together(damages[at:at+n]))
		at += n
	}
	return out
}

// together makes one of damages of one object.
func together(damages []store.Damage) store.Damage {
	d := damages[0]
	if len(damages) > 1 {
		d.Problem = fmt.Sprintf("and at %d more places content was lost, and a repair marked them so", len(damages)-1)
		d.Hurts, d.MoreHurts = nil, 0
		for _, one := range damages {
			d.Hurts = append(d.Hurts, one.Hurts...)
			d.MoreHurts += one.MoreHurts
		}
	}
	d.Hurts = joined(d.Hurts)
	return d
}

// joined sorts hurts and makes one of those that touch.
func joined(hurts []store.Hurt) []store.Hurt {
	hurts = slices.Clone(hurts)
	slices.SortFunc(hurts, func(a, b store.Hurt) int {
		return cmp.Or(cmp.Compare(a.Point, b.Point), cmp.Compare(a.Disk, b.Disk), cmp.Compare(a.File, b.File), cmp.Compare(a.Offset, b.Offset))
	})
	var out []store.Hurt
	for _, h := range hurts {
		if n := len(out); n > 0 && touches(out[n-1], h) {
			last := &out[n-1]
			last.Length = max(last.Length, h.Offset+h.Length-last.Offset)
			continue
		}
		out = append(out, h)
	}
	return out
}

// touches reports whether b, which does not begin before a, goes on where a is.
func touches(a, b store.Hurt) bool {
	return a.Point == b.Point && a.Disk == b.Disk && a.File == b.File && b.Offset <= a.Offset+a.Length
}
