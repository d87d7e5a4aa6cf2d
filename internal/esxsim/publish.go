package esxsim

import (
	"maps"
	"path"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// publish makes the registry's object say what the model says, and tells those
// who wait for changes. Only what differs is written, and nothing that was
// written is ever changed in place: readers may still hold it. Sim.mu is held.
func (s *Sim) publish(v *vm) {
	v.changed++
	config := s.configOf(v, func(d *vdisk) (*layer, string) { return d.shown(), d.track.id() })
	runtime := s.runtimeOf(v)
	guest := v.guestInfo()
	var snap *types.VirtualMachineSnapshotInfo
	var roots []ref
	if len(v.roots) > 0 {
		snap = &types.VirtualMachineSnapshotInfo{RootSnapshotList: treeOf(v.roots)}
		if v.current != nil {
			snap.CurrentSnapshot = &v.current.ref
		}
		for _, r := range v.roots {
			roots = append(roots, r.ref)
		}
	}
	changes := []types.PropertyChange{
		{Name: "name", Val: v.name},
		{Name: "config", Val: &config},
		{Name: "runtime", Val: runtime},
		{Name: "guest", Val: guest},
		{Name: "guestHeartbeatStatus", Val: v.heartbeat()},
		{Name: "resourcePool", Val: &v.pool},
		{Name: "datastore", Val: s.datastoresOf(v)},
		{Name: "network", Val: s.networksOf(v)},
		{Name: "layoutEx", Val: s.filesOf(v)},
		{Name: "capability", Val: v.capability()},
		{Name: "summary", Val: s.summaryOf(v, &config, runtime)},
	}
	if v.template {
		changes[5].Val = nil
	}
	if snap == nil {
		changes = append(changes, types.PropertyChange{Name: "snapshot", Val: nil}, types.PropertyChange{Name: "rootSnapshot", Val: nil})
	} else {
		changes = append(changes, types.PropertyChange{Name: "snapshot", Val: snap}, types.PropertyChange{Name: "rootSnapshot", Val: roots})
	}
	ctx := s.background()
	s.reg.WithLock(ctx, v.obj, func() {
		changes = slices.DeleteFunc(changes, func(c types.PropertyChange) bool { return same(&v.obj.VirtualMachine, c) })
		s.apply(ctx, v.obj, changes)
	})
}

// same tells whether an object says already what a change says.
func same(obj *mo.VirtualMachine, c types.PropertyChange) bool {
	var old any
	switch c.Name {
	case "name":
		old = obj.Name
	case "runtime":
		old = obj.Runtime
	case "guest":
		old = obj.Guest
	case "guestHeartbeatStatus":
		old = obj.GuestHeartbeatStatus
	case "resourcePool":
		old = obj.ResourcePool
	case "datastore":
		old = obj.Datastore
	case "network":
		old = obj.Network
	case "snapshot":
		if obj.Snapshot == nil {
			return c.Val == nil
		}
		old = obj.Snapshot
	case "rootSnapshot":
		if len(obj.RootSnapshot) == 0 {
			return c.Val == nil
		}
		old = obj.RootSnapshot
	default:
		return false
	}
	return reflect.DeepEqual(old, c.Val)
}

func (s *Sim) configOf(v *vm, disk func(*vdisk) (*layer, string)) types.VirtualMachineConfigInfo {
	files := types.VirtualMachineFileInfo{VmPathName: v.vmx.String()}
	files.SnapshotDirectory = v.vmx.dir().String() + "/"
	files.SuspendDirectory, files.LogDirectory = files.SnapshotDirectory, files.SnapshotDirectory
	extra := []types.BaseOptionValue{}
	for _, k := range slices.Sorted(maps.Keys(v.extra)) {
		extra = append(extra, &types.OptionValue{Key: k, Value: v.extra[k]})
	}
	if v.nvram != "" {
		extra = append(extra, &types.OptionValue{Key: "nvram", Value: v.nvram})
	}
	devices := slices.Clone(v.devices)
	for _, d := range v.disks {
		l, id := disk(d)
		devices = append(devices, v.diskDevice(d, l, id))
	}
	return types.VirtualMachineConfigInfo{
		ChangeVersion: strconv.Itoa(v.changed), Modified: time.Now(), CreateDate: &v.created,
		Name: v.name, GuestFullName: v.guestID, GuestId: v.guestID, Version: v.version,
		Uuid: v.uuid, InstanceUuid: v.instanceUUID, Template: v.template, Annotation: v.annotation,
		Files: files, Firmware: v.firmware,
		Tools: &types.ToolsConfigInfo{ToolsVersion: 12352},
		Hardware: types.VirtualHardware{
			NumCPU: v.cpus, NumCoresPerSocket: types.NewInt32(1), MemoryMB: v.memoryMB, Device: devices,
		},
		BootOptions:           &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(v.secureBoot)},
		ExtraConfig:           extra,
		ChangeTrackingEnabled: types.NewBool(v.cbt),
		LatencySensitivity:    &types.LatencySensitivity{Level: types.LatencySensitivitySensitivityLevelNormal},
	}
}

// diskDevice is how the API shows a disk.
func (v *vm) diskDevice(d *vdisk, l *layer, changeID string) *types.VirtualDisk {
	dev := &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{
			Key: d.key, ControllerKey: d.controller, UnitNumber: types.NewInt32(d.unit),
			DeviceInfo: &types.Description{Label: d.label, Summary: strconv.FormatInt(l.size/1024, 10) + " KB"},
		},
		CapacityInKB: l.size / 1024, CapacityInBytes: l.size,
		DiskObjectId: v.ref.Value + "-" + strconv.Itoa(int(d.key)),
	}
	if d.rdm != "" {
		dev.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: l.at.String(), Datastore: &l.at.ds.ref},
			LunUuid:                      "0200000000" + d.contentID, DeviceName: "vml.0200000000" + d.contentID,
			CompatibilityMode: d.rdm + "Mode", DiskMode: d.mode, Uuid: d.uuid, ContentId: d.contentID, ChangeId: changeID,
		}
		return dev
	}
	b := &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: l.at.String(), Datastore: &l.at.ds.ref},
		DiskMode:                     d.mode, ThinProvisioned: types.NewBool(!d.thick), Uuid: d.uuid, ContentId: d.contentID,
		ChangeId: changeID, Sharing: d.sharing, Split: types.NewBool(false), WriteThrough: types.NewBool(false),
		DigestEnabled: types.NewBool(false),
	}
	dev.Backing = b
	for p := l.parent; p != nil; p = p.parent {
		b.Parent = &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: p.at.String(), Datastore: &p.at.ds.ref},
			DiskMode:                     string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(!d.thick),
			Uuid: d.uuid, ContentId: d.contentID,
		}
		b = b.Parent
	}
	return dev
}

func (s *Sim) runtimeOf(v *vm) types.VirtualMachineRuntimeInfo {
	r := types.VirtualMachineRuntimeInfo{
		Host: &v.host.ref, ConnectionState: types.VirtualMachineConnectionStateConnected, PowerState: v.power,
		ConsolidationNeeded: v.consolidate, MaxCpuUsage: 2000, MaxMemoryUsage: v.memoryMB,
	}
	if v.host.gone {
		r.ConnectionState = types.VirtualMachineConnectionStateDisconnected
	}
	for _, d := range v.disks {
		if d.top.at.ds.nas != nil && !d.top.at.ds.nas.active() {
			r.ConnectionState = types.VirtualMachineConnectionStateInaccessible
		}
	}
	if v.power == types.VirtualMachinePowerStatePoweredOn {
		boot := v.booted
		r.BootTime = &boot
	}
	if v.question != nil {
		q := v.question.info
		r.Question = &q
	}
	return r
}

func (s *Sim) summaryOf(v *vm, config *types.VirtualMachineConfigInfo, runtime types.VirtualMachineRuntimeInfo) types.VirtualMachineSummary {
	guest := v.guestInfo()
	nics := int32(0)
	for _, d := range v.devices {
		if _, ok := d.(types.BaseVirtualEthernetCard); ok {
			nics++
		}
	}
	self := v.ref
	return types.VirtualMachineSummary{
		Vm: &self, Runtime: runtime,
		Guest: &types.VirtualMachineGuestSummary{
			GuestId: v.guestID, GuestFullName: v.guestID, ToolsStatus: guest.ToolsStatus,
			ToolsRunningStatus: guest.ToolsRunningStatus, IpAddress: guest.IpAddress,
		},
		Config: types.VirtualMachineConfigSummary{
			Name: v.name, Template: v.template, VmPathName: config.Files.VmPathName, MemorySizeMB: v.memoryMB,
			NumCpu: v.cpus, NumEthernetCards: nics, NumVirtualDisks: int32(len(v.disks)), Uuid: v.uuid,
			InstanceUuid: v.instanceUUID, GuestId: v.guestID, GuestFullName: v.guestID, Annotation: v.annotation,
		},
		Storage:       &types.VirtualMachineStorageSummary{Timestamp: time.Now()},
		QuickStats:    types.VirtualMachineQuickStats{GuestHeartbeatStatus: v.heartbeat()},
		OverallStatus: types.ManagedEntityStatusGreen,
	}
}

func (v *vm) capability() types.VirtualMachineCapability {
	return types.VirtualMachineCapability{
		SnapshotOperationsSupported: true, MultipleSnapshotsSupported: true, SnapshotConfigSupported: true,
		PoweredOffSnapshotsSupported: true, MemorySnapshotsSupported: true, RevertToSnapshotSupported: true,
		QuiescedSnapshotsSupported: true, DiskSharesSupported: true, LockSnapshotsSupported: true,
		ChangeTrackingSupported: v.hardware() >= 7, // [KB 1020128]
	}
}

// hardware is the number of the VM's hardware version.
func (v *vm) hardware() int { return hardwareNumber(v.version) }

func hardwareNumber(version string) int {
	if len(version) < 5 {
		return 0
	}
	n, _ := strconv.Atoi(version[4:]) // "vmx-19"; 0 is lower than any
	return n
}

func (s *Sim) datastoresOf(v *vm) []ref {
	list := []ref{v.vmx.ds.ref}
	for _, d := range v.disks {
		for l := d.top; l != nil; l = l.parent {
			if !slices.Contains(list, l.at.ds.ref) {
				list = append(list, l.at.ds.ref)
			}
		}
	}
	return list
}

func (s *Sim) networksOf(v *vm) []ref {
	list := []ref{}
	for _, d := range v.devices {
		nic, ok := d.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		if b, ok := nic.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok && b.Network != nil && !slices.Contains(list, *b.Network) {
			list = append(list, *b.Network)
		}
	}
	return list
}

func (s *Sim) filesOf(v *vm) *types.VirtualMachineFileLayoutEx {
	layout := &types.VirtualMachineFileLayoutEx{Timestamp: time.Now()}
	add := func(p dsPath, kind types.VirtualMachineFileLayoutExFileType, size int64) {
		layout.File = append(layout.File, types.VirtualMachineFileLayoutExFileInfo{
			Key: int32(len(layout.File)), Name: p.String(), Type: string(kind), Size: size,
			Accessible: types.NewBool(true),
		})
	}
	add(v.vmx, types.VirtualMachineFileLayoutExFileTypeConfig, 0)
	if v.nvram != "" {
		add(v.vmx.dir().join(v.nvram), types.VirtualMachineFileLayoutExFileTypeNvram, 0)
	}
	for _, d := range v.disks {
		for l := d.top; l != nil; l = l.parent {
			add(l.at, types.VirtualMachineFileLayoutExFileTypeDiskDescriptor, 0)
			add(l.at.dir().join(path.Base(l.data)), types.VirtualMachineFileLayoutExFileTypeDiskExtent, l.size)
		}
	}
	return layout
}

func treeOf(list []*snapshot) []types.VirtualMachineSnapshotTree {
	var tree []types.VirtualMachineSnapshotTree
	for _, n := range list {
		tree = append(tree, types.VirtualMachineSnapshotTree{
			Snapshot: n.ref, Vm: n.vm.ref, Name: n.name, Description: n.description, Id: n.id,
			CreateTime: n.created, State: n.power, Quiesced: n.quiesced, ChildSnapshotList: treeOf(n.children),
		})
	}
	return tree
}
