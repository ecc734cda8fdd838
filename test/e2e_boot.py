# SPDX-License-Identifier: MIT
"""A board that has just been switched on: no clock, nothing in /run, a state
directory that cannot be written, a certificate or a port that come later.
e2e_life.py has what happens without --wait."""
import datetime
import os
import pathlib
import shutil
import signal
import socket
import subprocess

import pytest

import wsp


def faketime():
    """libfaketime, which gives a program another clock."""
    for path in pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"):
        return str(path)
    return None


def certificate(server):
    """Subject's dates of what the server shows, by openssl."""
    der = wsp.peer_certificate(server.wss[0])
    done = subprocess.run(["openssl", "x509", "-inform", "DER", "-noout",
                           "-startdate", "-enddate", "-dateopt", "iso_8601"],
                          input=der, capture_output=True, check=True,
                          timeout=wsp.PATIENCE)
    return [datetime.datetime.fromisoformat(
        line.split("=")[1].replace("Z", "+00:00"))
        for line in done.stdout.decode().splitlines()]


@pytest.fixture
def no_clock():
    library = faketime()
    if not library:
        pytest.skip("libfaketime is not installed")
    binary = os.environ.get("WSPUSH_RELEASE", wsp.BINARY)
    with open(binary, "rb") as file:
        if file.read(4) != b"\x7fELF":
            pytest.skip("the server is no program that takes LD_PRELOAD")
    return {"env": {"LD_PRELOAD": library, "FAKETIME": "@1970-01-01 00:01:00",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1"}, "binary": binary}


def test_without_a_clock_a_certificate_is_made_that_is_good_today(
        serve, no_clock):
    server = serve(**no_clock)
    start, end = certificate(server)
    now = datetime.datetime.now(datetime.timezone.utc)
    assert start < now < end, (start, end)
    client = server.client(id="early", tls=True)
    server.ok("send *", "hello")
    assert client.receive() == "hello"


def test_without_a_clock_a_certificate_of_today_is_taken(
        serve, no_clock, tmp_path):
    cert, key = wsp.make_certificate(tmp_path)
    server = serve("--cert", cert, "--key", key, **no_clock)
    assert server.client(tls=True)


def test_a_certificate_made_without_a_clock_stays_when_there_is_one(
        no_clock, tmp_path):
    with wsp.Server(directory=tmp_path, **no_clock) as server:
        first = wsp.peer_certificate(server.wss[0])
    with wsp.Server(directory=tmp_path) as server:
        assert wsp.peer_certificate(server.wss[0]) == first


def test_the_directory_in_an_empty_run_is_made(serve, tmp_path):
    path = tmp_path / "wspush" / "push.sock"
    server = serve("--listen-plain", "127.0.0.1:0", "--push", path,
                   listen=False)
    server.ok("ping")


class Waiting:
    """A server that cannot start yet."""

    def __init__(self, *options, seconds=60):
        self.process = subprocess.Popen(
            [wsp.BINARY, "serve", "--wait", str(seconds), *map(str, options)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def read(self):
        return self.process.stderr.readline().rstrip("\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        rest = self.process.stderr.read()
        return self.process.wait(wsp.PATIENCE), rest.splitlines()


@pytest.fixture
def push(tmp_path):
    return ["--push", tmp_path / "push.sock"]


def test_a_port_that_is_taken_for_a_while_is_waited_for_and_said_once(push):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with Waiting("--listen-plain", f"127.0.0.1:{port}", *push) as server:
            assert f"cannot listen on 127.0.0.1:{port}" in server.read()
            holder.close()
            assert server.read().startswith("wspush: ready ")
            status, rest = server.stop()
            assert status == 0
            assert not any("waiting" in line for line in rest)


def test_a_certificate_that_comes_later_is_waited_for(push, tmp_path):
    options = ["--cert", tmp_path / "test.crt", "--key", tmp_path / "test.key"]
    with Waiting("--listen", "127.0.0.1:0", *options, *push) as server:
        assert "test.crt" in server.read()
        wsp.make_certificate(tmp_path, days=300)
        # Certificate and key do not come at one time: that is waited for too.
        assert server.read().startswith("wspush: ready ")
        assert server.stop()[0] == 0


def test_a_push_path_of_a_server_that_still_stops_is_waited_for(
        serve, tmp_path):
    old = serve()
    with Waiting("--listen-plain", "127.0.0.1:0", "--push", old.path) as new:
        assert "another server has" in new.read()
        old.stop()
        assert new.read().startswith("wspush: ready ")
        assert new.stop()[0] == 0


def test_a_server_that_waits_can_be_stopped(push, tmp_path):
    options = ["--cert", tmp_path / "no.crt", "--key", tmp_path / "no.key"]
    with Waiting("--listen", "127.0.0.1:0", *options, *push) as server:
        assert "no.crt" in server.read()
        status, rest = server.stop()
        assert status in (0, 1) and len(rest) <= 1


def read_only(directory):
    """Makes it read-only also for root, or skips."""
    directory.mkdir()
    if os.geteuid() != 0:
        directory.chmod(0o555)
        return
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none",
                           directory], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("root can write everywhere, and mount is not allowed")


@pytest.fixture
def state(tmp_path):
    directory = tmp_path / "state"
    read_only(directory)
    yield directory
    if os.geteuid() == 0:
        subprocess.run(["umount", directory], check=False)


def test_a_read_only_state_directory_is_one_line_and_exit_1(state, push):
    status, lines = wsp.fails("--listen", "127.0.0.1:0", "--state", state,
                              *push)
    [line] = lines
    assert status == 1 and str(state) in line


def test_a_read_only_state_directory_with_a_certificate_in_it_is_fine(
        serve, tmp_path):
    with wsp.Server(directory=tmp_path):
        pass
    made = [tmp_path / "cert.pem", tmp_path / "key.pem"]
    state = tmp_path / "state"
    if os.geteuid() != 0:
        state.mkdir()
        for path in made:
            shutil.copy(path, state)
        state.chmod(0o555)
    else:
        state.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "none", state],
                              capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mount is not allowed")
        for path in made:
            shutil.copy2(path, state)
        subprocess.run(["mount", "-o", "remount,ro", state], check=True)
    try:
        server = serve("--state", state)
        assert server.client(tls=True)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "-l", state], check=False)


def test_without_tls_the_state_directory_is_not_touched(serve, tmp_path):
    state = tmp_path / "state"
    serve("--listen-plain", "127.0.0.1:0", "--push", tmp_path / "push.sock",
          "--state", state, listen=False)
    assert not state.exists()
