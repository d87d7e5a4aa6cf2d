package vsphere

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// privilegeTable is the table in docs/vsphere.md, made from what is asked for.
func privilegeTable() string {
	where := []struct{ kind, words string }{
		{"VirtualMachine", "the VM"},
		{"Folder", "the folder of the new VM"},
		{"HostSystem", "the host"},
		{"ComputeResource", "the cluster"},
		{"ResourcePool", "the resource pool"},
		{"Datastore", "the datastore"},
		{"Network", "the network"},
		{onRoot, "the root folder"},
	}
	what := []struct {
		purpose Purpose
		words   string
	}{
		{ForBackup, "`backup vm`"},
		{ForHotAdd, "transport `hotadd`, on Lifeboat's own VM"},
		{ForRecover, "`recover`"},
		{ForMigrate, "`migrate`"},
		{ForRestore, "`restore`"},
		{ForAttach, "`recover --attach-to`"},
		{ForGuest, "files into a running guest"},
		{ForLab, "labs"},
	}
	var b strings.Builder
	b.WriteString("| for | on | privileges |\n| --- | --- | --- |\n")
	for _, w := range what {
		needs := Needs(w.purpose)
		for _, k := range where {
			if list := needs[k.kind]; len(list) > 0 {
				list = slices.Clone(list)
				slices.Sort(list)
				fmt.Fprintf(&b, "| %s | %s | `%s` |\n", w.words, k.words, strings.Join(slices.Compact(list), "`, `"))
			}
		}
	}
	return b.String()
}

// TestPrivilegesAreDocumented: what an administrator reads is what is asked for.
func TestPrivilegesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/vsphere.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := privilegeTable(); !strings.Contains(string(doc), want) {
		t.Errorf("docs/vsphere.md should have this table:\n%s", want)
	}
}
