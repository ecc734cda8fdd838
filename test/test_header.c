/* SPDX-License-Identifier: MIT */
/* wspush.h as a C program on the box uses it: wsp_push(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../wspush.h"

static struct sockaddr_un here;

static int
listen_here(void)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	here = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(here.sun_path, sizeof here.sun_path, "wsp_push.%d.sock",
	    (int)getpid());
	unlink(here.sun_path);
	assert_return_code(bind(fd, (struct sockaddr *)&here, sizeof here),
	    errno);
	return fd;
}

static void
a_request_is_one_datagram_with_its_body(void **state)
{
	int fd = listen_here();
	char got[64] = "";

	(void)state;
	assert_int_equal(wsp_push(here.sun_path, "send kind=binary *",
	    "a\0b", 3), 0);
	assert_int_equal(recv(fd, got, sizeof got, 0), 22);
	assert_memory_equal(got, "send kind=binary *\na\0b", 22);
	close(fd);
	unlink(here.sun_path);
}

static void
nobody_there_is_an_errno(void **state)
{
	int fd = listen_here();

	(void)state;
	close(fd);
	assert_int_equal(wsp_push(here.sun_path, "ping", "", 0), ECONNREFUSED);
	unlink(here.sun_path);
	assert_int_equal(wsp_push(here.sun_path, "ping", "", 0), ENOENT);
}

static void
a_full_queue_does_not_block(void **state)
{
	int fd = listen_here(), r = 0;

	(void)state;
	for (int i = 0; i < 10000 && r == 0; i++)
		r = wsp_push(here.sun_path, "ping", "", 0);
	assert_int_equal(r, EAGAIN);
	close(fd);
	unlink(here.sun_path);
}

static void
a_path_or_message_too_long_is_an_errno(void **state)
{
	static char big[8 << 20];
	char path[200];
	int fd = listen_here();

	(void)state;
	memset(path, 'x', sizeof path - 1);
	path[sizeof path - 1] = '\0';
	assert_int_equal(wsp_push(path, "ping", "", 0), ENAMETOOLONG);
	assert_int_equal(wsp_push(here.sun_path, "send *", big, sizeof big),
	    EMSGSIZE);
	close(fd);
	unlink(here.sun_path);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_request_is_one_datagram_with_its_body),
		cmocka_unit_test(nobody_there_is_an_errno),
		cmocka_unit_test(a_full_queue_does_not_block),
		cmocka_unit_test(a_path_or_message_too_long_is_an_errno),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
