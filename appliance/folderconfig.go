package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// Defaults of a VM whose configuration is not known.
const (
	defaultMemoryMB = 2048
	defaultCPUs     = 2
)

// Files that a point of a vSphere VM keeps besides its .vmx and .nvram.
const configFileVM = "config.json" // {"vm": vsphere.VM}

// savedConfig is what a point keeps of its VM.
type savedConfig struct {
	vm    *vsphere.VM // nil for a point of plain disk files
	vmx   []byte      // nil where none was kept
	nvram []byte      // likewise
}

// readConfig reads what a point keeps of its VM. A point without, one of plain
// disk files, is no error.
func readConfig(ctx context.Context, repo *store.Repository, pt *store.Point) (savedConfig, error) {
	var c savedConfig
	for _, f := range pt.Config {
		var into *[]byte
		switch {
		case f.Name == configFileVM:
			data, err := repo.Config(ctx, pt, f.Name)
			if err != nil {
				return c, err
			}
			var doc struct {
				VM *vsphere.VM `json:"vm"`
			}
			if err := json.Unmarshal(data, &doc); err != nil {
				return c, fmt.Errorf("restore point %s: its %s is not readable: %w", pt.ID, f.Name, err)
			}
			c.vm = doc.VM
			continue
		case strings.HasSuffix(f.Name, ".vmx"):
			into = &c.vmx
		case strings.HasSuffix(f.Name, ".nvram"):
			into = &c.nvram
		default:
			continue
		}
		data, err := repo.Config(ctx, pt, f.Name)
		if err != nil {
			return c, err
		}
		*into = data
	}
	return c, nil
}

// publishedConfig is how `publish` shows a VM: as it was backed up, under its
// own name, with its NICs unplugged.
func publishedConfig(session string) folderConfig {
	return func(ctx context.Context, repo *store.Repository, pt *store.Point, f *Folder, efi bool) (map[string][]byte, error) {
		files, _, err := vmFiles(ctx, repo, pt, f, efi, vmxChanges{
			Name: pt.VM, Session: session,
			Note: fmt.Sprintf("Restore point %s of %s, taken %s, published by Lifeboat in session %s. Its disks are on the backup appliance: move them with Storage vMotion to keep this VM.",
				pt.ID, pt.VM, pt.Time.UTC().Format("2006-01-02 15:04 UTC"), session),
		})
		return files, err
	}
}

// vmFiles are the files of a point's VM with the changes applied. The point's
// disks and networks are filled in here.
func vmFiles(ctx context.Context, repo *store.Repository, pt *store.Point, f *Folder, efi bool, change vmxChanges) (files map[string][]byte, notes []string, err error) {
	saved, err := readConfig(ctx, repo, pt)
	if err != nil {
		return nil, nil, err
	}
	if saved.vmx == nil {
		generic := vmx{name: change.Name, memoryMB: defaultMemoryMB, cpus: defaultCPUs, efi: efi, note: change.Note}
		for _, v := range f.Disks {
			generic.disks = append(generic.disks, v.Descriptor)
		}
		file, err := parseVMX(generic.encode())
		if err != nil {
			return nil, nil, err
		}
		generic.adapt(file, change)
		return map[string][]byte{f.VMX: file.encode()}, nil, nil
	}
	file, err := parseVMX(saved.vmx)
	if err != nil {
		return nil, nil, fmt.Errorf("restore point %s: %w", pt.ID, err)
	}
	files = map[string][]byte{}
	if saved.nvram != nil {
		change.NVRAM = strings.TrimSuffix(f.VMX, path.Ext(f.VMX)) + ".nvram"
		files[change.NVRAM] = saved.nvram
	}
	change.Disks = placesOf(saved.vm, f)
	change.Adapters = adaptersOf(saved.vm)
	notes = file.rewrite(change)
	files[f.VMX] = file.encode()
	return files, notes, nil
}

// placesOf says where the VM had each disk of the folder, by the disk's key.
func placesOf(vm *vsphere.VM, f *Folder) []placedDisk {
	disks := make([]placedDisk, 0, len(f.Disks))
	for _, v := range f.Disks {
		d := placedDisk{Descriptor: v.Descriptor}
		if vm != nil {
			for _, known := range vm.Disks {
				if int(known.Key) == v.Key {
					d.Place, d.Adapter = placeOf(known), known.Controller.Type
				}
			}
		}
		disks = append(disks, d)
	}
	return disks
}

// placeOf is a disk's place as a .vmx writes it, "" where it has no name for it.
func placeOf(d vsphere.Disk) string {
	var bus string
	switch d.Controller.Type {
	case "lsilogic", "lsisas1068", "buslogic", "pvscsi":
		bus = "scsi"
	case "nvme", "sata", "ide":
		bus = d.Controller.Type
	default:
		return ""
	}
	return fmt.Sprintf("%s%d:%d", bus, d.Controller.Bus, d.Unit)
}

// firstNIC is the device key of ethernet0 (the keys of NICs count from it).
const firstNIC = 4000

func adaptersOf(vm *vsphere.VM) map[int]string {
	if vm == nil {
		return nil
	}
	names := map[int]string{}
	for _, nic := range vm.NICs {
		names[int(nic.Key)-firstNIC] = nic.Network
	}
	return names
}

// pointConfig returns all files that a point keeps of its VM, by name.
func pointConfig(ctx context.Context, repo *store.Repository, pt *store.Point) (map[string][]byte, error) {
	if len(pt.Config) == 0 {
		return nil, nil
	}
	files := map[string][]byte{}
	for _, f := range pt.Config {
		data, err := repo.Config(ctx, pt, f.Name)
		if err != nil {
			return nil, err
		}
		files[f.Name] = data
	}
	return files, nil
}
