package main

import (
	"encoding/json"

	"github.com/rogpeppe/go-internal/testscript"
)

// fewCalls is `fewcalls N`: the backup that was printed last made at most N calls
// to the vCenter, logging in and out included.
func fewCalls(ts *testscript.TestScript, neg bool, args []string) {
	var doc struct {
		Calls int64 `json:"vcenter_calls"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &doc))
	if most := number(ts, args[0]); doc.Calls == 0 || doc.Calls > most {
		ts.Fatalf("%d calls, want at most %d", doc.Calls, most)
	}
	ts.Logf("%d calls to the vCenter", doc.Calls)
}
