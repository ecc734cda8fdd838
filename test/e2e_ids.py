# SPDX-License-Identifier: MIT
"""Socket ids: what the client asks for, what it gets, who takes whom over."""
import re
import time
from urllib.parse import quote

import pytest

import wsp
from wsp import MAIN

SERVER = ["--service", MAIN, "--service", "a", "--service", "b"]
GUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


# ----- volatile -----------------------------------------------------------

@pytest.mark.parametrize("query", [
    "", "?X-StatefulSocketId=", "?other=1", "?a=1&X-StatefulSocketId=&b=2",
    "?x-statefulsocketid="])
def test_without_an_id_the_socket_is_volatile(server, query):
    server.open(query=query)
    [row] = server.rows()
    assert re.fullmatch(f"/services/{MAIN}-v-{GUID}", row["socketId"])


def test_no_two_volatile_ids_are_alike(server):
    for _ in range(50):
        server.open()
    assert len(server.ids()) == 50


def test_a_volatile_socket_ends_with_its_connection(server, tls):
    for leave in (lambda raw: raw.say_close(1000), wsp.Raw.close_socket,
                  wsp.Raw.reset):
        raw = server.open(tls=tls)
        [socket_id] = server.ids()
        leave(raw)
        server.wait_state(socket_id, None)
        server.refused("unknown-socket", f"send {socket_id}", "late")


# ----- stateful -----------------------------------------------------------

@pytest.mark.parametrize("query, want", [
    ("?X-StatefulSocketId=123", "123"),
    ("?x-statefulsocketid=123", "123"),
    ("?X-STATEFULSOCKETID=123", "123"),
    ("?a=b&X-StatefulSocketId=123&c=d", "123"),
    ("?X-StatefulSocketIdX=9&X-StatefulSocketId=123", "123"),
    ("?X-StatefulSocketId=a+b", "a+b"),
    ("?X-StatefulSocketId=a%2Bb", "a+b"),
    ("?X-StatefulSocketId=a%26b", "a&b"),
    ("?X-StatefulSocketId=a=b", "a=b"),
    ("?X-StatefulSocketId=a%3Db", "a=b"),
    ("?X-StatefulSocketId=a%2Fb/c", "a/b/c"),
    ("?X-StatefulSocketId=%2500", "%00"),
    ("?X-StatefulSocketId=id%3A1", "id:1"),
    ("?X-StatefulSocketId=%d0%9f%D1%80%D0%b8", "При"),
    ("?X-StatefulSocketId=%F0%9F%9A%80", "\U0001f680"),
    ("?X-StatefulSocketId=%C2%A0", "\u00a0"),
    ("?X-StatefulSocketId=%E2%80%A8", "\u2028"),
    ("?X-StatefulSocketId=%EF%BF%BF", "\uffff"),
    ("?X-StatefulSocketId=%F4%8F%BF%BF", "\U0010ffff"),
    ("?X-StatefulSocketId=%21%7E", "!~"),
    ("?X-StatefulSocketId=-s-1", "-s-1"),
    ("?X-StatefulSocketId=" + "x" * 128, "x" * 128),
    ("?X-StatefulSocketId=" + "%D0%9F" * 64, "П" * 64)])
def test_a_stateful_id_is_the_decoded_value(server, query, want):
    raw = server.open(query=query)
    [row] = server.rows()
    assert row["socketId"] == f"/services/{MAIN}-s-{want}"
    assert server.ok(f"send {row['socketId']}", "hello").count == 1
    assert raw.read_text() == "hello"


REFUSED = {
    "given twice": "X-StatefulSocketId=1&X-StatefulSocketId=1",
    "given twice in two cases": "X-StatefulSocketId=1&x-statefulsocketid=2",
    "129 bytes": "X-StatefulSocketId=" + "x" * 129,
    "129 decoded bytes": "X-StatefulSocketId=x" + "%D0%9F" * 64,
    "a space": "X-StatefulSocketId=a%20b",
    "a tab": "X-StatefulSocketId=%09",
    "a line feed": "X-StatefulSocketId=a%0A",
    "a NUL": "X-StatefulSocketId=a%00b",
    "U+0001": "X-StatefulSocketId=%01",
    "U+001F": "X-StatefulSocketId=%1F",
    "U+007F": "X-StatefulSocketId=%7F",
    "U+0080": "X-StatefulSocketId=%C2%80",
    "U+009F": "X-StatefulSocketId=%C2%9F",
    "a lone byte": "X-StatefulSocketId=%FF",
    "a lone continuation": "X-StatefulSocketId=%80",
    "a cut character": "X-StatefulSocketId=%D0",
    "a character cut by another": "X-StatefulSocketId=%C3%28",
    "an overlong form": "X-StatefulSocketId=%C0%AF",
    "a long overlong form": "X-StatefulSocketId=%E0%80%AF",
    "a surrogate": "X-StatefulSocketId=%ED%A0%80",
    "beyond U+10FFFF": "X-StatefulSocketId=%F4%90%80%80",
    "a percent alone": "X-StatefulSocketId=100%",
    "half an escape": "X-StatefulSocketId=a%2",
    "an escape that is not hex": "X-StatefulSocketId=%G1",
    "an escape cut by &": "X-StatefulSocketId=%2&a=b",
    "a tag name of 33": "X-StatefulSocketId=" + "n" * 33 + ":v",
    "a tag value of 97": "X-StatefulSocketId=n:" + "v" * 97,
    "17 tags": "X-StatefulSocketId=" + "::".join(f"n{i}:v" for i in range(17)),
}


@pytest.mark.parametrize("query", REFUSED.values(), ids=REFUSED)
def test_a_bad_id_is_400_with_a_sentence_and_makes_no_socket(server, query):
    before = server.stats()["sockets_open"]
    answer = server.ask(wsp.request(f"/services/{MAIN}?{query}"))
    assert answer.status == 400
    assert answer.get("Content-Type").startswith("text/plain")
    text = answer.body.decode().strip()
    assert re.fullmatch(r"\S+( \S+){2,}", text), text
    assert server.rows() == []
    assert server.stats()["sockets_open"] == before


def test_the_sentences_say_which_rule_was_broken(server):
    said = {name: server.ask(wsp.request(f"/services/{MAIN}?{query}")).body
            for name, query in REFUSED.items()}
    names = ["given twice", "129 bytes", "a space", "a percent alone",
             "17 tags", "a tag name of 33"]
    assert len({said[name] for name in names}) == len(names), said


def test_the_limits_of_tags_in_an_id_are_reached(server):
    name, value = "n" * 32, "v" * 94
    most = "::".join(f"n{i}:v" for i in range(16))
    server.open(f"{name}:{value}")
    server.open(most)
    tags = {row["socketId"]: row["tags"] for row in server.rows()}
    assert tags == {
        f"/services/{MAIN}-s-{name}:{value}": {"service": MAIN, name: value},
        f"/services/{MAIN}-s-{most}": {
            "service": MAIN, **{f"n{i}": "v" for i in range(16)}}}


@pytest.mark.parametrize("id, want", [
    ("plain", {}),
    ("id:10001::group_id:10002", {"id": "10001", "group_id": "10002"}),
    ("a:b:c", {"a": "b:c"}),
    ("a:", {"a": ""}),
    ("a:1::a:2", {"a": "2"}),
    ("x::a:1", {"a": "1"}),
    ("a:1::x", {"a": "1"}),
    (":v", {}),
    ("-a:1::b:2", {"b": "2"}),
    ("service:evil::b:2", {"b": "2"}),
    ("a:1::::b:2", {"a": "1", "b": "2"}),
    ("v:" + "v" * 96, {"v": "v" * 96}),
    ("город:Москва", {"город": "Москва"})])
def test_an_id_of_pairs_gives_tags(server, id, want):
    server.open(quote(id, safe=":"))
    [row] = server.rows()
    assert row["tags"] == {"service": MAIN, **want}


def test_the_same_id_on_two_services_is_two_sockets(server):
    on_a = server.open("7", service="a")
    on_b = server.open("7", service="b")
    assert server.ids() == {"/services/a-s-7", "/services/b-s-7"}
    server.ok("send /services/a-s-7", "for a")
    server.ok("send /services/b-s-7", "for b")
    assert server.fence(on_a, on_b) == [["for a"], ["for b"]]


# ----- takeover -----------------------------------------------------------

def test_a_second_connection_takes_the_socket_over(server, tls):
    first = server.open("id:1::g:2", tls=tls)
    [before] = server.rows()
    second = server.open("id:1::g:2", tls=tls)
    assert first.closed() == (4001, "replaced")
    [after] = server.rows()
    assert after["socketId"] == before["socketId"]
    assert after["tags"] == before["tags"]
    assert after["peer"] == second.name
    server.ok("send $g:2", "to the second")
    assert second.read_text() == "to the second"


def test_the_late_end_of_the_old_connection_does_not_harm_the_new(server):
    ways = (lambda raw: raw.frame(wsp.CLOSE, wsp.close_payload(4001)),
            lambda raw: raw.frame(wsp.PONG, b"x"),
            wsp.Raw.reset, wsp.Raw.close_socket)
    for number, late in enumerate(ways):
        first = server.open(f"late{number}")
        second = server.open(f"late{number}")
        assert first.closed() == (4001, "replaced")
        late(first)
        second.heartbeat()
        reply = server.ok(f"send /services/{MAIN}-s-late{number}", "still")
        assert reply.number("open") == 1
        assert second.read_text() == "still"


def test_ten_takeovers_in_a_row_leave_one_socket_and_the_last_client(server):
    clients = [server.open("again") for _ in range(10)]
    for old in clients[:-1]:
        assert old.closed() == (4001, "replaced")
    assert len(server.rows()) == 1
    assert server.fence(clients[-1]) == [[]]


def test_a_socket_that_is_taken_over_survives_a_session_ttl_of_0(serve):
    server = serve("--session-ttl", 0)
    first = server.open("id:1::g:2")
    age = server.row(f"/services/{MAIN}-s-id:1::g:2")["age"]
    second = server.open("id:1::g:2")
    assert first.closed() == (4001, "replaced")
    [row] = server.rows()
    assert row["age"] >= age and row["tags"]["g"] == "2"
    assert server.fence(second) == [[]]
    assert server.stats()["forgotten"] == 0
    second.close_socket()
    server.wait_state(row["socketId"], None)


def test_with_duplicate_reject_the_newcomer_gets_409(serve):
    server = serve("--duplicate", "reject")
    first = server.open("7")
    answer = server.ask(wsp.request(
        f"/services/{MAIN}?X-StatefulSocketId=7"))
    assert answer.status == 409
    assert answer.body.strip()
    assert server.fence(first) == [[]]
    first.say_close(1000)
    server.wait_state(f"/services/{MAIN}-s-7", "away")
    server.open("7")
    assert server.row(f"/services/{MAIN}-s-7")["state"] == "open"


# ----- away ---------------------------------------------------------------

def test_nothing_queued_for_an_away_socket_is_lost(server, tls):
    socket_id = server.away("back")
    for number in range(5):
        reply = server.ok(f"send {socket_id}", f"message {number}")
        assert reply.count == 1
        assert (reply.number("open"), reply.number("away")) == (0, 1)
    row = server.row(socket_id)
    assert (row["state"], row["messages"], row["bytes"], row["peer"]) == (
        "away", 5, 45, None)
    back = server.open("back", tls=tls)
    assert server.fence(back) == [[f"message {n}" for n in range(5)]]


def test_an_away_socket_is_forgotten_after_the_session_ttl(serve):
    server = serve("--session-ttl", 1)
    began = time.monotonic()
    socket_id = server.away("brief")
    server.wait_state(socket_id, None)
    assert time.monotonic() - began >= 1
    server.refused("unknown-socket", f"send {socket_id}", "late")


def test_a_reconnect_stops_the_clock_of_an_away_socket(serve):
    server = serve("--session-ttl", 1)
    server.away("kept")
    server.away("other")  # its end comes after the one that is stopped
    kept = server.open("kept")
    server.wait_state(f"/services/{MAIN}-s-other", None)
    assert server.row(f"/services/{MAIN}-s-kept")["state"] == "open"
    kept.heartbeat()


def test_with_a_session_ttl_of_0_an_away_socket_is_forgotten_at_once(serve):
    server = serve("--session-ttl", 0)
    raw = server.open("gone")
    raw.say_close(1000)
    server.wait_state(f"/services/{MAIN}-s-gone", None)


def test_in_a_full_table_the_socket_that_is_away_longest_gives_way(serve):
    server = serve("--max-sockets", 3)
    server.open("stays")
    oldest = server.away("first")
    second = server.away("second")
    server.ok(f"send {oldest}", "lost with its socket")
    server.open("newcomer")
    assert server.ids() == {f"/services/{MAIN}-s-stays", second,
                            f"/services/{MAIN}-s-newcomer"}
    assert server.stats()["dropped"] == 1
    server.open("another")
    answer = server.ask(wsp.request(f"/services/{MAIN}"))
    assert answer.status == 503
    assert server.ids() == {f"/services/{MAIN}-s-{id}"
                            for id in ("stays", "newcomer", "another")}
