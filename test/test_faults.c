/*
 * SPDX-License-Identifier: MIT
 *
 * The kernel as enemy.  This file is the room of system calls: it cuts reads
 * and writes short, answers EAGAIN for no reason, resets connections, runs out
 * of descriptors and memory, and loses replies, all drawn from a seed.  Against
 * the program on this kernel plays a crowd of players (ws, and wss with keys
 * from a drawer) and a sender.  After every few turns the tables must agree
 * with each other, and what a client has received must be whole frames with
 * its messages in order, none lost or doubled.
 *
 * WSP_SEEDS is how many games are played, WSP_SEED the first.
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>

#define WSP_FAKE_SYS
#define WSP_BUFFERS 5 /* so that they run out */

static ssize_t sys_recv(int fd, void *p, size_t n, int flags);
static ssize_t sys_send(int fd, const void *p, size_t n, int flags);
static ssize_t sys_sendv(int fd, struct iovec *iov, unsigned count,
    int flags);
static ssize_t sys_recvfrom(int fd, void *p, size_t n,
    struct sockaddr_un *from, socklen_t *from_n, struct ucred *who);
static ssize_t sys_sendto(int fd, const void *p, size_t n,
    const struct sockaddr_un *to, socklen_t to_n);
static int sys_accept(int fd, struct sockaddr_storage *from,
    socklen_t *from_n);
static void sys_close(int fd);
static void sys_shutdown(int fd, int how);
static int sys_setsockopt(int fd, int level, int name, int value);
static int sys_held(int fd, int which);
static int sys_epoll_ctl(int ep, int op, int fd, uint32_t events,
    unsigned long long data);
static int sys_epoll_wait(int ep, struct epoll_event *ev, int count,
    int timeout_ms);
static int64_t sys_clock_ms(clockid_t which);
static void sys_random(void *p, size_t n);
static void sys_forget(void *p, size_t n);
static ssize_t sys_write(int fd, const void *p, size_t n);
static ssize_t sys_read_file(const char *path, void *p, size_t cap);
static int sys_write_file(const char *path, const void *p, size_t n,
    mode_t mode);

#define main wspush_main
#include "../wspush.c"
#undef main

#include <setjmp.h>

#include <cmocka.h>

#define FD_BASE   100
#define FDS       64
#define LISTENER  (FD_BASE + FDS)
#define PUSH      (LISTENER + 1)
#define PLAYERS   10
#define IDS       4      /* stateful ids */
#define MESSAGES  1500   /* pushed in one game, at most */
#define ANSWERS   512    /* owed to one client at one time, at most */
#define PIPE      8192

static u64 dice_state;
static u64 seed;
static int turn;

#define CHECK(truth)                                                          \
	do {                                                                  \
		if (!(truth))                                                 \
			fail_msg("seed %llu, turn %d, line %d: %s",           \
			    (unsigned long long)seed, turn, __LINE__, #truth);\
	} while (0)

static u32
dice(u32 sides)
{
	dice_state ^= dice_state << 13;
	dice_state ^= dice_state >> 7;
	dice_state ^= dice_state << 17;
	return (u32)(dice_state >> 33) % sides;
}

/* True once in `n` times. */
static bool
once_in(u32 n)
{
	return dice(n) == 0;
}

/*
 * ---- The kernel
 */

struct pipe {
	u8 p[PIPE];
	size_t n;
};

struct fake {
	bool used;
	bool end;            /* the client has sent its FIN */
	bool reset;
	bool shut;           /* the server has sent its FIN */
	bool polled;
	bool held;           /* the last bytes wait for more */
	u32 events;
	u64 data;
	int client;
	struct pipe in, out; /* as the server sees it */
	size_t out_cap;
};

static struct fake fakes[FDS];
static struct {
	bool faults;
	int64_t now;
	u32 listener_events, push_events;
	u64 listener_data;
	int backlog[PLAYERS];
	int waiting;
	int ready;           /* events of the last wait */
	int accept_error;    /* what every accept ends with, or 0 */
	struct {
		u8 p[2048];
		size_t n;
		u32 seq;     /* 0: no message */
	} datagram[8];
	int datagrams;
	u32 seq;             /* of the datagram at work */
} kernel;

static void reply_seen(const char *p, size_t n);
static void player_accepted(int client, int fd);
static void player_cut(int client, const struct fake *f);

static size_t
pipe_put(struct pipe *b, const void *p, size_t n, size_t cap)
{
	n = min_size(n, cap - b->n);
	memcpy(b->p + b->n, p, n);
	b->n += n;
	return n;
}

static size_t
pipe_get(struct pipe *b, void *p, size_t n, bool peek)
{
	n = min_size(n, b->n);
	memcpy(p, b->p, n);
	if (!peek) {
		memmove(b->p, b->p + n, b->n - n);
		b->n -= n;
	}
	return n;
}

static struct fake *
fake_of(int fd)
{
	CHECK(fd >= FD_BASE && fd < FD_BASE + FDS);
	CHECK(fakes[fd - FD_BASE].used);
	return &fakes[fd - FD_BASE];
}

/* A call that may fail for no reason. */
static bool
trouble(u32 n)
{
	return kernel.faults && once_in(n);
}

static ssize_t
sys_recv(int fd, void *p, size_t n, int flags)
{
	struct fake *f = fake_of(fd);

	CHECK(n > 0);
	if (trouble(400))
		f->reset = true;
	if (f->reset)
		return -ECONNRESET;
	if (f->in.n == 0)
		return f->end ? 0 : -EAGAIN;
	if (trouble(10))
		return -EAGAIN;
	if (kernel.faults && once_in(2))
		n = 1 + dice((u32)n);
	return (ssize_t)pipe_get(&f->in, p, n, (flags & MSG_PEEK) != 0);
}

static ssize_t
sys_sendv(int fd, struct iovec *iov, unsigned count, int flags)
{
	struct fake *f = fake_of(fd);
	size_t most = f->out_cap - f->out.n, sent = 0;

	CHECK(!f->shut);
	if (trouble(400))
		f->reset = true;
	if (f->reset)
		return once_in(2) ? -EPIPE : -ECONNRESET;
	if (trouble(20))
		return once_in(2) ? -ENOBUFS : -EAGAIN;
	if (kernel.faults && once_in(2))
		most = min_size(most, 1 + dice(300));
	if (most == 0)
		return -EAGAIN;
	for (size_t i = 0; i < count && sent < most; i++)
		sent += pipe_put(&f->out, iov[i].iov_base,
		    min_size(iov[i].iov_len, most - sent), f->out_cap);
	f->held = (flags & MSG_MORE) != 0;
	return (ssize_t)sent;
}

static ssize_t
sys_send(int fd, const void *p, size_t n, int flags)
{
	struct iovec v = { .iov_base = (void *)(uintptr_t)p, .iov_len = n };

	CHECK(n > 0);
	return sys_sendv(fd, &v, 1, flags);
}

static ssize_t
sys_recvfrom(int fd, void *p, size_t n, struct sockaddr_un *from,
    socklen_t *from_n, struct ucred *who)
{
	size_t full;

	CHECK(fd == PUSH);
	if (kernel.datagrams == 0 || trouble(20))
		return -EAGAIN;
	*who = (struct ucred){ .pid = 1 };
	*from = (struct sockaddr_un){ .sun_family = AF_UNIX, .sun_path = "s" };
	*from_n = sizeof from->sun_family + 2;
	full = kernel.datagram[0].n;
	memcpy(p, kernel.datagram[0].p, min_size(n, full));
	kernel.seq = kernel.datagram[0].seq;
	kernel.datagrams--;
	memmove(&kernel.datagram[0], &kernel.datagram[1],
	    sizeof kernel.datagram[0] * (size_t)kernel.datagrams);
	return (ssize_t)full;
}

static ssize_t
sys_sendto(int fd, const void *p, size_t n, const struct sockaddr_un *to,
    socklen_t to_n)
{
	(void)fd;
	CHECK(to->sun_family == AF_UNIX && to_n > sizeof to->sun_family);
	reply_seen(p, n);
	return trouble(5) ? -EAGAIN : (ssize_t)n;
}

static int
sys_accept(int fd, struct sockaddr_storage *from, socklen_t *from_n)
{
	static const int errors[] = { EMFILE, ENFILE, ENOMEM, ENOBUFS,
		ECONNABORTED, EAGAIN };
	struct sockaddr_in a = { .sin_family = AF_INET };
	struct fake *f = fakes;

	CHECK(fd == LISTENER);
	if (kernel.waiting == 0)
		return -EAGAIN;
	if (kernel.accept_error)
		return -kernel.accept_error;
	if (trouble(6))
		return -errors[dice(COUNT(errors))];
	while (f->used)
		f++;
	CHECK(f < fakes + FDS);
	memcpy(from, &a, sizeof a);
	*from_n = sizeof a;
	memset(f, 0, sizeof *f);
	f->used = true;
	f->client = kernel.backlog[0];
	f->out_cap = 100 + dice(once_in(3) ? 100 : PIPE - 100);
	memmove(kernel.backlog, kernel.backlog + 1,
	    sizeof kernel.backlog - sizeof kernel.backlog[0]);
	kernel.waiting--;
	player_accepted(f->client, FD_BASE + (int)(f - fakes));
	return FD_BASE + (int)(f - fakes);
}

static void
sys_close(int fd)
{
	struct fake *f = fake_of(fd);

	f->used = false;
	player_cut(f->client, f);
}

static void
sys_shutdown(int fd, int how)
{
	CHECK(how == SHUT_WR);
	CHECK(!fake_of(fd)->shut);
	fake_of(fd)->shut = true;
}

static int
sys_setsockopt(int fd, int level, int name, int value)
{
	struct fake *f = fake_of(fd);

	if (level == IPPROTO_TCP && name == TCP_NODELAY && value)
		f->held = false;
	return 0;
}

static int
sys_held(int fd, int which)
{
	const struct fake *f = fake_of(fd);

	return (int)(which == TIOCOUTQ ? f->out.n : f->in.n);
}

static int
sys_epoll_ctl(int ep, int op, int fd, u32 events, u64 data)
{
	struct fake *f;

	(void)ep;
	if (fd == LISTENER || fd == PUSH) {
		*(fd == PUSH ? &kernel.push_events :
		    &kernel.listener_events) = events;
		if (fd == LISTENER)
			kernel.listener_data = data;
		return 0;
	}
	f = fake_of(fd);
	CHECK(f->polled == (op == EPOLL_CTL_MOD));
	if (op == EPOLL_CTL_ADD && trouble(50))
		return -ENOSPC;
	f->polled = true;
	f->events = events;
	f->data = data;
	return 0;
}

static u32
fake_ready(const struct fake *f)
{
	u32 ready = 0;

	if (f->in.n > 0 || f->end || f->reset)
		ready |= EPOLLIN;
	if (f->out.n < f->out_cap || f->reset)
		ready |= EPOLLOUT;
	if (f->end)
		ready |= EPOLLRDHUP;
	if (f->reset || (f->end && f->shut))
		ready |= EPOLLHUP;
	if (f->reset)
		ready |= EPOLLERR;
	return ready & (f->events | EPOLLHUP | EPOLLERR);
}

/* Level-triggered, in any order, not always all at once.  Time goes on, and
 * jumps when nothing happens. */
static int
sys_epoll_wait(int ep, struct epoll_event *ev, int count, int timeout_ms)
{
	int n = 0;
	u32 start = dice(FDS);

	(void)ep;
	CHECK(timeout_ms >= 0);
	if (kernel.datagrams > 0 && kernel.push_events)
		ev[n++] = (struct epoll_event){ .events = EPOLLIN,
			.data.u64 = LOOP_PUSH };
	if (kernel.waiting > 0 && kernel.listener_events)
		ev[n++] = (struct epoll_event){ .events = EPOLLIN,
			.data.u64 = kernel.listener_data };
	for (u32 i = 0; i < FDS && n < count; i++) {
		const struct fake *f = &fakes[(start + i) % FDS];
		u32 ready = f->used && f->polled ? fake_ready(f) : 0;

		if (ready != 0 && !trouble(10))
			ev[n++] = (struct epoll_event){ .events = ready,
				.data.u64 = f->data };
	}
	kernel.ready = n;
	kernel.now += n > 0 ? (int)dice(kernel.faults ? 5 : 2) : timeout_ms;
	return n;
}

static int64_t
sys_clock_ms(clockid_t which)
{
	if (which == CLOCK_MONOTONIC)
		return kernel.now;
	/* The other one jumps as it likes. */
	return INT64_C(1000) * dice(UINT32_MAX);
}

static void
sys_random(void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((u8 *)p)[i] = (u8)dice(256);
}

/* Pages of 256 bytes, that more of them are whole. */
static void
sys_forget(void *p, size_t n)
{
	u8 *from = p, *to = from + n;

	while ((uintptr_t)from % 256 != 0 && from < to)
		from++;
	to -= (uintptr_t)to % 256;
	if (from < to)
		memset(from, 0, (size_t)(to - from));
}

static ssize_t
sys_write(int fd, const void *p, size_t n)
{
	if (getenv("WSP_SAY"))
		return write(fd, p, n);
	return trouble(3) ? -ENOSPC : (ssize_t)n;
}

static ssize_t
sys_read_file(const char *path, void *p, size_t cap)
{
	(void)path, (void)p, (void)cap;
	return -ENOENT;
}

static int
sys_write_file(const char *path, const void *p, size_t n, mode_t mode)
{
	(void)path, (void)p, (void)n, (void)mode;
	return -EROFS;
}

/* What happened in all games, to show that they were worth playing. */
static struct {
	u64 turns, answers, closes, pings;
	struct counters server;
} seen;

/*
 * ---- What was pushed to whom
 *
 * A session is a stateful id, or a volatile client for the time it is there.
 */

struct session {
	u32 want[MESSAGES]; /* messages that entered its queue */
	bool got[MESSAGES];
	u32 n;
	u32 most;           /* 1 + the last that any connection of it got */
};

static struct session sessions[IDS + PLAYERS];

/* `clean`: nothing may be lost that is not lost with its connection. */
static bool clean;

enum stage { GONE, BACKLOG, HTTP, UP, CLOSED };

struct answer {
	u8 opcode;
	u16 n;
	u32 sum;
};

struct player {
	enum stage stage;
	int fd;              /* -1: not accepted, or cut */
	bool tls, ready;     /* ready: its keys are in place */
	bool echo, deaf, broken;
	bool mute;           /* says nothing once it is up */
	bool garbled;        /* says anything, and is owed nothing */
	int id;              /* -1: volatile */
	struct record_keys keys;
	struct pipe tx;      /* plain bytes that it will say */
	struct pipe raw;     /* bytes on their way to the kernel */
	u8 rx[1 << 15];      /* from the kernel */
	size_t rx_n;
	u8 plain[1 << 15];
	size_t plain_n;
	struct answer owed[ANSWERS];
	u32 owed_first, owed_n;
	u32 at;              /* next message of its session, by place */
	bool began;          /* has had a message on this connection */
	bool closing;        /* Close seen from the server */
	u8 in_message;       /* opcode of what it sends in fragments */
	u32 message_sum;
	u16 message_n;
};

static struct player players[PLAYERS];

static struct session *
session_of(const struct player *c)
{
	return &sessions[c->id >= 0 ? c->id : IDS + (c - players)];
}

static u32
sum_of(u32 sum, const u8 *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sum = sum * 31 + p[i];
	return sum;
}

static void
session_add(u32 sock)
{
	const struct sock *s = &srv.sockets.row[sock];
	struct session *t;
	struct str id = sock_id(&srv.sockets, sock);

	if (s->stateful) {
		CHECK(id.n == 1 && id.p[0] >= '0' && id.p[0] < '0' + IDS);
		t = &sessions[id.p[0] - '0'];
	} else {
		const struct conn *c = &srv.conn[s->conn];

		CHECK(s->conn != NONE);
		t = session_of(&players[fake_of(c->fd)->client]);
	}
	CHECK(t->n < MESSAGES);
	t->got[t->n] = false;
	t->want[t->n++] = kernel.seq;
}

/* The server answers a request: at this moment the message is the last entry
 * of every queue that took it. */
static void
reply_seen(const char *p, size_t n)
{
	char mark[16];
	unsigned long count = 0, told = 0;
	int m = snprintf(mark, sizeof mark, "#%u#", kernel.seq);

	if (n < 4 || memcmp(p, "ok ", 3) != 0 || kernel.seq == 0) {
		unsigned acked, of;

		CHECK(n > 4);
		if (memcmp(p, "acked", 5) == 0)
			CHECK(sscanf(p, "acked %u of %u", &acked, &of) == 2 &&
			    acked <= of);
		return;
	}
	told = strtoul(p + 3, NULL, 10);
	for (u32 i = 0; i < srv.sockets.fresh; i++) {
		const struct queue *q = &srv.queues.queue[i];
		const struct message *msg;

		if (!sock_is_used(&srv.sockets, i) || q->count == 0)
			continue;
		msg = queue_row(&srv.queues, i, q->count - 1u);
		if (!memmem(srv.queues.store.bytes + msg->place, msg->n, mark,
		    (size_t)m))
			continue;
		session_add(i);
		count++;
	}
	CHECK(count == told);
	kernel.seq = 0;
}

/*
 * ---- Clients
 */

static void
player_accepted(int client, int fd)
{
	players[client].fd = fd;
}

static void
player_take(struct player *c, struct pipe *from, size_t n)
{
	n = min_size(n, sizeof c->rx - c->rx_n);
	c->rx_n += pipe_get(from, c->rx + c->rx_n, n, false);
}

/* The server closed its descriptor: the client still gets what was under way,
 * unless the connection was reset. */
static void
player_cut(int client, const struct fake *f)
{
	struct player *c = &players[client];
	struct pipe left = f->out;

	c->fd = -1;
	if (!f->reset)
		player_take(c, &left, left.n);
}

static void
player_say(struct player *c, const void *p, size_t n)
{
	if (n <= PIPE - c->tx.n)
		(void)pipe_put(&c->tx, p, n, PIPE);
}

static void
player_frame(struct player *c, u8 first, const u8 *p, size_t n)
{
	u8 frame[1024], mask[4];
	size_t head;

	CHECK(n + 14 <= sizeof frame);
	head = frame_head(frame, 0, n);
	frame[0] = first;
	frame[1] |= FRAME_MASKED;
	sys_random(mask, sizeof mask);
	memcpy(frame + head, mask, sizeof mask);
	head += sizeof mask;
	memcpy(frame + head, p, n);
	frame_unmask(frame + head, n, mask, 0);
	player_say(c, frame, head + n);
}

static void
player_owes(struct player *c, u8 opcode, u32 sum, size_t n)
{
	CHECK(c->owed_n < ANSWERS);
	c->owed[(c->owed_first + c->owed_n++) % ANSWERS] = (struct answer){
		.opcode = opcode, .sum = sum, .n = (u16)n };
}

static void
player_connect(struct player *c, int id)
{
	char text[512];
	int n;

	memset(c, 0, sizeof *c);
	c->stage = BACKLOG;
	c->fd = -1;
	c->id = id;
	c->tls = once_in(2);
	c->echo = id < 0 && once_in(2);
	c->deaf = kernel.faults && once_in(4);
	c->mute = kernel.faults && once_in(8);
	c->garbled = kernel.faults && !c->echo && once_in(8);
	if (id < 0) {
		session_of(c)->n = session_of(c)->most = 0;
	}
	kernel.backlog[kernel.waiting++] = (int)(c - players);
	n = snprintf(text, sizeof text, "GET /services/%s%s%d HTTP/1.1\r\n"
	    "Host: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	    "Sec-WebSocket-Version: 13\r\n"
	    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
	    c->echo ? "echo" : "main", id < 0 ? "?x=" :
	    "?X-StatefulSocketId=", id < 0 ? 0 : id);
	if (kernel.faults && once_in(20))
		n = (int)dice((u32)n); /* and never more */
	player_say(c, text, (size_t)n);
	c->stage = HTTP;
}

/* Once accepted: a wss client and the server agree on keys without words. */
static void
player_prepare(struct player *c)
{
	struct conn *conn = NULL;
	struct record_keys *k;

	if (c->ready || c->fd < 0)
		return;
	for (u32 i = 0; i < srv.fresh; i++)
		if (srv.conn[i].state != CONN_FREE && srv.conn[i].fd == c->fd)
			conn = &srv.conn[i];
	c->ready = true;
	if (!conn || !c->tls)
		return;
	sys_random(&c->keys, sizeof c->keys);
	c->keys.in.suite = c->keys.out.suite = once_in(2) ? RECORD_CHACHA20 :
	    RECORD_AES128_GCM;
	c->keys.in.seq = c->keys.out.seq = 0;
	k = &srv.keys[conn_slot(conn)];
	*k = (struct record_keys){ .in = c->keys.out, .out = c->keys.in };
	conn->tls = true;
}

/* Something that a client may say. */
static void
player_speak(struct player *c)
{
	u8 text[300] = { 0 };
	size_t n = dice(once_in(4) ? sizeof text : 20);
	bool fin = !once_in(3);

	if (c->tx.n > PIPE / 2 || c->owed_n > ANSWERS - 4)
		return;
	for (size_t i = 0; i < n; i++)
		text[i] = (u8)('a' + dice(26));
	if (once_in(3)) {
		n = min_size(n, 125);
		player_frame(c, 0x80 | FRAME_PING, text, n);
		player_owes(c, FRAME_PONG, sum_of(0, text, n), n);
	} else if (!c->echo && c->in_message == 0) {
		player_frame(c, 0x80 | FRAME_TEXT, (const u8 *)"$hbt", 4);
		player_owes(c, FRAME_TEXT, sum_of(0, (const u8 *)"$ok", 3), 3);
	} else if (c->echo && (fin || c->message_n < 500)) {
		u8 op = c->in_message ? FRAME_CONTINUATION : FRAME_TEXT;

		player_frame(c, (u8)((fin ? 0x80 : 0) | op), text, n);
		c->in_message = fin ? 0 : FRAME_TEXT;
		c->message_sum = sum_of(c->message_sum, text, n);
		c->message_n = (u16)(c->message_n + n);
		if (!fin)
			return;
		player_owes(c, FRAME_TEXT, c->message_sum, c->message_n);
		c->message_sum = c->message_n = 0;
	}
}

static void
player_err(struct player *c)
{
	static const u8 bad[][4] = { { 0x83, 0x80 }, { 0x81, 0x00 },
		{ 0xc1, 0x80 }, { 0x88, 0x81 }, { 0x81, 0xfe, 0, 1 } };

	player_say(c, bad[dice(COUNT(bad))], 4);
	c->broken = true;
}

static void
player_leave(struct player *c)
{
	u8 code[2] = { 0x03, 0xe8 };

	if (c->broken)
		return;
	player_frame(c, 0x80 | FRAME_CLOSE, code, 2);
	c->broken = true;
}

/* Frames of any kind and rubbish, which may be right by chance. */
static void
player_garble(struct player *c)
{
	static const u8 firsts[] = { 0x80, 0x00, 0x81, 0x01, 0x82, 0x02, 0x88,
		0x89, 0x8a };
	u8 text[400];
	size_t n = dice(sizeof text);

	if (c->tx.n > PIPE / 2)
		return;
	sys_random(text, sizeof text);
	if (once_in(2))
		memset(text, 'x', sizeof text);
	if (once_in(10))
		player_say(c, text, n);
	else
		player_frame(c, firsts[dice(COUNT(firsts))], text,
		    once_in(2) ? n : n % 126);
}

/* Moves what the client says into the kernel, in any pieces. */
static void
player_write(struct player *c)
{
	struct fake *f = fake_of(c->fd);
	u8 bytes[1024 + RECORD_OVERHEAD_MAX];
	size_t n;

	if (c->raw.n == 0 && c->tx.n > 0) {
		u8 *to = bytes + (c->tls ? record_head(c->keys.out.suite) : 0);

		n = pipe_get(&c->tx, to, 1 + dice(1000), false);
		if (c->tls)
			n = record_seal(tls_aead(), &c->keys.out,
			    c->keys.out.seq++, RECORD_DATA, bytes, n);
		(void)pipe_put(&c->raw, bytes, n, PIPE);
	}
	if (c->raw.n == 0 || f->end || f->reset)
		return;
	n = min_size(c->raw.n, kernel.faults ? 1 + dice(400) : PIPE);
	n = pipe_put(&f->in, c->raw.p, n, PIPE / 2);
	memmove(c->raw.p, c->raw.p + n, c->raw.n - n);
	c->raw.n -= n;
}

/* A pushed message: its number lies between two `#`. */
static size_t
player_message(struct player *c, const u8 *p, size_t n)
{
	struct session *t = session_of(c);
	u32 seq = (u32)strtoul((const char *)p + 1, NULL, 10), at = c->at;
	const u8 *end = memchr(p + 1, '#', n - 1);

	CHECK(end);
	if (!c->began && c->id >= 0)
		at = 0;
	while (at < t->n && t->want[at] != seq)
		at++;
	CHECK(at < t->n); /* out of order, doubled, or never sent to it */
	if (clean && c->began)
		CHECK(at == c->at);
	if (clean && !c->began)
		CHECK(at <= (c->id < 0 ? 0 : t->most));
	c->began = true;
	c->at = at + 1;
	t->got[at] = true;
	if (t->most < at + 1)
		t->most = at + 1;
	return (size_t)(end + 1 - p);
}

static void
player_got_data(struct player *c, u8 opcode, const u8 *p, size_t n)
{
	bool pushed = false;

	for (size_t i = 0; i < n && opcode != FRAME_PONG;)
		if (p[i] == '#') {
			i += player_message(c, p + i, n - i);
			pushed = true;
		} else {
			i++;
		}
	if (pushed && opcode == FRAME_TEXT && p[0] == '[')
		CHECK(json_tokens(NULL, 0, (struct str){
		    (const char *)p, n }) > 0);
	if (!pushed && !c->garbled) {
		struct answer *a = &c->owed[c->owed_first % ANSWERS];

		CHECK(c->owed_n > 0);
		CHECK(a->opcode == opcode && a->n == n &&
		    a->sum == sum_of(0, p, n));
		seen.answers++;
		c->owed_first++;
		c->owed_n--;
	}
}

static void
player_got(struct player *c, u8 opcode, u8 *p, size_t n)
{
	CHECK(!c->closing);
	switch (opcode) {
	case FRAME_CLOSE:
		CHECK(n == 0 || n >= 2);
		c->closing = true;
		seen.closes++;
		player_leave(c);
		break;
	case FRAME_PING:
		CHECK(n == 16);
		seen.pings++;
		if (!kernel.faults || !(c->mute || once_in(5)))
			player_frame(c, 0x80 | FRAME_PONG, p, n);
		break;
	default:
		player_got_data(c, opcode, p, n);
		break;
	}
}

/* One frame of the server's; false when it is not whole. */
static bool
player_next_frame(struct player *c)
{
	u8 *p = c->plain;
	size_t head = 2, n;

	if (c->plain_n < 2)
		return false;
	CHECK((p[0] & FRAME_RSV) == 0 && (p[0] & FRAME_FIN) != 0 &&
	    (p[1] & FRAME_MASKED) == 0);
	n = p[1];
	if (n == 126) {
		if (c->plain_n < 4)
			return false;
		n = load16(p + 2);
		head = 4;
		CHECK(n >= 126);
	}
	CHECK(p[1] != 127);
	if (c->plain_n < head + n)
		return false;
	player_got(c, p[0] & FRAME_OPCODE, p + head, n);
	c->plain_n -= head + n;
	memmove(p, p + head + n, c->plain_n);
	return true;
}

static bool
player_next_head(struct player *c)
{
	const u8 *end = memmem(c->plain, c->plain_n, "\r\n\r\n", 4);

	if (!end)
		return false;
	CHECK(memcmp(c->plain, "HTTP/1.1 ", 9) == 0);
	c->stage = memcmp(c->plain + 9, "101", 3) == 0 ? UP : CLOSED;
	c->plain_n -= (size_t)(end + 4 - c->plain);
	memmove(c->plain, end + 4, c->plain_n);
	return true;
}

/* Opens what has come, and takes it apart. */
static void
player_parse(struct player *c)
{
	for (;;) {
		struct record r = { .type = RECORD_DATA, .p = c->rx,
			.n = c->rx_n };
		int used = (int)c->rx_n;

		if (c->tls)
			used = record_open(tls_aead(), &c->keys.in, c->rx,
			    c->rx_n, &r);
		CHECK(used >= 0);
		if (used == 0)
			return;
		if (r.type == RECORD_DATA) {
			CHECK(r.n <= sizeof c->plain - c->plain_n);
			memcpy(c->plain + c->plain_n, r.p, r.n);
			c->plain_n += r.n;
		} else {
			CHECK(r.type == RECORD_ALERT && r.n == 2);
			CHECK(c->plain_n == 0 || c->stage == CLOSED);
		}
		c->rx_n -= (size_t)used;
		memmove(c->rx, c->rx + used, c->rx_n);
		while (c->stage == HTTP ? player_next_head(c) :
		    c->stage == UP && player_next_frame(c))
			;
	}
}

/* A step in a client's life. */
static void
player_step(struct player *c)
{
	struct fake *f = c->fd < 0 ? NULL : fake_of(c->fd);

	player_prepare(c);
	if (f && !f->reset && (!c->deaf || once_in(30) || !kernel.faults))
		player_take(c, &f->out, kernel.faults && once_in(2) ?
		    dice(200) : PIPE);
	player_parse(c);
	if (f && f->shut && f->out.n == 0)
		f->end = true;
	if (c->ready && c->fd < 0) {
		c->stage = GONE;
		return;
	}
	if (c->stage == UP && !c->broken && !c->closing && kernel.faults &&
	    !c->mute) {
		if (c->garbled)
			player_garble(c);
		else if (once_in(2))
			player_speak(c);
		if (once_in(150))
			player_err(c);
		if (once_in(150))
			player_leave(c);
	}
	if (!f)
		return;
	player_write(c);
	if (kernel.faults && once_in(400))
		f->end = true;
	if (kernel.faults && once_in(400))
		f->reset = true;
}

/*
 * ---- The sender
 */

static u32 sent; /* messages so far */

static void
sender_put(const char *text, size_t n, u32 seq)
{
	if (kernel.datagrams == (int)COUNT(kernel.datagram))
		return;
	memcpy(kernel.datagram[kernel.datagrams].p, text, n);
	kernel.datagram[kernel.datagrams].n = n;
	kernel.datagram[kernel.datagrams++].seq = seq;
}

static void
sender_send(void)
{
	static const char *const kinds[] = { "text", "json", "binary",
		"json" };
	static const char *const targets[] = { "*", "*", "/services/main",
		"/services/echo", "/services/main-s-0", "/services/main-s-1",
		"=open", "=away" };
	char text[1600];
	u32 kind = dice(COUNT(kinds)), pad;
	int n;

	if (sent + 1 >= MESSAGES || kernel.datagrams > 6)
		return;
	sent++;
	n = snprintf(text, sizeof text, "send kind=%s", kinds[kind]);
	if (once_in(5))
		n += snprintf(text + n, 64, " ack=%u", 1 + dice(5));
	if (!clean && once_in(5))
		n += snprintf(text + n, 64, " key=k%u", dice(3));
	if (!clean && once_in(5))
		n += snprintf(text + n, 64, " ttl=%u", 1 + dice(3));
	n += snprintf(text + n, 128, " %s\n%s#%u#", targets[dice(COUNT(
	    targets))], kind & 1 ? "\"" : "", sent);
	pad = dice(once_in(8) ? 900 : 60);
	memset(text + n, '.', pad);
	n += (int)pad;
	if (kind & 1)
		text[n++] = '"';
	sender_put(text, (size_t)n, sent);
}

static void
sender_step(void)
{
	static const char *const others[] = { "ping", "stats", "list",
		"list format=json =open", "stats format=json", "rubbish",
		"send *", "send kind=text $$", "abort =open", "abort *",
		"abort /services/main-s-1", "close code=4000 /services/echo",
		"close code=1000 /services/main-s-2\nbye", "close *" };
	const char *text;

	while (once_in(2))
		sender_send();
	if (!once_in(40))
		return;
	text = others[dice(clean ? COUNT(others) - 2 : COUNT(others))];
	if (strcmp(text, "send *") != 0)
		sender_put(text, strlen(text), 0);
}

/*
 * ---- Do the tables agree?
 */

static void
check_conns(void)
{
	static const struct record_keys no_keys;
	u32 live = 0, fds = 0, frees = 0;
	bool dirty[64] = { false };

	for (u32 i = 0; i < srv.fresh; i++) {
		const struct conn *c = &srv.conn[i];
		const struct deadline *d = &srv.deadline_rows[i];

		if (c->state == CONN_FREE) {
			CHECK(c->fd == -1 && d->class == 0);
			CHECK(memcmp(conn_keys(c), &no_keys,
			    sizeof no_keys) == 0);
			continue;
		}
		live++;
		CHECK(c->state != CONN_DEAD);
		(void)fake_of(c->fd);
		for (u32 k = 0; k < i; k++)
			CHECK(srv.conn[k].fd != c->fd);
		CHECK((c->state == CONN_OPEN) == (c->sock != NONE));
		if (c->state == CONN_OPEN) {
			const struct sock *s = &srv.sockets.row[c->sock];

			CHECK(sock_is_used(&srv.sockets, c->sock));
			CHECK(s->conn == i && s->conn_gen == c->gen);
			CHECK(c->done > 0 || c->rec_n > 0 ?
			    srv.queues.queue[c->sock].frozen > 0 :
			    srv.queues.queue[c->sock].frozen == 0);
		}
		/* Whoever is on the way in or out has a deadline. */
		CHECK(d->class != 0 || (c->state == CONN_OPEN &&
		    settings.ping_interval == 0));
		if (c->state == CONN_HTTP)
			CHECK(d->class == DEADLINE_HANDSHAKE + 1);
		if (c->state == CONN_CLOSING)
			CHECK(d->class == DEADLINE_CLOSING + 1);
		if (c->state == CONN_DRAIN)
			CHECK(d->class == DEADLINE_DRAIN + 1 ||
			    (d->class == DEADLINE_HANDSHAKE + 1 && !c->shut));
		/* The kernel waits with nothing whose company is not sure. */
		CHECK(!c->more);
		CHECK(!fakes[c->fd - FD_BASE].held || c->dirty);
		/* Nobody is left with something to say and no wake-up. */
		if (c->out != 0 || !conn_at_boundary(c))
			CHECK(c->blocked || c->dirty);
		if (!c->dirty)
			CHECK(fakes[c->fd - FD_BASE].events ==
			    conn_interest(c));
	}
	CHECK(live == srv.live);
	for (u32 i = 0; i < FDS; i++)
		fds += fakes[i].used;
	CHECK(fds == live);
	for (u32 i = srv.free; i != NONE; i = srv.conn[i].sock, frees++)
		CHECK(frees < srv.fresh && srv.conn[i].state == CONN_FREE);
	CHECK(frees + live == srv.fresh);
	CHECK(srv.dirties <= srv.conns && srv.deads == 0);
	for (u32 i = 0; i < srv.dirties; i++) {
		u32 slot = srv.dirty[(srv.first_dirty + i) % srv.conns];

		CHECK(!dirty[slot]);
		CHECK(srv.conn[slot].dirty);
		dirty[slot] = true;
	}
}

static void
check_buffers(void)
{
	u32 used = 0, claimed = 0;

	CHECK(!buffers[0].taken && buffers[0].n == 0);
	for (u32 i = 1; i <= WSP_BUFFERS; i++) {
		const struct buffer *b = &buffers[i];
		const struct conn *c;

		if (!b->taken)
			continue;
		used++;
		CHECK(b->conn < srv.fresh);
		c = &srv.conn[b->conn];
		CHECK((c->in == i) + (c->out == i) + (c->message == i) == 1);
		CHECK(b->n <= srv.buffer_size && b->raw <= b->n);
	}
	for (u32 i = 0; i < srv.fresh; i++)
		claimed += (srv.conn[i].in != 0) + (srv.conn[i].out != 0) +
		    (srv.conn[i].message != 0);
	CHECK(used == claimed);
}

static void
check_store(void)
{
	const struct store *s = &srv.queues.store;
	u32 count = 0, mortal = 0, frees = 0;
	u64 held = 0;
	static u32 holds[1 << 12];

	memset(holds, 0, s->fresh * sizeof holds[0]);
	for (u32 i = 0; i < srv.sockets.fresh; i++) {
		const struct queue *q = &srv.queues.queue[i];
		u64 bytes = 0, before = 0;

		if (!sock_is_used(&srv.sockets, i)) {
			CHECK(q->count == 0);
			continue;
		}
		CHECK((u32)q->sent + q->frozen <= q->count);
		CHECK(q->count <= srv.queues.cap);
		CHECK(q->bytes <= srv.queues.byte_cap);
		CHECK(!sock_is_away(&srv.sockets, i) ||
		    q->sent + q->frozen == 0);
		for (u32 at = 0; at < q->count; at++) {
			holds[queue_message(&srv.queues, i, at)]++;
			bytes += queue_row(&srv.queues, i, at)->body;
			CHECK(queue_number(&srv.queues, i, at) > before);
			before = queue_number(&srv.queues, i, at);
		}
		CHECK(bytes == q->bytes);
	}
	for (u32 i = s->row->younger; i != 0; i = s->row[i].younger) {
		CHECK(s->row[i].holds == holds[i] && holds[i] > 0);
		CHECK(s->row[i].place + store_size(&s->row[i]) <= s->cap);
		held += store_size(&s->row[i]);
		mortal += s->row[i].expires != 0;
		count++;
	}
	CHECK(count == s->count && held == s->held && mortal == s->mortal);
	CHECK(held <= s->limit);
	for (u32 i = s->free; i != 0; i = s->row[i].newer)
		frees++;
	CHECK(1 + frees + count == s->fresh);
}

static void
check_deadlines(struct deadlines *d, u32 rows)
{
	u32 linked = 0, armed = 0;

	for (int class = 0; class < DEADLINE_CLASSES; class++) {
		u32 before = NONE;

		for (u32 i = d->fifo[class].first; i != NONE;
		    i = d->row[i].next) {
			CHECK(d->row[i].class == class + 1);
			CHECK(d->row[i].prev == before);
			CHECK(before == NONE ||
			    deadline_ms(d, before) <= deadline_ms(d, i));
			before = i;
			CHECK(++linked <= rows);
		}
		CHECK(d->fifo[class].last == before);
	}
	for (u32 i = 0; i < rows; i++)
		armed += d->row[i].class != 0;
	CHECK(armed == linked);
}

static void
check_sockets(void)
{
	u32 count = 0, away = 0, open[2] = { 0 }, waiters = 0;

	for (u32 i = 0; i < srv.sockets.fresh; i++) {
		const struct sock *s = &srv.sockets.row[i];

		if (!sock_is_used(&srv.sockets, i))
			continue;
		count++;
		away += s->conn == NONE;
		open[s->service] += s->conn != NONE;
		CHECK(s->stateful || s->conn != NONE);
		CHECK((s->conn == NONE) == (srv.away.row[i].class != 0));
	}
	CHECK(count == srv.sockets.count && away == srv.sockets.away);
	CHECK(open[0] == settings.service[0].open);
	CHECK(open[1] == settings.service[1].open);
	for (u32 i = 0; i < WSP_WAITERS; i++) {
		const struct waiter *w = &srv.queues.waiter[i];

		waiters += w->used;
		CHECK(!w->used || w->decided <= w->count);
		CHECK(w->acked <= w->decided);
	}
	CHECK(waiters == srv.queues.waiters);
}

static void
check_all(void)
{
	check_conns();
	check_buffers();
	check_store();
	check_deadlines(&srv.deadlines, srv.fresh);
	check_deadlines(&srv.away, srv.sockets.fresh);
	check_sockets();
}

/*
 * ---- A game
 */

static void *arena[COUNT(memory_rows) + 1];

static void
game_count(void)
{
	seen.turns += (u64)turn;
#define X(name, help) seen.server.name += srv.queues.total.name;
	COUNTERS(X)
#undef X
}

static void
say_what_was_seen(void)
{
	print_message("%llu turns, %llu answers, %llu Pings, %llu Closes\n",
	    (unsigned long long)seen.turns, (unsigned long long)seen.answers,
	    (unsigned long long)seen.pings, (unsigned long long)seen.closes);
#define X(name, help)                                                         \
	print_message("%llu " #name "\n",                                     \
	    (unsigned long long)seen.server.name);
	COUNTERS(X)
#undef X
}

static bool roomy; /* nothing is dropped for want of room */

static void
game_settings(void)
{
	serve_defaults();
	settings.max_message = 1000;
	settings.max_inbound = 1000;
	settings.queue_bytes = 1000 + dice(once_in(2) ? 500 : 60000);
	settings.queue_messages = once_in(3) ? 1 + dice(4) : 1 + dice(64);
	settings.store_bytes = 1100 + dice(once_in(2) ? 3000 : 100000);
	settings.overflow = clean ? OVERFLOW_REFUSE : (enum overflow)dice(3);
	settings.max_sockets = clean ? PLAYERS + IDS : 2 + dice(10);
	settings.session_ttl = clean ? 100000 : dice(3) * 3;
	settings.ping_interval = dice(3) * 3;
	settings.pong_timeout = 1 + dice(3);
	settings.handshake_timeout = 1 + dice(4);
	settings.duplicate_reject = once_in(3);
	settings.ack_sent = !clean && once_in(4);
	settings.push_path = "push";
	if (roomy) {
		settings.queue_messages = 64;
		settings.queue_bytes = settings.store_bytes = 60000;
	}
	serve.pending = 2 + dice(8);
	assert_null(opt_listen_plain("1"));
	assert_null(opt_service("main"));
	assert_null(opt_service("echo=echo"));
	for (u32 i = 0; i < settings.services; i++)
		settings.service[i].ack_sent = settings.ack_sent;
	settings.listen[0].fd = LISTENER;
}

/* Every row of memory in a block of its own, so that a sanitizer sees its
 * ends. */
static void
game_memory(void)
{
	const struct memory_row *m = memory_rows;
	u32 i;

	memory_count();
	for (i = 0; i < COUNT(memory_rows); i++, m++) {
		arena[i] = calloc(memory_number[m->count], memory_each(m));
		assert_non_null(arena[i]);
		*(void **)m->to = arena[i];
	}
	arena[i] = srv.keys = calloc(memory_number[MEMORY_CONNS],
	    sizeof(struct record_keys));
}

static void
game_begin(void)
{
	dice_state = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
	for (int i = 0; i < 10; i++)
		(void)dice(2);
	memset(&srv, 0, sizeof srv);
	memset(buffers, 0, sizeof buffers);
	memset(awaiting, 0, sizeof awaiting);
	memset(watchers, 0, sizeof watchers);
	memset(&kernel, 0, sizeof kernel);
	memset(fakes, 0, sizeof fakes);
	memset(players, 0, sizeof players);
	for (u32 i = 0; i < COUNT(sessions); i++)
		sessions[i].n = sessions[i].most = 0;
	sent = 0;
	clean = once_in(2);
	kernel.now = 1000000;
	srv.now = srv.started = kernel.now;
	srv.push = PUSH;
	srv.signals = -1;
	game_settings();
	game_memory();
	serve_place();
	/* Hardly more than a record: what is half out of a batch then fills a
	 * buffer to the last byte. */
	if (once_in(2))
		srv.buffer_size = STREAM_RECORD + RECORD_OVERHEAD_MAX +
		    dice(200);
	kernel.push_events = kernel.listener_events = EPOLLIN;
	kernel.listener_data = LOOP_LISTENER;
	srv.listening = true;
	kernel.faults = true;
}

static void
game_turn(void)
{
	turn++;
	loop_turn();
	for (int i = 0; i < PLAYERS; i++)
		if (players[i].stage != GONE)
			player_step(&players[i]);
}

/* A connection for whoever has none: an id that is free, or a volatile one. */
static void
game_newcomer(void)
{
	struct player *c = players;
	int id = once_in(2) ? (int)dice(IDS) : -1;

	while (c < players + PLAYERS && c->stage != GONE)
		c++;
	if (c < players + PLAYERS && kernel.waiting < PLAYERS)
		player_connect(c, id);
}

/* The kernel is kind again: everything must get where it should. */
static void
game_settle(void)
{
	int still = 0, busy = 0;

	kernel.faults = false;
	while (still < 30) {
		game_turn();
		still += kernel.ready == 0;
		busy = kernel.ready == 0 ? 0 : busy + 1;
		CHECK(busy < 1500); /* else it spins */
	}
	check_all();
}

/* Everybody whose connection lives has got all that was queued for it. */
static void
game_check_delivery(void)
{
	for (int i = 0; i < PLAYERS; i++) {
		const struct player *c = &players[i];
		const struct session *t = session_of(c);

		if (c->stage != UP || c->closing || c->broken)
			continue;
		CHECK(c->owed_n == 0);
		CHECK(c->plain_n == 0 && c->rx_n == 0);
		if (clean && c->id < 0)
			CHECK(t->most == t->n);
	}
}

/* The volatile ones leave; every id comes back for what waits for it. */
static void
game_come_back(void)
{
	for (int i = 0; i < PLAYERS; i++)
		if (players[i].id < 0 && players[i].fd >= 0 &&
		    players[i].stage != GONE)
			fake_of(players[i].fd)->end = true;
	game_settle();
	for (int id = 0; id < IDS; id++) {
		bool there = false;
		struct player *c = players;

		for (int i = 0; i < PLAYERS; i++)
			there |= players[i].stage == UP && players[i].id == id
			    && !players[i].broken && !players[i].closing;
		while (c < players + PLAYERS && c->stage != GONE)
			c++;
		if (!there && c < players + PLAYERS)
			player_connect(c, id);
		game_settle();
		for (u32 at = 0; clean && at < sessions[id].n; at++)
			CHECK(sessions[id].got[at]);
	}
}

static void
game_over(void)
{
	for (u32 i = 0; i < COUNT(arena); i++) {
		free(arena[i]);
		arena[i] = NULL;
	}
}

static void
game_end(void)
{
	for (int i = 0; i < PLAYERS; i++) {
		struct player *c = &players[i];

		if (c->stage == GONE || c->fd < 0)
			continue;
		if (once_in(3))
			fake_of(c->fd)->end = true;
		else if (once_in(2))
			fake_of(c->fd)->reset = true;
		else
			player_leave(c);
	}
	game_settle();
	for (int i = 0; i < 30; i++) {
		kernel.now += 1000000;
		for (int k = 0; k < PLAYERS; k++)
			if (players[k].fd >= 0 && players[k].stage != GONE)
				fake_of(players[k].fd)->end = true;
		game_turn();
	}
	kernel.now += INT64_C(1000) * 1000000;
	game_turn();
	game_turn();
	check_all();
	game_count();
	CHECK(srv.live == 0 && srv.sockets.count == 0);
	CHECK(srv.queues.store.count == 0 && srv.queues.store.held == 0);
	CHECK(srv.queues.waiters == 0);
	for (u32 i = 1; i <= WSP_BUFFERS; i++)
		CHECK(!buffers[i].taken);
	game_over();
}

static void
game_play(void)
{
	int turns = 50 + (int)dice(150);

	turn = 0;
	game_begin();
	for (int i = 0; i < turns; i++) {
		if (once_in(4))
			game_newcomer();
		sender_step();
		game_turn();
		if (i % 8 == 0)
			check_all();
		if (once_in(50))
			kernel.now += 1000 * (1 + dice(5));
	}
	game_settle();
	game_check_delivery();
	game_come_back();
	game_check_delivery();
	game_end();
}

static u64
number_of(const char *name, u64 otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

static void
whatever_the_kernel_does_nothing_is_lost_doubled_or_leaked(void **state)
{
	u64 first = number_of("WSP_SEED", 0);
	u64 count = number_of("WSP_SEEDS", 2000);

	(void)state;
	log_to.level = getenv("WSP_SAY") ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;
	assert_int_equal(tls_start(), 0);
	for (seed = first; seed < first + count; seed++)
		game_play();
	say_what_was_seen();
	/* Without all of these a game proves little. */
	assert_true(count < 100 || (seen.server.delivered > 0 &&
	    seen.server.acknowledged > 0 && seen.server.dropped > 0 &&
	    seen.server.replaced > 0 && seen.server.expired > 0 &&
	    seen.server.forgotten > 0 && seen.answers > 0));
}

static void
without_descriptors_newcomers_wait_and_the_server_rests(void **state)
{
	static const int errors[] = { EMFILE, ENFILE, ENOMEM, ENOBUFS };

	(void)state;
	for (size_t i = 0; i < COUNT(errors); i++) {
		int64_t until;

		seed = turn = 0;
		game_begin();
		kernel.faults = false;
		kernel.accept_error = errors[i];
		player_connect(&players[0], -1);
		until = kernel.now + 5000;
		while (kernel.now < until)
			game_turn();
		assert_in_range(turn, 5, 20);
		kernel.accept_error = 0;
		while (players[0].stage != UP && turn < 100)
			game_turn();
		assert_int_equal(players[0].stage, UP);
		game_over();
	}
}

/* A client of the game that is up. */
static struct conn *
game_one_client(bool secure)
{
	seed = turn = 0;
	game_begin();
	kernel.faults = false;
	player_connect(&players[0], -1);
	players[0].tls = secure;
	while (players[0].stage != UP && turn < 100)
		game_turn();
	assert_int_equal(players[0].stage, UP);
	fake_of(players[0].fd)->out_cap = PIPE;
	return &srv.conn[0];
}

/* What was half out of the stream lies in the out buffer, and of that only
 * the last bytes are free. */
static void
a_close_that_finds_no_room_behind_the_rest_is_not_written(void **state)
{
	char reason[FRAME_MAX_REASON];

	(void)state;
	memset(reason, 'r', sizeof reason);
	for (u32 free_n = 0; free_n < 300; free_n++) {
		struct conn *c = game_one_client(false);
		struct buffer *b = buffer_take(c, &c->out);

		b->n = b->raw = (u32)srv.buffer_size - free_n;
		c->blocked = true;
		conn_close(c, WSP_CLOSE_NORMAL, (struct str){ reason,
		    sizeof reason });
		assert_true(b->n <= srv.buffer_size);
		assert_int_equal(c->state, free_n < 4 + sizeof reason +
		    2 * RECORD_OVERHEAD_MAX ? CONN_DEAD : CONN_CLOSING);
		game_over();
	}
}

/* Pushes `count` messages of `n` bytes to all in one turn. */
static void
push_in_a_turn(u32 count, size_t n)
{
	char text[1024] = "send *\n";
	size_t head = strlen(text);

	memset(text + head, 'x', n);
	for (u32 i = 0; i < count; i++)
		sender_put(text, head + n, 0);
	loop_turn();
	assert_int_equal(kernel.datagrams, 0);
}

/* Takes the next record out of what the server has sent. */
static struct record
take_record(struct player *c, u8 type)
{
	static u8 bytes[RECORD_MAX];
	struct fake *f = fake_of(c->fd);
	struct record r;
	int whole = record_length(c->keys.in.suite, f->out.p, f->out.n);

	assert_in_range(whole, 1, f->out.n);
	pipe_get(&f->out, bytes, (size_t)whole, false);
	assert_int_equal(record_open(tls_aead(), &c->keys.in, bytes,
	    (size_t)whole, &r), whole);
	assert_int_equal(r.type, type);
	return r;
}

static void
what_a_turn_owes_leaves_in_as_few_records_as_4096_bytes_allow(void **state)
{
	struct player *c = &players[0];

	(void)state;
	roomy = true;
	(void)game_one_client(true);
	push_in_a_turn(6, 20);
	assert_int_equal(take_record(c, RECORD_DATA).n, 6 * (2 + 20));
	fake_of(c->fd)->out.n = 0; /* a Ping */
	game_over();
	(void)game_one_client(true);
	push_in_a_turn(6, 900);
	assert_int_equal(take_record(c, RECORD_DATA).n, 4096);
	assert_int_equal(take_record(c, RECORD_DATA).n, 6 * (4 + 900) - 4096);
	game_over();
	roomy = false;
}

/* The client says a record that is not data. */
static void
say_record(struct player *c, u8 type, const void *p, size_t n)
{
	u8 bytes[100];

	memcpy(bytes + record_head(c->keys.out.suite), p, n);
	n = record_seal(tls_aead(), &c->keys.out, c->keys.out.seq++, type,
	    bytes, n);
	pipe_put(&fake_of(c->fd)->in, bytes, n, PIPE);
	loop_turn();
}

/* The refusal has a number of its own, else what follows could not be read. */
static void
renegotiation_is_refused_and_pushes_go_on(void **state)
{
	struct player *c = &players[0];

	(void)state;
	roomy = true;
	(void)game_one_client(true);
	for (int i = 0; i < 2; i++) {
		struct record r;

		say_record(c, RECORD_HANDSHAKE, "\0\0\0\0", 4);
		r = take_record(c, RECORD_ALERT);
		assert_memory_equal(r.p, "\1\144", 2); /* warning, 100 */
		push_in_a_turn(1, 20);
		assert_int_equal(take_record(c, RECORD_DATA).n, 2 + 20);
		fake_of(c->fd)->out.n = 0; /* a Ping, with a number too */
		c->keys.in.seq = srv.keys[0].out.seq;
	}
	game_over();
	roomy = false;
}

static void
a_fatal_alert_is_the_end_and_a_warning_is_not(void **state)
{
	(void)state;
	(void)game_one_client(true);
	say_record(&players[0], RECORD_ALERT, "\1\132", 2); /* user_canceled */
	assert_int_equal(srv.live, 1);
	say_record(&players[0], RECORD_ALERT, "\2\120", 2);
	assert_int_equal(srv.live, 0);
	game_over();
}

/* Who is one of few is written to before the many; Loop has the other half. */
static void
a_message_for_one_is_urgent(void **state)
{
	static const char text[] = "send *\nx";
	struct conn *c = game_one_client(true);

	(void)state;
	sender_put(text, sizeof text - 1, 0);
	assert_int_equal(push_drain(1), 1);
	assert_true(c->urgent && !c->dirty);
	loop_turn();
	assert_true(!c->urgent);
	game_over();
}

static void
sessions_are_forgotten_in_a_turn_a_day_later(void **state)
{
	enum { ROWS = 4 };
	u8 *rows = calloc(ROWS, TLS_SESSION);

	(void)state;
	assert_non_null(rows);
	(void)game_one_client(true);
	tls_place(rows, 0, ROWS);
	tls.reset_ms = 0;
	loop_turn();
	tls.cache.store_ptr = TLS_SESSION; /* as if there were one */
	rows[0] = 1;
	loop_turn();
	assert_int_equal(rows[0], 1);
	kernel.now += DAY * INT64_C(1000);
	loop_turn();
	assert_int_equal(rows[0], 0);
	assert_int_equal(tls.cache.store_ptr, 0);
	game_over();
	tls.rows = NULL;
	free(rows);
}

/* All buffers are taken, and its Close has to wait for the kernel. */
static void
who_broke_a_rule_costs_nobody_else_a_buffer(void **state)
{
	struct conn *c = game_one_client(false), *other = &srv.conn[1];
	u8 *const number[] = { &c->in, &c->message, &other->in,
		&other->message, &other->out };

	(void)state;
	player_connect(&players[1], -1);
	players[1].tls = false;
	while (players[1].stage != UP && turn < 100)
		game_turn();
	assert_int_equal(players[1].stage, UP);
	_Static_assert(COUNT(number) == WSP_BUFFERS, "all of them");
	for (size_t i = 0; i < COUNT(number); i++)
		(void)buffer_take(i < 2 ? c : other, number[i]);
	c->blocked = true;
	conn_fail(c, WSP_CLOSE_PROTOCOL, "a test");
	assert_int_equal(c->state, CONN_DRAIN);
	assert_true(c->out != 0 && c->in == 0 && c->message == 0);
	assert_int_equal(other->state, CONN_OPEN);
	game_over();
}

/* The kernel may say again and again that there is something to read, and
 * there is not: behind an empty record nothing comes, and an urgent byte
 * hides what is behind it. */
static void
half_a_hello_does_not_keep_the_server_busy(void **state)
{
	static const struct {
		const char *text;
		size_t n;
	} hello[] = { { "\x16\x03\x01", 3 }, { "\x16\x03\x01\0\0", 5 },
		{ "\x16\x03\x01\2\0\1", 6 } };

	(void)state;
	for (size_t i = 0; i < COUNT(hello); i++) {
		seed = turn = 0;
		game_begin();
		kernel.faults = false;
		settings.listen[0].tls = true;
		player_connect(&players[0], -1);
		players[0].tls = false;
		players[0].tx.n = 0;
		player_say(&players[0], hello[i].text, hello[i].n);
		while (players[0].stage != GONE && turn < 1000)
			game_turn();
		assert_in_range(turn, 2, 100);
		game_over();
	}
}

/* Where an address has 32 bits the sum would be some 180 MB. */
static void
tables_that_no_address_reaches_are_refused(void **state)
{
	u64 total;

	(void)state;
	serve_defaults();
	settings.max_sockets = 65536;
	settings.queue_messages = 65535;
	total = memory_total();
	assert_true(total > UINT64_C(34000000000));
	if (serve_take_memory() == 0) {
		assert_true(total <= SIZE_MAX);
		assert_int_equal(munmap(srv.sockets.row, (size_t)total), 0);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
		    whatever_the_kernel_does_nothing_is_lost_doubled_or_leaked),
		cmocka_unit_test(
		    without_descriptors_newcomers_wait_and_the_server_rests),
		cmocka_unit_test(
		    a_close_that_finds_no_room_behind_the_rest_is_not_written),
		cmocka_unit_test(who_broke_a_rule_costs_nobody_else_a_buffer),
		cmocka_unit_test(
		    what_a_turn_owes_leaves_in_as_few_records_as_4096_bytes_allow),
		cmocka_unit_test(renegotiation_is_refused_and_pushes_go_on),
		cmocka_unit_test(a_fatal_alert_is_the_end_and_a_warning_is_not),
		cmocka_unit_test(a_message_for_one_is_urgent),
		cmocka_unit_test(sessions_are_forgotten_in_a_turn_a_day_later),
		cmocka_unit_test(half_a_hello_does_not_keep_the_server_busy),
		cmocka_unit_test(tables_that_no_address_reaches_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
