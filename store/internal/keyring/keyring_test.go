package keyring

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

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
		{1 << 31, 1, 4}, {maxMemoryKiB + 1, 1, 4}, {64, 0, 1}, {64, 1, 0}, {64, 1 << 31, 1}, {7, 1, 1},
		{64, maxPasses + 1, 1}, {8 << 10, 1, maxLanes + 1}, {maxMemoryKiB, 5, 1}, {64, 1, 9},
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

func TestTooManyKeys(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	for range MaxKeys - 1 {
		if _, err := r.AddPassword(t.Context(), b, []byte("x"), KeyOptions{KDF: CheapKDF()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.AddPassword(t.Context(), b, []byte("x"), KeyOptions{KDF: CheapKDF()}); err == nil {
		t.Error("one key too many was added")
	}
	if _, err := Open(t.Context(), b, password); err != nil {
		t.Error(err)
	}
	for i := range maxListed {
		backendtest.Put(t, b, KeyPrefix+strings.Repeat("0", i%100)+randomHex(8), nil, backend.Exclusive)
	}
	if _, err := Open(t.Context(), b, password); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

func TestManageKeys(t *testing.T) {
	ctx := t.Context()
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	if err := r.RemoveKey(ctx, b, r.KeyID); !errors.Is(err, ErrLastKey) {
		t.Errorf("%v, want ErrLastKey", err)
	}
	if err := r.RemoveKey(ctx, b, "0123456789abcdef"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
	second := []byte("second")
	id, err := r.AddPassword(ctx, b, second, KeyOptions{KDF: CheapKDF(), Label: "the other"})
	if err != nil {
		t.Fatal(err)
	}
	infos, err := r.ListKeys(ctx, b)
	if err != nil || len(infos) != 2 {
		t.Fatalf("%v, %v", infos, err)
	}
	for _, info := range infos {
		if info.Err != nil || info.Current != (info.ID == r.KeyID) || info.Label == "" || info.Created.IsZero() || info.KDF != CheapKDF() {
			t.Errorf("%+v", info)
		}
	}
	if err := r.RemoveKey(ctx, b, id); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, b, second); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("%v, want ErrWrongPassword", err)
	}
	if err := r.ChangePassword(ctx, b, second, KeyOptions{KDF: CheapKDF()}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, b, password); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("%v, want ErrWrongPassword", err)
	}
	again, err := Open(ctx, b, second)
	if err != nil || *again.Keys != *r.Keys || again.KeyID != r.KeyID {
		t.Errorf("%+v, %v", again, err)
	}
	if err := r.ChangePassword(ctx, b, nil, KeyOptions{}); !errors.Is(err, ErrPassword) {
		t.Errorf("%v, want ErrPassword", err)
	}
	if _, err := Open(ctx, b, second); err != nil {
		t.Error(err)
	}
}

// A damaged key does not count as one that the last whole one can be removed
// for.
func TestRemoveKeyKnowsUsableKeys(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	id, err := r.AddPassword(t.Context(), b, password, KeyOptions{KDF: CheapKDF()})
	if err != nil {
		t.Fatal(err)
	}
	b.Flip(KeyPrefix+id, 99)
	if err := r.RemoveKey(t.Context(), b, r.KeyID); !errors.Is(err, ErrLastKey) {
		t.Errorf("%v, want ErrLastKey", err)
	}
	if err := r.RemoveKey(t.Context(), b, id); err != nil {
		t.Error(err)
	}
}

func TestKeyOfAnotherRepository(t *testing.T) {
	b, other := backendtest.NewMemory(), backendtest.NewMemory()
	r, stranger := newRepoForTest(t, b), newRepoForTest(t, other)
	name := KeyPrefix + stranger.KeyID
	backendtest.Put(t, b, name, backendtest.Get(t, other, name), backend.Exclusive)
	got, err := Open(t.Context(), b, password)
	if err != nil || *got.Keys != *r.Keys {
		t.Fatalf("%v", err)
	}
	var reported []string
	if err := r.Verify(t.Context(), b, func(object string, _ error) { reported = append(reported, object) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(reported, []string{name}) {
		t.Errorf("reported %q", reported)
	}
}

func TestRestoreHeader(t *testing.T) {
	ctx := t.Context()
	b, other := backendtest.NewMemory(), backendtest.NewMemory()
	r, stranger := newRepoForTest(t, b), newRepoForTest(t, other)
	want := backendtest.Get(t, b, HeaderName)
	damage := func(b *backendtest.Memory, how string) *backendtest.Memory {
		b = b.Clone()
		if how == "lost" {
			if err := b.Remove(ctx, HeaderName); err != nil {
				t.Fatal(err)
			}
		} else {
			b.Flip(HeaderName, 777)
		}
		return b
	}
	check := func(b *backendtest.Memory, want []byte) {
		t.Helper()
		if err := RestoreHeader(ctx, b, password); err != nil {
			t.Error(err)
		} else if got := backendtest.Get(t, b, HeaderName); !bytes.Equal(got, want) {
			t.Errorf("restored\n%s", got)
		}
	}
	check(b, want)
	check(damage(b, "lost"), want)
	check(damage(b, "flipped"), want)
	if err := RestoreHeader(ctx, damage(b, "lost"), []byte("wrong")); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("%v, want ErrWrongPassword", err)
	}

	// With the key of a failed attempt beside it, only data can tell.
	name := KeyPrefix + stranger.KeyID
	backendtest.Put(t, b, name, backendtest.Get(t, other, name), backend.Exclusive)
	if err := RestoreHeader(ctx, damage(b, "lost"), password); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
	for _, name := range []string{"claims/0000000000000001", "points/0123456789abcdef"} {
		c := b.Clone()
		sealed, err := r.Keys.Seal(name, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		backendtest.Put(t, c, name, sealed, backend.Exclusive)
		check(damage(c, "lost"), want)
	}
}

func TestEnvelope(t *testing.T) {
	keys := NewKeys([KeySize]byte{1, 2, 3})
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String().Draw(t, "name")
		plain := rapid.SliceOf(rapid.Byte()).Draw(t, "plain")
		sealed, err := keys.Seal(name, plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != len(plain)+EnvelopeOverhead {
			t.Fatalf("%d bytes became %d", len(plain), len(sealed))
		}
		got, err := keys.Open(name, sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%v", err)
		}
		bad := bytes.Clone(sealed)
		bit := rapid.IntRange(0, len(bad)*8-1).Draw(t, "bit")
		bad[bit/8] ^= 1 << (bit % 8)
		for what, err := range map[string]error{
			"flipped bit":  second(keys.Open(name, bad)),
			"other name":   second(keys.Open(name+"x", sealed)),
			"cut short":    second(keys.Open(name, sealed[:rapid.IntRange(0, len(sealed)-1).Draw(t, "cut")])),
			"other master": second(NewKeys([KeySize]byte{9}).Open(name, sealed)),
		} {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: %v, want ErrDamaged", what, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

func FuzzDocuments(f *testing.F) {
	b := backendtest.NewMemory()
	r := newRepoForTest(f, b)
	f.Add(backendtest.Get(f, b, HeaderName))
	f.Add(backendtest.Get(f, b, KeyPrefix+r.KeyID))
	f.Add([]byte("{}"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		// As it is, and with a right checksum, so that the parser is reached.
		for _, doc := range [][]byte{data, finish(bytes.Clone(data))} {
			if h, err := parseHeader(doc); err == nil {
				if err := h.check(); err != nil {
					t.Fatal(err)
				}
			}
			if f, err := parseKeyFile(KeyPrefix+r.KeyID, doc); err == nil && f.MemoryKiB <= 1024 {
				f.unwrap(password)
			}
		}
		r.Keys.Open("x", data)
	})
}

func BenchmarkDefaultKDF(b *testing.B) {
	for b.Loop() {
		DefaultKDF().derive(password, make([]byte, kdfSaltSize))
	}
}

func BenchmarkEnvelope(b *testing.B) {
	keys := NewKeys([KeySize]byte{1})
	for b.Loop() {
		sealed, err := keys.Seal("x", password)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := keys.Open("x", sealed); err != nil {
			b.Fatal(err)
		}
	}
}
