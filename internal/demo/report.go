package demo

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Report is what the story measured. Durations are in seconds, sizes in bytes.
type Report struct {
	Accelerator string `json:"accelerator"` // tcg or kvm

	FirstRead    int64   `json:"first_read_bytes"`
	FirstStored  int64   `json:"first_stored_bytes"`
	FirstTook    float64 `json:"first_seconds"`
	SecondRead   int64   `json:"second_read_bytes"`
	SecondNew    int64   `json:"second_new_bytes"`
	SecondStored int64   `json:"second_stored_bytes"`
	SecondTook   float64 `json:"second_seconds"`

	ToExport    float64 `json:"command_to_export_seconds"`
	ToFirstRead float64 `json:"command_to_first_read_seconds"`
	ToLogin     float64 `json:"command_to_login_seconds"`
	RawToLogin  float64 `json:"raw_disk_to_login_seconds"` // the same VM from its own disk, for comparison

	ServerDown float64 `json:"server_down_seconds"`
	GuestPause float64 `json:"guest_pause_seconds"` // longest gap between two synced writes

	MoveTook  float64 `json:"move_seconds"`
	MoveBytes int64   `json:"move_bytes"`
	MovePivot float64 `json:"move_switch_seconds"`

	Kept    string  `json:"kept_point"`
	KeptNew int64   `json:"kept_new_bytes"`
	Proofs  []Proof `json:"proofs"`

	WorkDir string `json:"work_dir,omitempty"`
}

// Proof is a file whose content was checked.
type Proof struct {
	File    string   `json:"file"`
	Written string   `json:"written"` // when in the story
	Checked []string `json:"checked"` // when it was read back, past the guest's cache
	SHA256  string   `json:"sha256"`
}

// Print renders the report for people.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(t, "%s\t"+format+"\n", append([]any{what}, args...)...)
	}
	fmt.Fprintln(t)
	row("First backup", "%s read, %s stored, %.1f s", mib(r.FirstRead), mib(r.FirstStored), r.FirstTook)
	row("Second backup", "%s new, %s stored, %.1f s", mib(r.SecondNew), mib(r.SecondStored), r.SecondTook)
	row("Command to export", "%.2f s", r.ToExport)
	row("Command to first read", "%.2f s", r.ToFirstRead)
	row("Command to login prompt", "%.1f s from the backup; %.1f s is what the same VM takes from its own disk", r.ToLogin, r.RawToLogin)
	row("Server killed", "down for %.1f s; the guest saw a pause of %.1f s", r.ServerDown, r.GuestPause)
	row("Moved while running", "%s in %.1f s, the switch itself %.2f s", mib(r.MoveBytes), r.MoveTook, r.MovePivot)
	row("Changes kept", "as restore point %s, %s new", r.Kept, mib(r.KeptNew))
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nProof (SHA-256 of files in the guest):\n")
	return printProofs(w, r.Proofs)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
