/* SPDX-License-Identifier: MIT
 *
 * Debian builds libbearssl.a for glibc with _FORTIFY_SOURCE, so it asks for
 * three functions that musl has not.  They are glibc's promise: the size of
 * the destination is known, and what would not fit ends the program.
 * A BearSSL that you build yourself does not need them.
 *
 * And an assert() that fails says so without stdio, which nothing else in the
 * program uses: 10 KB less.  tools/cross links this file.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__memcpy_chk(void *to, const void *from, size_t n, size_t room);
void *__memmove_chk(void *to, const void *from, size_t n, size_t room);
void *__memset_chk(void *to, int byte, size_t n, size_t room);

void *
__memcpy_chk(void *to, const void *from, size_t n, size_t room)
{
	if (n > room)
		abort();
	return memcpy(to, from, n);
}

void *
__memmove_chk(void *to, const void *from, size_t n, size_t room)
{
	if (n > room)
		abort();
	return memmove(to, from, n);
}

void *
__memset_chk(void *to, int byte, size_t n, size_t room)
{
	if (n > room)
		abort();
	return memset(to, byte, n);
}

void
__assert_fail(const char *what, const char *file, int line, const char *where)
{
	(void)file;
	(void)line;
	(void)!write(STDERR_FILENO, where, strlen(where));
	(void)!write(STDERR_FILENO, ": ", 2);
	(void)!write(STDERR_FILENO, what, strlen(what));
	(void)!write(STDERR_FILENO, "\n", 1);
	abort();
}
