/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzzes frames and message rules: a client's stream is read whole and again
 * in pieces, and the two must tell the same story, to the close code.
 */
#include "../wspush.c"

#include <stdio.h>
#include <stdlib.h>

#define MAX_MESSAGE 300

/* What was seen, one line an event; two readings must agree on it. */
struct story {
	struct out o;
	char text[1 << 16];
};

/* A connection's read buffer: what stays when a header is not whole. */
struct reader {
	struct story *story;
	struct message_in m;
	struct frame f;
	u64 left;    /* payload bytes of f to come */
	bool inside; /* a frame */
	int failed;  /* close code */
	u8 head[14], control[FRAME_MAX_CONTROL];
	size_t head_n, control_n;
};

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void
tell(struct reader *r, const char *what, u64 v)
{
	out_text(&r->story->o, what);
	out_u64(&r->story->o, v);
	out_char(&r->story->o, '\n');
}

static void
fail(struct reader *r, int verdict)
{
	r->failed = -verdict;
	tell(r, "fail ", (u64)r->failed);
}

static void
end_frame(struct reader *r)
{
	struct str reason;
	u16 code;
	int v = 0;

	r->inside = false;
	if (r->f.opcode == FRAME_CLOSE) {
		u8 frame[2 + FRAME_MAX_CONTROL];

		v = close_parse(&code, &reason, r->control, r->control_n);
		if (v == 0) {
			tell(r, "close ", code);
			if (close_frame(frame, code, reason)
			    != 2 + r->control_n)
				abort();
			if (memcmp(frame + 2, r->control, r->control_n) != 0)
				abort();
		}
	} else if (r->f.opcode < FRAME_CLOSE && r->f.fin) {
		tell(r, "length ", r->m.length);
		if (r->m.opcode == FRAME_TEXT && r->m.utf8 != UTF8_START)
			v = -WSP_CLOSE_BAD_TEXT;
		r->m = (struct message_in){ 0 };
	}
	if (v < 0)
		fail(r, v);
}

static void
begin_frame(struct reader *r)
{
	r->head_n = 0;
	r->inside = true;
	r->left = r->f.length;
	r->control_n = 0;
	tell(r, "frame ", r->f.opcode);
	if (r->f.opcode == FRAME_TEXT || r->f.opcode == FRAME_BINARY)
		r->m.opcode = r->f.opcode;
}

/* Up to n bytes of payload; returns how many. */
static size_t
payload(struct reader *r, const u8 *p, size_t n)
{
	u8 plain[512];
	size_t phase = (size_t)(r->f.length - r->left);
	int v = 0;

	if (n > r->left)
		n = (size_t)r->left;
	if (n > sizeof plain)
		abort();
	memcpy(plain, p, n);
	frame_unmask(plain, n, r->f.mask, phase);
	for (size_t i = 0; i < n; i++) {
		if (plain[i] != (p[i] ^ r->f.mask[(phase + i) % 4]))
			abort();
	}
	r->left -= n;
	if (r->f.opcode >= FRAME_CLOSE) {
		memcpy(r->control + r->control_n, plain, n);
		r->control_n += n;
	} else {
		r->m.length += (u32)n;
		if (r->m.opcode == FRAME_TEXT)
			r->m.utf8 = utf8_run(r->m.utf8, plain, n);
		if (r->m.utf8 == UTF8_BAD)
			v = -WSP_CLOSE_BAD_TEXT;
		if (r->m.length > MAX_MESSAGE)
			abort();
	}
	if (v < 0)
		fail(r, v);
	else if (r->left == 0)
		end_frame(r);
	return n;
}

/* One read of n bytes. */
static void
feed(struct reader *r, const u8 *p, size_t n)
{
	while (r->failed == 0 && n > 0) {
		size_t used;

		if (r->inside) {
			used = payload(r, p, n);
		} else {
			size_t had = r->head_n;
			int v;

			used = min_size(n, sizeof r->head - had);
			memcpy(r->head + had, p, used);
			v = frame_decode(&r->f, &r->m, r->head, had + used,
			    MAX_MESSAGE);
			r->head_n += used;
			if (v < 0)
				fail(r, v);
			if (v > 0) {
				if ((size_t)v <= had)
					abort();
				used = (size_t)v - had;
				begin_frame(r);
				if (r->left == 0)
					end_frame(r);
			}
			if (v == 0 && r->head_n == sizeof r->head)
				abort();
		}
		p += used;
		n -= used;
	}
}

/* Reads the stream in large pieces, or, with a seed, in small ones. */
static void
read_all(struct story *s, const u8 *p, size_t n, u32 seed)
{
	struct reader r = { .story = s };

	s->o = out_to(s->text, sizeof s->text);
	while (n > 0) {
		size_t piece = min_size(n, 300);
		u8 *copy;

		if (seed != 0) {
			seed = seed * 1664525 + 1013904223;
			piece = min_size(n, 1 + (seed >> 24) % 20);
		}
		copy = malloc(piece);
		if (copy == NULL)
			abort();
		memcpy(copy, p, piece);
		feed(&r, copy, piece);
		free(copy);
		p += piece;
		n -= piece;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static struct story whole, pieces;

	if (n < 1 || n > 4096)
		return 0;
	read_all(&whole, p + 1, n - 1, 0);
	read_all(&pieces, p + 1, n - 1, 1 + p[0] * 2654435761U);
	if (whole.o.n != pieces.o.n
	    || memcmp(whole.text, pieces.text, whole.o.n) != 0)
		abort();
	return 0;
}
