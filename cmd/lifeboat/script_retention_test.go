package main

import (
	"context"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/appliance"
	"lifeboat/store"
)

// mkrepo makes the repository of the script as `lifeboat init` does, but with a
// password that costs nothing to try: for scripts of many commands.
func mkrepo(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: mkrepo")
	}
	opts := store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}
	ts.Check(appliance.InitRepository(context.Background(), ts.Getenv("LIFEBOAT_REPO"), []byte(ts.Getenv("LIFEBOAT_PASSWORD")), opts))
}
