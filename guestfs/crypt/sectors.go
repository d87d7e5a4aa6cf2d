package crypt

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/crypto/xts"

	"lifeboat/disk"
)

// decryptor decrypts one sector in place. number counts sectors of 512 bytes,
// whatever the size of a sector. It is safe for concurrent use.
type decryptor func(sector []byte, number uint64)

// newDecryptor makes the decryptor for a cipher as dm-crypt names it:
// "aes-xts-plain64", "aes-cbc-essiv:sha256".
func newDecryptor(kind Kind, spec string, key []byte) (decryptor, error) {
	name, mode, _ := strings.Cut(spec, "-")
	if name != "aes" {
		return nil, unsupported(kind, "the cipher %s", spec)
	}
	chain, iv, _ := strings.Cut(mode, "-")
	switch {
	case chain == "xts" && (iv == "plain64" || iv == "plain"):
		c, err := xts.NewCipher(aes.NewCipher, key)
		if err != nil {
			return nil, corrupt(kind, "a key of %d bytes for %s", len(key), spec)
		}
		return func(b []byte, n uint64) {
			if iv == "plain" {
				n &= 1<<32 - 1
			}
			c.Decrypt(b, b, n)
		}, nil
	case chain == "cbc":
		return newCBC(kind, spec, iv, key)
	}
	return nil, unsupported(kind, "the cipher %s", spec)
}

func newCBC(kind Kind, spec, iv string, key []byte) (decryptor, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, corrupt(kind, "a key of %d bytes for %s", len(key), spec)
	}
	mask := uint64(1<<64 - 1)
	var essiv cipher.Block
	switch iv {
	case "plain64":
	case "plain":
		mask = 1<<32 - 1
	case "essiv:sha256":
		sum := sha256.Sum256(key)
		if essiv, err = aes.NewCipher(sum[:]); err != nil {
			return nil, err
		}
	default:
		return nil, unsupported(kind, "the cipher %s", spec)
	}
	return func(b []byte, n uint64) {
		var v [aes.BlockSize]byte
		binary.LittleEndian.PutUint64(v[:], n&mask)
		if essiv != nil {
			essiv.Encrypt(v[:], v[:])
		}
		cipher.NewCBCDecrypter(block, v[:]).CryptBlocks(b, b)
	}, nil
}

// run is a run of a decrypted volume.
type run struct {
	off, length int64 // in the volume
	at          int64 // on the disk
	zeros       bool  // reads as zeros
	number      uint64
}

// decrypted is a volume of which every sector is decrypted when it is read.
type decrypted struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	img    disk.Image
	sector int64
	size   int64
	runs   []run // ascending, without gaps, whole sectors
	open   decryptor
}

func newDecrypted(ctx context.Context, img disk.Image, sector int64, runs []run, open decryptor) *decrypted {
	ctx, cancel := context.WithCancelCause(ctx)
	last := runs[len(runs)-1]
	return &decrypted{ctx: ctx, cancel: cancel, img: img, sector: sector, size: last.off + last.length, runs: runs, open: open}
}

func (d *decrypted) Size() int64 { return d.size }

// Close ends reads and leaves the disk below open.
func (d *decrypted) Close() error {
	d.cancel(os.ErrClosed)
	return nil
}

func (d *decrypted) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, disk.ErrOutOfRange
	}
	var short error
	if off >= d.size || int64(len(p)) > d.size-off {
		short = io.EOF
		p = p[:max(0, min(int64(len(p)), d.size-off))]
	}
	done := 0
	for done < len(p) {
		if d.ctx.Err() != nil {
			return done, context.Cause(d.ctx)
		}
		n, err := d.some(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, short
}

// some reads the beginning of p: whole sectors where they are decrypted, in
// place, or a part of one.
func (d *decrypted) some(p []byte, off int64) (int, error) {
	r := d.at(off)
	p = p[:min(int64(len(p)), r.off+r.length-off)]
	if r.zeros {
		clear(p)
		return len(p), nil
	}
	within := off - r.off
	if skip := within % d.sector; skip != 0 || int64(len(p)) < d.sector {
		whole := make([]byte, d.sector)
		if err := d.sectors(whole, r, within-skip); err != nil {
			return 0, err
		}
		return copy(p, whole[skip:]), nil
	}
	p = p[:int64(len(p))/d.sector*d.sector]
	return len(p), d.sectors(p, r, within)
}

// sectors reads whole sectors of a run.
func (d *decrypted) sectors(p []byte, r run, within int64) error {
	n, err := d.img.ReadAt(p, r.at+within)
	if n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	number := r.number + uint64(within/disk.SectorSize)
	for len(p) > 0 {
		d.open(p[:d.sector:d.sector], number)
		p, number = p[d.sector:], number+uint64(d.sector/disk.SectorSize)
	}
	return nil
}

func (d *decrypted) at(off int64) run {
	for _, r := range d.runs { // there are a handful
		if off < r.off+r.length {
			return r
		}
	}
	return d.runs[len(d.runs)-1]
}
