# SPDX-License-Identifier: MIT
"""What a client sends: heartbeats, echo, Ping, Close, and every mistake."""
import json
import random
import socket
import time

import pytest

import wsp
from wsp import BINARY_FRAME, CLOSE, MAIN, PING, PONG, TEXT, close_payload
from wsp import frame

SERVER = ["--service", MAIN, "--service", "echo=echo", "--service",
          "quiet=none"]
MOST = 16384  # --max-inbound


@pytest.fixture
def echo(server, tls):
    return server.open(service="echo", tls=tls)


# ----- heartbeats ---------------------------------------------------------

@pytest.mark.parametrize("service", [MAIN, "quiet"])
def test_hbt_is_answered_ok(server, tls, service):
    raw = server.open(service=service, tls=tls)
    for _ in range(3):
        raw.text("$hbt")
        assert raw.message() == (TEXT, b"$ok")


@pytest.mark.parametrize("text", [
    '{"type":"ping"}', '{"type":"ping","id":7}', '{"time":1,"type":"ping"}',
    ' { "type" : "ping" } ', '{"a":{"type":"x"},"type":"ping"}'])
def test_a_json_ping_is_answered_by_a_json_pong_on_main(server, text):
    raw = server.open()
    raw.text(text)
    assert json.loads(raw.read_text()) == {"type": "pong"}


def test_a_json_pong_is_exactly_that(server):
    raw = server.open()
    raw.text('{"type":"ping"}')
    assert raw.message() == (TEXT, b'{"type":"pong"}')


@pytest.mark.parametrize("data", [
    (TEXT, "$HBT"), (TEXT, "$hbt "), (TEXT, " $hbt"), (TEXT, "$hb"),
    (TEXT, "$hbt$hbt"), (TEXT, ""), (TEXT, "hello"), (TEXT, "1"),
    (BINARY_FRAME, "$hbt"), (BINARY_FRAME, '{"type":"ping"}'),
    (BINARY_FRAME, b"\xff"), (TEXT, "x" * MOST)])
@pytest.mark.parametrize("service", [MAIN, "quiet"])
def test_what_is_no_heartbeat_is_dropped(server, data, service):
    raw = server.open(service=service)
    raw.frame(*data)
    raw.heartbeat()


def test_on_none_a_json_ping_is_dropped(server):
    raw = server.open(service="quiet")
    raw.text('{"type":"ping"}')
    raw.heartbeat()


def test_on_echo_a_heartbeat_is_a_message_like_any(echo):
    for text in ("$hbt", '{"type":"ping"}'):
        echo.text(text)
        assert echo.read_text() == text


def test_an_answer_is_no_queued_message(server):
    raw = server.open("1")
    before = server.stats()
    raw.heartbeat()
    after = server.stats()
    for name in ("messages_taken", "delivered", "acknowledged", "dropped"):
        assert after[name] == before[name]


# ----- echo ---------------------------------------------------------------

SIZES = [0, 1, 125, 126, 127, 1000, 4096, MOST - 1, MOST]


@pytest.mark.parametrize("size", SIZES)
def test_echo_sends_back_what_came(echo, size):
    text = "П" * (size // 2) + "x" * (size % 2)
    echo.text(text)
    assert echo.message() == (TEXT, text.encode())
    data = random.Random(size).randbytes(size)
    echo.frame(BINARY_FRAME, data)
    assert echo.message() == (BINARY_FRAME, data)


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff",
                                  b"\x01\x02\x03\x04"])
def test_any_mask_will_do(echo, mask):
    for size in range(12):
        data = bytes(range(size))
        echo.frame(BINARY_FRAME, data, mask=mask)
        assert echo.message() == (BINARY_FRAME, data)


def test_a_message_in_fragments_is_one_message(echo):
    text = "Привет, \U0001f680!".encode()
    parts = [text[i:i + 1] for i in range(len(text))]
    echo.frame(TEXT, b"", fin=0)
    for part in parts:
        echo.frame(0, part, fin=0)
    echo.frame(0, b"", fin=0)
    echo.frame(0, b"")
    assert echo.message() == (TEXT, text)
    echo.frame(BINARY_FRAME, b"\xff" * 1000, fin=0)
    echo.frame(0, b"\xfe" * 1000)
    assert echo.message() == (BINARY_FRAME, b"\xff" * 1000 + b"\xfe" * 1000)


def test_a_message_of_the_largest_size_may_come_in_fragments(echo):
    data = random.Random(1).randbytes(MOST)
    for at in range(0, MOST, 1000):
        echo.frame(0 if at else BINARY_FRAME, data[at:at + 1000],
                   fin=int(at + 1000 >= MOST))
    assert echo.message() == (BINARY_FRAME, data)


def test_control_frames_may_stand_between_fragments(echo):
    echo.frame(TEXT, "one ", fin=0)
    echo.frame(PING, b"between")
    assert echo.next_frame() == (1, 0, PONG, b"between")
    echo.frame(PONG, b"nobody asked")
    echo.frame(0, "two")
    assert echo.message() == (TEXT, b"one two")


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_frames_may_come_in_any_pieces(echo, piece):
    text = "Привет! " * 20
    echo.send(frame(TEXT, text) + frame(PING, b"p") + frame(TEXT, "", fin=0)
              + frame(0, text) + frame(BINARY_FRAME, b"\0" * 300), piece)
    assert echo.message() == (TEXT, text.encode())
    assert echo.next_frame() == (1, 0, PONG, b"p")
    assert echo.message() == (TEXT, text.encode())
    assert echo.message() == (BINARY_FRAME, b"\0" * 300)


def test_a_thousand_frames_may_come_in_one_segment(echo):
    echo.send(b"".join(frame(TEXT, f"{n}") for n in range(1000)))
    assert [echo.read_text() for _ in range(1000)] == [
        f"{n}" for n in range(1000)]


def test_a_client_that_does_not_read_its_echoes_is_read_later_not_lost(
        server, tls):
    """Answers are never dropped: while one cannot be written the client is
    not read, and its own sending stands still."""
    raw = server.open(service="echo", tls=tls, receive_buffer=4096)
    other = server.open(service="echo")
    data = b"".join(frame(BINARY_FRAME, bytes([n % 256]) * 10_000)
                    for n in range(400))
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    raw.socket.settimeout(0.5)
    sent = 0
    try:
        while sent < len(data):
            sent += raw.socket.send(data[sent:sent + 8192])
    except TimeoutError:
        pass
    assert sent < len(data), "4 MB went out and nothing was read"
    other.text("not delayed")
    assert other.read_text() == "not delayed"
    raw.socket.settimeout(wsp.PATIENCE)
    for number in range(sent // 10_008):
        assert raw.message()[1] == bytes([number % 256]) * 10_000


def test_python_websockets_gets_its_echo(server, tls):
    client = server.client(service="echo", tls=tls)
    for message in ("", "Привет!", b"\0\xff", "x" * MOST):
        client.send(message)
        assert client.receive() == message
    client.send(iter(["in ", "three ", "parts"]))
    assert client.receive() == "in three parts"
    client.close(4321, "Пока")
    assert client.wait_closed() == (4321, "Пока")


# ----- Ping and Pong ------------------------------------------------------

@pytest.mark.parametrize("payload", [b"", b"x", b"\0\xff" * 62, b"p" * 125])
def test_a_ping_is_answered_with_its_payload(server, tls, payload):
    raw = server.open(tls=tls)
    raw.frame(PING, payload)
    assert raw.next_frame() == (1, 0, PONG, payload)


def test_a_few_pings_are_answered_in_order(server):
    raw = server.open()
    for number in range(10):
        raw.frame(PING, b"%d" % number)
        assert raw.next_frame() == (1, 0, PONG, b"%d" % number)


def test_a_flood_of_pings_hurts_nobody(server, tls):
    raw = server.open(tls=tls)
    other = server.open()
    raw.send(b"".join(frame(PING, b"%d" % n) for n in range(5000)))
    raw.text("$hbt")
    last = -1
    try:
        while True:
            got = raw.next_frame()
            if got.opcode != PONG:
                break
            assert int(got.payload) > last
            last = int(got.payload)
        # The latest Ping must be answered, earlier ones may be (5.5.3).
        assert (got.opcode, got.payload, last) == (TEXT, b"$ok", 4999)
    except wsp.Gone:
        pass  # it may also be cut
    other.heartbeat()


@pytest.mark.parametrize("payload", [b"", b"x", b"\0" * 16, b"\xff" * 16])
def test_a_pong_that_nobody_asked_for_is_ignored(server, tls, payload):
    raw = server.open(tls=tls)
    raw.frame(PONG, payload)
    raw.heartbeat()


# ----- Close --------------------------------------------------------------

@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009,
                                  1010, 1011, 1012, 1013, 1014, 3000, 3999,
                                  4000, 4999])
def test_close_is_echoed_with_its_code_and_tcp_ends(server, tls, code):
    raw = server.open(tls=tls)
    raw.say_close(code)
    server.ok("ping")


@pytest.mark.parametrize("reason", ["", "bye", "Пока!", "r" * 123])
def test_close_is_echoed_with_its_reason(server, tls, reason):
    server.open(tls=tls).say_close(1000, reason)


def test_a_close_without_a_code_is_answered_without_one(server, tls):
    raw = server.open(tls=tls)
    raw.frame(CLOSE)
    assert raw.next_frame() == (1, 0, CLOSE, b"")
    raw.ends()


def test_a_close_in_pieces_between_fragments_is_a_close(server, tls):
    raw = server.open(tls=tls)
    raw.frame(TEXT, "never finished", fin=0)
    raw.send(frame(CLOSE, close_payload(1000, "bye")), piece=1)
    assert raw.closed() == (1000, "bye")
    raw.ends()


def test_nothing_after_a_close_is_looked_at_or_answered(server, tls):
    raw = server.open(service="echo", tls=tls)
    raw.send(frame(CLOSE, close_payload(1000)) + frame(TEXT, "late")
             + frame(PING) + b"\xff" * 100)
    assert raw.closed() == (1000, "")
    raw.ends()


def test_what_was_said_before_the_close_is_answered_before_it(server, tls):
    raw = server.open(service="echo", tls=tls)
    raw.send(frame(TEXT, "one") + frame(PING, b"p")
             + frame(CLOSE, close_payload(1000)))
    assert raw.message() == (TEXT, b"one")
    assert raw.closed() == (1000, "")


def test_half_a_frame_and_then_the_end_leaves_nothing_behind(server):
    for data in (b"\x81", frame(TEXT, "x" * 1000)[:500],
                 frame(TEXT, "x", fin=0)):
        for leave in (wsp.Raw.close_socket, wsp.Raw.reset):
            raw = server.open()
            raw.send(data)
            leave(raw)
    wsp.until(lambda: not server.rows(), "all to be gone")


def test_a_client_that_stops_sending_but_still_reads_is_ended(server):
    raw = server.open()
    raw.socket.shutdown(1)
    raw.rest()
    wsp.until(lambda: not server.rows(), "it to be gone")


# ----- mistakes -----------------------------------------------------------

def cut(raw, code):
    """Asserts a Close with the code, and that the server then ends."""
    got, reason = raw.closed()
    assert got == code, (got, reason)
    raw.frame(CLOSE, close_payload(code))
    raw.ends()


PROTOCOL_ERRORS = {
    "unmasked text": frame(TEXT, "x", mask=None),
    "unmasked empty": frame(TEXT, "", mask=None),
    "unmasked ping": frame(PING, mask=None),
    "unmasked close": frame(CLOSE, close_payload(1000), mask=None),
    **{f"RSV {rsv}": frame(TEXT, "x", rsv=rsv) for rsv in range(1, 8)},
    "RSV on a ping": frame(PING, rsv=4),
    "RSV on a continuation": frame(TEXT, fin=0) + frame(0, "x", rsv=4),
    **{f"opcode {op}": frame(op, "x")
       for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a reserved opcode inside a message":
        frame(TEXT, "a", fin=0) + frame(3, "x"),
    "a fragmented ping": frame(PING, "x", fin=0),
    "a fragmented pong": frame(PONG, "x", fin=0),
    "a fragmented close": frame(CLOSE, close_payload(1000), fin=0),
    "a ping of 126": frame(PING, b"x" * 126),
    "a pong of 126": frame(PONG, b"x" * 126),
    "a close of 126": frame(CLOSE, close_payload(1000, "x" * 124)),
    "a ping with a 64-bit length": frame(PING, b"", length=70000),
    "125 in 16 bits": frame(TEXT, "x" * 125, form=16),
    "0 in 16 bits": frame(TEXT, "", form=16),
    "65535 in 64 bits": frame(TEXT, "", length=65535, form=64),
    "1 in 64 bits": frame(TEXT, "x", form=64),
    "a length with its highest bit set": frame(TEXT, "", length=1 << 63),
    "a continuation of nothing": frame(0, "x"),
    "a continuation of nothing, not final": frame(0, "x", fin=0),
    "a continuation after a whole message": frame(TEXT, "") + frame(0, "x"),
    "a text inside a message": frame(TEXT, "a", fin=0) + frame(TEXT, "b"),
    "a binary inside a text": frame(TEXT, "a", fin=0)
        + frame(BINARY_FRAME, "b"),
    "a text inside a binary": frame(BINARY_FRAME, "a", fin=0)
        + frame(TEXT, "b", fin=0),
    "a close of one byte": frame(CLOSE, b"\x03"),
    **{f"close code {code}": frame(CLOSE, close_payload(code)) for code in (
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000,
        65535)},
}


@pytest.mark.parametrize("data", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS)
@pytest.mark.parametrize("piece", [None, 1], ids=["whole", "byte by byte"])
def test_a_protocol_error_is_1002(server, data, piece):
    raw = server.open(service=MAIN)
    raw.send(data, piece)
    cut(raw, 1002)


@pytest.mark.parametrize("name", ["unmasked text", "opcode 3", "RSV 4",
                                  "close code 999"])
def test_a_protocol_error_is_1002_over_tls_too(server, name):
    raw = server.open(tls=True)
    raw.send(PROTOCOL_ERRORS[name])
    cut(raw, 1002)


def test_what_came_before_the_mistake_is_answered(server, tls):
    raw = server.open(service="echo", tls=tls)
    raw.send(frame(TEXT, "good") + frame(3, "bad") + frame(TEXT, "late"))
    assert raw.read_text() == "good"
    cut(raw, 1002)


BAD_TEXT = {
    "a lone byte": b"\xff", "a lone continuation": b"a\x80",
    "an overlong form": b"\xc0\xaf", "a long overlong form": b"\xe0\x80\xaf",
    "a surrogate": b"\xed\xa0\x80", "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "a cut character": "П".encode()[:1], "a cut rocket":
    "\U0001f680".encode()[:3], "a good start": b"good \xce\xba\xed\xa0\x80",
}


@pytest.mark.parametrize("data", BAD_TEXT.values(), ids=BAD_TEXT)
def test_a_text_that_is_not_utf_8_is_1007(server, tls, data):
    raw = server.open(tls=tls)
    raw.text(data)
    cut(raw, 1007)


@pytest.mark.parametrize("data", BAD_TEXT.values(), ids=BAD_TEXT)
def test_bad_utf_8_is_1007_in_fragments_of_one_byte(server, data):
    raw = server.open()
    raw.frame(TEXT, b"", fin=0)
    for at in range(len(data)):
        raw.frame(0, data[at:at + 1], fin=int(at + 1 == len(data)))
    cut(raw, 1007)


@pytest.mark.parametrize("name", ["a lone byte", "an overlong form",
                                  "a surrogate", "beyond U+10FFFF"])
def test_bad_utf_8_is_1007_at_the_first_impossible_byte(server, name):
    """Neither the end of the message nor of the frame is waited for."""
    raw = server.open()
    raw.send(frame(TEXT, BAD_TEXT[name][:2] + b"more", fin=0)[:-4])
    cut(raw, 1007)


@pytest.mark.parametrize("reason", [b"\xff", b"cut \xd0", b"\xed\xa0\x80"])
def test_a_close_reason_that_is_not_utf_8_is_1007(server, reason):
    raw = server.open()
    raw.frame(CLOSE, close_payload(1000, reason))
    cut(raw, 1007)


def test_a_binary_may_hold_anything(server):
    raw = server.open()
    raw.frame(BINARY_FRAME, b"\xff\xc0\x80")
    raw.heartbeat()


@pytest.mark.parametrize("opcode", [TEXT, BINARY_FRAME])
@pytest.mark.parametrize("size", [MOST + 1, 65535, 65536, 1 << 31, 1 << 32,
                                  (1 << 63) - 1])
def test_too_long_a_message_is_1009_as_soon_as_its_length_shows(
        server, opcode, size):
    raw = server.open()
    raw.send(frame(opcode, b"", length=size))
    cut(raw, 1009)


def test_too_long_a_sum_of_fragments_is_1009_before_the_bytes(server, tls):
    raw = server.open(service="echo", tls=tls)
    raw.frame(BINARY_FRAME, b"x" * 10_000, fin=0)
    raw.send(frame(0, b"", length=MOST - 10_000 + 1))
    cut(raw, 1009)


def test_endless_fragments_end_with_1009(server):
    raw = server.open()
    raw.frame(TEXT, b"x" * 1000, fin=0)
    for _ in range(20):
        raw.frame(0, b"x" * 1000, fin=0)
    cut(raw, 1009)


def test_a_whole_message_that_is_too_long_is_told_1009_not_reset(server, tls):
    """The Close must reach a client that is still writing."""
    raw = server.open(tls=tls)
    raw.frame(BINARY_FRAME, b"x" * 100_000)
    cut(raw, 1009)


def test_max_inbound_is_an_option(serve):
    server = serve("--service", "echo=echo", "--max-inbound", 200)
    raw = server.open(service="echo")
    raw.text("x" * 200)
    assert raw.read_text() == "x" * 200
    raw.text("x" * 201)
    cut(raw, 1009)


def test_a_client_cut_for_a_mistake_leaves_its_stateful_socket_away(server):
    raw = server.open("1")
    raw.frame(3)
    cut(raw, 1002)
    server.wait_state(f"/services/{MAIN}-s-1", "away")


def test_a_client_that_does_not_answer_the_close_is_ended_too(serve):
    server = serve("--pong-timeout", 1)
    raw = server.open()
    raw.frame(3)
    assert raw.closed()[0] == 1002
    began = time.monotonic()
    raw.ends()
    assert time.monotonic() - began < 8


def test_noise_from_a_hundred_clients_harms_no_other(server):
    good = server.open(service="echo")
    dice = random.Random(7)
    for number in range(100):
        raw = server.open(service=dice.choice([MAIN, "echo", "quiet"]))
        raw.send(dice.randbytes(dice.randrange(1, 3000)))
        raw.close_socket()
        if number % 10 == 0:
            good.text(f"{number}")
            assert good.read_text() == f"{number}"
