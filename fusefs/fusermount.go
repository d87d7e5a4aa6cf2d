package fusefs

import (
	"fmt"
	"os/exec"
	"strings"
)

// fusermount unmounts for who is not root.
func fusermount(dir string, lazy bool) error {
	name := "fusermount3"
	if _, err := exec.LookPath(name); err != nil {
		name = "fusermount"
	}
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
