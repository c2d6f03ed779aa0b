"""A control plane in the thread of the test, with sockets on loopback and no executor."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import random
import selectors
import time
from collections.abc import Callable
from typing import Any

from rabble import Limits, Mesh, NodeId, Pid
from rabble._core.codec import Codec
from rabble._core.connection import Connection
from rabble._core.poller import Poller
from rabble._core.session import Session
from rabble.cluster.config import Credentials
from rabble.cluster.control_plane import ControlPlane
from rabble.cluster.decide.bans import Subject
from rabble.cluster.decide.node_keys import NodeKey
from rabble.cluster.gossip import KIND_MEMBERSHIP
from rabble.cluster.io.listener import open_listeners
from rabble.registry import MessageRegistry
from tests.support import KEY as KEY
from tests.support import turn_until as turn_until

CODEC = Codec(MessageRegistry(), elements_max=2**31 - 1)
#: What tests of a step need not wait for.
QUICK: dict[str, int] = {"redial_first_ms": 20, "redial_most_ms": 40, "dial_hold_back_ms": 10}


def make_poller(limits: Limits) -> Poller:
    return Poller(
        heartbeat_ms=limits.heartbeat_ms,
        frame_bytes_max=limits.frame_bytes_max,
        queue_bytes_max=limits.peer_queue_bytes_max,
        partial_ms_max=limits.frame_partial_ms_max,
    )


class Runtime:
    """A `ClusterRuntime` that keeps what it is told."""

    def __init__(self, own: NodeId) -> None:
        self.own = own
        self.up: list[Connection] = []
        self.news: list[object] = []
        self.reports: list[str] = []
        self.failures: list[tuple[str, BaseException]] = []

    def connection_up(self, connection: Connection) -> None:
        self.up.append(connection)

    def notify_nodes(self, msg: object) -> None:
        self.news.append(msg)

    def make_session(
        self,
        peer: NodeId,
        incarnation: int,
        peer_message_bytes_max: int,
        labels: frozenset[str] = frozenset(),
        version: int = 2,
    ) -> Session:
        executor = Pid("executor", self.own, "rabble")
        return Session(self.own, peer, incarnation, executor, codec=Codec(MessageRegistry()))

    def report(self, level: int, words: Callable[[], str]) -> None:
        self.reports.append(words())

    def failed(self, what: str, error: BaseException) -> None:
        self.failures.append((what, error))


class Plane:
    """The control plane of one node, whose turns the test takes."""

    def __init__(
        self,
        name: str,
        first_incarnation: int = 1,
        node_key: NodeKey | None = None,
        port: int = 0,
        **limits: int,
    ) -> None:
        self.limits = Limits(**{**QUICK, **limits})
        listeners = open_listeners(f"127.0.0.1:{port}", loopback_only=True)
        self.own = NodeId(name, f"127.0.0.1:{listeners[0].getsockname()[1]}")
        self.runtime = Runtime(self.own)
        self.commands: collections.deque[Callable[[], None]] = collections.deque()
        self.selector = selectors.DefaultSelector()
        self.poller = make_poller(self.limits)
        self.plane = ControlPlane(
            self.own,
            Mesh(key=KEY),
            listeners,
            self.poller,
            self.runtime,
            self.selector,
            post=self.commands.append,
            limits=self.limits,
            clock=time.monotonic,
            rng=random.Random(1),
            token_bytes=os.urandom,
            new_incarnation=itertools.count(first_incarnation).__next__,
        )
        if node_key is not None:
            # As a key file that is read again does.
            self.plane._renewal.credentials = Credentials(node_key=node_key)
        self.plane.sockets.seeds.start()

    @property
    def members(self) -> set[str]:
        self.plane.publish()
        return {node.name for node in self.plane.status().members}

    @property
    def peers(self) -> set[str]:
        """Who is connected."""
        return {peer.node.name for peer in self.plane.status().connections}

    @property
    def desired(self) -> set[str]:
        """Whom it is connected to, dials, or is going to dial, by name."""
        statuses = self.plane._connection_manager.statuses(time.monotonic())
        return {name for name, status in statuses.items() if status.state != "unwanted"}

    @property
    def refusals(self) -> dict[str, int]:
        return dict(self.plane.status().refusals)

    def claim(self, state: object) -> None:
        """Tell all peers that this is the state of the membership, whatever it is."""
        body = CODEC.encode_message(state)
        for peer in self.plane._connections.all():
            peer.connection.send_control(KIND_MEMBERSHIP, body)

    @property
    def banned(self) -> set[Subject]:
        """The names, and the fingerprints, that it knows to be banned."""
        return {ban.subject for ban in self.plane.members.shut_out.in_force()}

    def turn(self) -> None:
        """One turn of the loop of `ClusterServer`, which waits for nothing."""
        self.poller.poll()
        attempt = self.plane.failures.attempt
        attempt("the look at the sockets", self.plane.looks)
        for key, events in self.selector.select(0):
            attempt(f"descriptor {key.fd}", functools.partial(key.data, events))
        for _ in range(len(self.commands)):
            attempt("a command", self.commands.popleft())
        attempt("the look at the time", lambda: self.plane.tick(time.monotonic()))

    def __repr__(self) -> str:
        return f"{self.own}: {self.members}, {self.peers}, {self.runtime.reports}"

    def close(self) -> None:
        self.plane.sockets.close_handshakes()
        self.plane.sockets.close_seeds()
        self.plane.abort_connections()
        self.selector.close()
        self.poller.stop()

    def __enter__(self) -> Plane:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()


def turn_while(count: int, *planes: Plane) -> None:
    """Let the planes take so many turns."""
    for _ in range(count):
        for each in planes:
            each.turn()
