package appliance

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
)

func TestReconcileGoesBackwardsAndKeepsWhatFails(t *testing.T) {
	st := openTestState(t)
	dead, err := OpenState(st.dir)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, vc := range []string{"vc", "other", "vc", "vc"} {
		in, err := dead.begin(Intent{Kind: IntentMount, VCenter: vc})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, in.ID)
	}
	if _, err := st.begin(Intent{Kind: IntentMount, VCenter: "vc"}); err != nil { // of the living
		t.Fatal(err)
	}
	dead.mark.drop()
	run := func(fail string) (seen []string) {
		t.Helper()
		got, err := st.reconcile(context.Background(), "vc", slog.New(slog.DiscardHandler), func(_ context.Context, in Intent) (string, error) {
			seen = append(seen, in.ID)
			if in.ID == fail {
				return "tried", errors.New("no")
			}
			return "undone", nil
		})
		if err != nil || len(got) != len(seen) {
			t.Fatalf("%v, %v", got, err)
		}
		return seen
	}
	if got, want := run(ids[2]), []string{ids[3], ids[2], ids[0]}; !slices.Equal(got, want) {
		t.Errorf("reconciled %v, want %v", got, want)
	}
	if got, want := run(""), []string{ids[2]}; !slices.Equal(got, want) {
		t.Errorf("the second time %v, want %v", got, want)
	}
	if got := run(""); len(got) != 0 {
		t.Errorf("the third time %v", got)
	}
}
