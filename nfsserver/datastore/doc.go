// Package datastore is the tree that the NFS server exports: a real host
// directory (the root), below it one directory per recovery session, below that
// the folders of virtual machines with real, writable files around their
// virtual disks.
//
// # Two kinds of file
//
// An ordinary file is a file of the host. A virtual disk is a file of the host
// too, its placeholder, to which a disk.Device is bound (Bind). Names, links,
// modes and owners are the host file system's business for both kinds; only
// size, space used, content and the time of the last write of a virtual disk
// come from its Device. The binding follows the inode: through renames, under
// several names, until the last name is removed.
//
// # Handles
//
// A file handle holds inode numbers and generations, and is authenticated, so
// it survives what a client may not notice (a restart of the server, a rename)
// and cannot be made up. Known files are found by inode number in a map. A
// handle from before a restart is found by listing the session once; after that
// the map is kept up by the operations themselves, because clients change names
// only through us. Changes made on the host, behind our back, are found when a
// file is not where it was, and seen in attributes after a second at most.
//
// # No way out
//
// The host is never given a path with more than one component. A file is opened
// by name relative to a descriptor of its directory, with O_NOFOLLOW, and used
// only when the inode that was opened is the one that was meant. So a symbolic
// link that a client plants, or swaps in while we work, leads nowhere.
//
// # Durability
//
// RFC 1813 wants what CREATE, REMOVE, RENAME, LINK, MKDIR, SYMLINK and SETATTR
// have done on stable storage before the reply (§4.8). All of them return only
// then; concurrent changes of one directory share its fsync (groupSync).
//
// # Limits
//
// Names have 1 to 255 bytes. A session has at most Options.MaxFiles files made
// by clients; each that has been seen takes about 400 bytes of memory until it
// is removed or the session is detached. At most Options.MaxOpen descriptors are
// kept, the most recently used; more are open only while more are in use. A
// virtual disk keeps its size. Sessions do not share files. Devices, sockets and
// FIFOs cannot be made.
//
// The host's file system should have births of inodes or file handles, extended
// attributes and unnamed files (ext4, XFS, Btrfs and new tmpfs have all);
// without them everything works, with the weaker promises that are described
// where they are used.
//
// # Locks, in the order in which they are taken
//
//	Tree.admin               Attach, Detach, Bind, Close
//	  Node.changing          content and attributes of one file
//	    virtualDisk.settling its times on their way to the placeholder
//	      session.indexing   one listing of the session at a time
//	        session.ns       names: written to change them, read to use them
//	          virtualDisk.mu times of a virtual disk
//	            Tree.mu      the maps, and the links of all nodes
//	            fdCache.mu   the open descriptors
//
//	Who waits in a groupSync, for an fsync, holds none of these.
//
// Nothing waits for a disk while it holds Tree.mu or fdCache.mu, so Resolve and
// Attr of a known file never do; nothing waits for an fsync while it holds
// session.ns.
package datastore
