package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/store/backend"
)

func testRemove(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	Put(t, b, "a/x", nil, backend.Exclusive)
	Put(t, b, "a/y", nil, backend.Exclusive)
	for range 2 { // the second time it is not there
		if err := b.Remove(ctx, "a/x"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"missing", "missing/dir/x", "a"} {
		if err := b.Remove(ctx, name); err != nil {
			t.Errorf("Remove(%q): %v", name, err)
		}
	}
	wantNames(t, b, "", "a/y")
	if err := b.Remove(ctx, "a/y"); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	Put(t, b, "a/z", []byte("again"), backend.Exclusive)
	wantNames(t, b, "a/", "a/z")
}

func testNames(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	bad := []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "../a", "A", "a b", "a\x00b", "ä", "a\\b", "a:b",
		strings.Repeat("n", backend.MaxName+1), "tmp/x", "tmp",
	}
	for _, name := range bad {
		if w, err := b.Create(ctx, name, backend.Exclusive); !errors.Is(err, backend.ErrName) {
			t.Errorf("Create(%q): %v, want ErrName", name, err)
			if err == nil {
				w.Abort()
			}
		}
		if o, err := b.Open(ctx, name); !errors.Is(err, backend.ErrName) {
			t.Errorf("Open(%q): %v, want ErrName", name, err)
			if err == nil {
				o.Close()
			}
		}
		if err := b.Remove(ctx, name); !errors.Is(err, backend.ErrName) {
			t.Errorf("Remove(%q): %v, want ErrName", name, err)
		}
	}
	for _, prefix := range []string{"/", "../", "a//", "A", "tmp/"} {
		var got error
		for _, err := range b.List(ctx, prefix) {
			got = err
		}
		if !errors.Is(got, backend.ErrName) {
			t.Errorf("List(%q): %v, want ErrName", prefix, got)
		}
	}
}

func testListOrder(t *testing.T, b backend.Backend) {
	want := []string{"a-b", "a-b.c", "a.b", "a/b", "a/b0", "a/c/d", "a0", "a0/b", "aa/0", "b"}
	want = slices.DeleteFunc(want, func(n string) bool { return n == "a0" }) // a0/ is a prefix here
	for _, i := range []int{5, 2, 8, 0, 1, 3, 4, 6, 7} {
		Put(t, b, want[i], nil, backend.Exclusive)
	}
	slices.Sort(want)
	wantNames(t, b, "", want...)
}

func testListPrefix(t *testing.T, b backend.Backend) {
	for _, name := range []string{"s/aa/1.0", "s/aa/1.1", "s/aa/12.0", "s/ab/1.0", "s2/x", "t"} {
		Put(t, b, name, nil, backend.Exclusive)
	}
	wantNames(t, b, "s/aa/1.", "s/aa/1.0", "s/aa/1.1")
	wantNames(t, b, "s/a", "s/aa/1.0", "s/aa/1.1", "s/aa/12.0", "s/ab/1.0")
	wantNames(t, b, "s/", "s/aa/1.0", "s/aa/1.1", "s/aa/12.0", "s/ab/1.0")
	wantNames(t, b, "s", "s/aa/1.0", "s/aa/1.1", "s/aa/12.0", "s/ab/1.0", "s2/x")
	wantNames(t, b, "t", "t")
	wantNames(t, b, "u")
	wantNames(t, b, "s/ac/")
}

func testListStops(t *testing.T, b backend.Backend) {
	for i := range 5 {
		Put(t, b, fmt.Sprintf("d%d/x", i), nil, backend.Exclusive)
	}
	seen := 0
	for _, err := range b.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen == 2 {
			break
		}
	}
	if seen != 2 {
		t.Errorf("saw %d objects", seen)
	}
}

func testListInfo(t *testing.T, b backend.Backend) {
	before := time.Now().Add(-time.Hour) // clocks of servers differ
	Put(t, b, "x", make([]byte, 12345), backend.Exclusive)
	for info, err := range b.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size != 12345 || info.Modified.Before(before) || info.Modified.After(time.Now().Add(time.Hour)) {
			t.Errorf("%+v", info)
		}
	}
}

func testReadAt(t *testing.T, b backend.Backend) {
	Put(t, b, "x", []byte("0123456789"), backend.Exclusive)
	o, err := b.Open(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if o.Size() != 10 {
		t.Fatalf("size %d", o.Size())
	}
	p := make([]byte, 4)
	if n, err := o.ReadAt(p, 3); n != 4 || err != nil || string(p) != "3456" {
		t.Errorf("inside: %d, %v, %q", n, err, p)
	}
	if n, err := o.ReadAt(p, 8); n != 2 || !errors.Is(err, io.EOF) || string(p[:n]) != "89" {
		t.Errorf("across the end: %d, %v, %q", n, err, p)
	}
	if n, err := o.ReadAt(p, 10); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := o.ReadAt(p, 11); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
	if n, err := o.ReadAt(p, -1); n != 0 || err == nil {
		t.Errorf("negative: %d, %v", n, err)
	}
}

func testNoWait(t *testing.T, b backend.Backend) {
	Put(t, b, "x", []byte("0123456789"), backend.Exclusive)
	o, err := b.Open(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	r, ok := o.(backend.NoWaitReader)
	if !ok {
		t.Log("objects of this backend cannot be read without waiting")
		return
	}
	p := make([]byte, 4)
	if r.ReadAtNoWait(p, 3) && string(p) != "3456" {
		t.Errorf("%q", p)
	}
	if r.ReadAtNoWait(p, 8) {
		t.Error("a read across the end claims to be complete")
	}
}

func testManyAtOnce(t *testing.T, b backend.Backend) {
	var wg sync.WaitGroup
	var want []string
	for i := range 24 {
		name := fmt.Sprintf("%02x/%d", i%5, i)
		want = append(want, name)
		wg.Go(func() {
			data := bytes.Repeat([]byte(name), 1000)
			if err := put(b, name, data, backend.Exclusive); err != nil {
				t.Error(err)
				return
			}
			if got, err := get(b, name); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: wrong content, %v", name, err)
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	wantNames(t, b, "", want...)
}

func testCancelled(t *testing.T, b backend.Backend) {
	Put(t, b, "x", []byte("x"), backend.Exclusive)
	ctx, cancel := context.WithCancel(context.Background())
	o, err := b.Open(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	w, err := b.Create(ctx, "y", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	cancel()
	if _, err := o.ReadAt(make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt: %v, want context.Canceled", err)
	}
	if err := w.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit: %v, want context.Canceled", err)
	}
	wantAbsent(t, b, "y")
	if _, err := b.Create(ctx, "z", backend.Exclusive); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v, want context.Canceled", err)
	}
	if _, err := b.Open(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Open: %v, want context.Canceled", err)
	}
	if err := b.Remove(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove: %v, want context.Canceled", err)
	}
	var listErr error
	for _, err := range b.List(ctx, "") {
		listErr = err
	}
	if !errors.Is(listErr, context.Canceled) {
		t.Errorf("List: %v, want context.Canceled", listErr)
	}
}
