"""What a node to join is written as."""

from __future__ import annotations

import pytest

from rabble import NodeId
from rabble.addresses import parse_target


def test_a_node_id_is_parsed_and_an_address_is_kept() -> None:
    assert parse_target("a@127.0.0.1:7001") == NodeId("a", "127.0.0.1:7001")
    assert parse_target("127.0.0.1:7001") == "127.0.0.1:7001"
    assert parse_target("[::1]:7001") == "[::1]:7001"


@pytest.mark.parametrize("text", ["", "host", "host:", ":7001", "::1:7001", "host:70010", "a@host"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        parse_target(text)
