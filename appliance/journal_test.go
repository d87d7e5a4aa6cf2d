package appliance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"lifeboat/vsphere"
)

func TestJournalRemembersIntents(t *testing.T) {
	st := openTestState(t)
	if all, err := st.intents(); err != nil || len(all) != 0 {
		t.Fatalf("a new journal has %v, %v", all, err)
	}
	want := Intent{Kind: IntentSnapshot, Job: "j1", VCenter: "vc", VM: vsphere.Identity{VCenter: "vc", VM: "vm"}, Object: map[string]string{"name": "lifeboat-j1"}}
	first, err := st.begin(want)
	if err != nil {
		t.Fatal(err)
	}
	second, err := st.begin(Intent{Kind: IntentMount, VCenter: "vc"})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.amend(first.ID, map[string]string{"ref": "VirtualMachineSnapshot:snapshot-7"}); err != nil {
		t.Fatal(err)
	}
	other, err := OpenState(st.dir) // another command
	if err != nil {
		t.Fatal(err)
	}
	all, err := other.intents()
	if err != nil || len(all) != 2 || all[0].ID != first.ID || all[1].ID != second.ID {
		t.Fatalf("%v, %v", all, err)
	}
	if diff := cmp.Diff(map[string]string{"name": "lifeboat-j1", "ref": "VirtualMachineSnapshot:snapshot-7"}, all[0].Object); diff != "" {
		t.Error(diff)
	}
	if all[0].VM != want.VM || all[0].Job != "j1" || all[0].abandoned() {
		t.Errorf("%+v (abandoned: %t)", all[0], all[0].abandoned())
	}
	if err := errors.Join(st.done(first.ID), st.done(first.ID)); err != nil {
		t.Errorf("done, and done again: %v", err)
	}
	if err := st.amend(first.ID, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("amend what is done: %v", err)
	}
	if all, err := st.intents(); err != nil || len(all) != 1 || all[0].ID != second.ID {
		t.Errorf("%v, %v", all, err)
	}
}

func TestJournalNamesWhatItCannotRead(t *testing.T) {
	st := openTestState(t)
	in, err := st.begin(Intent{Kind: IntentMount})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"12345678": "{", "12345679": `{"id":"0000000000000001"}`} {
		if err := st.updateIntents(func(b *bbolt.Bucket) error { return b.Put([]byte(key), []byte(value)) }); err != nil {
			t.Fatal(err)
		}
	}
	all, err := st.intents()
	if len(all) != 1 || all[0].ID != in.ID {
		t.Errorf("%v", all)
	}
	for _, id := range []string{"3132333435363738", "3132333435363739"} {
		if err == nil || !strings.Contains(err.Error(), id) {
			t.Errorf("%s is not named: %v", id, err)
		}
	}
	for _, id := range []string{"", "x", "zzzzzzzzzzzzzzzz", "00000000000000010"} {
		if err := st.done(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("done(%q): %v", id, err)
		}
	}
}

// TestIntentsOfTheDeadAreAbandoned kills a real process and looks at its intents.
func TestIntentsOfTheDeadAreAbandoned(t *testing.T) {
	const variable = "LIFEBOAT_TEST_JOURNAL"
	if dir := os.Getenv(variable); dir != "" {
		st, err := OpenState(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.begin(Intent{Kind: IntentMount}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("begun")
		select {}
	}
	st := openTestState(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestIntentsOfTheDeadAreAbandoned$")
	cmd.Env = append(os.Environ(), variable+"="+st.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	all, err := st.intents()
	if err != nil || len(all) != 1 || all[0].abandoned() {
		t.Errorf("while it lives: %v, %v", all, err)
	}
	if _, err := st.adopt(all[0].ID); !errors.Is(err, ErrBusy) {
		t.Errorf("adopted from the living: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !all[0].abandoned() {
		t.Error("its process is dead, and it is not abandoned")
	}
	if _, err := st.adopt(all[0].ID); err != nil {
		t.Error(err)
	}
	third, err := OpenState(st.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := third.processName(); err != nil { // sweeps
		t.Fatal(err)
	}
	marks, err := os.ReadDir(st.processDir())
	if err != nil || len(marks) != 2 {
		t.Errorf("marks after the sweep, of two that live: %v, %v", marks, err)
	}
	third.mark.drop()
}

// TestOneOfManyAdopts has many processes want what one left.
func TestOneOfManyAdopts(t *testing.T) {
	st := openTestState(t)
	in, err := st.begin(Intent{Kind: IntentMount})
	if err != nil {
		t.Fatal(err)
	}
	st.mark.drop()
	var (
		group  sync.WaitGroup
		won    = make(chan *State, 8)
		living [8]*State // as long as the test
	)
	for i := range living {
		if living[i], err = OpenState(st.dir); err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			switch _, err := living[i].adopt(in.ID); {
			case err == nil:
				won <- living[i]
			case !errors.Is(err, ErrBusy):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(won) != 1 {
		t.Errorf("%d adopted it", len(won))
	}
	for _, s := range living {
		s.mark.drop()
	}
}

func TestForeignFilesAmongMarksAreDead(t *testing.T) {
	st := openTestState(t)
	for _, name := range []string{"", "..", "../lifeboat.db", strings.Repeat("0", 16)} {
		if st.processAlive(name) {
			t.Errorf("%q lives", name)
		}
	}
	if _, err := st.processName(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(st.dir, "lifeboat.db")); err != nil {
		t.Error(err)
	}
}
