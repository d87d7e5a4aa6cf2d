package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/nfsserver/nfstest"
)

// published is a running `lifeboat publish` of a script.
type published struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	exited chan error
	ready  struct {
		NFS     string `json:"nfs_addr"`
		Mount   string `json:"mount_addr"`
		Folders []struct {
			Path  string   `json:"path"`
			VMX   string   `json:"vmx"`
			Disks []string `json:"disks"`
		} `json:"folders"`
	}
}

// background NAME COMMAND… starts a publish and waits until it is ready. Its
// folders' paths become $NAME0, $NAME1, …; the script may end it with stop or
// crash, otherwise it is killed at the end.
func background(ts *testscript.TestScript, neg bool, args []string) {
	p := &published{exited: make(chan error, 1)}
	p.cmd = exec.Command(args[1], args[2:]...)
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("WORK")}
	for _, name := range []string{"LIFEBOAT_REPO", "LIFEBOAT_STATE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "LIFEBOAT_PASSWORD", "TZ", "TMPDIR"} {
		p.cmd.Env = append(p.cmd.Env, name+"="+ts.Getenv(name))
	}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(p.cmd.Start())
	line, _ := bufio.NewReader(out).ReadBytes('\n')
	go func() { p.exited <- p.cmd.Wait() }()
	ts.Defer(func() { p.end(os.Kill) })
	if err := json.Unmarshal(line, &p.ready); err != nil {
		p.end(os.Kill)
		ts.Fatalf("%s printed %q: %v\n%s", strings.Join(args[1:], " "), line, err, p.stderr.String())
	}
	for i, f := range p.ready.Folders {
		ts.Setenv(args[0]+string(rune('0'+i)), f.Path)
	}
	running[key(ts, args[0])] = p
}

// running holds the publishes of all scripts; scripts run one after another.
var running = map[string]*published{}

func key(ts *testscript.TestScript, name string) string { return ts.Getenv("WORK") + " " + name }

func find(ts *testscript.TestScript, name string) *published {
	p := running[key(ts, name)]
	if p == nil {
		ts.Fatalf("nothing called %q was started", name)
	}
	return p
}

func (p *published) end(sig os.Signal) error {
	if p.exited == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(sig)
	err := <-p.exited
	p.exited = nil
	return err
}

// crash NAME ends a publish with SIGKILL.
func crash(ts *testscript.TestScript, neg bool, args []string) {
	_ = find(ts, args[0]).end(syscall.SIGKILL)
}

// stop NAME interrupts a publish, which must end with exit code 0. What it said
// goes to the log.
func stop(ts *testscript.TestScript, neg bool, args []string) {
	p := find(ts, args[0])
	if err := p.end(os.Interrupt); err != nil {
		ts.Fatalf("%v\n%s", err, p.stderr.String())
	}
	ts.Logf("%s", p.stderr.String())
}

// nfs NAME ls DIR | get DIR FILE OFFSET LENGTH TO | put DIR FILE OFFSET FROM |
// rm DIR FILE | mv DIR FILE TO: what a client does. DIR is mounted. With ! the
// mount or the operation must be refused.
func nfs(ts *testscript.TestScript, neg bool, args []string) {
	p := find(ts, args[0])
	err := p.operate(ts, args[1], args[2], args[3:])
	if (err != nil) != neg {
		ts.Fatalf("nfs %s: %v (negated: %t)", strings.Join(args, " "), err, neg)
	}
}

func (p *published) operate(ts *testscript.TestScript, op, dir string, args []string) error {
	m, err := nfstest.Dial(p.ready.Mount)
	if err != nil {
		return err
	}
	defer m.Close()
	root, err := m.Mount(dir)
	if err != nil {
		return err
	}
	c, err := nfstest.Dial(p.ready.NFS)
	if err != nil {
		return err
	}
	defer c.Close()
	switch op {
	case "ls":
		return list(ts, c, root)
	case "get":
		return get(ts, c, root, args)
	case "put":
		return put(ts, c, root, args)
	case "rm":
		_, err := c.Remove(root, args[0])
		return err
	case "mv":
		_, _, err := c.Rename(root, args[0], root, args[1])
		return err
	}
	ts.Fatalf("nfs: no operation %q", op)
	return nil
}

func list(ts *testscript.TestScript, c *nfstest.Client, dir nfstest.Handle) error {
	entries, err := c.ReadAll(dir, 8192)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := ts.Stdout().Write([]byte(e.Name + "\n")); err != nil {
			return err
		}
	}
	return nil
}

const nfsChunk = 1 << 20

func get(ts *testscript.TestScript, c *nfstest.Client, dir nfstest.Handle, args []string) error {
	h, _, err := c.Lookup(dir, args[0])
	if err != nil {
		return err
	}
	var all []byte
	offset, left := number(ts, args[1]), number(ts, args[2])
	for left > 0 {
		r, err := c.Read(h, uint64(offset), uint32(min(left, nfsChunk)))
		if err != nil {
			return err
		}
		all = append(all, r.Data...)
		offset, left = offset+int64(len(r.Data)), left-int64(len(r.Data))
		if r.EOF || len(r.Data) == 0 {
			break
		}
	}
	return os.WriteFile(ts.MkAbs(args[3]), all, 0o600)
}

func put(ts *testscript.TestScript, c *nfstest.Client, dir nfstest.Handle, args []string) error {
	h, _, err := c.Lookup(dir, args[0])
	if err != nil {
		return err
	}
	data, err := os.ReadFile(ts.MkAbs(args[2]))
	if err != nil {
		return err
	}
	for offset := number(ts, args[1]); len(data) > 0; {
		n := min(len(data), nfsChunk)
		if _, err := c.Write(h, uint64(offset), data[:n], nfstest.FileSync); err != nil {
			return err
		}
		offset, data = offset+int64(n), data[n:]
	}
	return nil
}
