package s3_test

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

func TestOpenSized(t *testing.T) {
	server := s3test.Run(t, s3test.Options{})
	server.MakeBucket(t, "sized")
	b := open(t, server.URL("sized", s3test.Unique()), server, s3.Options{})
	data := bytes.Repeat([]byte("0123456789"), 30_000)
	backendtest.Put(t, b, "segments/a", data, backend.Exclusive)

	got := make([]byte, 1000)
	o, err := b.OpenSized(t.Context(), "segments/a", int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := o.ReadAt(got, 12_345); n != len(got) || err != nil || !bytes.Equal(got, data[12_345:13_345]) {
		t.Errorf("%d bytes, %v, or they differ", n, err)
	}
	for name, size := range map[string]int64{"segments/a": 400_000, "segments/b": 1000} {
		o, err := b.OpenSized(t.Context(), name, size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.ReadAt(got[:10], 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of %d bytes: %v, want that it is not there", name, size, err)
		}
	}
}
