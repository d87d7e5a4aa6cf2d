package demo

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// VSphereReport is what the vSphere story measured. Durations are in seconds,
// sizes in bytes.
type VSphereReport struct {
	Accelerator string `json:"accelerator"` // tcg or kvm

	First  VSphereBackup `json:"first_backup"`
	Second VSphereBackup `json:"second_backup"`

	Recover    float64 `json:"command_to_running_seconds"`
	RecoverOwn float64 `json:"command_to_running_own_seconds"` // less the simulator's own time
	ToLogin    float64 `json:"command_to_login_seconds"`
	OwnToLogin float64 `json:"own_disk_to_login_seconds"` // the same VM from its own disk, for comparison

	Move       float64 `json:"move_seconds"`
	GuestPause float64 `json:"guest_pause_seconds"` // longest gap between two synced writes

	Proofs []Proof `json:"proofs"`

	WorkDir string `json:"work_dir,omitempty"`
}

// VSphereBackup is a backup of both VMs.
type VSphereBackup struct {
	Read   int64   `json:"read_bytes"`
	New    int64   `json:"new_bytes"`
	Stored int64   `json:"stored_bytes"`
	Calls  int64   `json:"vcenter_calls"`
	Took   float64 `json:"seconds"`
}

func (b VSphereBackup) String() string {
	return fmt.Sprintf("%s read, %s stored, %d calls to the vCenter, %.1f s", mib(b.Read), mib(b.Stored), b.Calls, b.Took)
}

// Print renders the report for people.
func (r *VSphereReport) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(t, "%s\t"+format+"\n", append([]any{what}, args...)...)
	}
	fmt.Fprintln(t)
	row("First backup of both", "%s", r.First)
	row("Second backup of both", "%s", r.Second)
	row("Command to running VM", "%.2f s, %.2f s of it ours and not the simulator's", r.Recover, r.RecoverOwn)
	row("Command to login prompt", "%.1f s from the backup; %.1f s is what the same VM takes from its own disk", r.ToLogin, r.OwnToLogin)
	row("Moved while running", "%.1f s, the server's restart included; the guest saw a pause of %.1f s", r.Move, r.GuestPause)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nProof (SHA-256 of files in the guest):\n")
	return printProofs(w, r.Proofs)
}

// printProofs lists files and when they were read back.
func printProofs(w io.Writer, proofs []Proof) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, p := range proofs {
		fmt.Fprintf(t, "  %s\t%s…\tread back %s\n", p.File, p.SHA256[:16], strings.Join(p.Checked, ", "))
	}
	return t.Flush()
}
