# SPDX-License-Identifier: MIT
"""After `ready` the server allocates nothing.

Two witnesses: an interposer that counts the calls of the C library, and the
kernel's map of the process, which also shows what goes around the library."""
import os
import pathlib
import re
import signal
import struct
import subprocess

import pytest

import wsp
from wsp import MAIN, request

NAMES = "malloc calloc realloc memalign mmap mremap brk".split()


def sanitized(path):
    return b"__asan_init" in pathlib.Path(path).read_bytes()


def is_static(path):
    program = subprocess.run(["readelf", "-l", path], capture_output=True,
                             check=True, timeout=60).stdout
    return b"INTERP" not in program


# A sanitizer has an allocator of its own: the release build speaks for both.
BINARY = wsp.BINARY
if os.path.exists(BINARY) and sanitized(BINARY):
    BINARY = os.environ.get("WSPUSH_RELEASE", BINARY)


@pytest.fixture(scope="session")
def interposer():
    if sanitized(BINARY):
        pytest.skip("a sanitizer has an allocator of its own")
    if is_static(BINARY):
        pytest.skip("a static binary cannot be interposed")
    library = wsp.ARTEFACTS / "count_alloc.so"
    source = pathlib.Path(__file__).with_name("count_alloc.c")
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1",
                    "-Wall", "-Wextra", "-o", library, source, "-ldl"],
                   check=True, timeout=120)
    return library


@pytest.fixture
def counted(serve, interposer, tmp_path):
    """A server whose allocations are counted, and the count."""
    file = tmp_path / "counters"
    file.write_bytes(bytes(8 * len(NAMES)))
    server = serve("--service", MAIN, "--service", "echo=echo",
                   "--metrics", "127.0.0.1:0", binary=BINARY,
                   env={"LD_PRELOAD": str(interposer),
                        "COUNT_ALLOC": str(file)})

    def read():
        return dict(zip(NAMES, struct.unpack(f"={len(NAMES)}Q",
                                             file.read_bytes())))
    assert read()["mmap"] > 1, "the interposer does not count"
    return server, read


def maps(server):
    """The process's mappings, the stack apart, which the kernel grows."""
    text = pathlib.Path(f"/proc/{server.pid}/maps").read_text()
    return {line.split()[0] for line in text.splitlines()
            if "[stack]" not in line}


def use(server, tls):
    """A bit of everything: connect, talk, push, list, close, refusals."""
    for data in (request("/", upgrade=False), request("/nothing"),
                 request("/healthz", upgrade=False), b"\0\r\n\r\n",
                 request(f"/services/{MAIN}", "POST")):
        server.ask(data, tls)
    raw = server.open("id:1::g:2", tls=tls)
    old = server.open("id:1::g:2", tls=tls)
    assert raw.closed()[0] == 4001
    raw = old
    volatile = [server.open(tls=tls) for _ in range(20)]
    echo = server.open(service="echo", tls=tls)
    echo.text("x" * 16_000)
    assert echo.read_text() == "x" * 16_000
    echo.send(wsp.frame(3))
    assert echo.closed()[0] == 1002
    raw.heartbeat()
    assert server.ok("send *", "x" * 65536).count == 21
    for each in (raw, *volatile):
        assert len(each.message()[1]) == 65536
    for kind, body in (("text", "x" * 1000), ("json", '{"a":1}'),
                       ("json", "a string"), ("binary", b"\xff")):
        assert server.ok(f"send kind={kind} *", body).count == 21
    server.refused("bad-target", "send $", "x")
    server.refused("unknown-socket", f"send /services/{MAIN}-s-absent", "x")
    server.rows("$g:[1,2]")
    server.stats()
    scrape = wsp.Raw(server.metrics).send(request("/metrics", upgrade=False))
    assert scrape.response().status == 200
    scrape.close_socket()
    for got in server.fence(raw, *volatile):
        assert len(got) in (3, 4)
    assert server.ok("abort /services/echo").count in (0, 1)
    away = server.away("away")
    for _ in range(100):
        server.ok(f"send {away}", "overflows")
    for each in volatile[:10]:
        each.say_close()
    volatile[10].reset()
    assert server.ok("close *").count >= 3
    for each in server.opened:
        each.close_socket()
    server.opened.clear()
    wsp.until(lambda: not server.rows(), "all to be gone")


def test_nothing_is_allocated_after_ready(counted, tls):
    server, read = counted
    before, mapped = read(), maps(server)
    for _ in range(3):
        use(server, tls)
    assert read() == before
    assert maps(server) == mapped


def test_nothing_is_allocated_at_reload_and_stop(counted):
    server, read = counted
    raw = server.open(tls=True)
    before = read()
    for _ in range(3):
        log = len(server.log)
        server.kick(signal.SIGHUP)
        server.wait_log("(?i)reload|read again|sighup", after=log)
    raw.heartbeat()
    assert read() == before
    server.kick(signal.SIGTERM)
    assert raw.closed()[0] == 1001
    assert read() == before


def test_memory_does_not_grow_with_use(serve):
    """Also for binaries that cannot be interposed."""
    if sanitized(BINARY):
        pytest.skip("a sanitizer maps what it likes")
    server = serve("--service", MAIN, "--service", "echo=echo", "--metrics",
                   "127.0.0.1:0", binary=BINARY)
    mapped = maps(server)
    for tls in (False, True):
        use(server, tls)
    assert maps(server) == mapped


def code_in_memory(server):
    """KiB of each file whose pages are read or run, not written."""
    found, name = {}, None
    smaps = pathlib.Path(f"/proc/{server.pid}/smaps").read_text()
    for line in smaps.splitlines():
        field = line.split()
        if "-" in field[0]:
            name = field[5] if len(field) > 5 and "w" not in field[1] and \
                field[5].startswith("/") else None
        elif name and field[0] in ("Rss:", "Size:"):
            resident, size = found.get(name, (0, 0))
            if field[0] == "Rss:":
                found[name] = resident + int(field[1]), size
            else:
                found[name] = resident, size + int(field[1])
    return found


def test_code_of_the_start_is_given_back(serve, tls):
    """The kernel brings pages back by sixteen: a third of all is much."""
    if sanitized(BINARY):
        pytest.skip("a sanitizer has much code of its own")
    server = serve(binary=BINARY)
    raw = server.open(tls=tls)
    for _ in range(2):
        log = len(server.log)
        server.kick(signal.SIGHUP)
        server.wait_log("reloaded", after=log)

        def is_little():
            code = code_in_memory(server)
            resident = sum(r for r, _ in code.values())
            size = sum(s for _, s in code.values())
            return resident < size / 3
        wsp.until(is_little, "the code to leave")
    raw.heartbeat()


def test_code_that_no_file_holds_is_kept(serve, tmp_path):
    """As in a program that was packed: it would come back as zeroes."""
    if sanitized(BINARY):
        pytest.skip("a sanitizer has code of its own")
    if is_static(BINARY):
        pytest.skip("a static binary loads no library")
    source = pathlib.Path(__file__).with_name("move_code.c")
    library = tmp_path / "move_code.so"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1",
                    "-Wall", "-Wextra", "-o", library, source],
                   check=True, timeout=120)
    server = serve(binary=BINARY, env={"LD_PRELOAD": str(library)})
    code = [line for line in maps_of(server, "r-xp") if "wspush" in line]
    assert not code, "the code was not moved"
    check_reload(server)


@pytest.mark.skipif(os.uname().machine != "x86_64",
                    reason="needs a compiler's model of that machine")
def test_code_that_the_loader_wrote_to_is_kept(serve):
    """It would come back without its relocations."""
    binary = wsp.ROOT / "build" / "test" / "wspush-textrel"
    env = {k: v for k, v in os.environ.items()
           if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CI")}
    done = subprocess.run(
        ["make", "-s", "-C", wsp.ROOT, "CC=gcc",
         f"OUT={binary.relative_to(wsp.ROOT)}",
         "CFLAGS=-O0 -fno-pic -mcmodel=large", "LDFLAGS=-pie -Wl,-z,notext"],
        env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    dynamic = subprocess.run(["readelf", "-d", binary], capture_output=True,
                             check=True, timeout=60).stdout
    assert b"TEXTREL" in dynamic
    check_reload(serve(binary=binary))


def maps_of(server, rights):
    text = pathlib.Path(f"/proc/{server.pid}/maps").read_text()
    return [line for line in text.splitlines() if line.split()[1] == rights]


def check_reload(server):
    server.open(tls=True).heartbeat()
    log = len(server.log)
    server.kick(signal.SIGHUP)
    server.wait_log("reloaded", after=log)
    server.open(tls=True).heartbeat()


def touched(server):
    """Bytes of pages that the server has written to."""
    rollup = pathlib.Path(f"/proc/{server.pid}/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous: +(\d+) kB", rollup, re.M)[1]) << 10


def test_an_idle_client_over_tls_costs_512_bytes(serve):
    """Its keys, a row each for connection, session and socket, and an id of
    40 bytes."""
    if sanitized(BINARY):
        pytest.skip("a sanitizer has pages of its own")
    few, many = 100, 1100
    server = serve("--max-sockets", 2048, binary=BINARY)
    for number in range(many):
        if number == few:
            before = touched(server)
        server.open(f"{number:040}", tls=True)
    assert server.stats()["sockets_open"] == many
    each = (touched(server) - before) / (many - few)
    print(f"\n{each:.0f} bytes each")
    assert each <= 512
