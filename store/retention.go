package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Policy says which restore points of one VM stay, with the meaning that the
// rules have in restic: each rule is asked on its own, and a point stays if one
// of them keeps it. All counts may be -1: no limit. The zero value keeps
// nothing and is refused wherever points would be removed.
type Policy struct {
	// Last keeps the newest points, so many of them.
	Last int `json:"keep_last,omitempty"`
	// Hourly, Daily, Weekly, Monthly and Yearly look at the last so many hours,
	// days, weeks (ISO 8601: from Monday), months and years in which there is a
	// point, and keep the newest of each.
	Hourly  int `json:"keep_hourly,omitempty"`
	Daily   int `json:"keep_daily,omitempty"`
	Weekly  int `json:"keep_weekly,omitempty"`
	Monthly int `json:"keep_monthly,omitempty"`
	Yearly  int `json:"keep_yearly,omitempty"`
	// Within keeps all points that are less than so much older than the newest.
	Within Span `json:"keep_within,omitzero"`
}

// Empty reports whether the policy has no rule: it would keep nothing.
func (p Policy) Empty() bool { return p == Policy{} }

// Check refuses what is no policy.
func (p Policy) Check() error {
	for _, rule := range p.rules() {
		if rule.count < -1 {
			return fmt.Errorf("keep %d %s: use a number, or -1 for all", rule.count, rule.name)
		}
	}
	return p.Within.check()
}

// String is the policy in words.
func (p Policy) String() string {
	var parts []string
	for _, rule := range p.rules() {
		switch {
		case rule.count < 0:
			parts = append(parts, "all "+rule.name)
		case rule.count > 0:
			parts = append(parts, fmt.Sprintf("%d %s", rule.count, rule.name))
		}
	}
	if p.Within != (Span{}) {
		parts = append(parts, "all within "+p.Within.String())
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// Verdict is what a policy says of a point.
type Verdict struct {
	Point *Point
	// Reasons names the rules that keep the point; without any it goes.
	Reasons []string
}

// Keep reports whether the point stays.
func (v Verdict) Keep() bool { return len(v.Reasons) > 0 }

// rule is one of a policy's counts. period tells the points of one period from
// those of others.
type rule struct {
	name   string
	count  int
	period func(t time.Time, n int) [4]int
}

func (p Policy) rules() []rule {
	return []rule{
		{"last", p.Last, func(_ time.Time, n int) [4]int { return [4]int{n} }},
		{"hourly", p.Hourly, func(t time.Time, _ int) [4]int { return [4]int{t.Year(), int(t.Month()), t.Day(), t.Hour()} }},
		{"daily", p.Daily, func(t time.Time, _ int) [4]int { return [4]int{t.Year(), int(t.Month()), t.Day()} }},
		{"weekly", p.Weekly, func(t time.Time, _ int) [4]int { year, week := t.ISOWeek(); return [4]int{year, week} }},
		{"monthly", p.Monthly, func(t time.Time, _ int) [4]int { return [4]int{t.Year(), int(t.Month())} }},
		{"yearly", p.Yearly, func(t time.Time, _ int) [4]int { return [4]int{t.Year()} }},
	}
}

// Apply judges the points of one VM, in any order, and returns them newest
// first. zone is where days begin; nil means the local one. The newest point
// stays whatever the policy says.
func (p Policy) Apply(points []*Point, zone *time.Location) []Verdict {
	if zone == nil {
		zone = time.Local
	}
	sorted := slices.Clone(points)
	slices.SortFunc(sorted, func(a, b *Point) int { return cmp.Or(b.Time.Compare(a.Time), strings.Compare(b.ID, a.ID)) })
	out := make([]Verdict, len(sorted))
	for i, pt := range sorted {
		out[i].Point = pt
	}
	for _, rule := range p.rules() {
		rule.apply(out, zone)
	}
	if p.Within != (Span{}) && len(out) > 0 {
		from := p.Within.before(out[0].Point.Time.In(zone))
		for i := range out {
			if out[i].Point.Time.After(from) {
				out[i].Reasons = append(out[i].Reasons, "within "+p.Within.String())
			}
		}
	}
	if len(out) > 0 && !out[0].Keep() {
		out[0].Reasons = []string{"newest"}
	}
	return out
}

func (r rule) apply(points []Verdict, zone *time.Location) {
	var last [4]int
	left := r.count
	for i := range points {
		if left == 0 {
			return
		}
		period := r.period(points[i].Point.Time.In(zone), i)
		if i > 0 && period == last {
			continue
		}
		last = period
		points[i].Reasons = append(points[i].Reasons, r.name)
		if left > 0 {
			left--
		}
	}
}

// Span is a length of time in the calendar, such as 1y6m or 14d12h.
type Span struct {
	Years, Months, Days, Hours int
}

const maxSpanPart = 1_000_000

// spanUnits are the letters of a span, from long to short.
const spanUnits = "ymwdh"

// ParseSpan reads a span: numbers, each with y, m (months), w, d or h, from long
// to short.
func ParseSpan(s string) (Span, error) {
	bad := fmt.Errorf("%.40q is not a length of time like 2y6m, 14d or 36h (y, m for months, w, d, h)", s)
	var span Span
	rest, units := s, spanUnits
	for rest != "" {
		i := strings.IndexAny(rest, spanUnits)
		if i < 1 || i > 7 {
			return Span{}, bad
		}
		n, err := strconv.ParseUint(rest[:i], 10, 32)
		unit := strings.IndexByte(units, rest[i])
		if err != nil || n > maxSpanPart || unit < 0 {
			return Span{}, bad
		}
		span.add(rest[i], int(n))
		rest, units = rest[i+1:], units[unit+1:]
	}
	if span == (Span{}) {
		return Span{}, bad
	}
	return span, nil
}

func (s *Span) add(unit byte, n int) {
	switch unit {
	case 'y':
		s.Years += n
	case 'm':
		s.Months += n
	case 'w':
		s.Days += 7 * n
	case 'd':
		s.Days += n
	case 'h':
		s.Hours += n
	}
}

func (s Span) check() error {
	for _, n := range []int{s.Years, s.Months, s.Days, s.Hours} {
		if n < 0 || n > 8*maxSpanPart {
			return errors.New("a length of time is negative or too long")
		}
	}
	return nil
}

// String is the span as ParseSpan reads it; the zero value is empty.
func (s Span) String() string {
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit byte
	}{{s.Years, 'y'}, {s.Months, 'm'}, {s.Days, 'd'}, {s.Hours, 'h'}} {
		if part.n != 0 {
			fmt.Fprintf(&b, "%d%c", part.n, part.unit)
		}
	}
	return b.String()
}

// MarshalText is String.
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSpan; empty is the zero value.
func (s *Span) UnmarshalText(text []byte) (err error) {
	*s = Span{}
	if len(text) > 0 {
		*s, err = ParseSpan(string(text))
	}
	return err
}

// before is t less the span, in t's zone.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}
