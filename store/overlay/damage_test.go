package overlay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/internal/vfs/crashfs"
)

// TestDamage: a flipped bit in any file is found and named, or what it hits is
// the tail of the log that was never acknowledged.
func TestDamage(t *testing.T) {
	fsys := crashfs.New(5, crashfs.Options{})
	o := mustOpen(t, testOptions(fsys))
	h := newHistory(testBase(), testSize)
	rng := rand.New(rand.NewPCG(6, 6))
	if err := work(o, h, rng, 30); err != nil {
		t.Fatal(err)
	}
	if err := o.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	for page := range int64(20) { // a log behind the checkpoint, in several records and files
		p := randomBytes(rng, pageSize)
		p[0] = 1
		if _, err := o.WriteAt(p, page*pageSize); err != nil {
			t.Fatal(err)
		}
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		h.write(p, page*pageSize)
	}
	last := o.nextRec - 1
	base := fsys.Crash(1) // as a killed process leaves it
	fsys.Stop()
	o.Close()

	entries, err := base.ReadDir("/sessions/one")
	if err != nil {
		t.Fatal(err)
	}
	// A checkpoint may have been under way: what it had begun is nobody's loss.
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), ".tmp") })
	hit := map[string]int{}
	for _, e := range entries {
		kind, _, _ := strings.Cut(e.Name(), "-")
		if kind == "data" {
			continue // not checksummed; the file system's
		}
		info, _ := base.Stat(filepath.Join("/sessions/one", e.Name()))
		for off := int64(0); off < info.Size(); off += max(1, info.Size()/40) {
			broken := base.Crash(1)
			flip(t, broken, filepath.Join("/sessions/one", e.Name()), off)
			again, err := Open(testOptions(broken))
			switch {
			case errors.Is(err, ErrDamaged) && strings.Contains(err.Error(), "/sessions/one/"):
				hit[kind]++
			case err != nil:
				t.Errorf("%s, byte %d flipped: %v", e.Name(), off, err)
			default:
				if next := again.nextRec; next != last+1 && next != last {
					t.Errorf("%s, byte %d flipped: the log ends before record %d, it should before %d or %d", e.Name(), off, next, last, last+1)
				}
				again.Close()
			}
		}
	}
	for _, kind := range []string{"meta", "checkpoint", "log"} {
		if hit[kind] == 0 {
			t.Errorf("no flipped bit in a %s file was found", kind)
		}
	}
	for _, e := range entries {
		broken := base.Crash(1)
		if err := broken.Remove(filepath.Join("/sessions/one", e.Name())); err != nil {
			t.Fatal(err)
		}
		again, err := Open(testOptions(broken))
		if err == nil {
			err = newHistoryOf(h).equals(again)
			again.Close()
			if err == nil && !strings.HasPrefix(e.Name(), logPrefix) && !superseded(e, entries) {
				t.Errorf("%s is gone and nobody minds", e.Name())
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s is gone: %v", e.Name(), err)
		}
	}
}

// superseded reports whether e is a checkpoint that a newer one has replaced and
// that was still to be removed.
func superseded(e fs.DirEntry, all []fs.DirEntry) bool {
	return strings.HasPrefix(e.Name(), checkpointPrefix) && slices.ContainsFunc(all, func(o fs.DirEntry) bool {
		return strings.HasPrefix(o.Name(), checkpointPrefix) && o.Name() > e.Name()
	})
}

func flip(t *testing.T, fsys vfs.FS, name string, off int64) {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// FuzzReplay: whatever a log file holds, opening ends, with a disk that can be
// read or with an error that names the damage.
func FuzzReplay(f *testing.F) {
	m := goldenMeta()
	var log []byte
	for i := range 3 {
		record := goldenRecord()
		h, _ := parseHeader(record, testPages)
		h.seq, h.durable = uint64(1+i), uint64(i)
		h.seal(record)
		log = append(log, record...)
	}
	f.Add(log)
	f.Add(goldenRecord()[:2*pageSize])
	f.Add(bytes.Repeat([]byte(recordMagic), 1024))
	base := disktest.NewMemory(testSize)
	f.Fuzz(func(t *testing.T, p []byte) {
		p = bytes.Clone(p[:min(len(p), 64*pageSize)])
		for at := 0; at+pageSize <= len(p); at += pageSize {
			if r := p[at:]; string(r[:8]) == recordMagic { // the fuzzer cannot guess these
				binary.LittleEndian.PutUint64(r[16:], m.key())
				binary.LittleEndian.PutUint64(r[24:], 1)
				binary.LittleEndian.PutUint32(r[56:], uint32(at/pageSize))
				if h, ok := parseHeader(r, testPages); ok && h.size() <= len(r) {
					binary.LittleEndian.PutUint32(r[8:], checksum(r[12:h.size()]))
				}
			}
		}
		fsys := crashfs.New(1, crashfs.Options{})
		put(t, fsys, "/o/"+metaName, m.encode())
		put(t, fsys, "/o/"+numbered(logPrefix, 1), p)
		o, err := Open(Options{FS: fsys, Dir: "/o", Base: base, BaseID: m.baseID, LogBytes: testLog, Logger: quiet()})
		if errors.Is(err, ErrDamaged) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := o.ReadAt(make([]byte, testSize), 0); n < testSize {
			t.Errorf("ReadAt: %v", err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
}

func put(t *testing.T, fsys vfs.FS, name string, p []byte) {
	t.Helper()
	if err := fsys.MkdirAll(filepath.Dir(name), dirMode); err != nil {
		t.Fatal(err)
	}
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
}
