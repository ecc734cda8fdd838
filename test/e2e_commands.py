# SPDX-License-Identifier: MIT
"""Commands of a client on `main`: init_socket, and what is not understood."""
import json

import pytest

SERVER = ["--service", "main_ws_service", "--service", "quiet=none",
          "--retained", "4"]


def init(uid=1, kind="page", tags=(), **more):
    return {"socket_action": "init_socket", "socket_type": kind, "uid": uid,
            "socket_tags": [{"name": n, "value": v} for n, v in tags], **more}


def tags_of(server):
    return server.row("/services/main_ws_service-s-group:7")["tags"]


def ask(client, message):
    client.text(message if isinstance(message, str) else json.dumps(message))
    return json.loads(client.read_text())


@pytest.fixture
def client(server):
    client = server.open("group:7")
    yield client
    server.ok("close *")
    client.close_socket()


def test_init_socket_sets_tags_and_is_answered_by_uid(server, client):
    assert ask(client, init(42, "page", [("room", "a"), ("n", 5),
                                         ("yes", True)])) == [
        {"socket_action": "init_socket", "socket_type": "page", "uid": 42}]
    assert tags_of(server) == {
        "service": "main_ws_service", "group": "7", "socket_type": "page",
        "room": "a", "n": "5", "yes": "true"}
    server.ok("send $room:a", "here")
    assert client.read_text() == "here"


def test_a_second_init_socket_replaces_what_the_first_set(server, client):
    ask(client, init(1, "page", [("room", "a"), ("x", "y")]))
    ask(client, init(2, "list", [("room", "b")]))
    assert tags_of(server) == {
        "service": "main_ws_service", "group": "7", "socket_type": "list",
        "room": "b"}


def test_an_array_of_commands_is_answered_in_one_array(client):
    got = ask(client, [init("a"), {"uid": [1, {"x": 2}]}, init("c", "last")])
    assert [a["uid"] for a in got] == ["a", [1, {"x": 2}], "c"]
    assert got[1]["error"] == "unknown-action"
    assert got[2]["socket_type"] == "last"
    assert ask(client, []) == []


def test_what_was_absent_comes_back_as_null(server, client):
    assert ask(client, {"socket_action": "init_socket"}) == [
        {"socket_action": "init_socket", "socket_type": None, "uid": None}]
    assert "socket_type" not in tags_of(server)


def test_of_a_repeated_name_the_last_wins(server, client):
    ask(client, init(1, "t", [("a", "1"), ("b", "2"), ("a", "\u00e9")]))
    got = tags_of(server)
    assert (got["a"], got["b"]) == ("\u00e9", "2")
    ask(client, init(1, "t", [("a", str(k)) for k in range(40)]))
    assert tags_of(server)["a"] == "39"


@pytest.mark.parametrize("tags", [
    [("group", "8")], [("service", "x")], [("", "x")], [("-x", "y")],
    [("a:b", "c")], [("a b", "c")], [("n" * 33, "v")], [("n", "v" * 97)],
    [("n", "a\u0007b")], [("n", None)], [("n", ["v"])],
    [(f"n{k}", "v") for k in range(17)]])
def test_a_tag_that_may_not_be_set_changes_nothing(server, client, tags):
    ask(client, init(1, "before", [("room", "a")]))
    before = tags_of(server)
    got = ask(client, init(9, "after", [("fine", "1"), *tags]))
    assert got[0]["error"] == "bad-tag" and got[0]["uid"] == 9, got
    assert tags_of(server) == before


def test_sixteen_names_fit_with_those_of_the_id(server, client):
    fits = [(f"n{k}", "v") for k in range(14)]
    assert "error" not in ask(client, init(1, "t", fits))[0]
    assert len(tags_of(server)) == 17  # and `service`
    got = ask(client, init(1, "t", fits + [("one", "more")]))
    assert got[0]["error"] == "bad-tag"


def test_what_the_push_socket_set_is_stronger(server, client):
    ask(client, init(1, "t", [("a", "client")]))
    server.ok("tag $group:7", "a:server\n")
    assert tags_of(server)["a"] == "server"
    assert ask(client, init(1, "t", [("a", "x")]))[0]["error"] == "bad-tag"
    ask(client, init(1, "t"))
    assert tags_of(server)["a"] == "server"


@pytest.mark.parametrize("text", [
    "{", "[1]", '["x"]', "[{}, 1]", "{\"a\":}", " [ [ ] ] ", "{} {}",
    "[" * 2000])
def test_what_is_no_command_is_bad_json_with_a_null_uid(client, text):
    got = ask(client, text)
    assert got[0]["error"] == "bad-json" and got[0]["uid"] is None, got
    assert len(got) == 1 and got[0]["message"]


@pytest.mark.parametrize("value", [
    5, 0.5, True, None, [], {}, ["init_socket"], {"init_socket": 1}, ""])
def test_an_action_or_type_of_any_kind_is_no_command(server, client, value):
    got = ask(client, [{"socket_action": value, "uid": 1}, {"type": value}])
    assert [a["error"] for a in got] == ["unknown-action"] * 2
    assert ask(client, {"type": value})[0]["error"] == "unknown-action"
    assert server.process.poll() is None


def test_heartbeats_are_bare_and_other_texts_are_counted(server, client):
    assert ask(client, '{"type":"ping","n":1}') == {"type": "pong"}
    before = server.stats()["inbound_dropped"]
    client.text("hello")
    client.text("\"{\"")
    assert ask(client, init(1)) and (
        server.stats()["inbound_dropped"] == before + 2)


def test_a_quiet_service_knows_no_commands(server):
    client = server.open("q", "quiet")
    before = server.stats()["inbound_dropped"]
    client.text(json.dumps(init(1)))
    client.text("$hbt")
    assert client.read_text() == "$ok"
    assert server.stats()["inbound_dropped"] == before + 1
    client.close_socket()


def test_tags_of_a_client_outlive_its_connection(server, client):
    ask(client, init(1, "t", [("room", "z")]))
    client.reset()
    again = server.open("group:7")
    server.ok("send $room:z", "still")
    assert again.read_text() == "still"
    again.close_socket()


def test_a_retained_value_comes_when_the_tags_begin_to_match(server, client):
    server.ok("send retain=1 $room:late", "kept")
    client.text(json.dumps(init(1, "t", [("room", "late")])))
    got = sorted([client.read_text(), client.read_text()], key=len)
    assert got[0] == "kept" and json.loads(got[1])[0]["uid"] == 1
    server.ok("send retain=1 $room:late", "")


def test_an_answer_is_bounded_whatever_is_asked(client):
    client.text("[" + ",".join(["{}"] * 1000) + "]")
    got = json.loads(client.read_text())
    assert all(a["error"] in ("unknown-action", "bad-json") for a in got)
    assert ask(client, init(7))[0]["uid"] == 7
