package appliance

import (
	"context"
	"fmt"
	"strings"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// guestPlace is a place as a volume and a path there. The zero value is nowhere.
type guestPlace struct {
	found  bool
	volume int // index in the report, -1: all
	path   string
	guest  string // the place in the guest's tree, where it is one
}

// where finds the volume of a place. Links are followed.
func (g *Guest) where(ctx context.Context, place string) (guestPlace, error) {
	if place == "" || place == "/" {
		return guestPlace{found: true, volume: -1, path: "/", guest: "/"}, nil
	}
	fsys, at, err := g.find(ctx, place, tree.Follow)
	if err != nil {
		return guestPlace{}, err
	}
	if fsys != guestfs.FS(g.tree) {
		volume, _, _ := strings.Cut(place, "/")
		for i := range g.report.Volumes {
			if g.report.Volumes[i].Name == volume {
				return guestPlace{found: true, volume: i, path: at.Path}, nil
			}
		}
	}
	best := guestPlace{found: true, volume: -1, path: "/", guest: at.Path}
	longest := -1
	for i := range g.report.Volumes {
		if m, ok := g.mountedAt(i); ok && below(at.Path, m) && len(m) > longest {
			longest = len(m)
			best.volume, best.path = i, "/"+strings.TrimPrefix(strings.TrimPrefix(at.Path, m), "/")
		}
	}
	if best.volume < 0 {
		return best, fmt.Errorf("%w: %s is of no volume that can be compared as a whole; name the volume (VOLUME/PATH)", ErrUsage, place)
	}
	return best, nil
}

// mountedAt is where the guest's tree shows the whole of a volume.
func (g *Guest) mountedAt(volume int) (string, bool) {
	if len(g.report.Systems) == 0 {
		return "/" + g.report.Volumes[volume].Name, true
	}
	for _, s := range g.report.Systems[:1] {
		for _, m := range s.Mounts {
			if m.Volume == volume && (m.Sub == "" || m.Sub == "/") {
				return m.Path, true
			}
		}
	}
	return "", false
}

// contains reports whether a volume may hold something of a place.
func (w guestPlace) contains(g *Guest, volume int) bool {
	if !w.found || w.volume < 0 || w.volume == volume {
		return w.found
	}
	m, ok := g.mountedAt(volume)
	return ok && w.guest != "" && below(m, w.guest)
}

// holds reports whether a path of a volume is at the place or below it.
func (w guestPlace) holds(volume int, path string) bool {
	return w.found && (w.volume != volume || below(path, w.path))
}

// placed makes paths places.
func (p *guestPair) placed(pair volumePair, c FileChange) FileChange {
	if c.From != "" {
		c.From = p.a.placeOf(pair.a, c.From)
	}
	if c.Status == FileDeleted {
		c.Path = p.a.placeOf(pair.a, c.Path)
	} else {
		c.Path = p.b.placeOf(pair.b, c.Path)
	}
	return c
}

// placeOf is a path of a volume as people write it: where the guest has it, or
// behind the volume's name.
func (g *Guest) placeOf(volume int, path string) string {
	m, ok := g.mountedAt(volume)
	switch {
	case !ok || len(g.report.Systems) == 0:
		return g.report.Volumes[volume].Name + path
	case m == "/":
		return path
	case len(m) == 3 && m[2] == ':' && g.hasDrive(m[1:]):
		return m[1:] + path
	}
	return strings.TrimSuffix(m+path, "/")
}
