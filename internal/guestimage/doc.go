// Package guestimage makes the guests that Lifeboat is shown and tested with:
// a small bootable Debian disk ([DebianDisk]), a tiny virtual machine with the
// Linux kernel's NFS client ([NFSClientVM]), and a way to talk to either over
// its serial line ([Shell]).
//
// Everything is made from Debian's own packages and kept in a cache directory.
// An artifact appears there under the hash of its recipe, by rename, when it
// is whole; whatever an interrupted build left is swept by the next one. Two
// builders of one artifact take turns through a lock file. Nothing is mounted
// and no loop device is used: file systems are filled by mke2fs, archives are
// written here.
package guestimage

// Progress is told in plain words what is being done. It may be nil.
type Progress func(step string)

func (p Progress) say(step string) {
	if p != nil {
		p(step)
	}
}
