package appliance

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// sourceVMX is what a host leaves of a VM: devices of its own, media, traces of
// runs, two disks, a distributed switch, and keys that nobody knows.
const sourceVMX = `.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "21"
displayName = "web 01 |22quoted|22"
annotation = "owner: ops|0Aroom 4"
nvram = "web01.nvram"
vmci0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0.present = "TRUE"
scsi0:0.fileName = "web01-000002.vmdk"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.present = "TRUE"
scsi0:0.ctkEnabled = "TRUE"
scsi0:0.redo = ""
scsi0:1.fileName = "/vmfs/volumes/5f1/data/other.vmdk"
scsi0:1.mode = "independent-persistent"
scsi0:1.present = "TRUE"
nvme0.present = "TRUE"
nvme0:3.fileName = "web01_1.vmdk"
nvme0:3.present = "TRUE"
sata0.present = "TRUE"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "/vmfs/volumes/iso/debian.iso"
sata0:0.present = "TRUE"
floppy0.fileName = "/vmfs/volumes/x/f.flp"
serial0.present = "TRUE"
serial0.fileName = "con.log"
pciPassthru0.present = "TRUE"
pciPassthru0.id = "00000:003:00.0"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "Production"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "00:50:56:aa:bb:cc"
ethernet1.present = "TRUE"
ethernet1.dvs.switchId = "50 1f"
ethernet1.dvs.portgroupId = "dvportgroup-12"
uuid.bios = "42 1f 00 00 00 00 00 00-00 00 00 00 00 00 00 01"
vc.uuid = "50 1f 00 00 00 00 00 00-00 00 00 00 00 00 00 02"
uuid.location = "56 4d 00 00 00 00 00 00-00 00 00 00 00 00 00 03"
sched.swap.derivedName = "/vmfs/volumes/5f1/web01/web01-1.vswp"
migrate.hostlog = "./web01-1.hlog"
ctkEnabled = "TRUE"
vtpm.present = "TRUE"
encryption.keySafe = "vmware:key/list/..."
somebody.elses.key = "keep me # and this"
some.path = "/vmfs/volumes/gone"
# a comment
`

func TestVMXIsRewrittenForAnotherPlace(t *testing.T) {
	v, err := parseVMX([]byte(sourceVMX))
	if err != nil {
		t.Fatal(err)
	}
	notes := v.rewrite(vmxChanges{
		Name: "web 01 (recovered)", Note: "Lifeboat\nnote", Session: "abc/s1", NVRAM: "w.nvram",
		Disks: []placedDisk{
			{Place: "scsi0:0", Descriptor: "w.vmdk"},
			{Place: "nvme0:3", Descriptor: "w_1.vmdk"},
			{Descriptor: "w_2.vmdk"},
		},
		Instance: "11111111-2222-4333-8444-555555555555", BIOS: "99999999-2222-4333-8444-555555555555",
		Hardware: 19, Networks: networkPlan{Map: map[string]string{"Backbone": "Lab"}}, Adapters: map[int]string{1: "Backbone"},
	})
	got, err := parseVMX(v.encode())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"displayName": "web 01 (recovered)", "annotation": "Lifeboat\nnote\nowner: ops\nroom 4", "virtualHW.version": "19", "nvram": "w.nvram",
		"scsi0:0.fileName": "w.vmdk", "nvme0:3.fileName": "w_1.vmdk", "scsi0:1.fileName": "w_2.vmdk", "scsi0.virtualDev": "pvscsi",
		"vc.uuid": "11 11 11 11 22 22 43 33-84 44 55 55 55 55 55 55", "uuid.action": "keep",
		"ethernet0.networkName": "Production", "ethernet0.startConnected": "FALSE", "ethernet0.addressType": "generated", "ethernet0.virtualDev": "vmxnet3",
		"ethernet1.networkName": "Lab", "ethernet1.startConnected": "TRUE",
		"somebody.elses.key": "keep me # and this", "vmci0.present": "TRUE", "lifeboat.session": "abc/s1", "scsi0:1.mode": "",
	}
	for key, value := range want {
		if got.get(key) != value {
			t.Errorf("%s = %q, want %q", key, got.get(key), value)
		}
	}
	for _, key := range []string{
		"uuid.location", "ctkEnabled", "scsi0:0.ctkEnabled", "scsi0:0.redo", "sched.swap.derivedName", "migrate.hostlog", "sata0:0.fileName", "serial0.present",
		"pciPassthru0.present", "vtpm.present", "encryption.keySafe", "some.path", "ethernet0.generatedAddress", "ethernet1.dvs.switchId", "floppy0.fileName",
	} {
		if got.has(key) {
			t.Errorf("%s is still there: %q", key, got.get(key))
		}
	}
	said := strings.Join(notes, "\n")
	for _, what := range []string{"other.vmdk", "TPM", "pcipassthru0", "21 to 19"} {
		if !strings.Contains(said, what) {
			t.Errorf("nothing is said of %q:\n%s", what, said)
		}
	}
	if !bytes.Contains(v.encode(), []byte("# a comment\n")) {
		t.Error("the comment is gone")
	}
}

func TestVMXKeepsIdentityWhenAsked(t *testing.T) {
	v, err := parseVMX([]byte(sourceVMX))
	if err != nil {
		t.Fatal(err)
	}
	v.rewrite(vmxChanges{Name: "x", Networks: networkPlan{Keep: true}})
	for key, want := range map[string]string{
		"vc.uuid": "50 1f 00 00 00 00 00 00-00 00 00 00 00 00 00 02", "ethernet0.generatedAddress": "00:50:56:aa:bb:cc", "ethernet0.startConnected": "TRUE",
		"ethernet1.startConnected": "FALSE", "virtualHW.version": "21",
	} {
		if got := v.get(key); got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
	}
}

// TestVMXKeepsWhatItDoesNotKnow sets some keys of a file and finds all others as
// they were, whatever is in them.
func TestVMXKeepsWhatItDoesNotKnow(t *testing.T) {
	key := rapid.StringMatching(`[a-z][a-zA-Z0-9]{0,6}(\.[a-z0-9]{1,5}){0,2}`)
	rapid.Check(t, func(t *rapid.T) {
		v, err := parseVMX(nil)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{".encoding": "UTF-8"}
		set := func(k, value string) {
			maps.DeleteFunc(want, func(other, _ string) bool { return strings.EqualFold(other, k) })
			v.set(k, value)
			want[strings.ToLower(k)] = strings.ReplaceAll(value, "\ufffd", "_")
		}
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			set(key.Draw(t, "key"), rapid.String().Draw(t, "value"))
			if v, err = parseVMX(v.encode()); err != nil {
				t.Fatal(err)
			}
			if gone := key.Draw(t, "drop"); rapid.Bool().Draw(t, "drops") {
				v.drop(gone)
				delete(want, strings.ToLower(gone))
			}
		}
		got := map[string]string{}
		for _, l := range v.lines {
			if l.key != "" && !l.gone {
				got[strings.ToLower(l.key)] = l.value
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func FuzzVMX(f *testing.F) {
	f.Add([]byte(sourceVMX))
	f.Add([]byte("displayName = \"na\xefve\"\nscsi0:0.present=TRUE\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := parseVMX(data)
		if err != nil {
			return
		}
		changes := vmxChanges{Name: "n", Note: "x", Session: "s", Disks: []placedDisk{{Place: "scsi0:0", Descriptor: "a.vmdk"}, {Descriptor: "b.vmdk"}}, Instance: "i", Hardware: 13}
		v.rewrite(changes)
		first := v.encode()
		again, err := parseVMX(first)
		if err != nil {
			t.Fatalf("what we wrote is not read: %v\n%q", err, first)
		}
		if second := again.encode(); !bytes.Equal(first, second) {
			t.Fatalf("not stable:\n%q\n%q", first, second)
		}
		disks := again.devices(vmxDiskPlace)
		for _, place := range disks {
			if file := again.get(place + ".fileName"); !slices.Contains([]string{"a.vmdk", "b.vmdk"}, file) {
				t.Fatalf("disk %s is %q", place, file)
			}
		}
		if len(disks) != 2 || again.get("displayName") != "n" {
			t.Fatalf("disks %v, name %q", disks, again.get("displayName"))
		}
	})
}
