package vsphere

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// maxScreenshot bounds a screenshot: 8K, uncompressed.
const maxScreenshot = 160 << 20

// Screenshot is what a running VM's console shows, as a PNG. /screen leaves
// nothing behind; where the server does not have it, CreateScreenshot does it,
// and its file is deleted. Errors: ErrState (the VM is off), ErrPermission
// (VirtualMachine.Interact.ConsoleInteract, …CreateScreenshot).
func (c *Client) Screenshot(ctx context.Context, vm Ref) ([]byte, error) {
	op := "take a screenshot of " + string(vm)
	ctx, cancel := context.WithTimeout(ctx, c.o.CallTimeout)
	defer cancel()
	u := *c.vim.URL()
	u.Path, u.RawQuery = "/screen", url.Values{"id": {vm.Value()}}.Encode()
	res, err := c.send(ctx, http.MethodGet, u.String(), nil, nil, 0)
	if err != nil {
		return nil, c.fail(op, err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		if png, err := readPNG(res.Body); err == nil {
			return png, nil
		}
	}
	return c.screenshotFile(ctx, op, vm)
}

func (c *Client) screenshotFile(ctx context.Context, op string, vm Ref) ([]byte, error) {
	task, err := methods.CreateScreenshot_Task(ctx, c.session, &types.CreateScreenshot_Task{This: mor(vm)})
	if err != nil {
		return nil, c.fail(op, err)
	}
	result, err := c.wait(ctx, op, task.Returnval, nil)
	if err != nil {
		return nil, err
	}
	file, ok := result.(string)
	if _, _, isPath := SplitPath(file); !ok || !isPath {
		return nil, &Error{Op: op, Kind: ErrFault, Text: fmt.Sprintf("the server does not say where it put the picture (%v)", result)}
	}
	v, err := c.VM(ctx, vm)
	if err != nil {
		return nil, err
	}
	files := c.Files(v.Datacenter)
	defer func() {
		if err := files.Delete(context.WithoutCancel(ctx), file); err != nil {
			c.log.Warn("screenshot's file stays on the datastore", "file", file, "error", err)
		}
	}()
	r, err := files.Download(ctx, file, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	png, err := readPNG(r)
	return png, c.fail(op, err)
}

func readPNG(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxScreenshot+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxScreenshot || !bytes.HasPrefix(b, []byte("\x89PNG\r\n\x1a\n")):
		return nil, fmt.Errorf("what the server sends (%d bytes) is no PNG picture", len(b))
	}
	return b, nil
}
