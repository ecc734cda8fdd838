/*
 * SPDX-License-Identifier: MIT
 *
 * Rooms Events and Forgers: what a host is, which of its connections gives
 * way, and hosts that show forged tokens.
 */
#define main wspush_main
#include "../wspush.c"
#undef main

#include <setjmp.h>

#include <cmocka.h>

#define START INT64_C(5000)

static const u8 *
addr(const char *text)
{
	static u8 room[4][16];
	static u32 next;
	u8 *a = room[next++ % COUNT(room)];
	struct in_addr v4;

	memset(a, 0, 16);
	if (inet_pton(AF_INET, text, &v4) == 1) {
		a[10] = a[11] = 0xff;
		memcpy(a + 12, &v4, 4);
	} else {
		assert_int_equal(inet_pton(AF_INET6, text, a), 1);
	}
	return a;
}

/*
 * ---- Rows
 */

static struct conn conns[8];
static struct deadline deadline_rows[COUNT(conns)];

static struct conn *
come(const char *host, enum conn_deadline class)
{
	struct conn *c = &srv.conn[srv.fresh++];

	memcpy(c->addr, addr(host), sizeof c->addr);
	conn_arm(c, class);
	return c;
}

static int
empty_tables(void **state)
{
	(void)state;
	memset(conns, 0, sizeof conns);
	memset(deadline_rows, 0, sizeof deadline_rows);
	srv.conn = conns;
	srv.fresh = 0;
	deadline_init(&srv.deadlines, deadline_rows);
	settings.ping_interval = settings.pong_timeout = 25;
	settings.handshake_timeout = 10;
	return 0;
}

static void
open_connections_do_not_count_and_those_on_their_way_in_or_out_do(void **state)
{
	struct conn *first, *new;

	(void)state;
	come("10.0.0.1", DEADLINE_PING);
	come("10.0.0.1", DEADLINE_ACK);
	come("10.0.0.1", DEADLINE_PONG);
	come("10.0.0.2", DEADLINE_DRAIN);
	new = come("10.0.0.1", DEADLINE_HANDSHAKE);
	assert_int_equal(conn_host_pending(new, &first), 1);
	assert_ptr_equal(first, new);
	come("10.0.0.1", DEADLINE_CLOSING);
	come("10.0.0.1", DEADLINE_DRAIN);
	assert_int_equal(conn_host_pending(new, &first), 3);
}

static void
who_has_an_answer_gives_way_first_and_who_waits_for_us_not(void **state)
{
	struct conn *first, *waits, *half, *closing, *drain;

	(void)state;
	waits = come("10.0.0.1", DEADLINE_HANDSHAKE);
	waits->waiting = true;
	assert_int_equal(conn_host_pending(waits, &first), 1);
	assert_null(first);
	half = come("10.0.0.1", DEADLINE_HANDSHAKE);
	come("10.0.0.1", DEADLINE_HANDSHAKE);
	(void)conn_host_pending(waits, &first);
	assert_ptr_equal(first, half);
	closing = come("10.0.0.1", DEADLINE_CLOSING);
	(void)conn_host_pending(waits, &first);
	assert_ptr_equal(first, closing);
	drain = come("10.0.0.1", DEADLINE_DRAIN);
	assert_int_equal(conn_host_pending(waits, &first), 5);
	assert_ptr_equal(first, drain);
}

/*
 * ---- Forged tokens
 */

static int
forget_all(void **state)
{
	(void)state;
	memset(forgers, 0, sizeof forgers);
	srv.now = START;
	return 0;
}

static void
forge(const char *host, u32 count)
{
	for (u32 i = 0; i < count; i++)
		forger_add(addr(host));
}

static void
a_host_is_an_ipv4_address_or_64_bits_of_ipv6(void **state)
{
	(void)state;
	assert_true(addr_same_host(addr("10.0.0.1"), addr("10.0.0.1")));
	assert_false(addr_same_host(addr("10.0.0.1"), addr("10.0.0.2")));
	assert_false(addr_same_host(addr("::1"), addr("10.0.0.1")));
	assert_false(addr_same_host(addr("10.0.0.1"), addr("::1")));
	assert_true(addr_same_host(addr("2001:db8:1:2::1"),
	    addr("2001:db8:1:2:ffff::9")));
	assert_false(addr_same_host(addr("2001:db8:1:2::1"),
	    addr("2001:db8:1:3::1")));
}

static void
max_per_ip_counts_whole_addresses(void **state)
{
	struct conn *new;

	(void)state;
	settings.max_per_ip = 2;
	for (u32 i = 0; i < 2; i++)
		come("2001:db8::1", DEADLINE_HANDSHAKE)->state = CONN_HTTP;
	new = come("2001:db8::2", DEADLINE_HANDSHAKE);
	assert_false(conn_address_is_full(new));
	memcpy(new->addr, addr("2001:db8::1"), sizeof new->addr);
	assert_true(conn_address_is_full(new));
	settings.max_per_ip = 0;
	assert_false(conn_address_is_full(new));
}

static void
a_host_waits_from_the_last_failure_it_may_have_on(void **state)
{
	(void)state;
	assert_false(forger_waits(addr("10.0.0.1")));
	forge("10.0.0.1", WSP_TOKEN_FAILURES - 1);
	assert_false(forger_waits(addr("10.0.0.1")));
	forge("10.0.0.1", 1);
	assert_true(forger_waits(addr("10.0.0.1")));
	assert_false(forger_waits(addr("10.0.0.2")));
	assert_false(forger_waits(addr("::1")));
}

static void
with_ipv6_a_host_does_not_get_further_by_another_address(void **state)
{
	(void)state;
	forge("2001:db8::1", WSP_TOKEN_FAILURES / 2);
	forge("2001:db8::2", WSP_TOKEN_FAILURES - WSP_TOKEN_FAILURES / 2);
	assert_true(forger_waits(addr("2001:db8::3")));
	assert_false(forger_waits(addr("2001:db8:0:1::1")));
}

static void
after_a_while_one_more_is_looked_at_and_then_the_host_waits_again(void **state)
{
	(void)state;
	forge("10.0.0.1", WSP_TOKEN_FAILURES);
	for (int k = 0; k < 3; k++) {
		srv.now += WSP_TOKEN_MS - 1;
		assert_true(forger_waits(addr("10.0.0.1")));
		srv.now++;
		assert_false(forger_waits(addr("10.0.0.1")));
		forge("10.0.0.1", 1);
		assert_true(forger_waits(addr("10.0.0.1")));
	}
	srv.now += WSP_TOKEN_MS * WSP_TOKEN_FAILURES;
	forge("10.0.0.1", WSP_TOKEN_FAILURES - 1);
	assert_false(forger_waits(addr("10.0.0.1")));
	forge("10.0.0.1", 1);
	assert_true(forger_waits(addr("10.0.0.1")));
}

static void
when_all_rows_are_taken_the_oldest_gives_way(void **state)
{
	char host[32];

	(void)state;
	for (int i = 0; i < WSP_TOKEN_HOSTS + 1; i++) {
		srv.now++;
		snprintf(host, sizeof host, "10.0.%d.%d", i / 256, i % 256);
		forge(host, WSP_TOKEN_FAILURES);
	}
	assert_false(forger_waits(addr("10.0.0.0")));
	for (int i = 1; i < WSP_TOKEN_HOSTS + 1; i++) {
		snprintf(host, sizeof host, "10.0.%d.%d", i / 256, i % 256);
		assert_true(forger_waits(addr(host)));
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_host_is_an_ipv4_address_or_64_bits_of_ipv6),
		cmocka_unit_test_setup(
		    open_connections_do_not_count_and_those_on_their_way_in_or_out_do,
		    empty_tables),
		cmocka_unit_test_setup(
		    who_has_an_answer_gives_way_first_and_who_waits_for_us_not,
		    empty_tables),
		cmocka_unit_test_setup(max_per_ip_counts_whole_addresses,
		    empty_tables),
		cmocka_unit_test_setup(
		    a_host_waits_from_the_last_failure_it_may_have_on,
		    forget_all),
		cmocka_unit_test_setup(
		    with_ipv6_a_host_does_not_get_further_by_another_address,
		    forget_all),
		cmocka_unit_test_setup(
		    after_a_while_one_more_is_looked_at_and_then_the_host_waits_again,
		    forget_all),
		cmocka_unit_test_setup(
		    when_all_rows_are_taken_the_oldest_gives_way, forget_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
