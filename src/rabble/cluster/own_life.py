"""This node's own life in the mesh: which start of it counts, and whether it is a member."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from rabble._core.ids import NodeId
from rabble.cluster.decide.connection_manager import ConnectionManager
from rabble.cluster.decide.membership import Membership, MembershipError
from rabble.cluster.decide.standing import OwnStanding
from rabble.cluster.runtime import ClusterRuntime
from rabble.limits import Limits
from rabble.messages import Removed

__all__ = ["OwnLife"]


class OwnLife:
    """Removed, come back, outbid: for the cluster server's thread, but for what it shows.

    :param new_incarnation: makes an incarnation, of now.
    :param part: ends all connections and dials, as this node is removed.
    :param changed: is called when the node has changed its membership.
    """

    def __init__(
        self,
        own: NodeId,
        membership: Membership,
        connection_manager: ConnectionManager,
        runtime: ClusterRuntime,
        limits: Limits,
        *,
        new_incarnation: Callable[[], int],
        part: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._own = own
        self._membership = membership
        self._connection_manager = connection_manager
        self._runtime = runtime
        self._new_incarnation = new_incarnation
        self._part = part
        self._changed = changed
        self._standing = OwnStanding(membership, limits.digest_ms / 1000)
        #: Of the start that counts, for any thread; and whether this node was removed.
        self.incarnation = membership.incarnation
        self.is_removed = False

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do, in monotonic seconds."""
        return self._standing.next_tick

    @property
    def is_to_look(self) -> bool:
        """Whether `tick` has something to look at: a later start is known of, or was."""
        return self._membership.is_superseded or self._standing.next_tick is not None

    def tick(self, now: float) -> None:
        """Go beyond a later start of this node that others know of, if it is time to."""
        if self._standing.is_outbid(now):
            text = f"{self._own}: others know of a later start of this node, which goes beyond it"
            self._report(logging.WARNING, text)
            self.become_later()

    def be_removed(self, by: NodeId | None) -> bool:
        """Somebody removed this node: send `Removed` here, and leave the others alone.

        :returns: whether that is news.
        """
        if self.is_removed:
            return False
        self.is_removed = True
        self._connection_manager.joins = False
        try:
            self._part()
        finally:
            text = f"{self._own} was removed from the cluster; join() begins anew"
            self._report(logging.WARNING, text)
            self._runtime.notify_nodes(Removed(by))
        return True

    def come_back(self) -> bool:
        """Somebody has this node join: be a member again, if it was removed.

        :returns: whether it was. False, too, if there is no room among the members.
        """
        # To the others the incarnation that was removed is gone for good.
        if not self.is_removed or not self.become_later():
            return False
        self.is_removed = False
        self._connection_manager.joins = True
        return True

    def become_later(self, at_least: int = 0) -> bool:
        """Become a later start than any that is known. False if there is no room among members."""
        known = self._membership.incarnation_of(self._own.name)
        incarnation = max(at_least, self._new_incarnation(), self.incarnation + 1, known + 1)
        try:
            self._membership.rejoin(incarnation)
        except MembershipError as error:
            self._report(logging.ERROR, f"{self._own.name}: cannot be a member again: {error}")
            return False
        self.incarnation = self._connection_manager.incarnation = self._membership.incarnation
        self._changed()
        return True

    def _report(self, level: int, text: str) -> None:
        self._runtime.report(level, functools.partial(str, text))
