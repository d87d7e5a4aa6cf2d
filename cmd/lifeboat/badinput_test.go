package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// mountMarker in the environment says that the test runs where it may mount.
const mountMarker = "LIFEBOAT_TEST_MOUNTS"

// withMounts runs the calling test again in a mount namespace of its own, where
// mounts vanish with the process, however it ends, and reports whether the
// caller is the one inside.
func withMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(mountMarker) == t.Name() {
		// What is mounted here must not show outside.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), mountMarker+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in a mount namespace: %v\n%s", err, out)
	}
	return false
}

// volume mounts a file system of a limited size over a directory of w.
func (w workspace) volume(name, size string) {
	w.t.Helper()
	if err := os.MkdirAll(w.path(name), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", w.path(name), "tmpfs", 0, "size="+size); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Unmount(w.path(name), unix.MNT_DETACH) })
}

func (w workspace) remount(name, size string, flags uintptr) {
	w.t.Helper()
	if err := unix.Mount("tmpfs", w.path(name), "tmpfs", unix.MS_REMOUNT|flags, "size="+size); err != nil {
		w.t.Fatal(err)
	}
}

// outcome is how a command ended.
type outcome struct {
	code           int
	stdout, stderr string
}

func (w workspace) finish(cmd *exec.Cmd) outcome {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	return w.wait(cmd)
}

// wait waits for a command that finish or midway started.
func (w workspace) wait(cmd *exec.Cmd) outcome {
	w.t.Helper()
	kill := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	_ = cmd.Wait()
	return outcome{cmd.ProcessState.ExitCode(), cmd.Stdout.(*bytes.Buffer).String(), cmd.Stderr.(*bytes.Buffer).String()}
}

// fails runs a command that must end with that exit code, print no document,
// and say these words.
func (w workspace) fails(code int, words []string, args ...string) {
	w.t.Helper()
	w.expect(w.finish(w.command(args...)), code, words)
}

func (w workspace) expect(got outcome, code int, words []string) {
	w.t.Helper()
	if got.code != code {
		w.t.Errorf("exit code %d, want %d: %s", got.code, code, got.stderr)
	}
	for _, word := range words {
		if !strings.Contains(got.stderr, word) {
			w.t.Errorf("the message does not say %q: %s", word, got.stderr)
		}
	}
	if strings.Contains(got.stderr, "goroutine ") {
		w.t.Errorf("it panicked: %s", got.stderr)
	}
}

// objects lists the repository's files but for the claims, one of which every
// writer leaves behind, and the results of verifications.
func (w workspace) objects() []string {
	w.t.Helper()
	var names []string
	err := fs.WalkDir(os.DirFS(w.path("repo")), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.HasPrefix(name, "claims/") && !strings.HasPrefix(name, "verified/") {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names
}

// verified is what `lifeboat verify` says of a repository without damage.
func (w workspace) verified() (report struct {
	Points                int
	Unexpected, Leftovers []string
},
) {
	w.t.Helper()
	if err := json.Unmarshal(w.run("verify"), &report); err != nil {
		w.t.Fatal(err)
	}
	return report
}

// untouched checks that the repository is what it was: the same objects, none of
// them damaged or left over, and one point.
func (w workspace) untouched(before []string) {
	w.t.Helper()
	if now := w.objects(); !slices.Equal(now, before) {
		w.t.Errorf("the repository held %q, now %q", before, now)
	}
	if r := w.verified(); r.Points != 1 || len(r.Unexpected)+len(r.Leftovers) > 0 {
		w.t.Errorf("verify: %+v", r)
	}
}

// reads checks that a point reads as the file want.
func (w workspace) reads(point, want string) {
	w.t.Helper()
	w.run("export", point, "--output", "out", "--force")
	if err := exec.Command("cmp", w.path("out"), w.path(want)).Run(); err != nil {
		w.t.Errorf("%s is not what was backed up: %v", point, err)
	}
}

// disk makes a disk whose blocks all differ, of which a 16th is data on the
// host, so that a large one is cheap here and long work for a backup.
func (w workspace) disk(name string, blocks int) {
	w.t.Helper()
	f, err := os.Create(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	for i := range blocks {
		if _, err := f.WriteAt([]byte(name+" block "+strconv.Itoa(i)), int64(i)<<16); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(blocks) << 16); err != nil {
		w.t.Fatal(err)
	}
}

// random makes a disk that cannot be compressed.
func (w workspace) random(name string, size int) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), noise(size, byte(len(name))), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func TestBadFullRepository(t *testing.T) {
	if !withMounts(t) {
		return
	}
	w := workspace{t, t.TempDir()}
	w.volume("repo", "6m")
	w.run("init")
	w.random("small", 2<<20)
	w.random("large", 12<<20)
	w.run("backup", "disk", "--vm", "small", "small")
	before := w.objects()
	w.fails(1, []string{"large", "no space left on device", "make room"}, "backup", "disk", "--vm", "large", "large")
	w.untouched(before)

	// Not even the room for a claim.
	if err := os.WriteFile(w.path("repo/tmp/filler"), make([]byte, 6<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the volume: %v", err)
	}
	w.fails(1, []string{"no space left on device", "make room"}, "backup", "disk", "--vm", "large", "large")
	if err := os.Remove(w.path("repo/tmp/filler")); err != nil {
		t.Fatal(err)
	}
	w.untouched(before)
	w.reads("small@latest", "small")

	w.remount("repo", "32m", 0)
	w.run("backup", "disk", "--vm", "large", "large")
	w.reads("large@latest", "large")
}

// TestBadHeader opens repositories of the future: whole, authentic as far as can
// be told without knowing the format, and not to be touched.
func TestBadHeader(t *testing.T) {
	w := newWorkspace(t)
	whole, err := os.ReadFile(w.path("repo/lifeboat.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new, word string }{
		{`"version": 1`, `"version": 2`, "version 2"},
		{`"required_features": []`, `"required_features": ["tape"]`, `"tape"`},
		{`"aes-256-gcm"`, `"rot13"`, `"rot13"`},
		{`"block_size": 65536`, `"block_size": 65536, "shape": "round"`, "shape"},
	} {
		body, _, ok := strings.Cut(strings.Replace(string(whole), tt.old, tt.new, 1), `  "checksum"`)
		if !ok || strings.Contains(body, tt.old+",\n") {
			t.Fatalf("the header does not look as expected: %s", whole)
		}
		sum := blake3.Sum256([]byte(body))
		doc := body + `  "checksum": "` + hex.EncodeToString(sum[:]) + "\"\n}\n"
		if err := os.WriteFile(w.path("repo/lifeboat.json"), []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		w.fails(exitFailed, []string{w.path("repo"), tt.word, "upgrade"}, "points")
		w.fails(exitFailed, []string{"upgrade"}, "verify")
		if now, err := os.ReadFile(w.path("repo/lifeboat.json")); err != nil || string(now) != doc {
			t.Errorf("the header was changed (%v): %s", err, now)
		}
	}
}

// TestBadBits flips a bit in every file of a repository: each is detected and
// named, and what it hurts is said.
func TestBadBits(t *testing.T) {
	w := newWorkspace(t)
	w.random("d", 1<<20)
	w.run("backup", "disk", "--vm", "vm", "d")
	var points []struct{ ID string }
	if err := json.Unmarshal(w.run("points"), &points); err != nil {
		t.Fatal(err)
	}
	objects := append(w.objects(), "claims/0000000000000001")
	kinds := map[string]bool{}
	for _, name := range objects {
		kinds[filepath.Dir(name)] = true
		for _, at := range []int{0, 50} { // per cent
			flipped(w, name, at, points[0].ID)
		}
	}
	for _, kind := range []string{".", "claims", "index", "keys", "points", "segments/00", "segments/01"} {
		if !kinds[kind] {
			t.Errorf("no object of kind %s among %q", kind, objects)
		}
	}
	w.verified()
}

func flipped(w workspace, name string, percent int, point string) {
	w.t.Helper()
	whole, err := os.ReadFile(w.path("repo/" + name))
	if err != nil {
		w.t.Fatal(err)
	}
	data := bytes.Clone(whole)
	data[len(data)*percent/100] ^= 0x10
	if err := os.WriteFile(w.path("repo/"+name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	got := w.finish(w.command("verify"))
	said := got.stdout + got.stderr
	if got.code != exitDamaged || !strings.Contains(said, name) {
		w.t.Errorf("%s, flipped at %d %%: exit code %d: %s", name, percent, got.code, said)
	}
	// The middle of a data segment is data; a point's record is the point.
	hurts := strings.HasPrefix(name, "points/") || strings.HasPrefix(name, "segments/00/") && percent == 50
	if hurts && !strings.Contains(said, "hurts point "+point) {
		w.t.Errorf("%s, flipped at %d %%: it does not say that point %s is hurt: %s", name, percent, point, said)
	}
	if err := os.WriteFile(w.path("repo/"+name), whole, 0o600); err != nil {
		w.t.Fatal(err)
	}
}
