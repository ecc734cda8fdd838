/*
 * count_alloc.c - counts what a process asks memory with.
 *
 * SPDX-License-Identifier: MIT
 *
 * Loaded with LD_PRELOAD before the server.  The counters lie in the file
 * that COUNT_ALLOC names, mapped and shared, so that a test reads them while
 * the server runs and no system call is needed to tell.  Each counter is 64
 * bits in the byte order of the machine, in the order of `enum counter`.
 * free() and munmap() are not counted: what was never taken needs no return.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum counter { MALLOC, CALLOC, REALLOC, MEMALIGN, MMAP, MREMAP, BRK, COUNTERS };

/* Before the file is mapped the calls are counted here and copied later. */
static uint64_t early[COUNTERS];
static uint64_t *counters = early;

/* What these names stand for behind our back; glibc keeps them public. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static void
count(enum counter which)
{
	__atomic_add_fetch(&counters[which], 1, __ATOMIC_SEQ_CST);
}

__attribute__((constructor)) static void
open_counters(void)
{
	const char *path = getenv("COUNT_ALLOC");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p;

	if (fd < 0)
		return;
	p = mmap(NULL, sizeof early, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
	    0);
	close(fd);
	if (p == MAP_FAILED)
		return;
	for (int i = 0; i < COUNTERS; i++)
		((uint64_t *)p)[i] = early[i];
	counters = p;
}

void *
malloc(size_t n)
{
	count(MALLOC);
	return __libc_malloc(n);
}

void *
calloc(size_t n, size_t size)
{
	count(CALLOC);
	return __libc_calloc(n, size);
}

void *
realloc(void *p, size_t n)
{
	count(REALLOC);
	return __libc_realloc(p, n);
}

void *
memalign(size_t align, size_t n)
{
	count(MEMALIGN);
	return __libc_memalign(align, n);
}

void *
aligned_alloc(size_t align, size_t n)
{
	return memalign(align, n);
}

int
posix_memalign(void **p, size_t align, size_t n)
{
	void *got = memalign(align, n);

	if (!got)
		return ENOMEM;
	*p = got;
	return 0;
}

void *
mmap(void *p, size_t n, int prot, int flags, int fd, off_t at)
{
	count(MMAP);
#ifdef SYS_mmap2
	return (void *)syscall(SYS_mmap2, p, n, prot, flags, fd,
	    (long)(at >> 12));
#else
	return (void *)syscall(SYS_mmap, p, n, prot, flags, fd, at);
#endif
}

void *
mmap64(void *p, size_t n, int prot, int flags, int fd, off64_t at)
{
	return mmap(p, n, prot, flags, fd, (off_t)at);
}

void *
mremap(void *p, size_t old, size_t n, int flags, ...)
{
	void *to = NULL;
	va_list ap;

	count(MREMAP);
	if (flags & MREMAP_FIXED) {
		va_start(ap, flags);
		to = va_arg(ap, void *);
		va_end(ap);
	}
	return (void *)syscall(SYS_mremap, p, old, n, flags, to);
}

void *
sbrk(intptr_t by)
{
	void *(*next)(intptr_t) =
	    (void *(*)(intptr_t))dlsym(RTLD_NEXT, "sbrk");

	count(BRK);
	return next(by);
}

int
brk(void *p)
{
	int (*next)(void *) = (int (*)(void *))dlsym(RTLD_NEXT, "brk");

	count(BRK);
	return next(p);
}
