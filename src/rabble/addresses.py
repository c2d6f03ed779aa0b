"""Addresses as people write them and as sockets take them; nodes as users give them."""

from __future__ import annotations

import functools
import ipaddress
import string
from typing import Any

from rabble._core.ids import HOST_CHARS_MAX, RESERVED_GROUP, NodeId, host_problem
from rabble._core.messages import SPAWNER_NAME
from rabble._core.texts import given
from rabble.texts import argument_text, text_of

__all__ = [
    "CALLS_NAME",
    "CANARY_NAME",
    "RESERVED_GROUP",
    "SPAWNER_NAME",
    "Address",
    "address_text",
    "banned_subjects",
    "is_loopback",
    "is_numeric",
    "member_name",
    "parse_target",
    "split_address",
]

#: The name in the reserved group of the pid that replies to calls go to. (To `SPAWNER_NAME` go
#: requests to spawn.)
CALLS_NAME = "calls"
#: ... and of the one that answers canaries of gates.
CANARY_NAME = "canary"

#: Of the fingerprint of a key, which is a SHA-256.
FINGERPRINT_BYTES = 32

#: A socket family, and an address of it as `socket.connect` takes it.
Address = tuple[int, tuple[Any, ...]]

#: Of so many hosts and addresses what they are is remembered.
REMEMBERED_MAX = 4_096


def parse_target(target: NodeId | str) -> NodeId | str:
    """What a node to join is given as: a `NodeId`, its text, or an address.

    :param target: as text `name@host:port`, or `host:port`; an IPv6 host is in brackets.
    :returns: the `NodeId`, or the address as it was given.
    :raises ValueError: if a text is of neither form.
    :raises TypeError: if it is something else.
    """
    if isinstance(target, NodeId):
        return target
    if not isinstance(target, str):
        raise TypeError(
            f"join takes a NodeId or an address 'host:port', not {argument_text(target)}"
        )
    # As a str itself, of which no method is a user's: other threads ask it for more.
    target = str.__str__(target)
    if "@" in target:
        return NodeId.parse(target)
    split_address(target)
    return target


def member_name(node: NodeId | str) -> str:
    """The name, or the address, of what is to leave.

    :param node: a `NodeId`, its text, a node's name, or an address that was joined.
    :raises ValueError: if it has an `@` and is no `NodeId`.
    :raises TypeError: if it is something else.
    """
    if isinstance(node, str) and "@" in node:
        node = NodeId.parse(node)
    name = node.name if isinstance(node, NodeId) else node
    if not isinstance(name, str):
        raise TypeError(
            f"leave takes a NodeId, a node's name or an address, not {argument_text(node)}"
        )
    return name


def banned_subjects(
    method: str, node: NodeId | str | None, key: str | None
) -> tuple[str | bytes, ...]:
    """What is to be banned, or no longer: a name, the 32 bytes of a key's fingerprint, or both.

    :param method: for the errors.
    :param node: a `NodeId`, its text, or a node's name.
    :param key: hexadecimal digits, as they are or in pairs with colons between.
    :raises ValueError: if a text is none, or is an address, or nothing is given.
    :raises TypeError: if one of them is something else.
    """
    if node is None and key is None:
        raise ValueError(f"{method} needs a node's name, or key=..., the fingerprint of a key")
    subjects: list[str | bytes] = []
    if node is not None:
        if not isinstance(node, NodeId | str):
            raise TypeError(f"{method} takes a NodeId or a node's name, not {argument_text(node)}")
        name = member_name(node)
        if node == name:
            check_plain_name(method, name)
        NodeId(name, "localhost:0")
        subjects.append(name)
    if key is not None:
        subjects.append(fingerprint(method, key))
    return tuple(subjects)


def check_plain_name(method: str, name: str) -> None:
    """Raise the `ValueError` of a name that is meant for something else.

    A node may be called so all the same: a `NodeId`, or its text, says that it is.
    """
    meant: str | None = None
    try:
        split_address(name)
    except ValueError:
        digits = name.replace(":", "")
        if len(digits) == 2 * FINGERPRINT_BYTES and set(digits) <= set(string.hexdigits):
            meant = "a name, and this looks like the fingerprint of a key: give it as key="
    else:
        meant = f"a node's name, not an address: {name!r}; see cluster_status().members"
    if meant is not None:
        raise ValueError(
            f"{method} takes {meant}; a node of that name is given as a NodeId, or NAME@HOST:PORT"
        )


def fingerprint(method: str, key: object) -> bytes:
    """The bytes of a fingerprint as people write it."""
    if not isinstance(key, str):
        raise TypeError(f"{method} takes the fingerprint of a key as text, not {given(key)}")
    try:
        found = bytes.fromhex(key.replace(":", ""))
    except ValueError:
        found = b""
    if len(found) != FINGERPRINT_BYTES:
        raise ValueError(
            f"{method}: the fingerprint of a key is {2 * FINGERPRINT_BYTES} hexadecimal digits, "
            f"not {argument_text(key)}: see PeerStatus.keys, or `rabble fingerprint FILE`"
        )
    return found


def split_address(addr: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host is in brackets.

    What passes is for `socket.getaddrinfo` to find or not to find: it does not raise anything else
    than `OSError` for it.

    :raises ValueError: if it is not of that form, or no name can be as its host is.
    """
    host, colon, port = addr.rpartition(":")
    usable = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535
    if not colon or not host or not usable:
        raise ValueError(f"address {argument_text(addr)} is not usable: write it as 'host:port'")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(
            f"address {argument_text(addr)} is not usable: write an IPv6 host as '[::1]:port'"
        )
    problem: str | None = "the host has '@', a space or what cannot be printed in it"
    if host.isprintable() and not set(host) & set(" @"):
        problem = host_problem(host) if host.isascii() else international_problem(host)
    if problem is not None:
        raise ValueError(f"address {argument_text(addr)} is not usable: {problem}")
    return (host[1:-1] if host.startswith("[") else host), int(port)


def international_problem(host: str) -> str | None:
    """As `host_problem`, for a name that is not ASCII."""
    if len(host) > HOST_CHARS_MAX:
        return f"the host has {len(host)} characters, 1 to {HOST_CHARS_MAX} are allowed"
    try:
        # As getaddrinfo does it.
        return host_problem(host.encode("idna").decode("ascii"))
    except ValueError as error:
        return f"the host is no internationalized name: {text_of(error)}"


def address_text(address: Address) -> str:
    """The `host:port` of an address; an IPv6 host is in brackets."""
    host, port = str(address[1][0]), address[1][1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@functools.lru_cache(REMEMBERED_MAX)
def is_loopback(host: str) -> bool:
    """Whether a numeric address is one of this machine's own loopback."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@functools.lru_cache(REMEMBERED_MAX)
def is_numeric(addr: str) -> bool:
    """Whether the host of `host:port` is an IP address, of which nothing has to be looked up.

    As a resolver sees it (RFC 3696, 2): no name ends in a label of digits alone.
    """
    host = addr.rpartition(":")[0]
    return host.startswith("[") or host.rpartition(".")[2].isdecimal()
