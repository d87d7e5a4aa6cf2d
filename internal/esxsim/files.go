package esxsim

import (
	"context"
	"io/fs"
	"path"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// browserCalls stands before HostDatastoreBrowser.
type browserCalls struct{ base }

// SearchDatastoreTask lists one directory [API: SearchDatastore_Task].
func (d *browserCalls) SearchDatastoreTask(ctx *simulator.Context, req *types.SearchDatastore_Task) soap.HasFault {
	t, f := d.s.startTask(ctx, "SearchDatastore_Task", req.This, nil, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		all, f := d.s.search(req.DatastorePath, req.SearchSpec, false)
		if f != nil {
			return nil, f
		}
		return all[0], nil
	})
	if f != nil {
		return &methods.SearchDatastore_TaskBody{Fault_: f}
	}
	return &methods.SearchDatastore_TaskBody{Res: &types.SearchDatastore_TaskResponse{Returnval: t}}
}

// SearchDatastoreSubFoldersTask lists a tree.
func (d *browserCalls) SearchDatastoreSubFoldersTask(ctx *simulator.Context, req *types.SearchDatastoreSubFolders_Task) soap.HasFault {
	t, f := d.s.startTask(ctx, "SearchDatastoreSubFolders_Task", req.This, nil, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		all, f := d.s.search(req.DatastorePath, req.SearchSpec, true)
		if f != nil {
			return nil, f
		}
		return types.ArrayOfHostDatastoreBrowserSearchResults{HostDatastoreBrowserSearchResults: all}, nil
	})
	if f != nil {
		return &methods.SearchDatastoreSubFolders_TaskBody{Fault_: f}
	}
	return &methods.SearchDatastoreSubFolders_TaskBody{Res: &types.SearchDatastoreSubFolders_TaskResponse{Returnval: t}}
}

func (s *Sim) search(where string, spec *types.HostDatastoreBrowserSearchSpec, deep bool) ([]types.HostDatastoreBrowserSearchResults, types.BaseMethodFault) {
	s.mu.Lock()
	at, f := s.resolve(where)
	s.mu.Unlock()
	if f != nil {
		return nil, f
	}
	list, err := at.ds.vol.list(at.path)
	if err != nil {
		return nil, fileFault(where, err)
	}
	result := types.HostDatastoreBrowserSearchResults{Datastore: &at.ds.ref, FolderPath: at.String()}
	if !strings.HasSuffix(result.FolderPath, "/") && at.path != "" {
		result.FolderPath += "/"
	}
	all := []types.HostDatastoreBrowserSearchResults{}
	for _, e := range list {
		if wanted(spec, e.name) {
			result.File = append(result.File, fileInfo(e))
		}
		if deep && e.dir {
			below, f := s.search(at.join(e.name).String(), spec, true)
			if f != nil {
				return nil, f
			}
			all = append(all, below...)
		}
	}
	return append([]types.HostDatastoreBrowserSearchResults{result}, all...), nil
}

func wanted(spec *types.HostDatastoreBrowserSearchSpec, name string) bool {
	if spec == nil || len(spec.MatchPattern) == 0 {
		// A disk's extents are not shown, only its descriptor.
		return !strings.HasSuffix(name, "-flat.vmdk") && !strings.HasSuffix(name, "-delta.vmdk")
	}
	for _, p := range spec.MatchPattern {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}

func fileInfo(e entry) types.BaseFileInfo {
	info := types.FileInfo{Path: e.name, FileSize: e.size}
	if e.dir {
		return &types.FolderFileInfo{FileInfo: info}
	}
	switch path.Ext(e.name) {
	case ".vmdk":
		return &types.VmDiskFileInfo{FileInfo: info}
	case ".vmx":
		return &types.VmConfigFileInfo{FileInfo: info}
	case ".nvram":
		return &types.VmNvramFileInfo{FileInfo: info}
	}
	return &info
}

// fileCalls stands before FileManager and VirtualDiskManager.
type fileCalls struct{ base }

// MakeDirectory [API].
func (d *fileCalls) MakeDirectory(_ *simulator.Context, req *types.MakeDirectory) soap.HasFault {
	f := d.change(req.Name, func(at dsPath) error {
		if exists(at) {
			return fs.ErrExist
		}
		parents := req.CreateParentDirectories != nil && *req.CreateParentDirectories
		if dir := at.dir(); !parents && dir.path != "." && !exists(dir) {
			return fs.ErrNotExist
		}
		return at.ds.vol.change(opMkdir, at.path, "")
	})
	if f != nil {
		return &methods.MakeDirectoryBody{Fault_: fault(f, describe(f))}
	}
	return &methods.MakeDirectoryBody{Res: &types.MakeDirectoryResponse{}}
}

func (d *fileCalls) change(name string, f func(at dsPath) error) types.BaseMethodFault {
	d.s.mu.Lock()
	at, bad := d.s.resolve(name)
	d.s.mu.Unlock()
	if bad != nil {
		return bad
	}
	if err := f(at); err != nil {
		return fileFault(name, err)
	}
	return nil
}

func (d *fileCalls) task(ctx *simulator.Context, method string, this ref, name string, f func(at dsPath) error) (ref, *soap.Fault) {
	return d.s.startTask(ctx, method, this, nil, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		return nil, d.change(name, f)
	})
}

// DeleteDatastoreFileTask [API: DeleteDatastoreFile_Task]: trees too.
func (d *fileCalls) DeleteDatastoreFileTask(ctx *simulator.Context, req *types.DeleteDatastoreFile_Task) soap.HasFault {
	t, f := d.task(ctx, "DeleteDatastoreFile_Task", req.This, req.Name, d.remove)
	if f != nil {
		return &methods.DeleteDatastoreFile_TaskBody{Fault_: f}
	}
	return &methods.DeleteDatastoreFile_TaskBody{Res: &types.DeleteDatastoreFile_TaskResponse{Returnval: t}}
}

func (d *fileCalls) remove(at dsPath) error {
	e, err := at.ds.vol.stat(at.path)
	if err != nil {
		return err
	}
	d.s.mu.Lock()
	held := d.s.inUse(at, true)
	for _, v := range d.s.vms {
		held = held || e.dir && v.vmx.ds == at.ds && strings.HasPrefix(v.vmx.path, at.path+"/")
	}
	d.s.mu.Unlock()
	if held {
		return errLocked
	}
	if e.dir {
		return at.ds.vol.change(opRemoveAll, at.path, "")
	}
	return at.ds.vol.change(opRemove, at.path, "")
}

// DeleteVirtualDiskTask deletes descriptor and extent [API: DeleteVirtualDisk_Task].
func (d *fileCalls) DeleteVirtualDiskTask(ctx *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	t, f := d.task(ctx, "DeleteVirtualDisk_Task", req.This, req.Name, func(at dsPath) error {
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		l, _, err := d.s.readLayer(at)
		if err != nil {
			return err
		}
		if d.s.inUse(at, true) || l.users.Load() > 0 || d.s.topOfOther(nil, l) {
			return errLocked
		}
		d.s.deleteLayer(l)
		return nil
	})
	if f != nil {
		return &methods.DeleteVirtualDisk_TaskBody{Fault_: f}
	}
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{Returnval: t}}
}

// CreateVirtualDiskTask [API: CreateVirtualDisk_Task].
func (d *fileCalls) CreateVirtualDiskTask(ctx *simulator.Context, req *types.CreateVirtualDisk_Task) soap.HasFault {
	t, f := d.task(ctx, "CreateVirtualDisk_Task", req.This, req.Name, func(at dsPath) error {
		size := int64(0)
		if spec, ok := req.Spec.(types.BaseFileBackedVirtualDiskSpec); ok {
			size = spec.GetFileBackedVirtualDiskSpec().CapacityKb * 1024
		}
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		l, err := d.s.createFlat(at, size, &vdisk{uuid: diskUUID()})
		if err != nil {
			return err
		}
		return l.close()
	})
	if f != nil {
		return &methods.CreateVirtualDisk_TaskBody{Fault_: f}
	}
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{Returnval: t}}
}

// MoveDatastoreFileTask renames inside one datastore [API: MoveDatastoreFile_Task].
func (d *fileCalls) MoveDatastoreFileTask(ctx *simulator.Context, req *types.MoveDatastoreFile_Task) soap.HasFault {
	t, f := d.task(ctx, "MoveDatastoreFile_Task", req.This, req.SourceName, func(at dsPath) error {
		d.s.mu.Lock()
		to, bad := d.s.resolve(req.DestinationName)
		d.s.mu.Unlock()
		if bad != nil || to.ds != at.ds {
			return fs.ErrInvalid
		}
		if exists(to) {
			if req.Force == nil || !*req.Force {
				return fs.ErrExist
			}
			if err := d.remove(to); err != nil {
				return err
			}
		}
		return at.ds.vol.change(opRename, at.path, to.path)
	})
	if f != nil {
		return &methods.MoveDatastoreFile_TaskBody{Fault_: f}
	}
	return &methods.MoveDatastoreFile_TaskBody{Res: &types.MoveDatastoreFile_TaskResponse{Returnval: t}}
}
