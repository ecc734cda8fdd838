# SPDX-License-Identifier: MIT
"""What monitoring sees: /metrics in Prometheus' text format, on a listener
of its own, with the names that `stats` has."""
import json
import re
import shutil
import signal
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

import wsp
from wsp import MAIN, request

SERVER = ["--metrics", "127.0.0.1:0"]


def ask(server, path="/metrics", **options):
    """One answer of the metrics listener."""
    raw = wsp.Raw(server.metrics)
    raw.send(request(path, upgrade=options.pop("upgrade", False), **options))
    answer = raw.response()
    raw.close_socket()
    return answer


def scrape(server):
    """The text, and each name with its type and value."""
    text = ask(server).body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        [sample] = family.samples
        assert not sample.labels and family.documentation
        found[sample.name] = family.type, sample.value
    return text, found


def stats(server):
    lines = server.ok("stats").body.decode().splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


def test_the_answer_is_what_prometheus_asks_for(server):
    answer = ask(server, headers={"Accept-Encoding": "gzip"})
    assert answer.status == 200
    assert answer.get("Content-Type") == \
        "text/plain; version=0.0.4; charset=utf-8"
    assert int(answer.get("Content-Length")) == len(answer.body)
    assert ask(server, method="HEAD").body == b""
    assert ask(server, "/metrics?x=1").status == 200


def test_text_json_and_metrics_have_the_same_names(server):
    _, found = scrape(server)
    text = stats(server)
    assert list(text) == list(json.loads(server.ok("stats format=json").body))
    for name in text:
        assert (f"wspush_{name}" in found) != (f"wspush_{name}_total" in found)
    assert len(text) == len(found)


def test_what_only_grows_is_a_counter_and_the_rest_a_gauge(server):
    gauges = {"sockets_open", "sockets_away", "sockets_max", "store_bytes",
              "store_bytes_max", "cert_days", "uptime"}
    for name, (kind, _) in scrape(server)[1].items():
        is_gauge = name[len("wspush_"):] in gauges
        assert kind == ("gauge" if is_gauge else "counter"), name
        assert name.endswith("_total") != is_gauge, name


def test_every_metric_is_help_type_and_value_in_this_order(server):
    text, _ = scrape(server)
    lines = text.split("\n")
    assert lines.pop() == "" and len(lines) % 3 == 0
    seen = set()
    for help_, type_, value in zip(*[iter(lines)] * 3):
        name = re.fullmatch(r"# HELP (wspush_[a-z_]+) [A-Z][ -~]+\.",
                            help_)[1]
        assert re.fullmatch(rf"# TYPE {name} (counter|gauge)", type_)
        assert re.fullmatch(rf"{name} \d+", value)
        assert name not in seen
        seen.add(name)


def test_promtool_has_only_the_word_days_to_remark(server):
    """`cert_days` is the name that `stats` promises."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, "check", "metrics"],
                          input=scrape(server)[0], text=True,
                          capture_output=True, timeout=60, check=False)
    assert [line.split()[0] for line in
            (done.stdout + done.stderr).splitlines()] == ["wspush_cert_days"]


def test_the_values_are_those_of_now(server):
    before = scrape(server)[1]
    server.open("1")
    server.away("2")
    assert server.ok("send *", "x" * 1000).count == 2
    found = scrape(server)[1]

    def grew(name):
        return found[name][1] - before[name][1]
    assert grew("wspush_sockets_open") == 1
    assert grew("wspush_sockets_away") == 1
    assert grew("wspush_messages_taken_total") == 1
    assert found["wspush_store_bytes"][1] >= 1000
    text = stats(server)
    for name in ("connections", "delivered", "forgotten"):
        assert found[f"wspush_{name}_total"][1] == text[name]


def test_a_scrape_is_no_connection_of_a_client(server):
    before = stats(server)["connections"]
    for _ in range(3):
        scrape(server)
    assert stats(server)["connections"] == before


def test_this_port_has_two_pages_and_no_more(server):
    assert ask(server, "/healthz").body == b"ok\n"
    for path in ("/", "/metrics/", f"/services/{MAIN}"):
        assert ask(server, path).status == 404, path
        assert ask(server, path, upgrade=True).status == 404, path
    assert ask(server, upgrade=True).status == 404
    answer = ask(server, method="POST")
    assert answer.status == 405 and answer.get("Allow") == "GET, HEAD"
    assert server.rows() == []


def test_the_other_ports_have_no_metrics(server, tls):
    assert server.ask(request("/metrics", upgrade=False),
                      tls).status == 404


def test_those_who_say_half_a_request_keep_nobody_from_the_metrics(serve):
    server = serve(*SERVER, "--handshake-timeout", "2")
    held = [wsp.Raw(server.metrics) for _ in range(600)]
    for raw in held:
        raw.send(b"GET /metrics HTTP/1.1\r\n")
    client = server.open()
    assert scrape(server)[1]
    server.ok("send *", "hello")
    assert client.read_text() == "hello"
    for raw in held:
        raw.close_socket()


def test_without_tls_and_clients_it_serves_all_the_same(serve, tmp_path):
    server = serve("--listen-plain", "127.0.0.1:0", *SERVER, "--push",
                   tmp_path / "push.sock", listen=False)
    assert scrape(server)[1]["wspush_cert_days"][1] == 0


def test_with_it_alone_there_is_still_the_listener_for_clients():
    text = wsp.wspush("serve", "--metrics", "9", "--memory").stdout.decode()
    assert "TLS keys" in text


def test_a_bad_address_is_refused(tmp_path):
    status, lines = wsp.fails("--metrics", "127.0.0.1:x")
    assert status == 2 and "--metrics 127.0.0.1:x: it takes [ADDR:]PORT" in \
        lines[0]
    file = tmp_path / "conf"
    file.write_text("# monitoring\nmetrics here\n")
    status, [line] = wsp.fails("--config", file)
    assert status == 2 and f"{file}:2: metrics here: " in line


def test_a_reload_that_changes_it_names_it(serve, tmp_path):
    file = tmp_path / "conf"
    file.write_text("metrics 127.0.0.1:0\n")
    server = serve("--config", file)
    at = len(server.log)
    file.write_text("metrics 127.0.0.1:1\n")
    server.kick(signal.SIGHUP)
    server.wait_log("reloaded", at)
    named = [line for line in server.log[at:] if line and "option=" in line]
    assert len(named) == 1 and "option=--metrics " in named[0]
    assert scrape(server)
