/*
 * SPDX-License-Identifier: MIT
 *
 * Room Targets: terms, socketIds, and tags as ids and `tag` requests
 * spell them.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* The exact copy that the slices of the last text point into. */
static char *held;

static struct str
hold(const char *text)
{
	size_t n = strlen(text);

	free(held);
	held = malloc(n > 0 ? n : 1);
	assert_non_null(held);
	memcpy(held, text, n);
	return (struct str){ held, n };
}

static int
let_go(void **state)
{
	(void)state;
	free(held);
	held = NULL;
	return 0;
}

static void
text_is(struct str s, const char *text)
{
	if (s.n != strlen(text) || (s.n > 0 && !str_is(s, text)))
		fail_msg("\"%.*s\" is not \"%s\"", (int)s.n, s.p, text);
}

static struct target target;

static void
good(const char *text, size_t terms)
{
	const char *why = target_parse(&target, hold(text));

	if (why)
		fail_msg("%s: %s", text, why);
	assert_int_equal(target.n, terms);
	text_is(target.text, text);
}

static void
bad(const char *text, const char *words)
{
	const char *why = target_parse(&target, hold(text));

	if (!why)
		fail_msg("%s was taken", text);
	if (strstr(why, words) == NULL)
		fail_msg("%s: %s", text, why);
}

static void
term(size_t i, enum term_kind kind, const char *name, const char *value)
{
	assert_int_equal(target.terms[i].kind, kind);
	text_is(target.terms[i].name, name);
	text_is(target.terms[i].value, value);
}

static void
every_kind_of_term_is_read(void **state)
{
	(void)state;
	good("/services/main-s-id:1 /services/main $a $b:1 $c:[x,y] =open "
	    "=away *", 7);
	term(0, TERM_SOCKET, "main", "id:1");
	term(1, TERM_SERVICE, "main", "");
	term(2, TERM_TAG, "a", "");
	term(3, TERM_TAG_VALUE, "b", "1");
	term(4, TERM_TAG_LIST, "c", "x,y");
	term(5, TERM_OPEN, "", "");
	term(6, TERM_AWAY, "", "");
	assert_ptr_equal(target.socket, &target.terms[0]);
}

static void
a_star_selects_everything_and_needs_no_row(void **state)
{
	(void)state;
	good("*", 0);
	assert_null(target.socket);
	good("* * *", 0);
	good("* $a", 1);
}

static void
a_socket_id_has_anything_behind_its_dash(void **state)
{
	(void)state;
	good("/services/a.b_9-v-x", 1);
	term(0, TERM_SOCKET, "a.b_9", "x");
	good("/services/a-s-/?#\x01\xff-s-:[]", 1);
	term(0, TERM_SOCKET, "a", "/?#\x01\xff-s-:[]");
	good("/services/a-s--v-", 1);
	bad("/services/a-s-", "/services/NAME");
	bad("/services/a-v-", "/services/NAME");
}

static void
a_path_that_is_no_service_is_refused(void **state)
{
	static const char *const text[] = { "/", "/services", "/services/",
		"/services/a/", "/services/a/b", "/services/.", "/services/..",
		"/services/..-s-1", "/services/a-", "/services/a-x",
		"/services/a-s", "/services/a-S-1", "/services/a-x-1",
		"/services/-s-1", "/services/a%20b", "/services/a*",
		"/services/\xc3\xa9", "/service/a", "/Services/a" };
	(void)state;

	for (size_t i = 0; i < COUNT(text); i++)
		bad(text[i], "/services/NAME");
}

static void
a_service_name_is_1_to_64_bytes(void **state)
{
	char text[100];
	(void)state;

	for (size_t n = 63; n <= 65; n++) {
		memset(text, 'n', sizeof text);
		memcpy(text, "/services/", 10);
		text[10 + n] = '\0';
		assert_int_equal(!target_parse(&target, hold(text)), n <= 64);
		strcpy(text + 10 + n, "-s-1");
		assert_int_equal(!target_parse(&target, hold(text)), n <= 64);
	}
	for (int c = 0; c < 256; c++) {
		char one = (char)c;
		bool ok = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z')
		    || (c >= 'A' && c <= 'Z') || c == '_';

		assert_int_equal(service_name_valid((struct str){ &one, 1 }),
		    ok);
	}
	assert_false(service_name_valid(STR("")));
	assert_false(service_name_valid(STR(".")));
	assert_false(service_name_valid(STR("..")));
	assert_true(service_name_valid(STR("...")));
	assert_true(service_name_valid(STR(".a")));
}

static void
a_second_socket_id_is_refused_and_a_second_service_is_not(void **state)
{
	(void)state;
	bad("/services/a-s-1 /services/a-s-2", "at most one");
	bad("/services/a-s-1 $b /services/a-s-1", "at most one");
	good("/services/a /services/b /services/a-s-1", 3);
	assert_ptr_equal(target.socket, &target.terms[2]);
}

static void
the_first_colon_ends_a_tags_name(void **state)
{
	(void)state;
	good("$a:b:c", 1);
	term(0, TERM_TAG_VALUE, "a", "b:c");
	good("$a:", 1);
	term(0, TERM_TAG_VALUE, "a", "");
	good("$a::", 1);
	term(0, TERM_TAG_VALUE, "a", ":");
	good("$a:*", 1);
	term(0, TERM_TAG_VALUE, "a", "*");
	good("$$:$", 1);
	term(0, TERM_TAG_VALUE, "$", "$");
	bad("$", "needs a name");
	bad("$:v", "needs a name");
	bad("$:", "needs a name");
	bad("$:[a]", "needs a name");
}

static void
a_tag_that_cannot_be_is_well_formed(void **state)
{
	(void)state;
	good("$-x", 1);
	good("$\x01:\xff", 1);
	good("$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 1);
}

static void
a_list_of_values_stands_in_brackets(void **state)
{
	(void)state;
	good("$a:[x]", 1);
	term(0, TERM_TAG_LIST, "a", "x");
	good("$a:[,]", 1);
	term(0, TERM_TAG_LIST, "a", ",");
	good("$a:[[x]]", 1);
	term(0, TERM_TAG_LIST, "a", "[x]");
	good("$a:x]", 1);
	term(0, TERM_TAG_VALUE, "a", "x]");
	good("$a:b[x]", 1);
	term(0, TERM_TAG_VALUE, "a", "b[x]");
	bad("$a:[]", "list");
	bad("$a:[", "list");
	bad("$a:[x", "list");
	bad("$a:[x]y", "list");
	bad("$a:[x, y]", "list");
}

static void
a_list_has_its_values_and_no_others(void **state)
{
	struct str list = STR("10001,,10002"), value;
	(void)state;

	assert_true(target_list_has(list, STR("10001")));
	assert_true(target_list_has(list, STR("10002")));
	assert_true(target_list_has(list, STR("")));
	assert_false(target_list_has(list, STR("1000")));
	assert_false(target_list_has(list, STR("10001,")));
	assert_false(target_list_has(STR("a"), STR("")));
	assert_true(target_list_has(STR("a,"), STR("")));
	assert_true(split_next(&list, ',', &value));
	text_is(value, "10001");
	assert_true(split_next(&list, ',', &value));
	text_is(value, "");
	assert_true(split_next(&list, ',', &value));
	text_is(value, "10002");
	assert_false(split_next(&list, ',', &value));
}

static void
what_is_no_term_is_refused(void **state)
{
	static const char *const text[] = { "x", "**", "*a", "=", "=Open",
		"=opened", "=closed", "* kind=json", "$a x", "kind=json",
		"\t", "$a\n=open x" };
	(void)state;

	for (size_t i = 0; i < COUNT(text); i++)
		bad(text[i], "terms are");
	bad("", "empty");
	bad("   ", "empty");
}

static void
the_longest_header_line_has_room_for_its_terms(void **state)
{
	char text[WSP_MAX_REQUEST_LINE + 8];
	size_t n = 0;
	(void)state;

	for (size_t i = 0; i < TARGET_TERMS; i++)
		n += (size_t)sprintf(text + n, "%s$a", i > 0 ? " " : "");
	assert_in_range(n, WSP_MAX_REQUEST_LINE - 2, WSP_MAX_REQUEST_LINE);
	good(text, TARGET_TERMS);
	strcpy(text + n, " *");
	assert_null(target_parse(&target, hold(text)));
	strcpy(text + n, " $a");
	bad(text, "too many");
}

static void
the_canonical_text_has_one_space_between_terms(void **state)
{
	char text[40];
	struct out o = out_to(text, sizeof text);
	(void)state;

	good("  *   $a:b    =open ", 2);
	target_text(&o, &target);
	assert_int_equal(o.n, strlen("* $a:b =open"));
	assert_memory_equal(text, "* $a:b =open", o.n);
	o = out_to(text, 3);
	target_text(&o, &target);
	assert_true(o.full);
}

static void
a_socket_id_is_cut_up(void **state)
{
	(void)state;
	good("/services/main-s-id:1", 1);
	term(0, TERM_SOCKET, "main", "id:1");
	assert_true(target.socket->stateful);
	good("/services/main-v-x", 1);
	term(0, TERM_SOCKET, "main", "x");
	assert_false(target.socket->stateful);
	good("/services/main", 1);
	term(0, TERM_SERVICE, "main", "");
	bad("/main-s-x", "/services/NAME");
}

static void
tag_names_and_values_keep_their_limits(void **state)
{
	char text[128];
	(void)state;

	memset(text, 'x', sizeof text);
	for (size_t n = 31; n <= 33; n++)
		assert_int_equal(tag_name_valid((struct str){ text, n }),
		    n <= 32);
	for (size_t n = 95; n <= 97; n++)
		assert_int_equal(tag_value_valid((struct str){ text, n }),
		    n <= 96);
	assert_false(tag_name_valid(STR("")));
	assert_true(tag_value_valid(STR("")));
	assert_false(tag_name_valid(STR("-a")));
	assert_true(tag_name_valid(STR("a-")));
	assert_true(tag_value_valid(STR("-a:b")));
	assert_false(tag_name_valid(STR("a:b")));
	assert_false(tag_name_valid(STR("a b")));
	assert_false(tag_name_valid(STR("a\x7f")));
	assert_false(tag_value_valid(STR("a\xff")));
	assert_false(tag_value_valid(STR("a\tb")));
	assert_true(tag_name_valid(STR("\xc3\xa9")));
	assert_true(tag_name_valid(STR("service")));
}

static void
lines_of_a_tag_body_set_and_remove(void **state)
{
	struct str rest = hold("\na:1\n\n\nb:x:y\n-c\nd:\n-e-");
	struct tag_line t;
	(void)state;

	assert_int_equal(tag_line_next(&t, &rest, '\n'), 1);
	assert_false(t.remove);
	text_is(t.name, "a");
	text_is(t.value, "1");
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 1);
	text_is(t.name, "b");
	text_is(t.value, "x:y");
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 1);
	assert_true(t.remove);
	text_is(t.name, "c");
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 1);
	assert_false(t.remove);
	text_is(t.name, "d");
	text_is(t.value, "");
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 1);
	assert_true(t.remove);
	text_is(t.name, "e-");
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 0);
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 0);
	rest = hold("");
	assert_int_equal(tag_line_next(&t, &rest, '\n'), 0);
}

static void
a_bad_tag_line_is_refused_with_a_sentence(void **state)
{
	static const struct {
		const char *line, *words;
	} rows[] = {
		{ "a", "name:value" }, { ":v", "name is" }, { "-", "name is" },
		{ "--a", "name is" }, { "-a:1", "name is" },
		{ "a b:1", "name is" }, { "a:1 2", "value is" },
		{ "a:1\r", "value is" }, { "a:\xff", "value is" },
		{ "service:x", "service" }, { "-service", "service" },
		{ " a:1", "name is" },
	};
	struct tag_line t;
	(void)state;

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct str rest = hold(rows[i].line);

		if (tag_line_next(&t, &rest, '\n') != -1
		    || strstr(t.why, rows[i].words) == NULL)
			fail_msg("%s: %s", rows[i].line, t.why);
	}
}

/* The tags of an id, as "name=value;...". */
static void
id_gives(const char *id, const char *tags)
{
	struct str rest = hold(id), name, value;
	char text[200];
	struct out o = out_to(text, sizeof text - 1);

	while (id_tag_next(&rest, &name, &value)) {
		out_str(&o, name);
		out_char(&o, '=');
		out_str(&o, value);
		out_char(&o, ';');
	}
	assert_false(o.full);
	text[o.n] = '\0';
	assert_string_equal(text, tags);
}

static void
an_id_of_pairs_gives_tags(void **state)
{
	(void)state;
	id_gives("id:10001::group_id:10002", "id=10001;group_id=10002;");
	id_gives("123", "");
	id_gives("a", "");
	id_gives("", "");
	id_gives("a:b:c", "a=b:c;");
	id_gives("a:", "a=;");
	id_gives("a:1::x::b:2", "a=1;b=2;");
	id_gives("a:1::", "a=1;");
	id_gives("::a:1", "a=1;");
	id_gives("a:::b:1", ""); /* `a`, then `:b:1` */
	id_gives(":::::", "");
	id_gives("a:1::a:2", "a=1;a=2;");
}

static void
a_pair_with_a_bad_name_gives_no_tag(void **state)
{
	(void)state;
	id_gives("-a:1::b:2", "b=2;");
	id_gives(":1::b:2", "b=2;");
	id_gives("service:x::b:2", "b=2;");
	id_gives("services:x", "services=x;");
}

static bool
id_valid(const char *id)
{
	return id_tags_check(hold(id)) == NULL;
}

static void
an_id_has_at_most_16_different_names(void **state)
{
	char id[200];
	size_t n = 0;
	(void)state;

	for (int i = 0; i < 16; i++)
		n += (size_t)sprintf(id + n, "%s%c:1", i > 0 ? "::" : "",
		    'a' + i);
	assert_true(id_valid(id));
	strcpy(id + n, "::a:2::p:3::service:x::-q:1::zz");
	assert_true(id_valid(id));
	strcpy(id + n, "::q:1");
	assert_false(id_valid(id));
}

static void
a_name_or_value_in_an_id_has_its_limit(void **state)
{
	char id[200];
	(void)state;

	for (int n = 31; n <= 33; n++) {
		snprintf(id, sizeof id, "%0*d:x", n, 1);
		assert_int_equal(id_valid(id), n <= 32);
	}
	for (int n = 95; n <= 97; n++) {
		snprintf(id, sizeof id, "a:%0*d", n, 1);
		assert_int_equal(id_valid(id), n <= 96);
		snprintf(id, sizeof id, "a:%0*d::a:1", n, 1);
		assert_int_equal(id_valid(id), n <= 96);
	}
	snprintf(id, sizeof id, "service:%0100d", 1);
	assert_true(id_valid(id));
	snprintf(id, sizeof id, "%0100d", 1);
	assert_true(id_valid(id));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_of_term_is_read),
		cmocka_unit_test(a_star_selects_everything_and_needs_no_row),
		cmocka_unit_test(a_socket_id_has_anything_behind_its_dash),
		cmocka_unit_test(a_path_that_is_no_service_is_refused),
		cmocka_unit_test(a_service_name_is_1_to_64_bytes),
		cmocka_unit_test(
		    a_second_socket_id_is_refused_and_a_second_service_is_not),
		cmocka_unit_test(the_first_colon_ends_a_tags_name),
		cmocka_unit_test(a_tag_that_cannot_be_is_well_formed),
		cmocka_unit_test(a_list_of_values_stands_in_brackets),
		cmocka_unit_test(a_list_has_its_values_and_no_others),
		cmocka_unit_test(what_is_no_term_is_refused),
		cmocka_unit_test(
		    the_longest_header_line_has_room_for_its_terms),
		cmocka_unit_test(
		    the_canonical_text_has_one_space_between_terms),
		cmocka_unit_test(a_socket_id_is_cut_up),
		cmocka_unit_test(tag_names_and_values_keep_their_limits),
		cmocka_unit_test(lines_of_a_tag_body_set_and_remove),
		cmocka_unit_test(a_bad_tag_line_is_refused_with_a_sentence),
		cmocka_unit_test(an_id_of_pairs_gives_tags),
		cmocka_unit_test(a_pair_with_a_bad_name_gives_no_tag),
		cmocka_unit_test(an_id_has_at_most_16_different_names),
		cmocka_unit_test(a_name_or_value_in_an_id_has_its_limit),
	};

	return cmocka_run_group_tests(tests, NULL, let_go);
}
