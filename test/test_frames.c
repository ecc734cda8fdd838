/*
 * SPDX-License-Identifier: MIT
 *
 * Room Frames: every header whole and cut at every point, every refusal
 * at the byte that shows it.
 */
#include "../wspush.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define MAX_MESSAGE 1000

static const struct message_in nothing_begun;

/* frame_decode() on an exact copy, so that the sanitizer sees the first
 * byte too far. */
static int
decode_copy(struct frame *f, struct message_in m, const void *p, size_t n,
    size_t max)
{
	u8 *copy = malloc(n > 0 ? n : 1);
	int verdict;

	assert_non_null(copy);
	memcpy(copy, p, n);
	verdict = frame_decode(f, &m, n > 0 ? copy : copy + 1, n, max);
	free(copy);
	return verdict;
}

/* The verdict on every prefix must be 0 up to the byte number *at, and the
 * same from there on. */
static int
decode_all_cuts(struct frame *f, struct message_in m, const void *p, size_t n,
    size_t max, size_t *at)
{
	int verdict = 0;

	*at = 0;
	for (size_t i = 0; i <= n; i++) {
		int v = decode_copy(f, m, p, i, max);

		if (verdict == 0 && v != 0) {
			verdict = v;
			*at = i;
		}
		assert_int_equal(v, verdict);
	}
	return verdict;
}

static void
refused(struct message_in m, const void *p, size_t n, int code, size_t at)
{
	struct frame f;
	size_t where;

	assert_int_equal(decode_all_cuts(&f, m, p, n, MAX_MESSAGE, &where),
	    -code);
	assert_int_equal(where, at);
}

#define REFUSED(m, bytes, code, at) \
	refused((m), (bytes), sizeof(bytes) - 1, (code), (at))

static void
accepted(struct message_in m, const void *p, size_t n, size_t max, bool fin,
    u8 opcode, u64 length)
{
	struct frame f;
	size_t at;

	assert_int_equal(decode_all_cuts(&f, m, p, n, max, &at), n);
	assert_int_equal(at, n);
	assert_int_equal(f.fin, fin);
	assert_int_equal(f.opcode, opcode);
	assert_true(f.length == length);
	assert_memory_equal(f.mask, "\x11\x22\x33\x44", 4);
}

#define ACCEPTED(m, bytes, max, fin, opcode, length) \
	accepted((m), (bytes "\x11\x22\x33\x44"), sizeof(bytes) + 3, (max), \
	    (fin), (opcode), (length))

static void
every_kind_of_header_is_read_whole_and_in_pieces(void **state)
{
	struct message_in text = { .opcode = FRAME_TEXT };
	(void)state;

	ACCEPTED(nothing_begun, "\x81\x80", MAX_MESSAGE, true, FRAME_TEXT, 0);
	ACCEPTED(nothing_begun, "\x82\xfd", MAX_MESSAGE, true, FRAME_BINARY,
	    125);
	ACCEPTED(nothing_begun, "\x02\x85", MAX_MESSAGE, false, FRAME_BINARY,
	    5);
	ACCEPTED(nothing_begun, "\x01\xfe\x00\x7e", MAX_MESSAGE, false,
	    FRAME_TEXT, 126);
	ACCEPTED(nothing_begun, "\x81\xfe\xff\xff", 65535, true, FRAME_TEXT,
	    65535);
	ACCEPTED(nothing_begun, "\x81\xff\0\0\0\0\0\x01\0\0", 65536, true,
	    FRAME_TEXT, 65536);
	ACCEPTED(nothing_begun, "\x81\xff\0\0\0\0\x7f\xff\xff\xff",
	    SIZE_MAX, true, FRAME_TEXT, INT32_MAX);
#if SIZE_MAX > UINT32_MAX
	ACCEPTED(nothing_begun, "\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
	    SIZE_MAX, true, FRAME_TEXT, INT64_MAX);
#endif
	ACCEPTED(text, "\x00\x81", MAX_MESSAGE, false, FRAME_CONTINUATION, 1);
	ACCEPTED(text, "\x80\x80", MAX_MESSAGE, true, FRAME_CONTINUATION, 0);
	ACCEPTED(text, "\x89\x80", MAX_MESSAGE, true, FRAME_PING, 0);
	ACCEPTED(text, "\x88\x82", MAX_MESSAGE, true, FRAME_CLOSE, 2);
	ACCEPTED(nothing_begun, "\x8a\xfd", 0, true, FRAME_PONG, 125);
}

static void
the_first_byte_alone_shows_reserved_bits_and_opcodes(void **state)
{
	(void)state;
	for (int byte = 0; byte < 256; byte++) {
		struct message_in text = { .opcode = FRAME_TEXT };
		int opcode = byte & 15;
		u8 p = (u8)byte;
		struct frame f;
		bool control = (opcode == 8 || opcode == 9 || opcode == 10)
		    && byte >= 128;
		bool fresh = opcode == 1 || opcode == 2;
		bool rsv = (byte & 0x70) != 0;

		assert_int_equal(decode_copy(&f, nothing_begun, &p, 1, 10),
		    !rsv && (control || fresh) ? 0 : -1002);
		assert_int_equal(decode_copy(&f, text, &p, 1, 10),
		    !rsv && (control || opcode == 0) ? 0 : -1002);
	}
}

static void
a_continuation_without_a_beginning_is_refused(void **state)
{
	(void)state;
	REFUSED(nothing_begun, "\x80\x81\x11\x22\x33\x44", 1002, 1);
	REFUSED(nothing_begun, "\x00\x81\x11\x22\x33\x44", 1002, 1);
}

static void
new_data_inside_a_message_is_refused(void **state)
{
	struct message_in binary = { .opcode = FRAME_BINARY };
	(void)state;

	REFUSED(binary, "\x81\x81\x11\x22\x33\x44", 1002, 1);
	REFUSED(binary, "\x02\x81\x11\x22\x33\x44", 1002, 1);
}

static void
a_fragmented_control_frame_is_refused(void **state)
{
	(void)state;
	REFUSED(nothing_begun, "\x08\x82\x11\x22\x33\x44", 1002, 1);
	REFUSED(nothing_begun, "\x09\x80\x11\x22\x33\x44", 1002, 1);
	REFUSED(nothing_begun, "\x0a\x80\x11\x22\x33\x44", 1002, 1);
}

static void
the_second_byte_shows_a_missing_mask(void **state)
{
	(void)state;
	REFUSED(nothing_begun, "\x81\x05hello", 1002, 2);
	REFUSED(nothing_begun, "\x81\x7f\xff", 1002, 2);
	REFUSED(nothing_begun, "\x89\x00", 1002, 2);
}

static void
the_second_byte_shows_a_control_frame_over_125_bytes(void **state)
{
	(void)state;
	REFUSED(nothing_begun, "\x89\xfe\x00\x7e\x11\x22\x33\x44", 1002, 2);
	REFUSED(nothing_begun, "\x88\xff\0\0\0\0\0\x01\0\0", 1002, 2);
}

static void
a_length_not_in_its_shortest_form_is_refused(void **state)
{
	(void)state;
	REFUSED(nothing_begun, "\x81\xfe\x00\x7d\x11\x22\x33\x44", 1002, 4);
	REFUSED(nothing_begun, "\x81\xfe\x00\x00\x11\x22\x33\x44", 1002, 4);
	REFUSED(nothing_begun, "\x81\xff\0\0\0\0\0\0\xff\xff\x11\x22\x33\x44",
	    1002, 10);
	REFUSED(nothing_begun, "\x81\xff\0\0\0\0\0\0\0\x05\x11\x22\x33\x44",
	    1002, 10);
}

static void
the_highest_bit_of_a_64_bit_length_is_refused_at_once(void **state)
{
	(void)state;
	REFUSED(nothing_begun, "\x81\xff\x80\0\0\0\0\0\0\0", 1002, 3);
	REFUSED(nothing_begun, "\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	    1002, 3);
}

static void
a_message_over_the_limit_is_refused_by_its_length_alone(void **state)
{
	struct frame f;
	size_t at;
	(void)state;

	ACCEPTED(nothing_begun, "\x82\xe3", 100, true, FRAME_BINARY, 99);
	ACCEPTED(nothing_begun, "\x82\xe4", 100, true, FRAME_BINARY, 100);
	assert_int_equal(decode_all_cuts(&f, nothing_begun, "\x82\xe5", 2,
	    100, &at), -1009);
	assert_int_equal(at, 2);
	REFUSED(nothing_begun, "\x82\xfe\x03\xe9", 1009, 4);
	REFUSED(nothing_begun, "\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
	    1009, 10);
}

static void
the_limit_counts_all_frames_of_a_message(void **state)
{
	struct message_in m = { .opcode = FRAME_BINARY, .length = 990 };
	(void)state;

	ACCEPTED(m, "\x00\x89", MAX_MESSAGE, false, FRAME_CONTINUATION, 9);
	ACCEPTED(m, "\x80\x8a", MAX_MESSAGE, true, FRAME_CONTINUATION, 10);
	REFUSED(m, "\x80\x8b", 1009, 2);
	REFUSED(m, "\x80\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 1009, 10);
}

static void
a_control_frame_does_not_count_towards_the_limit(void **state)
{
	struct message_in m = { .opcode = FRAME_TEXT, .length = MAX_MESSAGE };
	(void)state;

	ACCEPTED(m, "\x89\xfd", MAX_MESSAGE, true, FRAME_PING, 125);
}

static void
unmasking_fits_at_every_offset_length_and_phase(void **state)
{
	static const u8 mask[4] = { 0xa1, 0x5b, 0x07, 0xff };
	(void)state;

	for (size_t offset = 0; offset < 9; offset++) {
		for (size_t n = 0; n < 40; n++) {
			size_t phase = offset * 3 + n;
			u8 *p = malloc(offset + n + 1);

			assert_non_null(p);
			memset(p, 0x5a, offset + n + 1);
			frame_unmask(p + offset, n, mask, phase);
			for (size_t i = 0; i < n; i++)
				assert_int_equal(p[offset + i],
				    0x5a ^ mask[(phase + i) % 4]);
			assert_int_equal(p[offset + n], 0x5a);
			if (offset > 0)
				assert_int_equal(p[offset - 1], 0x5a);
			free(p);
		}
	}
}

static void
unmasking_in_two_pieces_equals_unmasking_whole(void **state)
{
	static const u8 mask[4] = { 1, 2, 3, 4 };
	u8 whole[33], pieces[33];
	(void)state;

	for (size_t cut = 0; cut <= sizeof whole; cut++) {
		memset(whole, 0, sizeof whole);
		memset(pieces, 0, sizeof pieces);
		frame_unmask(whole, sizeof whole, mask, 0);
		frame_unmask(pieces, cut, mask, 0);
		frame_unmask(pieces + cut, sizeof pieces - cut, mask, cut);
		assert_memory_equal(whole, pieces, sizeof whole);
	}
}

/* What we write, with the mask bit set and a mask behind it, is what a
 * client would have written. */
static void
our_headers_are_in_the_shortest_form(void **state)
{
	static const struct {
		size_t n;
		size_t size;
	} rows[] = { { 0, 2 }, { 1, 2 }, { 125, 2 }, { 126, 4 }, { 127, 4 },
		{ 65535, 4 }, { 65536, 10 }, { 65537, 10 },
		{ SIZE_MAX / 2, 10 } };
	(void)state;

	for (size_t i = 0; i < COUNT(rows); i++) {
		u8 p[FRAME_HEAD_MAX + 4] = { 0 };
		struct frame f;
		size_t n = frame_head(p, FRAME_BINARY, rows[i].n);

		assert_int_equal(n, rows[i].size);
		assert_int_equal(p[0], 0x82);
		p[1] |= FRAME_MASKED;
		assert_int_equal(decode_copy(&f, nothing_begun, p, n + 4,
		    SIZE_MAX), n + 4);
		assert_true(f.length == rows[i].n);
	}
}

static void
close_codes_pass_by_the_table_of_rfc_6455(void **state)
{
	(void)state;
	for (unsigned code = 0; code <= UINT16_MAX; code++) {
		bool good = (code >= 1000 && code <= 1003)
		    || (code >= 1007 && code <= 1014)
		    || (code >= 3000 && code < 5000);

		assert_int_equal(close_code_to_send(code), good);
	}
	assert_false(close_code_to_send(0x10000 + 1000));
	assert_false(close_code_to_send(UINT32_MAX));
}

static int
parse_close(u16 *code, struct str *reason, const char *p, size_t n)
{
	u8 *copy = malloc(n > 0 ? n : 1);
	int verdict;

	assert_non_null(copy);
	memcpy(copy, p, n);
	verdict = close_parse(code, reason, copy, n);
	if (reason->n > 0)
		reason->p = p + 2;
	free(copy);
	return verdict;
}

static void
a_close_body_is_read(void **state)
{
	struct str reason;
	u16 code;
	(void)state;

	assert_int_equal(parse_close(&code, &reason, "", 0), 0);
	assert_int_equal(code, 1005);
	assert_int_equal(reason.n, 0);
	assert_int_equal(parse_close(&code, &reason, "\x03\xe8", 2), 0);
	assert_int_equal(code, 1000);
	assert_int_equal(reason.n, 0);
	assert_int_equal(parse_close(&code, &reason, "\x0f\xa1"
	    "bye \xc3\xa9", 8), 0);
	assert_int_equal(code, 4001);
	assert_true(str_is(reason, "bye \xc3\xa9"));
}

static void
a_close_body_of_one_byte_or_with_a_bad_code_is_1002(void **state)
{
	struct str reason;
	u16 code;
	(void)state;

	assert_int_equal(parse_close(&code, &reason, "\x03", 1), -1002);
	assert_int_equal(parse_close(&code, &reason, "\x03\xe7", 2), -1002);
	assert_int_equal(parse_close(&code, &reason, "\x03\xed", 2), -1002);
	assert_int_equal(parse_close(&code, &reason, "\x03\xed\xff", 3),
	    -1002);
	assert_int_equal(code, 1005);
}

static void
a_close_reason_that_is_not_utf8_is_1007(void **state)
{
	struct str reason;
	u16 code;
	(void)state;

	assert_int_equal(parse_close(&code, &reason, "\x03\xe8\xff", 3),
	    -1007);
	assert_int_equal(parse_close(&code, &reason, "\x03\xe8"
	    "a\xc3", 4), -1007);
	assert_int_equal(reason.n, 0);
}

static void
a_close_frame_holds_code_and_reason(void **state)
{
	u8 p[127], longest[123];
	struct str reason = { (char *)longest, sizeof longest };
	(void)state;

	assert_int_equal(close_frame(p, 1005, STR("")), 2);
	assert_memory_equal(p, "\x88\x00", 2);
	assert_int_equal(close_frame(p, 1000, STR("")), 4);
	assert_memory_equal(p, "\x88\x02\x03\xe8", 4);
	assert_int_equal(close_frame(p, 4001, STR("replaced")), 12);
	assert_memory_equal(p, "\x88\x0a\x0f\xa1replaced", 12);
	memset(longest, 'x', sizeof longest);
	assert_int_equal(close_frame(p, 1001, reason), 127);
	assert_int_equal(p[1], 125);
	assert_int_equal(p[126], 'x');
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
		    every_kind_of_header_is_read_whole_and_in_pieces),
		cmocka_unit_test(
		    the_first_byte_alone_shows_reserved_bits_and_opcodes),
		cmocka_unit_test(
		    a_continuation_without_a_beginning_is_refused),
		cmocka_unit_test(new_data_inside_a_message_is_refused),
		cmocka_unit_test(a_fragmented_control_frame_is_refused),
		cmocka_unit_test(the_second_byte_shows_a_missing_mask),
		cmocka_unit_test(
		    the_second_byte_shows_a_control_frame_over_125_bytes),
		cmocka_unit_test(a_length_not_in_its_shortest_form_is_refused),
		cmocka_unit_test(
		    the_highest_bit_of_a_64_bit_length_is_refused_at_once),
		cmocka_unit_test(
		    a_message_over_the_limit_is_refused_by_its_length_alone),
		cmocka_unit_test(the_limit_counts_all_frames_of_a_message),
		cmocka_unit_test(
		    a_control_frame_does_not_count_towards_the_limit),
		cmocka_unit_test(
		    unmasking_fits_at_every_offset_length_and_phase),
		cmocka_unit_test(
		    unmasking_in_two_pieces_equals_unmasking_whole),
		cmocka_unit_test(our_headers_are_in_the_shortest_form),
		cmocka_unit_test(close_codes_pass_by_the_table_of_rfc_6455),
		cmocka_unit_test(a_close_body_is_read),
		cmocka_unit_test(
		    a_close_body_of_one_byte_or_with_a_bad_code_is_1002),
		cmocka_unit_test(a_close_reason_that_is_not_utf8_is_1007),
		cmocka_unit_test(a_close_frame_holds_code_and_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
