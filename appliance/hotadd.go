package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lifeboat/vsphere"
)

// Transport hotadd by vSphere's API: the disk of a snapshot is attached to the VM
// that Lifeboat runs in, is read as a block device, and is detached before the
// snapshot goes. It is attached as independent_nonpersistent: what this machine
// might write to it goes nowhere. Attaching is an intent of its own, begun after
// the snapshot's, so that reconciling detaches before it removes.

// IntentHotAdd: a disk that is attached to the VM that Lifeboat runs in, to be
// read. VM is that VM. Object: file.
const IntentHotAdd IntentKind = "hotadd"

// HotAddProxy is the VM that Lifeboat itself runs in.
type HotAddProxy struct {
	// UUID is its BIOS UUID; empty: as the firmware of this machine says, where
	// that is VMware's.
	UUID string
	// Devices is where disks appear by their IDs; empty: /dev/disk/by-id.
	Devices string
}

const (
	firmwareDir   = "/sys/class/dmi/id"
	devicesByID   = "/dev/disk/by-id"
	deviceTimeout = 30 * time.Second
	devicePoll    = 50 * time.Millisecond
)

// find is the VM that this is, among those of an inventory; nil: none of them.
func (p HotAddProxy) find(inv *vsphere.Inventory) *vsphere.VM {
	id := p.UUID
	if id == "" {
		vendor, _ := os.ReadFile(filepath.Join(firmwareDir, "sys_vendor"))
		serial, err := os.ReadFile(filepath.Join(firmwareDir, "product_uuid")) // root may read it
		if err != nil || !strings.HasPrefix(string(vendor), "VMware") {
			return nil
		}
		id = strings.TrimSpace(string(serial))
	}
	for i := range inv.VMs {
		if known := inv.VMs[i].BIOSUUID; strings.EqualFold(known, id) || strings.EqualFold(known, swapped(id)) {
			return &inv.VMs[i]
		}
	}
	return nil
}

// swapped is a UUID with its first three fields in the other byte order: SMBIOS
// before 2.6 and after disagree about it, and so do a host and its guests.
func swapped(id string) string {
	parts := strings.Split(id, "-")
	if len(parts) != 5 {
		return id
	}
	for i, part := range parts[:3] {
		var turned strings.Builder
		for at := len(part) - 2; at >= 0; at -= 2 {
			turned.WriteString(part[at : at+2])
		}
		parts[i] = turned.String()
	}
	return strings.Join(parts, "-")
}

// hotAdder attaches one disk for package vddk.
type hotAdder struct {
	state   *State
	client  *vsphere.Client
	proxy   *vsphere.VM
	disk    vsphere.Disk
	devices string
}

// Attach implements vddk.HotAdder.
func (h hotAdder) Attach(ctx context.Context) (device string, detach func(context.Context) error, err error) {
	link := filepath.Join(h.devices, "wwn-0x"+strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(h.disk.UUID)))
	if _, err := os.Lstat(link); err == nil || h.disk.UUID == "" {
		return "", nil, fmt.Errorf("this machine has a disk with the UUID %q already", h.disk.UUID)
	}
	in, err := h.state.begin(Intent{
		Kind: IntentHotAdd, VCenter: h.proxy.Identity.VCenter, VM: h.proxy.Identity, Object: map[string]string{"file": h.disk.File, "vm": h.proxy.Name},
	})
	if err != nil {
		return "", nil, err
	}
	key, err := h.client.AttachDisk(ctx, h.proxy.Ref, vsphere.AttachSpec{File: h.disk.File, Mode: "independent_nonpersistent"})
	if err != nil {
		return "", nil, errors.Join(err, h.takeBack(ctx, in, err))
	}
	detach = func(ctx context.Context) error {
		if err := h.client.DetachDisk(ctx, h.proxy.Ref, key, true); err != nil {
			return errors.Join(err, h.state.release(in.ID))
		}
		return h.state.done(in.ID)
	}
	if err := appears(ctx, link); err != nil {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return "", nil, errors.Join(err, detach(late))
	}
	return link, detach, nil
}

// takeBack makes sure that an attachment which is said to have failed is not there:
// the snapshot could not be removed under it. Where it may still come, the next
// command looks again.
func (h hotAdder) takeBack(ctx context.Context, in Intent, cause error) error {
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if _, err := h.state.undoHotAdd(late, h.client, in); err != nil || unknownOutcome(ctx, cause) {
		return errors.Join(err, h.state.release(in.ID))
	}
	return h.state.done(in.ID)
}

// appears waits for a device.
func appears(ctx context.Context, link string) error {
	for end := time.Now().Add(deviceTimeout); ; {
		if _, err := os.Stat(link); err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the disk was attached to this VM but did not appear as %s within %v: set disk.EnableUUID=TRUE in the advanced settings of this VM and start it again", link, deviceTimeout)
		}
		if !pause(ctx, devicePoll) {
			return context.Cause(ctx)
		}
	}
}

// undoHotAdd detaches what a process that died had attached to our own VM: a disk
// with the file of the intent, attached so that nothing is written to it. Its file
// is another VM's and stays.
func (s *State) undoHotAdd(ctx context.Context, c *vsphere.Client, in Intent) (string, error) {
	vm, err := c.FindVM(ctx, in.VM)
	if errors.Is(err, vsphere.ErrNotFound) {
		return "the VM that Lifeboat ran in is gone", nil
	}
	if err != nil {
		return "", err
	}
	file := in.Object["file"]
	i := slices.IndexFunc(vm.Disks, func(d vsphere.Disk) bool {
		return d.Mode == "independent_nonpersistent" && (d.File == file || d.BaseFile == file || d.ParentFile == file)
	})
	if i < 0 {
		return fmt.Sprintf("%s is not attached to %s", file, vm.Name), nil
	}
	if err := c.DetachDisk(ctx, vm.Ref, vm.Disks[i].Key, true); err != nil {
		return "", err
	}
	return fmt.Sprintf("detached %s from %s", file, vm.Name), nil
}
