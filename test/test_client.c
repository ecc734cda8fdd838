/*
 * Rooms Client to Main: the command line in, the request line out, the reply
 * in, the exit status out.  A child plays the server by a script of replies.
 *
 * SPDX-License-Identifier: MIT
 */
#define main wspush_main
#include "../wspush.c"
#undef main

#include <setjmp.h>
#include <sys/wait.h>
#include <cmocka.h>

static char dir[] = "/tmp/wspush-test-XXXXXX";
static char path[64];
static int listener = -1;   /* the push socket */
static int requests[2];     /* what the child received */

/* What a run left behind. */
static int status;
static char out[8192], err[8192], request[8192];

/* ----- a server by script */

/* Sends what stands before the next form feed; `@` becomes ` ref=REF`. */
static const char *
reply_once(const char *script, const char *ref, const struct sockaddr_un *to,
    socklen_t to_n)
{
	char room[8192];
	struct out o = out_to(room, sizeof room);

	for (; *script && *script != '\f'; script++)
		if (*script == '@')
			reply_ref(&o, (struct str){ ref, strlen(ref) });
		else
			out_char(&o, *script);
	sendto(listener, room, o.n, 0, (const struct sockaddr *)to, to_n);
	return *script ? script + 1 : script;
}

/* Answers each request by the next of the scripts; a form feed in one parts
 * several datagrams. */
static void
play(const char *const *scripts)
{
	for (; *scripts; scripts++) {
		char room[8192] = "", ref[64] = "", *r;
		const char *script = *scripts;
		struct sockaddr_un from;
		socklen_t from_n = sizeof from;
		ssize_t n = recvfrom(listener, room, sizeof room - 1, 0,
		    (struct sockaddr *)&from, &from_n);

		if (n < 0 || write(requests[1], room, (size_t)n) != n)
			_exit(1);
		r = strstr(room, "ref=");
		if (r)
			sscanf(r + 4, "%63[0-9a-f]", ref);
		while (*script)
			script = reply_once(script, ref, &from, from_n);
	}
	pause();
}

static pid_t
start_server(const char *const *scripts)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		play(scripts);
	return pid;
}

/* ----- a run with its output caught */

static int
spool(const void *p, size_t n)
{
	FILE *f = tmpfile();
	int fd;

	assert_non_null(f);
	fd = dup(fileno(f));
	fclose(f);
	assert_int_equal(write(fd, p, n), n);
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static void
slurp(char *to, size_t cap, int fd)
{
	ssize_t n;

	lseek(fd, 0, SEEK_SET);
	n = read(fd, to, cap - 1);
	to[n < 0 ? 0 : n] = '\0';
	close(fd);
}

/* Puts `fd` in the place of a standard stream; returns what was there. */
static int
swap(int stream, int fd)
{
	int old = dup(stream);

	fflush(stdout);
	fflush(stderr);
	dup2(fd, stream);
	return old;
}

static void
unswap(int stream, int old)
{
	swap(stream, old);
	close(old);
}

static int
run(const char *const *args)
{
	char *argv[16], copy[16][2048];
	int argc = 0, fd[2] = { spool("", 0), spool("", 0) }, old[2];

	for (; args[argc]; argc++) {
		snprintf(copy[argc], sizeof copy[argc], "%s", args[argc]);
		argv[argc] = copy[argc];
	}
	argv[argc] = NULL;
	for (int i = 0; i < 2; i++)
		old[i] = swap(STDOUT_FILENO + i, fd[i]);
	status = wspush_main(argc, argv);
	print_fd = STDOUT_FILENO;
	for (int i = 0; i < 2; i++)
		unswap(STDOUT_FILENO + i, old[i]);
	slurp(out, sizeof out, fd[0]);
	slurp(err, sizeof err, fd[1]);
	return status;
}

/* Runs against a server that answers by script, and keeps what it got. */
static int
run_against(const char *const *scripts, const char *const *args)
{
	pid_t pid = start_server(scripts);
	ssize_t n;

	run(args);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	n = read(requests[0], request, sizeof request - 1);
	request[n < 0 ? 0 : n] = '\0';
	return status;
}

#define LIST(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define ANSWERS LIST
#define RUN(...) run(LIST("wspush", __VA_ARGS__))
#define AGAINST(answers, ...) \
	run_against(answers, LIST("wspush", __VA_ARGS__))

/* The request that was sent, without its ref. */
static const char *
sent(void)
{
	char *r = strstr(request, " ref=");

	assert_non_null(r);
	assert_int_equal(strspn(r + 5, "0123456789abcdef"), 16);
	memmove(r, r + 21, strlen(r + 21) + 1);
	return request;
}

/* ----- what is sent */

static void
every_option_of_send_has_its_word(void **state)
{
	(void)state;
	assert_int_equal(AGAINST(ANSWERS("ok 1@\n\facked 1 of 1@\n"), "send",
	    "-k", "json", "-t", "007", "-rK", "k", "-w5", "$a:1 =open",
	    "{}"), 0);
	assert_string_equal(sent(), "send kind=json ttl=007 ack=5 key=k "
	    "retain=1 $a:1 =open\n{}");
}

static void
options_end_at_the_first_that_is_none(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 1@\n"), "send", "*", "-k");
	assert_string_equal(sent(), "send *\n-k");
	AGAINST(ANSWERS("ok 1@\n"), "send", "-k", "text", "--", "*", "--");
	assert_string_equal(sent(), "send kind=text *\n--");
	AGAINST(ANSWERS("ok 1@\n"), "tag", "*", "-R", "b:c");
	assert_string_equal(sent(), "tag *\n-R\nb:c\n");
}

static void
of_an_option_given_twice_the_last_counts(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 1@\n"), "send", "-k", "json", "-k", "text", "*",
	    "");
	assert_string_equal(sent(), "send kind=text *\n");
}

static void
every_verb_makes_its_request(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 1@\n"), "tag", "-R", "$a");
	assert_string_equal(sent(), "tag replace=1 $a\n");
	AGAINST(ANSWERS("ok 1@\n"), "close", "-c", "4999", "*", "good bye");
	assert_string_equal(sent(), "close code=4999 *\ngood bye");
	AGAINST(ANSWERS("ok 1@\n"), "abort", " *");
	assert_string_equal(sent(), "abort *\n");
	AGAINST(ANSWERS("ok 0@\n"), "list");
	assert_string_equal(sent(), "list\n");
	AGAINST(ANSWERS("ok 0@\n"), "stats", "-j");
	assert_string_equal(sent(), "stats format=json\n");
	AGAINST(ANSWERS("ok 0@\n"), "ping");
	assert_string_equal(sent(), "ping\n");
}

static void
standard_input_goes_whole_byte_for_byte(void **state)
{
	static const char bytes[] = "a\0b\r\n\xff\n";
	int fd = spool(bytes, sizeof bytes - 1);
	int old = swap(STDIN_FILENO, fd);

	(void)state;
	AGAINST(ANSWERS("ok 1@\n"), "send", "*");
	unswap(STDIN_FILENO, old);
	close(fd);
	assert_int_equal(status, 0);
	assert_memory_equal(sent(), "send *\n", 7);
	/* sent() moved the text before the NUL only. */
	assert_memory_equal(request + 7, "a", 2);
	assert_memory_equal(request + 7 + 21 + 1, bytes + 1,
	    sizeof bytes - 2);
}

static void
too_much_standard_input_is_refused(void **state)
{
	int fd = spool("", 0), old;

	(void)state;
	assert_int_equal(ftruncate(fd, CLIENT_MAX_INPUT + 1), 0);
	old = swap(STDIN_FILENO, fd);
	RUN("send", "*");
	unswap(STDIN_FILENO, old);
	close(fd);
	assert_int_equal(status, 1);
	assert_non_null(strstr(err, "standard input is too big"));
}

static void
a_message_too_big_for_a_datagram_is_refused(void **state)
{
	int fd = spool("", 0), old;

	(void)state;
	assert_int_equal(ftruncate(fd, CLIENT_MAX_INPUT - 1), 0);
	old = swap(STDIN_FILENO, fd);
	RUN("send", "*");
	unswap(STDIN_FILENO, old);
	close(fd);
	assert_int_equal(status, 1);
	assert_non_null(strstr(err, "too big for a datagram"));
}

static void
standard_input_that_cannot_be_read_is_an_error(void **state)
{
	int fd = open("/dev/null", O_WRONLY), old = swap(STDIN_FILENO, fd);

	(void)state;
	RUN("send", "*");
	unswap(STDIN_FILENO, old);
	close(fd);
	assert_int_equal(status, 1);
	assert_non_null(strstr(err, "cannot be read"));
}

/* ----- wrong usage */

static void
wrong_usage_names_the_fault_and_shows_the_usage(void **state)
{
	static const struct {
		const char *args[6], *says;
	} wrong[] = {
		{ { "send" }, "TARGET is missing" },
		{ { "send", "*", "a", "b" }, "too many arguments at 'b'" },
		{ { "send", "-x", "*", "a" }, "unknown option -x" },
		{ { "send", "-rx", "*", "a" }, "unknown option -x" },
		{ { "send", "-:", "*", "a" }, "unknown option -:" },
		{ { "send", "--json", "*", "a" }, "unknown option --json" },
		{ { "send", "-k" }, "option -k needs a value" },
		{ { "send", "-k", "blob", "*", "a" }, "not 'blob'" },
		{ { "send", "-t", "1000000000", "*", "a" }, "-t takes" },
		{ { "send", "-t", "-1", "*", "a" }, "-t takes" },
		{ { "send", "-w", "0", "*", "a" }, "-w takes" },
		{ { "send", "-w", "3601", "*", "a" }, "-w takes" },
		{ { "send", "-K", "", "*", "a" }, "-K takes" },
		{ { "send", "-K", "a b", "*", "a" }, "-K takes" },
		{ { "send", "-K", "a\nb", "*", "a" }, "-K takes" },
		{ { "send", "", "a" }, "TARGET is empty" },
		{ { "send", " ", "a" }, "TARGET is empty" },
		{ { "send", "ttl=1 *", "a" }, "TARGET must begin" },
		{ { "send", "*\nx", "a" }, "and be one line" },
		{ { "tag" }, "TARGET is missing" },
		{ { "tag", "*" }, "which tags?" },
		{ { "tag", "*", "a:b\n-c" }, "must not hold a line break" },
		{ { "close", "-c", "999", "*" }, "-c takes" },
		{ { "close", "-c", "1005", "*" }, "-c takes" },
		{ { "close", "-c", "5000", "*" }, "-c takes" },
		{ { "close", "*", "a", "b" }, "too many arguments" },
		{ { "abort" }, "TARGET is missing" },
		{ { "abort", "*", "a" }, "too many arguments" },
		{ { "list", "-J" }, "unknown option -J" },
		{ { "list", "a" }, "TARGET must begin" },
		{ { "stats", "*" }, "too many arguments" },
		{ { "ping", "*" }, "too many arguments" },
		{ { "ping", "-s", "" }, "path of the push socket" },
		{ { "watch", "a" }, "TARGET must begin" },
		{ { "top" }, "it needs a terminal" },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(wrong); i++) {
		const char *const *a = wrong[i].args;
		char usage[64], fault[64];

		RUN(a[0], a[1], a[2], a[3], a[4]);
		snprintf(fault, sizeof fault, "wspush %s: ", a[0]);
		snprintf(usage, sizeof usage, "\nusage: wspush %s ", a[0]);
		assert_int_equal(status, 2);
		assert_string_equal(out, "");
		assert_memory_equal(err, fault, strlen(fault));
		assert_non_null(strstr(err, wrong[i].says));
		assert_non_null(strstr(err, usage));
	}
}

static void
a_key_has_at_most_64_bytes(void **state)
{
	char key[WSP_MAX_KEY + 2];

	(void)state;
	for (size_t n = WSP_MAX_KEY - 1; n <= WSP_MAX_KEY + 1; n++) {
		memset(key, 'k', n);
		key[n] = '\0';
		AGAINST(ANSWERS("ok 1@\n"), "send", "-K", key, "*", "");
		assert_int_equal(status, n <= WSP_MAX_KEY ? 0 : 2);
	}
}

static void
a_request_line_has_at_most_1024_bytes(void **state)
{
	size_t most = WSP_MAX_REQUEST_LINE - strlen("list ref= ") - 16;
	char target[WSP_MAX_REQUEST_LINE];

	(void)state;
	for (size_t n = most - 1; n <= most + 1; n++) {
		memset(target, '$', n);
		target[n] = '\0';
		AGAINST(ANSWERS("ok 0@\n"), "list", target);
		assert_int_equal(status, n <= most ? 0 : 2);
		if (n > most)
			assert_non_null(strstr(err, "shorten TARGET"));
	}
}

static void
a_socket_path_has_at_most_107_bytes(void **state)
{
	char name[110];

	(void)state;
	for (size_t n = 106; n <= 108; n++) {
		memset(name, 'p', n);
		name[n] = '\0';
		RUN("ping", "-s", name);
		assert_int_equal(status, n <= 107 ? 3 : 2);
	}
}

/* ----- what comes back */

static void
every_reply_has_its_line_and_its_status(void **state)
{
	static const struct {
		const char *args[5], *answer;
		int status;
		const char *out, *err;
	} cases[] = {
		{ { "send", "*", "a" }, "ok 3@ open=2 away=1\n", 0,
		    "queued on 3 sockets (1 away)\n", "" },
		{ { "send", "*", "a" }, "ok 1@ open=1 full=2\n", 0,
		    "queued on 1 socket (2 full)\n", "" },
		{ { "send", "*", "a" }, "ok 2@ away=2 full=1\n", 0,
		    "queued on 2 sockets (2 away, 1 full)\n", "" },
		{ { "send", "*", "a" }, "ok 0@\n", 4,
		    "no socket matched\n", "" },
		{ { "send", "-r", "*", "a" }, "ok 0@\n", 0,
		    "no socket matched\n", "" },
		{ { "send", "*", "a" }, "error queue-full@ all full\n", 1,
		    "", "wspush: queue-full: all full\n" },
		{ { "send", "*", "a" }, "error unknown-socket@ not there\n", 4,
		    "", "wspush: unknown-socket: not there\n" },
		{ { "send", "*", "a" }, "error bad-request no verb\n", 1,
		    "", "wspush: bad-request: no verb\n" },
		{ { "send", "-w1", "*", "a" },
		    "ok 3@ away=1\n\facked 3 of 3@\n", 0,
		    "acknowledged by 3 of 3 sockets\n", "" },
		{ { "send", "-w1", "*", "a" }, "ok 1@\n\facked 1 of 1@\n", 0,
		    "acknowledged by 1 of 1 socket\n", "" },
		{ { "send", "-w1", "*", "a" }, "ok 2@\n\facked 1 of 2@\n", 5,
		    "acknowledged by 1 of 2 sockets\n", "" },
		{ { "send", "-w1", "*", "a" },
		    "ok 2@ full=1\n\facked 2 of 2@\n", 5,
		    "acknowledged by 2 of 2 sockets (1 full)\n", "" },
		{ { "send", "-w1", "*", "a" }, "ok 0@\n", 4,
		    "no socket matched\n", "" },
		{ { "send", "-rw1", "*", "a" }, "ok 0@\n", 0,
		    "no socket matched\n", "" },
		{ { "send", "-w1", "*", "a" }, "error no-room@ 64 wait\n", 1,
		    "", "wspush: no-room: 64 wait\n" },
		{ { "tag", "*", "a:b" }, "ok 2@\n", 0,
		    "tagged 2 sockets\n", "" },
		{ { "tag", "*", "a:b" }, "ok 0@\n", 4,
		    "no socket matched\n", "" },
		{ { "tag", "*", "a" }, "error bad-tag@ no colon\n", 1,
		    "", "wspush: bad-tag: no colon\n" },
		{ { "close", "*" }, "ok 1@\n", 0, "closed 1 socket\n", "" },
		{ { "close", "*" }, "ok 0@\n", 4, "no socket matched\n", "" },
		{ { "abort", "*" }, "ok 2@ away=1\n", 0,
		    "cut 2 sockets (1 away)\n", "" },
		{ { "abort", "*" }, "error unknown-socket@ no\n", 4,
		    "", "wspush: unknown-socket: no\n" },
		{ { "list" }, "ok 0@\n", 0, "", "" },
		{ { "list" }, "ok 1@\nrow\topen\n", 0, "row\topen\n", "" },
		{ { "list", "-j" }, "ok 0@\n[]", 0, "[]\n", "" },
		{ { "list", "-j" }, "ok 1@\n[{}]\n", 0, "[{}]\n", "" },
		{ { "list", "$" }, "error bad-target@ no name\n", 1,
		    "", "wspush: bad-target: no name\n" },
		{ { "stats" }, "ok 1@\na 1\n", 0, "a 1\n", "" },
		{ { "stats", "-j" }, "ok 1@\n{\"a\":1}", 0, "{\"a\":1}\n", "" },
		{ { "ping" }, "ok 0@\n", 0, "ok\n", "" },
		{ { "ping" }, "error denied@ not you\n", 1,
		    "", "wspush: denied: not you\n" },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++) {
		const char *const *a = cases[i].args;

		AGAINST(ANSWERS(cases[i].answer), a[0], a[1], a[2], a[3]);
		assert_int_equal(status, cases[i].status);
		assert_string_equal(out, cases[i].out);
		assert_string_equal(err, cases[i].err);
	}
}

static void
a_late_reply_to_another_request_is_passed_over(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 9 ref=0123456789abcdef\n\fok 8\n\fnoise\f"
	    "error denied ref=0123456789abcdef no\n\fok 1@\n"),
	    "send", "*", "a");
	assert_int_equal(status, 0);
	assert_string_equal(out, "queued on 1 socket\n");
}

static void
the_pages_of_a_list_are_one_list(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 2@ next=7\na\nb\n", "ok 0@ next=9\n", "ok 1@\nc\n"),
	    "list", "$t");
	assert_int_equal(status, 0);
	assert_string_equal(out, "a\nb\nc\n");
	assert_non_null(strstr(request, "from=7 $t\n"));
	assert_non_null(strstr(request, "from=9 $t\n"));
}

static void
the_pages_of_a_json_list_are_one_array(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 2@ next=7\n[{\"a\":[]},{}]", "ok 0@ next=9\n[]\n",
	    "ok 1@\n[ {\"c\":1} ]\n"), "list", "-j");
	assert_int_equal(status, 0);
	assert_string_equal(out, "[{\"a\":[]},{},\n{\"c\":1}]\n");
	assert_non_null(strstr(request, " format=json from=7\n"));
}

static void
a_list_that_breaks_off_is_an_error(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 1@ next=7\na\n", "error denied@ not now\n"),
	    "list");
	assert_int_equal(status, 1);
	assert_string_equal(out, "a\n");
	assert_string_equal(err, "wspush: denied: not now\n");
}

static void
a_server_that_is_not_there_is_status_3(void **state)
{
	char name[80];
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	(void)state;
	snprintf(name, sizeof name, "%s/none", dir);
	assert_int_equal(RUN("send", "-s", name, "*", "a"), 3);
	assert_non_null(strstr(err, "cannot be reached"));
	assert_non_null(strstr(err, "no such path"));
	assert_int_equal(RUN("watch", "-s", name), 3);
	assert_non_null(strstr(err, "no such path"));

	snprintf(name, sizeof name, "%s/stale", dir);
	strcpy(at.sun_path, name);
	assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
	close(fd);
	assert_int_equal(RUN("ping", "-s", name), 3);
	assert_non_null(strstr(err, "cannot be reached"));
	assert_non_null(strstr(err, "nobody listens"));
	unlink(name);
}

static void
the_environment_stands_for_the_option_and_yields_to_it(void **state)
{
	(void)state;
	setenv("WSPUSH_SOCKET", "/nowhere/at/all", 1);
	assert_int_equal(RUN("ping"), 3);
	assert_non_null(strstr(err, "/nowhere/at/all"));
	assert_int_equal(AGAINST(ANSWERS("ok 0@\n"), "ping", "-s", path), 0);
	setenv("WSPUSH_SOCKET", path, 1);
}

static void
output_that_cannot_be_written_is_an_error_status(void **state)
{
	char verb[] = "help", *argv[] = { verb, verb, NULL };
	int fd = open("/dev/full", O_WRONLY), old;

	(void)state;
	if (fd < 0)
		skip();
	old = swap(STDOUT_FILENO, fd);
	status = wspush_main(2, argv);
	print_lost = 0;
	unswap(STDOUT_FILENO, old);
	close(fd);
	assert_int_equal(status, 1);
}

/* ----- watch */

static void
watch_prints_events_and_ends_well_when_told(void **state)
{
	char verb[] = "watch", *argv[] = { verb, verb, NULL }, line[256];
	pid_t server = start_server(ANSWERS("open /a\fok 1@\n\fclose /a 1006\n"));
	int fd[2], how;
	size_t n = 0;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(fd), 0);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		dup2(fd[1], STDOUT_FILENO);
		close(fd[0]);
		_exit(wspush_main(2, argv));
	}
	close(fd[1]);
	while (n < strlen("open /a\nclose /a 1006\n")) {
		ssize_t r = read(fd[0], line + n, sizeof line - 1 - n);

		assert_true(r > 0);
		n += (size_t)r;
	}
	line[n] = '\0';
	assert_string_equal(line, "open /a\nclose /a 1006\n");
	kill(pid, SIGTERM);
	assert_int_equal(waitpid(pid, &how, 0), pid);
	assert_true(WIFEXITED(how));
	assert_int_equal(WEXITSTATUS(how), 0);
	close(fd[0]);
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	assert_true(read(requests[0], request, sizeof request) > 0);
}

static void
a_watch_that_is_refused_ends_with_status_1(void **state)
{
	(void)state;
	AGAINST(ANSWERS("ok 1 ref=0\n\ferror no-room@ 8 watch\n"), "watch");
	assert_int_equal(status, 1);
	assert_string_equal(err, "wspush: no-room: 8 watch\n");
	AGAINST(ANSWERS("error unknown-socket@ not there\n"), "watch", "$a");
	assert_int_equal(status, 1);
}

static void
watch_says_once_that_the_server_is_away_or_back(void **state)
{
	struct client c = { .ref = "0123456789abcdef" };
	struct client_watch w = { .met = true };
	const char *ok = "ok 1 ref=0123456789abcdef\n";
	int fd = spool("", 0), old = swap(STDERR_FILENO, fd);

	(void)state;
	strcpy(c.to.sun_path, "/x");
	for (int i = 0; i < 2; i++)
		client_watch_away(&w, &c, "gone");
	for (int i = 0; i < 2; i++) {
		memcpy(client_room, ok, strlen(ok) + 1);
		client_watch_event(&w, &c, strlen(ok));
	}
	unswap(STDERR_FILENO, old);
	slurp(err, sizeof err, fd);
	assert_string_equal(err, "wspush: the server at /x is away (gone); "
	    "waiting for it\nwspush: the server is back\n");
}

/* ----- main */

static void
alone_it_shows_the_verbs_and_is_wrong_usage(void **state)
{
	(void)state;
	assert_int_equal(run(LIST("wspush")), 2);
	assert_string_equal(out, "");
	for (size_t i = 0; i < COUNT(main_commands); i++)
		assert_non_null(strstr(err, main_commands[i].name));
}

static void
an_unknown_verb_is_named(void **state)
{
	(void)state;
	assert_int_equal(RUN("sned", "*"), 2);
	assert_non_null(strstr(err, "'sned'"));
	assert_non_null(strstr(err, "wspush help"));
	assert_int_equal(RUN("help", "sned"), 2);
	assert_non_null(strstr(err, "'sned'"));
}

static void
help_lists_the_verbs_and_explains_each(void **state)
{
	(void)state;
	assert_int_equal(RUN("help"), 0);
	assert_int_equal(RUN("--help"), 0);
	for (size_t i = 0; i < COUNT(main_commands); i++) {
		const struct command *v = &main_commands[i];
		char usage[64];

		snprintf(usage, sizeof usage, "usage: wspush %s", v->name);
		assert_int_equal(RUN("help", v->name), 0);
		assert_memory_equal(out, usage, strlen(usage));
		assert_true(!v->ask || (strstr(out, "\nExample: ") &&
		    strstr(out, WSP_PUSH_PATH)));
		assert_int_equal(RUN(v->name, "--help"), 0);
		assert_memory_equal(out, usage, strlen(usage));
	}
}

static void
the_version_has_a_line(void **state)
{
	(void)state;
	assert_int_equal(RUN("version"), 0);
	assert_memory_equal(out, "wspush " WSP_VERSION " (", 11);
	assert_int_equal(RUN("--version"), 0);
	assert_memory_equal(out, "wspush " WSP_VERSION " (", 11);
}

/* ----- a push socket for all of them */

static int
set_up(void **state)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	(void)state;
	if (!mkdtemp(dir) || pipe2(requests, O_NONBLOCK) < 0)
		return -1;
	snprintf(path, sizeof path, "%s/push", dir);
	strcpy(at.sun_path, path);
	setenv("WSPUSH_SOCKET", path, 1);
	listener = socket(AF_UNIX, SOCK_DGRAM, 0);
	return bind(listener, (struct sockaddr *)&at, sizeof at);
}

static int
tear_down(void **state)
{
	(void)state;
	close(listener);
	unlink(path);
	return rmdir(dir);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_option_of_send_has_its_word),
		cmocka_unit_test(options_end_at_the_first_that_is_none),
		cmocka_unit_test(of_an_option_given_twice_the_last_counts),
		cmocka_unit_test(every_verb_makes_its_request),
		cmocka_unit_test(standard_input_goes_whole_byte_for_byte),
		cmocka_unit_test(too_much_standard_input_is_refused),
		cmocka_unit_test(a_message_too_big_for_a_datagram_is_refused),
		cmocka_unit_test(
		    standard_input_that_cannot_be_read_is_an_error),
		cmocka_unit_test(
		    wrong_usage_names_the_fault_and_shows_the_usage),
		cmocka_unit_test(a_key_has_at_most_64_bytes),
		cmocka_unit_test(a_request_line_has_at_most_1024_bytes),
		cmocka_unit_test(a_socket_path_has_at_most_107_bytes),
		cmocka_unit_test(every_reply_has_its_line_and_its_status),
		cmocka_unit_test(
		    a_late_reply_to_another_request_is_passed_over),
		cmocka_unit_test(the_pages_of_a_list_are_one_list),
		cmocka_unit_test(the_pages_of_a_json_list_are_one_array),
		cmocka_unit_test(a_list_that_breaks_off_is_an_error),
		cmocka_unit_test(a_server_that_is_not_there_is_status_3),
		cmocka_unit_test(
		    the_environment_stands_for_the_option_and_yields_to_it),
		cmocka_unit_test(
		    output_that_cannot_be_written_is_an_error_status),
		cmocka_unit_test(watch_prints_events_and_ends_well_when_told),
		cmocka_unit_test(a_watch_that_is_refused_ends_with_status_1),
		cmocka_unit_test(
		    watch_says_once_that_the_server_is_away_or_back),
		cmocka_unit_test(alone_it_shows_the_verbs_and_is_wrong_usage),
		cmocka_unit_test(an_unknown_verb_is_named),
		cmocka_unit_test(help_lists_the_verbs_and_explains_each),
		cmocka_unit_test(the_version_has_a_line),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
