package crypt_test

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/guestfstest"
)

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func openImage(t testing.TB, path string) disk.Image {
	t.Helper()
	img, err := disk.Open(t.Context(), path, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// compare reads a volume in all sorts of pieces.
func compare(t *testing.T, img disk.Image, want []byte) {
	t.Helper()
	if img.Size() != int64(len(want)) {
		t.Fatalf("the volume has %d bytes, want %d", img.Size(), len(want))
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 300 {
		off := rng.IntN(len(want))
		p := make([]byte, 1+rng.IntN(20_000))
		if i%3 == 0 {
			off, p = off&^511, make([]byte, 512*(1+rng.IntN(40)))
		}
		n, err := img.ReadAt(p, int64(off))
		rest := want[off:min(len(want), off+len(p))]
		if n != len(rest) || !bytes.Equal(p[:n], rest) || (err != nil) != (len(rest) < len(p)) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%d bytes at %d: %d, %v, or others than were written", len(p), off, n, err)
		}
	}
}

// TestLUKS1 reads what QEMU wrote, with every cipher that both know.
func TestLUKS1(t *testing.T) {
	guestfstest.NeedMount(t, "", "qemu-img")
	plain := noise(1<<20 + 4096)
	source := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(source, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	// QEMU takes seconds to find out how fast the machine is: three will do.
	for name, opts := range map[string]string{
		"default":        "",
		"cbc essiv sha1": ",cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
		"xts plain, 128": ",cipher-alg=aes-128,ivgen-alg=plain,hash-alg=sha512",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "luks")
			guestfstest.Run(t, "qemu-img", "convert", "-O", "luks", "--object", "secret,id=s,data=correct horse", "-o", "key-secret=s,iter-time=50"+opts, "-f", "raw", source, image)
			img := openImage(t, image)
			info, err := crypt.Identify(img)
			if err != nil || info.Kind != crypt.LUKS1 || len(info.UUID) != 36 || !strings.HasPrefix(info.Cipher, "aes-") {
				t.Errorf("%+v, %v", info, err)
			}
			if _, err := crypt.Unlock(t.Context(), img, crypt.Secret{Passphrase: []byte("wrong horse")}); !errors.Is(err, crypt.ErrKey) {
				t.Errorf("with a wrong passphrase: %v", err)
			}
			volume, err := crypt.Unlock(t.Context(), img, crypt.Secret{KeyFile: []byte("correct horse")})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, volume, plain)
			if err := volume.Close(); err != nil {
				t.Error(err)
			}
			if _, err := volume.ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
				t.Errorf("a read after Close: %v", err)
			}
		})
	}
}

// TestLUKS2 opens what cryptsetup formatted. Without device mapper it writes no
// data; that is encrypted here, with the key that cryptsetup says it is.
func TestLUKS2(t *testing.T) {
	guestfstest.NeedMount(t, "", "cryptsetup")
	for name, args := range map[string][]string{
		"argon2id":     {"--pbkdf", "argon2id", "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "2"},
		"argon2i":      {"--pbkdf", "argon2i", "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"},
		"pbkdf2":       {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha512"},
		"4K sectors":   {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "4096"},
		"another name": {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--label", "vault", "--key-size", "256"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := guestfstest.NewImage(t, 20<<20)
			keyFile := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(keyFile, []byte("correct horse"), 0o600); err != nil {
				t.Fatal(err)
			}
			guestfstest.Run(t, "cryptsetup", append(append([]string{"-q", "luksFormat", "--type", "luks2"}, args...), image, keyFile)...)
			plain := noise(4 << 20)
			encryptLUKS2(t, image, keyFile, plain)
			img := openImage(t, image)
			info, err := crypt.Identify(img)
			if err != nil || info.Kind != crypt.LUKS2 || len(info.UUID) != 36 || info.Cipher != "aes-xts-plain64" || name == "another name" && info.Label != "vault" {
				t.Errorf("%+v, %v", info, err)
			}
			if _, err := crypt.Unlock(t.Context(), img, crypt.Secret{Passphrase: []byte("wrong horse")}); !errors.Is(err, crypt.ErrKey) {
				t.Errorf("with a wrong passphrase: %v", err)
			}
			volume, err := crypt.Unlock(t.Context(), img, crypt.Secret{Passphrase: []byte("correct horse")})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, volume, plain)
			// The second header takes over where the first is damaged.
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, 2000), 4000); err != nil {
				t.Fatal(err)
			}
			if volume, err = crypt.Unlock(t.Context(), img, crypt.Secret{Passphrase: []byte("correct horse")}); err != nil {
				t.Fatalf("with a damaged header: %v", err)
			}
			compare(t, volume, plain)
		})
	}
}

// encryptLUKS2 writes plain where the data of a volume is.
func encryptLUKS2(t *testing.T, image, keyFile string, plain []byte) {
	t.Helper()
	dump := guestfstest.Run(t, "cryptsetup", "-q", "luksDump", "--dump-volume-key", "--key-file", keyFile, image)
	_, digits, found := strings.Cut(dump, "MK dump:")
	if !found {
		t.Fatalf("cryptsetup printed no key:\n%s", dump)
	}
	key, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
	if err != nil {
		t.Fatal(err)
	}
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	sector := 512
	if regexp.MustCompile(`sector:\s+4096`).MatchString(guestfstest.Run(t, "cryptsetup", "luksDump", image)) {
		sector = 4096
	}
	const offset = 16 << 20
	sealed := make([]byte, len(plain))
	for at := 0; at < len(plain); at += sector {
		c.Encrypt(sealed[at:at+sector], plain[at:at+sector], uint64(at/512))
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(sealed, offset); err != nil {
		t.Fatal(err)
	}
}

// TestHostileHeaders: what is written over headers costs nothing that has no
// bound.
func TestHostileHeaders(t *testing.T) {
	guestfstest.NeedMount(t, "", "cryptsetup")
	image := guestfstest.NewImage(t, 4<<20)
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	guestfstest.Run(t, "cryptsetup", "-q", "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", image, keyFile)
	pristine, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 5))
		data := bytes.Clone(pristine)
		for range 1 + rng.IntN(4) {
			at := 8 + rng.IntN(300)
			if at >= 164 && at < 168 || at >= 212 && at < 216 {
				continue // iterations: bounded, but slow
			}
			data[at] = byte(rng.Uint32())
		}
		img := disk.Bytes(t.Context(), data)
		if _, err := crypt.Identify(img); err != nil {
			continue
		}
		if _, err := crypt.Unlock(t.Context(), img, crypt.Secret{Passphrase: []byte("y")}); err == nil {
			t.Errorf("seed %d: opened with a wrong passphrase", seed)
		}
	}
}

func TestNothing(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 100), make([]byte, 1<<20)} {
		if _, err := crypt.Unlock(t.Context(), disk.Bytes(t.Context(), b), crypt.Secret{}); !errors.Is(err, guestfs.ErrNoFS) {
			t.Errorf("%d zeros: %v", len(b), err)
		}
	}
}
