# SPDX-License-Identifier: MIT
"""A real Firefox, over wss with a self-signed certificate, driven by
WebDriver BiDi, which Firefox speaks itself (Debian has no geckodriver)."""
import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import tempfile

import pytest
import websockets

import wsp
from wsp import MAIN

SERVER = ["--service", MAIN]
SLOW = 6 * wsp.PATIENCE  # its first start on a busy machine

pytestmark = pytest.mark.skipif(not shutil.which("firefox-esr"),
                                reason="no firefox-esr here")

# Nothing is asked of anybody but the server under test.
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.aboutwelcome.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "captivedetect.canonicalURL": "",
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "intl.accept_languages": "en-US",
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.proxy.type": 0,
    "security.certerrors.mitm.priming.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One window of a new profile, and what a script in it answers."""

    def __init__(self):
        self.home = tempfile.mkdtemp(prefix="wspfirefox")
        with open(f"{self.home}/user.js", "w", encoding="ascii") as prefs:
            for name, value in PREFERENCES.items():
                value = ({True: "true", False: "false"}[value]
                         if isinstance(value, bool) else
                         value if isinstance(value, int) else f'"{value}"')
                prefs.write(f'user_pref("{name}", {value});\n')
        self.log = wsp.ARTEFACTS / "firefox.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [shutil.which("firefox-esr"), "--headless", "--no-remote",
                 "--profile", self.home, "--remote-debugging-port", "0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "HOME": self.home, "LC_ALL": "C.UTF-8",
                     "MOZ_CRASHREPORTER_DISABLE": "1"})
        self.loop = asyncio.new_event_loop()
        self.link = None
        self.number = 0
        try:
            self.link = self.wait(self.connect(self.address() + "/session"))
            self.ask("session.new", capabilities={
                "alwaysMatch": {"acceptInsecureCerts": True}})
            tree = self.ask("browsingContext.getTree")
            self.context = tree["contexts"][0]["context"]
        except BaseException:
            self.quit()
            raise

    def address(self):
        """Where it says that it listens."""
        said = re.compile(rb"WebDriver BiDi listening on (ws://\S+)")
        return wsp.until(lambda: said.search(self.log.read_bytes()),
                         "Firefox", SLOW)[1].decode()

    @staticmethod
    async def connect(url):
        return await websockets.connect(url, max_size=None, compression=None)

    def wait(self, what):
        async def inside():
            return await asyncio.wait_for(what, SLOW)
        return self.loop.run_until_complete(inside())

    def ask(self, method, **params):
        self.number += 1
        self.wait(self.link.send(json.dumps(
            {"id": self.number, "method": method, "params": params})))
        while True:
            answer = json.loads(self.wait(self.link.recv()))
            if answer.get("id") == self.number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def open(self, url):
        self.ask("browsingContext.navigate", context=self.context, url=url,
                 wait="complete")

    def run(self, script):
        """The value of an expression, as JSON knows it."""
        done = self.ask(
            "script.evaluate", expression=f"JSON.stringify({script})",
            target={"context": self.context}, awaitPromise=True)
        assert done["type"] == "success", done
        return json.loads(done["result"].get("value", "null"))

    def screenshot(self, name):
        done = self.ask("browsingContext.captureScreenshot",
                        context=self.context)
        path = wsp.ARTEFACTS / f"{name}.png"
        path.write_bytes(base64.b64decode(done["data"]))

    def quit(self):
        if self.link:
            self.wait(self.link.close())
        self.loop.close()
        self.process.terminate()
        try:
            self.process.wait(SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="module")
def firefox():
    browser = Firefox()
    yield browser
    browser.quit()


@pytest.fixture
def page(server, firefox):
    host, port = server.address(tls=True)
    firefox.open(f"https://{host}:{port}/")
    yield firefox
    firefox.open("about:blank")


def test_the_story_connect_push_heartbeat_wait_disconnect(server, page):
    def journal():
        return page.run("document.getElementById('journal').innerText")

    def click(name):
        page.run(f"document.getElementById('{name}').click()")

    def status():
        return page.run("document.getElementById('status').innerText")

    def sees(text):
        wsp.until(lambda: text in journal(), f"{text!r} in the journal", SLOW)

    click("connect")
    wsp.until(lambda: re.search(r"\bCONNECTED\b", status()), "a badge", SLOW)
    server.ok("send *", "Hello from the box, Привет")
    sees("Hello from the box, Привет")
    page.run("document.getElementById('message').value = '$hbt'")
    page.run("document.getElementById('message')"
             ".dispatchEvent(new Event('input'))")
    click("send")
    sees("$ok")
    done = subprocess.run([wsp.BINARY, "send", "-s", server.path, "-w", "20",
                           "*", "acknowledged"], capture_output=True,
                          check=False, timeout=SLOW)
    assert done.returncode == 0, done
    sees("acknowledged")
    page.screenshot("firefox-story")
    click("disconnect")
    sees("1000")
    wsp.until(lambda: not server.rows(), "the socket to be gone")


def test_what_a_reconnecting_page_misses_it_gets(server, page):
    page.run("""(() => {
        window.got = [];
        window.connections = 0;
        const connect = () => {
            const ws = new WebSocket('%s');
            ws.onopen = () => ++window.connections;
            ws.onmessage = e => window.got.push(Number(e.data));
            ws.onclose = () => setTimeout(connect, 5);
        };
        connect();
    })()""" % server.url(True, MAIN, "fox"))
    socket_id = f"/services/{MAIN}-s-fox"
    number = 0
    for cut in range(1, 11):
        wsp.until(lambda: page.run("window.connections") >= cut,
                  "the page", SLOW)
        for _ in range(5):
            number += 1
            server.ok(f"send {socket_id}", f"{number}")
        assert server.ok(f"abort {socket_id}").count == 1
    wsp.until(lambda: page.run("window.got.at(-1)") == number,
              "the last message", SLOW)
    got = page.run("window.got")
    assert set(got) == set(range(1, number + 1))
