"""Who is not let in by a node, who hears of it, and what its operator reads."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabble.cluster.io.tls import TlsConfig
from tests.cluster.io.test_tls import DAY, TODAY, Issuer
from tests.cluster.mesh import nothing_left, refused, rouse
from tests.faults.raw import KEY, dial
from tests.support import until


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def test_one_attempt_with_a_wrong_key_is_one_line_in_each_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    once = {"redial_refused_ms": 60_000}
    with caplog.at_level(logging.DEBUG, "rabble"):
        with rouse("a") as a, rouse("b", mesh={"key": bytes(31) + b"x"}, limits=once) as b:
            assert refused(b, a) == ({"AUTH"}, {"AUTH"})
            addr = a.node_id.addr
        # Both have ended: nothing is still to be written.
        assert b.cluster_status().refusals == a.cluster_status().refusals == {"AUTH": 1}
    said = [record for record in caplog.records if "AUTH" in record.getMessage()]
    lines = [record.getMessage() for record in said]
    assert len(lines) == 2, lines
    for start in (f"b: dialling {addr}: AUTH: ", "a: a connection from 127.0.0.1:"):
        (line,) = (line for line in lines if line.startswith(start))
        assert KEY.hex() not in line and repr(KEY) not in line
    assert {record.levelno for record in said} == {logging.WARNING}


# TLS.

#: Of a record of TLS with a handshake message: its head, and the beginning of a ClientHello.
CLIENT_HELLO = bytes.fromhex("1603010200 010001fc0303")


class Nameless(TlsConfig):
    """Shows no certificate to whom it dials."""

    def client_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.ca)
        return context


class Old(TlsConfig):
    """Speaks TLS 1.2 and nothing later."""

    def client_context(self) -> ssl.SSLContext:
        return old(super().client_context())

    def server_context(self) -> ssl.SSLContext:
        return old(super().server_context())


def old(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("refusals") / "ours")


#: What is wrong with one of the two nodes, and what is said of it where it is found out.
WRONG = {
    "other authority": "certificate verify failed",
    "expired": "certificate has expired",
    "no certificate": "did not return a certificate",
    "TLS 1.2": "unsupported protocol",
}


def wrong(what: str, issuer: Issuer, folder: Path) -> TlsConfig:
    right = issuer.node("wrong")
    match what:
        case "other authority":
            theirs = Issuer(folder / "theirs").node("wrong")
            # Even if it trusts ours.
            return TlsConfig(theirs.cert, theirs.key, right.ca)
        case "expired":
            return issuer.node("wrong", TODAY - DAY)
        case "no certificate":
            return Nameless(right.cert, right.key, right.ca)
    return Old(right.cert, right.key, right.ca)


@pytest.mark.parametrize(
    ("what", "dials"),
    # Who is dialled cannot do without a certificate.
    [(what, "wrong") for what in WRONG]
    + [(what, "right") for what in WRONG if what != "no certificate"],
)
def test_who_has_no_valid_certificate_is_refused_and_nobody_is_up(
    what: str, dials: str, issuer: Issuer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = wrong(what, issuer, tmp_path)
    # The time that a handshake may take is not what ends it.
    limits = {"handshake_ms": 60_000}
    times = 3
    with caplog.at_level(logging.WARNING, "rabble"):
        with rouse("wrong", mesh={"key": None, "tls": config}, limits=limits) as a:
            config = issuer.node("right")
            with rouse("right", mesh={"key": None, "tls": config}, limits=limits) as b:
                # The dialling node's TLS may be through before its certificate is looked at: it
                # is no more up than the other one, however often it dials.
                codes = refused(*((a, b) if dials == "wrong" else (b, a)), times)
    finds = "wrong" if what == "TLS 1.2" and dials == "right" else "right"
    # Who dials may hear no more than that the connection ended.
    assert "AUTH" in codes[0] | codes[1] <= {"AUTH", "TIMEOUT"}
    lines = [record.getMessage() for record in caplog.records]
    said = [line for line in lines if line.startswith(f"{finds}: ") and WRONG[what] in line]
    assert len(said) >= times, lines


@pytest.mark.parametrize("said", [b"", CLIENT_HELLO[:7]])
@pytest.mark.parametrize("how", ["closes", "resets"])
def test_who_closes_before_tls_is_done_is_no_handshake_that_took_too_long(
    how: str, said: bytes, issuer: Issuer
) -> None:
    """A probe does that, and a dial that gives way to another connection."""
    with rouse("a", mesh={"key": None, "tls": issuer.node("a")}) as a:
        with dial(a) as sock:
            sock.sendall(said)
            if how == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: a.cluster_status().refusals)
        assert a.cluster_status().refusals == {"CLOSED": 1}


def test_a_certificate_of_another_node_is_refused(issuer: Issuer) -> None:
    with rouse("a", mesh={"key": None, "tls": issuer.node("a")}) as a:
        with rouse("b", mesh={"key": None, "tls": issuer.node("c")}) as b:
            assert refused(b, a, times=3) == ({"NAME_MISMATCH"}, {"NAME_MISMATCH"})
