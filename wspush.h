/*
 * wspush.h - limits, constants and a ready-made sender for wspush, the
 * WebSocket push server for embedded Linux.
 *
 * SPDX-License-Identifier: MIT
 *
 * Three readers use this file: wspush.c itself; a packager, who overrides a
 * limit with -DWSP_...=N; and a C program on the same box, which pushes with
 * wsp_push() and needs nothing else from us.
 */
#ifndef WSPUSH_H
#define WSPUSH_H

#define WSP_VERSION "0.1"

/*
 * Limits.  Each says what it bounds, what one more costs, and its ceiling.
 * Those that users may set at start are options, and the macro is the default.
 */

/* Rows of the socket table; --max-sockets.  One more costs a row in every
 * table that `wspush serve --memory` lists.  Ceiling: 1,000,000, so that a
 * row number and a generation fit the 64 bits that epoll carries. */
#ifndef WSP_SOCKETS
#define WSP_SOCKETS 256
#endif

/* Connections that may be on their way in (TLS, HTTP) or out (Close sent)
 * beside the open ones.  One more costs a connection row and a file
 * descriptor.  Ceiling: 65,535. */
#ifndef WSP_PENDING
#define WSP_PENDING 512
#endif

/* TLS handshakes under way at once.  One more costs a BearSSL context and its
 * two buffers, 6.6 KB, once it is first used.  Ceiling: 64. */
#ifndef WSP_HANDSHAKES
#define WSP_HANDSHAKES 8
#endif

/* Buffers for what is half received or half answered.  One more costs 25 KB
 * (more with a larger --max-inbound) once it is first used.  At least 4, for
 * one connection may hold three; ceiling: 255, a buffer's number is one
 * byte. */
#ifndef WSP_BUFFERS
#define WSP_BUFFERS 32
#endif

/* Messages in a socket's queue; --queue-messages.  One more costs 8 bytes a
 * socket.  Ceiling: 65,535, places in a queue are 16 bits. */
#ifndef WSP_QUEUE_MESSAGES
#define WSP_QUEUE_MESSAGES 64
#endif

/* Bytes in a socket's queue; --queue-bytes.  Costs nothing of itself: the
 * bytes are in the store.  Ceiling: 1 GiB. */
#ifndef WSP_QUEUE_BYTES
#define WSP_QUEUE_BYTES 65536
#endif

/* Memory for all queued messages; --store-bytes.  Ceiling: 1 GiB. */
#ifndef WSP_STORE_BYTES
#define WSP_STORE_BYTES (1 << 20)
#endif

/* One pushed message; --max-message.  One more costs one byte of the buffer
 * that datagrams are received into.  Ceiling: 16 MiB; the sender's SO_SNDBUF
 * ends it far earlier. */
#ifndef WSP_MAX_MESSAGE
#define WSP_MAX_MESSAGE 65536
#endif

/* One message from a client, in all its frames; --max-inbound.  One more
 * costs one byte in each of WSP_BUFFERS.  Ceiling: 16 MiB. */
#ifndef WSP_MAX_INBOUND
#define WSP_MAX_INBOUND 16384
#endif

/* The header line of a push request, without its line feed (INTERFACE 5). */
#define WSP_MAX_REQUEST_LINE 1024

/* An HTTP request's head in bytes and lines; beyond: 431. */
#ifndef WSP_MAX_HTTP_HEAD
#define WSP_MAX_HTTP_HEAD  8192
#endif
#ifndef WSP_MAX_HTTP_LINES
#define WSP_MAX_HTTP_LINES 64
#endif

/* Names and ids (INTERFACE 1 to 3). */
#define WSP_MAX_SERVICE   64
#define WSP_MAX_ID        128
#define WSP_MAX_TAG_NAME  32
#define WSP_MAX_TAG_VALUE 96
#ifndef WSP_MAX_TAGS
#define WSP_MAX_TAGS      16
#endif

/* "/services/" NAME "-s-" ID */
#define WSP_MAX_SOCKET_ID (10 + WSP_MAX_SERVICE + 3 + WSP_MAX_ID)

/* The token a sender may give its request (ref=), and a message's key. */
#define WSP_MAX_REF 64
#define WSP_MAX_KEY 64

/* Nesting of a pushed json body; deeper goes out as a JSON string.  One more
 * costs 8 bytes on the stack. */
#ifndef WSP_JSON_DEPTH
#define WSP_JSON_DEPTH 64
#endif

/* A json batch is at most this long, or one message.  Costs nothing: a batch
 * is made of what lies in the store. */
#ifndef WSP_MAX_BATCH
#define WSP_MAX_BATCH 65536
#endif

/* The rows of one `list` reply, in bytes, and the answers to the commands in
 * one message.  One more costs two bytes at start.  From 8 KiB, for a row is
 * at most 5 KB, to 16 KiB and WSP_MAX_HTTP_HEAD: the answers fit a buffer. */
#ifndef WSP_MAX_LIST
#define WSP_MAX_LIST 16384
#endif

/* Forged tokens of one host whose signatures are checked at once, and the
 * milliseconds until one more is: with 20 and 200 a host that goes on for ever
 * costs five checks a second.  A host is an IPv4 address or an IPv6 /64.  They
 * cost nothing; ceilings: 1,000,000, and one hour. */
#ifndef WSP_TOKEN_FAILURES
#define WSP_TOKEN_FAILURES 20
#endif
#ifndef WSP_TOKEN_MS
#define WSP_TOKEN_MS       200
#endif

/* Hosts that are remembered for it; beyond, the oldest is forgotten.  One more
 * costs 40 bytes, and some nanoseconds for each token.  Ceiling: 1,024. */
#ifndef WSP_TOKEN_HOSTS
#define WSP_TOKEN_HOSTS 32
#endif

/* Senders that may wait at once for ack=, and watchers.  One more costs 230
 * bytes, and 1.2 KB.  Ceiling of the first: 254, a message names its waiter in
 * a byte. */
#ifndef WSP_WAITERS
#define WSP_WAITERS  64
#endif
#ifndef WSP_WATCHERS
#define WSP_WATCHERS 8
#endif

#ifndef WSP_PUSH_PATH
#define WSP_PUSH_PATH "/run/wspush/push.sock"
#endif
#ifndef WSP_STATE_DIR
#define WSP_STATE_DIR "/var/lib/wspush"
#endif

/*
 * Close codes (RFC 6455, 7.4.1, and the IANA registry it founded), and ours
 * from the private range.
 */
enum wsp_close {
	WSP_CLOSE_NORMAL = 1000,
	WSP_CLOSE_GOING_AWAY = 1001,
	WSP_CLOSE_PROTOCOL = 1002,
	WSP_CLOSE_NO_CODE = 1005,  /* never on the wire: Close had no body */
	WSP_CLOSE_ABNORMAL = 1006, /* never on the wire: ended without Close */
	WSP_CLOSE_BAD_TEXT = 1007,
	WSP_CLOSE_TOO_BIG = 1009,
	WSP_CLOSE_TRY_LATER = 1013,
	WSP_CLOSE_REPLACED = 4001, /* the same id connected again */
	WSP_CLOSE_EXPIRED = 4401   /* the token's time is over */
};

/*
 * A sender for C programs on the box.  Sends one request line, such as
 * "send kind=json $group_id:10002", with a body, and does not wait:
 *
 *     wsp_push(NULL, "send *", "hello", 5);
 *
 * `path` NULL is WSP_PUSH_PATH.  Returns 0 when the server has the datagram,
 * or an errno: ENOENT and ECONNREFUSED no server, EAGAIN its queue is full,
 * EMSGSIZE the message is too long for a datagram.  What the server thinks of
 * the request is in its log.
 */
#ifndef WSP_NO_PUSH
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static inline int
wsp_push(const char *path, const char *request, const void *body, size_t n)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	struct iovec part[3] = {
		{ (void *)(size_t)request, strlen(request) },
		{ (void *)(size_t)"\n", 1 },
		{ (void *)(size_t)body, n }
	};
	struct msghdr m = { .msg_name = &to, .msg_namelen = sizeof to,
		.msg_iov = part, .msg_iovlen = 3 };
	int fd, err = 0;

	if (!path)
		path = WSP_PUSH_PATH;
	if (strlen(path) >= sizeof to.sun_path)
		return ENAMETOOLONG;
	memcpy(to.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (fd < 0)
		return errno;
	if (sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		err = errno;
	close(fd);
	return err;
}
#endif

#endif
