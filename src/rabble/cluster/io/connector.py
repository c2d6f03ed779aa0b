"""Dialling: host name to addresses, one address after the other, until a handshake begins."""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import Callable

from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.address import is_loopback
from rabble.cluster.decide.handshake import Failed, Handshake, Role
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.handshake_runner import HandshakeOwner, HandshakeRunner
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.resolver import Address, Resolver
from rabble.limits import Limits

__all__ = ["Connector"]


class Connector:
    """Begins the connections of this node. Belongs to the cluster server's thread.

    :param context: of TLS, or `None`.
    :param loopback_only: dial no other addresses: nothing proves who answers there.
    :param resolver: owned from now on.
    """

    def __init__(
        self,
        owner: HandshakeOwner,
        runner: HandshakeRunner,
        *,
        context: ssl.SSLContext | None,
        loopback_only: bool,
        resolver: Resolver,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._owner = owner
        self._runner = runner
        self._context = context
        self._loopback_only = loopback_only
        self._resolver = resolver
        self._handshake_s = limits.handshake_ms / 1000
        self._connect_s = limits.connect_ms / 1000
        self._clock = clock
        #: Dials whose host is being looked up: they have no socket yet.
        self._resolving: dict[int, Dial] = {}

    def dial(self, dial: Dial) -> None:
        """Begin a dial; the owner's `failed` or `established` follows, unless it is dropped."""
        self._resolving[dial.connection_id] = dial
        deadline = self._clock() + self._handshake_s

        def answer(found: list[Address] | OSError) -> None:
            self._owner.post(functools.partial(self._resolved, dial, found, deadline))

        self._resolver.resolve(dial.addr, answer)

    def drop(self, connection_id: int) -> bool:
        """Forget a dial whose host is being looked up. False if there is none."""
        return self._resolving.pop(connection_id, None) is not None

    def drop_all(self) -> None:
        """Forget all dials whose host is being looked up."""
        self._resolving.clear()

    def close(self) -> None:
        """Dial nothing more."""
        self.drop_all()
        self._resolver.close()

    def _resolved(self, dial: Dial, found: list[Address] | OSError, deadline: float) -> None:
        if self._resolving.get(dial.connection_id) is not dial:
            return
        del self._resolving[dial.connection_id]
        if isinstance(found, OSError):
            self._fail(dial, str(found))
        else:
            self._try_next(dial, found, deadline, "it has no address")

    def _try_next(
        self, dial: Dial, addresses: list[Address], deadline: float, problem: str
    ) -> None:
        """Dial the next address there is; the dial has failed when there is none."""
        while addresses and self._clock() < deadline:
            family, where = addresses.pop(0)
            host = str(where[0])
            if self._loopback_only and not is_loopback(host):
                problem = f"{host} is not of this machine, and nothing would prove who answers"
                continue
            try:
                connecting = self._connect(dial, family, where, addresses, deadline)
            except OSError as error:
                problem = str(error)
                continue
            self._runner.add_dialled(connecting)
            return
        self._fail(dial, problem)

    def _connect(
        self,
        dial: Dial,
        family: int,
        where: tuple[object, ...],
        others: list[Address],
        deadline: float,
    ) -> HandshakeSocket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)

        def make_handshake(certified: frozenset[str] | None) -> Handshake:
            return self._runner.make_handshake(Role.INITIATOR, certified, dial.join, dial.node)

        connecting = HandshakeSocket(
            sock,
            dial.connection_id,
            initiated=True,
            context=self._context,
            make_handshake=make_handshake,
            remote=dial.addr,
            deadline=deadline,
            connect_by=self._clock() + self._connect_s,
            other_addresses=others,
            try_next_address=functools.partial(self._try_next, dial, others, deadline),
        )
        try:
            connecting.connect(where)
        except OSError:
            sock.close()
            raise
        return connecting

    def _fail(self, dial: Dial, problem: str) -> None:
        """A dial came to nothing: the network, and no peer, was why."""
        failed = Failed(RefusalCode.TIMEOUT, problem, False, silent=True)
        self._owner.failed(dial.connection_id, failed, dial.addr, True)
