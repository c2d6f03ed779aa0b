"""What an executor tells the layer above it, and asks of it."""

from __future__ import annotations

import logging
from typing import NoReturn

from rabble._core.connection import Connection
from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from rabble._core.messages import CallFailed
from rabble._runtime import LocalRuntime
from rabble.call_failures import asks_full
from rabble.cluster.decide.refusal import RefusalCode, ended
from rabble.errors import RabbleError
from rabble.messages import Bounced, DeadLetter, Metrics
from rabble.texts import TEXT_CHARS_MAX, text_of

__all__ = ["Hooks"]


class Hooks:
    """A node, as its executor sees it.

    All but `refuse` run in the executor's thread and never block.

    :param runtime: of the node.
    """

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        """A process failed, or somebody sent a control message that cannot be followed."""
        self._runtime.reporter.report_crash(pid, error, self._runtime.executor.crash_number)

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        """A message could not have crossed a wire (strict mode)."""
        self._runtime.reporter.report(
            logging.ERROR,
            lambda: f"{envelope.sender} sent what cannot be encoded: {text_of(error)}",
        )

    def undecodable(self, envelope: Envelope, detail: str) -> None:
        """A peer sent a message that this node cannot build."""
        self._runtime.reporter.report(
            logging.ERROR,
            lambda: f"{envelope.sender} sent what cannot be decoded: {detail[:TEXT_CHARS_MAX]}",
        )

    def why_ended(self, connection: Connection) -> str:
        """The `reason` of the `NodeDown` for a connection that ended, or that now is to."""
        if connection.open or connection.code == RefusalCode.STALE_INCARNATION:
            return "replaced"
        return ended(connection.code)

    def disconnected(self, connection: Connection) -> None:
        """Another node can be reached no longer."""
        self._runtime.calls.disconnected(connection.session.peer, self.why_ended(connection))

    def ask_failure(self, to: Pid, msg: DeadLetter | Bounced | CallFailed) -> RabbleError:
        """Why no answer to a process's request comes: as for a call."""
        return self._runtime.calls.failure_of(to, msg)

    def ask_timeout(self, to: Pid, number: int, timeout_ms: float) -> RabbleError:
        """The same of one for which none came in time."""
        return self._runtime.calls.timeout_of(number, to, timeout_ms / 1_000)

    def asks_full(self, to: Pid, waiting: int) -> RabbleError:
        """The same of one that was not sent, as so many wait."""
        return asks_full(to, waiting)

    def metrics(self) -> Metrics:
        """A process asks for them."""
        return self._runtime.metrics()

    def quiet(self) -> bool:
        """Whether no service has anything before it: then what drains has drained."""
        return all(service.idle for service in list(self._runtime.services))

    def refuse(self, pid: Pid | None = None) -> NoReturn:
        """Raise why an envelope, or the process `pid`, was not accepted. In the asker's thread."""
        self._runtime.refuse(pid)
