package crypt_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf16"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/guestfstest"
)

// There is nothing on Linux that makes a BitLocker volume, so the test does, the
// way Windows 7 and later do; that the volume is one libbde confirms, which reads
// it without our help.
const (
	bitlockerPassword = "correct horse Größe"
	bitlockerRecovery = "011000-022000-033000-044000-055000-066000-077000-088000"
)

var fixedCopies = [3]int64{0x100000, 0x200000, 0x300000}

const headerCopy = 0x180000

type bitlockerWriter struct {
	method uint16
	fvek   []byte // 64 bytes
	vmk    []byte
	le     binary.ByteOrder
}

func entry(kind, value uint16, data ...[]byte) []byte {
	all := bytes.Join(data, nil)
	b := binary.LittleEndian.AppendUint16(nil, uint16(8+len(all)))
	b = binary.LittleEndian.AppendUint16(b, kind)
	b = binary.LittleEndian.AppendUint16(b, value)
	return append(binary.LittleEndian.AppendUint16(b, 1), all...)
}

// seal is AES-CCM over a key, as an entry's data.
func seal(key, secret []byte, method uint32, counter byte) []byte {
	nonce := append([]byte("\x00\x11\x22\x33\x44\x55\xd0\x01"), counter, 0, 0, 0)
	plain := binary.LittleEndian.AppendUint16(nil, uint16(12+len(secret)))
	plain = binary.LittleEndian.AppendUint16(plain, 1)
	plain = binary.LittleEndian.AppendUint32(plain, 1)
	plain = append(binary.LittleEndian.AppendUint32(plain, method), secret...)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	counterBlock := func(n int) []byte {
		b := append([]byte{2}, nonce...)
		b = append(b, byte(n>>16), byte(n>>8), byte(n))
		block.Encrypt(b, b)
		return b
	}
	mac := append([]byte{(16-2)/2<<3 | 2}, nonce...)
	mac = append(mac, byte(len(plain)>>16), byte(len(plain)>>8), byte(len(plain)))
	block.Encrypt(mac, mac)
	sealed := bytes.Clone(plain)
	for i := range plain {
		mac[i%16] ^= plain[i]
		if i%16 == 15 || i == len(plain)-1 {
			block.Encrypt(mac, mac)
		}
		sealed[i] ^= counterBlock(1 + i/16)[i%16]
	}
	for i, k := range counterBlock(0) {
		mac[i] ^= k
	}
	return bytes.Join([][]byte{nonce, mac, sealed}, nil)
}

// stretchedKeys are the keys made so far: a million rounds are not for every test.
var stretchedKeys sync.Map

func stretched(initial [32]byte, salt []byte) []byte {
	name := string(initial[:]) + string(salt)
	if key, ok := stretchedKeys.Load(name); ok {
		return key.([]byte)
	}
	key := stretchedAnew(initial, salt)
	stretchedKeys.Store(name, key)
	return key
}

func stretchedAnew(initial [32]byte, salt []byte) []byte {
	var state [88]byte
	copy(state[32:], initial[:])
	copy(state[64:], salt)
	for i := range uint64(1 << 20) {
		binary.LittleEndian.PutUint64(state[80:], i)
		sum := sha256.Sum256(state[:])
		copy(state[:32], sum[:])
	}
	return bytes.Clone(state[:32])
}

// master is a volume master key, protected by a stretched key.
func (w *bitlockerWriter) master(protection uint16, initial [32]byte, seed byte) []byte {
	salt := bytes.Repeat([]byte{seed}, 16)
	key := stretched(initial, salt)
	head := make([]byte, 28)
	copy(head, bytes.Repeat([]byte{seed + 1}, 16))
	binary.LittleEndian.PutUint16(head[26:], protection)
	method := binary.LittleEndian.AppendUint32(nil, 0x1000)
	return entry(2, 8, head,
		entry(0, 3, method, salt, entry(0, 5, seal(w.vmk, key, 0x2000, 7))), // the key, so that it can be shown again
		entry(0, 5, seal(key, w.vmk, 0x2003, seed)))
}

func (w *bitlockerWriter) metadata(size int64, masters ...[]byte) []byte {
	entries := bytes.Join(masters, nil)
	secret := w.fvek
	switch w.method {
	case 0x8002:
		secret = secret[:16]
	case 0x8003, 0x8004:
		secret = secret[:32]
	}
	le := binary.LittleEndian
	entries = append(entries, entry(3, 5, seal(w.vmk, secret, uint32(w.method), 9))...)
	name := binary.LittleEndian.AppendUint16(nil, 0)
	var description []byte
	for _, u := range utf16.Encode([]rune("HOST C: 21/11/2026")) {
		description = le.AppendUint16(description, u)
	}
	entries = append(entries, entry(7, 2, description, name)...)
	entries = append(entries, entry(15, 15, le.AppendUint64(nil, headerCopy), le.AppendUint64(nil, 8192))...)
	b := make([]byte, 64+48+len(entries))
	copy(b, "-FVE-FS-")
	length := (len(b) + 15) / 16
	le.PutUint16(b[8:], uint16(length))
	le.PutUint16(b[10:], 2)
	le.PutUint16(b[12:], 4)
	le.PutUint16(b[14:], 4)
	le.PutUint64(b[16:], uint64(size))
	le.PutUint32(b[28:], 16)
	for i, at := range fixedCopies {
		le.PutUint64(b[32+8*i:], uint64(at))
	}
	le.PutUint64(b[56:], headerCopy)
	le.PutUint32(b[64:], uint32(48+len(entries)))
	le.PutUint32(b[68:], 1)
	le.PutUint32(b[72:], 48)
	le.PutUint32(b[76:], uint32(48+len(entries)))
	copy(b[80:], "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10")
	le.PutUint32(b[96:], 20)
	le.PutUint16(b[100:], w.method)
	copy(b[112:], entries)
	b = append(b, make([]byte, length*16-len(b))...)
	sum := crc32.ChecksumIEEE(b)
	b = le.AppendUint16(b, 8)
	b = le.AppendUint16(b, 1)
	return le.AppendUint32(b, sum)
}

// encrypt seals one sector.
func (w *bitlockerWriter) encrypt(b []byte, number int64) {
	switch w.method {
	case 0x8004, 0x8005:
		key := w.fvek
		if w.method == 0x8004 {
			key = key[:32]
		}
		c, err := xts.NewCipher(aes.NewCipher, key)
		if err != nil {
			panic(err)
		}
		c.Encrypt(b, b, uint64(number))
		return
	}
	size := 16
	if w.method&1 == 1 {
		size = 32
	}
	block, _ := aes.NewCipher(w.fvek[:size])
	at := make([]byte, 16)
	binary.LittleEndian.PutUint64(at, uint64(number*512))
	iv := make([]byte, 16)
	block.Encrypt(iv, at)
	if w.method <= 0x8001 {
		tweak, _ := aes.NewCipher(w.fvek[32 : 32+size])
		k := make([]byte, 32)
		tweak.Encrypt(k, at)
		at[15] = 0x80
		tweak.Encrypt(k[16:], at)
		for i := range b {
			b[i] ^= k[i%32]
		}
		elephant(b)
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(b, b)
}

// elephant applies diffusers A and B.
func elephant(b []byte) {
	n := len(b) / 4
	d := make([]uint32, n)
	for i := range d {
		d[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	rotl := func(v uint32, s int) uint32 { return v<<s | v>>(32-s) }
	for range 5 {
		for i := n - 1; i >= 0; i-- {
			d[i] -= d[(i+n-2)%n] ^ rotl(d[(i+n-5)%n], [4]int{9, 0, 13, 0}[i%4])
		}
	}
	for range 3 {
		for i := n - 1; i >= 0; i-- {
			d[i] -= d[(i+2)%n] ^ rotl(d[(i+5)%n], [4]int{0, 10, 0, 25}[i%4])
		}
	}
	for i, v := range d {
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
}

// bitlocker encrypts a volume and returns it, and how it reads when it is
// opened: where the metadata stands there are zeros.
func bitlocker(method uint16, plain []byte) (sealed, want []byte) {
	w := &bitlockerWriter{method: method, fvek: noise(64), vmk: noise(32), le: binary.LittleEndian}
	want = bytes.Clone(plain)
	for _, at := range fixedCopies {
		clear(want[at : at+64<<10])
	}
	clear(want[headerCopy : headerCopy+8192])
	sealed = bytes.Clone(want)
	for n := int64(0); n < int64(len(sealed)); n += 512 {
		w.encrypt(sealed[n:n+512], n/512)
	}
	for n := int64(0); n < 8192; n += 512 {
		b := sealed[headerCopy+n : headerCopy+n+512]
		copy(b, want[n:n+512])
		w.encrypt(b, (headerCopy+n)/512)
	}
	var pass []byte
	for _, u := range utf16.Encode([]rune(bitlockerPassword)) {
		pass = binary.LittleEndian.AppendUint16(pass, u)
	}
	sum := sha256.Sum256(pass)
	var recovery []byte
	for g := range strings.SplitSeq(bitlockerRecovery, "-") {
		var v int
		fmt.Sscan(strings.TrimLeft(g, "0"), &v)
		recovery = binary.LittleEndian.AppendUint16(recovery, uint16(v/11))
	}
	b := w.metadata(int64(len(plain)), w.master(0x2000, sha256.Sum256(sum[:]), 0x31), w.master(0x0800, sha256.Sum256(recovery), 0x51))
	for _, at := range fixedCopies {
		copy(sealed[at:], make([]byte, 64<<10))
		copy(sealed[at:], b)
	}
	boot := make([]byte, 512)
	copy(boot, "\xeb\x58\x90-FVE-FS-\x00\x02\x08\x00\x00\x00\x00\x00\x00\x00\xf8")
	copy(boot[160:], "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01")
	for i, at := range fixedCopies {
		binary.LittleEndian.PutUint64(boot[176+8*i:], uint64(at))
	}
	copy(boot[510:], "\x55\xaa")
	copy(sealed, boot)
	return sealed, want
}

// volume is an NTFS with something on it, so that libbde knows what it sees.
func volume(t *testing.T) []byte {
	t.Helper()
	guestfstest.NeedMount(t, "", "mkfs.ntfs")
	image := guestfstest.NewImage(t, 8<<20)
	guestfstest.Run(t, "mkfs.ntfs", "-q", "-F", "-s", "512", "-p", "0", "-H", "16", "-S", "63", image)
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[5<<20:], noise(2<<20))
	return b
}

func TestBitLocker(t *testing.T) {
	plain := volume(t)
	bitlocker(0x8004, plain) // the keys are made once
	for _, method := range []uint16{0x8000, 0x8001, 0x8002, 0x8003, 0x8004, 0x8005} {
		t.Run(fmt.Sprintf("%#x", method), func(t *testing.T) {
			t.Parallel()
			sealed, want := bitlocker(method, plain)
			img := disk.Bytes(t.Context(), sealed)
			info, err := crypt.Identify(img)
			if err != nil || info.Kind != crypt.BitLocker || info.Label != "HOST C: 21/11/2026" || strings.Join(info.Needs, ",") != "passphrase,recovery key" {
				t.Errorf("%+v, %v", info, err)
			}
			for name, secret := range map[string]crypt.Secret{
				"password":     {Passphrase: []byte(bitlockerPassword)},
				"recovery key": {RecoveryKey: strings.ReplaceAll(bitlockerRecovery, "-", " ")},
			} {
				if name == "recovery key" && method != 0x8004 {
					continue // it is the same but for the key
				}
				opened, err := crypt.Unlock(t.Context(), img, secret)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				compare(t, opened, want)
			}
			peer(t, sealed, want, method)
		})
	}
}

// peer has another program open the same volume: libbde, or dislocker where
// Debian's libbde is too old.
func peer(t *testing.T, sealed, want []byte, method uint16) {
	t.Helper()
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(image, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := filepath.Join(dir, "bde1")
	if method == 0x8005 {
		guestfstest.NeedMount(t, "", "dislocker-file")
		guestfstest.Run(t, "dislocker-file", "-q", "-V", image, "-p"+bitlockerRecovery, "--", opened)
	} else {
		guestfstest.NeedMount(t, "", "bdemount")
		guestfstest.Run(t, "bdemount", "-p", bitlockerPassword, image, dir)
		defer func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}()
	}
	got, err := os.ReadFile(opened)
	if err != nil || len(got) < len(want) {
		t.Fatalf("the peer shows %d bytes of %d, %v", len(got), len(want), err)
	}
	for off := 0; off < len(want); off += 512 {
		if !bytes.Equal(got[off:off+512], want[off:off+512]) {
			t.Fatalf("the peer reads other bytes at %d", off)
		}
	}
}

func TestBitLockerKeys(t *testing.T) {
	plain := volume(t)
	sealed, _ := bitlocker(0x8004, plain)
	img := disk.Bytes(t.Context(), sealed)
	if _, err := crypt.Unlock(t.Context(), img, crypt.Secret{Passphrase: []byte("wrong")}); !errors.Is(err, crypt.ErrKey) {
		t.Errorf("a wrong password: %v", err)
	}
	for _, key := range []string{"1", strings.Replace(bitlockerRecovery, "022000", "022001", 1), strings.Replace(bitlockerRecovery, "-088000", "", 1)} {
		if _, err := crypt.Unlock(t.Context(), img, crypt.Secret{RecoveryKey: key}); !errors.Is(err, crypt.ErrRecoveryKey) {
			t.Errorf("the recovery key %s: %v", key, err)
		}
	}
	// One damaged copy of the metadata is replaced by the next.
	sealed[fixedCopies[0]+100] ^= 1
	if _, err := crypt.Unlock(t.Context(), img, crypt.Secret{RecoveryKey: bitlockerRecovery}); err != nil {
		t.Errorf("with a damaged copy: %v", err)
	}
	for _, at := range fixedCopies {
		sealed[at] = 0
	}
	if _, err := crypt.Identify(img); err == nil {
		t.Error("without metadata: no error")
	}
}

func TestHostileBitLocker(t *testing.T) {
	sealed, _ := bitlocker(0x8004, make([]byte, 4<<20))
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 5))
		var saved [3][1024]byte
		for i, at := range fixedCopies {
			copy(saved[i][:], sealed[at:])
			length := int64(binary.LittleEndian.Uint16(sealed[at+8:])) * 16
			for range 1 + rng.IntN(5) {
				sealed[at+rng.Int64N(700)] = byte(rng.Uint32())
			}
			binary.LittleEndian.PutUint32(sealed[at+length+4:], crc32.ChecksumIEEE(sealed[at:at+length]))
		}
		if _, err := crypt.Unlock(t.Context(), disk.Bytes(t.Context(), sealed), crypt.Secret{KeyFile: noise(200)}); err == nil {
			t.Errorf("seed %d: opened without a key", seed)
		}
		for i, at := range fixedCopies {
			copy(sealed[at:], saved[i][:])
		}
	}
}
