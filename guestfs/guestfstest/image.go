package guestfstest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// NeedMount skips the test, by name, where file systems cannot be mounted, or
// where the kernel or a tool that the test needs is missing.
func NeedMount(t testing.TB, fsType string, tools ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting images of file systems wants root")
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if fsType != "" && !bytes.Contains(known, []byte("\t"+fsType+"\n")) {
		t.Skipf("this kernel does not know %s", fsType)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: run tools/provision.sh test", tool)
		}
	}
}

// Run runs a tool that must succeed and returns what it printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// NewImage makes an empty sparse file of size bytes.
func NewImage(t testing.TB, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.raw")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return file
}

// Mount mounts an image until the end of the test, or until the function that
// it returns is called. The loop device is its own: mount(8) would take that of
// a mount which has just ended, and find it busy.
func Mount(t testing.TB, image, fsType, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	loop := attach(t, image)
	args := []string{"-t", fsType, loop, dir}
	if options != "" {
		args = append([]string{"-o", options}, args...)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", args...).CombinedOutput(); err != nil {
		detach(t, loop)
		t.Fatalf("mount %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		flush(dir)
		if err := patiently(func() error { return unix.Unmount(dir, 0) }); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		detach(t, loop)
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// flush has everything written to its place. An unmount alone does not do that
// while a mount namespace that somebody made meanwhile keeps a copy of the mount:
// then the file system lives on, and its journal is not emptied. Freezing empties
// it; what cannot be frozen is a driver in user space, which writes when its
// directory is synced.
func flush(dir string) {
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW (linux/fs.h)
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	_ = f.Sync()
	if unix.IoctlSetInt(int(f.Fd()), freeze, 0) == nil {
		_ = unix.IoctlSetInt(int(f.Fd()), thaw, 0)
	}
}

// attach gives an image a loop device. Two who look for a free one at the same
// time find the same, and one of them has to look again.
func attach(t testing.TB, image string) (loop string) {
	t.Helper()
	err := patiently(func() error {
		out, err := exec.Command("losetup", "--find", "--show", image).Output()
		loop = strings.TrimSpace(string(out))
		return err
	})
	if err != nil {
		t.Fatalf("no loop device for %s: %v", image, err)
	}
	return loop
}

func detach(t testing.TB, loop string) {
	t.Helper()
	if err := patiently(func() error { return exec.Command("losetup", "--detach", loop).Run() }); err != nil {
		t.Errorf("detach %s: %v", loop, err)
	}
}

// patiently tries again for a second: something of the host may look in for a
// moment.
func patiently(do func() error) (err error) {
	for range 50 {
		if err = do(); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// CopyImage copies an image as it is at this moment, holes as holes: of a
// mounted one, that is what a backup of the running machine would hold.
func CopyImage(t testing.TB, image string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "copy.raw")
	Run(t, "cp", "--sparse=always", "--reflink=never", image, file)
	return file
}

// Trees says what Populate makes.
type Trees struct {
	Seed    uint64
	Entries int  // about; spread over directories, one of them huge
	Plain   bool // only what every file system has: no owners, devices, attributes, links
	NoACL   bool
	// NoBigXattrs leaves out attributes that do not fit in one block of 1 KiB
	// together.
	NoBigXattrs bool
	// Year2038 leaves out times that do not fit in 32 bits.
	Year2038 bool
	// MaxFile bounds the size of a file in bytes; 0 is 1 MiB.
	MaxFile int64
}

// Populate fills a mounted directory with everything that a reader can get
// wrong. The same seed makes the same tree.
func Populate(t testing.TB, dir string, opts Trees) {
	t.Helper()
	if opts.MaxFile == 0 {
		opts.MaxFile = 1 << 20
	}
	p := &populator{t: t, rng: rand.New(rand.NewPCG(opts.Seed, 0x7ee)), opts: opts}
	p.tree(dir, opts.Entries, 0)
	p.oddNames(filepath.Join(dir, "odd names"))
	p.sizes(filepath.Join(dir, "sizes"))
	if !opts.Plain {
		p.special(filepath.Join(dir, "special"))
		p.attributes(filepath.Join(dir, "attributes"))
	}
	if err := syncFS(dir); err != nil {
		t.Fatal(err)
	}
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

type populator struct {
	t    testing.TB
	rng  *rand.Rand
	opts Trees
	n    int
}

func (p *populator) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("fill the file system: %v", err)
	}
}

func (p *populator) mkdir(dir string) { p.t.Helper(); p.must(os.MkdirAll(dir, 0o755)) }

// tree spreads n entries over directories, half of them in this one.
func (p *populator) tree(dir string, n, depth int) {
	p.mkdir(dir)
	here := n/2 + 1
	for i := range here {
		p.n++
		name := filepath.Join(dir, fmt.Sprintf("file %d-%x", p.n, p.rng.Uint32()))
		size := int64(0)
		if i%16 == 0 {
			size = p.rng.Int64N(p.opts.MaxFile)
		} else if i%2 == 0 {
			size = p.rng.Int64N(6000)
		}
		p.file(name, size)
	}
	rest := n - here
	for i := 0; rest > 0 && depth < 12; i++ {
		share := min(rest, rest/2+1)
		p.tree(filepath.Join(dir, fmt.Sprintf("directory %d", i)), share, depth+1)
		rest -= share
	}
}

// file writes size bytes that are different in every 512 of them.
func (p *populator) file(name string, size int64) {
	p.must(os.WriteFile(name, p.bytes(size), 0o644))
	if !p.opts.Plain && p.rng.IntN(4) == 0 {
		p.must(os.Chown(name, p.rng.IntN(100_000), p.rng.IntN(100_000)))
		p.must(unix.Chmod(name, uint32(p.rng.IntN(0o10000))))
	}
	if p.rng.IntN(3) == 0 {
		at := time.Unix(p.rng.Int64N(1<<31), p.rng.Int64N(1_000_000_000))
		p.must(os.Chtimes(name, at.Add(time.Hour), at))
	}
}

func (p *populator) bytes(size int64) []byte {
	data := make([]byte, size)
	stamp := p.rng.Uint64()
	for off := 0; off < len(data); off += 512 {
		copy(data[off:], fmt.Appendf(nil, "%016x at %012d ", stamp, off))
		if p.rng.IntN(2) == 0 { // half of it does not compress
			for i := off + 32; i < min(off+512, len(data)); i++ {
				data[i] = byte(p.rng.Uint32())
			}
		}
	}
	return data
}

func (p *populator) oddNames(dir string) {
	p.mkdir(dir)
	names := []string{"Größe", "日本語.txt", "🛟 lifeboat", "a  b", "e\u0301", strings.Repeat("n", 255), strings.Repeat("ä", 100), ".hidden", "with.many.dots..."}
	if p.opts.Plain {
		names[len(names)-1] = "with.many.dots"
	} else {
		names = append(names, "new\nline", "\xff\xfe not UTF-8", "back\\slash", "*?\"<>|:", "trailing ", "\x01control", strings.Repeat("\xf0", 254))
	}
	for _, name := range names {
		p.file(filepath.Join(dir, name), 100)
	}
}

// sizes makes files whose ends and holes lie where something may go wrong.
func (p *populator) sizes(dir string) {
	p.mkdir(dir)
	for _, size := range []int64{0, 1, 59, 60, 61, 127, 156, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 65535, 65536, 65537} {
		p.file(filepath.Join(dir, fmt.Sprint(size)), size)
	}
	p.sparse(filepath.Join(dir, "holes"), 40, 4<<20)
	p.sparse(filepath.Join(dir, "many extents"), 400, 8<<20)
	p.sparse(filepath.Join(dir, "far away"), 5, 1<<31)
	f, err := os.Create(filepath.Join(dir, "only a hole"))
	p.must(err)
	defer f.Close()
	p.must(f.Truncate(5_000_001))
}

// sparse writes small runs at random places of a file of size bytes.
func (p *populator) sparse(name string, runs int, size int64) {
	f, err := os.Create(name)
	p.must(err)
	defer f.Close()
	for range runs {
		_, err := f.WriteAt(p.bytes(1+p.rng.Int64N(9000)), p.rng.Int64N(size-10_000))
		p.must(err)
	}
	p.must(f.Truncate(size + 13))
}

// special makes what is neither file nor directory, and what has several names.
func (p *populator) special(dir string) {
	p.mkdir(dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	p.must(unix.Mknod(in("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(4, 300))))
	p.must(unix.Mknod(in("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70_000))))
	p.must(unix.Mkfifo(in("fifo"), 0o644))
	p.must(unix.Mknod(in("socket"), unix.S_IFSOCK|0o755, 0))
	for _, n := range []int{1, 59, 60, 61, 255, 1000, 4000} {
		err := os.Symlink(strings.Repeat("x", n), in(fmt.Sprintf("link of %d", n)))
		if n < 4000 || !errors.Is(err, unix.ENAMETOOLONG) { // ext: no longer than a block
			p.must(err)
		}
	}
	p.must(os.Symlink("../../../../etc/shadow", in("link out")))
	p.must(os.Symlink("/dangling/\xff", in("link to bytes")))
	p.file(in("one"), 5000)
	for i := range 20 {
		p.must(os.Link(in("one"), in(fmt.Sprintf("name %d of one", i))))
	}
	p.mkdir(in("sticky"))
	p.must(unix.Chmod(in("sticky"), 0o1777))
	p.file(in("setuid"), 10)
	p.must(unix.Chmod(in("setuid"), 0o6755))
	times := []time.Time{time.Unix(0, 0), time.Unix(1, 999_999_999), time.Unix(1<<31-1, 1), time.Unix(1<<31, 123_456_789)}
	if p.opts.Year2038 {
		times = times[:3]
	}
	for _, at := range times {
		name := in(fmt.Sprintf("time %d", at.Unix()))
		p.file(name, 1)
		p.must(os.Chtimes(name, at, at))
	}
}

// attributes makes extended attributes that fit in an inode, that do not, and
// that need a place of their own.
func (p *populator) attributes(dir string) {
	p.mkdir(dir)
	all := [][]int{{0}, {1, 2, 3}, {30, 30}, {200, 400}, {10, 20, 30, 40, 50, 60, 70, 80}, {1500, 1200}, {20_000}}
	if p.opts.NoBigXattrs {
		all = all[:5]
	}
	for i, sizes := range all {
		name := filepath.Join(dir, fmt.Sprintf("attributes %d", i))
		p.file(name, int64(i*100))
		for j, n := range sizes {
			p.must(unix.Setxattr(name, fmt.Sprintf("user.attribute %d", j), p.bytes(int64(n)), 0))
		}
		p.must(unix.Setxattr(name, "trusted.lifeboat", []byte("x"), 0))
		p.must(unix.Setxattr(name, "security.lifeboat", []byte("y"), 0))
	}
	// A capability (vfs_cap_data, version 2) and a POSIX ACL (version 2 of the
	// attribute: tag, permissions, id).
	file := filepath.Join(dir, "capable")
	p.file(file, 10)
	p.must(unix.Setxattr(file, "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	if p.opts.NoACL {
		return
	}
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff")
	p.must(unix.Setxattr(file, "system.posix_acl_access", acl, 0))
	p.must(unix.Setxattr(dir, "system.posix_acl_default", acl, 0))
	p.file(filepath.Join(dir, "inherits"), 10)
}
