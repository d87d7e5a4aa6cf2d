package esxsim

// nasVolume is a datastore on an NFS server.
type nasVolume struct{}

func (n *nasVolume) active() bool { return true }

// mount is one host's use of a NAS datastore.
type mount struct{}

type hostStorageCalls struct{ base }

type datastoreCalls struct{ base }

type browserCalls struct{ base }

type fileCalls struct{ base }

type folderCalls struct{ base }

type poolCalls struct{ base }
