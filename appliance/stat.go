package appliance

import (
	"io/fs"
	"syscall"
)

// blocks is what a file occupies on its file system, in bytes (st_blocks counts
// units of 512, stat(2)).
func blocks(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// inode is a file's number on its file system, 0 where it has none.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
