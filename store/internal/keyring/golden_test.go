package keyring

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// The golden files pin the format: what was written once is read for ever, and
// the same input gives the same bytes. They change only with FormatVersion.
var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is now written\n%s\nwant\n%s", name, got, want)
	}
}

func TestGolden(t *testing.T) {
	var master [KeySize]byte
	for i := range master {
		master[i] = byte(i)
	}
	keys := NewKeys(master)
	created := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	h := newHeader("000102030405060708090a0b0c0d0e0f", created, DefaultBlockSize)
	headerDoc, err := h.encode(keys)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "lifeboat.json", headerDoc)

	f := keyFile{
		ID: "0011223344556677", Repository: h.ID, Created: created, Label: "golden",
		KDF: KDF{MemoryKiB: 64, Passes: 2, Lanes: 2}, Salt: bytes.Repeat([]byte{7}, kdfSaltSize),
	}
	keyDoc, err := wrap(f, password, master, headerDoc)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "key.json", keyDoc)

	var salt [envelopeSalt]byte
	copy(salt[:], "golden")
	sealed, err := keys.sealWith(salt, "points/0123456789abcdef", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "envelope.hex", []byte(hex.EncodeToString(sealed)+"\n"))

	b := backendtest.NewMemory()
	backendtest.Put(t, b, HeaderName, headerDoc, backend.Exclusive)
	backendtest.Put(t, b, f.name(), keyDoc, backend.Exclusive)
	r, err := Open(t.Context(), b, password)
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != h.ID || *r.Keys != *keys || r.BlockSize != DefaultBlockSize || !r.Created.Equal(created) {
		t.Errorf("%+v", r)
	}
	identity := r.Keys.IdentityKey()
	golden(t, "identity-key.hex", []byte(hex.EncodeToString(identity[:])+"\n"))
}
