package fusefs

import (
	"fmt"
	"os/exec"
	"strings"
)

// fusermount unmounts for who is not root.
func fusermount(dir string) error {
	name := "fusermount3"
	if _, err := exec.LookPath(name); err != nil {
		name = "fusermount"
	}
	out, err := exec.Command(name, "-u", "-z", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
