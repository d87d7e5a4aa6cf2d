package datastore

import (
	"crypto/subtle"
	"encoding/binary"
	"sync"

	"github.com/zeebo/blake3"
)

// A file handle is 52 bytes, big-endian:
//
//	 0  1  version (1)
//	 1  3  zero
//	 4  8  inode of the session's directory (0 in the handle of the root)
//	12  8  generation of the session's directory
//	20  8  inode
//	28  8  generation
//	36 16  MAC: BLAKE3 keyed with Options.Key, over bytes 0–35 and the FSID
//
// It holds nothing that a restart, a rename or a new hard link changes, so a
// client may keep it for as long as the file exists. A generation tells apart
// the files that used an inode number one after the other (see identity).
const (
	handleLen     = 52
	handleBody    = 36
	handleVersion = 1
)

// MaxHandle is the longest handle that [Node.Handle] returns, in bytes.
const MaxHandle = handleLen

type handleID struct {
	sess, sessGen, ino, gen uint64
}

// sealer makes and checks handles. Safe for concurrent use.
type sealer struct {
	fsid    uint64
	hashers sync.Pool
}

func newSealer(key [32]byte, fsid uint64) *sealer {
	s := &sealer{fsid: fsid}
	s.hashers.New = func() any {
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic(err) // only for a key that is not 32 bytes
		}
		return h
	}
	return s
}

func (s *sealer) seal(id handleID) (fh [handleLen]byte) {
	fh[0] = handleVersion
	binary.BigEndian.PutUint64(fh[4:], id.sess)
	binary.BigEndian.PutUint64(fh[12:], id.sessGen)
	binary.BigEndian.PutUint64(fh[20:], id.ino)
	binary.BigEndian.PutUint64(fh[28:], id.gen)
	mac := s.mac(fh[:handleBody])
	copy(fh[handleBody:], mac[:])
	return fh
}

// open returns what fh names, or false if this server did not make it.
func (s *sealer) open(fh []byte) (handleID, bool) {
	if len(fh) != handleLen || fh[0] != handleVersion {
		return handleID{}, false
	}
	mac := s.mac(fh[:handleBody])
	if subtle.ConstantTimeCompare(mac[:], fh[handleBody:]) != 1 {
		return handleID{}, false
	}
	return handleID{
		sess:    binary.BigEndian.Uint64(fh[4:]),
		sessGen: binary.BigEndian.Uint64(fh[12:]),
		ino:     binary.BigEndian.Uint64(fh[20:]),
		gen:     binary.BigEndian.Uint64(fh[28:]),
	}, true
}

func (s *sealer) mac(body []byte) (mac [handleLen - handleBody]byte) {
	h := s.hashers.Get().(*blake3.Hasher)
	h.Reset()
	var fsid [8]byte
	binary.BigEndian.PutUint64(fsid[:], s.fsid)
	_, _ = h.Write(body) // a hash never fails
	_, _ = h.Write(fsid[:])
	_, _ = h.Digest().Read(mac[:])
	s.hashers.Put(h)
	return mac
}

// handleIno is the inode number that fh claims; fh has the right length.
func handleIno(fh []byte) uint64 { return binary.BigEndian.Uint64(fh[20:]) }
