package lifeboat_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// rules say which of our own packages a package (and everything below it, where
// no longer rule fits) may import. Imports point inward; docs/architecture.md
// explains why. Tests may import anything.
var rules = map[string][]string{
	"disk":                 {},
	"disk/disktest":        {"disk"},
	"disk/nbd":             {"disk"},
	"internal/vfs":         {},
	"internal/vfs/crashfs": {"internal/vfs"},
	"store":                {"disk", "internal/vfs", "store"},
	"store/backend":        {"internal/vfs", "store/backend"},
	"store/overlay":        {"disk", "internal/vfs"},
	"nfsserver":            {"disk", "nfsserver"},
	"guestfs":              {"disk", "guestfs"},
	"guestfs/microvm":      {"disk", "guestfs", "internal/qemu", "internal/guestimage"},
	"fusefs":               {"disk", "guestfs", "fusefs"},
	"webdav":               {"disk", "guestfs"},
	"vsphere":              {"vsphere"},
	"vddk":                 {"disk", "vddk"},
	"appliance":            {"appliance", "disk", "store", "nfsserver", "guestfs", "fusefs", "vsphere", "vddk", "webdav", "internal/vfs"},
	"internal/qemu":        {"internal/qemu"},
	"internal/guestimage":  {"internal/guestimage", "internal/qemu"},
	"internal/demo":        {"internal/demo", "internal/esxsim", "internal/guestimage", "internal/qemu"},
	"internal/esxsim":      {"internal/esxsim", "internal/guestimage", "internal/qemu", "disk", "nfsserver/nfstest"},
	"internal/bench":       {"internal", "disk", "store", "nfsserver", "appliance", "guestfs", "fusefs", "vsphere", "vddk"},
	"cmd":                  {"appliance", "disk", "store", "vsphere", "internal/demo", "internal/guestimage", "internal/qemu"},
	"cmd/lifeboat-vddk":    {"disk", "vddk"},
	"cmd/lifeboat-agent":   {"guestfs"},
}

// confined libraries live where they are named and nowhere else.
var confined = map[string][]string{
	"github.com/vmware/govmomi":            {"vsphere", "internal/esxsim"},
	"github.com/willscott/go-nfs":          {"nfsserver"},
	"github.com/hanwen/go-fuse":            {"fusefs"},
	"github.com/minio/minio-go":            {"store"},
	"github.com/ebitengine/purego":         {"cmd/lifeboat-vddk"},
	"go.etcd.io/bbolt":                     {"appliance"},
	"github.com/urfave/cli":                {"cmd"},
	"github.com/vbauerster/mpb":            {"cmd", "internal/demo"},
	"github.com/klauspost/compress":        {"store", "disk", "guestfs", "appliance"},
	"github.com/willscott/go-nfs-client":   {"nfsserver/nfstest"},
	"github.com/go-git/go-billy":           {"nfsserver", "appliance"},
	"github.com/FastFilter/xorfilter":      {"store"},
	"github.com/rogpeppe/go-internal":      {"cmd"},
	"go.yaml.in/yaml":                      {"appliance"},
	"golang.org/x/crypto/argon2":           {"store", "guestfs/crypt"},
	"golang.org/x/crypto/xts":              {"guestfs/crypt"},
	"golang.org/x/net/webdav":              {"webdav"},
	"github.com/landlock-lsm/go-landlock":  {"guestfs/worker"},
	"github.com/aymanbagabas/go-udiff":     {"appliance"},
	"www.velocidex.com/golang/regparser":   {"guestfs"},
	"golang.org/x/crypto/chacha20poly1305": {"store"},
}

// sources yields every Go file of the module that is not a test.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	imports := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if name := e.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "tools") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports[filepath.ToSlash(path)] = append(imports[filepath.ToSlash(path)], name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}

func within(path string, folders []string) bool {
	for _, f := range folders {
		if path == f || strings.HasPrefix(path, f+"/") {
			return true
		}
	}
	return false
}

// rule finds the longest rule that covers a package's folder.
func rule(folder string) ([]string, bool) {
	for f := folder; f != "."; f = filepath.ToSlash(filepath.Dir(f)) {
		if allowed, ok := rules[f]; ok {
			return allowed, true
		}
	}
	return nil, false
}

func TestImportsPointInward(t *testing.T) {
	files := sources(t)
	if len(files) < 50 {
		t.Fatalf("only %d files found: the test looks in the wrong place", len(files))
	}
	for file, names := range files {
		folder := filepath.ToSlash(filepath.Dir(file))
		allowed, ok := rule(folder)
		if !ok {
			t.Errorf("%s: no rule covers this folder; give it one here and in docs/architecture.md", file)
			continue
		}
		for _, name := range names {
			own, isOwn := strings.CutPrefix(name, "lifeboat/")
			if isOwn && own != folder && !within(own, allowed) {
				t.Errorf("%s imports %s: %s may import only %v", file, name, folder, allowed)
			}
			for library, homes := range confined {
				if within(name, []string{library}) && !within(folder, homes) {
					t.Errorf("%s imports %s, which lives only in %v", file, name, homes)
				}
			}
		}
	}
}

func TestFilesStayReadable(t *testing.T) {
	const limit = 600 // the aim is 400; past this a file is two
	for file := range sources(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), "\n"); n > limit {
			t.Errorf("%s has %d lines, more than %d: which two things is it?", file, n, limit)
		}
	}
}
