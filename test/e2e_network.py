# SPDX-License-Identifier: MIT
"""The network as enemy.  Server and client live in two network namespaces; the
wire between them is this test: it delays, loses one frame in twenty, and is
unplugged for some seconds.  WSPUSH_LOSS_MESSAGES and WSPUSH_LINK_DOWN make
the story longer (10000 messages, 20 s); the table is printed (pytest -s)."""
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time

import pytest

import wsp
from wsp import MAIN

MESSAGES = int(os.environ.get("WSPUSH_LOSS_MESSAGES", "10000"))
DOWN = float(os.environ.get("WSPUSH_LINK_DOWN", "3"))
DELAY, LOSS = 0.005, 0.05
PATIENCE = 60 + 6 * DOWN
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True,
                   timeout=wsp.PATIENCE)


def tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack(
        "16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


class Wire(threading.Thread):
    """Carries frames between two TAPs."""

    def __init__(self, taps):
        super().__init__(daemon=True)
        self.taps = taps
        self.chance = random.Random(20)
        self.carried = self.lost = 0
        self.late = []
        self.going = True
        self.start()

    def run(self):
        one, two = self.taps
        while self.going:
            wait = self.late[0][0] - time.monotonic() if self.late else 0.1
            for fd in select.select(self.taps, [], [], max(0, min(
                    wait, 0.1)))[0]:
                self.take(fd, two if fd == one else one)
            while self.late and self.late[0][0] <= time.monotonic():
                _, _, to, frame = heapq.heappop(self.late)
                self.give(to, frame)

    def take(self, fd, to):
        for _ in range(64):
            try:
                frame = os.read(fd, 65536)
            except OSError:  # nothing more, or the link is down
                return
            self.carried += 1
            if self.chance.random() < LOSS:
                self.lost += 1
            else:
                heapq.heappush(self.late, (time.monotonic() + DELAY,
                                           self.carried, to, frame))

    def give(self, to, frame):
        try:
            os.write(to, frame)
        except OSError:
            self.lost += 1

    def stop(self):
        self.going = False
        self.join(1)


class Namespaces:
    """Network namespaces, each with one TAP whose other end is ours."""

    def __init__(self, prefix, ends, network):
        self.names = [f"{prefix}{os.getpid()}{end}" for end in ends]
        self.network = network
        self.fds, self.made = [], []

    def make(self):
        for number, name in enumerate(self.names):
            ip("netns", "add", name)
            self.made.append(name)
            self.fds.append(tap(name))
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{self.network}.{number + 1}/24",
               "dev", name)
            for link in ("lo", name):
                ip("-n", name, "link", "set", link, "up")

    def clean(self):
        for fd in self.fds:
            os.close(fd)
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], check=False,
                           capture_output=True, timeout=wsp.PATIENCE)

    def lent(self):
        """What a fixture does: a skip where they are not permitted."""
        if not shutil.which("ip"):
            pytest.skip("there is no `ip` command (package iproute2)")
        try:
            try:
                self.make()
            except (OSError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", b"") or str(error).encode()
                pytest.skip("network namespaces are not permitted here: "
                            + why.decode(errors="replace").strip())
            yield self
        finally:
            self.clean()


class Net(Namespaces):
    """Two of them and the wire."""

    def __init__(self):
        super().__init__("wsp", "sc", "10.213.77")
        self.wire = None

    def make(self):
        super().make()
        self.wire = Wire(self.fds)

    def link(self, state):
        name = self.names[0]
        ip("-n", name, "link", "set", name, state)

    def clean(self):
        if self.wire:
            self.wire.stop()
        super().clean()


@pytest.fixture
def net():
    yield from Net().lent()


class Reconnecting(threading.Thread):
    """A client as a careful page is one: when nothing comes for a while, or
    the connection ends, it connects again.  `got` holds (connection,
    number)."""
    SILENCE = 3  # the server pings each second

    def __init__(self, namespace, address, last):
        super().__init__(daemon=True)
        self.namespace, self.address, self.last = namespace, address, last
        self.got = []
        self.connections = self.tried = 0
        self.error = None
        self.going = True
        self.raw = None
        self.start()

    def run(self):
        try:
            fd = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
            # This thread alone moves.
            if libc.setns(fd, CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.close(fd)
            while self.going and not (self.got
                                      and self.got[-1][1] == self.last):
                self.session()
        except BaseException as error:
            self.error = error

    def session(self):
        self.tried += 1
        raw = None
        try:
            raw = Patient(self.address)
            raw.upgrade(f"/services/{MAIN}?X-StatefulSocketId=1")
            self.connections += 1
            raw.socket.settimeout(self.SILENCE)
            while self.going:
                number = int(raw.read_text())
                self.got.append((self.connections, number))
                if number == self.last:
                    self.finish(raw)
                    return
        except (OSError, wsp.Gone, wsp.Closed):
            time.sleep(0.1)
        finally:
            if raw:
                raw.reset()

    def finish(self, raw):
        """Answers Pings until the server has seen what it wants."""
        end = time.monotonic() + 5
        raw.socket.settimeout(0.5)
        while self.going and time.monotonic() < end:
            try:
                raw.message()
            except (OSError, wsp.Gone, wsp.Closed):
                pass


class Patient(wsp.Raw):
    """A Raw whose connect does not wait for long."""

    def __init__(self, address):
        before, wsp.PATIENCE = wsp.PATIENCE, Reconnecting.SILENCE
        try:
            super().__init__(address)
        finally:
            wsp.PATIENCE = before


def server_in(net, directory, *options):
    """A server in the first namespace.  Its senders have paths: abstract
    names are the network namespace's own."""
    script = directory / "wspush-there"
    script.write_text("#!/bin/sh\nexec ip netns exec "
                      f"{net.names[0]} {wsp.BINARY} \"$@\"\n")
    script.chmod(0o755)
    server = wsp.Server("--listen-plain", "10.213.77.1:0", *options,
                        binary=str(script))
    server.sender.close()
    server.sender = wsp.Push(server.path, str(server.dir / "sender"))
    return server


def push_numbers(server, count, events):
    """Sends 1 to count, each until it is taken; at some of them something
    happens to the network."""
    refused = 0
    end = time.monotonic() + PATIENCE
    for number in range(1, count + 1):
        if number in events:
            events[number]()
        while server.push("send *", f"{number}").code:
            refused += 1
            assert time.monotonic() < end, f"stuck at {number}"
            time.sleep(0.01)
    return refused


def test_over_a_bad_network_nothing_is_missing_and_nothing_out_of_order(
        net, tmp_path):
    server = server_in(net, tmp_path, "--overflow", "refuse",
                       "--queue-messages", 500, "--ping-interval", 1,
                       "--pong-timeout", 3)
    client = None

    def unplug():
        net.link("down")
        timer = threading.Timer(DOWN, net.link, ["up"])
        timer.daemon = True
        timer.start()
        timers.append(timer)
    timers = []
    try:
        server.away_id = f"/services/{MAIN}-s-1"
        address = server.ws[-1]
        client = Reconnecting(net.names[1], address, MESSAGES)
        wsp.until(lambda: server.rows() or client.error,
                  "the client to come", PATIENCE)
        events = {MESSAGES * k // 10: (unplug if k in (3, 6) else
                                       lambda: server.ok("abort *"))
                  for k in range(1, 10)}
        began = time.monotonic()
        refused = push_numbers(server, MESSAGES, events)
        wsp.until(lambda: client.error or (
            client.got and client.got[-1][1] == MESSAGES),
            f"the last message, after {client.got[-1:]}", PATIENCE)
        assert client.error is None, client.error
        wsp.until(lambda: server.row(server.away_id)["messages"] == 0,
                  "the queue to be acknowledged")
        spent = time.monotonic() - began
        stats = server.stats()
    finally:
        for timer in timers:
            timer.join(DOWN + wsp.PATIENCE)
        if client:
            client.going = False
            client.join(wsp.PATIENCE)
        server.stop()

    numbers = [number for _, number in client.got]
    missing = set(range(1, MESSAGES + 1)) - set(numbers)
    duplicates = len(numbers) - len(set(numbers))
    out_of_order = within = 0
    seen, connection, last = 0, 0, 0
    for where, number in client.got:
        if where != connection:
            # A reconnect may repeat, and may not skip.
            out_of_order += number > seen + 1
            connection = where
        else:
            within += number <= last
            out_of_order += number != last + 1
        last = number
        seen = max(seen, number)
    print(f"""
    sent {MESSAGES}  received {len(numbers)}  missing {len(missing)}  \
duplicate {duplicates}  out of order {out_of_order}
    connections {client.connections} of {client.tried} tried  \
link down 2 x {DOWN:g} s  refused and sent again {refused}
    frames carried {net.wire.carried}  lost {net.wire.lost}  \
delay {1000 * DELAY:g} ms each way  time {spent:.1f} s
    acknowledged {stats['acknowledged']}  dropped {stats['dropped']}  \
unconfirmed {stats['unconfirmed']}""")
    assert not missing
    assert out_of_order == 0 and within == 0
    assert client.connections > 5, "the story was not told"
    assert duplicates == 0 or client.connections > 1
    assert stats["acknowledged"] == MESSAGES
    assert stats["dropped"] == stats["unconfirmed"] == 0
