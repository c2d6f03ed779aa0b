"""Addresses as people write them."""

from __future__ import annotations

import pytest

from rabble.cluster.decide.address import is_loopback, split_address


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


@pytest.mark.parametrize("addr", ["", "host", "host:", ":1", "host:65536", "host:-1", "host:x"])
def test_what_is_no_address(addr: str) -> None:
    with pytest.raises(ValueError, match="write it as 'host:port'"):
        split_address(addr)


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
