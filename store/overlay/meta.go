package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"lifeboat/internal/vfs"
)

// The meta file is written once, when the overlay is made: what it is for. The
// layout is in docs/overlay-format.md.
const (
	metaName      = "meta"
	metaMagic     = "LBovmet1"
	metaFixed     = 8 + 4 + 4 + 8 + 16 + 2
	maxBaseID     = 4096
	formatVersion = 1
)

// meta is what the meta file says.
type meta struct {
	size   int64 // of the disk, bytes
	id     [16]byte
	baseID string
}

// key is the part of the overlay's ID that its records carry.
func (m *meta) key() uint64 { return binary.LittleEndian.Uint64(m.id[:]) }

func (m *meta) encode() []byte {
	le := binary.LittleEndian
	p := append(make([]byte, 0, metaFixed+len(m.baseID)+4), metaMagic...)
	p = le.AppendUint32(p, formatVersion)
	p = le.AppendUint32(p, pageSize)
	p = le.AppendUint64(p, uint64(m.size))
	p = append(p, m.id[:]...)
	p = le.AppendUint16(p, uint16(len(m.baseID)))
	p = append(p, m.baseID...)
	return le.AppendUint32(p, checksum(p))
}

var (
	errShort    = errors.New("it is too short")
	errMagic    = errors.New("its first bytes are not those of such a file")
	errChecksum = errors.New("its checksum does not match")
	errFields   = errors.New("its fields contradict each other")
)

// parseMeta is the reverse of encode. It fails with ErrVersion or one of the
// errors above.
func parseMeta(p []byte) (m meta, err error) {
	le := binary.LittleEndian
	switch {
	case len(p) < metaFixed+4:
		return m, errShort
	case string(p[:8]) != metaMagic:
		return m, errMagic
	case checksum(p[:len(p)-4]) != le.Uint32(p[len(p)-4:]):
		return m, errChecksum
	case le.Uint32(p[8:]) != formatVersion || le.Uint32(p[12:]) != pageSize:
		return m, fmt.Errorf("%w: version %d with pages of %d bytes; use the version of Lifeboat that made it",
			ErrVersion, le.Uint32(p[8:]), le.Uint32(p[12:]))
	case metaFixed+int(le.Uint16(p[40:]))+4 != len(p):
		return m, errFields
	}
	m.size = int64(le.Uint64(p[16:]))
	copy(m.id[:], p[24:])
	m.baseID = string(p[metaFixed : len(p)-4])
	if m.size < 0 || m.size > maxSize {
		return m, errFields
	}
	return m, nil
}

// readMeta reads the meta file in dir; it fails with fs.ErrNotExist where there
// is none.
func readMeta(fsys vfs.FS, dir string) (meta, error) {
	name := filepath.Join(dir, metaName)
	p, err := readSmall(fsys, name, metaFixed+maxBaseID+4)
	if err != nil {
		return meta{}, err
	}
	m, err := parseMeta(p)
	if err != nil && !errors.Is(err, ErrVersion) {
		return m, &DamageError{File: name, Reason: err.Error()}
	}
	if err != nil {
		return m, fmt.Errorf("overlay in %s: %w", dir, err)
	}
	return m, nil
}

// readSmall reads a whole file of at most limit bytes.
func readSmall(fsys vfs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, &DamageError{File: name, Reason: fmt.Sprintf("it has %d bytes, more than such a file can have", size)}
	}
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return p, nil
}

const (
	tempSuffix = ".tmp"
	fileMode   = fs.FileMode(0o600)
	dirMode    = fs.FileMode(0o700)
)

// writeAtomic makes the file name in dir, durably and whole or not at all:
// temporary file, sync, rename, sync of the directory.
func writeAtomic(fsys vfs.FS, dir, name string, write func(io.Writer) error) error {
	final := filepath.Join(dir, name)
	f, err := fsys.OpenFile(final+tempSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	err = errors.Join(write(io.NewOffsetWriter(f, 0)), f.Sync(), f.Close())
	if err == nil {
		err = fsys.Rename(final+tempSuffix, final)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(final+tempSuffix))
	}
	return fsys.SyncDir(dir)
}
