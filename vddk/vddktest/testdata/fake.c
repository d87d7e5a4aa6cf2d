/* A libvixDiskLib.so of our own, for tests: it has the interface of VMware's
 * library as far as lifeboat-vddk uses it, reads and writes plain files, and
 * behaves as badly as fake.conf beside it says (vddktest.go lists the settings).
 *
 * What the documentation of the real one forbids it notes in the file
 * "violations" beside it: calls off the thread of InitEx, two calls at once on a
 * handle, a Close with requests under way, parameters and lists that are not
 * given back, PrepareForAccess without EndAccess, NULL log functions.
 *
 * Structures and numbers are those of vixDiskLib.h (6.7 to 8.0, amd64).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint64_t VixError;
typedef void LogFunc(const char *, va_list);
typedef void Completion(void *, VixError);

enum { OK = 0, FAIL = 1, INVALID = 3, NOT_FOUND = 4, NOT_SUPPORTED = 6, CONN_LOST = 14011, OUT_OF_RANGE = 16007, ASYNC = 25000 };

struct params {
	char *vmx, *server, *thumbprint;
	long reserved;
	uint32_t credType;
	char *user, *password, *more;
	uint32_t port, nfcPort;
	char rest[56];
};

struct info {
	uint32_t bios[3], phys[3];
	uint64_t capacity;
	uint32_t adapter;
	int32_t links;
	char *parent, *uuid;
	uint32_t logical, physical;
};

struct blocks {
	uint32_t count;
	struct { uint64_t offset, length; } run[];
};

_Static_assert(sizeof(struct params) == 128 && sizeof(struct info) == 64, "layout");

struct handle {
	int fd, slot, under_way;
	uint32_t flags;
	uint64_t size;
	char mode[16];
};

struct connection {
	int readOnly;
	char mode[16];
};

struct request {
	struct handle *h;
	int write;
	uint64_t start, count;
	uint8_t *buf;
	Completion *done;
	void *data;
	struct request *next;
};

static char home[4096];
static LogFunc *log_, *warn_;
static pid_t home_thread;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER, drained = PTHREAD_COND_INITIALIZER;
static struct request *queue;
static long delay, lose, hung, crash, threads;
static uint64_t bad;
static int queued, started, transfers, parameters, connections, handles, prepared, lists, busy;

/* note adds a line to a file beside the library. */
static void note(const char *name, const char *format, va_list args)
{
	char path[4200];
	snprintf(path, sizeof path, "%s/%s", home, name);
	FILE *f = fopen(path, "a");
	if (!f) return;
	vfprintf(f, format, args);
	fputc('\n', f);
	fclose(f);
}

static void violation(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	note("violations", format, args);
	va_end(args);
}

static void cleaning(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	note("cleanups", format, args);
	va_end(args);
}

/* setting copies the value of a setting and says whether there is one. */
static int setting(const char *key, char *value, size_t size)
{
	char path[4200], line[8192];
	snprintf(path, sizeof path, "%s/fake.conf", home);
	FILE *f = fopen(path, "r");
	int found = 0;
	while (f && !found && fgets(line, sizeof line, f)) {
		size_t n = strlen(key);
		if (strncmp(line, key, n) || line[n] != '=') continue;
		line[strcspn(line, "\n")] = 0;
		snprintf(value, size, "%s", line + n + 1);
		found = 1;
	}
	if (f) fclose(f);
	return found;
}

static long number(const char *key)
{
	char value[64];
	return setting(key, value, sizeof value) ? atol(value) : 0;
}

static int differs(const char *key, const char *given)
{
	char value[4096];
	return setting(key, value, sizeof value) && strcmp(value, given ? given : "");
}

static void say(LogFunc *f, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	f(format, args);
	va_end(args);
}

/* on_thread notes a call that is not made where it has to be. */
static void on_thread(const char *name)
{
	if (syscall(SYS_gettid) != home_thread) violation("%s is called on another thread than InitEx", name);
}

static void hang(void) { for (;;) pause(); }

VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, LogFunc *log, LogFunc *warn, LogFunc *panic, const char *dir, const char *config)
{
	Dl_info self;
	dladdr(VixDiskLib_InitEx, &self);
	snprintf(home, sizeof home, "%s", self.dli_fname);
	*strrchr(home, '/') = 0;
	if (home_thread) violation("InitEx is called twice");
	home_thread = syscall(SYS_gettid);
	if (!log || !warn || !panic) violation("a log function is NULL");
	log_ = log, warn_ = warn;
	if (config && access(config, R_OK)) violation("the configuration %s cannot be read", config);
	say(log_, "fake library %u.%u in %s, plugins in %s", major, minor, home, dir ? dir : "(none)");
	if (number("hang_init")) hang();
	return number("init_error");
}

void VixDiskLib_Exit(void)
{
	on_thread("Exit");
	if (parameters || connections || handles || prepared || lists)
		violation("Exit with %d parameters, %d connections, %d handles, %d prepared, %d lists", parameters, connections, handles, prepared, lists);
}

char *VixDiskLib_GetErrorText(VixError code, const char *locale)
{
	char text[64];
	snprintf(text, sizeof text, "the fake's words for %d", (int)(code & 0xffff));
	return strdup(text);
}

void VixDiskLib_FreeErrorText(char *text) { free(text); }

const char *VixDiskLib_ListTransportModes(void) { return "file:san:hotadd:nbdssl:nbd"; }

struct params *VixDiskLib_AllocateConnectParams(void)
{
	parameters++;
	return calloc(1, sizeof(struct params));
}

void VixDiskLib_FreeConnectParams(struct params *p)
{
	parameters--;
	free(p);
}

VixError VixDiskLib_PrepareForAccess(struct params *p, const char *identity)
{
	on_thread("PrepareForAccess");
	if (!identity) violation("PrepareForAccess without an identity");
	if (number("prepare_error")) return number("prepare_error");
	prepared++;
	return OK;
}

VixError VixDiskLib_EndAccess(struct params *p, const char *identity)
{
	on_thread("EndAccess");
	if (prepared) prepared--;
	return OK;
}

VixError VixDiskLib_Cleanup(struct params *p, uint32_t *cleaned, uint32_t *remaining)
{
	on_thread("Cleanup");
	cleaning("%s", p->vmx);
	*cleaned = number("cleaned"), *remaining = number("remaining");
	return number("cleanup_error");
}

/* choose finds the first of the modes that works here. */
static int choose(const char *wanted, char *mode, size_t size)
{
	char usable[256] = "nbdssl:nbd", list[256];
	setting("usable", usable, sizeof usable);
	snprintf(list, sizeof list, "%s", wanted ? wanted : "file:san:hotadd:nbdssl:nbd");
	char *rest = list, *one;
	while ((one = strsep(&rest, ":"))) {
		char all[260], item[40];
		snprintf(all, sizeof all, ":%s:", usable);
		snprintf(item, sizeof item, ":%.30s:", one);
		if (!strstr(all, item)) continue;
		snprintf(mode, size, "%s", one);
		return 1;
	}
	return 0;
}

VixError VixDiskLib_ConnectEx(struct params *p, char readOnly, const char *snapshot, const char *modes, struct connection **out)
{
	on_thread("ConnectEx");
	if (number("hang_connect")) hang();
	if (number("crash_connect")) *(volatile int *)8 = 1;
	if (number("connect_error")) return number("connect_error");
	if (p->credType != 1) return INVALID;
	if (differs("thumbprint", p->thumbprint)) return FAIL;
	if (differs("server", p->server)) return 14008;
	if (differs("user", p->user) || differs("password", p->password)) return 3014;
	if (differs("vm", p->vmx) || differs("snapshot", snapshot)) return NOT_FOUND;
	struct connection *c = calloc(1, sizeof *c);
	c->readOnly = readOnly;
	if (!choose(modes, c->mode, sizeof c->mode)) {
		free(c);
		return FAIL;
	}
	connections++;
	*out = c;
	return OK;
}

VixError VixDiskLib_Disconnect(struct connection *c)
{
	on_thread("Disconnect");
	connections--;
	free(c);
	return OK;
}

/* take_slot takes one of the connections that a host has for all processes. */
static int take_slot(void)
{
	long limit = number("nfc_limit");
	for (long i = 0; i < limit; i++) {
		char path[4200];
		snprintf(path, sizeof path, "%s/nfc.%ld", home, i);
		int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
		close(fd);
	}
	return limit ? -1 : open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static int find_disk(const char *path, char *file, size_t size)
{
	char key[4300];
	snprintf(key, sizeof key, "disk %s", path);
	return setting(key, file, size);
}

VixError VixDiskLib_Open(struct connection *c, const char *path, uint32_t flags, struct handle **out)
{
	char file[4096];
	on_thread("Open");
	if (number("open_error")) return number("open_error");
	if (!find_disk(path, file, sizeof file)) return NOT_FOUND;
	if (!(flags & 4) && c->readOnly) return 11;
	int slot = take_slot();
	if (slot < 0) return FAIL;
	struct handle *h = calloc(1, sizeof *h);
	struct stat st;
	h->slot = slot;
	h->fd = open(file, (flags & 4 ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (h->fd < 0 || fstat(h->fd, &st)) {
		close(slot);
		free(h);
		return NOT_FOUND;
	}
	h->flags = flags, h->size = st.st_size / 512;
	delay = number("delay_us"), bad = number("bad_sector"), threads = number("threads");
	lose = number("lose_after"), hung = number("hang_after"), crash = number("crash_after");
	snprintf(h->mode, sizeof h->mode, "%s", c->mode);
	say(warn_, "opened %s through %s: %lu sectors", path, c->mode, (unsigned long)h->size);
	handles++;
	*out = h;
	return OK;
}

VixError VixDiskLib_GetInfo(struct handle *h, struct info **out)
{
	on_thread("GetInfo");
	*out = calloc(1, sizeof **out);
	(*out)->capacity = h->size;
	return OK;
}

void VixDiskLib_FreeInfo(struct info *i) { free(i); }

const char *VixDiskLib_GetTransportMode(struct handle *h) { return h->mode; }

/* transfer does one request, after what the settings make of it. */
static VixError transfer(struct request *r)
{
	long n = __atomic_add_fetch(&transfers, 1, __ATOMIC_SEQ_CST);
	if (delay) usleep(random() % delay);
	if (crash && n > crash) *(volatile int *)8 = 1;
	if (hung && n > hung) hang();
	if (lose && n > lose) {
		memset(r->buf, 0xee, r->count * 512); /* never to be seen by anybody */
		return CONN_LOST;
	}
	if (r->start + r->count > r->h->size) return OUT_OF_RANGE;
	if (bad && r->start <= bad && bad < r->start + r->count) return 7;
	size_t left = r->count * 512, at = r->start * 512;
	uint8_t *p = r->buf;
	while (left) {
		ssize_t got = r->write ? pwrite(r->h->fd, p, left, at) : pread(r->h->fd, p, left, at);
		if (got <= 0) return 7;
		p += got, at += got, left -= got;
	}
	return OK;
}

/* worker completes requests in an order of its own. */
static void *worker(void *unused)
{
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!queue) pthread_cond_wait(&more, &lock);
		struct request **at = &queue, *r;
		for (long skip = random() % queued; skip > 0; skip--) at = &(*at)->next;
		r = *at, *at = r->next, queued--;
		pthread_mutex_unlock(&lock);
		VixError result = transfer(r);
		r->done(r->data, result);
		pthread_mutex_lock(&lock);
		if (--r->h->under_way == 0) pthread_cond_broadcast(&drained);
		free(r);
	}
	return unused;
}

static VixError post(const char *name, struct handle *h, int write, uint64_t start, uint64_t count, uint8_t *buf, Completion *done, void *data)
{
	on_thread(name);
	if (__atomic_add_fetch(&busy, 1, __ATOMIC_SEQ_CST) != 1) violation("two calls at once");
	struct request *r = malloc(sizeof *r);
	*r = (struct request){h, write, start, count, buf, done, data, NULL};
	pthread_mutex_lock(&lock);
	for (; started < (threads ? threads : 4); started++) {
		pthread_t t;
		pthread_create(&t, NULL, worker, NULL);
	}
	r->next = queue, queue = r, queued++, h->under_way++;
	pthread_cond_signal(&more);
	pthread_mutex_unlock(&lock);
	__atomic_sub_fetch(&busy, 1, __ATOMIC_SEQ_CST);
	return ASYNC;
}

VixError VixDiskLib_ReadAsync(struct handle *h, uint64_t start, uint64_t count, uint8_t *buf, Completion *done, void *data)
{
	return post("ReadAsync", h, 0, start, count, buf, done, data);
}

VixError VixDiskLib_WriteAsync(struct handle *h, uint64_t start, uint64_t count, uint8_t *buf, Completion *done, void *data)
{
	if (h->flags & 4) return 11;
	return post("WriteAsync", h, 1, start, count, buf, done, data);
}

VixError VixDiskLib_Wait(struct handle *h)
{
	on_thread("Wait");
	pthread_mutex_lock(&lock);
	while (h->under_way) pthread_cond_wait(&drained, &lock);
	pthread_mutex_unlock(&lock);
	return OK;
}

VixError VixDiskLib_Flush(struct handle *h)
{
	on_thread("Flush");
	return fsync(h->fd) ? 7 : OK;
}

VixError VixDiskLib_Close(struct handle *h)
{
	on_thread("Close");
	if (number("hang_close")) hang();
	if (h->under_way) violation("Close with %d requests under way", h->under_way);
	close(h->fd);
	close(h->slot);
	free(h);
	handles--;
	return OK;
}

/* QueryAllocatedBlocks asks the file system for the holes of the file. */
VixError VixDiskLib_QueryAllocatedBlocks(struct handle *h, uint64_t start, uint64_t count, uint64_t chunk, struct blocks **out)
{
	on_thread("QueryAllocatedBlocks");
	if (number("no_blocks")) return NOT_SUPPORTED;
	if (chunk < 128 || start % chunk || count % chunk || count / chunk > 512 * 1024 || start + count > h->size) return INVALID;
	struct blocks *b = malloc(sizeof *b + 16 * (count / chunk));
	b->count = 0;
	for (uint64_t at = start; at < start + count; at += chunk) {
		off_t data = lseek(h->fd, at * 512, SEEK_DATA);
		if (data < 0 || (uint64_t)data >= (at + chunk) * 512) continue;
		if (b->count && b->run[b->count - 1].offset + b->run[b->count - 1].length == at) {
			b->run[b->count - 1].length += chunk;
			continue;
		}
		b->run[b->count].offset = at, b->run[b->count].length = chunk, b->count++;
	}
	lists++;
	*out = b;
	return OK;
}

VixError VixDiskLib_FreeBlockList(struct blocks *b)
{
	lists--;
	free(b);
	return OK;
}
