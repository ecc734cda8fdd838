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


def test_the_state_directory_is_made_with_those_above_it(serve, tmp_path):
    state = tmp_path / "var" / "lib" / "wspush"
    server = serve("--state", state)
    assert server.client(tls=True)
    assert (state / "key.pem").stat().st_mode & 0o777 == 0o600


def test_of_the_push_path_only_its_own_directory_is_made(tmp_path):
    """A mistyped /rnu is an error, not a directory of the root."""
    path = tmp_path / "rnu" / "wspush" / "push.sock"
    status, [line] = wsp.fails("--listen-plain", "127.0.0.1:0", "--push", path)
    assert status == 1
    assert line == (f"wspush: cannot make {path.parent}: No such file or "
                    "directory")
    assert not (tmp_path / "rnu").exists()


def test_a_state_directory_below_a_file_is_one_line_and_exit_1(
        push, tmp_path):
    (tmp_path / "file").write_text("")
    state = tmp_path / "file" / "a" / "b"
    status, [line] = wsp.fails("--listen", "127.0.0.1:0", "--state", state,
                               *push)
    assert status == 1
    assert line == f"wspush: {state}/cert.pem cannot be read: Not a directory"


class Waiting:
    """A server that cannot start yet."""

    def __init__(self, *options, seconds=60, words=(wsp.BINARY,)):
        self.process = subprocess.Popen(
            [*words, "serve", "--wait", str(seconds), *map(str, options)],
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


def test_a_port_that_stays_taken_is_one_line_and_exit_1_in_the_end(push):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with Waiting("--listen-plain", f"127.0.0.1:{port}", *push,
                     seconds=2) as server:
            assert " warn waiting why=" in server.read()
            assert f"cannot listen on 127.0.0.1:{port}" in server.read()
            assert server.process.wait(wsp.PATIENCE) == 1
            assert server.read() == ""


@pytest.fixture
def alone(tmp_path):
    """A server in a network of its own, that has nothing but loopback and
    not even that before `up`; and a way to run others in it."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True,
                      check=False).returncode:
        pytest.skip("no network namespaces here")

    def script(before=""):
        path = tmp_path / "alone"
        path.write_text("#!/bin/sh\nexec unshare -n sh -c '" + before +
                        f"exec \"$@\"' sh {wsp.BINARY} \"$@\"\n")
        path.chmod(0o755)
        return str(path)

    def inside(process, *command):
        return subprocess.run(
            ["nsenter", "-n", "-t", str(process.pid), *map(str, command)],
            capture_output=True, check=True, timeout=wsp.PATIENCE).stdout
    return script, inside


def test_without_any_network_it_starts_and_serves_when_there_is_one(
        push, alone):
    script, inside = alone
    with Waiting("--listen-plain", "8080", "--metrics", "9100", *push,
                 words=[script()]) as server:
        assert server.read().startswith("wspush: ready ")
        inside(server.process, wsp.BINARY, "ping", "-s", push[1])
        inside(server.process, "ip", "link", "set", "lo", "up")
        for port in (8080, 9100):
            assert inside(server.process, "curl", "-sS",
                          f"http://127.0.0.1:{port}/healthz") == b"ok\n"
        assert server.stop()[0] == 0


def test_an_address_that_no_interface_has_yet_is_waited_for(push, alone):
    script, inside = alone
    with Waiting("--listen-plain", "192.0.2.1:8080", *push,
                 words=[script("ip link set lo up && ")]) as server:
        assert "cannot listen on 192.0.2.1:8080" in server.read()
        inside(server.process, "ip", "addr", "add", "192.0.2.1/24", "dev",
               "lo")
        assert server.read() == ("wspush: ready ws=192.0.2.1:8080 push="
                                 f"{push[1]}")
        assert server.stop()[0] == 0


def test_a_state_directory_that_is_mounted_later_is_waited_for(
        push, state):
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    with Waiting("--listen", "127.0.0.1:0", "--state", state,
                 *push) as server:
        assert "Read-only file system" in server.read()
        subprocess.run(["mount", "-o", "remount,rw", state], check=True)
        assert " certificate state=made " in server.read()
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
