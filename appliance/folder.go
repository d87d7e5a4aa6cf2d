package appliance

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
	"lifeboat/store"
	"lifeboat/store/overlay"
)

// folderConfig gives the files that make the VM of a point, by name, the one
// called f.VMX among them. efi is what the first disk looks like.
type folderConfig func(ctx context.Context, repo *store.Repository, pt *store.Point, f *Folder, efi bool) (map[string][]byte, error)

// writeFolder makes a point's folder: the VM's files, a descriptor and a
// placeholder per disk. Files are durable when it returns, so that the record
// can say so.
func (p *openSession) writeFolder(ctx context.Context, repo *store.Repository, pt *store.Point, f *Folder, disks []*overlay.Overlay) error {
	dir := filepath.Join(p.state.Datastore(), p.Session.Name, f.Name)
	fsys := vfs.OS()
	if err := fsys.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	efi := false
	for i, v := range f.Disks {
		desc, err := descriptor(v)
		if err != nil {
			return err
		}
		if err := writeDurable(fsys, filepath.Join(dir, v.Descriptor), desc, 0o600); err != nil {
			return err
		}
		flat := filepath.Join(dir, v.Flat)
		if err := writeDurable(fsys, flat, nil, 0o600); err != nil {
			return err
		}
		if f.Disks[i].Placeholder, err = markOf(flat); err != nil {
			return err
		}
		if i == 0 {
			if efi, err = bootsWithEFI(disks[0]); err != nil {
				return err
			}
		}
	}
	config := p.config
	if config == nil {
		config = publishedConfig(p.Session.Name)
	}
	files, err := config(ctx, repo, pt, f, efi)
	if err != nil {
		return err
	}
	for name, data := range files {
		// The host runs a VM only if it may execute its .vmx.
		if err := writeDurable(fsys, filepath.Join(dir, name), data, 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := fsys.SyncDir(d); err != nil {
			return err
		}
	}
	return nil
}

// descriptor renders the text descriptor of a published disk.
func descriptor(v Virtual) ([]byte, error) {
	var id [20]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	return disk.NewDescriptor(disk.DescriptorSpec{
		Size: v.Size, File: v.Flat, AdapterType: diskAdapter,
		// 0 and 0xffffffff have meanings of their own (no ID, no parent).
		CID:  binary.BigEndian.Uint32(id[16:])&^(1<<31) | 1,
		UUID: diskUUID([16]byte(id[:16])),
	}).Encode()
}

// diskUUID is how VMware writes a disk's UUID; 60 00 C2 9 is its own prefix of
// generated ones (NAA type 6, VMware's OUI).
func diskUUID(id [16]byte) string {
	id[0], id[1], id[2], id[3] = 0x60, 0x00, 0xC2, 0x90|id[3]&0x0F
	return fmt.Sprintf("% X-% X", id[:8], id[8:])
}

// placeholder finds a disk's placeholder in the tree, also when a client renamed
// it or its folder: it is the file that was made for it, whatever its name. The error
// matches fs.ErrNotExist when it was removed.
func (s *State) placeholder(session string, f Folder, v Virtual) (string, error) {
	want := filepath.Join(session, f.Name, v.Flat)
	if mark, err := markOf(filepath.Join(s.Datastore(), want)); err == nil && mark == v.Placeholder {
		return want, nil
	}
	found := ""
	root := filepath.Join(s.Datastore(), session)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		mark, err := markOf(path)
		if err == nil && mark == v.Placeholder {
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fs.ErrNotExist
	}
	if err != nil {
		return "", err
	}
	return filepath.Rel(s.Datastore(), found)
}

func writeDurable(fsys vfs.FS, name string, data []byte, perm os.FileMode) error {
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(data) > 0 {
		if _, err := f.WriteAt(data, 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return f.Sync()
}

// removeSessionFiles removes a session's folder and overlays, and leaves its
// lock file to the process that holds it.
func (s *State) removeSessionFiles(name string) error {
	if err := os.RemoveAll(filepath.Join(s.Datastore(), name)); err != nil {
		return fmt.Errorf("session %q: removing its folder: %w", name, err)
	}
	entries, err := os.ReadDir(s.sessionDir(name))
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("session %q: %w", name, err)
	}
	for _, e := range entries {
		if e.Name() == "lock" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.sessionDir(name), e.Name())); err != nil {
			return fmt.Errorf("session %q: removing an overlay: %w", name, err)
		}
	}
	return nil
}
