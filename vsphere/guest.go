package vsphere

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// GuestAuth is a user of the guest.
type GuestAuth struct {
	Username, Password string
	Interactive        bool // in the desktop session of the user who is logged in
}

// GuestFile is an entry of a directory in a guest.
type GuestFile struct {
	Path     string         `json:"path"` // a name; "." and ".." are left out
	Type     string         `json:"type"` // "file", "directory", "symlink"
	Size     int64          `json:"size"`
	Modified time.Time      `json:"modified"`
	Attrs    GuestFileAttrs `json:"attrs"`
}

// GuestFileAttrs are the attributes that VMware Tools can set. A zero value sets
// nothing: in particular Owner and Group are pointers.
type GuestFileAttrs struct {
	Modified, Accessed time.Time // zero = leave
	Windows            bool      // which of the following hold
	Hidden, ReadOnly   bool      // Windows
	Created            time.Time // Windows; zero = leave
	Owner, Group       *int32    // POSIX; nil = leave
	Mode               uint32    // POSIX permission bits; 0 = leave
	LinkTarget         string    // told, never set
}

// GuestProgram is a program to be run in a guest.
type GuestProgram struct {
	Path    string
	Args    string // one string, as vSphere takes it: quoting is the program's matter
	Dir     string
	Env     []string
	Timeout time.Duration // 0 = 10 minutes
}

// Guest are operations inside a running guest, through VMware Tools and the
// host: no network to the guest is needed. It holds no state at the server.
// Errors of its methods: ErrGuestTools, ErrGuestCredentials, ErrGuestPermission,
// ErrNotFound, ErrExists, ErrState (the VM is off).
type Guest struct {
	c         *Client
	vm        types.ManagedObjectReference
	auth      *types.NamePasswordAuthentication
	files     types.ManagedObjectReference
	processes types.ManagedObjectReference
}

// Guest checks that the guest takes this user, and returns what can be done as
// that user.
func (c *Client) Guest(ctx context.Context, vm Ref, a GuestAuth) (*Guest, error) {
	op := fmt.Sprintf("log in to the guest of %s as %s", vm, a.Username)
	if c.vim.ServiceContent.GuestOperationsManager == nil {
		return nil, &Error{Op: op, Kind: ErrUnsupported, Text: "the server offers no operations in guests"}
	}
	var m mo.GuestOperationsManager
	if err := c.retrieveOne(ctx, op, *c.vim.ServiceContent.GuestOperationsManager, []string{"authManager", "fileManager", "processManager"}, &m); err != nil {
		return nil, err
	}
	if m.FileManager == nil || m.ProcessManager == nil || m.AuthManager == nil {
		return nil, &Error{Op: op, Kind: ErrUnsupported, Text: "the server offers no files and programs in guests"}
	}
	g := &Guest{c: c, vm: mor(vm), files: *m.FileManager, processes: *m.ProcessManager, auth: &types.NamePasswordAuthentication{
		GuestAuthentication: types.GuestAuthentication{InteractiveSession: a.Interactive}, Username: a.Username, Password: a.Password,
	}}
	_, err := methods.ValidateCredentialsInGuest(ctx, c.session, &types.ValidateCredentialsInGuest{This: *m.AuthManager, Vm: g.vm, Auth: g.auth})
	if err != nil {
		return nil, c.fail(op, err)
	}
	c.trustHostOf(ctx, vm)
	return g, nil
}

// trustHostOf accepts the certificate of the host that a VM runs on as vCenter
// knows it: file transfers go to that host. Where vCenter does not tell, the
// transfer fails with the certificate's own error.
func (c *Client) trustHostOf(ctx context.Context, vm Ref) {
	if !c.about.VCenter || c.trust.insecure {
		return
	}
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: mor(vm), SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "VirtualMachine", Path: "runtime.host"}}}},
		PropSet:   []types.PropertySpec{{Type: "HostSystem", PathSet: []string{"name", "config.certificate"}}},
	})
	if err != nil {
		c.log.Debug("certificate of the VM's host is not known", "vm", vm, "error", err)
		return
	}
	for _, o := range objects {
		v, err := load(o)
		h, ok := v.(*mo.HostSystem)
		if err != nil || !ok || h.Config == nil {
			continue
		}
		if block, _ := pem.Decode(h.Config.Certificate); block != nil {
			sum := sha256.Sum256(block.Bytes)
			c.trust.accept(h.Name, colons(sum[:]))
		}
	}
}

// Upload writes a file of size bytes in the guest.
func (g *Guest) Upload(ctx context.Context, name string, r io.Reader, size int64, a GuestFileAttrs, overwrite bool) error {
	op := "write " + name + " in the guest"
	res, err := methods.InitiateFileTransferToGuest(ctx, g.c.session, &types.InitiateFileTransferToGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, GuestFilePath: name, FileAttributes: a.wire(), FileSize: size, Overwrite: overwrite,
	})
	if err != nil {
		return g.fail(op, err)
	}
	u, err := g.c.elsewhere(res.Returnval, "")
	if err != nil {
		return g.fail(op, err)
	}
	answer, err := g.c.send(ctx, http.MethodPut, u, http.Header{"Content-Type": {"application/octet-stream"}}, r, size)
	if err != nil {
		return g.fail(op, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusCreated {
		return guestRefused(op, answer)
	}
	return nil
}

// Download reads a file of the guest; it returns the size too. The caller closes
// the reader, which fails with io.ErrUnexpectedEOF when less comes.
func (g *Guest) Download(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	op := "read " + name + " in the guest"
	res, err := methods.InitiateFileTransferFromGuest(ctx, g.c.session, &types.InitiateFileTransferFromGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, GuestFilePath: name,
	})
	if err != nil {
		return nil, 0, g.fail(op, err)
	}
	u, err := g.c.elsewhere(res.Returnval.Url, "")
	if err != nil {
		return nil, 0, g.fail(op, err)
	}
	answer, err := g.c.send(ctx, http.MethodGet, u, nil, nil, 0)
	if err != nil {
		return nil, 0, g.fail(op, err)
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, 0, guestRefused(op, answer)
	}
	size := res.Returnval.Size
	return &exactBody{body: answer.Body, left: size}, size, nil
}

// MakeDir makes a directory, with those above it if parents. Errors: ErrExists.
func (g *Guest) MakeDir(ctx context.Context, name string, parents bool) error {
	_, err := methods.MakeDirectoryInGuest(ctx, g.c.session, &types.MakeDirectoryInGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, DirectoryPath: name, CreateParentDirectories: parents,
	})
	return g.fail("make the directory "+name+" in the guest", err)
}

// maxListed bounds a directory listing, entries.
const maxListed = 5_000_000

func guestFile(f types.GuestFileInfo) GuestFile {
	out := GuestFile{Path: f.Path, Type: f.Type, Size: f.Size}
	if f.Attributes == nil {
		return out
	}
	a := f.Attributes.GetGuestFileAttributes()
	out.Attrs.LinkTarget = a.SymlinkTarget
	if a.ModificationTime != nil {
		out.Modified, out.Attrs.Modified = a.ModificationTime.UTC(), a.ModificationTime.UTC()
	}
	if a.AccessTime != nil {
		out.Attrs.Accessed = a.AccessTime.UTC()
	}
	switch a := f.Attributes.(type) {
	case *types.GuestPosixFileAttributes:
		out.Attrs.Owner, out.Attrs.Group, out.Attrs.Mode = a.OwnerId, a.GroupId, uint32(a.Permissions)
	case *types.GuestWindowsFileAttributes:
		out.Attrs.Windows, out.Attrs.Hidden, out.Attrs.ReadOnly = true, isTrue(a.Hidden), isTrue(a.ReadOnly)
		if a.CreateTime != nil {
			out.Attrs.Created = a.CreateTime.UTC()
		}
	}
	return out
}

// wire brings attributes to the form in which vSphere takes them.
func (a GuestFileAttrs) wire() types.BaseGuestFileAttributes {
	var common types.GuestFileAttributes
	if !a.Modified.IsZero() {
		common.ModificationTime = &a.Modified
	}
	if !a.Accessed.IsZero() {
		common.AccessTime = &a.Accessed
	}
	if a.Windows {
		w := &types.GuestWindowsFileAttributes{GuestFileAttributes: common, Hidden: &a.Hidden, ReadOnly: &a.ReadOnly}
		if !a.Created.IsZero() {
			w.CreateTime = &a.Created
		}
		return w
	}
	if a.Owner == nil && a.Group == nil && a.Mode == 0 {
		return &common
	}
	return &types.GuestPosixFileAttributes{GuestFileAttributes: common, OwnerId: a.Owner, GroupId: a.Group, Permissions: int64(a.Mode)}
}

// SetAttributes changes what a file or directory has.
func (g *Guest) SetAttributes(ctx context.Context, name string, a GuestFileAttrs) error {
	_, err := methods.ChangeFileAttributesInGuest(ctx, g.c.session, &types.ChangeFileAttributesInGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, GuestFilePath: name, FileAttributes: a.wire(),
	})
	return g.fail("change the attributes of "+name+" in the guest", err)
}

// Rename moves a file.
func (g *Guest) Rename(ctx context.Context, from, to string, overwrite bool) error {
	_, err := methods.MoveFileInGuest(ctx, g.c.session, &types.MoveFileInGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, SrcFilePath: from, DstFilePath: to, Overwrite: overwrite,
	})
	return g.fail("rename "+from+" to "+to+" in the guest", err)
}

// Remove deletes a file.
func (g *Guest) Remove(ctx context.Context, name string) error {
	_, err := methods.DeleteFileInGuest(ctx, g.c.session, &types.DeleteFileInGuest{This: g.files, Vm: g.vm, Auth: g.auth, FilePath: name})
	return g.fail("delete "+name+" in the guest", err)
}

// RemoveDir deletes a directory, with what is in it if recursive.
func (g *Guest) RemoveDir(ctx context.Context, name string, recursive bool) error {
	_, err := methods.DeleteDirectoryInGuest(ctx, g.c.session, &types.DeleteDirectoryInGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, DirectoryPath: name, Recursive: recursive,
	})
	return g.fail("delete the directory "+name+" in the guest", err)
}

// TempDir makes a directory of its own in the guest's directory for such.
func (g *Guest) TempDir(ctx context.Context, prefix string) (string, error) {
	res, err := methods.CreateTemporaryDirectoryInGuest(ctx, g.c.session, &types.CreateTemporaryDirectoryInGuest{
		This: g.files, Vm: g.vm, Auth: g.auth, Prefix: prefix,
	})
	if err != nil {
		return "", g.fail("make a temporary directory in the guest", err)
	}
	return res.Returnval, nil
}

// RunProgram runs a program and waits for its end. When ctx ends, or its
// time limit, it is terminated. Its output is not seen: let it write a file.
func (g *Guest) RunProgram(ctx context.Context, p GuestProgram) (exit int32, err error) {
	op := "run " + p.Path + " in the guest"
	limit := orElse(p.Timeout, 10*time.Minute)
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	started, err := methods.StartProgramInGuest(inner, g.c.session, &types.StartProgramInGuest{
		This: g.processes, Vm: g.vm, Auth: g.auth,
		Spec: &types.GuestProgramSpec{ProgramPath: p.Path, Arguments: p.Args, WorkingDirectory: p.Dir, EnvVariables: p.Env},
	})
	if err != nil {
		return 0, g.fail(op, err)
	}
	pid := started.Returnval
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		res, err := methods.ListProcessesInGuest(inner, g.c.session, &types.ListProcessesInGuest{This: g.processes, Vm: g.vm, Auth: g.auth, Pids: []int64{pid}})
		if err != nil && inner.Err() == nil {
			return 0, g.fail(op, err)
		}
		if err == nil && len(res.Returnval) == 0 {
			return 0, &Error{Op: op, Kind: ErrFault, Text: "the guest does not know the program any more; how it ended was not told"}
		}
		if err == nil && res.Returnval[0].EndTime != nil {
			return res.Returnval[0].ExitCode, nil
		}
		if !pausing(inner, pause) {
			break
		}
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, _ = methods.TerminateProcessInGuest(late, g.c.session, &types.TerminateProcessInGuest{This: g.processes, Vm: g.vm, Auth: g.auth, Pid: pid})
	if ctx.Err() != nil {
		return 0, g.fail(op, context.Cause(ctx))
	}
	return 0, &Error{Op: op, Kind: ErrTimeout, Text: "it did not end within " + limit.String() + " and was terminated"}
}

// Close ends nothing at the server; it forgets the password.
func (g *Guest) Close(context.Context) error {
	g.auth = &types.NamePasswordAuthentication{}
	return nil
}

func (g *Guest) fail(op string, err error) error { return g.c.fail(op, err) }
