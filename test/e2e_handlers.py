# SPDX-License-Identifier: MIT
"""Services that are programs (INTERFACE 10): unix:, exec:, auth=1, and the
worked examples of tools/services."""
import base64
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import wsp
from wsp import BINARY_FRAME, CLOSE, close_payload, until

SERVICES = wsp.ROOT / "tools" / "services"

# A program that writes what it reads to a file, and the lines of another file
# to its standard output.
RECORDER = """#!/bin/sh
trap 'echo term >>{dir}/log; exit 0' TERM
echo $$ >>{dir}/pids
echo started >&2
( : >>{dir}/say; exec tail -n +1 -f {dir}/say ) &
while read -r line; do printf '%s\\n' "$line" >>{dir}/log; done
"""


class Program:
    """A recorder: what it was told, and what it shall say."""

    def __init__(self, directory, text=RECORDER):
        self.dir = directory
        self.path = directory / "program"
        self.path.write_text(text.format(dir=directory))
        self.path.chmod(0o755)

    def lines(self):
        log = self.dir / "log"
        return log.read_text().split("\n")[:-1] if log.exists() else []

    def wait(self, count):
        until(lambda: len(self.lines()) >= count, f"{count} lines")
        return self.lines()

    def pids(self):
        pids = self.dir / "pids"
        return [int(p) for p in pids.read_text().split()] if (
            pids.exists()) else []

    def say(self, *lines):
        with open(self.dir / "say", "a") as file:
            file.writelines(line + "\n" for line in lines)


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


@pytest.fixture
def run(serve, program):
    """A server with the recorder as service `p`, which has begun."""
    def start(*options, extra=""):
        server = serve("--service", f"p=exec:{program.path}{extra}",
                       "--service", wsp.MAIN, *options)
        until(program.pids, "the child")
        server.wait_log('text="started"')
        return server
    return start


class Inbox:
    """A program at the end of unix:PATH."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(wsp.PATIENCE)

    def event(self):
        return self.socket.recv(1 << 18)


@pytest.fixture
def inbox(tmp_path):
    box = Inbox(tmp_path / "inbox")
    yield box
    box.socket.close()


def dropped(server):
    return server.stats()["handler_dropped"]


# ----- events -------------------------------------------------------------

def test_a_path_gets_events_as_written(serve, inbox, tls):
    server = serve("--service", f"u=unix:{inbox.path}")
    raw = server.open("a:1", service="u", tls=tls)
    id = b"/services/u-s-a:1"
    assert inbox.event() == b"open " + id + b"\n"
    raw.text("$hbt")
    assert inbox.event() == b"message " + id + b" text\n$hbt"
    raw.text("")
    assert inbox.event() == b"message " + id + b" text\n"
    raw.frame(BINARY_FRAME, b"\x00\n\xff")
    assert inbox.event() == b"message " + id + b" binary\n\x00\n\xff"
    raw.text("x" * 16384)
    assert inbox.event() == b"message " + id + b" text\n" + b"x" * 16384
    raw.frame(CLOSE, close_payload(3001))
    assert inbox.event() == b"close " + id + b" 3001\n"
    assert dropped(server) == 0


def test_a_child_gets_one_line_for_each_event(run, program, tls):
    server = run()
    raw = server.open("1", service="p", tls=tls)
    raw.text('say "hi"\n\\')
    raw.text("")
    raw.frame(BINARY_FRAME, b"\xff\x00")
    raw.close_socket()
    lines = program.wait(5)
    id = "/services/p-s-1"
    assert lines[0] == f"open {id}"
    assert lines[1].startswith(f'message {id} text "')
    assert json.loads(lines[1].split(" ", 3)[3]) == 'say "hi"\n\\'
    assert lines[2] == f'message {id} text ""'
    assert lines[3] == f'message {id} binary "/wA="'
    assert lines[4] == f"close {id} 1006"


def test_a_takeover_is_close_4001_then_open_and_forget_is_not_told(run,
                                                                   program):
    server = run()
    server.open("1", service="p")
    server.open("1", service="p").frame(CLOSE, close_payload(1000))
    id = "/services/p-s-1"
    assert program.wait(4) == [f"open {id}", f"close {id} 4001", f"open {id}",
                               f"close {id} 1000"]
    server.ok("close /services/p")
    server.open("2", service="p")
    assert program.wait(5)[4] == "open /services/p-s-2"


def test_a_path_nobody_listens_on_drops_and_counts(serve, tmp_path):
    server = serve("--service", f"u=unix:{tmp_path}/none")
    raw = server.open("1", service="u")
    raw.text("lost")
    until(lambda: dropped(server) == 2, "two lost events")
    box = Inbox(tmp_path / "none")
    raw.text("found")
    assert box.event() == b"message /services/u-s-1 text\nfound"


def test_a_stopped_receiver_delays_nobody(serve, inbox):
    server = serve("--service", f"u=unix:{inbox.path}",
                   "--service", wsp.MAIN)
    raw, other = server.open("1", service="u"), server.open("2")
    for _ in range(600):
        raw.text("x" * 4000)
        raw.frame(wsp.PING, b"")
    until(lambda: dropped(server) > 0, "a full receiver")
    other.heartbeat()
    server.ok("ping")


def test_a_child_that_does_not_read_drops_whole_events(serve, tmp_path):
    program = Program(tmp_path, "#!/bin/sh\necho $$ >>{dir}/pids\n"
                      "while ! test -e {dir}/go; do sleep 0.1; done\n"
                      "exec cat >>{dir}/log\n")
    server = serve("--service", f"p=exec:{program.path}", "--service",
                   wsp.MAIN)
    until(program.pids, "the child")
    raw, other = server.open("1", service="p"), server.open("2")
    for k in range(300):
        raw.text(f"{k:03} " + "x" * 9000)
        if k % 20 == 0:
            other.heartbeat()
    until(lambda: dropped(server) > 100, "a full pipe")
    (tmp_path / "go").touch()
    raw.frame(CLOSE, close_payload(1000))

    def all_lines():
        lines = program.lines()
        return len(lines) + dropped(server) == 302 and lines
    lines = until(all_lines, "every event, taken or counted")
    numbers = [json.loads(line.split(" ", 3)[3])[:3] for line in lines
               if line.startswith("message")]
    assert numbers == sorted(numbers)
    for line in lines[1:]:
        assert line.startswith("close") or len(line) == len(
            'message /services/p-s-1 text "000 "') + 9000


def test_a_line_over_64_kib_is_dropped(run, program):
    server = run("--max-inbound", "200000")
    raw = server.open("1", service="p")
    head = len('message /services/p-s-1 text ""\n')
    for size, fits in ((65536 - head, True), (65537 - head, False),
                       (150000, False)):
        raw.text("y" * size)
    raw.text("end")
    lines = program.wait(3)
    assert [len(line) for line in lines[1:]] == [65535, head - 1 + 3]
    assert dropped(server) == 2
    head = len('message /services/p-s-1 binary ""\n')
    most = (65536 - head) // 4 * 3
    raw.frame(BINARY_FRAME, b"\xff" * (most + 1))
    raw.frame(BINARY_FRAME, b"\xff" * 150000)
    raw.frame(BINARY_FRAME, b"\xff" * most)
    raw.text("end")
    lines = program.wait(5)
    assert base64.b64decode(json.loads(lines[3].split(" ", 3)[3])) == (
        b"\xff" * most)
    assert dropped(server) == 4


# ----- requests -----------------------------------------------------------

def test_a_childs_lines_are_requests(run, program):
    server = run()
    a, b = server.open("g:1", service="p"), server.open("g:1")
    program.say('send $g:1 "a \\"b\\"\\n\\u00e9\\ud83d\\ude00"')
    for each in (a, b):
        assert each.read_text() == 'a "b"\né😀'
    program.say("", "  ", 'send kind=binary /services/p "/wA="',
                'send kind=json key=k $g:1   "{\\"a\\":1}"  ',
                'tag $g:1 "x:1\\ny:2"', "send $x:1")
    assert a.message() == (BINARY_FRAME, b"\xff\x00")
    for each in (a, b):
        assert each.read_text() == '[{"a":1}]'
        assert each.read_text() == ""
    assert server.row("/services/p-s-g:1")["tags"]["y"] == "2"
    program.say('close code=3000 /services/p "bye"')
    assert a.closed() == (3000, "bye")


@pytest.mark.parametrize("line, code", [
    ("frobnicate $x", "unknown-verb"), ('send ack=1 * "x"', "bad-option"),
    ("ping\0", "bad-request"), ('send * "x"\0', "bad-request"),
    ('send * "x', "bad-request"), ('send * "x" y', "bad-request"),
    ('send * "\\q"', "bad-request"), ('send * "\\ud800"', "bad-request"),
    ('send kind=binary * "?"', "bad-request"), ('send "x"', "bad-target"),
    ('send /services/none "x"', "bad-target"), ("watch", "bad-request"),
    ('send /services/p-s-9 "x"', "unknown-socket"),
    ('allow 1 a:b', "unknown-socket"), ("deny 1 999", "bad-option")])
def test_a_childs_mistake_is_logged(run, program, line, code):
    server = run()
    raw = server.open("1", service="p")
    program.say(line, 'send * "still here"')
    assert raw.read_text() == "still here"
    server.wait_log(f"refused service=p text=\"error {code} ")


def test_a_childs_line_over_64_kib_is_dropped(run, program):
    server = run("--queue-bytes", "200000")
    raw = server.open("1", service="p")
    long = 65535 - len('send * ""')
    program.say('send * "%s"' % ("a" * long), 'send * "%s"' % ("b" * long +
                "b"), 'send * "%s"' % ("c" * 200000), 'send * "end"')
    assert raw.read_text() == "a" * long
    assert raw.read_text() == "end"
    server.wait_log("a line over 64 KiB")


def test_a_flood_of_a_child_is_cut_in_the_log_and_stops_nobody(serve,
                                                               tmp_path):
    program = Program(tmp_path, "#!/bin/sh\nyes 'send' & yes noise >&2\n")
    server = serve("--service", f"p=exec:{program.path}", "--service",
                   wsp.MAIN)
    raw = server.open("1")
    for _ in range(100):
        raw.heartbeat()
        server.ok("ping")
    assert len(server.log) < 400
    server.wait_log("lines_not_logged=")


# ----- the child's life ---------------------------------------------------

def test_standard_error_is_logged_line_by_line(serve, tmp_path):
    program = Program(tmp_path, "#!/bin/sh\nprintf 'one\\n\\ntwo\\007' >&2\n"
                      "printf '\\n%0300d\\n' 7 >&2\nexec cat\n")
    server = serve("--service", f"p=exec:{program.path}")
    server.wait_log('child service=p text="one"')
    server.wait_log(r'child service=p text="two\\x07"')
    server.wait_log('child service=p text="0000.*7"')


def test_a_dead_child_is_started_again_after_growing_pauses(run, program):
    server = run()
    os.kill(program.pids()[0], signal.SIGKILL)
    server.wait_log("child service=p pid=.* signal=9 again_in=1s")
    until(lambda: len(program.pids()) == 2, "the second child")
    os.kill(program.pids()[1], signal.SIGKILL)
    server.wait_log("again_in=2s")
    raw = server.open("1", service="p")
    raw.text("lost")
    until(lambda: dropped(server) >= 2, "events that nobody hears")
    until(lambda: len(program.pids()) == 3, "the third child")
    raw.text("heard")
    assert program.wait(1)[0].endswith('text "heard"')


def test_a_command_that_is_not_there_is_logged(serve):
    server = serve("--service", "p=exec:/no/such/program  with words")
    server.wait_log("/no/such/program: No such file")
    server.wait_log("exit=127 again_in=1s")


def test_words_of_a_command_are_arguments_and_no_shell_sees_them(serve,
                                                                 tmp_path):
    program = Program(tmp_path, "#!/bin/sh\n"
                      "printf '<%s>' \"$@\" \"$WSPUSH_SOCKET\" >{dir}/log\n"
                      "echo >>{dir}/log\n"
                      "exec cat\n")
    server = serve("--service", f"p=exec:{program.path}  $HOME \t'a b',max=1")
    assert until(program.lines, "words") == [
        f"<$HOME><'a><b'><{server.path}>"]


def test_at_the_end_the_child_gets_sigterm(run, program):
    server = run()
    [pid] = program.pids()
    server.open("1", service="p")
    program.wait(1)
    server.stop()
    assert not os.path.exists(f"/proc/{pid}")
    assert program.lines()[-2:] == ["close /services/p-s-1 1006", "term"] or (
        program.lines()[-1] == "term")


def test_a_child_that_ignores_sigterm_is_killed(serve, tmp_path):
    program = Program(tmp_path, "#!/bin/sh\ntrap '' TERM\n"
                      "echo $$ >{dir}/pids\nwhile :; do sleep 1; done\n")
    server = serve("--service", f"p=exec:{program.path}")
    [pid] = until(program.pids, "the child")
    server.stop()
    until(lambda: not os.path.exists(f"/proc/{pid}"), "its end")


def test_a_server_that_is_killed_takes_its_children_along(run, program):
    server = run()
    [pid] = program.pids()
    server.process.kill()
    until(lambda: not os.path.exists(f"/proc/{pid}"), "its end")
    server.kill()


@pytest.mark.parametrize("service, why", [
    ("p=exec:", "1 to 32 words"), ("p=unix:", "1 to 107 bytes"),
    ("p=unix:" + "x" * 108, "1 to 107 bytes"),
    ("p=exec:" + "x " * 33, "1 to 32 words"),
    ("p=exec:" + "x" * 1024, "1024"), ("p=fork:x", "exec:COMMAND"),
    ("p=main,auth=1", "unix:PATH"), ("p=exec:cat,auth=2", "only 1"),
    ("p=main,protocol=" + "x" * 257, "1 to 256"),
    ("p=main,protocol=", "1 to 256")])
def test_a_bad_handler_is_wrong_usage(service, why):
    status, lines = wsp.fails("--service", service)
    assert status == 2 and why in lines[0], lines


# ----- auth=1 -------------------------------------------------------------

@pytest.fixture
def guarded(serve, inbox):
    return serve("--service", f"u=unix:{inbox.path},auth=1", "--service",
                 wsp.MAIN, "--handshake-timeout", "2", "--log-level",
                 "debug")


def knock(server, tls=False, query="", headers=None):
    raw = server.raw(tls)
    raw.send(wsp.request("/services/u" + query, headers=headers))
    return raw


def asked(inbox):
    head, _, body = inbox.event().partition(b"\n")
    word, number, socket_id = head.decode().split(" ")
    assert word == "auth"
    return number, socket_id, json.loads(body)


def test_allow_lets_in_with_tags(guarded, inbox, tls):
    raw = knock(guarded, tls, "?X-StatefulSocketId=id:1&q=%22", {
        "Cookie": 'a="1"; b=2', "Origin": "http://localhost"})
    number, socket_id, body = asked(inbox)
    assert socket_id == "/services/u-s-id:1"
    assert body == {"path": "/services/u?X-StatefulSocketId=id:1&q=%22",
                    "id": "id:1", "peer": raw.name,
                    "origin": "http://localhost", "cookie": 'a="1"; b=2',
                    "claims": None}
    assert not guarded.rows()
    guarded.ok(f"allow {number} user:joe id:other role:")
    assert raw.response().status == 101
    assert inbox.event() == b"open /services/u-s-id:1\n"
    assert guarded.row(socket_id)["tags"] == {
        "service": "u", "user": "joe", "id": "other", "role": ""}
    guarded.refused("bad-tag", "tag $user:joe", "user:jim")
    raw.text("x")
    assert inbox.event() == b"message /services/u-s-id:1 text\nx"


def test_a_volatile_socket_has_the_id_that_was_asked_about(guarded, inbox):
    raw = knock(guarded)
    number, socket_id, body = asked(inbox)
    assert socket_id.startswith("/services/u-v-") and body["id"] is None
    assert body["cookie"] is None and body["origin"] is None
    guarded.ok(f"allow {number}")
    assert raw.response().status == 101
    assert guarded.ids() == {socket_id}


@pytest.mark.parametrize("status", [None, 401, 403, 404, 429, 503])
def test_deny_refuses_with_the_status(guarded, inbox, status):
    raw = knock(guarded)
    number = asked(inbox)[0]
    guarded.ok(f"deny {number} {status or ''}".rstrip())
    assert raw.response().status == (status or 403)
    guarded.refused("unknown-socket", f"deny {number}")
    guarded.refused("unknown-socket", f"allow {number}")


def test_no_answer_by_the_deadline_is_503(guarded, inbox, tls):
    raw = knock(guarded, tls)
    number = asked(inbox)[0]
    assert raw.response().status == 503
    guarded.refused("unknown-socket", f"allow {number}")


def test_nobody_to_ask_is_503_at_once(serve, tmp_path):
    server = serve("--service", f"u=unix:{tmp_path}/none,auth=1",
                   "--handshake-timeout", "60")
    assert knock(server).response().status == 503


def test_bad_tags_are_refused_and_the_client_still_waits(guarded, inbox):
    raw = knock(guarded)
    number = asked(inbox)[0]
    guarded.refused("bad-tag", f"allow {number} service:x")
    guarded.refused("bad-tag", f"allow {number} nocolon")
    guarded.refused("bad-tag", f"allow {number} -gone")
    guarded.refused("bad-tag", f"allow {number} " + " ".join(
        f"t{k}:1" for k in range(17)))
    guarded.refused("bad-option", "allow")
    guarded.ok(f"allow {number} " + " ".join(f"t{k}:1" for k in range(16)))
    assert raw.response().status == 101


def test_more_tags_with_the_ids_than_may_be_are_403(guarded, inbox):
    raw = knock(guarded, query="?X-StatefulSocketId=a:1::b:1")
    guarded.ok(f"allow {asked(inbox)[0]} " + " ".join(
        f"t{k}:1" for k in range(15)))
    assert raw.response().status == 403


@pytest.mark.parametrize("how", ["reset", "close_socket"])
def test_a_client_that_leaves_is_nobody(guarded, inbox, tls, how):
    raw = knock(guarded, tls)
    number, name = asked(inbox)[0], raw.name
    getattr(raw, how)()
    guarded.wait_log(f'gone peer={name} why="(closed by the client|'
                     'connection reset)"')
    guarded.refused("unknown-socket", f"allow {number}")


def test_what_a_client_sends_before_the_answer_is_kept(guarded, inbox, tls):
    raw = knock(guarded, tls, "?X-StatefulSocketId=1")
    number = asked(inbox)[0]
    raw.text("early")
    guarded.ok("ping")
    guarded.ok(f"allow {number}")
    assert raw.response().status == 101
    assert inbox.event() == b"open /services/u-s-1\n"
    assert inbox.event() == b"message /services/u-s-1 text\nearly"


def test_a_socket_is_taken_over_only_when_allowed(guarded, inbox):
    old = knock(guarded, query="?X-StatefulSocketId=1")
    guarded.ok(f"allow {asked(inbox)[0]} a:1")
    assert old.response().status == 101
    inbox.event()
    thief = knock(guarded, query="?X-StatefulSocketId=1")
    guarded.ok(f"deny {asked(inbox)[0]}")
    assert thief.response().status == 403
    guarded.ok("send *", "yours")
    assert old.read_text() == "yours"
    new = knock(guarded, query="?X-StatefulSocketId=1")
    guarded.ok(f"allow {asked(inbox)[0]}")
    assert new.response().status == 101
    assert old.closed() == (4001, "replaced")
    assert guarded.row("/services/u-s-1")["tags"] == {"service": "u"}


def test_many_wait_at_once_and_each_gets_its_answer(guarded, inbox):
    raws = [knock(guarded, query=f"?X-StatefulSocketId={k}")
            for k in range(8)]
    answers = [asked(inbox) for _ in raws]
    for number, _, body in reversed(answers):
        guarded.ok(f"allow {number}" if int(body["id"]) % 2 else
                   f"deny {number} 404")
    assert [raw.response().status for raw in raws] == [404, 101] * 4


def test_cheap_checks_come_before_the_question(guarded, inbox):
    raw = knock(guarded, headers={"Origin": "http://evil.example"})
    assert raw.response().status == 403
    inbox.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        inbox.event()


def test_a_child_answers_auth(run, program):
    server = run(extra=",auth=1")
    raw = server.raw()
    raw.send(wsp.request("/services/p", headers={"Cookie": 'k="v"'}))
    [line] = program.wait(1)
    word, number, _, body = line.split(" ", 3)
    assert word == "auth"
    assert json.loads(json.loads(body))["cookie"] == 'k="v"'
    program.say(f"allow {number} k:v")
    assert raw.response().status == 101


# ----- the worked examples ------------------------------------------------

def test_the_chat_room(serve):
    server = serve("--service", f"chat=exec:{SERVICES}/chat")
    ann = server.client("ann", "chat")
    assert ann.receive() == "* ann has come"
    bob = server.client("bob", "chat")
    assert [c.receive() for c in (ann, bob)] == ["* bob has come"] * 2
    for text in ("hi all", 'a "quote" \\ and é', "%s $HOME `id`", ""):
        ann.send(text)
        assert [c.receive() for c in (ann, bob)] == ["ann: " + text] * 2
    bob.close()
    assert ann.receive() == "* bob has gone"


def test_the_chat_room_takes_any_name(serve):
    server = serve("--service", f"chat=exec:{SERVICES}/chat")
    ann = server.client('a%22,%5C"x', "chat")
    assert ann.receive() == "* ax has come"


def test_methods_are_called_and_answered_by_uid(serve):
    server = serve("--service", f"call=exec:{SERVICES}/call")
    one, two = server.client("1", "call"), server.client("2", "call")
    one.send('{"method":"kernel","uid":7}')
    assert json.loads(one.receive()) == {"uid": 7, "result":
                                         os.uname().release}
    two.send('{"uid": "a-1", "method": "nonsense"}')
    assert json.loads(two.receive()) == {"uid": "a-1",
                                         "error": "no such method"}
    for bad in ("x", "{}", '{"uid":"\\"}; *"}', "$(id)"):
        one.send(bad)
    one.send('{"method":"hostname","uid":8}')
    assert json.loads(one.receive()) == {"uid": 8, "result":
                                         os.uname().nodename}


def test_the_python_service_on_a_path(serve, tmp_path):
    path = tmp_path / "count.sock"
    server = serve("--service", f"count=unix:{path}")
    with subprocess.Popen([sys.executable, SERVICES / "count.py", path,
                           server.path]) as python:
        try:
            until(path.exists, "its socket")
            one = server.client("1", "count")
            assert one.receive() == "1 here"
            two = server.client(None, "count")
            assert [c.receive() for c in (one, two)] == ["2 here"] * 2
            two.send("loud é\n")
            assert [c.receive() for c in (one, two)] == ["LOUD É\n"] * 2
            two.close()
            assert one.receive() == "1 here"
        finally:
            python.kill()


@pytest.mark.parametrize("cookie, status", [
    ("session=0123456789abcdef", 101), ("x=1; session=0123456789abcdef", 101),
    ("x=1;session=0123456789abcdef; y=2", 101), (None, 401), ("x=1", 401),
    ("session=fedcba9876543210", 401), ("session=0123456789abcde", 401),
    ("mysession=0123456789abcdef", 401), ("session=../0123456789abcdef", 401),
    ('session="0123456789abcdef"', 401), ("session=aaaaaaaaaaaaaaaa", 401)])
def test_the_session_file_decides(serve, tmp_path, cookie, status):
    (tmp_path / "0123456789abcdef").write_text("admin\nmore\n")
    (tmp_path / "aaaaaaaaaaaaaaaa").write_text("bad user:x\n")
    server = serve("--service",
                   f"status=exec:{SERVICES}/session {tmp_path},auth=1",
                   "--service", wsp.MAIN)
    raw = server.raw()
    raw.send(wsp.request("/services/status", headers={"Cookie": cookie}))
    assert raw.response().status == status
    if status == 101:
        server.ok("send $user:admin", "hello")
        assert raw.read_text() == "hello"


def test_the_shell_examples_are_clean():
    names = ["chat", "call", "session"]
    subprocess.run(["shellcheck", *names], cwd=SERVICES, check=True)
    for name in names:
        assert (SERVICES / name).read_text().startswith("#!/bin/sh\n")
