package nfsserver

// NFS version 3 (RFC 1813 §3).

const (
	nfsVersion  = 3
	maxName     = 255  // longest name, bytes
	maxSymlink  = 4095 // longest target of a symbolic link, bytes
	maxFileSize = 1<<63 - 1
	maxLinks    = 32000 // what file systems of the host commonly allow
	dirTransfer = 64 << 10
)

// nfsProcedures is the table of NFSv3, in the order of its numbers.
func nfsProcedures() []procedure {
	return []procedure{
		0:  {name: "NULL", inline: null, open: true},
		1:  {name: "GETATTR", inline: getattr, work: getattr},
		2:  {name: "SETATTR", work: setattr, class: classMeta, once: true, failWords: 2},
		3:  {name: "LOOKUP", work: lookup, class: classMeta, failWords: 1},
		4:  {name: "ACCESS", inline: access, work: access, failWords: 1},
		5:  {name: "READLINK", work: readlink, class: classMeta, failWords: 1, room: linkRoom},
		6:  {name: "READ", inline: readInline, work: read, class: classRead, failWords: 1, room: readRoom},
		7:  {name: "WRITE", inline: writeInline, work: write, class: classWrite, failWords: 2},
		8:  {name: "CREATE", work: create, class: classMeta, once: true, failWords: 2},
		9:  {name: "MKDIR", work: mkdir, class: classMeta, once: true, failWords: 2},
		10: {name: "SYMLINK", work: symlink, class: classMeta, once: true, failWords: 2},
		11: {name: "MKNOD", work: mknod, class: classMeta, once: true, failWords: 2},
		12: {name: "REMOVE", work: remove, class: classMeta, once: true, failWords: 2},
		13: {name: "RMDIR", work: rmdir, class: classMeta, once: true, failWords: 2},
		14: {name: "RENAME", work: rename, class: classMeta, once: true, failWords: 4},
		15: {name: "LINK", work: link, class: classMeta, once: true, failWords: 3},
		16: {name: "READDIR", work: readdir, class: classMeta, failWords: 1, room: dirRoom},
		17: {name: "READDIRPLUS", work: readdirplus, class: classMeta, failWords: 1, room: dirRoom},
		18: {name: "FSSTAT", work: fsstat, class: classMeta, failWords: 1},
		19: {name: "FSINFO", inline: fsinfo, work: fsinfo, failWords: 1},
		20: {name: "PATHCONF", inline: pathconf, work: pathconf, failWords: 1},
		21: {name: "COMMIT", inline: commitInline, work: commit, class: classMeta, failWords: 2},
	}
}
