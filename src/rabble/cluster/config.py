"""How a node takes part in a mesh."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import secrets
import socket
from collections.abc import Collection, Sequence

from rabble._core.ids import NodeId
from rabble._core.texts import given, type_name
from rabble.addresses import split_address
from rabble.cluster.decide.handshake_config import check_cluster, check_key, check_labels
from rabble.cluster.decide.node_keys import NodeKey
from rabble.cluster.io.keys import ID_BYTES, key_id, read_key_file
from rabble.cluster.io.listener import open_listeners
from rabble.cluster.io.tls import TlsConfig
from rabble.errors import KeyFileError

__all__ = ["Credentials", "Mesh", "credentials_of", "guest_id", "listen", "listen_as"]

BROADCAST = ipaddress.ip_address("255.255.255.255")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """What a node needs to reach others and be reached.

    Without `key` and `tls` anybody who can connect is a member, so then only loopback addresses are
    listened on and dialled.

    :param cluster: its name; nodes of another one are refused. At most 64 bytes of UTF-8.
    :param key: the 32 bytes that all nodes share, or the path of the file that holds them
        (`rabble keygen FILE`). It proves who is a member, and that what arrives between two
        machines is what a member sent; it hides nothing that is said. A file may hold two, a line
        each: this node proves itself with the first, and accepts both. Or the path of the file of
        this node's own key (`rabble keygen --node NAME --from FILE`): then each node of the mesh
        has one, with which it can be no other node, and which can be banned. A file is read again
        when it changes, for new connections.
    :param tls: certificates, for all three: proof, integrity and secrecy. The files are read again
        when they change, for new connections.
    :param authenticate_loopback: with a key and without TLS, authenticate what is said over
        127.0.0.1 and ::1, too: where somebody else on this machine forwards it, as a tunnel does.
    :param bind: `host:port` to listen on, if it is not the node's own address.
    :param seeds: addresses `host:port` of nodes to join. Of a host name with several addresses all
        are joined, now and whenever they change.
    :param seed_file: a file with one such address a line, which is read again when it changes.
    :param labels: what this node is for, say: other nodes are told by `NodeUp`. Each is as the name
        of a process may be; all together, each with one byte more, take at most 255 bytes.
    :param guest: it is no member, but a guest: it connects to all members and can send, call, be
        called and watch as they can; it listens nowhere, has no names, is in no groups, does not
        reach other guests, and nobody remembers it when it has gone.
    :raises TypeError: if an argument is of another type.
    :raises ValueError: says what cannot be used. Neither ever shows the key.
    """

    cluster: str = ""
    key: bytes | str | os.PathLike[str] | None = dataclasses.field(default=None, repr=False)
    tls: TlsConfig | None = None
    bind: str | None = None
    seeds: Sequence[str] = ()
    seed_file: str | os.PathLike[str] | None = None
    authenticate_loopback: bool = False
    labels: Collection[str] = ()
    guest: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for addr in (*self.seeds, *(() if self.bind is None else (self.bind,))):
            split_address(addr)
        check_cluster(self.cluster)
        check_labels(self.labels)
        if isinstance(self.key, bytes):
            check_key(self.key)

        if self.guest and self.bind is not None:
            raise ValueError("Mesh: a guest listens nowhere: leave bind out, or guest=True")
        if self.authenticate_loopback and self.key is None:
            raise ValueError(
                "Mesh: authenticate_loopback needs a key, of which that of each stream is made: "
                "give key=..., or leave it out (TLS authenticates its streams by itself)"
            )

    @property
    def open_to_all(self) -> bool:
        """Whether nothing proves who is a member."""
        return self.key is None and self.tls is None

    def read_key(self) -> bytes | None:
        """The 32 bytes, read from their file if need be. For any thread.

        :returns: the key that all nodes share and this one proves itself with; `None` for a mesh
            without one.
        :raises KeyFileError: if the file cannot be used.
        """
        return next(iter(self.read_keys()), None)

    def read_keys(self) -> tuple[bytes, ...]:
        """The same, and the other key that is accepted if the file holds two. For any thread.

        :returns: nothing for a mesh without a key, or in which each node has one of its own.
        :raises KeyFileError: if the file cannot be used.
        """
        return self.read_credentials().keys

    def read_credentials(self) -> Credentials:
        """The keys that nodes share, or the one that this node alone has. For any thread.

        :raises KeyFileError: if the file cannot be used.
        """
        if self.key is None:
            return Credentials()
        return Credentials((self.key,)) if isinstance(self.key, bytes) else credentials_of(self.key)


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What a node proves itself with, besides a certificate.

    :param keys: that nodes share: the one that it uses, and perhaps another one that it accepts.
    :param node_key: that it alone has.
    """

    keys: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)
    node_key: NodeKey | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """What tells these keys from others; see `key_id`."""
        if self.node_key is not None:
            return (self.node_key.fingerprint.hex()[: 2 * ID_BYTES],)
        return tuple(map(key_id, self.keys))


def credentials_of(path: str | os.PathLike[str], name: str | None = None) -> Credentials:
    """What a key file holds. For any thread.

    :param name: of the node whose file it is; `None`: of any.
    :raises KeyFileError: if it cannot be used, or is the file of another node.
    """
    found = read_key_file(path)
    if not isinstance(found, NodeKey):
        return Credentials(found)
    if name is not None and found.name != name:
        raise KeyFileError(
            f"{path}: the key is that of the node {found.name!a}, and this one is {name!a}: with "
            f"it no other node would let this one in. `rabble keygen --node NAME --from FILE` "
            f"makes one"
        )
    return Credentials(node_key=found)


def check_types(mesh: Mesh) -> None:
    """Raise the `TypeError` of `Mesh`. The key is not shown."""
    if not isinstance(mesh.cluster, str):
        raise TypeError(f"Mesh: cluster must be a str, not {given(mesh.cluster)}")
    if not isinstance(mesh.key, bytes | str | os.PathLike | None):
        raise TypeError(
            f"Mesh: key must be 32 bytes, the path of a key file, or None, "
            f"not of type {type_name(mesh.key)}"
        )
    if not isinstance(mesh.tls, TlsConfig | None):
        raise TypeError(f"Mesh: tls must be a TlsConfig or None, not {given(mesh.tls)}")
    if not isinstance(mesh.bind, str | None):
        raise TypeError(f"Mesh: bind must be 'host:port' or None, not {given(mesh.bind)}")
    if isinstance(mesh.seeds, str | bytes) or not isinstance(mesh.seeds, Sequence):
        raise TypeError(
            f"Mesh: seeds must be a list of addresses 'host:port', not {given(mesh.seeds)}"
        )
    for seed in mesh.seeds:
        if not isinstance(seed, str):
            raise TypeError(f"Mesh: a seed must be an address 'host:port', not {given(seed)}")
    if isinstance(mesh.labels, str | bytes) or not isinstance(mesh.labels, Collection):
        raise TypeError(f"Mesh: labels must be a list or set of str, not {given(mesh.labels)}")
    for label in mesh.labels:
        if not isinstance(label, str):
            raise TypeError(f"Mesh: a label must be a str, not {given(label)}")
    if not isinstance(mesh.seed_file, str | os.PathLike | None):
        raise TypeError(
            f"Mesh: seed_file must be the path of a file or None, not {given(mesh.seed_file)}"
        )
    if not isinstance(mesh.authenticate_loopback, bool):
        raise TypeError(
            f"Mesh: authenticate_loopback must be True or False, "
            f"not {given(mesh.authenticate_loopback)}"
        )
    if not isinstance(mesh.guest, bool):
        raise TypeError(f"Mesh: guest must be True or False, not {given(mesh.guest)}")


def listen(
    mesh: Mesh, addr: str, listeners: list[socket.socket] | None = None
) -> list[socket.socket]:
    """Listen on all addresses that `addr` means. Resolves names, so it may take a while.

    :param addr: `host:port`; port 0 takes a free one, the same for all.
    :param listeners: is filled, and returned; its sockets are closed if this raises.
    :raises ValueError: if that would be open to all of a network.
    :raises OSError: if it cannot be done; says what and where.
    """
    return open_listeners(addr, loopback_only=mesh.open_to_all, listeners=listeners)


def listen_as(own: NodeId, mesh: Mesh, listeners: list[socket.socket]) -> NodeId:
    """Listen where the mesh says, or else at the node's own address. See `listen`.

    :returns: the node with the port that others reach it by: port 0 is replaced by the one it got.
    :raises ValueError: also if the node's own address is none that anybody can connect to.
    """
    check_own(own)
    listen(mesh, mesh.bind or own.addr, listeners)
    host, _, port = own.addr.rpartition(":")
    if port != "0":
        return own
    return NodeId(own.name, f"{host}:{listeners[0].getsockname()[1]}")


def guest_id(given_id: NodeId | str, mesh: Mesh) -> NodeId:
    """The id of a guest: its address is of this start alone, and has the port 0.

    :param given_id: its name, to which something random is added, unless a certificate or a key of
        its own is for that name; or a `NodeId`, or the text of one, whose name is kept, and whose
        address is of no use.
    :raises ValueError: if the name cannot be one.
    :raises KeyFileError: if the mesh's key cannot be used.
    """
    drawn = secrets.token_hex(4)
    if isinstance(given_id, str) and "@" not in given_id:
        is_proven = mesh.tls is not None or mesh.read_credentials().node_key is not None
        # Made of what was given alone, first: an empty name is none, whatever is added to it.
        given_name = NodeId(given_id, "guest:0").name
        name = given_name if is_proven else f"{given_name}-{drawn}"
    else:
        name = (NodeId.parse(given_id) if isinstance(given_id, str) else given_id).name
    return NodeId(name, f"guest-{drawn}:0")


def check_own(own: NodeId) -> None:
    """Raise `ValueError` for an address of a node by which others could not reach it."""
    host, port = split_address(own.addr)
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # A name, which means something else on each host perhaps.
        return
    kind = (
        "stands for all addresses of a machine"
        if address.is_unspecified
        else "is a multicast address"
        if address.is_multicast
        else "is the broadcast address"
        if address == BROADCAST
        else None
    )
    if kind is not None:
        where = f"[::]:{port}" if address.version == 6 else f"0.0.0.0:{port}"
        raise ValueError(
            f"node id {own}: {host} {kind}, and others reach a node by the address in its id. Give "
            f"it one of this machine's; to listen on all of them, add Mesh(bind={where!r})"
        )
