"""One end of handshakes on loopback: listener, connector and runner in the thread of the test."""

from __future__ import annotations

import collections
import os
import selectors
import socket
import time
from collections.abc import Callable

from rabble import Limits, NodeId
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import Failed, HandshakeConfig, Peer
from rabble.cluster.decide.refusal import Refusal
from rabble.cluster.io.connector import Connector
from rabble.cluster.io.handshake_runner import HandshakeRunner
from rabble.cluster.io.listener import Listener, open_listeners
from rabble.cluster.io.resolver import Resolver
from tests.support import PATIENCE_S

KEY = bytes(range(32))


class Endpoint:
    """A `HandshakeOwner` that keeps what it is told.

    :param loopback_only: as in the connector.
    """

    def __init__(
        self, name: str, *, loopback_only: bool = False, key: bytes = KEY, **limits: int
    ) -> None:
        self.own = NodeId(name, "127.0.0.1:1")
        self.key = key
        self.refusal: Refusal | None = None
        self.lets_authenticate = True
        self.peers: list[tuple[int, Peer, bool]] = []
        self.socks: list[socket.socket] = []
        self.failures: list[tuple[int, Failed, str, bool]] = []
        self.last_id = 100
        self.late_s = 0.0
        self.selector = selectors.DefaultSelector()
        self.commands: collections.deque[Callable[[], None]] = collections.deque()
        self.post = self.commands.append
        self.runner = HandshakeRunner(
            self, self.selector, config=self.config, clock=self.clock, token_bytes=os.urandom
        )
        self.connector = Connector(
            self,
            self.runner,
            context=None,
            loopback_only=loopback_only,
            resolver=Resolver(f"{name}:names", self.unexpected),
            limits=Limits(**limits),
            clock=self.clock,
        )
        listening = open_listeners("127.0.0.1:0", loopback_only=True)
        self.addr = f"127.0.0.1:{listening[0].getsockname()[1]}"
        self.listener = Listener(
            self,
            self.runner,
            self.selector,
            listening,
            context=None,
            limits=Limits(**limits),
            clock=self.clock,
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *raised: object) -> None:
        self.listener.close()
        self.runner.close()
        self.connector.close()
        assert len(self.runner) == 0
        assert len(self.selector.get_map()) == 0
        self.selector.close()
        for sock in self.socks:
            sock.close()

    def clock(self) -> float:
        return time.monotonic() + self.late_s

    def config(self) -> HandshakeConfig:
        return HandshakeConfig(self.own, 7, "test", self.key)

    @staticmethod
    def unexpected(error: BaseException) -> None:
        raise AssertionError(error)

    def dial(self, addr: str, connection_id: int = 1, node: NodeId | None = None) -> None:
        self.connector.dial(Dial(connection_id, addr, node, join=False))

    def turn(self) -> None:
        """What the server's thread does in one turn of its loop."""
        for key, events in self.selector.select(0.01):
            key.data(events)
        while self.commands:
            self.commands.popleft()()
        self.runner.tick(self.clock())
        self.listener.tick(self.clock())

    # A `HandshakeOwner`.

    def next_connection_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def authorize(self, peer: Peer) -> Refusal | None:
        return self.refusal

    def may_authenticate(self, connection_id: int, peer: Peer) -> bool:
        return self.lets_authenticate

    def established(
        self, connection_id: int, sock: socket.socket, peer: Peer, leftover: bytes, initiated: bool
    ) -> None:
        self.peers.append((connection_id, peer, initiated))
        self.socks.append(sock)

    def failed(self, connection_id: int, failed: Failed, remote: str, initiated: bool) -> None:
        self.failures.append((connection_id, failed, remote, initiated))


def turn_until(holds: Callable[[], object], *ends: Endpoint) -> None:
    """Let the ends do their work until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, [(end.peers, end.failures) for end in ends]
        for end in ends:
            end.turn()
