"""One end of handshakes on loopback: listener, connector and runner in the thread of the test."""

from __future__ import annotations

import collections
import os
import selectors
import socket
import time
from collections.abc import Callable

from rabble import Limits, NodeId
from rabble.addresses import Address
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import (
    Authenticate,
    Authorize,
    Established,
    Failed,
    HandshakeConfig,
    Peer,
)
from rabble.cluster.decide.refusal import Refusal
from rabble.cluster.io.connector import Connector
from rabble.cluster.io.handshake_runner import HandshakeRunner, Outcome, Unreached
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.listener import Listener, open_listeners
from rabble.cluster.io.resolver import Resolver
from tests.cluster.noted import Noted
from tests.support import KEY as KEY
from tests.support import turn_until as turn_until


class Endpoint:
    """What a control plane is to handshakes; it keeps what they come to.

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
        self.dropped: list[int] = []
        self.last_id = 100
        self.late_s = 0.0
        self.noted = Noted()
        self.selector = selectors.DefaultSelector()
        self.commands: collections.deque[Callable[[], None]] = collections.deque()
        self.runner = HandshakeRunner(
            self.selector,
            ready=lambda sock, events: self.see_to(sock, self.runner.proceed(sock)),
            config=self.config,
            clock=self.clock,
            token_bytes=os.urandom,
        )
        resolver, hearsay_resolver = (
            Resolver(
                f"{name}:{what}",
                self.unexpected,
                self.noted.failures,
                waiting_max=Limits(**limits).dials_max,
                clock=self.clock,
            )
            for what in ("names", "hearsay")
        )
        self.connector = Connector(
            self.runner,
            context=None,
            loopback_only=loopback_only,
            resolver=resolver,
            hearsay_resolver=hearsay_resolver,
            limits=Limits(**limits),
            clock=self.clock,
        )
        listening = open_listeners("127.0.0.1:0", loopback_only=True)
        self.addr = f"127.0.0.1:{listening[0].getsockname()[1]}"
        self.handshakes_max = Limits(**limits).handshakes_max
        self.listener = Listener(
            self.runner,
            self.selector,
            listening,
            ready=self.accept,
            next_id=self.next_connection_id,
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
        assert self.noted.texts == []
        assert len(self.selector.get_map()) == 0
        self.selector.close()
        for sock in self.socks:
            sock.close()

    def __repr__(self) -> str:
        return f"{self.own}: {self.peers}, {self.failures}"

    def clock(self) -> float:
        return time.monotonic() + self.late_s

    def config(self) -> HandshakeConfig:
        return HandshakeConfig(self.own, 7, "test", self.key)

    @staticmethod
    def unexpected(error: BaseException) -> None:
        raise AssertionError(error)

    def dial(
        self,
        addr: str,
        connection_id: int = 1,
        node: NodeId | None = None,
        resolved: Address | None = None,
        is_hearsay: bool = False,
    ) -> None:
        dial = Dial(connection_id, addr, node, False, resolved, is_hearsay)

        def answer(found: list[Address] | OSError) -> None:
            self.commands.append(lambda: self.connect(dial, found))

        self.connector.dial(dial, answer)

    def turn(self) -> None:
        """What the server's thread does in one turn of its loop."""
        self.runner.looked_at = self.clock()
        for key, events in self.selector.select(0.01):
            key.data(events)
        while self.commands:
            self.commands.popleft()()
        for sock in self.runner.due(self.clock()):
            self.see_to(sock, self.runner.tick(sock, self.clock()))
        for dial, failed in self.connector.end_late(self.clock()):
            self.failures.append((dial.connection_id, failed, dial.addr, True))
        self.listener.tick(self.clock())

    def next_connection_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def accept(self, listening: socket.socket, events: int) -> None:
        for accepted in self.listener.accept(listening):
            if isinstance(accepted, Failed):
                self.failures.append((0, accepted, "anybody", False))
                continue
            dropped = self.runner.drop_oldest(self.handshakes_max)
            if dropped is not None:
                self.dropped.append(dropped.connection_id)
            self.see_to(accepted, self.runner.add_accepted(accepted))

    def connect(self, dial: Dial, found: list[Address] | OSError) -> None:
        failed = self.connector.connect(dial, found)
        if failed is not None:
            self.failures.append((dial.connection_id, failed, dial.addr, True))

    def see_to(self, sock: HandshakeSocket, outcome: Outcome | None) -> None:
        while outcome is not None:
            match outcome:
                case Authenticate():
                    if not self.lets_authenticate:
                        self.runner.drop(sock.connection_id)
                        return
                    outcome = self.runner.authenticate(sock, outcome)
                case Authorize():
                    outcome = self.runner.decide(sock, self.refusal)
                case Unreached(problem):
                    outcome = self.connector.connect_next(sock, problem)
                case Established(peer):
                    self.peers.append((sock.connection_id, peer, sock.initiated))
                    self.socks.append(sock.take())
                    return
                case Failed():
                    self.failures.append((sock.connection_id, outcome, sock.remote, sock.initiated))
                    return
