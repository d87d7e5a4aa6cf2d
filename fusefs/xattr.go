package fusefs

import (
	"bytes"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lifeboat/guestfs"
)

// What Windows keeps of a file is shown in the extended attributes that ntfs-3g
// has for it, so that tools which know those find it.
const (
	descriptorName = "system.ntfs_acl"
	streamPrefix   = "user."
	// maxValue is the kernel's limit for the value of an attribute (XATTR_SIZE_MAX).
	maxValue = 64 << 10
)

// attrCache keeps the attributes of the file that was asked about last: whoever
// asks for one asks for the next.
type attrCache struct {
	mu    sync.Mutex
	inode guestfs.Inode
	list  []guestfs.Xattr
}

func (r *rawFS) attributes(cancel <-chan struct{}, node uint64) ([]guestfs.Xattr, fuse.Status) {
	inode := r.links.inode(node)
	if tree, _ := r.tree.TreeOf(inode); tree == 0 {
		return nil, fuse.OK
	}
	r.xattrs.mu.Lock()
	list, hit := r.xattrs.list, r.xattrs.inode == inode
	r.xattrs.mu.Unlock()
	if hit {
		return list, fuse.OK
	}
	ctx := newRequest(cancel)
	defer ctx.stop()
	list, err := r.tree.Xattrs(ctx, inode)
	if err == nil {
		list, err = r.windows(ctx, inode, list)
	}
	if err != nil {
		return nil, r.status("attributes", inode, err)
	}
	r.xattrs.mu.Lock()
	defer r.xattrs.mu.Unlock()
	r.xattrs.inode, r.xattrs.list = inode, list
	return list, fuse.OK
}

// windows adds small named streams and the security descriptor.
func (r *rawFS) windows(ctx request, inode guestfs.Inode, list []guestfs.Xattr) ([]guestfs.Xattr, error) {
	streams, err := r.tree.Streams(ctx, inode)
	if err != nil {
		return nil, err
	}
	for _, s := range streams {
		if s.Size > maxValue || s.Name == "" || strings.ContainsRune(s.Name, 0) {
			continue
		}
		img, err := r.tree.OpenStream(ctx, inode, s.Name)
		if err != nil {
			return nil, err
		}
		b := make([]byte, img.Size())
		n, err := img.ReadAt(b, 0)
		img.Close()
		if n < len(b) {
			return nil, err
		}
		list = append(list, guestfs.Xattr{Name: streamPrefix + s.Name, Value: b})
	}
	sd, err := r.tree.SecurityDescriptor(ctx, inode)
	if err != nil {
		return nil, err
	}
	if len(sd) > 0 && len(sd) <= maxValue {
		list = append(list, guestfs.Xattr{Name: descriptorName, Value: sd})
	}
	return list, nil
}

// GetXAttr implements fuse.RawFileSystem.
func (r *rawFS) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	list, status := r.attributes(cancel, h.NodeId)
	if status != fuse.OK {
		return 0, status
	}
	for _, x := range list {
		if x.Name == name {
			return give(dest, x.Value)
		}
	}
	return 0, fuse.Status(unix.ENODATA)
}

// ListXAttr implements fuse.RawFileSystem.
func (r *rawFS) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	list, status := r.attributes(cancel, h.NodeId)
	if status != fuse.OK {
		return 0, status
	}
	var b bytes.Buffer
	for _, x := range list {
		if len(x.Name) <= 255 && b.Len()+len(x.Name) < maxValue { // the kernel takes no more
			b.WriteString(x.Name)
			b.WriteByte(0)
		}
	}
	return give(dest, b.Bytes())
}

// give copies a value, or says how much room it takes.
func give(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}
