/*
 * Room Sandbox: the filter as an interpreter here reads it, for every
 * call there is, and as the kernel runs it, in children that try calls.
 *
 * Where the kernel has no filters (qemu) the children's tests are skipped.
 *
 * SPDX-License-Identifier: MIT
 */
#define main wspush_main
#include "../wspush.c"
#undef main

#include <setjmp.h>
#include <sys/wait.h>
#include <cmocka.h>

#ifdef SANDBOX_MACHINE

/*
 * ---- The interpreter
 */

static struct sock_filter ops[SANDBOX_OPS];
static struct sock_fprog program = { .filter = ops };

/* The verdict on a call, and that every jump stays inside the program. */
static u32
verdict_of(u32 arch, u32 nr, u32 arg, u32 value)
{
	struct seccomp_data data = { .nr = (int)nr, .arch = arch };
	u32 a = 0;

	data.args[arg] = value;
	for (u32 i = 0; i < program.len; i++) {
		const struct sock_filter *op = &program.filter[i];

		switch (op->code) {
		case BPF_LD | BPF_W | BPF_ABS:
			assert_true(op->k <= sizeof data - 4 && op->k % 4 == 0);
			memcpy(&a, (const char *)&data + op->k, sizeof a);
			break;
		case BPF_ALU | BPF_AND | BPF_K:
			a &= op->k;
			break;
		case BPF_JMP | BPF_JEQ | BPF_K:
			i += a == op->k ? op->jt : op->jf;
			break;
		case BPF_RET | BPF_K:
			return op->k;
		default:
			fail_msg("an instruction we do not make: %x", op->code);
		}
	}
	fail_msg("the program has no end");
	return 0;
}

static u32
verdict(u32 nr)
{
	return verdict_of(SANDBOX_MACHINE, nr, 0, 0);
}

static int
set_up(void **state)
{
	(void)state;
	program.len = 0;
	sandbox_build(&program);
	return 0;
}

static void
the_program_fits_the_room_and_the_kernel(void **state)
{
	(void)state;
	assert_int_equal(program.len, SANDBOX_OPS);
	assert_in_range(program.len, 1, BPF_MAXINSNS);
}

static bool
is_listed(const u16 *list, size_t n, u32 nr)
{
	for (size_t i = 0; i < n; i++)
		if (list[i] == nr)
			return true;
	return false;
}

static void
no_call_is_listed_twice(void **state)
{
	const struct sandbox_rule *r = sandbox_rules;

	(void)state;
	for (size_t i = 0; i < COUNT(sandbox_rules); i++) {
		for (size_t k = 0; k < i; k++)
			assert_true(r[i].nr != r[k].nr ||
			    r[i].value != r[k].value);
		assert_true(r[i].mask != 0);
		assert_false(is_listed(sandbox_allowed, COUNT(sandbox_allowed),
		    r[i].nr));
		assert_false(is_listed(sandbox_deadly, COUNT(sandbox_deadly),
		    r[i].nr));
	}
	for (size_t i = 0; i < COUNT(sandbox_allowed); i++) {
		assert_false(is_listed(sandbox_allowed, i, sandbox_allowed[i]));
		assert_false(is_listed(sandbox_deadly, COUNT(sandbox_deadly),
		    sandbox_allowed[i]));
	}
	for (size_t i = 0; i < COUNT(sandbox_deadly); i++)
		assert_false(is_listed(sandbox_deadly, i, sandbox_deadly[i]));
}

static void
every_row_has_its_verdict(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(sandbox_rules); i++) {
		const struct sandbox_rule *r = &sandbox_rules[i];

		assert_int_equal(SECCOMP_RET_ALLOW, verdict_of(SANDBOX_MACHINE,
		    r->nr, r->arg, r->value));
		assert_int_equal(SECCOMP_RET_TRAP, verdict_of(SANDBOX_MACHINE,
		    r->nr, r->arg, r->value ^ (r->mask & ~(r->mask >> 1))));
	}
	for (size_t i = 0; i < COUNT(sandbox_allowed); i++)
		assert_int_equal(SECCOMP_RET_ALLOW,
		    verdict(sandbox_allowed[i]));
	for (size_t i = 0; i < COUNT(sandbox_deadly); i++)
		assert_int_equal(SECCOMP_RET_KILL_PROCESS,
		    verdict(sandbox_deadly[i]));
}

/* All numbers there are: what no row names is refused. */
static void
what_no_row_names_is_refused(void **state)
{
	size_t allowed = 0, dead = 0, at_zero = 0;

	(void)state;
	for (size_t i = 0; i < COUNT(sandbox_rules); i++)
		at_zero += sandbox_rules[i].value == 0;
	for (u32 nr = 0; nr < 6000; nr++) {
		u32 v = verdict(nr);

		allowed += v == SECCOMP_RET_ALLOW;
		dead += v == SECCOMP_RET_KILL_PROCESS;
		assert_true(v == SECCOMP_RET_TRAP || v == SECCOMP_RET_ALLOW ||
		    v == SECCOMP_RET_KILL_PROCESS);
	}
	assert_int_equal(dead, COUNT(sandbox_deadly));
	assert_int_equal(allowed, COUNT(sandbox_allowed) + at_zero);
	assert_int_equal(SECCOMP_RET_TRAP, verdict(UINT32_MAX));
}

static void
a_call_in_the_manner_of_another_machine_is_death(void **state)
{
	static const u32 arch[] = { AUDIT_ARCH_X86_64, AUDIT_ARCH_I386,
		AUDIT_ARCH_ARM, AUDIT_ARCH_ARMEB, AUDIT_ARCH_AARCH64,
		AUDIT_ARCH_MIPS, AUDIT_ARCH_MIPSEL, AUDIT_ARCH_MIPS64,
		AUDIT_ARCH_MIPSEL64, 0 };
	size_t ours = 0;

	(void)state;
	for (size_t i = 0; i < COUNT(arch); i++) {
		ours += arch[i] == SANDBOX_MACHINE;
		if (arch[i] != SANDBOX_MACHINE)
			assert_int_equal(SECCOMP_RET_KILL_PROCESS,
			    verdict_of(arch[i], __NR_read, 0, 0));
	}
	assert_int_equal(ours, 1);
}

static void
a_number_of_x32_is_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(sandbox_allowed); i++)
		assert_int_equal(SECCOMP_RET_TRAP,
		    verdict(sandbox_allowed[i] | 0x40000000));
	for (size_t i = 0; i < COUNT(sandbox_rules); i++)
		assert_int_equal(SECCOMP_RET_TRAP,
		    verdict(sandbox_rules[i].nr | 0x40000000));
}

/*
 * ---- The kernel
 */

static char said[4096]; /* what a child logged */

/* Runs `what` in a sandboxed child; returns its wait status. */
static int
in_sandbox(int (*what)(void))
{
	int status, pipes[2];
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(pipes[1], STDERR_FILENO);
		sandbox_enter();
		status = what();
		sandbox_report();
		syscall(__NR_exit_group, status);
	}
	close(pipes[1]);
	for (size_t at = 0; (n = read(pipes[0], said + at,
	    sizeof said - 1 - at)) > 0; said[at] = '\0')
		at += (size_t)n;
	if (n == 0 && pid > 0)
		assert_int_equal(waitpid(pid, &status, 0), pid);
	close(pipes[0]);
	return status;
}

static int
nothing(void)
{
	return 7;
}

static void
need_filters(void)
{
	static bool known, has;

	said[0] = '\0';
	if (!known)
		has = WEXITSTATUS(in_sandbox(nothing)) == 7 &&
		    !strstr(said, "no filter");
	known = true;
	if (!has)
		skip();
	said[0] = '\0';
}

/* 0 when the call is answered EPERM. */
static int
refused(long result)
{
	return !(result == -1 && errno == EPERM);
}

static int
other_calls(void)
{
	return refused(syscall(__NR_getpriority, 0, 0)) |
	    refused(syscall(__NR_setuid, 0)) << 1 |
	    refused(syscall(__NR_setuid, 0)) << 2 |
	    refused(kill(getpid(), 0)) << 3;
}

static void
another_call_is_answered_eperm_and_logged_once(void **state)
{
	static const int calls[] = { __NR_getpriority, __NR_setuid,
		__NR_kill };
	char line[64], *at;

	(void)state;
	need_filters();
	assert_int_equal(in_sandbox(other_calls), 0);
	for (size_t i = 0; i < COUNT(calls); i++) {
		snprintf(line, sizeof line, "wspush: warn sandbox call=%d why=",
		    calls[i]);
		at = strstr(said, line);
		assert_non_null(at);
		assert_null(strstr(at + 1, line));
	}
}

/* More kinds of refused calls than are told apart. */
static int
many_calls(void)
{
#ifdef __NR_Linux
	u32 nr = __NR_Linux;
#else
	u32 nr = 0;
#endif
	int wrong = 0;

	for (int tried = 0; tried < 3 * SANDBOX_CALLS; nr++)
		if (verdict(nr) == SECCOMP_RET_TRAP) {
			wrong |= refused(syscall((long)nr, 0, 0, 0, 0, 0, 0));
			tried++;
		}
	return wrong;
}

static void
a_flood_of_refused_calls_is_few_lines(void **state)
{
	int lines = 0;

	(void)state;
	need_filters();
	assert_int_equal(in_sandbox(many_calls), 0);
	for (const char *p = said; (p = strstr(p, "sandbox call=")); p++)
		lines++;
	assert_int_equal(lines, SANDBOX_CALLS);
}

static void
nothing_needs_new_sockets(void **state)
{
	(void)state;
	assert_int_equal(SECCOMP_RET_TRAP, verdict_of(SANDBOX_MACHINE,
	    __NR_socket, 0, AF_UNIX));
	assert_int_equal(SECCOMP_RET_TRAP, verdict(__NR_connect));
}

static int tcp; /* a socket from before */

static int
arguments(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET,
		.sin_port = htons(9), .sin_addr.s_addr = htonl(0x7f000001) };
	size_t n = (size_t)sysconf(_SC_PAGESIZE);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, -1, 0);

	int wrong = refused(socket(AF_INET, SOCK_STREAM, 0)) |
	    refused(socket(AF_NETLINK, SOCK_RAW, 0)) << 1 |
	    refused(ioctl(STDIN_FILENO, TIOCSTI, "x")) << 2 |
	    (p == MAP_FAILED) << 3 |
	    refused(mprotect(p, n, PROT_READ | PROT_EXEC)) << 4 |
	    refused((long)mmap(NULL, n, PROT_EXEC, flags, -1, 0)) << 5 |
	    refused(syscall(__NR_tgkill, getpid(), getpid(), SIGTERM)) << 6 |
	    refused(sendto(tcp, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&to,
	    sizeof to)) << 7 |
	    refused(connect(tcp, (struct sockaddr *)&to, sizeof to)) << 8 |
	    refused(open("/dev/null", O_WRONLY)) << 9 |
	    refused(open("/dev/null", O_RDWR)) << 10 |
	    refused(open("/tmp", O_TMPFILE | O_RDWR, 0600)) << 11 |
	    refused(rename("/dev/null/a", "/dev/null/b")) << 12;
	return wrong | wrong >> 8; /* an exit status has eight bits */
}

static void
an_argument_may_decide(void **state)
{
	(void)state;
	need_filters();
	tcp = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(in_sandbox(arguments), 0);
	close(tcp);
}

/* With arguments that make them fail, where they do not end the process. */
static int
allowed_calls(void)
{
	for (size_t i = 0; i < COUNT(sandbox_rules); i++) {
		const struct sandbox_rule *r = &sandbox_rules[i];
		long arg[6] = { -1, -1, -1, -1, -1, -1 };

		arg[r->arg] = (long)r->value;
		syscall((long)r->nr, arg[0], arg[1], arg[2], arg[3], arg[4],
		    arg[5]);
	}
	for (size_t i = 0; i < COUNT(sandbox_allowed); i++) {
		u32 nr = sandbox_allowed[i];

		if (nr != __NR_exit && nr != __NR_exit_group &&
#ifdef __NR_sigreturn
		    nr != __NR_sigreturn &&
#endif
		    nr != __NR_rt_sigreturn)
			syscall((long)nr, -1, -1, -1, -1, -1, -1);
	}
	return sandbox_calls;
}

static void
every_listed_call_passes(void **state)
{
	(void)state;
	need_filters();
	assert_int_equal(in_sandbox(allowed_calls), 0);
	assert_string_equal(said, "");
}

static const char words[] = "/tmp/wspush-test-sandbox";

/* What libc makes of our own words, also of a line for the syslog. */
static int
words_of_ours(void)
{
	static char text[1 << 20];
	struct settings *p = malloc(4 << 20);
	int bad = p == NULL || sys_read_file(words, text, sizeof text) != 5;

	free(p);
	unlink(words);
	sys_random(text, sizeof text);
	bad |= sys_clock_ms(CLOCK_REALTIME) == 0;
	log_event(LOG_LEVEL_INFO, "test", "why=\"it shall be heard\"");
	return bad ? 100 : sandbox_calls;
}

static void
our_own_words_pass(void **state)
{
	(void)state;
	need_filters();
	log_to.syslog = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(sys_write_file(words, "words", 5, 0600), 0);
	assert_int_equal(in_sandbox(words_of_ours), 0);
	assert_int_not_equal(access(words, F_OK), 0);
	close(log_to.syslog);
	log_to.syslog = -1;
	assert_string_equal(said, "");
}

static u32 deadly;

static int
deadly_call(void)
{
	syscall((long)deadly, -1, -1, -1, -1, -1, -1);
	return 0;
}

static void
every_deadly_call_is_death(void **state)
{
	(void)state;
	need_filters();
	for (size_t i = 0; i < COUNT(sandbox_deadly); i++) {
		int status;

		deadly = sandbox_deadly[i];
		status = in_sandbox(deadly_call);
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), SIGSYS);
	}
}

static int
no_program(void)
{
	return execl("/bin/true", "true", (char *)NULL);
}

static void
no_program_can_be_run(void **state)
{
	int status;

	(void)state;
	need_filters();
	status = in_sandbox(no_program);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

static int
give_up(void)
{
	abort();
}

static void
a_failed_assertion_still_ends_in_sigabrt(void **state)
{
	int status;

	(void)state;
	need_filters();
	status = in_sandbox(give_up);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* kill -SYS comes to the same handler, with no call to answer. */
static int
wait_for_a_byte(void)
{
	char c = 0;

	assert_int_equal(write(STDERR_FILENO, "x", 1), 1);
	return read(STDIN_FILENO, &c, 1) == 1 && c == 'y' ? sandbox_calls :
	    100;
}

static void
somebody_elses_sigsys_changes_nothing(void **state)
{
	int in[2], out[2], status;
	char c;
	pid_t pid;

	(void)state;
	need_filters();
	assert_int_equal(pipe(in) | pipe(out), 0);
	pid = fork();
	if (pid == 0) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDERR_FILENO);
		sandbox_enter();
		syscall(__NR_exit_group, wait_for_a_byte());
	}
	assert_int_equal(read(out[0], &c, 1), 1);
	assert_int_equal(kill(pid, SIGSYS), 0);
	assert_int_equal(write(in[1], "y", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(in[0]);
	close(in[1]);
	close(out[0]);
	close(out[1]);
}

/* In a child, for it cannot be undone. */
static void
memory_is_hidden_and_privileges_end(void **state)
{
	struct rlimit core;
	int status;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		settings.no_sandbox = true;
		sandbox_hide_memory();
		sandbox_enter();
		getrlimit(RLIMIT_CORE, &core);
		_exit((core.rlim_cur | core.rlim_max) != 0 ||
		    prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0 ||
		    prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 ||
		    syscall(__NR_getpriority, 0, 0) < 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int
main(void)
{
	const struct CMUnitTest program_tests[] = {
		cmocka_unit_test(the_program_fits_the_room_and_the_kernel),
		cmocka_unit_test(no_call_is_listed_twice),
		cmocka_unit_test(every_row_has_its_verdict),
		cmocka_unit_test(what_no_row_names_is_refused),
		cmocka_unit_test(
		    a_call_in_the_manner_of_another_machine_is_death),
		cmocka_unit_test(a_number_of_x32_is_refused),
		cmocka_unit_test(nothing_needs_new_sockets),
	};
	const struct CMUnitTest kernel_tests[] = {
		cmocka_unit_test(
		    another_call_is_answered_eperm_and_logged_once),
		cmocka_unit_test(a_flood_of_refused_calls_is_few_lines),
		cmocka_unit_test(an_argument_may_decide),
		cmocka_unit_test(every_listed_call_passes),
		cmocka_unit_test(our_own_words_pass),
		cmocka_unit_test(every_deadly_call_is_death),
		cmocka_unit_test(no_program_can_be_run),
		cmocka_unit_test(a_failed_assertion_still_ends_in_sigabrt),
		cmocka_unit_test(somebody_elses_sigsys_changes_nothing),
		cmocka_unit_test(memory_is_hidden_and_privileges_end),
	};

	return cmocka_run_group_tests_name("program", program_tests, set_up,
	    NULL) + cmocka_run_group_tests_name("kernel", kernel_tests, set_up,
	    NULL);
}

#else

int
main(void)
{
	return 77; /* a machine without a filter: nothing is tested */
}

#endif
