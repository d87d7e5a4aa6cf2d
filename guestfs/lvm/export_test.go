package lvm

// ParseText and Checksum are for tests.
var (
	ParseText = parseText
	Checksum  = checksum
)
