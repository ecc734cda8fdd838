/*
 * SPDX-License-Identifier: MIT
 *
 * Rooms Queues and Gathering: what goes in, what yields, what goes out as
 * bytes, and what a Pong takes away.
 */
#include "../wspush.h"
#undef WSP_MAX_BATCH
#define WSP_MAX_BATCH 24
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

#define QUEUES 3
#define ROWS   200
#define RING   4096

static struct queues t;
static const struct str no_key = { NULL, 0 };

static void
open_queues(u16 cap, u32 byte_cap)
{
	free(t.store.bytes);
	free(t.store.row);
	free(t.queue);
	free(t.ring);
	free(t.drops);
	memset(&t, 0, sizeof t);
	t.queue = calloc(QUEUES, sizeof *t.queue);
	t.ring = malloc(QUEUES * cap * sizeof *t.ring);
	t.drops = calloc(QUEUES, sizeof *t.drops);
	assert_non_null(t.queue);
	assert_non_null(t.ring);
	assert_non_null(t.drops);
	t.store.bytes = malloc(RING);
	t.store.row = calloc(ROWS, sizeof *t.store.row);
	store_init(&t.store, RING, RING - 64, ROWS);
	assert_non_null(t.store.bytes);
	assert_non_null(t.store.row);
	t.cap = cap;
	t.byte_cap = byte_cap;
	for (u32 i = 0; i < QUEUES; i++) {
		memset(&t.queue[i], 0xee, sizeof t.queue[i]);
		t.drops[i] = 5;
		queue_reset(&t, i);
	}
}

static int
close_queues(void **state)
{
	(void)state;
	free(t.store.bytes);
	free(t.store.row);
	free(t.queue);
	free(t.ring);
	free(t.drops);
	memset(&t, 0, sizeof t);
	return 0;
}

/* A message in the store that nobody holds yet.  A text that begins with `,`
 * is an element, any other the body of a text frame. */
static u32
message(const char *text, struct str key)
{
	u8 head[FRAME_HEAD_MAX];
	bool element = text[0] == ',';
	size_t n = strlen(text);
	size_t head_n = element ? 0 : frame_head(head, FRAME_TEXT, n);
	u32 row = store_add(&t.store, (u32)(head_n + n),
	    (u32)n - element, element ? FORM_ELEMENT : FORM_FRAME, key);

	assert_int_not_equal(row, NONE);
	memcpy(store_bytes(&t.store, row), head, head_n);
	if (n > 0)
		memcpy(store_bytes(&t.store, row) + head_n, text, n);
	return row;
}

static u32
push_keyed(u32 i, const char *text, const char *key)
{
	u32 row = message(text, key ? (struct str){ key, strlen(key) } :
	    no_key);

	queue_put(&t, i, row, false);
	return row;
}

static u32
push(u32 i, const char *text)
{
	return push_keyed(i, text, NULL);
}

/* A message that waiter w counts. */
static u32
push_awaited(u32 i, const char *text, u32 w)
{
	u32 row = message(text, no_key);

	t.waiter[w] = (struct waiter){ .used = true, .message = row,
		.count = 1 };
	t.waiters++;
	t.store.row[row].waiter = (u8)(w + 1);
	queue_put(&t, i, row, true);
	return row;
}

static struct admission
wants(u32 body, const char *key, enum overflow policy)
{
	return (struct admission){ .body = body, .policy = policy,
		.key = key ? (struct str){ key, strlen(key) } : no_key };
}

/* The text that each entry of the queue holds, joined by blanks. */
static void
holds(u32 i, const char *expected)
{
	char text[1000];
	struct out o = out_to(text, sizeof text);
	u32 bytes = 0;

	for (u32 at = 0; at < t.queue[i].count; at++) {
		const struct message *m = queue_row(&t, i, at);
		u32 head = m->form == FORM_FRAME ? m->n - m->body : 1;

		if (at > 0)
			out_char(&o, ' ');
		out_bytes(&o, t.store.bytes + m->place + head, m->n - head);
		bytes += m->body;
		assert_true(m->holds > 0);
	}
	out_char(&o, '\0');
	assert_false(o.full);
	assert_string_equal(text, expected);
	assert_int_equal(t.queue[i].bytes, bytes);
}

/* Copies what the gathering holds, checking its sums. */
static size_t
copied(u8 *to, const struct gather *g)
{
	size_t n = 0;

	assert_true(g->spans <= GATHER_SPANS);
	for (size_t k = 0; k < g->spans; k++) {
		assert_true(g->span[k].iov_len > 0);
		memcpy(to + n, g->span[k].iov_base, g->span[k].iov_len);
		n += g->span[k].iov_len;
	}
	assert_int_equal(n, g->bytes);
	return n;
}

static size_t
stream(u8 *to, u32 i, size_t done, size_t room)
{
	static struct gather g;

	queue_gather(&g, &t, i, done, room);
	return copied(to, &g);
}

static void
stream_is(u32 i, size_t done, const char *expected, size_t n)
{
	u8 got[4096];

	assert_int_equal(stream(got, i, done, sizeof got), n);
	assert_memory_equal(got, expected, n);
}

#define STREAM_IS(i, done, text) stream_is(i, done, text, sizeof(text) - 1)

/* n bytes leave, as a connection does it. */
static size_t
leave(u32 i, size_t done, size_t n, enum keep keep, u64 *last)
{
	done = queue_advance(&t, i, done + n, keep, last);
	if (done > 0)
		queue_freeze(&t, i, done);
	return done;
}

/* The first n bytes leave and end at a boundary. */
static u64
leave_all(u32 i, enum keep keep)
{
	u8 all[4096];
	u64 last = 0;

	assert_int_equal(leave(i, 0, stream(all, i, 0, sizeof all), keep,
	    &last), 0);
	return last;
}

/*
 * ---- Order, numbers, books
 */

static void
entries_keep_their_order_round_the_ring(void **state)
{
	(void)state;
	for (u16 cap = 1; cap < 5; cap++) {
		open_queues(cap, 100);
		for (char c = 'a'; c < 'z'; c++) {
			char text[2] = { c, '\0' };

			if (t.queue[0].count == cap) {
				queue_take(&t, 0, 0, LEAVE_DROPPED);
			}
			push(0, text);
			for (u32 at = 0; at < t.queue[0].count; at++) {
				u8 *p = store_bytes(&t.store,
				    queue_message(&t, 0, at));

				assert_int_equal(p[2],
				    c - (t.queue[0].count - 1) + (int)at);
			}
		}
		assert_int_equal(t.store.count, cap);
		queue_clear(&t, 0, LEAVE_FORGOTTEN);
		assert_int_equal(t.store.count, 0);
	}
}

/* Every place, at every rotation of the ring, of every fill. */
static void
who_leaves_from_the_middle_harms_no_order_nor_number(void **state)
{
	(void)state;
	for (u32 turn = 0; turn < 6; turn++)
		for (u32 count = 1; count <= 6; count++)
			for (u32 at = 0; at < count; at++) {
				open_queues(6, 1000);
				push(0, "keep");
				for (u32 k = 0; k < turn; k++) {
					push(0, "x");
					queue_take(&t, 0, 0, LEAVE_DROPPED);
				}
				for (u32 k = t.queue[0].count; k < count; k++)
					push(0, "y");
				queue_take(&t, 0, at, LEAVE_DROPPED);
				assert_int_equal(t.queue[0].count, count - 1);
				for (u32 k = 0; k + 1 < count; k++)
					assert_int_equal(queue_number(&t, 0,
					    k), turn + 1 + k + (k >= at));
				assert_int_equal(t.drops[0], turn + 1);
			}
}

/* A write to these pages would be the end. */
static void
a_queue_that_was_never_used_is_not_written_to(void **state)
{
	void *p;

	(void)state;
	open_queues(8, 1000);
	p = mmap(NULL, QUEUES * sizeof *t.queue, PROT_READ,
	    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	free(t.queue);
	free(t.drops);
	t.queue = p;
	t.drops = p;
	for (u32 i = 0; i < QUEUES; i++)
		queue_reset(&t, i);
	t.queue = NULL;
	t.drops = NULL;
	munmap(p, QUEUES * sizeof *t.queue);
}

static void
numbers_grow_through_the_wrap_of_their_low_half(void **state)
{
	u64 start = (UINT64_C(7) << 32) - 3;

	(void)state;
	open_queues(8, 1000);
	t.queue[0].last_number = start - 1;
	for (u32 k = 0; k < 8; k++)
		push(0, "x");
	for (u32 k = 0; k < 8; k++)
		assert_true(queue_number(&t, 0, k) == start + k);
	assert_true(t.queue[0].last_number == start + 7);
	assert_true(leave_all(0, KEEP_ALL) == start + 7);
	queue_acknowledge(&t, 0, start - 1);
	assert_int_equal(t.queue[0].count, 8);
	queue_acknowledge(&t, 0, start + 2);
	assert_int_equal(t.queue[0].count, 5);
	queue_acknowledge(&t, 0, start + 3);
	assert_int_equal(t.queue[0].count, 4);
	queue_acknowledge(&t, 0, start + 7);
	assert_int_equal(t.queue[0].count, 0);
	assert_int_equal(t.total.acknowledged, 8);
}

static void
the_first_number_is_one(void **state)
{
	(void)state;
	open_queues(2, 10);
	push(1, "x");
	assert_true(queue_number(&t, 1, 0) == 1);
	assert_int_equal(t.drops[1], 0);
}

static void
a_pong_takes_only_what_was_written(void **state)
{
	u64 last = 0;

	(void)state;
	open_queues(8, 1000);
	push(0, "a");
	push(0, "b");
	push(0, "c");
	assert_int_equal(leave(0, 0, 6, KEEP_ALL, &last), 0);
	assert_true(last == 2);
	queue_acknowledge(&t, 0, 0);
	holds(0, "a b c");
	queue_acknowledge(&t, 0, 99);
	holds(0, "c");
	assert_int_equal(t.queue[0].sent, 0);
	queue_acknowledge(&t, 0, 99);
	holds(0, "c");
}

static void
a_message_in_three_queues_leaves_the_store_with_the_last(void **state)
{
	u32 row;

	(void)state;
	open_queues(4, 100);
	row = push(0, "all");
	queue_put(&t, 1, row, false);
	queue_put(&t, 2, row, false);
	assert_int_equal(t.store.row[row].holds, 3);
	assert_int_equal(t.store.row[row].holder, 0);
	assert_int_equal(t.queue[2].bytes, 3);
	queue_clear(&t, 1, LEAVE_FORGOTTEN);
	queue_clear(&t, 0, LEAVE_FORGOTTEN);
	holds(2, "all");
	queue_clear(&t, 2, LEAVE_FORGOTTEN);
	assert_int_equal(t.store.count, 0);
	assert_int_equal(t.total.forgotten, 3);
}

static void
every_hold_is_found_also_two_in_one_queue(void **state)
{
	static const u32 where[][2] = { { 0, 1 }, { 2, 0 }, { 2, 2 } };
	u32 row, i = 0, at = 0;

	(void)state;
	open_queues(4, 100);
	push(0, "x");
	row = push(0, "wanted");
	push(1, "y");
	queue_put(&t, 2, row, false);
	push(2, "z");
	queue_put(&t, 2, row, false);
	for (size_t k = 0; k < COUNT(where); k++, at++) {
		assert_true(queue_find_hold(&t, QUEUES, row, &i, &at));
		assert_int_equal(i, where[k][0]);
		assert_int_equal(at, where[k][1]);
	}
	assert_false(queue_find_hold(&t, QUEUES, row, &i, &at));
	i = 1;
	at = 0;
	assert_false(queue_find_hold(&t, 2, row, &i, &at));
	i = NONE; /* nobody ever held it */
	assert_false(queue_find_hold(&t, i + 1, row, &i, &at));
}

/* Each way out has its counter, and no other moves. */
static void
each_way_out_is_counted_as_what_it_is(void **state)
{
	static const struct {
		enum leave why;
		size_t counter;
	} way[] = {
		{ LEAVE_ACKED, offsetof(struct counters, acknowledged) },
		{ LEAVE_DROPPED, offsetof(struct counters, dropped) },
		{ LEAVE_UNCONFIRMED, offsetof(struct counters, unconfirmed) },
		{ LEAVE_REPLACED, offsetof(struct counters, replaced) },
		{ LEAVE_EXPIRED, offsetof(struct counters, expired) },
		{ LEAVE_FORGOTTEN, offsetof(struct counters, forgotten) },
		{ LEAVE_WRITTEN, sizeof(struct counters) },
	};

	(void)state;
	for (size_t k = 0; k < COUNT(way); k++) {
		open_queues(2, 10);
		push(1, "x");
		queue_take(&t, 1, 0, way[k].why);
		for (size_t at = 0; at < sizeof t.total; at += sizeof(u64)) {
			u64 n;

			memcpy(&n, (u8 *)&t.total + at, sizeof n);
			assert_int_equal(n, at == way[k].counter);
		}
		assert_int_equal(t.drops[1], way[k].why == LEAVE_DROPPED);
		assert_int_equal(t.drops[0], 0);
	}
}

/*
 * ---- Waiters
 */

static void
a_waiter_learns_of_each_way_out_and_counts_only_acknowledged(void **state)
{
	static const enum leave way[] = { LEAVE_ACKED, LEAVE_WRITTEN,
		LEAVE_DROPPED, LEAVE_UNCONFIRMED, LEAVE_REPLACED,
		LEAVE_EXPIRED, LEAVE_FORGOTTEN };

	(void)state;
	for (size_t k = 0; k < COUNT(way); k++) {
		open_queues(2, 10);
		push_awaited(0, "x", 3);
		push(0, "y");
		queue_take(&t, 0, 0, way[k]);
		assert_int_equal(t.waiter[3].decided, 1);
		assert_int_equal(t.waiter[3].acked, way[k] == LEAVE_ACKED);
		queue_take(&t, 0, 0, way[k]);
		assert_int_equal(t.waiter[3].decided, 1);
		assert_int_equal(t.waiter[2].decided, 0);
	}
}

static void
a_group_is_decided_when_every_queue_is(void **state)
{
	u32 row;

	(void)state;
	open_queues(2, 10);
	row = push_awaited(0, "x", 0);
	queue_put(&t, 1, row, true);
	queue_put(&t, 2, row, true);
	leave_all(0, KEEP_ALL);
	leave_all(1, KEEP_ALL);
	assert_int_equal(t.waiter[0].decided, 0);
	queue_acknowledge(&t, 0, 1);
	queue_clear(&t, 1, LEAVE_FORGOTTEN);
	assert_int_equal(t.waiter[0].decided, 2);
	queue_clear(&t, 2, LEAVE_DROPPED);
	assert_int_equal(t.waiter[0].decided, 3);
	assert_int_equal(t.waiter[0].acked, 1);
}

static void
an_entry_that_is_nobodys_decides_nothing(void **state)
{
	u32 row;

	(void)state;
	open_queues(4, 100);
	row = push_awaited(0, "last value", 0);
	t.store.row[row].holds++;
	t.store.row[row].retained = true;
	queue_put(&t, 1, row, false);
	leave_all(1, KEEP_ALL);
	assert_false(queue_is_awaited(&t, 1));
	queue_acknowledge(&t, 1, 9);
	assert_int_equal(t.waiter[0].decided, 0);
	queue_clear(&t, 0, LEAVE_DROPPED);
	assert_int_equal(t.waiter[0].decided, 1);
	assert_int_equal(t.store.count, 1);
}

static void
awaited_is_what_was_written_and_somebody_waits_for(void **state)
{
	u32 row;

	(void)state;
	open_queues(4, 100);
	assert_false(queue_is_awaited(&t, 0));
	push(0, "a");
	row = push_awaited(0, "b", 2);
	assert_false(queue_is_awaited(&t, 0));
	leave_all(0, KEEP_ALL);
	assert_true(queue_is_awaited(&t, 0));
	assert_false(queue_is_awaited(&t, 1));
	t.store.row[row].waiter = 0; /* the sender's time is up */
	assert_false(queue_is_awaited(&t, 0));
	queue_acknowledge(&t, 0, 9);
	assert_int_equal(t.waiter[2].decided, 0);
}

/*
 * ---- Expiry, keys, policies
 */

static void
mortal(u32 row, int64_t expires)
{
	t.store.row[row].expires = expires;
	t.store.mortal++;
}

static void
what_is_unsent_expires_at_its_time_and_what_is_written_stays(void **state)
{
	u64 last;

	(void)state;
	open_queues(8, 1000);
	mortal(push(0, "written"), 10);
	mortal(push(0, "half"), 10);
	mortal(push(0, "ten"), 10);
	push(0, "never");
	mortal(push(0, "eleven"), 11);
	mortal(push(0, "10"), 10);
	assert_int_equal(leave(0, 0, 9 + 1, KEEP_ALL, &last), 1);
	queue_expire(&t, 0, 9);
	holds(0, "written half ten never eleven 10");
	queue_expire(&t, 0, 10);
	holds(0, "written half never eleven");
	assert_int_equal(t.total.expired, 2);
	assert_int_equal(t.store.mortal, 3);
	queue_rewind(&t, 0);
	queue_expire(&t, 0, 10);
	holds(0, "never eleven");
	queue_expire(&t, 0, 11);
	holds(0, "never");
	assert_int_equal(t.store.mortal, 0);
	queue_expire(&t, 0, INT64_MAX);
	holds(0, "never");
}

static void
a_key_replaces_every_unsent_message_that_has_it(void **state)
{
	struct admission a = wants(1, "k", OVERFLOW_REFUSE);
	u64 last;

	(void)state;
	open_queues(8, 1000);
	push_keyed(0, "written", "k");
	push_keyed(0, "half", "k");
	push_keyed(0, "one", "k");
	push_keyed(0, "other", "kk");
	push_keyed(0, "two", "k");
	push_keyed(0, "none", NULL);
	leave(0, 0, 9 + 1, KEEP_ALL, &last);
	queue_make_room(&t, 0, &a);
	holds(0, "written half other none");
	assert_int_equal(t.total.replaced, 2);
	assert_int_equal(t.total.dropped, 0);
	assert_int_equal(t.drops[0], 0);
	a = wants(1, NULL, OVERFLOW_REFUSE);
	queue_make_room(&t, 0, &a);
	holds(0, "written half other none");
}

static void
what_will_be_replaced_makes_its_room_first(void **state)
{
	struct admission a = wants(4, "k", OVERFLOW_REFUSE);

	(void)state;
	open_queues(2, 8);
	push_keyed(0, "aaaa", "k");
	push_keyed(0, "bbbb", NULL);
	assert_true(queue_admits(&t, 0, &a));
	a.body = 5;
	assert_false(queue_admits(&t, 0, &a));
	a = wants(4, "x", OVERFLOW_REFUSE);
	assert_false(queue_admits(&t, 0, &a));
	a = wants(8, "k", OVERFLOW_DROP_OLDEST);
	assert_true(queue_admits(&t, 0, &a));
	a = wants(4, "k", OVERFLOW_DROP_OLDEST);
	queue_make_room(&t, 0, &a);
	holds(0, "bbbb");
	assert_int_equal(t.total.dropped, 0);
}

static void
a_queue_is_full_at_its_last_message_and_at_its_last_byte(void **state)
{
	(void)state;
	open_queues(2, 8);
	assert_true(queue_has_room(&t, 0, 8));
	assert_false(queue_has_room(&t, 0, 9));
	assert_false(queue_has_room(&t, 0, UINT32_MAX));
	push(0, "aaaa");
	assert_true(queue_has_room(&t, 0, 4));
	assert_false(queue_has_room(&t, 0, 5));
	push(0, "");
	assert_false(queue_has_room(&t, 0, 0));
	assert_true(queue_has_room(&t, 1, 0));
}

/* One written, one half out, two unsent, a queue of four: what yields to a
 * fifth under each policy. */
static void
policies_let_go_what_they_may_and_nothing_else(void **state)
{
	static const struct {
		enum overflow policy;
		bool admits[6]; /* bodies of 1 to 6 bytes into 4 * 2 */
		const char *left;
	} rule[] = {
		{ OVERFLOW_DROP_OLDEST, { 1, 1, 1, 1, 1, 1 }, "hh cc" },
		{ OVERFLOW_CLOSE, { 1, 1, 0, 0, 0, 0 }, "hh bb cc" },
		{ OVERFLOW_REFUSE, { 0, 0, 0, 0, 0, 0 }, NULL },
	};
	u64 last;

	(void)state;
	for (size_t k = 0; k < COUNT(rule); k++)
		for (u32 body = 1; body <= 7; body++) {
			struct admission a = wants(body, NULL,
			    rule[k].policy);

			open_queues(4, 8);
			push(0, "ww");
			push(0, "hh");
			push(0, "bb");
			push(0, "cc");
			leave(0, 0, 4 + 3, KEEP_ALL, &last);
			assert_int_equal(t.queue[0].sent, 1);
			assert_int_equal(t.queue[0].frozen, 1);
			assert_int_equal(queue_admits(&t, 0, &a),
			    body <= 6 && rule[k].admits[body - 1]);
			holds(0, "ww hh bb cc");
			if (!queue_admits(&t, 0, &a))
				continue;
			queue_make_room(&t, 0, &a);
			assert_true(queue_has_room(&t, 0, body));
			assert_int_equal(t.total.unconfirmed, 1);
			assert_int_equal(t.total.dropped, (body - 1) / 2);
			assert_int_equal(t.drops[0], (body - 1) / 2);
			if (body == 4)
				holds(0, rule[k].left);
			if (body == 2)
				holds(0, "hh bb cc");
		}
}

static void
nothing_yields_more_than_is_needed(void **state)
{
	struct admission a = wants(2, NULL, OVERFLOW_DROP_OLDEST);

	(void)state;
	open_queues(4, 8);
	push(0, "a");
	push(0, "bb");
	push(0, "cc");
	push(0, "d");
	queue_make_room(&t, 0, &a);
	holds(0, "bb cc d");
	queue_make_room(&t, 0, &a);
	holds(0, "bb cc d");
	push(0, "ee");
	leave_all(0, KEEP_ALL);
	a = wants(3, NULL, OVERFLOW_DROP_OLDEST);
	queue_make_room(&t, 0, &a);
	holds(0, "cc d ee");
	assert_int_equal(t.total.dropped, 1);
	assert_int_equal(t.total.unconfirmed, 1);
}

static void
yields_says_of_each_entry_what_policies_say(void **state)
{
	u64 last;

	(void)state;
	open_queues(4, 100);
	push(0, "w");
	push(0, "h");
	push(0, "u");
	leave(0, 0, 3 + 1, KEEP_ALL, &last);
	for (u32 at = 0; at < 3; at++) {
		assert_int_equal(queue_yields(&t, 0, at, OVERFLOW_REFUSE), 0);
		assert_int_equal(queue_yields(&t, 0, at, OVERFLOW_CLOSE),
		    at == 0);
		assert_int_equal(queue_yields(&t, 0, at,
		    OVERFLOW_DROP_OLDEST), at != 1);
	}
}

/*
 * ---- Bytes out
 */

static void
json_neighbours_leave_as_one_array(void **state)
{
	(void)state;
	open_queues(8, 100);
	push(0, ",1");
	STREAM_IS(0, 0, "\x81\x03[1]");
	push(0, ",{}");
	push(0, "t");
	push(0, ",\"s\"");
	STREAM_IS(0, 0, "\x81\x06[1,{}]" "\x81\x01t" "\x81\x05[\"s\"]");
	push(0, "");
	STREAM_IS(0, 5, "{}]" "\x81\x01t" "\x81\x05[\"s\"]" "\x81\x00");
}

static void
a_batch_ends_at_its_limit_or_is_one_message(void **state)
{
	(void)state;
	open_queues(8, 100);
	push(0, ",1234567890");            /* 1 + 11 = 12 */
	push(0, ",12345678901");           /* 24: just fits */
	STREAM_IS(0, 0, "\x81\x18[1234567890,12345678901]");
	push(0, ",1");
	STREAM_IS(0, 0, "\x81\x18[1234567890,12345678901]" "\x81\x03[1]");
	open_queues(8, 100);
	push(0, ",1234567890");
	push(0, ",123456789012");          /* 25: does not */
	STREAM_IS(0, 0, "\x81\x0c[1234567890]" "\x81\x0e[123456789012]");
	open_queues(8, 100);
	push(0, ",1");
	push(0, ",12345678901234567890123456789012");
	push(0, ",2");
	STREAM_IS(0, 0, "\x81\x03[1]"
	    "\x81\x22[12345678901234567890123456789012]" "\x81\x03[2]");
}

static void
a_batch_has_a_long_header_when_it_needs_one(void **state)
{
	char text[128] = ",";
	u8 got[300];

	(void)state;
	for (size_t n = 122; n <= 125; n++) {
		size_t head = n + 2 < 126 ? 2 : 4;

		memset(text + 1, '1', n);
		text[n + 1] = '\0';
		open_queues(2, 200);
		push(0, text);
		assert_int_equal(stream(got, 0, 0, sizeof got),
		    head + n + 2);
		assert_int_equal(got[head], '[');
		assert_int_equal(got[head + n + 1], ']');
		assert_int_equal(head == 2 ? got[1] : load16(got + 2), n + 2);
	}
}

/* A queue of everything: frames, batches, a lone element, nothing. */
static void
push_mixture(u32 i)
{
	push(i, "alpha");
	push(i, ",1");
	push(i, ",{\"a\":2}");
	push(i, ",\"a long element that\"");
	push(i, "");
	push(i, ",[]");
	push(i, "omega");
	push(i, ",0");
	push(i, ",1234567890");
	push(i, ",1234567890");
}

static void
any_cut_of_the_stream_is_the_same_bytes(void **state)
{
	u8 whole[512], part[512];
	size_t all;

	(void)state;
	open_queues(16, 1000);
	push_mixture(0);
	all = stream(whole, 0, 0, sizeof whole);
	assert_true(all > 80);
	for (size_t done = 0; done <= all; done++)
		for (size_t room = 0; room <= all + 1 - done; room++) {
			size_t n = stream(part, 0, done, room);

			assert_int_equal(n, min_size(room, all - done));
			assert_memory_equal(part, whole + done, n);
		}
}

/* Every pair of cuts; what comes later and what moves change nothing. */
static void
partial_writes_at_every_byte_send_the_stream_once(void **state)
{
	static const enum keep keeps[] = { KEEP_ALL, KEEP_AWAITED,
		KEEP_NONE };
	u8 whole[512], got[512];

	(void)state;
	for (size_t k = 0; k < COUNT(keeps); k++)
		for (size_t cut = 1; cut < 130; cut++) {
			size_t n = 0, done = 0, all, part;
			u64 last = 0;

			open_queues(16, 1000);
			push(1, "in the way");
			push_mixture(0);
			all = stream(whole, 0, 0, sizeof whole);
			for (;;) {
				part = stream(got + n, 0, done, cut);
				if (part == 0 || n + part > all)
					break;
				n += part;
				done = leave(0, done, part, keeps[k], &last);
				store_move_oldest(&t.store);
				assert_true((done > 0) ==
				    (t.queue[0].frozen > 0));
			}
			assert_int_equal(n, all);
			assert_memory_equal(got, whole, all);
			assert_true(last == 10);
			assert_int_equal(t.total.delivered, 10);
			assert_int_equal(t.queue[0].count,
			    keeps[k] == KEEP_ALL ? 10 : 0);
			assert_int_equal(t.queue[0].sent, t.queue[0].count);
			assert_int_equal(t.total.acknowledged,
			    keeps[k] == KEEP_NONE ? 10 : 0);
		}
}

static void
nothing_joins_a_batch_that_is_half_out(void **state)
{
	u64 last = 77;

	(void)state;
	for (size_t cut = 1; cut < 7; cut++) {
		open_queues(8, 100);
		push(0, ",1");
		push(0, ",2");
		assert_int_equal(leave(0, 0, cut, KEEP_ALL, &last), cut);
		assert_int_equal(t.queue[0].frozen, 2);
		assert_true(last == 77);
		push(0, ",3");
		assert_int_equal(queue_limit(&t, 0), 2);
		stream_is(0, cut, &"\x81\x05[1,2]"[cut], 7 - cut);
		assert_int_equal(leave(0, cut, 7 - cut, KEEP_ALL, &last), 0);
		assert_true(last == 2);
		assert_int_equal(t.queue[0].frozen, 0);
		STREAM_IS(0, 0, "\x81\x03[3]");
		last = 77;
	}
}

static void
a_freeze_covers_the_units_that_its_bytes_touch(void **state)
{
	static const u16 frozen[] = { 0, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 4, 4,
		5, 5, 5, 5, 5, 5, 5 };

	(void)state;
	for (size_t n = 0; n < COUNT(frozen); n++) {
		open_queues(8, 100);
		push(0, "a");   /* bytes 0 to 2 */
		push(0, ",1");  /* 3 to 9, both */
		push(0, ",2");
		push(0, "");    /* 10 and 11 */
		push(0, ",3");  /* 12 to 16 */
		queue_freeze(&t, 0, n);
		assert_int_equal(t.queue[0].frozen, frozen[n]);
	}
}

/* A sealed record touches two units; its end is in the second. */
static void
a_plan_stays_until_its_last_byte_whatever_comes(void **state)
{
	u64 last = 0;

	(void)state;
	open_queues(8, 100);
	push(0, "ab");
	push(0, ",1");
	push_keyed(0, ",2", "k");
	mortal(queue_message(&t, 0, 2), 5);
	push_keyed(0, "z", "k");
	queue_freeze(&t, 0, 8);
	assert_int_equal(t.queue[0].frozen, 3);
	push(0, ",3");
	queue_expire(&t, 0, 9);
	queue_replace(&t, 0, STR("k"));
	holds(0, "ab 1 2 3");
	STREAM_IS(0, 0, "\x81\x02" "ab" "\x81\x05[1,2]");
	assert_int_equal(queue_advance(&t, 0, 8,
	    KEEP_ALL, &last), 4);
	assert_true(last == 1);
	assert_int_equal(t.queue[0].frozen, 2);
	queue_freeze(&t, 0, 4);
	assert_int_equal(t.queue[0].frozen, 2);
	STREAM_IS(0, 4, ",2]");
}

static void
a_rewind_sends_everything_again(void **state)
{
	u64 last;

	(void)state;
	open_queues(8, 100);
	push(0, "a");
	push(0, ",1");
	push(0, ",2");
	leave(0, 0, 3 + 2, KEEP_ALL, &last);
	push(0, ",3");
	queue_rewind(&t, 0);
	assert_int_equal(t.queue[0].sent, 0);
	assert_int_equal(t.queue[0].frozen, 0);
	STREAM_IS(0, 0, "\x81\x01" "a" "\x81\x07[1,2,3]");
}

static void
a_volatile_socket_keeps_what_is_awaited_and_only_that(void **state)
{
	u64 last = 0;

	(void)state;
	open_queues(8, 100);
	push(0, "a");
	push_awaited(0, "b", 1);
	push(0, "c");
	push_awaited(0, "d", 2);
	t.store.row[queue_message(&t, 0, 3)].waiter = 0; /* gave up */
	leave(0, 0, 12, KEEP_AWAITED, &last);
	assert_true(last == 4);
	holds(0, "b");
	assert_int_equal(t.queue[0].sent, 1);
	assert_int_equal(t.total.delivered, 4);
	queue_acknowledge(&t, 0, 4);
	assert_int_equal(t.waiter[1].acked, 1);
	assert_int_equal(t.waiter[2].decided, 0);
}

static void
written_is_acknowledged_where_ack_is_sent(void **state)
{
	u64 last = 0;

	(void)state;
	open_queues(8, 100);
	push_awaited(0, "a", 1);
	push(0, "b");
	assert_int_equal(leave(0, 0, 4, KEEP_NONE, &last), 1);
	assert_true(last == 1);
	assert_int_equal(t.waiter[1].acked, 1);
	holds(0, "b");
	assert_int_equal(t.queue[0].sent, 0);
	assert_int_equal(t.queue[0].frozen, 1);
}

static void
neighbours_in_memory_leave_as_one_span(void **state)
{
	static struct gather g;

	(void)state;
	open_queues(100, 1000);
	for (int k = 0; k < 90; k++)
		push(0, "xyz");
	queue_gather(&g, &t, 0, 0, 4000);
	assert_int_equal(g.spans, 1);
	assert_int_equal(g.bytes, 90 * 5);
	queue_gather(&g, &t, 0, 3, 4000);
	assert_int_equal(g.spans, 1);
	assert_int_equal(g.bytes, 90 * 5 - 3);
}

/* More pieces than spans: a gathering stops short, and the next goes on. */
static void
more_pieces_than_spans_leave_in_several_gatherings(void **state)
{
	static struct gather g;
	u8 got[1024], expected[1024];
	size_t n = 0, rounds = 0;

	(void)state;
	for (int kind = 0; kind < 2; kind++) {
		open_queues(100, 1000);
		n = rounds = 0;
		for (int k = 0; k < 99; k++) {
			push(1, "-");
			push(0, kind ? k % 2 ? ",1" : "a" : "b");
		}
		for (int k = 0; k < 99; k++) {
			const char *unit = !kind ? "\x81\x01" "b" : k % 2 ?
			    "\x81\x03[1]" : "\x81\x01" "a";

			memcpy(expected + n, unit, strlen(unit));
			n += strlen(unit);
		}
		for (size_t at = 0; at < n; rounds++) {
			queue_gather(&g, &t, 0, at,
			    sizeof got);
			assert_true(g.bytes > 0);
			at += copied(got + at, &g);
			assert_true(at <= n);
		}
		assert_memory_equal(got, expected, n);
		assert_true(rounds >= 2);
	}
}

/* A gathering that begins behind more batches than it has heads for finds what
 * follows them: who gathers until nothing is left would do so for ever. */
static void
batches_that_are_left_out_take_no_heads(void **state)
{
	static struct gather g;
	u8 whole[2048], got[2048];
	size_t n = 0;

	(void)state;
	open_queues(2 * GATHER_SPANS + 20, 1000);
	for (u32 k = 0; k < GATHER_SPANS + 10; k++) {
		push(0, ",1");
		push(0, "a");
		memcpy(whole + n, "\x81\x03[1]\x81\x01" "a", 8);
		n += 8;
	}
	for (size_t at = 0; at < n; at++) {
		queue_gather(&g, &t, 0, at, n - at);
		assert_true(g.bytes > 0);
		assert_memory_equal(got, whole + at, copied(got, &g));
	}
}

/* What was one span may be many after the store moved it: whoever seals a
 * record again has to gather until he has all of it. */
static void
frozen_neighbours_may_part_and_are_still_all_there(void **state)
{
	static struct gather g;
	u8 before[1024], after[1024];
	size_t n, at = 0;

	(void)state;
	open_queues(100, 1000);
	for (int k = 0; k < 99; k++)
		push(0, "x");
	n = stream(before, 0, 0, sizeof before);
	assert_int_equal(n, 99 * 3);
	queue_freeze(&t, 0, n);
	for (int k = 0; k < 99; k++) {
		store_move_oldest(&t.store);
		push(1, "-");
	}
	while (at < n) {
		queue_gather(&g, &t, 0, at, n - at);
		assert_true(g.bytes > 0);
		at += copied(after + at, &g);
	}
	assert_memory_equal(after, before, n);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_teardown(name, close_queues)
		T(entries_keep_their_order_round_the_ring),
		T(who_leaves_from_the_middle_harms_no_order_nor_number),
		T(a_queue_that_was_never_used_is_not_written_to),
		T(numbers_grow_through_the_wrap_of_their_low_half),
		T(the_first_number_is_one),
		T(a_pong_takes_only_what_was_written),
		T(a_message_in_three_queues_leaves_the_store_with_the_last),
		T(every_hold_is_found_also_two_in_one_queue),
		T(each_way_out_is_counted_as_what_it_is),
		T(a_waiter_learns_of_each_way_out_and_counts_only_acknowledged),
		T(a_group_is_decided_when_every_queue_is),
		T(an_entry_that_is_nobodys_decides_nothing),
		T(awaited_is_what_was_written_and_somebody_waits_for),
		T(what_is_unsent_expires_at_its_time_and_what_is_written_stays),
		T(a_key_replaces_every_unsent_message_that_has_it),
		T(what_will_be_replaced_makes_its_room_first),
		T(a_queue_is_full_at_its_last_message_and_at_its_last_byte),
		T(policies_let_go_what_they_may_and_nothing_else),
		T(nothing_yields_more_than_is_needed),
		T(yields_says_of_each_entry_what_policies_say),
		T(json_neighbours_leave_as_one_array),
		T(a_batch_ends_at_its_limit_or_is_one_message),
		T(a_batch_has_a_long_header_when_it_needs_one),
		T(any_cut_of_the_stream_is_the_same_bytes),
		T(partial_writes_at_every_byte_send_the_stream_once),
		T(nothing_joins_a_batch_that_is_half_out),
		T(a_freeze_covers_the_units_that_its_bytes_touch),
		T(a_plan_stays_until_its_last_byte_whatever_comes),
		T(a_rewind_sends_everything_again),
		T(a_volatile_socket_keeps_what_is_awaited_and_only_that),
		T(written_is_acknowledged_where_ack_is_sent),
		T(neighbours_in_memory_leave_as_one_span),
		T(more_pieces_than_spans_leave_in_several_gatherings),
		T(batches_that_are_left_out_take_no_heads),
		T(frozen_neighbours_may_part_and_are_still_all_there),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
