// Package overlay is the crash-safe, writable layer over an immutable image
// during a recovery. The format is specified in docs/overlay-format.md.
//
// # How it works
//
// Everything is in pages of 4 KiB. A write is copied into the group being
// filled, gets its final position in the log there, and is visible at once.
// SyncAsync has the sync stage take the group: it is written to a preallocated
// log file as one record, with one write, and made durable with one fdatasync,
// while the next group fills. A page's newest content is found by its state
// (absent: the base's; zeros; data) and, for data, by the index of the log, or
// else in the data file. When the log has grown to Options.LogBytes, a
// checkpoint moves its pages to the data files, in the order of the disk, and
// the log files are used again.
//
//	write ─▶ open group ─seal─▶ queue ─writeOut─▶ log file ─checkpoint─▶ data file
//	          memory            memory            index: active, frozen   state only
//
// Four goroutines serve an open overlay: the sync stage, one that writes full
// groups out ahead of syncs, one that prepares log files ahead of need, and one
// for checkpoints.
//
// # What callers may rely on
//
// A write whose sync was acknowledged survives kill -9 and power loss. One that
// was not is there or not, page by page. A failed write changes nothing beyond
// the pieces (up to 1 MiB) that came before the failure. A full disk is ENOSPC
// before the acknowledgement: the log's space is allocated before a write is
// visible. Full disks pass; a failed write or sync of the log does not
// (ErrFailed), for after it nobody knows what the device holds.
//
// Memory is bounded: 8 MiB of groups, 24 to 48 bytes of index for every page in
// the log, and 1 KiB of state for every 16 MiB of disk that was touched.
//
// # Invariants
//
//  1. Positions and record numbers ascend in the order of writing. A page is in
//     memory if and only if its position lies behind the start of the oldest
//     group in memory.
//  2. Before the first record goes to a log file, everything in the files before
//     it is durable (writeOut). Replay tells a torn tail from damage by it.
//  3. A log file that a process found when it opened the overlay is never
//     appended to: what lies behind its last record could be taken for what
//     follows. It is made durable before anything builds on it (replay.run).
//  4. A data file changes only where the frozen log, durable by then, has the
//     newer content (attempt).
//  5. A log file is used again only after the checkpoint that took it in is
//     durable, and after every reader that planned to read it has left the gate.
//
// # Lock order
//
//	ckptMu         one checkpoint at a time
//	  writeMu      one writer to the log at a time
//	    mu         the maps, the groups, the queues; never held during I/O
//	  dataFiles.mu making and syncing data files
//
// Callbacks of SyncAsync run without any lock.
package overlay
