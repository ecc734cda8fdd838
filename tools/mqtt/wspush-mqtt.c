/*
 * wspush-mqtt - one broker feeds every box.
 *
 * SPDX-License-Identifier: MIT
 *
 * Takes publications from an MQTT 5 broker and pushes them with the wspush of
 * this machine; takes what its clients say, and who is there, the other way.
 *
 *      broker  <---- one TCP or TLS connection ---->  wspush-mqtt
 *                                                      |  |  |
 *        a publication in, `send` out, its reply back -+  |  |   datagrams
 *                 `watch` and `list`, events of sockets --+  |   from and to
 *                             what clients say (unix:PATH) --+   wspush
 *
 * The promise: a publication of QoS 1 is acknowledged to the broker after
 * wspush has answered `ok`, whoever is killed when.  libmosquitto queues the
 * PUBACK before it shows us the message, so the promise rests on *when the
 * queue is written*: the library is told that a thread of ours does that
 * (mosquitto_threaded_set), and then writes in mosquitto_loop_write() and
 * nowhere else.  Publications are held in batches of --inflight, which is also
 * the Receive Maximum that we announce:
 *
 *      PUBLISH in --> HELD --> ASKED --> (TAKEN -->) DONE
 *                      ^         |          |  waits for clients (--confirm)
 *                      +---------+----------+
 *                     full, no answer, wspush gone
 *
 *      all DONE: the batch is over, and mosquitto_loop_write() may run.
 *
 * A connection that ends takes its queue of PUBACKs with it, unwritten, and
 * the broker sends the batch again: at least once, in order.  Pings wait in
 * the same queue, so a batch that is not over within half the keepalive ends
 * the connection (broker_park); the broker then publishes the Last Will, and
 * rightly: this box delivers nothing.
 *
 *    1 Basics    2 Settings  3 Log      4 Options   5 Topics   6 Held
 *    7 Outgoing  8 Presence  9 wspush  10 Incoming 11 Broker  12 Loop
 *
 * A room uses the rooms above it.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <mosquitto.h>
#include <mqtt_protocol.h>

/* ----- 1. Basics --------------------------------------------------------- */

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* Text that lies in somebody else's memory; not terminated. */
struct str {
	const char *p;
	size_t n;
};

static int64_t
clock_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static struct str
str_of(const char *text)
{
	return (struct str){ text, strlen(text) };
}

static bool
str_is(struct str s, const char *word)
{
	return s.n == strlen(word) && memcmp(s.p, word, s.n) == 0;
}

static bool
str_begins(struct str s, const char *with)
{
	size_t n = strlen(with);

	return s.n >= n && memcmp(s.p, with, n) == 0;
}

/* Cuts the next piece, up to `at` or the end, off the front. */
static struct str
str_cut(struct str *s, char at)
{
	const char *end = s->n ? memchr(s->p, at, s->n) : NULL;
	struct str piece = { s->p, end ? (size_t)(end - s->p) : s->n };

	s->p += piece.n + (end ? 1 : 0);
	s->n -= piece.n + (end ? 1 : 0);
	return piece;
}

/* Decimal, all of `s`; false when it is anything else or over `max`. */
static bool
str_number(u64 *v, struct str s, u64 max)
{
	*v = 0;
	for (size_t i = 0; i < s.n; i++) {
		if (s.p[i] < '0' || s.p[i] > '9')
			return false;
		*v = *v * 10 + (u64)(s.p[i] - '0');
		if (*v > max)
			return false;
	}
	return s.n > 0;
}

/* FNV-1a from `h` on, STR_HASH at first; two of 8192 strings meet once in
 * 10^11 fleets. */
#define STR_HASH 0xcbf29ce484222325

static u64
str_hash(u64 h, struct str s)
{
	for (size_t i = 0; i < s.n; i++)
		h = (h ^ (u8)s.p[i]) * 0x100000001b3;
	return h;
}

/* What MQTT takes for a string. */
static bool
str_is_mqtt(struct str s)
{
	return mosquitto_validate_utf8(s.p, (int)s.n) == MOSQ_ERR_SUCCESS;
}

/* What may stand in a target between spaces. */
static bool
str_is_dense(struct str s)
{
	for (size_t i = 0; i < s.n; i++)
		if ((u8)s.p[i] <= ' ' || s.p[i] == 0x7f)
			return false;
	return true;
}

/* ----- 2. Settings -------------------------------------------------------
 *
 * Limits first.  A publication that is held takes its topic, its target and
 * its body; what the batch may take is taken at start.
 */

/* Publications whose clients are asked to confirm.  The answers lie in our
 * socket's queue, 10 datagrams where nobody has raised
 * net.unix.max_dgram_qlen; wspush drops the rest. */
#define CONFIRM_MAX 8
#define CONFIRM_MORE 2     /* seconds that we wait longer than wspush */

/* Publications of ours that the broker has not acknowledged; beyond it what
 * clients say stays in the kernel, and then wspush drops and counts it. */
#define OUT_MAX 64

/* Sockets whose presence is told; 16 bytes each. */
#define PRESENCE_MAX 8192

/* Rows beyond --inflight.  A batch that is full is not read beyond, but the
 * library may read more in one call: what one TLS record holds, or as many
 * packets as we have publications under way. */
#define HELD_MORE 1024

#define PREFIXES 8         /* --prefix; each has four subscriptions */
#define TOPIC_ROOM 1024    /* the longest topic */
#define HEAD_ROOM 1024     /* the longest header that wspush takes */
#define TARGET_ROOM (HEAD_ROOM - 96) /* 96: verb and options */
#define PAUSE_MS_MIN 20    /* the growing pause before a request is repeated */
#define PAUSE_MS_MAX 5000
#define ALIVE_MS 10000     /* a connection that lasted so long was a good one */
#define STOP_MS 2000       /* what SIGTERM leaves to the batch */

static struct {
	const char *config;
	char host[256];
	u32 port;              /* 0: by TLS or not */
	const char *id;        /* of this box */
	const char *username, *password_file;
	const char *cafile, *capath, *cert, *key;
	bool tls, insecure, check;
	u32 keepalive, session_expiry, reconnect_max, inflight, max_message;
	u32 confirm, settle;
	const char *prefix[PREFIXES];
	u32 prefixes;
	const char *kind;
	const char *push, *handler, *from, *presence, *watch;
	u32 level;
} settings = {
	.host = "localhost", .keepalive = 60, .session_expiry = 604800,
	.reconnect_max = 60, .inflight = 20, .max_message = 65536,
	.settle = 5, .kind = "text", .from = "from",
	.push = "/run/wspush/push.sock", .presence = "presence", .level = 2,
};

static char host_name[65];
static char password[256];

/* ----- 3. Log and counters ----------------------------------------------- */

enum { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

static const char *const log_words[] = { "error", "warn", "info", "debug" };

static struct {
	u64 received;      /* publications that came, repeats too */
	u64 taken;         /* of them, those that wspush answered `ok` */
	u64 nobody;        /* of those, where nobody was there */
	u64 partly;        /* of those, where some queues were full */
	u64 retried;       /* requests that were sent again */
	u64 unconfirmed;   /* --confirm, and not all clients had it in time */
	u64 expired;       /* too old before wspush took them */
	u64 rejected;      /* can never be taken */
	u64 overrun;       /* QoS 0 and no room */
	u64 up;            /* messages of clients that were published */
	u64 up_lost;       /* that could not be */
	u64 connects;      /* to the broker */
	u64 parked;        /* connections given up for a wspush that hangs */
} counters;

static void log_event(u32 level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void
log_event(u32 level, const char *event, const char *format, ...)
{
	char line[1024];
	va_list ap;
	int n, m;

	if (level > settings.level)
		return;
	n = snprintf(line, sizeof line, "wspush-mqtt: %s %s ",
	    log_words[level], event);
	va_start(ap, format);
	m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, ap);
	va_end(ap);
	if (m > 0)
		n += m;
	if ((size_t)n > sizeof line - 2)
		n = sizeof line - 2;
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* a log that cannot be written is lost */
}

/* Writes `s` as a JSON string, which does for a log line too: cut when long,
 * at a whole character. */
static const char *
quote(char *to, size_t room, struct str s)
{
	char *o = to, *end = to + room - 10;

	*o++ = '"';
	for (size_t i = 0; i < s.n; i++) {
		u8 c = (u8)s.p[i];

		if (o >= end || (o >= end - 4 && (c & 0xc0) != 0x80))
			break;
		if (c == '"' || c == '\\')
			*o++ = '\\';
		if (c < 0x20 || c == 0x7f)
			o += sprintf(o, "\\u%04x", c);
		else
			*o++ = (char)c;
	}
	*o++ = '"';
	*o = '\0';
	return to;
}

static void
log_counters(void)
{
#define C(name) (unsigned long long)counters.name
	log_event(LOG_INFO, "counters", "received=%llu taken=%llu nobody=%llu "
	    "partly=%llu retried=%llu unconfirmed=%llu expired=%llu "
	    "rejected=%llu overrun=%llu up=%llu up_lost=%llu connects=%llu "
	    "parked=%llu", C(received), C(taken), C(nobody), C(partly),
	    C(retried), C(unconfirmed), C(expired), C(rejected), C(overrun),
	    C(up), C(up_lost), C(connects), C(parked));
#undef C
}

/* ----- 4. Options --------------------------------------------------------
 *
 * One table for the command line and the settings file, as wspush has them:
 * the command line wins, and its list of prefixes replaces the file's.
 */

struct option {
	const char *name, *shape, *help;
	const char **text;
	bool *flag;
	u32 *number, min, max;
	const char *(*call)(const char *value); /* says what is wrong */
};

static bool prefixes_replaced;

/* HOST, HOST:PORT, [::1]:PORT */
static const char *
option_broker(const char *value)
{
	static const char wrong[] = "it takes HOST[:PORT], such as "
	    "broker.example:8883 or [::1]:1883";
	bool six = value[0] == '[';
	struct str rest = str_of(value + six);
	struct str host = str_cut(&rest, six ? ']' : ':');
	u64 port = 0;

	if (six && (host.p[host.n] != ']' || str_cut(&rest, ':').n > 0))
		return wrong;
	if (rest.n > 0 && (!str_number(&port, rest, 65535) || port == 0))
		return wrong;
	if (host.n == 0 || host.n >= sizeof settings.host)
		return "a host's name has 1 to 255 bytes";
	settings.port = (u32)port;
	memcpy(settings.host, host.p, host.n);
	settings.host[host.n] = '\0';
	return NULL;
}

static const char *
option_topic(const char *value)
{
	size_t n = strlen(value);

	if (n == 0 || n > 200 || strchr("/$", value[0]) ||
	    value[n - 1] == '/' ||
	    mosquitto_pub_topic_check(value) != MOSQ_ERR_SUCCESS ||
	    !str_is_mqtt((struct str){ value, n }))
		return "it takes a topic of 1 to 200 bytes without + and #, "
		    "without / at its ends and without $ in front";
	return NULL;
}

static const char *
option_prefix(const char *value)
{
	if (settings.prefixes == PREFIXES)
		return "there are too many prefixes";
	settings.prefix[settings.prefixes++] = value;
	return option_topic(value);
}

static const char *
option_id(const char *value)
{
	size_t n = strlen(value);

	if (n == 0 || n > 64 || value[strcspn(value, "/+#\"\\")] != '\0' ||
	    !str_is_dense((struct str){ value, n }) ||
	    !str_is_mqtt((struct str){ value, n }))
		return "it takes 1 to 64 bytes without white space and / + # "
		    "\" \\";
	return NULL;
}

static const char *
option_kind(const char *value)
{
	return strcmp(value, "text") == 0 || strcmp(value, "json") == 0 ||
	    strcmp(value, "binary") == 0 ? NULL : "it is text, json or binary";
}

static const char *
option_socket(const char *value)
{
	return strlen(value) < sizeof ((struct sockaddr_un *)0)->sun_path ?
	    NULL : "a path has at most 107 bytes";
}

static const char *
option_readable(const char *value)
{
	return access(value, R_OK) == 0 ? NULL : strerror(errno);
}

static const char *
option_level(const char *value)
{
	for (u32 i = 0; i < COUNT(log_words); i++)
		if (strcmp(value, log_words[i]) == 0) {
			settings.level = i;
			return NULL;
		}
	return "it is error, warn, info or debug";
}

static const struct option options[] = {
	{ "config", "FILE", "settings, a `name value` each line",
		.text = &settings.config },
	{ "broker", "HOST[:PORT]", "the broker (localhost:1883; with TLS 8883)",
		.call = option_broker },
	{ "id", "BOX", "this box; the client id is wspush-BOX (host name)",
		.text = &settings.id, .call = option_id },
	{ "username", "NAME", "who we are to the broker",
		.text = &settings.username },
	{ "password-file", "FILE", "its first line is the password",
		.text = &settings.password_file },
	{ "tls", NULL, "TLS, by the system's certificate authorities",
		.flag = &settings.tls },
	{ "cafile", "FILE", "TLS, by these authorities (PEM)",
		.text = &settings.cafile, .call = option_readable },
	{ "capath", "DIR", "TLS, by the authorities there (see c_rehash)",
		.text = &settings.capath, .call = option_readable },
	{ "cert", "FILE", "our certificate (PEM)",
		.text = &settings.cert, .call = option_readable },
	{ "key", "FILE", "its key",
		.text = &settings.key, .call = option_readable },
	{ "insecure", NULL, "do not compare the broker's name",
		.flag = &settings.insecure },
	{ "keepalive", "S", "seconds between pings (60)",
		.number = &settings.keepalive, .min = 5, .max = 65535 },
	{ "session-expiry", "S", "how long the broker keeps what comes while "
		"we are away (604800; 4294967295: for ever)",
		.number = &settings.session_expiry, .max = UINT32_MAX },
	{ "reconnect-max", "S", "the longest pause before a new attempt (60)",
		.number = &settings.reconnect_max, .min = 1, .max = 3600 },
	{ "inflight", "N", "publications in hand, the Receive Maximum (20)",
		.number = &settings.inflight, .min = 1, .max = 1000 },
	{ "max-message", "N", "bytes of a message, as wspush has it (65536)",
		.number = &settings.max_message, .min = 1, .max = 1048576 },
	{ "confirm", "S", "acknowledge when the clients have it, or after "
		"S seconds (0: when wspush has it)",
		.number = &settings.confirm, .max = 3600 },
	{ "settle", "S", "push nothing before wspush is up so long: its "
		"clients are on their way back (5)",
		.number = &settings.settle, .max = 3600 },
	{ "prefix", "TOPIC", "push what is published below it; repeatable "
		"(push)", .call = option_prefix },
	{ "kind", "KIND", "of what has no content type: text, json, binary "
		"(text)", .text = &settings.kind, .call = option_kind },
	{ "push", "PATH", "wspush's socket (/run/wspush/push.sock)",
		.text = &settings.push, .call = option_socket },
	{ "handler", "PATH", "take what clients say, wspush has it as "
		"--service NAME=unix:PATH",
		.text = &settings.handler, .call = option_socket },
	{ "from", "TOPIC", "publish that below it (from)",
		.text = &settings.from, .call = option_topic },
	{ "presence", "TOPIC", "TOPIC/BOX is online or offline (presence)",
		.text = &settings.presence, .call = option_topic },
	{ "watch", "TARGET", "publish there too which of these sockets are "
		"open", .text = &settings.watch },
	{ "log-level", "LEVEL", "error, warn, info or debug (info)",
		.call = option_level },
	{ "check", NULL, "look at the options and files, and exit",
		.flag = &settings.check },
};

static void
option_usage(FILE *to)
{
	fputs("usage: wspush-mqtt [options]\n", to);
	for (size_t i = 0; i < COUNT(options); i++) {
		const struct option *o = &options[i];
		int n = fprintf(to, "  --%s%s%s", o->name, o->shape ? " " : "",
		    o->shape ? o->shape : "");

		fprintf(to, "%*s%s\n", n < 28 ? 28 - n : 1, "", o->help);
	}
	fputs("SIGTERM ends it, SIGUSR1 logs its counters.\n", to);
}

static const struct option *
option_find(struct str name)
{
	for (size_t i = 0; i < COUNT(options); i++)
		if (str_is(name, options[i].name))
			return &options[i];
	return NULL;
}

/* Enters a value; says what is wrong with it. */
static const char *
option_set(const struct option *o, const char *value)
{
	static char why[80];
	u64 v;

	if (o->flag)
		*o->flag = true;
	if (o->text)
		*o->text = value;
	if (o->call)
		return o->call(value);
	if (!o->number)
		return NULL;
	if (!str_number(&v, str_of(value), o->max) || v < o->min) {
		snprintf(why, sizeof why, "it takes a number from %u to %u",
		    o->min, o->max);
		return why;
	}
	*o->number = (u32)v;
	return NULL;
}

static void fail(int status, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));

static void
fail(int status, const char *format, ...)
{
	va_list ap;

	fputs("wspush-mqtt: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputs("\n", stderr);
	exit(status);
}

/* One line of the settings file; it stays in memory, for settings point into
 * it. */
static void
option_line(const char *file, int number, char *line)
{
	char *value = line + strcspn(line, " \t");
	const struct option *o;
	const char *why;

	if (*line == '#' || *line == '\0')
		return;
	o = option_find((struct str){ line, (size_t)(value - line) });
	if (*value)
		*value++ = '\0';
	value += strspn(value, " \t");
	if (!o || o->text == &settings.config)
		fail(2, "%s:%d: %s: no option has this name", file, number,
		    line);
	if (o->flag ? *value != '\0' : *value == '\0')
		fail(2, "%s:%d: %s takes %s", file, number, line,
		    o->flag ? "no value" : o->shape);
	if (o->call == option_prefix && prefixes_replaced)
		return;
	why = option_set(o, value);
	if (why)
		fail(2, "%s:%d: %s %s: %s", file, number, line, value, why);
}

static void
option_file(const char *path)
{
	static char text[16384];
	FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, sizeof text, f) : 0;
	char *line = text, *end;

	if (!f || ferror(f))
		fail(2, "%s: %s", path, strerror(errno));
	if (n == sizeof text)
		fail(2, "%s: it is longer than %zu bytes", path, n - 1);
	fclose(f);
	for (int number = 1; *line; number++, line = end) {
		size_t length;

		end = line + strcspn(line, "\n");
		if (*end)
			*end++ = '\0';
		length = strlen(line);
		while (length > 0 && strchr(" \t\r", line[length - 1]))
			line[--length] = '\0';
		option_line(path, number, line);
	}
}

static void
option_words(int argc, char **argv, bool only_config)
{
	for (int i = 1; i < argc; i++) {
		const char *word = argv[i], *why;
		const struct option *o = strncmp(word, "--", 2) == 0 ?
		    option_find(str_of(word + 2)) :
		    NULL;

		if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
			option_usage(stdout);
			exit(0);
		}
		if (!o)
			fail(2, "unknown option %s; see wspush-mqtt --help",
			    word);
		if (!o->flag && ++i == argc)
			fail(2, "%s takes %s", word, o->shape);
		if (o->call == option_prefix)
			prefixes_replaced = true;
		if (only_config != (o->text == &settings.config))
			continue;
		why = option_set(o, argv[i]);
		if (why)
			fail(2, "%s %s: %s", word, argv[i], why);
	}
}

static void
option_password(void)
{
	FILE *f;

	if (!settings.password_file)
		return;
	f = fopen(settings.password_file, "re");
	if (!f || !fgets(password, sizeof password, f))
		fail(2, "--password-file %s: %s", settings.password_file,
		    f ? "it is empty" : strerror(errno));
	fclose(f);
	password[strcspn(password, "\r\n")] = '\0';
}

/* What we publish must not come back as something to push. */
static void
option_loop(const char *name, const char *topic)
{
	for (u32 i = 0; i < settings.prefixes; i++) {
		const char *prefix = settings.prefix[i];
		size_t n = strlen(prefix);

		if (strncmp(topic, prefix, n) == 0 && strchr("/", topic[n]))
			fail(2, "--%s %s lies below --prefix %s: what goes up "
			    "would come down again", name, topic, prefix);
	}
}

/* What only all the options together can tell. */
static void
option_check(void)
{
	const char *why;

	if (!settings.id) {
		gethostname(host_name, sizeof host_name - 1);
		why = option_id(host_name);
		if (why)
			fail(2, "the host name cannot be the --id: %s", why);
	}
	if (settings.prefixes == 0)
		settings.prefix[settings.prefixes++] = "push";
	option_loop("from", settings.from);
	option_loop("presence", settings.presence);
	if (settings.password_file && !settings.username)
		fail(2, "--password-file needs --username");
	if (!settings.cert != !settings.key)
		fail(2, "--cert and --key go together");
	if (settings.cert && !settings.cafile && !settings.capath)
		fail(2, "--cert needs --cafile or --capath");
	settings.tls |= settings.cafile || settings.capath;
	if (settings.insecure && !settings.tls)
		fail(2, "--insecure needs --tls, --cafile or --capath");
	if (settings.confirm > 0 &&
	    settings.confirm + CONFIRM_MORE >= settings.keepalive / 2)
		fail(2, "--confirm must be less than half of --keepalive, by "
		    "%d seconds", CONFIRM_MORE + 1);
	if (settings.confirm > 0 && settings.inflight > CONFIRM_MAX)
		settings.inflight = CONFIRM_MAX;
	if (settings.watch && strlen(settings.watch) >= TARGET_ROOM)
		fail(2, "--watch: a target has less than %d bytes",
		    TARGET_ROOM);
	option_password();
	if (settings.port == 0)
		settings.port = settings.tls ? 8883 : 1883;
}

/* ----- 5. Topics ---------------------------------------------------------
 *
 * Topic to target, and socket to topic.  Everything in a topic is data: what
 * could become another term or another line of the request is refused here.
 */

/* The words behind a prefix; NULL when the topic is not below it. */
static const char *
topic_below(const char *prefix, const char *topic)
{
	size_t n = strlen(prefix);

	return strncmp(topic, prefix, n) == 0 && topic[n] == '/' ?
	    topic + n + 1 : NULL;
}

static bool
topic_is_service(struct str s)
{
	static const char word[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	    "abcdefghijklmnopqrstuvwxyz0123456789_.";

	for (size_t i = 0; i < s.n; i++)
		if (!memchr(word, s.p[i], sizeof word - 1))
			return false;
	return s.n > 0;
}

/* Writes the target of SERVICE/all, /id/ID, /tag/NAME or /tag/NAME/VALUE;
 * says what is wrong with it. */
static const char *
topic_target(char *to, size_t room, const char *rest)
{
	struct str all = str_of(rest), name;
	struct str service = str_cut(&all, '/'), what = str_cut(&all, '/');
	int s = (int)service.n, n;

	if (!topic_is_service(service))
		return "the service's name is not one";
	if (!str_is_dense(all))
		return "there is white space in the topic";
	if (str_is(what, "all") && all.n == 0) {
		n = snprintf(to, room, "/services/%.*s", s, service.p);
	} else if (str_is(what, "id") && all.n > 0) {
		n = snprintf(to, room, "/services/%.*s-s-%s", s, service.p,
		    all.p);
	} else if (str_is(what, "tag") && all.n > 0) {
		name = str_cut(&all, '/');
		if (memchr(name.p, ':', name.n))
			return "a tag's name has no colon";
		if (str_begins(all, "["))
			return "a value that begins with [ would be a list";
		n = snprintf(to, room, "/services/%.*s $%.*s%s%s", s,
		    service.p, (int)name.n, name.p,
		    name.p[name.n] == '/' ? ":" : "", all.p);
	} else {
		return "behind the service stands all, id/ID, tag/NAME or "
		    "tag/NAME/VALUE";
	}
	return n < (int)room ? NULL : "the topic is too long";
}

/* A target that came as text: nothing before it can be an option, no line end
 * can make it end early. */
static const char *
topic_own_target(char *to, size_t room, struct str target)
{
	if (target.n >= room)
		return "the target is too long";
	if (target.n == 0 || !memchr("*/$=", target.p[0], 4))
		return "a target begins with *, /, $ or =";
	for (size_t i = 0; i < target.n; i++)
		if ((u8)target.p[i] < ' ' || target.p[i] == 0x7f)
			return "there is a control character in the target";
	memcpy(to, target.p, target.n);
	to[target.n] = '\0';
	return NULL;
}

/* application/json; charset=utf-8 */
static const char *
topic_kind(const char *type)
{
	static const char *const kinds[][2] = {
		{ "application/json", "json" }, { "text/plain", "text" },
		{ "application/octet-stream", "binary" },
	};
	size_t n = type ? strcspn(type, "; ") : 0;

	for (size_t i = 0; i < COUNT(kinds); i++)
		if (n == strlen(kinds[i][0]) &&
		    strncasecmp(type, kinds[i][0], n) == 0)
			return kinds[i][1];
	return settings.kind;
}

/* What + and # mean to a broker no topic may hold: %2B and %23, and so %25.
 * Nor may it hold characters such as U+FFFE: then what is not ASCII is %XX. */
static size_t
topic_escape(char *to, size_t room, struct str s)
{
	bool plain = str_is_mqtt(s);
	size_t n = 0;

	for (size_t i = 0; i < s.n && n + 4 < room; i++)
		if (memchr("+#%", s.p[i], 3) || (!plain && (u8)s.p[i] >= 0x80))
			n += (size_t)sprintf(to + n, "%%%02X", (u8)s.p[i]);
		else
			to[n++] = s.p[i];
	to[n] = '\0';
	return n;
}

/* FROM/SERVICE/ID for /services/SERVICE-s-ID and -v-GUID */
static bool
topic_from(char *to, size_t room, struct str socket)
{
	struct str rest = socket, service;
	int n;

	if (!str_begins(socket, "/services/"))
		return false;
	rest.p += 10;
	rest.n -= 10;
	service = str_cut(&rest, '-');
	if (rest.n < 3 || rest.p[1] != '-')
		return false;
	n = snprintf(to, room, "%s/%.*s/", settings.from, (int)service.n,
	    service.p);
	rest.p += 2;
	rest.n -= 2;
	return n < (int)room && topic_escape(to + n, room - (size_t)n, rest);
}

/* ----- 6. Held -----------------------------------------------------------
 *
 * The batch: publications that have come and are not acknowledged.  Their
 * bytes lie behind each other in one block, which is empty again when the
 * batch is over.
 */

enum held_state { HELD, ASKED, TAKEN, DONE };

struct held {
	enum held_state state;
	bool retain;
	int mid;             /* the broker's number; 0: QoS 0 */
	const char *kind;
	u64 seq;             /* of the request that waits for a reply */
	int64_t expires_ms;  /* 0: never */
	int64_t due_ms;      /* TAKEN: when we wait no longer */
	const char *topic, *target, *body;
	size_t n;            /* of the body */
};

static struct {
	struct held *row;
	char *bytes;
	size_t room, used;
	u32 rows;            /* there are */
	u32 n, open;         /* in use, and of them those not DONE */
	int64_t since_ms;    /* of the first row */
	u64 *known;          /* hashes of DONE rows that will come again */
	u32 knowns;
} held;

static bool
held_init(void)
{
	held.rows = settings.inflight + HELD_MORE;
	held.room = (size_t)(settings.inflight + OUT_MAX) *
	    (settings.max_message + 2 * TOPIC_ROOM);
	held.row = calloc(held.rows, sizeof *held.row);
	held.known = calloc(held.rows, sizeof *held.known);
	held.bytes = malloc(held.room); /* paid for when it is written */
	return held.row && held.known && held.bytes;
}

static void
held_clear(void)
{
	held.n = held.open = 0;
	held.used = 0;
}

static const char *
held_copy(const void *p, size_t n)
{
	char *to = held.bytes + held.used;

	assert(n <= held.room - held.used);
	if (n > 0)
		memcpy(to, p, n);
	held.used += n;
	return to;
}

/* Whether the batch takes no more.  The Receive Maximum should see to that,
 * but mosquitto 2.0.11 exceeds it by far while it has a queue for us; so we
 * do not read, and TCP tells the broker. */
static bool
held_full(void)
{
	return held.n >= settings.inflight;
}

static bool
held_has_room(size_t bytes)
{
	return held.n < held.rows && bytes <= held.room - held.used;
}

/* A new row.  There is room: the caller has asked. */
static struct held *
held_add(const char *topic, const char *target, const void *body, size_t n)
{
	struct held *h = &held.row[held.n++];

	*h = (struct held){ .state = HELD, .n = n };
	h->topic = held_copy(topic, strlen(topic) + 1);
	h->target = held_copy(target, strlen(target) + 1);
	h->body = held_copy(body, n);
	if (held.n == 1)
		held.since_ms = clock_ms();
	held.open++;
	return h;
}

static void
held_done(struct held *h)
{
	h->state = DONE;
	held.open--;
}

static u64
held_hash(const struct held *h)
{
	u64 v = str_hash(STR_HASH, (struct str){ h->body, h->n });

	return str_hash(v ^ (u64)h->mid, str_of(h->topic));
}

/* The connection has ended: the broker sends the batch again, under the same
 * numbers.  What is DONE of it is not pushed again.  This is more than
 * courtesy: a wspush so slow that it takes longer over a batch than we may
 * hold one would otherwise be given the same batch for ever. */
static void
held_end(void)
{
	for (u32 i = 0; i < held.n; i++)
		if (held.row[i].state == DONE && held.row[i].mid != 0 &&
		    held.knowns < held.rows)
			held.known[held.knowns++] = held_hash(&held.row[i]);
	held_clear();
}

/* Whether it was DONE already; asked once. */
static bool
held_knew(const struct held *h)
{
	u64 hash = held.knowns > 0 ? held_hash(h) : 0;

	for (u32 i = 0; i < held.knowns; i++)
		if (held.known[i] == hash) {
			held.known[i] = held.known[--held.knowns];
			return true;
		}
	return false;
}

static u32
held_count(enum held_state state)
{
	u32 n = 0;

	for (u32 i = 0; i < held.n; i++)
		n += held.row[i].state == state;
	return n;
}

/* wspush is not the one we asked: whatever it has taken is gone with it, and
 * all of the batch is asked again. */
static void
held_again(void)
{
	for (u32 i = 0; i < held.n; i++) {
		counters.retried += held.row[i].state != HELD;
		held.row[i].state = HELD;
	}
	held.open = held.n;
	held.knowns = 0;
}

/* ----- 7. Outgoing -------------------------------------------------------
 *
 * What we publish: QoS 1, queued by the library and written by broker_flush.
 */

static struct {
	struct mosquitto *m;
	bool tried;            /* connected or on the way to it */
	bool on;               /* CONNACK has come */
	bool leaving;          /* DISCONNECT has been asked for */
	bool dropping;         /* nothing is read as a message or written */
	u32 parked;            /* no connection before fewer are open; or 0 */
	bool want_retained;    /* the next SUBSCRIBE asks for retained values */
	u32 unacked;           /* our publications */
	u64 repeats_end;       /* as many received, and none is a repeat */
	int64_t since_ms;      /* on */
	int64_t hold_ms;       /* how long a batch may keep pings waiting */
	int64_t next_ms;       /* not on: the next attempt */
	int64_t pause_ms;
} broker;

static bool
out_full(void)
{
	return !broker.on || broker.unacked >= 8 * OUT_MAX;
}

static bool
out_publish(const char *topic, struct str body, bool retain,
    const mosquitto_property *properties)
{
	int rc;

	if (out_full())
		return false;
	rc = mosquitto_publish_v5(broker.m, NULL, topic, (int)body.n, body.p,
	    1, retain, properties);
	if (rc != MOSQ_ERR_SUCCESS) {
		log_event(LOG_WARN, "publish", "error=\"%s\"",
		    mosquitto_strerror(rc));
		return false;
	}
	broker.unacked++;
	return true;
}

static void
out_online(void)
{
	char topic[320];

	snprintf(topic, sizeof topic, "%s/%s", settings.presence, settings.id);
	out_publish(topic, str_of("online"), true, NULL);
}

static void
out_subscribe_one(const char *prefix, const char *rest)
{
	char topic[256];
	int rc;

	snprintf(topic, sizeof topic, "%s/%s", prefix, rest);
	rc = mosquitto_subscribe_v5(broker.m, NULL, topic, 1,
	    MQTT_SUB_OPT_RETAIN_AS_PUBLISHED | (broker.want_retained ?
	    MQTT_SUB_OPT_SEND_RETAIN_ALWAYS : MQTT_SUB_OPT_SEND_RETAIN_NEW),
	    NULL);
	if (rc != MOSQ_ERR_SUCCESS)
		log_event(LOG_ERROR, "subscribe", "topic=%s error=\"%s\"",
		    topic, mosquitto_strerror(rc));
}

/* Asks for the publications.  Retained values come when we or wspush are new;
 * otherwise wspush has them. */
static void
out_subscribe(void)
{
	static const char *const below[] = { "+/all", "+/id/#", "+/tag/#",
		"target" };

	for (u32 i = 0; i < settings.prefixes; i++)
		for (u32 k = 0; k < COUNT(below); k++)
			out_subscribe_one(settings.prefix[i], below[k]);
	broker.want_retained = false;
}

/* This publication can never be pushed: the log, a counter and the topic
 * PREFIX/rejected tell why.  A flood is one line a second. */
static void
out_reject(const char *topic, size_t bytes, const char *code, struct str why)
{
	static int64_t quiet_ms;
	static u64 unsaid;
	char said[256], name[640], text[1280], to[256];
	mosquitto_property *type = NULL;
	u32 i = 0;
	int n;

	counters.rejected++;
	quote(said, sizeof said, why);
	quote(name, sizeof name, str_of(topic));
	if (clock_ms() < quiet_ms) {
		unsaid++;
	} else {
		log_event(LOG_WARN, "rejected", "topic=%s code=%s bytes=%zu "
		    "why=%s unsaid=%llu", name, code, bytes, said,
		    (unsigned long long)unsaid);
		quiet_ms = clock_ms() + 1000;
		unsaid = 0;
	}
	while (i < settings.prefixes && !topic_below(settings.prefix[i], topic))
		i++;
	if (i == settings.prefixes)
		return;
	n = snprintf(text, sizeof text, "{\"box\":\"%s\",\"topic\":%s,"
	    "\"code\":\"%s\",\"bytes\":%zu,\"message\":%s}", settings.id,
	    name, code, bytes, said);
	snprintf(to, sizeof to, "%s/rejected", settings.prefix[i]);
	mosquitto_property_add_string(&type, MQTT_PROP_CONTENT_TYPE,
	    "application/json");
	out_publish(to, (struct str){ text, (size_t)n }, false, type);
	mosquitto_property_free_all(&type);
}

/* ----- 8. Presence -------------------------------------------------------
 *
 * PRESENCE/BOX/services/NAME-s-ID is `open` or `away`, retained, and nothing
 * when the socket is forgotten.  What we have said is kept as hashes, so that
 * only changes are said.  After a gap (a new connection to the broker, a new
 * wspush, lost events) `list` tells who is there, and then the broker's
 * retained values who is not: that way nothing here need remember names.
 */

struct presence {
	u64 hash;              /* of the socketId */
	u8 open;               /* 2: the broker has not been told */
	u8 round;              /* of `list` in which it was seen */
};

static struct {
	struct presence row[PRESENCE_MAX];
	u32 n;
	u8 round;
	bool listing;          /* a `list` is under way */
	bool wanted;           /* another one must follow */
	bool refused;          /* we may not watch, and that has been said */
	u64 seq;               /* of the page that was asked for */
	char cursor[32];
} presence;

static struct presence *
presence_find(u64 hash)
{
	for (u32 i = 0; i < presence.n; i++)
		if (presence.row[i].hash == hash)
			return &presence.row[i];
	return NULL;
}

/* False when there is no room: it will be said after the next `list`. */
static bool
presence_publish(struct str socket, const char *word)
{
	char topic[TOPIC_ROOM];
	int n = snprintf(topic, sizeof topic, "%s/%s", settings.presence,
	    settings.id);

	if (out_full()) {
		presence.wanted = true;
		return false;
	}
	topic_escape(topic + n, sizeof topic - (size_t)n, socket);
	out_publish(topic, str_of(word), true, NULL);
	return true;
}

static void
presence_is(struct str socket, bool open)
{
	u64 hash = str_hash(STR_HASH, socket);
	struct presence *p = presence_find(hash);
	bool same = p && p->open == open;

	if (!p && presence.n == PRESENCE_MAX)
		return;
	if (!p)
		p = &presence.row[presence.n++];
	*p = (struct presence){ hash, open, presence.round };
	if (!same && !presence_publish(socket, open ? "open" : "away"))
		p->open = 2;
}

static void
presence_gone(struct str socket)
{
	struct presence *p = presence_find(str_hash(STR_HASH, socket));

	if (p)
		*p = presence.row[--presence.n];
	presence_publish(socket, "");
}

/* wspush will not tell us: --watch is no target, we are `denied`, or it has
 * as many watchers as it takes. */
static void
presence_refused(struct str code, struct str why)
{
	char said[256];

	if (!presence.refused)
		log_event(LOG_WARN, "watch", "code=%.*s why=%s", (int)code.n,
		    code.p, quote(said, sizeof said, why));
	presence.refused = true;
}

/* A datagram of `watch`.  A volatile socket that closes is forgotten next. */
static void
presence_event(struct str all)
{
	struct str line = str_cut(&all, '\n');
	struct str event = str_cut(&line, ' '), socket = str_cut(&line, ' ');

	if (str_is(event, "open"))
		presence_is(socket, true);
	else if (str_is(event, "close") &&
	    memmem(socket.p, socket.n, "-s-", 3))
		presence_is(socket, false);
	else if (str_is(event, "forget"))
		presence_gone(socket);
	else if (str_is(event, "error")) /* CODE ref=w ONE SENTENCE */
		presence_refused(socket, line);
	else if (str_is(event, "ok") && presence.refused) {
		presence.refused = false;
		presence.wanted = true;
	}
}

/* One page of `list`: socketId, open or away, and more. */
static void
presence_page(struct str rows, struct str next)
{
	while (rows.n > 0) {
		struct str row = str_cut(&rows, '\n');
		struct str socket = str_cut(&row, '\t');

		presence_is(socket, str_is(str_cut(&row, '\t'), "open"));
	}
	presence.seq = 0;
	snprintf(presence.cursor, sizeof presence.cursor, "%.*s",
	    (int)next.n, next.p);
	if (next.n > 0)
		return;
	presence.listing = false;
	for (u32 i = presence.n; i-- > 0;)
		if (presence.row[i].round != presence.round)
			presence.row[i] = presence.row[--presence.n];
}

/* The last page is in: the broker shows what it has retained, to be compared
 * (QoS 0: nothing of it is pushed). */
static void
presence_sweep(void)
{
	char topic[TOPIC_ROOM];

	snprintf(topic, sizeof topic, "%s/%s/services/#", settings.presence,
	    settings.id);
	mosquitto_subscribe_v5(broker.m, NULL, topic, 0, MQTT_SUB_OPT_NO_LOCAL |
	    MQTT_SUB_OPT_RETAIN_AS_PUBLISHED | MQTT_SUB_OPT_SEND_RETAIN_ALWAYS,
	    NULL);
}

/* A retained value of the broker's; true when the topic is ours. */
static bool
presence_retained(const char *topic, bool empty)
{
	size_t a = strlen(settings.presence), b = strlen(settings.id), n = 0;
	const char *id = topic + a + 1 + b;
	char raw[TOPIC_ROOM];
	struct str socket = { .p = raw };
	unsigned byte;

	if (strncmp(topic, settings.presence, a) != 0 || topic[a] != '/' ||
	    strncmp(topic + a + 1, settings.id, b) != 0 || *id != '/')
		return false;
	for (; *id && n < sizeof raw; id++)
		if (*id == '%' && id[1] && id[2] &&
		    sscanf(id + 1, "%2x", &byte) == 1) {
			raw[n++] = (char)byte;
			id += 2;
		} else {
			raw[n++] = *id;
		}
	socket.n = n;
	if (!empty && !presence_find(str_hash(STR_HASH, socket)))
		presence_publish(socket, "");
	return true;
}

/* ----- 9. wspush ---------------------------------------------------------
 *
 * The push protocol, from an autobound socket that is connected: only wspush
 * can answer.  A `stats` now and then is the heartbeat.  It shows that wspush
 * has been started anew, and it overtakes nothing: a request before it that
 * has no reply when it has one never gets one, and is sent again.
 */

static struct {
	int fd, watch;         /* -1: none */
	bool up;               /* it has answered since we connected */
	bool met;              /* it has answered once */
	bool quiet;            /* that it is away has been said */
	bool full;             /* the socket takes no more now */
	u32 unanswered;        /* heartbeats */
	u64 seq;               /* of the last request */
	u64 beat_seq;          /* of the heartbeat; 0: none is out */
	u64 events_lost;       /* as `stats` had it last */
	int64_t next_ms;       /* not connected: the next attempt */
	int64_t beat_ms;       /* the last heartbeat */
	int64_t again_ms;      /* nothing is sent before */
	int64_t pause_ms;
	struct sockaddr_un address;
	char *room;            /* a datagram that came */
	size_t room_size;
} server = { .fd = -1, .watch = -1 };

static void
server_pause(void)
{
	server.pause_ms = server.pause_ms == 0 ? PAUSE_MS_MIN :
	    server.pause_ms * 2 > PAUSE_MS_MAX ? PAUSE_MS_MAX :
	    server.pause_ms * 2;
	server.again_ms = clock_ms() + server.pause_ms;
}

static void
server_lost(int error)
{
	if (!server.quiet)
		log_event(LOG_WARN, "wspush", "path=%s state=away error=\"%s\"",
		    settings.push, strerror(error));
	server.quiet = true;
	close(server.fd);
	server.fd = -1;
	server.up = server.full = false;
	server.beat_seq = presence.seq = 0;
	server.unanswered = 0;
	presence.listing = false;
	held_again();
	server_pause();
	/* To look whether it is back costs little. */
	server.next_ms = clock_ms() +
	    (server.pause_ms > 1000 ? 1000 : server.pause_ms);
}

/* Sends a request; false when it must be tried again. */
static bool
server_send(const char *head, size_t n, const char *body, size_t body_n)
{
	struct iovec part[2] = { { .iov_len = n }, { .iov_len = body_n } };
	struct msghdr m = { .msg_iov = part, .msg_iovlen = 2 };

	memcpy(&part[0].iov_base, &head, sizeof head); /* it is not changed */
	memcpy(&part[1].iov_base, &body, sizeof body);
	if (sendmsg(server.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return true;
	if (errno == EAGAIN || errno == ENOBUFS)
		server.full = true;
	else if (errno != EMSGSIZE && errno != EINTR)
		server_lost(errno);
	return false;
}

static void
server_beat(void)
{
	char head[64];
	int n;

	n = snprintf(head, sizeof head, "stats ref=b%llu\n",
	    (unsigned long long)++server.seq);
	server.beat_ms = clock_ms();
	if (!server_send(head, (size_t)n, NULL, 0))
		return;
	server.beat_seq = server.seq;
	if (++server.unanswered == 4)
		log_event(LOG_WARN, "wspush", "path=%s state=silent",
		    settings.push);
}

static void
server_connect(void)
{
	struct sockaddr_un me = { .sun_family = AF_UNIX };
	int room = (int)settings.max_message * 2 + 65536;
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	server.fd = fd;
	if (fd < 0 ||
	    bind(fd, (struct sockaddr *)&me, sizeof me.sun_family) < 0 ||
	    connect(fd, (struct sockaddr *)&server.address,
	    sizeof server.address) < 0)
		server_lost(errno);
	else
		server_beat();
}

/* Watches: again now and then, for a wspush that was restarted, or that took
 * our silence for absence, has forgotten it. */
static void
server_watch(void)
{
	char head[HEAD_ROOM];
	int n;

	if (!settings.watch)
		return;
	n = snprintf(head, sizeof head, "watch ref=w %s\n", settings.watch);
	if (sendto(server.watch, head, (size_t)n, MSG_DONTWAIT,
	    (struct sockaddr *)&server.address, sizeof server.address) < 0)
		log_event(LOG_DEBUG, "watch", "error=\"%s\"", strerror(errno));
}

static void
server_list(void)
{
	char head[HEAD_ROOM];
	int n;

	if (!presence.listing && presence.wanted) {
		presence.wanted = false;
		presence.listing = true;
		presence.cursor[0] = '\0';
		presence.round++;
	}
	if (!presence.listing || presence.seq || broker.unacked >= OUT_MAX)
		return;
	n = snprintf(head, sizeof head, "list ref=l%llu %s%s %s\n",
	    (unsigned long long)++server.seq, presence.cursor[0] ? "from=" : "",
	    presence.cursor, settings.watch);
	if (server_send(head, (size_t)n, NULL, 0))
		presence.seq = server.seq;
}

/* Sends one row's request; its new state tells what came of it. */
static void
server_ask(struct held *h)
{
	char head[HEAD_ROOM];
	int64_t left = h->expires_ms - clock_ms();
	int n;

	if (h->expires_ms > 0 && left <= 0) {
		counters.expired++;
		held_done(h);
		return;
	}
	n = snprintf(head, sizeof head, "send ref=m%llu kind=%s%s",
	    (unsigned long long)++server.seq, h->kind,
	    h->retain ? " retain=1" : "");
	if (h->expires_ms > 0)
		n += snprintf(head + n, sizeof head - (size_t)n, " ttl=%lld",
		    (long long)(left + 999) / 1000);
	if (settings.confirm > 0)
		n += snprintf(head + n, sizeof head - (size_t)n, " ack=%u",
		    settings.confirm);
	n += snprintf(head + n, sizeof head - (size_t)n, " %s\n", h->target);
	if (server_send(head, (size_t)n, h->body, h->n)) {
		h->seq = server.seq;
		h->state = ASKED;
	} else if (errno == EMSGSIZE && server.fd >= 0 && !server.full) {
		out_reject(h->topic, h->n, "too-big",
		    str_of("it does not fit a datagram"));
		held_done(h);
	}
}

/* Sends what may be sent now: one request at a time, for after one that was
 * refused another might be taken, and that would be out of order. */
static void
server_push(void)
{
	if (!server.up || server.full || clock_ms() < server.again_ms ||
	    held_count(ASKED) > 0 || held_count(TAKEN) >= CONFIRM_MAX)
		return;
	for (u32 i = 0; i < held.n; i++)
		if (held.row[i].state == HELD) {
			server_ask(&held.row[i]);
			if (held.row[i].state != DONE)
				return;
		}
}

static void
server_taken(struct held *h, u64 count, u64 full)
{
	counters.taken++;
	counters.nobody += count == 0 && full == 0;
	counters.partly += full > 0;
	server.pause_ms = 0;
	if (settings.confirm == 0 || count == 0) {
		held_done(h);
		return;
	}
	h->state = TAKEN;
	h->due_ms = clock_ms() + 1000 * ((int64_t)settings.confirm +
	    CONFIRM_MORE);
}

/* `no-room` of a retained value stays: wspush retains so many and no more.
 * `denied` is ours to mend, not the publication's fault. */
static void
server_refused(struct held *h, struct str code, struct str why)
{
	char word[32];

	if (str_is(code, "unknown-socket")) {
		server_taken(h, 0, 0);
		return;
	}
	if (str_is(code, "queue-full") || str_is(code, "denied") ||
	    (str_is(code, "no-room") && !h->retain)) {
		if (server.pause_ms == 0 || str_is(code, "denied"))
			log_event(LOG_WARN, "refused", "code=%.*s state=again",
			    (int)code.n, code.p);
		counters.retried++;
		h->state = HELD;
		server_pause();
		return;
	}
	snprintf(word, sizeof word, "%.*s", (int)code.n, code.p);
	out_reject(h->topic, h->n, word, why);
	held_done(h);
}

static struct held *
server_row(struct str ref, enum held_state state)
{
	u64 seq;

	if (!str_begins(ref, "m") || !str_number(&seq, (struct str){ ref.p + 1,
	    ref.n - 1 }, UINT64_MAX / 16))
		return NULL;
	for (u32 i = 0; i < held.n; i++)
		if (held.row[i].seq == seq && held.row[i].state == state)
			return &held.row[i];
	return NULL;
}

static u64
server_stat(struct str body, const char *name)
{
	u64 v = 0;

	while (body.n > 0) {
		struct str line = str_cut(&body, '\n');

		if (str_is(str_cut(&line, ' '), name))
			(void)str_number(&v, line, UINT64_MAX / 16);
	}
	return v;
}

/* The first answer of a wspush, or its first after it was away. */
static void
server_came(u64 uptime)
{
	log_event(LOG_INFO, "wspush", "path=%s state=here uptime=%llu",
	    settings.push, (unsigned long long)uptime);
	server.up = true;
	server.quiet = false;
	server.pause_ms = 0;
	server.again_ms = clock_ms();
	if (uptime < settings.settle)
		server.again_ms += 1000 * (int64_t)(settings.settle - uptime);
	presence.wanted = settings.watch;
	if (server.met) {
		broker.want_retained = true;
		if (broker.on)
			out_subscribe();
	}
	server.met = true;
}

/* The heartbeat's reply. */
static void
server_beaten(struct str body)
{
	u64 lost = server_stat(body, "events_lost");

	if (!server.up)
		server_came(server_stat(body, "uptime"));
	else if (lost != server.events_lost)
		presence.wanted = settings.watch;
	server.events_lost = lost;
	server_watch();
	for (u32 i = 0; i < held.n; i++)
		if (held.row[i].state == ASKED &&
		    held.row[i].seq < server.beat_seq) {
			counters.retried++;
			held.row[i].state = HELD;
		}
	if (presence.seq < server.beat_seq)
		presence.seq = 0; /* this page is asked for again */
	server.beat_seq = 0;
	server.unanswered = 0;
}

/*     ok COUNT[ name=value ...]\n[BODY]
 *     acked N of COUNT[ ref=TOKEN]\n
 *     error CODE[ ref=TOKEN] ONE SENTENCE\n
 */
static void
server_reply(struct str all)
{
	struct str line = str_cut(&all, '\n'), word = str_cut(&line, ' ');
	struct str first = str_cut(&line, ' '), ref = { "", 0 };
	struct str next = { "", 0 };
	struct held *h;
	u64 count = 0, full = 0, seq;

	if (str_is(word, "error")) {
		ref = str_cut(&line, ' ');
		h = server_row((struct str){ ref.p + 4, ref.n < 4 ? 0 :
		    ref.n - 4 }, ASKED);
		if (h) {
			server_refused(h, first, line);
		} else if (presence.seq > 0 && str_begins(ref, "ref=l")) {
			presence_refused(first, line);
			presence.listing = false;
			presence.seq = 0;
		}
		return;
	}
	(void)str_number(&count, first, UINT32_MAX);
	while (line.n > 0) {
		struct str value = str_cut(&line, ' '), name;

		name = str_cut(&value, '=');
		if (str_is(name, "ref"))
			ref = value;
		else if (str_is(name, "next"))
			next = value;
		else if (str_is(name, "full"))
			(void)str_number(&full, value, UINT32_MAX);
		else if (str_is(word, "acked"))
			(void)str_number(&full, name, UINT32_MAX);
	}
	h = server_row(ref, str_is(word, "acked") ? TAKEN : ASKED);
	if (h && str_is(word, "acked")) {
		counters.unconfirmed += count != full; /* N of COUNT */
		held_done(h);
	} else if (h) {
		server_taken(h, count, full);
	} else if (str_begins(ref, "b") || str_begins(ref, "l")) {
		(void)str_number(&seq, (struct str){ ref.p + 1, ref.n - 1 },
		    UINT64_MAX / 16);
		if (ref.p[0] == 'b' && seq == server.beat_seq)
			server_beaten(all);
		if (ref.p[0] == 'l' && seq == presence.seq) {
			presence_page(all, next);
			if (!presence.listing && broker.on)
				presence_sweep();
		}
	}
}

static void
server_read(void)
{
	for (int i = 0; i < 64 && server.fd >= 0; i++) {
		ssize_t n = recv(server.fd, server.room, server.room_size,
		    MSG_DONTWAIT);

		if (n >= 0)
			server_reply((struct str){ server.room, (size_t)n });
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			server_lost(errno);
	}
}

static void
server_read_events(void)
{
	for (int i = 0; i < 64 && broker.unacked < OUT_MAX; i++) {
		ssize_t n = recv(server.watch, server.room, server.room_size,
		    MSG_DONTWAIT);

		if (n < 0)
			return;
		presence_event((struct str){ server.room, (size_t)n });
	}
}

/* How long there is no heartbeat: a batch that hangs makes us curious, but a
 * wspush that stands still is not buried under questions. */
static int64_t
server_rest(int64_t now)
{
	return held.open > 0 && now - held.since_ms > 1000 &&
	    server.unanswered < 3 ? 1000 : 5000;
}

/* What is due by the clock. */
static void
server_tick(int64_t now)
{
	if (server.fd < 0 && now >= server.next_ms)
		server_connect();
	else if (server.fd >= 0 && now >= server.beat_ms + server_rest(now))
		server_beat();
	if (server.up && broker.on && settings.watch)
		server_list();
	for (u32 i = 0; i < held.n; i++)
		if (held.row[i].state == TAKEN && now >= held.row[i].due_ms) {
			counters.unconfirmed++;
			held_done(&held.row[i]);
		}
}

static bool
server_init(void)
{
	struct sockaddr_un me = { .sun_family = AF_UNIX };

	server.address.sun_family = AF_UNIX;
	strcpy(server.address.sun_path, settings.push);
	server.room_size = (settings.max_message > 65536 ?
	    settings.max_message : 65536) + HEAD_ROOM;
	server.room = malloc(server.room_size);
	if (!server.room)
		return false;
	if (!settings.watch)
		return true;
	/* Events come from another socket of wspush's: not connected. */
	server.watch = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK |
	    SOCK_CLOEXEC, 0);
	return server.watch >= 0 && bind(server.watch,
	    (struct sockaddr *)&me, sizeof me.sun_family) == 0;
}

/* ----- 10. Incoming ------------------------------------------------------
 *
 * What clients say.  wspush sends it to our path; while the broker is away or
 * slow it stays there, and what the kernel does not keep wspush counts.
 */

static int incoming = -1;

/* Takes the path, also when a dead bridge has left it behind. */
static const char *
incoming_init(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct stat st;

	if (!settings.handler)
		return NULL;
	strcpy(a.sun_path, settings.handler);
	incoming = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
	    0);
	if (incoming < 0)
		return strerror(errno);
	if (connect(incoming, (struct sockaddr *)&a, sizeof a) == 0)
		return "another program listens there";
	if (errno == ECONNREFUSED && lstat(a.sun_path, &st) == 0 &&
	    S_ISSOCK(st.st_mode))
		unlink(a.sun_path);
	if (bind(incoming, (struct sockaddr *)&a, sizeof a) < 0 ||
	    chmod(a.sun_path, 0660) < 0)
		return errno == EADDRINUSE ? "what is there is no socket" :
		    strerror(errno);
	return NULL;
}

/* message SOCKETID text|binary, a line end, the body */
static void
incoming_event(struct str all)
{
	struct str line = str_cut(&all, '\n');
	struct str event = str_cut(&line, ' '), socket = str_cut(&line, ' ');
	mosquitto_property *p = NULL;
	char topic[TOPIC_ROOM], id[512];
	bool text = str_is(line, "text");

	if (str_is(event, "auth"))
		log_event(LOG_ERROR, "auth", "why=\"a service with auth=1 "
		    "cannot be the bridge's: nobody is let in\"");
	if (!str_is(event, "message"))
		return;
	if (!topic_from(topic, sizeof topic, socket)) {
		counters.up_lost++;
		return;
	}
	snprintf(id, sizeof id, "%.*s", (int)socket.n, socket.p);
	mosquitto_property_add_string(&p, MQTT_PROP_CONTENT_TYPE,
	    text ? "text/plain" : "application/octet-stream");
	if (text)
		mosquitto_property_add_byte(&p,
		    MQTT_PROP_PAYLOAD_FORMAT_INDICATOR, 1);
	/* The broker ends a connection for U+FFFE; our library lets it by. */
	if (str_is_mqtt(socket))
		mosquitto_property_add_string_pair(&p, MQTT_PROP_USER_PROPERTY,
		    "socket", id);
	mosquitto_property_add_string_pair(&p, MQTT_PROP_USER_PROPERTY,
	    "box", settings.id);
	if (out_publish(topic, all, false, p))
		counters.up++;
	else
		counters.up_lost++;
	mosquitto_property_free_all(&p);
}

static void
incoming_read(void)
{
	for (int i = 0; i < 64 && broker.unacked < OUT_MAX; i++) {
		ssize_t n = recv(incoming, server.room, server.room_size,
		    MSG_DONTWAIT | MSG_TRUNC);

		if (n < 0)
			return;
		if ((size_t)n > server.room_size)
			counters.up_lost++;
		else
			incoming_event((struct str){ server.room, (size_t)n });
	}
}

/* ----- 11. Broker --------------------------------------------------------
 *
 * One connection, a persistent session, the library's callbacks.
 */

static void
broker_drop(const char *why)
{
	if (broker.dropping)
		return;
	log_event(LOG_WARN, "broker", "state=dropped why=\"%s\"", why);
	broker.dropping = true;
	if (mosquitto_socket(broker.m) >= 0)
		shutdown(mosquitto_socket(broker.m), SHUT_RDWR);
}

/* wspush takes nothing: the broker may keep what is its own, and tell the
 * world that this box is offline. */
static void
broker_park(void)
{
	counters.parked++;
	broker.parked = held.open;
	broker_drop("wspush takes nothing");
}

/* The only place where anything is written to the broker. */
static void
broker_flush(void)
{
	if (held.open > 0 || broker.dropping ||
	    mosquitto_socket(broker.m) < 0)
		return;
	held_clear();
	if (mosquitto_want_write(broker.m))
		mosquitto_loop_write(broker.m, 1);
}

static void
on_connect(struct mosquitto *m, void *x, int code, int flags,
    const mosquitto_property *p)
{
	uint16_t keepalive;

	(void)m, (void)x;
	if (code != 0) {
		log_event(LOG_ERROR, "broker", "state=refused code=%d "
		    "why=\"%s\"", code, mosquitto_reason_string(code));
		return;
	}
	log_event(LOG_INFO, "broker", "state=here session=%s",
	    flags & 1 ? "resumed" : "new");
	if (!(flags & 1))
		held.knowns = 0;
	broker.repeats_end = counters.received + held.rows;
	counters.connects++;
	broker.on = true;
	broker.since_ms = clock_ms();
	broker.hold_ms = 500 * (int64_t)settings.keepalive;
	if (mosquitto_property_read_int16(p, MQTT_PROP_SERVER_KEEP_ALIVE,
	    &keepalive, false) && keepalive > 0)
		broker.hold_ms = 500 * (int64_t)keepalive;
	out_subscribe();
	out_online();
	presence.n = 0; /* all is said again */
	presence.wanted = settings.watch;
}

/* The batch ends with its connection: the broker has it still.  Only when we
 * are parked it is tried on, until something of it is taken. */
static void
broker_lost(const char *why)
{
	int64_t now = clock_ms();

	if (broker.on && now - broker.since_ms > ALIVE_MS)
		broker.pause_ms = 0;
	broker.pause_ms = broker.pause_ms == 0 ? 500 : broker.pause_ms * 2;
	if (broker.pause_ms > 1000 * (int64_t)settings.reconnect_max)
		broker.pause_ms = 1000 * (int64_t)settings.reconnect_max;
	/* Jitter: a thousand boxes must not come back in one second. */
	broker.next_ms = now + broker.pause_ms / 2 +
	    random() % (broker.pause_ms / 2 + 1);
	if (!broker.leaving)
		log_event(LOG_WARN, "broker", "state=away why=\"%s\" "
		    "again=%lldms", why, (long long)(broker.next_ms - now));
	if (!broker.parked)
		held_end();
	broker.tried = broker.on = broker.dropping = false;
}

static void
on_disconnect(struct mosquitto *m, void *x, int rc, const mosquitto_property *p)
{
	(void)m, (void)x, (void)p;
	broker_lost(rc < 0x80 ? mosquitto_strerror(rc) :
	    mosquitto_reason_string(rc));
}

static void
on_publish(struct mosquitto *m, void *x, int mid, int code,
    const mosquitto_property *p)
{
	(void)m, (void)x, (void)mid, (void)p;
	if (broker.unacked > 0)
		broker.unacked--;
	if (code >= 0x80)
		log_event(LOG_WARN, "publish", "code=%d why=\"%s\"", code,
		    mosquitto_reason_string(code));
}

static void
on_subscribe(struct mosquitto *m, void *x, int mid, int n, const int *qos,
    const mosquitto_property *p)
{
	(void)m, (void)x, (void)mid, (void)p;
	for (int i = 0; i < n; i++)
		if (qos[i] >= 0x80)
			log_event(LOG_ERROR, "subscribe", "code=%d why=\"%s\"",
			    qos[i], mosquitto_reason_string(qos[i]));
}

/* The target that a user property names. */
static const char *
broker_own_target(char *to, size_t room, const mosquitto_property *p)
{
	char *name = NULL, *value = NULL;
	const char *why = "the user property `target` is missing";
	bool again = false, found = false;

	while (!found && (p = mosquitto_property_read_string_pair(p,
	    MQTT_PROP_USER_PROPERTY, &name, &value, again)) != NULL) {
		found = strcmp(name, "target") == 0;
		if (found)
			why = topic_own_target(to, room, str_of(value));
		free(name);
		free(value);
		again = true;
	}
	return why;
}

/* The target of a publication, or why it has none.  One prefix may lie below
 * another, so the first that gives a target counts. */
static const char *
broker_target(char *to, size_t room, const char *topic,
    const mosquitto_property *p)
{
	const char *why = "no prefix of ours";

	for (u32 i = 0; i < settings.prefixes && why; i++) {
		const char *rest = topic_below(settings.prefix[i], topic);

		if (rest)
			why = strcmp(rest, "target") == 0 ?
			    broker_own_target(to, room, p) :
			    topic_target(to, room, rest);
	}
	return why;
}

static void
on_message(struct mosquitto *m, void *x, const struct mosquitto_message *msg,
    const mosquitto_property *p)
{
	size_t n = (size_t)msg->payloadlen;
	char target[TARGET_ROOM], *type = NULL;
	const char *why;
	struct held *h;
	u32 expiry = 0;

	(void)m, (void)x;
	if (broker.dropping || presence_retained(msg->topic, n == 0))
		return;
	counters.received++;
	if (n > settings.max_message) {
		out_reject(msg->topic, n, "too-big",
		    str_of("it is over --max-message"));
		return;
	}
	why = strlen(msg->topic) >= TOPIC_ROOM ? "the topic is too long" :
	    broker_target(target, sizeof target, msg->topic, p);
	if (why) {
		out_reject(msg->topic, n, "bad-target", str_of(why));
		return;
	}
	if (!held_has_room(n + 2 * TOPIC_ROOM)) {
		if (msg->qos > 0)
			broker_drop("the batch overflows");
		else
			counters.overrun++;
		return;
	}
	h = held_add(msg->topic, target, msg->payload, n);
	h->mid = msg->qos > 0 ? msg->mid : 0;
	if (counters.received > broker.repeats_end)
		held.knowns = 0; /* the broker gives their numbers anew */
	if (held_knew(h)) {
		held_done(h);
		return;
	}
	mosquitto_property_read_string(p, MQTT_PROP_CONTENT_TYPE, &type, false);
	h->kind = topic_kind(type);
	free(type);
	h->retain = msg->retain;
	if (mosquitto_property_read_int32(p,
	    MQTT_PROP_MESSAGE_EXPIRY_INTERVAL, &expiry, false))
		h->expires_ms = clock_ms() + 1000 * (int64_t)(expiry == 0 ? 1 :
		    expiry > 999999999 ? 999999999 : expiry);
}

static void
on_log(struct mosquitto *m, void *x, int level, const char *text)
{
	(void)m, (void)x;
	if (level == MOSQ_LOG_ERR)
		log_event(LOG_ERROR, "library", "why=\"%s\"", text);
	else if (level != MOSQ_LOG_DEBUG)
		log_event(LOG_DEBUG, "library", "why=\"%s\"", text);
}

static const char *
broker_tls(void)
{
	int rc = MOSQ_ERR_SUCCESS;

	if (!settings.tls)
		return NULL;
	if (settings.cafile || settings.capath)
		rc = mosquitto_tls_set(broker.m, settings.cafile,
		    settings.capath, settings.cert, settings.key, NULL);
	else
		rc = mosquitto_int_option(broker.m, MOSQ_OPT_TLS_USE_OS_CERTS,
		    1);
	if (rc == MOSQ_ERR_SUCCESS && settings.insecure)
		rc = mosquitto_tls_insecure_set(broker.m, true);
	return rc == MOSQ_ERR_SUCCESS ? NULL : mosquitto_strerror(rc);
}

static const char *
broker_init(void)
{
	char client[80], will[320];
	struct mosquitto *m;

	mosquitto_lib_init();
	snprintf(client, sizeof client, "wspush-%s", settings.id);
	snprintf(will, sizeof will, "%s/%s", settings.presence, settings.id);
	broker.m = m = mosquitto_new(client, false, NULL);
	if (!m)
		return strerror(errno);
	mosquitto_int_option(m, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
	mosquitto_int_option(m, MOSQ_OPT_RECEIVE_MAXIMUM,
	    (int)settings.inflight);
	mosquitto_int_option(m, MOSQ_OPT_TCP_NODELAY, 1);
	mosquitto_threaded_set(m, true); /* see the first comment */
	mosquitto_connect_v5_callback_set(m, on_connect);
	mosquitto_disconnect_v5_callback_set(m, on_disconnect);
	mosquitto_publish_v5_callback_set(m, on_publish);
	mosquitto_subscribe_v5_callback_set(m, on_subscribe);
	mosquitto_message_v5_callback_set(m, on_message);
	mosquitto_log_callback_set(m, on_log);
	if (mosquitto_will_set_v5(m, will, 7, "offline", 1, true, NULL) ||
	    (settings.username && mosquitto_username_pw_set(m,
	    settings.username, password[0] ? password : NULL)))
		return "the library takes no will or no user name";
	broker.want_retained = true;
	return broker_tls();
}

/* The first attempt gives the library the properties of CONNECT, which it
 * takes only where it would also wait for TCP; so that one goes nowhere. */
static void
broker_properties(void)
{
	mosquitto_property *p = NULL;

	mosquitto_property_add_int32(&p, MQTT_PROP_SESSION_EXPIRY_INTERVAL,
	    settings.session_expiry);
	/* Twice what we take: what is too big is refused with a reason,
	 * what is far too big the broker drops. */
	mosquitto_property_add_int32(&p, MQTT_PROP_MAXIMUM_PACKET_SIZE,
	    2 * settings.max_message + 65536);
	(void)mosquitto_connect_bind_v5(broker.m, "", 1,
	    (int)settings.keepalive, NULL, p);
	mosquitto_property_free_all(&p);
}

static void
broker_connect(void)
{
	static bool before;
	int rc;

	held_end();
	if (!before)
		broker_properties();
	rc = before ? mosquitto_reconnect_async(broker.m) :
	    mosquitto_connect_async(broker.m, settings.host,
	    (int)settings.port, (int)settings.keepalive);
	before = broker.tried = true;
	if (rc > 0)
		broker_lost(rc == MOSQ_ERR_ERRNO ? strerror(errno) :
		    mosquitto_strerror(rc));
}

static void
broker_tick(int64_t now)
{
	if (mosquitto_socket(broker.m) >= 0) {
		if (held.open > 0 && !broker.dropping &&
		    now - held.since_ms > broker.hold_ms)
			broker_park();
		mosquitto_loop_misc(broker.m);
	} else if (broker.tried) { /* on_disconnect has not been called */
		broker_lost("the TLS handshake failed");
	} else if (now >= broker.next_ms &&
	    (!broker.parked || held.open < broker.parked)) {
		broker.parked = 0;
		broker_connect();
	}
}

/* ----- 12. Loop ---------------------------------------------------------- */

static volatile sig_atomic_t stop_asked, counters_asked;

static void
on_signal(int number)
{
	if (number == SIGUSR1)
		counters_asked = 1;
	else
		stop_asked = 1;
}

/* Signals come inside ppoll() and nowhere else. */
static void
loop_signals(sigset_t *inside)
{
	static const int wanted[] = { SIGTERM, SIGINT, SIGUSR1 };
	struct sigaction a = { .sa_handler = on_signal };
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < COUNT(wanted); i++) {
		sigaddset(&set, wanted[i]);
		sigaction(wanted[i], &a, NULL);
	}
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_BLOCK, &set, inside);
	for (size_t i = 0; i < COUNT(wanted); i++)
		sigdelset(inside, wanted[i]);
}

/* How long nothing is due; not for long, for the library has a clock too. */
static int
loop_wait(int64_t now)
{
	int64_t next = now + (held.open > 0 ? 1000 : 2000);

	if (server.fd < 0 && server.next_ms < next)
		next = server.next_ms;
	/* In a TLS handshake the library does not say which way it waits. */
	if (settings.tls && !broker.on && mosquitto_socket(broker.m) >= 0)
		next = now + 20;
	if (held.open > 0 && server.again_ms > now && server.again_ms < next)
		next = server.again_ms;
	if (mosquitto_socket(broker.m) < 0 && broker.next_ms > now &&
	    broker.next_ms < next)
		next = broker.next_ms;
	return next > now ? (int)(next - now) : 0;
}

static void
loop_turn(const sigset_t *inside, bool stopping)
{
	int64_t now = clock_ms();
	int wait = loop_wait(now);
	struct timespec t = { wait / 1000, wait % 1000 * 1000000 };
	int fd = mosquitto_socket(broker.m);
	bool deaf = stopping ? held.open > 0 || broker.unacked == 0 :
	    held_full();
	bool room = broker.on && broker.unacked < OUT_MAX && !stopping;
	struct pollfd p[4] = {
		{ .fd = fd, .events = (short)((broker.dropping || !deaf ?
		    POLLIN : 0) |
		    (held.open == 0 && !broker.dropping &&
		    (broker.on || !settings.tls) &&
		    mosquitto_want_write(broker.m) ? POLLOUT : 0)) },
		{ .fd = server.fd, .events = (short)(POLLIN |
		    (server.full ? POLLOUT : 0)) },
		{ .fd = room ? server.watch : -1, .events = POLLIN },
		{ .fd = room ? incoming : -1, .events = POLLIN },
	};

	if (counters_asked) {
		counters_asked = 0;
		log_counters();
	}
	if (ppoll(p, COUNT(p), &t, inside) < 0)
		return; /* a signal */
	if (p[1].revents & POLLOUT)
		server.full = false;
	if (p[1].revents & (POLLIN | POLLERR) && server.fd >= 0)
		server_read();
	if (p[0].revents & (POLLERR | POLLHUP))
		broker.dropping = true; /* the rest of it will come again */
	if (p[0].revents & (POLLIN | POLLERR | POLLHUP))
		mosquitto_loop_read(broker.m, 1);
	if (p[2].revents)
		server_read_events();
	if (p[3].revents)
		incoming_read();
	now = clock_ms();
	server_tick(now);
	server_push();
	broker_flush();
	if (!stopping)
		broker_tick(now);
}

/* SIGTERM: the batch and what goes up get two seconds; the broker keeps the
 * batch, and its Last Will says that we are offline, at once. */
static void
loop_stop(const sigset_t *inside)
{
	int64_t end = clock_ms() + STOP_MS;

	log_event(LOG_INFO, "stopping", "held=%u", held.open);
	while ((held.open > 0 || (broker.on && broker.unacked > 0)) &&
	    clock_ms() < end)
		loop_turn(inside, true);
	if (held.open == 0 && broker.on && !broker.dropping) {
		broker.leaving = true;
		mosquitto_disconnect_v5(broker.m,
		    MQTT_RC_DISCONNECT_WITH_WILL_MSG, NULL);
		while (mosquitto_socket(broker.m) >= 0 && clock_ms() < end)
			loop_turn(inside, true);
	}
	if (settings.handler)
		unlink(settings.handler);
	log_counters();
}

int
main(int argc, char **argv)
{
	sigset_t inside;
	const char *why;
	unsigned seed = 1;

	option_words(argc, argv, true);
	if (settings.config)
		option_file(settings.config);
	option_words(argc, argv, false);
	option_check();
	if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0)
		seed = (unsigned)getpid();
	srandom(seed);
	loop_signals(&inside);
	why = broker_init();
	if (why)
		fail(1, "%s", why);
	if (settings.check)
		return 0;
	if (!held_init() || !server_init())
		fail(1, "%s", strerror(errno));
	why = incoming_init();
	if (why)
		fail(1, "--handler %s: %s", settings.handler, why);
	log_event(LOG_INFO, "ready", "id=%s broker=%s:%u push=%s",
	    settings.id, settings.host, settings.port, settings.push);
	while (!stop_asked)
		loop_turn(&inside, false);
	loop_stop(&inside);
	mosquitto_destroy(broker.m);
	mosquitto_lib_cleanup();
	return 0;
}
