// Package esxsim simulates a vCenter with ESXi hosts (or one stand-alone host)
// well enough to prove Lifeboat wrong: virtual disks are real files whose
// changes are tracked, datastores are really mounted over NFS, virtual machines
// really boot, and Storage vMotion moves real bytes while they run.
//
// Sessions, the property collector, views, searches, tags and networks are
// govmomi's simulator. What that one leaves out or only pretends (disks,
// snapshots, changed areas, NAS datastores, registration, power, relocation,
// leases, guest operations, privileges) is done here, and a behaviour that
// stands for ESXi's says where it was taken from:
//
//   - [API] vSphere Web Services API reference, by the method's name
//   - [KB n] VMware's (now Broadcom's) knowledge base
//   - [VDDK] Virtual Disk Development Kit programming guide
//   - [RFC 1813] NFSv3
//   - [ATC'11] Mashtizadeh et al., The Design and Evolution of Live Storage
//     Migration in VMware ESX
//   - [field] what users of the real thing report; not documented
//
// # How a call gets here
//
// Every SOAP call passes [Sim.handle], the registry's Handler: it counts,
// delays, injects faults, checks privileges, and, when one of the dispatchers
// (vmCalls, folderCalls, hostStorageCalls, …) has the method, turns the call's
// receiver into that dispatcher. The request keeps the object's own reference.
// Nothing in govmomi's map is replaced and nothing is shared between two Sims.
//
// # Locks
//
// The model (vm, disk, snapshot, datastore) is ours; govmomi's objects are a
// projection of it that publish writes. Order of locks:
//
//	Sim.mu            the model
//	  vdisk.gate      read: guest I/O; write: freezing, thawing, switching
//	    layer.mu      which grains a delta has
//	  the registry's lock of one object, in publish
//	Sim.sessions.mu, injector.mu   leaves
//
// Guest I/O takes vdisk.gate and never Sim.mu. A task owns its VM (vm.busy) for
// as long as it runs and holds Sim.mu only in moments.
package esxsim
