package appliance

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// blocks is what a file occupies on its file system, in bytes (st_blocks counts
// units of 512, stat(2)).
func blocks(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// fileMark tells one file from every other that ever had or will have its name
// or its inode number.
type fileMark struct {
	Inode uint64 `json:"inode"`
	Born  int64  `json:"born"` // Unix nanoseconds, 0 where the file system does not keep it
}

// markOf returns the mark of the file at path, which is not followed if it is a
// link (statx(2)).
func markOf(path string) (fileMark, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return fileMark{}, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	m := fileMark{Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		m.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return m, nil
}
