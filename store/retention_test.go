package store

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"pgregory.net/rapid"
)

// TestPolicyAgreesWithRestic compares with a table that restic made.
func TestPolicyAgreesWithRestic(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("testdata/retention-restic.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var points []*Point
	policies := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		kind, rest, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "point":
			at, err := time.ParseInLocation(time.DateTime, rest, zone)
			if err != nil {
				t.Fatal(err)
			}
			points = append(points, &Point{ID: fmt.Sprintf("%016x", len(points)), Time: at.UTC()})
		case "policy":
			policies++
			rules, want, _ := strings.Cut(rest, " ")
			if got := initials(parsePolicy(t, rules).Apply(points, zone)); got != want {
				t.Errorf("policy %s\n got  %s\n want %s", rules, got, want)
			}
		}
	}
	if len(points) != 60 || policies != 17 {
		t.Fatalf("the table has %d points and %d policies", len(points), policies)
	}
}

// initials renders verdicts as the table does.
func initials(verdicts []Verdict) string {
	var out []string
	for _, v := range verdicts {
		var s string
		for _, reason := range v.Reasons {
			if strings.HasPrefix(reason, "within") {
				s = "i" + s // restic asks this one second, after last
				if strings.HasPrefix(s, "il") {
					s = "il" + s[2:]
				}
				continue
			}
			s += reason[:1]
		}
		out = append(out, max(s, "."))
	}
	return strings.Join(out, " ")
}

func parsePolicy(t *testing.T, s string) Policy {
	t.Helper()
	var p Policy
	for part := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(part, "=")
		if key == "within" {
			span, err := ParseSpan(value)
			if err != nil {
				t.Fatal(err)
			}
			p.Within = span
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		*map[string]*int{
			"last": &p.Last, "hourly": &p.Hourly, "daily": &p.Daily, "weekly": &p.Weekly, "monthly": &p.Monthly, "yearly": &p.Yearly,
		}[key] = n
	}
	return p
}

// slowPolicy is what a policy means, word for word, one rule at a time.
func slowPolicy(p Policy, points []*Point, zone *time.Location) map[string][]string {
	newestFirst := slices.Clone(points)
	slices.SortFunc(newestFirst, func(a, b *Point) int {
		if c := b.Time.Compare(a.Time); c != 0 {
			return c
		}
		return strings.Compare(b.ID, a.ID)
	})
	why := make(map[string][]string)
	for i, pt := range newestFirst {
		if i < p.Last || p.Last < 0 {
			why[pt.ID] = append(why[pt.ID], "last")
		}
	}
	for _, rule := range []struct {
		name  string
		count int
		of    func(time.Time) string
	}{
		{"hourly", p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15") }},
		{"daily", p.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", p.Weekly, func(t time.Time) string { // the Monday of its week
			return t.AddDate(0, 0, -(int(t.Weekday())+6)%7).Format("2006-01-02")
		}},
		{"monthly", p.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", p.Yearly, func(t time.Time) string { return t.Format("2006") }},
	} {
		var periods []string // that have a point, newest first
		first := make(map[string]string)
		for _, pt := range newestFirst {
			period := rule.of(pt.Time.In(zone))
			if _, ok := first[period]; !ok {
				first[period] = pt.ID
				periods = append(periods, period)
			}
		}
		if rule.count >= 0 {
			periods = periods[:min(rule.count, len(periods))]
		}
		for _, period := range periods {
			why[first[period]] = append(why[first[period]], rule.name)
		}
	}
	for _, pt := range newestFirst {
		newest := newestFirst[0].Time.In(zone)
		limit := newest.AddDate(-p.Within.Years, -p.Within.Months, -p.Within.Days).Add(-time.Duration(p.Within.Hours) * time.Hour)
		if p.Within != (Span{}) && pt.Time.After(limit) {
			why[pt.ID] = append(why[pt.ID], "within "+p.Within.String())
		}
	}
	if len(newestFirst) > 0 && len(why[newestFirst[0].ID]) == 0 {
		why[newestFirst[0].ID] = []string{"newest"}
	}
	return why
}

func TestPolicyMeansWhatItSays(t *testing.T) {
	zones := []*time.Location{time.UTC}
	for _, name := range []string{"Europe/Berlin", "America/St_Johns", "Pacific/Apia"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		zones = append(zones, zone)
	}
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		p := drawPolicy(t)
		at := time.Date(2024, 12, 31, 23, 0, 0, 0, zone)
		points := make([]*Point, rapid.IntRange(0, 40).Draw(t, "points"))
		for i := range points {
			step := rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour, 13 * time.Hour, 24 * time.Hour, 200 * time.Hour}).Draw(t, "step")
			at = at.Add(step)
			points[i] = &Point{ID: fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15), Time: at.UTC()}
		}
		points = rapid.Permutation(points).Draw(t, "order")
		want := slowPolicy(p, points, zone)
		for i, v := range p.Apply(points, zone) {
			if !slices.Equal(v.Reasons, want[v.Point.ID]) {
				t.Fatalf("%s, point %d at %v: %q, want %q", p, i, v.Point.Time, v.Reasons, want[v.Point.ID])
			}
			if i == 0 && !v.Keep() {
				t.Fatalf("%s removes the newest point", p)
			}
		}
	})
}

func drawPolicy(t *rapid.T) Policy {
	count := rapid.SampledFrom([]int{0, 0, 1, 2, 3, 7, -1})
	p := Policy{
		Last: count.Draw(t, "last"), Hourly: count.Draw(t, "hourly"), Daily: count.Draw(t, "daily"),
		Weekly: count.Draw(t, "weekly"), Monthly: count.Draw(t, "monthly"), Yearly: count.Draw(t, "yearly"),
	}
	if rapid.Bool().Draw(t, "within") {
		n := rapid.IntRange(0, 13)
		p.Within = Span{n.Draw(t, "y") / 12, n.Draw(t, "m"), n.Draw(t, "d"), n.Draw(t, "h")}
	}
	return p
}

func TestSpans(t *testing.T) {
	for text, want := range map[string]Span{
		"7d": {Days: 7}, "2y5m7d3h": {2, 5, 7, 3}, "2w1d": {Days: 15}, "36h": {Hours: 36}, "1m": {Months: 1},
	} {
		if got, err := ParseSpan(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "7", "d", "7x", "1d1y", "1d1d", "-1d", "1.5d", "99999999d", "0d", "1d ", "１d"} {
		if got, err := ParseSpan(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

func FuzzSpan(f *testing.F) {
	f.Add("2y5m7d3h")
	f.Add("1w")
	f.Fuzz(func(t *testing.T, text string) {
		span, err := ParseSpan(text)
		if err != nil {
			return
		}
		again, err := ParseSpan(span.String())
		if err != nil || again != span || span.check() != nil {
			t.Fatalf("%q is %+v, printed %q, read %+v, %v", text, span, span, again, err)
		}
	})
}

func TestPolicyOfAVM(t *testing.T) {
	ps := Policies{{"*", Policy{Last: 1}}, {"web*", Policy{Last: 2}}, {"web1", Policy{Last: 3}}, {"uuid-7", Policy{Last: 4}}}
	for _, c := range []struct {
		name, id string
		want     int
	}{{"db", "", 1}, {"web2", "", 2}, {"web1", "", 3}, {"web2", "uuid-7", 4}, {"a/b", "", 1}} {
		if p, ok := ps.For(c.name, c.id); !ok || p.Last != c.want {
			t.Errorf("VM %s (%s): %v, want last %d", c.name, c.id, p, c.want)
		}
	}
	if _, ok := ps[1:].For("db", ""); ok {
		t.Error("a VM that no pattern fits has a policy")
	}
	_, r := newRepo(t)
	if err := r.SetPolicies(t.Context(), ps); err != nil {
		t.Fatal(err)
	}
	got, err := r.Policies(t.Context())
	if err != nil || !slices.Equal(got, ps) {
		t.Errorf("read back %v, %v", got, err)
	}
	for _, bad := range []Policies{{{"", Policy{Last: 1}}}, {{"a", Policy{}}}, {{"a", Policy{Last: -2}}}, {{"a", Policy{Last: 1}}, {"a", Policy{Last: 1}}}} {
		if err := r.SetPolicies(t.Context(), bad); err == nil {
			t.Errorf("%v is kept", bad)
		}
	}
}
