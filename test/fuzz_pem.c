/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzzes certificate and key files: the input is read as the one and as the
 * other.  What loads must have been worth it, what does not must say why.
 */
#define main wspush_main
#include "../wspush.c"
#undef main

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static char path[64];
static int file = -1;

static void
put_input(const u8 *p, size_t n)
{
	if (file < 0) {
		file = memfd_create("input", MFD_CLOEXEC);
		snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	}
	if (ftruncate(file, 0) < 0 || pwrite(file, p, n, 0) != (ssize_t)n)
		abort();
}

/* Our own reader agrees to go through whatever BearSSL's does. */
static void
look_at(const struct cert *c)
{
	for (size_t i = 0; i < c->count; i++) {
		const u8 *from = c->chain[i].data;
		size_t n = c->chain[i].data_len;
		const struct cert_parts *parts = &c->parts[i];

		if (from < c->der || n > c->der_n ||
		    from - c->der > (ptrdiff_t)(c->der_n - n))
			abort();
		if (parts->issuer.n > n || parts->subject.n > n)
			abort();
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static struct cert c;
	int r;

	refusal[0] = '\0';
	put_input(p, n);
	r = cert_load_chain(&c, path);
	if (c.der_n > sizeof c.der || c.count > CERT_CHAIN ||
	    (r < 0) != (refusal[0] != '\0') || (r == 0 && c.count == 0))
		abort();
	if (r == 0)
		look_at(&c);
	refusal[0] = '\0';
	r = cert_load_key(&c, path);
	if ((r < 0) != (refusal[0] != '\0') || (r == 0 && c.key.type <= 0))
		abort();
	if (r == 0 && c.count > 0)
		(void)cert_check_match(&c, path, path);
	return 0;
}
