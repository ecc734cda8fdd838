# SPDX-License-Identifier: MIT
"""What a network full of enemies does: nobody is crashed, kept out, or hurt
by somebody else, and everybody who does not finish is gone in time."""
import contextlib
import os
import random
import re
import select
import socket
import ssl
import struct
import time

import pytest

import wsp
from wsp import BINARY_FRAME, CLOSE, KEY, MAIN, PING, PONG, TEXT
from wsp import close_payload, frame, request

HANDSHAKE = 2  # --handshake-timeout
SERVER = ["--service", MAIN, "--service", "echo=echo",
          "--handshake-timeout", HANDSHAKE]
PATH = f"/services/{MAIN}"
CROWD = 500


# ----- HTTP: the same answer, however it is cut ---------------------------

def lines(*more, first=f"GET {PATH} HTTP/1.1", host="Host: localhost",
          upgrade=True):
    """A request from lines as they stand; None leaves one out."""
    every = [first, host]
    if upgrade:
        every += ["Upgrade: websocket", "Connection: Upgrade",
                  f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13"]
    every += more
    return "\r\n".join(x for x in every if x is not None).encode(
        "latin-1") + b"\r\n\r\n"


def without(name):
    """An upgrade that lacks the line of this name."""
    return request(PATH, headers={name: None})


def with_key(key):
    return request(PATH, headers={"Sec-WebSocket-Key": key})


REQUESTS = {
    # What is taken, in all its spellings.
    "plain": (101, lines()),
    "any case of names": (101, lines().replace(
        b"Sec-WebSocket-Key", b"sEC-wEBSOCKET-kEY").replace(
        b"Upgrade:", b"UPGRADE:").replace(b"Host", b"hOST")),
    "any case of values": (101, lines(
        "Upgrade: WebSocket", "Connection: uPGRADE", f"Sec-WebSocket-Key: "
        f"{KEY}", "Sec-WebSocket-Version: 13", upgrade=False)),
    "tokens in a list": (101, lines(
        "Upgrade: h2c, websocket, other", "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13",
        upgrade=False)),
    "tokens over many lines": (101, lines(
        "Upgrade: h2c", "Upgrade: websocket", "Connection: keep-alive",
        "Connection: ,,", "Connection: upgrade",
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13",
        upgrade=False)),
    "white space around values": (101, lines(
        "Upgrade: \t websocket \t", "Connection:Upgrade",
        f"Sec-WebSocket-Key:\t{KEY} ", "Sec-WebSocket-Version:13",
        upgrade=False)),
    "absolute form": (101, lines(
        first=f"GET http://localhost{PATH} HTTP/1.1")),
    "absolute form, https and port": (101, lines(
        first=f"GET https://localhost:8443{PATH} HTTP/1.1")),
    "HTTP/1.9": (101, lines(first=f"GET {PATH} HTTP/1.9")),
    "a length of 0": (101, lines("Content-Length: 0")),
    "an id in escapes": (101, lines(
        first=f"GET {PATH}?x-statefulsocketid=%d0%9F%2b1 HTTP/1.1")),
    "an extension": (101, lines(
        "Sec-WebSocket-Extensions: permessage-deflate; "
        "client_max_window_bits")),
    "a subprotocol": (101, lines("Sec-WebSocket-Protocol: chat, soap")),
    # What is not an upgrade.
    "Upgrade of another thing": (426, lines(
        "Upgrade: websocketx", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13",
        upgrade=False)),
    "no Upgrade": (426, without("Upgrade")),
    "no Connection": (426, without("Connection")),
    "a Connection that only contains the word": (426, lines(
        "Upgrade: websocket", "Connection: no-upgrade, upgraded",
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13",
        upgrade=False)),
    "HTTP/1.0": (426, lines(first=f"GET {PATH} HTTP/1.0")),
    "no version": (426, without("Sec-WebSocket-Version")),
    **{f"version {v!r}": (426, request(PATH, headers={
        "Sec-WebSocket-Version": v})) for v in (
            "0", "8", "12", "14", "013", "1 3", "13.0", "255", "x")},
    # The key.
    "no key": (400, without("Sec-WebSocket-Key")),
    "two keys": (400, lines(f"Sec-WebSocket-Key: {KEY}")),
    **{f"key {k!r}": (400, with_key(k)) for k in (
        "", "x", KEY[:-1], KEY[:-2], KEY + "=", "A" + KEY, KEY[:-3] + "===",
        "!" + KEY[1:], KEY[:10] + " " + KEY[11:], "AAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA")},
    # Syntax.
    "no Host": (400, lines(host=None)),
    "two Hosts": (400, lines("Host: localhost")),
    "two Hosts in any case": (400, lines("hOST: other")),
    "bare LF": (400, lines().replace(b"\r\n", b"\n")),
    "one bare LF": (400, lines().replace(b"localhost\r\n", b"localhost\n")),
    "a bare LF at the end": (400, lines()[:-2] + b"\n"),
    "a bare CR": (400, lines("A: b\rc")),
    "obs-fold": (400, lines("A: b\r\n c")),
    "obs-fold with a tab": (400, lines("A: b\r\n\tc")),
    "a fold of the first header": (400, lines(host=" Host: localhost")),
    "NUL in a value": (400, lines("A: b\0c")),
    "NUL in a name": (400, lines("A\0: b")),
    "NUL in the target": (400, lines(first=f"GET {PATH}\0 HTTP/1.1")),
    "a control character": (400, lines("A: b\x01c")),
    "DEL": (400, lines("A: b\x7fc")),
    "space before the colon": (400, lines("A : b")),
    "tab before the colon": (400, lines("A\t: b")),
    "no colon": (400, lines("nothing")),
    "no name": (400, lines(": nothing")),
    "a name that is no token": (400, lines("A(b): c")),
    "two spaces in the first line": (400, lines(
        first=f"GET  {PATH} HTTP/1.1")),
    "a tab in the first line": (400, lines(first=f"GET\t{PATH} HTTP/1.1")),
    "a space at the end of the first line": (400, lines(
        first=f"GET {PATH} HTTP/1.1 ")),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2.0": (400, lines(first=f"GET {PATH} HTTP/2.0")),
    "http/1.1": (400, lines(first=f"GET {PATH} http/1.1")),
    "HTTP/1.": (400, lines(first=f"GET {PATH} HTTP/1.")),
    "HTTP/11": (400, lines(first=f"GET {PATH} HTTP/11")),
    "no target": (400, lines(first="GET HTTP/1.1")),
    "an HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a body": (400, lines("Content-Length: 1") + b"x"),
    "a negative length": (400, lines("Content-Length: -1")),
    "two lengths": (400, lines("Content-Length: 0", "Content-Length: 1")),
    "a length that is no number": (400, lines("Content-Length: 0x0")),
    "Transfer-Encoding": (400, lines("Transfer-Encoding: chunked")),
    "Transfer-Encoding: identity": (400, lines(
        "Transfer-Encoding: identity")),
    "both": (400, lines("Content-Length: 0", "Transfer-Encoding: chunked")),
    # Targets.
    "a bad escape": (400, lines(
        first=f"GET {PATH}?X-StatefulSocketId=%zz HTTP/1.1")),
    "half an escape": (400, lines(
        first=f"GET {PATH}?X-StatefulSocketId=a%4 HTTP/1.1")),
    "an escaped NUL in the id": (400, lines(
        first=f"GET {PATH}?X-StatefulSocketId=%00 HTTP/1.1")),
    "the id twice": (400, lines(
        first=f"GET {PATH}?X-StatefulSocketId=1&x-statefulsocketid=1 "
        "HTTP/1.1")),
    "an escaped path": (404, lines(
        first=f"GET {PATH.replace('main', '%6dain')} HTTP/1.1")),
    "dots in the path": (404, lines(
        first=f"GET /x/..{PATH} HTTP/1.1")),
    "a longer name": (404, lines(first=f"GET {PATH}x HTTP/1.1")),
    "a slash more": (404, lines(first=f"GET {PATH}/ HTTP/1.1")),
    "POST": (405, lines(first=f"POST {PATH} HTTP/1.1")),
    "get": (405, lines(first=f"get {PATH} HTTP/1.1")),
    "CONNECT": (405, lines(first=f"CONNECT {PATH} HTTP/1.1")),
    "a foreign origin": (403, lines("Origin: https://evil.example")),
    "a null origin": (403, lines("Origin: null")),
    "two origins": (400, lines("Origin: http://localhost",
                               "Origin: http://localhost")),
    # Limits.
    "65 header lines": (431, lines(*(f"X-{i}: y" for i in range(60)))),
    "a line without end": (431, b"GET /" + b"x" * 8300),
    "a header without end": (431, lines("A: " + "b" * 8300)),
}


def first_answer(server, tls, data, pieces):
    raw = server.raw(tls)
    for piece in pieces:
        raw.send(piece)
    answer = raw.response()
    if answer.status == 101:
        raw.heartbeat()
        assert answer.get("Sec-WebSocket-Protocol") is None
        assert answer.get("Sec-WebSocket-Extensions") is None
    raw.close_socket()
    return answer


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_gets_its_answer_however_it_is_cut(server, tls, name):
    status, data = REQUESTS[name]
    answer = first_answer(server, tls, data, [data])
    assert answer.status == status, (answer.status, answer.body)
    if status == 426 and "ersion" in name:
        assert answer.get("Sec-WebSocket-Version") == "13"
    if len(data) < 1000:
        each = [data[i:i + 1] for i in range(len(data))]
        assert first_answer(server, tls, data, each).status == status
    dice = random.Random(name)
    for _ in range(3):
        at = dice.randrange(1, len(data))
        cut = [data[:at], data[at:]]
        assert first_answer(server, tls, data, cut).status == status


@pytest.mark.parametrize("name", ["plain", "two Hosts", "obs-fold"])
def test_a_request_gets_its_answer_cut_at_every_point(server, name):
    status, data = REQUESTS[name]
    for at in range(1, len(data)):
        got = first_answer(server, False, data, [data[:at], data[at:]])
        assert got.status == status, at


def test_a_head_in_two_large_records_is_431_not_a_cut(server):
    raw = server.raw(tls=True)
    raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ".ljust(8000, b"b"))
    raw.send(b"b" * 16384)
    assert raw.response().status == 431


def test_frames_may_come_in_the_record_of_the_request(server):
    raw = server.raw(tls=True)
    data = lines("Cookie: " + "c" * 7000)
    raw.send(data[:-1])
    raw.send(data[-1:] + frame(TEXT, "x" * 16000) + frame(TEXT, "$hbt"))
    assert raw.response().status == 101
    assert raw.read_text() == "$ok"


@pytest.mark.parametrize("cut", [5, 3])
def test_an_empty_tls_record_is_the_end_and_no_reason_to_spin(serve, cut):
    """It made the server look at it again and again until the handshake
    deadline."""
    server = serve("--handshake-timeout", "600", "--log-level", "debug")
    with socket.create_connection(server.address(tls=True)) as client:
        client.settimeout(wsp.PATIENCE)
        client.sendall(b"\x16\x03\x01\x00\x00"[:cut])
        server.ok("ping")
        with contextlib.suppress(ConnectionError):
            client.sendall(b"\x16\x03\x01\x00\x00"[cut:])
            assert client.recv(100) == b""
        server.wait_log('why="no ClientHello"')


# ----- a crowd that does not finish ---------------------------------------

def client_hello():
    """The bytes with which a TLS client begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = wsp.TLS.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HELLO = client_hello()

# Over what they come, what they send, whether they have upgraded before.
SILENT = {
    "nothing": (False, b""),
    "nothing, tls": (True, b""),
    "a letter": (False, b"G"),
    "half a request": (False, request(PATH)[:60]),
    "all but a line feed": (False, request(PATH)[:-1]),
    "a byte of a ClientHello": (True, HELLO[:1]),
    "a header of a ClientHello": (True, HELLO[:5]),
    "half a ClientHello": (True, HELLO[:len(HELLO) // 2]),
    "a ClientHello": (True, HELLO),
    "a ClientHello in small records": (True, b"".join(
        HELLO[:3] + b"\0\1" + HELLO[i:i + 1] for i in range(5, 20))),
    "a header that promises much": (True, b"\x16\x03\x01\xff\xff"),
}


@contextlib.contextmanager
def crowd(address, data, count=CROWD):
    """So many connections, each of which has sent these bytes."""
    sockets = []
    try:
        for _ in range(count):
            s = socket.socket()
            s.settimeout(wsp.PATIENCE)
            s.connect(address)
            s.send(data)
            sockets.append(s)
        yield sockets
    finally:
        for s in sockets:
            s.close()


def all_gone(sockets, patience):
    """Waits until the server has ended every one of them."""
    poll, end = select.poll(), time.monotonic() + patience
    left = {s.fileno(): s for s in sockets}
    for number in left:
        poll.register(number, select.POLLIN | select.POLLRDHUP)
    while left:
        wait = end - time.monotonic()
        assert wait > 0, f"{len(left)} of {len(sockets)} are still there"
        for number, _ in poll.poll(wait * 1000):
            try:
                if left[number].recv(1 << 16):
                    continue  # last words
            except OSError:
                pass
            poll.unregister(number)
            del left[number]


def get_in_and_be_told(server, tls, words):
    """A good client comes, and gets a push."""
    raw = server.open(tls=tls)
    raw.heartbeat()
    server.ok("send *", words)
    assert raw.read_text() == words
    return raw


@pytest.mark.parametrize("name", SILENT)
def test_a_crowd_that_does_not_finish_keeps_nobody_out_and_goes(server, name):
    over_tls, data = SILENT[name]
    old = server.open()
    with crowd(server.address(over_tls), data) as sockets:
        get_in_and_be_told(server, False, "plain")
        get_in_and_be_told(server, True, "sealed")
        assert old.read_text() == "plain"
        assert old.read_text() == "sealed"
        all_gone(sockets, 2 * HANDSHAKE + wsp.PATIENCE)
    wsp.until(lambda: server.stats()["sockets_open"] == 3, "the crowd's end")
    old.heartbeat()


def test_a_crowd_larger_than_the_table_is_rotated_out(serve):
    """The kernel's backlog holds those for whom there is no row; who has
    been silent for a second makes way, long before the deadline."""
    server = serve("--handshake-timeout", 600)
    with crowd(server.address(), b"", 1200):
        server.open().heartbeat()


def test_a_crowd_larger_than_the_handshake_pool_is_rotated_out(serve):
    server = serve("--handshake-timeout", 600)
    with crowd(server.address(tls=True), HELLO, 60):
        server.open(tls=True).heartbeat()


@pytest.mark.parametrize("data", [
    b"\x81", frame(TEXT, "x" * 100)[:50], frame(TEXT, "x" * 5000)[:300],
    frame(BINARY_FRAME, b"never ended", fin=0), frame(PING, "x" * 50)[:20],
    frame(TEXT, "x" * 70)[:1]],
    ids=["a byte", "half a text", "half a long text", "half a message",
         "half a ping", "an opcode"])
def test_a_crowd_with_half_a_frame_goes_and_hurts_nobody(server, data):
    old = server.open()
    count = 200  # of 256 sockets
    with crowd(server.address(), request(PATH) + data, count) as sockets:
        wsp.until(lambda: server.stats()["sockets_open"] > 1, "them")
        get_in_and_be_told(server, False, "plain")
        get_in_and_be_told(server, True, "sealed")
        assert old.read_text() == "plain"
        assert old.read_text() == "sealed"
        all_gone(sockets, 2 * HANDSHAKE + wsp.PATIENCE)
    wsp.until(lambda: server.stats()["sockets_open"] == 3, "the crowd's end")
    old.heartbeat()


def half_a_record(raw):
    """The first bytes of the next record of this client."""
    incoming = raw.socket  # the record is made beside the socket
    fd = socket.socket(fileno=os.dup(incoming.fileno()))
    fd.send(b"\x17\x03\x03\x00\x40" + b"x" * 20)
    fd.close()


def test_half_a_tls_record_is_gone_by_its_deadline(server):
    clients = [server.open(tls=True) for _ in range(40)]
    for raw in clients:
        half_a_record(raw)
    good = server.open(tls=True)
    good.heartbeat()
    for raw in clients:
        raw.socket.settimeout(2 * HANDSHAKE + wsp.PATIENCE)
        raw.rest()
    wsp.until(lambda: server.stats()["sockets_open"] == 1, "their end")
    good.heartbeat()


def test_half_a_request_in_a_tls_record_is_gone_by_its_deadline(server):
    clients = [server.raw(tls=True) for _ in range(40)]
    for raw in clients:
        raw.send(request(PATH)[:50])
    server.open(tls=True).heartbeat()
    for raw in clients:
        raw.rest()


def test_a_trickle_does_not_outlive_the_deadline(server):
    """A byte now and then is no progress: the request's end counts."""
    raw = server.raw()
    data = request(PATH, headers={"Cookie": "c" * 500})
    began = time.monotonic()
    for at in range(len(data)):
        raw.send(data[at:at + 1])
        if select.select([raw.socket], [], [], 0.02)[0]:
            break
    assert time.monotonic() - began < 2 * HANDSHAKE + wsp.PATIENCE
    assert raw.response().status == 408


def test_a_trickled_message_does_not_outlive_the_deadline(server):
    raw = server.open()
    raw.text("x", fin=0)
    while not select.select([raw.socket], [], [], 0.05)[0]:
        raw.frame(0, "x", fin=0)
    assert raw.closed()[0] == 1008


def test_a_client_that_never_pauses_is_not_taken_for_one_that_hangs(
        server, tls):
    """Whole messages come all the time, and each read ends inside the header
    of one."""
    raw = server.open(tls=tls)
    message = frame(BINARY_FRAME, b"x" * 3000)
    end = time.monotonic() + 2 * HANDSHAKE + 1.5
    raw.send(message[:1])
    while time.monotonic() < end:
        raw.send(message[1:] + message[:1])
        assert not select.select([raw.socket], [], [], 0.005)[0], (
            raw.closed())
    raw.send(message[1:])
    raw.heartbeat()


@pytest.mark.parametrize("count", range(1, 60))
def test_a_client_hello_in_any_number_of_records_is_answered(server, count):
    body = HELLO[5:]
    cuts = [len(body) * i // count for i in range(count + 1)]
    raw = wsp.Raw(server.address(tls=True))
    raw.send(b"".join(
        HELLO[:3] + struct.pack("!H", end - start) + body[start:end]
        for start, end in zip(cuts, cuts[1:])))
    assert raw.take(6)[5] == 2  # ServerHello
    raw.close_socket()


# ----- who leaves in the middle -------------------------------------------

MIDDLES = {
    "http": [b"", b"G", request(PATH)[:-1], request(PATH),
             request("/healthz", upgrade=False)],
    "frames": [b"", b"\x81", frame(TEXT, "x" * 1000)[:500],
               frame(TEXT, "x", fin=0), frame(TEXT, "x" * 3000) * 5,
               frame(PING, "x") * 100, frame(3),
               frame(CLOSE, close_payload(1000))],
}


def leave_by_fin(raw):
    with contextlib.suppress(OSError):
        raw.socket.shutdown(socket.SHUT_WR)
    raw.rest()


def leave_by_reset(raw):
    raw.reset()


def leave_by_close(raw):
    raw.close_socket()


LEAVE = {"FIN": leave_by_fin, "RST": leave_by_reset, "close": leave_by_close}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("stage", MIDDLES)
def test_who_leaves_in_the_middle_leaves_nothing(server, tls, how, stage):
    other = server.open(service="echo")
    for data in MIDDLES[stage]:
        raw = server.raw(tls)
        if stage == "frames":
            raw.upgrade("/services/echo")
        raw.send(data)
        LEAVE[how](raw)
    wsp.until(lambda: server.stats()["sockets_open"] == 1, "their end")
    other.text("still here")
    assert other.read_text() == "still here"


@pytest.mark.parametrize("at", [1, 5, 6, 50, len(HELLO) - 1, len(HELLO)])
@pytest.mark.parametrize("how", LEAVE)
def test_who_leaves_in_the_handshake_is_gone_at_once(server, how, at):
    """And the server does not spin until the deadline meanwhile."""
    raw = wsp.Raw(server.address(tls=True))
    raw.send(HELLO[:at])
    before = cpu_of(server.pid)
    began = time.monotonic()
    LEAVE[how](raw)
    if how == "FIN":
        assert time.monotonic() - began < HANDSHAKE / 2, "not at once"
    assert cpu_of(server.pid) - before < 0.5
    raw.close_socket()


def cpu_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_plain_http_that_half_closes_on_the_tls_port_is_still_told(server):
    raw = wsp.Raw(server.address(tls=True))
    raw.send(request(PATH))
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.response().status == 400
    raw.close_socket()


def test_a_request_before_a_half_close_is_answered(server, tls):
    raw = server.raw(tls)
    raw.send(request("/healthz", upgrade=False))
    os_socket = socket.socket(fileno=os.dup(raw.socket.fileno()))
    os_socket.shutdown(socket.SHUT_WR)
    os_socket.close()
    assert raw.response().status == 200


def test_two_hundred_resets_at_once(server):
    with server.pause():
        crowd_of = [wsp.Raw(server.address()) for _ in range(200)]
        for raw in crowd_of:
            raw.send(request(PATH) + frame(TEXT, "$hbt") * 3)
            raw.reset()
    server.open().heartbeat()
    wsp.until(lambda: server.stats()["sockets_open"] == 1, "their end")


# ----- the wrong door -----------------------------------------------------

def test_tls_on_the_plain_port_is_ended_at_once(server):
    raw = wsp.Raw(server.address())
    raw.send(HELLO)
    answer = raw.rest()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    raw.close_socket()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        wsp.Raw(server.address(), tls=True)


@pytest.mark.parametrize("data", [
    b"G", b"GET / HTTP/1.0\r\n\r\n", request(PATH), b"POST / HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_plain_text_on_the_tls_port_is_told_so_shortly(server, data):
    raw = wsp.Raw(server.address(tls=True))
    raw.send(data.ljust(5, b"\r"))
    answer = raw.response()
    assert answer.status == 400
    assert len(answer.body) < 200
    assert re.search(rb"TLS|https|wss", answer.body)
    raw.close_socket()


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_on_every_door_hurt_nobody(server, seed):
    dice = random.Random(seed)
    good = server.open(service="echo")
    for number in range(60):
        tls = bool(number % 2)
        raw = wsp.Raw(server.address(tls))
        data = dice.randbytes(dice.randrange(1, 2000))
        start = dice.choice([b"", b"\x16\x03\x01", HELLO[:dice.randrange(
            len(HELLO))], b"GET / HTTP/1.1\r\n", b"\x80\x80\x01"])
        raw.send(start + data)
        if dice.random() < 0.5:
            raw.reset()
        raw.close_socket()
        if number % 10 == 0:
            good.text(str(number))
            assert good.read_text() == str(number)


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_in_an_established_session_hurt_nobody(server, seed):
    dice = random.Random(seed)
    good = server.open(service="echo")
    for number in range(30):
        raw = server.open(service=dice.choice([MAIN, "echo"]), tls=True)
        fd = socket.socket(fileno=os.dup(raw.socket.fileno()))
        kind = dice.choice([20, 21, 22, 23, 24, dice.randrange(256)])
        n = dice.choice([0, 1, 8, 24, 25, 40, 16384, 16408, 20000])
        fd.send(struct.pack("!BHH", kind, 0x0303, n)
                + dice.randbytes(min(n, 2000)))
        fd.shutdown(socket.SHUT_WR)
        fd.close()
        raw.close_socket()
    good.text("x")
    assert good.read_text() == "x"
    wsp.until(lambda: server.stats()["sockets_open"] == 1, "their end")


@pytest.mark.parametrize("seed", range(10))
def test_mutated_frames_hurt_nobody(server, tls, seed):
    dice = random.Random(seed)
    good = server.open(service="echo")
    stream = b"".join(frame(dice.choice([0, 1, 2, 8, 9, 10]),
                            dice.randbytes(dice.randrange(200)),
                            fin=dice.randrange(2)) for _ in range(50))
    for _ in range(20):
        data = bytearray(stream)
        for _ in range(dice.randrange(1, 10)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        raw = server.open(service="echo", tls=tls)
        raw.send(bytes(data))
        raw.close_socket()
    good.text("x")
    assert good.read_text() == "x"


# ----- floods, and who does not read --------------------------------------

def flood(raw, data, most):
    """Sends until the server takes no more, the connection ends, or so many
    bytes are out.  Nothing is read."""
    raw.socket.setblocking(False)
    sent, last = 0, time.monotonic()
    while sent < most and time.monotonic() - last < 1:
        try:
            sent += raw.socket.send(data)
            last = time.monotonic()
        except (BlockingIOError, ssl.SSLWantWriteError):
            time.sleep(0.01)
        except (ConnectionError, ssl.SSLError):
            break
    raw.socket.settimeout(wsp.PATIENCE)
    return sent


def memory_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1]) << 10


FLOODS = {"pings": (MAIN, frame(PING, b"p" * 125) * 100),
          "empty pings": (MAIN, frame(PING) * 1000),
          "echoes": ("echo", frame(TEXT, "x" * 1000) * 10),
          "heartbeats": (MAIN, frame(TEXT, "$hbt") * 1000)}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_from_who_does_not_read_is_bounded(serve, tls, name):
    server = serve("--service", MAIN, "--service", "echo=echo",
                   "--handshake-timeout", 60)
    service, data = FLOODS[name]
    good = server.open(service="echo")
    raw = server.open(service=service, tls=tls, receive_buffer=4096)
    before = memory_of(server.pid)
    most = 64 << 20
    assert flood(raw, data, most) < most, "it was queued without limit"
    assert memory_of(server.pid) - before < 8 << 20
    good.text("x")
    assert good.read_text() == "x"
    server.ok("send * =open", "pushed")
    assert good.read_text() == "pushed"
    # It was not heard for a while, but nothing that it said is lost.
    answers = 0
    while answers < 300:
        answers += raw.next_frame().payload != b"pushed"


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_from_who_reads_is_answered(server, tls, name):
    service, data = FLOODS[name]
    raw = server.open(service=service, tls=tls)
    other = server.open()
    raw.send(data)
    last = b"the last" if service == "echo" else b"$hbt"
    raw.text(last)
    want = b"the last" if service == "echo" else b"$ok"
    count = data.count(b"\x89") if "ping" in name else 1
    got = raw.next_frame()
    while got.opcode == PONG or got.payload != want:
        count -= 1
        got = raw.next_frame()
    assert "ping" not in name or count == 0
    other.heartbeat()


@pytest.mark.parametrize("how", ["never", "slowly"])
def test_who_does_not_read_pushes_starves_nobody(serve, tls, how):
    server = serve("--service", MAIN, "--service", "echo=echo")
    bad = server.open(service="echo", tls=tls, receive_buffer=4096)
    good = server.open()
    before = memory_of(server.pid)
    for number in range(3000):
        server.ok("send *", f"{number} ".ljust(1000, "x"))
        if how == "slowly" and number % 50 == 0:
            bad.message()
        assert good.read_text().split()[0] == str(number)
    assert memory_of(server.pid) - before < 8 << 20
    row, = (r for r in server.rows() if "echo" in r["socketId"])
    assert row["drops"] > 0 and row["messages"] <= 64
    good.heartbeat()


def test_who_floods_with_pings_and_reads_slowly_gets_whole_frames(
        serve, tls):
    """Pushes, Pongs and echoes on one connection that is always full."""
    server = serve("--service", "echo=echo", "--handshake-timeout", 60,
                   "--queue-messages", 1000)
    raw = server.open(service="echo", tls=tls, receive_buffer=4096)
    dice = random.Random(1)
    sent = {PONG: [], TEXT: [], BINARY_FRAME: []}
    data = b""
    for number in range(300):
        body = b"%d" % number
        data += frame(PING, body) + frame(
            TEXT, body.ljust(dice.randrange(5, 900)))
        sent[PONG].append(body)
        sent[TEXT].append(body)
    raw.socket.setblocking(False)
    got = {PONG: [], TEXT: [], BINARY_FRAME: []}
    pushed = 0
    while any(len(got[kind]) < 300 for kind in got):
        if pushed < 300:
            server.ok("send kind=binary *",
                      (b"%d" % pushed).ljust(dice.randrange(5, 900)))
            sent[BINARY_FRAME].append(b"%d" % pushed)
            pushed += 1
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            data = data[raw.socket.send(data[:5000]):] if data else data
        raw.socket.settimeout(wsp.PATIENCE)
        for _ in range(3):
            if any(len(got[kind]) < len(sent[kind]) for kind in (
                    BINARY_FRAME,)) or pushed == 300:
                if sum(map(len, got.values())) == 900:
                    break
                each = raw.next_frame()
                got[each.opcode].append(each.payload.split()[0])
        raw.socket.setblocking(False)
    raw.socket.settimeout(wsp.PATIENCE)
    assert got == sent


# ----- one hurts another: not through the pool of buffers -----------------

def test_half_requests_do_not_cost_an_open_client_its_message(server):
    """More half requests than there are buffers, while a good client is in
    the middle of a message."""
    good = server.open(service="echo")
    good.frame(TEXT, "half ", fin=0)
    good.frame(PING)
    assert good.next_frame().opcode == PONG
    with crowd(server.address(), request(PATH)[:60], 200):
        server.open().heartbeat()
        good.frame(0, "whole")
        assert good.read_text() == "half whole"
