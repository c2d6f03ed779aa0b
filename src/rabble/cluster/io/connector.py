"""Dialling: host name to addresses, one address after the other, until a handshake begins."""

from __future__ import annotations

import dataclasses
import socket
import ssl
from collections.abc import Callable

from rabble.addresses import Address, is_loopback
from rabble.cluster.decide.actions import Dial
from rabble.cluster.decide.handshake import Failed, Handshake, Role
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.handshake_runner import HandshakeRunner, is_refused
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.resolver import Question, Resolver
from rabble.cluster.io.tls import PeerCertificate
from rabble.limits import Limits

__all__ = ["Connector"]


@dataclasses.dataclass(slots=True)
class Resolving:
    """A dial that has no socket yet, as its host is being looked up.

    :param by: when that has to be done.
    :param question: to the resolver, if it needs to be asked.
    """

    dial: Dial
    by: float
    question: Question | None = None

    def withdraw(self) -> None:
        if self.question is not None:
            self.question.withdraw()


class Connector:
    """Begins the connections of this node. Belongs to the cluster server's thread.

    :param context: of TLS, or `None`.
    :param loopback_only: dial no other addresses: nothing proves who answers there.
    :param resolver: of the hosts of dials; and `hearsay_resolver` of those of which only others
        tell: however many hosts these make up that no name server answers for, no other dial waits
        for them. Both are owned from now on.
    """

    def __init__(
        self,
        runner: HandshakeRunner,
        *,
        context: ssl.SSLContext | None,
        loopback_only: bool,
        resolver: Resolver,
        hearsay_resolver: Resolver,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._context = context
        self._loopback_only = loopback_only
        self._resolver = resolver
        self._hearsay_resolver = hearsay_resolver
        self._handshake_s = limits.handshake_ms / 1000
        self._connect_s = limits.connect_ms / 1000
        self._clock = clock
        #: The dials whose host is being looked up.
        self._resolving: dict[int, Resolving] = {}

    def dial(self, dial: Dial, answer: Callable[[list[Address] | OSError], None]) -> None:
        """Begin a dial: find out what its address stands for.

        :param answer: called with what `connect` is to be given, from any thread; at once if
            nothing has to be looked up.
        """
        resolving = Resolving(dial, self._clock() + self._handshake_s)
        self._resolving[dial.connection_id] = resolving
        if dial.resolved is not None:
            answer([dial.resolved])
        else:
            resolver = self._hearsay_resolver if dial.is_hearsay else self._resolver
            resolving.question = resolver.resolve(dial.addr, answer, resolving.by)

    def connect(self, dial: Dial, found: list[Address] | OSError) -> Failed | None:
        """Begin to connect to the first of the addresses that can be used.

        :returns: why the dial failed; `None` if it goes on, or was dropped meanwhile.
        """
        resolving = self._resolving.pop(dial.connection_id, None)
        if resolving is None:
            return None
        if isinstance(found, OSError):
            return failed_by(str(found))
        deadline = self._runner.patience.at(resolving.by)
        return self._try_next(dial, [*found], deadline, "it has no address")

    def end_late(self, now: float) -> list[tuple[Dial, Failed]]:
        """Forget the dials whose host took too long to look up; each with how it failed."""
        late = [each.dial for each in self._resolving.values() if now >= each.by]
        for dial in late:
            self.drop(dial.connection_id)
        text = f"its host was not looked up within {self._handshake_s:g} s"
        return [(dial, failed_by(text)) for dial in late]

    def next_tick(self) -> float | None:
        """When `end_late` has something to do."""
        if not self._resolving:
            return None
        return min(each.by for each in self._resolving.values())

    def connect_next(self, before: HandshakeSocket, problem: str) -> Failed | None:
        """Begin to connect to the next address in place of one that could not be reached.

        :param problem: why that one could not be.
        :returns: why the dial failed; `None` if it goes on.
        """
        assert before.dial is not None
        return self._try_next(before.dial, [*before.other_addresses], before.deadline, problem)

    def __contains__(self, connection_id: int) -> bool:
        """Whether the host of that dial is being looked up."""
        return connection_id in self._resolving

    def renew(self, context: ssl.SSLContext) -> None:
        """Use another context for what is dialled from now on."""
        self._context = context

    def drop(self, connection_id: int) -> bool:
        """Forget a dial whose host is being looked up. False if there is none."""
        resolving = self._resolving.pop(connection_id, None)
        if resolving is None:
            return False
        resolving.withdraw()
        return True

    def drop_all(self) -> None:
        """Forget all dials whose host is being looked up."""
        for connection_id in list(self._resolving):
            self.drop(connection_id)

    def close(self) -> None:
        """Dial nothing more."""
        self.drop_all()
        self._resolver.close()
        self._hearsay_resolver.close()

    def _try_next(
        self, dial: Dial, addresses: list[Address], deadline: float, problem: str
    ) -> Failed | None:
        """Dial the next address there is; the dial has failed when there is none."""
        nobody = False
        while addresses and self._runner.patient_now() < deadline:
            family, where = addresses.pop(0)
            host = str(where[0])
            if self._loopback_only and not is_loopback(host):
                problem = f"{host} is not of this machine, and nothing would prove who answers"
                continue
            try:
                connecting = self._connect(dial, family, where, addresses, deadline)
            except OSError as error:
                problem, nobody = str(error), is_refused(error)
                continue
            try:
                self._runner.add_dialled(connecting)
            except BaseException:
                connecting.close()
                raise
            return None
        return failed_by(problem, nobody=nobody)

    def _connect(
        self,
        dial: Dial,
        family: int,
        where: tuple[object, ...],
        others: list[Address],
        deadline: float,
    ) -> HandshakeSocket:
        def make_handshake(certificate: PeerCertificate | None) -> Handshake:
            return self._runner.make_handshake(
                Role.INITIATOR,
                certificate,
                dial.join,
                dial.node,
                on_loopback=is_loopback(str(where[0])),
            )

        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            connecting = HandshakeSocket(
                sock,
                dial.connection_id,
                context=self._context,
                make_handshake=make_handshake,
                remote=dial.addr,
                deadline=deadline,
                connect_by=self._runner.patient_now() + self._connect_s,
                dial=dial,
                other_addresses=others,
            )
            connecting.connect(where)
        except BaseException:
            sock.close()
            raise
        return connecting


def failed_by(problem: str, *, nobody: bool = False) -> Failed:
    """How a dial failed for which the network was the reason, and no peer."""
    return Failed(RefusalCode.TIMEOUT, problem, False, silent=True, nobody=nobody)
