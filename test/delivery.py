# SPDX-License-Identifier: MIT
"""What the tests of delivery have in common: second replies, Pings taken
apart, watchers, clients that answer no Ping, and what the kernel holds."""
import re
import struct
import threading
import time

import wsp
from wsp import MAIN, PING, PONG

S = f"/services/{MAIN}-s-"


def sid(id, service=MAIN):
    return f"/services/{service}-s-{id}"


# ----- senders ------------------------------------------------------------

class Waiting(wsp.Push):
    """A sender that waits for acknowledgement."""

    def acked(self, patience=None):
        """The second reply: (acknowledged, of, ref)."""
        self.socket.settimeout(patience or wsp.PATIENCE)
        data = self.socket.recv(1 << 16).decode()
        match = re.fullmatch(r"acked (\d+) of (\d+)(?: ref=(\S+))?\n", data)
        assert match, f"not the promised second reply: {data!r}"
        return int(match[1]), int(match[2]), match[3]


class Watcher(wsp.Push):
    """Events as tuples, from the moment of the reply on."""

    def __init__(self, path, target=""):
        super().__init__(path)
        self.matching = self.ok(f"watch {target}".rstrip()).count

    def event(self, patience=None):
        self.socket.settimeout(patience or wsp.PATIENCE)
        words = self.socket.recv(1 << 16).decode().split(" ")
        assert words[0] in ("open", "close", "forget", "drop"), words
        assert len(words) == (3 if words[0] in ("close", "drop") else 2)
        return tuple(words[:2]) + tuple(map(int, words[2:]))

    def events(self, count):
        return [self.event() for _ in range(count)]


def moved(before, after, *names):
    """How far the counters of `stats` have moved."""
    return tuple(after[name] - before[name] for name in names)


# ----- Pings and Pongs ----------------------------------------------------

def number_of(ping):
    assert len(ping) == 16, f"a Ping of {len(ping)} bytes: {ping!r}"
    return struct.unpack("!Q", ping[:8])[0]


def until_ping(raw):
    """Messages up to the next Ping, which is not answered, and its payload."""
    got = []
    while True:
        frame = raw.next_frame()
        if frame.opcode == PING:
            return got, frame.payload
        assert frame.opcode in (wsp.TEXT, wsp.BINARY_FRAME), frame
        got.append(frame.payload.decode())


def texts(raw, count):
    """The next `count` messages, by a client that answers no Ping, and the
    Pings that came between them."""
    got, pings = [], []
    while len(got) < count:
        frame = raw.next_frame()
        if frame.opcode == PING:
            pings.append(frame.payload)
        else:
            assert frame.opcode == wsp.TEXT, frame
            got.append(frame.payload.decode())
    return got, pings


def beat(raw):
    """A heartbeat by a client that answers no Ping: the Pings before it."""
    raw.text("$hbt")
    got, pings = texts(raw, 1)
    assert got == ["$ok"], got
    return pings


def pong(raw, payload):
    """Answers, and makes sure that the answer was looked at."""
    raw.frame(PONG, payload)
    return beat(raw)


def settled(server, socket_id, messages=0):
    """Waits until so many messages are left in the queue."""
    def check():
        row = server.row(socket_id)
        return row is not None and row["messages"] == messages
    wsp.until(check, f"{messages} messages in the queue of {socket_id}")


class Reader(threading.Thread):
    """A client that reads and answers Pings in the background; `got` holds
    (text, time) of what came."""

    def __init__(self, raw):
        super().__init__(daemon=True)
        self.raw = raw
        self.got = []
        self.error = None
        self.start()

    def run(self):
        try:
            while True:
                _, payload = self.raw.message()
                self.got.append((payload.decode(), time.monotonic()))
        except (wsp.Gone, wsp.Closed, OSError, ValueError) as error:
            self.error = error

    def texts(self):
        return [text for text, _ in self.got]

    def wait(self, count, patience=None):
        wsp.until(lambda: len(self.got) >= count or self.error,
                  f"{count} messages", patience)
        assert len(self.got) >= count, (len(self.got), self.error)


# ----- the kernel ---------------------------------------------------------

def kernel_queue(local, peer):
    """Bytes that the kernel holds for a connection of the server's, by
    /proc/net/tcp: written and not yet taken by the client's TCP."""
    def hexed(address):
        host, port = address
        return "%08X:%04X" % (
            struct.unpack("=I", bytes(map(int, host.split("."))))[0], port)
    want = hexed(local), hexed(peer)
    with open("/proc/net/tcp") as table:
        for line in table:
            words = line.split()
            if (words[1], words[2]) == want:
                return int(words[4].split(":")[0], 16)
    return None
