/*
 * SPDX-License-Identifier: MIT
 *
 * Room Deadlines: one FIFO a class; arm, cancel, due, next.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define ROWS 5
#define LATE INT64_C(1000000)

static struct deadlines table;
static struct deadline *row;

static int
open_table(void **state)
{
	(void)state;
	row = calloc(ROWS, sizeof *row);
	if (row)
		deadline_init(&table, row);
	return row ? 0 : -1;
}

static int
close_table(void **state)
{
	(void)state;
	free(row);
	return 0;
}

static void
an_empty_table_has_nothing_due(void **state)
{
	(void)state;
	for (int class = 0; class < DEADLINE_CLASSES; class++)
		assert_int_equal(deadline_due(&table, class, LATE), NONE);
	assert_int_equal(deadline_next(&table, 99), 99);
}

static void
a_deadline_is_due_at_its_millisecond_and_not_before(void **state)
{
	(void)state;
	deadline_arm(&table, 3, 1, 50);
	assert_int_equal(deadline_due(&table, 1, 49), NONE);
	assert_int_equal(deadline_due(&table, 1, 50), 3);
	assert_int_equal(deadline_due(&table, 1, 51), 3);
	assert_int_equal(deadline_due(&table, 0, LATE), NONE);
	assert_int_equal(deadline_due(&table, 2, LATE), NONE);
}

static void
those_of_a_class_fall_due_in_the_order_of_arming(void **state)
{
	static const u32 order[ROWS] = { 2, 0, 4, 1, 3 };

	(void)state;
	for (u32 k = 0; k < ROWS; k++)
		deadline_arm(&table, order[k], 7, 10 * k);
	for (u32 k = 0; k < ROWS; k++) {
		assert_int_equal(deadline_next(&table, LATE), 10 * k);
		assert_int_equal(deadline_due(&table, 7, LATE), order[k]);
		deadline_cancel(&table, order[k]);
	}
	assert_int_equal(deadline_due(&table, 7, LATE), NONE);
}

/* First, middle, last, alone: each may go. */
static void
cancelling_leaves_the_others_in_order(void **state)
{
	(void)state;
	for (u32 gone = 0; gone < ROWS; gone++) {
		for (u32 k = 0; k < ROWS; k++)
			deadline_arm(&table, k, 0, k);
		deadline_cancel(&table, gone);
		for (u32 k = 0; k < ROWS; k++) {
			if (k == gone)
				continue;
			assert_int_equal(deadline_due(&table, 0, LATE), k);
			deadline_cancel(&table, k);
		}
		assert_int_equal(deadline_due(&table, 0, LATE), NONE);
	}
}

static void
cancelling_what_is_not_armed_does_nothing(void **state)
{
	(void)state;
	deadline_cancel(&table, 0);
	deadline_arm(&table, 1, 0, 5);
	deadline_cancel(&table, 0);
	deadline_cancel(&table, 1);
	deadline_cancel(&table, 1);
	deadline_arm(&table, 2, 0, 6);
	assert_int_equal(deadline_due(&table, 0, LATE), 2);
	assert_int_equal(deadline_next(&table, LATE), 6);
}

static void
arming_again_moves_a_row_to_the_end_of_its_new_class(void **state)
{
	(void)state;
	deadline_arm(&table, 0, 0, 10);
	deadline_arm(&table, 1, 0, 20);
	deadline_arm(&table, 0, 0, 30);
	assert_int_equal(deadline_due(&table, 0, LATE), 1);
	deadline_arm(&table, 1, 5, 40);
	assert_int_equal(deadline_due(&table, 0, LATE), 0);
	assert_int_equal(deadline_due(&table, 5, LATE), 1);
	deadline_arm(&table, 0, 0, 50);
	assert_int_equal(deadline_due(&table, 0, 49), NONE);
	assert_int_equal(deadline_due(&table, 0, 50), 0);
}

static void
the_next_is_the_earliest_of_all_classes(void **state)
{
	(void)state;
	deadline_arm(&table, 0, 0, 300);
	deadline_arm(&table, 1, 3, 100);
	deadline_arm(&table, 2, DEADLINE_CLASSES - 1, 200);
	assert_int_equal(deadline_next(&table, LATE), 100);
	deadline_cancel(&table, 1);
	assert_int_equal(deadline_next(&table, LATE), 200);
	deadline_cancel(&table, 2);
	assert_int_equal(deadline_next(&table, LATE), 300);
	assert_int_equal(deadline_next(&table, 299), 299);
}

/* A reload made the class shorter: the later one hides the earlier. */
static void
a_shortened_class_fires_late_and_loses_none(void **state)
{
	(void)state;
	deadline_arm(&table, 0, 2, 1000);
	deadline_arm(&table, 1, 2, 500);
	assert_int_equal(deadline_due(&table, 2, 999), NONE);
	assert_int_equal(deadline_due(&table, 2, 1000), 0);
	deadline_cancel(&table, 0);
	assert_int_equal(deadline_due(&table, 2, 1000), 1);
}

static u32
roll(u32 n)
{
	static u32 dice = 1;

	dice = dice * 1664525 + 1013904223;
	return (dice >> 16) % n;
}

/* The obviously right list: (row, due) in the order of arming. */
static void
any_order_of_arming_and_cancelling_agrees_with_a_list(void **state)
{
	u32 list[3][ROWS], n[3] = { 0 };

	(void)state;
	for (int step = 0; step < 20000; step++) {
		u32 i = roll(ROWS), class = roll(3), live = 0;

		for (u32 c = 0; c < 3; c++) {
			for (u32 k = live = 0; k < n[c]; k++)
				if (list[c][k] != i)
					list[c][live++] = list[c][k];
			n[c] = live;
		}
		if (roll(3) > 0) {
			list[class][n[class]++] = i;
			deadline_arm(&table, i, (int)class, step);
		} else {
			deadline_cancel(&table, i);
		}
		for (u32 c = 0; c < 3; c++) {
			u32 at = table.fifo[c].first, last = NONE;

			for (u32 k = 0; k < n[c]; k++) {
				assert_int_equal(at, list[c][k]);
				assert_int_equal(row[at].prev, last);
				last = at;
				at = row[at].next;
			}
			assert_int_equal(at, NONE);
			assert_int_equal(table.fifo[c].last, last);
		}
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, open_table, close_table)
		T(an_empty_table_has_nothing_due),
		T(a_deadline_is_due_at_its_millisecond_and_not_before),
		T(those_of_a_class_fall_due_in_the_order_of_arming),
		T(cancelling_leaves_the_others_in_order),
		T(cancelling_what_is_not_armed_does_nothing),
		T(arming_again_moves_a_row_to_the_end_of_its_new_class),
		T(the_next_is_the_earliest_of_all_classes),
		T(a_shortened_class_fires_late_and_loses_none),
		T(any_order_of_arming_and_cancelling_agrees_with_a_list),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
