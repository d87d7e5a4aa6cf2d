package qemu

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// node is a block node as QEMU's -blockdev and blockdev-add take it.
type node map[string]any

// Every disk is two nodes, the format on the protocol. Generation 0 is what
// the machine started with; each move makes a new generation, so that source
// and target can exist side by side. Names stay below QEMU's limit of 31 bytes.
func formatName(disk string, generation int) string { return fmt.Sprintf("%s-g%d", disk, generation) }

func protocolName(disk string, generation int) string {
	return formatName(disk, generation) + "-file"
}

// protocolNode describes where the bytes are.
func protocolNode(name, path string, readOnly, direct bool) (node, error) {
	if path == "" {
		return nil, errors.New("no path given")
	}
	n := node{"node-name": name, "read-only": readOnly, "discard": "unmap"}
	if socket, ok := strings.CutPrefix(path, "nbd+unix:"); ok {
		n["driver"], n["server"] = "nbd", node{"type": "unix", "path": socket}
		return n, nil
	}
	if !strings.HasPrefix(path, "nfs://") {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("finding %s: %w", path, err)
		}
		n["driver"], n["filename"] = "file", abs
		n["cache"] = node{"direct": direct}
		return n, nil
	}
	u, err := url.Parse(path)
	if err != nil {
		return nil, fmt.Errorf("reading the NFS address: %w", err)
	}
	if u.Port() != "" || u.RawQuery != "" || u.Hostname() == "" || len(u.Path) < 2 {
		return nil, fmt.Errorf("NFS address %s: want nfs://host/path, without port or parameters (QEMU asks the port mapper)", path)
	}
	n["driver"], n["path"] = "nfs", u.Path
	n["server"] = node{"type": "inet", "host": u.Hostname()}
	return n, nil
}

func formatNode(name, protocol, format string, readOnly bool) node {
	return node{
		"node-name": name, "driver": format, "file": protocol,
		"read-only": readOnly, "discard": "unmap", "detect-zeroes": "unmap",
	}
}

// deviceDriver is the front end that the guest sees.
func deviceDriver(iface string) (string, bool) {
	driver, ok := map[string]string{
		"virtio": "virtio-blk-pci", "scsi": "scsi-hd", "sata": "ide-hd", "ide": "ide-hd",
	}[iface]
	return driver, ok
}

func (o Options) diskArguments() []string {
	var a []string
	nbd := extraFD
	controllers := map[string]string{"scsi": "virtio-scsi-pci,id=scsi", "sata": "ich9-ahci,id=sata"}
	units := map[string]int{}
	for i, d := range o.Disks {
		if c, ok := controllers[d.Interface]; ok && units[d.Interface] == 0 {
			a = append(a, "-device", c)
		}
		a = append(a, d.blockdev(nbd)...)
		if d.NBD != nil {
			nbd++
		}
		a = append(a, "-device", mustJSON(d.device(i, units[d.Interface])))
		units[d.Interface]++
	}
	return a
}

// blockdev describes the disk's two nodes; nbd is the file descriptor of one
// that is served over a socket.
func (d Disk) blockdev(nbd int) []string {
	format, protocol := formatName(d.ID, 0), protocolName(d.ID, 0)
	var p node
	if d.NBD != nil {
		p = node{
			"node-name": protocol, "driver": "nbd", "read-only": d.ReadOnly, "discard": "unmap",
			"server": node{"type": "fd", "str": strconv.Itoa(nbd)}, "export": "",
		}
	} else {
		var err error
		if p, err = protocolNode(protocol, d.Path, d.ReadOnly, d.Direct); err != nil {
			panic("qemu: disk was not validated: " + err.Error())
		}
	}
	f := formatNode(format, protocol, d.Format, d.ReadOnly)
	return []string{"-blockdev", mustJSON(p), "-blockdev", mustJSON(f)}
}

func (d Disk) device(index, unit int) node {
	driver, _ := deviceDriver(d.Interface)
	n := node{"driver": driver, "id": d.ID, "drive": formatName(d.ID, 0), "bootindex": index + 1}
	if d.Serial != "" {
		n["serial"] = d.Serial
	}
	switch d.Interface {
	case "scsi":
		n["bus"], n["lun"] = "scsi.0", unit
	case "sata":
		n["bus"] = fmt.Sprintf("sata.%d", unit)
	case "ide":
		n["bus"], n["unit"] = fmt.Sprintf("ide.%d", unit/2), unit%2
	}
	return n
}
