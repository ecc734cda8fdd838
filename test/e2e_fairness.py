# SPDX-License-Identifier: MIT
"""One slow or absent client costs the others nothing (INTERFACE 7): neither
messages, nor time, nor the kernel's memory; and a client that is killed
leaves exact accounts.  Figures are printed; pytest -s shows them."""
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import time

import pytest

from delivery import (S, Reader, Waiting, kernel_queue, moved, settled, sid,
                      texts)
import wsp
from wsp import MAIN

SERVER = ["--service", MAIN]
MESSAGES = int(os.environ.get("WSPUSH_FAIR_MESSAGES", "400"))
KILLS = int(os.environ.get("WSPUSH_KILLS", "1000"))
READERS = 5
ABSENT = 100


def readers(server):
    return [Reader(server.open(f"role:reader::n:{n}"))
            for n in range(READERS)]


def push_all(server, clients, target):
    """Numbered messages to the target, one after the other; the time from
    each to its arrival at every reader, in ms."""
    sent = []
    with wsp.Push(server.path, None) as sender:
        for number in range(MESSAGES):
            sent.append(time.monotonic())
            sender.send(f"send {target}", f"{number:06}".ljust(200))
            time.sleep(0.002)
    for client in clients:
        client.wait(MESSAGES, 3 * wsp.PATIENCE)
    took = []
    for client in clients:
        assert [int(t) for t in client.texts()] == list(range(MESSAGES))
        took += [1000 * (at - sent[n])
                 for n, (_, at) in enumerate(client.got)]
        client.got.clear()
    return took


def figures(name, took):
    took = sorted(took)
    p50, p99 = statistics.median(took), took[len(took) * 99 // 100]
    print(f"{name:42} {len(took):6} {p50:8.2f} {p99:8.2f} {took[-1]:8.2f}")
    return p50


def test_who_stalls_and_who_is_absent_do_not_slow_the_others(serve):
    server = serve()
    clients = readers(server)
    print(f"\n{'ms from send to arrival':42} {'n':>6} {'p50':>8} {'p99':>8} "
          f"{'max':>8}")
    alone = figures("five readers alone", push_all(
        server, clients, "$role:reader"))

    for number in range(ABSENT):
        server.away(f"role:absent::n:{number}")
    with wsp.Push(server.path, None) as sender:
        for number in range(ABSENT * 64):
            sender.send(f"send {S}role:absent::n:{number % ABSENT}",
                        f"{number:06}".ljust(300))
    stalled = server.open("role:stalled", receive_buffer=4096)
    for number in range(100):
        server.ok("send $role:stalled", f"{number:06}".ljust(8000))
    stats = server.stats()
    # The last of the rows or of the bytes is taken: every new message has
    # to make its room.
    assert stats["dropped"] > 0
    assert stats["store_bytes"] > stats["store_bytes_max"] * 9 // 10
    loaded = figures("beside one stalled, 100 absent, store full", push_all(
        server, clients, "$role:reader"))
    for_all = figures("the same, each message for all", push_all(
        server, clients, "*"))
    rows = server.rows()
    assert all(row["drops"] == 0 for row in rows
               if row["tags"].get("role") == "reader")
    print(f"drops: readers 0, absent "
          f"{sum(r['drops'] for r in rows if r['state'] == 'away')}, "
          f"stalled "
          f"{sum(r['drops'] for r in rows if 'stalled' in r['socketId'])}")
    # No tight bound: a machine may be busy.  Minutes would be starvation.
    assert max(loaded, for_all) < 50 * alone + 100
    back = server.open("role:absent::n:1")
    assert texts(back, 1)[0]
    stalled.close_socket()


def test_a_client_that_trickles_gets_its_own_and_delays_nobody(serve):
    """It reads a little now and then; its queue overflows, no other's."""
    server = serve("--queue-messages", 16)
    clients = readers(server)
    slow = server.open("role:slow", receive_buffer=4096)
    sent = 0
    for turn in range(20):
        for _ in range(5):
            server.ok("send *", f"{sent:06}".ljust(6000))
            sent += 1
        slow.take(1000)
        del slow.buffer[:]
    for client in clients:
        client.wait(sent)
        assert [int(t) for t in client.texts()] == list(range(sent))
    rows = {row["tags"]["role"]: row for row in server.rows()}
    assert rows["slow"]["drops"] > 0
    assert rows["reader"]["drops"] == 0


def test_under_refuse_only_who_is_full_refuses(serve):
    server = serve("--overflow", "refuse", "--queue-messages", 32)
    clients = readers(server)
    server.away("full")
    for number in range(200):
        for n in range(READERS):
            while True:
                reply = server.push(f"send $n:{n}", f"{number}")
                if not reply.code:
                    break
                assert reply.code == "queue-full", reply
                time.sleep(0.005)
        server.push(f"send {S}full", f"{number}")
    for client in clients:
        client.wait(200)
        assert client.texts() == [str(n) for n in range(200)]
    assert texts(server.open("full"), 32)[0] == [str(n) for n in range(32)]


# ----- the kernel's memory ------------------------------------------------

def socket_memory(server, raw):
    """What `ss -tm` says of the server's end: bytes of buffers for writing,
    overhead included."""
    done = subprocess.run(
        ["ss", "-tmnH", "src", ":%d" % server.address()[1], "dst",
         ":%d" % raw.socket.getsockname()[1]], capture_output=True,
        timeout=wsp.PATIENCE, check=True)
    match = re.search(r"skmem:\(.*?,t(\d+),.*?,w(\d+)", done.stdout.decode())
    return int(match[2]) if match else None


@pytest.mark.parametrize("size", [16384, 32768, 65536])
def test_what_a_stalled_client_pins_in_the_kernel_is_bounded(serve, size):
    server = serve("--send-buffer", size, "--queue-bytes", 1 << 20,
                   "--store-bytes", 4 << 20)
    raw = server.open("1", receive_buffer=4096)
    while server.row(f"{S}1")["drops"] == 0:
        server.ok("send *", "x" * 16000)
    held = kernel_queue(server.address(), raw.socket.getsockname()[:2])
    memory = socket_memory(server, raw) if shutil.which("ss") else None
    print(f"\n--send-buffer {size}: {held} bytes queued in the kernel, "
          f"{memory} with overhead (ss -m)")
    assert held is not None and 0 < held <= 2 * size + 65536
    assert memory is None or held <= memory <= 4 * size + 131072
    raw.close_socket()


# ----- kill -9 ------------------------------------------------------------

def killed_client(server, ids, readiness):
    """A process of its own with these sockets (None: volatile), which reads
    slowly and answers Pings, until it is killed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        raws = [wsp.Raw(server.address(), receive_buffer=4096)
                for _ in ids]
        for raw, id in zip(raws, ids):
            query = "" if id is None else f"?X-StatefulSocketId={id}"
            raw.upgrade(f"/services/{MAIN}{query}")
        os.write(readiness, b"x")
        while True:
            for raw in raws:
                raw.message()
    finally:
        os._exit(1)


def reap(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def killing(server, ids, burst):
    """Kills clients with these ids in the middle of bursts, KILLS times;
    returns on how many queues messages were put."""
    put = 0
    come, ready = os.pipe()
    chance = random.Random(5)
    print(f"\n{KILLS} clients are killed")
    for _ in range(KILLS):
        pid = killed_client(server, ids, ready)
        assert os.read(come, 1) == b"x", "the client did not come"
        victim = chance.randrange(burst)
        for number in range(burst):
            if number == victim:
                reap(pid)
            reply = server.push("send *", "x" * chance.choice(
                (1, 100, 3000)))
            put += reply.count or 0
    os.close(come)
    os.close(ready)
    return put


def ends(stats):
    return sum(stats[name] for name in (
        "acknowledged", "dropped", "unconfirmed", "replaced", "expired",
        "forgotten"))


def test_killed_clients_leave_exact_accounts(server):
    """On stateful sockets: what was put in queues is there, or has met one
    end that is counted."""
    ids = ["a", "b", "c"]
    before = server.stats()
    put = killing(server, ids, 15)
    wsp.until(lambda: all(r["state"] == "away" for r in server.rows()),
              "all to be away")
    rows, after = server.rows(), server.stats()
    assert {row["socketId"] for row in rows} == {f"{S}{id}" for id in ids}
    assert (after["sockets_open"], after["sockets_away"]) == (0, 3)
    left = sum(row["messages"] for row in rows)
    assert put == ends(after) - ends(before) + left
    assert moved(before, after, "connections") == (3 * KILLS,)
    assert sum(row["drops"] for row in rows) == (
        after["dropped"] - before["dropped"])
    for row in rows:
        raw = server.open(row["socketId"].rpartition("-")[2])
        got = texts(raw, row["messages"])[0]
        assert sum(map(len, got)) == row["bytes"]
    server.ok("close *")
    assert server.stats()["store_bytes"] == 0


def test_killed_volatile_clients_leave_nothing(server):
    killing(server, [None, "s", None], 10)
    wsp.until(lambda: [(r["socketId"], r["state"]) for r in server.rows()]
              == [(f"{S}s", "away")], "the volatile ones to be gone")
    server.ok("close *")
    stats = server.stats()
    assert (stats["sockets_open"], stats["sockets_away"],
            stats["store_bytes"]) == (0, 0, 0)


def test_killed_senders_that_wait_leave_room_for_others(server):
    raw = server.open("1")
    reader = Reader(raw)
    for _ in range(30):
        commands = [subprocess.Popen(
            [wsp.BINARY, "send", "-s", server.path, "-w", "60", "*", "x"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL) for _ in range(4)]
        for each in commands:
            each.kill()
            each.wait()
    settled(server, f"{S}1")
    senders = [Waiting(server.path) for _ in range(64)]
    for sender in senders:
        sender.ok("send ack=60 *", "y")
    for sender in senders:
        assert sender.acked() == (1, 1, None)
        sender.close()
    assert reader.error is None
    assert sid("1") in server.ids()
