package keyring

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"lifeboat/store/backend"
)

// Header and key files are JSON that a person can read, and still every byte
// of them is checked: the text ends in a member whose value is a hash of all
// bytes before that member's line.
//
//	{
//	  "version": 1,
//	  …,
//	  "checksum": "<64 hex digits>"
//	}
//
// What precedes that line is the body. The line and the brace have one
// spelling only. So a flipped bit anywhere shows, whatever the version.

// maxDocument is the largest document that is read, in bytes.
const maxDocument = 64 << 10

// member is a closing line with the hash of what stands before it.
type member struct {
	name string
	hash func(body []byte) [32]byte
}

func checksum() member { return member{"checksum", blake3.Sum256} }

func (m member) line(body []byte) string {
	sum := m.hash(body)
	return fmt.Sprintf("  %q: %q", m.name, hex.EncodeToString(sum[:]))
}

// tailSize is the length of the closing line and whatever follows it.
func (m member) tailSize(after string) int {
	return len(fmt.Sprintf("  %q: %q", m.name, "")) + 64 + len(after)
}

// body is the JSON of v without its closing brace, ready for more members.
func body(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(bytes.TrimSuffix(text, []byte("\n}")), ",\n"...), nil
}

const documentEnd = "\n}\n"

// finish closes a body with its checksum.
func finish(body []byte) []byte {
	return append(append(body, checksum().line(body)...), documentEnd...)
}

// split returns the body of a document whose checksum is right.
func split(name string, doc []byte) ([]byte, error) {
	return checksum().strip(name, doc, documentEnd)
}

// strip returns what stands before the member's line, if the line is right
// and followed by after and nothing else.
func (m member) strip(name string, doc []byte, after string) ([]byte, error) {
	n := len(doc) - m.tailSize(after)
	if n < 0 {
		return nil, damaged(name, "%d bytes are too few", len(doc))
	}
	body := doc[:n]
	if want := m.line(body) + after; want != string(doc[n:]) {
		return nil, damaged(name, "its %s does not match its content", m.name)
	}
	return body, nil
}

// decode parses a body that has been checked. Members that v does not have
// are refused: they mean something that we do not know.
func decode(name string, body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(append(bytes.TrimSuffix(bytes.Clone(body), []byte(",\n")), '}')))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%s: %w: %w: upgrade Lifeboat", name, ErrVersion, err)
	}
	return nil
}

// version parses only the version of a body.
func version(name string, body []byte) (int, error) {
	var v struct {
		Version int `json:"version"`
	}
	text := append(bytes.TrimSuffix(bytes.Clone(body), []byte(",\n")), '}')
	if err := json.Unmarshal(text, &v); err != nil {
		return 0, damaged(name, "not JSON: %v", err)
	}
	return v.Version, nil
}

// readSmall reads a whole object of at most maxDocument bytes.
func readSmall(ctx context.Context, b backend.Backend, name string) ([]byte, error) {
	o, err := b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if o.Size() > maxDocument {
		return nil, damaged(name, "%d bytes are too many", o.Size())
	}
	data := make([]byte, o.Size())
	if _, err := io.ReadFull(io.NewSectionReader(o, 0, o.Size()), data); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

func writeSmall(ctx context.Context, b backend.Backend, name string, data []byte, mode backend.Mode) error {
	w, err := b.Create(ctx, name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit(ctx)
}
