# SPDX-License-Identifier: MIT
"""The MQTT bridge between a real mosquitto and wspush: what each publication
becomes, what is refused, what goes up, and that nothing is lost whoever is
killed when (the table is printed, pytest -s; WSPUSH_MQTT_MESSAGES makes the
story longer or shorter)."""
import json
import os
import pathlib
import queue
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import types

import pytest

import e2e_network
import wsp
from wsp import MAIN

ASAN = str(wsp.ROOT / "build" / "asan" / "wspush-mqtt")
PLAIN = str(wsp.ROOT / "build" / "wspush-mqtt")
MESSAGES = int(os.environ.get("WSPUSH_MQTT_MESSAGES", "10000"))
STORY = 100  # seconds that the story may take


@pytest.fixture(scope="module", autouse=True)
def programs(binary):
    if not shutil.which("mosquitto"):
        pytest.skip("there is no mosquitto")
    done = subprocess.run(["make", "-s", "-C", wsp.ROOT, "build/wspush-mqtt",
                           "build/asan/wspush-mqtt"], check=False,
                          capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# ----- MQTT 5, as much as a test needs ------------------------------------

def varint(n):
    out = b""
    while True:
        n, low = n >> 7, n & 127
        out += bytes([low | 128 if n else low])
        if not n:
            return out


def text16(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("!H", len(s)) + s


def properties(expiry=None, type=None, user=()):
    out = b""
    if expiry is not None:
        out += b"\x02" + struct.pack("!I", expiry)
    if type is not None:
        out += b"\x03" + text16(type)
    for name, value in user:
        out += b"\x26" + text16(name) + text16(value)
    return varint(len(out)) + out


class Message:
    def __init__(self, flags, body):
        self.qos, self.retain = flags >> 1 & 3, flags & 1
        n = struct.unpack("!H", body[:2])[0]
        self.topic, at = body[2:2 + n].decode(), 2 + n
        if self.qos:
            self.id = struct.unpack("!H", body[at:at + 2])[0]
            at += 2
        end = at + 1 + body[at]  # our tests have under 128 bytes of them
        self.properties, self.body = body[at + 1:end], body[end:]

    def __repr__(self):
        return f"<{self.topic} r{self.retain} {self.body[:60]!r}>"


class Mqtt:
    """A client; what comes is read by a thread into `inbox`."""

    def __init__(self, address, name="", topics=(), username=None,
                 word=None):
        self.socket = socket.create_connection(address, wsp.PATIENCE)
        self.socket.settimeout(wsp.PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox, self.acked = queue.Queue(), queue.Queue()
        self.number = 0
        flags = 2 | (0xc0 if username else 0)
        head = text16("MQTT") + bytes([5, flags]) + b"\0\0" + b"\0"
        self.packet(0x10, head + text16(name) + (
            text16(username) + text16(word) if username else b""))
        kind, body = self.read()
        assert kind == 0x20 and body[1] == 0, f"refused: {body!r}"
        self.socket.settimeout(None)
        threading.Thread(target=self.run, daemon=True).start()
        for topic in topics:
            self.number += 1
            self.packet(0x82, struct.pack("!H", self.number) + b"\0"
                        + text16(topic) + b"\x09")
            assert self.acked.get(timeout=wsp.PATIENCE) == self.number

    def packet(self, kind, body):
        self.socket.sendall(bytes([kind]) + varint(len(body)) + body)

    def take(self, n):
        data = b""
        while len(data) < n:
            more = self.socket.recv(n - len(data))
            if not more:
                raise ConnectionError("the broker has gone")
            data += more
        return data

    def read(self):
        kind, n, shift = self.take(1)[0], 0, 0
        while True:
            byte = self.take(1)[0]
            n |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return kind, self.take(n)

    def run(self):
        try:
            while True:
                kind, body = self.read()
                if kind >> 4 == 3:
                    message = Message(kind & 15, body)
                    if message.qos:
                        self.packet(0x40, struct.pack("!H", message.id))
                    self.inbox.put(message)
                elif kind in (0x40, 0x90):
                    self.acked.put(struct.unpack("!H", body[:2])[0])
        except OSError:
            self.acked.put(None)

    def send(self, topic, body, retain=False, id=None, **how):
        if id is None:
            self.number = id = self.number + 1
        body = body.encode() if isinstance(body, str) else body
        self.packet(0x32 | retain, text16(topic) + struct.pack("!H", id)
                    + properties(**how) + body)
        return id

    def publish(self, *what, **how):
        """With QoS 1, and waits until the broker has it."""
        id = self.send(*what, **how)
        assert self.acked.get(timeout=wsp.PATIENCE) == id

    def wait(self, topic, body=None):
        """The first publication of this topic, and with this body."""
        seen = []
        while True:
            try:
                got = self.inbox.get(timeout=wsp.PATIENCE)
            except queue.Empty:
                raise AssertionError(
                    f"no {topic} {body!r}; there was {seen}") from None
            if got.topic == topic and body in (None, got.body):
                return got
            seen.append(got)

    def close(self):
        self.socket.close()


# ----- mosquitto and the bridge -------------------------------------------

class Broker:
    def __init__(self, directory, address="127.0.0.1", more="", inside=()):
        self.directory = pathlib.Path(directory)
        self.inside = list(inside)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = (address, self.port)
        (self.directory / "conf").write_text(
            f"user root\nper_listener_settings false\nlistener {self.port} "
            f"{address}\nallow_anonymous true\npersistence true\n"
            f"persistence_location {directory}/\nmax_queued_messages 20000\n"
            f"set_tcp_nodelay true\n{more}\n")
        self.start()

    def start(self):
        with open(self.directory / "broker.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.inside, "mosquitto", "-c", self.directory / "conf"],
                stderr=log, stdout=log)
        # It listens when /proc says so, in whichever namespace.
        wsp.until(self.listens, "mosquitto to listen")

    def listens(self):
        assert self.process.poll() is None, (
            self.directory / "broker.log").read_text()
        with open(f"/proc/{self.process.pid}/net/tcp") as table:
            return f":{self.port:04X} 00000000:0000 0A" in table.read()

    def stop(self):
        self.process.terminate()
        self.process.wait(wsp.PATIENCE)


class Bridge:
    def __init__(self, broker, *options, id="b1", program=ASAN, inside=(),
                 push=None):
        self.command = [*inside, program, "--broker",
                        "%s:%d" % broker.address, "--id", id,
                        "--reconnect-max", "1"]
        if push:
            self.command += ["--push", push]
        self.command += map(str, options)
        self.log = broker.directory / f"{id}.log"
        self.log.write_text("")
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log)

    def wait_log(self, pattern, count=1):
        def check():
            text = self.log.read_text()
            assert not wsp.SANITIZER.search(text), text
            return len(re.findall(pattern, text)) >= count
        try:
            wsp.until(check, pattern)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in the log:\n"
                                 + self.log.read_text()) from None
        return self

    def both(self):
        """Waits until it has met the broker and wspush."""
        return self.wait_log("state=here session").wait_log(
            "state=here uptime")

    def counters(self):
        lines = len(re.findall(" counters ", self.log.read_text()))
        self.process.send_signal(signal.SIGUSR1)
        self.wait_log(" counters ", lines + 1)
        line = re.findall(" counters (.*)", self.log.read_text())[-1]
        return {k: int(v) for k, v in (w.split("=") for w in line.split())}

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(wsp.PATIENCE) == 0, self.log.read_text()
        assert not wsp.SANITIZER.search(self.log.read_text())


@pytest.fixture
def make(tmp_path, serve):
    """Broker, wspush, bridge and MQTT clients that end with the test."""
    made = []

    class Make:
        def broker(self, **how):
            made.append(Broker(tmp_path, **how))
            return made[-1]

        def bridge(self, broker, server, *options, **how):
            made.append(Bridge(broker, *options, push=server.path, **how))
            return made[-1]

        def mqtt(self, broker, *topics, **how):
            made.append(Mqtt(broker.address, topics=topics, **how))
            return made[-1]

        def all(self, *options, server=(), topics=(), **how):
            """One of each, connected."""
            broker = self.broker()
            server = serve(*server)
            bridge = self.bridge(broker, server, "--settle", 0, *options,
                                 **how)
            return broker, server, bridge.both(), self.mqtt(broker, *topics)
    yield Make()
    for each in reversed(made):
        if isinstance(each, Mqtt):
            each.close()
        elif each.process.poll() is None:
            each.kill() if isinstance(each, Bridge) else each.stop()
        if isinstance(each, Bridge):
            assert not wsp.SANITIZER.search(each.log.read_text()), \
                each.log.read_text()


ALL = f"push/{MAIN}/all"


# ----- down ---------------------------------------------------------------

def test_each_topic_has_its_target_and_each_content_type_its_kind(make):
    _, server, bridge, mqtt = make.all(
        "--prefix", "push", "--prefix", "push/one", server=(
            "--service", MAIN, "--service", "other"))
    one = server.open("id:1::room:a")
    two = server.open("id:2::room:b")
    three = server.open("id:3", service="other")
    publish = mqtt.publish
    publish(ALL, "all")
    publish("push/one/other/all", "other")
    publish(f"push/{MAIN}/id/id:2::room:b", "id")
    publish(f"push/{MAIN}/tag/room/a", "value")
    publish(f"push/{MAIN}/tag/room", "name")
    publish("push/target", "own", user=[("x", "y"), ("target", "$id:[2,3]")])
    publish("push/one/target", '{"a":1}', type="application/json",
            user=[("target", "*")])
    publish(ALL, b"\xff\0", type="application/octet-stream")
    publish(ALL, "plain", type="text/plain; charset=utf-8")
    publish(ALL, "what", type="image/png")
    publish(f"push/{MAIN}/id/nobody", "lost")
    publish("push/target", "fence", user=[("target", "*")])
    assert one.before("fence") == ["all", "value", "name", '[{"a":1}]',
                                   b"\xff\0", "plain", "what"]
    assert two.before("fence") == ["all", "id", "name", "own", '[{"a":1}]',
                                   b"\xff\0", "plain", "what"]
    assert three.before("fence") == ["other", "own", '[{"a":1}]']
    counted = bridge.counters()
    assert counted["received"] == counted["taken"] == 12
    assert counted["nobody"] == 1 and counted["rejected"] == 0


def test_the_kind_of_what_has_no_content_type_is_an_option(make):
    _, server, _, mqtt = make.all("--kind", "json")
    client = server.open()
    mqtt.publish(ALL, "1")
    assert client.read_text() == "[1]"


REFUSED = [
    ("bad-utf8", ALL, b"\xff", {}),
    ("too-big", ALL, b"x" * 2000, {}),
    ("bad-target", "push/nosuch/all", b"x", {}),
    ("bad-target", f"push/{MAIN}-s-1/all", b"x", {}),
    ("bad-target", f"push/{MAIN}/id", b"x", {}),
    ("bad-target", f"push/{MAIN}/id/a =away", b"x", {}),
    ("bad-target", f"push/{MAIN}/tag/a:b/c", b"x", {}),
    ("bad-target", "push/target", b"x", {}),
    ("bad-target", "push/target", b"x", {"user": [("target", "ttl=1 *")]}),
    ("bad-target", "push/target", b"x", {"user": [("target", "$a:[")]}),
    ("bad-target", f"push/{MAIN}/tag/a/[b,c]", b"x", {}),
    ("bad-target", "push//all", b"x", {}),
    ("bad-target", f"push/{MAIN}/tag//c", b"x", {}),
    ("bad-target", "push/target", b"x", {"user": [("target", "")]}),
    ("bad-target", f"push/{MAIN}/tag/a/" + "b" * 930, b"x", {}),
    ("bad-target", f"push/{MAIN}/tag/a/" + "b" * 1100, b"x", {}),
    ("bad-option", f"push/{MAIN}/id/1", b"x", {"retain": True}),
]


def test_what_can_never_be_pushed_is_logged_counted_and_published(make):
    _, server, bridge, mqtt = make.all(
        "--max-message", 4000, server=("--max-message", 1000),
        topics=["push/rejected"])
    client = server.open("1")
    for code, topic, body, how in REFUSED:
        mqtt.publish(topic, body, **how)
        got = mqtt.wait("push/rejected")
        told = json.loads(got.body)
        assert told["code"] == code, told
        assert told["topic"] == topic[:len(told["topic"])], told
        assert told["box"] == "b1" and told["bytes"] == len(body)
        assert len(told["message"]) > 9
        assert b"application/json" in got.properties
    mqtt.publish(ALL, b"y" * 5000)  # over the bridge's own limit
    assert json.loads(mqtt.wait("push/rejected").body)["code"] == "too-big"
    mqtt.publish(ALL, "fence")
    assert client.before("fence") == []
    assert bridge.counters()["rejected"] == len(REFUSED) + 1
    bridge.wait_log(r"warn rejected topic=\"push/main_ws_service/all\" "
                    "code=bad-utf8")


def test_a_retained_value_meets_newcomers_also_of_a_new_wspush(
        make, serve, tmp_path):
    broker = make.broker()
    state = tmp_path / "state"
    state.mkdir()
    server = serve(directory=state)
    bridge = make.bridge(broker, server, "--settle", 0).both()
    mqtt = make.mqtt(broker)
    mqtt.publish(ALL, "last value", retain=True)
    wsp.until(lambda: bridge.counters()["taken"] == 1, "it to be pushed")
    assert server.open().read_text() == "last value"
    server.stop()
    server = serve(directory=state)
    mqtt.publish(ALL, "poke", type="application/json")
    wsp.until(lambda: bridge.counters()["taken"] == 3, "it to come again")
    assert server.open().read_text() == "last value"
    mqtt.publish(ALL, "", retain=True)
    mqtt.publish(ALL, "fence")
    wsp.until(lambda: bridge.counters()["taken"] == 5, "it to be forgotten")
    mqtt.publish(f"push/{MAIN}/tag/id", "x")
    late = server.open("id:9")
    mqtt.publish(ALL, "fence")
    assert late.before("fence") == []


def test_message_expiry_becomes_ttl(make):
    _, server, bridge, mqtt = make.all()
    server.away("1")
    mqtt.publish(ALL, "short", expiry=1)
    mqtt.publish(ALL, "long", expiry=1000)
    wsp.until(lambda: bridge.counters()["taken"] == 2, "both to be taken")
    wsp.until(lambda: server.stats()["expired"] == 1, "the short one to end")
    client = server.open("1")
    assert client.read_text() == "long"


def test_expired_while_it_was_held_is_not_pushed(make):
    _, server, bridge, mqtt = make.all()
    client = server.open("1")
    with server.pause():
        for _ in range(2):  # the first may be with wspush already
            mqtt.publish(ALL, "old", expiry=1)
        time.sleep(1.5)
    mqtt.publish(ALL, "fence")
    assert "old" not in client.before("fence")[1:]
    assert bridge.counters()["expired"] >= 1


def test_a_full_queue_is_tried_again_in_order(make):
    _, server, bridge, mqtt = make.all(server=(
        "--overflow", "refuse", "--queue-messages", 3))
    server.away("1")
    for number in range(12):
        mqtt.publish(f"push/{MAIN}/tag/service/{MAIN}", f"{number}")
    bridge.wait_log("refused code=queue-full")
    client = server.open("1")
    assert [client.read_text() for _ in range(12)] == [
        f"{n}" for n in range(12)]
    assert bridge.counters()["retried"] > 0


def test_nothing_is_acknowledged_before_wspush_has_answered(make):
    """A bridge that held publications is killed; the next has them all."""
    broker, server, bridge, mqtt = make.all()
    client = server.open("1")
    with server.pause():
        for number in range(30):  # more than the Receive Maximum
            mqtt.publish(ALL, f"{number}")
        wsp.until(lambda: bridge.counters()["received"] >= 20, "a batch")
        bridge.kill()
    bridge.start()
    got = []
    while not got or got[-1] != "29":
        got.append(client.read_text())
    assert list(dict.fromkeys(got)) == [f"{n}" for n in range(30)]


def test_with_confirm_the_broker_waits_for_the_clients(
        make, serve, tmp_path):
    """What wspush had taken is gone with it, and comes again."""
    broker = make.broker()
    state = tmp_path / "state"
    state.mkdir()
    first = serve(directory=state)
    bridge = make.bridge(broker, first, "--settle", 3, "--confirm",
                         20).both()
    mqtt = make.mqtt(broker)
    client = first.open("1")
    mqtt.publish(ALL, "one")
    assert client.next_frame().payload == b"one"
    assert bridge.counters()["taken"] == 1  # and no Pong has been sent
    first.kill()
    client.close_socket()
    second = serve(directory=state)
    client = second.open("1")
    assert client.read_text() == "one"
    assert bridge.counters()["received"] == 1  # the broker was not asked


def test_after_a_restart_wspush_gets_nothing_before_its_clients_are_back(
        make, serve, tmp_path):
    broker = make.broker()
    state = tmp_path / "state"
    state.mkdir()
    first = serve(directory=state)
    bridge = make.bridge(broker, first, "--settle", 3).both()
    mqtt = make.mqtt(broker)
    first.kill()
    mqtt.publish(ALL, "patience")
    bridge.wait_log("state=away error")
    second = serve(directory=state)
    assert second.open("1").read_text() == "patience"


def test_a_stopped_wspush_bounds_the_bridge_and_loses_nothing(make):
    _, server, bridge, mqtt = make.all(
        "--keepalive", 3600, program=PLAIN, server=(
            "--overflow", "refuse", "--queue-bytes", 1 << 20,
            "--store-bytes", 4 << 20))
    client = server.open("1")
    mqtt.publish(ALL, "first")
    assert client.read_text() == "first"

    def rss():
        status = pathlib.Path(f"/proc/{bridge.process.pid}/status")
        return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    before, count, size = rss(), 300, 50000
    with server.pause():
        for number in range(count):
            mqtt.publish(ALL, b"%05d" % number + b"x" * size)
        wsp.until(lambda: bridge.counters()["received"] >= 20, "a batch")
        grown = rss() - before
        print(f"    {count * size >> 20} MiB published to a stopped wspush: "
              f"{before} KiB grew by {grown} KiB")
        assert grown < 4096, "more than a batch is in memory"
    for number in range(count):
        assert client.read_text().startswith(f"{number:05}")


def test_no_target_is_too_long_for_wspush_only(make):
    """It would be asked for ever: `bad-request` does not say which."""
    _, _, bridge, mqtt = make.all("--confirm", 20)
    lengths = range(870, 1010, 2)
    for length in lengths:
        mqtt.publish(f"push/{MAIN}/id/" + "b" * length, "x", expiry=10 ** 9,
                     type="application/octet-stream")

    def over():
        counted = bridge.counters()
        assert counted["retried"] == 0
        return counted["taken"] + counted["rejected"] == len(lengths)
    wsp.until(over, "all to be taken or refused")
    assert bridge.counters()["taken"] > 0


def test_a_box_slower_than_its_keepalive_gets_on(make):
    """A batch that takes too long ends the connection; what is done of it is
    not pushed again, or it would never be over."""
    _, server, bridge, mqtt = make.all("--keepalive", 5, server=(
        "--overflow", "refuse", "--queue-messages", 1))
    client = server.open("1")
    for number in range(12):
        mqtt.publish(f"push/{MAIN}/tag/service", f"{number}")
    got = []
    while len(got) < 30 and "11" not in got:
        frame = client.next_frame()
        if frame.opcode == wsp.PING:
            time.sleep(0.5)
            client.frame(wsp.PONG, frame.payload)
        else:
            got.append(frame.payload.decode())
    assert got == [f"{n}" for n in range(12)]
    assert bridge.counters()["parked"] > 0


def test_the_brokers_own_keepalive_is_kept(make, serve):
    broker = make.broker(more="max_keepalive 10")
    server = serve()
    bridge = make.bridge(broker, server, "--settle", 0, "--keepalive",
                         3600).both()
    mqtt = make.mqtt(broker, "presence/b1")
    with server.pause():
        mqtt.publish(ALL, "one")
        mqtt.wait("presence/b1", b"offline")
        assert bridge.counters()["parked"] == 1


def test_a_box_that_cannot_deliver_says_so(make):
    _, server, bridge, mqtt = make.all(
        "--keepalive", 5, topics=["presence/b1"])
    client = server.open("1")
    mqtt.wait("presence/b1", b"online")
    with server.pause():
        mqtt.publish(ALL, "one")
        mqtt.wait("presence/b1", b"offline")
    mqtt.wait("presence/b1", b"online")
    assert client.read_text() == "one"
    assert bridge.counters()["parked"] == 1


# ----- up -----------------------------------------------------------------

def test_what_clients_say_goes_up(make, tmp_path):
    path = tmp_path / "up.sock"
    _, server, bridge, mqtt = make.all(
        "--handler", path, server=("--service", f"chat=unix:{path}"),
        topics=["from/#"])
    client = server.open("a+b/c", service="chat")
    client.text("hello\nall")
    got = mqtt.wait("from/chat/a%2Bb/c")
    assert got.body == b"hello\nall" and not got.retain
    assert b"text/plain" in got.properties
    assert b"/services/chat-s-a+b/c" in got.properties
    client.frame(wsp.BINARY_FRAME, b"\xff\0")
    got = mqtt.wait("from/chat/a%2Bb/c")
    assert got.body == b"\xff\0" and b"octet-stream" in got.properties
    guest = server.open(service="chat")
    guest.text("volatile")
    got = mqtt.inbox.get(timeout=wsp.PATIENCE)
    assert re.fullmatch("from/chat/[0-9a-f-]{36}", got.topic)
    assert bridge.counters()["up"] == 3
    bridge.stop()
    assert not path.exists()


def test_a_path_that_a_killed_bridge_left_is_taken_another_is_not(
        make, tmp_path):
    path = tmp_path / "up.sock"
    broker, server, bridge, _ = make.all("--handler", path)
    bridge.kill()
    assert path.exists()
    bridge.start()
    bridge.wait_log("state=here session", 2)
    other = make.bridge(broker, server, "--handler", path, id="b2")
    other.wait_log("another program listens there")
    assert other.process.wait(wsp.PATIENCE) == 1


def test_presence_is_retained_and_what_is_gone_is_swept(make):
    broker, server, bridge, mqtt = make.all(
        "--watch", "*", topics=["presence/#"])
    at = f"presence/b1/services/{MAIN}"
    client = server.open("1")
    mqtt.wait(f"{at}-s-1", b"open")
    client.say_close()
    mqtt.wait(f"{at}-s-1", b"away")
    server.open("2")
    mqtt.wait(f"{at}-s-2", b"open")
    server.ok(f"close /services/{MAIN}-s-1")
    mqtt.wait(f"{at}-s-1", b"")
    bridge.kill()
    mqtt.wait("presence/b1", b"offline")
    server.ok("close *")
    server.open("a%233")
    late = make.mqtt(broker, "presence/#")
    late.wait(f"{at}-s-2", b"open")  # nobody has told the broker
    bridge.start()
    mqtt.wait("presence/b1", b"online")
    mqtt.wait(f"{at}-s-a%233", b"open")
    mqtt.wait(f"{at}-s-2", b"")


def test_ids_that_no_topic_can_hold_are_escaped(make, tmp_path):
    path = tmp_path / "up.sock"
    _, server, bridge, mqtt = make.all(
        "--watch", "*", "--handler", path,
        server=("--service", MAIN, "--service", f"chat=unix:{path}"),
        topics=["presence/#", "from/#"])
    client = server.open("%EF%BF%BE/x", service="chat")
    at = "presence/b1/services/chat-s-%EF%BF%BE/x"
    mqtt.wait(at, b"open")
    client.text("said")
    assert mqtt.wait("from/chat/%EF%BF%BE/x").body == b"said"
    client.text("\ufffe\0")  # and the broker does not mind
    mqtt.wait("from/chat/%EF%BF%BE/x", b"\xef\xbf\xbe\0")
    assert bridge.counters()["connects"] == 1
    bridge.kill()
    server.ok("close *")
    bridge.start()
    mqtt.wait(at, b"")


def test_a_list_whose_reply_is_lost_is_asked_for_again(make, tmp_path):
    """By a wspush of a few lines, which answers every second `list`."""
    broker, asked = make.broker(), []
    mqtt = make.mqtt(broker, "presence/#")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        path = str(tmp_path / "push.sock")
        server.bind(path)
        server.settimeout(wsp.PATIENCE)
        make.bridge(broker, types.SimpleNamespace(path=path), "--settle", 0,
                    "--watch", "*")
        while len(asked) < 2:
            request, sender = server.recvfrom(4096)
            verb, ref = request.split()[:2]
            if verb == b"list":
                asked.append(ref)
            if verb == b"stats" or len(asked) == 2:
                body = {b"stats": b"uptime 9\n", b"list":
                        b"/services/a-s-1\topen\t0\n"}[verb]
                server.sendto(b"ok 1 " + ref + b"\n" + body, sender)
        mqtt.wait("presence/b1/services/a-s-1", b"open")


def test_a_watch_that_is_refused_is_said_once(make):
    _, server, bridge, mqtt = make.all("--watch", "nosuch")
    bridge.wait_log("warn watch code=bad-option")
    bridge.counters()
    assert bridge.log.read_text().count("warn watch") == 1


# ----- the box ------------------------------------------------------------

def test_the_box_is_online_and_its_last_will_says_offline(make):
    broker, _, bridge, mqtt = make.all(topics=["presence/b1"])
    assert mqtt.wait("presence/b1").body == b"online"
    bridge.kill()
    assert mqtt.wait("presence/b1").body == b"offline"
    bridge.start()
    assert mqtt.wait("presence/b1").body == b"online"
    late = make.mqtt(broker, "presence/b1")
    assert late.wait("presence/b1").retain
    bridge.stop()
    assert mqtt.wait("presence/b1").body == b"offline"


def test_sigterm_takes_along_what_clients_have_said(make, tmp_path):
    """More than the library has under way at a time, 20."""
    path = tmp_path / "up.sock"
    broker, server, bridge, mqtt = make.all(
        "--handler", path, server=("--service", f"chat=unix:{path}"),
        topics=["from/#"])
    client = server.open("1", service="chat")
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        for number in range(40):
            client.text(f"{number}")
            if number % 8 == 7:  # a router's kernel lets eleven wait
                wsp.until(lambda: bridge.counters()["up"] == number + 1,
                          "all to be taken")
        bridge.process.terminate()
        bridge.wait_log("info stopping")
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
    for number in range(40):
        assert mqtt.wait("from/chat/1").body == b"%d" % number
    bridge.stop()


def test_sigterm_ends_it_also_when_wspush_stands_still(make):
    _, server, bridge, mqtt = make.all(topics=["presence/b1"])
    client = server.open("1")
    mqtt.wait("presence/b1", b"online")
    with server.pause():
        mqtt.publish(ALL, "kept")
        wsp.until(lambda: bridge.counters()["received"] == 1, "it")
        bridge.stop()
        mqtt.wait("presence/b1", b"offline")
    bridge.start()
    assert client.read_text() == "kept"


def test_tls_and_a_password(make, serve, tmp_path):
    cert, key = wsp.make_certificate(tmp_path, "localhost")
    subprocess.run(["mosquitto_passwd", "-b", "-c", tmp_path / "users",
                    "box", "secret"], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    broker = make.broker(more=(
        f"listener {port} 127.0.0.1\ncertfile {cert}\nkeyfile {key}\n"
        f"password_file {tmp_path}/users").replace("\n\n", "\n"))
    conf = broker.directory / "conf"
    conf.write_text(conf.read_text().replace("allow_anonymous true",
                                             "allow_anonymous false"))
    broker.stop()
    broker.start()
    (tmp_path / "word").write_text("secret\n")
    (tmp_path / "wrong").write_text("guess\n")
    server = serve()
    (tmp_path / "bridge.conf").write_text(
        f"# the broker\nbroker localhost:{port}\nusername box\n"
        f"cafile {cert}\npassword-file {tmp_path}/word\n")
    config = ("--config", tmp_path / "bridge.conf", "--settle", 0)
    broker.address = ("localhost", port)
    good = make.bridge(broker, server, *config)
    good.both()
    client = server.open("1")
    mqtt = Mqtt(("127.0.0.1", broker.port), username="box", word="secret")
    mqtt.publish(ALL, "safe")
    assert client.read_text() == "safe"
    bad = make.bridge(broker, server, *config, "--password-file",
                      tmp_path / "wrong", id="b2")
    bad.wait_log("state=refused code=135")
    other, _ = wsp.make_certificate(tmp_path, "other")
    stranger = make.bridge(broker, server, *config, "--cafile", other,
                           id="b3")
    stranger.wait_log("state=away why=", 4)
    said = stranger.log.read_text()
    assert "state=here session" not in said
    assert said.count("certificate verify failed") <= 1 + said.count(
        "state=away why="), "it tries again without a pause"
    mqtt.close()


WRONG = [
    (["--bogus"], "unknown option --bogus; see wspush-mqtt --help"),
    (["--broker"], "--broker takes HOST[:PORT]"),
    (["--broker", "x:y"], "it takes HOST[:PORT]"),
    (["--broker", "[::1"], "it takes HOST[:PORT]"),
    (["--inflight", "0"], "it takes a number from 1 to 1000"),
    (["--keepalive", "x"], "it takes a number from 5 to 65535"),
    (["--kind", "xml"], "it is text, json or binary"),
    (["--prefix", "a/#"], "it takes a topic"),
    (["--prefix", "/a"], "without / at its ends"),
    (["--id", "a/b"], "it takes 1 to 64 bytes"),
    (["--confirm", "28"], "--confirm must be less than half of --keepalive"),
    (["--prefix", "$share/g/push"], "without $ in front"),
    (["--from", "push/up"], "--from push/up lies below --prefix push"),
    (["--presence", "push"], "--presence push lies below --prefix push"),
    (["--password-file", "/nowhere", "--username", "u"], "No such file"),
    (["--password-file", "/dev/null"], "needs --username"),
    (["--cafile", "/nowhere"], "--cafile /nowhere: No such file"),
    (["--cert", "/dev/null"], "--cert and --key go together"),
    (["--insecure"], "--insecure needs"),
    (["--watch", "$" + "x" * 1023], "--watch: a target has less than"),
    (["--push", "/" + "x" * 108], "a path has at most 107 bytes"),
    (["--config", "/nowhere"], "/nowhere: No such file"),
    (["--log-level", "loud"], "it is error, warn, info or debug"),
    (["--prefix", "a"] * 9, "there are too many prefixes"),
]


def bridge_says(*words):
    return subprocess.run([ASAN, *words], capture_output=True, check=False,
                          timeout=wsp.PATIENCE)


@pytest.mark.parametrize("words,what", WRONG)
def test_wrong_usage_is_named(words, what):
    done = bridge_says(*words)
    assert done.returncode == 2 and what in done.stderr.decode(), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("line,what", [
    ("nosuch 1", "nosuch: no option has this name"),
    ("config x", "config: no option has this name"),
    ("inflight many", "inflight many: it takes a number"),
    ("tls yes", "tls takes no value"), ("kind", "kind takes KIND")])
def test_a_bad_line_is_named_with_file_and_number(tmp_path, line, what):
    path = tmp_path / "conf"
    path.write_text(f"# comment\n\nkind json\n{line}\n")
    done = bridge_says("--config", path, "--check")
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"wspush-mqtt: {path}:4: {what}")


def test_help_names_every_option_and_check_passes_what_is_right():
    done = bridge_says("--help")
    assert done.returncode == 0
    source = (wsp.ROOT / "tools/mqtt/wspush-mqtt.c").read_text()
    manual = (wsp.ROOT / "tools/mqtt/README.md").read_text()
    for name in re.findall(r'^\t\{ "([a-z-]+)", ', source, re.M):
        assert f"  --{name}" in done.stdout.decode(), name
        assert f"`{name}" in manual or f"--{name}" in manual, name
    assert bridge_says("--check", "--config", wsp.ROOT /
                       "tools/mqtt/wspush-mqtt.conf").returncode == 0


# ----- the story ----------------------------------------------------------

class Hub(e2e_network.Namespaces):
    """Three namespaces on one wire, without loss."""

    def __init__(self):
        super().__init__("wsm", "abm", "10.213.78")
        self.going = True
        self.wire = threading.Thread(target=self.run, daemon=True)

    def make(self):
        super().make()
        self.wire.start()

    def run(self):
        while self.going:
            for fd in select.select(self.fds, [], [], 0.1)[0]:
                for frame in self.frames(fd):
                    for other in self.fds:
                        if other != fd:
                            self.give(other, frame)

    def frames(self, fd):
        for _ in range(64):
            try:
                yield os.read(fd, 65536)
            except OSError:
                return

    def give(self, fd, frame):
        try:
            os.write(fd, frame)
        except OSError:
            pass  # TCP sends it again

    def clean(self):
        self.going = False
        if self.wire.ident:
            self.wire.join(1)
        super().clean()


@pytest.fixture
def hub():
    yield from Hub().lent()


def enter(namespace):
    """Moves the thread that calls."""
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    done = e2e_network.libc.setns(fd, e2e_network.CLONE_NEWNET)
    os.close(fd)
    assert done == 0


class Page(threading.Thread):
    """A browser's page in a box's namespace: it connects again and again, and
    keeps what it gets as (topic, number)."""

    def __init__(self, namespace, port, number):
        super().__init__(daemon=True)
        self.namespace, self.port, self.number = namespace, port, number
        self.got, self.connections = [], 0
        self.going, self.error = True, None
        self.open = False
        self.start()

    def run(self):
        try:
            enter(self.namespace)
            while self.going:
                self.session()
        except BaseException as error:
            self.error = error

    def session(self):
        raw = None
        try:
            raw = wsp.Raw(("127.0.0.1", self.port))
            raw.upgrade(f"/services/{MAIN}?X-StatefulSocketId="
                        f"id:{self.number}::room:r")
            self.connections += 1
            raw.socket.settimeout(1)
            self.open = True
            while self.going:
                try:
                    topic, number = raw.read_text().split()
                    self.got.append((topic, int(number)))
                except TimeoutError:
                    pass
        except (OSError, wsp.Gone, wsp.Closed):
            time.sleep(0.05)
        finally:
            self.open = False
            if raw:
                raw.close_socket()


class Publisher(threading.Thread):
    """Publishes the numbers in the broker's namespace, 50 at a time, and
    again what the broker has not acknowledged when it goes."""
    topics = {"all": ALL, "tag": f"push/{MAIN}/tag/room/r"}

    def __init__(self, namespace, address, events):
        super().__init__(daemon=True)
        self.namespace, self.address = namespace, address
        self.events = events
        self.done, self.connections, self.error = 0, 0, None
        self.start()

    def run(self):
        try:
            enter(self.namespace)
            while self.done < MESSAGES:
                self.session()
        except BaseException as error:
            self.error = error

    def session(self):
        mqtt = None
        try:
            mqtt = Mqtt(self.address, "publisher")
            self.connections += 1
            sent = self.done
            while self.done < MESSAGES:
                while sent < min(MESSAGES, self.done + 50):
                    sent += 1
                    topic = ("all", "tag")[sent % 2]
                    mqtt.send(self.topics[topic], f"{topic} {sent}", id=sent)
                assert mqtt.acked.get(timeout=STORY) == self.done + 1
                self.done += 1
                if self.done in self.events:
                    self.events.pop(self.done)()
        except (OSError, AssertionError):
            time.sleep(0.05)
        finally:
            if mqtt:
                mqtt.close()


class Box:
    """wspush, its bridge and three pages in one namespace."""
    OPTIONS = ("--overflow", "refuse", "--queue-messages", 2000,
               "--queue-bytes", 1 << 20, "--store-bytes", 4 << 20,
               "--service", MAIN)

    def __init__(self, directory, namespace, broker, name):
        self.directory = directory / name
        self.directory.mkdir()
        self.inside = ["ip", "netns", "exec", namespace]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.script = self.directory / "wspush-there"
        self.script.write_text(f"#!/bin/sh\nexec {' '.join(self.inside)} "
                               f"{wsp.BINARY} \"$@\"\n")
        self.script.chmod(0o755)
        self.start_server()
        self.bridge = Bridge(broker, "--confirm", 20, "--settle", 4, id=name,
                             inside=self.inside, push=self.server.path)
        self.pages = [Page(namespace, self.port, n) for n in range(3)]
        self.killed = 0

    def start_server(self):
        self.server = wsp.Server("--listen-plain", f"127.0.0.1:{self.port}",
                                 *self.OPTIONS, directory=self.directory,
                                 binary=str(self.script))

    def kill_server(self):
        self.server.kill()
        self.start_server()

    def kill_bridge(self):
        self.bridge.kill()
        self.bridge.start()
        self.killed += 1

    def stop(self):
        for page in self.pages:
            page.going = False
        self.bridge.kill()
        self.server.stop()
        for page in self.pages:
            page.join(wsp.PATIENCE)


def table(boxes):
    """What each page has, as rows of text; and the sum of what is wrong."""
    rows, bad = [], 0
    for box in boxes:
        for page in box.pages:
            distinct = list(dict.fromkeys(page.got))
            missing = MESSAGES - len(set(distinct))
            disorder = 0
            for topic in Publisher.topics:
                numbers = [n for t, n in distinct if t == topic]
                disorder += sum(b < a for a, b in zip(numbers, numbers[1:]))
            rows.append(f"    {box.directory.name} page {page.number + 1} "
                        f"{page.connections:11} {len(page.got):9} "
                        f"{len(page.got) - len(distinct):8} {missing:8} "
                        f"{disorder:13}")
            bad += missing + disorder
    return "\n".join(rows), bad


def test_two_boxes_a_broker_and_everybody_is_killed(hub, tmp_path):
    broker = Broker(tmp_path, address="10.213.78.3",
                    inside=["ip", "netns", "exec", hub.names[2]])
    boxes, publisher = [], None
    restarts = []

    def restart():
        broker.stop()
        broker.start()
        restarts.append(1)

    def when_flowing(what):
        """The publisher goes on when the slowest page is not far behind."""
        def event():
            at = publisher.done
            wsp.until(lambda: min(len(set(p.got)) for b in boxes
                                  for p in b.pages) > at - MESSAGES // 20,
                      f"all to have most of {at}", STORY)
            what()
        return event
    try:
        boxes = [Box(tmp_path, hub.names[i], broker, f"box{i + 1}")
                 for i in range(2)]
        one, two = boxes
        for box in boxes:
            box.bridge.both()
            wsp.until(lambda box=box: all(p.open for p in box.pages),
                      "the pages")
        events = dict(enumerate(
            [one.kill_bridge, restart, two.kill_bridge, two.kill_server,
             restart, one.kill_bridge, two.kill_bridge, restart], 1))
        events = {MESSAGES * k // 9: when_flowing(what)
                  for k, what in events.items()}
        began = time.monotonic()
        publisher = Publisher(hub.names[2], broker.address, events)

        def over():
            threads = [publisher] + [p for b in boxes for p in b.pages]
            for each in threads:
                assert each.error is None, each.error
            return publisher.done == MESSAGES and all(
                len(set(p.got)) == MESSAGES for b in boxes for p in b.pages)
        try:
            wsp.until(over, "every page to have every number", STORY)
        except AssertionError as error:
            assert "in vain" in str(error), error
        spent = time.monotonic() - began
        text, bad = table(boxes)
        print(f"""
    {MESSAGES} publications in {spent:.0f} s; broker restarted {len(restarts)} \
times, bridges killed {one.killed} and {two.killed} times, one wspush once
              connections  received  repeats  missing  out of order
{text}""")
        if bad:
            print(*(b.bridge.log.read_text() for b in boxes), sep="\n")
        assert bad == 0
        assert len(restarts) == 3 and one.killed == two.killed == 2
        assert min(p.connections for p in two.pages) > 1
    finally:
        for box in boxes:
            box.stop()
        broker.process.kill()
        broker.process.wait()
