package segment

import (
	"context"
	"fmt"
)

// maxRun bounds what ReadRun reads at once, in sealed bytes.
const maxRun = 4 << 20

// ReadRun reads count blobs at consecutive addresses, each of them blob bytes
// long, into dst, with one I/O where they stand side by side. Beside the
// plaintext it gives each blob as it was compressed, so that it can be stored
// elsewhere without compressing it again: take is called with its place in the
// run and a Packed that has no identity yet and belongs to the callee. Both come
// from the same bytes, so one is what the other decompresses to. Damage is a
// *DamageError.
func (r *Reader) ReadRun(ctx context.Context, addr Addr, count, blob int, dst []byte, take func(i int, p *Packed)) error {
	if len(dst) < count*blob {
		return shortBuffer(len(dst), count*blob)
	}
	d := r.coders.Get().(*decoder)
	defer r.coders.Put(d)
	for done := 0; done < count; {
		n, err := r.with(ctx, addr+Addr(done), &d.entry, func(o *object, e *entry) (int, error) {
			run, err := r.run(o, addr+Addr(done), *e, count-done)
			if err != nil {
				return 0, err
			}
			return len(run), d.readRun(o, addr.Slot()+done, run, blob, dst[done*blob:], func(i int, p *Packed) { take(done+i, p) })
		})
		if err != nil {
			return err
		}
		done += n
	}
	return nil
}

// run collects the entries of at most count slots from addr on that stand side
// by side in the object; the first one is given.
func (r *Reader) run(o *object, addr Addr, first entry, count int) ([]entry, error) {
	run := append(make([]entry, 0, count), first)
	end, size := int64(first.offset)+int64(first.stored()), first.stored()
	for i := 1; i < count; i++ {
		e, err := r.entry(o, addr+Addr(i))
		if err != nil {
			return nil, err
		}
		if int64(e.offset) != end || size+e.stored() > maxRun {
			break
		}
		end, size = end+int64(e.stored()), size+e.stored()
		run = append(run, e)
	}
	return run, nil
}

func (d *decoder) readRun(o *object, slot int, run []entry, blob int, dst []byte, take func(int, *Packed)) error {
	size := 0
	for i := range run {
		size += run[i].stored()
	}
	if cap(d.sealed) < size {
		d.sealed = make([]byte, max(size, maxSealed))
	}
	sealed := d.sealed[:size]
	if size > 0 {
		if err := o.read(sealed, int64(run[0].offset)); err != nil {
			return located(err, o, slot, 0, run[0].frameCount(), &run[0])
		}
	}
	for i := range run {
		e, n := &run[i], run[i].stored()
		if e.rawLen != blob {
			return o.frameDamage(slot+i, -1, e, fmt.Errorf("it has %d bytes instead of %d", e.rawLen, blob))
		}
		// The room behind a blob is the next one's: lend none of it.
		p, err := d.transcode(o, slot+i, e, sealed[:n:n], dst[i*blob:(i+1)*blob:(i+1)*blob])
		if err != nil {
			return err
		}
		take(i, p)
		sealed = sealed[n:]
	}
	return nil
}

// transcode opens the frames of one blob: decompressed into dst, and as they
// are into a Packed.
func (d *decoder) transcode(o *object, slot int, e *entry, sealed, dst []byte) (*Packed, error) {
	out := &Packed{Kind: e.kind, rawLen: e.rawLen, buf: make([]byte, 0, len(sealed))}
	for i := range e.frameCount() {
		n := e.sealedLen(i)
		if err := d.frame(o, slot, e, i, sealed[:n], dst); err != nil {
			return nil, o.frameDamage(slot, i, e, err)
		}
		if n > 0 { // frame has opened it in place
			out.buf = append(out.buf, sealed[:n-tagSize]...)
			out.lens[i] = uint16(n-tagSize) | e.lens[i]&rawBit
		}
		sealed, dst = sealed[n:], dst[e.frameRaw(i):]
	}
	return out, nil
}
