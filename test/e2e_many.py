# SPDX-License-Identifier: MIT
"""A thousand clients and one broadcast: all have it, none twice."""
import selectors
import time

import pytest

import wsp
from wsp import MAIN

MANY = 1000
SERVER = ["--max-sockets", MANY]


def read_all(clients, last, patience=60):
    """What each client gets up to the text `last`, read as it comes."""
    end = time.monotonic() + patience
    seen = {raw: [] for raw in clients}
    with selectors.DefaultSelector() as ready:
        for raw in clients:
            ready.register(raw.socket, selectors.EVENT_READ, raw)
        waiting = set(clients)
        while waiting:
            left = end - time.monotonic()
            assert left > 0, f"{len(waiting)} clients still lack the message"
            for key, _ in ready.select(left):
                raw = key.data
                seen[raw] += raw.before(last)
                waiting.discard(raw)
                ready.unregister(raw.socket)
    return list(seen.values())


@pytest.mark.parametrize("round", range(10))
def test_a_thousand_clients_have_a_broadcast_once_each(server, round):
    clients = [server.open(service=MAIN) for _ in range(MANY)]
    text = f"broadcast {round}"
    reply = server.ok("send *", text)
    assert (reply.count, reply.number("open")) == (MANY, MANY)
    server.ok("send *", "the end")
    assert read_all(clients, "the end") == [[text]] * MANY
    assert server.stats()["sockets_open"] == MANY


def test_ten_broadcasts_in_a_row_reach_a_thousand_in_order(server):
    clients = [server.open(f"n:{n}::half:{n % 2}") for n in range(MANY)]
    for number in range(10):
        assert server.ok("send *", f"{number}").count == MANY
    assert server.ok("send $half:1", "odd").count == MANY // 2
    server.ok("send *", "the end")
    want = [str(n) for n in range(10)]
    assert read_all(clients, "the end") == [want, want + ["odd"]] * (
        MANY // 2)


def test_a_thousand_clients_over_tls_have_a_broadcast_once_each(server):
    clients = [server.open(tls=True) for _ in range(MANY)]
    assert server.ok("send *", "to all").count == MANY
    server.ok("send *", "the end")
    assert read_all(clients, "the end") == [["to all"]] * MANY


def test_a_thousand_rows_are_listed_once_each(server):
    ids = [f"n:{n}" for n in range(MANY)]
    for id in ids:
        server.open(id)
    rows = [row["socketId"] for row in server.rows()]
    assert sorted(rows) == sorted(f"/services/{MAIN}-s-{id}" for id in ids)
