package ntfs

import (
	"math"
	"sort"
)

// run is clusters that are together on the volume.
type run struct {
	vcn, count int64
	lcn        int64 // -1: a hole
}

// maxVCN bounds virtual cluster numbers, so that offsets in bytes fit.
const maxVCN = math.MaxInt64 / maxCluster

// decodeRuns reads mapping pairs: for each run a byte that says how long the two
// numbers are which follow, its length and its distance from the run before. The
// first run begins at cluster vcn of the file.
func (g *geometry) decodeRuns(b []byte, vcn int64) ([]run, error) {
	var out []run
	lcn := int64(0)
	for len(b) > 0 && b[0] != 0 {
		lengthSize, offsetSize := int(b[0]&15), int(b[0]>>4)
		if lengthSize == 0 || lengthSize > 8 || offsetSize > 8 || 1+lengthSize+offsetSize > len(b) {
			return nil, corrupt("a run of %d and %d bytes", lengthSize, offsetSize)
		}
		count, delta := signed(b[1:1+lengthSize]), signed(b[1+lengthSize:1+lengthSize+offsetSize])
		b = b[1+lengthSize+offsetSize:]
		if count <= 0 || count > maxVCN-vcn {
			return nil, corrupt("a run of %d clusters at %d", count, vcn)
		}
		r := run{vcn: vcn, count: count, lcn: -1}
		if offsetSize > 0 {
			if delta > g.clusters || delta < -g.clusters {
				return nil, corrupt("a run %d clusters from the one before", delta)
			}
			lcn += delta
			if lcn < 0 || lcn >= g.clusters || count > g.clusters-lcn {
				return nil, corrupt("a run of %d clusters at %d of %d", count, lcn, g.clusters)
			}
			r.lcn = lcn
		}
		vcn += count
		out = append(out, r)
	}
	return out, nil
}

// signed is a little-endian number of up to 8 bytes.
func signed(b []byte) int64 {
	var n int64
	for i := len(b) - 1; i >= 0; i-- {
		if i == len(b)-1 {
			n = int64(int8(b[i]))
			continue
		}
		n = n<<8 | int64(b[i])
	}
	return n
}

// findRun is the run that contains a cluster.
func findRun(runs []run, vcn int64) (run, bool) {
	i := sort.Search(len(runs), func(i int) bool { return runs[i].vcn > vcn }) - 1
	if i < 0 || vcn >= runs[i].vcn+runs[i].count {
		return run{}, false
	}
	return runs[i], true
}
