/* SPDX-License-Identifier: MIT
 *
 * JSON and UTF-8.  Whatever the input: the tokens cover the text as they
 * promise, a JSON value can be put into an array, anything that is UTF-8 can
 * be made a string and read back, and no cut changes what UTF-8 is.
 */
#ifndef WSP_PURE_ONLY
#define WSP_PURE_ONLY
#endif
#include "../wspush.c"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX 4096

static void
must(bool good)
{
	if (!good)
		abort();
}

static void
check_utf8(const u8 *p, size_t n)
{
	u8 whole = utf8_run(UTF8_START, p, n), slow = UTF8_START;

	for (size_t i = 0; i < n; i++) {
		must(utf8_run(slow, p + i, n - i) == whole);
		slow = utf8_run(slow, p + i, 1);
		if (slow == UTF8_BAD)
			break;
	}
	must(slow == whole);
}

static void
check_tokens(const struct json_token *t, u32 count, struct str text)
{
	must(t[0].next == count);
	for (u32 i = 0; i < count; i++) {
		u32 child = i + 1, children = 0;
		char to[MAX];

		must(t[i].text.n > 0 && t[i].text.p >= text.p &&
		    text_end(t[i].text) <= text_end(text));
		must(t[i].next > i && t[i].next <= count);
		for (; child < t[i].next; child = t[child].next) {
			must(t[child].text.p > t[i].text.p);
			must(text_end(t[child].text) < text_end(t[i].text));
			children++;
		}
		must(child == t[i].next);
		must(t[i].kind != JSON_IS_OBJECT || children % 2 == 0);
		if (t[i].kind == JSON_IS_STRING)
			must(json_decode(to, sizeof to, t[i].text) <=
			    (int)t[i].text.n - 2);
		json_member(t, (int)i, "socket_action");
	}
}

static void
check_shape(struct str body)
{
	static char array[MAX + 2];
	struct out o = out_to(array, sizeof array);
	struct str value, again;
	enum json_shape shape = json_shape(&value, body);

	if (shape == JSON_NOT) {
		must(str_eq(value, body));
		return;
	}
	/* It is the same without the white space, and nothing shorter is. */
	must(json_shape(&again, value) == shape && str_eq(value, again));
	if (value.p[0] == '[' || value.p[0] == '{' || value.p[0] == '"')
		for (size_t k = 0; k < value.n; k++)
			must(json_shape(&again, (struct str){ value.p, k }) ==
			    JSON_NOT);
	out_char(&o, '[');
	out_str(&o, value);
	out_char(&o, ']');
	if (value.p[0] != '[' && value.p[0] != '{')
		must(json_shape(&again, (struct str){ array, o.n }) ==
		    JSON_ARRAY);
}

static void
check_string(struct str plain)
{
	static char text[6 * MAX + 2], back[MAX];
	struct out o = out_to(text, sizeof text);
	struct str quoted, value;

	json_string(&o, plain);
	must(!o.full && o.n == json_string_size(plain));
	quoted = (struct str){ text, o.n };
	must(json_shape(&value, quoted) == JSON_SINGLE);
	must(json_decode(back, sizeof back, quoted) == (int)plain.n);
	must(plain.n == 0 || memcmp(back, plain.p, plain.n) == 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct json_token t[MAX];
	u8 *copy;
	struct str text;
	int count;

	if (size > MAX)
		return 0;
	copy = malloc(size ? size : 1);
	must(copy);
	if (size > 0)
		memcpy(copy, data, size);
	text = (struct str){ (const char *)copy, size };

	check_utf8(copy, size);
	check_shape(text);
	count = json_tokens(t, COUNT(t), text);
	must(count != -2 && count == json_tokens(NULL, 0, text));
	if (count > 0) {
		must(json_tokens(t, (size_t)count - 1, text) == -2);
		must(json_tokens(t, (size_t)count, text) == count);
		check_tokens(t, (u32)count, text);
	}
	check_string(text);
	free(copy);
	return 0;
}
