# SPDX-License-Identifier: MIT
"""Under a service manager: what the server tells it (NOTIFY_SOCKET), and
sockets that it opened beforehand (LISTEN_FDS)."""
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

import wsp
from wsp import MAIN

# Opens sockets as systemd does, and becomes the server.  What it opens comes
# as words NAME=wss, ws, push or udp before a `--`.
LAUNCHER = """\
import os, socket, sys
names, kept = [], []
for word in WORDS:
    name, _, kind = word.partition("=")
    if kind == "push":
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        s.bind(PATH)
    elif kind == "udp":
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.bind(("127.0.0.1", 0))
        if kind == "listening":
            s.listen(5)
    if name != "nameless":
        names.append(name)
    kept.append(os.dup2(s.detach(), 40 + len(kept)))
if BEFORE:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(BEFORE.encode(), PATH)
for i, fd in enumerate(kept):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.environ["LISTEN_FDS"] = str(len(kept))
os.environ["LISTEN_FDNAMES"] = ":".join(names)
os.environ["LISTEN_PID"] = str(os.getpid() + OFF)
os.execv(BINARY, [BINARY] + sys.argv[1:])
"""


@pytest.fixture
def launcher(tmp_path):
    def make(*words, before="", off=0):
        path = tmp_path / "launcher"
        path.write_text(
            f"#!{sys.executable}\nWORDS, BEFORE, OFF = {words!r}, {before!r},"
            f" {off}\nPATH, BINARY = {str(tmp_path / 'passed.sock')!r}, "
            f"{wsp.BINARY!r}\n{LAUNCHER}")
        path.chmod(0o755)
        return str(path)
    return make


def test_sockets_that_were_passed_stand_in_for_the_options(
        serve, launcher, tmp_path):
    binary = launcher("ws=listening", "wss=listening", "push=push")
    server = serve("--listen", "127.0.0.1:1", listen=None, binary=binary)
    assert server.path == str(tmp_path / "passed.sock")
    assert len(server.ws) == len(server.wss) == 1
    for tls in (False, True):
        client = server.client(tls=tls)
        server.ok("send *", "hello")
        assert client.receive() == "hello"
        client.close()
    server.stop()
    assert os.path.exists(server.path), "the manager's path was unlinked"


def test_listeners_may_be_passed_without_a_push_socket(serve, launcher):
    server = serve(listen=None, binary=launcher("ws=listening"))
    assert server.path == str(server.dir / "push.sock")
    assert len(server.ws) == 1 and not server.wss


def test_a_push_socket_may_be_passed_without_listeners(serve, launcher):
    server = serve(binary=launcher("push=push"))
    client = server.client(tls=True)
    server.ok("send *", "hello")
    assert client.receive() == "hello"


def test_what_was_pushed_before_the_start_is_taken(serve, launcher):
    before = f"send retain=1 $service:{MAIN}\nearly"
    server = serve(binary=launcher("push=push", before=before))
    assert server.client().receive() == "early"


def test_a_reload_keeps_what_was_passed(serve, launcher):
    server = serve("--push", "/nowhere/push.sock", listen=None,
                   binary=launcher("ws=listening", "push=push"))
    client = server.client()
    at = len(server.log)
    server.kick(signal.SIGHUP)
    server.wait_log("reloaded", after=at)
    assert "needs a restart" not in server.tail()
    server.ok("send *", "hello")
    assert client.receive() == "hello"
    assert server.client()


def test_sockets_for_another_process_are_left_alone(serve, launcher):
    server = serve(binary=launcher("push=push", off=1))
    assert server.path == str(server.dir / "push.sock")


@pytest.mark.parametrize("words, says", [
    (["http=listening"], "passed as http is none of wss, ws and push"),
    (["=listening"], "passed as  is none of wss, ws and push"),
    (["ws=listening", "nameless=listening"],
     "passed as  is none of wss, ws and push"),
    (["push=listening"], "push is not a UNIX datagram socket"),
    (["wss=bound"], "wss is not a listening TCP socket"),
    (["ws=udp"], "ws is not a listening TCP socket"),
])
def test_what_does_not_fit_its_name_is_one_line_and_exit_1(
        launcher, tmp_path, words, says):
    done = subprocess.run(
        [launcher(*words), "serve", "--listen-plain", "127.0.0.1:0",
         "--push", tmp_path / "push.sock"], stdin=subprocess.DEVNULL,
        capture_output=True, timeout=wsp.PATIENCE, check=False)
    [line] = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert line.startswith("wspush: ") and says in line


def test_sockets_that_were_passed_leave_metrics_its_listener(
        serve, launcher):
    server = serve("--metrics", "127.0.0.1:0", binary=launcher("ws=listening"))
    raw = wsp.Raw(server.metrics)
    raw.send(wsp.request("/metrics", upgrade=False))
    assert raw.response().status == 200
    raw.close_socket()
    server.kick(signal.SIGHUP)
    server.wait_log("reloaded")
    assert not any("restart" in line for line in server.log)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_manager_is_told_of_ready_reload_and_stop(
        serve, tmp_path, abstract):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(wsp.PATIENCE)
        name = str(tmp_path / "notify")
        manager.bind("\0" + name if abstract else name)
        server = serve(env={"NOTIFY_SOCKET": "@" * abstract + name})
        assert manager.recv(4096) == b"READY=1"
        server.kick(signal.SIGHUP)
        reloading = manager.recv(4096).decode()
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
        assert manager.recv(4096) == b"READY=1"
        server.stop()
        assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("where", ["", "@", "relative", "/no/such/socket",
                                   "/" + "x" * 200, "vsock:1:2"])
def test_a_manager_that_does_not_listen_is_no_matter(serve, where):
    server = serve(env={"NOTIFY_SOCKET": where})
    server.ok("ping")
