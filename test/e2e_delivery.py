# SPDX-License-Identifier: MIT
"""Nothing lost: away sockets, replay, acknowledgement, and what a Pong may
and may not do (INTERFACE 2, 5, 8)."""
import os
import time

import pytest

import delivery
from delivery import (S, Waiting, Watcher, beat, moved, number_of, pong,
                      settled, sid, texts, until_ping)
import wsp
from wsp import CLOSE, MAIN, PING, PONG

SERVER = ["--service", MAIN, "--service", "sent,ack=sent"]


@pytest.fixture
def waiting(make_waiting, server):
    return make_waiting(server)


@pytest.fixture
def make_waiting():
    made = []

    def make(server):
        made.append(Waiting(server.path))
        return made[-1]
    yield make
    for each in made:
        each.close()


@pytest.fixture
def watch():
    made = []

    def make(server, target=""):
        made.append(Watcher(server.path, target))
        return made[-1]
    yield make
    for each in made:
        each.close()


# ----- away, and back -----------------------------------------------------

def test_what_is_sent_to_an_away_socket_waits_and_is_reported_so(server):
    server.away("1")
    reply = server.ok(f"send {S}1", "one")
    assert (reply.count, reply.number("open"), reply.number("away")) == (
        1, 0, 1)
    row = server.row(f"{S}1")
    assert (row["state"], row["messages"], row["bytes"], row["peer"]) == (
        "away", 1, 3, None)
    back = server.client("1")
    assert server.fence(back) == [["one"]]
    settled(server, f"{S}1")


def test_after_a_reconnect_comes_what_was_not_acknowledged_then_what_is_new(
        server, tls):
    raw = server.open("1", tls=tls)
    server.ok("send *", "a")
    got, ping = until_ping(raw)
    assert got == ["a"]
    pong(raw, ping)
    for text in "bcd":
        server.ok("send *", text)
    got, ping = until_ping(raw)
    while got != ["b", "c", "d"]:
        more, ping = until_ping(raw)
        got += more
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    server.ok(f"send {S}1", "e")
    back = server.open("1", tls=tls)
    server.ok(f"send {S}1", "f")
    assert texts(back, 5)[0] == list("bcdef")
    server.ok("send *", "g")
    assert texts(back, 1)[0] == ["g"]


@pytest.mark.parametrize("end", ["close", "reset", "abort", "vanish"])
def test_however_the_connection_ends_its_queue_stays(server, tls, end):
    raw = server.open("1", tls=tls)
    server.ok("send *", "kept")
    until_ping(raw)
    if end == "close":
        raw.frame(CLOSE, wsp.close_payload(1000))
    elif end == "reset":
        raw.reset()
    elif end == "abort":
        server.ok("abort *")
    else:
        raw.close_socket()
    server.wait_state(f"{S}1", "away")
    assert server.row(f"{S}1")["messages"] == 1
    assert server.fence(server.open("1", tls=tls)) == [["kept"]]


def test_a_message_that_was_half_out_comes_whole_after_the_reconnect(
        server, tls):
    raw = server.open("1", tls=tls, receive_buffer=4096)
    bodies = [chr(ord("a") + n) * 60000 for n in range(8)]
    for body in bodies[:1]:
        server.ok("send *", body)
    server.ok("abort *")
    server.wait_state(f"{S}1", "away")
    raw.close_socket()
    back = server.open("1", tls=tls)
    assert server.fence(back) == [bodies[:1]]


def test_a_volatile_socket_ends_with_its_connection_and_takes_its_queue(
        server, waiting):
    raw = server.open()
    before = server.stats()
    waiting.ok("send ack=30 *", "x")
    raw.close_socket()
    assert waiting.acked() == (0, 1, None)
    assert server.rows() == []
    assert moved(before, server.stats(), "forgotten", "dropped") == (1, 0)


def test_tags_survive_a_reconnect(server):
    raw = server.open("id:1")
    server.ok("tag *", "room:7")
    raw.close_socket()
    server.wait_state(f"{S}id:1", "away")
    assert server.ok("send $room:7", "x").number("away") == 1
    back = server.open("id:1")
    assert server.fence(back) == [["x"]]
    assert server.row(f"{S}id:1")["tags"] == {
        "id": "1", "room": "7", "service": MAIN}


# ----- takeover -----------------------------------------------------------

@pytest.mark.parametrize("ttl", [0, 300])
def test_a_takeover_keeps_queue_and_tags(serve, watch, tls, ttl):
    server = serve("--session-ttl", ttl)
    old = server.open("id:1", tls=tls)
    server.ok("tag *", "room:7")
    server.ok("send *", "one")
    assert until_ping(old)[0] == ["one"]
    watcher = watch(server)
    new = server.open("id:1", tls=tls)
    assert old.closed() == (4001, "replaced")
    server.ok("send $room:7", "two")
    assert texts(new, 2)[0] == ["one", "two"]
    assert watcher.events(2) == [("close", f"{S}id:1", 4001),
                                 ("open", f"{S}id:1")]
    # What the old connection still says moves nobody.
    old.frame(CLOSE, wsp.close_payload(4001))
    old.ends()
    server.ok("send *", "three")
    assert texts(new, 1)[0] == ["three"]
    assert server.row(f"{S}id:1")["state"] == "open"


def test_an_old_pong_after_a_takeover_acknowledges_nothing(server):
    old = server.open("1")
    server.ok("send *", "one")
    _, ping = until_ping(old)
    new = server.open("1")
    old.frame(PONG, ping)
    assert old.closed() == (4001, "replaced")
    assert texts(new, 1)[0] == ["one"]
    assert pong(new, ping) is not None
    assert server.row(f"{S}1")["messages"] == 1


def test_a_hundred_takeovers_lose_nothing(server):
    seen = []
    raw = server.open("1")
    for number in range(100):
        server.ok("send *", f"{number}")
        new = server.open("1")
        raw.close_socket()
        raw = new
    while "99" not in seen:
        seen += texts(raw, 1)[0]
    assert seen[-64:] == [str(n) for n in range(36, 100)]


def test_duplicate_reject_leaves_the_queue_with_the_first(serve):
    server = serve("--duplicate", "reject")
    first = server.open("1")
    server.ok("send *", "one")
    answer = server.ask(wsp.request(
        f"/services/{MAIN}?X-StatefulSocketId=1"))
    assert answer.status == 409
    assert texts(first, 1)[0] == ["one"]
    first.close_socket()
    server.wait_state(f"{S}1", "away")
    assert server.fence(server.open("1")) == [["one"]]


# ----- the end of a session, and eviction ---------------------------------

def test_a_session_ends_after_its_time(serve, watch, make_waiting):
    server = serve("--session-ttl", 1)
    stays = server.open("stays")
    server.away("goes")
    waiting, watcher = make_waiting(server), watch(server)
    waiting.ok(f"send ack=60 {S}goes", "x")
    assert watcher.event() == ("forget", f"{S}goes")
    assert waiting.acked() == (0, 1, None)
    assert server.ids() == {f"{S}stays"}
    stats = server.stats()
    assert (stats["forgotten"], stats["dropped"]) == (1, 0)
    stays.heartbeat()
    assert server.fence(server.open("goes")) == [[]]


def test_a_session_of_no_time_ends_with_its_connection(serve, watch):
    server = serve("--session-ttl", 0)
    watcher = watch(server)
    raw = server.open("1")
    raw.say_close()
    assert watcher.events(3) == [("open", f"{S}1"), ("close", f"{S}1", 1000),
                                 ("forget", f"{S}1")]
    server.refused("unknown-socket", f"send {S}1", "x")


def test_a_session_does_not_end_while_it_is_open(serve):
    server = serve("--session-ttl", 1)
    for _ in range(2):
        server.away("1")
        raw = server.open("1")
        time.sleep(1.3)
        raw.heartbeat()
        assert server.row(f"{S}1")["state"] == "open"


def test_a_newcomer_takes_the_row_of_who_has_been_away_longest(serve, watch):
    server = serve("--max-sockets", 3, "--service", MAIN)
    for id in "abc":
        server.away(id)
    server.away("a")  # back, and away again: now b is away longest
    for body in ("1", "2"):
        server.ok("send *", body)
    watcher = watch(server)
    raw = server.open("new")
    assert watcher.events(3) == [("drop", f"{S}b", 2), ("forget", f"{S}b"),
                                 ("open", f"{S}new")]
    stats = server.stats()
    assert (stats["dropped"], stats["forgotten"]) == (2, 0)
    assert server.ids() == {f"{S}{id}" for id in ("a", "c", "new")}
    server.open("n2")
    server.open("n3")
    assert server.ids() == {f"{S}{id}" for id in ("new", "n2", "n3")}
    answer = server.ask(wsp.request(f"/services/{MAIN}"))
    assert answer.status == 503 and answer.get("Retry-After")
    raw.heartbeat()


def test_an_evicted_socket_decides_its_senders_wait(serve, make_waiting):
    server = serve("--max-sockets", 1)
    server.away("1")
    waiting = make_waiting(server)
    waiting.ok("send ack=60 *", "x")
    server.open("2")
    assert waiting.acked() == (0, 1, None)


# ----- ack= ---------------------------------------------------------------

def test_the_second_reply_comes_when_the_client_has_it(server, tls, waiting):
    raw = server.open("1", tls=tls)
    reply = waiting.ok("send ack=30 ref=me *", "x")
    assert (reply.count, reply.ref) == (1, "me")
    got, ping = until_ping(raw)
    beat(raw)
    assert got == ["x"] and waiting.silent()
    raw.frame(PONG, ping)
    assert waiting.acked() == (1, 1, "me")
    assert server.row(f"{S}1")["messages"] == 0


def test_the_second_reply_has_a_ref_only_if_the_request_had(server, waiting):
    client = server.client("1")
    waiting.ok("send ack=30 *", "x")
    assert client.receive() == "x"
    assert waiting.acked() == (1, 1, None)


def test_a_group_is_acknowledged_when_all_have_it(server, waiting):
    clients = [server.open(f"g:1::n:{n}") for n in range(3)]
    clients.append(server.open())
    assert waiting.ok("send ack=30 *", "x").count == 4
    pings = [until_ping(raw)[1] for raw in clients]
    for raw, ping in list(zip(clients, pings))[:-1]:
        pong(raw, ping)
        assert waiting.silent()
    clients[-1].frame(PONG, pings[-1])
    assert waiting.acked() == (4, 4, None)


def test_of_a_group_in_which_one_is_silent_the_others_count(server, waiting):
    clients = [server.open(f"n:{n}") for n in range(3)]
    began = time.monotonic()
    waiting.ok("send ack=1 *", "x")
    for raw in clients[:2]:
        pong(raw, until_ping(raw)[1])
    assert waiting.acked() == (2, 3, None)
    assert time.monotonic() - began > 0.9


def test_of_a_group_in_which_one_goes_the_others_decide(server, waiting):
    clients = [server.open(f"n:{n}") for n in range(2)] + [server.open()]
    waiting.ok("send ack=30 *", "x")
    pings = [until_ping(raw)[1] for raw in clients]
    clients[2].close_socket()
    server.wait_state("/services/x-v-1", None)
    pong(clients[0], pings[0])
    assert waiting.silent()
    server.ok(f"close {S}n:1")
    assert waiting.acked() == (1, 3, None)


def test_an_away_socket_acknowledges_when_it_is_back(server, waiting):
    server.away("1")
    assert waiting.ok("send ack=30 *", "x").number("away") == 1
    client = server.client("1")
    assert client.receive() == "x"
    assert waiting.acked() == (1, 1, None)


def test_an_away_socket_that_stays_away_is_a_timeout(server, waiting):
    server.away("1")
    waiting.ok("send ack=1 ref=r *", "x")
    assert waiting.acked() == (0, 1, "r")
    assert server.row(f"{S}1")["messages"] == 1, "it waits on"
    assert server.fence(server.client("1")) == [["x"]]
    settled(server, f"{S}1")
    assert waiting.silent()


def test_a_connection_that_ends_decides_nothing_while_the_socket_lives(
        server, waiting):
    raw = server.open("1")
    waiting.ok("send ack=30 *", "x")
    until_ping(raw)
    raw.reset()
    server.wait_state(f"{S}1", "away")
    assert waiting.silent()
    client = server.client("1")
    assert client.receive() == "x"
    assert waiting.acked() == (1, 1, None)


def test_a_volatile_client_is_pinged_while_a_sender_waits(server, waiting):
    raw = server.open()
    server.ok("send *", "no ping")
    time.sleep(0.3)
    assert texts(raw, 1)[0] == ["no ping"] and beat(raw) == []
    waiting.ok("send ack=30 *", "x")
    server.ok("send *", "y")
    got, ping = until_ping(raw)
    assert got in (["x"], ["x", "y"])
    raw.frame(PONG, ping)
    assert waiting.acked() == (1, 1, None)
    assert server.rows()[0]["messages"] == 0


def test_a_volatile_socket_keeps_nothing_once_nobody_waits(server, waiting):
    raw = server.open()
    waiting.ok("send ack=1 *", "x")
    server.ok("send *", "y")
    got, ping = until_ping(raw)
    assert got + texts(raw, 2 - len(got))[0] == ["x", "y"]
    assert [row["messages"] for row in server.rows()] == [1]
    assert waiting.acked() == (0, 1, None)
    assert [row["messages"] for row in server.rows()] == [0]
    assert server.stats()["store_bytes"] == 0
    pong(raw, ping)


def test_ok_0_has_no_second_reply(server, waiting):
    assert waiting.ok("send ack=1 $nobody", "x").count == 0
    time.sleep(1.2)
    server.ok("ping")
    assert waiting.silent()


def drop(server):
    for number in range(2):
        server.ok("send *", f"{number}")


DECIDED = {
    "dropped": drop,
    "replaced": lambda server: server.ok("send key=k *", "new"),
    "expired": lambda server: None,
    "forgotten by close": lambda server: server.ok("close *"),
    "evicted": lambda server: [server.open(id) for id in "xy"],
}


@pytest.mark.parametrize("how", DECIDED)
def test_a_message_that_is_lost_is_decided_and_not_acknowledged(
        serve, make_waiting, how):
    server = serve("--queue-messages", 2, "--max-sockets", 2)
    server.away("1")
    waiting = make_waiting(server)
    ttl = "ttl=1 " if how == "expired" else ""
    waiting.ok(f"send {ttl}ack=3600 key=k *", "x")
    DECIDED[how](server)
    assert waiting.acked() == (0, 1, None)


def test_a_written_message_that_yields_is_decided_and_not_acknowledged(
        serve, make_waiting):
    server = serve("--queue-messages", 2)
    raw = server.open("1")
    waiting = make_waiting(server)
    waiting.ok("send ack=3600 *", "x")
    until_ping(raw)
    drop(server)
    assert waiting.acked() == (0, 1, None)
    assert server.stats()["unconfirmed"] == 1


def test_a_socket_that_is_cut_for_its_full_queue_is_not_acknowledged(
        serve, make_waiting):
    """With overflow close the message stays for the reconnect."""
    server = serve("--overflow", "close", "--queue-messages", 2)
    server.away("1")
    waiting = make_waiting(server)
    waiting.ok("send ack=1 *", "x")
    assert waiting.acked() == (0, 1, None)


def test_who_refused_is_not_counted_among_those_who_are_waited_for(
        serve, make_waiting):
    server = serve("--overflow", "refuse", "--queue-messages", 1)
    server.away("full")
    server.ok("send *", "fills it")
    client = server.client("1")
    waiting = make_waiting(server)
    reply = waiting.ok("send ack=30 *", "x")
    assert (reply.count, reply.number("full")) == (1, 1)
    assert client.receive() == "x"
    assert waiting.acked() == (1, 1, None)


def test_after_the_64th_waiter_there_is_no_room_and_nothing_is_queued(
        server, make_waiting):
    server.away("1")
    senders = [make_waiting(server) for _ in range(64)]
    for sender in senders:
        sender.ok(f"send ack=3600 {S}1", "x")
    waiting = make_waiting(server)
    before = server.row(f"{S}1"), server.stats()["messages_taken"]
    waiting.refused("no-room", "send ack=3600 *", "y")
    after = server.row(f"{S}1"), server.stats()["messages_taken"]
    assert {**before[0], "age": 0} == {**after[0], "age": 0}
    assert before[1] == after[1]
    server.ok(f"send {S}1", "without ack= there is room")  # drops the first
    assert senders[0].acked() == (0, 1, None)
    waiting.ok("send ack=3600 *", "y")
    assert senders[1].acked() == (0, 1, None)
    server.ok("close *")
    for sender in [waiting] + senders[2:]:
        assert sender.acked() == (0, 1, None)
    assert waiting.silent()


def test_a_sender_without_an_address_takes_no_waiter(server, make_push,
                                                     waiting):
    server.away("1")
    nobody = make_push(server.path, None)
    for _ in range(70):
        nobody.send("send ack=3600 *", "x")
    waiting.ok("send ack=1 *", "x")
    assert waiting.acked() == (0, 1, None)


def test_a_sender_that_went_away_costs_nothing(server, waiting):
    raw = server.open("1")
    before = server.stats()["replies_lost"]
    for number in range(64):
        with Waiting(server.path) as gone:
            gone.ok("send ack=30 *", f"{number}")
        got, ping = until_ping(raw)
        assert got == [f"{number}"]
        raw.frame(PONG, ping)
    wsp.until(lambda: server.stats()["replies_lost"] - before == 64,
              "all second replies to be lost")
    waiting.ok("send ack=30 *", "x")
    pong(raw, until_ping(raw)[1])
    assert waiting.acked() == (1, 1, None)


# ----- send -w ------------------------------------------------------------

def send(server, *args):
    done = wsp.wspush("send", "-s", server.path, *args)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def test_send_w_exits_0_when_every_browser_has_it(server):
    clients = [server.client("1"), server.client(tls=True)]
    code, said = send(server, "-w", "30", "*", "hello")
    assert code == 0 and "2 of 2" in said
    assert [client.receive() for client in clients] == ["hello"] * 2


def test_send_w_exits_4_when_nobody_is_there(server):
    assert send(server, "-w", "5", "$nobody", "x")[0] == 4
    assert send(server, "-w", "5", f"{S}nobody", "x")[0] == 4


def test_send_w_exits_5_when_not_all_acknowledge_in_time(server):
    server.client("1")
    assert send(server, "-w", "1", "*", "x")[0] == 0
    server.away("2")
    code, said = send(server, "-w", "1", "*", "x")
    assert code == 5 and "1 of 2" in said


def test_send_w_exits_5_when_a_queue_was_full(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 1)
    server.away("full")
    server.ok("send *", "fills it")
    server.client("1")
    code, said = send(server, "-w", "30", "*", "x")
    assert code == 5 and "full" in said


def test_send_w_exits_1_when_no_queue_takes_it(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 1)
    server.away("full")
    server.ok("send *", "fills it")
    assert send(server, "-w", "5", "*", "x")[0] == 1


# ----- Pongs --------------------------------------------------------------

def shifted(ping, by):
    return (number_of(ping) + by).to_bytes(8, "big") + ping[8:]


WRONG = {
    "another nonce": lambda ping: ping[:15] + bytes([ping[15] ^ 1]),
    "a number beyond": lambda ping: shifted(ping, 1),
    "the largest number": lambda ping: b"\xff" * 8 + ping[8:],
    "nothing": lambda ping: b"",
    "the number alone": lambda ping: ping[:8],
    "a byte less": lambda ping: ping[:15],
    "a byte more": lambda ping: ping + b"\0",
    "125 bytes": lambda ping: ping + b"\0" * 109,
    "the nonce first": lambda ping: ping[8:] + ping[:8],
    "an old number": lambda ping: shifted(ping, -2),
    "zero": lambda ping: b"\0" * 8 + ping[8:],
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_pong_acknowledges_nothing_and_ends_nothing(server, what):
    raw = server.open("1")
    server.ok("send *", "acknowledged")
    _, ping = until_ping(raw)
    pong(raw, ping)
    settled(server, f"{S}1")
    with server.pause():
        for text in ("one", "two"):
            wsp.Push(server.path, None).send("send *", text)
    got, ping = until_ping(raw)
    assert got == ["one", "two"]
    before = server.stats()
    pong(raw, WRONG[what](ping))
    assert server.row(f"{S}1")["messages"] == 2
    assert server.stats()["acknowledged"] == before["acknowledged"]
    pong(raw, ping)
    assert server.row(f"{S}1")["messages"] == 0
    assert moved(before, server.stats(), "acknowledged") == (2,)


def test_the_pong_of_another_connection_acknowledges_nothing(server):
    one, two = server.open("1"), server.open("2")
    server.ok("send *", "x")
    pings = [until_ping(raw)[1] for raw in (one, two)]
    assert number_of(pings[0]) == number_of(pings[1])
    assert pings[0] != pings[1], "one nonce for two connections"
    pong(one, pings[1])
    pong(two, pings[0])
    assert [row["messages"] for row in server.rows()] == [1, 1]


def test_a_pong_from_before_the_reconnect_acknowledges_nothing(server):
    raw = server.open("1")
    server.ok("send *", "x")
    _, old = until_ping(raw)
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    raw = server.open("1")
    got, new = until_ping(raw)
    assert got == ["x"]
    assert number_of(new) == number_of(old) and new != old
    pong(raw, old)
    assert server.row(f"{S}1")["messages"] == 1
    pong(raw, new)
    assert server.row(f"{S}1")["messages"] == 0


def test_a_pong_before_any_ping_is_ignored(server):
    raw = server.open("1")
    for payload in (b"", b"\0" * 16, b"x" * 125):
        raw.frame(PONG, payload)
    raw.heartbeat()
    server.ok("send *", "x")
    assert until_ping(raw)[0] == ["x"]


def test_a_pong_counts_once(server):
    raw = server.open("1")
    server.ok("send *", "x")
    _, ping = until_ping(raw)
    before = server.stats()["acknowledged"]
    for _ in range(5):
        pong(raw, ping)
    assert server.stats()["acknowledged"] == before + 1


def test_a_pong_for_an_earlier_number_acknowledges_up_to_it(server):
    """RFC 6455 lets a client answer an older Ping; numbers are cumulative."""
    raw = server.open("1")
    with server.pause():
        for text in "abc":
            wsp.Push(server.path, None).send("send *", text)
    got, ping = until_ping(raw)
    assert got == list("abc")
    pong(raw, shifted(ping, -1))
    assert server.row(f"{S}1")["messages"] == 1
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    assert server.fence(server.open("1")) == [["c"]]


# ----- Pings --------------------------------------------------------------

def test_the_number_is_that_of_the_last_message_before_the_ping(server, tls):
    raw = server.open("1", tls=tls)
    server.ok("send *", "first")
    _, ping = until_ping(raw)
    first, nonce = number_of(ping), ping[8:]
    pong(raw, ping)
    count = 0
    for burst in (1, 5, 2):
        with server.pause():
            for _ in range(burst):
                wsp.Push(server.path, None).send("send *", "x")
        got, ping = until_ping(raw)
        count += len(got)
        assert len(got) == burst
        assert number_of(ping) == first + count
        assert ping[8:] == nonce
        pong(raw, ping)
    assert server.row(f"{S}1")["messages"] == 0


def test_places_in_the_queue_keep_their_numbers_and_leave_holes(server):
    raw = server.open("1")
    server.ok("send *", "first")
    _, ping = until_ping(raw)
    first = number_of(ping)
    pong(raw, ping)
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    for body in ("old", "older", "new"):
        server.ok("send key=k *", body)
    raw = server.open("1")
    got, ping = until_ping(raw)
    assert got == ["new"] and number_of(ping) == first + 3
    raw.close_socket()
    server.wait_state(f"{S}1", "away")
    raw = server.open("1")
    got, ping = until_ping(raw)
    assert got == ["new"] and number_of(ping) == first + 3


def test_a_keepalive_ping_has_the_same_form(serve):
    server = serve("--ping-interval", 1, "--pong-timeout", 5)
    raw, volatile = server.open("1"), server.open()
    for each in (raw, volatile):
        got, ping = until_ping(each)
        assert got == [] and len(ping) == 16
        each.frame(PONG, ping)
    server.ok("send *", "x")
    got, ping = until_ping(raw)
    while not got:
        raw.frame(PONG, ping)
        got, ping = until_ping(raw)
    last = number_of(ping)
    pong(raw, ping)
    _, ping = until_ping(raw)
    assert number_of(ping) == last


def test_one_ping_at_most_is_outstanding(server, tls):
    raw = server.open("1", tls=tls)
    server.ok("send *", "0")
    _, first = until_ping(raw)
    for number in range(1, 20):
        server.ok("send *", f"{number}")
        assert texts(raw, 1) == ([f"{number}"], [])
    time.sleep(0.5)
    assert beat(raw) == []
    assert server.row(f"{S}1")["messages"] == 20
    assert len(pong(raw, first)) <= 1
    if server.row(f"{S}1")["messages"]:
        time.sleep(0.3)


def test_after_the_pong_one_ping_asks_for_all_that_came_meanwhile(server):
    raw = server.open("1")
    server.ok("send *", "0")
    _, first = until_ping(raw)
    for number in range(1, 20):
        server.ok("send *", f"{number}")
    assert texts(raw, 19)[1] == []
    raw.frame(PONG, first)
    got, ping = until_ping(raw)
    assert got == [] and number_of(ping) == number_of(first) + 19
    pong(raw, ping)
    assert server.row(f"{S}1")["messages"] == 0


def test_pings_for_a_trickle_keep_200_ms_between_them(serve):
    server = serve("--queue-messages", 1000)
    raw = server.open("1")
    began, pings = time.monotonic(), 0
    while time.monotonic() < began + 2:
        server.ok("send *", "x")
        _, more = texts(raw, 1)
        more += beat(raw)
        for ping in more:
            raw.frame(PONG, ping)
        pings += len(more)
        time.sleep(0.01)  # a queue half full is another story
    spent = time.monotonic() - began
    assert 2 <= pings <= spent / 0.2 + 2, (pings, spent)


def test_a_queue_half_full_is_pinged_for_at_once(serve):
    server = serve("--queue-messages", 8, "--ping-interval", 0)
    raw = server.open("1")
    began = time.monotonic()
    for _ in range(30):
        with server.pause():
            for _ in range(4):
                wsp.Push(server.path, None).send("send *", "x")
        got, ping = until_ping(raw)
        assert got == ["x"] * 4
        pong(raw, ping)
    assert time.monotonic() - began < 30 * 0.2 / 2


def test_a_waiting_sender_is_not_kept_waiting_for_the_200_ms(
        server, waiting):
    client = server.client("1")
    began = time.monotonic()
    for _ in range(40):
        waiting.ok("send ack=30 *", "x")
        assert waiting.acked() == (1, 1, None)
        assert client.receive() == "x"
    assert time.monotonic() - began < 40 * 0.2 / 2


def test_a_client_that_is_always_behind_is_pinged_all_the_same(serve):
    """Its queue never runs empty, and still it acknowledges."""
    server = serve("--store-bytes", 4 << 20, "--queue-bytes", 1 << 20)
    raw = server.open("1", receive_buffer=4096)
    body = "x" * 16000
    while server.row(f"{S}1")["drops"] == 0:
        server.ok("send *", body)
    pings = []
    for _ in range(200):
        more = texts(raw, 1)[1]
        for ping in more:
            raw.frame(PONG, ping)
        pings += more
        server.ok("send *", body)
        if len(pings) > 2:
            break
    assert len(pings) > 2, "200 messages, and hardly a Ping between them"
    assert server.row(f"{S}1")["messages"] > 30


# ----- a client that does not answer --------------------------------------

def test_a_dead_client_is_cut_without_a_close_frame(serve, watch):
    server = serve("--ping-interval", 1, "--pong-timeout", 1)
    raw = server.open("1")
    watcher = watch(server)
    server.ok("send *", "x")
    while True:
        try:
            assert raw.next_frame().opcode in (PING, wsp.TEXT)
        except wsp.Gone:
            break
    assert watcher.event() == ("close", f"{S}1", 1006)
    row = server.row(f"{S}1")
    assert (row["state"], row["messages"]) == ("away", 1)
    assert "--ack sent" in server.wait_log("no-pong")
    assert server.stats()["pongs_missed"] == 1


def test_any_byte_proves_a_client_alive(serve):
    server = serve("--ping-interval", 1, "--pong-timeout", 1)
    raw = server.open("1")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        beat(raw)
        time.sleep(0.2)
    assert server.row(f"{S}1")["state"] == "open"


def test_without_an_interval_no_ping_closes(serve):
    server = serve("--ping-interval", 0, "--pong-timeout", 1)
    raw = server.open("1")
    server.ok("send *", "x")
    until_ping(raw)
    time.sleep(3)
    beat(raw)
    assert server.row(f"{S}1")["state"] == "open"


def test_who_swallows_pongs_does_not_break_live_delivery(serve):
    """A proxy that passes everything but Pongs: what is new arrives, the
    queue stays bounded, and the log says what was noticed."""
    server = serve("--ping-interval", 1, "--pong-timeout", 1)
    raw, other = server.open("1"), server.open("2")
    reader = delivery.Reader(other)
    end, number = time.monotonic() + 4, 0
    pings = 0
    while time.monotonic() < end or number < 300:
        server.ok("send *", f"{number}")
        got, more = texts(raw, 1)
        assert got == [f"{number}"]
        pings += len(more) + len(beat(raw))
        number += 1
        time.sleep(0.005)
    assert pings <= 8, "only a keepalive Ping replaces one unanswered"
    row = server.row(f"{S}1")
    assert row["messages"] == 64 and row["drops"] == 0
    stats = server.stats()
    assert stats["unconfirmed"] == number - 64 and stats["dropped"] == 0
    line = server.wait_log("no-pong")
    assert f"{S}1" in line and "--ack sent" in line
    reader.wait(number)
    assert reader.texts() == [str(n) for n in range(number)]
    assert len([each for each in server.log if "no-pong" in each]) == 1


# ----- --ack sent ---------------------------------------------------------

@pytest.mark.parametrize("options, service", [
    (["--ack", "sent"], MAIN),
    (["--service", "s,ack=sent"], "s"),
    (["--ack", "sent", "--service", "s"], "s")])
def test_with_ack_sent_written_is_acknowledged(serve, make_waiting, options,
                                               service, tls):
    server = serve(*options)
    raw = server.open("1", service, tls=tls)
    waiting = make_waiting(server)
    waiting.ok("send ack=30 *", "x")
    assert waiting.acked() == (1, 1, None)
    assert texts(raw, 1) == (["x"], [])
    assert server.row(sid("1", service))["messages"] == 0
    stats = server.stats()
    assert (stats["delivered"], stats["acknowledged"]) == (1, 1)
    time.sleep(0.3)
    assert beat(raw) == [], "nobody has use for a Ping"
    raw.close_socket()
    server.wait_state(sid("1", service), "away")
    waiting.ok("send ack=30 *", "kept")
    back = server.open("1", service)
    assert waiting.acked() == (1, 1, None)
    assert server.fence(back) == [["kept"]]


def test_a_service_may_want_pongs_where_the_others_do_not(serve):
    server = serve("--ack", "sent", "--service", MAIN, "--service",
                   "p,ack=pong")
    pinged, other = server.open("1", "p"), server.open("1")
    server.ok("send *", "x")
    assert until_ping(pinged)[0] == ["x"]
    assert texts(other, 1) == (["x"], [])
    assert server.row(sid("1", "p"))["messages"] == 1
    assert server.row(sid("1"))["messages"] == 0


def test_with_ack_sent_no_unanswered_ping_closes(serve):
    server = serve("--service", MAIN, "--service", "s,ack=sent",
                   "--ping-interval", 1, "--pong-timeout", 1)
    sent, other = server.open("1", "s"), server.open("1")
    while True:
        try:
            other.next_frame()
        except wsp.Gone:
            break
    time.sleep(2)
    server.ok("send =open", "still here")
    got, pings = texts(sent, 1)
    assert got == ["still here"]
    assert len(pings) >= 2, "keepalive Pings go on"


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="no /proc")
def test_a_stalled_client_is_not_cut_for_a_ping_that_has_not_left(serve):
    """Without an interval nothing else would cut it; its Ping waits behind
    what the kernel holds."""
    server = serve("--ping-interval", 0, "--pong-timeout", 1)
    raw = server.open("1", receive_buffer=4096)
    while server.row(f"{S}1")["drops"] == 0:
        server.ok("send *", "x" * 8000)
    time.sleep(2.5)
    assert server.row(f"{S}1")["state"] == "open"
    raw.close_socket()
