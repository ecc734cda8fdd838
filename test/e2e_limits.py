# SPDX-License-Identifier: MIT
"""What one host may take: connections, rows of those on their way in,
handshake contexts, signatures.  A and B are two of them."""
import contextlib
import itertools
import select
import threading

import pytest

from e2e_hostile import HELLO
import e2e_tokens as tokens
import wsp
from wsp import MAIN, TEXT, frame, request, wspush

A, B = "127.0.0.2", "127.0.0.3"
PATH = f"/services/{MAIN}"


@contextlib.contextmanager
def crowd(server, count, data=b"", tls=False, source=A):
    """So many connections of one host, each of which has sent these bytes."""
    made = []
    try:
        for _ in range(count):
            made.append(wsp.Raw(server.address(tls), source=source))
            made[-1].send(data)
        yield made
    finally:
        for raw in made:
            raw.close_socket()


def alive(crowd):
    """How many of them the server has not ended."""
    poll = select.poll()
    for raw in crowd:
        poll.register(raw.socket, select.POLLRDHUP)
    return len(crowd) - len(poll.poll(0))


def get_in(server, tls=False, source=B, **options):
    raw = server.open(tls=tls, source=source, **options)
    raw.heartbeat()
    return raw


# ----- rows and contexts --------------------------------------------------

def test_a_host_that_never_finishes_leaves_rows_for_the_others(serve):
    """256 + 512 rows: nobody has more on their way than are left."""
    server = serve("--handshake-timeout", 600)
    with crowd(server, 1000) as held:
        wsp.until(lambda: server.stats()["connections"] == 1000, "all of them")
        wsp.until(lambda: alive(held) == 512, "their share")
        get_in(server)
        get_in(server, tls=True)
        assert alive(held) == 512, "nobody had to make way"
        assert server.stats()["turned_away"] == 488


def test_where_rows_are_many_a_host_may_have_them(serve):
    server = serve("--handshake-timeout", 600, "--max-sockets", 1000)
    with crowd(server, 1000) as held:
        wsp.until(lambda: server.stats()["connections"] == 1000, "all of them")
        assert alive(held) == 1000
        assert server.stats()["turned_away"] == 0


def test_a_host_that_never_finishes_leaves_contexts_for_the_others(serve):
    """Six of eight, however many wait in line."""
    server = serve("--handshake-timeout", 600)
    with crowd(server, 20, HELLO, tls=True) as held:
        get_in(server, tls=True)
        get_in(server, tls=True)
        assert alive(held) == 20, "nobody had to make way"


def test_a_host_alone_still_gets_its_turn_behind_its_own_crowd(serve):
    server = serve("--handshake-timeout", 600)
    with crowd(server, 20, HELLO, tls=True):
        get_in(server, tls=True, source=A)


# ----- --max-per-ip -------------------------------------------------------

def test_beyond_max_per_ip_a_connection_is_closed_and_counted(serve, tls):
    server = serve("--max-per-ip", 2)
    first, second = get_in(server, tls, A), server.raw(source=A)
    wsp.until(lambda: server.stats()["connections"] == 2, "both")
    third = server.raw(source=A)
    third.send(request(PATH))
    third.ends()
    assert server.stats()["turned_away"] == 1
    get_in(server, tls)
    second.close_socket()
    wsp.until(lambda: server.raw(source=A).send(request(PATH)).more(),
              "the place of who left")
    first.heartbeat()


# ----- a flood at the door and the push socket ----------------------------

def test_a_flood_on_the_listener_keeps_no_script_from_its_answer(serve):
    """All rows and all request buffers are taken, and more come."""
    server = serve()
    client = get_in(server)
    stop = threading.Event()

    def flood():
        for number in itertools.count():
            if stop.is_set():
                return
            with contextlib.suppress(OSError):
                wsp.Raw(server.address(), source=f"127.0.1.{number % 200 + 1}"
                        ).send(b"GET ").reset()

    with contextlib.ExitStack() as stack:
        for number in range(8):
            source = f"127.0.2.{number + 1}"
            stack.enter_context(crowd(server, 100, b"GET ", source=source))
        stack.enter_context(crowd(
            server, 40, request(PATH) + frame(TEXT, "x" * 99)[:50]))
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for number in range(10):
                done = wspush("list", "-s", server.path)
                assert done.returncode == 0, done.stderr
                done = wspush("send", "-s", server.path, "*", str(number))
                assert done.returncode == 0, done.stderr
                assert client.read_text() == str(number)
        finally:
            stop.set()
            thread.join()


# ----- forged tokens ------------------------------------------------------

def show(server, text, source):
    """The status that this token gets."""
    raw = server.raw(source=source)
    raw.send(request(PATH, headers=tokens.bearer(text)))
    return raw.response().status


def show_at_once(server, texts, source):
    """The same with many that meet the server in one moment."""
    raws = [server.raw(source=source) for _ in texts]
    with server.pause():
        for raw, text in zip(raws, texts):
            raw.send(request(PATH, headers=tokens.bearer(text)))
    return [raw.response().status for raw in raws]


def forged():
    return tokens.token(b"f" * 32)


@pytest.fixture
def checking(serve):
    return serve("--token-key", tokens.key("secret"))


def test_after_20_forged_tokens_a_hosts_next_are_not_looked_at(checking):
    got = show_at_once(checking, [forged()] * 60, A)
    assert set(got) == {401, 503} and 20 <= got.count(401) < 40, got
    line = checking.wait_log("warn token-flood ")
    assert f"peer={A}:" in line and "unread=1" in line
    assert sum("token-flood" in line for line in checking.log) == 1
    assert show(checking, tokens.token(), B) == 101


def test_behind_the_address_of_a_forger_good_tokens_come_through(checking):
    show_at_once(checking, [forged()] * 60, A)
    wsp.until(lambda: show(checking, tokens.token(), A) == 101, "a turn")


def test_good_and_expired_tokens_are_not_counted(checking):
    texts = [tokens.token(), tokens.token(exp=-100), "a.b.c"] * 30
    got = show_at_once(checking, texts, A)
    assert [got.count(status) for status in (101, 401, 503)] == [30, 60, 0]


def test_what_costs_no_signature_is_still_401(checking):
    texts = [forged()] * 60 + [tokens.token(exp=-100)]
    assert show_at_once(checking, texts, A)[-1] == 401


def test_an_answer_of_not_now_says_when_to_come_again(checking):
    show_at_once(checking, [forged()] * 60, A)

    def not_now():
        raw = checking.raw(source=A)
        raw.send(request(PATH, headers=tokens.bearer(forged())))
        answer = raw.response()
        return answer.status == 503 and answer.get("Retry-After")
    assert wsp.until(not_now, "a 503").isdigit()
