package guestimage

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

//go:embed recipe
var recipe embed.FS

// The disk's shape, in bytes. The file system begins where every partitioning
// tool of today puts it; the boot loader lives in the gap before it.
const (
	diskSize    = 1 << 30
	partStart   = 1 << 20
	sector      = 512
	bootCodeLen = 440 // of the master boot record; disk signature and table follow
)

// DebianDisk returns the path of a small bootable Debian 12 disk: a raw sparse
// image of 1 GiB with an MBR, GRUB, the cloud kernel, and systemd on ext4. Root
// is logged in on the first serial line at once; there is no network. The
// program lifeboat-guest in it writes files and heartbeats (see the recipe).
//
// The first call takes half a minute and needs Debian's archive and the
// programs of "tools/provision.sh demo"; it needs root, or unprivileged user
// namespaces with subordinate user IDs. Later calls return at once. The file
// in the cache is shared: it must not be written to.
func DebianDisk(ctx context.Context, cacheDir string, progress Progress) (string, error) {
	k, err := ensureKernel(ctx, cacheDir, progress)
	if err != nil {
		return "", err
	}
	content, err := recipeBytes()
	if err != nil {
		return "", err
	}
	a := artifact{
		name: "debian12", ext: ".img", files: append(content, []byte(filepath.Base(k.dir))...),
		build: func(ctx context.Context, scratch, path string) error {
			return buildDisk(ctx, k, scratch, path, progress)
		},
	}
	return a.ensure(ctx, cacheDir, progress)
}

// recipeBytes is all that is ours in the disk, for the cache's key.
func recipeBytes() ([]byte, error) {
	var all bytes.Buffer
	fmt.Fprintln(&all, diskSize, partStart, packages(), masked(), coreModules(), debootstrapArgs("", makeFileSystem("")))
	err := fs.WalkDir(recipe, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := recipe.ReadFile(name)
		fmt.Fprintf(&all, "%s %d\n%s", name, len(content), content)
		return err
	})
	return all.Bytes(), err
}

func packages() []string { return []string{"systemd-sysv", "kmod"} }

// masked are the units and generators that a machine without network, udev,
// swap or other users boots faster without. On an emulated processor starting
// a program costs tens of milliseconds, and each of these starts one.
func masked() map[string][]string {
	return map[string][]string{
		"etc/systemd/system": {
			"serial-getty@ttyS0.service", "getty@.service", "getty-static.service", "getty@tty1.service",
			"systemd-logind.service", "systemd-firstboot.service", "systemd-machine-id-commit.service",
			"systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount",
			"systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-pcrphase-initrd.service",
			"systemd-repart.service", "systemd-sysusers.service", "systemd-sysctl.service",
			"systemd-modules-load.service", "kmod-static-nodes.service", "systemd-remount-fs.service",
			"systemd-random-seed.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
			"systemd-journal-flush.service", "systemd-journald.service", "systemd-journald.socket",
			"systemd-journald-dev-log.socket", "systemd-journald-audit.socket", "systemd-initctl.socket",
			"systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-clean.timer",
			"systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-user-sessions.service",
			"systemd-pstore.service", "modprobe@.service", "dev-hugepages.mount", "dev-mqueue.mount",
			"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount",
			"sys-fs-fuse-connections.mount", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
			"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
		},
		"etc/systemd/system-generators": {
			"systemd-cryptsetup-generator", "systemd-debug-generator", "systemd-fstab-generator",
			"systemd-getty-generator", "systemd-gpt-auto-generator", "systemd-hibernate-resume-generator",
			"systemd-integritysetup-generator", "systemd-rc-local-generator", "systemd-run-generator",
			"systemd-system-update-generator", "systemd-sysv-generator", "systemd-veritysetup-generator",
		},
	}
}

func coreModules() []string {
	return []string{"biosdisk", "part_msdos", "ext2", "linux16", "normal"}
}

func buildDisk(ctx context.Context, k kernel, scratch, path string, progress Progress) error {
	overlay := filepath.Join(scratch, "overlay.tar")
	if err := writeOverlay(overlay, k); err != nil {
		return fmt.Errorf("collecting our own files: %w", err)
	}
	if err := bootArea(ctx, scratch, path); err != nil {
		return fmt.Errorf("writing the boot loader: %w", err)
	}
	progress.say("installing Debian into the disk (about half a minute)")
	if err := debootstrap(ctx, scratch, overlay, path); err != nil {
		return fmt.Errorf("installing Debian: %w", err)
	}
	return nil
}

// writeOverlay makes the archive of what is ours on the disk.
func writeOverlay(name string, k kernel) error {
	var out bytes.Buffer
	t := tar.NewWriter(&out)
	files, err := overlayFiles(k)
	if err != nil {
		return err
	}
	for name, content := range files {
		mode := int64(0o644)
		if strings.HasPrefix(name, "usr/local/bin/") {
			mode = 0o755
		}
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	links := map[string]string{
		"etc/systemd/system/multi-user.target.wants/console.service":      "../console.service",
		"etc/systemd/system/multi-user.target.wants/power-button.service": "../power-button.service",
		"etc/systemd/system/default.target":                               "/lib/systemd/system/multi-user.target",
	}
	for dir, names := range masked() {
		for _, n := range names {
			links[dir+"/"+n] = "/dev/null"
		}
	}
	for name, target := range links {
		h := &tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return os.WriteFile(name, out.Bytes(), 0o644)
}

func overlayFiles(k kernel) (map[string][]byte, error) {
	files := map[string][]byte{"etc/fstab": nil}
	for _, dir := range []string{"boot", "etc", "usr"} {
		err := fs.WalkDir(recipe, "recipe/"+dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files[strings.TrimPrefix(name, "recipe/")], err = recipe.ReadFile(name)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	init, err := recipe.ReadFile("recipe/disk-init.sh")
	if err != nil {
		return nil, err
	}
	files["boot/initrd.img"], err = initramfs{
		modules: []string{"virtio_pci", "virtio_blk", "virtio_scsi", "vmw_pvscsi", "ahci", "ata_piix", "sd_mod"},
		init:    string(init),
	}.build(k)
	if err != nil {
		return nil, err
	}
	if files["boot/vmlinuz"], err = os.ReadFile(k.image()); err != nil {
		return nil, err
	}
	version, err := k.version()
	if err != nil {
		return nil, err
	}
	for _, list := range moduleLists() {
		if files["usr/lib/modules/"+version+"/"+list], err = os.ReadFile(filepath.Join(k.dir, list)); err != nil {
			return nil, err
		}
	}
	modules, err := os.ReadDir(k.modules())
	if err != nil {
		return nil, err
	}
	for _, m := range modules {
		name := "lib/modules/" + version + "/kernel/" + m.Name() + ".ko"
		if files["usr/"+name], err = os.ReadFile(filepath.Join(k.modules(), m.Name())); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// bootArea creates the disk with its master boot record and GRUB's core image
// behind it. GRUB's own installer is not needed: the boot sector reads sector
// 1 by default, and the first sector of the core image, as grub-mkimage makes
// it, reads the rest from sector 2 on.
func bootArea(ctx context.Context, scratch, path string) error {
	const grub = "/usr/lib/grub/i386-pc"
	boot, err := os.ReadFile(filepath.Join(grub, "boot.img"))
	if err != nil {
		return fmt.Errorf("GRUB for BIOS machines is not installed: %w (tools/provision.sh demo installs what is needed)", err)
	}
	early := filepath.Join(scratch, "early.cfg")
	if err := os.WriteFile(early, []byte("set root=(hd0,msdos1)\nnormal\n"), 0o644); err != nil {
		return err
	}
	corePath := filepath.Join(scratch, "core.img")
	args := []string{"-O", "i386-pc", "-d", grub, "-o", corePath, "-p", "(hd0,msdos1)/boot/grub", "-c", early}
	if err := run(command(ctx, scratch, "grub-mkimage", append(args, coreModules()...)...)); err != nil {
		return err
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return err
	}
	if sector+len(core) > partStart || len(boot) < bootCodeLen {
		return fmt.Errorf("the boot loader has %d bytes and does not fit before the partition", len(core))
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	if _, err := f.WriteAt(masterBootRecord(boot[:bootCodeLen]), 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(core, sector); err != nil {
		return err
	}
	return f.Close()
}

// masterBootRecord is boot code, a disk signature, and one active partition of
// type 0x83 to the end of the disk. Its CHS fields say "see LBA".
func masterBootRecord(code []byte) []byte {
	mbr := make([]byte, sector)
	copy(mbr, code)
	copy(mbr[440:], "LBoa")
	entry := mbr[446:]
	entry[0] = 0x80
	copy(entry[1:4], []byte{0xfe, 0xff, 0xff})
	entry[4] = 0x83
	copy(entry[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], partStart/sector)
	binary.LittleEndian.PutUint32(entry[12:], (diskSize-partStart)/sector)
	mbr[510], mbr[511] = 0x55, 0xaa
	return mbr
}
