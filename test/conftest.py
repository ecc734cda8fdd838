# SPDX-License-Identifier: MIT
"""Fixtures of the end-to-end tests.

`server` is one server for a whole file, made tidy between the tests; a file
names its options in SERVER.  `serve` starts servers for one test only.
WSPUSH names the binary (default build/wspush, made when missing),
WSPUSH_OPTIONS adds options to every server.
"""
import os
import resource
import signal
import subprocess
import sys

import pytest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import wsp  # noqa: E402

LONGEST = 120  # seconds that one test may take


def pytest_configure(config):
    config.addinivalue_line("python_files", "e2e_*.py")


def pytest_sessionstart(session):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wsp.ARTEFACTS.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="session", autouse=True)
def binary():
    if not os.path.exists(wsp.BINARY) and "WSPUSH" not in os.environ:
        subprocess.run(["make", "-C", wsp.ROOT], check=True)
    assert os.access(wsp.BINARY, os.X_OK), f"{wsp.BINARY} cannot be run"


@pytest.fixture(autouse=True)
def alarm(binary):
    """No test waits for ever, whatever it waits in."""
    def too_long(*_):
        raise TimeoutError(f"the test took over {LONGEST} s")
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Holder:
    """The server of a file; a test that killed it costs only itself."""

    def __init__(self, options):
        self.options = options
        self.server = None

    def get(self):
        if self.server and self.server.process.poll() is not None:
            self.server.kill()
            self.server = None
        if not self.server:
            self.server = wsp.Server(*self.options)
        return self.server


@pytest.fixture(scope="module")
def holder(request, binary):
    holder = Holder(getattr(request.module, "SERVER", []))
    yield holder
    if holder.server:
        holder.server.stop()


@pytest.fixture
def server(holder):
    server = holder.get()
    yield server
    try:
        server.tidy()
    except BaseException:
        server.kill()
        holder.server = None
        raise


@pytest.fixture
def serve(binary):
    """Starts servers with the options given; all must end well."""
    started = []

    def start(*options, **how):
        server = wsp.Server(*options, **how)
        started.append(server)
        return server
    yield start
    trouble = None
    for server in reversed(started):
        try:
            if server in wsp.Server.running:
                server.stop()
        except Exception as error:
            trouble = trouble or error
    if trouble:
        raise trouble


@pytest.fixture
def make_push():
    """Makes senders; they go with the test."""
    made = []

    def make(path, bind="auto"):
        made.append(wsp.Push(path, bind))
        return made[-1]
    yield make
    for each in made:
        each.close()


@pytest.fixture(params=["ws", "wss"])
def tls(request):
    """Runs the test over ws and over wss."""
    return request.param == "wss"


def pytest_make_parametrize_id(config, val, argname):
    """A parameter as it stands in a test's name: printable, and not long."""
    text = val if isinstance(val, str) else str(val)
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= 40 else text[:37] + "..."


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for server in wsp.Server.running:
            report.sections.append(("log of wspush", server.tail()))
