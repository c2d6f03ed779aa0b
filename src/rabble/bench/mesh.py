"""Many nodes, each in an operating-system process of its own, every pair of them exchanging."""

from __future__ import annotations

import contextlib

from rabble.bench.model import Case, Limit, Sample, Target
from rabble.bench.sides import MeshOfSides

__all__ = ["mesh"]


class Meshes(contextlib.AbstractContextManager["Meshes"]):
    """The two that are compared."""

    def __init__(self) -> None:
        self.five = MeshOfSides(5)
        self.two = MeshOfSides(2)

    def __enter__(self) -> Meshes:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.five)
            stack.enter_context(self.two)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def mesh(messages: int = 50_000) -> list[Case]:
    """Five nodes, every pair exchanging: all that is delivered, held against two nodes."""
    meshes = Meshes()
    return [
        Case(
            "mesh",
            {"nodes": 5, "messages_per_pair": messages},
            "messages/s",
            lambda: Sample(*meshes.five.exchange(messages)),
            Limit("two nodes", lambda: Sample(*meshes.two.exchange(10 * messages))),
            Target(0.8),
            session=meshes,
        )
    ]
