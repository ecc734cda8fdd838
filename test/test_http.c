/* SPDX-License-Identifier: MIT */
#include "../wspush.c"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define GET "GET / HTTP/1.1\r\n"
#define HOST "Host: h\r\n"
#define UPGRADE "Connection: Upgrade\r\nUpgrade: websocket\r\n"
#define GOOD GET HOST UPGRADE "Sec-WebSocket-Version: 13\r\n" \
	"Sec-WebSocket-Key: " KEY "\r\n"

/* The bytes in an allocation that ends where they end. */
static u8 *
exact(const void *p, size_t n)
{
	u8 *copy = malloc(n ? n : 1);

	assert_non_null(copy);
	memcpy(copy, p, n);
	return copy;
}

static int
parse(const char *text, size_t n)
{
	struct http_request r;
	u8 *p = exact(text, n);
	int used = http_parse(&r, p, n);

	if (used < 0) {
		assert_non_null(r.why);
		assert_true(strlen(r.why) > 10);
	}
	free(p);
	return used;
}

/* The slices point into `text`, which is a literal. */
static struct http_request
parse_good(const char *text)
{
	struct http_request r;
	int used = http_parse(&r, (const u8 *)text, strlen(text));

	if (used != (int)strlen(text))
		fail_msg("%d: %s\n%s", used, used < 0 ? r.why : "", text);
	return r;
}

/* Complete heads.  Any part of one is unfinished, and what follows it does
 * not matter. */
static const char *const good[] = {
	GOOD "\r\n",
	GET HOST "\r\n",
	"\r\n" GET HOST "\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"GET / HTTP/1.9\r\n" HOST "\r\n",
	"HEAD /?a=b?c/d HTTP/1.1\r\nhOST:h\r\n\r\n",
	"get / HTTP/1.1\r\n" HOST "\r\n",
	"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1\r\n" HOST "\r\n",
	"GET //x/../%zz;a=b,{}|\\^\"<>` HTTP/1.1\r\n" HOST "\r\n",
	"GET http://h HTTP/1.1\r\n" HOST "\r\n",
	"GET WSS://h:1/p?q HTTP/1.1\r\n" HOST "\r\n",
	"OPTIONS * HTTP/1.1\r\n" HOST "\r\n",
	"CONNECT a:1 HTTP/1.1\r\n" HOST "\r\n",
	"POST / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n",
	GET HOST "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
	GET HOST "Empty:\r\nWhite: \t \r\nTab: a\tb\r\n\r\n",
	GET HOST "High: \x80\xff\r\n!#$%&'*+-.^_`|~09: x\r\n\r\n",
	GET "Host: [::1]:8080\r\n\r\n",
	GET "Host: a-b_c.d.:\r\n\r\n",
	GET "Host:\t 192.168.1.1:65535 \t\r\n\r\n",
	GET HOST "Origin: null\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
	GET HOST "Upgrade: h2c\r\nUpgrade: websocket\r\n\r\n",
};

static void
a_good_head_is_taken_in_any_pieces(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(good); i++) {
		size_t n = strlen(good[i]);
		char longer[512];

		for (size_t k = 0; k < n; k++)
			if (parse(good[i], k) != 0)
				fail_msg("%zu of: %s", k, good[i]);
		if (parse(good[i], n) != (int)n)
			fail_msg("%s", good[i]);
		memcpy(longer, good[i], n);
		memcpy(longer + n, "\0\n \x81\x85", 5);
		for (size_t k = 1; k <= 5; k++)
			assert_int_equal(parse(longer, n + k), n);
	}
}

/* Each ends with the byte that must not be there: it is refused with that
 * byte, not before it, and whatever follows. */
static const char *const bad[] = {
	/* the request line */
	"\n", " ", "\t", "\x16", "\x80", "(", ":", "\rG", "\r\n\r",
	"\r\n\n", "\r\n ", "GET\n", "GET\r", "GET\t", "GET:", "GE(", "G\x7f",
	"GET  ", "GET \n", "GET \r", "GET \t", "GET /\n", "GET /\r",
	"GET /\t", "GET /\x7f", "GET /\x80", "GET /\xd0", "GET /#", "GET /\x01",
	"GET / /", "GET /  ", "GET / \r", "GET / \n", "GET / h", "GET / HTTP/2",
	"GET / HTTP/0", "GET / HTTP/1\r", "GET / HTTP/1,", "GET / HTTP/1.\r",
	"GET / HTTP/1.a", "GET / HTTP/1.11", "GET / HTTP/1.1 ",
	"GET / HTTP/1.1\n", "GET / HTTP/1.1\rX", "GET / HTTP/1.1\r\r",
	"GET / HTTP ", "GET / HTP", "GET / X",
	"GET a ", "GET * ", "GET h:1 ", "GET http:/x ", "GET http:x ",
	"GET ftp://h/ ", "GET http:// ", "GET http:///x ", "GET http://?x ",
	"GET http://u@h/ ", "GET http://h:x/ ", "GET http://h:65536/ ",
	"GET http://[::1/ ", "GET http://[::1]x/ ", "GET ://h/ ", "POST * ",
	"OPTIONS ** ", "options * ", "GET ?x ", "GET /path\\\x0b",
	/* header lines */
	GET " ", GET "\t", GET "\n", GET ":", GET "\x80", GET "\x01",
	GET HOST " ", GET HOST "\t", GET HOST "\n", GET HOST "\rX",
	GET "Host ", GET "Host\t", GET "Host\r", GET "Host\n", GET "Ho(",
	GET "Ho ", GET "Host\xc3", GET "Host\x7f",
	GET "A: b\n", GET "A: b\rc", GET "A: b\r\r", GET "A: \x01",
	GET "A: b\x7f", GET "A: b\x0b", GET "A: b\x1b",
	GET "A: b\r\n ", GET "A: b\r\n\t", GET "A: b\r\n\n",
	GET "A: b\r\n\rX", GET "A\r", GET "A\n",
	/* what a line says, once it is whole */
	GET HOST "Host: h\r\n", GET HOST "hOST: x\r\n",
	GET "Host:\r\n", GET "Host: \r\n", GET "Host: a b\r\n",
	GET "Host: a/b\r\n", GET "Host: a@b\r\n", GET "Host: a:b\r\n",
	GET "Host: a:65536\r\n", GET "Host: a:1:2\r\n", GET "Host: a, b\r\n",
	GET "Host: .\r\n", GET "Host: :80\r\n", GET "Host: ::1\r\n",
	GET "Host: [::1\r\n", GET "Host: [::g]\r\n", GET "Host: []\r\n",
	GET "Host: [::1]a\r\n", GET "Host: [::1]:x\r\n", GET "Host: \xd0\r\n",
	GET "Host: a%2\r\n", GET "Host: a%zz\r\n", GET "Host: http://a\r\n",
	"GET / HTTP/1.0\r\nHost: a b\r\n",
	"GET http://h/ HTTP/1.1\r\nHost: a b\r\n",
	"GET http://h/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
	GET "Origin: http://a\r\nOrigin: http://a\r\n",
	GET "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Key: " KEY "\r\n",
	GET "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n",
	GET "Content-Length: 1\r\n", GET "Content-Length:\r\n",
	GET "Content-Length: -0\r\n", GET "Content-Length: 0x\r\n",
	GET "Content-Length: 0, 0\r\n", GET "Content-Length: +0\r\n",
	GET "Content-Length: 0\r\nContent-Length: 5\r\n",
	GET "content-length: 18446744073709551616\r\n",
	GET "Transfer-Encoding: chunked\r\n", GET "transfer-encoding:\r\n",
	GET "Transfer-Encoding: identity\r\n",
	/* the empty line */
	GET "\r\n", GET "A: b\r\n\r\n", "GET http://h/ HTTP/1.1\r\n\r\n",
};

static void
bad_syntax_is_refused_with_its_first_wrong_byte(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		size_t n = strlen(bad[i]);
		char longer[512];

		for (size_t k = 0; k < n; k++)
			if (parse(bad[i], k) != 0)
				fail_msg("early, %zu of: %s", k, bad[i]);
		if (parse(bad[i], n) != -400)
			fail_msg("late: %s", bad[i]);
		memcpy(longer, bad[i], n);
		memcpy(longer + n, "\r\n\r\n\r\n", 6);
		for (size_t k = 1; k <= 6; k++)
			assert_int_equal(parse(longer, n + k), -400);
	}
}

static void
a_nul_byte_is_refused_wherever_it_stands(void **state)
{
	static const char text[] = GOOD "\r\n";
	size_t n = sizeof text - 1;
	char copy[sizeof text];

	(void)state;
	for (size_t at = 0; at < n; at++) {
		memcpy(copy, text, n);
		copy[at] = '\0';
		assert_int_equal(parse(copy, at), 0);
		assert_int_equal(parse(copy, at + 1), -400);
		assert_int_equal(parse(copy, n), -400);
	}
}

/* A head of exactly n bytes. */
static size_t
head_of(char *to, size_t n)
{
	static const char front[] = GET HOST "A: ";
	size_t used = sizeof front - 1;

	memset(to, 'x', n);
	memcpy(to, front, used);
	memcpy(to + n - 4, "\r\n\r\n", 4);
	return n;
}

static void
a_head_over_its_length_is_431(void **state)
{
	char text[WSP_MAX_HTTP_HEAD + 64];
	size_t max = WSP_MAX_HTTP_HEAD;

	(void)state;
	head_of(text, max - 1);
	assert_int_equal(parse(text, max - 1), max - 1);
	head_of(text, max);
	assert_int_equal(parse(text, max - 1), 0);
	assert_int_equal(parse(text, max), max);
	text[max] = '\n';
	assert_int_equal(parse(text, max + 1), max);
	head_of(text, max + 1);
	assert_int_equal(parse(text, max - 1), 0);
	assert_int_equal(parse(text, max), -431);
	assert_int_equal(parse(text, max + 1), -431);
	/* Nothing but one endless word. */
	memset(text, 'A', sizeof text);
	assert_int_equal(parse(text, max - 1), 0);
	assert_int_equal(parse(text, max), -431);
	assert_int_equal(parse(text, sizeof text), -431);
}

static void
header_lines_over_their_number_are_431(void **state)
{
	char text[64 + 8 * WSP_MAX_HTTP_LINES];

	(void)state;
	for (int lines = WSP_MAX_HTTP_LINES - 1;
	    lines <= WSP_MAX_HTTP_LINES + 1; lines++) {
		struct out o = out_to(text, sizeof text);
		bool fits = lines <= WSP_MAX_HTTP_LINES;

		out_text(&o, GET HOST);
		for (int i = 1; i < lines; i++)
			out_text(&o, "A:b\r\n");
		assert_false(o.full);
		assert_int_equal(parse(text, o.n), fits ? 0 : -431);
		/* It is refused with the first byte of the line too many. */
		assert_int_equal(parse(text, o.n - 5), 0);
		assert_int_equal(parse(text, o.n - 4), fits ? 0 : -431);
		out_text(&o, "\r\n");
		assert_int_equal(parse(text, o.n), fits ? (int)o.n : -431);
	}
}

static void
a_target_falls_into_path_query_and_host(void **state)
{
	static const struct {
		const char *target, *path, *query, *host;
	} row[] = {
		{ "/", "/", "", "h" },
		{ "/?", "/", "", "h" },
		{ "/services/a?x=1?y", "/services/a", "x=1?y", "h" },
		{ "/a%2Fb", "/a%2Fb", "", "h" },
		{ "//x/y", "//x/y", "", "h" },
		{ "http://a.b", "/", "", "a.b" },
		{ "HTTPS://a.b:81/", "/", "", "a.b:81" },
		{ "ws://a.b?x", "/", "x", "a.b" },
		{ "wss://[::1]:9/p?x", "/p", "x", "[::1]:9" },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(row); i++) {
		char text[128];
		struct http_request r;

		snprintf(text, sizeof text, "GET %s HTTP/1.1\r\n" HOST "\r\n",
		    row[i].target);
		r = parse_good(text);
		assert_true(str_is(r.path, row[i].path));
		assert_true(str_is(r.query, row[i].query));
		assert_true(str_is(r.host, row[i].host));
		assert_true(r.field[HTTP_HOST].p);
	}
}

static void
methods_and_versions_are_told_apart(void **state)
{
	struct http_request r;

	(void)state;
	r = parse_good(GET HOST "\r\n");
	assert_int_equal(r.method, HTTP_GET);
	assert_int_equal(r.minor, 1);
	r = parse_good("HEAD / HTTP/1.0\r\n\r\n");
	assert_int_equal(r.method, HTTP_HEAD);
	assert_int_equal(r.minor, 0);
	assert_false(r.field[HTTP_HOST].p);
	r = parse_good("get / HTTP/1.7\r\n" HOST "\r\n");
	assert_int_equal(r.method, HTTP_OTHER);
	assert_int_equal(r.minor, 1);
	r = parse_good("GETS / HTTP/1.1\r\n" HOST "\r\n");
	assert_int_equal(r.method, HTTP_OTHER);
}

static void
an_upgrade_is_asked_for_by_tokens_in_any_case_and_line(void **state)
{
	static const struct {
		const char *lines;
		bool upgrade;
	} row[] = {
		{ UPGRADE, true },
		{ "connection: keep-alive, uPGRADE\r\n"
		  "upgrade: h2c,\tWebSocket ,\r\n", true },
		{ "Connection: keep-alive\r\nConnection: x\r\n"
		  "CONNECTION:,,upgrade\r\nUpgrade: a\r\n"
		  "Upgrade: websocket\r\n", true },
		{ "Connection: upgrade\r\nConnection: close\r\n"
		  "Upgrade: websocket\r\nUpgrade: x\r\n", true },
		{ "", false },
		{ "Connection: Upgrade\r\n", false },
		{ "Upgrade: websocket\r\n", false },
		{ "Connection: keep-alive\r\nUpgrade: websocket\r\n", false },
		{ "Connection: Upgrade\r\nUpgrade: web socket\r\n", false },
		{ "Connection: Upgrade\r\nUpgrade: websocket/13\r\n", false },
		{ "Connection: Upgraded\r\nUpgrade: websocket\r\n", false },
		{ "Connection: no upgrade\r\nUpgrade: websocket\r\n", false },
		{ "Connection: Upgrade;x\r\nUpgrade: websocket\r\n", false },
		{ "X-Connection: Upgrade\r\nUpgrade: websocket\r\n", false },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(row); i++) {
		char text[256];

		snprintf(text, sizeof text, GET HOST "%s\r\n", row[i].lines);
		if (parse_good(text).upgrade != row[i].upgrade)
			fail_msg("%s", row[i].lines);
	}
}

static void
check_upgrade(const char *text, int want, const char *header)
{
	struct http_request r = parse_good(text);
	const char *why = NULL, *headers = NULL;
	int status = http_upgrade_check(&r, &why, &headers);

	if (status != want)
		fail_msg("%d, not %d: %s", status, want, text);
	assert_non_null(why);
	if (!headers)
		headers = http_status_headers(status);
	assert_non_null(strstr(headers, header));
}

#define WITH(version, key) GET HOST UPGRADE version key "\r\n"
#define V13 "Sec-WebSocket-Version: 13\r\n"
#define K(key) "Sec-WebSocket-Key: " key "\r\n"

static void
what_is_no_handshake_is_answered_426_or_400_in_this_order(void **state)
{
	static const char *const bad_version[] = { "", "12", "14", "1", "013",
		"13, 8", "", "-13", "256", "13 13", "4294967309" };

	(void)state;
	check_upgrade(WITH(V13, K(KEY)), 0, "");
	check_upgrade(GET HOST "\r\n", 426, "Upgrade: websocket\r\n");
	check_upgrade("GET / HTTP/1.0\r\n" UPGRADE V13 K(KEY) "\r\n", 426,
	    "Upgrade: websocket\r\n");
	check_upgrade("HEAD / HTTP/1.1\r\n" HOST UPGRADE V13 K(KEY) "\r\n",
	    426, "Upgrade: websocket\r\n");
	check_upgrade(GET HOST V13 K(KEY) "\r\n", 426, "Upgrade: ");
	check_upgrade(WITH("", K(KEY)), 426, "Sec-WebSocket-Version: 13\r\n");
	check_upgrade(WITH("", ""), 426, "Upgrade: websocket\r\n");
	for (size_t i = 0; i < COUNT(bad_version); i++) {
		char text[256];

		snprintf(text, sizeof text, WITH("Sec-WebSocket-Version: %s"
		    "\r\n", ""), bad_version[i]);
		check_upgrade(text, 426, "Sec-WebSocket-Version: 13\r\n");
	}
}

static void
a_key_is_16_bytes_of_base64(void **state)
{
	static const char *const bad_key[] = { "", "=",
		"dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZQ",
		"dGhlIHNhbXBsZSBub25jZQ===", "dGhlIHNhbXBsZSBub25jZWU=",
		"dGhlIHNhbXBsZSBub25jZWVl", "dGhlIHNhbXBsZSBub25jZ===",
		"dGhlIHNhbXBsZSBub25j====", "dGhlIHNhbXBsZSBub25jZQ==x",
		"dGhlIHNhbXBsZSBub25 ZQ==", "dGhlIHNhbXBsZSB-b25jZQ==",
		"dGhlIHNhbXBsZSBub25jZQ=a", "dGhlIHNhbXBsZSBub25jZQa=",
		"dGhlIHNhbXBs", "dGhlIHNhbXBsZSBub25jZQ==, x",
		"ZGhlIHNhbXBsZSBub25jZGhlIHNhbXBsZSBub25jZQ==" };

	(void)state;
	check_upgrade(WITH(V13, ""), 400, "");
	for (size_t i = 0; i < COUNT(bad_key); i++) {
		char text[256];

		snprintf(text, sizeof text, WITH(V13, K("%s")), bad_key[i]);
		check_upgrade(text, 400, "");
	}
	/* The RFC's own examples (RFC 6455, 1.2 and 4.1). */
	check_upgrade(WITH(V13, K("dGhlIHNhbXBsZSBub25jZQ==")), 0, "");
	check_upgrade(WITH(V13, K("AQIDBAUGBwgJCgsMDQ4PEC==")), 0, "");
	check_upgrade(WITH(V13, K(" \tx3JJHMbDL1EzLk+/GBhXDw==\t ")), 0, "");
}

static void
repeated_headers_are_found_in_order(void **state)
{
	struct http_request r = parse_good(GET HOST "X: 1\r\nY: 2\r\n"
	    "x:\t 3 \t\r\nXX: 4\r\nX:\r\n\r\n");
	struct str v;
	size_t cursor = 0;

	(void)state;
	assert_true(http_header_next(&r, "x", &cursor, &v));
	assert_true(str_is(v, "1"));
	assert_true(http_header_next(&r, "x", &cursor, &v));
	assert_true(str_is(v, "3"));
	assert_true(http_header_next(&r, "x", &cursor, &v));
	assert_true(str_is(v, ""));
	assert_false(http_header_next(&r, "x", &cursor, &v));
	cursor = 0;
	assert_false(http_header_next(&r, "Z", &cursor, &v));
	cursor = 0;
	assert_true(http_header_next(&r, "HOST", &cursor, &v));
	assert_true(str_is(v, "h"));
	r = parse_good("GET / HTTP/1.0\r\n\r\n");
	cursor = 0;
	assert_false(http_header_next(&r, "Host", &cursor, &v));
}

static void
lists_are_read_past_their_empty_elements(void **state)
{
	struct str rest = STR(" ,, bearer ,\tA.b-c,,x"), item;

	(void)state;
	assert_true(http_list_next(&rest, &item));
	assert_true(str_is(item, "bearer"));
	assert_true(http_list_next(&rest, &item));
	assert_true(str_is(item, "A.b-c"));
	assert_true(http_list_next(&rest, &item));
	assert_true(str_is(item, "x"));
	assert_false(http_list_next(&rest, &item));
	rest = STR(" , ");
	assert_false(http_list_next(&rest, &item));
}

static void
a_cookie_is_found_by_its_exact_name(void **state)
{
	struct http_request r = parse_good(GET HOST
	    "Cookie: xa=0; A=1; b; a=x=y; a=2\r\nCookie: c=3\r\n\r\n");
	struct str v;

	(void)state;
	assert_true(http_cookie(&r, "a", &v));
	assert_true(str_is(v, "x=y"));
	assert_true(http_cookie(&r, "c", &v));
	assert_true(str_is(v, "3"));
	assert_true(http_cookie(&r, "b", &v));
	assert_true(str_is(v, ""));
	assert_false(http_cookie(&r, "d", &v));
}

static void
a_parameter_is_found_in_any_case_and_spelling(void **state)
{
	static const struct {
		const char *query, *value;
		int found;
	} row[] = {
		{ "X-Id=1", "1", 1 }, { "x-iD=1", "1", 1 },
		{ "a=b&X-Id=%41+&c", "%41+", 1 }, { "X%2did=5", "5", 1 },
		{ "%78-i%44=5", "5", 1 }, { "X-Id", "", 1 }, { "X-Id=", "", 1 },
		{ "X-Id=a=b", "a=b", 1 }, { "", NULL, 0 },
		{ "X-Idx=1", NULL, 0 },
		{ "X-I=1", NULL, 0 }, { "=1", NULL, 0 }, { "&&", NULL, 0 },
		{ "X-%zz=1&%", NULL, 0 }, { "X-Id%=1", NULL, 0 },
		{ "a=X-Id=1", NULL, 0 }, { "X-Id%00=1", NULL, 0 },
		{ "X-Id=1&x-id=1", NULL, -1 }, { "X-Id&a&X%2DId=", NULL, -1 },
		{ "X-Id=1;X-Id=2", "1;X-Id=2", 1 },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(row); i++) {
		struct str value = { NULL, 0 };
		size_t n = strlen(row[i].query);
		u8 *p = exact(row[i].query, n);
		int found = http_parameter(&value,
		    (struct str){ (const char *)p, n }, "X-Id");

		if (found != row[i].found)
			fail_msg("%d: %s", found, row[i].query);
		if (found == 1)
			assert_true(str_is(value, row[i].value));
		free(p);
	}
}

static void
the_key_is_proved_as_in_the_rfc(void **state)
{
	char text[256];
	struct out o = out_to(text, sizeof text);
	static const char want[] = "HTTP/1.1 101 Switching Protocols\r\n"
	    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
	    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

	(void)state;
	http_accept(&o, STR(KEY), STR(""));
	assert_int_equal(o.n, sizeof want - 1 + 2);
	assert_memory_equal(text, want, sizeof want - 1);
	assert_memory_equal(text + o.n - 4, "\r\n\r\n", 4);
	o = out_to(text, sizeof text);
	http_accept(&o, STR(KEY), STR("chat"));
	assert_memory_equal(text, want, sizeof want - 1);
	assert_memory_equal(text + sizeof want - 1,
	    "Sec-WebSocket-Protocol: chat\r\n\r\n", 32);
	assert_int_equal(o.n, sizeof want - 1 + 32);
}

static void
an_answer_says_its_length_and_that_the_connection_ends(void **state)
{
	char text[512];
	struct out o = out_to(text, sizeof text);

	(void)state;
	http_response(&o, 405, "Allow: GET, HEAD\r\n", NULL, STR("No.\n"),
	    false);
	out_char(&o, '\0');
	assert_string_equal(text, "HTTP/1.1 405 Method Not Allowed\r\n"
	    "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 4\r\n"
	    "Connection: close\r\nX-Content-Type-Options: nosniff\r\n"
	    "Allow: GET, HEAD\r\n\r\nNo.\n");
	o = out_to(text, sizeof text);
	http_response(&o, 426, "Upgrade: websocket\r\n", "text/html",
	    STR("No.\n"), true);
	out_char(&o, '\0');
	assert_string_equal(text, "HTTP/1.1 426 Upgrade Required\r\n"
	    "Content-Type: text/html\r\nContent-Length: 4\r\n"
	    "Connection: Upgrade, close\r\n"
	    "X-Content-Type-Options: nosniff\r\nUpgrade: websocket\r\n\r\n");
}

static void
every_status_of_ours_has_its_words(void **state)
{
	static const int status[] = { 200, 400, 401, 403, 404, 405, 408, 409,
		426, 429, 431, 503 };

	(void)state;
	for (size_t i = 0; i < COUNT(status); i++)
		assert_string_not_equal(http_reason(status[i]), "Error");
	assert_string_equal(http_reason(431),
	    "Request Header Fields Too Large");
}

static void
ipv6_addresses_are_the_same_however_written(void **state)
{
	static const struct {
		const char *text;
		u8 ip[16];
	} row[] = {
		{ "::", { 0 } },
		{ "0:0:0:0:0:0:0:0", { 0 } },
		{ "::1", { [15] = 1 } },
		{ "0:0::0:1", { [15] = 1 } },
		{ "0000:0:0:0:0:0:0:0001", { [15] = 1 } },
		{ "::0.0.0.1", { [15] = 1 } },
		{ "1::", { [1] = 1 } },
		{ "1:0:0:0:0:0:0::", { [1] = 1 } },
		{ "fe80::AbCd", { 0xfe, 0x80, [14] = 0xab, [15] = 0xcd } },
		{ "1:2:3:4:5:6:7:8", { 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0,
		    7, 0, 8 } },
		{ "1:2::7:8", { 0, 1, 0, 2, [12] = 0, 7, 0, 8 } },
		{ "::ffff:1.2.3.4", { [10] = 0xff, 0xff, 1, 2, 3, 4 } },
		{ "1:2:3:4:5:6:255.0.10.99", { 0, 1, 0, 2, 0, 3, 0, 4, 0, 5,
		    0, 6, 255, 0, 10, 99 } },
	};
	static const char *const not_ipv6[] = { "", ":", ":::", "1", "1:2",
		"1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8:",
		":1:2:3:4:5:6:7:8", "1::2::3", "::1::", "1:::2", "12345::",
		"g::", "::g", "1.2.3.4", "::1.2.3", "::1.2.3.4.5", "::1.2.3.",
		"::1.2.3.4.",
		"::1.2.3.256", "::01.2.3.4", "::1.2.3.4:1", "::1.2.3.4:",
		"::1..3.4", "1:2:3:4:5:6:7:1.2.3.4", "1:2:3:4:5:6:7:8::",
		"::1:2:3:4:5:6:7:8", "::1%eth0", "::1%25eth0", "-1::", "+1::",
		" ::1", "::1 ", "1:", ":1", "::1:", "0x1::" };
	u8 ip[16];

	(void)state;
	for (size_t i = 0; i < COUNT(row); i++) {
		size_t n = strlen(row[i].text);
		u8 *p = exact(row[i].text, n);

		memset(ip, 0xee, sizeof ip);
		if (!http_ip(ip, AF_INET6, (struct str){ (const char *)p, n }) ||
		    memcmp(ip, row[i].ip, 16) != 0)
			fail_msg("%s", row[i].text);
		free(p);
	}
	for (size_t i = 0; i < COUNT(not_ipv6); i++) {
		size_t n = strlen(not_ipv6[i]);
		u8 *p = exact(not_ipv6[i], n);

		if (http_ip(ip, AF_INET6, (struct str){ (const char *)p, n }))
			fail_msg("%s", not_ipv6[i]);
		free(p);
	}
}

static bool
same(const char *origin, const char *host)
{
	return http_origin_same(text_of(origin), text_of(host));
}

static void
an_origin_is_ours_when_host_and_port_are(void **state)
{
	static const char *const ours[][2] = {
		{ "http://router.lan", "router.lan" },
		{ "https://router.lan", "router.lan" },
		{ "http://router.lan", "router.lan:80" },
		{ "https://router.lan", "router.lan:443" },
		{ "http://router.lan:80", "router.lan" },
		{ "https://router.lan:443", "router.lan" },
		{ "https://router.lan:8443", "router.lan:8443" },
		{ "http://ROUTER.lan.", "router.LAN" },
		{ "http://router.lan", "Router.Lan.:80" },
		{ "http://[::1]:81", "[0:0::0:1]:81" },
		{ "http://[FE80::1]", "[fe80:0::0001]" },
		{ "http://192.168.1.1", "192.168.1.1" },
	};
	static const char *const foreign[][2] = {
		{ "http://router.lan", "router.lan:443" },
		{ "https://router.lan", "router.lan:80" },
		{ "https://router.lan", "router.lan:8443" },
		{ "https://router.lan:8443", "router.lan" },
		{ "http://evil.lan", "router.lan" },
		{ "http://router.lan.evil", "router.lan" },
		{ "http://xrouter.lan", "router.lan" },
		{ "http://router.lan..", "router.lan" },
		{ "http://router.lan/", "router.lan" },
		{ "http://router.lan/x", "router.lan" },
		{ "http://u@router.lan", "router.lan" },
		{ "http://router.lan:", "router.lan:81" },
		{ "http://router.lan http://router.lan", "router.lan" },
		{ "router.lan", "router.lan" },
		{ "//router.lan", "router.lan" },
		{ "://router.lan", "router.lan" },
		{ "http:router.lan", "router.lan" },
		{ "1http://router.lan", "router.lan" },
		{ "app://router.lan", "router.lan" },
		{ "app://router.lan:80", "router.lan:80" },
		{ "null", "null" }, { "null", "router.lan" }, { "", "" },
		{ "http://", "" }, { "http://[::1]", "[::2]" },
		{ "http://[::1]", "::1" }, { "http://[::1]x", "[::1]" },
		{ "http://[::ffff:1.2.3.4]", "1.2.3.4" },
		{ "http://1.2.3.4", "[::]" },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(ours); i++)
		if (!same(ours[i][0], ours[i][1]))
			fail_msg("%s at %s", ours[i][0], ours[i][1]);
	assert_false(http_origin_same(STR("http://h"),
	    (struct str){ NULL, 0 }));
	assert_false(http_origin_same((struct str){ NULL, 0 }, STR("h")));
	for (size_t i = 0; i < COUNT(foreign); i++)
		if (same(foreign[i][0], foreign[i][1]))
			fail_msg("%s at %s", foreign[i][0], foreign[i][1]);
}

static bool
is(const char *origin, const char *configured)
{
	return http_origin_is(text_of(origin), text_of(configured),
	    STR("Router.lan:8443"));
}

static void
an_origin_can_be_configured(void **state)
{
	(void)state;
	assert_true(is("https://a.b", "https://a.b"));
	assert_true(is("https://A.B", "HTTPS://a.b:443"));
	assert_true(is("https://a.b:443", "https://a.b."));
	assert_true(is("app://x", "app://x"));
	assert_true(is("http://[::1]:9", "http://[0::1]:9"));
	assert_false(is("http://a.b", "https://a.b"));
	assert_false(is("http://a.b:443", "https://a.b"));
	assert_false(is("https://a.b:444", "https://a.b"));
	assert_false(is("https://x.a.b", "https://a.b"));
	assert_false(is("https://a.b/", "https://a.b"));
	assert_false(is("null", "null"));
	assert_false(is("https://router.lan:8443", "https://a.b"));

	assert_true(is("http://router.lan", "same-host"));
	assert_true(is("app://router.lan.:1", "same-host"));
	assert_false(is("http://x.router.lan", "same-host"));
	assert_false(is("null", "same-host"));
	assert_false(is("same-host", "same-host"));

	assert_true(is("http://any.where", "*"));
	assert_true(is("null", "*"));
	assert_true(is("", "*"));
}

static void
a_malformed_origin_is_refused_at_start(void **state)
{
	static const char *const fine[] = { "*", "same-host", "https://a.b",
		"http://1.2.3.4:80", "https://[::1]", "capacitor://localhost" };
	static const char *const wrong[] = { "", "a.b", "https://", "https:/a",
		"https://a.b/", "https://a b", "https://*.a.b/x", "null",
		"https://a.b:0x", "https://[::1", "https://a.b:99999",
		"Same-Host", "**", "https://a.b?x", "https://a.b#x" };

	(void)state;
	for (size_t i = 0; i < COUNT(fine); i++)
		if (!http_origin_valid(text_of(fine[i])))
			fail_msg("%s", fine[i]);
	for (size_t i = 0; i < COUNT(wrong); i++)
		if (http_origin_valid(text_of(wrong[i])))
			fail_msg("%s", wrong[i]);
}

static void
an_address_is_written_as_libc_writes_it(void **state)
{
	/* Every choice of groups that are zero; 1 has one digit, a0b three. */
	(void)state;
	for (unsigned zero = 0; zero < 256; zero++) {
		char ours[64], libc[64];
		struct out o = out_to(ours, sizeof ours);
		u8 ip[16] = { 0 };

		for (int i = 0; i < 8; i++)
			if (!(zero >> i & 1))
				store16(ip + 2 * i, i % 2 ? 1 : 0xa0b);
		http_ip_print(&o, ip);
		inet_ntop(AF_INET6, ip, libc + 1, sizeof libc - 2);
		libc[0] = '[';
		strcat(libc, "]");
		/* ::1.2.3.4, which nobody has, libc writes so. */
		if (!strchr(libc, '.'))
			assert_true(str_is((struct str){ ours, o.n }, libc));
	}
}

static void
an_ipv4_address_has_no_brackets(void **state)
{
	static const u8 ip[16] = { [10] = 255, [11] = 255, 192, 168, 0, 1 };
	char text[64];
	struct out o = out_to(text, sizeof text);

	(void)state;
	http_ip_print(&o, ip);
	assert_true(str_is((struct str){ text, o.n }, "192.168.0.1"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_good_head_is_taken_in_any_pieces),
		cmocka_unit_test(
		    bad_syntax_is_refused_with_its_first_wrong_byte),
		cmocka_unit_test(a_nul_byte_is_refused_wherever_it_stands),
		cmocka_unit_test(a_head_over_its_length_is_431),
		cmocka_unit_test(header_lines_over_their_number_are_431),
		cmocka_unit_test(a_target_falls_into_path_query_and_host),
		cmocka_unit_test(methods_and_versions_are_told_apart),
		cmocka_unit_test(
		    an_upgrade_is_asked_for_by_tokens_in_any_case_and_line),
		cmocka_unit_test(
		    what_is_no_handshake_is_answered_426_or_400_in_this_order),
		cmocka_unit_test(a_key_is_16_bytes_of_base64),
		cmocka_unit_test(repeated_headers_are_found_in_order),
		cmocka_unit_test(lists_are_read_past_their_empty_elements),
		cmocka_unit_test(a_cookie_is_found_by_its_exact_name),
		cmocka_unit_test(
		    a_parameter_is_found_in_any_case_and_spelling),
		cmocka_unit_test(the_key_is_proved_as_in_the_rfc),
		cmocka_unit_test(
		    an_answer_says_its_length_and_that_the_connection_ends),
		cmocka_unit_test(every_status_of_ours_has_its_words),
		cmocka_unit_test(ipv6_addresses_are_the_same_however_written),
		cmocka_unit_test(an_origin_is_ours_when_host_and_port_are),
		cmocka_unit_test(an_origin_can_be_configured),
		cmocka_unit_test(an_address_is_written_as_libc_writes_it),
		cmocka_unit_test(an_ipv4_address_has_no_brackets),
		cmocka_unit_test(a_malformed_origin_is_refused_at_start),
	};

	return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
