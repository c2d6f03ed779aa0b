"""The fixtures that pytest finds where rabble is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rabble.node import Node
    from rabble.testing.world import World

__all__ = ["Nodes", "rabble_rouse", "rabble_world"]


@pytest.fixture
def rabble_world() -> Iterator[World]:
    """A `rabble.testing.World`, in which a process that raises fails the test."""
    from rabble.testing.world import World

    with World() as world:
        yield world


class Nodes:
    """Starts nodes for one test, and ends them with it: what `rabble_rouse` is.

    A process or service that crashed fails the test, unless its node was allowed to; so does a
    node that failed or that does not end.
    """

    def __init__(self) -> None:
        self._nodes: list[tuple[Node, bool]] = []

    def __call__(self, *arguments: Any, may_crash: bool = False, **options: Any) -> Node:
        """Start a node: as `rabble.rouse`, with the same arguments.

        :param may_crash: its processes and services may raise.
        """
        from rabble.node import rouse

        node = rouse(*arguments, **options)
        self._nodes.append((node, may_crash))
        return node

    def end(self) -> list[str]:
        """End them all; what is wrong with them, as texts."""
        wrong = []
        for node, _ in self._nodes:
            if not node._runtime.executor.forked:
                node.request_shutdown()
        for node, may_crash in self._nodes:
            try:
                node.shutdown()
            except Exception as error:
                wrong.append(f"{node.node_id} does not end: {error}")
            if node.failure is not None:
                wrong.append(f"{node.node_id} failed: {node.failure}")
            crashes = node._runtime.executor.crashes
            if crashes and not may_crash:
                wrong.append(
                    f"{node.node_id}: {crashes} crashed, see the log; if they are to, rouse it "
                    "with may_crash=True"
                )
        return wrong


@pytest.fixture
def rabble_rouse(caplog: pytest.LogCaptureFixture) -> Iterator[Nodes]:
    """`rabble.rouse` for one test: what it starts ends with the test, and must not crash."""
    nodes = Nodes()
    with caplog.at_level(logging.WARNING, "rabble"):
        yield nodes
        wrong = nodes.end()
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
