/*
 * SPDX-License-Identifier: MIT
 *
 * Fuzzes records: the input is a script that seals records, puts rubbish
 * between them and changes bits; the stream it makes is opened whole and again
 * in pieces, and the two must tell the same story, which is how what was sealed
 * begins.  An untouched stream must come back as it went.
 *
 *	suite and piece, then: 0 n type (seal n bytes), 1 n bytes (rubbish),
 *	2 high low (change that bit), modulo 3
 */
#include "../wspush.c"

#include <stdio.h>
#include <stdlib.h>

#define STREAM 20000

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static const struct record_aead aead = {
	br_chacha20_ct_run, br_poly1305_ctmul_run, &br_aes_ct_ctr_vtable,
	br_ghash_ctmul
};

/* What was seen: verdicts, types and texts; two readings must agree. */
struct story {
	u8 text[2 * STREAM];
	size_t n;
	u64 opened;
	int verdict;
};

struct script {
	const u8 *p;
	size_t n;
	u8 stream[STREAM];
	size_t stream_n;
	u64 sealed;
	bool spoilt;
	u8 said[2 * STREAM]; /* what was sealed, as a story's text */
	size_t said_n;
};

static u8
next(struct script *s)
{
	if (s->n == 0)
		return 0;
	s->n--;
	return *s->p++;
}

static void
add_record(struct script *s, struct record_key *k)
{
	static const u8 types[] = { RECORD_DATA, RECORD_ALERT,
		RECORD_HANDSHAKE, RECORD_DATA };
	size_t n = next(s);
	u8 type = types[next(s) % 4], *p = s->stream + s->stream_n;

	if (type == RECORD_ALERT)
		n = 2;
	if (type == RECORD_HANDSHAKE)
		n++;
	if (n + RECORD_OVERHEAD_MAX > STREAM - s->stream_n)
		return;
	memset(p + record_head(k->suite), (int)n, n);
	s->said[s->said_n++] = type;
	memset(s->said + s->said_n, (int)n, n);
	s->said_n += n;
	s->stream_n += record_seal(&aead, k, k->seq++, type, p, n);
	s->sealed++;
}

static void
add_rubbish(struct script *s)
{
	size_t n = min_size(next(s), min_size(s->n, STREAM - s->stream_n));

	memcpy(s->stream + s->stream_n, s->p, n);
	s->stream_n += n;
	s->p += n;
	s->n -= n;
	s->spoilt |= n > 0;
}

static void
change_bit(struct script *s)
{
	size_t bit = next(s);

	bit = bit << 8 | next(s);
	if (s->stream_n == 0)
		return;
	s->stream[bit / 8 % s->stream_n] ^= (u8)(1 << bit % 8);
	s->spoilt = true;
}

/* Reads the stream, `piece` bytes more each time. */
static void
read_stream(struct story *t, const struct script *s, struct record_key k,
    size_t piece)
{
	static u8 kept[STREAM];
	size_t kept_n = 0, at = 0;

	while (at < s->stream_n && t->verdict >= 0) {
		size_t n = min_size(piece, s->stream_n - at), used = 0;
		u8 *exact;
		struct record r;

		memcpy(kept + kept_n, s->stream + at, n);
		kept_n += n;
		at += n;
		exact = malloc(kept_n);
		if (!exact)
			abort();
		memcpy(exact, kept, kept_n);
		while ((t->verdict = record_open(&aead, &k, exact + used,
		    kept_n - used, &r)) > 0) {
			if (r.p < exact + used || r.n > kept_n ||
			    (size_t)t->verdict > kept_n - used)
				abort();
			used += (size_t)t->verdict;
			t->opened++;
			t->text[t->n++] = r.type;
			memcpy(t->text + t->n, r.p, r.n);
			t->n += r.n;
		}
		free(exact);
		kept_n -= used;
		memmove(kept, kept + used, kept_n);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static struct story whole, pieces;
	static struct script s;
	struct record_keys k = { .in.seq = 1, .out.seq = 1 };
	size_t piece;

	s = (struct script){ .p = p, .n = n };
	k.in.suite = k.out.suite = next(&s) & 1 ? RECORD_CHACHA20 :
	    RECORD_AES128_GCM;
	piece = 1 + next(&s);
	while (s.n > 0) {
		switch (next(&s) % 3) {
		case 0:
			add_record(&s, &k.out);
			break;
		case 1:
			add_rubbish(&s);
			break;
		case 2:
			change_bit(&s);
			break;
		}
	}
	memset(&whole, 0, sizeof whole);
	memset(&pieces, 0, sizeof pieces);
	read_stream(&whole, &s, k.in, STREAM);
	read_stream(&pieces, &s, k.in, piece);
	if (whole.n != pieces.n || whole.verdict != pieces.verdict ||
	    memcmp(whole.text, pieces.text, whole.n) != 0)
		abort();
	if (whole.opened > s.sealed || whole.n > s.said_n ||
	    memcmp(whole.text, s.said, whole.n) != 0)
		abort();
	if (!s.spoilt && (whole.opened != s.sealed || whole.verdict != 0))
		abort();
	return 0;
}
