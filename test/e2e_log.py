# SPDX-License-Identifier: MIT
"""The log: what it says at which level, floods, and syslog.  That every line
is logfmt is looked at whenever a server of any test stops (wsp.LOGFMT)."""
import os
import re
import signal
import socket
import subprocess
import time
from urllib.parse import quote

import pytest

import wsp
from wsp import MAIN


def words(server):
    return [line.split(" ")[2] for line in server.log if line]


def provoke(server):
    """One event of each level but error."""
    raw = server.open("1")
    raw.send(wsp.frame(3))
    assert raw.closed()[0] == 1002
    with wsp.Push(server.path, None) as nobody:
        nobody.send("frobnicate")
    server.ok("ping")


@pytest.mark.parametrize("level,has", [
    ("error", set()), ("warn", {"refused"}), ("info", {"refused", "failed"}),
    ("debug", {"refused", "failed", "gone"})])
def test_a_level_has_its_events_and_those_above(serve, level, has):
    server = serve("--log-level", level)
    provoke(server)
    wsp.until(lambda: has <= set(words(server)), has)
    server.stop()
    known = {"refused", "failed", "gone"}
    assert set(words(server)) & known == has


def test_a_reload_changes_the_level(serve, tmp_path):
    file = tmp_path / "conf"
    file.write_text("log-level error\n")
    server = serve("--config", file)
    provoke(server)
    file.write_text("log-level debug\n")
    server.kick(signal.SIGHUP)
    server.wait_log(" info reloaded ")
    assert "failed" not in words(server)
    provoke(server)
    server.wait_log(" debug gone ")


def test_a_level_that_the_file_has_no_more_is_the_default_again(serve,
                                                                tmp_path):
    file = tmp_path / "conf"
    file.write_text("log-level error\n")
    server = serve("--config", file)
    file.write_text("")
    server.kick(signal.SIGHUP)
    server.wait_log(" info reloaded ")


def test_what_a_reload_refuses_is_a_line_of_the_log(serve, tmp_path):
    file = tmp_path / "conf"
    file.write_text("overflow close\n")
    server = serve("--config", file)
    file.write_text('# nothing\noverflow "what\x01\n')
    server.kick(signal.SIGHUP)
    line = server.wait_log(" error reload ")
    assert f'why="{file}:2: overflow \\x22what\\x01: ' in line


def flood(server, times):
    """Protocol errors, from one address."""
    for _ in range(times):
        raw = server.open()
        raw.send(wsp.frame(3))
        assert raw.closed()[0] == 1002


def failures(server):
    return [line for line in server.log if line and " failed " in line]


def told(server):
    """How many failures the log has said or counted."""
    counts = [re.fullmatch("wspush: info failed more=([0-9]+)", line)
              for line in failures(server)]
    return sum(int(count[1]) if count else 1 for count in counts)


def test_a_flood_from_one_address_is_a_line_and_a_count_a_second(serve):
    server = serve()
    begin = time.monotonic()
    flood(server, 300)
    seconds = time.monotonic() - begin
    # The count of the last second comes although nothing happens any more.
    wsp.until(lambda: told(server) == 300, "each to be said or counted")
    # Seconds begin with an event; a slow machine may never see a flood.
    assert len(failures(server)) <= 21 * (seconds + 1)
    if seconds < 10:
        assert len(failures(server)) < 300


def test_a_flood_that_the_end_cuts_short_is_counted_too(serve):
    server = serve()
    flood(server, 50)
    server.stop()
    assert told(server) == 50


def test_a_flood_of_one_kind_hides_no_other(serve):
    server = serve()
    flood(server, 50)
    with wsp.Push(server.path, None) as nobody:
        nobody.send("frobnicate")
    server.wait_log(" warn refused .*unknown-verb")


def test_what_a_peer_says_is_escaped(serve):
    server = serve("--queue-messages", "1")
    id = '"\\x=\u00e9'
    away = f"/services/{MAIN}-s-{id}"
    server.away(quote(id))
    for _ in range(3):
        server.ok(f"send {away}", "x")
    line = server.wait_log(" slow ")
    assert f'socket="/services/{MAIN}-s-\\x22\\x5cx=\\xc3\\xa9" ' in line
    with wsp.Push(server.path, None) as nobody:
        nobody.send('send "\n\0= \x7f')
    server.wait_log(" refused ")


# ----- syslog -------------------------------------------------------------

@pytest.fixture
def syslog(tmp_path):
    """A socket that a program started by `wrapped` finds as /dev/log."""
    script = tmp_path / "wrapped"
    script.write_text(
        "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none /dev && "
        f"ln -s {tmp_path}/log /dev/log && exec \"$@\"' sh {wsp.BINARY} "
        '"$@"\n')
    script.chmod(0o755)
    if subprocess.run([script, "version"], capture_output=True,
                      check=False).returncode:
        pytest.skip("no mount namespaces here")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(wsp.PATIENCE)
        yield str(script), log


def test_syslog_has_the_lines_with_their_priority(serve, syslog):
    script, log = syslog
    server = serve("--syslog", binary=script)

    def line_of(word):
        while True:
            line = log.recv(4096).decode().rstrip("\0\n")
            if f" {word} " in line:
                return line
    # <facility daemon * 8 + priority>; the daemon has the time itself
    form = r"<%d>wspush\[\d+\]: %s "
    assert re.match(form % (3 * 8 + 6, "info certificate state=made"),
                    line_of("certificate"))
    provoke(server)
    assert re.match(form % (3 * 8 + 6, "info failed"), line_of("failed"))
    assert re.match(form % (3 * 8 + 4, "warn refused"), line_of("refused"))
    # On standard error stands the one line that is promised there.
    assert [line for line in server.log if line] == [
        server.wait_log("^wspush: ready ")]


def test_a_start_that_fails_is_in_syslog_and_on_standard_error(
        syslog, tmp_path):
    script, log = syslog
    done = subprocess.run(
        [script, "serve", "--syslog", "--push", "/proc/none/push.sock",
         "--listen-plain", "127.0.0.1:0"], stdin=subprocess.DEVNULL,
        capture_output=True, timeout=wsp.PATIENCE, check=False)
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert "/proc/none" in line
    assert "error start why=\"" in log.recv(4096).decode()


def test_without_a_syslog_the_server_goes_on(serve, syslog):
    script, log = syslog
    os.unlink(log.getsockname())
    server = serve("--syslog", binary=script)
    provoke(server)
    server.ok("ping")
