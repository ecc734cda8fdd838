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
		struct cert_facts f;
		struct der name, names;
		br_x509_decoder_context d;

		if (c->chain[i].data < c->der || c->chain[i].data +
		    c->chain[i].data_len > c->der + c->der_n)
			abort();
		(void)cert_public_key(c, i, &d);
		if (!cert_read_facts(&f, cert_der(c, i)))
			continue;
		names = f.names;
		while (der_take(&names, &name) >= 0)
			if (name.n > f.names.n)
				abort();
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static struct cert c;
	char why[512] = "";
	int r;

	put_input(p, n);
	r = cert_load_chain(&c, path, why, sizeof why);
	if (c.der_n > sizeof c.der || c.count > CERT_CHAIN ||
	    (r < 0) != (why[0] != '\0') || (r == 0 && c.count == 0))
		abort();
	look_at(&c);
	why[0] = '\0';
	r = cert_load_key(&c, path, why, sizeof why);
	if ((r < 0) != (why[0] != '\0') || (r == 0 && !c.rsa == !c.ec))
		abort();
	if (r == 0 && c.count > 0)
		(void)cert_check_match(&c, path, path, why, sizeof why);
	return 0;
}
