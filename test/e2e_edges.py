# SPDX-License-Identifier: MIT
"""Edges: two things that are each in order and happen in the same moment.

A client that goes while its commands are done, a Ping in the flush of the
last words, a value that expires between two looks, a queue that is full
though its reader has read everything, a reload that changes what a reload
cannot change.
"""
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import time

import pytest

import wsp
from e2e_allow import ask_as
from wsp import MAIN, fails, make_certificate, peer_certificate

BASE = ["--listen-plain", "127.0.0.1:0"]
INIT = json.dumps({"socket_action": "init_socket", "socket_type": "x"})


@pytest.fixture
def conf(tmp_path):
    def write(*lines):
        path = tmp_path / "wspush.conf"
        path.write_text("\n".join(lines) + "\n")
        return path
    return write


def reload(server):
    """The lines of the log that a SIGHUP makes, `reloaded` the last."""
    at = len(server.log)
    server.kick(signal.SIGHUP)
    server.wait_log("reloaded", at)
    return server.log[at:]


def burst(server, *requests):
    """The replies to (header, body) pairs that meet the server in one
    turn."""
    with server.pause():
        for header, body in requests:
            server.sender.send(header, body)
    return [server.sender.receive() for _ in requests]


def refusals(replies):
    return [reply for reply in replies if reply.code or reply.number("full")]


# ----- a client that goes -------------------------------------------------

def test_a_client_may_reset_in_the_middle_of_its_array_of_commands(serve):
    server = serve()
    # More than a queue holds, so that each command writes to the connection.
    for key in "abc":
        server.ok(f"send retain=1 key={key} $socket_type:x", "y" * 30000)
    client = server.open()
    with server.pause():
        client.text(f"[{INIT},{INIT}]")
        client.reset()
    wsp.until(lambda: not server.rows(), "the client's row to go")
    server.open().heartbeat()


# ----- the log ------------------------------------------------------------

def fill(pipe):
    """Writes into a pipe until it takes no more, through a description of
    our own: the server's stays blocking."""
    own = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        for piece in (4096, 1):
            try:
                while True:
                    os.write(own, b"." * piece)
            except BlockingIOError:
                pass
    finally:
        os.close(own)


def read_ready(pipe):
    text = b""
    while b"wspush: ready" not in text or not text.endswith(b"\n"):
        more = os.read(pipe, 4096)
        assert more, f"the server ended: {text!r}"
        text += more


def test_a_standard_error_that_nobody_reads_does_not_stop_the_server(
        tmp_path):
    out, into = os.pipe()
    fcntl.fcntl(into, 1031, 4096)  # F_SETPIPE_SZ
    process = subprocess.Popen(
        [wsp.BINARY, "serve", *BASE, "--push", tmp_path / "p", "--state",
         tmp_path], stdin=subprocess.DEVNULL, stderr=into)
    try:
        read_ready(out)
        fill(into)
        with wsp.Push(tmp_path / "p") as push, \
                wsp.Push(tmp_path / "p", None) as nobody:
            push.send("ping")
            assert push.receive(3).count == 0
            for _ in range(3):
                nobody.send("frobnicate")
                push.send("ping")
                assert push.receive(3).count == 0
        process.terminate()
        assert process.wait(wsp.PATIENCE) == 0
    finally:
        process.kill()
        process.wait(wsp.PATIENCE)
        os.close(out)
        os.close(into)


def test_a_flood_of_refused_requests_is_a_few_lines_a_second_and_a_count(
        serve, make_push):
    server = serve()
    nobody = make_push(server.path, None)
    begin = time.monotonic()
    for _ in range(500):
        nobody.send("frobnicate")
    server.ok("ping")
    seconds = int(time.monotonic() - begin) + 1
    time.sleep(1.1)  # the next second of the log
    nobody.send("frobnicate")
    server.wait_log("refused.* more=")

    def lines():
        return [line for line in server.log if line and "refused" in line]

    def said():
        more = [re.search(r" more=(\d+)", line) for line in lines()]
        return sum(int(m[1]) if m else 1 for m in more)
    wsp.until(lambda: said() == 501, "all to be said or counted")
    assert len(lines()) <= 21 * seconds + 2, len(lines())


# ----- written in the same moment -----------------------------------------

def when_a_ping_is_due(servers, *requests):
    """Replies of each server to requests that meet it when a Ping became
    due.  Which of the two it sees first is chance: hence several servers."""
    for server in servers:
        client = server.open()
        server.ok("send *", "x" * 2000)
        assert client.read_text() == "x" * 2000
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server.pause())
            for header, body in requests:
                server.sender.send(header, body)
        time.sleep(1.5)
    return [[server.sender.receive() for _ in requests] for server in servers]


def test_close_writes_what_is_queued_also_when_a_ping_is_due(serve):
    servers = [serve("--ping-interval", "1") for _ in range(6)]
    replies = when_a_ping_is_due(servers, ("send *", "last words"),
                                 ("close *", None))
    for server, got in zip(servers, replies):
        assert [reply.count for reply in got] == [1, 1]
        (client,) = server.opened
        assert client.read_text() == "last words"
        assert client.closed()[0] == 1000


def test_a_full_queue_is_flushed_first_also_when_a_ping_is_due(serve):
    servers = [serve("--queue-messages", "4", "--overflow", policy,
                     "--ping-interval", "1")
               for policy in 2 * ("drop-oldest", "refuse", "close")]
    words = [f"word {k}" for k in range(5)]
    replies = when_a_ping_is_due(servers, *[("send *", w) for w in words])
    for server, got in zip(servers, replies):
        assert not refusals(got), refusals(got)[0]
        assert server.fence(*server.opened) == [words]


# A stateful socket under `refuse` keeps what is written until the Pong.
@pytest.mark.parametrize("policy, stateful", [
    ("refuse", False), ("drop-oldest", False), ("drop-oldest", True)])
def test_a_full_store_is_flushed_to_who_reads(serve, policy, stateful):
    server = serve("--overflow", policy, "--store-bytes", "70000",
                   "--queue-bytes", "65536")
    clients = {}
    for name in "abcd":
        before = server.ids()
        client = server.open(name if stateful else None)
        clients[(server.ids() - before).pop()] = client
    # Eight, for a router's kernel lets eleven wait.
    bodies = {target: [f"{target} {k} " + "z" * 15000 for k in range(2)]
              for target in clients}
    replies = burst(server, *[(f"send {target}", bodies[target][k])
                              for k in range(2) for target in clients])
    assert not refusals(replies), refusals(replies)[0]
    assert sum(row["drops"] for row in server.rows()) == 0
    assert server.fence(*clients.values()) == list(bodies.values())


def read_what_is_there(client):
    """Takes in what the kernel holds; the server stands still."""
    client.socket.settimeout(0.3)
    try:
        while True:
            client.buffer += client.socket.recv(1 << 20)
    except TimeoutError:
        pass
    client.socket.settimeout(wsp.PATIENCE)


@pytest.mark.parametrize("policy", ["drop-oldest", "refuse", "close"])
def test_a_client_that_has_read_everything_has_room(serve, policy):
    server = serve("--overflow", policy, "--queue-messages", "8",
                   "--queue-bytes", "800000")
    client = server.open(receive_buffer=4096)
    sent = full = 0
    while full < 10:  # and stays so: the kernel takes no more
        row = server.rows()[0]
        if row["messages"] == 8:
            full += 1
            time.sleep(0.01)
            continue
        full = 0
        server.ok("send *", "z" * 8000)
        sent += 1
        assert sent < 2000, "the queue does not fill"
    with server.pause():
        read_what_is_there(client)
        for _ in range(3):
            server.sender.send("send *", "y")
    replies = [server.sender.receive() for _ in range(3)]
    assert not refusals(replies), refusals(replies)[0]
    assert server.rows()[0]["drops"] == row["drops"]
    assert server.fence(client) == [["z" * 8000] * sent + ["y"] * 3]


# ----- a full store and --overflow close ----------------------------------

def test_who_holds_up_a_full_store_is_cut_and_the_message_is_taken(serve):
    server = serve("--overflow", "close", "--store-bytes", "131072",
                   "--queue-bytes", "65536", "--queue-messages", "1000",
                   "--ping-interval", "0")
    slow = {}
    for _ in range(3):
        before = server.ids()
        client = server.open(receive_buffer=4096)
        slow[(server.ids() - before).pop()] = client
    fast = server.open("fast")
    watch = wsp.Push(server.path)
    with watch:
        watch.ok("watch =open")
        gone, rounds = set(), 0
        while not gone:
            for target in slow:
                # Three queues of 65,536 bytes: the store is full first.
                reply = server.push(f"send {target}", "z" * 4000)
                assert reply.code in (None, "unknown-socket"), reply
            gone = set(slow) - server.ids()
            rounds += 1
            assert rounds < 400, "the store does not fill"
        event, first, code = watch.socket.recv(200).decode().split()
        assert (event, first in gone, code) == ("close", True, "1013")
    reply = server.ok(f"send /services/{MAIN}-s-fast", "hello")
    assert reply.count == 1
    assert fast.read_text() == "hello"
    with pytest.raises(wsp.Closed) as end:
        while True:
            slow[first].message()
    assert (end.value.code, end.value.reason) == (1013, "too slow")


# ----- retained values ----------------------------------------------------

def begin(client):
    """Sends init_socket; the values that come by the time of a heartbeat,
    apart from the answer."""
    client.text(INIT)
    client.text("$hbt")
    got = client.before("$ok")
    assert sum("init_socket" in text for text in got) == 1, got
    return [text for text in got if "init_socket" not in text]


def expiring(server, target):
    """Three values; the one in the middle lives for a second.  Returns when
    it has expired, and the server has not yet looked: it looks once a
    second, from the first value with a ttl on."""
    server.ok("send retain=1 ttl=1000 key=c $socket_type:none", "C")
    time.sleep(0.5)
    server.ok(f"send retain=1 ttl=1 key=a {target}", "A")
    server.ok("send retain=1 key=b $socket_type:x", "B")
    return time.monotonic() + 1.2


def test_a_value_is_not_sent_again_when_another_one_expires(serve):
    server = serve()
    end = expiring(server, "$socket_type:zz")
    client = server.open()
    got = begin(client) + server.fence(client)[0]
    assert got == ["B"]
    time.sleep(max(0, end - time.monotonic()))
    got = begin(client) + server.fence(client)[0]
    assert got == []


def test_a_value_is_not_kept_from_who_begins_to_match_when_another_one_expires(
        serve):
    server = serve()
    end = expiring(server, "*")
    client = server.open()
    assert client.read_text() == "A"
    time.sleep(max(0, end - time.monotonic()))
    got = begin(client) + server.fence(client)[0]
    assert got == ["B"]


# ----- codes --------------------------------------------------------------

def test_a_refusal_does_not_remember_the_target_before_it(server):
    away = server.away("1")
    for header, code in (("send retain=1 bogus=1 $a", "bad-option"),
                         ("send retain=1 key=" + "k" * 70 + " $a",
                          "bad-option"),
                         ("send retain=1", "bad-target"),
                         ("fly retain=1 $a", "unknown-verb")):
        server.ok(f"send {away}", "x")
        reply = server.refused(code, header, "x")
        assert "socketId" not in reply.sentence, reply


def test_retain_with_a_socket_id_is_a_bad_option_whatever_its_service(server):
    for service in (MAIN, "nobody"):
        server.refused("bad-option", f"send retain=1 /services/{service}-s-1",
                       "x")


def test_too_big_is_found_before_no_room(serve):
    server = serve("--retained", "1", "--max-message", "1000")
    server.ok("send retain=1 key=a *", "x")
    # A json string grows when it is escaped.
    server.refused("too-big", "send retain=1 kind=json key=b *", '"' * 900)
    server.refused("no-room", "send retain=1 kind=json key=b *", '"' * 90)


def test_queue_full_is_found_before_there_is_no_free_waiter(serve):
    server = serve("--overflow", "refuse", "--queue-messages", "64")
    full, free = server.away("full"), server.away("free")
    for _ in range(64):
        server.ok(f"send ack=60 {full}", "x")
    server.refused("queue-full", f"send ack=60 {full}", "x")
    server.refused("no-room", f"send ack=60 {free}", "x")
    assert server.row(free)["messages"] == 0


def test_only_refusals_count_as_http_refused(server):
    before = server.stats()["http_refused"]
    for path, status in (("/", 200), ("/healthz", 200), ("/absent", 404)):
        assert server.ask(wsp.request(path, upgrade=False)).status == status
    assert server.stats()["http_refused"] == before + 1


# ----- reload, --check, stop ----------------------------------------------

@pytest.mark.parametrize("name, before, after", [
    ("duplicate", "takeover", "reject"),
    ("ack", "pong", "sent"),
    ("push-mode", "0660", "0600"),
    pytest.param("user", "root", "nobody", marks=pytest.mark.skipif(
        os.geteuid() != 0, reason="only root can become root")),
    ("service", "two=main,max=5", "two=main,max=7"),
    ("service", "two=main", "two=main,overflow=refuse"),
    ("service", "two=main,protocol=a", "two=main,protocol=b"),
])
def test_what_needs_a_restart_is_named_at_sighup(serve, conf, name, before,
                                                 after):
    server = serve("--config", conf(f"{name} {before}"))
    conf(f"{name} {after}")
    lines = [line for line in reload(server) if "restart" in line]
    assert len(lines) == 1 and f"--{name} " in lines[0], lines
    conf(f"{name} {before}")
    lines = [line for line in reload(server) if "restart" in line]
    assert not lines, "named though it is what the server runs with"


def test_what_a_flag_says_needs_a_restart_too(serve, conf):
    server = serve("--config", conf(""))
    conf("syslog")
    assert [line for line in reload(server) if "--syslog " in line]


def test_a_new_path_of_the_certificate_is_taken_at_sighup(serve, conf,
                                                          tmp_path):
    for name in ("first", "second"):
        make_certificate(tmp_path, name)
    text = [f"cert {tmp_path}/{{}}.crt", f"key {tmp_path}/{{}}.key"]
    server = serve("--config", conf(*(t.format("first") for t in text)))
    client = server.open(tls=True)
    before = peer_certificate(server.address(tls=True))
    conf(*(t.format("second") for t in text))
    assert not [line for line in reload(server) if "restart" in line]
    after = peer_certificate(server.address(tls=True))
    assert after != before
    client.heartbeat()
    # And the next reload reads the new files, not the first ones.
    reload(server)
    assert peer_certificate(server.address(tls=True)) == after
    # So does one whose settings are no good.
    conf("frobnicate")
    reload(server)
    assert peer_certificate(server.address(tls=True)) == after


def test_check_makes_no_file(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    for each in (state, tmp_path / "absent"):
        done = subprocess.run(
            [wsp.BINARY, "serve", "--listen", "127.0.0.1:0", "--push",
             tmp_path / "run" / "p", "--state", each, "--check"],
            stdin=subprocess.DEVNULL, capture_output=True,
            timeout=wsp.PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert not list(state.iterdir())


def test_who_waits_for_acknowledgement_is_answered_at_the_end(serve):
    server = serve()
    away, client = server.away("away"), server.open("open")
    server.ok("send ack=30 ref=one *", "x")
    server.ok(f"send ack=30 ref=two {away}", "y")
    client.message()
    ping = client.next_frame()
    assert ping.opcode == wsp.PING
    client.frame(wsp.PONG, ping.payload)
    wsp.until(lambda: server.row(f"/services/{MAIN}-s-open")["messages"] == 0,
              "the Pong to be taken")
    server.kick(signal.SIGTERM)
    assert server.wait_exit(5) == 0
    server.sender.socket.settimeout(1)
    got = sorted(server.sender.socket.recv(200) for _ in range(2))
    assert got == [b"acked 0 of 1 ref=two\n", b"acked 1 of 2 ref=one\n"]


# ----- users and groups ---------------------------------------------------

@pytest.mark.skipif(os.geteuid() != 0,
                    reason="only root can become somebody else")
def test_a_group_lets_in_its_members_by_name(tmp_path):
    """The server sees an /etc/group and an /etc/passwd of the test."""
    for name, text in (
            ("group", "first:x:61001:\n"
                      "pushers:x:61002:absent,carol,dave\n"
                      "last:x:61003:erin\n"),
            ("passwd", "".join(f"{user}:x:{uid}:61003::/:/bin/false\n"
                               for user, uid in (("carol", 62001),
                                                 ("dave", 62002),
                                                 ("erin", 62003))))):
        (tmp_path / name).write_text(text)
    run = tmp_path / "run"
    run.write_text(
        "#!/bin/sh\nexec unshare -m sh -c '"
        'for f in group passwd; do mount --bind "$0/$f" /etc/$f || exit 77; '
        f"""done; exec "$@"' {tmp_path} {wsp.BINARY} "$@"\n""")
    run.chmod(0o755)
    probe = subprocess.run([run, "version"], capture_output=True, timeout=10,
                           check=False)
    if probe.returncode != 0:
        pytest.skip("no mount namespace here")
    with wsp.Server("--push-mode", "0666", "--push-allow", "@pushers",
                    binary=str(run)) as server:
        for uid, gid, may in ((62001, 61003, True), (62002, 61003, True),
                              (62009, 61002, True), (62003, 61003, False),
                              (62009, 61001, False)):
            got = ask_as(server, uid, gid, "ping")
            assert got.startswith("ok 0" if may else "error denied "), (
                uid, gid, got)


def test_a_user_or_group_that_is_not_there_is_named_and_exit_1(tmp_path):
    for option, value, name in (("--user", "no-such-user", "no-such-user"),
                                ("--user", "root:no-such-group",
                                 "no-such-group"),
                                ("--push-group", "no-such-group",
                                 "no-such-group")):
        status, lines = fails(*BASE, "--push", tmp_path / "p", option, value)
        assert status == 1, (status, lines)
        assert len(lines) == 1 and name in lines[0], lines
        assert len(lines[0].split()) > 5, lines
