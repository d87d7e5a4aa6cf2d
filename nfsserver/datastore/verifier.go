package datastore

import (
	"encoding/hex"

	"golang.org/x/sys/unix"
)

// The verifier of an exclusive create is an extended attribute; where the file
// system has none it is the time of last access and modification, as RFC 1813
// §3.3.8 suggests.
const verifierAttr = "user.lifeboat.verifier"

func (t *Tree) setVerifier(fd int, v [8]byte) error {
	if t.xattrs {
		return unix.Fsetxattr(fd, verifierAttr, []byte(hex.EncodeToString(v[:])), 0)
	}
	a, m := verifierTimes(v)
	return setTimes(fd, timespec{ns: a}, timespec{ns: m})
}

// verifierTimes keeps to 31 bits of seconds, which every file system can store.
func verifierTimes(v [8]byte) (atime, mtime int64) {
	sec := func(b []byte) int64 {
		return int64(uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3])) & 0x7fffffff
	}
	return sec(v[:4]) * 1e9, sec(v[4:]) * 1e9
}

// createdWith says whether the file was made by an exclusive create with the
// verifier v. The namespace lock is held.
func (n *Node) createdWith(v [8]byte) bool {
	if n.typ != TypeRegular {
		return false
	}
	f, err := n.acquireHeld()
	if err != nil {
		return false
	}
	defer n.release(f)
	if n.tree.xattrs {
		var buf [32]byte
		k, err := unix.Fgetxattr(f.fd, verifierAttr, buf[:])
		return err == nil && string(buf[:k]) == hex.EncodeToString(v[:])
	}
	st, err := n.tree.statAt(f.fd, "")
	a, m := verifierTimes(v)
	return err == nil && st.attr.Atime.Unix() == a && st.attr.Mtime.Unix() == m
}
