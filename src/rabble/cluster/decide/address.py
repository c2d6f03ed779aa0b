"""Addresses as people write them: `host:port`."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "split_address"]


def split_address(addr: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host is in brackets.

    :raises ValueError: if it is not of that form.
    """
    host, colon, port = addr.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {addr!r} is not usable: write it as 'host:port'")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {addr!r} is not usable: write an IPv6 host as '[::1]:port'")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a numeric address is one of this machine's own loopback."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
