/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzzes Tokens.  The first byte says what the rest is: a token as it comes,
 * or claims, which are signed first so that they are looked at to the end.
 * What is taken must keep every promise that the rest of the program rests on.
 */
#include "../wspush.c"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

#define NOW INT64_C(1800000000)

static struct token_key key;
static struct token t;

/* Checks an exact copy of the text. */
static int
check(struct str text, const struct token_use *use)
{
	char *copy = malloc(text.n > 0 ? text.n : 1);
	const char *why;
	int status;

	if (text.n > 0)
		memcpy(copy, text.p, text.n);
	status = token_check(&t, &why, (struct str){ copy, text.n }, &key, 1,
	    use);
	free(copy);
	if ((status == 0) != (why == NULL) ||
	    (status != 0 && status != 401 && status != 403))
		abort();
	return status;
}

/* Is what came out of a good token within its limits? */
static void
look_at_token(void)
{
	if (t.expires + TOKEN_SKEW <= NOW || t.expires > TOKEN_LATEST ||
	    t.tags > WSP_MAX_TAGS || t.claims.n == 0 || t.claims.p[0] == '\0')
		abort();
	for (size_t i = 0; i < t.tags; i++) {
		const struct tag_line *g = &t.tag[i];

		if (g->remove || !tag_name_valid(g->name) ||
		    str_is(g->name, "service") || !tag_value_valid(g->value))
			abort();
		for (size_t k = 0; k < i; k++)
			if (str_eq(g->name, t.tag[k].name))
				abort();
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static char room[WSP_MAX_TOKEN + 256];
	struct out o = out_to(room, sizeof room);
	struct str text = { (const char *)p + 1, n - 1 };
	struct token_use any = { .now = NOW };
	struct token_use one = { .now = NOW, .audience = STR("a"),
		.service = STR("main"), .id = STR("u1") };

	if (n == 0)
		return 0;
	token_key_hs256(&key, "a secret for the fuzzer, no other", 32);
	if (p[0] % 2 == 0) {
		if (check(text, &any) == 403)
			abort(); /* nothing was asked that it could forbid */
		return 0;
	}
	token_write(&o, &key, text);
	if (o.full)
		return 0;
	text = (struct str){ o.p, o.n };
	if (check(text, &any) == 0)
		look_at_token();
	else if (check(text, &one) != 401)
		abort(); /* useless at all, but not for this? */
	if (check(text, &one) == 0 && check(text, &any) != 0)
		abort();
	return 0;
}
