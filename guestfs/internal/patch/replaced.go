package patch

import "lifeboat/disk"

// Replaced are the ranges that come from elsewhere, ascending and without overlap.
func (m *Image) Replaced() []disk.Extent {
	var out []disk.Extent
	for _, number := range m.order {
		at := number * m.size
		if n := len(out); n > 0 && out[n-1].End() == at {
			out[n-1].Length += m.size
			continue
		}
		out = append(out, disk.Extent{Offset: at, Length: m.size})
	}
	return out
}

// Replaced are the ranges of img that come from elsewhere, if it is an Image.
func Replaced(img disk.Image) []disk.Extent {
	if m, ok := img.(*Image); ok {
		return m.Replaced()
	}
	return nil
}
