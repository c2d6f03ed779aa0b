"""What the cluster server is given of its node: a codec of its own for each connection."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from rabble import EncodeError, Envelope, Limits, MessageRegistry, NodeId, Pid
from rabble._core.directory_messages import DIRECTORY_NAME
from rabble._core.executor import Executor
from rabble.addresses import CALLS_NAME, CANARY_NAME, SPAWNER_NAME
from rabble.cluster.runtime import OPEN_NAMES, NodeRuntime
from tests.support import BARE, bare_executor

FAR = NodeId("far", "h:2")
LIMITS = Limits(message_depth_max=2, frame_bytes_max=8_192, fragment_bytes_max=1_024)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with bare_executor() as executor:
        yield executor


@pytest.fixture
def runtime(executor: Executor) -> NodeRuntime:
    return NodeRuntime(executor, Mock(), MessageRegistry(), LIMITS, Mock())


def test_a_session_is_of_this_node_and_that_start_of_the_peer(runtime: NodeRuntime) -> None:
    session = runtime.make_session(FAR, 7, 1 << 20)
    assert (session.own, session.peer, session.incarnation) == (BARE, FAR, 7)


def test_a_session_has_the_bounds_of_the_node(runtime: NodeRuntime) -> None:
    session = runtime.make_session(FAR, 7, 1 << 20)
    assert (session.frame_bytes_max, session.fragment_bytes) == (8_192, 1_024)
    to = Pid("one", FAR)
    assert session.encode(Envelope(to, [["two deep"]]))
    with pytest.raises(EncodeError):
        session.encode(Envelope(to, [[["three deep"]]]))


def test_what_one_connection_has_said_is_not_known_to_another(runtime: NodeRuntime) -> None:
    first, second = (runtime.make_session(FAR, number, 1 << 20) for number in (7, 8))
    assert first.codec is not second.codec
    envelope = Envelope(Pid("one", FAR), "hello")
    whole = first.encode(envelope)
    # The pids of an envelope are sent once, on each connection.
    assert len(first.encode(envelope)) < len(whole)
    assert second.encode(envelope) == whole


def test_of_the_nodes_own_pids_a_peer_may_send_to_those_that_answer() -> None:
    assert frozenset({CALLS_NAME, CANARY_NAME, DIRECTORY_NAME, SPAWNER_NAME}) == OPEN_NAMES
    assert "executor" not in OPEN_NAMES
