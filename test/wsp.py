# SPDX-License-Identifier: MIT
"""What the end-to-end tests have in common.

Server   starts and stops `wspush serve` and keeps its log
Push     a sender on the push socket, with an address for replies
Raw      a client on a bare socket: every byte of HTTP and of a frame is ours
Client   Python's websockets behind a blocking face, as a script would use it

Every wait ends: with what was waited for, or with an AssertionError or a
timeout that says what did not come.
"""
import asyncio
import base64
import collections
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from urllib.parse import unquote

import websockets

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.path.abspath(os.environ.get("WSPUSH", ROOT / "build" / "wspush"))
ARTEFACTS = ROOT / "build" / "test"

# The longest that any one thing may take, in seconds; generous, because the
# machine may be slow, busy, or running the server under a sanitizer.
PATIENCE = float(os.environ.get("WSPUSH_PATIENCE", "10"))

TEXT, BINARY_FRAME, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MAIN = "main_ws_service"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455, 1.3
# One line per event: a level, a constant word, and key=value (logfmt).
LOGFMT = re.compile(r"wspush: (ready|(error|warn|info|debug) [a-z-]+)"
                    r"""( [a-z_]+=("([^"\\\x00-\x1f]|\\x[0-9a-f]{2})*"|"""
                    r"""[^" \x00-\x1f]+))*""")
SANITIZER = re.compile(r"Sanitizer|runtime error:|==\d+==")


def until(check, what, patience=None):
    """Polls until check() is true, and returns what it returned."""
    end = time.monotonic() + (patience or PATIENCE)
    while True:
        got = check()
        if got:
            return got
        assert time.monotonic() < end, f"in vain waited for {what}"
        time.sleep(0.01)


def wspush(*args, stdin=b"", env=None, patience=None):
    """Runs a client verb; its output comes back as bytes."""
    return subprocess.run([BINARY, *args], input=stdin, capture_output=True,
                          env=None if env is None else {**os.environ, **env},
                          timeout=2 * (patience or PATIENCE), check=False)


# ----- the push socket ----------------------------------------------------

class Reply:
    """A reply datagram, taken apart strictly."""

    def __init__(self, data):
        self.raw = data
        head, line_end, self.body = data.partition(b"\n")
        assert line_end, f"a reply without a line end: {data!r}"
        self.head = head.decode()
        words = self.head.split(" ")
        self.values = {}
        self.code = None
        if words[0] == "ok":
            self.count = int(words[1])
            for word in words[2:]:
                name, sign, value = word.partition("=")
                assert sign and name not in self.values, self.head
                self.values[name] = value
        else:
            assert words[0] == "error", self.head
            assert not self.body, f"an error with a body: {data!r}"
            self.count = None
            self.code = words[1]
            assert re.fullmatch("[a-z0-9-]+", self.code), self.head
            words = words[2:]
            if words and words[0].startswith("ref="):
                self.values["ref"] = words.pop(0)[4:]
            self.sentence = " ".join(words)
            assert len(self.sentence) > 9, f"not a sentence: {self.head}"

    def number(self, name):
        return int(self.values.get(name, 0))

    @property
    def ref(self):
        return self.values.get("ref")

    def __repr__(self):
        return f"<{self.head}>"


def datagram(header, body=None):
    header = header.encode() if isinstance(header, str) else header
    body = body.encode() if isinstance(body, str) else body
    return header if body is None else header + b"\n" + body


class Push:
    """A sender: bound by the kernel ('auto'), to a path, or not at all."""

    def __init__(self, path, bind="auto"):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.socket.settimeout(PATIENCE)
        if bind:
            self.socket.bind("" if bind == "auto" else bind)

    def send(self, header, body=None):
        self.socket.sendto(datagram(header, body), self.path)

    def receive(self, patience=None):
        self.socket.settimeout(patience or PATIENCE)
        return Reply(self.socket.recv(1 << 18))

    def silent(self):
        """True when no reply waits."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(1 << 18)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def __call__(self, header, body=None):
        self.send(header, body)
        return self.receive()

    def ok(self, header, body=None):
        reply = self(header, body)
        assert reply.code is None, f"{header!r} was refused: {reply}"
        return reply

    def refused(self, code, header, body=None):
        reply = self(header, body)
        assert reply.code == code, f"{header!r}: {reply}, not {code}"
        return reply

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ----- HTTP and frames ----------------------------------------------------

class Gone(Exception):
    """The connection ended where something was expected."""


class Closed(Exception):
    """A Close frame came where a message was expected."""

    def __init__(self, payload):
        self.code = struct.unpack("!H", payload[:2])[0] if payload else None
        self.reason = payload[2:].decode()
        super().__init__(f"Close {self.code} {self.reason!r}")


Frame = collections.namedtuple("Frame", "fin rsv opcode payload")


def frame(opcode, payload=b"", fin=1, rsv=0, mask=b"\x37\xfa\x21\x3d",
          length=None, form=None):
    """A client's frame.  `mask` None leaves it unmasked; `length` declares
    another length than the payload's; `form` 7, 16 or 64 chooses how many
    bits the length takes."""
    if isinstance(payload, str):
        payload = payload.encode()
    n = len(payload) if length is None else length
    bit = 0x80 if mask is not None else 0
    if form is None:
        form = 7 if n < 126 else 16 if n < 65536 else 64
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if form == 7:
        head += bytes([bit | n])
    elif form == 16:
        head += struct.pack("!BH", bit | 126, n)
    else:
        head += struct.pack("!BQ", bit | 127, n)
    if mask is None:
        return head + payload
    pad = mask * (len(payload) // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(
        pad[:len(payload)], "big")
    return head + mask + number.to_bytes(len(payload), "big")


def close_payload(code=None, reason=""):
    if code is None:
        return b""
    if isinstance(reason, str):
        reason = reason.encode()
    return struct.pack("!H", code) + reason


def accept_of(key):
    guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1((key + guid).encode()).digest(
        )).decode()


def request(target, method="GET", version="HTTP/1.1", upgrade=True,
            headers=None, host="localhost"):
    """An HTTP request.  `headers` adds and replaces; a value None takes a
    line away, a list gives one line each."""
    lines = {"Host": host}
    if upgrade:
        lines.update({"Upgrade": "websocket", "Connection": "Upgrade",
                      "Sec-WebSocket-Key": KEY,
                      "Sec-WebSocket-Version": "13"})
    lines.update(headers or {})
    out = [f"{method} {target} {version}"]
    for name, value in lines.items():
        if value is None:
            continue
        for each in value if isinstance(value, list) else [value]:
            out.append(f"{name}: {each}")
    return ("\r\n".join(out) + "\r\n\r\n").encode("utf-8")


class Response:
    def __init__(self, head):
        lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) [ -~]+", lines[0])
        assert match, f"not a status line: {lines[0]!r}"
        self.status = int(match[1])
        self.fields = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            assert colon and re.fullmatch(r"[A-Za-z0-9-]+", name), repr(line)
            self.fields.append((name.lower(), value.strip()))
        self.body = b""

    def all(self, name):
        return [v for n, v in self.fields if n == name.lower()]

    def get(self, name):
        values = self.all(name)
        assert len(values) < 2, f"{name} comes twice"
        return values[0] if values else None

    def tokens(self, name):
        return [t.strip().lower() for v in self.all(name)
                for t in v.split(",")]


def tls_context(strict=False):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if strict:  # an end without close_notify is told from one with it
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 1 << 7)
    return context


TLS, STRICT_TLS = tls_context(), tls_context(strict=True)


class Raw:
    """A client on a bare socket."""

    def __init__(self, address, tls=False, receive_buffer=None,
                 context=STRICT_TLS, session=None, source=None):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF,
                                   receive_buffer)
        self.socket.settimeout(PATIENCE)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = context.wrap_socket(
                self.socket, suppress_ragged_eofs=False, session=session)
        self.tls = tls
        self.buffer = bytearray()
        self.ended = None  # "end" or "reset", once no more will come

    # bytes

    def send(self, data, piece=None):
        """Sends all of it, `piece` bytes at a time when that is given."""
        try:
            for at in range(0, len(data), piece or max(1, len(data))):
                self.socket.sendall(data[at:at + piece] if piece else data)
        except (ConnectionError, ssl.SSLError):
            pass  # what the server said before is still to be read
        return self

    def more(self):
        """Reads once; False when the stream has ended."""
        if self.ended:
            return False
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            self.ended = "reset"
            return False
        except ssl.SSLError as error:
            if "EOF" not in str(error.reason):
                raise
            self.ended = "reset"
            return False
        if not data:
            self.ended = "end"
        self.buffer += data
        return bool(data)

    def take(self, n):
        while len(self.buffer) < n:
            if not self.more():
                raise Gone(f"{self.ended} after {bytes(self.buffer)!r}")
        data = bytes(self.buffer[:n])
        del self.buffer[:n]
        return data

    def rest(self):
        """Everything until the server ends the connection."""
        while self.more():
            pass
        data = bytes(self.buffer)
        self.buffer.clear()
        return data

    def ends(self):
        """Asserts that the server ends the connection and sends no more."""
        rest = self.rest()
        assert not rest, f"more came before the end: {rest!r}"
        return self.ended

    def reset(self):
        """Ends with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                               struct.pack("ii", 1, 0))
        self.socket.close()

    def close_socket(self):
        self.socket.close()

    # HTTP

    def response(self, body=True):
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                raise Gone(f"{self.ended} after {bytes(self.buffer)!r}")
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.buffer[:] = rest
        answer = Response(head)
        if answer.status != 101:
            answer.body = self.rest()
        return answer

    def upgrade(self, target, status=101, **options):
        self.send(request(target, **options))
        answer = self.response()
        assert answer.status == status, (answer.status, answer.body)
        if status == 101:
            key = (options.get("headers") or {}).get("Sec-WebSocket-Key", KEY)
            assert answer.get("Sec-WebSocket-Accept") == accept_of(key)
        return answer

    # frames

    def frame(self, opcode, payload=b"", **options):
        return self.send(frame(opcode, payload, **options))

    def text(self, payload, **options):
        return self.frame(TEXT, payload, **options)

    def next_frame(self):
        """The server's next frame, whatever it is."""
        first, second = self.take(2)
        n = second & 127
        assert not second & 128, "the server masked a frame"
        if n == 126:
            n = struct.unpack("!H", self.take(2))[0]
            assert n > 125, "a length not in its shortest form"
        elif n == 127:
            n = struct.unpack("!Q", self.take(8))[0]
            assert n > 65535, "a length not in its shortest form"
        got = Frame(first >> 7, first >> 4 & 7, first & 15, self.take(n))
        assert got.rsv == 0, "the server set an RSV bit"
        if got.opcode >= 8:
            assert got.fin and n <= 125, "a bad control frame"
        return got

    def message(self):
        """The next message as (opcode, payload); Pings are answered, Pongs
        passed over, a Close is raised."""
        while True:
            got = self.next_frame()
            if got.opcode == PING:
                self.frame(PONG, got.payload)
            elif got.opcode == CLOSE:
                raise Closed(got.payload)
            elif got.opcode != PONG:
                assert got.fin and got.opcode in (TEXT, BINARY_FRAME), got
                return got.opcode, got.payload

    def read_text(self):
        opcode, payload = self.message()
        assert opcode == TEXT, opcode
        return payload.decode()

    def before(self, last):
        """The messages that come before the text `last`."""
        seen = []
        while True:
            opcode, payload = self.message()
            if opcode == TEXT and payload == last.encode():
                return seen
            seen.append(payload.decode() if opcode == TEXT else payload)

    def closed(self):
        """The (code, reason) of the server's Close, which must be next."""
        try:
            got = self.message()
        except Closed as close:
            return close.code, close.reason
        raise AssertionError(f"a message instead of a Close: {got}")

    def say_close(self, code=1000, reason=""):
        """Closes from this side, and asserts the whole exchange."""
        self.frame(CLOSE, close_payload(code, reason))
        assert self.closed() == (code, reason)
        self.ends()

    def heartbeat(self):
        """A round trip: everything sent before has been looked at."""
        self.text("$hbt")
        assert self.read_text() == "$ok"

    @property
    def name(self):
        """This end's address as `list` shows it."""
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ----- Python's websockets ------------------------------------------------

class Loop:
    """One event loop in a thread, for all blocking faces."""
    thread = None

    @classmethod
    def run(cls, coroutine, patience=None):
        if cls.thread is None:
            cls.loop = asyncio.new_event_loop()
            cls.thread = threading.Thread(target=cls.loop.run_forever,
                                          daemon=True)
            cls.thread.start()

        async def bounded():
            return await asyncio.wait_for(coroutine, patience or PATIENCE)
        return asyncio.run_coroutine_threadsafe(bounded(), cls.loop).result()


class Client:
    """Python's websockets with its own defaults, compression offer
    included; only its keepalive is off."""

    def __init__(self, url, **options):
        options.setdefault("ping_interval", None)
        if url.startswith("wss:"):
            options["ssl"] = TLS

        async def connect():
            return await websockets.connect(url, **options)
        self.ws = Loop.run(connect())

    def send(self, message):
        Loop.run(self.ws.send(message))

    def receive(self):
        return Loop.run(self.ws.recv())

    def before(self, last):
        """The messages that come before `last`."""
        return list(iter(self.receive, last))

    def close(self, code=1000, reason=""):
        Loop.run(self.ws.close(code, reason))

    def wait_closed(self):
        Loop.run(self.ws.wait_closed())
        return self.ws.close_code, self.ws.close_reason

    def close_socket(self):
        Loop.loop.call_soon_threadsafe(self.ws.transport.abort)


# ----- the server ---------------------------------------------------------

def address_of(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class Server:
    """A running `wspush serve`."""
    running = []
    fences = itertools.count()
    may_be_refused = False  # a call that the sandbox does not list

    def __init__(self, *options, directory=None, listen=True, env=None,
                 binary=BINARY):
        self.keep = directory is not None
        self.dir = pathlib.Path(directory or tempfile.mkdtemp(prefix="wsp"))
        self.path = str(self.dir / "push.sock")
        self.opened = []
        command = [binary, "serve"]
        if listen:
            command += ["--listen-plain", "127.0.0.1:0",
                        "--listen", "127.0.0.1:0"]
        if listen or listen is None:
            command += ["--push", self.path, "--state", str(self.dir)]
        command += os.environ.get("WSPUSH_OPTIONS", "").split()
        command += map(str, options)
        self.log = []
        self.news = threading.Condition()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=None if env is None else {**os.environ, **env})
        self.pid = self.process.pid
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        Server.running.append(self)
        self.sender = None
        try:
            self.read_ready()
        except BaseException:
            self.kill()
            raise

    def read_log(self):
        for line in self.process.stderr:
            with self.news:
                self.log.append(line.decode("utf-8", "replace").rstrip("\n"))
                self.news.notify_all()
        with self.news:
            self.log.append(None)  # the end of the log
            self.news.notify_all()

    def wait_log(self, pattern, after=0, patience=None):
        """The first log line from `after` on that the pattern finds."""
        end = time.monotonic() + (patience or PATIENCE)
        at = after
        with self.news:
            while True:
                while at < len(self.log):
                    line = self.log[at]
                    assert line is not None, (
                        f"the log ended without {pattern!r}: {self.tail()}")
                    if re.search(pattern, line):
                        return line
                    at += 1
                left = end - time.monotonic()
                assert left > 0, f"no {pattern!r} in the log: {self.tail()}"
                self.news.wait(left)

    def tail(self):
        return "\n".join(line for line in self.log[-40:] if line is not None)

    def read_ready(self):
        line = self.wait_log(r"^wspush: ready ", patience=3 * PATIENCE)
        match = re.fullmatch(r"wspush: ready((?: wss=\S+)*)((?: ws=\S+)*)"
                             r"(?: metrics=(\S+))? push=(\S+)", line)
        assert match, f"not the promised ready line: {line!r}"
        self.wss = [address_of(word[4:]) for word in match[1].split()]
        self.ws = [address_of(word[3:]) for word in match[2].split()]
        self.metrics = match[3] and address_of(match[3])
        self.path = match[4]
        self.sender = Push(self.path)

    # ways in

    def address(self, tls=False):
        return (self.wss if tls else self.ws)[0]

    def url(self, tls=False, service=MAIN, id=None):
        host, port = self.address(tls)
        query = "" if id is None else f"?X-StatefulSocketId={id}"
        return f"ws{'s' * tls}://{host}:{port}/services/{service}{query}"

    def raw(self, tls=False, **options):
        """A connection that has said nothing yet."""
        raw = Raw(self.address(tls), tls, **options)
        self.opened.append(raw)
        return raw

    def ask(self, data, tls=False, piece=None):
        """The answer to one HTTP request."""
        raw = self.raw(tls)
        raw.send(data, piece)
        try:
            return raw.response()
        finally:
            if raw.ended:
                raw.close_socket()

    def open(self, id=None, service=MAIN, tls=False, query=None, headers=None,
             **options):
        """A bare client after its 101."""
        raw = self.raw(tls, **options)
        if query is None:
            query = "" if id is None else f"?X-StatefulSocketId={id}"
        raw.answer = raw.upgrade(f"/services/{service}{query}",
                                 headers=headers)
        return raw

    def client(self, id=None, service=MAIN, tls=False, **options):
        """Python's websockets, connected."""
        client = Client(self.url(tls, service, id), **options)
        self.opened.append(client)
        return client

    # the push socket

    def push(self, header, body=None):
        return self.sender(header, body)

    def ok(self, header, body=None):
        return self.sender.ok(header, body)

    def refused(self, code, header, body=None):
        return self.sender.refused(code, header, body)

    def rows(self, target=""):
        """`list` as JSON, all of it."""
        rows, cursor = [], ""
        while True:
            reply = self.ok(f"list format=json{cursor} {target}".rstrip())
            rows += json.loads(reply.body)
            if "next" not in reply.values:
                return rows
            cursor = " from=" + reply.values["next"]

    def row(self, socket_id):
        rows = [r for r in self.rows() if r["socketId"] == socket_id]
        assert len(rows) < 2, rows
        return rows[0] if rows else None

    def ids(self, target=""):
        return {row["socketId"] for row in self.rows(target)}

    def stats(self):
        return json.loads(self.ok("stats format=json").body)

    def wait_state(self, socket_id, state):
        """Waits until the socket is open, away, or (None) forgotten."""
        def check():
            row = self.row(socket_id)
            return (row and row["state"]) == state
        until(check, f"{socket_id} to be {state or 'forgotten'}")

    def away(self, id, service=MAIN):
        """Makes a stateful socket that is away; returns its socketId."""
        raw = self.open(id, service)
        raw.frame(CLOSE, close_payload(1000))
        raw.rest()
        raw.close_socket()
        socket_id = f"/services/{service}-s-{unquote(id)}"
        self.wait_state(socket_id, "away")
        return socket_id

    def fence(self, *clients):
        """What each client got until now.  A text to all closes the list:
        order on a socket is order of arrival, so no time need pass."""
        last = f"fence {next(self.fences)}"
        self.ok("send *", last)
        return [client.before(last) for client in clients]

    def pause(self):
        """Stops the process, so that what is sent meanwhile meets it in one
        turn.  To be used in `with`."""
        return Pause(self.pid)

    # the end

    def tidy(self):
        """Between two tests: no client, no socket, no complaint."""
        for each in self.opened:
            each.close_socket()
        self.opened.clear()
        assert self.process.poll() is None, (
            f"the server ended with {self.process.returncode}: {self.tail()}")
        while not self.sender.silent():
            pass

        def empty():
            self.ok("close *")
            return not self.rows()
        until(empty, "an empty table")
        self.check_log()

    def check_log(self):
        text = "\n".join(line for line in self.log if line is not None)
        assert not SANITIZER.search(text), text
        assert self.may_be_refused or "warn sandbox call=" not in text, text
        for line in text.split("\n"):
            assert not line.startswith("wspush: ") or LOGFMT.fullmatch(
                line), f"not logfmt: {line!r}"

    def kick(self, number):
        self.process.send_signal(number)

    def wait_exit(self, patience=None):
        code = self.process.wait(patience or PATIENCE)
        self.reader.join(PATIENCE)
        return code

    def stop(self, number=signal.SIGTERM):
        """Ends it as an init script does, and asserts that it ends well:
        exit 0, within the promised 3 s (and two for a busy machine)."""
        for each in self.opened:
            each.close_socket()
        if self.process.poll() is None:
            self.kick(number)
        try:
            code = self.wait_exit(5)
        finally:
            self.kill()
        assert code == 0, f"exit {code}: {self.tail()}"
        self.check_log()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join(1)
        self.process.stderr.close()
        if self.sender:
            self.sender.close()
        if self in Server.running:
            Server.running.remove(self)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.kill()
        else:
            self.stop()


class Pause:
    def __init__(self, pid):
        self.pid = pid

    def state(self):
        stat = pathlib.Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: self.state() == "T", "the server to stand still")

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGCONT)


def fails(*options, patience=None):
    """Runs `wspush serve` where it must not come up: (status, lines)."""
    done = subprocess.run([BINARY, "serve", *map(str, options)],
                          stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=patience or PATIENCE, check=False)
    text = done.stderr.decode()
    assert not SANITIZER.search(text), text
    assert "wspush: ready" not in text
    return done.returncode, text.splitlines()


def make_certificate(directory, name="test", kind="ec", days=30, form="PEM"):
    """A self-signed certificate and its key, made by openssl."""
    key = pathlib.Path(directory) / f"{name}.key"
    cert = pathlib.Path(directory) / f"{name}.crt"
    how = (["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
           if kind == "ec" else ["-newkey", "rsa:2048"])
    subprocess.run(["openssl", "req", "-x509", *how, "-nodes", "-keyout", key,
                    "-out", cert, "-days", str(days), "-subj", f"/CN={name}",
                    "-addext", "subjectAltName=DNS:localhost"],
                   check=True, capture_output=True, timeout=60)
    if form == "DER":
        for path, verb in ((cert, "x509"), (key, "pkey")):
            done = subprocess.run(["openssl", verb, "-in", path, "-outform",
                                   "DER"], check=True, capture_output=True,
                                  timeout=60)
            path.write_bytes(done.stdout)
    return cert, key


def peer_certificate(address):
    """The certificate, in DER, that the server shows now."""
    raw = Raw(address, tls=True)
    try:
        return raw.socket.getpeercert(binary_form=True)
    finally:
        raw.close_socket()
