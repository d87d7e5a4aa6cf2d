// Package worker reads guests' file systems in a process of their own, which has
// nothing: no privileges, no files, no network, no other processes, little
// memory. What is on a guest's disk may have been made by an attacker; if a reader
// falls for it, what he has won is a process that can ask for blocks of the very
// disks that he controlled anyway.
//
//	the appliance                                   the worker
//	Session.FS(i) ── requests, replies (control) ──► inspect, readers
//	disks         ◄── reads of blocks (blocks) ───── remote disks
//
// The worker is the same program, started again (Main), with two sockets: on
// control it answers questions about volumes, directories and files; on blocks
// it asks for what is on the disks. The content of files goes neither way where
// it need not: the worker says where it stands (disk.Trace), and the appliance
// reads it there itself, at the speed of its own disks. Only what has to be
// decoded (compressed, encrypted, kept in an inode) passes through.
//
// # Trust
//
// Everything that comes from the worker is checked as if it came from a guest:
// lengths before they are allocated, places on disks before they are read, counts
// against limits. What it says of files may be a lie, as the guest's disk may be.
//
// # Failure
//
// A worker that dies, does not answer in time or takes too much memory costs
// the requests that it was working on: they fail with ErrWorker, which says why.
// The next request starts a new one, a few times; then the session has ended.
// Requests name what they mean by volume, inode and stream and not by something
// that the worker remembers, so that a new one can answer them as well.
//
// # Locks
//
//	Session.mu      which process is the current one; held while one is started
//	  process.mu    its pending calls
//	conn.mu         who writes to a socket; nothing is taken below it
//	image.mu        what is known of where a file stands; not held during reads
package worker
