/* SPDX-License-Identifier: MIT
 *
 * HTTP requests.  Whatever the input: the verdict on its beginning is "more"
 * or the verdict on the whole, and what was taken can be used.
 */
#ifndef WSP_PURE_ONLY
#define WSP_PURE_ONLY
#endif
#include "../wspush.c"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
must(bool good)
{
	if (!good)
		abort();
}

/* The verdict on the first k bytes, in memory of their own. */
static int
verdict(const u8 *p, size_t k)
{
	struct http_request r;
	u8 *copy = malloc(k ? k : 1);
	int used;

	must(copy);
	if (k > 0)
		memcpy(copy, p, k);
	used = http_parse(&r, copy, k);
	must(used <= (int)k);
	must(used >= 0 || used == -400 || used == -431);
	must(used >= 0 || (r.why && strlen(r.why) > 10));
	free(copy);
	return used;
}

static void
inside(struct str s, const u8 *p, int used)
{
	const char *from = (const char *)p;

	must(s.n == 0 || str_is(s, "/") ||
	    (s.p >= from && s.p + s.n <= from + used));
}

static void
use(const struct http_request *r, const u8 *p, int used)
{
	struct str value = { "", 0 }, rest, item;
	const char *why, *headers;
	size_t cursor = 0, hosts = 0;
	char text[512];
	struct out o = out_to(text, sizeof text);

	inside(r->path, p, used);
	inside(r->query, p, used);
	inside(r->host, p, used);
	inside(r->field[HTTP_ORIGIN], p, used);
	inside(r->field[HTTP_KEY], p, used);
	inside(r->head, p, used);
	must(r->path.n > 0);
	must(r->minor == 0 || r->host.n > 0);
	while (http_header_next(r, "host", &cursor, &value))
		hosts++;
	must(hosts == (r->field[HTTP_HOST].p ? 1 : 0));
	cursor = 0;
	while (http_header_next(r, "Sec-WebSocket-Protocol", &cursor, &rest))
		while (http_list_next(&rest, &item))
			must(item.n > 0 && !memchr(item.p, ',', item.n));
	if (http_cookie(r, "wspush_token", &value))
		must(!memchr(value.p, ';', value.n));
	if (http_parameter(&value, r->query, "X-StatefulSocketId") > 0) {
		int n = percent_decode(text, WSP_MAX_ID, value);

		must(n <= WSP_MAX_ID);
		if (n >= 0)
			text_is_clean((struct str){ text, (size_t)n });
	}
	if (http_upgrade_check(r, &why, &headers) == 0) {
		http_accept(&o, r->field[HTTP_KEY], STR(""));
		must(!o.full);
	}
	if (r->field[HTTP_ORIGIN].p && r->host.n > 0) {
		struct str origin = r->field[HTTP_ORIGIN];
		bool same = http_origin_same(origin, r->host);

		must(!same || http_origin_is(origin, STR("same-host"),
		    r->host));
		must(!same || http_origin_valid(origin));
		must(http_origin_is(origin, origin, r->host) ==
		    (http_origin_valid(origin) &&
		    !str_is(origin, "same-host")));
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct http_request r;
	int whole = verdict(data, size);
	size_t step = size / 300 + 1;

	for (size_t k = 0; k < size; k += step) {
		int part = verdict(data, k);

		must(part == whole || part == 0);
		must(whole <= 0 || part == 0 || k >= (size_t)whole);
	}
	must(whole != 0 || size < WSP_MAX_HTTP_HEAD);
	if (whole > 0) {
		must(verdict(data, (size_t)whole) == whole);
		must(verdict(data, (size_t)whole - 1) == 0);
		must(http_parse(&r, data, size) == whole);
		use(&r, data, whole);
	}
	return 0;
}
