/* SPDX-License-Identifier: MIT */
/* Room Basics: load and store, slices, the writer that cannot overrun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../wspush.c"

static void
numbers_on_the_wire_are_big_endian(void **state)
{
	static const u8 wire[] = { 0x01, 0x02, 0x03, 0x04, 0xf5, 0xf6, 0xf7,
		0xf8 };
	u8 *p = malloc(8);

	(void)state;
	assert_non_null(p);
	assert_int_equal(load16(wire), 0x0102);
	assert_int_equal(load16(wire + 6), 0xf7f8);
	assert_true(load64(wire) == UINT64_C(0x01020304f5f6f7f8));
	store16(p, 0xf7f8);
	assert_memory_equal(p, wire + 6, 2);
	store64(p, UINT64_C(0x01020304f5f6f7f8));
	assert_memory_equal(p, wire, 8);
	free(p);
}

static void
slices_are_equal_by_length_and_bytes(void **state)
{
	struct str none = { NULL, 0 };

	(void)state;
	assert_true(str_eq(STR("abc"), STR("abc")));
	assert_false(str_eq(STR("abc"), STR("abd")));
	assert_false(str_eq(STR("abc"), STR("ab")));
	assert_true(str_eq(none, STR("")));
	assert_true(str_is(STR("send"), "send"));
	assert_false(str_is(STR("send"), "sen"));
	assert_false(str_is(STR("sen"), "send"));
	assert_true(str_begins(STR("/services/x"), "/services/"));
	assert_true(str_begins(STR("x"), ""));
	assert_false(str_begins(STR("/serv"), "/services/"));
	assert_int_equal(min_size(3, 4), 3);
	assert_int_equal(min_size(4, 3), 3);
}

static void
what_fits_exactly_is_written(void **state)
{
	char *room = malloc(6);
	struct out o = out_to(room, 6);

	(void)state;
	assert_non_null(room);
	out_text(&o, "ab");
	out_char(&o, 'c');
	out_str(&o, STR("d"));
	out_bytes(&o, "", 0);
	out_u64(&o, 42);
	assert_false(o.full);
	assert_int_equal(o.n, 6);
	assert_memory_equal(room, "abcd42", 6);
	free(room);
}

static void
what_does_not_fit_writes_nothing_and_nothing_after_it(void **state)
{
	char *room = malloc(3);
	struct out o = out_to(room, 3);

	(void)state;
	assert_non_null(room);
	out_text(&o, "ab");
	out_text(&o, "cd");
	assert_true(o.full);
	assert_int_equal(o.n, 2);
	out_char(&o, 'e');
	assert_true(o.full);
	assert_int_equal(o.n, 2);
	free(room);
}

static void
numbers_are_written_whole(void **state)
{
	static const struct {
		u64 v;
		const char *text;
	} rows[] = { { 0, "0" }, { 9, "9" }, { 10, "10" },
		{ UINT64_MAX, "18446744073709551615" } };

	(void)state;
	for (size_t i = 0; i < COUNT(rows); i++) {
		char room[20];
		struct out o = out_to(room, sizeof room);

		out_u64(&o, rows[i].v);
		assert_false(o.full);
		assert_true(str_is((struct str){ room, o.n }, rows[i].text));
	}
}

/* libc is the oracle. */
#define PRINTS_LIKE_LIBC(...)                                                 \
	do {                                                                  \
		char ours[100], libc[100];                                    \
		int n = snprintf(libc, sizeof libc, __VA_ARGS__);             \
		struct out o = out_to(ours, (size_t)n);                       \
		out_print(&o, __VA_ARGS__);                                   \
		assert_false(o.full);                                         \
		assert_int_equal(o.n, n);                                     \
		assert_memory_equal(ours, libc, n);                           \
	} while (0)

static void
formats_mean_what_they_mean_to_libc(void **state)
{
	(void)state;
	PRINTS_LIKE_LIBC("nothing");
	PRINTS_LIKE_LIBC("%d%%, %s and %c", 7, "text", 'c');
	PRINTS_LIKE_LIBC("%d %d %d", INT32_MIN, -1, INT32_MAX);
	PRINTS_LIKE_LIBC("%lld %ld", (long long)INT64_MIN, -2L);
	PRINTS_LIKE_LIBC("%u %lu %llu %zu", UINT32_MAX, 3ul,
	    (unsigned long long)UINT64_MAX, (size_t)4);
	PRINTS_LIKE_LIBC("%x %016llx", 0xabcdu, 0x1234567890abcdefull);
	PRINTS_LIKE_LIBC("[%10s|%-10s|%3s|%-3s]", "right", "left", "long",
	    "long");
	PRINTS_LIKE_LIBC("[%04d%02d|%8u|%-4d]", 25, 7, 12u, 3);
	PRINTS_LIKE_LIBC("%.*s|%.*s", 2, "abc", 0, "abc");
}

static void
a_text_too_long_is_cut_and_terminated(void **state)
{
	char *room = malloc(6);

	(void)state;
	assert_string_equal(text_print(room, 6, "%s-%d", "ab", 12345), "ab-12");
	assert_string_equal(text_print(room, 6, "%s", "longer"), "longe");
	assert_string_equal(text_print(room, 1, "%s", "longer"), "");
	free(room);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers_on_the_wire_are_big_endian),
		cmocka_unit_test(slices_are_equal_by_length_and_bytes),
		cmocka_unit_test(what_fits_exactly_is_written),
		cmocka_unit_test(
		    what_does_not_fit_writes_nothing_and_nothing_after_it),
		cmocka_unit_test(numbers_are_written_whole),
		cmocka_unit_test(formats_mean_what_they_mean_to_libc),
		cmocka_unit_test(a_text_too_long_is_cut_and_terminated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
