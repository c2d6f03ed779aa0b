"""What becomes of handshakes that fail: how each is counted, and what the log says of it."""

from __future__ import annotations

import logging

from rabble._core.ids import NodeId
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.handshake import Failed
from rabble.cluster.decide.refusal import RefusalCode
from rabble.cluster.io.handshake_socket import HandshakeSocket
from rabble.cluster.runtime import ClusterRuntime
from rabble.cluster.status import StatusBoard

__all__ = ["CLOSED", "REFUSED", "TOO_MANY", "FailedHandshakes"]

#: What counts whoever connects and closes without having said who it is: a probe, or a dial that
#: gave way to another connection.
CLOSED = "CLOSED"
#: What counts a dial of an address where nobody listens.
REFUSED = "REFUSED"
#: How one ends that gives way to a later one.
TOO_MANY = Failed(RefusalCode.BUSY, "too many handshakes", False, silent=True)
#: Addresses that lead to no node, or to a removed one, and names of who is refused for a ban or
#: dials this node when it is removed: of so many of each is remembered that it was said.
SAID_MAX = 1_024


class FailedHandshakes:
    """Counts them, and reports them. For the cluster server's thread.

    :param name: of the node, for the log.
    """

    def __init__(
        self,
        name: str,
        connection_manager: ConnectionManager,
        status_board: StatusBoard,
        runtime: ClusterRuntime,
    ) -> None:
        self._name = name
        self._connection_manager = connection_manager
        self._status_board = status_board
        self._runtime = runtime
        self._unreached: dict[str, None] = {}
        #: Names that were refused as they are banned; and whether this node has been, by anybody.
        self._banned: dict[str, None] = {}
        self._is_banned = False
        #: Addresses of removed nodes; or names of who dials this one, which is removed.
        self._not_joined: dict[str, None] = {}

    def count(
        self,
        connection_id: int,
        failed: Failed,
        remote: str,
        initiated: bool,
        handshake_socket: HandshakeSocket | None = None,
    ) -> None:
        """A handshake, or a dial, has come to nothing.

        :param handshake_socket: of which it was; `None` if it did not come to have one.
        """
        counted_as = self._counted_as(failed, initiated, handshake_socket)
        self._status_board.count_refusal(counted_as)
        whose = "dialling" if initiated else "a connection from"
        usual = failed.is_usual
        is_unreached = initiated and failed.silent and failed.code is RefusalCode.TIMEOUT
        if is_unreached and self._connection_manager.is_new(connection_id):
            # A mistyped address, most likely. Said once.
            usual = said_before(self._unreached, remote)
        elif failed.code is RefusalCode.BANNED:
            usual = self._is_usual_ban(failed, initiated, handshake_socket)
        elif failed.code is RefusalCode.NOT_JOINED:
            claimed = claimed_name(handshake_socket)
            usual = said_before(self._not_joined, remote if initiated else claimed or remote)
        self._runtime.report(
            logging.DEBUG if usual else logging.WARNING,
            lambda: f"{self._name}: {whose} {remote}: {counted_as}: {failed.text}",
        )

    def succeeded(self, remote: str, node: NodeId) -> None:
        """A node answers at an address, or was let in from there."""
        self._unreached.pop(remote, None)
        self._banned.pop(node.name, None)
        for each in (remote, node.addr, node.name):
            self._not_joined.pop(each, None)
        self._is_banned = False

    def _is_usual_ban(
        self, failed: Failed, initiated: bool, handshake_socket: HandshakeSocket | None
    ) -> bool:
        """Whether it was said already that this node, or the peer, is banned."""
        if failed.by_peer:
            before, self._is_banned = self._is_banned, True
            return before
        claimed = claimed_name(handshake_socket)
        return claimed is not None and said_before(self._banned, claimed)

    def _counted_as(
        self, failed: Failed, initiated: bool, handshake_socket: HandshakeSocket | None
    ) -> str:
        """The key of `ClusterStatus.refusals`."""
        if initiated:
            return REFUSED if failed.nobody else failed.code.name
        if failed.hung_up and handshake_socket is not None:
            claimed = claimed_name(handshake_socket)
            if claimed is None:
                return CLOSED
            if self._connection_manager.is_tied(claimed):
                # It dropped its dial, as it has or will have another connection to here.
                return RefusalCode.DUPLICATE.name
        return failed.code.name


def claimed_name(handshake_socket: HandshakeSocket | None) -> str | None:
    """What the peer calls itself, if it has said so."""
    handshake = None if handshake_socket is None else handshake_socket.handshake
    claimed = None if handshake is None else handshake.claimed
    return None if claimed is None else claimed.name


def said_before(said: dict[str, None], what: str) -> bool:
    """Whether it is among what was said; it is from now on."""
    if what in said:
        return True
    if len(said) >= SAID_MAX:
        del said[next(iter(said))]
    said[what] = None
    return False
