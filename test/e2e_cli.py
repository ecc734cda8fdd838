# SPDX-License-Identifier: MIT
"""The client verbs, as a firmware script uses them: words and exit status."""
import json
import os
import pty
import re
import socket
import subprocess
import threading
import time

import pytest

import wsp
from wsp import MAIN, wspush

S = f"/services/{MAIN}-s-"

OK, REFUSED, USAGE, UNREACHABLE, NOBODY, UNCONFIRMED = range(6)


@pytest.fixture
def cli(server):
    """Runs a verb against the server: (status, stdout, stderr)."""
    def run(verb, *args, stdin=b""):
        done = wspush(verb, "-s", server.path, *args, stdin=stdin)
        return done.returncode, done.stdout.decode(), done.stderr.decode()
    return run


def check_complaint(text, *words):
    """Errors are for people: a line on standard error that says what."""
    assert text.endswith("\n") and len(text) > 15, text
    for word in words:
        assert word in text, (word, text)


# ----- send ---------------------------------------------------------------

def test_send_says_on_how_many_sockets_it_queued(server, cli):
    one = server.open()
    server.away("1")
    code, out, err = cli("send", "*", "hello")
    assert (code, out, err) == (OK, "queued on 2 sockets (1 away)\n", "")
    assert one.read_text() == "hello"


def test_send_says_it_in_the_singular_too(server, cli):
    server.open()
    code, out, _ = cli("send", "*", "hello")
    assert code == OK
    assert re.fullmatch(r"queued on 1 socket\b.*\n", out), out


def test_a_message_comes_from_standard_input_byte_for_byte(server, cli):
    raw = server.open()
    for data in (b"", b"\n", b"no line end", b"line\n\n\n", b"\r\n\t",
                 "Привет\n".encode(), b"x" * 65536, b"\0\1"):
        assert cli("send", "*", stdin=data)[0] == OK
        assert raw.message() == (wsp.TEXT, data)
    data = os.urandom(65536)
    assert cli("send", "-k", "binary", "*", stdin=data)[0] == OK
    assert raw.message() == (wsp.BINARY_FRAME, data)


def test_standard_input_that_comes_slowly_is_one_message(server):
    raw = server.open()
    process = subprocess.Popen([wsp.BINARY, "send", "-s", server.path, "*"],
                               stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)
    for part in (b"one ", b"two ", b"three"):
        process.stdin.write(part)
        process.stdin.flush()
        time.sleep(0.05)
    process.stdin.close()
    assert process.wait(wsp.PATIENCE) == OK
    assert raw.read_text() == "one two three"


@pytest.mark.parametrize("message", [
    "-w", "--", "-", "--help", "-k", "", " ", "two words", "$HOME", "*",
    "a=b", "line\nline\n", "Привет!"])
def test_a_message_may_begin_with_anything(server, cli, message):
    raw = server.open()
    assert cli("send", "-k", "text", "*", message)[0] == OK
    assert raw.read_text() == message


def test_an_empty_message_argument_is_a_message(server, cli):
    raw = server.open()
    assert cli("send", "*", "", stdin=b"not this")[0] == OK
    assert raw.read_text() == ""


@pytest.mark.parametrize("kind, want", [
    ("text", (wsp.TEXT, b'{"a":1}')), ("json", (wsp.TEXT, b'[{"a":1}]')),
    ("binary", (wsp.BINARY_FRAME, b'{"a":1}'))])
def test_the_kind_is_chosen_by_k(server, cli, kind, want):
    raw = server.open()
    assert cli("send", "-k", kind, "*", '{"a":1}')[0] == OK
    assert raw.message() == want


def test_options_may_be_joined_and_stand_in_any_order(server):
    raw = server.open()
    done = wspush("send", "-kjson", "-s", server.path, "*", "1")
    assert done.returncode == OK
    assert raw.read_text() == "[1]"


def test_a_target_of_several_terms_is_one_argument(server, cli):
    one = server.open("g:1::n:1")
    two = server.open("g:1::n:2")
    assert cli("send", "$g:1 $n:2 =open", "for two")[0] == OK
    assert server.fence(one, two) == [[], ["for two"]]


def test_nobody_there_is_status_4(server, cli):
    server.open("1")
    for args in (("send", "$absent", "x"), ("send", f"{S}absent", "x"),
                 ("send", f"{S}1 =away", "x"), ("close", "$absent"),
                 ("close", f"{S}absent"), ("abort", "$absent"),
                 ("abort", f"{S}absent")):
        code, _, err = cli(*args)
        assert code == NOBODY, (args, err)
    assert len(server.rows()) == 1


@pytest.mark.parametrize("args, stdin", [
    (("send", "$", "x"), b""), (("send", "$:v", "x"), b""),
    (("send", "* *x", "x"), b""), (("send", "*"), b"\xff"),
    (("send", "*"), b"x" * 65537), (("send", "/services/absent", "x"), b""),
    (("list", "$"), b""), (("close", "$"), b""), (("abort", "$"), b""),
    (("close", "*", "r" * 124), b"")])
def test_what_the_server_refuses_is_status_1_and_its_sentence(
        server, cli, args, stdin):
    raw = server.open()
    code, out, err = cli(*args, stdin=stdin)
    assert code == REFUSED, (out, err)
    assert out == ""
    check_complaint(err)
    assert server.fence(raw) == [[]]


def test_queue_full_is_status_1(serve):
    server = serve("--queue-messages", 1, "--overflow", "refuse")
    away = server.away("1")
    codes = [wspush("send", "-s", server.path, away, "x").returncode
             for _ in range(2)]
    assert codes == [OK, REFUSED]


def test_standard_input_beyond_any_message_is_status_1_and_not_cut(
        server, cli):
    raw = server.open()
    code, _, err = cli("send", "*", stdin=b"x" * 3_000_000)
    assert code == REFUSED
    check_complaint(err)
    assert server.fence(raw) == [[]]


@pytest.mark.parametrize("args", [
    (), ("frobnicate",), ("send",), ("send", "-k"), ("send", "-k", "xml", "*",
     "x"), ("send", "-x", "*", "x"), ("send", "*", "two", "messages"),
    ("send", "-t", "soon", "*", "x"), ("send", "-w", "soon", "*", "x"),
    ("send", "-s"), ("close",), ("close", "-c", "x", "*"), ("close", "-c"),
    ("close", "-c", "1004", "*"),
    ("close", "*", "two", "reasons"), ("abort",), ("abort", "*", "x"),
    ("list", "-x"), ("list", "*", "x"), ("stats", "*"), ("stats", "-x"),
    ("ping", "x"), ("ping", "-x"), ("help", "frobnicate"),
    ("version", "x")])
def test_wrong_usage_is_status_2_and_says_how_it_goes(server, args):
    done = wspush(*args, env={"WSPUSH_SOCKET": server.path})
    assert done.returncode == USAGE, done
    assert done.stdout == b""
    check_complaint(done.stderr.decode(), "wspush")


def test_a_terminal_on_standard_input_is_wrong_usage(server):
    server.open()
    master, slave = pty.openpty()
    try:
        done = subprocess.run([wsp.BINARY, "send", "-s", server.path, "*"],
                              stdin=slave, capture_output=True,
                              timeout=wsp.PATIENCE, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == USAGE
    check_complaint(done.stderr.decode())


def test_no_server_is_status_3_and_says_so(tmp_path):
    nobody = tmp_path / "nobody"
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(dead))
    for path in (nobody, dead):
        for args in (("send", "*", "x"), ("list",), ("close", "*"),
                     ("abort", "*"), ("stats",), ("ping",)):
            done = wspush(args[0], "-s", str(path), *args[1:])
            assert done.returncode == UNREACHABLE, (args, done)
            assert done.stdout == b""
            check_complaint(done.stderr.decode(), str(path))


def test_a_server_that_does_not_answer_is_status_3_within_seconds(tmp_path):
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mute:
        mute.bind(str(path))
        began = time.monotonic()
        done = wspush("ping", "-s", str(path))
        assert done.returncode == UNREACHABLE
        assert 1 < time.monotonic() - began < 5 + 4
        no_answer = done.stderr
        check_complaint(no_answer.decode())
        # And when its queue is full the script is not stuck either.
        mute.close()
    absent = wspush("ping", "-s", str(path)).stderr
    assert absent != no_answer, "the two must not be said alike"


def test_a_server_whose_queue_is_full_does_not_block_a_script(tmp_path):
    path = tmp_path / "full"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        full.bind(str(path))
        filler.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                filler.sendto(b"x", str(path))
        began = time.monotonic()
        done = wspush("send", "-s", str(path), "*", "x")
        assert done.returncode == UNREACHABLE
        assert time.monotonic() - began < 5 + 4


def test_a_reply_from_elsewhere_is_not_taken_for_the_servers(tmp_path):
    """The client is connected: only the server can answer it."""
    path = tmp_path / "p"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as fake, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        fake.bind(str(path))
        fake.settimeout(wsp.PATIENCE)
        answers = []

        def answer():
            data, sender = fake.recvfrom(1000)
            ref = b"".join(b" " + word for word in data.split()
                           if word.startswith(b"ref="))
            try:
                stranger.sendto(b"ok 7" + ref + b"\n", sender)
            except OSError as error:
                answers.append(error)
            fake.sendto(b"ok 0" + ref + b"\n", sender)
        thread = threading.Thread(target=answer)
        thread.start()
        done = wspush("send", "-s", str(path), "*", "x")
        thread.join()
        assert answers, "a stranger could answer"
        assert done.returncode == NOBODY


def test_wspush_socket_in_the_environment_stands_for_s(server, tmp_path):
    raw = server.open()
    done = wspush("send", "*", "by environment",
                  env={"WSPUSH_SOCKET": server.path})
    assert done.returncode == OK
    assert raw.read_text() == "by environment"
    done = wspush("ping", "-s", server.path,
                  env={"WSPUSH_SOCKET": str(tmp_path / "absent")})
    assert done.returncode == OK, "-s must win"


# ----- the other verbs ----------------------------------------------------

def test_list_prints_the_rows(server, cli):
    raw = server.open("id:1")
    away = server.away("x")
    code, out, err = cli("list")
    assert (code, err) == (OK, "")
    rows = {line.split("\t")[0]: line.split("\t")
            for line in out.splitlines()}
    assert rows[f"{S}id:1"][1] == "open" and rows[f"{S}id:1"][5] == raw.name
    assert rows[away][1] == "away"
    code, out, _ = cli("list", "=away")
    assert code == OK and out.startswith(away + "\t")


def test_list_of_nobody_prints_nothing_and_is_done(server, cli):
    assert cli("list") == (OK, "", "")
    assert cli("list", f"{S}absent") == (OK, "", "")
    code, out, _ = cli("list", "-j")
    assert code == OK and json.loads(out) == []


def test_list_asks_until_it_has_all_and_j_is_one_array(server, cli):
    ids = {f"n:{n}::filler:{'x' * 90}" for n in range(200)}
    for id in ids:
        server.open(id)
    code, out, _ = cli("list")
    assert code == OK
    names = [line.split("\t")[0] for line in out.splitlines()]
    assert len(names) == 200 and set(names) == {S + id for id in ids}
    code, out, _ = cli("list", "-j")
    rows = json.loads(out)
    assert code == OK and len(rows) == 200
    assert {row["socketId"] for row in rows} == {S + id for id in ids}


def test_close_sends_code_and_reason(server, cli):
    raw = server.open("g:1")
    code, out, err = cli("close", "-c", "4000", "$g:1", "Пока!")
    assert (code, err) == (OK, "") and re.search(r"\b1\b", out)
    assert raw.closed() == (4000, "Пока!")
    raw = server.open()
    assert cli("close", "*")[0] == OK
    assert raw.closed() == (1000, "")


def test_a_reason_may_begin_with_a_dash(server, cli):
    raw = server.open()
    assert cli("close", "*", "-c")[0] == OK
    assert raw.closed() == (1000, "-c")


def test_abort_cuts(server, cli):
    raw = server.open("1")
    code, out, _ = cli("abort", "*")
    assert code == OK and re.search(r"\b1\b", out)
    raw.ends()
    assert server.row(f"{S}1")["state"] == "away"


def test_stats_prints_lines_and_j_an_object(server, cli):
    server.open()
    code, out, _ = cli("stats")
    assert code == OK
    stats = dict(line.split(" ") for line in out.splitlines())
    assert stats["sockets_open"] == "1"
    code, out, _ = cli("stats", "-j")
    assert code == OK and json.loads(out)["sockets_open"] == 1


def test_ping_is_done_when_the_server_answers(server, cli):
    code, _, err = cli("ping")
    assert (code, err) == (OK, "")


def test_version_and_help_need_no_server():
    done = wspush("version")
    assert done.returncode == OK
    assert re.search(rb"\d+\.\d+", done.stdout)
    done = wspush("help")
    assert done.returncode == OK
    for verb in ("serve", "send", "list", "close", "abort", "stats", "ping",
                 "version", "help"):
        assert re.search(rf"\b{verb}\b", done.stdout.decode()), verb
        one = wspush("help", verb)
        assert one.returncode == OK, verb
        assert verb in one.stdout.decode()


def test_help_serve_names_every_option():
    out = wspush("help", "serve").stdout.decode()
    for name in """listen listen-plain push push-mode push-group cert key
            state service origin duplicate max-sockets max-per-ip
            queue-messages queue-bytes overflow store-bytes max-message
            max-inbound send-buffer session-ttl ping-interval pong-timeout
            handshake-timeout ack no-page no-sandbox wait
            memory check log-level metrics syslog""".split():
        assert f"--{name}" in out, name


def test_a_closed_standard_output_is_no_crash(server):
    server.away("1")
    done = subprocess.run(f"'{wsp.BINARY}' list -s '{server.path}' >&-",
                          shell=True, capture_output=True,
                          timeout=wsp.PATIENCE, check=False)
    assert 0 <= done.returncode < 6, done


# ----- waiting for acknowledgement ----------------------------------------

@pytest.fixture
def acks(server):
    if server.push("send ack=1 $probe", "").code == "bad-option":
        pytest.skip("this server does not know ack= yet")


def answering(raw):
    """Reads in the background and answers Pings, as a browser does."""
    def loop():
        try:
            while True:
                raw.message()
        except (wsp.Gone, wsp.Closed, OSError, ValueError):
            pass
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


def test_send_w_is_0_when_every_client_has_it(acks, server, cli):
    for raw in (server.open("1"), server.open("2"), server.open()):
        answering(raw)
    code, _, err = cli("send", "-w", "10", "*", "hello")
    assert (code, err) == (OK, "")


def test_send_w_is_5_when_one_does_not_answer_in_time(acks, server, cli):
    answering(server.open("1"))
    server.away("2")
    code, _, _ = cli("send", "-w", "1", "*", "hello")
    assert code == UNCONFIRMED
    code, _, _ = cli("send", "-w", "1", f"{S}1", "hello")
    assert code == OK


def test_send_w_to_nobody_is_4(acks, server, cli):
    code, _, _ = cli("send", "-w", "1", "$absent", "hello")
    assert code == NOBODY


@pytest.mark.parametrize("words", [
    ("send", "a\nb\x1b[2J", "x"),
    ("send", "-K", "a\nb", "*", "x"),
    ("send", "-s", "/nowhere/at\nall", "*", "x"),
    ("ver\nb",),
    ("serve", "--a\nb"),
    ("serve", "--service", "a=x\ny"),
])
def test_a_complaint_is_one_line_whatever_was_typed(words):
    err = wspush(*words).stderr.decode()
    complaint = err.partition("usage: ")[0]
    assert complaint[:-1].isprintable() and complaint[-1] == "\n", err


def test_what_cannot_be_printed_is_said_and_1(server):
    with open("/dev/full", "wb") as full:
        for verb in ("stats", "ping", "help", "version"):
            done = subprocess.run(
                [wsp.BINARY, verb], stdout=full, stderr=subprocess.PIPE,
                env={**os.environ, "WSPUSH_SOCKET": server.path}, check=False)
            assert done.returncode == REFUSED
            check_complaint(done.stderr.decode(), "No space left")
            assert done.stderr.count(b"\n") == 1
