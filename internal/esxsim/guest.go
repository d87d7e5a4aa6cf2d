package esxsim

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// guestState is what stands for the inside of a guest: a directory.
type guestState struct {
	dir            string
	user, password string
	program        func(program, arguments, dir string) int
	windows        bool
	transfers      map[string]transfer
	processes      []types.GuestProcessInfo
	// attrs are the attributes that only Windows has, by inode.
	attrs map[uint64]types.GuestWindowsFileAttributes
}

// transfer is a file on its way into or out of a guest.
type transfer struct {
	path      string
	upload    bool
	size      int64
	overwrite bool
	attr      types.BaseGuestFileAttributes
}

// GuestDir is the directory that stands for a VM's guest: what guest operations
// see as /.
func (m *VM) GuestDir() string { m.s.mu.Lock(); defer m.s.mu.Unlock(); return m.v.guest.dir }

func (s *Sim) newGuest(spec VMSpec) (guestState, error) {
	g := guestState{dir: spec.GuestDir, user: spec.GuestUser, password: spec.GuestPassword, program: spec.GuestProgram, transfers: map[string]transfer{}, attrs: map[uint64]types.GuestWindowsFileAttributes{}}
	g.windows = strings.HasPrefix(strings.ToLower(spec.GuestID), "win")
	def(&g.user, "root")
	def(&g.password, "guest")
	if g.dir == "" {
		g.dir = filepath.Join(s.opts.Dir, "guests", fileStem(spec.Name))
	}
	return g, os.MkdirAll(filepath.Join(g.dir, "tmp"), 0o755)
}

// guestCalls stands before the managers of guest operations.
type guestCalls struct{ base }

// guestAuth is the one manager that govmomi's simulator lacks.
type guestAuth struct{ mo.GuestAuthManager }

func (s *Sim) addGuestAuth() {
	for _, o := range s.reg.AllReference("GuestOperationsManager") {
		m := o.(*simulator.GuestOperationsManager)
		a := &guestAuth{}
		a.Self = ref{Type: "GuestAuthManager", Value: "guestOperationsAuthManager"}
		s.reg.Put(a)
		m.AuthManager = &a.Self
	}
}

// guestRoot checks what every guest operation needs [API: GuestOperationsFault]
// and opens the guest's file system.
func (s *Sim) guestRoot(of ref, auth types.BaseGuestAuthentication) (*vm, *os.Root, types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vms[of]
	switch {
	case v == nil:
		return nil, nil, &types.ManagedObjectNotFound{Obj: of}
	case v.power != poweredOn:
		return nil, nil, wrongPower(v, poweredOn)
	case !v.toolsUp || v.guest.dir == "":
		return nil, nil, said(&types.GuestOperationsUnavailable{}, "msg.guest", "The guest operations agent could not be contacted.")
	}
	name, ok := auth.(*types.NamePasswordAuthentication)
	if !ok || name.Username != v.guest.user || name.Password != v.guest.password {
		return nil, nil, said(&types.InvalidGuestLogin{}, "msg.guest", "Failed to authenticate with the guest operating system using the supplied credentials.")
	}
	root, err := os.OpenRoot(v.guest.dir)
	if err != nil {
		return nil, nil, &types.SystemError{Reason: err.Error()}
	}
	return v, root, nil
}

// inside is a guest's path, of Unix or Windows, inside the directory: C:\x is C/x.
func (g *guestState) inside(name string) string {
	if g.windows {
		name = strings.ReplaceAll(strings.ReplaceAll(name, `\`, "/"), ":", "")
	}
	if clean := strings.Trim(path.Clean("/"+name), "/"); clean != "" {
		return clean
	}
	return "."
}

func guestFault(name string, err error) types.BaseMethodFault {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &types.FileNotFound{FileFault: types.FileFault{File: name}}
	case errors.Is(err, fs.ErrExist):
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: name}}
	case errors.Is(err, fs.ErrPermission):
		return &types.GuestPermissionDenied{}
	}
	return &types.FileFault{File: name}
}

// guest runs f in a guest's file system.
func (d *guestCalls) guest(of ref, auth types.BaseGuestAuthentication, name string, f func(v *vm, root *os.Root, at string) error) *soap.Fault {
	v, root, bad := d.s.guestRoot(of, auth)
	if bad != nil {
		return fault(bad, describe(bad))
	}
	defer root.Close()
	if err := f(v, root, v.guest.inside(name)); err != nil {
		bad := guestFault(name, err)
		return fault(bad, describe(bad))
	}
	return nil
}

// ValidateCredentialsInGuest [API].
func (d *guestCalls) ValidateCredentialsInGuest(_ *simulator.Context, req *types.ValidateCredentialsInGuest) soap.HasFault {
	if f := d.guest(req.Vm, req.Auth, "/", func(*vm, *os.Root, string) error { return nil }); f != nil {
		return &methods.ValidateCredentialsInGuestBody{Fault_: f}
	}
	return &methods.ValidateCredentialsInGuestBody{Res: &types.ValidateCredentialsInGuestResponse{}}
}

// MakeDirectoryInGuest [API].
func (d *guestCalls) MakeDirectoryInGuest(_ *simulator.Context, req *types.MakeDirectoryInGuest) soap.HasFault {
	f := d.guest(req.Vm, req.Auth, req.DirectoryPath, func(_ *vm, root *os.Root, at string) error {
		if req.CreateParentDirectories {
			return root.MkdirAll(at, 0o755)
		}
		return root.Mkdir(at, 0o755)
	})
	if f != nil {
		return &methods.MakeDirectoryInGuestBody{Fault_: f}
	}
	return &methods.MakeDirectoryInGuestBody{Res: &types.MakeDirectoryInGuestResponse{}}
}

// DeleteFileInGuest [API].
func (d *guestCalls) DeleteFileInGuest(_ *simulator.Context, req *types.DeleteFileInGuest) soap.HasFault {
	f := d.guest(req.Vm, req.Auth, req.FilePath, func(_ *vm, root *os.Root, at string) error { return root.Remove(at) })
	if f != nil {
		return &methods.DeleteFileInGuestBody{Fault_: f}
	}
	return &methods.DeleteFileInGuestBody{Res: &types.DeleteFileInGuestResponse{}}
}

// DeleteDirectoryInGuest [API].
func (d *guestCalls) DeleteDirectoryInGuest(_ *simulator.Context, req *types.DeleteDirectoryInGuest) soap.HasFault {
	f := d.guest(req.Vm, req.Auth, req.DirectoryPath, func(_ *vm, root *os.Root, at string) error {
		if req.Recursive {
			return root.RemoveAll(at)
		}
		return root.Remove(at)
	})
	if f != nil {
		return &methods.DeleteDirectoryInGuestBody{Fault_: f}
	}
	return &methods.DeleteDirectoryInGuestBody{Res: &types.DeleteDirectoryInGuestResponse{}}
}

// MoveFileInGuest [API].
func (d *guestCalls) MoveFileInGuest(_ *simulator.Context, req *types.MoveFileInGuest) soap.HasFault {
	f := d.guest(req.Vm, req.Auth, req.SrcFilePath, func(v *vm, root *os.Root, at string) error {
		to := v.guest.inside(req.DstFilePath)
		if _, err := root.Lstat(to); err == nil && !req.Overwrite {
			return fs.ErrExist
		}
		return root.Rename(at, to)
	})
	if f != nil {
		return &methods.MoveFileInGuestBody{Fault_: f}
	}
	return &methods.MoveFileInGuestBody{Res: &types.MoveFileInGuestResponse{}}
}

// CreateTemporaryDirectoryInGuest [API].
func (d *guestCalls) CreateTemporaryDirectoryInGuest(_ *simulator.Context, req *types.CreateTemporaryDirectoryInGuest) soap.HasFault {
	dir := req.DirectoryPath
	def(&dir, "/tmp")
	made := path.Join(dir, req.Prefix+randomToken()[:8]+req.Suffix)
	f := d.guest(req.Vm, req.Auth, made, func(_ *vm, root *os.Root, at string) error { return root.Mkdir(at, 0o700) })
	if f != nil {
		return &methods.CreateTemporaryDirectoryInGuestBody{Fault_: f}
	}
	return &methods.CreateTemporaryDirectoryInGuestBody{Res: &types.CreateTemporaryDirectoryInGuestResponse{Returnval: made}}
}

// CreateTemporaryFileInGuest [API].
func (d *guestCalls) CreateTemporaryFileInGuest(_ *simulator.Context, req *types.CreateTemporaryFileInGuest) soap.HasFault {
	dir := req.DirectoryPath
	def(&dir, "/tmp")
	made := path.Join(dir, req.Prefix+randomToken()[:8]+req.Suffix)
	f := d.guest(req.Vm, req.Auth, made, func(_ *vm, root *os.Root, at string) error {
		file, err := root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			err = file.Close()
		}
		return err
	})
	if f != nil {
		return &methods.CreateTemporaryFileInGuestBody{Fault_: f}
	}
	return &methods.CreateTemporaryFileInGuestBody{Res: &types.CreateTemporaryFileInGuestResponse{Returnval: made}}
}

// ListFilesInGuest [API]: pages of 50 unless asked for otherwise.
func (d *guestCalls) ListFilesInGuest(_ *simulator.Context, req *types.ListFilesInGuest) soap.HasFault {
	var info types.GuestListFileInfo
	f := d.guest(req.Vm, req.Auth, req.FilePath, func(v *vm, root *os.Root, at string) error {
		pattern, err := regexp.Compile(req.MatchPattern)
		if err != nil {
			return err
		}
		fi, err := root.Lstat(at)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			info.Files = append(info.Files, d.s.guestFile(v, root, at, fi, fi.Name()))
			return nil
		}
		list, err := fs.ReadDir(root.FS(), at)
		if err != nil {
			return err
		}
		for _, e := range list {
			if fi, err := e.Info(); err == nil && pattern.MatchString(e.Name()) {
				info.Files = append(info.Files, d.s.guestFile(v, root, path.Join(at, e.Name()), fi, e.Name()))
			}
		}
		return nil
	})
	if f != nil {
		return &methods.ListFilesInGuestBody{Fault_: f}
	}
	most := int(req.MaxResults)
	def(&most, 50)
	first := min(int(max(req.Index, 0)), len(info.Files))
	last := min(first+most, len(info.Files))
	info.Remaining = int32(len(info.Files) - last)
	info.Files = info.Files[first:last]
	return &methods.ListFilesInGuestBody{Res: &types.ListFilesInGuestResponse{Returnval: info}}
}

// ChangeFileAttributesInGuest [API].
func (d *guestCalls) ChangeFileAttributesInGuest(_ *simulator.Context, req *types.ChangeFileAttributesInGuest) soap.HasFault {
	f := d.guest(req.Vm, req.Auth, req.GuestFilePath, func(v *vm, root *os.Root, at string) error {
		return d.s.setGuestAttr(v, root, at, req.FileAttributes)
	})
	if f != nil {
		return &methods.ChangeFileAttributesInGuestBody{Fault_: f}
	}
	return &methods.ChangeFileAttributesInGuestBody{Res: &types.ChangeFileAttributesInGuestResponse{}}
}

// StartProgramInGuest [API]: what a program does is the test's to say; without
// that it ends at once, well.
func (d *guestCalls) StartProgramInGuest(_ *simulator.Context, req *types.StartProgramInGuest) soap.HasFault {
	spec := req.Spec.GetGuestProgramSpec()
	var pid int64
	f := d.guest(req.Vm, req.Auth, "/", func(v *vm, _ *os.Root, _ string) error {
		code := 0
		begin := time.Now()
		if v.guest.program != nil {
			code = v.guest.program(spec.ProgramPath, spec.Arguments, v.guest.dir)
		}
		end := time.Now()
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		pid = int64(1000 + len(v.guest.processes))
		v.guest.processes = append(v.guest.processes, types.GuestProcessInfo{
			Name: path.Base(spec.ProgramPath), Pid: pid, Owner: v.guest.user, CmdLine: spec.ProgramPath + " " + spec.Arguments,
			StartTime: begin, EndTime: &end, ExitCode: int32(code),
		})
		return nil
	})
	if f != nil {
		return &methods.StartProgramInGuestBody{Fault_: f}
	}
	return &methods.StartProgramInGuestBody{Res: &types.StartProgramInGuestResponse{Returnval: pid}}
}

// ListProcessesInGuest [API].
func (d *guestCalls) ListProcessesInGuest(_ *simulator.Context, req *types.ListProcessesInGuest) soap.HasFault {
	var list []types.GuestProcessInfo
	f := d.guest(req.Vm, req.Auth, "/", func(v *vm, _ *os.Root, _ string) error {
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		for _, p := range v.guest.processes {
			ours := len(req.Pids) == 0
			for _, pid := range req.Pids {
				ours = ours || pid == p.Pid
			}
			if ours {
				list = append(list, p)
			}
		}
		return nil
	})
	if f != nil {
		return &methods.ListProcessesInGuestBody{Fault_: f}
	}
	return &methods.ListProcessesInGuestBody{Res: &types.ListProcessesInGuestResponse{Returnval: list}}
}
