package esxsim

import (
	"io/fs"
	"os"
	"syscall"

	"github.com/vmware/govmomi/vim25/types"
)

// guestFile is what ListFilesInGuest tells of a file.
func (s *Sim) guestFile(v *vm, root *os.Root, at string, fi fs.FileInfo, name string) types.GuestFileInfo {
	kind := types.GuestFileTypeFile
	when := fi.ModTime()
	common := types.GuestFileAttributes{ModificationTime: &when, AccessTime: &when}
	switch {
	case fi.IsDir():
		kind = types.GuestFileTypeDirectory
	case fi.Mode()&fs.ModeSymlink != 0:
		kind = types.GuestFileTypeSymlink
		common.SymlinkTarget, _ = root.Readlink(at) // "" says that it cannot be read
	}
	info := types.GuestFileInfo{Path: name, Type: string(kind), Size: fi.Size()}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if v.guest.windows {
		s.mu.Lock()
		defer s.mu.Unlock()
		attr := &types.GuestWindowsFileAttributes{}
		if ok {
			*attr = v.guest.attrs[st.Ino]
		}
		attr.GuestFileAttributes = common
		info.Attributes = attr
		return info
	}
	attr := &types.GuestPosixFileAttributes{GuestFileAttributes: common, Permissions: int64(fi.Mode().Perm())}
	if ok {
		owner, group := int32(st.Uid), int32(st.Gid)
		attr.OwnerId, attr.GroupId, attr.Permissions = &owner, &group, int64(st.Mode&0o7777)
	}
	info.Attributes = attr
	return info
}

// setGuestAttr gives a file what an upload or ChangeFileAttributesInGuest says. The
// owner comes first: a change of it takes set-user-ID away.
func (s *Sim) setGuestAttr(v *vm, root *os.Root, at string, attr types.BaseGuestFileAttributes) error {
	if attr == nil {
		return nil
	}
	switch a := attr.(type) {
	case *types.GuestPosixFileAttributes:
		if err := setPosix(root, at, a); err != nil {
			return err
		}
	case *types.GuestWindowsFileAttributes:
		fi, err := root.Lstat(at)
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			s.mu.Lock()
			v.guest.attrs[st.Ino] = *a
			s.mu.Unlock()
		}
	}
	a := attr.GetGuestFileAttributes()
	if a.ModificationTime == nil {
		return nil
	}
	access := *a.ModificationTime
	if a.AccessTime != nil {
		access = *a.AccessTime
	}
	return root.Chtimes(at, access, *a.ModificationTime)
}

func setPosix(root *os.Root, at string, a *types.GuestPosixFileAttributes) error {
	if a.OwnerId != nil || a.GroupId != nil {
		owner, group := int32(-1), int32(-1)
		if a.OwnerId != nil {
			owner = *a.OwnerId
		}
		if a.GroupId != nil {
			group = *a.GroupId
		}
		if err := root.Lchown(at, int(owner), int(group)); err != nil {
			return err
		}
	}
	if a.Permissions == 0 {
		return nil
	}
	mode := fs.FileMode(a.Permissions) & fs.ModePerm
	for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if a.Permissions&bit != 0 {
			mode |= flag
		}
	}
	return root.Chmod(at, mode)
}
