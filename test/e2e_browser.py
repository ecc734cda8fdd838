# SPDX-License-Identifier: MIT
"""The test page in a real Chromium, over wss with a self-signed certificate:
what the guide's reader sees."""
import os
import re
import shutil
import subprocess
import tempfile

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

import wsp
from wsp import MAIN

SERVER = ["--service", MAIN, "--service", "sub,protocol=one,protocol=two"]
FLAGS = """--headless --no-sandbox --disable-gpu --disable-dev-shm-usage
    --disable-background-networking --disable-component-update --disable-sync
    --disable-default-apps --disable-extensions --no-first-run
    --ignore-certificate-errors --no-proxy-server --mute-audio""".split()
SLOW = 3 * wsp.PATIENCE  # a browser on a busy machine


class Page:
    """The page under test, by the ids that it promises."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url):
        self.driver.get(url)
        self.run("localStorage.clear()")
        self.driver.get(url)
        return self

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def text(self, name):
        return self.run("return document.getElementById(arguments[0])"
                        ".innerText", name)

    def fill(self, name, text):
        field = self[name]
        field.clear()
        field.send_keys(text)

    def value(self, name):
        return self[name].get_property("value")

    def click(self, name):
        self[name].click()

    @property
    def connected(self):
        """The badge says CONNECTED (DISCONNECTED is another word)."""
        return bool(re.search(r"\bCONNECTED\b", self.text("status")))

    def connect(self, url=None):
        if url:
            self.fill("url", url)
        self.click("connect")
        wsp.until(lambda: self.connected, "a green CONNECTED", SLOW)

    def disconnect(self):
        self.click("disconnect")
        wsp.until(lambda: not self.connected, "the end", SLOW)

    def sees(self, text):
        """Waits for it in the journal."""
        wsp.until(lambda: text in self.text("journal"),
                  f"{text!r} in the journal, which is: "
                  + self.text("journal"), SLOW)

    def colours(self, name):
        """The colours of an element and of what is in and before it."""
        return self.run("""
            const e = document.getElementById(arguments[0]), all = [];
            for (const x of [e, ...e.querySelectorAll('*')])
                for (const p of [null, '::before', '::after']) {
                    const s = getComputedStyle(x, p);
                    if (p && s.content === 'none')
                        continue;
                    all.push(s.color, s.backgroundColor);
                }
            return all""", name)

    def screenshot(self, name):
        path = wsp.ARTEFACTS / f"{name}.png"
        assert self.driver.save_screenshot(str(path))
        assert path.stat().st_size > 5000, "an empty picture"


def chromium(language, size):
    home = tempfile.mkdtemp(prefix="wspchrome")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS + [f"--user-data-dir={home}", f"--lang={language}",
                         f"--accept-lang={language}", f"--window-size={size}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {
        "intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    driver = webdriver.Chrome(
        options=options,
        service=Service(shutil.which("chromedriver"),
                        log_path=str(wsp.ARTEFACTS / "chromedriver.log"),
                        env={**os.environ, "LANGUAGE": language}))
    driver.set_page_load_timeout(SLOW)
    driver.set_script_timeout(SLOW)
    return driver, home


def lent_chromium(language, size):
    """What a fixture does."""
    driver, home = chromium(language, size)
    yield driver
    driver.quit()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def english():
    yield from lent_chromium("en-US", "1200,900")


@pytest.fixture
def page(server, english):
    host, port = server.address(tls=True)
    english.get_log("browser")
    return Page(english).open(f"https://{host}:{port}/")


def green(colour):
    r, g, b = map(int, re.findall(r"\d+", colour)[:3])
    return g > r + 30 and g > b + 30


def shell(server, line):
    """A line for /bin/sh on the box, with wspush in its path."""
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, check=False,
        timeout=wsp.PATIENCE, env={
            **os.environ, "WSPUSH_SOCKET": server.path,
            "PATH": os.path.dirname(wsp.BINARY) + ":" + os.environ["PATH"]})
    assert done.returncode == 0, done


def test_the_story_connect_push_heartbeat_disconnect(server, page):
    host, port = server.address(tls=True)
    assert page.value("url") == f"wss://{host}:{port}/services/{MAIN}"
    assert not page.connected
    assert not any(map(green, page.colours("status")))
    page.connect()
    assert any(map(green, page.colours("status"))), page.colours("status")
    [row] = server.rows()
    assert row["state"] == "open"

    shell(server, "wspush send '*' 'Hello from the box'")
    page.sees("Hello from the box")
    shell(server, "echo 'Привет из оболочки' | wspush send '*'")
    page.sees("Привет из оболочки")

    page.fill("message", "$hbt")
    page.click("send")
    page.sees("$ok")
    journal = page.text("journal")
    assert journal.index("$hbt") < journal.index("$ok")
    assert len(re.findall(r"\d\d:\d\d:\d\d", journal)) >= 4, "times"

    page.screenshot("browser-story")
    page.disconnect()
    page.sees("1000")
    wsp.until(lambda: not server.rows(), "the socket to be gone")
    page.screenshot("browser-closed")


def test_the_page_loads_nothing_else_and_has_no_errors(server, page):
    page.connect()
    assert page.run("return performance.getEntriesByType('resource')"
                    ".map(e => e.name).filter(n => !n.startsWith('data:'))"
                    ) == []
    severe = [entry for entry in page.driver.get_log("browser")
              if entry["level"] == "SEVERE"]
    assert severe == []


def test_a_message_is_never_html(server, page):
    page.connect()
    evil = ("<b id=evil>html</b><img src=x onerror='window.evil=1'>"
            "<script>window.evil=2</script>")
    server.ok("send *", evil)
    page.sees(evil)
    server.ok("send kind=json *", '{"x":"%s"}' % evil.replace("id", "class"))
    page.sees("<b class=evil>html</b>")
    server.ok("close code=4000 *", "<i id=evil>")
    page.sees("<i id=evil>")
    page.sees("4000")
    assert page.run("return document.getElementById('evil') === null && "
                    "!document.querySelector('#journal img, #journal script, "
                    "#journal .evil') && window.evil === undefined")


def test_a_json_array_is_readable(server, page):
    page.connect()
    with wsp.Push(server.path, None) as sender, server.pause():
        sender.send("send kind=json *", '{"temp":21,"text":"Привет"}')
        sender.send("send kind=json *", '{"temp":22,"long":12345678901234567}')
    for part in ('"temp"', "21", "22", "Привет", "12345678901234567"):
        page.sees(part)
    journal = page.text("journal")
    assert '[{"temp":21,' not in journal, "it is shown as it came"
    # Not "22" alone: the time of day stands there, too.
    assert journal.index(": 21") < journal.index(": 22")


def test_a_binary_message_is_shown(server, page):
    page.connect()
    server.ok("send kind=binary *", b"\x00\xffABC")
    page.sees("00 ff 41 42 43")


def test_the_heartbeat_shows_the_round_trip_time(server, page):
    page.connect()
    page.run("const e = document.getElementById('hbt-interval');"
             "e.value = '1'; e.dispatchEvent(new Event('input'));"
             "e.dispatchEvent(new Event('change'))")
    page.click("hbt")
    wsp.until(lambda: re.search(r"\d", page.text("rtt")), "a time", SLOW)
    wsp.until(lambda: page.text("journal").count("$ok") >= 2,
              "two heartbeats", SLOW)
    page.click("hbt")
    assert page.connected


def test_the_journal_can_be_cleared(server, page):
    page.connect()
    server.ok("send *", "to be cleared")
    page.sees("to be cleared")
    page.click("clear")
    wsp.until(lambda: "to be cleared" not in page.text("journal"), "clear")
    server.ok("send *", "after it")
    page.sees("after it")


def test_a_stateful_id_and_a_subprotocol_are_asked_for(server, page):
    page.fill("protocols", "two, one")
    page.connect(server.url(True, "sub", "id:7"))
    [row] = server.rows()
    assert row["socketId"] == "/services/sub-s-id:7"
    server.ok("send $id:7", "for seven")
    page.sees("for seven")
    assert "two" in page.run("return document.body.innerText")


def test_an_end_by_the_server_is_shown_with_code_and_reason(server, page):
    page.connect()
    server.ok("close code=4321 *", "maintenance at noon")
    page.sees("4321")
    page.sees("maintenance at noon")
    wsp.until(lambda: not page.connected, "the badge to change")
    page.connect()
    server.ok("abort *")
    page.sees("1006")
    page.connect()
    server.ok("send *", "again")
    page.sees("again")


def test_a_second_tab_with_the_same_id_replaces_the_first(server, page):
    page.connect(server.url(True, MAIN, "7"))
    other = server.client(id="7", tls=True)
    page.sees("4001")
    page.sees("replaced")
    server.ok(f"send /services/{MAIN}-s-7", "to the other")
    assert other.receive() == "to the other"


def test_a_url_that_leads_nowhere_is_told_and_may_be_mended(server, page):
    page.fill("url", server.url(True, "absent"))
    page.click("connect")
    page.sees("1006")
    assert not page.connected
    page.connect(server.url(True))


def test_what_was_queued_for_a_browser_that_was_away_reaches_it(server, page):
    page.connect(server.url(True, MAIN, "back"))
    page.disconnect()
    socket_id = f"/services/{MAIN}-s-back"
    server.wait_state(socket_id, "away")
    for number in range(3):
        server.ok(f"send {socket_id}", f"while away {number}")
    page.connect()
    for number in range(3):
        page.sees(f"while away {number}")


def test_ten_thousand_messages_do_not_choke_the_page(server, page):
    page.connect()
    with wsp.Push(server.path, None) as sender:
        for number in range(10_000):
            sender.send("send *", f"message {number} of many")
    page.sees("message 9999 of many")
    assert page.connected


def test_in_russia_the_page_speaks_russian_and_fits_a_phone(server):
    driver, home = chromium("ru", "360,740")
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": 360, "height": 740, "deviceScaleFactor": 2,
            "mobile": True})
        host, port = server.address(tls=True)
        page = Page(driver).open(f"https://{host}:{port}/")
        assert page.run("return document.documentElement.lang") == "ru"
        for name in ("connect", "disconnect", "send", "clear"):
            label = page.text(name)
            assert re.search("[а-яё]", label) and not re.search(
                "(?!Ctrl|Enter)[A-Za-z]{3}", re.sub("Ctrl|Enter", "", label))
        page.connect()
        server.ok("send *", "Длинное сообщение " + "бездефиса" * 50)
        page.sees("Длинное сообщение")
        wide = page.run("return [document.scrollingElement.scrollWidth, "
                        "innerWidth, ...['url', 'connect', 'message', 'send',"
                        "'journal'].map(i => document.getElementById(i)"
                        ".getBoundingClientRect().right)]")
        assert wide[0] <= 360 and max(wide[2:]) <= 360, wide
        page.screenshot("browser-phone-ru")
    finally:
        driver.quit()
        shutil.rmtree(home, ignore_errors=True)


def test_in_english_the_labels_are_english(page):
    for name in ("connect", "disconnect", "send", "clear"):
        assert re.fullmatch(r"[ -~]+", page.text(name))
    assert page.run("return document.documentElement.lang") == "en"
