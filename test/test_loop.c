/*
 * SPDX-License-Identifier: MIT
 *
 * Room Loop: however fast the push socket fills, a turn ends; and however many
 * are written to, it is looked at in between.
 */
#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>

static int pings;
static bool single; /* one datagram a look, else it is never empty */

static void looked(void);

static ssize_t
endless(int fd, struct msghdr *m, int flags)
{
	static const char ping[4] = "ping";

	(void)fd;
	(void)flags;
	if (single && pings % 2 == 1) {
		pings++;
		errno = EAGAIN;
		return -1;
	}
	looked();
	for (size_t i = 0; i < sizeof ping; i++)
		((char *)m->msg_iov[0].iov_base)[i] = ping[i];
	m->msg_namelen = 0;
	m->msg_controllen = 0;
	pings++;
	return sizeof ping;
}

#define recvmsg endless
#define main wspush_main
#include "../wspush.c"
#undef main

#include <setjmp.h>

#include <cmocka.h>

static struct conn conns[20 * LOOP_SLICE];
static u32 dirty[COUNT(conns)];
static u8 datagram[64];
static u32 urgent[COUNT(conns)];
static char reply[64];
static u32 looks, left_before;

/* A message for one comes with each look: at the next it has been written. */
static void
looked(void)
{
	if (!single)
		return;
	assert_int_equal(srv.dirties, left_before - LOOP_SLICE);
	assert_int_equal(srv.urgents, 0);
	left_before = srv.dirties;
	conn_mark_urgent(&conns[looks++]);
}

static void
set_up_dirty(void)
{
	pings = 0;
	srv.conn = conns;
	srv.conns = COUNT(conns);
	srv.dirty = dirty;
	srv.urgent = urgent;
	srv.scratch_push = datagram;
	srv.push_size = sizeof datagram;
	srv.scratch_reply = reply;
	srv.reply_size = sizeof reply;
	for (u32 i = 0; i < srv.conns; i++)
		conn_mark_dirty(&conns[i]);
}

static void
a_flood_has_one_budget_in_a_flush_to_many(void **state)
{
	(void)state;
	set_up_dirty();
	loop_flush();
	assert_int_equal(srv.dirties, 0);
	assert_int_equal(pings, PUSH_BUDGET);
}

static void
who_is_one_of_few_waits_for_a_slice_of_the_many_and_no_longer(void **state)
{
	(void)state;
	set_up_dirty();
	single = true;
	left_before = srv.dirties;
	loop_flush();
	assert_int_equal(looks, COUNT(conns) / LOOP_SLICE - 1);
	assert_int_equal(srv.dirties, 0);
	assert_int_equal(srv.urgents, 0);
	single = false;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flood_has_one_budget_in_a_flush_to_many),
		cmocka_unit_test(
		    who_is_one_of_few_waits_for_a_slice_of_the_many_and_no_longer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
