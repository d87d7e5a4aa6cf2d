package vddk

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// located is VMware's library and our helper, found.
type located struct {
	file    string // libvixDiskLib.so.8
	folder  string // that it lies in: lib64
	root    string // the distribution: lib64's parent, where its plugins are looked for from
	version string
	helper  string
}

const libraryName = "libvixDiskLib.so"

// find looks for the library and the helper.
func (l Library) find() (located, error) {
	var found located
	roots := []string{"/usr/lib/vmware-vix-disklib", "/opt/vmware-vix-disklib-distrib"}
	if l.Dir != "" {
		roots = []string{l.Dir}
	}
	for _, root := range roots {
		for _, folder := range []string{filepath.Join(root, "lib64"), root} {
			if file, version := newest(folder); file != "" {
				found = located{file: file, folder: folder, root: root, version: version}
				if filepath.Base(folder) == "lib64" {
					found.root = filepath.Dir(folder)
				}
				helper, err := l.findHelper()
				found.helper = helper
				return found, err
			}
		}
	}
	return found, unavailable("there is no %s in %s: VMware's VDDK is not installed there", libraryName, strings.Join(roots, " or "))
}

// newest is the library's file in folder with the highest version, which is
// read from the file's own name.
func newest(folder string) (file, version string) {
	files, err := filepath.Glob(filepath.Join(folder, libraryName+"*"))
	if err != nil { // a pattern in the folder's name
		return "", ""
	}
	for _, f := range files {
		target, err := filepath.EvalSymlinks(f)
		if err != nil {
			continue
		}
		v := strings.TrimPrefix(strings.TrimPrefix(filepath.Base(target), libraryName), ".")
		if file == "" || compareVersions(v, version) > 0 {
			file, version = f, v
		}
	}
	return file, version
}

// compareVersions compares "8.0.2" with "8.0.10", number by number.
func compareVersions(a, b string) int {
	numbers := func(s string) []int {
		var list []int
		for part := range strings.SplitSeq(s, ".") {
			n, err := strconv.Atoi(part)
			if err != nil {
				n = -1
			}
			list = append(list, n)
		}
		return list
	}
	return cmp.Or(slices.Compare(numbers(a), numbers(b)), strings.Compare(a, b))
}

const helperName = "lifeboat-vddk"

func (l Library) findHelper() (string, error) {
	if l.Helper != "" {
		if _, err := os.Stat(l.Helper); err != nil {
			return "", unavailable("the helper program: %v", err)
		}
		return l.Helper, nil
	}
	var candidates []string
	if self, err := os.Executable(); err == nil {
		candidates = append(candidates, filepath.Join(filepath.Dir(self), helperName))
	}
	candidates = append(candidates, filepath.Join("/usr/lib/lifeboat", helperName))
	for _, c := range candidates {
		if st, err := os.Stat(c); err == nil && st.Mode().IsRegular() {
			return c, nil
		}
	}
	if path, err := exec.LookPath(helperName); err == nil {
		return path, nil
	}
	return "", unavailable("the helper program %s is neither beside lifeboat nor in /usr/lib/lifeboat", helperName)
}
