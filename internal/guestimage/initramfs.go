package guestimage

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// initramfs describes an initial RAM file system: busybox, modules, and init.
type initramfs struct {
	modules []string          // to be there, with what they need
	init    string            // a shell script; see header
	files   map[string]string // further programs: name → host file
	plain   bool              // not compressed
	program string            // host file of a program that is init, in the place of busybox and a script
}

// initHeader begins every init: devices, and a function that loads modules in
// the order in which they need each other, as made by the builder.
const initHeader = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
load() { for m in $($b cat /lib/modules/$1.order); do [ -e /run/$m ] || { $b insmod /lib/modules/$m && : > /run/$m; }; done; }
`

// build returns the archive, compressed lightly if at all: unpacking is done by
// an emulated processor.
func (i initramfs) build(k kernel) ([]byte, error) {
	var out bytes.Buffer
	if i.plain {
		err := i.write(newCPIO(&out), k)
		return out.Bytes(), err
	}
	z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := i.write(newCPIO(z), k); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (i initramfs) write(c *cpioWriter, k kernel) error {
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "newroot"} {
		if err := c.dir(d); err != nil {
			return err
		}
	}
	if err := i.addModules(c, k); err != nil {
		return err
	}
	files := map[string]string{"bin/busybox": k.busybox()}
	if i.program != "" {
		files = map[string]string{"init": i.program}
	}
	for name, host := range i.files {
		files[name] = host
	}
	for name, host := range files {
		content, err := os.ReadFile(host)
		if err != nil {
			return fmt.Errorf("initial RAM file system: %w", err)
		}
		if err := c.file(name, 0o755, content); err != nil {
			return err
		}
	}
	if i.program == "" {
		if err := c.file("init", 0o755, []byte(initHeader+i.init)); err != nil {
			return err
		}
	}
	return c.close()
}

// addModules adds each module once, and for each wanted one the order in which
// it and what it needs have to be loaded.
func (i initramfs) addModules(c *cpioWriter, k kernel) error {
	added := map[string]bool{}
	for _, want := range existing(k.modules(), i.modules) {
		order, err := moduleOrder(k.modules(), []string{want})
		if err != nil {
			return err
		}
		list := strings.Join(order, "\n") + "\n"
		if err := c.file("lib/modules/"+want+".order", 0o644, []byte(list)); err != nil {
			return err
		}
		for _, m := range order {
			if added[m] {
				continue
			}
			added[m] = true
			content, err := os.ReadFile(filepath.Join(k.modules(), m))
			if err != nil {
				return err
			}
			if err := c.file("lib/modules/"+m, 0o644, content); err != nil {
				return err
			}
		}
	}
	return nil
}
