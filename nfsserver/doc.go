// Package nfsserver serves a [datastore.Tree] over NFSv3 (RFC 1813), with the
// MOUNT protocol and a portmapper, to ESXi hosts, Linux kernels and libnfs.
// docs/nfs.md tells how it treats each of them; this is how it is built.
//
// # One request
//
// A connection has one reader goroutine. It reads as much as there is, cuts the
// input into RPC records in place (recordReader), finds each record's procedure
// (Server.route) and lets it append its reply to the batch (conn.run). When no
// complete record is left it writes the batch, once. That is all that happens
// to NULL, to GETATTR, ACCESS and FSINFO of files that are known, to a READ of
// what is in memory and a WRITE that a disk takes at memory speed: no hand-over,
// no allocation, a fraction of a system call. The reader never waits for a disk,
// not even the one that holds the tree.
//
// What must wait becomes a task: its arguments are copied, a worker performs it
// (scheduler) and queues the reply on the connection's output (outbox), which a
// writer goroutine sends. A stable WRITE or a COMMIT waits for its disk instead
// of occupying anybody (an UNSTABLE WRITE for the data to leave this process):
// the reply is encoded at once, put aside, and queued by
// the callback of the disk's group sync; all the writes of one turn share one
// callback (syncGroup). Replies leave in the order in which they get ready. RPC
// allows that, and clients match them by xid.
//
// # Promises, and what keeps them
//
//   - GETATTR and NULL never wait behind slow reads: they are answered by the
//     reader (or by workers that READs and WRITEs cannot have), and the reader
//     queues what waits rather than wait itself, as long as Limits.Waiting and
//     half of Limits.MemoryPerConnection last.
//   - A connection's memory is bounded: requests that wait count against one
//     half of MemoryPerConnection, replies reserved or under way against the
//     other. At the first limit the reader stops reading, at the second tasks
//     stop starting; TCP tells the client.
//   - A slow client holds up nobody: workers and sync callbacks only queue, and
//     a write that makes no progress for Limits.WriteTimeout ends the connection.
//   - A stable reply goes out only after the sync that covers it returned nil:
//     the data are written before SyncAsync is called, and the reply is in
//     nobody's hands but the callback's until then.
//   - A bad record ends its connection, a panic its request, neither anything
//     else: lengths are compared with what is there before they are used, and
//     buffers grow only as bytes arrive.
//   - What clients see of a file (handle, fileid, fsid) is the tree's and
//     survives a restart. The write verifier belongs to one Server and so is a
//     new one after a restart, which makes clients send again what was UNSTABLE.
//   - What was UNSTABLE outlives the process all the same (disk.AsyncFlusher): not
//     every client sends it again.
//
// # Locks
//
// None of these is held while another is taken, except in the order given, and
// none while something waits for a disk or a socket:
//
//	Server.mu             connections, listeners
//	replyCache.mu         replies kept for retransmissions
//	outbox.mu             one connection's queue of replies
//	scheduler.mu          all queues of requests and all memory counts
//
// outbox.mu is given up before scheduler.mu is taken (outbox.drop).
package nfsserver
