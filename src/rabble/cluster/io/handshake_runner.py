"""The handshakes that go on: each socket in the selector, each action carried out."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import selectors
import ssl
from collections.abc import Callable

from rabble._core.ids import NodeId
from rabble.cluster.decide.handshake import (
    Action,
    Authenticate,
    Authorize,
    Established,
    Failed,
    Handshake,
    HandshakeConfig,
    Role,
    Send,
)
from rabble.cluster.decide.patience import Patience
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.io.tls import PeerCertificate

__all__ = ["HandshakeRunner", "Outcome", "Ready", "Unreached", "is_refused"]

#: Called with the events when a file object of the selector is ready.
Ready = Callable[[int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Unreached:
    """The address that was dialled cannot be reached, and the host has others.

    :param problem: why; it is what the dial fails with if no other address can be tried.
    """

    problem: str


#: What the caller of the runner has to see to. `Authenticate` and `Authorize` are questions, which
#: `authenticate` or `drop`, and `decide`, answer. With any other the runner has let go of the
#: handshake: the socket of an established one is the caller's, and otherwise it is closed.
Outcome = Authenticate | Authorize | Established | Failed | Unreached


class HandshakeRunner:
    """The handshakes under way, of listener and connector. Belongs to the cluster server's thread.

    :param selector: of that thread; the data of each key is a `Ready`.
    :param ready: what those keys lead to; it calls `proceed`.
    :param config: what this node brings to a handshake; asked anew for each.
    :param patience: the time of all deadlines here, and of `now` throughout.
    :param token_bytes: a cryptographic random source.

    It decides nothing: each step returns what the caller has to see to, `None` while the handshake
    waits for its peer. The caller does so before it takes another step.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        ready: Callable[[HandshakeSocket, int], None],
        config: Callable[[], HandshakeConfig],
        clock: Callable[[], float],
        token_bytes: Callable[[int], bytes],
        patience: Patience | None = None,
    ) -> None:
        self.patience = Patience() if patience is None else patience
        self._selector = selector
        self._ready = ready
        self._config = config
        self._clock = clock
        self._token_bytes = token_bytes
        self._sockets: dict[int, HandshakeSocket] = {}
        #: Those that others began, by the address that they came from, the oldest first.
        self._accepted: dict[str, dict[int, HandshakeSocket]] = {}
        self._accepted_count = 0
        #: When the selector was last asked which sockets are ready. A deadline that was not over by
        #: then holds for none of those: they were in time, and this thread is late.
        self.looked_at = self.patient_now()
        #: No deadline is earlier.
        self._tick_at = float("inf")

    def patient_now(self) -> float:
        """The time of deadlines, in seconds; see `Patience`."""
        return self.patience.at(self._clock())

    def make_handshake(
        self,
        role: Role,
        certificate: PeerCertificate | None,
        join: bool = False,
        expected: NodeId | None = None,
        *,
        on_loopback: bool = False,
    ) -> Handshake:
        """A handshake that begins now; the other parameters are those of `Handshake`.

        :param certificate: the peer's; `None` if the stream is not TLS.
        """
        return Handshake(
            role,
            self._config(),
            self._token_bytes(32),
            self.patient_now(),
            join,
            expected,
            certified=None if certificate is None else certificate.names,
            certificate_fingerprint=None if certificate is None else certificate.fingerprint,
            on_loopback=on_loopback,
        )

    # The steps of a handshake.

    def add_dialled(self, handshake_socket: HandshakeSocket) -> None:
        """Watch a socket that is connecting."""
        self._sockets[handshake_socket.connection_id] = handshake_socket
        self._tick_at = min(self._tick_at, handshake_socket.next_tick)
        ready = functools.partial(self._ready, handshake_socket)
        self._selector.register(handshake_socket.sock, handshake_socket.interest, ready)

    def add_accepted(self, handshake_socket: HandshakeSocket) -> Outcome | None:
        """Watch a socket that was accepted, and begin."""
        self.add_dialled(handshake_socket)
        of_host = self._accepted.setdefault(handshake_socket.remote_host, {})
        of_host[handshake_socket.connection_id] = handshake_socket
        self._accepted_count += 1
        outcome = self._take(handshake_socket, handshake_socket.begin)
        if outcome is not None:
            return outcome
        # An honest peer has said its HELLO by now, and so is not among those that say nothing.
        return self.proceed(handshake_socket)

    def proceed(self, handshake_socket: HandshakeSocket) -> Outcome | None:
        """Go on with a socket that is ready."""
        if not self._has(handshake_socket):
            # It was dropped for what another socket brought, which was ready at the same time.
            return None
        return self._take(
            handshake_socket, functools.partial(handshake_socket.ready, self.looked_at)
        )

    def authenticate(
        self, handshake_socket: HandshakeSocket, question: Authenticate
    ) -> Outcome | None:
        """Write the PROOF: this node still wants the peer that was dialled."""
        handshake_socket.is_authenticating = True
        handshake_socket.extend(self.patient_now())
        return self._take(handshake_socket, lambda: [Send(question.proof)])

    def refuse(self, handshake_socket: HandshakeSocket, refusal: Refusal) -> Outcome | None:
        """Write, in place of the PROOF, why this node does not want the peer that was dialled."""
        handshake = handshake_socket.handshake
        assert handshake is not None
        return self._take(handshake_socket, functools.partial(handshake.refuse, refusal))

    def decide(self, handshake_socket: HandshakeSocket, refusal: Refusal | None) -> Outcome | None:
        """Write the answer to a peer that dialled and has proven itself: `None` accepts it."""
        handshake = handshake_socket.handshake
        assert handshake is not None

        def step() -> list[Action]:
            if refusal is None and handshake_socket.has_hung_up():
                # Nobody is called up who has given up already.
                raise EOFError("the peer closed the connection")
            return handshake.decide(refusal)

        return self._take(handshake_socket, step)

    def outdated(self, handshake_socket: HandshakeSocket, outcome: Outcome) -> Outcome:
        """This node has become a later start of itself since it began: end it without a word.

        The peer would take this node for the earlier one for as long as they are connected.
        """
        if not isinstance(outcome, Authenticate | Authorize | Established):
            return outcome
        self.drop(handshake_socket.connection_id)
        handshake_socket.close()
        text = "this node has become a later start of itself meanwhile"
        return Failed(RefusalCode.STALE_INCARNATION, text, False, silent=True)

    def due(self, now: float) -> list[HandshakeSocket]:
        """Those for which something takes too long; each is ended by `tick`.

        :param now: when the sockets were looked at; all that was ready then has been seen to.
        """
        if now < self._tick_at:
            return []
        late = [each for each in self._sockets.values() if now >= each.next_tick]
        self._tick_at = min(
            (each.next_tick for each in self._sockets.values() if now < each.next_tick),
            default=float("inf"),
        )
        return late

    def tick(self, handshake_socket: HandshakeSocket, now: float) -> Outcome | None:
        """Note the time, which ends what takes too long."""
        if not self._has(handshake_socket):
            # It was dropped for what became of another one.
            return None
        outcome = self._take(handshake_socket, functools.partial(handshake_socket.tick, now))
        if self._has(handshake_socket):
            self._tick_at = min(self._tick_at, handshake_socket.next_tick)
        return outcome

    def next_tick(self) -> float | None:
        """When `tick` may have something to do, in monotonic seconds."""
        return self.patience.when(self._tick_at) if self._sockets else None

    # The end of handshakes.

    def drop(self, connection_id: int) -> bool:
        """Close a handshake without a word. False if there is none."""
        handshake_socket = self._sockets.get(connection_id)
        if handshake_socket is None:
            return False
        try:
            self._forget(handshake_socket)
        finally:
            handshake_socket.close()
        return True

    def drop_oldest(self, accepted_max: int) -> HandshakeSocket | None:
        """Drop a handshake that another node began, if there are so many of them: of those from the
        address with most of them the oldest that has said nothing, or else the oldest.

        :returns: which was dropped.
        """
        if self._accepted_count < accepted_max:
            return None
        crowd = max(self._accepted.values(), key=len).values()
        oldest = next((each for each in crowd if not each.has_spoken), next(iter(crowd)))
        self.drop(oldest.connection_id)
        return oldest

    def drop_unauthenticated_dials(self) -> None:
        """Drop the dials that no peer can take for a connection yet."""
        for each in list(self._sockets.values()):
            if each.initiated and not each.is_authenticating:
                self.drop(each.connection_id)

    def close(self) -> None:
        """Close all sockets."""
        for connection_id in list(self._sockets):
            self.drop(connection_id)

    def close_inherited(self) -> None:
        """In a forked child: close its copies, whose selector is the parent's as well."""
        for handshake_socket in list(self._sockets.values()):
            handshake_socket.sock.close()

    def __len__(self) -> int:
        return len(self._sockets)

    def __contains__(self, connection_id: int) -> bool:
        return connection_id in self._sockets

    # The rest is internal.

    def _has(self, handshake_socket: HandshakeSocket) -> bool:
        return self._sockets.get(handshake_socket.connection_id) is handshake_socket

    def _take(
        self, handshake_socket: HandshakeSocket, step: Callable[[], list[Action]]
    ) -> Outcome | None:
        """Take a step, write what it says, and keep the selector in line with what follows."""
        before = handshake_socket.sock
        try:
            actions = step()
            if handshake_socket.sock is not before:
                # Wrapped for TLS: another object, under the same number.
                data = self._selector.unregister(before).data
                self._selector.register(handshake_socket.sock, handshake_socket.interest, data)
            outcome = self._write(handshake_socket, actions)
        except (OSError, EOFError) as error:
            outcome = self._outcome_of(handshake_socket, error)
        match outcome:
            case None:
                key = self._selector.get_key(handshake_socket.sock)
                if key.events != handshake_socket.interest:
                    self._selector.modify(key.fileobj, handshake_socket.interest, key.data)
            case Established():
                self._forget(handshake_socket)
            case Failed() | Unreached():
                self._forget(handshake_socket)
                handshake_socket.close()
        return outcome

    def _write(self, handshake_socket: HandshakeSocket, actions: list[Action]) -> Outcome | None:
        """Write what is to be sent; what is none of that comes last, and is returned."""
        outcome: Outcome | None = None
        for action in actions:
            if isinstance(action, Send):
                handshake_socket.write(action.data)
            else:
                outcome = action
        if isinstance(outcome, Established) and not handshake_socket.flushed:
            return Failed(RefusalCode.TIMEOUT, "the peer does not read", True)
        return outcome

    def _outcome_of(
        self, handshake_socket: HandshakeSocket, error: OSError | EOFError
    ) -> Failed | Unreached:
        """What the failure of a connection means."""
        problem = str(error) or type(error).__name__
        if handshake_socket.handshake is None and handshake_socket.other_addresses:
            return Unreached(problem)
        code = code_of(error)
        has_begun = handshake_socket.handshake is not None or not handshake_socket.initiated
        hung_up = has_begun and code is not RefusalCode.AUTH
        nobody = is_refused(error)
        return Failed(code, problem, False, silent=True, hung_up=hung_up, nobody=nobody)

    def _forget(self, handshake_socket: HandshakeSocket) -> None:
        del self._sockets[handshake_socket.connection_id]
        of_host = self._accepted.get(handshake_socket.remote_host, {})
        if of_host.pop(handshake_socket.connection_id, None) is not None:
            self._accepted_count -= 1
            if not of_host:
                del self._accepted[handshake_socket.remote_host]
        with contextlib.suppress(KeyError, ValueError):
            # It is not watched if that, or the step before it, has failed.
            self._selector.unregister(handshake_socket.sock)


def is_refused(error: BaseException) -> bool:
    """Whether the host that was dialled says that nobody listens there."""
    return isinstance(error, OSError) and error.errno == errno.ECONNREFUSED


def code_of(error: OSError | EOFError) -> RefusalCode:
    """What a failed connection counts as: AUTH if TLS itself refused it, on either side."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ended):
        return RefusalCode.AUTH
    return RefusalCode.TIMEOUT
