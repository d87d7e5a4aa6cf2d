package vddk

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/disk"
)

// attachment is a disk that is attached to our own VM.
type attachment struct {
	device string
	detach func(context.Context) error
}

// attach hot-adds the disk.
func attach(ctx context.Context, req Request) (*attachment, error) {
	if req.HotAdd == nil {
		return nil, unavailable("Lifeboat does not run in a VM that the disk can be attached to")
	}
	device, detach, err := req.HotAdd.Attach(ctx)
	if err != nil {
		return nil, fmt.Errorf("attach the disk to our VM: %w", err)
	}
	return &attachment{device, detach}, nil
}

// release detaches the disk. It has to be gone from our VM before its snapshot
// is removed, so this goes on when the context that opened it has ended.
func (a *attachment) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := a.detach(ctx); err != nil {
		return fmt.Errorf("detach the disk (%s) from our VM: %w", a.device, err)
	}
	return nil
}

type hotAddPort struct {
	imagePort
	ctx        context.Context
	attachment *attachment
}

func (p *hotAddPort) close() error {
	return errors.Join(p.img.Close(), p.attachment.release(p.ctx))
}

func openHotAdd(ctx context.Context, req Request, _ Options) (port, error) {
	a, err := attach(ctx, req)
	if err != nil {
		return nil, err
	}
	img, err := disk.Open(ctx, a.device, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		return nil, errors.Join(err, a.release(ctx))
	}
	return &hotAddPort{imagePort{HotAdd, img}, ctx, a}, nil
}

type hotAddWriter struct {
	*rawPort
	ctx        context.Context
	attachment *attachment
}

func (p *hotAddWriter) close() error {
	return errors.Join(p.rawPort.close(), p.attachment.release(p.ctx))
}

func writeHotAdd(ctx context.Context, req Request, _ Options) (writePort, error) {
	a, err := attach(ctx, req)
	if err != nil {
		return nil, err
	}
	raw, err := openRaw(ctx, HotAdd, a.device)
	if err != nil {
		return nil, errors.Join(err, a.release(ctx))
	}
	return &hotAddWriter{raw, ctx, a}, nil
}
