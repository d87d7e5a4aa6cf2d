package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"lifeboat/store"
	"lifeboat/vsphere"
)

// maxVMFile bounds a .vmx or .nvram, in bytes. Real ones have a few hundred KiB.
const maxVMFile = 4 << 20

// configuration is what is kept of the VM besides its disks: all that vSphere
// says of it, its .vmx and its NVRAM. What cannot be read is a warning: a VM can
// be made again without.
func (j *vmJob) configuration(ctx context.Context) map[string][]byte {
	vm := *j.at
	if vm.NVRAM == "" {
		vm.NVRAM = j.vm.NVRAM
	}
	// A snapshot knows nothing of the disks that are not in it.
	for _, d := range j.vm.Disks {
		if !slices.ContainsFunc(vm.Disks, func(k vsphere.Disk) bool { return k.Key == d.Key }) {
			vm.Disks = append(slices.Clip(vm.Disks), d)
		}
	}
	files := map[string][]byte{}
	doc, err := json.Marshal(map[string]any{"vm": vm})
	if err == nil && len(doc) > store.MaxConfigFile {
		vm.Config = nil
		doc, err = json.Marshal(map[string]any{"vm": vm})
	}
	if err != nil {
		j.warn("its configuration cannot be kept: %v", err)
	} else {
		files[configFileVM] = doc
	}
	for _, file := range []string{vm.VMX, vm.NVRAM} {
		if file == "" {
			continue
		}
		data, err := j.vmFile(ctx, file)
		switch {
		case err == nil:
			files[path.Base(file)] = data
		case ctx.Err() != nil:
			return files
		case file == vm.NVRAM && errors.Is(err, vsphere.ErrNotFound):
			// A VM with a BIOS that was never started has none.
		default:
			j.warn("%s is not in the backup: %v", file, err)
		}
	}
	return files
}

// vmFile reads a small file of the VM.
func (j *vmJob) vmFile(ctx context.Context, file string) ([]byte, error) {
	files := j.client.Files(j.vm.Datacenter)
	size, err := files.Size(ctx, file)
	if err != nil {
		return nil, err
	}
	if size > maxVMFile {
		return nil, fmt.Errorf("it has %d bytes, more than %d", size, maxVMFile)
	}
	data := make([]byte, size)
	if n, err := files.ReadRange(ctx, file, 0, data); n < len(data) {
		return nil, err
	}
	return data, nil
}

// seal puts what is known now that the disks were read into the point.
func (j *vmJob) seal(ctx context.Context, w *store.PointWriter, saved savedDisks) error {
	data, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	var transports []string
	for _, d := range j.res.Disks {
		if d.Transport != "" && !slices.Contains(transports, d.Transport) {
			transports = append(transports, d.Transport)
		}
	}
	slices.Sort(transports)
	j.res.Transport = strings.Join(transports, "+")
	return errors.Join(
		w.AddConfig(ctx, map[string][]byte{configFileDisks: data}),
		w.SetLabel("transport", j.res.Transport),
	)
}
