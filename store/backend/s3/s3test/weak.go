package s3test

import (
	"net/http"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// Weak is an S3 server in this process that ignores If-None-Match, as some
// do: of two who write a name at once, both win. It takes any keys.
type Weak struct {
	*Proxy
}

// RunWeak starts a Weak with one bucket.
func RunWeak(t testing.TB, bucket string) *Weak {
	t.Helper()
	memory := s3mem.New()
	if err := memory.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	s3 := gofakes3.New(memory).Server()
	p, err := startProxy(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("If-None-Match")
		s3.ServeHTTP(w, r)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return &Weak{p}
}
