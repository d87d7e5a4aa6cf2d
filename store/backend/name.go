package backend

import (
	"errors"
	"fmt"
	"strings"
)

// MaxName is the longest name of an object, in bytes.
const MaxName = 200

// tmpPrefix holds objects that are being written. It is no part of the name
// space: its names are refused and never listed.
const tmpPrefix = "tmp/"

// ErrUncertain says that the outcome of a Commit is not known: the object may
// be there now, later, or never. Who depends on it looks again (after a
// restart, if the machine is failing) before doing anything that is only right
// when it is not there.
var ErrUncertain = errors.New("the outcome is not known")

// ErrName: an object's name is not one that every backend can store.
var ErrName = errors.New("not a valid object name")

// CheckName returns an error matching [ErrName] unless name may name an
// object.
func CheckName(name string) error {
	if strings.HasSuffix(name, "/") {
		return fmt.Errorf("%w: %.210q ends in a slash", ErrName, name)
	}
	return checkChars(name)
}

// CheckPrefix returns an error matching [ErrName] unless prefix can begin the
// name of an object. The empty prefix begins all of them.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return checkChars(strings.TrimSuffix(prefix, "/"))
}

func checkChars(name string) error {
	if len(name) == 0 || len(name) > MaxName {
		return fmt.Errorf("%w: %.210q has %d bytes, want 1 to %d", ErrName, name, len(name), MaxName)
	}
	for i := range len(name) {
		if c := name[i]; !validChar(c) {
			return fmt.Errorf("%w: %q holds %q, want only a-z 0-9 . _ - and /", ErrName, name, c)
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("%w: %q has a component %q", ErrName, name, part)
		}
	}
	if strings.HasPrefix(name+"/", tmpPrefix) {
		return fmt.Errorf("%w: %q: %s is where unfinished objects are kept", ErrName, name, tmpPrefix)
	}
	return nil
}

func validChar(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/'
}
