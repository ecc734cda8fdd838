// SPDX-License-Identifier: MIT
/*
 * wsbench - opens many WebSocket clients on 127.0.0.1, has a child push
 * messages into the server, counts what every client receives, and prints one
 * JSON object.  The server runs on this machine, for its CPU time and memory
 * are read from /proc, those of its children included.
 *
 *   cc -O2 -o wsbench wsbench.c -lssl -lcrypto
 *
 * What a send costs the server depends on how the client reads: one that waits
 * in epoll is woken inside the server's system call.  Flat-out runs therefore
 * nap (-N) between reads, runs for latency do not; compare like with like.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_MAX 65536           /* bytes of a pushed message, of a frame */
#define REQUEST_MAX 1500            /* bytes of what -H says */
#define READ_MAX    (256 * 1024)    /* bytes taken from a client at once */
#define EVENTS_MAX  4096
#define FAMILY_MAX  64              /* processes of a server */
#define SAMPLES_MAX (1 << 20)       /* latencies kept; beyond, every second */
#define STAMP_LEN   16              /* hex digits of the time in a message */
#define HTTP_DEPTH  8               /* POSTs sent before their answers */
#define SECOND      1000000000ull

/* The key is the one of (RFC 6455, 1.3), so its answer is known. */
#define KEY    "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

typedef uint8_t u8;
typedef uint64_t u64;

/* ----- Options and clock ------------------------------------------------- */

static struct {
	const char *label, *test, *path, *push, *head, *topic, *command;
	int port, http_port, mqtt_port, clients, window;
	int size, rate, burst, ahead, expect, nap_us;
	long messages;
	double seconds, idle, timeout;
	bool tls, resume, ask;
	pid_t server;
} opt = { .label = "", .test = "", .path = "/", .head = "", .topic = "bench",
	.clients = 100, .window = 64, .size = 64, .burst = 1, .expect = -1,
	.timeout = 30 };

static const char usage[] =
    "usage: wsbench -p PORT -S PID [options]\n"
    "  -l LABEL -T TEST  names that come back in the JSON object\n"
    "  -p PORT -g PATH   the WebSocket; in PATH %d is the client's number\n"
    "                    and %w how many digits that has\n"
    "  -t, -r            wss; close all and open again with their sessions\n"
    "  -n N, -w N        clients; handshakes at a time\n"
    "  -c COMMAND        run it by the shell when all are open\n"
    "  -i S              measure S seconds of idleness\n"
    "  -u PATH -H HEAD   push datagrams: HEAD (\\n is a line feed), payload\n"
    "  -W PORT           push by POST to /pub on this port\n"
    "  -M PORT           push by MQTT, and the clients subscribe\n"
    "  -a                each datagram is HEAD alone and awaits its reply;\n"
    "                    next= in the reply is followed\n"
    "  -m N, -d S        push so many messages, or so many seconds\n"
    "  -s N              bytes of a message\n"
    "  -R N, -B N        messages a second (0: flat out), so many at once\n"
    "  -k N              messages that the clients may lie behind (0: any)\n"
    "  -e N              clients that a message is for (all)\n"
    "  -N US             nap between reads\n"
    "  -x S              give up after so many seconds\n";

static _Noreturn void
die(const char *what, const char *why)
{
	fprintf(stderr, "wsbench: %s: %s\n", what, why);
	exit(2);
}

static u64
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * SECOND + (u64)t.tv_nsec;
}

static void
sleep_ns(u64 ns)
{
	struct timespec t = { (time_t)(ns / SECOND), (long)(ns % SECOND) };

	nanosleep(&t, NULL);
}

/* What the publishing child and its parent tell each other. */
static struct shared {
	_Atomic u64 sent;     /* messages, or requests answered */
	_Atomic u64 refused;  /* answers that were no success */
	_Atomic u64 replied;  /* bytes of replies */
	_Atomic u64 received; /* messages at all clients */
	_Atomic u64 t_first;  /* when the first message left */
	_Atomic u64 t_last;   /* when the last was answered, or sent */
	_Atomic bool done;
} *shared;

/* ----- Latencies --------------------------------------------------------- */

static u64 *samples, nsamples, sample_stride = 1, sample_wait, sample_max;

static void
sample_add(u64 ns)
{
	if (ns > sample_max)
		sample_max = ns;
	if (sample_wait-- != 0)
		return;
	samples[nsamples++] = ns;
	if (nsamples == SAMPLES_MAX) {
		for (nsamples = 0; nsamples < SAMPLES_MAX / 2; nsamples++)
			samples[nsamples] = samples[2 * nsamples];
		sample_stride *= 2;
	}
	sample_wait = sample_stride - 1;
}

static int
sample_order(const void *a, const void *b)
{
	const u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* In microseconds; the samples are in order by then. */
static double
sample_at(double part)
{
	u64 i = (u64)(part * (double)nsamples);

	return nsamples == 0 ? 0 : (double)samples[i] / 1e3;
}

/* ----- The server, as /proc sees it -------------------------------------- */

static pid_t family[FAMILY_MAX];
static int nfamily;

static void
family_add_children(pid_t pid)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	f = fopen(path, "r");
	if (!f)
		return;
	while (nfamily < FAMILY_MAX && fscanf(f, "%d", &pid) == 1)
		family[nfamily++] = pid;
	fclose(f);
}

static void
family_find(void)
{
	nfamily = 0;
	family[nfamily++] = opt.server;
	for (int i = 0; i < nfamily; i++)
		family_add_children(family[i]);
}

static u64
thread_cpu(pid_t pid, const char *thread)
{
	char path[320];
	u64 ns = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", pid, thread);
	f = fopen(path, "r");
	if (!f)
		return 0;
	if (fscanf(f, "%" SCNu64, &ns) != 1)
		ns = 0;
	fclose(f);
	return ns;
}

/* Nanoseconds on a CPU, of all threads of all processes of the server. */
static u64
server_cpu(void)
{
	struct dirent *e;
	char path[64];
	u64 sum = 0;
	DIR *d;

	family_find();
	for (int i = 0; i < nfamily; i++) {
		snprintf(path, sizeof(path), "/proc/%d/task", family[i]);
		d = opendir(path);
		if (!d)
			continue;
		while ((e = readdir(d)))
			if (e->d_name[0] != '.')
				sum += thread_cpu(family[i], e->d_name);
		closedir(d);
	}
	return sum;
}

/* In KiB: memory in use, what is shared with others counted in parts. */
static long
server_pss(void)
{
	char line[256];
	long sum = 0, kib;
	FILE *f;

	family_find();
	for (int i = 0; i < nfamily; i++) {
		snprintf(line, sizeof(line), "/proc/%d/smaps_rollup",
		    family[i]);
		f = fopen(line, "r");
		if (!f)
			continue;
		while (fgets(line, sizeof(line), f))
			if (sscanf(line, "Pss: %ld", &kib) == 1)
				sum += kib;
		fclose(f);
	}
	return sum;
}

/* ----- MQTT, as far as a benchmark needs it ------------------------------ */

static size_t
mqtt_length(u8 *to, size_t n)
{
	size_t i = 0;

	for (; n > 127; n >>= 7)
		to[i++] = (u8)(n | 128);
	to[i++] = (u8)n;
	return i;
}

static size_t
mqtt_string(u8 *to, const char *s)
{
	size_t n = strlen(s);

	to[0] = (u8)(n >> 8);
	to[1] = (u8)n;
	memcpy(to + 2, s, n);
	return 2 + n;
}

/* Version 3.1.1, a clean session, no keepalive. */
static size_t
mqtt_connect(u8 *to, int number)
{
	static const u8 fixed[10] = { 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0 };
	char id[24];

	snprintf(id, sizeof(id), "wsbench%d", number);
	to[0] = 0x10;
	to[1] = (u8)(sizeof(fixed) + 2 + strlen(id));
	memcpy(to + 2, fixed, sizeof(fixed));
	return 12 + mqtt_string(to + 12, id);
}

static size_t
mqtt_subscribe(u8 *to)
{
	size_t n = 4;

	to[0] = 0x82;
	to[1] = (u8)(2 + 2 + strlen(opt.topic) + 1);
	to[2] = 0;
	to[3] = 1;
	n += mqtt_string(to + n, opt.topic);
	to[n++] = 0;
	return n;
}

/* ----- The publisher, in a child ----------------------------------------- */

static int
tcp_open(int port, int flags)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
		.sin_port = htons((uint16_t)port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	/* Close with a reset: TIME_WAITs would use up the ports. */
	struct linger reset = { .l_onoff = 1 };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | flags, 0);

	if (fd < 0)
		die("socket", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (void *)&a, sizeof(a)) < 0 && errno != EINPROGRESS)
		die("connect", strerror(errno));
	return fd;
}

static int
push_open(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	struct sockaddr_un own = { .sun_family = AF_UNIX };
	int fd;

	if (!opt.push)
		return tcp_open(opt.http_port ? opt.http_port : opt.mqtt_port,
		    0);
	if (strlen(opt.push) >= sizeof(to.sun_path))
		die(opt.push, "the path is too long");
	strcpy(to.sun_path, opt.push);
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (opt.ask && bind(fd, (void *)&own, sizeof(own.sun_family)) < 0)
		die("bind", strerror(errno));
	if (connect(fd, (void *)&to, sizeof(to)) < 0)
		die(opt.push, strerror(errno));
	return fd;
}

static void
push_bytes(int fd, const void *from, size_t n)
{
	const u8 *p = from;
	ssize_t k;

	while (n > 0) {
		k = send(fd, p, n, MSG_NOSIGNAL);
		if (k < 0 && errno != EINTR && errno != ENOBUFS)
			die("push", strerror(errno));
		if (k > 0) {
			p += k;
			n -= (size_t)k;
		}
	}
}

/* Everything before the payload; where that begins. */
static size_t
push_head(u8 *to)
{
	size_t body, n = 0;

	if (opt.push) {
		for (const char *s = opt.head; *s; s++) {
			bool feed = s[0] == '\\' && s[1] == 'n';

			to[n++] = feed ? '\n' : (u8)*s;
			s += feed;
		}
		return n;
	}
	if (opt.http_port)
		return (size_t)sprintf((char *)to,
		    "POST /pub HTTP/1.1\r\nHost: localhost\r\n"
		    "Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n",
		    opt.size);
	body = 2 + strlen(opt.topic) + (size_t)opt.size;
	to[0] = 0x30;
	n = 1 + mqtt_length(to + 1, body);
	return n + mqtt_string(to + n, opt.topic);
}

/* Reads answers to POSTs until at most so many are open; returns how many. */
static int
push_answers(int fd, int open, int most)
{
	static const char mark[] = "HTTP/1.1 ";
	static size_t seen;
	char buf[4096];
	ssize_t n;

	while (open > most) {
		n = recv(fd, buf, sizeof(buf), 0);
		if (n <= 0)
			die("answer", n == 0 ? "closed" : strerror(errno));
		for (ssize_t i = 0; i < n; i++) {
			if (seen == sizeof(mark) - 1) {
				shared->refused += buf[i] != '2';
				seen = 0;
				open--;
			}
			seen = buf[i] == mark[seen] ? seen + 1 : buf[i] == 'H';
		}
	}
	return open;
}

/* One request and its replies: list goes on as long as there is more. */
static void
push_ask(int fd, const char *request)
{
	static char reply[MESSAGE_MAX];
	char line[2048], *next, *end;
	int verb = (int)strcspn(request, " \n");
	ssize_t n;

	snprintf(line, sizeof(line), "%.*s", REQUEST_MAX, request);
	for (;;) {
		push_bytes(fd, line, strlen(line));
		n = recv(fd, reply, sizeof(reply) - 1, 0);
		if (n < 0)
			die("reply", strerror(errno));
		reply[n] = '\0';
		shared->replied += (u64)n;
		shared->refused += strncmp(reply, "ok ", 3) != 0;
		end = reply + strcspn(reply, "\n");
		*end = '\0';
		next = strstr(reply, " next=");
		if (!next)
			return;
		snprintf(line, sizeof(line), "%.*s from=%.*s%s", verb, request,
		    (int)strcspn(next + 6, " "), next + 6, request + verb);
	}
}

static void
push_wait(u64 t0, u64 i)
{
	u64 turn = i - i % (u64)opt.burst, at, now;

	if (opt.rate > 0) {
		at = t0 + turn * SECOND / (u64)opt.rate;
		while ((now = now_ns()) < at)
			sleep_ns(at - now);
	}
	while (opt.ahead > 0 && i >= (u64)opt.ahead +
	    shared->received / (u64)opt.expect)
		sleep_ns(20000);
}

static void
push_one(int fd, u8 *message, size_t head, int *open)
{
	char stamp[STAMP_LEN + 1];

	if (opt.ask) {
		push_ask(fd, (const char *)message);
		return;
	}
	if (opt.size >= STAMP_LEN) {
		snprintf(stamp, sizeof(stamp), "%016" PRIx64, now_ns());
		memcpy(message + head, stamp, STAMP_LEN);
	}
	push_bytes(fd, message, head + (size_t)opt.size);
	if (opt.http_port)
		*open = push_answers(fd, *open + 1, HTTP_DEPTH - 1);
}

static _Noreturn void
push_all(int go)
{
	static u8 message[MESSAGE_MAX + 2048];
	u64 t0, end, i;
	size_t head;
	int open = 0, fd;
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(go, &c, 1) != 1)
		_exit(0);
	fd = push_open();
	if (opt.mqtt_port) {
		push_bytes(fd, message, mqtt_connect(message, opt.clients));
		if (recv(fd, message, 4, MSG_WAITALL) != 4 || message[3] != 0)
			die("MQTT", "the server refuses the publisher");
	}
	memset(message, 'x', sizeof(message));
	head = push_head(message);
	if (opt.ask)
		message[head] = '\0';
	shared->t_first = t0 = now_ns();
	end = t0 + (u64)(opt.seconds * 1e9);
	for (i = 0; opt.messages == 0 || i < (u64)opt.messages; i++) {
		push_wait(t0, i);
		if (opt.seconds > 0 && now_ns() >= end)
			break;
		push_one(fd, message, head, &open);
		shared->sent = i + 1;
	}
	push_answers(fd, open, 0);
	shared->t_last = now_ns();
	shared->done = true;
	/* The connection stays until the parent ends. */
	_exit(read(go, &c, 1) < 0);
}

/* ----- The clients ------------------------------------------------------- */

enum state { CLOSED, CONNECTING, SECURING, UPGRADING, SUBSCRIBING, OPEN };

static struct client {
	int fd;
	enum state state;
	SSL *ssl;
	SSL_SESSION *session;
	size_t nrest;   /* bytes of a frame that is not whole yet, in rests */
} *clients;

static SSL_CTX *ssl_ctx;
static u8 *rests, *buffer;  /* a rest for each client; one read */
static size_t rest_max;
static int epoll_fd, nopen, nlost, nbegun;
static u64 received, t_read, resumed;

static void
client_watch(int i, int op, uint32_t what)
{
	struct epoll_event e = { .events = what, .data.u32 = (uint32_t)i };

	if (epoll_ctl(epoll_fd, op, clients[i].fd, &e) < 0)
		die("epoll_ctl", strerror(errno));
}

static void
client_close(int i)
{
	struct client *c = &clients[i];

	if (c->ssl) {
		SSL_shutdown(c->ssl);
		SSL_free(c->ssl);
	}
	c->ssl = NULL;
	ERR_clear_error(); /* or the next client is blamed for it */
	close(c->fd);
	c->state = CLOSED;
	c->nrest = 0;
}

static void
client_lose(int i, const char *why)
{
	static int told;

	if (told++ < 3)
		fprintf(stderr, "wsbench: %s: client %d: %s (state %d)\n",
		    opt.label, i, why, clients[i].state);
	nlost++;
	nopen -= clients[i].state == OPEN;
	client_close(i);
}

static bool
client_write(int i, const void *p, size_t n)
{
	struct client *c = &clients[i];
	ssize_t k = c->ssl ? SSL_write(c->ssl, p, (int)n) :
			     send(c->fd, p, n, MSG_NOSIGNAL);

	return k == (ssize_t)n; /* all we ever write fits the kernel's buffer */
}

/* Masked with zeros, which is as good as any key here and needs no work. */
static bool
client_frame(int i, int opcode, const u8 *p, size_t n)
{
	u8 frame[6 + 125] = { (u8)(0x80 | opcode), (u8)(0x80 | n) };

	if (n > 125)
		return false;
	memcpy(frame + 6, p, n);
	return client_write(i, frame, 6 + n);
}

static void
client_begin(int i)
{
	clients[i].fd = tcp_open(opt.port, SOCK_NONBLOCK | SOCK_CLOEXEC);
	clients[i].state = CONNECTING;
	client_watch(i, EPOLL_CTL_ADD, EPOLLOUT);
}

static void
client_upgrade(int i)
{
	char path[512] = "", request[1024], digits[12];
	size_t n = 0;

	snprintf(digits, sizeof(digits), "%d", i);
	for (const char *s = opt.path; *s && n < 480; s++)
		if (s[0] == '%' && (s[1] == 'd' || s[1] == 'w'))
			n += (size_t)(*++s == 'd' ?
			    sprintf(path + n, "%s", digits) :
			    sprintf(path + n, "%zu", strlen(digits)));
		else
			path[n++] = *s;
	n = (size_t)snprintf(request, sizeof(request),
	    "GET %.*s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
	    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
	    "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n"
	    "%s\r\n", (int)n, path, opt.port,
	    opt.mqtt_port ? "Sec-WebSocket-Protocol: mqtt\r\n" : "");
	clients[i].state = UPGRADING;
	client_watch(i, EPOLL_CTL_MOD, EPOLLIN);
	if (!client_write(i, request, n))
		client_lose(i, "cannot send the request");
}

static void
client_is_open(int i)
{
	clients[i].state = OPEN;
	nopen++;
}

static void
client_secure(int i)
{
	struct client *c = &clients[i];
	int r, e;

	if (!c->ssl) {
		c->ssl = SSL_new(ssl_ctx);
		SSL_set_fd(c->ssl, c->fd);
		SSL_set_connect_state(c->ssl);
		if (c->session)
			SSL_set_session(c->ssl, c->session);
		c->state = SECURING;
		client_watch(i, EPOLL_CTL_MOD, EPOLLIN);
	}
	r = SSL_do_handshake(c->ssl);
	if (r == 1) {
		resumed += (u64)SSL_session_reused(c->ssl);
		client_upgrade(i);
		return;
	}
	e = SSL_get_error(c->ssl, r);
	if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE)
		client_lose(i, "the TLS handshake failed");
}

/* Bytes of the response, 0 for not yet, -1 for refused. */
static ssize_t
client_response(int i, const u8 *p, size_t n)
{
	static const char ok[] = "HTTP/1.1 101 ";
	const u8 *end = memmem(p, n, "\r\n\r\n", 4);
	u8 both[256];
	size_t k;

	if (!end)
		return 0;
	end += 4;
	if (n < sizeof(ok) || memcmp(p, ok, sizeof(ok) - 1) != 0)
		return -1;
	if (!memmem(p, (size_t)(end - p), ACCEPT, sizeof(ACCEPT) - 1))
		return -1;
	if (!opt.mqtt_port) {
		client_is_open(i);
		return end - p;
	}
	clients[i].state = SUBSCRIBING;
	k = mqtt_connect(both, i);
	k += mqtt_subscribe(both + k);
	return client_frame(i, 2, both, k) ? end - p : -1;
}

static void
client_message(const u8 *p, size_t n)
{
	char stamp[STAMP_LEN + 1];
	u64 t;

	received++;
	if (opt.ask || n < STAMP_LEN)
		return;
	memcpy(stamp, p, STAMP_LEN);
	stamp[STAMP_LEN] = '\0';
	t = strtoull(stamp, NULL, 16);
	if (t != 0 && t < t_read)
		sample_add(t_read - t);
}

/* The packets of one binary message. */
static bool
client_mqtt(int i, const u8 *p, size_t n)
{
	size_t head, len, topic;
	int shift;

	for (; n > 1; p += head + len, n -= head + len) {
		head = 1;
		len = 0;
		shift = 0;
		do {
			len |= (size_t)(p[head] & 127) << shift;
			shift += 7;
		} while (p[head++] >= 128 && head < n);
		if (len > n - head)
			return false;
		if (p[0] == 0x90 && clients[i].state == SUBSCRIBING)
			client_is_open(i);
		if (p[0] >> 4 != 3 || len < 2)
			continue;
		topic = (size_t)(2 + p[head] * 256 + p[head + 1]);
		if (topic > len)
			return false;
		client_message(p + head + topic, len - topic);
	}
	return n == 0;
}

static bool
client_take(int i, int first, const u8 *p, size_t n)
{
	switch (first) {
	case 0x81:
		client_message(p, n);
		return true;
	case 0x82:
		if (opt.mqtt_port)
			return client_mqtt(i, p, n);
		client_message(p, n);
		return true;
	case 0x89:
		return client_frame(i, 10, p, n);
	case 0x8a:
		return true;
	default:
		return false; /* Close, or fragments, which nobody here sends */
	}
}

/* Bytes of one frame taken, 0 for not whole yet, -1 for a bad one. */
static ssize_t
client_one(int i, const u8 *p, size_t n)
{
	size_t head = 2, len;

	if (clients[i].state == UPGRADING)
		return client_response(i, p, n);
	if (n < 2)
		return 0;
	len = p[1];
	if (len == 126) {
		if (n < 4)
			return 0;
		len = (size_t)(p[2] * 256 + p[3]);
		head = 4;
	}
	if (len == 127 || len > rest_max - head || p[1] > 127)
		return -1;
	if (n < head + len)
		return 0;
	return client_take(i, p[0], p + head, len) ? (ssize_t)(head + len) : -1;
}

static void
client_bytes(int i, size_t n)
{
	struct client *c = &clients[i];
	size_t at = 0;
	ssize_t k;

	while ((k = client_one(i, buffer + at, n - at)) > 0)
		at += (size_t)k;
	c->nrest = n - at;
	if (k < 0 || c->nrest > rest_max)
		client_lose(i, "a refusal, a Close or a bad frame");
	else if (c->nrest > 0)
		memcpy(rests + (size_t)i * rest_max, buffer + at, c->nrest);
}

static void
client_read(int i)
{
	struct client *c = &clients[i];
	ssize_t n;
	int e;

	do {
		memcpy(buffer, rests + (size_t)i * rest_max, c->nrest);
		if (c->ssl) {
			n = SSL_read(c->ssl, buffer + c->nrest, READ_MAX);
			e = n > 0 ? 0 : SSL_get_error(c->ssl, (int)n);
			if (e == SSL_ERROR_WANT_READ)
				return;
		} else {
			n = recv(c->fd, buffer + c->nrest, READ_MAX, 0);
			if (n < 0 && (errno == EAGAIN || errno == EINTR))
				return;
		}
		if (n <= 0) {
			client_lose(i, "closed by the server");
			return;
		}
		t_read = now_ns();
		client_bytes(i, c->nrest + (size_t)n);
	} while (c->ssl);
}

static void
client_event(int i)
{
	switch (clients[i].state) {
	case CLOSED:
		return;
	case CONNECTING:
	case SECURING:
		if (opt.tls)
			client_secure(i);
		else
			client_upgrade(i);
		return;
	case UPGRADING:
	case SUBSCRIBING:
	case OPEN:
		client_read(i);
		return;
	}
}

static void
clients_turn(int wait_ms)
{
	static struct epoll_event events[EVENTS_MAX];
	int n = epoll_wait(epoll_fd, events, EVENTS_MAX, wait_ms);

	for (int i = 0; i < n; i++)
		client_event((int)events[i].data.u32);
	shared->received = received;
}

static void
clients_turn_for(double seconds)
{
	u64 end = now_ns() + (u64)(seconds * 1e9);

	while (now_ns() < end)
		clients_turn(10);
}

/* Opens clients until there are so many, a window of them at a time; the
 * server's CPU time. */
static u64
clients_open(int number)
{
	u64 limit = now_ns() + (u64)(opt.timeout * 1e9), cpu = server_cpu();

	while (nopen + nlost < number && now_ns() < limit) {
		while (nbegun < number && nbegun < nopen + nlost + opt.window)
			client_begin(nbegun++);
		clients_turn(100);
	}
	return server_cpu() - cpu;
}

/* All go, and come back with the TLS sessions they had. */
static u64
clients_return(void)
{
	struct client *c;

	for (int i = 0; i < opt.clients; i++) {
		c = &clients[i];
		if (c->state == CLOSED)
			continue;
		c->session = SSL_get1_session(c->ssl);
		client_close(i);
	}
	clients_turn_for(0.5);
	resumed = 0;
	nopen = nlost = nbegun = 0;
	return clients_open(opt.clients);
}

/* Until every message is there, or no more come. */
static void
clients_receive(void)
{
	u64 limit = now_ns() + (u64)((opt.timeout + opt.seconds) * 1e9);

	t_read = now_ns();
	while (now_ns() < limit && nopen > 0) {
		if (opt.nap_us > 0)
			sleep_ns((u64)opt.nap_us * 1000);
		clients_turn(opt.nap_us > 0 ? 0 : 10);
		if (waitpid(-1, NULL, WNOHANG) > 0)
			return;
		if (!shared->done)
			continue;
		if (received >= shared->sent * (u64)opt.expect)
			return;
		if (now_ns() > t_read + SECOND)
			return;
	}
}

/* ----- One run ----------------------------------------------------------- */

static struct {
	u64 opening, resuming, pushing, idling; /* server CPU, ns */
	double seconds;                         /* first push to last receipt */
	double open_seconds;
	long pss0, pss_few, pss1;               /* KiB */
	int few, opened;
} result;

static double
part(u64 sum, u64 count)
{
	return count == 0 ? 0 : (double)sum / (double)count;
}

static void
print_result(void)
{
	u64 sent = shared->sent, all = sent * (u64)opt.expect;
	u64 opened = (u64)result.opened;

	qsort(samples, nsamples, sizeof(*samples), sample_order);
	printf("{\"label\":\"%s\",\"test\":\"%s\",\"clients\":%d,\"opened\":%d,"
	       "\"lost_clients\":%d,\"tls\":%s,\"us_per_handshake\":%.1f,"
	       "\"handshakes_per_s\":%.0f,\"resumed\":%" PRIu64
	       ",\"us_per_resumption\":%.1f,",
	    opt.label, opt.test, opt.clients, result.opened, nlost,
	    opt.tls ? "true" : "false", part(result.opening, opened) / 1e3,
	    (double)opened / result.open_seconds, resumed,
	    part(result.resuming, resumed) / 1e3);
	printf("\"pss_kib\":%ld,\"pss_all_kib\":%ld,\"bytes_per_client\":%.0f,"
	       "\"idle_s\":%.1f,\"idle_cpu_us_per_s\":%.0f,",
	    result.pss0, result.pss1,
	    (double)(result.pss1 - result.pss_few) * 1024 /
		(double)(opt.clients - result.few),
	    opt.idle,
	    opt.idle > 0 ? (double)result.idling / 1e3 / opt.idle : 0);
	printf("\"size\":%d,\"rate\":%d,\"burst\":%d,\"nap_us\":%d,"
	       "\"sent\":%" PRIu64 ",\"refused\":%" PRIu64
	       ",\"replied_bytes\":%" PRIu64 ",\"received\":%" PRIu64
	       ",\"lost\":%" PRId64 ",",
	    opt.size, opt.rate, opt.burst, opt.nap_us, sent, shared->refused,
	    shared->replied, received, (int64_t)(all - received));
	printf("\"seconds\":%.3f,\"deliveries_per_s\":%.0f,"
	       "\"ns_per_delivery\":%.1f,\"ns_per_message\":%.0f,"
	       "\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}\n",
	    result.seconds,
	    result.seconds > 0 ? (double)received / result.seconds : 0,
	    part(result.pushing, received), part(result.pushing, sent),
	    sample_at(.5), sample_at(.99), (double)sample_max / 1e3);
}

static void
run_pushing(int go)
{
	u64 cpu = server_cpu(), end;

	received = 0;
	if (write(go, "g", 1) != 1)
		die("go", strerror(errno));
	clients_receive();
	result.pushing = server_cpu() - cpu;
	end = received == 0 || opt.ask ? shared->t_last : t_read;
	result.seconds = (double)(end - shared->t_first) / 1e9;
}

static void
run(int go)
{
	u64 t = now_ns(), cpu;

	/* What comes with the first client, such as code that runs for the
	 * first time, is not the price of one. */
	result.few = opt.clients / 10;
	result.pss0 = server_pss();
	result.opening = clients_open(result.few);
	result.pss_few = server_pss();
	result.opening += clients_open(opt.clients);
	result.open_seconds = (double)(now_ns() - t) / 1e9;
	if (opt.resume)
		result.resuming = clients_return();
	result.opened = nopen;
	clients_turn_for(0.5);
	result.pss1 = server_pss();
	if (opt.command && system(opt.command) != 0)
		die(opt.command, "the command fails");
	if (opt.idle > 0) {
		cpu = server_cpu();
		clients_turn_for(opt.idle);
		result.idling = server_cpu() - cpu;
	}
	if (go >= 0)
		run_pushing(go);
}

static void
set_up(void)
{
	struct rlimit files;

	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_cur < (rlim_t)opt.clients + 32)
		die("clients", "more than the limit of open files allows");

	rest_max = (size_t)opt.size + 4096;
	rests = mmap(NULL, (size_t)opt.clients * rest_max,
	    PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
	    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	clients = calloc((size_t)opt.clients, sizeof(*clients));
	samples = malloc(SAMPLES_MAX * sizeof(*samples));
	buffer = malloc(READ_MAX + rest_max);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (rests == MAP_FAILED || shared == MAP_FAILED || !clients ||
	    !samples || !buffer || epoll_fd < 0)
		die("set-up", strerror(errno));

	/* TLS 1.2 for everybody: wspush has no other. */
	ssl_ctx = SSL_CTX_new(TLS_client_method());
	SSL_CTX_set_verify(ssl_ctx, SSL_VERIFY_NONE, NULL);
	SSL_CTX_set_mode(ssl_ctx, SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_max_proto_version(ssl_ctx, TLS1_2_VERSION);
}

static void
options(int argc, char **argv)
{
	static const char letters[] =
	    "l:T:p:g:trn:w:c:i:u:H:W:M:am:d:s:R:B:k:e:N:x:S:";
	int c;

	while ((c = getopt(argc, argv, letters)) != -1) {
		switch (c) {
		case 'l': opt.label = optarg; break;
		case 'T': opt.test = optarg; break;
		case 'p': opt.port = atoi(optarg); break;
		case 'g': opt.path = optarg; break;
		case 't': opt.tls = true; break;
		case 'r': opt.resume = true; break;
		case 'n': opt.clients = atoi(optarg); break;
		case 'w': opt.window = atoi(optarg); break;
		case 'c': opt.command = optarg; break;
		case 'i': opt.idle = atof(optarg); break;
		case 'u': opt.push = optarg; break;
		case 'H': opt.head = optarg; break;
		case 'W': opt.http_port = atoi(optarg); break;
		case 'M': opt.mqtt_port = atoi(optarg); break;
		case 'a': opt.ask = true; break;
		case 'm': opt.messages = atol(optarg); break;
		case 'd': opt.seconds = atof(optarg); break;
		case 's': opt.size = atoi(optarg); break;
		case 'R': opt.rate = atoi(optarg); break;
		case 'B': opt.burst = atoi(optarg); break;
		case 'k': opt.ahead = atoi(optarg); break;
		case 'e': opt.expect = atoi(optarg); break;
		case 'N': opt.nap_us = atoi(optarg); break;
		case 'x': opt.timeout = atof(optarg); break;
		case 'S': opt.server = atoi(optarg); break;
		default: fputs(usage, stderr); exit(2);
		}
	}
	if (opt.expect < 0)
		opt.expect = opt.clients;
	if (optind != argc || opt.port <= 0 || opt.server <= 0 ||
	    opt.clients < 1 || opt.size < 1 || opt.burst < 1 ||
	    opt.size > MESSAGE_MAX || (opt.ahead > 0 && opt.expect == 0) ||
	    strlen(opt.head) > REQUEST_MAX || (opt.ask && !opt.push) ||
	    (opt.resume && !opt.tls) ||
	    ((opt.messages > 0 || opt.seconds > 0) && !opt.push &&
	    opt.http_port == 0 && opt.mqtt_port == 0)) {
		fputs(usage, stderr);
		exit(2);
	}
}

int
main(int argc, char **argv)
{
	int go[2] = { -1, -1 };
	pid_t child = 0;

	options(argc, argv);
	set_up();
	if (opt.messages > 0 || opt.seconds > 0) {
		if (pipe(go) < 0)
			die("pipe", strerror(errno));
		child = fork();
		if (child < 0)
			die("fork", strerror(errno));
		if (child == 0) {
			close(go[1]);
			push_all(go[0]);
		}
		close(go[0]);
	}
	run(go[1]);
	print_result();
	fflush(stdout);
	if (child > 0)
		kill(child, SIGKILL);
	return result.opened == opt.clients && nlost == 0 ? 0 : 1;
}
