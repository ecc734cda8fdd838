# SPDX-License-Identifier: MIT
"""A server's life: options, start, keepalive, reload, stop."""
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import time

from cryptography import x509
import pytest

import wsp
from wsp import MAIN, PING, PONG, fails, make_certificate, peer_certificate


def sentence(lines, *words):
    """One line for people, which names what is wrong."""
    assert len(lines) == 1, lines
    assert len(lines[0]) > 15, lines
    for word in words:
        assert str(word) in lines[0], (word, lines)


# ----- the ready line and what stands behind it ---------------------------

def test_the_ready_line_names_every_listener(serve):
    server = serve("--listen-plain", "127.0.0.1:0", "--listen", "127.0.0.1:0")
    assert len(server.ws) == len(server.wss) == 2
    assert len(set(server.ws + server.wss)) == 4
    for address in server.ws:
        wsp.Raw(address).upgrade(f"/services/{MAIN}")
    for address in server.wss:
        wsp.Raw(address, tls=True).upgrade(f"/services/{MAIN}")
    assert server.path == str(server.dir / "push.sock")


def test_the_ready_line_comes_whatever_the_log_level(serve):
    server = serve("--log-level", "error")
    lines = [line for line in server.log if line.startswith("wspush: ready")]
    assert len(lines) == 1


def test_a_plain_server_needs_no_certificate(tmp_path):
    with wsp.Server("--listen-plain", "127.0.0.1:0", "--push",
                    tmp_path / "p", "--state", tmp_path / "absent",
                    listen=False) as server:
        assert server.wss == [] and len(server.ws) == 1
        server.open().heartbeat()
        assert not (tmp_path / "absent").exists()


def test_a_port_alone_means_ipv4_and_ipv6(serve):
    server = serve("--listen-plain", "0")
    port = server.ws[-1][1]
    hosts = ["127.0.0.1"]
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        hosts.append("::1")
    except OSError:
        pass  # a machine without IPv6
    for host in hosts:
        raw = wsp.Raw((host, port))
        raw.upgrade(f"/services/{MAIN}")
        assert raw.name in {row["peer"] for row in server.rows()}
        raw.close_socket()


def test_an_ipv6_address_stands_in_brackets(serve):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = serve("--listen-plain", "[::1]:0")
    assert server.ws[-1][0] == "::1"
    raw = wsp.Raw(server.ws[-1])
    raw.upgrade(f"/services/{MAIN}")
    [row] = server.rows()
    assert row["peer"] == raw.name and row["peer"].startswith("[::1]:")
    raw.close_socket()


def test_the_push_socket_has_its_mode_and_its_directory_is_made(tmp_path):
    path = tmp_path / "made" / "push.sock"
    with wsp.Server("--listen-plain", "127.0.0.1:0", "--push", path,
                    "--state", tmp_path, listen=False) as server:
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660
        server.ok("ping")
    assert not path.exists()
    with wsp.Server("--listen-plain", "127.0.0.1:0", "--push", path,
                    "--push-mode", "0600", "--state", tmp_path, listen=False):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_no_descriptor_of_the_server_reaches_what_it_was_not_meant_for(serve):
    server = serve()
    for fd in os.listdir(f"/proc/{server.pid}/fd"):
        flags = pathlib.Path(f"/proc/{server.pid}/fdinfo/{fd}").read_text()
        number = int(re.search(r"flags:\s*([0-7]+)", flags)[1], 8)
        assert int(fd) < 3 or number & os.O_CLOEXEC, f"descriptor {fd}"


# ----- options and the config file ----------------------------------------

BASE = ["--listen-plain", "127.0.0.1:0"]


@pytest.mark.parametrize("options, word", [
    (["--frobnicate"], "--frobnicate"), (["--frobnicate=1"], "--frobnicate"),
    (["--max-sockets"], "--max-sockets"), (["extra"], "extra"),
    (["--max-sockets", "abc"], "abc"), (["--max-sockets", "0"], "0"),
    (["--max-sockets", "-1"], "-1"), (["--max-sockets", "12x"], "12x"),
    (["--max-sockets", "99999999999999999999"], "99999999999999999999"),
    (["--max-message", ""], "--max-message"),
    (["--overflow", "explode"], "explode"),
    (["--duplicate", "maybe"], "maybe"), (["--ack", "never"], "never"),
    (["--listen-plain", "127.0.0.1:x"], "127.0.0.1:x"),
    (["--listen-plain", "127.0.0.1:65536"], "65536"),
    (["--listen-plain", "1:2:3"], "1:2:3"),
    (["--listen-plain", "[::1:5"], "[::1:5"),
    (["--push-mode", "0999"], "0999"), (["--push", "x" * 108], "push"),
    (["--service", "bad-name"], "bad-name"), (["--service", ".."], ".."),
    (["--service", "x" * 65], "x" * 65), (["--service", ""], "service"),
    (["--service", "a=frob"], "frob"), (["--service", "a,frob=1"], "frob"),
    (["--service", "a,max=x"], "max"),
    (["--service", "a", "--service", "a"], "a"),
    (["--queue-bytes", "100"], "--queue-bytes"),
    (["--queue-bytes", "1000", "--max-message", "1001"], "--queue-bytes"),
    (["--log-level", "loud"], "loud"),
    (["--origin", "not an origin"], "not an origin")])
def test_a_bad_option_is_named_in_one_sentence_and_exit_2(
        tmp_path, options, word):
    where = ["--push", tmp_path / "p", "--state", tmp_path]
    code, lines = fails(*BASE, *where, *options)
    assert code == 2, lines
    sentence(lines, word)
    assert not (tmp_path / "p").exists()


@pytest.fixture
def conf(tmp_path):
    """Writes the config file."""
    if b"--config" not in wsp.wspush("help", "serve").stdout:
        pytest.skip("this server does not know --config yet")

    def write(text):
        path = tmp_path / "wspush.conf"
        path.write_text(text)
        return path
    return write


@pytest.mark.parametrize("line, word", [
    ("frobnicate 1", "frobnicate"), ("max-sockets abc", "abc"),
    ("max-sockets", "max-sockets"), ("--max-sockets 5", "--max-sockets"),
    ("service bad-name", "bad-name"), ("overflow explode", "explode"),
    ("max-sockets 5 6", "5 6"), ("no-page maybe", "maybe")])
def test_a_bad_line_of_the_config_is_named_with_file_and_line(
        tmp_path, line, word, conf):
    path = conf(f"# a comment\n\nmax-inbound 1000\n{line}\n"
                "frobnicate too\n")
    code, lines = fails(*BASE, "--push", tmp_path / "p", "--state", tmp_path,
                        "--config", path)
    assert code == 2, lines
    sentence(lines, path, 4, word)


def test_a_config_that_is_not_there_is_named(tmp_path, conf):
    code, lines = fails(*BASE, "--config", tmp_path / "absent")
    assert code == 2
    sentence(lines, tmp_path / "absent")


def test_a_config_file_gives_options_and_comments_are_skipped(serve, conf):
    path = conf("# max-message 5\n\nmax-message 100\n"
                "service one\nservice two\nno-page\n")
    server = serve("--config", path)
    server.open(service="one")
    server.open(service="two")
    assert server.ask(wsp.request(f"/services/{MAIN}")).status == 404
    assert server.ask(wsp.request("/", upgrade=False)).status == 404
    server.ok("send *", "x" * 100)
    server.refused("too-big", "send *", "x" * 101)


@pytest.mark.parametrize("before", [True, False])
def test_the_command_line_wins_over_the_config(serve, before, conf):
    path = conf("max-message 100\nservice one\nservice two\n")
    options = ["--max-message", 200, "--service", "three"]
    server = serve(*(options if before else []), "--config", path,
                   *([] if before else options))
    server.open(service="three")
    assert server.ask(wsp.request("/services/one")).status == 404
    server.ok("send *", "x" * 200)
    server.refused("too-big", "send *", "x" * 201)


def run(*args):
    return subprocess.run([wsp.BINARY, *map(str, args)], capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=wsp.PATIENCE,
                          check=False)


def test_check_reads_config_and_certificates_and_starts_nothing(
        tmp_path, conf):
    cert, key = make_certificate(tmp_path)
    path = conf(f"cert {cert}\nkey {key}\nlisten 127.0.0.1:0\n"
                f"push {tmp_path}/p\nstate {tmp_path}\n")
    done = run("serve", "--config", path, "--check")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "p").exists()
    for text, word in (("cert {c}\nkey /nonexistent\n", "/nonexistent"),
                       ("cert {k}\nkey {k}\n", "test.key"),
                       ("frobnicate\n", "frobnicate")):
        bad = conf(text.format(c=cert, k=key) + "listen 127.0.0.1:0\n")
        done = run("serve", "--config", bad, "--check")
        assert done.returncode == 2, (text, done)
        sentence(done.stderr.decode().splitlines(), word)


def test_memory_prints_rows_that_grow_with_the_options_and_exits(tmp_path):
    def total(*options):
        done = run("serve", *BASE, "--push", tmp_path / "p", "--memory",
                   *options)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        assert len(lines) > 3
        numbers = [int(n.replace(",", "")) for line in lines
                   for n in re.findall(r"\b\d[\d,]*\b", line)]
        return max(numbers)
    small, large = total(), total("--store-bytes", 64 << 20)
    assert large - small >= 60 << 20
    assert not (tmp_path / "p").exists()


def test_a_table_beyond_the_descriptors_is_one_line_with_both_numbers(
        tmp_path):
    done = subprocess.run(
        ["prlimit", "--nofile=100:100", wsp.BINARY, "serve", *BASE, "--push",
         tmp_path / "p", "--state", tmp_path, "--max-sockets", "5000"],
        capture_output=True, timeout=wsp.PATIENCE, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.decode().splitlines()
    sentence(lines, 100)
    assert max(map(int, re.findall(r"\d+", lines[0]))) >= 5000


# ----- what is not to be had: exit 1 --------------------------------------

def test_a_port_in_use_is_one_line_and_exit_1(serve, tmp_path):
    taken = serve().ws[0][1]
    code, lines = fails("--listen-plain", f"127.0.0.1:{taken}", "--push",
                        tmp_path / "p", "--state", tmp_path)
    assert code == 1
    sentence(lines, taken)
    assert not (tmp_path / "p").exists()


def test_with_wait_a_port_in_use_is_tried_again_and_said_once(tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = subprocess.Popen(
            [wsp.BINARY, "serve", "--listen-plain", f"127.0.0.1:{port}",
             "--push", tmp_path / "p", "--state", tmp_path, "--wait", "20"],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            said = process.stderr.readline()
            assert str(port) in said
            time.sleep(1.2)  # long enough for a second try
            assert process.poll() is None
            taken.close()
            assert process.stderr.readline().startswith("wspush: ready ")
        finally:
            process.terminate()
            assert process.wait(wsp.PATIENCE) == 0
            process.stderr.close()


@pytest.mark.parametrize("what", ["missing", "noise", "empty", "a directory"])
def test_a_certificate_that_cannot_be_read_is_one_line_and_exit_1(
        tmp_path, what):
    cert, key = make_certificate(tmp_path)
    bad = tmp_path / "bad"
    if what == "noise":
        bad.write_bytes(os.urandom(500))
    elif what == "empty":
        bad.touch()
    elif what == "a directory":
        bad.mkdir()
    for pair in ((bad, key), (cert, bad)):
        code, lines = fails("--listen", "127.0.0.1:0", "--cert", pair[0],
                            "--key", pair[1], "--push", tmp_path / "p",
                            "--state", tmp_path)
        assert code == 1, lines
        sentence(lines, bad)


def test_a_key_that_does_not_belong_to_the_certificate_is_refused(tmp_path):
    cert, _ = make_certificate(tmp_path, "one")
    _, key = make_certificate(tmp_path, "two")
    code, lines = fails("--listen", "127.0.0.1:0", "--cert", cert, "--key",
                        key, "--push", tmp_path / "p", "--state", tmp_path)
    assert code == 1, lines
    sentence(lines)


def test_a_state_directory_that_cannot_be_made_is_exit_1(tmp_path):
    (tmp_path / "file").touch()
    code, lines = fails("--listen", "127.0.0.1:0", "--push", tmp_path / "p",
                        "--state", tmp_path / "file" / "state")
    assert code == 1
    sentence(lines, tmp_path / "file")


def test_a_push_path_that_cannot_be_made_is_exit_1(tmp_path):
    (tmp_path / "file").touch()
    code, lines = fails(*BASE, "--push", tmp_path / "file" / "p", "--state",
                        tmp_path)
    assert code == 1
    sentence(lines, tmp_path / "file")


# ----- the push path ------------------------------------------------------

def test_a_socket_that_a_dead_server_left_is_taken_over(tmp_path):
    path = tmp_path / "p"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    assert path.exists()
    with wsp.Server(*BASE, "--push", path, "--state", tmp_path,
                    listen=False) as server:
        server.ok("ping")


def test_a_killed_server_leaves_a_path_that_the_next_one_takes(tmp_path):
    first = wsp.Server(directory=tmp_path)
    first.kill()
    assert os.path.exists(first.path)
    with wsp.Server(directory=tmp_path) as second:
        second.ok("ping")


def test_a_path_that_a_live_server_owns_is_never_taken(serve):
    server = serve()
    code, lines = fails(*BASE, "--push", server.path, "--state", server.dir)
    assert code == 1
    sentence(lines, server.path)
    server.ok("ping")
    assert server.push("ping").count == 0


@pytest.mark.parametrize("kind", ["a file", "a directory", "a fifo"])
def test_what_is_no_socket_is_never_unlinked(tmp_path, kind):
    path = tmp_path / "p"
    if kind == "a file":
        path.write_text("precious")
    elif kind == "a directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = os.stat(path)
    code, lines = fails(*BASE, "--push", path, "--state", tmp_path)
    assert code == 1
    sentence(lines, path)
    after = os.stat(path)
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


def test_at_exit_the_path_goes_only_if_it_is_still_ours(tmp_path):
    server = wsp.Server(directory=tmp_path)
    server.ok("ping")
    os.unlink(server.path)
    pathlib.Path(server.path).write_text("somebody else's")
    server.stop()
    assert pathlib.Path(server.path).read_text() == "somebody else's"
    os.unlink(server.path)
    server = wsp.Server(directory=tmp_path)
    server.stop()
    assert not os.path.exists(server.path)


# ----- SIGHUP -------------------------------------------------------------

def reload(server, pattern=None):
    """SIGHUP, and waits until it has been looked at: a signal leaves no
    reply, so the log must say something."""
    before = len(server.log)
    server.kick(signal.SIGHUP)
    return server.wait_log(pattern or r"(?i)reload|read again|sighup",
                           after=before)


def test_sighup_reads_the_certificate_again_and_keeps_connections(
        tmp_path, serve):
    cert, key = make_certificate(tmp_path, "first")
    server = serve("--cert", cert, "--key", key)
    old = server.open(tls=True)
    plain = server.open("1")
    before = peer_certificate(server.address(tls=True))
    new_cert, new_key = make_certificate(tmp_path, "second", kind="rsa")
    shutil.copy(new_cert, cert)
    shutil.copy(new_key, key)
    reload(server)
    after = peer_certificate(server.address(tls=True))
    assert after != before
    assert x509.load_der_x509_certificate(after).subject.rfc4514_string() == (
        "CN=second")
    assert server.fence(old, plain) == [[], []]
    server.open(tls=True).heartbeat()


def test_what_cannot_be_read_at_sighup_keeps_its_old_value(tmp_path, serve):
    cert, key = make_certificate(tmp_path)
    server = serve("--cert", cert, "--key", key)
    before = peer_certificate(server.address(tls=True))
    cert.write_text("no certificate at all\n")
    reload(server, "test.crt")
    assert peer_certificate(server.address(tls=True)) == before
    server.open(tls=True).heartbeat()


def test_sighup_reads_origins_and_overflow_again(serve, conf):
    text = "queue-messages 1\noverflow {}\norigin {}\n"
    path = conf(text.format("drop-oldest", "https://one.example"))
    server = serve("--config", path)

    def status(origin):
        return server.ask(wsp.request(f"/services/{MAIN}", headers={
            "Origin": f"https://{origin}.example"})).status
    assert (status("one"), status("two")) == (101, 403)
    server.ok("close *")
    away = server.away("1")
    for _ in range(2):
        assert server.ok(f"send {away}", "x").count == 1
    conf(text.format("refuse", "https://two.example"))
    reload(server)
    assert (status("one"), status("two")) == (403, 101)
    server.refused("queue-full", f"send {away}", "x")


def test_an_option_that_needs_a_restart_is_named_at_sighup(serve, conf):
    path = conf("max-sockets 10\n")
    server = serve("--config", path)
    raw = server.open()
    conf("max-sockets 20\n")
    assert "restart" in reload(server, "max-sockets")
    raw.heartbeat()


def test_a_config_that_went_bad_is_logged_at_sighup_and_changes_nothing(
        serve, conf):
    path = conf("origin https://one.example\n")
    server = serve("--config", path)
    raw = server.open()
    conf("origin https://two.example\nfrobnicate\n")
    reload(server, "frobnicate")
    raw.heartbeat()
    assert server.ask(wsp.request(f"/services/{MAIN}", headers={
        "Origin": "https://one.example"})).status == 101


def test_many_sighups_are_survived(serve):
    server = serve()
    raw = server.open(tls=True)
    for _ in range(20):
        server.kick(signal.SIGHUP)
        raw.heartbeat()
    server.open(tls=True).heartbeat()


# ----- keepalive ----------------------------------------------------------

@pytest.fixture(scope="module")
def lively():
    with wsp.Server("--ping-interval", 1, "--pong-timeout", 1) as server:
        yield server


def test_a_client_that_answers_pings_lives(lively, tls):
    raw = lively.open(tls=tls)
    seen = set()
    for _ in range(3):
        got = raw.next_frame()
        assert got.opcode == PING and len(got.payload) == 16
        seen.add(got.payload[8:])
        raw.frame(PONG, got.payload)
    assert len(seen) == 1, "the last 8 bytes belong to the connection"
    raw.text("$hbt")
    assert raw.message() == (1, b"$ok")


def test_a_client_that_does_not_answer_pings_is_cut_as_1006(lively, tls):
    raw = lively.open(tls=tls)
    try:
        while True:
            assert raw.next_frame().opcode == PING
    except wsp.Gone:
        pass
    wsp.until(lambda: raw.name not in {row["peer"] for row in lively.rows()},
              "the dead client to be off the list")


def test_any_byte_from_the_client_proves_it_alive(lively):
    silent = lively.open()
    chatty = lively.open()
    while not silent.ended:
        chatty.text("$hbt")
        silent.socket.settimeout(0.2)
        try:
            silent.more()
        except TimeoutError:
            pass
        while chatty.next_frame().opcode == PING:
            pass
    assert chatty.name in {row["peer"] for row in lively.rows()}


def test_a_stateful_client_that_is_cut_leaves_its_socket_away(lively):
    raw = lively.open("mute")
    lively.wait_state(f"/services/{MAIN}-s-mute", "away")
    assert raw.rest()


def test_with_a_ping_interval_of_0_nobody_is_pinged_or_cut(serve):
    server = serve("--ping-interval", 0, "--pong-timeout", 1)
    raw = server.open()
    raw.socket.settimeout(2.5)
    with pytest.raises(TimeoutError):
        raw.next_frame()
    raw.socket.settimeout(wsp.PATIENCE)
    raw.heartbeat()


# ----- the end ------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_says_1001_to_all_and_exits_0(serve, tls, number):
    server = serve()
    clients = [server.client(tls=tls) for _ in range(3)]
    server.kick(number)
    for client in clients:
        assert client.wait_closed()[0] == 1001
    assert server.wait_exit() == 0
    assert not os.path.exists(server.path)


def test_what_was_taken_before_sigterm_is_flushed_first(serve, tls):
    server = serve()
    raw = server.open(tls=tls)
    with wsp.Push(server.path, None) as sender, server.pause():
        for number in range(10):
            sender.send("send *", f"{number}")
        server.kick(signal.SIGTERM)
    assert [raw.read_text() for _ in range(10)] == [str(n) for n in range(10)]
    assert raw.closed()[0] == 1001
    raw.frame(wsp.CLOSE, wsp.close_payload(1001))
    raw.ends()
    assert server.wait_exit() == 0


def test_a_backlog_is_written_to_a_client_that_reads_at_the_end(serve, tls):
    server = serve("--queue-bytes", 1_000_000, "--queue-messages", 1000)
    raw = server.open(tls=tls, receive_buffer=32768)
    count = 0
    while server.rows()[0]["messages"] < 10:
        server.ok("send *", f"{count:03}" + "x" * 20_000)
        count += 1
        assert count < 500, "the kernel takes it all"
    server.kick(signal.SIGTERM)
    assert [int(raw.read_text()[:3]) for _ in range(count)] == list(
        range(count))
    assert raw.closed()[0] == 1001


def test_clients_that_neither_read_nor_answer_do_not_hold_up_the_end(serve):
    server = serve()
    for number in range(5):
        server.open(receive_buffer=4096, tls=number % 2 == 0)
        server.raw().send(b"GET / HT")
        server.raw(tls=True).send(b"GET / HT")
        wsp.Raw(server.address(tls=True)).send(b"\x16\x03\x01")
    for _ in range(40):
        server.push("send *", "x" * 60_000)  # in the end queue-full
    server.kick(signal.SIGTERM)
    began = time.monotonic()
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 6  # 3 s, and three for a busy machine


def test_a_second_sigterm_changes_nothing(serve):
    server = serve()
    server.open()
    server.kick(signal.SIGTERM)
    try:
        server.kick(signal.SIGTERM)
    except ProcessLookupError:
        pass
    assert server.wait_exit() == 0


def test_the_port_is_free_again_at_once(tmp_path):
    with wsp.Server(directory=tmp_path) as server:
        port = server.ws[0][1]
        server.open().heartbeat()
        wsp.Raw(server.ws[0]).upgrade(f"/services/{MAIN}")
    with wsp.Server("--listen-plain", f"127.0.0.1:{port}",
                    directory=tmp_path) as server:
        assert server.ws[-1][1] == port


def test_a_log_that_nobody_reads_any_more_is_no_matter(tmp_path):
    process = subprocess.Popen(
        [wsp.BINARY, "serve", *BASE, "--push", tmp_path / "p", "--state",
         tmp_path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        line = process.stderr.readline()
        assert line.startswith(b"wspush: ready"), line
        process.stderr.close()
        with wsp.Push(tmp_path / "p") as push, \
                wsp.Push(tmp_path / "p", None) as nobody:
            for _ in range(20):
                nobody.send("frobnicate")
            assert push("ping").count == 0
    finally:
        process.terminate()
        assert process.wait(wsp.PATIENCE) == 0


def test_a_socket_is_never_left_open_for_nothing(serve):
    """After many clients of every kind the descriptors are what they were."""
    server = serve()

    def descriptors():
        return len(os.listdir(f"/proc/{server.pid}/fd"))
    server.open(tls=True).say_close()
    wsp.until(lambda: not server.rows(), "the first to be gone")
    before = descriptors()
    for number in range(60):
        raw = server.open(str(number), tls=number % 3 == 0)
        (raw.close_socket, raw.reset, raw.say_close)[number % 3]()
        server.ask(wsp.request("/healthz", upgrade=False)).body
        server.raw(tls=number % 2 == 0).close_socket()
    wsp.until(lambda: descriptors() <= before,
              "as many descriptors as before")
