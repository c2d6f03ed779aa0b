"""Addresses as people write them and as sockets take them; what `join` and `leave` take."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabble import Mesh, NodeId
from rabble.addresses import (
    address_text,
    banned_subjects,
    is_loopback,
    is_numeric,
    member_name,
    parse_target,
    split_address,
)

A = NodeId("a", "127.0.0.1:7001")


def test_a_node_id_is_parsed_and_an_address_is_kept() -> None:
    assert parse_target("a@127.0.0.1:7001") == parse_target(A) == A
    assert parse_target("127.0.0.1:7001") == "127.0.0.1:7001"
    assert parse_target("[::1]:7001") == "[::1]:7001"


@pytest.mark.parametrize("text", ["", "host", "host:", ":7001", "::1:7001", "host:70010", "a@host"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        parse_target(text)


@pytest.mark.parametrize("given", [A, "a@127.0.0.1:7001", "a"])
def test_a_node_leaves_by_its_name(given: NodeId | str) -> None:
    assert member_name(given) == "a"


def test_an_address_that_was_joined_is_left_as_it_was_given() -> None:
    assert member_name("127.0.0.1:7001") == "127.0.0.1:7001"
    with pytest.raises(ValueError, match="is not usable"):
        member_name("a@")


@pytest.mark.parametrize("given", [None, 7, b"a"])
def test_what_is_no_text_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="join takes a NodeId or an address"):
        parse_target(given)
    with pytest.raises(TypeError, match="leave takes a NodeId, a node's name or an address"):
        member_name(given)


@pytest.mark.parametrize(
    ("addr", "host", "port"),
    [
        ("localhost:0", "localhost", 0),
        ("10.0.0.1:65535", "10.0.0.1", 65_535),
        ("[::1]:4000", "::1", 4_000),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_an_address_is_a_host_and_a_port(addr: str, host: str, port: int) -> None:
    assert split_address(addr) == (host, port)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ((socket.AF_INET, ("10.0.0.1", 4_000)), "10.0.0.1:4000"),
        ((socket.AF_INET6, ("::1", 4_000, 0, 0)), "[::1]:4000"),
    ],
)
def test_the_text_of_an_address_is_that_address(
    address: tuple[int, tuple[str, int]], text: str
) -> None:
    assert address_text(address) == text
    assert split_address(text) == address[1][:2]


@pytest.mark.parametrize("addr", ["", "host", "host:", ":1", "host:65536", "host:-1", "host:x"])
def test_what_is_no_address(addr: str) -> None:
    with pytest.raises(ValueError, match="write it as 'host:port'"):
        split_address(addr)


BAD_HOSTS = [
    ("db..internal", "two in a row"),
    (".shop", "a dot in front"),
    ("x" * 64, "63 characters between two dots"),
    ("a." * 127, "254 characters, 1 to 253"),
    ("h\ud800", "cannot be printed"),
    ("ü" * 64, "no internationalized name"),
    ("bücher..example", "no internationalized name"),
    ("ü" * 300, "300 characters"),
    ("a b", "a space"),
    ("a\tb", "cannot be printed"),
    ("a\0b", "cannot be printed"),
    ("[h]", "no IPv6 address"),
    ("[]", "no IPv6 address"),
]


@pytest.mark.parametrize(("host", "said"), BAD_HOSTS)
def test_a_host_that_no_resolver_takes_is_refused_where_it_is_given(host: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        split_address(f"{host}:4000")
    for mesh in ({"seeds": [f"{host}:4000"]}, {"bind": f"{host}:4000"}):
        with pytest.raises(ValueError, match="is not usable"):
            Mesh(**mesh)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not usable"):
        parse_target(f"{host}:4000")
    with pytest.raises(ValueError, match="is not usable"):
        parse_target(f"a@{host}:4000")


@given(st.text(max_size=70), st.integers(0, 65_535))
def test_no_address_makes_the_resolver_raise_but_oserror(host: str, port: int) -> None:
    """What `getaddrinfo` does before it asks anybody is to encode the host as IDNA."""
    try:
        found, _ = split_address(f"{host}:{port}")
    except ValueError:
        return
    found.encode("idna")


def test_an_internationalized_name_is_taken_and_looked_up_as_it_is() -> None:
    assert split_address("bücher.example:4000") == ("bücher.example", 4_000)


class Odd(str):
    """A str of a user's, whose methods say anything."""

    def __contains__(self, part: object) -> bool:
        raise SystemExit("in __contains__")

    def rpartition(self, separator: object) -> Any:
        raise SystemExit("in rpartition")


def test_a_text_of_a_users_own_class_is_taken_as_a_text() -> None:
    target = parse_target(Odd("127.0.0.1:1"))
    assert type(target) is str and target == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("addr", "numeric"),
    [("10.0.0.1:1", True), ("[::1]:1", True), ("[fe80::1%lo]:1", True), ("h:1", False)],
)
def test_of_a_numeric_address_nothing_is_looked_up(addr: str, numeric: bool) -> None:
    assert is_numeric(addr) is numeric


def test_an_ipv6_host_needs_brackets() -> None:
    with pytest.raises(ValueError, match="write an IPv6 host as"):
        split_address("::1:4000")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("fe80::1%lo", False),
        # A name is looked up first: what it stands for is asked about.
        ("localhost", False),
    ],
)
def test_the_loopback_of_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


FINGERPRINT = "0f" * 32


@pytest.mark.parametrize(
    ("node", "key", "found"),
    [
        ("a", None, ("a",)),
        ("a@h:1", None, ("a",)),
        (NodeId("a", "h:1"), None, ("a",)),
        (None, FINGERPRINT, (b"\x0f" * 32,)),
        ("a", FINGERPRINT.upper(), ("a", b"\x0f" * 32)),
        (None, ":".join(["0f"] * 32), (b"\x0f" * 32,)),
    ],
)
def test_what_is_banned_is_a_name_or_a_key(node: Any, key: str | None, found: object) -> None:
    assert banned_subjects("ban", node, key) == found


@pytest.mark.parametrize(
    ("node", "key", "error", "text"),
    [
        (None, None, ValueError, "ban needs a node's name, or key=..."),
        (1, None, TypeError, "ban takes a NodeId or a node's name, not 1"),
        ("", None, ValueError, "is not usable"),
        ("h:1 ", None, ValueError, "is not usable"),
        ("a@", None, ValueError, "is not usable"),
        (None, b"x", TypeError, "fingerprint of a key as text, not the bytes"),
        (None, "0f" * 31, ValueError, "64 hexadecimal digits, not '0f0f"),
        (None, "xy" * 32, ValueError, "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_banned_says_why(
    node: Any, key: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        banned_subjects("ban", node, key)
