package datastore

import (
	"fmt"
	"sync/atomic"
	"testing"
)

func BenchmarkResolveAttr(b *testing.B) {
	f := newFixture(b)
	file := f.create("file")
	f.create("disk")
	must(b, f.Bind("s/vm/disk", newMemDisk(1<<20)))
	for name, n := range map[string]*Node{"file": file, "disk": f.walk("s/vm/disk"), "root": f.walk("")} {
		b.Run(name, func(b *testing.B) {
			fh := append([]byte(nil), n.Handle()...)
			b.ReportAllocs()
			for b.Loop() {
				n, err := f.Resolve(fh)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := n.Attr(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWritten(b *testing.B) {
	f := newFixture(b)
	n := f.create("disk")
	must(b, f.Bind("s/vm/disk", newMemDisk(1<<20)))
	b.ReportAllocs()
	for b.Loop() {
		n.Written()
	}
}

func BenchmarkLookup(b *testing.B) {
	f := newFixture(b)
	f.create("file")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.vm.Lookup(Cred{}, "file"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead4K(b *testing.B) {
	f := newFixture(b)
	n := f.create("file")
	buf := make([]byte, 4096)
	_, _, err := n.WriteAt(buf, 0)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := n.ReadAt(buf, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreate shows what sharing a directory's fsync gains.
func BenchmarkCreate(b *testing.B) {
	for _, clients := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			f := newFixture(b)
			var next atomic.Int64
			b.SetParallelism(clients)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_, _, err := f.vm.Create(Cred{}, fmt.Sprint("f", next.Add(1)), CreateHow{Mode: Guarded})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
