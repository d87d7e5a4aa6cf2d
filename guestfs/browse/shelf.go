package browse

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// shelf keeps points open: those that are in use, and of the others the latest.
type shelf struct {
	source Source
	max    int

	mu    sync.Mutex
	books map[string]*book
	idle  list.List // of *book, latest in front
}

// book is a point with its files. Whoever comes while it is being opened waits.
type book struct {
	point string
	users int
	place *list.Element // in idle; nil while somebody uses it
	ready chan struct{}
	files Files
	err   error
}

func newShelf(source Source, limit int) *shelf {
	return &shelf{source: source, max: limit, books: map[string]*book{}}
}

// take opens a point until release.
func (s *shelf) take(ctx context.Context, point string) (Files, func(), error) {
	s.mu.Lock()
	b := s.books[point]
	if b == nil {
		b = &book{point: point, ready: make(chan struct{})}
		s.books[point] = b
		go s.open(context.WithoutCancel(ctx), b)
	}
	b.users++
	if b.place != nil {
		s.idle.Remove(b.place)
		b.place = nil
	}
	s.mu.Unlock()
	release := sync.OnceFunc(func() { s.release(b) })
	select {
	case <-b.ready:
	case <-ctx.Done():
		release()
		return nil, nil, context.Cause(ctx)
	}
	if b.err != nil {
		release()
		return nil, nil, b.err
	}
	return b.files, release, nil
}

// open opens a point for all who wait for it. One that fails is forgotten, so
// that the next try may succeed.
func (s *shelf) open(ctx context.Context, b *book) {
	b.files, b.err = s.source.OpenFiles(ctx, b.point)
	if b.err != nil {
		s.mu.Lock()
		delete(s.books, b.point)
		s.mu.Unlock()
	}
	close(b.ready)
}

func (s *shelf) release(b *book) {
	s.mu.Lock()
	b.users--
	var old []*book
	if b.users == 0 && s.books[b.point] == b {
		b.place = s.idle.PushFront(b)
		for len(s.books) > s.max && s.idle.Len() > 0 {
			last := s.idle.Remove(s.idle.Back()).(*book)
			last.place = nil
			delete(s.books, last.point)
			old = append(old, last)
		}
	}
	s.mu.Unlock()
	for _, b := range old {
		b.close()
	}
}

// close ends a book that nobody can find any more.
func (b *book) close() error {
	<-b.ready
	if b.files == nil {
		return nil
	}
	return b.files.Close()
}

func (s *shelf) close() error {
	s.mu.Lock()
	books := s.books
	s.books = map[string]*book{}
	s.idle.Init()
	s.mu.Unlock()
	var err error
	for _, b := range books {
		err = errors.Join(err, b.close())
	}
	return err
}
