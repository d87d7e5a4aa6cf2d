package fusefs

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFusermountWithoutPath: what go-fuse mounted with, from /bin, unmounts too.
func TestFusermountWithoutPath(t *testing.T) {
	empty := t.TempDir()
	t.Setenv("PATH", empty)
	for _, name := range []string{"fusermount3", "fusermount"} {
		if _, err := os.Stat("/bin/" + name); err != nil {
			continue
		}
		if got := fusermountProgram(); got != "/bin/"+name {
			t.Errorf("%q, want /bin/%s", got, name)
		}
		break
	}
	mine := filepath.Join(empty, "fusermount3")
	if err := os.WriteFile(mine, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := fusermountProgram(); got != mine {
		t.Errorf("%q, want the one in PATH, %s", got, mine)
	}
}
