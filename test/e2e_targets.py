# SPDX-License-Identifier: MIT
"""Targets: one table of sockets, and what each expression selects."""
from urllib.parse import quote

import pytest

SERVER = ["--service", "a", "--service", "b", "--service", "dot.ted_9"]

# The sockets, by a short name each; the upper-case ones are away.
SOCKETS = {
    "a1": "/services/a-s-id:1::g:x",
    "a2": "/services/a-s-id:2::g:y",
    "a3": "/services/a-s-plain",
    "A4": "/services/a-s-id:4::g:x",
    "b1": "/services/b-s-id:1::g:x",
    "b2": "/services/b-s-colons:p:q::empty:",
    "b3": "/services/b-s-город:Москва::Case:Value",
    "B4": "/services/b-s-odd:1]::list:[1",
    "d1": "/services/dot.ted_9-s-v:1.5",
    "d2": "/services/dot.ted_9-s--s-/v-$*=",
}
EVERY = " ".join(SOCKETS)

SELECTED = {
    "*": EVERY,
    "* *": EVERY,
    "/services/a-s-id:1::g:x": "a1",
    "/services/a-s-plain": "a3",
    "/services/b-s-город:Москва::Case:Value": "b3",
    "/services/dot.ted_9-s--s-/v-$*=": "d2",
    "/services/a-s-id:4::g:x": "A4",
    "/services/a": "a1 a2 a3 A4",
    "/services/b": "b1 b2 b3 B4",
    "/services/dot.ted_9": "d1 d2",
    "/services/a /services/a": "a1 a2 a3 A4",
    "/services/a /services/b": "",
    "$id": "a1 a2 A4 b1",
    "$g": "a1 a2 A4 b1",
    "$empty": "b2",
    "$absent": "",
    "$service": EVERY,
    "$город": "b3",
    "$Case": "b3",
    "$case": "",
    "$" + "n" * 33: "",
    "$-n": "",
    "$id:1": "a1 b1",
    "$id:3": "",
    "$g:x": "a1 A4 b1",
    "$g:X": "",
    "$g:xx": "",
    "$empty:": "b2",
    "$g:": "",
    "$colons:p:q": "b2",
    "$colons:p": "",
    "$odd:1]": "B4",
    "$list:[1]": "",
    "$service:b": "b1 b2 b3 B4",
    "$service:dot.ted_9": "d1 d2",
    "$v:1.5": "d1",
    "$город:Москва": "b3",
    "$Case:value": "",
    "$id:[1,2]": "a1 a2 b1",
    "$id:[2]": "a2",
    "$id:[9,4]": "A4",
    "$id:[9]": "",
    "$g:[x,y]": "a1 a2 A4 b1",
    "$город:[Москва,Омск]": "b3",
    "$service:[a,dot.ted_9]": "a1 a2 a3 A4 d1 d2",
    "=open": "a1 a2 a3 b1 b2 b3 d1 d2",
    "=away": "A4 B4",
    "=open =away": "",
    "$g:x =open": "a1 b1",
    "=open $g:x": "a1 b1",
    "/services/a $g:x": "a1 A4",
    "/services/a $g:x =away": "A4",
    "$id:1 $g:x /services/b": "b1",
    "$id:1 $g:y": "",
    "$id $g:[x]  =open": "a1 b1",
    "/services/a-s-plain /services/a": "a3",
    "/services/a-s-plain /services/b": "",
    "/services/a-s-id:1::g:x $g:x =open": "a1",
    "/services/a-s-id:1::g:x $g:y": "",
    "* $id:2": "a2",
}

UNKNOWN = ["/services/a-s-absent", "/services/b-s-plain",
           "/services/a-s-Plain", "/services/a-s-plai",
           "/services/a-s-plainer",
           "/services/a-s-absent $id:1", "/services/a-v-plain",
           "/services/a-v-x", "/services/a-s--v-x"]

BAD = ["$", "$:v", "$:", "* $", "$g:[]", "$g:[x", "$g:[x,y", "=", "=OPEN",
       "=closed", "=open away", "/", "/x", "/services", "/services/",
       "/services/absent", "/services/absent-s-1", "/services/A",
       "/services/a-x-1", "/services/a/b", "/service/a", "/services/..",
       "/services/a-s-plain /services/b-s-plain",
       "/services/a-s-plain /services/a-s-absent", "* x", "* kind=text",
       "**", "*a"]


@pytest.fixture(scope="module")
def crowd(holder):
    """All the sockets, once for the file: list only looks at them."""
    server = holder.get()
    clients = {}
    for name, socket_id in SOCKETS.items():
        service, _, id = socket_id.removeprefix("/services/").partition("-s-")
        query = quote(id, safe=":/$*=")
        if name[0].isupper():
            assert server.away(query, service) == socket_id
        else:
            clients[name] = server.open(query, service)
    server.crowd = clients
    yield server
    server.tidy()


def names_of(ids):
    by_id = {socket_id: name for name, socket_id in SOCKETS.items()}
    return {by_id[socket_id] for socket_id in ids}


@pytest.mark.parametrize("target", SELECTED)
def test_list_selects_by_the_target(crowd, target):
    assert names_of(crowd.ids(target)) == set(SELECTED[target].split())


@pytest.mark.parametrize("target", SELECTED)
def test_send_reaches_the_same_sockets(crowd, target):
    want = set(SELECTED[target].split())
    reply = crowd.ok(f"send {target}", target)
    assert reply.count == len(want)
    assert reply.number("away") == sum(name[0].isupper() for name in want)
    got = crowd.fence(*crowd.crowd.values())
    reached = {name for name, seen in zip(crowd.crowd, got)
               if seen == [target]}
    assert reached == {name for name in want if name[0].islower()}
    assert all(seen in ([], [target]) for seen in got), got


@pytest.mark.parametrize("target", UNKNOWN)
def test_a_socket_id_that_names_no_socket_is_unknown_socket(crowd, target):
    crowd.refused("unknown-socket", f"send {target}", "x")
    crowd.refused("unknown-socket", f"close {target}")
    crowd.refused("unknown-socket", f"abort {target}")
    assert crowd.ok(f"list {target}").count == 0


@pytest.mark.parametrize("target", BAD)
def test_a_target_that_makes_no_sense_is_bad_target(crowd, target):
    for verb in ("send", "list", "close", "abort"):
        crowd.refused("bad-target", f"{verb} {target}")
    assert len(crowd.ids()) == len(SOCKETS)


def test_a_volatile_socket_is_selected_by_its_id(crowd):
    before = crowd.ids("/services/a")
    raw = crowd.open(service="a")
    [socket_id] = crowd.ids("/services/a") - before
    assert crowd.ids(socket_id) == {socket_id}
    assert crowd.ok(f"send {socket_id} =open", "for you").count == 1
    assert raw.read_text() == "for you"
    raw.say_close()
    crowd.wait_state(socket_id, None)


def test_close_takes_exactly_the_selected_sockets(serve):
    server = serve(*SERVER)
    kept = [server.open("g:1", "a"), server.open("g:22", "a"),
            server.open(service="b")]
    gone = [server.open("g:2", "a"), server.open("g:2", "b")]
    server.away("g:2::x:1", "b")
    assert server.ok("close code=4000 $g:2").count == 3
    for raw in gone:
        assert raw.closed() == (4000, "")
    assert server.fence(*kept) == [[], [], []]
    assert len(server.rows()) == 3
