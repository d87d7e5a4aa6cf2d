package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The host's own file system passes every scenario that is about files, so
// what fails in a guest is the file system there.
func TestScenariosPassLocally(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		if err := os.MkdirAll(filepath.Join(dir, "list", fmt.Sprint("e", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lines := []string{
		"files .", "names .", "links .", "open-unlink .", "open-rename .", "sparse .", "append . 20",
		"list list e 50", "list-remove . 120", "mapped m", "race . . 40",
		"random r 3 200000 60", "verify r 3 200000 60", "hold . 1",
	}
	if os.Geteuid() == 0 {
		lines = append(lines, "attributes .", "permissions .")
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for _, line := range lines {
		if err := runLine(line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// And they notice.
func TestScenariosFail(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := runLine("random r 3 200000 60"); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile("r")
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), good...)
	flipped[123_456] ^= 1
	for _, damage := range []func() error{
		func() error { return os.WriteFile("r", good[:len(good)-1], 0o600) },
		func() error { return os.WriteFile("r", append(good[:len(good):len(good)], 0), 0o600) },
		func() error { return os.WriteFile("r", flipped, 0o600) },
		func() error { return os.Remove("r") },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if err := runLine("verify r 3 200000 60"); err == nil {
			t.Error("damage was not noticed")
		}
	}
	for _, line := range []string{"verify r 3 x 1", "list . e 1", "disk none 1 1 1", "holes ./none/x"} {
		if err := runLine(line); err == nil {
			t.Errorf("%s succeeded", line)
		}
	}
}

func runLine(line string) error {
	f := strings.Fields(line)
	return scenarios()[f[0]].run(f[1:])
}
