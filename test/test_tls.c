/*
 * SPDX-License-Identifier: MIT
 *
 * Rooms DER to TLS: certificates and keys in every state that people
 * bring them in, certificates of our own, and whole handshakes with BearSSL as
 * the client.
 */
#include <stdbool.h>
#include <string.h>

#include <bearssl.h>

static bool wrong_cipher; /* Poly1305 makes another tag */

static void
wrong_poly1305(const void *key, const void *iv, void *data, size_t n,
    const void *aad, size_t aad_n, void *tag, br_chacha20_run chacha20,
    int encrypt)
{
	br_poly1305_ctmul_run(key, iv, data, n, aad, aad_n, tag, chacha20,
	    encrypt);
	if (n == 65)
		memset(tag, 0, 16);
}

static void
set_chapol(br_ssl_engine_context *e)
{
	br_ssl_engine_set_default_chapol(e);
	if (wrong_cipher)
		e->ipoly = wrong_poly1305;
}

#define br_ssl_engine_set_default_chapol set_chapol
#define main wspush_main
#include "../wspush.c"
#undef main

#include <setjmp.h>

#include <cmocka.h>

#define PEM "test/corpus/pem/"

static char dir[] = "/tmp/wspush-tls-XXXXXX";
#define why refusal

/* A file in the test's directory, from a string or bytes. */
static const char *
put_file(const char *name, const void *p, size_t n)
{
	static char paths[4][256];
	static int turn;
	char *path = paths[turn++ % 4];

	snprintf(path, sizeof paths[0], "%s/%s", dir, name);
	assert_int_equal(sys_write_file(path, p, n, 0600), 0);
	return path;
}

/* A file of the corpus, terminated; never two at a time in one buffer. */
static char *
get_file(const char *name, size_t *n)
{
	static char texts[4][16384];
	static int turn;
	char *text = texts[turn++ % 4], path[300];
	ssize_t r;

	snprintf(path, sizeof path, "%s%s", *name == '/' ? "" : PEM, name);
	r = sys_read_file(path, text, sizeof texts[0] - 1);
	if (r <= 0)
		fail_msg("cannot read %s: run this in the top directory", path);
	text[r] = '\0';
	if (n)
		*n = (size_t)r;
	return text;
}

/* Several files of the corpus as one. */
static const char *
join_files(const char *name, const char *const *parts, size_t count)
{
	static char text[65536];
	size_t n = 0;

	for (size_t i = 0; i < count; i++)
		n += (size_t)snprintf(text + n, sizeof text - n, "%s",
		    get_file(parts[i], NULL));
	return put_file(name, text, n);
}

static int
load(const char *cert, const char *key)
{
	char paths[2][300];

	snprintf(paths[0], 300, "%s%s", *cert == '/' ? "" : PEM, cert);
	snprintf(paths[1], 300, "%s%s", *key == '/' ? "" : PEM, key);
	why[0] = '\0';
	return tls_load(paths[0], paths[1]);
}

static void
assert_loads(const char *cert, const char *key)
{
	if (load(cert, key) != 0)
		fail_msg("%s with %s: %s", cert, key, why);
}

/* Refused, with words of the reason. */
static void
assert_refused(const char *cert, const char *key, const char *words)
{
	const struct cert *before = certs.used;

	assert_int_equal(load(cert, key), -1);
	if (!strstr(why, words))
		fail_msg("\"%s\" does not say \"%s\"", why, words);
	assert_ptr_equal(certs.used, before);
}

static void
every_kind_of_key_loads_with_its_certificate(void **state)
{
	(void)state;
	assert_loads("ec.crt", "ec.key");
	assert_loads("rsa2048.crt", "rsa2048-pkcs1.key");
	assert_loads("rsa4096.crt", "rsa4096.key");
	assert_loads("p384.crt", "p384.key");
	assert_loads("p521.crt", "p521.key");
	assert_true(tls_cert_days() > 36000);
}

static void
ec_parameters_before_the_key_are_skipped(void **state)
{
	(void)state;
	assert_loads("ec.crt", "ec-parameters-first.key");
}

/* What editors and mail do to a file. */
static const char *
spoil(const char *name, const char *as, bool bom, bool crlf, bool no_end)
{
	char text[16384];
	size_t n = 0;

	if (bom)
		n = (size_t)snprintf(text, sizeof text, "\xef\xbb\xbf");
	for (const char *p = get_file(name, NULL); *p; p++) {
		if (*p == '\n' && p[1] == '\0' && no_end)
			break;
		if (*p == '\n' && crlf)
			text[n++] = '\r';
		text[n++] = *p;
	}
	return put_file(as, text, n);
}

static void
crlf_a_byte_order_mark_and_no_final_newline_do_no_harm(void **state)
{
	(void)state;
	for (int i = 1; i < 8; i++) {
		const char *cert = spoil("rsa2048.crt", "spoilt.crt", i & 1,
		    i & 2, i & 4);
		const char *key = spoil("rsa2048-pkcs1.key", "spoilt.key",
		    i & 1, i & 2, i & 4);

		assert_loads(cert, key);
	}
}

static void
one_file_may_hold_both_and_comments(void **state)
{
	static const char *const parts[] = { "ec-parameters-first.key",
		"ec.crt" };
	char text[8192] = "Bag Attributes\n    friendlyName: me\n";
	const char *both = join_files("both.pem", parts, 2);

	(void)state;
	assert_loads(both, both);
	strcat(text, get_file(both, NULL));
	both = put_file("both.pem", text, strlen(text));
	assert_loads(both, both);
}

/* The first object of a PEM file of the corpus, in DER. */
static size_t
get_der(const char *name, u8 der[4096])
{
	struct str at = text_of(get_file(name, NULL));
	struct pem m;
	int n;

	assert_int_equal(pem_next(&at, &m), 1);
	n = base64_decode(der, 4096, m.text, BASE64);
	assert_true(n > 0);
	return (size_t)n;
}

static void
der_loads_like_pem(void **state)
{
	u8 cert[4096], key[4096];
	size_t cert_n, key_n;
	static const char *const pairs[][2] = {
		{ "ec.crt", "ec.key" }, { "rsa2048.crt", "rsa2048-pkcs1.key" },
		{ "rsa4096.crt", "rsa4096.key" }, { "p384.crt", "p384.key" }
	};

	(void)state;
	for (size_t i = 0; i < COUNT(pairs); i++) {
		cert_n = get_der(pairs[i][0], cert);
		key_n = get_der(pairs[i][1], key);
		assert_loads(put_file("cert.der", cert, cert_n),
		    put_file("key.der", key, key_n));
	}
	assert_refused(put_file("cert.der", cert, cert_n - 1), "p384.key",
	    "damaged or cut short");
	assert_refused("p384.crt", put_file("key.der", key, key_n - 1),
	    "damaged");
	memset(key, 0, sizeof key);
	key[0] = 0x30;
	assert_refused("p384.crt", put_file("key.der", key, 2401),
	    "more than 2400 bytes of private key");
}

static void
a_chain_loads_in_pem_and_in_der(void **state)
{
	static const char *const parts[] = { "chain-leaf.crt",
		"chain-intermediate.crt", "chain-root.crt" };
	u8 der[4096];
	size_t n = 0;

	(void)state;
	assert_loads(join_files("chain.crt", parts, 2), "chain-leaf.key");
	assert_int_equal(certs.used->count, 2);
	assert_loads(join_files("chain.crt", parts, 3), "chain-leaf.key");
	assert_int_equal(certs.used->count, 3);
	for (int i = 0; i < 3; i++) {
		u8 one[4096];
		size_t one_n = get_der(parts[i], one);

		memcpy(der + n, one, one_n);
		n += one_n;
	}
	assert_loads(put_file("chain.der", der, n), "chain-leaf.key");
	assert_int_equal(certs.used->count, 3);
}

static void
a_chain_in_the_wrong_order_is_named(void **state)
{
	static const char *const root_first[] = { "chain-root.crt",
		"chain-intermediate.crt", "chain-leaf.crt" };
	static const char *const swapped[] = { "chain-leaf.crt",
		"chain-root.crt", "chain-intermediate.crt" };

	(void)state;
	assert_refused(join_files("chain.crt", root_first, 3),
	    "chain-leaf.key", "wrong order: certificate 2 did not");
	assert_refused(join_files("chain.crt", swapped, 3), "chain-leaf.key",
	    "wrong order: certificate 2 did not sign number 1");
}

static void
a_chain_has_at_most_eight_certificates_and_8192_bytes(void **state)
{
	const char *parts[9] = { "chain-leaf.crt", "chain-intermediate.crt" };

	(void)state;
	for (int i = 2; i < 9; i++)
		parts[i] = "chain-root.crt";
	assert_loads(join_files("chain.crt", parts, 8), "chain-leaf.key");
	assert_refused(join_files("chain.crt", parts, 9), "chain-leaf.key",
	    "more than 8 certificates");
	for (int i = 0; i < 8; i++)
		parts[i] = "rsa4096.crt"; /* 1,300 bytes each */
	assert_refused(join_files("chain.crt", parts, 8), "rsa4096.key",
	    "more than 8192 bytes");
}

static void
an_encrypted_key_gets_a_message_of_its_own(void **state)
{
	(void)state;
	assert_refused("ec.crt", "encrypted-pkcs8.key", "openssl pkey -in");
	assert_refused("ec.crt", "encrypted-old.key", "openssl pkey -in");
}

static void
a_key_that_is_not_the_certificates_is_refused(void **state)
{
	(void)state;
	assert_refused("ec.crt", "rsa2048-pkcs1.key", "an RSA key and not");
	assert_refused("rsa2048.crt", "ec.key", "which is for an RSA");
	assert_refused("p384.crt", "ec.key", "not that of");
	assert_refused("ec.crt", "chain-leaf.key", "not that of");
	assert_refused("rsa2048.crt", "rsa4096.key", "not that of");
	assert_refused("rsa4096.crt", "rsa2048-pkcs1.key",
	    "not that of");
}

static void
keys_that_cannot_be_used_are_named(void **state)
{
	(void)state;
	assert_refused("ec.crt", "ed25519.key", "neither RSA nor EC");
	assert_refused("ec.crt", "k256.key", "neither RSA nor EC");
	assert_refused("rsa2048.crt", "rsa1024.key", "RSA key of 1024 bits");
	assert_refused("ed25519.crt", "ec.key", "neither RSA nor EC");
}

static void
files_that_hold_something_else_are_named(void **state)
{
	(void)state;
	assert_refused("ec.key", "ec.crt", "holds no certificate");
	assert_refused("ec.crt", "ec.crt", "holds no private key");
	assert_refused("none.crt", "ec.key", "No such file");
	assert_refused("ec.crt", "none.key", "No such file");
	assert_refused(put_file("empty", "", 0), "ec.key", "is empty");
	assert_refused(put_file("text", "hello\n", 6), "ec.key",
	    "holds no certificate");
	assert_refused("ec.crt", put_file("text", "hello\n", 6),
	    "holds no private key");
	assert_refused(put_file("der", "\x30\x03zzz", 5), "ec.key", "damaged");
}

static void
a_file_of_the_largest_size_is_read_and_no_larger(void **state)
{
	char *text = malloc(WSP_TLS_FILE);
	size_t n;
	const char *cert = get_file("ec.crt", &n);

	(void)state;
	assert_non_null(text);
	memset(text, '\n', WSP_TLS_FILE);
	memcpy(text, cert, n);
	assert_loads(put_file("large", text, WSP_TLS_FILE - 1), "ec.key");
	assert_refused(put_file("large", text, WSP_TLS_FILE), "ec.key",
	    "larger than");
	assert_null(memmem(cert_file_room(), WSP_TLS_FILE, "BEGIN", 5));
	free(text);
}

static void
a_file_cut_anywhere_is_refused(void **state)
{
	size_t n;
	char *text = get_file("ec.crt", &n);

	(void)state;
	n = (size_t)(strstr(text, "-----END") - text);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(load(put_file("cut", text, cut), "ec.key"),
		    -1);
	text = get_file("ec.key", &n);
	n = (size_t)(strstr(text, "-----END") - text);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(load("ec.crt", put_file("cut", text, cut)),
		    -1);
}

static void
an_object_must_end_with_the_name_it_began_with(void **state)
{
	char *text = get_file("ec.crt", NULL);

	(void)state;
	memcpy(strstr(text, "END CERTIFICATE") + 4, "certificate", 11);
	assert_refused(put_file("end", text, strlen(text)), "ec.key",
	    "damaged or cut short");
}

static void
a_reload_that_fails_keeps_what_is_in_use(void **state)
{
	size_t n;
	char *text = get_file("ec.crt", &n);
	const char *cert = put_file("now.crt", text, n);
	const struct cert *place;

	(void)state;
	assert_loads(cert, "ec.key");
	place = certs.used;
	put_file("now.crt", text, n / 2);
	assert_int_equal(tls_reload(), -1);
	assert_non_null(strstr(why, "now.crt"));
	assert_ptr_equal(certs.used, place);
	assert_true(tls_cert_days() > 36000);
	put_file("now.crt", text, n);
	assert_int_equal(tls_reload(), 0);
	assert_ptr_not_equal(certs.used, place);
}

/* ----- certificates of our own */

static void
dates_are_those_of_the_c_library(void **state)
{
	char ours[80], theirs[80];

	(void)state;
	for (time_t day = 0; day < 400 * 366; day++) {
		time_t t = day * DAY + (day * 7919) % DAY;
		struct tm tm;

		date_text(ours, t);
		gmtime_r(&t, &tm);
		strftime(theirs, sizeof theirs, "%Y%m%d%H%M%SZ", &tm);
		assert_string_equal(ours, theirs);
	}
}

/* A date as it is put into a certificate: tag, length, text. */
static void
assert_put(int64_t seconds, u8 tag, const char *text)
{
	u8 room[32];
	struct der_out o = { room, room + sizeof room, false };
	struct der d, content;

	der_put_date(&o, seconds);
	d = (struct der){ o.p, (size_t)(room + sizeof room - o.p) };
	assert_true(der_take(&d, tag, &content) && d.n == 0);
	assert_int_equal(content.n, strlen(text));
	assert_memory_equal(content.p, text, content.n);
}

static void
certificate_dates_change_their_form_in_2050(void **state)
{
	(void)state;
	assert_put(951827696, 0x17, "000229123456Z");
	assert_put(2524607999, 0x17, "491231235959Z");
	assert_put(2524608000, 0x18, "20500101000000Z");
}

static void
lengths_are_put_in_their_shortest_form_and_taken_back(void **state)
{
	static const size_t lengths[] = { 0, 127, 128, 255, 256, 3000 };
	static u8 room[4096], zeros[3000];

	(void)state;
	for (size_t i = 0; i < COUNT(lengths); i++) {
		struct der_out o = { room, room + sizeof room, false };
		size_t n = lengths[i];
		struct der d, content;

		der_put_a(&o, 0x04, zeros, n);
		d = (struct der){ o.p, (size_t)(room + sizeof room - o.p) };
		assert_int_equal(d.n, n + (n > 255 ? 4 : n > 127 ? 3 : 2));
		assert_false(der_take(&d, 0x05, &content));
		d.n--;
		assert_false(der_take(&d, 0x04, &content));
		d.n++;
		assert_true(der_take(&d, 0x04, &content));
		assert_int_equal(content.n, n);
		assert_int_equal(d.n, 0);
	}
}

static void
names_are_host_names_wildcards_and_addresses(void **state)
{
	static const char *const good[] = { "a", "box.lan", "my_box",
		"192.0.2.1", "::1", "2001:db8::1", "A-1.b" };
	static const char *const bad[] = { "", ".", "a..b", ".a", "a.", "-a",
		"a b", "a,b", "*", "*.", "a.*", "[::1]", "1::2::3", "a/b",
		"\xc3\xa4" };
	char label[66];

	(void)state;
	for (size_t i = 0; i < COUNT(good); i++)
		assert_true(cert_name_ok(good[i]));
	for (size_t i = 0; i < COUNT(bad); i++)
		assert_false(cert_name_ok(bad[i]));
	memset(label, 'a', sizeof label);
	label[64] = '\0';
	assert_false(cert_name_ok(label));
	label[63] = '\0';
	assert_true(cert_name_ok(label));
}

/* A new directory below the test's. */
static const char *
state_dir(const char *name)
{
	static char path[256];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static const char *
state_file(const char *state, const char *name)
{
	static char paths[2][300];
	static int turn;
	char *path = paths[turn++ % 2];

	snprintf(path, sizeof paths[0], "%s/%s", state, name);
	return path;
}

static int
make(const char *state, const char *const *names, int days)
{
	return cert_set_paths(state) < 0 ? -1 : cert_make(state, names, days);
}

/* Whether the certificate in use has this alternative name. */
static bool
has_name(u8 tag, const void *p, size_t n)
{
	const struct cert *c = certs.used;
	u8 der[64] = { tag, (u8)n };

	memcpy(der + 2, p, n);
	return memmem(c->der, c->der_n, der, n + 2) != NULL;
}

static void
a_certificate_of_our_own_has_the_names_that_were_asked_for(void **state)
{
	static const char *const names[] = { "box.lan", "192.0.2.7", "::1",
		NULL };
	const char *d = state_dir("new");
	struct cert_parts parts;
	u8 ip6[16] = { [15] = 1 };
	struct stat st;

	(void)state;
	assert_int_equal(make(d, names, 825), 0);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	parts = certs.used->parts[0];
	assert_true(der_is(parts.issuer, parts.subject.p, parts.subject.n));
	assert_int_equal(tls_cert_days(), 824); /* and 23 hours */
	assert_true(has_name(0x82, "box.lan", 7));
	assert_true(has_name(0x87, "\xc0\x00\x02\x07", 4));
	assert_true(has_name(0x87, ip6, 16));
	assert_int_equal(stat(state_file(d, "key.pem"), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void
without_names_it_has_those_of_this_machine(void **state)
{
	const char *d = state_dir("own");

	(void)state;
	assert_int_equal(tls_state_certificate(d), 1);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	assert_true(has_name(0x82, "localhost", 9));
	assert_true(has_name(0x87, "\x7f\x00\x00\x01", 4));
	assert_int_equal(tls_state_certificate(d), 0);
}

static void
too_many_names_are_refused_and_nothing_is_written(void **state)
{
	static char room[64][64];
	const char *names[65];
	const char *d = state_dir("many");

	(void)state;
	for (size_t i = 0; i < 64; i++) {
		snprintf(room[i], sizeof room[i], "%060zu", i);
		names[i] = room[i];
	}
	names[64] = NULL;
	assert_int_equal(make(d, names, 825), -1);
	assert_true(cert_is_missing(state_file(d, "key.pem")));
	names[50] = NULL;
	assert_int_equal(make(d, names, 825), 0);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
}

static void
ours_is_renewed_below_thirty_days_and_not_before(void **state)
{
	const char *d = state_dir("renew");

	(void)state;
	assert_int_equal(make(d, NULL, 31), 0);
	assert_int_equal(tls_state_certificate(d), 0);
	assert_int_equal(make(d, NULL, 30), 0);
	assert_int_equal(tls_state_certificate(d), 1);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	assert_true(tls_cert_days() > 800);
}

static void
an_expired_certificate_is_used_and_its_days_are_negative(void **state)
{
	const char *d = state_dir("expired");

	(void)state;
	assert_int_equal(make(d, NULL, -10), 0);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	assert_int_equal(tls_cert_days(), -11);
}

static void
a_pair_of_ours_that_a_power_cut_split_is_made_anew(void **state)
{
	const char *d = state_dir("split");
	char cert[4096];

	(void)state;
	assert_int_equal(tls_state_certificate(d), 1);
	strcpy(cert, get_file(state_file(d, "cert.pem"), NULL));
	assert_int_equal(make(d, NULL, 825), 0);
	assert_int_equal(sys_write_file(state_file(d, "cert.pem"), cert,
	    strlen(cert), 0644), 0);
	assert_int_equal(tls_state_certificate(d), 1);
	assert_int_equal(unlink(state_file(d, "key.pem")), 0);
	assert_int_equal(tls_state_certificate(d), 1);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
}

static void
somebody_elses_broken_pair_is_not_touched(void **state)
{
	const char *d = state_dir("foreign");
	size_t n;
	char *text = get_file("chain-leaf.crt", &n);

	(void)state;
	assert_int_equal(tls_state_certificate(d), 1);
	assert_int_equal(sys_write_file(state_file(d, "cert.pem"), text, n,
	    0644), 0);
	assert_int_equal(tls_state_certificate(d), -1);
	assert_string_equal(get_file(state_file(d, "cert.pem"), NULL), text);
	assert_int_equal(sys_write_file(state_file(d, "cert.pem"), "x", 1,
	    0644), 0);
	assert_int_equal(tls_state_certificate(d), -1);
}

static void
somebody_elses_expired_pair_is_not_touched_either(void **state)
{
	const char *d = state_dir("theirs");
	size_t n;
	char *text = get_file("chain-leaf-expired.crt", &n);

	(void)state;
	assert_int_equal(tls_state_certificate(d), 1);
	assert_int_equal(sys_write_file(state_file(d, "cert.pem"), text, n,
	    0644), 0);
	text = get_file("chain-leaf.key", &n);
	assert_int_equal(sys_write_file(state_file(d, "key.pem"), text, n,
	    0600), 0);
	assert_int_equal(tls_state_certificate(d), 0);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	assert_true(tls_cert_days() < 0);
}

/* The verb, its words kept from the test's own output. */
static int
run_cert(const char *const *words, size_t count)
{
	char room[8][300], *argv[9] = { NULL };
	int out = dup(1), err = dup(2), null = open("/dev/null", O_WRONLY), r;

	for (size_t i = 0; i < count; i++)
		argv[i] = strcpy(room[i], words[i]);
	fflush(stdout);
	dup2(null, 1);
	dup2(null, 2);
	r = tls_cert_command((int)count, argv);
	fflush(stdout);
	dup2(out, 1);
	dup2(err, 2);
	close(out);
	close(err);
	close(null);
	return r;
}

static void
the_verb_makes_shows_and_refuses(void **state)
{
	const char *d = state_dir("verb");

	(void)state;
	assert_int_equal(run_cert((const char *[]){ "cert", "-d", "90",
	    "--state", d, "box.lan", "192.0.2.9" }, 7), 0);
	assert_int_equal(run_cert((const char *[]){ "cert", "--state", d }, 3),
	    0);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	assert_int_equal(tls_cert_days(), 89);
	assert_true(has_name(0x82, "box.lan", 7));
	assert_int_equal(run_cert((const char *[]){ "cert", "--state", d,
	    "x.lan" }, 4), 1);
	assert_int_equal(run_cert((const char *[]){ "cert", "-f", "--state",
	    d, "x.lan" }, 5), 0);
	assert_loads(state_file(d, "cert.pem"), state_file(d, "key.pem"));
	assert_true(has_name(0x82, "x.lan", 5));
	assert_int_equal(run_cert((const char *[]){ "cert", "--state" }, 2),
	    2);
	assert_int_equal(run_cert((const char *[]){ "cert", "-d", "0" }, 3),
	    2);
	assert_int_equal(run_cert((const char *[]){ "cert", "-d", "3651" }, 3),
	    2);
	assert_int_equal(run_cert((const char *[]){ "cert", "-x" }, 2), 2);
	assert_int_equal(run_cert((const char *[]){ "cert", "a b" }, 2), 2);
	assert_int_equal(run_cert((const char *[]){ "cert", "--state",
	    "/proc/none/such" }, 3), 1);
}

/* ----- handshakes */

#define SLOTS 2
#define ROWS  4

/* A client that takes the key in the certificate at its word. */
struct peer {
	br_ssl_client_context ssl;
	br_x509_minimal_context ignored;
	br_x509_knownkey_context trust;
	br_x509_decoder_context decoder;
	u8 buffer[BR_SSL_BUFSIZE_BIDI];
	size_t burst; /* bytes it hands over at once */
	int fd, server_fd, slot;
	struct record_keys keys;
	enum tls_progress progress;
};

static void *memory;

static void
set_up_tls(const char *cert, const char *key)
{
	size_t n = tls_memory(SLOTS, ROWS);

	memset(&tls, 0, sizeof tls);
	free(memory);
	memory = aligned_alloc(64, (n + 63) & ~(size_t)63);
	assert_non_null(memory);
	memset(memory, 0, n);
	assert_int_equal(tls_start(), 0);
	tls_place(memory, SLOTS, ROWS);
	assert_loads(cert, key);
}

/* Connects, not yet shaking hands. */
static void
peer_open(struct peer *c, const br_ssl_session_parameters *session)
{
	static const u16 both[] = {
		BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
	};
	const struct cert *cert = certs.used;
	const br_x509_pkey *key;
	br_ssl_engine_context *e = &c->ssl.eng;
	int fds[2];

	memset(c, 0, sizeof *c);
	c->burst = sizeof c->buffer;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0,
	    fds), 0);
	c->fd = fds[0];
	c->server_fd = fds[1];
	br_ssl_client_init_full(&c->ssl, &c->ignored, NULL, 0);
	br_ssl_engine_set_suites(e, both, COUNT(both));
	br_x509_decoder_init(&c->decoder, NULL, NULL);
	br_x509_decoder_push(&c->decoder, cert->chain[0].data,
	    cert->chain[0].data_len);
	key = br_x509_decoder_get_pkey(&c->decoder);
	if (key->key_type == BR_KEYTYPE_RSA)
		br_x509_knownkey_init_rsa(&c->trust, &key->key.rsa,
		    BR_KEYTYPE_SIGN);
	else
		br_x509_knownkey_init_ec(&c->trust, &key->key.ec,
		    BR_KEYTYPE_SIGN);
	br_ssl_engine_set_x509(e, &c->trust.vtable);
	br_ssl_engine_set_buffer(e, c->buffer, sizeof c->buffer, 1);
	if (session)
		br_ssl_engine_set_session_parameters(e, session);
	assert_true(br_ssl_client_reset(&c->ssl, NULL, session != NULL));
	c->slot = tls_take();
}

static void
peer_close(struct peer *c)
{
	if (c->slot >= 0)
		tls_give(c->slot);
	close(c->fd);
	close(c->server_fd);
}

/* One move of the client: true if it did something. */
static bool
peer_move(struct peer *c)
{
	br_ssl_engine_context *e = &c->ssl.eng;
	unsigned state = br_ssl_engine_current_state(e);
	size_t n;
	u8 *p;
	ssize_t r;

	if (state & BR_SSL_SENDREC) {
		p = br_ssl_engine_sendrec_buf(e, &n);
		r = sys_send(c->fd, p, min_size(n, c->burst), 0);
		assert_true(r > 0);
		br_ssl_engine_sendrec_ack(e, (size_t)r);
		return true;
	}
	if (!(state & BR_SSL_RECVREC))
		return false;
	p = br_ssl_engine_recvrec_buf(e, &n);
	r = sys_recv(c->fd, p, n, 0);
	if (r > 0)
		br_ssl_engine_recvrec_ack(e, (size_t)r);
	return r > 0;
}

/* Both sides in turn until the server is done or failed. */
static void
shake_hands(struct peer *c)
{
	assert_true(c->slot >= 0);
	for (int i = 0; i < 5000; i++) {
		peer_move(c);
		c->progress = tls_step(c->slot, c->server_fd, &c->keys);
		if (c->progress == TLS_DONE || c->progress == TLS_FAILED)
			break;
	}
	while (peer_move(c))
		continue;
}

/* The client says a word and the server's keys read it, and back. */
static void
exchange(struct peer *c)
{
	br_ssl_engine_context *e = &c->ssl.eng;
	u8 record[RECORD_MAX];
	struct record r;
	size_t n;
	ssize_t got;

	assert_true(br_ssl_engine_current_state(e) & BR_SSL_SENDAPP);
	memcpy(br_ssl_engine_sendapp_buf(e, &n), "hello", 5);
	br_ssl_engine_sendapp_ack(e, 5);
	br_ssl_engine_flush(e, 0);
	while (peer_move(c))
		continue;
	got = sys_recv(c->server_fd, record, sizeof record, 0);
	assert_true(got > 0);
	assert_int_equal(record_open(tls_aead(), &c->keys.in, record,
	    (size_t)got, &r), got);
	assert_int_equal(r.n, 5);
	assert_memory_equal(r.p, "hello", 5);
	memcpy(record + record_head(c->keys.out.suite), "welcome", 7);
	n = record_seal(tls_aead(), &c->keys.out, c->keys.out.seq++, RECORD_DATA,
	    record, 7);
	assert_int_equal(sys_send(c->server_fd, record, n, 0), n);
	while (peer_move(c))
		continue;
	assert_true(br_ssl_engine_current_state(e) & BR_SSL_RECVAPP);
	assert_memory_equal(br_ssl_engine_recvapp_buf(e, &n), "welcome", 7);
	assert_int_equal(n, 7);
	br_ssl_engine_recvapp_ack(e, n);
}

static void
assert_shakes(struct peer *c, u8 suite, bool resumed)
{
	shake_hands(c);
	if (c->progress != TLS_DONE)
		fail_msg("%s", tls_why(c->slot));
	assert_int_equal(c->keys.in.suite, suite);
	assert_int_equal(c->keys.out.suite, suite);
	assert_true(c->keys.in.seq == 1 && c->keys.out.seq == 1);
	assert_int_equal(tls_resumed(c->slot), resumed);
	exchange(c);
}

/* As if this processor had instructions for AES, or not. */
static void
prefer(u8 suite)
{
	tls.aes_first = suite == RECORD_AES128_GCM;
}

static void
a_cipher_that_fails_its_test_is_not_started_with(void **state)
{
	(void)state;
	wrong_cipher = true;
	assert_int_equal(tls_start(), -1);
	assert_non_null(strstr(why, "self-test"));
	wrong_cipher = false;
	assert_int_equal(tls_start(), 0);
}

static void
both_suites_work_with_ec_and_rsa(void **state)
{
	static const char *const pairs[][2] = {
		{ "ec.crt", "ec.key" }, { "rsa2048.crt", "rsa2048-pkcs1.key" },
		{ "p384.crt", "p384.key" }
	};

	(void)state;
	for (size_t i = 0; i < COUNT(pairs); i++)
		for (u8 suite = 1; suite <= 2; suite++) {
			struct peer c;

			set_up_tls(pairs[i][0], pairs[i][1]);
			prefer(suite);
			peer_open(&c, NULL);
			assert_shakes(&c, suite, false);
			peer_close(&c);
		}
}

/* A client that offers nothing but the suite of tls_fill_suites(), as the
 * table of suites knows it. */
static void
the_suite_that_fills_the_list_is_never_chosen(void **state)
{
	static const u16 filling[] = { BR_TLS_RSA_WITH_3DES_EDE_CBC_SHA };
	static const char *const pairs[][2] = {
		{ "ec.crt", "ec.key" }, { "rsa2048.crt", "rsa2048-pkcs1.key" }
	};
	struct peer c;

	(void)state;
	for (size_t i = 0; i < COUNT(pairs); i++) {
		set_up_tls(pairs[i][0], pairs[i][1]);
		peer_open(&c, NULL);
		br_ssl_engine_set_suites(&c.ssl.eng, filling, COUNT(filling));
		assert_true(br_ssl_client_reset(&c.ssl, NULL, 0));
		shake_hands(&c);
		assert_int_equal(c.progress, TLS_FAILED);
		assert_string_equal(tls_why(c.slot),
		    "no cipher suite or curve in common");
		peer_close(&c);
	}
}

/* However the ClientHello comes: an empty row costs BearSSL a walk through
 * its table. */
static void
bearssl_finds_no_empty_row_in_the_list_of_suites(void **state)
{
	static const size_t bursts[] = { 1, 7, 4096 };
	struct peer c;

	(void)state;
	for (size_t i = 0; i < COUNT(bursts); i++) {
		const br_ssl_server_context *server;
		size_t n, rows;

		set_up_tls("ec.crt", "ec.key");
		prefer(RECORD_CHACHA20);
		peer_open(&c, NULL);
		c.burst = bursts[i];
		assert_shakes(&c, RECORD_CHACHA20, false);
		server = &tls.slots[c.slot].server;
		br_ssl_server_get_client_suites(server, &n);
		rows = COUNT(server->client_suites);
		assert_in_range(n, rows - TLS_SUITES + 1, rows);
		peer_close(&c);
	}
}

static void
a_second_connection_resumes(void **state)
{
	(void)state;
	for (u8 suite = 1; suite <= 2; suite++) {
		struct peer c;
		br_ssl_session_parameters session;

		set_up_tls("ec.crt", "ec.key");
		prefer(suite);
		peer_open(&c, NULL);
		assert_shakes(&c, suite, false);
		br_ssl_engine_get_session_parameters(&c.ssl.eng, &session);
		peer_close(&c);
		peer_open(&c, &session);
		assert_shakes(&c, suite, true);
		peer_close(&c);
		tls_forget();
		peer_open(&c, &session);
		assert_shakes(&c, suite, false);
		peer_close(&c);
	}
}

/* A first connection, whose session the next may resume. */
static void
open_session(br_ssl_session_parameters *session)
{
	struct peer c;

	set_up_tls("ec.crt", "ec.key");
	prefer(RECORD_CHACHA20);
	peer_open(&c, NULL);
	assert_shakes(&c, RECORD_CHACHA20, false);
	br_ssl_engine_get_session_parameters(&c.ssl.eng, session);
	peer_close(&c);
}

/* BearSSL 0.6 alone dies of the second client. */
static void
who_resumes_may_offer_any_protocol(void **state)
{
	static const char *offers[][2] = {
		{ "http/1.1", "h2" }, { "h2", "h3" }, { "h2", "http/1.1" }
	};
	struct peer c;
	br_ssl_session_parameters session;
	const char *got;

	(void)state;
	open_session(&session);
	for (size_t i = 0; i < 2 * COUNT(offers); i++) {
		bool resumes = i % 2 == 1;

		peer_open(&c, resumes ? &session : NULL);
		br_ssl_engine_set_protocol_names(&c.ssl.eng, offers[i / 2], 2);
		assert_true(br_ssl_client_reset(&c.ssl, NULL, resumes));
		assert_shakes(&c, RECORD_CHACHA20, resumes);
		got = br_ssl_engine_get_selected_protocol(&c.ssl.eng);
		if (resumes || i / 2 == 1)
			assert_null(got);
		else
			assert_string_equal(got, "http/1.1");
		peer_close(&c);
	}
}

/* The session is there but cannot be gone on with. */
static void
a_session_whose_suite_is_not_offered_is_not_resumed(void **state)
{
	static const u16 gcm[] = { BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 };
	struct peer c;
	br_ssl_session_parameters session;

	(void)state;
	open_session(&session);
	peer_open(&c, &session);
	br_ssl_engine_set_suites(&c.ssl.eng, gcm, COUNT(gcm));
	assert_true(br_ssl_client_reset(&c.ssl, NULL, 1));
	assert_shakes(&c, RECORD_AES128_GCM, false);
	peer_close(&c);
}

static void
sessions_are_forgotten_daily_and_with_a_new_certificate(void **state)
{
	struct peer c;
	br_ssl_session_parameters session;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	prefer(RECORD_CHACHA20);
	tls_tick(1000);
	peer_open(&c, NULL);
	assert_shakes(&c, RECORD_CHACHA20, false);
	br_ssl_engine_get_session_parameters(&c.ssl.eng, &session);
	peer_close(&c);
	assert_int_equal(tls.cache.store_ptr, TLS_SESSION);
	tls_tick(86400999);
	assert_loads("ec.crt", "ec.key"); /* the same: they stay */
	assert_int_equal(tls.cache.store_ptr, TLS_SESSION);
	peer_open(&c, &session);
	shake_hands(&c);
	assert_true(tls_resumed(c.slot));
	peer_close(&c);
	tls_tick(86401000);
	assert_int_equal(tls.cache.store_ptr, 0);
	for (size_t i = 0; i < ROWS * TLS_SESSION; i++)
		assert_int_equal(tls.rows[i], 0);
	peer_open(&c, &session);
	shake_hands(&c);
	assert_false(tls_resumed(c.slot));
	peer_close(&c);
	assert_int_equal(tls.cache.store_ptr, TLS_SESSION);
	assert_loads("chain-leaf.crt", "chain-leaf.key");
	assert_int_equal(tls.cache.store_ptr, 0);
}

static void
a_handshake_may_come_in_any_pieces(void **state)
{
	(void)state;
	for (size_t burst = 1; burst < 8; burst += 3) {
		struct peer c;

		set_up_tls("ec.crt", "ec.key");
		prefer(RECORD_CHACHA20);
		peer_open(&c, NULL);
		c.burst = burst;
		assert_shakes(&c, RECORD_CHACHA20, false);
		peer_close(&c);
	}
}

/* Then it has more than one record under the new keys: none may be missed when
 * they are counted on. */
static void
finished_may_come_in_several_records(void **state)
{
	(void)state;
	for (u8 suite = RECORD_CHACHA20; suite <= RECORD_AES128_GCM; suite++) {
		br_ssl_session_parameters session;

		set_up_tls("ec.crt", "ec.key");
		prefer(suite);
		for (int resumed = 0; resumed < 2; resumed++) {
			struct peer c;

			peer_open(&c, resumed ? &session : NULL);
			c.ssl.eng.max_frag_len = 6; /* of its 16 bytes */
			shake_hands(&c);
			if (c.progress != TLS_DONE)
				fail_msg("%s", tls_why(c.slot));
			assert_int_equal(tls_resumed(c.slot), resumed);
			assert_int_equal(c.keys.in.suite, suite);
			assert_int_equal(c.keys.in.seq, 3);
			exchange(&c);
			br_ssl_engine_get_session_parameters(&c.ssl.eng,
			    &session);
			peer_close(&c);
		}
	}
}

/* In a resumed handshake the client speaks last, and may go on at once. */
static void
what_follows_finished_is_left_in_the_socket(void **state)
{
	struct peer c;
	br_ssl_session_parameters session;
	u8 record[100];
	struct record r;
	size_t n;
	ssize_t got;

	(void)state;
	open_session(&session);
	peer_open(&c, &session);
	while (peer_move(&c))
		continue;
	assert_int_equal(tls_step(c.slot, c.server_fd, &c.keys),
	    TLS_WANT_READ);
	while (peer_move(&c))
		continue;
	memcpy(br_ssl_engine_sendapp_buf(&c.ssl.eng, &n), "early", 5);
	br_ssl_engine_sendapp_ack(&c.ssl.eng, 5);
	br_ssl_engine_flush(&c.ssl.eng, 0);
	while (peer_move(&c))
		continue;
	assert_int_equal(tls_step(c.slot, c.server_fd, &c.keys), TLS_DONE);
	got = sys_recv(c.server_fd, record, sizeof record, 0);
	assert_int_equal(got, 5 + 5 + 16);
	assert_int_equal(record_open(tls_aead(), &c.keys.in, record, (size_t)got,
	    &r), got);
	assert_memory_equal(r.p, "early", 5);
	peer_close(&c);
}

/* Whether n bytes stand anywhere in the slot's memory. */
static bool
slot_holds(int slot, const void *p, size_t n)
{
	return memmem(&tls.slots[slot], sizeof tls.slots[slot], p, n) != NULL;
}

static bool
is_zero(const void *p, size_t n)
{
	const u8 *at = p;

	while (n > 0 && *at == 0) {
		at++;
		n--;
	}
	return n == 0;
}

static void
a_slot_that_was_given_back_holds_no_secret(void **state)
{
	(void)state;
	for (u8 suite = 1; suite <= 2; suite++) {
		struct peer c;
		br_ssl_session_parameters session;
		const br_ssl_engine_context *e;
		int slot;

		set_up_tls("ec.crt", "ec.key");
		prefer(suite);
		peer_open(&c, NULL);
		slot = c.slot;
		e = &tls.slots[slot].server.eng;
		assert_shakes(&c, suite, false);
		br_ssl_engine_get_session_parameters(&c.ssl.eng, &session);
		assert_true(slot_holds(slot, session.master_secret, 48));
		/* AES keys may have another form there, but they are there. */
		assert_true(suite != RECORD_CHACHA20 ||
		    slot_holds(slot, c.keys.in.key, 16));
		assert_false(is_zero(&e->in, sizeof e->in));
		assert_false(is_zero(&e->out, sizeof e->out));
		assert_false(is_zero(e->pad, sizeof e->pad));
		tls_give(slot);
		assert_true(is_zero(&e->in, sizeof e->in));
		assert_true(is_zero(&e->out, sizeof e->out));
		assert_true(is_zero(e->pad, sizeof e->pad));
		c.slot = -1;
		assert_false(slot_holds(slot, session.master_secret, 16));
		assert_false(slot_holds(slot, c.keys.in.key, 16));
		assert_false(slot_holds(slot, c.keys.out.key, 16));
		peer_close(&c);
	}
}

/* BearSSL forgets its half of the key exchange when it has the client's. */
static void
a_slot_given_back_in_the_middle_holds_no_secret(void **state)
{
	const br_ssl_server_context *server;
	struct peer c;
	int slot;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	peer_open(&c, NULL);
	slot = c.slot;
	server = &tls.slots[slot].server;
	while (peer_move(&c)) /* its ClientHello */
		continue;
	assert_int_equal(tls_step(slot, c.server_fd, &c.keys), TLS_WANT_READ);
	assert_false(is_zero(server->ecdhe_key, sizeof server->ecdhe_key));
	tls_give(slot);
	c.slot = -1;
	assert_true(is_zero(server->ecdhe_key, sizeof server->ecdhe_key));
	peer_close(&c);
}

/* What a turn does not do waits for the next one, and is not dropped. */
static void
a_turn_has_a_budget_of_handshake_steps(void **state)
{
	struct conn conns[SLOTS] = { 0 };
	struct record_keys keys[SLOTS];
	struct peer peers[SLOTS];

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	srv.conn = conns;
	srv.keys = keys;
	for (u32 i = 0; i < SLOTS; i++) {
		peer_open(&peers[i], NULL);
		while (peer_move(&peers[i])) /* its ClientHello */
			continue;
		conns[i].fd = peers[i].server_fd;
		conns[i].tls = true;
		conns[i].context = (u8)(peers[i].slot + 1);
		conns[i].state = CONN_TLS;
		conns[i].asked = conn_interest(&conns[i]);
	}
	for (u32 done = 1; done <= SLOTS; done++) {
		srv.handshakes_left = 1;
		for (u32 i = 0; i < SLOTS; i++)
			conn_handshake(&conns[done == 1 ? i :
			    SLOTS - 1 - i]);
		assert_int_equal(srv.handshakes_left, 0);
		for (u32 i = 0; i < SLOTS; i++) {
			assert_int_equal(conns[i].state, CONN_TLS);
			assert_int_equal(tls.slots[peers[i].slot].answered,
			    i == 0 || done > 1);
		}
	}
	for (u32 i = 0; i < SLOTS; i++)
		peer_close(&peers[i]);
	memset(&srv, 0, sizeof srv);
}

static void
the_pool_has_an_end_and_slots_come_back(void **state)
{
	int slots[SLOTS];

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < SLOTS; i++) {
			slots[i] = tls_take();
			assert_true(slots[i] >= 0);
		}
		assert_true(slots[0] != slots[1]);
		assert_int_equal(tls_take(), -1);
		for (int i = 0; i < SLOTS; i++)
			tls_give(slots[i]);
	}
	certs.used = NULL;
	assert_int_equal(tls_take(), -1);
}

/* How many bytes of the slots that a calm pool gives back are not zero. */
static size_t
slot_bytes_used(u32 count)
{
	const u8 *p = (const u8 *)(tls.slots + TLS_KEPT);
	size_t used = 0;

	for (size_t i = 0; i < (count - TLS_KEPT) * sizeof *tls.slots; i++)
		used += p[i] != 0;
	return used;
}

static void
after_a_storm_slots_give_their_pages_back(void **state)
{
	enum { STORM = 8 };
	size_t n = tls_memory(STORM, ROWS);
	size_t edges = 2 * (size_t)sysconf(_SC_PAGESIZE);
	u8 *pool;
	struct peer c;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	prefer(RECORD_CHACHA20);
	pool = mmap(NULL, n, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(pool, MAP_FAILED);
	tls_place(pool, STORM, ROWS);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < STORM - 1; i++) {
			assert_int_equal(tls_take(), i);
			memset(tls.slots[i].in, 0xaa, sizeof tls.slots[i].in);
			memset(tls.slots[i].out, 0xaa,
			    sizeof tls.slots[i].out);
		}
		for (int i = STORM - 2; i > 0; i--)
			tls_give(i);
		/* One is still at it. */
		assert_true(slot_bytes_used(STORM) >
		    (STORM - 1 - TLS_KEPT) * (TLS_IN + TLS_OUT));
		tls_give(0);
		assert_true(slot_bytes_used(STORM) <= edges);
	}
	/* All work again. */
	for (int i = 0; i < STORM; i++) {
		peer_open(&c, NULL);
		assert_int_equal(c.slot, i);
		assert_shakes(&c, RECORD_CHACHA20, false);
		close(c.fd);
		close(c.server_fd);
	}
	assert_int_equal(tls_take(), -1);
	for (int i = 0; i < STORM; i++)
		tls_give(i);
	munmap(pool, n);
}

/* A handshake that fails: the reason, and the alert that the client gets. */
static void
assert_fails(struct peer *c, const char *words, int alert)
{
	shake_hands(c);
	assert_int_equal(c->progress, TLS_FAILED);
	if (!strstr(tls_why(c->slot), words))
		fail_msg("\"%s\" does not say \"%s\"", tls_why(c->slot), words);
	assert_int_equal(br_ssl_engine_last_error(&c->ssl.eng),
	    BR_ERR_RECV_FATAL_ALERT + alert);
}

static void
old_versions_and_foreign_suites_get_a_proper_alert(void **state)
{
	static const u16 cbc[] = { BR_TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA };
	struct peer c;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	peer_open(&c, NULL);
	br_ssl_engine_set_versions(&c.ssl.eng, BR_TLS10, BR_TLS11);
	assert_true(br_ssl_client_reset(&c.ssl, NULL, 0));
	assert_fails(&c, "does not speak TLS 1.2", 70);
	peer_close(&c);
	peer_open(&c, NULL);
	br_ssl_engine_set_suites(&c.ssl.eng, cbc, 1);
	assert_true(br_ssl_client_reset(&c.ssl, NULL, 0));
	assert_fails(&c, "no cipher suite", 40);
	peer_close(&c);
}

static void
rubbish_gets_an_alert_and_a_reason(void **state)
{
	static const struct {
		const char *bytes;
		size_t n;
		u8 alert;
	} cases[] = {
		{ "GET / HTTP/1.1\r\n\r\n", 18, 70 },
		{ "\x16\x03\x01\x00\x04\x02\x00\x00\x00", 9, 50 },
		{ "\x17\x03\x03\x00\x01x", 6, 10 },
		{ "\x16\x03\x01\xff\xff", 5, 22 }
	};

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	for (size_t i = 0; i < COUNT(cases); i++) {
		struct peer c;
		u8 alert[100];

		peer_open(&c, NULL);
		assert_int_equal(sys_send(c.fd, cases[i].bytes, cases[i].n, 0),
		    cases[i].n);
		assert_int_equal(tls_step(c.slot, c.server_fd, &c.keys),
		    TLS_FAILED);
		assert_true(strlen(tls_why(c.slot)) > 5);
		assert_int_equal(sys_recv(c.fd, alert, sizeof alert, 0), 7);
		if (alert[0] != 21 || alert[6] == 0)
			fail_msg("case %zu: alert %d, %s", i, alert[6],
			    tls_why(c.slot));
		peer_close(&c);
	}
}

/* Its own if it is older than ours, and nobody else's: the slot has had another
 * client before.  BearSSL alone says 0.0. */
static void
an_alert_has_the_clients_version(void **state)
{
	static const u8 leave[] = { 21, 3, 1, 0, 2, 1, 0 };
	struct peer c;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	for (u8 minor = 4; minor-- > 0;) {
		u8 hello[50] = { 22, 3, minor, 0, 45, 1, 0, 0, 41, 3, minor };
		u8 alert[8] = { 0 };

		hello[45] = 2;  /* of suites: an unknown one */
		hello[48] = 1;  /* of compressions: none */
		peer_open(&c, NULL);
		assert_int_equal(sys_send(c.fd, hello, sizeof hello, 0), 50);
		while (tls_step(c.slot, c.server_fd, &c.keys) != TLS_FAILED)
			continue;
		assert_int_equal(sys_recv(c.fd, alert, sizeof alert, 0), 7);
		assert_int_equal(load16(alert + 1), 0x0300 | minor);
		assert_int_equal(alert[6], minor == 3 ? 40 : 70);
		peer_close(&c);
		peer_open(&c, NULL);
		assert_int_equal(sys_send(c.fd, leave, sizeof leave, 0), 7);
		while (tls_step(c.slot, c.server_fd, &c.keys) != TLS_FAILED)
			continue;
		assert_int_equal(sys_recv(c.fd, alert, sizeof alert, 0), 7);
		assert_int_equal(load16(alert + 1), BR_TLS12);
		assert_int_equal(alert[6], 0);
		peer_close(&c);
	}
}

static void
a_client_that_leaves_is_said_to_have_left(void **state)
{
	struct peer c;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	peer_open(&c, NULL);
	peer_move(&c);
	shutdown(c.fd, SHUT_WR);
	while (tls_step(c.slot, c.server_fd, &c.keys) != TLS_FAILED)
		continue;
	assert_non_null(strstr(tls_why(c.slot), "left"));
	peer_close(&c);
}

/* Finished is the first record under the new keys; changed on its way it
 * must not pass, in a resumed handshake with an alert under our keys. */
static void
a_changed_finished_is_refused(void **state)
{
	struct peer c;
	br_ssl_session_parameters session;
	u8 flight[200];
	ssize_t n;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	peer_open(&c, NULL);
	shake_hands(&c);
	br_ssl_engine_get_session_parameters(&c.ssl.eng, &session);
	peer_close(&c);
	peer_open(&c, &session);
	while (peer_move(&c))
		continue;
	assert_int_equal(tls_step(c.slot, c.server_fd, &c.keys),
	    TLS_WANT_READ);
	while (peer_move(&c))
		continue;
	n = sys_recv(c.server_fd, flight, sizeof flight, 0);
	assert_true(n > 40);
	flight[n - 1] ^= 1;
	assert_int_equal(sys_send(c.fd, flight, (size_t)n, 0), n);
	n = sys_recv(c.server_fd, flight, sizeof flight, MSG_PEEK);
	assert_true(n > 40);
	c.progress = tls_step(c.slot, c.server_fd, &c.keys);
	assert_int_equal(c.progress, TLS_FAILED);
	assert_string_equal(tls_why(c.slot), "a record was changed on its way");
	while (peer_move(&c))
		continue;
	assert_int_equal(br_ssl_engine_last_error(&c.ssl.eng),
	    BR_ERR_RECV_FATAL_ALERT + 20);
	peer_close(&c);
}

/* Whatever it is multiplied by, it stays zero: the client need not even try. */
static size_t
zero_point(u8 *point, const u8 *x, size_t x_n, int curve)
{
	(void)x;
	(void)x_n;
	assert_int_equal(curve, BR_EC_curve25519);
	memset(point, 0, 32);
	return 32;
}

static u32
zero_product(u8 *point, size_t n, const u8 *x, size_t x_n, int curve)
{
	(void)n;
	return (u32)(zero_point(point, x, x_n, curve) == 32);
}

static void
a_secret_that_everybody_knows_is_refused(void **state)
{
	br_ec_impl zero = br_ec_all_m31;
	struct peer c;

	(void)state;
	zero.mulgen = zero_point;
	zero.mul = zero_product;
	for (u8 suite = RECORD_CHACHA20; suite <= RECORD_AES128_GCM; suite++) {
		set_up_tls("ec.crt", "ec.key");
		prefer(suite);
		peer_open(&c, NULL);
		br_ssl_engine_set_ec(&c.ssl.eng, &zero);
		shake_hands(&c);
		assert_int_equal(c.progress, TLS_FAILED);
		assert_int_equal(br_ssl_engine_last_error(&c.ssl.eng),
		    BR_ERR_RECV_FATAL_ALERT + 20);
		peer_close(&c);
	}
}

static void
handshakes_survive_one_reload_and_not_two(void **state)
{
	struct peer c;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	peer_open(&c, NULL);
	peer_move(&c);
	assert_loads("rsa2048.crt", "rsa2048-pkcs1.key");
	shake_hands(&c);
	assert_int_equal(c.progress, TLS_DONE);
	peer_close(&c);
	peer_open(&c, NULL);
	peer_move(&c);
	assert_loads("ec.crt", "ec.key");
	assert_loads("p384.crt", "p384.key");
	assert_fails(&c, "has been replaced", 80);
	peer_close(&c);
}

/* A slot's 65th handshake mixes fresh entropy into its generator. */
static void
slots_are_used_again_and_again(void **state)
{
	struct peer c;
	br_ssl_session_parameters session;

	(void)state;
	set_up_tls("ec.crt", "ec.key");
	peer_open(&c, NULL);
	shake_hands(&c);
	br_ssl_engine_get_session_parameters(&c.ssl.eng, &session);
	peer_close(&c);
	for (int i = 0; i < 70; i++) {
		peer_open(&c, &session);
		shake_hands(&c);
		assert_int_equal(c.progress, TLS_DONE);
		assert_true(tls_resumed(c.slot));
		peer_close(&c);
	}
	assert_true(tls.slots[0].used == 71);
}

static int
make_dir(void **state)
{
	(void)state;
	log_to.level = LOG_LEVEL_ERROR;
	return mkdtemp(dir) ? 0 : -1;
}

static int
remove_dir(void **state)
{
	char command[300];

	(void)state;
	free(memory);
	snprintf(command, sizeof command, "rm -rf %s", dir);
	return system(command);
}

static void
dates_come_back_as_they_were_written(void **state)
{
	(void)state;
	for (int64_t at = 0; at < 4000000000;
	    at += DAY * 13 + 3607) {
		u8 room[32];
		struct der_out o = { room, room + sizeof room, false };
		struct der d;
		int64_t back;

		der_put_date(&o, at);
		d = (struct der){ o.p, (size_t)(room + sizeof room - o.p) };
		assert_true(der_take_date(&d, &back));
		assert_int_equal(d.n, 0);
		assert_int_equal(back, at);
	}
}

/* Cut at every byte and with every byte changed: the sanitizer looks on. */
static void
what_is_damaged_is_read_within_its_bounds(void **state)
{
	static const char *const names[] = { "ec.key", "rsa2048-pkcs1.key",
		"rsa4096.key", "p521.key", "ed25519.key", "ec.crt",
		"rsa2048.crt" };
	struct cert_key key;
	struct cert_parts parts;
	br_x509_pkey public;
	int64_t seconds;
	u8 der[4096];

	(void)state;
	for (size_t i = 0; i < COUNT(names) * 2; i++) {
		bool cut = i % 2;
		size_t size = get_der(names[i / 2], der);

		for (size_t n = 0; n < size; n++) {
			u8 *p = malloc(cut ? n + 1 : size);
			struct der d = { p, cut ? n : size };

			memcpy(p, der, d.n);
			if (!cut)
				p[n] = (u8)~p[n];
			(void)der_private_key(&key, d);
			if (cert_read(&parts, &d)) {
				(void)der_public_key(&public, parts.key);
				(void)der_take_date(&parts.dates, &seconds);
			}
			free(p);
		}
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_of_key_loads_with_its_certificate),
		cmocka_unit_test(ec_parameters_before_the_key_are_skipped),
		cmocka_unit_test(
		    crlf_a_byte_order_mark_and_no_final_newline_do_no_harm),
		cmocka_unit_test(one_file_may_hold_both_and_comments),
		cmocka_unit_test(der_loads_like_pem),
		cmocka_unit_test(a_chain_loads_in_pem_and_in_der),
		cmocka_unit_test(a_chain_in_the_wrong_order_is_named),
		cmocka_unit_test(
		    a_chain_has_at_most_eight_certificates_and_8192_bytes),
		cmocka_unit_test(an_encrypted_key_gets_a_message_of_its_own),
		cmocka_unit_test(a_key_that_is_not_the_certificates_is_refused),
		cmocka_unit_test(keys_that_cannot_be_used_are_named),
		cmocka_unit_test(files_that_hold_something_else_are_named),
		cmocka_unit_test(
		    a_file_of_the_largest_size_is_read_and_no_larger),
		cmocka_unit_test(a_file_cut_anywhere_is_refused),
		cmocka_unit_test(
		    an_object_must_end_with_the_name_it_began_with),
		cmocka_unit_test(a_reload_that_fails_keeps_what_is_in_use),
		cmocka_unit_test(dates_are_those_of_the_c_library),
		cmocka_unit_test(certificate_dates_change_their_form_in_2050),
		cmocka_unit_test(
		    lengths_are_put_in_their_shortest_form_and_taken_back),
		cmocka_unit_test(names_are_host_names_wildcards_and_addresses),
		cmocka_unit_test(
		    a_certificate_of_our_own_has_the_names_that_were_asked_for),
		cmocka_unit_test(without_names_it_has_those_of_this_machine),
		cmocka_unit_test(
		    too_many_names_are_refused_and_nothing_is_written),
		cmocka_unit_test(
		    ours_is_renewed_below_thirty_days_and_not_before),
		cmocka_unit_test(
		    an_expired_certificate_is_used_and_its_days_are_negative),
		cmocka_unit_test(
		    a_pair_of_ours_that_a_power_cut_split_is_made_anew),
		cmocka_unit_test(somebody_elses_broken_pair_is_not_touched),
		cmocka_unit_test(
		    somebody_elses_expired_pair_is_not_touched_either),
		cmocka_unit_test(the_verb_makes_shows_and_refuses),
		cmocka_unit_test(
		    a_cipher_that_fails_its_test_is_not_started_with),
		cmocka_unit_test(both_suites_work_with_ec_and_rsa),
		cmocka_unit_test(dates_come_back_as_they_were_written),
		cmocka_unit_test(what_is_damaged_is_read_within_its_bounds),
		cmocka_unit_test(the_suite_that_fills_the_list_is_never_chosen),
		cmocka_unit_test(
		    bearssl_finds_no_empty_row_in_the_list_of_suites),
		cmocka_unit_test(a_second_connection_resumes),
		cmocka_unit_test(who_resumes_may_offer_any_protocol),
		cmocka_unit_test(
		    a_session_whose_suite_is_not_offered_is_not_resumed),
		cmocka_unit_test(
		    sessions_are_forgotten_daily_and_with_a_new_certificate),
		cmocka_unit_test(a_handshake_may_come_in_any_pieces),
		cmocka_unit_test(finished_may_come_in_several_records),
		cmocka_unit_test(what_follows_finished_is_left_in_the_socket),
		cmocka_unit_test(a_slot_that_was_given_back_holds_no_secret),
		cmocka_unit_test(
		    a_slot_given_back_in_the_middle_holds_no_secret),
		cmocka_unit_test(a_turn_has_a_budget_of_handshake_steps),
		cmocka_unit_test(the_pool_has_an_end_and_slots_come_back),
		cmocka_unit_test(after_a_storm_slots_give_their_pages_back),
		cmocka_unit_test(
		    old_versions_and_foreign_suites_get_a_proper_alert),
		cmocka_unit_test(rubbish_gets_an_alert_and_a_reason),
		cmocka_unit_test(an_alert_has_the_clients_version),
		cmocka_unit_test(a_client_that_leaves_is_said_to_have_left),
		cmocka_unit_test(a_changed_finished_is_refused),
		cmocka_unit_test(a_secret_that_everybody_knows_is_refused),
		cmocka_unit_test(handshakes_survive_one_reload_and_not_two),
		cmocka_unit_test(slots_are_used_again_and_again),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
