package vsphere

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Match finds VMs. A pattern is one of
//
//	web01, web*            the name, exactly or as a glob ([path.Match]); not case-sensitive, as in vSphere
//	prod/web/*             folder and name: "/" separates, "**" stands for any number of folders
//	folder:prod            all in a folder and the folders below it
//	tag:backup, tag:tier/gold, tag:tier/*
//	                       the tag's name, or category and name (LoadTags first)
//	pool:NAME, host:NAME, datastore:NAME
//	dc:NAME                all of a datacenter
//	UUID or UUID/UUID      the VM's instance UUID, or its Identity
//
// A name is tried as it is before it is taken for a glob, and "/" in it for a
// separator, so that VMs with such characters in their names can be said. The
// result is in the inventory's order and is empty when nothing fits.
func (inv *Inventory) Match(pattern string) ([]*VM, error) {
	if exact := inv.selectVMs(func(v *VM) bool { return fold(v.Name, pattern) }); len(exact) > 0 {
		return exact, nil
	}
	if kind, arg, ok := strings.Cut(pattern, ":"); ok {
		if f, err := inv.byKind(kind, arg); f != nil || err != nil {
			return inv.selectVMs(f), err
		}
	}
	byID := inv.selectVMs(func(v *VM) bool {
		return v.Identity.VM != "" && (strings.EqualFold(v.Identity.VM, pattern) || strings.EqualFold(v.Identity.String(), pattern))
	})
	if len(byID) > 0 {
		return byID, nil
	}
	if _, err := path.Match(strings.ToLower(pattern), ""); err != nil {
		return nil, fmt.Errorf("pattern %q: %w; *, ? and [a-z] may be used, and \\ before one of them to mean itself", pattern, err)
	}
	if !strings.Contains(pattern, "/") {
		return inv.selectVMs(func(v *VM) bool { return glob(pattern, v.Name) }), nil
	}
	return inv.selectVMs(func(v *VM) bool {
		return globPath(splitElements(pattern), v.elements(false)) || globPath(splitElements(pattern), v.elements(true))
	}), nil
}

// byKind is nil when there is no such kind of pattern.
func (inv *Inventory) byKind(kind, arg string) (func(*VM) bool, error) {
	switch kind {
	case "folder":
		want := strings.Trim(arg, "/")
		return func(v *VM) bool {
			return want == "" || inFolder(v.Folder, want) || inFolder(path.Join(v.Datacenter, v.Folder), want)
		}, nil
	case "tag":
		if !inv.tags {
			return nil, fmt.Errorf("pattern %q: tags are not known here; a vCenter keeps them, a stand-alone host does not", kind+":"+arg)
		}
		return func(v *VM) bool {
			return slices.ContainsFunc(v.Tags, func(tag string) bool { return matchTag(arg, tag) })
		}, nil
	case "pool":
		return func(v *VM) bool { return glob(arg, v.Pool) }, nil
	case "host":
		return func(v *VM) bool { return glob(arg, v.Host) }, nil
	case "dc":
		return func(v *VM) bool { return glob(arg, v.Datacenter) }, nil
	case "datastore":
		return func(v *VM) bool {
			return slices.ContainsFunc(v.Disks, func(d Disk) bool { return glob(arg, plainName(d.Datastore)) })
		}, nil
	}
	return nil, nil
}

func (inv *Inventory) selectVMs(f func(*VM) bool) []*VM {
	if f == nil {
		return nil
	}
	var out []*VM
	for i := range inv.VMs {
		if f(&inv.VMs[i]) {
			out = append(out, &inv.VMs[i])
		}
	}
	return out
}

// VM finds a VM by who it is.
func (inv *Inventory) VM(id Identity) (*VM, bool) {
	for i := range inv.VMs {
		if inv.VMs[i].Identity == id {
			return &inv.VMs[i], true
		}
	}
	return nil, false
}

// elements of a VM's path: its folders and its name, plain; with the
// datacenter's in front if wanted.
func (v *VM) elements(datacenter bool) []string {
	var out []string
	if datacenter && v.Datacenter != "" {
		out = splitElements(v.Datacenter)
	}
	if v.Folder != "" {
		out = append(out, splitElements(v.Folder)...)
	}
	return append(out, v.Name)
}

// splitElements splits a path whose elements have "/" escaped.
func splitElements(p string) []string {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	for i := range parts {
		parts[i] = plainName(parts[i])
	}
	return parts
}

func inFolder(folder, want string) bool {
	folder, want = strings.ToLower(folder), strings.ToLower(want)
	return folder == want || strings.HasPrefix(folder, want+"/")
}

// matchTag compares "category/name" with a pattern for both or for the name.
func matchTag(pattern, tag string) bool {
	if fold(pattern, tag) || glob(pattern, tag) {
		return true
	}
	_, name, _ := strings.Cut(tag, "/")
	return fold(pattern, name) || glob(pattern, name)
}

func fold(a, b string) bool { return strings.EqualFold(a, b) }

// glob is path.Match for names: "/" in a name is a character like any other.
func glob(pattern, name string) bool {
	const slash = "\x00"
	flat := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "/", slash)) }
	ok, err := path.Match(flat(pattern), flat(name))
	return ok && err == nil
}

// globPath matches element by element; "**" stands for any number of them.
// Work is bounded by len(pattern)·len(elements): where a "**" was satisfied
// once, an earlier one never needs to be tried further.
func globPath(pattern, elements []string) bool {
	p, e, star, mark := 0, 0, -1, 0
	for e < len(elements) {
		switch {
		case p < len(pattern) && pattern[p] == "**":
			star, mark = p, e
			p++
		case p < len(pattern) && (fold(pattern[p], elements[e]) || glob(pattern[p], elements[e])):
			p, e = p+1, e+1
		case star >= 0:
			mark++
			p, e = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}
