/*
 * SPDX-License-Identifier: MIT
 *
 * Room Loop: however fast the push socket fills, a turn ends.
 */
#include <sys/socket.h>

static int pings;

/* A push socket that is never empty. */
static ssize_t
endless(int fd, struct msghdr *m, int flags)
{
	static const char ping[4] = "ping";

	(void)fd;
	(void)flags;
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
static char reply[64];

static void
a_flood_has_one_budget_in_a_flush_to_many(void **state)
{
	(void)state;
	srv.conn = conns;
	srv.conns = COUNT(conns);
	srv.dirty = dirty;
	srv.scratch_push = datagram;
	srv.push_size = sizeof datagram;
	srv.scratch_reply = reply;
	srv.reply_size = sizeof reply;
	for (u32 i = 0; i < srv.conns; i++)
		conn_mark_dirty(&conns[i]);
	loop_flush();
	assert_int_equal(srv.dirties, 0);
	assert_int_equal(pings, PUSH_BUDGET);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flood_has_one_budget_in_a_flush_to_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
