package main

import (
	"context"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/store"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

// TestScriptS3 runs testdata/s3: the command line over a repository in S3. Each
// script has a bucket of a real server ($LIFEBOAT_REPO and $SECOND below it),
// and one of a server that ignores If-None-Match ($WEAK).
func TestScriptS3(t *testing.T) {
	server := s3test.Run(t, s3test.Options{})
	commands := scriptCommands()
	commands["mkrepo"] = func(ts *testscript.TestScript, _ bool, args []string) { makeS3Repository(ts, server, args) }
	testscript.Run(t, testscript.Params{
		Dir: "testdata/s3",
		Setup: func(env *testscript.Env) error {
			bucket := s3test.Unique()
			if err := server.CreateBucket(t.Context(), bucket, false); err != nil {
				return err
			}
			weak := s3test.RunWeak(t, bucket)
			for name, value := range map[string]string{
				"LIFEBOAT_PASSWORD":     "correct horse",
				"LIFEBOAT_REPO":         server.URL(bucket, "backups/lifeboat"),
				"SECOND":                server.URL(bucket, "second"),
				"NOBUCKET":              server.URL(bucket+"-none", ""),
				"WEAK":                  s3test.URL(weak.Endpoint, bucket, "weak"),
				"LIFEBOAT_STATE":        env.Getenv("WORK") + "/state",
				"AWS_ACCESS_KEY_ID":     server.Access,
				"AWS_SECRET_ACCESS_KEY": server.Secret,
				"SECRET":                server.Secret,
				"TZ":                    "UTC",
			} {
				env.Setenv(name, value)
			}
			return nil
		},
		Cmds: commands,
	})
}

// makeS3Repository (mkrepo URL PASSWORD) is init with a password that costs
// nothing to try.
func makeS3Repository(ts *testscript.TestScript, server *s3test.Server, args []string) {
	b, err := s3.Open(context.Background(), args[0], s3.Options{Keys: s3.Keys{Access: server.Access, Secret: server.Secret}})
	ts.Check(err)
	defer b.Close()
	ts.Check(store.Init(context.Background(), b, []byte(args[1]), store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}))
}
