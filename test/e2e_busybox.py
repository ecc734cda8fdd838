# SPDX-License-Identifier: MIT
"""A box with nothing but busybox and one static binary: the server and every
sender run in a chroot without a library, a name service or a /dev."""
import os
import re
import shutil
import subprocess

import pytest

import wsp
from wsp import MAIN, ROOT

STATIC = ROOT / "build" / "test" / "wspush-static"


@pytest.fixture(scope="module")
def static():
    """The program as a router gets it; not the one under a sanitizer."""
    env = {k: v for k, v in os.environ.items()
           if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CI")}
    done = subprocess.run(
        ["make", "-s", "-C", ROOT, f"OUT={STATIC.relative_to(ROOT)}",
         "CFLAGS=-O1", "LDFLAGS=-static -s"], env=env, capture_output=True,
        text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return STATIC


def test_any_awk_packs_the_long_texts():
    """Also one without powers and logarithms, as small ones are."""
    if not shutil.which("busybox"):
        pytest.skip("busybox is not installed")
    script = "od -An -v -tu1 tools/help.txt | %s -f tools/pack"
    packed = [subprocess.run(
        ["sh", "-c", script % awk], cwd=ROOT, capture_output=True, text=True,
        timeout=3 * wsp.PATIENCE, check=True).stdout
        for awk in ("awk", "busybox awk")]
    assert packed[0].count(",") > 1000
    assert packed[0] == packed[1]


class Box:
    def __init__(self, root, binary):
        self.root = root
        for name in ("bin", "usr/bin", "dev", "tmp", "etc", "var/lib", "var/run"):
            (root / name).mkdir(parents=True)
        (root / "run").symlink_to("var/run")
        shutil.copy(shutil.which("busybox"), root / "bin/busybox")
        shutil.copy(binary, root / "usr/bin/wspush")
        (root / "dev/null").touch()
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
        self.enter = (["/usr/sbin/chroot", str(root)] if os.geteuid() == 0
                      else ["unshare", "--map-root-user", f"--root={root}"])
        self.sh("/bin/busybox --install -s /bin")

    def command(self, *words):
        return [*self.enter, "/bin/busybox", "env", "-i",
                "PATH=/bin:/usr/bin", *words]

    def sh(self, script, status=0, shell="/bin/busybox ash"):
        done = subprocess.run(
            self.command(*shell.split(), "-c", script),
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=3 * wsp.PATIENCE, check=False)
        assert done.returncode == status, (script, done)
        return done.stdout


@pytest.fixture
def box(tmp_path, static):
    if not shutil.which("busybox"):
        pytest.skip("busybox is not installed")
    return Box(tmp_path / "box", static)


class InBox(wsp.Server):
    """The server inside; its socket's path is another from out here."""

    def __init__(self, box, *options):
        self.box = box
        launcher = box.root.parent / "launcher"
        words = " ".join(f"'{w}'" for w in box.command("/usr/bin/wspush"))
        launcher.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        launcher.chmod(0o755)
        super().__init__("--listen", "127.0.0.1:0", "--listen-plain",
                         "127.0.0.1:0", *options, listen=False,
                         binary=str(launcher))

    def read_ready(self):
        super().read_ready()
        self.sender.path = self.path = str(self.box.root / self.path[1:])


@pytest.fixture
def inside(box):
    with InBox(box) as server:
        yield server


def test_a_whole_story(box, inside):
    # The default paths were made, and the certificate.
    assert box.sh("ls /run/wspush /var/lib/wspush").split() == [
        "/run/wspush:", "push.sock", "/var/lib/wspush:", "cert.pem", "key.pem"]
    assert box.sh("wspush ping") == "ok\n"
    assert box.sh("wspush send '*' nobody >/tmp/said; echo $?") == "4\n"

    door = inside.client(id="door::group_id:1", tls=True)
    hall = inside.client(id="hall::group_id:2", tls=True)
    (box.root / "tmp/push.sh").write_text("""\
#!/bin/ash
# What a firmware's script does, with the applets that are there.
wspush send '*' "up: $(cat /proc/uptime 2>/dev/null || echo unknown)" || exit
wspush send -k json '$group_id:2' '{"temp":21}' || exit
printf 'from a pipe\\n' | wspush send /services/main_ws_service-s-door::group_id:1
""")
    box.sh("chmod 755 /tmp/push.sh && /tmp/push.sh")
    to_door, to_hall = inside.fence(door, hall)
    assert re.fullmatch(r"up: (unknown|[0-9. ]+\n?)", to_door[0])
    assert to_door[1:] == ["from a pipe\n"]
    assert to_hall[1:] == ['[{"temp":21}]']

    ids = [f"/services/{MAIN}-s-{id}"
           for id in ("door::group_id:1", "hall::group_id:2")]
    assert sorted(box.sh("wspush list | cut -f1,2").split()) == sorted(
        [ids[0], "open", ids[1], "open"])
    assert box.sh("wspush list '=away' | wc -l").strip() == "0"


def test_send_w_decides_an_if(box, inside):
    ask = (f"if wspush send -w 1 /services/{MAIN}-s-door 'Open?'; "
           "then echo yes; else echo no $?; fi | tail -n1")
    assert box.sh(ask) == "no 4\n"
    door = inside.client(id="door")
    assert box.sh(ask) == "yes\n"
    assert door.receive() == "Open?"
    door.close()
    inside.wait_state(f"/services/{MAIN}-s-door", "away")
    assert box.sh(ask) == "no 5\n"
