package nfsserver

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// MOUNT version 3 (RFC 1813 §5). MNT and UMNT go to go-nfs (see relay.go);
// what it does not have, or has wrong, is answered here.

const (
	mountVersion = 3
	maxMountPath = 1024 // MNTPATHLEN
	maxMountName = 255  // MNTNAMLEN
	maxMounts    = 256  // remembered for DUMP
)

// mountstat3 (RFC 1813 §5.1.5) has the numbers of nfsstat3 where both have a
// name for something.
const (
	mountOK          = 0
	mountNoEnt       = 2
	mountIO          = 5
	mountAcces       = 13
	mountNotDir      = 20
	mountInval       = 22
	mountNameTooLong = 63
	mountServerFault = 10006
)

func mountProcedures() []procedure {
	return []procedure{
		{name: "NULL", inline: null, open: true},
		{name: "MNT", work: mountMNT, class: classMeta, open: true},
		{name: "DUMP", inline: mountDump, room: listRoom},
		{name: "UMNT", work: mountUMNT, class: classMeta},
		{name: "UMNTALL", inline: mountUMNTALL},
		{name: "EXPORT", inline: mountExport, room: listRoom},
	}
}

func null(_ *call, out []byte) ([]byte, verdict) { return out, done }

func listRoom(*call) int { return middleBuffer }

// mountDump lists the mounts that clients have announced and not taken back.
// That is a hint for people, and lost at a restart, as the RFC allows.
func mountDump(x *call, out []byte) ([]byte, verdict) {
	for _, m := range x.srv.mounts.list() {
		out = appendBool(out, true)
		out = appendOpaque(out, m.client.String())
		out = appendOpaque(out, m.path)
	}
	return appendBool(out, false), done
}

func mountUMNTALL(x *call, out []byte) ([]byte, verdict) {
	x.srv.mounts.removeAll(x.client)
	return out, done
}

// mountExport lists the one export and, as its groups, the networks that may
// mount it.
func mountExport(x *call, out []byte) ([]byte, verdict) {
	out = appendBool(out, true)
	out = appendOpaque(out, ExportPath)
	for _, p := range *x.srv.allow.Load() {
		out = appendBool(out, true)
		out = appendOpaque(out, p.String())
	}
	out = appendBool(out, false) // no more groups
	return appendBool(out, false), done
}

// exportRelative turns a mount path into a path below the tree's root, or says
// why there is no such path.
func exportRelative(dir string) (string, uint32) {
	if len(dir) > maxMountPath {
		return "", mountNameTooLong
	}
	if strings.ContainsRune(dir, 0) {
		return "", mountInval
	}
	parts := strings.FieldsFunc(dir, func(r rune) bool { return r == '/' })
	if !strings.HasPrefix(dir, "/") || len(parts) == 0 || "/"+parts[0] != ExportPath {
		return "", mountNoEnt
	}
	for _, p := range parts {
		if len(p) > maxName {
			return "", mountNameTooLong
		}
		if p == "." || p == ".." {
			return "", mountAcces
		}
	}
	return strings.Join(parts[1:], "/"), mountOK
}

// mountTable remembers who has mounted what, for DUMP; the oldest entry makes
// room for a new one.
type mountTable struct {
	mu     sync.Mutex
	mounts []mountEntry
}

type mountEntry struct {
	client netip.Addr
	path   string
}

func (t *mountTable) add(client netip.Addr, path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := mountEntry{client, path}
	if slices.Contains(t.mounts, e) {
		return
	}
	if len(t.mounts) >= maxMounts {
		t.mounts = slices.Delete(t.mounts, 0, 1)
	}
	t.mounts = append(t.mounts, e)
}

func (t *mountTable) remove(client netip.Addr, path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mounts = slices.DeleteFunc(t.mounts, func(e mountEntry) bool { return e == mountEntry{client, path} })
}

func (t *mountTable) removeAll(client netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mounts = slices.DeleteFunc(t.mounts, func(e mountEntry) bool { return e.client == client })
}

func (t *mountTable) list() []mountEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mounts)
}
