/*
 * SPDX-License-Identifier: MIT
 *
 * Room Records: known records byte for byte, every cut, every bit changed,
 * and records out of their order.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const struct record_aead aead = {
	br_chacha20_ct_run, br_poly1305_ctmul_run, &br_aes_ct_ctr_vtable,
	br_ghash_ctmul
};

static const u8 suites[] = { RECORD_CHACHA20, RECORD_AES128_GCM };

#define VECTOR_SEQ 0x0102030405060708
#define VECTOR_TEXT "a message"

/* Made with Python's cryptography, that is OpenSSL: key 0, 1, ..., iv 0xa0,
 * 0xa1, ... */
static const u8 vector_chacha20[] = {
		0x17, 0x03, 0x03, 0x00, 0x19, 0xc7, 0xdf, 0x29, 0x33, 0xa0,
		0xf8, 0x5f, 0xf1, 0xd0, 0x3c, 0x66, 0xf6, 0x57, 0xe7, 0x27,
		0x59, 0xae, 0xa9, 0x71, 0x8e, 0x04, 0xc3, 0x7d, 0xfb, 0xac
}, vector_gcm[] = {
		0x17, 0x03, 0x03, 0x00, 0x21, 0x01, 0x02, 0x03, 0x04, 0x05,
		0x06, 0x07, 0x08, 0x7d, 0x1d, 0xf6, 0xaf, 0x48, 0xbb, 0xfd,
		0xa3, 0xe3, 0xe4, 0xda, 0x7a, 0xb0, 0x59, 0xc7, 0x18, 0x7e,
		0x37, 0xa2, 0xca, 0x2c, 0xc9, 0x57, 0x5e, 0x2b
}, vector_gcm_other_nonce[] = { /* "anything" */
		0x17, 0x03, 0x03, 0x00, 0x21, 0x61, 0x6e, 0x79, 0x74, 0x68,
		0x69, 0x6e, 0x67, 0x3d, 0x1d, 0xa9, 0x93, 0xc7, 0x0c, 0x4b,
		0xcb, 0x0a, 0x05, 0x5a, 0xae, 0xdb, 0x1d, 0x95, 0x49, 0xab,
		0xd3, 0x30, 0x14, 0x14, 0x6c, 0x58, 0xf8, 0x93
};

/* Both directions have the same keys, so that what we seal we can open. */
static struct record_keys
make_keys(u8 suite, u64 seq)
{
	struct record_key k = { .seq = seq, .suite = suite };

	for (int i = 0; i < 32; i++)
		k.key[i] = (u8)i;
	for (int i = 0; i < 12; i++)
		k.iv[i] = (u8)(0xa0 + i);
	return (struct record_keys){ k, k };
}

/* Seals n bytes of a pattern into an exact allocation. */
static u8 *
seal(struct record_keys *k, u8 type, size_t n, size_t *whole)
{
	size_t head = record_head(k->out.suite), size = head + n + RECORD_TAG;
	u8 *p = malloc(size);

	assert_non_null(p);
	for (size_t i = 0; i < n; i++)
		p[head + i] = (u8)(i * 7);
	*whole = record_seal(&aead, &k->out, k->out.seq++, type, p, n);
	assert_int_equal(*whole, size);
	return p;
}

/* record_open() on an exact copy. */
static int
open_copy(struct record_keys *k, const void *p, size_t n, struct record *r)
{
	u8 *copy = malloc(n + 1);
	int verdict;

	assert_non_null(copy);
	memcpy(copy + 1, p, n); /* and not aligned */
	verdict = record_open(&aead, &k->in, copy + 1, n, r);
	free(copy);
	return verdict;
}

static void
assert_opens(u8 suite, const u8 *p, size_t n)
{
	struct record_keys k = make_keys(suite, VECTOR_SEQ);
	u8 *copy = malloc(n);
	struct record r;

	assert_non_null(copy);
	memcpy(copy, p, n);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(record_open(&aead, &k.in, copy, cut, &r), 0);
	assert_memory_equal(copy, p, n); /* and nothing happened to it */
	assert_int_equal(record_open(&aead, &k.in, copy, n, &r), n);
	assert_int_equal(r.type, RECORD_DATA);
	assert_int_equal(r.n, strlen(VECTOR_TEXT));
	assert_memory_equal(r.p, VECTOR_TEXT, r.n);
	assert_true(k.in.seq == VECTOR_SEQ + 1);
	assert_true(k.out.seq == VECTOR_SEQ);
	free(copy);
}

static void
assert_seals(u8 suite, const u8 *p, size_t n)
{
	struct record_keys k = make_keys(suite, VECTOR_SEQ);
	u8 record[100];

	memcpy(record + record_head(suite), VECTOR_TEXT, strlen(VECTOR_TEXT));
	assert_int_equal(record_seal(&aead, &k.out, k.out.seq, RECORD_DATA,
	    record, strlen(VECTOR_TEXT)), n);
	assert_memory_equal(record, p, n);
	assert_true(k.out.seq == VECTOR_SEQ);
}

static void
the_known_records_are_sealed_byte_for_byte(void **state)
{
	(void)state;
	assert_seals(RECORD_CHACHA20, vector_chacha20, sizeof vector_chacha20);
	assert_seals(RECORD_AES128_GCM, vector_gcm, sizeof vector_gcm);
}

static void
the_known_records_are_opened_and_awaited_at_every_cut(void **state)
{
	(void)state;
	assert_opens(RECORD_CHACHA20, vector_chacha20, sizeof vector_chacha20);
	assert_opens(RECORD_AES128_GCM, vector_gcm, sizeof vector_gcm);
}

static void
a_peer_may_choose_its_explicit_nonces_as_it_likes(void **state)
{
	(void)state;
	assert_opens(RECORD_AES128_GCM, vector_gcm_other_nonce,
	    sizeof vector_gcm_other_nonce);
}

/* Poly1305 that forgets the text. */
static void
broken_poly1305(const void *key, const void *iv, void *data, size_t n,
    const void *aad, size_t aad_n, void *tag, br_chacha20_run chacha20,
    int encrypt)
{
	br_poly1305_ctmul_run(key, iv, data, n, aad, aad_n, tag, chacha20,
	    encrypt);
	if (aad_n == 13) /* always, here */
		memset(data, 0, n);
}

static void
the_self_test_agrees_with_bearssl_and_sees_a_broken_cipher(void **state)
{
	struct record_aead broken = aead;

	(void)state;
	assert_true(record_self_test(&aead));
	broken.aes = &br_aes_small_ctr_vtable;
	broken.ghash = br_ghash_ctmul32;
	broken.poly1305 = br_poly1305_ctmul32_run;
	assert_true(record_self_test(&broken));
	broken.poly1305 = broken_poly1305;
	assert_false(record_self_test(&broken));
}

static void
every_length_comes_back_as_it_went(void **state)
{
	static const u16 lengths[] = { 0, 1, 15, 16, 17, 1000, 16383, 16384 };

	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		struct record_keys k = make_keys(suites[s], 1);

		for (size_t i = 0; i < COUNT(lengths); i++) {
			size_t whole;
			u8 *p = seal(&k, RECORD_DATA, lengths[i], &whole);
			struct record r;

			assert_true(whole <= RECORD_MAX);
			assert_int_equal(record_open(&aead, &k.in, p, whole, &r),
			    whole);
			assert_int_equal(r.n, lengths[i]);
			for (size_t j = 0; j < r.n; j++)
				assert_int_equal(r.p[j], (u8)(j * 7));
			free(p);
		}
		assert_true(k.in.seq == 1 + COUNT(lengths));
	}
}

static void
the_same_bytes_and_number_give_the_same_record_again(void **state)
{
	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		struct record_keys k = make_keys(suites[s], 9);
		size_t n, m;
		u8 *a = seal(&k, RECORD_DATA, 200, &n), *b;

		k.out.seq = 9;
		b = seal(&k, RECORD_DATA, 200, &m);
		assert_int_equal(n, m);
		assert_memory_equal(a, b, n);
		free(b);
		b = seal(&k, RECORD_DATA, 200, &m);
		assert_memory_not_equal(a, b, n);
		free(a);
		free(b);
	}
}

/* The header says how much to wait for, so a bit changed there may be another
 * refusal, or a record that never ends; it is never taken. */
static void
a_bit_changed_anywhere_is_refused(void **state)
{
	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		struct record_keys k = make_keys(suites[s], 5);
		size_t n;
		u8 *p = seal(&k, RECORD_DATA, 21, &n);
		struct record r;

		for (size_t bit = 0; bit < n * 8; bit++) {
			int verdict;

			p[bit / 8] ^= (u8)(1 << bit % 8);
			verdict = open_copy(&k, p, n, &r);
			p[bit / 8] ^= (u8)(1 << bit % 8);
			if (bit >= RECORD_HEADER * 8)
				assert_int_equal(verdict, -20);
			else
				assert_true(verdict <= 0);
		}
		assert_true(k.in.seq == 5);
		assert_int_equal(open_copy(&k, p, n, &r), n);
		free(p);
	}
}

static void
another_type_or_a_shorter_length_breaks_the_tag(void **state)
{
	struct record r;

	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		struct record_keys k = make_keys(suites[s], 5);
		size_t n;
		u8 *p = seal(&k, RECORD_DATA, 40, &n);

		p[0] = RECORD_HANDSHAKE;
		assert_int_equal(open_copy(&k, p, n, &r), -20);
		p[0] = RECORD_DATA;
		p[4]--;
		assert_int_equal(open_copy(&k, p, n, &r), -20);
		free(p);
	}
}

static void
a_replayed_dropped_or_reordered_record_is_refused(void **state)
{
	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		struct record_keys k = make_keys(suites[s], 1);
		size_t n;
		u8 *one = seal(&k, RECORD_DATA, 30, &n);
		u8 *two = seal(&k, RECORD_DATA, 30, &n);
		struct record r;

		assert_int_equal(open_copy(&k, two, n, &r), -20); /* early */
		assert_int_equal(open_copy(&k, one, n, &r), n);
		assert_int_equal(open_copy(&k, one, n, &r), -20); /* again */
		assert_int_equal(open_copy(&k, two, n, &r), n);
		k.in.seq++; /* one was dropped: the next is too early */
		assert_int_equal(open_copy(&k, two, n, &r), -20);
		free(one);
		free(two);
	}
}

/* The verdict on a header of these bytes, which must be 0 up to the byte `at`
 * and the same from there on. */
static int
header_verdict(u8 suite, u8 type, u16 version, size_t length, size_t at)
{
	u8 p[RECORD_HEADER + 1] = { type };
	int verdict = 0;

	store16(p + 1, version);
	store16(p + 3, (u16)length);
	for (size_t n = 0; n <= sizeof p; n++) {
		struct record_keys k = make_keys(suite, 1);
		struct record r;
		int v = open_copy(&k, p, n, &r);

		if (n < at)
			assert_int_equal(v, 0);
		else if (n > at)
			assert_int_equal(v, verdict);
		verdict = v;
	}
	return verdict;
}

static void
a_type_that_has_no_business_here_is_refused_at_its_byte(void **state)
{
	(void)state;
	assert_int_equal(header_verdict(1, 'G', 0x0303, 30, 1), -10);
	assert_int_equal(header_verdict(1, 20, 0x0303, 30, 1), -10);
	assert_int_equal(header_verdict(1, 24, 0x0303, 30, 1), -10);
	assert_int_equal(header_verdict(1, 0, 0x0303, 30, 1), -10);
	assert_int_equal(header_verdict(1, 23, 0x0303, 30, 6), 0);
	assert_int_equal(header_verdict(1, 22, 0x0303, 30, 6), 0);
}

static void
another_version_is_refused_at_its_byte(void **state)
{
	(void)state;
	assert_int_equal(header_verdict(2, 23, 0x0203, 30, 2), -70);
	assert_int_equal(header_verdict(2, 23, 0x0301, 30, 3), -70);
	assert_int_equal(header_verdict(2, 23, 0x0304, 30, 3), -70);
}

static void
a_length_beyond_the_limits_is_refused_at_the_header(void **state)
{
	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		u8 suite = suites[s];
		size_t over = record_head(suite) - RECORD_HEADER + RECORD_TAG;

		assert_int_equal(over, suite == RECORD_CHACHA20 ? 16 : 24);
		assert_int_equal(header_verdict(suite, 23, 0x0303, over - 1,
		    5), -50);
		assert_int_equal(header_verdict(suite, 23, 0x0303, over, 5),
		    0);
		assert_int_equal(header_verdict(suite, 23, 0x0303,
		    over + 16384, 5), 0);
		assert_int_equal(header_verdict(suite, 23, 0x0303,
		    over + 16385, 5), -22);
		assert_int_equal(header_verdict(suite, 23, 0x0303, 65535, 5),
		    -22);
	}
}

static void
an_alert_is_two_bytes_and_a_handshake_message_not_empty(void **state)
{
	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		u8 suite = suites[s];
		size_t over = record_head(suite) - RECORD_HEADER + RECORD_TAG;

		for (size_t n = 0; n < 5; n++)
			assert_int_equal(header_verdict(suite, 21, 0x0303,
			    over + n, 5), n == 2 ? 0 : -50);
		assert_int_equal(header_verdict(suite, 22, 0x0303, over, 5),
		    -50);
		assert_int_equal(header_verdict(suite, 22, 0x0303, over + 1,
		    5), 0);
	}
}

static void
an_alert_is_sealed_and_opened(void **state)
{
	(void)state;
	for (size_t s = 0; s < COUNT(suites); s++) {
		struct record_keys k = make_keys(suites[s], 77);
		u8 p[RECORD_ALERT_MAX];
		size_t n = record_seal_alert(&aead, &k.out, 77, ALERT_WARNING,
		    ALERT_CLOSE_NOTIFY, p);
		struct record r;

		assert_true(n <= sizeof p);
		assert_int_equal(record_open(&aead, &k.in, p, n, &r), n);
		assert_int_equal(r.type, RECORD_ALERT);
		assert_int_equal(r.n, 2);
		assert_int_equal(r.p[0], ALERT_WARNING);
		assert_int_equal(r.p[1], ALERT_CLOSE_NOTIFY);
	}
}

/* A turn's read may hold several records and the start of one more. */
static void
records_that_come_together_are_taken_one_by_one(void **state)
{
	struct record_keys k = make_keys(RECORD_AES128_GCM, 3);
	u8 buffer[400];
	size_t n = 0, whole, at = 0;
	struct record r;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		u8 *p = seal(&k, RECORD_DATA, 10 * i, &whole);

		memcpy(buffer + n, p, whole);
		n += whole;
		free(p);
	}
	n -= 1;
	for (size_t i = 0; i < 3; i++) {
		int used = record_open(&aead, &k.in, buffer + at, n - at, &r);

		assert_true(used > 0);
		assert_int_equal(r.n, 10 * i);
		at += (size_t)used;
	}
	assert_int_equal(record_open(&aead, &k.in, buffer + at, n - at, &r), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_known_records_are_sealed_byte_for_byte),
		cmocka_unit_test(
		    the_known_records_are_opened_and_awaited_at_every_cut),
		cmocka_unit_test(
		    a_peer_may_choose_its_explicit_nonces_as_it_likes),
		cmocka_unit_test(
		    the_self_test_agrees_with_bearssl_and_sees_a_broken_cipher),
		cmocka_unit_test(every_length_comes_back_as_it_went),
		cmocka_unit_test(
		    the_same_bytes_and_number_give_the_same_record_again),
		cmocka_unit_test(a_bit_changed_anywhere_is_refused),
		cmocka_unit_test(
		    another_type_or_a_shorter_length_breaks_the_tag),
		cmocka_unit_test(
		    a_replayed_dropped_or_reordered_record_is_refused),
		cmocka_unit_test(
		    a_type_that_has_no_business_here_is_refused_at_its_byte),
		cmocka_unit_test(another_version_is_refused_at_its_byte),
		cmocka_unit_test(
		    a_length_beyond_the_limits_is_refused_at_the_header),
		cmocka_unit_test(
		    an_alert_is_two_bytes_and_a_handshake_message_not_empty),
		cmocka_unit_test(an_alert_is_sealed_and_opened),
		cmocka_unit_test(
		    records_that_come_together_are_taken_one_by_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
