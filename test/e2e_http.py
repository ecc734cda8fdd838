# SPDX-License-Identifier: MIT
"""HTTP: every answer, and which of two mistakes is answered first."""
import re
import subprocess
import time
from pathlib import Path

import pytest

import wsp
from wsp import KEY, MAIN, request

SERVER = ["--service", MAIN, "--service", "limited,max=1",
          "--service", "sub,protocol=one,protocol=two"]
PATH = f"/services/{MAIN}"


def check_refusal(answer, status, method="GET"):
    """What every answer but 101 and the page has."""
    assert answer.status == status, (answer.status, answer.body)
    assert "close" in answer.tokens("Connection")
    assert answer.get("Content-Type").startswith("text/plain")
    if method == "HEAD":
        assert answer.body == b""
        return
    assert int(answer.get("Content-Length")) == len(answer.body)
    text = answer.body.decode()
    assert re.fullmatch(r"[^\n]{5,}\n?", text), text


def refused(server, status, data, tls=False, piece=None):
    answer = server.ask(data, tls, piece)
    method = data.split(b" ")[0].decode("latin-1")
    check_refusal(answer, status, method)
    assert server.rows() == []
    return answer


# ----- 101 ----------------------------------------------------------------

def test_a_valid_upgrade_gets_101_and_nothing_it_did_not_ask_for(server, tls):
    raw = server.raw(tls)
    answer = raw.upgrade(PATH)
    assert answer.get("Upgrade").lower() == "websocket"
    assert answer.tokens("Connection") == ["upgrade"]
    assert answer.get("Sec-WebSocket-Accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert answer.get("Sec-WebSocket-Protocol") is None
    assert answer.get("Sec-WebSocket-Extensions") is None
    raw.heartbeat()


def test_a_request_in_any_pieces_is_the_same_request(server, tls):
    data = request(PATH + "?X-StatefulSocketId=1")
    for piece in (1, 2, 3, 7, 50):
        raw = server.raw(tls)
        raw.send(data, piece)
        assert raw.response().status == 101
        raw.heartbeat()
        raw.say_close()


def test_frames_in_the_same_segment_as_the_request_are_not_lost(server, tls):
    raw = server.raw(tls)
    raw.send(request(PATH) + wsp.frame(wsp.TEXT, "$hbt") * 3)
    assert raw.response().status == 101
    assert [raw.read_text() for _ in range(3)] == ["$ok"] * 3


@pytest.mark.parametrize("headers", [
    {"Upgrade": "WebSocket", "Connection": "upgrade"},
    {"Upgrade": "WEBSOCKET", "Connection": "UPGRADE"},
    {"Connection": "keep-alive, Upgrade"},
    {"Connection": "keep-alive,  ,upgrade\t, x"},
    {"Connection": ["keep-alive", "Upgrade"]},
    {"Upgrade": "h2c, websocket"},
    {"Upgrade": ["h2c", "websocket"]},
    {"Content-Length": "0"},
    {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"},
    {"Sec-WebSocket-Protocol": "chat, superchat"},
    {"User-Agent": "Mozilla/5.0 (\xe9)", "Cookie": "a=b; c=d", "X-Empty": ""},
    {"Host": None, "host": "localhost", "sec-websocket-key": KEY,
     "Sec-WebSocket-Key": None}])
def test_what_browsers_and_proxies_write_differently_is_taken(server, headers):
    raw = server.raw()
    raw.send(request(PATH, headers=headers))
    answer = raw.response()
    assert answer.status == 101, answer.body
    assert answer.get("Sec-WebSocket-Protocol") is None
    assert answer.get("Sec-WebSocket-Extensions") is None


@pytest.mark.parametrize("target, version", [
    (f"http://localhost{PATH}", "HTTP/1.1"),
    (f"HTTP://LOCALHOST{PATH}?X-StatefulSocketId=1", "HTTP/1.1"),
    (f"https://localhost:1{PATH}", "HTTP/1.1"),
    (PATH, "HTTP/1.2"), (PATH, "HTTP/1.9")])
def test_absolute_targets_and_later_minor_versions_are_taken(
        server, target, version):
    raw = server.raw()
    raw.send(request(target, version=version))
    assert raw.response().status == 101


@pytest.mark.parametrize("offered, answered", [
    ("one", "one"), ("two", "two"), ("two, one", "two"),
    ("zero, one, two", "one"), (["zero", "two"], "two"), ("zero", None),
    ("One", None), (None, None)])
def test_the_clients_first_configured_protocol_is_answered(
        server, offered, answered):
    raw = server.raw()
    raw.send(request("/services/sub",
                     headers={"Sec-WebSocket-Protocol": offered}))
    answer = raw.response()
    assert answer.status == 101, answer.body
    assert answer.get("Sec-WebSocket-Protocol") == answered


# ----- the page and the health --------------------------------------------

IDS = """url protocols connect disconnect status hbt hbt-interval rtt message
    send journal clear""".split()


def test_the_page_is_one_document_that_loads_nothing(server, tls):
    answer = server.ask(request("/", upgrade=False), tls)
    assert answer.status == 200
    assert answer.get("Content-Type").lower().replace(" ", "") == (
        "text/html;charset=utf-8")
    assert int(answer.get("Content-Length")) == len(answer.body)
    assert "close" in answer.tokens("Connection")
    page = answer.body.decode()
    assert page.lstrip().lower().startswith("<!doctype html>")
    for name in IDS:
        assert re.search(rf"\bid=[\"']?{name}[\"'\s>]", page), name
    assert not re.search(r"<(link|script|img|iframe)[^>]*(src|href)\s*="
                         r"\s*[\"']?(?!data:)[^\"'\s>]", page, re.I)
    assert not re.search(r"@import|\burl\((?!['\"]?(data:|#))", page)
    source = (Path(__file__).parent.parent / "tools/page.html").read_text()
    source = re.sub(r"^\t+", "", source, flags=re.M)
    source = re.sub(r"^/\*.*?\*/\n", "", source, flags=re.M | re.S)
    assert page == re.sub(r"\n+", "\n", source), "packed and back"
    assert "innerHTML" not in page


def test_head_is_get_without_the_body(server, tls):
    get = server.ask(request("/", upgrade=False), tls)
    head = server.ask(request("/", "HEAD", upgrade=False), tls)
    assert (head.status, head.body) == (200, b"")
    assert head.get("Content-Length") == str(len(get.body))
    assert head.get("Content-Type") == get.get("Content-Type")


def test_a_client_that_reads_slowly_gets_the_whole_page(serve, tls):
    server = serve("--send-buffer", "2048")
    raw = server.raw(tls, receive_buffer=2048)
    raw.send(request("/", upgrade=False))
    time.sleep(1.5)  # longer than a connection that has its answer is kept
    answer = raw.response()
    assert len(answer.body) == int(answer.get("Content-Length")) > 8192


@pytest.mark.parametrize("target", ["/?lang=ru", "http://localhost/"])
def test_the_page_has_other_addresses_too(server, target):
    answer = server.ask(request(target, upgrade=False))
    assert (answer.status, b"journal" in answer.body) == (200, True)


def test_a_page_over_http_1_0_comes_whole(server):
    answer = server.ask(request("/", version="HTTP/1.0", upgrade=False))
    assert answer.status == 200
    assert answer.body.rstrip().endswith(b"</html>")


def test_no_page_is_404(serve):
    server = serve("--no-page")
    for method in ("GET", "HEAD"):
        refused(server, 404, request("/", method, upgrade=False))
    server.open().heartbeat()


def test_healthz_says_ok(server, tls):
    answer = server.ask(request("/healthz", upgrade=False), tls)
    check_health(answer)
    assert answer.body.strip() == b"ok"
    head = server.ask(request("/healthz", "HEAD", upgrade=False), tls)
    assert (head.status, head.body) == (200, b"")


def check_health(answer):
    assert answer.status == 200
    assert answer.get("Content-Type").startswith("text/plain")
    assert int(answer.get("Content-Length")) == len(answer.body)
    assert "close" in answer.tokens("Connection")


# ----- refusals -----------------------------------------------------------

def test_a_service_without_an_upgrade_is_426(server, tls):
    for method in ("GET", "HEAD"):
        answer = refused(server, 426, request(PATH, method, upgrade=False),
                         tls)
        assert answer.get("Upgrade").lower() == "websocket"
        assert "upgrade" in answer.tokens("Connection")


@pytest.mark.parametrize("headers, version", [
    ({"Upgrade": None}, "HTTP/1.1"), ({"Connection": None}, "HTTP/1.1"),
    ({"Connection": "keep-alive"}, "HTTP/1.1"),
    ({"Connection": "Upgrades"}, "HTTP/1.1"),
    ({"Upgrade": "websockets"}, "HTTP/1.1"), ({"Upgrade": "h2c"}, "HTTP/1.1"),
    ({}, "HTTP/1.0")])
def test_half_an_upgrade_or_an_old_version_of_http_is_426(
        server, headers, version):
    answer = refused(server, 426,
                     request(PATH, headers=headers, version=version))
    assert answer.get("Upgrade").lower() == "websocket"
    assert "upgrade" in answer.tokens("Connection")


@pytest.mark.parametrize("version", [None, "8", "12", "14", "130", "", "x"])
def test_another_websocket_version_is_426_and_names_13(server, version):
    answer = refused(server, 426, request(
        PATH, headers={"Sec-WebSocket-Version": version}))
    assert answer.get("Sec-WebSocket-Version") == "13"


@pytest.mark.parametrize("target", [
    "/", "/healthz", "/nothing", "/services", "/services/", "/services/absent",
    PATH + "/", PATH + "/x", PATH + "x", PATH.upper(), "/" + PATH,
    "/services/main%5Fws_service", "/./services/" + MAIN,
    "/services/../services/" + MAIN, PATH + "%00", PATH + ";x"])
def test_an_upgrade_on_anything_but_a_service_is_404(server, target):
    refused(server, 404, request(target))


@pytest.mark.parametrize("target", [
    "/nothing", "/services", "/services/", "/services/absent", "/index.html",
    "/healthz/", "/%68ealthz", "/favicon.ico", "//"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_unknown_path_is_404(server, target, method):
    refused(server, 404, request(target, method, upgrade=False))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS",
                                    "PATCH", "TRACE", "get", "GETS"])
@pytest.mark.parametrize("target", ["/", "/healthz", PATH])
def test_another_method_is_405_and_names_the_two(server, method, target):
    answer = refused(server, 405, request(
        target, method, upgrade=target == PATH,
        headers={"Content-Length": "0"} if method == "POST" else None))
    assert re.fullmatch(r"GET, ?HEAD", answer.get("Allow"))


@pytest.mark.parametrize("status, data", [
    (404, request("/", "HEAD")), (404, request("/healthz", "HEAD")),
    (400, request("/", "HEAD", host="a b")),
    (431, request("/", "HEAD", headers={"X": ["x"] * 64}))])
def test_no_refusal_of_head_has_a_body(server, status, data):
    refused(server, status, data)


GOOD = request(PATH)
BAD_SYNTAX = {
    "no Host": request(PATH, headers={"Host": None}),
    "two Hosts": request(PATH, headers={"Host": ["localhost", "localhost"]}),
    "space before the colon": GOOD.replace(b"Upgrade:", b"Upgrade :", 1),
    "a name with a space": GOOD.replace(b"Upgrade:", b"Up grade:", 1),
    "no colon": GOOD.replace(b"Upgrade: websocket", b"Upgrade websocket"),
    "an empty name": GOOD.replace(b"Upgrade: ", b": ", 1),
    "white space before the first header":
        GOOD.replace(b"\r\nHost", b"\r\n Host"),
    "a folded line": GOOD.replace(b"Key: ", b"Key:\r\n "),
    "a NUL in a value": GOOD.replace(b"localhost", b"local\0host"),
    "a NUL in a name": GOOD.replace(b"Upgrade:", b"Upgra\0de:"),
    "a bare CR in a value": GOOD.replace(b"localhost", b"local\rhost"),
    "a control character in a value":
        GOOD.replace(b"localhost", b"local\x01host"),
    "a bare LF after the request line":
        GOOD.replace(b"1.1\r\n", b"1.1\n"),
    "a bare LF after a header": GOOD.replace(b"localhost\r\n", b"localhost\n"),
    "bare LFs everywhere": GOOD.replace(b"\r\n", b"\n"),
    "two spaces in the request line": GOOD.replace(b"GET ", b"GET  "),
    "a tab in the request line": GOOD.replace(b"GET ", b"GET\t"),
    "a space at the end of the request line":
        GOOD.replace(b"1.1\r\n", b"1.1 \r\n"),
    "a space at the start": b" " + GOOD,
    "no version": GOOD.replace(b" HTTP/1.1", b""),
    "HTTP/2.0": GOOD.replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/1": GOOD.replace(b"HTTP/1.1", b"HTTP/1"),
    "HTTP/1.10": GOOD.replace(b"HTTP/1.1", b"HTTP/1.10"),
    "http/1.1": GOOD.replace(b"HTTP/1.1", b"http/1.1"),
    "no target": GOOD.replace(PATH.encode() + b" ", b""),
    "a target without a slash": GOOD.replace(b"GET /", b"GET "),
    "a raw UTF-8 target": GOOD.replace(b" HTTP", "?a=П HTTP".encode()),
    "a control character in the target": GOOD.replace(b" HTTP", b"\x7f HTTP"),
    "a method that is no token": GOOD.replace(b"GET", b"G(T"),
    "a body announced": request(PATH, headers={"Content-Length": "5"}),
    "a length that is no number": request(
        PATH, headers={"Content-Length": "x"}),
    "two different lengths": request(
        PATH, headers={"Content-Length": ["0", "1"]}),
    "a negative length": request(PATH, headers={"Content-Length": "-0"}),
    "a chunked body": request(
        PATH, headers={"Transfer-Encoding": "chunked"}),
    "a POST with a body": request(
        "/", "POST", upgrade=False, headers={"Content-Length": "3"}) + b"abc",
    "TLS on the plain port": bytes.fromhex("16030100c8010000c40303") + b"\0"
        * 60,
    "noise": bytes(range(128, 256)) + b"\r\n\r\n",
    "a line of nothing but noise": b"\0\1\2\3\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_SYNTAX.values(), ids=BAD_SYNTAX)
def test_bad_syntax_is_400(server, data):
    refused(server, 400, data)


@pytest.mark.parametrize("name", [
    "space before the colon", "a bare LF after the request line",
    "a bare LF after a header", "white space before the first header",
    "two spaces in the request line"])
def test_bad_white_space_is_400_before_the_request_is_whole(server, name):
    data = BAD_SYNTAX[name]
    refused(server, 400, data[:len(data) - 6])


def test_bad_syntax_is_400_however_it_is_cut(server):
    for name in ("no Host", "a folded line", "a NUL in a value",
                 "bare LFs everywhere", "a body announced"):
        refused(server, 400, BAD_SYNTAX[name], piece=1)


@pytest.mark.parametrize("key", [
    None, "", "short", KEY[:-1], KEY + "=", KEY[:-2] + "A=", "A" * 24,
    KEY.replace("h", "!"), "dGhlIHNhbXBsZSBub25jZQ", [KEY, KEY], KEY + "AAAA",
    "=" * 24])
def test_a_bad_key_is_400(server, key):
    refused(server, 400, request(PATH, headers={"Sec-WebSocket-Key": key}))


def padded(size, lines=None):
    """A request of `size` bytes, in so many header lines."""
    headers = {f"X-{n}": "y" for n in range((lines or 6) - 6)}
    short = len(request(PATH, headers={**headers, "X-Fill": ""}))
    return request(PATH, headers={**headers, "X-Fill": "x" * (size - short)})


def test_a_request_of_8_kib_is_taken_and_one_byte_more_is_431(server):
    assert len(padded(8192)) == 8192
    assert server.ask(padded(8192)).status == 101
    server.ok("close *")
    answer = server.ask(padded(8193))
    check_refusal(answer, 431)


def test_64_header_lines_are_taken_and_65_are_431(server):
    assert padded(4000, 64).count(b"\r\n") == 66
    assert server.ask(padded(4000, 64)).status == 101
    server.ok("close *")
    check_refusal(server.ask(padded(4000, 65)), 431)


@pytest.mark.parametrize("data", [
    b"GET /" + b"x" * 9000, b"x" * 9000,
    b"GET / HTTP/1.1\r\nHost: " + b"x" * 9000,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100])
def test_too_much_is_431_before_its_end_has_come(server, tls, data):
    refused(server, 431, data, tls)


@pytest.fixture(scope="module")
def hasty():
    with wsp.Server("--handshake-timeout", 1) as server:
        yield server


@pytest.mark.parametrize("data", [
    b"G", b"GET / HTTP/1.1\r\n", request(PATH)[:-2], request(PATH)[:-1],
    b"GET / HTTP/1.1\r\nHost: localhost\r"])
def test_a_request_that_is_not_finished_in_time_is_408(hasty, tls, data):
    check_refusal(hasty.ask(data, tls), 408)


def test_a_client_that_says_nothing_is_cut_in_time(hasty, tls):
    raw = hasty.raw(tls)
    data = raw.rest()
    assert data == b"" or data.startswith(b"HTTP/1.1 408 ")


def test_half_a_tls_handshake_is_cut_in_time(hasty):
    for data in (b"", b"\x16", bytes.fromhex("1603010200010001fc0303")):
        raw = wsp.Raw(hasty.address(tls=True))
        raw.send(data)
        assert len(raw.rest()) < 100
        raw.close_socket()


def test_who_is_open_is_not_under_the_handshake_deadline(hasty):
    raw = hasty.open()
    other = hasty.raw()
    other.send(b"GET")
    other.rest()  # one that came later has met the deadline
    raw.heartbeat()


def test_a_full_table_is_503_with_retry_after(serve):
    server = serve("--max-sockets", 2)
    server.open()
    server.open("1")
    answer = server.ask(request(PATH))
    check_refusal(answer, 503)
    assert answer.get("Retry-After").isdigit()
    assert len(server.rows()) == 2
    check_health(server.ask(request("/healthz", upgrade=False)))


def test_a_full_service_is_503_and_a_takeover_is_none(server):
    first = server.open("1", service="limited")
    answer = server.ask(request("/services/limited"))
    check_refusal(answer, 503)
    assert answer.get("Retry-After").isdigit()
    server.open().heartbeat()
    second = server.open("1", service="limited")
    assert first.closed() == (4001, "replaced")
    second.say_close()
    server.wait_state("/services/limited-s-1", "away")
    server.open(service="limited").heartbeat()


def test_only_one_answer_comes_and_then_the_end(server, tls):
    data = request("/healthz", upgrade=False)
    answer = server.ask(data * 3, tls)
    assert answer.body.strip() == b"ok"


def test_plain_http_on_the_tls_port_is_told_so(server):
    raw = wsp.Raw(server.address(tls=True))
    raw.send(request(PATH))
    answer = raw.response()
    raw.close_socket()
    check_refusal(answer, 400)
    assert re.search(r"TLS|https|wss", answer.body.decode())


def test_noise_on_the_tls_port_ends_the_connection(hasty):
    for data in (b"\0" * 100, bytes(range(256)), b"\x16\x03\x01\xff\xff"
                 + b"x" * 2000, b"\x80\x2e\x01\x03\x01" + b"\0" * 50):
        raw = wsp.Raw(hasty.address(tls=True))
        raw.send(data)
        assert len(raw.rest()) < 500
        raw.close_socket()
    hasty.open(tls=True).heartbeat()


# ----- the order of the checks --------------------------------------------

FOREIGN = {"Origin": "https://evil.example"}


@pytest.mark.parametrize("status, data", [
    (400, request("/nothing", "POST", headers={"Content-Length": "5"})),
    (400, request("/nothing", headers={"Host": None})),
    (400, request("/nothing", headers={"Origin": ["http://a", "http://a"]})),
    (431, request("/nothing", "POST", headers={"X": "x" * 9000})),
    (404, request("/nothing", "POST", upgrade=False)),
    (404, request("/services/absent", version="HTTP/1.0")),
    (404, request("/services/absent", headers={"Sec-WebSocket-Key": "bad"})),
    (405, request(PATH, "POST", upgrade=False)),
    (405, request(PATH, "POST", headers={"Sec-WebSocket-Version": "8"})),
    (426, request(PATH, headers={"Sec-WebSocket-Version": "8",
                                 "Sec-WebSocket-Key": None})),
    (426, request(PATH + "?X-StatefulSocketId=%FF", upgrade=False)),
    (426, request(PATH, headers={"Sec-WebSocket-Version": "8", **FOREIGN})),
    (400, request(PATH, headers={"Sec-WebSocket-Key": "bad", **FOREIGN})),
    (400, request(PATH + "?X-StatefulSocketId=%FF", headers=FOREIGN)),
    (403, request(PATH, headers=FOREIGN))])
def test_of_two_mistakes_the_earlier_check_answers(server, status, data):
    refused(server, status, data)


def test_origin_comes_before_duplicate_and_duplicate_before_503(serve):
    server = serve("--duplicate", "reject", "--max-sockets", 1)
    server.open("1")
    same = PATH + "?X-StatefulSocketId=1"
    check_refusal(server.ask(request(same, headers=FOREIGN)), 403)
    check_refusal(server.ask(request(same)), 409)
    check_refusal(server.ask(request(PATH, headers=FOREIGN)), 403)
    check_refusal(server.ask(request(PATH)), 503)


# ----- Origin -------------------------------------------------------------

SAME = [
    ("example.com", "https://example.com"),
    ("example.com", "http://example.com"),
    ("example.com", "https://example.com:443"),
    ("example.com", "http://example.com:80"),
    ("example.com:443", "https://example.com"),
    ("example.com:80", "http://example.com"),
    ("example.com:8443", "https://example.com:8443"),
    ("Example.COM:8443", "https://eXAMPLE.com:8443"),
    ("example.com.", "https://example.com"),
    ("example.com:8443", "https://example.com.:8443"),
    ("127.0.0.1:1", "http://127.0.0.1:1"),
    ("[::1]:8443", "https://[::1]:8443"),
    ("[::1]", "https://[::1]"),
    ("[::1]:8443", "https://[0:0:0:0:0:0:0:1]:8443"),
    ("[2001:DB8::A]", "https://[2001:db8:0::a]"),
]
OTHER = [
    ("example.com", "https://evil.example"),
    ("example.com", "https://example.com:8443"),
    ("example.com:8443", "https://example.com"),
    ("example.com:80", "https://example.com"),
    ("example.com:443", "http://example.com"),
    ("example.com", "https://www.example.com"),
    ("www.example.com", "https://example.com"),
    ("example.com", "https://example.com.evil.example"),
    ("example.com", "https://evil.example/example.com"),
    ("example.com", "null"),
    ("example.com", ""),
    ("example.com", "example.com"),
    ("example.com", "https://"),
    ("example.com", "//example.com"),
    ("example.com", "https://example.com/"),
    ("example.com", "https://user@example.com"),
    ("example.com", "https://example.com:x"),
    ("example.com", "https://example.com:99999"),
    ("example.com", "https://example.com https://example.com"),
    ("[::1]", "https://[::2]"),
    ("[::1]", "https://::1"),
    ("[::1]", "https://[::1"),
    ("127.0.0.1", "https://localhost"),
]


@pytest.mark.parametrize("host, origin", SAME)
def test_an_origin_equal_to_the_host_is_taken(server, host, origin):
    answer = server.ask(request(PATH, host=host, headers={"Origin": origin}))
    assert answer.status == 101, answer.body


@pytest.mark.parametrize("host, origin", OTHER)
def test_a_foreign_origin_is_403_and_told_of_the_option(server, host, origin):
    answer = refused(server, 403, request(PATH, host=host,
                                          headers={"Origin": origin}))
    assert b"--origin" in answer.body


def test_two_origins_are_400(server):
    refused(server, 400, request(
        PATH, headers={"Origin": ["http://localhost", "http://localhost"]}))


@pytest.fixture(scope="module")
def listed():
    with wsp.Server("--origin", "https://good.example",
                    "--origin", "http://other.example:8080") as server:
        yield server


@pytest.mark.parametrize("origin, status", [
    ("https://good.example", 101), ("http://other.example:8080", 101),
    ("https://localhost", 101), (None, 101), ("http://good.example", 403),
    ("HTTPS://Good.EXAMPLE", 101), ("https://good.example.:443", 101),
    ("http://OTHER.example.:8080", 101), ("https://good.example.evil", 403),
    ("https://good.example:444", 403), ("https://other.example:8080", 403),
    ("http://other.example", 403), ("null", 403)])
def test_a_listed_origin_is_taken_beside_the_same_one(listed, origin, status):
    answer = listed.ask(request(PATH, headers={"Origin": origin}))
    assert answer.status == status, answer.body


@pytest.mark.parametrize("origin, status", [
    ("http://localhost:9", 101), ("https://LOCALHOST.", 101),
    ("https://evil.example", 403), ("null", 403)])
def test_same_host_takes_any_scheme_and_port(serve, origin, status):
    server = serve("--origin", "same-host")
    answer = server.ask(request(PATH, host="localhost:1234",
                                headers={"Origin": origin}))
    assert answer.status == status, answer.body


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "noise"])
def test_a_star_takes_every_origin(serve, origin):
    server = serve("--origin", "*")
    answer = server.ask(request(PATH, headers={"Origin": origin}))
    assert answer.status == 101, answer.body


def test_a_service_can_have_an_origin_of_its_own(serve):
    server = serve("--service", MAIN, "--service",
                   "own,origin=https://own.example")
    headers = {"Origin": "https://own.example"}
    assert server.ask(request("/services/own", headers=headers)).status == 101
    check_refusal(server.ask(request(PATH, headers=headers)), 403)


# ----- curl, as a person would try it -------------------------------------

def test_curl_sees_the_health_and_the_page(server):
    for scheme, (host, port) in (("http", server.address()),
                                 ("https", server.address(tls=True))):
        for path, want in (("healthz", b"ok"), ("", b"journal")):
            done = subprocess.run(
                ["curl", "-skf", "--noproxy", "*",
                 f"{scheme}://{host}:{port}/{path}"],
                capture_output=True, timeout=wsp.PATIENCE, check=True)
            assert want in done.stdout
