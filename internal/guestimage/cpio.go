package guestimage

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Types of cpio entries: the file type bits of st_mode.
const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
)

// cpioWriter writes the "newc" format that the kernel unpacks as its initial
// RAM file system (Documentation/driver-api/early-userspace/buffer-format.rst
// in Linux's source). Parent directories are made as needed.
type cpioWriter struct {
	w    io.Writer
	n    int64 // bytes written
	ino  uint32
	dirs map[string]bool
}

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: w, dirs: map[string]bool{".": true}} }

// file, link and dir add entries; names are relative, without a leading slash.
func (c *cpioWriter) file(name string, perm uint32, content []byte) error {
	return c.entry(name, typeFile|perm, content)
}

func (c *cpioWriter) link(name, target string) error {
	return c.entry(name, typeSymlink|0o777, []byte(target))
}

func (c *cpioWriter) dir(name string) error {
	name = path.Clean(name)
	if c.dirs[name] {
		return nil
	}
	c.dirs[name] = true
	return c.entry(name, typeDir|0o755, nil)
}

func (c *cpioWriter) entry(name string, mode uint32, content []byte) error {
	name = path.Clean(name)
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "..") {
		return fmt.Errorf("cpio: name %q is not inside the archive", name)
	}
	if mode&typeDir == 0 || mode&typeFile == typeFile {
		if err := c.dir(path.Dir(name)); err != nil {
			return err
		}
	} else if parent := path.Dir(name); !c.dirs[parent] {
		if err := c.dir(parent); err != nil {
			return err
		}
	}
	c.ino++
	return c.record(c.ino, mode, name, content)
}

// record writes header, name and content, each padded to four bytes.
func (c *cpioWriter) record(ino, mode uint32, name string, content []byte) error {
	if int64(len(content)) > 1<<32-1 {
		return fmt.Errorf("cpio: %s has %d bytes, more than the format can say", name, len(content))
	}
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	for _, part := range []string{header + name + "\x00", string(content)} {
		n, err := io.WriteString(c.w, part)
		c.n += int64(n)
		if err != nil {
			return err
		}
		if err := c.pad(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cpioWriter) pad() error {
	n, err := c.w.Write(make([]byte, (4-c.n%4)%4))
	c.n += int64(n)
	return err
}

// close writes the entry that ends the archive. It does not close the writer.
func (c *cpioWriter) close() error { return c.record(0, 0, "TRAILER!!!", nil) }
