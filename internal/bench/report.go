package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// Report is all that a run measured.
type Report struct {
	Machine string    `json:"machine"`
	Time    time.Time `json:"time"`
	Figures []Figure  `json:"figures"`
}

// Figure is one line of the result.
type Figure struct {
	What     string  `json:"what"`
	Unit     string  `json:"unit"`
	PeerName string  `json:"peer_name,omitempty"` // empty: the figure is compared with Target itself
	Ours     float64 `json:"ours"`                // medians
	Peer     float64 `json:"peer,omitempty"`
	Ratio    Spread  `json:"ratio"` // of the ratios ours/peer of neighbours
	// Target is what Ratio's median (or Ours, where there is no peer) must
	// reach, or not exceed if AtMost; 0: the figure is for information.
	Target float64 `json:"target,omitempty"`
	AtMost bool    `json:"at_most,omitempty"`
	// Absolute says that the target is about Ours although there is a peer.
	Absolute bool `json:"absolute,omitempty"`

	Rounds    int          `json:"rounds"`
	OursNotes notes        `json:"ours_notes,omitempty"`
	PeerNotes notes        `json:"peer_notes,omitempty"`
	Command   string       `json:"command"`
	Pairs     [][2]float64 `json:"pairs,omitempty"` // every measurement: ours, peer
}

// Spread is a median with the least and the greatest beside it.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// pair is two neighbouring measurements.
type pair struct{ ours, peer sample }

// from fills in what was measured.
func (f Figure) from(pairs []pair) Figure {
	var ours, peer, ratios []float64
	for _, p := range pairs {
		ours, peer = append(ours, p.ours.value), append(peer, p.peer.value)
		ratios = append(ratios, p.ours.value/p.peer.value)
		f.Pairs = append(f.Pairs, [2]float64{p.ours.value, p.peer.value})
	}
	f.Rounds = len(pairs)
	f.Ours, f.Peer = median(ours), median(peer)
	f.Ratio = Spread{median(ratios), slices.Min(ratios), slices.Max(ratios)}
	f.OursNotes = medianNotes(pairs, func(p pair) notes { return p.ours.notes })
	f.PeerNotes = medianNotes(pairs, func(p pair) notes { return p.peer.notes })
	return f
}

func medianNotes(pairs []pair, of func(pair) notes) notes {
	all := map[string][]float64{}
	for _, p := range pairs {
		for name, v := range of(p) {
			all[name] = append(all[name], v)
		}
	}
	if len(all) == 0 {
		return nil
	}
	out := notes{}
	for name, values := range all {
		out[name] = median(values)
	}
	return out
}

// median is NaN for no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// compared is the value that the target is about.
func (f Figure) compared() float64 {
	if f.PeerName == "" || f.Absolute {
		return f.Ours
	}
	return f.Ratio.Median
}

// Reached reports whether the target, if there is one, was reached.
func (f Figure) Reached() bool {
	if f.AtMost {
		return f.compared() <= f.Target
	}
	return f.compared() >= f.Target
}

// verdict is the last column.
func (f Figure) verdict() string {
	switch {
	case f.Target == 0:
		return ""
	case f.Reached():
		return "yes"
	default:
		return "**no**"
	}
}

func (f Figure) target() string {
	if f.Target == 0 {
		return "–"
	}
	sign, unit := "≥ ", "×"
	if f.AtMost {
		sign = "≤ "
	}
	if f.PeerName == "" || f.Absolute {
		unit = " " + f.Unit
	}
	return sign + number(f.Target) + unit
}

func (f Figure) ratio() string {
	if f.PeerName == "" {
		return "–"
	}
	return fmt.Sprintf("%.2f× (%.2f–%.2f)", f.Ratio.Median, f.Ratio.Min, f.Ratio.Max)
}

func (f Figure) peer() string {
	if f.PeerName == "" {
		return "–"
	}
	return number(f.Peer) + " (" + f.PeerName + ")"
}

// line is the figure for somebody who watches.
func (f Figure) line() string {
	s := fmt.Sprintf("%-52s ours %s, peer %s %s; ratio %s; target %s %s", f.What, number(f.Ours), f.peer(), f.Unit, f.ratio(), f.target(), f.verdict())
	if n := f.noteText(); n != "" {
		s += "\n    " + n
	}
	return s
}

func (f Figure) noteText() string {
	var parts []string
	for _, side := range []struct {
		name  string
		notes notes
	}{{"ours", f.OursNotes}, {"peer", f.PeerNotes}} {
		var list []string
		for _, name := range slices.Sorted(maps.Keys(side.notes)) {
			list = append(list, name+" "+number(side.notes[name]))
		}
		if len(list) > 0 {
			parts = append(parts, side.name+": "+strings.Join(list, ", "))
		}
	}
	return strings.Join(parts, " · ")
}

// number prints with three significant digits, large numbers whole.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	}
}

// Markdown prints the tables of docs/performance.md.
func (r *Report) Markdown(w io.Writer) {
	fmt.Fprintf(w, "\n| what | unit | ours | peer | ratio (min–max) | target | reached |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, f := range r.Figures {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", f.What, f.Unit, number(f.Ours), f.peer(), f.ratio(), f.target(), f.verdict())
	}
	fmt.Fprintf(w, "\nFor information (medians):\n\n")
	for _, f := range r.Figures {
		if n := f.noteText(); n != "" {
			fmt.Fprintf(w, "- %s: %s\n", f.What, n)
		}
	}
}

// WriteJSON writes the report to a file.
func (r *Report) WriteJSON(name string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(data, '\n'), 0o644)
}
