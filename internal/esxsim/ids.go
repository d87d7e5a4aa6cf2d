package esxsim

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// randomCID is a content ID; not one of the two that mean something.
func randomCID() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint32(b[:])&0x7fffffff | 1
}

// diskUUID is a disk's UUID as the API writes it; VMware's begin with 6000C29.
func diskUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[0], b[1], b[2], b[3] = 0x60, 0x00, 0xC2, 0x90|b[3]&0x0f
	h := strings.ToUpper(hex.EncodeToString(b[:4])) + hex.EncodeToString(b[4:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// descriptorUUID is the same as a descriptor writes it: "60 00 C2 9… …-…".
func descriptorUUID(api string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(api, "-", ""))
	if err != nil || len(b) != 16 {
		return ""
	}
	return spacedHex(b)
}

// apiUUID turns a descriptor's UUID into the API's form; "" when it is none.
func apiUUID(descriptor string) string {
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "-", "").Replace(descriptor))
	if err != nil || len(b) != 16 {
		return ""
	}
	h := strings.ToUpper(hex.EncodeToString(b[:4])) + hex.EncodeToString(b[4:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// fmtCID is a content ID as the API writes it.
func fmtCID(cid uint32) string { return fmt.Sprintf("%08x", cid) }
