# SPDX-License-Identifier: MIT
"""Tokens: who comes in, as whom, with which tags, and for how long.

The tokens are made by PyJWT, Debian's python3-jwt, so that ours and those of
another library meet in every test.
"""
import base64
import json
import os
import re
import signal
import subprocess
import tempfile
import time

import jwt
import pytest

import wsp
from wsp import MAIN, fails, wspush

KEYS = tempfile.TemporaryDirectory(prefix="wspkeys")
SECRET = b"0123456789abcdef0123456789abcdef"
SERVICE = f"/services/{MAIN}"
SERVER = ["--token-key", f"{KEYS.name}/secret",
          "--token-key", f"{KEYS.name}/public.pem",
          "--service", MAIN, "--service", "other",
          "--service", "chat=main,protocol=chat"]


def key(name):
    return os.path.join(KEYS.name, name)


def openssl(*args):
    return subprocess.run(["openssl", *args], check=True, timeout=60,
                          capture_output=True).stdout


def read(name):
    with open(key(name), "rb") as file:
        return file.read()


def make_keys():
    with open(key("secret"), "wb") as file:
        file.write(SECRET + b"\n")
    for name, curve in (("sec1", "prime256v1"), ("other", "prime256v1"),
                        ("p384", "secp384r1")):
        openssl("ecparam", "-name", curve, "-genkey", "-out",
                key(f"{name}.pem"))
    openssl("pkey", "-in", key("sec1.pem"), "-out", key("private.pem"))
    openssl("pkey", "-in", key("sec1.pem"), "-pubout", "-out",
            key("public.pem"))
    openssl("req", "-x509", "-new", "-key", key("sec1.pem"), "-subj", "/CN=t",
            "-days", "30", "-out", key("cert.pem"))
    openssl("genrsa", "-out", key("rsa.pem"), "2048")
    openssl("pkey", "-in", key("private.pem"), "-aes128", "-passout",
            "pass:abcd", "-out", key("encrypted.pem"))
    openssl("pkey", "-in", key("sec1.pem"), "-pubout", "-outform", "DER",
            "-out", key("public.der"))
    openssl("genpkey", "-algorithm", "ed25519", "-out", key("ed25519.pem"))
    openssl("pkey", "-in", key("ed25519.pem"), "-pubout", "-outform", "DER",
            "-out", key("ed25519.der"))
    for name, end in (("line", b"\n"), ("lines", b"\n" * 3),
                      ("crlf", b"\r\n")):
        with open(key(f"{name}.der"), "wb") as file:
            file.write(read("public.der") + end)


make_keys()


def token(secret=SECRET, alg="HS256", exp=600, headers=None, **claims):
    """A token by PyJWT; `exp` in seconds from now, None for none."""
    if exp is not None:
        claims["exp"] = int(time.time()) + exp
    return jwt.encode(claims, secret, algorithm=alg, headers=headers)


def es_token(**claims):
    return token(read("private.pem"), "ES256", **claims)


def bearer(text):
    return {"Authorization": f"Bearer {text}"}


def refused(server, status, text, target=SERVICE, **options):
    """The upgrade is refused, with no more said than the status."""
    headers = {**bearer(text), **options.pop("headers", {})}
    raw = server.raw()
    answer = raw.upgrade(target, status, headers=headers, **options)
    raw.close_socket()
    assert answer.body.count(b"\n") == 1 and len(answer.body) < 80
    if status == 401:
        assert answer.get("WWW-Authenticate") == "Bearer"
    return answer


def entered(server, text, id=None, service=MAIN, **options):
    return server.open(id, service, headers=bearer(text), **options)


def tags_of(server, socket_id):
    return server.row(socket_id)["tags"]


# ----- where it stands ----------------------------------------------------

def test_without_a_token_nobody_comes_in(server):
    raw = server.raw()
    answer = raw.upgrade(SERVICE, 401)
    assert answer.get("WWW-Authenticate") == "Bearer"
    assert answer.body == b"a valid token is needed\n"
    server.wait_log(r"token peer=127\.0\.0\.1:\d+ service=\w+ status=401 "
                    r'why="there is none"')
    assert server.rows() == []


def test_pages_need_no_token(server):
    for target in ("/", "/healthz"):
        assert server.ask(wsp.request(target, upgrade=False)).status == 200


@pytest.mark.parametrize("make", [token, es_token])
def test_a_token_of_another_library_is_taken(server, tls, make):
    entered(server, make(), tls=tls)
    assert len(server.rows()) == 1


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_in_any_case(server, scheme):
    server.open(headers={"Authorization": f"{scheme} {token()}"})


@pytest.mark.parametrize("value", [
    "", "B", "Bearer", "Bearer ", "Bearer x", "Bearer {} {}", "Bearer,{}", "{}",
    "Basic dTpw"])
def test_a_header_that_is_not_bearer_and_a_token_is_none(server, value):
    raw = server.raw()
    raw.upgrade(SERVICE, 401, headers={
        "Authorization": value.replace("{}", token())})


def test_two_authorization_headers_are_refused(server):
    good = f"Bearer {token()}"
    server.raw().upgrade(SERVICE, 401, headers={"Authorization": [good, good]})


def test_a_token_as_a_subprotocol_is_answered_bearer(server):
    client = server.client(subprotocols=["bearer", token()])
    assert client.ws.subprotocol == "bearer"
    client.send("$hbt")
    assert client.receive() == "$ok"


def test_with_a_token_elsewhere_the_protocol_is_the_services(server):
    raw = server.open(service="chat", headers={
        **bearer(token()), "Sec-WebSocket-Protocol": "x, chat"})
    assert raw.answer.get("Sec-WebSocket-Protocol") == "chat"


def test_bearer_without_a_token_behind_it_is_refused(server):
    for value in ("bearer", "bearer,", f"{token()}, bearer", "bearer, chat"):
        server.raw().upgrade(SERVICE, 401, headers={
            "Sec-WebSocket-Protocol": value})


def test_a_cookie_needs_an_origin(server):
    cookie = {"Cookie": f"a=b; wspush_token={token()}"}
    server.open(headers={**cookie, "Origin": "http://localhost"})
    server.raw().upgrade(SERVICE, 401, headers=cookie)
    server.wait_log('why="it is in a cookie, and there is no Origin"')
    server.raw().upgrade(SERVICE, 403, headers={
        **cookie, "Origin": "http://evil.example"})


def test_a_referer_is_no_origin_and_another_cookie_no_token(server):
    """Mercure takes either; a page that wants in sends an Origin."""
    good = token()
    server.raw().upgrade(SERVICE, 401, headers={
        "Cookie": f"wspush_token={good}", "Referer": "http://localhost/"})
    for name in ("token", "mercureAuthorization", "Wspush_token", "xwspush_token"):
        server.raw().upgrade(SERVICE, 401, headers={
            "Cookie": f"{name}={good}", "Origin": "http://localhost"})


def test_the_last_place_decides(server):
    good, bad = token(), token(b"x" * 32)
    origin = {"Origin": "http://localhost"}
    cases = [({"Cookie": good, "Sec-WebSocket-Protocol": bad}, 401),
             ({"Cookie": bad, "Sec-WebSocket-Protocol": good}, 101),
             ({"Sec-WebSocket-Protocol": good, "Authorization": bad}, 401),
             ({"Cookie": bad, "Authorization": good}, 101)]
    form = {"Cookie": "wspush_token={}", "Authorization": "Bearer {}",
            "Sec-WebSocket-Protocol": "bearer, {}"}
    for case, status in cases:
        server.raw().upgrade(SERVICE, status, headers={
            **origin, **{k: form[k].format(v) for k, v in case.items()}})


def test_a_token_in_the_url_is_taken_only_when_allowed(server, serve):
    target = f"{SERVICE}?token={token()}"
    server.raw().upgrade(target, 401)
    open_one = serve("--token-key", key("secret"), "--token-in-url")
    open_one.raw().upgrade(target)
    open_one.raw().upgrade(f"{target}&token=x", 401)


# ----- what is refused ----------------------------------------------------

def unsigned(alg, **claims):
    def part(value):
        return base64.urlsafe_b64encode(
            json.dumps(value).encode()).rstrip(b"=").decode()
    claims.setdefault("exp", int(time.time()) + 600)
    return f"{part({'alg': alg, 'typ': 'JWT'})}.{part(claims)}."


def confused():
    """An HS256 token whose secret is the public key, which all know."""
    import hashlib
    import hmac
    head = unsigned("HS256")[:-1]
    mac = hmac.new(read("public.pem"), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def tampered():
    head, claims, signature = token(sub="u1").split(".")
    other = token(sub="*").split(".")[1]
    return f"{head}.{other}.{signature}"


USELESS = {
    "alg none": lambda: unsigned("none"),
    "alg None": lambda: unsigned("None"),
    "no signature": lambda: unsigned("HS256"),
    "HS256 with the public key": confused,
    "another secret": lambda: token(b"f" * 32),
    "another key": lambda: token(read("other.pem"), "ES256"),
    "HS512": lambda: token(SECRET * 2, "HS512"),
    "ES384": lambda: token(read("p384.pem"), "ES384"),
    "RS256": lambda: token(read("rsa.pem"), "RS256"),
    "claims of another": tampered,
    "expired": lambda: token(exp=-61),
    "no exp": lambda: token(exp=None),
    "exp as text": lambda: jwt.api_jws.encode(
        b'{"exp":"1900000000"}', SECRET, algorithm="HS256"),
    "not yet": lambda: token(nbf=int(time.time()) + 600),
    "crit": lambda: token(headers={"crit": ["x"], "x": 1}),
    "not JSON": lambda: jwt.api_jws.encode(b"{", SECRET, algorithm="HS256"),
    "sub a number": lambda: jwt.api_jws.encode(
        b'{"exp":1900000000000,"sub":1}', SECRET, algorithm="HS256"),
    "services a string": lambda: token(services=MAIN),
    "a bad tag": lambda: token(tags={"a": 1}),
    "a control character in a tag": lambda: token(tags={"a": "b\n"}),
    "the tag service": lambda: token(tags={"service": "x"}),
    "17 tags": lambda: token(tags={f"t{i}": "" for i in range(17)}),
    "cut": lambda: token()[:-1],
    "padded": lambda: token() + "=",
    "empty": lambda: "..",
    "too long": lambda: token(x="y" * 4600),
}


@pytest.mark.parametrize("what", USELESS)
def test_a_useless_token_is_401(server, what):
    text = USELESS[what]()
    refused(server, 401, text)
    assert server.rows() == []
    server.wait_log("status=401 why=")
    assert len(text) < 5 or not any(text in line for line in server.log)


def test_a_token_is_for_its_services(server):
    refused(server, 403, token(services=["other"]))
    refused(server, 403, token(services=[]))
    entered(server, token(services=["other", MAIN]))
    entered(server, es_token(services=["other"]), service="other")


def test_what_other_servers_put_into_claims_means_nothing(server):
    entered(server, token(iss="x", iat=1, jti="1", info={"a": [1]},
                          mercure={"publish": ["*"]}))
    refused(server, 403, token(sub="u1\n"), f"{SERVICE}?X-StatefulSocketId=u1")


def test_a_key_of_the_other_algorithm_alone_takes_none_of_it(serve):
    for name, good, bad in (("secret", token, es_token),
                            ("public.pem", es_token, token)):
        server = serve("--token-key", key(name))
        entered(server, good())
        refused(server, 401, bad())


def test_a_token_is_for_its_id(server):
    query = "?X-StatefulSocketId="
    refused(server, 403, token(sub="u1"), f"{SERVICE}{query}u2")
    refused(server, 403, token(sub="u1*"), f"{SERVICE}{query}u2")
    refused(server, 403, token(), f"{SERVICE}{query}u1")
    entered(server, token(sub="u1"), "u1")
    entered(server, token(sub="u3-*"), "u3-tab2")
    entered(server, token(sub="u3-*"), "u3-")
    entered(server, token(sub="\u00e9t\u00e9"), "%C3%A9t%C3%A9")
    entered(server, token(sub="u1"))
    assert len(server.rows()) == 5


def test_a_stolen_id_without_its_token_takes_nothing_over(server):
    victim = entered(server, token(sub="victim"), "victim")
    target = f"{SERVICE}?X-StatefulSocketId=victim"
    server.raw().upgrade(target, 401)
    refused(server, 401, token(b"f" * 32, sub="victim"), target)
    refused(server, 403, token(sub="thief"), target)
    server.ok("send $service", "for the victim")
    assert victim.read_text() == "for the victim"


def test_the_audience_counts_when_it_is_configured(serve):
    server = serve("--token-key", key("secret"), "--token-audience", "router")
    entered(server, token(aud="router"))
    entered(server, token(aud=["x", "router"]))
    for claims in ({}, {"aud": "x"}, {"aud": []}, {"aud": "router2"}):
        refused(server, 401, token(**claims))
    minted = wspush("token", "-k", key("secret"), "-a", "router")
    entered(server, minted.stdout.decode().strip())


def test_checks_come_in_their_order(serve):
    server = serve("--token-key", key("secret"), "--duplicate", "reject")
    ask = server.raw
    ask().upgrade("/services/none", 404)
    ask().upgrade(SERVICE, 405, method="POST")
    ask().upgrade(SERVICE, 426, headers={"Sec-WebSocket-Version": "12"})
    ask().upgrade(f"{SERVICE}?X-StatefulSocketId=%zz", 400)
    ask().upgrade(SERVICE, 403, headers={"Origin": "http://evil.example"})
    entered(server, token(sub="u1"), "u1")
    target = f"{SERVICE}?X-StatefulSocketId=u1"
    ask().upgrade(target, 401)
    refused(server, 403, token(), target)
    raw = server.raw()
    raw.upgrade(target, 409, headers=bearer(token(sub="u1")))


def test_with_a_wrong_clock_nobody_comes_in(serve, tmp_path):
    binary = tmp_path / "wspush"
    subprocess.run(["gcc", "-O0", "-w", "-DWSP_BUILD_DATE=4000000000", "-o",
                    binary, wsp.ROOT / "wspush.c", "-lbearssl"], check=True,
                   timeout=100)
    server = serve("--token-key", key("secret"), binary=str(binary))
    raw = server.raw()
    answer = raw.upgrade(SERVICE, 503, headers=bearer(token()))
    assert answer.get("Retry-After")
    server.wait_log(r"warn token .* status=503 why=\"the clock is before")
    done = subprocess.run([binary, "token", "-k", key("secret")], timeout=10,
                          capture_output=True, check=False)
    assert done.returncode == 1 and b"clock" in done.stderr


# ----- tags ---------------------------------------------------------------

def test_tags_of_the_token_select(server):
    raw = entered(server, token(sub="u1", tags={"group": "g1", "\u00e9": ""}),
                  "u1")
    entered(server, es_token(tags={"group": "g2"}))
    assert server.ok("send $group:g1", "one").count == 1
    assert raw.read_text() == "one"
    assert tags_of(server, f"{SERVICE}-s-u1") == {
        "service": MAIN, "group": "g1", "\u00e9": ""}


def test_tags_of_the_token_beat_the_ids_and_nobody_changes_them(server):
    id, socket_id = "id:1::role:admin", f"{SERVICE}-s-id:1::role:admin"
    entered(server, token(sub=id, tags={"role": "guest"}), id)
    assert tags_of(server, socket_id)["role"] == "guest"
    assert tags_of(server, socket_id)["id"] == "1"
    server.refused("bad-tag", f"tag {socket_id}", "role:admin")
    server.refused("bad-tag", f"tag {socket_id}", "-role")
    assert server.ok("send $role:admin", "x").count == 0


def test_the_next_tokens_tags_take_the_place_of_the_last_ones(server):
    socket_id = f"{SERVICE}-s-u1"
    entered(server, token(sub="u1", tags={"a": "1", "b": "2"}), "u1")
    server.ok(f"tag {socket_id}", "pushed:yes")
    entered(server, token(sub="u1", tags={"b": "3", "c": "4"}), "u1")
    assert tags_of(server, socket_id) == {
        "service": MAIN, "b": "3", "c": "4", "pushed": "yes"}
    entered(server, token(sub="u1"), "u1")
    assert tags_of(server, socket_id) == {"service": MAIN, "pushed": "yes"}


def test_where_there_is_no_room_weaker_tags_give_way(server):
    socket_id = f"{SERVICE}-s-id:1"
    entered(server, token(sub="id:1"), "id:1")
    server.ok(f"tag {socket_id}", "\n".join(f"p{i}:" for i in range(15)))
    entered(server, token(sub="id:1", tags={"t1": "", "t2": ""}), "id:1")
    tags = tags_of(server, socket_id)
    assert len(tags) == 17  # with `service`
    assert {"id", "t1", "t2", "service"} <= set(tags)


def test_id_and_token_together_have_sixteen_tags_at_most(server):
    many = {f"t{i}": "" for i in range(16)}
    refused(server, 403, token(sub="*", tags=many),
            f"{SERVICE}?X-StatefulSocketId=id:1")
    entered(server, token(sub="*", tags={**many}), "t0:1")
    assert tags_of(server, f"{SERVICE}-s-t0:1")["t0"] == ""


def test_a_retained_value_goes_to_who_begins_to_match_by_token(server):
    def comes(**claims):
        return server.client("u1", extra_headers=bearer(token(**claims)))

    server.ok("send retain=1 $group:g1", "kept")
    try:
        comes(sub="u1")
        client = comes(sub="u1", tags={"group": "g1"})
        assert client.receive() == "kept"
        wsp.until(lambda: server.row(f"{SERVICE}-s-u1")["messages"] == 0,
                  "the acknowledgement")
        client = comes(sub="u1", tags={"group": "g1"})
        server.ok("send $service", "not again")
        assert client.receive() == "not again"
    finally:
        server.ok("send retain=1 $group:g1", "")


# ----- the end ------------------------------------------------------------

def test_a_connection_ends_with_its_token_and_the_session_stays(server, tls):
    long = entered(server, token(), tls=tls)
    short = entered(server, token(sub="u1", exp=-58), "u1", tls=tls)
    assert short.closed() == (4401, "token expired")
    server.wait_state(f"{SERVICE}-s-u1", "away")
    server.ok("send $service", "queued")
    assert long.read_text() == "queued"
    again = entered(server, token(sub="u1"), "u1", tls=tls)
    assert again.read_text() == "queued"


def test_the_earlier_end_counts_whoever_came_first(server):
    later = entered(server, token(exp=-57))
    sooner = entered(server, token(exp=-58))
    assert sooner.closed()[0] == 4401
    assert later.closed()[0] == 4401


def test_a_token_for_ever_is_no_trouble(server):
    forever = jwt.api_jws.encode(b'{"exp":1000000000000000}', SECRET,
                                 algorithm="HS256")
    raw = entered(server, forever)
    raw.heartbeat()


# ----- keys ---------------------------------------------------------------

def reloaded(server, pattern="info reloaded"):
    after = len(server.log)
    server.kick(signal.SIGHUP)
    return server.wait_log(pattern, after)


def test_keys_are_rotated_by_a_reload_and_connections_stay(serve, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    server = serve("--token-key", path)
    stays = entered(server, token())
    path.write_bytes(read("cert.pem"))
    reloaded(server)
    refused(server, 401, token())
    entered(server, es_token())
    for bad in (b"too short", read("rsa.pem"), read("cert.pem")[:300]):
        path.write_bytes(bad)
        line = reloaded(server, "error reload ")
        assert str(path) in line
        entered(server, es_token())
        refused(server, 401, token())
    path.unlink()
    assert "No such file" in reloaded(server, "error reload ")
    entered(server, es_token())
    stays.heartbeat()


def test_the_settings_file_may_change_the_list_of_keys(serve, tmp_path):
    config = tmp_path / "conf"
    config.write_text(f"token-key {key('secret')}\n")
    server = serve("--config", config)
    refused(server, 401, es_token())
    config.write_text(f"token-key {key('secret')}\n"
                      f"token-key {key('public.pem')}\ntoken-in-url\n")
    reloaded(server, "option=--token-in-url .*restart")
    entered(server, es_token())
    entered(server, token())


@pytest.mark.parametrize("name, words", [
    ("rsa.pem", "P-256"), ("p384.pem", "P-256"), ("encrypted.pem", "encrypt"),
    ("public.der", "PEM"), ("line.der", "PEM"), ("lines.der", "PEM"),
    ("crlf.der", "PEM"), ("ed25519.der", "PEM"),
    ("absent", "No such file"), ("jwk", "PEM"), ("short", "32 bytes"),
    ("empty", "empty"), ("cut.pem", "cut short"), ("params.pem", "no key")])
def test_a_key_file_of_no_use_is_named(name, words, tmp_path):
    made = {"jwk": json.dumps({"kty": "EC", "crv": "P-256", "x": "a" * 43}),
            "short": "x" * 31 + "\n", "empty": "",
            "cut.pem": read("public.pem").decode()[:120],
            "params.pem": openssl("ecparam", "-name", "prime256v1").decode()}
    path = key(name)
    if name in made:
        path = tmp_path / name
        path.write_text(made[name])
    done = wspush("token", "-k", str(path))
    assert done.returncode == 1 and done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert str(path) in done.stderr.decode() and words in done.stderr.decode()
    common = ["--listen-plain", "127.0.0.1:0", "--push", tmp_path / "p",
              "--token-key", path]
    for status, more in ((1, []), (2, ["--check"])):
        code, lines = fails(*common, *more)
        assert code == status and len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize("text, secret", [
    (SECRET, SECRET), (SECRET + b"\n", SECRET), (SECRET + b"\r\n", SECRET),
    (SECRET + b"\n\n", SECRET + b"\n"), (SECRET + b"\r", SECRET + b"\r"),
    (bytes(40), bytes(40)), (bytes(range(200)), bytes(range(200))),
    (b"0V" + 86 * b"a" + b"\n", b"0V" + 86 * b"a"),  # like DER
    (b"0W" + 86 * b"a" + b"\n", b"0W" + 86 * b"a")])
def test_a_secret_is_its_bytes_less_one_line_end(tmp_path, text, secret):
    path = tmp_path / "secret"
    path.write_bytes(text)
    made = wspush("token", "-k", str(path)).stdout.decode().strip()
    jwt.decode(made, secret, algorithms=["HS256"])


# ----- wspush token -------------------------------------------------------

@pytest.mark.parametrize("private, public, alg", [
    ("secret", "secret", "HS256"), ("private.pem", "public.pem", "ES256"),
    ("sec1.pem", "public.pem", "ES256")])
def test_what_we_mint_another_library_takes(private, public, alg):
    made = wspush("token", "-k", key(private), "-e", "100", "-s", MAIN, "-s",
                  "x", "-t", "group:g1", "-t", "e:", "-a", "aud", "u17-*")
    assert made.returncode == 0 and made.stderr == b""
    assert re.fullmatch(rb"[\w.-]+\n", made.stdout)
    secret = SECRET if public == "secret" else read(public)
    claims = jwt.decode(made.stdout.decode().strip(), secret,
                        algorithms=[alg], audience="aud")
    left = claims.pop("exp") - time.time()
    assert 0 < left <= 100
    assert claims == {"sub": "u17-*", "services": [MAIN, "x"], "aud": "aud",
                      "tags": {"group": "g1", "e": ""}}


def test_what_we_mint_the_server_takes(server):
    for private in ("secret", "private.pem"):
        made = wspush("token", "-k", key(private), "-t", "a:b", "u1")
        entered(server, made.stdout.decode().strip(), "u1")
        assert tags_of(server, f"{SERVICE}-s-u1")["a"] == "b"


@pytest.mark.parametrize("checker", ["private.pem", "sec1.pem", "public.pem",
                                     "cert.pem"])
def test_every_form_of_the_key_checks(checker):
    done = wspush("token", "-c", "-k", key(checker),
                  stdin=es_token(sub="u1").encode() + b"\r\n")
    assert done.returncode == 0
    assert json.loads(done.stdout)["sub"] == "u1"


def test_a_key_file_may_hold_more_than_the_key(tmp_path):
    path = tmp_path / "all.pem"
    text = b"a comment\r\n" + openssl("ecparam", "-name", "prime256v1") + \
        read("cert.pem") + read("private.pem")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n").strip())
    made = wspush("token", "-k", str(path))
    assert made.returncode == 0, made.stderr
    jwt.decode(made.stdout.decode().strip(), read("public.pem"),
               algorithms=["ES256"])


def test_the_reason_why_a_token_is_useless_is_told():
    for text, words in ((token(exp=-100), "expired"), (b"x".decode(), "dots"),
                        (token(b"f" * 32), "signature"), ("", "dots"),
                        ("x" * 9999, "too long")):
        done = wspush("token", "-c", "-k", key("secret"), stdin=text.encode())
        assert done.returncode == 1 and done.stdout == b""
        assert words in done.stderr.decode()


@pytest.mark.parametrize("args", [
    [], ["u1"], ["-k"], ["-k", "K", "a", "b"], ["-x", "-k", "K"],
    ["-k", "K", "-e", "0"], ["-k", "K", "-e", "x"], ["-k", "K", "-s", "a/b"],
    ["-k", "K", "-t", "a"], ["-k", "K", "-t", "service:x"],
    ["-k", "K", "-t", "-a"], ["-k", "K", "a b"], ["-k", "K", ""],
    ["-k", "K", "x" * 129], ["-k", "K", "-a", ""], ["-c", "-k", "K", "u1"],
    ["-c", "-k", "K", "-s", MAIN], ["-k", "K"] + ["-t", "a:b"] * 17])
def test_wrong_usage_is_said_so(args):
    args = [key("secret") if a == "K" else a for a in args]
    done = wspush("token", *args)
    assert done.returncode == 2 and done.stdout == b""
    assert b"usage: wspush token" in done.stderr


def test_a_public_key_cannot_mint():
    done = wspush("token", "-k", key("public.pem"))
    assert done.returncode == 1 and b"public" in done.stderr
