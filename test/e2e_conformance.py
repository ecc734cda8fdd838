# SPDX-License-Identifier: MIT
"""RFC 6455 to the letter, against an echo service.

The groups and their numbers are those of the Autobahn test suite, so that the
table at the end can be laid beside its report; the cases are our own.  Each
case is bytes for the server, the frames that must come back, and how it ends;
each goes over ws and over wss, whole and in the smallest pieces.
"""
import collections
import random
import select
import ssl

import pytest

import wsp
from wsp import BINARY_FRAME, CLOSE, PING, PONG, TEXT, close_payload
from wsp import frame

MOST = 1 << 20
SERVER = ["--service", "echo=echo", "--max-inbound", MOST,
          "--send-buffer", 262144]
BY_BYTE = 700  # a longer case goes in larger pieces
CONTINUATION = 0
GOOD = "good"  # how a case ends: the client closes, and all is well

Case = collections.namedtuple("Case", "group name data expected end")
CASES = []
GROUPS = {
    1: "framing", 2: "pings and pongs", 3: "reserved bits", 4: "opcodes",
    5: "fragmentation", 6: "UTF-8", 7: "close", 9: "sizes and limits",
    10: "many and odd frames"}
OVER = ("ws", "wss")
results = collections.Counter()


def case(group, name, data, expected=(), end=GOOD):
    """`end` is GOOD, the code of the Close that the server must send, or
    the payload of it."""
    CASES.append(Case(group, name, data, list(expected), end))


def noise(n, seed=0):
    return random.Random(n + seed).randbytes(n)


def prose(n):
    text = "Ж\u20ac\U0001f680x" * (n // 10 + 1)
    data = text.encode()[:n]
    return data.decode(errors="ignore").ljust(1, "x").encode().ljust(
        n, b"x")[:n]


# ----- 1: framing ---------------------------------------------------------

SIZES = [0, 1, 124, 125, 126, 127, 128, 255, 256, 65534, 65535, 65536, 65537]

for n in SIZES:
    case(1, f"text of {n}", frame(TEXT, prose(n)), [(TEXT, prose(n))])
    case(1, f"binary of {n}", frame(BINARY_FRAME, noise(n)),
         [(BINARY_FRAME, noise(n))])
for n in (0, 1, 125):
    case(1, f"{n} in 16 bits", frame(TEXT, b"x" * n, form=16), end=1002)
for n in (0, 125, 126, 65535):
    case(1, f"{n} in 64 bits", frame(BINARY_FRAME, b"x" * n, form=64),
         end=1002)
for n in (1 << 63, (1 << 63) + 5, (1 << 64) - 1):
    case(1, f"length {n:#x}", frame(BINARY_FRAME, b"", length=n), end=1002)
    case(1, f"length {n:#x}, first byte", frame(BINARY_FRAME, b"",
                                                length=n)[:3], end=1002)
case(1, "no mask", frame(TEXT, "x", mask=None), end=1002)
case(1, "no mask, header alone", frame(TEXT, "x", mask=None)[:2], end=1002)
for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\x01"):
    data = b"".join(frame(BINARY_FRAME, noise(n), mask=mask)
                    for n in range(20))
    case(1, f"mask {mask.hex()}", data,
         [(BINARY_FRAME, noise(n)) for n in range(20)])

# ----- 2: pings and pongs -------------------------------------------------

for n in (0, 1, 2, 16, 124, 125):
    case(2, f"ping of {n}", frame(PING, noise(n)), [(PONG, noise(n))])
for n in (126, 127, 65535, 65536):
    for op, word in ((PING, "ping"), (PONG, "pong")):
        case(2, f"{word} of {n}", frame(op, b"x" * n), end=1002)
case(2, "pong unasked", frame(PONG, "hello") + frame(PING, "1"),
     [(PONG, b"1")])
case(2, "pong unasked, empty", frame(PONG) + frame(PING), [(PONG, b"")])
case(2, "pong like ours", frame(PONG, b"\0" * 16) + frame(TEXT, "x"),
     [(TEXT, b"x")])
case(2, "pong like ours, far ahead", frame(PONG, b"\xff" * 16)
     + frame(TEXT, "x"), [(TEXT, b"x")])
case(2, "ten pings at once", b"".join(frame(PING, b"%d" % i)
                                      for i in range(10)),
     [(PONG, b"%d" % i) for i in range(10)])
case(2, "pings of every size", b"".join(frame(PING, noise(i))
                                        for i in range(126)),
     [(PONG, noise(i)) for i in range(126)])

# ----- 3: reserved bits ---------------------------------------------------

for rsv in range(1, 8):
    for op, word in ((TEXT, "text"), (BINARY_FRAME, "binary"),
                     (PING, "ping"), (PONG, "pong"), (CLOSE, "close")):
        body = close_payload(1000) if op == CLOSE else b"x"
        case(3, f"RSV {rsv} on {word}", frame(op, body, rsv=rsv), end=1002)
    case(3, f"RSV {rsv} after a good text", frame(TEXT, "good")
         + frame(TEXT, "bad", rsv=rsv) + frame(PING),
         [(TEXT, b"good")], 1002)
    case(3, f"RSV {rsv} on a continuation", frame(TEXT, "a", fin=0)
         + frame(CONTINUATION, "b", rsv=rsv), end=1002)
    case(3, f"RSV {rsv}, first byte alone",
         frame(TEXT, "x", rsv=rsv)[:1], end=1002)

# ----- 4: opcodes ---------------------------------------------------------

for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    case(4, f"opcode {op}", frame(op), end=1002)
    case(4, f"opcode {op} with a payload", frame(op, "x"), end=1002)
    case(4, f"opcode {op} after a good text", frame(TEXT, "good")
         + frame(op, "x") + frame(PING), [(TEXT, b"good")], 1002)
    case(4, f"opcode {op} inside a message", frame(TEXT, "a", fin=0)
         + frame(op, "x"), end=1002)
    case(4, f"opcode {op} not final", frame(op, "x", fin=0), end=1002)

# ----- 5: fragmentation ---------------------------------------------------


def parts(opcode, *payloads, between=b""):
    """A message in fragments, something between each two."""
    last = len(payloads) - 1
    return between.join(
        frame(CONTINUATION if i else opcode, payload, fin=int(i == last))
        for i, payload in enumerate(payloads))


for op, word in ((TEXT, "text"), (BINARY_FRAME, "binary")):
    for count in (2, 3, 20):
        pieces = [b"part%d" % i for i in range(count)]
        case(5, f"{word} in {count}", parts(op, *pieces),
             [(op, b"".join(pieces))])
        case(5, f"{word} in {count}, pings between",
             parts(op, *pieces, between=frame(PING, "p")),
             [(PONG, b"p")] * (count - 1) + [(op, b"".join(pieces))])
    case(5, f"{word} of empty fragments", parts(op, b"", b"", b""),
         [(op, b"")])
    case(5, f"{word} begun empty", parts(op, b"", b"x"), [(op, b"x")])
    case(5, f"{word} ended empty", parts(op, b"x", b""), [(op, b"x")])
    case(5, f"{word}, empty ones between", parts(op, b"a", b"", b"", b"b"),
         [(op, b"ab")])
    case(5, f"{word}, pong and ping between", parts(
        op, b"a", b"b", between=frame(PONG, "q") + frame(PING, "p")),
        [(PONG, b"p"), (op, b"ab")])
    for second, other in ((TEXT, "text"), (BINARY_FRAME, "binary")):
        for fin in (0, 1):
            case(5, f"{other} inside {word}, fin {fin}",
                 frame(op, "a", fin=0) + frame(second, "b", fin=fin),
                 end=1002)
for op, word in ((PING, "ping"), (PONG, "pong"), (CLOSE, "close")):
    case(5, f"{word} not final", frame(op, b"", fin=0), end=1002)
    case(5, f"{word} in two", frame(op, b"\x03", fin=0)
         + frame(CONTINUATION, b"\xe8"), end=1002)
    case(5, f"{word} not final between fragments", frame(TEXT, "a", fin=0)
         + frame(op, b"", fin=0), end=1002)
for fin in (0, 1):
    case(5, f"continuation of nothing, fin {fin}",
         frame(CONTINUATION, "x", fin=fin), end=1002)
    case(5, f"continuation of nothing, empty, fin {fin}",
         frame(CONTINUATION, "", fin=fin), end=1002)
    case(5, f"continuation after a whole message, fin {fin}",
         frame(TEXT, "a") + frame(CONTINUATION, "x", fin=fin),
         [(TEXT, b"a")], 1002)
    case(5, f"continuation after an ended message, fin {fin}",
         parts(TEXT, b"a", b"b") + frame(CONTINUATION, "x", fin=fin),
         [(TEXT, b"ab")], 1002)
    case(5, f"continuation of a ping, fin {fin}",
         frame(PING, "a") + frame(CONTINUATION, "x", fin=fin),
         [(PONG, b"a")], 1002)
case(5, "two messages in fragments", parts(TEXT, b"a", b"b")
     + parts(BINARY_FRAME, b"\xff", b"\xfe"),
     [(TEXT, b"ab"), (BINARY_FRAME, b"\xff\xfe")])
case(5, "close between fragments", frame(TEXT, "a", fin=0)
     + frame(CLOSE, close_payload(1000, "enough")), [],
     close_payload(1000, "enough"))

# ----- 6: UTF-8 -----------------------------------------------------------

EDGES = [0, 1, 0x7f, 0x80, 0x7ff, 0x800, 0xfff, 0x1000, 0xcfff, 0xd000,
         0xd7ff, 0xe000, 0xfeff, 0xfffd, 0xfffe, 0xffff, 0x10000, 0x1ffff,
         0x3ffff, 0x40000, 0xfffff, 0x100000, 0x10fffe, 0x10ffff]
VALID = {f"U+{point:04X}": chr(point).encode() for point in EDGES}
VALID.update({
    "Greek": "κόσμε".encode(), "Russian": "Привет".encode(),
    "rocket": "\U0001f680".encode(), "a family":
    "\U0001f468\u200d\U0001f469\u200d\U0001f467".encode(),
    "all edges": "".join(map(chr, EDGES)).encode(),
    "all of ASCII": bytes(range(128)),
    "two bytes, all": "".join(map(chr, range(0x80, 0x800))).encode()})

IMPOSSIBLE = {
    **{f"lone {byte:02x}": bytes([byte]) for byte in (
        0x80, 0x81, 0xbf, 0xc0, 0xc1, 0xf5, 0xf6, 0xf7, 0xf8, 0xfb, 0xfc,
        0xfd, 0xfe, 0xff)},
    "fe and ff": b"\xfe\xfe\xff\xff",
    "continuation after a character": "ж".encode() + b"\x80",
    "all continuations": bytes(range(0x80, 0xc0)),
    "overlong / in 2": b"\xc0\xaf", "overlong NUL in 2": b"\xc0\x80",
    "overlong U+7F": b"\xc1\xbf",
    "overlong / in 3": b"\xe0\x80\xaf", "overlong U+7FF": b"\xe0\x9f\xbf",
    "overlong / in 4": b"\xf0\x80\x80\xaf",
    "overlong U+FFFF": b"\xf0\x8f\xbf\xbf",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    **{f"surrogate {word}": data for word, data in {
        "D800": b"\xed\xa0\x80", "DB7F": b"\xed\xad\xbf",
        "DBFF": b"\xed\xaf\xbf", "DC00": b"\xed\xb0\x80",
        "DFFF": b"\xed\xbf\xbf",
        "pair": b"\xed\xa0\x80\xed\xb0\x80"}.items()},
    "U+110000": b"\xf4\x90\x80\x80", "U+13FFFF": b"\xf4\xbf\xbf\xbf",
    "U+1FFFFF": b"\xf7\xbf\xbf\xbf",
    "2 cut by ASCII": b"\xc3(", "3 cut after 1": b"\xe2(\xa1",
    "3 cut after 2": b"\xe2\x82(", "4 cut after 1": b"\xf0(\x8c\xbc",
    "4 cut after 2": b"\xf0\x90(\xbc", "4 cut after 3": b"\xf0\x90\x8c(",
    "a lead after a lead": b"\xe2\xe2\x82\xac",
    "a lead after a half": b"\xf0\x9f\xf0\x9f\x9a\x80",
    "good, then a surrogate": "κόσμε".encode() + b"\xed\xa0\x80edited",
    "good, then U+110000": "κόσμε".encode() + b"\xf4\x90\x80\x80edited",
    "late in a long text": b"x" * 300 + b"\xff" + b"x" * 10,
    "behind eight ASCII": b"12345678\xc0\xaf",
}
UNFINISHED = {
    "C3": b"\xc3", "E2": b"\xe2", "E2 82": b"\xe2\x82", "F0": b"\xf0",
    "F0 9F": b"\xf0\x9f", "F0 9F 9A": b"\xf0\x9f\x9a",
    "ED 9F": b"\xed\x9f", "F4 8F BF": b"\xf4\x8f\xbf",
    "good, then C3": b"good\xc3"}


def possible(data):
    """Can bytes be added so that it is a text?"""
    for more in (b"", b"\x80", b"\x80\x80", b"\x90\x80\x80", b"\xa0\x80",
                 b"\x80\x80\x80"):
        try:
            (data + more).decode()
            return True
        except UnicodeDecodeError:
            pass
    return False


def first_impossible(data):
    """Where the byte stands that no text can have there."""
    return next(end for end in range(len(data))
                if not possible(data[:end + 1]))


def one_each(data, fin):
    """Every byte in a fragment of its own."""
    return b"".join(
        frame(CONTINUATION if i else TEXT, data[i:i + 1],
              fin=int(fin and i + 1 == len(data))) for i in range(len(data)))


for name, data in VALID.items():
    case(6, f"{name}", frame(TEXT, data), [(TEXT, data)])
    if len(data) < 200:
        case(6, f"{name}, a fragment a byte", one_each(data, True),
             [(TEXT, data)])
    case(6, f"{name}, in two", parts(TEXT, data[:len(data) // 2],
                                     data[len(data) // 2:]), [(TEXT, data)])
for name, data in IMPOSSIBLE.items():
    at = first_impossible(data)
    case(6, f"{name}", frame(TEXT, data), end=1007)
    case(6, f"{name}, in a binary", frame(BINARY_FRAME, data),
         [(BINARY_FRAME, data)])
    # Fail fast: what would make the frame, or the message, whole never comes.
    case(6, f"{name}, frame unfinished",
         frame(TEXT, data[:at + 1], length=len(data) + 9), end=1007)
    case(6, f"{name}, message unfinished",
         frame(TEXT, data[:at + 1], fin=0), end=1007)
    # And not too fast: what comes before may yet become good.
    case(6, f"{name}, a fragment a byte",
         (one_each(data[:at], False) if at else frame(TEXT, b"", fin=0))
         + frame(PING, "so far") + frame(CONTINUATION, data[at:at + 1], fin=0),
         [(PONG, b"so far")], 1007)
for name, data in UNFINISHED.items():
    case(6, f"ends with {name}", frame(TEXT, data), end=1007)
    case(6, f"ends with {name}, then an empty fragment",
         frame(TEXT, data, fin=0) + frame(PING, "so far")
         + frame(CONTINUATION), [(PONG, b"so far")], 1007)
    case(6, f"ends with {name}, the next text begins",
         frame(TEXT, data) + frame(TEXT, "x"), end=1007)
case(6, "a cut text, then a good one", frame(BINARY_FRAME, b"\xc3")
     + frame(TEXT, b"x"), [(BINARY_FRAME, b"\xc3"), (TEXT, b"x")])
case(6, "a ping may hold anything", frame(PING, b"\xff\xc0"),
     [(PONG, b"\xff\xc0")])
case(6, "a ping inside a character", frame(TEXT, b"\xe2\x82", fin=0)
     + frame(PING, b"\xff") + frame(CONTINUATION, b"\xac"),
     [(PONG, b"\xff"), (TEXT, b"\xe2\x82\xac")])

# ----- 7: close -----------------------------------------------------------

GOOD_CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3001, 3999, 4000,
              4001, 4998, 4999]
BAD_CODES = [0, 1, 2, 125, 256, 998, 999, 1004, 1005, 1006, 1015, 1016, 1017,
             1100, 1999, 2000, 2998, 2999, 5000, 5001, 10000, 32768, 65534,
             65535]
for code in GOOD_CODES:
    case(7, f"code {code}", frame(CLOSE, close_payload(code)), [],
         close_payload(code))
    case(7, f"code {code} with a reason",
         frame(CLOSE, close_payload(code, "Пока")), [],
         close_payload(code, "Пока"))
for code in BAD_CODES:
    case(7, f"code {code}", frame(CLOSE, close_payload(code)), end=1002)
    case(7, f"code {code} with a reason",
         frame(CLOSE, close_payload(code, "x")), end=1002)
case(7, "no body", frame(CLOSE), [], b"")
for byte in (b"\0", b"\x03", b"\xff"):
    case(7, f"a body of {byte!r}", frame(CLOSE, byte), end=1002)
case(7, "a reason of 123", frame(CLOSE, close_payload(1000, "r" * 123)), [],
     close_payload(1000, "r" * 123))
case(7, "a reason of 124", frame(CLOSE, close_payload(1000, "r" * 124)),
     end=1002)
for name, data in IMPOSSIBLE.items():
    if len(data) < 120:
        case(7, f"reason: {name}", frame(CLOSE, close_payload(1000, data)),
             end=1007)
for name, data in UNFINISHED.items():
    case(7, f"reason ends with {name}",
         frame(CLOSE, close_payload(1000, data)), end=1007)
case(7, "a bad code is told before a bad reason",
     frame(CLOSE, close_payload(999, b"\xff")), end=1002)
for name, more in {
        "a text": frame(TEXT, "late"), "a ping": frame(PING, "late"),
        "a close": frame(CLOSE, close_payload(1001)),
        "rubbish": b"\xff" * 300, "half a frame": frame(TEXT, "x" * 99)[:50],
        "a flood": frame(TEXT, "x" * 1000) * 100}.items():
    case(7, f"{name} after a close", frame(CLOSE, close_payload(1000)) + more,
         [], close_payload(1000))
    case(7, f"{name} after a mistake", frame(3) + more, end=1002)
case(7, "text, ping, close", frame(TEXT, "a") + frame(PING, "b")
     + frame(CLOSE, close_payload(1000)), [(TEXT, b"a"), (PONG, b"b")],
     close_payload(1000))

# ----- 9: sizes and limits ------------------------------------------------

for n in (MOST // 16, MOST // 4, MOST - 1, MOST):
    case(9, f"text of {n}", frame(TEXT, prose(n)), [(TEXT, prose(n))])
    case(9, f"binary of {n}", frame(BINARY_FRAME, noise(n)),
         [(BINARY_FRAME, noise(n))])
for n in (64, 1024, 65536):
    data = noise(MOST)
    case(9, f"{MOST} in fragments of {n}", parts(
        BINARY_FRAME, *(data[at:at + n] for at in range(0, MOST, n))),
        [(BINARY_FRAME, data)])
for n in (MOST + 1, 1 << 31, 1 << 32, (1 << 63) - 1):
    for op, word in ((TEXT, "text"), (BINARY_FRAME, "binary")):
        case(9, f"{word} of {n}, header alone", frame(op, b"", length=n),
             end=1009)
        # The mask is not waited for either.
        case(9, f"{word} of {n}, length alone",
             frame(op, b"", length=n)[:10], end=1009)
case(9, "one byte too many, in sum", frame(BINARY_FRAME, noise(MOST), fin=0)
     + frame(CONTINUATION, b"", length=1), end=1009)
case(9, "too much in sum, as soon as it is known",
     frame(TEXT, b"x" * 100, fin=0)
     + frame(CONTINUATION, b"", length=MOST - 99), end=1009)
case(9, "lengths whose sum overflows", frame(BINARY_FRAME, b"x", fin=0)
     + frame(CONTINUATION, b"", length=(1 << 63) - 1), end=1009)
case(9, "the most, twice", frame(BINARY_FRAME, noise(MOST)) * 2,
     [(BINARY_FRAME, noise(MOST))] * 2)

# ----- 10: many and odd frames --------------------------------------------

case(10, "a thousand texts at once", b"".join(
    frame(TEXT, b"%d" % i) for i in range(1000)),
    [(TEXT, b"%d" % i) for i in range(1000)])
case(10, "a thousand empty binaries", frame(BINARY_FRAME) * 1000,
     [(BINARY_FRAME, b"")] * 1000)
case(10, "a thousand empty fragments", frame(TEXT, "a", fin=0)
     + frame(CONTINUATION, "", fin=0) * 1000 + frame(CONTINUATION, "z"),
     [(TEXT, b"az")])
case(10, "65536 in fragments of 1300", parts(
    TEXT, *(prose(65536)[at:at + 1300] for at in range(0, 65536, 1300))),
    [(TEXT, prose(65536))])
case(10, "a byte a fragment, a ping after each",
     b"".join(frame(CONTINUATION if i else TEXT, "x", fin=0)
              + frame(PING, b"%d" % i) for i in range(100))
     + frame(CONTINUATION),
     [(PONG, b"%d" % i) for i in range(100)] + [(TEXT, b"x" * 100)])
case(10, "all kinds in a row", b"".join(
    frame(TEXT, prose(n)) + frame(PING, noise(n)) + frame(PONG, noise(n))
    + parts(BINARY_FRAME, noise(n), noise(n, 1)) for n in range(126)),
    [each for n in range(126) for each in (
        (TEXT, prose(n)), (PONG, noise(n)),
        (BINARY_FRAME, noise(n) + noise(n, 1)))])


# ----- running them -------------------------------------------------------

def ways(case):
    """How a case is sent: over what, and in pieces of how many bytes."""
    yield "ws", None
    yield "wss", None
    if len(case.data) <= BY_BYTE:
        yield "ws", 1
    elif len(case.data) <= 70_000:
        yield "ws", 997
    if len(case.data) <= BY_BYTE:  # every byte in a record of its own
        yield "wss", 1


RUNS = [pytest.param(each, over, piece, id="{}-{}-{}-{}".format(
    each.group, each.name, over, {None: "whole", 1: "bytes"}.get(
        piece, "pieces")))
    for each in CASES for over, piece in ways(each)]


@pytest.fixture(scope="module", autouse=True)
def table(request):
    """Prints, at the end, how many cases of each group have passed."""
    results.clear()
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n  group                     cases   runs over ws, wss")
        for group, name in GROUPS.items():
            total = sum(each.group == group for each in CASES)
            failed = sum(results[group, over, False] for over in OVER)
            print(f"  {group:2} {name:20} {total:6}" + "".join(
                f"{results[group, over, True]:8}" for over in OVER)
                + (f"  {failed} FAILED" if failed else ""))


def finish(raw, end):
    """The end of a case: nothing but a Close, and then a clean end."""
    if end == GOOD:
        raw.frame(CLOSE, close_payload(1000, "bye"))
        end = close_payload(1000, "bye")
    got = raw.next_frame()
    assert got.opcode == CLOSE, got
    if isinstance(end, bytes):
        assert got.payload == end
    else:
        assert int.from_bytes(got.payload[:2], "big") == end
        raw.frame(CLOSE, got.payload)
    assert raw.ends() == "end"


def send_and_read(raw, data, piece, expected):
    """What is large is read while it is sent: an echo that nobody reads
    stops the server's ear."""
    if len(data) <= 70_000:
        raw.send(data, piece)
    else:
        send_aside(raw, data)
    for opcode, payload in expected:
        got = raw.next_frame()
        assert got.opcode == opcode and got.fin, got.opcode
        assert got.payload == payload, (got.payload[:50], payload[:50])


def send_aside(raw, data):
    """Sends and reads in turn, so that neither side waits for the other."""
    view = memoryview(data)
    raw.socket.setblocking(False)
    try:
        while view:
            readable, writable, _ = select.select(
                [raw.socket], [raw.socket], [], wsp.PATIENCE)
            assert readable or writable, "the server neither reads nor writes"
            take(raw, readable)
            view = view[put(raw, view, writable):]
            if raw.ended:
                break
    finally:
        raw.socket.settimeout(wsp.PATIENCE)


def take(raw, readable):
    if not readable and not raw.tls:
        return
    try:
        raw.more()
    except (BlockingIOError, ssl.SSLWantReadError):
        pass


def put(raw, view, writable):
    if not writable:
        return 0
    try:
        return raw.socket.send(view[:1 << 16])
    except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
        return 0
    except (ConnectionError, ssl.SSLError):
        return len(view)


@pytest.mark.parametrize("case, over, piece", RUNS)
def test_case(holder, case, over, piece):
    raw = wsp.Raw(holder.get().address(over == "wss"), over == "wss")
    results[case.group, over, False] += 1
    try:
        raw.upgrade("/services/echo")
        send_and_read(raw, case.data, piece, case.expected)
        finish(raw, case.end)
    finally:
        raw.close_socket()
    results[case.group, over, False] -= 1
    results[case.group, over, True] += 1


# ----- 7, from the other side: the server closes first --------------------

@pytest.mark.parametrize("more", [
    frame(TEXT, "late"), frame(PING, "late"), frame(PONG, "late"),
    frame(BINARY_FRAME, b"x" * 70_000), frame(TEXT, "never ended", fin=0)],
    ids=["text", "ping", "pong", "large binary", "half a message"])
def test_after_the_servers_close_only_a_close_is_looked_at(server, tls, more):
    raw = server.open(service="echo", tls=tls)
    raw.frame(TEXT, "in")
    assert raw.message() == (TEXT, b"in")
    server.ok("close code=4242 *", "told so")
    assert raw.closed() == (4242, "told so")
    raw.send(more)
    raw.frame(CLOSE, close_payload(4242))
    assert raw.ends() == "end"


def test_frames_in_the_segment_of_the_request_count(server, tls):
    raw = server.raw(tls)
    raw.send(wsp.request("/services/echo") + b"".join(
        frame(TEXT, b"%d" % i) for i in range(300))
        + frame(CLOSE, close_payload(1000)))
    assert raw.response().status == 101
    for number in range(300):
        assert raw.message() == (TEXT, b"%d" % number)
    assert raw.closed() == (1000, "")
    assert raw.ends() == "end"


@pytest.mark.parametrize("seed", range(20))
def test_random_pieces_give_the_same_answer(server, tls, seed):
    """Cases of all groups, cut anywhere, one behind the other."""
    dice = random.Random(seed)
    good = [c for c in CASES if c.end == GOOD and len(c.data) < 3000]
    chosen = dice.sample(good, 12)
    data = b"".join(c.data for c in chosen)
    raw = server.open(service="echo", tls=tls)
    while data:
        n = dice.choice([1, 2, 3, 7, 50, 200, 1000])
        raw.send(data[:n])
        data = data[n:]
    for each in chosen:
        for opcode, payload in each.expected:
            got = raw.next_frame()
            assert (got.opcode, got.payload) == (opcode, payload)
    finish(raw, GOOD)
