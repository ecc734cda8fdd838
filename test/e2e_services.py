# SPDX-License-Identifier: MIT
"""Several services on one server: each has its own options (INTERFACE 9)."""
import pytest

from delivery import sid, texts, until_ping
from e2e_handlers import Inbox
from wsp import request

ONE = ("one=main,protocol=a,protocol=c,origin=https://a.example,max=1,"
       "ack=pong,overflow=refuse")
TWO = ("two=main,protocol=b,origin=https://b.example,max=2,ack=sent,"
       "overflow=drop-oldest")
SERVER = ["--service", ONE, "--service", TWO, "--service", "three",
          "--service", "four=main,overflow=close", "--queue-messages", "1",
          "--session-ttl", "2"]


def status(server, service, **headers):
    raw = server.raw()
    raw.send(request(f"/services/{service}", headers={
        name.replace("_", "-"): value for name, value in headers.items()}))
    return raw.response()


@pytest.mark.parametrize("service, answered", [
    ("one", "c"), ("two", "b"), ("three", None)])
def test_each_has_its_protocols(server, service, answered):
    answer = status(server, service, Sec_WebSocket_Protocol="x, c, b, a")
    assert answer.status == 101
    assert answer.get("Sec-WebSocket-Protocol") == answered


def test_the_longest_protocol_is_answered(serve):
    server = serve("--service", "p=main,protocol=" + "x" * 256)
    answer = status(server, "p", Sec_WebSocket_Protocol="x" * 256)
    assert answer.status == 101
    assert answer.get("Sec-WebSocket-Protocol") == "x" * 256


@pytest.mark.parametrize("service, good", [
    ("one", "https://a.example"), ("two", "https://b.example"),
    ("three", "http://localhost")])
def test_each_has_its_origins(server, service, good):
    for origin in ("https://a.example", "https://b.example"):
        want = 101 if origin == good else 403
        answer = status(server, service, Origin=origin)
        assert answer.status == want, (origin, answer.body)


def test_each_has_its_maximum(server):
    for service, most in (("one", 1), ("two", 2)):
        held = [server.open(service=service) for _ in range(most)]
        assert status(server, service).status == 503
        held[-1].say_close()
        server.open(service=service)
    assert len([server.open(service="three") for _ in range(3)]) == 3


def test_each_has_its_acknowledgement(server):
    raws = {name: server.open("1", name) for name in ("one", "two", "three")}
    server.ok("send *", "x")
    for name in ("one", "three"):
        assert until_ping(raws[name])[0] == ["x"]
        assert server.row(sid("1", name))["messages"] == 1
    assert texts(raws["two"], 1) == (["x"], [])
    assert server.row(sid("1", "two"))["messages"] == 0


def test_each_has_its_overflow(server):
    for name in ("one", "two", "three", "four"):
        server.away("1", name)
    server.ok("send *", "0")
    reply = server.ok("send *", "1")
    assert (reply.count, reply.number("full")) == (2, 2)
    kept = {name: texts(server.open("1", name), 1)[0][0]
            for name in ("one", "two", "three", "four")}
    assert kept == {"one": "0", "two": "1", "three": "1", "four": "0"}


def test_each_asks_its_own_program_or_none(serve, tmp_path):
    boxes = {name: Inbox(tmp_path / name) for name in ("a", "b", "c")}
    options = {"a": ",auth=1", "b": ",auth=1", "c": ""}
    server = serve(*(word for name, box in boxes.items() for word in (
        "--service", f"{name}=unix:{box.path}{options[name]}")))
    for name, verdict, want in (("a", "allow", 101), ("b", "deny", 403)):
        raw = server.raw()
        raw.send(request(f"/services/{name}"))
        word, number, _ = boxes[name].event().decode().split(" ", 2)
        assert word == "auth"
        server.ok(f"{verdict} {number}")
        assert raw.response().status == want
    server.open("1", "c")
    assert boxes["c"].event() == b"open /services/c-s-1\n"
    for box in boxes.values():
        box.socket.close()
