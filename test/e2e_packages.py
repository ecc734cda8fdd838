# SPDX-License-Identifier: MIT
"""What a distribution takes from tools/: each recipe and script runs here, or
is checked by the tool that knows it, with stand-ins for what is not here."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile

import pytest

import wsp
from wsp import ROOT

TOOLS = ROOT / "tools"
SCRIPTS = ["packages", "run", "cross", "buildroot/S50wspush",
           "openwrt/wspush/files/wspush.init"]
UNITS = sorted(p.name for p in (TOOLS / "systemd").glob("wspush*.s*")
               if p.suffix in (".service", ".socket"))
HASTY = "-O0"  # a package that is only looked at is not optimised


def run(*command, **options):
    env = {k: v for k, v in os.environ.items()
           if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CI")}
    done = subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=110, check=False,
                          env=env, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def needs(tool):
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The sources as a package gets them: nothing that was built."""
    tree = tmp_path_factory.mktemp("tree") / "wspush"
    tree.mkdir()
    for name in ("wspush.c", "wspush.h", "Makefile"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(TOOLS, tree / "tools")
    return tree


def bearssl_archive():
    path = run("gcc", "-print-file-name=libbearssl.a").strip()
    if not os.path.isabs(path):
        pytest.skip("libbearssl.a is not where the compiler looks")
    return path


def installed(directory):
    return {str(p.relative_to(directory)) for p in directory.rglob("*")
            if p.is_file()}


# ----- scripts and units

@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
    needs("shellcheck")
    run("shellcheck", TOOLS / script)


def test_systemd_takes_every_unit(tmp_path):
    needs("systemd-analyze")
    assert len(UNITS) == 4
    for name in UNITS:
        text = (TOOLS / "systemd" / name).read_text()
        (tmp_path / name).write_text(
            text.replace("/usr/bin/wspush", wsp.BINARY))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *UNITS], cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in done.stderr.splitlines() if "wspush" in line]
    assert done.returncode == 0 and not said, done.stderr


def test_the_socket_units_use_the_names_that_the_server_knows():
    names = {re.search(r"^FileDescriptorName=(.*)$",
                       (TOOLS / "systemd" / unit).read_text(), re.M)[1]
             for unit in UNITS if unit.endswith(".socket")}
    assert names == {"wss", "ws", "push"}


# ----- make install and the man page

def test_make_install_puts_binary_header_and_man_page(tree, tmp_path):
    run("make", "-C", tree, "install", f"DESTDIR={tmp_path}", "PREFIX=/usr",
        f"CFLAGS={HASTY}")
    files = {"usr/bin/wspush", "usr/include/wspush.h",
             "usr/share/man/man1/wspush.1"}
    assert installed(tmp_path) == files
    assert "wspush" in run(tmp_path / "usr/bin/wspush", "version")
    run("make", "-C", tree, "uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert installed(tmp_path) == set()


def test_mandoc_has_nothing_to_say_about_the_man_page():
    needs("mandoc")
    assert run("mandoc", "-T", "lint", "-W", "style",
               TOOLS / "wspush.1") == ""


def test_the_readme_names_every_verb_and_every_option():
    page = (wsp.ROOT / "README.md").read_text()
    for option in re.findall(r"^  (--[a-z-]+)",
                             run(wsp.BINARY, "serve", "--help"), re.M):
        assert re.search(rf"`[^`]*{option}\b", page), option
    for verb in re.findall(r"^  ([a-z]+)", run(wsp.BINARY, "help"), re.M):
        assert re.search(rf"`(wspush )?{verb}\b", page), verb


def test_what_the_readme_shows_is_there():
    page = (wsp.ROOT / "README.md").read_text()
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert shown and all((wsp.ROOT / name).is_file() for name in shown)


def test_the_readme_is_right_about_the_memory():
    if run("uname", "-m") != "x86_64\n":
        pytest.skip("the figures are those of x86-64")
    page = (wsp.ROOT / "README.md").read_text()
    [total] = re.findall(r"\| reserved in all \| ([0-9,]+) \|", page)
    real = re.search(r"^reserved in all +(\d+)$",
                     run(wsp.BINARY, "serve", "--memory"), re.M)[1]
    assert abs(int(total.replace(",", "")) / int(real) - 1) < 0.1, real


def test_the_man_page_names_every_verb_and_every_option():
    page = (TOOLS / "wspush.1").read_text()
    known = set(re.findall(r"Fl -([a-z-]+)", page))
    options = re.findall(r"^  --([a-z-]+)", run(wsp.BINARY, "serve", "--help"),
                         re.M)
    verbs = re.findall(r"^  ([a-z]+) ", run(wsp.BINARY, "help"), re.M)
    assert len(options) > 30 and set(options) <= known
    assert len(verbs) > 10
    for verb in verbs:
        assert re.search(rf"^\.Cm (\w+ \| )?{verb}\b", page, re.M), verb


# ----- OpenWrt

RULES = """\
CP := cp -fpR
TAR := tar
INSTALL_DIR := install -d -m0755
INSTALL_BIN := install -m0755
INSTALL_CONF := install -m0600
INSTALL_DATA := install -m0644
TARGET_CC := gcc
TARGET_AR := ar
TARGET_CFLAGS := -O0
SOURCE_DATE_EPOCH := 1700000000
"""
PACKAGE_MK = """\
PKG_BUILD_DIR := $(OUT_DIR)/$(PKG_NAME)-$(PKG_VERSION)
Download = $(eval $(Download/$(1)))
define BuildPackage
$(eval $(Package/$(1)))
package:
\t$(Build/Prepare)
\t$(Build/Compile)
\t$(call Package/$(1)/install,$(OUT_DIR)/root)
facts:
\t@echo '$(SECTION)|$(CATEGORY)|$(USERID)|$(URL)$(FILE)|$(HASH)'
endef
"""


def make_openwrt(tmp_path, target):
    (tmp_path / "rules.mk").write_text(RULES)
    (tmp_path / "package.mk").write_text(PACKAGE_MK)
    return run("make", "-s", "-C", TOOLS / "openwrt/wspush", target,
               f"TOPDIR={tmp_path}", f"INCLUDE_DIR={tmp_path}",
               f"DL_DIR={tmp_path}", f"OUT_DIR={tmp_path}")


def test_the_openwrt_package_says_what_it_is(tmp_path):
    assert make_openwrt(tmp_path, "facts").strip().split("|") == [
        "net", "Network", "wspush=381:wspush=381",
        "https://bearssl.org/bearssl-0.6.tar.gz",
        "6705bba1714961b41a728dfc5debbe348d2966c117649392f8c8139efc83ff14"]


def test_the_openwrt_package_builds_and_installs(tmp_path):
    """BearSSL's sources are not here: its archive is `built` by a copy."""
    bearssl = tmp_path / "bearssl-0.6"
    shutil.copytree("/usr/include/bearssl", bearssl / "inc/bearssl")
    shutil.copy("/usr/include/bearssl.h", bearssl / "inc")
    (bearssl / "Makefile").write_text(
        f"lib:\n\tmkdir -p build\n\tcp {bearssl_archive()} build/\n")
    with tarfile.open(tmp_path / "bearssl-0.6.tar.gz", "w:gz") as tar:
        tar.add(bearssl, "bearssl-0.6")
    make_openwrt(tmp_path, "package")
    assert installed(tmp_path / "root") == {
        "usr/bin/wspush", "etc/init.d/wspush", "etc/config/wspush",
        "etc/capabilities/wspush.json"}
    assert os.access(tmp_path / "root/etc/init.d/wspush", os.X_OK)
    # Without -s the client finds the socket that the init script names.
    text = run(tmp_path / "root/usr/bin/wspush", "help", "send")
    assert "/var/run/wspush/push.sock" in text
    assert "RUN=/var/run/wspush\n" in (
        tmp_path / "root/etc/init.d/wspush").read_text()


def test_the_openwrt_capabilities_are_one():
    sets = json.loads(
        (TOOLS / "openwrt/wspush/files/wspush.json").read_text())
    assert set(sets) == {"bounding", "effective", "ambient", "permitted",
                         "inheritable"}
    assert all(caps == ["CAP_NET_BIND_SERVICE"] for caps in sets.values())


# What rc.common, procd.sh and functions.sh would do; each call is noted.
STAND_INS = r"""
note() { printf '%s\n' "$*" >>"$NOTES"; }
for name in open_instance close_instance set_param append_param add_jail \
    add_jail_mount add_jail_mount_rw add_reload_trigger add_validation; do
	eval "procd_$name() { note $name \"\$@\"; }"
done
config_load() { note config_load "$@"; }
config_list_foreach() {
	local item call=$3 of
	eval "of=\${LIST_$2:-}"
	shift 3
	for item in $of; do $call "$item" "$@"; done
}
uci_load_validate() {
	local call=$4 section=$3
	note validate "$1" "$2" "$3"
	shift 4
	for each in "$@"; do note type "$each"; eval "${each%%:*}="; done
	. "$UCI"
	[ -z "$call" ] || "$call" "$section" "${BAD:-0}"
}
uci() { return 1; }
chown() { note chown "$@"; }
sysctl() { note sysctl "$@"; }
logger() { note logger "$@"; }
start() { start_service; }
restart() { note restart; start_service; }
. "$INIT"
"$@"
"""


DEFAULTS = "enabled=1 jail=1 share_uhttpd=1 LIST_listen=8443"


class Box:
    """The init script, run by busybox's ash on paths of its own."""

    def __init__(self, path):
        self.path = path
        self.notes = path / "notes"
        self.conf = path / "run/wspush.conf"
        text = (TOOLS / "openwrt/wspush/files/wspush.init").read_text()
        for name, place in (("RUN", "run"), ("STATE", "state")):
            text, n = re.subn(rf"^{name}=/.*$", f"{name}={path / place}",
                              text, flags=re.M)
            assert n == 1
        text = text.replace("/etc/uhttpd.", f"{path}/uhttpd.")
        text = text.replace("/sbin/ujail", "/bin/sh")
        (path / "init").write_text(text)
        (path / "stand_ins").write_text(STAND_INS)

    def __call__(self, *action, uci="", bad=0):
        (self.path / "uci").write_text(f"{DEFAULTS} {uci}".replace(" ", "\n"))
        self.notes.write_text("")
        env = {"PATH": os.environ["PATH"], "NOTES": str(self.notes),
               "UCI": str(self.path / "uci"), "BAD": str(bad),
               "INIT": str(self.path / "init")}
        done = subprocess.run(
            ["busybox", "ash", "-u", str(self.path / "stand_ins"), *action],
            env=env, capture_output=True, text=True, timeout=30, check=False)
        assert not done.stderr, done.stderr
        return self.notes.read_text().splitlines()

    def settings(self):
        return [line for line in self.conf.read_text().splitlines()
                if not line.startswith("#")]


@pytest.fixture
def box(tmp_path):
    needs("busybox")
    return Box(tmp_path)


def test_the_init_script_starts_the_server_as_procd_wants_it(box):
    notes = box("start_service")
    conf = str(box.conf)
    assert f"set_param command /usr/bin/wspush serve --config {conf}" in notes
    assert "set_param respawn" in notes
    assert "set_param reload_signal HUP" in notes
    assert "set_param user wspush" in notes
    assert ("set_param capabilities /etc/capabilities/wspush.json"
            in notes)
    assert any(n.startswith(f"set_param file {conf} ") for n in notes)
    assert f"add_jail_mount_rw {box.path}/run {box.path}/state" in notes
    # Before the server makes its socket, and inside one instance.
    assert (notes.index("sysctl -qw net.unix.max_dgram_qlen=512")
            < notes.index("open_instance") < notes.index("close_instance"))
    assert box.settings() == [
        f"state {box.path}/state", f"push {box.path}/run/push.sock",
        "wait 86400", "listen 8443"]


def test_the_server_takes_the_settings_file_that_the_script_makes(box):
    cert, key = wsp.make_certificate(box.path)
    box("start_service", uci=(
        f"cert={cert} key={key} overflow=refuse max_sockets=100 no_page=1 "
        "no_sandbox=1 LIST_origin=https://a.example "
        "LIST_listen_plain=127.0.0.1:0 "
        "LIST_service='echo=echo\ttwo' log_level=warn"))
    assert set(box.settings()) >= {
        "overflow refuse", "max-sockets 100", "no-page", "no-sandbox",
        "log-level warn", "origin https://a.example",
        "listen-plain 127.0.0.1:0",
        "service echo=echo", "service two", f"cert {box.path}/run/keys/cert"}
    assert (box.path / "run/keys/key").stat().st_mode & 0o777 == 0o600
    run(wsp.BINARY, "serve", "--check", "--config", box.conf)


def test_every_option_that_uci_knows_is_one_of_the_server(box):
    help_text = run(wsp.BINARY, "serve", "--help")
    known = set(re.findall(r"^  --([a-z-]+)", help_text, re.M))
    notes = box("start_service")
    names = {n.split()[1].split(":")[0].replace("_", "-")
             for n in notes if n.startswith("type ")}
    assert names - {"enabled", "jail", "share-uhttpd"} <= known


def test_the_certificate_of_uhttpd_is_used_if_it_is_there(box):
    assert not any(line.startswith("cert") for line in
                   box("start_service") and box.settings())
    cert, key = wsp.make_certificate(box.path, "uhttpd")
    assert (cert.name, key.name) == ("uhttpd.crt", "uhttpd.key")
    notes = box("start_service")
    assert f"cert {box.path}/run/keys/cert" in box.settings()
    assert f"set_param file {box.conf} {cert} {key}" in notes
    assert (box.path / "run/keys/key").read_bytes() == key.read_bytes()


def test_a_box_where_it_is_disabled_or_misconfigured_starts_nothing(box):
    assert "open_instance" not in box("start_service", uci="enabled=0")
    notes = box("start_service", bad=1)
    assert "open_instance" not in notes
    assert any(n.startswith("logger ") for n in notes)


def test_a_reload_restarts_only_for_what_a_signal_cannot_change(box):
    box("start_service")
    assert "restart" not in box("reload_service")
    assert "restart" not in box(
        "reload_service", uci="LIST_origin=https://a.example session_ttl=60")
    assert "restart" in box("reload_service", uci="LIST_listen=443")
    assert "listen 443" in box.settings()


def test_the_jail_can_be_left_out(box):
    assert not [n for n in box("start_service", uci="jail=0")
                if n.startswith("add_jail")]


def test_the_init_script_asks_to_be_told_of_changes(box):
    notes = box("service_triggers")
    assert "add_reload_trigger wspush uhttpd" in notes
    assert "add_validation validate_section" in notes


# ----- Buildroot

GENERIC_PACKAGE = """BR2_EXTERNAL_WSPUSH_PATH := $(TREE)/tools/buildroot
TARGET_CONFIGURE_OPTS = CC=gcc AR=ar
TARGET_CFLAGS = -O0
INSTALL = install
WSPUSH_PKGDIR = $(BR2_EXTERNAL_WSPUSH_PATH)
generic-package =
include $(BR2_EXTERNAL_WSPUSH_PATH)/external.mk
# A stamp in the build directory, which is $(@D).
$(TREE)/stamp:
\t$(WSPUSH_BUILD_CMDS)
\t$(WSPUSH_INSTALL_TARGET_CMDS)
\t$(WSPUSH_INSTALL_INIT_SYSV)
\t$(WSPUSH_INSTALL_INIT_SYSTEMD)
facts:
\t@echo '$(WSPUSH_DEPENDENCIES)|$(WSPUSH_LICENSE)|$(abspath $(WSPUSH_SITE))'
"""


def make_buildroot(tree, tmp_path, target):
    path = tmp_path / "Makefile"
    path.write_text(GENERIC_PACKAGE)
    return run("make", "-s", "-f", path, target, f"TREE={tree}",
               f"TARGET_DIR={tmp_path}/target", f"STAGING_DIR={tmp_path}/host")


def test_the_buildroot_package_says_what_it_is(tree, tmp_path):
    assert make_buildroot(tree, tmp_path, "facts").strip().split("|") == [
        "bearssl", "MIT", str(tree)]


def test_the_buildroot_package_builds_and_installs(tree, tmp_path):
    staging = tmp_path / "host/usr"
    (staging / "lib").mkdir(parents=True)
    (staging / "include").mkdir()
    shutil.copy(bearssl_archive(), staging / "lib")
    os.symlink("/usr/include/bearssl", staging / "include/bearssl")
    os.symlink("/usr/include/bearssl.h", staging / "include/bearssl.h")
    make_buildroot(tree, tmp_path, tree / "stamp")
    assert installed(tmp_path / "target") == {
        "usr/bin/wspush", "usr/include/wspush.h",
        "usr/share/man/man1/wspush.1", "etc/init.d/S50wspush",
        "usr/lib/systemd/system/wspush.service"}


def test_the_buildroot_menu_selects_what_the_recipe_needs():
    menu = (TOOLS / "buildroot/Config.in").read_text()
    assert menu.startswith("config BR2_PACKAGE_WSPUSH\n\tbool \"wspush\"\n")
    assert "\tselect BR2_PACKAGE_BEARSSL\n" in menu


def test_the_buildroot_script_starts_reloads_and_stops_the_server(tmp_path):
    needs("busybox")
    applets = tmp_path / "bin"
    applets.mkdir()
    for name in ("start-stop-daemon", "cat", "rm", "sleep"):
        (applets / name).symlink_to(shutil.which("busybox"))
    (applets / "sysctl").write_text("#!/bin/sh\n")
    (applets / "sysctl").chmod(0o755)
    pidfile, sock = tmp_path / "pid", tmp_path / "push.sock"
    program = os.environ.get("WSPUSH_RELEASE", wsp.BINARY)
    (tmp_path / "default").write_text(
        f"WSPUSH_ARGS='--listen-plain 127.0.0.1:0 --push {sock}'\n")
    text = (TOOLS / "buildroot/S50wspush").read_text()
    for name, place in (("PIDFILE", pidfile), ("PROGRAM", program)):
        text, n = re.subn(rf"^{name}=.*$", f"{name}={place}", text, flags=re.M)
        assert n == 1
    text = text.replace('"/etc/default/$DAEMON"', f"{tmp_path}/default")
    (tmp_path / "S50wspush").write_text(text)

    def script(action, status=0):
        done = subprocess.run(
            ["busybox", "ash", tmp_path / "S50wspush", action],
            env={"PATH": f"{applets}:/bin:/usr/bin"}, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=30,
            check=False)
        assert done.returncode == status, done
        return done.stdout

    def ping():
        return wsp.wspush("ping", "-s", str(sock)).returncode == 0

    try:
        assert script("start") == "Starting wspush: OK\n"
        wsp.until(ping, "the server")
        first = int(pidfile.read_text())
        assert script("reload") == "Reloading wspush: OK\n"
        assert ping() and int(pidfile.read_text()) == first
        assert script("restart") == (
            "Stopping wspush: OK\nStarting wspush: OK\n")
        wsp.until(ping, "the second server")
        second = int(pidfile.read_text())
        assert second != first and not os.path.exists(f"/proc/{first}")
        assert script("stop") == "Stopping wspush: OK\n"
        assert not sock.exists() and not pidfile.exists()
        assert "FAIL" in script("stop", status=1)
        assert "Usage" in script("what", status=1)
    finally:
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), 9)


# ----- Yocto

@pytest.mark.parametrize("recipe", ["wspush_0.1.bb", "bearssl_0.6.bb"])
def test_a_yocto_recipe_is_well_formed(recipe, tmp_path):
    """There is no bitbake here: assignments by their form, tasks by sh -n."""
    text = (TOOLS / "yocto" / recipe).read_text()
    text = re.sub(r"\\\n\s*", " ", text)
    tasks = re.findall(r"^(do_\w+)\(\) \{\n(.*?)^\}\n", text, re.M | re.S)
    assert {name for name, _ in tasks} == {"do_compile", "do_install"}
    for name, body in tasks:
        script = tmp_path / name
        script.write_text(re.sub(r"\$\{[@\w][^}]*\}", "x", body))
        run("sh", "-n", script)
    rest = re.sub(r"^do_\w+\(\) \{\n.*?^\}\n", "", text, flags=re.M | re.S)
    for line in rest.splitlines():
        assert re.fullmatch(
            r"|#.*|inherit [a-z. -]+|[A-Z_a-z0-9:${}\[\]]+ (\+|\?|)= \".*\"",
            line), line


def test_the_yocto_recipe_has_the_version_and_files_of_this_tree():
    version = re.search(r'WSP_VERSION "(.*)"',
                        (ROOT / "wspush.h").read_text())[1]
    [recipe] = (TOOLS / "yocto").glob("wspush_*.bb")
    assert recipe.name == f"wspush_{version}.bb"
    text = recipe.read_text()
    for unit in UNITS:
        assert unit in text, unit
    for path in re.findall(r"\$\{S\}/(tools/\S+)", text):
        assert (ROOT / path.replace("$unit", UNITS[0])).exists(), path
    for name in ("tools/openwrt/wspush/Makefile", "tools/buildroot/wspush.mk"):
        assert re.search(rf"VERSION\s*:?= ?{re.escape(version)}$",
                         (ROOT / name).read_text(), re.M), name
