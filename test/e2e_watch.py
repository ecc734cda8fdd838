# SPDX-License-Identifier: MIT
"""The verbs watch and tag (INTERFACE 3 and 5), and their commands."""
import os
import signal
import subprocess

import pytest

from delivery import S, Watcher, moved, sid
import wsp
from wsp import CLOSE, MAIN

SERVER = ["--service", MAIN, "--service", "other"]


@pytest.fixture
def watch(server):
    """A watcher of the file's server; its watch ends with the test."""
    made = []

    def make(target=""):
        made.append(Watcher(server.path, target))
        return made[-1]
    yield make
    for each in made:
        each.close()
    # The server notices when an event finds nobody.
    server.away("noticed")
    server.ok("close *")


def watcher_event(sender):
    sender.socket.settimeout(wsp.PATIENCE)
    return sender.socket.recv(1 << 16).decode()


# ----- watch --------------------------------------------------------------

def test_a_watcher_is_told_how_many_match_and_then_what_happens(server,
                                                                watch):
    server.open("there")
    watcher = watch()
    assert watcher.matching == 1
    raw = server.open("1")
    assert watcher.event() == ("open", f"{S}1")
    raw.say_close(3001)
    assert watcher.event() == ("close", f"{S}1", 3001)
    server.ok(f"close {S}1")
    assert watcher.event() == ("forget", f"{S}1")


def test_a_volatile_socket_is_forgotten_after_it_is_closed(server, watch):
    watcher = watch()
    raw = server.open()
    [id] = server.ids()
    raw.close_socket()
    assert watcher.events(3) == [("open", id), ("close", id, 1006),
                                 ("forget", id)]


@pytest.mark.parametrize("payload, code", [
    (b"", 1005), (wsp.close_payload(1000), 1000),
    (wsp.close_payload(1001, "bye"), 1001),
    (wsp.close_payload(4999), 4999)])
def test_a_close_has_the_clients_code(server, watch, tls, payload, code):
    watcher = watch()
    raw = server.open("1", tls=tls)
    raw.frame(CLOSE, payload)
    assert watcher.events(2) == [("open", f"{S}1"), ("close", f"{S}1", code)]


def test_a_close_by_us_has_our_code(server, watch):
    watcher = watch()
    server.open("1")
    server.ok("close code=4002 *", "why")
    assert watcher.events(3) == [("open", f"{S}1"), ("close", f"{S}1", 4002),
                                 ("forget", f"{S}1")]
    raw = server.open("2")
    raw.send(b"\xff\xff")
    assert watcher.events(2) == [("open", f"{S}2"), ("close", f"{S}2", 1002)]
    server.open("3")
    server.ok(f"abort {S}3")
    assert watcher.events(2) == [("open", f"{S}3"), ("close", f"{S}3", 1006)]


def test_a_target_selects_whose_events_come(server, watch):
    one, other = watch("$g:1"), watch("/services/other")
    server.open("g:2")
    server.open("g:1")
    server.open("g:1", "other")
    assert one.events(2) == [("open", f"{S}g:1"),
                             ("open", sid("g:1", "other"))]
    assert other.event() == ("open", sid("g:1", "other"))
    assert other.silent()


def test_one_socket_may_be_watched_before_it_exists(server, watch):
    watcher = watch(f"{S}1")
    assert watcher.matching == 0
    server.open("2")
    server.open("1")
    assert watcher.event() == ("open", f"{S}1")


def test_asking_again_is_idempotent_and_another_target_replaces(
        server, watch):
    watcher = watch("$g:1")
    assert watcher.ok("watch $g:1").count == 0
    server.open("g:1::n:1")
    assert watcher.event() == ("open", f"{S}g:1::n:1")
    assert watcher.silent(), "each event comes once"
    assert watcher.ok("watch $g:2").count == 0
    server.open("g:1::n:2")
    server.open("g:2")
    assert watcher.event() == ("open", f"{S}g:2")


def test_there_are_8_watchers_at_most(server, watch):
    watchers = [watch() for _ in range(8)]
    with wsp.Push(server.path) as ninth:
        ninth.refused("no-room", "watch", None)
        assert watchers[0].ok("watch =open").count == 0, "known already"
        watchers.pop().close()
        server.open("1")  # the event finds nobody
        assert ninth.ok("watch").count == 1
        server.open("2")
        for watcher in watchers + [ninth]:
            while watcher_event(watcher) != f"open {S}2":
                pass


def test_a_watcher_that_does_not_read_loses_its_watch_and_is_counted(
        server, watch):
    depth = int(open("/proc/sys/net/unix/max_dgram_qlen").read())
    if depth > 1000:
        pytest.skip(f"max_dgram_qlen is {depth} here: that takes too long")
    deaf, hears = watch(), watch()
    before = server.stats()["events_lost"]
    for _ in range(depth // 2 + 10):
        server.away("1")
        assert hears.events(2) == [("open", f"{S}1"),
                                   ("close", f"{S}1", 1000)]
    lost = server.stats()["events_lost"] - before
    assert lost == 2, "after two in a row nothing more is tried"
    seen = 0
    while not deaf.silent():  # takes one each time
        seen += 1
    assert seen >= depth
    server.open("new")
    assert hears.event() == ("open", f"{S}new")
    assert deaf.silent()
    assert deaf.ok("watch").count == 2, "it may ask again"
    server.open("newer")
    assert deaf.event() == ("open", f"{S}newer")


def test_a_full_watcher_holds_up_no_reply(server, watch):
    watch()
    for number in range(300):
        server.away(f"{number % 5}")
        assert server.ok("ping").count == 0


def test_who_has_no_address_cannot_watch(server, make_push):
    before = len(server.log)
    make_push(server.path, None).send("watch")
    server.wait_log("address", after=before)


@pytest.mark.parametrize("header, code", [
    ("watch $", "bad-target"), ("watch /services/absent", "bad-target"),
    ("watch code=1", "bad-option"), ("watch from=1 *", "bad-option")])
def test_a_bad_watch_is_refused(server, header, code):
    server.refused(code, header)


# ----- wspush watch -------------------------------------------------------

class Command:
    """A `wspush watch` at work; its lines as they come."""

    def __init__(self, path, *args):
        self.process = subprocess.Popen(
            [wsp.BINARY, "watch", "-s", path, *args], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(wsp.PATIENCE)
        finally:
            self.process.kill()
            self.process.communicate()


def watched(server, command, id):
    """Opens and ends sockets until the command, once started, has said that
    one opened: a watch may begin between an open and its close."""
    number, lines = 0, b""

    def seen():
        nonlocal number, lines
        number += 1
        server.away(f"{id}{number}")
        os.set_blocking(command.process.stdout.fileno(), False)
        lines += command.process.stdout.read() or b""
        os.set_blocking(command.process.stdout.fileno(), True)
        return f"open {S}{id}".encode() in lines and lines
    return wsp.until(seen, "a first event").decode()


def test_wspush_watch_prints_events_as_they_happen(server):
    with Command(server.path, "$g:1") as command:
        assert f"open {S}g:1::n:" in watched(server, command, "g:1::n:")
    assert command.process.returncode is not None


def test_wspush_watch_outlives_a_restart_of_the_server(serve, tmp_path):
    """It asks again every 5 s, and the new server knows it then."""
    path = str(tmp_path / "push.sock")
    options = ["--listen-plain", "127.0.0.1:0", "--push", path]
    server = serve(*options, listen=False)
    with Command(path) as command:
        assert f"open {S}before" in watched(server, command, "before")
        server.stop()
        server = serve(*options, listen=False)
        assert f"open {S}after" in watched(server, command, "after")
        assert command.process.poll() is None


def test_a_stopped_wspush_watch_under_a_flood_costs_nobody_a_reply(serve):
    """What it does not take fills no buffer that scripts depend on: every
    request is answered, by the server and at the command line."""
    server = serve()
    with Command(server.path) as stopped, Command(server.path) as other:
        watched(server, stopped, "a")
        watched(server, other, "b")
        stopped.process.send_signal(signal.SIGSTOP)
        before = server.stats()
        number = 0
        try:
            while server.stats()["events_lost"] < before["events_lost"] + 2:
                number += 1
                server.open(f"{number % 10}")  # a takeover is two events
                assert server.ok(f"send ref={number} *", "x").count > 0
            done = wsp.wspush("list", "-s", server.path)
            assert done.returncode == 0 and done.stdout
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        watched(server, other, "c")
        assert moved(before, server.stats(), "replies_lost") == (0,)


# ----- tag ----------------------------------------------------------------

def tags(server, id="1", service=MAIN):
    got = dict(server.row(sid(id, service))["tags"])
    assert got.pop("service") == service
    return got


def test_tag_sets_changes_and_removes(server):
    server.open("1")
    assert server.ok("tag *", "a:1\nb:2\n").count == 1
    assert tags(server) == {"a": "1", "b": "2"}
    server.ok("tag *", "a:3\n-b\nc:")
    assert tags(server) == {"a": "3", "c": ""}
    server.ok("tag *", "-a\n-absent\n\n\n-c")
    assert tags(server) == {}
    assert server.ok("tag *", "").count == 1


def test_the_first_colon_splits_and_the_last_line_for_a_name_counts(server):
    server.open("1")
    server.ok("tag *", "a:b:c\nd:1\nd:2\ne:1\n-e\n-f\nf:1")
    assert tags(server) == {"a": "b:c", "d": "2", "f": "1"}


def test_tags_select_at_once(server):
    one, two = server.open("1"), server.open("2")
    server.ok(f"tag {S}1", "room:7")
    assert server.ok("send $room:7", "x").count == 1
    assert server.ok("send $room", "y").count == 1
    server.ok(f"tag {S}1", "-room")
    server.ok(f"tag {S}2", "room:7")
    server.ok("send $room:7", "z")
    assert server.fence(one, two) == [["x", "y"], ["z"]]


def test_tag_reaches_away_sockets_and_says_how_many(server):
    server.open("g:1::n:1")
    server.away("g:1::n:2")
    server.open("g:2")
    assert server.ok("tag $g:1", "x:1").count == 2
    assert tags(server, "g:1::n:2")["x"] == "1"
    assert "x" not in tags(server, "g:2")
    assert server.ok("tag $nobody", "x:1").count == 0
    server.refused("unknown-socket", f"tag {S}nobody", "x:1")
    assert server.ok(f"tag {S}g:2 =away", "x:1").count == 0


def test_replace_drops_first_what_the_push_socket_had_set(server):
    server.open("id:1")
    server.ok("tag *", "a:1\nb:2")
    server.ok("tag replace=1 *", "b:3\nc:4")
    assert tags(server, "id:1") == {"id": "1", "b": "3", "c": "4"}
    server.ok("tag replace=1 *", "")
    assert tags(server, "id:1") == {"id": "1"}
    server.refused("bad-option", "tag replace=0 *", "a:1")


BAD = {
    "neither": "word", "an empty name": ":v", "a dash": "-", "space": "a b:c",
    "white space in a value": "a:b c", "a tab": "a:\t", "control": "a:\x01",
    "a long name": "n" * 33 + ":v", "a long value": "a:" + "v" * 97,
    "service": "service:x", "no service": "-service",
    "of the id": "id:2", "no id": "-id", "a DEL": "a:\x7f",
    "a C1": "a:\x85"}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("place", ["alone", "first", "last"])
def test_a_bad_line_is_refused_and_nothing_is_changed(server, what, place):
    server.open("id:1")
    server.open("2")
    server.ok("tag *", "a:1")
    body = {"alone": BAD[what], "first": BAD[what] + "\nb:2",
            "last": "b:2\n" + BAD[what]}[place]
    server.refused("bad-tag", "tag *", body)
    assert tags(server, "id:1") == {"id": "1", "a": "1"}
    assert tags(server, "2") == {"a": "1"}


def test_lengths_at_their_limits_are_taken(server):
    server.open("1")
    server.ok("tag *", "n" * 32 + ":" + "v" * 96)
    assert tags(server) == {"n" * 32: "v" * 96}
    server.ok("tag *", "-" + "n" * 32)
    assert tags(server) == {}


def test_sixteen_names_at_most_service_not_counted(server):
    server.open("1")
    server.ok("tag *", "\n".join(f"n{n}:{n}" for n in range(16)))
    server.refused("bad-tag", "tag *", "one:more")
    server.ok("tag *", "n0:changed\n-n1\none:more")
    assert len(tags(server)) == 16
    server.ok("tag replace=1 *", "\n".join(f"m{n}:{n}" for n in range(16)))
    assert set(tags(server)) == {f"m{n}" for n in range(16)}


def test_a_limit_of_one_socket_refuses_it_on_all(server):
    server.open("1")
    server.open("::".join(f"n{n}:{n}" for n in range(16)))
    server.refused("bad-tag", "tag *", "one:more")
    assert tags(server) == {}


def test_not_utf8_is_refused(server):
    server.open("1")
    server.refused("bad-tag", "tag *", b"a:\xff")


def test_wspush_tag_is_the_same(server):
    def tag(*args):
        return wsp.wspush("tag", "-s", server.path, *args).returncode
    server.open("id:1")
    assert tag("*", "a:1", "b:2") == 0
    assert tag("*", "-a", "c:two") == 0
    assert tags(server, "id:1") == {"id": "1", "b": "2", "c": "two"}
    assert tag("-R", "*", "d:1") == 0
    assert tags(server, "id:1") == {"id": "1", "d": "1"}
    assert tag("-R", "*") == 0
    assert tags(server, "id:1") == {"id": "1"}
    assert tag("$nobody", "a:1") == 4
    assert tag("*", "id:2") == 1
    assert tag("*") == 2


def test_tag_moves_no_counter_of_delivery(server):
    server.open("1")
    before = server.stats()
    server.ok("tag *", "a:1")
    assert moved(before, server.stats(), "messages_taken", "delivered") == (
        0, 0)
