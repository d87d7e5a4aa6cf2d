package keyring

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

var password = []byte("correct horse battery staple")

func newRepoForTest(t testing.TB, b backend.Backend) *Repo {
	t.Helper()
	r, err := Create(t.Context(), b, password, Params{KDF: CheapKDF(), Label: "first"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCreateAndOpen(t *testing.T) {
	b := backendtest.NewMemory()
	made, err := Create(t.Context(), b, password, Params{BlockSize: 128 << 10, KDF: CheapKDF()})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), b, password)
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != made.ID || r.BlockSize != 128<<10 || r.KeyID != made.KeyID || *r.Keys != *made.Keys {
		t.Errorf("opened %+v, made %+v", r, made)
	}
	names := backendtest.Names(t, b, "")
	if want := []string{"keys/" + r.KeyID, HeaderName}; !slices.Equal(names, want) {
		t.Errorf("objects %q, want %q", names, want)
	}
}

func TestOpenRefuses(t *testing.T) {
	b := backendtest.NewMemory()
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrNotRepository) {
		t.Errorf("empty place: %v, want ErrNotRepository", err)
	}
	r := newRepoForTest(t, b)
	for _, wrong := range []string{"", "correct", string(password) + "\n"} {
		_, err := Open(t.Context(), b, []byte(wrong))
		if !errors.Is(err, ErrWrongPassword) || errors.Is(err, ErrDamaged) {
			t.Errorf("password %q: %v, want ErrWrongPassword", wrong, err)
		}
	}
	if err := b.Remove(t.Context(), KeyPrefix+r.KeyID); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrDamaged) {
		t.Errorf("no key: %v, want ErrDamaged", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	b := backendtest.NewMemory()
	for size, want := range map[int]error{1: ErrVersion, 32 << 10: ErrVersion, 96 << 10: ErrVersion, 1 << 20: ErrVersion} {
		if _, err := Create(t.Context(), b, password, Params{BlockSize: size, KDF: CheapKDF()}); !errors.Is(err, want) {
			t.Errorf("block size %d: %v, want %v", size, err, want)
		}
	}
	if _, err := Create(t.Context(), b, nil, Params{KDF: CheapKDF()}); !errors.Is(err, ErrPassword) {
		t.Errorf("no password: %v, want ErrPassword", err)
	}
	if _, err := Create(t.Context(), b, password, Params{KDF: CheapKDF(), Label: strings.Repeat("x", maxDocument)}); err == nil {
		t.Error("a label that makes the key file unreadable was accepted")
	}
	if _, err := Create(t.Context(), b, password, Params{KDF: KDF{MemoryKiB: 1 << 30}}); err == nil {
		t.Error("a terabyte of memory was accepted")
	}
	if names := backendtest.Names(t, b, ""); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
	newRepoForTest(t, b)
	if _, err := Create(t.Context(), b, password, Params{KDF: CheapKDF()}); !errors.Is(err, ErrExists) {
		t.Errorf("second time: %v, want ErrExists", err)
	}
	orphaned := backendtest.NewMemory()
	backendtest.Put(t, orphaned, "segments/01/000000000001.0", nil, backend.Exclusive)
	if _, err := Create(t.Context(), orphaned, password, Params{KDF: CheapKDF()}); !errors.Is(err, ErrExists) {
		t.Errorf("over data without a header: %v, want ErrExists", err)
	}
}

func TestCreateHasOneWinner(t *testing.T) {
	b := backendtest.NewMemory()
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := Create(context.Background(), b, password, Params{KDF: CheapKDF()})
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d won", won.Load())
	}
	if _, err := Open(t.Context(), b, password); err != nil {
		t.Error(err)
	}
	if names := backendtest.Names(t, b, KeyPrefix); len(names) != 1 {
		t.Errorf("the losers left %q", names)
	}
}

// Every bit of header and key file counts, and none of them makes a right
// password look wrong.
func TestFlippedBits(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	for _, name := range backendtest.Names(t, b, "") {
		size := len(backendtest.Get(t, b, name))
		for bit := range size * 8 {
			c := b.Clone()
			c.Flip(name, bit)
			_, err := Open(t.Context(), c, password)
			if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrWrongPassword) || !strings.Contains(err.Error(), name) {
				t.Fatalf("%s, bit %d of byte %d: %v, want ErrDamaged", name, bit%8, bit/8, err)
			}
			var reported []string
			err = r.Verify(t.Context(), c, func(object string, _ error) { reported = append(reported, object) })
			if err != nil || !slices.Equal(reported, []string{name}) {
				t.Fatalf("%s, byte %d: Verify reported %q, %v", name, bit/8, reported, err)
			}
		}
	}
}

func TestDamagedKeyDoesNotHideTheOther(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	second := []byte("second")
	if _, err := r.AddPassword(t.Context(), b, second, KeyOptions{KDF: CheapKDF()}); err != nil {
		t.Fatal(err)
	}
	b.Flip(KeyPrefix+r.KeyID, 1000)
	if _, err := Open(t.Context(), b, second); err != nil {
		t.Error(err)
	}
	_, err := Open(t.Context(), b, password)
	if !errors.Is(err, ErrWrongPassword) || !errors.Is(err, ErrDamaged) {
		t.Errorf("%v: want both, ErrWrongPassword and ErrDamaged", err)
	}
}

// A header that is whole but was not made with the master key.
func TestForgedHeader(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	forged := newHeader(r.ID, r.Created, 256<<10)
	doc, err := forged.encode(NewKeys([KeySize]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Put(t, b, HeaderName, doc, backend.Replace)
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

func TestUnknownFormat(t *testing.T) {
	changes := map[string]func(*header){
		"version":  func(h *header) { h.Version = 2 },
		"feature":  func(h *header) { h.Required = []string{"levitation"} },
		"cipher":   func(h *header) { h.Cipher = "rot13" },
		"identity": func(h *header) { h.Identity = "crc32" },
		"blocks":   func(h *header) { h.BlockSize = 1 << 30 },
	}
	for what, change := range changes {
		b := backendtest.NewMemory()
		r := newRepoForTest(t, b)
		h := newHeader(r.ID, r.Created, r.BlockSize)
		change(&h)
		doc, err := h.encode(r.Keys)
		if err != nil {
			t.Fatal(err)
		}
		backendtest.Put(t, b, HeaderName, doc, backend.Replace)
		if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrVersion) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrVersion", what, err)
		}
	}
	b := backendtest.NewMemory()
	newRepoForTest(t, b)
	b.Change(HeaderName, func(doc []byte) []byte {
		text, err := split(HeaderName, doc)
		if err != nil {
			t.Fatal(err)
		}
		return finish(append(bytes.Clone(text), "  \"unheard_of\": 1,\n"...))
	})
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrVersion) {
		t.Errorf("unknown member: %v, want ErrVersion", err)
	}
}

// A hostile key file must not make us spend memory or time.
func TestAbsurdKDF(t *testing.T) {
	for _, k := range []KDF{
		{1 << 31, 1, 4},
		{maxMemoryKiB + 1, 1, 4},
		{64, 0, 1},
		{64, 1, 0},
		{64, 1 << 31, 1},
		{7, 1, 1},
		{64, maxPasses + 1, 1},
		{8 << 10, 1, maxLanes + 1},
		{maxMemoryKiB, 5, 1},
		{64, 1, 9},
	} {
		if k.check() == nil {
			t.Errorf("%+v was accepted", k)
		}
	}
	for _, k := range []KDF{DefaultKDF(), CheapKDF(), {maxMemoryKiB, 4, 4}, {64 << 10, 64, 64}} {
		if err := k.check(); err != nil {
			t.Error(err)
		}
	}
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	b.Change(KeyPrefix+r.KeyID, func(doc []byte) []byte {
		text, err := split(KeyPrefix+r.KeyID, doc)
		if err != nil {
			t.Fatal(err)
		}
		return finish(bytes.Replace(bytes.Clone(text), []byte(`"memory_kib": 8`), []byte(`"memory_kib": 4000000000`), 1))
	})
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
	backendtest.Put(t, b, KeyPrefix+"huge", make([]byte, maxDocument+1), backend.Exclusive)
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}
