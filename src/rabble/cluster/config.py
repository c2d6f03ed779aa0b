"""How a node takes part in a mesh."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Sequence

from rabble.cluster.decide.address import split_address
from rabble.cluster.decide.handshake import check_cluster, check_key
from rabble.cluster.io.keys import read_key
from rabble.cluster.io.listener import open_listeners
from rabble.cluster.io.tls import TlsConfig

__all__ = ["Mesh", "listen"]


@dataclasses.dataclass(frozen=True)
class Mesh:
    """What a node needs to reach others and be reached.

    Without `key` and `tls` anybody who can connect is a member, so then only loopback addresses are
    listened on and dialled.

    :param cluster: its name; nodes of another one are refused. At most 64 bytes of UTF-8.
    :param key: the 32 bytes that all nodes share, or the path of the file that holds them
        (`rabble keygen FILE`). It proves who is a member, and hides nothing that is said.
    :param tls: certificates, for both: proof and secrecy.
    :param bind: `host:port` to listen on, if it is not the node's own address.
    :param seeds: addresses `host:port` of nodes to join. Of a host name with several addresses all
        are joined, now and whenever they change.
    :param seed_file: a file with one such address a line, which is read again when it changes.
    :raises ValueError: says what cannot be used. It never shows the key.
    """

    cluster: str = ""
    key: bytes | str | os.PathLike[str] | None = dataclasses.field(default=None, repr=False)
    tls: TlsConfig | None = None
    bind: str | None = None
    seeds: Sequence[str] = ()
    seed_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for addr in (*self.seeds, *(() if self.bind is None else (self.bind,))):
            split_address(addr)
        check_cluster(self.cluster)
        if isinstance(self.key, bytes):
            check_key(self.key)

    @property
    def open_to_all(self) -> bool:
        """Whether nothing proves who is a member."""
        return self.key is None and self.tls is None

    def read_key(self) -> bytes | None:
        """The 32 bytes, read from their file if need be.

        :raises KeyFileError: if the file cannot be used.
        """
        if self.key is None or isinstance(self.key, bytes):
            return self.key
        return read_key(self.key)


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
