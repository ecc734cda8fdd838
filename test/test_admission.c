/*
 * SPDX-License-Identifier: MIT
 *
 * Room 27, Admission: hosts that show forged tokens; and what a host is.
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
