package fusefs

import (
	"fmt"
	"os/exec"
	"strings"
)

// fusermountProgram is the program that mounted: go-fuse looks in /bin, too, where
// PATH does not have it.
func fusermountProgram() string {
	for _, name := range []string{"fusermount3", "fusermount"} {
		for _, try := range []string{name, "/bin/" + name} {
			if path, err := exec.LookPath(try); err == nil {
				return path
			}
		}
	}
	return "fusermount3" // and its absence is the error
}

// fusermount unmounts for who is not root.
func fusermount(dir string, lazy bool) error {
	name := fusermountProgram()
	args := []string{"-u", dir}
	if lazy {
		args = []string{"-u", "-z", dir}
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
