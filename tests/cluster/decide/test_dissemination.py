"""When changes are told; to whom is tested with whole planes."""

from __future__ import annotations

import random

from rabble.cluster.decide.dissemination import Dissemination
from rabble.limits import Limits

GATHER_S = Limits().gossip_gather_ms / 1000


def test_what_a_node_contradicts_is_told_at_once_and_not_again_and_again() -> None:
    told = Dissemination[str](random.Random(1), Limits())
    told.connection_up(1)
    told.changed(["x"], 10.0)
    told.take(10.0)
    told.contradicted(["own"], 10.01)
    assert told.due == 10.01
    assert told.take(10.01) == {frozenset({"own"}): [1]}
    # Until as much time has gone by as changes are gathered for.
    for ms in range(2, 90):
        told.contradicted(["own"], 10.01 + ms / 1000)
        assert told.due == 10.01 + GATHER_S
    assert told.take(10.01 + GATHER_S) == {frozenset({"own"}): [1]}
    told.contradicted(["own"], 10.02 + GATHER_S)
    assert told.due == 10.02 + GATHER_S
