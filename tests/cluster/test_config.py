"""How a node takes part in a mesh: what can be written there, and where it is reached."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import rabble
from rabble import KeyFileError, Mesh, NodeId, TlsConfig, rouse
from rabble.cluster.config import credentials_of, listen_as
from rabble.cluster.io.keys import new_node_key, write_key, write_node_key
from tests.support import KEY

TLS = TlsConfig("cert.pem", "key.pem", "ca.pem")


@pytest.mark.parametrize(
    ("mesh", "is_open"),
    [(Mesh(), True), (Mesh(key=KEY), False), (Mesh(key="a file"), False), (Mesh(tls=TLS), False)],
)
def test_a_mesh_is_open_to_all_that_has_neither_a_key_nor_certificates(
    mesh: Mesh, is_open: bool
) -> None:
    assert mesh.open_to_all is is_open


def test_a_key_is_itself_or_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key(path, KEY)
    assert Mesh(key=KEY).read_key() == Mesh(key=path).read_key() == KEY
    assert Mesh().read_key() is None
    assert Mesh(key=KEY).read_keys() == Mesh(key=path).read_keys() == (KEY,)
    assert Mesh().read_keys() == ()
    with pytest.raises(KeyFileError):
        Mesh(key=tmp_path / "none").read_key()


def test_a_node_may_have_a_key_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    write_node_key(path, key := new_node_key(KEY, "a", bytes))
    credentials = Mesh(key=path).read_credentials()
    assert (credentials.keys, credentials.node_key) == ((), key)
    assert Mesh(key=path).read_keys() == () and Mesh(key=path).read_key() is None
    assert str(key.coefficients[0]) not in repr(credentials)
    assert credentials_of(path, "a") == credentials
    assert credentials.ids == (key.fingerprint.hex()[:8],)
    with pytest.raises(KeyFileError, match="the key is that of the node 'a', and this one is 'b'"):
        credentials_of(path, "b")
    with pytest.raises(ValueError, match="the key is that of the node 'a'"):
        rouse("b@127.0.0.1:0", mesh=Mesh(key=path))


def test_a_mesh_does_not_show_its_key() -> None:
    assert KEY.hex() not in repr(Mesh(key=KEY)) and str(KEY) not in repr(Mesh(key=KEY))


def test_the_stream_on_loopback_is_authenticated_when_asked_and_with_a_key() -> None:
    assert not Mesh(key=KEY).authenticate_loopback
    assert Mesh(key=KEY, authenticate_loopback=True).authenticate_loopback
    assert Mesh(key=KEY, tls=TLS, authenticate_loopback=True).authenticate_loopback
    for mesh in ({}, {"tls": TLS}):
        with pytest.raises(ValueError, match="authenticate_loopback needs a key"):
            Mesh(**mesh, authenticate_loopback=True)
    with pytest.raises(
        TypeError, match="authenticate_loopback must be True or False, not the str 'yes'"
    ):
        Mesh(key=KEY, authenticate_loopback="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["nowhere", "::1:7000", "h:70000", ""])
def test_what_is_no_address_is_refused_before_a_node_is_roused(wrong: str) -> None:
    for mesh in ({"seeds": ["h:1", wrong]}, {"bind": wrong}):
        with pytest.raises(ValueError, match="is not usable"):
            Mesh(**mesh)  # type: ignore[arg-type]


def listening(own: str, mesh: Mesh) -> tuple[NodeId, int]:
    """The node's id, and the port at which it listens."""
    listeners: list[socket.socket] = []
    node = listen_as(NodeId.parse(own), mesh, listeners)
    [sock] = listeners
    with sock:
        return node, sock.getsockname()[1]


def test_port_0_is_replaced_by_the_port_that_the_node_got() -> None:
    node, port = listening("a@127.0.0.1:0", Mesh())
    assert port > 0
    assert node == NodeId("a", f"127.0.0.1:{port}")


def test_a_node_may_be_reached_at_another_address_than_it_listens_at() -> None:
    node, port = listening("a@somewhere.example:7000", Mesh(bind="127.0.0.1:0"))
    assert node == NodeId("a", "somewhere.example:7000")
    assert port != 7000


def test_of_two_that_listen_at_one_address_the_second_leaves_nothing_open() -> None:
    first: list[socket.socket] = []
    node = listen_as(NodeId.parse("a@127.0.0.1:0"), Mesh(), first)
    second: list[socket.socket] = []
    with first[0], pytest.raises(OSError, match="cannot listen on 127.0.0.1"):
        listen_as(node, Mesh(), second)
    assert all(sock.fileno() == -1 for sock in second)


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("0.0.0.0", "stands for all addresses"),
        ("[::]", "stands for all addresses"),
        ("[::0:0]", "stands for all addresses"),
        ("224.0.0.1", "is a multicast address"),
        ("[ff02::1]", "is a multicast address"),
        ("255.255.255.255", "is the broadcast address"),
    ],
)
@pytest.mark.parametrize("bind", [None, "127.0.0.1:0"])
def test_a_node_whose_address_nobody_can_connect_to_is_not_started(
    host: str, kind: str, bind: str | None
) -> None:
    with pytest.raises(ValueError, match=kind) as raised:
        rabble.rouse(f"a@{host}:0", mesh=Mesh(key=KEY, bind=bind))
    assert "bind" in str(raised.value)
