// Package vsphere is everything that Lifeboat says to vCenter Server and ESXi:
// one session per server, the inventory, snapshots and changed block tracking,
// files on datastores, leases, NAS mounts, registration, power, relocation,
// disks, and operations in guests.
//
// No type of the library underneath appears in what is exported here; a caller
// sees names, sizes and errors in words.
//
// # Identity
//
// A managed object reference ([Ref]) is a hint for the time of a session: the
// same VM has another one after it was unregistered and registered again. What
// is stored is an [Identity]: vCenter's instanceUuid and the VM's
// instanceUuid. FindVM turns one into the other.
//
// # Calls
//
// Every call is counted by its name. A call has a time limit
// (Options.CallTimeout) of its own besides the caller's context. When the
// server says that the session is gone, it is established again by one of the
// callers while the others wait, and the call is made again: the server has
// not carried out what it refused for want of a session. When the connection
// breaks, only calls that change nothing are repeated, because nobody knows
// whether the others were carried out.
//
// # Tasks
//
// What changes something on the other side is a task. It is waited for until
// it ends, through the loss of sessions and connections. When the caller's
// context ends, the task is asked to stop where vSphere can, and the function
// returns; the effect may still come, so callers write down their intent first
// and look afterwards.
//
// # Errors
//
// Faults become errors that say in a sentence what was refused and what to do
// next, and match one of the Err values with errors.Is. The table is in
// faults.go.
//
// # Concurrency
//
// A Client is safe for concurrent use. Lock order: there are three leaf locks
// (session, collectors, datastores), none of which is held while another is
// taken, and only the session's is held during a call (the login itself).
package vsphere
