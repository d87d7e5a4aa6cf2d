package vddk_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

// lease exports a stream, as the host of a test.
type lease struct {
	stream []byte
	wrap   func(io.Reader) io.Reader // what becomes of the stream on its way

	mu       sync.Mutex
	progress []int
	ended    []error
}

func (l *lease) Export(context.Context) (vddk.Lease, error) { return l, nil }

func (l *lease) Disk(_ context.Context, key int32) (io.ReadCloser, error) {
	if key != diskKey {
		return nil, errors.New("there is no such disk")
	}
	r := io.Reader(bytes.NewReader(l.stream))
	if l.wrap != nil {
		r = l.wrap(r)
	}
	if c, ok := r.(io.ReadCloser); ok {
		return c, nil
	}
	return io.NopCloser(r), nil
}

func (l *lease) Progress(percent int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.progress = append(l.progress, percent)
}

func (l *lease) Close(_ context.Context, why error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, why)
	return nil
}

// end is how the lease was ended.
func (l *lease) end(t testing.TB) error {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ended) != 1 {
		t.Fatalf("the lease was ended %d times", len(l.ended))
	}
	return l.ended[0]
}

func streamOf(t testing.TB, img disk.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := disk.WriteVMDK(context.Background(), &b, img, disk.VMDKOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func leaseRequest(t testing.TB, img disk.Image) (vddk.Request, *lease) {
	t.Helper()
	l := &lease{stream: streamOf(t, img)}
	return vddk.Request{Key: diskKey, Size: img.Size(), Lease: l}, l
}

func TestNFC(t *testing.T) {
	want := random(11)
	disktest.RunImage(t, want, func(t *testing.T) disk.Image {
		req, l := leaseRequest(t, want)
		src := open(t, req, vddk.Options{})
		if src.Transport() != vddk.NFC {
			t.Errorf("transport is %s", src.Transport())
		}
		t.Cleanup(func() {
			if len(l.ended) != 1 {
				t.Errorf("the lease was ended %d times", len(l.ended))
			}
		})
		return src
	})
}

// TestNFCIsSparse: what the export leaves out is a hole, and takes no room.
func TestNFCIsSparse(t *testing.T) {
	want := disktest.NewMemory(8 << 30)
	for _, off := range []int64{0, 5 << 30, 8<<30 - 512} {
		if _, err := want.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	req, l := leaseRequest(t, want)
	src := open(t, req, vddk.Options{})
	disktest.Equal(t, src, want)
	var data int64
	for ext, err := range src.Extents(t.Context(), disk.Whole(src)) {
		if err != nil {
			t.Fatal(err)
		}
		if !ext.Hole {
			data += ext.Length
		}
	}
	if data != 3*64<<10 {
		t.Errorf("%d bytes of data", data)
	}
	if err := l.end(t); err != nil {
		t.Errorf("the lease was aborted: %v", err)
	}
}

// slow lets so many bytes through and then waits until it is closed.
type slow struct {
	r      io.Reader
	once   sync.Once
	closed chan struct{}
}

func (s *slow) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err == io.EOF {
		<-s.closed
		return 0, errors.New("closed")
	}
	return n, err
}

func (s *slow) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// TestNFCServesWhatHasCome: the beginning can be read while the end has not
// come, and a host that stops sending is given up.
func TestNFCServesWhatHasCome(t *testing.T) {
	t.Parallel()
	want := disktest.Random(12, imageSize, 1)
	req, l := leaseRequest(t, want)
	l.wrap = func(r io.Reader) io.Reader {
		return &slow{r: io.LimitReader(r, int64(len(l.stream))/2), closed: make(chan struct{})}
	}
	src := open(t, req, vddk.Options{Timeout: 500 * time.Millisecond})
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	if _, err := src.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if want.ReadAt(q, 0); !bytes.Equal(p, q) {
		t.Error("wrong bytes")
	}
	if _, err := src.ReadAt(p, 4<<20); !errors.Is(err, vddk.ErrHung) || !errors.Is(err, vddk.ErrLost) {
		t.Errorf("what never comes: %v", err)
	}
	src.Close()
	if l.end(t) == nil {
		t.Error("the lease was completed")
	}
}

// TestNFCWaitsForTheEnd: nobody has read all of the disk before the stream's end
// was seen.
func TestNFCWaitsForTheEnd(t *testing.T) {
	t.Parallel()
	want := disktest.Random(12, imageSize, 1)
	req, l := leaseRequest(t, want)
	l.wrap = func(r io.Reader) io.Reader {
		return &slow{r: io.LimitReader(r, int64(len(l.stream))-disk.SectorSize), closed: make(chan struct{})}
	}
	src := open(t, req, vddk.Options{Timeout: 500 * time.Millisecond})
	p := make([]byte, imageSize)
	if n, err := src.ReadAt(p[:imageSize-512], 0); err != nil {
		t.Errorf("all but the last sector = %d, %v", n, err)
	}
	if _, err := src.ReadAt(p, 0); !errors.Is(err, vddk.ErrHung) {
		t.Errorf("all of it, without the stream's end: %v", err)
	}
}

// TestNFCNeverTakesACutStreamForWhole cuts the stream at random places, and
// flips bytes of it: then either the disk reads as it is, or not to its end.
func TestNFCNeverTakesACutStreamForWhole(t *testing.T) {
	want := disktest.Random(13, 300<<10, 0.6)
	stream := streamOf(t, want)
	content := want.Bytes()
	try := func(t rapid.TB, stream []byte) error { return readStream(t, stream, content) }
	for at := 0; at < len(stream)-disk.SectorSize; at += disk.SectorSize {
		end := make([]byte, disk.SectorSize) // reads as an end marker
		if try(t, append(bytes.Clone(stream[:at]), end...)) == nil {
			t.Fatalf("an end marker at %d is taken for the end", at)
		}
	}
	for at, marker := 0, tableMarker(); at < len(stream); at += disk.SectorSize {
		if !bytes.HasPrefix(stream[at:], marker) {
			continue
		}
		for _, entry := range []int{0, 1, 2, 3, 100, 511} {
			changed := bytes.Clone(stream)
			e := changed[at+disk.SectorSize+4*entry:][:4]
			there := !bytes.Equal(e, make([]byte, 4))
			copy(e, []byte{1, 0, 0, 0})
			if there {
				clear(e)
			}
			if try(t, changed) == nil {
				t.Errorf("a table with another entry %d is taken for right", entry)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, len(stream)-1).Draw(t, "at")
		if rapid.Bool().Draw(t, "cut") {
			if try(t, stream[:n]) == nil {
				t.Fatalf("a stream of %d bytes is taken for one of %d", n, len(stream))
			}
			return
		}
		flipped := bytes.Clone(stream)
		flipped[n] ^= rapid.ByteRange(1, 255).Draw(t, "flip")
		try(t, flipped)
	})
}

// tableMarker is how the marker of a grain table begins: four sectors of it.
func tableMarker() []byte { return []byte{4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0} }

// readStream reads the disk of a stream. If that succeeds, it has to be content.
func readStream(t rapid.TB, stream, content []byte) error {
	req := vddk.Request{Key: diskKey, Size: int64(len(content)), Lease: &lease{stream: stream}}
	src, err := vddk.Open(context.Background(), req, vddk.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	p := make([]byte, len(content))
	if _, err := src.ReadAt(p, 0); err != nil {
		return err
	}
	if !bytes.Equal(p, content) {
		t.Fatal("wrong bytes")
	}
	return nil
}

func FuzzStream(f *testing.F) {
	want := disktest.Random(14, 200<<10, 0.5)
	stream := streamOf(f, want)
	f.Add(stream, want.Size())
	f.Add(stream[:700], want.Size())
	f.Fuzz(func(t *testing.T, stream []byte, size int64) {
		if size > 1<<30 {
			return // reading it whole takes too long
		}
		src, err := vddk.Open(t.Context(), vddk.Request{Key: diskKey, Size: size, Lease: &lease{stream: stream}}, vddk.Options{})
		if err != nil {
			return
		}
		defer src.Close()
		src.ReadAt(make([]byte, 4096), max(0, size-4096))
		for range src.Extents(t.Context(), disk.Whole(src)) {
		}
	})
}
