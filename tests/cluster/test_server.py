"""The thread of the control plane: its commands, its end, and what is left if it never began."""

from __future__ import annotations

import itertools
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import rabble
from rabble import Limits, Mesh, NodeId, NodeStopped, QueueFull
from rabble.cluster.failures import IN_A_ROW_MAX, RETRY_S
from rabble.cluster.io.listener import open_listeners
from rabble.cluster.server import COMMANDS_PER_TURN, ClusterServer, new_incarnation
from tests.cluster.plane import KEY, Runtime, make_poller
from tests.support import PATIENCE_S, until


class Server:
    """A cluster server with a runtime that keeps what it is told."""

    def __init__(self, **limits: int) -> None:
        self.listeners = open_listeners("127.0.0.1:0", loopback_only=True)
        own = NodeId("a", f"127.0.0.1:{self.listeners[0].getsockname()[1]}")
        self.runtime = Runtime(own)
        self.server = ClusterServer(
            own,
            Mesh(key=KEY),
            self.listeners,
            make_poller(Limits()),
            self.runtime,
            limits=Limits(**limits),
            clock=time.monotonic,
            rng=random.Random(1),
            token_bytes=os.urandom,
        )

    def end(self) -> list[threading.Thread]:
        """Have it end; the threads that there were."""
        self.server.request_stop(PATIENCE_S, PATIENCE_S)
        threads = self.server.wait_for_end()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert all(sock.fileno() == -1 for sock in self.listeners)
        return threads


def test_commands_are_carried_out_in_their_order_and_in_one_thread() -> None:
    of = Server()
    done: list[tuple[int, int]] = []
    last = threading.Event()
    of.server.start()
    for number in range(100):
        of.server.post(lambda number=number: done.append((number, threading.get_ident())))  # type: ignore[misc]
    of.server.post(last.set)
    assert last.wait(PATIENCE_S)
    assert done == [(number, of.server.thread.ident) for number in range(100)]
    of.end()
    assert of.runtime.failures == []


def test_what_was_posted_before_the_end_is_done_before_it() -> None:
    of = Server()
    done: list[int] = []
    # Its thread comes to these when it is started.
    for number in range(10):
        of.server.post(lambda number=number: done.append(number))  # type: ignore[misc]
    of.server.start()
    of.end()
    assert done == list(range(10))


def test_no_more_commands_wait_than_there_may_be_and_then_there_is_room_again() -> None:
    of = Server(mesh_commands_max=3)
    commands: list[Callable[[], None]] = [
        lambda: of.server.join(NodeId("b", "127.0.0.1:1")),
        lambda: of.server.leave("b"),
        lambda: of.server.ban(["x"], 9),
        lambda: of.server.lift_ban(["x"]),
        lambda: of.server.watch_seed_file("none"),
    ]
    for command in commands[:3]:
        command()
    for command in commands:
        with pytest.raises(QueueFull, match="3 .*; Limits.mesh_commands_max is 3"):
            command()
    # What the node itself has to be done finds room, or it could not end.
    done = threading.Event()
    of.server.post(done.set)
    of.server.start()
    assert done.wait(PATIENCE_S)
    until(lambda: [ban.node for ban in of.server.status().bans] == ["x"])
    for _ in range(3):
        of.server.lift_ban(["x"])
        until(lambda: not of.server._waiting)
    of.end()
    assert of.runtime.failures == []


def test_many_commands_keep_the_thread_from_nothing_else() -> None:
    of = Server()
    looks: list[int] = []
    done: list[int] = []
    look = of.server._look

    def looked() -> None:
        looks.append(len(done))
        look()

    of.server._look = looked  # type: ignore[method-assign]
    for number in range(1_000):
        of.server.post(lambda number=number: done.append(number))  # type: ignore[misc]
    of.server.start()
    until(lambda: len(done) == 1_000)
    assert done == list(range(1_000))
    assert max(two - one for one, two in itertools.pairwise(looks)) <= COMMANDS_PER_TURN
    of.end()


class GivesWay:
    """In place of a poller: keeps how many handshakes were under way when it gave way."""

    def __init__(self, server: ClusterServer) -> None:
        self._server, self._poller = server, server._poller
        self.handshakes: list[int] = []

    def give_way(self) -> None:
        self.handshakes.append(len(self._server._control_plane._handshakes))
        self._poller.give_way()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)


def test_others_have_the_processor_before_it_sleeps_while_there_are_handshakes() -> None:
    of = Server()
    gives_way = of.server._poller = GivesWay(of.server)  # type: ignore[assignment]
    of.server.start()
    for _ in range(5):
        turned = threading.Event()
        of.server.post(turned.set)
        assert turned.wait(PATIENCE_S)
    assert gives_way.handshakes == []
    with socket.create_connection(of.listeners[0].getsockname(), PATIENCE_S) as says_nothing:
        until(lambda: len(gives_way.handshakes) > 0)
        says_nothing.shutdown(socket.SHUT_RDWR)
    assert set(gives_way.handshakes) == {1}
    of.end()


def test_one_that_was_never_started_lets_go_of_all_it_was_given() -> None:
    of = Server()
    assert of.end() == []
    assert of.runtime.failures == []


def test_a_thread_that_comes_to_life_too_late_does_nothing() -> None:
    of = Server()
    of.end()
    of.server.thread.start()
    of.server.thread.join(PATIENCE_S)
    assert not of.server.thread.is_alive()
    assert of.runtime.failures == []


def test_commands_descriptors_and_timers_fail_for_themselves() -> None:
    of = Server()
    raised: list[str] = []

    def fail(what: str) -> Callable[..., None]:
        def once(*arguments: object) -> None:
            if what not in raised:
                raised.append(what)
                raise SystemExit(what)

        return once

    readable, writing = os.pipe()
    os.close(writing)
    of.server._selector.register(readable, selectors.EVENT_READ, fail("a descriptor"))
    of.server._tick = fail("a timer")  # type: ignore[method-assign]
    look = fail("the look ahead")
    patience = of.server._patience
    of.server._patience = lambda: look() or patience()  # type: ignore
    done = threading.Event()
    of.server.start()
    of.server.post(fail("a command"))
    until(lambda: len(raised) == 4)
    of.server.post(done.set)
    assert done.wait(PATIENCE_S)
    of.end()
    os.close(readable)
    assert of.runtime.failures == []
    assert of.server.status().refusals == {"INTERNAL_ERROR": 4}
    for what in raised:
        assert any(f"SystemExit: {what}" in text for text in of.runtime.reports)


@pytest.mark.parametrize("what", ["descriptor", "timer"])
def test_what_always_fails_ends_the_server_and_does_not_spin_until_then(what: str) -> None:
    of = Server()
    error = LookupError("for ever")
    times: list[float] = []

    def fail(*arguments: object) -> None:
        times.append(time.monotonic())
        raise error

    readable, writing = os.pipe()
    os.close(writing)
    if what == "timer":
        of.server._tick = fail  # type: ignore[method-assign]
    else:
        of.server._selector.register(readable, selectors.EVENT_READ, fail)
    of.server.start()
    until(lambda: of.runtime.failures)
    of.end()
    os.close(readable)
    assert of.runtime.failures == [("the cluster server", error)]
    assert len(times) == IN_A_ROW_MAX
    assert all(later - before >= RETRY_S for before, later in itertools.pairwise(times))


def test_a_stop_that_fails_ends_the_server_all_the_same() -> None:
    of = Server()
    error = LookupError("in stop")

    def fail(patience_s: float, within_s: float) -> None:
        raise error

    of.server._control_plane.stop = fail  # type: ignore[method-assign]
    of.server.start()
    of.end()
    assert of.runtime.failures == [("the cluster server", error)]


def test_a_defect_of_the_loop_ends_the_server_and_is_told_to_the_node() -> None:
    of = Server()
    error = LookupError("a defect")

    def fail() -> float:
        raise error

    of.server.start()
    of.server._patience = fail  # type: ignore[method-assign]
    of.server.post(lambda: None)
    until(lambda: of.runtime.failures)
    of.end()
    # The step is taken once more, and finds that it is over.
    assert of.runtime.failures == [("the cluster server", error)]


@pytest.mark.parametrize("what", ["join", "leave", "watch_seed_file"])
def test_a_cluster_server_that_has_ended_takes_nothing_more(what: str) -> None:
    with rabble.rouse(mesh=rabble.Mesh()) as node:
        cluster = node._runtime.cluster
        assert cluster is not None

        def fail() -> float:
            raise LookupError("a defect")

        cluster._patience = fail  # type: ignore[method-assign]
        cluster.post(lambda: None)
        cluster._serving.acquire()
        cluster._serving.release()
        for _ in range(100):
            with pytest.raises(NodeStopped, match="the cluster server of local@.* has ended"):
                getattr(cluster, what)("far")
        cluster.post(lambda: None)
        assert not cluster._commands
    assert node.failure == "the cluster server: LookupError: a defect"


# Incarnations.


@pytest.mark.parametrize("clock", [lambda: 0.0, lambda: 1_700_000_000.0, lambda: 2.0**43])
def test_an_incarnation_is_a_millisecond_and_20_random_bits(
    clock: Callable[[], float],
) -> None:
    made = {new_incarnation(clock, random.Random(seed)) for seed in range(100)}
    assert {incarnation >> 20 for incarnation in made} == {int(clock() * 1_000)}
    assert len(made) > 90


def test_a_later_start_has_a_higher_incarnation() -> None:
    # Within a second, so that the clock's milliseconds count and not the random bits.
    earlier = new_incarnation(lambda: 1_700_000_000.25, random.Random(1))
    later = new_incarnation(lambda: 1_700_000_000.5, random.Random(2))
    assert earlier < later < 2**64
