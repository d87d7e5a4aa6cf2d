package vddk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

// TestFolderIsTakenUpAgain: requests that break off and fail are made again,
// and no byte is lost or doubled.
func TestFolderIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	want := disktest.Random(7, imageSize, 1)
	req, store := folderRequest(t, want)
	var mu sync.Mutex
	calls := 0
	store.fail = func(_ string, _ int64, p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if calls++; calls%3 == 0 {
			return len(p) / 2, io.ErrUnexpectedEOF
		}
		if calls%7 == 0 {
			return 0, fmt.Errorf("Get: %w", io.EOF) // the server closed the connection
		}
		return len(p), nil
	}
	disktest.Equal(t, open(t, req, vddk.Options{}), want)
}

func TestFolderGivesUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail error
		lost bool
	}{
		"gone":    {fmt.Errorf("HTTP 404: %w", fs.ErrNotExist), false},
		"down":    {errors.New("connection refused"), true},
		"hung up": {fmt.Errorf("Get: %w", io.EOF), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, store := folderRequest(t, random(8))
			src := open(t, req, vddk.Options{Timeout: time.Second})
			calls := 0
			store.fail = func(string, int64, []byte) (int, error) { calls++; return 0, c.fail }
			_, err := src.ReadAt(make([]byte, 1000), 0)
			if !strings.Contains(err.Error(), c.fail.Error()) || errors.Is(err, vddk.ErrLost) != c.lost || errors.Is(err, io.EOF) {
				t.Errorf("error %v", err)
			}
			store.fail = nil
			if _, err := src.ReadAt(make([]byte, 1000), 1<<20); errors.Is(err, vddk.ErrLost) != c.lost {
				t.Errorf("when the server is back: %v", err) // what is lost stays lost
			}
			if many := calls > 1; many != c.lost {
				t.Errorf("asked %d times", calls)
			}
		})
	}
}

func TestFolderHangs(t *testing.T) {
	req, store := folderRequest(t, random(8))
	src := open(t, req, vddk.Options{Timeout: 10 * time.Millisecond})
	release := make(chan struct{})
	defer close(release)
	store.fail = func(string, int64, []byte) (int, error) {
		select {
		case <-release:
		case <-time.After(30 * time.Millisecond):
		}
		return 0, errors.New("too late")
	}
	if _, err := src.ReadAt(make([]byte, 1000), 0); !errors.Is(err, vddk.ErrHung) || !errors.Is(err, vddk.ErrLost) {
		t.Errorf("a server that hangs: %v", err)
	}
}

// TestFolderRefusesWhatItCannotRead: a delta and a file that is too short are
// no disks.
func TestFolderRefusesWhatItCannotRead(t *testing.T) {
	want := random(9)
	for name, change := range map[string]func(text string) string{
		"delta":  func(s string) string { return strings.Replace(s, "parentCID=ffffffff", "parentCID=12345678", 1) },
		"sparse": func(s string) string { return strings.Replace(s, "VMFS \"", "SESPARSE \"", 1) },
		"path":   func(s string) string { return strings.Replace(s, "VMFS \"", "VMFS \"../", 1) },
		"longer": func(s string) string {
			return strings.Replace(s, fmt.Sprintf("RW %d ", imageSize/512), fmt.Sprintf("RW %d ", imageSize/512+1), 1)
		},
		"nonsense": func(string) string { return "<html>login</html>" },
	} {
		t.Run(name, func(t *testing.T) {
			req, store := folderRequest(t, want)
			text, err := os.ReadFile(store.file(diskPath))
			if err != nil {
				t.Fatal(err)
			}
			changed := change(string(text))
			if changed == string(text) {
				t.Fatalf("the test changes nothing in\n%s", text)
			}
			if err := os.WriteFile(store.file(diskPath), []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if src, err := vddk.Open(t.Context(), req, vddk.Options{}); err == nil {
				src.Close()
				t.Error("it opens")
			}
		})
	}
}

// TestSmallReadsAreFew: who parses a file system over /folder does not make a
// request for each sector, and one who reads on is read ahead of.
func TestSmallReadsAreFew(t *testing.T) {
	want := disktest.Random(15, imageSize, 1)
	req, store := folderRequest(t, want)
	var mu sync.Mutex
	calls := 0
	store.fail = func(string, int64, []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		return 0, nil
	}
	src := open(t, req, vddk.Options{})
	p, q := make([]byte, 700), make([]byte, 700)
	for off := int64(0); off < 2<<20; off += 700 {
		if _, err := src.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if want.ReadAt(q, off); !bytes.Equal(p, q) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if most := 2<<20>>16 + 8; calls > most {
		t.Errorf("%d requests for 2 MiB, at most %d are needed", calls, most)
	}
}

func TestFolderFileShrinks(t *testing.T) {
	req, store := folderRequest(t, disktest.Random(16, imageSize, 1))
	src := open(t, req, vddk.Options{})
	if err := os.Truncate(store.file("disk ü-flat.vmdk"), 2<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := src.ReadAt(make([]byte, 3<<20), 0); n != 0 || !errors.Is(err, disk.ErrChanged) {
		t.Errorf("a read over the end of a file that shrank = %d, %v", n, err)
	}
}
