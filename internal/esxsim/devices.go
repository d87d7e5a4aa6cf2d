package esxsim

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/vmware/govmomi/vim25/types"
)

// bus is a kind of controller for disks: where its devices' keys begin, how
// many units it has and how many of it a VM can have [configuration maximums].
type bus struct {
	name                   string // as in .vmx: "scsi0:1"
	controllerKey, diskKey int32
	units, buses           int32
	reserved               int32 // the unit that is the controller's own; -1: none
}

func buses() []bus {
	return []bus{
		{"ide", 200, 3000, 2, 2, -1},
		{"scsi", 1000, 2000, 16, 4, 7},
		{"sata", 15000, 16000, 30, 4, -1},
		{"nvme", 31000, 32000, 15, 4, -1},
	}
}

func busNamed(name string) bus {
	for _, b := range buses() {
		if b.name == name {
			return b
		}
	}
	return bus{}
}

// busOf is the kind of a controller; false for devices that hold no disks.
func busOf(c types.BaseVirtualDevice) (bus, bool) {
	switch c.(type) {
	case *types.VirtualIDEController:
		return busNamed("ide"), true
	case types.BaseVirtualSCSIController:
		return busNamed("scsi"), true
	case types.BaseVirtualSATAController:
		return busNamed("sata"), true
	case *types.VirtualNVMEController:
		return busNamed("nvme"), true
	}
	return bus{}, false
}

// controllerKind makes a controller by its name in DiskSpec and .vmx.
func controllerKind(name string) (types.BaseVirtualDevice, bool) {
	scsi := types.VirtualSCSIController{SharedBus: types.VirtualSCSISharingNoSharing, ScsiCtlrUnitNumber: 7}
	switch name {
	case "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}, true
	case "lsilogic", "":
		return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}, true
	case "lsisas1068", "lsilogic-sas":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}, true
	case "buslogic":
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}, true
	case "sata", "ahci":
		return &types.VirtualAHCIController{}, true
	case "nvme":
		return &types.VirtualNVMEController{SharedBus: "noSharing"}, true
	case "ide":
		return &types.VirtualIDEController{}, true
	}
	return nil, false
}

func controllerName(c types.BaseVirtualDevice) string {
	switch c.(type) {
	case *types.ParaVirtualSCSIController:
		return "pvscsi"
	case *types.VirtualLsiLogicSASController:
		return "lsisas1068"
	case *types.VirtualBusLogicController:
		return "buslogic"
	case types.BaseVirtualSCSIController:
		return "lsilogic"
	}
	b, _ := busOf(c)
	return b.name
}

func busNumber(c types.BaseVirtualDevice) int32 {
	if b, ok := c.(types.BaseVirtualController); ok {
		return b.GetVirtualController().BusNumber
	}
	return 0
}

// controller finds or makes a controller of a VM that is not there for others
// to see yet.
func (v *vm) controller(kind string, number int32) (types.BaseVirtualDevice, error) {
	made, ok := controllerKind(kind)
	if !ok {
		return nil, fmt.Errorf("%q is no controller", kind)
	}
	b, _ := busOf(made)
	if number >= b.buses {
		return nil, fmt.Errorf("there is no %s controller %d", b.name, number)
	}
	for _, d := range v.devices {
		if o, ok := busOf(d); ok && o.name == b.name && busNumber(d) == number {
			return d, nil
		}
	}
	c := made.(types.BaseVirtualController).GetVirtualController()
	c.BusNumber, c.Key = number, b.controllerKey+number
	c.DeviceInfo = &types.Description{Label: fmt.Sprintf("%s controller %d", b.name, number), Summary: controllerName(made)}
	v.devices = append(v.devices, made)
	return made, nil
}

// place gives a disk a unit of a controller; want < 0: the next that is free.
func (v *vm) place(c types.BaseVirtualDevice, want int32) (key, unit int32, err error) {
	b, ok := busOf(c)
	if !ok {
		return 0, 0, fmt.Errorf("device %d holds no disks", c.GetVirtualDevice().Key)
	}
	free := func(u int32) bool {
		return u != b.reserved && u < b.units && !slices.ContainsFunc(v.disks, func(d *vdisk) bool {
			return d.controller == c.GetVirtualDevice().Key && d.unit == u
		})
	}
	if want < 0 {
		for want = 0; want < b.units && !free(want); want++ {
		}
	}
	if !free(want) {
		return 0, 0, fmt.Errorf("unit %d of %s %d is taken or not there", want, b.name, busNumber(c))
	}
	return b.diskKey + busNumber(c)*b.units + want, want, nil
}

func (v *vm) deviceByKey(key int32) (int, types.BaseVirtualDevice) {
	for i, d := range v.devices {
		if d.GetVirtualDevice().Key == key {
			return i, d
		}
	}
	return -1, nil
}

func (v *vm) nextLabel() string {
	for i := 1; ; i++ {
		label := fmt.Sprintf("Hard disk %d", i)
		if !slices.ContainsFunc(v.disks, func(d *vdisk) bool { return d.label == label }) {
			return label
		}
	}
}

// addNIC adds a network card.
func (s *Sim) addNIC(v *vm, kind, network, mac string, connected bool) error {
	net, ok := s.network(network)
	made, known := nicKind(kind)
	if !known {
		return fmt.Errorf("%q is no network card", kind)
	}
	backing := &types.VirtualEthernetCardNetworkBackingInfo{}
	backing.DeviceName = network
	if ok {
		r := net.Reference()
		backing.Network = &r
	}
	c := made.GetVirtualEthernetCard()
	c.Key, c.ControllerKey, c.UnitNumber = v.freeKey(4000), 100, types.NewInt32(7+v.freeKey(4000)-4000)
	c.DeviceInfo = &types.Description{Label: fmt.Sprintf("Network adapter %d", c.Key-3999), Summary: network}
	c.Backing = backing
	c.AddressType, c.MacAddress = string(types.VirtualEthernetCardMacTypeManual), mac
	if mac == "" {
		s.nextMAC++
		c.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
		c.MacAddress = fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80|s.nextMAC>>16&0x3f, s.nextMAC>>8&0xff, s.nextMAC&0xff)
	}
	c.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: connected, AllowGuestControl: true, Connected: connected && v.power == types.VirtualMachinePowerStatePoweredOn}
	v.devices = append(v.devices, made.(types.BaseVirtualDevice))
	return nil
}

func nicKind(name string) (types.BaseVirtualEthernetCard, bool) {
	switch name {
	case "vmxnet3", "":
		return &types.VirtualVmxnet3{}, true
	case "e1000":
		return &types.VirtualE1000{}, true
	case "e1000e":
		return &types.VirtualE1000e{}, true
	case "vlance", "pcnet32":
		return &types.VirtualPCNet32{}, true
	case "vmxnet", "vmxnet2":
		return &types.VirtualVmxnet2{}, true
	}
	return nil, false
}

func nicName(d types.BaseVirtualDevice) string {
	switch d.(type) {
	case *types.VirtualE1000:
		return "e1000"
	case *types.VirtualE1000e:
		return "e1000e"
	case *types.VirtualPCNet32:
		return "vlance"
	case *types.VirtualVmxnet2:
		return "vmxnet"
	}
	return "vmxnet3"
}

func (v *vm) freeKey(from int32) int32 {
	for {
		if i, _ := v.deviceByKey(from); i < 0 {
			return from
		}
		from++
	}
}

// cloned is a shallow copy of a device, for changing what was published.
func cloned(d types.BaseVirtualDevice) types.BaseVirtualDevice {
	c := reflect.New(reflect.TypeOf(d).Elem())
	c.Elem().Set(reflect.ValueOf(d).Elem())
	return c.Interface().(types.BaseVirtualDevice)
}
