# SPDX-License-Identifier: MIT
"""What the server gives up once it is ready, and what it still can.

Every other file runs sandboxed too: a call that the filter refuses fails the
test in which it was logged (Server.check_log)."""
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

import wsp
from wsp import make_certificate, peer_certificate, until
from e2e_memory import BINARY, sanitized

PRCTL = {"x86_64": 157, "aarch64": 167, "armv7l": 172}.get(
    platform.machine())

# Becomes the server under a filter that lets it have none of its own:
# prctl(PR_SET_SECCOMP) is answered EINVAL, as by a kernel without filters.
NO_FILTERS = f"""#!{sys.executable}
import ctypes, os, struct, sys
prctl = ctypes.CDLL(None, use_errno=True).prctl
code = b"".join(struct.pack("=HBBI", *op) for op in (
    (0x20, 0, 0, 0), (0x15, 0, 3, {PRCTL}), (0x20, 0, 0, 16),
    (0x15, 0, 1, 22), (6, 0, 0, 0x50016), (6, 0, 0, 0x7fff0000)))
room = ctypes.create_string_buffer(code, len(code))
program = struct.pack("@HP", len(code) // 8, ctypes.addressof(room))
none = ctypes.c_ulong(0)
assert prctl(38, ctypes.c_ulong(1), none, none, none) == 0
assert prctl(22, 2, program, none, none) == 0, ctypes.get_errno()
os.execv({wsp.BINARY!r}, [{wsp.BINARY!r}] + sys.argv[1:])
"""

# Loaded before the server: who opens a file called odd makes an odd call.
ODD = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int
odd(const char *name, const char *path, int flags, int mode)
{
	int (*next)(const char *, int, ...) =
	    (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);

	if (strlen(path) > 4 && strcmp(path + strlen(path) - 4, "/odd") == 0)
		syscall(strcmp(getenv("ODD_CALL"), "execve") == 0 ?
		    SYS_execve : SYS_getpriority, 0L, 0L, 0L);
	return next(path, flags, mode);
}

int
open(const char *path, int flags, int mode)
{
	return odd("open", path, flags, mode);
}

int
open64(const char *path, int flags, int mode)
{
	return odd("open64", path, flags, mode);
}
"""


def status(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return {name: value.strip() for name, _, value in (
            line.partition(":") for line in file)}


def has_filters():
    return os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


needs_filters = pytest.mark.skipif(not has_filters(),
                                   reason="a kernel without filters")


def launcher(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


# ----- what is given up ---------------------------------------------------

@needs_filters
def test_from_ready_on_system_calls_are_filtered(serve):
    server = serve("--log-level", "debug")
    assert status(server.pid)["Seccomp"] == "2"
    assert status(server.pid)["NoNewPrivs"] == "1"
    assert any("debug sandbox calls=" in line for line in server.log)


def test_no_sandbox_is_without_the_filter_alone(serve):
    server = serve("--no-sandbox", "--log-level", "debug")
    assert status(server.pid)["Seccomp"] == "0"
    assert status(server.pid)["NoNewPrivs"] == "1"
    assert not any("sandbox" in line for line in server.log)


@needs_filters
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
def test_it_is_filtered_also_as_another_user(serve):
    server = serve("--user", "nobody")
    assert status(server.pid)["Seccomp"] == "2"
    assert status(server.pid)["Uid"].split()[0] != "0"
    server.open(tls=True).heartbeat()


@needs_filters
@pytest.mark.skipif(not PRCTL, reason="the number of prctl() is not known")
def test_without_filters_it_says_so_and_goes_on(tmp_path):
    binary = launcher(tmp_path / "old-kernel", NO_FILTERS)
    with wsp.Server(binary=binary) as server:
        server.wait_log("warn sandbox why=.*Invalid argument")
        server.open(tls=True).heartbeat()


def core_limit(pid):
    return resource.prlimit(pid, resource.RLIMIT_CORE)


def test_there_will_be_no_core_file(server):
    assert core_limit(server.pid) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")
def test_its_memory_is_not_shown_to_its_own_user():
    """A process that may not be dumped belongs to root in /proc."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(wsp.BINARY, f"{name}/wspush")
        os.chmod(name, 0o755)
        os.mkdir(f"{name}/state")
        os.chown(f"{name}/state", 65534, 65534)
        with open(f"{name}/run", "w", encoding="utf-8") as file:
            file.write(f"#!{sys.executable}\nimport os, sys\n"
                       "os.setgid(65534)\nos.setuid(65534)\n"
                       f"os.execv('{name}/wspush', ['wspush'] + "
                       "sys.argv[1:])\n")
        os.chmod(f"{name}/run", 0o755)
        with wsp.Server(directory=f"{name}/state",
                        binary=f"{name}/run") as server:
            assert status(server.pid)["Uid"].split()[0] == "65534"
            assert os.stat(f"/proc/{server.pid}/environ").st_uid == 0


# ----- what is not --------------------------------------------------------

def test_a_child_of_exec_is_as_free_as_it_would_be_alone(serve, tmp_path):
    """The helper that starts it was forked before."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $$ >$0.new; mv $0.new $0.pid\n"
                      "exec cat >/dev/null\n")
    script.chmod(0o755)
    serve("--service", f"p=exec:{script}")
    pid = tmp_path / "script.pid"
    until(pid.exists, "the child")
    got = status(int(pid.read_text()))
    mine = status(os.getpid())
    assert got["Seccomp"] == mine["Seccomp"]
    assert got["NoNewPrivs"] == mine["NoNewPrivs"]
    assert core_limit(int(pid.read_text())) == core_limit(os.getpid())


def reload(server):
    at = len(server.log)
    server.kick(signal.SIGHUP)
    return server.wait_log("reload", after=at)


def test_a_new_certificate_is_read(tmp_path, serve):
    cert, key = make_certificate(tmp_path)
    server = serve("--cert", cert, "--key", key)
    raw = server.open(tls=True)
    before = peer_certificate(server.address(tls=True))
    make_certificate(tmp_path)
    assert "info reloaded" in reload(server)
    assert peer_certificate(server.address(tls=True)) != before
    raw.heartbeat()


def test_a_certificate_renewed_in_its_state_is_read(tmp_path):
    with wsp.Server(directory=tmp_path) as server:
        before = peer_certificate(server.address(tls=True))
        done = wsp.wspush("cert", "-f", "--state", str(tmp_path))
        assert done.returncode == 0, done
        assert "info reloaded" in reload(server)
        assert peer_certificate(server.address(tls=True)) != before


def test_settings_keys_and_groups_are_read(tmp_path, serve):
    config, key = tmp_path / "conf", tmp_path / "token"
    key.write_bytes(b"x" * 32)
    config.write_text(f"token-key {key}\npush-allow @root\n")
    server = serve("--config", config)
    key.write_bytes(b"y" * 32)
    config.write_text(config.read_text() + "no-sandbox\nsession-ttl 5\n")
    at = len(server.log)
    reload(server)
    server.wait_log("warn reload option=--no-sandbox", after=at)
    server.wait_log("info reloaded", after=at)


# ----- a call that is not on the list -------------------------------------

@pytest.fixture
def odd(tmp_path, serve):
    """A server that makes an odd call when it reads its settings; at the
    start nobody minds."""
    if not has_filters() or sanitized(BINARY):
        pytest.skip("no filters, or no binary that can be interposed")
    elf = subprocess.run(["readelf", "-l", BINARY], capture_output=True,
                         check=True, timeout=60).stdout
    if b"INTERP" not in elf:
        pytest.skip("a static binary cannot be interposed")
    source, library = tmp_path / "odd.c", tmp_path / "odd.so"
    source.write_text(ODD)
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o",
                    library, source, "-ldl"], check=True, timeout=120)
    (tmp_path / "odd").write_text("session-ttl 100\n")

    def start(call, *options):
        return serve("--config", tmp_path / "odd", *options, binary=BINARY,
                     env={"LD_PRELOAD": str(library), "ODD_CALL": call})
    return start


def refusals(server):
    return [line for line in server.log if line and "sandbox call=" in line]


def test_another_call_is_refused_and_logged_once(odd):
    server = odd("getpriority")
    server.may_be_refused = True
    raw = server.open()
    assert refusals(server) == []
    for _ in range(3):
        assert "info reloaded" in reload(server)
        raw.heartbeat()
    line, = refusals(server)
    assert line.startswith("wspush: warn sandbox call="), line
    assert "EPERM" in line


def test_without_the_sandbox_nothing_is_refused(odd):
    server = odd("getpriority", "--no-sandbox")
    assert "info reloaded" in reload(server)
    server.open().heartbeat()
    assert refusals(server) == []


def test_to_run_a_program_is_death(odd):
    server = odd("execve")
    server.open().heartbeat()
    server.kick(signal.SIGHUP)
    assert server.wait_exit() == -signal.SIGSYS
    server.kill()
