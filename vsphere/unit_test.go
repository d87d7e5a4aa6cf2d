package vsphere

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"math/rand/v2"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"pgregory.net/rapid"
)

// TestFaultTable: each name in the table is a fault of the API, so that a
// misspelt one is found, and each has its sentence.
func TestFaultTable(t *testing.T) {
	known := types.TypeFunc()
	names := tableNames(t)
	if len(names) < 60 {
		t.Fatalf("only %d names found in the table", len(names))
	}
	for _, name := range names {
		v, ok := byName(name)
		if kind, exists := known(name); !exists {
			t.Errorf("the API knows no fault %s", name)
		} else if _, isFault := reflect.New(kind).Interface().(types.BaseMethodFault); !isFault {
			t.Errorf("%s is no fault", name)
		}
		if !ok || v.kind == nil || v.text == "" {
			t.Errorf("%s is not in the table", name)
		}
	}
	c := &Client{}
	for fault, kind := range map[types.BaseMethodFault]error{
		&types.SnapshotFault{}:                     ErrState,
		&types.CannotAccessFile{}:                  ErrFile,
		&types.DisallowedMigrationDeviceAttached{}: ErrUnsupported,
		&types.InsufficientMemoryResourcesFault{}:  ErrSpace,
		&types.MissingController{}:                 ErrInvalid,
		&types.SystemError{}:                       ErrFault,
	} {
		err := c.fail("do it", &taskError{&types.LocalizedMethodFault{Fault: fault, LocalizedMessage: "the host's words"}})
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), "do it") || !strings.Contains(err.Error(), "the host's words") {
			t.Errorf("%T is %v", fault, err)
		}
	}
	denied := &types.NoPermission{MissingPrivileges: []types.NoPermissionEntityPrivileges{
		{Entity: types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-1"}, PrivilegeIds: []string{"A.B", "C.D"}},
	}}
	err := c.fail("do it", &taskError{&types.LocalizedMethodFault{Fault: denied}})
	var p *PermissionError
	if !errors.As(err, &p) || !strings.Contains(err.Error(), "A.B on VirtualMachine:vm-1, C.D") {
		t.Errorf("missing privileges are told as %v", err)
	}
	wrapped := c.fail("outer", c.fail("inner", &taskError{&types.LocalizedMethodFault{Fault: &types.ResourceInUse{}}}))
	if !errors.Is(wrapped, ErrInUse) || !strings.Contains(wrapped.Error(), "inner") {
		t.Errorf("wrapped twice: %v", wrapped)
	}
}

// tableNames reads the names in byName's cases from the source.
func tableNames(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "faults.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok {
			return f.Name.Name == "byName"
		}
		if c, ok := n.(*ast.CaseClause); ok {
			for _, e := range c.List {
				if lit, ok := e.(*ast.BasicLit); ok {
					out = append(out, strings.Trim(lit.Value, `"`))
				}
			}
		}
		return true
	})
	return out
}

func TestNamesGoThere(t *testing.T) {
	for plain, wire := range map[string]string{"web": "web", "a/b": "a%2fb", `a\b`: "a%5cb", "100%": "100%25", "50%2f": "50%252f", "ü %": "ü %25"} {
		if got := wireName(plain); got != wire {
			t.Errorf("%q goes as %q, want %q", plain, got, wire)
		}
		if got := plainName(wire); got != plain {
			t.Errorf("%q comes as %q, want %q", wire, got, plain)
		}
	}
	if got := plainName("A%2FB%5C%zz%2"); got != `A/B\%zz%2` {
		t.Errorf("got %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String().Draw(t, "name")
		if got := plainName(wireName(name)); got != name {
			t.Fatalf("%q comes back as %q", name, got)
		}
		ds := rapid.StringMatching(`[^\]\[]{1,20}`).Draw(t, "datastore")
		file := rapid.StringMatching(`[^ ].{0,20}`).Draw(t, "file")
		if d, f, ok := SplitPath(JoinPath(ds, file)); !ok || d != ds || strings.TrimSuffix(f, " ") != strings.TrimSuffix(file, " ") {
			t.Fatalf("%q %q become %q %q", ds, file, d, f)
		}
	})
	if got := besides("[ds] dir/x.vmx", "x.nvram"); got != "[ds] dir/x.nvram" {
		t.Errorf("beside: %q", got)
	}
	if got := besides("[ds] x.vmx", "[other] y/x.nvram"); got != "[other] y/x.nvram" {
		t.Errorf("beside: %q", got)
	}
}

func TestIdentity(t *testing.T) {
	id := Identity{VCenter: "a-b", VM: "c-d"}
	if got, err := ParseIdentity(id.String()); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "a", "/b", "a/", "a/b/c"} {
		if _, err := ParseIdentity(bad); err == nil {
			t.Errorf("%q is an identity", bad)
		}
	}
}

func TestMatch(t *testing.T) {
	vm := func(folder, name string, tags ...string) VM {
		return VM{
			Name: name, Folder: folder, Datacenter: "DC", Tags: tags, Pool: "Gold", Host: "esx1",
			Identity: Identity{"vc", "id-" + name}, Disks: []Disk{{Datastore: "ssd-1"}},
		}
	}
	inv := &Inventory{tags: true, VMs: []VM{
		vm("", "top"), vm("Prod", "web01", "tier/gold"), vm("Prod/Web", "web02", "tier/silver", "app/shop"), vm("Prod/Web/Old", "Web03"),
		vm("Test%2f1", "a/b"), vm("Test%2f1", "x[1]"), vm("ü", "prod:web"),
	}}
	for pattern, want := range map[string]string{
		"web01": "web01", "WEB*": "web01 web02 Web03", "web0?": "web01 web02 Web03", "web0[12]": "web01 web02", "nobody": "",
		"Prod/*": "web01", "prod/**": "web01 web02 Web03", "Prod/**/web0*": "web01 web02 Web03", "**/Old/*": "Web03", "DC/Prod/web01": "web01", "/Prod/web01": "web01",
		"folder:Prod": "web01 web02 Web03", "folder:prod/web": "web02 Web03", "folder:DC/Prod/Web": "web02 Web03", "folder:Pro": "", "folder:Test%2f1": "a/b x[1]",
		"tag:gold": "web01", "tag:tier/*": "web01 web02", "tag:app/shop": "web02", "tag:none": "", "tag:*": "web01 web02",
		"a/b": "a/b", "x[1]": "x[1]", "prod:web": "prod:web", "id-top": "top", "vc/id-top": "top", "datastore:ssd*": "top web01 web02 Web03 a/b x[1] prod:web",
		"host:esx2": "", "pool:gold": "top web01 web02 Web03 a/b x[1] prod:web", "dc:DC": "top web01 web02 Web03 a/b x[1] prod:web", "Test%2f1/a%2fb": "a/b",
	} {
		got, err := inv.Match(pattern)
		var names []string
		for _, v := range got {
			names = append(names, v.Name)
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%q: %q, %v; want %q", pattern, names, err, want)
		}
	}
	if _, err := inv.Match("web["); err == nil {
		t.Error("a broken pattern is taken")
	}
}

// TestGlobPath compares with the obvious, exponential way.
func TestGlobPath(t *testing.T) {
	var slow func(p, e []string) bool
	slow = func(p, e []string) bool {
		switch {
		case len(p) == 0:
			return len(e) == 0
		case p[0] == "**":
			return slow(p[1:], e) || len(e) > 0 && slow(p, e[1:])
		case len(e) == 0:
			return false
		}
		ok, _ := path.Match(p[0], e[0])
		return ok && slow(p[1:], e[1:])
	}
	part := rapid.SampledFrom([]string{"a", "b", "ab", "*", "a*", "**"})
	name := rapid.SampledFrom([]string{"a", "b", "ab"})
	rapid.Check(t, func(t *rapid.T) {
		p, e := rapid.SliceOfN(part, 0, 6).Draw(t, "pattern"), rapid.SliceOfN(name, 0, 7).Draw(t, "path")
		if got, want := globPath(p, e), slow(p, e); got != want {
			t.Fatalf("%v on %v: %t", p, e, got)
		}
	})
}

// TestAreasAreCovered: however a server cuts its answers, what comes out is what
// went in.
func TestAreasAreCovered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 200
		want := make([]bool, size)
		var all []types.DiskChangeExtent
		for at := int64(0); at < size; {
			at += rapid.Int64Range(0, 9).Draw(t, "gap")
			n := min(rapid.Int64Range(1, 9).Draw(t, "length"), size-at)
			if n <= 0 {
				break
			}
			all = append(all, types.DiskChangeExtent{Start: at, Length: n})
			for i := at; i < at+n; i++ {
				want[i] = true
			}
			at += n
		}
		window := rapid.Int64Range(1, 60).Draw(t, "window")
		var out []Extent
		for at := int64(0); at < size; {
			info := types.DiskChangeInfo{StartOffset: at, Length: min(window, size-at)}
			for _, a := range all {
				from, to := max(a.Start, at), min(a.Start+a.Length, at+info.Length)
				if from < to {
					info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: from, Length: to - from})
				}
			}
			rand.Shuffle(len(info.ChangedArea), func(i, j int) {
				info.ChangedArea[i], info.ChangedArea[j] = info.ChangedArea[j], info.ChangedArea[i]
			})
			next, err := appendAreas(&out, info, at, size)
			if err != nil || next <= at {
				t.Fatalf("from %d: %d, %v", at, next, err)
			}
			at = next
		}
		got, end := make([]bool, size), int64(-1)
		for _, e := range joinExtents(out) {
			if e.Offset <= end || e.Length <= 0 {
				t.Fatalf("%+v after %d", e, end)
			}
			end = e.Offset + e.Length
			for i := e.Offset; i < end; i++ {
				got[i] = true
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	})
	for name, info := range map[string]types.DiskChangeInfo{
		"outside":  {Length: 10, ChangedArea: []types.DiskChangeExtent{{Start: 95, Length: 10}}},
		"negative": {Length: 10, ChangedArea: []types.DiskChangeExtent{{Start: -1, Length: 10}}},
		"overflow": {Length: 10, ChangedArea: []types.DiskChangeExtent{{Start: 5, Length: 1<<63 - 1}}},
		"later":    {StartOffset: 5, Length: 10},
		"endless":  {StartOffset: 0, Length: -1},
	} {
		if _, err := appendAreas(new([]Extent), info, 0, 100); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestThumbprints(t *testing.T) {
	sum := strings.Repeat("0F:", 31) + "0F"
	for _, same := range []string{sum, strings.ToLower(sum), strings.ReplaceAll(sum, ":", ""), "sha256:" + sum, " " + sum + "\n"} {
		if got := canonicalThumbprint(same); got != sum {
			t.Errorf("%q is %q", same, got)
		}
	}
	for _, bad := range []string{"", "0F", "zz", sum + ":0F"} {
		if got := canonicalThumbprint(bad); got != "" {
			t.Errorf("%q is %q", bad, got)
		}
	}
	for host, want := range map[string]string{"a": "a:443", "a:1": "a:1", "[::1]": "[::1]:443", "[::1]:9": "[::1]:9", "127.0.0.1": "127.0.0.1:443"} {
		if got := withPort(host); got != want {
			t.Errorf("%q: %q", host, got)
		}
	}
}

func TestNewestHardware(t *testing.T) {
	for version, want := range map[string]string{
		"5.5.0": "vmx-10", "6.0.0": "vmx-11", "6.5.0": "vmx-13", "6.7.0": "vmx-14", "7.0.0": "vmx-17", "7.0.1": "vmx-18", "7.0.3": "vmx-19",
		"8.0.0": "vmx-20", "8.0.1": "vmx-20", "8.0.2": "vmx-21", "8.0.3": "vmx-21", "9.0.0": "vmx-22", "": "", "x": "",
	} {
		if got := newestHardware(version); got != want {
			t.Errorf("ESXi %q: %q, want %q", version, got, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-9/10", int64(0), int64(10))
	f.Add("bytes 5-9/*", int64(5), int64(-1))
	f.Fuzz(func(t *testing.T, header string, off, length int64) {
		if off < 0 || length == 0 {
			return
		}
		res := &http.Response{StatusCode: http.StatusPartialContent, Header: http.Header{"Content-Range": {header}}}
		n, err := checkRange("read", res, off, length)
		if err == nil && (n <= 0 || length > 0 && n > length) {
			t.Fatalf("%q for %d bytes from %d gives %d", header, length, off, n)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add("a%2fb", "[ds] a/b.vmx")
	f.Fuzz(func(t *testing.T, name, file string) {
		_ = plainName(name)
		if ds, p, ok := SplitPath(file); ok {
			if d2, p2, ok := SplitPath(JoinPath(ds, p)); !ok || d2 != ds || strings.TrimRight(p2, " ") != strings.TrimRight(p, " ") {
				t.Fatalf("%q: %q %q become %q %q", file, ds, p, d2, p2)
			}
		}
		_ = canonicalThumbprint(name)
		_, _ = ParseIdentity(name)
	})
}

// TestExactBody: less than promised is an error, more is not read.
func TestExactBody(t *testing.T) {
	read := func(promised int64, sent string) (string, error) {
		b := &exactBody{body: io.NopCloser(strings.NewReader(sent)), left: promised, open: promised < 0}
		p, err := io.ReadAll(b)
		return string(p), err
	}
	if got, err := read(5, "12345"); got != "12345" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := read(3, "12345"); got != "123" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read(6, "12345"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short: %v", err)
	}
	if got, err := read(-1, "12345"); got != "12345" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestVMOutOfReach: of a VM whose files a host cannot read there is no
// configuration, and still it is known which one it is and where.
func TestVMOutOfReach(t *testing.T) {
	c := &Client{about: About{InstanceUUID: "vc"}}
	tr, err := newTree(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &mo.VirtualMachine{}
	o.Summary.Config.VmPathName, o.Summary.Config.InstanceUuid = "[lifeboat-1] s/web/web.vmx", "vm"
	if v := c.describeVM(tr, o); v.VMX != "[lifeboat-1] s/web/web.vmx" || v.Identity != (Identity{"vc", "vm"}) {
		t.Errorf("%+v", v)
	}
}
