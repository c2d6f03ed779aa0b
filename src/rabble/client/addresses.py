"""Where a server is: `host:port`, or the path of a Unix socket."""

from __future__ import annotations

from dataclasses import dataclass

from rabble.texts import argument_text

__all__ = ["ServerAddress", "parse_addresses"]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One address of a server.

    :ivar host: a name or an IP address; empty for a Unix socket.
    :ivar port: 1 to 65535; 0 for a Unix socket.
    :ivar path: of a Unix socket, else empty.
    """

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_addresses(addresses: tuple[str, ...]) -> tuple[ServerAddress, ...]:
    """The addresses of a client.

    :param addresses: each `host:port`, an IPv6 host in brackets, or a path: one with a `/` in it,
        or any with `unix:` in front, as `TcpServer.address` has it.
    :raises ValueError: if one is of no such form, or there is none.
    :raises TypeError: if one is no str.
    """
    if not addresses:
        raise ValueError("a client needs an address of its server: 'host:port', or a path")
    return tuple(map(parse_address, addresses))


def parse_address(address: str) -> ServerAddress:
    if not isinstance(address, str):
        raise TypeError(
            f"an address is a str, 'host:port' or the path of a Unix socket, not "
            f"{argument_text(address)}; several are given one by one"
        )
    path = address.removeprefix("unix:")
    if "\0" not in path and path and ("/" in path or path != address):
        return ServerAddress("", 0, path)
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    usable = port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535
    plain = host.isprintable() and not set(host) & set(" @") and (bracketed or ":" not in host)
    # What the look-up would raise, in the midst of the other addresses.
    plain = plain and is_name(host)
    if not (colon and host.strip("[]") and usable and plain):
        raise ValueError(
            f"the address {argument_text(address)} is not usable: write 'host:port' with a port "
            f"of 1 to 65535, an IPv6 host as '[::1]:port', or a Unix socket as 'unix:path'"
        )
    return ServerAddress(host[1:-1] if bracketed else host, int(port))


def is_name(host: str) -> bool:
    """Whether it can be looked up."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
