# SPDX-License-Identifier: MIT
"""The guide's four scenarios, as its reader would try them: Python's
websockets for a client, and every way to push that a box has."""
import json
import os
import re
import subprocess

import pytest

import wsp
from wsp import MAIN

VOLATILE = (rf"/services/{MAIN}-v-[0-9a-f]{{8}}-[0-9a-f]{{4}}-4[0-9a-f]{{3}}-"
            r"[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def by_socat(path, kind, target, text):
    """printf ... | socat, and no reply."""
    message = f"send kind={kind} {target}\n{text}"
    done = subprocess.run(["socat", "-u", "-", f"UNIX-SENDTO:{path}"],
                          input=message.encode(), capture_output=True,
                          timeout=wsp.PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def by_python(path, kind, target, text):
    with wsp.Push(path) as push:
        reply = push.ok(f"send kind={kind} {target}", text)
        assert reply.count > 0


def by_wspush(path, kind, target, text):
    done = wsp.wspush("send", "-s", path, "-k", kind, target, text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"queued on "), done.stdout


PUSHERS = {"socat": by_socat, "python": by_python, "wspush": by_wspush}


@pytest.fixture(params=PUSHERS)
def push(request, server):
    def to(target, text, kind="text"):
        PUSHERS[request.param](server.path, kind, target, text)
    return to


def test_a_first_connection_gets_an_id_of_its_own_and_a_heartbeat(server, tls):
    client = server.client(tls=tls)
    assert client.ws.extensions == []
    assert client.ws.subprotocol is None
    client.send("$hbt")
    assert client.receive() == "$ok"
    [row] = server.rows()
    assert re.fullmatch(VOLATILE, row["socketId"])
    assert row["state"] == "open"
    assert row["tags"] == {"service": MAIN}
    client.close()
    assert client.wait_closed() == (1000, "")
    server.wait_state(row["socketId"], None)


def test_a_broadcast_with_json_compound_comes_as_an_array(server, tls, push):
    clients = [server.client(tls=tls) for _ in range(3)]
    push("*", "Привет!", kind="json")
    push("*", '{"temp":21}', kind="json")
    for got in server.fence(*clients):
        # The two may come in one frame, or in one each.
        assert all(text.startswith("[") for text in got), got
        assert sum(map(json.loads, got), []) == ["Привет!", {"temp": 21}]


def test_a_broadcast_without_json_compound_comes_as_it_is(server, tls, push):
    clients = [server.client(tls=tls) for _ in range(3)]
    push("*", "Привет!")
    push("*", '{"temp":21}')
    for got in server.fence(*clients):
        assert got == ["Привет!", '{"temp":21}']


def test_the_client_with_the_id_123_gets_what_is_for_it_alone(
        server, tls, push):
    anybody = server.client(tls=tls)
    known = server.client(id="123", tls=tls)
    push("*", "Общее сообщение")
    push(f"/services/{MAIN}-s-123", "Личное сообщение")
    assert server.fence(anybody, known) == [
        ["Общее сообщение"], ["Общее сообщение", "Личное сообщение"]]


def test_only_group_10002_gets_the_message_of_group_10002(server, tls, push):
    members = ["id:10001::group_id:10001", "id:10002::group_id:10001",
               "id:10003::group_id:10002", "id:10004::group_id:10002"]
    clients = [server.client(id=each, tls=tls) for each in members]
    push("*", "Общее сообщение")
    push("$group_id:10002", "Групповое сообщение группе 10002")
    common = ["Общее сообщение"]
    group = common + ["Групповое сообщение группе 10002"]
    assert server.fence(*clients) == [common, common, group, group]
    assert {row["socketId"]: row["tags"] for row in server.rows()} == {
        f"/services/{MAIN}-s-{each}": {
            "service": MAIN, **dict(p.split(":") for p in each.split("::"))}
        for each in members}


def test_the_loop_of_the_guide_is_a_shell_loop_here(server, tls):
    """for(i = 0; i < WebSockets.length; i++) WriteToWebSocketMessageQueue"""
    anybody = server.client(tls=tls)
    known = server.client(id="123", tls=tls)
    script = """
        "$WSPUSH" list | cut -f1 | while read -r key; do
            "$WSPUSH" send -k json "$key" "Наш socketId = $key" || exit
            case "$key" in
            *-s-123) "$WSPUSH" send "$key" "Личное сообщение" || exit
            esac
        done"""
    done = subprocess.run(
        ["/bin/sh", "-c", script], capture_output=True, check=False,
        env={**os.environ, "WSPUSH": wsp.BINARY,
             "WSPUSH_SOCKET": server.path}, timeout=3 * wsp.PATIENCE)
    assert done.returncode == 0, done.stderr
    to_anybody, to_known = server.fence(anybody, known)
    [[text]] = map(json.loads, to_anybody)
    assert re.fullmatch(f"Наш socketId = {VOLATILE}", text)
    assert len(to_known) == 2
    assert json.loads(to_known[0]) == [
        f"Наш socketId = /services/{MAIN}-s-123"]
    assert to_known[1] == "Личное сообщение"


def test_who_connects_again_with_its_id_is_bound_to_the_same_socket(
        server, tls):
    first = server.client(id="123", tls=tls)
    second = server.client(id="123", tls=tls)
    assert first.wait_closed() == (4001, "replaced")
    server.ok(f"send /services/{MAIN}-s-123", "for the second")
    assert second.receive() == "for the second"
    assert len(server.rows()) == 1
