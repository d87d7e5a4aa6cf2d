package esxsim

import (
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// configure applies a VirtualMachineConfigSpec. Sim.mu is held. Nothing of the
// VM is changed when a device cannot be; files may be left, as on a host.
func (s *Sim) configure(v *vm, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	on := v.power == types.VirtualMachinePowerStatePoweredOn
	if on && (spec.Firmware != "" || spec.Version != "" || spec.GuestId != "" && spec.GuestId != v.guestID) {
		return wrongPower(v, types.VirtualMachinePowerStatePoweredOff)
	}
	if spec.Version != "" && hardwareNumber(spec.Version) > maxHardware {
		return &types.VirtualHardwareVersionNotSupported{HostName: v.host.name, Host: v.host.ref}
	}
	c := change{s: s, v: v, devices: v.devices, disks: v.disks, keys: map[int32]int32{}}
	undo := func() { v.devices, v.disks = c.devices, c.disks }
	v.devices, v.disks = slices.Clone(v.devices), slices.Clone(v.disks)
	for i, dc := range spec.DeviceChange {
		if f := c.device(dc.GetVirtualDeviceConfigSpec(), int32(i)); f != nil {
			undo()
			return f
		}
	}
	v.apply(spec)
	for _, after := range c.after {
		after()
	}
	return nil
}

// maxHardware is the newest hardware version that our hosts (8.0U2) run
// [KB 1003746].
const maxHardware = 21

func (v *vm) apply(spec *types.VirtualMachineConfigSpec) {
	set := func(dst *string, value string) {
		if value != "" {
			*dst = value
		}
	}
	if spec.Name != "" {
		v.name = escapeName(unescapeName(spec.Name))
	}
	set(&v.annotation, spec.Annotation)
	set(&v.guestID, spec.GuestId)
	set(&v.version, spec.Version)
	set(&v.firmware, spec.Firmware)
	set(&v.uuid, spec.Uuid)
	set(&v.instanceUUID, spec.InstanceUuid)
	if spec.MemoryMB > 0 {
		v.memoryMB = int32(spec.MemoryMB)
	}
	if spec.NumCPUs > 0 {
		v.cpus = spec.NumCPUs
	}
	if b := spec.BootOptions; b != nil && b.EfiSecureBootEnabled != nil {
		v.secureBoot = *b.EfiSecureBootEnabled
	}
	for _, o := range spec.ExtraConfig {
		kv := o.GetOptionValue()
		value, _ := kv.Value.(string)
		if value == "" { // an empty value removes the key [API: extraConfig]
			delete(v.extra, kv.Key)
			continue
		}
		v.extra[kv.Key] = value
	}
	if spec.ChangeTrackingEnabled != nil {
		v.cbt = *spec.ChangeTrackingEnabled
		if !v.cbt {
			for _, d := range v.disks {
				d.track.deactivate()
			}
		}
	}
}

// change is one reconfiguration under way.
type change struct {
	s       *Sim
	v       *vm
	devices []types.BaseVirtualDevice // before
	disks   []*vdisk
	keys    map[int32]int32 // keys that the caller made up → real ones
	after   []func()        // what cannot be undone, done at the end
}

func (c *change) device(spec *types.VirtualDeviceConfigSpec, index int32) types.BaseMethodFault {
	invalid := func() types.BaseMethodFault {
		return said(&types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "virtualDeviceSpec"}, DeviceIndex: index},
			"msg.device", "Invalid configuration for device '%d'.", index)
	}
	if spec.Device == nil {
		return invalid()
	}
	d := spec.Device.GetVirtualDevice()
	if key, ok := c.keys[d.ControllerKey]; ok {
		d.ControllerKey = key
	}
	var err error
	var f types.BaseMethodFault
	switch spec.Operation {
	case types.VirtualDeviceConfigSpecOperationAdd:
		f, err = c.add(spec)
	case types.VirtualDeviceConfigSpecOperationRemove:
		f, err = c.remove(spec)
	case types.VirtualDeviceConfigSpecOperationEdit:
		f, err = c.edit(spec)
	default:
		err = errors.New("no operation")
	}
	if err != nil {
		c.s.log.Debug("device change refused", "vm", c.v.name, "index", index, "err", err)
		return invalid()
	}
	return f
}

func (c *change) add(spec *types.VirtualDeviceConfigSpec) (types.BaseMethodFault, error) {
	v := c.v
	switch dev := spec.Device.(type) {
	case *types.VirtualDisk:
		return c.addDisk(spec, dev)
	case types.BaseVirtualEthernetCard:
		return nil, c.addCard(dev)
	}
	d := spec.Device.GetVirtualDevice()
	if b, ok := busOf(spec.Device); ok {
		number := busNumber(spec.Device)
		for _, o := range v.devices {
			if ob, ok := busOf(o); ok && ob.name == b.name && busNumber(o) == number {
				if ob.name == "ide" {
					c.keys[d.Key] = o.GetVirtualDevice().Key
					return nil, nil
				}
				return nil, errors.New("there is such a controller already")
			}
		}
		c.keys[d.Key] = b.controllerKey + number
		d.Key = b.controllerKey + number
		v.devices = append(v.devices, spec.Device)
		return nil, nil
	}
	if i, _ := v.deviceByKey(d.Key); d.Key <= 0 || i >= 0 {
		made := v.freeKey(12000)
		c.keys[d.Key] = made
		d.Key = made
	}
	v.devices = append(v.devices, spec.Device)
	return nil, nil
}

func (c *change) addCard(dev types.BaseVirtualEthernetCard) error {
	card := dev.GetVirtualEthernetCard()
	name := ""
	switch b := card.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		name = b.DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		if pg := c.s.reg.Get(ref{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}); pg == nil {
			return errors.New("there is no such port group")
		}
	}
	if _, ok := c.s.network(name); name != "" && !ok {
		return errors.New("there is no such network")
	}
	mac := ""
	if card.AddressType == string(types.VirtualEthernetCardMacTypeManual) {
		mac = card.MacAddress
	}
	connected := card.Connectable == nil || card.Connectable.StartConnected
	return c.s.addNIC(c.v, nicName(dev.(types.BaseVirtualDevice)), name, mac, connected)
}

func (c *change) addDisk(spec *types.VirtualDeviceConfigSpec, dev *types.VirtualDisk) (types.BaseMethodFault, error) {
	v := c.v
	_, controller := v.deviceByKey(dev.ControllerKey)
	if controller == nil {
		return nil, errors.New("the controller is not there")
	}
	if b, _ := busOf(controller); b.name == "ide" && v.power == types.VirtualMachinePowerStatePoweredOn {
		return wrongPower(v, types.VirtualMachinePowerStatePoweredOff), nil // no hot-add to IDE
	}
	want := int32(-1)
	if dev.UnitNumber != nil {
		want = *dev.UnitNumber
	}
	d := &vdisk{controller: dev.ControllerKey, label: v.nextLabel(), mode: "persistent", sharing: "sharingNone", track: &tracker{}}
	var err error
	if d.key, d.unit, err = v.place(controller, want); err != nil {
		return nil, err
	}
	backing, ok := dev.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if !ok {
		return nil, errors.New("only flat disks can be added")
	}
	if backing.DiskMode != "" {
		d.mode = backing.DiskMode
	}
	if backing.Sharing != "" {
		d.sharing = backing.Sharing
	}
	d.thick = backing.ThinProvisioned == nil || !*backing.ThinProvisioned
	if spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationCreate {
		if f := c.createDisk(d, dev, backing); f != nil {
			return f, nil
		}
	} else if f := c.s.attach(v, d, backing.FileName); f != nil {
		return f, nil
	}
	c.keys[dev.Key] = d.key
	v.disks = append(v.disks, d)
	return nil, nil
}

// createDisk makes the files of a new disk, where the request says or beside
// the .vmx under the next free name.
func (c *change) createDisk(d *vdisk, dev *types.VirtualDisk, backing *types.VirtualDiskFlatVer2BackingInfo) types.BaseMethodFault {
	s, v := c.s, c.v
	at := v.vmx.dir()
	if backing.FileName != "" {
		var f types.BaseMethodFault
		if at, f = s.resolve(backing.FileName); f != nil {
			return f
		}
		if at.path == "" || at.path == "." {
			at = dsPath{at.ds, path.Dir(v.vmx.path)}
		}
	}
	if !strings.HasSuffix(at.path, ".vmdk") {
		if err := at.ds.vol.change(opMkdir, at.path, ""); err != nil {
			return fileFault(at.String(), err)
		}
		at = freeName(at, strings.TrimSuffix(path.Base(v.vmx.path), ".vmx"))
	}
	size := dev.CapacityInBytes
	if size == 0 {
		size = dev.CapacityInKB * 1024
	}
	d.uuid, d.contentID = diskUUID(), "fffffffe"
	if backing.Uuid != "" {
		d.uuid = backing.Uuid
	}
	l, err := s.createFlat(at, size, d)
	if err != nil {
		return fileFault(at.String(), err)
	}
	d.top, d.track = l, l.track
	return nil
}

func freeName(dir dsPath, stem string) dsPath {
	at := dir.join(stem + ".vmdk")
	for i := 1; ; i++ {
		if _, err := at.ds.vol.stat(at.path); err != nil {
			return at
		}
		at = dir.join(stem + "_" + itoa(i) + ".vmdk")
	}
}

func (c *change) remove(spec *types.VirtualDeviceConfigSpec) (types.BaseMethodFault, error) {
	v, key := c.v, spec.Device.GetVirtualDevice().Key
	if d := v.diskByKey(key); d != nil {
		if len(v.roots) > 0 && spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy {
			return said(&types.InvalidState{}, "msg.snapshot", "The disk cannot be deleted while the VM has snapshots."), nil
		}
		v.disks = slices.DeleteFunc(v.disks, func(o *vdisk) bool { return o == d })
		c.after = append(c.after, func() { c.s.release(v, d, spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy) })
		return nil, nil
	}
	i, _ := v.deviceByKey(key)
	if i < 0 {
		return nil, errors.New("there is no such device")
	}
	if slices.ContainsFunc(v.disks, func(d *vdisk) bool { return d.controller == key }) {
		return nil, errors.New("the controller has disks")
	}
	v.devices = slices.Delete(v.devices, i, i+1)
	return nil, nil
}

// release closes what a disk that was removed held, and deletes its files if
// they are to go.
func (s *Sim) release(v *vm, d *vdisk, destroy bool) {
	s.unplug(v, d)
	if destroy {
		s.dropChain(v, d.top)
	}
}

// dropChain deletes the files of a disk from the top down, as far as nobody
// else stands on them or shows them. Sim.mu is held.
func (s *Sim) dropChain(v *vm, l *layer) {
	for l != nil && l.users.Load() == 0 && !s.frozen(l) && !s.topOfOther(v, l) {
		s.deleteLayer(l)
		if l = l.parent; l != nil {
			l.users.Add(-1)
		}
	}
}

func (s *Sim) topOfOther(v *vm, l *layer) bool {
	for _, other := range s.vms {
		if other != v && slices.ContainsFunc(other.disks, func(d *vdisk) bool { return d.top == l }) {
			return true
		}
	}
	return false
}

func (c *change) edit(spec *types.VirtualDeviceConfigSpec) (types.BaseMethodFault, error) {
	v, key := c.v, spec.Device.GetVirtualDevice().Key
	if dev, ok := spec.Device.(*types.VirtualDisk); ok {
		d := v.diskByKey(key)
		if d == nil {
			return nil, errors.New("there is no such disk")
		}
		return c.s.resize(v, d, dev)
	}
	i, old := v.deviceByKey(key)
	if i < 0 {
		return nil, errors.New("there is no such device")
	}
	card, ok := spec.Device.(types.BaseVirtualEthernetCard)
	if !ok {
		v.devices[i] = spec.Device
		return nil, nil
	}
	made := cloned(old).(types.BaseVirtualEthernetCard)
	return nil, c.editCard(i, made.GetVirtualEthernetCard(), made, card.GetVirtualEthernetCard())
}

func (c *change) editCard(i int, card *types.VirtualEthernetCard, made types.BaseVirtualEthernetCard, want *types.VirtualEthernetCard) error {
	if b, ok := want.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
		net, found := c.s.network(b.DeviceName)
		if !found {
			return errors.New("there is no such network")
		}
		r := net.Reference()
		backing := &types.VirtualEthernetCardNetworkBackingInfo{Network: &r}
		backing.DeviceName = b.DeviceName
		card.Backing = backing
	} else if want.Backing != nil {
		card.Backing = want.Backing
	}
	if want.Connectable != nil {
		connectable := *want.Connectable
		card.Connectable = &connectable
	}
	if want.MacAddress != "" {
		card.MacAddress, card.AddressType = want.MacAddress, want.AddressType
	}
	c.v.devices[i] = made.(types.BaseVirtualDevice)
	return nil
}

// resize changes a disk's mode or makes it larger. A smaller one, and a larger
// one under a snapshot, are refused [KB 1004047].
func (s *Sim) resize(v *vm, d *vdisk, dev *types.VirtualDisk) (types.BaseMethodFault, error) {
	size := dev.CapacityInBytes
	if size == 0 {
		size = dev.CapacityInKB * 1024
	}
	if b, ok := dev.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && b.DiskMode != "" && b.DiskMode != d.mode {
		if v.power == types.VirtualMachinePowerStatePoweredOn || len(v.roots) > 0 {
			return wrongPower(v, types.VirtualMachinePowerStatePoweredOff), nil
		}
		d.mode = b.DiskMode
	}
	switch {
	case size == 0 || size == d.top.size:
		return nil, nil
	case size < d.top.size || d.top.delta():
		return nil, errors.New("the disk cannot become smaller, nor larger under a snapshot")
	}
	d.gate.Lock()
	defer d.gate.Unlock()
	if err := d.top.grow(size); err != nil {
		return fileFault(d.top.at.String(), err), nil
	}
	if d.track.id() != "" {
		d.track.activate() // what an older change ID would be told is wrong [KB 2090639]
	}
	return nil, nil
}
