package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
)

// maxObject is the largest size that is believed, in bytes: ten times what S3
// allows.
const maxObject = 50 << 40

// object is an open object. It answers what lies in its tail from memory, and
// everything else by a request for exactly that.
type object struct {
	b    *Bucket
	ctx  context.Context
	name string
	etag string
	size int64
	tail []byte // the last bytes
}

var _ backend.NoWaitReader = (*object)(nil)

// Open implements [backend.Backend]: one request, for the end of the object.
func (b *Bucket) Open(ctx context.Context, name string) (backend.Object, error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := &object{b: b, ctx: ctx, name: name}
	if err := b.try(ctx, o.fetchTail); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return o, nil
}

func (o *object) fetchTail(p *pulse) error {
	var opts minio.GetObjectOptions
	opts.Set("Range", fmt.Sprintf("bytes=-%d", o.b.opts.Tail))
	body, info, header, err := o.b.core.GetObject(p.ctx, o.b.loc.bucket, o.b.key(o.name), opts)
	if codeOf(err) == "InvalidRange" {
		return o.fetchWhole(p)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	first, end, size := int64(0), info.Size, info.Size
	if value := header.Get("Content-Range"); value != "" {
		if first, end, size, err = parseContentRange(value); err != nil {
			return err
		}
	} else if size > int64(o.b.opts.Tail) {
		return answered("it ignores Range: an object cannot be read in parts")
	}
	if end != size || size > maxObject || size-first > int64(o.b.opts.Tail) {
		return answered("asked for the last %d bytes, it answers with %s", o.b.opts.Tail, header.Get("Content-Range"))
	}
	tail := make([]byte, size-first)
	if _, err := readBody(p, body, tail); err != nil {
		return err
	}
	o.etag, o.size, o.tail = info.ETag, size, tail
	return nil
}

// fetchWhole fetches an object in which the range of a tail cannot be: it is
// empty, or smaller than a tail and the server does not know what to make of
// that (RFC 9110 section 14.1.2 says that it is all of the object).
func (o *object) fetchWhole(p *pulse) error {
	body, info, _, err := o.b.core.GetObject(p.ctx, o.b.loc.bucket, o.b.key(o.name), minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer body.Close()
	if info.Size < 0 || info.Size > int64(o.b.opts.Tail) {
		return answered("it refuses the last %d bytes of an object of %d", o.b.opts.Tail, info.Size)
	}
	tail := make([]byte, info.Size)
	if _, err := readBody(p, body, tail); err != nil {
		return err
	}
	o.etag, o.size, o.tail = info.ETag, info.Size, tail
	return nil
}

// codeNotS3 is no code of S3's.
const codeNotS3 = "NotS3"

// answered is the error of an answer that makes no sense, and that another try
// would not change.
func answered(format string, args ...any) error {
	return minio.ErrorResponse{
		StatusCode: http.StatusNotImplemented, Code: codeNotS3,
		Message: fmt.Sprintf(format, args...),
	}
}

// parseContentRange reads "bytes FIRST-LAST/SIZE"; end is LAST+1.
func parseContentRange(s string) (first, end, size int64, err error) {
	bad := func() (int64, int64, int64, error) { return 0, 0, 0, answered("Content-Range: %.100q", s) }
	span, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 || !strings.HasPrefix(s, "bytes ") {
		return bad()
	}
	var n [3]uint64
	for i, digits := range []string{from, to, total} {
		if n[i], err = strconv.ParseUint(digits, 10, 62); err != nil {
			return bad()
		}
	}
	if n[0] > n[1] || n[1] >= n[2] {
		return bad()
	}
	return int64(n[0]), int64(n[1]) + 1, int64(n[2]), nil
}

// readBody fills p from a body, and takes the body's end so that the
// connection can be used again.
func readBody(beat *pulse, body io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := body.Read(p[n:])
		n += m
		beat.beat()
		if err != nil && n < len(p) {
			return n, fmt.Errorf("%w after %d of %d bytes: %w", errShort, n, len(p), err)
		}
		if err != nil {
			return n, nil //nolint:nilerr // all is there
		}
	}
	var more [1]byte
	if m, _ := body.Read(more[:]); m != 0 {
		return n, answered("an answer is longer than the range asked for")
	}
	return n, nil
}

func (o *object) Size() int64 { return o.size }

// Close implements [backend.Object]. There is no connection to let go of.
func (o *object) Close() error { return nil }

// ReadAt implements [io.ReaderAt].
func (o *object) ReadAt(p []byte, off int64) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: offset %d is negative", o.name, off)
	}
	if off >= o.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > o.size-off {
		p, eof = p[:o.size-off], io.EOF
	}
	n := 0
	if before := o.size - int64(len(o.tail)); off < before {
		want := p[:min(int64(len(p)), before-off)]
		var err error
		if n, err = o.fetch(want, off); err != nil {
			return n, fmt.Errorf("read %s at %d: %w", o.name, off+int64(n), err)
		}
	}
	n += copy(p[n:], o.tail[max(0, off+int64(n)-(o.size-int64(len(o.tail)))):])
	return n, eof
}

// ReadAtNoWait implements [backend.NoWaitReader] for what lies in the tail.
func (o *object) ReadAtNoWait(p []byte, off int64) bool {
	before := o.size - int64(len(o.tail))
	if off < before || off+int64(len(p)) > o.size || o.ctx.Err() != nil {
		return false
	}
	copy(p, o.tail[off-before:])
	return true
}

// progress is how much of a body must have come for the tries to be counted
// anew, in bytes: a long read over a bad line gets there, a server that cuts
// off everything does not keep us for ever.
const progress = 256 << 10

// fetch fills p from off, going on where an answer was cut off.
func (o *object) fetch(p []byte, off int64) (int, error) {
	done, counted := 0, 0
	for n := 1; ; n++ {
		err := o.b.once(o.ctx, o.b.opts.Stall, func(beat *pulse) error {
			m, err := o.fetchOnce(beat, p[done:], off+int64(done))
			done += m
			return err
		})
		if err == nil {
			return done, nil
		}
		if err := o.ctx.Err(); err != nil {
			return done, err
		}
		if done-counted >= progress {
			counted, n = done, 1
		}
		if isPrecondition(err) || errors.Is(err, ErrReplaced) {
			return done, ErrReplaced
		}
		if !o.b.again(err, n) {
			return done, o.b.explain(err)
		}
		o.b.log.Debug("reading an object again", "object", o.name, "offset", off+int64(done), "try", n+1, "error", err)
		if err := o.b.pause(o.ctx, n); err != nil {
			return done, err
		}
	}
}

func (o *object) fetchOnce(beat *pulse, p []byte, off int64) (int, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, err
	}
	if o.etag != "" {
		if err := opts.SetMatchETag(o.etag); err != nil {
			return 0, err
		}
	}
	body, info, header, err := o.b.core.GetObject(beat.ctx, o.b.loc.bucket, o.b.key(o.name), opts)
	if codeOf(err) == "InvalidRange" {
		return 0, fmt.Errorf("%w: it is shorter now", ErrReplaced)
	}
	if err != nil {
		return 0, err
	}
	defer body.Close()
	first, end, size, err := parseContentRange(header.Get("Content-Range"))
	switch {
	case o.etag != "" && info.ETag != o.etag:
		return 0, minio.ErrorResponse{StatusCode: http.StatusPreconditionFailed, Code: minio.PreconditionFailed}
	case err != nil:
		return 0, err
	case o.etag == "" && size != o.size:
		return 0, ErrReplaced
	case first != off || end != off+int64(len(p)) || size != o.size:
		return 0, answered("asked for bytes %d to %d of %d, it answers with %s", off, off+int64(len(p))-1, o.size, header.Get("Content-Range"))
	}
	return readBody(beat, body, p)
}

// stat looks an object up; fs.ErrNotExist where there is none.
func (b *Bucket) stat(ctx context.Context, key string) (info minio.ObjectInfo, err error) {
	err = b.try(ctx, func(p *pulse) (err error) {
		info, err = b.core.StatObject(p.ctx, b.loc.bucket, key, minio.StatObjectOptions{})
		return err
	})
	return info, err
}

// exists reports whether an object is there.
func (b *Bucket) exists(ctx context.Context, key string) (bool, error) {
	_, err := b.stat(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
