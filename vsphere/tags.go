package vsphere

import (
	"context"
	"slices"

	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"
)

// tagBatch is how many objects one question about tags names.
const tagBatch = 500

// LoadTags fills VM.Tags of an inventory, as "category/name". Tags are vCenter's
// automation API's matter (REST, a login of its own; not counted in Calls). A
// stand-alone host has none: ErrUnsupported.
func (c *Client) LoadTags(ctx context.Context, inv *Inventory) (err error) {
	op := "read the tags of " + c.about.Server
	if !c.about.VCenter {
		return &Error{Op: op, Kind: ErrUnsupported, Text: "a stand-alone host keeps no tags"}
	}
	rc := rest.NewClient(c.vim)
	if err := rc.Login(ctx, c.user); err != nil {
		return c.fail(op, err)
	}
	defer func() {
		if lerr := rc.Logout(context.WithoutCancel(ctx)); lerr != nil {
			c.log.Debug("logout from the tag service", "error", lerr)
		}
	}()
	m := tags.NewManager(rc)
	categories, err := m.GetCategories(ctx)
	if err != nil {
		return c.fail(op, err)
	}
	category := map[string]string{}
	for _, cat := range categories {
		category[cat.ID] = cat.Name
	}
	byRef := map[Ref]*VM{}
	var refs []mo.Reference
	for i := range inv.VMs {
		inv.VMs[i].Tags = nil
		byRef[inv.VMs[i].Ref] = &inv.VMs[i]
		refs = append(refs, mor(inv.VMs[i].Ref))
	}
	for batch := range slices.Chunk(refs, tagBatch) {
		attached, err := m.GetAttachedTagsOnObjects(ctx, batch)
		if err != nil {
			return c.fail(op, err)
		}
		for _, a := range attached {
			v := byRef[refOf(a.ObjectID.Reference())]
			if v == nil {
				continue
			}
			for _, tag := range a.Tags {
				v.Tags = append(v.Tags, category[tag.CategoryID]+"/"+tag.Name)
			}
			slices.Sort(v.Tags)
		}
	}
	inv.tags = true
	return nil
}
