package vsphere

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// describeVM turns what was retrieved of a VM into a VM. Whatever was not
// retrieved, or may not be read, stays zero.
func (c *Client) describeVM(t *tree, o *mo.VirtualMachine) VM {
	_, dc := t.datacenter(o.Self)
	v := VM{
		Ref: refOf(o.Self), Name: plainName(o.Name), Datacenter: dc,
		Folder: parentPath(t.below(o.Self, t.isTopFolder)),
		Pool:   t.name(o.ResourcePool), PoolRef: refOfPtr(o.ResourcePool),
		Host: t.name(o.Runtime.Host), HostRef: refOfPtr(o.Runtime.Host),
		FolderRef:    refOfPtr(o.Parent),
		Power:        powerState(o.Runtime.PowerState),
		Connection:   string(o.Runtime.ConnectionState),
		CBTSupported: o.Capability.ChangeTrackingSupported,
	}
	v.ConsolidationNeeded = o.Runtime.ConsolidationNeeded
	if o.Guest != nil {
		v.ToolsRunning = o.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
		v.GuestIP = o.Guest.IpAddress
	}
	if o.Snapshot != nil {
		v.CurrentSnapshot = refOfPtr(o.Snapshot.CurrentSnapshot)
		v.Snapshots = snapshots(nil, o.Snapshot.RootSnapshotList, "", 0)
	}
	if o.Config != nil {
		c.describeConfig(&v, t, o.Config)
		return v
	}
	// Of a VM whose files are out of reach vSphere knows no more than this.
	if v.VMX = o.Summary.Config.VmPathName; o.Summary.Config.InstanceUuid != "" {
		v.Identity = Identity{VCenter: c.about.InstanceUUID, VM: o.Summary.Config.InstanceUuid}
	}
	return v
}

// describeConfig fills in what a configuration says: a VM's or a snapshot's.
func (c *Client) describeConfig(v *VM, t *tree, o *types.VirtualMachineConfigInfo) {
	v.Identity = Identity{VCenter: c.about.InstanceUUID, VM: o.InstanceUuid}
	v.BIOSUUID, v.Template, v.GuestID, v.Version = o.Uuid, o.Template, o.GuestId, o.Version
	v.Firmware, v.Annotation, v.VMX = o.Firmware, o.Annotation, o.Files.VmPathName
	v.CBT, v.Encrypted = isTrue(o.ChangeTrackingEnabled), o.KeyId != nil
	if v.Firmware == "" {
		v.Firmware = string(types.GuestOsDescriptorFirmwareTypeBios)
	}
	if o.BootOptions != nil {
		v.SecureBoot = isTrue(o.BootOptions.EfiSecureBootEnabled)
	}
	v.MemoryMB, v.CPUs = int64(o.Hardware.MemoryMB), o.Hardware.NumCPU
	for _, e := range o.ExtraConfig {
		if e == nil || e.GetOptionValue() == nil {
			continue
		}
		if v.ExtraConfig == nil {
			v.ExtraConfig = make(map[string]string, len(o.ExtraConfig))
		}
		value := e.GetOptionValue()
		v.ExtraConfig[value.Key] = fmt.Sprint(value.Value)
	}
	if name := v.ExtraConfig["nvram"]; name != "" && v.VMX != "" {
		v.NVRAM = besides(v.VMX, name)
	}
	describeDevices(v, t, o.Hardware.Device)
}

// besides is a file in the folder of another; a name with a datastore stays.
func besides(dsPath, name string) string {
	ds, p, ok := SplitPath(dsPath)
	if _, _, full := SplitPath(name); full || !ok || strings.HasPrefix(name, "/") {
		return name
	}
	return JoinPath(ds, path.Join(path.Dir(p), name))
}

func describeDevices(v *VM, t *tree, devices []types.BaseVirtualDevice) {
	controllers := map[int32]Controller{}
	for _, d := range devices {
		if ctl, ok := d.(types.BaseVirtualController); ok {
			g := ctl.GetVirtualController()
			controllers[g.Key] = Controller{Key: g.Key, Bus: g.BusNumber, Type: controllerType(d)}
		}
	}
	for _, d := range devices {
		switch o := d.(type) {
		case *types.VirtualDisk:
			disk := describeDisk(o)
			disk.Controller = controllers[o.ControllerKey]
			v.Disks = append(v.Disks, disk)
		case *types.VirtualTPM:
			v.TPM = true
		case types.BaseVirtualEthernetCard:
			v.NICs = append(v.NICs, describeNIC(t, o.GetVirtualEthernetCard(), d))
		}
	}
}

// controllerType names a controller as .vmx files and descriptors do.
func controllerType(d types.BaseVirtualDevice) string {
	switch d.(type) {
	case *types.ParaVirtualSCSIController:
		return "pvscsi"
	case *types.VirtualLsiLogicSASController:
		return "lsisas1068"
	case *types.VirtualBusLogicController:
		return "buslogic"
	case *types.VirtualLsiLogicController, *types.VirtualSCSIController:
		return "lsilogic"
	case *types.VirtualNVMEController:
		return "nvme"
	case *types.VirtualAHCIController, *types.VirtualSATAController:
		return "sata"
	case *types.VirtualIDEController:
		return "ide"
	}
	return ""
}

func describeDisk(o *types.VirtualDisk) Disk {
	d := Disk{Key: o.Key, Size: o.CapacityInBytes}
	if d.Size == 0 { // hosts before 5.5
		d.Size = o.CapacityInKB << 10
	}
	if o.UnitNumber != nil {
		d.Unit = *o.UnitNumber
	}
	if info := o.DeviceInfo; info != nil {
		d.Label = info.GetDescription().Label
	}
	switch b := o.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		d.UUID, d.File, d.ChangeID, d.ContentID, d.Mode = b.Uuid, b.FileName, b.ChangeId, b.ContentId, b.DiskMode
		d.Thin, d.Shared = isTrue(b.ThinProvisioned), isShared(b.Sharing)
		for p := b.Parent; p != nil; p = p.Parent {
			d.chain(p.FileName)
		}
	case *types.VirtualDiskSeSparseBackingInfo:
		d.UUID, d.File, d.ChangeID, d.ContentID, d.Mode, d.Thin = b.Uuid, b.FileName, b.ChangeId, b.ContentId, b.DiskMode, true
		for p := b.Parent; p != nil; p = p.Parent {
			d.chain(p.FileName)
		}
	case *types.VirtualDiskSparseVer2BackingInfo:
		d.UUID, d.File, d.ChangeID, d.ContentID, d.Mode, d.Thin = b.Uuid, b.FileName, b.ChangeId, b.ContentId, b.DiskMode, true
		for p := b.Parent; p != nil; p = p.Parent {
			d.chain(p.FileName)
		}
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		d.UUID, d.File, d.ChangeID, d.ContentID, d.Mode = b.Uuid, b.FileName, b.ChangeId, b.ContentId, b.DiskMode
		d.RDM, d.Shared = true, isShared(b.Sharing)
		d.Physical = b.CompatibilityMode == string(types.VirtualDiskCompatibilityModePhysicalMode)
		for p := b.Parent; p != nil; p = p.Parent {
			d.chain(p.FileName)
		}
	case *types.VirtualDiskRawDiskVer2BackingInfo:
		d.RDM, d.Physical, d.UUID, d.File = true, true, b.Uuid, b.DescriptorFileName
	case *types.VirtualDiskLocalPMemBackingInfo:
		d.UUID, d.File, d.ContentID, d.Mode = b.Uuid, b.FileName, b.ContentId, b.DiskMode
	}
	if d.BaseFile == "" {
		d.BaseFile = d.File
	}
	d.Datastore, _, _ = SplitPath(d.File)
	d.Independent = strings.HasPrefix(d.Mode, "independent")
	return d
}

// chain notes the next file below: the first is the parent, the last the base.
func (d *Disk) chain(file string) {
	if d.ParentFile == "" {
		d.ParentFile = file
	}
	d.BaseFile = file
}

func isShared(sharing string) bool {
	return sharing == string(types.VirtualDiskSharingSharingMultiWriter)
}

func describeNIC(t *tree, o *types.VirtualEthernetCard, d types.BaseVirtualDevice) NIC {
	n := NIC{Key: o.Key, MAC: o.MacAddress, Type: nicType(d)}
	if o.DeviceInfo != nil {
		n.Label = o.DeviceInfo.GetDescription().Label
	}
	if o.Connectable != nil {
		n.Connected = o.Connectable.Connected || o.Connectable.StartConnected
	}
	switch b := o.Backing.(type) {
	case types.BaseVirtualDeviceDeviceBackingInfo: // a network of the host's own
		n.Network = b.GetVirtualDeviceDeviceBackingInfo().DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		n.Network = t.name(&types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey})
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		n.Network = t.opaqueNetwork(b.OpaqueNetworkId)
	}
	return n
}

func (t *tree) opaqueNetwork(id string) string {
	for _, o := range t.objects {
		n, ok := o.(*mo.OpaqueNetwork)
		if !ok {
			continue
		}
		if s, ok := n.Summary.(*types.OpaqueNetworkSummary); ok && s.OpaqueNetworkId == id {
			return plainName(n.Name)
		}
	}
	return ""
}

func nicType(d types.BaseVirtualDevice) string {
	switch d.(type) {
	case *types.VirtualVmxnet3, *types.VirtualVmxnet3Vrdma:
		return "vmxnet3"
	case *types.VirtualE1000e:
		return "e1000e"
	case *types.VirtualE1000:
		return "e1000"
	case *types.VirtualPCNet32:
		return "pcnet32"
	case *types.VirtualVmxnet2, *types.VirtualVmxnet:
		return "vmxnet2"
	case *types.VirtualSriovEthernetCard:
		return "sriov"
	}
	return ""
}

// snapshots flattens the tree, parents first. Its depth is bounded: vSphere
// allows 32.
func snapshots(out []Snapshot, list []types.VirtualMachineSnapshotTree, parent Ref, depth int) []Snapshot {
	if depth > maxDepth {
		return out
	}
	for _, s := range list {
		one := Snapshot{
			Ref: refOf(s.Snapshot), Name: plainName(s.Name), Description: s.Description,
			Created: s.CreateTime.UTC(), Parent: parent, Quiesced: s.Quiesced,
		}
		out = snapshots(append(out, one), s.ChildSnapshotList, one.Ref, depth+1)
	}
	return out
}

func powerState(s types.VirtualMachinePowerState) PowerState {
	switch s {
	case types.VirtualMachinePowerStatePoweredOn:
		return PoweredOn
	case types.VirtualMachinePowerStateSuspended:
		return Suspended
	}
	return PoweredOff
}

func isTrue(b *bool) bool { return b != nil && *b }

// parentPath drops the last element.
func parentPath(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

// encodeConfig keeps a configuration as JSON, with the types of its devices.
func encodeConfig(o *types.VirtualMachineConfigInfo) (json.RawMessage, error) {
	var b bytes.Buffer
	if err := types.NewJSONEncoder(&b).Encode(o); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// decodeConfig is the inverse of encodeConfig.
func decodeConfig(raw json.RawMessage) (*types.VirtualMachineConfigInfo, error) {
	var o types.VirtualMachineConfigInfo
	if err := types.NewJSONDecoder(bytes.NewReader(raw)).Decode(&o); err != nil {
		return nil, fmt.Errorf("configuration of the VM as it was kept: %w", err)
	}
	return &o, nil
}
