/*
 * SPDX-License-Identifier: MIT
 *
 * Room Tags: who has which, and whom a target selects.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define ROWS     6
#define BUCKETS  2 /* so that strangers share a chain */
#define TAG_ROWS (ROWS * WSP_MAX_TAGS)

static struct sockets sockets;
static struct tags tags;
static struct sock *row;
static char (*long_id)[WSP_MAX_ID];
static u32 bucket[BUCKETS], tag_bucket[BUCKETS];
static struct tag *tag_row;
static char (*text)[TAG_TEXT];
static const struct str services[] = { { "main", 4 }, { "echo", 4 } };

static int
open_tables(void **state)
{
	(void)state;
	row = malloc(ROWS * sizeof *row);
	long_id = malloc(ROWS * sizeof *long_id);
	tag_row = malloc(TAG_ROWS * sizeof *tag_row);
	text = malloc(TAG_ROWS * sizeof *text);
	if (!row || !long_id || !tag_row || !text)
		return -1;
	memset(row, 0xee, ROWS * sizeof *row);
	memset(tag_row, 0xee, TAG_ROWS * sizeof *tag_row);
	memset(bucket, 0, sizeof bucket);
	memset(tag_bucket, 0, sizeof tag_bucket);
	sockets = (struct sockets){ .row = row, .long_id = long_id,
		.bucket = bucket, .service = services,
		.services = COUNT(services) };
	sock_init(&sockets, ROWS, BUCKETS, 99);
	tags = (struct tags){ .row = tag_row, .text = text,
		.bucket = tag_bucket, .sockets = &sockets };
	tags_init(&tags, TAG_ROWS, BUCKETS);
	return 0;
}

static int
close_tables(void **state)
{
	(void)state;
	free(row);
	free(long_id);
	free(tag_row);
	free(text);
	return 0;
}

static struct str
of(const char *s)
{
	return (struct str){ s, strlen(s) };
}

/* A stateful socket of `main` with the tags that its id spells. */
static u32
add(const char *id)
{
	u32 i = sock_add(&sockets, 0, true, of(id), 0);

	tags_from_id(&tags, i);
	return i;
}

static void
set(u32 sock, enum tag_origin origin, const char *name, const char *value)
{
	struct str n = of(name), v = of(value);

	tag_set(&tags, sock, origin, &n, &v);
}

static void
forget(u32 sock)
{
	tags_drop(&tags, sock, TAG_TOKEN, TAG_CLIENT);
	sock_unbind(&sockets, sock);
	sock_remove(&sockets, sock);
}

/* The whole room's books: every tag row that hangs at a socket stands once
 * in the chain of its hash, and nothing else does. */
static void
check(void)
{
	u32 owned = 0, indexed = 0;

	for (u32 i = 0; i < ROWS; i++) {
		u32 n = 0;

		if (!sock_is_used(&sockets, i))
			continue;
		for (u32 k = row[i].tags; k != NONE; k = tag_row[k].next, n++)
			assert_int_equal(tag_row[k].sock, i);
		assert_int_equal(row[i].tag_count, n);
		owned += n;
	}
	for (u32 b = 0; b < BUCKETS; b++) {
		u32 last = NONE;

		for (u32 k = tag_bucket[b] - 1; k != NONE;
		    k = tag_row[k].next_alike) {
			assert_int_equal(tag_row[k].prev_alike, last);
			assert_int_equal(tag_row[k].hash & (BUCKETS - 1), b);
			assert_int_equal(tag_row[k].hash, tag_hash(&tags,
			    tag_name(&tags, k), tag_value(&tags, k)));
			last = k;
			indexed++;
		}
	}
	assert_int_equal(owned, indexed);
}

static void
has(u32 sock, const char *name, const char *value)
{
	u32 i = tag_find(&tags, sock, of(name));

	assert_int_not_equal(i, NONE);
	assert_true(str_is(tag_name(&tags, i), name));
	assert_true(str_is(tag_value(&tags, i), value));
}

static void
has_not(u32 sock, const char *name)
{
	assert_int_equal(tag_find(&tags, sock, of(name)), NONE);
}

/* Whom the target selects, as bits; each socket at most once. */
static u32
selected(const char *target_text_)
{
	static struct target target;
	u32 *rows = malloc(ROWS * sizeof *rows), set_of = 0, n;
	const char *why = target_parse(&target, of(target_text_));

	assert_non_null(rows);
	if (why)
		fail_msg("%s: %s", target_text_, why);
	n = tags_select(&tags, &target, rows);
	assert_true(n <= ROWS);
	for (u32 k = 0; k < n; k++) {
		assert_true(sock_is_used(&sockets, rows[k]));
		if (set_of & 1u << rows[k])
			fail_msg("%s selects %u twice", target_text_, rows[k]);
		set_of |= 1u << rows[k];
	}
	for (u32 i = 0; i < ROWS; i++)
		if (sock_is_used(&sockets, i) &&
		    tags_match(&tags, i, &target) != ((set_of >> i & 1) != 0))
			fail_msg("%s: index and look disagree about %u",
			    target_text_, i);
	free(rows);
	return set_of;
}

static void
an_id_gives_its_tags_and_the_last_of_a_name_wins(void **state)
{
	u32 i = add("id:10001::group_id:10002::x::id:7::e:");

	(void)state;
	has(i, "id", "7");
	has(i, "group_id", "10002");
	has(i, "e", "");
	has_not(i, "x");
	has_not(i, "service");
	assert_int_equal(row[i].tag_count, 3);
	check();
}

static void
a_tag_of_an_id_has_no_text_of_its_own(void **state)
{
	char fresh[TAG_TEXT];

	(void)state;
	memset(text, 0xee, TAG_ROWS * sizeof *text);
	memset(fresh, 0xee, sizeof fresh);
	add("id:1::group:2");
	for (u32 k = 0; k < TAG_ROWS; k++)
		assert_memory_equal(text[k], fresh, sizeof fresh);
}

static void
tags_point_into_a_long_id_too(void **state)
{
	char id[WSP_MAX_ID + 1];
	u32 i;

	(void)state;
	memset(id, 'v', sizeof id);
	memcpy(id, "a:", 2);
	memcpy(id + WSP_MAX_ID - 33, "::last:", 7);
	id[WSP_MAX_ID] = '\0';
	i = add(id);
	assert_int_equal(row[i].id_n, WSP_MAX_ID);
	has(i, "last", "vvvvvvvvvvvvvvvvvvvvvvvvvv");
	check();
}

static void
the_longest_name_and_value_fit_exactly(void **state)
{
	char *name = malloc(WSP_MAX_TAG_NAME), *value = malloc(
	    WSP_MAX_TAG_VALUE);
	struct str n = { name, WSP_MAX_TAG_NAME };
	struct str v = { value, WSP_MAX_TAG_VALUE };
	u32 i, k;

	(void)state;
	assert_non_null(name);
	assert_non_null(value);
	memset(name, 'n', n.n);
	memset(value, 'v', v.n);
	i = add("x");
	tag_set(&tags, i, TAG_PUSH, &n, &v);
	k = tag_find(&tags, i, n);
	assert_int_not_equal(k, NONE);
	assert_true(str_eq(tag_value(&tags, k), v));
	free(name);
	free(value);
}

static void
setting_a_name_again_replaces_its_value_and_origin(void **state)
{
	u32 i = add("id:1");

	(void)state;
	set(i, TAG_TOKEN, "id", "2");
	has(i, "id", "2");
	set(i, TAG_PUSH, "p", "");
	set(i, TAG_PUSH, "p", "longer");
	has(i, "p", "longer");
	assert_int_equal(row[i].tag_count, 2);
	assert_int_equal(tag_row[tag_find(&tags, i, STR("id"))].origin,
	    TAG_TOKEN);
	assert_int_equal(selected("$id:1"), 0);
	assert_int_equal(selected("$id:2"), 1u << i);
	assert_int_equal(selected("$p:"), 0);
	check();
}

static void
removed_tags_leave_the_index_whatever_the_order(void **state)
{
	static const char *const name[] = { "a", "b", "c", "d" };
	u32 i = add("x"), other = add("y");

	(void)state;
	set(other, TAG_PUSH, "a", "1");
	for (u32 first = 0; first < COUNT(name); first++)
		for (u32 step = 1; step < COUNT(name); step += 2) {
			u32 at = first;

			for (u32 k = 0; k < COUNT(name); k++)
				set(i, TAG_PUSH, name[k], "1");
			for (u32 k = 0; k < COUNT(name); k++) {
				tag_remove(&tags,
				    tag_find(&tags, i, of(name[at])));
				has_not(i, name[at]);
				check();
				at = (at + step) % COUNT(name);
			}
			assert_int_equal(selected("$a:1"), 1u << other);
			assert_int_equal(selected("$b:1"), 0);
		}
	tags_drop(&tags, other, TAG_TOKEN, TAG_CLIENT);
	tags_drop(&tags, other, TAG_TOKEN, TAG_CLIENT);
	assert_int_equal(selected("$a"), 0);
	check();
}

static void
every_socket_may_have_its_sixteen_tags_at_once(void **state)
{
	(void)state;
	for (u32 round = 0; round < 3; round++) {
		for (u32 s = 0; s < ROWS; s++) {
			char id[2] = { (char)('a' + s), '\0' };
			u32 i = add(id);

			for (u32 k = 0; k < WSP_MAX_TAGS; k++) {
				char name[2] = { (char)('a' + k), '\0' };

				set(i, TAG_PUSH, name, id);
				set(i, TAG_TOKEN, name, id);
			}
			assert_int_equal(row[i].tag_count, WSP_MAX_TAGS);
		}
		check();
		assert_int_equal(selected("$p"), (1u << ROWS) - 1);
		for (u32 s = 0; s < ROWS; s++)
			forget(s);
		check();
		assert_int_equal(selected("*"), 0);
	}
	assert_int_equal(tags.fresh, TAG_ROWS);
}

static void
a_group_is_those_with_the_value_and_no_one_else(void **state)
{
	u32 a = add("id:1::g:x"), b = add("id:2::g:x"), c = add("id:3::g:xx");
	u32 d = add("id:4::gx:"), e = add("plain");

	(void)state;
	assert_int_equal(selected("$g:x"), 1u << a | 1u << b);
	assert_int_equal(selected("$g:xx"), 1u << c);
	assert_int_equal(selected("$gx:"), 1u << d);
	assert_int_equal(selected("$g:"), 0);
	assert_int_equal(selected("$g:X"), 0);
	assert_int_equal(selected("$g"), 1u << a | 1u << b | 1u << c);
	assert_int_equal(selected("*"), (1u << 5) - 1);
	assert_int_equal(selected("$nobody"), 0);
	forget(a);
	assert_int_equal(selected("$g:x"), 1u << b);
	assert_int_equal(selected("*"),
	    1u << b | 1u << c | 1u << d | 1u << e);
}

/* Finds two numbers whose hashes as values of `v` are the same. */
static void
find_twins(char a[12], char b[12])
{
	enum { SLOTS = 1 << 16 };
	u32 *slot = calloc(SLOTS, sizeof *slot), *hash = calloc(SLOTS,
	    sizeof *hash), n = 1;

	assert_non_null(slot);
	assert_non_null(hash);
	for (;; n++) {
		u32 h, at;

		snprintf(b, 12, "%u", n);
		h = tag_hash(&tags, STR("v"), of(b));
		at = h % SLOTS;
		if (slot[at] != 0 && hash[at] == h)
			break;
		slot[at] = n;
		hash[at] = h;
		assert_true(n < 100000000);
	}
	snprintf(a, 12, "%u", slot[tag_hash(&tags, STR("v"), of(b)) % SLOTS]);
	free(slot);
	free(hash);
}

static void
values_with_one_hash_are_still_two_groups(void **state)
{
	char first[12], second[12], id[20], target[20];
	u32 a, b;

	(void)state;
	find_twins(first, second);
	snprintf(id, sizeof id, "v:%s", first);
	a = add(id);
	snprintf(id, sizeof id, "v:%s", second);
	b = add(id);
	assert_int_equal(tag_row[row[a].tags].hash, tag_row[row[b].tags].hash);
	snprintf(target, sizeof target, "$v:%s", first);
	assert_int_equal(selected(target), 1u << a);
	snprintf(target, sizeof target, "$v:%s", second);
	assert_int_equal(selected(target), 1u << b);
}

static void
a_list_selects_each_socket_once_though_a_value_comes_again(void **state)
{
	u32 a = add("v:1"), b = add("v:2"), c = add("v:"), d = add("v:3");
	u32 ab = 1u << a | 1u << b;

	(void)state;
	(void)d;
	assert_int_equal(selected("$v:[1,2]"), ab);
	assert_int_equal(selected("$v:[1,1]"), 1u << a);
	assert_int_equal(selected("$v:[1,2,1]"), ab);
	assert_int_equal(selected("$v:[2,1,1,2,2]"), ab);
	assert_int_equal(selected("$v:[9,1,11,1]"), 1u << a);
	assert_int_equal(selected("$v:[,]"), 1u << c);
	assert_int_equal(selected("$v:[,1,]"), 1u << c | 1u << a);
	assert_int_equal(selected("$v:[1,,1,]"), 1u << c | 1u << a);
	assert_int_equal(selected("$v:[1]"), 1u << a);
	assert_int_equal(selected("$w:[1,2]"), 0);
}

static void
all_terms_must_match_whichever_has_an_index(void **state)
{
	u32 a = add("v:1::w:1"), b = add("v:1::w:2"), c = add("v:2::w:2");

	(void)state;
	(void)a;
	sock_bind(&sockets, b, 0, 0);
	assert_int_equal(selected("$v:1 $w:2"), 1u << b);
	assert_int_equal(selected("$w:[1,2] $v:2"), 1u << c);
	assert_int_equal(selected("$v $w:[2] =open"), 1u << b);
	assert_int_equal(selected("=away $w:2"), 1u << c);
	assert_int_equal(selected("=away =open"), 0);
	assert_int_equal(selected("$v:1 $v:2"), 0);
	assert_int_equal(selected("$v:1 $v:[1,2] $v"), 1u << a | 1u << b);
}

static void
service_is_selectable_though_it_is_no_row(void **state)
{
	u32 a = add("v:1"), b = sock_add(&sockets, 1, true, STR("v:1"), 0);

	(void)state;
	tags_from_id(&tags, b);
	assert_int_equal(selected("$service"), 1u << a | 1u << b);
	assert_int_equal(selected("$service:echo"), 1u << b);
	assert_int_equal(selected("$service:[main,none,main]"), 1u << a);
	assert_int_equal(selected("$service:main $v:1"), 1u << a);
	assert_int_equal(selected("/services/echo"), 1u << b);
	assert_int_equal(selected("/services/echo $v:1"), 1u << b);
	assert_int_equal(selected("/services/main /services/echo"), 0);
	assert_int_equal(selected("/services/none"), 0);
	assert_int_equal(sock_find_service(&sockets, STR("echo")), 1);
	assert_int_equal(sock_find_service(&sockets, STR("ech")), NONE);
	assert_int_equal(sock_find_service(&sockets, STR("echos")), NONE);
}

static u32
find(const char *socket_id)
{
	static struct target target;

	assert_null(target_parse(&target, of(socket_id)));
	assert_non_null(target.socket);
	return tags_find_socket(&tags, target.socket);
}

static void
a_socket_id_selects_one_and_only_if_the_other_terms_match(void **state)
{
	u32 a = add("v:1"), b = add("v:2");
	u32 v = sock_add(&sockets, 0, false, STR("v:1"), 0);
	char long_name[256] = "/services/main-s-";

	(void)state;
	row[v].conn = NONE;
	assert_int_equal(selected("/services/main-s-v:1"), 1u << a);
	assert_int_equal(selected("/services/main-v-v:1"), 1u << v);
	assert_int_equal(selected("/services/main-s-v:3"), 0);
	assert_int_equal(selected("/services/echo-s-v:1"), 0);
	assert_int_equal(selected("/services/none-s-v:1"), 0);
	assert_int_equal(selected("/services/main-s-v:2 $v:2"), 1u << b);
	assert_int_equal(selected("$v:1 /services/main-s-v:2"), 0);
	assert_int_equal(selected("/services/main-s-v:2 =open"), 0);
	assert_int_equal(find("/services/main-s-v:2"), b);
	assert_int_equal(find("/services/main-s-v:3"), NONE);
	memset(long_name + 17, 'x', WSP_MAX_ID + 1);
	assert_int_equal(find(long_name), NONE);
}

static void
a_forgotten_sockets_row_takes_no_tag_along(void **state)
{
	u32 i = add("id:1::g:2");

	(void)state;
	set(i, TAG_CLIENT, "c", "3");
	forget(i);
	assert_int_equal(add("other"), i);
	assert_int_equal(row[i].tag_count, 0);
	assert_int_equal(selected("$id:1"), 0);
	assert_int_equal(selected("$c"), 0);
	check();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, open_tables, close_tables)
		T(an_id_gives_its_tags_and_the_last_of_a_name_wins),
		T(a_tag_of_an_id_has_no_text_of_its_own),
		T(tags_point_into_a_long_id_too),
		T(the_longest_name_and_value_fit_exactly),
		T(setting_a_name_again_replaces_its_value_and_origin),
		T(removed_tags_leave_the_index_whatever_the_order),
		T(every_socket_may_have_its_sixteen_tags_at_once),
		T(a_group_is_those_with_the_value_and_no_one_else),
		T(values_with_one_hash_are_still_two_groups),
		T(a_list_selects_each_socket_once_though_a_value_comes_again),
		T(all_terms_must_match_whichever_has_an_index),
		T(service_is_selectable_though_it_is_no_row),
		T(a_socket_id_selects_one_and_only_if_the_other_terms_match),
		T(a_forgotten_sockets_row_takes_no_tag_along),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
