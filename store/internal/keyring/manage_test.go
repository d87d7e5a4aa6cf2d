package keyring

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

func TestTooManyKeys(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	for i := range MaxKeys - 1 {
		if _, err := r.AddPassword(t.Context(), b, []byte{'x', byte(i)}, KeyOptions{KDF: CheapKDF()}); err != nil {
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
	if _, err := Open(t.Context(), b, []byte("wrong")); !errors.Is(err, ErrDamaged) {
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
	id, err := r.AddPassword(t.Context(), b, []byte("another"), KeyOptions{KDF: CheapKDF()})
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

// TestOnePasswordOneKey: a password that has a key gets no second one, so that
// it opens nothing any more when its key is gone.
func TestOnePasswordOneKey(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	if _, err := r.AddPassword(t.Context(), b, password, KeyOptions{KDF: CheapKDF()}); !errors.Is(err, ErrKnownPassword) {
		t.Errorf("%v, want ErrKnownPassword", err)
	}
	if err := r.ChangePassword(t.Context(), b, password, KeyOptions{KDF: CheapKDF()}); !errors.Is(err, ErrKnownPassword) {
		t.Errorf("%v, want ErrKnownPassword", err)
	}
	if n, err := r.countKeys(t.Context(), b); n != 1 || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
}
