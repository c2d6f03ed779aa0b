"""What an executor tells the layer above it, and asks of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn

from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from rabble._core.poller import Connection
from rabble._core.texts import bounded_str
from rabble.cluster.codes import RefusalCode, ended
from rabble.errors import NameTaken, QueueFull
from rabble.messages import Metrics

if TYPE_CHECKING:
    from rabble.node import Node

__all__ = ["Observer"]


class Observer:
    """A node, as its executor sees it.

    All but `refuse` run in the executor's thread and never block.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    def crashed(self, pid: Pid | None, error: BaseException) -> None:
        """A process failed, or somebody sent a control message that cannot be followed."""
        self._node._reporter.report_crash(pid, error)

    def unencodable(self, envelope: Envelope, error: Exception) -> None:
        """A message could not have crossed a wire (strict mode)."""
        self._node._reporter.report(
            logging.ERROR,
            lambda: f"{envelope.sender} sent what cannot be encoded: {bounded_str(error, 500)}",
        )

    def undecodable(self, envelope: Envelope, detail: str) -> None:
        """A peer sent a message that this node cannot build."""
        self._node._reporter.report(
            logging.ERROR, lambda: f"{envelope.sender} sent what cannot be decoded: {detail[:500]}"
        )

    def why_ended(self, connection: Connection) -> str:
        """The `reason` of the `NodeDown` for a connection that ended, or that now is to."""
        if connection.open or connection.code == RefusalCode.STALE_INCARNATION:
            return "replaced"
        return ended(connection.code)

    def disconnected(self, connection: Connection) -> None:
        """Another node can be reached no longer."""
        self._node._calls.disconnected(connection.session.peer)

    def metrics(self) -> Metrics:
        """A process asks for them."""
        return self._node.metrics()

    def quiet(self) -> bool:
        """Whether no service has anything before it: then what drains has drained."""
        return all(service.idle for service in list(self._node._services))

    def refuse(self, pid: Pid | None = None) -> NoReturn:
        """Say why an envelope, or the process `pid`, was not accepted. In the asker's thread."""
        node = self._node
        node._check_usable()
        if pid is not None:
            raise NameTaken(f"{pid} runs already; stop it first, or take another name")
        raise QueueFull(
            f"{node._executor.inbox_depth} envelopes wait for {node.node_id} already; "
            f"Limits.inbox_envelopes_max is {node.limits.inbox_envelopes_max}"
        )
