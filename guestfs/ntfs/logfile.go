package ntfs

import "context"

func (f *FS) checkLog(context.Context) error { return nil }
