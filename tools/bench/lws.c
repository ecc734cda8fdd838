// SPDX-License-Identifier: MIT
/*
 * lws - a push server on libwebsockets, to compare with: every datagram that
 * comes to a UNIX socket goes to all clients.
 *
 *   lws PORT SOCKET [CERT KEY]
 *
 * A message is stored once and counted down by the clients that still have to
 * write it; a client that is behind keeps its place in the list.  While LIVE
 * messages are under way the socket is not read, so nothing is lost.
 */
#include <libwebsockets.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LIVE 1024

struct message {
	struct message *next;
	unsigned owed;  /* clients that have not written it */
	size_t n;
	unsigned char bytes[]; /* LWS_PRE free ones in front */
};

struct client {
	struct lws *wsi;
	struct client *next, **link;
	struct message *due;
};

static struct client *clients;
static struct message *newest;
static unsigned nclients, live;
static struct lws *push_wsi;
static int push_fd;

static void
push_read(void)
{
	static unsigned char buf[65536];
	struct message *m;
	ssize_t n = 0;

	while (live < LIVE) {
		n = recv(push_fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (n < 0)
			break;
		if (nclients == 0)
			continue;
		m = malloc(sizeof(*m) + LWS_PRE + (size_t)n);
		if (!m)
			abort();
		*m = (struct message){ .owed = nclients, .n = (size_t)n };
		memcpy(m->bytes + LWS_PRE, buf, (size_t)n);
		for (struct client *c = clients; c; c = c->next) {
			if (c->due)
				continue;
			c->due = m;
			lws_callback_on_writable(c->wsi);
		}
		if (newest)
			newest->next = m;
		newest = m;
		live++;
	}
	lws_rx_flow_control(push_wsi, live < LIVE);
}

/* The client is through with its message: on to the next. */
static void
client_next(struct client *c)
{
	struct message *m = c->due;

	c->due = m->next;
	if (--m->owed > 0)
		return;
	if (m == newest)
		newest = NULL;
	free(m);
	if (live-- == LIVE)
		lws_rx_flow_control(push_wsi, 1);
}

static int
client_write(struct client *c)
{
	struct message *m;

	while ((m = c->due)) {
		if (lws_write(c->wsi, m->bytes + LWS_PRE, m->n,
			LWS_WRITE_TEXT) < (int)m->n)
			return -1;
		client_next(c);
		if (c->due && lws_send_pipe_choked(c->wsi)) {
			lws_callback_on_writable(c->wsi);
			break;
		}
	}
	return 0;
}

static void
client_enter(struct client *c, struct lws *wsi)
{
	*c = (struct client){ .wsi = wsi, .next = clients, .link = &clients };
	if (clients)
		clients->link = &c->next;
	clients = c;
	nclients++;
}

static void
client_leave(struct client *c)
{
	while (c->due)
		client_next(c);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	nclients--;
}

static int
on_event(struct lws *wsi, enum lws_callback_reasons why, void *user,
    void *in, size_t n)
{
	(void)in;
	(void)n;
	if (why == LWS_CALLBACK_RAW_ADOPT_FILE)
		push_wsi = wsi;
	else if (why == LWS_CALLBACK_RAW_RX_FILE)
		push_read();
	else if (why == LWS_CALLBACK_ESTABLISHED)
		client_enter(user, wsi);
	else if (why == LWS_CALLBACK_CLOSED)
		client_leave(user);
	else if (why == LWS_CALLBACK_SERVER_WRITEABLE)
		return client_write(user);
	return 0;
}

int
main(int argc, char **argv)
{
	static const struct lws_protocols protocols[] = {
		{ .name = "bench", .callback = on_event,
			.per_session_data_size = sizeof(struct client) },
		{ .name = NULL },
	};
	struct lws_context_creation_info info = { .iface = "127.0.0.1",
		.protocols = protocols,
		.options = LWS_SERVER_OPTION_DISABLE_IPV6 };
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct lws_context *context;

	if ((argc != 3 && argc != 5) || strlen(argv[2]) >= sizeof(a.sun_path))
		return 2;
	info.port = atoi(argv[1]);
	if (argc == 5) {
		info.options |= LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT;
		info.ssl_cert_filepath = argv[3];
		info.ssl_private_key_filepath = argv[4];
	}
	lws_set_log_level(LLL_ERR, NULL);
	context = lws_create_context(&info);
	strcpy(a.sun_path, argv[2]);
	push_fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (!context || bind(push_fd, (void *)&a, sizeof(a)) < 0)
		return 1;
	if (!lws_adopt_descriptor_vhost(lws_get_vhost_by_name(context,
		"default"), LWS_ADOPT_RAW_FILE_DESC,
		(lws_sock_file_fd_type){ .filefd = push_fd }, "bench", NULL))
		return 1;
	while (lws_service(context, 0) >= 0)
		;
	return 0;
}
