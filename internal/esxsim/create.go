package esxsim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
)

// addVM makes a VM that is there from the start.
func (s *Sim) addVM(spec VMSpec) error {
	s.mu.Lock()
	v, err := s.newVM(spec)
	if err == nil {
		s.enter(v)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if !spec.PowerOn {
		return nil
	}
	if f := s.powerOn(s.ctx, v); f != nil {
		return errors.New(describe(f))
	}
	return nil
}

func (s *Sim) newVM(spec VMSpec) (*vm, error) {
	if spec.Name == "" || s.vmByName(spec.Name) != nil {
		return nil, errors.New("the name is missing or taken")
	}
	v := &vm{
		sim: s, name: escapeName(spec.Name), pool: s.pool, uuid: randomUUID(), instanceUUID: randomUUID(),
		guestID: spec.GuestID, version: spec.Version, firmware: spec.Firmware, secureBoot: spec.SecureBoot,
		memoryMB: int32(spec.MemoryMB), cpus: int32(spec.CPUs), annotation: spec.Annotation, extra: map[string]string{},
		power: types.VirtualMachinePowerStatePoweredOff, template: spec.Template, tools: spec.Tools, cbt: spec.CBT,
	}
	for k, val := range spec.Extra {
		v.extra[k] = val
	}
	if spec.Suspended {
		v.power = types.VirtualMachinePowerStateSuspended
	}
	def(&v.guestID, "otherLinux64Guest")
	def(&v.version, "vmx-19")
	def(&v.firmware, "bios")
	def(&v.cpus, 1)
	if def(&v.memoryMB, 64); s.opts.Boot && spec.MemoryMB == 0 {
		v.memoryMB = 256
	}
	var err error
	if v.folder, err = s.folder(spec.Folder); err != nil {
		return nil, err
	}
	if v.host = s.hosts[len(s.vms)%len(s.hosts)]; spec.Host != "" {
		if v.host = s.hostByName(spec.Host); v.host == nil {
			return nil, fmt.Errorf("there is no host %q", spec.Host)
		}
	}
	ds, err := s.datastoreNamed(spec.Datastore)
	if err != nil {
		return nil, err
	}
	if v.guest, err = s.newGuest(spec); err != nil {
		return nil, err
	}
	stem := fileStem(spec.Name)
	v.vmx = dsPath{ds, stem + "/" + stem + ".vmx"}
	if err := ds.vol.change(opMkdir, stem, ""); err != nil {
		return nil, err
	}
	if err := s.furnish(v, spec, stem); err != nil {
		return nil, err
	}
	return v, v.writeVMX()
}

// furnish gives a VM its devices and files.
func (s *Sim) furnish(v *vm, spec VMSpec, stem string) error {
	if spec.NVRAM != nil {
		v.nvram = stem + ".nvram"
		if err := writeFile(v.vmx.ds.vol, v.vmx.dir().join(v.nvram).path, spec.NVRAM); err != nil {
			return err
		}
	}
	if spec.TPM {
		v.devices = append(v.devices, &types.VirtualTPM{VirtualDevice: types.VirtualDevice{Key: 11000, DeviceInfo: &types.Description{Label: "Virtual TPM"}}})
	}
	networks := spec.Networks
	if networks == nil {
		networks = []string{"VM Network"}
	}
	for _, n := range networks {
		if _, ok := s.network(n); !ok {
			return fmt.Errorf("there is no network %q", n)
		}
		if err := s.addNIC(v, "vmxnet3", n, "", true); err != nil {
			return err
		}
	}
	if spec.LinkedFrom != "" {
		return s.linkDisks(v, spec.LinkedFrom, stem)
	}
	for i, d := range spec.Disks {
		if d.Name == "" {
			d.Name = stem
			if i > 0 {
				d.Name += "_" + strconv.Itoa(i)
			}
		}
		if err := s.addDiskSpec(v, d); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	return nil
}

func (s *Sim) addDiskSpec(v *vm, spec DiskSpec) error {
	def(&spec.Controller, "pvscsi")
	def(&spec.Mode, string(types.VirtualDiskModePersistent))
	c, err := v.controller(spec.Controller, int32(spec.Bus))
	if err != nil {
		return err
	}
	d := &vdisk{controller: c.GetVirtualDevice().Key, mode: spec.Mode, thick: spec.Thick, rdm: spec.RDM, sharing: "sharingNone", label: v.nextLabel()}
	if d.key, d.unit, err = v.place(c, -1); err != nil {
		return err
	}
	ds := v.vmx.ds
	if spec.Datastore != "" {
		if ds, err = s.datastoreNamed(spec.Datastore); err != nil {
			return err
		}
	}
	at := dsPath{ds, path.Join(path.Dir(v.vmx.path), spec.Name+".vmdk")}
	if err := ds.vol.change(opMkdir, path.Dir(at.path), ""); err != nil {
		return err
	}
	var img disk.Image
	if spec.From != "" {
		if img, err = disk.Open(s.ctx, spec.From, disk.OpenOptions{}); err != nil {
			return err
		}
		defer img.Close()
		spec.Size = max(spec.Size, (img.Size()+511)/512*512)
	}
	d.uuid, d.contentID = diskUUID(), fmt.Sprintf("%08x", randomCID())
	l, err := s.createFlat(at, spec.Size, d)
	if err != nil {
		return err
	}
	d.top, d.track = l, l.track
	if v.cbt {
		d.track.activate()
	}
	if img != nil {
		if err := fill(s.ctx, l, img); err != nil {
			return err
		}
		if v.cbt {
			d.track.mark(0, 0)
		}
	}
	v.disks = append(v.disks, d)
	return nil
}

// createFlat makes a flat disk full of zeros: descriptor and extent.
func (s *Sim) createFlat(at dsPath, size int64, d *vdisk) (*layer, error) {
	if size <= 0 || size%512 != 0 || size > 62<<40 {
		return nil, fmt.Errorf("a disk of %d bytes cannot be made", size)
	}
	l := &layer{at: at, data: strings.TrimSuffix(at.path, ".vmdk") + "-flat.vmdk", size: size, cid: randomCID(), track: &tracker{}}
	text, err := disk.NewDescriptor(disk.DescriptorSpec{
		Size: size, File: path.Base(l.data), CID: l.cid, UUID: descriptorUUID(d.uuid), Thick: d.thick, HWVersion: 19,
	}).Encode()
	if err != nil {
		return nil, err
	}
	if _, err := at.ds.vol.stat(at.path); err == nil {
		return nil, fmt.Errorf("%s: %w", at, fs.ErrExist)
	}
	if err := l.open(openNew); err != nil {
		return nil, err
	}
	if err := l.f.Truncate(size); err != nil {
		return nil, err
	}
	if err := writeFile(at.ds.vol, at.path, text); err != nil {
		return nil, err
	}
	s.layers[at.String()] = l
	return l, nil
}

// fill writes an image into a new flat layer.
func fill(ctx context.Context, l *layer, img disk.Image) error {
	if f, ok := l.f.(localFile); ok {
		if err := disk.WriteRaw(ctx, f.File, img, nil); err != nil {
			return err
		}
		return f.Truncate(l.size)
	}
	buf := make([]byte, 1<<20)
	for e, err := range disk.Extents(ctx, img, disk.Whole(img)) {
		if err != nil {
			return err
		}
		for off := e.Offset; !e.Hole && off < e.Offset+e.Length; off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.Offset+e.Length-off)]
			if _, err := img.ReadAt(p, off); err != nil {
				return err
			}
			if _, err := l.f.WriteAt(p, off); err != nil {
				return err
			}
		}
	}
	return nil
}

// linkDisks makes a linked clone's disks: deltas on a snapshot of another VM.
func (s *Sim) linkDisks(v *vm, from, stem string) error {
	parent := s.vmByName(from)
	if parent == nil {
		return fmt.Errorf("there is no VM %q to link to", from)
	}
	if parent.current == nil {
		n := &snapshot{vm: parent, name: "linked clones", id: parent.snapshotID + 1, power: parent.power, layers: map[int32]*layer{}, tracks: map[int32]frozenTrack{}}
		if err := parent.freeze(n); err != nil {
			return err
		}
		parent.snapshotID++
		s.enterSnapshot(n)
		s.publish(parent)
	}
	for _, was := range parent.disks {
		frozen := parent.current.layers[was.key]
		if frozen == nil {
			continue
		}
		i, c := parent.deviceByKey(was.controller)
		if i < 0 {
			return errors.New("a disk without controller")
		}
		if j, _ := v.deviceByKey(was.controller); j < 0 {
			v.devices = append(v.devices, cloned(c))
		}
		l, err := nextDelta(v.vmx.dir(), stem, frozen)
		if err != nil {
			return err
		}
		d := was.described()
		d.top, d.track = l, &tracker{}
		v.disks = append(v.disks, d)
	}
	return nil
}

func (s *Sim) datastoreNamed(name string) (*datastore, error) {
	def(&name, s.opts.Datastores[0])
	for _, d := range s.datastores {
		if d.name == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("there is no datastore %q", name)
}

// fileStem is how a VM's name is written in names of files: without what a
// path or the datastore browser could take amiss.
func fileStem(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(`/\:*?"<>|%`, r) || r < ' ' {
			return '_'
		}
		return r
	}, name)
}
