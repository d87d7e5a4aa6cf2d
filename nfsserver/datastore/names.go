package datastore

import (
	"strings"
)

const maxName = 255

// checkName refuses what cannot be one component of a path.
func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return ErrNameTooLong
	case name == "" || name == "." || name == "..":
		return ErrInval
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return ErrInval
	}
	return nil
}

// splitPath cuts a path relative to the root into its names. Empty and "."
// components are dropped; ".." is refused, so that no path climbs.
func splitPath(path string) ([]string, error) {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		if err := checkName(name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}
