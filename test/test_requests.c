/*
 * SPDX-License-Identifier: MIT
 *
 * Room Requests: what a datagram asks for, every refusal with its code
 * and in its order, and the replies both ways.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* The exact copy that the slices of the last request point into. */
static u8 *datagram;

static int
forget_datagram(void **state)
{
	(void)state;
	free(datagram);
	datagram = NULL;
	return 0;
}

static enum refusal
parse_full(struct request *r, const char *p, size_t n, size_t full_n)
{
	free(datagram);
	datagram = malloc(n > 0 ? n : 1);
	assert_non_null(datagram);
	memcpy(datagram, p, n);
	return request_parse(r, n > 0 ? datagram : datagram + 1, n, full_n,
	    true);
}

static enum refusal
parse(struct request *r, const char *text)
{
	return parse_full(r, text, strlen(text), strlen(text));
}

/* Refused so, with a sentence that has these words in it. */
static void
refused(const char *text, enum refusal e, const char *words)
{
	struct request r;
	enum refusal got = parse(&r, text);

	if (got != e || strstr(r.why, words) == NULL)
		fail_msg("%s: %s %s", text, refusal_code(got), r.why);
	assert_int_equal(r.refusal, e);
	assert_in_range(strlen(r.why), 1, sizeof r.why - 1);
	for (const char *c = r.why; *c != '\0'; c++)
		assert_in_range(*c, ' ', '~');
}

static void
accepted(struct request *r, const char *text)
{
	enum refusal e = parse(r, text);

	if (e != REFUSED_NOT)
		fail_msg("%s: %s %s", text, refusal_code(e), r->why);
	assert_string_equal(r->why, "");
}

static void
text_is(struct str s, const char *text)
{
	if (s.n != strlen(text) || (s.n > 0 && !str_is(s, text)))
		fail_msg("\"%.*s\" is not \"%s\"", (int)s.n, s.p, text);
}

static void
a_send_has_its_options_target_and_body(void **state)
{
	struct request r;
	(void)state;

	accepted(&r, "send kind=json ttl=30 ack=5 key=temp retain=1 ref=42 "
	    "$group_id:10002 =open\n{\"temp\":21}\nline 2\n");
	assert_int_equal(r.verb, VERB_SEND);
	assert_int_equal(r.kind, KIND_JSON);
	assert_int_equal(r.ttl_s, 30);
	assert_int_equal(r.ack_s, 5);
	text_is(r.key, "temp");
	assert_true(request_has(&r, OPTION_RETAIN));
	text_is(r.ref, "42");
	text_is(r.target, "$group_id:10002 =open");
	text_is(r.body, "{\"temp\":21}\nline 2\n");
	assert_int_equal(r.body_full, 19);
}

static void
what_is_not_given_has_its_default(void **state)
{
	struct request r;
	(void)state;

	accepted(&r, "send *");
	assert_int_equal(r.kind, KIND_TEXT);
	assert_int_equal(r.ttl_s, 0);
	assert_int_equal(r.ack_s, 0);
	assert_int_equal(r.given, 0);
	assert_false(request_has(&r, OPTION_RETAIN));
	assert_int_equal(r.ref.n, 0);
	assert_int_equal(r.key.n, 0);
	text_is(r.target, "*");
	text_is(r.body, "");
	accepted(&r, "close *");
	assert_int_equal(r.code, 1000);
	accepted(&r, "list");
	text_is(r.target, "*");
	assert_int_equal(r.kind, KIND_TEXT);
	accepted(&r, "watch\n");
	text_is(r.target, "*");
	accepted(&r, "tag $a");
	assert_false(request_has(&r, OPTION_REPLACE));
}

static void
every_verb_takes_its_own_options(void **state)
{
	static const char *const verb[] = { "send *", "list", "tag *",
		"close *", "abort *", "stats", "watch", "ping" };
	static const struct {
		const char *option;
		const char *verbs; /* '1' where verb[i] takes it */
	} rows[] = {
		{ "ref=x", "11111111" }, { "kind=text", "10000000" },
		{ "ttl=1", "10000000" }, { "ack=1", "10000000" },
		{ "key=k", "10000000" }, { "retain=1", "10000000" },
		{ "format=json", "01000100" }, { "from=7", "01000000" },
		{ "replace=1", "00100000" }, { "code=4000", "00010000" },
		{ "bogus=1", "00000000" },
	};
	struct request r;
	(void)state;

	for (size_t i = 0; i < COUNT(verb); i++) {
		for (size_t k = 0; k < COUNT(rows); k++) {
			char text[64];
			const char *rest = strchr(verb[i], ' ');

			snprintf(text, sizeof text, "%.*s %s%s",
			    (int)strcspn(verb[i], " "), verb[i],
			    rows[k].option, rest != NULL ? rest : "");
			if (rows[k].verbs[i] == '1') {
				accepted(&r, text);
				assert_int_equal(r.verb, i);
			} else {
				refused(text, REFUSED_BAD_OPTION,
				    "has no option");
			}
		}
	}
}

static void
option_values_reach_the_request(void **state)
{
	struct request r;
	(void)state;

	accepted(&r, "list format=json from=18446744073709551615 $a");
	assert_int_equal(r.kind, KIND_JSON);
	assert_true(r.from == UINT64_MAX);
	assert_true(r.given & OPTION_BIT(OPTION_FROM));
	accepted(&r, "stats format=text");
	assert_int_equal(r.kind, KIND_TEXT);
	accepted(&r, "tag replace=1 *\na:1");
	assert_true(request_has(&r, OPTION_REPLACE));
	text_is(r.body, "a:1");
	accepted(&r, "close code=4999 *\nbye");
	assert_int_equal(r.code, 4999);
	accepted(&r, "send kind=binary *\nx");
	assert_int_equal(r.kind, KIND_BINARY);
	accepted(&r, "send key=a=b=c *");
	text_is(r.key, "a=b=c");
}

static void
limits_of_options_are_exact(void **state)
{
	struct request r;
	char text[256], word[70];
	(void)state;

	accepted(&r, "send ttl=0 *");
	accepted(&r, "send ttl=999999999 *");
	refused("send ttl=1000000000 *", REFUSED_BAD_OPTION, "ttl takes");
	refused("send ttl=-1 *", REFUSED_BAD_OPTION, "ttl takes");
	refused("send ttl= *", REFUSED_BAD_OPTION, "ttl takes");
	refused("send ack=0 *", REFUSED_BAD_OPTION, "ack takes");
	accepted(&r, "send ack=1 *");
	accepted(&r, "send ack=3600 *");
	refused("send ack=3601 *", REFUSED_BAD_OPTION, "ack takes");
	refused("send retain=0 *", REFUSED_BAD_OPTION, "retain takes");
	refused("tag replace=yes *", REFUSED_BAD_OPTION, "replace takes");
	refused("send kind=xml *", REFUSED_BAD_OPTION, "text, json or binary");
	refused("send kind= *", REFUSED_BAD_OPTION, "kind takes");
	refused("list format=xml", REFUSED_BAD_OPTION, "format takes");
	refused("list from=x1", REFUSED_BAD_OPTION, "from takes");
	refused("list from=", REFUSED_BAD_OPTION, "from takes");
	for (size_t n = 63; n <= 65; n++) {
		memset(word, 'k', n);
		word[n] = '\0';
		snprintf(text, sizeof text, "send key=%s *", word);
		assert_int_equal(parse(&r, text), n <= 64 ? REFUSED_NOT
		                                         : REFUSED_BAD_OPTION);
		snprintf(text, sizeof text, "send ref=%s *", word);
		assert_int_equal(parse(&r, text), n <= 64 ? REFUSED_NOT
		                                         : REFUSED_BAD_OPTION);
		assert_int_equal(r.ref.n, n <= 64 ? n : 0);
	}
	refused("send key= *", REFUSED_BAD_OPTION, "key takes");
	refused("send ref= *", REFUSED_BAD_OPTION, "ref takes");
	refused("send ref=a\x01 *", REFUSED_BAD_OPTION, "ref takes");
	refused("send ref=\xff *", REFUSED_BAD_OPTION, "ref takes");
}

static void
a_close_code_that_may_not_be_sent_is_a_bad_option(void **state)
{
	static const char *const bad[] = { "0", "999", "1004", "1005", "1006",
		"1015", "1016", "2999", "5000", "66536", "x" };
	struct request r;
	char text[32];
	(void)state;

	for (size_t i = 0; i < COUNT(bad); i++) {
		snprintf(text, sizeof text, "close code=%s *", bad[i]);
		refused(text, REFUSED_BAD_OPTION, "code takes");
		assert_int_equal(parse(&r, text), REFUSED_BAD_OPTION);
		assert_int_equal(r.code, 1000);
	}
	accepted(&r, "close code=1014 *");
	accepted(&r, "close code=3000 *");
}

static void
a_repeated_option_is_refused(void **state)
{
	struct request r;
	(void)state;

	refused("send ttl=1 ttl=1 *", REFUSED_BAD_OPTION, "ttl is given twice");
	refused("send ref=a ref=b *", REFUSED_BAD_OPTION, "ref is given twice");
	(void)parse(&r, "send ref=a ref=b *");
	text_is(r.ref, "a");
}

static void
a_word_that_is_no_option_is_refused_before_the_target(void **state)
{
	refused("send text *", REFUSED_BAD_OPTION, "\"text\"");
	refused("send kind=text,x *", REFUSED_BAD_OPTION, "text,x");
	refused("ping x", REFUSED_BAD_OPTION, "\"x\"");
	(void)state;
}

static void
the_target_begins_at_the_first_of_its_four_characters(void **state)
{
	struct request r;
	(void)state;

	accepted(&r, "send kind=text * kind=json");
	text_is(r.target, "* kind=json");
	accepted(&r, "send   =away   $a:b  ");
	text_is(r.target, "=away   $a:b");
	accepted(&r, "abort /services/x-s-1");
	text_is(r.target, "/services/x-s-1");
	accepted(&r, "  ping  ");
	assert_int_equal(r.verb, VERB_PING);
}

static void
a_datagram_without_a_verb_is_a_bad_request(void **state)
{
	struct request r;
	(void)state;

	refused("", REFUSED_BAD_REQUEST, "verb");
	refused("\n", REFUSED_BAD_REQUEST, "verb");
	refused("   \nbody", REFUSED_BAD_REQUEST, "verb");
	refused("* ref=a", REFUSED_BAD_REQUEST, "verb");
	refused("$a\nx", REFUSED_BAD_REQUEST, "verb");
	(void)parse(&r, "/services/x ref=a");
	assert_int_equal(r.ref.n, 0);
}

static void
a_nul_is_refused_in_the_header_and_taken_in_the_body(void **state)
{
	struct request r;
	(void)state;

	assert_int_equal(parse_full(&r, "send ref=a $a\0", 14, 14),
	    REFUSED_BAD_REQUEST);
	assert_int_equal(r.ref.n, 0);
	assert_int_equal(parse_full(&r, "\0", 1, 1), REFUSED_BAD_REQUEST);
	assert_int_equal(parse_full(&r, "send *\n\0\0", 9, 9), REFUSED_NOT);
	assert_int_equal(r.body.n, 2);
}

static void
a_header_line_is_at_most_1024_bytes(void **state)
{
	char text[1100];
	struct request r;
	(void)state;

	for (size_t n = 1023; n <= 1025; n++) {
		memset(text, 'x', sizeof text);
		memcpy(text, "send $", 6);
		text[n] = '\n';
		assert_int_equal(parse_full(&r, text, n + 3, n + 3),
		    n <= 1024 ? REFUSED_NOT : REFUSED_BAD_REQUEST);
		assert_int_equal(parse_full(&r, text, n, n),
		    n <= 1024 ? REFUSED_NOT : REFUSED_BAD_REQUEST);
	}
	assert_int_equal(parse_full(&r, "send *", 6, 2000),
	    REFUSED_BAD_REQUEST);
}

static void
an_unknown_verb_keeps_its_ref(void **state)
{
	struct request r;
	(void)state;

	refused("frobnicate *", REFUSED_UNKNOWN_VERB, "\"frobnicate\"");
	refused("SEND *", REFUSED_UNKNOWN_VERB, "\"SEND\"");
	refused("kind=json $x", REFUSED_UNKNOWN_VERB, "\"kind=json\"");
	(void)parse(&r, "frobnicate x kind=9 ref= ref=one ref=two * ref=three");
	assert_int_equal(r.refusal, REFUSED_UNKNOWN_VERB);
	text_is(r.ref, "one");
	(void)parse(&r, "frobnicate * ref=three");
	assert_int_equal(r.ref.n, 0);
}

static void
a_bad_option_keeps_the_ref_before_or_after_it(void **state)
{
	struct request r;
	(void)state;

	assert_int_equal(parse(&r, "send x=1 ref=r *"), REFUSED_BAD_OPTION);
	text_is(r.ref, "r");
	assert_int_equal(parse(&r, "send ref=r x *"), REFUSED_BAD_OPTION);
	text_is(r.ref, "r");
	assert_int_equal(parse(&r, "send x=1 * ref=r"), REFUSED_BAD_OPTION);
	assert_int_equal(r.ref.n, 0);
}

static void
the_first_reason_in_the_order_of_codes_wins(void **state)
{
	struct request r;
	(void)state;

	assert_int_equal(request_parse(&r, (const u8 *)"nope x=1", 8, 8,
	    false), REFUSED_UNKNOWN_VERB);
	assert_int_equal(request_parse(&r, (const u8 *)"send x=1 ref=z", 14,
	    14, false), REFUSED_DENIED);
	text_is(r.ref, "z");
	assert_int_equal(request_parse(&r, (const u8 *)"  ", 2, 2, false),
	    REFUSED_BAD_REQUEST);
	refused("send x=1", REFUSED_BAD_OPTION, "\"x\"");
	refused("ping x=1 *", REFUSED_BAD_OPTION, "\"x\"");
	refused("send x=1 y=2 *", REFUSED_BAD_OPTION, "\"x\"");
}

static void
a_target_is_asked_for_where_there_must_be_one_and_nowhere_else(void **state)
{
	(void)state;
	refused("send\nhello", REFUSED_BAD_TARGET, "send needs a target");
	refused("tag ref=a", REFUSED_BAD_TARGET, "tag needs a target");
	refused("close", REFUSED_BAD_TARGET, "close needs a target");
	refused("abort", REFUSED_BAD_TARGET, "abort needs a target");
	refused("stats *", REFUSED_BAD_TARGET, "stats takes no target");
	refused("ping $a", REFUSED_BAD_TARGET, "ping takes no target");
}

static void
a_sentence_shows_no_raw_bytes_of_the_sender(void **state)
{
	char text[600];
	(void)state;

	refused("\x1b[31m\xff\x07 *", REFUSED_UNKNOWN_VERB, "\"?[31m??\"");
	refused("send \x1b=1 *", REFUSED_BAD_OPTION, "\"?\"");
	memset(text, 'v', 500);
	strcpy(text + 500, " *");
	refused(text, REFUSED_UNKNOWN_VERB, "vvv...\"");
	memcpy(text, "send kind=", 10);
	refused(text, REFUSED_BAD_OPTION, "vvv...\"");
	memcpy(text, "send from=", 10);
	refused(text, REFUSED_BAD_OPTION, "has no option \"from\"");
	memcpy(text, "list from=", 10);
	refused(text, REFUSED_BAD_OPTION, "vvv...\"");
}

static void
the_longest_sentence_fits(void **state)
{
	char text[256];
	struct request r;
	(void)state;

	for (size_t i = 0; i < COUNT(option_rules); i++) {
		for (size_t v = 0; v < COUNT(verb_rules); v++) {
			snprintf(text, sizeof text, "%s %s=%070d *",
			    verb_rules[v].name, option_rules[i].name, -1);
			if (parse(&r, text) == REFUSED_BAD_OPTION)
				assert_true(strchr(r.why, '"') != NULL
				    || strstr(r.why, "takes the number"));
		}
	}
	snprintf(text, sizeof text, "%070d *", 0);
	assert_int_equal(parse(&r, text), REFUSED_UNKNOWN_VERB);
	assert_non_null(strstr(r.why, "watch and ping"));
	snprintf(text, sizeof text, "send %070d *", 0);
	assert_int_equal(parse(&r, text), REFUSED_BAD_OPTION);
	assert_non_null(strstr(r.why, "of a target"));
}

static void
a_message_may_be_as_long_as_the_limit(void **state)
{
	struct request r;
	(void)state;

	for (size_t max = 4; max <= 6; max++) {
		accepted(&r, "send *\nhello");
		assert_int_equal(request_body(&r, max),
		    max >= 5 ? REFUSED_NOT : REFUSED_TOO_BIG);
		accepted(&r, "tag *\nab:cd");
		assert_int_equal(request_body(&r, max),
		    max >= 5 ? REFUSED_NOT : REFUSED_TOO_BIG);
	}
	assert_int_equal(parse_full(&r, "send *\nhel", 10, 12), REFUSED_NOT);
	assert_int_equal(r.body_full, 5);
	assert_int_equal(request_body(&r, 4), REFUSED_TOO_BIG);
	assert_non_null(strstr(r.why, "--max-message"));
}

static void
text_and_json_are_utf8_and_binary_is_anything(void **state)
{
	struct request r;
	(void)state;

	accepted(&r, "send *\n\xc3\xa9");
	assert_int_equal(request_body(&r, 9), REFUSED_NOT);
	accepted(&r, "send *\n\xc3");
	assert_int_equal(request_body(&r, 9), REFUSED_BAD_UTF8);
	assert_non_null(strstr(r.why, "kind=binary"));
	accepted(&r, "send kind=json *\n\"\xff\"");
	assert_int_equal(request_body(&r, 9), REFUSED_BAD_UTF8);
	accepted(&r, "send kind=binary *\n\xff");
	assert_int_equal(request_body(&r, 9), REFUSED_NOT);
	accepted(&r, "send *\n\xff\xff");
	assert_int_equal(request_body(&r, 1), REFUSED_TOO_BIG);
}

static void
a_close_reason_is_utf8_of_at_most_123_bytes(void **state)
{
	char text[140];
	struct request r;
	(void)state;

	for (size_t n = 122; n <= 124; n++) {
		memset(text, 'r', sizeof text);
		memcpy(text, "close *\n", 8);
		text[8 + n] = '\0';
		accepted(&r, text);
		assert_int_equal(request_body(&r, 65536),
		    n <= 123 ? REFUSED_NOT : REFUSED_TOO_BIG);
	}
	accepted(&r, "close *\n\xe2\x82");
	assert_int_equal(request_body(&r, 65536), REFUSED_BAD_UTF8);
	assert_non_null(strstr(r.why, "UTF-8"));
}

static void
a_body_nobody_asked_for_is_ignored(void **state)
{
	static const char *const text[] = { "list *\n\xff\xff", "abort *\n\xff",
		"stats\n\xff", "watch\n\xff", "ping\n\xff" };
	struct request r;
	(void)state;

	for (size_t i = 0; i < COUNT(text); i++) {
		accepted(&r, text[i]);
		assert_int_equal(r.body.n, 0);
		assert_int_equal(request_body(&r, 0), REFUSED_NOT);
	}
}

static void
a_service_answers_with_allow_or_deny(void **state)
{
	struct request r;
	(void)state;

	accepted(&r, "allow 17 user:ann  $x:a=b");
	assert_int_equal(r.verb, VERB_ALLOW);
	assert_int_equal(r.ticket, 17);
	text_is(r.target, " user:ann  $x:a=b");
	accepted(&r, "allow ref=a 18446744073709551615");
	assert_true(r.ticket == UINT64_MAX);
	accepted(&r, "deny 3");
	assert_int_equal(r.code, 403);
	accepted(&r, "deny 3 429");
	assert_int_equal(r.code, 429);
	refused("allow", REFUSED_BAD_OPTION, "number of the auth event");
	refused("allow *", REFUSED_BAD_OPTION, "number of the auth event");
	refused("allow 3x", REFUSED_BAD_OPTION, "number of the auth event");
	refused("deny 3 200", REFUSED_BAD_OPTION, "429");
	refused("deny 3 403 x", REFUSED_BAD_OPTION, "429");
	refused("deny ttl=3 3", REFUSED_BAD_OPTION, "deny has no option");
}

static void
no_prefix_of_a_request_is_read_beyond_its_end(void **state)
{
	static const char text[] = "send kind=json ttl=30 ref=42 $g:10002\nab";
	struct request r;
	(void)state;

	for (size_t n = 0; n < sizeof text; n++) {
		(void)parse_full(&r, text, n, n);
		(void)request_body(&r, 1);
	}
}

static void
every_refusal_has_its_code(void **state)
{
	static const char *const code[] = { "ok", "bad-request",
		"unknown-verb", "denied", "bad-option", "bad-target",
		"too-big", "bad-utf8", "bad-tag", "unknown-socket",
		"queue-full", "no-room" };
	(void)state;

	for (size_t i = 0; i < COUNT(code); i++)
		assert_string_equal(refusal_code((enum refusal)i), code[i]);
}

/* The reader works on an exact copy, kept until the next one. */
static enum reply_kind
read_reply(struct reply *r, const void *p, size_t n)
{
	free(datagram);
	datagram = malloc(n > 0 ? n : 1);
	assert_non_null(datagram);
	memcpy(datagram, p, n);
	return reply_parse(r, (char *)datagram, n);
}

static void
an_ok_reply_is_written_and_read(void **state)
{
	char text[200];
	struct out o = out_to(text, sizeof text);
	struct reply r;
	(void)state;

	reply_ok(&o, 4);
	reply_number(&o, "open", 3);
	reply_number(&o, "away", 1);
	reply_number(&o, "full", 2);
	reply_number(&o, "next", 7);
	reply_ref(&o, STR("r7"));
	reply_ref(&o, STR(""));
	out_text(&o, "\nrow 1\nrow 2\n");
	assert_int_equal(o.n, strlen("ok 4 open=3 away=1 full=2 next=7 ref=r7"
	    "\nrow 1\nrow 2\n"));
	assert_memory_equal(text, "ok 4 open=3 away=1 full=2 next=7 ref=r7\n",
	    40);
	assert_int_equal(read_reply(&r, text, o.n), REPLY_OK);
	assert_int_equal(r.kind, REPLY_OK);
	assert_int_equal(r.count, 4);
	assert_int_equal(r.open, 3);
	assert_int_equal(r.away, 1);
	assert_int_equal(r.full, 2);
	assert_int_equal(r.next, 7);
	text_is(r.ref, "r7");
	text_is(r.body, "row 1\nrow 2\n");
}

static void
names_of_a_reply_stand_in_any_order_and_may_be_new(void **state)
{
	struct reply r;
	(void)state;

	assert_int_equal(read_reply(&r, "ok 1 x=y away=1 ref=q open=0\n", 29),
	    REPLY_OK);
	assert_int_equal(r.away, 1);
	assert_int_equal(r.full, 0);
	assert_int_equal(r.next, 0);
	text_is(r.ref, "q");
	text_is(r.body, "");
	assert_int_equal(read_reply(&r, "ok 0\n", 5), REPLY_OK);
	assert_int_equal(r.count, 0);
}

static void
an_error_reply_is_written_and_read(void **state)
{
	char text[200];
	struct out o = out_to(text, sizeof text);
	struct reply r;
	(void)state;

	reply_error(&o, REFUSED_BAD_TAG, STR("r7"), "the name is empty");
	assert_int_equal(o.n, 39);
	assert_memory_equal(text, "error bad-tag ref=r7 the name is empty\n",
	    39);
	assert_int_equal(read_reply(&r, text, o.n), REPLY_ERROR);
	text_is(r.code, "bad-tag");
	text_is(r.ref, "r7");
	text_is(r.sentence, "the name is empty");
	o = out_to(text, sizeof text);
	reply_error(&o, REFUSED_NO_ROOM, STR(""), "the store is full");
	assert_memory_equal(text, "error no-room the store is full\n", o.n);
	assert_int_equal(read_reply(&r, text, o.n), REPLY_ERROR);
	text_is(r.code, "no-room");
	assert_int_equal(r.ref.n, 0);
	text_is(r.sentence, "the store is full");
}

static void
an_acked_reply_is_written_and_read(void **state)
{
	char text[200];
	struct out o = out_to(text, sizeof text);
	struct reply r;
	(void)state;

	reply_acked(&o, 2, 3, STR("r7"));
	assert_int_equal(o.n, 20);
	assert_memory_equal(text, "acked 2 of 3 ref=r7\n", 20);
	assert_int_equal(read_reply(&r, text, o.n), REPLY_ACKED);
	assert_int_equal(r.count, 2);
	assert_int_equal(r.of, 3);
	text_is(r.ref, "r7");
}

static void
what_is_no_reply_is_said_to_be_none(void **state)
{
	static const char *const bad[] = { "", "\n", "ok", "ok x\n", "ok 1 2\n",
		"ok 1 open=x\n", "ok 1 next=\n", "okay 1\n", "error\n",
		"acked 1\n", "acked 1 of\n", "acked 1 in 2\n",
		"acked x of 2\n", "open /services/a-s-1\n" };
	struct reply r;
	(void)state;

	for (size_t i = 0; i < COUNT(bad); i++) {
		if (read_reply(&r, bad[i], strlen(bad[i])) != REPLY_BAD
		    || r.kind != REPLY_BAD)
			fail_msg("taken: %s", bad[i]);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_send_has_its_options_target_and_body),
		cmocka_unit_test(what_is_not_given_has_its_default),
		cmocka_unit_test(every_verb_takes_its_own_options),
		cmocka_unit_test(option_values_reach_the_request),
		cmocka_unit_test(limits_of_options_are_exact),
		cmocka_unit_test(
		    a_close_code_that_may_not_be_sent_is_a_bad_option),
		cmocka_unit_test(a_repeated_option_is_refused),
		cmocka_unit_test(
		    a_word_that_is_no_option_is_refused_before_the_target),
		cmocka_unit_test(
		    the_target_begins_at_the_first_of_its_four_characters),
		cmocka_unit_test(a_datagram_without_a_verb_is_a_bad_request),
		cmocka_unit_test(
		    a_nul_is_refused_in_the_header_and_taken_in_the_body),
		cmocka_unit_test(a_header_line_is_at_most_1024_bytes),
		cmocka_unit_test(an_unknown_verb_keeps_its_ref),
		cmocka_unit_test(
		    a_bad_option_keeps_the_ref_before_or_after_it),
		cmocka_unit_test(the_first_reason_in_the_order_of_codes_wins),
		cmocka_unit_test(
	    a_target_is_asked_for_where_there_must_be_one_and_nowhere_else),
		cmocka_unit_test(a_sentence_shows_no_raw_bytes_of_the_sender),
		cmocka_unit_test(the_longest_sentence_fits),
		cmocka_unit_test(a_message_may_be_as_long_as_the_limit),
		cmocka_unit_test(
		    text_and_json_are_utf8_and_binary_is_anything),
		cmocka_unit_test(a_close_reason_is_utf8_of_at_most_123_bytes),
		cmocka_unit_test(a_body_nobody_asked_for_is_ignored),
		cmocka_unit_test(a_service_answers_with_allow_or_deny),
		cmocka_unit_test(
		    no_prefix_of_a_request_is_read_beyond_its_end),
		cmocka_unit_test(every_refusal_has_its_code),
		cmocka_unit_test(an_ok_reply_is_written_and_read),
		cmocka_unit_test(
		    names_of_a_reply_stand_in_any_order_and_may_be_new),
		cmocka_unit_test(an_error_reply_is_written_and_read),
		cmocka_unit_test(an_acked_reply_is_written_and_read),
		cmocka_unit_test(what_is_no_reply_is_said_to_be_none),
	};

	return cmocka_run_group_tests(tests, NULL, forget_datagram);
}
