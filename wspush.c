/*
 * wspush - a WebSocket push server for embedded Linux.
 *
 * SPDX-License-Identifier: MIT
 *
 * A script sends one datagram to a UNIX socket; the browsers it names have
 * the message.  This file is the whole program, a house of two halves.  The
 * upper half is pure: bytes, tables and rules, without a system call, a
 * clock, a global variable or a log.  The lower half meets the kernel.
 *
 *   PART ONE: PURE                        PART TWO: KERNEL
 *    1 Basics     types, load and store   19 System calls    nobody else's
 *    2 Text       numbers, UTF-8, base64  20 Log and print
 *    3 JSON       validate, read, escape  21 Settings        what options say
 *    4 Hosts      addresses, origins      22 Certificates    load, check
 *    5 HTTP       request in, answer out  23 Own certificate make, renew
 *    6 Frames     RFC 6455, section 5     24 TLS             handshakes
 *    7 Requests   the push protocol       25 Token keys
 *    8 Targets    the selection language  26 Connections     rows, states
 *    9 Store      messages, each once     27 Output          queue to kernel
 *   10 Queues     what waits for whom     28 Endings         Pongs and the end
 *   11 Gathering  what leaves as bytes    29 Input           kernel to message
 *   12 Sockets    ids and rows            30 Events          epoll, newcomers
 *   13 Tags       who has which tag       31 Services        sockets, watchers
 *   14 Deadlines  one FIFO per timeout    32 Delivery        who gets what
 *   15 Records    TLS records from keys   33 Forgers         who must wait
 *   16 Signatures token keys at work      34 Admission       who may come in
 *   17 Tokens     who may be whom         35 Judges          programs say who
 *   18 DER        keys, dates, PEM        36 Pages           test page, health
 *                                         37 Commands        what pages say
 *   then, on both sides of the loop:      38 Send            messages, waiters
 *   45 Option values what each means      39 Verbs           what scripts say
 *   46 Options       one table of them    40 Handlers        your programs
 *   47 Memory        one piece, planned   41 Helper          starts children
 *   48 Start         until it is ready    42 Push socket     datagrams in
 *   49 Serve         the running server   43 Sandbox         what it may call
 *   50 Client        asks, is answered    44 Loop            one turn's order
 *   51 Client verbs  send, list, ...
 *   52 Watch and top verbs that stay
 *   53 Main          which verb
 *
 * A room uses the rooms above it.  A few calls go down instead, each for a
 * reason given where it is declared: service_request(), service_message() and
 * service_ended() in Connections, handler_tell(), handler_message()
 * and handler_auth() in Services, serve_signal() in Loop.
 *
 * Define WSP_PURE_ONLY to compile the upper half alone, WSP_FAKE_SYS to
 * supply System calls from a test.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef _TIME_BITS /* a 32-bit board lives past 2038 */
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#endif
#include <arpa/inet.h> /* inet_pton() */
#include <assert.h>
#include <endian.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h> /* struct iovec, the shape of what goes out */

#include <bearssl.h>

/* Little flash: what cannot be true ends the process without a sentence. */
#ifdef WSP_TERSE
#undef assert
#define assert(x) ((x) ? (void)0 : __builtin_trap())
#endif

#define WSP_NO_PUSH /* the server is at the other end */
#include "wspush.h"

/* Between these two is what runs at the start, in a verb or once in a while:
 * small before fast, for its pages stay in memory. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__)
#define SMALL_CODE _Pragma("GCC push_options") _Pragma("GCC optimize(\"Os\")")
#define FAST_CODE  _Pragma("GCC pop_options")
#else
#define SMALL_CODE
#define FAST_CODE
#endif

/*
 * ======================================================================
 * PART ONE: PURE
 * ======================================================================
 */

/* ----- 1. Basics ---------------------------------------------------------
 *
 * Short names for the integers, big-endian load and store for what crosses a
 * wire, slices of somebody else's bytes, and a writer that cannot overrun.
 */

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64; /* %llu */

#define COUNT(a) (sizeof(a) / sizeof *(a))

#ifdef __SANITIZE_ADDRESS__
#define UNDER_ASAN
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define UNDER_ASAN
#endif
#endif

/* What an idle server has written to lies together: strewn among buffers that
 * wait for their day it would be as many pages as words.  ASan does not guard
 * what has a section of its own. */
#if defined(__GNUC__) && defined(__ELF__) && !defined(UNDER_ASAN)
#define RESIDENT __attribute__((section(".bss.resident")))
#else
#define RESIDENT
#endif

/* No row: what a table index says when it points nowhere. */
#define NONE UINT32_MAX

/* Text that lies in somebody else's memory; not terminated. */
struct str {
	const char *p;
	size_t n;
};

#define STR(literal) ((struct str){ (literal), sizeof(literal) - 1 })

/* What %.*s takes. */
#define STR_ARGS(s) (int)(s).n, (s).p

static u16
load16(const u8 *p)
{
	return (u16)(p[0] << 8 | p[1]);
}

static u64
load64(const u8 *p)
{
	u64 v;

	memcpy(&v, p, 8);
	return be64toh(v);
}

static void
store16(u8 *p, u16 v)
{
	p[0] = (u8)(v >> 8);
	p[1] = (u8)v;
}

static void
store64(u8 *p, u64 v)
{
	v = htobe64(v);
	memcpy(p, &v, 8);
}

static size_t
min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

static bool
str_eq(struct str a, struct str b)
{
	return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static bool
str_is(struct str s, const char *word)
{
	return str_eq(s, (struct str){ word, strlen(word) });
}

static bool
str_begins(struct str s, const char *with)
{
	size_t n = strlen(with);

	return s.n >= n && memcmp(s.p, with, n) == 0;
}

/*
 * A writer into memory of a fixed size.  What does not fit sets `full` and
 * writes nothing, now and from then on, so a caller checks once at the end.
 */
struct out {
	char *p;
	size_t n, cap;
	bool full;
};

static struct out
out_to(void *p, size_t cap)
{
	return (struct out){ .p = p, .cap = cap };
}

static void
out_bytes(struct out *o, const void *p, size_t n)
{
	if (o->full || n > o->cap - o->n) {
		o->full = true;
		return;
	}
	if (n > 0)
		memcpy(o->p + o->n, p, n);
	o->n += n;
}

static void
out_char(struct out *o, char c)
{
	out_bytes(o, &c, 1);
}

static void
out_text(struct out *o, const char *text)
{
	out_bytes(o, text, strlen(text));
}

static void
out_str(struct out *o, struct str s)
{
	out_bytes(o, s.p, s.n);
}

#define OUT_DIGITS 20 /* of the largest u64; a sign takes one of int64_t's */

/* Writes the digits before `end`; returns where they begin. */
static char *
out_digits(char *end, u64 v, unsigned base)
{
	do
		*--end = "0123456789abcdef"[v % base];
	while ((v /= base) > 0);
	return end;
}

/* What does not fit is cut.  Blanks before it, or behind it for a negative
 * width. */
static void
out_padded(struct out *o, struct str s, int width, char pad)
{
	size_t fits;

	for (int n = (int)s.n; n < width; n++)
		out_char(o, pad);
	fits = min_size(s.n, o->cap - o->n);
	out_bytes(o, s.p, fits);
	o->full |= fits < s.n;
	for (int n = (int)s.n; n < -width; n++)
		out_char(o, ' ');
}

/*
 * printf for programs that want neither libc's tables nor its heap: %s %.*s
 * %c %d %u %x %zu %%, with l or ll, a width, and `-` or `0` before it.
 */
static void
out_format(struct out *o, const char *f, va_list ap)
{
	while (*f) {
		struct str s = { f, strcspn(f, "%") };
		int width = 0, most = -1, size = 0;
		char room[OUT_DIGITS + 1], *end = room + sizeof room, pad, is;
		u64 v;

		out_padded(o, s, 0, ' ');
		f += s.n;
		if (!*f)
			break;
		pad = *++f;
		for (f += pad == '-'; *f >= '0' && *f <= '9'; f++)
			width = width * 10 + *f - '0';
		if (*f == '.' && *++f == '*') {
			most = va_arg(ap, int);
			f++;
		}
		for (; *f == 'l' || *f == 'z'; f++)
			size++;
		is = *f++;
		if (is == 's') {
			s.p = va_arg(ap, const char *);
			s.n = most < 0 ? strlen(s.p) : (size_t)most;
		} else if (is == 'c' || is == '%') {
			room[0] = is == 'c' ? (char)va_arg(ap, int) : is;
			s = (struct str){ room, 1 };
		} else {
			bool minus;
			char *from;

			if (size > 1)
				v = va_arg(ap, u64);
			else if (is == 'd')
				v = (u64)(size ? va_arg(ap, long) :
				    va_arg(ap, int));
			else
				v = size ? va_arg(ap, size_t) :
				    va_arg(ap, unsigned);
			minus = is == 'd' && v >> 63;
			from = out_digits(end, minus ? -v : v,
			    is == 'x' ? 16 : 10);
			if (minus)
				*--from = '-';
			s = (struct str){ from, (size_t)(end - from) };
		}
		out_padded(o, s, pad == '-' ? -width : width,
		    pad == '0' ? '0' : ' ');
	}
}

static void out_print(struct out *o, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void
out_print(struct out *o, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	out_format(o, format, ap);
	va_end(ap);
}

static void
out_u64(struct out *o, u64 v)
{
	out_print(o, "%llu", v);
}

static char *text_print(char *to, size_t cap, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A terminated text in memory of `cap` bytes, cut when it must be. */
static char *
text_print(char *to, size_t cap, const char *format, ...)
{
	struct out o = out_to(to, cap - 1);
	va_list ap;

	va_start(ap, format);
	out_format(&o, format, ap);
	va_end(ap);
	to[o.n] = '\0';
	return to;
}

/* ----- 2. Text -----------------------------------------------------------
 *
 * Characters, numbers, slices, base64, percent-decoding and UTF-8.  All of it
 * is ASCII and free of locales.  Decoders are strict: of two spellings of one
 * value they take the right one, and what they refuse leaves no half result
 * that a caller could use by mistake.  UTF-8 is checked as it arrives, with
 * one byte to remember between two pieces.
 */

static bool
text_is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static char
text_lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool
text_is_letter(char c)
{
	c = text_lower(c);
	return c >= 'a' && c <= 'z';
}

/* A letter, a digit or one of `marks`. */
static bool
text_is_one(char c, const char *marks)
{
	return text_is_letter(c) || text_is_digit(c) || (c && strchr(marks, c));
}

/* The value of n hexadecimal digits in either case, or -1. */
static int
text_hex(const char *p, int n)
{
	int v = 0;

	for (; n > 0; n--, p++) {
		char c = text_lower(*p);

		if (text_is_digit(c))
			v = v << 4 | (c - '0');
		else if (c >= 'a' && c <= 'f')
			v = v << 4 | (c - 'a' + 10);
		else
			return -1;
	}
	return v;
}

static struct str
text_of(const char *terminated)
{
	return (struct str){ terminated, strlen(terminated) };
}

/* s without its first `skip` bytes; there must be as many. */
static struct str
text_from(struct str s, size_t skip)
{
	return (struct str){ s.p + skip, s.n - skip };
}

/* What lies behind s.  An absent text has no address to add to. */
static const char *
text_end(struct str s)
{
	return s.n > 0 ? s.p + s.n : s.p;
}

/* Equal but for the case of ASCII letters. */
static bool
text_same(struct str a, struct str b)
{
	if (a.n != b.n)
		return false;
	for (size_t i = 0; i < a.n; i++)
		if (text_lower(a.p[i]) != text_lower(b.p[i]))
			return false;
	return true;
}

static bool
text_same_as(struct str s, const char *word)
{
	return text_same(s, text_of(word));
}

static bool
text_is_white(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* s without the white space at either end. */
static struct str
text_trim(struct str s)
{
	while (s.n > 0 && text_is_white(s.p[0]))
		s = text_from(s, 1);
	while (s.n > 0 && text_is_white(s.p[s.n - 1]))
		s.n--;
	return s;
}

/* Where `what`, not empty, begins in s, or NULL. */
static const char *
text_find(struct str s, const char *what)
{
	size_t n = strlen(what);

	for (; s.n >= n; s = text_from(s, 1))
		if (memcmp(s.p, what, n) == 0)
			return s.p;
	return NULL;
}

/* Cuts what stands before the next `mark`, and the mark, from `rest`; nothing
 * when there is none. */
static bool
text_upto(struct str *rest, const char *mark, struct str *before)
{
	const char *found = text_find(*rest, mark);

	if (!found)
		return false;
	*before = (struct str){ rest->p, (size_t)(found - rest->p) };
	*rest = text_from(*rest, before->n + strlen(mark));
	return true;
}

/*
 * Cuts the piece before the next `at` from `rest`.  Behind the last piece
 * rest->p is NULL: "a,,b," gives "a", "", "b" and "".
 */
static bool
split_next(struct str *rest, char at, struct str *piece)
{
	const char *end;

	if (!rest->p)
		return false;
	end = memchr(rest->p, at, rest->n);
	*piece = *rest;
	*rest = (struct str){ NULL, 0 };
	if (end) {
		*rest = text_from(*piece, (size_t)(end - piece->p) + 1);
		piece->n -= rest->n + 1;
	}
	return true;
}

/* Cuts the next word from `rest`: words stand between spaces. */
static bool
token_next(struct str *rest, struct str *token)
{
	size_t n = 0;

	while (rest->n > 0 && rest->p[0] == ' ')
		*rest = text_from(*rest, 1);
	while (n < rest->n && rest->p[n] != ' ')
		n++;
	*token = (struct str){ rest->p, n };
	if (n > 0)
		*rest = text_from(*rest, n);
	return n > 0;
}

/* Digits and nothing else, at least one. */
static bool
text_u64(u64 *v, struct str s)
{
	u64 sum = 0;

	if (s.n == 0)
		return false;
	for (size_t i = 0; i < s.n; i++) {
		unsigned digit = (unsigned)(s.p[i] - '0');
		u64 more = sum * 10 + digit;

		if (digit > 9 || more / 10 != sum)
			return false;
		sum = more;
	}
	*v = sum;
	return true;
}

/* The same for a number of at most max; -1 when it is none. */
static int64_t
text_number(struct str s, int64_t max)
{
	u64 v;

	return text_u64(&v, s) && v <= (u64)max ? (int64_t)v : -1;
}

/*
 * Base64 (RFC 4648, 4) and base64url (5) differ in their last two digits, and
 * here in the padding: always there, never there.
 */
enum base64 { BASE64, BASE64URL };

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789+/-_";

static char
base64_digit(unsigned v, enum base64 kind)
{
	return base64_digits[v < 62 || kind == BASE64 ? v : v + 2];
}

/* What a digit stands for; from 64 on: it is none. */
static u32
base64_value(char c, enum base64 kind)
{
	const char *found = memchr(base64_digits, c, 66);
	u32 v = found ? (u32)(found - base64_digits) : 66;

	if (kind == BASE64 || v < 62)
		return v;
	return v < 64 ? 64 : v - 2;
}

/* Writes 4 characters for every 3 bytes begun, or as many as it takes for
 * base64url; returns how many. */
static size_t
base64_encode(char *to, const u8 *p, size_t n, enum base64 kind)
{
	size_t made = 0;
	u32 bits = 0;
	unsigned have = 0; /* bits that wait for their digit */

	for (size_t i = 0; i < n; i++) {
		bits = bits << 8 | p[i];
		for (have += 8; have >= 6;) {
			have -= 6;
			to[made++] = base64_digit(bits >> have & 63, kind);
		}
	}
	if (have > 0)
		to[made++] = base64_digit(bits << (6 - have) & 63, kind);
	while (kind == BASE64 && made % 4 != 0)
		to[made++] = '=';
	return made;
}

/* The length, or -1 when s is not of that kind or longer than cap.  Bits
 * behind the last whole byte must be zero, or two texts would stand for the
 * same bytes (RFC 4648, 3.5).  `to` may be where s lies. */
static int
base64_decode(u8 *to, size_t cap, struct str s, enum base64 kind)
{
	size_t made = 0;
	u32 bits = 0;
	unsigned have = 0;

	if (kind == BASE64) {
		if (s.n % 4 != 0)
			return -1;
		for (int i = 0; i < 2 && s.n > 0 && s.p[s.n - 1] == '='; i++)
			s.n--;
	}
	if (s.n % 4 == 1)
		return -1;
	for (size_t i = 0; i < s.n; i++) {
		u32 value = base64_value(s.p[i], kind);

		if (value > 63)
			return -1;
		bits = bits << 6 | value;
		have += 6;
		if (have < 8)
			continue;
		if (made == cap)
			return -1;
		have -= 8;
		to[made++] = (u8)(bits >> have);
	}
	return (bits & ((1U << have) - 1)) == 0 ? (int)made : -1;
}

/*
 * Undoes %XX and nothing else: `+` means `+`.  The length, -1 for a bad
 * escape, -2 when it is longer than cap.  `to` may be where s lies.
 */
static int
percent_decode(char *to, size_t cap, struct str s)
{
	size_t made = 0;

	for (size_t i = 0; i < s.n; i++) {
		char c = s.p[i];

		if (c == '%') {
			int v = s.n - i < 3 ? -1 :
			    text_hex(s.p + i + 1, 2);

			if (v < 0)
				return -1;
			c = (char)v;
			i += 2;
		}
		if (made == cap)
			return -2;
		to[made++] = c;
	}
	return (int)made;
}

/*
 * UTF-8 (RFC 3629, 4).  The state says what the next byte must be; it is all
 * there is to remember between two pieces of a text.
 *
 *	lead byte   state   next byte   then
 *	00..7F      0
 *	C2..DF      1       80..BF      0
 *	E1..EF      2       80..BF      1      but ED
 *	F1..F3      3       80..BF      2
 *	E0          4       A0..BF      1      below: overlong
 *	ED          5       80..9F      1      above: surrogates
 *	F0          6       90..BF      2      below: overlong
 *	F4          7       80..8F      2      above: beyond U+10FFFF
 */
#define UTF8_START 0
#define UTF8_BAD   0xff

static u8
utf8_lead(u8 c)
{
	if (c < 0x80)
		return UTF8_START;
	if (c < 0xc2 || c > 0xf4)
		return UTF8_BAD;
	if (c < 0xe0)
		return 1;
	if (c < 0xf0)
		return c == 0xe0 ? 4 : c == 0xed ? 5 : 2;
	return c == 0xf0 ? 6 : c == 0xf4 ? 7 : 3;
}

static u8
utf8_step(u8 state, u8 c)
{
	static const struct {
		u8 low, high, then;
	} rule[] = {
		{ 0, 0, UTF8_BAD }, /* UTF8_START is utf8_lead()'s */
		{ 0x80, 0xbf, 0 },
		{ 0x80, 0xbf, 1 },
		{ 0x80, 0xbf, 2 },
		{ 0xa0, 0xbf, 1 },
		{ 0x80, 0x9f, 1 },
		{ 0x90, 0xbf, 2 },
		{ 0x80, 0x8f, 2 },
	};

	if (state == UTF8_START)
		return utf8_lead(c);
	if (c < rule[state].low || c > rule[state].high)
		return UTF8_BAD;
	return rule[state].then;
}

/* The state after n more bytes.  UTF8_BAD comes with the first byte that no
 * valid text can have there, and stays; the text may end at UTF8_START. */
static u8
utf8_run(u8 state, const u8 *p, size_t n)
{
	size_t i = 0;

	while (i < n && state != UTF8_BAD) {
		size_t word;

		/* Most text is ASCII: a word at a time. */
		while (state == UTF8_START && n - i >= sizeof word) {
			memcpy(&word, p + i, sizeof word);
			if (word & (SIZE_MAX / 255 * 0x80))
				break;
			i += sizeof word;
		}
		if (i < n)
			state = utf8_step(state, p[i++]);
	}
	return state;
}

static bool
text_is_utf8(const void *p, size_t n)
{
	return utf8_run(UTF8_START, p, n) == UTF8_START;
}

/* A code point of at most U+10FFFF, no surrogate, as 1 to 4 bytes. */
static size_t
utf8_put(char to[4], u32 c)
{
	static const u8 lead[] = { 0x00, 0xc0, 0xe0, 0xf0 };
	size_t more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;

	for (size_t i = more; i > 0; i--, c >>= 6)
		to[i] = (char)(0x80 | (c & 0x3f));
	to[0] = (char)(lead[more] | c);
	return more + 1;
}

/* UTF-8 without ASCII white space and control characters (U+0000 to U+001F,
 * U+007F to U+009F): what ids and tags may hold. */
static bool
text_is_clean(struct str s)
{
	if (!text_is_utf8(s.p, s.n))
		return false;
	for (size_t i = 0; i < s.n; i++) {
		u8 c = (u8)s.p[i];

		if (c <= ' ' || c == 0x7f)
			return false;
		/* In valid UTF-8 C2 is followed by 80 to BF. */
		if (c == 0xc2 && (u8)s.p[i + 1] < 0xa0)
			return false;
	}
	return true;
}

SMALL_CODE

/* ----- 3. JSON -----------------------------------------------------------
 *
 * Says whether a text is JSON to the letter (RFC 8259), cuts it into tokens
 * in a table of the caller's, and writes and reads JSON strings.  One walk
 * serves both: it keeps a stack of open arrays and objects, WSP_JSON_DEPTH
 * deep, and does not recurse.  What is nested deeper is refused as if it were
 * not JSON.  The text must have been found to be UTF-8 before.
 */

enum json_kind {
	JSON_IS_OBJECT, JSON_IS_ARRAY, JSON_IS_STRING, JSON_IS_NUMBER,
	JSON_IS_TRUE, JSON_IS_FALSE, JSON_IS_NULL
};

/*
 * Tokens lie in the order of the text.  An object is followed by a string and
 * a value for each member, an array by its elements:
 *
 *	{"a":[1,2],"b":null}     i  kind    next
 *	                         0  object     7
 *	                         1  string     2    "a"
 *	                         2  array      5
 *	                         3  number     4    1
 *	                         4  number     5    2
 *	                         5  string     6    "b"
 *	                         6  null       7
 */
struct json_token {
	struct str text; /* its bytes; a string's with the quotes */
	u32 next;        /* the token behind it and all that it holds */
	u8 kind;         /* enum json_kind */
};

struct json_level {
	u32 token;  /* the array or object that is open */
	char close; /* what ends it */
};

struct json_walk {
	const char *p, *end;  /* what is still to be read */
	struct json_token *t; /* null when nobody wants tokens */
	size_t cap, count;    /* count goes on when the table is full */
	size_t depth;
	struct json_level level[WSP_JSON_DEPTH];
};

#define JSON_BYTES(c)      (SIZE_MAX / 255 * (c))
/* Not zero when one of the bytes of x, a size_t, is below c, which is at most
 * 128.  It can be wrong about which one, never about whether there is one. */
#define JSON_ANY_BELOW(x, c) \
	(((x) - JSON_BYTES(c)) & ~(x) & JSON_BYTES(0x80))
#define JSON_ANY(x, c)     JSON_ANY_BELOW((x) ^ JSON_BYTES(c), 1)

/* Skips to the first byte that cannot stand for itself in a string: a quote,
 * a backslash, a control character.  Most of a long body is read here. */
static const char *
json_plain(const char *p, const char *end)
{
	size_t x;

	for (; (size_t)(end - p) >= sizeof x; p += sizeof x) {
		memcpy(&x, p, sizeof x);
		if (JSON_ANY_BELOW(x, 0x20) || JSON_ANY(x, '"') ||
		    JSON_ANY(x, '\\'))
			break;
	}
	while (p < end && *p != '"' && *p != '\\' && (u8)*p >= 0x20)
		p++;
	return p;
}

static bool
json_at(const struct json_walk *w, char c)
{
	return w->p < w->end && *w->p == c;
}

static bool
json_eat(struct json_walk *w, char c)
{
	if (!json_at(w, c))
		return false;
	w->p++;
	return true;
}

static void
json_skip(struct json_walk *w)
{
	while (w->p < w->end && text_is_white(*w->p))
		w->p++;
}

/* The letters behind a backslash, and what they stand for. */
static const char json_letter[] = "\"\\/bfnrt";
static const char json_means[] = "\"\\/\b\f\n\r\t";

/* What follows a backslash.  A surrogate alone is fine as far as JSON goes
 * (RFC 8259, 8.2); json_decode() refuses it. */
static bool
json_escape(struct json_walk *w)
{
	if (json_eat(w, 'u')) {
		if (w->end - w->p < 4 || text_hex(w->p, 4) < 0)
			return false;
		w->p += 4;
		return true;
	}
	if (w->p == w->end || !memchr(json_letter, *w->p, 8))
		return false;
	w->p++;
	return true;
}

static bool
json_quoted(struct json_walk *w)
{
	if (!json_eat(w, '"'))
		return false;
	for (;;) {
		w->p = json_plain(w->p, w->end);
		if (json_eat(w, '"'))
			return true;
		if (!json_eat(w, '\\') || !json_escape(w))
			return false;
	}
}

static bool
json_digits(struct json_walk *w)
{
	const char *from = w->p;

	while (w->p < w->end && text_is_digit(*w->p))
		w->p++;
	return w->p > from;
}

static bool
json_number(struct json_walk *w)
{
	json_eat(w, '-');
	/* Behind a leading zero no digit follows: 01 ends at the 0, and the
	 * walk then misses its comma. */
	if (!json_eat(w, '0') && !json_digits(w))
		return false;
	if (json_eat(w, '.') && !json_digits(w))
		return false;
	if (!json_eat(w, 'e') && !json_eat(w, 'E'))
		return true;
	if (!json_eat(w, '+'))
		json_eat(w, '-');
	return json_digits(w);
}

/* Writes down a token that begins at `from` and ends where we are. */
static void
json_note(struct json_walk *w, enum json_kind kind, const char *from)
{
	if (w->count < w->cap)
		w->t[w->count] = (struct json_token){
			.text = { from, (size_t)(w->p - from) },
			.next = (u32)w->count + 1,
			.kind = (u8)kind,
		};
	w->count++;
}

/* Reads true, false or null; anything else can only be a number. */
static enum json_kind
json_word(struct json_walk *w)
{
	static const char words[][6] = { "true", "false", "null" };
	struct str rest = { w->p, (size_t)(w->end - w->p) };

	for (int i = 0; i < 3; i++)
		if (str_begins(rest, words[i])) {
			w->p += strlen(words[i]);
			return (enum json_kind)(JSON_IS_TRUE + i);
		}
	return JSON_IS_NUMBER;
}

static bool
json_scalar(struct json_walk *w)
{
	const char *from = w->p;
	enum json_kind kind = json_at(w, '"') ? JSON_IS_STRING : json_word(w);

	if ((kind == JSON_IS_STRING && !json_quoted(w)) ||
	    (kind == JSON_IS_NUMBER && !json_number(w)))
		return false;
	json_note(w, kind, from);
	return true;
}

static bool
json_open(struct json_walk *w)
{
	bool object = json_at(w, '{');

	if (w->depth == WSP_JSON_DEPTH)
		return false;
	w->level[w->depth++] = (struct json_level){
		.token = (u32)w->count,
		.close = object ? '}' : ']',
	};
	json_note(w, object ? JSON_IS_OBJECT : JSON_IS_ARRAY, w->p);
	w->p++;
	json_skip(w);
	return true;
}

/* Leaves every array and object that ends here. */
static void
json_close(struct json_walk *w)
{
	json_skip(w);
	while (w->depth > 0 && json_eat(w, w->level[w->depth - 1].close)) {
		u32 i = w->level[--w->depth].token;

		if (i < w->cap) {
			w->t[i].text.n = (size_t)(w->p - w->t[i].text.p);
			w->t[i].next = (u32)w->count;
		}
		json_skip(w);
	}
}

/* Reads the name of a member and the colon. */
static bool
json_name(struct json_walk *w)
{
	const char *from = w->p;

	if (!json_quoted(w))
		return false;
	json_note(w, JSON_IS_STRING, from);
	json_skip(w);
	if (!json_eat(w, ':'))
		return false;
	json_skip(w);
	return true;
}

/* Reads one value with all that it holds, and the white space behind it. */
static bool
json_value(struct json_walk *w)
{
	for (;;) {
		bool open = json_at(w, '{') || json_at(w, '[');

		if (!(open ? json_open(w) : json_scalar(w)))
			return false;
		if (!open || json_at(w, w->level[w->depth - 1].close)) {
			json_close(w);
			if (w->depth == 0)
				return true;
			if (!json_eat(w, ','))
				return false;
			json_skip(w);
		}
		if (w->level[w->depth - 1].close == '}' && !json_name(w))
			return false;
	}
}

/*
 * Cuts a text into tokens.  How many there are, -1 when the text is not JSON,
 * -2 when it is but has more than cap tokens.
 */
static int
json_tokens(struct json_token *t, size_t cap, struct str text)
{
	struct json_walk w;

	/* Not an initializer, which would clear the levels each time. */
	w.p = text.p;
	w.end = text_end(text);
	w.t = t;
	w.cap = cap;
	w.count = w.depth = 0;
	json_skip(&w);
	if (!json_value(&w) || w.p != w.end)
		return -1;
	return t && w.count > cap ? -2 : (int)w.count;
}

/* What a body is to a client that gets it in an array of values. */
enum json_shape {
	JSON_NOT,    /* no JSON, or nested too deep */
	JSON_SINGLE, /* a value that is no array */
	JSON_ARRAY   /* a value that is an array */
};

/* Of JSON, *value is the body without the white space around it; of anything
 * else it is the whole body. */
static enum json_shape
json_shape(struct str *value, struct str body)
{
	*value = body;
	if (json_tokens(NULL, 0, body) < 0)
		return JSON_NOT;
	*value = text_trim(body);
	return value->p[0] == '[' ? JSON_ARRAY : JSON_SINGLE;
}

/* A character that a string must not hold, in the shortest way to write it:
 * 2 or 6 bytes. */
static size_t
json_escaped(char to[6], char c)
{
	const char *found = memchr(json_means, c, 8);

	memcpy(to, "\\u001", 5);
	if (found) {
		to[1] = json_letter[found - json_means];
		return 2;
	}
	if (c < 0x10)
		to[4] = '0';
	to[5] = "0123456789abcdef"[c & 15];
	return 6;
}

/* The length of what json_string() writes. */
static size_t
json_string_size(struct str s)
{
	const char *p = s.p, *end = text_end(s);
	size_t n = s.n + 2;
	char escape[6];

	for (; (p = json_plain(p, end)) < end; p++)
		n += json_escaped(escape, *p) - 1;
	return n;
}

/* s as a JSON string, with its quotes. */
static void
json_string(struct out *o, struct str s)
{
	const char *p = s.p, *end = text_end(s), *stop;
	char escape[6];

	out_char(o, '"');
	for (;; p = stop + 1) {
		stop = json_plain(p, end);
		out_bytes(o, p, (size_t)(stop - p));
		if (stop == end)
			break;
		out_bytes(o, escape, json_escaped(escape, *stop));
	}
	out_char(o, '"');
}

/* Text as it is, and s as a JSON string behind it. */
static void
json_member_string(struct out *o, const char *text, const struct str *s)
{
	out_text(o, text);
	json_string(o, *s);
}

/* Reads the escape at p, two for a character beyond U+FFFF, and returns what
 * is behind it, or NULL when it is half of a surrogate pair.  The walk has
 * found it well-formed. */
static const char *
json_unescape(u32 *code, const char *p)
{
	const char *found = memchr(json_letter, p[1], 8);
	u32 low;

	if (found) {
		*code = (u8)json_means[found - json_letter];
		return p + 2;
	}
	*code = (u32)text_hex(p + 2, 4);
	p += 6;
	if ((*code & 0xf800) != 0xd800)
		return p;
	if (*code >= 0xdc00 || p[0] != '\\' || p[1] != 'u')
		return NULL;
	low = (u32)text_hex(p + 2, 4);
	*code = 0x10000 + ((*code & 0x3ff) << 10 | (low & 0x3ff));
	return (low & 0xfc00) == 0xdc00 ? p + 6 : NULL;
}

/*
 * What a string token stands for, as UTF-8: the length, -1 when it holds half
 * of a surrogate pair, which UTF-8 cannot say, -2 when it is longer than cap.
 * The result can hold any character, NUL too, and may take the place of the
 * token, which is never shorter.
 */
static int
json_decode(char *to, size_t cap, struct str quoted)
{
	const char *p = quoted.p + 1, *end = quoted.p + quoted.n - 1;
	size_t made = 0;

	assert(quoted.n >= 2);
	while (p < end) {
		char utf8[4];
		struct str piece = { p, (size_t)(json_plain(p, end) - p) };
		u32 code;

		if (piece.n > 0) {
			p += piece.n;
		} else {
			p = json_unescape(&code, p);
			if (!p)
				return -1;
			piece.p = utf8;
			piece.n = utf8_put(utf8, code);
		}
		if (piece.n > cap - made)
			return -2;
		memmove(to + made, piece.p, piece.n);
		made += piece.n;
	}
	return (int)made;
}

/* Is this value a string, and does it stand for the word?  Names are
 * short. */
static bool
json_string_is(struct str value, const char *word)
{
	char plain[64];
	int n = value.p[0] == '"' ? json_decode(plain, sizeof plain, value) :
	    -1;

	assert(strlen(word) < sizeof plain);
	return n >= 0 && str_is((struct str){ plain, (size_t)n }, word);
}

/* The index of the value of an object's member, or -1: there is none of that
 * name, or the token is no object.  Of equal names the last counts. */
static int
json_member(const struct json_token *t, int object, const char *name)
{
	int found = -1;

	if (t[object].kind != JSON_IS_OBJECT)
		return -1;
	for (u32 i = (u32)object + 1; i < t[object].next; i = t[i + 1].next)
		if (json_string_is(t[i].text, name))
			found = (int)i + 1;
	return found;
}

/* ----- 4. Hosts ----------------------------------------------------------
 *
 * Addresses, host names and origins, as requests, options and certificates
 * write them.  Two hosts are the same when their addresses or names are,
 * however written: [0:0::1] is [::1], and WSP.Lan. is wsp.lan.  Whether an
 * Origin is ours is answered here.
 */

struct http_host {
	struct str name; /* without the final dot; empty: an IPv6 address */
	u8 ip[16];
	int port;        /* -1: none given */
};

struct http_origin {
	struct str scheme, authority;
	struct http_host host;
	int port; /* given, or the scheme's; -1: neither */
};

/* An address as 4 or 16 bytes, AF_INET or AF_INET6; without brackets (RFC
 * 4291, 2.2).  Zone ids are not for others to see (RFC 6874, 4) and are
 * refused. */
static bool
http_ip(u8 *to, int family, struct str s)
{
	char text[INET6_ADDRSTRLEN];

	text_print(text, sizeof text, "%.*s", STR_ARGS(s));
	return strlen(text) == s.n && inet_pton(family, text, to) == 1;
}

/* What an IPv4 address looks like in 16 bytes (RFC 4291, 2.5.5.2). */
static const u8 http_mapped[12] = { [10] = 0xff, [11] = 0xff };

/* An address as RFC 5952 wants it written, IPv4 or in brackets. */
static void
http_ip_print(struct out *o, const u8 ip[16])
{
	int gap = 8, longest = 1; /* groups that `::` stands for */

	if (memcmp(ip, http_mapped, sizeof http_mapped) == 0) {
		out_print(o, "%d.%d.%d.%d", ip[12], ip[13], ip[14], ip[15]);
		return;
	}
	for (int i = 0, n = 0; i < 8; i++) {
		n = load16(ip + 2 * i) == 0 ? n + 1 : 0;
		if (n > longest) {
			gap = i + 1 - n;
			longest = n;
		}
	}
	out_text(o, gap == 0 ? "[:" : "[");
	for (int i = 0; i < 8; i++) {
		if (i == gap) {
			out_char(o, ':');
			i += longest - 1;
		} else {
			out_print(o, i < 7 ? "%x:" : "%x", load16(ip + 2 * i));
		}
	}
	out_char(o, ']');
}

/* A registered name or an IPv4 address (RFC 3986, 3.2.2), not empty. */
static bool
http_is_name(struct str s)
{
	for (size_t i = 0; i < s.n; i++) {
		bool escape = s.p[i] == '%' && s.n - i > 2 &&
		    text_hex(s.p + i + 1, 2) >= 0;

		if (!escape && !text_is_one(s.p[i], "-._~!$&'()*+,;="))
			return false;
	}
	return s.n > 0;
}

/* A host with or without a port, as in a Host header. */
static bool
http_host_parse(struct http_host *h, struct str s)
{
	bool bracket = str_begins(s, "[");
	struct str part;

	*h = (struct http_host){ .port = -1 };
	if (!split_next(&s, bracket ? ']' : ':', &part))
		return false;
	if (bracket) {
		if (!http_ip(h->ip, AF_INET6, text_from(part, 1)) ||
		    !split_next(&s, ':', &part) || part.n > 0)
			return false;
	} else {
		if (part.n > 0 && part.p[part.n - 1] == '.')
			part.n--;
		if (!http_is_name(part))
			return false;
		h->name = part;
	}
	if (s.n == 0)
		return true;
	h->port = (int)text_number(s, 65535);
	return h->port >= 0;
}

static bool
http_host_same(const struct http_host *a, const struct http_host *b)
{
	return text_same(a->name, b->name) &&
	    memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}

/* The port a scheme means when none is given; -1: not a scheme of ours. */
static int
http_scheme_port(struct str scheme)
{
	static const char name[][6] = { "http", "ws", "https", "wss" };

	for (int i = 0; i < 4; i++)
		if (text_same_as(scheme, name[i]))
			return i < 2 ? 80 : 443;
	return -1;
}

/* SCHEME://HOST[:PORT] and nothing behind it (RFC 6454, 6.2). */
static bool
http_origin_parse(struct http_origin *o, struct str s)
{
	if (!split_next(&s, ':', &o->scheme) || o->scheme.n == 0 ||
	    !text_is_letter(o->scheme.p[0]) || !str_begins(s, "//"))
		return false;
	for (size_t i = 1; i < o->scheme.n; i++)
		if (!text_is_one(o->scheme.p[i], "+-."))
			return false;
	o->authority = text_from(s, 2);
	if (!http_host_parse(&o->host, o->authority))
		return false;
	o->port = o->host.port < 0 ? http_scheme_port(o->scheme) :
	    o->host.port;
	return true;
}

/*
 * Is a page of this origin our own?  Host and port must be those of Host,
 * with the default port of the origin's scheme supplied to both: behind a TLS
 * proxy we do not know our own scheme.  A scheme without a default port is
 * that of an app, not of a page that we served.
 */
static bool
http_origin_same(struct str origin, struct str host)
{
	struct http_origin o;
	struct http_host h;
	int port;

	if (!http_origin_parse(&o, origin) || !http_host_parse(&h, host))
		return false;
	port = http_scheme_port(o.scheme);
	return port >= 0 && http_host_same(&o.host, &h) &&
	    o.port == (h.port < 0 ? port : h.port);
}

/* Does --origin CONFIGURED take this origin, on a request for this host? */
static bool
http_origin_is(struct str origin, struct str configured, struct str host)
{
	struct http_origin o, c;
	struct http_host h;

	if (str_is(configured, "*"))
		return true;
	if (!http_origin_parse(&o, origin))
		return false;
	if (str_is(configured, "same-host"))
		return http_host_parse(&h, host) && http_host_same(&o.host, &h);
	return http_origin_parse(&c, configured) && o.port == c.port &&
	    text_same(o.scheme, c.scheme) && http_host_same(&o.host, &c.host);
}

/* May that stand behind --origin? */
static bool
http_origin_valid(struct str configured)
{
	struct http_origin o;

	return str_is(configured, "*") || str_is(configured, "same-host") ||
	    http_origin_parse(&o, configured);
}

/* ----- 5. HTTP -----------------------------------------------------------
 *
 * The one request that a connection brings, read to the letter (RFC 9112),
 * the answers to it, and the handshake of RFC 6455, 4.2.  Everything that was
 * read is a slice of the input.  A request is read from its first byte each
 * time more of it has come, and in the order of its bytes: so the first wrong
 * byte decides, as soon as it is there, and no matter in what pieces it came.
 */

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_OTHER };

/* The headers that are looked at as they come.  Those before HTTP_ONCE are
 * kept, and may be there once. */
enum http_name {
	HTTP_HOST, HTTP_ORIGIN, HTTP_KEY, HTTP_VERSION, HTTP_ONCE,
	HTTP_CONNECTION = HTTP_ONCE, HTTP_UPGRADE, HTTP_LENGTH, HTTP_ENCODING,
	HTTP_UNKNOWN
};

struct http_request {
	enum http_method method;
	u8 minor;          /* HTTP/1.minor: 0 or 1, which also means above */
	bool asks[2];      /* Connection: upgrade; Upgrade: websocket */
	bool upgrade;      /* both */
	struct str path, query; /* undecoded; a null query: there is none */
	struct str host;   /* with its port: the target's, or the header's */
	struct str field[HTTP_ONCE]; /* null: it was not there */
	struct str head;   /* the header lines, each with its end */
	struct str rest;   /* what is still to be read */
	int status;        /* 400 or 431 when it was refused */
	const char *why;   /* and the reason, if a byte of this line is wrong:
	                    * one sentence */
};

/* What methods and header names are made of (RFC 9110, 5.6.2). */
static bool
http_is_token(char c)
{
	return text_is_one(c, "-!#$%&'*+.^_`|~");
}

/* What a target is made of: visible ASCII.  Browsers leave some characters
 * as they are that RFC 3986 would escape, such as `|`; a fragment they never
 * send. */
static bool
http_is_target(char c)
{
	return (u8)c > ' ' && (u8)c < 0x7f && c != '#';
}

/* What a header's value is made of (RFC 9110, 5.5). */
static bool
http_is_value(char c)
{
	return ((u8)c >= ' ' && c != 0x7f) || c == '\t';
}

/* The next element of a comma list, trimmed; empty ones are passed over
 * (RFC 9110, 5.6.1.2). */
static bool
http_list_next(struct str *rest, struct str *item)
{
	while (split_next(rest, ',', item)) {
		*item = text_trim(*item);
		if (item->n > 0)
			return true;
	}
	return false;
}

static bool
http_list_has(struct str list, const char *word)
{
	struct str item;

	while (http_list_next(&list, &item))
		if (text_same_as(item, word))
			return true;
	return false;
}

/*
 * From here to http_parse(), a function reads a part of the head.  It returns
 * false when the part is not all there, or when it was refused: then `status`
 * is not 0.
 */
static bool
http_refuse(struct http_request *r, int status, const char *why)
{
	r->status = status;
	r->why = why;
	return false;
}

/* Reads what must stand there. */
static bool
http_word(struct http_request *r, const char *word)
{
	for (; *word && r->rest.n > 0; word++) {
		if (r->rest.p[0] != *word)
			return http_refuse(r, 400, r->why);
		r->rest = text_from(r->rest, 1);
	}
	return !*word;
}

/* Reads bytes of one kind and the one behind them, `end`.  Only a value, the
 * last piece of a line, may be empty. */
static bool
http_piece(struct http_request *r, struct str *piece, bool (*takes)(char),
    const char *end)
{
	size_t n = 0;

	while (n < r->rest.n && takes(r->rest.p[n]))
		n++;
	*piece = (struct str){ r->rest.p, n };
	if (n == 0 && r->rest.n > 0 && takes != http_is_value)
		return http_refuse(r, 400, r->why);
	r->rest = text_from(r->rest, n);
	return http_word(r, end);
}

/*
 * PATH[?QUERY], or the same behind http://HOST[:PORT]: that is meant for a
 * proxy, and must be understood all the same (RFC 9112, 3.2.2).  CONNECT and
 * OPTIONS * have targets of their own kind (RFC 9112, 3.2.3 and 3.2.4), and
 * are methods that nobody serves.
 */
static bool
http_target(struct http_request *r, struct str method, struct str s)
{
	struct http_origin o;
	size_t n = 0;

	if (s.p[0] != '/' && !str_is(method, "CONNECT") &&
	    !(str_is(method, "OPTIONS") && str_is(s, "*"))) {
		for (int slashes = 0; n < s.n && s.p[n] != '?'; n++)
			if (s.p[n] == '/' && ++slashes == 3)
				break;
		if (!http_origin_parse(&o, (struct str){ s.p, n }) ||
		    http_scheme_port(o.scheme) < 0)
			return http_refuse(r, 400, "The request target is "
			    "neither a path nor a URL with a host.");
		r->host = o.authority;
		s = text_from(s, n);
	}
	split_next(&s, '?', &r->path);
	r->query = s;
	if (r->path.n == 0)
		r->path = STR("/");
	return true;
}

static bool
http_request_line(struct http_request *r)
{
	struct str method, target;

	if (!http_piece(r, &method, http_is_token, " ") ||
	    !http_piece(r, &target, http_is_target, " ") ||
	    !http_target(r, method, target) ||
	    !http_word(r, "HTTP/1.") || r->rest.n == 0)
		return false;
	r->method = str_is(method, "GET") ? HTTP_GET :
	    str_is(method, "HEAD") ? HTTP_HEAD : HTTP_OTHER;
	if (!text_is_digit(r->rest.p[0]))
		return http_refuse(r, 400, r->why);
	r->minor = r->rest.p[0] != '0';
	r->rest = text_from(r->rest, 1);
	return http_word(r, "\r\n");
}

/* Looks at a header line that is complete. */
static bool
http_field(struct http_request *r, struct str name, struct str value)
{
	static const char *const names[] = {
		[HTTP_HOST] = "Host",
		[HTTP_ORIGIN] = "Origin",
		[HTTP_KEY] = "Sec-WebSocket-Key",
		[HTTP_VERSION] = "Sec-WebSocket-Version",
		[HTTP_CONNECTION] = "Connection",
		[HTTP_UPGRADE] = "Upgrade",
		[HTTP_LENGTH] = "Content-Length",
		[HTTP_ENCODING] = "Transfer-Encoding",
	};
	struct http_host h;
	int i = 0;

	while (i < HTTP_UNKNOWN && !text_same_as(name, names[i]))
		i++;
	if (i < HTTP_ONCE) {
		if (r->field[i].p)
			return http_refuse(r, 400, "The request has a header "
			    "twice that may be there once.");
		r->field[i] = value;
	}
	if (i == HTTP_HOST && !http_host_parse(&h, value))
		return http_refuse(r, 400, "The Host header is not a host "
		    "with or without a port.");
	/* No request of ours has a body: where one would end must never be a
	 * question (RFC 9112, 11.2). */
	if (i == HTTP_ENCODING ||
	    (i == HTTP_LENGTH && text_number(value, 0) != 0))
		return http_refuse(r, 400, "No request may have a body here.");
	if (i == HTTP_CONNECTION || i == HTTP_UPGRADE)
		r->asks[i == HTTP_UPGRADE] |= http_list_has(value,
		    i == HTTP_UPGRADE ? "websocket" : "upgrade");
	return true;
}

/* The header lines and the empty line behind them. */
static bool
http_fields(struct http_request *r)
{
	const char *from = r->rest.p;
	struct str name, value;

	r->why = "A header line is not NAME: VALUE, or does not end in "
	    "carriage return and line feed.";
	for (int n = 0; r->rest.n > 0 && r->rest.p[0] != '\r'; n++) {
		if (n == WSP_MAX_HTTP_LINES)
			return http_refuse(r, 431, "The request has too many "
			    "header lines.");
		if (!http_piece(r, &name, http_is_token, ":") ||
		    !http_piece(r, &value, http_is_value, "\r\n") ||
		    !http_field(r, name, text_trim(value)))
			return false;
	}
	r->head = (struct str){ from, (size_t)(r->rest.p - from) };
	if (!http_word(r, "\r\n"))
		return false;
	if (r->minor > 0 && !r->field[HTTP_HOST].p)
		return http_refuse(r, 400, "The request has no Host header.");
	return true;
}

/*
 * Reads a request's head: its length with the empty line, 0 when more of it
 * must come, -400 or -431 with r->why.  It looks at the first
 * WSP_MAX_HTTP_HEAD bytes only, and never answers 0 when it was given them
 * all.
 */
static int
http_parse(struct http_request *r, const u8 *p, size_t n)
{
	*r = (struct http_request){
		.method = HTTP_OTHER,
		.rest = { (const char *)p, min_size(n, WSP_MAX_HTTP_HEAD) },
		.why = "The request line is not METHOD TARGET HTTP/1.1 with "
		    "single spaces.",
	};
	/* One empty line before the request is forgiven (RFC 9112, 2.2). */
	if ((n == 0 || p[0] != '\r' || http_word(r, "\r\n")) &&
	    http_request_line(r) && http_fields(r)) {
		r->upgrade = r->asks[0] && r->asks[1];
		if (!r->host.p)
			r->host = r->field[HTTP_HOST];
		return (int)(r->rest.p - (const char *)p);
	}
	if (r->status == 0 && n >= WSP_MAX_HTTP_HEAD)
		http_refuse(r, 431, "The request is too long.");
	return -r->status;
}

/*
 * The next header line of that name.  *cursor is 0 at first, and then where
 * the search goes on.
 */
static bool
http_header_next(const struct http_request *r, const char *name,
    size_t *cursor, struct str *value)
{
	struct str rest = text_from(r->head, *cursor), field;

	while (split_next(&rest, '\n', value)) {
		*cursor = r->head.n - rest.n;
		split_next(value, ':', &field);
		*value = text_trim(*value);
		if (text_same_as(field, name))
			return true;
	}
	return false;
}

/* A cookie by its name, in which case counts; of several the first, which is
 * that of the longest path (RFC 6265, 5.4). */
static bool
http_cookie(const struct http_request *r, const char *name, struct str *value)
{
	struct str list, pair, key;
	size_t cursor = 0;

	while (http_header_next(r, "Cookie", &cursor, &list))
		while (split_next(&list, ';', &pair)) {
			pair = text_trim(pair);
			split_next(&pair, '=', &key);
			if (!str_is(key, name))
				continue;
			*value = pair;
			return true;
		}
	return false;
}

/*
 * A parameter of a query by its name, which may be written in any case and
 * with percent signs.  1 and the value, undecoded; 0 when there is none; -1
 * when it is there twice.  What cannot be decoded is some other name.
 */
static int
http_parameter(struct str *value, struct str query, const char *name)
{
	struct str pair, key;
	char plain[64];
	int found = 0;

	assert(strlen(name) < sizeof plain);
	while (split_next(&query, '&', &pair)) {
		int n;

		split_next(&pair, '=', &key);
		n = percent_decode(plain, sizeof plain, key);
		if (n < 0 || !text_same_as((struct str){ plain, (size_t)n },
		    name))
			continue;
		if (found++ > 0)
			return -1;
		*value = pair;
	}
	return found;
}

/*
 * 16 bytes in base64.  The bits behind the last byte may be anything, as
 * they are in the example that the RFC gives (RFC 6455, 4.1).
 */
static bool
http_is_key(struct str key)
{
	if (key.n != 24 || memcmp(key.p + 22, "==", 2) != 0)
		return false;
	for (size_t i = 0; i < 22; i++)
		if (base64_value(key.p[i], BASE64) > 63)
			return false;
	return true;
}

/*
 * May a request for a service become a WebSocket?  0, or 426 or 400 with
 * the sentence to answer with, and header lines unless those of the status
 * will do.
 */
static int
http_upgrade_check(const struct http_request *r, const char **why,
    const char **headers)
{
	if (r->minor == 0 || r->method != HTTP_GET || !r->upgrade) {
		*why = "This is a WebSocket service; connect with a WebSocket "
		    "client.";
		return 426;
	}
	if (!str_is(r->field[HTTP_VERSION], "13")) {
		*why = "The WebSocket version must be 13.";
		*headers = "Upgrade: websocket\r\n"
		    "Sec-WebSocket-Version: 13\r\n";
		return 426;
	}
	*why = "The Sec-WebSocket-Key header is not 16 bytes in base64.";
	return http_is_key(r->field[HTTP_KEY]) ? 0 : 400;
}

/* 101, with the proof that we have read the key (RFC 6455, 4.2.2).  An empty
 * protocol: no such header. */
static void
http_accept(struct out *o, struct str key, struct str protocol)
{
	static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
	br_sha1_context sha1;
	u8 hash[br_sha1_SIZE];
	char proof[28];

	br_sha1_init(&sha1);
	br_sha1_update(&sha1, key.p, key.n);
	br_sha1_update(&sha1, guid, sizeof guid - 1);
	br_sha1_out(&sha1, hash);

	out_text(o, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
	    "Connection: Upgrade\r\nSec-WebSocket-Accept: ");
	out_bytes(o, proof, base64_encode(proof, hash, sizeof hash,
	    BASE64));
	if (protocol.n > 0) {
		out_text(o, "\r\nSec-WebSocket-Protocol: ");
		out_str(o, protocol);
	}
	out_text(o, "\r\n\r\n");
}

/* The words for a status (RFC 9110, 15; RFC 6585). */
static const char *
http_reason(int status)
{
	static const struct {
		int status;
		const char *reason;
	} row[] = {
		{ 200, "OK" }, { 400, "Bad Request" }, { 401, "Unauthorized" },
		{ 403, "Forbidden" }, { 404, "Not Found" },
		{ 405, "Method Not Allowed" }, { 408, "Request Timeout" },
		{ 409, "Conflict" }, { 426, "Upgrade Required" },
		{ 429, "Too Many Requests" },
		{ 431, "Request Header Fields Too Large" },
		{ 503, "Service Unavailable" },
	};

	for (size_t i = 0; i < COUNT(row); i++)
		if (row[i].status == status)
			return row[i].reason;
	return "Error";
}

/* The header lines that a status comes with. */
static const char *
http_status_headers(int status)
{
	switch (status) {
	case 401:
		return "WWW-Authenticate: Bearer\r\n";
	case 405:
		return "Allow: GET, HEAD\r\n";
	case 426:
		return "Upgrade: websocket\r\n";
	case 429:
	case 503:
		return "Retry-After: 5\r\n";
	}
	return "";
}

/*
 * Every answer but 101.  `headers` are further header lines with their ends;
 * a type of NULL is plain text.  A 426 names the Upgrade it wants as an
 * option of the connection (RFC 9110, 7.8), which ends all the same.
 */
static void
http_response(struct out *o, int status, const char *headers, const char *type,
    struct str body, bool head_only)
{
	out_print(o, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n"
	    "Content-Length: %zu\r\nConnection: %sclose\r\n"
	    "X-Content-Type-Options: nosniff\r\n%s\r\n", status,
	    http_reason(status), type ? type : "text/plain; charset=utf-8",
	    body.n, status == 426 ? "Upgrade, " : "", headers);
	if (!head_only)
		out_str(o, body);
}

FAST_CODE

/* ----- 6. Frames ---------------------------------------------------------
 *
 * RFC 6455, section 5, from a server's side: reads the headers of masked
 * client frames and writes those of our own, which are never masked and
 * always one whole message.  Everything the RFC calls a failure is refused
 * here, with the close code as a negative number, and at the first byte that
 * shows it.  Payloads are not kept: the caller unmasks them where they lie.
 */

/* Opcodes (RFC 6455, 5.2); from FRAME_CLOSE on they are control frames. */
enum frame_opcode {
	FRAME_CONTINUATION = 0,
	FRAME_TEXT = 1,
	FRAME_BINARY = 2,
	FRAME_CLOSE = 8,
	FRAME_PING = 9,
	FRAME_PONG = 10
};

/*
 *  byte 1      byte 2        0, 2 or 8 bytes   4 bytes
 * +-+---+----+ +-+-------+ +-----------------+ +------+
 * |F|RSV| op | |M| length| | length, if 126, | | mask |  payload ...
 * | |000|code| |1|       | | 127 in byte 2   | |      |
 * +-+---+----+ +-+-------+ +-----------------+ +------+
 */
#define FRAME_FIN    0x80
#define FRAME_RSV    0x70
#define FRAME_OPCODE 0x0f
#define FRAME_MASKED 0x80
#define FRAME_LENGTH 0x7f

#define FRAME_MAX_CONTROL 125 /* the payload of a control frame */
#define FRAME_HEAD_MAX    10  /* a header of ours: no mask */
#define FRAME_MAX_REASON  (FRAME_MAX_CONTROL - 2)

struct frame {
	bool fin;
	u8 opcode;
	u8 mask[4];
	size_t length; /* of the payload; at most `max`, see frame_decode() */
};

/* A client's message while its frames come in; all zero between messages. */
struct message_in {
	u8 opcode;  /* FRAME_TEXT or FRAME_BINARY; 0: none begun */
	u8 utf8;    /* where a text stands, see utf8_run() */
	u32 length; /* bytes of payload so far */
};

/* Is this a first byte that may follow, `begun` being the message's opcode?
 * No extension is ever agreed, so the RSV bits are zero. */
static bool
frame_first_valid(u8 byte, u8 begun)
{
	if (byte & FRAME_RSV)
		return false;
	switch (byte & FRAME_OPCODE) {
	case FRAME_CONTINUATION:
		return begun != 0;
	case FRAME_TEXT:
	case FRAME_BINARY:
		return begun == 0;
	case FRAME_CLOSE:
	case FRAME_PING:
	case FRAME_PONG:
		return (byte & FRAME_FIN) != 0;
	}
	return false;
}

/* Reads the length that begins in byte 2: >0 bytes before the mask, 0 need
 * more, -1002 when it is not in its shortest form or has its highest bit. */
static int
frame_length(u64 *length, const u8 *p, size_t n)
{
	*length = p[1] & FRAME_LENGTH;
	if (*length < 126)
		return 2;
	if (*length == 126) {
		if (n < 4)
			return 0;
		*length = load16(p + 2);
		return *length < 126 ? -WSP_CLOSE_PROTOCOL : 4;
	}
	if (n > 2 && p[2] & 0x80)
		return -WSP_CLOSE_PROTOCOL;
	if (n < 10)
		return 0;
	*length = load64(p + 2);
	return *length <= UINT16_MAX ? -WSP_CLOSE_PROTOCOL : 10;
}

/*
 * Reads the header of one client frame: >0 its bytes, 0 need more, or minus
 * the close code that it earns.  Each check stands where its byte does, so
 * the first offence in the stream decides, however the reads fell.  A message
 * whose frames declare more than `max` bytes is -1009 before any is read.
 */
static int
frame_decode(struct frame *f, const struct message_in *m, const u8 *p,
    size_t n, size_t max)
{
	u64 length;
	int head;

	if (n == 0)
		return 0;
	if (!frame_first_valid(p[0], m->opcode))
		return -WSP_CLOSE_PROTOCOL;
	if (n == 1)
		return 0;
	f->fin = (p[0] & FRAME_FIN) != 0;
	f->opcode = p[0] & FRAME_OPCODE;
	if (!(p[1] & FRAME_MASKED))
		return -WSP_CLOSE_PROTOCOL;
	if (f->opcode >= FRAME_CLOSE &&
	    (p[1] & FRAME_LENGTH) > FRAME_MAX_CONTROL)
		return -WSP_CLOSE_PROTOCOL;
	head = frame_length(&length, p, n);
	if (head <= 0)
		return head;
	if (f->opcode < FRAME_CLOSE &&
	    (length > max || m->length > max - (size_t)length))
		return -WSP_CLOSE_TOO_BIG;
	f->length = (size_t)length;
	if (n < (size_t)head + sizeof f->mask)
		return 0;
	memcpy(f->mask, p + head, sizeof f->mask);
	return head + (int)sizeof f->mask;
}

/* Takes the mask off, or puts it on, n bytes of which the first is the
 * payload's byte number `phase`.  Eight at a time: the mask repeats every
 * four, so the same eight bytes fit at every step, in either byte order. */
static void
frame_unmask(u8 *p, size_t n, const u8 mask[4], size_t phase)
{
	u8 key[8];
	u64 keys, word;

	for (size_t i = 0; i < sizeof key; i++)
		key[i] = mask[(phase + i) % 4];
	memcpy(&keys, key, sizeof keys);
	for (; n >= sizeof word; p += sizeof word, n -= sizeof word) {
		memcpy(&word, p, sizeof word);
		word ^= keys;
		memcpy(p, &word, sizeof word);
	}
	for (size_t i = 0; i < n; i++)
		p[i] = p[i] ^ key[i];
}

/* Writes the header of a whole message of n bytes; returns its size. */
static size_t
frame_head(u8 to[FRAME_HEAD_MAX], u8 opcode, size_t n)
{
	to[0] = FRAME_FIN | opcode;
	if (n < 126) {
		to[1] = (u8)n;
		return 2;
	}
	if (n <= UINT16_MAX) {
		to[1] = 126;
		store16(to + 2, (u16)n);
		return 4;
	}
	to[1] = 127;
	store64(to + 2, n);
	return 10;
}

/* May a Close frame carry this code, ours or a peer's?  Not 1004 to 1006 and
 * 1015, which are never on a wire, nor what nobody has defined (RFC 6455,
 * 7.4). */
static bool
close_code_to_send(u32 code)
{
	return (code >= 1000 && code <= 1003) ||
	    (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

/* Reads the body of a Close frame, unmasked: 0, or minus the code to answer
 * with.  An empty body is code 1005 (RFC 6455, 7.1.5). */
static int
close_parse(u16 *code, struct str *reason, const u8 *p, size_t n)
{
	*code = WSP_CLOSE_NO_CODE;
	*reason = STR("");
	if (n == 0)
		return 0;
	if (n < 2 || !close_code_to_send(load16(p)))
		return -WSP_CLOSE_PROTOCOL;
	if (!text_is_utf8(p + 2, n - 2))
		return -WSP_CLOSE_BAD_TEXT;
	*code = load16(p);
	*reason = (struct str){ (const char *)p + 2, n - 2 };
	return 0;
}

/* Writes a whole Close frame; returns its size.  Code 1005 stands for the
 * empty body that it was read from. */
static size_t
close_frame(u8 to[2 + FRAME_MAX_CONTROL], u16 code, struct str reason)
{
	assert(reason.n <= FRAME_MAX_REASON);
	if (code == WSP_CLOSE_NO_CODE)
		return frame_head(to, FRAME_CLOSE, 0);
	(void)frame_head(to, FRAME_CLOSE, 2 + reason.n);
	store16(to + 2, code);
	if (reason.n > 0)
		memcpy(to + 4, reason.p, reason.n);
	return 4 + reason.n;
}

/* ----- 7. Requests -------------------------------------------------------
 *
 * The push socket's wire format, both ways: a datagram into a request, a
 * reply out, and a reply into its parts for the client verbs.  A request is
 * cut into slices of the datagram and nothing is copied.  Every refusal has
 * its code, and a sentence that names the word at fault; codes are decided
 * in one order, and the first reason stays.
 *
 *     VERB [name=value ...] [TARGET]\n
 *     BODY
 */
enum verb {
	VERB_SEND, VERB_LIST, VERB_TAG, VERB_CLOSE, VERB_ABORT, VERB_STATS,
	VERB_WATCH, VERB_PING, VERB_ALLOW, VERB_DENY
};

enum kind { KIND_TEXT, KIND_JSON, KIND_BINARY };

/* In the order in which they are checked. */
enum refusal {
	REFUSED_NOT, REFUSED_BAD_REQUEST, REFUSED_UNKNOWN_VERB, REFUSED_DENIED,
	REFUSED_BAD_OPTION, REFUSED_BAD_TARGET, REFUSED_TOO_BIG,
	REFUSED_BAD_UTF8, REFUSED_BAD_TAG, REFUSED_UNKNOWN_SOCKET,
	REFUSED_QUEUE_FULL, REFUSED_NO_ROOM
};

/* Options by number, so that a set of them is a word of bits. */
enum option {
	OPTION_REF, OPTION_KIND, OPTION_TTL, OPTION_ACK, OPTION_KEY,
	OPTION_RETAIN, OPTION_FORMAT, OPTION_FROM, OPTION_REPLACE, OPTION_CODE
};

#define OPTION_BIT(option) (1U << (option))

struct request {
	enum verb verb;
	enum refusal refusal; /* the first reason; REFUSED_NOT while good */
	unsigned given;       /* OPTION_BIT()s that the sender wrote */
	enum kind kind;       /* of the message, or format= of the reply */
	u16 code;             /* of close, or the status of deny */
	u32 ttl_s, ack_s;     /* seconds; 0: none */
	u64 from;             /* cursor of list; 0: from the beginning */
	u64 ticket;           /* the number that allow and deny answer */
	struct str ref, key;  /* empty: none */
	struct str target;    /* its text; "*" where it may be left out */
	struct str body;      /* what was received of it */
	size_t body_full;     /* its length before the buffer cut it */
	struct str word;      /* of the sender, at hand */
	char why[192];        /* one sentence for people, when refused */
};

static bool
request_has(const struct request *r, enum option option)
{
	return (r->given & OPTION_BIT(option)) != 0;
}

static const char *
refusal_code(enum refusal e)
{
	static const char *const code[] = {
		[REFUSED_NOT] = "ok",
		[REFUSED_BAD_REQUEST] = "bad-request",
		[REFUSED_UNKNOWN_VERB] = "unknown-verb",
		[REFUSED_DENIED] = "denied",
		[REFUSED_BAD_OPTION] = "bad-option",
		[REFUSED_BAD_TARGET] = "bad-target",
		[REFUSED_TOO_BIG] = "too-big",
		[REFUSED_BAD_UTF8] = "bad-utf8",
		[REFUSED_BAD_TAG] = "bad-tag",
		[REFUSED_UNKNOWN_SOCKET] = "unknown-socket",
		[REFUSED_QUEUE_FULL] = "queue-full",
		[REFUSED_NO_ROOM] = "no-room",
	};

	return code[e];
}

/* A sender's word as a sentence may show it: short, and printable ASCII. */
static void
why_word(struct out *o, struct str word)
{
	size_t n = min_size(word.n, 40);

	out_char(o, '"');
	for (size_t i = 0; i < n; i++) {
		char c = word.p[i];

		out_char(o, c >= ' ' && c <= '~' ? c : '?');
	}
	out_text(o, n < word.n ? "...\"" : "\"");
}

/* Refuses, unless that has happened: an earlier reason stays.  The sentence is
 * two texts and, behind a space, the sender's word. */
static enum refusal
request_refuse(struct request *r, enum refusal e, const char *what,
    const char *text)
{
	struct out o = out_to(r->why, sizeof r->why - 1);

	if (r->refusal != REFUSED_NOT)
		return r->refusal;
	out_text(&o, what);
	out_text(&o, text);
	if (o.p[o.n - 1] == ' ')
		why_word(&o, r->word);
	o.p[o.n] = '\0';
	return r->refusal = e;
}

static const struct option_rule {
	const char *name, *takes;
} option_rules[] = {
	[OPTION_REF] = { "ref", " takes 1 to 64 bytes of UTF-8 without white "
	    "space or control characters, not " },
	[OPTION_KIND] = { "kind", " takes text, json or binary, not " },
	[OPTION_TTL] = { "ttl", " takes 0 to 999999999 seconds, not " },
	[OPTION_ACK] = { "ack", " takes 1 to 3600 seconds, not " },
	[OPTION_KEY] = { "key", " takes 1 to 64 bytes without spaces, not " },
	[OPTION_RETAIN] = { "retain", " takes only 1, not " },
	[OPTION_FORMAT] = { "format", " takes text or json, not " },
	[OPTION_FROM] = { "from", " takes the number after next= in a reply, "
	    "not " },
	[OPTION_REPLACE] = { "replace", " takes only 1, not " },
	[OPTION_CODE] = { "code", " takes 1000-1003, 1007-1014 or 3000-4999, "
	    "not " },
};

/* Takes one option's value; false when it is not well-formed. */
static bool
option_take(struct request *r, enum option option, struct str value)
{
	u64 v = 0;
	bool good = text_u64(&v, value);

	switch (option) {
	case OPTION_REF:
		/* Given twice, the first well-formed one names the reply. */
		good = value.n >= 1 && value.n <= WSP_MAX_REF &&
		    text_is_clean(value);
		if (good && r->ref.n == 0)
			r->ref = value;
		return good;
	case OPTION_KIND:
	case OPTION_FORMAT:
		r->kind = str_is(value, "json") ? KIND_JSON : option ==
		    OPTION_KIND && str_is(value, "binary") ? KIND_BINARY :
		    KIND_TEXT;
		return r->kind != KIND_TEXT || str_is(value, "text");
	case OPTION_TTL:
		r->ttl_s = (u32)v;
		return good && v <= 999999999;
	case OPTION_ACK:
		r->ack_s = (u32)v;
		return v >= 1 && v <= 3600;
	case OPTION_KEY:
		r->key = value;
		return value.n >= 1 && value.n <= WSP_MAX_KEY;
	case OPTION_FROM:
		r->from = v;
		return good;
	case OPTION_RETAIN:
	case OPTION_REPLACE:
		return str_is(value, "1");
	case OPTION_CODE:
		good = v <= 4999 && close_code_to_send((u32)v);
		if (good)
			r->code = (u16)v;
		return good;
	}
	return false;
}

/* What may follow a verb's options. */
enum operand {
	OPERAND_TARGET,     /* must be there */
	OPERAND_MAY_TARGET, /* `*` when it is not */
	OPERAND_NONE,
	OPERAND_TICKET      /* allow and deny: a number, then words */
};

static const struct verb_rule {
	const char *name;
	u8 operand;  /* enum operand */
	bool has_body;
	u16 options; /* beside ref=, which all take */
} verb_rules[] = {
	[VERB_SEND] = { "send", OPERAND_TARGET, true,
	    OPTION_BIT(OPTION_KIND) | OPTION_BIT(OPTION_TTL) |
	    OPTION_BIT(OPTION_ACK) | OPTION_BIT(OPTION_KEY) |
	    OPTION_BIT(OPTION_RETAIN) },
	[VERB_LIST] = { "list", OPERAND_MAY_TARGET, false,
	    OPTION_BIT(OPTION_FORMAT) | OPTION_BIT(OPTION_FROM) },
	[VERB_TAG] = { "tag", OPERAND_TARGET, true,
	    OPTION_BIT(OPTION_REPLACE) },
	[VERB_CLOSE] = { "close", OPERAND_TARGET, true,
	    OPTION_BIT(OPTION_CODE) },
	[VERB_ABORT] = { "abort", OPERAND_TARGET, false, 0 },
	[VERB_STATS] = { "stats", OPERAND_NONE, false,
	    OPTION_BIT(OPTION_FORMAT) },
	[VERB_WATCH] = { "watch", OPERAND_MAY_TARGET, false, 0 },
	[VERB_PING] = { "ping", OPERAND_NONE, false, 0 },
	[VERB_ALLOW] = { "allow", OPERAND_TICKET, false, 0 },
	[VERB_DENY] = { "deny", OPERAND_TICKET, false, 0 },
};

static bool
target_begins(struct str token)
{
	return memchr("*/$=", token.p[0], 4) != NULL;
}

/* Cuts the datagram into its header line and its body. */
static enum refusal
request_split(struct request *r, struct str *line, const u8 *p, size_t n,
    size_t full_n)
{
	struct str rest = { (const char *)p, n };

	(void)split_next(&rest, '\n', line);
	r->body = rest.p ? rest : STR("");
	r->body_full = r->body.n + (full_n - n);
	if ((!rest.p && full_n > n) || line->n > WSP_MAX_REQUEST_LINE)
		return request_refuse(r, REFUSED_BAD_REQUEST, "the header line",
		    " is over 1024 bytes; the body begins after the first "
		    "line feed");
	if (line->n > 0 && memchr(line->p, '\0', line->n))
		return request_refuse(r, REFUSED_BAD_REQUEST,
		    "the header line", " has a NUL byte in it");
	return REFUSED_NOT;
}

/* Cuts the verb from the line.  Of one that nobody knows only ref= is of
 * interest, as of `ping`. */
static enum refusal
request_verb(struct request *r, struct str *line)
{
	unsigned i = 0;

	if (!token_next(line, &r->word) || target_begins(r->word))
		return request_refuse(r, REFUSED_BAD_REQUEST,
		    "the request does not begin with a verb", "");
	while (i < COUNT(verb_rules) && !str_is(r->word, verb_rules[i].name))
		i++;
	r->verb = (enum verb)i;
	if (i < COUNT(verb_rules))
		return REFUSED_NOT;
	r->verb = VERB_PING;
	return request_refuse(r, REFUSED_UNKNOWN_VERB, "the verbs are send, "
	    "list, tag, close, abort, stats, watch and ping, not ", "");
}

/* Takes one `name=value`. */
static enum refusal
request_option(struct request *r, struct str value)
{
	const struct verb_rule *verb = &verb_rules[r->verb];
	unsigned i = 0, takes = verb->options | OPTION_BIT(OPTION_REF);

	(void)split_next(&value, '=', &r->word);
	if (!value.p)
		return request_refuse(r, REFUSED_BAD_OPTION, "neither an "
		    "option, name=value, nor the beginning of a target: ", "");
	while (i < COUNT(option_rules) &&
	    !str_is(r->word, option_rules[i].name))
		i++;
	if (!(takes >> i & 1))
		return request_refuse(r, REFUSED_BAD_OPTION, verb->name,
		    " has no option ");
	r->word = value;
	if (!option_take(r, (enum option)i, value))
		request_refuse(r, REFUSED_BAD_OPTION, option_rules[i].name,
		    option_rules[i].takes);
	if (request_has(r, (enum option)i))
		request_refuse(r, REFUSED_BAD_OPTION, option_rules[i].name,
		    " is given twice");
	r->given |= OPTION_BIT(i);
	return r->refusal;
}

/* Takes the next word, a number. */
static bool
number_next(u64 *v, struct str *rest)
{
	struct str token;

	return token_next(rest, &token) && text_u64(v, token);
}

/* Takes `N` of allow, `N [STATUS]` of deny.  What follows `allow N` stays
 * in r->target: words that tag_parse() reads. */
static void
request_ticket(struct request *r)
{
	struct str token;
	int v = 403;
	bool good = number_next(&r->ticket, &r->target);

	if (good && r->verb == VERB_DENY) {
		if (token_next(&r->target, &token))
			v = (int)text_number(token, 999);
		good = r->target.n == 0 && (v == 401 || v == 403 ||
		    v == 404 || v == 429 || v == 503);
		r->code = (u16)v;
	}
	if (!good)
		request_refuse(r, REFUSED_BAD_OPTION, "allow takes the number "
		    "of the auth event and tags, deny the number and perhaps "
		    "401, 403, 404, 429 or 503", "");
}

/* Checks that there is a target, or none, as the verb has it. */
static void
request_operand(struct request *r, const struct verb_rule *verb)
{
	bool is_there = r->target.n > 0;

	if (verb->operand == OPERAND_TICKET)
		request_ticket(r);
	else if (verb->operand == OPERAND_NONE && is_there)
		request_refuse(r, REFUSED_BAD_TARGET, verb->name,
		    " takes no target");
	else if (verb->operand == OPERAND_TARGET && !is_there)
		request_refuse(r, REFUSED_BAD_TARGET, verb->name,
		    " needs a target, such as * or $name:value");
	else if (verb->operand == OPERAND_MAY_TARGET && !is_there)
		r->target = STR("*");
}

/*
 * Reads a datagram of full_n bytes of which n were received; `allowed` says
 * whether its sender may push.  The target and the body wait for
 * target_parse() and request_body().
 */
static enum refusal
request_parse(struct request *r, const u8 *p, size_t n, size_t full_n,
    bool allowed)
{
	const struct verb_rule *verb;
	struct str line, token;

	*r = (struct request){ .code = WSP_CLOSE_NORMAL };
	if (request_split(r, &line, p, n, full_n) != REFUSED_NOT)
		return r->refusal;
	while (line.n > 0 && line.p[line.n - 1] == ' ')
		line.n--;
	if (request_verb(r, &line) == REFUSED_BAD_REQUEST)
		return r->refusal;
	verb = &verb_rules[r->verb];
	if (!allowed)
		request_refuse(r, REFUSED_DENIED,
		    "this user may not push; see --push-allow", "");
	while (token_next(&line, &token)) {
		if (target_begins(token) || (verb->operand == OPERAND_TICKET &&
		    text_is_digit(token.p[0]))) {
			r->target = (struct str){ token.p, token.n + line.n };
			break;
		}
		request_option(r, token);
	}
	request_operand(r, verb);
	if (!verb->has_body) {
		r->body = STR("");
		r->body_full = 0;
	}
	return r->refusal;
}

/* Checks the body of a request whose target is good: max_message is
 * --max-message. */
static enum refusal
request_body(struct request *r, size_t max_message)
{
	bool reason = r->verb == VERB_CLOSE;

	if (r->body_full > (reason ? FRAME_MAX_REASON : max_message))
		return request_refuse(r, REFUSED_TOO_BIG, reason ?
		    "the reason is over 123 bytes" :
		    "the body is over --max-message", "");
	if (r->verb != VERB_TAG && r->kind != KIND_BINARY &&
	    !text_is_utf8(r->body.p, r->body.n))
		return request_refuse(r, REFUSED_BAD_UTF8, "the body is not "
		    "valid UTF-8; only send kind=binary takes any bytes", "");
	return r->refusal;
}

/*
 * Replies:
 *
 *     ok COUNT[ name=value ...]\n[BODY]
 *     error CODE[ ref=TOKEN] ONE SENTENCE\n
 *     acked N of COUNT[ ref=TOKEN]\n
 */

/* Begins a reply; the caller adds to the line and ends it. */
static void
reply_ok(struct out *o, u32 count)
{
	out_print(o, "ok %u", count);
}

static void
reply_number(struct out *o, const char *name, u32 v)
{
	out_print(o, " %s=%u", name, v);
}

static void
reply_ref(struct out *o, struct str ref)
{
	if (ref.n > 0)
		out_print(o, " ref=%.*s", STR_ARGS(ref));
}

/* Writes a whole reply. */
static void
reply_error(struct out *o, enum refusal e, struct str ref,
    const char *sentence)
{
	out_print(o, "error %s", refusal_code(e));
	reply_ref(o, ref);
	out_print(o, " %s\n", sentence);
}

/* Writes a whole reply. */
static void
reply_acked(struct out *o, u32 n, u32 of, struct str ref)
{
	out_print(o, "acked %u of %u", n, of);
	reply_ref(o, ref);
	out_char(o, '\n');
}

enum reply_kind { REPLY_BAD, REPLY_OK, REPLY_ERROR, REPLY_ACKED };

struct reply {
	enum reply_kind kind;
	u64 count;                  /* of ok; the N of acked */
	u64 of;                     /* of acked */
	u64 open, away, full, next; /* of ok; 0 when unset */
	struct str ref;             /* empty: none */
	struct str code, sentence;  /* of error */
	struct str body;            /* of ok */
};

/* Takes one `name=value` of a reply; names we do not know are a newer
 * server's business. */
static bool
reply_field(struct reply *r, struct str value)
{
	const struct {
		const char *name;
		u64 *to;
	} number[] = { { "open", &r->open }, { "away", &r->away },
		{ "full", &r->full }, { "next", &r->next } };
	struct str name;

	(void)split_next(&value, '=', &name);
	if (str_is(name, "ref"))
		r->ref = value;
	for (size_t i = 0; i < COUNT(number); i++)
		if (str_is(name, number[i].name))
			return text_u64(number[i].to, value);
	return value.p != NULL;
}

/* The rest of `error ...`. */
static enum reply_kind
reply_parse_error(struct reply *r, struct str line)
{
	struct str token, rest;

	if (!token_next(&line, &r->code))
		return REPLY_BAD;
	rest = line;
	if (token_next(&rest, &token) && str_begins(token, "ref=")) {
		r->ref = text_from(token, 4);
		line = rest;
	}
	r->sentence = text_trim(line);
	return REPLY_ERROR;
}

/* Reads what a server replied; what is no reply is REPLY_BAD. */
static enum reply_kind
reply_parse(struct reply *r, const char *p, size_t n)
{
	struct str rest = { p, n }, line, token;
	bool acked;

	*r = (struct reply){ .kind = REPLY_BAD };
	if (!split_next(&rest, '\n', &line) || !token_next(&line, &token))
		return REPLY_BAD;
	r->body = rest.p ? rest : STR("");
	if (str_is(token, "error"))
		return r->kind = reply_parse_error(r, line);
	acked = str_is(token, "acked");
	if ((!acked && !str_is(token, "ok")) || !number_next(&r->count, &line))
		return REPLY_BAD;
	if (acked && (!token_next(&line, &token) || !str_is(token, "of") ||
	    !number_next(&r->of, &line)))
		return REPLY_BAD;
	while (token_next(&line, &token))
		if (!reply_field(r, token))
			return REPLY_BAD;
	return r->kind = acked ? REPLY_ACKED : REPLY_OK;
}

/* ----- 8. Targets --------------------------------------------------------
 *
 * The selection language: a text becomes an array of terms, parsed once and
 * matched many times by the rooms that know the sockets.  Terms are slices
 * of the text, which must outlive them.  Whether a service or a socket is
 * there is not asked here.  The notations that targets share with the socket
 * table live here too: service names, socketIds, and tags as an id or the
 * body of a `tag` request spells them.
 */
enum term_kind {
	TERM_SOCKET,    /* one socket of a service: value is its id */
	TERM_SERVICE,   /* every socket of a service */
	TERM_TAG,       /* has the tag */
	TERM_TAG_VALUE, /* has it with this value */
	TERM_TAG_LIST,  /* ... with one of the values in a list */
	TERM_OPEN,
	TERM_AWAY
};

struct target_term {
	u8 kind;
	bool stateful;    /* of a socket */
	struct str name;  /* of the service or the tag */
	struct str value; /* a list: the text between its brackets */
};

/* The shortest term with a row is `$a`, and a space stands between two. */
#define TARGET_TERMS ((WSP_MAX_REQUEST_LINE + 1) / 3)

struct target {
	size_t n; /* terms; `*` needs none */
	const struct target_term *socket; /* the one socketId, or NULL */
	struct str text;
	struct target_term terms[TARGET_TERMS];
};

/* [A-Za-z0-9_.]{1,64}, not `.` or `..`: a name is a path segment. */
static bool
service_name_valid(struct str s)
{
	if (s.n < 1 || s.n > WSP_MAX_SERVICE || str_is(s, ".") ||
	    str_is(s, ".."))
		return false;
	for (size_t i = 0; i < s.n; i++)
		if (!text_is_one(s.p[i], "_."))
			return false;
	return true;
}

static bool
target_list_has(struct str list, struct str value)
{
	struct str one;

	while (split_next(&list, ',', &one))
		if (str_eq(one, value))
			return true;
	return false;
}

/* The term parsers below return NULL, or the sentence that says why not. */

/* `/services/NAME`, or `/services/NAME-s-ID` and `-v-`.  The first `-` ends
 * NAME, which cannot hold one. */
static const char *
target_path(struct target *t, struct target_term *term, struct str token)
{
	struct str rest = token;

	term->kind = TERM_SERVICE;
	if (str_begins(token, "/services/")) {
		rest = text_from(token, strlen("/services/"));
		(void)split_next(&rest, '-', &term->name);
		if (!rest.p && service_name_valid(term->name))
			return NULL;
	}
	if (rest.n < 3 || (rest.p[0] != 's' && rest.p[0] != 'v') ||
	    rest.p[1] != '-' || !service_name_valid(term->name))
		return "a path in a target is /services/NAME, "
		    "/services/NAME-s-ID or /services/NAME-v-GUID";
	if (t->socket)
		return "a target has at most one socketId";
	term->kind = TERM_SOCKET;
	term->stateful = rest.p[0] == 's';
	term->value = text_from(rest, 2);
	t->socket = term;
	return NULL;
}

static const char *
target_tag(struct target_term *term, struct str token)
{
	struct str value = text_from(token, 1);

	(void)split_next(&value, ':', &term->name);
	if (term->name.n == 0)
		return "a tag in a target needs a name after the $";
	term->kind = TERM_TAG;
	if (!value.p)
		return NULL;
	term->kind = TERM_TAG_VALUE;
	term->value = value;
	if (value.n == 0 || value.p[0] != '[')
		return NULL;
	if (value.n <= 2 || value.p[value.n - 1] != ']')
		return "a list of values is [v1,v2], not empty and without "
		    "spaces";
	term->kind = TERM_TAG_LIST;
	term->value = (struct str){ value.p + 1, value.n - 2 };
	return NULL;
}

/* Reads one token into the next row; `*` restricts nothing and takes none. */
static const char *
target_term(struct target *t, struct str token)
{
	struct target_term *term = &t->terms[t->n];

	if (str_is(token, "*"))
		return NULL;
	if (t->n == COUNT(t->terms))
		return "the target has too many terms";
	*term = (struct target_term){ 0 };
	t->n++;
	if (token.p[0] == '/')
		return target_path(t, term, token);
	if (token.p[0] == '$')
		return target_tag(term, token);
	term->kind = str_is(token, "=open") ? TERM_OPEN : TERM_AWAY;
	if (term->kind == TERM_OPEN || str_is(token, "=away"))
		return NULL;
	return "a target's terms are *, /services/..., $name, $name:value, "
	    "=open and =away, and options stand before them";
}

/* Parses a whole target: NULL, or the sentence of bad-target. */
static const char *
target_parse(struct target *t, struct str text)
{
	const char *why = "the target is empty; * selects every socket";
	struct str token, rest = text;

	t->n = 0;
	t->socket = NULL;
	t->text = text;
	while (token_next(&rest, &token)) {
		why = target_term(t, token);
		if (why)
			break;
	}
	return why;
}

/* Writes the target so that equal ones have equal texts: its terms, one
 * space between two. */
static void
target_text(struct out *o, const struct target *t)
{
	struct str token, rest = t->text;
	const char *space = "";

	while (token_next(&rest, &token)) {
		out_text(o, space);
		out_str(o, token);
		space = " ";
	}
}

/* Tags, as the push socket and ids spell them.  `service` is a valid name,
 * but one that nobody may set. */
static bool
tag_name_valid(struct str s)
{
	return s.n >= 1 && s.n <= WSP_MAX_TAG_NAME && s.p[0] != '-' &&
	    memchr(s.p, ':', s.n) == NULL && text_is_clean(s);
}

static bool
tag_value_valid(struct str s)
{
	return s.n <= WSP_MAX_TAG_VALUE && text_is_clean(s);
}

/* What one line of a `tag` body asks for. */
struct tag_line {
	bool remove;
	struct str name, value;
	const char *why; /* one sentence, after -1 */
};

/* What is wrong with a tag's name or value, or NULL. */
static const char *
tag_wrong(const struct tag_line *t)
{
	if (!tag_name_valid(t->name))
		return "a tag's name is 1 to 32 bytes of UTF-8 without white "
		    "space, control characters, : or a leading -";
	if (str_is(t->name, "service"))
		return "nobody may set or remove the tag service";
	if (!tag_value_valid(t->value))
		return "a tag's value is 0 to 96 bytes of UTF-8 without white "
		    "space or control characters";
	return NULL;
}

/* Reads `name:value` or `-name`: 1, or -1 for bad-tag. */
static int
tag_parse(struct tag_line *t, struct str text)
{
	*t = (struct tag_line){ .remove = text.n > 0 && text.p[0] == '-' };
	if (t->remove) {
		t->name = text_from(text, 1);
		t->value = STR("");
	} else {
		t->value = text;
		(void)split_next(&t->value, ':', &t->name);
	}
	t->why = t->value.p ? tag_wrong(t) :
	    "a tag is name:value to set and -name to remove";
	return t->why == NULL ? 1 : -1;
}

/* Takes the next of the tags between which `at` stands, line feeds in the
 * body of `tag`: 1, 0 at the end, -1 for bad-tag. */
static int
tag_line_next(struct tag_line *t, struct str *rest, char at)
{
	struct str line;

	while (split_next(rest, at, &line))
		if (line.n > 0)
			return tag_parse(t, line);
	return 0;
}

/* Of so many lines the one for a name, or n. */
static u32
tag_line_find(const struct tag_line *lines, u32 n, struct str name)
{
	u32 k = 0;

	while (k < n && !str_eq(lines[k].name, name))
		k++;
	return k;
}

/* Do these set the tag of this name? */
static bool
tag_lines_set(const struct tag_line *line, u32 n, struct str name)
{
	return tag_line_find(line, n, name) < n;
}

/* Cuts the piece before the next `::` from an id. */
static bool
id_piece_next(struct str *rest, struct str *piece)
{
	if (text_upto(rest, "::", piece))
		return true;
	*piece = *rest;
	*rest = (struct str){ NULL, 0 };
	return piece->p;
}

/* Takes the next tag that an id spells, `id:10001::group_id:10002`; rest
 * begins as the id.  A name may come again: its last value wins. */
static bool
id_tag_next(struct str *rest, struct str *name, struct str *value)
{
	struct str piece;

	while (id_piece_next(rest, &piece)) {
		*value = piece;
		(void)split_next(value, ':', name);
		if (value->p != NULL && name->n > 0 && name->p[0] != '-' &&
		    !str_is(*name, "service"))
			return true;
	}
	return false;
}

/* Does a tag of this name follow in the rest of an id? */
static bool
id_tag_follows(struct str rest, struct str name)
{
	struct str other, value;

	while (id_tag_next(&rest, &other, &value))
		if (str_eq(other, name))
			return true;
	return false;
}

/* May a socket have this id's tags?  NULL, or the sentence. */
static const char *
id_tags_check(struct str id)
{
	struct str name, value;
	size_t names = 0;

	while (id_tag_next(&id, &name, &value)) {
		if (name.n > WSP_MAX_TAG_NAME)
			return "a tag name in the id is over 32 bytes";
		if (value.n > WSP_MAX_TAG_VALUE)
			return "a tag value in the id is over 96 bytes";
		if (!id_tag_follows(id, name) && ++names > WSP_MAX_TAGS)
			return "the id has more than 16 tags";
	}
	return NULL;
}

/* ----- 9. Store ----------------------------------------------------------
 *
 * Every message that waits in a queue, each once, however many queues hold
 * it.  Its bytes lie ready for the wire in one ring; its row in a fixed table
 * says where.  Queues name rows, so a message can move and nobody is told.
 *
 *        oldest                           newest
 *     ---+------+------+  gap  +------+------+------------
 *        | m 7  | m 2  |       | m 9  | m 4  |   free
 *     ---+------+------+-------+------+------+------------
 *                                            ^ end
 *
 * New messages go to the end.  A message that nobody holds leaves a gap.
 * When the end meets the oldest message, that one is moved to the end, so
 * that gaps gather in front of it: the ring is its own compactor.  A part of
 * the ring is kept free (STORE_SLACK), which bounds what moving costs: at
 * most that many bytes are moved for each byte that is stored.
 */
#define STORE_SLACK 16

/* Bytes of the ring for each row of the table.  Smaller messages than this
 * can use up the rows before the bytes. */
#define STORE_BYTES_PER_ROW 128

enum form {
	FORM_FRAME,  /* a finished frame, header and all */
	FORM_ELEMENT /* `,` and one element of a json batch */
};

struct message {
	int64_t expires;    /* in ms of the monotonic clock; 0: never */
	u8 form;            /* enum form */
	u8 waiter;          /* 1 + the waiter that counts it, or 0 */
	u8 key_n;           /* its key, behind the bytes for the wire */
	bool retained;
	bool victim;        /* chosen to make room */
	u32 place;          /* of its first byte in the ring */
	u32 n;              /* bytes for the wire */
	u32 body;           /* bytes that count in a queue */
	u32 holds;          /* queue entries, plus one when retained */
	u32 older, newer;   /* neighbours by place; row 0 is at both ends */
	u32 elder, younger; /* neighbours by age, likewise */
	u32 holder;         /* row of the first socket that held it */
	u32 leaving;        /* holds that the message at hand replaces */
};

struct store {
	u8 *bytes;
	u32 cap;              /* of bytes */
	u32 limit;            /* bytes that may be held */
	struct message *row;  /* row 0 is no message: both orders begin and end
	                       * there, its newer is the oldest */
	u32 rows;
	u32 fresh;            /* rows from here on were never used */
	u32 free;             /* first row given back, by newer; 0: none */
	u32 end;              /* where the next message goes */
	u32 held;             /* bytes in messages */
	u32 count;            /* messages */
	u32 mortal;           /* messages that expire */
};

/* Size of the ring that can hold `limit` bytes in messages of at most
 * `largest`, key included. */
static size_t
store_ring_size(u32 limit, u32 largest)
{
	return (size_t)limit + limit / STORE_SLACK + largest;
}

/* Opens a store whose memory stands in it, and zeroes else; row 0 too. */
static void
store_init(struct store *s, u32 cap, u32 limit, u32 rows)
{
	s->cap = cap;
	s->limit = limit;
	s->rows = rows;
	s->fresh = 1;
}

/* Bytes of the ring that a message takes. */
static u32
store_size(const struct message *m)
{
	return m->n + m->key_n;
}

static struct str
store_key(const struct store *s, const struct message *m)
{
	return (struct str){ (const char *)s->bytes + m->place + m->n,
		m->key_n };
}

static void
store_link_newest(struct store *s, u32 i)
{
	struct message *ends = s->row, *m = &s->row[i];

	m->older = ends->older;
	m->newer = 0;
	s->row[m->older].newer = i;
	ends->older = i;
}

static void
store_unlink(struct store *s, u32 i)
{
	const struct message *m = &s->row[i];

	s->row[m->older].newer = m->newer;
	s->row[m->newer].older = m->older;
}

static void
store_link_age(struct store *s, u32 i)
{
	struct message *ends = s->row, *m = &s->row[i];

	m->elder = ends->elder;
	m->younger = 0;
	s->row[m->elder].younger = i;
	ends->elder = i;
}

static void
store_unlink_age(struct store *s, u32 i)
{
	const struct message *m = &s->row[i];

	s->row[m->elder].younger = m->younger;
	s->row[m->younger].elder = m->elder;
}

/* A place for n bytes at the end as the ring lies now, or NONE.  The bytes
 * of a message never wrap; what is left before the wrap is skipped. */
static u32
store_place(const struct store *s, u32 n)
{
	u32 first;

	if (s->count == 0)
		return n <= s->cap ? 0 : NONE;
	first = s->row[s->row->newer].place;
	if (s->end <= first)
		return n <= first - s->end ? s->end : NONE;
	if (n <= s->cap - s->end)
		return s->end;
	return n <= first ? 0 : NONE;
}

/* Moves the oldest message to the end.  It always fits: at worst it slides
 * towards the end over its own bytes. */
static void
store_move_oldest(struct store *s)
{
	u32 i = s->row->newer;
	struct message *m = &s->row[i];
	u32 n = store_size(m), to = s->end;

	if (s->end > m->place && n > s->cap - s->end)
		to = 0;
	if (to != m->place)
		memmove(s->bytes + to, s->bytes + m->place, n);
	m->place = to;
	s->end = to + n;
	store_unlink(s, i);
	store_link_newest(s, i);
}

/* Makes n bytes free in one piece at the end, by moving each message once at
 * most.  NONE: too much is held. */
static u32
store_make_place(struct store *s, u32 n)
{
	u32 place = store_place(s, n);

	if (n > s->limit - s->held)
		return NONE;
	for (u32 moves = s->count; place == NONE && moves > 0; moves--) {
		store_move_oldest(s);
		place = store_place(s, n);
	}
	return place;
}

/* A row, or 0 when all are taken. */
static u32
store_new_row(struct store *s)
{
	u32 i = s->free;

	if (i != 0)
		s->free = s->row[i].newer;
	else if (s->fresh < s->rows)
		i = s->fresh++;
	return i;
}

/*
 * Takes a message of n bytes for the wire, `body` of which count, and a key.
 * The caller fills in the bytes at store_bytes() at once and then holds it, or
 * gives it back with store_release().  NONE: no room, and nothing changed but
 * the order of bytes.
 */
static u32
store_add(struct store *s, u32 n, u32 body, enum form form, struct str key)
{
	u32 size = n + (u32)key.n;
	u32 place = store_make_place(s, size);
	u32 i;

	if (place == NONE)
		return NONE;
	i = store_new_row(s);
	if (i == 0)
		return NONE;
	s->row[i] = (struct message){ .place = place, .n = n, .body = body,
		.holder = NONE, .form = (u8)form, .key_n = (u8)key.n };
	if (key.n > 0)
		memcpy(s->bytes + place + n, key.p, key.n);
	s->end = place + size;
	s->held += size;
	s->count++;
	store_link_newest(s, i);
	store_link_age(s, i);
	return i;
}

static u8 *
store_bytes(const struct store *s, u32 i)
{
	return s->bytes + s->row[i].place;
}

/* Frees a message that nobody holds. */
static void
store_release(struct store *s, u32 i)
{
	struct message *m = &s->row[i];

	if (m->holds > 0)
		return;
	if (m->expires != 0)
		s->mortal--;
	s->held -= store_size(m);
	s->count--;
	store_unlink(s, i);
	store_unlink_age(s, i);
	m->newer = s->free;
	s->free = i;
}

static void
store_let_go(struct store *s, u32 i)
{
	assert(s->row[i].holds > 0);
	s->row[i].holds--;
	store_release(s, i);
}

/* ----- 10. Queues --------------------------------------------------------
 *
 * Every socket's ring of messages, oldest first, with three positions:
 *
 *      0            sent       sent + frozen      count
 *      |  written,   |  half out   |     unsent     |
 *      |  not acked  |             |                |
 *
 * What is half out is frozen: it may not leave, and nothing may join it,
 * until its last byte is out (a TLS record that is sealed again must hold the
 * same bytes).  What leaves from the middle closes the gap; its number stays
 * missing.  One function, queue_take(), takes a message out, whatever for.
 */
struct entry {
	u32 message; /* its row in the store, perhaps | ENTRY_COUNTED */
	u32 number;  /* low half; grows along the ring */
};

/* A waiter counts this entry.  A retained message may enter a queue again
 * later: that entry is nobody's. */
#define ENTRY_COUNTED (UINT32_C(1) << 31)

struct queue {
	u64 last_number; /* of the newest entry; 0: there never was one */
	u32 bytes;       /* of bodies */
	u16 first;       /* place of entry 0 in the ring */
	u16 count;
	u16 sent;
	u16 frozen;
};

/* Why an entry leaves. */
enum leave {
	LEAVE_ACKED,       /* a Pong, or written where that counts as one */
	LEAVE_WRITTEN,     /* a volatile socket's, nobody waits */
	LEAVE_DROPPED,     /* overflow, unsent */
	LEAVE_UNCONFIRMED, /* overflow, written but not acknowledged */
	LEAVE_REPLACED,    /* a newer message has its key */
	LEAVE_EXPIRED,
	LEAVE_FORGOTTEN    /* the socket ends */
};

enum overflow { OVERFLOW_DROP_OLDEST, OVERFLOW_REFUSE, OVERFLOW_CLOSE };

/* A sender that waits for its message's fate on `count` sockets. */
struct waiter {
	bool used;
	u32 message;
	u32 count;
	u32 decided; /* sockets whose queue it has left */
	u32 acked;   /* of these, acknowledged */
};

_Static_assert(WSP_WAITERS <= 254, "a message names its waiter in a byte");

/* What is counted since start, and what it is, as /metrics says it. */
#define COUNTERS(X)                                                           \
	X(connections, "Connections accepted.")                               \
	X(handshakes_full, "TLS handshakes with a new session.")              \
	X(handshakes_resumed, "TLS handshakes that resumed a session.")       \
	X(handshakes_failed, "TLS handshakes that failed.")                   \
	X(messages_taken, "Messages taken from senders.")                     \
	X(delivered, "Messages written whole, once for each socket.")         \
	X(acknowledged, "Messages acknowledged, once for each socket.")       \
	X(dropped, "Unsent messages that overflow or eviction took.")         \
	X(replaced, "Unsent messages replaced by one with their key.")        \
	X(expired, "Unsent messages whose ttl was over.")                     \
	X(unconfirmed, "Written messages that yielded before their Pong.")    \
	X(pongs_missed, "Pings that no Pong answered in time.")               \
	X(forgotten, "Messages that went with their socket.")                 \
	X(refused, "Requests on the push socket refused.")                    \
	X(replies_lost, "Replies to senders that could not be sent.")         \
	X(events_lost, "Events to watchers that could not be sent.")          \
	X(inbound_messages, "Messages from clients.")                         \
	X(inbound_dropped, "Messages from clients that nobody wanted.")       \
	X(handler_dropped, "Events that a service did not take.")             \
	X(http_refused, "HTTP requests refused.")                             \
	X(turned_away, "Connections closed at accept by a limit.")

struct counters {
#define X(name, help) u64 name;
	COUNTERS(X)
#undef X
};

/* All queues, and what they share. */
struct queues {
	struct store store;
	struct queue *queue;   /* one a socket row */
	struct entry *ring;    /* `cap` for each queue */
	u32 *drops;            /* a socket's drops, one a row */
	u16 cap;               /* messages in a queue */
	u32 byte_cap;          /* bytes in a queue */
	u32 waiters;           /* in use */
	struct counters total;
	struct waiter waiter[WSP_WAITERS];
};

static inline struct entry *
queue_entry(const struct queues *t, u32 i, u32 at)
{
	const struct queue *q = &t->queue[i];
	u32 place = q->first + at;

	assert(at < q->count);
	if (place >= t->cap)
		place -= t->cap;
	return &t->ring[(size_t)i * t->cap + place];
}

static inline u32
queue_message(const struct queues *t, u32 i, u32 at)
{
	return queue_entry(t, i, at)->message & ~ENTRY_COUNTED;
}

static inline struct message *
queue_row(const struct queues *t, u32 i, u32 at)
{
	return &t->store.row[queue_message(t, i, at)];
}

/* An entry's whole number, from the half that it keeps. */
static u64
queue_number(const struct queues *t, u32 i, u32 at)
{
	u64 last = t->queue[i].last_number;

	return last - (u32)((u32)last - queue_entry(t, i, at)->number);
}

/* A page that is never used stays untouched. */
static void
queue_reset(struct queues *t, u32 i)
{
	if (t->queue[i].last_number != 0)
		t->queue[i] = (struct queue){ 0 };
	if (t->drops[i] != 0)
		t->drops[i] = 0;
}

static void
waiter_count(struct queues *t, const struct message *m, bool acked)
{
	struct waiter *w;

	if (m->waiter == 0)
		return;
	w = &t->waiter[m->waiter - 1];
	w->decided++;
	w->acked += acked;
}

static void
queue_count_leave(struct queues *t, u32 i, enum leave why)
{
	switch (why) {
	case LEAVE_ACKED:
		t->total.acknowledged++;
		break;
	case LEAVE_WRITTEN:
		break;
	case LEAVE_DROPPED:
		t->total.dropped++;
		t->drops[i]++;
		break;
	case LEAVE_UNCONFIRMED:
		t->total.unconfirmed++;
		break;
	case LEAVE_REPLACED:
		t->total.replaced++;
		break;
	case LEAVE_EXPIRED:
		t->total.expired++;
		break;
	case LEAVE_FORGOTTEN:
		t->total.forgotten++;
		break;
	}
}

/* Closes the gap that entry `at` leaves, from the nearer end. */
static void
queue_close_gap(struct queues *t, u32 i, u32 at)
{
	struct queue *q = &t->queue[i];
	bool in_front = at < q->count / 2u;
	u32 end = in_front ? 0 : q->count - 1u;

	while (at != end) {
		u32 next = in_front ? at - 1 : at + 1;

		*queue_entry(t, i, at) = *queue_entry(t, i, next);
		at = next;
	}
	if (in_front)
		q->first = (u16)(q->first + 1u == t->cap ? 0 : q->first + 1u);
	q->count--;
}

/* Takes entry `at` out of queue i.  Frozen entries leave only when they are
 * written (then `sent` has already passed them) or when their connection is
 * gone (queue_rewind() first). */
static void
queue_take(struct queues *t, u32 i, u32 at, enum leave why)
{
	struct queue *q = &t->queue[i];
	struct entry e = *queue_entry(t, i, at);
	u32 row = e.message & ~ENTRY_COUNTED;

	assert(at < q->sent || at >= (u32)q->sent + q->frozen);
	queue_count_leave(t, i, why);
	if (e.message & ENTRY_COUNTED)
		waiter_count(t, &t->store.row[row], why == LEAVE_ACKED);
	q->bytes -= t->store.row[row].body;
	queue_close_gap(t, i, at);
	if (at < q->sent)
		q->sent--;
	if (q->count == 0)
		q->first = 0;
	store_let_go(&t->store, row);
}

/* Looks for a hold on a message from entry *at of socket *i on, among the
 * first `rows` sockets. */
static bool
queue_find_hold(const struct queues *t, u32 rows, u32 message, u32 *i,
    u32 *at)
{
	for (; *i < rows; ++*i, *at = 0)
		for (; *at < t->queue[*i].count; ++*at)
			if (queue_message(t, *i, *at) == message)
				return true;
	return false;
}

/* The connection is gone: everything that was not acknowledged is unsent. */
static void
queue_rewind(struct queues *t, u32 i)
{
	t->queue[i].sent = t->queue[i].frozen = 0;
}

static void
queue_clear(struct queues *t, u32 i, enum leave why)
{
	queue_rewind(t, i);
	while (t->queue[i].count > 0)
		queue_take(t, i, 0, why);
}

/* Drops what has expired and not begun to leave. */
static void
queue_expire(struct queues *t, u32 i, int64_t now)
{
	struct queue *q = &t->queue[i];
	u32 at = (u32)q->sent + q->frozen;

	if (t->store.mortal == 0)
		return;
	while (at < q->count) {
		int64_t expires = queue_row(t, i, at)->expires;

		if (expires != 0 && expires <= now)
			queue_take(t, i, at, LEAVE_EXPIRED);
		else
			at++;
	}
}

/*
 * ---- What goes in
 */

/* What a message of `body` bytes needs of queue i, and what leaves for it. */
struct admission {
	u32 body;
	struct str key;  /* unsent messages with it are replaced */
	enum overflow policy;
};

static bool
queue_is_replaced(const struct queues *t, u32 i, u32 at, struct str key)
{
	const struct queue *q = &t->queue[i];

	return key.n > 0 && at >= (u32)q->sent + q->frozen &&
	    str_eq(store_key(&t->store, queue_row(t, i, at)), key);
}

/* May entry `at` leave for a newcomer under this policy? */
static bool
queue_yields(const struct queues *t, u32 i, u32 at, enum overflow policy)
{
	const struct queue *q = &t->queue[i];

	if (at < q->sent)
		return policy != OVERFLOW_REFUSE;
	return at >= (u32)q->sent + q->frozen &&
	    policy == OVERFLOW_DROP_OLDEST;
}

/* The sums are far below 4 GiB. */
static bool
queue_fits(const struct queues *t, u32 count, u32 bytes, u32 body)
{
	return count < t->cap && bytes + body <= t->byte_cap;
}

/* Would the message find room, if all that may leave for it did? */
static bool
queue_admits(const struct queues *t, u32 i, const struct admission *a)
{
	const struct queue *q = &t->queue[i];
	u32 count = q->count, bytes = q->bytes;

	for (u32 at = 0; at < q->count; at++) {
		if (queue_fits(t, count, bytes, a->body))
			return true;
		if (!queue_is_replaced(t, i, at, a->key) &&
		    !queue_yields(t, i, at, a->policy))
			continue;
		count--;
		bytes -= queue_row(t, i, at)->body;
	}
	return queue_fits(t, count, bytes, a->body);
}

static bool
queue_has_room(const struct queues *t, u32 i, u32 body)
{
	const struct queue *q = &t->queue[i];

	return queue_fits(t, q->count, q->bytes, body);
}

static void
queue_replace(struct queues *t, u32 i, struct str key)
{
	for (u32 at = 0; key.n > 0 && at < t->queue[i].count;) {
		if (queue_is_replaced(t, i, at, key))
			queue_take(t, i, at, LEAVE_REPLACED);
		else
			at++;
	}
}

/* Makes room for a message that queue_admits(): first what it replaces, then
 * what is only unconfirmed, then the oldest unsent. */
static void
queue_make_room(struct queues *t, u32 i, const struct admission *a)
{
	struct queue *q = &t->queue[i];

	queue_replace(t, i, a->key);
	while (q->sent > 0 && !queue_has_room(t, i, a->body))
		queue_take(t, i, 0, LEAVE_UNCONFIRMED);
	while (!queue_has_room(t, i, a->body))
		queue_take(t, i, (u32)q->sent + q->frozen, LEAVE_DROPPED);
}

/* Adds a message at the end; the caller made room. */
static void
queue_put(struct queues *t, u32 i, u32 row, bool counted)
{
	struct queue *q = &t->queue[i];
	struct message *m = &t->store.row[row];

	assert(q->count < t->cap);
	q->count++;
	*queue_entry(t, i, q->count - 1u) = (struct entry){
		.message = row | (counted ? ENTRY_COUNTED : 0),
		.number = (u32)++q->last_number };
	q->bytes += m->body;
	if (m->holds++ == 0)
		m->holder = i;
}

/* ----- 11. Gathering -----------------------------------------------------
 *
 * What goes out: the stream of a socket is the wire form of its units (a
 * finished frame, or a json batch made here) from entry `sent` on.  `done`
 * bytes of it are out already.  Units are found again from the entries each
 * time, so a limit on the entries gives the same bytes each time.  What is
 * written is marked here, and what a Pong speaks of is acknowledged.
 */

#define GATHER_SPANS 64

struct gather {
	size_t spans;
	size_t bytes;
	size_t skip, room;    /* bytes still to leave out, to take */
	bool is_full;         /* of spans or heads: there is more */
	u32 heads;
	struct iovec span[GATHER_SPANS];
	u8 head[GATHER_SPANS][FRAME_HEAD_MAX + 1];
};

/* Entries that may leave: the frozen ones alone, if there are any. */
static u32
queue_limit(const struct queues *t, u32 i)
{
	const struct queue *q = &t->queue[i];

	return q->frozen > 0 ? q->frozen : (u32)q->count - q->sent;
}

/* A finished frame, or a json batch. */
struct unit {
	u32 entries;
	size_t payload; /* of a batch */
	size_t size;    /* bytes on the wire */
};

/* The unit that begins at entry sent + at, and holds at most `limit` - at. */
static struct unit
queue_unit(const struct queues *t, u32 i, u32 at, u32 limit)
{
	u32 from = t->queue[i].sent;
	const struct message *m = queue_row(t, i, from + at);
	struct unit u = { 1, 1 + m->n, m->n };
	u8 head[FRAME_HEAD_MAX];

	if (m->form == FORM_FRAME)
		return u;
	for (; at + u.entries < limit; u.entries++) {
		m = queue_row(t, i, from + at + u.entries);
		if (m->form == FORM_FRAME || u.payload + m->n > WSP_MAX_BATCH)
			break;
		u.payload += m->n;
	}
	u.size = frame_head(head, FRAME_TEXT, u.payload) + u.payload;
	return u;
}

/* Adds bytes to the gathering; neighbours in memory become one span. */
static void
gather_add(struct gather *g, const u8 *p, size_t n)
{
	size_t cut = min_size(g->skip, n);
	struct iovec *last = g->spans > 0 ? &g->span[g->spans - 1] : NULL;

	g->skip -= cut;
	p += cut;
	n = min_size(n - cut, g->room);
	if (n == 0)
		return;
	if (last && (u8 *)last->iov_base + last->iov_len == p) {
		last->iov_len += n;
	} else if (g->spans < GATHER_SPANS) {
		g->span[g->spans++] = (struct iovec){
			.iov_base = (void *)(uintptr_t)p, .iov_len = n };
	} else {
		g->is_full = true;
		g->room = 0;
		return;
	}
	g->room -= n;
	g->bytes += n;
}

/* A batch: a header and `[` made here, the elements from the store with the
 * commas that stand before them there, `]`. */
static void
gather_batch(struct gather *g, const struct queues *t, u32 i, u32 at,
    const struct unit *u)
{
	static const u8 end[] = "]";
	u8 *head;
	size_t head_n;

	if (g->spans == 0)
		g->heads = 0; /* of batches that were left out wholly */
	if (g->heads == COUNT(g->head)) {
		g->is_full = true;
		g->room = 0;
		return;
	}
	head = g->head[g->heads++];
	head_n = frame_head(head, FRAME_TEXT, u->payload);
	head[head_n] = '[';
	gather_add(g, head, head_n + 1);
	for (u32 k = 0; k < u->entries && g->room > 0; k++) {
		const struct message *m = queue_row(t, i,
		    t->queue[i].sent + at + k);
		u32 comma = k == 0; /* none before the first */

		gather_add(g, t->store.bytes + m->place + comma, m->n - comma);
	}
	gather_add(g, end, 1);
}

/* Counts the finished frames from entry sent + at on that lie one behind the
 * other in the store too, up to `room` bytes; *p, *n is where they lie. */
static u32
queue_run(const struct queues *t, u32 i, u32 at, u32 limit, size_t room,
    const u8 **p, size_t *n)
{
	const struct entry *e = queue_entry(t, i, t->queue[i].sent + at);
	const struct entry *end = &t->ring[((size_t)i + 1) * t->cap];
	u32 next = t->store.row[e->message & ~ENTRY_COUNTED].place, count = 0;
	size_t total = 0;

	*p = t->store.bytes + next;
	while (at + count < limit && total < room) {
		const struct message *m = &t->store.row[e->message &
		    ~ENTRY_COUNTED];

		if (m->form != FORM_FRAME || m->place != next)
			break;
		next += m->n;
		total += m->n;
		count++;
		if (++e == end)
			e -= t->cap;
	}
	*n = total;
	return count;
}

/* Gathers the stream of queue i from byte `done` on: at most `room` bytes. */
static void
queue_gather(struct gather *g, const struct queues *t, u32 i, size_t done,
    size_t room)
{
	u32 limit = queue_limit(t, i);

	g->spans = g->bytes = g->heads = 0;
	g->is_full = false;
	g->skip = done;
	g->room = room;
	for (u32 at = 0; at < limit && g->room > 0;) {
		const u8 *p;
		size_t bytes;
		u32 n = queue_run(t, i, at, limit, g->skip + g->room, &p,
		    &bytes);

		if (n > 0) {
			gather_add(g, p, bytes);
		} else {
			struct unit u = queue_unit(t, i, at, limit);

			gather_batch(g, t, i, at, &u);
			n = u.entries;
		}
		at += n;
	}
}

/* What stays in the queue once it is written, until a Pong speaks of it. */
enum keep {
	KEEP_ALL,     /* a stateful socket's messages */
	KEEP_AWAITED, /* a volatile one's, while a sender waits */
	KEEP_NONE     /* --ack sent: written is acknowledged */
};

/* Does a sender wait for the fate of entry `at`? */
static bool
queue_awaits(const struct queues *t, u32 i, u32 at)
{
	return queue_entry(t, i, at)->message & ENTRY_COUNTED &&
	    queue_row(t, i, at)->waiter != 0;
}

/* Marks the first unsent entry as written. */
static void
queue_mark_written(struct queues *t, u32 i, enum keep keep)
{
	struct queue *q = &t->queue[i];
	u32 at = q->sent++;

	t->total.delivered++;
	if (q->frozen > 0)
		q->frozen--;
	if (keep == KEEP_NONE)
		queue_take(t, i, at, LEAVE_ACKED);
	else if (keep == KEEP_AWAITED && !queue_awaits(t, i, at))
		queue_take(t, i, at, LEAVE_WRITTEN);
}

/* Takes the finished frames that `done` bytes cover from the front of a queue
 * in which nothing is kept, and returns what is left of `done`.  Most messages
 * of a broadcast end here, so they have a way of their own. */
static size_t
queue_pop_written(struct queues *t, u32 i, size_t done, u64 *last)
{
	struct queue *q = &t->queue[i];
	u32 limit = queue_limit(t, i);
	const struct entry *ring = &t->ring[(size_t)i * t->cap];
	u32 place = q->first, popped = 0, number = 0, bytes = 0;

	while (popped < limit) {
		struct entry e = ring[place];
		struct message *m = &t->store.row[e.message & ~ENTRY_COUNTED];

		if (e.message & ENTRY_COUNTED || m->form != FORM_FRAME ||
		    done < m->n)
			break;
		done -= m->n;
		bytes += m->body;
		number = e.number;
		if (--m->holds == 0)
			store_release(&t->store, e.message);
		if (++place == t->cap)
			place = 0;
		popped++;
	}
	if (popped == 0)
		return done;
	q->bytes -= bytes;
	*last = q->last_number - (u32)((u32)q->last_number - number);
	t->total.delivered += popped;
	q->count = (u16)(q->count - popped);
	q->frozen = (u16)(q->frozen > popped ? q->frozen - popped : 0);
	q->first = (u16)(q->count > 0 ? place : 0);
	return done;
}

/* `done` bytes of the stream are out: marks the units that are, and returns
 * what is out of the next one.  *last becomes the number of the last entry
 * that is out, if any is. */
static size_t
queue_advance(struct queues *t, u32 i, size_t done, enum keep keep, u64 *last)
{
	u32 limit;

	if (keep == KEEP_AWAITED && t->queue[i].sent == 0)
		done = queue_pop_written(t, i, done, last);
	limit = queue_limit(t, i);
	while (limit > 0 && done > 0) {
		const struct message *m = queue_row(t, i, t->queue[i].sent);
		struct unit u = { .entries = 1, .size = m->n };

		if (m->form != FORM_FRAME)
			u = queue_unit(t, i, 0, limit);
		if (done < u.size)
			break;
		done -= u.size;
		limit -= u.entries;
		for (; u.entries > 0; u.entries--) {
			*last = queue_number(t, i, t->queue[i].sent);
			queue_mark_written(t, i, keep);
		}
	}
	return done;
}

/* Freezes the units that the first `bytes` of the stream touch. */
static void
queue_freeze(struct queues *t, u32 i, size_t bytes)
{
	struct queue *q = &t->queue[i];
	u32 limit = queue_limit(t, i), at = 0;
	size_t covered = 0;

	while (at < limit && covered < bytes) {
		struct unit u = queue_unit(t, i, at, limit);

		covered += u.size;
		at += u.entries;
	}
	q->frozen = (u16)at;
}

/* A Pong spoke of `number`: everything written up to it is acknowledged. */
static void
queue_acknowledge(struct queues *t, u32 i, u64 number)
{
	while (t->queue[i].sent > 0 && queue_number(t, i, 0) <= number)
		queue_take(t, i, 0, LEAVE_ACKED);
}

/* Does a sender wait for something that was written? */
static bool
queue_is_awaited(const struct queues *t, u32 i)
{
	if (t->waiters == 0)
		return false;
	for (u32 at = 0; at < t->queue[i].sent; at++)
		if (queue_awaits(t, i, at))
			return true;
	return false;
}

/* ----- 12. Sockets -------------------------------------------------------
 *
 * The socket table: identities with a queue.  A socket points to its
 * connection by slot and generation and may have none (then it is away); a
 * connection that is still shaking hands has no socket.  A row is found by
 * its id through a chained hash index.
 */

/* Ids up to this length lie in the row; a longer one in a table of its own,
 * whose rows are touched only by such ids. */
#define SOCK_ID_INLINE 40

struct sock {
	u32 since;         /* when it came, seconds of the monotonic clock */
	u32 conn;          /* slot of its connection, NONE: away */
	u32 conn_gen;
	u32 chain;         /* next row with the same hash bucket, or free */
	u32 hash;
	u32 tags;          /* first of its tags */
	u8 service;
	u8 id_n;           /* 0: a free row */
	bool stateful;
	bool slow;         /* its first drop was logged */
	u8 tag_count;      /* without `service` */
	char id[SOCK_ID_INLINE];
};

struct sockets {
	struct sock *row;
	char (*long_id)[WSP_MAX_ID];
	u32 *bucket;       /* 1 + first row of its chain; 0: empty */
	u32 rows, buckets;
	u32 fresh;         /* rows from here on were never used */
	u32 free;
	u32 count;
	u32 away;
	u32 seed;          /* of the hash: clients choose ids */
	const struct str *service; /* names, by the number sockets carry */
	u32 services;
};

/* Opens a table whose memory and services stand in it, and zeroes else: the
 * buckets are zeroes too, so that those never used are never touched. */
static void
sock_init(struct sockets *t, u32 rows, u32 buckets, u32 seed)
{
	t->rows = rows;
	t->buckets = buckets;
	t->free = NONE;
	t->seed = seed;
}

/* Buckets for so many rows: a power of two, the next one up. */
static u32
sock_buckets(u32 rows)
{
	u32 n = 1;

	while (n < rows)
		n *= 2;
	return n;
}

/* Jenkins's one-at-a-time hash with a secret start. */
static u32
hash_bytes(u32 h, const void *p, size_t n)
{
	const u8 *b = p;

	for (size_t i = 0; i < n; i++) {
		h += b[i];
		h += h << 10;
		h ^= h >> 6;
	}
	h += h << 3;
	h ^= h >> 11;
	return h + (h << 15);
}

static u32
sock_hash(const struct sockets *t, u8 service, bool stateful, struct str id)
{
	return hash_bytes(t->seed + service * 2u + stateful, id.p, id.n);
}

static struct str
sock_id(const struct sockets *t, u32 i)
{
	const struct sock *s = &t->row[i];

	return (struct str){ s->id_n > SOCK_ID_INLINE ? t->long_id[i] : s->id,
		s->id_n };
}

static bool
sock_is_used(const struct sockets *t, u32 i)
{
	return i < t->fresh && t->row[i].id_n > 0;
}

static bool
sock_is_away(const struct sockets *t, u32 i)
{
	return t->row[i].conn == NONE;
}

static u32
sock_find(const struct sockets *t, u8 service, bool stateful, struct str id)
{
	u32 hash = sock_hash(t, service, stateful, id);
	u32 i = t->bucket[hash & (t->buckets - 1)] - 1;

	for (; i != NONE; i = t->row[i].chain) {
		const struct sock *s = &t->row[i];

		if (s->hash == hash && s->service == service &&
		    s->stateful == stateful && str_eq(sock_id(t, i), id))
			break;
	}
	return i;
}

static bool
sock_is_full(const struct sockets *t)
{
	return t->free == NONE && t->fresh == t->rows;
}

/* A new socket, away and without tags; the table is not full. */
static u32
sock_add(struct sockets *t, u8 service, bool stateful, struct str id,
    int64_t now)
{
	u32 hash = sock_hash(t, service, stateful, id);
	u32 *bucket = &t->bucket[hash & (t->buckets - 1)];
	u32 i = t->free;
	struct sock *s;

	assert(id.n > 0 && id.n <= WSP_MAX_ID && !sock_is_full(t));
	if (i != NONE)
		t->free = t->row[i].chain;
	else
		i = t->fresh++;
	s = &t->row[i];
	*s = (struct sock){ .since = (u32)(now / 1000),
		.conn = NONE, .chain = *bucket - 1,
		.hash = hash, .tags = NONE, .service = service,
		.id_n = (u8)id.n, .stateful = stateful };
	memcpy(id.n > SOCK_ID_INLINE ? t->long_id[i] : s->id, id.p, id.n);
	*bucket = i + 1;
	t->count++;
	t->away++;
	return i;
}

/* Frees the row; its queue and tags are gone already. */
static void
sock_remove(struct sockets *t, u32 i)
{
	u32 *bucket = &t->bucket[t->row[i].hash & (t->buckets - 1)];
	u32 before = *bucket - 1;

	assert(sock_is_away(t, i) && t->row[i].tags == NONE);
	if (before == i) {
		*bucket = t->row[i].chain + 1;
	} else {
		while (t->row[before].chain != i)
			before = t->row[before].chain;
		t->row[before].chain = t->row[i].chain;
	}
	t->row[i].id_n = 0;
	t->row[i].chain = t->free;
	t->free = i;
	t->count--;
	t->away--;
}

static void
sock_bind(struct sockets *t, u32 i, u32 conn, u32 conn_gen)
{
	t->away -= sock_is_away(t, i);
	t->row[i].conn = conn;
	t->row[i].conn_gen = conn_gen;
}

static void
sock_unbind(struct sockets *t, u32 i)
{
	t->away += !sock_is_away(t, i);
	t->row[i].conn = NONE;
}

static struct str
sock_service(const struct sockets *t, u32 i)
{
	return t->service[t->row[i].service];
}

/* The number of the service of this name, or NONE. */
static u32
sock_find_service(const struct sockets *t, struct str name)
{
	for (u32 i = 0; i < t->services; i++)
		if (str_eq(t->service[i], name))
			return i;
	return NONE;
}

/* "/services/NAME-s-ID" */
static void
sock_name(struct out *o, const struct sockets *t, u32 i)
{
	struct str service = sock_service(t, i), id = sock_id(t, i);

	out_print(o, "/services/%.*s-%c-%.*s", STR_ARGS(service),
	    t->row[i].stateful ? 's' : 'v', STR_ARGS(id));
}

/* A random version-4 UUID in lower case (RFC 9562, 5.4), from 16 random
 * bytes. */
#define UUID_TEXT 36

static void
uuid_text(char to[UUID_TEXT], const u8 random[16])
{
	static const char hex[] = "0123456789abcdef";
	size_t n = 0;

	for (int i = 0; i < 16; i++) {
		u8 b = random[i];

		if (i == 6)
			b = (u8)(0x40 | (b & 0x0f));
		if (i == 8)
			b = (u8)(0x80 | (b & 0x3f));
		if (i == 4 || i == 6 || i == 8 || i == 10)
			to[n++] = '-';
		to[n++] = hex[b >> 4];
		to[n++] = hex[b & 15];
	}
}

/* ----- 13. Tags ----------------------------------------------------------
 *
 * Who has which tag, and who is selected by a target.  Every tag of a socket
 * is a row; rows with the same name and value hang in one chain of an index,
 * so a group is found without a look at the sockets outside it.  A tag that
 * the socket's id spells has no text of its own: it points into the id.
 * `service` is no row: the socket knows its service.
 */

/* Where a tag came from, the stronger the smaller: a weaker origin neither
 * sets nor removes what a stronger one set. */
enum tag_origin { TAG_TOKEN, TAG_ID, TAG_PUSH, TAG_CLIENT };

#define TAG_TEXT (WSP_MAX_TAG_NAME + WSP_MAX_TAG_VALUE)

struct tag {
	u32 sock;
	u32 next;       /* tag of the same socket, or free row */
	u32 prev_alike; /* in the chain of its bucket */
	u32 next_alike;
	u32 hash;
	u8 origin;
	u8 name_n, value_n;
	u8 at;          /* of its name in the id, when the id spells it */
};

struct tags {
	struct tag *row;
	char (*text)[TAG_TEXT]; /* name and value of what no id spells */
	u32 *bucket;            /* 1 + first row of its chain; 0: empty */
	u32 rows, buckets;
	u32 fresh, free;
	struct sockets *sockets;
};

/* As sock_init(). */
static void
tags_init(struct tags *t, u32 rows, u32 buckets)
{
	t->rows = rows;
	t->buckets = buckets;
	t->free = NONE;
}

static struct str
tag_name(const struct tags *t, u32 i)
{
	const struct tag *g = &t->row[i];

	if (g->origin == TAG_ID)
		return (struct str){ sock_id(t->sockets, g->sock).p + g->at,
			g->name_n };
	return (struct str){ t->text[i], g->name_n };
}

static struct str
tag_value(const struct tags *t, u32 i)
{
	const struct tag *g = &t->row[i];
	struct str name = tag_name(t, i);

	/* In an id a `:` stands between the two. */
	return (struct str){ name.p + g->name_n + (g->origin == TAG_ID),
		g->value_n };
}

static u32
tag_hash(const struct tags *t, struct str name, struct str value)
{
	u32 h = hash_bytes(t->sockets->seed, name.p, name.n);

	return hash_bytes(h, value.p, value.n);
}

static u32
tag_find(const struct tags *t, u32 sock, struct str name)
{
	u32 i = t->sockets->row[sock].tags;

	while (i != NONE && !str_eq(tag_name(t, i), name))
		i = t->row[i].next;
	return i;
}

static void
tag_index(struct tags *t, u32 i)
{
	struct tag *g = &t->row[i];
	u32 *bucket = &t->bucket[g->hash & (t->buckets - 1)];

	g->prev_alike = NONE;
	g->next_alike = *bucket - 1;
	if (*bucket != 0)
		t->row[*bucket - 1].prev_alike = i;
	*bucket = i + 1;
}

static void
tag_unindex(struct tags *t, u32 i)
{
	struct tag *g = &t->row[i];

	if (g->prev_alike == NONE)
		t->bucket[g->hash & (t->buckets - 1)] = g->next_alike + 1;
	else
		t->row[g->prev_alike].next_alike = g->next_alike;
	if (g->next_alike != NONE)
		t->row[g->next_alike].prev_alike = g->prev_alike;
}

/* Takes one tag from its socket and frees its row. */
static void
tag_remove(struct tags *t, u32 i)
{
	struct sock *s = &t->sockets->row[t->row[i].sock];
	u32 *link = &s->tags;

	tag_unindex(t, i);
	while (*link != i)
		link = &t->row[*link].next;
	*link = t->row[i].next;
	s->tag_count--;
	t->row[i].next = t->free;
	t->free = i;
}

/* Gives a socket a tag, in the place of one of that name.  The caller has
 * checked name, value, origin and count; TAG_ID says that they lie in the
 * socket's id. */
static void
tag_set(struct tags *t, u32 sock, enum tag_origin origin,
    const struct str *name, const struct str *value)
{
	struct sock *s = &t->sockets->row[sock];
	u32 i = tag_find(t, sock, *name);
	struct tag *g;

	if (i != NONE)
		tag_remove(t, i);
	i = t->free;
	if (i != NONE)
		t->free = t->row[i].next;
	else
		i = t->fresh++;
	assert(i < t->rows);
	g = &t->row[i];
	*g = (struct tag){ .sock = sock, .next = s->tags,
		.hash = tag_hash(t, *name, *value), .origin = (u8)origin,
		.name_n = (u8)name->n, .value_n = (u8)value->n };
	if (origin == TAG_ID) {
		g->at = (u8)(name->p - sock_id(t->sockets, sock).p);
	} else {
		memcpy(t->text[i], name->p, name->n);
		if (value->n > 0)
			memcpy(t->text[i] + name->n, value->p, value->n);
	}
	s->tags = i;
	s->tag_count++;
	tag_index(t, i);
}

/* The tags that a new socket's id spells; id_tags_check() was content. */
static void
tags_from_id(struct tags *t, u32 sock)
{
	struct str rest = sock_id(t->sockets, sock), name, value;

	while (id_tag_next(&rest, &name, &value))
		tag_set(t, sock, TAG_ID, &name, &value);
}

/* The tag of a socket, which has some, that gives way first. */
static u32
tag_weakest(const struct tags *t, u32 sock)
{
	u32 first = t->sockets->row[sock].tags, weakest = first;

	for (u32 i = first; i != NONE; i = t->row[i].next)
		if (t->row[i].origin > t->row[weakest].origin)
			weakest = i;
	return weakest;
}

/* Takes from a socket the tags of origins `from` to `to`. */
static void
tags_drop(struct tags *t, u32 sock, enum tag_origin from, enum tag_origin to)
{
	for (u32 i = t->sockets->row[sock].tags, next; i != NONE; i = next) {
		next = t->row[i].next;
		if (t->row[i].origin >= from && t->row[i].origin <= to)
			tag_remove(t, i);
	}
}

/*
 * ---- Selection
 */

static bool
tags_has_value(const struct tags *t, u32 sock,
    const struct target_term *term)
{
	struct str value;
	u32 i;

	if (str_is(term->name, "service")) {
		value = sock_service(t->sockets, sock);
	} else {
		i = tag_find(t, sock, term->name);
		if (i == NONE)
			return false;
		value = tag_value(t, i);
	}
	if (term->kind == TERM_TAG_LIST)
		return target_list_has(term->value, value);
	return term->kind == TERM_TAG || str_eq(term->value, value);
}

/* The row of the socket that a socketId names, or NONE. */
static u32
tags_find_socket(const struct tags *t, const struct target_term *term)
{
	u32 service = sock_find_service(t->sockets, term->name);

	return service == NONE || term->value.n > WSP_MAX_ID ? NONE :
	    sock_find(t->sockets, (u8)service, term->stateful, term->value);
}

static bool
tags_term_matches(const struct tags *t, u32 sock,
    const struct target_term *term)
{
	switch ((enum term_kind)term->kind) {
	case TERM_SOCKET:
		return tags_find_socket(t, term) == sock;
	case TERM_SERVICE:
		return str_eq(sock_service(t->sockets, sock), term->name);
	case TERM_TAG:
	case TERM_TAG_VALUE:
	case TERM_TAG_LIST:
		return tags_has_value(t, sock, term);
	case TERM_OPEN:
		return !sock_is_away(t->sockets, sock);
	case TERM_AWAY:
		return sock_is_away(t->sockets, sock);
	}
	return false;
}

static bool
tags_match(const struct tags *t, u32 sock, const struct target *target)
{
	for (size_t k = 0; k < target->n; k++)
		if (!tags_term_matches(t, sock, &target->terms[k]))
			return false;
	return true;
}

/* Adds to `rows` the sockets that have the term's tag with this value, and
 * match; returns how many. */
static u32
tags_select_alike(const struct tags *t, const struct target *target,
    const struct target_term *term, struct str value, u32 *rows)
{
	u32 hash = tag_hash(t, term->name, value), count = 0;
	u32 i = t->bucket[hash & (t->buckets - 1)] - 1;

	for (; i != NONE; i = t->row[i].next_alike)
		if (t->row[i].hash == hash && str_eq(tag_value(t, i), value) &&
		    str_eq(tag_name(t, i), term->name) &&
		    tags_match(t, t->row[i].sock, target))
			rows[count++] = t->row[i].sock;
	return count;
}

/* Is this value, which lies in the list, the first of its kind there? */
static bool
tags_is_first(struct str list, struct str value)
{
	struct str other;

	while (split_next(&list, ',', &other) && other.p != value.p)
		if (str_eq(other, value))
			return false;
	return true;
}

/* The term that finds its sockets by the index, if there is one. */
static const struct target_term *
tags_indexed_term(const struct target *target)
{
	for (size_t k = 0; k < target->n; k++) {
		const struct target_term *term = &target->terms[k];

		if ((term->kind == TERM_TAG_VALUE ||
		    term->kind == TERM_TAG_LIST) &&
		    !str_is(term->name, "service"))
			return term;
	}
	return NULL;
}

/* Writes the rows of all sockets that the target selects, each once, and
 * returns their number. */
static u32
tags_select(const struct tags *t, const struct target *target, u32 *rows)
{
	const struct target_term *term = tags_indexed_term(target);
	struct str rest, value;
	u32 count = 0;

	if (target->socket) {
		u32 i = tags_find_socket(t, target->socket);

		if (i != NONE && tags_match(t, i, target))
			rows[count++] = i;
		return count;
	}
	if (term && term->kind == TERM_TAG_VALUE)
		return tags_select_alike(t, target, term, term->value, rows);
	if (term) {
		rest = term->value;
		while (split_next(&rest, ',', &value))
			if (tags_is_first(term->value, value))
				count += tags_select_alike(t, target, term,
				    value, rows + count);
		return count;
	}
	for (u32 i = 0; i < t->sockets->fresh; i++)
		if (sock_is_used(t->sockets, i) &&
		    (target->n == 0 || tags_match(t, i, target)))
			rows[count++] = i;
	return count;
}

/* ----- 14. Deadlines -----------------------------------------------------
 *
 * Every row of a table has one deadline at most.  Deadlines of one class have
 * the same length, so they fall due in the order in which they were armed: a
 * FIFO each, in which arming, cancelling and asking for the next are O(1).
 */
struct deadline {
	u32 due_low;    /* ms of the monotonic clock, 48 bits of them */
	u16 due_high;
	u8 class;       /* 1 + class, 0: not armed */
	u32 prev, next;
};

#define DEADLINE_CLASSES 8

struct deadlines {
	struct deadline *row;
	struct {
		u32 first, last;
	} fifo[DEADLINE_CLASSES];
};

static int64_t
deadline_ms(const struct deadlines *d, u32 i)
{
	return (int64_t)d->row[i].due_high << 32 | d->row[i].due_low;
}

static void
deadline_init(struct deadlines *d, struct deadline *row)
{
	d->row = row;
	for (int i = 0; i < DEADLINE_CLASSES; i++)
		d->fifo[i].first = d->fifo[i].last = NONE;
}

static void
deadline_cancel(struct deadlines *d, u32 i)
{
	struct deadline *t = &d->row[i];
	int class = t->class - 1;

	if (class < 0)
		return;
	if (t->prev == NONE)
		d->fifo[class].first = t->next;
	else
		d->row[t->prev].next = t->next;
	if (t->next == NONE)
		d->fifo[class].last = t->prev;
	else
		d->row[t->next].prev = t->prev;
	t->class = 0;
}

/* Arms row i anew.  A class whose length was changed by a reload may hold
 * later deadlines before earlier ones for a while: those fire late, none is
 * lost. */
static void
deadline_arm(struct deadlines *d, u32 i, int class, int64_t due)
{
	struct deadline *t = &d->row[i];

	deadline_cancel(d, i);
	t->due_low = (u32)due;
	t->due_high = (u16)(due >> 32);
	t->class = (u8)(class + 1);
	t->next = NONE;
	t->prev = d->fifo[class].last;
	if (t->prev == NONE)
		d->fifo[class].first = i;
	else
		d->row[t->prev].next = i;
	d->fifo[class].last = i;
}

/* The row whose deadline of this class fell due first, or NONE. */
static u32
deadline_due(const struct deadlines *d, int class, int64_t now)
{
	u32 i = d->fifo[class].first;

	return i != NONE && deadline_ms(d, i) <= now ? i : NONE;
}

/* When the next deadline of any class falls due, or `latest`. */
static int64_t
deadline_next(const struct deadlines *d, int64_t latest)
{
	for (int c = 0; c < DEADLINE_CLASSES; c++) {
		u32 i = d->fifo[c].first;

		if (i != NONE && deadline_ms(d, i) < latest)
			latest = deadline_ms(d, i);
	}
	return latest;
}

/* ----- 15. Records -------------------------------------------------------
 *
 * TLS 1.2 records from raw keys, for a connection whose handshake is over:
 * 112 bytes instead of a BearSSL context (TLS.md, design C).  Two suites of
 * AEAD, ChaCha20-Poly1305 (RFC 7905) and AES-128-GCM (RFC 5288).  A record is
 * sealed and opened in place.  What it refuses, it refuses by the number of
 * the alert that says why (RFC 5246, 7.2); after a refusal the connection
 * takes no more input.
 *
 *	type 1 | 3 3 | length 2 | [explicit nonce 8, GCM only] | text | tag 16
 *
 * A sequence number must never be used for two different plaintexts: the
 * difference of the two would lie open.  So the caller names it to seal, and
 * moves on only when that record is out or the connection is over.
 */
enum { RECORD_ALERT = 21, RECORD_HANDSHAKE = 22, RECORD_DATA = 23 };

enum { RECORD_CHACHA20 = 1, RECORD_AES128_GCM = 2 };

/* Alerts that we send or act on (RFC 5246, 7.2). */
enum {
	ALERT_WARNING = 1,
	ALERT_FATAL = 2,
	ALERT_CLOSE_NOTIFY = 0,
	ALERT_UNEXPECTED_MESSAGE = 10,
	ALERT_BAD_RECORD_MAC = 20,
	ALERT_RECORD_OVERFLOW = 22,
	ALERT_DECODE_ERROR = 50,
	ALERT_PROTOCOL_VERSION = 70
};

#define RECORD_HEADER    5     /* type, version, length */
#define RECORD_EXPLICIT  8     /* GCM's nonce on the wire */
#define RECORD_TAG       16    /* of both suites */
#define RECORD_MAX_PLAIN 16384 /* (RFC 5246, 6.2.1) */
#define RECORD_OVERHEAD_MAX (RECORD_HEADER + RECORD_EXPLICIT + RECORD_TAG)
#define RECORD_MAX (RECORD_MAX_PLAIN + RECORD_OVERHEAD_MAX)
#define RECORD_ALERT_MAX (2 + RECORD_OVERHEAD_MAX)
#define RECORD_VERSION 0x0303

/* One direction of a connection. */
struct record_key {
	u64 seq;    /* number of the next record */
	u8 suite;   /* RECORD_CHACHA20, ...; 0: no key */
	u8 iv[12];  /* GCM uses the first 4 */
	u8 key[32]; /* AES-128 uses the first 16 */
};

/* What an established connection keeps, and all that it keeps. */
struct record_keys {
	struct record_key in, out;
};

_Static_assert(sizeof(struct record_keys) <= 112,
    "a TLS connection costs at most 112 bytes of keys");

/* The implementations this processor runs best, chosen once at start: to ask
 * for them costs more than to seal a small record. */
struct record_aead {
	br_chacha20_run chacha20;
	br_poly1305_run poly1305;
	const br_block_ctr_class *aes;
	br_ghash ghash;
};

/* A record that was opened. */
struct record {
	u8 type; /* RECORD_ALERT, RECORD_HANDSHAKE or RECORD_DATA */
	u8 *p;   /* the plaintext, inside the caller's buffer */
	size_t n;
};

/* How many bytes lie in front of the plaintext. */
static size_t
record_head(u8 suite)
{
	return suite == RECORD_AES128_GCM ? RECORD_HEADER + RECORD_EXPLICIT
	                                  : RECORD_HEADER;
}

/*
 * Runs the n bytes of a record's text through the cipher, in place, and
 * computes their tag, which covers number and header too (RFC 5246, 6.2.3.3).
 * The nonce of ChaCha20 is the fixed one with the number laid over its end
 * (RFC 7905, 2); GCM's is four fixed bytes and the eight that the record
 * carries, which the sender chooses (RFC 5288, 3).
 */
static void
record_crypt(const struct record_aead *a, const struct record_key *k,
    u64 seq, u8 *record, size_t n, u8 tag[RECORD_TAG], bool seal)
{
	br_aes_gen_ctr_keys aes;
	br_gcm_context gcm;
	u8 nonce[12] = { 0 }, aad[13], *p = record + record_head(k->suite);

	store64(aad, seq);
	memcpy(aad + 8, record, 3); /* type and version */
	store16(aad + 11, (u16)n);
	if (k->suite == RECORD_CHACHA20) {
		store64(nonce + 4, seq);
		for (int i = 0; i < 12; i++)
			nonce[i] ^= k->iv[i];
		a->poly1305(k->key, nonce, p, n, aad, sizeof aad, tag,
		    a->chacha20, seal);
		return;
	}
	memcpy(nonce, k->iv, 4);
	memcpy(nonce + 4, record + RECORD_HEADER, RECORD_EXPLICIT);
	a->aes->init(&aes.vtable, k->key, 16);
	br_gcm_init(&gcm, &aes.vtable, a->ghash);
	br_gcm_reset(&gcm, nonce, sizeof nonce);
	br_gcm_aad_inject(&gcm, aad, sizeof aad);
	br_gcm_flip(&gcm);
	br_gcm_run(&gcm, seal, p, n);
	br_gcm_get_tag(&gcm, tag);
}

/*
 * Makes a record of the n bytes that lie at record + record_head(suite), in
 * place, and returns its whole length.  Does not move k->seq on: a record that
 * is half out is sealed again from the same bytes with the same seq.
 */
static size_t
record_seal(const struct record_aead *a, const struct record_key *k, u64 seq,
    u8 type, u8 *record, size_t n)
{
	size_t head = record_head(k->suite), whole = head + n + RECORD_TAG;

	assert(n <= RECORD_MAX_PLAIN);
	record[0] = type;
	store16(record + 1, RECORD_VERSION);
	store16(record + 3, (u16)(whole - RECORD_HEADER));
	if (k->suite == RECORD_AES128_GCM)
		store64(record + RECORD_HEADER, seq);
	record_crypt(a, k, seq, record, n, record + head + n, true);
	return whole;
}

/* An alert as a record, at most RECORD_ALERT_MAX bytes at `to`. */
static size_t
record_seal_alert(const struct record_aead *a, const struct record_key *k,
    u64 seq, u8 level, u8 number, u8 *to)
{
	u8 *p = to + record_head(k->suite);

	p[0] = level;
	p[1] = number;
	return record_seal(a, k, seq, RECORD_ALERT, to, 2);
}

/*
 * The length that a header announces, which is n bytes so far: > 0 the whole
 * record's, 0 not here yet, < 0 refused.  Each byte is judged when it comes,
 * so that rubbish is not waited for.  An alert is two bytes and comes whole,
 * and a handshake message is not empty (RFC 5246, 6.2.1).
 */
static int
record_length(u8 suite, const u8 *p, size_t n)
{
	size_t least = record_head(suite) + RECORD_TAG, whole;

	if (n >= 1 && (p[0] < RECORD_ALERT || p[0] > RECORD_DATA))
		return -ALERT_UNEXPECTED_MESSAGE;
	if ((n >= 2 && p[1] != RECORD_VERSION >> 8) ||
	    (n >= 3 && p[2] != (RECORD_VERSION & 255)))
		return -ALERT_PROTOCOL_VERSION;
	if (n < RECORD_HEADER)
		return 0;
	whole = RECORD_HEADER + load16(p + 3);
	if (whole > least + RECORD_MAX_PLAIN)
		return -ALERT_RECORD_OVERFLOW;
	if (whole < least || (p[0] == RECORD_HANDSHAKE && whole == least) ||
	    (p[0] == RECORD_ALERT && whole != least + 2))
		return -ALERT_DECODE_ERROR;
	return (int)whole;
}

/* In a time that does not depend on where they differ. */
static bool
secret_same(const u8 *a, const u8 *b, size_t n)
{
	u8 differ = 0;

	for (size_t i = 0; i < n; i++)
		differ |= a[i] ^ b[i];
	return differ == 0;
}

/*
 * Opens the record at p, in place: > 0 bytes of the buffer used, 0 need more,
 * < 0 the alert to send, negated; then the buffer's content is lost.
 */
static int
record_open(const struct record_aead *a, struct record_key *k, u8 *p,
    size_t n, struct record *r)
{
	int whole = record_length(k->suite, p, n);
	u8 tag[RECORD_TAG];

	if (whole <= 0)
		return whole;
	if (n < (size_t)whole)
		return 0;
	r->type = p[0];
	r->p = p + record_head(k->suite);
	r->n = (size_t)whole - record_head(k->suite) - RECORD_TAG;
	record_crypt(a, k, k->seq, p, r->n, tag, false);
	if (!secret_same(tag, r->p + r->n, RECORD_TAG))
		return -ALERT_BAD_RECORD_MAC;
	k->seq++;
	return whole;
}

#define RECORD_TEST_MAX 300
#define RECORD_TEST_SUM 0xb1366867 /* of its records, as OpenSSL makes them */

/* BearSSL's own record code, of either suite. */
union record_stock {
	br_sslrec_chapol_context chapol;
	br_sslrec_gcm_context gcm;
	const br_sslrec_out_class *out;
};

/*
 * A record of n bytes for the self-test: ours is byte by byte what BearSSL's
 * own code makes, opens again, and does not with a bit changed.  Both use the
 * same ciphers, so the record is summed up too, for a known answer.
 */
static bool
record_test_one(const struct record_aead *a, struct record_key *k,
    union record_stock *stock, size_t n, u32 *sum)
{
	u8 ours[RECORD_TEST_MAX + RECORD_OVERHEAD_MAX], theirs[sizeof ours];
	u8 text[RECORD_TEST_MAX], *made;
	size_t head = record_head(k->suite), whole, made_n = n;
	struct record r;

	for (size_t i = 0; i < n; i++)
		text[i] = (u8)(i * 31 + n);
	memcpy(ours + head, text, n);
	memcpy(theirs + head, text, n);
	whole = record_seal(a, k, k->seq, RECORD_DATA, ours, n);
	made = stock->out->encrypt(&stock->out, RECORD_DATA, RECORD_VERSION,
	    theirs + head, &made_n);
	if (made_n != whole || memcmp(made, ours, whole) != 0)
		return false;
	for (size_t i = 0; i < whole; i++)
		*sum = *sum * 31 + ours[i];
	ours[whole - 1] ^= 1;
	return record_open(a, k, ours, whole, &r) == -ALERT_BAD_RECORD_MAC &&
	    record_open(a, k, made, whole, &r) == (int)whole &&
	    r.type == RECORD_DATA && r.n == n && memcmp(r.p, text, n) == 0;
}

/* The known-answer test at start. */
static bool
record_self_test(const struct record_aead *a)
{
	static const u16 lengths[] = { 0, 1, 15, 16, 64, 65, RECORD_TEST_MAX };
	bool good = true;
	u32 sum = 0;

	for (u8 suite = RECORD_CHACHA20; suite <= RECORD_AES128_GCM; suite++) {
		struct record_key k = { .suite = suite };
		union record_stock stock;

		for (u8 i = 0; i < sizeof k.key; i++)
			k.key[i] = (u8)(i * 7);
		memcpy(k.iv, k.key + 9, sizeof k.iv);
		if (suite == RECORD_CHACHA20)
			br_sslrec_out_chapol_vtable.init(
			    &stock.chapol.vtable.out, a->chacha20,
			    a->poly1305, k.key, k.iv);
		else
			br_sslrec_out_gcm_vtable.init(&stock.gcm.vtable.out,
			    a->aes, k.key, 16, a->ghash, k.iv);
		for (size_t i = 0; good && i < COUNT(lengths); i++)
			good = record_test_one(a, &k, &stock, lengths[i],
			    &sum);
	}
	return good && sum == RECORD_TEST_SUM;
}

SMALL_CODE

/* ----- 16. Signatures ----------------------------------------------------
 *
 * The keys of tokens, and what they sign: HS256 and ES256 (RFC 7518).  A key
 * knows its algorithm, and what is signed has no say in it.  A public key only
 * checks.
 */

#define TOKEN_SECRET    32 /* bytes that HS256 needs (RFC 7518, 3.2) */
#define TOKEN_POINT     65 /* bytes of a public key on P-256 */
#define TOKEN_SIGNATURE 64 /* of the longer signature, ES256 */

enum token_alg { TOKEN_HS256, TOKEN_ES256 };

static const char *const token_alg_name[] = { "HS256", "ES256" };

struct token_key {
	enum token_alg alg;
	bool mints;                /* false: a public key */
	br_hmac_key_context hmac;  /* HS256 */
	u8 point[TOKEN_POINT];     /* ES256: the public key */
	u8 secret[32];             /* ES256: the private one */
};

/*
 * ---- Keys
 */

static void
token_key_hs256(struct token_key *k, const void *secret, size_t n)
{
	*k = (struct token_key){ .alg = TOKEN_HS256, .mints = true };
	br_hmac_key_init(&k->hmac, &br_sha256_vtable, secret, n);
}

/* False: the point is not on the curve. */
static bool
token_key_es256(struct token_key *k, const u8 *point)
{
	static const u8 one[] = { 1 };
	u8 same[TOKEN_POINT];

	*k = (struct token_key){ .alg = TOKEN_ES256 };
	memcpy(k->point, point, TOKEN_POINT);
	memcpy(same, point, TOKEN_POINT);
	return br_ec_p256_m31.mul(same, sizeof same, one, sizeof one,
	    BR_EC_secp256r1) == 1;
}

static br_ec_private_key
token_private_key(const struct token_key *k)
{
	/* BearSSL's key has no const, but only reads. */
	return (br_ec_private_key){ BR_EC_secp256r1,
		(unsigned char *)(uintptr_t)k->secret, sizeof k->secret };
}

/* A private key of n bytes, big-endian.  False: it is no number that a key
 * on P-256 can be. */
static bool
token_key_private(struct token_key *k, const u8 *secret, size_t n)
{
	br_ec_private_key private;
	br_ec_public_key public;

	*k = (struct token_key){ .alg = TOKEN_ES256, .mints = true };
	for (; n > sizeof k->secret && *secret == 0; n--)
		secret++;
	if (n == 0 || n > sizeof k->secret)
		return false;
	memcpy(k->secret + sizeof k->secret - n, secret, n);
	private = token_private_key(k);
	return br_ec_compute_pub(&br_ec_p256_m31, &public, k->point,
	    &private) == TOKEN_POINT;
}

/*
 * ---- Signatures
 */

/* What stands for the text in a signature: the signature itself with HS256,
 * what ES256 signs. */
static void
token_digest(u8 digest[32], const struct token_key *k, struct str text)
{
	br_hmac_context mac;
	br_sha256_context hash;

	if (k->alg == TOKEN_HS256) {
		br_hmac_init(&mac, &k->hmac, 0);
		br_hmac_update(&mac, text.p, text.n);
		br_hmac_out(&mac, digest);
		return;
	}
	br_sha256_init(&hash);
	br_sha256_update(&hash, text.p, text.n);
	br_sha256_out(&hash, digest);
}

/* Did this key sign the text?  ES256 is r and s, 32 bytes each (RFC 7518,
 * 3.4). */
static bool
token_signed_by(const struct token_key *k, struct str text, const u8 *sig,
    size_t n)
{
	u8 digest[32];
	br_ec_public_key public = { BR_EC_secp256r1,
		(unsigned char *)(uintptr_t)k->point, TOKEN_POINT };

	if (n != (k->alg == TOKEN_HS256 ? sizeof digest : TOKEN_SIGNATURE))
		return false;
	token_digest(digest, k, text);
	if (k->alg == TOKEN_ES256)
		return br_ecdsa_i31_vrfy_raw(&br_ec_p256_m31, digest,
		    sizeof digest, &public, sig, n) == 1;
	return secret_same(digest, sig, n);
}

/* Signs the text; returns the signature's length. */
static size_t
token_sign(u8 sig[TOKEN_SIGNATURE], const struct token_key *k,
    struct str text)
{
	br_ec_private_key private = token_private_key(k);
	u8 digest[32];

	assert(k->mints);
	token_digest(digest, k, text);
	if (k->alg == TOKEN_ES256)
		return br_ecdsa_i31_sign_raw(&br_ec_p256_m31,
		    &br_sha256_vtable, digest, &private, sig);
	memcpy(sig, digest, sizeof digest);
	return sizeof digest;
}

/* ----- 17. Tokens --------------------------------------------------------
 *
 * JSON Web Tokens (RFC 7519) in the one form that we take: three parts in
 * base64url, signed with HS256 or ES256.  A key has its algorithm from its
 * file, and a token that names another one is refused before anything is
 * computed.  What costs nothing is checked before the signature; whether the
 * token is for this service and this id only behind it, so that a forged
 * token learns nothing.  Reasons are for the log: the client gets 401 or 403.
 */

/* A token's length in characters.  One more costs a byte of memory.  Ceiling:
 * WSP_MAX_HTTP_HEAD, where it stands in. */
#ifndef WSP_MAX_TOKEN
#define WSP_MAX_TOKEN 6144
#endif

/* JSON values in a token's claims; one more costs 24 bytes. */
#ifndef WSP_TOKEN_VALUES
#define WSP_TOKEN_VALUES 256
#endif

#define TOKEN_SKEW      60 /* seconds that two clocks may differ */
#define TOKEN_LATEST    INT64_C(1000000000000000)
#define TOKEN_TEXT      256 /* bytes of an audience */
#define TOKEN_ID        (WSP_MAX_ID + 1) /* of `sub`: an id, and a star */
#define TOKEN_SERVICES  16 /* that a new token may be for */

_Static_assert(WSP_MAX_TOKEN <= WSP_MAX_HTTP_HEAD, "a token fits a request");

/* A token that was read. */
struct token {
	int64_t expires;           /* `exp`, seconds since 1970 */
	struct str claims;         /* the JSON, in `room` */
	struct str sub;            /* in `id`; NULL: it has none */
	int services;              /* a value, or -1 */
	u32 tags;
	struct tag_line tag[WSP_MAX_TAGS]; /* in `text`, as `name:value` */
	char text[WSP_MAX_TAGS][TAG_TEXT + 1], id[TOKEN_ID];
	struct json_token value[WSP_TOKEN_VALUES];
	char room[WSP_MAX_TOKEN];
};

/* What a token is asked to be good for. */
struct token_use {
	struct str audience; /* empty: `aud` is not looked at */
	struct str service;  /* empty: for any */
	struct str id;       /* stateful; empty: volatile */
	int64_t now;         /* seconds since 1970 */
	bool unread;         /* its signature is not to be looked at: 503 */
};

/* The one reason that costs a signature to find. */
static const char token_forged[] =
    "no key of its algorithm made its signature";

/* And the one of tokens that are not looked at so far. */
static const char token_unread[] = "too many before it were forged";

/*
 * ---- Claims
 */

/* Decodes a part, which must be JSON, into t->room. */
static bool
token_json(struct token *t, struct str part)
{
	int n = base64_decode((u8 *)t->room, sizeof t->room, part,
	    BASE64URL);

	t->claims = (struct str){ t->room, n > 0 ? (size_t)n : 0 };
	return n > 0 && text_is_utf8(t->room, t->claims.n) &&
	    json_tokens(t->value, WSP_TOKEN_VALUES, t->claims) > 0;
}

static int
token_member(const struct token *t, const char *name)
{
	return json_member(t->value, 0, name);
}

/* The string at a token, decoded: its length, < 0 when there is none, or it is
 * longer than cap or cannot be UTF-8. */
static int
token_string(char *to, size_t cap, const struct token *t, size_t at)
{
	return t->value[at].kind != JSON_IS_STRING ? -1 :
	    json_decode(to, cap, t->value[at].text);
}

/* Is it this text, or an array that has it? */
static bool
token_has(const struct token *t, int at, struct str text)
{
	char plain[TOKEN_TEXT];
	size_t i = (size_t)at, end = t->value[at].next;

	for (i += t->value[i].kind == JSON_IS_ARRAY; i < end;
	    i = t->value[i].next) {
		int n = token_string(plain, sizeof plain, t, i);

		if (n >= 0 && str_eq((struct str){ plain, (size_t)n }, text))
			return true;
	}
	return false;
}

/* What is wrong with the header?  NULL: nothing, and *alg is known. */
static const char *
token_header(enum token_alg *alg, const struct token *t)
{
	int at = token_member(t, "alg");

	if (token_member(t, "crit") >= 0)
		return "its header has crit, and no extension is known here";
	for (u32 i = 0; at >= 0 && i < COUNT(token_alg_name); i++) {
		*alg = (enum token_alg)i;
		if (json_string_is(t->value[at].text, token_alg_name[i]))
			return NULL;
	}
	return "its algorithm is neither HS256 nor ES256";
}

/* The whole seconds of a claim that is a date (RFC 7519, 2): 1, 0 when there
 * is none, -1 when it is no date: what is no number begins with no digit, and
 * an exponent is refused, for nobody writes one. */
static int
token_date(int64_t *seconds, const struct token *t, const char *name)
{
	int at = token_member(t, name);
	struct str s, whole;
	bool negative;
	int64_t v;

	if (at < 0)
		return 0;
	s = t->value[at].text;
	if (memchr(s.p, 'e', s.n) || memchr(s.p, 'E', s.n))
		return -1;
	negative = s.p[0] == '-';
	s = text_from(s, negative);
	(void)split_next(&s, '.', &whole);
	v = text_number(whole, TOKEN_LATEST);
	*seconds = negative ? -v : v;
	return v < 0 ? -1 : 1;
}

/* NULL, or why it is not good now. */
static const char *
token_dates(struct token *t, int64_t now)
{
	int64_t begins = now;
	int exp = token_date(&t->expires, t, "exp");

	if (exp == 0)
		return "it has no exp";
	if (exp < 0 || token_date(&begins, t, "nbf") < 0)
		return "its exp or nbf is no date in seconds";
	if (now >= t->expires + TOKEN_SKEW)
		return "it has expired";
	return begins - TOKEN_SKEW > now ? "it is not valid yet" : NULL;
}

/* Reads the tag whose name is the value `at`. */
static const char *
token_read_tag(struct token *t, size_t at)
{
	struct tag_line *g = &t->tag[t->tags];
	char *p = t->text[t->tags];
	int name_n = token_string(p, WSP_MAX_TAG_NAME, t, at), value_n = -1;

	if (name_n >= 0)
		value_n = token_string(p + name_n + 1, WSP_MAX_TAG_VALUE, t,
		    at + 1);
	if (value_n < 0)
		return "a tag is no string, or too long";
	p[name_n] = ':';
	if (tag_parse(g, (struct str){ p, (size_t)(name_n + 1 + value_n) }) < 0)
		return g->why;
	if (g->name.n != (size_t)name_n ||
	    tag_lines_set(t->tag, t->tags, g->name))
		return "it has a tag twice, or one with : in its name";
	t->tags++;
	return NULL;
}

static const char *
token_tags(struct token *t)
{
	static const char wrong[] = "its tags are no object, or more than a "
	    "socket may have";
	int at = token_member(t, "tags");
	const char *why = NULL;
	size_t i = (size_t)at + 1;

	t->tags = 0;
	if (at < 0)
		return NULL;
	if (t->value[at].kind != JSON_IS_OBJECT)
		return wrong;
	for (; i < t->value[at].next && !why; i = t->value[i + 1].next)
		why = t->tags < WSP_MAX_TAGS ? token_read_tag(t, i) : wrong;
	return why;
}

static const char *
token_claims(struct token *t, const struct token_use *use)
{
	const char *why = token_dates(t, use->now);
	int aud = token_member(t, "aud"), sub = token_member(t, "sub"), n;

	if (why)
		return why;
	if (use->audience.n > 0 &&
	    (aud < 0 || !token_has(t, aud, use->audience)))
		return "it is for another audience";
	t->sub = (struct str){ NULL, 0 };
	if (sub >= 0) {
		n = token_string(t->id, sizeof t->id, t, (size_t)sub);
		if (n < 0)
			return "its sub is no string, or longer than an id";
		t->sub = (struct str){ t->id, (size_t)n };
	}
	t->services = token_member(t, "services");
	if (t->services >= 0 && t->value[t->services].kind != JSON_IS_ARRAY)
		return "its services are no array";
	return token_tags(t);
}

/*
 * ---- Checking
 */

/* Everything that can be said without a signature's cost. */
static const char *
token_read(struct token *t, enum token_alg *alg, struct str header,
    struct str claims, const struct token_use *use)
{
	static const char no_json[] =
	    "its header or claims are no JSON in base64url, or too many";
	const char *why;

	if (!token_json(t, header))
		return no_json;
	why = token_header(alg, t);
	if (why)
		return why;
	return token_json(t, claims) ? token_claims(t, use) : no_json;
}

static bool
token_is_signed(enum token_alg alg, struct str text, struct str signature,
    const struct token_key *key, size_t keys)
{
	u8 sig[TOKEN_SIGNATURE];
	int n = base64_decode(sig, sizeof sig, signature, BASE64URL);

	for (size_t i = 0; n > 0 && i < keys; i++)
		if (key[i].alg == alg &&
		    token_signed_by(&key[i], text, sig, (size_t)n))
			return true;
	return false;
}

/* Does `sub`, an id or the beginning of ids and a star, name this id? */
static bool
token_names_id(struct str sub, struct str id)
{
	if (sub.n == 0 || sub.p[sub.n - 1] != '*')
		return str_eq(id, sub);
	sub.n--;
	id.n = min_size(id.n, sub.n);
	return str_eq(id, sub);
}

/* A good token, but is it good for this? */
static const char *
token_refuses(const struct token *t, const struct token_use *use)
{
	if (t->services >= 0 && use->service.n > 0 &&
	    !token_has(t, t->services, use->service))
		return "it is not for this service";
	if (use->id.n == 0)
		return NULL;
	if (!t->sub.p)
		return "it has no sub: it is for volatile sockets only";
	return token_names_id(t->sub, use->id) ? NULL :
	    "its sub is not this id";
}

/*
 * Checks a token: 0, 401 when it is of no use, 403 when it is good but not for
 * this, 503 when it may be good; and then the reason in *why.
 */
static int
token_check(struct token *t, const char **why, struct str text,
    const struct token_key *key, size_t keys, const struct token_use *use)
{
	struct str signature = text, header, claims;
	enum token_alg alg = TOKEN_HS256;

	if (text.n > WSP_MAX_TOKEN)
		*why = "it is too long";
	else if (!split_next(&signature, '.', &header) ||
	    !split_next(&signature, '.', &claims) || signature.n == 0)
		*why = "it is not three parts with dots between";
	else
		*why = token_read(t, &alg, header, claims, use);
	if (*why)
		return 401;
	text.n -= signature.n + 1; /* what is signed */
	if (use->unread || !token_is_signed(alg, text, signature, key, keys)) {
		*why = use->unread ? token_unread : token_forged;
		return use->unread ? 503 : 401;
	}
	*why = token_refuses(t, use);
	return *why ? 403 : 0;
}

/*
 * ---- Where a request has its token
 */

enum token_place { TOKEN_NOWHERE, TOKEN_IN_COOKIE, TOKEN_IN_PROTOCOL,
	TOKEN_IN_HEADER, TOKEN_IN_URL };

/* The word behind `bearer` in the list of subprotocols, empty when there is
 * none behind it. */
static bool
token_in_protocol(struct str *token, const struct http_request *r)
{
	struct str list;
	size_t cursor = 0;
	bool found = false;

	while (http_header_next(r, "Sec-WebSocket-Protocol", &cursor, &list))
		while (http_list_next(&list, token)) {
			if (found)
				return true;
			found = str_is(*token, "bearer");
		}
	*token = STR("");
	return found;
}

/* Of two tokens none is meant. */
static bool
token_in_header(struct str *token, const struct http_request *r)
{
	struct str value, scheme;
	size_t cursor = 0;
	bool found = false;

	while (http_header_next(r, "Authorization", &cursor, &value)) {
		(void)split_next(&value, ' ', &scheme);
		if (!text_same_as(scheme, "Bearer"))
			continue;
		*token = found ? STR("") : text_trim(value);
		found = true;
	}
	return found;
}

/* The last place that has one decides, good or bad. */
static enum token_place
token_find(struct str *token, const struct http_request *r, bool in_url)
{
	struct str text;
	int n = in_url ? http_parameter(&text, r->query, "token") : 0;

	if (n != 0) {
		*token = n == 1 ? text : STR("");
		return TOKEN_IN_URL;
	}
	if (token_in_header(token, r))
		return TOKEN_IN_HEADER;
	if (token_in_protocol(token, r))
		return TOKEN_IN_PROTOCOL;
	return http_cookie(r, "wspush_token", token) ? TOKEN_IN_COOKIE :
	    TOKEN_NOWHERE;
}

/*
 * ---- Minting
 */

/* What a new token is to say; what is empty is left out. */
struct token_plan {
	int64_t expires;
	struct str sub, audience;
	u32 services, tags;
	struct str service[TOKEN_SERVICES];
	struct tag_line tag[WSP_MAX_TAGS];
};

static void
token_put(struct out *o, const void *p, size_t n)
{
	if (o->full || (n * 4 + 2) / 3 > o->cap - o->n)
		o->full = true;
	else
		o->n += base64_encode(o->p + o->n, p, n, BASE64URL);
}

static void
token_write_claims(struct out *o, const struct token_plan *plan)
{
	out_print(o, "{\"exp\":%lld", (long long)plan->expires);
	if (plan->sub.n > 0)
		json_member_string(o, ",\"sub\":", &plan->sub);
	if (plan->audience.n > 0)
		json_member_string(o, ",\"aud\":", &plan->audience);
	for (u32 i = 0; i < plan->services; i++)
		json_member_string(o, i == 0 ? ",\"services\":[" : ",",
		    &plan->service[i]);
	if (plan->services > 0)
		out_char(o, ']');
	for (u32 i = 0; i < plan->tags; i++) {
		json_member_string(o, i == 0 ? ",\"tags\":{" : ",",
		    &plan->tag[i].name);
		json_member_string(o, ":", &plan->tag[i].value);
	}
	out_text(o, plan->tags > 0 ? "}}" : "}");
}

/* Signs claims, which are JSON, and writes the token from the start of o;
 * o->full: too long. */
static void
token_write(struct out *o, const struct token_key *k, struct str claims)
{
	char header[64];
	u8 sig[TOKEN_SIGNATURE];
	size_t n;

	text_print(header, sizeof header, "{\"alg\":\"%s\",\"typ\":\"JWT\"}",
	    token_alg_name[k->alg]);
	token_put(o, header, strlen(header));
	out_char(o, '.');
	token_put(o, claims.p, claims.n);
	if (o->full)
		return;
	n = token_sign(sig, k, (struct str){ o->p, o->n });
	out_char(o, '.');
	token_put(o, sig, n);
}

/* ----- 18. DER -----------------------------------------------------------
 *
 * What certificates, keys and the files that hold them are made of (X.690,
 * RFC 7468), and the calendar in them.  A reader takes the next element off
 * what is left of a sequence, believes no length, and finds slices of its
 * input; what is wrong is false or -1.  The writer never overruns.  Only the
 * form is looked at here: whether to use a key is for Certificates to say.
 */

#define CERT_KEY_MAX 2400 /* DER bytes of a key: RSA-4096 has 2376 */
#define DAY          86400

/* DER that is being read: what is left of a sequence. */
struct der {
	const u8 *p;
	size_t n;
};

/* A private key that was read. */
struct cert_key {
	int type;     /* BR_KEYTYPE_RSA or BR_KEYTYPE_EC */
	br_rsa_private_key rsa; /* one of the two, points into der */
	br_ec_private_key ec;
	u8 der[CERT_KEY_MAX];
};

/* The calendar is our own: time_t has 32 bits on many of our boards and ends
 * sooner than certificates do.  Its years begin in March, so that the leap day
 * is the last, and its days on the first of March of year 0. */
#define DATE_1970 719468

/* The first day of a year. */
static u32
date_year(u32 year)
{
	return year * 365 + year / 4 - year / 100 + year / 400;
}

/* YYYYMMDDhhmmssZ. */
static void
date_text(char text[16], int64_t seconds)
{
	u32 days = (u32)(seconds / DAY) + DATE_1970;
	u32 left = (u32)(seconds % DAY), year = days / 365, month;

	while (date_year(year) > days)
		year--;
	days -= date_year(year);
	month = (days * 5 + 2) / 153; /* 0 is March */
	text_print(text, 16, "%04u%02u%02u%02u%02u%02uZ",
	    year + (month >= 10), (month + 2) % 12 + 1,
	    days - (month * 153 + 2) / 5 + 1, left / 3600, left / 60 % 60,
	    left % 60);
}

/* Takes the next element off d if it has this tag and is whole. */
static bool
der_take(struct der *d, u8 tag, struct der *content)
{
	size_t head = 2, length;

	if (d->n < 2 || d->p[0] != tag || d->p[1] == 0x80)
		return false;
	length = d->p[1];
	if (length > 0x80) {
		head += length - 0x80;
		if (head > 5 || d->n < head)
			return false;
		length = 0;
		for (size_t i = 2; i < head; i++)
			length = length << 8 | d->p[i];
	}
	if (length > d->n - head)
		return false;
	*content = (struct der){ d->p + head, length };
	*d = (struct der){ d->p + head + length, d->n - head - length };
	return true;
}

/* A number without zeroes before it; none of ours is 0 or negative. */
static bool
der_take_number(struct der *d, struct der *v)
{
	if (!der_take(d, 0x02, v))
		return false;
	for (; v->n > 0 && v->p[0] == 0; v->n--)
		v->p++;
	return v->n > 0;
}

static bool
der_is(struct der d, const u8 *p, size_t n)
{
	return d.n == n && memcmp(d.p, p, n) == 0;
}

/* BearSSL's structs point to bytes that it only reads. */
static u8 *
der_bytes(struct der d)
{
	return (u8 *)(uintptr_t)d.p;
}

/* Object identifiers, and BearSSL's numbers for what they name: kinds of keys
 * (RFC 3279, 2.3; RFC 5480, 2.1.1), and curves. */
struct der_name {
	u8 is, n, oid[9];
};

static const struct der_name der_kinds[] = {
	{ BR_KEYTYPE_RSA, 9, { 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1 } },
	{ BR_KEYTYPE_EC, 7, { 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1 } },
	{ 0, 0, { 0 } }
}, der_curves[] = {
	{ BR_EC_secp256r1, 8, { 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7 } },
	{ BR_EC_secp384r1, 5, { 0x2b, 0x81, 4, 0, 34 } },
	{ BR_EC_secp521r1, 5, { 0x2b, 0x81, 4, 0, 35 } },
	{ 0, 0, { 0 } }
};

/* What an identifier names, 0: nothing of these. */
static u8
der_find(struct der oid, const struct der_name *name)
{
	while (name->n > 0 && !der_is(oid, name->oid, name->n))
		name++;
	return name->is;
}

/* The inside of a SubjectPublicKeyInfo (RFC 5280, 4.1); false when the key is
 * none of ours. */
static bool
der_public_key(br_x509_pkey *key, struct der d)
{
	struct der alg, oid, bits, n, e, curve;

	if (!der_take(&d, 0x30, &alg) || !der_take(&alg, 0x06, &oid) ||
	    !der_take(&d, 0x03, &bits) || bits.n == 0 || bits.p[0] != 0)
		return false;
	bits = (struct der){ bits.p + 1, bits.n - 1 };
	key->key_type = der_find(oid, der_kinds);
	if (key->key_type == BR_KEYTYPE_EC) {
		if (!der_take(&alg, 0x06, &curve))
			return false;
		key->key.ec = (br_ec_public_key){
			der_find(curve, der_curves), der_bytes(bits), bits.n };
		return key->key.ec.curve != 0;
	}
	if (key->key_type == 0 || !der_take(&bits, 0x30, &d) ||
	    !der_take_number(&d, &n) || !der_take_number(&d, &e))
		return false;
	key->key.rsa = (br_rsa_public_key){ der_bytes(n), n.n, der_bytes(e),
		e.n };
	return true;
}

/*
 * A private key: SEC 1 (RFC 5915), PKCS #1 (RFC 8017, A.1.2), or PKCS #8
 * (RFC 5958), which holds one of these.  Its type, 0 when it is none of ours,
 * -1 when it is damaged.
 */
static int
der_private_key(struct cert_key *k, struct der d)
{
	struct der key, alg, oid, x, v[8], curve = { NULL, 0 };

	if (!der_take(&d, 0x30, &key) || !der_take(&key, 0x02, &x))
		return -1;
	if (der_take(&key, 0x30, &alg)) {
		if (!der_take(&alg, 0x06, &oid) || !der_take(&key, 0x04, &d))
			return -1;
		if (der_find(oid, der_kinds) == 0)
			return 0;
		(void)der_take(&alg, 0x06, &curve);
		if (!der_take(&d, 0x30, &key) || !der_take(&key, 0x02, &x))
			return -1;
	}
	if (der_take(&key, 0x04, &x)) {
		if (der_take(&key, 0xa0, &d))
			(void)der_take(&d, 0x06, &curve);
		k->ec = (br_ec_private_key){ der_find(curve, der_curves),
			der_bytes(x), x.n };
		return k->ec.curve ? BR_KEYTYPE_EC : 0;
	}
	for (int i = 0; i < 8; i++) /* n e d p q dp dq iq */
		if (!der_take_number(&key, &v[i]))
			return -1;
	k->rsa = (br_rsa_private_key){ (u32)v[0].n * 8,
		der_bytes(v[3]), v[3].n, der_bytes(v[4]), v[4].n,
		der_bytes(v[5]), v[5].n, der_bytes(v[6]), v[6].n,
		der_bytes(v[7]), v[7].n };
	for (u8 top = v[0].p[0]; top < 0x80; top = (u8)(top << 1))
		k->rsa.n_bitlen--;
	return BR_KEYTYPE_RSA;
}

/* UTCTime or GeneralizedTime, as seconds since 1970. */
static bool
der_take_date(struct der *d, int64_t *seconds)
{
	struct der t;
	bool brief = der_take(d, 0x17, &t);
	u32 part[7], month; /* century, year, month, ... */

	if ((!brief && !der_take(d, 0x18, &t)) || t.n != (brief ? 13 : 15) ||
	    t.p[t.n - 1] != 'Z')
		return false;
	for (int i = brief; i < 7; i++, t.p += 2) {
		u32 tens = (u32)t.p[0] - '0', ones = (u32)t.p[1] - '0';

		if (tens > 9 || ones > 9)
			return false;
		part[i] = tens * 10 + ones;
	}
	if (brief)
		part[0] = part[1] < 50 ? 20 : 19;
	month = (part[2] + 9) % 12;
	*seconds = (int64_t)(int)(date_year(part[0] * 100 + part[1] -
	    (part[2] < 3)) + (month * 153 + 2) / 5 + part[3] - 1 - DATE_1970) *
	    DAY + part[4] * 3600 + part[5] * 60 + part[6];
	return true;
}

/* An object of a PEM file: its label, and its base64 without white space. */
struct pem {
	struct str label, text;
};

/*
 * Takes the next object off a PEM file: 1, 0 when there is none, -1 when it is
 * cut short.  A byte order mark, carriage returns, comments and a last line
 * without its end, which tools trip over (TLS.md, 5), mean nothing here.  The
 * file is changed in place.
 */
static int
pem_next(struct str *file, struct pem *m)
{
	struct str skip, end;
	size_t n = 0;
	char *p;

	if (!text_upto(file, "-----BEGIN ", &skip))
		return 0;
	if (!text_upto(file, "-----", &m->label) ||
	    !text_upto(file, "-----END ", &m->text) ||
	    !text_upto(file, "-----", &end) || !str_eq(end, m->label))
		return -1;
	p = (char *)(uintptr_t)m->text.p;
	for (size_t i = 0; i < m->text.n; i++)
		if (!strchr(" \t\r\n", p[i]))
			p[n++] = p[i];
	m->text.n = n;
	return 1;
}

/*
 * DER is written from its end to its start, so that every length is known
 * when its place comes.
 */
struct der_out {
	u8 *start, *p; /* what is written begins at p */
	bool full;
};

static void
der_put(struct der_out *o, const void *p, size_t n)
{
	if (o->full || n > (size_t)(o->p - o->start)) {
		o->full = true;
		return;
	}
	o->p -= n;
	memcpy(o->p, p, n);
}

/* Puts tag and length before what was written since p was `end`. */
static void
der_wrap(struct der_out *o, u8 tag, const u8 *end)
{
	size_t n = (size_t)(end - o->p);
	u8 head[] = { tag, 0x82, (u8)(n >> 8), (u8)n };

	if (n > 255) {
		der_put(o, head, 4);
		return;
	}
	der_put(o, head + 3, 1);
	head[2] = 0x81;
	if (n > 127)
		der_put(o, head + 2, 1);
	der_put(o, head, 1);
}

static void
der_put_a(struct der_out *o, u8 tag, const void *p, size_t n)
{
	const u8 *end = o->p;

	der_put(o, p, n);
	der_wrap(o, tag, end);
}

/* UTCTime until 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5). */
static void
der_put_date(struct der_out *o, int64_t seconds)
{
	char text[16];

	date_text(text, seconds);
	if (memcmp(text, "2050", 4) < 0)
		der_put_a(o, 0x17, text + 2, 13);
	else
		der_put_a(o, 0x18, text, 15);
}

FAST_CODE

#ifndef WSP_PURE_ONLY
/*
 * ======================================================================
 * PART TWO: KERNEL
 * ======================================================================
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h> /* setgroups() */
#include <limits.h>
#include <link.h> /* dl_iterate_phdr() */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h> /* rename() */
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* ----- 19. System calls --------------------------------------------------
 *
 * What the running server asks of the kernel, and nobody else does.  Each
 * call returns a count or a descriptor, or -errno, and is tried again on
 * EINTR.  A test that defines WSP_FAKE_SYS brings a room of its own.
 */
#ifndef WSP_FAKE_SYS

static ssize_t
sys_result(ssize_t r)
{
	return r < 0 ? -errno : r;
}

static ssize_t
sys_recv(int fd, void *p, size_t n, int flags)
{
	ssize_t r;

	do
		r = sys_result(recv(fd, p, n, flags | MSG_DONTWAIT));
	while (r == -EINTR);
	return r;
}

static ssize_t
sys_send(int fd, const void *p, size_t n, int flags)
{
	ssize_t r;

	do
		r = sys_result(send(fd, p, n,
		    flags | MSG_DONTWAIT | MSG_NOSIGNAL));
	while (r == -EINTR);
	return r;
}

/* writev() for sockets: the flags spare us SIGPIPE. */
static ssize_t
sys_sendv(int fd, struct iovec *iov, u32 count, int flags)
{
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = count };
	ssize_t r;

	do
		r = sys_result(sendmsg(fd, &m,
		    flags | MSG_DONTWAIT | MSG_NOSIGNAL));
	while (r == -EINTR);
	return r;
}

/* A datagram, its sender's address (length 0: none) and, when the socket has
 * SO_PASSCRED, its sender's credentials.  Returns the datagram's real length,
 * which may be more than n. */
static ssize_t
sys_recvfrom(int fd, void *p, size_t n, struct sockaddr_un *from,
    socklen_t *from_n, struct ucred *who)
{
	struct iovec iov = { .iov_base = p, .iov_len = n };
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	/* Behind a path of 108 bytes the kernel counts an end for which the
	 * structure has no room (unix(7)), and takes no such length back. */
	union {
		struct sockaddr_un un;
		char room[sizeof(struct sockaddr_un) + 1];
	} name = { .un = { 0 } };
	struct msghdr m = { .msg_name = &name, .msg_namelen = sizeof name.room,
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
		.msg_controllen = sizeof control };
	struct cmsghdr *c;
	ssize_t r;

	*who = (struct ucred){ .uid = (uid_t)-1, .gid = (gid_t)-1 };
	do
		r = sys_result(recvmsg(fd, &m, MSG_DONTWAIT | MSG_TRUNC));
	while (r == -EINTR);
	*from = name.un;
	*from_n = (socklen_t)min_size(m.msg_namelen, sizeof *from);
	c = r < 0 ? NULL : CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_type == SCM_CREDENTIALS)
		memcpy(who, CMSG_DATA(c), sizeof *who);
	return r;
}

static ssize_t
sys_sendto(int fd, const void *p, size_t n, const struct sockaddr_un *to,
    socklen_t to_n)
{
	ssize_t r;

	do
		r = sys_result(sendto(fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL,
		    (const struct sockaddr *)to, to_n));
	while (r == -EINTR);
	return r;
}

static int
sys_accept(int fd, struct sockaddr_storage *from, socklen_t *from_n)
{
	int r;

	do
		r = (int)sys_result(accept4(fd, (struct sockaddr *)from,
		    from_n, SOCK_NONBLOCK | SOCK_CLOEXEC));
	while (r == -EINTR);
	return r;
}

static void
sys_close(int fd)
{
	/* Linux frees the descriptor even when it reports EINTR. */
	close(fd);
}

static void
sys_shutdown(int fd, int how)
{
	shutdown(fd, how);
}

static int
sys_setsockopt(int fd, int level, int name, int value)
{
	return (int)sys_result(setsockopt(fd, level, name, &value,
	    sizeof value));
}

/* Bytes that a socket holds: FIONREAD for us, TIOCOUTQ those that its peer
 * has not yet taken. */
static int
sys_held(int fd, int which)
{
	int n = 0;

	return ioctl(fd, which, &n) < 0 ? -errno : n;
}

static int
sys_epoll_ctl(int ep, int op, int fd, u32 events, u64 data)
{
	struct epoll_event ev = { .events = events, .data.u64 = data };

	return (int)sys_result(epoll_ctl(ep, op, fd, &ev));
}

/* Unlike the others an interrupted wait returns 0: a signal may have come
 * that the loop wants to look at. */
static int
sys_epoll_wait(int ep, struct epoll_event *ev, int count, int timeout_ms)
{
	int r = epoll_wait(ep, ev, count, timeout_ms);

	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	return r;
}

static int64_t
sys_clock_ms(clockid_t which)
{
	struct timespec t;

	clock_gettime(which, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void
sys_random(void *p, size_t n)
{
	u8 *to = p;

	while (n > 0) {
		ssize_t r = getrandom(to, n, 0);

		assert(r > 0 || errno == EINTR);
		if (r > 0) {
			to += r;
			n -= (size_t)r;
		}
	}
}

/* Gives the whole pages in there, of the arena, back to the kernel: they come
 * again as zeroes. */
static void
sys_forget(void *p, size_t n)
{
	uintptr_t page = (uintptr_t)getpagesize();
	uintptr_t from = ((uintptr_t)p + page - 1) & -page;
	uintptr_t to = ((uintptr_t)p + n) & -page;

	if (from < to)
		madvise((void *)from, to - from, MADV_DONTNEED);
}

/* Writes what can be written without waiting: a log that nobody reads must
 * not stop the server. */
static ssize_t
sys_write(int fd, const void *p, size_t n)
{
	struct pollfd ready = { .fd = fd, .events = POLLOUT };
	ssize_t r;

	if (poll(&ready, 1, 0) != 1)
		return -EAGAIN;
	do
		r = sys_result(write(fd, p, n));
	while (r == -EINTR);
	return r;
}

/* A whole file, at start and on reload.  Returns its length, -EFBIG when it
 * does not fit. */
static ssize_t
sys_read_file(const char *path, void *p, size_t cap)
{
	size_t n = 0;
	ssize_t r;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	do {
		r = sys_result(read(fd, (u8 *)p + n, cap - n));
		if (r > 0)
			n += (size_t)r;
	} while (r == -EINTR || (r > 0 && n < cap));
	close(fd);
	return r < 0 ? r : n == cap ? -EFBIG : (ssize_t)n;
}

/* Replaces a file at once or not at all: a power cut leaves the old one or
 * the new one. */
static int
sys_write_file(const char *path, const void *p, size_t n, mode_t mode)
{
	char temp[PATH_MAX];
	int fd, err;

	assert(strlen(path) + sizeof ".new" <= sizeof temp);
	text_print(temp, sizeof temp, "%s.new", path);
	unlink(temp);
	fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	if (fd < 0)
		return -errno;
	errno = ENOSPC; /* what a short write means, which does not say so */
	err = write(fd, p, n) == (ssize_t)n && fsync(fd) == 0 &&
	    rename(temp, path) == 0 ? 0 : -errno;
	close(fd); /* cannot say more than fsync() did */
	if (err < 0)
		unlink(temp);
	return err;
}

#endif /* WSP_FAKE_SYS */

/* For datagrams that nobody waits for, or -1. */
static int
sys_unix_socket(void)
{
	return socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* A buffer for what is sent: the kernel doubles n, so that it never is too
 * small.  Only root may go beyond net.core.wmem_max. */
static void
sys_set_sending(int fd, int n)
{
	if (sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, n) < 0)
		sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, n);
}

/* A directory, and those above it that are missing, as mkdir -p makes them.
 * Returns 0 or the error of the first that is not there and cannot be made. */
static int
sys_make_directories(const char *path)
{
	char part[PATH_MAX];
	size_t n = strlen(path);

	assert(n < sizeof part);
	for (size_t i = 1; i <= n; i++) {
		if (i < n && path[i] != '/')
			continue;
		memcpy(part, path, i);
		part[i] = '\0';
		if (mkdir(part, 0755) < 0 && errno != EEXIST) {
			int err = -errno;

			if (access(part, F_OK) < 0)
				return err;
		}
	}
	return 0;
}

/* A descriptor that says which of the signals for us has come, those of
 * children among them or not; none of them interrupts us any more. */
static int
sys_signals(bool children)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (children)
		sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

SMALL_CODE

/* ----- 20. Log and print -------------------------------------------------
 *
 * One line per event: a fixed word, then key=value (logfmt); text from a peer,
 * a path and a sentence are quoted and escaped.  LOG_LINES of a word in a
 * second are a flood: then a line and a count a second.  A log that cannot be
 * written (a full disk, a closed pipe) is lost and the server goes on.  What
 * verbs print goes through one buffer; what goes wrong with them is a line on
 * standard error.
 */
#define LOG_LINES 20
#define LOG_WORDS 24 /* kinds of events; more are not limited */

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG };

static struct {
	enum log_level level;
	int syslog;    /* a socket for it, or -1 */
	unsigned lost; /* lines that could not be written */
	u32 floods;    /* events that have a count to be said */
} log_to = { .level = LOG_LEVEL_INFO, .syslog = -1 };

/* What was said of each kind of event in its second. */
static struct log_word {
	const char *event;
	enum log_level level;
	int64_t until; /* when the second is over */
	u32 n, most;   /* events in it, lines in it at most */
} log_words[LOG_WORDS];

/* Writes one event.  `format` makes the key=value part. */
static void log_event(enum log_level level, const char *event,
    const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same without a limit, for who has one of its own. */
static void log_line(enum log_level level, const char *event,
    const char *format, ...) __attribute__((format(printf, 3, 4)));

static void log_write(enum log_level level, const char *event,
    const char *format, va_list ap) __attribute__((format(printf, 3, 0)));

static void
log_write(enum log_level level, const char *event, const char *format,
    va_list ap)
{
	static const char word[][6] = { "error", "warn", "info", "debug" };
	static const u8 daemon[] = { 27, 28, 30, 31 }; /* (RFC 3164, 4.1.1) */
	enum { LOST = 24 };
	char line[1024];
	struct out o = out_to(line, sizeof line - LOST);
	ssize_t r;

	if (level > log_to.level)
		return;
	if (log_to.syslog >= 0)
		out_print(&o, "<%d>wspush[%d]: ", daemon[level], getpid());
	else
		out_text(&o, "wspush: ");
	out_print(&o, "%s %s ", word[level], event);
	out_format(&o, format, ap);
	if (log_to.syslog >= 0) {
		struct sockaddr_un to = { .sun_family = AF_UNIX };

		strcpy(to.sun_path, "/dev/log");
		r = sys_sendto(log_to.syslog, line, o.n, &to, sizeof to);
	} else {
		o.cap = sizeof line;
		o.full = false;
		if (log_to.lost > 0)
			out_print(&o, " lost=%u", log_to.lost);
		out_char(&o, '\n');
		r = sys_write(STDERR_FILENO, line, o.n);
	}
	log_to.lost = r < 0 ? log_to.lost + 1 : 0;
}

static void
log_line(enum log_level level, const char *event, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	log_write(level, event, format, ap);
	va_end(ap);
}

/* Counts what was not said in the second that is over, and begins the next. */
static void
log_next_second(struct log_word *w, int64_t now)
{
	if (w->n > w->most) {
		log_line(w->level, w->event, "more=%u", w->n - w->most);
		log_to.floods--;
	}
	w->most = w->n > LOG_LINES && now < w->until + 1000 ? 1 : LOG_LINES;
	w->n = 0;
	w->until = now + 1000;
}

/* Is it said, or only counted? */
static bool
log_is_said(enum log_level level, const char *event)
{
	int64_t now = sys_clock_ms(CLOCK_MONOTONIC);
	struct log_word *w = log_words;

	while (w < log_words + LOG_WORDS && w->event &&
	    strcmp(w->event, event) != 0)
		w++;
	if (w == log_words + LOG_WORDS)
		return true;
	w->event = event;
	w->level = level;
	if (now >= w->until)
		log_next_second(w, now);
	log_to.floods += w->n == w->most;
	return w->n++ < w->most;
}

/* Says how many were not, once the second is over. */
static void
log_tick(int64_t now)
{
	if (log_to.floods == 0)
		return;
	for (u32 i = 0; i < LOG_WORDS; i++)
		if (log_words[i].n > log_words[i].most &&
		    now >= log_words[i].until)
			log_next_second(&log_words[i], now);
}

static void
log_event(enum log_level level, const char *event, const char *format, ...)
{
	va_list ap;

	/* Who asks for debug lines wants them all. */
	if (level > log_to.level ||
	    (level < LOG_LEVEL_DEBUG && !log_is_said(level, event)))
		return;
	va_start(ap, format);
	log_write(level, event, format, ap);
	va_end(ap);
}

/* A peer's bytes as they may stand in a log line: quoted, everything but
 * printable ASCII escaped, cut when long.  `room` holds the result. */
struct log_room {
	char text[600];
};

static const char *
log_quote(struct log_room *room, struct str s)
{
	struct out o = out_to(room->text, sizeof room->text);

	out_char(&o, '"');
	for (size_t i = 0; i < s.n && o.n < sizeof room->text - 8; i++) {
		char c = s.p[i];

		if (c >= ' ' && c <= '~' && c != '"' && c != '\\')
			out_char(&o, c);
		else
			out_print(&o, "\\x%02x", (u8)c);
	}
	out_bytes(&o, "\"", 2); /* and an end */
	return room->text;
}

/* Standard output; usage that was asked for wrongly goes to standard error. */
static char print_room[4096];
static struct out print_out = { print_room, 0, sizeof print_room, false };
static int print_fd = STDOUT_FILENO;
static int print_lost; /* errno, when something that was printed is lost */

static bool
print_flush(void)
{
	for (size_t at = 0; at < print_out.n && !print_lost;) {
		ssize_t r = write(print_fd, print_room + at, print_out.n - at);

		if (r > 0)
			at += (size_t)r;
		else if (r == 0 || errno != EINTR)
			print_lost = r == 0 ? EIO : errno;
	}
	print_out.n = 0;
	return !print_lost;
}

static void
print_str(struct str s)
{
	while (s.n > 0) {
		size_t n = min_size(s.n, print_out.cap - print_out.n);

		out_bytes(&print_out, s.p, n);
		s = text_from(s, n);
		if (s.n > 0)
			print_flush();
	}
}

static void print(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

static void
print(const char *format, ...)
{
	va_list ap;

	if (print_out.n > sizeof print_room / 2)
		print_flush();
	va_start(ap, format);
	out_format(&print_out, format, ap);
	va_end(ap);
	print_out.full = false; /* what is longer than half of it is cut */
}

/* Why something failed: the last refusal, one sentence. */
static char refusal[PATH_MAX + 256];

static const char *say_verb; /* in whose name wrong usage is said */

static int say(int status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Says what went wrong, in one line whatever the words at fault hold, and
 * returns the exit status for it. */
static int
say(int status, const char *format, ...)
{
	char text[PATH_MAX + 512];
	struct out o = out_to(text, sizeof text - 1);
	va_list ap;

	if (status == 2 && say_verb)
		out_print(&o, "wspush %s: ", say_verb);
	else
		out_text(&o, "wspush: ");
	va_start(ap, format);
	out_format(&o, format, ap);
	va_end(ap);
	for (size_t i = 0; i < o.n; i++)
		if ((u8)text[i] < ' ' || text[i] == 0x7f)
			text[i] = '?';
	text[o.n++] = '\n';
	(void)!write(STDERR_FILENO, text, o.n);
	return status;
}

/* ----- 21. Settings ------------------------------------------------------
 *
 * What the options say (INTERFACE 12), parsed in Options and read by the
 * rooms between.  Texts point into the command line or into the settings
 * file, both of which stay in memory.
 */
#define SETTINGS_LISTENERS 8
#define LISTEN_METRICS     SETTINGS_LISTENERS /* its row */
#define SETTINGS_SERVICES  16
#define SETTINGS_ORIGINS   16
#define SETTINGS_RETAINED  1024
#define SETTINGS_ALLOWED   64
#define SETTINGS_TOKEN_KEYS 8
#define SERVICE_PROTOCOLS  4
#define SERVICE_PROTOCOL   256 /* bytes of one: service_open() has 512 */

enum handler { HANDLER_MAIN, HANDLER_ECHO, HANDLER_NONE, HANDLER_UNIX,
	HANDLER_EXEC };

struct service {
	const char *text;  /* the option as it was written */
	struct str name;
	enum handler handler;
	struct str program; /* of unix: its path, of exec: its command */
	bool auth;       /* the program says who may come in */
	struct str protocol[SERVICE_PROTOCOLS];
	u32 protocols;
	struct str origin[SERVICE_PROTOCOLS];
	u32 origins;
	u32 max;         /* open connections; 0: no limit of its own */
	u32 open;
	bool has_ack, ack_sent;
	bool has_overflow;
	enum overflow overflow;
};

struct listener {
	const char *text; /* [ADDR:]PORT */
	bool tls;
	int fd;           /* -1 until bound */
};

struct settings {
	u32 max_sockets, max_per_ip;
	u32 queue_messages, queue_bytes, store_bytes;
	u32 max_message, max_inbound, send_buffer, retained;
	u32 ping_interval, pong_timeout, handshake_timeout;
	u32 wait;         /* seconds to try again for what is not to be had */
	u32 duplicate_reject; /* 0 or 1, as is the next */
	u32 ack_sent;
	bool token_in_url;
	bool no_page;
	bool no_sandbox;
	bool syslog;
	u32 push_mode;
	const char *push_path, *push_group;
	const char *state;
	const char *user;
	const char *token_audience;
	u32 listeners;   /* without that of --metrics */
	u32 services;
	/* What SIGHUP takes over, up to the listeners. */
	u32 session_ttl;
	enum overflow overflow;
	const char *cert, *key;
	u32 origins, token_keys;
	u32 allow_uids, allow_gids;
	u32 allows;      /* --push-allow was given so often; 0: all may */
	const char *token_key[SETTINGS_TOKEN_KEYS];
	struct str origin[SETTINGS_ORIGINS];
	uid_t allow_uid[SETTINGS_ALLOWED]; /* who may push, beside uid 0 */
	gid_t allow_gid[SETTINGS_ALLOWED];
	/* And what needs a restart again. */
	struct listener listen[SETTINGS_LISTENERS + 1];
	struct service service[SETTINGS_SERVICES];
};

#define SETTINGS_RELOAD_AT offsetof(struct settings, session_ttl)
#define SETTINGS_RELOAD    (offsetof(struct settings, listen) -               \
	SETTINGS_RELOAD_AT)

static struct settings settings RESIDENT;

/* A verb's command line while its options are read. */
struct words {
	char **at;         /* the next word */
	const char *in;    /* more letters of the last one */
	const char *value; /* of the letter just read, "" for a flag */
};

/*
 * The next option's letter, 0 behind the last one, -1 when it is wrong, which
 * is said.  They end at the first word that is none, so that a message may
 * begin with `-`.  `known` is as for getopt(): letters, a `:` behind those
 * that take a value.
 */
static int
words_option(struct words *w, const char *known)
{
	const char *a = *w->at, *k;

	if (!w->in || !*w->in) {
		if (!a || a[0] != '-' || !a[1])
			return 0;
		w->at++;
		if (strcmp(a, "--") == 0)
			return 0;
		w->in = a + 1;
	}
	k = *w->in == ':' ? NULL : strchr(known, *w->in);
	if (!k) {
		say(2, "unknown option -%s", w->in);
		return -1;
	}
	w->in++;
	w->value = "";
	if (k[1] == ':') {
		w->value = *w->in ? w->in : *w->at;
		w->at += !*w->in && *w->at;
		w->in = NULL;
	}
	if (w->value)
		return *k;
	say(2, "option -%c needs a value", *k);
	return -1;
}

static bool
listener_is_used(u32 i)
{
	return i < settings.listeners ||
	    (i == LISTEN_METRICS && settings.listen[i].text);
}

/* ----- 22. Certificates --------------------------------------------------
 *
 * Owns the server's certificate and key: reads them from PEM or DER, whatever
 * editors and tools have done to the files, and believes nothing.  Two places
 * hold a pair each, so that a reload reads into the one that is not in use.
 * Every refusal is a sentence that begins with the file's name.
 */

/* The DER bytes of a certificate with its chain. */
#ifndef WSP_TLS_CHAIN
#define WSP_TLS_CHAIN 8192
#endif

/* A certificate or key file as it is on disk, comments and all. */
#ifndef WSP_TLS_FILE
#define WSP_TLS_FILE 32768
#endif

/* Days before its end when one of our own is renewed and any is warned of. */
#define WSP_CERT_RENEW 30

/* When this program was built, in seconds since 1970: a clock that shows less
 * is wrong.  The Makefile knows better than this line, which is just the day
 * it was written. */
#ifndef WSP_BUILD_DATE
#define WSP_BUILD_DATE 1795305600
#endif

#define CERT_CHAIN 8 /* certificates in a chain */

/* Zeroes what is secret; the compiler may not think it useless. */
static void
wipe(void *p, size_t n)
{
	memset(p, 0, n);
	__asm__ volatile("" : : "r"(p) : "memory");
}

/* What we want to know of a certificate (RFC 5280, 4.1). */
struct cert_parts {
	struct der issuer, dates, subject, key;
};

/* A certificate with its key. */
struct cert {
	size_t der_n;
	br_x509_certificate chain[CERT_CHAIN]; /* point into der */
	struct cert_parts parts[CERT_CHAIN];   /* of each, as well */
	size_t count;
	int64_t not_after; /* seconds since 1970 */
	struct cert_key key;
	u8 der[WSP_TLS_CHAIN];
};

static struct {
	struct cert *used; /* the place in use, NULL: none is loaded */
	struct cert place[2];
	/* The paths of both files, for a reload, and behind them a file while
	 * it is read: most of it is never touched. */
	char room[2 * PATH_MAX + WSP_TLS_FILE + 1];
} certs;

/* Says in `refusal` what is wrong with a file, and returns -1. */
static int cert_fail(const char *path, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static int
cert_fail(const char *path, const char *format, ...)
{
	struct out o = out_to(refusal, sizeof refusal - 1);
	va_list ap;

	out_print(&o, "%s ", path);
	va_start(ap, format);
	out_format(&o, format, ap);
	va_end(ap);
	refusal[o.n] = '\0';
	return -1;
}

static char *
cert_key_path(void)
{
	return certs.room + strlen(certs.room) + 1;
}

/* Where a file is read into. */
static char *
cert_file_room(void)
{
	return cert_key_path() + strlen(cert_key_path()) + 1;
}

/* The place that is not in use, where the next pair is read into. */
static struct cert *
cert_spare(void)
{
	return &certs.place[certs.used == certs.place];
}

/* Seconds since 1970. */
static int64_t
date_now(void)
{
	return sys_clock_ms(CLOCK_REALTIME) / 1000;
}

/* A board without a battery starts in 1970. */
static bool
date_sane(int64_t now)
{
	return now >= WSP_BUILD_DATE;
}

/* Whole days until `seconds`, negative when that is past. */
static int
date_days_until(int64_t seconds)
{
	int64_t left = seconds - date_now();

	return (int)((left >= 0 ? left : left - DAY + 1) / DAY);
}

/* Takes the next certificate off d. */
static bool
cert_read(struct cert_parts *c, struct der *d)
{
	struct der whole, tbs, skip;

	if (!der_take(d, 0x30, &whole) || !der_take(&whole, 0x30, &tbs))
		return false;
	der_take(&tbs, 0xa0, &skip); /* the version may be missing */
	return der_take(&tbs, 0x02, &skip) && der_take(&tbs, 0x30, &skip) &&
	    der_take(&tbs, 0x30, &c->issuer) &&
	    der_take(&tbs, 0x30, &c->dates) &&
	    der_take(&tbs, 0x30, &c->subject) && der_take(&tbs, 0x30, &c->key);
}

static int
pem_is_encrypted(const struct pem *m, const char *path)
{
	return str_begins(m->label, "ENCRYPTED") ||
	    str_begins(m->text, "Proc-Type:") ? cert_fail(path, "holds an "
	    "encrypted key; `openssl pkey -in FILE -out NEW` takes its "
	    "passphrase off") : 0;
}

/* Reads a file into cert_file_room(). */
static int
cert_read_file(struct str *file, const char *path)
{
	char *room = cert_file_room();
	ssize_t n = sys_read_file(path, room, WSP_TLS_FILE);

	if (n == -EFBIG) {
		wipe(room, WSP_TLS_FILE);
		return cert_fail(path, "is larger than %d bytes", WSP_TLS_FILE);
	}
	if (n < 0)
		return cert_fail(path, "cannot be read: %s", strerror((int)-n));
	if (n == 0)
		return cert_fail(path, "is empty");
	*file = (struct str){ room, (size_t)n };
	return 0;
}

/* Takes the next certificate or key off a PEM file, decoded where it lies.
 * Its length; 0 when there is none, -1 when it is no good, which is said. */
static int
cert_next(struct str *file, bool key, const char **p, const char *path)
{
	struct pem m;
	int r;

	do
		r = pem_next(file, &m);
	while (r > 0 && (key ? !text_find(m.label, "PRIVATE KEY")
	                     : !str_is(m.label, "CERTIFICATE")));
	if (r == 0)
		return 0;
	if (r > 0 && pem_is_encrypted(&m, path) < 0)
		return -1;
	if (r > 0) {
		*p = m.text.p;
		r = base64_decode((u8 *)(uintptr_t)*p, m.text.n, m.text,
		    BASE64);
	}
	return r > 0 ? r : cert_fail(path, "is damaged or cut short");
}

/* Finds in a file all certificates, or the first private key among EC
 * PARAMETERS, certificates and comments.  Returns their length in DER. */
static ssize_t
cert_find(u8 *der, size_t cap, struct str file, bool key, const char *path)
{
	bool pem = file.p[0] != 0x30 || text_find(file, "-----BEGIN ");
	const char *what = key ? "private key" : "certificate", *p = file.p;
	size_t n = 0;
	int r;

	do {
		r = pem ? cert_next(&file, key, &p, path) : (int)file.n;
		if (r < 0)
			return -1;
		if ((size_t)r > cap - n)
			return cert_fail(path, "holds more than %zu bytes of "
			    "%s", cap, what);
		memcpy(der + n, p, (size_t)r);
		n += (size_t)r;
	} while (pem && !key && r > 0);
	return n > 0 ? (ssize_t)n : cert_fail(path, "holds no %s", what);
}

/* Reads what a file holds of either kind; nothing secret is left of it. */
static ssize_t
cert_read_der(u8 *der, size_t cap, bool key, const char *path)
{
	struct str file;
	ssize_t n;

	if (cert_read_file(&file, path) < 0)
		return -1;
	n = cert_find(der, cap, file, key, path);
	wipe(cert_file_room(), file.n);
	return n;
}

/* Each certificate must be signed by the next (RFC 5246, 7.4.2). */
static int
cert_load_chain(struct cert *c, const char *path)
{
	ssize_t n = cert_read_der(c->der, sizeof c->der, false, path);
	struct der rest = { c->der, (size_t)n };
	struct cert_parts *parts = c->parts;

	c->count = 0;
	if (n < 0)
		return -1;
	for (c->der_n = rest.n; rest.n > 0; parts++) {
		u8 *from = der_bytes(rest);

		if (c->count == CERT_CHAIN)
			return cert_fail(path, "holds more than %d "
			    "certificates", CERT_CHAIN);
		if (!cert_read(parts, &rest))
			return cert_fail(path, "is damaged or cut short");
		if (c->count > 0 && !der_is(parts[-1].issuer,
		    parts->subject.p, parts->subject.n))
			return cert_fail(path, "is in the wrong order: "
			    "certificate %zu did not sign number %zu",
			    c->count + 1, c->count);
		c->chain[c->count++] = (br_x509_certificate){ from,
			(size_t)(rest.p - from) };
	}
	return 0;
}

/* Refuses keys that nobody should use or BearSSL cannot. */
static int
cert_load_key(struct cert *c, const char *path)
{
	struct cert_key *k = &c->key;
	ssize_t n = cert_read_der(k->der, sizeof k->der, true, path);

	if (n < 0)
		return -1;
	k->type = der_private_key(k, (struct der){ k->der, (size_t)n });
	if (k->type == 0)
		return cert_fail(path, "holds a key that is neither RSA nor EC "
		    "on P-256, P-384 or P-521");
	if (k->type < 0)
		return cert_fail(path, "is damaged or cut short");
	if (k->type == BR_KEYTYPE_RSA && (k->rsa.n_bitlen < 2048 ||
	    k->rsa.n_bitlen > 4096))
		return cert_fail(path, "holds an RSA key of %u bits; it must "
		    "have 2048 to 4096", (unsigned)k->rsa.n_bitlen);
	return 0;
}

/* The first certificate must be the key's: it accepts what the key signs,
 * which also shows that the key's numbers belong together. */
static bool
cert_fits(const struct cert_key *k, const br_x509_pkey *public)
{
	const u8 *oid = BR_HASH_OID_SHA256;
	u8 hash[32] = { 0x5a }, sig[512], out[32];
	size_t n;

	if (public->key_type != k->type)
		return false;
	if (k->type == BR_KEYTYPE_EC) {
		n = br_ecdsa_i31_sign_asn1(&br_ec_all_m31, &br_sha256_vtable,
		    hash, &k->ec, sig);
		return n > 0 && br_ecdsa_i31_vrfy_asn1(&br_ec_all_m31, hash,
		    sizeof hash, &public->key.ec, sig, n) == 1;
	}
	n = (k->rsa.n_bitlen + 7) / 8;
	return br_rsa_pkcs1_sign_get_default()(oid, hash, sizeof hash, &k->rsa,
	    sig) == 1 && br_rsa_pkcs1_vrfy_get_default()(sig, n, oid,
	    sizeof hash, &public->key.rsa, out) == 1 &&
	    memcmp(out, hash, sizeof hash) == 0;
}

static int
cert_check_match(struct cert *c, const char *cert_path, const char *key_path)
{
	static const char kind[][4] = { [BR_KEYTYPE_RSA] = "RSA",
		[BR_KEYTYPE_EC] = "EC" };
	struct der dates = c->parts[0].dates;
	br_x509_pkey public;
	int64_t from;

	if (!der_public_key(&public, c->parts[0].key) ||
	    !der_take_date(&dates, &from) ||
	    !der_take_date(&dates, &c->not_after))
		return cert_fail(cert_path, "begins with a certificate that "
		    "is damaged or whose key is neither RSA nor EC");
	return cert_fits(&c->key, &public) ? 0 : cert_fail(key_path,
	    "is an %s key and not that of %s, which is for an %s key",
	    kind[c->key.type], cert_path, kind[public.key_type]);
}

/* Reads a certificate and its key, and checks both. */
static int
cert_load(struct cert *c, const char *cert_path, const char *key_path)
{
	if (cert_load_chain(c, cert_path) == 0 &&
	    cert_load_key(c, key_path) == 0 &&
	    cert_check_match(c, cert_path, key_path) == 0)
		return 0;
	wipe(&c->key, sizeof c->key);
	return -1;
}

/* Days to the end of the certificate in use. */
static int
tls_cert_days(void)
{
	return certs.used ? date_days_until(certs.used->not_after) : 0;
}

/* Warns of an end that is near; a wrong clock is no reason not to serve. */
static void
cert_warn(void)
{
	int days = tls_cert_days();
	struct log_room room;

	if (days < WSP_CERT_RENEW)
		log_event(LOG_LEVEL_WARN, "certificate", "state=%s path=%s "
		    "days=%d", days < 0 ? "expired" : "ending", log_quote(
		    &room, text_of(certs.room)), days);
}

/* ----- 23. Own certificate -----------------------------------------------
 *
 * A certificate for a server that was given none: P-256, signed by itself, as
 * browsers want it, with the names and addresses of this machine.  Makes it,
 * makes it anew before it ends, which never replaces what is not ours, and is
 * the verb `wspush cert`.
 */

/* Days that a certificate of our own is good for: Apple takes no more. */
#define WSP_CERT_DAYS 825

#define CERT_DER_MAX 4096 /* bytes of a certificate of our own */
#define CERT_SIG_MAX 87   /* of its signature, with its algorithm */

/* Where the number and the point lie in a key of our own, and its length. */
enum { CERT_NUMBER = 36, CERT_POINT = 73, CERT_KEY = 138 };

/* An address in 4 or 16 bytes; 0 when it is none. */
static size_t
cert_parse_address(const char *name, u8 to[16])
{
	if (http_ip(to, AF_INET, text_of(name)))
		return 4;
	return http_ip(to, AF_INET6, text_of(name)) ? 16 : 0;
}

/* What may stand in a certificate: an address or a host name. */
static bool
cert_name_ok(const char *name)
{
	u8 address[16];
	size_t label;

	if (cert_parse_address(name, address) > 0)
		return true;
	if (strlen(name) > 253)
		return false;
	for (;; name += label + 1) {
		for (label = 0; text_is_one(name[label], "_-");)
			label++;
		if (label == 0 || label > 63 || name[0] == '-')
			return false;
		if (name[label] != '.')
			return name[label] == '\0';
	}
}

/* Puts an address (0x87) or a host name (0x82) before those of its kind that
 * begin what lies up to `end`, unless it is one of them. */
static void
cert_put_name(struct der_out *o, const u8 *end, u8 tag, const void *p,
    size_t n)
{
	struct der rest = { o->p, (size_t)(end - o->p) }, name;

	while (der_take(&rest, tag, &name))
		if (der_is(name, p, n))
			return;
	der_put_a(o, tag, p, n);
}

static void
cert_put_text(struct der_out *o, const u8 *end, const char *name)
{
	u8 address[16];
	size_t n = cert_parse_address(name, address);

	if (n > 0)
		cert_put_name(o, end, 0x87, address, n);
	else
		cert_put_name(o, end, 0x82, name, strlen(name));
}

/* An answer to RTM_GETADDR (rtnetlink(7)): one of our addresses, or the end.
 * A link-local one means nothing to others. */
static bool
cert_put_address(struct der_out *o, const u8 *end, struct nlmsghdr *h)
{
	struct ifaddrmsg *m = NLMSG_DATA(h);
	size_t n = m->ifa_family == AF_INET ? 4 : 16;
	size_t left = IFA_PAYLOAD(h);
	const void *ip = NULL;

	if (h->nlmsg_type != RTM_NEWADDR)
		return false;
	/* At a link to one peer IFA_ADDRESS is the peer's. */
	for (struct rtattr *a = IFA_RTA(m); RTA_OK(a, left);
	    a = RTA_NEXT(a, left))
		if (RTA_PAYLOAD(a) == n && (a->rta_type == IFA_LOCAL ||
		    (a->rta_type == IFA_ADDRESS && !ip)))
			ip = RTA_DATA(a);
	if (ip && (n == 4 || m->ifa_scope != RT_SCOPE_LINK))
		cert_put_name(o, end, 0x87, ip, n);
	return true;
}

/* Addresses take half of the room, and there are seldom more. */
static void
cert_put_addresses(struct der_out *o, const u8 *end)
{
	struct {
		struct nlmsghdr h;
		struct ifaddrmsg m;
	} ask = { .h = { .nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETADDR,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP } };
	_Alignas(struct nlmsghdr) u8 answer[8192];
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	ssize_t n = send(fd, &ask, sizeof ask, 0);
	bool more = n > 0;

	while (more && (n = recv(fd, answer, sizeof answer, 0)) > 0)
		for (struct nlmsghdr *h = (struct nlmsghdr *)(void *)answer;
		    more && NLMSG_OK(h, (size_t)n); h = NLMSG_NEXT(h, n))
			more = end - o->p < CERT_DER_MAX / 2 &&
			    cert_put_address(o, end, h);
	close(fd);
}

/* What this machine is called and reached by. */
static void
cert_put_own_names(struct der_out *o, const u8 *end)
{
	char host[256] = "";

	cert_put_addresses(o, end);
	cert_put_text(o, end, "::1");
	cert_put_text(o, end, "127.0.0.1");
	cert_put_text(o, end, "localhost");
	if (gethostname(host, sizeof host - 1) == 0 && cert_name_ok(host))
		cert_put_text(o, end, host);
}

/* What a certificate of our own will say, and its key. */
struct cert_plan {
	const char *const *names; /* NULL: those of this machine */
	int64_t not_before, not_after;
	br_ec_private_key private;
	u8 key[CERT_KEY]; /* PKCS #8 (RFC 5958) around SEC 1 (RFC 5915) */
};

/* (RFC 5280, 4.2.1) */
static void
cert_put_extensions(struct der_out *o, const char *const *names)
{
	static const u8 fixed[] = {
		/* basicConstraints, critical: not a CA */
		0x30, 12, 6, 3, 0x55, 0x1d, 0x13, 1, 1, 0xff, 4, 2, 0x30, 0,
		/* keyUsage, critical: digitalSignature */
		0x30, 14, 6, 3, 0x55, 0x1d, 0x0f, 1, 1, 0xff, 4, 4, 3, 2, 7,
		0x80,
		/* extKeyUsage: serverAuth */
		0x30, 19, 6, 3, 0x55, 0x1d, 0x25, 4, 12, 0x30, 10, 6, 8, 0x2b,
		6, 1, 5, 5, 7, 3, 1
	}, san[] = { 6, 3, 0x55, 0x1d, 0x11 };
	const u8 *end = o->p;
	size_t count = 0;

	if (names) {
		while (names[count])
			count++;
		while (count-- > 0)
			cert_put_text(o, end, names[count]);
	} else {
		cert_put_own_names(o, end);
	}
	der_wrap(o, 0x30, end);
	der_wrap(o, 0x04, end);
	der_put(o, san, sizeof san);
	der_wrap(o, 0x30, end);
	der_put(o, fixed, sizeof fixed);
	der_wrap(o, 0x30, end);
	der_wrap(o, 0xa3, end);
}

/* How it is signed, by whom and for whom, and the key's kind: what stands side
 * by side in a certificate, more than once. */
static const u8 cert_fixed[] = {
	/* ecdsa-with-SHA256 */
	0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2,
	/* CN=wspush */
	0x30, 17, 0x31, 15, 0x30, 13, 6, 3, 0x55, 4, 3, 0x0c, 6, 'w', 's', 'p',
	'u', 's', 'h',
	/* a public key on P-256, up to its point */
	0x30, 89, 0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8,
	0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 66, 0
};
enum { CERT_NAME = 12, CERT_PUBLIC = 31 }; /* where these begin in it */

/* What will be signed (RFC 5280, 4.1.2). */
static void
cert_put_body(struct der_out *o, const struct cert_plan *plan)
{
	static const u8 version3[] = { 0xa0, 3, 2, 1, 2 };
	const u8 *end = o->p, *validity;
	u8 serial[16];

	cert_put_extensions(o, plan->names);
	der_put(o, plan->key + CERT_POINT, CERT_KEY - CERT_POINT);
	der_put(o, cert_fixed + CERT_NAME, sizeof cert_fixed - CERT_NAME);
	validity = o->p;
	der_put_date(o, plan->not_after);
	der_put_date(o, plan->not_before);
	der_wrap(o, 0x30, validity);
	der_put(o, cert_fixed, CERT_PUBLIC); /* the issuer is the same */
	sys_random(serial, sizeof serial);
	serial[0] = (serial[0] & 0x7f) | 0x40; /* positive, no leading zero */
	der_put_a(o, 0x02, serial, sizeof serial);
	der_put(o, version3, sizeof version3);
	der_wrap(o, 0x30, end);
}

/* Makes the certificate somewhere in `room`; empty when it does not fit.  The
 * signature comes last, so room is left for it. */
static struct der
cert_write(u8 room[CERT_DER_MAX], const struct cert_plan *plan)
{
	struct der_out o = { room, room + CERT_DER_MAX - CERT_SIG_MAX, false };
	u8 hash[32], *sig = o.p, *end;
	br_sha256_context sha;
	size_t n;

	cert_put_body(&o, plan);
	br_sha256_init(&sha);
	br_sha256_update(&sha, o.p, (size_t)(sig - o.p));
	br_sha256_out(&sha, hash);
	memcpy(sig, cert_fixed, CERT_NAME);
	n = br_ecdsa_i31_sign_asn1(&br_ec_p256_m31, &br_sha256_vtable, hash,
	    &plan->private, sig + 15);
	assert(n > 0 && n <= CERT_SIG_MAX - 15);
	sig[12] = 3;
	sig[13] = (u8)(n + 1);
	sig[14] = 0; /* no unused bits */
	end = sig + 15 + n;
	der_wrap(&o, 0x30, end);
	return (struct der){ o.p, o.full ? 0 : (size_t)(end - o.p) };
}

/* The paths of the pair in the state directory, for a start or a verb: not
 * while others are loaded. */
static int
cert_set_paths(const char *dir)
{
	if (*dir == '\0' || strlen(dir) > PATH_MAX - 16)
		return cert_fail(dir, "cannot be the state directory");
	text_print(certs.room, PATH_MAX, "%s/cert.pem", dir);
	text_print(cert_key_path(), PATH_MAX, "%s/key.pem", dir);
	return 0;
}

static int
cert_save(const char *path, const char *label, struct der der, mode_t mode)
{
	char pem[CERT_DER_MAX / 48 * 65 + 256];
	size_t n = br_pem_encode(pem, der.p, der.n, label, BR_PEM_LINE64);
	int r;

	assert(n < sizeof pem);
	r = sys_write_file(path, pem, n, mode);
	wipe(pem, sizeof pem);
	return r == 0 ? 0 : cert_fail(path, "cannot be written: %s",
	    strerror(-r));
}

/* A key on P-256.  Its number must be below the order of the curve, which
 * begins with 0xff. */
static void
cert_new_key(struct cert_plan *plan)
{
	static const u8 head[CERT_NUMBER] = { 0x30, 0x81, 135, 2, 1, 0, 0x30,
		19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86,
		0x48, 0xce, 0x3d, 3, 1, 7, 4, 109, 0x30, 107, 2, 1, 1, 4, 32 };
	static const u8 middle[] = { 0xa1, 68, 3, 66, 0 };
	u8 *number = plan->key + CERT_NUMBER;

	memcpy(plan->key, head, sizeof head);
	do
		sys_random(number, 32);
	while (number[0] == 0xff);
	memcpy(number + 32, middle, sizeof middle);
	plan->private = (br_ec_private_key){ BR_EC_secp256r1, number, 32 };
	br_ec_compute_pub(&br_ec_p256_m31, NULL, plan->key + CERT_POINT,
	    &plan->private);
}

/* Makes cert.pem and key.pem where cert_set_paths() said.  The key goes first:
 * a power cut between the two leaves a pair that does not match, which the
 * next start replaces. */
static int
cert_make(const char *dir, const char *const *names, int days)
{
	struct cert_plan plan;
	/* an hour early, for clients whose clock is slow */
	int64_t from = date_now() - 3600;
	int r = sys_make_directories(dir);
	u8 room[CERT_DER_MAX];
	struct der cert;

	if (r < 0)
		return cert_fail(dir, "cannot be made: %s", strerror(-r));
	plan.names = names;
	plan.not_before = date_sane(from) ? from : WSP_BUILD_DATE;
	plan.not_after = plan.not_before + (int64_t)days * DAY;
	cert_new_key(&plan);
	cert = cert_write(room, &plan);
	r = cert.n == 0 ? cert_fail(certs.room, "cannot hold so many names") :
	    cert_save(cert_key_path(), "PRIVATE KEY",
	    (struct der){ plan.key, CERT_KEY }, 0600);
	if (r == 0)
		r = cert_save(certs.room, "CERTIFICATE", cert, 0644);
	wipe(&plan, sizeof plan);
	return r;
}

static bool
cert_is_missing(const char *path)
{
	struct stat st;

	return stat(path, &st) < 0 ? errno == ENOENT : st.st_size == 0;
}

/* Whether the pair in the state directory must be made: 1 yes, 0 it is good,
 * -1 it is broken and not ours to replace.  Ours have signed themselves. */
static int
cert_needs_making(struct cert *c)
{
	const char *cert_path = certs.room, *key_path = cert_key_path();
	bool ours;

	if (cert_is_missing(cert_path))
		return 1;
	if (cert_load_chain(c, cert_path) < 0)
		return -1;
	ours = c->count == 1 && der_is(c->parts[0].issuer,
	    c->parts[0].subject.p, c->parts[0].subject.n);
	if (ours && cert_is_missing(key_path))
		return 1;
	if (cert_load_key(c, key_path) < 0)
		return -1;
	if (cert_check_match(c, cert_path, key_path) < 0)
		return ours ? 1 : -1;
	return ours && date_sane(date_now()) &&
	    date_days_until(c->not_after) < WSP_CERT_RENEW;
}

/*
 * The pair for a server that was given none: made when it is missing, made
 * anew when it is ours and ends within WSP_CERT_RENEW days.  1: it was made,
 * 0: it was good, -1: why not.  Load it with tls_load then.
 */
static int
tls_state_certificate(const char *dir)
{
	struct cert *c = cert_spare();
	struct log_room room;
	int make = -1;

	if (cert_set_paths(dir) == 0)
		make = cert_needs_making(c);
	wipe(&c->key, sizeof c->key);
	if (make == 1 && cert_make(dir, NULL, WSP_CERT_DAYS) < 0)
		make = -1;
	if (make == 1)
		log_event(LOG_LEVEL_INFO, "certificate", "state=made path=%s "
		    "days=%d", log_quote(&room, text_of(certs.room)),
		    WSP_CERT_DAYS);
	return make;
}

/* The options of `wspush cert`. */
struct cert_order {
	const char *dir;
	int64_t days; /* 0: not asked for */
	bool force;
	const char *const *names; /* NULL when there are none */
};

static int
cert_parse_order(struct cert_order *o, char **argv)
{
	struct words w = { .at = argv + 1 };
	int letter = 1;

	while (letter > 0) {
		if (*w.at && strcmp(*w.at, "--state") == 0) {
			o->dir = *++w.at;
			if (!o->dir)
				return say(2, "option --state needs a value");
			w.at++;
			continue;
		}
		letter = words_option(&w, "fd:");
		o->force |= letter == 'f';
		if (letter == 'd') {
			o->days = text_number(text_of(w.value), 3650);
			if (o->days <= 0)
				return say(2, "-d takes days from 1 to 3650");
		}
	}
	if (*w.at)
		o->names = (const char *const *)w.at;
	for (; *w.at; w.at++)
		if (!cert_name_ok(*w.at))
			return say(2, "wrong name or address: %s", *w.at);
	return letter;
}

/* Tries what was made or was there, and prints it. */
static int
cert_do_order(const struct cert_order *o)
{
	struct cert *c = cert_spare();

	if (cert_set_paths(o->dir) < 0)
		return -1;
	if (!o->force && !(cert_is_missing(certs.room) &&
	    cert_is_missing(cert_key_path()))) {
		cert_fail(certs.room, "or its key is there; -f replaces both");
		if (o->names || o->days > 0)
			return -1;
		say(0, "%s", refusal);
	} else if (cert_make(o->dir, o->names, o->days > 0 ? (int)o->days :
	    WSP_CERT_DAYS) < 0) {
		return -1;
	}
	if (cert_load(c, certs.room, cert_key_path()) < 0)
		return -1;
	wipe(&c->key, sizeof c->key);
	print("certificate: %s\nkey:         %s\nexpires in   %d days\n",
	    certs.room, cert_key_path(), date_days_until(c->not_after));
	return 0;
}

/*
 * `wspush cert`: makes the pair that the server uses when it is given none,
 * and prints it.  A pair that is there is printed and stays, unless -f is
 * given; to ask for names or days and not get them is a failure.
 */
static int
tls_cert_command(int argc, char **argv)
{
	struct cert_order o = { .dir = WSP_STATE_DIR };

	(void)argc;
	if (cert_parse_order(&o, argv) != 0)
		return 2;
	return cert_do_order(&o) == 0 ? 0 : say(1, "%s", refusal);
}

/* ----- 24. TLS -----------------------------------------------------------
 *
 * Owns the handshake pool and the session cache.  A client borrows one of a
 * few BearSSL contexts for its handshake and leaves with 112 bytes of keys
 * for Records; the context goes to the next one.  TLS 1.2 with four suites
 * and nothing else; no renegotiation.  Nothing is allocated: pool and cache
 * lie in memory that the caller places.
 *
 *	tls_take -> tls_step ... -> TLS_DONE or TLS_FAILED -> tls_give
 *
 * BearSSL has no call that hands out the keys, so they are derived once more
 * from what its context knows, by the rule that both sides derive them by.
 * That, and where 0.6 errs or dawdles, is the business of fields of its
 * context that another version need not have.
 */

/* The largest piece of a handshake in one record.  With BearSSL's overheads
 * the sizes worth having are few (TLS.md, 1). */
#define TLS_FRAGMENT 1024
#define TLS_IN       (TLS_FRAGMENT + 325)
#define TLS_OUT      (TLS_FRAGMENT + 85)

/* A client may ask for records of 512 bytes or some more (RFC 6066, 4): powers
 * of two, 9 to 12.  BearSSL grants what is less than its own limit, and
 * Records knows of no limit; so this one is said to be its own. */
#define TLS_LEAST_LIMIT 9

/* The suites that are accepted. */
#define TLS_SUITES 4

/* What one session takes in BearSSL's cache. */
#define TLS_SESSION 100

/* System calls in one step: a client that trickles or floods gives way to
 * others; what is left in the kernel makes the next event. */
#define TLS_STEP_CALLS 24

/* Handshakes after which a slot's generator gets fresh entropy. */
#define TLS_FRESH 64

/* Slots that keep their pages when nobody shakes hands; a storm's others give
 * them back. */
#define TLS_KEPT 2

enum tls_progress { TLS_WANT_READ, TLS_WANT_WRITE, TLS_DONE, TLS_FAILED };

/* A place in the pool.  Its context is configured at its first use and keeps
 * its generator's state from then on. */
struct tls_slot {
	bool resumed;   /* the client spoke last: from an earlier session */
	bool answered;  /* the ClientHello has come, or it was none */
	bool corked;    /* the kernel holds back what we sent */
	bool half_sent; /* a record is partly out */
	const struct cert *cert; /* the place it works with */
	int error;      /* of BearSSL, or TLS_ERROR_... */
	u32 used;       /* handshakes since it was configured */
	br_ssl_server_context server;
	u8 in[TLS_IN], out[TLS_OUT];
};

/* Beside BearSSL's numbers, which are 0 to 62 and 256 up. */
enum {
	TLS_ERROR_EOF = 100,
	TLS_ERROR_SOCKET,
	TLS_ERROR_STALE,
	TLS_ERROR_STUCK
};

static struct {
	struct record_aead aead;
	bool aes_first; /* the processor has instructions for it */
	br_ec_impl curves; /* for the key exchange: X25519 and P-256 */
	struct tls_slot *slots;
	u32 count;
	u32 ready; /* of them, the first so many are configured */
	bool busy[WSP_HANDSHAKES]; /* apart: an unused slot is not touched */
	br_ssl_session_cache_lru cache;
	const br_ssl_session_cache_class *lru; /* how BearSSL does it */
	br_ssl_session_cache_class sessions; /* with our load */
	u8 *rows; /* of the cache */
	size_t rows_n;
	int64_t reset_ms; /* when it is emptied next */
	char why[80];
} tls RESIDENT;

static const struct record_aead *
tls_aead(void)
{
	return &tls.aead;
}

/* The suite of our records, 0 while they are plain: a context keeps no note of
 * it but the code that it writes them with. */
static u8
tls_suite_out(const br_ssl_engine_context *e)
{
	return e->out.vtable == &e->ichapol_out->inner ? RECORD_CHACHA20 :
	    e->out.vtable == &e->igcm_out->inner ? RECORD_AES128_GCM : 0;
}

/* Both suites' contexts number their records at one place. */
_Static_assert(offsetof(br_sslrec_gcm_context, seq) ==
    offsetof(br_sslrec_chapol_context, seq), "records are numbered alike");

/* The keys of a connection whose records are not plain any more (RFC 5246,
 * 6.3), and their numbers: a client may cut its Finished into several, or send
 * a warning before it. */
static void
tls_get_keys(struct record_keys *k, const br_ssl_engine_context *e)
{
	br_tls_prf_seed_chunk seed[] = {
		{ e->server_random, sizeof e->server_random },
		{ e->client_random, sizeof e->client_random }
	};
	u8 block[2 * (32 + 12)], *iv;
	size_t key_n = 32, iv_n = 12;

	k->in.seq = e->in.chapol.seq;
	k->out.seq = e->out.chapol.seq;
	k->in.suite = k->out.suite = tls_suite_out(e);
	if (k->out.suite == RECORD_AES128_GCM) {
		key_n = 16;
		iv_n = 4;
	}
	br_tls12_sha256_prf(block, sizeof block, e->session.master_secret,
	    sizeof e->session.master_secret, "key expansion", COUNT(seed),
	    seed);
	iv = block + 2 * key_n;
	memcpy(k->in.key, block, key_n);
	memcpy(k->out.key, block + key_n, key_n);
	memcpy(k->in.iv, iv, iv_n);
	memcpy(k->out.iv, iv + iv_n, iv_n);
	wipe(block, sizeof block);
}

/* The other half of the key exchange.  A client's X25519 point may be one whose
 * every multiple is zero, a secret that everybody knows, and BearSSL 0.6 does
 * not look (RFC 8422, 5.11).  A point of P-256 begins with 4. */
static u32
tls_multiply(u8 *point, size_t n, const u8 *x, size_t x_n, int curve)
{
	u32 good = br_ec_all_m31.mul(point, n, x, x_n, curve);
	u8 any = 0;

	for (size_t i = 0; i < n; i++)
		any |= point[i];
	return any != 0 ? good : 0;
}

/* Once, before all else: has BearSSL choose the ciphers that this processor
 * runs best, for it asks the processor, and checks them. */
static int
tls_start(void)
{
	br_ssl_engine_context e;

	br_ssl_engine_set_default_chapol(&e);
	br_ssl_engine_set_default_aes_gcm(&e);
	tls.aead = (struct record_aead){ e.ichacha, e.ipoly, e.iaes_ctr,
		e.ighash };
	tls.aes_first = br_aes_x86ni_ctr_get_vtable() &&
	    br_ghash_pclmul_get();
	tls.curves = br_ec_all_m31;
	tls.curves.mul = tls_multiply;
	tls.curves.supported_curves = (u32)1 << BR_EC_curve25519 |
	    (u32)1 << BR_EC_secp256r1;
	return record_self_test(&tls.aead) ? 0 : cert_fail("the ciphers'",
	    "self-test fails: wspush or BearSSL was built wrongly");
}

/*
 * When BearSSL 0.6 resumes a session for a client that offers protocols (ALPN)
 * but none of ours, it takes 65535, its word for that, for a place in our list,
 * and dies.  The session is looked for before the offer is read: to who resumes
 * we have no protocols, and the offer is passed over.
 */
static int
tls_load_session(const br_ssl_session_cache_class **cache,
    br_ssl_server_context *server, br_ssl_session_parameters *session)
{
	int found = tls.lru->load(cache, server, session);

	if (found)
		br_ssl_engine_set_protocol_names(&server->eng, NULL, 0);
	return found;
}

/* Forgets all sessions: BearSSL's cache knows neither age nor certificate.
 * Rows that were never used stay untouched. */
static void
tls_forget(void)
{
	wipe(tls.rows, tls.cache.store_ptr);
	br_ssl_session_cache_lru_init(&tls.cache, tls.rows, tls.rows_n);
	tls.lru = tls.cache.vtable;
	tls.sessions = *tls.lru;
	tls.sessions.load = tls_load_session;
	tls.cache.vtable = &tls.sessions;
}

static size_t
tls_slots_size(u32 handshakes)
{
	return (handshakes * sizeof(struct tls_slot) + 63) & ~(size_t)63;
}

/* The bytes that tls_place wants: zeroed, aligned to 16. */
static size_t
tls_memory(u32 handshakes, u32 cache_rows)
{
	return tls_slots_size(handshakes) + (size_t)cache_rows * TLS_SESSION;
}

/* Gives the pool and the cache their memory.  Nothing of it is touched until
 * a slot or a row is used. */
static void
tls_place(void *memory, u32 handshakes, u32 cache_rows)
{
	assert(handshakes <= COUNT(tls.busy));
	tls.slots = memory;
	tls.count = handshakes;
	tls.ready = 0;
	tls.rows = (u8 *)memory + tls_slots_size(handshakes);
	tls.rows_n = (size_t)cache_rows * TLS_SESSION;
	tls_forget();
}

/* Once a day the sessions are forgotten, and the log hears of an end that is
 * near.  Call it now and then with the monotonic clock. */
static void
tls_tick(int64_t now_ms)
{
	if (now_ms < tls.reset_ms)
		return;
	if (tls.reset_ms > 0 && tls.rows) {
		tls_forget();
		cert_warn();
	}
	tls.reset_ms = now_ms + (int64_t)DAY * 1000;
}

/*
 * Loads a certificate and its key.  When they are no good the ones in use
 * stay.  Running handshakes go on with what they began with, except those
 * that began before the last reload: their place is overwritten now.
 */
static int
tls_load(const char *cert_path, const char *key_path)
{
	struct cert *c = cert_spare();
	const struct cert *old = certs.used;

	for (u32 i = 0; i < tls.count; i++)
		if (tls.busy[i] && tls.slots[i].cert == c)
			tls.slots[i].error = TLS_ERROR_STALE;
	if (cert_load(c, cert_path, key_path) < 0)
		return -1;
	if (old && tls.rows && (old->der_n != c->der_n ||
	    memcmp(old->der, c->der, c->der_n) != 0))
		tls_forget();
	/* They may be the same ones, and were short enough to be opened. */
	memmove(certs.room, cert_path, strlen(cert_path) + 1);
	memmove(cert_key_path(), key_path, strlen(key_path) + 1);
	certs.used = c;
	cert_warn();
	return 0;
}

/* The same files again, on SIGHUP; the first time, those of cert_set_paths. */
static int
tls_reload(void)
{
	return tls_load(certs.room, cert_key_path());
}

/* AES first where there are instructions for it; elsewhere it is slow, because
 * it must not leak through its timing. */
static void
tls_configure(struct tls_slot *s)
{
	static const u16 suites[] = {
		BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
	};
	br_ssl_engine_context *e = &s->server.eng;

	s->used = 0;
	br_ssl_server_zero(&s->server);
	br_ssl_engine_set_versions(e, BR_TLS12, BR_TLS12);
	br_ssl_engine_set_suites(e, suites + (tls.aes_first ? 2 : 0),
	    TLS_SUITES);
	br_ssl_engine_set_hash(e, br_sha256_ID, &br_sha256_vtable);
	br_ssl_engine_set_prf_sha256(e, br_tls12_sha256_prf);
	br_ssl_engine_set_ec(e, &tls.curves);
	br_ssl_engine_set_default_chapol(e);
	br_ssl_engine_set_default_aes_gcm(e);
	br_ssl_engine_set_all_flags(e, BR_OPT_ENFORCE_SERVER_PREFERENCES |
	    BR_OPT_NO_RENEGOTIATION);
	br_ssl_server_set_cache(&s->server, &tls.cache.vtable);
}

/* BearSSL 0.6 seeds itself from /dev/urandom or RDRAND alone, and accepts a
 * kernel that has no entropy yet (TLS.md, 3); getrandom waits for it. */
static void
tls_add_entropy(struct tls_slot *s)
{
	u8 seed[32];

	sys_random(seed, sizeof seed);
	br_ssl_engine_inject_entropy(&s->server.eng, seed, sizeof seed);
	wipe(seed, sizeof seed);
}

static void
tls_set_cert(struct tls_slot *s, const struct cert *c)
{
	s->cert = c;
	if (c->key.type == BR_KEYTYPE_RSA)
		br_ssl_server_set_single_rsa(&s->server, c->chain, c->count,
		    &c->key.rsa, BR_KEYTYPE_SIGN, 0,
		    br_rsa_pkcs1_sign_get_default());
	else
		br_ssl_server_set_single_ec(&s->server, c->chain, c->count,
		    &c->key.ec, BR_KEYTYPE_SIGN, BR_KEYTYPE_EC, &br_ec_all_m31,
		    br_ecdsa_i31_sign_asn1);
}

/* A slot for a handshake, -1 when all are busy or no certificate is there. */
static int
tls_take(void)
{
	static const char *protocols[] = { "http/1.1" };
	struct tls_slot *s;
	u32 i = 0;

	while (i < tls.count && tls.busy[i])
		i++;
	if (i == tls.count || !certs.used)
		return -1;
	s = &tls.slots[i];
	if (i >= tls.ready) {
		tls_configure(s);
		tls.ready = i + 1;
	}
	if (s->used++ % TLS_FRESH == 0)
		tls_add_entropy(s);
	tls_set_cert(s, certs.used);
	s->error = 0;
	s->answered = s->corked = s->half_sent = false;
	s->server.client_max_version = BR_TLS12; /* until it says */
	br_ssl_engine_set_protocol_names(&s->server.eng, protocols,
	    COUNT(protocols));
	br_ssl_engine_set_buffers_bidi(&s->server.eng, s->in, sizeof s->in,
	    s->out, sizeof s->out);
	s->server.eng.log_max_frag_len = TLS_LEAST_LIMIT;
	if (!br_ssl_server_reset(&s->server))
		return -1;
	tls.busy[i] = true;
	return (int)i;
}

/* What a storm used goes back to the kernel when it is over. */
static void
tls_calm(void)
{
	for (u32 i = 0; i < tls.ready; i++)
		if (tls.busy[i])
			return;
	if (tls.ready > TLS_KEPT) {
		sys_forget(tls.slots + TLS_KEPT,
		    (tls.count - TLS_KEPT) * sizeof *tls.slots);
		tls.ready = TLS_KEPT;
	}
}

/*
 * Gives the slot back, without its secrets: keys, master secret, the private
 * half of the key exchange.  The context starts afresh with its next client.
 */
static void
tls_give(int slot)
{
	struct tls_slot *s = &tls.slots[slot];
	br_ssl_engine_context *e = &s->server.eng;

	assert(tls.busy[slot]);
	tls.busy[slot] = false;
	wipe(&e->session, sizeof e->session);
	wipe(&e->in, sizeof e->in);
	wipe(&e->out, sizeof e->out);
	wipe(e->pad, sizeof e->pad);
	wipe(s->server.ecdhe_key, sizeof s->server.ecdhe_key);
	tls_calm();
}

/* Whether the finished handshake went on from an earlier one. */
static bool
tls_resumed(int slot)
{
	return tls.slots[slot].resumed;
}

/* What an error means where a user may meet it, and the alert that tells the
 * client: after these errors BearSSL says nothing more.  256 + n is an alert
 * that the client sent, 512 + n one that BearSSL sent. */
struct tls_error {
	u16 error;
	u8 alert;
	const char *text;
};

static const struct tls_error *
tls_find_error(int error)
{
	static const struct tls_error list[] = {
		{ BR_ERR_OK, 0, "the client left during the handshake" },
		{ TLS_ERROR_EOF, 0, "the client left during the handshake" },
		{ TLS_ERROR_SOCKET, 0, "the connection broke" },
		{ TLS_ERROR_STALE, 80, "the certificate has been replaced" },
		{ BR_ERR_UNSUPPORTED_VERSION, 70, "what came is not TLS" },
		{ BR_ERR_UNKNOWN_TYPE, 10, "what came is not TLS" },
		{ BR_ERR_BAD_MAC, 20, "a record was changed on its way" },
		{ BR_ERR_NO_RANDOM, 80, "there is no entropy" },
		{ BR_ERR_BAD_VERSION, 70, NULL },
		{ BR_ERR_TOO_LARGE, 22, NULL },
		{ BR_ERR_UNEXPECTED, 10, NULL },
		{ BR_ERR_BAD_FINISHED, 51, NULL },
		{ 512 + 40, 0, "no cipher suite or curve in common" },
		{ 512 + 70, 0, "the client does not speak TLS 1.2" },
		{ UINT16_MAX, 50, NULL }
	};
	const struct tls_error *e = list;

	while (e->error != error && e->error != UINT16_MAX)
		e++;
	return e;
}

/* Why a handshake failed, until the next call. */
static const char *
tls_why(int slot)
{
	int error = tls.slots[slot].error;
	const char *text = tls_find_error(error)->text;

	if (text)
		return text;
	if (error >= 256 + 42 && error <= 256 + 48)
		return "the client does not trust the certificate";
	text_print(tls.why, sizeof tls.why, "%s %d", error >= 512
	    ? "refused with alert" : error >= 256
	    ? "the client refused with alert" : "BearSSL's error", error & 255);
	return tls.why;
}

/* Ends a handshake; tells the client why unless BearSSL has done so or half a
 * record is out. */
static enum tls_progress
tls_fail(struct tls_slot *s, int fd, int error)
{
	static const u8 plain[] = { RECORD_ALERT, 3, 3, 0, 2, ALERT_FATAL };
	u8 record[RECORD_ALERT_MAX], alert = tls_find_error(error)->alert;
	size_t n = sizeof plain + 1;
	struct record_keys keys;

	s->error = error;
	if (alert == 0 || error >= BR_ERR_RECV_FATAL_ALERT || s->half_sent)
		return TLS_FAILED;
	memcpy(record, plain, sizeof plain);
	record[6] = alert;
	if (tls_suite_out(&s->server.eng) != 0) {
		tls_get_keys(&keys, &s->server.eng);
		n = record_seal_alert(&tls.aead, &keys.out, keys.out.seq,
		    ALERT_FATAL, alert, record);
		wipe(&keys, sizeof keys);
	}
	(void)sys_send(fd, record, n, 0);
	return TLS_FAILED;
}

/* Takes the keys out of a finished handshake. */
static enum tls_progress
tls_finish(struct tls_slot *s, int fd, struct record_keys *keys)
{
	size_t n;
	const u8 *in = br_ssl_engine_recvrec_buf(&s->server.eng, &n);

	/* If something behind Finished were in there it would be lost. */
	if (in != s->in || n != RECORD_HEADER)
		return tls_fail(s, fd, TLS_ERROR_STUCK);
	tls_get_keys(keys, &s->server.eng);
	return TLS_DONE;
}

/* Puts a version on a plain alert: the client's own if it is older than ours,
 * for OpenSSL takes no other.  BearSSL has ours there, or none yet. */
static void
tls_fix_alert(const struct tls_slot *s, u8 *record)
{
	u16 version = s->server.client_max_version;

	if (record[0] == RECORD_ALERT && !s->half_sent &&
	    tls_suite_out(&s->server.eng) == 0)
		store16(record + 1, version < BR_TLS12 ? version : BR_TLS12);
}

/* Sends a piece.  The kernel holds it back until the flight is complete, so
 * that this is one packet. */
static ssize_t
tls_send(struct tls_slot *s, int fd)
{
	size_t n;
	u8 *p = br_ssl_engine_sendrec_buf(&s->server.eng, &n);
	ssize_t r;

	tls_fix_alert(s, p);
	r = sys_send(fd, p, n, MSG_MORE);
	if (r > 0) {
		s->answered = s->corked = true;
		s->half_sent = (size_t)r < n;
		br_ssl_engine_sendrec_ack(&s->server.eng, (size_t)r);
	}
	return r;
}

/*
 * Before it chooses a suite, BearSSL 0.6 looks all of `client_suites` up in a
 * table that begins with this one, and walks to the table's end for each row
 * that is empty, which all are but the first few: a fifth of a full handshake.
 * The suite cannot be chosen, for a key here only signs.
 */
static void
tls_fill_suites(br_ssl_server_context *c)
{
	for (u32 i = TLS_SUITES; i < COUNT(c->client_suites); i++)
		c->client_suites[i][0] = BR_TLS_RSA_WITH_3DES_EDE_CBC_SHA;
}

/*
 * Receives no more than BearSSL asks for, a header or the rest of a record:
 * what follows the client's Finished is for Records.  The end of the ClientHello
 * comes by itself: before it, BearSSL has read the list of suites and not yet
 * looked at it.
 */
static ssize_t
tls_receive(struct tls_slot *s, int fd)
{
	size_t n;
	u8 *p = br_ssl_engine_recvrec_buf(&s->server.eng, &n);
	ssize_t r;

	if (!s->answered && n <= RECORD_HEADER)
		tls_fill_suites(&s->server);
	else if (!s->answered)
		n--;
	r = sys_recv(fd, p, n, 0);
	if (r > 0)
		br_ssl_engine_recvrec_ack(&s->server.eng, (size_t)r);
	return r;
}

/*
 * Goes on with a handshake until the socket blocks, or for a bounded number
 * of system calls.  TLS_DONE fills `keys`, TLS_FAILED has tls_why; after
 * either the slot only wants to be given back.
 */
static enum tls_progress
tls_step(int slot, int fd, struct record_keys *keys)
{
	struct tls_slot *s = &tls.slots[slot];
	br_ssl_engine_context *e = &s->server.eng;
	ssize_t r;

	if (s->error != 0)
		return tls_fail(s, fd, s->error);
	for (int calls = 0; calls < TLS_STEP_CALLS; calls++) {
		unsigned state = br_ssl_engine_current_state(e);
		bool sending = (state & BR_SSL_SENDREC) != 0;

		if (!sending && s->corked) { /* lets go what was held back */
			sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
			s->corked = false;
			if (!(state & (BR_SSL_SENDAPP | BR_SSL_CLOSED)))
				return TLS_WANT_READ; /* a round trip away */
		}
		if (state & BR_SSL_CLOSED)
			return tls_fail(s, fd, br_ssl_engine_last_error(e));
		if (!sending && (state & BR_SSL_SENDAPP))
			return tls_finish(s, fd, keys);
		if (!sending && !(state & BR_SSL_RECVREC))
			return tls_fail(s, fd, TLS_ERROR_STUCK);
		r = sending ? tls_send(s, fd) : tls_receive(s, fd);
		s->resumed = !sending;
		if (r == -EAGAIN)
			return sending ? TLS_WANT_WRITE : TLS_WANT_READ;
		if (r <= 0)
			return tls_fail(s, fd, r == 0 ? TLS_ERROR_EOF
			                              : TLS_ERROR_SOCKET);
	}
	return TLS_WANT_WRITE; /* which comes at once, whatever is next */
}

/* ----- 25. Token keys ----------------------------------------------------
 *
 * Key files, and `wspush token`.  A file with -----BEGIN in it is PEM and a
 * key for ES256, anything else a secret for HS256: so the file decides the
 * algorithm, never a token.  Two sets of keys, as with certificates: a reload
 * reads into the one that is not in use, and a file that is no good changes
 * nothing.
 */
static struct token_key token_key[2][SETTINGS_TOKEN_KEYS];

static struct {
	u32 count; /* in the set in use */
	u32 used;
} token_keys RESIDENT;

static bool
token_load_public(struct token_key *k, struct der spki)
{
	br_x509_pkey public;

	return der_public_key(&public, spki) &&
	    public.key_type == BR_KEYTYPE_EC &&
	    public.key.ec.curve == BR_EC_secp256r1 &&
	    public.key.ec.qlen == TOKEN_POINT &&
	    token_key_es256(k, public.key.ec.q);
}

static bool
token_load_private(struct token_key *k, struct der d)
{
	struct cert_key private;

	return der_private_key(&private, d) == BR_KEYTYPE_EC &&
	    private.ec.curve == BR_EC_secp256r1 &&
	    token_key_private(k, private.ec.x, private.ec.xlen);
}

/* Reads one object, and decodes it where it lies: 1 it is a key, 0 it is
 * something else, -1 it is a key or certificate of no use. */
static int
token_load_object(struct token_key *k, const struct pem *m)
{
	u8 *der = (u8 *)(uintptr_t)m->text.p;
	int n = base64_decode(der, m->text.n, m->text, BASE64);
	struct der d = { der, n > 0 ? (size_t)n : 0 }, spki;
	struct cert_parts parts;
	bool good;

	if (text_find(m->label, "PRIVATE KEY"))
		good = token_load_private(k, d);
	else if (str_is(m->label, "PUBLIC KEY"))
		good = der_take(&d, 0x30, &spki) && token_load_public(k, spki);
	else if (str_is(m->label, "CERTIFICATE"))
		good = cert_read(&parts, &d) && token_load_public(k, parts.key);
	else
		return 0;
	return good ? 1 : -1;
}

/* Looks through the PEM in the file: a private key is what counts, or else
 * the first public one. */
static int
token_load_pem(struct token_key *k, const char *path, struct str file)
{
	struct token_key found;
	struct pem m;
	int r, any = 0;

	*k = (struct token_key){ .mints = false };
	while (!k->mints && (r = pem_next(&file, &m)) != 0) {
		if (r < 0)
			return cert_fail(path, "is damaged or cut short");
		if (pem_is_encrypted(&m, path) < 0)
			return -1;
		r = token_load_object(&found, &m);
		if (r < 0)
			return cert_fail(path, "is damaged, or its key is "
			    "not EC on P-256, which ES256 needs");
		if (r > 0 && (any == 0 || found.mints))
			*k = found;
		any |= r;
	}
	return any ? 0 : cert_fail(path, "holds no key and no certificate");
}

/* Is it a key in DER, perhaps with line ends behind it, or in JSON?  A public
 * key that is taken for a secret is a secret that everybody knows.  In DER a
 * key is a sequence that begins with another one or with a number: a text in
 * base64 may by chance look like the sequence alone. */
static bool
token_is_other_key(struct str file)
{
	struct der d = { (const u8 *)file.p, file.n }, content;

	if (text_find(file, "\"kty\""))
		return true;
	if (!der_take(&d, 0x30, &content))
		return false;
	while (d.n > 0 && (*d.p == '\r' || *d.p == '\n')) {
		d.p++;
		d.n--;
	}
	return d.n == 0 && content.n > 0 &&
	    (*content.p == 0x30 || *content.p == 0x02);
}

static int
token_load_secret(struct token_key *k, const char *path, struct str file)
{
	if (token_is_other_key(file))
		return cert_fail(path, "is a key in DER or JSON: convert it "
		    "to PEM");
	if (file.p[file.n - 1] == '\n' && --file.n > 0 &&
	    file.p[file.n - 1] == '\r')
		file.n--;
	if (file.n < TOKEN_SECRET)
		return cert_fail(path, "is neither PEM nor a secret of %d "
		    "bytes or more", TOKEN_SECRET);
	token_key_hs256(k, file.p, file.n);
	return 0;
}

/* Reads a key file; why not is in `refusal`. */
static int
token_load(struct token_key *k, const char *path)
{
	struct str file;
	int r;

	if (cert_read_file(&file, path) < 0)
		return -1;
	r = text_find(file, "-----BEGIN") ? token_load_pem(k, path, file) :
	    token_load_secret(k, path, file);
	wipe(cert_file_room(), file.n);
	return r;
}

/* Reads all key files and uses them; if one is no good, says why in
 * `refusal`, and the keys there were stay in use. */
static int
token_keys_load(const char *const *path, u32 count)
{
	u32 spare = !token_keys.used;

	for (u32 i = 0; i < count; i++)
		if (token_load(&token_key[spare][i], path[i]) < 0)
			return -1;
	token_keys.count = count;
	token_keys.used = spare;
	return 0;
}

/* Does who comes in need a token? */
static bool
token_is_needed(void)
{
	return token_keys.count > 0;
}

/* token_check() with the keys in use. */
static int
token_keys_check(struct token *t, const char **why, struct str text,
    const struct token_use *use)
{
	return token_check(t, why, text, token_key[token_keys.used],
	    token_keys.count, use);
}

/*
 * ---- wspush token
 */

enum { TOKEN_DONE, TOKEN_FAILED, TOKEN_USAGE };

struct token_order {
	const char *key;
	bool check;
	int64_t seconds; /* 0: not asked for */
	struct token_plan plan;
};

/* Too large for the stack. */
static struct token token_read_here;
static char token_text[WSP_MAX_TOKEN + 16]; /* and white space around it */

static const char *
token_order_service(struct token_plan *plan, struct str name)
{
	if (plan->services == TOKEN_SERVICES)
		return "there are too many -s";
	if (!service_name_valid(name))
		return "-s takes a service's name";
	plan->service[plan->services++] = name;
	return NULL;
}

static const char *
token_order_tag(struct token_plan *plan, struct str text)
{
	struct tag_line *line = &plan->tag[plan->tags];

	if (plan->tags == WSP_MAX_TAGS)
		return "there are too many -t";
	if (tag_parse(line, text) < 0)
		return line->why;
	if (line->remove)
		return "-t takes name:value";
	plan->tags++;
	return NULL;
}

/* Takes one option; what is wrong with it, or NULL. */
static const char *
token_order_option(struct token_order *o, int letter, const char *value)
{
	struct str text = text_of(value);

	if (letter == 's')
		return token_order_service(&o->plan, text);
	if (letter == 't')
		return token_order_tag(&o->plan, text);
	if (letter == 'c')
		o->check = true;
	if (letter == 'k')
		o->key = value;
	if (letter == 'a') {
		o->plan.audience = text;
		if (text.n == 0 || text.n > TOKEN_TEXT ||
		    !text_is_utf8(text.p, text.n))
			return "-a takes an audience of 1 to 256 bytes";
	}
	if (letter == 'e') {
		o->seconds = text_number(text, 999999999);
		if (o->seconds <= 0)
			return "-e takes seconds from 1 on";
	}
	return NULL;
}

/* What is wrong with the command line, or NULL. */
static const char *
token_order_check(struct token_order *o, char **words)
{
	struct str sub = { NULL, 0 };

	if (!o->key)
		return "-k FILE is needed";
	if (words[0])
		sub = text_of(words[0]);
	if ((sub.p && words[1]) || (o->check && (sub.p || o->seconds > 0 ||
	    o->plan.services > 0 || o->plan.tags > 0)))
		return "there is a word too many";
	if (sub.p && (sub.n == 0 || sub.n > WSP_MAX_ID +
	    (sub.p[sub.n - 1] == '*') || !text_is_clean(sub)))
		return "SUB is an id of 1 to 128 bytes without white space, "
		    "or the beginning of one and a *";
	o->plan.sub = sub;
	return NULL;
}

static int
token_mint(struct token_order *o, const struct token_key *k)
{
	struct out c = out_to(token_read_here.room, WSP_MAX_TOKEN);
	struct out t = out_to(token_text, WSP_MAX_TOKEN);

	if (!k->mints)
		return say(TOKEN_FAILED, "this key is public: only a "
		    "private one mints tokens");
	o->plan.expires = date_now() + (o->seconds > 0 ? o->seconds : 3600);
	token_write_claims(&c, &o->plan);
	token_write(&t, k, (struct str){ c.p, c.n });
	if (c.full || t.full)
		return say(TOKEN_FAILED, "the token would be too long");
	print_str((struct str){ t.p, t.n });
	print("\n");
	return TOKEN_DONE;
}

/* Reads a token from standard input, and says what is in it. */
static int
token_check_input(const struct token_order *o, const struct token_key *k)
{
	struct token_use use = { .audience = o->plan.audience,
		.now = date_now() };
	struct token *t = &token_read_here;
	const char *why;
	size_t n = 0;
	ssize_t r;

	while (n < sizeof token_text && (r = read(STDIN_FILENO,
	    token_text + n, sizeof token_text - n)) > 0)
		n += (size_t)r;
	if (token_check(t, &why, text_trim((struct str){ token_text, n }),
	    k, 1, &use) != 0)
		return say(TOKEN_FAILED, "the token is of no use: %s", why);
	print_str(t->claims);
	print("\n");
	return TOKEN_DONE;
}

static int
token_command(int argc, char **argv)
{
	struct token_order o = { .key = NULL };
	struct token_key *k = &token_key[0][0];
	struct words w = { .at = argv + 1 };
	const char *wrong = NULL;
	int letter = 0, status;

	(void)argc;
	while (!wrong && (letter = words_option(&w, "ck:e:s:t:a:")) > 0)
		wrong = token_order_option(&o, letter, w.value);
	if (letter < 0)
		return TOKEN_USAGE;
	if (!wrong)
		wrong = token_order_check(&o, w.at);
	if (wrong)
		return say(TOKEN_USAGE, "%s", wrong);
	if (token_load(k, o.key) < 0)
		return say(TOKEN_FAILED, "%s", refusal);
	if (!date_sane(date_now()))
		return say(TOKEN_FAILED, "the clock is before the day "
		    "wspush was built");
	status = o.check ? token_check_input(&o, k) : token_mint(&o, k);
	wipe(k, sizeof *k);
	return status;
}

FAST_CODE

/* ----- 26. Connections ---------------------------------------------------
 *
 * One row for each TCP link from a client, from accept to close.
 *
 *   accept --> WAIT --> TLS --+
 *     |    (a ClientHello     |
 *     |     and a context)    v
 *     +---- plain --------> HTTP --> OPEN --> CLOSING --+
 *                             |        |    (Close out)  |
 *                             |        +-----------------+
 *                             +--------------------------+--> DRAIN --> DEAD
 *                                 (an answer, an error)    (our FIN out)
 *
 * With auth=1 a connection stays in HTTP, `judged`, with its request in its
 * buffer, until the service's program has answered.
 *
 * Any state may go to DEAD.  conn_enter() alone writes the state, and
 * conn_free_dead() alone frees rows, at the end of the turn.  The row holds
 * only what an idle client needs; what is half received or half answered
 * lies in buffers of a small pool, and when that is empty, who has held one
 * longest gives way, whoever is still on the way in before all others.
 *
 * Two kinds of bytes leave through a connection: the stream of its socket's
 * queue (see Gathering), and what we call aside: answers, control frames,
 * HTTP.  Aside bytes go out between two units of the stream.
 */
enum conn_state {
	CONN_FREE,
	CONN_WAIT,    /* TLS: for a whole ClientHello, then for a context */
	CONN_TLS,     /* handshake */
	CONN_HTTP,    /* request */
	CONN_OPEN,    /* bound to a socket */
	CONN_CLOSING, /* our Close is out, theirs is not in */
	CONN_DRAIN,   /* last bytes out, then FIN, then what still comes in */
	CONN_DEAD     /* to be freed when the turn ends */
};

enum conn_deadline {
	DEADLINE_HANDSHAKE,
	DEADLINE_PING,    /* time for a keepalive Ping */
	DEADLINE_ACK,     /* a Ping for what was written may go now */
	DEADLINE_PONG,    /* a Ping is unanswered */
	DEADLINE_CLOSING,
	DEADLINE_DRAIN
};

/* Milliseconds. */
#define CLOSING_MS      2000 /* for the client's Close after ours */
#define DRAIN_MS        1000 /* for the client's FIN after ours */
#define ACK_INTERVAL_MS 200  /* between two Pings for acknowledgement */
#define DEAF_MS         60000 /* between two log lines about missing Pongs */
#define LINE_MS         60000 /* in line for a handshake context */
#define LINE_LOOK       16   /* places of the line that are looked at, */
#define LINE_LOOK_MS    50   /* and how often all of them are */
#define CONTEXT_MS      2000 /* for the client's turn in a TLS handshake, when
                              * others wait in line */
#define HELLO_LOOKS     15   /* at what has come of a ClientHello */

/* The pong timeout begins when the kernel holds nothing before the Ping, which
 * it does not tell: it is asked so many times in the course of it. */
#define PONG_STEPS 8

/* Bytes one connection may write in one turn. */
#define CONN_TURN_BYTES (256 * 1024)

/* The kernel is asked to wait for company with no more than this. */
#define CONN_HOLD 16384

/* Plaintext of the records that carry the stream, and how many of them are
 * sealed for one send. */
#define STREAM_RECORD  4096
#define STREAM_RECORDS 4

struct conn {
	int fd;
	u32 gen;
	u8 state;
	u8 in;            /* buffers, by number; 0: none */
	u8 message;
	u8 out;
	u8 context;       /* 1 + handshake context */
	u8 pong_steps;    /* of the pong timeout that are over */
	bool tls : 1;
	bool blocked : 1; /* the kernel takes no more for now */
	bool more : 1;    /* what is written now has company to come */
	bool held : 1;    /* so that the kernel waits with it */
	bool dirty : 1;   /* on the list of those who have something to say */
	bool urgent : 1;  /* on the short list of those who say it first */
	bool pinged : 1;  /* a Ping is unanswered, or has yet to leave */
	bool ping_due : 1; /* it goes at the next boundary */
	bool waiting : 1; /* in line for a handshake context */
	bool notified : 1; /* our last TLS alert is out */
	bool shut : 1;    /* our FIN is out */
	bool judged : 1;  /* a program is asked whether it may come in */
	bool metrics : 1; /* came by the listener of --metrics */
	bool head : 1;    /* asks for the head of an answer alone */
	unsigned looks : 4; /* at its ClientHello, see HELLO_LOOKS */
	u16 asked;        /* what epoll was last asked for */
	u16 rec_n;        /* plaintext of the half-out record; 0: none */
	u16 rec_sent;     /* its bytes that are out */
	u16 port;
	u32 sock;         /* its row, NONE */
	u32 done;         /* bytes of the stream out, beyond marked units */
	u32 rx_ms;        /* when a byte came last; low half of the clock */
	u32 ping_ms;      /* when the last Ping went */
	u32 since_ping;   /* bytes written since, the Ping included */
	u32 expires;      /* of an open one: when its token ends, s of the
	                   * monotonic clock; UINT32_MAX: never */
	u64 sent_number;  /* of the last message that is wholly out */
	u64 ping_number;  /* of the last Ping */
	u8 nonce[8];      /* in our Pings, so that a Pong is an answer */
	u8 addr[16];      /* IPv4 as ::ffff:a.b.c.d */
};

/* A buffer of the pool.  As `in`: bytes received, `raw` of them opened
 * already, the rest ciphertext.  As `out`: `raw` bytes ready for the kernel
 * of which `at` are out, the rest aside bytes not yet sealed.  As `message`:
 * what has come of a message. */
struct buffer {
	bool taken;       /* all zeroes: it is free */
	u32 conn;         /* slot of its owner */
	u32 n, raw, at;
	struct message_in message;
	int64_t since;
	struct frame frame;
	size_t frame_left; /* bytes of it still to come */
};

_Static_assert(WSP_BUFFERS >= 4, "one connection may hold three buffers");
_Static_assert(WSP_BUFFERS <= 255, "a buffer's number is one byte");
_Static_assert(WSP_HANDSHAKES <= 64, "a pool, and one byte for its number");
_Static_assert(WSP_PENDING <= 65535, "rows beside those of the sockets");

/* What is small stands first, and so within reach of short instructions. */
static struct {
	int64_t now;             /* ms, read once a turn */
	int epoll;
	struct conn *conn;
	u32 conns, fresh, free, live;
	struct sockets sockets;
	struct record_keys *keys;
	u8 *buffer_bytes;
	size_t buffer_size;
	u8 *scratch_in;          /* what was received last, buffer_size */
	u8 *scratch_out;         /* records on their way out */
	u8 *scratch_answer;      /* a frame aside, or a page */
	u8 *scratch_push;        /* the datagram at hand */
	char *scratch_reply, *scratch_list;
	size_t push_size, reply_size;
	int events;              /* the socket that events leave through */
	int push;                /* the push socket */
	int signals;
	u32 *selected;           /* rows that the target at hand selects */
	u32 *dirty;              /* slots, a ring: first come, first served */
	u32 first_dirty, dirties;
	u32 *urgent;             /* slots: a broadcast to all must not hold up
	                          * what goes to a few */
	u32 urgents;
	u32 *dead;
	u32 deads;
	u64 written;             /* bytes, to all connections */
	u32 replacing;           /* row that a new connection takes over */
	u32 handshakes_left;     /* steps of the budget of this turn */
	u32 *next_waiting;       /* the line for handshake contexts */
	u32 first_waiting;
	int64_t line_again;      /* when all of it is looked at again */
	int64_t hogged_until;    /* contexts were held by the silent lately */
	int64_t started;
	int64_t listen_again;    /* when the listeners rest, 0: they do not */
	int64_t expire_at;       /* when expired messages are looked for */
	u32 token_end;           /* when the first token in use ends, as in
	                          * conn.expires; it may be gone already */
	int64_t stop_at;
	int64_t deaf_log_at;     /* when missing Pongs may be logged again */
	u32 deaf;                /* clients without a Pong since the last time */
	bool listening;          /* the listeners are armed */
	bool stopping;
	struct retained {
		u32 message;
		u16 target_n;
		char target[WSP_MAX_REQUEST_LINE];
	} *retained;             /* in the order of their age */
	u32 retains;
	u32 holder[WSP_HANDSHAKES]; /* slot of who has each context */
	struct deadline *deadline_rows;
	struct deadlines deadlines;
	struct deadlines away;   /* of sockets: their sessions' ends */
	struct tags tags;
	struct queues queues;
} srv RESIDENT;

static struct buffer buffers[1 + WSP_BUFFERS] RESIDENT; /* 0: nobody's */

static struct awaiting {  /* beside each waiter of the queues */
	struct sockaddr_un to;
	socklen_t to_n;
	u8 ref_n;
	char ref[WSP_MAX_REF];
	int64_t due;
} awaiting[WSP_WAITERS];

static struct watcher {
	struct sockaddr_un to;
	socklen_t to_n;   /* 0: a free row */
	u8 fails;         /* sends that failed in a row */
	u16 target_n;
	char target[WSP_MAX_REQUEST_LINE];
} watchers[WSP_WATCHERS];

#define SCRATCH_OUT                                                           \
	(2 * RECORD_MAX + STREAM_RECORDS * (STREAM_RECORD + RECORD_OVERHEAD_MAX))

/* The three calls down from here into Services, which decides what requests,
 * messages and ends mean.  They stand here so that the state machine can be
 * read in one place. */
static void service_request(struct conn *c, const struct http_request *r);
static void service_message(struct conn *c, u8 opcode, const u8 *p, size_t n);
static void service_ended(struct conn *c, u16 code);

static void conn_kill(struct conn *c, const char *why);
static void conn_fail(struct conn *c, u16 code, const char *why);

static u32
conn_slot(const struct conn *c)
{
	return (u32)(c - srv.conn);
}

static struct record_keys *
conn_keys(const struct conn *c)
{
	return &srv.keys[conn_slot(c)];
}

static bool
addr_is_ipv4(const u8 addr[16])
{
	return memcmp(addr, http_mapped, sizeof http_mapped) == 0;
}

/* Are the two one host, as far as we can tell?  With IPv6 that is a /64, in
 * which a host gives itself as many addresses as it likes. */
static bool
addr_same_host(const u8 a[16], const u8 b[16])
{
	return memcmp(a, b, addr_is_ipv4(a) || addr_is_ipv4(b) ? 16 : 8) == 0;
}

/* Its name, for the log. */
static const char *
sock_quote(struct log_room *room, u32 sock)
{
	char name[WSP_MAX_SOCKET_ID];
	struct out o = out_to(name, sizeof name);

	sock_name(&o, &srv.sockets, sock);
	return log_quote(room, (struct str){ name, o.n });
}

/* Its address as text, until the next call. */
static const char *
conn_peer(const struct conn *c)
{
	static char text[64] RESIDENT;
	struct out o = out_to(text, sizeof text - 1);

	http_ip_print(&o, c->addr);
	out_print(&o, ":%d", c->port);
	text[o.n] = '\0';
	return text;
}

/*
 * ---- Buffers
 */

static u8 *
buffer_at(u8 number)
{
	return srv.buffer_bytes + (number - 1u) * srv.buffer_size;
}

static void
buffer_give(u8 *number)
{
	if (*number == 0)
		return;
	buffers[*number].taken = false;
	*number = 0;
}

/* Should a give way before b does?  Who is not in yet goes first, so that
 * half requests cost no client its message; then who has held one longest. */
static bool
buffer_goes_before(const struct buffer *a, const struct buffer *b)
{
	bool a_in = srv.conn[a->conn].state != CONN_HTTP;
	bool b_in = srv.conn[b->conn].state != CONN_HTTP;

	return a_in != b_in ? b_in : a->since < b->since;
}

/* A free buffer, else that of another connection that gives way. */
static struct buffer *
buffer_find(u32 not_of)
{
	struct buffer *found = NULL;

	for (struct buffer *b = buffers + 1; b < buffers + COUNT(buffers);
	    b++) {
		if (!b->taken)
			return b;
		if (b->conn != not_of &&
		    (!found || buffer_goes_before(b, found)))
			found = b;
	}
	assert(found);
	return found;
}

/* The connection's own buffer for this, taken if it has none yet.  Whose
 * buffer gives way is cut: who trickles bytes cannot keep others out. */
static struct buffer *
buffer_take(struct conn *c, u8 *number)
{
	struct buffer *b;

	if (*number != 0)
		return &buffers[*number];
	b = buffer_find(conn_slot(c));
	if (b->taken)
		conn_kill(&srv.conn[b->conn],
		    "its buffer was needed by others");
	*b = (struct buffer){ .taken = true, .conn = conn_slot(c),
		.since = srv.now };
	*number = (u8)(b - buffers);
	return b;
}

/*
 * ---- State
 */

static int64_t
conn_deadline_ms(enum conn_deadline class)
{
	switch (class) {
	case DEADLINE_HANDSHAKE:
		return settings.handshake_timeout * INT64_C(1000);
	case DEADLINE_PING:
		return settings.ping_interval * INT64_C(1000);
	case DEADLINE_PONG:
		return settings.pong_timeout * INT64_C(1000) / PONG_STEPS;
	case DEADLINE_ACK:
		return ACK_INTERVAL_MS;
	case DEADLINE_CLOSING:
		return CLOSING_MS;
	case DEADLINE_DRAIN:
		return DRAIN_MS;
	}
	return 0;
}

/* Without keepalive, who is idle has no deadline. */
static void
conn_arm(struct conn *c, enum conn_deadline class)
{
	int64_t ms = conn_deadline_ms(class);

	if (ms > 0)
		deadline_arm(&srv.deadlines, conn_slot(c), class,
		    srv.now + ms);
	else
		deadline_cancel(&srv.deadlines, conn_slot(c));
}

/* What epoll should tell us, worked out from the data. */
static u16
conn_interest(const struct conn *c)
{
	u16 events = c->state == CONN_WAIT || c->judged ? EPOLLRDHUP : 0;

	if (!c->waiting && !c->judged && c->out == 0)
		events |= EPOLLIN;
	if (c->blocked)
		events |= EPOLLOUT;
	return events;
}

static void
conn_ask(struct conn *c)
{
	u16 events = conn_interest(c);

	if (events == c->asked || c->state == CONN_DEAD)
		return;
	c->asked = events;
	sys_epoll_ctl(srv.epoll, EPOLL_CTL_MOD, c->fd, events,
	    (u64)c->gen << 32 | conn_slot(c));
}

static void
conn_leave_line(struct conn *c)
{
	u32 *link = &srv.first_waiting, slot = conn_slot(c);

	while (*link != slot)
		link = &srv.next_waiting[*link];
	*link = srv.next_waiting[slot];
	c->waiting = false;
}

static void
conn_give_context(struct conn *c)
{
	if (c->context == 0)
		return;
	tls_give(c->context - 1);
	c->context = 0;
}

static void
conn_mark_dirty(struct conn *c)
{
	u32 end = srv.first_dirty + srv.dirties;

	if (c->dirty)
		return;
	c->dirty = true;
	srv.dirty[end < srv.conns ? end : end - srv.conns] = conn_slot(c);
	srv.dirties++;
}

/* The one place where a state begins. */
static void
conn_enter(struct conn *c, enum conn_state state)
{
	c->state = (u8)state;
	c->judged = false;
	switch (state) {
	case CONN_WAIT:
	case CONN_TLS:
	case CONN_HTTP:
	case CONN_FREE:
		break;
	case CONN_OPEN:
		conn_arm(c, DEADLINE_PING);
		break;
	case CONN_CLOSING:
		conn_arm(c, DEADLINE_CLOSING);
		conn_mark_dirty(c);
		break;
	case CONN_DRAIN:
		buffer_give(&c->in);
		buffer_give(&c->message);
		conn_arm(c, DEADLINE_DRAIN);
		conn_mark_dirty(c);
		break;
	case CONN_DEAD:
		deadline_cancel(&srv.deadlines, conn_slot(c));
		buffer_give(&c->in);
		buffer_give(&c->message);
		buffer_give(&c->out);
		if (c->waiting)
			conn_leave_line(c);
		conn_give_context(c);
		srv.dead[srv.deads++] = conn_slot(c);
		break;
	}
}

/* Ends a connection now, without another byte: the client sees 1006. */
static void
conn_kill(struct conn *c, const char *why)
{
	if (c->state == CONN_DEAD)
		return;
	log_event(LOG_LEVEL_DEBUG, "gone", "peer=%s why=\"%s\"",
	    conn_peer(c), why);
	if (c->state == CONN_OPEN)
		service_ended(c, WSP_CLOSE_ABNORMAL);
	conn_enter(c, CONN_DEAD);
}

/* At the end of the turn: closes and frees what died in it. */
static void
conn_free_dead(void)
{
	while (srv.deads > 0) {
		u32 slot = srv.dead[--srv.deads];
		struct conn *c = &srv.conn[slot];

		sys_close(c->fd);
		if (c->tls)
			wipe(conn_keys(c), sizeof(struct record_keys));
		c->fd = -1;
		c->state = CONN_FREE;
		c->gen++;
		c->sock = srv.free;
		srv.free = slot;
		srv.live--;
	}
}

static void
conn_mark_urgent(struct conn *c)
{
	if (c->urgent)
		return;
	c->urgent = true;
	srv.urgent[srv.urgents++] = conn_slot(c);
}

/* ----- 27. Output --------------------------------------------------------
 *
 * What leaves a connection, in the order it must: bytes the kernel did not
 * take before, the rest of a unit that is half out, aside bytes, a Ping that
 * is due, then the stream of the socket's queue. In plain the stream goes
 * from the store with no copy; over TLS as records that are sealed again from
 * the same bytes when the kernel takes only half.
 */

static bool
conn_at_boundary(const struct conn *c)
{
	return c->done == 0 && c->rec_n == 0;
}

/* Takes the kernel's answer to a write of `all` bytes and returns how many
 * went; if not all, the connection is blocked or dead. */
static size_t
conn_wrote(struct conn *c, ssize_t n, size_t all)
{
	if (n == -EAGAIN || n == -ENOBUFS || n == -ENOMEM)
		n = 0;
	if (n < 0) {
		conn_kill(c, strerror((int)-n));
		return 0;
	}
	c->since_ping += (u32)n;
	srv.written += (u64)n;
	if (n > 0)
		c->held = c->more;
	if ((size_t)n < all)
		c->blocked = true;
	return (size_t)n;
}

static size_t
conn_send(struct conn *c, const void *p, size_t n)
{
	return conn_wrote(c, sys_send(c->fd, p, n, c->more ? MSG_MORE : 0), n);
}

/* Makes n bytes ready for the wire at `to`, as records over TLS, and returns
 * their length.  The records' number goes on: they will leave wholly, from
 * here or from a buffer. */
static size_t
conn_wire(struct conn *c, u8 *to, const u8 *p, size_t n)
{
	struct record_key *k;
	size_t total = 0;

	if (!c->tls) {
		memcpy(to, p, n);
		return n;
	}
	k = &conn_keys(c)->out;
	while (n > 0) {
		size_t part = min_size(n, RECORD_MAX_PLAIN);

		memcpy(to + total + record_head(k->suite), p, part);
		total += record_seal(tls_aead(), k, k->seq++, RECORD_DATA,
		    to + total, part);
		p += part;
		n -= part;
	}
	return total;
}

/* May n more bytes wait in the out buffer, sealed in the end? */
static bool
conn_may_keep(const struct conn *c, size_t n)
{
	return buffers[c->out].n + n + 2 * RECORD_OVERHEAD_MAX <=
	    srv.buffer_size;
}

/* Puts bytes behind those that wait in the out buffer: ready for the wire,
 * which go before all else, or to be sealed at the next boundary. */
static void
conn_keep(struct conn *c, const u8 *p, size_t n, bool ready)
{
	struct buffer *b = buffer_take(c, &c->out);

	if (!conn_may_keep(c, n)) {
		conn_kill(c, "it does not take its answers");
		return;
	}
	memcpy(buffer_at(c->out) + b->n, p, n);
	b->n += (u32)n;
	if (ready)
		b->raw = b->n;
}

/* Sends bytes that are ready for the wire, and keeps what does not go. */
static void
conn_send_or_keep(struct conn *c, const u8 *p, size_t n)
{
	size_t sent = c->blocked ? 0 : conn_send(c, p, n);

	if (c->state != CONN_DEAD && sent < n)
		conn_keep(c, p + sent, n - sent, true);
}

/* Sends bytes aside: now when nothing is in their way, else at the next
 * boundary. */
static void
conn_aside(struct conn *c, const u8 *p, size_t n)
{
	if (c->state == CONN_DEAD || n == 0)
		return;
	if (c->out != 0 || !conn_at_boundary(c)) {
		conn_keep(c, p, n, false);
		conn_mark_dirty(c);
		return;
	}
	if (c->tls) {
		n = conn_wire(c, srv.scratch_out, p, n);
		p = srv.scratch_out;
	}
	conn_send_or_keep(c, p, n);
}

/* Writes what is ready in the out buffer.  False: it has to wait. */
static bool
conn_send_raw(struct conn *c)
{
	struct buffer *b = &buffers[c->out];
	u8 *p = buffer_at(c->out);
	size_t left = b->raw - b->at;

	left -= conn_send(c, p + b->at, left);
	b->at = b->raw - (u32)left;
	if (left > 0)
		return false;
	memmove(p, p + b->raw, b->n - b->raw);
	b->n -= b->raw;
	b->raw = b->at = 0;
	if (b->n == 0)
		buffer_give(&c->out);
	return true;
}

/* At a boundary: makes the aside bytes that waited ready for the wire. */
static void
conn_ready_aside(struct conn *c)
{
	struct buffer *b = &buffers[c->out];
	u8 *p = buffer_at(c->out);

	assert(b->raw == 0);
	if (c->tls) {
		b->n = (u32)conn_wire(c, srv.scratch_out, p, b->n);
		memcpy(p, srv.scratch_out, b->n);
	}
	b->raw = b->n;
}

static enum keep
conn_keeps(const struct conn *c)
{
	const struct sock *s = &srv.sockets.row[c->sock];

	if (settings.service[s->service].ack_sent)
		return KEEP_NONE;
	return s->stateful ? KEEP_ALL : KEEP_AWAITED;
}

/* `n` more bytes of the stream are out, and perhaps some of a record. */
static void
conn_advance(struct conn *c, size_t n)
{
	c->done = (u32)queue_advance(&srv.queues, c->sock, c->done + n,
	    conn_keeps(c), &c->sent_number);
	if (!conn_at_boundary(c))
		queue_freeze(&srv.queues, c->sock, c->done + c->rec_n);
}

/* Writes some of the stream in plain, no more than the kernel takes at once
 * (it doubles SO_SNDBUF).  False: the rest has to wait. */
static bool
conn_stream_plain(struct conn *c)
{
	struct gather g;
	size_t out;

	queue_gather(&g, &srv.queues, c->sock, c->done,
	    min_size(2 * settings.send_buffer, CONN_TURN_BYTES));
	if (g.spans == 1)
		out = conn_send(c, g.span[0].iov_base, g.bytes);
	else
		out = conn_wrote(c, sys_sendv(c->fd, g.span, (u32)g.spans,
		    c->more ? MSG_MORE : 0), g.bytes);
	if (out > 0)
		conn_advance(c, out);
	return out == g.bytes;
}

/* Copies up to `room` bytes of the stream from byte `from` on. */
static size_t
conn_copy_stream(const struct conn *c, u8 *to, size_t from, size_t room)
{
	struct gather g;
	size_t n = 0;

	do {
		queue_gather(&g, &srv.queues, c->sock, from + n, room - n);
		for (size_t i = 0; i < g.spans; i++) {
			memcpy(to + n, g.span[i].iov_base, g.span[i].iov_len);
			n += g.span[i].iov_len;
		}
	} while (n < room && g.is_full);
	return n;
}

/* Seals up to `room` bytes of the stream into records of STREAM_RECORD,
 * numbered from k->seq on, which stays.  Returns their length, and in
 * *plain how much of the stream they carry. */
static size_t
conn_seal_stream(const struct conn *c, size_t room, size_t *plain)
{
	const struct record_key *k = &conn_keys(c)->out;
	size_t total = 0, part, want;
	u64 seq = k->seq;

	*plain = 0;
	do {
		u8 *to = srv.scratch_out + total;

		want = min_size(room - *plain, STREAM_RECORD);
		part = conn_copy_stream(c, to + record_head(k->suite),
		    c->done + *plain, want);
		if (part > 0)
			total += record_seal(tls_aead(), k, seq++,
			    RECORD_DATA, to, part);
		*plain += part;
	} while (part == want && *plain < room);
	return total;
}

/* The first n bytes of the records in scratch are out.  A record that is
 * half out stays as a plan: how much plaintext, how much is out. */
static void
conn_records_sent(struct conn *c, size_t plain, size_t n)
{
	struct record_key *k = &conn_keys(c)->out;
	size_t overhead = record_head(k->suite) + RECORD_TAG, out = 0;

	c->rec_n = c->rec_sent = 0;
	while (n > 0) {
		size_t part = min_size(plain - out, STREAM_RECORD);

		if (n < part + overhead) {
			c->rec_n = (u16)part;
			c->rec_sent = (u16)n;
			break;
		}
		n -= part + overhead;
		out += part;
		k->seq++;
	}
	conn_advance(c, out);
}

/* Writes some of the stream as records.  A record that is half out is sealed
 * again from the same bytes with the same number. */
static bool
conn_stream_tls(struct conn *c)
{
	size_t before = c->rec_sent, plain, left, out;

	left = conn_seal_stream(c, c->rec_n > 0 ? c->rec_n :
	    STREAM_RECORD * STREAM_RECORDS, &plain) - before;
	assert(c->rec_n == 0 || plain == c->rec_n);
	out = conn_send(c, srv.scratch_out + before, left);
	if (out > 0)
		conn_records_sent(c, plain, before + out);
	return out == left;
}

static bool
conn_wants_pong(const struct conn *c)
{
	const struct queue *q = &srv.queues.queue[c->sock];

	return q->sent > 0 && conn_keeps(c) != KEEP_NONE;
}

/* May a Ping for acknowledgement go before its 200 ms are over? */
static bool
conn_ping_is_urgent(const struct conn *c)
{
	const struct queue *q = &srv.queues.queue[c->sock];
	const struct queues *t = &srv.queues;

	return q->count * 2u >= t->cap ||
	    q->bytes * UINT64_C(2) >= t->byte_cap ||
	    queue_is_awaited(t, c->sock);
}

/* A Ping is out, or waits for a boundary. */
static void
conn_await_pong(struct conn *c, bool due)
{
	c->pinged = true;
	c->ping_due = due;
	c->pong_steps = 0;
	conn_arm(c, DEADLINE_PONG);
}

/* Asks for a Ping at the next boundary, which may be now. */
static void
conn_ping(struct conn *c)
{
	conn_await_pong(c, true);
	conn_mark_dirty(c);
}

static void
conn_send_ping(struct conn *c)
{
	u8 frame[2 + 16] = { 0x80 | FRAME_PING, 16 };

	conn_await_pong(c, false);
	c->ping_number = c->sent_number;
	c->ping_ms = (u32)srv.now;
	c->since_ping = 0;
	store64(frame + 2, c->ping_number);
	memcpy(frame + 10, c->nonce, sizeof c->nonce);
	conn_aside(c, frame, sizeof frame);
}

/* After a flush: one Ping asks for all that was written.  A client that is
 * always behind gets it at the next boundary, not when it has caught up. */
static void
conn_ping_if_due(struct conn *c)
{
	if (c->pinged || !conn_wants_pong(c))
		return;
	if ((u32)srv.now - c->ping_ms >= ACK_INTERVAL_MS ||
	    conn_ping_is_urgent(c)) {
		if (c->blocked || c->out != 0 || !conn_at_boundary(c))
			conn_ping(c);
		else
			conn_send_ping(c);
	} else if (srv.deadlines.row[conn_slot(c)].class != DEADLINE_ACK + 1) {
		conn_arm(c, DEADLINE_ACK);
	}
}

/* Something to write from the queue? */
static bool
conn_has_stream(struct conn *c)
{
	if (c->state != CONN_OPEN)
		return false;
	if (!conn_at_boundary(c))
		return true;
	queue_expire(&srv.queues, c->sock, srv.now);
	return queue_limit(&srv.queues, c->sock) > 0;
}

/* Writes one piece of whatever is next.  False: nothing is left to write,
 * or the kernel takes no more. */
static bool
conn_write_some(struct conn *c)
{
	if (buffers[c->out].raw > 0)
		return conn_send_raw(c);
	if (c->out != 0 && conn_at_boundary(c)) {
		conn_ready_aside(c);
		return true;
	}
	if (c->ping_due && c->state == CONN_OPEN && conn_at_boundary(c)) {
		conn_send_ping(c);
		return true;
	}
	if (!conn_has_stream(c))
		return false;
	return c->tls ? conn_stream_tls(c) : conn_stream_plain(c);
}

/* A TLS alert, the last bytes that the connection says. */
static void
conn_alert(struct conn *c, u8 level, u8 number)
{
	struct record_key *k = &conn_keys(c)->out;
	u8 record[RECORD_OVERHEAD_MAX + 2];

	if (!conn_at_boundary(c) || c->out != 0)
		return;
	c->notified = level == 2 || number == 0;
	conn_send_or_keep(c, record,
	    record_seal_alert(tls_aead(), k, k->seq++, level, number,
	    record));
}

/* All is out: an ending connection sends its FIN. */
static void
conn_flushed(struct conn *c)
{
	if (c->state != CONN_DRAIN || c->shut)
		return;
	if (c->tls && !c->notified)
		conn_alert(c, 1, 0); /* close_notify */
	if (c->out != 0 || c->state == CONN_DEAD)
		return;
	c->shut = true;
	sys_shutdown(c->fd, SHUT_WR);
	conn_arm(c, DEADLINE_DRAIN);
}

/* Writes all that the connection owes, as far as the kernel and the turn's
 * budget go. */
static void
conn_flush(struct conn *c)
{
	u64 until = srv.written + CONN_TURN_BYTES;

	while (!c->blocked && srv.written < until)
		if (!conn_write_some(c))
			break;
	if (c->state == CONN_DEAD)
		return;
	if (c->held && !c->more) { /* what it waited for did not come */
		sys_setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, 1);
		c->held = false;
	}
	if (!c->blocked && srv.written >= until)
		conn_mark_dirty(c);
	else if (c->state == CONN_OPEN)
		conn_ping_if_due(c);
	else if (!c->blocked && c->out == 0)
		conn_flushed(c);
	conn_ask(c);
}

/* Writes what can be written now, whatever the last try was told: since
 * then the client may have read.  What it said meanwhile is heard later, for
 * somebody's request is at work. */
static void
conn_offer(struct conn *c)
{
	c->blocked = false;
	conn_flush(c);
	if (c->in != 0)
		conn_mark_dirty(c);
}

/* conn_offer() before a message that asks for room, and then follows in the
 * same turn: the kernel may send both at once.  Only every second time, with
 * little, and while its buffer is half empty, for a client acknowledges the
 * second piece that comes, and until then it is full of the first.  Not over
 * TLS, where a flood loses more messages by it and gains little. */
static void
conn_offer_before(struct conn *c)
{
	c->more = !c->tls && !c->held && !c->blocked &&
	    srv.queues.queue[c->sock].bytes <= CONN_HOLD &&
	    sys_held(c->fd, TIOCOUTQ) <= (int)settings.send_buffer / 2;
	conn_offer(c);
	c->more = false;
	if (c->held)
		conn_mark_dirty(c);
}

/* ----- 28. Endings -------------------------------------------------------
 *
 * What a Pong proves and what comes of its absence, and how a connection ends:
 * with a Close at a boundary, with an HTTP answer, or cut.
 */

/*
 * ---- Pongs
 */

/* A Pong counts only when it answers a Ping of ours. */
static void
conn_ponged(struct conn *c, const u8 *p, size_t n)
{
	u64 number;

	if (n != 16 || memcmp(p + 8, c->nonce, sizeof c->nonce) != 0)
		return;
	number = load64(p);
	if (number > c->ping_number)
		return;
	queue_acknowledge(&srv.queues, c->sock, number);
	if (number < c->ping_number)
		return;
	c->pinged = false;
	conn_arm(c, DEADLINE_PING);
	conn_mark_dirty(c);
}

/* A client's TCP took the Ping, and no Pong comes: one line a minute, with a
 * count, for it may be a proxy that swallows them all. */
static void
conn_log_deaf(const struct conn *c, bool cut)
{
	struct log_room room;

	srv.deaf++;
	if (srv.now < srv.deaf_log_at)
		return;
	log_event(LOG_LEVEL_WARN, "no-pong", "socket=%s peer=%s cut=%d "
	    "clients=%u why=\"TCP took the Ping and no Pong came; if a proxy "
	    "swallows them, use --ack sent\"",
	    sock_quote(&room, c->sock), conn_peer(c), cut, srv.deaf);
	srv.deaf = 0;
	srv.deaf_log_at = srv.now + DEAF_MS;
}

/* A Ping went unanswered for the whole time that a Pong may take.  Any byte
 * proves the client alive; then a keepalive Ping replaces this one. */
static void
conn_pong_missed(struct conn *c)
{
	bool heard = (int32_t)(c->rx_ms - c->ping_ms) > 0;
	bool needed = conn_keeps(c) != KEEP_NONE;
	bool is_dead = needed && !heard && settings.ping_interval > 0;

	srv.queues.total.pongs_missed++;
	if (needed && (heard || sys_held(c->fd, TIOCOUTQ) == 0))
		conn_log_deaf(c, is_dead);
	if (is_dead) {
		conn_kill(c, "no Pong in time");
		return;
	}
	c->pinged = settings.ping_interval > 0;
	conn_arm(c, DEADLINE_PING);
}

/* A part of that time is over; as long as the Ping has not even left, it has
 * not begun. */
static void
conn_pong_step(struct conn *c)
{
	if (c->ping_due || c->out != 0 ||
	    sys_held(c->fd, TIOCOUTQ) > (int)c->since_ping)
		c->pong_steps = 0;
	else
		c->pong_steps++;
	if (c->pong_steps > PONG_STEPS)
		conn_pong_missed(c);
	else
		conn_arm(c, DEADLINE_PONG);
}

/*
 * ---- Endings
 */

/* Moves what is half out of the stream into the out buffer, for the socket
 * goes elsewhere.  False: it does not fit. */
static bool
conn_settle(struct conn *c)
{
	u8 *rest = srv.scratch_out;
	size_t plain, n = 0, room;
	struct buffer *b;

	if (conn_at_boundary(c))
		return true;
	if (c->out != 0)
		return false;
	b = buffer_take(c, &c->out);
	if (c->rec_n > 0) {
		n = conn_seal_stream(c, c->rec_n, &plain) - c->rec_sent;
		memcpy(buffer_at(c->out), rest + c->rec_sent, n);
		conn_keys(c)->out.seq++;
	}
	room = srv.buffer_size - n;
	plain = conn_copy_stream(c, rest, c->done + c->rec_n, room);
	if (plain + (plain / RECORD_MAX_PLAIN + 1) * RECORD_OVERHEAD_MAX >
	    room)
		return false;
	b->n = b->raw = (u32)(n + conn_wire(c, buffer_at(c->out) + n, rest,
	    plain));
	return true;
}

/* Ends an open connection with a Close frame; the client's is awaited. */
static void
conn_close(struct conn *c, u16 code, struct str reason)
{
	u8 frame[2 + FRAME_MAX_CONTROL];
	size_t n = close_frame(frame, code, reason);
	bool settled;

	assert(c->state == CONN_OPEN);
	settled = conn_settle(c) && conn_may_keep(c, n);
	service_ended(c, settled ? code : WSP_CLOSE_ABNORMAL);
	conn_enter(c, settled ? CONN_CLOSING : CONN_DEAD);
	conn_aside(c, frame, n);
}

/* The same when the client's Close is here or not wanted, perhaps after
 * ours.  It is not heard any more: before a Close that has to wait costs
 * others a buffer, it has its own. */
static void
conn_end(struct conn *c, u16 code, struct str reason)
{
	buffer_give(&c->in);
	buffer_give(&c->message);
	if (c->state == CONN_OPEN)
		conn_close(c, code, reason);
	if (c->state == CONN_CLOSING)
		conn_enter(c, CONN_DRAIN);
}

/* The client broke a rule: Close with the code that says so, and away. */
static void
conn_fail(struct conn *c, u16 code, const char *why)
{
	log_event(LOG_LEVEL_INFO, "failed", "peer=%s code=%u why=\"%s\"",
	    conn_peer(c), code, why);
	conn_end(c, code, STR(""));
}

/* An HTTP answer that is not 101, and the end.  What the kernel does not take
 * at once, of the page with a small --send-buffer, has as long as the request
 * had. */
static void
conn_reply(struct conn *c, struct out *o)
{
	conn_enter(c, CONN_DRAIN);
	conn_aside(c, (u8 *)o->p, o->n);
	if (c->out != 0)
		conn_arm(c, DEADLINE_HANDSHAKE);
}

/* Answers with a sentence; headers of NULL are those of the status. */
static void
conn_refuse(struct conn *c, int status, const char *headers, const char *why)
{
	char text[1024], body[256];
	struct out o = out_to(text, sizeof text);

	srv.queues.total.http_refused++;
	http_response(&o, status, headers ? headers :
	    http_status_headers(status), NULL,
	    text_of(text_print(body, sizeof body, "%s\n", why)), c->head);
	assert(!o.full);
	conn_reply(c, &o);
}

/* ----- 29. Input ---------------------------------------------------------
 *
 * What a client sends, from TLS records to frames, messages and HTTP heads.
 * What is whole in the bytes at hand is handled where it lies; only what is
 * not waits in a buffer. While an answer cannot be written the client is not
 * heard.
 */

/* The client's Close: echoed if we did not begin, and the end either way. */
static void
conn_got_close(struct conn *c, const u8 *p, size_t n)
{
	u16 code;
	struct str reason;
	int bad = close_parse(&code, &reason, p, n);

	if (bad < 0)
		conn_fail(c, (u16)-bad, "a malformed Close");
	else
		conn_end(c, code, reason);
}

/* A control frame or a whole message.  After our Close only the client's
 * counts. */
static void
conn_got(struct conn *c, u8 opcode, const u8 *p, size_t n)
{
	u8 pong[2 + FRAME_MAX_CONTROL];

	if (opcode == FRAME_CLOSE) {
		conn_got_close(c, p, n);
	} else if (c->state != CONN_OPEN) {
		return;
	} else if (opcode == FRAME_PONG) {
		conn_ponged(c, p, n);
	} else if (opcode == FRAME_PING) {
		pong[0] = FRAME_FIN | FRAME_PONG;
		pong[1] = (u8)n;
		memcpy(pong + 2, p, n);
		conn_aside(c, pong, 2 + n);
	} else {
		srv.queues.total.inbound_messages++;
		service_message(c, opcode, p, n);
	}
}

/* A whole frame that is a whole message or a control frame. */
static void
conn_whole_frame(struct conn *c, const struct frame *f, u8 *p)
{
	size_t n = f->length;

	frame_unmask(p, n, f->mask, 0);
	if (f->opcode == FRAME_TEXT && !text_is_utf8(p, n))
		conn_fail(c, WSP_CLOSE_BAD_TEXT, "text that is not UTF-8");
	else
		conn_got(c, f->opcode, p, n);
}

/* Takes what is there of a data frame that is not whole, or belongs to a
 * message in several; returns the bytes used. */
static size_t
conn_partial_frame(struct conn *c, u8 *p, size_t n)
{
	struct buffer *b = &buffers[c->message];
	struct message_in *m = &b->message;
	u8 *message = buffer_at(c->message), *to = message + m->length;
	size_t part = min_size(n, b->frame_left);
	bool done;

	memcpy(to, p, part);
	frame_unmask(to, part, b->frame.mask,
	    b->frame.length - b->frame_left);
	m->length += (u32)part;
	b->frame_left -= part;
	done = b->frame_left == 0 && b->frame.fin;
	if (m->opcode == FRAME_TEXT)
		m->utf8 = utf8_run(m->utf8, to, part);
	if (m->utf8 == UTF8_BAD || (done && m->utf8 != UTF8_START)) {
		conn_fail(c, WSP_CLOSE_BAD_TEXT, "text that is not UTF-8");
	} else if (done) {
		conn_got(c, m->opcode, message, m->length);
		buffer_give(&c->message);
	}
	return part;
}

/* Begins a data frame whose bytes go to the message buffer. */
static void
conn_begin_frame(struct conn *c, const struct frame *f)
{
	struct buffer *b = buffer_take(c, &c->message);

	if (f->opcode != FRAME_CONTINUATION)
		b->message.opcode = f->opcode;
	b->frame = *f;
	b->frame_left = f->length;
}

/* One frame, or what is there of it, of the n bytes at p: bytes used, 0 when
 * more must come. */
static size_t
conn_frame(struct conn *c, u8 *p, size_t n)
{
	const struct message_in *m = &buffers[c->message].message;
	struct frame f;
	int head = frame_decode(&f, m, p, n, settings.max_inbound);
	bool control, whole;

	if (head < 0) {
		conn_fail(c, (u16)-head, head == -WSP_CLOSE_TOO_BIG ?
		    "a message over --max-inbound" : "a malformed frame");
		return n;
	}
	if (head == 0)
		return 0;
	control = f.opcode >= FRAME_CLOSE;
	whole = f.length <= n - (size_t)head;
	if (whole && (control || (f.fin && m->opcode == 0))) {
		conn_whole_frame(c, &f, p + head);
		return (size_t)head + f.length;
	}
	if (control)
		return 0;
	conn_begin_frame(c, &f);
	return (size_t)head + conn_partial_frame(c, p + head,
	    n - (size_t)head);
}

static size_t
conn_http(struct conn *c, u8 *p, size_t n)
{
	struct http_request r;
	int used = c->judged ? 0 : http_parse(&r, p, n);

	if (used == 0)
		return 0;
	c->head = r.method == HTTP_HEAD;
	if (used < 0) {
		conn_refuse(c, -used, NULL, r.why);
		return n;
	}
	service_request(c, &r);
	return c->judged ? 0 : (size_t)used;
}

/* The client's bytes in plain; returns how many were used.  While an answer
 * waits the client is not heard. */
static size_t
conn_bytes(struct conn *c, u8 *p, size_t n)
{
	size_t used = 0, k = 1;

	while (used < n && k > 0 && c->out == 0 && c->state < CONN_DRAIN) {
		if (c->state == CONN_HTTP)
			k = conn_http(c, p + used, n - used);
		else if (buffers[c->message].frame_left > 0)
			k = conn_partial_frame(c, p + used, n - used);
		else
			k = conn_frame(c, p + used, n - used);
		used += k;
	}
	return used;
}

/* Keeps what was not used: opened bytes, then ciphertext.  `moved` says that
 * bytes before them were used: then the rest is new, and its time begins. */
static void
conn_keep_input(struct conn *c, const u8 *plain, size_t plain_n,
    const u8 *sealed, size_t sealed_n, bool moved)
{
	struct buffer *b;

	if (plain_n + sealed_n == 0 || c->state >= CONN_DRAIN) {
		buffer_give(&c->in);
		return;
	}
	b = buffer_take(c, &c->in);
	memmove(buffer_at(c->in), plain, plain_n);
	memmove(buffer_at(c->in) + plain_n, sealed, sealed_n);
	b->raw = (u32)plain_n;
	b->n = (u32)(plain_n + sealed_n);
	if (moved)
		b->since = srv.now;
}

/* An alert as our last word; what else is owed is not sent any more. */
static void
conn_tls_end(struct conn *c, u8 level, u8 number)
{
	conn_alert(c, level, number);
	if (c->state == CONN_DEAD || !c->notified) {
		conn_kill(c, level == 2 ? "a bad TLS record" : "TLS closed");
		return;
	}
	if (c->state == CONN_OPEN)
		service_ended(c, WSP_CLOSE_ABNORMAL);
	conn_enter(c, CONN_DRAIN);
}

static void
conn_tls_fail(struct conn *c, u8 number)
{
	log_event(LOG_LEVEL_INFO, "tls-failed", "peer=%s alert=%u",
	    conn_peer(c), number);
	conn_tls_end(c, 2, number);
}

/* An alert or a handshake message on an established TLS connection.  A
 * close_notify is answered with ours (RFC 5246, 7.2.1). */
static void
conn_tls_control(struct conn *c, const struct record *r)
{
	if (r->type == RECORD_HANDSHAKE)
		conn_alert(c, 1, 100); /* no_renegotiation (RFC 5246, 7.2) */
	else if (r->p[0] != 1)
		conn_kill(c, "TLS alert");
	else if (r->p[1] == 0)
		conn_tls_end(c, 1, 0);
}

/*
 * Works through n bytes at p, the first `plain` of them already opened:
 *
 *     p + a .. p + b   opened, not used      p + d .. p + n   ciphertext
 */
static void
conn_input(struct conn *c, u8 *p, size_t n, size_t plain)
{
	size_t a = 0, b = c->tls ? plain : n, d = b;
	bool moved = false;

	for (;;) {
		struct record r;
		int used;

		if (a < b) {
			size_t k = conn_bytes(c, p + a, b - a);

			a += k;
			moved |= k > 0;
		}
		if (d == n || c->out != 0 || c->state >= CONN_DRAIN)
			break;
		used = record_open(tls_aead(), &conn_keys(c)->in,
		    p + d, n - d, &r);
		if (used < 0) {
			conn_tls_fail(c, (u8)-used);
			break;
		}
		if (used == 0)
			break;
		d += (size_t)used;
		if (r.type != RECORD_DATA) {
			conn_tls_control(c, &r);
			continue;
		}
		if (a == b)
			a = b = (size_t)(r.p - p);
		if (p + b != r.p) /* behind bytes that wait for more */
			memmove(p + b, r.p, r.n);
		b += r.n;
	}
	conn_keep_input(c, p + a, b - a, p + d, n - d, moved);
	conn_ask(c);
}

/* The client is gone, or has closed its side. */
static void
conn_eof(struct conn *c, ssize_t n)
{
	conn_kill(c, c->state == CONN_DRAIN ? "done" :
	    n == 0 ? "closed by the client" : strerror((int)-n));
}

/* Once our FIN is out only the client's is awaited; what it still says is
 * lost. */
static void
conn_receive(struct conn *c)
{
	const struct buffer *b = &buffers[c->in];
	size_t have = b->n;
	u8 *p = c->in != 0 ? buffer_at(c->in) : srv.scratch_in;
	ssize_t n = sys_recv(c->fd, p + have, srv.buffer_size - have, 0);

	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		conn_eof(c, n);
		return;
	}
	c->rx_ms = (u32)srv.now;
	conn_input(c, p, have + (size_t)n, b->raw);
}

/* Writes what it owes; then input that waited until an answer was out. */
static void
conn_go_on(struct conn *c)
{
	const struct buffer *b;

	if (c->state == CONN_FREE || c->state == CONN_DEAD)
		return;
	conn_flush(c);
	b = &buffers[c->in];
	if (c->in != 0 && c->out == 0 && c->state < CONN_DRAIN)
		conn_input(c, buffer_at(c->in), b->n, b->raw);
}

/* ----- 30. Events --------------------------------------------------------
 *
 * What makes a connection move: handshake contexts and the line for them,
 * what epoll reports, deadlines, and newcomers. Contexts are few, so half a
 * ClientHello gets none and a silent client does not keep one while others
 * wait.
 */

/* Who waits in line has its turn. */
static void
conn_start_handshake(struct conn *c)
{
	int context = tls_take();

	assert(context >= 0);
	conn_leave_line(c);
	c->context = (u8)(context + 1);
	srv.holder[context] = conn_slot(c);
	c->rx_ms = (u32)srv.now;
	conn_arm(c, DEADLINE_HANDSHAKE);
	sys_setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, 1);
	conn_enter(c, CONN_TLS);
	conn_ask(c);
}

/* Who does not go on in its handshake is cut; who waits in line then has no
 * more time than others. */
static void
conn_cut_slow(struct conn *c, const char *why)
{
	if (c->state == CONN_TLS)
		srv.hogged_until = srv.now +
		    2 * conn_deadline_ms(DEADLINE_HANDSHAKE);
	conn_kill(c, why);
}

/* Cuts the client that lets a handshake wait longest, if it is over
 * CONTEXT_MS: else a few who say half a sentence keep all others out. */
static bool
conn_free_context(void)
{
	struct conn *slowest = NULL;

	for (u32 i = 0; i < WSP_HANDSHAKES; i++) {
		struct conn *c = &srv.conn[srv.holder[i]];

		if (c->context == i + 1 && !c->blocked &&
		    (!slowest || (int32_t)(c->rx_ms - slowest->rx_ms) < 0))
			slowest = c;
	}
	if (!slowest || (u32)srv.now - slowest->rx_ms < CONTEXT_MS ||
	    sys_held(slowest->fd, FIONREAD) > 0)
		return false;
	conn_cut_slow(slowest, "others wait for a handshake");
	return true;
}

/* May this one have a context now?  Its host has at most three times as many
 * as are left for all others, 6 of 8. */
static bool
conn_may_handshake(const struct conn *c)
{
	u32 own = 0, left = WSP_HANDSHAKES;

	for (u32 i = 0; i < WSP_HANDSHAKES; i++) {
		const struct conn *holder = &srv.conn[srv.holder[i]];

		if (holder->context != i + 1)
			continue;
		left--;
		own += addr_same_host(holder->addr, c->addr);
	}
	return own < 3 * left;
}

/* How far to look down the line: it may be long, all of one host. */
static u32
conn_line_look(void)
{
	if (srv.now < srv.line_again)
		return LINE_LOOK;
	srv.line_again = srv.now + LINE_LOOK_MS;
	return srv.conns;
}

/* Gives contexts that are free to those who wait in line.  Who came last is
 * served first: a line gets long by those who will not go on. */
static void
conn_serve_line(void)
{
	const struct conn *refused = NULL;
	bool hogs = true; /* a context may yet be had from one of them */
	u32 i = srv.first_waiting, look = conn_line_look(), next;

	for (; i != NONE && look > 0; i = next, look--) {
		struct conn *c = &srv.conn[i];

		next = srv.next_waiting[i];
		if (refused && addr_same_host(refused->addr, c->addr))
			continue;
		while (hogs && !conn_may_handshake(c))
			hogs = conn_free_context();
		if (hogs || conn_may_handshake(c))
			conn_start_handshake(c);
		else
			refused = c;
	}
}

static void
conn_join_line(struct conn *c)
{
	u32 slot = conn_slot(c);

	c->waiting = true;
	srv.next_waiting[slot] = srv.first_waiting;
	srv.first_waiting = slot;
}

/* Waits for a whole ClientHello, which stays in the kernel until a context
 * is free: half of one costs us nothing.  The kernel wakes us for its header,
 * then for all of it; who is looked at oftener sends what nobody waits for, an
 * empty record or an urgent byte, and would keep us busy. */
static void
conn_hello(struct conn *c)
{
	u8 head[5];
	ssize_t n = sys_recv(c->fd, head, sizeof head, MSG_PEEK);
	int need = 5;

	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		conn_eof(c, n);
		return;
	}
	if (c->looks++ == HELLO_LOOKS) {
		conn_kill(c, "no ClientHello");
		return;
	}
	if (head[0] != RECORD_HANDSHAKE) {
		c->tls = false;
		conn_refuse(c, 400, NULL, "this port speaks TLS: use "
		    "https:// or wss://");
		return;
	}
	if (n == sizeof head)
		need += load16(head + 3);
	if (need == 5 || sys_held(c->fd, FIONREAD) < need) {
		sys_setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, need);
		return;
	}
	conn_join_line(c);
	conn_serve_line();
	conn_ask(c);
}

static void
conn_handshake(struct conn *c)
{
	int context = c->context - 1;
	enum tls_progress progress;

	if (srv.handshakes_left == 0)
		return;
	srv.handshakes_left--;
	progress = tls_step(context, c->fd, conn_keys(c));
	c->blocked = progress == TLS_WANT_WRITE;
	if (progress == TLS_DONE) {
		if (tls_resumed(context))
			srv.queues.total.handshakes_resumed++;
		else
			srv.queues.total.handshakes_full++;
		conn_enter(c, CONN_HTTP);
	} else if (progress == TLS_FAILED) {
		srv.queues.total.handshakes_failed++;
		log_event(LOG_LEVEL_INFO, "tls-failed", "peer=%s why=\"%s\"",
		    conn_peer(c), tls_why(context));
		c->tls = false; /* no keys: nothing more is sealed */
		conn_enter(c, CONN_DRAIN);
	}
	if (c->state != CONN_TLS) {
		conn_give_context(c);
		conn_serve_line();
	}
	conn_ask(c);
}

/*
 * ---- Events
 */

static void
conn_readable(struct conn *c)
{
	switch ((enum conn_state)c->state) {
	case CONN_WAIT:
		conn_hello(c);
		if (c->state == CONN_TLS) /* it is all there */
			conn_handshake(c);
		break;
	case CONN_TLS:
		conn_handshake(c);
		break;
	case CONN_HTTP:
	case CONN_OPEN:
	case CONN_CLOSING:
	case CONN_DRAIN:
		conn_receive(c);
		break;
	case CONN_FREE:
	case CONN_DEAD:
		break;
	}
}

static void
conn_event(u64 id, u32 events)
{
	struct conn *c = &srv.conn[(u32)id];
	bool broken = (events & (EPOLLERR | EPOLLHUP)) != 0;

	if (c->gen != id >> 32)
		return;
	if (events & conn_interest(c) & EPOLLRDHUP) {
		/* What came before the end may be plain HTTP; a ClientHello
		 * with nothing to follow is of no use. */
		if (!c->waiting && !c->judged)
			conn_readable(c);
		if (c->state <= CONN_TLS || c->judged)
			conn_kill(c, "closed by the client");
		return;
	}
	if (c->blocked && (events & EPOLLOUT || broken)) {
		c->blocked = false;
		if (c->state != CONN_TLS)
			conn_go_on(c);
	}
	if (!(conn_interest(c) & EPOLLIN)) {
		if (broken)
			conn_kill(c, "connection reset");
	} else if (events & EPOLLIN || broken || c->state == CONN_TLS) {
		conn_readable(c);
	}
}

static void
conn_flush_urgent(void)
{
	while (srv.urgents > 0) {
		struct conn *c = &srv.conn[srv.urgent[--srv.urgents]];

		c->urgent = false;
		conn_go_on(c);
	}
}

/* Writes to the first `slice` of those who have something to say. */
static void
conn_flush_dirty(u32 slice)
{
	for (; srv.dirties > 0 && slice > 0; slice--) {
		struct conn *c = &srv.conn[srv.dirty[srv.first_dirty]];

		srv.dirties--;
		if (++srv.first_dirty == srv.conns)
			srv.first_dirty = 0;
		c->dirty = false;
		conn_go_on(c);
	}
}

static void
conn_deadline(struct conn *c, enum conn_deadline class)
{
	switch (class) {
	case DEADLINE_HANDSHAKE:
		/* Who waits for us may wait longer, unless the contexts are
		 * held by clients who do not go on: then so may the rest. */
		if (c->waiting && (u32)srv.now - c->rx_ms < LINE_MS &&
		    srv.now >= srv.hogged_until)
			conn_arm(c, DEADLINE_HANDSHAKE);
		else if (c->judged)
			conn_refuse(c, 503, NULL, "the service did not answer "
			    "in time");
		else if (c->state == CONN_HTTP)
			conn_refuse(c, 408, NULL, "the request was not "
			    "finished in time");
		else
			conn_cut_slow(c, "no handshake in time");
		break;
	case DEADLINE_PING:
	case DEADLINE_ACK:
		conn_ping(c);
		conn_ask(c);
		break;
	case DEADLINE_PONG:
		conn_pong_step(c);
		break;
	case DEADLINE_CLOSING:
	case DEADLINE_DRAIN:
		conn_kill(c, "closed");
		break;
	}
}

/* Cuts who has begun a frame or a message and does not finish it. */
static void
conn_input_deadlines(void)
{
	int64_t limit = conn_deadline_ms(DEADLINE_HANDSHAKE);

	for (u32 i = 1; i <= WSP_BUFFERS; i++) {
		const struct buffer *b = &buffers[i];
		struct conn *c;

		if (!b->taken || srv.now - b->since < limit)
			continue;
		c = &srv.conn[b->conn];
		if (c->state == CONN_OPEN && c->out == 0)
			conn_fail(c, 1008, "a message not finished in time");
	}
}

static void
conn_deadlines(void)
{
	for (int class = 0; class <= DEADLINE_DRAIN; class++) {
		u32 slot;

		while ((slot = deadline_due(&srv.deadlines, class, srv.now)) !=
		    NONE) {
			deadline_cancel(&srv.deadlines, slot);
			conn_deadline(&srv.conn[slot],
			    (enum conn_deadline)class);
		}
	}
	conn_input_deadlines();
	conn_serve_line();
}

/*
 * ---- Accept
 */

static void
conn_set_peer(struct conn *c, const struct sockaddr_storage *from)
{
	if (from->ss_family == AF_INET6) {
		const struct sockaddr_in6 *a =
		    (const struct sockaddr_in6 *)(const void *)from;

		memcpy(c->addr, &a->sin6_addr, 16);
		c->port = be16toh(a->sin6_port);
	} else {
		const struct sockaddr_in *a =
		    (const struct sockaddr_in *)(const void *)from;

		memset(c->addr, 0, 10);
		c->addr[10] = c->addr[11] = 0xff;
		memcpy(c->addr + 12, &a->sin_addr, 4);
		c->port = be16toh(a->sin_port);
	}
}

/* Would one more from this address be too many for --max-per-ip?  It is the
 * whole address, for all who live in one house may share an IPv6 /64. */
static bool
conn_address_is_full(const struct conn *new)
{
	u32 count = 0;

	if (settings.max_per_ip == 0)
		return false;
	for (u32 i = 0; i < srv.fresh; i++) {
		const struct conn *c = &srv.conn[i];

		if (c->state != CONN_FREE && c->state != CONN_DEAD &&
		    c != new && memcmp(c->addr, new->addr, 16) == 0)
			count++;
	}
	return count >= settings.max_per_ip;
}

/* How many of the host's are on their way in or out, and which of them gives
 * way first: one that has its answer, then the oldest that we wait for. */
static u32
conn_host_pending(const struct conn *new, struct conn **first)
{
	static const u8 class[] = { DEADLINE_DRAIN, DEADLINE_CLOSING,
		DEADLINE_HANDSHAKE };
	u32 count = 0;

	*first = NULL;
	for (u32 k = 0; k < COUNT(class); k++)
		for (u32 i = srv.deadlines.fifo[class[k]].first; i != NONE;
		    i = srv.deadlines.row[i].next) {
			struct conn *c = &srv.conn[i];

			if (!addr_same_host(c->addr, new->addr))
				continue;
			count++;
			if (!*first && !c->waiting)
				*first = c;
		}
	return count;
}

/* When rows become few, a host with more of them on their way in or out than
 * are left loses one for each newcomer.  So one host alone cannot keep the
 * others out, and when it is many behind one address, those who go on in
 * their handshake get through. */
static void
conn_keep_share(struct conn *new)
{
	u32 left = srv.conns - srv.live;
	struct conn *first;

	if (left >= (srv.conns - settings.max_sockets) / 2 ||
	    conn_host_pending(new, &first) <= left)
		return;
	srv.queues.total.turned_away++;
	conn_kill(first ? first : new, "its host has too many on their way");
}

/* Cuts the one that has been on its way in for longest, if that is over a
 * second and it is us who wait for it: newcomers must get in. */
static bool
conn_make_way(void)
{
	u32 i = srv.deadlines.fifo[DEADLINE_HANDSHAKE].first;
	int64_t armed_before = srv.now + conn_deadline_ms(DEADLINE_HANDSHAKE) -
	    1000;

	while (i != NONE && deadline_ms(&srv.deadlines, i) < armed_before) {
		if (!srv.conn[i].waiting) {
			conn_kill(&srv.conn[i], "others wait to come in");
			return true;
		}
		i = srv.deadlines.row[i].next;
	}
	return false;
}

static void
conn_add(int fd, const struct listener *l, const struct sockaddr_storage *from)
{
	u32 slot = srv.free;
	struct conn *c;

	if (slot != NONE)
		srv.free = srv.conn[slot].sock;
	else
		slot = srv.fresh++;
	c = &srv.conn[slot];
	*c = (struct conn){ .fd = fd, .gen = c->gen, .sock = NONE,
		.tls = l->tls, .dirty = c->dirty, .urgent = c->urgent,
		.metrics = l == &settings.listen[LISTEN_METRICS] };
	srv.live++;
	srv.queues.total.connections += !c->metrics;
	c->rx_ms = (u32)srv.now;
	conn_set_peer(c, from);
	conn_enter(c, l->tls ? CONN_WAIT : CONN_HTTP);
	conn_arm(c, DEADLINE_HANDSHAKE);
	c->asked = conn_interest(c);
	if (sys_epoll_ctl(srv.epoll, EPOLL_CTL_ADD, fd, c->asked,
	    (u64)c->gen << 32 | slot) < 0) {
		conn_kill(c, "epoll has no room");
	} else if (conn_address_is_full(c)) {
		srv.queues.total.turned_away++;
		conn_kill(c, "too many from this address");
	} else {
		conn_keep_share(c);
	}
}

/* ----- 31. Services ------------------------------------------------------
 *
 * Sockets as users see them: where their connections, events and ends meet. A
 * socket that goes away keeps its queue for --session-ttl; whoever watches is
 * told.
 */

/* The calls down from here into Handlers, which tells the services' programs:
 * Handlers itself does what those programs ask, and so is below Verbs. */
static void handler_tell(const char *word, u32 sock, u32 code);
static void handler_message(u32 sock, u8 opcode, struct str body);
static bool handler_auth(u32 service, u64 ticket, struct str id,
    bool stateful, struct str body);

static struct conn *
service_conn(u32 sock)
{
	const struct sock *s = &srv.sockets.row[sock];

	return s->conn == NONE ? NULL : &srv.conn[s->conn];
}

/* Seconds of the monotonic clock. */
static u32
service_seconds(void)
{
	return (u32)(srv.now / 1000);
}

/* Seconds since the socket came. */
static u32
service_age(u32 sock)
{
	return service_seconds() - srv.sockets.row[sock].since;
}

/* A target that was found good before, read again. */
static struct target *
service_target(const char *p, size_t n)
{
	static struct target target;

	(void)target_parse(&target, (struct str){ p, n });
	return &target;
}

/* An event: `word SOCKETID[ n]`; an n of NONE is left out. */
static void
event_print(struct out *o, const char *word, u32 sock, u32 n)
{
	out_print(o, "%s ", word);
	sock_name(o, &srv.sockets, sock);
	if (n != NONE)
		out_print(o, " %u", n);
}

/* Tells the watchers whose target selects the socket.  Events leave through a
 * socket of their own.  A watcher that is gone, or that makes two sends in a
 * row fail, loses its watch. */
static void
service_event(const char *word, u32 sock, u32 n)
{
	char text[WSP_MAX_SOCKET_ID + 32];
	struct out o = out_to(text, sizeof text);

	for (u32 i = 0; i < WSP_WATCHERS; i++) {
		struct watcher *w = &watchers[i];
		ssize_t r;

		if (w->to_n == 0 || !tags_match(&srv.tags, sock,
		    service_target(w->target, w->target_n)))
			continue;
		if (o.n == 0)
			event_print(&o, word, sock, n);
		r = sys_sendto(srv.events, text, o.n, &w->to, w->to_n);
		w->fails = r < 0 ? (u8)(w->fails + 1) : 0;
		if (r >= 0)
			continue;
		srv.queues.total.events_lost++;
		if (w->fails == 2 || r == -ECONNREFUSED || r == -ENOENT)
			w->to_n = 0;
	}
}

/* Ends a socket that has no connection (any more). */
static void
service_forget(u32 sock, enum leave why)
{
	u32 held = srv.queues.queue[sock].count;

	if (why == LEAVE_DROPPED && held > 0)
		service_event("drop", sock, held);
	service_event("forget", sock, NONE);
	queue_clear(&srv.queues, sock, why);
	tags_drop(&srv.tags, sock, TAG_TOKEN, TAG_CLIENT);
	deadline_cancel(&srv.away, sock);
	sock_remove(&srv.sockets, sock);
}

/* A socket has lost its connection: it stays, away, or ends too. */
static void
service_left(u32 sock)
{
	if (!srv.sockets.row[sock].stateful || settings.session_ttl == 0)
		service_forget(sock, LEAVE_FORGOTTEN);
	else
		deadline_arm(&srv.away, sock, 0, srv.now +
		    settings.session_ttl * INT64_C(1000));
}

/* A connection that was open ends. */
static void
service_ended(struct conn *c, u16 code)
{
	u32 sock = c->sock;
	struct sock *s = &srv.sockets.row[sock];

	assert(s->conn == conn_slot(c) && s->conn_gen == c->gen);
	service_event("close", sock, code);
	handler_tell("close", sock, code);
	c->sock = NONE;
	c->done = 0;
	c->rec_n = c->rec_sent = 0;
	queue_rewind(&srv.queues, sock);
	settings.service[s->service].open--;
	sock_unbind(&srv.sockets, sock);
	if (srv.replacing != sock)
		service_left(sock);
}

/* Ends the sessions whose time is over. */
static void
service_sessions(void)
{
	u32 sock;

	while ((sock = deadline_due(&srv.away, 0, srv.now)) != NONE)
		service_forget(sock, LEAVE_FORGOTTEN);
}

/*
 * ---- Figures
 *
 * One list of names, for `stats` in both its formats and for /metrics.
 */
enum figures { FIGURES_TEXT, FIGURES_JSON, FIGURES_METRICS };

/* Each one's name and what it is, in their order: gauges, what is counted
 * since the start, gauges. */
static const char figure_words[] =
    "sockets_open\0" "Sockets that have a connection.\0"
    "sockets_away\0" "Stateful sockets without a connection.\0"
    "sockets_max\0" "Rows of the socket table.\0"
#define X(name, help) #name "\0" help "\0"
    COUNTERS(X)
#undef X
    "store_bytes\0" "Bytes of the store that messages hold.\0"
    "store_bytes_max\0" "Bytes that they may hold.\0"
    "cert_days\0" "Days until the certificate ends; 0: none.\0"
    "uptime\0" "Seconds since the start.";

/* Writes every figure; metrics are in Prometheus's text format, version
 * 0.0.4.  Returns their number. */
static u32
figures_write(struct out *o, enum figures as)
{
	enum { FIRST = 3, BEHIND = FIRST + sizeof(struct counters) / 8 };
	int days = tls_cert_days();
	u64 value[BEHIND + 4] = {
		srv.sockets.count - srv.sockets.away, srv.sockets.away,
		srv.sockets.rows,
		[BEHIND] = srv.queues.store.held, srv.queues.store.limit,
		(u64)(days > 0 ? days : 0),
		(u64)(srv.now - srv.started) / 1000 };
	const char *name = figure_words, *help;

	memcpy(value + FIRST, &srv.queues.total, sizeof srv.queues.total);
	for (u32 i = 0; i < COUNT(value); i++) {
		bool counter = i >= FIRST && i < BEHIND;
		const char *total = counter ? "_total" : "";

		help = name + strlen(name) + 1;
		if (as == FIGURES_TEXT)
			out_print(o, "%s %llu\n", name, value[i]);
		else if (as == FIGURES_JSON)
			out_print(o, "%s\"%s\":%llu", i == 0 ? "{" : ",",
			    name, value[i]);
		else
			out_print(o, "# HELP wspush_%s%s %s\n"
			    "# TYPE wspush_%s%s %s\nwspush_%s%s %llu\n",
			    name, total, help, name, total,
			    counter ? "counter" : "gauge", name, total,
			    value[i]);
		name = help + strlen(help) + 1;
	}
	return COUNT(value);
}

/* ----- 32. Delivery ------------------------------------------------------
 *
 * A message on its way into queues: its wire form, who takes it, room made by
 * the rules of INTERFACE 7, the store; and the values that are retained for
 * those who begin to match later.  A refused message changes nothing, but
 * that under --overflow close who held the store up may have been cut for it.
 */

/* A message for at most so many sockets does not wait behind a broadcast. */
#define SENDING_FEW 16

/* A message on its way into queues. */
struct sending {
	const struct request *r;
	struct admission a;  /* policy is set for each socket */
	enum form form;
	struct str value;    /* what goes out of the body */
	bool quote;          /* as a JSON string */
	u8 opcode;
	u32 n;               /* bytes for the wire */
	u32 message;
	u32 last_value;      /* the retained one that it replaces, or NONE */
	u32 open, away, full;
	bool few;            /* it goes to so few that it goes at once */
};

/* Works out the message's wire form.  False: its escaped form is too big. */
static bool
sending_shape(struct sending *s)
{
	const struct request *r = s->r;
	u8 head[FRAME_HEAD_MAX];
	size_t body = r->body.n;
	enum json_shape shape = JSON_ARRAY;

	s->value = r->body;
	s->opcode = r->kind == KIND_BINARY ? FRAME_BINARY : FRAME_TEXT;
	if (r->kind == KIND_JSON) {
		shape = json_shape(&s->value, r->body);
		s->quote = shape == JSON_NOT;
		if (s->quote)
			s->value = r->body;
		body = s->quote ? json_string_size(s->value) : s->value.n;
	}
	s->form = shape == JSON_ARRAY ? FORM_FRAME : FORM_ELEMENT;
	s->a.body = (u32)body;
	s->a.key = r->key;
	s->n = (u32)(body + (s->form == FORM_ELEMENT ? 1 :
	    frame_head(head, s->opcode, body)));
	return body <= settings.max_message;
}

static void
sending_write(const struct sending *s)
{
	u8 *p = store_bytes(&srv.queues.store, s->message);
	struct out o = out_to(p, s->n);

	if (s->form == FORM_ELEMENT)
		out_char(&o, ',');
	else
		o.n = frame_head(p, s->opcode, s->a.body);
	if (s->quote)
		json_string(&o, s->value);
	else
		out_str(&o, s->value);
	assert(!o.full && o.n == s->n);
}

static enum overflow
service_overflow(u32 sock)
{
	const struct service *s =
	    &settings.service[srv.sockets.row[sock].service];
	enum overflow policy = s->has_overflow ? s->overflow :
	    settings.overflow;

	if (policy == OVERFLOW_CLOSE && sock_is_away(&srv.sockets, sock))
		return OVERFLOW_REFUSE;
	return policy;
}

/* Would it take the message, if all that may leave for it did? */
static bool
sending_may_fit(struct sending *s, u32 sock)
{
	s->a.policy = service_overflow(sock);
	return queue_admits(&srv.queues, sock, &s->a);
}

/* Will the socket take the message?  A full queue is first flushed. */
static bool
sending_fits(struct sending *s, u32 sock)
{
	struct conn *c;

	/* What was written for others may have ended it. */
	if (!sock_is_used(&srv.sockets, sock))
		return false;
	queue_expire(&srv.queues, sock, srv.now);
	if (queue_has_room(&srv.queues, sock, s->a.body))
		return true;
	c = service_conn(sock);
	if (c)
		conn_offer_before(c);
	return sock_is_used(&srv.sockets, sock) && sending_may_fit(s, sock);
}

/* One line for the first drop of a socket: who it is, how far behind. */
static void
service_log_slow(u32 sock)
{
	struct sock *s = &srv.sockets.row[sock];
	struct conn *c = service_conn(sock);
	struct log_room room;

	if (s->slow)
		return;
	s->slow = true;
	log_event(LOG_LEVEL_WARN, "slow", "socket=%s peer=%s messages=%u "
	    "bytes=%u age=%us", sock_quote(&room, sock),
	    c ? conn_peer(c) : "-", srv.queues.queue[sock].count,
	    srv.queues.queue[sock].bytes, service_age(sock));
}

/* Drops of one socket that were not yet told: one event says how many. */
struct drops {
	u32 sock, n;
};

static void
drops_tell(struct drops *d)
{
	if (d->n == 0)
		return;
	service_log_slow(d->sock);
	service_event("drop", d->sock, d->n);
	d->n = 0;
}

/* A socket is too slow: --overflow close cuts it, if it is open.  False: it
 * has another policy. */
static bool
service_cut(u32 sock)
{
	service_log_slow(sock);
	if (service_overflow(sock) != OVERFLOW_CLOSE)
		return false;
	conn_close(service_conn(sock), WSP_CLOSE_TRY_LATER, STR("too slow"));
	return true;
}

/* Makes room in a queue that has none, or where a key replaces.  False:
 * making room in the store has changed this queue, and it takes no more. */
static __attribute__((noinline)) bool
sending_make_room(struct sending *s, u32 sock)
{
	struct drops drops = { sock, 0 };
	u32 before = srv.queues.drops[sock];

	if (!sending_may_fit(s, sock))
		return false;
	queue_make_room(&srv.queues, sock, &s->a);
	drops.n = srv.queues.drops[sock] - before;
	drops_tell(&drops);
	return true;
}

/* Puts the message into the queues of n sockets. */
static void
sending_put(struct sending *s, const u32 *rows, u32 n, bool counted)
{
	for (u32 k = 0; k < n; k++) {
		u32 sock = rows[k];
		struct conn *c = service_conn(sock);

		if (!sock_is_used(&srv.sockets, sock))
			continue;
		if ((s->a.key.n > 0 || !queue_has_room(&srv.queues, sock,
		    s->a.body)) && !sending_make_room(s, sock)) {
			s->full++;
			continue;
		}
		queue_put(&srv.queues, sock, s->message, counted);
		if (!c) {
			s->away++;
			continue;
		}
		s->open++;
		if (s->few)
			conn_mark_urgent(c);
		else
			conn_mark_dirty(c);
	}
}

/* Where to look first for who holds a message: a message that one queue holds
 * is mostly held by the first that ever did. */
static u32
service_first_holder(u32 message)
{
	const struct message *m = &srv.queues.store.row[message];
	u32 i = m->holder, at = 0;

	if (m->holds == 1 && queue_find_hold(&srv.queues, i + 1, message, &i,
	    &at))
		return i;
	return 0;
}

/* May every queue that holds this message let it go? */
static bool
service_may_drop(u32 message)
{
	const struct message *m = &srv.queues.store.row[message];
	u32 i = service_first_holder(message), at = 0, found = 0;

	if (m->retained)
		return false;
	while (found < m->holds && queue_find_hold(&srv.queues,
	    srv.sockets.fresh, message, &i, &at)) {
		if (!queue_yields(&srv.queues, i, at, service_overflow(i)))
			return false;
		found++;
		at++;
	}
	return true;
}

static void
drops_add(struct drops *d, u32 sock)
{
	if (d->sock != sock)
		drops_tell(d);
	d->sock = sock;
	d->n++;
}

static void
service_drop(u32 message, struct drops *drops)
{
	u32 left = srv.queues.store.row[message].holds;
	u32 i = service_first_holder(message), at = 0;

	while (left > 0 && queue_find_hold(&srv.queues, srv.sockets.fresh,
	    message, &i, &at)) {
		bool sent = at < srv.queues.queue[i].sent;

		queue_take(&srv.queues, i, at,
		    sent ? LEAVE_UNCONFIRMED : LEAVE_DROPPED);
		if (!sent)
			drops_add(drops, i);
		left--;
	}
}

/*
 * ---- Retained values
 *
 * The last value for a target and a key, kept for sockets that begin to match
 * the target later.  Rows stand in the order of their values' age.
 */

static struct message *
retained_message(u32 i)
{
	return &srv.queues.store.row[srv.retained[i].message];
}

static void
retained_remove(u32 i)
{
	struct retained *v = &srv.retained[i];

	retained_message(i)->retained = false;
	store_let_go(&srv.queues.store, v->message);
	memmove(v, v + 1, (--srv.retains - i) * sizeof *v);
}

/* The row of the value for this target and key, or NONE. */
static u32
retained_find(struct str target, struct str key)
{
	for (u32 i = 0; i < srv.retains; i++) {
		const struct retained *v = &srv.retained[i];

		if (str_eq((struct str){ v->target, v->target_n }, target) &&
		    str_eq(store_key(&srv.queues.store, retained_message(i)),
		    key))
			return i;
	}
	return NONE;
}

static void
retained_expire(void)
{
	for (u32 i = 0; i < srv.retains;) {
		int64_t expires = retained_message(i)->expires;

		if (expires != 0 && expires <= srv.now)
			retained_remove(i);
		else
			i++;
	}
}

/* Keeps a message as the last value for its target and key. */
static void
retained_keep(struct str target, u32 message)
{
	struct message *m = &srv.queues.store.row[message];
	struct retained *v;

	m->retained = true;
	m->holds++;
	v = &srv.retained[srv.retains++];
	v->message = message;
	v->target_n = (u16)target.n;
	memcpy(v->target, target.p, target.n);
}

/* Does the value's target select the socket, open or away? */
static bool
retained_matches(u32 i, u32 sock)
{
	const struct retained *v = &srv.retained[i];
	struct target *t = service_target(v->target, v->target_n);
	size_t n = 0;

	for (size_t k = 0; k < t->n; k++)
		if (t->terms[k].kind != TERM_OPEN &&
		    t->terms[k].kind != TERM_AWAY)
			t->terms[n++] = t->terms[k];
	t->n = n;
	return tags_match(&srv.tags, sock, t);
}

/* Once a second: what has expired leaves, also where nothing is written. */
static void
service_expire(void)
{
	if (srv.now < srv.expire_at || srv.queues.store.mortal == 0)
		return;
	srv.expire_at = srv.now + 1000;
	for (u32 i = 0; i < srv.sockets.fresh; i++)
		queue_expire(&srv.queues, i, srv.now);
	retained_expire();
}

/* Marks in `had` the values that the socket's tags match now: none, when it
 * is new. */
static void
retained_mark(u32 sock, bool *had, bool is_new)
{
	retained_expire();
	for (u32 i = 0; i < srv.retains; i++)
		had[i] = !is_new && retained_matches(i, sock);
}

/* Queues every value that the socket matches and did not match before. */
static void
retained_offer(u32 sock, const bool *had)
{
	for (u32 i = 0; i < srv.retains; i++) {
		const struct message *m = retained_message(i);
		struct sending s = { .message = srv.retained[i].message, .a = {
			.body = m->body,
			.key = store_key(&srv.queues.store, m) } };

		if (!had[i] && sock_is_used(&srv.sockets, sock) &&
		    retained_matches(i, sock) && sending_fits(&s, sock))
			sending_put(&s, &sock, 1, false);
	}
}

/*
 * ---- Room in the store
 */

/* Notes holds on a message that go, and returns the bytes that become free. */
static u32
message_leaves(struct message *m, int holds)
{
	m->leaving += holds;
	return m->leaving == m->holds ? store_size(m) : 0;
}

/* Notes for every message how many of its holds this one replaces, with a step
 * of 1, and returns the bytes that become free so; -1 takes the notes back. */
static u32
sending_count_leaving(const struct sending *s, u32 fit, int step)
{
	u32 freed = 0;

	if (s->last_value != NONE)
		freed = message_leaves(retained_message(s->last_value), step);
	for (u32 k = 0; k < fit && s->a.key.n > 0; k++)
		for (u32 i = srv.selected[k], at = 0;
		    at < srv.queues.queue[i].count; at++)
			if (queue_is_replaced(&srv.queues, i, at, s->a.key))
				freed += message_leaves(queue_row(&srv.queues,
				    i, at), step);
	return freed;
}

static void
sending_replace(struct sending *s, u32 fit)
{
	if (s->last_value != NONE)
		retained_remove(s->last_value);
	s->last_value = NONE;
	for (u32 k = 0; k < fit; k++)
		queue_replace(&srv.queues, srv.selected[k], s->a.key);
}

/* Makes room in the store: by what this message replaces, then at those who
 * hold the oldest messages.  False: what is left may not go, and nothing was
 * dropped. */
static bool
sending_make_store_room(struct sending *s, u32 fit)
{
	struct store *t = &srv.queues.store;
	u32 freed = sending_count_leaving(s, fit, 1);
	u32 n = s->n + (u32)s->a.key.n, end = t->row->younger;
	struct drops drops = { .n = 0 };
	bool enough;

	while (!(enough = freed > 0 && t->held - freed + n <= t->limit) &&
	    end != 0) {
		struct message *m = &t->row[end];

		m->victim = m->leaving < m->holds && service_may_drop(end);
		if (m->victim)
			freed += store_size(m);
		end = m->younger;
	}
	(void)sending_count_leaving(s, fit, -1);
	if (!enough)
		return false;
	for (u32 next, k = t->row->younger; k != end; k = next) {
		next = t->row[k].younger;
		if (t->row[k].victim)
			service_drop(k, &drops);
	}
	drops_tell(&drops);
	sending_replace(s, fit);
	return true;
}

/* Under --overflow close a volatile client that holds up the store is cut:
 * the one with the eldest message.  False: there is none. */
static bool
service_cut_holder(void)
{
	struct store *t = &srv.queues.store;

	for (u32 m = t->row->younger; m != 0; m = t->row[m].younger) {
		u32 i = 0, at = 0;

		for (; queue_find_hold(&srv.queues, srv.sockets.fresh, m, &i,
		    &at); i++, at = 0)
			if (!srv.sockets.row[i].stateful &&
			    service_overflow(i) == OVERFLOW_CLOSE)
				return service_cut(i);
	}
	return false;
}

/* Stores the message.  Before anything is dropped everybody who can take
 * bytes takes them. */
static bool
sending_store(struct sending *s, u32 fit)
{
	struct store *store = &srv.queues.store;

	for (bool flushed = false;; flushed = true) {
		s->message = store_add(store, s->n, s->a.body, s->form,
		    s->a.key);
		if (s->message != NONE)
			break;
		if (!flushed) {
			conn_flush_urgent();
			conn_flush_dirty(srv.dirties);
		} else if (!sending_make_store_room(s, fit) &&
		    !service_cut_holder()) {
			return false;
		}
	}
	sending_write(s);
	if (s->r->ttl_s > 0) {
		store->row[s->message].expires = srv.now +
		    s->r->ttl_s * INT64_C(1000);
		store->mortal++;
	}
	return true;
}

SMALL_CODE

/* ----- 33. Forgers -------------------------------------------------------
 *
 * Which hosts have shown forged tokens, and must wait.  A signature costs up
 * to a millisecond, and twenty on a small router.  So a host that has shown
 * WSP_TOKEN_FAILURES forged tokens waits WSP_TOKEN_MS before the next of its
 * signatures is looked at.  What good tokens ask for is not counted, and a
 * host is never shut out: there may be many behind one address, and one of
 * them must not be able to lock out the others for good.
 */
#define FORGER_LOG_MS 60000 /* between two log lines about one host */

_Static_assert(WSP_TOKEN_FAILURES >= 1 && WSP_TOKEN_FAILURES <= 1000000,
    "a host may err, but not for ever");
_Static_assert(WSP_TOKEN_MS >= 1 && WSP_TOKEN_MS <= 3600000,
    "a host waits, but not for ever");
_Static_assert(WSP_TOKEN_HOSTS >= 1 && WSP_TOKEN_HOSTS <= 1024,
    "all of them are looked at for each token");

static struct forger {
	u8 addr[16];
	u32 unread;          /* tokens, since the log had their number */
	int64_t until;       /* each forged token puts it off by WSP_TOKEN_MS */
	int64_t log_at;      /* when the log may have the next number */
} forgers[WSP_TOKEN_HOSTS];

/* The row of a host, or NULL. */
static struct forger *
forger_find(const u8 addr[16])
{
	for (u32 i = 0; i < WSP_TOKEN_HOSTS; i++)
		if (addr_same_host(forgers[i].addr, addr))
			return &forgers[i];
	return NULL;
}

/* The host has shown one more.  Where there is no row for it, that whose time
 * is over first gives way. */
static void
forger_add(const u8 addr[16])
{
	struct forger *f = forger_find(addr);

	if (!f) {
		f = forgers;
		for (u32 i = 1; i < WSP_TOKEN_HOSTS; i++)
			if (forgers[i].until < f->until)
				f = &forgers[i];
		*f = (struct forger){ .unread = 0 };
		memcpy(f->addr, addr, sizeof f->addr);
	}
	if (f->until < srv.now)
		f->until = srv.now;
	f->until += WSP_TOKEN_MS;
}

static bool
forger_waits(const u8 addr[16])
{
	const struct forger *f = forger_find(addr);

	return f && f->until - srv.now >
	    INT64_C(1) * (WSP_TOKEN_FAILURES - 1) * WSP_TOKEN_MS;
}

/* A token that is not looked at.  A flood is one line a minute and a count. */
static void
forger_log(const struct conn *c)
{
	struct forger *f = forger_find(c->addr);

	f->unread++;
	if (srv.now < f->log_at)
		return;
	log_event(LOG_LEVEL_WARN, "token-flood", "peer=%s unread=%u",
	    conn_peer(c), f->unread);
	f->log_at = srv.now + FORGER_LOG_MS;
	f->unread = 0;
}

/* ----- 34. Admission -----------------------------------------------------
 *
 * Who may come in, and as which socket: the order of checks of INTERFACE 11
 * from 404 to 503, and tokens.  A request is refused with one sentence or
 * becomes a connection bound to a socket.
 */

/* What a program says of an arrival that may come in. */
struct verdict {
	const struct conn *of; /* whose it is, while it is used */
	const char *guid;    /* of a volatile socket */
	struct tag_line tag[WSP_MAX_TAGS];
	u32 tags;
};

/* A request on its way to 101, and the sentence when it is refused. */
struct arrival {
	struct conn *c;
	const struct http_request *r;
	struct service *service;
	u8 number;           /* of the service */
	bool stateful;
	struct str id;       /* in `room`; empty until a volatile one has it */
	u32 sock;            /* the row, NONE: it has none yet */
	const struct token *token; /* null: none was asked for */
	const struct verdict *verdict; /* null: no program has said yes */
	int status;
	const char *headers; /* null: those of the status */
	const char *why;
	char room[WSP_MAX_ID];
};

static bool
arrival_refuse(struct arrival *a, int status, const char *why)
{
	a->status = status;
	a->why = why;
	return false;
}

static bool
arrival_route(struct arrival *a)
{
	static const char prefix[] = "/services/";
	struct str path = a->r->path;

	if (str_begins(path, prefix)) {
		struct str name = text_from(path, sizeof prefix - 1);

		for (u32 i = 0; i < settings.services; i++)
			if (str_eq(settings.service[i].name, name)) {
				a->service = &settings.service[i];
				a->number = (u8)i;
				return true;
			}
	}
	return arrival_refuse(a, 404, "there is no such page or service");
}

/* The stateful id that the request asks for, if it does. */
static bool
arrival_id(struct arrival *a)
{
	struct str value;
	const char *why;
	int n = http_parameter(&value, a->r->query, "X-StatefulSocketId");

	if (n == 0 || (n > 0 && value.n == 0))
		return true;
	if (n < 0)
		return arrival_refuse(a, 400, "the id is given twice");
	n = percent_decode(a->room, sizeof a->room, value);
	if (n < 0)
		return arrival_refuse(a, 400, n == -1 ?
		    "the id has a bad percent-escape" :
		    "the id is over 128 bytes");
	a->id = (struct str){ a->room, (size_t)n };
	a->stateful = true;
	why = text_is_clean(a->id) ? id_tags_check(a->id) :
	    "the id must be UTF-8 without white space and control characters";
	return !why || arrival_refuse(a, 400, why);
}

static bool
arrival_origin_among(const struct http_request *r, const struct str *origin,
    u32 n)
{
	for (u32 i = 0; i < n; i++)
		if (http_origin_is(r->field[HTTP_ORIGIN], origin[i], r->host))
			return true;
	return false;
}

static bool
arrival_origin(struct arrival *a)
{
	const struct http_request *r = a->r;
	struct str origin = r->field[HTTP_ORIGIN];

	return !origin.p || http_origin_same(origin, r->host) ||
	    arrival_origin_among(r, settings.origin, settings.origins) ||
	    arrival_origin_among(r, a->service->origin, a->service->origins) ||
	    arrival_refuse(a, 403,
	    "pages of this origin may not connect; see --origin");
}

/* May a socket have all the tags of the id, the token and `allow`? */
static bool
arrival_tags_fit(const struct arrival *a)
{
	struct str rest = a->id, name, value;
	const struct token *t = a->token;
	const struct verdict *v = a->verdict;
	size_t count = v ? v->tags : 0;

	for (u32 k = 0; t && k < t->tags; k++)
		count += !(v && tag_lines_set(v->tag, v->tags,
		    t->tag[k].name));
	while (id_tag_next(&rest, &name, &value))
		count += !id_tag_follows(rest, name) &&
		    !(v && tag_lines_set(v->tag, v->tags, name)) &&
		    !(t && tag_lines_set(t->tag, t->tags, name));
	return count <= WSP_MAX_TAGS;
}

/* The client learns the status, the log the reason, nobody the token. */
static bool
arrival_deny(struct arrival *a, int status, const char *why)
{
	if (why == token_unread)
		forger_log(a->c);
	else
		log_event(status == 503 ? LOG_LEVEL_WARN : LOG_LEVEL_INFO,
		    "token", "peer=%s service=%.*s status=%d why=\"%s\"",
		    conn_peer(a->c), STR_ARGS(a->service->name), status, why);
	return arrival_refuse(a, status,
	    status == 503 ? "tokens cannot be checked now" :
	    status == 403 ? "the token is not for this" :
	    "a valid token is needed");
}

/* With --token-key nobody comes in without a token that is good for the
 * service and the id (INTERFACE 10). */
static bool
arrival_token(struct arrival *a)
{
	static struct token token;
	struct token_use use = { .service = a->service->name, .id = a->id,
		.now = date_now(), .unread = forger_waits(a->c->addr) };
	enum token_place place;
	struct str text;
	const char *why = "there is none";
	int status = 401;

	if (!token_is_needed())
		return true;
	if (!date_sane(use.now))
		return arrival_deny(a, 503, "the clock is before the day "
		    "wspush was built");
	if (settings.token_audience)
		use.audience = text_of(settings.token_audience);
	place = token_find(&text, a->r, settings.token_in_url);
	if (place == TOKEN_IN_COOKIE && !a->r->field[HTTP_ORIGIN].p)
		why = "it is in a cookie, and there is no Origin";
	else if (place != TOKEN_NOWHERE)
		status = token_keys_check(&token, &why, text, &use);
	if (why == token_forged)
		forger_add(a->c->addr);
	a->token = &token;
	if (status == 0 && !arrival_tags_fit(a)) {
		status = 403;
		why = "its tags and those of the id are too many";
	}
	return status == 0 || arrival_deny(a, status, why);
}

/* A tag as strong as a token's.  Where there is no room for it the weakest
 * other gives way. */
static void
arrival_tag(u32 sock, struct str name, struct str value)
{
	if (srv.sockets.row[sock].tag_count == WSP_MAX_TAGS &&
	    tag_find(&srv.tags, sock, name) == NONE)
		tag_remove(&srv.tags, tag_weakest(&srv.tags, sock));
	tag_set(&srv.tags, sock, TAG_TOKEN, &name, &value);
}

/* Gives the socket the tags of its token, then those of `allow`, in place of
 * those of an earlier time. */
static void
arrival_tags(const struct arrival *a)
{
	const struct token *t = a->token;
	const struct verdict *v = a->verdict;

	tags_drop(&srv.tags, a->sock, TAG_TOKEN, TAG_TOKEN);
	for (u32 k = 0; t && k < t->tags; k++)
		arrival_tag(a->sock, t->tag[k].name, t->tag[k].value);
	for (u32 k = 0; v && k < v->tags; k++)
		arrival_tag(a->sock, v->tag[k].name, v->tag[k].value);
}

/* When the token ends, for the connection that it let in. */
static u32
arrival_expires(const struct arrival *a)
{
	int64_t left;

	if (!a->token)
		return UINT32_MAX;
	left = a->token->expires + TOKEN_SKEW - date_now();
	if (left > INT32_MAX)
		left = INT32_MAX; /* 68 years */
	return service_seconds() + (u32)left;
}

/* The client's first subprotocol that the service has; `bearer` when it came
 * with a token; or empty. */
static struct str
arrival_protocol(const struct arrival *a)
{
	struct str list, word;
	size_t cursor = 0;

	if (a->token && token_in_protocol(&word, a->r))
		return STR("bearer");
	while (http_header_next(a->r, "Sec-WebSocket-Protocol", &cursor,
	    &list))
		while (http_list_next(&list, &word))
			for (u32 i = 0; i < a->service->protocols; i++)
				if (str_eq(a->service->protocol[i], word))
					return word;
	return STR("");
}

/* A random id for a volatile socket. */
static void
arrival_guid(char to[UUID_TEXT])
{
	u8 random[16];

	sys_random(random, sizeof random);
	uuid_text(to, random);
}

/* Everything that can be said before a row is looked for. */
static bool
arrival_check(struct arrival *a)
{
	a->status = http_upgrade_check(a->r, &a->why, &a->headers);
	return a->status == 0 && arrival_id(a) && arrival_origin(a) &&
	    arrival_token(a);
}

/* Finds the row that the arrival's id has from before. */
static bool
arrival_find(struct arrival *a)
{
	bool away;

	a->sock = a->stateful ? sock_find(&srv.sockets, a->number, true,
	    a->id) : NONE;
	away = a->sock == NONE || sock_is_away(&srv.sockets, a->sock);
	if (!away && settings.duplicate_reject)
		return arrival_refuse(a, 409, "this id is connected already");
	if (away && a->service->max > 0 &&
	    a->service->open >= a->service->max)
		return arrival_refuse(a, 503, "this service is full");
	return true;
}

/* Makes a row for who has none.  When all are taken, the socket away longest
 * gives way. */
static bool
arrival_row(struct arrival *a)
{
	u32 eldest = srv.away.fifo[0].first;

	if (a->sock != NONE)
		return true;
	if (sock_is_full(&srv.sockets)) {
		if (eldest == NONE)
			return arrival_refuse(a, 503,
			    "the socket table is full");
		service_forget(eldest, LEAVE_DROPPED);
	}
	if (!a->stateful) {
		a->id = (struct str){ a->room, UUID_TEXT };
		if (a->verdict) /* the program was told of this one */
			memcpy(a->room, a->verdict->guid, UUID_TEXT);
		else
			arrival_guid(a->room);
	}
	a->sock = sock_add(&srv.sockets, a->number, a->stateful, a->id,
	    srv.now);
	queue_reset(&srv.queues, a->sock);
	if (a->stateful)
		tags_from_id(&srv.tags, a->sock);
	return true;
}

static void
service_open(struct conn *c, const struct arrival *a)
{
	char text[512];
	struct out o = out_to(text, sizeof text);
	bool had[SETTINGS_RETAINED];
	u32 sock = a->sock;
	bool is_new = sock_is_away(&srv.sockets, sock) &&
	    srv.away.row[sock].class == 0;
	bool matches_more = is_new || a->token || a->verdict;

	if (!sock_is_away(&srv.sockets, sock)) {
		srv.replacing = sock;
		conn_close(service_conn(sock), WSP_CLOSE_REPLACED,
		    STR("replaced"));
		srv.replacing = NONE;
	}
	if (c->state == CONN_DEAD) {
		/* The old one's last words took the newcomer's buffer. */
		service_left(sock);
		return;
	}
	deadline_cancel(&srv.away, sock);
	http_accept(&o, a->r->field[HTTP_KEY], arrival_protocol(a));
	assert(!o.full);
	sock_bind(&srv.sockets, sock, conn_slot(c), c->gen);
	a->service->open++;
	srv.sockets.row[sock].slow = false;
	c->sock = sock;
	c->expires = arrival_expires(a);
	if (c->expires < srv.token_end)
		srv.token_end = c->expires;
	if (matches_more)
		retained_mark(sock, had, is_new);
	if (a->token || a->verdict)
		arrival_tags(a);
	c->ping_ms = (u32)srv.now - ACK_INTERVAL_MS;
	sys_random(c->nonce, sizeof c->nonce);
	conn_enter(c, CONN_OPEN);
	service_event("open", sock, NONE);
	handler_tell("open", sock, NONE);
	conn_aside(c, (u8 *)text, o.n);
	if (matches_more)
		retained_offer(sock, had);
	if (srv.queues.queue[sock].count > 0 && c->state == CONN_OPEN)
		conn_mark_dirty(c);
}

/* Ends the connections whose token's time is over, and notes when the next
 * one's is. */
static void
service_tokens(void)
{
	u32 now = service_seconds(), next = UINT32_MAX;

	if (now < srv.token_end)
		return;
	for (u32 i = 0; i < srv.fresh; i++) {
		struct conn *c = &srv.conn[i];

		if (c->state != CONN_OPEN)
			continue;
		if (c->expires <= now)
			conn_close(c, WSP_CLOSE_EXPIRED,
			    STR("token expired"));
		else if (c->expires < next)
			next = c->expires;
	}
	srv.token_end = next;
}

/* ----- 35. Judges --------------------------------------------------------
 *
 * Programs that say who may come in (auth=1).  The request stays in the
 * connection's buffer.  When the program allows it, it is read and checked
 * once more, this time with the verdict at hand.
 */

/* For a conn that is `judged`: the number that the program was told. */
static struct judging {
	u32 conn, gen;
	u64 ticket;          /* 0: a free row */
	char guid[UUID_TEXT]; /* its id, if it is volatile */
} judgings[WSP_BUFFERS];

static u64 judging_ticket;

static struct verdict verdict_now;

/* The connection that waits for this verdict, or NULL. */
static struct conn *
judging_conn(const struct judging *j)
{
	struct conn *c = &srv.conn[j->conn];

	return j->ticket != 0 && c->gen == j->gen && c->judged ? c : NULL;
}

/* Takes the connection that waits for the verdict of this number, or NULL. */
static struct conn *
judging_take(u64 ticket)
{
	for (u32 i = 0; i < WSP_BUFFERS; i++) {
		struct conn *c = judging_conn(&judgings[i]);

		if (c && judgings[i].ticket == ticket) {
			verdict_now.guid = judgings[i].guid;
			c->judged = false;
			return c;
		}
	}
	return NULL;
}

/* A row for a new one; numbers begin somewhere, so that an answer to a server
 * before this one is no answer. */
static struct judging *
judging_new(const struct conn *c)
{
	u32 start;

	for (u32 i = 0; i < WSP_BUFFERS; i++) {
		struct judging *j = &judgings[i];

		if (judging_conn(j))
			continue;
		if (judging_ticket == 0) {
			sys_random(&start, sizeof start);
			judging_ticket = start;
		}
		*j = (struct judging){ .conn = conn_slot(c), .gen = c->gen,
			.ticket = ++judging_ticket };
		return j;
	}
	return NULL;
}

/* What is not there, or is no text, is null. */
static void
judging_text(struct out *o, const char *name, struct str value)
{
	out_text(o, name);
	if (value.p && text_is_utf8(value.p, value.n))
		json_string(o, value);
	else
		out_text(o, "null");
}

/* What the program is told of an arrival. */
static void
judging_body(struct out *o, const struct arrival *a)
{
	const struct http_request *r = a->r;
	struct str cookie = { NULL, 0 };
	size_t cursor = 0;

	judging_text(o, "{\"path\":", (struct str){ r->path.p,
	    r->query.n > 0 ? (size_t)(text_end(r->query) - r->path.p) :
	    r->path.n });
	judging_text(o, ",\"id\":", a->id);
	judging_text(o, ",\"peer\":", text_of(conn_peer(a->c)));
	judging_text(o, ",\"origin\":", r->field[HTTP_ORIGIN]);
	(void)http_header_next(r, "Cookie", &cursor, &cookie);
	if (cookie.n == 0)
		cookie.p = NULL;
	judging_text(o, ",\"cookie\":", cookie);
	out_text(o, ",\"claims\":");
	out_str(o, a->token ? a->token->claims : STR("null"));
	out_char(o, '}');
}

/* Asks the service's program, if it is to be asked.  False, with c->judged:
 * it is; else the arrival is refused.  True: it has said yes before. */
static bool
arrival_judge(struct arrival *a)
{
	struct out o = out_to(srv.scratch_answer, srv.buffer_size -
	    WSP_MAX_SOCKET_ID - 64);
	struct str id = a->id;
	struct judging *j;

	if (!a->service->auth)
		return true;
	if (verdict_now.of == a->c) {
		a->verdict = &verdict_now;
		return arrival_tags_fit(a) || arrival_refuse(a, 403,
		    "the id and the service set more than 16 tags");
	}
	j = judging_new(a->c);
	if (j) {
		arrival_guid(j->guid);
		if (!a->stateful)
			id = (struct str){ j->guid, UUID_TEXT };
		judging_body(&o, a);
	}
	if (!j || o.full || !handler_auth(a->number, j->ticket, id,
	    a->stateful, (struct str){ o.p, o.n }))
		return arrival_refuse(a, 503, "the service cannot be asked now");
	a->c->judged = true;
	return false;
}

/* ----- 36. Pages ---------------------------------------------------------
 *
 * Who asks for what: a page of ours (the test page, /healthz, /metrics), or a
 * service, which is for Admission and Judges to decide.  Here are the texts
 * too long for flash as they are: the test page, and what Main explains.
 */

/*
 * ---- The long texts
 *
 * tools/page.html, then those of tools/help.txt, each with a byte 0 behind it,
 * as tools/pack makes them a third as long.  A compiler called by hand has two
 * lines instead.
 */
#ifdef WSP_TEXTS
static const u8 long_texts[] = {
#include WSP_TEXTS
};

/* Every bit is coded by how often it was 0 at its place, of 4096 times. */
struct unpacker {
	const u8 *in;
	u32 range, code;
	u16 zeros[256 + 32 + 16]; /* of a byte, a length, a distance */
};

static u32
unpack_bit(struct unpacker *u, u16 *zeros)
{
	u32 bound = (u->range >> 12) * *zeros;
	bool bit = u->code >= bound;

	if (bit) {
		u->code -= bound;
		u->range -= bound;
		*zeros = (u16)(*zeros - (*zeros >> 4));
	} else {
		u->range = bound;
		*zeros = (u16)(*zeros + ((4096 - *zeros) >> 4));
	}
	for (; u->range < 1 << 24; u->range <<= 8)
		u->code = u->code << 8 | *u->in++;
	return bit;
}

/* A number below `end`, a power of two; a bit's place is what was before. */
static u32
unpack_number(struct unpacker *u, u16 *zeros, u32 end)
{
	u32 n = 1;

	while (n < end)
		n = n << 1 | unpack_bit(u, zeros + n);
	return n - end;
}

/* Adds a byte, or what was there before at some distance. */
static void
unpack_some(struct unpacker *u, struct out *o)
{
	u32 n, bits, back = 1;

	/* No number has a bit at 0: that place is free. */
	if (!unpack_bit(u, u->zeros)) {
		out_char(o, (char)unpack_number(u, u->zeros, 256));
		return;
	}
	n = 3 + unpack_number(u, u->zeros + 256, 32);
	for (bits = unpack_number(u, u->zeros + 288, 16); bits > 1; bits--) {
		u16 even = 2048;

		back = back << 1 | unpack_bit(u, &even);
	}
	for (; n > 0; n--)
		out_char(o, o->p[o->n - back]);
}

/* The text of this number, in the memory given, with a byte 0 behind it. */
static struct str
texts_read(u32 number, void *to, size_t size)
{
	struct unpacker u = { .in = long_texts + 4, .range = UINT32_MAX,
		.code = (u32)load16(long_texts) << 16 |
		    load16(long_texts + 2) };
	struct out o = out_to(to, size);
	size_t start = 0;

	for (size_t i = 0; i < COUNT(u.zeros); i++)
		u.zeros[i] = 2048;
	for (u32 ends = 0; ends <= number && !o.full;) {
		unpack_some(&u, &o);
		if (o.p[o.n - 1] == '\0' && ends++ < number)
			start = o.n;
	}
	assert(!o.full);
	return (struct str){ o.p + start, o.n - 1 - start };
}
#else
static struct str
texts_read(u32 number, void *to, size_t size)
{
	return text_of(text_print(to, size, number == 0 ?
	    "<!doctype html><title>wspush</title><p>wspush runs. This build "
	    "has no test page: build it with make.\n" :
	    "usage: wspush VERB [options] ...\n\nThis build has no help: "
	    "build it with make, or read wspush(1).\n"));
}
#endif

/*
 * ---- The pages
 */

#define PAGE_HEADERS                                                          \
	"Content-Security-Policy: default-src 'none'; "                       \
	"style-src 'unsafe-inline'; script-src 'unsafe-inline'; "             \
	"img-src data:; connect-src ws: wss:; base-uri 'none'; "              \
	"form-action 'none'; frame-ancestors 'none'\r\n"                      \
	"Cache-Control: no-cache\r\n"

enum page { PAGE_NONE, PAGE_TEST, PAGE_HEALTH, PAGE_METRICS };

/* The page that the path names on this port. */
static enum page
service_find_page(const struct conn *c, struct str path)
{
	if (str_is(path, "/healthz"))
		return PAGE_HEALTH;
	if (c->metrics)
		return str_is(path, "/metrics") ? PAGE_METRICS : PAGE_NONE;
	return str_is(path, "/") && !settings.no_page ? PAGE_TEST : PAGE_NONE;
}

static void
service_show(struct conn *c, enum page page)
{
	struct out o = out_to(srv.scratch_answer, srv.buffer_size);
	struct out figures = out_to(srv.scratch_out, SCRATCH_OUT);
	const char *headers = "Cache-Control: no-cache\r\n", *type = NULL;
	struct str body = STR("ok\n");

	if (page == PAGE_TEST) {
		headers = PAGE_HEADERS;
		type = "text/html; charset=utf-8";
		body = texts_read(0, srv.scratch_out, SCRATCH_OUT);
	} else if (page == PAGE_METRICS) {
		type = "text/plain; version=0.0.4; charset=utf-8";
		(void)figures_write(&figures, FIGURES_METRICS);
		body = (struct str){ figures.p, figures.n };
	}
	http_response(&o, 200, headers, type, body, c->head);
	assert(!figures.full && !o.full);
	conn_reply(c, &o);
}

/* May it have the page, or come in? */
static bool
service_admits(struct arrival *a, bool is_page)
{
	if (is_page && a->r->upgrade)
		return arrival_refuse(a, 404, "this is a page, services are "
		    "under /services/");
	if (!is_page && a->c->metrics)
		return arrival_refuse(a, 404, "this port has /metrics and "
		    "/healthz only");
	if (!is_page && !arrival_route(a))
		return false;
	if (a->r->method == HTTP_OTHER)
		return arrival_refuse(a, 405,
		    "only GET and HEAD are understood here");
	return is_page || (arrival_check(a) && arrival_find(a) &&
	    arrival_judge(a) && arrival_row(a));
}

/* A whole request head has come. */
static void
service_request(struct conn *c, const struct http_request *r)
{
	struct arrival a = { .c = c, .r = r };
	enum page page = service_find_page(c, r->path);

	if (!service_admits(&a, page != PAGE_NONE)) {
		if (!c->judged)
			conn_refuse(c, a.status, a.headers, a.why);
	} else if (page) {
		service_show(c, page);
	} else {
		service_open(c, &a);
	}
}

/* ----- 37. Commands ------------------------------------------------------
 *
 * What a client's message does on the handlers that need no process of their
 * own: heartbeats, echo, and the commands by which a page names itself.
 * Answers go aside: they are no queued messages.
 */

/*
 * ---- Tags that change while a socket lives: by commands, and by `tag`
 */

/* What is asked for, in lines of different names. */
struct tag_change {
	struct tag_line *line;
	u32 n;
	enum tag_origin origin;
	bool replace; /* the other tags of this origin go */
};

static const char tagging_full[] = "a socket has at most 16 tags";

/* May this be done to the socket?  NULL, or the sentence. */
static const char *
tagging_check(u32 sock, const struct tag_change *c)
{
	const struct sock *s = &srv.sockets.row[sock];
	u32 count = s->tag_count;

	for (u32 i = s->tags; i != NONE; i = srv.tags.row[i].next)
		count -= c->replace && srv.tags.row[i].origin == c->origin;
	for (u32 k = 0; k < c->n; k++) {
		u32 i = tag_find(&srv.tags, sock, c->line[k].name);
		enum tag_origin origin = i == NONE ? c->origin :
		    (enum tag_origin)srv.tags.row[i].origin;

		if (origin < c->origin)
			return "a tag that the id, a token or, for a page, "
			    "the push socket set cannot be changed";
		if (i != NONE && !(c->replace && origin == c->origin))
			count -= c->line[k].remove;
		else
			count += !c->line[k].remove;
	}
	return count > WSP_MAX_TAGS ? tagging_full : NULL;
}

static void
tagging_apply(u32 sock, const struct tag_change *c)
{
	bool had[SETTINGS_RETAINED];

	retained_mark(sock, had, false);
	if (c->replace)
		tags_drop(&srv.tags, sock, c->origin, c->origin);
	/* What goes makes room for what comes. */
	for (u32 k = 0; k < c->n; k++) {
		u32 i = tag_find(&srv.tags, sock, c->line[k].name);

		if (i != NONE && c->line[k].remove)
			tag_remove(&srv.tags, i);
	}
	for (u32 k = 0; k < c->n; k++)
		if (!c->line[k].remove)
			tag_set(&srv.tags, sock, c->origin, &c->line[k].name,
			    &c->line[k].value);
	retained_offer(sock, had);
}

/*
 * ---- What clients say
 */

/* An answer: a text frame aside, no queued message. */
static void
service_answer(struct conn *c, u8 opcode, const void *p, size_t n)
{
	u8 *frame = srv.scratch_answer;
	size_t head = frame_head(frame, opcode, n);

	if (n > 0)
		memcpy(frame + head, p, n);
	conn_aside(c, frame, head + n);
}

/*
 * Commands on `main`: one JSON object, or an array of them, each answered,
 * all answers in one array.  The tokens of the text and the values decoded
 * from it lie in fixed arrays.
 */
#define COMMAND_TOKENS 1024

struct command_text {
	struct out answer;
	struct tag_change change;
	struct tag_line tag[WSP_MAX_TAGS];
	char decoded[WSP_MAX_TAGS + 1][TAG_TEXT];
	struct json_token token[COMMAND_TOKENS];
};

_Static_assert(WSP_MAX_LIST >= 8192 && WSP_MAX_LIST + FRAME_HEAD_MAX +
    2 * RECORD_OVERHEAD_MAX <= WSP_MAX_HTTP_HEAD + RECORD_MAX,
    "a row fits a reply, and the answers to commands a buffer");

/* The text of a member's value as it was sent, or null. */
static struct str
command_raw(const struct command_text *t, int object, const char *name)
{
	int i = json_member(t->token, object, name);

	return i < 0 ? STR("null") : t->token[i].text;
}

static void
command_error(struct out *o, const char *code, const char *message,
    const struct str *uid)
{
	out_print(o, "{\"error\":\"%s\",\"message\":\"%s\",\"uid\":%.*s}",
	    code, message, STR_ARGS(*uid));
}

/* Decodes a tag's name or value: a string, a number, true or false. */
static bool
command_word(struct str *word, const struct command_text *t, int i, char *to,
    size_t cap)
{
	struct str span;
	int n;

	if (i < 0)
		return false;
	span = t->token[i].text;
	switch ((enum json_kind)t->token[i].kind) {
	case JSON_IS_STRING:
		n = json_decode(to, cap, span);
		*word = (struct str){ to, n < 0 ? 0 : (size_t)n };
		return n >= 0;
	case JSON_IS_NUMBER:
	case JSON_IS_TRUE:
	case JSON_IS_FALSE:
		*word = span;
		return true;
	case JSON_IS_NULL:
	case JSON_IS_OBJECT:
	case JSON_IS_ARRAY:
		break;
	}
	return false;
}

/* Adds the tag whose name and value are these tokens, name -1 being
 * socket_type; a later one of the same name wins.  NULL, or what is wrong. */
static const char *
command_add_tag(struct command_text *t, int name, int value)
{
	struct tag_line line = { .name = STR("socket_type") };
	bool good = name < 0 || command_word(&line.name, t, name,
	    t->decoded[t->change.n], WSP_MAX_TAG_NAME);
	u32 k = tag_line_find(t->tag, t->change.n, line.name);
	const char *why;

	if (!good || !command_word(&line.value, t, value,
	    t->decoded[k] + WSP_MAX_TAG_NAME, WSP_MAX_TAG_VALUE))
		return "a tag has a name of at most 32 and a value of at most "
		    "96 bytes: strings, numbers, true or false";
	why = tag_wrong(&line);
	if (why)
		return why;
	if (k == WSP_MAX_TAGS)
		return tagging_full;
	if (k == t->change.n)
		t->tag[t->change.n++].name = line.name;
	t->tag[k].value = line.value;
	return NULL;
}

/* Reads the tags that an init_socket command asks for. */
static const char *
command_read_tags(struct command_text *t, int object)
{
	int type = json_member(t->token, object, "socket_type");
	int list = json_member(t->token, object, "socket_tags");
	const char *why = NULL;

	t->change = (struct tag_change){ .line = t->tag, .origin = TAG_CLIENT,
		.replace = true };
	if (type >= 0 && t->token[type].kind != JSON_IS_NULL)
		why = command_add_tag(t, -1, type);
	if (why || list < 0 || t->token[list].kind == JSON_IS_NULL)
		return why;
	if (t->token[list].kind != JSON_IS_ARRAY)
		return "socket_tags is an array of {name, value}";
	for (int i = list + 1; i < (int)t->token[list].next && !why;
	    i = (int)t->token[i].next) {
		int name = json_member(t->token, i, "name");

		if (t->token[i].kind != JSON_IS_OBJECT || name < 0)
			return "socket_tags is an array of {name, value}";
		why = command_add_tag(t, name,
		    json_member(t->token, i, "value"));
	}
	return why;
}

static void
command_do(struct command_text *t, int object, u32 sock)
{
	struct str uid = command_raw(t, object, "uid"), type;
	const char *code = "unknown-action";
	const char *why = "the socket_action is init_socket";

	if (json_string_is(command_raw(t, object, "socket_action"),
	    "init_socket")) {
		code = "bad-tag";
		why = command_read_tags(t, object);
		if (!why)
			why = tagging_check(sock, &t->change);
	}
	if (why) {
		command_error(&t->answer, code, why, &uid);
		return;
	}
	tagging_apply(sock, &t->change);
	type = command_raw(t, object, "socket_type");
	out_print(&t->answer, "{\"socket_action\":\"init_socket\","
	    "\"socket_type\":%.*s,\"uid\":%.*s}", STR_ARGS(type),
	    STR_ARGS(uid));
}

/* Is token 0 an object, or an array of nothing but objects? */
static bool
command_is_shaped(const struct command_text *t)
{
	for (u32 i = t->token[0].kind == JSON_IS_ARRAY; i < t->token[0].next;
	    i = t->token[i].next)
		if (t->token[i].kind != JSON_IS_OBJECT)
			return false;
	return true;
}

/* A text on `main` that begins as an object or an array does. */
static void
command_message(struct conn *c, struct str text)
{
	static struct command_text t;
	const struct str null = STR("null");
	char *room = srv.scratch_list;
	int n;

	t.answer = out_to(room, WSP_MAX_LIST);
	out_char(&t.answer, '[');
	n = json_tokens(t.token, COMMAND_TOKENS, text);
	if (n > 0 && t.token[0].kind == JSON_IS_OBJECT &&
	    json_string_is(command_raw(&t, 0, "type"), "ping")) {
		service_answer(c, FRAME_TEXT, "{\"type\":\"pong\"}", 15);
		return;
	}
	if (n <= 0 || !command_is_shaped(&t))
		command_error(&t.answer, "bad-json", n == -2 ? "too many "
		    "values in one message" : "a command is a JSON object, or "
		    "an array of them", &null);
	else
		/* A command may queue a retained value, and its write find
		 * that the client is gone. */
		for (u32 i = t.token[0].kind == JSON_IS_ARRAY;
		    i < t.token[0].next && !t.answer.full &&
		    c->state == CONN_OPEN; i = t.token[i].next) {
			if (i > 1)
				out_char(&t.answer, ',');
			command_do(&t, (int)i, c->sock);
		}
	out_char(&t.answer, ']');
	if (t.answer.full) {
		t.answer = out_to(room, WSP_MAX_LIST);
		out_char(&t.answer, '[');
		command_error(&t.answer, "bad-json", "the answer would be too "
		    "long, commands after that were not done", &null);
		out_char(&t.answer, ']');
	}
	if (c->state == CONN_OPEN)
		service_answer(c, FRAME_TEXT, t.answer.p, t.answer.n);
}

static void
service_message(struct conn *c, u8 opcode, const u8 *p, size_t n)
{
	const struct sock *s = &srv.sockets.row[c->sock];
	enum handler handler = settings.service[s->service].handler;
	struct str text = { (const char *)p, n };

	if (handler == HANDLER_ECHO) {
		service_answer(c, opcode, p, n);
		return;
	}
	if (handler == HANDLER_UNIX || handler == HANDLER_EXEC) {
		handler_message(c->sock, opcode, text);
		return;
	}
	if (opcode == FRAME_TEXT && str_is(text, "$hbt")) {
		service_answer(c, FRAME_TEXT, "$ok", 3);
		return;
	}
	text = text_trim(text);
	if (handler == HANDLER_MAIN && opcode == FRAME_TEXT && text.n > 0 &&
	    (text.p[0] == '{' || text.p[0] == '['))
		command_message(c, text);
	else
		srv.queues.total.inbound_dropped++;
}

/* ----- 38. Send ----------------------------------------------------------
 *
 * A request at work, where its answer goes, and what most of them ask: that a
 * message goes to some sockets, and that its sender learns its fate.  Checks
 * come in the order of INTERFACE 5, and a refused request changes nothing at
 * all.
 */

/* A request at work: where its answer goes. */
struct asking {
	struct out reply;
	const struct sockaddr_un *from;
	socklen_t from_n;    /* 0: the sender has no address */
	struct request r;
	struct target target;
};

/* The request at hand: there is only one at a time. */
static struct asking *
asking_begin(const struct sockaddr_un *from, socklen_t from_n)
{
	static struct asking q;

	q.reply = out_to(srv.scratch_reply, srv.reply_size);
	q.from = from;
	q.from_n = from_n;
	return &q;
}

static void
asking_ok(struct asking *q, u32 count)
{
	reply_ok(&q->reply, count);
}

static void
asking_end(struct asking *q)
{
	reply_ref(&q->reply, q->r.ref);
	out_char(&q->reply, '\n');
}

/*
 * A function that does what a request asks returns the number for `ok`, or
 * ANSWERED when the answer is there already.
 */
enum { ANSWERED = -1 };

static int
asking_refuse(struct asking *q, enum refusal why, const char *sentence)
{
	srv.queues.total.refused++;
	q->reply.n = 0;
	q->r.refusal = why;
	reply_error(&q->reply, why, q->r.ref, sentence);
	return ANSWERED;
}

/* Selects the target's sockets: their number, or ANSWERED when it is a
 * socketId that is nobody's. */
static int
asking_select(struct asking *q)
{
	u32 count = tags_select(&srv.tags, &q->target, srv.selected);

	if (count > 0 || !q->target.socket ||
	    tags_find_socket(&srv.tags, q->target.socket) != NONE)
		return (int)count;
	return asking_refuse(q, REFUSED_UNKNOWN_SOCKET,
	    "no socket has this id");
}

/* How many of the selected sockets will take the message: they come to the
 * front of `selected`. */
static u32
sending_admit(struct sending *s, u32 count)
{
	u32 fit = 0;

	for (u32 k = 0; k < count; k++) {
		u32 sock = srv.selected[k];

		if ((srv.queues.store.mortal > 0 ||
		    !queue_has_room(&srv.queues, sock, s->a.body)) &&
		    !sending_fits(s, sock))
			continue;
		srv.selected[k] = srv.selected[fit];
		srv.selected[fit++] = sock;
	}
	return fit;
}

/* The others, behind them, feel the policy: when it is known that the
 * request is not refused for another reason than theirs. */
static void
sending_turn_away(struct sending *s, u32 fit, u32 count)
{
	for (u32 k = fit; k < count; k++)
		if (sock_is_used(&srv.sockets, srv.selected[k])) {
			s->full++;
			(void)service_cut(srv.selected[k]);
		}
}

static struct waiter *
service_free_waiter(void)
{
	for (u32 i = 0; i < WSP_WAITERS; i++)
		if (!srv.queues.waiter[i].used)
			return &srv.queues.waiter[i];
	return NULL;
}

/* Volatile sockets keep what they have written only while a sender waits. */
static void
service_stop_awaiting(u32 message)
{
	u32 left = srv.queues.store.row[message].holds, i = 0, at = 0;

	srv.queues.store.row[message].waiter = 0;
	for (; left > 0 && queue_find_hold(&srv.queues, srv.sockets.fresh,
	    message, &i, &at); left--) {
		if (!srv.sockets.row[i].stateful &&
		    at < srv.queues.queue[i].sent)
			queue_take(&srv.queues, i, at, LEAVE_WRITTEN);
		else
			at++;
	}
}

static void
service_end_waiter(struct waiter *w)
{
	/* Nobody holds a message that is decided: its row may be another's. */
	if (w->decided < w->count)
		service_stop_awaiting(w->message);
	w->used = false;
	srv.queues.waiters--;
}

/* The sender waits for its message's fate. */
static void
asking_wait(struct asking *q, struct waiter *w, u32 message)
{
	u32 i = (u32)(w - srv.queues.waiter);
	struct awaiting *a = &awaiting[i];

	*w = (struct waiter){ .used = true, .message = message };
	srv.queues.waiters++;
	srv.queues.store.row[message].waiter = (u8)(i + 1);
	a->to = *q->from;
	a->to_n = q->from_n;
	a->due = srv.now + q->r.ack_s * INT64_C(1000);
	a->ref_n = (u8)q->r.ref.n;
	if (q->r.ref.n > 0)
		memcpy(a->ref, q->r.ref.p, q->r.ref.n);
}

static int
asking_counts(struct asking *q, const struct sending *s)
{
	asking_ok(q, s->open + s->away);
	reply_number(&q->reply, "open", s->open);
	reply_number(&q->reply, "away", s->away);
	if (s->full > 0)
		reply_number(&q->reply, "full", s->full);
	asking_end(q);
	return ANSWERED;
}

/* Makes a place for the value to be retained; with an empty body that is
 * all.  False, and the answer is there: there is no place. */
static bool
asking_retain(struct asking *q, struct sending *s, struct out *text)
{
	target_text(text, &q->target);
	retained_expire();
	s->last_value = retained_find((struct str){ text->p, text->n },
	    q->r.key);
	if (s->last_value != NONE || srv.retains < settings.retained ||
	    q->r.body.n == 0)
		return true;
	asking_refuse(q, REFUSED_NO_ROOM, "as many values are retained as "
	    "--retained allows");
	return false;
}

/* The new value is taken: it is kept, and the one before it is not, whose row
 * is where asking_retain() found it: nothing else removes values before the
 * clock is read again. */
static void
asking_take_value(const struct sending *s, const struct out *target)
{
	if (s->last_value != NONE)
		retained_remove(s->last_value);
	if (s->r->body.n > 0)
		retained_keep((struct str){ target->p, target->n },
		    s->message);
}

static int
asking_queue_full(struct asking *q)
{
	return asking_refuse(q, REFUSED_QUEUE_FULL,
	    "the queues of all selected sockets are full");
}

static int
asking_send(struct asking *q)
{
	struct sending s = { .r = &q->r, .last_value = NONE };
	struct waiter *waiter = NULL;
	char text[WSP_MAX_REQUEST_LINE];
	struct out target = out_to(text, sizeof text);
	int selected;
	u32 count, fit;

	if (!sending_shape(&s))
		return asking_refuse(q, REFUSED_TOO_BIG, "the message is "
		    "longer than --max-message once it is a JSON string");
	if (request_has(&q->r, OPTION_RETAIN) && q->r.body.n == 0) {
		(void)asking_retain(q, &s, &target);
		asking_take_value(&s, &target);
		return asking_counts(q, &s);
	}
	selected = asking_select(q);
	if (selected < 0)
		return ANSWERED;
	count = (u32)selected;
	fit = sending_admit(&s, count);
	if (count > 0 && fit == 0) {
		sending_turn_away(&s, 0, count);
		return asking_queue_full(q);
	}
	if (request_has(&q->r, OPTION_RETAIN) && !asking_retain(q, &s, &target))
		return ANSWERED;
	if (count > 0 && q->r.ack_s > 0 && q->from_n > 0) {
		waiter = service_free_waiter();
		if (!waiter)
			return asking_refuse(q, REFUSED_NO_ROOM,
			    "too many senders wait for acknowledgement");
	}
	if ((fit > 0 || request_has(&q->r, OPTION_RETAIN)) &&
	    !sending_store(&s, fit))
		return asking_refuse(q, REFUSED_NO_ROOM,
		    "the store is full of messages that may not be dropped");
	sending_turn_away(&s, fit, count);
	if (waiter)
		asking_wait(q, waiter, s.message);
	s.few = fit <= SENDING_FEW;
	sending_put(&s, srv.selected, fit, waiter != NULL);
	if (waiter)
		waiter->count = s.open + s.away;
	if (count > 0 && s.open + s.away == 0) {
		/* Making room in the store has cost them theirs. */
		if (waiter)
			service_end_waiter(waiter);
		store_release(&srv.queues.store, s.message);
		return asking_queue_full(q);
	}
	if (request_has(&q->r, OPTION_RETAIN))
		asking_take_value(&s, &target);
	srv.queues.total.messages_taken++;
	return asking_counts(q, &s);
}

/* ----- 39. Verbs ---------------------------------------------------------
 *
 * What the other requests of the push socket do: one function a verb, each of
 * which leaves one answer.  At the end the door for all of them.
 */

static void
list_row(struct out *o, u32 sock, bool json)
{
	const struct sock *s = &srv.sockets.row[sock];
	const struct queue *queue = &srv.queues.queue[sock];
	void (*put)(struct out *, struct str) = json ? json_string : out_str;
	struct str tag = STR("service"), value;
	bool away = s->conn == NONE;
	const char *quote = json && !away ? "\"" : "";
	const char *peer = !away ? conn_peer(&srv.conn[s->conn]) :
	    json ? "null" : "-";
	char name[WSP_MAX_SOCKET_ID];
	struct out id = out_to(name, sizeof name);

	sock_name(&id, &srv.sockets, sock);
	value = sock_service(&srv.sockets, sock);
	out_text(o, json ? "{\"socketId\":" : "");
	put(o, (struct str){ name, id.n });
	out_print(o, json ? ",\"state\":\"%s\",\"messages\":%u,\"bytes\":%u,"
	    "\"age\":%u,\"peer\":%s%s%s,\"drops\":%u,\"tags\":{" :
	    "\t%s\t%u\t%u\t%u\t%s%s%s\t%u\t", away ? "away" : "open",
	    queue->count, queue->bytes, service_age(sock), quote, peer, quote,
	    srv.queues.drops[sock]);
	for (u32 i = s->tags;; i = srv.tags.row[i].next) {
		put(o, tag);
		out_char(o, ':');
		put(o, value);
		if (i == NONE)
			break;
		out_char(o, ',');
		tag = tag_name(&srv.tags, i);
		value = tag_value(&srv.tags, i);
	}
	out_text(o, json ? "}}" : "\n");
}

/* Lists from a row on until the reply is full; that row is the cursor for
 * the next.  Rows keep their places, so nobody is listed twice. */
static int
asking_list(struct asking *q)
{
	/* One byte stays for the `]`. */
	struct out o = out_to(srv.scratch_list, WSP_MAX_LIST - 1);
	u32 count = 0, i = q->r.from < srv.sockets.fresh ? (u32)q->r.from :
	    srv.sockets.fresh;

	if (q->r.kind == KIND_JSON)
		out_char(&o, '[');
	for (; i < srv.sockets.fresh; i++) {
		size_t before = o.n;

		if (!sock_is_used(&srv.sockets, i) ||
		    !tags_match(&srv.tags, i, &q->target))
			continue;
		if (q->r.kind == KIND_JSON && count > 0)
			out_char(&o, ',');
		list_row(&o, i, q->r.kind == KIND_JSON);
		if (o.full) {
			o.n = before;
			break;
		}
		count++;
	}
	asking_ok(q, count);
	if (o.full)
		reply_number(&q->reply, "next", i);
	asking_end(q);
	out_bytes(&q->reply, o.p, o.n);
	if (q->r.kind == KIND_JSON)
		out_char(&q->reply, ']');
	return ANSWERED;
}

static int
asking_close(struct asking *q)
{
	int count = asking_select(q);

	for (int k = 0; k < count; k++) {
		u32 sock = srv.selected[k];
		struct conn *c = service_conn(sock);

		if (!sock_is_used(&srv.sockets, sock))
			continue;
		if (c)
			conn_offer(c);
		if (c && c->state == CONN_OPEN)
			conn_close(c, q->r.code, q->r.body);
		if (sock_is_used(&srv.sockets, sock))
			service_forget(sock, LEAVE_FORGOTTEN);
	}
	return count;
}

static int
asking_abort(struct asking *q)
{
	int count = asking_select(q);

	for (int k = 0; k < count; k++) {
		struct conn *c = service_conn(srv.selected[k]);

		if (sock_is_used(&srv.sockets, srv.selected[k]) && c)
			conn_kill(c, "aborted by a request");
	}
	return count;
}

/* Reads tags with `at` between them into at most so many lines: the last for
 * a name counts.  NULL, or the sentence. */
static const char *
tagging_read(struct tag_change *c, u32 most, struct str text, char at)
{
	struct tag_line line;
	int r;

	while ((r = tag_line_next(&line, &text, at)) > 0) {
		u32 k = tag_line_find(c->line, c->n, line.name);

		if (k == most)
			return "too many names in one request: 64 in `tag`, "
			    "16 in `allow`";
		c->line[k] = line;
		c->n += k == c->n;
	}
	return r < 0 ? line.why : NULL;
}

static int
asking_tag(struct asking *q)
{
	static struct tag_line lines[64];
	struct tag_change change = { .line = lines, .origin = TAG_PUSH,
		.replace = request_has(&q->r, OPTION_REPLACE) };
	const char *why = tagging_read(&change, COUNT(lines), q->r.body, '\n');
	int count;

	if (why)
		return asking_refuse(q, REFUSED_BAD_TAG, why);
	count = asking_select(q);
	for (int k = 0; k < count; k++) {
		why = tagging_check(srv.selected[k], &change);
		if (why)
			return asking_refuse(q, REFUSED_BAD_TAG, why);
	}
	for (int k = 0; k < count; k++)
		if (sock_is_used(&srv.sockets, srv.selected[k]))
			tagging_apply(srv.selected[k], &change);
	return count;
}

/* Events for this sender from now on.  Its address is its name: asking again
 * changes the target. */
static int
asking_watch(struct asking *q)
{
	struct watcher *w = NULL;

	if (q->from_n == 0)
		return asking_refuse(q, REFUSED_BAD_REQUEST, "a watcher needs "
		    "an address that events can be sent to");
	for (u32 i = 0; i < WSP_WATCHERS; i++) {
		struct watcher *each = &watchers[i];

		if (each->to_n == q->from_n &&
		    memcmp(&each->to, q->from, q->from_n) == 0) {
			w = each;
			break;
		}
		if (each->to_n == 0 && !w)
			w = each;
	}
	if (!w)
		return asking_refuse(q, REFUSED_NO_ROOM,
		    "there are as many watchers as there may be");
	w->to = *q->from;
	w->to_n = q->from_n;
	w->fails = 0;
	w->target_n = (u16)q->r.target.n;
	memcpy(w->target, q->r.target.p, q->r.target.n);
	return (int)tags_select(&srv.tags, &q->target, srv.selected);
}

static int
asking_stats(struct asking *q)
{
	struct out o = out_to(srv.scratch_list, WSP_MAX_LIST);
	u32 lines = figures_write(&o, q->r.kind == KIND_JSON ? FIGURES_JSON :
	    FIGURES_TEXT);

	if (q->r.kind == KIND_JSON)
		out_text(&o, "}\n");
	asking_ok(q, lines);
	asking_end(q);
	out_bytes(&q->reply, o.p, o.n);
	return ANSWERED;
}

static int
asking_ping(struct asking *q)
{
	(void)q;
	return 0;
}

/*
 * ---- allow and deny
 */

/* Takes the connection that waits for the answer.  NULL: there is none, and
 * the reply says so. */
static struct conn *
asking_judged(struct asking *q)
{
	struct conn *c = judging_take(q->r.ticket);

	if (!c)
		asking_refuse(q, REFUSED_UNKNOWN_SOCKET,
		    "nobody waits who has this number");
	return c;
}

static int
asking_allow(struct asking *q)
{
	struct verdict *v = &verdict_now;
	struct tag_change tags = { .line = v->tag };
	const char *why = tagging_read(&tags, WSP_MAX_TAGS, q->r.target, ' ');
	struct conn *c;

	v->tags = tags.n;
	for (u32 k = 0; k < v->tags; k++)
		if (v->tag[k].remove)
			why = "allow only sets tags";
	if (why)
		return asking_refuse(q, REFUSED_BAD_TAG, why);
	c = asking_judged(q);
	if (!c)
		return ANSWERED;
	verdict_now.of = c;
	conn_go_on(c);
	verdict_now.of = NULL;
	return 1;
}

static int
asking_deny(struct asking *q)
{
	struct conn *c = asking_judged(q);

	if (!c)
		return ANSWERED;
	conn_refuse(c, q->r.code, NULL, "the service does not let you in");
	return 1;
}

/* A target that names a service which is not configured is an error: a typo
 * must not look like an empty group. */
static bool
asking_knows_services(struct asking *q)
{
	for (size_t k = 0; k < q->target.n; k++) {
		const struct target_term *term = &q->target.terms[k];

		if ((term->kind == TERM_SERVICE || term->kind == TERM_SOCKET)
		    && sock_find_service(&srv.sockets, term->name) == NONE)
			return false;
	}
	return true;
}

static int (*const asking_verb[])(struct asking *q) = {
	[VERB_SEND] = asking_send, [VERB_LIST] = asking_list,
	[VERB_TAG] = asking_tag, [VERB_CLOSE] = asking_close,
	[VERB_ABORT] = asking_abort, [VERB_STATS] = asking_stats,
	[VERB_WATCH] = asking_watch, [VERB_PING] = asking_ping,
	[VERB_ALLOW] = asking_allow, [VERB_DENY] = asking_deny,
};

/* One datagram, of which n bytes of full_n were received: does what it asks
 * and leaves the answer in q->reply. */
static void
service_ask(struct asking *q, const u8 *p, size_t n, size_t full_n,
    bool allowed)
{
	const char *why = NULL;
	enum refusal bad = request_parse(&q->r, p, n, full_n, allowed);
	int count;

	if (bad == REFUSED_NOT && q->r.target.n > 0 &&
	    q->r.verb != VERB_ALLOW) {
		why = target_parse(&q->target, q->r.target);
		if (why) {
			bad = REFUSED_BAD_TARGET;
		} else if (request_has(&q->r, OPTION_RETAIN) &&
		    q->target.socket) {
			bad = REFUSED_BAD_OPTION;
			why = "retain= is for groups, not for one socketId";
		} else if (!asking_knows_services(q)) {
			bad = REFUSED_BAD_TARGET;
			why = "the target names a service that is not "
			    "configured; see --service";
		}
	}
	if (bad == REFUSED_NOT)
		bad = request_body(&q->r, settings.max_message);
	count = bad == REFUSED_NOT ? asking_verb[q->r.verb](q) :
	    asking_refuse(q, bad, why ? why : q->r.why);
	if (count == ANSWERED)
		return;
	asking_ok(q, (u32)count);
	asking_end(q);
}

/* ----- 40. Handlers ------------------------------------------------------
 *
 * Services that are programs of somebody else's: `unix:PATH`, a datagram
 * socket, and `exec:COMMAND`, a child that reads events and writes requests,
 * one a line.  Nobody here waits for them: what a program does not take at
 * once is dropped and counted, and of a line it gets all or nothing.
 */

/* A line to a child or from it, its end included. */
#define HANDLER_LINE 65536

/* What a child has room for before it must read; beyond: dropped. */
#define HANDLER_PIPE (4 * HANDLER_LINE)

#define HANDLER_WORDS 32  /* of a command, and its length in bytes */
#define HANDLER_TEXT  1024
#define HANDLER_SAYS  20  /* lines logged of one child in a second */
#define HANDLER_HEAD  (64 + WSP_MAX_SOCKET_ID)

/* Our ends of a child's pipes. */
enum pipe_end { PIPE_IN, PIPE_OUT, PIPE_ERR, PIPES };

static struct handler_row {
	u32 service;            /* its number */
	u32 says;               /* lines logged of it in this second, which */
	int64_t says_until;     /* ends then */
	int fd;                 /* of unix:, the socket its events leave by */
	int pipe[PIPES];        /* of exec:, -1 when it has none */
	struct out part[PIPES]; /* of each: a line that is half through it; a
	                         * request that is too long has it `full` */
	struct sockaddr_un to;  /* of unix: */
	char said[200];         /* room for a line on standard error */
} handlers[SETTINGS_SERVICES];

static char *handler_lines RESIDENT; /* in the arena, two for each child */

/* What epoll carries for a service's pipe. */
#define LOOP_HANDLER (UINT32_MAX - 128) /* + its number */

_Static_assert(SETTINGS_SERVICES * PIPES < 120, "they end below the others");

static bool
handler_is_exec(u32 service)
{
	return settings.service[service].handler == HANDLER_EXEC;
}

static u32
handler_children(void)
{
	u32 n = 0;

	for (u32 i = 0; i < settings.services; i++)
		n += handler_is_exec(i);
	return n;
}

/* A flood is a few lines and a count, for each service: one that chatters
 * hides nobody else's lines. */
static void
handler_log(struct handler_row *h, const char *event, struct str text)
{
	struct str name = settings.service[h->service].name;
	struct log_room room;

	if (srv.now >= h->says_until) {
		if (h->says > HANDLER_SAYS)
			log_line(LOG_LEVEL_WARN, "handler", "service=%.*s "
			    "lines_not_logged=%u", STR_ARGS(name),
			    h->says - HANDLER_SAYS);
		h->says = 0;
		h->says_until = srv.now + 1000;
	}
	if (h->says++ < HANDLER_SAYS)
		log_line(LOG_LEVEL_WARN, event, "service=%.*s text=%s",
		    STR_ARGS(name), log_quote(&room, text));
}

/*
 * ---- Events
 */

/* `head`, a line feed, the body, which may lie where the datagram is put
 * together. */
static bool
handler_datagram(struct handler_row *h, struct out *head,
    const struct str *body)
{
	u8 *p = (u8 *)head->p;

	out_char(head, '\n');
	/* An event without a body may come while others use the scratch. */
	if (body) {
		p = srv.scratch_answer;
		memmove(p + head->n, body->p, body->n);
		memcpy(p, head->p, head->n);
	}
	return sys_sendto(h->fd, p, head->n + (body ? body->n : 0), &h->to,
	    sizeof h->to) >= 0;
}

static void
handler_watch(struct handler_row *h, enum pipe_end which, int op, u32 events)
{
	sys_epoll_ctl(srv.epoll, op, h->pipe[which], events,
	    LOOP_HANDLER + h->service * PIPES + which);
}

static void
handler_close_pipe(struct handler_row *h, enum pipe_end which)
{
	if (h->pipe[which] < 0)
		return;
	handler_watch(h, which, EPOLL_CTL_DEL, 0);
	sys_close(h->pipe[which]);
	h->pipe[which] = -1;
	h->part[which].n = 0;
	h->part[which].full = false;
}

/* Writes a line, or the rest of one that has waited.  False: none of it. */
static bool
handler_flush(struct handler_row *h, bool waited)
{
	struct out *line = &h->part[PIPE_IN];
	ssize_t r = sys_write(h->pipe[PIPE_IN], line->p, line->n);

	if (r < 0 && r != -EAGAIN) {
		handler_close_pipe(h, PIPE_IN);
		return false;
	}
	if (r > 0) {
		line->n -= (size_t)r;
		memmove(line->p, line->p + r, line->n);
	} else if (!waited) {
		line->n = 0;
	}
	if (waited != (line->n > 0))
		handler_watch(h, PIPE_IN, EPOLL_CTL_MOD,
		    line->n > 0 ? EPOLLOUT : 0);
	return r > 0;
}

/* `head`, and the body as a JSON string. */
static bool
handler_line(struct handler_row *h, const struct out *head,
    const struct str *body, bool binary)
{
	struct out *o = &h->part[PIPE_IN];

	if (h->pipe[PIPE_IN] < 0 || o->n > 0)
		return false;
	out_bytes(o, head->p, head->n);
	if (binary) {
		out_text(o, " \"");
		if ((body->n + 2) / 3 * 4 > o->cap - o->n)
			o->full = true;
		else
			o->n += base64_encode(o->p + o->n,
			    (const u8 *)body->p, body->n, BASE64);
		out_char(o, '"');
	} else if (body) {
		out_char(o, ' ');
		json_string(o, *body);
	}
	out_char(o, '\n');
	if (!o->full)
		return handler_flush(h, false);
	o->full = false;
	o->n = 0;
	return false;
}

/* Gives an event to a service's program.  `body` NULL: it has none.  False:
 * it was dropped. */
static bool
handler_event(u32 service, struct out *head, const struct str *body,
    bool binary)
{
	struct handler_row *h = &handlers[service];
	bool taken = true;

	if (settings.service[service].handler == HANDLER_EXEC)
		taken = handler_line(h, head, body, binary);
	else if (settings.service[service].handler == HANDLER_UNIX)
		taken = handler_datagram(h, head, body);
	srv.queues.total.handler_dropped += !taken;
	return taken;
}

/* Tells of a socket that opens, or closes with a code. */
static void
handler_tell(const char *word, u32 sock, u32 code)
{
	char text[HANDLER_HEAD];
	struct out o = out_to(text, sizeof text);

	event_print(&o, word, sock, code);
	(void)handler_event(srv.sockets.row[sock].service, &o, NULL, false);
}

static void
handler_message(u32 sock, u8 opcode, struct str body)
{
	char text[HANDLER_HEAD];
	struct out o = out_to(text, sizeof text);
	bool binary = opcode == FRAME_BINARY;

	event_print(&o, "message", sock, NONE);
	out_text(&o, binary ? " binary" : " text");
	(void)handler_event(srv.sockets.row[sock].service, &o, &body, binary);
}

/* Asks whether somebody may come in; `body` may lie in the scratch for
 * answers.  False: nobody was asked. */
static bool
handler_auth(u32 service, u64 ticket, struct str id, bool stateful,
    struct str body)
{
	char text[HANDLER_HEAD];
	struct out o = out_to(text, sizeof text);

	out_print(&o, "auth %llu /services/%.*s-%c-%.*s", ticket,
	    STR_ARGS(settings.service[service].name), stateful ? 's' : 'v',
	    STR_ARGS(id));
	assert(!o.full);
	return handler_event(service, &o, &body, false);
}

/*
 * ---- Requests
 */

/* Makes a datagram of a child's line, where it lies:
 *
 *     send kind=json $room:a "{\"a\":1}"   ->   send kind=json $room:a\n{"a":1}
 *
 * and reads its head into *r.  NULL, or the sentence why not. */
static const char *
handler_unfold(struct request *r, char *p, size_t *n)
{
	struct str quoted;
	size_t at = 0;
	int made;

	while (at < *n && (p[at] != '"' || at == 0 || p[at - 1] != ' '))
		at++;
	(void)request_parse(r, (const u8 *)p, at, at, true);
	if (at == *n)
		return NULL;
	quoted = (struct str){ p + at, *n - at };
	if (!text_is_utf8(quoted.p, quoted.n) || quoted.p[quoted.n - 1] != '"'
	    || json_tokens(NULL, 0, quoted) != 1)
		return "the body is not one JSON string";
	p[at - 1] = '\n';
	/* What it stands for is never longer: the place is its own. */
	made = json_decode(p + at, quoted.n, quoted);
	if (made < 0)
		return "the body is not one JSON string";
	quoted.n = (size_t)made;
	if (r->kind == KIND_BINARY)
		made = base64_decode((u8 *)p + at, quoted.n, quoted, BASE64);
	*n = at + (size_t)made;
	return made < 0 ? "the body of kind=binary is not base64" : NULL;
}

/* One line of a child: a request that gets no reply. */
static void
handler_request(struct handler_row *h, char *p, size_t n)
{
	struct str line = text_trim((struct str){ p, n });
	struct asking *q = asking_begin(NULL, 0);
	const char *why;

	if (line.n == 0)
		return;
	p += line.p - p;
	why = handler_unfold(&q->r, p, &line.n);
	if (why)
		asking_refuse(q, REFUSED_BAD_REQUEST, why);
	else if (q->r.refusal == REFUSED_NOT &&
	    request_has(&q->r, OPTION_ACK))
		asking_refuse(q, REFUSED_BAD_OPTION,
		    "nobody could be told of ack=");
	else
		service_ask(q, (const u8 *)p, line.n, line.n, true);
	if (q->r.refusal != REFUSED_NOT)
		handler_log(h, "refused", (struct str){ q->reply.p,
		    min_size(q->reply.n, 120) });
}

/* One line of a child, on standard output or standard error. */
static void
handler_take(struct handler_row *h, enum pipe_end which, char *p, size_t n)
{
	bool *skip = &h->part[which].full;

	if (which == PIPE_ERR && n > 0)
		handler_log(h, "child", (struct str){ p, n });
	if (which == PIPE_OUT && !*skip)
		handler_request(h, p, n);
	*skip = false;
}

/* Takes what a child writes, cuts it into lines. */
static void
handler_read(struct handler_row *h, enum pipe_end which)
{
	struct out *part = &h->part[which];
	char *p = part->p, *end = p + part->n, *line_end;
	ssize_t r = read(h->pipe[which], end, part->cap - part->n);

	if (r < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (r > 0)
		end += r;
	for (; (line_end = memchr(p, '\n', (size_t)(end - p)));
	    p = line_end + 1)
		handler_take(h, which, p, (size_t)(line_end - p));
	part->n = (size_t)(end - p);
	memmove(part->p, p, part->n);
	if (which == PIPE_ERR && (r <= 0 || part->n == part->cap)) {
		/* A piece of a long line is a line. */
		handler_take(h, which, part->p, part->n);
		part->n = 0;
	}
	if (part->n == part->cap) {
		if (!part->full)
			handler_log(h, "refused",
			    STR("a line over 64 KiB was dropped"));
		part->full = true;
		part->n = 0;
	}
	if (r <= 0)
		handler_close_pipe(h, which);
}

/* epoll says that something is to be done about a pipe. */
static void
handler_ready(u32 number, u32 events)
{
	struct handler_row *h = &handlers[number / PIPES];
	enum pipe_end which = (enum pipe_end)(number % PIPES);

	if (h->pipe[which] < 0)
		return;
	if (which != PIPE_IN)
		handler_read(h, which);
	else if (events & EPOLLERR)
		handler_close_pipe(h, PIPE_IN);
	else
		(void)handler_flush(h, true);
}

/* Rows, and a socket for every unix: service, for what waits unread at one
 * program must not be in the way of another's events. */
static int
handler_open(void)
{
	char *line = handler_lines;

	for (u32 i = 0; i < settings.services; i++) {
		struct handler_row *h = &handlers[i];
		struct str path = settings.service[i].program;

		h->service = i;
		if (handler_is_exec(i)) {
			memset(h->pipe, -1, sizeof h->pipe);
			h->part[PIPE_IN] = out_to(line, HANDLER_LINE);
			line += HANDLER_LINE;
			h->part[PIPE_OUT] = out_to(line, HANDLER_LINE);
			line += HANDLER_LINE;
			h->part[PIPE_ERR] = out_to(h->said, sizeof h->said);
		}
		if (settings.service[i].handler != HANDLER_UNIX)
			continue;
		h->to.sun_family = AF_UNIX;
		memcpy(h->to.sun_path, path.p, path.n);
		h->fd = sys_unix_socket();
		if (h->fd < 0)
			return -errno;
	}
	return 0;
}

/* ----- 41. Helper --------------------------------------------------------
 *
 * Children of exec: services are started by a helper, a process forked at the
 * start, while we still may do what the running server may not.  It starts
 * them again when they die, and passes the server its ends of their pipes:
 *
 *     server <---- pipes of a new child ---- helper ---- fork, exec ---> child
 *        |                                                                 |
 *        +------- events ---> standard input                               |
 *                 requests <- standard output, log <- standard error  -----+
 *
 * The server writes one byte when it is ready; when its end is closed, because
 * it stops or has died, the children are told to go, and a second later they
 * are killed.
 */
static int helper_fd = -1; /* the server's end */

#define LOOP_HELPER (UINT32_MAX - 3) /* what epoll carries for it */

struct helper_child {
	pid_t pid;           /* 0: none */
	int64_t start_at, started;
	u32 pause_s;
};

/* The environment of a child: the first 256 of our variables but for what is
 * the service manager's word to us, and two of its own. */
static void
helper_environ(const struct service *s)
{
	static const char *const ours[] = { "LISTEN_PID=", "LISTEN_FDS=",
		"LISTEN_FDNAMES=", "NOTIFY_SOCKET=", "WSPUSH_SOCKET=",
		"WSPUSH_SERVICE=" };
	static char *list[256 + 3], path[128], name[WSP_MAX_SERVICE + 16];
	size_t n = 0, k;

	for (char **e = environ; *e && n < 256; e++) {
		for (k = 0; k < COUNT(ours); k++)
			if (str_begins(text_of(*e), ours[k]))
				break;
		if (k == COUNT(ours))
			list[n++] = *e;
	}
	list[n++] = text_print(path, sizeof path, "WSPUSH_SOCKET=%s",
	    settings.push_path);
	list[n] = text_print(name, sizeof name, "WSPUSH_SERVICE=%.*s",
	    STR_ARGS(s->name));
	environ = list;
}

/* In the child: becomes the command.  Its words are cut in a copy. */
static void
helper_exec(u32 service, const int ends[PIPES])
{
	const struct service *s = &settings.service[service];
	static char text[HANDLER_TEXT];
	char *word[HANDLER_WORDS + 1], *p = text;
	sigset_t none;
	u32 n = 0;

	memcpy(text, s->program.p, s->program.n);
	while (n < HANDLER_WORDS && *(p += strspn(p, " \t"))) {
		word[n++] = p;
		p += strcspn(p, " \t");
		if (*p)
			*p++ = '\0';
	}
	word[n] = NULL;
	setpgid(0, 0);
	for (int i = 0; i < PIPES; i++)
		dup2(ends[i], i);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	helper_environ(s);
	execvp(word[0], word);
	_exit(say(127, "%s: %s", word[0], strerror(errno)));
}

/* What the helper sends of a new child: its service, and beside it our ends
 * of its pipes. */
struct helper_message {
	struct msghdr m;
	struct iovec iov;
	u32 service;
	_Alignas(struct cmsghdr) char beside[CMSG_SPACE(sizeof(int) * PIPES)];
};

/* Makes it ready to be sent or received; returns what is beside. */
static struct cmsghdr *
helper_message(struct helper_message *h)
{
	h->iov = (struct iovec){ &h->service, sizeof h->service };
	h->m = (struct msghdr){ .msg_iov = &h->iov, .msg_iovlen = 1,
		.msg_control = h->beside, .msg_controllen = sizeof h->beside };
	return CMSG_FIRSTHDR(&h->m);
}

/* Starts a service's child, or leaves it for the next try. */
static void
helper_start(int to, u32 service, struct helper_child *child)
{
	struct helper_message h = { .service = service };
	struct cmsghdr *beside = helper_message(&h);
	int ours[PIPES], theirs[PIPES], pair[2], made = 0;

	for (; made < PIPES && pipe2(pair, O_CLOEXEC) == 0; made++) {
		theirs[made] = pair[made != PIPE_IN];
		ours[made] = pair[made == PIPE_IN];
		fcntl(ours[made], F_SETFL, O_NONBLOCK);
	}
	child->pid = -1;
	if (made == PIPES) {
		fcntl(ours[PIPE_IN], F_SETPIPE_SZ, HANDLER_PIPE);
		child->pid = fork();
	}
	if (child->pid == 0)
		helper_exec(service, theirs);
	if (child->pid > 0) {
		setpgid(child->pid, child->pid); /* it may not run yet */
		beside->cmsg_len = CMSG_LEN(sizeof ours);
		beside->cmsg_level = SOL_SOCKET;
		beside->cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(beside), ours, sizeof ours);
		(void)!sendmsg(to, &h.m, MSG_NOSIGNAL);
	} else {
		log_event(LOG_LEVEL_ERROR, "child", "service=%.*s why=\"%s\"",
		    STR_ARGS(settings.service[service].name), strerror(errno));
		child->pid = 0;
		child->start_at += 60000;
	}
	while (made-- > 0) {
		close(ours[made]);
		close(theirs[made]);
	}
}

/* A child has died: 1, 2, 4 ... 60 s until the next, and 1 s again after one
 * that lived for a minute. */
static void
helper_buried(u32 service, struct helper_child *child, int status)
{
	int64_t now = sys_clock_ms(CLOCK_MONOTONIC);

	child->pause_s = now - child->started >= 60000 || child->pause_s == 0 ?
	    1 : (u32)min_size(60, child->pause_s * (size_t)2);
	log_event(LOG_LEVEL_WARN, "child", "service=%.*s pid=%d %s=%d "
	    "again_in=%us", STR_ARGS(settings.service[service].name),
	    (int)child->pid,
	    WIFSIGNALED(status) ? "signal" : "exit", WIFSIGNALED(status) ?
	    WTERMSIG(status) : WEXITSTATUS(status), child->pause_s);
	kill(-child->pid, SIGTERM); /* what it has started and left */
	child->pid = 0;
	child->start_at = now + child->pause_s * INT64_C(1000);
}

/* Takes notice of those who have died; returns how many live. */
static u32
helper_reap(struct helper_child *child, bool quietly)
{
	u32 live = 0;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (u32 i = 0; i < settings.services; i++)
			if (child[i].pid == pid && quietly)
				child[i].pid = 0;
			else if (child[i].pid == pid)
				helper_buried(i, &child[i], status);
	for (u32 i = 0; i < settings.services; i++)
		live += child[i].pid > 0;
	return live;
}

/* Starts who is due; returns the milliseconds until the next, or -1. */
static int
helper_start_due(int to, struct helper_child *child)
{
	int64_t now = sys_clock_ms(CLOCK_MONOTONIC), next = INT64_MAX;

	for (u32 i = 0; i < settings.services; i++) {
		if (!handler_is_exec(i) || child[i].pid > 0)
			continue;
		if (child[i].start_at <= now) {
			child[i].started = child[i].start_at = now;
			helper_start(to, i, &child[i]);
		}
		if (child[i].pid == 0 && child[i].start_at < next)
			next = child[i].start_at;
	}
	return next == INT64_MAX ? -1 : (int)(next - now);
}

static void
helper_kill(const struct helper_child *child, int number)
{
	for (u32 i = 0; i < settings.services; i++)
		if (child[i].pid > 0)
			kill(-child[i].pid, number);
}

/* SIGTERM to every child and what it has started; a second later, death. */
static void
helper_end(struct helper_child *child, int signals)
{
	struct pollfd p = { .fd = signals, .events = POLLIN };
	struct signalfd_siginfo info;
	int64_t until = sys_clock_ms(CLOCK_MONOTONIC) + 1000, left = 1000;

	helper_kill(child, SIGTERM);
	while (helper_reap(child, true) > 0 && left > 0) {
		poll(&p, 1, (int)left);
		if (p.revents)
			(void)!read(signals, &info, sizeof info);
		left = until - sys_clock_ms(CLOCK_MONOTONIC);
	}
	helper_kill(child, SIGKILL);
	_exit(0);
}

static void
helper_run(int server)
{
	static struct helper_child child[SETTINGS_SERVICES];
	struct signalfd_siginfo info;
	struct pollfd p[2] = { { .fd = server, .events = POLLIN },
		{ .fd = sys_signals(true), .events = POLLIN } };
	bool stopping = false;
	char go;

	if (read(server, &go, 1) != 1)
		_exit(0);
	for (;;) {
		poll(p, 2, stopping ? -1 : helper_start_due(server, child));
		/* Whom init stops it stops with all that is its own. */
		while (read(p[1].fd, &info, sizeof info) == sizeof info)
			stopping |= info.ssi_signo == SIGTERM ||
			    info.ssi_signo == SIGINT;
		(void)helper_reap(child, stopping);
		if (p[0].revents)
			helper_end(child, p[1].fd);
	}
}

/*
 * ---- The server's side of it
 */

/* New pipes from the helper. */
static void
helper_take_pipes(void)
{
	struct helper_message h = { .service = 0 };
	struct cmsghdr *beside = helper_message(&h);
	ssize_t n = recvmsg(helper_fd, &h.m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct handler_row *row = &handlers[h.service];

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		log_event(LOG_LEVEL_ERROR, "child", "why=\"the helper that "
		    "starts children is gone\"");
		sys_close(helper_fd);
		helper_fd = -1;
		return;
	}
	if (beside->cmsg_len != CMSG_LEN(sizeof row->pipe))
		return;
	for (u32 i = 0; i < PIPES; i++)
		handler_close_pipe(row, (enum pipe_end)i);
	memcpy(row->pipe, CMSG_DATA(beside), sizeof row->pipe);
	for (u32 i = 0; i < PIPES; i++)
		handler_watch(row, (enum pipe_end)i, EPOLL_CTL_ADD,
		    i == PIPE_IN ? 0 : EPOLLIN);
}

/* The server is about to be ready: children may come.  Their pipes are there
 * before the first client is, whatever the children do; what is missing after
 * a second comes later. */
static void
helper_go(void)
{
	struct pollfd p = { .fd = helper_fd, .events = POLLIN };

	if (helper_fd < 0)
		return;
	sys_epoll_ctl(srv.epoll, EPOLL_CTL_ADD, helper_fd, EPOLLIN,
	    LOOP_HELPER);
	(void)sys_send(helper_fd, "", 1, 0);
	for (u32 i = 0; i < handler_children() && helper_fd >= 0; i++)
		if (poll(&p, 1, 1000) <= 0)
			return;
		else
			helper_take_pipes();
}

/* The end: waits a moment for children that go when they are told. */
static void
helper_stop(void)
{
	struct pollfd p = { .fd = helper_fd, .events = POLLIN };
	char last[8];

	if (helper_fd < 0)
		return;
	sys_shutdown(helper_fd, SHUT_WR);
	while (poll(&p, 1, 400) > 0 && sys_recv(helper_fd, last,
	    sizeof last, 0) > 0)
		continue;
	sys_close(helper_fd);
	helper_fd = -1;
}

FAST_CODE

/* ----- 42. Push socket ---------------------------------------------------
 *
 * Datagrams in, one reply each to senders that have an address.  It is
 * drained before anything else in a turn: its kernel queue holds only
 * net.unix.max_dgram_qlen datagrams, 10 on routers, and the next one hangs a
 * shell script.  Replies never block: one that cannot be delivered at once is
 * dropped and counted.
 */

/* Datagrams and bytes taken at once; then clients get their turn. */
#define PUSH_BUDGET       128
#define PUSH_BUDGET_BYTES 65536

static void
push_reply(int fd, const struct sockaddr_un *to, socklen_t to_n, const char *p,
    size_t n)
{
	if (sys_sendto(fd, p, n, to, to_n) < 0)
		srv.queues.total.replies_lost++;
}

/* A sender without an address learns nothing, so the log does. */
static void
push_log_refusal(const struct asking *q, const struct ucred *who)
{
	struct log_room room;

	log_event(LOG_LEVEL_WARN, "refused", "pid=%d uid=%d reply=%s",
	    (int)who->pid, (int)who->uid, log_quote(&room,
	    (struct str){ q->reply.p, min_size(q->reply.n, 120) }));
}

/* May this sender push?  The kernel says who it is. */
static bool
push_allows(const struct ucred *who)
{
	if (settings.allows == 0 || who->uid == 0)
		return true;
	for (u32 i = 0; i < settings.allow_uids; i++)
		if (settings.allow_uid[i] == who->uid)
			return true;
	for (u32 i = 0; i < settings.allow_gids; i++)
		if (settings.allow_gid[i] == who->gid)
			return true;
	return false;
}

static void
push_handle(size_t n, size_t full_n, const struct sockaddr_un *from,
    socklen_t from_n, const struct ucred *who)
{
	bool bound = from_n > offsetof(struct sockaddr_un, sun_path);
	struct asking *q = asking_begin(from, bound ? from_n : 0);

	service_ask(q, srv.scratch_push, n, full_n, push_allows(who));
	assert(!q->reply.full);
	if (bound)
		push_reply(srv.push, from, from_n, q->reply.p, q->reply.n);
	if (q->r.refusal == REFUSED_DENIED ||
	    (!bound && q->r.refusal != REFUSED_NOT))
		push_log_refusal(q, who);
}

/* Takes what is there, up to the budget, and returns how many it took. */
static u32
push_drain(u32 budget)
{
	size_t bytes = 0;
	u32 k;

	for (k = 0; k < budget && bytes < PUSH_BUDGET_BYTES; k++) {
		struct sockaddr_un from;
		socklen_t from_n;
		struct ucred who;
		ssize_t n = sys_recvfrom(srv.push, srv.scratch_push,
		    srv.push_size, &from, &from_n, &who);

		if (n < 0)
			break;
		push_handle(min_size((size_t)n, srv.push_size), (size_t)n,
		    &from, from_n, &who);
		bytes += (size_t)n;
	}
	return k;
}

/* Answers the senders whose message has met its fate, or whose time is up. */
static void
push_answer_waiters(void)
{
	for (u32 i = 0; i < WSP_WAITERS && srv.queues.waiters > 0; i++) {
		struct waiter *w = &srv.queues.waiter[i];
		const struct awaiting *a = &awaiting[i];
		char text[160];
		struct out o = out_to(text, sizeof text);

		if (!w->used || (w->decided < w->count && a->due > srv.now))
			continue;
		reply_acked(&o, w->acked, w->count,
		    (struct str){ a->ref, a->ref_n });
		push_reply(srv.push, &a->to, a->to_n, o.p, o.n);
		service_end_waiter(w);
	}
}

/* When the next waiter's time is up. */
static int64_t
push_next_waiter(int64_t latest)
{
	for (u32 i = 0; i < WSP_WAITERS && srv.queues.waiters > 0; i++)
		if (srv.queues.waiter[i].used && awaiting[i].due < latest)
			latest = awaiting[i].due;
	return latest;
}

SMALL_CODE

/* ----- 43. Sandbox -------------------------------------------------------
 *
 * What is left to somebody who takes the server over: no core file and no
 * debugger that shows the keys, no new privileges by set-user-ID programs, and
 * from `ready` on only those system calls that the loop, a reload and the end
 * need, each as it needs it: no new connection to anybody, no file opened to
 * be written, no memory that can be executed.  Any other call is answered
 * EPERM and logged.  A few that only an intruder makes are death.
 *
 * The helper of exec: services was forked before, and none of this holds for
 * it or its children: they are the owner's programs, and may be su, sudo or
 * ping.
 */

/* The machine whose calls are filtered, and where a call's result lies in a
 * signal's context.  Another machine goes without a filter, and says so. */
#if defined __x86_64__ && !defined __ILP32__
#define SANDBOX_MACHINE   AUDIT_ARCH_X86_64
#define SANDBOX_RESULT(c) (c)->uc_mcontext.gregs[REG_RAX]
#elif defined __i386__
#define SANDBOX_MACHINE   AUDIT_ARCH_I386
#define SANDBOX_RESULT(c) (c)->uc_mcontext.gregs[REG_EAX]
#elif defined __aarch64__
#define SANDBOX_MACHINE   AUDIT_ARCH_AARCH64
#define SANDBOX_RESULT(c) (c)->uc_mcontext.regs[0]
#elif defined __ARM_EABI__
#define SANDBOX_MACHINE                                                       \
	(__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? AUDIT_ARCH_ARMEB :          \
	AUDIT_ARCH_ARM)
#define SANDBOX_RESULT(c) (c)->uc_mcontext.arm_r0
#elif defined __mips__ && (defined __LP64__ || !defined __mips64)
#define SANDBOX_MACHINE                                                       \
	(AUDIT_ARCH_MIPS | (sizeof(long) == 8 ? __AUDIT_ARCH_64BIT : 0) |     \
	(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __AUDIT_ARCH_LE : 0))
#define SANDBOX_RESULT(c) (c)->uc_mcontext.gregs[2]
#define SANDBOX_FAILED(c) (c)->uc_mcontext.gregs[7] /* and the errno in 2 */
#endif

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1 /* si_code of the filter's signal */
#endif
#ifndef SECCOMP_RET_KILL_PROCESS
#define SECCOMP_RET_KILL_PROCESS 0x80000000U /* before 4.14: the thread */
#endif

/* A call that passes when what `mask` leaves of argument `arg` is `value`. */
struct sandbox_rule {
	u16 nr, arg;
	u32 mask, value;
};

/*
 * What the server may call once it is ready.  A name that some machine does
 * not have, or that the kernel's headers learnt late, stands under #ifdef.
 * The loop's own calls come first: a kernel without a cache of verdicts reads
 * from the top, and the rules are before the list.
 */
static const struct sandbox_rule sandbox_rules[] = {
	{ __NR_sendmsg, 2, MSG_FASTOPEN, 0 },
	{ __NR_sendto, 3, MSG_FASTOPEN, 0 }, /* connects */
	{ __NR_ioctl, 1, ~0U, TIOCOUTQ },
	{ __NR_ioctl, 1, ~0U, FIONREAD },
	/* A reload reads files, and nothing writes one. */
#ifdef __NR_open
	{ __NR_open, 1, O_ACCMODE, O_RDONLY },
#endif
	{ __NR_openat, 2, O_ACCMODE, O_RDONLY },
#ifdef __NR_mmap2
	{ __NR_mmap2, 2, PROT_EXEC, 0 },
#else
	{ __NR_mmap, 2, PROT_EXEC, 0 },
#endif
	{ __NR_mprotect, 2, PROT_EXEC, 0 },
	/* assert() ends in abort(). */
	{ __NR_tgkill, 2, ~0U, SIGABRT },
	{ __NR_tkill, 1, ~0U, SIGABRT },
};

static const u16 sandbox_allowed[] = {
#ifdef __NR_epoll_wait
	__NR_epoll_wait,
#endif
	__NR_epoll_pwait, __NR_recvmsg, __NR_recvfrom,
#ifdef __NR_recv
	__NR_recv, __NR_send,
#endif
#ifdef __NR_socketcall /* all of them in one, for libc on i386 */
	__NR_socketcall,
#endif
	__NR_read, __NR_write, __NR_writev, __NR_epoll_ctl, __NR_accept4,
	__NR_close, __NR_shutdown, __NR_setsockopt, __NR_getsockname,
	__NR_getrandom,

	/* The clock, where the vDSO does not show it. */
#ifdef __NR_clock_gettime
	__NR_clock_gettime, __NR_gettimeofday,
#else /* musl's words for those that end in 2038 */
	__NR_clock_gettime32, __NR_gettimeofday_time32,
#endif
#ifdef __NR_time
	__NR_time,
#endif
#ifdef __NR_clock_gettime64
	__NR_clock_gettime64, __NR_ppoll_time64, __NR_futex_time64,
#endif
	__NR_ppoll,

	/* Files for a reload; the end unlinks. */
#ifdef __NR_open
	__NR_poll, __NR_stat, __NR_lstat, __NR_access, __NR_unlink,
#endif
#ifdef __NR_fstat64
	__NR_stat64, __NR_lstat64, __NR_fstat64, __NR_fstatat64,
	__NR_fcntl64, __NR__llseek,
#endif
#ifdef __NR_fstat
	__NR_fstat,
#endif
#ifdef __NR_newfstatat
	__NR_newfstatat,
#endif
#ifdef __NR_statx
	__NR_statx,
#endif
	__NR_faccessat,
#ifdef __NR_faccessat2
	__NR_faccessat2,
#endif
	__NR_unlinkat, __NR_fcntl, __NR_lseek,

	__NR_getpid, /* for a line of the syslog */

	/* libc's memory and locks; signals, and an end. */
	__NR_brk, __NR_mremap, __NR_munmap, __NR_madvise, __NR_futex,
	__NR_rt_sigaction, __NR_rt_sigprocmask, __NR_rt_sigreturn,
#ifdef __NR_sigreturn
	__NR_sigreturn,
#endif
	__NR_restart_syscall, __NR_gettid, __NR_exit, __NR_exit_group,
#ifdef UNDER_ASAN /* its search for leaks forks a process that traces us */
	__NR_clone, __NR_getdents64, __NR_getppid, __NR_nanosleep, __NR_prctl,
	__NR_ptrace, __NR_readlinkat, __NR_sched_getaffinity,
	__NR_sched_yield, __NR_sigaltstack, __NR_uname, __NR_wait4,
#ifdef __NR_readlink
	__NR_getdents, __NR_readlink,
#endif
#endif
};

/* To call one of these is death: whoever does is not the server any more. */
static const u16 sandbox_deadly[] = {
	__NR_execve,
#ifdef __NR_execveat
	__NR_execveat,
#endif
#ifndef UNDER_ASAN
	__NR_ptrace,
#endif
	__NR_process_vm_readv, __NR_process_vm_writev,
	__NR_init_module, __NR_delete_module, __NR_kexec_load,
#ifdef __NR_finit_module
	__NR_finit_module,
#endif
#ifdef __NR_kexec_file_load
	__NR_kexec_file_load,
#endif
#ifdef __NR_bpf
	__NR_bpf,
#endif
	__NR_perf_event_open, __NR_personality, __NR_reboot,
	__NR_mount, __NR_umount2, __NR_pivot_root, __NR_chroot,
	__NR_setns, __NR_unshare, __NR_swapon, __NR_swapoff,
	__NR_add_key, __NR_request_key, __NR_keyctl, __NR_open_by_handle_at,
#ifdef __NR_iopl
	__NR_iopl, __NR_ioperm,
#endif
#ifdef __NR_userfaultfd
	__NR_userfaultfd,
#endif
#ifdef __NR_io_uring_setup /* calls that no filter sees */
	__NR_io_uring_setup, __NR_io_uring_enter, __NR_io_uring_register,
#endif
#ifdef __NR_fsopen
	__NR_fsopen, __NR_fsmount, __NR_move_mount, __NR_open_tree,
#endif
};

/* Neither a crash nor a debugger may show what the memory holds: to be called
 * before a key is read, and again after setuid(), which forgets it. */
static void
sandbox_hide_memory(void)
{
	struct rlimit none = { 0, 0 };

	prlimit(0, RLIMIT_CORE, &none, NULL);
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

#define SANDBOX_CALLS 16 /* refused calls that are told apart */

/* The numbers of the calls that were refused, in the order of the first time:
 * the signal's handler adds, the loop reads. */
static volatile sig_atomic_t sandbox_call[SANDBOX_CALLS] RESIDENT;
static volatile sig_atomic_t sandbox_calls RESIDENT;

/* Names each refused call once, however often it is tried. */
static void
sandbox_report(void)
{
	static int told;

	for (; told < sandbox_calls; told++)
		log_event(LOG_LEVEL_WARN, "sandbox", "call=%d why=\"it is not "
		    "on the list, EPERM from now on\"",
		    (int)sandbox_call[told]);
}

#ifdef SANDBOX_MACHINE

#define SANDBOX_LISTED (COUNT(sandbox_allowed) + COUNT(sandbox_deadly))

/* Four instructions at the head, six for a rule, one for a call on a list,
 * three at the end. */
#define SANDBOX_OPS (4 + 6 * COUNT(sandbox_rules) + SANDBOX_LISTED + 3)
_Static_assert(SANDBOX_LISTED + 2 <= UINT8_MAX, "no jump leads further");

static void
sandbox_add(struct sock_fprog *f, const struct sock_filter *op, size_t n)
{
	memcpy(f->filter + f->len, op, n * sizeof *op);
	f->len += (unsigned short)n;
}

static void
sandbox_rule(struct sock_fprog *f, const struct sandbox_rule *r)
{
	size_t low = offsetof(struct seccomp_data, args) + r->arg * 8u +
	    (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0);
	const struct sock_filter op[] = {
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r->nr, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (u32)low),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, r->mask),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r->value, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
		    offsetof(struct seccomp_data, nr)),
	};

	sandbox_add(f, op, COUNT(op));
}

/* The calls of a list jump to what is `beyond` instructions behind it. */
static void
sandbox_list(struct sock_fprog *f, const u16 *nr, size_t n, size_t beyond)
{
	while (n-- > 0) {
		const struct sock_filter op = BPF_JUMP(BPF_JMP | BPF_JEQ |
		    BPF_K, *nr++, (u8)(n + beyond), 0);

		sandbox_add(f, &op, 1);
	}
}

/* The program that the kernel runs before each call.  A call in the manner of
 * another machine (int 0x80 of a 64-bit program) has other numbers: death.
 * x32's numbers are ours with a high bit, and on no list. */
static void
sandbox_build(struct sock_fprog *f)
{
	static const struct sock_filter head[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
		    offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SANDBOX_MACHINE, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
		    offsetof(struct seccomp_data, nr)),
	}, end[] = {
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	sandbox_add(f, head, COUNT(head));
	for (size_t i = 0; i < COUNT(sandbox_rules); i++)
		sandbox_rule(f, &sandbox_rules[i]);
	sandbox_list(f, sandbox_allowed, COUNT(sandbox_allowed),
	    COUNT(sandbox_deadly) + 2);
	sandbox_list(f, sandbox_deadly, COUNT(sandbox_deadly), 1);
	sandbox_add(f, end, COUNT(end));
}

/* A call was refused.  The kernel would log it for us (SECCOMP_RET_LOG) only
 * to an audit that routers do not have; so it sends a signal instead, and the
 * answer is made here, where the call would return. */
static void
sandbox_trapped(int number, siginfo_t *info, void *context)
{
	ucontext_t *c = context;
	int i = 0;

	(void)number;
	if (info->si_code != SYS_SECCOMP)
		return; /* somebody's kill -SYS */
	while (i < sandbox_calls && sandbox_call[i] != info->si_syscall)
		i++;
	if (i == sandbox_calls && i < SANDBOX_CALLS) {
		sandbox_call[i] = info->si_syscall;
		sandbox_calls = i + 1;
	}
#ifdef SANDBOX_FAILED
	SANDBOX_FAILED(c) = 1;
	SANDBOX_RESULT(c) = EPERM;
#else
	SANDBOX_RESULT(c) = -EPERM;
#endif
}

/* Returns 0, or -errno of a kernel that has no filters or lets us have none. */
static int
sandbox_filter(void)
{
	struct sock_filter ops[SANDBOX_OPS];
	struct sock_fprog program = { .filter = ops };
	struct sigaction trapped = { .sa_sigaction = sandbox_trapped,
		.sa_flags = SA_SIGINFO | SA_RESTART };

	sandbox_build(&program);
	sigaction(SIGSYS, &trapped, NULL);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ?
	    -errno : 0;
}

#else

static int
sandbox_filter(void)
{
	return -ENOSYS;
}

#endif /* SANDBOX_MACHINE */

/* The server has all that it needs.  Without a filter it goes on. */
static void
sandbox_enter(void)
{
	int err;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (settings.no_sandbox)
		return;
	err = sandbox_filter();
	if (err < 0)
		log_event(LOG_LEVEL_WARN, "sandbox", "why=\"no filter of "
		    "system calls here: %s\"", strerror(-err));
	else
		log_event(LOG_LEVEL_DEBUG, "sandbox", "calls=%zu",
		    COUNT(sandbox_rules) + COUNT(sandbox_allowed));
}

FAST_CODE

/* ----- 44. Loop ----------------------------------------------------------
 *
 * The order of one turn: wait; the push socket; clients and newcomers; the
 * push socket again, if its senders may have refilled it; then who is
 * owed something is written to, those few first whose message goes to few,
 * the others in slices, between which the push socket is looked at; then
 * deadlines; and the dead are freed.
 */
#define LOOP_EVENTS     256
#define LOOP_SLICE      64 /* connections written to between two looks */
#define LOOP_ACCEPTS    64 /* newcomers a turn */
#define LOOP_HANDSHAKES 2  /* steps of TLS handshakes a turn, 1 ms each */
#define LOOP_FULL_MS    250 /* until we look again whether somebody has been
                             * in the way of newcomers for too long */

/* What epoll carries for descriptors that are no connections, where those
 * have a slot. */
#define LOOP_PUSH     (UINT32_MAX - 1)
#define LOOP_SIGNAL   (UINT32_MAX - 2)
#define LOOP_LISTENER (UINT32_MAX - 256) /* + its number */

static void
loop_listen(bool on)
{
	if (srv.listening == on)
		return;
	srv.listening = on;
	for (u32 i = 0; i <= LISTEN_METRICS; i++)
		if (listener_is_used(i))
			sys_epoll_ctl(srv.epoll, EPOLL_CTL_MOD,
			    settings.listen[i].fd, on ? EPOLLIN : 0,
			    LOOP_LISTENER + i);
}

/* Nobody is taken for a while. */
static void
loop_rest(int64_t ms)
{
	loop_listen(false);
	srv.listen_again = srv.now + ms;
}

/* Takes newcomers.  Without a row for one more the listener rests, and the
 * kernel's backlog is the queue. */
static void
loop_accept(const struct listener *l)
{
	for (int k = 0; k < LOOP_ACCEPTS; k++) {
		struct sockaddr_storage from;
		socklen_t from_n = sizeof from;
		int fd;

		if (srv.live == srv.conns) {
			if (!conn_make_way())
				loop_rest(LOOP_FULL_MS);
			return;
		}
		fd = sys_accept(l->fd, &from, &from_n);
		if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM ||
		    fd == -ENOBUFS) {
			log_event(LOG_LEVEL_ERROR, "accept", "why=\"%s\" "
			    "retry=1s", strerror(-fd));
			loop_rest(1000);
			return;
		}
		if (fd == -EAGAIN)
			return;
		if (fd >= 0)
			conn_add(fd, l, &from);
	}
}

static int64_t
loop_sooner(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* How long the kernel may keep us. */
static int
loop_timeout(void)
{
	int most = log_to.floods > 0 ? 1000 : 60000;
	int64_t next;

	if (srv.dirties > 0 || srv.urgents > 0)
		return 0;
	for (u32 i = 1; i <= WSP_BUFFERS; i++)
		if (buffers[i].taken)
			most = 1000;
	if (srv.first_waiting != NONE)
		most = LOOP_FULL_MS;
	next = deadline_next(&srv.deadlines, srv.now + most);
	next = deadline_next(&srv.away, next);
	next = push_next_waiter(next);
	next = loop_sooner(next, srv.token_end * INT64_C(1000));
	if (srv.queues.store.mortal > 0)
		next = loop_sooner(next, srv.expire_at);
	if (srv.listen_again != 0)
		next = loop_sooner(next, srv.listen_again);
	if (srv.stop_at != 0)
		next = loop_sooner(next, srv.stop_at);
	return next <= srv.now ? 0 : (int)(next - srv.now);
}

static void serve_signal(int number);

static void
loop_signals(void)
{
	struct signalfd_siginfo info;

	while (read(srv.signals, &info, sizeof info) == sizeof info)
		serve_signal((int)info.ssi_signo);
}

static void
loop_event(const struct epoll_event *ev)
{
	u32 what = (u32)ev->data.u64;

	if (what == LOOP_PUSH)
		return;
	if (what == LOOP_SIGNAL)
		loop_signals();
	else if (what == LOOP_HELPER)
		helper_take_pipes();
	else if (what >= LOOP_HANDLER)
		handler_ready(what - LOOP_HANDLER, ev->events);
	else if (what >= LOOP_LISTENER)
		loop_accept(&settings.listen[what - LOOP_LISTENER]);
	else
		conn_event(ev->data.u64, ev->events);
}

/* Everybody who is owed something now, in slices.  Who comes on the list
 * meanwhile waits for the next turn.  The looks at the push socket have one
 * budget together: a flood to thousands must not hold up newcomers. */
static void
loop_flush(void)
{
	u32 left = srv.dirties, budget = PUSH_BUDGET;

	conn_flush_urgent();
	while (left > 0) {
		u32 slice = left < LOOP_SLICE ? left : LOOP_SLICE;

		conn_flush_dirty(slice);
		left -= slice;
		if (left > 0)
			budget -= push_drain(budget);
		conn_flush_urgent();
	}
}

static void
loop_turn(void)
{
	struct epoll_event ev[LOOP_EVENTS];
	int n = sys_epoll_wait(srv.epoll, ev, LOOP_EVENTS, loop_timeout());
	bool pushed = false;
	u32 taken = 0;

	srv.now = sys_clock_ms(CLOCK_MONOTONIC);
	srv.handshakes_left = LOOP_HANDSHAKES;
	for (int i = 0; i < n; i++)
		pushed |= (u32)ev[i].data.u64 == LOOP_PUSH;
	if (pushed)
		taken = push_drain(PUSH_BUDGET);
	for (int i = 0; i < n; i++)
		loop_event(&ev[i]);
	if (taken > 1 || (pushed && n > 1))
		(void)push_drain(PUSH_BUDGET);
	loop_flush();
	conn_deadlines();
	service_sessions();
	service_expire();
	service_tokens();
	push_answer_waiters();
	tls_tick(srv.now);
	log_tick(srv.now);
	conn_free_dead();
	sandbox_report();
	if (!srv.listening && !srv.stopping && srv.now >= srv.listen_again) {
		srv.listen_again = 0;
		loop_listen(true);
	}
}

SMALL_CODE

/* ----- 45. Option values -------------------------------------------------
 *
 * What stands behind an option that is more than a number or a text: an
 * address, an origin, an account, a service.  Each is read into Settings; what
 * is wrong with it is a sentence.
 */

/* Reads [ADDR:]PORT, ADDR being 127.0.0.1 or [::1]; without it all addresses
 * of both kinds.  False when it is none. */
static bool
serve_address(struct sockaddr_storage *to, const char *text)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)(void *)to;
	const char *colon = strrchr(text, ':');
	struct str host = { text, colon ? (size_t)(colon - text) : 0 };
	int64_t port = text_number(text_of(colon ? colon + 1 : text), 65535);

	*to = (struct sockaddr_storage){ .ss_family = AF_INET6 };
	if (port < 0)
		return false;
	v6->sin6_port = htobe16((u16)port);
	if (!colon)
		return true;
	if (text[0] != '[') {
		to->ss_family = AF_INET; /* the port lies at the same place */
		return http_ip((u8 *)&v4->sin_addr, AF_INET, host);
	}
	if (host.n < 2 || host.p[host.n - 1] != ']')
		return false;
	host = (struct str){ host.p + 1, host.n - 2 };
	return http_ip((u8 *)&v6->sin6_addr, AF_INET6, host);
}

static const char *
opt_address(const char *value)
{
	struct sockaddr_storage a;

	return serve_address(&a, value) ? NULL :
	    "it takes [ADDR:]PORT, such as 8443, 127.0.0.1:8443 or [::1]:8443";
}

static const char *
opt_listen(const char *value, bool is_tls)
{
	const char *why = opt_address(value);

	if (why)
		return why;
	settings.listen[settings.listeners++] = (struct listener){
		.text = value, .tls = is_tls, .fd = -1 };
	return NULL;
}

static const char *
opt_listen_tls(const char *value)
{
	return opt_listen(value, true);
}

static const char *
opt_listen_plain(const char *value)
{
	return opt_listen(value, false);
}

static const char *
opt_push_mode(const char *value)
{
	const char *p = value;
	u32 mode = 0;

	for (; *p >= '0' && *p <= '7' && mode <= 0777; p++)
		mode = mode << 3 | (u32)(*p - '0');
	if (p == value || *p || mode > 0777)
		return "it takes an octal mode, such as 0660";
	settings.push_mode = mode;
	return NULL;
}

/* Which of the words between bars it is, from 0 on; -1: none. */
static int
opt_word(const char *words, struct str word)
{
	struct str rest = text_of(words), one;

	for (int i = 0; split_next(&rest, '|', &one); i++)
		if (str_eq(one, word))
			return i;
	return -1;
}

static const char *
opt_origin(const char *value)
{
	if (!http_origin_valid(text_of(value)))
		return "it takes an origin such as https://example.org:8443, "
		    "same-host or *";
	settings.origin[settings.origins++] = text_of(value);
	return NULL;
}

static const char *
opt_token_key(const char *value)
{
	settings.token_key[settings.token_keys++] = value;
	return NULL;
}

/* /etc/passwd and /etc/group as they were read last.  Read by hand: libc's
 * way allocates, and a static program does not have it. */
static char accounts[2][65536];

/* Finds a user (in passwd) or a group: the number, and what stands behind
 * it, the number of the user's group or the names of the group's members. */
static bool
account_find(bool group, struct str name, u32 *id, struct str *behind)
{
	char *text = accounts[group];
	ssize_t n = sys_read_file(group ? "/etc/group" : "/etc/passwd", text,
	    sizeof accounts[0]);
	struct str rest = { text, n < 0 ? 0 : (size_t)n }, line, field[4];

	while (split_next(&rest, '\n', &line)) {
		int64_t number;
		int k = 0;

		while (k < 4 && split_next(&line, ':', &field[k]))
			k++;
		if (k < 4 || !str_eq(field[0], name))
			continue;
		number = text_number(field[2], UINT32_MAX);
		*id = (u32)number;
		*behind = field[3];
		return number >= 0;
	}
	return false;
}

static const char *
opt_allow_user(u32 id)
{
	if (settings.allow_uids == SETTINGS_ALLOWED)
		return "these are too many users";
	settings.allow_uid[settings.allow_uids++] = id;
	return NULL;
}

/* A group: who has it as the primary one, and its members by name. */
static const char *
opt_allow_group(struct str name)
{
	struct str members, member, ignored;
	const char *why = NULL;
	u32 id;

	if (!account_find(true, name, &id, &members))
		return "there is no such group in /etc/group";
	if (settings.allow_gids == SETTINGS_ALLOWED)
		return "these are too many groups";
	settings.allow_gid[settings.allow_gids++] = id;
	while (!why && split_next(&members, ',', &member))
		if (account_find(false, member, &id, &ignored))
			why = opt_allow_user(id);
	return why;
}

/* UID or @GROUP */
static const char *
opt_push_allow(const char *value)
{
	int64_t uid;

	if (settings.allows++ == 0)
		settings.allow_uids = settings.allow_gids = 0;
	if (value[0] == '@')
		return opt_allow_group(text_of(value + 1));
	uid = text_number(text_of(value), UINT32_MAX);
	if (uid < 0)
		return "it takes a user's number, or @ and a group's name";
	return opt_allow_user((u32)uid);
}

#define OVERFLOW_WORDS "drop-oldest|refuse|close"
#define ACK_WORDS      "pong|sent"

/* What is wrong, when it takes more than a literal to say it. */
static char opt_why[96];

/* One `name=value` behind a service's handler. */
static const char *
opt_service_option(struct service *s, struct str name, struct str value)
{
	enum { PROTOCOL, ORIGIN, MAX, ACK, OVERFLOW, AUTH };
	static const char *const takes[] = { "1 to 256 bytes, 4 times at most",
		"an origin, same-host or *, 4 times at most",
		"a number from 1 on", ACK_WORDS, OVERFLOW_WORDS, "only 1" };
	int which = opt_word("protocol|origin|max|ack|overflow|auth", name);
	int word;
	bool good = false;
	int64_t v;

	switch (which) {
	case PROTOCOL:
		good = value.n > 0 && value.n <= SERVICE_PROTOCOL &&
		    s->protocols < SERVICE_PROTOCOLS;
		if (good)
			s->protocol[s->protocols++] = value;
		break;
	case ORIGIN:
		good = http_origin_valid(value) &&
		    s->origins < SERVICE_PROTOCOLS;
		if (good)
			s->origin[s->origins++] = value;
		break;
	case MAX:
		v = text_number(value, 1000000);
		good = v > 0;
		s->max = (u32)v;
		break;
	case ACK:
		word = opt_word(ACK_WORDS, value);
		good = s->has_ack = word >= 0;
		s->ack_sent = word == 1;
		break;
	case OVERFLOW:
		word = opt_word(OVERFLOW_WORDS, value);
		good = s->has_overflow = word >= 0;
		s->overflow = (enum overflow)word;
		break;
	case AUTH:
		good = s->auth = str_is(value, "1");
		break;
	default:
		return "a service's options are protocol=, origin=, max=, "
		    "ack=, overflow= and auth=1";
	}
	return good ? NULL : text_print(opt_why, sizeof opt_why,
	    "%.*s= takes %s", STR_ARGS(name), takes[which]);
}

/* exec:COMMAND, words between white space */
static bool
opt_command_valid(struct str command)
{
	u32 words = 0;
	bool in = false;

	for (size_t i = 0; i < command.n; i++) {
		bool white = command.p[i] == ' ' || command.p[i] == '\t';

		words += !white && !in;
		in = !white;
	}
	return words > 0 && words <= HANDLER_WORDS && command.n < HANDLER_TEXT;
}

static const char *
opt_service_handler(struct service *s, struct str word)
{
	int simple = opt_word("main|echo|none", word);
	bool is_unix = str_begins(word, "unix:");

	s->handler = is_unix ? HANDLER_UNIX : HANDLER_EXEC;
	if (is_unix || str_begins(word, "exec:")) {
		s->program = text_from(word, 5);
		if (is_unix)
			return s->program.n > 0 && s->program.n <
			    sizeof ((struct sockaddr_un *)0)->sun_path ? NULL :
			    "unix: takes a path of 1 to 107 bytes";
		return opt_command_valid(s->program) ? NULL :
		    "exec: takes a command of 1 to 32 words and less than "
		    "1024 bytes";
	}
	s->handler = (enum handler)simple;
	return simple >= 0 ? NULL : "a service's handler is main, echo, none, "
	    "unix:PATH or exec:COMMAND";
}

/* NAME[=HANDLER][,option...] */
static const char *
opt_service(const char *value)
{
	struct str rest = text_of(value), piece, name;
	struct service *s = &settings.service[settings.services];
	const char *why = NULL;

	(void)split_next(&rest, ',', &piece);
	*s = (struct service){ .text = value, .name = piece };
	(void)split_next(&piece, '=', &s->name);
	if (!service_name_valid(s->name))
		return "a service's name is 1 to 64 of A-Z a-z 0-9 _ .";
	for (u32 i = 0; i < settings.services; i++)
		if (str_eq(settings.service[i].name, s->name))
			return "a service is given twice";
	if (piece.p)
		why = opt_service_handler(s, piece);
	while (!why && rest.p) {
		(void)split_next(&rest, ',', &piece);
		(void)split_next(&piece, '=', &name);
		why = opt_service_option(s, name, piece.p ? piece : STR(""));
	}
	if (!why && s->auth && s->program.n == 0)
		why = "auth=1 needs a handler that answers: unix:PATH or "
		    "exec:COMMAND";
	settings.services++;
	return why;
}

/* ----- 46. Options -------------------------------------------------------
 *
 * `wspush serve`'s options: one table for the command line and the settings
 * file. A setting that can be given several times collects; the command
 * line's list replaces the file's. What is wrong is a sentence in `refusal`.
 */

enum option_kind { OPT_NUMBER, OPT_TEXT, OPT_FLAG, OPT_WORD, OPT_CALL,
	OPT_LIST };

struct serve_option {
	const char *name;
	u8 kind;               /* enum option_kind */
	u16 min;               /* of a number */
	u32 max;               /* the same, or how often a list is given */
	void *to;              /* const char *, bool, or u32; a list's length */
	union {
		u32 value;     /* of a number that is not given */
		const char *(*call)(const char *value);
	};
	const char *shape;     /* its value, as in the help; of OPT_WORD all */
};

static int serve_cannot(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

static int
serve_cannot(const char *format, ...)
{
	struct out o = out_to(refusal, sizeof refusal - 1);
	va_list ap;

	va_start(ap, format);
	out_format(&o, format, ap);
	va_end(ap);
	refusal[o.n] = '\0';
	return 1;
}

/* What a call could not do, and errno's word for why. */
static int
serve_failed(const char *what, const char *which)
{
	return serve_cannot("%s %s: %s", what, which, strerror(errno));
}

static struct {
	const char *config;
	bool memory, check;
	int argc;
	char **argv;
	u32 pending;           /* connection rows beside the open ones */
	dev_t push_dev;        /* the push socket as we bound it */
	ino_t push_ino;
} serve RESIDENT;

/* The settings file stays in memory, for settings point into it: as it was
 * at start, and as it was at the last reload that was good. */
static char serve_file[3][16384];
static int serve_file_now = -1, serve_file_next RESIDENT;

#define MAX_SECONDS 999999999

#define NUMBER(field, least, most, otherwise)                                 \
	OPT_NUMBER, .to = &settings.field, .min = least, .max = most,         \
	.value = otherwise, .shape = "a number"

#define LIST(field, most, taker)                                              \
	OPT_LIST, .to = &settings.field, .max = most, .call = taker

static const struct serve_option serve_options[] = {
	{ "listen", LIST(listeners, SETTINGS_LISTENERS, opt_listen_tls),
		.shape = "[ADDR:]PORT" },
	{ "listen-plain", LIST(listeners, SETTINGS_LISTENERS,
		opt_listen_plain), .shape = "[ADDR:]PORT" },
	{ "metrics", OPT_TEXT, .to = &settings.listen[LISTEN_METRICS].text,
		.call = opt_address, .shape = "[ADDR:]PORT" },
	{ "push", OPT_TEXT, .to = &settings.push_path, .shape = "PATH" },
	{ "push-mode", OPT_CALL, .to = &settings.push_mode,
		.call = opt_push_mode, .shape = "MODE" },
	{ "push-group", OPT_TEXT, .to = &settings.push_group,
		.shape = "GROUP" },
	{ "push-allow", LIST(allows, SETTINGS_ALLOWED * 2, opt_push_allow),
		.shape = "UID|@GROUP" },
	{ "cert", OPT_TEXT, .to = &settings.cert, .shape = "FILE" },
	{ "key", OPT_TEXT, .to = &settings.key, .shape = "FILE" },
	{ "state", OPT_TEXT, .to = &settings.state, .shape = "DIR" },
	{ "service", LIST(services, SETTINGS_SERVICES, opt_service),
		.shape = "NAME[=HANDLER][,...]" },
	{ "origin", LIST(origins, SETTINGS_ORIGINS, opt_origin),
		.shape = "ORIGIN" },
	{ "duplicate", OPT_WORD, .to = &settings.duplicate_reject,
		.shape = "takeover|reject" },
	{ "max-sockets", NUMBER(max_sockets, 1, 1000000, WSP_SOCKETS) },
	{ "max-per-ip", NUMBER(max_per_ip, 0, 1000000, 0) },
	{ "queue-messages", NUMBER(queue_messages, 1, 65535,
		WSP_QUEUE_MESSAGES) },
	{ "queue-bytes", NUMBER(queue_bytes, 1, 1 << 30, WSP_QUEUE_BYTES) },
	{ "overflow", OPT_WORD, .to = &settings.overflow,
		.shape = OVERFLOW_WORDS },
	{ "store-bytes", NUMBER(store_bytes, 1024, 1 << 30, WSP_STORE_BYTES) },
	{ "max-message", NUMBER(max_message, 1, 16 << 20, WSP_MAX_MESSAGE) },
	{ "max-inbound", NUMBER(max_inbound, 125, 16 << 20, WSP_MAX_INBOUND) },
	{ "retained", NUMBER(retained, 0, SETTINGS_RETAINED, 32) },
	{ "send-buffer", NUMBER(send_buffer, 2048, 16 << 20, 32768) },
	{ "session-ttl", NUMBER(session_ttl, 0, MAX_SECONDS, 300) },
	{ "ping-interval", NUMBER(ping_interval, 0, MAX_SECONDS, 25) },
	{ "pong-timeout", NUMBER(pong_timeout, 1, MAX_SECONDS, 10) },
	{ "handshake-timeout", NUMBER(handshake_timeout, 1, MAX_SECONDS, 10) },
	{ "ack", OPT_WORD, .to = &settings.ack_sent, .shape = ACK_WORDS },
	{ "token-key", LIST(token_keys, SETTINGS_TOKEN_KEYS, opt_token_key),
		.shape = "FILE" },
	{ "token-audience", OPT_TEXT, .to = &settings.token_audience,
		.shape = "A" },
	{ "token-in-url", OPT_FLAG, .to = &settings.token_in_url },
	{ "no-page", OPT_FLAG, .to = &settings.no_page },
	{ "wait", NUMBER(wait, 0, MAX_SECONDS, 0) },
	{ "user", OPT_TEXT, .to = &settings.user, .shape = "USER[:GROUP]" },
	{ "no-sandbox", OPT_FLAG, .to = &settings.no_sandbox },
	{ "config", OPT_TEXT, .to = &serve.config, .shape = "FILE" },
	{ "memory", OPT_FLAG, .to = &serve.memory },
	{ "check", OPT_FLAG, .to = &serve.check },
	{ "log-level", OPT_WORD, .to = &log_to.level,
		.shape = "error|warn|info|debug" },
	{ "syslog", OPT_FLAG, .to = &settings.syslog },
#undef NUMBER
#undef LIST
};

static const struct serve_option *
serve_find_option(struct str name)
{
	for (u32 i = 0; i < COUNT(serve_options); i++)
		if (str_is(name, serve_options[i].name))
			return &serve_options[i];
	return NULL;
}

/* Takes one value, NULL when there is none; the sentence says what is wrong
 * with it. */
static const char *
serve_set(const struct serve_option *o, const char *value)
{
	int word;
	int64_t v;

	if (o->kind == OPT_FLAG ? value != NULL : !value || !*value)
		return text_print(opt_why, sizeof opt_why, "it takes %s",
		    o->kind == OPT_FLAG ? "no value" : o->shape);
	if (o->kind == OPT_LIST && *(u32 *)o->to == o->max)
		return text_print(opt_why, sizeof opt_why,
		    "it can be given %u times at most", o->max);
	switch ((enum option_kind)o->kind) {
	case OPT_FLAG:
		*(bool *)o->to = true;
		return NULL;
	case OPT_TEXT:
		*(const char **)o->to = value;
		return o->call ? o->call(value) : NULL;
	case OPT_NUMBER:
		v = text_number(text_of(value), o->max);
		if (v < o->min)
			return text_print(opt_why, sizeof opt_why,
			    "it takes a number from %u to %u", o->min, o->max);
		*(u32 *)o->to = (u32)v;
		return NULL;
	case OPT_WORD:
		word = opt_word(o->shape, text_of(value));
		if (word < 0)
			return text_print(opt_why, sizeof opt_why,
			    "it takes %s", o->shape);
		*(u32 *)o->to = (u32)word;
		return NULL;
	case OPT_LIST:
	case OPT_CALL:
		break;
	}
	return o->call(value);
}

/* The command line is read three times: for the settings file, for the lists
 * that replace the file's, and for what it says. */
enum option_pass { PASS_CONFIG, PASS_LISTS, PASS_VALUES };

static int
serve_read_arguments(int argc, char **argv, enum option_pass pass)
{
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i], *end = arg + strcspn(arg, "=");
		const char *value = *end ? end + 1 : NULL, *why;
		const struct serve_option *o = NULL;

		if (arg[0] == '-' && arg[1] == '-')
			o = serve_find_option((struct str){ arg + 2,
			    (size_t)(end - arg) - 2 });
		if (!o)
			return serve_cannot("unknown option %s; see wspush "
			    "help serve", arg);
		if (!value && o->kind != OPT_FLAG)
			value = argv[++i];
		if (pass == PASS_LISTS && o->kind == OPT_LIST)
			*(u32 *)o->to = 0;
		if (pass != (o->to == &serve.config ? PASS_CONFIG :
		    PASS_VALUES))
			continue;
		why = serve_set(o, value);
		value = value ? value : "without a value";
		if (why)
			return serve_cannot("--%s %.*s: %s", o->name,
			    (int)min_size(strlen(value), 80), value, why);
	}
	return 0;
}

/* One line of the settings file, `name value`, which may be changed. */
static const char *
serve_read_line(char *line)
{
	size_t n = strlen(line), name_n;
	const struct serve_option *o;
	char *value;

	while (n > 0 && strchr(" \t\r", line[n - 1]))
		line[--n] = '\0';
	line += strspn(line, " \t");
	if (*line == '\0' || *line == '#')
		return NULL;
	name_n = strcspn(line, " \t");
	value = line + name_n + strspn(line + name_n, " \t");
	o = serve_find_option((struct str){ line, name_n });
	if (!o || o->to == &serve.config)
		return "no option has this name";
	return serve_set(o, *value ? value : NULL);
}

static int
serve_read_file(const char *path)
{
	char *line, *next;
	const char *why;
	ssize_t n;

	serve_file_next = serve_file_now < 0 ? 0 : 1 + (serve_file_now == 1);
	next = serve_file[serve_file_next];
	n = sys_read_file(path, next, sizeof serve_file[0]);
	errno = (int)-n;
	if (n < 0)
		return serve_failed("--config", path);
	next[n] = '\0';
	for (int number = 1; next; number++) {
		line = next;
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		why = serve_read_line(line);
		if (why)
			return serve_cannot("%s:%d: %.*s: %s", path, number,
			    (int)min_size(strlen(line), 60), line, why);
	}
	return 0;
}

static void
serve_defaults(void)
{
	settings = (struct settings){ .listen[LISTEN_METRICS].fd = -1,
		.push_path = WSP_PUSH_PATH,
		.push_mode = 0660, .state = WSP_STATE_DIR };
	log_to.level = LOG_LEVEL_INFO;
	for (u32 i = 0; i < COUNT(serve_options); i++)
		if (serve_options[i].kind == OPT_NUMBER)
			*(u32 *)serve_options[i].to = serve_options[i].value;
}

/* What tools/help.txt says of serve, and what holds without an option. */
static void
serve_print_help(struct str text)
{
	struct str line, name;

	serve_defaults();
	while (text.n > 0 && split_next(&text, '\n', &line)) {
		struct str rest = text_from(line, min_size(line.n, 4));
		const struct serve_option *o;

		print_str(line);
		(void)split_next(&rest, ' ', &name);
		o = serve_find_option(name);
		if (o && o->kind == OPT_NUMBER)
			print(" (%u)", *(u32 *)o->to);
		else if (o && o->kind == OPT_TEXT && *(const char **)o->to)
			print(" (%s)", *(const char **)o->to);
		print("\n");
	}
}

/* What one option cannot know of another.  NULL: all is well. */
static const char *
serve_check(void)
{
	if (settings.queue_bytes < settings.max_message)
		return "--queue-bytes is less than --max-message";
	if (settings.store_bytes < settings.max_message +
	    FRAME_HEAD_MAX + WSP_MAX_KEY)
		return "--store-bytes has no room for one --max-message";
	if (!settings.cert != !settings.key)
		return "--cert and --key go together";
	if (settings.token_audience &&
	    strlen(settings.token_audience) > TOKEN_TEXT)
		return "--token-audience is longer than 256 bytes";
	if (strlen(settings.push_path) >
	    sizeof ((struct sockaddr_un *)0)->sun_path - 1)
		return "--push is longer than 107 bytes";
	return NULL;
}

/* File first, then the command line, which wins. */
static int
serve_read_settings(int argc, char **argv)
{
	const char *why;

	serve_defaults();
	if (serve_read_arguments(argc, argv, PASS_CONFIG) != 0 ||
	    (serve.config && serve_read_file(serve.config) != 0) ||
	    serve_read_arguments(argc, argv, PASS_LISTS) != 0 ||
	    serve_read_arguments(argc, argv, PASS_VALUES) != 0)
		return 1;
	if (settings.listeners == 0)
		(void)opt_listen("8443", true);
	if (settings.services == 0)
		(void)opt_service("main_ws_service");
	for (u32 i = 0; i < settings.services; i++)
		if (!settings.service[i].has_ack)
			settings.service[i].ack_sent = settings.ack_sent;
	why = serve_check();
	return why ? serve_cannot("%s", why) : 0;
}

/* ----- 47. Memory --------------------------------------------------------
 *
 * The arena: every table and buffer is a row of one list, from which --memory
 * prints and the start maps. After `ready` nothing is allocated, and pages
 * that are never used are never touched.
 */

static bool
serve_has_tls(void)
{
	for (u32 i = 0; i < settings.listeners; i++)
		if (settings.listen[i].tls)
			return true;
	return false;
}

/* What the options and limits say of lengths and numbers. */
enum memory { MEMORY_ONE, MEMORY_SOCKETS, MEMORY_BUCKETS, MEMORY_ENTRIES,
	MEMORY_TAGS, MEMORY_TAG_BUCKETS, MEMORY_MESSAGES, MEMORY_RING,
	MEMORY_CONNS, MEMORY_KEYS, MEMORY_TLS, MEMORY_RETAINED, MEMORY_BUFFERS,
	MEMORY_BUFFER, MEMORY_OUT, MEMORY_PUSH, MEMORY_REPLIES, MEMORY_LINE,
	MEMORY_LINES };

static u32 memory_number[MEMORY_LINES + 1] RESIDENT;

static void *serve_tls_memory RESIDENT;

/* The arena: a row is `count` times `each` times `bytes`. */
static const struct memory_row {
	const char *what;
	void *to;         /* where its place is written */
	u16 bytes;
	u8 each, count;   /* enum memory */
} memory_rows[] = {
#define ROW(what, bytes, each, count, to)                                     \
	{ what, &(to), bytes, MEMORY_##each, MEMORY_##count }
	ROW("socket rows", sizeof(struct sock), ONE, SOCKETS, srv.sockets.row),
	ROW("long ids", WSP_MAX_ID, ONE, SOCKETS, srv.sockets.long_id),
	ROW("id index", sizeof(u32), ONE, BUCKETS, srv.sockets.bucket),
	ROW("queues", sizeof(struct queue), ONE, SOCKETS, srv.queues.queue),
	ROW("drop counts", sizeof(u32), ONE, SOCKETS, srv.queues.drops),
	ROW("queue entries", sizeof(struct entry), ENTRIES, SOCKETS,
	    srv.queues.ring),
	ROW("session ends", sizeof(struct deadline), ONE, SOCKETS,
	    srv.away.row),
	ROW("tag rows", sizeof(struct tag), ONE, TAGS, srv.tags.row),
	ROW("tag texts", TAG_TEXT, ONE, TAGS, srv.tags.text),
	ROW("tag index", sizeof(u32), ONE, TAG_BUCKETS, srv.tags.bucket),
	ROW("selected rows", sizeof(u32), ONE, SOCKETS, srv.selected),
	ROW("messages", sizeof(struct message), ONE, MESSAGES,
	    srv.queues.store.row),
	ROW("message bytes", 1, RING, ONE, srv.queues.store.bytes),
	ROW("connections", sizeof(struct conn), ONE, CONNS, srv.conn),
	ROW("their deadlines", sizeof(struct deadline), ONE, CONNS,
	    srv.deadline_rows),
	ROW("their lists", sizeof(u32) * 4, ONE, CONNS, srv.dirty),
	ROW("TLS keys", sizeof(struct record_keys), ONE, KEYS, srv.keys),
	ROW("TLS handshakes, sessions", 1, TLS, ONE, serve_tls_memory),
	ROW("retained values", sizeof(struct retained), ONE, RETAINED,
	    srv.retained),
	ROW("buffers", 1, BUFFER, BUFFERS, srv.buffer_bytes),
	ROW("input", 1, BUFFER, ONE, srv.scratch_in),
	ROW("output", 1, OUT, ONE, srv.scratch_out),
	ROW("answers", 1, BUFFER, ONE, srv.scratch_answer),
	ROW("datagrams", 1, PUSH, ONE, srv.scratch_push),
	ROW("replies", 1, REPLIES, ONE, srv.scratch_reply),
	ROW("lines of exec: services", 1, LINE, LINES, handler_lines),
#undef ROW
};

/* What the options make of the rows. */
static void
memory_count(void)
{
	/* An answer as long as a message from the client, sealed. */
	u32 buffer = settings.max_inbound + FRAME_HEAD_MAX + 4 + 125;
	/* A head that lacks its end, and the record that brings it. */
	u32 http = WSP_MAX_HTTP_HEAD + RECORD_MAX;
	u32 sockets = settings.max_sockets, buckets = sock_buckets(sockets);
	u32 conns = sockets + (serve.pending > 0 ? serve.pending :
	    WSP_PENDING);
	u32 *n = memory_number;

	buffer += (buffer / RECORD_MAX_PLAIN + 1) * RECORD_OVERHEAD_MAX;
	buffer = (buffer < http ? http : buffer) + 256;
	n[MEMORY_ONE] = 1;
	n[MEMORY_SOCKETS] = sockets;
	n[MEMORY_BUCKETS] = buckets;
	n[MEMORY_ENTRIES] = settings.queue_messages;
	n[MEMORY_TAGS] = sockets * WSP_MAX_TAGS;
	n[MEMORY_TAG_BUCKETS] = buckets * 2;
	n[MEMORY_MESSAGES] = settings.store_bytes / STORE_BYTES_PER_ROW + 16;
	n[MEMORY_RING] = (u32)store_ring_size(settings.store_bytes,
	    settings.max_message + FRAME_HEAD_MAX + WSP_MAX_KEY);
	n[MEMORY_CONNS] = conns;
	if (serve_has_tls()) {
		n[MEMORY_KEYS] = conns;
		n[MEMORY_TLS] = (u32)tls_memory(WSP_HANDSHAKES, conns);
	}
	n[MEMORY_RETAINED] = settings.retained;
	n[MEMORY_BUFFERS] = WSP_BUFFERS;
	n[MEMORY_BUFFER] = buffer;
	n[MEMORY_OUT] = SCRATCH_OUT + buffer;
	n[MEMORY_PUSH] = settings.max_message + WSP_MAX_REQUEST_LINE + 2;
	n[MEMORY_REPLIES] = WSP_MAX_LIST * 2 + 256;
	n[MEMORY_LINE] = HANDLER_LINE;
	n[MEMORY_LINES] = handler_children() * 2;
}

static size_t
memory_each(const struct memory_row *m)
{
	return (size_t)m->bytes * memory_number[m->each];
}

/* More than 32 bits can say, where the options ask for it. */
static u64
memory_size(const struct memory_row *m)
{
	u64 n = (u64)memory_each(m) * memory_number[m->count];

	return (n + 63) & ~(u64)63;
}

static u64
memory_total(void)
{
	u64 total = 0;

	memory_count();
	for (u32 i = 0; i < COUNT(memory_rows); i++)
		total += memory_size(&memory_rows[i]);
	return total;
}

static int
serve_print_memory(void)
{
	u64 total = memory_total();

	print("%-26s %12s %10s %14s\n", "what", "bytes each", "rows", "bytes");
	for (u32 i = 0; i < COUNT(memory_rows); i++) {
		const struct memory_row *m = &memory_rows[i];

		if (memory_size(m) > 0)
			print("%-26s %12zu %10u %14llu\n", m->what,
			    memory_each(m), memory_number[m->count],
			    memory_size(m));
	}
	print("%-26s %12s %10s %14llu\n", "reserved in all", "", "", total);
	print("A page that is never used is never touched and costs "
	    "nothing.\n");
	return 0;
}

/* Maps the arena and hands out its rows.  Never used pages are never
 * touched: the kernel gives them as zeroes when they are. */
static int
serve_take_memory(void)
{
	u64 total = memory_total();
	u8 *p = MAP_FAILED;

	if (total <= PTRDIFF_MAX)
		p = mmap(NULL, (size_t)total, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return serve_cannot("there are no %llu bytes of memory; see "
		    "--memory", total);
	for (u32 i = 0; i < COUNT(memory_rows); i++) {
		*(void **)memory_rows[i].to = p;
		p += (size_t)memory_size(&memory_rows[i]);
	}
	return 0;
}

/* Lays the tables out in the arena. */
static void
serve_place(void)
{
	const u32 *number = memory_number;
	static struct str names[SETTINGS_SERVICES] RESIDENT;
	u32 seed;

	sys_random(&seed, sizeof seed);
	srv.conns = number[MEMORY_CONNS];
	srv.free = srv.replacing = NONE;
	srv.dead = srv.dirty + srv.conns;
	srv.next_waiting = srv.dead + srv.conns;
	srv.urgent = srv.next_waiting + srv.conns;
	srv.first_waiting = NONE;
	srv.buffer_size = number[MEMORY_BUFFER];
	srv.push_size = number[MEMORY_PUSH];
	srv.reply_size = WSP_MAX_LIST + 256;
	srv.scratch_list = srv.scratch_reply + srv.reply_size;
	deadline_init(&srv.deadlines, srv.deadline_rows);
	deadline_init(&srv.away, srv.away.row);
	sock_init(&srv.sockets, number[MEMORY_SOCKETS],
	    number[MEMORY_BUCKETS], seed);
	store_init(&srv.queues.store, number[MEMORY_RING],
	    settings.store_bytes, number[MEMORY_MESSAGES]);
	srv.queues.cap = (u16)settings.queue_messages;
	srv.queues.byte_cap = settings.queue_bytes;
	for (u32 i = 0; i < settings.services; i++)
		names[i] = settings.service[i].name;
	srv.sockets.service = names;
	srv.sockets.services = settings.services;
	srv.tags.sockets = &srv.sockets;
	tags_init(&srv.tags, number[MEMORY_TAGS],
	    number[MEMORY_TAG_BUCKETS]);
}

/* ----- 48. Start ---------------------------------------------------------
 *
 * Descriptors, paths, certificate, privileges. Each step returns 0, or 1 when
 * its sentence is in `refusal`; with --wait what is not to be had is tried
 * again.
 */

/* What newcomers inherit from the listener costs no call of their own. */
static void
serve_set_listener(int fd)
{
	sys_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	sys_setsockopt(fd, SOL_SOCKET, SO_SNDBUF, (int)settings.send_buffer);
	sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (settings.ping_interval > 0)
		sys_setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
		    (int)min_size(INT_MAX, (settings.ping_interval +
		    (size_t)settings.pong_timeout) * 1000));
}

static int
serve_listen(struct listener *l)
{
	struct sockaddr_storage a;
	int fd;

	if (l->fd >= 0)
		return 0;
	(void)serve_address(&a, l->text);
	fd = socket(a.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
	    0);
	if (fd < 0 && errno == EAFNOSUPPORT && !strchr(l->text, ':')) {
		/* All addresses, on a kernel without IPv6. */
		a.ss_family = AF_INET;
		fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK |
		    SOCK_CLOEXEC, 0);
	}
	if (fd < 0)
		return serve_failed("cannot listen on", l->text);
	if (a.ss_family == AF_INET6)
		sys_setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	serve_set_listener(fd);
	if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0 ||
	    listen(fd, SOMAXCONN) < 0) {
		serve_failed("cannot listen on", l->text);
		close(fd);
		return 1;
	}
	l->fd = fd;
	return 0;
}

/*
 * ---- The service manager
 *
 * systemd, or who does as it does.  Sockets that it opened for us, by the
 * names wss, ws and push (LISTEN_FDS), stand in for the listeners and the push
 * path that the options name; they stay its own, and so does the path.  What
 * it wants to hear of us (NOTIFY_SOCKET) is one datagram each time.
 */
static struct {
	struct listener listen[SETTINGS_LISTENERS];
	u32 listeners;
	int push;                  /* 0: none, for they begin at 3 */
	char push_path[108 + 1];   /* without an end when it is long */
	int notify;                /* the socket to notify through */
	struct sockaddr_un notify_to;
	socklen_t notify_n;        /* 0: nobody is to be notified */
} manager RESIDENT;

/* Takes a socket if it is what its name says; else says what it is. */
static const char *
manager_take_socket(int fd, struct str name)
{
	struct sockaddr_storage a = { .ss_family = AF_UNSPEC };
	const struct sockaddr_un *path = (const struct sockaddr_un *)&a;
	int type = 0, listens = 0;
	socklen_t a_n = sizeof a, n = sizeof type, listens_n = sizeof listens;
	bool is_tls = str_is(name, "wss");

	getsockname(fd, (struct sockaddr *)&a, &a_n);
	getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n);
	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_n);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	if (str_is(name, "push")) {
		manager.push = fd;
		memcpy(manager.push_path, path->sun_path,
		    sizeof path->sun_path);
		return a.ss_family == AF_UNIX && type == SOCK_DGRAM ? NULL :
		    "not a UNIX datagram socket";
	}
	if (!is_tls && !str_is(name, "ws"))
		return "none of wss, ws and push";
	if (a.ss_family == AF_UNIX || type != SOCK_STREAM || !listens)
		return "not a listening TCP socket";
	if (manager.listeners == SETTINGS_LISTENERS)
		return "one too many";
	manager.listen[manager.listeners++] = (struct listener){
		.text = "a socket that was passed", .tls = is_tls, .fd = fd };
	serve_set_listener(fd);
	listen(fd, SOMAXCONN);
	return NULL;
}

/* From descriptor 3 on, if they are meant for this process. */
static int
manager_take_sockets(void)
{
	enum { FIRST = 3, MOST = SETTINGS_LISTENERS + 1 };
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	const char *names = getenv("LISTEN_FDNAMES"), *why;
	struct str rest = text_of(names ? names : ""), name;
	int64_t v;

	if (!pid || !count || text_number(text_of(pid), INT_MAX) != getpid())
		return 0;
	v = text_number(text_of(count), MOST);
	if (v < 0)
		return serve_cannot("LISTEN_FDS is %s, which is not 0 to %d",
		    count, MOST);
	for (int i = 0; i < (int)v; i++) {
		if (!split_next(&rest, ':', &name))
			name = STR("");
		why = manager_take_socket(FIRST + i, name);
		if (why)
			return serve_cannot("the socket passed as %.*s "
			    "is %s", STR_ARGS(name), why);
	}
	return 0;
}

/* What was passed stands in for what the options say, at each reading.
 * --metrics keeps its row. */
static void
manager_stand_in(void)
{
	if (manager.listeners > 0) {
		memcpy(settings.listen, manager.listen,
		    sizeof manager.listen);
		settings.listeners = manager.listeners;
	}
	if (manager.push > 0)
		settings.push_path = manager.push_path;
}

/* Makes ready to notify, while we still may open what we like. */
static void
manager_open(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un *a = &manager.notify_to;
	size_t n = path ? strlen(path) : 0;

	if (n < 2 || n >= sizeof a->sun_path || !strchr("/@", path[0]))
		return;
	a->sun_family = AF_UNIX;
	memcpy(a->sun_path, path, n);
	if (path[0] == '@')
		a->sun_path[0] = '\0'; /* a name that is in no directory */
	manager.notify_n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
	    n);
	manager.notify = sys_unix_socket();
}

static void
manager_notify(const char *what)
{
	if (manager.notify_n > 0)
		(void)sys_sendto(manager.notify, what, strlen(what),
		    &manager.notify_to, manager.notify_n);
}

/*
 * ---- The push socket
 */

/* Is somebody at the other end of this path? */
static bool
serve_path_is_live(const struct sockaddr_un *a)
{
	int fd = sys_unix_socket();
	bool live = connect(fd, (const struct sockaddr *)a, sizeof *a) == 0 ||
	    errno != ECONNREFUSED;

	close(fd);
	return live;
}

/* Makes way for the push socket: the directory, and nothing at the path but
 * perhaps the socket of a dead server. */
static int
serve_clear_path(const struct sockaddr_un *a)
{
	char dir[sizeof a->sun_path];
	struct stat st;
	char *slash;

	slash = strrchr(strcpy(dir, a->sun_path), '/');
	if (slash && slash != dir) {
		*slash = '\0';
		if (mkdir(dir, 0755) < 0 && errno != EEXIST)
			return serve_failed("cannot make", dir);
	}
	if (lstat(a->sun_path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return serve_cannot("%s is there and is no socket",
		    a->sun_path);
	if (serve_path_is_live(a))
		return serve_cannot("another server has %s", a->sun_path);
	if (unlink(a->sun_path) < 0)
		return serve_failed("cannot remove the old", a->sun_path);
	return 0;
}

static int
serve_find_group(struct str name, u32 *gid)
{
	struct str members;

	return account_find(true, name, gid, &members) ? 0 : serve_cannot(
	    "there is no group %.*s in /etc/group", STR_ARGS(name));
}

/* What waits unread at any receiver counts against the sender's buffer, and
 * with a deep net.unix.max_dgram_qlen one that does not read would use up the
 * usual 208 KiB: then nobody gets an answer any more. */
#define SERVE_DATAGRAMS (2 << 20)

/* Binds the push socket; its mode is right from the first moment on. */
static int
serve_bind_path(const struct sockaddr_un *a)
{
	mode_t mask = umask(0777 & ~settings.push_mode);
	int r = bind(srv.push, (const struct sockaddr *)a, sizeof *a);
	struct stat st;
	u32 gid;

	umask(mask);
	if (r < 0)
		return serve_failed("cannot bind", a->sun_path);
	if (settings.push_group) {
		if (serve_find_group(text_of(settings.push_group), &gid) != 0)
			return 1;
		if (chown(a->sun_path, (uid_t)-1, gid) < 0)
			return serve_failed("cannot give the push socket to "
			    "group", settings.push_group);
	}
	if (stat(a->sun_path, &st) < 0)
		return serve_failed("cannot find", a->sun_path);
	serve.push_dev = st.st_dev;
	serve.push_ino = st.st_ino;
	return 0;
}

static int
serve_open_push(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (srv.push >= 0)
		return 0;
	if (srv.events <= 0) {
		srv.events = sys_unix_socket();
		sys_set_sending(srv.events, SERVE_DATAGRAMS);
	}
	srv.push = manager.push > 0 ? manager.push : sys_unix_socket();
	sys_set_sending(srv.push, SERVE_DATAGRAMS);
	sys_setsockopt(srv.push, SOL_SOCKET, SO_PASSCRED, 1);
	if (manager.push > 0)
		return 0;
	strcpy(a.sun_path, settings.push_path); /* no longer, checked */
	if (serve_clear_path(&a) == 0 && serve_bind_path(&a) == 0)
		return 0;
	close(srv.push);
	srv.push = -1;
	return 1;
}

/* Removes the push socket's path, if we bound it and it is still ours. */
static void
serve_unlink_push(void)
{
	struct stat st;

	if (lstat(settings.push_path, &st) == 0 &&
	    st.st_dev == serve.push_dev && st.st_ino == serve.push_ino)
		unlink(settings.push_path);
}

/* The user's certificate, or the one in --state. */
static int
serve_load_certificate(void)
{
	if (!serve_has_tls())
		return 0;
	if (settings.cert)
		return tls_load(settings.cert, settings.key);
	return cert_set_paths(settings.state) < 0 ? -1 : tls_reload();
}

static int
serve_token_keys(void)
{
	return token_keys_load(settings.token_key, settings.token_keys);
}

/* Descriptors for everybody: the soft limit is raised to the hard one, and
 * when that is tight there is less room for those on their way in. */
static int
serve_raise_limits(void)
{
	enum { LEAST_PENDING = 16 };
	struct rlimit l;
	u32 others = 32 + settings.services * PIPES;
	u32 need = settings.max_sockets + others + LEAST_PENDING;

	prlimit(0, RLIMIT_NOFILE, NULL, &l);
	if (l.rlim_max < need)
		return serve_cannot("--max-sockets %u needs %u open files and "
		    "the hard limit is %llu", settings.max_sockets, need,
		    (u64)l.rlim_max);
	l.rlim_cur = l.rlim_max;
	prlimit(0, RLIMIT_NOFILE, &l, NULL);
	l.rlim_max -= settings.max_sockets + others;
	serve.pending = l.rlim_max < WSP_PENDING ? (u32)l.rlim_max :
	    WSP_PENDING;
	return 0;
}

static int
serve_watch_signals(void)
{
	signal(SIGPIPE, SIG_IGN);
	srv.signals = sys_signals(false);
	srv.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (srv.signals < 0 || srv.epoll < 0)
		return serve_failed("cannot watch", "signals");
	return 0;
}

static void
serve_warn_unreadable(const char *path)
{
	struct log_room room;

	if (path && access(path, R_OK) < 0)
		log_event(LOG_LEVEL_WARN, "key", "path=%s user=%s why=\"it "
		    "cannot be read by this user, a reload will fail\"",
		    log_quote(&room, text_of(path)), settings.user);
}

static int
serve_become_user(void)
{
	struct str rest = text_of(settings.user), name, behind;
	u32 uid, gid;
	int64_t number;

	(void)split_next(&rest, ':', &name);
	if (!account_find(false, name, &uid, &behind) ||
	    (number = text_number(behind, UINT32_MAX)) < 0)
		return serve_cannot("there is no user %.*s in /etc/passwd",
		    STR_ARGS(name));
	gid = (u32)number;
	if (rest.p && serve_find_group(rest, &gid) != 0)
		return 1;
	if (setgroups(0, NULL) < 0 || setgid(gid) < 0 || setuid(uid) < 0)
		return serve_failed("cannot become", settings.user);
	return 0;
}

static int
serve_drop_root(void)
{
	if (!settings.user)
		return 0;
	if (serve_become_user() != 0)
		return 1;
	sandbox_hide_memory();
	serve_warn_unreadable(settings.key);
	for (u32 i = 0; i < settings.token_keys; i++)
		serve_warn_unreadable(settings.token_key[i]);
	return 0;
}

/* Forks the helper of Handlers, if a service needs it: early, while there is
 * little that it would inherit.  Children are --user's, as we shall be. */
static int
serve_start_helper(void)
{
	int pair[2];
	pid_t pid;

	if (handler_children() == 0)
		return 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
	    (pid = fork()) < 0)
		return serve_failed("cannot start", "the helper for exec: "
		    "services");
	if (pid == 0) {
		close(pair[0]);
		for (u32 i = 0; i < manager.listeners; i++)
			close(manager.listen[i].fd);
		if (manager.push > 0)
			close(manager.push);
		if (settings.user && serve_become_user() != 0)
			_exit(1);
		helper_run(pair[1]);
	}
	signal(SIGCHLD, SIG_IGN); /* nobody waits for it */
	close(pair[1]);
	helper_fd = pair[0];
	return 0;
}

/* What may not be there yet when a board boots. */
static int
serve_acquire(void)
{
	if ((serve_has_tls() && !settings.cert &&
	    tls_state_certificate(settings.state) < 0) ||
	    serve_load_certificate() != 0 || serve_token_keys() != 0)
		return 1;
	for (u32 i = 0; i <= LISTEN_METRICS; i++)
		if (listener_is_used(i) &&
		    serve_listen(&settings.listen[i]) != 0)
			return 1;
	return serve_open_push();
}

/* Tries for --wait seconds; says so once. */
static int
serve_acquire_patiently(void)
{
	int64_t until = sys_clock_ms(CLOCK_MONOTONIC) +
	    settings.wait * INT64_C(1000);
	struct log_room room;
	bool said = false;

	while (serve_acquire() != 0) {
		struct signalfd_siginfo info;
		struct pollfd p = { .fd = srv.signals, .events = POLLIN };

		if (sys_clock_ms(CLOCK_MONOTONIC) >= until)
			return 1;
		if (!said)
			log_event(LOG_LEVEL_WARN, "waiting", "why=%s for=%us",
			    log_quote(&room, text_of(refusal)),
			    settings.wait);
		said = true;
		poll(&p, 1, 1000);
		if (p.revents && read(srv.signals, &info, sizeof info) > 0 &&
		    info.ssi_signo != SIGHUP)
			return serve_cannot("stopped while waiting");
	}
	return 0;
}

static int
serve_watch(int fd, u64 what)
{
	errno = -sys_epoll_ctl(srv.epoll, EPOLL_CTL_ADD, fd, EPOLLIN, what);
	return errno == 0 ? 0 : serve_failed("cannot watch", "the sockets");
}

static int
serve_arm(void)
{
	if (serve_watch(srv.push, LOOP_PUSH) != 0 ||
	    serve_watch(srv.signals, LOOP_SIGNAL) != 0)
		return 1;
	for (u32 i = 0; i <= LISTEN_METRICS; i++)
		if (listener_is_used(i) && serve_watch(settings.listen[i].fd,
		    LOOP_LISTENER + i) != 0)
			return 1;
	srv.listening = true;
	return 0;
}

static void
serve_say_listeners(struct out *o, const char *word, u32 i, u32 end,
    bool is_tls)
{
	for (; i < end; i++) {
		struct sockaddr_storage a;
		socklen_t n = sizeof a;
		struct conn c = { 0 };

		if (settings.listen[i].tls != is_tls || getsockname(
		    settings.listen[i].fd, (struct sockaddr *)&a, &n) < 0)
			continue;
		conn_set_peer(&c, &a);
		out_print(o, " %s=%s", word, conn_peer(&c));
	}
}

/* The one line that scripts wait for. */
static void
serve_say_ready(void)
{
	char line[1024];
	struct out o = out_to(line, sizeof line);

	out_text(&o, "wspush: ready");
	serve_say_listeners(&o, "wss", 0, settings.listeners, true);
	serve_say_listeners(&o, "ws", 0, settings.listeners, false);
	serve_say_listeners(&o, "metrics", LISTEN_METRICS, LISTEN_METRICS + 1,
	    false);
	out_print(&o, " push=%s\n", settings.push_path);
	(void)!sys_write(STDERR_FILENO, line, o.n);
}

/* ----- 49. Serve ---------------------------------------------------------
 *
 * The running server: ready, when the code of the start leaves memory, the
 * loop, a reload on SIGHUP, and an end in good order on SIGTERM.
 */

static void
serve_stop(void)
{
	if (srv.stopping)
		return;
	log_event(LOG_LEVEL_INFO, "stopping", "connections=%u", srv.live);
	manager_notify("STOPPING=1");
	srv.stopping = true;
	srv.stop_at = srv.now + 1000;
	for (u32 i = 0; i <= LISTEN_METRICS; i++)
		if (listener_is_used(i))
			close(settings.listen[i].fd);
	srv.listening = false;
	serve_unlink_push();
	(void)push_drain(PUSH_BUDGET);
	sys_epoll_ctl(srv.epoll, EPOLL_CTL_DEL, srv.push, 0, 0);
}

/* Has anybody who is connected something left to be written? */
static bool
serve_owes(void)
{
	for (u32 i = 0; i < srv.fresh; i++) {
		const struct conn *c = &srv.conn[i];

		if (c->state == CONN_OPEN && (c->out != 0 ||
		    queue_limit(&srv.queues, c->sock) > 0))
			return true;
	}
	return false;
}

static void
serve_close_all(void)
{
	for (u32 i = 0; i < srv.fresh; i++) {
		struct conn *c = &srv.conn[i];

		if (c->state == CONN_OPEN)
			conn_close(c, WSP_CLOSE_GOING_AWAY, STR(""));
		else if (c->state == CONN_WAIT || c->state == CONN_TLS ||
		    c->state == CONN_HTTP)
			conn_kill(c, "the server stops");
	}
}

/* After SIGTERM: up to a second to write what is queued, then Close to all,
 * and whoever does not answer is left. */
static void
serve_finish(void)
{
	while (serve_owes() && srv.now < srv.stop_at)
		loop_turn();
	serve_close_all();
	srv.stop_at = srv.now + 1500;
	while (srv.live > 0 && srv.now < srv.stop_at)
		loop_turn();
	/* Who still waits for acknowledgement hears how it stands. */
	for (u32 i = 0; i < WSP_WAITERS; i++)
		awaiting[i].due = srv.now;
	push_answer_waiters();
}

static void
serve_name_restart(const char *option)
{
	log_event(LOG_LEVEL_WARN, "reload", "option=--%s "
	    "why=\"it needs a restart\"", option);
}

static bool
serve_text_differs(const char *a, const char *b)
{
	return !a != !b || (a && strcmp(a, b) != 0);
}

/* Names the options whose change needs a restart.  Of lists those are the
 * listeners and the services. */
static void
serve_compare(const struct settings *was)
{
	bool listen = was->listeners != settings.listeners;
	bool service = was->services != settings.services;

	for (u32 i = 0; i < COUNT(serve_options); i++) {
		const struct serve_option *o = &serve_options[i];
		uintptr_t at = (uintptr_t)o->to - (uintptr_t)&settings;
		const void *old = (const char *)was + at;

		if (at >= sizeof settings || o->kind == OPT_LIST ||
		    at - SETTINGS_RELOAD_AT < SETTINGS_RELOAD)
			continue;
		if (o->kind == OPT_TEXT ? serve_text_differs(
		    *(const char **)o->to, *(const char *const *)old) :
		    memcmp(o->to, old, o->kind == OPT_FLAG ? sizeof(bool) :
		    sizeof(u32)) != 0)
			serve_name_restart(o->name);
	}
	for (u32 i = 0; i < was->listeners; i++)
		listen |= was->listen[i].tls != settings.listen[i].tls ||
		    serve_text_differs(was->listen[i].text,
		    settings.listen[i].text);
	if (listen)
		serve_name_restart("listen");
	for (u32 i = 0; i < was->services; i++)
		service |= serve_text_differs(was->service[i].text,
		    settings.service[i].text);
	if (service)
		serve_name_restart("service");
}

static void
serve_log_why(const char *event)
{
	struct log_room room;

	log_event(LOG_LEVEL_ERROR, event, "why=%s",
	    log_quote(&room, text_of(refusal)));
}

/* Pages of code and constants, of our own and of libc. */
struct serve_code {
	u32 count;
	struct iovec at[16];
};

/* Has the loader written into the code, as it was not made to lie anywhere? */
static bool
serve_code_is_written(const struct dl_phdr_info *object)
{
	for (u32 i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &object->dlpi_phdr[i];
		const ElfW(Dyn) *d = (const void *)(object->dlpi_addr +
		    h->p_vaddr);

		if (h->p_type != PT_DYNAMIC)
			continue;
		for (; d->d_tag != DT_NULL; d++)
			if (d->d_tag == DT_TEXTREL || (d->d_tag == DT_FLAGS &&
			    (d->d_un.d_val & DF_TEXTREL)))
				return true;
	}
	return false;
}

#ifndef MADV_WIPEONFORK /* Linux 4.14; before, all seems to have a file */
#define MADV_WIPEONFORK 18
#define MADV_KEEPONFORK 19
#endif

/* Is there no file behind it, as in a program that was packed?  Only of such
 * memory can be asked that a child finds it empty. */
static bool
serve_code_is_unpacked(const struct iovec *at)
{
	return madvise(at->iov_base, at->iov_len, MADV_WIPEONFORK) == 0 &&
	    madvise(at->iov_base, at->iov_len, MADV_KEEPONFORK) == 0;
}

static int
serve_find_code(struct dl_phdr_info *object, size_t n, void *found)
{
	struct serve_code *code = found;

	(void)n;
	if (serve_code_is_written(object))
		return 0;
	for (u32 i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &object->dlpi_phdr[i];

		if (h->p_type == PT_LOAD && !(h->p_flags & PF_W) &&
		    code->count < COUNT(code->at))
			code->at[code->count++] = (struct iovec){
				(void *)(object->dlpi_addr + h->p_vaddr),
				h->p_memsz };
	}
	return 0;
}

/*
 * Most code runs at the start alone and stays in memory in vain: all goes, and
 * what runs again comes back out of the page cache.  It goes when all of it is
 * found, or looking for the rest would bring libc's back.  What a file does not
 * hold would not come back: such code stays.  A breakpoint that a debugger has
 * set before is lost with its page.
 */
static void
serve_forget_code(void)
{
	struct serve_code code = { 0 };

	dl_iterate_phdr(serve_find_code, &code);
	for (u32 i = 0; i < code.count; i++)
		if (!serve_code_is_unpacked(&code.at[i]))
			madvise(code.at[i].iov_base, code.at[i].iov_len,
			    MADV_DONTNEED);
}

/* What cannot be read keeps its old value. */
static void
serve_reload(void)
{
	static struct settings was;
	enum log_level level = log_to.level;
	char text[64];

	manager_notify(text_print(text, sizeof text, "RELOADING=1\n"
	    "MONOTONIC_USEC=%lld000",
	    (long long)sys_clock_ms(CLOCK_MONOTONIC)));
	was = settings;
	if (serve_read_settings(serve.argc, serve.argv) != 0) {
		serve_log_why("reload");
		log_to.level = level;
	} else {
		manager_stand_in();
		serve_compare(&was);
		memcpy((char *)&was + SETTINGS_RELOAD_AT,
		    (char *)&settings + SETTINGS_RELOAD_AT, SETTINGS_RELOAD);
		serve_file_now = serve_file_next;
	}
	settings = was;
	if (serve_token_keys() != 0)
		serve_log_why("reload");
	if (serve_load_certificate() != 0)
		serve_log_why("reload");
	else
		log_event(LOG_LEVEL_INFO, "reloaded", "cert_days=%d",
		    serve_has_tls() ? tls_cert_days() : 0);
	manager_notify("READY=1");
	serve_forget_code();
}

static void
serve_signal(int number)
{
	if (number == SIGHUP)
		serve_reload();
	else
		serve_stop();
}

static int
serve_run(void)
{
	helper_go();
	sandbox_enter();
	serve_say_ready();
	manager_notify("READY=1");
	serve_forget_code();
	while (!srv.stopping)
		loop_turn();
	serve_finish();
	helper_stop();
	log_tick(INT64_MAX / 2); /* no second goes on */
	log_event(LOG_LEVEL_INFO, "stopped", "connections=%u", srv.live);
	return 0;
}

/* Reads what is configured and says whether it would do. */
static int
serve_only_check(void)
{
	/* A certificate that would be made at the start is not made now. */
	if (((settings.cert || (cert_set_paths(settings.state) == 0 &&
	    access(certs.room, F_OK) == 0)) &&
	    serve_load_certificate() != 0) || serve_token_keys() != 0)
		return say(2, "%s", refusal);
	return 0;
}

static int
serve_start(void)
{
	if (manager_take_sockets() != 0)
		return 1;
	manager_stand_in();
	manager_open();
	if (serve_start_helper() != 0)
		return 1;
	sandbox_hide_memory();
	if (serve_raise_limits() != 0 || serve_watch_signals() != 0 ||
	    serve_take_memory() != 0)
		return 1;
	serve_place();
	if (serve_has_tls()) {
		tls_place(serve_tls_memory, WSP_HANDSHAKES, srv.conns);
		if (tls_start() < 0)
			return 1;
	}
	if (handler_open() < 0)
		return serve_cannot("no socket for unix: services");
	for (u32 i = 0; i < settings.services; i++)
		if (settings.service[i].handler == HANDLER_UNIX)
			sys_set_sending(handlers[i].fd, SERVE_DATAGRAMS);
	srv.push = -1;
	srv.now = srv.started = sys_clock_ms(CLOCK_MONOTONIC);
	if (serve_acquire_patiently() != 0)
		return 1;
	if (serve_drop_root() != 0 || serve_arm() != 0) {
		serve_unlink_push();
		return 1;
	}
	return 0;
}

static int
serve_command(int argc, char **argv)
{
	serve.argc = argc;
	serve.argv = argv;
	if (serve_read_settings(argc, argv) != 0)
		return say(2, "%s", refusal);
	serve_file_now = serve_file_next;
	if (serve.check)
		return serve_only_check();
	if (serve.memory)
		return serve_print_memory();
	if (settings.syslog)
		log_to.syslog = sys_unix_socket();
	if (serve_start() == 0)
		return serve_run();
	if (log_to.syslog >= 0)
		serve_log_why("start");
	return say(1, "%s", refusal);
}

/* ----- 50. Client --------------------------------------------------------
 *
 * The verbs that talk to a running server, for people and scripts: one
 * request, one reply, one exit status.  Owns an autobound datagram socket that
 * leaves nothing behind.  Promises that no script waits longer than the limit
 * below, and that what goes wrong is one sentence on standard error.  Refuses
 * here, as wrong usage, what would break the request line.  A process of a
 * verb lives for a moment: memory may be mapped here.
 */
#define CLIENT_LIMIT_MS 5000       /* for all of a verb's requests together */
#define CLIENT_MAX_INPUT (1 << 24) /* the ceiling of --max-message */

enum client_status {
	CLIENT_DONE,
	CLIENT_REFUSED,
	CLIENT_USAGE,
	CLIENT_NO_SERVER,
	CLIENT_NO_SOCKET,
	CLIENT_NOT_ACKED
};

struct client {
	const char *verb;
	char **args;          /* what follows the options */
	int count;
	int fd;
	int limit_ms;         /* for all requests, until the deadline */
	int64_t deadline_ms;
	char ref[17];     /* fresh with every request */
	struct out head;  /* the request line, over `line` */
	struct str body;
	struct reply reply;
	struct sockaddr_un to;
	const char *opt[128]; /* an option letter's value, "" for a flag */
	char line[WSP_MAX_REQUEST_LINE + 1];
};

/* The last reply; c->reply points into it. */
static char client_room[65536];

/* Standard input; held until the process ends. */
static char *client_input;

/* main adds the usage line. */
#define client_wrong(...) say(CLIENT_USAGE, __VA_ARGS__)

/*
 * ---- The command line
 */

static int
client_address(struct client *c)
{
	const char *path = c->opt['s'], *set = getenv("WSPUSH_SOCKET");

	if (!path)
		path = set && *set ? set : WSP_PUSH_PATH;
	if (!*path || strlen(path) >= sizeof c->to.sun_path)
		return client_wrong("the path of the push socket must have 1 "
		    "to %zu bytes", sizeof c->to.sun_path - 1);
	c->to.sun_family = AF_UNIX;
	strcpy(c->to.sun_path, path);
	return CLIENT_DONE;
}

/* Begins a request line: the verb, a new ref, the options. */
static int
client_head(struct client *c)
{
	static const char letter[] = { [OPTION_KIND] = 'k', [OPTION_TTL] = 't',
		[OPTION_ACK] = 'w', [OPTION_KEY] = 'K', [OPTION_RETAIN] = 'r',
		[OPTION_FORMAT] = 'j', [OPTION_REPLACE] = 'R',
		[OPTION_CODE] = 'c' };
	struct request r = { .ack_s = 0 };
	u64 noise;

	sys_random(&noise, sizeof noise);
	text_print(c->ref, sizeof c->ref, "%016llx", noise);
	c->head = out_to(c->line, WSP_MAX_REQUEST_LINE);
	out_print(&c->head, "%s ref=%s", c->verb, c->ref);
	for (size_t i = 0; i < COUNT(letter); i++) {
		const char *value = c->opt[(u8)letter[i]];

		if (!letter[i] || !value)
			continue;
		if (!*value && strchr("jrR", letter[i]))
			value = letter[i] == 'j' ? "json" : "1";
		if (!option_take(&r, (enum option)i, text_of(value)) ||
		    value[strcspn(value, " \n")])
			return client_wrong("-%c%s'%s'", letter[i],
			    option_rules[i].takes, value);
		out_print(&c->head, " %s=%s", option_rules[i].name, value);
	}
	if (c->opt['w'])
		c->limit_ms = ((int)r.ack_s + 1) * 1000;
	return CLIENT_DONE;
}

/* The first argument, if there is one, is the target: the request line ends
 * with it. */
static int
client_target(struct client *c)
{
	const char *t = c->count > 0 ? c->args[0] + strspn(c->args[0], " ") :
	    "*";

	if (!*t)
		return client_wrong("TARGET is empty; '*' is every socket");
	if (!strchr("*/$=", *t) || strchr(t, '\n'))
		return client_wrong("TARGET must begin with *, /, $ or = and "
		    "be one line, not '%s'", t);
	if (c->count > 0)
		out_print(&c->head, " %s", t);
	if (c->head.full)
		return client_wrong("the request line would be longer than %d "
		    "bytes; shorten TARGET", WSP_MAX_REQUEST_LINE);
	c->line[c->head.n++] = '\n';
	return CLIENT_DONE;
}

/* Reads the command line of a verb that takes min to max arguments, the first
 * of them, if any, a target, and makes its request line. */
static int
client_start(struct client *c, const char *known, int argc, char **argv,
    int min, int max)
{
	struct words w = { .at = argv + 1 };
	int letter;

	memset(c, 0, sizeof *c);
	c->verb = say_verb = argv[0];
	c->fd = -1;
	c->limit_ms = CLIENT_LIMIT_MS;
	signal(SIGPIPE, SIG_IGN);
	/* Of an option given twice the last counts. */
	while ((letter = words_option(&w, known)) > 0)
		c->opt[letter] = w.value;
	if (letter < 0)
		return CLIENT_USAGE;
	c->args = w.at;
	c->count = argc - (int)(w.at - argv);
	if (c->count < min)
		return client_wrong("TARGET is missing");
	if (c->count > max)
		return client_wrong("too many arguments at '%s'%s",
		    c->args[max], max > 0 ? "; several words need quotes" : "");
	if (client_address(c) || client_head(c))
		return CLIENT_USAGE;
	return client_target(c);
}

/*
 * ---- A request is sent, a reply received
 */

static int
client_unreachable(const struct client *c, ssize_t err)
{
	const char *why = NULL;

	if (err == -ENOENT || err == -ENOTDIR)
		why = "there is no such path";
	if (err == -ECONNREFUSED || err == -ECONNRESET || err == -ENOTCONN)
		why = "nobody listens there";
	return say(CLIENT_NO_SERVER, "the server cannot be reached at %s: "
	    "%s%s", c->to.sun_path, why ? why : strerror((int)-err),
	    why ? "; is wspush serve running?" : "");
}

/*
 * An address of the kernel's choice (autobind): there is nothing to unlink,
 * and a server in another mount namespace can answer it.  `watch` does not
 * connect: events come from another socket, which a connected one refuses.
 */
static int
client_open(struct client *c, bool connected)
{
	struct sockaddr_un me = { .sun_family = AF_UNIX };
	size_t n = WSP_MAX_REQUEST_LINE + 1 + c->body.n;

	c->deadline_ms = sys_clock_ms(CLOCK_MONOTONIC) + c->limit_ms;
	c->fd = sys_unix_socket();
	if (c->fd < 0 || bind(c->fd, (struct sockaddr *)&me,
	    sizeof me.sun_family) < 0 || (connected && connect(c->fd,
	    (struct sockaddr *)&c->to, sizeof c->to) < 0))
		return client_unreachable(c, -errno);
	if (n > 32768)
		sys_set_sending(c->fd, (int)n);
	return CLIENT_DONE;
}

/* Waits for the socket; false at the deadline. */
static bool
client_wait(const struct client *c, short events)
{
	struct pollfd p = { .fd = c->fd, .events = events };
	int64_t left;

	do {
		left = c->deadline_ms - sys_clock_ms(CLOCK_MONOTONIC);
		if (left <= 0)
			return false;
	} while (poll(&p, 1, (int)left) < 0 && errno == EINTR);
	return true;
}

static int
client_send(struct client *c)
{
	struct iovec iov[2] = {
		{ .iov_base = c->line, .iov_len = c->head.n },
		{ .iov_base = (void *)(uintptr_t)c->body.p,
		  .iov_len = c->body.n },
	};
	ssize_t r;

	while ((r = sys_sendv(c->fd, iov, 2, 0)) < 0) {
		if (r == -EMSGSIZE || r == -ENOBUFS)
			return say(CLIENT_REFUSED, "a message of %zu "
			    "bytes is too big for a datagram; "
			    "net.core.wmem_max limits it", c->body.n);
		if (r != -EAGAIN)
			return client_unreachable(c, r);
		if (!client_wait(c, POLLOUT))
			return say(CLIENT_NO_SERVER, "the server took "
			    "no request for %d s; its queue is full",
			    c->limit_ms / 1000);
	}
	return CLIENT_DONE;
}

/* Takes the next datagram; 0 when there is none yet, and an empty one is the
 * one byte 0. */
static ssize_t
client_take(struct client *c)
{
	ssize_t n = sys_recv(c->fd, client_room, sizeof client_room - 1, 0);

	if (n < 0)
		return n == -EAGAIN ? 0 : n;
	client_room[n] = '\0';
	return n == 0 ? 1 : n;
}

/* Does the reply just taken answer this request?  The address may have been
 * another process's a moment ago; a late reply to that one has another ref.
 * A request that was not understood at all is answered without one. */
static bool
client_answers(struct client *c, size_t n)
{
	reply_parse(&c->reply, client_room, n);
	if (c->reply.kind == REPLY_BAD)
		return false;
	return (c->reply.kind == REPLY_ERROR && c->reply.ref.n == 0) ||
	    str_is(c->reply.ref, c->ref);
}

/* Prints why the server refused. */
static int
client_refused(const struct reply *r)
{
	return say(str_is(r->code, "unknown-socket") ?
	    CLIENT_NO_SOCKET : CLIENT_REFUSED, "%.*s: %.*s",
	    STR_ARGS(r->code), STR_ARGS(r->sentence));
}

/* Receives a reply to the request that was sent; `what` it is called. */
static int
client_receive(struct client *c, const char *what)
{
	ssize_t n;

	while ((n = client_take(c)) <= 0 || !client_answers(c, (size_t)n)) {
		if (n < 0)
			return client_unreachable(c, n);
		if (n == 0 && !client_wait(c, POLLIN))
			return say(CLIENT_NO_SERVER, "the server sent "
			    "no %s in %d s", what, c->limit_ms / 1000);
	}
	return c->reply.kind == REPLY_ERROR ? client_refused(&c->reply) :
	    CLIENT_DONE;
}

/* The request line and c->body out, the reply in. */
static int
client_ask(struct client *c)
{
	int status = c->fd < 0 ? client_open(c, true) : CLIENT_DONE;

	if (status == 0)
		status = client_send(c);
	return status ? status : client_receive(c, "answer");
}

static void
client_print(struct str body)
{
	print_str(body);
	if (body.n > 0 && body.p[body.n - 1] != '\n')
		print("\n");
}

/* `queued on 3 sockets (1 away)` and its like, or that there was none. */
static int
client_print_count(const char *did, const struct reply *r)
{
	if (r->count == 0) {
		print("no socket matched\n");
		return CLIENT_NO_SOCKET;
	}
	print("%s %llu socket%s", did, r->count, r->count == 1 ? "" : "s");
	if (r->away > 0)
		print(" (%llu away%s", r->away, r->full > 0 ? "" : ")");
	if (r->full > 0)
		print("%s%llu full)", r->away > 0 ? ", " : " (", r->full);
	print("\n");
	return CLIENT_DONE;
}

/* The end of `tag`, `close` and `abort`. */
static int
client_selected(struct client *c, const char *did)
{
	int status = client_ask(c);

	return status ? status : client_print_count(did, &c->reply);
}

/* ----- 51. Client verbs --------------------------------------------------
 *
 * What each verb asks and prints: send, tag, close, abort, list, stats, ping.
 * One function a verb: the command line in, an exit status out.
 */

/*
 * ---- send
 */

/* Standard input, whole. */
static int
client_read_input(struct client *c)
{
	size_t n = 0;
	ssize_t r;

	if (!client_input)
		client_input = mmap(NULL, CLIENT_MAX_INPUT + 1, PROT_READ |
		    PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (client_input == MAP_FAILED)
		return say(CLIENT_REFUSED, "out of memory");
	do {
		r = read(STDIN_FILENO, client_input + n,
		    CLIENT_MAX_INPUT + 1 - n);
		if (r > 0)
			n += (size_t)r;
	} while (r > 0 || (r < 0 && errno == EINTR));
	if (r < 0)
		return say(CLIENT_REFUSED, "standard input cannot be "
		    "read: %s", strerror(errno));
	if (n > CLIENT_MAX_INPUT)
		return say(CLIENT_REFUSED, "the message on standard "
		    "input is too big");
	c->body = (struct str){ client_input, n };
	return CLIENT_DONE;
}

/* The second reply of `send -w`. */
static int
client_acked(struct client *c)
{
	u64 full = c->reply.full;
	int status = client_receive(c, "acknowledgement");

	if (status)
		return status;
	if (c->reply.kind != REPLY_ACKED)
		return say(CLIENT_NO_SERVER, "the server sent no "
		    "acknowledgement");
	print("acknowledged by %llu of %llu socket%s",
	    c->reply.count,
	    c->reply.of, c->reply.of == 1 ? "" : "s");
	if (full > 0)
		print(" (%llu full)", full);
	print("\n");
	return c->reply.count == c->reply.of && full == 0 ? CLIENT_DONE :
	    CLIENT_NOT_ACKED;
}

static int
client_send_verb(struct client *c)
{
	int status = CLIENT_DONE;

	if (c->count > 1)
		c->body = text_of(c->args[1]);
	else if (isatty(STDIN_FILENO))
		return client_wrong("MESSAGE is missing, and standard input is "
		    "a terminal");
	else
		status = client_read_input(c);
	if (status == 0)
		status = client_ask(c);
	if (status)
		return status;
	if (c->opt['w'] && c->reply.count > 0)
		return client_acked(c);
	status = client_print_count("queued on", &c->reply);
	return c->opt['r'] ? CLIENT_DONE : status;
}

/*
 * ---- tag, close, abort
 */

static int
client_tag_verb(struct client *c)
{
	struct out o = out_to(client_room, sizeof client_room);

	if (c->count == 1 && !c->opt['R'])
		return client_wrong("which tags? name:value sets one, -name "
		    "removes it");
	for (int i = 1; i < c->count; i++) {
		if (strchr(c->args[i], '\n'))
			return client_wrong("a tag must not hold a line break");
		out_text(&o, c->args[i]);
		out_char(&o, '\n');
	}
	if (o.full)
		return client_wrong("these are too many tags");
	c->body = (struct str){ o.p, o.n };
	return client_selected(c, "tagged");
}

static int
client_close_verb(struct client *c)
{
	if (c->count > 1)
		c->body = text_of(c->args[1]);
	return client_selected(c, "closed");
}

static int
client_abort_verb(struct client *c)
{
	return client_selected(c, "cut");
}

/*
 * ---- list, stats, ping
 */

/* Of a json list the inside of the array: all replies make one. */
static void
client_print_rows(const struct client *c, const char **before)
{
	struct str rows = text_trim(c->reply.body);

	if (!c->opt['j']) {
		client_print(rows);
		return;
	}
	if (rows.n >= 2)
		rows = (struct str){ rows.p + 1, rows.n - 2 };
	rows = text_trim(rows);
	if (rows.n == 0)
		return;
	print("%s", *before);
	print_str(rows);
	*before = ",\n";
}

static int
client_list_verb(struct client *c)
{
	const char *before = "[";
	int status = CLIENT_DONE;

	while (status == 0 && (status = client_ask(c)) == 0) {
		client_print_rows(c, &before);
		if (c->reply.next == 0)
			break;
		(void)client_head(c);
		out_text(&c->head, " from=");
		out_u64(&c->head, c->reply.next);
		status = client_target(c);
	}
	if (status == 0 && c->opt['j'])
		print(*before == '[' ? "[]\n" : "]\n");
	return status;
}

static int
client_stats_verb(struct client *c)
{
	int status = client_ask(c);

	if (status == 0)
		client_print(c->reply.body);
	return status;
}

static int
client_ping_verb(struct client *c)
{
	int status = client_ask(c);

	if (status == 0)
		print("ok\n");
	return status;
}

/* ----- 52. Watch and top -------------------------------------------------
 *
 * The verbs that stay: events, printed as they come, and a live view for a
 * terminal.  Both outlive the server and find the next one.
 */

/*
 * ---- watch
 *
 * The request is made again every 5 s, which does nothing while the server
 * remembers it and finds the next server after a restart.
 */
#define CLIENT_WATCH_MS 5000

struct client_watch {
	bool met;  /* the server has answered at least once */
	bool away; /* ... and we have said that it no longer does */
	int64_t next_ms;   /* when to ask again */
	int64_t answer_ms; /* when silence is over; 0: nothing is asked */
};

/* Everything is flushed before every wait, so there is nothing to lose. */
static void
client_stop(int sig)
{
	(void)sig;
	_exit(CLIENT_DONE);
}

static int
client_watch_away(struct client_watch *w, const struct client *c,
    const char *why)
{
	if (!w->away)
		say(0, "the server at %s is away (%s); waiting for it",
		    c->to.sun_path, why);
	w->away = true;
	w->answer_ms = 0;
	return CLIENT_DONE;
}

static int
client_watch_ask(struct client_watch *w, struct client *c, int64_t now)
{
	ssize_t r = sys_sendto(c->fd, c->line, c->head.n, &c->to,
	    sizeof c->to);
	bool queue_full = r == -EAGAIN; /* as good as asked, but ask again */

	w->next_ms = now + (queue_full ? 50 : r < 0 ? 1000 : CLIENT_WATCH_MS);
	if (r < 0 && !queue_full)
		return w->met ? client_watch_away(w, c, strerror((int)-r)) :
		    client_unreachable(c, r);
	/* A reply may be lost in a burst of events; two are not. */
	if (w->answer_ms == 0)
		w->answer_ms = now + CLIENT_WATCH_MS * (w->met ? 2 : 1);
	return CLIENT_DONE;
}

/* One datagram: an event is printed, a reply looked at. */
static int
client_watch_event(struct client_watch *w, struct client *c, size_t n)
{
	struct str all = { client_room, n };

	if (!str_begins(all, "ok ") && !str_begins(all, "error "))
		client_print(all);
	else if (client_answers(c, n)) {
		if (c->reply.kind == REPLY_ERROR) {
			client_refused(&c->reply);
			return CLIENT_REFUSED;
		}
		if (w->away)
			say(0, "the server is back");
		w->met = true;
		w->away = false;
		w->answer_ms = 0;
	}
	return CLIENT_DONE;
}

/* Asks when that is due, sleeps until something is due or has come, takes
 * what has come. */
static int
client_watch_turn(struct client_watch *w, struct client *c)
{
	struct pollfd p[2] = { { .fd = c->fd, .events = POLLIN },
		{ .fd = STDOUT_FILENO } };
	int64_t now = sys_clock_ms(CLOCK_MONOTONIC), until;
	int status = CLIENT_DONE;
	ssize_t n;

	if (w->answer_ms > 0 && now >= w->answer_ms) {
		if (!w->met)
			return say(CLIENT_NO_SERVER, "the server sent "
			    "no answer in %d s", CLIENT_WATCH_MS / 1000);
		client_watch_away(w, c, "no answer");
	}
	if (now >= w->next_ms)
		status = client_watch_ask(w, c, now);
	if (status)
		return status;
	until = w->answer_ms > 0 && w->answer_ms < w->next_ms ? w->answer_ms :
	    w->next_ms;
	/* The second row: nobody reads what we print any more. */
	if (!print_flush() || (poll(p, 2, (int)(until - now)) > 0 &&
	    p[1].revents & (POLLERR | POLLNVAL)))
		return CLIENT_REFUSED;
	while (status == 0 && (n = client_take(c)) != 0)
		status = n < 0 ? client_unreachable(c, n) :
		    client_watch_event(w, c, (size_t)n);
	return status;
}

static int
client_watch_verb(struct client *c)
{
	struct client_watch w = { .met = false };
	int status = client_open(c, false);

	signal(SIGINT, client_stop);
	signal(SIGTERM, client_stop);
	while (status == 0)
		status = client_watch_turn(&w, c);
	return status;
}

/*
 * ---- top
 *
 * A live view for a terminal, drawn anew every second: the counters that
 * matter, then as many sockets as one reply and the screen hold.
 */
#include <termios.h>

static const char *const top_names[] = { "uptime", "sockets_open",
	"sockets_away", "messages_taken", "delivered", "acknowledged",
	"dropped", "store_bytes", "store_bytes_max" };

struct top {
	u64 now[COUNT(top_names)], before[COUNT(top_names)];
	bool known; /* now[] is of a second ago */
	int rows, columns;
};

static struct termios top_terminal; /* as we found it */

static void
top_restore(void)
{
	/* The cursor is seen, long lines wrap, the other screen is back. */
	static const char leave[] = "\033[?25h\033[?7h\033[?1049l";

	(void)!write(STDOUT_FILENO, leave, sizeof leave - 1);
	tcsetattr(STDIN_FILENO, TCSANOW, &top_terminal);
}

static void
top_stop(int sig)
{
	(void)sig;
	top_restore();
	_exit(CLIENT_DONE);
}

static bool
top_enter(void)
{
	struct termios t;

	if (!isatty(STDOUT_FILENO) || tcgetattr(STDIN_FILENO, &t) < 0)
		return false;
	top_terminal = t;
	signal(SIGINT, top_stop);
	signal(SIGTERM, top_stop);
	signal(SIGHUP, top_stop);
	t.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	tcsetattr(STDIN_FILENO, TCSANOW, &t);
	print("\033[?1049h\033[?7l\033[?25l");
	return true;
}

/* The statistics that we know, three a line, each with what it grew by. */
static void
top_counters(struct top *t, struct str body)
{
	struct str line, name;

	memcpy(t->before, t->now, sizeof t->before);
	while (split_next(&body, '\n', &line)) {
		(void)split_next(&line, ' ', &name);
		for (size_t i = 0; i < COUNT(top_names); i++)
			if (str_is(name, top_names[i]))
				text_u64(&t->now[i], line);
	}
	for (size_t i = 0; i < COUNT(top_names); i++) {
		print("%s %llu", top_names[i], t->now[i]);
		if (t->known && i > 0 && t->now[i] > t->before[i])
			print(" (+%llu)", (t->now[i] -
			    t->before[i]));
		print(i % 3 < 2 ? "   " : "\033[K\n");
	}
	t->known = true;
}

/* A row of `list`.  Each field begins in its column and erases what the one
 * before it had too much; the terminal cuts the last one. */
static void
top_row(const struct top *t, struct str row)
{
	static const int column[] = { 1, 32, 38, 44, 52, 59, 81, 87 };
	struct str field;

	for (size_t i = 0; i < COUNT(column) && column[i] <= t->columns &&
	    split_next(&row, '\t', &field); i++)
		print("\033[%dG\033[K%.*s", column[i], STR_ARGS(field));
	print("\n");
}

static void
top_rows(const struct top *t, struct str rows)
{
	static const char skip[] = "/services/";
	struct str row;

	print("\033[K\n\033[7m");
	top_row(t, STR("SOCKET\tSTATE\tMSGS\tBYTES\tAGE\tPEER\tDROPS\tTAGS"));
	print("\033[m");
	for (int i = 6; i < t->rows && split_next(&rows, '\n', &row); i++)
		top_row(t, str_begins(row, skip) ?
		    text_from(row, sizeof skip - 1) : row);
}

static int
top_ask(struct client *c, const char *verb)
{
	c->verb = verb;
	return client_head(c) || client_target(c) || client_ask(c);
}

/* One look.  What fails is said in the first line, which is kept empty for
 * it, and the next second tries again. */
static void
top_turn(struct top *t, struct client *c)
{
	struct winsize w = { .ws_row = 0 };
	int status;

	print("\033[H\033[K");
	print_flush();
	ioctl(STDOUT_FILENO, TIOCGWINSZ, &w);
	t->rows = w.ws_row > 0 ? w.ws_row : 24;
	t->columns = w.ws_col > 0 ? w.ws_col : 80;
	c->deadline_ms = sys_clock_ms(CLOCK_MONOTONIC) + c->limit_ms;
	status = top_ask(c, "stats");
	if (status == 0) {
		top_counters(t, c->reply.body);
		status = top_ask(c, "list");
	}
	if (status == 0) {
		top_rows(t, c->reply.body);
	} else {
		t->known = false;
		close(c->fd);
		c->fd = -1;
	}
	print("\033[J");
}

static int
client_top_verb(struct client *c)
{
	struct pollfd key = { .fd = STDIN_FILENO, .events = POLLIN };
	struct top t = { .known = false };
	char pressed = 0;

	if (!top_enter())
		return client_wrong("it needs a terminal; `wspush stats` "
		    "and `wspush list` do not");
	while (pressed != 'q') {
		top_turn(&t, c);
		if (!print_flush() || (poll(&key, 1, 1000) > 0 &&
		    read(STDIN_FILENO, &pressed, 1) <= 0))
			break;
	}
	top_restore();
	return CLIENT_DONE;
}

/* ----- 53. Main ----------------------------------------------------------
 *
 * Which verb there is, and what help says of it.
 */
#ifndef WSP_BEARSSL
#define WSP_BEARSSL "0.6" /* bearssl.h does not say */
#endif

static int main_help(int argc, char **argv);
static int main_version(int argc, char **argv);

/* In the order of tools/help.txt, which begins with the list of verbs. */
static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	int (*ask)(struct client *c); /* or this, of a running server */
	const char *options;
	u8 min, max;          /* arguments, the first a target; 255: any */
} main_commands[] = {
	{ "serve", .run = serve_command },
	{ "send", NULL, client_send_verb, "s:k:t:K:rw:", 1, 2 },
	{ "list", NULL, client_list_verb, "s:j", 0, 1 },
	{ "tag", NULL, client_tag_verb, "s:R", 1, 255 },
	{ "close", NULL, client_close_verb, "s:c:", 1, 2 },
	{ "abort", NULL, client_abort_verb, "s:", 1, 1 },
	{ "stats", NULL, client_stats_verb, "s:j", 0, 0 },
	{ "watch", NULL, client_watch_verb, "s:", 0, 1 },
	{ "top", NULL, client_top_verb, "s:", 0, 0 },
	{ "ping", NULL, client_ping_verb, "s:", 0, 0 },
	{ "cert", .run = tls_cert_command },
	{ "token", .run = token_command },
	{ "version", .run = main_version },
	{ "help", .run = main_help },
};

static int
main_ask(const struct command *v, int argc, char **argv)
{
	static struct client c;
	int status = client_start(&c, v->options, argc, argv, v->min,
	    v->max < 255 ? v->max : INT_MAX);

	return status ? status : v->ask(&c);
}

/* The list of verbs, or for one of them its whole help. */
static struct str
main_text(const struct command *v)
{
	return texts_read(v ? 2 + (u32)(v - main_commands) : 1, client_room,
	    sizeof client_room);
}

static int
main_explain(const struct command *v)
{
	if (v && v->run == serve_command)
		serve_print_help(main_text(v));
	else
		print_str(main_text(v));
	if (v && v->ask)
		print("\nWithout -s PATH the push socket is $WSPUSH_SOCKET, or "
		    WSP_PUSH_PATH ".\n");
	return CLIENT_DONE;
}

/* How the verb is called: what its help begins with. */
static void
main_print_usage(const struct command *v)
{
	struct str text = main_text(v), line;

	print_fd = STDERR_FILENO;
	while (split_next(&text, '\n', &line) && line.n > 0) {
		print_str(line);
		print("\n");
	}
}

static int
main_version(int argc, char **argv)
{
	if (argc > 1)
		return say(CLIENT_USAGE, "too many arguments at '%s'",
		    argv[1]);
	print("wspush " WSP_VERSION " (BearSSL " WSP_BEARSSL ", TLS 1.2)\n");
	return CLIENT_DONE;
}

static bool
main_is(const char *arg, const char *word, const char *letter)
{
	return strcmp(arg, word) == 0 || strcmp(arg, letter) == 0;
}

/* Runs the verb that argv[0] names. */
static int
main_run(int argc, char **argv)
{
	const struct command *v = main_commands;
	const struct command *end = v + COUNT(main_commands);
	int status;

	while (v < end && strcmp(v->name, argv[0]) != 0)
		v++;
	if (v == end)
		return say(CLIENT_USAGE, "there is no verb '%s'; "
		    "`wspush help` lists them", argv[0]);
	if (argc > 1 && main_is(argv[1], "--help", "-h"))
		return main_explain(v);
	if (v->run == tls_cert_command || v->run == token_command)
		sandbox_hide_memory(); /* they read keys, as serve does */
	status = v->run ? v->run(argc, argv) : main_ask(v, argc, argv);
	if (status == CLIENT_USAGE && v->run != serve_command &&
	    v->run != main_help)
		main_print_usage(v);
	return status;
}

/* `wspush help VERB` is `wspush VERB --help`. */
static int
main_help(int argc, char **argv)
{
	char help[] = "--help";
	char *verb[] = { argv[1], help, NULL };

	return argc < 2 ? main_explain(NULL) : main_run(2, verb);
}

int
main(int argc, char **argv)
{
	char help[] = "help", version[] = "version";
	int status;

	/* A closed standard stream becomes one that fails, so that no socket
	 * takes its number and is printed into. */
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			(void)!open("/dev/null", fd == STDIN_FILENO ? O_WRONLY :
			    O_RDONLY);
	if (argc > 1 && main_is(argv[1], "--help", "-h"))
		argv[1] = help;
	if (argc > 1 && main_is(argv[1], "--version", "-V"))
		argv[1] = version;
	if (argc > 1) {
		status = main_run(argc - 1, argv + 1);
	} else {
		print_fd = STDERR_FILENO;
		main_explain(NULL);
		status = CLIENT_USAGE;
	}
	/* A full disk or a closed pipe: what we had to say is lost.  Of a pipe
	 * nobody wants to hear it. */
	if (!print_flush() && print_lost != EPIPE)
		say(CLIENT_REFUSED, "what this prints cannot be written: %s",
		    strerror(print_lost));
	return print_lost && status == CLIENT_DONE ? CLIENT_REFUSED : status;
}

#endif /* WSP_PURE_ONLY */
