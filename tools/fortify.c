/* SPDX-License-Identifier: MIT
 *
 * Debian builds libbearssl.a for glibc with _FORTIFY_SOURCE, so it asks for
 * three functions that musl has not.  They are glibc's promise: the size of
 * the destination is known, and what would not fit ends the program.
 * tools/cross links this file; a BearSSL that you build yourself does not
 * need it.
 */
#include <stdlib.h>
#include <string.h>

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
