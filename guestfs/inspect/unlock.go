package inspect

import (
	"context"
	"errors"
	"strings"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/crypt"
	"lifeboat/guestfs/probe"
)

// unlock opens an encrypted volume with the keys that were given, and tells in v
// what it is. What is not encrypted, or cannot be opened, comes back as it is.
func unlock(ctx context.Context, v *Volume, img disk.Image, secrets []crypt.Secret) disk.Image {
	info, err := probe.Volume(ctx, img)
	if err != nil || info.Type != probe.LUKS && info.Type != probe.BitLocker {
		return img
	}
	about, err := crypt.Identify(img)
	if err != nil {
		v.locked = err.Error()
		return img
	}
	v.Place.Encryption, v.Place.ContainerUUID = strings.TrimSpace(string(about.Kind)+" "+about.Cipher), about.UUID
	v.locked = "encrypted; it opens with a " + strings.Join(about.Needs, " or a ")
	if len(about.Needs) == 1 && about.Needs[0] == "nothing" {
		secrets = append([]crypt.Secret{{}}, secrets...)
	}
	tried := false
	for _, secret := range secrets {
		opened, err := crypt.Unlock(ctx, img, secret)
		switch {
		case err == nil:
			v.locked = ""
			return opened
		case errors.Is(err, crypt.ErrKey):
			tried = true
		default:
			v.locked = err.Error()
			return img
		}
	}
	if tried {
		v.locked = "encrypted, and no key that was given opens it"
	}
	return img
}

// unlockAll opens what is encrypted among volumes, and keeps what opened.
func (g *Guest) unlockAll(ctx context.Context, volumes []Volume, images []disk.Image, secrets []crypt.Secret) error {
	for i := range volumes {
		if images[i] != nil {
			images[i] = unlock(ctx, &volumes[i], images[i], secrets)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// stayLocked says of an encrypted volume what it would take.
func (v *Volume) stayLocked() {
	if v.State == guestfs.Encrypted && v.locked != "" {
		v.Note = v.locked
	}
}

// parseCrypttab reads the names that a system gives its opened volumes in /dev/mapper,
// and the devices that they are on (crypttab(5)).
func parseCrypttab(text []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) >= 2 && !strings.HasPrefix(f[0], "#") && len(out) < maxMounts {
			out[f[0]] = octal(f[1])
		}
	}
	return out
}

// byContainer finds what stands in an encrypted volume by the name that it has
// when it is opened: the system's own, or udisks'.
func (g *Guest) byContainer(name string, names map[string]string) (int, bool) {
	device, ok := names[name]
	if uuid, isUUID := strings.CutPrefix(name, "luks-"); !ok && isUUID {
		device, ok = "UUID="+uuid, true
	}
	if !ok {
		return 0, false
	}
	if uuid, isUUID := strings.CutPrefix(device, "UUID="); isUUID {
		for i := range g.report.Volumes {
			if strings.EqualFold(g.report.Volumes[i].Place.ContainerUUID, uuid) && uuid != "" {
				return i, true
			}
		}
		return 0, false
	}
	return g.byDevice(device, nil)
}
