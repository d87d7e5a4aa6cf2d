package datastore

import "slices"

// Cred is who asks: the AUTH_SYS credentials of a call (RFC 5531 §14).
// The zero value is the superuser, who may do everything: there is no root
// squash, as ESXi needs it.
type Cred struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups
}

func (c *Cred) in(gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// Access is a set of rights in the form of the host's mode bits.
type Access uint32

// The rights. On a directory Read lists, Write changes entries and Exec looks
// names up.
const (
	Exec  Access = 1
	Write Access = 2
	Read  Access = 4
)

// allowed is the part of want that c has on a file with the attributes a, as
// POSIX defines file access permissions: of owner, group and others the first
// that fits decides.
func allowed(c *Cred, a *Attr, want Access) Access {
	if c.UID == 0 {
		return want
	}
	mode := Access(a.Mode)
	switch {
	case c.UID == a.UID:
		mode >>= 6
	case c.in(a.GID):
		mode >>= 3
	}
	return want & mode & 7
}

func check(c *Cred, a *Attr, want Access) error {
	if allowed(c, a, want) != want {
		return ErrAcces
	}
	return nil
}

// Allowed is the part of want that c has: what the ACCESS procedure asks.
// The tree's root grants no Write to anybody.
func (n *Node) Allowed(c Cred, want Access) (Access, error) {
	a, err := n.Attr()
	if err != nil {
		return 0, err
	}
	if n.sess == nil {
		want &^= Write
	}
	return allowed(&c, &a, want), nil
}

// Permit says with ErrAcces that c may not read (or write) the content of the
// file. The owner always may: NFS has no open, so a file that was opened and
// then closed to its owner by chmod must go on working (RFC 1813 §4.4).
func (n *Node) Permit(c *Cred, want Access) error {
	if c.UID == 0 {
		return nil
	}
	a, err := n.Attr()
	if err != nil {
		return err
	}
	if c.UID == a.UID || allowed(c, &a, want) == want {
		return nil
	}
	return fail("access", "", ErrAcces)
}
