package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"lifeboat/guestfs/inspect"
	"lifeboat/vsphere"
)

// ToVMRequest says what is put back into a running guest, and how.
type ToVMRequest struct {
	Places []string // as in GetRequest
	VM     string   // pattern that fits one VM, see vsphere.Inventory.Match
	Auth   vsphere.GuestAuth
	// To is a directory of the guest in its own spelling; "" puts everything where
	// it was.
	To string
	// Overwrite replaces files that exist. Directories that exist are used as they
	// are, with or without it.
	Overwrite bool
	// ReadBack reads what was written and compares it, where the guest cannot tell
	// a checksum itself.
	ReadBack bool
	// Progress is as in GetRequest.
	Progress func(files, bytes, total int64, counted bool)
	// Put, if not nil, hears of each file once it is in its place.
	Put    func(PutFile)
	Logger *slog.Logger // nil: slog.Default
}

// ToVMResult is what came of it. It is complete, too, when an error ended it.
type ToVMResult struct {
	VM       string           `json:"vm"`
	Identity vsphere.Identity `json:"identity"`
	Files    int64            `json:"files"`       // that were put in their place, links included
	Dirs     int64            `json:"directories"` // that were made
	Bytes    int64            `json:"bytes"`       // content of Files
	Replaced int64            `json:"replaced"`    // of Files
	Put      []PutFile        `json:"put"`         // the first of them
	More     int64            `json:"put_not_listed,omitempty"`
	LeftOut  []LeftOut        `json:"left_out"`
}

// PutFile is a file, a link or a new directory in the guest.
type PutFile struct {
	From     string `json:"from"` // in the restore point
	To       string `json:"to"`   // in the guest
	Type     string `json:"type"` // as in File
	Size     int64  `json:"size"` // bytes
	Replaced bool   `json:"replaced,omitempty"`
	// Checked says how the content was checked before the file got its name: "sha256"
	// (the guest told its checksum), "read back", or "size".
	Checked string `json:"checked,omitempty"`
}

// Err is what the result means for who asked, as GetResult.Err.
func (r *ToVMResult) Err() error { return (&GetResult{LeftOut: r.LeftOut}).Err() }

// maxPutListed bounds the list of files in a result.
const maxPutListed = 10_000

// RestoreToVM puts files of a restore point back into a running guest, through
// VMware Tools: no network leads there, and nothing is installed.
//
// Each file is written under a name of its own beside its place, checked, and
// renamed: whoever looks at the guest sees the old file or the new one, and when
// the work ends before its end, what was on its way is removed. What guest
// operations cannot set is said in the result; links are made where the guest has
// a shell. Nothing is followed that stands in the guest where the restore point
// has a directory: a link there is no directory.
//
// Errors: ErrUsage, ErrNotFound, and those of vsphere.Guest.
func (g *Guest) RestoreToVM(ctx context.Context, c *vsphere.Client, req ToVMRequest) (*ToVMResult, error) {
	vm, err := runningVM(ctx, c, req.VM)
	if err != nil {
		return nil, err
	}
	style := guestStyle{windows: strings.HasPrefix(strings.ToLower(vm.GuestID), "win")}
	places, err := g.returning(&req, style)
	if err != nil {
		return nil, err
	}
	missing, err := c.Preflight(ctx, vsphere.ForGuest, vm.Ref)
	if err != nil {
		return nil, err
	}
	if err := cannotPut(missing); err != nil {
		return nil, err
	}
	guest, err := c.Guest(ctx, vm.Ref, req.Auth)
	if err != nil {
		return nil, err
	}
	defer guest.Close(ctx)
	result := &ToVMResult{VM: vm.Name, Identity: vm.Identity, Put: []PutFile{}, LeftOut: []LeftOut{}}
	t := newVMTaker(g, guest, style, req, result)
	got, err := t.putAll(ctx, GetRequest{Places: places, Progress: req.Progress, Scattered: req.To == ""})
	if got != nil {
		result.LeftOut = got.LeftOut
	}
	return result, err
}

// runningVM is the one VM that a pattern fits.
func runningVM(ctx context.Context, c *vsphere.Client, pattern string) (*vsphere.VM, error) {
	inv, err := c.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	vms, err := inv.Match(pattern)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	case len(vms) == 0:
		return nil, fmt.Errorf("VM %q: %w", pattern, ErrNotFound)
	case len(vms) > 1:
		return nil, fmt.Errorf("%w: %q fits %d VMs; name one by its path", ErrUsage, pattern, len(vms))
	case vms[0].Power != vsphere.PoweredOn:
		return nil, fmt.Errorf("VM %s: %w: it is not running; start it, or take the files out with `lifeboat files get`", vms[0].Name, vsphere.ErrState)
	}
	return vms[0], nil
}

// cannotPut names the privileges without which nothing can be put anywhere. To run
// programs is not one of them: without it there are no links.
func cannotPut(missing []vsphere.Missing) error {
	var names []string
	for _, m := range missing {
		if m.Privilege != "VirtualMachine.GuestOperations.Execute" {
			names = append(names, m.String())
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: the user of the vCenter needs %s", vsphere.ErrPermission, strings.Join(names, ", "))
}

// returning brings places to what they are in the guest's own tree, when that is
// where they go back to.
func (g *Guest) returning(req *ToVMRequest, style guestStyle) ([]string, error) {
	if req.To != "" {
		to, err := style.absolute(req.To)
		req.To = to
		return req.Places, err
	}
	if kind, vm := g.systemKind(), style.kind(); kind != "" && kind != vm {
		return nil, fmt.Errorf("%w: the restore point is of a %s guest and the VM is %s: say where to with --to DIR", ErrUsage, kind, vm)
	}
	var out []string
	for _, place := range req.Places {
		at, err := g.inTree(place)
		if err != nil {
			return nil, err
		}
		out = append(out, at)
	}
	return out, nil
}

func (g *Guest) systemKind() string {
	if len(g.report.Systems) == 0 {
		return ""
	}
	return g.report.Systems[0].Kind
}

// inTree is a place VOLUME/PATH as a path of the guest's tree.
func (g *Guest) inTree(place string) (string, error) {
	inTree := place
	if len(place) >= 2 && place[1] == ':' && g.hasDrive(place[:2]) {
		inTree = "/" + strings.ReplaceAll(place, `\`, "/")
	}
	volume, rest, _ := strings.Cut(inTree, "/")
	if volume != "" {
		mount, ok := g.mountOf(volume)
		if !ok {
			return "", fmt.Errorf("%w: the guest shows %s nowhere that is known: say where to with --to DIR", ErrUsage, place)
		}
		inTree = path.Join(mount, rest)
	}
	inTree = path.Clean(inTree)
	if inTree == "/" || g.hasDrive(strings.TrimPrefix(inTree, "/")) {
		return "", fmt.Errorf("%w: %s is a whole file system, and it is running: name directories in it, or say where to with --to DIR", ErrUsage, place)
	}
	return inTree, nil
}

// mountOf is where the first system shows the whole of a volume.
func (g *Guest) mountOf(volume string) (string, bool) {
	if len(g.report.Systems) == 0 {
		return "", false
	}
	for _, m := range g.report.Systems[0].Mounts {
		if g.report.Volumes[m.Volume].Name == volume && m.Sub == "" {
			return m.Path, true
		}
	}
	return "", false
}

// guestStyle is how a guest writes names.
type guestStyle struct{ windows bool }

func (s guestStyle) kind() string {
	if s.windows {
		return inspect.Windows
	}
	return inspect.Linux
}

// absolute checks the name of a directory.
func (s guestStyle) absolute(dir string) (string, error) {
	slashed := dir
	if s.windows {
		slashed = strings.ReplaceAll(dir, `\`, "/")
		if len(slashed) < 3 || slashed[1:3] != ":/" {
			return "", fmt.Errorf("%w: %q is no directory of a Windows guest, such as C:\\restored", ErrUsage, dir)
		}
	} else if !strings.HasPrefix(slashed, "/") {
		return "", fmt.Errorf("%w: %q is no directory of the guest, such as /restored", ErrUsage, dir)
	}
	for _, part := range strings.Split(strings.Trim(slashed, "/"), "/") {
		if part == ".." || !speakable(part) {
			return "", fmt.Errorf("%w: %q is no directory that can be meant", ErrUsage, dir)
		}
	}
	return s.native("/" + strings.TrimPrefix(path.Clean(slashed), "/")), nil
}

// native is a path of the tree as the guest writes it: /C:/x is C:\x.
func (s guestStyle) native(inTree string) string {
	if !s.windows {
		return inTree
	}
	name := strings.ReplaceAll(strings.TrimPrefix(inTree, "/"), "/", `\`)
	if len(name) == 2 {
		name += `\`
	}
	return name
}

func (s guestStyle) join(dir, name string) string {
	if s.windows {
		return strings.TrimSuffix(dir, `\`) + `\` + name
	}
	return strings.TrimSuffix(dir, "/") + "/" + name
}

// split is the directory and the name of a path; a root has no name.
func (s guestStyle) split(name string) (dir, base string) {
	if !s.windows {
		dir, base = path.Split(name)
		return path.Clean(dir), base
	}
	at := strings.LastIndexByte(name, '\\')
	if at == 2 {
		return name[:3], name[3:]
	}
	return name[:at], name[at+1:]
}

// key is what two names have in common that are one to the guest.
func (s guestStyle) key(name string) string {
	if s.windows {
		return strings.ToLower(name)
	}
	return name
}

// refuses says why the guest cannot have a name, or "".
func (s guestStyle) refuses(name string) string {
	if !speakable(name) {
		return "vSphere takes names that are UTF-8, without control characters"
	}
	if !s.windows {
		return ""
	}
	stem, _, _ := strings.Cut(strings.ToUpper(name), ".")
	stem = strings.TrimRight(stem, " ")
	reserved := stem == "CON" || stem == "PRN" || stem == "AUX" || stem == "NUL" ||
		len(stem) == 4 && (strings.HasPrefix(stem, "COM") || strings.HasPrefix(stem, "LPT")) && stem[3] >= '0' && stem[3] <= '9'
	if reserved || strings.ContainsAny(name, `<>:"/\|?*`) || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
		return "Windows has no such names"
	}
	return ""
}

// fatalInGuest tells errors after which nothing will go better for the next file.
func fatalInGuest(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	for _, kind := range []error{
		vsphere.ErrGuestTools, vsphere.ErrGuestCredentials, vsphere.ErrState, vsphere.ErrHost, vsphere.ErrPermission,
		vsphere.ErrUnreachable, vsphere.ErrCredentials, vsphere.ErrCertificate, vsphere.ErrSession, vsphere.ErrTimeout,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
