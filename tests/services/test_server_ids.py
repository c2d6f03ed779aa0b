"""The ids that clients give their requests, in whatever order, against a set of those that wait."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

import rabble
from rabble import Node
from rabble.services.server_handler import Answer, ConnectionHandler, RequestId, ServerOutput
from rabble.services.server_limits import ServerLimits
from rabble.services.tcp_server import TcpServer
from tests.clients import Client

#: The highest that a client may choose.
ID_MAX = (1 << 53) - 1
LIMITS = ServerLimits(drain_ms=20, requests_per_connection_max=128)


class Holding(ConnectionHandler):
    """Keeps requests until it is told to answer them, by what they said."""

    def __init__(self) -> None:
        self.held: dict[Any, RequestId] = {}

    def handle_message(self, msg: Any, request: RequestId | None, /) -> ServerOutput:
        if request is None:
            return [Answer(self.held.pop(each), each) for each in msg]
        assert msg not in self.held
        self.held[msg] = request
        return None


def warmed_up(client: Client) -> None:
    """Before a server knows how long answers are it begins only few requests at a time."""
    for id in range(60):
        client.send([0, id, id], [1, [id]])
    assert [client.receive() for _ in range(60)] == [[0, id, id] for id in range(60)]


@pytest.fixture
def node() -> Iterator[Node]:
    with rabble.rouse("served@127.0.0.1:0") as node:
        yield node


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "ids",
    [range(5), range(100), range(ID_MAX - 99, ID_MAX + 1), range(100_000, 0, -1_000)],
    ids=["few", "many", "high", "wide"],
)
def test_an_id_is_refused_as_long_as_it_waits(node: Node, ids: range, seed: int) -> None:
    randoms = random.Random(seed)
    waiting: set[int] = set()
    with TcpServer(node, Holding, limits=LIMITS) as server, Client(server.address) as client:
        warmed_up(client)
        for step in range(160):
            id = randoms.choice(ids)
            if step % 80 == 79:
                # From here on nothing waits, and all begins anew.
                ended = sorted(waiting)
            elif waiting and randoms.random() < 0.2:
                ended = randoms.sample(sorted(waiting), 1)
            else:
                ended = []
            if ended:
                waiting.difference_update(ended)
                client.send([1, ended])
                assert [client.receive() for _ in ended] == [[0, each, each] for each in ended]
            client.send([0, id, id])
            if id in waiting:
                assert client.receive()[:3] == [1, id, "duplicate"]
            waiting.add(id)
        client.send([1, sorted(waiting)])
        assert [client.receive()[1] for _ in range(len(waiting))] == sorted(waiting)
        assert server.status().in_flight == 0


def test_who_counts_upwards_and_begins_anew_meets_only_what_waits(node: Node) -> None:
    with TcpServer(node, Holding, limits=LIMITS) as server, Client(server.address) as client:
        warmed_up(client)
        client.send(*([0, id, id] for id in range(60)))
        client.send([1, list(range(59))])
        assert [client.receive()[1] for _ in range(59)] == list(range(59))
        # The last one still waits while the client counts from 0 once more.
        client.send(*([0, id, id] for id in range(60)))
        assert client.receive()[:3] == [1, 59, "duplicate"]
        client.send([1, list(range(60))])
        assert [client.receive()[1] for _ in range(60)] == list(range(60))
