package guestimage

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// kernel is an unpacked Debian cloud kernel and the one program that its
// initial RAM file systems are made of.
type kernel struct{ dir string }

// wantedModules are the drivers that are kept, with all that they need: the
// controllers a virtual disk may hang on, network cards, NFS, and the buttons
// of a PC.
func wantedModules() []string {
	return []string{
		"virtio_pci", "virtio_blk", "virtio_scsi", "vmw_pvscsi", "ahci", "ata_piix", "sd_mod",
		"virtio_net", "vmxnet3", "e1000", "virtio_rng", "nfsv3", "nfs", "button", "evdev", "autofs4",
	}
}

// moduleLists are the kernel's own lists, which depmod reads.
func moduleLists() []string {
	return []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"}
}

// ensureKernel downloads and unpacks the kernel once.
func ensureKernel(ctx context.Context, cacheDir string, progress Progress) (kernel, error) {
	return ensureKernelWith(ctx, cacheDir, "kernel", wantedModules(), progress)
}

// ensureKernelWith is the kernel with other modules, kept under another name.
func ensureKernelWith(ctx context.Context, cacheDir, name string, modules []string, progress Progress) (kernel, error) {
	a := artifact{
		name:  name,
		files: []byte("2 " + strings.Join(modules, " ")),
		build: func(ctx context.Context, scratch, path string) error {
			progress.say("downloading Debian's cloud kernel and busybox")
			return buildKernel(ctx, scratch, path, modules)
		},
	}
	dir, err := a.ensure(ctx, cacheDir, progress)
	return kernel{dir}, err
}

func buildKernel(ctx context.Context, scratch, dir string, modules []string) error {
	pkg, err := kernelPackage(ctx, scratch)
	if err != nil {
		return err
	}
	if err := download(ctx, scratch, pkg, "busybox-static"); err != nil {
		return err
	}
	kernelDeb, err := debFile(scratch, pkg)
	if err != nil {
		return err
	}
	busyboxDeb, err := debFile(scratch, "busybox-static")
	if err != nil {
		return err
	}
	all := filepath.Join(scratch, "all")
	for _, d := range []string{dir, all, filepath.Join(dir, "modules")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	err = eachFile(ctx, kernelDeb, func(name string, r io.Reader) error {
		switch {
		case strings.HasPrefix(name, "boot/vmlinuz-"):
			return writeFile(filepath.Join(dir, "vmlinuz"), r)
		case slices.Contains(moduleLists(), path.Base(name)):
			return writeFile(filepath.Join(dir, path.Base(name)), r)
		case path.Ext(name) == ".ko":
			return writeFile(filepath.Join(all, moduleName(name)), r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = eachFile(ctx, busyboxDeb, func(name string, r io.Reader) error {
		if path.Base(name) == "busybox" && strings.HasSuffix(path.Dir(name), "bin") {
			return writeFile(filepath.Join(dir, "busybox"), r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := keepModules(all, filepath.Join(dir, "modules"), modules); err != nil {
		return err
	}
	version := strings.TrimPrefix(pkg, "linux-image-")
	return os.WriteFile(filepath.Join(dir, "version"), []byte(version), 0o644)
}

func writeFile(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// moduleName is the kernel's name of a module file: without extension, and
// with underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// keepModules moves the wanted modules that exist (what is built in does not),
// and what they depend on.
func keepModules(from, to string, wanted []string) error {
	order, err := moduleOrder(from, existing(from, wanted))
	if err != nil {
		return err
	}
	for _, m := range order {
		if err := os.Rename(filepath.Join(from, m), filepath.Join(to, m)); err != nil {
			return err
		}
	}
	return nil
}

// existing drops the names that dir has no module file for.
func existing(dir string, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		_, err := os.Stat(filepath.Join(dir, n))
		return err != nil
	})
}

// moduleOrder lists modules and their dependencies, these first, as insmod
// needs them.
func moduleOrder(dir string, names []string) ([]string, error) {
	var order []string
	visiting := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if visiting[name] {
			return nil
		}
		visiting[name] = true
		deps, err := moduleDepends(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := visit(d); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads "depends=" of the .modinfo section.
func moduleDepends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			deps := strings.Split(list, ",")
			for i := range deps {
				deps[i] = moduleName(deps[i])
			}
			return deps, nil
		}
	}
	return nil, nil
}

func (k kernel) image() string   { return filepath.Join(k.dir, "vmlinuz") }
func (k kernel) busybox() string { return filepath.Join(k.dir, "busybox") }
func (k kernel) modules() string { return filepath.Join(k.dir, "modules") }

func (k kernel) version() (string, error) {
	b, err := os.ReadFile(filepath.Join(k.dir, "version"))
	return string(b), err
}
