# SPDX-License-Identifier: MIT
"""Full queues, a full store, what expires, what is replaced and what is
retained (INTERFACE 5 to 7): who yields, what is counted, what is said."""
import contextlib
import json
import re
import threading
import time

import pytest

from delivery import (S, Reader, Waiting, Watcher, beat, moved, pong,
                      settled, sid, texts, until_ping)
import wsp
from wsp import MAIN

SERVER = ["--service", MAIN, "--service", "other"]
OUTCOMES = ("dropped", "unconfirmed", "replaced", "expired", "forgotten")


def taken(server, socket_id="*"):
    """Sends 0, 1, ... until one is refused; returns how many went."""
    for number in range(1000):
        if server.push(f"send {socket_id}", f"{number}").code:
            return number
    raise AssertionError("no end")


def stall(server, id="1", service=MAIN, size=8000, **options):
    """A client that does not read, with its kernel buffers full: it still
    has a frame half written.  Returns it and how many messages are out."""
    raw = server.open(id, service, receive_buffer=4096, **options)
    sent = 0
    while True:
        server.ok(f"send {sid(id, service)}", f"{sent:06}".ljust(size))
        sent += 1
        if server.stats()["delivered"] < sent - 1:
            return raw, sent
        assert sent < 1000


# ----- one queue ----------------------------------------------------------

def test_drop_oldest_by_count_keeps_the_newest(serve):
    server = serve("--queue-messages", 3)
    with Watcher(server.path) as watcher:
        server.away("1")
        assert [e[0] for e in watcher.events(2)] == ["open", "close"]
        for number in range(7):
            reply = server.ok("send *", f"{number}")
            assert (reply.count, reply.number("full")) == (1, 0)
        row = server.row(f"{S}1")
        assert (row["messages"], row["bytes"], row["drops"]) == (3, 3, 4)
        assert watcher.events(4) == [("drop", f"{S}1", 1)] * 4
    stats = server.stats()
    assert [stats[name] for name in OUTCOMES] == [4, 0, 0, 0, 0]
    server.wait_log(" slow ")
    lines = [line for line in server.log if line and " slow " in line]
    assert len(lines) == 1, "one line names the slow client"
    assert f"{S}1" in lines[0] and "messages=" in lines[0]
    assert "age=" in lines[0]
    assert texts(server.open("1"), 3)[0] == ["4", "5", "6"]


def test_drop_oldest_by_bytes_drops_as_many_as_it_takes(serve):
    server = serve("--queue-bytes", 1000, "--max-message", 1000)
    server.away("1")
    for body in ("a" * 400, "b" * 400, "c" * 200):
        server.ok("send *", body)
    assert server.row(f"{S}1")["drops"] == 0
    with Watcher(server.path) as watcher:
        server.ok("send *", "d" * 700)
        assert watcher.event() == ("drop", f"{S}1", 2)
    row = server.row(f"{S}1")
    assert (row["messages"], row["bytes"], row["drops"]) == (2, 900, 2)
    back = server.open("1")
    assert texts(back, 2)[0] == ["c" * 200, "d" * 700]


def test_refuse_by_count_takes_nothing_more_and_drops_nothing(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 3)
    server.away("1")
    assert taken(server) == 3
    before = server.stats()
    server.refused("queue-full", "send *", "x")
    assert moved(before, server.stats(), *OUTCOMES) == (0,) * 5
    assert server.row(f"{S}1")["drops"] == 0
    assert texts(server.open("1"), 3)[0] == ["0", "1", "2"]


def test_under_refuse_what_is_written_does_not_yield_either(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 3)
    raw = server.open("1")
    assert taken(server) == 3
    assert server.stats()["unconfirmed"] == 0
    reader = Reader(raw)
    settled(server, f"{S}1")
    assert reader.texts() == ["0", "1", "2"]
    assert server.ok("send *", "x").count == 1


def test_otherwise_what_is_written_yields_first_and_is_no_drop(serve):
    server = serve("--queue-messages", 3)
    raw = server.open("1")
    for number in range(10):
        server.ok("send *", f"{number}")
    assert texts(raw, 10)[0] == [str(n) for n in range(10)]
    stats = server.stats()
    assert [stats[name] for name in OUTCOMES] == [0, 7, 0, 0, 0]
    assert server.row(f"{S}1")["drops"] == 0
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    assert texts(server.open("1"), 3)[0] == ["7", "8", "9"]


def test_close_cuts_the_slow_client_and_keeps_its_queue(serve):
    server = serve("--overflow", "close", "--queue-bytes", 65536,
                   "--queue-messages", 8)
    other = server.open("other")
    raw, sent = stall(server)
    with Watcher(server.path, f"{S}1") as watcher:
        for number in range(sent, sent + 50):
            reply = server.push(f"send {S}1", f"{number:06}".ljust(8000))
            if reply.code:
                break
        assert reply.code == "queue-full"
        assert watcher.event() == ("close", f"{S}1", 1013)
    row = server.row(f"{S}1")
    assert row["state"] == "away" and row["messages"] == 8
    assert row["drops"] == 0
    line = server.wait_log(" slow ")
    assert f"{S}1" in line and raw.name in line and "age=" in line
    server.refused("queue-full", f"send {S}1", "as refuse does")
    # The frame that was half out is whole, and behind it is the Close.
    seen = []
    with pytest.raises(wsp.Closed) as end:
        while True:
            seen.append(raw.read_text().strip())
    assert (end.value.code, str(end.value)) == (
        1013, "Close 1013 'too slow'")
    assert seen == [f"{n:06}" for n in range(len(seen))]
    back = server.open("1")
    first = number - 8
    assert [t.strip() for t in texts(back, 8)[0]] == [
        f"{n:06}" for n in range(first, number)]
    assert first <= len(seen), "a gap"
    other.heartbeat()


def test_an_event_names_the_code_of_a_close_that_is_written(serve):
    server = serve("--send-buffer", 2048, "--max-message", 200000,
                   "--queue-bytes", 200000)

    def closed(n):
        """Closes a client that has read nothing of so many bytes."""
        with Watcher(server.path) as watcher:
            raw = server.open(receive_buffer=2048)
            server.ok("send *", "x" * n)
            server.ok("close code=4000 *", "r" * 123)
            code = watcher.events(3)[1][2]
        written = raw.rest().endswith(b"\x0f\xa0" + b"r" * 123)
        raw.close_socket()
        assert code == (4000 if written else 1006), n
        return written
    # Where the rest and the Close just do not fit the buffer any more.
    most, least = 2000, 190000
    while least - most > 30:
        n = (most + least) // 2
        if closed(n):
            most = n
        else:
            least = n
    for n in range(most, most + 300, 30):
        closed(n)


def test_what_a_full_client_says_is_heard_once_its_answer_is_out(serve):
    """A send that is refused flushes the client first, and with that goes
    the answer that its next words wait for."""
    server = serve("--overflow", "refuse")
    raw, _ = stall(server)
    taken(server, f"{S}1")
    raw.send(wsp.frame(wsp.PING, b"one") + wsp.frame(wsp.PING, b"two"))
    for _ in range(2):
        server.ok("ping")  # a turn
    with wsp.Push(server.path) as sender, server.pause():
        raw.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while raw.more():
                pass
        raw.socket.settimeout(wsp.PATIENCE)
        sender.send(f"send {S}1", "x")
    pongs = []
    while b"two" not in pongs:
        got = raw.next_frame()
        if got.opcode == wsp.PONG:
            pongs.append(got.payload)
    assert pongs == [b"one", b"two"]


def test_who_is_cut_counts_as_full_beside_others(serve):
    server = serve("--overflow", "close", "--queue-messages", 8,
                   "--retained", 1)
    raw, sent = stall(server)
    while sent - server.stats()["delivered"] < 8:
        server.ok(f"send {S}1", "y" * 8000)
        time.sleep(0.01)  # a turn, that takes what the kernel has room for
        sent += 1
    other = server.open("2")
    server.ok("send retain=1 $none", "the one value")
    server.refused("no-room", "send retain=1 *", "x")
    assert server.row(f"{S}1")["state"] == "open", "a refusal cut somebody"
    reply = server.ok("send *", "x")
    assert (reply.count, reply.number("full")) == (1, 1)
    assert texts(other, 1)[0] == ["x"]
    raw.close_socket()


def test_a_send_that_the_store_refuses_cuts_nobody(serve):
    server = serve("--service", f"{MAIN},overflow=close,ack=sent",
                   "--service", "r,overflow=refuse", "--queue-messages", 4,
                   "--queue-bytes", 200_000, "--store-bytes", 200_000)
    full = server.away("full", "r")
    server.away("empty", "r")
    for _ in range(4):
        server.ok(f"send {full}", "z" * 35_000)
    raw, _ = stall(server)
    row = server.row(f"{S}1")
    while row["messages"] < 4:  # until the kernel takes nothing of them
        for _ in range(row["messages"], 4):
            server.ok(f"send {S}1", "y" * 8000)
        server.refused("no-room", "send *", "x" * 65_000)
        row = server.row(f"{S}1")
        assert row["state"] == "open", "a refusal cut somebody"
    reply = server.ok("send *", "x")
    assert (reply.count, reply.number("full")) == (1, 2)
    server.wait_state(f"{S}1", "away")
    raw.close_socket()


def test_a_policy_may_be_a_services_own(serve):
    server = serve("--queue-messages", 1, "--service", MAIN,
                   "--service", "r,overflow=refuse")
    server.away("1")
    server.away("1", "r")
    server.ok("send *", "0")
    reply = server.ok("send *", "1")
    assert (reply.count, reply.number("full")) == (1, 1)
    assert server.row(f"{S}1")["drops"] == 1
    assert texts(server.open("1", "r"), 1)[0] == ["0"]


def test_a_frame_half_written_is_never_dropped(serve, tls):
    server = serve("--queue-messages", 2)
    raw, sent = stall(server, tls=tls)
    for number in range(sent, sent + 20):
        server.ok("send *", f"{number:06}".ljust(8000))
    last = f"{sent + 19:06}"
    got = []
    while not got or got[-1] != last:
        text = texts(raw, 1)[0][0]
        assert len(text) == 8000
        got.append(text.strip())
    numbers = list(map(int, got))
    assert numbers == sorted(set(numbers)), "in order, none twice"
    gaps = [b - a - 1 for a, b in zip(numbers, numbers[1:]) if b - a > 1]
    assert len(gaps) == 1, "one gap, where the oldest unsent were"
    assert server.stats()["dropped"] == sum(gaps)
    assert server.row(f"{S}1")["drops"] == sum(gaps)


def test_if_only_a_half_written_frame_is_there_the_new_one_is_refused(serve):
    server = serve("--queue-messages", 1)
    raw = server.open("1", receive_buffer=4096)
    for number in range(1000):
        reply = server.push("send *", f"{number:06}".ljust(30000))
        if reply.code:
            break
    assert reply.code == "queue-full"
    assert server.stats()["dropped"] == 0
    got = [text.strip() for text in texts(raw, number)[0]]
    assert got == [f"{n:06}" for n in range(number)]


@pytest.mark.parametrize("id", ["1", None])
def test_a_burst_of_200_in_one_turn_to_a_client_that_reads_loses_nothing(
        server, tls, id):
    """More than the queue of 64 holds.  The kernel's queue holds some ten;
    who is blocked behind them refills it in the course of the turn."""
    raw = server.open(id, tls=tls)
    before = server.stats()
    senders = [wsp.Push(server.path, None) for _ in range(20)]

    def ten(sender, number):
        for n in range(10):
            sender.send("send *", f"{number} {n}")
    with server.pause():
        threads = [threading.Thread(target=ten, args=(each, number))
                   for number, each in enumerate(senders)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(wsp.PATIENCE)
    [got] = server.fence(raw)
    assert len(got) == len(set(got)) == 200
    for number in range(20):
        mine = [each for each in got if each.startswith(f"{number} ")]
        assert mine == [f"{number} {n}" for n in range(10)]
    assert moved(before, server.stats(), "dropped") == (0,)
    for sender in senders:
        sender.close()


# ----- bytes as queues count them -----------------------------------------

@pytest.mark.parametrize("kind, body, size", [
    ("text", "", 0), ("text", "привет", 12), ("binary", "x" * 999, 999),
    ("json", '{"a":1}', 7), ("json", '  {"a": 1}\n', 8), ("json", "[1]", 3),
    ("json", " [1,\n2] ", 6), ("json", "", 2), ("json", "hello", 7),
    ("json", 'say "x"\n', 13), ("json", " a ", 5), ("json", "привет", 14),
    ("json", "12", 2), ("json", " null ", 4), ("json", '"s"', 3)])
def test_a_queues_bytes_count_bodies_in_their_form(server, kind, body, size):
    server.away("1")
    server.ok(f"send kind={kind} *", body)
    row = server.row(f"{S}1")
    assert (row["messages"], row["bytes"]) == (1, size)


def test_the_bound_by_bytes_counts_the_same_way(serve):
    server = serve("--overflow", "refuse", "--queue-bytes", 100,
                   "--max-message", 100)
    server.away("1")
    server.ok("send kind=json *", '"' * 49)  # 100 bytes as a JSON string
    assert server.row(f"{S}1")["bytes"] == 100
    server.refused("queue-full", "send kind=json *", "1")
    server.ok("send *", "")
    server.ok("close *")
    server.away("1")
    server.ok("send kind=json *", " " * 50 + "1" * 50)
    server.ok("send kind=json *", "2" * 50)
    server.refused("queue-full", "send *", "1")


# ----- the store ----------------------------------------------------------

STORE = ["--store-bytes", 65536, "--max-message", 8192, "--queue-bytes",
         65536]


def store_body(number):
    return f"{number:06}".ljust(4000)


def test_when_the_store_is_full_the_oldest_messages_make_room(serve):
    server = serve(*STORE)
    sockets = [server.away(f"{n}") for n in range(4)]
    for number in range(40):
        target = sockets[number % 4]
        assert server.ok(f"send {target}", store_body(number)).count == 1
    stats = server.stats()
    assert stats["store_bytes"] <= stats["store_bytes_max"] == 65536
    rows = server.rows()
    assert sum(row["drops"] for row in rows) == stats["dropped"]
    left = sum(row["messages"] for row in rows)
    assert left == 40 - stats["dropped"] and left >= 14
    kept = []
    for n in range(4):
        raw = server.open(f"{n}")
        kept += [int(t) for t in texts(
            raw, next(r["messages"] for r in rows
                      if r["socketId"] == f"{S}{n}"))[0]]
    assert sorted(kept) == list(range(40 - left, 40)), "the oldest went"


def test_what_one_message_drops_at_a_socket_is_one_event(serve):
    server = serve(*STORE, "--queue-messages", 300)
    server.away("1")
    server.away("2")
    sent = 0
    while server.stats()["dropped"] == 0:
        server.ok(f"send {S}1", "x".ljust(300))
        sent += 1
    before = server.row(f"{S}1")["drops"]
    with Watcher(server.path) as watcher:
        server.ok(f"send {S}2", "y" * 8000)
        after = server.row(f"{S}1")["drops"]
        assert after > before + 20
        assert watcher.event() == ("drop", f"{S}1", after - before)
        assert watcher.silent()
    assert server.row(f"{S}1")["messages"] == sent - after


def test_who_refuses_keeps_its_messages_and_the_next_oldest_go(serve):
    server = serve(*STORE, "--queue-bytes", 262144, "--service", MAIN,
                   "--service", "r,overflow=refuse")
    server.away("1", "r")
    server.away("1")
    for number in range(4):
        server.ok("send /services/r", store_body(number))
    for number in range(4, 40):
        assert server.ok(f"send {S}1", store_body(number)).count == 1
    assert server.row(sid("1", "r"))["messages"] == 4
    assert server.row(sid("1", "r"))["drops"] == 0
    left = server.row(f"{S}1")["messages"]
    assert server.row(f"{S}1")["drops"] == 36 - left and left >= 10
    for number in range(4, 40):
        if server.push("send /services/r", store_body(number)).code:
            break
    assert server.row(f"{S}1")["messages"] == 0, "they yield to it too"
    server.refused("no-room", "send /services/r", store_body(0))
    server.refused("no-room", f"send {S}1", store_body(0))
    raw = server.open("1", "r")
    assert [int(t) for t in texts(raw, 4)[0]] == [0, 1, 2, 3]


def test_a_message_shared_with_who_refuses_stays(serve):
    server = serve(*STORE, "--service", MAIN, "--service",
                   "r,overflow=refuse")
    server.away("1", "r")
    server.away("1")
    shared = 0
    while not server.push("send *", store_body(shared)).code:
        shared += 1
    assert shared >= 14
    assert server.row(f"{S}1")["drops"] == 0
    assert server.row(f"{S}1")["messages"] == shared
    server.refused("no-room", f"send {S}1", store_body(0))


def test_what_is_written_yields_before_anything_is_dropped(serve):
    server = serve(*STORE)
    raw = server.open("1")
    for number in range(10):
        server.ok("send *", store_body(number))
    assert len(texts(raw, 10)[0]) == 10
    server.away("2")
    for number in range(10, 22):
        server.ok(f"send {S}2", store_body(number))
    stats = server.stats()
    assert stats["unconfirmed"] >= 6 and stats["dropped"] == 0
    assert server.row(f"{S}2")["messages"] == 12


def test_a_store_at_its_limit_serves_who_reads(serve):
    server = serve(*STORE)
    raw = server.open("1")
    for n in range(4):
        away = server.away(f"away{n}")
        for number in range(10):
            server.ok(f"send {away}", store_body(number))
    for number in range(100):
        assert server.ok(f"send {S}1", store_body(number)).count == 1
        assert int(texts(raw, 1)[0][0]) == number


def test_small_messages_use_up_rows_and_make_room_just_so(serve):
    """The table of messages is as bounded as the bytes."""
    server = serve("--store-bytes", 65536, "--max-message", 8192,
                   "--queue-messages", 1000)
    sockets = [server.away(f"{n}") for n in range(3)]
    for number in range(1500):
        assert server.ok(f"send {sockets[number % 3]}",
                         f"{number}").count == 1
    rows = server.rows()
    stats = server.stats()
    left = sum(row["messages"] for row in rows)
    assert left == 1500 - stats["dropped"] and left >= 400


# ----- ttl= ---------------------------------------------------------------

def test_what_has_expired_is_not_sent(server):
    server.away("1")
    before = server.stats()
    server.ok("send ttl=1 *", "expires")
    server.ok("send ttl=600 *", "lasts")
    server.ok("send ttl=0 *", "for ever")
    settled(server, f"{S}1", 2)
    assert moved(before, server.stats(), *OUTCOMES) == (0, 0, 0, 1, 0)
    assert server.row(f"{S}1")["drops"] == 0
    assert server.fence(server.open("1")) == [["lasts", "for ever"]]


def test_what_is_written_does_not_expire_while_its_connection_lives(server):
    raw = server.open("1")
    before = server.stats()
    server.ok("send ttl=1 *", "x")
    _, ping = until_ping(raw)
    time.sleep(2.5)
    assert beat(raw) == []
    assert server.row(f"{S}1")["messages"] == 1
    pong(raw, ping)
    assert moved(before, server.stats(), "acknowledged", "expired") == (1, 0)


def test_what_was_written_expires_after_its_connection_is_gone(server):
    raw = server.open("1")
    server.ok("send ttl=1 *", "x")
    until_ping(raw)
    time.sleep(1.2)
    before = server.stats()
    raw.close_socket()
    settled(server, f"{S}1", 0)
    assert moved(before, server.stats(), "expired") == (1,)
    assert server.fence(server.open("1")) == [[]]


def test_an_expired_message_makes_room_before_others_yield(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 1)
    server.away("1")
    server.ok("send ttl=1 *", "x")
    server.refused("queue-full", "send *", "y")
    time.sleep(1.1)
    assert server.ok("send *", "y").count == 1
    assert server.stats()["expired"] == 1


@pytest.mark.parametrize("ttl", ["", "-1", "x", "1000000000", "1.5",
                                 "99999999999999999999"])
def test_a_bad_ttl_is_a_bad_option(server, ttl):
    server.refused("bad-option", f"send ttl={ttl} *", "x")


def test_the_longest_ttl_is_taken(server):
    server.away("1")
    server.ok("send ttl=999999999 *", "x")
    assert server.fence(server.open("1")) == [["x"]]


# ----- key= ---------------------------------------------------------------

def test_a_key_replaces_what_is_unsent_and_goes_to_the_end(server):
    server.away("1")
    before = server.stats()
    for header, body in (("key=t", "t1"), ("key=u", "u1"), ("", "plain"),
                         ("key=t", "t2"), ("key=t", "t3")):
        assert server.ok(f"send {header} *", body).count == 1
    row = server.row(f"{S}1")
    assert (row["messages"], row["drops"]) == (3, 0)
    assert moved(before, server.stats(), *OUTCOMES) == (0, 0, 2, 0, 0)
    assert server.fence(server.open("1")) == [["u1", "plain", "t3"]]


def test_a_key_does_not_replace_what_is_written(server):
    raw = server.open("1")
    server.ok("send key=t *", "t1")
    until_ping(raw)
    server.ok("send key=t *", "t2")
    assert texts(raw, 1)[0] == ["t2"]
    assert server.row(f"{S}1")["messages"] == 2


def test_what_was_written_may_be_replaced_after_its_connection_is_gone(
        server):
    raw = server.open("1")
    server.ok("send key=t *", "t1")
    until_ping(raw)
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    server.ok("send key=t *", "t2")
    assert server.fence(server.open("1")) == [["t2"]]


def test_keys_are_per_socket(server):
    server.away("a")
    server.away("b")
    server.ok("send key=t *", "t1")
    server.ok(f"send key=t {S}a", "t2")
    assert texts(server.open("a"), 1)[0] == ["t2"]
    assert texts(server.open("b"), 1)[0] == ["t1"]


def test_keys_are_bytes_and_whole(server):
    server.away("1")
    keys = ["a", "A", "aa", "a=b", "ключ", "k" * 64, "k" * 63, "*", "$x"]
    for key in keys:
        server.ok(f"send key={key} *", key)
    assert server.row(f"{S}1")["messages"] == len(keys)
    server.refused("bad-option", f"send key={'k' * 65} *", "x")
    server.refused("bad-option", "send key= *", "x")


def test_what_will_be_replaced_makes_its_room_before_overflow_is_asked(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 2)
    server.away("1")
    server.ok("send key=t *", "t1")
    server.ok("send *", "other")
    server.refused("queue-full", "send *", "x")
    assert server.ok("send key=t *", "t2").count == 1
    server.refused("queue-full", "send key=u *", "x")
    assert texts(server.open("1"), 2)[0] == ["other", "t2"]


def test_of_drop_oldest_nothing_is_dropped_when_replacing_is_enough(serve):
    server = serve("--queue-messages", 2)
    server.away("1")
    server.ok("send *", "other")
    server.ok("send key=t *", "t1")
    server.ok("send key=t *", "t2")
    stats = server.stats()
    assert (stats["dropped"], stats["replaced"]) == (0, 1)
    assert texts(server.open("1"), 2)[0] == ["other", "t2"]


def test_if_the_new_message_is_refused_nothing_is_replaced(serve):
    server = serve("--overflow", "refuse", "--queue-bytes", 100,
                   "--max-message", 100)
    server.away("1")
    server.ok("send *", "x" * 60)
    server.ok("send key=t *", "t1")
    server.refused("queue-full", "send key=t *", "t" * 41)
    server.refused("too-big", "send key=t *", "t" * 101)
    assert server.stats()["replaced"] == 0
    assert texts(server.open("1"), 2)[0] == ["x" * 60, "t1"]


def test_what_will_be_replaced_makes_its_room_in_the_store_too(serve):
    server = serve(*STORE, "--overflow", "refuse")
    for n in range(3):
        server.away(f"{n}")
    server.ok("send key=t *", "t1".ljust(4000))
    number = 0
    while not server.push(f"send {S}0", store_body(number)).code:
        number += 1
    before = server.stats()
    assert server.ok("send key=t *", "t2".ljust(4000)).count == 3
    assert moved(before, server.stats(), "replaced") == (3,)
    server.refused("no-room", "send key=t *", "t3".ljust(8000))
    server.refused("no-room", f"send key=t {S}0", "t3".ljust(4000))
    for n in range(3):
        last = server.row(f"{S}{n}")["messages"]
        assert texts(server.open(f"{n}"), last)[0][-1].strip() == "t2"


def test_a_key_counts_what_it_replaces_before_the_store_drops(serve):
    server = serve(*STORE)
    server.away("1")
    number = 0
    while server.stats()["store_bytes"] + 8200 < 65536:
        server.ok("send *", store_body(number))
        number += 1
    server.ok("send key=t *", "t1".ljust(4000))
    for turn in range(20):
        server.ok("send key=t *", f"t{turn}".ljust(4000))
    assert server.stats()["dropped"] == 0
    assert server.row(f"{S}1")["messages"] == number + 1


# ----- retain= ------------------------------------------------------------

def test_a_newcomer_gets_the_last_value_before_anything_newer(server, tls):
    server.ok("send retain=1 *", "old")
    assert server.ok("send retain=1 *", "value").count == 0
    raw = server.open("1", tls=tls)
    volatile = server.open(tls=tls)
    server.ok("send *", "newer")
    assert server.fence(raw, volatile) == [["value", "newer"]] * 2
    server.ok("send retain=1 *", "")


def test_who_is_there_gets_a_retained_message_once(server):
    raw = server.open("1")
    server.ok("send retain=1 *", "value")
    assert server.fence(raw) == [["value"]]
    server.ok("send retain=1 *", "")


def test_who_reconnects_does_not_get_it_again(server):
    server.ok("send retain=1 *", "value")
    raw = server.open("1")
    assert texts(raw, 1)[0] == ["value"]
    got, ping = until_ping(raw)
    pong(raw, ping)
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    raw = server.open("1")
    assert server.fence(raw) == [[]]
    takeover = server.open("1")
    assert "value" not in server.fence(takeover)[0]
    server.ok("send retain=1 *", "")


def test_who_was_forgotten_is_new(server):
    server.ok("send retain=1 *", "value")
    server.open("1")
    server.ok("close *")
    assert server.fence(server.open("1")) == [["value"]]
    server.ok("send retain=1 *", "")


def test_oldest_value_first(server):
    for key in "abc":
        server.ok(f"send retain=1 key={key} *", key)
    server.ok("send retain=1 $id:1", "d")
    server.ok("send retain=1 key=b *", "b, the youngest")
    raw = server.open("id:1")
    assert server.fence(raw) == [["a", "c", "d", "b, the youngest"]]
    for key in "abc":
        server.ok(f"send retain=1 key={key} *", "")
    server.ok("send retain=1 $id:1", "")


def test_target_text_and_key_name_the_value(server):
    server.ok("send retain=1 $g:1 $h:2", "one")
    server.ok("send retain=1   $g:1    $h:2", "two")
    server.ok("send retain=1 $h:2 $g:1", "three")
    server.ok("send retain=1 key=k $g:1 $h:2", "four")
    assert server.fence(server.open("g:1::h:2")) == [
        ["two", "three", "four"]]
    for header in ("$g:1 $h:2", "$h:2 $g:1", "key=k $g:1 $h:2"):
        assert server.ok(f"send retain=1 {header}", "").raw.startswith(
            b"ok 0")
    assert server.fence(server.open("g:1::h:2::n:2")) == [[]]


def test_an_empty_body_forgets_and_sends_nothing(server):
    server.ok("send retain=1 *", "value")
    raw = server.open("1")
    assert server.fence(raw) == [["value"]]
    reply = server.ok("send retain=1 *", "")
    assert (reply.count, reply.number("open")) == (0, 0)
    assert server.ok("send retain=1 *", "").count == 0, "nothing to forget"
    assert server.fence(raw, server.open("2")) == [[], []]


def test_tags_that_change_so_bring_the_value(server):
    server.ok("send retain=1 $room:7", "for seven")
    server.ok("send retain=1 $room", "for all rooms")
    raw = server.open("1")
    assert server.fence(raw) == [[]]
    server.ok(f"tag {S}1", "room:8")
    assert server.fence(raw) == [["for all rooms"]]
    server.ok(f"tag {S}1", "room:7")
    assert server.fence(raw) == [["for seven"]]
    server.ok(f"tag {S}1", "room:7\nfloor:1")
    assert server.fence(raw) == [[]]
    server.ok(f"tag {S}1", "-room")
    server.ok(f"tag {S}1", "room:7")
    assert server.fence(raw) == [["for seven", "for all rooms"]]
    for target in ("$room:7", "$room"):
        server.ok(f"send retain=1 {target}", "")


def test_an_away_socket_whose_tags_change_gets_it_in_its_queue(server):
    server.ok("send retain=1 $room:7", "for seven")
    server.away("1")
    server.ok(f"tag {S}1", "room:7")
    assert server.row(f"{S}1")["messages"] == 1
    assert server.fence(server.open("1")) == [["for seven"]]
    server.ok("send retain=1 $room:7", "")


@pytest.mark.parametrize("state", ["=open", "=away"])
def test_open_and_away_count_only_when_it_is_sent(server, state):
    here, gone = server.open("here"), server.away("gone")
    reply = server.ok(f"send retain=1 * {state}", "value")
    assert reply.count == 1
    assert reply.number(state[1:]) == 1
    new = server.open("new")
    assert texts(new, 1)[0] == ["value"]
    back = server.open("gone")
    assert server.fence(here, back) == [
        ["value"] if state == "=open" else [],
        ["value"] if state == "=away" else []]
    server.ok(f"send retain=1 * {state}", "")
    assert gone


def test_a_retained_value_is_subject_to_ttl(server):
    before = server.stats()["store_bytes"]
    server.ok("send retain=1 ttl=1 *", "short")
    server.ok("send retain=1 ttl=600 key=k *", "long")
    time.sleep(1.2)
    assert server.fence(server.open("1")) == [["long"]]
    server.ok("send retain=1 key=k *", "")
    server.ok("close *")
    wsp.until(lambda: server.stats()["store_bytes"] == before, "its bytes")


def test_with_a_socket_id_it_is_a_bad_option(server):
    server.away("1")
    server.refused("bad-option", f"send retain=1 {S}1", "x")
    server.refused("bad-option", f"send retain=1 {S}nobody", "x")
    server.refused("bad-option", "send retain=0 *", "x")
    server.refused("bad-option", "send retain= *", "x")


def test_beyond_retained_there_is_no_room_and_nothing_is_sent(serve):
    server = serve("--retained", 2)
    raw = server.open("1")
    server.ok("send retain=1 key=a *", "a")
    server.ok("send retain=1 key=b *", "b")
    assert server.fence(raw) == [["a", "b"]]
    server.refused("no-room", "send retain=1 key=c *", "c")
    server.ok("send retain=1 key=a *", "a again")
    assert server.fence(raw) == [["a again"]]
    server.ok("send retain=1 key=c *", "")
    server.ok("send retain=1 key=b *", "")
    server.ok("send retain=1 key=c *", "c")
    assert server.fence(server.open("2")) == [["a again", "c"]]


def test_by_default_32_values_are_retained(server):
    for number in range(32):
        server.ok(f"send retain=1 key={number} *", f"{number}")
    server.refused("no-room", "send retain=1 *", "x")
    assert server.fence(server.open("1")) == [[str(n) for n in range(32)]]
    for number in range(32):
        server.ok(f"send retain=1 key={number} *", "")
    server.ok("send retain=1 *", "x")
    server.ok("send retain=1 *", "")


def test_an_expired_value_makes_its_room(serve):
    server = serve("--retained", 1)
    server.ok("send retain=1 ttl=1 key=a *", "a")
    time.sleep(1.1)
    server.ok("send retain=1 key=b *", "b")


def test_a_refused_send_retains_nothing(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 1)
    server.away("1")
    server.ok("send *", "fills it")
    server.refused("queue-full", "send retain=1 *", "value")
    assert server.fence(server.open("2"))[0] == []


def test_a_newcomers_queue_decides_how_many_values_it_takes(serve):
    server = serve("--queue-messages", 2, "--service", MAIN, "--service",
                   "r,overflow=refuse")
    for number in range(4):
        server.ok(f"send retain=1 key={number} $room:7", f"{number}")
    server.away("1")
    server.away("1", "r")
    server.ok("tag *", "room:7")
    assert server.row(f"{S}1")["drops"] == 2
    assert texts(server.open("1"), 2)[0] == ["2", "3"]
    assert texts(server.open("1", "r"), 2)[0] == ["0", "1"]


def test_a_retained_value_is_acknowledged_like_any_message(server):
    with Waiting(server.path) as waiting:
        server.away("1")
        assert waiting.ok("send retain=1 ack=30 *", "value").count == 1
        client = server.client("2")
        assert client.receive() == "value"
        settled(server, f"{S}2")
        assert waiting.silent(), "a newcomer is not among those waited for"
        client = server.client("1")
        assert client.receive() == "value"
        assert waiting.acked() == (1, 1, None)
    server.ok("send retain=1 *", "")


def test_a_json_value_joins_its_batch(server):
    server.ok("send retain=1 kind=json key=a *", '{"a":1}')
    server.ok("send retain=1 kind=json key=b *", "two")
    raw = server.open("1")
    assert json.loads(texts(raw, 1)[0][0]) == [{"a": 1}, "two"]
    for key in "ab":
        server.ok(f"send retain=1 key={key} *", "")


def test_what_is_retained_survives_a_full_store(serve):
    server = serve(*STORE)
    server.ok("send retain=1 *", "value".ljust(4000))
    server.away("1")
    for number in range(100):
        server.ok(f"send {S}1", store_body(number))
    assert texts(server.open("2"), 1)[0][0].strip() == "value"


def test_what_is_retained_may_fill_the_store_and_then_there_is_no_room(serve):
    server = serve(*STORE)
    number = 0
    while not server.push(f"send retain=1 key={number} *",
                          store_body(number)).code:
        number += 1
    assert number >= 14
    server.away("1")
    server.refused("no-room", f"send {S}1", store_body(0))
    server.ok("send retain=1 key=0 $nobody", "")
    server.refused("no-room", f"send {S}1", store_body(0))
    server.ok("close *")
    assert server.ok("send retain=1 key=1 *", store_body(1)).count == 0
    server.refused("no-room", "send retain=1 key=new *", store_body(1))


def test_send_r_exits_0_also_when_none_matched(server):
    def send(*args):
        return wsp.wspush("send", "-s", server.path, *args).returncode
    assert send("-r", "-K", "k", "*", "value") == 0
    assert send("*", "value") == 4
    assert server.fence(server.open("1")) == [["value"]]
    assert send("-r", "-K", "k", "*", "") == 0
    assert server.fence(server.open("2")) == [[]]


# ----- counters -----------------------------------------------------------

def test_every_message_has_one_end(server):
    """taken = acknowledged + dropped + replaced + ... for stateful sockets."""
    before = server.stats()
    one = server.client("1")
    for number in range(20):
        server.ok("send *", f"{number}")
        assert one.receive() == f"{number}"
    settled(server, f"{S}1")
    server.away("2")
    for number in range(70):
        server.ok(f"send {S}2", f"{number}")
    server.ok(f"send key=k {S}2", "k1")
    server.ok(f"send key=k {S}2", "k2")
    server.ok("close *")
    after = server.stats()
    assert moved(before, after, "messages_taken", "delivered",
                 "acknowledged", "dropped", "replaced", "forgotten") == (
        92, 20, 20, 7, 1, 64)
    assert after["store_bytes"] == before["store_bytes"]


def test_a_slow_line_is_said_once_for_each_client(serve):
    server = serve("--queue-messages", 1)
    for id in "ab":
        server.away(id)
    for number in range(10):
        server.ok("send *", f"{number}")
    for id in "ab":
        server.wait_log(f" slow .*{S}{id}")
    lines = [line for line in server.log if line and " slow " in line]
    assert len(lines) == 2
    assert all(re.search(r'messages=\d+ bytes=\d+ age=\d+s', line)
               for line in lines)
