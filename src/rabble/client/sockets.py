"""Sockets to a server, made and set up: what the blocking client dials, and both clients set."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from rabble.client.addresses import ServerAddress
from rabble.client.limits import ClientLimits

__all__ = ["dial", "prepare"]

#: The kernel's questions to a machine that says nothing, before it is taken for dead.
PROBES = 3


def dial(
    address: ServerAddress,
    timeout_s: float,
    limits: ClientLimits,
    context: ssl.SSLContext | None,
    server_hostname: str | None,
) -> socket.socket:
    """A connected socket that does not block, with its TLS handshake done.

    :param timeout_s: seconds that each of the host's IP addresses has, and the handshake.
    :raises OSError: if it cannot be reached; also of TLS.
    """
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.create_connection((address.host, address.port), timeout_s)
    try:
        sock.settimeout(timeout_s)
        if address.path:
            sock.connect(address.path)
        prepare(sock, limits)
        if context is not None:
            name = server_hostname or address.host or None
            sock = context.wrap_socket(sock, server_hostname=name)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: Any, limits: ClientLimits) -> None:
    """Send at once, and notice a machine that is dead though nothing is being said."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every_s = max(1, limits.dead_after_ms // 1000 // (PROBES + 1))
    # As far as the system has them.
    for name, value in (
        ("TCP_KEEPIDLE", every_s),
        ("TCP_KEEPINTVL", every_s),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", limits.dead_after_ms),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
