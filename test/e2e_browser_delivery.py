# SPDX-License-Identifier: MIT
"""A page in a real Chromium that counts, and whose connection is cut again
and again: nothing is missing, nothing out of order, and what is repeated is
repeated only after a cut.  The table is printed (pytest -s)."""
import os
import random
import subprocess

import pytest

from delivery import S, Waiting, settled
from e2e_browser import SLOW, lent_chromium
import wsp
from wsp import MAIN

CUTS = int(os.environ.get("WSPUSH_CUTS", "100"))
A_CUT = 20  # messages from one cut to the next
QUEUE = 500
SERVER = ["--service", MAIN, "--overflow", "refuse", "--queue-messages", QUEUE]

PAGE = """
    window.got = [];
    window.connections = 0;
    const connect = () => {
        const ws = new WebSocket(arguments[0]);
        let number = 0;
        ws.onopen = () => { number = ++window.connections; };
        ws.onmessage = e => window.got.push([number, Number(e.data)]);
        ws.onclose = () => setTimeout(connect, 5);
    };
    connect();
"""


@pytest.fixture(scope="module")
def browser():
    yield from lent_chromium("en-US", "800,600")


@pytest.fixture
def page(server, browser, tls):
    host, port = server.address(tls)
    browser.get(f"http{'s' * tls}://{host}:{port}/")
    yield browser
    browser.get("about:blank")


def is_open(server):
    row = server.row(f"{S}page")
    return row and row["state"] == "open"


def last_of(page):
    return page.execute_script(
        "return window.got.length ? window.got.at(-1)[1] : 0")


def send(server, number):
    wsp.until(lambda: not server.push(f"send {S}page", f"{number}").code,
              f"room for {number}", SLOW)


def test_a_page_whose_connection_is_cut_a_hundred_times_counts_on(
        server, page, tls):
    page.execute_script(PAGE, server.url(tls, MAIN, "page"))
    wsp.until(lambda: is_open(server), "the page", SLOW)
    chance = random.Random(100)
    number = 0
    for _ in range(CUTS):
        at = chance.randrange(A_CUT)
        for k in range(A_CUT):
            number += 1
            send(server, number)
            if k == at:
                wsp.until(lambda: is_open(server), "the page again", SLOW)
                assert server.ok(f"abort {S}page").count == 1
    wsp.until(lambda: last_of(page) == number, "the last message", SLOW)
    settled(server, f"{S}page")
    got = page.execute_script("return window.got")
    connections = page.execute_script("return window.connections")

    numbers = [n for _, n in got]
    missing = set(range(1, number + 1)) - set(numbers)
    duplicates = len(numbers) - len(set(numbers))
    disorder, seen, connection, last = 0, 0, 0, 0
    for where, n in got:
        disorder += n > seen + 1 if where != connection else n != last + 1
        connection, last, seen = where, n, max(seen, n)
    print(f"\nChromium, {'wss' if tls else 'ws'}: sent {number}  received "
          f"{len(numbers)}  missing {len(missing)}  duplicate {duplicates}  "
          f"out of order {disorder}  connections {connections}")
    assert not missing and disorder == 0
    assert connections >= CUTS
    assert duplicates <= QUEUE * (connections - 1)


def test_acked_means_that_the_browser_has_it(server, page, tls):
    """Also while the page's script is busy: the Pong is the browser's."""
    page.execute_script(PAGE, server.url(tls, MAIN, "page"))
    wsp.until(lambda: is_open(server), "the page", SLOW)
    with Waiting(server.path) as waiting:
        waiting.ok("send ack=30 *", "1")
        assert waiting.acked(SLOW) == (1, 1, None)
        page.execute_script("setTimeout(() => { const end = Date.now() + 1500;"
                            "while (Date.now() < end); }, 0)")
        waiting.ok("send ack=30 *", "2")
        assert waiting.acked(SLOW) == (1, 1, None)
    wsp.until(lambda: last_of(page) == 2, "both messages", SLOW)
    done = subprocess.run([wsp.BINARY, "send", "-s", server.path, "-w", "20",
                           "*", "3"], capture_output=True, check=False,
                          timeout=SLOW)
    assert done.returncode == 0, done
    assert page.execute_script("return window.got") == [[1, 1], [1, 2],
                                                        [1, 3]]
