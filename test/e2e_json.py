# SPDX-License-Identifier: MIT
"""kind=json: what waits together leaves as one array, always valid JSON."""
import json
import random

import pytest

import wsp

SERVER = ["--queue-bytes", 500_000, "--queue-messages", 200]


def not_json(name):
    raise ValueError(name)


def strict(text):
    return json.loads(text, parse_constant=not_json)


def in_one_turn(server, *messages):
    """Sends (kind, body) pairs so that they meet one turn; at most 10."""
    assert len(messages) <= 10
    with wsp.Push(server.path, bind=None) as sender, server.pause():
        for kind, body in messages:
            sender.send(f"send kind={kind} *", body)


def bodies(*texts):
    return [("json", text) for text in texts]


def test_a_single_one_leaves_as_an_array(server, tls):
    raw = server.open(tls=tls)
    server.ok("send kind=json *", '{"a":1}')
    assert raw.message() == (wsp.TEXT, b'[{"a":1}]')


def test_neighbours_leave_in_one_array_in_order(server, tls):
    raw = server.open(tls=tls)
    in_one_turn(server, *bodies('{"a":1}', '{"a":2}', '{"a":3}'))
    assert raw.message() == (wsp.TEXT, b'[{"a":1},{"a":2},{"a":3}]')


def test_what_waited_for_an_away_socket_leaves_in_one_array(server, tls):
    away = server.away("1")
    for number in range(20):
        server.ok(f"send kind=json {away}", f'{{"n":{number}}}')
    raw = server.open("1", tls=tls)
    assert json.loads(raw.read_text()) == [{"n": n} for n in range(20)]


def test_many_arrays_that_waited_leave_with_what_stands_between(server, tls):
    away = server.away("1")
    for number in range(90):
        server.ok(f"send kind=json {away}", str(number))
        server.ok(f"send {away}", "-")
    raw = server.open("1", tls=tls)
    for number in range(90):
        assert [raw.read_text(), raw.read_text()] == [f"[{number}]", "-"]


@pytest.mark.parametrize("body", [
    "{}", '{"a":[1,2,{"b":null}]}', "true", "false", "null", "0", "-0",
    "1.5e+10", "1E400", "123456789012345678901234567890", '""', '"text"',
    '"\\u0041\\n\\ud83d\\ude80"', '"\\ud800"', '"П\u2028"', '{"a":1,"a":2}',
    '{"a" : [ 1 , 2 ] }'])
def test_a_json_value_goes_in_as_it_is(server, body):
    raw = server.open()
    server.ok("send kind=json *", body)
    assert raw.read_text() == f"[{body}]"


def test_white_space_around_a_value_is_trimmed(server):
    raw = server.open()
    in_one_turn(server, *bodies(' \t\r\n{ "a": 1 }\n ', "\n2\n"))
    assert raw.read_text() == '[{ "a": 1 },2]'


@pytest.mark.parametrize("body", [
    "[]", "[1,2]", '[{"a":1},{"a":2}]', "[[1]]", "[ 1 , 2 ]"])
def test_an_array_leaves_alone_and_is_not_wrapped_again(server, body):
    raw = server.open()
    in_one_turn(server, *bodies("1", "2", body, body, "3", "4"))
    assert [raw.read_text() for _ in range(4)] == [
        "[1,2]", body, body, "[3,4]"]


@pytest.mark.parametrize("body", [
    "", " ", "hello", "Привет!", 'say "hi"', "back\\slash", "two\nlines",
    "tab\there", "\x00\x01\x1f\x7f", "\u2028\u2029", "\ufeff{}", "{", "}",
    '{"a":1', '{"a":1} x', '{"a":1}{"b":2}', "{'a':1}", '{"a":1,}', "[1,]",
    "[1,2", "[1 2]", "01", "+1", "1.", ".5", "1e", "-", "0x10", "NaN",
    "Infinity", "-Infinity", "True", "nul", "truefalse", '"open', '"a\nb"',
    '"\x01"', '"\\x41"', '"\\u12"', "\x0b1", "\u00a01", "1,2", '{"a"}',
    '{1:2}', "{,}", "[,]", "//x\n1", "1//x", "undefined"])
def test_whatever_is_not_json_goes_in_as_a_string(server, body):
    raw = server.open()
    server.ok("send kind=json *", body)
    assert strict(raw.read_text()) == [body]


@pytest.mark.parametrize("depth, alone", [(1, True), (63, True), (64, True),
                                          (65, False), (10_000, False)])
def test_deep_arrays_go_in_as_a_string(server, depth, alone):
    body = "[" * depth + "]" * depth
    raw = server.open()
    server.ok("send kind=json *", body)
    assert raw.read_text() == (body if alone else f'["{body}"]')


@pytest.mark.parametrize("depth", [64, 65])
def test_objects_nested_deeper_than_64_go_in_as_a_string(server, depth):
    body = '{"a":' * depth + "1" + "}" * depth
    raw = server.open()
    server.ok("send kind=json *", body)
    text = raw.read_text()
    assert text == f"[{body}]" if depth == 64 else strict(text) == [body]


def test_depth_that_never_closes_is_a_string_too(server):
    raw = server.open()
    server.ok("send kind=json *", "[" * 60_000)
    assert strict(raw.read_text()) == ["[" * 60_000]


def test_text_and_binary_stand_between_batches(server, tls):
    raw = server.open(tls=tls)
    in_one_turn(server, ("json", "1"), ("json", "2"), ("text", "t"),
                ("json", "3"), ("binary", b"\xff"), ("json", "4"),
                ("json", "5"), ("text", "u"), ("text", "[6]"))
    assert [raw.message() for _ in range(7)] == [
        (1, b"[1,2]"), (1, b"t"), (1, b"[3]"), (2, b"\xff"), (1, b"[4,5]"),
        (1, b"u"), (1, b"[6]")]


@pytest.mark.parametrize("size", [1000, 9000, 30_000, 32_760, 40_000, 65_000])
def test_a_batch_is_at_most_64_kib_or_one_message(server, tls, size):
    away = server.away("1")
    count = min(100, 450_000 // size)
    sent = [f"{number:03}" + "x" * (size - 5) for number in range(count)]
    for text in sent:
        server.ok(f"send kind=json {away}", json.dumps(text))
    raw = server.open("1", tls=tls)
    got, frames = [], 0
    while len(got) < count:
        text = raw.read_text()
        batch = json.loads(text)
        assert len(text) <= 65536 or len(batch) == 1
        got += batch
        frames += 1
    assert got == sent
    whole = max(1, 65536 // (size + 1))  # messages that fit one batch
    assert frames <= -(-count // whole) + 1, "batches are smaller than need be"


def test_a_message_of_the_full_64_kib_leaves_as_a_batch_of_its_own(server):
    away = server.away("1")
    big = '"' + "x" * 65534 + '"'
    for body in ("1", big, "2"):
        server.ok(f"send kind=json {away}", body)
    raw = server.open("1")
    assert [raw.read_text() for _ in range(3)] == ["[1]", f"[{big}]", "[2]"]


def test_the_bytes_of_a_queue_count_bodies_as_they_will_leave(server):
    away = server.away("1")
    for body, size in (('  {"a":1}  ', 7), ('say "x"', 11), ("[1, 2]", 6),
                       ("\n", 4)):
        before = server.row(away)["bytes"]
        server.ok(f"send kind=json {away}", body)
        assert server.row(away)["bytes"] - before == size, body


def any_body(dice):
    """Something between good JSON and noise."""
    def value(depth):
        kind = dice.randrange(8 if depth else 5)
        if kind == 0:
            return dice.choice([None, True, False])
        if kind == 1:
            return dice.randrange(-10 ** 6, 10 ** 6)
        if kind == 2:
            return dice.random()
        if kind < 5:
            return "".join(dice.choices('aП"\\\n\u2028\x00/ \U0001f680', k=4))
        if kind == 5:
            return [value(depth - 1) for _ in range(dice.randrange(3))]
        return {str(n): value(depth - 1) for n in range(dice.randrange(3))}
    text = json.dumps(value(3), ensure_ascii=dice.random() < .5)
    harm = dice.randrange(6)
    if harm == 0 and text:
        at = dice.randrange(len(text))
        text = text[:at] + text[at + 1:]
    elif harm == 1:
        at = dice.randrange(len(text) + 1)
        text = text[:at] + dice.choice('[]{}",:\\0 \t\x01П') + text[at:]
    elif harm == 2:
        text = dice.choice(" \n\t\r") + text + dice.choice(" \n\t\r")
    return text


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_arrives_complete_in_order_and_valid(server, tls, seed):
    dice = random.Random(seed)
    sent = [(dice.choice(["json"] * 6 + ["text", "binary"]), any_body(dice))
            for _ in range(150)]
    away = server.away("1")
    raw = None
    for number, (kind, body) in enumerate(sent):
        if number == 100:
            raw = server.open("1", tls=tls)  # the rest meets an open one
        server.ok(f"send kind={kind} {away}", body)
    got = server_says(raw, server)
    assert got == expected(sent)


def server_says(raw, server):
    """Frames as a flat list: arrays opened, everything else by its kind.
    Texts that the test sent as `text` could look like arrays, so they are
    told apart by expected(), which makes the same of them."""
    server.ok("send *", "the end")
    got = []
    while True:
        opcode, payload = raw.message()
        if (opcode, payload) == (wsp.TEXT, b"the end"):
            return got
        if opcode == wsp.BINARY_FRAME:
            got.append(("binary", payload))
            continue
        text = payload.decode()
        try:
            value = strict(text)
        except ValueError:
            value = None
        if isinstance(value, list):
            got += [("element", json.dumps(v)) for v in value]
        else:
            got.append(("text", text))


def expected(sent):
    want = []
    for kind, body in sent:
        if kind == "binary":
            want.append(("binary", body.encode()))
            continue
        try:
            value = strict(body)
            is_list = isinstance(value, list)
        except ValueError:
            value, is_list = body, False
        if is_list:
            want += [("element", json.dumps(v)) for v in value]
        elif kind == "json":
            want.append(("element", json.dumps(value)))
        else:
            want.append(("text", body))
    return want
