/*
 * SPDX-License-Identifier: MIT
 *
 * Rooms Store to Gathering against a model: a store and five queues as plain
 * arrays, moved by the same random operations, compared whole after each.
 * Limits are tiny and change every epoch, so full, wrapped and moved are the
 * rule.
 *
 *     test_model [SEED [STEPS]]       or WSP_SEED=... in the environment
 */
#include "../wspush.h"
#undef WSP_MAX_BATCH
#undef WSP_WAITERS
#define WSP_MAX_BATCH 40
#define WSP_WAITERS   3
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SOCKS  5
#define DEPTH  8   /* largest --queue-messages of an epoch */
#define ROWS   25 /* the first is no message */
#define BODY   130 /* largest body: past the short header */
#define WIRE   (BODY + 4)
#define EPOCH  4000
#define STREAM (DEPTH * (WIRE + 4))

/* What is tried, and what is right. */
static struct queues t;

struct m_message {
	bool live;
	u8 wire[WIRE];
	u32 n, body;
	bool element;
	struct str key;
	int64_t expires;
	int waiter; /* -1: none */
	bool retained;
	u64 age;
};

struct m_entry {
	u32 row;
	u64 number;
	bool counted;
};

/* What leaves in one piece, as it was when its first byte left. */
struct m_unit {
	u8 bytes[STREAM];
	size_t n;
	u32 entries;
};

struct m_queue {
	struct m_entry e[DEPTH];
	u32 n, sent;
	struct m_unit plan[DEPTH]; /* half out */
	u32 plans;
	size_t done;
	u64 next, last;
	u32 drops;
	enum keep keep;
	enum overflow policy;
	u64 told; /* `last`, as queue_advance() tells it */
};

static struct m_message model[ROWS];
static struct m_queue queue[SOCKS];
static struct waiter m_waiter[WSP_WAITERS];
static struct counters m_total;
static u64 m_age;
static int64_t now;

/* That the run was worth it. */
static struct {
	u64 no_room, no_row, moved, long_plans, taken, refused, wraps, late;
	u64 acked, dropped, replaced, expired, unconfirmed, forgotten;
} seen;

static u64 seed = 20250607, steps = 1000000, step;
static u64 dice;

#define AGREE(what)                                                          \
	do {                                                                 \
		if (!(what))                                                 \
			fail_msg("seed %llu step %llu: %s",                  \
			    (unsigned long long)seed,                        \
			    (unsigned long long)step, #what);                \
	} while (0)

static u32
roll(u32 n)
{
	dice ^= dice << 13;
	dice ^= dice >> 7;
	dice ^= dice << 17;
	return (u32)((dice >> 32) * n >> 32);
}

/*
 * ---- The model
 */

static u32
m_holds(u32 row)
{
	u32 holds = model[row].retained;

	for (u32 i = 0; i < SOCKS; i++)
		for (u32 at = 0; at < queue[i].n; at++)
			holds += queue[i].e[at].row == row;
	return holds;
}

static u32
m_size(u32 row)
{
	return model[row].n + (u32)model[row].key.n;
}

static u32
m_held(u32 *count)
{
	u32 held = 0;

	*count = 0;
	for (u32 k = 0; k < ROWS; k++) {
		if (!model[k].live)
			continue;
		held += m_size(k);
		++*count;
	}
	return held;
}

static u32
m_bytes(const struct m_queue *q)
{
	u32 bytes = 0;

	for (u32 at = 0; at < q->n; at++)
		bytes += model[q->e[at].row].body;
	return bytes;
}

static u32
m_frozen(const struct m_queue *q)
{
	u32 n = 0;

	for (u32 k = 0; k < q->plans; k++)
		n += q->plan[k].entries;
	return n;
}

/* Bytes of the plan. */
static size_t
bytes_of(const struct m_queue *q)
{
	size_t n = 0;

	for (u32 k = 0; k < q->plans; k++)
		n += q->plan[k].n;
	return n;
}

static void
m_erase(struct m_queue *q, u32 at)
{
	for (; at + 1 < q->n; at++)
		q->e[at] = q->e[at + 1];
	q->n--;
}

static void
m_leave(u32 i, u32 at, enum leave why)
{
	struct m_queue *q = &queue[i];
	struct m_entry e = q->e[at];

	m_total.acknowledged += why == LEAVE_ACKED;
	m_total.dropped += why == LEAVE_DROPPED;
	m_total.unconfirmed += why == LEAVE_UNCONFIRMED;
	m_total.replaced += why == LEAVE_REPLACED;
	m_total.expired += why == LEAVE_EXPIRED;
	m_total.forgotten += why == LEAVE_FORGOTTEN;
	q->drops += why == LEAVE_DROPPED;
	if (e.counted && model[e.row].waiter >= 0) {
		m_waiter[model[e.row].waiter].decided++;
		m_waiter[model[e.row].waiter].acked += why == LEAVE_ACKED;
	}
	m_erase(q, at);
	q->sent -= at < q->sent;
	if (m_holds(e.row) == 0)
		model[e.row].live = false;
}

static bool
m_fits(const struct m_queue *q, u32 body)
{
	return q->n + 1 <= t.cap && m_bytes(q) + body <= t.byte_cap;
}

static bool
m_is_replaced(const struct m_queue *q, u32 at, struct str key)
{
	return key.n > 0 && at >= q->sent + m_frozen(q) &&
	    str_eq(model[q->e[at].row].key, key);
}

/* Makes room in a copy of the queue. */
static bool
m_admits(u32 i, u32 body, struct str key)
{
	static struct m_queue q;
	u32 frozen;

	q = queue[i];
	frozen = m_frozen(&q);
	for (u32 at = q.n; at-- > 0;)
		if (m_is_replaced(&q, at, key))
			m_erase(&q, at);
	while (!m_fits(&q, body) && q.sent > 0 &&
	    q.policy != OVERFLOW_REFUSE) {
		m_erase(&q, 0);
		q.sent--;
	}
	while (!m_fits(&q, body) && q.n > q.sent + frozen &&
	    q.policy == OVERFLOW_DROP_OLDEST)
		m_erase(&q, q.sent + frozen);
	return m_fits(&q, body);
}

static void
m_make_room(u32 i, u32 body, struct str key)
{
	struct m_queue *q = &queue[i];

	for (u32 at = q->n; at-- > 0;)
		if (m_is_replaced(q, at, key))
			m_leave(i, at, LEAVE_REPLACED);
	while (!m_fits(q, body) && q->sent > 0)
		m_leave(i, 0, LEAVE_UNCONFIRMED);
	while (!m_fits(q, body))
		m_leave(i, q->sent + m_frozen(q), LEAVE_DROPPED);
}

static bool
m_yields(const struct m_queue *q, u32 at)
{
	if (at < q->sent)
		return q->policy != OVERFLOW_REFUSE;
	return at >= q->sent + m_frozen(q) &&
	    q->policy == OVERFLOW_DROP_OLDEST;
}

static size_t
m_head(u8 *to, size_t n)
{
	to[0] = 0x81;
	to[1] = (u8)(n < 126 ? n : 126);
	if (n < 126)
		return 2;
	to[2] = (u8)(n >> 8);
	to[3] = (u8)n;
	return 4;
}

/* The unit that begins at entry `at`, by joining texts. */
static void
m_unit(struct m_unit *u, const struct m_queue *q, u32 at)
{
	const struct m_message *m = &model[q->e[at].row];
	u8 text[STREAM];
	size_t n = 0, head;

	u->entries = 1;
	if (!m->element) {
		memcpy(u->bytes, m->wire, m->n);
		u->n = m->n;
		return;
	}
	text[n++] = '[';
	memcpy(text + n, m->wire + 1, m->n - 1);
	n += m->n - 1;
	while (at + u->entries < q->n) {
		m = &model[q->e[at + u->entries].row];
		if (!m->element || n + m->n + 1 > WSP_MAX_BATCH)
			break;
		memcpy(text + n, m->wire, m->n);
		n += m->n;
		u->entries++;
	}
	text[n++] = ']';
	head = m_head(u->bytes, n);
	memcpy(u->bytes + head, text, n);
	u->n = head + n;
}

/* All units that may leave: the plan, or everything unsent. */
static u32
m_units(struct m_unit *u, const struct m_queue *q)
{
	u32 n = q->plans;

	for (u32 k = 0; k < n; k++)
		u[k] = q->plan[k];
	if (n > 0)
		return n;
	for (u32 at = q->sent; at < q->n; at += u[n++].entries)
		m_unit(&u[n], q, at);
	return n;
}

/* One unit's last byte is out. */
static void
m_written(u32 i, u32 entries)
{
	struct m_queue *q = &queue[i];

	for (u32 k = 0; k < entries; k++) {
		struct m_entry e = q->e[q->sent];
		bool awaited = e.counted && model[e.row].waiter >= 0;

		m_total.delivered++;
		q->last = e.number;
		q->sent++;
		if (q->keep == KEEP_NONE)
			m_leave(i, q->sent - 1, LEAVE_ACKED);
		else if (q->keep == KEEP_AWAITED && !awaited)
			m_leave(i, q->sent - 1, LEAVE_WRITTEN);
	}
}

/*
 * ---- Do they agree?
 */

static void
agree_entries(u32 i)
{
	const struct m_queue *q = &queue[i];

	AGREE(t.queue[i].count == q->n);
	AGREE(t.queue[i].sent == q->sent);
	AGREE(t.queue[i].frozen == m_frozen(q));
	AGREE(t.queue[i].bytes == m_bytes(q));
	AGREE(t.queue[i].last_number + 1 == q->next);
	AGREE(t.drops[i] == q->drops);
	AGREE(q->told == q->last);
	for (u32 at = 0; at < q->n; at++) {
		AGREE(queue_message(&t, i, at) == q->e[at].row);
		AGREE(queue_number(&t, i, at) == q->e[at].number);
		AGREE(((queue_entry(&t, i, at)->message & ENTRY_COUNTED) !=
		    0) == q->e[at].counted);
		AGREE(queue_yields(&t, i, at, q->policy) == m_yields(q, at));
	}
}

static void
agree_awaited(u32 i)
{
	const struct m_queue *q = &queue[i];
	bool awaited = false;

	for (u32 at = 0; at < q->sent; at++)
		awaited |= q->e[at].counted &&
		    model[q->e[at].row].waiter >= 0;
	AGREE(queue_is_awaited(&t, i) == awaited);
}

static void
agree_message(u32 row)
{
	const struct m_message *m = &model[row];
	const struct message *r = &t.store.row[row];
	u32 i = 0, at = 0, found = 0;

	if (!m->live)
		return;
	for (; queue_find_hold(&t, SOCKS, row, &i, &at); at++)
		found++;
	AGREE(r->holds == found + m->retained);
	AGREE(r->n == m->n && r->body == m->body);
	AGREE(r->holds == m_holds(row) && r->holds > 0);
	AGREE(r->retained == m->retained);
	AGREE(r->expires == m->expires);
	AGREE(memcmp(store_bytes(&t.store, row), m->wire, m->n) == 0);
	AGREE(str_eq(store_key(&t.store, r), m->key));
}

/* The ring in the order of places: nothing overlaps, one wrap at most. */
static void
agree_ring(u32 count)
{
	u32 end = 0, wraps = 0, last = 0;

	for (u32 k = t.store.row->newer; k != 0; k = t.store.row[k].newer) {
		const struct message *r = &t.store.row[k];

		AGREE(model[k].live && r->older == last && count-- > 0);
		wraps += last != 0 && r->place < end;
		end = r->place + store_size(r);
		AGREE(end <= t.store.cap && wraps <= 1);
		AGREE(wraps == 0 || end <= t.store.row[t.store.row->newer].place);
		last = k;
	}
	AGREE(count == 0 && t.store.row->older == last);
	seen.wraps += wraps;
}

static void
agree_ages(u32 count)
{
	u32 last = 0;
	u64 age = 0;

	for (u32 k = t.store.row->younger; k != 0; k = t.store.row[k].younger) {
		AGREE(model[k].live && model[k].age > age && count-- > 0);
		AGREE(t.store.row[k].elder == last);
		age = model[k].age;
		last = k;
	}
	AGREE(count == 0 && t.store.row->elder == last);
}

static void
agree(void)
{
	u32 count, mortal = 0;

	AGREE(t.store.held == m_held(&count));
	AGREE(t.store.count == count);
	for (u32 k = 0; k < ROWS; k++) {
		agree_message(k);
		mortal += model[k].live && model[k].expires != 0;
	}
	AGREE(t.store.mortal == mortal);
	agree_ring(count);
	agree_ages(count);
	for (u32 i = 0; i < SOCKS; i++) {
		agree_entries(i);
		agree_awaited(i);
	}
	for (u32 k = 0; k < WSP_WAITERS; k++)
		AGREE(t.waiter[k].decided == m_waiter[k].decided &&
		    t.waiter[k].acked == m_waiter[k].acked);
	AGREE(memcmp(&t.total, &m_total, sizeof m_total) == 0);
}

/*
 * ---- What happens
 */

static void
take(u32 i, u32 at, enum leave why)
{
	queue_take(&t, i, at, why);
	m_leave(i, at, why);
}

/* The eldest message that all its queues may let go makes way. */
static void
yield_eldest(void)
{
	for (u32 k = t.store.row->younger; k != 0; k = t.store.row[k].younger) {
		bool may = !model[k].retained;

		for (u32 i = 0; i < SOCKS; i++)
			for (u32 at = 0; at < queue[i].n; at++)
				may &= queue[i].e[at].row != k ||
				    m_yields(&queue[i], at);
		if (!may)
			continue;
		for (u32 i = 0; i < SOCKS; i++)
			for (u32 at = queue[i].n; at-- > 0;)
				if (queue[i].e[at].row == k)
					take(i, at, at < queue[i].sent ?
					    LEAVE_UNCONFIRMED : LEAVE_DROPPED);
		return;
	}
}

static void
put(u32 i, u32 row, bool counted)
{
	struct m_queue *q = &queue[i];
	struct admission a = { .body = model[row].body,
		.key = model[row].key, .policy = q->policy };

	queue_make_room(&t, i, &a);
	m_make_room(i, a.body, a.key);
	queue_put(&t, i, row, counted);
	q->e[q->n++] = (struct m_entry){ .row = row, .number = q->next++,
		.counted = counted };
}

/* A message as it will lie on the wire. */
static void
shape(struct m_message *m)
{
	static const struct str keys[] = { { "a", 1 }, { "b", 1 },
		{ "bb", 2 } };
	size_t head = 1;

	*m = (struct m_message){ .live = true, .waiter = -1, .age = ++m_age,
		.element = roll(2) == 0, .key = { NULL, 0 } };
	m->body = roll(8) == 0 ? roll(BODY + 1) : roll(16);
	if (m->body > t.byte_cap)
		m->body = t.byte_cap;
	if (roll(3) == 0)
		m->key = keys[roll(COUNT(keys))];
	if (roll(4) == 0)
		m->expires = now + 1 + roll(20);
	if (m->element)
		m->wire[0] = ',';
	else
		head = m_head(m->wire, m->body);
	for (u32 k = 0; k < m->body; k++)
		m->wire[head + k] = (u8)roll(256);
	m->n = (u32)head + m->body;
}

/* Stores it, as far as limit and rows go. */
static u32
stored(const struct m_message *m)
{
	u32 count, held = m_held(&count), row, was = t.store.row->newer;
	u32 size = m->n + (u32)m->key.n;
	bool room = held + size <= t.store.limit, rows = count + 1 < t.store.rows;

	row = store_add(&t.store, m->n, m->body,
	    m->element ? FORM_ELEMENT : FORM_FRAME, m->key);
	seen.no_room += !room;
	seen.no_row += !rows;
	seen.moved += was != 0 && t.store.row->newer != was;
	AGREE((row != NONE) == (room && rows));
	if (row == NONE)
		return NONE;
	AGREE(row < ROWS && !model[row].live);
	model[row] = *m;
	memcpy(store_bytes(&t.store, row), m->wire, m->n);
	t.store.row[row].expires = m->expires;
	t.store.mortal += m->expires != 0;
	return row;
}

static void
wait_for(u32 row, u32 k, u32 count)
{
	t.waiter[k] = m_waiter[k] = (struct waiter){ .used = true,
		.message = row, .count = count };
	t.waiters++;
	t.store.row[row].waiter = (u8)(k + 1);
	model[row].waiter = (int)k;
}

static void
do_push(void)
{
	struct m_message m;
	u32 fit[SOCKS], n = 0, row, k = roll(WSP_WAITERS);
	u32 who = roll(3) == 0 ? roll(1 << SOCKS) : 1u << roll(SOCKS);
	bool awaited = roll(3) == 0 && !m_waiter[k].used;

	shape(&m);
	for (u32 i = 0; i < SOCKS; i++) {
		struct admission a = { .body = m.body, .key = m.key,
			.policy = queue[i].policy };
		bool admits = m_admits(i, m.body, m.key);

		AGREE(queue_admits(&t, i, &a) == admits);
		AGREE(queue_has_room(&t, i, m.body) ==
		    m_fits(&queue[i], m.body));
		if (who & 1u << i && admits)
			fit[n++] = i;
		seen.refused += !admits;
	}
	if (n == 0)
		return;
	row = stored(&m);
	if (row == NONE) {
		yield_eldest();
		row = stored(&m);
	}
	if (row == NONE)
		return;
	if (awaited)
		wait_for(row, k, n);
	if (roll(8) == 0) {
		model[row].retained = t.store.row[row].retained = true;
		t.store.row[row].holds++;
	}
	while (n > 0)
		put(fit[--n], row, awaited);
	seen.taken++;
}

/* Does the gathering hold just what the model's units say? */
static size_t
gathered(u32 i, const struct m_unit *units, u32 n)
{
	static struct gather g;
	static u8 stream[STREAM];
	size_t done = queue[i].done, total = 0, at = done;
	size_t room = roll(4) == 0 ? roll(20) : roll(STREAM);

	for (u32 k = 0; k < n; k++) {
		memcpy(stream + total, units[k].bytes, units[k].n);
		total += units[k].n;
	}
	AGREE(done <= total);
	queue_gather(&g, &t, i, done, room);
	AGREE(g.bytes == min_size(room, total - done));
	for (size_t k = 0; k < g.spans; k++) {
		AGREE(g.span[k].iov_len <= total - at);
		AGREE(memcmp(g.span[k].iov_base, stream + at,
		    g.span[k].iov_len) == 0);
		at += g.span[k].iov_len;
	}
	AGREE(at == done + g.bytes);
	return g.bytes;
}

/* Some bytes leave; a record that is half out may reach beyond them. */
static void
do_flush(void)
{
	static struct m_unit units[DEPTH];
	u32 i = roll(SOCKS), n, k = 0;
	struct m_queue *q = &queue[i];
	size_t bytes, part, frozen, before = q->done;

	n = m_units(units, q);
	bytes = gathered(i, units, n);
	part = roll(2) == 0 ? bytes : roll((u32)bytes + 1);
	AGREE(queue_limit(&t, i) == (q->plans > 0 ? m_frozen(q) :
	    q->n - q->sent));
	bytes -= part;
	for (q->done += part; k < n && q->done >= units[k].n; k++) {
		q->done -= units[k].n;
		q->plans -= q->plans > 0;
		m_written(i, units[k].entries);
	}
	for (u32 u = 0; u < q->plans; u++)
		q->plan[u] = units[k + u];
	AGREE(queue_advance(&t, i, before + part, q->keep,
	    &q->told) == q->done);
	frozen = q->done + (roll(2) == 0 ? roll((u32)bytes + 1) : 0);
	if (frozen == 0)
		return;
	queue_freeze(&t, i, frozen);
	for (q->plans = 0; bytes_of(q) < frozen; q->plans++)
		q->plan[q->plans] = units[k + q->plans];
	seen.long_plans += q->plans > 1;
}

static void
do_pong(void)
{
	u32 i = roll(SOCKS);
	struct m_queue *q = &queue[i];
	u64 number = q->next - 1 - roll(DEPTH + 2);

	if (number > q->next)
		number = 0;
	queue_acknowledge(&t, i, number);
	while (q->sent > 0 && q->e[0].number <= number)
		m_leave(i, 0, LEAVE_ACKED);
}

/* The connection is gone, perhaps the socket too. */
static void
do_disconnect(void)
{
	u32 i = roll(SOCKS);
	struct m_queue *q = &queue[i];

	q->sent = q->plans = 0;
	q->done = 0;
	q->keep = (enum keep)roll(3);
	q->policy = (enum overflow)roll(3);
	if (roll(4) > 0) {
		queue_rewind(&t, i);
		return;
	}
	queue_clear(&t, i, LEAVE_FORGOTTEN);
	while (q->n > 0)
		m_leave(i, 0, LEAVE_FORGOTTEN);
	queue_reset(&t, i);
	q->next = 1;
	q->drops = 0;
}

static void
do_time(void)
{
	u32 i = roll(SOCKS);
	struct m_queue *q = &queue[i];

	now += roll(4);
	queue_expire(&t, i, now);
	for (u32 at = q->n; at-- > q->sent + m_frozen(q);)
		if (model[q->e[at].row].expires != 0 &&
		    model[q->e[at].row].expires <= now)
			m_leave(i, at, LEAVE_EXPIRED);
}

/* Any entry that no half-written unit needs may be told to go. */
static void
do_drop(void)
{
	u32 i = roll(SOCKS), at = roll(DEPTH);
	struct m_queue *q = &queue[i];

	if (at < q->n && (at < q->sent || at >= q->sent + m_frozen(q)))
		take(i, at, at < q->sent ? LEAVE_UNCONFIRMED : LEAVE_DROPPED);
}

/* A last value goes to a newcomer, or is no longer one. */
static void
do_retained(void)
{
	u32 row = roll(ROWS), i = roll(SOCKS);

	if (!model[row].live || !model[row].retained)
		return;
	if (roll(3) > 0) {
		if (m_admits(i, model[row].body, model[row].key))
			put(i, row, false);
		return;
	}
	model[row].retained = t.store.row[row].retained = false;
	if (m_holds(row) == 0)
		model[row].live = false;
	store_let_go(&t.store, row);
}

/* Waiters that are decided are answered; others may lose patience. */
static void
do_waiters(void)
{
	for (u32 k = 0; k < WSP_WAITERS; k++) {
		struct waiter *w = &m_waiter[k];

		if (!w->used || (w->decided < w->count && roll(4) > 0))
			continue;
		AGREE(w->decided <= w->count && w->acked <= w->decided);
		if (w->decided < w->count) {
			t.store.row[w->message].waiter = 0;
			seen.late++;
		}
		for (u32 row = 0; row < ROWS; row++)
			if (model[row].waiter == (int)k)
				model[row].waiter = -1;
		t.waiter[k].used = w->used = false;
		t.waiters--;
	}
}

static void
do_something(void)
{
	u32 what = roll(100);

	if (what < 40)
		do_push();
	else if (what < 68)
		do_flush();
	else if (what < 78)
		do_pong();
	else if (what < 82)
		do_disconnect();
	else if (what < 87)
		do_time();
	else if (what < 90)
		do_drop();
	else if (what < 95)
		do_retained();
	else if (what < 98)
		do_waiters();
	else if (t.store.count > 0)
		store_move_oldest(&t.store);
}

/*
 * ---- Epochs
 */

static void
end_epoch(void)
{
	seen.acked += m_total.acknowledged;
	seen.dropped += m_total.dropped;
	seen.replaced += m_total.replaced;
	seen.expired += m_total.expired;
	seen.unconfirmed += m_total.unconfirmed;
	seen.forgotten += m_total.forgotten;
	free(t.store.bytes);
	free(t.store.row);
	free(t.queue);
	free(t.ring);
	free(t.drops);
}

/* New tables, to the byte as large as the limits say. */
static void
begin_epoch(void)
{
	static const u64 starts[] = { 1, UINT32_MAX - 20,
		(UINT64_C(5) << 32) - 3, UINT64_C(1) << 40 };
	u32 largest = WIRE + 2, limit = largest + roll(400);
	u32 cap = (u32)store_ring_size(limit, largest), rows = 2 + roll(ROWS - 1);

	memset(&t, 0, sizeof t);
	memset(model, 0, sizeof model);
	memset(queue, 0, sizeof queue);
	memset(m_waiter, 0, sizeof m_waiter);
	memset(&m_total, 0, sizeof m_total);
	t.cap = (u16)(1 + roll(DEPTH));
	t.byte_cap = 8 + roll(300);
	t.queue = calloc(SOCKS, sizeof *t.queue);
	t.ring = malloc(SOCKS * t.cap * sizeof *t.ring);
	t.drops = calloc(SOCKS, sizeof *t.drops);
	AGREE(t.queue != NULL && t.ring != NULL && t.drops != NULL);
	t.store.bytes = malloc(cap);
	t.store.row = calloc(rows, sizeof *t.store.row);
	store_init(&t.store, cap, limit, rows);
	AGREE(t.store.bytes != NULL && t.store.row != NULL);
	for (u32 i = 0; i < SOCKS; i++) {
		queue_reset(&t, i);
		queue[i].next = starts[roll(COUNT(starts))];
		t.queue[i].last_number = queue[i].next - 1;
		queue[i].keep = (enum keep)roll(3);
		queue[i].policy = (enum overflow)roll(3);
	}
}

static void
store_and_queues_do_what_the_model_says(void **state)
{
	(void)state;
	dice = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	for (step = 0; step < steps; step++) {
		if (step % EPOCH == 0) {
			if (step > 0)
				end_epoch();
			begin_epoch();
		}
		do_something();
		agree();
	}
	end_epoch();
}

static void
the_run_met_everything_that_can_happen(void **state)
{
	(void)state;
	if (steps < 100000)
		skip();
	assert_true(seen.taken > 0 && seen.refused > 0);
	assert_true(seen.no_room > 0 && seen.no_row > 0);
	assert_true(seen.moved > 0 && seen.wraps > 0);
	assert_true(seen.long_plans > 0 && seen.late > 0);
	assert_true(seen.acked > 0 && seen.dropped > 0);
	assert_true(seen.replaced > 0 && seen.expired > 0);
	assert_true(seen.unconfirmed > 0 && seen.forgotten > 0);
}

int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(store_and_queues_do_what_the_model_says),
		cmocka_unit_test(the_run_met_everything_that_can_happen),
	};
	const char *from = argc > 1 ? argv[1] : getenv("WSP_SEED");

	if (from != NULL)
		seed = strtoull(from, NULL, 0);
	if (argc > 2)
		steps = strtoull(argv[2], NULL, 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
