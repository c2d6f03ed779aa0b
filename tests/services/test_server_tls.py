"""TLS for clients: certificates, mutual ones, new files, and handshakes that stop half-way."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import rabble
from rabble import KeyFileError, Node
from rabble.services.server_limits import ServerLimits
from rabble.services.server_tls import ServerTls
from rabble.services.tcp_server import TcpServer
from tests.clients import Asking, Client, adding, connect
from tests.support import until


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


class Authority:
    """An authority, and the files of a server that it gave a certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.issue()

    def issue(self) -> None:
        """Give the server a new certificate, in place of the one that it has."""
        issued = self.ca.issue_cert("127.0.0.1")
        for path, blob in (
            (self.key, issued.private_key_pem),
            (self.cert, issued.cert_chain_pems[0]),
        ):
            new = path.with_suffix(".new")
            blob.write_to_path(str(new))
            new.chmod(0o600)
            os.replace(new, path)

    def tls(self, *, mutual: bool = False) -> ServerTls:
        return ServerTls(self.cert, self.key, self.ca_file if mutual else None)

    def connect(self, address: str, *, certified: bool = False) -> Client:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if certified:
            self.ca.issue_cert("client@example.org").configure_cert(context)
        return Client(sock=context.wrap_socket(connect(address), server_hostname="127.0.0.1"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_requests_over_tls(node: Node, authority: Authority) -> None:
    with adding(node, tls=authority.tls()) as server:
        with authority.connect(server.address) as one, authority.connect(server.address) as two:
            assert one.ask(1, 5) == [0, 1, 5]
            assert two.ask(1, 5) == [0, 1, 10]
            two.send([1, "x" * 300_000])
            assert two.receive() == [3, "x" * 300_000]
        until(lambda: server.status().connections == 0)


def test_the_goodbye_of_a_server_that_ends_comes_over_tls(node: Node, authority: Authority) -> None:
    with adding(node, tls=authority.tls()) as server:
        client = authority.connect(server.address)
        assert client.ask(1, 5) == [0, 1, 5]
        server.close()
        assert [frame[:2] for frame in client.rest()] == [[4, "drain"]]
        client.sock.close()


def test_a_client_without_a_certificate_is_not_let_in_where_one_is_wanted(
    node: Node, authority: Authority
) -> None:
    with adding(node, tls=authority.tls(mutual=True)) as server:
        with authority.connect(server.address, certified=True) as client:
            assert client.ask(1, 5) == [0, 1, 5]
        with authority.connect(server.address) as client, pytest.raises(ssl.SSLError):
            client.ask(1, 5)


def test_new_files_are_used_for_new_connections(node: Node, authority: Authority) -> None:
    limits = ServerLimits(credentials_refresh_ms=20)
    with adding(node, tls=authority.tls(), limits=limits) as server:

        def serial() -> object:
            with authority.connect(server.address) as client:
                assert isinstance(client.sock, ssl.SSLSocket)
                return (client.sock.getpeercert() or {})["serialNumber"]

        with authority.connect(server.address) as old:
            assert old.ask(1, 5) == [0, 1, 5]
            before = serial()
            authority.issue()
            until(lambda: serial() != before)
            # What was connected before goes on.
            assert old.ask(2, 5) == [0, 2, 10]


def test_files_that_cannot_be_used_are_said_and_the_former_stay(
    node: Node, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    limits = ServerLimits(credentials_refresh_ms=20)
    with adding(node, tls=authority.tls(), limits=limits) as server:
        authority.cert.write_text("no certificate")
        until(lambda: "stays that of before" in caplog.text)
        with authority.connect(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]


@pytest.mark.parametrize("what", ["cert", "key", "ca_file"])
def test_files_that_cannot_be_used_from_the_start(
    node: Node, authority: Authority, what: str
) -> None:
    path: Path = getattr(authority, what)
    path.write_text("nothing")
    with pytest.raises(KeyFileError):
        TcpServer(node, lambda: Asking(node.pid("x")), tls=authority.tls(mutual=True))
    path.unlink()
    with pytest.raises(KeyFileError):
        TcpServer(node, lambda: Asking(node.pid("x")), tls=authority.tls(mutual=True))


def test_a_key_that_others_may_read_is_refused(node: Node, authority: Authority) -> None:
    authority.key.chmod(0o644)
    with pytest.raises(KeyFileError, match="key.pem"):
        TcpServer(node, lambda: Asking(node.pid("x")), tls=authority.tls())


def test_handshakes_that_stop_half_way_are_dropped_by_the_clock_and_by_number(
    node: Node, authority: Authority
) -> None:
    limits = ServerLimits(handshakes_max=3, handshake_ms_max=60_000)
    with adding(node, tls=authority.tls(), limits=limits) as server:
        stuck = [connect(server.address) for _ in range(8)]
        for sock in stuck:
            sock.settimeout(30)
        # The oldest make room.
        assert [sock.recv(1) for sock in stuck[:5]] == [b""] * 5
        with authority.connect(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
        for sock in stuck:
            sock.close()
    limits = ServerLimits(handshake_ms_max=50)
    with adding(node, tls=authority.tls(), limits=limits, adder="two") as server:
        with connect(server.address) as sock:
            sock.settimeout(30)
            # The head of a record that never comes.
            sock.sendall(b"\x16\x03\x01\x02\x00")
            assert sock.recv(1) == b""


def test_who_speaks_no_tls_is_dropped(node: Node, authority: Authority) -> None:
    with adding(node, tls=authority.tls()) as server:
        with connect(server.address) as sock:
            sock.settimeout(30)
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while got := sock.recv(4_096):
                    received += got
            # At most an alert (RFC 8446, 6).
            assert len(received) <= 7
        with authority.connect(server.address) as client:
            assert client.ask(1, 5) == [0, 1, 5]
