/*
 * nfsload: a load client for NFSv3 servers that is not the limit itself.
 *
 * One TCP connection, a fixed number of calls under way, one send per batch of
 * replies, no copies of what is read. It mounts (MOUNT v3 over TCP, AUTH_SYS as
 * root), looks the file up and then repeats one operation for some seconds.
 *
 *   nfsload HOST NFSPORT MOUNTPORT DIR FILE OP SIZE DEPTH SECONDS ORDER [SPAN]
 *
 * OP    null | getattr | read | write (UNSTABLE) | writesync (FILE_SYNC)
 * SIZE  bytes per READ or WRITE; ORDER rand | seq; SPAN limits the part of the
 * file that is used, in bytes (default: all of it).
 *
 * Prints one JSON object: {"ops":…,"bytes":…,"seconds":…,"p50_us":…,"p99_us":…}.
 * Exit status 1 when the server answers with an error.
 *
 * RFC 5531 (RPC), RFC 4506 (XDR), RFC 1813 (NFSv3 and MOUNT v3).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAXDEPTH = 256, HDR = 512, MAXIO = 1 << 20, INBUF = 8 << 20 };
enum { PROG_NFS = 100003, PROG_MOUNT = 100005 };
enum { P_NULL = 0, P_GETATTR = 1, P_LOOKUP = 3, P_READ = 6, P_WRITE = 7 };

struct handle {
	uint32_t len;
	unsigned char data[64];
};

static void die(const char *what)
{
	fprintf(stderr, "nfsload: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(void)
{
	static uint64_t x = 88172645463325252u;
	x ^= x << 13;
	x ^= x >> 7;
	return x ^= x << 17;
}

/* XDR, written at the end of a buffer. */
struct out {
	unsigned char *p;
};

static void put32(struct out *o, uint32_t v)
{
	v = htonl(v);
	memcpy(o->p, &v, 4);
	o->p += 4;
}

static void put64(struct out *o, uint64_t v)
{
	put32(o, (uint32_t)(v >> 32));
	put32(o, (uint32_t)v);
}

static void put_opaque(struct out *o, const void *data, uint32_t len)
{
	put32(o, len);
	memcpy(o->p, data, len);
	memset(o->p + len, 0, 3);
	o->p += (len + 3) & ~3u;
}

static uint32_t get32(const unsigned char *p)
{
	uint32_t v;
	memcpy(&v, p, 4);
	return ntohl(v);
}

/* call starts a call; finish puts the record mark in front of it. */
static struct out call(unsigned char *buf, uint32_t xid, uint32_t prog, uint32_t proc)
{
	struct out o = {buf + 4};
	put32(&o, xid);
	put32(&o, 0);
	put32(&o, 2);
	put32(&o, prog);
	put32(&o, 3);
	put32(&o, proc);
	put32(&o, 1); /* AUTH_SYS */
	put32(&o, 24); /* its body: stamp, name, uid, gid, no further gids */
	put32(&o, 0);
	put_opaque(&o, "load", 4);
	put32(&o, 0);
	put32(&o, 0);
	put32(&o, 0);
	put32(&o, 0); /* verifier: AUTH_NONE */
	put32(&o, 0);
	return o;
}

static size_t finish(unsigned char *buf, struct out *o, size_t extra)
{
	uint32_t mark = htonl(0x80000000u | (uint32_t)(o->p - buf - 4 + extra));
	memcpy(buf, &mark, 4);
	return (size_t)(o->p - buf);
}

static int dial(const char *host, const char *port)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *ai;
	if (getaddrinfo(host, port, &hints, &ai) != 0)
		die("cannot resolve the server's address");
	int fd = socket(ai->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, ai->ai_addr, ai->ai_addrlen) != 0)
		die("cannot connect");
	freeaddrinfo(ai);
	int one = 1, big = 4 << 20;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &big, sizeof big);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
	return fd;
}

static void send_all(int fd, const unsigned char *p, size_t n)
{
	while (n > 0) {
		ssize_t w = send(fd, p, n, MSG_NOSIGNAL);
		if (w <= 0)
			die("connection lost while sending");
		p += w;
		n -= (size_t)w;
	}
}

static void recv_all(int fd, unsigned char *p, size_t n)
{
	while (n > 0) {
		ssize_t r = recv(fd, p, n, 0);
		if (r <= 0) {
			errno = r == 0 ? 0 : errno;
			die("connection lost while receiving");
		}
		p += r;
		n -= (size_t)r;
	}
}

/* results returns where a successful reply's results start. */
static const unsigned char *results(const unsigned char *reply, size_t len)
{
	errno = 0;
	if (len < 24 || get32(reply + 4) != 1 || get32(reply + 8) != 0)
		die("RPC call refused");
	size_t verf = (get32(reply + 16) + 3) & ~3u;
	if (len < 24 + verf || get32(reply + 20 + verf) != 0)
		die("RPC call not accepted");
	return reply + 24 + verf;
}

/* simple makes one call and waits for its reply. */
static const unsigned char *simple(int fd, unsigned char *buf, struct out *o, unsigned char *reply)
{
	send_all(fd, buf, finish(buf, o, 0));
	size_t len = 0;
	for (int last = 0; !last;) {
		unsigned char mark[4];
		recv_all(fd, mark, 4);
		uint32_t m = get32(mark);
		last = m >> 31;
		m &= 0x7fffffff;
		if (len + m > 65536)
			die("reply too long");
		recv_all(fd, reply + len, m);
		len += m;
	}
	return results(reply, len);
}

static struct handle mount_dir(const char *host, const char *port, const char *dir)
{
	unsigned char buf[4096], reply[65536];
	int fd = dial(host, port);
	struct out o = call(buf, 1, PROG_MOUNT, 1);
	put_opaque(&o, dir, (uint32_t)strlen(dir));
	const unsigned char *r = simple(fd, buf, &o, reply);
	if (get32(r) != 0)
		die("the server refuses the mount");
	struct handle h = {.len = get32(r + 4)};
	if (h.len > 64)
		die("handle too long");
	memcpy(h.data, r + 8, h.len);
	close(fd);
	return h;
}

static struct handle lookup(int fd, const struct handle *dir, const char *name)
{
	unsigned char buf[4096], reply[65536];
	struct out o = call(buf, 2, PROG_NFS, P_LOOKUP);
	put_opaque(&o, dir->data, dir->len);
	put_opaque(&o, name, (uint32_t)strlen(name));
	const unsigned char *r = simple(fd, buf, &o, reply);
	if (get32(r) != 0)
		die("no such file on the server");
	struct handle h = {.len = get32(r + 4)};
	if (h.len > 64)
		die("handle too long");
	memcpy(h.data, r + 8, h.len);
	return h;
}

static uint64_t file_size(int fd, const struct handle *h)
{
	unsigned char buf[4096], reply[65536];
	struct out o = call(buf, 3, PROG_NFS, P_GETATTR);
	put_opaque(&o, h->data, h->len);
	const unsigned char *r = simple(fd, buf, &o, reply);
	if (get32(r) != 0)
		die("GETATTR failed");
	r += 4 + 20;
	return (uint64_t)get32(r) << 32 | get32(r + 4);
}

struct load {
	int fd, proc, stable, random;
	uint32_t size;
	uint64_t blocks, next;
	struct handle h;
	unsigned char *data; /* what is written */
	uint64_t started[MAXDEPTH];
};

static size_t issue(struct load *l, uint32_t slot, unsigned char *buf)
{
	uint32_t xid = 0x4c000000u | slot;
	struct out o = call(buf, xid, PROG_NFS, (uint32_t)l->proc);
	size_t extra = 0;
	if (l->proc != P_NULL)
		put_opaque(&o, l->h.data, l->h.len);
	if (l->proc == P_READ || l->proc == P_WRITE) {
		uint64_t block = (l->random ? next_random() : l->next++) % l->blocks;
		put64(&o, block * l->size);
		put32(&o, l->size);
	}
	if (l->proc == P_WRITE) {
		put32(&o, l->stable ? 2 : 0);
		put32(&o, l->size);
		extra = l->size;
	}
	size_t n = finish(buf, &o, extra);
	if (extra > 0) {
		/* No two writes alike: servers may take shortcuts for zeros. */
		uint64_t salt = next_random();
		memcpy(l->data, &salt, sizeof salt);
		memcpy(buf + n, l->data, extra);
		n += extra;
	}
	l->started[slot] = now_ns();
	return n;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

/* check fails the run when the server answered with an error or a short read. */
static void check(const struct load *l, const unsigned char *reply, size_t len)
{
	const unsigned char *r = results(reply, len);
	if (l->proc == P_NULL)
		return;
	errno = 0;
	if (get32(r) != 0) {
		fprintf(stderr, "nfsload: the server answered status %u\n", get32(r));
		exit(1);
	}
	if (l->proc == P_READ) {
		size_t at = 8 + (get32(r + 4) ? 84 : 0);
		if (get32(r + at) != l->size)
			die("short read");
	}
}

static void run(struct load *l, int depth, double seconds)
{
	size_t per = HDR + (l->proc == P_WRITE ? l->size : 0);
	unsigned char *outbuf = malloc(per * (size_t)depth), *in = malloc(INBUF);
	uint32_t *lat = malloc(sizeof *lat << 22);
	if (!outbuf || !in || !lat)
		die("out of memory");
	uint64_t ops = 0, samples = 0, start = now_ns(), end = start + (uint64_t)(seconds * 1e9);
	size_t fill = 0, batch = 0;
	int flying = depth;
	for (int i = 0; i < depth; i++)
		batch += issue(l, (uint32_t)i, outbuf + batch);
	send_all(l->fd, outbuf, batch);
	while (flying > 0) {
		ssize_t r = recv(l->fd, in + fill, INBUF - fill, 0);
		if (r <= 0)
			die("connection lost");
		fill += (size_t)r;
		size_t at = 0;
		batch = 0;
		uint64_t now = now_ns();
		while (fill - at >= 4) {
			uint32_t mark = get32(in + at), len = mark & 0x7fffffff;
			if (!(mark >> 31))
				die("fragmented reply");
			if (fill - at < 4 + (size_t)len)
				break;
			const unsigned char *reply = in + at + 4;
			uint32_t slot = get32(reply) & 0xffffff;
			if (slot >= (uint32_t)depth)
				die("reply to a call that was not made");
			check(l, reply, len);
			ops++;
			if (samples < 1u << 22)
				lat[samples++] = (uint32_t)((now - l->started[slot]) / 100);
			if (now < end)
				batch += issue(l, slot, outbuf + batch);
			else
				flying--;
			at += 4 + (size_t)len;
		}
		memmove(in, in + at, fill - at);
		fill -= at;
		if (batch > 0)
			send_all(l->fd, outbuf, batch);
	}
	double took = (double)(now_ns() - start) / 1e9;
	qsort(lat, samples, sizeof *lat, by_value);
	uint64_t bytes = l->proc == P_READ || l->proc == P_WRITE ? ops * l->size : 0;
	printf("{\"ops\":%llu,\"bytes\":%llu,\"seconds\":%.4f,\"p50_us\":%.1f,\"p99_us\":%.1f}\n",
	       (unsigned long long)ops, (unsigned long long)bytes, took,
	       samples ? lat[samples / 2] / 10.0 : 0, samples ? lat[samples * 99 / 100] / 10.0 : 0);
}

int main(int argc, char **argv)
{
	if (argc < 11 || argc > 12) {
		fprintf(stderr, "usage: nfsload HOST NFSPORT MOUNTPORT DIR FILE null|getattr|read|write|writesync SIZE DEPTH SECONDS rand|seq [SPAN]\n");
		return 2;
	}
	const char *op = argv[6];
	struct load l = {.size = (uint32_t)atol(argv[7]), .random = !strcmp(argv[10], "rand")};
	int depth = atoi(argv[8]);
	if (!strcmp(op, "null"))
		l.proc = P_NULL;
	else if (!strcmp(op, "getattr"))
		l.proc = P_GETATTR;
	else if (!strcmp(op, "read"))
		l.proc = P_READ;
	else if (!strncmp(op, "write", 5))
		l.proc = P_WRITE, l.stable = !strcmp(op, "writesync");
	else
		die("unknown operation");
	if (depth < 1 || depth > MAXDEPTH || l.size > MAXIO || (l.size == 0 && l.proc >= P_READ))
		die("depth must be 1 to 256, size 1 to 1 MiB");
	struct handle dir = mount_dir(argv[1], argv[3], argv[4]);
	l.fd = dial(argv[1], argv[2]);
	l.h = lookup(l.fd, &dir, argv[5]);
	uint64_t span = file_size(l.fd, &l.h);
	if (argc == 12 && strtoull(argv[11], NULL, 10) < span)
		span = strtoull(argv[11], NULL, 10);
	l.blocks = l.size ? span / l.size : 1;
	if (l.blocks == 0)
		die("the file is smaller than one operation");
	l.data = malloc(MAXIO);
	if (!l.data)
		die("out of memory");
	for (size_t i = 0; i < MAXIO; i += 8) {
		uint64_t v = next_random();
		memcpy(l.data + i, &v, 8);
	}
	run(&l, depth, atof(argv[9]));
	return 0;
}
