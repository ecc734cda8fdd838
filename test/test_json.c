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

static enum json_shape
shape(const char *text)
{
	struct str s = exact(text, strlen(text)), value;
	enum json_shape found = json_shape(&value, s);

	drop(s);
	return found;
}

static void
every_kind_of_value_is_json(void **state)
{
	static const char *const good[] = { "0", "-0", "1", "-1", "10", "123",
		"0.5", "-0.5e+10", "1E5", "1e-5", "1.25e0", "0e0", "true",
		"false", "null", "\"\"", "\"a\"", "\"\\\"\"", "\"\\\\\"",
		"\"\\/\\b\\f\\n\\r\\t\"", "\"\\u0041\\uD83D\\ude00\"",
		"\"\\ud800\"", "\"\x7f\"", "\"\xd0\x96\"", "{}", "{ }",
		"{\"a\":1}", "{\"\":{\"\":{}}}",
		" { \"a\" : [ 1 , { } , [ ] ] , \"b\" : null } ",
		"\t\r\n 1 \n\r\t", "\"12345678901234567890\\n1234567\"" };

	(void)state;
	for (size_t i = 0; i < COUNT(good); i++)
		if (shape(good[i]) != JSON_SINGLE)
			fail_msg("%s", good[i]);
}

static void
an_array_is_known_by_its_first_bracket(void **state)
{
	static const char *const array[] = { "[]", "[ ]", " [1]", "[1,2]",
		"\n[{\"a\":[]},[[]]]\n", "[[]]", "[\"]\"]", "[null,true]" };

	(void)state;
	for (size_t i = 0; i < COUNT(array); i++)
		assert_int_equal(shape(array[i]), JSON_ARRAY);
}

static const char *const not_json[] = { "", " ", "\n", "a", "tru", "trua",
	"truex", "True", "nul", "nulll", "fals", "01", "-", "-a", "+1", ".5",
	"1.", "1.e5", "1e", "1e+", "1e5.5", "0x10", "1 2", "00", "-01",
	"NaN", "Infinity", "-Infinity", "1_0", "\"", "\"a", "\"\\\"",
	"\"\\a\"", "\"\\u\"", "\"\\u12\"", "\"\\u123g\"", "\"\\U0041\"",
	"\"\\x41\"", "\"\n\"", "\"\t\"", "\"\x1f\"", "'a'", "\"a\" b", "[",
	"]", "[1", "[1,", "[1,]", "[,1]", "[,]", "[1 2]", "[1,,2]", "[}", "{",
	"}", "{]", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}",
	"{,}", "{\"a\"}", "{\"a\",1}", "{a:1}", "{1:1}", "{\"a\":1 \"b\":2}",
	"{\"a\"::1}", "{\"a\":1:2}", "[\"a\":1]", "[1}", "{\"a\":1]", "[]]",
	"{}}", "[] []", "[]1", "// c\n1", "1 // c", "/**/1", "\xef\xbb\xbf[1]",
	"\f1", "\v1", "1\xc2\xa0", "\"1234567\n9\"", "[\"a]", "{\"a\":tru}",
	"nulx", "[nul]" };

static void
what_is_almost_json_is_not(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(not_json); i++)
		if (shape(not_json[i]) != JSON_NOT)
			fail_msg("%s", not_json[i]);
}

static void
a_nul_byte_is_not_json_anywhere(void **state)
{
	struct str value;

	(void)state;
	assert_int_equal(json_shape(&value, STR("\0")), JSON_NOT);
	assert_int_equal(json_shape(&value, STR("1\0")), JSON_NOT);
	assert_int_equal(json_shape(&value, STR("\0" "1")), JSON_NOT);
	assert_int_equal(json_shape(&value, STR("\"\0\"")), JSON_NOT);
	assert_int_equal(json_shape(&value, STR("\"\\\0\"")), JSON_NOT);
	assert_int_equal(json_shape(&value, STR("[1,\0]")), JSON_NOT);
}

/* No beginning of an array, an object or a string is JSON. */
static void
json_cut_short_is_refused(void **state)
{
	static const char text[] = "{\"a\":[1,-2.5e+3,\"x\\n\\u0041y\",{}],"
	    "\"long enough for words\":[true,false,null]}";

	(void)state;
	for (size_t n = 0; n < sizeof text - 1; n++) {
		struct str s = exact(text, n), value;

		assert_int_equal(json_shape(&value, s), JSON_NOT);
		drop(s);
	}
	assert_int_equal(shape(text), JSON_SINGLE);
}

/* A bad byte is found wherever it stands in a word of eight. */
static void
no_control_character_hides_in_a_string(void **state)
{
	char text[40];

	(void)state;
	for (size_t at = 1; at < 39; at++)
		for (int c = 0; c < 256; c++) {
			struct str s, value;
			bool bad = c < 0x20 || c == '"' || c == '\\';

			memset(text, at % 2 ? 'z' : ' ', sizeof text);
			text[0] = text[39] = '"';
			text[at] = (char)c;
			s = exact(text, sizeof text);
			assert_int_equal(json_shape(&value, s),
			    bad ? JSON_NOT : JSON_SINGLE);
			drop(s);
		}
}

static void
nesting_counts_up_to_its_limit(void **state)
{
	char text[4 * (WSP_JSON_DEPTH + 1) + 2];

	(void)state;
	for (size_t depth = WSP_JSON_DEPTH - 1; depth <= WSP_JSON_DEPTH + 1;
	    depth++) {
		bool fits = depth <= WSP_JSON_DEPTH;
		struct str value;
		struct out o;

		memset(text, '[', depth);
		memset(text + depth, ']', depth);
		assert_int_equal(json_shape(&value,
		    (struct str){ text, 2 * depth }),
		    fits ? JSON_ARRAY : JSON_NOT);

		o = out_to(text, sizeof text);
		for (size_t i = 1; i < depth; i++)
			out_text(&o, "[");
		out_text(&o, "{}");
		for (size_t i = 1; i < depth; i++)
			out_text(&o, "]");
		assert_false(o.full);
		assert_int_equal(json_shape(&value, (struct str){ text, o.n }),
		    fits ? JSON_ARRAY : JSON_NOT);
	}
}

/* Side by side they cost no depth. */
static void
many_neighbours_are_not_deep(void **state)
{
	char text[8 * WSP_JSON_DEPTH];
	struct out o = out_to(text, sizeof text);
	struct str value;

	(void)state;
	out_char(&o, '[');
	for (int i = 0; i < 2 * WSP_JSON_DEPTH; i++)
		out_text(&o, i ? ",[]" : "[]");
	out_char(&o, ']');
	assert_false(o.full);
	assert_int_equal(json_shape(&value, (struct str){ text, o.n }),
	    JSON_ARRAY);
}

static void
a_value_is_given_without_the_white_space_around_it(void **state)
{
	struct str value;

	(void)state;
	json_shape(&value, STR(" \t\r\n{ \"a\": 1 }\n "));
	assert_true(str_is(value, "{ \"a\": 1 }"));
	json_shape(&value, STR("1"));
	assert_true(str_is(value, "1"));
	assert_int_equal(json_shape(&value, (struct str){ NULL, 0 }), JSON_NOT);
	assert_int_equal(json_string_size((struct str){ NULL, 0 }), 2);
	assert_int_equal(json_shape(&value, STR(" no json ")), JSON_NOT);
	assert_true(str_is(value, " no json "));
}

static void
check_string(struct str plain, struct str want)
{
	char to[256];
	struct str s = exact(plain.p, plain.n);
	struct out o = out_to(to, want.n), small = out_to(to, want.n - 1);

	assert_int_equal(json_string_size(s), want.n);
	json_string(&o, s);
	assert_false(o.full);
	assert_int_equal(o.n, want.n);
	assert_memory_equal(to, want.p, want.n);
	json_string(&small, s);
	assert_true(small.full);
	drop(s);
}

static void
a_string_is_escaped_in_the_shortest_way(void **state)
{
	(void)state;
	check_string(STR(""), STR("\"\""));
	check_string(STR("a/b"), STR("\"a/b\""));
	check_string(STR("\"\\\b\f\n\r\t"), STR("\"\\\"\\\\\\b\\f\\n\\r\\t\""));
	check_string(STR("\0\1\x1f\x7f"),
	    STR("\"\\u0000\\u0001\\u001f\x7f\""));
	check_string(STR("\xd0\x96\xe2\x80\xa8\xf0\x9f\x98\x80"),
	    STR("\"\xd0\x96\xe2\x80\xa8\xf0\x9f\x98\x80\""));
	check_string(STR("12345678\n12345678\""),
	    STR("\"12345678\\n12345678\\\"\""));
}

static void
every_character_goes_there_and_back(void **state)
{
	char plain[4], coded[16], back[4];

	(void)state;
	for (u32 c = 0; c <= 0x10ffff; c += c < 0x3000 ? 1 : 97) {
		size_t n = utf8_put(plain, c);
		struct out o = out_to(coded, sizeof coded);
		struct json_token t;
		struct str text;

		json_string(&o, (struct str){ plain, n });
		text = (struct str){ coded, o.n };
		assert_int_equal(json_tokens(&t, 1, text), 1);
		assert_int_equal(t.kind, JSON_IS_STRING);
		assert_int_equal(json_decode(back, n, text), n);
		assert_memory_equal(back, plain, n);
		assert_int_equal(json_decode(back, n - 1, text), -2);
	}
}

static void
escapes_mean_their_characters(void **state)
{
	static const char quoted[] = "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041"
	    "\\u00e9\\u20AC\\uD83D\\uDE00\\u0000z\"";
	static const char want[] = "\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac"
	    "\xf0\x9f\x98\x80\0z";
	char to[64];
	int n = json_decode(to, sizeof to, STR(quoted));

	(void)state;
	assert_int_equal(n, sizeof want - 1);
	assert_memory_equal(to, want, sizeof want - 1);
}

static void
half_a_surrogate_pair_is_no_character(void **state)
{
	static const char *const bad[] = { "\"\\ud800\"", "\"\\udc00\"",
		"\"\\ud83dx\"", "\"\\ud83d\\n\"", "\"\\ud83d\\ud83d\"",
		"\"\\ude00\\ud83d\"", "\"\\ud83d\\u0041\"",
		"\"\\udbff123456\"" };
	char to[64];

	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		struct str s = exact(bad[i], strlen(bad[i]));

		assert_int_equal(json_decode(to, sizeof to, s), -1);
		assert_int_equal(json_tokens(NULL, 0, s), 1);
		drop(s);
	}
}

static void
tokens_say_where_they_are_and_what_they_hold(void **state)
{
	struct str text = STR(" {\"a\":[-1,{}],\"b\":null,\"c\":\"x\"} ");
	struct json_token t[16];

	(void)state;
	assert_int_equal(json_tokens(t, COUNT(t), text), 9);
	assert_int_equal(t[0].kind, JSON_IS_OBJECT);
	assert_int_equal(t[0].next, 9);
	assert_true(str_is(t[0].text,
	    "{\"a\":[-1,{}],\"b\":null,\"c\":\"x\"}"));
	assert_true(str_is(t[1].text, "\"a\""));
	assert_int_equal(t[2].kind, JSON_IS_ARRAY);
	assert_int_equal(t[2].next, 5);
	assert_true(str_is(t[2].text, "[-1,{}]"));
	assert_int_equal(t[3].kind, JSON_IS_NUMBER);
	assert_true(str_is(t[3].text, "-1"));
	assert_int_equal(t[3].next, 4);
	assert_int_equal(t[4].kind, JSON_IS_OBJECT);
	assert_int_equal(t[4].next, 5);
	assert_true(str_is(t[4].text, "{}"));
	assert_int_equal(t[6].kind, JSON_IS_NULL);
	assert_true(str_is(t[8].text, "\"x\""));
}

static void
the_token_table_is_never_overrun(void **state)
{
	struct str text = STR("[1,{\"a\":[true,false]}]");
	int count = json_tokens(NULL, 0, text);

	(void)state;
	assert_int_equal(count, 7);
	for (int cap = 0; cap <= count + 1; cap++) {
		struct json_token *t = malloc((size_t)(cap ? cap : 1) *
		    sizeof *t);

		assert_non_null(t);
		assert_int_equal(json_tokens(t, (size_t)cap, text),
		    cap < count ? -2 : count);
		assert_int_equal(json_tokens(t, (size_t)cap, STR("[1,2,3")),
		    -1);
		free(t);
	}
}

static void
a_member_is_found_by_its_name(void **state)
{
	struct str text = STR("[{\"a\":{\"b\":1},\"b\":2,\"\\u0063\":3,"
	    "\"d\":4,\"d\":5,\"\\ud800\":6},7]");
	struct json_token t[32];

	(void)state;
	assert_int_equal(json_tokens(t, COUNT(t), text), 17);
	assert_int_equal(json_member(t, 0, "a"), -1);
	assert_int_equal(json_member(t, 16, "a"), -1);
	assert_int_equal(json_member(t, 1, "a"), 3);
	assert_true(str_is(t[json_member(t, 3, "b")].text, "1"));
	assert_true(str_is(t[json_member(t, 1, "b")].text, "2"));
	assert_true(str_is(t[json_member(t, 1, "c")].text, "3"));
	assert_true(str_is(t[json_member(t, 1, "d")].text, "5"));
	assert_int_equal(json_member(t, 1, "e"), -1);
	assert_int_equal(json_member(t, 1, ""), -1);
}

static void
only_a_string_is_a_word(void **state)
{
	(void)state;
	assert_true(json_string_is(STR("\"ping\""), "ping"));
	assert_true(json_string_is(STR("\"p\\u0069ng\""), "ping"));
	assert_false(json_string_is(STR("\"pin\""), "ping"));
	assert_false(json_string_is(STR("5"), "ping"));
	assert_false(json_string_is(STR("null"), "ul"));
	assert_false(json_string_is(STR("12345"), "234"));
	assert_false(json_string_is(STR("[]"), ""));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_of_value_is_json),
		cmocka_unit_test(an_array_is_known_by_its_first_bracket),
		cmocka_unit_test(what_is_almost_json_is_not),
		cmocka_unit_test(a_nul_byte_is_not_json_anywhere),
		cmocka_unit_test(json_cut_short_is_refused),
		cmocka_unit_test(no_control_character_hides_in_a_string),
		cmocka_unit_test(nesting_counts_up_to_its_limit),
		cmocka_unit_test(many_neighbours_are_not_deep),
		cmocka_unit_test(
		    a_value_is_given_without_the_white_space_around_it),
		cmocka_unit_test(a_string_is_escaped_in_the_shortest_way),
		cmocka_unit_test(only_a_string_is_a_word),
		cmocka_unit_test(every_character_goes_there_and_back),
		cmocka_unit_test(escapes_mean_their_characters),
		cmocka_unit_test(half_a_surrogate_pair_is_no_character),
		cmocka_unit_test(tokens_say_where_they_are_and_what_they_hold),
		cmocka_unit_test(the_token_table_is_never_overrun),
		cmocka_unit_test(a_member_is_found_by_its_name),
	};

	return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
