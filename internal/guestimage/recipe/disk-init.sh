load virtio_pci; load virtio_blk
if [ ! -b /dev/vda1 ]; then
	for m in ahci ata_piix vmw_pvscsi virtio_scsi sd_mod; do [ -e /lib/modules/$m.order ] && load $m; done
fi
for try in 1 2 3 4 5 6 7 8 9 10; do
	for d in vda1 sda1; do
		if [ -b /dev/$d ] && $b mount -t ext4 -o rw /dev/$d /newroot; then
			$b mount --move /dev /newroot/dev
			exec $b switch_root /newroot /sbin/init
		fi
	done
	$b sleep 1
done
echo "no root file system found"
exec $b sh
