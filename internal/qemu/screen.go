package qemu

import (
	"context"
	"fmt"
	"path/filepath"
)

// Screenshot writes what the guest's screen shows to path, as PNG when the
// name ends in .png and as PPM otherwise. The machine needs Options.Display.
// QEMU writes the file itself, so path is one that it may write.
func (m *Machine) Screenshot(ctx context.Context, path string) error {
	if !m.opts.Display {
		return fmt.Errorf("screenshot of %s: the machine was started without a display", m.opts.Name)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("screenshot of %s: %w", m.opts.Name, err)
	}
	format := "ppm"
	if filepath.Ext(abs) == ".png" {
		format = "png"
	}
	return m.monitor.Execute(ctx, "screendump", node{"filename": abs, "format": format}, nil)
}
