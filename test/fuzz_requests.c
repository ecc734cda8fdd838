/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzzes requests, targets, tag lines, ids and replies: no byte beyond the
 * end, every slice inside the datagram, every refusal with one printable
 * sentence, and what is written reads back the same.
 */
#include "../wspush.c"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
	do { \
		if (!(condition)) \
			abort(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void
sentence(const char *why, size_t room)
{
	size_t n = strlen(why);

	CHECK(n > 0 && n < room);
	for (size_t i = 0; i < n; i++)
		CHECK(why[i] >= ' ' && why[i] <= '~');
}

static void
inside(struct str s, const void *p, size_t n)
{
	const char *begin = p;

	CHECK(s.n == 0 || (s.p >= begin && s.p + s.n <= begin + n));
}

static void
check_lists(const struct target *t)
{
	for (size_t i = 0; i < t->n; i++) {
		struct str rest = t->terms[i].value, value;
		size_t sum = 0;

		inside(t->terms[i].name, t->text.p, t->text.n);
		inside(rest, t->text.p, t->text.n);
		if (t->terms[i].kind != TERM_TAG_LIST)
			continue;
		while (split_next(&rest, ',', &value)) {
			CHECK(target_list_has(t->terms[i].value, value));
			sum += value.n + 1;
		}
		CHECK(sum == t->terms[i].value.n + 1);
	}
}

/* A good target has a canonical text, which is good too and its own. */
static void
check_target(struct str text)
{
	static struct target t, again;
	static char canonical[2048], twice[2048];
	struct out o = out_to(canonical, sizeof canonical);
	struct out o2 = out_to(twice, sizeof twice);
	const char *why = target_parse(&t, text);

	if (why) {
		sentence(why, 200);
		return;
	}
	check_lists(&t);
	target_text(&o, &t);
	if (o.full)
		return;
	CHECK(!target_parse(&again, (struct str){ canonical, o.n }));
	CHECK(again.n == t.n && !again.socket == !t.socket);
	CHECK(!t.socket || (str_eq(again.socket->value, t.socket->value) &&
	    str_eq(again.socket->name, t.socket->name) &&
	    again.socket->stateful == t.socket->stateful));
	for (size_t i = 0; i < t.n; i++)
		CHECK(again.terms[i].kind == t.terms[i].kind);
	target_text(&o2, &again);
	CHECK(o2.n == o.n && memcmp(canonical, twice, o.n) == 0);
}

static void
check_tags(struct str text)
{
	struct str rest = text, name, value;
	struct tag_line t;
	const char *why;
	int n;

	while ((n = tag_line_next(&t, &rest, '\n')) > 0) {
		CHECK(tag_name_valid(t.name));
		CHECK(t.remove || tag_value_valid(t.value));
		inside(t.name, text.p, text.n);
	}
	if (n < 0)
		sentence(t.why, 200);
	rest = text;
	n = 0;
	while (id_tag_next(&rest, &name, &value)) {
		inside(name, text.p, text.n);
		inside(value, text.p, text.n);
		CHECK(name.n > 0 && memchr(name.p, ':', name.n) == NULL);
		n++;
	}
	if (text.n > WSP_MAX_ID)
		return;
	why = id_tags_check(text);
	if (why)
		sentence(why, 200);
	else
		CHECK(n <= 1 + WSP_MAX_ID / 4);
}

/* Every refusal can be told and is understood. */
static void
check_error(const struct request *r)
{
	char text[512];
	struct out o = out_to(text, sizeof text);
	struct reply reply;

	sentence(r->why, sizeof r->why);
	reply_error(&o, r->refusal, r->ref, r->why);
	CHECK(!o.full);
	CHECK(reply_parse(&reply, text, o.n) == REPLY_ERROR);
	CHECK(str_is(reply.code, refusal_code(r->refusal)));
	CHECK(str_eq(reply.ref, r->ref));
	CHECK(str_is(reply.sentence, r->why));
}

static void
check_request(const u8 *p, size_t n, size_t full_n)
{
	struct request r;
	enum refusal e = request_parse(&r, p, n, full_n, n % 16 != 15);

	CHECK(e == r.refusal);
	inside(r.ref, p, n);
	inside(r.body, p, n);
	if (e != REFUSED_NOT) {
		check_error(&r);
		return;
	}
	CHECK(r.why[0] == '\0');
	CHECK(r.ttl_s <= 999999999 && r.ack_s <= 3600);
	CHECK(r.key.n <= WSP_MAX_KEY && r.ref.n <= WSP_MAX_REF);
	CHECK(r.verb == VERB_DENY || close_code_to_send(r.code));
	check_target(r.target);
	if (r.verb == VERB_TAG)
		check_tags(r.body);
	e = request_body(&r, 64);
	CHECK(e == r.refusal);
	if (e != REFUSED_NOT)
		check_error(&r);
	else if (r.verb == VERB_SEND)
		CHECK(r.body.n <= 64 && (r.kind == KIND_BINARY
		    || text_is_utf8(r.body.p, r.body.n)));
}

/* The first byte chooses what the rest is read as. */
int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct str text;
	struct reply reply;
	u8 *copy;

	if (n < 1 || n > 4096)
		return 0;
	copy = malloc(n > 1 ? n - 1 : 1);
	CHECK(copy != NULL);
	memcpy(copy, p + 1, n - 1);
	text = (struct str){ (char *)copy, n - 1 };
	switch (p[0] % 5) {
	case 0:
		check_request(copy, text.n, text.n);
		break;
	case 1:
		check_request(copy, text.n, text.n + p[0]);
		break;
	case 2:
		check_target(text);
		break;
	case 3:
		check_tags(text);
		break;
	case 4:
		(void)reply_parse(&reply, text.p, text.n);
		inside(reply.body, text.p, text.n);
		inside(reply.sentence, text.p, text.n);
		break;
	}
	free(copy);
	return 0;
}
