package keyring

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/store/backend/backendtest"
)

func TestRecoveryKeyOpens(t *testing.T) {
	b := backendtest.NewMemory()
	r := newRepoForTest(t, b)
	key := NewRecoveryKey()
	if _, err := r.AddPassword(t.Context(), b, []byte(key), KeyOptions{KDF: CheapKDF()}); err != nil {
		t.Fatal(err)
	}
	sloppy := strings.NewReplacer("-", " ", "0", "o", "1", "l").Replace(strings.ToLower(key))
	for _, typed := range []string{key, sloppy, strings.ReplaceAll(key, "-", ""), " " + key + " "} {
		if _, err := Open(t.Context(), b, []byte(typed)); err != nil {
			t.Errorf("%v", err)
		}
	}
	wrong := NewRecoveryKey()
	if _, err := Open(t.Context(), b, []byte(wrong)); !errors.Is(err, ErrWrongPassword) || errors.Is(err, ErrRecoveryKey) {
		t.Errorf("another key: %v", err)
	}
	mistake := []byte(key)
	mistake[15] = other(mistake[15]) // in the third group
	_, err := Open(t.Context(), b, mistake)
	if !errors.Is(err, ErrWrongPassword) || !errors.Is(err, ErrRecoveryKey) || !strings.Contains(err.Error(), "group 3") {
		t.Errorf("a typing mistake: %v", err)
	}
	if strings.Contains(err.Error(), string(mistake[14:20])) {
		t.Errorf("the message repeats what was typed: %v", err)
	}
	if _, err := Open(t.Context(), b, []byte("a password of several words, none of them a group")); errors.Is(err, ErrRecoveryKey) {
		t.Errorf("an ordinary password: %v", err)
	}
}

func other(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

// TestRecoveryKeyTypos: every single wrong character, every two neighbours that
// are swapped and every two groups that are swapped are found, and the first
// two in the right group.
func TestRecoveryKeyTypos(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := NewRecoveryKey()
		if got, err := CheckRecoveryKey(key); err != nil || got != key {
			t.Fatalf("%q: %q, %v", key, got, err)
		}
		group, at := rapid.IntRange(0, 7).Draw(t, "group"), rapid.IntRange(0, 5).Draw(t, "at")
		typed := []byte(key)
		i := group*7 + at
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			typed[i] = rapid.SampledFrom([]byte(recoveryAlphabet)).Draw(t, "char")
		case 1:
			j := group*7 + min(at+1, 5)
			typed[i], typed[j] = typed[j], typed[i]
		case 2:
			groups := strings.Split(key, "-")
			with := rapid.IntRange(0, 7).Draw(t, "with")
			groups[group], groups[with] = groups[with], groups[group]
			if typed = []byte(strings.Join(groups, "-")); string(typed) != key {
				group = min(group, with)
			}
		}
		_, err := CheckRecoveryKey(string(typed))
		switch {
		case string(typed) == key:
			if err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, ErrRecoveryKey), !strings.Contains(err.Error(), fmt.Sprintf("group %d of", group+1)):
			t.Fatalf("%q typed as %q: %v", key, typed, err)
		}
	})
}

func TestRecoveryKeyOfAnotherShape(t *testing.T) {
	key := NewRecoveryKey()
	for _, typed := range []string{"", key[:len(key)-7], key + "-ABCDEF", key[:len(key)-1], "ü" + key[1:], "U" + key[1:], strings.Repeat("A", 48)} {
		if _, err := CheckRecoveryKey(typed); !errors.Is(err, ErrRecoveryKey) {
			t.Errorf("%q: %v", typed, err)
		}
	}
}

func FuzzCheckRecoveryKey(f *testing.F) {
	f.Add("K7QX2M-K7QX2M")
	f.Fuzz(func(t *testing.T, typed string) {
		if key, err := CheckRecoveryKey(typed); err == nil {
			if again, err := CheckRecoveryKey(key); err != nil || again != key {
				t.Fatalf("%q is read as %q, which is read as %q, %v", typed, key, again, err)
			}
		}
	})
}
