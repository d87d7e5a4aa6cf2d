package esxsim

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folderCalls stands before Folder.
type folderCalls struct{ base }

// RegisterVMTask [API: RegisterVM_Task]. Beside what a real one does it reads
// the descriptors of the disks: what would fail at power-on fails here.
func (d *folderCalls) RegisterVMTask(ctx *simulator.Context, req *types.RegisterVM_Task) soap.HasFault {
	t, f := d.s.startTask(ctx, "RegisterVM_Task", req.This, nil, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		return d.s.register(req)
	})
	if f != nil {
		return &methods.RegisterVM_TaskBody{Fault_: f}
	}
	return &methods.RegisterVM_TaskBody{Res: &types.RegisterVM_TaskResponse{Returnval: t}}
}

func (s *Sim) register(req *types.RegisterVM_Task) (any, types.BaseMethodFault) {
	if req.Path == "" {
		return nil, &types.InvalidArgument{InvalidProperty: "path"}
	}
	v, f := s.placeFor(req.This, req.Pool, req.Host, req.Path, req.AsTemplate)
	if f != nil {
		return nil, f
	}
	// The file is read without Sim.mu: its datastore may be slow.
	text, err := readFile(v.vmx.ds.vol, v.vmx.path, maxVMX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, said(&types.NotFound{}, "vim.fault.NotFound", "The object or item referred to could not be found: %s", req.Path)
	}
	if err != nil {
		return nil, fileFault(req.Path, err)
	}
	values, err := parseVMX(text)
	if err != nil {
		return nil, said(&types.GenericVmConfigFault{Reason: err.Error()}, "msg.dictionary", "The configuration file %s is not valid: %v", req.Path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.vms {
		if other.vmx == v.vmx {
			return nil, &types.AlreadyExists{Name: other.ref.Value}
		}
	}
	if f := s.readVMX(v, values); f != nil {
		return nil, f
	}
	if req.Name != "" {
		v.name = escapeName(unescapeName(req.Name))
	}
	if v.name == "" {
		v.name = escapeName(strings.TrimSuffix(path.Base(v.vmx.path), ".vmx"))
	}
	if s.nameTaken(v.folder, v.name) {
		return nil, &types.DuplicateName{Name: v.name, Object: v.folder}
	}
	for _, other := range s.vms {
		if other.instanceUUID == v.instanceUUID { // vCenter sees to it that it is unique
			v.instanceUUID = randomUUID()
		}
	}
	s.enter(v)
	return v.ref, nil
}

// placeFor finds host, pool and datastore for a VM at a path.
func (s *Sim) placeFor(folder ref, pool, on *ref, file string, template bool) (*vm, types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, f := s.resolve(file)
	if f != nil {
		return nil, f
	}
	v := &vm{sim: s, folder: folder, pool: s.pool, vmx: at, power: poweredOff, template: template, tools: true, extra: map[string]string{}}
	if pool == nil && !template {
		return nil, &types.InvalidArgument{InvalidProperty: "pool"}
	}
	if pool != nil {
		v.pool = *pool
	}
	for _, h := range s.hosts {
		if on != nil && h.ref != *on || h.gone {
			continue
		}
		if at.ds.nas == nil || h.nas[at.ds] != nil {
			v.host = h
			break
		}
	}
	switch {
	case v.host == nil:
		return nil, said(&types.InvalidDatastore{Name: at.ds.name}, "vim.fault.InvalidDatastore", "No host that may be used has the datastore %s.", at.ds.name)
	case at.ds.nas != nil && !at.ds.nas.active():
		return nil, &types.InaccessibleDatastore{InvalidDatastore: types.InvalidDatastore{Datastore: &at.ds.ref, Name: at.ds.name}}
	}
	return v, nil
}

// readVMX makes of a configuration file what a host makes of it. Sim.mu is held.
func (s *Sim) readVMX(v *vm, values map[string]string) types.BaseMethodFault {
	get := func(key, otherwise string) string {
		if value, ok := values[key]; ok {
			return value
		}
		return otherwise
	}
	v.name = escapeName(get("displayname", ""))
	v.guestID = get("guestos", "other") + "Guest"
	v.version = "vmx-" + get("virtualhw.version", "4")
	v.firmware = get("firmware", "bios")
	v.secureBoot = isTrue(get("uefi.secureboot.enabled", ""))
	v.memoryMB, v.cpus = number(get("memsize", "32")), number(get("numvcpus", "1"))
	v.annotation = get("annotation", "")
	v.nvram = get("nvram", "")
	v.cbt = isTrue(get("ctkenabled", ""))
	v.uuid, v.instanceUUID = apiUUIDLower(get("uuid.bios", "")), apiUUIDLower(get("vc.uuid", ""))
	switch {
	case v.hardware() < 3 || v.memoryMB < 4 || v.memoryMB%4 != 0 || v.cpus < 1:
		return said(&types.GenericVmConfigFault{Reason: "virtualHW.version, memSize or numvcpus"}, "msg.config", "The configuration is not possible: hardware version %s, %d MB of memory, %d CPUs.", v.version, v.memoryMB, v.cpus)
	case v.hardware() > maxHardware:
		return said(&types.VirtualHardwareVersionNotSupported{HostName: v.host.name, Host: v.host.ref}, "vim.fault.hw",
			"Virtual machine hardware version '%s' is not supported on host %s.", v.version, v.host.name)
	}
	location := get("uuid.location", "")
	switch action := get("uuid.action", ""); {
	case action == "create":
		v.uuid = randomUUID()
	case action != "keep" && location != "":
		v.askMoved = apiUUIDLower(location) != "" // our places have no UUID that it could be
	}
	def(&v.uuid, randomUUID())
	def(&v.instanceUUID, randomUUID())
	if f := s.readDisks(v, values); f != nil {
		return f
	}
	s.readDevices(v, values)
	for key, value := range values {
		if !known(key) {
			v.extra[key] = value
		}
	}
	return nil
}

func isTrue(s string) bool { return strings.EqualFold(s, "TRUE") }

func number(s string) int32 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func apiUUIDLower(vmx string) string { return strings.ToLower(apiUUID(vmx)) }

// known keys have a place of their own in the model.
func known(key string) bool {
	switch key {
	case ".encoding", "config.version", "virtualhw.version", "displayname", "guestos", "memsize", "numvcpus", "firmware",
		"uefi.secureboot.enabled", "uuid.bios", "uuid.location", "uuid.action", "vc.uuid", "annotation", "nvram", "ctkenabled":
		return true
	}
	for _, prefix := range []string{"scsi", "sata", "nvme", "ide", "ethernet"} {
		if rest, ok := strings.CutPrefix(key, prefix); ok && rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return true
		}
	}
	return false
}

// readDisks adds controllers and disks.
func (s *Sim) readDisks(v *vm, values map[string]string) types.BaseMethodFault {
	for _, b := range buses() {
		for n := range b.buses {
			name := b.name + itoa(int(n))
			if b.name != "ide" && !isTrue(values[name+".present"]) {
				continue
			}
			kind := b.name
			if b.name == "scsi" {
				kind = values[name+".virtualdev"]
			}
			for u := range b.units {
				at := name + ":" + itoa(int(u)) + "."
				if !isTrue(values[at+"present"]) {
					continue
				}
				if f := s.readDisk(v, values, at, kind, n, u); f != nil {
					return f
				}
			}
			if b.name != "ide" {
				if _, err := v.controller(kind, n); err != nil {
					return said(&types.GenericVmConfigFault{Reason: err.Error()}, "msg.config", "%v", err)
				}
			}
		}
	}
	return nil
}

func (s *Sim) readDisk(v *vm, values map[string]string, at, kind string, number, unit int32) types.BaseMethodFault {
	file := values[at+"filename"]
	switch values[at+"devicetype"] {
	case "", "disk", "scsi-hardDisk", "ata-hardDisk":
	default: // a CD drive
		if strings.HasSuffix(values[at+"devicetype"], "image") && !strings.EqualFold(values[at+"startconnected"], "FALSE") {
			if p, f := s.resolveVMX(v, file); f != nil || !exists(p) {
				v.missing = "Cannot connect file \"" + file + "\" as a CD-ROM image."
			}
		}
		return nil
	}
	c, err := v.controller(kind, number)
	if err != nil {
		return said(&types.GenericVmConfigFault{Reason: err.Error()}, "msg.config", "%v", err)
	}
	d := &vdisk{controller: c.GetVirtualDevice().Key, label: v.nextLabel(), mode: "persistent", sharing: "sharingNone"}
	if d.key, d.unit, err = v.place(c, unit); err != nil {
		return said(&types.GenericVmConfigFault{Reason: err.Error()}, "msg.config", "%v", err)
	}
	if m := values[at+"mode"]; m != "" {
		d.mode = strings.Replace(m, "-", "_", 1)
	}
	p, f := s.resolveVMX(v, file)
	if f != nil {
		return f
	}
	if f := s.useLayer(d, p); f != nil {
		return f
	}
	v.disks = append(v.disks, d)
	return nil
}

func exists(p dsPath) bool {
	_, err := p.ds.vol.stat(p.path)
	return err == nil
}

// resolveVMX is where a file name in a .vmx leads: beside it, or absolute under
// /vmfs/volumes.
func (s *Sim) resolveVMX(v *vm, file string) (dsPath, types.BaseMethodFault) {
	if rest, ok := strings.CutPrefix(file, "/vmfs/volumes/"); ok {
		name, inside, _ := strings.Cut(rest, "/")
		return s.resolve("[" + name + "] " + inside)
	}
	if file == "" || strings.HasPrefix(file, "/") || slices.Contains(strings.Split(file, "/"), "..") {
		return dsPath{}, fileFault(file, fs.ErrNotExist)
	}
	return v.vmx.dir().join(file), nil
}

// readDevices adds network cards, and notes devices that a start would fail for.
func (s *Sim) readDevices(v *vm, values map[string]string) {
	for i := range 10 {
		name := "ethernet" + itoa(i)
		if !isTrue(values[name+".present"]) {
			continue
		}
		mac := ""
		switch values[name+".addresstype"] {
		case "static":
			mac = values[name+".address"]
		case "vpx", "generated":
			mac = values[name+".generatedaddress"]
		}
		kind := strings.ToLower(values[name+".virtualdev"])
		if _, ok := nicKind(kind); !ok {
			kind = ""
		}
		connected := !strings.EqualFold(values[name+".startconnected"], "FALSE")
		if err := s.addNIC(v, kind, values[name+".networkname"], mac, connected); err != nil {
			v.missing = err.Error()
		}
	}
	for key, value := range values {
		if strings.HasPrefix(key, "pcipassthru") && strings.HasSuffix(key, ".present") && isTrue(value) {
			v.missing = "Device '" + strings.TrimSuffix(key, ".present") + "' is not available."
		}
	}
	if isTrue(values["vtpm.present"]) { // [KB 85974]: without its key the VM cannot start
		v.missing = "The virtual TPM cannot be used: the VM's encryption key is not available."
	}
}

// CreateVMTask [API: CreateVM_Task].
func (d *folderCalls) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	t, f := d.s.startTask(ctx, "CreateVM_Task", req.This, nil, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		v, f := d.s.create(req.This, req.Pool, req.Host, &req.Config)
		if f != nil {
			return nil, f
		}
		return v.ref, nil
	})
	if f != nil {
		return &methods.CreateVM_TaskBody{Fault_: f}
	}
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: t}}
}

func (s *Sim) create(folder, pool ref, on *ref, spec *types.VirtualMachineConfigSpec) (*vm, types.BaseMethodFault) {
	if spec.Name == "" || spec.Files == nil || spec.Files.VmPathName == "" {
		return nil, &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	v, f := s.placeFor(folder, &pool, on, spec.Files.VmPathName, false)
	if f != nil {
		return nil, f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.name = escapeName(unescapeName(spec.Name))
	if s.nameTaken(folder, v.name) {
		return nil, &types.DuplicateName{Name: v.name, Object: folder}
	}
	vol := v.vmx.ds.vol
	if !strings.HasSuffix(v.vmx.path, ".vmx") {
		stem := fileStem(unescapeName(v.name))
		dir := v.vmx.path
		if dir == "" || dir == "." {
			dir = freeDir(vol, stem)
		}
		v.vmx.path = path.Join(dir, stem+".vmx")
	}
	if exists(v.vmx) {
		return nil, fileFault(v.vmx.String(), fs.ErrExist)
	}
	if err := vol.change(opMkdir, path.Dir(v.vmx.path), ""); err != nil {
		return nil, fileFault(v.vmx.String(), err)
	}
	v.guestID, v.version, v.firmware, v.memoryMB, v.cpus = "otherGuest", "vmx-19", "bios", 32, 1
	v.uuid, v.instanceUUID = randomUUID(), randomUUID()
	if f := s.configure(v, spec); f != nil {
		_ = vol.change(opRemoveAll, path.Dir(v.vmx.path), "")
		return nil, f
	}
	if err := v.writeVMX(); err != nil {
		return nil, fileFault(v.vmx.String(), err)
	}
	s.enter(v)
	return v, nil
}

func freeDir(vol volume, stem string) string {
	for i := 0; ; i++ {
		dir := stem
		if i > 0 {
			dir = stem + "_" + itoa(i)
		}
		if _, err := vol.stat(dir); err != nil {
			return dir
		}
	}
}
