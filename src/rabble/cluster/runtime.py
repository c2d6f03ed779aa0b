"""What the cluster server needs of its node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rabble._core.codec import Codec
from rabble._core.connection import Connection
from rabble._core.directory_messages import DIRECTORY_NAME
from rabble._core.executor import Executor
from rabble._core.fragments import UnfinishedMessages
from rabble._core.frame import PROTOCOL_VERSIONS
from rabble._core.ids import NodeId
from rabble._core.session import Session
from rabble.addresses import CALLS_NAME, CANARY_NAME, SPAWNER_NAME
from rabble.limits import Limits
from rabble.registry import MessageRegistry
from rabble.reports import Reporter

__all__ = ["ClusterRuntime", "NodeRuntime", "OPEN_NAMES"]

#: Of the node's own services, those that peers may send to.
OPEN_NAMES = frozenset({CALLS_NAME, CANARY_NAME, DIRECTORY_NAME, SPAWNER_NAME})


class ClusterRuntime(Protocol):
    """What the cluster server needs of its node. Everything may be called from its thread."""

    def connection_up(self, connection: Connection) -> None:
        """A connection is established."""

    def notify_nodes(self, msg: object) -> None:
        """Send a message to all that subscribed to nodes."""

    def make_session(
        self,
        peer: NodeId,
        incarnation: int,
        peer_message_bytes_max: int,
        labels: frozenset[str] = frozenset(),
        version: int = PROTOCOL_VERSIONS[1],
    ) -> Session:
        """The encoder and decoder of a new connection, whose peer takes messages of that size.

        :param labels: that the peer gives itself.
        :param version: of the protocol, that both sides use.
        """

    def report(self, level: int, words: Callable[[], str]) -> None:
        """Write to the log, at a bounded rate."""

    def failed(self, what: str, error: BaseException) -> None:
        """A thread of the control plane cannot go on: neither can the node."""


class NodeRuntime:
    """The `ClusterRuntime` of a node that is part of a mesh. For any thread."""

    def __init__(
        self,
        executor: Executor,
        reporter: Reporter,
        registry: MessageRegistry,
        limits: Limits,
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._executor = executor
        self._reporter = reporter
        self._registry = registry
        self._limits = limits
        self._unfinished = UnfinishedMessages(limits.unfinished_bytes_max)
        self.connection_up: Callable[[Connection], None] = executor.connection_up
        self.notify_nodes: Callable[[object], None] = executor.notify_nodes
        self.report: Callable[[int, Callable[[], str]], None] = reporter.report
        self.failed = failed

    def make_session(
        self,
        peer: NodeId,
        incarnation: int,
        peer_message_bytes_max: int,
        labels: frozenset[str] = frozenset(),
        version: int = PROTOCOL_VERSIONS[1],
    ) -> Session:
        """With a codec of its own: the peer chooses the names that a codec keeps."""
        limits = self._limits
        codec = Codec(
            self._registry,
            message_bytes_max=limits.message_bytes_max,
            depth_max=limits.message_depth_max,
            elements_max=limits.message_elements_max,
            decoded_bytes_max=limits.message_decoded_bytes_max,
        )
        return Session(
            self._executor.node,
            peer,
            incarnation,
            self._executor.pid,
            codec=codec,
            peer_message_bytes_max=peer_message_bytes_max,
            fragment_bytes=limits.fragment_bytes_max,
            frame_bytes_max=limits.frame_bytes_max,
            open_names=OPEN_NAMES,
            unfinished=self._unfinished,
            labels=labels,
            version=version,
        )
