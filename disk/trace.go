package disk

// Piecewise is implemented by disks that are made of pieces of others, so that
// a reader can go to where the bytes are.
type Piecewise interface {
	// PieceAt is the rest, from off on, of the piece that contains off: its
	// Offset is off. 0 ≤ off < Size. It is safe for concurrent use.
	PieceAt(off int64) (Piece, error)
}

// PieceAt implements [Piecewise].
func (a *assembled) PieceAt(off int64) (Piece, error) { return a.at(off) }

// maxTrace bounds how many disks may stand on each other: a file in a logical
// volume in a partition is four.
const maxTrace = 32

// Trace follows the byte at off down to a disk that is not made of pieces of
// others, and returns the piece of img that lies there in one run, from off on:
// its From is that disk, or nil where the piece reads as zeros.
func Trace(img Image, off int64) (Piece, error) {
	whole := Piece{Offset: off, Length: img.Size() - off, From: img, At: off}
	for range maxTrace {
		made, ok := whole.From.(Piecewise)
		if !ok {
			return whole, nil
		}
		pc, err := made.PieceAt(whole.At)
		if err != nil {
			return Piece{}, err
		}
		whole.Length = min(whole.Length, pc.Length)
		whole.From, whole.At = pc.From, pc.At
	}
	return whole, nil
}
