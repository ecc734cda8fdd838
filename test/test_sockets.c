/*
 * SPDX-License-Identifier: MIT
 *
 * Room Sockets: rows, ids, lookup, open and away, and UUIDs.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define ROWS 5

static struct sockets table;
static struct sock *row;
static char (*long_id)[WSP_MAX_ID];
static u32 *bucket;

static void
open_table(u32 rows, u32 buckets)
{
	row = malloc(rows * sizeof *row);
	long_id = malloc(rows * sizeof *long_id);
	bucket = calloc(buckets, sizeof *bucket);
	assert_non_null(row);
	assert_non_null(long_id);
	assert_non_null(bucket);
	memset(row, 0xee, rows * sizeof *row);
	memset(long_id, 0xee, rows * sizeof *long_id);
	table = (struct sockets){ .row = row, .long_id = long_id,
		.bucket = bucket };
	sock_init(&table, rows, buckets, 12345);
}

static int
close_table(void **state)
{
	(void)state;
	free(row);
	free(long_id);
	free(bucket);
	row = NULL;
	long_id = NULL;
	bucket = NULL;
	return 0;
}

/* An id of n bytes that ends in c. */
static struct str
id_of(size_t n, char c)
{
	static char text[WSP_MAX_ID + 1];

	memset(text, 'a', sizeof text);
	text[n - 1] = c;
	return (struct str){ text, n };
}

static void
buckets_are_the_next_power_of_two(void **state)
{
	(void)state;
	assert_int_equal(sock_buckets(1), 1);
	assert_int_equal(sock_buckets(2), 2);
	assert_int_equal(sock_buckets(3), 4);
	assert_int_equal(sock_buckets(4), 4);
	assert_int_equal(sock_buckets(5), 8);
	assert_int_equal(sock_buckets(256), 256);
	assert_int_equal(sock_buckets(1000000), 1 << 20);
}

static void
an_id_of_every_length_is_kept_and_found(void **state)
{
	(void)state;
	open_table(1, 1);
	for (size_t n = 1; n <= WSP_MAX_ID; n++) {
		struct str id = id_of(n, 'z');
		u32 i = sock_add(&table, 3, true, id, 77);

		assert_int_equal(i, 0);
		assert_true(str_eq(sock_id(&table, i), id));
		assert_int_equal(sock_find(&table, 3, true, id), i);
		assert_int_equal(sock_find(&table, 3, true, id_of(n, 'y')),
		    NONE);
		if (n > 1) {
			id.n--;
			assert_int_equal(sock_find(&table, 3, true, id), NONE);
		}
		assert_int_equal(table.row[i].since, 0);
		sock_remove(&table, i);
		assert_int_equal(sock_find(&table, 3, true, id_of(n, 'z')),
		    NONE);
	}
}

static void
short_ids_touch_no_row_of_the_long_ones(void **state)
{
	char fresh[WSP_MAX_ID];

	(void)state;
	open_table(2, 2);
	memset(fresh, 0xee, sizeof fresh);
	sock_add(&table, 0, true, id_of(SOCK_ID_INLINE, 'x'), 0);
	assert_memory_equal(long_id[0], fresh, sizeof fresh);
	sock_add(&table, 0, true, id_of(SOCK_ID_INLINE + 1, 'x'), 0);
	assert_memory_equal(long_id[1], id_of(SOCK_ID_INLINE + 1, 'x').p,
	    SOCK_ID_INLINE + 1);
}

static void
one_id_on_two_services_and_of_two_kinds_is_four_sockets(void **state)
{
	u32 i[4];

	(void)state;
	open_table(4, 1);
	for (u32 k = 0; k < 4; k++)
		i[k] = sock_add(&table, (u8)(k / 2), k % 2, STR("one"), 0);
	assert_true(sock_is_full(&table));
	for (u32 k = 0; k < 4; k++)
		assert_int_equal(sock_find(&table, (u8)(k / 2), k % 2,
		    STR("one")), i[k]);
	assert_int_equal(sock_find(&table, 2, true, STR("one")), NONE);
	for (u32 k = 0; k < 4; k++)
		sock_remove(&table, i[k]);
}

/* One bucket: every removal order of a chain leaves the others findable. */
static void
whoever_leaves_a_chain_the_others_stay_findable(void **state)
{
	static const char name[ROWS][2] = { "a", "b", "c", "d", "e" };

	(void)state;
	open_table(ROWS, 1);
	for (u32 first = 0; first < ROWS; first++)
		for (u32 step = 1; step < ROWS; step++) {
			u32 i[ROWS], at = first;

			for (u32 k = 0; k < ROWS; k++)
				i[k] = sock_add(&table, 0, true,
				    (struct str){ name[k], 1 }, 0);
			assert_true(sock_is_full(&table));
			for (u32 gone = 1; gone <= ROWS; gone++) {
				sock_remove(&table, i[at]);
				i[at] = NONE;
				assert_int_equal(table.count, ROWS - gone);
				assert_int_equal(table.away, ROWS - gone);
				for (u32 k = 0; k < ROWS; k++)
					assert_int_equal(sock_find(&table, 0,
					    true, (struct str){ name[k], 1 }),
					    i[k]);
				at = (at + step) % ROWS;
			}
		}
}

static void
a_table_is_full_at_its_last_row_and_not_before(void **state)
{
	u32 last;

	(void)state;
	open_table(2, 2);
	assert_false(sock_is_full(&table));
	sock_add(&table, 0, true, STR("a"), 0);
	assert_false(sock_is_full(&table));
	last = sock_add(&table, 0, true, STR("b"), 0);
	assert_true(sock_is_full(&table));
	sock_remove(&table, last);
	assert_false(sock_is_full(&table));
}

static void
rows_are_used_only_between_add_and_remove(void **state)
{
	u32 i;

	(void)state;
	open_table(2, 2);
	assert_false(sock_is_used(&table, 0));
	i = sock_add(&table, 0, false, STR("a"), 0);
	assert_true(sock_is_used(&table, i));
	assert_false(sock_is_used(&table, i + 1));
	assert_false(sock_is_used(&table, NONE));
	sock_remove(&table, i);
	assert_false(sock_is_used(&table, i));
}

static void
a_new_row_remembers_nothing_of_the_old_one(void **state)
{
	u32 i;

	(void)state;
	open_table(1, 1);
	i = sock_add(&table, 5, true, id_of(100, 'x'), 9);
	table.row[i].slow = true;
	sock_bind(&table, i, 7, 8);
	sock_unbind(&table, i);
	sock_remove(&table, i);
	assert_int_equal(sock_add(&table, 0, false, STR("b"), 10), i);
	assert_false(table.row[i].slow);
	assert_false(table.row[i].stateful);
	assert_int_equal(table.row[i].tags, NONE);
	assert_int_equal(table.row[i].tag_count, 0);
	assert_true(sock_is_away(&table, i));
	assert_true(str_is(sock_id(&table, i), "b"));
}

static void
away_is_counted_through_bind_takeover_and_unbind(void **state)
{
	u32 a, b;

	(void)state;
	open_table(2, 2);
	a = sock_add(&table, 0, true, STR("a"), 0);
	b = sock_add(&table, 0, true, STR("b"), 0);
	assert_int_equal(table.away, 2);
	sock_bind(&table, a, 0, 1);
	assert_int_equal(table.away, 1);
	assert_false(sock_is_away(&table, a));
	sock_bind(&table, a, 4, 2);
	assert_int_equal(table.away, 1);
	assert_int_equal(table.row[a].conn, 4);
	assert_int_equal(table.row[a].conn_gen, 2);
	sock_unbind(&table, a);
	sock_unbind(&table, a);
	sock_unbind(&table, b);
	assert_int_equal(table.away, 2);
	assert_true(sock_is_away(&table, a));
}

static void
the_seed_changes_the_hash(void **state)
{
	u32 differ = 0;

	(void)state;
	for (u32 seed = 0; seed < 64; seed++)
		differ += hash_bytes(seed, "id:1", 4) !=
		    hash_bytes(seed + 1, "id:1", 4);
	assert_int_equal(differ, 64);
	open_table(1, 1);
	differ = sock_hash(&table, 0, true, STR("id:1"));
	table.seed++;
	assert_int_not_equal(sock_hash(&table, 0, true, STR("id:1")), differ);
	/* By hand: one zero byte keeps an all-zero state. */
	assert_int_equal(hash_bytes(0, "", 1), 0);
	/* The published vector of the one-at-a-time hash. */
	assert_int_equal(hash_bytes(0, "a", 1), 0xca2e9442);
}

static void
a_name_spells_service_kind_and_id(void **state)
{
	static const struct str service[] = { { "main", 4 }, { "e.2", 3 } };
	char text[WSP_MAX_SOCKET_ID];
	struct out o = out_to(text, sizeof text);

	(void)state;
	open_table(2, 2);
	table.service = service;
	sock_name(&o, &table, sock_add(&table, 0, true, STR("id:1"), 0));
	assert_true(str_is((struct str){ text, o.n }, "/services/main-s-id:1"));
	o = out_to(text, sizeof text);
	sock_name(&o, &table, sock_add(&table, 1, false, STR("x"), 0));
	assert_true(str_is((struct str){ text, o.n }, "/services/e.2-v-x"));
}

static void
the_longest_name_fits_its_limit_exactly(void **state)
{
	char *text = malloc(WSP_MAX_SOCKET_ID), service[WSP_MAX_SERVICE];
	struct out o = out_to(text, WSP_MAX_SOCKET_ID);

	(void)state;
	assert_non_null(text);
	memset(service, 's', sizeof service);
	open_table(1, 1);
	table.service = &(struct str){ service, sizeof service };
	sock_name(&o, &table,
	    sock_add(&table, 0, true, id_of(WSP_MAX_ID, 'q'), 0));
	assert_false(o.full);
	assert_int_equal(o.n, WSP_MAX_SOCKET_ID);
	free(text);
}

static void
a_uuid_has_version_4_and_the_right_variant(void **state)
{
	u8 zeros[16] = { 0 }, ones[16], *count = malloc(16);
	char *text = malloc(UUID_TEXT);

	(void)state;
	assert_non_null(count);
	assert_non_null(text);
	memset(ones, 0xff, sizeof ones);
	for (u8 k = 0; k < 16; k++)
		count[k] = (u8)(k * 0x11);
	uuid_text(text, zeros);
	assert_memory_equal(text, "00000000-0000-4000-8000-000000000000",
	    UUID_TEXT);
	uuid_text(text, ones);
	assert_memory_equal(text, "ffffffff-ffff-4fff-bfff-ffffffffffff",
	    UUID_TEXT);
	uuid_text(text, count);
	assert_memory_equal(text, "00112233-4455-4677-8899-aabbccddeeff",
	    UUID_TEXT);
	free(count);
	free(text);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_teardown(name, close_table)
		T(buckets_are_the_next_power_of_two),
		T(an_id_of_every_length_is_kept_and_found),
		T(short_ids_touch_no_row_of_the_long_ones),
		T(one_id_on_two_services_and_of_two_kinds_is_four_sockets),
		T(whoever_leaves_a_chain_the_others_stay_findable),
		T(a_table_is_full_at_its_last_row_and_not_before),
		T(rows_are_used_only_between_add_and_remove),
		T(a_new_row_remembers_nothing_of_the_old_one),
		T(away_is_counted_through_bind_takeover_and_unbind),
		T(the_seed_changes_the_hash),
		T(a_name_spells_service_kind_and_id),
		T(the_longest_name_fits_its_limit_exactly),
		T(a_uuid_has_version_4_and_the_right_variant),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
