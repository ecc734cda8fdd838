/*
 * SPDX-License-Identifier: MIT
 *
 * Rooms Signatures and Tokens: the examples of RFC 7515, everything that
 * Centrifugo and Mercure test of theirs, every limit, and where a request has
 * its token.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define NOW INT64_C(1800000000)

/* RFC 7515, A.1 and A.3: one payload, a secret, a key pair. */
#define RFC_CLAIMS \
	"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGx" \
	"lLmNvbS9pc19yb290Ijp0cnVlfQ"
#define RFC_HS256 \
	"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." RFC_CLAIMS \
	".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
#define RFC_ES256 \
	"eyJhbGciOiJFUzI1NiJ9." RFC_CLAIMS ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-" \
	"F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
#define RFC_NONE "eyJhbGciOiJub25lIn0." RFC_CLAIMS "."
#define RFC_SECRET \
	"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4" \
	"hcgUuTwjAzZr1Z9CAow"
#define RFC_X    "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"
#define RFC_Y    "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
#define RFC_D    "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"
#define RFC_TIME INT64_C(1300819380)

static struct token_key hs, es, es_public, other_hs, other_es;
static struct token t;
static const char *why;

static int
make_keys(void **state)
{
	u8 secret[64], x[32], point[65] = { 4 };

	(void)state;
	assert_int_equal(base64_decode(secret, 64, STR(RFC_SECRET), BASE64URL),
	    64);
	token_key_hs256(&hs, secret, 64);
	token_key_hs256(&other_hs, secret, 63);
	assert_int_equal(base64_decode(point + 1, 32, STR(RFC_X), BASE64URL),
	    32);
	assert_int_equal(base64_decode(point + 33, 32, STR(RFC_Y), BASE64URL),
	    32);
	assert_true(token_key_es256(&es_public, point));
	assert_int_equal(base64_decode(x, 32, STR(RFC_D), BASE64URL),
	    32);
	assert_true(token_key_private(&es, x, 32));
	x[31]++;
	assert_true(token_key_private(&other_es, x, 32));
	return 0;
}

/* token_check() on an exact copy. */
static int
check(struct str text, const struct token_key *key, size_t keys,
    const struct token_use *use)
{
	char *copy = malloc(text.n > 0 ? text.n : 1);
	int status;

	memcpy(copy, text.p, text.n);
	status = token_check(&t, &why, (struct str){ copy, text.n }, key,
	    keys, use);
	free(copy);
	assert_true((status == 0) == (why == NULL));
	return status;
}

/* A token with this header and these claims, signed with the secret. */
static int
check_raw(const char *header, const void *claims, size_t n,
    const struct token_use *use)
{
	static char text[2 * WSP_MAX_TOKEN];
	struct out o = out_to(text, sizeof text);
	u8 sig[TOKEN_SIGNATURE];

	token_put(&o, header, strlen(header));
	out_char(&o, '.');
	token_put(&o, claims, n);
	n = token_sign(sig, &hs, (struct str){ o.p, o.n });
	out_char(&o, '.');
	token_put(&o, sig, n);
	assert_false(o.full);
	return check((struct str){ o.p, o.n }, &hs, 1, use);
}

/* The same with a good header and `exp`; `claims` are more members. */
static int
check_claims(const char *claims, const struct token_use *use)
{
	char text[2 * WSP_MAX_TOKEN];
	int n = snprintf(text, sizeof text, "{\"exp\":%lld%s%s}",
	    (long long)NOW, *claims ? "," : "", claims);

	return check_raw("{\"alg\":\"HS256\"}", text, (size_t)n, use);
}

static int
check_for(const char *claims, const char *service, const char *id)
{
	struct token_use use = { .service = text_of(service),
		.id = text_of(id), .now = NOW };

	return check_claims(claims, &use);
}

static const struct token_use now = { .now = NOW };

#define ALLOWS(claims, service, id) \
	assert_int_equal(check_for(claims, service, id), 0)
#define FORBIDS(claims, service, id) \
	assert_int_equal(check_for(claims, service, id), 403)
#define REFUSES(claims) assert_int_equal(check_for(claims, "", ""), 401)

static void
the_examples_of_rfc_7515_are_taken(void **state)
{
	struct token_use use = { .now = RFC_TIME - 1 };

	(void)state;
	assert_int_equal(check(STR(RFC_HS256), &hs, 1, &use), 0);
	assert_int_equal(t.expires, RFC_TIME);
	assert_int_equal(check(STR(RFC_ES256), &es, 1, &use), 0);
	assert_int_equal(check(STR(RFC_ES256), &es_public, 1, &use), 0);
	assert_memory_equal(t.claims.p, "{\"iss\":\"joe\",", 13);
	assert_memory_equal(es.point, es_public.point, 65);
}

static void
an_unsigned_token_is_refused(void **state)
{
	static const char *const header[] = { "{\"alg\":\"none\"}",
		"{\"alg\":\"None\"}", "{\"alg\":\"\"}", "{\"alg\":null}",
		"{\"alg\":[\"HS256\"]}", "{\"alg\":7}", "{}", "{\"typ\":\"JWT\"}" };
	struct token_use use = { .now = RFC_TIME };

	(void)state;
	assert_int_equal(check(STR(RFC_NONE), &hs, 1, &use), 401);
	for (size_t i = 0; i < COUNT(header); i++)
		assert_int_equal(check_raw(header[i],
		    "{\"exp\":1800000000}", 18, &now), 401);
}

static void
the_key_decides_the_algorithm_and_not_the_token(void **state)
{
	static const char *const alg[] = { "HS384", "HS512", "RS256", "ES384",
		"ES512", "PS256", "EdDSA", "hs256", "HS256 " };
	struct token_use use = { .now = RFC_TIME };
	struct token_key confused;
	char header[64], text[512], pem[] = "-----BEGIN PUBLIC KEY-----";
	struct out o = out_to(text, sizeof text);

	(void)state;
	assert_int_equal(check(STR(RFC_HS256), &es, 1, &use), 401);
	assert_int_equal(check(STR(RFC_ES256), &hs, 1, &use), 401);
	/* The classic: the public key's bytes as the secret of a MAC. */
	token_key_hs256(&confused, pem, sizeof pem - 1);
	token_write(&o, &confused, STR("{\"exp\":1800000000}"));
	assert_int_equal(check((struct str){ o.p, o.n }, &es_public, 1, &now),
	    401);
	token_key_hs256(&confused, es.point, sizeof es.point);
	o.n = 0;
	token_write(&o, &confused, STR("{\"exp\":1800000000}"));
	assert_int_equal(check((struct str){ o.p, o.n }, &es_public, 1, &now),
	    401);
	/* A good signature by a key of the other kind. */
	(void)token_sign((u8 *)header, &es, STR("eyJhbGciOiJIUzI1NiJ9."
	    RFC_CLAIMS));
	o = out_to(text, sizeof text);
	out_text(&o, "eyJhbGciOiJIUzI1NiJ9." RFC_CLAIMS ".");
	token_put(&o, header, 64);
	assert_int_equal(check((struct str){ o.p, o.n }, &es, 1, &use), 401);
	for (size_t i = 0; i < COUNT(alg); i++) {
		snprintf(header, sizeof header, "{\"alg\":\"%s\"}", alg[i]);
		assert_int_equal(check_raw(header, "{\"exp\":1800000000}", 18,
		    &now), 401);
	}
}

static void
typ_and_kid_mean_nothing_and_crit_is_refused(void **state)
{
	const char *claims = "{\"exp\":1800000000}";

	(void)state;
	assert_int_equal(check_raw("{\"alg\":\"HS256\",\"typ\":\"at+jwt\"}",
	    claims, 18, &now), 0);
	assert_int_equal(check_raw("{\"kid\":\"../../x\",\"typ\":7,\"alg\":"
	    "\"HS256\"}", claims, 18, &now), 0);
	assert_int_equal(check_raw("{\"alg\":\"HS256\",\"crit\":[\"b64\"],"
	    "\"b64\":false}", claims, 18, &now), 401);
	assert_int_equal(check_raw("{\"\\u0061lg\":\"HS256\",\"cr\\u0069t\":"
	    "[]}", claims, 18, &now), 401);
	assert_int_equal(check_raw("[\"alg\",\"HS256\"]", claims, 18, &now),
	    401);
	assert_int_equal(check_raw("{\"alg\":\"HS256\"", claims, 18, &now),
	    401);
}

static void
every_changed_character_is_refused(void **state)
{
	static const char *const text[] = { RFC_HS256, RFC_ES256 };
	struct token_use use = { .now = RFC_TIME };

	(void)state;
	for (size_t k = 0; k < 2; k++)
		for (size_t i = 0; i < strlen(text[k]); i += k == 0 ? 1 : 11) {
			char copy[512];

			strcpy(copy, text[k]);
			copy[i] = copy[i] == 'A' ? 'B' : 'A';
			assert_int_equal(check(text_of(copy), k == 0 ? &hs :
			    &es, 1, &use), 401);
		}
}

static void
every_cut_token_is_refused(void **state)
{
	struct token_use use = { .now = RFC_TIME };

	(void)state;
	for (size_t n = 0; n < sizeof RFC_HS256 - 1; n++)
		assert_int_equal(check((struct str){ RFC_HS256, n }, &hs, 1,
		    &use), 401);
}

static void
what_is_not_three_parts_in_strict_base64url_is_refused(void **state)
{
	static const char *const text[] = { "", ".", "..", "...", "a.b.c",
		RFC_HS256 ".", "." RFC_HS256, RFC_HS256 "=", RFC_HS256 "\n",
		" " RFC_HS256, RFC_HS256 "." RFC_HS256, RFC_CLAIMS,
		/* not zero behind the last whole byte */
		"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." RFC_CLAIMS
		".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXl",
		/* the other alphabet */
		"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." RFC_CLAIMS
		".dBjftJeZ4CVP+mB92K27uhbUJU1p1r/wW1gFWFOEjXk" };
	struct token_use use = { .now = RFC_TIME };

	(void)state;
	for (size_t i = 0; i < COUNT(text); i++)
		assert_int_equal(check(text_of(text[i]), &hs, 1, &use), 401);
}

static void
claims_that_are_no_json_object_are_refused(void **state)
{
	static const char *const claims[] = { "", "[]", "1", "null",
		"\"exp\"", "{\"exp\":1800000000}x", "{\"exp\":1800000000,}",
		"{\"exp\":1800000000,\"a\":\"\x01\"}",
		"{\"exp\":1800000000,\"a\":\"\xff\"}" };

	(void)state;
	for (size_t i = 0; i < COUNT(claims); i++)
		assert_int_equal(check_raw("{\"alg\":\"HS256\"}", claims[i],
		    strlen(claims[i]), &now), 401);
}

static void
a_signature_of_another_length_or_of_zeroes_is_refused(void **state)
{
	struct token_use use = { .now = RFC_TIME };
	char text[512];
	struct out o;
	u8 sig[65] = { 0 };

	(void)state;
	for (size_t n = 0; n <= sizeof sig; n++) {
		o = out_to(text, sizeof text);
		out_text(&o, "eyJhbGciOiJFUzI1NiJ9." RFC_CLAIMS ".");
		token_put(&o, sig, n);
		assert_int_equal(check((struct str){ o.p, o.n }, &es, 1,
		    &use), 401);
	}
	/* A proper signature as a client without a clue writes it: ASN.1. */
	o = out_to(text, sizeof text);
	out_text(&o, "eyJhbGciOiJFUzI1NiJ9." RFC_CLAIMS);
	{
		br_ec_private_key private = token_private_key(&es);
		u8 hash[32], asn1[80];
		size_t n;

		token_digest(hash, &es, (struct str){ o.p, o.n });
		n = br_ecdsa_i31_sign_asn1(&br_ec_p256_m31, &br_sha256_vtable,
		    hash, &private, asn1);
		out_char(&o, '.');
		token_put(&o, asn1, n);
	}
	assert_int_equal(check((struct str){ o.p, o.n }, &es, 1, &use), 401);
}

static void
any_key_of_a_rotation_does_and_no_other(void **state)
{
	struct token_key keys[] = { other_es, other_hs, es_public, hs };
	struct token_use use = { .now = RFC_TIME };

	(void)state;
	assert_int_equal(check(STR(RFC_HS256), keys, 4, &use), 0);
	assert_int_equal(check(STR(RFC_ES256), keys, 4, &use), 0);
	assert_int_equal(check(STR(RFC_HS256), keys, 3, &use), 401);
	assert_int_equal(check(STR(RFC_ES256), keys, 2, &use), 401);
	assert_int_equal(check(STR(RFC_HS256), keys, 0, &use), 401);
	assert_int_equal(check(STR(RFC_HS256), &other_hs, 1, &use), 401);
	assert_int_equal(check(STR(RFC_ES256), &other_es, 1, &use), 401);
}

static void
exp_is_required_and_holds_for_sixty_seconds_more(void **state)
{
	struct token_use use = { .now = RFC_TIME + 59 };

	(void)state;
	assert_int_equal(check(STR(RFC_HS256), &hs, 1, &use), 0);
	use.now++;
	assert_int_equal(check(STR(RFC_HS256), &hs, 1, &use), 401);
	assert_string_equal(why, "it has expired");
	assert_int_equal(check_raw("{\"alg\":\"HS256\"}", "{}", 2, &now), 401);
	assert_string_equal(why, "it has no exp");
}

static void
exp_is_a_number_and_its_fraction_is_cut_off(void **state)
{
	static const char *const bad[] = { "\"1900000000\"", "null", "[]",
		"true", "{}", "1.9e9", "19E8",
		"1900000000.5e1", "1900000000.5E1", "1000000000000001",
		"99999999999999999999999", "-1900000000", "0", "-0" };
	static const char *const good[] = { "1800000000.999", "1800000000.0",
		"1000000000000000" };
	char text[80];

	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		snprintf(text, sizeof text, "{\"exp\":%s}", bad[i]);
		assert_int_equal(check_raw("{\"alg\":\"HS256\"}", text,
		    strlen(text), &now), 401);
	}
	for (size_t i = 0; i < COUNT(good); i++) {
		snprintf(text, sizeof text, "{\"exp\":%s}", good[i]);
		assert_int_equal(check_raw("{\"alg\":\"HS256\"}", text,
		    strlen(text), &now), 0);
	}
	assert_int_equal(t.expires, TOKEN_LATEST);
}

static void
nbf_is_honoured_but_for_sixty_seconds(void **state)
{
	(void)state;
	ALLOWS("\"nbf\":1800000060", "", "");
	REFUSES("\"nbf\":1800000061");
	assert_string_equal(why, "it is not valid yet");
	REFUSES("\"nbf\":\"1\"");
	REFUSES("\"nbf\":null");
	ALLOWS("\"nbf\":-5", "", "");
	ALLOWS("\"nbf\":1.5", "", "");
}

static void
aud_counts_only_when_an_audience_is_configured(void **state)
{
	char long_one[TOKEN_TEXT + 1];
	struct token_use use = { .audience = STR("router"), .now = NOW };
	char claims[TOKEN_TEXT + 80];

	(void)state;
	assert_int_equal(check_claims("\"aud\":\"router\"", &use), 0);
	assert_int_equal(check_claims("\"aud\":[\"x\",7,\"router\"]", &use),
	    0);
	assert_int_equal(check_claims("\"aud\":\"r\\u006futer\"", &use), 0);
	assert_int_equal(check_claims("\"aud\":\"router2\"", &use), 401);
	assert_int_equal(check_claims("\"aud\":\"Router\"", &use), 401);
	assert_int_equal(check_claims("\"aud\":[]", &use), 401);
	assert_int_equal(check_claims("\"aud\":[[\"router\"]]", &use), 401);
	assert_int_equal(check_claims("\"aud\":{\"router\":\"router\"}",
	    &use), 401);
	assert_int_equal(check_claims("\"aud\":7", &use), 401);
	assert_int_equal(check_claims("", &use), 401);
	ALLOWS("\"aud\":\"other\"", "", "");
	ALLOWS("\"aud\":7", "", "");
	memset(long_one, 'a', TOKEN_TEXT);
	long_one[TOKEN_TEXT] = '\0';
	use.audience = text_of(long_one);
	snprintf(claims, sizeof claims, "\"aud\":\"%s\"", long_one);
	assert_int_equal(check_claims(claims, &use), 0);
	snprintf(claims, sizeof claims, "\"aud\":\"%sa\"", long_one);
	assert_int_equal(check_claims(claims, &use), 401);
}

static void
sub_is_the_id_or_with_a_star_its_beginning(void **state)
{
	(void)state;
	ALLOWS("\"sub\":\"u17\"", "", "u17");
	FORBIDS("\"sub\":\"u17\"", "", "u1");
	FORBIDS("\"sub\":\"u17\"", "", "u171");
	FORBIDS("\"sub\":\"u17\"", "", "U17");
	ALLOWS("\"sub\":\"u17*\"", "", "u17");
	ALLOWS("\"sub\":\"u17*\"", "", "u17-tab-2");
	FORBIDS("\"sub\":\"u17*\"", "", "u1");
	FORBIDS("\"sub\":\"u17*\"", "", "u27-tab-2");
	ALLOWS("\"sub\":\"*\"", "", "anybody");
	ALLOWS("\"sub\":\"**\"", "", "*x");
	FORBIDS("\"sub\":\"**\"", "", "x");
	FORBIDS("\"sub\":\"a*b\"", "", "aXb");
	ALLOWS("\"sub\":\"\\u00e9*\"", "", "\xc3\xa9t\xc3\xa9");
}

static void
without_sub_only_volatile_sockets_are_allowed(void **state)
{
	(void)state;
	ALLOWS("", "", "");
	FORBIDS("", "", "u17");
	FORBIDS("\"sub\":\"\"", "", "u17");
	ALLOWS("\"sub\":\"\"", "", "");
	ALLOWS("\"sub\":\"u17\"", "", "");
	FORBIDS("\"sub\":\"u17\\u0000\"", "", "u17");
}

static void
a_sub_that_is_no_string_or_too_long_is_refused(void **state)
{
	char claims[400], id[WSP_MAX_ID + 1];

	(void)state;
	REFUSES("\"sub\":17");
	REFUSES("\"sub\":null");
	REFUSES("\"sub\":[\"u17\"]");
	REFUSES("\"sub\":\"\\ud800\"");
	memset(id, 'i', WSP_MAX_ID);
	id[WSP_MAX_ID] = '\0';
	snprintf(claims, sizeof claims, "\"sub\":\"%s\"", id);
	ALLOWS(claims, "", id);
	snprintf(claims, sizeof claims, "\"sub\":\"%s*\"", id);
	ALLOWS(claims, "", id);
	snprintf(claims, sizeof claims, "\"sub\":\"%s**\"", id);
	REFUSES(claims);
}

static void
services_are_those_of_the_array_or_all(void **state)
{
	(void)state;
	ALLOWS("", "main", "");
	ALLOWS("\"services\":[\"a\",\"main\"]", "main", "");
	FORBIDS("\"services\":[\"a\",\"main\"]", "mai", "");
	FORBIDS("\"services\":[\"a\",\"main\"]", "main2", "");
	FORBIDS("\"services\":[]", "main", "");
	FORBIDS("\"services\":[7,null,{\"main\":\"main\"}]", "main", "");
	REFUSES("\"services\":\"main\"");
	REFUSES("\"services\":{\"main\":\"main\"}");
	REFUSES("\"services\":null");
	FORBIDS("\"services\":[\"main\"],\"sub\":\"u\"", "echo", "u");
	FORBIDS("\"services\":[\"main\"],\"sub\":\"u\"", "main", "v");
}

static void
a_forged_token_does_not_learn_what_a_good_one_would(void **state)
{
	struct token_use use = { .service = STR("main"), .id = STR("u17"),
		.now = RFC_TIME };
	char text[512];

	(void)state;
	assert_int_equal(check(STR(RFC_HS256), &hs, 1, &use), 403);
	strcpy(text, RFC_HS256);
	text[sizeof RFC_HS256 - 10] ^= 1;
	assert_int_equal(check(text_of(text), &hs, 1, &use), 401);
}

static void
what_costs_nothing_is_said_also_when_no_signature_is_looked_at(void **state)
{
	struct token_use use = { .now = RFC_TIME, .unread = true };

	(void)state;
	assert_int_equal(check(STR(RFC_HS256), &hs, 1, &use), 503);
	assert_int_equal(check(STR(RFC_HS256), &other_hs, 1, &use), 503);
	assert_int_equal(check(STR("a.b.c"), &hs, 1, &use), 401);
	use.now += 1000000;
	assert_int_equal(check(STR(RFC_HS256), &hs, 1, &use), 401);
	assert_string_equal(why, "it has expired");
}

static void
claims_of_others_mean_nothing(void **state)
{
	(void)state;
	ALLOWS("\"iss\":\"x\",\"iat\":1,\"jti\":\"1\",\"info\":{\"a\":[1]},"
	    "\"channels\":[\"x\"],\"mercure\":{\"publish\":[\"*\"]}", "main", "");
}

static void
tags_come_out_decoded(void **state)
{
	(void)state;
	ALLOWS("\"tags\":{\"group_id\":\"10002\",\"n\\u0061me\":"
	    "\"\\u00e9\\\"\",\"empty\":\"\"}", "", "");
	assert_int_equal(t.tags, 3);
	assert_true(str_is(t.tag[0].name, "group_id"));
	assert_true(str_is(t.tag[0].value, "10002"));
	assert_true(str_is(t.tag[1].name, "name"));
	assert_true(str_is(t.tag[1].value, "\xc3\xa9\""));
	assert_int_equal(t.tag[2].value.n, 0);
	assert_true(tag_lines_set(t.tag, t.tags, STR("name")));
	assert_false(tag_lines_set(t.tag, t.tags, STR("nam")));
	ALLOWS("", "", "");
	assert_int_equal(t.tags, 0);
}

static void
one_bad_tag_refuses_the_whole_token(void **state)
{
	static const char *const bad[] = { "[]", "\"a:b\"", "null",
		"{\"\":\"v\"}", "{\"a\":7}", "{\"a\":true}", "{\"a\":null}",
		"{\"a\":[\"v\"]}", "{\"a:b\":\"v\"}", "{\"-a\":\"v\"}",
		"{\"-a\":\"\"}", "{\"a:b\":\"\"}", "{\"a:\":\"v\"}", "{\":\":\"\"}",
		"{\"a b\":\"v\"}", "{\"a\":\"v w\"}", "{\"a\":\"\\n\"}",
		"{\"a\":\"\\u0000\"}", "{\"a\":\"\\u0085\"}",
		"{\"a\":\"\\udc00\"}", "{\"service\":\"main\"}",
		"{\"a\":\"1\",\"b\":\"2\",\"a\":\"3\"}",
		"{\"ok\":\"1\",\"bad one\":\"2\"}" };
	char claims[128];

	(void)state;
	for (size_t i = 0; i < COUNT(bad); i++) {
		snprintf(claims, sizeof claims, "\"tags\":%s", bad[i]);
		REFUSES(claims);
	}
}

static void
tags_have_the_limits_of_all_tags(void **state)
{
	char claims[400], name[40], value[100];
	struct out o;

	(void)state;
	memset(name, 'n', sizeof name);
	memset(value, 'v', sizeof value);
	snprintf(claims, sizeof claims, "\"tags\":{\"%.32s\":\"%.96s\"}",
	    name, value);
	ALLOWS(claims, "", "");
	snprintf(claims, sizeof claims, "\"tags\":{\"%.33s\":\"\"}", name);
	REFUSES(claims);
	snprintf(claims, sizeof claims, "\"tags\":{\"a\":\"%.97s\"}", value);
	REFUSES(claims);
	for (u32 n = WSP_MAX_TAGS - 1; n <= WSP_MAX_TAGS + 1; n++) {
		o = out_to(claims, sizeof claims - 1);
		out_text(&o, "\"tags\":{");
		for (u32 i = 0; i < n; i++) {
			out_text(&o, i == 0 ? "\"t" : ",\"t");
			out_u64(&o, i);
			out_text(&o, "\":\"\"");
		}
		out_char(&o, '}');
		claims[o.n] = '\0';
		assert_int_equal(check_claims(claims, &now),
		    n > WSP_MAX_TAGS ? 401 : 0);
	}
}

static void
a_token_is_as_long_as_it_may_be_and_no_longer(void **state)
{
	static char text[WSP_MAX_TOKEN + 64], claims[WSP_MAX_TOKEN];
	struct out o;
	size_t n = 0;

	(void)state;
	for (size_t fill = 1; n <= WSP_MAX_TOKEN; fill++) {
		size_t length = WSP_MAX_TOKEN / 4 * 3 - 100 + fill;

		memset(claims, ' ', length);
		memcpy(claims, "{\"exp\":1800000000", 17);
		claims[length - 1] = '}';
		o = out_to(text, sizeof text);
		token_write(&o, &hs, (struct str){ claims, length });
		n = o.n;
		assert_int_equal(check((struct str){ text, n }, &hs, 1, &now),
		    n > WSP_MAX_TOKEN ? 401 : 0);
	}
}

static void
more_values_than_there_is_room_for_are_refused(void **state)
{
	char claims[4 * WSP_TOKEN_VALUES];
	struct out o;

	(void)state;
	/* An object, exp with its name, x with its name: five. */
	for (u32 n = WSP_TOKEN_VALUES - 6; n <= WSP_TOKEN_VALUES - 4; n++) {
		o = out_to(claims, sizeof claims - 1);
		out_text(&o, "\"x\":[1");
		for (u32 i = 1; i < n; i++)
			out_text(&o, ",1");
		out_char(&o, ']');
		claims[o.n] = '\0';
		assert_int_equal(check_claims(claims, &now),
		    n + 5 > WSP_TOKEN_VALUES ? 401 : 0);
	}
}

static void
what_is_minted_is_taken_and_says_what_was_asked(void **state)
{
	struct token_plan plan = { .expires = NOW, .sub = STR("u\"*"),
		.audience = STR("router"),
		.service = { STR("main"), STR("echo") }, .services = 2,
		.tag = { { .name = STR("a\"b"), .value = STR("c\\d") },
		{ .name = STR("x"), .value = STR("") } }, .tags = 2 };
	const struct token_key *const keys[] = { &hs, &es };
	struct token_use use = { .audience = STR("router"),
		.service = STR("echo"), .id = STR("u\"7"), .now = NOW };
	char claims[512], text[1024];

	(void)state;
	for (size_t k = 0; k < 2; k++) {
		struct out c = out_to(claims, sizeof claims);
		struct out o = out_to(text, sizeof text);

		token_write_claims(&c, &plan);
		token_write(&o, keys[k], (struct str){ c.p, c.n });
		assert_false(c.full || o.full);
		assert_int_equal(check((struct str){ o.p, o.n }, keys[k], 1,
		    &use), 0);
		assert_int_equal(t.tags, 2);
		assert_true(str_is(t.tag[0].name, "a\"b"));
		assert_true(str_is(t.tag[0].value, "c\\d"));
	}
}

static void
a_plan_of_nothing_makes_claims_of_exp_alone(void **state)
{
	struct token_plan plan = { .expires = NOW };
	char text[64];
	struct out o = out_to(text, sizeof text);

	(void)state;
	token_write_claims(&o, &plan);
	assert_true(str_is((struct str){ o.p, o.n }, "{\"exp\":1800000000}"));
}

static void
a_token_that_does_not_fit_is_not_half_written(void **state)
{
	char text[1024];
	size_t whole;

	(void)state;
	struct out o = out_to(text, sizeof text);
	token_write(&o, &hs, STR("{\"exp\":1800000000}"));
	whole = o.n;
	for (size_t cap = 0; cap < whole; cap++) {
		char *exact = malloc(cap > 0 ? cap : 1);

		o = out_to(exact, cap);
		token_write(&o, &hs, STR("{\"exp\":1800000000}"));
		assert_true(o.full);
		free(exact);
	}
}

static void
a_point_off_the_curve_is_no_key(void **state)
{
	struct token_key k;
	u8 point[65], zero[33] = { 0 };

	(void)state;
	memcpy(point, es.point, 65);
	assert_true(token_key_es256(&k, point));
	assert_false(k.mints);
	point[64] ^= 1;
	assert_false(token_key_es256(&k, point));
	memset(point + 1, 0, 64);
	assert_false(token_key_es256(&k, point));
	memcpy(point, es.point, 65);
	point[0] = 2;
	assert_false(token_key_es256(&k, point));
	assert_true(token_key_private(&k, es.secret, 32));
	assert_false(token_key_private(&k, zero, 0));
	memcpy(zero + 1, es.secret, 32);
	assert_true(token_key_private(&k, zero, 33));
	zero[0] = 1;
	assert_false(token_key_private(&k, zero, 33));
}

/*
 * ---- Where a request has it
 */

static enum token_place
place_of(struct str *token, const char *query, const char *headers,
    bool in_url)
{
	static char text[1024];
	static struct http_request r;
	int n = snprintf(text, sizeof text, "GET /services/main%s HTTP/1.1\r\n"
	    "Host: h\r\n%s\r\n", query, headers);

	assert_int_equal(http_parse(&r, (const u8 *)text, (size_t)n), n);
	*token = STR("nothing");
	return token_find(token, &r, in_url);
}

static void
found(enum token_place place, const char *token, const char *query,
    const char *headers, bool in_url)
{
	struct str text;

	assert_int_equal(place_of(&text, query, headers, in_url), place);
	if (place != TOKEN_NOWHERE)
		assert_true(str_eq(text, text_of(token)));
}

#define COOKIE   "Cookie: a=b; wspush_token=COOKIE\r\n"
#define PROTOCOL "Sec-WebSocket-Protocol: x, bearer, PROTOCOL\r\n"
#define HEADER   "Authorization: Bearer HEADER\r\n"

static void
the_last_place_that_has_a_token_decides(void **state)
{
	(void)state;
	found(TOKEN_NOWHERE, "", "", "", true);
	found(TOKEN_IN_COOKIE, "COOKIE", "", COOKIE, true);
	found(TOKEN_IN_PROTOCOL, "PROTOCOL", "", PROTOCOL COOKIE, true);
	found(TOKEN_IN_HEADER, "HEADER", "", HEADER PROTOCOL COOKIE, true);
	found(TOKEN_IN_HEADER, "HEADER", "", COOKIE HEADER, true);
	found(TOKEN_IN_URL, "URL", "?token=URL", HEADER PROTOCOL, true);
	found(TOKEN_IN_HEADER, "HEADER", "?token=URL", HEADER, false);
	found(TOKEN_NOWHERE, "", "?token=URL", "", false);
}

static void
a_scheme_in_any_case_is_bearer_and_another_is_none(void **state)
{
	(void)state;
	found(TOKEN_IN_HEADER, "t", "", "authorization: bearer t\r\n", false);
	found(TOKEN_IN_HEADER, "t", "", "Authorization: BEARER   t \r\n",
	    false);
	found(TOKEN_IN_HEADER, "", "", "Authorization: Bearer\r\n", false);
	found(TOKEN_IN_HEADER, "a b", "", "Authorization: Bearer a b\r\n",
	    false);
	found(TOKEN_NOWHERE, "", "", "Authorization: Basic dTpw\r\n", false);
	found(TOKEN_NOWHERE, "", "", "Authorization: BearerX t\r\n", false);
	found(TOKEN_NOWHERE, "", "", "Authorization: t\r\n", false);
	found(TOKEN_NOWHERE, "", "", "Authorization:\r\n", false);
	found(TOKEN_IN_COOKIE, "COOKIE", "",
	    "Authorization: Basic dTpw\r\n" COOKIE, false);
}

static void
two_tokens_in_one_place_are_none(void **state)
{
	(void)state;
	found(TOKEN_IN_HEADER, "", "", HEADER HEADER, false);
	found(TOKEN_IN_URL, "", "?token=a&token=b", "", true);
	found(TOKEN_IN_URL, "", "?token=", "", true);
}

static void
the_word_behind_bearer_is_the_token(void **state)
{
	(void)state;
	found(TOKEN_IN_PROTOCOL, "t", "", "Sec-WebSocket-Protocol: bearer\r\n"
	    "Sec-WebSocket-Protocol: t, x\r\n", false);
	found(TOKEN_IN_PROTOCOL, "", "",
	    "Sec-WebSocket-Protocol: x, bearer\r\n", false);
	found(TOKEN_IN_PROTOCOL, "bearer", "",
	    "Sec-WebSocket-Protocol: bearer, bearer\r\n", false);
	found(TOKEN_NOWHERE, "", "", "Sec-WebSocket-Protocol: Bearer, t\r\n",
	    false);
	found(TOKEN_NOWHERE, "", "", "Sec-WebSocket-Protocol: a, b\r\n",
	    false);
}

static void
a_cookie_of_another_name_is_none(void **state)
{
	(void)state;
	found(TOKEN_NOWHERE, "", "", "Cookie: xwspush_token=t\r\n", false);
	found(TOKEN_NOWHERE, "", "", "Cookie: WSPUSH_TOKEN=t\r\n", false);
	found(TOKEN_NOWHERE, "", "", "Cookie: a=wspush_token=t\r\n", false);
	found(TOKEN_IN_COOKIE, "t=", "", "Cookie: wspush_token=t=;b=c\r\n",
	    false);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_examples_of_rfc_7515_are_taken),
		cmocka_unit_test(an_unsigned_token_is_refused),
		cmocka_unit_test(
		    the_key_decides_the_algorithm_and_not_the_token),
		cmocka_unit_test(typ_and_kid_mean_nothing_and_crit_is_refused),
		cmocka_unit_test(every_changed_character_is_refused),
		cmocka_unit_test(every_cut_token_is_refused),
		cmocka_unit_test(
		    what_is_not_three_parts_in_strict_base64url_is_refused),
		cmocka_unit_test(claims_that_are_no_json_object_are_refused),
		cmocka_unit_test(
		    a_signature_of_another_length_or_of_zeroes_is_refused),
		cmocka_unit_test(any_key_of_a_rotation_does_and_no_other),
		cmocka_unit_test(
		    exp_is_required_and_holds_for_sixty_seconds_more),
		cmocka_unit_test(exp_is_a_number_and_its_fraction_is_cut_off),
		cmocka_unit_test(nbf_is_honoured_but_for_sixty_seconds),
		cmocka_unit_test(
		    aud_counts_only_when_an_audience_is_configured),
		cmocka_unit_test(sub_is_the_id_or_with_a_star_its_beginning),
		cmocka_unit_test(
		    without_sub_only_volatile_sockets_are_allowed),
		cmocka_unit_test(
		    a_sub_that_is_no_string_or_too_long_is_refused),
		cmocka_unit_test(services_are_those_of_the_array_or_all),
		cmocka_unit_test(
		    a_forged_token_does_not_learn_what_a_good_one_would),
		cmocka_unit_test(
		    what_costs_nothing_is_said_also_when_no_signature_is_looked_at),
		cmocka_unit_test(claims_of_others_mean_nothing),
		cmocka_unit_test(tags_come_out_decoded),
		cmocka_unit_test(one_bad_tag_refuses_the_whole_token),
		cmocka_unit_test(tags_have_the_limits_of_all_tags),
		cmocka_unit_test(
		    a_token_is_as_long_as_it_may_be_and_no_longer),
		cmocka_unit_test(
		    more_values_than_there_is_room_for_are_refused),
		cmocka_unit_test(
		    what_is_minted_is_taken_and_says_what_was_asked),
		cmocka_unit_test(a_plan_of_nothing_makes_claims_of_exp_alone),
		cmocka_unit_test(
		    a_token_that_does_not_fit_is_not_half_written),
		cmocka_unit_test(a_point_off_the_curve_is_no_key),
		cmocka_unit_test(the_last_place_that_has_a_token_decides),
		cmocka_unit_test(
		    a_scheme_in_any_case_is_bearer_and_another_is_none),
		cmocka_unit_test(two_tokens_in_one_place_are_none),
		cmocka_unit_test(the_word_behind_bearer_is_the_token),
		cmocka_unit_test(a_cookie_of_another_name_is_none),
	};

	return cmocka_run_group_tests_name("tokens", tests, make_keys, NULL);
}
