/*
 * SPDX-License-Identifier: MIT
 *
 * Room Store: messages, each once, in a ring that compacts itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What moving costs, in bytes. */
static uint64_t moved;

static void *
counted_memmove(void *to, const void *from, size_t n)
{
	moved += n;
	return memmove(to, from, n);
}

#undef _GNU_SOURCE
#define memmove counted_memmove
#include "../wspush.c"

#include <cmocka.h>

#define ROWS 12

/* A store with exact memory behind it, and what each message should say. */
static struct store store;
static u8 *ring;
static struct message *row;
static u8 seed_of[1 + ROWS];

static void
open_store(u32 cap, u32 limit, u32 rows)
{
	free(ring);
	free(row);
	ring = malloc(cap);
	row = malloc((1 + rows) * sizeof *row);
	assert_non_null(ring);
	assert_non_null(row);
	memset(ring, 0xee, cap);
	memset(row, 0, sizeof *row);
	memset(row + 1, 0xee, rows * sizeof *row);
	store = (struct store){ .bytes = ring, .row = row };
	store_init(&store, cap, limit, 1 + rows);
}

static int
close_store(void **state)
{
	(void)state;
	free(ring);
	free(row);
	ring = NULL;
	row = NULL;
	return 0;
}

static u8
content(u8 seed, u32 at)
{
	return (u8)(seed * 31u + at * 7u);
}

/* Adds a message of n bytes, key included, and holds it. */
static u32
add_keyed(u32 n, u8 seed, struct str key)
{
	u32 i = store_add(&store, n - (u32)key.n, n, FORM_FRAME, key);

	if (i == NONE)
		return NONE;
	assert_true(i > 0 && i < store.rows && i <= ROWS);
	for (u32 k = 0; k < n - key.n; k++)
		store_bytes(&store, i)[k] = content(seed, k);
	seed_of[i] = seed;
	store.row[i].holds++;
	return i;
}

static u32
add(u32 n, u8 seed)
{
	return add_keyed(n, seed, (struct str){ NULL, 0 });
}

static void
says(u32 i, u8 seed)
{
	for (u32 k = 0; k < store.row[i].n; k++)
		assert_int_equal(store_bytes(&store, i)[k], content(seed, k));
}

/* Walks both chains both ways: nothing overlaps, sums are right, every
 * message still says what it said. */
static void
check(void)
{
	u32 held = 0, count = 0, wraps = 0, end = 0, last = 0;

	for (u32 i = row->newer; i != 0; i = store.row[i].newer) {
		const struct message *m = &store.row[i];

		assert_int_equal(m->older, last);
		if (count > 0 && m->place < end) {
			wraps++;
			assert_true(end <= store.cap);
		}
		end = m->place + store_size(m);
		assert_true(end <= store.cap);
		if (wraps > 0)
			assert_true(end <= row[row->newer].place);
		says(i, seed_of[i]);
		held += store_size(m);
		count++;
		last = i;
	}
	assert_true(wraps <= 1);
	assert_int_equal(row->older, last);
	assert_int_equal(store.held, held);
	assert_int_equal(store.count, count);
	assert_true(store.held <= store.limit);
	last = 0;
	for (u32 i = row->younger; i != 0; i = store.row[i].younger) {
		assert_int_equal(store.row[i].elder, last);
		last = i;
		count--;
	}
	assert_int_equal(row->elder, last);
	assert_int_equal(count, 0);
}

static void
the_whole_limit_may_be_filled_and_not_a_byte_more(void **state)
{
	u32 i;

	(void)state;
	for (u32 n = 1; n <= 40; n++) {
		open_store((u32)store_ring_size(40, 40), 40, 2);
		i = add(n, 1);
		assert_int_not_equal(i, NONE);
		check();
		assert_int_equal(add(41 - n, 2), NONE);
		if (n < 40)
			assert_int_not_equal(add(40 - n, 3), NONE);
		check();
		says(i, 1);
	}
	open_store((u32)store_ring_size(40, 40), 40, 2);
	assert_int_equal(add(41, 1), NONE);
	assert_int_equal(store.count, 0);
}

static void
the_ring_has_room_for_the_limit_its_slack_and_the_largest(void **state)
{
	(void)state;
	assert_int_equal(store_ring_size(1600, 100), 1600 + 100 + 100);
	assert_true(store_ring_size(UINT32_C(1) << 30, 16 << 20) >
	    UINT32_C(1) << 30);
}

static void
rows_run_out_before_bytes_and_come_back(void **state)
{
	u32 i[3];

	(void)state;
	open_store(200, 100, 3);
	for (int k = 0; k < 3; k++)
		i[k] = add(2, (u8)k);
	assert_int_equal(add(2, 9), NONE);
	check();
	store_let_go(&store, i[1]);
	check();
	assert_int_equal(add(2, 7), i[1]);
	assert_int_equal(add(2, 9), NONE);
	check();
}

static void
a_row_that_was_never_used_is_not_touched(void **state)
{
	u8 fresh[sizeof(struct message)];

	(void)state;
	memset(fresh, 0xee, sizeof fresh);
	open_store(200, 100, 4);
	for (int k = 0; k < 10; k++)
		store_let_go(&store, add(3, (u8)k));
	assert_memory_equal(&row[2], fresh, sizeof fresh);
}

static void
a_message_leaves_when_its_last_holder_lets_go(void **state)
{
	u32 i;

	(void)state;
	open_store(200, 100, 4);
	i = add(10, 1);
	store.row[i].holds += 2;
	store_let_go(&store, i);
	store_let_go(&store, i);
	store_release(&store, i);
	assert_int_equal(store.count, 1);
	store_let_go(&store, i);
	assert_int_equal(store.count, 0);
	assert_int_equal(store.held, 0);
	check();
}

static void
a_message_that_nobody_came_to_hold_is_given_back(void **state)
{
	u32 i;

	(void)state;
	open_store(200, 100, 1);
	i = store_add(&store, 10, 8, FORM_ELEMENT, STR("k"));
	assert_int_equal(store.row[i].form, FORM_ELEMENT);
	assert_int_equal(store.row[i].body, 8);
	assert_int_equal(store.held, 11);
	store_release(&store, i);
	assert_int_equal(store.held, 0);
	assert_int_not_equal(add(10, 1), NONE);
}

static void
an_empty_store_begins_at_its_start_again(void **state)
{
	u32 i;

	(void)state;
	open_store(20, 20, 2);
	for (int k = 0; k < 9; k++) {
		i = add(17, (u8)k);
		assert_int_not_equal(i, NONE);
		assert_int_equal(store.row[i].place, 0);
		store_let_go(&store, i);
	}
}

static void
messages_that_expire_are_counted_until_they_leave(void **state)
{
	u32 i, j;

	(void)state;
	open_store(200, 100, 4);
	i = add(10, 1);
	j = add(10, 2);
	store.row[i].expires = 5;
	store.mortal = 1;
	store_let_go(&store, j);
	assert_int_equal(store.mortal, 1);
	store_let_go(&store, i);
	assert_int_equal(store.mortal, 0);
}

static void
a_key_lies_behind_its_message_and_moves_with_it(void **state)
{
	u32 i, j;

	(void)state;
	open_store((u32)store_ring_size(48, 24), 48, 4);
	i = add_keyed(20, 1, STR("temperature"));
	assert_true(str_is(store_key(&store, &store.row[i]), "temperature"));
	for (int k = 0; k < 50; k++) {
		j = add_keyed(19, (u8)k, STR("x"));
		assert_int_not_equal(j, NONE);
		assert_true(str_is(store_key(&store, &store.row[j]), "x"));
		assert_true(str_is(store_key(&store, &store.row[i]),
		    "temperature"));
		check();
		store_let_go(&store, j);
		check();
	}
	assert_int_equal(store_key(&store, &store.row[add(3, 3)]).n, 0);
}

/* The wrap is met from every offset: sizes that share no divisor. */
static void
one_that_stays_is_moved_round_and_round_unharmed(void **state)
{
	u32 moves = 0;

	(void)state;
	for (u32 stay = 1; stay <= 24; stay++)
		for (u32 n = 1; n <= 48 - stay && n <= 24; n++) {
			u32 i, j;

			open_store((u32)store_ring_size(48, 24), 48, 2);
			j = add(5, 0);
			i = add(stay, 200);
			store_let_go(&store, j);
			for (int k = 0; k < 40; k++) {
				u32 was = store.row[i].place;

				j = add(n, (u8)k);
				assert_int_not_equal(j, NONE);
				moves += store.row[i].place != was;
				check();
				store_let_go(&store, j);
			}
			check();
		}
	assert_true(moves > 500);
}

static void
age_is_the_order_of_coming_whatever_moved(void **state)
{
	u32 order[4], i = 0, gap;

	(void)state;
	open_store((u32)store_ring_size(64, 16), 64, 5);
	gap = add(5, 0);
	for (u32 k = 0; k < 4; k++)
		order[k] = add(7, (u8)k);
	store_let_go(&store, gap);
	for (int k = 0; k < 30; k++)
		store_let_go(&store, add(13, 9));
	assert_int_not_equal(store.row[order[0]].place, 5);
	for (u32 k = row->younger; k != 0; k = store.row[k].younger)
		assert_int_equal(k, order[i++]);
	assert_int_equal(i, 4);
	check();
}

static u32 dice;

static u32
roll(u32 n)
{
	dice = dice * 1664525 + 1013904223;
	return (u32)((u64)(dice >> 8) * n >> 24);
}

static void
a_gap_of_just_its_size_is_taken_and_nothing_moves(void **state)
{
	u32 first, stay;

	(void)state;
	for (u32 n = 10; n <= 11; n++) {
		open_store(64, 60, 4);
		first = add(10, 1);
		stay = add(40, 2);
		store_let_go(&store, first);
		add(8, 3); /* [50, 58), and 6 are left before the wrap */
		moved = 0;
		first = add(n < 11 ? 7 : 11, 4);
		assert_int_equal(moved > 0, n == 11);
		if (n == 11)
			continue;
		assert_int_equal(store.row[first].place, 0);
		first = add(3, 5);
		assert_int_equal(store.row[first].place, 7);
		assert_int_equal(moved, 0);
		assert_int_equal(store.row[stay].place, 10);
		assert_int_equal(store_place(&store, 1), NONE);
		check();
	}
}

/* The promise that INTERFACE 7 rests on: no room is lost to gaps. */
static void
what_fits_the_limit_and_the_rows_is_always_taken(void **state)
{
	(void)state;
	dice = 1;
	for (int round = 0; round < 300; round++) {
		u32 largest = 1 + roll(30), limit = largest + roll(60);
		u32 live[ROWS], lives = 0, rows = 1 + roll(ROWS);

		open_store((u32)store_ring_size(limit, largest), limit, rows);
		for (int k = 0; k < 300; k++) {
			u32 n = 1 + roll(largest), i, at;
			bool fits;

			if (roll(5) < 2 && lives > 0) {
				at = roll(lives);
				store_let_go(&store, live[at]);
				live[at] = live[--lives];
			}
			fits = n <= limit - store.held && store.count < rows;
			i = add(n, (u8)k);
			assert_int_equal(i != NONE, fits);
			if (i != NONE)
				live[lives++] = i;
			check();
		}
	}
}

/* With the ring nearly full of what stays, moving is paid for by storing:
 * STORE_SLACK bytes for one, and one whole round to begin with. */
static void
moving_costs_at_most_the_slack_for_each_byte(void **state)
{
	u64 stored = 0;
	u32 gap;

	(void)state;
	open_store((u32)store_ring_size(3200, 32), 3200, ROWS);
	gap = add(32, 0);
	for (int k = 0; k < 10; k++)
		add(300, (u8)k);
	store_let_go(&store, gap);
	moved = 0;
	for (int k = 0; k < 3000; k++) {
		u32 j = add(29, 99);

		assert_int_not_equal(j, NONE);
		stored += 29;
		store_let_go(&store, j);
	}
	check();
	assert_true(moved <= stored * STORE_SLACK + 3200);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_teardown(name, close_store)
		T(the_whole_limit_may_be_filled_and_not_a_byte_more),
		T(the_ring_has_room_for_the_limit_its_slack_and_the_largest),
		T(rows_run_out_before_bytes_and_come_back),
		T(a_row_that_was_never_used_is_not_touched),
		T(a_message_leaves_when_its_last_holder_lets_go),
		T(a_message_that_nobody_came_to_hold_is_given_back),
		T(an_empty_store_begins_at_its_start_again),
		T(messages_that_expire_are_counted_until_they_leave),
		T(a_key_lies_behind_its_message_and_moves_with_it),
		T(one_that_stays_is_moved_round_and_round_unharmed),
		T(age_is_the_order_of_coming_whatever_moved),
		T(a_gap_of_just_its_size_is_taken_and_nothing_moves),
		T(what_fits_the_limit_and_the_rows_is_always_taken),
		T(moving_costs_at_most_the_slack_for_each_byte),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
