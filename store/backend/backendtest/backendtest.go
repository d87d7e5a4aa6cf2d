// Package backendtest holds the tests that every backend must pass, and a
// backend in memory that passes them, for tests of what is built on one.
package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/store/backend"
)

// Run runs the suite. open gives a new, empty backend each time.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	tests := []struct {
		name string
		run  func(t *testing.T, b backend.Backend)
	}{
		{"RoundTrip", testRoundTrip},
		{"MissingObject", testMissingObject},
		{"InvisibleUntilCommit", testInvisibleUntilCommit},
		{"AbortLeavesNothing", testAbort},
		{"SpentWriter", testSpentWriter},
		{"Exclusive", testExclusive},
		{"ExclusiveRace", testExclusiveRace},
		{"Replace", testReplace},
		{"ReplaceIsAtomic", testReplaceIsAtomic},
		{"Remove", testRemove},
		{"Names", testNames},
		{"ListOrder", testListOrder},
		{"ListPrefix", testListPrefix},
		{"ListStops", testListStops},
		{"ListInfo", testListInfo},
		{"ReadAt", testReadAt},
		{"NoWait", testNoWait},
		{"ManyAtOnce", testManyAtOnce},
		{"Cancelled", testCancelled},
		{"Large", testLarge},
		{"Sizes", testSizes},
		{"ExclusiveLarge", testExclusiveLarge},
		{"ReplaceWhileReading", testReplaceWhileReading},
		{"CancelledWhileWriting", testCancelledWhileWriting},
		{"AbortLarge", testAbortLarge},
		{"ListFrom", testListFrom},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// Put writes an object and fails the test when it cannot.
func Put(t testing.TB, b backend.Backend, name string, data []byte, mode backend.Mode) {
	t.Helper()
	if err := put(b, name, data, mode); err != nil {
		t.Fatal(err)
	}
}

// Get reads a whole object and fails the test when it cannot.
func Get(t testing.TB, b backend.Backend, name string) []byte {
	t.Helper()
	data, err := get(b, name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Names lists what starts with prefix and fails the test when it cannot.
func Names(t testing.TB, b backend.Backend, prefix string) []string {
	t.Helper()
	var names []string
	for info, err := range b.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

func put(b backend.Backend, name string, data []byte, mode backend.Mode) error {
	w, err := b.Create(context.Background(), name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit(context.Background())
}

func get(b backend.Backend, name string) ([]byte, error) {
	o, err := b.Open(context.Background(), name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
}

func wantNames(t *testing.T, b backend.Backend, prefix string, want ...string) {
	t.Helper()
	if got := Names(t, b, prefix); !slices.Equal(got, want) {
		t.Errorf("List(%q) = %q, want %q", prefix, got, want)
	}
}

func wantAbsent(t *testing.T, b backend.Backend, name string) {
	t.Helper()
	o, err := b.Open(context.Background(), name)
	if err == nil {
		o.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open(%q): %v, want fs.ErrNotExist", name, err)
	}
}

func testRoundTrip(t *testing.T, b backend.Backend) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	for name, data := range map[string][]byte{
		"empty": {}, "small": []byte("x"), "a/b/c/deep": []byte("deep"), "big": big,
		strings.Repeat("n", backend.MaxName): []byte("longest name"),
	} {
		Put(t, b, name, data, backend.Exclusive)
		if got := Get(t, b, name); !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes came back, want %d", name, len(got), len(data))
		}
	}
	w, err := b.Create(context.Background(), "pieces", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	for len(big) > 0 {
		n := min(len(big), 99_991)
		if m, err := w.Write(big[:n]); m != n || err != nil {
			t.Fatalf("Write = %d, %v", m, err)
		}
		big = big[n:]
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(Get(t, b, "pieces"), Get(t, b, "big")) {
		t.Error("an object written in pieces differs")
	}
}

func testMissingObject(t *testing.T, b backend.Backend) {
	wantAbsent(t, b, "missing")
	wantAbsent(t, b, "missing/too")
	wantNames(t, b, "")
	wantNames(t, b, "missing/")
	Put(t, b, "dir/object", nil, backend.Exclusive)
	wantAbsent(t, b, "dir")
	wantAbsent(t, b, "dir/object/below")
	wantNames(t, b, "dir/object/")
}

func testInvisibleUntilCommit(t *testing.T, b backend.Backend) {
	w, err := b.Create(context.Background(), "a/x", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, b, "a/x")
	wantNames(t, b, "")
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantNames(t, b, "", "a/x")
	w.Abort() // does nothing after Commit
	wantNames(t, b, "", "a/x")
}

func testAbort(t *testing.T, b backend.Backend) {
	Put(t, b, "kept", []byte("old"), backend.Exclusive)
	for _, name := range []string{"kept", "new"} {
		w, err := b.Create(context.Background(), name, backend.Replace)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("dropped")); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		w.Abort()
	}
	wantNames(t, b, "", "kept")
	if got := Get(t, b, "kept"); string(got) != "old" {
		t.Errorf("the object became %q", got)
	}
}

func testSpentWriter(t *testing.T, b backend.Backend) {
	w, err := b.Create(context.Background(), "x", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if _, err := w.Write([]byte("late")); err == nil {
		t.Error("Write after Abort worked")
	}
	if err := w.Commit(context.Background()); err == nil {
		t.Error("Commit after Abort worked")
	}
	wantAbsent(t, b, "x")
}

func testExclusive(t *testing.T, b backend.Backend) {
	Put(t, b, "x", []byte("first"), backend.Exclusive)
	if err := put(b, "x", []byte("second"), backend.Exclusive); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v, want fs.ErrExist", err)
	}
	if got := Get(t, b, "x"); string(got) != "first" {
		t.Errorf("the object became %q", got)
	}
	wantNames(t, b, "", "x")
}

func testExclusiveRace(t *testing.T, b backend.Backend) {
	const racers = 8
	for round := range 5 {
		name := fmt.Sprintf("claims/%d", round)
		var wins atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range racers {
			wg.Go(func() {
				<-start
				data := fmt.Sprintf("racer %d", i)
				switch err := put(b, name, []byte(data), backend.Exclusive); {
				case err == nil:
					wins.Add(1)
					winner.Store(data)
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("the loser got %v, want fs.ErrExist", err)
				}
			})
		}
		close(start)
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d of %d won", wins.Load(), racers)
		}
		if got := Get(t, b, name); string(got) != winner.Load() {
			t.Errorf("the object holds %q, but %q won", got, winner.Load())
		}
	}
}

func testReplace(t *testing.T, b backend.Backend) {
	Put(t, b, "x", []byte("first, and longer"), backend.Replace)
	Put(t, b, "x", []byte("second"), backend.Replace)
	if got := Get(t, b, "x"); string(got) != "second" {
		t.Errorf("the object holds %q", got)
	}
	wantNames(t, b, "", "x")
}

// A reader sees one version or another, never a mixture or nothing.
func testReplaceIsAtomic(t *testing.T, b backend.Backend) {
	version := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, 1000+i) }
	Put(t, b, "x", version(0), backend.Replace)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 30 {
			if err := put(b, "x", version(i), backend.Replace); err != nil {
				t.Error(err)
			}
		}
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		got, err := get(b, "x")
		if err != nil {
			t.Fatal(err)
		}
		if len(got) < 1000 || !bytes.Equal(got, version(len(got)-1000)) {
			t.Fatalf("%d bytes are no version", len(got))
		}
	}
}
