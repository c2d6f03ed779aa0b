"""Addresses as users write them, and the group of the node's own pids."""

from __future__ import annotations

from rabble._core.ids import NodeId
from rabble.cluster.decide.address import split_address

__all__ = ["RESERVED_GROUP", "parse_target"]

#: The group of the pids that are the node's own: executor, calls, spawner.
RESERVED_GROUP = "rabble"


def parse_target(text: str) -> NodeId | str:
    """What a node to join is written as: the text of a `NodeId`, or an address.

    :param text: `name@host:port`, or `host:port`; an IPv6 host is in brackets.
    :returns: the `NodeId`, or the address as it was given.
    :raises ValueError: if it is of neither form.
    """
    if "@" in text:
        return NodeId.parse(text)
    split_address(text)
    return text
