# SPDX-License-Identifier: MIT
"""Who talks to the TLS port, and who does not: Python, OpenSSL, curl; old and
new versions; records in every split and with changed bits; certificates in
every state; a new certificate on SIGHUP."""
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest

import wsp
from wsp import CLOSE, Gone, close_payload, fails, frame, make_certificate
from wsp import peer_certificate, request, wspush

SERVER = ["--service", "main_ws_service", "--service", "echo=echo"]
ECHO = "/services/echo"
MOST = 16384 - 8  # with its frame's head it fills a record
CHACHA, GCM = "CHACHA20-POLY1305", "AES128-GCM-SHA256"
PEM = wsp.ROOT / "test" / "corpus" / "pem"


def context(suite=None):
    made = wsp.tls_context(strict=True)
    if suite:
        made.set_ciphers(f"ECDHE-ECDSA-{suite}:ECDHE-RSA-{suite}")
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    return made


class Wire:
    """A TLS client whose ciphertext goes through our hands."""

    def __init__(self, address, suite=None):
        self.socket = socket.create_connection(address, wsp.PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sealed = ssl.MemoryBIO()
        self.came = ssl.MemoryBIO()
        self.tls = context(suite).wrap_bio(self.came, self.sealed)
        self.do(self.tls.do_handshake)

    def do(self, step, *args, piece=None):
        """A step of the TLS machine, with as much input as it wants."""
        while True:
            try:
                return step(*args)
            except ssl.SSLWantReadError:
                self.send(self.sealed.read(), piece)
                data = self.socket.recv(1 << 16)
                if not data:
                    self.came.write_eof()
                self.came.write(data)
            finally:
                self.send(self.sealed.read(), piece)

    def send(self, data, piece=None):
        for at in range(0, len(data), piece or max(1, len(data))):
            self.socket.sendall(data[at:at + piece] if piece else data)

    def seal(self, data):
        self.tls.write(data)
        return self.sealed.read()

    def read(self, n):
        data = b""
        while len(data) < n:
            got = self.do(self.tls.read, n - len(data))
            assert got, f"the end after {data!r}"
            data += got
        return data

    def upgrade(self):
        self.send(self.seal(request(ECHO)))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.read(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return self

    def fails_with(self, words):
        with pytest.raises(ssl.SSLError, match=words):
            self.read(1)
        assert self.socket.recv(1) == b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


# ----- clients ------------------------------------------------------------

@pytest.mark.parametrize("suite", [CHACHA, GCM])
@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_both_suites_work_with_both_kinds_of_key(tmp_path, serve, kind, suite):
    cert, key = make_certificate(tmp_path, kind=kind)
    server = serve("--cert", cert, "--key", key)
    raw = server.open(tls=True, context=context(suite))
    assert raw.socket.cipher()[0].endswith(suite)
    raw.heartbeat()


@pytest.mark.parametrize("suite", [CHACHA, GCM])
@pytest.mark.parametrize("piece", [1, 7, 1400, 16383, None])
def test_a_record_of_16_kib_may_come_in_any_split(server, suite, piece):
    with Wire(server.address(tls=True), suite) as wire:
        wire.upgrade()
        message = bytes(i % 251 for i in range(MOST))
        record = wire.seal(frame(2, message))
        assert 16384 < len(record) <= 16384 + 29, "more than one record"
        wire.send(record, piece)
        assert wire.read(4 + MOST)[4:] == message


@pytest.mark.parametrize("suite", [CHACHA, GCM])
def test_records_of_every_size_are_taken(server, suite):
    with Wire(server.address(tls=True), suite) as wire:
        wire.upgrade()
        for size in (1, 2, 15, 16, 17, 120, 1000, 4096, 16000, MOST):
            data = frame(2, b"x" * size)
            for at in range(0, len(data), max(1, size // 3)):
                wire.send(wire.seal(data[at:at + max(1, size // 3)]))
            head = 2 if size < 126 else 4
            assert wire.read(head + size)[head:] == b"x" * size


@pytest.mark.parametrize("suite", [CHACHA, GCM])
def test_a_second_connection_resumes_and_is_counted(server, suite):
    def counts():
        stats = server.stats()
        return stats["handshakes_full"], stats["handshakes_resumed"]

    client = context(suite)
    full, resumed = counts()
    first = server.open(tls=True, context=client)
    first.heartbeat()
    assert not first.socket.session_reused
    second = server.open(tls=True, context=client,
                         session=first.socket.session)
    second.heartbeat()
    assert second.socket.session_reused
    assert counts() == (full + 1, resumed + 1)


def test_each_of_many_resumes_its_own_session(server):
    """The cache has a row for every connection."""
    clients = []
    for _ in range(60):
        client = context(CHACHA)
        raw = server.open(tls=True, context=client)
        raw.heartbeat()
        clients.append((client, raw.socket.session))
    for client, session in clients:
        raw = server.open(tls=True, context=client, session=session)
        assert raw.socket.session_reused


def s_client(server, *options, stdin=b""):
    host, port = server.address(tls=True)
    done = subprocess.run(["openssl", "s_client", "-connect", f"{host}:{port}",
                           *options], input=stdin, capture_output=True,
                          timeout=wsp.PATIENCE, check=False)
    return done.returncode, (done.stdout + done.stderr).decode("latin-1")


def test_s_client_reconnects_and_resumes_each_time(server):
    code, said = s_client(server, "-tls1_2", "-reconnect")
    assert code == 0, said
    assert len(re.findall(r"^New, TLSv1.2", said, re.M)) == 1, said
    assert len(re.findall(r"^Reused, TLSv1.2", said, re.M)) == 5, said
    assert "Secure Renegotiation IS supported" in said


def test_renegotiation_is_refused_with_no_renegotiation(server):
    before = server.stats()["handshakes_full"]
    code, said = s_client(server, "-tls1_2", "-msg", stdin=b"R\n")
    assert code != 0 and "no renegotiation" in said.lower(), said
    assert server.stats()["handshakes_full"] == before + 1


def test_curl_gets_the_health_over_tls(server):
    host, port = server.address(tls=True)
    done = subprocess.run(["curl", "-sSk", f"https://{host}:{port}/healthz"],
                          capture_output=True, timeout=wsp.PATIENCE,
                          check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"ok"), done


def test_a_client_that_offers_h2_gets_http_1_1(server):
    for offer, got in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None)):
        client = context()
        client.set_alpn_protocols(offer)
        raw = server.open(tls=True, context=client)
        assert raw.socket.selected_alpn_protocol() == got
        raw.heartbeat()


def test_who_resumes_may_offer_h2_alone(server):
    client = context()
    raw = server.open(tls=True, context=client)
    client.set_alpn_protocols(["h2"])
    with socket.create_connection(server.address(tls=True),
                                  wsp.PATIENCE) as plain, \
            client.wrap_socket(plain, session=raw.socket.session) as tls:
        assert tls.session_reused
        assert tls.selected_alpn_protocol() is None
    raw.heartbeat()


@pytest.mark.parametrize("limit", [512, 1024, 2048, 4096])
def test_a_limit_of_records_is_not_granted_and_then_broken(server, limit):
    """OpenSSL ends a connection whose records are longer than agreed."""
    page = server.ask(request("/", upgrade=False), tls=True)
    _, said = s_client(server, "-tls1_2", "-quiet", "-maxfraglen", str(limit),
                       stdin=request("/", upgrade=False))
    assert len(page.body) > 4096
    assert page.body.decode("latin-1") in said, said


# ----- who does not fit ---------------------------------------------------

@pytest.mark.parametrize("options,alert", [
    (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], 70),
    (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], 70),
    (["-tls1_3"], None),
    (["-tls1_2", "-cipher", "AES256-SHA256"], 40),
    (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"], 40),
    (["-tls1_2", "-curves", "P-521"], 40)])
def test_who_offers_nothing_of_ours_gets_a_proper_alert(
        server, options, alert):
    failed = server.stats()["handshakes_failed"]
    code, said = s_client(server, *options)
    assert code != 0
    number = re.search(r"SSL alert number (\d+)", said)
    assert number, said
    assert alert is None or int(number[1]) == alert, said
    assert int(number[1]) in (40, 70), said
    wsp.until(lambda: server.stats()["handshakes_failed"] == failed + 1,
              "its count")
    server.open(tls=True).heartbeat()


# ----- records ------------------------------------------------------------

@pytest.mark.parametrize("suite", [CHACHA, GCM])
@pytest.mark.parametrize("at", [5, 20, -16, -1])
def test_a_changed_bit_is_bad_record_mac_and_the_end(server, suite, at):
    with Wire(server.address(tls=True), suite) as wire:
        wire.upgrade()
        record = bytearray(wire.seal(frame(1, b"hello")))
        record[at] ^= 4
        wire.send(record)
        wire.fails_with("(?i)bad.record.mac")


def test_a_changed_finished_is_bad_record_mac_too(server):
    client = context(CHACHA)
    made = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(*made)
    with socket.create_connection(server.address(tls=True),
                                  wsp.PATIENCE) as plain:
        flights = 0
        with pytest.raises(ssl.SSLError, match="(?i)bad.record.mac"):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    flights += 1
                data = bytearray(made[1].read())
                if flights == 2:
                    data[-1] ^= 1
                plain.sendall(data)
                made[0].write(plain.recv(1 << 16))


@pytest.mark.parametrize("how,words", [
    ("again", "bad.record.mac"), ("skipped", "bad.record.mac"),
    ("version", "protocol.version"), ("type", "unexpected.message"),
    ("length", "record.overflow"), ("short", "decode.error")])
def test_a_record_out_of_order_or_shape_gets_its_alert(server, how, words):
    with Wire(server.address(tls=True), GCM) as wire:
        wire.upgrade()
        record = bytearray(wire.seal(frame(1, b"hello")))
        if how == "again":
            record = record * 2
        elif how == "skipped":
            record = wire.seal(frame(1, b"later"))
        elif how == "version":
            record[2] = 1
        elif how == "type":
            record[0] = 20
        elif how == "length":
            record[3:5] = b"\x41\x00"
        elif how == "short":
            record[3:5] = b"\x00\x10"
        wire.send(record)
        if how == "again":
            assert wire.read(7)[2:] == b"hello"
        wire.fails_with("(?i)" + words)


def test_our_close_notify_follows_the_close_frame(server):
    with Wire(server.address(tls=True)) as wire:
        wire.upgrade()
        wire.send(wire.seal(frame(CLOSE, close_payload(1000))))
        assert wire.read(4)[2:] == b"\x03\xe8"
        # a clean end raises ZeroReturn or gives "", a cut one SSLEOFError
        try:
            assert wire.do(wire.tls.read, 1) == b""
        except ssl.SSLZeroReturnError:
            pass


def test_a_clients_close_notify_is_answered_and_ends_it(server):
    raw = server.open(tls=True, id="leaver")
    plain = raw.socket.unwrap()  # sends ours, waits for theirs
    assert plain.recv(1) == b""
    server.wait_state("/services/main_ws_service-s-leaver", "away")


def test_an_end_without_close_notify_is_an_end(server):
    raw = server.open(tls=True, id="cut")
    raw.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(Gone):
        raw.take(1)
    server.wait_state("/services/main_ws_service-s-cut", "away")


def test_a_hundred_at_once_all_get_through(server):
    results = []

    def one():
        raw = server.raw(tls=True)
        raw.upgrade(ECHO)
        raw.text("hello")
        results.append(raw.read_text())
    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * wsp.PATIENCE)
    assert results == ["hello"] * 100


# ----- certificates -------------------------------------------------------

def spoil(path, bom, crlf, no_end):
    text = path.read_text()
    text = text.rstrip("\n") if no_end else text
    text = text.replace("\n", "\r\n") if crlf else text
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())


@pytest.mark.parametrize("bom,crlf,no_end", [(1, 0, 0), (0, 1, 0), (0, 0, 1),
                                             (1, 1, 1)])
def test_what_editors_do_to_a_file_does_no_harm(tmp_path, serve, bom, crlf,
                                                no_end):
    cert, key = make_certificate(tmp_path)
    spoil(cert, bom, crlf, no_end)
    spoil(key, bom, crlf, no_end)
    serve("--cert", cert, "--key", key).open(tls=True).heartbeat()


@pytest.mark.parametrize("cert,key", [
    ("ec.crt", "ec-parameters-first.key"), ("rsa4096.crt", "rsa4096.key"),
    ("p384.crt", "p384.key"), ("p521.crt", "p521.key"),
    ("ec-cert.der", "ec-sec1.der"), ("ec-cert.der", "ec-pkcs8.der"),
    ("rsa2048.crt", "rsa2048-pkcs1.der")])
def test_every_kind_of_pair_serves(serve, cert, key):
    server = serve("--cert", PEM / cert, "--key", PEM / key)
    server.open(tls=True).heartbeat()


def test_a_chain_is_sent_whole_and_verifies(tmp_path, serve):
    chain = tmp_path / "chain.pem"
    chain.write_text((PEM / "chain-leaf.crt").read_text()
                     + (PEM / "chain-intermediate.crt").read_text())
    server = serve("--cert", chain, "--key", PEM / "chain-leaf.key")
    code, said = s_client(server, "-tls1_2", "-CAfile",
                          str(PEM / "chain-root.crt"), "-verify_return_error",
                          "-showcerts")
    assert code == 0 and said.count("BEGIN CERTIFICATE") == 2, said


@pytest.mark.parametrize("cert,key,guilty,words", [
    ("ec.crt", "encrypted-pkcs8.key", "key", "encrypted"),
    ("ec.crt", "encrypted-old.key", "key", "encrypted"),
    ("ec.crt", "chain-leaf.key", "key", "not that of"),
    ("ec.crt", "rsa2048-pkcs1.key", "key", "RSA"),
    ("ec.crt", "rsa1024.key", "key", "1024"),
    ("ec.crt", "ed25519.key", "key", "neither RSA nor EC"),
    ("ed25519.crt", "ec.key", "cert", "neither RSA nor EC"),
    ("ec.crt", "ec.crt", "key", "no private key"),
    ("ec.key", "ec.key", "cert", "no certificate")])
def test_a_pair_that_is_no_good_is_one_sentence_and_exit_1(
        tmp_path, cert, key, guilty, words):
    check_refused(tmp_path, PEM / cert, PEM / key,
                  PEM / (cert if guilty == "cert" else key), words)


def check_refused(tmp_path, cert, key, guilty, words):
    code, lines = fails("--listen", "127.0.0.1:0", "--push", tmp_path / "p",
                        "--cert", cert, "--key", key)
    assert code == 1
    assert len(lines) == 1 and str(guilty) in lines[0], lines
    assert words in lines[0], lines


@pytest.mark.parametrize("order", [
    ("root", "intermediate", "leaf"), ("leaf", "root", "intermediate"),
    ("intermediate", "leaf")])
def test_a_chain_in_the_wrong_order_is_one_sentence_and_exit_1(
        tmp_path, order):
    chain = tmp_path / "chain.pem"
    chain.write_text("".join((PEM / f"chain-{name}.crt").read_text()
                             for name in order))
    check_refused(tmp_path, chain, PEM / "chain-leaf.key", chain,
                  "wrong order")


def test_a_file_that_is_cut_short_is_one_sentence_and_exit_1(tmp_path):
    cert, key = make_certificate(tmp_path)
    cert.write_bytes(cert.read_bytes()[:-30])
    check_refused(tmp_path, cert, key, cert, "cut short")


def test_an_expired_certificate_is_served_with_a_warning(serve):
    server = serve("--cert", PEM / "chain-leaf-expired.crt", "--key",
                   PEM / "chain-leaf.key")
    server.wait_log("certificate state=expired path=.*chain-leaf-expired")
    server.open(tls=True).heartbeat()
    assert server.stats()["cert_days"] == 0


@pytest.mark.parametrize("days,warned", [(29, True), (31, False)])
def test_stats_count_the_days_and_below_thirty_there_is_a_warning(
        tmp_path, serve, days, warned):
    cert, key = make_certificate(tmp_path, days=days)
    server = serve("--cert", cert, "--key", key)
    assert server.stats()["cert_days"] in (days - 1, days)
    assert any("state=ending" in line for line in server.log) == warned


def hup(server, pattern=" reloaded "):
    after = len(server.log)
    server.kick(signal.SIGHUP)
    server.wait_log(pattern, after)


def test_a_new_certificate_on_sighup_ends_nothing_and_no_session_survives_it(
        tmp_path, serve):
    cert, key = make_certificate(tmp_path, "now")
    other = make_certificate(tmp_path, "next", days=300)
    server = serve("--cert", cert, "--key", key)
    client = context(CHACHA)
    old = server.open(tls=True, context=client)
    old.heartbeat()
    session = old.socket.session
    address = server.address(tls=True)
    before = peer_certificate(address)
    hup(server)  # the same pair: sessions stay good
    assert server.open(tls=True, context=client,
                       session=session).socket.session_reused
    shutil.copy(other[0], cert)
    hup(server, "now.key")  # half of a change: nothing changes
    assert peer_certificate(address) == before
    shutil.copy(other[1], key)
    hup(server)
    assert peer_certificate(address) != before
    assert server.stats()["cert_days"] in (299, 300)
    assert not server.open(tls=True, context=client,
                           session=session).socket.session_reused
    old.heartbeat()


# ----- wspush cert --------------------------------------------------------

def test_a_certificate_of_ours_is_what_openssl_calls_strict(tmp_path):
    done = wspush("cert", "--state", str(tmp_path), "box.example", "192.0.2.9",
                  "2001:db8::9")
    assert done.returncode == 0, done
    cert = str(tmp_path / "cert.pem")
    for check in (["-verify_hostname", "box.example"],
                  ["-verify_ip", "192.0.2.9"], ["-verify_ip", "2001:db8::9"]):
        done = subprocess.run(["openssl", "verify", "-x509_strict", "-purpose",
                               "sslserver", *check, "-CAfile", cert, cert],
                              capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done
    text = subprocess.run(["openssl", "x509", "-in", cert, "-noout", "-text"],
                          capture_output=True, timeout=60, check=True
                          ).stdout.decode()
    for words in ("Version: 3", "CA:FALSE", "Digital Signature",
                  "TLS Web Server Authentication", "ecdsa-with-SHA256",
                  "NIST CURVE: P-256"):
        assert words in text, text
    subprocess.run(["openssl", "pkey", "-in", str(tmp_path / "key.pem"),
                    "-check", "-noout"], capture_output=True, timeout=60,
                   check=True)


def test_names_that_do_not_fit_make_nothing(tmp_path):
    names = [f"{number:060}.example" for number in range(60)]
    done = wspush("cert", "--state", str(tmp_path), *names)
    assert done.returncode == 1 and b"names" in done.stderr, done
    assert not list(tmp_path.iterdir())


def test_one_of_ours_is_made_anew_below_thirty_days_only(tmp_path):
    cert = tmp_path / "cert.pem"
    for days, anew in ((31, False), (29, True)):
        done = wspush("cert", "-f", "-d", str(days), "--state", str(tmp_path))
        assert done.returncode == 0, done
        before = cert.read_bytes()
        with wsp.Server(directory=tmp_path) as server:
            server.open(tls=True).heartbeat()
            assert (server.stats()["cert_days"] > 800) == anew
        assert (cert.read_bytes() != before) == anew
