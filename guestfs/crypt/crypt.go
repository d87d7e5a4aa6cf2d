// Package crypt opens encrypted volumes of guests: LUKS 1 and 2, and BitLocker.
//
// The key comes from the user at that moment and stays in memory. A header is as
// untrusted as everything on a guest's disk: what it says of costs (passes,
// memory) is bounded before it is believed, and what this package does not know
// it refuses by name.
package crypt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Kind is a kind of encryption, as package probe calls it.
type Kind string

const (
	LUKS1     Kind = "luks1"
	LUKS2     Kind = "luks2"
	BitLocker Kind = "bitlocker"
)

// ErrKey says that the key given is not one of the volume's.
var ErrKey = errors.New("this key does not open the volume")

// Secret is what may open a volume; any of its fields may be empty. A volume
// tries all that fit its kind.
type Secret struct {
	// Passphrase is for LUKS the bytes as they were typed, for BitLocker the
	// password in UTF-8.
	Passphrase []byte
	// KeyFile is the content of a key file: of LUKS's, or of BitLocker's start-up
	// key (.BEK).
	KeyFile []byte
	// RecoveryKey is BitLocker's: 48 digits in groups of six.
	RecoveryKey string
}

// Info describes an encrypted volume, before it is opened.
type Info struct {
	Kind   Kind
	UUID   string
	Label  string
	Cipher string // "aes-xts-plain64", 256-bit key: as the field writes it
	// Needs lists what can open it: "passphrase", "key file", "recovery key",
	// "TPM" (which cannot be had from a backup), "nothing" (its protection is
	// suspended).
	Needs []string
}

// Bounds of what a header may cost.
const (
	// maxKDFMemory is the most memory that deriving a key may take, in KiB:
	// cryptsetup's own limit.
	maxKDFMemory = 1 << 20
	// maxKDFPasses bounds Argon2's passes, maxIterations PBKDF2's: a hundred times
	// what a machine takes a second for.
	maxKDFPasses  = 1 << 12
	maxIterations = 1 << 28
	maxStripes    = 1 << 15
	maxKeyBytes   = 512
)

// Identify tells what kind of encryption is on img; guestfs.ErrNoFS where there
// is none.
func Identify(img disk.Image) (Info, error) {
	for _, try := range []func(disk.Image) (Info, error){identifyLUKS1, identifyLUKS2, identifyBitLocker} {
		info, err := try(img)
		if !errors.Is(err, guestfs.ErrNoFS) {
			return info, err
		}
	}
	return Info{}, guestfs.ErrNoFS
}

// Unlock opens the volume on img, which must stay open as long as the disk that
// is returned. ErrKey when nothing in the secret fits.
func Unlock(ctx context.Context, img disk.Image, secret Secret) (disk.Image, error) {
	info, err := Identify(img)
	if err != nil {
		return nil, err
	}
	switch info.Kind {
	case LUKS1:
		return unlockLUKS1(ctx, img, secret)
	case LUKS2:
		return unlockLUKS2(ctx, img, secret)
	}
	return unlockBitLocker(ctx, img, secret)
}

func unsupported(kind Kind, format string, args ...any) error {
	return &guestfs.UnsupportedError{FS: string(kind), What: fmt.Sprintf(format, args...)}
}

func corrupt(kind Kind, format string, args ...any) error {
	return guestfs.Corruptf(string(kind), format, args...)
}

// read reads a part of a header: guestfs.ErrNoFS where the volume ends before it.
func read(img disk.Image, off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	m, err := img.ReadAt(b, off)
	if m == n {
		return b, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil, guestfs.ErrNoFS
	}
	return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
}
