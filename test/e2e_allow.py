# SPDX-License-Identifier: MIT
"""Who may push: --push-allow, by the credentials that the kernel gives."""
import grp
import json
import os
import signal
import stat
import subprocess
import sys

import pytest

import wsp

NOBODY, OTHER = 65534, 65533

# A sender of another user: argv is path, uid, gid, header.
SENDER = """
import os, socket, sys
path, uid, gid, header = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.settimeout(20)
s.bind("")
s.sendto(header.encode(), path)
print(s.recv(65536).decode(), end="")
"""


def ask_as(server, uid, gid, header):
    # The directory of the test belongs to root, and so does the way in.
    os.chmod(os.path.dirname(server.path), 0o755)
    done = subprocess.run(
        [sys.executable, "-c", SENDER, server.path, str(uid), str(gid),
         header], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


pytestmark = pytest.mark.skipif(os.geteuid() != 0,
                                reason="only root can become somebody else")


def test_without_the_option_the_mode_decides(serve):
    server = serve("--push-mode", "0666")
    assert ask_as(server, OTHER, OTHER, "ping ref=a") == "ok 0 ref=a\n"


def test_the_push_socket_is_of_its_owner_its_group_and_its_mode(serve):
    server = serve("--push-group", grp.getgrgid(NOBODY).gr_name,
                   "--push-mode", "0620")
    made = os.stat(server.path)
    assert (made.st_uid, made.st_gid) == (os.geteuid(), NOBODY)
    assert stat.S_IMODE(made.st_mode) == 0o620
    assert ask_as(server, OTHER, NOBODY, "ping") == "ok 0\n"
    with pytest.raises(AssertionError, match="Permission denied"):
        ask_as(server, OTHER, OTHER, "ping")


def test_only_the_users_named_may_push_and_root(serve):
    server = serve("--push-mode", "0666", "--push-allow", NOBODY)
    assert ask_as(server, NOBODY, OTHER, "ping") == "ok 0\n"
    got = ask_as(server, OTHER, NOBODY, "ping ref=b")
    assert got.startswith("error denied ref=b "), got
    assert server.push("ping").count == 0


def test_a_group_is_its_primary_members_and_those_by_name(serve):
    group = grp.getgrgid(NOBODY)
    server = serve("--push-mode", "0666", "--push-allow", "@" + group.gr_name)
    assert ask_as(server, OTHER, NOBODY, "ping") == "ok 0\n"
    assert ask_as(server, OTHER, OTHER, "ping").startswith("error denied ")


def test_who_is_denied_stands_in_the_log_and_changes_nothing(serve):
    server = serve("--push-mode", "0666", "--push-allow", NOBODY)
    client = server.open("1")
    got = ask_as(server, OTHER, OTHER, "close *")
    assert got.startswith("error denied "), got
    assert server.wait_log(f"warn refused pid=[1-9][0-9]* uid={OTHER} ")
    assert len(server.rows()) == 1
    client.close_socket()


def test_an_unknown_verb_is_found_before_the_sender(serve):
    server = serve("--push-mode", "0666", "--push-allow", NOBODY)
    assert ask_as(server, OTHER, OTHER, "fly *").startswith(
        "error unknown-verb ")
    assert ask_as(server, OTHER, OTHER, "send nonsense=1 *").startswith(
        "error denied ")


def test_a_reload_changes_who_may(serve, tmp_path):
    config = tmp_path / "config"
    config.write_text(f"push-allow {NOBODY}\n")
    server = serve("--push-mode", "0666", "--config", config)
    assert ask_as(server, OTHER, OTHER, "ping").startswith("error denied ")
    config.write_text(f"push-allow {OTHER}\n")
    server.kick(signal.SIGHUP)
    wsp.until(lambda: ask_as(server, OTHER, OTHER, "ping") == "ok 0\n",
              "the new list")
    assert ask_as(server, NOBODY, NOBODY, "ping").startswith("error denied ")


@pytest.mark.parametrize("value", ["", "x", "-1", "@", "@no such group"])
def test_a_value_that_is_nobody_is_wrong_usage(tmp_path, value):
    status, lines = wsp.fails("--listen-plain", "127.0.0.1:0", "--push",
                              tmp_path / "p", "--push-allow", value)
    assert status == 2 and "--push-allow" in lines[0], lines


def test_json_stats_are_for_those_allowed_too(serve):
    server = serve("--push-mode", "0666", "--push-allow", NOBODY)
    got = ask_as(server, NOBODY, NOBODY, "stats format=json")
    assert json.loads(got.split("\n", 1)[1])["sockets_open"] == 0
