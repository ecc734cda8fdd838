# SPDX-License-Identifier: MIT
"""Certificates: the one made at first start, one's own, `wspush cert`."""
import datetime
import ipaddress
import os
import resource
import socket
import ssl
import stat
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
import pytest

import wsp
from wsp import make_certificate, peer_certificate, wspush


def test_a_certificate_is_made_at_first_start_and_kept(tmp_path):
    with wsp.Server(directory=tmp_path) as server:
        first = peer_certificate(server.address(tls=True))
    assert stat.S_IMODE(os.stat(tmp_path / "key.pem").st_mode) == 0o600
    made = x509.load_pem_x509_certificate((tmp_path / "cert.pem").read_bytes())
    assert x509.load_der_x509_certificate(first) == made
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)
    assert made.public_key().curve.name == "secp256r1"
    names = made.extensions.get_extension_for_class(
        x509.SubjectAlternativeName).value
    assert {"localhost", socket.gethostname()} <= set(
        names.get_values_for_type(x509.DNSName))
    addresses = {str(a) for a in names.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "::1"} <= addresses
    life = made.not_valid_after - made.not_valid_before
    assert 824 <= life.days <= 826
    with wsp.Server(directory=tmp_path) as server:
        assert peer_certificate(server.address(tls=True)) == first


def test_a_disk_that_is_full_in_the_middle_of_a_file_is_called_full(tmp_path):
    (tmp_path / "cert.pem.new").write_text("of a power cut")
    result = subprocess.run(
        [wsp.BINARY, "cert", "--state", tmp_path], capture_output=True,
        text=True, timeout=wsp.PATIENCE, preexec_fn=lambda:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)))
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["key.pem"]


def test_the_made_certificate_satisfies_a_client_that_trusts_it(tmp_path):
    with wsp.Server(directory=tmp_path) as server:
        context = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        for name in ("localhost", "127.0.0.1"):
            with socket.create_connection(server.address(tls=True),
                                          wsp.PATIENCE) as plain:
                with context.wrap_socket(plain, server_hostname=name) as tls:
                    assert tls.version() == "TLSv1.2"
    done = subprocess.run(["openssl", "verify", "-CAfile",
                           tmp_path / "cert.pem", tmp_path / "cert.pem"],
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done


@pytest.mark.parametrize("form", ["PEM", "DER"])
@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_certificate_of_ones_own_may_be_of_either_kind_and_form(
        tmp_path, serve, kind, form):
    cert, key = make_certificate(tmp_path, kind=kind, form=form)
    server = serve("--cert", cert, "--key", key)
    server.open(tls=True).heartbeat()
    shown = x509.load_der_x509_certificate(
        peer_certificate(server.address(tls=True)))
    assert shown.subject.rfc4514_string() == "CN=test"
    assert 28 <= server.stats()["cert_days"] <= 30


# ----- wspush cert --------------------------------------------------------

def names_of(path):
    cert = x509.load_pem_x509_certificate(path.read_bytes())
    names = cert.extensions.get_extension_for_class(
        x509.SubjectAlternativeName).value
    return (cert, set(names.get_values_for_type(x509.DNSName)),
            set(names.get_values_for_type(x509.IPAddress)))


def test_cert_makes_one_for_the_names_and_days_given(tmp_path):
    done = wspush("cert", "-d", "100", "--state", str(tmp_path),
                  "router.example", "192.0.2.1", "2001:db8::1")
    assert done.returncode == 0, done
    cert, hosts, addresses = names_of(tmp_path / "cert.pem")
    assert "router.example" in hosts
    assert {ipaddress.ip_address("192.0.2.1"),
            ipaddress.ip_address("2001:db8::1")} <= addresses
    assert (cert.not_valid_after - cert.not_valid_before
            ) / datetime.timedelta(days=1) == pytest.approx(100, abs=1.1)
    assert stat.S_IMODE(os.stat(tmp_path / "key.pem").st_mode) == 0o600
    with wsp.Server(directory=tmp_path) as server:
        shown = peer_certificate(server.address(tls=True))
        assert x509.load_der_x509_certificate(shown) == cert


def test_cert_keeps_what_is_there_unless_forced(tmp_path):
    make = ["cert", "--state", str(tmp_path)]
    assert wspush(*make, "one.example").returncode == 0
    before = (tmp_path / "cert.pem").read_bytes(), (
        tmp_path / "key.pem").read_bytes()
    done = wspush(*make, "two.example")
    assert done.returncode == 1 and done.stderr, done
    assert before == ((tmp_path / "cert.pem").read_bytes(),
                      (tmp_path / "key.pem").read_bytes())
    assert wspush("cert", "-f", *make[1:], "two.example").returncode == 0
    assert "two.example" in names_of(tmp_path / "cert.pem")[1]
    assert before[1] != (tmp_path / "key.pem").read_bytes()


@pytest.mark.parametrize("args", [
    ("-d", "soon"), ("-d", "0"), ("-d",), ("-x",), ("bad name",),
    ("x" * 300,)])
def test_cert_used_wrongly_is_status_2_and_makes_nothing(tmp_path, args):
    done = wspush("cert", "--state", str(tmp_path), *args)
    assert done.returncode == 2, done
    assert done.stderr.strip()
    assert os.listdir(tmp_path) == []


def test_cert_says_that_state_lacks_its_value():
    done = wspush("cert", "--state")
    assert done.returncode == 2
    assert b"--state needs a value" in done.stderr


def test_cert_without_a_directory_it_may_write_is_status_1(tmp_path):
    (tmp_path / "file").touch()
    done = wspush("cert", "--state", str(tmp_path / "file" / "x"))
    assert done.returncode == 1
    assert str(tmp_path / "file").encode() in done.stderr
