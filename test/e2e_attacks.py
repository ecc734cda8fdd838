# SPDX-License-Identifier: MIT
"""What an attacker gets, one row each.  As a program it prints the table:

    python3 test/e2e_attacks.py
"""
import base64
import collections
import hashlib
import hmac
import os

import pytest

from e2e_allow import NOBODY, OTHER, ask_as
from e2e_hostile import HELLO
from e2e_limits import A, B, alive, crowd, show, show_at_once
import e2e_tokens as tokens
from e2e_tokens import bearer, es_token, token
import wsp
from wsp import BINARY_FRAME, MAIN, PING, TEXT, Closed, Gone, frame, request

PATH = f"/services/{MAIN}"
VICTIM = f"{PATH}?X-StatefulSocketId=victim"
LIMITED = "127.0.0.4"
SERVER = ["--token-key", tokens.key("secret"),
          "--token-key", tokens.key("public.pem"),
          "--push-mode", "0666", "--push-allow", NOBODY,
          "--handshake-timeout", "600"]


def say(answer):
    return f"HTTP {answer.status}"


def knock(server, target=PATH, **headers):
    """The answer to an upgrade with these header lines."""
    raw = server.raw()
    raw.send(request(target, headers={
        name.replace("_", "-"): value for name, value in headers.items()}))
    return say(raw.response())


def with_token(server, text, target=PATH):
    return knock(server, target, **bearer(text))


def inside(server, data):
    """What a client that is in gets for these bytes."""
    raw = server.open(headers=bearer(token()))
    raw.send(data)
    try:
        while True:
            raw.message()
    except Closed as close:
        return f"Close {close.code}"
    except Gone:
        return "cut"


def pushed(server, header, body=None):
    return f"error {server.push(header, body).code}"


def backwards():
    """ES256 in the header, and an HMAC with the public key behind it."""
    head = tokens.unsigned("ES256")[:-1]
    mac = hmac.new(tokens.read("public.pem"), head.encode(),
                   hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def denied(server):
    return ask_as(server, OTHER, OTHER, "send *").split(" ref=")[0][:12]


def behind_the_mode(server):
    os.chmod(server.path, 0o660)
    try:
        ask_as(server, OTHER, OTHER, "ping")
    except AssertionError as error:
        return "Permission denied" if "Permission" in str(error) else "?"
    finally:
        os.chmod(server.path, 0o666)
    return "an answer"


def ended_token(server):
    raw = server.open("victim", headers=bearer(token(sub="victim", exp=-58)))
    return f"Close {raw.closed()[0]}"


def takeover(server):
    """The victim is in; what the thief gets, and whether it stays so."""
    victim = server.open("victim", headers=bearer(token(sub="victim")))
    got = [knock(server, VICTIM), with_token(server, token(sub="thief"),
                                             VICTIM)]
    victim.heartbeat()
    return ", ".join(got) + "; the victim stays"


def silence(server):
    with crowd(server, 1000) as held:
        wsp.until(lambda: alive(held) <= 512, "the share of one host")
        other = show(server, token(), B)
        return f"{alive(held)} of 1000 held; another host: HTTP {other}"


def half_handshakes(server):
    with crowd(server, 20, HELLO, tls=True) as held:
        other = server.raw(True, source=B)
        other.upgrade(PATH, headers=bearer(token()))
        return f"{alive(held)} of 20 wait; another host: HTTP 101"


def forgeries(server):
    got = show_at_once(server, [token(b"f" * 32)] * 100, A)
    kinds = sorted(collections.Counter(got))
    assert 20 <= got.count(401) < 60, got
    return (f"HTTP {kinds[0]} some 20 times, then {kinds[1]}; "
            f"another host: HTTP {show(server, token(), B)}")


def too_many_of_one(server):
    with wsp.Server("--max-per-ip", "2") as small:
        with crowd(small, 2, source=LIMITED):
            wsp.until(lambda: small.stats()["connections"] == 2, "both")
            raw = small.raw(source=LIMITED)
            raw.send(request(PATH))
            raw.ends()
            return "closed without a word"


def long_id(server):
    return knock(server, f"{PATH}?X-StatefulSocketId={'x' * 129}")


ATTACKS = {
    "a page of another site, with the user's cookie": ("HTTP 403",
        lambda s: knock(s, Cookie=f"wspush_token={token()}",
                        Origin="https://evil.example")),
    "the same from a sandboxed frame (Origin: null)": ("HTTP 403",
        lambda s: knock(s, Cookie=f"wspush_token={token()}", Origin="null")),
    "the cookie without an Origin": ("HTTP 401",
        lambda s: knock(s, Cookie=f"wspush_token={token()}")),
    "a stolen id without a token, with a good one of another id": (
        "HTTP 401, HTTP 403; the victim stays", takeover),
    "an expired token": ("HTTP 401",
        lambda s: with_token(s, token(exp=-61))),
    "staying when the token's time is over": ("Close 4401", ended_token),
    "a token of a wrong secret": ("HTTP 401",
        lambda s: with_token(s, token(b"f" * 32))),
    "a token of a wrong EC key": ("HTTP 401",
        lambda s: with_token(s, token(tokens.read("other.pem"), "ES256"))),
    "alg:none": ("HTTP 401",
        lambda s: with_token(s, tokens.unsigned("none"))),
    "HS256 with the public key as its secret": ("HTTP 401",
        lambda s: with_token(s, tokens.confused())),
    "ES256 in the header, an HMAC behind it": ("HTTP 401",
        lambda s: with_token(s, backwards())),
    "claims of another token under a good signature": ("HTTP 401",
        lambda s: with_token(s, tokens.tampered())),
    "a good token for another service": ("HTTP 403",
        lambda s: with_token(s, es_token(services=["other"]))),
    "a foreign uid, let in by the mode, not by --push-allow": (
        "error denied", denied),
    "a foreign uid at mode 0660": ("Permission denied", behind_the_mode),
    "1000 silent connections of one host": (
        "512 of 1000 held; another host: HTTP 101", silence),
    "20 half TLS handshakes of one host": (
        "20 of 20 wait; another host: HTTP 101", half_handshakes),
    "100 forged tokens of one host": (
        "HTTP 401 some 20 times, then 503; another host: HTTP 101", forgeries),
    "one more than --max-per-ip": (
        "closed without a word", too_many_of_one),
    "a head over 8 KiB": ("HTTP 431", lambda s: knock(s, X="x" * 8192)),
    "65 header lines": ("HTTP 431",
        lambda s: knock(s, **{f"X{n}": "" for n in range(60)})),
    "an id of 129 bytes": ("HTTP 400", long_id),
    "an id that spells 17 tags": ("HTTP 400", lambda s: knock(
        s, f"{PATH}?X-StatefulSocketId=" + "::".join(
            f"t{n}:x" for n in range(17)))),
    "a token of 7,000 bytes": ("HTTP 401",
        lambda s: with_token(s, token(x="y" * 5000))),
    "a message over --max-inbound": ("Close 1009",
        lambda s: inside(s, frame(TEXT, "x" * 16385))),
    "a frame that declares 2^63 - 1 bytes": ("Close 1009",
        lambda s: inside(s, frame(TEXT, length=2 ** 63 - 1))),
    "a frame that declares 2^63 bytes": ("Close 1002",
        lambda s: inside(s, frame(TEXT, length=2 ** 63))),
    "fragments without end": ("Close 1009",
        lambda s: inside(s, frame(BINARY_FRAME, "x" * 4096, fin=0) + b"".join(
            frame(0, "x" * 4096, fin=0) for _ in range(5)))),
    "a Ping of 126 bytes": ("Close 1002",
        lambda s: inside(s, frame(PING, "x" * 126))),
    "a push over --max-message": ("error too-big",
        lambda s: pushed(s, "send *", "x" * 65537)),
    "a request line over 1,024 bytes": ("error bad-request",
        lambda s: pushed(s, "send " + "x" * 1020)),
    "a reason of 124 bytes": ("error too-big",
        lambda s: pushed(s, "close *", "x" * 124)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attacker_gets(server, attack):
    want, attempt = ATTACKS[attack]
    if "uid" in attack and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    assert attempt(server) == want


if __name__ == "__main__":
    with wsp.Server(*SERVER) as here:
        print("| attempt | what it got |\n| --- | --- |")
        for name, (_, attempt) in ATTACKS.items():
            print(f"| {name} | {attempt(here)} |", flush=True)
            here.tidy()
