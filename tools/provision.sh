#!/usr/bin/env bash
# Installs the Debian packages that a purpose needs and that are missing, and
# says which and why. With nothing to do it says nothing and asks apt nothing.
#
#   tools/provision.sh build|demo|test|bench
#
# This is the one place that lists packages.
set -euo pipefail

# what <purpose> prints "package: why", one a line.
what() {
	case "$1" in
	build)
		;; # Go alone: the binary is static and needs no C compiler
	demo)
		what build
		cat <<-'LIST'
			qemu-system-x86: runs the virtual machines
			qemu-utils: qemu-img, for disks in qcow2
			qemu-block-extra: QEMU's NFS client
			mmdebstrap: installs Debian into the demo's disk
			debian-archive-keyring: the keys that Debian's packages are signed with
			e2fsprogs: mke2fs, the disk's file system
			grub-common: grub-mkimage, the disk's boot loader
			grub-pc-bin: the boot loader's parts for a PC's BIOS
			mount: the disk is filled through a bind mount of its tree
			util-linux: unshare, to make that mount invisible
			ca-certificates: to fetch packages
		LIST
		[ "$(id -u)" = 0 ] || echo 'uidmap: subordinate user IDs, to make the disk without root'
		;;
	test)
		what demo
		cat <<-'LIST'
			libnfs-utils: nfs-ls, nfs-cp, nfs-cat: libnfs as a client
			iproute2: network namespaces of the NFS tests
			git: tests of the tree itself
			fdisk: sfdisk, partition tables to compare with
			lvm2: volume groups to compare with
			thin-provisioning-tools: thin volumes to compare with
			dosfstools: mkfs.vfat, guest file systems
			xfsprogs: mkfs.xfs, guest file systems
			btrfs-progs: mkfs.btrfs, guest file systems
			exfatprogs: mkfs.exfat, guest file systems
			genisoimage: guest file systems on discs
			cryptsetup-bin: encrypted guest volumes
			libbde-utils: BitLocker, to compare with
			dislocker: BitLocker, to compare with
			ntfs-3g: mkfs.ntfs, guest file systems
			wimtools: wimcapture, compression of Windows to compare with
			mtools: files on FAT, to compare with
			exfat-fuse: exFAT, to compare with
			xorriso: discs with Rock Ridge, to compare with
			squashfs-tools: a file system that only the micro-VM reads
			gcc: the race detector
			libc6-dev: the race detector
		LIST
		;;
	bench)
		what test
		cat <<-'LIST'
			nfs-ganesha: the NFS server to compare with
			nfs-ganesha-vfs: its access to files
			rpcbind: the port mapper that it needs
			restic: backups to compare with
			borgbackup: backups to compare with
			python3-llfuse: borg mount
			fuse3: fusermount, for restic mount
		LIST
		;;
	*)
		echo "usage: tools/provision.sh build|demo|test|bench" >&2
		exit 2
		;;
	esac
}

die() {
	echo "provision: $*" >&2
	exit 1
}

go_version() {
	command -v go >/dev/null 2>&1 || die "Go is not installed: see https://go.dev/doc/install (go.mod says which version)"
}

purpose="${1:-}"
list="$(what "$purpose")"
go_version
[ -n "$list" ] || exit 0

# One dpkg-query for all; a package that is not known is simply not printed.
installed="$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' $(cut -d: -f1 <<<"$list") 2>/dev/null | sed -n 's/^ii *//p' || true)"
missing=()
while IFS=: read -r package why; do
	grep -qxF "$package" <<<"$installed" && continue
	missing+=("$package")
	echo "provision: $package is missing ($purpose):$why" >&2
done <<<"$list"
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null 2>&1 ||
	die "this is not a Debian system: install what does the same as ${missing[*]}, then go on"
sudo=()
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null 2>&1 ||
		die "installing needs root: run as root  apt-get install ${missing[*]}"
	sudo=(sudo)
fi
apt() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >&2; }

# The package lists are fetched only when they do not know a package, or turn
# out to be out of date.
update() {
	echo "provision: fetching the package lists" >&2
	apt update || die "apt-get update failed: is there a network, and does /etc/apt/sources.list name a mirror?"
}
known() { apt-get install -s --no-install-recommends "${missing[@]}" >/dev/null 2>&1; }
known || update
known || die "these packages are not in the package lists: ${missing[*]} (Debian 12 has them all, in main)"
echo "provision: installing ${missing[*]}" >&2
apt install -y --no-install-recommends "${missing[@]}" || {
	update
	apt install -y --no-install-recommends "${missing[@]}" || die "apt-get could not install ${missing[*]}"
}
