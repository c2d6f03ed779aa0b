"""A name server that does not answer holds up what does not ask it, and nothing else."""

from __future__ import annotations

import threading

import pytest

from rabble import NodeId
from rabble.addresses import Address
from rabble.cluster.io import resolver
from tests.cluster.mesh import linked, names, rouse
from tests.support import PATIENCE_S, until


def test_a_resolver_that_hangs_holds_up_no_peer_with_a_numeric_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()
    asked: list[str] = []
    look_up = resolver.look_up

    def hang(host: str, port: int, flags: int = 0) -> list[Address]:
        if not flags:
            asked.append(host)
            assert released.wait(2 * PATIENCE_S)
            raise OSError("no such host")
        return look_up(host, port, flags)

    monkeypatch.setattr(resolver, "look_up", hang)
    # It would be longer than the test has patience.
    limits = {"handshake_ms": 2 * int(PATIENCE_S * 1000), "dials_max": 4}
    with rouse("a", limits=limits) as a, rouse("b") as b:
        try:
            for n in range(20):
                a.join(NodeId(f"far{n}", f"far{n}.example:4000"))
                a.join(f"seed{n}.example:4000")
            until(lambda: asked)
            a.join(b.node_id)
            until(lambda: linked(a) == ["b"] and linked(b) == ["a"])
            # What a tells b of takes as long.
            until(lambda: len(names(b)) == 22)
            assert a.status == b.status == "running"
        finally:
            released.set()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("rabble:")])
