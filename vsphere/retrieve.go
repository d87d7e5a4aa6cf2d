package vsphere

import (
	"context"
	"fmt"
	"reflect"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// pageSize is how many objects one answer of a retrieval holds at most.
const pageSize = 1000

// maxObjects bounds a whole retrieval: several times what vCenter's
// configuration maximums allow.
const maxObjects = 1_000_000

// retrieve fetches properties, page by page. The pages of a retrieval belong to
// the session; when that is lost in between, the retrieval starts again.
func (c *Client) retrieve(ctx context.Context, specs ...types.PropertyFilterSpec) ([]types.ObjectContent, error) {
	for try := 0; ; try++ {
		epoch := c.session.epoch.Load()
		out, err := c.retrievePages(ctx, specs)
		if err == nil || ctx.Err() != nil || try >= 2 || c.session.epoch.Load() == epoch {
			return out, err
		}
	}
}

func (c *Client) retrievePages(ctx context.Context, specs []types.PropertyFilterSpec) ([]types.ObjectContent, error) {
	pc := c.vim.ServiceContent.PropertyCollector
	first, err := methods.RetrievePropertiesEx(ctx, c.session, &types.RetrievePropertiesEx{
		This: pc, SpecSet: specs, Options: types.RetrieveOptions{MaxObjects: pageSize},
	})
	if err != nil || first.Returnval == nil {
		return nil, err
	}
	out, token := first.Returnval.Objects, first.Returnval.Token
	for token != "" {
		if len(out) > maxObjects {
			return nil, fmt.Errorf("the server tells of more than %d objects", maxObjects)
		}
		next, err := methods.ContinueRetrievePropertiesEx(ctx, c.session, &types.ContinueRetrievePropertiesEx{This: pc, Token: token})
		if err != nil {
			return nil, err
		}
		out, token = append(out, next.Returnval.Objects...), next.Returnval.Token
	}
	return out, nil
}

// retrieveOne fetches properties of one object into dst, a pointer to its mo
// type. Properties that may not be read are left as they are.
func (c *Client) retrieveOne(ctx context.Context, op string, ref types.ManagedObjectReference, props []string, dst any) error {
	objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: props}},
	})
	if err != nil {
		return c.fail(op, err)
	}
	if len(objects) != 1 {
		return &Error{Op: op, Kind: ErrNotFound, Text: "it does not exist, or this user may not see it"}
	}
	if err := readable(&objects[0]); err != nil {
		return c.fail(op, err)
	}
	v, err := load(objects[0])
	if err != nil {
		return c.fail(op, err)
	}
	got, want := reflect.ValueOf(v).Elem(), reflect.ValueOf(dst).Elem()
	if !got.Type().AssignableTo(want.Type()) {
		return &Error{Op: op, Kind: ErrInvalid, Text: fmt.Sprintf("%s is no %s", refOf(ref), want.Type().Name())}
	}
	want.Set(got)
	return nil
}

// readable forgets which properties could not be read, unless none could.
func readable(o *types.ObjectContent) error {
	if len(o.PropSet) == 0 && len(o.MissingSet) > 0 {
		return soap.WrapVimFault(o.MissingSet[0].Fault.Fault)
	}
	o.MissingSet = nil
	return nil
}

// load decodes one object into a pointer to its mo type. The library panics
// where an answer does not have the types that the API says; here that is an error.
func load(o types.ObjectContent) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w", refOf(o.Obj), panicError{p})
		}
	}()
	o.MissingSet = nil
	return mo.ObjectContentToType(o, true)
}

func refOf(r types.ManagedObjectReference) Ref { return Ref(r.Type + ":" + r.Value) }

func refOfPtr(r *types.ManagedObjectReference) Ref {
	if r == nil {
		return ""
	}
	return refOf(*r)
}

// mor is the inverse of refOf.
func mor(r Ref) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: r.Kind(), Value: r.Value()}
}

func morPtr(r Ref) *types.ManagedObjectReference {
	if r == "" {
		return nil
	}
	m := mor(r)
	return &m
}

// panicError is a panic of the library over an answer.
type panicError struct{ p any }

func (e panicError) Error() string {
	return fmt.Sprintf("the server's answer is not understood: %v", e.p)
}
