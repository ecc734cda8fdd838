/* SPDX-License-Identifier: MIT */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

/* The bytes in an allocation that ends where they end. */
static struct str
exact(const char *p, size_t n)
{
	char *copy = malloc(n ? n : 1);

	assert_non_null(copy);
	memcpy(copy, p, n);
	return (struct str){ copy, n };
}

static void
drop(struct str s)
{
	free((char *)(uintptr_t)s.p);
}

static void
a_number_is_digits_and_nothing_else(void **state)
{
	static const char *const bad[] = { "", " 1", "1 ", "+1", "-1", "0x1",
		"1.", "1a", "a", "/", ":", "18446744073709551616",
		"99999999999999999999" };
	u64 v = 7;

	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		struct str s = exact(bad[i], strlen(bad[i]));

		assert_false(text_u64(&v, s));
		assert_true(text_number(s, INT64_MAX) == -1);
		drop(s);
	}
	assert_int_equal(v, 7);
	assert_true(text_u64(&v, STR("0")));
	assert_int_equal(v, 0);
	assert_true(text_u64(&v, STR("0010")));
	assert_int_equal(v, 10);
	assert_true(text_u64(&v, STR("18446744073709551615")));
	assert_true(v == UINT64_MAX);
}

static void
a_number_above_its_limit_is_refused(void **state)
{
	(void)state;
	for (int64_t max = 0; max < 1200; max++) {
		char text[20];
		struct out o = out_to(text, sizeof text);
		struct str s = { text, 0 };

		out_u64(&o, (u64)max);
		s.n = o.n;
		assert_true(text_number(s, max) == max);
		if (max > 0)
			assert_true(text_number(s, max - 1) == -1);
		assert_true(text_number(s, max + 1) == max);
	}
	assert_true(text_number(STR("9223372036854775807"), INT64_MAX) ==
	    INT64_MAX);
	assert_true(text_number(STR("9223372036854775808"), INT64_MAX) == -1);
}

static void
letters_are_equal_in_either_case_and_nothing_else_is(void **state)
{
	(void)state;
	assert_true(text_same(STR(""), STR("")));
	assert_true(text_same(STR("Sec-WebSocket-Key"),
	    STR("sEC-wEBsOCKET-kEY")));
	assert_false(text_same(STR("a"), STR("ab")));
	assert_false(text_same(STR("ab"), STR("a")));
	assert_false(text_same(STR("@"), STR("`")));
	assert_false(text_same(STR("["), STR("{")));
	assert_false(text_same(STR("\xc4"), STR("\xe4")));
}

static void
white_space_goes_from_both_ends_only(void **state)
{
	(void)state;
	assert_true(str_is(text_trim(
	    STR(" \t\r a \t\r\nb\t\n ")), "a \t\r\nb"));
	assert_true(str_is(text_trim(STR("  ")), ""));
	assert_true(str_is(text_trim(STR("")), ""));
	assert_true(str_eq(text_trim(STR("\0 \0")), STR("\0 \0")));
	assert_true(str_eq(text_trim(STR("\v\f")), STR("\v\f")));
}

static void
a_list_is_cut_into_its_pieces(void **state)
{
	struct str rest = exact("a,,bc,", 6), all = rest, piece;

	(void)state;
	assert_true(split_next(&rest, ',', &piece));
	assert_true(str_is(piece, "a"));
	assert_true(split_next(&rest, ',', &piece));
	assert_true(str_is(piece, ""));
	assert_true(split_next(&rest, ',', &piece));
	assert_true(str_is(piece, "bc"));
	assert_true(split_next(&rest, ',', &piece));
	assert_true(str_is(piece, ""));
	assert_null(rest.p);
	assert_false(split_next(&rest, ',', &piece));
	drop(all);
}

static const struct {
	const char *plain, *coded;
} base64_pair[] = {
	{ "", "" }, { "f", "Zg==" }, { "fo", "Zm8=" }, { "foo", "Zm9v" },
	{ "foob", "Zm9vYg==" }, { "fooba", "Zm9vYmE=" },
	{ "foobar", "Zm9vYmFy" }, { "\xfb\xff\xfe", "+//+" },
};

static void
base64_goes_there_and_back(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(base64_pair); i++) {
		struct str plain = text_of(base64_pair[i].plain);
		struct str coded = text_of(base64_pair[i].coded);
		char to[64];
		u8 back[64];

		assert_int_equal(base64_encode(to, (const u8 *)plain.p,
		    plain.n, BASE64), coded.n);
		assert_memory_equal(to, coded.p, coded.n);
		assert_int_equal(base64_decode(back, plain.n, coded, BASE64),
		    plain.n);
		assert_memory_equal(back, plain.p, plain.n);
		if (plain.n > 0)
			assert_int_equal(base64_decode(back, plain.n - 1,
			    coded, BASE64), -1);
	}
}

static void
base64url_goes_there_and_back_without_padding(void **state)
{
	u8 bytes[67], back[67];
	char to[96];

	(void)state;
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (u8)(i * 89 + 250);
	for (size_t n = 0; n <= sizeof bytes; n++) {
		size_t made = base64_encode(to, bytes, n, BASE64URL);
		struct str s = exact(to, made);

		assert_int_equal(made, (n * 4 + 2) / 3);
		assert_null(memchr(to, '=', made));
		assert_int_equal(base64_decode(back, n, s, BASE64URL), n);
		assert_memory_equal(back, bytes, n);
		drop(s);
	}
	assert_int_equal(base64_encode(to, (const u8 *)"\xfb\xff\xfe", 3,
	    BASE64URL),
	    4);
	assert_memory_equal(to, "-__-", 4);
}

static void
base64_in_another_spelling_is_refused(void **state)
{
	static const char *const bad[] = { "Z", "Zg", "Zg=", "Zg===", "Zm9",
		"=", "==", "===", "====", "Z===", "Zg==Zg==", "Zm=v", "Zm9v=",
		"Zm9v====", "Zh==", "Zm9=", "Zm9v\n", " Zm9v", "Zm 9", "-__-",
		"Zm\xc3\xb6" };
	static const char *const bad_url[] = { "Z", "Zg==", "Zh", "Zm9=",
		"Zm8=", "Zm9vY", "+//+", "Zm9", "a.b" };
	u8 to[64];

	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		struct str s = exact(bad[i], strlen(bad[i]));

		assert_int_equal(base64_decode(to, sizeof to, s, BASE64), -1);
		drop(s);
	}
	for (size_t i = 0; i < COUNT(bad_url); i++)
		assert_int_equal(base64_decode(to, sizeof to,
		    text_of(bad_url[i]), BASE64URL), -1);
}

static void
percent_signs_are_undone_and_a_plus_stays(void **state)
{
	char to[8];
	struct str s = exact("a%20%7a+%C3%bc", 14);

	(void)state;
	assert_int_equal(percent_decode(to, 6, s), 6);
	assert_memory_equal(to, "a z+\xc3\xbc", 6);
	assert_int_equal(percent_decode(to, 5, s), -2);
	assert_int_equal(percent_decode(to, 0, STR("")), 0);
	drop(s);
}

static void
a_bad_percent_escape_is_refused(void **state)
{
	static const char *const bad[] = { "%", "%4", "a%", "%zz", "%4z",
		"%z4", "%%41", "% 41", "%-1", "%0x41", "a%2" };
	char to[16];

	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		struct str s = exact(bad[i], strlen(bad[i]));

		assert_int_equal(percent_decode(to, sizeof to, s), -1);
		drop(s);
	}
}

static bool
utf8_slowly(const u8 *p, size_t n)
{
	u8 now = UTF8_START;

	for (size_t i = 0; i < n; i++)
		now = utf8_run(now, p + i, 1);
	return now == UTF8_START;
}

static void
every_code_point_is_valid_utf8_but_no_surrogate(void **state)
{
	char to[4];

	(void)state;
	for (u32 c = 0; c <= 0x10ffff; c++) {
		size_t n = utf8_put(to, c);

		if (c >= 0xd800 && c <= 0xdfff)
			assert_false(text_is_utf8(to, n));
		else if (!text_is_utf8(to, n))
			fail_msg("U+%04X", (unsigned)c);
	}
}

/* All texts of up to three bytes: how many are valid is known. */
static void
nothing_but_code_points_is_valid_utf8(void **state)
{
	unsigned valid[4] = { 0 };

	(void)state;
	for (u32 v = 0; v < 1U << 24; v++) {
		u8 b[3] = { (u8)(v >> 16), (u8)(v >> 8), (u8)v };

		if (v < 1U << 8)
			valid[1] += text_is_utf8(b + 2, 1);
		if (v < 1U << 16)
			valid[2] += text_is_utf8(b + 1, 2);
		if (b[0] >= 0xe0)
			valid[3] += text_is_utf8(b, 3);
	}
	assert_int_equal(valid[1], 128);
	assert_int_equal(valid[2], 128 * 128 + 0x800 - 0x80);
	assert_int_equal(valid[3], 0x10000 - 0x800 - 2048);
}

static const struct {
	const char *text;
	int fails_at; /* index of the first impossible byte; -1: only cut */
} utf8_bad[] = {
	{ "\x80", 0 }, { "\xbf", 0 }, { "\xc0\x80", 0 }, { "\xc1\xbf", 0 },
	{ "\xf5\x80\x80\x80", 0 }, { "\xff", 0 }, { "\xfe", 0 },
	{ "\xc3" "a", 1 }, { "\xc3\xc3", 1 }, { "\xe0\x9f\xbf", 1 },
	{ "\xed\xa0\x80", 1 }, { "\xed\xbf\xbf", 1 }, { "\xe2\x82\xc0", 2 },
	{ "\xf0\x8f\xbf\xbf", 1 }, { "\xf4\x90\x80\x80", 1 },
	{ "\xf1\x80\x80\x7f", 3 }, { "12345678\x80", 8 },
	{ "1234567\xc3\xbc" "12345678\xed\xa0\x80", 18 }, { "\xc3", -1 },
	{ "\xe2\x82", -1 }, { "\xf0\x9f\x98", -1 }, { "abcdefgh\xf4", -1 },
};

static void
bad_utf8_fails_at_the_first_impossible_byte(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(utf8_bad); i++) {
		size_t n = strlen(utf8_bad[i].text);
		struct str s = exact(utf8_bad[i].text, n);
		const u8 *p = (const u8 *)s.p;
		int at = utf8_bad[i].fails_at;

		assert_false(text_is_utf8(p, n));
		assert_false(utf8_slowly(p, n));
		for (size_t k = 0; k <= n; k++) {
			u8 now = utf8_run(UTF8_START, p, k);

			assert_int_equal(now == UTF8_BAD,
			    at >= 0 && k > (size_t)at);
			/* Cut there, and go on. */
			assert_int_equal(utf8_run(now, p + k, n - k),
			    utf8_run(UTF8_START, p, n));
		}
		drop(s);
	}
}

static void
utf8_may_be_cut_anywhere(void **state)
{
	static const char text[] = "plain ASCII first, \xd0\x96\xd1\x83\xd0\xba"
	    ", \xe2\x82\xac, \xf0\x9f\x98\x80\xf4\x8f\xbf\xbf\xee\x80\x80 end";
	size_t n = sizeof text - 1;

	(void)state;
	for (size_t a = 0; a <= n; a++) {
		struct str one = exact(text, a), two = exact(text + a, n - a);
		u8 now = utf8_run(UTF8_START, (const u8 *)one.p, a);

		assert_int_not_equal(now, UTF8_BAD);
		assert_int_equal(utf8_run(now, (const u8 *)two.p, n - a),
		    UTF8_START);
		drop(one);
		drop(two);
	}
}

static void
an_id_has_no_white_space_and_no_control_character(void **state)
{
	char to[4];

	(void)state;
	for (u32 c = 0; c < 0x3000; c++) {
		size_t n = utf8_put(to, c);
		struct str s = exact(to, n);
		bool clean = c > 0x20 && (c < 0x7f || c > 0x9f);

		assert_int_equal(text_is_clean(s), clean);
		drop(s);
	}
	assert_true(text_is_clean(STR("id:10001::group_id:10002")));
	assert_false(text_is_clean(STR("a b")));
	assert_false(text_is_clean(STR("abc\xc3")));
	assert_false(text_is_clean(STR("abc\n")));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_number_is_digits_and_nothing_else),
		cmocka_unit_test(a_number_above_its_limit_is_refused),
		cmocka_unit_test(
		    letters_are_equal_in_either_case_and_nothing_else_is),
		cmocka_unit_test(white_space_goes_from_both_ends_only),
		cmocka_unit_test(a_list_is_cut_into_its_pieces),
		cmocka_unit_test(base64_goes_there_and_back),
		cmocka_unit_test(base64url_goes_there_and_back_without_padding),
		cmocka_unit_test(base64_in_another_spelling_is_refused),
		cmocka_unit_test(percent_signs_are_undone_and_a_plus_stays),
		cmocka_unit_test(a_bad_percent_escape_is_refused),
		cmocka_unit_test(
		    every_code_point_is_valid_utf8_but_no_surrogate),
		cmocka_unit_test(nothing_but_code_points_is_valid_utf8),
		cmocka_unit_test(bad_utf8_fails_at_the_first_impossible_byte),
		cmocka_unit_test(utf8_may_be_cut_anywhere),
		cmocka_unit_test(
		    an_id_has_no_white_space_and_no_control_character),
	};

	return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
