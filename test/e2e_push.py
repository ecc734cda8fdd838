# SPDX-License-Identifier: MIT
"""The push socket: every verb, every reply, every refusal."""
import ctypes
import json
import os
import re
import socket
import struct
import subprocess

import pytest

import wsp
from wsp import MAIN

SERVER = ["--service", MAIN, "--service", "other"]
S = f"/services/{MAIN}-s-"

# What a refused request must not move.
COUNTERS = """sockets_open sockets_away connections handshakes_full
    handshakes_resumed messages_taken delivered acknowledged dropped replaced
    expired unconfirmed forgotten replies_lost events_lost store_bytes
    """.split()
STATS = COUNTERS + "refused store_bytes_max cert_days uptime".split()


def state_of(server):
    stats = server.stats()
    rows = [{k: v for k, v in row.items() if k != "age"}
            for row in server.rows()]
    return rows, {name: stats[name] for name in COUNTERS}


# ----- send ---------------------------------------------------------------

def test_send_queues_on_every_selected_socket_and_says_how_many(server):
    clients = [server.open(), server.open("1")]
    server.away("2")
    reply = server.ok("send *", "hello")
    assert (reply.count, reply.number("open"), reply.number("away"),
            reply.number("full")) == (3, 2, 1, 0)
    assert reply.body == b""
    assert server.fence(*clients) == [["hello"], ["hello"]]


def test_send_to_a_filter_that_selects_none_is_ok_0(server):
    assert server.ok("send $nobody", "hello").count == 0
    assert server.ok("send *", "hello").count == 0


@pytest.mark.parametrize("body", [
    "", "x", "\n", "two\nlines\n", " leading and trailing ", "П" * 100,
    "x" * 125, "x" * 126, "x" * 65535, "x" * 65536, "\x00", "\ufeff"])
def test_a_text_arrives_byte_for_byte(server, tls, body):
    raw = server.open(tls=tls)
    assert server.ok("send *", body).count == 1
    assert raw.message() == (wsp.TEXT, body.encode())


@pytest.mark.parametrize("body", [
    b"", b"\xff\xfe\x00", bytes(range(256)), b"\n\n", os.urandom(65536)],
    ids=["empty", "not UTF-8", "every byte", "line feeds", "64 KiB"])
def test_a_binary_arrives_byte_for_byte(server, tls, body):
    raw = server.open(tls=tls)
    assert server.ok("send kind=binary *", body).count == 1
    assert raw.message() == (wsp.BINARY_FRAME, body)


def test_the_line_feed_may_be_left_out_when_there_is_no_body(server):
    raw = server.open()
    assert server.ok(b"send *").count == 1
    assert raw.message() == (wsp.TEXT, b"")
    assert server.ok(b"ping").count == 0


def test_messages_of_one_sender_keep_their_order(server, tls):
    raw = server.open(tls=tls)
    with wsp.Push(server.path, bind=None) as sender:
        for number in range(500):
            sender.send("send *", f"{number}")
            if number % 50 == 49:
                got = [raw.read_text() for _ in range(50)]
                assert got == [str(n) for n in range(number - 49, number + 1)]


def test_a_burst_that_meets_one_turn_is_taken_whole(server):
    raw = server.open()
    with wsp.Push(server.path, bind=None) as sender, server.pause():
        for number in range(10):
            sender.send("send *", f"{number}")
    assert server.fence(raw) == [[str(n) for n in range(10)]]


def test_a_long_burst_to_a_client_that_reads_loses_nothing(server):
    """More than the queue holds, faster than the client is asked for."""
    raw = server.open()
    before = server.stats()["dropped"]
    with wsp.Push(server.path, bind=None) as sender:
        for number in range(300):
            sender.send("send *", f"{number}")
    assert server.fence(raw) == [[str(n) for n in range(300)]]
    assert server.stats()["dropped"] == before


# ----- replies ------------------------------------------------------------

def test_ping_answers_ok_0(server):
    reply = server.ok("ping")
    assert reply.raw == b"ok 0\n"
    assert server.ok("ping", "a body nobody asked for").raw == b"ok 0\n"


@pytest.mark.parametrize("header", [
    "ping ref=R", "list ref=R", "list ref=R *", "stats ref=R",
    "send kind=text ref=R *", "send ref=R kind=text *", "close ref=R *",
    "abort ref=R *"])
@pytest.mark.parametrize("ref", ["a", "=", "r" * 64, "id:1,$*/"])
def test_a_ref_is_repeated_in_the_reply(server, header, ref):
    assert server.ok(header.replace("ref=R", f"ref={ref}")).ref == ref


def test_without_a_ref_there_is_none_in_the_reply(server):
    assert server.ok("ping").ref is None
    assert server.refused("bad-target", "send").ref is None


@pytest.mark.parametrize("code, header, ref", [
    ("unknown-verb", "frobnicate ref=r *", "r"),
    ("bad-option", "ping ref=r what=1", "r"),
    ("bad-option", "ping what=1 ref=r", "r"),
    ("bad-option", "ping what ref=r", "r"),
    ("bad-option", "ping ref=first ref=second", "first"),
    ("bad-option", "ping ref= ref=second", "second"),
    ("bad-option", "ping ref=" + "r" * 65 + " ref=second", "second"),
    ("bad-target", "send ref=r", "r"),
    ("bad-target", "send ref=r $", "r"),
    ("bad-target", "send * ref=r", None),
    ("bad-utf8", "send ref=r *", "r"),
    ("unknown-socket", f"abort ref=r {S}nobody", "r"),
    ("bad-request", "ping\0ref=r", None),
    ("bad-request", "ping ref=r " + " " * 1024 + "a=1", None)])
def test_a_refusal_repeats_the_first_good_ref_before_the_target(
        server, code, header, ref):
    assert server.refused(code, header, b"\xff").ref == ref


def test_a_sender_bound_to_a_path_or_an_abstract_name_gets_replies(
        server, make_push):
    assert make_push(server.path, str(server.dir / "me"))("ping").count == 0
    name = f"\0wspush-test-{os.getpid()}"
    assert make_push(server.path, name)("ping").count == 0


def test_a_path_of_108_bytes_is_an_address_too(server):
    """It has no zero at its end, which the kernel counts all the same."""
    path = str(server.dir / ("x" * 108)).encode()[:108]
    libc = ctypes.CDLL(None, use_errno=True)
    with wsp.Push(server.path, bind=None) as push:
        address = struct.pack("=H", socket.AF_UNIX) + path
        assert libc.bind(push.socket.fileno(), address, len(address)) == 0
        assert push("ping").count == 0
        assert push("watch *").count == 0
        server.open("1").close_socket()
        assert push.socket.recv(1000) == f"open {S}1".encode()


def test_a_sender_without_an_address_gets_none_and_is_served(
        server, make_push):
    raw = server.open()
    nobody = make_push(server.path, None)
    nobody.send("send *", "from nobody")
    assert raw.read_text() == "from nobody"
    assert nobody.silent()


@pytest.mark.parametrize("data, code", [
    (b"frobnicate *", "unknown-verb"), (b"send kind=xml *\nx", "bad-option"),
    (b"send $\nx", "bad-target"), (b"send *\n\xff", "bad-utf8"),
    (b"pi\0ng", "bad-request")])
def test_what_a_sender_without_an_address_did_wrong_is_logged(
        server, make_push, data, code):
    before = len(server.log)
    make_push(server.path, None).send(data)
    assert "\0" not in server.wait_log(code, after=before)


def test_a_sender_that_never_reads_does_not_hold_up_the_others(
        server, make_push):
    raw = server.open()
    deaf = make_push(server.path)
    depth = int(open("/proc/sys/net/unix/max_dgram_qlen").read())
    for _ in range(depth + 100):
        deaf.send("ping")
    assert server.ok("send *", "the others").count == 1
    assert raw.read_text() == "the others"
    assert server.stats()["replies_lost"] > 0


def test_a_sender_that_died_is_no_matter(server):
    for _ in range(20):
        with wsp.Push(server.path) as gone, server.pause():
            gone.send("stats")
            gone.close()
        assert server.ok("ping").count == 0


def test_a_shell_with_nothing_but_socat_can_ask_and_read_the_reply(server):
    server.away("1")
    done = subprocess.run(
        ["socat", "-t1", "-", f"UNIX-SENDTO:{server.path},"
         f"bind={server.dir}/socat"], input=b"send *\nfrom socat",
        capture_output=True, timeout=2 * wsp.PATIENCE, check=True)
    assert wsp.Reply(done.stdout).count == 1


# ----- refusals -----------------------------------------------------------

LONG = "x" * 65537
REFUSALS = [
    ("bad-request", b"", None),
    ("bad-request", b"\n", None),
    ("bad-request", b"   ", b""),
    ("bad-request", b"", b"a body alone"),
    ("bad-request", b"send\0 *", b"x"),
    ("bad-request", b"send *\0", b"x"),
    ("bad-request", "list" + " " * 1020 + "*", None),
    ("bad-request", "list" + " " * 1020 + "*", b"x"),
    ("bad-request", b"p" * 5000, None),
    ("unknown-verb", "frobnicate", None),
    ("unknown-verb", "sen *", "x"),
    ("unknown-verb", "sends *", "x"),
    ("bad-option", "send what=1 *", "x"),
    ("bad-option", "send what *", "x"),
    ("bad-option", "send kind *", "x"),
    ("bad-option", "send kind=text kind=text *", "x"),
    ("bad-option", "send kind=xml *", "x"),
    ("bad-option", "send kind= *", "x"),
    ("bad-option", "send kind=TEXT *", "x"),
    ("bad-option", "send format=json *", "x"),
    ("bad-option", "send ref= *", "x"),
    ("bad-option", "send ref=" + "r" * 65 + " *", "x"),
    ("bad-option", "list kind=text", None),
    ("bad-option", "list format=xml", None),
    ("bad-option", "list format=json format=json", None),
    ("bad-option", "list from=abc", None),
    ("bad-option", "list from=", None),
    ("bad-option", "list from=1x", None),
    ("bad-option", "stats format=xml", None),
    ("bad-option", "stats from=1", None),
    ("bad-option", "ping format=text", None),
    ("bad-option", "abort code=1000 *", None),
    ("bad-option", "close kind=text *", None),
    *[("bad-option", f"close code={code} *", None) for code in (
        "", "x", "0", "-1", "999", "1004", "1005", "1006", "1015", "1016",
        "2000", "2999", "5000", "65536", "66536", "4294968296", "1000x",
        "1e3")],
    ("bad-target", "send", "x"),
    ("bad-target", "send kind=text", "x"),
    ("bad-target", "close", None),
    ("bad-target", "abort", None),
    ("bad-target", "stats *", None),
    ("bad-target", "ping *", None),
    ("bad-target", "ping =open", None),
    ("bad-target", "send * what", "x"),
    ("bad-target", "send * kind=text", "x"),
    ("bad-target", "send /services/absent", "x"),
    ("bad-target", "send /services/absent-s-1", "x"),
    ("bad-target", "send =closed", "x"),
    ("bad-target", "list $", None),
    ("too-big", "send *", LONG),
    ("too-big", "send kind=json *", LONG),
    ("too-big", "send kind=binary *", LONG),
    ("too-big", "send kind=json *", '"' * 40000),
    ("too-big", "close *", "r" * 124),
    ("bad-utf8", "send *", b"\xff"),
    ("bad-utf8", "send *", b"cut \xd0"),
    ("bad-utf8", "send kind=json *", b'"\xed\xa0\x80"'),
    ("bad-utf8", "close *", b"\xc0\x80"),
    ("unknown-socket", f"send {S}nobody", "x"),
    ("unknown-socket", f"send {S}KNOWN", "x"),
    ("unknown-socket", "send /services/other-s-known", "x"),
    ("unknown-socket", f"send {S}nobody =open", "x"),
    ("unknown-socket", f"close {S}nobody", None),
    ("unknown-socket", f"abort {S}nobody", None),
    ("unknown-socket",
     f"send /services/{MAIN}-v-00000000-0000-4000-8000-000000000000", "x"),
]


@pytest.mark.parametrize("code, header, body", REFUSALS)
def test_a_refused_request_changes_nothing(server, code, header, body):
    open_one = server.open("known")
    server.away("away")
    server.ok(f"send {S}away", "kept")
    before = state_of(server)
    reply = server.refused(code, header, body)
    assert re.fullmatch(r"[ -~]+", reply.head), reply.head
    assert state_of(server) == before
    assert server.fence(open_one) == [[]]


@pytest.mark.parametrize("code, header, body", [
    ("bad-request", "frobnicate " + "a=1 " * 300, "x"),
    ("bad-request", "frob\0nicate a", "x"),
    ("unknown-verb", "frobnicate what $", LONG),
    ("bad-option", "send what=1", LONG),
    ("bad-option", "send what=1 $", LONG),
    ("bad-option", "close code=1 $", b"\xff"),
    ("bad-option", f"send kind=xml {S}nobody", b"\xff"),
    ("bad-target", "send $", LONG),
    ("bad-target", "send $", b"\xff"),
    ("bad-target", "close", "r" * 124),
    ("too-big", f"send {S}nobody", LONG),
    ("too-big", f"send {S}nobody", b"\xff" * 65537),
    ("too-big", f"close {S}nobody", b"\xff" * 124),
    ("bad-utf8", f"send {S}nobody", b"\xff"),
    ("bad-utf8", f"close {S}nobody", b"\xff")])
def test_of_two_mistakes_the_earlier_check_answers(
        server, code, header, body):
    server.refused(code, header, body)


def test_a_header_line_of_1024_bytes_is_taken(server):
    server.away("1")
    line = "list" + " " * 1019 + "*"
    assert len(line) == 1024
    assert server.ok(line).count == 1
    assert server.ok(line, "").count == 1


def test_spaces_between_tokens_may_be_many(server):
    raw = server.open("g:1")
    assert server.ok("send   kind=text   $g:1   =open", "x").count == 1
    assert raw.read_text() == "x"


def test_a_socket_that_exists_but_fails_another_term_is_ok_0(server):
    raw = server.open("1")
    for verb in ("send", "close", "abort"):
        assert server.ok(f"{verb} {S}1 =away").count == 0
    assert server.fence(raw) == [[]]


def test_max_message_bounds_the_body_and_its_escaped_form(serve):
    server = serve("--max-message", 100, "--queue-bytes", 1000)
    raw = server.open()
    server.ok("send *", "x" * 100)
    server.refused("too-big", "send *", "x" * 101)
    server.ok("send kind=json *", '"' * 49)  # 98 and the two quotes
    server.refused("too-big", "send kind=json *", '"' * 50)
    number = "1".rjust(100)
    server.ok("send kind=json *", number)
    server.refused("too-big", "send kind=json *", " " + number)
    got = server.fence(raw)[0]
    assert got[0] == "x" * 100
    assert sum(map(json.loads, got[1:]), []) == ['"' * 49, 1]


def test_queue_full_is_for_a_message_that_nobody_could_take(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 2)
    full = server.away("full")
    for number in range(2):
        assert server.ok(f"send {full}", f"{number}").count == 1
    before = state_of(server)
    server.refused("queue-full", f"send {full}", "2")
    server.refused("queue-full", "send *", "2")
    assert state_of(server) == before
    other = server.open("other")
    reply = server.ok("send *", "for the other")
    assert (reply.count, reply.number("open"), reply.number("away"),
            reply.number("full")) == (1, 1, 0, 1)
    assert other.read_text() == "for the other"
    back = server.open("full")
    assert [back.read_text() for _ in range(2)] == ["0", "1"]


def test_a_queue_is_bounded_by_bytes_too(serve):
    server = serve("--overflow", "refuse", "--queue-bytes", 1000,
                   "--max-message", 1000)
    full = server.away("full")
    server.ok(f"send {full}", "x" * 600)
    server.refused("queue-full", f"send {full}", "y" * 401)
    server.ok(f"send {full}", "z" * 400)
    server.refused("queue-full", f"send {full}", "z")
    assert server.row(full)["bytes"] == 1000


def test_no_room_is_for_a_store_whose_holders_refuse_to_yield(serve):
    size = 16000
    server = serve("--overflow", "refuse", "--max-message", 16384,
                   "--queue-bytes", 16384, "--store-bytes", 65536)
    took = 0
    for number in range(8):
        socket_id = server.away(f"n{number}")
        before = state_of(server)
        reply = server.push(f"send {socket_id}", f"{number}" * size)
        if reply.code:
            break
        took += 1
    assert reply.code == "no-room", reply
    assert 2 <= took <= 4
    assert state_of(server) == before
    for number in range(took):
        back = server.open(f"n{number}")
        assert back.read_text() == f"{number}" * size


def test_by_default_the_oldest_unsent_message_gives_way_and_is_counted(serve):
    server = serve("--queue-messages", 3)
    away = server.away("1")
    for number in range(5):
        assert server.ok(f"send {away}", f"{number}").count == 1
    row = server.row(away)
    assert (row["messages"], row["drops"]) == (3, 2)
    assert server.stats()["dropped"] == 2
    back = server.open("1")
    assert server.fence(back) == [["2", "3", "4"]]


# ----- list ---------------------------------------------------------------

def test_a_text_row_has_eight_columns(server):
    raw = server.open("id:1::g:2")
    server.away("x")
    server.ok(f"send {S}x", "four")
    reply = server.ok("list")
    assert reply.count == 2 and reply.body.endswith(b"\n")
    rows = [line.split("\t") for line in reply.body.decode().splitlines()]
    assert all(len(row) == 8 for row in rows), rows
    by_id = {row[0]: row for row in rows}
    assert set(by_id) == {f"{S}id:1::g:2", f"{S}x"}
    here, gone = by_id[f"{S}id:1::g:2"], by_id[f"{S}x"]
    assert here[1:4] == ["open", "0", "0"] and here[4].isdigit()
    assert here[5:7] == [raw.name, "0"]
    assert set(here[7].split(",")) == {"id:1", "g:2", f"service:{MAIN}"}
    assert gone[1:4] == ["away", "1", "4"] and gone[4].isdigit()
    assert gone[5:] == ["-", "0", f"service:{MAIN}"]


def test_a_json_row_has_the_named_members_with_their_types(server):
    raw = server.open("id:1::g:%22%5C")
    server.away("x")
    reply = server.ok("list format=json")
    assert reply.count == 2
    rows = {row["socketId"]: row for row in json.loads(reply.body)}
    for row in rows.values():
        assert list(row) == ["socketId", "state", "messages", "bytes", "age",
                             "peer", "drops", "tags"]
        for name in ("messages", "bytes", "age", "drops"):
            assert type(row[name]) is int, row
    here = rows[S + 'id:1::g:"\\']
    assert (here["state"], here["peer"]) == ("open", raw.name)
    assert here["tags"] == {"id": "1", "g": '"\\', "service": MAIN}
    assert (rows[f"{S}x"]["state"], rows[f"{S}x"]["peer"]) == ("away", None)


def test_list_of_nothing_is_ok_0_with_nothing(server):
    assert server.ok("list").raw == b"ok 0\n"
    reply = server.ok("list format=json")
    assert reply.count == 0 and json.loads(reply.body) == []
    assert server.ok(f"list {S}nobody").count == 0


def test_list_takes_a_target(server):
    server.open("1")
    server.away("2")
    assert server.ids("=open") == {f"{S}1"}
    assert server.ids("=away") == {f"{S}2"}
    assert server.ids(f"{S}2") == {f"{S}2"}


def long_ids(count):
    return [f"n:{number}::filler:{'x' * 96}" for number in range(count)]


def pages(server, options=""):
    cursor = ""
    for _ in range(100):
        reply = server.ok(f"list{options}{cursor}")
        assert len(reply.body) <= 16384
        yield reply
        if "next" not in reply.values:
            return
        assert re.fullmatch(r"\d+", reply.values["next"])
        cursor = f" from={reply.values['next']}"
    raise AssertionError("list never ends")


@pytest.mark.parametrize("options", ["", " format=json"])
def test_list_beyond_16_kib_is_pulled_and_each_socket_comes_once(
        server, options):
    for id in long_ids(200):
        server.open(id)
    seen, replies = [], 0
    for reply in pages(server, options):
        if options:
            rows = [row["socketId"] for row in json.loads(reply.body)]
        else:
            assert reply.body.endswith(b"\n")
            rows = [line.split("\t")[0]
                    for line in reply.body.decode().splitlines()]
        assert reply.count == len(rows)
        replies += 1
        seen += rows
    assert replies >= 3
    assert len(seen) == 200
    assert set(seen) == {S + id for id in long_ids(200)}


def test_who_is_there_all_along_comes_once_while_others_come_and_go(server):
    clients = {id: server.open(id) for id in long_ids(150)}
    leaving = list(clients)[::3]
    seen, ids = [], iter(range(1000))
    for reply in pages(server, " format=json"):
        seen += [row["socketId"] for row in json.loads(reply.body)]
        for _ in range(10):
            server.open(f"new:{next(ids)}")
            if leaving:
                server.ok(f"close {S}{leaving.pop()}")
    stay = {S + id for id in list(clients)[1::3] + list(clients)[2::3]}
    assert sorted(id for id in seen if id in stay) == sorted(stay)


def test_an_unknown_cursor_lists_what_comes_after_it(server):
    server.open("1")
    reply = server.ok("list from=999999999")
    assert reply.count == 0 and "next" not in reply.values
    assert server.ok("list from=0").count == 1


# ----- close --------------------------------------------------------------

@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1013,
                                  1014, 3000, 3999, 4000, 4999])
def test_close_sends_code_and_reason_and_forgets_the_socket(
        server, tls, code):
    raw = server.open("1", tls=tls)
    assert server.ok(f"close code={code} {S}1", "Пока!").count == 1
    assert raw.closed() == (code, "Пока!")
    raw.frame(wsp.CLOSE, wsp.close_payload(code))
    raw.ends()
    assert server.rows() == []


def test_close_is_1000_without_a_reason_unless_told(server):
    raw = server.open()
    assert server.ok("close *").count == 1
    assert raw.closed() == (1000, "")


def test_a_reason_of_123_bytes_is_sent(server):
    raw = server.open()
    server.ok("close *", "r" * 123)
    assert raw.closed() == (1000, "r" * 123)


def test_close_counts_and_forgets_away_sockets_and_their_queues(server):
    raw = server.open("g:1::n:1")
    away = server.away("g:1::n:2")
    server.open("g:2")
    server.ok(f"send {away}", "goes with it")
    before = server.stats()
    assert server.ok("close $g:1").count == 2
    assert raw.closed() == (1000, "")
    assert server.ids() == {f"{S}g:2"}
    after = server.stats()
    assert after["forgotten"] == before["forgotten"] + 1
    assert after["dropped"] == before["dropped"]
    back = server.open("g:1::n:2")
    assert server.fence(back) == [[]]


def test_close_first_offers_what_is_queued(server, tls):
    raw = server.open("1", tls=tls)
    with wsp.Push(server.path, None) as sender, server.pause():
        sender.send("send *", "one")
        sender.send("send *", "two")
        sender.send("close code=4000 *", "done")
    assert [raw.read_text() for _ in range(2)] == ["one", "two"]
    assert raw.closed() == (4000, "done")


def test_a_client_that_ignores_close_is_ended_all_the_same(serve):
    server = serve("--pong-timeout", 1)
    raw = server.open()
    server.ok("close *")
    assert raw.closed() == (1000, "")
    raw.ends()


# ----- abort --------------------------------------------------------------

def test_abort_cuts_without_a_close_frame(server, tls):
    raw = server.open("1", tls=tls)
    assert server.ok("abort *").count == 1
    # Over TLS without close_notify either: Raw calls that a reset.
    assert raw.ends() == "reset" if tls else raw.ends()


def test_a_client_whose_connection_is_aborted_sees_1006(server, tls):
    client = server.client(tls=tls)
    server.ok("abort *")
    assert client.wait_closed()[0] == 1006


def test_abort_leaves_stateful_sockets_away_with_their_queue(server):
    server.open("1")
    volatile = server.open()
    away = server.away("2")
    server.ok(f"send {away}", "waits")
    assert server.ok("abort *").count == 3
    volatile.ends()
    rows = {row["socketId"]: (row["state"], row["messages"])
            for row in server.rows()}
    assert rows == {f"{S}1": ("away", 0), away: ("away", 1)}
    assert server.fence(server.open("2")) == [["waits"]]


# ----- stats --------------------------------------------------------------

def test_stats_has_every_promised_name_as_a_number(server):
    reply = server.ok("stats")
    lines = reply.body.decode().splitlines()
    assert reply.count == len(lines)
    pairs = [re.fullmatch(r"([a-z0-9_]+) (-?\d+)", line) for line in lines]
    assert all(pairs), lines
    names = [pair[1] for pair in pairs]
    assert len(set(names)) == len(names)
    assert set(STATS) <= set(names), set(STATS) - set(names)


def test_stats_as_json_has_the_same_names(server):
    stats = server.stats()
    text = server.ok("stats").body.decode()
    assert set(stats) == {line.split()[0] for line in text.splitlines()}
    assert all(type(value) is int for value in stats.values()), stats


def test_stats_count_what_happened(server, tls):
    before = server.stats()
    one = server.open("one", tls=tls)
    two = server.open(tls=tls)
    away = server.away("away")
    server.ok("send *", "x" * 10)
    assert [c.read_text() for c in (one, two)] == ["x" * 10] * 2
    after = server.stats()
    moved = {name: after[name] - before[name] for name in COUNTERS}
    assert moved["sockets_open"] == 2
    assert moved["sockets_away"] == 1
    assert moved["connections"] == 3
    assert moved["messages_taken"] == 1
    assert moved["delivered"] == 2
    assert moved["dropped"] == 0
    assert moved["store_bytes"] >= 10
    assert (moved["handshakes_full"] + moved["handshakes_resumed"]
            == (2 if tls else 0))
    assert after["store_bytes_max"] == 1 << 20
    server.ok(f"close {away}")
    assert server.stats()["forgotten"] == before["forgotten"] + 1


def test_stats_know_the_certificate_and_the_uptime(server):
    stats = server.stats()
    assert 823 <= stats["cert_days"] <= 825
    assert 0 <= stats["uptime"] < 600


def test_a_datagram_of_200_kib_is_too_big_and_not_cut(server, make_push):
    sender = make_push(server.path)
    room = sender.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert sender("send *", "x" * min(200_000, room // 2)).code == "too-big"
