"""The joins that somebody waits for: who is there, or why nobody can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable

from rabble._core.ids import NodeId
from rabble.calls import Ending
from rabble.cluster.connections import PeerConnection
from rabble.cluster.decide.handshake_actions import Failed
from rabble.cluster.decide.refusal import RefusalCode
from rabble.errors import JoinFailed, NodeStopped

__all__ = ["UNRESOLVED", "Joining", "Joins"]

#: The code of a join whose host has no address.
UNRESOLVED = "UNRESOLVED"
#: What counts a dial of an address where nobody listens.
REFUSED = "REFUSED"
#: Why a dial may fail now that comes off a moment later: nobody listens yet, say, or the one that
#: had the name before has gone and that is not noticed yet. REMOVED is told to a dial that was
#: begun before the join; otherwise it is the end of this node's membership, and so of all joins.
PASSING = frozenset(
    {
        RefusalCode.TIMEOUT,
        RefusalCode.DUPLICATE,
        RefusalCode.STALE_INCARNATION,
        RefusalCode.BUSY,
        RefusalCode.SHUTDOWN,
        RefusalCode.NAME_CONFLICT,
        RefusalCode.REMOVED,
    }
)
#: Addresses of one host name whose refusals are told one by one.
TOLD_MAX = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Why a dial failed.

    :param code: that of the refusal, as `ClusterStatus.refusals` counts it.
    :param detail: more about it.
    :param node: who refused, as far as it has said that.
    """

    code: str
    detail: str
    node: NodeId | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclasses.dataclass(slots=True, eq=False)
class Joining:
    """A join that a thread or a task waits for.

    :param target: what was given to `join`.
    :param ending: ended with the `NodeId` that is up, or with an exception. It is set once.
    :param addrs: where the target is dialled; `None` as long as its host was not looked up. Of a
        `NodeId` it is not asked, as its name says which dials are its own.
    :param claims: who answered at each of these, and its incarnation: as it said, without proof.
    :param refused: why there is nobody at each of these, for good.
    :param last: how the last dial failed; may be read in any thread.
    """

    target: NodeId | str
    ending: Ending
    addrs: frozenset[str] | None = None
    claims: dict[str, tuple[NodeId, int]] = dataclasses.field(default_factory=dict)
    refused: dict[str, Problem] = dataclasses.field(default_factory=dict)
    last: Problem | None = None

    def place_of(self, addr: str, whom: NodeId | None) -> str | None:
        """Under which address a dial counts for this join; `None` if it is no dial of its own.

        :param whom: the node that was dialled, if that was known.
        """
        if isinstance(self.target, NodeId):
            return "" if whom is not None and whom.name == self.target.name else None
        if whom is None:
            return addr if addr in (self.addrs or ()) else None
        # Who answered there has become a peer, which is dialled by its name.
        names = {claimed.name: place for place, (claimed, _) in self.claims.items()}
        return names.get(whom.name)

    def is_met_by(self, peer: PeerConnection) -> bool:
        """Whether a node that is connected is the one that was meant."""
        node = peer.node
        if isinstance(self.target, NodeId):
            return node.name == self.target.name
        # An earlier start of who answers there is about to be replaced.
        return node.addr in (self.addrs or ()) or any(
            claimed == node and incarnation <= peer.incarnation
            for claimed, incarnation in self.claims.values()
        )


class Joins:
    """Ends each join that is waited for when it is known what comes of it.

    For the cluster server's thread.

    :param own: this node.
    """

    def __init__(self, own: NodeId) -> None:
        self._own = own
        self._waiting: dict[Joining, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, joining: Joining) -> None:
        """Somebody waits for it from now on."""
        self._waiting[joining] = None

    def forget(self, joining: Joining) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(joining, None)

    # What becomes of it.

    def looked_up(self, target: str, found: Collection[str] | OSError) -> None:
        """It is known what addresses a host that is joined stands for, or that it has none."""
        for joining in self._of(lambda each: each.target == target):
            if isinstance(found, OSError):
                self._fail(joining, Problem(UNRESOLVED, str(found)))
            else:
                joining.addrs = frozenset(found)

    def answered(self, addr: str, whom: NodeId | None, node: NodeId, incarnation: int) -> None:
        """A dial was answered by who says to be that node."""
        for joining in list(self._waiting):
            place = joining.place_of(addr, whom)
            if place is not None:
                joining.claims[place] = (node, incarnation)

    def failed(
        self, addr: str, whom: NodeId | None, failed: Failed, *, unresolved: bool = False
    ) -> None:
        """A dial has come to nothing.

        :param unresolved: as its host has no address.
        """
        code = UNRESOLVED if unresolved else REFUSED if failed.nobody else failed.code.name
        for joining in list(self._waiting):
            place = joining.place_of(addr, whom)
            if place is None:
                continue
            claimed = joining.claims.get(place)
            problem = Problem(code, failed.text, None if claimed is None else claimed[0])
            joining.last = problem
            if failed.code in PASSING and not unresolved:
                continue
            joining.refused[place] = problem
            if all(each in joining.refused for each in joining.addrs or (place,)):
                self._fail(joining, problem)

    def settle(self, peers: Iterable[PeerConnection]) -> None:
        """Other threads have been shown these connections, and the executor was told of them."""
        if not self._waiting:
            return
        peers = list(peers)
        for joining in list(self._waiting):
            peer = next(filter(joining.is_met_by, peers), None)
            if peer is not None:
                self.forget(joining)
                joining.ending.set_result(peer.node)

    def cannot_be(self, joining: Joining, why: str) -> None:
        """Not even a dial comes of it."""
        joining.ending.set_exception(join_failed(self._own, joining.target, "", why))

    def left(self, name: str) -> None:
        """Somebody had that node, or that address, leave: it is dialled no longer."""

        def is_meant(joining: Joining) -> bool:
            target = joining.target
            return name == (target.name if isinstance(target, NodeId) else target)

        for joining in self._of(is_meant):
            self.forget(joining)
            self.cannot_be(joining, f"leave({name!r}) was called meanwhile")

    def removed(self) -> None:
        """This node was removed from the mesh, and dials nobody."""
        for joining in list(self._waiting):
            text = "this node was removed from the mesh meanwhile; another join() begins anew"
            self._fail(joining, Problem(RefusalCode.REMOVED.name, text))

    def close(self) -> None:
        """The node ends."""
        for joining in list(self._waiting):
            self.forget(joining)
            joining.ending.set_exception(NodeStopped(f"{self._own} ends"))

    def _of(self, is_meant: Callable[[Joining], bool]) -> list[Joining]:
        return [joining for joining in self._waiting if is_meant(joining)]

    def _fail(self, joining: Joining, problem: Problem) -> None:
        self.forget(joining)
        text = str(problem)
        if len(joining.refused) > 1:
            several = sorted(joining.refused.items())
            text = "; ".join(f"{addr}: {each}" for addr, each in several[:TOLD_MAX])
            if len(several) > TOLD_MAX:
                text += f"; and {len(several) - TOLD_MAX} addresses more"
        error = join_failed(self._own, joining.target, problem.code, text)
        error.detail, error.node = problem.detail, problem.node
        joining.ending.set_exception(error)


def join_failed(own: NodeId, target: NodeId | str, code: str, why: str) -> JoinFailed:
    error = JoinFailed(f"{own} could not join {target}: {why}")
    error.code, error.detail = code, why
    return error
