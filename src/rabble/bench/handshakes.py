"""What handshakes cost alone: the limit of `forming`.

`main(COUNT)` prints the seconds of processor that one of them takes. Two operating-system processes
do them one after the other, with the sockets and the decisions of a node and nothing else.
"""

from __future__ import annotations

import os
import resource
import selectors
import socket
import sys
import time

from rabble._core.ids import NodeId
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import (
    Authenticate,
    Authorize,
    Established,
    HandshakeConfig,
)
from rabble.cluster.failures import Failures
from rabble.cluster.io.connector import Connector
from rabble.cluster.io.handshake_runner import HandshakeRunner, Outcome
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.listener import Listener, open_listeners
from rabble.cluster.io.resolver import Resolver
from rabble.limits import Limits

__all__ = ["main"]

WARM_UP = 30
KEY = bytes(range(32))


class Handshaker:
    """One side of them."""

    def __init__(self, name: str) -> None:
        self.own = NodeId(name, "127.0.0.1:1")
        self.established = 0
        self.selector = selectors.DefaultSelector()
        limits = Limits()
        config = HandshakeConfig(self.own, 7, key=KEY)
        self.runner = HandshakeRunner(
            self.selector,
            ready=lambda sock, events: self.see_to(sock, self.runner.proceed(sock)),
            config=lambda: config,
            clock=time.monotonic,
            token_bytes=os.urandom,
        )
        resolver, hearsay_resolver = (
            Resolver(
                f"{name}:{what}",
                lambda error: None,
                Failures(name, lambda level, words: None, lambda: None),
                waiting_max=limits.dials_max,
                clock=time.monotonic,
            )
            for what in ("names", "hearsay")
        )
        self.connector = Connector(
            self.runner,
            context=None,
            loopback_only=True,
            resolver=resolver,
            hearsay_resolver=hearsay_resolver,
            limits=limits,
            clock=time.monotonic,
        )
        listening = open_listeners("127.0.0.1:0", loopback_only=True)
        self.where = listening[0].getsockname()
        self.listener = Listener(
            self.runner,
            self.selector,
            listening,
            ready=self.accept,
            next_id=lambda: -1 - self.established,
            context=None,
            limits=limits,
            clock=time.monotonic,
        )

    def close(self) -> None:
        """Leave nothing behind."""
        for close in (self.listener, self.runner, self.connector, self.selector):
            close.close()

    def dial(self, where: tuple[object, ...], number: int) -> None:
        """Begin one."""
        address = (socket.AF_INET, where)
        dial = Dial(number, f"{where[0]}:{where[1]}", None, join=False, resolved=address)
        self.connector.dial(dial, lambda found: None)
        self.connector.connect(dial, [address])

    def turn_until(self, established: int) -> None:
        """Do what there is to do until so many are done."""
        while self.established < established:
            self.runner.looked_at = time.monotonic()
            for key, events in self.selector.select():
                key.data(events)

    def accept(self, listening: socket.socket, events: int) -> None:
        """Somebody dials."""
        for accepted in self.listener.accept(listening):
            if isinstance(accepted, HandshakeSocket):
                self.see_to(accepted, self.runner.add_accepted(accepted))

    def see_to(self, sock: HandshakeSocket, outcome: Outcome | None) -> None:
        """Accept everybody."""
        while outcome is not None:
            match outcome:
                case Authenticate():
                    outcome = self.runner.authenticate(sock, outcome)
                case Authorize():
                    outcome = self.runner.decide(sock, None)
                case Established():
                    self.established += 1
                    sock.sock.close()
                    return
                case other:
                    raise RuntimeError(f"a handshake alone came to nothing: {other}")


def used_s() -> float:
    """Of the processor, by this process and the one that has ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def handshakes_s(count: int) -> float:
    """Seconds of processor for so many and those to warm up, with the start of a process."""
    before = used_s()
    answers = Handshaker("answers")
    child = os.fork()
    if child == 0:
        try:
            answers.turn_until(WARM_UP + count)
        except BaseException as error:
            print(f"a side of handshakes failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    where = answers.where
    dials = Handshaker("dials")
    for number in range(WARM_UP + count):
        dials.dial(where, number)
        dials.turn_until(number + 1)
    dials.close()
    _, status = os.waitpid(child, 0)
    answers.close()
    if status:
        raise RuntimeError(f"the other side ended with status {status}")
    return used_s() - before


def main(count: str) -> None:
    """Print what one takes: of two sizes the difference, so that starting is in neither."""
    few = int(count) // 10
    print((handshakes_s(int(count)) - handshakes_s(few)) / (int(count) - few))
